"""With every augmentation and caption option on, over mixed datasets, training stays a pure function of its input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.training.runs import Tensors, assert_same, largest_difference, run_here, run_process

STEPS = ["--max_train_steps", "8", "--seed", "5"]
EVERYTHING = """
[general]
enable_bucket = true
min_bucket_reso = 64
bucket_reso_steps = 32
flip_aug = true
color_aug = true
random_crop = true
shuffle_caption = true
keep_tokens = 1
keep_tokens_separator = "|||"
secondary_separator = ";;;"
enable_wildcard = true
caption_prefix = "{photo|picture} of"
caption_suffix = ", mira"
caption_tag_dropout_rate = 0.2
caption_dropout_rate = 0.1
caption_dropout_every_n_epochs = 3
token_warmup_min = 1
token_warmup_step = 0.5

[[datasets]]
resolution = 128
batch_size = 2
  [[datasets.subsets]]
  image_dir = "HOME/files"
  num_repeats = 0.5
  face_crop_aug_range = [1.5, 3.0]
  [[datasets.subsets]]
  image_dir = "HOME/named"
  class_tokens = "{red|blue} cat;;;tail, sitting, (outdoors, evening)"
  alpha_mask = true
  loss_weight = 0.5
  [[datasets.subsets]]
  image_dir = "HOME/reg"
  class_tokens = "cat"
  is_reg = true

[[datasets]]
resolution = [64, 96]
batch_size = 1
  [[datasets.subsets]]
  image_dir = "HOME/listed"
  metadata_file = "HOME/listed.json"
  [[datasets.subsets]]
  image_dir = "HOME/reg"
  class_tokens = "thing"
  is_reg = true
"""


@pytest.fixture(scope="module")
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three styles, two resolutions, regularisation pictures, a face, a mask, and captions of several lines."""
    home = tmp_path_factory.mktemp("mixed")
    for folder in ("files", "named", "reg", "listed"):
        (home / folder).mkdir()
    for name in ("astronaut", "coffee", "dahlia"):
        shutil.copy(photos / f"{name}.jpg", home / "files")
        (home / "files" / f"{name}.txt").write_text(f"{name}|||indoors, bright, large\nsecond line, {{a|b}}\n")
    shutil.copy(photos / "astronaut.jpg", home / "files" / "face_110_50_40_50.jpg")
    (home / "files" / "face_110_50_40_50.txt").write_text("face, close, smiling\n")
    glass = Image.open(photos / "cat.jpg").convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(glass.size))
    glass.save(home / "named" / "glass.png")
    shutil.copy(photos / "pagoda.jpg", home / "named")
    for name in ("grass", "gravel", "brick_wall"):
        shutil.copy(photos / f"{name}.jpg", home / "reg")
    for name in ("coins.png", "cameraman.png"):
        shutil.copy(photos / name, home / "listed")
    entries = {"coins": {"caption": "coins", "tags": "round, metal"}, "cameraman": {"tags": "man, camera, grey"}}
    (home / "listed.json").write_text(json.dumps(entries), encoding="utf-8")
    (home / "all.toml").write_text(EVERYTHING.replace("HOME", home.as_posix()), encoding="utf-8")
    return ["--dataset_config", str(home / "all.toml"), *STEPS]


def fixed(data: list[str], *words: str) -> list[str]:
    """With fixed crops and colours, which caches can hold."""
    return [*data, "--augmentation_variants", "2", *words]


@pytest.fixture(scope="module")
def drawn_anew(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return run_here(tiny_models["sd1"], data, tmp_path_factory.mktemp("anew"))


@pytest.fixture(scope="module")
def reference(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return run_here(tiny_models["sd1"], fixed(data), tmp_path_factory.mktemp("fixed"))


def test_workers_change_no_byte(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, drawn_anew: Tensors, reference: Tensors
) -> None:
    workers = ["--max_data_loader_n_workers", "2"]
    assert_same(run_here(tiny_models["sd1"], [*data, *workers], tmp_path / "anew"), drawn_anew)
    assert_same(run_here(tiny_models["sd1"], fixed(data, *workers), tmp_path / "fixed"), reference)
    assert largest_difference(drawn_anew, reference) > 1e-4  # fixed looks are others than those drawn anew


@pytest.mark.parametrize("words", [[], ["--cache_latent_distribution"]], ids=["one draw", "draws anew"])
def test_caches_change_no_byte(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors, words: list[str]
) -> None:
    def run(name: str, *more: str) -> Tensors:
        return run_here(tiny_models["sd1"], fixed(data, *words, *more), tmp_path / name)

    expected = run("none") if words else reference
    assert_same(run("memory", "--cache_latents", "--max_data_loader_n_workers", "1"), expected)
    assert_same(run("disk", "--cache_latents_to_disk"), expected)
    assert_same(run("again", "--cache_latents_to_disk", "--max_data_loader_n_workers", "2"), expected)
    assert largest_difference(expected, reference) > 1e-4 or not words


def test_processes_change_nothing(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    two = run_process(tiny_models["sd1"], fixed(data, "--cache_latents"), tmp_path / "two", processes=2)
    one = run_here(tiny_models["sd1"], fixed(data), tmp_path / "one", "--gradient_accumulation_steps", "2")
    assert largest_difference(one, two) < 1e-5
