"""Encodes the pictures of a metadata file once, for trainings to come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from library.core.errors import Incomplete, once_begun, printable
from library.core.log import get_logger, start_logging
from library.data.cache.disk_latents import LatentFiles, VaeWork
from library.data.cache.entry_paths import EntryPaths
from library.data.placement import Placements
from library.data.report.concerns import counted, cropped_share
from library.data.views import Drawing, Views
from library.models.files.mapped import give_own_memory
from library.models.vae_source import load_vae
from library.options.data import default_worker_count
from library.preparation.metadata_file import write_entries
from library.training.caching import fill_latent_files, latent_lines
from library.training.checks.preparation import Preparation
from library.training.latents import LatentEncoder
from library.training.prepared_way import PREPARED, VAE_PRECISION_OF, describe_preparation
from library.training.runtime import end_runtime, start_runtime

log = get_logger(__name__)

BUCKET = "train_resolution"  # the field of an entry that other tools read, too: [w, h]


def prepare_latents(found: Preparation) -> None:
    """Stores the latents of every picture beside it, as `--cache_latents_to_disk` does, then writes the metadata.

    Several processes share the work. What fits already stays, so a stopped run goes on where it was.

    Raises:
        UserError: a picture cannot be encoded, or a file cannot be written.
        Incomplete: all is done but for pictures that cannot be read.
    """
    options, index = found.options, found.index
    accelerator = start_runtime("no")
    start_logging(accelerator.is_main_process)
    for note in index.notes:
        log.info(printable(note))
    if options.skip_existing:
        log.info("--skip_existing: with it and without, latents that fit stay, and all others are made anew")
    log.info("loading the VAE of %s", printable(str(found.vae.path)))
    precision = VAE_PRECISION_OF[options.mixed_precision]
    vae = load_vae(found.vae)
    encoder = LatentEncoder(vae, accelerator.device, precision)
    give_own_memory(vae)  # mapped weights round differently, see `library.training.loading.place`
    views = Views(index, found.placements, Drawing(seed=0))  # nothing here is drawn from a seed
    files = LatentFiles(views, EntryPaths(index), VaeWork(encoder.weights_digest(), precision))
    asked = options.max_data_loader_n_workers
    workers = default_worker_count() if asked is None else asked
    with once_begun():
        _, reuse = fill_latent_files(files, encoder, workers, accelerator, options.batch_size)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            for line in latent_lines(reuse, index, precision):
                log.info(printable(line))
            _write(found)
            for line in bucket_table(found.placements):
                print(line)
    end_runtime(accelerator)  # the others stay until the file is written
    if index.left_out and accelerator.is_main_process:  # of several processes one says it
        raise Incomplete(index.left_out, end="the other pictures are prepared")


def bucket_table(placements: Placements) -> Iterator[str]:
    """How many pictures each bucket has, as in a training's start report, and how much of them is cut off."""
    buckets = np.asarray(placements.bucket)
    lost = cropped_share(placements)
    yield f"{'bucket':<12}{'pictures':>10}{'mean crop':>12}"
    for number, size in enumerate(placements.buckets):
        own = buckets == number
        yield f"{size!s:<12}{int(own.sum()):>10}{lost[own].mean():>12.1%}"
    yield f"{'all':<12}{len(buckets):>10}{lost.mean():>12.1%}"


def prepared_entries(found: Preparation) -> dict[str, Mapping[str, Any]]:
    """All entries of the file, those of prepared pictures with their bucket and how they were prepared.

    Pictures that cannot be read lose what an earlier preparation may have said of them.
    """
    entries: dict[str, Mapping[str, Any]] = dict(found.entries)
    way = describe_preparation(found.options)
    for record, key in enumerate(found.keys):
        size = found.placements.bucket_size(record)
        entries[key] = {**entries[key], BUCKET: [size.width, size.height], PREPARED: way}
    for key in found.broken:
        entries[key] = {name: value for name, value in entries[key].items() if name not in (BUCKET, PREPARED)}
    return entries


def _write(found: Preparation) -> None:
    path = Path(found.options.out_json)
    kept = write_entries(path, prepared_entries(found))
    if kept is not None:
        log.info("%s had other content, which is kept in %s", printable(str(path)), printable(str(kept)))
    pictures = counted(len(found.keys), "picture")
    broken = f", {len(found.broken)} cannot be read" if found.broken else ""
    log.info("%s: %s of %d entries prepared%s", printable(str(path)), pictures, len(found.entries), broken)
