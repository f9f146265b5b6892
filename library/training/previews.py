"""Sample pictures on the way, so that people see what is learned."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from library.checkpoint.naming import last_stem
from library.core.errors import printable
from library.core.log import get_logger
from library.models.stable_diffusion import StableDiffusion
from library.options.samples import SampleOptions
from library.preview.contact_sheet import add_row
from library.preview.parameters import TEXT_NAME, webui_parameters
from library.preview.png_files import write_png
from library.preview.prompts import FLAG, SamplePrompt
from library.training.out_of_memory import is_out_of_memory
from library.training.painting import Painter, make_prompt_reader, noise_schedule
from library.training.progress import Moment, Moments
from library.training.requests.watch import Requests
from library.training.run import Run

log = get_logger(__name__)

Pixels = NDArray[np.uint8]
ResultT = TypeVar("ResultT")


class PictureLog(Protocol):
    """What pictures are shown in, such as a `ScalarLog`."""

    def picture(self, step: int, epoch: int, tag: str, pixels: Pixels) -> None:
        """Takes a picture (H, W, 3), sRGB."""


@dataclass(frozen=True)
class SampleFiles:
    """Where sample pictures go.

    Attributes:
        folder: made when the first picture is.
        name: of the run.
        shared: what all pictures say of themselves beside their prompt, by its name in the Web UI.
        digits: of the number of a prompt.
    """

    folder: Path
    name: str
    shared: Mapping[str, str]
    digits: int = 2

    @property
    def sheet(self) -> Path:
        """All pictures, small, on one page."""
        return self.folder / f"{self.name}_sheet.png"

    def picture(self, step: int, number: int, seed: int) -> Path:
        """A picture; names sort by step, then by the number of the prompt (from 1)."""
        return self.folder / f"{self.name}_{step:08d}_{number:0{self.digits}d}_{seed}.png"

    def write(self, step: int, number: int, prompt: SamplePrompt, pixels: Pixels) -> None:
        """Writes a picture, which tells how it was made.

        Raises:
            OSError: it cannot be written.
        """
        told = webui_parameters(prompt, {**self.shared, "Training step": str(step)})
        write_png(self.picture(step, number, prompt.seed), pixels, {TEXT_NAME: told})


class Previews:
    """Makes the sample pictures of a run; its weights and draws do not notice.

    Args:
        options: when.
        prompts: of what; none where pictures can only be asked for in vain.
        files: where to.
        painter: makes a picture.
        goes_on: whether the run was resumed, and its sheet of pictures grows on.
        is_main: whether this process makes them; the others go on and wait for it where they next meet.
    """

    def __init__(
        self,
        options: SampleOptions,
        prompts: Sequence[SamplePrompt],
        files: SampleFiles,
        painter: Painter,
        goes_on: bool,
        is_main: bool,
    ) -> None:
        self._moments = preview_moments(options)
        self._at_first = options.sample_at_first
        self._prompts = tuple(prompts)
        self._files = files
        self._painter = painter
        self._goes_on = goes_on
        self._is_main = is_main
        self._made = 0
        self._told: set[str] = set()

    def due(self, moment: Moment, asked: Requests) -> bool:
        """Whether it is time."""
        return asked.sample or (self._at_first and moment.step == 0) or self._moments.due(moment)

    def make(self, moment: Moment, shown_in: PictureLog, is_stopping: Callable[[], bool] = lambda: False) -> None:
        """Makes a picture of every prompt; what goes wrong is told, and training goes on.

        Args:
            is_stopping: looked at before each picture; the rest is left out once it says so.
        """
        if not self._is_main:
            return
        if not self._prompts:
            self._warn("samples were asked for, but there are no prompts", f"give {FLAG} FILE at the next start")
            return
        pictures = self._attempt("no sample pictures", lambda: self._make_all(moment, shown_in, is_stopping))
        if pictures is None or all(pixels is None for pixels in pictures):
            return
        sheet = self._files.sheet
        self._attempt(
            f"{sheet.name} has no new row",
            lambda: add_row(sheet, self._prompts, moment.step, pictures, self._goes_on),
        )
        self._goes_on = True

    def told(self) -> list[str]:
        """How many pictures this process made, for the summary."""
        pictures = f"{self._made} picture{'s' if self._made > 1 else ''}"
        return [f"samples: {pictures} in {self._files.folder}"] if self._made else []

    def _make_all(self, moment: Moment, shown_in: PictureLog, is_stopping: Callable[[], bool]) -> list[Pixels | None]:
        pictures: list[Pixels | None] = [None] * len(self._prompts)
        with self._painter.ready():
            for done, prompt in enumerate(self._prompts):
                if is_stopping():
                    log.info(
                        "the run is to stop: %d of %d sample pictures are left out", len(pictures) - done, len(pictures)
                    )
                    break
                pictures[done] = self._attempt(
                    f"no sample picture {done + 1:02d} of {prompt.prompt!r}",
                    partial(self._make_one, moment, shown_in, done + 1, prompt),
                )
        return pictures

    def _make_one(self, moment: Moment, shown_in: PictureLog, number: int, prompt: SamplePrompt) -> Pixels:
        pixels = self._painter.paint(prompt)
        self._files.write(moment.step, number, prompt, pixels)
        self._made += 1
        shown_in.picture(moment.step, moment.epoch, f"sample/{number:02d}", pixels)
        return pixels

    def _attempt(self, lost: str, work: Callable[[], ResultT]) -> ResultT | None:
        """What `work` returns; None where it fails, for hours of training are worth more than a picture."""
        try:
            return work()
        except Exception as error:  # a sampler, the driver, the disk: whatever it is, only the picture is lost
            reason = str(error).strip().splitlines()
            self._warn(f"{lost}: {reason[0] if reason else type(error).__name__}", "training goes on")
            if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
                _free_memory()
            return None

    def _warn(self, what: str, then: str) -> None:
        """Says something once, however often it happens."""
        if what not in self._told:
            self._told.add(what)
            log.warning("%s; %s", printable(what), then)


def preview_moments(options: SampleOptions) -> Moments:
    """When samples are made; epochs win over steps."""
    every_steps = options.sample_every_n_steps if options.sample_every_n_epochs is None else None
    return Moments(every_steps, options.sample_every_n_epochs)


def make_previews(run: Run, models: StableDiffusion, network: nn.Module | None, accelerator: Accelerator) -> Previews:
    """The sample pictures of a run, which may have no prompts.

    Args:
        network: what trains beside the models, or None.
    """
    options = run.options
    painter = Painter(
        models,
        network,
        make_prompt_reader(run),
        noise_schedule(run.base.prediction_type, options.objective.zero_terminal_snr),
        accelerator,
    )
    name, clip_skip = last_stem(run.files.name), options.text.clip_skip
    shared = {"Model": name, **({} if clip_skip is None else {"Clip skip": str(clip_skip)})}
    files = SampleFiles(run.files.folder / "sample", name, shared, max(2, len(str(len(run.prompts)))))
    goes_on = run.resume is not None
    if run.prompts:
        log.info("samples: %s", describe_samples(options.samples, len(run.prompts), files.folder, goes_on))
    return Previews(options.samples, run.prompts, files, painter, goes_on, accelerator.is_main_process)


def describe_samples(options: SampleOptions, prompts: int, folder: Path, goes_on: bool) -> str:
    """A line for the report: of what, when and where to.

    Args:
        goes_on: whether the run was resumed, and its first update is done.
    """
    times = ["before the first update"] if options.sample_at_first and not goes_on else []
    if options.sample_every_n_epochs is not None:
        unused = options.sample_every_n_steps is not None
        note = ", which win over --sample_every_n_steps" if unused else ""
        times.append(f"every {options.sample_every_n_epochs} epochs{note}")
    elif options.sample_every_n_steps is not None:
        times.append(f"every {options.sample_every_n_steps} updates")
    if not times:
        times.append('made when a file "sample now" in the output folder asks for them')
    return printable(f"{prompts} prompt{'s' if prompts > 1 else ''}, {' and '.join(times)}, in {folder}")


def _free_memory() -> None:
    """Gives the card back what the failed attempt held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
