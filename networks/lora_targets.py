"""Which layers a LoRA extends, what their modules are called, and which block of the U-Net they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from networks.lora_arguments import BLOCKS, SIDE_BLOCKS, Grid, LoraArguments
from networks.lora_modules import Shape, Target, is_plain_convolution

UNET_PREFIX, TEXT_ENCODER_PREFIX = "lora_unet", "lora_te"
UNET_TARGETS = ("Transformer2DModel",)
UNET_CONVOLUTION_TARGETS = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
TEXT_ENCODER_TARGETS = ("CLIPAttention", "CLIPMLP")
# Public files name the layers of the CLIP text model below `text_model`; in transformers 5 the model is flat.
TEXT_MODEL_ROOT = "text_model"
_SIDE = re.compile(rf"{UNET_PREFIX}_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_")
_LAYERS_PER_BLOCK = 3  # of one resolution, a change of size included
# By number: IN00 is the first convolution; IN03, IN06 and IN09 are nothing but a change of size.
_RESIDUAL_BLOCKS = tuple(block for block in range(1, len(BLOCKS)) if block not in (3, 6, 9))
_ATTENTION_BLOCKS = tuple(block for block in _RESIDUAL_BLOCKS if block < 9 or block == 12 or block > 15)


def unet_targets(unet: nn.Module | None, with_convolutions: bool = False) -> dict[str, nn.Module]:
    """Linear layers and 1x1 convolutions of the U-Net's transformers by module name; with convolutions also those of
    residual blocks (the projection of the time embedding among them) and of changes of size."""
    classes = UNET_TARGETS + (UNET_CONVOLUTION_TARGETS if with_convolutions else ())
    return {name: layer for name, layer in _named_layers(unet, UNET_PREFIX, classes) if _is_wanted(layer, classes)}


def text_encoder_targets(text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    """Linear layers of the text encoder's attention and MLP, by module name."""
    found = _named_layers(text_encoder, TEXT_ENCODER_PREFIX, TEXT_ENCODER_TARGETS)
    return {name: layer for name, layer in found if isinstance(layer, nn.Linear)}


def all_layers(model: nn.Module | None, prefix: str) -> dict[str, nn.Module]:
    """Every layer of a model that a LoRA file may speak of, by module name. Files of other tools reach further than
    ours: to the first and the last convolution, and to the time embedding."""
    found = _named_layers(model, prefix, None)
    return {name: layer for name, layer in found if isinstance(layer, nn.Linear) or is_plain_convolution(layer)}


def planned_text_encoder(text_encoder: nn.Module | None, arguments: LoraArguments) -> dict[str, Target]:
    """The layers of the text encoder that are extended, with the shapes of their modules."""
    shape = _shape(arguments.rank, arguments.alpha)
    return {name: Target(layer, shape) for name, layer in text_encoder_targets(text_encoder).items()}


def planned_unet(unet: nn.Module | None, arguments: LoraArguments) -> dict[str, Target]:
    """The layers of the U-Net that are extended, with the shapes of their modules."""
    layers = unet_targets(unet, with_convolutions=arguments.convolutions is not None)
    planned = {name: (layer, unet_shape(name, is_wide(layer), arguments)) for name, layer in layers.items()}
    return {name: Target(layer, shape) for name, (layer, shape) in planned.items() if shape is not None}


def unet_shape(name: str, wide: bool, arguments: LoraArguments) -> Shape | None:
    """The shape of one module of the U-Net, None where it gets none.

    Args:
        name: of the module.
        wide: whether its layer is a convolution with a kernel beyond 1x1.
    """
    grid = arguments.convolutions if wide else arguments.linear
    if grid is None or block_weight(name, arguments.weights) == 0:
        return None
    return _at(grid, block_of(name))


def trained_blocks(arguments: LoraArguments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Blocks of the U-Net in which a new network has modules: of linear layers and 1x1 convolutions, and of 3x3
    convolutions."""
    convolutions, weights = arguments.convolutions, arguments.weights
    places = _ATTENTION_BLOCKS if convolutions is None else _RESIDUAL_BLOCKS

    def of(grid: Grid | None, blocks: Sequence[int]) -> tuple[int, ...]:
        wanted = [block for block in blocks if weights is None or weights[block] > 0]
        return () if grid is None else tuple(block for block in wanted if grid.ranks[block] > 0)

    return of(arguments.linear, places), of(convolutions, range(1, len(BLOCKS)))


def block_weight(name: str, weights: Sequence[float] | None) -> float:
    """The factor of the rate of one module; 1 for those that stand in no block."""
    block = block_of(name)
    return 1.0 if weights is None or block is None else weights[block]


def block_of(name: str) -> int | None:
    """The block of the U-Net, as an index into `BLOCKS`, that a module stands in; None for the last convolution, the
    time embedding and the text encoder.

    The count is that of the original U-Net: a residual block and its transformer share a number, a downsampler has one
    of its own, an upsampler that of the layer before it.
    """
    if name.startswith(f"{UNET_PREFIX}_mid_block_"):
        return SIDE_BLOCKS
    if name == f"{UNET_PREFIX}_conv_in":
        return 0
    found = _SIDE.match(name)
    if found is None:
        return None
    side, outer, kind, inner = found.groups()
    within = _LAYERS_PER_BLOCK - 1 if kind.endswith("samplers") else int(inner)
    index = _LAYERS_PER_BLOCK * int(outer) + within + (1 if side == "down" else SIDE_BLOCKS + 1)
    return index if index < len(BLOCKS) else None


def is_wide(layer: nn.Module) -> bool:
    """Whether a layer is a convolution with a kernel beyond 1x1."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)


def _at(grid: Grid, block: int | None) -> Shape | None:
    if block is None or grid.ranks[block] == 0:
        return None
    return _shape(grid.ranks[block], grid.alphas[block])


def _shape(rank: int, alpha: float) -> Shape:
    return Shape(rank, alpha or float(rank))


def _is_wanted(layer: nn.Module, classes: Sequence[str]) -> bool:
    return isinstance(layer, nn.Linear) or (
        is_plain_convolution(layer) and (not is_wide(layer) or UNET_CONVOLUTION_TARGETS[0] in classes)
    )


def _named_layers(
    model: nn.Module | None, prefix: str, class_names: Sequence[str] | None
) -> Iterator[tuple[str, nn.Module]]:
    """The modules inside those of some classes (None: of all), by the names of our format."""
    root = TEXT_MODEL_ROOT if prefix == TEXT_ENCODER_PREFIX else ""
    for path, part in model.named_modules() if model is not None else ():
        if class_names is None:
            yield _name(prefix, root, path), part
        elif type(part).__name__ in class_names:
            for inner, layer in part.named_modules():
                yield _name(prefix, root, f"{path}.{inner}"), layer


def _name(prefix: str, root: str, path: str) -> str:
    rooted = path if not root or path.split(".")[0] == root else f"{root}.{path}"
    return f"{prefix}.{rooted}".replace(".", "_")
