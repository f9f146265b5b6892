"""Every script, every way of computing: losses are finite, just the asked-for parts move, the rest keeps its bits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from library.options.parse import OptionValues, parse_options
from library.options.scripts import SCRIPTS
from library.training.assemble import Learner, build_trainer, load_learner, make_planner
from library.training.checks.preflight import (
    check_embedding_run,
    check_fine_tuning_run,
    check_full_model_run,
    check_network_run,
)
from library.training.progress import plan_run
from library.training.run import Run
from library.training.runtime import start_runtime
from tests.training.runs import Tensors, run_script_in_processes
from tests.training.styles import CAPTION_FILES, style_words

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

PARTS = ("unet", "text_encoder", "vae")
UPDATES = 2
Check = Callable[[OptionValues], Run]


@dataclass(frozen=True)
class Script:
    """How a script is checked, the words that only it needs, and the words that take the text encoder in or out."""

    check: Check
    own: tuple[str, ...]
    other_text: tuple[str, ...]
    learns: frozenset[str]  # of the models themselves, without and with `other_text`
    learns_with_other: frozenset[str]


def parts(*names: str) -> frozenset[str]:
    return frozenset(names)


MATRIX: Mapping[str, Script] = {
    "train_network.py": Script(check_network_run, (), ("--network_train_unet_only",), parts(), parts()),
    "train_db.py": Script(
        *(check_full_model_run, (), ("--stop_text_encoder_training", "0")),
        *(parts("unet", "text_encoder"), parts("unet")),
    ),
    "fine_tune.py": Script(
        *(check_fine_tuning_run, (), ("--train_text_encoder",), parts("unet"), parts("unet", "text_encoder"))
    ),
    "train_textual_inversion.py": Script(
        check_embedding_run, ("--token_string", "zumira"), ("--xti",), parts(), parts()
    ),
}
CHECKPOINTING = ("--gradient_checkpointing",)
ACCUMULATION = ("--gradient_accumulation_steps", "2")
CACHE = ("--cache_latents",)
HALF = ("--mixed_precision", "bf16")
WAYS = {
    "plain": (),
    "checkpointing": CHECKPOINTING,
    "accumulation": ACCUMULATION,
    "cache": CACHE,
    "bf16": HALF,
    "everything": (*CHECKPOINTING, *ACCUMULATION, *CACHE, *HALF),
}
SLOW_WAYS = ("checkpointing", "accumulation", "cache", "bf16")  # alone; "everything" has them too


def cases() -> list[Any]:
    found = []
    for script in MATRIX:
        for way in WAYS:
            for other_text in (False, True):
                marks = [pytest.mark.slow] if way in SLOW_WAYS or (other_text and way == "everything") else []
                name = f"{script.removesuffix('.py')}-{way}-{'other text' if other_text else 'usual text'}"
                found.append(pytest.param(script, way, other_text, marks=marks, id=name))
    return found


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")


def words_of(script: str, model: Path, data: Sequence[str], out: Path, other_text: bool) -> list[str]:
    entry = MATRIX[script]
    return [
        *("--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), *entry.own),
        *("--learning_rate", "1e-3", "--max_data_loader_n_workers", "0", "--max_train_steps", str(UPDATES)),
        *(entry.other_text if other_text else ()),
    ]


def states(learner: Learner) -> dict[str, Tensors]:
    """The models' own tensors, and those beside them."""
    found = {name: _state(getattr(learner.models, name)) for name in PARTS}
    trained = [parameter for group in learner.groups for parameter in group["params"]]
    return {**found, "trained": {str(number): p.detach().clone() for number, p in enumerate(trained)}}


def _state(model: torch.nn.Module) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: Tensors, after: Tensors) -> float:
    """Share of the tensors that are other ones."""
    return sum(not torch.equal(before[name], after[name]) for name in before) / len(before)


@pytest.mark.parametrize(("script", "way", "other_text"), cases())
def test_exactly_the_asked_for_parts_move(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, script: str, way: str, other_text: bool
) -> None:
    entry = MATRIX[script]
    words = [*words_of(script, tiny_models["sd1"], data, tmp_path / "out", other_text), *WAYS[way]]
    run = entry.check(parse_options(script, "", SCRIPTS[script].groups, words))
    accelerator = start_runtime(run.options.training.mixed_precision)
    learner = load_learner(run, accelerator.device)
    before = states(learner)
    planner = make_planner(run, 1)
    trainer = build_trainer(run, accelerator, learner, planner, plan_run(planner, UPDATES, None))
    trainer.run()
    trainer.log.close()

    after = states(learner)
    learning = entry.learns_with_other if other_text else entry.learns
    for name in PARTS:
        if name in learning:
            assert changed(before[name], after[name]) > 0.9, name
        elif name == "text_encoder" and script == "train_textual_inversion.py":
            old = {key: value for key, value in before[name].items() if ".new." not in key}
            assert changed(old, after[name]) == 0, name
        else:
            assert changed(before[name], after[name]) == 0, name
    assert changed(before["trained"], after["trained"]) > 0.4  # the first update leaves LoRA's down matrices alone
    losses = [row["loss/current"] for row in rows(run.files.log) if "loss/current" in row]
    assert len(losses) == UPDATES
    assert all(loss is not None and math.isfinite(loss) and loss > 0 for loss in losses)


@pytest.mark.slow  # quick tests show it for a LoRA: tests/training/test_equivalence.py
@pytest.mark.parametrize(
    ("script", "other_text"),
    [
        ("train_db.py", False),
        ("train_network.py", False),
        ("fine_tune.py", True),
        ("train_textual_inversion.py", False),
        ("train_textual_inversion.py", True),
    ],
)
def test_two_processes_are_one_that_accumulates_two(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, script: str, other_text: bool
) -> None:
    steady = ["--optimizer_args", "eps=1e-3"]  # AdamW's own eps makes signs out of rounding noise
    words = [*words_of(script, tiny_models["sd1"], data, tmp_path / "two", other_text), *steady]
    run_script_in_processes(script, words, 2)
    alone = [*words_of(script, tiny_models["sd1"], data, tmp_path / "one", other_text), *steady, *ACCUMULATION]
    run_script_in_processes(script, alone, 1)
    two, one = (load_file(str(tmp_path / name / "last.safetensors")) for name in ("two", "one"))
    assert set(one) == set(two)
    assert max(float((one[key].float() - two[key].float()).abs().max()) for key in one) < 1e-5
    losses = [[row.get("loss/current") for row in rows(tmp_path / name / "last-log.jsonl")] for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
