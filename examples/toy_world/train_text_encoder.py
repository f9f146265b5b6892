"""The text encoder of the toy world, trained to know what a caption says before there is a U-Net.

Linear heads read every part of the scene, or that it was not said, from the state at the end of the text and from one
of the states behind it, both of the last layer and of the one before it (which clip skip 2 takes). Random words are
strewn in: one that means nothing here must not disturb the others, and yet be seen, or no training of the U-Net could
give it a meaning.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from examples.toy_world.captions import PARTS, UNSAID, partly_said, random_caption
from examples.toy_world.recipe import Build, seeded
from examples.toy_world.stages import Stage, run_stage
from examples.toy_world.world import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, random_scene
from library.core.randomness import NO_EPOCH, derived_seed, generator
from library.models.topology import text_config
from library.text.tokenizer import CaptionTokenizer

STAGE = Stage("text_encoder", steps=1100, rate=1e-3, code=("world", "captions", "train_text_encoder"))
HIDDEN = 48
BATCH = 64
_SHORT, _FULL = 32, 77  # tokens of a row
LONGEST_CAPTION = 21  # tokens, with start and end
_SHORT_ROWS = 0.75  # share of the steps, because short rows are faster
_STREWN = 0.2  # share of captions with words that mean nothing
_WORDS: dict[str, tuple[str, ...]] = {
    part: (UNSAID, *words) for part, words in zip(PARTS, (SHAPES, COLOURS, BACKGROUNDS, PLACES, SIZES), strict=True)
}
_STRAY = (False, True)  # whether a word without meaning is there
_FIRST_WORD, _LAST_WORD = 1000, 40000  # ids of whole words, more or less


class _Reader(nn.Module):
    """The encoder and the heads that only its training needs."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, len(words)) for words in (*_WORDS.values(), _STRAY))

    def losses(self, ids: Tensor, ends: Tensor, positions: Tensor, said: Tensor) -> list[Tensor]:
        found = self.encoder(input_ids=ids, output_hidden_states=True)
        before_last = self.encoder.final_layer_norm(found.hidden_states[-2])
        rows = torch.arange(len(ids))
        return [
            F.cross_entropy(head(states[rows, where]), said[:, number])
            for states in (found.last_hidden_state, before_last)
            for where in (ends, positions)
            for number, head in enumerate(self.heads)
        ]


def trained_text_encoder(build: Build) -> CLIPTextModel:
    """The trained encoder, in float32."""
    tokenize = CaptionTokenizer("sd1")
    with seeded(derived_seed(build.seed, NO_EPOCH, "text encoder", "weights")):
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(text_config("sd1", HIDDEN, 4 * HIDDEN)))
        reader = _Reader(encoder)

    def loss_of(step: int) -> Tensor:
        draw = generator(build.seed, step, "text encoder", "captions")
        scenes = [partly_said(random_scene(draw), draw) for _ in range(BATCH)]
        ids = tokenize([random_caption(scene, draw) for scene in scenes])[0][:, 0]
        ids, stray = strewn(ids, draw)
        ids = ids[:, : _SHORT if draw.random() < _SHORT_ROWS else _FULL]
        ends = _ends(ids)
        behind = torch.from_numpy(draw.random(BATCH))
        positions = ends + (behind * (ids.shape[1] - ends)).long()
        said = torch.cat([_numbers(scenes), stray.long()[:, None]], 1)
        return torch.stack(reader.losses(ids, ends, positions, said)).mean()

    run_stage(STAGE, reader, loss_of, build)
    return encoder


def _numbers(scenes: Iterable[Scene]) -> Tensor:
    return torch.tensor([[_WORDS[part].index(getattr(scene, part)) for part in PARTS] for scene in scenes])


def _ends(ids: Tensor) -> Tensor:
    """Where each text ends; the end's id is the highest, and its first occurrence counts."""
    return ids.argmax(1)


def strewn(ids: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Some rows (N, L) with one or two random words put in somewhere, and which of the rows these are (N,)."""
    rows, stray = [], draw.random(len(ids)) < _STREWN
    for row, chosen in zip(ids.tolist(), stray, strict=True):
        if chosen:
            for _ in range(int(draw.integers(1, 3))):
                place = int(draw.integers(1, row.index(max(row)) + 1))
                row = [*row[:place], int(draw.integers(_FIRST_WORD, _LAST_WORD)), *row[place:-1]]
        rows.append(row)
    return torch.tensor(rows), torch.from_numpy(stray)
