"""Latents in `.npz` files: what others read in them, and which files are trusted, replaced or left alone."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.cache.latent_files import (
    FINGERPRINT,
    FORMAT,
    REASONS,
    USABLE,
    Fingerprint,
    Look,
    State,
    look_ahead,
    picture_digest,
    read_entry,
    refuse_unknown,
    write_entry,
)

EXPECTED = Fingerprint("ab" * 16, "cd" * 16, (70, 64), (3, 0, 67, 64), "\udcff name.png|0")
DISTRIBUTION = replace(EXPECTED, name=None)
_NUMBERS = np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float32)
LATENTS, MIRRORED, DEVIATION, MIRRORED_DEVIATION = _NUMBERS
MASK = np.random.default_rng(1).random((8, 8)).astype(np.float32)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "cat.npz"
    write_entry(path, [Look(LATENTS)], Size(140, 128), EXPECTED)
    return path


def test_others_find_the_fields_they_know(entry: Path) -> None:
    with np.load(entry, allow_pickle=False) as fields:
        assert fields["latents"].dtype == np.float32 and np.array_equal(fields["latents"], LATENTS)
        assert fields["original_size"].tolist() == [140, 128]
        assert fields["crop_ltrb"].tolist() == [3, 0, 67, 64]
        assert set(fields.files) == {"latents", "original_size", "crop_ltrb", FINGERPRINT}
        assert json.loads(str(fields[FINGERPRINT]))["vae"] == "cd" * 16
    assert list(entry.parent.iterdir()) == [entry]


def test_equal_content_gives_equal_bytes(entry: Path, tmp_path: Path) -> None:
    write_entry(tmp_path / "again.npz", [Look(LATENTS)], Size(140, 128), EXPECTED)
    assert (tmp_path / "again.npz").read_bytes() == entry.read_bytes()


def test_what_was_written_is_read(entry: Path) -> None:
    found = read_entry(entry, EXPECTED)
    (look,) = found.looks
    assert found.state is State.FITS and np.array_equal(look.latents, LATENTS) and look.mask is None
    refuse_unknown(entry)


@pytest.fixture
def whole_entry(tmp_path: Path) -> Path:
    """Mean, deviation and mask, plain and mirrored."""
    path = tmp_path / "whole.npz"
    looks = [
        Look(np.concatenate([LATENTS, DEVIATION]), MASK),
        Look(np.concatenate([MIRRORED, MIRRORED_DEVIATION]), MASK),
    ]
    write_entry(path, looks, Size(140, 128), replace(DISTRIBUTION, has_mask=True))
    return path


def test_each_look_is_read_by_itself(whole_entry: Path) -> None:
    expected = replace(DISTRIBUTION, has_mask=True)
    whole = [np.concatenate([LATENTS, DEVIATION]), np.concatenate([MIRRORED, MIRRORED_DEVIATION])]
    for sides in ((False,), (True,), (False, True)):
        looks = read_entry(whole_entry, expected, sides).looks
        assert len(looks) == len(sides)
        for look, flipped in zip(looks, sides, strict=True):
            assert np.array_equal(look.latents, whole[flipped]) and look.mask is not None
            assert np.array_equal(look.mask, MASK[:, ::-1] if flipped else MASK)
    (look,) = read_entry(whole_entry, DISTRIBUTION).looks
    assert look.mask is None  # there, but not asked for


def test_one_look_is_read_without_the_others(whole_entry: Path) -> None:
    """Damage of what is not needed is not even seen."""
    content = bytearray(whole_entry.read_bytes())
    with zipfile.ZipFile(whole_entry) as archive:
        place = archive.getinfo("latents_flipped.npy").header_offset + 300
    content[place] ^= 1
    whole_entry.write_bytes(content)
    assert read_entry(whole_entry, DISTRIBUTION, (False,)).state is State.FITS
    for sides in ((True,), (False, True)):
        assert read_entry(whole_entry, DISTRIBUTION, sides).state is State.DAMAGED


def test_others_find_mean_mirrored_and_mask(whole_entry: Path) -> None:
    with np.load(whole_entry, allow_pickle=False) as fields:
        assert np.array_equal(fields["latents"], LATENTS) and np.array_equal(fields["latents_flipped"], MIRRORED)
        assert np.array_equal(fields["alpha_mask"], MASK) and fields["alpha_mask"].dtype == np.float32
        assert np.array_equal(fields["sd_atelier_deviation"], DEVIATION)
        assert np.array_equal(fields["sd_atelier_deviation_flipped"], MIRRORED_DEVIATION)
        assert fields.files[0] == FINGERPRINT and fields["crop_ltrb"].tolist() == [3, 0, 67, 64]


def test_what_an_entry_has_beyond_the_need_does_not_matter(entry: Path, whole_entry: Path) -> None:
    assert read_entry(entry, EXPECTED, (False, True)).state is State.MIRRORED
    assert read_entry(entry, EXPECTED, (True,)).state is State.MIRRORED
    assert read_entry(entry, replace(EXPECTED, has_mask=True)).state is State.MASK
    assert read_entry(whole_entry, DISTRIBUTION).state is State.FITS


def test_draws_and_distributions_are_told_apart(entry: Path, whole_entry: Path) -> None:
    assert read_entry(entry, DISTRIBUTION).state is State.DRAW
    assert read_entry(whole_entry, EXPECTED).state is State.DRAW


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"picture": "00" * 16}, State.PICTURE),
        ({"vae": "00" * 16}, State.VAE),
        ({"resized": (71, 64)}, State.SIZE),
        ({"crop": (4, 0, 68, 64)}, State.SIZE),
        ({"name": "\udcff name.png|1"}, State.NAME),
        ({"colour": (1, 1.0)}, State.COLOUR),
        ({"colour": (0, 0.97)}, State.COLOUR),
        ({"precision": "bf16"}, State.PRECISION),
        ({"vae_batch": 2}, State.PRECISION),
    ],
    ids=str,
)
def test_every_part_of_the_fingerprint_counts(entry: Path, changes: dict[str, Any], state: State) -> None:
    found = read_entry(entry, replace(EXPECTED, **changes))
    assert found.state is state and not found.looks


def test_the_format_counts(tmp_path: Path) -> None:
    write_of_the_future = replace(EXPECTED, format=FORMAT + 1)
    fields: dict[str, Any] = {FINGERPRINT: np.array(write_of_the_future.as_text()), "latents": LATENTS}
    np.savez(tmp_path / "cat.npz", **fields)
    assert read_entry(tmp_path / "cat.npz", EXPECTED).state is State.FORMAT


def test_entries_from_before_names_counted_are_replaced(tmp_path: Path) -> None:
    stored = {**json.loads(EXPECTED.as_text()), "seed": 3, "draw": "0/0/cat.png|0"}
    del stored["name"]
    fields: dict[str, Any] = {FINGERPRINT: np.array(json.dumps(stored)), "latents": LATENTS}
    np.savez(tmp_path / "cat.npz", **fields)
    for expected in (EXPECTED, DISTRIBUTION):
        assert read_entry(tmp_path / "cat.npz", expected).state is State.FORMAT


def test_what_is_known_without_a_vae_is_compared(whole_entry: Path, entry: Path) -> None:
    """Everything but picture and VAE."""
    unknown = {"picture": "", "vae": ""}
    for path, made in ((entry, EXPECTED), (whole_entry, replace(DISTRIBUTION, has_mask=True))):
        assert look_ahead(path, replace(made, **unknown), (False,)) is State.FITS
        for changes, state in (
            ({"crop": (4, 0, 68, 64)}, State.SIZE),
            ({"colour": (1, 1.0)}, State.COLOUR),
            ({"vae_batch": 2}, State.PRECISION),
        ):
            assert look_ahead(path, replace(made, **unknown, **changes), (False,)) is state
    assert look_ahead(entry, replace(EXPECTED, name="dog.png|0"), (False,)) is State.NAME
    assert look_ahead(entry, DISTRIBUTION, (False,)) is State.DRAW
    assert look_ahead(entry, EXPECTED, (False, True)) is State.MIRRORED
    assert look_ahead(entry, replace(EXPECTED, has_mask=True), (False,)) is State.MASK
    assert look_ahead(whole_entry, replace(DISTRIBUTION, has_mask=True), (False, True)) is State.FITS
    entry.write_bytes(entry.read_bytes()[:400])
    assert look_ahead(entry, EXPECTED, (False,)) is State.DAMAGED


def test_every_state_that_cannot_be_used_has_a_reason() -> None:
    assert set(REASONS) == set(State) - USABLE
    assert len(set(REASONS.values())) == len(REASONS)


def test_a_torn_file_is_known_at_every_length(entry: Path) -> None:
    whole = entry.read_bytes()
    for length in range(0, len(whole), 13):
        entry.write_bytes(whole[:length])
        assert read_entry(entry, EXPECTED).state is State.DAMAGED, length
        refuse_unknown(entry)
    entry.write_bytes(whole[:3])
    assert read_entry(entry, EXPECTED).state is State.DAMAGED
    entry.write_bytes(bytes(len(whole)))  # what some disks hold after a power failure
    assert read_entry(entry, EXPECTED).state is State.DAMAGED


def test_no_flipped_bit_reaches_the_training(entry: Path) -> None:
    whole, draws = entry.read_bytes(), np.random.default_rng(1)
    damaged = 0
    for place in draws.integers(0, len(whole), 300):
        content = bytearray(whole)
        content[place] ^= 1 << int(draws.integers(8))
        entry.write_bytes(content)
        try:
            found = read_entry(entry, EXPECTED)
        except UserError:  # the bit made another name of the first field
            continue
        damaged += found.state is State.DAMAGED
        assert all(np.array_equal(look.latents, LATENTS) for look in found.looks)
    assert damaged > 200


@pytest.mark.parametrize(
    "latents",
    [
        np.full_like(LATENTS, np.nan),
        np.full_like(LATENTS, -np.inf),
        LATENTS.astype(np.float16),
        LATENTS[:, :4],
        LATENTS[:3],
        np.array([{}], dtype=object),
        None,
    ],
    ids=["nan", "inf", "half", "another shape", "three channels", "pickled", "none"],
)
def test_latents_that_cannot_be_ours_are_damage(tmp_path: Path, latents: Any) -> None:
    fields: dict[str, Any] = {FINGERPRINT: np.array(EXPECTED.as_text())}
    np.savez(tmp_path / "cat.npz", **(fields if latents is None else {**fields, "latents": latents}))
    assert read_entry(tmp_path / "cat.npz", EXPECTED).state is State.DAMAGED


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\ud800"])
def test_a_fingerprint_that_is_none_is_damage(tmp_path: Path, text: str) -> None:
    fields: dict[str, Any] = {FINGERPRINT: np.array(text), "latents": LATENTS}
    np.savez(tmp_path / "cat.npz", **fields)
    assert read_entry(tmp_path / "cat.npz", EXPECTED).state is State.DAMAGED


@pytest.mark.parametrize(
    "fields",
    [
        {"latents": LATENTS, "original_size": np.array([140, 128]), "crop_ltrb": np.array([0, 0, 64, 64])},
        {"latents": LATENTS, "latents_flipped": LATENTS, "alpha_mask": np.ones((64, 64), np.float32)},
        {"latents": LATENTS[:, :3]},
        {"latents": LATENTS.astype(np.float16)},
        {"arr_0": LATENTS},
    ],
    ids=["today", "flipped and mask", "another size", "half", "older"],
)
def test_caches_of_other_programs_are_not_trusted_but_may_be_replaced(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = tmp_path / "cat.npz"
    np.savez(path, **fields)
    refuse_unknown(path)
    found = read_entry(path, EXPECTED)
    assert found.state is State.FOREIGN and not found.looks
    path.write_bytes(path.read_bytes()[:-40])
    assert read_entry(path, EXPECTED).state is State.DAMAGED


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, LATENTS)


def _zip_without_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "mine" * 100)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("my notes\n", encoding="utf-8"),
        lambda path: np.savez(path, poses=LATENTS),
        lambda path: np.savez(path, latents=LATENTS, poses=LATENTS),
        lambda path: np.savez(path, arr_0=np.arange(9.0)),
        lambda path: np.savez(path, arr_0=np.zeros((4, 8, 8), np.uint8)),
        lambda path: np.savez(path, LATENTS, LATENTS),
        lambda path: np.savez(path, notes=np.array([{"a": 1}], dtype=object)),
        lambda path: path.mkdir(),
        _array,
        _zip_without_arrays,
    ],
    ids=["text", "other name", "one more name", "numbers", "bytes", "two arrays", "pickled", "folder", "npy", "zip"],
)
def test_files_that_are_no_cache_are_named_and_left_alone(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "cat.npz"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    for look in (refuse_unknown, lambda file: read_entry(file, EXPECTED)):
        with pytest.raises(UserError) as caught:
            look(path)
        (problem,) = caught.value.problems
        assert problem.where == str(path)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_link_to_nothing_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cat.npz"
    path.symlink_to(tmp_path / "gone" / "cat.npz")
    for look in (refuse_unknown, lambda file: read_entry(file, EXPECTED)):
        with pytest.raises(UserError, match=r"a link to .*gone.* stands there, and nothing is at that place"):
            look(path)
    assert path.is_symlink()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, entry: Path) -> None:
    """The system's own limit of a file's size stands in for the disk's: the write fails half-way in the same manner."""
    resource = pytest.importorskip("resource")  # Unix alone has it
    before, limits = entry.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for path in (entry, tmp_path / "new.npz"):
            with pytest.raises(UserError, match=r"the latents cannot be written: File too large") as caught:
                write_entry(path, [Look(LATENTS + 1)], Size(140, 128), EXPECTED)
            assert caught.value.problems[0].where == str(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [entry] and entry.read_bytes() == before


def test_latents_of_another_shape_are_never_stored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not hold what was written"):
        write_entry(tmp_path / "cat.npz", [Look(LATENTS[:, :4])], Size(140, 128), EXPECTED)
    assert list(tmp_path.iterdir()) == []


def test_the_digest_follows_the_bytes_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(bytes(3 << 20))
    second.write_bytes(bytes(3 << 20))
    os.utime(second, (5, 5))
    assert picture_digest(first) == picture_digest(second)
    second.write_bytes(bytes(2 << 20) + b"\1" + bytes((1 << 20) - 1))
    assert picture_digest(first) != picture_digest(second)
    with pytest.raises(UserError, match=r"none\.png"):
        picture_digest(tmp_path / "none.png")
