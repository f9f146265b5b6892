"""What was asked of captions and losses but would do nothing: a mistake, or told, before a model loads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from library.core.errors import Problems
from library.core.wording import some_of
from library.data.captions.caption_changes import CaptionChanges, split_tags
from library.data.captions.caption_files import split_lines
from library.data.description.config import SubsetConfig
from library.data.facts import is_always_empty
from library.data.index.index import ImageIndex

_NAMES_TOLD = 3

ValueT = TypeVar("ValueT")


@dataclass
class _Question:
    """Whether any caption of some folders has what an option works on.

    Attributes:
        folders: their numbers.
        has: answers it for the lines of a caption that are trained, prefix and suffix around each.
        untold: what is said where no caption has it.
    """

    folders: Sequence[int]
    has: Callable[[Sequence[str], CaptionChanges], bool]
    untold: str
    found: bool = False


def check_captions(index: ImageIndex, max_train_steps: int | None, problems: Problems) -> list[str]:
    """Complains about marks that no caption has; notes about other options that find nothing to do.

    An option that counts for several folders may find nothing in some of them; regularisation pictures do not count.

    Args:
        max_train_steps: the length of the run, where it is known.
    """
    mistakes, doubts = list(_questions_of_marks(index)), list(_questions_of_changes(index))
    _answer([question for question in (*mistakes, *doubts)], index)
    for question in mistakes:
        if not question.found:
            what = f"no caption has the mark {question.untold}, and a misspelt one would be trained as text"
            problems.add(
                what,
                _homes(index, question.folders),
                "correct the mark in the captions or in the option, or remove the option",
            )
    notes = [f"{question.untold} in {_homes(index, question.folders)}" for question in doubts if not question.found]
    return [*notes, *_empty_captions(index), *_long_warm_ups(index, max_train_steps)]


def check_losses(index: ImageIndex, prior_loss_weight: float, problems: Problems) -> list[str]:
    """Complains where no picture has any weight; notes about a weight of regularisation pictures without any."""
    if not np.asarray(index.loss_weight).any():
        what = "the loss of every picture has weight 0, so nothing would be learned"
        problems.add(what, "loss_weight", "give the pictures that are to be learned a weight above 0")
    if prior_loss_weight != 1 and not np.asarray(index.is_reg).any():
        return [f"--prior_loss_weight {prior_loss_weight:g} has no effect: there are no regularisation pictures"]
    return []


def _questions_of_marks(index: ImageIndex) -> Iterator[_Question]:
    kept = _by_value(index, lambda subset: subset.caption_changes.keep_tokens_separator)
    joined = _by_value(index, lambda subset: subset.caption_changes.secondary_separator)
    for key, groups in (("keep_tokens_separator", kept), ("secondary_separator", joined)):
        for mark, folders in groups.items():
            if mark is not None:
                yield _Question(folders, _Holds(mark), f"{mark!r} of {key}")


def _questions_of_changes(index: ImageIndex) -> Iterator[_Question]:
    shuffled = _by_value(index, lambda subset: subset.caption_changes.shuffle).get(True)
    if shuffled:
        yield _Question(shuffled, _has_tags_to_shuffle, "shuffle_caption finds no caption with two tags that may move")
    drawn = _by_value(index, lambda subset: subset.caption_changes.wildcard).get(True)
    if drawn:
        yield _Question(drawn, _has_something_to_draw, "enable_wildcard finds neither a brace nor a second line")
    for separator, folders in _by_value(index, lambda subset: subset.caption_changes.separator).items():
        if separator != CaptionChanges.separator:
            yield _Question(folders, _Holds(separator), f"caption_separator {separator!r} is in no caption")


def _by_value(index: ImageIndex, value_of: Callable[[SubsetConfig], ValueT]) -> dict[ValueT, list[int]]:
    """The training folders by what an option is for them."""
    groups: dict[ValueT, list[int]] = {}
    for number, subset in enumerate(index.folders):
        if not subset.is_reg:
            groups.setdefault(value_of(subset), []).append(number)
    return groups


@dataclass(frozen=True)
class _Holds:
    mark: str

    def __call__(self, texts: Sequence[str], changes: CaptionChanges) -> bool:
        return any(self.mark in text for text in texts)


def _has_something_to_draw(texts: Sequence[str], changes: CaptionChanges) -> bool:
    return len(texts) > 1 or any("{" in text for text in texts)


def _has_tags_to_shuffle(texts: Sequence[str], changes: CaptionChanges) -> bool:
    return any(_has_two_movable_tags(text, changes) for text in texts)


def _has_two_movable_tags(text: str, changes: CaptionChanges) -> bool:
    mark, kept = changes.keep_tokens_separator, changes.keep_tokens
    if mark and mark in text:
        text, kept = text.split(mark, 2)[1], 0
    # to count separators is quick; only promising captions are taken apart with their brackets
    return text.count(changes.separator) > kept and len(split_tags(text, changes.separator)) >= kept + 2


def _answer(questions: Sequence[_Question], index: ImageIndex) -> None:
    """Goes through the captions once, until everything is found."""
    folders = index.folders
    unanswered = _by_folder(questions, len(folders))
    for number, caption in zip(index.subset.tolist(), index.captions, strict=True):
        asked = unanswered[number]
        if not asked:
            continue
        changes = folders[number].caption_changes
        texts = _trained_lines(caption, changes)
        for question in asked:
            question.found = question.has(texts, changes)
        if any(question.found for question in asked):
            unanswered = _by_folder(questions, len(folders))
            if not any(unanswered):
                return


def _by_folder(questions: Sequence[_Question], folders: int) -> list[list[_Question]]:
    """The questions that are open, for each folder."""
    return [[q for q in questions if not q.found and number in q.folders] for number in range(folders)]


def _trained_lines(caption: str, changes: CaptionChanges) -> Sequence[str]:
    lines = split_lines(caption) if "\n" in caption or "\r" in caption else [caption]
    lines = [line for line in lines if line.strip()] if changes.wildcard else lines[:1]
    if not changes.prefix and not changes.suffix:
        return lines
    return [f"{changes.prefix} {line} {changes.suffix}" for line in lines or [""]]


def _empty_captions(index: ImageIndex) -> Iterator[str]:
    empty = [number for number, subset in enumerate(index.folders) if is_always_empty(subset.caption_changes)]
    if empty:
        yield f"every caption is trained empty (caption_dropout_rate or _every_n_epochs 1) in {_homes(index, empty)}"


def _long_warm_ups(index: ImageIndex, max_train_steps: int | None) -> Iterator[str]:
    if max_train_steps is None:
        return
    for length, folders in _by_value(index, lambda subset: subset.caption_changes.warmup_step).items():
        if length > max_train_steps:
            what = f"token_warmup_step {length:g} is longer than the run of {max_train_steps} updates"
            yield f"{what}, in which not all tags come into use, in {_homes(index, folders)}"


def _homes(index: ImageIndex, folders: Sequence[int]) -> str:
    homes = list(dict.fromkeys(str(index.folders[number].home) for number in folders))
    return some_of(homes[:_NAMES_TOLD], len(homes))
