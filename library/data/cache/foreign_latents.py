"""Latents that other programs of this field left in `.npz` files: today's fields, and the older pair of files.

Today one file has `latents`, and may have `latents_flipped` and `alpha_mask`. Earlier a picture had STEM.npz and, for
the mirrored one, STEM_flip.npz, each with a single array that NumPy called `arr_0`. Neither says which VAE made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.cache.npz_files import Arrays, read_arrays
from library.data.pictures.picture_kinds import IMAGE_EXTENSIONS

_LATENTS, _FLIPPED, _MASK, _OLDER = "latents", "latents_flipped", "alpha_mask", "arr_0"
SHARED_FIELDS = frozenset({_LATENTS, _FLIPPED, _MASK, _OLDER, "original_size", "crop_ltrb"})
_FLIP_FILE = "_flip"

ForeignLook = tuple[NDArray[np.float32], NDArray[np.float32] | None]


class Lack(Enum):
    """What a file of another program has not, and the run needs."""

    WHOLE = "are damaged"
    LATENTS = "have no finite latents of the size at which their pictures are trained"
    MIRRORED = "have no latents of the mirrored picture"
    MASK = "have no mask of the picture's transparency"
    MASK_FILE = "do not tell of which pictures in conditioning_data_dir their masks were made"


class Foreign(NamedTuple):
    """The wanted looks of a file of another program; none where it lacks something."""

    looks: tuple[ForeignLook, ...] = ()
    lacks: tuple[Lack, ...] = ()


def has_foreign_latents(arrays: Arrays) -> bool:
    """`arr_0` is what NumPy calls any array without a name, so the shape has to speak as well."""
    names = set(arrays)
    if names != {_OLDER} and not (_LATENTS in names and names <= SHARED_FIELDS):
        return False
    latents = arrays[_LATENTS if _LATENTS in names else _OLDER]
    return latents.ndim == 3 and latents.shape[0] == LATENT_CHANNELS and latents.dtype.kind == "f"


def flip_file(path: Path) -> Path | None:
    """The file of the mirrored picture beside an older entry, if there is one.

    It is not taken for that of this picture where a picture is there that has its name.
    """
    beside = path.with_name(f"{path.stem}{_FLIP_FILE}{path.suffix}")
    if not beside.is_file():
        return None
    is_another = any(beside.with_suffix(ending).exists() for ending in IMAGE_EXTENSIONS)
    return None if is_another else beside


def read_foreign(
    path: Path, arrays: Arrays, shape: tuple[int, ...], sides: Sequence[bool], needs_mask: bool
) -> Foreign:
    """The wanted looks of a file of another program, or what it lacks.

    Args:
        path: the file; the mirrored latents may stand in one beside it.
        arrays: what it holds.
        shape: what the latents must have.
        sides: False for the plain and True for the mirrored look.
        needs_mask: whether the opacity of each cell has to be there.
    """
    looks, lacks = list[ForeignLook](), list[Lack]()
    mask = _mask(arrays.get(_MASK), shape[1:]) if needs_mask else None
    for flipped in sides:
        latents = _fitting(_flipped(path, arrays) if flipped else arrays.get(_LATENTS, arrays.get(_OLDER)), shape)
        if latents is None:
            lacks.append(Lack.MIRRORED if flipped else Lack.LATENTS)
        else:
            looks.append((latents, np.ascontiguousarray(mask[:, ::-1]) if flipped and mask is not None else mask))
    if needs_mask and mask is None:
        lacks.append(Lack.MASK)
    return Foreign(lacks=tuple(lacks)) if lacks else Foreign(tuple(looks))


def _flipped(path: Path, arrays: Arrays) -> NDArray[Any] | None:
    if _FLIPPED in arrays:
        return arrays[_FLIPPED]
    beside = flip_file(path)
    if beside is None:
        return None
    try:
        found = read_arrays(beside, lambda names: names & {_OLDER, _LATENTS})
    except OSError:
        return None
    return found.arrays.get(_OLDER, found.arrays.get(_LATENTS)) if len(found.names) == 1 else None


def _fitting(latents: NDArray[Any] | None, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    if latents is None or latents.shape != shape or latents.dtype.kind != "f":
        return None
    numbers = np.asarray(latents, dtype=np.float32)
    return numbers if np.isfinite(numbers).all() else None


def _mask(mask: NDArray[Any] | None, cells: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Weights of the cells; some programs keep them for every pixel."""
    if mask is None or mask.dtype.kind != "f":
        return None
    if mask.shape == tuple(PIXELS_PER_LATENT * count for count in cells):
        blocks = mask.reshape(cells[0], PIXELS_PER_LATENT, cells[1], PIXELS_PER_LATENT)
        mask = blocks.mean(axis=(1, 3))
    return _fitting(mask, cells)
