"""One training step: the real trainer beside the bare computation that no trainer could do without.

Both work on the same weights and the same batches, in turns, so that a machine that slows down or speeds up does so for
both. The trainer is the one train_network.py builds from the same words; it is not changed for the measurement: its
batches pass through a generator that reads the clock each time the trainer asks for the next one.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from library.data.batch import Batch
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from library.optim.optimizers import make_optimizer
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.training.assemble import Learner, build_trainer, load_learner, make_planner
from library.training.checks.preflight import check_network_run
from library.training.progress import plan_run
from library.training.run import NetworkRun
from library.training.runtime import start_runtime
from library.training.trainer import Trainer

SCRIPT = "train_network.py"
PHOTOS = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "photos"
WARM_UP = 12  # beyond the updates whose numbers are drained singly
FIRST_WATCHED, LAST_WATCHED = 11, 30  # updates, from 1: two whole periods of the log's drain
MILLISECONDS = 1000.0

READS_OF_PYTHON = frozenset({"tolist", "numpy", "cpu"})
READS_OF_TORCH = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"})


class Seconds(NamedTuple):
    """A moment, or the time between two: by the clock on the wall, and of this process's work on a core."""

    wall: float
    cpu: float

    def since(self, earlier: Seconds) -> Seconds:
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)


Clock = Callable[[], Seconds]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        model: kind of the tiny model.
        steps: steps of a round.
        rounds: rounds of the trainer, and as many of the floor.
        resolution: of the square pictures.
        batch_size: pictures per batch.
        workers: loader processes; 0 builds the batches in the measured process.
    """

    model: str
    steps: int
    rounds: int
    resolution: int
    batch_size: int
    workers: int

    def words(self, model: Path, out: Path, updates: int) -> list[str]:
        """The command line of train_network.py."""
        return [
            *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(PHOTOS)),
            *("--resolution", str(self.resolution), "--train_batch_size", str(self.batch_size), "--cache_latents"),
            *("--max_data_loader_n_workers", str(self.workers), "--max_train_steps", str(updates)),
            *("--output_dir", str(out), "--overwrite"),
            *(("--v2",) if self.model == "sd2" else ()),
        ]


@dataclass(frozen=True)
class Measurement:
    """Time of each step, by round; how often the host read from the device; where it ran."""

    trainer: list[list[Seconds]]
    floor: list[list[Seconds]]
    loader: list[Seconds]
    host_reads_per_step: float
    cuda_syncs_per_step: float | None
    device: torch.device


def measure(settings: Settings) -> Measurement:
    """Trains the tiny model in a folder of its own that is removed afterwards.

    Raises:
        UserError: for settings that train_network.py refuses.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, _quietly():
        model = Path(folder) / "tiny.safetensors"
        save_single_file(make_tiny_model(settings.model, seed=0), model, {})
        accelerator = start_runtime("no")
        run = _checked(settings.words(model, Path(folder) / "timed", WARM_UP + settings.rounds * settings.steps))
        learner = load_learner(run, accelerator.device)
        turns = _time_rounds(settings, run, learner, accelerator)
        watched = _checked(settings.words(model, Path(folder) / "watched", LAST_WATCHED))
        reads, syncs = _count_reads(_trainer(watched, accelerator, learner))
    return Measurement(turns.trainer, turns.floor, turns.loader, reads, syncs, accelerator.device)


def report(measurement: Measurement) -> dict[str, Any]:
    """The figures, in milliseconds per step.

    `overhead_ms` is the difference of the medians over all steps. Two more hold still on a machine that others use:
    `overhead_by_round_ms`, the median of the rounds' differences, and `overhead_cpu_ms`, which counts the process's own
    time on a core and not the time it waited for one. On an idle machine all three agree.
    """
    rounds = [
        _round(number, trainer, floor)
        for number, (trainer, floor) in enumerate(zip(measurement.trainer, measurement.floor, strict=True))
    ]
    trainer, floor = list(chain.from_iterable(measurement.trainer)), list(chain.from_iterable(measurement.floor))
    trainer_wall, floor_wall = [step.wall for step in trainer], [step.wall for step in floor]
    trainer_ms, floor_ms = _median_ms(trainer_wall), _median_ms(floor_wall)
    return {
        "trainer_ms": trainer_ms,
        "floor_ms": floor_ms,
        "overhead_ms": trainer_ms - floor_ms,
        "ratio": trainer_ms / floor_ms,
        "overhead_by_round_ms": statistics.median(part["overhead_ms"] for part in rounds),
        "overhead_cpu_ms": _median_ms([step.cpu for step in trainer]) - _median_ms([step.cpu for step in floor]),
        "overhead_min_ms": MILLISECONDS * (min(trainer_wall) - min(floor_wall)),
        "overhead_mean_ms": MILLISECONDS * (statistics.fmean(trainer_wall) - statistics.fmean(floor_wall)),
        "loader_ms": _median_ms([wait.wall for wait in measurement.loader]),
        "rounds": rounds,
        "host_reads_per_step": measurement.host_reads_per_step,
        "cuda_syncs_per_step": measurement.cuda_syncs_per_step,
    }


def table(figures: Mapping[str, Any]) -> list[str]:
    """The figures for a person."""
    lowest, highest = _middle_half([part["overhead_ms"] for part in figures["rounds"]])
    syncs = figures["cuda_syncs_per_step"]
    return [
        f"trainer            {figures['trainer_ms']:8.2f} ms a step (median)",
        f"bare computation   {figures['floor_ms']:8.2f} ms: forward, backward, optimizer step on the same batches",
        f"overhead           {figures['overhead_ms']:8.2f} ms, {100 * (figures['ratio'] - 1):.1f} %",
        f"  round by round   {figures['overhead_by_round_ms']:8.2f} ms; half of them {lowest:.2f} to {highest:.2f}",
        f"  in CPU time      {figures['overhead_cpu_ms']:8.2f} ms",
        f"  of the fastest   {figures['overhead_min_ms']:8.2f} ms",
        f"  of the means     {figures['overhead_mean_ms']:8.2f} ms",
        f"waits for a batch  {figures['loader_ms']:8.2f} ms of the trainer's step",
        f"host reads         {figures['host_reads_per_step']:8.2f} a step",
        "CUDA syncs              not measured: no card" if syncs is None else f"CUDA syncs         {syncs:8.2f} a step",
    ]


def _round(number: int, trainer: Sequence[Seconds], floor: Sequence[Seconds]) -> dict[str, Any]:
    trainer_ms, floor_ms = _median_ms([step.wall for step in trainer]), _median_ms([step.wall for step in floor])
    first = "trainer" if _trainer_begins(number) else "floor"
    return {"first": first, "trainer_ms": trainer_ms, "floor_ms": floor_ms, "overhead_ms": trainer_ms - floor_ms}


def _middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles; a single value stands for both."""
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def _median_ms(seconds: Sequence[float]) -> float:
    return MILLISECONDS * statistics.median(seconds)


# --- the run ----------------------------------------------------------------------------------------------------------


def _checked(words: Sequence[str]) -> NetworkRun:
    script = SCRIPTS[SCRIPT]
    return check_network_run(parse_options(SCRIPT, script.description, script.groups, words))


def _trainer(run: NetworkRun, accelerator: Accelerator, learner: Learner) -> Trainer:
    planner = make_planner(run, accelerator.num_processes)
    plan = plan_run(planner, run.options.training.max_train_steps, run.options.training.max_train_epochs)
    return build_trainer(run, accelerator, replace(learner, groups=learner.method.param_groups()), planner, plan)


@contextmanager
def _quietly() -> Iterator[None]:
    """Progress bars are drawn as in a real run, but where nobody sees them."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


def _clock(device: torch.device) -> Clock:
    """Reads the time; on a card once all work is done, so the overhead is what it would be if nothing overlapped."""

    def read() -> Seconds:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return Seconds(time.perf_counter(), time.process_time())

    return read


# --- trainer and floor in turns ---------------------------------------------------------------------------------------


@dataclass
class _Floor:
    """Forward, backward and optimizer step on the trainer's weights, and nothing else."""

    objective: Callable[..., torch.Tensor]
    optimizer: torch.optim.Optimizer
    trains_text_encoder: bool
    clock: Clock

    def run(self, batches: Sequence[Batch]) -> list[Seconds]:
        """The time of each step."""
        marks = [self.clock()]
        for batch in batches:
            self._step(batch)
            marks.append(self.clock())
        return [after.since(before) for before, after in pairwise(marks)]

    def _step(self, batch: Batch) -> None:
        pictures = batch.latents, Noise(batch.noise), batch.timesteps
        captions = Captions(batch.input_ids, batch.token_weights, batch.text_states)
        loss = self.objective(*pictures, captions, batch.loss_weights, batch.masks, self.trains_text_encoder)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


@dataclass
class _Turns:
    """What the trainer iterates: the loader's batches, with the floor's rounds in between.

    A trainer's step lasts from its asking for a batch to its asking for the next. Each round of the floor takes the
    batches of the trainer's round beside it; who begins changes from round to round.
    """

    batches: Iterable[Batch]
    collected: Sequence[Batch]
    floor_run: Callable[[Sequence[Batch]], list[Seconds]]
    clock: Clock
    rounds: int
    steps: int
    trainer: list[list[Seconds]] = field(default_factory=list)
    floor: list[list[Seconds]] = field(default_factory=list)
    loader: list[Seconds] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        source = iter(self.batches)
        for _ in range(WARM_UP):
            yield next(source)
        self.floor_run(self.collected[:WARM_UP])
        for number in range(self.rounds):
            start = WARM_UP + number * self.steps
            same = self.collected[start : start + self.steps]
            if _trainer_begins(number):
                yield from self._trainer_round(source)
                self.floor.append(self.floor_run(same))
            else:
                self.floor.append(self.floor_run(same))
                yield from self._trainer_round(source)

    def _trainer_round(self, source: Iterator[Batch]) -> Iterator[Batch]:
        times: list[Seconds] = []
        asked = self.clock()
        for _ in range(self.steps):
            batch = next(source)
            self.loader.append(self.clock().since(asked))
            yield batch
            asked_before, asked = asked, self.clock()
            times.append(asked.since(asked_before))
        self.trainer.append(times)


def _trainer_begins(number: int) -> bool:
    return number % 2 == 0


def _time_rounds(settings: Settings, run: NetworkRun, learner: Learner, accelerator: Accelerator) -> _Turns:
    trainer = _trainer(run, accelerator, learner)
    clock = _clock(accelerator.device)
    floor = _Floor(
        trainer.objective,
        make_optimizer(run.options.optimizer, learner.method.param_groups()),
        learner.method.trains_text_encoder(0),
        clock,
    )
    collected = [batch.to(accelerator.device) for batch in trainer.batches]
    turns = _Turns(trainer.batches, collected, floor.run, clock, settings.rounds, settings.steps)
    replace(trainer, batches=turns).run()
    trainer.log.close()
    return turns


# --- what waits for the device ----------------------------------------------------------------------------------------


class HostReads:
    """Counts how often Python or torch asks for a value that lies on the device, also where the device is the CPU.

    Each such read makes a card finish all its work first. Counts inside `with`, while `counting` is true.
    """

    def __init__(self) -> None:
        self.counting = True
        self.count = 0
        self._modes = ExitStack()

    def __enter__(self) -> HostReads:
        self._modes.enter_context(_PythonCalls(self._note))
        self._modes.enter_context(_TorchCalls(self._note))
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()

    def _note(self) -> None:
        self.count += self.counting


class _PythonCalls(TorchFunctionMode):
    """Sees the methods that copy a tensor into host memory at once and that torch's dispatcher may not see."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS_OF_PYTHON:
            self._note()
        return func(*args, **(kwargs or {}))


class _TorchCalls(TorchDispatchMode):
    """Sees item, bool, int, float and results whose shape depends on values, whoever asks for them."""

    def __init__(self, note: Callable[[], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in READS_OF_TORCH:
            self._note()
        return func(*args, **(kwargs or {}))


def _count_reads(trainer: Trainer) -> tuple[float, float | None]:
    """Host reads per step, and on a card the synchronisations per step that CUDA itself reports."""
    on_card = trainer.accelerator.device.type == "cuda"
    with HostReads() as reads, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        reads.counting = False
        replace(trainer, batches=_watched(trainer.batches, reads, on_card)).run()
    trainer.log.close()
    steps = LAST_WATCHED - FIRST_WATCHED + 1
    syncs = sum("synchronizing CUDA operation" in str(warning.message) for warning in warned)
    return reads.count / steps, syncs / steps if on_card else None


def _watched(batches: Iterable[Batch], reads: HostReads, on_card: bool) -> Iterator[Batch]:
    """The batches; what happens in the trainer after each watched one counts, what the loader does does not."""
    for step, batch in enumerate(batches, 1):
        watched = FIRST_WATCHED <= step <= LAST_WATCHED
        _set_watching(watched, reads, on_card)
        yield batch
        _set_watching(False, reads, on_card)


def _set_watching(watching: bool, reads: HostReads, on_card: bool) -> None:
    reads.counting = watching
    if on_card:
        torch.cuda.set_sync_debug_mode("warn" if watching else "default")
