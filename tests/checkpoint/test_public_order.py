"""The public tool's order of weights, against modules whose parts stand as its own do."""

from __future__ import annotations

import random

import pytest
from torch import nn

from library.checkpoint.public_order import in_public_order
from library.models.tiny import make_tiny_model

# BasicTransformerBlock of sd-scripts, library/original_unet.py, as it registers its parts
BLOCK = ("attn1", "ff", "attn2", "norm1", "norm2", "norm3")


def as_the_tool_has_it(unet: nn.Module) -> nn.Module:
    """A Diffusers U-Net whose transformer blocks have their parts in the order of the tool."""
    for module in unet.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            parts = {name: module._modules.pop(name) for name in list(module._modules)}
            module._modules.update({name: parts.pop(name) for name in BLOCK})
            module._modules.update(parts)
    return unet


def layers_of_the_tool(root: nn.Module, prefix: str, classes: tuple[str, ...]) -> list[str]:
    """Names of the LoRA modules in the order in which sd-scripts' `create_modules` makes them."""
    found = []
    for path, module in root.named_modules():
        if type(module).__name__ in classes:
            for inner, layer in module.named_modules():
                if type(layer).__name__ in ("Linear", "LoRACompatibleLinear", "Conv2d"):
                    found.append(f"{prefix}.{path}.{inner}".replace(".", "_"))
    return [f"{name}.{part}.weight" for name in found for part in ("lora_down", "lora_up")]


def shuffled(names: list[str]) -> list[str]:
    return random.Random(7).sample(names, len(names))


@pytest.mark.parametrize("family", ["sd1", "sd2_v"])
def test_the_order_is_that_of_the_tools_modules(family: str) -> None:
    model = make_tiny_model(family, seed=0)
    ours = [name for name, _ in model.unet.named_parameters()]
    names = [name for name, _ in as_the_tool_has_it(model.unet).named_parameters()]
    assert ours != names and in_public_order(shuffled(names)) == names
    texts = [name for name, _ in model.text_encoder.named_parameters()]
    assert in_public_order(shuffled(texts)) == texts

    classes = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    for wanted in (classes[:1], classes):
        layers = layers_of_the_tool(model.unet, "lora_unet", wanted)
        assert len(layers) > 100 and in_public_order(shuffled(layers)) == layers
    layers = layers_of_the_tool(model.text_encoder, "lora_te_text_model", ("CLIPAttention", "CLIPMLP"))
    assert len(layers) > 10 and in_public_order(shuffled(layers)) == layers


def test_of_names_that_are_not_known_nothing_is_said() -> None:
    assert in_public_order(["conv_in.weight", "conv_in.weird"]) is None
