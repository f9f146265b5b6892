"""How uses see real files, and that batches with every augmentation on depend on nothing but the draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.core.sizes import Size, Span
from library.data.augment import Augmentations, Choice
from library.data.captions.caption_changes import CaptionChanges
from library.data.index.index import ImageIndex
from library.data.views import Views
from tests.data.data_helpers import (
    SEED,
    assert_equal,
    batches_seen,
    index_of,
    make_dataset,
    make_subset,
    save_picture,
    views_of,
)

EVERYTHING = Augmentations(flip=True, colour=True, random_crop=True, face_crop_range=Span(1.5, 3.0))


def see_through(path: Path, size: tuple[int, int]) -> None:
    """A picture whose left half is transparent."""
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, : size[0] // 2, 3] = 0
    Image.fromarray(pixels, "RGBA").save(path)


def world(root: Path, augmentations: Augmentations = EVERYTHING) -> ImageIndex:
    for number, size in enumerate([(64, 64), (150, 90), (140, 40), (40, 120), (90, 64)]):
        save_picture(root / "a" / f"{number}.png", size, seed=number)
    save_picture(root / "a" / "face_60_40_20_24.jpg", (150, 90), seed=9)
    see_through(root / "a" / "glass.png", (96, 64))
    tags = "{red|blue} dog, sitting, outdoors, evening"
    changes = CaptionChanges(
        shuffle=True, keep_tokens=1, tag_dropout_rate=0.2, dropout_rate=0.1, wildcard=True, warmup_step=0.5
    )
    subset = make_subset(
        root / "a",
        class_tokens=tags,
        num_repeats=1.5,
        augmentations=augmentations,
        alpha_mask=True,
        caption_changes=changes,
        loss_weight=0.5,
    )
    reg_folder = root / "reg"
    for number in range(3):
        save_picture(reg_folder / f"r{number}.png", (64, 64), seed=40 + number)
    return index_of(make_dataset(subset, make_subset(reg_folder, class_tokens="dog", is_reg=True)))


def everything(root: Path, **drawing: object) -> Views:
    return views_of(world(root), SEED, total_steps=30, **drawing)


@pytest.mark.parametrize("variants", [None, 2])
@pytest.mark.parametrize(("workers", "start_method"), [(1, "fork"), (2, "spawn")])
def test_workers_change_nothing(tmp_path: Path, variants: int | None, workers: int, start_method: str) -> None:
    views = everything(tmp_path, variants=variants)
    alone = batches_seen(views, updates=30)
    assert_equal(alone, batches_seen(views, None, workers, start_method, updates=30))
    assert any(batch.masks is not None for batch in alone)
    assert {batch.epoch for batch in alone} >= {0, 1, 2}


def test_fixed_looks_come_again_and_others_do_not(tmp_path: Path) -> None:
    def looks(variants: int | None) -> dict[str, set[bytes]]:
        found: dict[str, set[bytes]] = {}
        for batch in batches_seen(everything(tmp_path, variants=variants), updates=80):
            assert batch.pixels is not None
            for name, pixels in zip(batch.names, batch.pixels, strict=True):
                found.setdefault(name, set()).add(pixels.numpy().tobytes())
        return found

    fixed, drawn = looks(2), looks(None)
    assert all(len(pictures) <= 4 for pictures in fixed.values())
    assert sum(map(len, drawn.values())) > sum(map(len, fixed.values())) > len(fixed)
    assert len(drawn["r0.png"]) == 1  # its folder asks for nothing


def test_mirrored_pixels_and_masks(tmp_path: Path) -> None:
    views = views_of(world(tmp_path, Augmentations(flip=True)), SEED)
    record = [views.index.names[number] for number in range(len(views.index))].index("glass.png")
    assert views.choices(record) == [Choice(0, False), Choice(0, True)]
    plain, mirrored = (views.read(record, views.fixed(record, choice)) for choice in views.choices(record))
    assert torch.equal(mirrored.pixels, plain.pixels.flip(-1))
    assert plain.mask is not None and mirrored.mask is not None
    assert torch.equal(mirrored.mask, plain.mask.flip(-1))
    width = plain.mask.shape[-1]
    assert plain.mask[..., : width // 2 - 1].max() == 0 and plain.mask[..., width // 2 + 1 :].min() == 1
    assert (plain.pixels[:, :, : 8 * (width // 2 - 1)] == 1).all()  # transparent parts are white


def test_masks_count_only_where_asked(tmp_path: Path) -> None:
    index = world(tmp_path)
    (dataset,) = index.datasets
    off = replace(dataset, subsets=(replace(dataset.subsets[0], alpha_mask=False), dataset.subsets[1]))
    views = views_of(replace(index, datasets=(off,)), SEED)
    assert all(batch.masks is None for batch in batches_seen(views, updates=20))


def test_loss_weights_multiply(tmp_path: Path) -> None:
    for batch in batches_seen(everything(tmp_path), updates=10):
        assert torch.equal(batch.loss_weights, torch.where(batch.is_reg, 1.0, 0.5))


def test_latent_draws_are_new_at_each_use_where_asked(tmp_path: Path) -> None:
    for redraws, expected in ((False, 2), (True, None)):
        views = views_of(world(tmp_path, Augmentations(flip=True)), SEED, redraws_latents=redraws)
        seen: dict[str, list[bytes]] = {}
        for batch in batches_seen(views, updates=60):
            assert batch.latent_noise is not None
            for name, noise in zip(batch.names, batch.latent_noise, strict=True):
                seen.setdefault(name, []).append(noise.numpy().tobytes())
        draws = seen["1.png"]
        assert len(set(draws)) == (expected or len(draws)) and len(draws) > 4


def test_a_crop_is_what_the_plan_says(tmp_path: Path) -> None:
    views = views_of(world(tmp_path, Augmentations()), SEED)
    for record in range(len(views.index)):
        assert views.choices(record) == [Choice()]
        view = views.fixed(record, Choice())
        assert view.resized == views.placements.resized_size(record)
        assert view.crop == views.placements.crop_box(record)
        pixels = views.read(record, view).pixels
        bucket = views.placements.bucket_size(record)
        assert Size(pixels.shape[2], pixels.shape[1]) == bucket and pixels.abs().max() <= 1


def test_what_is_kept_depends_on_the_name_and_not_on_the_place(tmp_path: Path) -> None:
    """The VAE's draw on the file's name and the look alone; fixed crops and colours on the seed as well."""
    index = world(tmp_path)
    (dataset,) = index.datasets
    turned = index_of(replace(dataset, subsets=dataset.subsets[::-1]))
    one, other = views_of(index, SEED, variants=3), views_of(turned, SEED, variants=3)
    again = views_of(index, SEED + 1, variants=3)
    records = {turned.names[record]: record for record in range(len(turned))}
    draws, views_seen = set[bytes](), 0
    for record in range(len(index)):
        moved = records[index.names[record]]
        assert index.key(record) != turned.key(moved)
        for choice in one.choices(record):
            noise = one.latent_noise(record, choice)
            assert torch.equal(noise, other.latent_noise(moved, choice))
            assert torch.equal(noise, again.latent_noise(record, choice))
            assert one.fixed(record, choice) == other.fixed(moved, choice)
            draws.add(noise.numpy().tobytes())
            views_seen += one.fixed(record, choice) != again.fixed(record, choice)
    assert len(draws) == sum(len(one.choices(record)) for record in range(len(index)))
    assert views_seen > 10


def test_fixed_draws_know_the_file_by_its_own_name(tmp_path: Path) -> None:
    """A metadata file's keys may count from another folder the next time: looks and latents stay the same."""
    file = save_picture(tmp_path / "deep" / "down" / "a.png", (90, 64), 3)
    for number, key in enumerate((str(file), "down/a", "a")):
        (tmp_path / f"{number}.json").write_text(f'{{"{key}": {{}}}}', encoding="utf-8")
    homes = (tmp_path, tmp_path / "deep", tmp_path / "deep" / "down")
    seen = []
    for number, home in enumerate(homes):
        subset = make_subset(
            home, metadata_file=tmp_path / f"{number}.json", augmentations=EVERYTHING, allow_missing_captions=True
        )
        views = views_of(index_of(make_dataset(subset)), SEED, variants=3)
        choice = Choice(2, True)
        seen.append((views.index.names[0], views.fixed(0, choice), views.latent_noise(0, choice)))
    assert [name for name, _, _ in seen] == ["deep/down/a.png", "down/a.png", "a.png"]
    for _, view, noise in seen[1:]:
        assert view == seen[0][1] and torch.equal(noise, seen[0][2])
