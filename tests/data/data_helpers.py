"""Small real datasets on disk for the tests of library/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from library.core.sizes import Size
from library.data.buckets import BucketLimits
from library.data.caption_changes import CaptionChanges
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
        "caption_changes": CaptionChanges(),
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


def toy_tokenize(captions: list[str]) -> tuple[torch.Tensor, None]:
    """The number of the caption's bytes and then the bytes, in two chunks of 77; spawned workers can import it."""
    rows = [[len(caption.encode()), *caption.encode()] for caption in captions]
    ids = [row + [0] * (2 * 77 - len(row)) for row in rows]
    return torch.tensor(ids, dtype=torch.int64).reshape(-1, 2, 77), None


def toy_tokenize_with_weights(captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """As `toy_tokenize`, with weights that depend on the ids."""
    input_ids, _ = toy_tokenize(captions)
    return input_ids, input_ids / 100 + 1


def captions_in(input_ids: torch.Tensor) -> list[str]:
    """The captions that `toy_tokenize` was given."""
    return [bytes(row[1 : row[0] + 1]).decode() for row in input_ids.flatten(1).tolist()]


def toy_encode(pixels: torch.Tensor, latent_noise: torch.Tensor) -> torch.Tensor:
    """A stand-in for the VAE: (1, 3, H, W) and its draw (1, 4, h, w) to (1, 4, h, w)."""
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    return torch.cat([means, means.mean(1, keepdim=True)], dim=1) + 0.1 * latent_noise
