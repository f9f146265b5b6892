"""What the Web UI calls the samplers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from library.options.samples import DDIM, SAMPLERS

# where it has none, what this one would be called there
_SHOWN: Mapping[str, str] = MappingProxyType(
    {
        DDIM: "DDIM",
        "pndm": "PLMS",
        "heun": "Heun",
        "dpmsolver": "DPM 2M",
        "dpmsolver++": "DPM++ 2M",
        "dpmsingle": "DPM++ 2S",
        **dict.fromkeys(("lms", "k_lms"), "LMS"),
        **dict.fromkeys(("euler", "k_euler"), "Euler"),
        **dict.fromkeys(("euler_a", "k_euler_a"), "Euler a"),
        **dict.fromkeys(("dpm_2", "k_dpm_2"), "DPM2"),
        **dict.fromkeys(("dpm_2_a", "k_dpm_2_a"), "DPM2 a"),
        "ddpm": "DDPM",
        "unipc": "UniPC",
        "deis": "DEIS",
    }
)
# in the order of _SHOWN, backwards: the plain name wins over the one with k_
_NAMES = {
    **{shown.lower(): name for name, shown in reversed(list(_SHOWN.items()))},
    **{name: name for name in SAMPLERS},
}


def shown_name(name: str) -> str:
    """What a sampler is called there.

    Args:
        name: one of `SAMPLERS`, in any case.
    """
    return _SHOWN[name.lower()]


def sampler_named(name: str) -> str | None:
    """The one of `SAMPLERS` that is meant by its own name or by that of the Web UI, in any case; None where none is."""
    return _NAMES.get(" ".join(name.lower().split()))


def all_names() -> list[str]:
    """Every name that is understood, in lower case."""
    return list(_NAMES)
