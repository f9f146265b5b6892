"""`--cache_latents_to_disk` in whole runs: the same bits as without, and what a later start encodes again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from library.core.errors import UserError
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from library.training.latents import LatentEncoder
from tests.training.runs import Tensors, assert_same, largest_difference, run_here, run_process

ON_DISK = "--cache_latents_to_disk"
BUCKETS = ["--resolution", "128", "--enable_bucket", "--min_bucket_reso", "64", "--bucket_reso_steps", "32"]
STEPS = ["--max_train_steps", "3", "--train_batch_size", "2"]
NAMES = ("cat", "cell", "coins", "pagoda", "rocket")


def copy_pictures(photos: Path, folder: Path) -> Path:
    """Some photographs of differing shapes in a folder of our own, since latents are written beside them."""
    folder.mkdir(parents=True)
    for path in photos.iterdir():
        if path.stem in NAMES:
            shutil.copy(path, folder)
    return folder


def words_for(pictures: Path) -> list[str]:
    return ["--train_data_dir", str(pictures), *BUCKETS, *STEPS]


@pytest.fixture
def pictures(photos: Path, tmp_path: Path) -> Path:
    return copy_pictures(photos, tmp_path / "photos")


@pytest.fixture(scope="module")
def reference(tiny_models: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """The same run without any cache."""
    folder = tmp_path_factory.mktemp("reference")
    return run_here(tiny_models["sd1"], words_for(copy_pictures(photos, folder / "photos")), folder / "out")


def entries(pictures: Path) -> dict[str, tuple[int, bytes]]:
    """Every cache file: when it was written, and its bytes."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(pictures.glob("*.npz"))}


def cache_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    (line,) = (line for line in lines if "latents on disk: " in line)
    return line[line.index("latents on disk: ") :]


@pytest.mark.parametrize("words", [[], ["--cache_latents", "--max_data_loader_n_workers", "2"]], ids=["alone", "both"])
def test_filling_and_reading_the_cache_change_no_byte(
    tiny_models: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    reference: Tensors,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = words_for(pictures)
    torch.rand(7)  # whatever else drew from the global state must not matter
    assert_same(run_here(tiny_models["sd1"], data, tmp_path / "a", ON_DISK, *words), reference)
    assert cache_line(capsys) == "latents on disk: 0 reused, 5 encoded (5 not there yet)"
    first = entries(pictures)
    assert len(first) == 5
    assert_same(run_here(tiny_models["sd1"], data, tmp_path / "b", ON_DISK, *words), reference)
    assert cache_line(capsys) == "latents on disk: 5 reused, 0 encoded"
    assert entries(pictures) == first


def test_the_run_learns_from_the_files(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, reference: Tensors
) -> None:
    """Other numbers under a valid fingerprint give another result, so equal bits do come out of the files."""
    data = words_for(pictures)
    run_here(tiny_models["sd1"], data, tmp_path / "a", ON_DISK)
    for path in pictures.glob("*.npz"):
        with np.load(path, allow_pickle=False) as fields:
            changed = {name: fields[name] for name in fields.files}
        changed["latents"] = changed["latents"] * np.float32(0.5)
        np.savez(path, **changed)
    tensors = run_here(tiny_models["sd1"], data, tmp_path / "b", ON_DISK)
    assert largest_difference(tensors, reference) > 1e-4


def test_another_vae_and_another_picture_are_seen(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = words_for(pictures)
    run_here(tiny_models["sd1"], data, tmp_path / "first", ON_DISK)
    for path in pictures.iterdir():
        os.utime(path, (1, 1))
    (pictures / "cat.jpg").write_bytes((pictures / "rocket.jpg").read_bytes())
    capsys.readouterr()
    other = tmp_path / "other.safetensors"
    save_single_file(make_tiny_model("sd1", seed=6), other, {})
    steps = [
        ([], "4 reused, 1 encoded (1 picture changed)"),
        (["--vae", str(other)], "0 reused, 5 encoded (5 other VAE)"),
    ]
    for number, (words, expected) in enumerate(steps):
        cached = run_here(tiny_models["sd1"], data, tmp_path / f"cached{number}", ON_DISK, *words)
        assert cache_line(capsys) == f"latents on disk: {expected}"
        assert_same(cached, run_here(tiny_models["sd1"], data, tmp_path / f"plain{number}", *words))
        capsys.readouterr()


def test_two_processes_fill_one_cache(
    tiny_models: dict[str, Path], photos: Path, pictures: Path, tmp_path: Path
) -> None:
    alone = copy_pictures(photos, tmp_path / "alone")
    words = [ON_DISK, "--train_batch_size", "1"]
    two = run_process(tiny_models["sd1"], words_for(pictures), tmp_path / "two", *words, processes=2)
    words += ["--gradient_accumulation_steps", "2"]
    one = run_here(tiny_models["sd1"], words_for(alone), tmp_path / "one", *words)
    assert largest_difference(one, two) < 1e-5
    filled, expected = entries(pictures), entries(alone)
    assert list(filled) == list(expected) and len(filled) == 5
    if os.environ.get("SD_ATELIER_TEST_DEVICE") != "cuda":  # processes of tests stay on the CPU
        assert all(filled[name][1] == expected[name][1] for name in filled)


def test_a_file_in_the_way_is_told_before_the_model_is_loaded(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    (pictures / "cat.npz").write_text("mine\n", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "out", ON_DISK)
    (problem,) = caught.value.problems
    assert problem.where == str(pictures / "cat.npz")
    assert not (tmp_path / "out").exists() and list(pictures.glob("*.npz")) == [pictures / "cat.npz"]
    run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "out", "--cache_latents")


def test_another_seed_and_another_place_encode_nothing(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old-style folder's repeats, its number among the folders and the seed leave the latents as they are."""
    parent = tmp_path / "parent"
    parent.mkdir()
    pictures.rename(parent / "10_a")
    data = ["--train_data_dir", str(parent), *BUCKETS, *STEPS]
    run_here(tiny_models["sd1"], data, tmp_path / "first", ON_DISK)
    (parent / "10_a").rename(parent / "30_b")
    (parent / "05_new").mkdir()
    shutil.copy(parent / "30_b" / "cat.jpg", parent / "05_new" / "other.jpg")
    (parent / "05_new" / "other.txt").write_text("a cat", encoding="utf-8")
    capsys.readouterr()
    run_here(tiny_models["sd1"], data, tmp_path / "second", ON_DISK, "--seed", "7")
    assert cache_line(capsys) == "latents on disk: 5 reused, 1 encoded (1 not there yet)"


def test_what_killed_runs_left_beside_the_pictures_is_removed_and_told(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = pictures / f".tmp-{'1' * 8}-{'0' * 8}-5.npz"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "out", ON_DISK)
    assert not left.exists()
    assert "unfinished cache files of runs that were killed, removed: 1" in capsys.readouterr().err


def test_the_digest_of_a_vae_follows_what_encodes() -> None:
    vae = make_tiny_model("sd1", seed=0).vae

    def digest() -> str:
        return LatentEncoder(vae, torch.device("cpu")).weights_digest()

    first = digest()
    weights = dict(vae.named_parameters())
    with torch.no_grad():
        weights["decoder.conv_in.weight"].add_(1)
        weights["post_quant_conv.bias"].add_(1)
        assert digest() == first
        for name in ("encoder.conv_in.weight", "encoder.conv_norm_out.bias", "quant_conv.bias"):
            flat = weights[name].view(-1)
            kept = flat[0].clone()
            flat[0] = torch.nextafter(kept, kept + 1)
            assert digest() != first, name
            flat[0] = kept
        assert digest() == first
    vae.half()
    halves = digest()
    vae.float()
    assert halves == digest() != first  # what counts are the numbers it computes with
