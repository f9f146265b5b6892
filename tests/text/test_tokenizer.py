from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from library.options.text import TextOptions
from library.text.tokenizer import CaptionTokenizer, load_tokenizer, tokenizer_files

MakeTokenizer = Callable[[str, TextOptions], CaptionTokenizer]
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
    rows, weights = CaptionTokenizer(family)(CAPTIONS)
    assert rows.dtype == torch.long and rows.shape == (len(CAPTIONS), 1, 77)
    assert torch.equal(rows[:, 0], expected)
    assert weights is None


def test_known_ids_and_padding() -> None:
    sd1, sd2 = (CaptionTokenizer(family)(["a photo of a cat"])[0][0, 0].tolist() for family in ("sd1", "sd2"))
    assert sd1 == CAT + [49407] * 70
    assert sd2 == CAT + [0] * 70


def test_long_captions_are_counted_before_they_are_cut() -> None:
    tokenizer = CaptionTokenizer("sd1")
    captions = ["", "a photo of a cat", "word " * 100]
    assert tokenizer.count_tokens(captions) == [0, 5, 100]
    assert tokenizer.count_lost(captions) == [0, 0, 25]
    row = tokenizer(captions)[0][2, 0]
    assert row[0] == 49406 and row[-1] == 49407
    assert (row[1:-1] == row[1]).all()


@pytest.mark.parametrize("length", (75, 150, 225))
@pytest.mark.parametrize("splitting", ("plain", "webui"))
def test_longer_captions_are_several_rows(length: int, splitting: str) -> None:
    tokenizer = CaptionTokenizer("sd1", TextOptions(max_token_length=length, prompt_splitting=splitting))
    captions = ["", "word " * 70 + ", " + "word " * 200]
    rows, _ = tokenizer(captions)
    assert rows.shape == (2, length // 75, 77)
    assert (rows[0] == torch.tensor([49406] + [49407] * 76)).all()
    gap = 4 if splitting == "webui" and length > 75 else 0  # the words behind the comma move on
    assert tokenizer.count_lost(captions) == [0, 271 + gap - length]
    assert int((rows[1] < 49406).sum()) == length - gap


def test_no_captions_give_no_rows() -> None:
    assert CaptionTokenizer("sd1")([])[0].shape == (0, 1, 77)
    ids, weights = CaptionTokenizer("sd2", TextOptions(max_token_length=225, weighted_captions=True))([])
    assert ids.shape == (0, 3, 77) and weights is not None and weights.shape == (0, 3, 77)


def test_weights_stand_where_their_tokens_do() -> None:
    tokenizer = CaptionTokenizer("sd1", TextOptions(weighted_captions=True))
    captions = ["a photo of (a cat:1.5)", r"[a] \(photo\)", "word " * 74 + "(cat dog)"]
    ids, weights = tokenizer(captions)
    assert weights is not None and weights.dtype == torch.float32 and weights.shape == ids.shape
    assert ids[0, 0].tolist() == CAT + [49407] * 70
    assert weights[0, 0].tolist() == [1.0] * 4 + [1.5] * 2 + [1.0] * 71
    assert ids[1, 0, :6].tolist() == [49406, 320, 263, 1125, 264, 49407]  # a ( photo ) end, with ends of words
    assert weights[1, 0].tolist() == pytest.approx([1.0, 1 / 1.1] + [1.0] * 75)
    assert weights[2, 0].tolist() == pytest.approx([1.0] * 75 + [1.1, 1.0])
    assert tokenizer.count_tokens(captions) == [5, 4, 76]
    assert tokenizer.count_lost(captions) == [0, 0, 1]


def test_pieces_are_tokenised_one_by_one() -> None:
    weighted = CaptionTokenizer("sd1", TextOptions(weighted_captions=True))
    halves = weighted.count_tokens(["photo(graph)"])[0]
    assert halves == 2 and CaptionTokenizer("sd1").count_tokens(["photograph"]) == [1]


def test_brackets_are_text_without_weighted_captions() -> None:
    assert CaptionTokenizer("sd1").count_tokens(["(cat:1.5)"])[0] > 1


@pytest.mark.parametrize(("family", "padding"), (("sd1", 49407), ("sd2", 0)))
def test_without_padding_rows_are_as_long_as_the_longest(family: str, padding: int) -> None:
    tokenizer = CaptionTokenizer(family, TextOptions(no_token_padding=True, weighted_captions=True))
    ids, weights = tokenizer(["a photo of a (cat:2)", "cat"])
    assert ids.tolist() == [[CAT], [[49406, 2368, 49407] + [padding] * 4]]
    assert weights is not None and weights.tolist() == [[[1.0] * 5 + [2.0, 1.0]], [[1.0] * 7]]
    assert tokenizer(["cat"])[0].tolist() == [[[49406, 2368, 49407]]]
    assert tokenizer([""])[0].tolist() == [[[49406, 49407]]]
    assert tokenizer(["word " * 100, "cat"])[0].shape == (2, 1, 77)
    assert tokenizer.count_lost(["word " * 100]) == [25]


def test_unpadded_rows_are_those_of_the_transformers_tokenizer() -> None:
    expected = load_tokenizer("sd2")(CAPTIONS, padding="longest", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(CaptionTokenizer("sd2", TextOptions(no_token_padding=True))(CAPTIONS)[0][:, 0], expected)


SETTINGS = [
    TextOptions(),
    TextOptions(max_token_length=225, weighted_captions=True),
    TextOptions(max_token_length=150, prompt_splitting="webui", weighted_captions=True),
]
LONG = [*CAPTIONS, "a (very:1.3) long, [caption], " * 40]


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_a_pickled_copy_works_alike(family: str, options: TextOptions) -> None:
    tokenizer = CaptionTokenizer(family, options)
    fresh = pickle.dumps(tokenizer)
    ids, weights = tokenizer(LONG)
    for copy in (fresh, pickle.dumps(tokenizer)):
        again, again_weights = pickle.loads(copy)(LONG)
        assert torch.equal(again, ids)
        assert (weights is None and again_weights is None) or torch.equal(again_weights, weights)


@pytest.mark.parametrize("options", SETTINGS)
def test_the_rows_of_a_caption_do_not_depend_on_its_batch(
    caption_tokenizer: MakeTokenizer, options: TextOptions
) -> None:
    together, one_by_one = caption_tokenizer("sd2", options), CaptionTokenizer("sd2", options)
    ids, weights = together(LONG)
    for i, caption in enumerate(LONG):
        alone, alone_weights = one_by_one([caption])
        assert torch.equal(alone[0], ids[i])
        assert weights is None or torch.equal(alone_weights[0], weights[i])


def test_changing_rows_in_place_does_not_reach_what_is_remembered() -> None:
    tokenizer = CaptionTokenizer("sd1")
    tokenizer(["a photo of a cat"])[0].zero_()
    assert tokenizer(["a photo of a cat"])[0][0, 0, :7].tolist() == CAT


# brackets and backslashes are what weights are written with
WORDS = st.lists(st.text(st.sampled_from("aé, .:1!日🐱'"), min_size=1, max_size=12), max_size=60)
NEUTRAL = st.sampled_from(("{}", "({}:1.0)", "({}: 1 )", "({}:+1.)", "(({}:1.0):1)"))


@pytest.fixture(scope="module")
def readers(caption_tokenizer: MakeTokenizer) -> list[tuple[CaptionTokenizer, CaptionTokenizer]]:
    """For each length: without and with weights."""
    lengths = ((75, "plain"), (150, "webui"), (225, "plain"))
    plain = [TextOptions(max_token_length=length, prompt_splitting=splitting) for length, splitting in lengths]
    return [
        (caption_tokenizer("sd2", options), caption_tokenizer("sd2", replace(options, weighted_captions=True)))
        for options in plain
    ]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(words=WORDS, data=st.data())
def test_weights_of_one_change_nothing(
    readers: list[tuple[CaptionTokenizer, CaptionTokenizer]], words: list[str], data: st.DataObject
) -> None:
    marked = [data.draw(NEUTRAL).format(word) for word in words]
    for plain, weighted in readers:
        expected = plain(["-".join(words)])[0]
        for caption in ("-".join(words), "-".join(marked)):
            ids, weights = weighted([caption])
            assert torch.equal(ids, expected)
            assert weights is not None and bool((weights == 1).all())


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
    assert torch.equal(rows, CaptionTokenizer(family)(CAPTIONS)[0][:, 0])


def test_the_vocabulary_comes_with_its_licence() -> None:
    text = (ROOT / "library" / "text" / "clip_vocabulary" / "LICENSE").read_text("utf-8")
    assert "OpenAI" in text and "Permission is hereby granted" in text
