"""train_db.py and fine_tune.py: rates of the parts, and the update at which the text encoder stops."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import fine_tune
import train_db
from library.options.data import DataOptions
from library.options.keeping import KeepingOptions
from library.options.optimizer import OptimizerOptions
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.options.training import TrainingOptions
from tests.training.runs import ROOT, Tensors, assert_same, largest_difference

UNET, TEXT = "model.diffusion_model.", "cond_stage_model."
RATES = ["--unet_lr", "1e-3", "--text_encoder_lr", "1e-4", "--optimizer_args", "weight_decay=0"]
Train = Callable[..., Tensors]


@pytest.fixture
def train(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> Train:
    """Trains one of the scripts with so many updates; returns what it saved."""

    def run(script: Callable[[list[str]], None], steps: int, *words: str) -> Tensors:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        base = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(photos)]
        base += ["--resolution", "64", "--output_dir", str(out), "--max_data_loader_n_workers", "0"]
        script([*base, "--max_train_steps", str(steps), *words])
        return load_file(str(out / "last.safetensors"))

    return run


def part(tensors: Tensors, prefix: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("script", [train_db.main, lambda words: fine_tune.main([*words, "--train_text_encoder"])])
def test_each_part_learns_at_its_own_rate(
    train: Train, script: Callable[[list[str]], None], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Adam's first step goes by its rate in every weight whose gradient is more than rounding."""
    before = load_file(str(tiny_models["sd1"]))
    after = train(script, 1, *RATES)
    for prefix, rate in ((UNET, 1e-3), (TEXT, 1e-4)):
        assert largest_difference(part(before, prefix), part(after, prefix)) == pytest.approx(rate, rel=0.01)
    row = json.loads((tmp_path / "0" / "last-log.jsonl").read_text().splitlines()[0])
    assert (row["lr/unet"], row["lr/textencoder"]) == (1e-3, 1e-4)


def test_a_part_without_a_rate_has_the_common_one_and_guides_other_name_is_known(
    train: Train, tiny_models: dict[str, Path]
) -> None:
    before = load_file(str(tiny_models["sd1"]))
    words = ["--learning_rate", "1e-3", "--learning_rate_te", "1e-4", "--optimizer_args", "weight_decay=0"]
    after = train(train_db.main, 1, *words)
    for prefix, rate in ((UNET, 1e-3), (TEXT, 1e-4)):
        assert largest_difference(part(before, prefix), part(after, prefix)) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    "more",
    [[], pytest.param(["--gradient_checkpointing", "--train_batch_size", "2"], marks=pytest.mark.slow)],
    ids=["", "checkpointing"],
)
def test_the_text_encoder_stops_after_so_many_updates(train: Train, more: list[str]) -> None:
    """Adam's momentum and weight decay would move it on; what is left is what two updates made of it."""
    words = ["--learning_rate", "1e-3", *more]
    two, four = train(train_db.main, 2, *words), train(train_db.main, 4, *words)
    stopped = train(train_db.main, 4, *words, "--stop_text_encoder_training", "2")
    assert_same(part(stopped, TEXT), part(two, TEXT))
    assert largest_difference(part(stopped, TEXT), part(four, TEXT)) > 1e-4
    assert largest_difference(part(stopped, UNET), part(two, UNET)) > 1e-4


@pytest.mark.parametrize("stop", ["0", pytest.param("-1", marks=pytest.mark.slow)])
def test_a_text_encoder_that_stops_before_the_start_keeps_its_bits(
    train: Train, tiny_models: dict[str, Path], stop: str
) -> None:
    words = ["--learning_rate", "1e-3"]
    stopped = train(train_db.main, 2, *words, "--stop_text_encoder_training", stop)
    assert_same(part(stopped, TEXT), part(load_file(str(tiny_models["sd1"])), TEXT))
    assert_same(stopped, train(fine_tune.main, 2, *words))


def test_the_recipes_of_the_guide_are_understood() -> None:
    page = (ROOT / "docs" / "train_db.md").read_text(encoding="utf-8")
    recipes = page.partition("## Recipes")[2].partition("\n## ")[0]
    commands = [shlex.split(line) for line in recipes.splitlines() if line.startswith("python ")]
    assert [command[1] for command in commands] == ["train_db.py"] * 3 + ["fine_tune.py"]
    sizes, saves = [], []
    for _, name, *words in commands:
        script = SCRIPTS[name]
        options = parse_options(name, script.description, script.groups, words)
        training, data = options.of(TrainingOptions), options.of(DataOptions)
        sizes.append((data.train_batch_size, training.max_train_steps, options.of(OptimizerOptions).learning_rate))
        keeping = options.of(KeepingOptions)
        saves.append((keeping.save_every_n_epochs, keeping.save_state))
    assert saves == [(None, False), (None, False), (1, True), (None, False)]
    assert sizes == [(1, 1600, 1e-6), (4, 400, 1e-6), (20, 800, 5e-6), (1, 10000, 5e-6)]
