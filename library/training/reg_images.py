"""Class images that are missing: which folders the model has to fill, with what, and whether it can. Needs no model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path

import numpy as np

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems
from library.core.randomness import NO_EPOCH, derived_seed
from library.core.sizes import Size
from library.data.description.config import DatasetConfig, Description, SubsetConfig
from library.data.index.index import ImageIndex
from library.data.pictures.images import list_images
from library.data.placement import Placements
from library.data.uses import exact_repeats
from library.options.reg_images import FLAG, RegImageOptions, check_reg_image_options
from library.training.run import Run


@dataclass(frozen=True)
class ClassImage:
    """A picture to be made.

    Attributes:
        prompt: the class tokens of its folder.
        size: that of a bucket, in pixels.
        seed: names its noise.
    """

    path: Path
    prompt: str
    size: Size
    seed: int


@dataclass(frozen=True)
class _Folder:
    """A folder of regularisation pictures; `subsets` are all that name it, `datasets` the numbers of theirs."""

    path: Path
    subsets: tuple[SubsetConfig, ...]
    datasets: tuple[int, ...]

    @property
    def prompts(self) -> set[str | None]:
        return {subset.class_tokens for subset in self.subsets}


def without_empty_folders(description: Description, options: RegImageOptions) -> Description:
    """The description without the regularisation folders that hold no picture yet, where class images are generated.

    Datasets keep their numbers. A folder that does not exist stays, so that it is told: more often than not its name is
    misspelt. So does one whose own folders hold pictures.
    """
    if options.generate_reg_images is None:
        return description
    empty = {_resolved(folder.path) for folder in _reg_folders(description) if _is_empty(folder.path)}

    def kept(dataset: DatasetConfig) -> DatasetConfig:
        subsets = (s for s in dataset.subsets if not (_is_filled(s) and _resolved(s.home) in empty))
        return replace(dataset, subsets=tuple(subsets))

    return replace(description, datasets=tuple(kept(dataset) for dataset in description.datasets))


def check_reg_images(description: Description, options: RegImageOptions, problems: Problems) -> None:
    """Complains about folders that cannot be filled, and about pictures that would be refused once they are made.

    Args:
        description: all subsets, also those of empty folders.
        problems: where it holds some already, a missing folder is one of them and not told again.
    """
    check_reg_image_options(options, problems)
    wanted = options.generate_reg_images
    if wanted is None:
        return
    subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    if not problems and not any(subset.is_reg for subset in subsets):
        fix = "give --reg_data_dir with folders named N_class, or a subset with is_reg = true and class_tokens"
        problems.add("there is no folder of regularisation pictures to fill", FLAG, fix)
    for subset in subsets:
        if subset.is_reg and subset.metadata_file is not None:
            what = "a metadata file lists its pictures, and none can be added"
            problems.add(what, f"{FLAG}, {subset.metadata_file}", "name the folder alone (image_dir, class_tokens)")
    trained = {_resolved(subset.home) for subset in subsets if not subset.is_reg}
    for folder in _reg_folders(description):
        there = _pictures_in(folder.path)
        if folder.path.is_dir() and len(there) < wanted:
            _check_folder(folder, trained, problems)
            if not there:
                _check_empty_folder(folder, subsets, problems)


def needs_reg_images(run: Run) -> tuple[ClassImage, ...]:
    """The class images that a checked run has to make before it trains; none where none are asked for or missing."""
    wanted, seed = run.options.reg_images.generate_reg_images, run.options.training.seed
    if wanted is None:
        return ()
    named: Counter[str] = Counter()
    found: list[ClassImage] = []
    for folder in _reg_folders(run.description):
        prompt = next(iter(folder.prompts)) or ""
        key = f"{folder.path.name}/{prompt}"
        slots = _missing_slots(_names(run.index, folder), wanted, seed)
        shapes = spread(*_bucket_uses(run.index, run.placements, folder.datasets))
        sizes = [next(shapes) for _ in range(max(slots, default=-1) + 1)]
        for slot in slots:
            # folders of one name and class must not get the same pictures
            draw = derived_seed(seed, NO_EPOCH, f"{key}/{named[key]}/{slot}", "class image")
            found.append(ClassImage(folder.path / _file_name(seed, slot), prompt, sizes[slot], draw))
        named[key] += 1
    return tuple(found)


def notes_of(description: Description, index: ImageIndex, options: RegImageOptions) -> list[str]:
    """What is told of folders that are not full, by those who only look at the pictures."""
    wanted = options.generate_reg_images or 0
    missing = [(folder, wanted - len(_names(index, folder))) for folder in _reg_folders(description)]
    return [
        f"{folder.path}: {number} of {wanted} class images are not made yet; the start of a training makes them"
        for folder, number in missing
        if number > 0
    ]


def spread(sizes: Sequence[Size], uses: Sequence[Fraction]) -> Iterator[Size]:
    """Sizes without end, each as often as its share of the uses says: also of the first few, as nearly as can be.

    Args:
        sizes: which there are.
        uses: how often each is used, above 0.
    """
    scale = math.lcm(*(use.denominator for use in uses))
    weights = [int(use * scale) for use in uses]
    total, given = sum(weights), [0] * len(weights)
    for number in count(1):
        # the one that is furthest behind its share; of equals the first
        chosen = max(range(len(weights)), key=lambda i: (weights[i] * number - given[i] * total, -i))
        given[chosen] += 1
        yield sizes[chosen]


def _check_folder(folder: _Folder, trained: set[Path], problems: Problems) -> None:
    """Whether pictures of a class can be put into a folder, and be trained on as they are made."""
    place = str(folder.path)
    if None in folder.prompts:
        what = "nothing says of what class its pictures are: it has no class tokens"
        problems.add(what, f"{FLAG}, {place}", "name the folder N_class, or give class_tokens in the dataset file")
    elif len(folder.prompts) > 1:
        told = " and ".join(repr(prompt) for prompt in sorted(prompt or "" for prompt in folder.prompts))
        problems.add(f"it has two class tokens, {told}", f"{FLAG}, {place}", "give a folder for each class")
    if _resolved(folder.path) in trained:
        what = "it holds training pictures as well, and class images would be taken for such"
        problems.add(what, f"{FLAG}, {place}", "give the class images a folder of their own")
    for subset in folder.subsets:
        if subset.conditioning_data_dir is not None:
            what = "it has conditioning_data_dir, and generated pictures have no masks there"
            problems.add(what, f"{FLAG}, {place}", "remove conditioning_data_dir from the regularisation pictures")
    if error := why_not_writable(folder.path):
        problems.add(f"no pictures can be put there: {error.strerror or error}", place, "mend the rights of the folder")


def _check_empty_folder(folder: _Folder, subsets: Sequence[SubsetConfig], problems: Problems) -> None:
    """What the checks of pictures would find in a folder with nothing but generated ones, hours later."""
    place, home = str(folder.path), _resolved(folder.path)
    elsewhere = {subset.caption_extension_from for subset in subsets if _resolved(subset.home) != home}
    for subset in folder.subsets:
        if subset.alpha_mask:
            what = "alpha_mask is on, and generated pictures have no transparency"
            problems.add(what, place, "switch alpha_mask off for the regularisation pictures")
        if subset.augmentations.face_crop_range is not None:
            what = "face_crop_aug_range is given, and nothing tells where faces are in generated pictures"
            problems.add(what, place, "remove it from the regularisation pictures")
        if subset.caption_extension_from is not None and subset.caption_extension_from not in elsewhere:
            what = "generated pictures have no caption files, so the ending of caption files has no effect"
            problems.add(what, subset.caption_extension_from, "remove it there")


def _reg_folders(description: Description) -> list[_Folder]:
    """The folders that are filled, in the order of the description; one that several subsets name is told once."""
    found: dict[Path, _Folder] = {}
    for number, dataset in enumerate(description.datasets):
        for subset in filter(_is_filled, dataset.subsets):
            key = _resolved(subset.home)
            known = found.get(key, _Folder(subset.home, (), ()))
            found[key] = _Folder(known.path, (*known.subsets, subset), (*known.datasets, number))
    return list(found.values())


def _is_filled(subset: SubsetConfig) -> bool:
    return subset.is_reg and subset.metadata_file is None


def _is_empty(folder: Path) -> bool:
    """Whether no picture lies in a folder that can be read, or in the folders directly below it."""
    try:
        return not list_images(folder) and not any(list_images(entry) for entry in folder.iterdir() if entry.is_dir())
    except OSError:  # told when it is read
        return False


def _pictures_in(folder: Path) -> list[str]:
    try:
        return list_images(folder)
    except OSError:  # told when it is read
        return []


def _resolved(path: Path) -> Path:
    return path.resolve()


def _names(index: ImageIndex, folder: _Folder) -> set[str]:
    """The usable pictures that lie in a folder."""
    home, folders = _resolved(folder.path), enumerate(index.folders)
    numbers = [number for number, subset in folders if _is_filled(subset) and _resolved(subset.home) == home]
    records = np.flatnonzero(np.isin(np.asarray(index.subset), numbers))
    return {index.names[int(record)] for record in records}


def _file_name(seed: int, slot: int) -> str:
    return f"generated_{seed}_{slot:05d}.png"


def _missing_slots(names: set[str], wanted: int, seed: int) -> list[int]:
    """The numbers of the pictures that are to be made: the lowest that are free.

    So a run that was killed goes on with what it would have made, whichever of its processes had come how far.
    """
    form = re.compile(rf"generated_{seed}_(\d+)\.png")
    taken = {int(match[1]) for match in map(form.fullmatch, names) if match}
    free = (slot for slot in count() if slot not in taken)
    return [next(free) for _ in range(wanted - len(names))]


def _bucket_uses(
    index: ImageIndex, placements: Placements, datasets: Sequence[int]
) -> tuple[list[Size], list[Fraction]]:
    """The bucket sizes of the training pictures of some datasets, and how often an epoch uses each."""
    uses: dict[Size, Fraction] = {}
    buckets, subsets, in_dataset = (np.asarray(c) for c in (placements.bucket, index.subset, index.dataset))
    for number, subset in enumerate(index.folders):
        if subset.is_reg or subset.is_validation:
            continue
        own = buckets[(subsets == number) & np.isin(in_dataset, datasets)]
        for bucket, pictures in zip(*np.unique(own, return_counts=True), strict=True):
            size = placements.buckets[int(bucket)]
            uses[size] = uses.get(size, Fraction(0)) + int(pictures) * exact_repeats(subset.num_repeats)
    sizes = sorted(uses)
    return sizes, [uses[size] for size in sizes]
