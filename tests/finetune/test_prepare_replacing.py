"""finetune/prepare_buckets_latents.py: other VAEs, masks, and folders that are reached by links."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.core.errors import UserError
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from library.training.prepared_way import PREPARED
from tests.finetune.preparing import contents, copy_pictures, latents_in, prepare, read, write_metadata
from tests.training.runs import run_here


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return copy_pictures(photos, tmp_path / "写真 data")


@pytest.fixture
def metadata(folder: Path, tmp_path: Path) -> Path:
    return write_metadata(tmp_path / "meta_clean.json", ("cat", "coins.png", "coffee", "rocket.jpg"))


def test_another_vae(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--vae` encodes instead of the model's own; before others are replaced, in a training as well, that is told."""
    out, other = tmp_path / "out.json", tmp_path / "other.safetensors"
    save_single_file(make_tiny_model("sd1", seed=1), other, {})
    prepare(folder, metadata, out, other)
    theirs = contents(latents_in(folder))
    assert "another VAE" not in capsys.readouterr().err
    prepare(folder, metadata, out, tiny_models["sd1"])
    own = contents(latents_in(folder))
    assert own.keys() == theirs.keys() and all(own[name] != theirs[name] for name in own)
    err = capsys.readouterr().err
    assert "warning: latents beside the pictures were made with another VAE" in err and "4 other VAE" in err
    prepare(folder, metadata, out, tiny_models["sd1"], "--vae", other)
    assert contents(latents_in(folder)) == theirs
    described = ["--in_json", str(out), "--train_data_dir", str(folder), "--max_train_steps", "1"]
    for words, is_told in (["--vae", str(other)], False), ([], True):
        capsys.readouterr()
        run_here(tiny_models["sd1"], [*described, *words], tmp_path / f"run {is_told}")
        assert ("another VAE" in capsys.readouterr().err) == is_told
    assert contents(latents_in(folder)) == own


def test_masks_lie_beside_the_latents(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    clear = np.zeros((64, 64, 4), dtype=np.uint8)
    clear[:, 32:, 3] = 255
    folder.mkdir()
    Image.fromarray(clear, "RGBA").save(folder / "clear.png")
    metadata = write_metadata(tmp_path / "meta.json", ["clear"])
    prepare(folder, metadata, tmp_path / "out.json", tiny_models["sd1"], "--alpha_mask")
    with np.load(folder / "clear.npz", allow_pickle=False) as fields:
        assert fields["alpha_mask"].tolist() == [[0.0] * 4 + [1.0] * 4] * 8


def test_links_to_folders(
    tiny_models: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures in a linked folder below are prepared; full keys may name the folder otherwise than the command does."""
    deeper = copy_pictures(folder, tmp_path / "elsewhere", ["cat.jpg"])
    try:
        (folder / "sub").symlink_to(deeper, target_is_directory=True)
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    keys = ["sub/cat", "coins", *(str(folder / name) for name in ("cat.jpg", "coffee.jpg")), "../gone"]
    metadata, out = write_metadata(tmp_path / "meta.json", keys), tmp_path / "out.json"
    prepare(tmp_path / "link", metadata, out, tiny_models["sd1"])
    assert [PREPARED in entry for entry in read(out).values()] == [True] * 4 + [False]
    assert (deeper / "cat.npz").is_file()
    told = capsys.readouterr().err
    assert "1 pictures in its folders have no entry and are not prepared: rocket.jpg" in told
    assert "1 entries lie in none of the folders, and stay as they are: ../gone" in told
    write_metadata(metadata, [str(folder / "sub" / "cat"), str(folder / "cat")])
    with pytest.raises(UserError, match=r"1 entries lie in .* as well, by a link"):
        prepare(folder, deeper, metadata, out, tiny_models["sd1"])
