"""Colours to sRGB: whatever a picture stores becomes 8-bit RGB and, where it has transparency, its alpha."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# Relative colorimetric keeps what both spaces can show as it is; black point compensation keeps the shadows of print.
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_EXACT = _FLAGS | ImageCms.Flags.NOOPTIMIZE  # slow, but without it dark greys are wrong by up to 10 of 255
_SAME_COLOUR = 3  # of 255; sRGB profiles of different makers differ by this much in rounding
_PROFILES_KEPT = 16  # a profile for print takes up to some MiB
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile: the mode it applies to

BROKEN_PROFILE = "its colour profile is broken and ignored"
UNFIT_PROFILE = "its colour profile is for another kind of picture and ignored"
NO_CMYK_PROFILE = "it is CMYK without a usable colour profile, so its colours are approximate"


@dataclass(frozen=True)
class _Conversion:
    """What a profile does to pixels of `mode`, L, RGB or CMYK: to RGB; None: its colours are those of sRGB already."""

    mode: str
    convert: Callable[[Image.Image], Image.Image] | None


def has_alpha(image: Image.Image) -> bool:
    """Whether the picture can be transparent in parts: it has an alpha channel, or a colour that stands for none."""
    return image.mode.endswith(("A", "a")) or "transparency" in image.info


def plain(image: Image.Image) -> Image.Image:
    """The picture as L, LA, RGB, RGBA or CMYK: palettes looked up, 16 bits made 8, transparent colours made alpha."""
    if image.mode.startswith(("I", "F")):
        return _from_many_levels(image)
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info:
        return image
    if image.mode == "LA":
        return image
    if has_alpha(image):  # asked first: Pillow drops transparency when a palette is converted without alpha
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Turns a decoded picture into sRGB.

    Returns:
        The picture in mode RGB, transparent parts on white, and its alpha in mode L (None without transparency).
    """
    image = plain(image)
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colour = image.convert("L" if image.mode == "LA" else "RGB") if alpha is not None else image
    rgb = _apply_profile(colour, image.info)
    if alpha is None:
        return rgb, None
    white = Image.new("RGB", rgb.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white, alpha


def to_grey(image: Image.Image) -> Image.Image:
    """The brightness of a decoded picture in mode L, as its numbers say, whatever its profile; transparent parts black.

    Pictures that hold measures, such as masks, have no colours to be seen: a grey of 128 must stay 128.
    """
    image = plain(image)
    if image.mode == "CMYK":
        image = image.convert("RGB")
    grey = image.convert("L")
    if image.mode not in ("LA", "RGBA"):
        return grey
    black = Image.new("L", grey.size, 0)
    black.paste(grey, mask=image.getchannel("A"))
    return black


def profile_note(image: Image.Image) -> str | None:
    """What deserves to be told of the picture's colours; cheap, the picture need not be decoded."""
    profile = image.info.get("icc_profile")
    note = None
    if "icc_profile" in image.info and profile != b"":
        conversion = _conversion(profile) if isinstance(profile, bytes) else None
        if conversion is None:
            note = BROKEN_PROFILE
        elif not _fits(conversion, image.mode):
            note = UNFIT_PROFILE
    if image.mode == "CMYK" and (note is not None or not profile):
        return NO_CMYK_PROFILE
    return note


def _from_many_levels(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, scaled (Pillow's own conversion cuts off at 255), with its transparent level as alpha."""
    levels: NDArray[Any] = np.asarray(image)
    grey = Image.fromarray(np.clip(levels.astype(np.float32) / 257.0 + 0.5, 0, 255).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    if image.info.get("icc_profile"):
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey


def _apply_profile(colour: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """L, RGB or CMYK to RGB; a profile that is broken or does not fit counts as none."""
    profile = info.get("icc_profile")
    conversion = _conversion(profile) if isinstance(profile, bytes) and profile else None
    if conversion is None or conversion.convert is None or not _fits(conversion, colour.mode):
        return colour.convert("RGB") if colour.mode != "RGB" else colour
    if colour.mode != conversion.mode:
        colour = colour.convert(conversion.mode)
    converted = conversion.convert(colour)
    converted.info.pop("icc_profile", None)
    return converted


def _fits(conversion: _Conversion, mode: str) -> bool:
    """Grey pictures are often saved with the profile of a colour screen, which then counts for them, too."""
    if conversion.mode == "CMYK" or mode == "CMYK":
        return conversion.mode == mode
    return conversion.mode == "RGB" or mode in ("1", "L", "LA") or mode.startswith("I")


@lru_cache(maxsize=_PROFILES_KEPT)
def _conversion(profile: bytes) -> _Conversion | None:
    """From the profile to sRGB, or None when it cannot be used. Transforms may be shared between threads."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[source.profile.xcolor_space.strip()]
        screen = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        flags = _EXACT if mode == "L" else _FLAGS
        apply = ImageCms.ImageCmsTransform(source, screen, mode, "RGB", _INTENT, flags=flags).apply
        convert = apply if mode != "L" else _by_table(apply)
        return _Conversion(mode, None if mode != "CMYK" and _changes_nothing(convert, mode) else convert)
    except (OSError, ValueError, TypeError, KeyError, ImageCms.PyCMSError):
        return None


def _by_table(apply: Callable[[Image.Image], Image.Image]) -> Callable[[Image.Image], Image.Image]:
    """The same for pictures of 256 greys, each of which is converted only once."""
    levels = np.asarray(apply(Image.fromarray(np.arange(256, dtype=np.uint8)[None])))[0]  # (256, 3)
    table = levels.T.flatten().tolist()
    return lambda grey: grey.convert("RGB").point(table)


def _changes_nothing(convert: Callable[[Image.Image], Image.Image], mode: str) -> bool:
    """Whether sRGB goes in: tried on colours throughout the cube, since names of profiles prove nothing."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
    before = Image.fromarray(grid if mode == "RGB" else grid[..., 0].copy())
    after = np.asarray(convert(before)).astype(int)
    return bool(np.abs(after - np.asarray(before.convert("RGB")).astype(int)).max() <= _SAME_COLOUR)
