"""Options that contradict each other, or that would be without effect."""

from __future__ import annotations

import pytest

from library.core.errors import Problems
from library.options.caching import CachingOptions
from library.options.combinations import check_caching, check_hypernetwork, check_network_parts, check_part_rates
from library.options.network import NetworkOptions
from library.options.optimizer import PartRateOptions
from library.options.parse import OptionValues, parse_options
from library.options.scripts import SCRIPTS
from library.options.text import TextOptions
from library.options.training import FineTuningOptions

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


def options_of(script: str, *words: str) -> OptionValues:
    needed = ["--pretrained_model_name_or_path", "m.safetensors", "--output_dir", "out"]
    return parse_options(script, "", SCRIPTS[script].groups, [*needed, *words])


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--hypernetwork_weights", "h.pt"), ["--hypernetwork_weights"]),
        (("--hypernetwork_module", "m", "--train_text_encoder"), ["--train_text_encoder"]),
        (("--hypernetwork_module", "m", "--train_text_encoder", "false"), []),
        (("--hypernetwork_module", "m", "--save_model_as", "ckpt"), ["--save_model_as"]),
        (("--hypernetwork_module", "m", "--use_safetensors", "false"), []),
        (("--hypernetwork_module", "m", "--use_safetensors"), ["--use_safetensors"]),
        (("--hypernetwork_module", "m", "--unet_lr", "1e-5", "--hypernetwork_weights", "h.pt"), []),
    ],
)
def test_what_means_nothing_for_a_hypernetwork_is_told(words: tuple[str, ...], where: list[str]) -> None:
    options, problems = options_of("fine_tune.py", *words), Problems()
    check_hypernetwork(options.of(FineTuningOptions), options, problems)
    assert [problem.where for problem in problems] == where


@pytest.mark.parametrize(("learns", "count"), [(True, 0), (False, 1)])
def test_a_rate_belongs_to_a_part_that_trains(learns: bool, count: int) -> None:
    problems = Problems()
    check_part_rates(PartRateOptions(text_encoder_lr=1e-5, unet_lr=1e-4), learns, problems)
    assert [problem.where for problem in problems] == ["--text_encoder_lr"] * count


@pytest.mark.parametrize(
    ("switches", "rates", "where"),
    [
        ({"network_train_unet_only": True}, PartRateOptions(text_encoder_lr=1.0), ["--text_encoder_lr"]),
        ({"network_train_text_encoder_only": True}, PartRateOptions(unet_lr=1.0), ["--unet_lr"]),
        ({"network_train_unet_only": True}, PartRateOptions(unet_lr=1.0), []),
        (
            {"network_train_unet_only": True, "network_train_text_encoder_only": True},
            PartRateOptions(),
            ["--network_train_unet_only, --network_train_text_encoder_only"],
        ),
    ],
)
def test_parts_of_a_network(switches: dict[str, bool], rates: PartRateOptions, where: list[str]) -> None:
    problems = Problems()
    check_network_parts(NetworkOptions(**switches), rates, problems)  # type: ignore[arg-type]
    assert [problem.where for problem in problems] == where
