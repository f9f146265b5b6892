"""The checks of a run's pictures: what they are, where they go, and what was asked of them. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from library.core.errors import Problems, UserError
from library.core.wording import some_of
from library.data.augment import Face, face_of
from library.data.cache.cache_checks import check_disk_cache, check_text_disk_cache
from library.data.description.config import Description, read_description
from library.data.description.masks import check_masks
from library.data.held_out import WHOLE, hold_out
from library.data.index.index import ImageIndex, build_index
from library.data.placement import Placements, place_all
from library.data.uses import check_uses
from library.options.caching import TEXT_CACHE_FLAG, CachingOptions
from library.options.data import DataOptions
from library.options.reg_images import RegImageOptions
from library.options.text import TextOptions
from library.options.validation import seed_of_validation
from library.training.checks.captions import check_captions, check_losses
from library.training.reg_images import check_reg_images, notes_of, without_empty_folders

_NAMES_TOLD = 3


@dataclass(frozen=True)
class Pictures:
    """The pictures of a run, found to be in order."""

    description: Description
    index: ImageIndex
    placements: Placements


def check_pictures(
    data: DataOptions,
    caching: CachingOptions,
    text: TextOptions,
    max_train_steps: int | None = None,
    reg_images: RegImageOptions = RegImageOptions(),  # noqa: B008  # frozen
    seed: int = 0,
    masked_loss: bool = False,
) -> Pictures:
    """Finds, opens and places every picture, and holds out those that are for validation.

    Args:
        max_train_steps: the length of the run in updates, where it is known.
        reg_images: where class images are to be generated, folders that still wait for them may be empty; they are in
            the description and not in the index.
        seed: of the run.
        masked_loss: whether masks are to weigh the loss.

    Raises:
        UserError: with everything that is wrong with them, their description and their options.
    """
    problems = Problems()
    description = read_description(data, problems)
    check_fixed_uses(description, data, caching, problems)
    check_reg_images(description, reg_images, problems)
    check_masks(description, masked_loss, problems)
    # pictures are looked at even when their description has mistakes: a broken one should be known at once
    try:
        there = without_empty_folders(description, reg_images)
        index = build_index(there, data.prior_loss_weight, data.bad_images)
    except UserError as error:
        problems.extend(error.problems)
        raise UserError(problems) from None
    problems.raise_if_any()
    index = hold_out(index, seed_of_validation(data, seed), problems)
    problems.raise_if_any()
    _check_masks(index, problems)
    check_uses(index, problems)
    notes = [
        *_check_faces(index, problems),
        *check_captions(index, max_train_steps, problems),
        *check_losses(index, data.prior_loss_weight, problems),
        *notes_of(description, index, reg_images),
    ]
    problems.raise_if_any()
    placements = place_all(index)
    if caching.cache_latents_to_disk:
        check_disk_cache(index, placements, problems, caching, data.augmentation_variants)
    if caching.cache_text_encoder_outputs_to_disk:
        check_text_disk_cache(index, text.rows, problems)
    problems.raise_if_any()
    return Pictures(description, replace(index, notes=(*index.notes, *notes)), placements)


def check_fixed_uses(description: Description, data: DataOptions, caching: CachingOptions, problems: Problems) -> None:
    """Complains about caches that could not hold what pictures and captions become from use to use."""
    has_cache = caching.cache_latents or caching.cache_latents_to_disk
    all_subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    subsets = [s.for_validation() if s.validation_split >= WHOLE else s for s in all_subsets]
    if has_cache and data.augmentation_variants is None and any(s.augmentations.has_variants for s in subsets):
        what = "crops and colours are drawn anew at each use, and cached latents cannot follow"
        fix = "give --augmentation_variants 4 (so many fixed ones a picture are drawn from), or cache no latents"
        problems.add(what, "--cache_latents with random_crop, color_aug or face_crop_aug_range", fix)
    for subset in subsets if caching.keeps_texts else ():
        if subset.caption_changes.varies:
            what = "captions change between uses there (they are shuffled, dropped, drawn or warmed up)"
            fix = f"switch that off for all folders, or remove {TEXT_CACHE_FLAG}"
            problems.add(what, f"{TEXT_CACHE_FLAG}, {subset.home}", fix)


def _check_masks(index: ImageIndex, problems: Problems) -> None:
    """Masks that were asked for must be there at least once in each folder."""
    for number, subset in enumerate(index.folders):
        own = np.asarray(index.subset) == number
        if subset.alpha_mask and own.any() and not np.asarray(index.has_alpha)[own].any():
            what = "alpha_mask is on, but no picture there has transparency"
            problems.add(what, str(subset.home), "give pictures with transparent parts, or switch alpha_mask off")


def _check_faces(index: ImageIndex, problems: Problems) -> list[str]:
    """Notes about pictures whose names tell of no face in them; a folder where none tells of any is a mistake."""
    notes = []
    for number, subset in enumerate(index.folders):
        if subset.augmentations.face_crop_range is None:
            continue
        records = [int(record) for record in np.flatnonzero(np.asarray(index.subset) == number)]
        faces = {record: face_of(index.names[record]) for record in records}
        without = [index.names[record] for record, face in faces.items() if face is None]
        beyond = [index.names[record] for record, face in faces.items() if face and not _is_inside(face, index, record)]
        if without and len(without) == len(records):
            what = "face_crop_aug_range is given, but no file name there ends in _X_Y_WIDTH_HEIGHT of a face"
            problems.add(what, str(subset.home), "rename the pictures, such as mira_320_180_90_110.png, or remove it")
            continue
        if without:
            told = some_of(without[:_NAMES_TOLD], len(without))
            notes.append(f"{subset.home}: {len(without)} pictures tell of no face and are cut as usual: {told}")
        if beyond:
            told = some_of(beyond[:_NAMES_TOLD], len(beyond))
            notes.append(f"{subset.home}: {len(beyond)} pictures tell of a face that is not inside them: {told}")
    return notes


def _is_inside(face: Face, index: ImageIndex, record: int) -> bool:
    """Whether a face lies in its picture: its centre does, and it is not larger than the picture."""
    size = index.size(record)
    return face.x <= size.width and face.y <= size.height and face.width <= size.width and face.height <= size.height
