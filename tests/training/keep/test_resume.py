"""A run that is cut off and resumed is, to the last bit, the run that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from library.options.parse import parse_options
from library.options.scripts import SCRIPTS as SCRIPTS_OF_OPTIONS
from library.training.checks.preflight import check_network_run
from tests.training.keep.resumed import assert_resumes_exactly, contents, rows
from tests.training.styles import CAPTION_FILES, style_words

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

UPDATES = 5  # an epoch has three, or two with accumulation
SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "lora": ("train_network.py", "--network_dropout", "0.1"),
    "hypernetwork": ("train_network.py", "--network_module", "networks.hypernetwork"),
    "fine_tune": ("fine_tune.py", "--train_text_encoder"),
    "fine_tune_hypernetwork": ("fine_tune.py", "--hypernetwork_module", "networks.hypernetwork"),
    "train_db": ("train_db.py", "--stop_text_encoder_training", "3"),
    "embedding": ("train_textual_inversion.py", "--token_string", "zumira"),
    "xti": ("train_textual_inversion.py", "--token_string", "zumira", "--xti"),
}
DRAWS = ("--flip_aug", "--shuffle_caption", "--noise_offset", "0.1", "--augmentation_variants", "2", "--color_aug")
SEVERAL_BUCKETS = ("--bucket_reso_steps", "16")  # steps of 32 put these pictures into one
TAG_DROPOUT = ("--caption_tag_dropout_rate", "0.3", "--caption_dropout_rate", "0.2")
CACHE, ACCUMULATION = ("--cache_latents",), ("--gradient_accumulation_steps", "2")
QUICK = {
    ("lora", CACHE, ACCUMULATION, 0),
    ("xti", CACHE, (), 0),
}


def words_of(name: str, model: Path, photos: Path, root: Path) -> tuple[str, list[str]]:
    script, *own = SCRIPTS[name]
    data = style_words(CAPTION_FILES, "zumira", photos, root / "data", with_reg=name == "train_db")
    # a new word must be in the captions that are trained
    draws = DRAWS if name in ("embedding", "xti") else (*DRAWS, *TAG_DROPOUT)
    length = ("--max_train_steps", str(UPDATES), "--learning_rate", "1e-3", "--lr_scheduler", "cosine")
    return script, ["--pretrained_model_name_or_path", str(model), *data, *SEVERAL_BUCKETS, *own, *draws, *length]


def cuts_of(case: str) -> list[int]:
    """Two updates after which the run is cut off, other ones for each case."""
    return sorted(random.Random(case).sample(range(1, UPDATES), 2))


def matrix() -> list[Any]:
    found = []
    for name in SCRIPTS:
        for cache in ((), CACHE):
            for accumulation in ((), ACCUMULATION):
                for workers in (0, 2):
                    is_quick = (name, cache, accumulation, workers) in QUICK
                    case = f"{name}-{'cache' if cache else 'live'}-{2 if accumulation else 1}-{workers} workers"
                    words = (*cache, *accumulation, "--max_data_loader_n_workers", str(workers))
                    marks = () if is_quick else (pytest.mark.slow,)
                    found.append(pytest.param(name, words, id=case, marks=marks))
    return found


def test_the_pictures_of_these_tests_lie_in_several_buckets(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    script, words = words_of("lora", tiny_models["sd1"], photos, tmp_path)
    words += ["--output_dir", str(tmp_path / "out")]
    run = check_network_run(parse_options(script, "", SCRIPTS_OF_OPTIONS[script].groups, words))
    assert len(run.placements.buckets) > 1


@pytest.mark.parametrize(("name", "more"), matrix())
def test_resumed_twice_is_never_stopped(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    script, words = words_of(name, tiny_models["sd1"], photos, tmp_path)
    whole = assert_resumes_exactly(script, [*words, *more], tmp_path, cuts_of(f"{name} {more}"))
    steps = [row["step"] for row in rows(whole) if "loss/current" in row]
    assert steps == list(range(1, UPDATES + 1))
    names = contents(whole)
    assert any(file.startswith("last.") for file in names) and any(file.startswith("last-state/") for file in names)


WAYS: Mapping[str, tuple[str, ...]] = {
    "adam8bit": ("--optimizer_type", "AdamW8bit"),
    "prodigy": ("--optimizer_type", "Prodigy", "--learning_rate", "1", "--lr_scheduler", "constant"),
    "dadaptation": ("--optimizer_type", "DAdaptAdam", "--learning_rate", "1", "--lr_scheduler", "constant"),
    "schedule-free": ("--optimizer_type", "AdamWScheduleFree", "--lr_scheduler", "constant"),
    "adafactor": ("--optimizer_type", "AdaFactor", "--optimizer_args", "relative_step=False"),
    "one cycle": ("--lr_scheduler_type", "OneCycleLR", "--lr_scheduler_args", "max_lr=0.01", "total_steps=6"),
    "ema": ("--ema", "--ema_decay", "0.9"),
    "validation": ("--validation_split", "0.34", "--validate_every_n_steps", "2"),
    "bf16": ("--mixed_precision", "bf16", "--full_bf16"),
    "bf16, 8 bit": ("--mixed_precision", "bf16", "--full_bf16", "--optimizer_type", "AdamW8bit"),
    "fused": ("--fused_backward_pass", "--max_grad_norm", "0"),
    "fused bf16": (
        *("--fused_backward_pass", "--max_grad_norm", "0", "--mixed_precision", "bf16", "--full_bf16"),
        *("--optimizer_type", "AdaFactor", "--optimizer_args", "relative_step=False"),
    ),
    "norms": ("--scale_weight_norms", "0.01", "--network_train_unet_only", "--cache_text_encoder_outputs"),
    "disk": ("--cache_latents_to_disk",),
    "lycoris": ("--network_module", "lycoris.kohya", "--network_args", "algo=loha", "preset=attn-mlp"),
}
QUICK_WAYS = ("ema",)


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way in QUICK_WAYS else (pytest.mark.slow,)) for way in WAYS]
)
def test_every_optimizer_and_way_of_learning_resumes_exactly(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, way: str
) -> None:
    script, words = words_of("lora", tiny_models["sd1"], photos, tmp_path)
    if way in ("one cycle", "validation"):
        words = _without(words, "--lr_scheduler")
    if way == "norms":
        words = _without(words, "--caption_tag_dropout_rate", "--caption_dropout_rate", "--shuffle_caption")
    assert_resumes_exactly(script, [*words, *WAYS[way]], tmp_path, cuts_of(way))


def _without(words: list[str], *flags: str) -> list[str]:
    """The words without these options and their values."""
    kept: list[str] = []
    dropped = False
    for word in words:
        dropped = word in flags or (dropped and not word.startswith("--"))
        if not dropped:
            kept.append(word)
    return kept
