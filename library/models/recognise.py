"""What a file of tensors holds, told from names and shapes alone.

The names are those that the field's tools publish: single files of the original Latent Diffusion code, Diffusers and
Transformers folders, LoRA files of sd-scripts, LyCORIS and PEFT, embeddings and hypernetworks of the Web UI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from library.core.pickled import shown
from library.models.convert import text_encoder, unet, vae
from library.models.topology import LATENT_CHANNELS, Shape

MODEL = "model"
INPAINTING = "inpainting"
SPECIAL = "special"
SDXL = "sdxl"
SD3_OR_FLUX = "sd3_or_flux"
LORA = "lora"
EMBEDDING = "embedding"
HYPERNETWORK = "hypernetwork"
VAE = "vae"
UNET = "unet"
TEXT_ENCODER = "text_encoder"
CONTROLNET = "controlnet"
PARTIAL = "partial"
OPTIMIZER_STATE = "optimizer_state"
UNKNOWN = "unknown"
KINDS = (
    MODEL, INPAINTING, SPECIAL, SDXL, SD3_OR_FLUX, LORA, EMBEDDING, HYPERNETWORK, VAE, UNET, TEXT_ENCODER, CONTROLNET,
    PARTIAL, OPTIMIZER_STATE, UNKNOWN,
)  # fmt: skip

FAMILY_NAMES = MappingProxyType({"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"})
# What a U-Net with so many input channels is for; the published models have four for the latents, and more for a
# masked picture and its mask, a depth map, a picture to edit or a small picture.
_SPECIAL_UNETS: Mapping[int | None, str] = MappingProxyType(
    {9: "an inpainting model", 5: "a depth model", 8: "a model that edits pictures", 7: "an upscaler"}
)
_INPAINTING_CHANNELS = 9

# Width of the text states a family works with. SDXL's U-Net takes both its encoders' side by side: 768 + 1280.
_FAMILY_OF_WIDTH = MappingProxyType({768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"})

_EMA_PREFIX = "model_ema."
_SDXL_PREFIX = "conditioner.embedders."
_DIT_BLOCKS = re.compile(r"(^|\.)(joint_blocks|double_blocks|single_blocks|single_transformer_blocks)\.\d+\.")
_CONTROLNET = ("control_model.", "controlnet_cond_embedding.", "input_hint_block.")
_LORA_PREFIXES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lycoris_")
# those of Diffusers (".lora.up.", ".to_q_lora.up.", ".lora_linear_layer.up.") and PEFT (".lora_A.") among them
_LORA_PART = re.compile(r"[._](lora[._](A|B|up|down|mid|linear_layer)|hada_w[12]|lokr_w[12]|oft_blocks)([._]|$)")
_LYCORIS = MappingProxyType({"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT"})
_LORA_CONTEXT = re.compile(r"attn2[._]to_k[._](processor[._])?.*(lora_down|lora_A|lora[._]down)\b")
_EMBEDDING_NAMES = ("emb_params", "string_to_param", "string_to_param.*")
_SDXL_EMBEDDING = {"clip_l", "clip_g"}
_XTI = re.compile(r"(IN|OUT)\d\d|MID")
_HYPERNETWORK = re.compile(r"\d+\.[01]\.linear(\.\d+|\d)\.(weight|bias)")
_OPTIMIZER_STATE = re.compile(r"(state\.)?(state|optimizer_states\.\d+\.state)\.\d+\.")
_BARE_VAE = re.compile(r"(encoder|decoder)\.(conv_in|conv_out|down|up|down_blocks|up_blocks|mid|mid_block)\.")
_BARE_TEXT_ENCODER = re.compile(r"(text_model\.)?(encoder\.layers\.\d|embeddings\.token_)|transformer\.resblocks\.\d")
_PARTS = MappingProxyType(
    {
        "U-Net": (unet.PREFIX,),
        "VAE": (vae.PREFIX,),
        "text encoder": (text_encoder.CLIP_PREFIX, text_encoder.OPENCLIP_PREFIX),
    }
)
_ALONE = MappingProxyType({"U-Net": UNET, "VAE": VAE, "text encoder": TEXT_ENCODER})
_EXAMPLES = 3


@dataclass(frozen=True)
class Recognised:
    """What a file holds.

    Attributes:
        kind: one of `KINDS`; "model" is a full text-to-image model of SD1 or SD2.
        family: "sd1", "sd2" or "sdxl" where the tensors tell it, else None.
        detail: the same in words, to follow "this is"; of a partial model, what is missing.
    """

    kind: str
    family: str | None
    detail: str


def recognise(shapes: Mapping[str, Shape]) -> Recognised:
    """What the file whose tensors have these names and shapes is; never raises, whatever they are."""
    for rule in _RULES:
        found = rule(shapes)
        if found is not None:
            return found
    examples = ", ".join(shown(name) for name in list(shapes)[:_EXAMPLES])
    return Recognised(UNKNOWN, None, f"nothing known; its first tensors: {examples or 'none at all'}")


def _lora(shapes: Mapping[str, Shape]) -> Recognised | None:
    names = [name for name in shapes if name.startswith(_LORA_PREFIXES) or _LORA_PART.search(name)]
    if not names:
        return None
    kind = next((word for part, word in _LYCORIS.items() if any(part in name for name in names)), None)
    widths = (shape[1] for name, shape in shapes.items() if len(shape) >= 2 and _LORA_CONTEXT.search(name))
    has_two_encoders = _any_start(names, ("lora_te1_", "lora_te2_"))
    family = "sdxl" if has_two_encoders else _family_of_width(next(widths, None))
    return Recognised(LORA, family, f"a LoRA (LyCORIS {kind})" if kind else "a LoRA")


def _optimizer_state(shapes: Mapping[str, Shape]) -> Recognised | None:
    if not any(_OPTIMIZER_STATE.match(name) for name in shapes):
        return None
    return Recognised(OPTIMIZER_STATE, None, "the state of an optimizer")


def _embedding(shapes: Mapping[str, Shape]) -> Recognised | None:
    detail = "a Textual Inversion embedding"
    if shapes.keys() == _SDXL_EMBEDDING:
        return Recognised(EMBEDDING, "sdxl", f"{detail} for SDXL")
    named = [name for name in shapes if name.startswith(_EMBEDDING_NAMES)]
    layers = [name for name in shapes if _XTI.fullmatch(name)]
    if layers and len(layers) == len(shapes):
        return Recognised(EMBEDDING, _family_of_vectors(shapes, layers), "an Extended Textual Inversion embedding")
    if named:
        return Recognised(EMBEDDING, _family_of_vectors(shapes, named), detail)
    # Diffusers names the tensor after the token, so nothing but the shape tells; one vector may be 1-D there
    if 1 <= len(shapes) <= 2 and all(len(shape) in (1, 2) and _family_of_width(shape[-1]) for shape in shapes.values()):
        return Recognised(EMBEDDING, _family_of_vectors(shapes, list(shapes)), detail)
    return None


def _hypernetwork(shapes: Mapping[str, Shape]) -> Recognised | None:
    widths = {name.split(".")[0] for name in shapes if _HYPERNETWORK.fullmatch(name)}
    if not widths:
        return None
    # its other widths are those of the U-Net's own layers, the same in both families
    families = (_FAMILY_OF_WIDTH[width] for width in (768, 1024) if str(width) in widths)
    return Recognised(HYPERNETWORK, next(families, None), "a hypernetwork")


def _newer_architecture(shapes: Mapping[str, Shape]) -> Recognised | None:
    if not any(_DIT_BLOCKS.search(name) for name in shapes):
        return None
    return Recognised(SD3_OR_FLUX, None, "a model of the Stable Diffusion 3 or Flux kind")


def _controlnet(shapes: Mapping[str, Shape]) -> Recognised | None:
    if not _any_start(shapes, _CONTROLNET):
        return None
    return Recognised(CONTROLNET, None, "a ControlNet")


def _single_file(shapes: Mapping[str, Shape]) -> Recognised | None:
    """A checkpoint of the original layout: whole, part of one, or of another kind of model."""
    if _any_start(shapes, (_SDXL_PREFIX,)):
        return Recognised(SDXL, "sdxl", "an SDXL model")
    there = [part for part, prefixes in _PARTS.items() if _any_start(shapes, prefixes)]
    if not there:
        if _any_start(shapes, (_EMA_PREFIX,)):
            return Recognised(PARTIAL, None, "only the moving average of the weights (model_ema.*), not the weights")
        return None
    unet_shapes = _below(shapes, unet.PREFIX)
    family = _family_of_text_encoder(shapes) or _family_of_unet(unet_shapes)
    if len(there) == 1 or family == "sdxl":
        return _alone(there[0], family, _below(shapes, _PARTS[there[0]][0]))
    missing = [part for part in _PARTS if part not in there]
    if missing:
        pattern = f" ({_PARTS[missing[0]][0]}*)" if missing[0] != "text encoder" else ""
        return Recognised(PARTIAL, family, f"no {missing[0]}{pattern}")
    channels = _size(unet_shapes, "input_blocks.0.0.weight", 1)
    if channels not in (None, LATENT_CHANNELS):
        return special_unet(channels, family)
    if _any_start(unet_shapes, ("label_emb.",)):
        return Recognised(SPECIAL, family, "a model that makes variations of a picture (unCLIP)")
    return Recognised(MODEL, family, f"a full {FAMILY_NAMES[family or 'sd1']} model")


def special_unet(channels: int | None, family: str | None) -> Recognised:
    """A model whose U-Net takes another number of channels than the four of the latents."""
    kind = INPAINTING if channels == _INPAINTING_CHANNELS else SPECIAL
    purpose = _SPECIAL_UNETS.get(channels, "a model for a purpose of its own")
    return Recognised(kind, family, f"{purpose}: its U-Net takes {channels} channels instead of {LATENT_CHANNELS}")


def _network_alone(shapes: Mapping[str, Shape]) -> Recognised | None:
    """One network under its own names, as in the weights files of a Diffusers folder or in a VAE file."""
    if _any_start(shapes, ("down_blocks.", "input_blocks.")) and _any_start(shapes, ("up_blocks.", "output_blocks.")):
        return _alone("U-Net", _family_of_unet(shapes), shapes)
    if any(_BARE_VAE.match(name) for name in shapes):
        return _alone("VAE", None, shapes)
    if any(_BARE_TEXT_ENCODER.match(name) for name in shapes):
        return _alone("text encoder", _family_of_text_encoder(shapes), shapes)
    return None


def _alone(part: str, family: str | None, shapes: Mapping[str, Shape]) -> Recognised:
    """One part of a model; the VAEs of the families have one layout, so a VAE has no family."""
    words = f"a {part} alone"
    if part == "VAE":
        channels = _size(shapes, "decoder.conv_in.weight", 1)
        known = channels in (None, LATENT_CHANNELS)
        return Recognised(VAE, None, words if known else f"{words}, with {channels} latent channels")
    if part == "U-Net" and family == "sdxl":
        return Recognised(SDXL, family, "the U-Net of an SDXL model")
    return Recognised(_ALONE[part], family, f"{words} ({FAMILY_NAMES[family]})" if family else words)


# The order decides: what may hold a whole model inside (a ControlNet) or carry its names (a LoRA) comes before models.
_RULES: tuple[Callable[[Mapping[str, Shape]], Recognised | None], ...] = (
    _lora,
    _optimizer_state,
    _hypernetwork,
    _newer_architecture,
    _controlnet,
    _single_file,
    _network_alone,
    _embedding,
)


# --- facts from shapes ------------------------------------------------------------------------------------------------


def _family_of_width(width: int | None) -> str | None:
    return _FAMILY_OF_WIDTH.get(width) if width is not None else None


def _family_of_vectors(shapes: Mapping[str, Shape], names: Iterable[str]) -> str | None:
    return next((_family_of_width(shapes[name][-1]) for name in names if shapes[name]), None)


def _family_of_text_encoder(shapes: Mapping[str, Shape]) -> str | None:
    """By the names each family's single files have, else by the width of the token embedding."""
    if _any_start(shapes, (text_encoder.OPENCLIP_PREFIX,)):
        return "sd2"
    if _any_start(shapes, (text_encoder.CLIP_PREFIX,)):
        return "sd1"
    embeddings = (shape for name, shape in shapes.items() if name.endswith("token_embedding.weight"))
    shape = next(embeddings, ())
    return _family_of_width(shape[-1]) if shape else None


def _family_of_unet(shapes: Mapping[str, Shape]) -> str | None:
    """By the width of the text states, and at other widths by the form of the attention's entrance.

    Args:
        shapes: under the U-Net's own names, of either layout, without prefix.
    """
    if _any_start(shapes, ("add_embedding.",)):  # size and style embedding, which only SDXL has, as Diffusers names it
        return "sdxl"
    contexts = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and shape)
    known = _family_of_width(next(contexts, (0,))[-1])
    if known is not None:
        return known
    entrances = (shape for name, shape in shapes.items() if name.endswith(".proj_in.weight"))
    return {2: "sd2", 4: "sd1"}.get(len(next(entrances, ())))


def _size(shapes: Mapping[str, Shape], name: str, axis: int) -> int | None:
    """The size of a convolution's kernel along `axis`; None where it is not there."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) == 4 else None


def _any_start(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return any(name.startswith(prefixes) for name in names)


def _below(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
    """The tensors under the prefix, without it."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
