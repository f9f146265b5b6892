"""How pictures were prepared, as one text in each entry of a metadata file, beside `train_resolution`:
`resolution=512,512 … flip_aug=false vae_precision=float`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from library.core.sizes import Size
from library.options.base import OptionGroup, convert, info_of, option_fields, text_to_value, value_type
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.preparation import LatentPreparationOptions

PREPARED = "sd_atelier_prepared"  # the field of an entry
VAE_PRECISION_OF: Mapping[str, str] = MappingProxyType({"no": "float", "fp16": "fp16", "bf16": "bf16"})
GROUP_OF: Mapping[str, type[OptionGroup]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("resolution", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps", "bucket_no_upscale"), DataOptions
        ),
        **dict.fromkeys(("flip_aug", "alpha_mask"), DataOptions),
        "vae_precision": CachingOptions,
    }
)  # the options in the text
ALWAYS: Mapping[str, Any] = MappingProxyType({"enable_bucket": True})
ALWAYS_SO_ENCODED: Mapping[str, Any] = MappingProxyType({"vae_batch_size": 1, "cache_latent_distribution": False})
MAY_GO_WITHOUT = ("flip_aug", "alpha_mask")  # what is stored beside the plain latents can stay unused

Values = Mapping[str, Any]


def describe_preparation(options: LatentPreparationOptions) -> str:
    """The text of the field `PREPARED` for pictures that were prepared with these options."""
    values = {
        **{name: getattr(options, name) for name in GROUP_OF if hasattr(options, name)},
        "resolution": options.max_resolution,
        "vae_precision": VAE_PRECISION_OF[options.mixed_precision],
    }
    return " ".join(f"{name}={_as_text(values[name])}" for name in GROUP_OF)


def read_way(text: str) -> Values:
    """The options in the text of the field.

    Raises:
        ValueError: it is not what `describe_preparation` writes.
    """
    values: dict[str, Any] = {}
    for word in text.split():
        name, _, raw = word.partition("=")
        if name not in GROUP_OF or name in values:
            raise ValueError(f"{word} has no place there")
        group = GROUP_OF[name]
        kind = value_type(group, name)
        values[name] = convert(text_to_value(raw, kind), kind)
        info = next(info_of(item) for item in option_fields(group) if item.name == name)
        complaint = info.check(values[name]) if info.check else None
        if complaint or (info.choices and values[name] not in info.choices):
            raise ValueError(complaint or f"{word} is not available")
    if missing := [name for name in GROUP_OF if name not in values]:
        raise ValueError(f"{', '.join(missing)} stand nowhere")
    return values


def as_flag(name: str, value: Any) -> str:
    """An option as it is given on the command line."""
    if value is True:
        return f"--{name}"
    return f"--{name} {_as_text(value)}"


def _as_text(value: Any) -> str:
    if isinstance(value, Size):
        return f"{value.width},{value.height}"
    return str(value).lower() if isinstance(value, bool) else str(value)
