"""Whether a network has the layout of its family, which key maps, single files and samplers take for granted.

Diffusers folders describe their networks freely: another number of layers or heads, another activation or latent scale
loads without complaint, and then trains wrongly or cannot be written in the forms that others read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from library.core.errors import UserError
from library.models.topology import FAMILIES

# settings that change no number, or only how exactly one is computed
_FREE = frozenset(
    {
        *("sample_size", "upcast_attention", "force_upcast", "latents_mean", "latents_std"),
        *("architectures", "projection_dim", "bos_token_id", "eos_token_id", "pad_token_id"),
    }
)


def check_layout(found: Mapping[str, Any], published: Mapping[str, Any], where: str) -> None:
    """Compares the configuration of a network with the one that its family's networks of these widths have.

    Args:
        found, published: with every setting that counts; what `published` does not name is not compared.
        where: for the message.

    Raises:
        UserError: they differ; the settings are named.
    """
    differing = [
        f"{key} is {found.get(key)!r} instead of {value!r}"
        for key, value in published.items()
        if not key.startswith("_") and key not in _FREE and _plain(found.get(key)) != _plain(value)
    ]
    if differing:
        what = f"its layout is not that of Stable Diffusion 1.x or 2.x: {'; '.join(differing[:3])}"
        raise UserError.of(what, where, "give a model of the published layout")


def check_text_layers(family: str, layers: int, where: str) -> None:
    """Raises UserError when a text encoder has another number of layers than the family uses."""
    used = FAMILIES[family].text_layers
    if layers != used:
        what = f"its text encoder has {layers} layers instead of the {used} that are used"
        raise UserError.of(what, where, "give a complete model of the published layout")


def _plain(value: Any) -> Any:
    """Lists of one repeated number are written as that number, too."""
    if isinstance(value, list | tuple):
        values = [_plain(item) for item in value]
        return values[0] if values and all(item == values[0] for item in values) else values
    return value
