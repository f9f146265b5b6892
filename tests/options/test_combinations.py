"""Options that contradict each other, or that would be without effect."""

from __future__ import annotations

import pytest

from library.core.errors import Problems
from library.options.caching import CachingOptions
from library.options.combinations import check_caching
from library.options.text import TextOptions

ON_DISK = {"cache_latents_to_disk": True}


def told(text: TextOptions | None = None, learns: str | None = None, **caching: object) -> list[str]:
    problems = Problems()
    check_caching(CachingOptions(**caching), text or TextOptions(), learns, problems)  # type: ignore[arg-type]
    return [f"{problem.where}: {problem.what}; {problem.fix}" for problem in problems]


@pytest.mark.parametrize(
    ("caching", "words"),
    [
        ({"vae_batch_size": 4}, "--vae_batch_size: it counts while a cache of latents is filled"),
        ({"trust_foreign_latents": True}, "give --cache_latents_to_disk as well"),
        (
            {"trust_foreign_latents": True, "cache_latent_distribution": True, **ON_DISK},
            "single draws, not distributions",
        ),
    ],
)
def test_options_of_caches_that_cannot_work(caching: dict[str, object], words: str) -> None:
    (problem,) = told(**caching)
    assert words in problem


def test_options_of_caches_that_work() -> None:
    assert told(vae_batch_size=4, cache_latents=True) == []
    assert told(trust_foreign_latents=True, vae_batch_size=2, **ON_DISK) == []
    assert told(cache_latent_distribution=True) == []  # without a cache, too, each use draws for itself


@pytest.mark.parametrize("cache", ["cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"])
def test_text_states_that_cannot_be_kept(cache: str) -> None:
    keep = {cache: True}
    assert told(**keep) == []
    (problem,) = told(learns="the text encoder is trained", **keep)
    assert "the text encoder is trained" in problem and "--network_train_unet_only" in problem
    (problem,) = told(TextOptions(no_token_padding=True), **keep)
    assert "--no_token_padding" in problem


@pytest.mark.parametrize(
    ("length", "splitting", "rows"),
    [(75, "plain", 77), (150, "plain", 152), (225, "plain", 227), (150, "webui", 154), (225, "webui", 231)],
)
def test_rows_of_a_caption(length: int, splitting: str, rows: int) -> None:
    assert TextOptions(max_token_length=length, prompt_splitting=splitting).rows == rows
