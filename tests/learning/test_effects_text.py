"""How prompts are read on the toy world: words far behind, and what its layers say."""

from __future__ import annotations

import torch

from examples.toy_world.captions import sentence
from examples.toy_world.drawing import draw
from examples.toy_world.judge import Judge
from library.text.tokenizer import CaptionTokenizer
from tests.learning.effects import reader
from tests.learning.learning import base_model, scenes_of

FAR_LAYER = 6  # the last two layers of the toy's text encoder say nearly the same, this one does not
LEAD = "a picture of " * 25  # 75 tokens, and words that the base has seen


def test_words_behind_token_75_count_in_prompts() -> None:
    scenes = scenes_of(12)
    assert CaptionTokenizer("sd1").count_tokens([LEAD]) == [75]
    pictures = draw(base_model(), [LEAD + sentence(scene) for scene in scenes], range(len(scenes)))
    judge = Judge()
    drawn = [judge(picture).colour for picture in pictures]
    assert sum(colour == scene.colour for colour, scene in zip(drawn, scenes, strict=True)) >= 8  # chance: 1.5


@torch.no_grad()
def test_the_last_two_layers_of_the_toy_say_nearly_the_same_and_earlier_ones_do_not() -> None:
    """Which is why clip skip 2, the usual one, cannot be seen in its pictures."""
    prompts = [sentence(scene) for scene in scenes_of(8)]
    last, usual, far = (reader(clip_skip=skip).states(base_model().text_encoder, prompts) for skip in (1, 2, FAR_LAYER))
    assert float((usual - last).norm() / last.norm()) <= 0.15
    assert float((far - last).norm() / last.norm()) >= 0.4
