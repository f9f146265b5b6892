"""Text states against a second implementation, written from the definition alone and as plainly as can be.

It shares nothing with `library.text` but the vocabulary: brackets are paired character by character, rows are filled in
loops, the encoder's layers are run one by one under a mask built by hand, and the norm is computed from its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from library.options.text import TextOptions
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer, load_tokenizer

Encoders = Mapping[str, CLIPTextModel]
MakeTokenizer = Callable[[str, TextOptions], CaptionTokenizer]
BEGIN, END = 49406, 49407

# --- the prompts ------------------------------------------------------------------------------------------------------

LENGTHS = (5, 80, 160, 300)
UNITS = {
    "plain": ("red ", "cat, ", "on ", "the ", "big ", "house ", "with ", "rain. "),
    "weighted": ("a ", "(red ", "cat:1.3), ", "[old ", "(blue ", "[dog] ", "tree:0.6)] ", r"\(house\) ", "((sun)) "),
    "japanese": ("夜の", "東京、", "猫と", "少女が", "走る。"),
    "emoji": ("🐱", "🚀 ", "🌸🌸", "👩‍🎨, "),
}
# what SD2 does with its padding, `!`, and with chunks that are just full; brackets that are odd
SPECIAL = [
    "! a cat !",
    "red " * 74 + "! cat " + "blue " * 20,
    "red " * 75 + "! cat",
    "red " * 74 + "cat",
    "red " * 149 + "cat",
    "red " * 150 + "! cat",
    "red " * 225,
]
ODD_WEIGHTS = [
    "a (cat",
    "a cat) [dog (bird:1.2",
    "(a [b) c] :1.5)",
    r"\(a:1.2\) (b\):0.5) \\[c",
    "(one (two:1.5) :-0.5) three",
    "(" + "red " * 90 + ":1.4) end",
    "a: b (c: 1.25 )",
]


@dataclass(frozen=True)
class Reader:
    """The parts of the reference that belong to one model family."""

    family: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel

    @property
    def padding(self) -> int:
        return {"sd1": END, "sd2": 0}[self.family]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids


@pytest.fixture(scope="module")
def readers(encoders: Encoders) -> dict[str, Reader]:
    return {family: Reader(family, load_tokenizer(family), encoders[family]) for family in ("sd1", "sd2")}


@pytest.fixture(scope="module")
def prompts(readers: dict[str, Reader]) -> dict[bool, list[str]]:
    """Prompts without and with weights."""
    made = {kind: [make_prompt(readers["sd1"], kind, length) for length in LENGTHS] for kind in UNITS}
    weighted = [*made.pop("weighted"), *ODD_WEIGHTS]
    plain = [prompt for kind in made.values() for prompt in kind]
    return {False: ["", *plain, *SPECIAL, *weighted[:2]], True: ["", *weighted, *SPECIAL, *plain[-2:]]}


def make_prompt(reader: Reader, kind: str, length: int) -> str:
    """A text of at least so many tokens, marks of weights not counted, and a few more at most."""
    text, units = "", UNITS[kind]
    count, turn = 0, 0
    while count < length:
        text += units[turn % len(units)]
        turn += 1
        count = sum(len(reader.ids(piece)) for piece, _ in read_weights(text))
    assert count < length + 12
    return text


# --- the reference ----------------------------------------------------------------------------------------------------


def read_weights(text: str) -> list[tuple[str, float]]:
    """Every character gets the product of the brackets around it; characters of equal weight are joined."""
    characters: list[str] = []
    open_at: dict[str, list[int]] = {"(": [], "[": []}
    spans: list[tuple[int, int, float]] = []  # first and last character, factor
    i = 0
    while i < len(text):
        character = text[i]
        if character == "\\" and i + 1 < len(text) and text[i + 1] in "()[]\\":
            characters.append(text[i + 1])
            i += 2
            continue
        number, behind = number_at(text, i)
        if number is not None and open_at["("]:
            spans.append((open_at["("].pop(), len(characters), number))
            i = behind
            continue
        if character in "([":
            open_at[character].append(len(characters))
        elif character == ")" and open_at["("]:
            spans.append((open_at["("].pop(), len(characters), 1.1))
        elif character == "]" and open_at["["]:
            spans.append((open_at["["].pop(), len(characters), 1 / 1.1))
        else:
            characters.append(character)
        i += 1
    spans += [(start, len(characters), 1.1) for start in open_at["("]]
    spans += [(start, len(characters), 1 / 1.1) for start in open_at["["]]
    pieces: list[tuple[str, float]] = []
    for place, character in enumerate(characters):
        weight = math.prod(factor for start, end, factor in spans if start <= place < end)
        if pieces and math.isclose(pieces[-1][1], weight):
            pieces[-1] = (pieces[-1][0] + character, weight)
        else:
            pieces.append((character, weight))
    return pieces


def number_at(text: str, start: int) -> tuple[float | None, int]:
    """The number of `:1.3)` when that is what stands at `start`, and the place behind it."""
    end = text.find(")", start)
    if text[start] != ":" or end < 0:
        return None, start
    digits = text[start + 1 : end].strip()
    if not digits or any(character not in "+-.0123456789" for character in digits):
        return None, start
    try:
        return float(digits), end + 1
    except ValueError:
        return None, start


def read_prompt(reader: Reader, prompt: str, weighted: bool) -> tuple[list[int], list[float]]:
    if not weighted:
        ids = reader.ids(prompt)
        return ids, [1.0] * len(ids)
    ids, weights = [], []
    for text, weight in read_weights(prompt):
        for one in reader.ids(text):
            ids.append(one)
            weights.append(weight)
    return ids, weights


def fill_row(reader: Reader, ids: list[int], weights: list[float], length: int) -> tuple[list[int], list[float]]:
    """The long row: begin, text, end, padding: 77, 152 or 227 ids, and the weight of each."""
    row, row_weights = [BEGIN], [1.0]
    for one, weight in zip(ids, weights, strict=True):
        if len(row) < length + 1:
            row.append(one)
            row_weights.append(weight)
    row.append(END)
    row_weights.append(1.0)
    while len(row) < length + 2:
        row.append(reader.padding)
        row_weights.append(1.0)
    return row, row_weights


def cut_row(reader: Reader, row: list[int]) -> list[list[int]]:
    """Chunks of 77 out of the long row, with what SD2 changes in them."""
    if len(row) == 77:
        return [row]
    chunks = []
    for first in range(1, len(row) - 1, 75):
        chunk = [row[0], *row[first : first + 75], row[-1]]
        if reader.family == "sd2":
            if chunk[75] != END and chunk[75] != reader.padding:
                chunk[76] = END
            if chunk[1] == reader.padding:
                chunk[1] = END
        chunks.append(chunk)
    return chunks


def all_layers(text_encoder: CLIPTextModel, chunk: list[int]) -> list[Tensor]:
    """The hidden states (77, D) before the first and behind each layer."""
    places = len(chunk)
    embeddings = text_encoder.embeddings
    hidden = embeddings.token_embedding.weight[torch.tensor(chunk)] + embeddings.position_embedding.weight[:places]
    mask = torch.zeros(1, 1, places, places)
    for query in range(places):
        for key in range(query + 1, places):
            mask[0, 0, query, key] = -math.inf
    states = [hidden]
    for layer in text_encoder.encoder.layers:
        states.append(layer(states[-1][None], mask, is_causal=False)[0])
    return states


def norm(text_encoder: CLIPTextModel, states: Tensor) -> Tensor:
    layer = text_encoder.final_layer_norm
    centred = states - states.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


class Reference:
    """Encodes one prompt at a time; chunks that come again are not computed again."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.seen: dict[tuple[int, ...], list[Tensor]] = {}

    def states(self, prompt: str, length: int, weighted: bool, from_end: int) -> tuple[Tensor, Tensor]:
        """The states (R, D) and the weight of each row (R,)."""
        row, weights = fill_row(self.reader, *read_prompt(self.reader, prompt, weighted), length)
        rows: list[Tensor] = []
        chunks = cut_row(self.reader, row)
        for number, chunk in enumerate(chunks):
            if tuple(chunk) not in self.seen:
                self.seen[tuple(chunk)] = all_layers(self.reader.text_encoder, chunk)
            states = norm(self.reader.text_encoder, self.seen[tuple(chunk)][-from_end])
            for place in range(77):
                if (0 < place < 76) or (place == 0 and number == 0) or (place == 76 and number == len(chunks) - 1):
                    rows.append(states[place])
            for place in range(1, 76):
                if len(chunks) > 1 and chunk[place] == END:  # an end token that took the place of a `!`
                    weights[75 * number + place] = 1.0
        return torch.stack(rows), torch.tensor(weights)


@pytest.fixture(scope="module")
def references(readers: dict[str, Reader]) -> dict[str, Reference]:
    return {family: Reference(reader) for family, reader in readers.items()}


# --- the comparisons --------------------------------------------------------------------------------------------------


def assert_alike(prompt: str, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=lambda text: f"{prompt}: {text}")


@pytest.mark.parametrize("family", ("sd1", "sd2"))
@pytest.mark.parametrize("length", (75, 150, 225))
@pytest.mark.parametrize("weighted", (False, True))
def test_states_are_those_of_the_definition(
    references: dict[str, Reference],
    prompts: dict[bool, list[str]],
    caption_tokenizer: MakeTokenizer,
    family: str,
    length: int,
    weighted: bool,
) -> None:
    reference = references[family]
    options = TextOptions(max_token_length=length, weighted_captions=weighted)
    ids, token_weights = caption_tokenizer(family, options)(prompts[weighted])
    for clip_skip in (None, 1, 2, 3):
        encoder = CaptionEncoder(TextOptions(clip_skip, length, weighted_captions=weighted))
        states = encoder(reference.reader.text_encoder, ids, token_weights)
        assert states.shape[1] == length + 2
        for prompt, found in zip(prompts[weighted], states, strict=True):
            expected, weights = reference.states(prompt, length, weighted, clip_skip or 1)
            assert_alike(prompt, found, expected * weights[:, None])


@pytest.mark.parametrize("family", ("sd1", "sd2"))
@pytest.mark.parametrize("length", (75, 225))
def test_restored_means_are_those_of_the_definition(
    references: dict[str, Reference],
    prompts: dict[bool, list[str]],
    caption_tokenizer: MakeTokenizer,
    family: str,
    length: int,
) -> None:
    reference = references[family]
    weighted = TextOptions(max_token_length=length, weighted_captions=True)
    encoder = CaptionEncoder(replace(weighted, restore_weighted_mean=True))
    states = encoder(reference.reader.text_encoder, *caption_tokenizer(family, weighted)(prompts[True]))
    for prompt, found in zip(prompts[True], states, strict=True):
        before, weights = reference.states(prompt, length, True, 1)
        after = before * weights[:, None]
        expected = after * (before.sum() / after.sum())
        assert_alike(prompt, found, expected)


@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_plain_states_of_75_tokens_are_those_of_transformers(
    readers: dict[str, Reader], prompts: dict[bool, list[str]], caption_tokenizer: MakeTokenizer, family: str
) -> None:
    reader = readers[family]
    theirs = reader.tokenizer(prompts[False], padding="max_length", truncation=True, return_tensors="pt").input_ids
    ids, weights = caption_tokenizer(family, TextOptions())(prompts[False])
    outputs = reader.text_encoder(theirs, output_hidden_states=True)
    assert torch.equal(ids[:, 0], theirs)
    assert torch.equal(CaptionEncoder(TextOptions())(reader.text_encoder, ids, weights), outputs.last_hidden_state)
    skipped = CaptionEncoder(TextOptions(clip_skip=2))(reader.text_encoder, ids, weights)
    assert torch.equal(skipped, reader.text_encoder.final_layer_norm(outputs.hidden_states[-2]))


@pytest.mark.parametrize("splitting", ("plain", "webui"))
def test_weights_of_one_change_no_state(
    readers: dict[str, Reader], caption_tokenizer: MakeTokenizer, splitting: str
) -> None:
    captions = ["a photo of a (cat:1.0), red (house:1)", "((word:1.0) red, :1.0) " * 60, ""]
    unmarked = ["a photo of a cat, red house", "word red,  " * 60, ""]
    for length in (75, 225):
        plain = TextOptions(max_token_length=length, prompt_splitting=splitting)
        expected = CaptionEncoder(plain)(readers["sd1"].text_encoder, *caption_tokenizer("sd1", plain)(unmarked))
        weighted = replace(plain, weighted_captions=True)
        rows = caption_tokenizer("sd1", weighted)(captions)
        for options in (weighted, replace(weighted, restore_weighted_mean=True)):
            assert torch.equal(CaptionEncoder(options)(readers["sd1"].text_encoder, *rows), expected)


def test_states_of_a_caption_do_not_depend_on_its_batch(
    readers: dict[str, Reader], prompts: dict[bool, list[str]], caption_tokenizer: MakeTokenizer
) -> None:
    weighted = TextOptions(max_token_length=225, weighted_captions=True)
    tokenizer = caption_tokenizer("sd2", weighted)
    encoder = CaptionEncoder(replace(weighted, restore_weighted_mean=True))
    together = encoder(readers["sd2"].text_encoder, *tokenizer(prompts[True]))
    for prompt, states in zip(prompts[True], together, strict=True):
        alone = encoder(readers["sd2"].text_encoder, *tokenizer([prompt]))
        assert_alike(prompt, alone[0], states)


def test_the_reference_notices_what_a_mistake_would_change(references: dict[str, Reference]) -> None:
    """Each trait of the definition shows in the states, so the comparisons above would fail without it."""
    sd1, sd2 = references["sd1"], references["sd2"]
    last, skipped = (sd1.states("a cat", 75, False, from_end)[0] for from_end in (1, 2))
    assert (last - skipped).abs().max() > 1e-2
    short, long = (sd1.states("red " * 80 + "cat", length, False, 1)[0] for length in (75, 150))
    assert (short[76] - long[76]).abs().max() > 1e-2
    mended = all_layers(sd2.reader.text_encoder, [BEGIN, END] + [0] * 75)[-1]
    unmended = all_layers(sd2.reader.text_encoder, [BEGIN] + [0] * 76)[-1]
    assert (mended - unmended).abs().max() > 1e-2
