from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from library.core.errors import UserError
from library.core.tensor_files import write_safetensors
from library.models import topology
from library.models.identify import ModelIdentity, identify
from library.models.load import (
    build_text_encoder,
    build_unet,
    build_vae,
    faults_of,
    fill,
    load_stable_diffusion,
)
from library.models.save import save_diffusers, save_single_file
from library.models.stable_diffusion import VAE_DOWNSCALE, VAE_SCALING_FACTOR, StableDiffusion
from tests.models.full_size import write_full_size

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("sd1", "sd2", "sd2_v")
MEMORY_LIMIT = 1.15  # peak while loading, in file sizes
TIME_LIMIT = 1.2  # time to load, in times to read the file


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
        for first, second in zip(*outputs, strict=True):  # not to the bit: the file's tensors stand at other addresses
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


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
    assert "(unet)" in text


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


def test_sd2_projections_are_read_as_convolutions_too(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path
) -> None:
    tensors = load_file(model_files / "sd2.safetensors")
    unet = [name for name in tensors if name.startswith("model.diffusion_model.")]
    changed = [name for name in unet if name.endswith((".proj_in.weight", ".proj_out.weight"))]
    assert len(changed) == 32 and all(tensors[name].ndim == 2 for name in changed)
    tensors.update({name: tensors[name][:, :, None, None] for name in changed})
    write_safetensors(tmp_path / "conv.safetensors", tensors, {})
    assert_same_weights(load(tmp_path / "conv.safetensors"), models_in_memory["sd2"])


def write_sharded(path: Path, index: str, shards: int) -> list[Path]:
    """Puts shards and an index in the place of a weights file, as Diffusers and Transformers write them."""
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    names, written, weight_map = sorted(tensors), [], {}
    for number in range(shards):
        shard = path.with_name(f"{path.stem}-{number + 1:05}-of-{shards:05}{path.suffix}")
        part = {name: tensors[name] for name in names[number::shards]}
        save = write_safetensors if path.suffix == ".safetensors" else lambda at, content, _: torch.save(content, at)
        save(shard, part, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard.name))
        written.append(shard)
    path.with_name(index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    path.unlink()
    return written


@pytest.fixture
def folder(model_files: Path, tmp_path: Path) -> Path:
    """A copy of the SD1 folder, to be changed."""
    return Path(shutil.copytree(model_files / "sd1", tmp_path / "model"))


def as_bin(weights: Path, name: str) -> Path:
    torch.save(load_file(weights), weights.with_name(name))
    weights.unlink()
    return weights.with_name(name)


def test_shards_are_read(models_in_memory: dict[str, StableDiffusion], folder: Path) -> None:
    unet, text = folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "text_encoder" / "model.safetensors"
    write_sharded(unet, "diffusion_pytorch_model.safetensors.index.json", 3)
    write_sharded(text, "model.safetensors.index.json", 2)
    bin_weights = as_bin(folder / "vae" / "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    write_sharded(bin_weights, "diffusion_pytorch_model.bin.index.json", 2)
    assert_same_weights(load(folder), models_in_memory["sd1"])
    peer = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()  # agrees on what shards look like
    assert torch.equal(peer["conv_in.weight"], models_in_memory["sd1"].unet.conv_in.weight)
    shutil.rmtree(folder / "vae")
    assert any("vae" in fault for fault in faults_of(identify_anyway(folder)))


def identify_anyway(folder: Path) -> ModelIdentity:
    return ModelIdentity(folder, "sd1", "diffusers", "epsilon")


def test_shards_of_pickled_text_encoders_and_of_variants_are_read(
    models_in_memory: dict[str, StableDiffusion], folder: Path
) -> None:
    bin_weights = as_bin(folder / "text_encoder" / "model.safetensors", "pytorch_model.bin")
    write_sharded(bin_weights, "pytorch_model.bin.index.json", 2)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    variant = unet.rename(unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
    write_sharded(variant, "diffusion_pytorch_model.safetensors.index.fp16.json", 2)
    assert_same_weights(load(folder), models_in_memory["sd1"])


def test_missing_shards_are_named(folder: Path) -> None:
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    index = unet.with_name(f"{unet.name}.index.json")
    shards = write_sharded(unet, index.name, 3)
    shards[1].unlink()
    with pytest.raises(UserError, match=r"1 of the 3 files it lists are missing: \S*-00002-of-00003\.safetensors"):
        load(folder)
    index.unlink()
    with pytest.raises(UserError, match=r"holds \S*-00001-of-00003\.safetensors, but \S*\.index\.json is missing"):
        load(folder)
    for text in ("{", "[]", '{"weight_map": {"a": "../../secret.safetensors"}}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        with pytest.raises(UserError, match="is no list of weights files"):
            load(folder)


def write_other_weights(path: Path, like: Path, value: float) -> None:
    write_safetensors(path, {name: torch.full_like(tensor, value) for name, tensor in load_file(like).items()}, {})


def test_plain_weights_come_before_variants_and_safetensors_before_pickles(folder: Path) -> None:
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    fp16 = plain.with_name("diffusion_pytorch_model.fp16.safetensors")
    write_other_weights(fp16, plain, 2.0)
    write_other_weights(fp16.with_name("diffusion_pytorch_model.non_ema.safetensors"), plain, 3.0)
    kept = {name: torch.full_like(tensor, 4.0) for name, tensor in load_file(plain).items()}
    torch.save(kept, plain.with_suffix(".bin"))
    expected = load_file(plain)["conv_in.weight"]
    assert torch.equal(load(folder).unet.conv_in.weight, expected)
    plain.unlink()
    assert load(folder).unet.conv_in.weight.unique().item() == 4.0
    plain.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"several: fp16, non_ema(.|\n)*diffusion_pytorch_model\.safetensors"):
        load(folder)
    fp16.with_name("diffusion_pytorch_model.non_ema.safetensors").unlink()
    torch.save(kept, fp16.with_suffix(".bin"))  # the same variant in two formats is no choice to make
    assert load(folder).unet.conv_in.weight.unique().item() == 2.0


def test_problems_of_all_networks_are_told_at_once(folder: Path, model_files: Path, tmp_path: Path) -> None:
    for name, weights in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = folder / name / f"{weights}.safetensors"
        tensors = load_file(path)
        del tensors[sorted(tensors)[0]]
        write_safetensors(path, tensors, {})
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        load(folder)
    assert [Path(problem.where).parent.name for problem in caught.value.problems[1:]] == ["unet", "text_encoder"]
    assert "no weights" in caught.value.problems[0].what
    assert faults_of(identify(folder)) == [f"{problem.where}: {problem.what}" for problem in caught.value.problems]
    assert faults_of(identify(model_files / "sd2.ckpt")) == faults_of(identify(model_files / "sd2")) == []

    tensors = load_file(model_files / "sd1.safetensors")
    del tensors["model.diffusion_model.out.0.bias"], tensors["first_stage_model.quant_conv.bias"]
    write_safetensors(tmp_path / "bad.safetensors", tensors, {})
    unet, vae = faults_of(identify(tmp_path / "bad.safetensors"))
    assert "(unet): " in unet and "conv_norm_out.bias" in unet
    assert "(vae): " in vae and "quant_conv.bias" in vae


def test_faults_of_a_damaged_file_are_told_too(model_files: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    shutil.copy(model_files / "sd1.safetensors", path)
    identity = identify(path)
    path.write_bytes(path.read_bytes()[:-100])
    (fault,) = faults_of(identity)
    assert "100 of its" in fault and str(path) in fault


def test_a_tensor_given_twice_is_reported(model_files: Path, tmp_path: Path) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    attention = "first_stage_model.decoder.mid.attn_1."
    tensors[f"{attention}to_q.weight"] = tensors[f"{attention}q.weight"]
    write_safetensors(tmp_path / "twice.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"1 there more than once: decoder\.mid_block\.attentions\.0\.to_q\.weight"):
        load(tmp_path / "twice.safetensors")


@pytest.mark.parametrize("shape", ((), (5,), (0, 4), (33, 4, 3, 3)))
def test_sizes_that_make_no_sense_are_reported(model_files: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = load_file(model_files / "sd1.safetensors")
    tensors["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"] = torch.zeros(shape)
    write_safetensors(tmp_path / "odd.safetensors", tensors, {})
    with pytest.raises(UserError, match=r"\(unet\)(.|\n)*(no tensor for|no network has its sizes|of a wrong shape)"):
        load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("kind", ("sd1", "sd2"))
def test_every_weight_has_a_storage_of_its_own(model_files: Path, kind: str) -> None:
    for form in (f"{kind}.safetensors", f"{kind}.ckpt", kind):
        for network in networks(load(model_files / form)):
            storages = [parameter.untyped_storage() for parameter in network.parameters()]
            assert len({storage.data_ptr() for storage in storages}) == len(storages)
            for parameter, storage in zip(network.parameters(), storages, strict=True):
                assert storage.nbytes() == parameter.nbytes and parameter.is_contiguous()


def test_weights_at_odd_places_of_a_file_are_read(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path
) -> None:
    content = (model_files / "sd1.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip() + b" "
    header += b" " * (1 - len(header) % 2)  # an odd length, so that no float stands at a multiple of its size
    assert len(header) % 2 == 1
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert_same_weights(load(tmp_path / "odd.safetensors"), models_in_memory["sd1"])


@pytest.mark.skipif(sys.platform == "win32", reason="a file in use cannot be replaced there")
def test_the_file_may_be_replaced_or_deleted_while_the_model_lives(
    models_in_memory: dict[str, StableDiffusion], model_files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(model_files / "sd1.safetensors", path)
    model = load(path)
    save_single_file(models_in_memory["sd2"], path, {})
    assert_same_weights(model, models_in_memory["sd1"])
    path.unlink()
    assert_same_weights(model, models_in_memory["sd1"])


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
from library.models.identify import ModelIdentity, identify
from library.models import topology
from library.models.load import (
    build_text_encoder,
    build_unet,
    build_vae,
    faults_of,
    fill,
    load_stable_diffusion,
)

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


_TIME = """
import sys, time
from pathlib import Path
import torch
from safetensors.torch import load_file
from library.models.identify import identify
from library.models.load import load_stable_diffusion

def ours(path):
    model = load_stable_diffusion(identity, "epsilon")
    return [p for network in (model.unet, model.text_encoder, model.vae) for p in network.parameters()]

way, path = (ours, lambda path: load_file(path).values())[sys.argv[1] == "bare"], Path(sys.argv[2])
identity = identify(path)
load_stable_diffusion(identify(Path(sys.argv[3])), "epsilon")  # brings in what is imported late
start = time.perf_counter()
for tensor in way(path):
    tensor.flatten().view(torch.uint8).sum()  # every byte
print(time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("family", ("sd1", "sd2"))
def test_full_size_models_load_as_fast_as_their_file_is_read(family: str, model_files: Path, tmp_path: Path) -> None:
    path = write_full_size(family, tmp_path / "full.safetensors")
    try:
        assert path.stat().st_size > 2e9
        small = str(model_files / f"{family}.safetensors")

        def run(code: str, *words: str) -> float:
            command = [sys.executable, "-c", code, *words]
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            return float(result.stdout.splitlines()[-1])

        memory = run(_MEASURE, small, str(path)) / path.stat().st_size
        rounds = [[run(_TIME, way, str(path), small) for way in ("bare", "ours")] for _ in range(3)]
        bare, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
        print(f"{family}: peak {memory:.3f} of the file; {ours:.2f} s against {bare:.2f} s, ratio {ours / bare:.3f}")
        assert 0.8 < memory < MEMORY_LIMIT
        assert ours < TIME_LIMIT * bare
    finally:
        path.unlink()  # gigabytes that pytest would keep
