"""Small real datasets on disk for the tests of library/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from library.core.sizes import Size
from library.data.buckets import BucketLimits
from library.data.config import DatasetConfig, Description, SubsetConfig
from library.data.index import ImageIndex, build_index

LIMITS = BucketLimits(min_size=32, max_size=128, step=16)


def save_picture(path: Path, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """A smooth colour field that differs in every corner; its kind follows from the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    Image.fromarray(corners).resize(size, Image.Resampling.BILINEAR).save(path)
    return path


def make_subset(folder: Path, **changes: object) -> SubsetConfig:
    values: dict[str, object] = {
        "image_dir": folder,
        "num_repeats": 1,
        "class_tokens": "shs dog",
        "is_reg": False,
        "caption_extensions": (".txt", ".caption"),
        "allow_missing_captions": False,
    }
    return SubsetConfig(**{**values, **changes})  # type: ignore[arg-type]


def make_dataset(*subsets: SubsetConfig, **changes: object) -> DatasetConfig:
    values: dict[str, object] = {"resolution": Size(64, 64), "batch_size": 2, "bucketing": LIMITS}
    return DatasetConfig(**{**values, **changes}, subsets=subsets)  # type: ignore[arg-type]


def index_of(*datasets: DatasetConfig, prior_loss_weight: float = 1.0) -> ImageIndex:
    return build_index(Description(datasets, ()), prior_loss_weight)


def make_world(root: Path, num_repeats: int = 2) -> ImageIndex:
    """Seven training pictures of three shapes and three regularisation pictures."""
    sizes = [(64, 64), (90, 90), (64, 64), (128, 40), (120, 40), (40, 120), (70, 64)]
    for number, size in enumerate(sizes):
        save_picture(root / "dogs" / f"{number}.png", size, seed=number)
    (root / "dogs" / "1.txt").write_text("a dog, outdoors\n", encoding="utf-8")
    for number in range(3):
        save_picture(root / "reg" / f"r{number}.jpg", (64, 64), seed=50 + number)
    training = make_subset(root / "dogs", num_repeats=num_repeats)
    reg = make_subset(root / "reg", class_tokens="dog", is_reg=True)
    return index_of(make_dataset(training, reg), prior_loss_weight=0.5)


def toy_tokenize(captions: list[str]) -> torch.Tensor:
    """Token ids that depend on the text only; defined here so that spawned workers can import it."""
    rows = [[sum(caption.encode()) % 1000 + column for column in range(77)] for caption in captions]
    return torch.tensor(rows, dtype=torch.int64)


def toy_encode(pixels: torch.Tensor, latent_noise: torch.Tensor) -> torch.Tensor:
    """A stand-in for the VAE: (1, 3, H, W) and its draw (1, 4, h, w) to (1, 4, h, w)."""
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    return torch.cat([means, means.mean(1, keepdim=True)], dim=1) + 0.1 * latent_noise
