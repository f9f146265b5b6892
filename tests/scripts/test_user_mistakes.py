"""Mistakes people really make: each ends in one message that names the place and the mend, before a model is loaded."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import train_network
from library.core.errors import UserError
from library.models import load
from tests.training.runs import ROOT, environment

IMPORT_LINE = "import time:"  # what `python -X importtime` puts before every module it imports
LOADERS = (load.__name__, "diffusers", "accelerate")  # without them no model can be loaded and nothing can train


@dataclass(frozen=True)
class World:
    """A folder where everything is in order, and the words that would train with it."""

    root: Path
    model: Path
    photos: Path

    @property
    def parent(self) -> Path:
        return self.root / "pictures"

    @property
    def leaf(self) -> Path:
        return self.parent / "10_shs cat"

    def words(self, **changes: str | None) -> list[str]:
        """The command line of a good run with some options changed; None leaves one out, "" gives a bare switch."""
        options: dict[str, str | None] = {
            "pretrained_model_name_or_path": str(self.model),
            "train_data_dir": str(self.parent),
            "resolution": "64",
            "max_train_steps": "1",
            "max_data_loader_n_workers": "0",
            "output_dir": str(self.root / "out"),
        }
        given = {**options, **changes}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", value) if word]

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture
def world(tmp_path: Path, tiny_models: dict[str, Path], photos: Path) -> World:
    """Two good pictures in a numbered folder."""
    world = World(tmp_path, tiny_models["sd1"], photos)
    world.leaf.mkdir(parents=True)
    for name in ("cat.jpg", "coffee.jpg"):
        shutil.copy(photos / name, world.leaf)
    return world


@dataclass(frozen=True)
class Mistake:
    """A command line, and what its message must say of the place, the matter and the mend."""

    words: list[str]
    where: str
    what: str
    fix: str


def misspelt_flag(world: World) -> Mistake:
    words = world.words(netwrok_dim="4")
    return Mistake(words, "command line", "--netwrok_dim is not an option", "did you mean --network_dim?")


def missing_model(world: World) -> Mistake:
    path = str(world.root / "none.safetensors")
    words = world.words(pretrained_model_name_or_path=path)
    where = f"--pretrained_model_name_or_path {path}"
    return Mistake(words, where, "no such file or folder", "check the path")


def empty_folder(world: World) -> Mistake:
    (world.root / "empty").mkdir()
    words = world.words(train_data_dir=str(world.root / "empty"))
    return Mistake(words, "--train_data_dir", "neither pictures nor folders named N_identifier class", "put the pic")


def leaf_instead_of_parent(world: World) -> Mistake:
    words = world.words(train_data_dir=str(world.leaf))
    return Mistake(words, "--train_data_dir", "its parent is needed", f"give its parent {world.parent}")


def parent_instead_of_leaf(world: World) -> Mistake:
    file = world.write("set.toml", f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{world.parent}'\n")
    words = world.words(train_data_dir=None, dataset_config=str(file))
    return Mistake(words, str(world.parent), "they lie in its folders 10_shs cat", "")


def broken_dataset_file(world: World) -> Mistake:
    file = world.write("set.toml", "[[datasets]]\nresolution = = 64\n")
    words = world.words(train_data_dir=None, dataset_config=str(file))
    return Mistake(words, f"--dataset_config {file}", "not valid TOML: Invalid value (at line 2", "mend that line")


def broken_options_file(world: World) -> Mistake:
    file = world.write("run.toml", "network_dim = 4\ntrain_data_dir = C:\\pictures\n")
    words = world.words(config_file=str(file))
    return Mistake(words, f"--config_file {file}", "not valid TOML: Invalid value (at line 2", "text stands in quotes")


def unknown_key_in_dataset_file(world: World) -> Mistake:
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{world.leaf}'\nclass_tokens = 'x'\nnum_repeat = 3\n"
    file = world.write("set.toml", text)
    words = world.words(train_data_dir=None, dataset_config=str(file))
    place = f"{file}, line 5, key num_repeat"
    return Mistake(words, place, "num_repeat is not a key of a dataset file", "did you mean num_repeats?")


def wrong_type_on_the_command_line(world: World) -> Mistake:
    words = world.words(max_train_steps="many")
    return Mistake(words, "--max_train_steps", "a whole number is expected, got 'many' (text)", "number of updates")


def wrong_type_in_dataset_file(world: World) -> Mistake:
    text = f"[[datasets]]\nbatch_size = '2'\n[[datasets.subsets]]\nimage_dir = '{world.leaf}'\nclass_tokens = 'x'\n"
    file = world.write("set.toml", text)
    words = world.words(train_data_dir=None, dataset_config=str(file))
    return Mistake(words, f"{file}, line 2, key batch_size", "a whole number is expected, got '2'", "batch_size = 4")


def odd_resolution(world: World) -> Mistake:
    words = world.words(resolution="500")
    return Mistake(words, "--resolution", "500x500 must be divisible by 64", "the nearest sizes are 448x448 or 512x512")


def truncated_picture(world: World) -> Mistake:
    content = (world.photos / "dahlia.jpg").read_bytes()
    path = world.leaf / "dahlia.jpg"
    path.write_bytes(content[: len(content) // 2])
    what = "the picture is broken: the file ends before the picture does"
    return Mistake(world.words(), str(path), what, "take it out")


def text_named_as_picture(world: World) -> Mistake:
    path = world.leaf / "notes.png"
    path.write_text("a list of things to do\n", encoding="utf-8")
    return Mistake(world.words(), str(path), "the content is not a picture", "replace the file or take it out")


def no_caption_at_all(world: World) -> Mistake:
    folder = world.root / "plain"
    world.leaf.rename(folder)
    what = "2 of 2 pictures have neither a caption file (.txt or .caption) nor class tokens: cat.jpg, coffee.jpg"
    return Mistake(world.words(train_data_dir=str(folder)), str(folder), what, "--allow_missing_captions")


MISTAKES = [
    misspelt_flag,
    missing_model,
    empty_folder,
    leaf_instead_of_parent,
    parent_instead_of_leaf,
    broken_dataset_file,
    broken_options_file,
    unknown_key_in_dataset_file,
    wrong_type_on_the_command_line,
    wrong_type_in_dataset_file,
    odd_resolution,
    truncated_picture,
    text_named_as_picture,
    no_caption_at_all,
]


@dataclass(frozen=True)
class Answer:
    """What the process of the real script left behind."""

    code: int
    stdout: str
    message: list[str]
    imported: frozenset[str]


def ask_the_script(words: list[str]) -> Answer:
    """Runs train_network.py as a person would, while Python notes on standard error what it imports."""
    command = [sys.executable, "-X", "importtime", "train_network.py", *words]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    lines = result.stderr.splitlines()
    imported = (line.rpartition("|")[2].strip() for line in lines if line.startswith(IMPORT_LINE))
    message = [line for line in lines if not line.startswith(IMPORT_LINE)]
    return Answer(result.returncode, result.stdout, message, frozenset(imported))


@pytest.mark.parametrize("make", MISTAKES, ids=lambda make: make.__name__)
def test_a_mistake_gives_one_message_with_place_and_mend(world: World, make: Callable[[World], Mistake]) -> None:
    mistake = make(world)
    answer = ask_the_script(mistake.words)
    head, problem, mend = answer.message  # exactly three lines: nothing else is said
    assert head == "1 problem to mend before anything can run:"
    assert problem.startswith(f"  * {mistake.where}") and mistake.what in problem
    assert mend.startswith("    -> ") and mistake.fix in mend
    assert (answer.code, answer.stdout) == (1, "")
    assert "argparse" in answer.imported  # the imports were noted
    assert answer.imported.isdisjoint(LOADERS)
    assert not (world.root / "out").exists()


def test_mistakes_of_all_kinds_are_told_in_one_go(world: World) -> None:
    truncated, missing, odd = truncated_picture(world), missing_model(world), odd_resolution(world)
    changes = {"resolution": "500", "max_train_steps": None, "network_train_unet_only": "", "text_encoder_lr": "1e-4"}
    words = world.words(pretrained_model_name_or_path=missing.where.split()[1], **changes)
    with pytest.raises(UserError) as caught:
        train_network.main(words)
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert truncated.what in told.pop(truncated.where)
    assert missing.what in told.pop(missing.where)
    assert odd.what in told.pop(odd.where)
    assert told == {
        "--max_train_steps, --max_train_epochs": "how long to train is not said",
        "--text_encoder_lr": "the text encoder does not train",
    }


def test_wrong_flags_are_all_told_before_anything_is_looked_at(world: World) -> None:
    words = world.words(pretrained_model_name_or_path=None, netwrok_dim="4", max_train_steps="many")
    with pytest.raises(UserError) as caught:
        train_network.main(words)
    assert [problem.what for problem in caught.value.problems] == [
        "--netwrok_dim is not an option",
        "a whole number is expected, got 'many' (text)",
        "--pretrained_model_name_or_path is missing",
    ]
