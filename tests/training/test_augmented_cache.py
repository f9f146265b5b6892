"""Caches of latents in whole runs with every augmentation on: the same bits as without any cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.core.errors import UserError
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from tests.training.runs import Tensors, assert_same, largest_difference, run_here, run_process

BUCKETS = ["--resolution", "64", "--enable_bucket", "--min_bucket_reso", "64", "--bucket_reso_steps", "64"]
STEPS = ["--max_train_steps", "4", "--train_batch_size", "2"]
AUGMENTED = ["--flip_aug", "--random_crop", "--color_aug", "--augmentation_variants", "3", "--alpha_mask"]
DISTRIBUTION = "--cache_latent_distribution"
IN_MEMORY, ON_DISK = "--cache_latents", "--cache_latents_to_disk"


@pytest.fixture
def pictures(photos: Path, tmp_path: Path) -> Path:
    """Three photographs of differing shapes in a folder of our own, one with a transparent part."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for stem in ("cat", "coins", "rocket"):
        for path in photos.glob(f"{stem}.*"):
            shutil.copy(path, folder)
    (source,) = (path for path in folder.iterdir() if path.stem == "cat" and path.suffix != ".txt")
    with Image.open(source) as picture:
        clear = picture.convert("RGB").resize((160, 110))
    alpha = np.zeros((110, 160), np.uint8)
    alpha[20:, 50:] = 200
    clear.putalpha(Image.fromarray(alpha))
    source.unlink()
    clear.save(folder / "cat.png")
    return folder


def words_for(pictures: Path) -> list[str]:
    return ["--train_data_dir", str(pictures), *BUCKETS, *STEPS]


def tell(capsys: pytest.CaptureFixture[str], beginning: str) -> str:
    """The one line of the log that has this beginning."""
    (line,) = (line for line in capsys.readouterr().err.splitlines() if beginning in line)
    return line[line.index(beginning) :]


@pytest.mark.slow  # the quick run has the same in test_augmented.py, over mixed datasets
@pytest.mark.parametrize("words", [[], [DISTRIBUTION]], ids=["draws", "distributions"])
def test_caches_change_no_byte(
    tiny_models: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(name: str, *more: str) -> Tensors:
        return run_here(tiny_models["sd1"], words_for(pictures), tmp_path / name, *AUGMENTED, *words, *more)

    plain = run("plain")
    assert_same(run("memory", IN_MEMORY), plain)
    capsys.readouterr()
    assert_same(run("disk", ON_DISK, "--max_data_loader_n_workers", "2"), plain)
    assert tell(capsys, "latents on disk: ") == "latents on disk: 0 reused, 9 encoded (9 not there yet)"
    assert_same(run("again", ON_DISK), plain)
    assert tell(capsys, "latents on disk: ") == "latents on disk: 9 reused, 0 encoded"
    names = {path.name for path in pictures.glob("*.npz")}
    assert names == {f"{stem}{variant}.npz" for stem in ("cat", "coins", "rocket") for variant in ("", ".v1", ".v2")}
    assert largest_difference(run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "other", *words), plain) > 0


def test_distributions_are_drawn_from_anew(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    data = words_for(pictures)
    once = run_here(tiny_models["sd1"], data, tmp_path / "once", IN_MEMORY)
    anew = run_here(tiny_models["sd1"], data, tmp_path / "anew", IN_MEMORY, DISTRIBUTION)
    assert largest_difference(once, anew) > 0


def test_larger_vae_batches_are_the_same_in_memory_and_on_disk(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *more: str) -> Tensors:
        return run_here(tiny_models["sd1"], words_for(pictures), tmp_path / name, *AUGMENTED, *more)

    in_batches = ["--vae_batch_size", "3"]
    memory = run("memory", IN_MEMORY, *in_batches)
    assert_same(run("disk", ON_DISK, *in_batches), memory)
    (pictures / "coins.v1.npz").unlink()
    capsys.readouterr()
    assert_same(run("mended", ON_DISK, *in_batches), memory)
    assert tell(capsys, "latents on disk: ").startswith("latents on disk: 8 reused, 1 encoded")
    run("alone", ON_DISK)
    assert "9 encoded (9 other precision or batch size of the VAE)" in tell(capsys, "latents on disk: ")


def test_pictures_that_overflow_are_encoded_in_float(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A VAE whose first layer gives numbers that are too large for half precision, but not for float."""
    model = make_tiny_model("sd1", seed=0)
    with torch.no_grad():
        model.vae.encoder.conv_in.weight.mul_(5e4)
    save_single_file(model, tmp_path / "loud.safetensors", {})
    words = ["--vae", str(tmp_path / "loud.safetensors"), "--vae_precision", "fp16"]

    def run(name: str, *more: str) -> Tensors:
        return run_here(tiny_models["sd1"], words_for(pictures), tmp_path / name, *words, *more)

    plain = run("plain")
    assert "overflows in --vae_precision" in capsys.readouterr().err
    for name, flag in (("memory", IN_MEMORY), ("disk", ON_DISK)):
        assert_same(run(name, flag), plain)
        assert tell(capsys, "pictures that overflow in fp16 and were encoded in float: ")
    assert all(torch.isfinite(tensor).all() for tensor in plain.values())


@pytest.mark.slow
def test_two_processes_share_the_memory_cache(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    words = [*AUGMENTED, IN_MEMORY, "--train_batch_size", "1"]
    two = run_process(tiny_models["sd1"], words_for(pictures), tmp_path / "two", *words, processes=2)
    words += ["--gradient_accumulation_steps", "2"]
    one = run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "one", *words)
    assert largest_difference(one, two) < 1e-5


@pytest.mark.slow
def test_two_processes_fill_one_cache_of_variants(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in pictures.glob("*.npz")}

    words = [*AUGMENTED, ON_DISK, "--train_batch_size", "1"]
    two = run_process(tiny_models["sd1"], words_for(pictures), tmp_path / "two", *words, processes=2)
    filled_by_two = files()
    for path in pictures.glob("*.npz"):
        path.unlink()
    words += ["--gradient_accumulation_steps", "2"]
    one = run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "one", *words)
    assert largest_difference(one, two) < 1e-5
    if os.environ.get("SD_ATELIER_TEST_DEVICE") != "cuda":  # processes of tests stay on the CPU
        assert files() == filled_by_two and len(filled_by_two) == 9


def test_trusted_latents_of_others_are_trained_and_mirrored(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The older pair of files; the second start finds it as it was."""
    data = ["--train_data_dir", str(pictures), "--resolution", "64", *STEPS]
    own = run_here(tiny_models["sd1"], data, tmp_path / "own", IN_MEMORY)
    plain, mirrored = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
    np.savez(pictures / "coins.npz", plain)
    np.savez(pictures / "coins_flip.npz", mirrored)
    before = (pictures / "coins.npz").read_bytes()
    capsys.readouterr()
    trusted = run_here(tiny_models["sd1"], data, tmp_path / "a", ON_DISK, "--trust_foreign_latents")
    told = capsys.readouterr().err
    assert "latents on disk: 0 reused, 2 encoded (2 not there yet)" in told
    assert "latents of another program, used as they are although their VAE is unknown: 1" in told
    assert largest_difference(trusted, own) > 1e-4
    assert_same(run_here(tiny_models["sd1"], data, tmp_path / "b", ON_DISK, "--trust_foreign_latents"), trusted)
    assert (pictures / "coins.npz").read_bytes() == before
    assert_same(run_here(tiny_models["sd1"], data, tmp_path / "c", ON_DISK), own)
    assert (pictures / "coins.npz").read_bytes() != before and (pictures / "coins_flip.npz").exists()


def test_a_cache_of_unfixed_crops_is_refused(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--augmentation_variants"):
        run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "out", "--random_crop", ON_DISK)
    assert list(pictures.glob("*.npz")) == []
