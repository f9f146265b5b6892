"""Pictures with every augmentation, and VAEs that misbehave, for the tests of caches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.core.sizes import Size
from library.data.augment import Augmentations, Choice
from library.data.cache.filling import Encoding, Processes
from library.data.index.index import ImageIndex
from library.data.views import Views
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture, views_of

EVERYTHING = Augmentations(flip=True, colour=True, random_crop=True)
Look = tuple[int, Choice]


def make_varied_world(root: Path) -> ImageIndex:
    """Pictures that look different at each use, one of them with transparency, and plain ones of the same shapes."""
    for seed, size in enumerate([(90, 70), (128, 40), (70, 64)]):
        save_picture(root / "varied" / f"{seed}.png", size, seed=seed)
    save_transparent(root / "varied" / "clear.png", (80, 100))
    for seed in range(3):
        save_picture(root / "plain" / f"p{seed}.png", (64, 64 + 30 * (seed % 2)), seed=20 + seed)
    varied = make_subset(root / "varied", augmentations=EVERYTHING, alpha_mask=True)
    return index_of(make_dataset(varied, make_subset(root / "plain"), resolution=Size(64, 64)))


def varied_views(root: Path, seed: int = 3, **drawing: object) -> Views:
    return views_of(make_varied_world(root), seed, **{"variants": 3, **drawing})


def save_transparent(path: Path, size: tuple[int, int]) -> Path:
    """Clear at the left, opaque at the right, another slope at the top."""
    save_picture(path, size, seed=8)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    alpha = np.linspace(0, 255, size[0])[None] * np.linspace(0.5, 1, size[1])[:, None]
    Image.fromarray(np.dstack([pixels, alpha.astype(np.uint8)])).save(path)
    return path


def looks_of(views: Views) -> list[Look]:
    """Every look of every picture."""
    return [(record, choice) for record in range(len(views.index)) for choice in views.choices(record)]


@dataclass
class Gathered:
    """Stands for processes that fill one cache: their tensors are added as they would be between processes."""

    count: int
    tensors: dict[int, list[Tensor]] = field(default_factory=dict)

    def process(self, number: int) -> Processes:
        """One that hands its tensors over and gets them back as they are."""
        seen = self.tensors.setdefault(number, [])
        return Processes(number, self.count, lambda tensor: seen.append(tensor.clone()) or tensor)  # type: ignore[func-returns-value]

    def joined(self, number: int) -> Processes:
        """One that gets the sums, once all have handed theirs over."""
        sums = iter([sum(parts[1:], parts[0]) for parts in zip(*self.tensors.values(), strict=True)])
        return Processes(number, self.count, lambda tensor: next(sums))


class DarkVae:
    """Gives what is not finite for pictures with a dark corner, until they are encoded in float."""

    def __init__(self, is_redone: bool) -> None:
        self._is_redone = is_redone

    def distribution(self, pixels: Tensor) -> Encoding:
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        found = torch.cat([means, means[:, :1], means.abs(), means[:, :1].abs()], dim=1)
        dark = tuple(row for row, picture in enumerate(pixels) if picture[:, 0, 0].mean() < -0.2)
        if not self._is_redone:
            found[list(dark)] = torch.nan
            return Encoding(found)
        return Encoding(found, dark)
