"""train_network.py with every option of a LoRA, with LyCORIS, and on top of other networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

import train_network
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_diffusers
from library.text.tokenizer import tokenizer_files
from networks.lora import create_network_from_weights
from tests.training.runs import Tensors, run_here

SHAPES = ["conv_dim=3", "conv_alpha=6", "block_dims=" + ",".join(["2"] * 12 + ["5"] + ["4"] * 12)]
RATES = ["loraplus_unet_lr_ratio=4", "down_lr_weight=cosine+0.1", "rank_dropout=0.1", "module_dropout=0.1"]


@pytest.fixture(scope="module")
def data(photos: Path) -> list[str]:
    return ["--train_data_dir", str(photos), "--resolution", "64"]


@pytest.fixture(scope="module")
def complete(tiny_models: dict[str, Path], data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run with all arguments that get along."""
    out = tmp_path_factory.mktemp("complete")
    words = [
        "--max_train_steps",
        "3",
        "--network_alpha",
        "8",
        "--scale_weight_norms",
        "0.05",
        "--learning_rate",
        "1e-2",
    ]
    run_here(tiny_models["sd1"], data, out, *words, "--network_args", *SHAPES, *RATES)
    return out / "last.safetensors"


def rows(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (file.parent / "last-log.jsonl").read_text().splitlines()]


def first_loss(file: Path) -> float:
    return next(row["loss/current"] for row in rows(file) if "loss/current" in row)


def test_every_argument_shows_in_file_and_log(complete: Path) -> None:
    tensors = load_file(str(complete))
    assert len(tensors) == 3 * 350
    ranks = {key.split(".")[0]: value.shape[0] for key, value in tensors.items() if key.endswith("lora_down.weight")}
    assert ranks["lora_unet_mid_block_attentions_0_proj_in"] == 5 and ranks["lora_unet_mid_block_resnets_0_conv1"] == 3
    assert ranks["lora_te_text_model_encoder_layers_0_mlp_fc1"] == 4
    last = [row for row in rows(complete) if "loss/current" in row][-1]
    assert 0 < last["max_norm/max_key_norm"] <= 0.0501 and last["max_norm/keys_scaled"] >= 1
    assert 0 < last["max_norm/average_key_norm"] <= last["max_norm/max_key_norm"]
    with safe_open(str(complete), "pt") as file:
        told = json.loads(file.metadata()["ss_network_args"])
    assert told == dict(word.split("=") for word in (*SHAPES, *RATES))


@torch.no_grad()
def test_diffusers_agrees_about_convolutions(tiny_models: dict[str, Path], complete: Path, tmp_path: Path) -> None:
    save_diffusers(load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon"), tmp_path, tokenizer_files("sd1"))

    def pipeline() -> StableDiffusionPipeline:
        pipe = StableDiffusionPipeline.from_pretrained(str(tmp_path), safety_checker=None, local_files_only=True)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def latents(pipe: StableDiffusionPipeline) -> torch.Tensor:
        start = torch.Generator().manual_seed(0)
        sizes = {"num_inference_steps": 2, "width": 64, "height": 64}
        return pipe("a cat", **sizes, generator=start, output_type="latent").images

    with_lora, merged = pipeline(), pipeline()
    before = latents(with_lora)
    with_lora.load_lora_weights(str(complete.parent), weight_name=complete.name)
    used = [path for path, module in with_lora.unet.named_modules() if getattr(module, "lora_A", None)]
    assert len(used) == 192 + 86
    network, weights = create_network_from_weights(1.0, complete, None, merged.text_encoder, merged.unet)
    network.merge_to(merged.text_encoder, merged.unet, weights)
    after = latents(with_lora)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(latents(merged), after, atol=1e-4, rtol=0)


def test_a_base_with_a_network_in_it_starts_where_that_network_ended(
    tiny_models: dict[str, Path], data: list[str], complete: Path, tmp_path: Path
) -> None:
    """A fresh network changes nothing, so the first loss is that of the base, and that of going on from the file."""
    once = ["--max_train_steps", "1"]
    run_here(tiny_models["sd1"], data, tmp_path / "base", *once, "--base_weights", str(complete))
    without = ["--base_weights", str(complete), "--base_weights_multiplier", "0"]
    run_here(tiny_models["sd1"], data, tmp_path / "none", *once, *without)
    going_on = ["--network_weights", str(complete), "--dim_from_weights", "--save_model_as", "pt"]
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, *once, *going_on]
    train_network.main([*words, "--output_dir", str(tmp_path / "on"), "--max_data_loader_n_workers", "0"])

    losses = {name: first_loss(tmp_path / name / "last.x") for name in ("base", "none", "on")}
    assert losses["base"] == pytest.approx(losses["on"], abs=1e-5)
    assert abs(losses["base"] - losses["none"]) > 1e-4
    saved: Tensors = torch.load(tmp_path / "on" / "last.pt", weights_only=True)
    assert {key: value.shape for key, value in saved.items()} == {
        key: value.shape for key, value in load_file(str(complete)).items()
    }


@pytest.mark.parametrize("algo", ["loha", pytest.param("lokr", marks=pytest.mark.slow)])
def test_lycoris_trains_through_the_script_and_goes_on(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, algo: str
) -> None:
    words = ["--network_module", "lycoris.kohya", "--max_train_steps", "3", "--network_dim", "2"]
    arguments = ["--network_args", f"algo={algo}", "preset=attn-mlp", "factor=4"]
    first = run_here(tiny_models["sd1"], data, tmp_path / "a", *words, *arguments)
    assert len({key.split(".")[0] for key in first if key.startswith("lora_te_text_model_")}) == 72
    assert len({key.split(".")[0] for key in first}) == 264
    with safe_open(str(tmp_path / "a" / "last.safetensors"), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "lycoris.kohya"
    assert json.loads(metadata["ss_network_args"]) == {"algo": algo, "preset": "attn-mlp", "factor": "4"}
    start = ["--network_weights", str(tmp_path / "a" / "last.safetensors"), "--learning_rate", "1e-7"]
    again = run_here(tiny_models["sd1"], data, tmp_path / "b", *words, *arguments, *start)
    assert set(again) == set(first)
    assert max(float((again[key] - first[key]).abs().max()) for key in first) < 1e-6
