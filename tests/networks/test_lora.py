"""LoRA files and modules: key sets of the field, initial values, attachment, merging, peers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from library.core.errors import UserError
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from networks.lora import check_options, create_network, create_network_from_weights, read_network_file
from tests.networks.lora_helpers import make, predict, randomise

ATTENTION = ["to_q", "to_k", "to_v", "to_out_0"]
# blocks of the U-Net with attention: path and number of transformers
TRANSFORMERS = {
    **{f"down_blocks_{b}_attentions": 2 for b in range(3)},
    "mid_block_attentions": 1,
    **{f"up_blocks_{b}_attentions": 3 for b in range(1, 4)},
}


def golden_unet_names() -> set[str]:
    """The 192 U-Net modules of public SD1 and SD2 LoRA files, written out from the format's description."""
    names = set()
    for path, count in TRANSFORMERS.items():
        for i in range(count):
            block = f"lora_unet_{path}_{i}"
            names |= {f"{block}_proj_in", f"{block}_proj_out"}
            inner = f"{block}_transformer_blocks_0"
            names |= {f"{inner}_{attention}_{part}" for attention in ("attn1", "attn2") for part in ATTENTION}
            names |= {f"{inner}_ff_net_0_proj", f"{inner}_ff_net_2"}
    return names


def golden_text_names(layers: int) -> set[str]:
    """Six modules a layer: 72 for SD1, 138 for SD2."""
    parts = [f"self_attn_{p}" for p in ("q_proj", "k_proj", "v_proj", "out_proj")] + ["mlp_fc1", "mlp_fc2"]
    return {f"lora_te_text_model_encoder_layers_{i}_{part}" for i in range(layers) for part in parts}


@pytest.fixture(params=["sd1", "sd2"])
def model(request: pytest.FixtureRequest, device: torch.device) -> StableDiffusion:
    model = make_tiny_model(request.param, seed=0)
    for part in (model.unet, model.text_encoder):
        nn.Module.to(part, device)
    return model


def test_key_set_is_the_golden_one(model: StableDiffusion) -> None:
    names = golden_unet_names() | golden_text_names(12 if model.family == "sd1" else 23)
    assert len(names) == (264 if model.family == "sd1" else 330)
    suffixes = (".lora_down.weight", ".lora_up.weight", ".alpha")
    assert set(make(model).file_tensors()) == {name + suffix for name in names for suffix in suffixes}


def test_shapes_and_initial_values(model: StableDiffusion) -> None:
    tensors = make(model, rank=3, alpha=2.0).file_tensors()
    projection = "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"
    # SD1's projection is a 1x1 convolution; SD2's is linear and is written so, for Diffusers refuses the 4-D form there
    assert tensors[projection].dim() == (4 if model.family == "sd1" else 2)
    for key, value in tensors.items():
        if key.endswith(".alpha"):
            assert value.shape == () and value == 2.0
        elif key.endswith("lora_up.weight"):
            assert value.shape[1] == 3 and not value.any()
        else:
            bound = (1 / value[0].numel()) ** 0.5  # Kaiming-uniform with a = sqrt(5)
            assert value.shape[0] == 3 and value.abs().max() <= bound
            assert value.abs().max() > 0.5 * bound


def test_alpha_zero_means_alpha_equals_rank(model: StableDiffusion) -> None:
    network = make(model, rank=8, alpha=0)
    assert {module.scale for module in network.loras()} == {1.0}
    assert make(model, rank=8, alpha=2).unet_loras["lora_unet_mid_block_attentions_0_proj_in"].scale == 0.25


@torch.no_grad()
def test_fresh_network_and_multiplier_zero_change_nothing(model: StableDiffusion) -> None:
    base = predict(model)
    network = make(model)
    assert torch.equal(predict(model), base)
    randomise(network)
    assert not torch.allclose(predict(model), base, atol=1e-2)
    network.set_multiplier(0.0)
    assert torch.equal(predict(model), base)
    network.set_multiplier(1.0)
    network.detach()
    assert torch.equal(predict(model), base)


@torch.no_grad()
@pytest.mark.parametrize("multiplier", [1.0, 0.5])
def test_merged_weights_give_what_the_attached_network_gives(model: StableDiffusion, multiplier: float) -> None:
    network = make(model, rank=4, alpha=2)
    randomise(network)
    network.set_multiplier(multiplier)
    attached = predict(model)
    network.detach()
    network.merge_to(model.text_encoder, model.unet, network.file_tensors())
    torch.testing.assert_close(predict(model), attached, atol=1e-4, rtol=0)


def test_save_load_round_trip_and_metadata(model: StableDiffusion, tmp_path: Path) -> None:
    network, file = make(model, rank=2, alpha=4), tmp_path / "x.safetensors"
    randomise(network)
    network.save_weights(file, None, {"ss_network_dim": "2"})
    with safe_open(str(file), "pt") as opened:
        assert set(opened.metadata()) == {"ss_network_dim", "sshs_model_hash", "sshs_legacy_hash"}
    other = make(model, rank=2, alpha=1)
    other.load_weights(file)
    loaded = other.file_tensors()
    assert all(torch.equal(loaded[key], value) for key, value in network.file_tensors().items())
    rebuilt, _ = create_network_from_weights(1.0, file, model.vae, [model.text_encoder], model.unet)
    rebuilt.load_weights(file)
    assert [m.scale for m in rebuilt.loras()] == [2.0] * len(list(rebuilt.loras()))


def test_saved_precision_is_the_asked_one(model: StableDiffusion, tmp_path: Path) -> None:
    make(model).save_weights(tmp_path / "x.safetensors", torch.float16, {})
    assert {t.dtype for t in load_file(str(tmp_path / "x.safetensors")).values()} == {torch.float16}


def test_both_public_forms_of_projections_are_read(model: StableDiffusion, tmp_path: Path) -> None:
    """Public SD2 files hold 4-D projections although the layer is linear; old SD1 tools wrote 2-D ones."""
    network, file = make(model), tmp_path / "x.safetensors"
    randomise(network)
    tensors = network.file_tensors()
    for key in [k for k in tensors if "_proj_in." in k or "_proj_out." in k]:
        if key.endswith(".weight") and "unet" in key:
            value = tensors[key]
            tensors[key] = value[..., None, None] if value.dim() == 2 else value[..., 0, 0]
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(file))
    other = make(model)
    other.load_weights(file)
    loaded = other.file_tensors()
    assert all(torch.equal(loaded[key], value) for key, value in network.file_tensors().items())


def test_files_that_do_not_fit_are_named(model: StableDiffusion, tmp_path: Path) -> None:
    network, file = make(model), tmp_path / "x.safetensors"
    tensors = network.file_tensors()
    first = next(iter(tensors)).split(".")[0]
    save_file({k: v for k, v in tensors.items() if not k.startswith(first)}, str(file))
    with pytest.raises(UserError, match=f"missing in the file, for example {first}"):
        network.load_weights(file)
    save_file({**tensors, "lora_unet_other.lora_up.weight": torch.ones(1)}, str(file))
    with pytest.raises(UserError, match="have no place in this network, for example lora_unet_other"):
        network.load_weights(file)
    make(model, rank=8).save_weights(file, None, {})
    with pytest.raises(UserError, match="--network_dim"):
        make(model, rank=4).load_weights(file)
    file.write_bytes(b"not a network")
    with pytest.raises(UserError, match="this is plain text, no model"):
        network.load_weights(file)


class Malicious:
    """Unpickled by an ordinary reader, this runs a command."""

    def __init__(self, touched: Path) -> None:
        self._touched = touched

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self._touched}'",)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_pickled_network_files_are_read_and_run_nothing(model: StableDiffusion, tmp_path: Path, suffix: str) -> None:
    network, file = make(model), tmp_path / f"x{suffix}"
    torch.save(network.file_tensors(), file)
    assert read_network_file(file).keys() == network.file_tensors().keys()
    torch.save({**network.file_tensors(), "x": Malicious(tmp_path / "touched")}, file)
    with pytest.raises(UserError, match="system"):
        read_network_file(file)
    assert not (tmp_path / "touched").exists()


def test_parts_can_be_left_out_and_rates_are_per_part(model: StableDiffusion) -> None:
    network = create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet)
    groups = network.prepare_optimizer_params(1e-5, None, 1e-3)
    assert [(group["name"], group["lr"]) for group in groups] == [("text_encoder", 1e-5), ("unet", 1e-3)]
    network.apply_to(model.text_encoder, model.unet, False, True)
    assert [group["name"] for group in network.prepare_optimizer_params(1e-5, None, 1e-3)] == ["unet"]
    assert all(key.startswith("lora_unet_") for key in network.file_tensors())
    assert not model.text_encoder.encoder.layers[0].mlp.fc1._forward_hooks


def test_unknown_arguments_are_refused(model: StableDiffusion) -> None:
    with pytest.raises(UserError, match="conv_dmi"):
        create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet, conv_dmi="4")


def test_dropout_depends_on_the_batch_alone_and_survives_checkpointing(model: StableDiffusion) -> None:
    network = make(model, neuron_dropout=0.5)
    randomise(network)
    network.eval()
    plain = predict(model)
    network.train()

    def gradients(seed: int) -> torch.Tensor:
        network.zero_grad()
        network.on_batch_start(seed)
        predict(model).square().mean().backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    first, again, other = gradients(1), gradients(1), gradients(2)
    assert torch.equal(first, again) and not torch.equal(first, other)
    model.unet.train()
    model.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(1), first, atol=1e-6, rtol=1e-4)
    network.on_batch_start(1)
    assert not torch.allclose(predict(model), plain, atol=1e-3)


def test_options_are_judged_without_a_model(model: StableDiffusion, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    make(model, rank=8).save_weights(file, None, {})
    check_options(8, {}, file)
    with pytest.raises(UserError, match="the file has rank 8, --network_dim asks for 4"):
        check_options(4, {}, file)
    save_file({"emb_params": torch.ones(1, 768)}, str(file))
    with pytest.raises(UserError, match="holds no LoRA weights"):
        check_options(4, {}, file)
