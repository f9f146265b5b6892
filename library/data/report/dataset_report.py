"""The facts about a run's pictures, in the form in which a page shows them and a program reads them. No model needed.

What is told of a use (look, crop, caption) comes from the same draws as the training's own batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from library.core.errors import Problem
from library.core.sizes import Size
from library.core.wording import some_of
from library.data.augment import View
from library.data.captions.caption_changes import CaptionChanges, Moment
from library.data.facts import as_written, folder_name
from library.data.index.index import CaptionSource, ImageIndex
from library.data.planner import BatchRequest, Planner
from library.data.report.caption_lengths import DRAWS_SHOWN, longest_captions, written_caption
from library.data.report.concerns import HEAVY_CROP, counted, cropped_share, dataset_warnings, uses_by_bucket
from library.data.views import Views

BATCHES_SHOWN = 8
EPOCHS_SHOWN = 4

_NAMES_TOLD = 3

Box = tuple[int, int, int, int]


class TokenCount(NamedTuple):
    """Text tokens of a caption, and how many of them do not fit."""

    tokens: int
    lost: int


CountTokens = Callable[[str], TokenCount]


@dataclass(frozen=True)
class Source:
    """The pictures of a run and all that decides how they are used.

    Attributes:
        planner: plans the same pictures as `views` shows.
        count_tokens: of one caption.
        notes: what was said about the description of the pictures.
    """

    views: Views
    planner: Planner
    count_tokens: CountTokens
    notes: tuple[str, ...] = ()

    @property
    def index(self) -> ImageIndex:
        return self.views.index

    def changes(self, record: int) -> CaptionChanges:
        """What happens to the caption of a picture at each use."""
        return self.index.folders[int(self.index.subset[record])].caption_changes


@dataclass(frozen=True)
class ImageFacts:
    """A picture. Sizes in pixels; `crop` is left, top, right, bottom within the scaled picture, before any draw.

    Attributes:
        flips: some uses may be mirrored.
        mask: its transparency weighs the loss.
        lost: share of the scaled picture that lies outside the crop, 0 to 1.
        caption: as it is trained where nothing is left out or moved, wildcards as they are written.
        tokens: of that; where wildcards are drawn, of the first draw.
        caption_varies: two uses can have different captions.
        tokens_lost: how many tokens of it are not read, at most where it is drawn.
        is_validation: it is held out of the training, so its repeats and its loss weight are 0.
    """

    path: str
    size: Size
    bucket: Size
    resized: Size
    crop: Box
    repeats: float
    is_reg: bool
    caption: str
    tokens: int
    flips: bool
    mask: bool
    subset: str
    caption_source: str
    loss_weight: float
    lost: float
    caption_varies: bool
    tokens_lost: int
    is_validation: bool = False


@dataclass(frozen=True)
class BucketFacts:
    """A bucket: its pictures, and its uses and batches in the first epoch. `dataset` counts from 1; those of pictures
    that are held out come last.
    """

    size: Size
    dataset: int
    pictures: int
    uses: int
    batches: int
    batch_size: int
    underfilled: bool
    is_validation: bool = False


@dataclass(frozen=True)
class EpochFacts:
    """What an epoch (from 1) uses."""

    epoch: int
    training_uses: int
    regularisation_uses: int
    batches: int
    updates: int


@dataclass(frozen=True)
class UseFacts:
    """One use of a picture in a batch; `image` is its place in the list of images."""

    image: int
    name: str
    caption: str
    tokens: int
    flipped: bool
    resized: Size
    crop: Box
    is_reg: bool


@dataclass(frozen=True)
class BatchFacts:
    """A batch of the first epoch; `number` and `update` count from 1."""

    number: int
    update: int
    bucket: Size
    uses: tuple[UseFacts, ...]


@dataclass(frozen=True)
class DatasetReport:
    """All that is told. `images` is empty where the pictures are not understood.

    Attributes:
        problems: what stops a training.
        left_out: pictures that are not trained as they cannot be read (--bad_images skip).
    """

    problems: tuple[Problem, ...]
    left_out: tuple[Problem, ...]
    warnings: tuple[str, ...]
    epochs: tuple[EpochFacts, ...]
    buckets: tuple[BucketFacts, ...]
    batches: tuple[BatchFacts, ...]
    images: tuple[ImageFacts, ...]


def report_on(
    source: Source, problems: Sequence[Problem] = (), left_out: Sequence[Problem] | None = None
) -> DatasetReport:
    """Everything about the pictures of a run.

    Args:
        source: the pictures.
        problems: what stops a training; of equal ones one is told.
        left_out: pictures that are not trained as they cannot be read; None for those of the index.
    """
    images = tuple(_image_facts(source))
    return DatasetReport(
        problems=_different(problems),
        left_out=_different(source.index.left_out if left_out is None else left_out),
        warnings=tuple(_warnings(source, images)),
        epochs=tuple(_epoch_facts(source)),
        buckets=tuple(_bucket_facts(source)),
        batches=tuple(batch_facts(source, request) for request in first_requests(source)),
        images=images,
    )


def report_of_problems(
    problems: Sequence[Problem], notes: Sequence[str] = (), left_out: Sequence[Problem] = ()
) -> DatasetReport:
    """Where no picture is understood."""
    return DatasetReport(_different(problems), _different(left_out), tuple(notes), (), (), (), ())


def _different(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Each problem once: a folder can stand in several datasets."""
    return tuple(dict.fromkeys(problems))


def as_json_values(report: DatasetReport) -> dict[str, Any]:
    """The report as JSON holds it: sizes are [w, h], boxes [left, top, right, bottom]; `ok` where nothing is wrong."""
    return {"ok": not report.problems, **asdict(report)}


def first_requests(source: Source) -> list[BatchRequest]:
    """The first batches of the first epoch, without copies that only keep processes in step."""
    return [request for request in source.planner.epoch_plan(0)[:BATCHES_SHOWN] if request.loss_scale > 0]


def views_of(source: Source, request: BatchRequest) -> Iterator[tuple[int, View]]:
    """The pictures of a batch, and how it sees them."""
    for record, key in _uses_of(source, request):
        choice = source.views.choose(record, request.epoch, key)
        yield record, source.views.of_use(record, choice, request.epoch, key)


def batch_facts(source: Source, request: BatchRequest) -> BatchFacts:
    """What a batch holds."""
    moment = Moment(request.epoch, request.step, source.views.drawing.total_steps)
    uses = []
    for (record, key), (_, view) in zip(_uses_of(source, request), views_of(source, request), strict=True):
        caption = source.views.caption(record, key, moment)
        uses.append(
            UseFacts(
                image=record,
                name=source.index.names[record],
                caption=caption,
                tokens=source.count_tokens(caption).tokens,
                flipped=view.flipped,
                resized=view.resized,
                crop=view.crop,
                is_reg=bool(source.index.is_reg[record]),
            )
        )
    bucket = source.views.placements.bucket_size(request.records[0])
    return BatchFacts(request.position + 1, request.step + 1, bucket, tuple(uses))


def caption_draws(source: Source, record: int) -> list[str]:
    """The captions that a picture's first use has in the first epochs; none where it is always the same."""
    if not source.changes(record).varies:
        return []
    steps, total = source.planner.updates_per_epoch, source.views.drawing.total_steps
    moments = [Moment(epoch, epoch * steps, total) for epoch in range(DRAWS_SHOWN)]
    return [source.views.caption(record, source.views.use(record, 0), moment) for moment in moments]


def _uses_of(source: Source, request: BatchRequest) -> list[tuple[int, str]]:
    return [(r, source.views.use(r, n)) for r, n in zip(request.records, request.repeats, strict=True)]


def _image_facts(source: Source) -> Iterator[ImageFacts]:
    index, placements = source.index, source.views.placements
    subsets = [folder_name(subset) for subset in index.folders]
    lost = cropped_share(placements)
    for record in range(len(index)):
        subset, changes = index.folders[int(index.subset[record])], source.changes(record)
        counts = [source.count_tokens(caption) for caption in longest_captions(source.views, record)]
        yield ImageFacts(
            path=str(index.path(record)),
            size=index.size(record),
            bucket=placements.bucket_size(record),
            resized=placements.resized_size(record),
            crop=placements.crop_box(record),
            repeats=as_written(float(index.repeats[record])),
            is_reg=bool(index.is_reg[record]),
            caption=written_caption(index.caption(record), changes),
            tokens=counts[0].tokens,
            flips=subset.augmentations.flip,
            mask=index.has_mask(record),
            subset=subsets[int(index.subset[record])],
            caption_source=CaptionSource(int(index.caption_source[record])).name.lower(),
            loss_weight=float(index.loss_weight[record]),
            lost=round(float(lost[record]), 4),
            caption_varies=changes.varies,
            tokens_lost=max(count.lost for count in counts),
            is_validation=subset.is_validation,
        )


def _bucket_facts(source: Source) -> Iterator[BucketFacts]:
    index, placements = source.index, source.views.placements
    pictures = np.bincount(placements.bucket, minlength=len(placements.buckets))
    uses = uses_by_bucket(placements, source.planner.epoch_samples(0))
    for number, size in enumerate(placements.buckets):
        dataset, used = placements.bucket_dataset[number], int(uses[number])
        batch_size = index.datasets[dataset].batch_size
        yield BucketFacts(
            size=size,
            dataset=dataset + 1,
            pictures=int(pictures[number]),
            uses=used,
            batches=-(-used // batch_size),
            batch_size=batch_size,
            underfilled=0 < used < batch_size,
            is_validation=index.datasets[dataset].is_validation,
        )


def _epoch_facts(source: Source) -> Iterator[EpochFacts]:
    """The first epochs; one where all are alike."""
    index = source.index
    alike = not np.asarray(index.is_reg).any() and all(subset.num_repeats % 1 == 0 for subset in index.folders)
    for epoch in range(1 if alike else EPOCHS_SHOWN):
        is_reg = np.asarray(index.is_reg)[source.planner.epoch_samples(epoch).records]
        regularisation = int(np.count_nonzero(is_reg))
        yield EpochFacts(
            epoch=epoch + 1,
            training_uses=len(is_reg) - regularisation,
            regularisation_uses=regularisation,
            batches=source.planner.batches_in_epoch(epoch),
            updates=source.planner.updates_in_epoch(epoch),
        )


def _warnings(source: Source, images: Sequence[ImageFacts]) -> Iterator[str]:
    index = source.index
    yield from source.notes
    yield from index.notes
    for number in range(len(index.datasets)):
        name = "validation" if index.datasets[number].is_validation else f"dataset {number + 1}"
        head = f"{name}: " if len(index.datasets) > 1 else ""
        for text in dataset_warnings(index, source.views.placements, source.planner, number):
            yield head + text
    long = [number for number, image in enumerate(images) if image.tokens_lost]
    if long:
        names = some_of([index.names[number] for number in long[:_NAMES_TOLD]], len(long))
        tokens = sum(image.tokens_lost for image in images)
        is_long = "is too long" if len(long) == 1 else "are too long"
        yield f"{counted(len(long), 'caption')} {is_long}, the last {counted(tokens, 'token')} are not read: {names}"


def is_heavy_crop(image: ImageFacts) -> bool:
    """Whether the crop takes more than what deserves a warning."""
    return image.lost > HEAVY_CROP
