"""Every file and folder that holds a VAE, with Diffusers' AutoencoderKL as the independent opinion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.load import build_vae, fill
from library.models.topology import vae_config
from library.models.vae_source import identify_vae, load_vae

PREFIX = "first_stage_model."
FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LEFTOVERS = {
    "loss.logvar": torch.zeros(()),
    "loss.discriminator.main.0.weight": torch.ones(3),
    "model_ema.decay": torch.ones(()),
}

Tensors = dict[str, Tensor]
Make = Callable[[Path, Path], Path]


def bare(models: Path) -> Tensors:
    """The VAE under the names of VAE files, which are those of checkpoints without the prefix."""
    whole = load_file(models / "sd1.safetensors")
    return {name.removeprefix(PREFIX): tensor for name, tensor in whole.items() if name.startswith(PREFIX)}


def diffusers_names(models: Path) -> Tensors:
    return load_file(models / "sd1" / "vae" / WEIGHTS)


def former_names(models: Path) -> Tensors:
    tensors = diffusers_names(models)
    for new, old in FORMER.items():
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for name, t in tensors.items()}
    return tensors


def saved(name: str, tensors: Tensors) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        path = folder / name
        if path.suffix == ".safetensors":
            write_safetensors(path, {key: tensor.contiguous() for key, tensor in tensors.items()}, {})
        else:
            torch.save({"state_dict": tensors, "epoch": 1} if path.suffix == ".ckpt" else tensors, path)
        return path

    return save


def vae_folder(models: Path, folder: Path) -> Path:
    return Path(shutil.copytree(models / "sd1" / "vae", folder / "vae-folder"))


def old_folder(models: Path, folder: Path) -> Path:
    path = vae_folder(models, folder)
    (path / WEIGHTS).unlink()
    torch.save(former_names(models), path / "diffusion_pytorch_model.bin")
    return path


SOURCES: dict[str, Make] = {
    "checkpoint of SD1": lambda models, _: models / "sd1.safetensors",
    "checkpoint of SD1 as ckpt": lambda models, _: models / "sd1.ckpt",
    "VAE file": lambda models, to: saved("vae.safetensors", bare(models))(to),
    "VAE file as pt": lambda models, to: saved("vae.pt", bare(models))(to),
    "VAE file of a training": lambda models, to: saved("vae.ckpt", {**bare(models), **LEFTOVERS})(to),
    "VAE file with prefix": lambda models, to: saved("v.pt", {PREFIX + k: t for k, t in bare(models).items()})(to),
    "file of Diffusers": lambda models, to: saved(WEIGHTS, diffusers_names(models))(to),
    "file of an old Diffusers": lambda models, to: saved("diffusion_pytorch_model.bin", former_names(models))(to),
    "file in its folder": lambda models, to: vae_folder(models, to) / WEIGHTS,
    "model folder": lambda models, _: models / "sd1",
    "VAE folder": vae_folder,
    "old VAE folder": old_folder,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_vae_that_diffusers_has(model_files: Path, tmp_path: Path, source: str) -> None:
    expected = AutoencoderKL.from_pretrained(model_files / "sd1" / "vae").eval()
    path = SOURCES[source](model_files, tmp_path)
    identity = identify_vae(path)
    assert identity.path == path and all(file.is_file() for file in identity.files)
    vae = load_vae(identity)
    state = expected.state_dict()
    assert vae.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vae.state_dict().items())
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
    pixels = torch.linspace(-1, 1, 3072).reshape(1, 3, 32, 32)
    latents = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(latents, expected.encode(pixels).latent_dist.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents).sample, expected.decode(latents).sample, rtol=1e-4, atol=1e-5)


def test_a_vae_of_sd2_serves_as_well(model_files: Path) -> None:
    expected = load_file(model_files / "sd2" / "vae" / WEIGHTS)
    for name in ("sd2.safetensors", "sd2"):
        vae = load_vae(identify_vae(model_files / name))
        assert all(torch.equal(tensor, expected[key]) for key, tensor in vae.state_dict().items())


@pytest.mark.parametrize("name", ("vae.safetensors", "vae.ckpt"))
def test_diffusers_reads_the_same_numbers_from_a_file(model_files: Path, tmp_path: Path, name: str) -> None:
    path = saved(name, bare(model_files))(tmp_path)
    theirs = AutoencoderKL.from_single_file(str(path), config=str(model_files / "sd1" / "vae")).state_dict()
    ours = load_vae(identify_vae(path)).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_number_format_of_the_file_is_kept(model_files: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in bare(model_files).items()}
    for name in ("vae.safetensors", "vae.pt"):
        vae = load_vae(identify_vae(saved(name, tensors)(tmp_path)))
        assert {parameter.dtype for parameter in vae.parameters()} == {dtype}


def test_missing_and_unknown_tensors_are_named(model_files: Path, tmp_path: Path) -> None:
    tensors = bare(model_files)
    del tensors["decoder.conv_out.bias"]
    tensors["adapter.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"1 missing: decoder\.conv_out\.bias; 1 unknown: adapter\.weight"):
        identify_vae(saved("vae.safetensors", tensors)(tmp_path))


def empty_vae(latents: int = 4, blocks: int = 4) -> Tensors:
    config = vae_config("sd1", (32,) * 4) | {"latent_channels": latents, "block_out_channels": [32] * blocks}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * blocks, "up_block_types": ["UpDecoderBlock2D"] * blocks}
    network = build_vae(config)
    fill(network, {name: torch.zeros(tensor.shape) for name, tensor in network.state_dict().items()})
    return network.state_dict()


def with_config(models: Path, folder: Path, **changes: object) -> Path:
    path = vae_folder(models, folder)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


def sdxl_model(models: Path, folder: Path) -> Path:
    path = Path(shutil.copytree(models / "sd1", folder / "xl"))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return path


def three_blocks(models: Path, folder: Path) -> Path:
    lost = ("encoder.down.3", "decoder.up.3")
    return saved("vae.pt", {name: t for name, t in bare(models).items() if not name.startswith(lost)})(folder)


LORA = {f"lora_unet_mid_block.lora_{side}.weight": torch.zeros(4, 4) for side in ("down", "up")}
PEFT = {"unet.mid_block.attn.to_q.lora_A.weight": torch.zeros(4, 4)}
WRONG: dict[str, tuple[Make, str]] = {
    "nothing there": (lambda _, to: to / "absent.pt", "no such file"),
    "LoRA": (lambda _, to: saved("lora.safetensors", LORA)(to), "this is a LoRA, not a VAE"),
    "LoRA of peft": (lambda _, to: saved("lora.safetensors", PEFT)(to), "this is a LoRA, not a VAE"),
    "U-Net": (lambda models, _: models / "sd1" / "unet" / WEIGHTS, "describes UNet2DConditionModel, not AutoencoderKL"),
    "U-Net folder": (lambda models, _: models / "sd1" / "unet", "describes UNet2DConditionModel, not AutoencoderKL"),
    "text encoder": (lambda models, _: models / "sd1" / "text_encoder" / "model.safetensors", "holds no VAE"),
    "embedding": (lambda _, to: saved("w.pt", {"emb_params": torch.zeros(1, 768)})(to), "holds no VAE; .*emb_params"),
    "picture": (lambda _, to: to / "cat.png", "a VAE file ends in"),
    "other folder": (lambda _, to: to, "neither vae/config.json nor config.json"),
    "SDXL model": (sdxl_model, "SDXL model"),
    "SDXL VAE": (lambda models, to: with_config(models, to, scaling_factor=0.13025), r"0\.13025 \(that of SDXL\)"),
    "SDXL VAE's file": (
        lambda models, to: with_config(models, to, scaling_factor=0.13025) / WEIGHTS,
        r"0\.13025 \(that of SDXL\)",
    ),
    "SDXL checkpoint": (
        lambda models, to: saved(
            "xl.safetensors",
            {f"{PREFIX}{name}": t for name, t in bare(models).items()} | {"conditioner.embedders.0.x": torch.zeros(1)},
        )(to),
        "SDXL model",
    ),
    "16 channels": (lambda _, to: saved("flux.safetensors", empty_vae(latents=16))(to), "16 channels instead of 4"),
    "16 channels by config": (lambda models, to: with_config(models, to, latent_channels=16), "16 channels instead"),
    "factor 4": (lambda _, to: saved("vq.safetensors", empty_vae(blocks=3))(to), "4 pixels wide instead of 8"),
    "factor 16": (lambda _, to: saved("f16.safetensors", empty_vae(blocks=5))(to), "16 pixels wide instead of 8"),
    "factor 4 by names": (three_blocks, "4 pixels wide instead of 8"),
    "factor 4 by config": (
        lambda models, to: with_config(models, to, block_out_channels=[32, 64, 96]),
        "4 pixels wide instead of 8",
    ),
    "other layers": (lambda models, to: with_config(models, to, layers_per_block=3), "3 layers instead of 2"),
    "other class": (
        lambda models, to: with_config(models, to, _class_name="AutoencoderTiny"),
        "describes AutoencoderTiny",
    ),
    "no attention": (
        lambda models, to: with_config(models, to, mid_block_add_attention=False),
        "unknown: .*attentions",
    ),
    "no sense": (lambda models, to: with_config(models, to, norm_num_groups=7), "no network has its sizes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_fitting_vae_is_refused(model_files: Path, tmp_path: Path, case: str) -> None:
    make, expected = WRONG[case]
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    path = make(model_files, tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        identify_vae(path)
    assert str(path) in caught.value.problems[0].where or str(path.parent) in caught.value.problems[0].where


@pytest.mark.parametrize("text", ("{", "[]", '"vae"'))
def test_a_damaged_config_is_reported(model_files: Path, tmp_path: Path, text: str) -> None:
    path = vae_folder(model_files, tmp_path)
    (path / "config.json").write_text(text)
    with pytest.raises(UserError, match="JSON"):
        identify_vae(path)


def test_a_file_that_changed_since_is_reported(model_files: Path, tmp_path: Path) -> None:
    path = saved("vae.safetensors", bare(model_files))(tmp_path)
    identity = identify_vae(path)
    saved("vae.safetensors", {"decoder.conv_in.weight": torch.zeros(1)})(tmp_path)
    with pytest.raises(UserError, match="missing"):
        load_vae(identity)
