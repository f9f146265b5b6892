"""Key maps, with the converters inside Diffusers as the independent opinion."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import single_file_utils as oracle
from torch import Tensor

from library.core.tensor_files import made
from library.models import topology
from library.models.convert import text_encoder, unet, vae
from library.models.convert.names import inverted, rename
from library.models.load import build_text_encoder, build_unet, build_vae
from library.models.parts import fit, fits
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
    assert_same(fit(back, network), network.state_dict())


def test_sd1_text_encoder_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion]) -> None:
    state = models_in_memory["sd1"].text_encoder.state_dict()
    single = text_encoder.to_single_file(state, "sd1")
    assert_same(oracle.convert_ldm_clip_checkpoint(dict(single)), text_encoder.to_folder(state))
    back = {new: t for name, tensor in single.items() for new, t in text_encoder.to_transformers(name, tensor).items()}
    assert_same(back, state)


def test_sd2_text_encoder_agrees_with_diffusers(models_in_memory: dict[str, StableDiffusion]) -> None:
    network = models_in_memory["sd2"].text_encoder
    single = {name: made(tensor) for name, tensor in text_encoder.to_single_file(network.state_dict(), "sd2").items()}
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


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn))
def test_parts_of_a_fused_tensor_are_independent_without_a_copy(dtype: torch.dtype) -> None:
    fused = torch.arange(12.0).reshape(6, 2).to(dtype)
    name = "cond_stage_model.model.transformer.resblocks.4.attn.in_proj_weight"
    parts = text_encoder.to_transformers(name, fused)
    assert list(parts) == [f"encoder.layers.4.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(torch.cat([part.float() for part in parts.values()]), fused.float())
    assert {part.untyped_storage().nbytes() for part in parts.values()} == {4 * dtype.itemsize}
    assert len({part.untyped_storage().data_ptr() for part in parts.values()}) == 3
    start, size = fused.data_ptr(), fused.nbytes
    query, key, value = parts.values()
    assert all(start <= part.data_ptr() < start + size for part in (query, key, value))
    del fused  # its memory must outlive it
    query.zero_()
    assert key.float().tolist() == [[4, 5], [6, 7]] and value.float().tolist() == [[8, 9], [10, 11]]


@pytest.mark.parametrize("shape", ((), (1,), (7, 2), (0,)))
def test_a_fused_tensor_of_a_senseless_shape_is_no_crash(shape: tuple[int, ...]) -> None:
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    assert text_encoder.to_transformers(name, torch.zeros(shape))


FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn", "group_norm": "group_norm"}
PRESENT = {name: name for name in FORMER}
IN_CHECKPOINTS = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


@pytest.mark.parametrize("kernel", ((), (1, 1)), ids=("linear", "convolution"))
@pytest.mark.parametrize("names", (FORMER, PRESENT, IN_CHECKPOINTS), ids=("former", "present", "in_checkpoints"))
@pytest.mark.parametrize("layout", ("single_file", "folder"))
def test_every_form_of_the_vae_attention_is_read(
    models_in_memory: dict[str, StableDiffusion], layout: str, names: dict[str, str], kernel: tuple[int, ...]
) -> None:
    network = models_in_memory["sd1"].vae
    state = network.state_dict()
    given = vae.to_single_file(state) if layout == "single_file" else dict(state)
    for half in ("encoder", "decoder"):
        for present, name in names.items():
            for kind in ("weight", "bias"):
                old = f"{half}.mid_block.attentions.0.{present}.{kind}"
                place = (
                    f"first_stage_model.{half}.mid.attn_1" if layout == "single_file" else old.split(f".{present}")[0]
                )
                spelt = IN_CHECKPOINTS[present] if layout == "single_file" else present
                del given[f"{place}.{spelt}.{kind}"]
                tensor = state[old]
                given[f"{place}.{name}.{kind}"] = tensor.reshape(*tensor.shape, *kernel) if tensor.ndim > 1 else tensor
    convert = vae.to_diffusers if layout == "single_file" else vae.from_any
    found = {new: t for name, tensor in given.items() for new, t in convert(name, tensor).items()}
    if layout == "folder" and names is IN_CHECKPOINTS:
        assert found.keys() != state.keys()  # names that no folder ever had stay unknown
    else:
        assert_same(fit(found, network), state)


def test_every_form_of_the_sd1_text_encoder_is_read(models_in_memory: dict[str, StableDiffusion]) -> None:
    state = models_in_memory["sd1"].text_encoder.state_dict()
    for prefix in ("cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."):
        given = {**{prefix + name: tensor for name, tensor in state.items()}}
        given[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
        found = {
            new: t for name, tensor in given.items() for new, t in text_encoder.to_transformers(name, tensor).items()
        }
        assert_same(found, state)


def test_forms_that_differ_in_the_kernel_only_fit() -> None:
    assert (
        fits((3, 2), (3, 2)) and fits((3, 2, 1, 1), (3, 2)) and fits((3, 2), (3, 2, 1, 1)) and fits((3, 2, 1), (3, 2))
    )
    assert (
        not fits((3, 2, 3, 3), (3, 2))
        and not fits((2, 3), (3, 2))
        and not fits((3, 1), (3,))
        and not fits((3,), (3, 1))
    )
    assert not fits((), (1,)) and not fits((3, 2, 1, 1), (3, 2, 3, 3))


@pytest.mark.parametrize(
    "name",
    (
        "betas",
        "model_ema.diffusion_modelinput_blocks00weight",
        "first_stage_model.loss.logvar",
        "first_stage_model.model_ema.decay",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.text_model.text_projection.weight",
        "cond_stage_model.model.attn_mask",
        "cond_stage_model.model.text_projection",
        "cond_stage_model.model.logit_scale",
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
