"""Pictures with mirrored latents of another program: they are mirrored in training with no option that asks for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from library.data.augment import Augmentations
from library.data.cache.disk_latents import LatentFiles
from library.data.cache.latent_files import State, read_entry
from library.data.views import Views


@dataclass(frozen=True)
class MirroredViews(Views):
    """The looks of all pictures; those marked in `mirrored` (one bool a picture) are mirrored in half of their uses."""

    mirrored: NDArray[np.bool_]

    def augmentations(self, record: int) -> Augmentations:
        """What may differ between two uses of a picture."""
        augmentations = super().augmentations(record)
        return replace(augmentations, flip=True) if self.mirrored[record] else augmentations


def with_foreign_mirrors(files: LatentFiles) -> LatentFiles:
    """The same files; where another program left usable latents of the plain and the mirrored picture, both are used.

    To be called by every process before any of them fills the cache.
    """
    views, mirrored = files.views, np.zeros(len(files.views.index), dtype=np.bool_)
    for record in range(len(views.index)):
        path = files.paths.latents(record)
        if not views.augmentations(record).flip and path.is_file():
            entry = read_entry(path, files.expected(record, 0, ""), (False, True), files.may_be_foreign(0))
            mirrored[record] = entry.state is State.TRUSTED
    if not mirrored.any():
        return files
    return replace(files, views=MirroredViews(views.index, views.placements, views.drawing, mirrored))
