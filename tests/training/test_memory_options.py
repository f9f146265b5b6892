"""Memory options through the real scripts: the same training, computed in another way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from library.core.errors import UserError
from library.models.attention import BlockwiseProcessor
from library.training import assemble
from tests.training.runs import Tensors, assert_same, largest_difference, run_here


@pytest.fixture(scope="module")
def data(photos: Path) -> list[str]:
    return ["--train_data_dir", str(photos), "--resolution", "64", "--max_train_steps", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def reference(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    return run_here(tiny_models["sd1"], data, tmp_path_factory.mktemp("reference"), "--optimizer_args", "eps=1e-3")


def test_blockwise_attention_trains_the_same(
    tiny_models: dict[str, Path],
    data: list[str],
    reference: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    compute = BlockwiseProcessor.__call__

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(args[1])
        return compute(*args, **kwargs)

    monkeypatch.setattr(BlockwiseProcessor, "__call__", counted)
    words = ["--mem_eff_attn", "--optimizer_args", "eps=1e-3"]
    assert largest_difference(run_here(tiny_models["sd1"], data, tmp_path, *words), reference) < 1e-5
    assert len(calls) == 2 * 2 * 16, "self and cross attention in 16 blocks, two updates"


def test_sdpa_is_what_happens_anyway(
    tiny_models: dict[str, Path], data: list[str], reference: Tensors, tmp_path: Path
) -> None:
    assert_same(run_here(tiny_models["sd1"], data, tmp_path, "--sdpa", "--optimizer_args", "eps=1e-3"), reference)


def test_lowram_loads_in_turn_and_trains_the_same(
    tiny_models: dict[str, Path],
    data: list[str],
    reference: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = []
    load_in_turn = assemble.load_in_turn

    def noted(processes: Any, in_turn: bool, load: Any) -> Any:
        turns.append(in_turn)
        return load_in_turn(processes, in_turn, load)

    monkeypatch.setattr(assemble, "load_in_turn", noted)
    words = ["--lowram", "--optimizer_args", "eps=1e-3"]
    assert_same(run_here(tiny_models["sd1"], data, tmp_path, *words), reference)
    assert turns == [True]


@pytest.mark.slow
def test_a_compiled_unet_trains_the_same_under_the_same_names(
    tiny_models: dict[str, Path], data: list[str], reference: Tensors, tmp_path: Path
) -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    words = ["--torch_compile", "--dynamo_backend", "eager", "--optimizer_args", "eps=1e-3"]
    assert largest_difference(run_here(tiny_models["sd1"], data, tmp_path, *words), reference) < 1e-5
    assert counters["stats"]["unique_graphs"] > 0


HOG = '''
"""A network that asks for more memory than there is."""
import torch

class Hog(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(4, 1, 1))

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        unet.conv_out.register_forward_hook(lambda layer, args, output: output + self.shift + torch.empty(1 << 60)[0])

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
        return [{"params": [self.shift], "lr": unet_lr}]

    def save_weights(self, file, dtype, metadata):
        raise AssertionError

def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None):
    return Hog()
'''


def test_memory_that_runs_out_is_answered_with_switches(
    tiny_models: dict[str, Path],
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "memory_hog.py").write_text(HOG, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    out, words = tmp_path / "out", ["--network_module", "memory_hog", "--train_batch_size", "2", "--cache_latents"]
    try:
        with pytest.raises(UserError) as caught:
            run_here(tiny_models["sd1"], data, out, *words)
    finally:
        sys.modules.pop("memory_hog", None)
    (problem,) = caught.value.problems
    assert problem.what.startswith("main memory is full: ") and "allocate" in problem.what
    assert "(1) --gradient_checkpointing" in problem.fix, "the latents are cached already"
    assert "--train_batch_size 1 with --gradient_accumulation_steps 2" in problem.fix
    assert "--network_train_unet_only" in problem.fix and "--cache_latents_to_disk" in problem.fix
    assert not list(out.glob("*.safetensors"))
