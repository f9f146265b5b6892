"""Many small pictures through a tiny tagger: what finding, writing and counting add to decoding and the model's work.

The whole way (finding the pictures, checks, decoding, tagging, writing, counting) and its floor take turns on the same
files. The floor makes the same calls for the same pictures, decoding in as many threads beside the model's work, and
nothing else: no list of files, nothing written, nothing counted, a whole batch handed to a thread at once.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from library.captioning.describer import Decoded, Describer
from library.captioning.runner import run, tell
from library.captioning.tag_list import find_tagger
from library.captioning.tagger import open_tagger
from library.captioning.work import TextKind, find_work, threads_of
from library.core.memory import peak_process_mib
from library.options.captioning import FolderOptions, TaggerOptions
from tests.captioning.tiny_tagger import make_wd_tagger

SIDE = 256  # of the square pictures, in pixels
VARIANTS = 64  # different pictures; their copies fill the folder
WARM_UP = 50  # pictures
FEW = 1000  # pictures, of the run whose memory is compared
ENDING = ".txt"
BOUND = 0.10  # share of the time that may be spent neither decoding nor in the model


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        pictures: files in the folder.
        rounds: runs over all of them, and as many of the floor.
        batch_size: pictures that the tagger gets at once.
        threads: that decode; None for as many as the scripts take.
        side: of the square that the tagger takes, in pixels.
    """

    pictures: int
    rounds: int
    batch_size: int
    threads: int | None
    side: int

    @property
    def decoders(self) -> int:
        return threads_of(FolderOptions(max_data_loader_n_workers=self.threads))


class Seconds(NamedTuple):
    """By the clock on the wall, and of work on all cores, which does not count what other programs take."""

    wall: float
    cpu: float


def measure(settings: Settings) -> dict[str, Any]:
    """All figures; files and model are made in a temporary folder."""
    with tempfile.TemporaryDirectory() as place:
        tagger = make_wd_tagger(Path(place) / "tagger", size=settings.side)
        rounds = _apart(_time_rounds, settings, Path(place) / "timed", tagger)
        peaks = {
            str(count): _apart(_peak, settings, Path(place) / f"peak_{count}", tagger, count)
            for count in sorted({min(FEW, settings.pictures), settings.pictures})
        }
    runner, floor = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    return {
        "pictures": settings.pictures,
        "threads": settings.decoders,
        "rounds": [{"runner": pair[0]._asdict(), "floor": pair[1]._asdict()} for pair in rounds],
        "runner_seconds": statistics.median(seconds.wall for seconds in runner),
        "floor_seconds": statistics.median(seconds.wall for seconds in floor),
        "runner_cpu_seconds": statistics.median(seconds.cpu for seconds in runner),
        "floor_cpu_seconds": statistics.median(seconds.cpu for seconds in floor),
        "share": statistics.median(1 - pair[1].wall / pair[0].wall for pair in rounds),
        "cpu_share": statistics.median(1 - pair[1].cpu / pair[0].cpu for pair in rounds),
        "bound": BOUND,
        "peak_mib": peaks,
    }


def table(figures: dict[str, Any]) -> list[str]:
    """The figures for people."""
    rows = [
        ("all in all", f"{figures['runner_seconds']:.2f} s, {figures['runner_cpu_seconds']:.2f} s of all cores"),
        ("decoding and model", f"{figures['floor_seconds']:.2f} s, {figures['floor_cpu_seconds']:.2f} s of all cores"),
        (
            "neither of both",
            f"{figures['share']:.1%} (bound {figures['bound']:.0%}), {figures['cpu_share']:.1%} of work",
        ),
        *(
            (f"peak memory, {count} pictures", "not told here" if mib is None else f"{mib:.1f} MiB")
            for count, mib in figures["peak_mib"].items()
        ),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def make_files(folder: Path, count: int) -> None:
    """Small JPEG files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [_encoded(number) for number in range(VARIANTS)]
    for number in range(count):
        (folder / f"picture_{number:07d}.jpg").write_bytes(files[number % VARIANTS])


def _encoded(number: int) -> bytes:
    draws = np.random.Generator(np.random.Philox(key=number))
    corners = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    stream = io.BytesIO()
    corners.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(stream, "JPEG")
    return stream.getvalue()


def _time_rounds(settings: Settings, folder: Path, tagger: Path) -> list[tuple[Seconds, Seconds]]:
    """Runner and floor of each round; who begins changes from round to round."""
    describer = _describer(settings, tagger)
    make_files(folder.with_name("few"), WARM_UP)
    make_files(folder, settings.pictures)
    paths = sorted(folder.iterdir())
    with _quietly():
        _whole_way(settings, folder.with_name("few"), describer)  # loads what is loaded once
        rounds = []
        for number in range(settings.rounds):
            parts: list[Callable[[], Seconds]] = [
                lambda: _timed(lambda: _whole_way(settings, folder, describer)),
                lambda: _timed(lambda: _floor(settings, paths, describer)),
            ]
            order = (0, 1) if number % 2 == 0 else (1, 0)
            seconds = {part: parts[part]() for part in order}
            rounds.append((seconds[0], seconds[1]))
            for path in folder.glob(f"*{ENDING}"):
                path.unlink()
    return rounds


def _timed(work: Callable[[], None]) -> Seconds:
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    return Seconds(time.perf_counter() - start, time.process_time() - start_cpu)


def _whole_way(settings: Settings, folder: Path, describer: Describer) -> None:
    """What the script does between loading the model and its end."""
    work = find_work(FolderOptions((str(folder),)), ENDING, TextKind.TAGS)
    tell(run(work, describer, settings.batch_size, settings.decoders))


def _floor(settings: Settings, paths: Sequence[Path], describer: Describer) -> None:
    size, waiting = settings.batch_size, deque[tuple[Sequence[Path], Future[list[Decoded]]]]()
    with ThreadPoolExecutor(settings.decoders) as pool:
        for first in range(0, len(paths), size):
            batch = paths[first : first + size]
            waiting.append((batch, pool.submit(lambda batch: [describer.read(path) for path in batch], batch)))
            if len(waiting) > 1 + settings.decoders:
                _describe_first(waiting, describer)
        while waiting:
            _describe_first(waiting, describer)


def _describe_first(waiting: deque[tuple[Sequence[Path], Future[list[Decoded]]]], describer: Describer) -> None:
    batch, decoded = waiting.popleft()
    describer.describe(decoded.result(), batch)


def _peak(settings: Settings, folder: Path, tagger: Path, count: int) -> float | None:
    """The most memory in MiB that this process has held after a run over `count` pictures."""
    make_files(folder, count)
    with _quietly():
        _whole_way(settings, folder, _describer(settings, tagger))
    return peak_process_mib()


def _describer(settings: Settings, tagger: Path) -> Describer:
    options = TaggerOptions(model_dir=str(tagger), batch_size=settings.batch_size)
    return open_tagger(find_tagger(tagger, str(tagger), "make it anew"), options)


@contextmanager
def _quietly() -> Iterator[None]:
    """The progress bar is drawn where nobody sees it."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, so that none is helped or hurt by what was measured before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()
