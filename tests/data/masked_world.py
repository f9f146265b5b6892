"""Pictures with mask pictures on disk, for the tests of masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from library.core.sizes import Size
from library.data.description.config import SubsetConfig
from library.data.index.index import ImageIndex
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture

SIZES = {"a.png": (64, 64), "b.jpg": (150, 90), "c.png": (40, 120), "d.png": (90, 64)}


def save_mask(path: Path, size: tuple[int, int], black_share: float = 0.5) -> Path:
    """Black at the left, white at the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0]), 255, dtype=np.uint8)
    pixels[:, : round(size[0] * black_share)] = 0
    Image.fromarray(pixels).save(path)
    return path


def save_world(root: Path) -> None:
    """Four pictures of differing shapes; masks of the same size, of another size, and of another kind of file."""
    for seed, (name, size) in enumerate(SIZES.items()):
        save_picture(root / "pictures" / name, size, seed=seed)
    save_mask(root / "masks" / "a.webp", (64, 64))
    save_mask(root / "masks" / "b.png", (75, 45))
    save_mask(root / "masks" / "c.png", (80, 240))
    save_mask(root / "masks" / "d.bmp", (90, 64))
    for seed in range(2):
        save_picture(root / "reg" / f"r{seed}.png", (64, 64), seed=30 + seed)


def masked_subset(root: Path, **changes: object) -> SubsetConfig:
    return make_subset(root / "pictures", **{"conditioning_data_dir": root / "masks", **changes})


def masked_index(root: Path, **changes: object) -> ImageIndex:
    """The pictures with their masks, and regularisation pictures without any."""
    reg = make_subset(root / "reg", class_tokens="dog", is_reg=True)
    return index_of(make_dataset(masked_subset(root, **changes), reg, resolution=Size(64, 64)))
