from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from library.text.tokenizer import CaptionTokenizer, load_tokenizer, tokenizer_files

ROOT = Path(__file__).resolve().parents[2]
CAT = [49406, 320, 1125, 539, 320, 2368, 49407]
CAPTIONS = [
    "a photo of a cat",
    "",
    "  Two   DOGS,\nplaying!! ",
    "naïve café, 東京の夜, 🐱🐶",
    "1girl, (masterpiece:1.2), [blurry] \\(series\\)",
    "it's the dog's 100th birthday & we're happy",
    "<|endoftext|> in the middle",
    "word " * 100,
]


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_rows_are_those_of_the_transformers_tokenizer(family: str) -> None:
    reference = load_tokenizer(family)
    expected = reference(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    rows = CaptionTokenizer(family)(CAPTIONS)
    assert rows.dtype == torch.long and rows.shape == (len(CAPTIONS), 77)
    assert torch.equal(rows, expected)


def test_known_ids_and_padding() -> None:
    sd1, sd2 = (CaptionTokenizer(family)(["a photo of a cat"])[0].tolist() for family in ("sd1", "sd2"))
    assert sd1 == CAT + [49407] * 70
    assert sd2 == CAT + [0] * 70


def test_long_captions_are_counted_before_they_are_cut() -> None:
    tokenizer = CaptionTokenizer("sd1")
    assert tokenizer.count_tokens(["", "a photo of a cat", "word " * 100]) == [0, 5, 100]
    row = tokenizer(["word " * 100])[0]
    assert row[0] == 49406 and row[-1] == 49407
    assert (row[1:-1] == row[1]).all()


def test_no_captions_give_no_rows() -> None:
    assert CaptionTokenizer("sd1")([]).shape == (0, 77)


def test_a_pickled_copy_works_alike() -> None:
    tokenizer = CaptionTokenizer("sd2")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert torch.equal(copy(CAPTIONS), tokenizer(CAPTIONS))


_FORK = """
import multiprocessing
from library.text.tokenizer import CaptionTokenizer
tokenizer = CaptionTokenizer("sd1")
tokenizer(["a cat", "a dog"])
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.apply(tokenizer.count_tokens, (["a cat", "a dog"],)))
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
def test_forked_workers_are_not_warned() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", _FORK]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[2, 2]"
    assert "parallelism" not in result.stderr


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_tokenizer_files_are_read_by_transformers(tmp_path: Path, family: str) -> None:
    for name, text in tokenizer_files(family).items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")
    loaded = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    rows = loaded(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert len(loaded) == 49408
    assert torch.equal(rows, CaptionTokenizer(family)(CAPTIONS))


def test_the_vocabulary_comes_with_its_licence() -> None:
    text = (ROOT / "library" / "text" / "clip_vocabulary" / "LICENSE").read_text("utf-8")
    assert "OpenAI" in text and "Permission is hereby granted" in text
