"""CLIP's tokenizer, built from the vocabulary shipped beside this file: no download, no cache.

`chunks.py` tells how the tokens of a caption become rows of ids, `weighting.py` how weights are written in captions.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from library.options.text import CHUNK_TOKENS, WEBUI_SPLITTING, TextOptions
from library.text.aliases import Alias
from library.text.chunks import ROW_LENGTH, Chunks, split_plain, split_webui, without_padding
from library.text.weighting import PLAIN_WEIGHT, WeightedText, parse_weights

VOCABULARY_SIZE = 49408

_VOCABULARY = Path(__file__).parent / "clip_vocabulary" / "bpe_simple_vocab_16e6.txt.gz"
_BEGIN, _END = "<|startoftext|>", "<|endoftext|>"
_PADDING = {"sd1": _END, "sd2": "!"}
_MOST_REMEMBERED = 4096  # captions; 1 to 3 kB each
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


@dataclass(frozen=True)
class _Rows:
    """One caption's ids `(n, L)` int64 and weights `(n, L)` float32."""

    ids: torch.Tensor
    weights: torch.Tensor


class CaptionTokenizer:
    """Turns captions into rows of ids; small enough to send to loader workers.

    It calls the tokenizer's core one caption at a time: its batch calls start threads, and a process that forks loader
    workers afterwards is warned of deadlocks.

    Args:
        family: "sd1" or "sd2".
        options: how long captions may be, where they are cut and padded, whether they hold weights.
        alias: a word that stands for ids of its own, or None.
    """

    def __init__(
        self,
        family: str,
        options: TextOptions = TextOptions(),  # noqa: B008  # frozen
        alias: Alias | None = None,
    ) -> None:
        tokenizer = load_tokenizer(family)
        self._core = tokenizer.backend_tokenizer
        self._padding_id: int = tokenizer.get_vocab()[_PADDING[family]]
        self._options = options
        self._alias = alias
        self._count = options.max_token_length // CHUNK_TOKENS
        self._remembered: dict[str, _Rows] = {}

    def __call__(self, captions: list[str]) -> tuple[torch.LongTensor, torch.FloatTensor | None]:
        """Ids of the captions and what their text states are multiplied by.

        Captions are cut at the longest length; `count_lost` tells how much. With weights, the pieces of a caption are
        tokenised one by one, and begin, end and padding have weight 1.

        Returns:
            ids `(B, n, L)` int64 and weights of the same shape, float32, None without `weighted_captions`; n chunks of
            L = 77, or one chunk as long as the longest caption needs with `no_token_padding`.
        """
        rows = [self._rows(caption) for caption in captions]
        length = max((row.ids.shape[1] for row in rows), default=ROW_LENGTH)
        ids = self._stack([row.ids for row in rows], length, torch.long, self._padding_id)
        if not self._options.weighted_captions:
            return ids, None  # type: ignore[return-value]
        return ids, self._stack([row.weights for row in rows], length, torch.float32, 1)  # type: ignore[return-value]

    def text_ids(self, text: str) -> list[int]:
        """The ids of a text without weights, and without begin, end and padding; of any length."""
        parts = [text] if self._alias is None else self._alias.split(text)
        ids: list[int] = []
        for number, part in enumerate(parts):
            if self._alias is not None and number > 0:
                ids += self._alias.ids
            ids += self._core.encode(part, add_special_tokens=False).ids
        return ids

    def count_tokens(self, captions: list[str]) -> list[int]:
        """Text tokens of each caption before any cut, without begin, end, padding and the marks of weights."""
        return [len(self._encode(caption)[0]) for caption in captions]

    def count_lost(self, captions: list[str]) -> list[int]:
        """How many text tokens of each caption do not fit."""
        return [self._split(caption).lost for caption in captions]

    def _rows(self, caption: str) -> _Rows:
        """The rows of one caption, remembered: most captions come again in every epoch."""
        rows = self._remembered.get(caption)
        if rows is None:
            chunks = self._split(caption)
            rows = _Rows(torch.tensor(chunks.ids), torch.tensor(chunks.weights))
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[caption] = rows
        return rows

    def _stack(self, rows: list[torch.Tensor], length: int, dtype: torch.dtype, padding: float) -> torch.Tensor:
        """The captions' rows `(n, up to length)` as one tensor `(B, n, length)`."""
        stacked = torch.full((len(rows), self._count, length), padding, dtype=dtype)
        for place, row in zip(stacked, rows, strict=True):
            place[:, : row.shape[1]] = row
        return stacked

    def _split(self, caption: str) -> Chunks:
        ids, weights = self._encode(caption)
        if self._options.no_token_padding:
            return without_padding(ids, weights)
        split = split_webui if self._options.prompt_splitting == WEBUI_SPLITTING else split_plain
        return split(ids, weights, self._count, self._padding_id)

    def _encode(self, caption: str) -> tuple[list[int], list[float]]:
        """The text tokens and the weight of each."""
        pieces = parse_weights(caption) if self._options.weighted_captions else [WeightedText(caption, PLAIN_WEIGHT)]
        ids: list[int] = []
        weights: list[float] = []
        for piece in pieces:
            ids += self.text_ids(piece.text)
            weights += [piece.weight] * (len(ids) - len(weights))
        return ids, weights


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
