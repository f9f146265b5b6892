"""How captions and prompts are read: clip skip, weights of words, words behind token 75, words without meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from examples.toy_world.captions import sentence
from examples.toy_world.drawing import draw
from examples.toy_world.judge import Judge
from examples.toy_world.novelties import WORD, Example, world_examples
from library.models.stable_diffusion import StableDiffusion
from library.text.tokenizer import CaptionTokenizer
from tests.learning.effects import lora, reader, told_apart, with_and_without, write
from tests.learning.learning import (
    base_model,
    picture_share,
    pictures_of,
    scenes_of,
    show,
    with_network,
)

UPDATES = 200
FAR_LAYER = 8  # the last two layers of the toy's text encoder say nearly the same, this one does not
LEAD = "a picture of " * 25  # 75 tokens, and words that the base has seen


def trained(name: str, examples: Sequence[Example], folder: Path, seed: int, *words: str) -> StableDiffusion:
    """The base with a LoRA; `name` tells it from others in the folder."""
    return with_network("lora", lora(name, write(examples, folder / f"of {name}"), UPDATES, seed, *words))


def test_words_behind_token_75_count_in_prompts() -> None:
    scenes = scenes_of(12)
    assert CaptionTokenizer("sd1").count_tokens([LEAD]) == [75]
    pictures = pictures_of(base_model(), [LEAD + sentence(scene) for scene in scenes])
    assert picture_share(pictures, Judge(), "colour", [scene.colour for scene in scenes]) >= 0.66  # chance: 0.13


def say_late(text: str) -> str:
    """The text behind token 150."""
    return LEAD + LEAD + text


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_word_behind_token_75_is_learned_only_where_captions_may_be_that_long(seed: int, tmp_path: Path) -> None:
    examples = with_and_without(seed, say_late)
    cut = told_apart(trained("cut", examples, tmp_path, seed), say_late)
    long = told_apart(trained("long", examples, tmp_path, seed, "--max_token_length", "225"), say_late)
    show(f"token length, seed {seed}", at_75=cut, at_225=long)
    assert abs(cut) <= 0.3 and long >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_training_with_clip_skip_learns_to_read_that_layer(seed: int, tmp_path: Path) -> None:
    """From the layer taken here the base reads hardly any colours; pictures of the world teach it to."""
    scenes, skipping = scenes_of(24), reader(clip_skip=FAR_LAYER)
    prompts, colours = [sentence(scene) for scene in scenes], [scene.colour for scene in scenes]
    examples = world_examples(60, seed)
    models = {
        "base": base_model(),
        "usual": trained("usual", examples, tmp_path, seed),
        "skipping": trained("skipping", examples, tmp_path, seed, "--clip_skip", str(FAR_LAYER)),
    }
    right = {
        name: picture_share(draw(model, prompts, range(24), reader=skipping), Judge(), "colour", colours)
        for name, model in models.items()
    }
    show(f"clip skip {FAR_LAYER}, seed {seed}", **right)
    assert right["base"] <= 0.5 and right["skipping"] >= max(right["base"], right["usual"]) + 0.15


@torch.no_grad()
def test_the_last_two_layers_of_the_toy_say_nearly_the_same_and_earlier_ones_do_not() -> None:
    """Which is why clip skip 2, the usual one, cannot be seen in its pictures."""
    prompts = [sentence(scene) for scene in scenes_of(8)]
    last, usual, far = (reader(clip_skip=skip).states(base_model().text_encoder, prompts) for skip in (1, 2, FAR_LAYER))
    assert float((usual - last).norm() / last.norm()) <= 0.15
    assert float((far - last).norm() / last.norm()) >= 0.4


@torch.no_grad()
def test_the_weight_of_a_word_stays_in_its_place() -> None:
    """Here what a caption says stands in every place behind it as well, which has no weight of its own: so neither
    weights in prompts nor those in captions can be seen in the toy world's pictures."""
    lead, model = "a large red ", base_model().text_encoder
    plain, heavy = (
        reader(weighted_captions=True).states(model, [f"{lead}{word}, sky background"])[0]
        for word in ("ring", "(ring:1.5)")
    )
    place = 1 + len(lead.split())
    assert float((heavy[place] - plain[place]).norm() / plain[place].norm()) >= 0.2
    assert float((heavy - plain)[place + 1 :].norm() / plain[place + 1 :].norm()) <= 0.1


def test_a_word_without_meaning_changes_nothing_that_is_drawn() -> None:
    scenes = scenes_of(16)
    prompts = [sentence(scene).replace(scene.shape, f"{WORD} {scene.shape}") for scene in scenes]
    pictures, judge = pictures_of(base_model(), prompts), Judge()
    for part in ("shape", "colour", "background"):
        assert picture_share(pictures, judge, part, [getattr(scene, part) for scene in scenes]) >= 0.9


@torch.no_grad()
def test_a_word_without_meaning_is_seen_by_the_text_encoder() -> None:
    """Else no training of the U-Net could give it one."""

    def states(prompt: str) -> torch.Tensor:
        return reader().states(base_model().text_encoder, [prompt])[0, 10:]

    ring, new, other = states("a ring"), states(f"a {WORD} ring"), states("a heart")
    assert float((new - ring).norm()) >= 0.5 * float((other - ring).norm())
