"""Drawing words: the softmax's frequencies, the nucleus, and choices that rounding cannot change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from library.captioning.blip_choice import TOLERANCE, Choice, WordChoice, choose, gumbel_noise
from library.core.randomness import NO_EPOCH, generator

SCORES = torch.tensor([2.0, 1.5, 1.0, 0.3, -0.5, -2.0, -torch.inf])
END = 2


def draw(scores: torch.Tensor, count: int, top_p: float, seed: int = 0) -> Choice:
    noise = gumbel_noise(generator(seed, NO_EPOCH, "", "test"), count * len(scores)).reshape(count, -1)
    return choose(scores.expand(count, -1), torch.from_numpy(noise), top_p)


def shares(tokens: torch.Tensor) -> torch.Tensor:
    return torch.bincount(tokens, minlength=len(SCORES)) / len(tokens)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.6, 0.01])
def test_frequencies_are_those_of_the_softmax_within_the_nucleus(top_p: float) -> None:
    """The nucleus is what transformers' own warper leaves."""
    count = 100_000
    inside = TopPLogitsWarper(top_p)(torch.empty(1, 0), SCORES[None]) if top_p < 1 else SCORES[None]
    expected = inside.softmax(-1)[0]
    found = shares(draw(SCORES, count, top_p).tokens)
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    chi_square = (count * (found - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 25  # 99.9% of such samples stay below 22.5 with 6 words, and below that with fewer


def test_without_noise_the_likeliest_word_comes() -> None:
    choice = choose(torch.stack([SCORES, SCORES.flip(0)]), None, 1.0)
    assert choice.tokens.tolist() == [0, 6] and choice.sure.all()


def test_equal_words_are_told_as_unsure() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0 + TOLERANCE / 2], [1.0, 3.0, 3.0 + 2 * TOLERANCE]])
    assert choose(scores, None, 1.0).sure.tolist() == [False, True]


def test_a_sure_choice_survives_rounding() -> None:
    """Scores that are off by less than half the tolerance, also of words at the edge of the nucleus and in ties."""
    draws = torch.Generator().manual_seed(1)
    rows, words = 20_000, 12
    scores = torch.randn(rows, words, generator=draws, dtype=torch.float64) * 2
    scores[: rows // 2] = (scores[: rows // 2] * 4).round() / 4  # many that are equal
    noise = torch.from_numpy(gumbel_noise(generator(1, NO_EPOCH, "", "test"), rows * words).reshape(rows, words))
    top_p = 0.5
    # a nucleus that ends between words of equal share: the mass of the first n is top_p to the last bit
    scores[:2000] = torch.log(torch.tensor([0.25, 0.25, *[0.05] * 10], dtype=torch.float64))
    choice = choose(scores, noise, top_p)
    for _ in range(20):
        off = (torch.rand(rows, words, generator=draws, dtype=torch.float64) - 0.5) * TOLERANCE * 0.999
        again = choose(scores + off, noise, top_p)
        changed = again.tokens != choice.tokens
        assert changed.any()  # else nothing is shown
        assert not (changed & choice.sure).any()
    assert choice.sure[rows // 2 :].float().mean() > 0.97


def test_rows_draw_from_their_own_generators() -> None:
    def chosen(rows: list[int], calls: int = 5) -> list[list[int]]:
        choice = WordChoice([generator(7, NO_EPOCH, str(row), "test") for row in rows], 0.9, end=-1)
        scores = SCORES.expand(len(rows), -1)
        return [choice(torch.empty(len(rows), 0), scores).argmax(-1).tolist() for _ in range(calls)]

    together = np.array(chosen([0, 1, 2, 3]))
    for row in range(4):
        assert np.array(chosen([row]))[:, 0].tolist() == together[:, row].tolist()
    assert len({tuple(column) for column in together.T.tolist()}) > 1


def test_what_is_handed_on_leaves_one_word() -> None:
    handed = WordChoice([], 0.9, end=END)(torch.empty(1, 0), SCORES[None])
    assert torch.isfinite(handed).nonzero().tolist() == [[0, 0]]


def test_a_caption_that_is_over_draws_no_more_and_is_not_unsure() -> None:
    draws = [generator(7, NO_EPOCH, "over", "test"), generator(7, NO_EPOCH, "on", "test")]
    choice = WordChoice(draws, 1.0, end=END)
    ends = torch.full((7,), -torch.inf)
    ends[END] = 0.0
    choice(torch.empty(2, 0), torch.stack([ends, SCORES]))
    state = str(draws[0].bit_generator.state)
    equal = torch.zeros(7)
    for _ in range(3):
        choice(torch.empty(2, 0), torch.stack([equal, ends]))
    assert str(draws[0].bit_generator.state) == state
    assert choice.unsure == []


def test_an_unsure_word_marks_its_row() -> None:
    choice = WordChoice([], 1.0, end=END)
    choice(torch.empty(2, 0), torch.stack([SCORES, torch.zeros(7)]))
    choice(torch.empty(2, 0), torch.stack([SCORES, SCORES]))
    assert choice.unsure == [1]
