"""The mask pictures of a subset: found by the names of its pictures, and looked at before a model is loaded."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from library.core.errors import Problems
from library.core.sizes import Size
from library.core.wording import some_of
from library.data.pictures.images import IMAGE_EXTENSIONS, Examination, examine, list_images

KEY = "conditioning_data_dir"
_NAMES_TOLD = 5
_MOST_TOLD = 20  # broken masks in one folder; the rest is counted
_LARGEST_STRETCH = 1.1  # of a mask's proportions without being told: sizes are whole numbers of pixels


def find_masks(
    folder: Path, names: Iterable[str], sizes: Sequence[Size], problems: Problems, notes: list[str]
) -> list[str]:
    """The mask file of each picture, as a path from `folder` with forward slashes.

    A mask has its picture's name without the ending, and lies in the same folder below `folder` as the picture below
    its own. Every mask is read once.

    Args:
        folder: the folder with the masks.
        names: of the pictures.
        sizes: of the pictures as seen.
        problems: receives missing folders, missing, ambiguous and broken masks.
        notes: receives masks of other proportions than their pictures.

    Returns:
        One path a picture; "" where there is none, which is a problem.
    """
    if not folder.is_dir():
        what = f"the folder of the masks does not exist (looked for {folder.absolute()})"
        problems.add(what, str(folder), f"correct {KEY}")
        return [""] * len(sizes)
    finder = _Finder(folder)
    pictures = list(names)
    found = [finder.find(name) for name in pictures]
    if missing := [name for name, mask in zip(pictures, found, strict=True) if not mask]:
        what = f"{len(missing)} of {len(found)} pictures have no mask there: {_some(missing)}"
        endings = " ".join(IMAGE_EXTENSIONS)
        fix = f"add pictures of the same names, white where the model learns (one of {endings})"
        problems.add(what, str(folder), fix)
    for stem, masks in finder.ambiguous.items():
        problems.add(f"both {' and '.join(masks)} could be the mask of {stem}", str(folder), "keep one of them")
    _examine(folder, found, sizes, problems, notes)
    return found


class _Finder:
    """Looks into each folder once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._masks: dict[str, Mapping[str, list[str]]] = {}  # folder below -> stem -> files
        self.ambiguous: dict[str, list[str]] = {}

    def find(self, name: str) -> str:
        """The mask of a picture, or "" where there is none."""
        below, slash, own = name.rpartition("/")
        if below not in self._masks:
            self._masks[below] = _by_stem(self._folder / below)
        stem = _stem(own)
        masks = self._masks[below].get(stem, [])
        if own in masks:
            return name
        if len(masks) > 1:
            self.ambiguous[f"{below}{slash}{stem}"] = masks
        return f"{below}{slash}{masks[0]}" if masks else ""


def _by_stem(folder: Path) -> Mapping[str, list[str]]:
    masks: dict[str, list[str]] = defaultdict(list)
    if folder.is_dir():
        for name in list_images(folder):
            masks[_stem(name)].append(name)
    return masks


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _examine(folder: Path, found: Sequence[str], sizes: Sequence[Size], problems: Problems, notes: list[str]) -> None:
    masks = sorted({mask for mask in found if mask})
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        examined: dict[str, Examination] = dict(
            zip(masks, pool.map(lambda mask: examine(folder / mask), masks), strict=True)
        )
    broken = [(mask, look.problem) for mask, look in examined.items() if look.problem is not None]
    for mask, reason in broken[:_MOST_TOLD]:
        problems.add(f"the mask cannot be read: {reason}", str(folder / mask), "replace the file")
    if len(broken) > _MOST_TOLD:
        problems.add(f"{len(broken) - _MOST_TOLD} more masks like these", str(folder), "replace the files")
    stretched = [
        mask for mask, size in zip(found, sizes, strict=True) if mask and _is_stretched(examined[mask].size, size)
    ]
    if stretched:
        what = f"{len(stretched)} masks have other proportions than their pictures and are stretched"
        notes.append(f"{folder}: {what}: {_some(stretched)}")


def _is_stretched(mask: Size | None, picture: Size) -> bool:
    if mask is None:
        return False
    stretch = mask.aspect_ratio / picture.aspect_ratio
    return max(stretch, 1 / stretch) > _LARGEST_STRETCH


def _some(names: Sequence[str]) -> str:
    return some_of(list(names[:_NAMES_TOLD]), len(names))
