"""Pictures and their problems for those who look before they train: what is understood is told beside what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from library.core.errors import Problem, Problems, UserError
from library.data.captions.caption_files import find_caption
from library.data.description.config import DatasetConfig, Description, SubsetConfig, read_description
from library.data.held_out import hold_out
from library.data.index.index import CaptionSource, ImageIndex, build_index
from library.data.index.scan import SKIP, More
from library.data.index.texts import Texts
from library.data.placement import place_all
from library.data.planner import Planner
from library.data.report.dataset_report import (
    DatasetReport,
    Source,
    TokenCount,
    report_of_problems,
    report_on,
)
from library.data.uses import check_uses
from library.data.views import Drawing, Views
from library.options.caching import CachingOptions
from library.options.combinations import check_text
from library.options.data import DataOptions
from library.options.text import TextOptions
from library.options.training import TrainingOptions
from library.options.validation import seed_of_validation
from library.text.tokenizer import CaptionTokenizer
from library.training.checks.pictures import Pictures, check_pictures
from library.training.progress import plan_run

_FAMILY = "sd1"  # both families count the same tokens; they differ in the padding


@dataclass(frozen=True)
class Asked:
    """The options that decide which pictures are trained, and how."""

    data: DataOptions
    caching: CachingOptions
    text: TextOptions
    training: TrainingOptions


@dataclass(frozen=True)
class Told:
    """A report, and the pictures it is about; None where none is understood."""

    report: DatasetReport
    source: Source | None


def look_at_pictures(asked: Asked) -> Told:
    """Reads all pictures of a run. Mistakes do not stop it: they are in the report."""
    problems = Problems()
    check_text(asked.text, problems)
    try:
        pictures = check_pictures(asked.data, asked.caching, asked.text, seed=asked.training.seed)
    except UserError as error:
        problems.extend(error.problems)
    else:
        return tell(pictures, asked, tuple(problems))
    told, left_out = _completed(problems)
    clear = _what_is_clear(asked.data, asked.training.seed)
    if asked.data.bad_images == SKIP:
        left_out += clear.left_out
    if clear.pictures is None:
        return Told(report_of_problems(told, left_out=left_out), None)
    source = _source_of(clear.pictures, asked, CaptionTokenizer(_FAMILY, asked.text))
    return Told(report_on(source, told, left_out), source)


def tell(
    pictures: Pictures,
    asked: Asked,
    problems: tuple[Problem, ...] = (),
    tokenizer: CaptionTokenizer | None = None,
    processes: int = 1,
) -> Told:
    """The report about pictures that were read.

    Args:
        pictures: found to be in order.
        asked: the options of the run.
        problems: what else is wrong.
        tokenizer: of the run, which may know new words.
        processes: that train together.
    """
    source = _source_of(pictures, asked, tokenizer or CaptionTokenizer(_FAMILY, asked.text), processes)
    return Told(report_on(source, problems), source)


def _source_of(pictures: Pictures, asked: Asked, tokenizer: CaptionTokenizer, processes: int = 1) -> Source:
    index, training = pictures.index, asked.training
    planner = Planner(
        index,
        pictures.placements,
        [dataset.batch_size for dataset in index.datasets],
        training.seed,
        training.gradient_accumulation_steps,
        processes,
    )
    has_end = training.max_train_steps is not None or training.max_train_epochs is not None
    epochs = training.max_train_epochs if has_end else 1
    drawing = Drawing(
        seed=training.seed,
        variants=asked.data.augmentation_variants,
        total_steps=plan_run(planner, training.max_train_steps, epochs).total_updates,
    )
    views = Views(index, pictures.placements, drawing)
    return Source(views, planner, token_counter(tokenizer), pictures.description.notes)


def token_counter(tokenizer: CaptionTokenizer) -> Callable[[str], TokenCount]:
    """Counts the tokens of a caption, and those that do not fit."""

    def count(caption: str) -> TokenCount:
        return TokenCount(tokenizer.count_tokens([caption])[0], tokenizer.count_lost([caption])[0])

    return count


def _completed(problems: Iterable[Problem]) -> tuple[list[Problem], tuple[Problem, ...]]:
    """All problems, and the pictures that are left out: a training's message counts some, here each is named."""
    told: list[Problem] = []
    left_out: tuple[Problem, ...] = ()
    for problem in problems:
        if not isinstance(problem, More):
            told.append(problem)
        elif problem.are_left_out:
            told.append(Problem(problem.what, problem.where, problem.fix))
            left_out += problem.others
        else:
            told += problem.others
    return told, left_out


class _Clear(NamedTuple):
    """What can be read although something is wrong: pictures where there are any, and those that cannot be read."""

    pictures: Pictures | None
    left_out: tuple[Problem, ...] = ()


def _what_is_clear(data: DataOptions, seed: int) -> _Clear:
    try:
        description = read_description(data, Problems())
    except UserError:  # told already
        return _Clear(None)
    index = _read(_with_subsets(description, _forgiving), data)
    if index is None:
        index = _read_without_captions(description, data)
    if index is None:
        return _Clear(None)
    uses = Problems()
    index = hold_out(index, seed_of_validation(data, seed), uses)
    check_uses(index, uses)
    if uses:  # there is no plan to show
        return _Clear(None, index.left_out)
    return _Clear(Pictures(replace(description, datasets=index.datasets), index, place_all(index)), index.left_out)


def _read_without_captions(description: Description, data: DataOptions) -> ImageIndex | None:
    """The pictures of the folders that can be read, with those of their captions that can be."""
    index = _read(_with_subsets(description, _without_captions), data)
    if index is None:
        description = _with_subsets(description, lambda subset: _alone(subset, description, data))
        index = _read(_with_subsets(description, _without_captions), data)
    return None if index is None else _with_captions(index, description)


def _read(description: Description, data: DataOptions) -> ImageIndex | None:
    if not description.datasets:
        return None
    try:
        index = build_index(description, data.prior_loss_weight, "skip")
    except UserError:
        return None
    return index if len(index) else None


def _forgiving(subset: SubsetConfig) -> SubsetConfig:
    return replace(subset, allow_missing_captions=True, cache_info=False, conditioning_data_dir=None)


def _without_captions(subset: SubsetConfig) -> SubsetConfig:
    return replace(_forgiving(subset), caption_extensions=(), caption_extension_from=None)


def _alone(subset: SubsetConfig, description: Description, data: DataOptions) -> SubsetConfig | None:
    """A subset if its pictures can be read for themselves."""
    dataset = replace(description.datasets[0], subsets=(_without_captions(subset),))
    return subset if _read(Description((dataset,), ()), data) else None


def _with_captions(index: ImageIndex, description: Description) -> ImageIndex:
    """The index of pictures that were read without captions, with those that can be read.

    The description has the same subsets in the same order, and knows where their captions are.
    """
    endings = [subset.caption_extensions for dataset in description.datasets for subset in dataset.subsets]
    texts, sources = list(index.captions), np.array(index.caption_source)
    for record in range(len(index)):
        number = int(index.subset[record])
        subset = index.folders[number]
        if subset.metadata_file is not None:
            continue
        try:
            found = find_caption(index.path(record), endings[number], subset.caption_changes.wildcard)
        except UserError:  # told already
            found = None
        if found:
            texts[record], sources[record] = found, CaptionSource.FILE
    return replace(index, captions=Texts(texts), caption_source=sources)


def _with_subsets(description: Description, change: Callable[[SubsetConfig], SubsetConfig | None]) -> Description:
    """The description with other subsets, without those that become None and datasets that lose all."""
    datasets: list[DatasetConfig] = []
    for dataset in description.datasets:
        changed = [change(subset) for subset in dataset.subsets]
        if kept := tuple(subset for subset in changed if subset is not None):
            datasets.append(replace(dataset, subsets=kept))
    return Description(tuple(datasets), description.notes)
