"""Which layers a LoRA extends with which rank, alpha and rate: convolutions, the 25 blocks, files of mixed ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from library.core.errors import UserError
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from networks.lora import LoraNetwork, check_options, create_network, create_network_from_weights
from networks.lora_arguments import BLOCKS
from networks.lora_targets import block_of
from tests.networks.lora_helpers import make, predict, randomise

# residual blocks of the U-Net: path and number
RESNETS = {
    **{f"down_blocks_{b}_resnets": 2 for b in range(4)},
    "mid_block_resnets": 2,
    **{f"up_blocks_{b}_resnets": 3 for b in range(4)},
}
WIDTH_CHANGES = {"down_blocks_1_resnets_0", "down_blocks_2_resnets_0"} | {
    f"up_blocks_{b}_resnets_{i}" for b in range(4) for i in range(3)
}
SIZE_CHANGES = {f"down_blocks_{b}_downsamplers_0_conv" for b in range(3)}
SIZE_CHANGES |= {f"up_blocks_{b}_upsamplers_0_conv" for b in range(3)}


@pytest.fixture
def model() -> StableDiffusion:
    return make_tiny_model("sd1", seed=0)


def ranks(network: LoraNetwork) -> dict[str, int]:
    return {module.name: module.lora_down.weight.shape[0] for module in network.loras()}


def blocks(**changes: str) -> str:
    """25 numbers, 1 but for some blocks."""
    return ",".join(changes.get(block, "1") for block in BLOCKS)


def test_convolutions_bring_the_86_modules_of_public_files(model: StableDiffusion) -> None:
    resnets = {f"{path}_{i}" for path, count in RESNETS.items() for i in range(count)}
    added = {f"{path}_{part}" for path in resnets for part in ("conv1", "conv2", "time_emb_proj")}
    added |= {f"{path}_conv_shortcut" for path in WIDTH_CHANGES} | SIZE_CHANGES
    assert len(added) == 86
    plain, network = make(model), make(model, conv_dim="2", conv_alpha="0.5")
    assert set(ranks(network)) - set(ranks(plain)) == {f"lora_unet_{name}" for name in added}
    assert len(ranks(network)) == 350


def test_shapes_of_convolutions_are_those_of_public_files(model: StableDiffusion) -> None:
    tensors = make(model, rank=3, alpha=2.0, conv_dim="2", conv_alpha="0.5").file_tensors()
    for name, layer in model.unet.named_modules():
        key = f"lora_unet_{name}".replace(".", "_")
        if not isinstance(layer, torch.nn.Conv2d) or f"{key}.alpha" not in tensors:
            continue
        wide = layer.kernel_size == (3, 3)
        rank = 2 if wide else 3
        assert tensors[f"{key}.lora_down.weight"].shape == (rank, layer.in_channels, *layer.kernel_size)
        assert tensors[f"{key}.lora_up.weight"].shape == (layer.out_channels, rank, 1, 1)
        assert tensors[f"{key}.alpha"] == (0.5 if wide else 2.0)
    projection = "lora_unet_mid_block_resnets_0_time_emb_proj"  # linear, so it takes the linear rank
    assert tensors[f"{projection}.lora_down.weight"].shape[0] == 3 and tensors[f"{projection}.alpha"] == 2.0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_merged_convolutions_give_what_attached_ones_give(kind: str) -> None:
    model = make_tiny_model(kind, seed=0)
    base = predict(model)
    network = make(model, rank=2, alpha=1, conv_dim="3", conv_alpha="2")
    randomise(network, 0.2)
    attached = predict(model)
    convolutions = {name for name in ranks(network) if "conv" in name}
    network.detach()
    assert torch.equal(predict(model), base)
    network.merge_to(model.text_encoder, model.unet, network.file_tensors())
    torch.testing.assert_close(predict(model), attached, atol=1e-4, rtol=0)

    without = make_tiny_model(kind, seed=0)
    kept = {key: value for key, value in network.file_tensors().items() if key.split(".")[0] not in convolutions}
    other, _ = create_network_from_weights(1.0, "", None, without.text_encoder, without.unet, kept)
    other.merge_to(without.text_encoder, without.unet, kept)
    assert (predict(without) - attached).abs().max() > 1e-2, "the convolutions must matter for this to mean anything"


def test_blocks_are_counted_as_other_tools_do() -> None:
    """12 of the way down, the middle, 12 of the way up; IN00 is the first convolution."""
    counted = {
        **{"conv_in": "IN00", "down_blocks_0_resnets_0_conv1": "IN01", "down_blocks_0_attentions_0_proj_in": "IN01"},
        **{"down_blocks_0_attentions_1_proj_in": "IN02", "down_blocks_0_downsamplers_0_conv": "IN03"},
        **{"down_blocks_1_attentions_0_proj_in": "IN04", "down_blocks_1_resnets_1_conv2": "IN05"},
        **{"down_blocks_2_attentions_1_proj_in": "IN08", "down_blocks_2_downsamplers_0_conv": "IN09"},
        **{"down_blocks_3_resnets_0_conv1": "IN10", "down_blocks_3_resnets_1_conv1": "IN11"},
        **{"mid_block_attentions_0_proj_in": "MID", "mid_block_resnets_1_conv1": "MID"},
        **{"up_blocks_0_resnets_0_conv1": "OUT00", "up_blocks_0_upsamplers_0_conv": "OUT02"},
        **{"up_blocks_1_attentions_0_proj_in": "OUT03", "up_blocks_2_upsamplers_0_conv": "OUT08"},
        **{"up_blocks_3_attentions_2_proj_in": "OUT11", "up_blocks_3_resnets_2_conv_shortcut": "OUT11"},
    }
    found = {name: block_of(f"lora_unet_{name}") for name in counted}
    assert {name: None if block is None else BLOCKS[block] for name, block in found.items()} == counted
    assert len(BLOCKS) == 25 and BLOCKS[12] == "MID"
    for outside in ("lora_unet_conv_out", "lora_unet_time_embedding_linear_1", "lora_te_text_model_encoder_layers_0"):
        assert block_of(outside) is None


def test_ranks_and_alphas_of_blocks(model: StableDiffusion) -> None:
    network = make(
        model,
        rank=5,
        alpha=0,
        block_dims=blocks(IN04="7", MID="0"),
        block_alphas=blocks(IN04="3", OUT11="0"),
        conv_block_dims=blocks(IN04="0", OUT02="6"),
        conv_alpha="4",
    )
    found = {module.name: (module.lora_down.weight.shape[0], float(module.alpha)) for module in network.loras()}
    down, up = "lora_unet_down_blocks_1", "lora_unet_up_blocks"
    assert found[f"{down}_attentions_0_proj_in"] == found[f"{down}_resnets_0_time_emb_proj"] == (7, 3.0)
    assert f"{down}_resnets_0_conv1" not in found and f"{down}_resnets_1_conv1" in found
    assert found[f"{up}_0_upsamplers_0_conv"] == found[f"{up}_0_resnets_2_conv2"] == (6, 4.0)
    assert found[f"{up}_3_attentions_2_proj_in"] == (1, 1.0)  # alpha 0 is the rank
    assert found["lora_te_text_model_encoder_layers_0_mlp_fc1"] == (5, 5.0)
    # the linear layers of the middle get nothing, its convolutions do
    assert {name.split("_")[-1] for name in found if "mid_block" in name} == {"conv1", "conv2"}


@torch.no_grad()
@pytest.mark.parametrize("conv", [{}, {"conv_dim": "2", "conv_alpha": "4"}])
def test_diffusers_agrees_where_alphas_differ(model: StableDiffusion, tmp_path: Path, conv: dict[str, str]) -> None:
    """It gives layers of attention the alpha that most modules have, whatever their own are."""
    more = {"block_alphas": blocks(IN04="3", MID="0", OUT05="7"), **conv}
    network = make(model, rank=2, block_dims=blocks(IN04="2", MID="4", OUT05="3"), **more)
    randomise(network)
    network.save_weights(tmp_path / "x.safetensors", None, {})
    wanted, other = predict(model), make_tiny_model("sd1", seed=0)
    before = predict(other)
    states, alphas = StableDiffusionPipeline.lora_state_dict(str(tmp_path), weight_name="x.safetensors")
    StableDiffusionPipeline.load_lora_into_unet(states, alphas, other.unet)
    StableDiffusionPipeline.load_lora_into_text_encoder(states, alphas, other.text_encoder, prefix="text_encoder")
    scale = (wanted - before).abs().max()
    assert scale > 0.1 and (predict(other) - wanted).abs().max() < 1e-4 * scale


@torch.no_grad()
def test_alphas_that_differ_survive_a_file(model: StableDiffusion, tmp_path: Path) -> None:
    more = {"block_alphas": blocks(MID="3", OUT05="5"), "conv_dim": "2", "conv_alpha": "7"}
    network = make(model, **more)
    randomise(network)
    network.save_weights(tmp_path / "x.safetensors", None, {})
    wanted, middle = predict(model), "lora_unet_mid_block_attentions_0_proj_in"
    told = load_file(str(tmp_path / "x.safetensors"))
    assert {key: float(value) for key, value in told.items() if key.endswith("alpha") and value not in (1, 7)} == {}
    assert told["lora_unet_mid_block_resnets_0_conv1.alpha"] == 7
    network.detach()
    again = make(model, **more)
    again.load_weights(tmp_path / "x.safetensors")
    assert {module.name: float(module.alpha) for module in again.loras()}[middle] == 3
    torch.testing.assert_close(predict(model), wanted, atol=1e-4, rtol=0)
    again.detach()
    rebuilt, _ = create_network_from_weights(1.0, tmp_path / "x.safetensors", None, model.text_encoder, model.unet)
    rebuilt.apply_to(model.text_encoder, model.unet)
    rebuilt.load_weights(tmp_path / "x.safetensors")
    torch.testing.assert_close(predict(model), wanted, atol=1e-4, rtol=0)


def test_a_block_of_weight_zero_gets_no_modules_and_the_others_their_rates(model: StableDiffusion) -> None:
    down = "1,1,1,1,0.5,0.05,1,1,1,1,1,1"
    more = {"down_lr_weight": down, "up_lr_weight": "zeros", "mid_lr_weight": "2", "block_lr_zero_threshold": "0.1"}
    network = make(model, **more)
    groups = {group["name"]: group["lr"] for group in network.prepare_optimizer_params(1e-5, 1e-3, 1.0)}
    assert groups == {
        "text_encoder": 1e-5,
        **{f"unet {block}": 1e-3 for block in ("IN01", "IN02", "IN07", "IN08")},
        **{"unet IN04": 0.5e-3, "unet MID": 2e-3},
    }
    assert not [name for name in ranks(network) if "up_blocks" in name or "down_blocks_1_attentions_1" in name]


def test_up_weights_have_their_own_rate_where_asked(model: StableDiffusion) -> None:
    def groups(**more: str) -> dict[str, tuple[float, set[str]]]:
        network = make(model, **more)
        names = {parameter: name.rsplit(".", 2)[1] for name, parameter in network.named_parameters()}
        found = network.prepare_optimizer_params(1e-4, 1e-3, 1.0)
        assert sum(len(group["params"]) for group in found) == len(names)
        return {group["name"]: (group["lr"], {names[p] for p in group["params"]}) for group in found}

    both = {"lora_down", "lora_up"}
    assert groups() == {"text_encoder": (1e-4, both), "unet": (1e-3, both)}
    assert groups(loraplus_lr_ratio="4", loraplus_unet_lr_ratio="16") == {
        "text_encoder": (1e-4, {"lora_down"}),
        "text_encoder plus": (4e-4, {"lora_up"}),
        "unet": (1e-3, {"lora_down"}),
        "unet plus": (1.6e-2, {"lora_up"}),
    }
    assert set(groups(loraplus_text_encoder_lr_ratio="2")) == {"text_encoder", "text_encoder plus", "unet"}
    assert {"unet MID", "unet MID plus"} <= set(groups(loraplus_unet_lr_ratio="2", mid_lr_weight="0.5"))


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt"])
def test_a_file_of_mixed_ranks_is_rebuilt_from_itself(model: StableDiffusion, tmp_path: Path, suffix: str) -> None:
    network = make(model, block_dims=blocks(MID="3", OUT05="2"), conv_dim="2", conv_alpha="4")
    randomise(network)
    network.save_weights(tmp_path / f"x{suffix}", None, {"ss_network_dim": "Dynamic"})
    wanted = predict(model)
    other = make_tiny_model("sd1", seed=0)
    rebuilt, _ = create_network_from_weights(1.0, tmp_path / f"x{suffix}", None, other.text_encoder, other.unet)
    rebuilt.apply_to(other.text_encoder, other.unet)
    rebuilt.load_weights(tmp_path / f"x{suffix}")
    assert ranks(rebuilt) == ranks(network)
    assert torch.equal(predict(other), wanted)
    if suffix != ".safetensors":
        plain = torch.load(tmp_path / f"x{suffix}", weights_only=True)
        assert set(plain) == set(network.file_tensors())


def test_weights_of_a_block_freeze_it_where_the_file_has_it(model: StableDiffusion, tmp_path: Path) -> None:
    make(model).save_weights(tmp_path / "x.safetensors", None, {})
    more = {"down_lr_weight": "zeros", "rank_dropout": "0.1"}
    network, _ = create_network_from_weights(
        1.0, tmp_path / "x.safetensors", None, model.text_encoder, model.unet, **more
    )
    names = {group["name"] for group in network.prepare_optimizer_params(1e-4, 1e-3, 1.0)}
    assert not any(name.startswith("unet IN") for name in names) and "unet MID" in names
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if "down_blocks" in name}


def test_files_for_other_models_and_of_other_kinds_are_named(model: StableDiffusion, tmp_path: Path) -> None:
    tensors = make(model).file_tensors()
    strange = {key.replace("lora_te_", "lora_te1_"): value for key, value in tensors.items()}
    with pytest.raises(UserError, match="72 of its 264 modules fit no layer of the model, for example lora_te1_"):
        create_network_from_weights(1.0, "f", None, model.text_encoder, model.unet, strange)
    tensors["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"] = torch.ones(1)
    with pytest.raises(UserError, match="holds weights of another kind"):
        create_network_from_weights(1.0, "f", None, model.text_encoder, model.unet, tensors)
    wide = make_tiny_model("sd2", seed=0)
    with pytest.raises(UserError, match=r"in the file, .* is needed"):
        create_network_from_weights(1.0, "f", None, None, model.unet, make(wide).file_tensors())


def test_files_are_judged_by_the_shapes_that_are_asked_for(model: StableDiffusion, tmp_path: Path) -> None:
    mixed, convolutions = tmp_path / "mixed.safetensors", tmp_path / "conv.safetensors"
    make(model, block_dims=blocks(MID="3")).save_weights(mixed, None, {})
    make(model, conv_dim="2").save_weights(convolutions, None, {})
    check_options(None, {}, mixed)
    check_options(None, {"module_dropout": "0.1"}, convolutions)
    check_options(4, {"block_dims": blocks(MID="3")}, mixed)
    check_options(4, {"conv_dim": "2"}, convolutions)
    for dim, arguments, file, said in [
        (4, {}, mixed, "the file has rank 1 and 3 and 4, --network_dim asks for 4"),
        (4, {"block_dims": blocks(MID="2")}, mixed, "mid_block.* has rank 3, the options ask for 2"),
        (4, {}, convolutions, "the file has modules for 3x3 convolutions, and none are asked for"),
        (4, {"conv_dim": "3"}, convolutions, "has rank 2, the options ask for 3"),
        (4, {"conv_dim": "3"}, mixed, "the file has no modules for 3x3 convolutions"),
        (None, {"conv_dim": "2"}, convolutions, "conv_dim: the file says it"),
    ]:
        with pytest.raises(UserError, match=said):
            check_options(dim, arguments, file)
    save_file({"x.lora_down.weight": torch.ones(2, 4)}, str(mixed))
    with pytest.raises(UserError, match="the two matrices of x do not fit together"):
        check_options(None, {}, mixed)


def test_a_network_without_modules_in_the_unet_trains_the_text_encoder(model: StableDiffusion) -> None:
    network = create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet, block_dims=",".join(25 * ["0"]))
    assert [group["name"] for group in network.prepare_optimizer_params(1e-4, 1e-3, 1.0)] == ["text_encoder"]
