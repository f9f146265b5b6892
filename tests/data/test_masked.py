"""Masks from pictures to gradients: cut and mirrored with their pictures, the same from every cache, exactly zero where
they are black."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from library.core.errors import Problems, UserError
from library.data.augment import Augmentations, Choice
from library.data.batch import Batch
from library.data.cache.cache_checks import check_disk_cache
from library.data.cache.disk_latents import LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.latent_files import FINGERPRINT, State
from library.data.cache.latents import fill_memory_store
from library.data.dataset import LatentStore
from library.data.planner import Planner
from library.data.report.dataset_report import Source, TokenCount, report_on
from library.data.report.start_report import look_words
from library.data.views import Views
from library.diffusion.noise import Noise
from library.diffusion.objective import Captions, Objective
from library.options.caching import CachingOptions
from tests.data.cache.cache_helpers import looks_of, save_transparent
from tests.data.data_helpers import SEED, assert_equal, batches_seen, index_of, make_dataset, toy_encode, views_of
from tests.data.masked_world import masked_index, masked_subset, save_mask, save_world

FLIPPED = Augmentations(flip=True)
WORK = VaeWork("ab" * 16)
_MARGIN = 5  # pixels beside an edge that scaling may blend


def views_with_masks(root: Path, **changes: object) -> Views:
    save_world(root)
    return views_of(masked_index(root, **{"augmentations": FLIPPED, **changes}), SEED)


def fill(views: Views) -> tuple[LatentStore, Reuse]:
    return fill_disk_store(LatentFiles(views, EntryPaths(views.index), WORK), toy_encode, 0)


def edge_of(views: Views, record: int, choice: Choice) -> float:
    """Where black ends in the pixels of a look, from the left: beyond it lies white, or before it if mirrored."""
    view = views.fixed(record, choice)
    edge = view.resized.width / 2 - view.crop[0]
    return view.crop[2] - view.crop[0] - edge if view.flipped else edge


def black_and_white(views: Views, record: int, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
    """For each column of cells whether it is black all over, and whether white; near the edge it is neither."""
    edge, width = edge_of(views, record, choice), views.placements.bucket_size(record).width
    left = np.arange(width // 8) * 8
    before, behind = left + 8 <= edge - _MARGIN, left >= edge + _MARGIN
    return (behind, before) if choice.flipped else (before, behind)


def test_masks_are_cut_scaled_and_mirrored_with_their_pictures(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    for record, choice in looks_of(views):
        seen = views.read(record, views.fixed(record, choice))
        if views.index.mask_path(record) is None:
            assert seen.mask is None
            continue
        size = views.placements.bucket_size(record)
        assert seen.mask is not None and seen.mask.shape == (1, size.height // 8, size.width // 8)
        black, white = black_and_white(views, record, choice)
        assert black.any() and white.any()
        assert (seen.mask[0][:, black] == 0).all() and (seen.mask[0][:, white] == 1).all()


def test_grey_weighs_in_proportion(tmp_path: Path) -> None:
    save_world(tmp_path)
    Image.new("L", (64, 64), 51).save(tmp_path / "masks" / "a.webp", lossless=True)
    views = views_of(masked_index(tmp_path), SEED)
    mask = views.read(0, views.fixed(0, Choice())).mask
    assert mask is not None and mask.unique().tolist() == [pytest.approx(51 / 255)]


def test_transparency_and_masks_multiply(tmp_path: Path) -> None:
    save_world(tmp_path)
    save_transparent(tmp_path / "pictures" / "a.png", (64, 64))
    index = masked_index(tmp_path)
    only_mask = views_of(index, SEED)
    both = views_of(masked_index(tmp_path, alpha_mask=True), SEED)
    alpha = views_of(index_of(make_dataset(masked_subset(tmp_path, conditioning_data_dir=None, alpha_mask=True))), SEED)
    masks = [views.read(0, views.fixed(0, Choice())).mask for views in (only_mask, alpha, both)]
    assert all(mask is not None for mask in masks)
    own, opacity, product = (mask[0] for mask in masks if mask is not None)
    assert not torch.equal(own, product) and not torch.equal(opacity, product)
    torch.testing.assert_close(product, own * opacity, atol=1 / 255, rtol=0)


def test_face_and_random_crops_take_the_mask_along(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path, augmentations=Augmentations(flip=True, random_crop=True))
    seen = {name: 0 for name in ("b.jpg", "d.png")}
    for record in range(len(views.index)):
        name = views.index.names[record]
        for use in range(6 if name in seen else 0):
            view = views.of_use(record, Choice(0, use % 2 == 1), 0, str(use))
            look = views.read(record, view)
            assert look.mask is not None
            mask = look.mask[0, 0].numpy()
            edge = view.resized.width / 2 - view.crop[0]
            lefts = np.arange(len(mask)) * 8
            black = lefts + 8 <= edge - _MARGIN
            assert (mask[::-1] if view.flipped else mask)[black].max(initial=0) == 0
            seen[name] += int(black.any())
    assert all(seen.values())


@pytest.mark.parametrize("kind", ["memory", "disk", "disk again"])
@pytest.mark.parametrize("redraws", [False, True])
def test_caches_give_the_same_masks(tmp_path: Path, kind: str, redraws: bool) -> None:
    save_world(tmp_path)
    views = views_of(masked_index(tmp_path, augmentations=FLIPPED), SEED, redraws_latents=redraws)
    if kind == "disk again":
        fill(views)
    store = fill_memory_store(views, toy_encode, 0) if kind == "memory" else fill(views)[0]
    plain, cached = batches_seen(views), batches_seen(views, store)
    assert any(batch.masks is not None for batch in plain)
    for one, other in zip(plain, cached, strict=True):
        assert (one.masks is None) == (other.masks is None)
        assert one.masks is None or other.masks is None or torch.equal(one.masks, other.masks)


def test_workers_change_no_mask(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    assert_equal(batches_seen(views), batches_seen(views, None, 1, "fork"))


class FreeUnet(nn.Module):
    """Predicts numbers of its own, so that each cell has a gradient for itself."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.prediction = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.prediction)


def gradients(batch: Batch) -> torch.Tensor:
    """Of the loss by every number of the prediction."""
    unet = FreeUnet(batch.noise.shape)
    objective = Objective(unet, None, lambda *_: torch.zeros(0), None, "epsilon", 0.18215)
    latents = batch.latents if batch.latents is not None else torch.zeros_like(batch.noise)
    captions = Captions(batch.input_ids, states=torch.zeros(len(batch.names), 1, 1))
    objective(latents, Noise(batch.noise), batch.timesteps, captions, batch.loss_weights, batch.masks, False).backward()
    assert unet.prediction.grad is not None
    return unet.prediction.grad


def looks_in(views: Views, batch: Batch) -> Iterator[tuple[int, Choice]]:
    """Record and look of each picture of a batch; the looks are told by the masks themselves."""
    names = [views.index.names[record] for record in range(len(views.index))]
    for row, name in enumerate(batch.names):
        record = names.index(name)
        found = batch.masks is not None and bool(batch.masks[row, 0, 0, 0] > batch.masks[row, 0, 0, -1])
        yield record, Choice(0, found)


@pytest.mark.parametrize("kind", ["none", "memory", "disk"])
def test_black_has_no_gradient_at_all(tmp_path: Path, kind: str) -> None:
    """With and without caches, mirrored or not, beside regularisation pictures, which count fully."""
    views = views_with_masks(tmp_path)
    store = {
        "none": lambda: None,
        "memory": lambda: fill_memory_store(views, toy_encode, 0),
        "disk": lambda: fill(views)[0],
    }
    seen = set[tuple[str, bool]]()
    for batch in batches_seen(views, store[kind](), updates=30):
        for grad, (record, choice) in zip(gradients(batch), looks_in(views, batch), strict=True):
            if views.index.mask_path(record) is None:
                assert (grad != 0).all()
                continue
            black, white = black_and_white(views, record, choice)
            assert (grad[:, :, black] == 0).all() and (grad[:, :, white] != 0).all()
            seen.add((views.index.names[record], choice.flipped))
    assert seen == {(name, flipped) for name in ("a.png", "b.jpg", "c.png", "d.png") for flipped in (False, True)}


def test_transparent_parts_have_no_gradient_either(tmp_path: Path) -> None:
    """Scaling must not let ripples of the opaque side through."""
    pixels = np.random.default_rng(3).integers(0, 256, (150, 200, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    pixels[:, :100, 3] = 0
    (tmp_path / "glass").mkdir()
    Image.fromarray(pixels, "RGBA").save(tmp_path / "glass" / "g.png")
    subset = masked_subset(tmp_path, image_dir=tmp_path / "glass", conditioning_data_dir=None, alpha_mask=True)
    (batch,) = batches_seen(views_of(index_of(make_dataset(subset)), SEED), updates=1)
    assert batch.masks is not None
    edge = batch.noise.shape[-1] // 2
    grad = gradients(batch)
    assert (grad[..., : edge - 1] == 0).all() and (grad[..., edge + 1 :] != 0).all()


def _state(views: Views) -> dict[State, int]:
    _, reuse = fill(views)
    return {state: count for state, count in reuse.counts.items() if count and state is not State.FITS}


def test_an_entry_belongs_to_the_content_of_its_mask(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    assert _state(views) == {State.MISSING: 6} and _state(views) == {}
    content = (tmp_path / "masks" / "c.png").read_bytes()
    save_mask(tmp_path / "masks" / "c.png", (80, 240), black_share=0.25)
    changed = views_of(masked_index(tmp_path, augmentations=FLIPPED), SEED)
    assert _state(changed) == {State.MASK: 1} and _state(changed) == {}
    (tmp_path / "masks" / "c.png").unlink()
    (tmp_path / "masks" / "c.bmp").write_bytes(content)  # the old content under another name, whatever its ending
    assert _state(views_of(masked_index(tmp_path, augmentations=FLIPPED), SEED)) == {State.MASK: 1}


def test_masks_that_are_not_asked_for_any_more_stay_and_do_not_count(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    fill(views)
    plain = views_of(masked_index(tmp_path, augmentations=FLIPPED, conditioning_data_dir=None), SEED)
    store, reuse = fill(plain)
    assert reuse.encoded == 0 and all(store.get(*look).mask is None for look in looks_of(plain))
    assert _state(views) == {}
    alpha = views_of(masked_index(tmp_path, augmentations=FLIPPED, alpha_mask=True), SEED)
    assert _state(alpha) == {}  # opaque pictures have no other mask than that of the file


def test_transparency_alone_is_not_a_mask_file(tmp_path: Path) -> None:
    save_world(tmp_path)
    save_transparent(tmp_path / "pictures" / "a.png", (64, 64))
    alpha = views_of(masked_index(tmp_path, conditioning_data_dir=None, alpha_mask=True), SEED)
    assert _state(alpha) == {State.MISSING: 6}
    assert _state(views_of(masked_index(tmp_path, alpha_mask=True), SEED)) == {State.MASK: 4}
    assert _state(views_of(masked_index(tmp_path), SEED)) == {State.MASK: 1}
    assert _state(alpha) == {State.MASK: 1}


def test_entries_from_before_masks_had_files_are_made_anew(tmp_path: Path) -> None:
    """Their masks were scaled with ripples, and their fingerprints say nothing of mask files."""
    save_world(tmp_path)
    save_transparent(tmp_path / "pictures" / "a.png", (64, 64))
    views = views_of(masked_index(tmp_path, conditioning_data_dir=None, alpha_mask=True), SEED)
    fill(views)
    for path in (tmp_path / "pictures").glob("*.npz"):
        with np.load(path, allow_pickle=False) as fields:
            content = {name: fields[name] for name in fields.files}
        stored = json.loads(str(content[FINGERPRINT]))
        del stored["mask"]
        np.savez(path, **{**content, FINGERPRINT: np.array(json.dumps(stored))})
    assert _state(views) == {State.MASK: 1}  # those of opaque pictures are as good as ever


def test_a_mask_that_changes_while_it_trains_is_not_mixed_in(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    store, _ = fill(views)
    save_mask(tmp_path / "masks" / "a.webp", (64, 64), black_share=0.1)
    fill(views)  # another run
    with pytest.raises(UserError, match="not those of the start any more"):
        store.get(0, Choice())
    assert store.get(1, Choice()).mask is not None


def test_latents_of_other_programs_do_not_stand_in_for_masks_of_files(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path, augmentations=Augmentations())
    shape = (4, 8, 8)
    path = tmp_path / "pictures" / "a.npz"
    np.savez(path, latents=np.zeros(shape, np.float32), alpha_mask=np.ones((8, 8), np.float32))
    files = LatentFiles(views, EntryPaths(views.index), WORK, trusts_foreign=True)
    with pytest.raises(UserError, match="conditioning_data_dir"):
        fill_disk_store(files, toy_encode, 0)
    problems = Problems()
    caching = CachingOptions(cache_latents_to_disk=True, trust_foreign_latents=True)
    check_disk_cache(views.index, views.placements, problems, caching)
    assert [problem.what for problem in problems] == [
        "latents of another program are trusted and do not tell of which pictures in conditioning_data_dir their masks "
        f"were made: {path}"
    ]


def test_what_is_there_is_known_before_a_vae_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that cannot be written to, an entry without its mask stands in the way, one with a mask does not."""
    monkeypatch.setattr(
        "library.data.cache.cache_checks.why_not_writable", lambda path: PermissionError(13, "read only")
    )
    views = views_with_masks(tmp_path)

    def told() -> list[str]:
        problems = Problems()
        check_disk_cache(views.index, views.placements, problems, CachingOptions(cache_latents_to_disk=True))
        return [problem.what for problem in problems]

    fill(views_of(masked_index(tmp_path, augmentations=FLIPPED, conditioning_data_dir=None), SEED))
    (what,) = told()
    assert "4 without the picture's mask, or with another one" in what
    fill(views)
    assert told() == []


def test_a_mask_that_is_gone_is_named(tmp_path: Path) -> None:
    views = views_with_masks(tmp_path)
    (tmp_path / "masks" / "a.webp").unlink()
    with pytest.raises(UserError, match=r"a\.webp"):
        views.read(0, views.fixed(0, Choice()))
    with pytest.raises(UserError, match=r"a\.webp"):
        fill(views)


def test_reports_tell_of_masks(tmp_path: Path) -> None:
    save_world(tmp_path)
    words = list(look_words(masked_subset(tmp_path)))
    assert words == [f"loss weighted by the masks in {tmp_path / 'masks'}"]
    index = masked_index(tmp_path)
    views = views_of(index, SEED)
    source = Source(views, Planner(index, views.placements, [2], SEED), lambda caption: TokenCount(1, 0))
    assert [picture.mask for picture in report_on(source).images] == [True] * 4 + [False] * 2
