"""What the uses of a run's pictures see and say: every draw that concerns pixels, latents and captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size
from library.data.augment import (
    Augmentations,
    Choice,
    Frame,
    View,
    apply_view,
    choices_of,
    choose,
    draw_view,
    face_of,
    fixed_view,
    latent_mask,
    mirror,
)
from library.data.batch import LATENT_CHANNELS, PIXELS_PER_LATENT
from library.data.captions.caption_changes import Moment, change_caption
from library.data.description.config import SubsetConfig
from library.data.index.index import ImageIndex
from library.data.pictures.images import Pixels, load_mask, load_picture, to_tensor
from library.data.placement import Placements

_LATENT_SEED = 0  # of the VAE's fixed draws: one for all runs, so that a run with another seed can use their latents


@dataclass(frozen=True)
class Drawing:
    """What the random draws of a run depend on, beside epoch, use and purpose.

    Attributes:
        seed: the run's seed.
        variants: fixed crops and colours that each picture has; None draws them anew at each use.
        redraws_latents: the VAE's draw is made anew at each use; otherwise once for each look of a picture.
        total_steps: updates of the whole run.
    """

    seed: int
    variants: int | None = None
    redraws_latents: bool = False
    total_steps: int = 0


class Seen(NamedTuple):
    """A picture as one use sees it: pixels (3, H, W) float32 from -1 to 1; loss weights (1, h, w), None for all 1."""

    pixels: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Views:
    """The looks of all pictures of a run. `use` names one use of a picture within an epoch."""

    index: ImageIndex
    placements: Placements
    drawing: Drawing

    def use(self, record: int, repeat: int) -> str:
        """Names a use of a picture within its epoch in random draws; `repeat` is which of its uses there it is."""
        return f"{self.index.key(record)}#{repeat}"

    def caption(self, record: int, use: str, moment: Moment) -> str:
        """The caption of one use."""
        draws = generator(self.drawing.seed, moment.epoch, use, "caption")
        return change_caption(self.index.caption(record), self._subset(record).caption_changes, draws, moment)

    def augmentations(self, record: int) -> Augmentations:
        """What may differ between two uses of a picture."""
        return self._subset(record).augmentations

    def choices(self, record: int) -> list[Choice]:
        """Every fixed look of a picture, the plain one first: what a cache has to hold."""
        return choices_of(self.augmentations(record), self.drawing.variants)

    def choose(self, record: int, epoch: int, use: str) -> Choice:
        """The look that a use has."""
        return choose(self.augmentations(record), self.drawing.variants, self.drawing.seed, epoch, use)

    def file_name(self, record: int) -> str:
        """The name of a picture's file without folders: it names the picture in draws that latents on disk depend on,
        for the folder from which a path counts differs from one metadata file to the next."""
        return self.index.names[record].rpartition("/")[2]

    def fixed(self, record: int, choice: Choice) -> View:
        """One of the fixed looks, drawn from the seed and the file's name: neither repeats nor folders count."""
        picture = self.file_name(record)
        return fixed_view(self._frame(record), self.augmentations(record), choice, self.drawing.seed, picture)

    def of_use(self, record: int, choice: Choice, epoch: int, use: str) -> View:
        """What a use sees: a fixed look, or crop and colours of its own."""
        augmentations = self.augmentations(record)
        if self.drawing.variants is not None or not augmentations.has_variants:
            return self.fixed(record, choice)
        seed = self.drawing.seed
        return draw_view(
            self._frame(record), augmentations, choice, lambda purpose: generator(seed, epoch, use, purpose)
        )

    def latent_noise(self, record: int, choice: Choice) -> Tensor:
        """The VAE's own draw for one look, (4, h, w): the same in every epoch and every run.

        It depends on the file's name and the look alone, so that latents on disk serve whatever seed and dataset.
        """
        look = f"{self.file_name(record)}|{choice.variant}|{choice.flipped}"
        return normal(generator(_LATENT_SEED, NO_EPOCH, look, "latent"), self.placements.bucket_size(record))

    def new_latent_noise(self, record: int, epoch: int, use: str) -> Tensor:
        """The VAE's draw of one use, (4, h, w)."""
        return normal(generator(self.drawing.seed, epoch, use, "latent"), self.placements.bucket_size(record))

    def read(self, record: int, view: View) -> Seen:
        """Reads a picture as a use sees it, and its mask.

        Raises:
            UserError: when a file is no readable picture; it is named.
        """
        picture = load_picture(self.index.path(record), view.resized, view.crop)
        pixels = to_tensor(apply_view(picture.pixels, view))
        weights = self._weights(record, view, picture.alpha if self._subset(record).alpha_mask else None)
        if weights is None:
            return Seen(pixels, None)
        weights = mirror(weights) if view.flipped else weights
        return Seen(pixels, torch.from_numpy(latent_mask(weights, PIXELS_PER_LATENT))[None])

    def _weights(self, record: int, view: View, alpha: Pixels | None) -> Pixels | None:
        """How much each pixel counts (H, W): by its opacity, by the picture's mask, or by their product."""
        path = self.index.mask_path(record)
        if path is None:
            return alpha
        mask = load_mask(path, view.resized, view.crop)
        if alpha is None:
            return mask
        return np.round(mask.astype(np.float32) * alpha / 255).astype(np.uint8)

    def _frame(self, record: int) -> Frame:
        left, top, _, _ = self.placements.crop_box(record)
        return Frame(
            size=self.index.size(record),
            resized=self.placements.resized_size(record),
            bucket=self.placements.bucket_size(record),
            crop=(left, top),
            face=face_of(self.index.names[record]),
        )

    def _subset(self, record: int) -> SubsetConfig:
        return self.index.folders[int(self.index.subset[record])]


def normal(draws: np.random.Generator, size: Size) -> Tensor:
    """Standard normal numbers in the shape of the latents of `size` pixels, (4, h, w) float32."""
    shape = (LATENT_CHANNELS, size.height // PIXELS_PER_LATENT, size.width // PIXELS_PER_LATENT)
    return torch.from_numpy(draws.standard_normal(shape, dtype=np.float32))
