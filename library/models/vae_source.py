"""The VAE given with `--vae`, out of whatever holds one.

That is a full checkpoint of either family (the families share one VAE), a VAE file with the names of the single-file
layout or of Diffusers, a Diffusers model or a Diffusers VAE folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.models import AutoencoderKL

from library.core.errors import UserError
from library.core.json_files import read_json_object
from library.models.convert import vae
from library.models.files.folder_weights import STEMS, weights_files
from library.models.files.weights import WeightsFile, open_weights
from library.models.load import build_checked, build_vae, config_from, fill
from library.models.parts import Part, fit, plan_part
from library.models.stable_diffusion import VAE_DOWNSCALE, VAE_SCALING_FACTOR
from library.models.topology import LATENT_CHANNELS, LAYERS_PER_BLOCK, Shape, vae_config, vae_config_of

VAE_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin", ".pth")

_CLASS = "AutoencoderKL"
_SDXL_SCALING_FACTOR = 0.13025
_LORA = re.compile(r"^lora_|\.lora_|\.lora\.")
_BLOCK = re.compile(r"^(?:encoder\.down|decoder\.up)(?:_blocks)?\.(\d+)\.")
_GIVE_VAE = "give a VAE of Stable Diffusion 1.x or 2.x: a file, a Diffusers folder, or a model that holds one"


@dataclass(frozen=True)
class VaeIdentity:
    """What is known of a VAE before it is loaded; that it can be loaded has been checked on names and shapes.

    Attributes:
        path: as it was given.
        files: where the weights lie: one file, or the shards of a folder.
        config: of the Diffusers `AutoencoderKL`.
    """

    path: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]


def identify_vae(path: Path) -> VaeIdentity:
    """Finds the VAE at `path` and checks that it fits Stable Diffusion 1.x and 2.x; reads no weight.

    Raises:
        UserError: nothing there, damaged, no VAE, incomplete, or one with other latents (SDXL, 16 channels, another
            number of pixels per cell).
    """
    if path.is_dir():
        return _identify_folder(path)
    if not path.exists():
        raise UserError.of("no such file or folder", str(path), "check the path")
    if path.suffix.lower() not in VAE_SUFFIXES:
        raise UserError.of(f"a VAE file ends in {', '.join(VAE_SUFFIXES)}", str(path), _GIVE_VAE)
    beside = path.with_name("config.json")
    if path.name.startswith(STEMS["vae"]) and beside.is_file():
        return _identify_with_config(path, (path,), read_json_object(beside))
    file = open_weights(path)
    names = _vae_shapes([file])
    _refuse_other_kinds(path, file.shapes, names, file.metadata)
    _refuse_other_latents(path, names)
    part = _plan(path, [file])
    identity = VaeIdentity(path, (path,), config_from(part, vae_config_of, "sd1"))
    build_checked(build_vae, identity.config, part)
    return identity


def load_vae(identity: VaeIdentity) -> AutoencoderKL:
    """Loads the VAE to the CPU, in evaluation mode, with nothing trainable and in the files' number format.

    Raises:
        UserError: the files are no longer what they were.
    """
    part = _plan(identity.path, [open_weights(file) for file in identity.files])
    network = build_checked(build_vae, identity.config, part)
    fill(network, fit(part.read(), network))
    network.eval().requires_grad_(False)
    return network


def _identify_folder(folder: Path) -> VaeIdentity:
    index = folder / "model_index.json"
    if index.is_file() and "XL" in str(read_json_object(index).get("_class_name")):
        raise _other_latents(folder, "this is an SDXL model, whose VAE makes other latents")
    own = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (own / "config.json").is_file():
        raise UserError.of("no VAE in the folder: neither vae/config.json nor config.json", str(folder), _GIVE_VAE)
    config = read_json_object(own / "config.json")
    _refuse_other_config(own, config)  # the kind before the files: another network's have other names
    return _identify_with_config(folder, weights_files(own, STEMS["vae"]), config)


def _identify_with_config(path: Path, files: tuple[Path, ...], config: Mapping[str, Any]) -> VaeIdentity:
    _refuse_other_config(path, config)
    opened = [open_weights(file) for file in files]
    _refuse_other_latents(path, _vae_shapes(opened))
    part = _plan(path, opened)
    network = build_checked(build_vae, config, part)
    # whoever saves the VAE in a single file needs this very layout
    published = build_vae(vae_config("sd1", tuple(network.config["block_out_channels"])))
    if published.state_dict().keys() != network.state_dict().keys():
        raise UserError.of("the VAE's layers are others than Stable Diffusion's", str(path), _GIVE_VAE)
    return VaeIdentity(path, files, config)


def _plan(path: Path, files: list[WeightsFile]) -> Part:
    in_checkpoint = any(name.startswith(vae.PREFIX) for file in files for name in file.shapes)
    return plan_part(files, vae.to_diffusers if in_checkpoint else vae.from_any, f"{path} (vae)")


def _vae_shapes(files: Iterable[WeightsFile]) -> dict[str, Shape]:
    """Shapes under the names that VAEs have in files of their own; in a checkpoint those of its VAE only."""
    shapes = {name: shape for file in files for name, shape in file.shapes.items()}
    prefixed = {name: shape for name, shape in shapes.items() if name.startswith(vae.PREFIX)}
    return {name.removeprefix(vae.PREFIX): shape for name, shape in (prefixed or shapes).items()}


def _refuse_other_kinds(
    path: Path, everything: Mapping[str, Shape], names: Mapping[str, Shape], metadata: Mapping[str, str]
) -> None:
    if any(_LORA.search(name) for name in everything):
        raise UserError.of("this is a LoRA, not a VAE", str(path), _GIVE_VAE)
    is_sdxl = any(name.startswith("conditioner.embedders.") for name in everything)
    if is_sdxl or "-xl-" in metadata.get("modelspec.architecture", ""):
        raise _other_latents(path, "this is an SDXL model, whose VAE makes other latents")
    if not any(name.startswith(("encoder.", "decoder.")) and "conv_in." in name for name in names):
        examples = ", ".join(list(everything)[:3]) or "none at all"
        raise UserError.of(f"holds no VAE; its first tensors: {examples}", str(path), _GIVE_VAE)


def _refuse_other_latents(path: Path, shapes: Mapping[str, Shape]) -> None:
    """By what the tensors tell, under names of either layout."""
    decoder_start = shapes.get("decoder.conv_in.weight", ())
    if len(decoder_start) == 4 and decoder_start[1] != LATENT_CHANNELS:
        raise _other_latents(path, f"its latents have {decoder_start[1]} channels instead of {LATENT_CHANNELS}")
    blocks = [int(found[1]) + 1 for found in map(_BLOCK.match, shapes) if found]
    if blocks:
        _refuse_other_downscale(path, max(blocks))


def _refuse_other_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise UserError.of(f"its config.json describes {kind}, not {_CLASS}", str(path), _GIVE_VAE)
    channels = config.get("latent_channels", LATENT_CHANNELS)
    if channels != LATENT_CHANNELS:
        raise _other_latents(path, f"its latents have {channels} channels instead of {LATENT_CHANNELS}")
    scale = config.get("scaling_factor", VAE_SCALING_FACTOR)
    if scale != VAE_SCALING_FACTOR:
        whose = " (that of SDXL)" if scale == _SDXL_SCALING_FACTOR else ""
        raise _other_latents(path, f"its scaling factor is {scale}{whose} instead of {VAE_SCALING_FACTOR}")
    _refuse_other_downscale(path, len(config.get("block_out_channels", ())))
    layers = config.get("layers_per_block", LAYERS_PER_BLOCK)
    if layers != LAYERS_PER_BLOCK:
        what = f"its blocks have {layers} layers instead of {LAYERS_PER_BLOCK}"
        raise UserError.of(what, str(path), _GIVE_VAE)


def _refuse_other_downscale(path: Path, blocks: int) -> None:
    """Each block but the last halves the picture."""
    downscale = 2 ** max(blocks - 1, 0)
    if downscale != VAE_DOWNSCALE:
        what = f"its latent cells are {downscale} pixels wide instead of {VAE_DOWNSCALE}"
        raise _other_latents(path, what)


def _other_latents(path: Path, what: str) -> UserError:
    return UserError.of(f"{what}: the model could not use its latents", str(path), _GIVE_VAE)
