"""Captions out of a metadata file train as the same captions in caption files do, with every script."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, safe_open

import train_db
from tests.training.runs import Tensors, assert_same, largest_difference, run_here

Train = Callable[[Path, list[str], Path], Tensors]
CAPTIONS = {
    "cat.jpg": ("a cat on a carpet", "brown, whiskers, indoors"),
    "coffee.jpg": ("", "cup, spoon, table"),
    "rocket.jpg": ("a rocket on its pad", ""),
    "coins.png": ("old coins", "grey"),
}
WORDS = [
    *("--resolution", "128", "--enable_bucket", "--min_bucket_reso", "64", "--bucket_reso_steps", "32"),
    *("--shuffle_caption", "--caption_tag_dropout_rate", "0.3", "--max_train_steps", "4", "--train_batch_size", "2"),
]


@pytest.fixture
def with_files(photos: Path, tmp_path: Path) -> Path:
    """Pictures with caption files."""
    folder = tmp_path / "with files"
    folder.mkdir()
    for name, texts in CAPTIONS.items():
        shutil.copy(photos / name, folder)
        caption = ", ".join(text for text in texts if text)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture
def with_metadata(photos: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same pictures elsewhere beside captions that are not read, and a metadata file with keys of every kind."""
    folder = tmp_path / "elsewhere" / "pictures"
    folder.mkdir(parents=True)
    for name in CAPTIONS:
        shutil.copy(photos / name, folder)
        shutil.copy((photos / name).with_suffix(".txt"), folder)
    keys = ["cat", "coffee.jpg", str(folder / "rocket.jpg"), str(folder / "coins")]
    entries = {
        key: {"caption": caption, "tags": tags, "train_resolution": [128, 128]}
        for key, (caption, tags) in zip(keys, CAPTIONS.values(), strict=True)
    }
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return folder, file


def train_whole_model(model: Path, data: list[str], out: Path) -> Tensors:
    words = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out)]
    train_db.main([*words, "--learning_rate", "1e-3", "--max_data_loader_n_workers", "0"])
    return load_file(str(out / "last.safetensors"))


@pytest.mark.parametrize("train", [run_here, train_whole_model])
def test_metadata_trains_like_caption_files(
    tiny_models: dict[str, Path], with_files: Path, with_metadata: tuple[Path, Path], tmp_path: Path, train: Train
) -> None:
    folder, file = with_metadata
    from_files = train(tiny_models["sd1"], ["--train_data_dir", str(with_files), *WORDS], tmp_path / "a")
    described = ["--train_data_dir", str(folder), "--in_json", str(file), *WORDS]
    assert_same(train(tiny_models["sd1"], described, tmp_path / "b"), from_files)


def test_metadata_with_regularisation_and_repeats(
    tiny_models: dict[str, Path], with_metadata: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    """By flags and by a dataset file, which name the pictures alike; the facts in the file tell of both."""
    folder, file = with_metadata
    reg = tmp_path / "reg" / "1_stone"
    reg.mkdir(parents=True)
    shutil.copy(photos / "gravel.jpg", reg)
    words = [*WORDS, "--network_train_unet_only"]
    flags = ["--in_json", str(file), "--train_data_dir", str(folder), "--reg_data_dir", str(reg.parent)]
    first = run_here(tiny_models["sd1"], [*flags, "--dataset_repeats", "2", *words], tmp_path / "a")
    toml = tmp_path / "data.toml"
    toml.write_text(
        f"""
[[datasets]]
  [[datasets.subsets]]
  image_dir = '{folder}'
  metadata_file = '{file}'
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = '{reg}'
  class_tokens = "stone"
  is_reg = true
""",
        encoding="utf-8",
    )
    assert_same(run_here(tiny_models["sd1"], ["--dataset_config", str(toml), *words], tmp_path / "b"), first)
    once = run_here(tiny_models["sd1"], [*flags, *words], tmp_path / "c")
    assert largest_difference(first, once) > 0
    with safe_open(str(tmp_path / "a" / "last.safetensors"), "pt") as opened:
        facts = opened.metadata()
    assert json.loads(facts["ss_dataset_dirs"]) == {"pictures": {"n_repeats": 2, "img_count": 4}}
    assert json.loads(facts["ss_reg_dataset_dirs"]) == {"1_stone": {"n_repeats": 1, "img_count": 1}}
    assert json.loads(facts["ss_tag_frequency"])["pictures"]["whiskers"] == 1
    assert str(tmp_path) not in str(facts)
