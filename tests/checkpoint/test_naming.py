"""Names of the files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import train_network
from library.checkpoint.naming import average_file, epoch_stem, last_file, last_stem, log_file, state_folder, step_stem


@pytest.mark.parametrize(
    ("name", "network", "log"),
    [
        (None, "last.safetensors", "last-log.jsonl"),
        ("cat", "cat.safetensors", "cat-log.jsonl"),
        ("cat.v2", "cat.v2.safetensors", "cat.v2-log.jsonl"),  # a dot in the name is no extension
        ("猫 2", "猫 2.safetensors", "猫 2-log.jsonl"),
    ],
)
def test_a_run_leaves_exactly_the_files_it_names(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, name: str | None, network: str, log: str
) -> None:
    assert last_file(tmp_path, name, ".safetensors") == tmp_path / network
    assert log_file(tmp_path, name) == tmp_path / log
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(photos)]
    words += ["--resolution", "64", "--max_train_steps", "1", "--max_data_loader_n_workers", "0"]
    train_network.main([*words, "--output_dir", str(tmp_path), *(["--output_name", name] if name else [])])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([network, log])


def test_other_kinds_of_file_differ_by_their_extension_only() -> None:
    assert last_file(Path("out"), "cat", ".ckpt") == Path("out/cat.ckpt")


def test_names_on_the_way_are_those_of_the_field() -> None:
    assert (epoch_stem("cat", 2), step_stem("cat", 3), last_stem("cat")) == ("cat-000002", "cat-step00000003", "cat")
    assert (epoch_stem(None, 2), step_stem(None, 3), last_stem(None)) == ("epoch-000002", "at-step00000003", "last")
    assert state_folder(Path("out"), epoch_stem("cat", 12)) == Path("out/cat-000012-state")
    assert state_folder(Path("out"), last_stem(None)) == Path("out/last-state")
    assert average_file(Path("out/cat-000002.safetensors")) == Path("out/cat-000002-ema.safetensors")
    assert average_file(Path("out/cat.v2")) == Path("out/cat.v2-ema")  # the folder of a model
