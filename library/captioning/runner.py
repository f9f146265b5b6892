"""Pictures through a model: decoding beside the model's work, a text file for each, counts at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from tqdm import tqdm

from library.captioning.describer import Describer
from library.captioning.reading import Read, Unread, described, read_ahead
from library.captioning.work import Work
from library.captioning.writing import DiskTakesNoMore, Writer
from library.core.errors import Incomplete, Problem, UserError, printable
from library.core.log import get_logger

_log = get_logger(__name__)
_PROBLEMS_TOLD = 20
_FIRST_FAILURES = 5  # of a model that never succeeded: it is broken, not the pictures
_LATER_FAILURES = 50  # in a row, of one that did: it broke on the way


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        written: files that were written.
        kept: files that were there, and stayed.
        failed: why pictures have no text, in the order of the pictures.
        stopped: why the run ended before its end, if it did.
        not_reached: pictures that it would have come to.
    """

    written: int
    kept: int
    failed: Sequence[Problem]
    stopped: Problem | None = None
    not_reached: int = 0


def run(work: Work, describer: Describer, batch_size: int, threads: int) -> Outcome:
    """Writes a text for every picture of `work.todo`. One bad picture never stops the others.

    Memory does not grow with the number of pictures, but for the problems of those that fail.

    Args:
        work: see `find_work`.
        describer: the model; it works in the calling thread.
        batch_size: pictures that it is given at once.
        threads: that decode pictures.

    Raises:
        Exception: what the model raised, where it fails for one picture after the other.
        KeyboardInterrupt: after all texts that were there are written.
    """
    if not work.todo:
        return Outcome(0, len(work.kept), ())
    failed: list[tuple[int, Problem]] = []
    writer = Writer(work, describer)
    stopped, is_over = None, False
    try:
        _go_through(work, describer, (batch_size, threads), writer, failed)
        is_over = True
    except DiskTakesNoMore as stop:
        stopped = stop.problem
    finally:
        writer.close()
        if not is_over:
            goes_on = "begins anew" if work.overwrites else "goes on from there"
            _log.info("%s", f"stopped: {writer.written} texts were written; the same command {goes_on}")
    problems = [problem for _, problem in sorted([*failed, *writer.failed], key=lambda item: item[0])]
    not_reached = len(work.todo) - writer.written - writer.kept - len(problems) if stopped else 0
    return Outcome(writer.written, len(work.kept) + writer.kept, problems, stopped, not_reached)


def _go_through(
    work: Work, describer: Describer, sizes: tuple[int, int], writer: Writer, failed: list[tuple[int, Problem]]
) -> None:
    """All pictures; `sizes` are those of a batch and the threads, `failed` gets why pictures have no text."""
    batch_size, threads = sizes
    model = _Model(describer)
    reading = read_ahead(work.todo, describer.read, threads, ahead=2 * batch_size + threads)
    with tqdm(total=len(work.todo), unit="picture") as bar, closing(reading):
        for batch in _batches(reading, batch_size, failed):
            for read, text in zip(batch, model.describe(batch), strict=True):
                if isinstance(text, Problem):
                    failed.append((read.number, text))
                else:
                    writer.put(read.number, read.target, text)
            writer.end_batch()
            bar.update(batch[-1].number + 1 - bar.n)
        writer.finish()
        bar.update(len(work.todo) - bar.n)


def tell(outcome: Outcome) -> None:
    """Logs the counts.

    Raises:
        Incomplete: with the pictures that should have a text and have none: the first of them, and how many more.
    """
    count = len(outcome.failed) + outcome.not_reached
    _log.info("%s", f"written {outcome.written}, kept {outcome.kept}, failed {count}")
    if not count:
        return
    first = outcome.failed[:_PROBLEMS_TOLD]
    told = [*([outcome.stopped] if outcome.stopped else ()), *first]
    if count > len(first):
        what = "they got no new text either; where there is an old one, it stays"
        fix = "mend these and start again: the same command then tells of the next"
        told.append(Problem(what, f"{count - len(first)} more pictures", fix))
    end = "the run was stopped" if outcome.stopped else "all pictures were gone through"
    raise Incomplete(told, end=end, count=count)


def _batches(
    reading: Iterator[Read | Unread], size: int, failed: list[tuple[int, Problem]]
) -> Iterator[Sequence[Read]]:
    """Batches of pictures that could be read; why others could not goes to `failed`."""
    batch: list[Read] = []
    for read in reading:
        if isinstance(read, Unread):
            failed.append((read.number, read.problem))
            continue
        batch.append(read)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class _Model:
    """A describer that is asked for its pictures one by one where it fails for several at once."""

    def __init__(self, describer: Describer) -> None:
        self._describer = describer
        self._has_succeeded = False
        self._takes_batches = True
        self._failure: type[Exception] | None = None
        self._failures_in_a_row = 0

    def describe(self, batch: Sequence[Read]) -> Sequence[str | Problem]:
        """A text for each picture, or why it has none.

        Raises:
            Exception: what the describer raised, where it does so for one picture after the other.
        """
        if len(batch) == 1 or not self._takes_batches:
            return [self._describe_one(read) for read in batch]
        try:
            return self._describe(batch)
        except Exception as error:  # kept as text only: its frames hold the memory that may have run out
            why = described(error)
        texts = [self._describe_one(read) for read in batch]
        if any(isinstance(text, Problem) for text in texts):
            return texts
        self._takes_batches = False
        what = (
            f"the model cannot take {len(batch)} pictures at once, but each alone: they are done one by one from here"
        )
        _log.warning("%s", printable(f"{what}, and a smaller --batch_size is faster ({why})"))
        return texts

    def _describe_one(self, read: Read) -> str | Problem:
        try:
            return self._describe([read])[0]
        except UserError as error:
            return error.problems[0]
        except Exception as error:
            self._failures_in_a_row = self._failures_in_a_row + 1 if type(error) is self._failure else 1
            self._failure = type(error)
            if self._failures_in_a_row >= (_LATER_FAILURES if self._has_succeeded else _FIRST_FAILURES):
                raise
            fix = "look at the picture; if it is a good one, please report this"
            return Problem(f"the model fails on it ({described(error)})", str(read.target.picture), fix)

    def _describe(self, batch: Sequence[Read]) -> Sequence[str]:
        texts = self._describer.describe([read.picture for read in batch], [read.target.picture for read in batch])
        if len(texts) != len(batch):
            raise ValueError(f"{len(texts)} texts for {len(batch)} pictures")
        self._has_succeeded, self._failures_in_a_row = True, 0
        return texts
