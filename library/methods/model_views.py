"""The models under the names that network modules of others expect.

Such modules find layers by class and name them by path. Two facts of today's libraries would give wrong names: the CLIP
text model of transformers 5 lies at the top, where files of this field say `text_model`; and LyCORIS lists the two
layers of the time embedding by their names and by their container's class, which makes every name twice. A view is a
module with the same layers at other paths: what is attached to a layer acts in the model itself.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

TEXT_MODEL_ROOT = "text_model"
_TIME_EMBEDDING = "time_embedding"


class TextEncoderView(nn.Module):
    """A text encoder whose layers lie below `text_model`. Whatever else is asked of it, the text encoder answers."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.add_module(TEXT_MODEL_ROOT, text_encoder)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._modules[TEXT_MODEL_ROOT](*args, **kwargs)  # type: ignore[misc]  # there since __init__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(TEXT_MODEL_ROOT), name)


class Anonymous(nn.Module):
    """Has the layers of another module, computes what it computes, and is of no class that anybody looks for."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, child)
        self._module = (module,)  # in a tuple, so that its layers are here once

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._module[0](*args, **kwargs)


def text_encoder_view(text_encoder: nn.Module) -> nn.Module:
    """The text encoder with its layers below `text_model`, where they are not already."""
    if TEXT_MODEL_ROOT in dict(text_encoder.named_children()):
        return text_encoder
    return TextEncoderView(text_encoder)


def unet_view(unet: nn.Module) -> nn.Module:
    """A U-Net of the same class and with the same layers, whose time embedding is found by names alone."""
    view = copy.copy(unet)
    children = dict(unet.named_children())
    if _TIME_EMBEDDING in children:
        view._modules = {**unet._modules, _TIME_EMBEDDING: Anonymous(children[_TIME_EMBEDDING])}
    return view
