"""What a run says before it starts: captions that are too long, and nothing that a terminal would obey."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from library.data.planner import Planner
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.training.checks.preflight import check_network_run
from library.training.methods import make_tokenizer
from library.training.progress import plan_run
from library.training.report import start_report
from tests.data.data_helpers import save_picture


def lines_of(model: Path, folder: Path, *words: str) -> list[str]:
    entry = SCRIPTS["train_network.py"]
    base = [
        *("--pretrained_model_name_or_path", str(model), "--train_data_dir", str(folder), "--resolution", "64"),
        *("--max_train_steps", "3", "--output_dir", str(folder / "out"), "--network_module", "networks.lora"),
    ]
    run = check_network_run(parse_options("train_network.py", entry.description, entry.groups, [*base, *words]))
    planner = Planner(run.index, run.placements, [1], 0)
    return start_report(run, planner, plan_run(planner, 3, None), make_tokenizer(run), [], Accelerator(cpu=True))


def test_of_captions_with_wildcards_the_drawn_ones_are_judged(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """A long choice of short texts fits; a choice of long texts does not."""
    captions = {
        "fits": "a cat, {" + "|".join(f"word number {letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 2) + "}",
        "long": "{" + "|".join(" ".join([letter, "dog"] * 50) for letter in "abc") + "}",
    }
    for name, caption in captions.items():
        save_picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    lines = lines_of(tiny_models["sd1"], tmp_path, "--enable_wildcard")
    (line,) = [line for line in lines if "do not fit" in line]
    assert line.startswith("warning: 1 captions do not fit into 75 tokens; the rest is not read (25 tokens): long.png")
    (line,) = [line for line in lines_of(tiny_models["sd1"], tmp_path) if "do not fit" in line]
    assert "2 captions" in line and "fits.png" in line


@pytest.mark.skipif(sys.platform == "win32", reason="names there cannot hold control characters")
def test_control_characters_are_shown_as_codes(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    save_picture(tmp_path / "a\x1b[2J\n\x9b.png", (600, 64))
    (tmp_path / "a\x1b[2J\n\x9b.txt").write_text("dog " * 90, encoding="utf-8")
    lines = lines_of(tiny_models["sd1"], tmp_path)
    assert any(r"(15 tokens): a\x1b[2J\n\x9b.png" in line for line in lines)
    assert not any(set(line) & {"\x1b", "\n", "\x9b"} for line in lines)


def test_saving_and_stopping_are_told(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dog", encoding="utf-8")

    def told(*words: str) -> str:
        (line,) = [line for line in lines_of(tiny_models["sd1"], tmp_path, *words) if line.startswith("saves: ")]
        return line.removeprefix("saves: ")

    assert told() == "at the end"
    state = ", with a state to resume from"
    assert told("--save_state") == told("--save_state_on_train_end") == f"at the end{state}"
    words = ("--save_every_n_epochs", "2", "--save_every_n_steps", "3")
    assert told(*words) == "every 2 epochs; every 3 updates; at the end"
    assert told(*words, "--save_state") == f"every 2 epochs{state}; every 3 updates{state}; at the end{state}"
    assert any(
        line.startswith("to stop: Ctrl-C, or a file named stop in ") for line in lines_of(tiny_models["sd1"], tmp_path)
    )
