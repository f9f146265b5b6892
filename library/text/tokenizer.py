"""CLIP's tokenizer, built from the vocabulary shipped beside this file: no download, no cache.

A caption becomes begin, at most 75 text tokens, end, padding: 77 ids. SD1 pads with the end token, SD2 with `!` (id 0).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from transformers import CLIPTokenizer

VOCABULARY_SIZE = 49408
BEGIN_ID = 49406
END_ID = 49407
ROW_LENGTH = 77
TEXT_LENGTH = ROW_LENGTH - 2

_VOCABULARY = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_PADDING = {"sd1": _END, "sd2": "!"}
_MOST_REMEMBERED = 4096  # captions; 600 bytes each
_PROBE_TEXT, _PROBE_IDS = "a photo of a cat", (320, 1125, 539, 320, 2368)


def load_tokenizer(family: str) -> CLIPTokenizer:
    """The Transformers tokenizer of a model family ("sd1" or "sd2").

    Raises:
        RuntimeError: the vocabulary does not give the known ids, so no model would understand them.
    """
    merges = _read_merges()
    tokenizer = CLIPTokenizer(
        vocab=_vocabulary(merges),
        merges=merges,  # type: ignore[arg-type]  # pairs, whatever its annotation says
        bos_token=_BEGIN,
        eos_token=_END,
        unk_token=_END,
        pad_token=_PADDING[family],
        model_max_length=ROW_LENGTH,
    )
    probe = tuple(tokenizer.backend_tokenizer.encode(_PROBE_TEXT, add_special_tokens=False).ids)
    if len(tokenizer) != VOCABULARY_SIZE or probe != _PROBE_IDS:
        raise RuntimeError(f"{_VOCABULARY}: not CLIP's vocabulary, or Transformers has changed how it is read")
    return tokenizer


class CaptionTokenizer:
    """Turns captions into rows of ids; small enough to send to loader workers.

    It calls the tokenizer's core one caption at a time: its batch calls start threads, and a process that forks loader
    workers afterwards is warned of deadlocks.
    """

    def __init__(self, family: str) -> None:
        tokenizer = load_tokenizer(family)
        self._core = tokenizer.backend_tokenizer
        self._padding_id = tokenizer.get_vocab()[_PADDING[family]]
        self._remembered: dict[str, torch.Tensor] = {}

    def __call__(self, captions: list[str]) -> torch.LongTensor:
        """Ids of the captions, `(B, 77)` int64. What is beyond 75 tokens is cut off; `count_tokens` tells how much."""
        rows = [self._row(caption) for caption in captions]
        return torch.cat(rows) if rows else torch.empty(0, ROW_LENGTH, dtype=torch.long)  # type: ignore[return-value]

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Text tokens of each caption before any cut, without begin, end and padding."""
        return [len(self._encode(caption)) for caption in captions]

    def _row(self, caption: str) -> torch.Tensor:
        """The ids of one caption (1, 77), remembered: most captions come again in every epoch."""
        row = self._remembered.get(caption)
        if row is None:
            ids = [BEGIN_ID, *self._encode(caption)[:TEXT_LENGTH], END_ID]
            row = torch.tensor([ids + [self._padding_id] * (ROW_LENGTH - len(ids))])
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[caption] = row
        return row

    def _encode(self, caption: str) -> list[int]:
        return self._core.encode(caption, add_special_tokens=False).ids


def tokenizer_files(family: str) -> dict[str, str]:
    """Content of the files of a Diffusers `tokenizer` folder, by name, in the form that tools of any age read."""
    merges = _read_merges()
    special = {"bos_token": _BEGIN, "eos_token": _END, "unk_token": _END, "pad_token": _PADDING[family]}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": ROW_LENGTH, "do_lower_case": True, **special}
    return {
        "vocab.json": json.dumps(_vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }


def _read_merges() -> list[tuple[str, str]]:
    """The pairs that CLIP merges, first come first; the file has a heading, and more pairs than CLIP uses."""
    count = VOCABULARY_SIZE - 2 * len(_byte_symbols()) - 2
    lines = gzip.decompress(_VOCABULARY.read_bytes()).decode("utf-8").split("\n")[1 : count + 1]
    pairs = [line.split() for line in lines]
    return [(first, second) for first, second in pairs]


def _vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """Ids by token: the bytes, the bytes at the end of a word, every merged pair, begin, end."""
    symbols = _byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), _BEGIN, _END]
    return {word: index for index, word in enumerate(words)}


def _byte_symbols() -> list[str]:
    """One visible character for each of the 256 bytes, in the order of CLIP's ids.

    Bytes that print stand for themselves and come first; the others, in turn, take the characters from 256 up
    (the byte-level alphabet of Radford et al., "Language Models are Unsupervised Multitask Learners").
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden_count = 256 - len(printable)
    return [chr(code) for code in [*printable, *range(256, 256 + hidden_count)]]
