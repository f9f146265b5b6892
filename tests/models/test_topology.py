from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from library.models import topology
from library.models.load import build_text_encoder, build_unet, build_vae

# the fields of the published configurations that decide about a layer, written down by hand
PUBLISHED_UNET = {
    "sd1": {"attention_head_dim": 8, "cross_attention_dim": 768, "use_linear_projection": False},
    "sd2": {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
}
PUBLISHED_UNET_COMMON = {
    "act_fn": "silu",
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
PUBLISHED_VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
PUBLISHED_TEXT = {
    "sd1": {"hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "sd2": {"hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
}
PUBLISHED_TEXT_LAYERS = {"sd1": 12, "sd2": 23}
PARAMETERS = {"sd1": (859_520_964, 123_060_480, 83_653_863), "sd2": (865_910_724, 340_387_840, 83_653_863)}
FAMILIES = ("sd1", "sd2")


def full_size_networks(family: str) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    widths = topology.FULL_WIDTHS[family]
    unet = build_unet(topology.unet_config(family, widths.unet, widths.text))
    text_encoder = build_text_encoder(topology.text_config(family, widths.text, widths.text_intermediate))
    return unet, text_encoder, build_vae(topology.vae_config(family, widths.vae))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_configs_are_the_published_ones(family: str) -> None:
    unet, text_encoder, vae = full_size_networks(family)
    for name, value in {**PUBLISHED_UNET_COMMON, **PUBLISHED_UNET[family]}.items():
        assert unet.config[name] == value, name
    for name, value in PUBLISHED_VAE.items():
        assert vae.config[name] == value, name
    published_text = {**PUBLISHED_TEXT[family], "num_hidden_layers": PUBLISHED_TEXT_LAYERS[family]}
    for name, value in {**published_text, "vocab_size": 49408, "max_position_embeddings": 77}.items():
        assert getattr(text_encoder.config, name) == value, name


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_networks_have_the_published_number_of_parameters(family: str) -> None:
    counts = tuple(sum(p.numel() for p in network.parameters()) for network in full_size_networks(family))
    assert counts == PARAMETERS[family]


@pytest.mark.parametrize("widths", (topology.FULL_WIDTHS, topology.TOY_WIDTHS), ids=("full", "toy"))
@pytest.mark.parametrize("family", FAMILIES)
def test_configs_are_recovered_from_shapes(family: str, widths: dict[str, topology.Widths]) -> None:
    preset = widths[family]
    unet = topology.unet_config(family, preset.unet, preset.text)
    vae = topology.vae_config(family, preset.vae)
    text = topology.text_config(family, preset.text, preset.text_intermediate)

    def shapes(network: torch.nn.Module) -> dict[str, topology.Shape]:
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    assert topology.unet_config_of(family, shapes(build_unet(unet))) == unet
    assert topology.vae_config_of(family, shapes(build_vae(vae))) == vae
    assert topology.text_config_of(family, shapes(build_text_encoder(text))) == text


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(KeyError, match=r"down_blocks.0.resnets.0.conv1.weight"):
        topology.unet_config_of("sd1", {})


def test_only_the_768_v_model_was_trained_on_larger_pictures() -> None:
    sizes = [topology.unet_sample_size(*pair) for pair in (("v_prediction", "sd2"), ("epsilon", "sd2"))]
    assert sizes == [96, 64]
    assert topology.unet_sample_size("v_prediction", "sd1") == 64


def test_every_config_field_is_known_to_the_libraries() -> None:
    widths = topology.TOY_WIDTHS["sd2"]
    unet = topology.unet_config("sd2", widths.unet, widths.text)
    vae = topology.vae_config("sd2", widths.vae)
    text = topology.text_config("sd2", widths.text, widths.text_intermediate)
    assert not UNet2DConditionModel.extract_init_dict(unet)[1]
    assert not AutoencoderKL.extract_init_dict(vae)[1]
    assert set(text) <= set(CLIPTextConfig().to_dict())
