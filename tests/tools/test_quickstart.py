"""The parts of quickstart.py that need no training: what it reads, counts and prints."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import quickstart


def test_reads_the_names_in_a_safetensors_file(tmp_path: Path) -> None:
    table = {"__metadata__": {"a": "b"}, "x.lora_down.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    header = json.dumps(table).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert quickstart.safetensors_keys(path) == ["x.lora_down.weight"]


def test_reads_the_loss_of_a_log_and_compares_its_ends(tmp_path: Path) -> None:
    log = quickstart.output_log(tmp_path)
    log.write_text("".join(json.dumps({"step": step, "loss/current": 10.0 - step}) + "\n" for step in range(10)))
    losses = quickstart.read_log(log)
    assert len(losses) == 10
    assert quickstart.loss_change(losses) == (9.5, 1.5)


def test_no_log_and_too_few_steps_give_no_comparison(tmp_path: Path) -> None:
    assert quickstart.read_log(tmp_path / "none.jsonl") == []
    assert quickstart.loss_change([1.0]) is None


def test_the_command_can_be_typed_as_shown() -> None:
    arguments = ["train_network.py", "--train_data_dir", "my pictures"]
    assert quickstart.format_command("py", arguments, windows=False) == (
        "py train_network.py \\\n    --train_data_dir 'my pictures'"
    )
    in_one_line = 'py train_network.py --train_data_dir "my pictures"'
    assert quickstart.format_command("py", arguments, windows=True) == in_one_line


@pytest.mark.parametrize("kind", ["*.jpg", "*.png", "*.webp"])
def test_every_picture_has_a_caption(kind: str) -> None:
    pictures = list((quickstart.ROOT / quickstart.PHOTOS).glob(kind))
    assert pictures
    captions = [picture.with_suffix(".txt").read_text(encoding="utf-8") for picture in pictures]
    assert all(caption.strip() for caption in captions)
