"""What is checked before a model is loaded: the folders written to, and the network to start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_network
from library.core.errors import Problem, UserError
from tests.training.runs import largest_difference, run_here


@pytest.fixture
def model(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["sd1"]


@pytest.fixture(scope="module")
def data(photos: Path) -> list[str]:
    return ["--train_data_dir", str(photos), "--resolution", "64", "--max_train_steps", "1"]


@pytest.fixture(scope="module")
def trained(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("trained")
    run_here(tiny_models["sd1"], data, out)
    return out


def refusal(model: Path, data: list[str], out: Path, *words: str) -> Problem:
    """The only problem of a run that must be refused before the model is loaded."""
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out)]
    with pytest.raises(UserError) as caught:
        train_network.main([*base, *words])
    (problem,) = caught.value.problems
    return problem


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file"
    path.write_text("here first\n", encoding="utf-8")
    return path


def test_files_of_an_earlier_run_are_not_overwritten(model: Path, data: list[str], trained: Path) -> None:
    before = contents(trained)
    problem = refusal(model, data, trained)
    assert problem.where == "--output_dir, --output_name"
    assert problem.what == f"{trained / 'last.safetensors'} of an earlier run would be lost"
    assert "--overwrite" in problem.fix
    assert contents(trained) == before


def test_the_log_of_a_stopped_run_blocks_nobody(model: Path, data: list[str], tmp_path: Path) -> None:
    (tmp_path / "last-log.jsonl").write_text("of a run that was stopped\n", encoding="utf-8")
    assert run_here(model, data, tmp_path)


def test_another_name_leaves_the_earlier_files_alone(model: Path, data: list[str], trained: Path) -> None:
    before = contents(trained)
    run_here(model, data, trained, "--output_name", "second")
    after = contents(trained)
    assert set(after) - set(before) == {"second.safetensors", "second-log.jsonl"}
    assert {name: after[name] for name in before} == before
    for name in set(after) - set(before):
        (trained / name).unlink()


def test_overwrite_replaces_both_files(model: Path, data: list[str], tmp_path: Path) -> None:
    for name in ("last.safetensors", "last-log.jsonl"):
        (tmp_path / name).write_text("of an earlier run\n", encoding="utf-8")
    tensors = run_here(model, data, tmp_path, "--overwrite")
    assert tensors and "earlier" not in (tmp_path / "last-log.jsonl").read_text(encoding="utf-8")
    assert set(contents(tmp_path)) == {"last.safetensors", "last-log.jsonl"}


@pytest.mark.parametrize("flag", ["--output_dir", "--logging_dir"])
def test_a_file_in_the_place_of_a_folder_is_refused(
    model: Path, data: list[str], tmp_path: Path, file: Path, flag: str
) -> None:
    problem = refusal(model, data, tmp_path / "out", flag, str(file))
    assert problem == Problem(f"{file} is a file, a folder is needed", flag, "name another folder")
    assert file.read_text(encoding="utf-8") == "here first\n"


@pytest.mark.parametrize("name", ["sub/cat", "..", "cat?", ""])
def test_an_output_name_is_a_plain_name(model: Path, data: list[str], tmp_path: Path, name: str) -> None:
    problem = refusal(model, data, tmp_path / "out", "--output_name", name)
    assert problem.where == "--output_name" and "must be a plain name without folder" in problem.what


def test_an_output_folder_is_made_with_its_parents(model: Path, data: list[str], tmp_path: Path) -> None:
    run_here(model, data, tmp_path / "new" / "newer")
    assert set(contents(tmp_path / "new" / "newer")) == {"last.safetensors", "last-log.jsonl"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--network_weights", "none.safetensors"],
            Problem("none.safetensors is not a file", "--network_weights", "check the path"),
        ),
        (
            ["--network_module", "networks.lorra"],
            Problem(
                "cannot import networks.lorra: No module named 'networks.lorra'",
                "--network_module",
                "networks.lora is built in; others need their package installed",
            ),
        ),
        (
            ["--network_module", "networks"],
            Problem("networks has no create_network", "--network_module", "name a network module"),
        ),
        (
            ["--network_args", "conv_dim", "4"],
            Problem("'conv_dim' is not key=value", "--network_args", "write key=value without spaces"),
        ),
        (
            ["--optimizer_args", "lr=1"],
            Problem("lr is not set here", "--optimizer_args", "use --learning_rate"),
        ),
        (
            ["--v2"],
            Problem("the model is Stable Diffusion 1.x", "--v2", "leave --v2 out, or give a Stable Diffusion 2.x"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    model: Path, data: list[str], tmp_path: Path, words: list[str], expected: Problem
) -> None:
    problem = refusal(model, data, tmp_path / "out", *words)
    assert (problem.where, problem.what) == (expected.where, expected.what)
    assert problem.fix.startswith(expected.fix)
    assert not (tmp_path / "out").exists()


def test_network_weights_are_where_training_goes_on(
    model: Path, data: list[str], trained: Path, tmp_path: Path
) -> None:
    start = load_file(str(trained / "last.safetensors"))
    words = ["--network_weights", str(trained / "last.safetensors"), "--seed", "5"]
    standing = run_here(model, data, tmp_path / "a", *words, "--learning_rate", "1e-8")
    assert largest_difference(standing, start) < 1e-6
    moving = run_here(model, data, tmp_path / "b", *words, "--learning_rate", "1e-3")
    assert 5e-4 < largest_difference(moving, start) < 2e-3  # one step of Adam from the same place
    fresh = run_here(model, data, tmp_path / "c", "--seed", "5", "--learning_rate", "1e-12")
    assert largest_difference(fresh, start) > 1e-2


@pytest.mark.parametrize("dim", ["2", "8"])
def test_network_weights_of_another_rank_are_refused(
    model: Path, data: list[str], trained: Path, tmp_path: Path, dim: str
) -> None:
    words = ["--network_weights", str(trained / "last.safetensors"), "--network_dim", dim]
    problem = refusal(model, data, tmp_path / "out", *words)
    assert problem.where == f"--network_weights {trained / 'last.safetensors'}"
    assert (problem.what, problem.fix) == (f"the file has rank 4, --network_dim asks for {dim}", "give --network_dim 4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["base model", "text"])
def test_network_weights_that_are_no_network_are_refused(
    model: Path, data: list[str], tmp_path: Path, kind: str
) -> None:
    path = model if kind == "base model" else tmp_path / "notes.safetensors"
    if kind == "text":
        path.write_text("no tensors here\n", encoding="utf-8")
    problem = refusal(model, data, tmp_path / "out", "--network_weights", str(path))
    assert str(path) in problem.where
    assert ("holds no LoRA weights" if kind == "base model" else "this is plain text, no model") in problem.what
    assert not (tmp_path / "out").exists()


def test_the_earlier_file_is_whole_until_the_new_one_takes_its_place(
    model: Path, data: list[str], trained: Path, tmp_path: Path
) -> None:
    """Numbers that are not finite stop a run; what stood there before must still stand."""
    tensors = {key: tensor.clone() for key, tensor in load_file(str(trained / "last.safetensors")).items()}
    tensors[next(key for key in tensors if key.endswith("lora_up.weight"))].fill_(torch.nan)
    save_file(tensors, str(tmp_path / "broken.safetensors"))
    out = Path(shutil.copytree(trained, tmp_path / "out"))
    before = (out / "last.safetensors").read_bytes()
    problem = refusal(model, data, out, "--network_weights", str(tmp_path / "broken.safetensors"), "--overwrite")
    assert "finite" in problem.what
    assert (out / "last.safetensors").read_bytes() == before


def test_a_name_too_long_for_the_disk_is_refused(model: Path, data: list[str], tmp_path: Path) -> None:
    assert refusal(model, data, tmp_path / "out", "--output_name", "x" * 240).where == "--output_name"


@pytest.mark.parametrize("flag", ["--output_dir", "--logging_dir"])
def test_a_folder_below_a_file_is_refused(model: Path, data: list[str], tmp_path: Path, file: Path, flag: str) -> None:
    assert refusal(model, data, tmp_path / "out", flag, str(file / "below")).where == flag
