from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from diffusers.models import ControlNetModel
from torch import nn

from library.models import recognise as kinds
from library.models.files.weights import open_weights
from library.models.recognise import KINDS, Recognised, recognise
from library.models.save import single_file_tensors
from library.models.stable_diffusion import StableDiffusion
from library.models.topology import Shape, unet_config
from networks.lora import create_network

Shapes = dict[str, Shape]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPENCLIP = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
CONTEXT = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def shapes_of(tensors: dict[str, torch.Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def without(shapes: Shapes, *prefixes: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


def below(shapes: Shapes, prefix: str) -> Shapes:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def sd1(models_in_memory: dict[str, StableDiffusion]) -> Shapes:
    return shapes_of(single_file_tensors(models_in_memory["sd1"]))


@pytest.fixture(scope="module")
def sd2(models_in_memory: dict[str, StableDiffusion]) -> Shapes:
    return shapes_of(single_file_tensors(models_in_memory["sd2"]))


# --- models, whole and in part ----------------------------------------------------------------------------------------


def test_full_models_are_told_from_their_text_encoder(sd1: Shapes, sd2: Shapes) -> None:
    assert recognise(sd1) == Recognised(kinds.MODEL, "sd1", "a full Stable Diffusion 1.x model")
    assert recognise(sd2) == Recognised(kinds.MODEL, "sd2", "a full Stable Diffusion 2.x model")


def test_leftovers_of_training_change_nothing(sd1: Shapes) -> None:
    extras: Shapes = {
        "betas": (1000,),
        "alphas_cumprod": (1000,),
        "model_ema.decay": (),
        "model_ema.diffusion_modelout2bias": (4,),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
        "first_stage_model.loss.logvar": (),
        "v_pred": (),
    }
    assert recognise({**extras, **sd1}).kind == kinds.MODEL


def test_the_order_of_the_tensors_does_not_matter(sd2: Shapes) -> None:
    shuffled = list(sd2.items())
    random.Random(0).shuffle(shuffled)
    assert recognise(dict(shuffled)) == recognise(sd2)


@pytest.mark.parametrize(
    ("channels", "kind", "words"),
    (
        (9, kinds.INPAINTING, "inpainting model"),
        (5, kinds.SPECIAL, "depth model"),
        (8, kinds.SPECIAL, "edits pictures"),
        (7, kinds.SPECIAL, "upscaler"),
        (6, kinds.SPECIAL, "purpose of its own"),
    ),
)
def test_models_whose_unet_takes_more_than_latents(sd1: Shapes, channels: int, kind: str, words: str) -> None:
    found = recognise({**sd1, FIRST_CONVOLUTION: (32, channels, 3, 3)})
    assert (found.kind, found.family) == (kind, "sd1")
    assert words in found.detail and f"takes {channels} channels instead of 4" in found.detail


def test_models_that_want_an_image_embedding_are_special(sd2: Shapes) -> None:
    found = recognise({**sd2, f"{UNET}label_emb.0.0.weight": (128, 32)})
    assert (found.kind, found.family) == (kinds.SPECIAL, "sd2")
    assert "unCLIP" in found.detail


def test_parts_that_are_missing_are_named(sd1: Shapes, sd2: Shapes) -> None:
    assert recognise(without(sd1, CLIP)) == Recognised(kinds.PARTIAL, "sd1", "no text encoder")
    assert recognise(without(sd2, OPENCLIP)) == Recognised(kinds.PARTIAL, "sd2", "no text encoder")
    assert recognise(without(sd1, UNET)) == Recognised(kinds.PARTIAL, "sd1", f"no U-Net ({UNET}*)")
    assert recognise(without(sd2, VAE)) == Recognised(kinds.PARTIAL, "sd2", f"no VAE ({VAE}*)")
    averages: Shapes = {"model_ema.decay": (), "model_ema.diffusion_modelout2bias": (4,)}
    assert recognise(averages).kind == kinds.PARTIAL
    assert "model_ema" in recognise(averages).detail


@pytest.mark.parametrize(
    ("part", "prefix", "kind"),
    (("unet", UNET, kinds.UNET), ("vae", VAE, kinds.VAE), ("text_encoder", CLIP, kinds.TEXT_ENCODER)),
)
def test_one_network_alone(sd1: Shapes, model_files: Path, part: str, prefix: str, kind: str) -> None:
    """With the single file's prefix, with its names only, and out of a Diffusers folder."""
    prefixed = {name: shape for name, shape in sd1.items() if name.startswith(prefix)}
    (weights,) = (model_files / "sd1" / part).glob("*.safetensors")
    # a bare text encoder tells its family by its width, which is of toy size here
    families = {"unet": ("sd1", "sd1"), "vae": (None, None), "text_encoder": ("sd1", None)}[part]
    assert (recognise(prefixed).kind, recognise(prefixed).family) == (kind, families[0])
    for names in (below(sd1, prefix), dict(open_weights(weights).shapes)):
        assert (recognise(names).kind, recognise(names).family) == (kind, families[1])


def test_the_family_of_a_network_alone(model_files: Path) -> None:
    (weights,) = (model_files / "sd2" / "unet").glob("*.safetensors")
    assert recognise(open_weights(weights).shapes).family == "sd2"
    for width, family in ((768, "sd1"), (1024, "sd2")):
        embeddings: Shapes = {"text_model.embeddings.token_embedding.weight": (49408, width)}
        assert recognise(embeddings) == Recognised(
            kinds.TEXT_ENCODER, family, f"a text encoder alone (Stable Diffusion {family[-1]}.x)"
        )


def test_a_flat_text_encoder_is_recognised(models_in_memory: dict[str, StableDiffusion]) -> None:
    assert recognise(shapes_of(models_in_memory["sd1"].text_encoder.state_dict())).kind == kinds.TEXT_ENCODER
    assert recognise({"transformer.resblocks.0.ln_1.weight": (1024,)}).kind == kinds.TEXT_ENCODER


def test_a_vae_with_other_latents_is_said_to_be_one(sd1: Shapes) -> None:
    found = recognise({**below(sd1, VAE), "decoder.conv_in.weight": (512, 16, 3, 3)})
    assert found == Recognised(kinds.VAE, None, "a VAE alone, with 16 latent channels")


@pytest.mark.parametrize(
    "shapes",
    (
        {"conditioner.embedders.0.transformer.text_model.x": (1,), f"{UNET}out.2.bias": (4,), f"{VAE}x": (1,)},
        {f"{UNET}{CONTEXT}": (320, 2048), f"{UNET}out.2.bias": (4,)},
        {f"{UNET}{CONTEXT}": (320, 1280), f"{UNET}out.2.bias": (4,), f"{VAE}encoder.conv_in.weight": (128, 3, 3, 3)},
        {"down_blocks.0.resnets.0.conv1.bias": (8,), "up_blocks.0.resnets.0.conv1.bias": (8,), "add_embedding.x": (1,)},
    ),
    ids=("full", "U-Net", "refiner without its encoder", "Diffusers"),
)
def test_sdxl(shapes: Shapes) -> None:
    assert (recognise(shapes).kind, recognise(shapes).family) == (kinds.SDXL, "sdxl")


@pytest.mark.parametrize(
    "name",
    (
        "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_transformer_blocks.3.attn.to_q.weight",
    ),
)
def test_newer_architectures(sd1: Shapes, name: str) -> None:
    assert recognise({**below(sd1, "cond_stage_model."), name: (3, 3)}).kind == kinds.SD3_OR_FLUX


def test_a_controlnet_is_no_model_though_its_file_may_hold_one(sd1: Shapes) -> None:
    copied = {f"control_model.{name}": shape for name, shape in below(sd1, UNET).items()}
    assert recognise({**sd1, **copied}).kind == kinds.CONTROLNET
    config = unet_config("sd1", (32, 32, 32, 32), 32)
    unused = ("sample_size", "out_channels", "up_block_types")
    with torch.device("meta"):
        net = ControlNetModel(**{key: value for key, value in config.items() if key not in unused})
    assert recognise(shapes_of(net.state_dict())).kind == kinds.CONTROLNET


# --- files beside a model ---------------------------------------------------------------------------------------------


def test_our_own_lora(models_in_memory: dict[str, StableDiffusion]) -> None:
    models = models_in_memory["sd2"]
    network: nn.Module = create_network(1.0, 4, 1.0, models.vae, models.text_encoder, models.unet)
    network.apply_to(models.text_encoder, models.unet, True, True)
    assert recognise(shapes_of(network.state_dict())).kind == kinds.LORA


ATTENTION = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("names", "family", "detail"),
    (
        ({f"lora_unet_{ATTENTION}.lora_down.weight": (4, 768)}, "sd1", "a LoRA"),
        ({f"lora_unet_{ATTENTION}.lora_down.weight": (4, 1024)}, "sd2", "a LoRA"),
        ({f"lora_unet_{ATTENTION}.lora_down.weight": (4, 2048)}, "sdxl", "a LoRA"),
        ({"lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": ()}, "sdxl", "a LoRA"),
        ({f"lora_unet_{ATTENTION}.alpha": (), "lora_te_text_model_x.hada_w1_a": (4, 4)}, None, "a LoRA (LyCORIS LoHa)"),
        ({f"lora_unet_{ATTENTION}.lokr_w1": (4, 4)}, None, "a LoRA (LyCORIS LoKr)"),
        ({"unet.down_blocks.0.attentions.0.attn2.to_k.lora_A.weight": (4, 768)}, "sd1", "a LoRA"),
        (
            {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight": (8, 4)},
            None,
            "a LoRA",
        ),
        ({"unet.mid_block.attentions.0.processor.to_q_lora.down.weight": (4, 1280)}, None, "a LoRA"),
        ({"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": (1280, 4)}, None, "a LoRA"),
        ({"base_model.model.mid_block.attentions.0.to_q.lora_B.default.weight": (1280, 4)}, None, "a LoRA"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, None, "a LoRA"),
    ),
)
def test_loras_of_the_field(names: Shapes, family: str | None, detail: str) -> None:
    assert recognise(names) == Recognised(kinds.LORA, family, detail)


XTI_LAYERS = [*(f"IN{layer:02}" for layer in (1, 2, 4, 5, 7, 8)), "MID", *(f"OUT{layer:02}" for layer in range(3, 12))]


@pytest.mark.parametrize(
    ("names", "family"),
    (
        ({"emb_params": (2, 768)}, "sd1"),
        ({"emb_params": (1, 32)}, None),
        ({"string_to_token.*": (), "string_to_param.*": (1, 1024)}, "sd2"),
        ({"<cat-toy>": (768,)}, "sd1"),
        ({"<cat-toy>": (3, 1024), "<other>": (3, 1024)}, "sd2"),
        ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "sdxl"),
        ({layer: (2, 768) for layer in XTI_LAYERS}, "sd1"),
    ),
)
def test_embeddings(names: Shapes, family: str | None) -> None:
    assert (recognise(names).kind, recognise(names).family) == (kinds.EMBEDDING, family)


def test_extended_embeddings_are_called_so() -> None:
    assert "Extended" in recognise({layer: (2, 768) for layer in XTI_LAYERS}).detail


@pytest.mark.parametrize("layer", ("linear.0", "linear1"))
@pytest.mark.parametrize(("width", "family"), ((768, "sd1"), (1024, "sd2"), (320, None)))
def test_hypernetworks_of_the_web_ui(tmp_path: Path, layer: str, width: int, family: str | None) -> None:
    state = {f"{layer}.weight": torch.zeros(8, 4), f"{layer}.bias": torch.zeros(8)}
    content = {width: (state, state), "step": 5, "name": "n", "layer_structure": [1, 2, 1], "sd_checkpoint": None}
    torch.save(content, tmp_path / "a.pt")
    assert recognise(open_weights(tmp_path / "a.pt").shapes) == Recognised(kinds.HYPERNETWORK, family, "a hypernetwork")


def test_the_state_of_an_optimizer(tmp_path: Path) -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    assert recognise(open_weights(tmp_path / "optimizer.bin").shapes).kind == kinds.OPTIMIZER_STATE


def test_what_is_not_known_shows_its_names() -> None:
    found = recognise({"fc.weight": (10, 20), "fc.bias": (10,), "norm.weight": (3,), "last": (1,)})
    assert found == Recognised(kinds.UNKNOWN, None, "nothing known; its first tensors: fc.weight, fc.bias, norm.weight")
    assert recognise({}).detail.endswith("none at all")
    assert recognise({"a\x1b[2J\n": (1,), "b" * 999: (1,)}).detail.endswith(f"first tensors: a?[2J?, {'b' * 100}…")
    # one matrix of another width than any text encoder has
    assert recognise({"weight": (10, 20)}).kind == kinds.UNKNOWN


def test_odd_shapes_never_raise(sd1: Shapes, sd2: Shapes) -> None:
    loras: Shapes = {f"lora_unet_{ATTENTION}.lora_down.weight": (4, 768), "emb_params": (1, 768)}
    for shapes in (sd1, sd2, below(sd1, UNET), below(sd1, VAE), below(sd1, CLIP), loras, {"emb_params": ()}):
        for odd in ((), (0,), (1,), (1, 2, 3, 4, 5)):
            assert recognise({name: odd for name in shapes}).kind in KINDS
