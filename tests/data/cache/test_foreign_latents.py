"""Latents that other programs left: which are taken where they are trusted, and how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from library.core.errors import Problem, Problems, UserError
from library.data.augment import Augmentations, Choice
from library.data.cache.cache_checks import check_disk_cache
from library.data.cache.disk_latents import DiskLatentStore, LatentFiles, Reuse, VaeWork, fill_disk_store
from library.data.cache.entry_paths import EntryPaths
from library.data.cache.latent_files import Fingerprint, State, read_entry
from library.data.cache.mirrored import with_foreign_mirrors
from library.data.index.index import ImageIndex
from library.data.placement import place_all
from library.options.caching import CachingOptions
from tests.data.cache.cache_helpers import save_transparent
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

EXPECTED = Fingerprint("ab" * 16, "cd" * 16, (64, 64), (0, 0, 64, 64), "cat.png|0")
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
    assert trusted(tmp_path / "cat.npz", replace(EXPECTED, name=None), flipped=False) is None


def _world(root: Path) -> ImageIndex:
    """Three pictures: an older pair of files, an older single file, and one without latents."""
    for seed, name in enumerate(("pair", "single", "without")):
        save_picture(root / f"{name}.png", seed=seed)
        if name != "without":
            np.savez(root / f"{name}.npz", PLAIN)
    np.savez(root / "pair_flip.npz", MIRRORED)
    return index_of(make_dataset(make_subset(root, num_repeats=8)))


def _fill(index: ImageIndex, trusts: bool) -> tuple[LatentFiles, DiskLatentStore, Reuse]:
    files = LatentFiles(views_of(index, SEED), EntryPaths(index), VaeWork("ab" * 16), trusts)
    files = with_foreign_mirrors(files) if trusts else files
    return files, *fill_disk_store(files, toy_encode, 0)


def test_trusted_latents_are_used_and_told(tmp_path: Path) -> None:
    index = _world(tmp_path)
    before = (tmp_path / "pair.npz").read_bytes()
    for states in ({State.TRUSTED: 2, State.MISSING: 1}, {State.TRUSTED: 2, State.FITS: 1}):
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
    assert len(seen["single.png"]) == len(seen["without.png"]) == 1


def test_without_trust_they_are_replaced_and_the_mirrored_file_is_left_alone_and_told(tmp_path: Path) -> None:
    index = _world(tmp_path)
    _, _, reuse = _fill(index, trusts=False)
    assert reuse.counts[State.FOREIGN] == 2 and reuse.encoded == 3
    assert reuse.lines()[0].endswith("3 encoded (1 not there yet, 2 written by another program, with unknown VAE)")
    assert reuse.lines()[1] == "files STEM_flip.npz of another program, which are not used and stay as they are: 1"
    with np.load(tmp_path / "pair_flip.npz") as fields:
        assert np.array_equal(fields["arr_0"], MIRRORED)
    assert len(_fill(index, trusts=False)[2].lines()) == 1


def _told(index: ImageIndex, trusts: bool = True) -> list[Problem]:
    problems = Problems()
    check_disk_cache(index, place_all(index), problems, CachingOptions(trust_foreign_latents=trusts))
    return list(problems)


def _save(root: Path, name: str, latents: NDArray[np.float32] = PLAIN) -> Path:
    np.savez(root / f"{name}.npz", latents=latents)
    return root / f"{name}.npz"


def test_trusted_files_that_lack_something_are_all_told_and_left_alone(tmp_path: Path) -> None:
    """Before anything is encoded; each lack once, with a way out of each kind."""
    for seed in range(7):
        save_picture(tmp_path / f"{seed}.png", seed=seed)
    save_transparent(tmp_path / "clear.png", (64, 64))
    files = [_save(tmp_path, str(seed)) for seed in range(4)]
    files += [_save(tmp_path, "4", PLAIN[:, :4]), _save(tmp_path, "5", np.full_like(PLAIN, np.nan))]
    files += [_save(tmp_path, "6"), _save(tmp_path, "clear")]
    files[6].write_bytes(files[6].read_bytes()[:300])
    before = [path.read_bytes() for path in files]
    subset = make_subset(tmp_path, augmentations=Augmentations(flip=True), alpha_mask=True)
    index = index_of(make_dataset(subset))
    found = _told(index)
    assert [problem.where for problem in found] == ["--trust_foreign_latents"] * 4
    damaged, shape, mirrored, mask = (str(problem) for problem in found)
    assert f"are damaged: {files[6]}\n" in damaged
    assert f"of the size at which their pictures are trained: {files[4]}, {files[5]}\n" in shape
    assert f"mirrored picture: {files[0]}, {files[1]}, {files[2]} and 4 more\n" in mirrored
    assert "leave out --flip_aug, or leave out --trust_foreign_latents to encode them anew" in mirrored
    assert f"transparency: {files[7]}\n" in mask and "leave out --alpha_mask, or" in mask
    with pytest.raises(UserError, match="latents of another program are trusted and"):
        _fill(index, trusts=True)
    assert [path.read_bytes() for path in files] == before and len(list(tmp_path.glob("*.npz"))) == 8
    assert _told(index, trusts=False) == []


def test_opaque_pictures_need_no_mask(tmp_path: Path) -> None:
    save_picture(tmp_path / "cat.png")
    save_transparent(tmp_path / "clear.png", (64, 64))
    before = _save(tmp_path, "cat").read_bytes()
    index = index_of(make_dataset(make_subset(tmp_path, alpha_mask=True)))
    assert _told(index) == []
    _, store, reuse = _fill(index, trusts=True)
    assert reuse.counts[State.TRUSTED] == 1 and reuse.counts[State.MISSING] == 1
    assert store.get(0, Choice()).mask is None and store.get(1, Choice()).mask is not None
    assert (tmp_path / "cat.npz").read_bytes() == before
