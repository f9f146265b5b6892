"""Sample pictures on the way, so that people see what is learned."""

from __future__ import annotations

from accelerate import Accelerator

from library.models.stable_diffusion import StableDiffusion
from library.training.progress import Moment, Moments
from library.training.requests import Requests
from library.training.run import Run
from library.training.scalars import ScalarLog


class Previews:
    """Makes the sample pictures of a run; its weights and draws do not notice."""

    def __init__(self, moments: Moments, at_first: bool) -> None:
        self._moments = moments
        self._at_first = at_first

    def due(self, moment: Moment, asked: Requests) -> bool:
        """Whether it is time."""
        return asked.sample or (self._at_first and moment.step == 0) or self._moments.due(moment)

    def make(self, moment: Moment, log: ScalarLog) -> None:
        """Makes a picture of every prompt; what goes wrong is told, and training goes on."""


def make_previews(run: Run, models: StableDiffusion, accelerator: Accelerator) -> Previews | None:
    """The sample pictures of a run; None where none are asked for."""
    return None
