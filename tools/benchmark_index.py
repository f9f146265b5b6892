"""The index at size: a first and a second start on real files, the memory of a picture, and plans of up to a million.

Every start takes place in a process of its own, so that none is helped or hurt by the one before. Memory is what the
system says a process alone holds (Private_* of /proc/self/smaps_rollup), so it is told on Linux only.
"""

from __future__ import annotations

import gc
import io
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.buckets import BucketLimits
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import DatasetConfig, Description, SubsetConfig
from library.data.index.index import ImageIndex, build_index
from library.data.index.index_cache import info_path
from library.data.index.texts import Texts
from library.data.pictures.images import examine, list_images
from library.data.placement import Placements, place_all
from library.data.planner import Planner

ROLLUP = Path("/proc/self/smaps_rollup")
FEW = 10  # pictures of the index that the others are compared with
SHAPES = ((96, 96), (96, 72), (72, 96), (112, 80), (80, 112), (120, 64))
VARIANTS = 64  # different pictures; their copies fill the folder
RESOLUTION, BUCKETS, BATCH_SIZE = Size(512, 512), BucketLimits(256, 1024, 64), 4
CAPTION = "a photograph of a thing, outdoors, evening light, number "
BLOCK = 64
BOUNDS = {  # as the project promises them, for 100,000 pictures and 1,000,000 records
    "cold_seconds": 30.0,
    "warm_seconds": 5.0,
    "bytes_per_image": 500.0,
    "plan_seconds": 5.0,
}
ReturnT = TypeVar("ReturnT")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        images: picture files that are made, where `folder` holds none.
        folder: where they are or shall be; None for a temporary folder.
        records: sizes of the made-up indexes that are placed and planned.
    """

    images: int
    folder: str | None
    records: tuple[int, ...]


class Start(NamedTuple):
    """One start of a run.

    Attributes:
        seconds: by the clock on the wall.
        cpu_seconds: of work on all cores, which does not count what other programs take.
        pictures: in the index.
        held: bytes that the process holds more than before.
        peak: bytes that it held at most.
    """

    seconds: float
    cpu_seconds: float
    opened_pictures: int
    opened_captions: int
    pictures: int
    held: int | None
    peak: int | None


class Plan(NamedTuple):
    """Seconds for one made-up index."""

    records: int
    place_seconds: float
    plan_seconds: float


def measure(settings: Settings) -> dict[str, Any]:
    """All figures.

    Raises:
        UserError: when the folder cannot be used.
    """
    with _folder(settings) as folder:
        info_path(_subset(folder)).unlink(missing_ok=True)
        cold = _apart(_start, folder)
        warm = _apart(_start, folder)
        examined = _apart(_examine_all, folder)
        workers = _apart(_worker_bytes, folder)
    plans = _apart(_plan_all, settings.records)
    per_worker = {method: _share(held, warm.pictures) for method, held in workers.items()}
    return {
        "pictures": warm.pictures,
        "cold_seconds": cold.seconds,
        "warm_seconds": warm.seconds,
        "cold_cpu_seconds": cold.cpu_seconds,
        "warm_cpu_seconds": warm.cpu_seconds,
        "examine_seconds": examined,
        "cold_opened": {"pictures": cold.opened_pictures, "captions": cold.opened_captions},
        "warm_opened": {"pictures": warm.opened_pictures, "captions": warm.opened_captions},
        "bytes_per_image": _share(cold.held, cold.pictures),
        "warm_bytes_per_image": _share(warm.held, warm.pictures),
        "peak_bytes_per_image": _share(cold.peak, cold.pictures),
        "warm_peak_bytes_per_image": _share(warm.peak, warm.pictures),
        "worker_bytes_per_image": per_worker,
        "plans": [plan._asdict() for plan in plans],
        "growth": growth(plans),
        "bounds": BOUNDS,
    }


def growth(plans: Sequence[Plan]) -> dict[str, float | None]:
    """The exponent k of seconds ~ records^k, between the smallest and the largest index; 1 is linear."""
    small, large = min(plans), max(plans)
    if small.records == large.records:
        return {"place": None, "plan": None}
    ratio = math.log(large.records / small.records)
    return {
        "place": math.log(large.place_seconds / small.place_seconds) / ratio,
        "plan": math.log(large.plan_seconds / small.plan_seconds) / ratio,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The figures as text."""
    lines = [f"{figures['pictures']} pictures, each with a caption file"]
    for name, start in (("first start", "cold"), ("second start", "warm")):
        opened = figures[f"{start}_opened"]
        told = f"{opened['pictures']} pictures and {opened['captions']} captions opened"
        work = figures[f"{start}_cpu_seconds"]
        lines.append(f"  {name:13} {figures[f'{start}_seconds']:8.2f} s   {told}; {work:.2f} s of work")
    lines.append(f"  {'decoding':13} {figures['examine_seconds']:8.2f} s   of the first start, measured alone")
    lines.append("bytes a picture")
    for name, start in (("first start", ""), ("second start", "warm_")):
        held, peak = figures[f"{start}bytes_per_image"], figures[f"{start}peak_bytes_per_image"]
        lines.append(f"  {name:13} {_shown(held)} in the main process, {_shown(peak)} while it starts")
    for method, share in figures["worker_bytes_per_image"].items():
        lines.append(f"  {method:13} {_shown(share)} in each worker started so")
    lines.append("records      placed       planned")
    for plan in figures["plans"]:
        lines.append(f"{plan['records']:<12} {plan['place_seconds']:7.3f} s    {plan['plan_seconds']:7.3f} s")
    shown = ", ".join(f"{name} {value:.2f}" for name, value in figures["growth"].items() if value is not None)
    return [*lines, f"growth (1 is linear): {shown or 'one size alone shows none'}"]


def _shown(share: float | None) -> str:
    return "   ?" if share is None else f"{share:6.1f}"


def _share(held: int | None, pictures: int) -> float | None:
    return None if held is None else held / pictures


# --- the files --------------------------------------------------------------------------------------------------------


@contextmanager
def _folder(settings: Settings) -> Iterator[Path]:
    """The folder with the pictures; made where it is not there, removed where it was temporary."""
    if settings.folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            make_files(Path(temporary), settings.images)
            yield Path(temporary)
        return
    folder = Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = len(list_images(folder))
    if found == 0:
        make_files(folder, settings.images)
    elif found != settings.images:
        what = f"it holds {found} pictures, not {settings.images}"
        raise UserError.of(what, f"--folder {folder}", f"give --images {found}, or an empty folder")
    yield folder


def make_files(folder: Path, count: int) -> None:
    """Small JPEG and PNG files of several shapes, each with a caption file of about 60 characters."""
    pictures = [_encoded(number) for number in range(VARIANTS)]
    for number in range(count):
        data, ending = pictures[number % VARIANTS]
        stem = f"picture_{number:07d}"
        (folder / f"{stem}{ending}").write_bytes(data)
        (folder / f"{stem}.txt").write_bytes(f"{CAPTION}{number}\n".encode())


def _encoded(number: int) -> tuple[bytes, str]:
    """One picture as a file's bytes, and its ending."""
    draws = np.random.Generator(np.random.Philox(key=number))
    corners = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    kind, ending = (("JPEG", ".jpg"), ("PNG", ".png"))[number % 2]
    corners.resize(SHAPES[number % len(SHAPES)], Image.Resampling.BILINEAR).save(stream, kind)
    return stream.getvalue(), ending


def _subset(folder: Path) -> SubsetConfig:
    return SubsetConfig(
        image_dir=folder,
        num_repeats=1.0,
        class_tokens=None,
        is_reg=False,
        caption_extensions=(".txt", ".caption"),
        allow_missing_captions=False,
        caption_changes=CaptionChanges(),
        cache_info=True,
    )


def _description(folder: Path) -> Description:
    return Description((DatasetConfig(RESOLUTION, BATCH_SIZE, BUCKETS, (_subset(folder),)),), ())


# --- one figure each, in a process of its own -------------------------------------------------------------------------


def _apart(work: Callable[..., ReturnT], *arguments: Any) -> ReturnT:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _start(folder: Path) -> Start:
    """Builds and places the index as a run does."""
    with _few_pictures() as few:
        place_all(build_index(_description(few), 1.0))  # loads what is loaded once
    before, peak_before = _private_bytes(), _peak_bytes()
    start, start_cpu = time.perf_counter(), time.process_time()
    index = build_index(_description(folder), 1.0)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    placements = place_all(index)
    after, peak = _private_bytes(), _peak_bytes()
    held = None if after is None or before is None else after - before
    risen = None if peak is None or peak_before is None else peak - peak_before
    return Start(seconds, cpu_seconds, *index.opened, pictures=len(placements.bucket), held=held, peak=risen)


def _examine_all(folder: Path) -> float:
    """Seconds that decoding alone takes, in as many threads as the index uses."""
    with _few_pictures() as few:
        build_index(_description(few), 1.0)
    names = list_images(folder)
    blocks = [names[first : first + BLOCK] for first in range(0, len(names), BLOCK)]

    def work(block: Sequence[str]) -> None:
        for name in block:
            examine(folder / name)

    start = time.perf_counter()
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(work, blocks):
            pass
    return time.perf_counter() - start


def _plan_all(sizes: Sequence[int]) -> list[Plan]:
    return [_plan(records) for records in sizes]


def _plan(records: int) -> Plan:
    """Places and plans a made-up index; the fastest of three, as the machine may be busy."""
    index = synthetic_index(records)
    place_seconds, plan_seconds = [], []
    for _ in range(3):
        start = time.perf_counter()
        placements = place_all(index)
        placed = time.perf_counter()
        Planner(index, placements, [BATCH_SIZE], seed=0).epoch_plan(0)
        place_seconds.append(placed - start)
        plan_seconds.append(time.perf_counter() - placed)
    return Plan(records, min(place_seconds), min(plan_seconds))


def synthetic_index(records: int) -> ImageIndex:
    """An index of pictures that do not exist, with sizes as photographs have them."""
    draws = np.random.Generator(np.random.Philox(key=records))
    subset = _subset(Path("nowhere"))
    zeros = np.zeros(records, dtype=np.int32)
    return ImageIndex(
        datasets=(DatasetConfig(RESOLUTION, BATCH_SIZE, BUCKETS, (subset,)),),
        width=draws.integers(400, 2000, records, dtype=np.int32),
        height=draws.integers(400, 2000, records, dtype=np.int32),
        has_alpha=zeros.astype(np.bool_),
        repeats=np.ones(records),
        loss_weight=np.ones(records, dtype=np.float32),
        subset=zeros,
        dataset=zeros,
        is_reg=zeros.astype(np.bool_),
        caption_source=zeros.astype(np.uint8),
        names=Texts(f"picture_{number:07d}.jpg" for number in range(records)),
        captions=Texts(f"{CAPTION}{number}" for number in range(records)),
        roots=(subset.home,),
    )


# --- memory -----------------------------------------------------------------------------------------------------------


def _worker_bytes(folder: Path) -> dict[str, int | None]:
    """By start method: what a worker that touches every record holds for itself, more than one with a few records."""
    extra: dict[str, int | None] = {}
    with _few_pictures() as few:
        indexed = [_indexed(where) for where in (few, folder)]
    for method in _start_methods():
        context = multiprocessing.get_context(method)
        of_few, of_all = (_held_by_worker(context, *pair) for pair in indexed)
        extra[method] = None if of_few is None or of_all is None else max(0, of_all - of_few)
    return extra


def _indexed(folder: Path) -> tuple[ImageIndex, Placements]:
    index = build_index(_description(folder), 1.0)
    return index, place_all(index)


def _held_by_worker(context: BaseContext, index: ImageIndex, placements: Placements) -> int | None:
    answers: SimpleQueue[int | None] = context.SimpleQueue()
    worker = context.Process(target=_touch_all, args=(index, placements, answers))  # type: ignore[attr-defined]
    worker.start()
    held = answers.get()
    worker.join()
    return held


def _touch_all(index: ImageIndex, placements: Placements, answers: SimpleQueue[int | None]) -> None:
    """What a loader worker does with its records, but for the pictures themselves."""
    for record in range(len(index)):
        _ = index.path(record), index.key(record), index.caption(record), index.size(record)
        _ = index.loss_weight[record], index.is_reg[record], index.has_alpha[record]
        _ = placements.crop_box(record), placements.resized_size(record)
    answers.put(_private_bytes())


def _private_bytes() -> int | None:
    """Memory that this process shares with no other."""
    gc.collect()
    if not ROLLUP.is_file():
        return None
    lines = ROLLUP.read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _peak_bytes() -> int | None:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    lines = status.read_text(encoding="utf-8").splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)


def _start_methods() -> list[str]:
    """Fork first: its workers then see the columns before spawn moves them into shared memory."""
    return [method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()]


@contextmanager
def _few_pictures() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), FEW)
        yield Path(folder)
