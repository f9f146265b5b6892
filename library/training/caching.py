"""Fills the caches of a run before it trains: latents, and text states."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel

from library.core.errors import printable
from library.core.log import get_logger
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths, remove_temporaries
from library.data.cache.filling import Processes, Progress, describe_redone
from library.data.cache.latents import fill_memory_store
from library.data.cache.mirrored import with_foreign_mirrors
from library.data.cache.other_vae import file_of_other_vae
from library.data.cache.text_states import EncodeCaption, TextFiles, fill_disk_texts, fill_memory_texts
from library.data.dataset import LatentStore, TextStore
from library.data.index.index import ImageIndex
from library.data.views import Views
from library.options.data import default_worker_count
from library.options.text import TextOptions
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from library.training.latents import LatentEncoder, weights_digest
from library.training.run import Run

log = get_logger(__name__)


def make_latent_store(
    run: Run, views: Views, encoder: LatentEncoder, accelerator: Accelerator
) -> tuple[Views, LatentStore | None]:
    """Every look of every picture encoded, in memory or on disk; None where that happens anew for every batch.

    Returns:
        The views to train with, and the store. Views differ from the given ones where latents of other programs add
        mirrored pictures.

    Raises:
        UserError: when a picture cannot be read or encoded, or an entry cannot be written.
    """
    caching = run.options.caching
    if not (caching.cache_latents or caching.cache_latents_to_disk):
        return views, None
    workers = worker_count(run)
    store: LatentStore
    if caching.cache_latents_to_disk:
        work = VaeWork(encoder.weights_digest(), caching.vae_precision, caching.vae_batch_size)
        files = LatentFiles(views, EntryPaths(run.index), work, caching.trust_foreign_latents)
        if caching.trust_foreign_latents:
            files = with_foreign_mirrors(files)
            accelerator.wait_for_everyone()  # until all have looked, nobody replaces a file
        views = files.views
        store, reuse = fill_latent_files(files, encoder, workers, accelerator)
        lines = latent_lines(reuse, run.index, caching.vae_precision)
    else:
        with _bar("caching latents", "picture", accelerator) as progress:
            processes = _processes(accelerator)
            memory = fill_memory_store(views, encoder, workers, caching.vae_batch_size, processes, progress)
        store = memory
        lines = _redone_lines(np.flatnonzero(memory.redone.numpy()), run.index, caching.vae_precision)
    encoder.release()
    for line in lines:
        log.info(line)
    return views, store


def fill_latent_files(
    files: LatentFiles, encoder: LatentEncoder, workers: int, accelerator: Accelerator, ahead: int = 0
) -> tuple[DiskLatentStore, Reuse]:
    """Every entry on disk that does not fit made anew, by all processes together; see `fill_disk_store`.

    Raises:
        UserError: when a picture cannot be read or encoded, or an entry cannot be written.
    """
    _clear_left_overs(files.views.index, accelerator)
    _tell_other_vae(files, accelerator)
    with _bar("caching latents", "picture", accelerator) as progress:
        return fill_disk_store(files, encoder, workers, _processes(accelerator), progress, ahead)


def _tell_other_vae(files: LatentFiles, accelerator: Accelerator) -> None:
    """In time to stop: what hours have made is replaced by a VAE that was forgotten, or named by mistake."""
    if accelerator.is_main_process and (path := file_of_other_vae(files)):
        what = "latents beside the pictures were made with another VAE, and are encoded anew and replaced"
        fix = "to keep them, stop, and name the VAE that made them (--vae)"
        log.warning("%s", printable(f"{what}, such as {path}; {fix}"))
    accelerator.wait_for_everyone()  # until it has looked, nobody replaces a file


def latent_lines(reuse: Reuse, index: ImageIndex, precision: str) -> list[str]:
    """What is told of the latents on disk: how many were there, and which pictures overflowed in `precision`."""
    return [*reuse.lines(), *_redone_lines(reuse.redone, index, precision)]


def _redone_lines(redone: NDArray[np.int64], index: ImageIndex, precision: str) -> list[str]:
    told = describe_redone(index, redone.tolist(), precision)
    return [told] if told else []


def make_text_store(
    run: Run, tokenizer: CaptionTokenizer, text_encoder: CLIPTextModel, accelerator: Accelerator
) -> TextStore | None:
    """Every caption encoded, in memory or on disk; None where that happens in every batch.

    The text encoder, which must be frozen, leaves the device.

    Raises:
        UserError: when an entry cannot be read or written.
    """
    caching, text = run.options.caching, run.options.text
    if not (caching.cache_text_encoder_outputs or caching.cache_text_encoder_outputs_to_disk):
        return None
    encode = caption_encoder(text, tokenizer, text_encoder, accelerator.autocast)
    processes = _processes(accelerator)
    store: TextStore
    if caching.cache_text_encoder_outputs_to_disk:
        _clear_left_overs(run.index, accelerator)
        reading = _describe_reading(text, run.options.training.mixed_precision)
        files = TextFiles(run.index, EntryPaths(run.index), weights_digest(text_encoder), reading)
        with _bar("caching text states", "caption", accelerator) as progress:
            store, reuse = fill_disk_texts(files, encode, worker_count(run), processes, progress)
        log.info(reuse.line())
    else:
        with _bar("caching text states", "caption", accelerator) as progress:
            store = fill_memory_texts(run.index, encode, processes, progress)
    nn.Module.to(text_encoder, device="cpu")
    return store


def caption_encoder(
    text: TextOptions,
    tokenizer: CaptionTokenizer,
    text_encoder: CLIPTextModel,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> EncodeCaption:
    """Encodes one caption at a time, to (R, D) float32 on the CPU; `autocast` gives the precision of the training."""
    encode_tokens = CaptionEncoder(text)
    device = next(text_encoder.parameters()).device

    @torch.no_grad()
    def encode(caption: str) -> Tensor:
        input_ids, weights = tokenizer([caption])
        with autocast():
            on_device = None if weights is None else weights.to(device)
            states = encode_tokens(text_encoder, input_ids.to(device), on_device)
        return states[0].float().cpu()

    return encode


def worker_count(run: Run) -> int:
    """Processes that read pictures."""
    asked = run.options.data.max_data_loader_n_workers
    return default_worker_count() if asked is None else asked


def _describe_reading(text: TextOptions, precision: str) -> str:
    """The options on which a caption's states depend."""
    return json.dumps(
        {
            "clip_skip": text.clip_skip or 1,
            "max_token_length": text.max_token_length,
            "prompt_splitting": text.prompt_splitting,
            "weighted_captions": text.weighted_captions,
            "restore_weighted_mean": text.restore_weighted_mean,
            "precision": precision,
        }
    )


def _clear_left_overs(index: ImageIndex, accelerator: Accelerator) -> None:
    """Removes what runs have left beside the pictures that were killed while they wrote."""
    if accelerator.is_main_process and (removed := remove_temporaries(EntryPaths(index))):
        log.info("unfinished cache files of runs that were killed, removed: %d", removed)


def _processes(accelerator: Accelerator) -> Processes:
    def total(counts: Tensor) -> Tensor:
        summed: Tensor = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
        return summed.cpu()

    return Processes(accelerator.process_index, accelerator.num_processes, total)


@contextmanager
def _bar(title: str, unit: str, accelerator: Accelerator) -> Iterator[Progress]:
    """A progress bar for the share of this process."""
    with tqdm(desc=title, unit=unit, disable=not accelerator.is_main_process) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
