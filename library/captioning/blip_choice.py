"""Drawing the words of captions so that a caption depends on its own picture and the seed alone.

Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751) draws from the likeliest words that together have the
probability `top_p`. The draw is made by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030):
the largest of log-probability plus Gumbel noise is an exact draw from the softmax. The noise of a picture comes from a
generator of its own, so the others of its batch and the batch's size do not move it.

One thing is left: a matrix product of eight rows differs from that of one row in the last bits. It matters only where
two words are as good as equal, or where a word stands on the edge of the nucleus. `choose` tells such close calls, and
the captioner makes these captions again alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

# Logits that differ by less than half of it lead to the same choice where `sure` is set. Float32 at BLIP's size should
# stay well below: sums of a thousand products are exact to some 1e-5. (One CPU thread: no difference at all; cards were
# not measured.)
TOLERANCE = 1e-3
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Choice:
    """Chosen words (B,) int64; `sure` (B,) bool: no rounding of the scores could have changed the choice."""

    tokens: torch.Tensor
    sure: torch.Tensor


def gumbel_noise(draws: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Standard Gumbel noise, float64 (count,): minus the logarithm of an exponential draw."""
    return -np.log(np.maximum(draws.standard_exponential(count), _SMALLEST))


def choose(scores: torch.Tensor, noise: torch.Tensor | None, top_p: float) -> Choice:
    """One word for each row.

    Args:
        scores: (B, words) logits; -inf for words that may not come.
        noise: (B, words) Gumbel noise of each row; None chooses the likeliest word.
        top_p: probability of the nucleus, above 0; 1 leaves every word in.
    """
    chances = torch.log_softmax(scores.double(), dim=-1)
    ordered, words = chances.sort(dim=-1, descending=True, stable=True)  # of equals the lower number first
    inside, perhaps, surely = _nucleus(ordered, top_p)
    keyed = ordered if noise is None else ordered + noise.to(ordered).gather(-1, words)
    best = keyed.masked_fill(~inside, -torch.inf).argmax(dim=-1, keepdim=True)
    first, second = keyed.masked_fill(~perhaps, -torch.inf).topk(2, dim=-1)[0].unbind(-1)
    is_best = keyed.gather(-1, best).squeeze(-1) == first
    sure = is_best & surely.gather(-1, best).squeeze(-1) & (first - second > TOLERANCE)
    return Choice(words.gather(-1, best).squeeze(-1), sure)


def _nucleus(ordered: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which words are in the nucleus, which would be if rounding favours them, which even if it does not.

    A word is in it when the likelier ones together have less than `top_p`. Words whose log-probabilities are within the
    tolerance may change places.

    Args:
        ordered: (B, words) log-probabilities, falling.
        top_p: as in `choose`.
    """
    if top_p >= 1.0:
        everything = torch.ones_like(ordered, dtype=torch.bool)
        return everything, everything, everything
    shares = ordered.exp()
    sums = torch.cat((torch.zeros_like(shares[:, :1]), shares.cumsum(dim=-1)), dim=-1)  # of the first n words
    rising = (-ordered).contiguous()
    at_least = sums.gather(-1, torch.searchsorted(rising, rising - TOLERANCE))
    at_most = sums.gather(-1, torch.searchsorted(rising, rising + TOLERANCE, right=True)) - shares
    return sums[:, :-1] < top_p, at_least < top_p + TOLERANCE, at_most < top_p - TOLERANCE


class WordChoice(LogitsProcessor):
    """Chooses the next word of each caption; stands last among transformers' processors, and is used for one batch.

    What it hands back leaves greedy search nothing but the chosen word.

    Args:
        draws: a generator for each row; none to take the likeliest words.
        top_p: as in `choose`.
        end: the word that ends a caption.
    """

    def __init__(self, draws: Sequence[np.random.Generator], top_p: float, end: int) -> None:
        self._draws, self._top_p, self._end = draws, top_p if draws else 1.0, end
        self._over: list[bool] = []
        self._sure: list[bool] = []

    @property
    def unsure(self) -> list[int]:
        """Rows whose captions hold a choice that rounding could change."""
        return [row for row, sure in enumerate(self._sure) if not sure]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, words): 0 for the chosen words, -inf for all others."""
        self._over = self._over or [False] * len(scores)
        self._sure = self._sure or [True] * len(scores)
        choice = choose(scores, self._noise(scores), self._top_p)
        for row, (token, sure) in enumerate(zip(choice.tokens.tolist(), choice.sure.tolist(), strict=True)):
            self._sure[row] &= sure or self._over[row]
            self._over[row] |= token == self._end
        return torch.full_like(scores, -torch.inf).scatter_(-1, choice.tokens[:, None], 0.0)

    def _noise(self, scores: torch.Tensor) -> torch.Tensor | None:
        """Noise of each row that goes on; a caption that is over draws no more."""
        if not self._draws:
            return None
        noise = np.zeros(scores.shape)
        for row, draws in enumerate(self._draws):
            if not self._over[row]:
                noise[row] = gumbel_noise(draws, scores.shape[-1])
        return torch.from_numpy(noise).to(scores.device)
