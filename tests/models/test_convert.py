"""Key maps, with the converters inside Diffusers as the independent opinion."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils as oracle
from torch import Tensor

from library.models import topology
from library.models.convert import text_encoder, unet, vae
from library.models.convert.names import inverted, rename
from library.models.load import build_text_encoder, build_unet, build_vae
from library.models.save import single_file_tensors
from library.models.stable_diffusion import StableDiffusion

FAMILIES = ("sd1", "sd2")
TENSOR_COUNT = {"sd1": 1130, "sd2": 1228}
TEXT_COUNT = {"sd1": 196, "sd2": 294}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def full_size_model(family: str) -> StableDiffusion:
    widths = topology.FULL_WIDTHS[family]
    text = topology.text_config(family, widths.text, widths.text_intermediate)
    return StableDiffusion(
        family,
        "epsilon",
        build_unet(topology.unet_config(family, widths.unet, widths.text)),
        build_text_encoder(text),
        build_vae(topology.vae_config(family, widths.vae)),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_full_size_single_file_has_the_tensors_of_the_published_files(family: str) -> None:
    tensors = single_file_tensors(full_size_model(family))
    assert len(tensors) == TENSOR_COUNT[family]
    assert sum(name.startswith("model.diffusion_model.") for name in tensors) == 686
    assert sum(name.startswith("first_stage_model.") for name in tensors) == 248
    assert sum(name.startswith("cond_stage_model.") for name in tensors) == TEXT_COUNT[family]
    assert tensors["model.diffusion_model.output_blocks.8.2.conv.weight"].shape == (640, 640, 3, 3)
    assert tensors["model.diffusion_model.output_blocks.2.1.conv.weight"].shape == (1280, 1280, 3, 3)
    assert tensors["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    assert tensors["first_stage_model.decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    projection = tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape
    assert projection == ((320, 320, 1, 1) if family == "sd1" else (320, 320))


def test_full_size_sd2_text_tensors_have_the_published_shapes() -> None:
    tensors = single_file_tensors(full_size_model("sd2"))
    prefix = "cond_stage_model.model."
    expected = {
        "transformer.resblocks.23.attn.in_proj_weight": (3072, 1024),
        "transformer.resblocks.0.attn.in_proj_bias": (3072,),
        "transformer.resblocks.22.mlp.c_fc.weight": (4096, 1024),
        "positional_embedding": (77, 1024),
        "token_embedding.weight": (49408, 1024),
        "text_projection": (1024, 1024),
        "logit_scale": (),
    }
    assert {name: tuple(tensors[prefix + name].shape) for name in expected} == expected


@pytest.mark.parametrize("kind", ("sd1", "sd2_v"))
def test_unet_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion], kind: str) -> None:
    network = models_in_memory[kind].unet
    single = unet.to_single_file(network.state_dict())
    assert_same(oracle.convert_ldm_unet_checkpoint(dict(single), dict(network.config)), network.state_dict())
    back = {new: t for name, tensor in single.items() for new, t in unet.to_diffusers(name, tensor).items()}
    assert_same(back, network.state_dict())


def test_vae_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion]) -> None:
    network = models_in_memory["sd1"].vae
    single = vae.to_single_file(network.state_dict())
    assert_same(oracle.convert_ldm_vae_checkpoint(dict(single), dict(network.config)), network.state_dict())
    back = {new: t for name, tensor in single.items() for new, t in vae.to_diffusers(name, tensor).items()}
    assert_same(back, network.state_dict())


def test_sd1_text_encoder_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion]) -> None:
    state = models_in_memory["sd1"].text_encoder.state_dict()
    single = text_encoder.to_single_file(state, "sd1")
    assert_same(oracle.convert_ldm_clip_checkpoint(dict(single)), text_encoder.to_folder(state))
    back = {new: t for name, tensor in single.items() for new, t in text_encoder.to_transformers(name, tensor).items()}
    assert_same(back, state)


def test_sd2_text_encoder_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion]) -> None:
    network = models_in_memory["sd2"].text_encoder
    single = text_encoder.to_single_file(network.state_dict(), "sd2")
    converted = oracle.convert_open_clip_checkpoint(network, dict(single))
    converted = {name: tensor for name, tensor in converted.items() if not name.startswith("text_projection")}
    expected = text_encoder.to_folder(network.state_dict())
    # Diffusers hands on what it has no use for, too
    assert_same({name: converted[name] for name in expected}, expected)
    back = {new: t for name, tensor in single.items() for new, t in text_encoder.to_transformers(name, tensor).items()}
    assert_same(back, network.state_dict())


def test_the_made_up_layer_changes_nothing(models_in_memory: dict[str, StableDiffusion]) -> None:
    single = text_encoder.to_single_file(models_in_memory["sd2"].text_encoder.state_dict(), "sd2")
    layer = "cond_stage_model.model.transformer.resblocks.23."
    outputs = [single[f"{layer}{part}"] for part in ("attn.out_proj.weight", "mlp.c_proj.weight", "mlp.c_proj.bias")]
    assert not any(output.any() for output in outputs)


def test_parts_of_a_fused_tensor_share_no_memory() -> None:
    fused = torch.arange(12.0).reshape(6, 2)
    name = "cond_stage_model.model.transformer.resblocks.4.attn.in_proj_weight"
    parts = text_encoder.to_transformers(name, fused)
    assert list(parts) == [f"encoder.layers.4.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
    parts["encoder.layers.4.self_attn.q_proj.weight"].zero_()
    assert torch.equal(fused, torch.arange(12.0).reshape(6, 2))


def test_former_attention_names_of_vae_folders_are_read() -> None:
    path = "decoder.mid_block.attentions.0"
    weight = torch.arange(4.0).reshape(2, 2)
    for former, present in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        (found,) = vae.from_folder(f"{path}.{former}.weight", weight[:, :, None, None]).items()
        assert found[0] == f"{path}.{present}.weight"
        assert torch.equal(found[1], weight)
    assert list(vae.from_folder(f"{path}.group_norm.weight", weight)) == [f"{path}.group_norm.weight"]


@pytest.mark.parametrize(
    "name",
    (
        "betas",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.model.attn_mask",
        "cond_stage_model.model.transformer.resblocks.23.ln_1.weight",
    ),
)
def test_what_is_no_weight_is_passed_over(name: str) -> None:
    tensor = torch.zeros(3)
    converters = (unet.to_diffusers, vae.to_diffusers, text_encoder.to_transformers)
    assert [convert(name, tensor) for convert in converters] == [{}, {}, {}]


def test_unknown_names_of_a_network_stay_visible() -> None:
    tensor = torch.zeros(1)
    assert list(unet.to_diffusers("model.diffusion_model.label_emb.0.weight", tensor)) == ["label_emb.0.weight"]
    for convert in (unet.to_single_file, vae.to_single_file):
        with pytest.raises(KeyError, match="adapter"):
            convert({"adapter.weight": tensor})


def test_rename_takes_the_longest_prefix() -> None:
    table = {"a": "x", "a.b": "y"}
    assert rename("a.b.c", table) == "y.c"
    assert rename("a.bc", table) == "x.bc"
    assert rename("ab", table) is None
    assert inverted(table) == {"x": "a", "y": "a.b"}
