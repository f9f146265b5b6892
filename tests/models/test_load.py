from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import VAE_DOWNSCALE, VAE_SCALING_FACTOR, StableDiffusion

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("sd1", "sd2", "sd2_v")
MEMORY_LIMIT = 1.3  # peak while loading, in file sizes


def load(path: Path, prediction_type: str = "epsilon") -> StableDiffusion:
    return load_stable_diffusion(identify(path), prediction_type)


def networks(model: StableDiffusion) -> tuple[nn.Module, nn.Module, nn.Module]:
    return model.unet, model.text_encoder, model.vae


def assert_same_weights(found: StableDiffusion, expected: StableDiffusion) -> None:
    for ours, theirs in zip(networks(found), networks(expected), strict=True):
        state = theirs.state_dict()
        assert ours.state_dict().keys() == state.keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def config_values(network: nn.Module) -> dict[str, object]:
    values = network.config.to_dict() if hasattr(network.config, "to_dict") else network.config
    return {name: value for name, value in values.items() if not name.startswith("_")}


@pytest.mark.parametrize("form", ("{}.safetensors", "{}.ckpt", "{}"))
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_model(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, kind: str, form: str
) -> None:
    expected = models_in_memory[kind]
    model = load(model_files / form.format(kind), expected.prediction_type)
    assert_same_weights(model, expected)
    assert (model.family, model.prediction_type) == (expected.family, expected.prediction_type)
    assert model.source == model_files / form.format(kind)
    for ours, theirs in zip(networks(model), networks(expected), strict=True):
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
        assert not any(buffer.is_meta for buffer in ours.buffers())
        assert config_values(ours) == config_values(theirs)


def test_a_loaded_model_computes_what_the_original_computes(
    models_in_memory: dict[str, StableDiffusion], model_files: Path
) -> None:
    ids = torch.arange(77)[None]
    latents, pixels = torch.linspace(-1, 1, 256).reshape(1, 4, 8, 8), torch.linspace(-1, 1, 3072).reshape(1, 3, 32, 32)
    for kind in KINDS:
        outputs = []
        for model in (models_in_memory[kind], load(model_files / f"{kind}.safetensors")):
            states = model.text_encoder(ids).last_hidden_state
            predicted = model.unet(latents, torch.tensor([500]), states).sample
            outputs.append((states, predicted, model.vae.encode(pixels).latent_dist.mean))
        assert all(torch.equal(first, second) for first, second in zip(*outputs, strict=True))


def test_scale_constants_are_those_of_the_vae(models_in_memory: dict[str, StableDiffusion]) -> None:
    vae = models_in_memory["sd1"].vae
    assert vae.config.scaling_factor == VAE_SCALING_FACTOR
    assert 2 ** (len(vae.config.block_out_channels) - 1) == VAE_DOWNSCALE


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_number_format_of_the_file_is_kept(model_files: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(model_files / "sd2.safetensors").items()}
    write_safetensors(tmp_path / "half.safetensors", tensors, {})
    model = load(tmp_path / "half.safetensors")
    assert {p.dtype for network in networks(model) for p in network.parameters()} == {dtype}


def test_what_is_no_weight_is_ignored(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path
) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    tensors["alphas_cumprod"] = torch.ones(1000)
    tensors["model_ema.decay"] = torch.tensor(0.9)
    write_safetensors(tmp_path / "old.safetensors", tensors, {})
    assert_same_weights(load(tmp_path / "old.safetensors"), models_in_memory["sd1"])


def test_missing_unknown_and_misshaped_tensors_are_named(model_files: Path, tmp_path: Path) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    del tensors["model.diffusion_model.out.0.bias"]
    tensors["model.diffusion_model.adapter.weight"] = torch.zeros(1)
    tensors["model.diffusion_model.time_embed.0.bias"] = torch.zeros(3)
    write_safetensors(tmp_path / "bad.safetensors", tensors, {})
    with pytest.raises(UserError) as caught:
        load(tmp_path / "bad.safetensors")
    text = str(caught.value)
    assert "1 missing: conv_norm_out.bias" in text
    assert "1 unknown: adapter.weight" in text
    assert "1 of a wrong shape: time_embedding.linear_1.bias (3,) instead of (128,)" in text
    assert "UNet2DConditionModel" in text


def test_a_missing_block_is_named(model_files: Path, tmp_path: Path) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    short = {name: tensor for name, tensor in tensors.items() if ".encoder.down.3." not in name}
    write_safetensors(tmp_path / "bad.safetensors", short, {})
    with pytest.raises(UserError, match=r"no tensor for encoder\.down_blocks\.3"):
        load(tmp_path / "bad.safetensors")


def test_quantised_weights_are_refused(model_files: Path, tmp_path: Path) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    name = "model.diffusion_model.out.2.weight"
    tensors[name] = tensors[name].to(torch.int8)
    write_safetensors(tmp_path / "bad.safetensors", tensors, {})
    with pytest.raises(UserError, match="no floating-point numbers"):
        load(tmp_path / "bad.safetensors")


def test_folders_of_other_times_and_tools_are_read(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_files / "sd1", tmp_path / "old"))
    text = load_file(folder / "text_encoder" / "model.safetensors")
    flat = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    torch.save(flat, folder / "text_encoder" / "pytorch_model.bin")
    (folder / "text_encoder" / "model.safetensors").unlink()
    former = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in former.items():
        vae = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensor for name, tensor in vae.items()}
    assert any(".proj_attn." in name for name in vae)
    write_safetensors(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors", vae, {})
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert_same_weights(load(folder), models_in_memory["sd1"])


def test_a_folder_without_weights_is_reported(model_files: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_files / "sd1", tmp_path / "m"))
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights: neither diffusion_pytorch_model\.safetensors"):
        load(folder)


def test_loading_leaves_the_global_generator_alone(model_files: Path) -> None:
    before = torch.get_rng_state()
    load(model_files / "sd1.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_training_in_place_does_not_change_the_file(model_files: Path) -> None:
    for name in ("sd1.safetensors", "sd1.ckpt"):
        content = (model_files / name).read_bytes()
        model = load(model_files / name)
        with torch.no_grad():
            for network in networks(model):
                for parameter in network.parameters():
                    parameter.zero_()
        assert (model_files / name).read_bytes() == content


_MEASURE = """
import multiprocessing, sys
from pathlib import Path
from library.models.identify import identify
from library.models.load import load_stable_diffusion

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024

def peak_of_loading(path):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = status("VmRSS")
    model = load_stable_diffusion(identify(Path(path)), "epsilon")
    for network in (model.unet, model.text_encoder, model.vae):
        for parameter in network.parameters():
            parameter.sum()  # touches every page
    return status("VmHWM") - before

peak_of_loading(sys.argv[1])  # brings in what is imported late
# a process for each, since one that has held a model before does not give all of its memory back
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    print(*pool.map(peak_of_loading, sys.argv[2:], chunksize=1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_needs_little_more_memory_than_the_file_is_large(wide_model: Path, model_files: Path) -> None:
    paths = [wide_model / name for name in ("wide.safetensors", "wide.ckpt", "wide")]
    command = [sys.executable, "-c", _MEASURE, str(model_files / "sd2.ckpt"), *map(str, paths)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peaks = [int(peak) for peak in result.stdout.splitlines()[-1].split()]
    sizes = [path.stat().st_size for path in paths[:2]]
    sizes.append(sum(file.stat().st_size for file in paths[2].rglob("*.safetensors")))
    ratios = [peak / size for peak, size in zip(peaks, sizes, strict=True)]
    print("peak in file sizes:", *(f"{ratio:.3f}" for ratio in ratios))
    # a ratio far below one would mean that the measurement misses the weights
    assert all(0.8 < ratio < MEMORY_LIMIT for ratio in ratios), ratios


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD2 model of a few hundred MiB, large enough for its weights to drown what else is in memory."""
    from library.models import topology
    from library.models.load import build_text_encoder, build_unet, build_vae, fill
    from library.models.save import save_diffusers, save_single_file

    folder = tmp_path_factory.mktemp("wide")
    parts = (
        build_unet(topology.unet_config("sd2", (96, 192, 320, 320), 128)),
        build_text_encoder(topology.text_config("sd2", 128, 512)),
        build_vae(topology.vae_config("sd2", (32, 32, 32, 32))),
    )
    for network in parts:
        fill(network, {name: torch.full(tensor.shape, 0.5) for name, tensor in network.state_dict().items()})
    model = StableDiffusion("sd2", "epsilon", *parts)
    save_single_file(model, folder / "wide.safetensors", {})
    save_single_file(model, folder / "wide.ckpt", {})
    save_diffusers(model, folder / "wide", {})
    return folder
