"""Small real datasets on disk for the tests of library/data."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.core.sizes import Size
from library.data.batch import Batch
from library.data.buckets import BucketLimits
from library.data.cache.filling import Encoding, draw_latents
from library.data.captions.caption_changes import CaptionChanges
from library.data.dataset import LatentStore, TrainingDataset, make_loader
from library.data.description.config import DatasetConfig, Description, SubsetConfig
from library.data.index.index import ImageIndex, build_index
from library.data.placement import place_all
from library.data.planner import Planner, RequestStream
from library.data.views import Drawing, Views
from library.diffusion.noise import NoiseSource
from library.options.objective import ObjectiveOptions

LIMITS = BucketLimits(min_size=32, max_size=128, step=16)
SEED = 11


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


def views_of(index: ImageIndex, seed: int, **drawing: object) -> Views:
    """How uses see the pictures of an index."""
    return Views(index, place_all(index), Drawing(seed, **drawing))  # type: ignore[arg-type]


def noise_of(views: Views, **options: object) -> NoiseSource:
    """The draws of a run with these pictures."""
    return NoiseSource(views.drawing.seed, ObjectiveOptions(**options))  # type: ignore[arg-type]


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


class ToyVae:
    """A stand-in for the VAE; it keeps how many pictures it was given together."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, pixels: torch.Tensor, latent_noise: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) and its draw (B, 4, h, w) to (B, 4, h, w)."""
        return draw_latents(self.distribution(pixels).distribution, latent_noise)

    def distribution(self, pixels: torch.Tensor) -> Encoding:
        """(B, 3, H, W) to mean and deviation (B, 8, h, w)."""
        self.counts.append(len(pixels))
        means = torch.nn.functional.avg_pool2d(pixels, 8)
        means = torch.cat([means, means.mean(1, keepdim=True)], dim=1)
        return Encoding(torch.cat([means, 0.1 + 0.05 * means.abs()], dim=1))


toy_encode = ToyVae()


def batches_seen(
    views: Views, store: LatentStore | None = None, workers: int = 0, start_method: str | None = None, updates: int = 12
) -> list[Batch]:
    """The first batches of a run, two pictures each."""
    dataset = TrainingDataset(views, toy_tokenize, noise_of(views), store)
    stream = RequestStream(Planner(views.index, views.placements, [2], SEED), 0, updates)
    return list(make_loader(dataset, stream, workers, pin_memory=False, start_method=start_method))


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for item in fields(Batch):
            a, b = getattr(one, item.name), getattr(other, item.name)
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, item.name
