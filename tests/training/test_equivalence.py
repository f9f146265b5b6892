"""Training is a pure function of options, data and seed: what must not matter does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.runs import Tensors, assert_same, largest_difference, run_here, run_process

BUCKETS = ["--resolution", "128", "--enable_bucket", "--min_bucket_reso", "64", "--bucket_reso_steps", "32"]
STEPS = ["--max_train_steps", "6", "--train_batch_size", "2"]


@pytest.fixture(scope="module")
def data(photos: Path) -> list[str]:
    """Photographs of differing shapes in buckets."""
    return ["--train_data_dir", str(photos), *BUCKETS, *STEPS]


@pytest.fixture(scope="module")
def square(photos: Path) -> list[str]:
    """All photographs in the one bucket of 64x64."""
    return ["--train_data_dir", str(photos), "--resolution", "64"]


@pytest.fixture(scope="module")
def reference(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    out = tmp_path_factory.mktemp("reference")
    return run_here(tiny_models["sd1"], data, out)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "last-log.jsonl").read_text().splitlines()]
    return [row["loss/current"] for row in rows if "loss/current" in row]


@pytest.mark.parametrize(
    "words",
    [
        ["--max_data_loader_n_workers", "0"],
        ["--max_data_loader_n_workers", "1"],
        ["--max_data_loader_n_workers", "2"],
        ["--cache_latents"],
        ["--cache_latents", "--max_data_loader_n_workers", "2"],
    ],
    ids=" ".join,
)
def test_workers_and_cache_change_no_byte(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors, words: list[str]
) -> None:
    torch.rand(7)  # whatever else drew from the global state must not matter
    assert_same(run_here(tiny_models["sd1"], data, tmp_path, *words), reference)


@pytest.mark.parametrize("with_accelerate", [False, True], ids=["python", "accelerate launch"])
def test_another_process_gives_the_same_bytes(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors, with_accelerate: bool
) -> None:
    assert_same(run_process(tiny_models["sd1"], data, tmp_path, with_accelerate=with_accelerate), reference)


def test_another_seed_gives_another_result(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors
) -> None:
    assert largest_difference(run_here(tiny_models["sd1"], data, tmp_path, "--seed", "1"), reference) > 1e-3


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_accumulating_two_equals_a_batch_of_two(
    tiny_models: dict[str, Path], square: list[str], tmp_path: Path, kind: str
) -> None:
    # With its default eps AdamW's first updates are signs of gradients, also of those that are nothing but rounding
    # noise; eps lets such gradients count as what they are.
    optimizer = ["--learning_rate", "1e-4", "--optimizer_args", "eps=1e-3"]
    answer = ["--v2"] if kind == "sd2" else []
    steps = ["--max_train_steps", "8", *optimizer, *answer, "--gradient_accumulation_steps"]
    batch = run_here(tiny_models[kind], square, tmp_path / "a", "--train_batch_size", "2", *steps, "1")
    accumulated = run_here(tiny_models[kind], square, tmp_path / "b", "--train_batch_size", "1", *steps, "2")
    assert largest_difference(batch, accumulated) < 1e-5
    moved = max(float(value.abs().max()) for key, value in batch.items() if "lora_up" in key)
    assert moved > 1e-4
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)


def test_two_processes_equal_one_that_accumulates_two(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    # twelve updates go beyond the first epoch, whose last update has a batch for one of the processes only
    longer = [*data, "--max_train_steps", "12", "--train_batch_size", "1"]
    two = run_process(tiny_models["sd1"], longer, tmp_path / "two", processes=2)
    one = run_here(tiny_models["sd1"], longer, tmp_path / "one", "--gradient_accumulation_steps", "2")
    assert largest_difference(one, two) < 1e-5
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-5)


def test_gradient_checkpointing_changes_nothing(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors
) -> None:
    tensors = run_here(tiny_models["sd1"], data, tmp_path, "--gradient_checkpointing")
    assert largest_difference(tensors, reference) < 1e-5


def test_dropout_is_drawn_for_the_batch_not_the_process(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, reference: Tensors
) -> None:
    first = run_here(tiny_models["sd1"], data, tmp_path / "a", "--network_dropout", "0.3")
    torch.rand(3)
    again = run_here(
        tiny_models["sd1"], data, tmp_path / "b", "--network_dropout", "0.3", "--max_data_loader_n_workers", "1"
    )
    assert_same(first, again)
    assert largest_difference(first, reference) > 1e-4


def test_regularisation_of_weight_zero_equals_none_at_all(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """A batch of two training uses and two weightless ones has half the loss; twice the rate of SGD undoes that."""
    train, reg = tmp_path / "train" / "2_shs cat", tmp_path / "reg" / "1_cat"
    for folder, name in ((train, "cat.jpg"), (reg, "dahlia.jpg")):
        folder.mkdir(parents=True)
        (folder / name).write_bytes((photos / name).read_bytes())
    words = ["--train_data_dir", str(train.parent), "--resolution", "64", "--max_train_steps", "4"]
    words += ["--optimizer_type", "SGD", "--max_grad_norm", "0"]
    with_reg = [*words, "--reg_data_dir", str(reg.parent)]
    two, four = (["--train_batch_size", batch, "--learning_rate", rate] for batch, rate in (("2", "10"), ("4", "20")))
    alone = run_here(tiny_models["sd1"], words, tmp_path / "alone", *two)
    weightless = run_here(tiny_models["sd1"], with_reg, tmp_path / "weightless", *four, "--prior_loss_weight", "0")
    weighted = run_here(tiny_models["sd1"], with_reg, tmp_path / "weighted", *four)
    moved = max(float(value.abs().max()) for key, value in alone.items() if "lora_up" in key)
    assert moved > 1e-3
    assert largest_difference(alone, weightless) < 1e-3 * moved
    assert largest_difference(alone, weighted) > 1e-2 * moved
