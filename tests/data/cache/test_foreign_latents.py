"""Latents that other programs left: which are taken where they are trusted, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from library.data.augment import Choice
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.latent_files import Fingerprint, State, read_entry
from library.data.cache.mirrored import with_foreign_mirrors
from library.data.index.index import ImageIndex
from tests.data.data_helpers import (
    SEED,
    batches_seen,
    index_of,
    make_dataset,
    make_subset,
    save_picture,
    toy_encode,
    views_of,
)

EXPECTED = Fingerprint("ab" * 16, "cd" * 16, (64, 64), (0, 0, 64, 64), 3, "0/0/cat.png")
PLAIN, MIRRORED = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)


def trusted(path: Path, expected: Fingerprint = EXPECTED, flipped: bool = True) -> list[NDArray[np.float32]] | None:
    entry = read_entry(path, expected, (False, True) if flipped else (False,), trusts_foreign=True)
    assert entry.state in (State.TRUSTED, State.FOREIGN)
    return [look.latents for look in entry.looks] or None


def assert_both(found: list[NDArray[np.float32]] | None) -> None:
    assert found is not None and np.array_equal(found[0], PLAIN) and np.array_equal(found[1], MIRRORED)


def test_todays_fields_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cat.npz"
    np.savez(path, latents=PLAIN, latents_flipped=MIRRORED, original_size=[90, 90], crop_ltrb=[0, 0, 64, 64])
    assert_both(trusted(path))
    assert read_entry(path, EXPECTED, (False,)).state is State.FOREIGN


def test_the_older_pair_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "cat.npz", PLAIN)
    assert trusted(tmp_path / "cat.npz") is None
    np.savez(tmp_path / "cat_flip.npz", MIRRORED)
    assert_both(trusted(tmp_path / "cat.npz"))
    (tmp_path / "cat_flip.npz").write_bytes(b"torn")
    assert trusted(tmp_path / "cat.npz") is None
    found = trusted(tmp_path / "cat.npz", flipped=False)
    assert found is not None and np.array_equal(found[0], PLAIN)


def test_latents_of_a_picture_called_flip_are_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "cat.npz", PLAIN)
    np.savez(tmp_path / "cat_flip.npz", MIRRORED)
    save_picture(tmp_path / "cat_flip.png")
    assert trusted(tmp_path / "cat.npz") is None


@pytest.mark.parametrize("latents", [PLAIN[:, :4], np.full_like(PLAIN, np.nan)], ids=["another shape", "not finite"])
def test_what_cannot_be_this_picture_is_not_taken(tmp_path: Path, latents: NDArray[np.float32]) -> None:
    np.savez(tmp_path / "cat.npz", latents=latents)
    assert trusted(tmp_path / "cat.npz", flipped=False) is None


def test_halves_become_floats(tmp_path: Path) -> None:
    np.savez(tmp_path / "cat.npz", latents=PLAIN.astype(np.float16))
    found = trusted(tmp_path / "cat.npz", flipped=False)
    assert found is not None and found[0].dtype == np.float32
    assert np.array_equal(found[0], PLAIN.astype(np.float16).astype(np.float32))


def test_masks_of_cells_and_of_pixels_are_read(tmp_path: Path) -> None:
    cells = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    expected = replace(EXPECTED, has_mask=True)
    for mask in (cells, np.repeat(np.repeat(cells, 8, 0), 8, 1)):
        np.savez(tmp_path / "cat.npz", latents=PLAIN, latents_flipped=MIRRORED, alpha_mask=mask)
        plain, mirrored = read_entry(tmp_path / "cat.npz", expected, (False, True), trusts_foreign=True).looks
        assert plain.mask is not None and mirrored.mask is not None
        assert np.allclose(plain.mask, cells) and np.array_equal(mirrored.mask, plain.mask[:, ::-1])
    np.savez(tmp_path / "cat.npz", latents=PLAIN)
    assert trusted(tmp_path / "cat.npz", expected, flipped=False) is None


def test_a_single_draw_is_no_distribution(tmp_path: Path) -> None:
    np.savez(tmp_path / "cat.npz", latents=PLAIN)
    assert trusted(tmp_path / "cat.npz", replace(EXPECTED, seed=None, draw=None), flipped=False) is None


def _world(root: Path) -> ImageIndex:
    """Three pictures: an older pair of files, an older single file, and one of the wrong shape."""
    for seed, name in enumerate(("pair", "single", "wrong")):
        save_picture(root / f"{name}.png", seed=seed)
        np.savez(root / f"{name}.npz", PLAIN if name != "wrong" else PLAIN[:, :4])
    np.savez(root / "pair_flip.npz", MIRRORED)
    return index_of(make_dataset(make_subset(root, num_repeats=8)))


def _fill(index: ImageIndex, trusts: bool) -> tuple[LatentFiles, DiskLatentStore, Reuse]:
    files = LatentFiles(views_of(index, SEED), EntryPaths(index), VaeWork("ab" * 16), trusts)
    files = with_foreign_mirrors(files) if trusts else files
    return files, *fill_disk_store(files, toy_encode, 0)


def test_trusted_latents_are_used_and_told(tmp_path: Path) -> None:
    index = _world(tmp_path)
    before = (tmp_path / "pair.npz").read_bytes()
    for states in ({State.TRUSTED: 2, State.FOREIGN: 1}, {State.TRUSTED: 2, State.FITS: 1}):
        files, store, reuse = _fill(index, trusts=True)
        assert {state: count for state, count in reuse.counts.items() if count} == states
        assert any(line.startswith("latents of another program") and line.endswith(": 2") for line in reuse.lines())
        assert np.array_equal(store.get(1, Choice()).latents.numpy(), PLAIN)
        assert [files.views.augmentations(record).flip for record in range(3)] == [True, False, False]
    assert (tmp_path / "pair.npz").read_bytes() == before


def test_a_mirrored_file_is_used_in_half_of_the_uses_with_no_option(tmp_path: Path) -> None:
    files, store, _ = _fill(_world(tmp_path), trusts=True)
    seen: dict[str, set[bytes]] = {}
    for batch in batches_seen(files.views, store, updates=12):
        for name, latents in zip(batch.names, batch.latents if batch.latents is not None else [], strict=True):
            seen.setdefault(name, set()).add(latents.numpy().tobytes())
    assert seen["pair.png"] == {PLAIN.tobytes(), MIRRORED.tobytes()}
    assert len(seen["single.png"]) == len(seen["wrong.png"]) == 1


def test_without_trust_they_are_replaced_and_the_mirrored_file_is_left_alone_and_told(tmp_path: Path) -> None:
    index = _world(tmp_path)
    _, _, reuse = _fill(index, trusts=False)
    assert reuse.counts[State.FOREIGN] == 3 and reuse.encoded == 3
    assert reuse.lines()[0].endswith("3 encoded (3 written by another program, with unknown VAE)")
    assert reuse.lines()[1] == "files STEM_flip.npz of another program, which are not used and stay as they are: 1"
    with np.load(tmp_path / "pair_flip.npz") as fields:
        assert np.array_equal(fields["arr_0"], MIRRORED)
    assert len(_fill(index, trusts=False)[2].lines()) == 1
