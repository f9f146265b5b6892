"""Pictures through a model: decoding beside the model's work, a text file for each, counts at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from library.captioning.describer import Describer
from library.captioning.work import Work
from library.core.errors import Problem


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        written: files that were written.
        kept: files that were there, and stayed.
        failed: why pictures have no text.
    """

    written: int
    kept: int
    failed: Sequence[Problem]


def run(work: Work, describer: Describer, batch_size: int, threads: int) -> Outcome:
    """Writes a text for every picture of `work.todo`. One bad picture never stops the others.

    Args:
        work: see `find_work`.
        describer: the model.
        batch_size: pictures that it is given at once.
        threads: that decode pictures.
    """
    raise NotImplementedError


def tell(outcome: Outcome) -> None:
    """Logs the counts.

    Raises:
        Incomplete: with every picture that should have a text and has none.
    """
    raise NotImplementedError
