"""Pictures and their problems for those who look before they train: what is understood is told beside what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from library.core.errors import Problem, Problems, UserError
from library.data.captions.caption_files import find_caption
from library.data.description.config import DatasetConfig, Description, SubsetConfig, read_description
from library.data.index.index import CaptionSource, ImageIndex, build_index
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
from library.data.views import Drawing, Views
from library.options.caching import CachingOptions
from library.options.combinations import check_text
from library.options.data import DataOptions
from library.options.text import TextOptions
from library.options.training import TrainingOptions
from library.text.tokenizer import CaptionTokenizer
from library.training.pictures import Pictures, check_pictures
from library.training.progress import plan_run

_FAMILY = "sd1"  # both families count the same tokens; they differ in the padding
_COUNTED = re.compile(r"\d+ more like these")


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
        pictures: Pictures | None = check_pictures(asked.data, asked.caching, asked.text)
    except UserError as error:
        pictures = _what_is_clear(asked.data)
        problems.extend(_completed(error.problems, pictures.index.left_out if pictures else ()))
    return tell(pictures, asked, tuple(problems))


def tell(pictures: Pictures | None, asked: Asked, problems: tuple[Problem, ...] = ()) -> Told:
    """The report about pictures that were read."""
    if pictures is None:
        return Told(report_of_problems(problems), None)
    source = _source_of(pictures, asked)
    return Told(report_on(source, problems), source)


def _source_of(pictures: Pictures, asked: Asked) -> Source:
    index, training = pictures.index, asked.training
    planner = Planner(
        index,
        pictures.placements,
        [dataset.batch_size for dataset in index.datasets],
        training.seed,
        training.gradient_accumulation_steps,
    )
    has_end = training.max_train_steps is not None or training.max_train_epochs is not None
    epochs = training.max_train_epochs if has_end else 1
    drawing = Drawing(
        seed=training.seed,
        variants=asked.data.augmentation_variants,
        total_steps=plan_run(planner, training.max_train_steps, epochs).total_updates,
    )
    views = Views(index, pictures.placements, drawing)
    return Source(views, planner, token_counter(asked.text), pictures.description.notes)


def token_counter(text: TextOptions) -> Callable[[str], TokenCount]:
    """Counts the tokens of a caption, and those that do not fit."""
    tokenizer = CaptionTokenizer(_FAMILY, text)

    def count(caption: str) -> TokenCount:
        return TokenCount(tokenizer.count_tokens([caption])[0], tokenizer.count_lost([caption])[0])

    return count


def _completed(problems: Sequence[Problem], left_out: Sequence[Problem]) -> Iterator[Problem]:
    """All problems: a training's message counts the last of many alike, here each picture is named."""
    untold = [problem for problem in left_out if problem not in problems]
    for problem in problems:
        if not (untold and _COUNTED.fullmatch(problem.what)):
            yield problem
    yield from untold


def _what_is_clear(data: DataOptions) -> Pictures | None:
    """The pictures that can be read although something is wrong; None where there are none."""
    description = read_description(data, Problems())
    readable = _with_subsets(description, _forgiving)
    index = _read(readable, data)
    if index is None:
        readable = _with_subsets(description, _without_captions)
        index = _read(readable, data)
        if index is None:
            readable = _with_subsets(readable, lambda subset: _alone(subset, readable, data))
            index = _read(readable, data)
        if index is None:
            return None
        index = _with_captions(index, description)
    return Pictures(replace(description, datasets=index.datasets), index, place_all(index))


def _read(description: Description, data: DataOptions) -> ImageIndex | None:
    if not description.datasets:
        return None
    try:
        index = build_index(description, data.prior_loss_weight, "skip")
    except UserError:
        return None
    return index if len(index) else None


def _forgiving(subset: SubsetConfig) -> SubsetConfig:
    return replace(subset, allow_missing_captions=True, cache_info=False)


def _without_captions(subset: SubsetConfig) -> SubsetConfig:
    return replace(_forgiving(subset), caption_extensions=(), caption_extension_from=None)


def _alone(subset: SubsetConfig, description: Description, data: DataOptions) -> SubsetConfig | None:
    """A subset if it can be read for itself."""
    dataset = replace(description.datasets[0], subsets=(subset,))
    return subset if _read(Description((dataset,), ()), data) else None


def _with_captions(index: ImageIndex, description: Description) -> ImageIndex:
    """The index of pictures that were read without captions, with those that can be read."""
    endings = {s.home: s.caption_extensions for dataset in description.datasets for s in dataset.subsets}
    texts, sources = list(index.captions), np.array(index.caption_source)
    for record in range(len(index)):
        subset = index.folders[int(index.subset[record])]
        if subset.metadata_file is not None:
            continue
        try:
            found = find_caption(index.path(record), endings[subset.home], subset.caption_changes.wildcard)
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
