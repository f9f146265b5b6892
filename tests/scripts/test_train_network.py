"""train_network.py end to end on real photographs, judged by Diffusers and peft as independent readers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from library.core.errors import UserError
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_diffusers, save_single_file, single_file_tensors
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.text.tokenizer import tokenizer_files
from library.training.assemble import build_trainer, load_learner, make_planner
from library.training.checks.preflight import check_network_run
from library.training.progress import plan_run
from library.training.run import NetworkRun
from networks.lora import create_network
from tests.training.runs import ROOT, Tensors, assert_same, environment, photo_words, run_here

FAMILY = {"sd1": "sd1", "sd2": "sd2", "sd2_v": "sd2"}
PREDICTION = {"sd1": "epsilon", "sd2": "epsilon", "sd2_v": "v_prediction"}
MODULES = {"sd1": (72, 192), "sd2": (138, 192), "sd2_v": (138, 192)}


@dataclass(frozen=True)
class Trained:
    """A trained LoRA with its base model as file and as Diffusers folder."""

    kind: str
    base: Path
    folder: Path
    lora: Path
    tensors: Tensors


@pytest.fixture(scope="module", params=["sd1", "sd2", "sd2_v"])
def trained(
    request: pytest.FixtureRequest,
    tiny_models: dict[str, Path],
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trained:
    kind, out = request.param, tmp_path_factory.mktemp(request.param)
    base = tiny_models[kind]
    words = ["--max_train_steps", "8", "--network_dim", "4", "--network_alpha", "16", "--cache_latents"]
    words += ["--v_parameterization", str(kind == "sd2_v").lower()] if kind != "sd1" else []
    tensors = run_here(base, photo_words(photos), out, *words)
    models = load_stable_diffusion(identify(base), PREDICTION[kind])
    save_diffusers(models, out / "base", tokenizer_files(FAMILY[kind]))
    return Trained(kind, base, out / "base", out / "last.safetensors", tensors)


def pipeline(folder: Path) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any) -> torch.Tensor:
    """Latents after three steps of guided sampling from a fixed start."""
    return pipe(
        "a photo of a cat, 猫",
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        width=128,
        height=128,
        output_type="latent",
    ).images


def modules_in_use(pipe: Any) -> set[str]:
    """The layers that Diffusers gave LoRA weights, by the names of our format."""
    names = set()
    for prefix, model in (("lora_unet", pipe.unet), ("lora_te_text_model", pipe.text_encoder)):
        for path, module in model.named_modules():
            if getattr(module, "lora_A", None):
                names.add(f"{prefix}_{path.removeprefix('text_model.')}".replace(".", "_"))
    return names


def modules_of(tensors: Tensors) -> set[str]:
    return {key.split(".")[0] for key in tensors}


def load_lora(pipe: Any, file: Path) -> set[str]:
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    return modules_in_use(pipe)


@torch.no_grad()
def test_diffusers_uses_every_module_and_agrees_with_merged_weights(trained: Trained) -> None:
    text_count, unet_count = MODULES[trained.kind]
    assert len(modules_of(trained.tensors)) == text_count + unet_count
    pipe = pipeline(trained.folder)
    before = picture(pipe)
    assert load_lora(pipe, trained.lora) == modules_of(trained.tensors)
    with_lora = picture(pipe)
    assert (with_lora - before).abs().max() > 1e-2, "the LoRA must have an effect for the comparison to mean anything"

    merged = pipeline(trained.folder)
    network = create_network(1.0, 4, 16, merged.vae, merged.text_encoder, merged.unet)
    network.merge_to(merged.text_encoder, merged.unet, trained.tensors)
    torch.testing.assert_close(picture(merged), with_lora, atol=1e-4, rtol=0)


@pytest.mark.parametrize("damage", ["left out", "renamed"])
def test_the_check_notices_one_module_that_is_missing_or_renamed(trained: Trained, tmp_path: Path, damage: str) -> None:
    victim = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    kept = {key: value for key, value in trained.tensors.items() if key.split(".")[0] != victim}
    if damage == "renamed":
        gone = {key: value for key, value in trained.tensors.items() if key.split(".")[0] == victim}
        kept |= {key.replace("attn2_to_k", "attn2_to_key"): value for key, value in gone.items()}
    save_file(kept, str(tmp_path / "damaged.safetensors"))
    assert load_lora(pipeline(trained.folder), tmp_path / "damaged.safetensors") != modules_of(trained.tensors)


def test_a_file_with_4d_projections_as_public_sd2_tools_write_them_is_not_what_we_write(
    trained: Trained, tmp_path: Path
) -> None:
    """Diffusers refuses the 4-D form for linear projections, so ours is the 2-D one for SD2."""
    if FAMILY[trained.kind] == "sd1":
        assert trained.tensors["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"].dim() == 4
        return
    assert all(value.dim() in (0, 2) for value in trained.tensors.values())
    public = {
        key: value[..., None, None] if "_proj_" in key and "unet" in key and value.dim() == 2 else value
        for key, value in trained.tensors.items()
    }
    save_file({key: value.contiguous() for key, value in public.items()}, str(tmp_path / "public.safetensors"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_lora(pipeline(trained.folder), tmp_path / "public.safetensors")


def checked_run(*words: str) -> NetworkRun:
    script = SCRIPTS["train_network.py"]
    return check_network_run(parse_options("train_network.py", script.description, script.groups, list(words)))


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    accelerator = Accelerator(mixed_precision="no")
    yield accelerator
    accelerator.end_training()


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_every_pair_moves_and_no_base_tensor_does(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, accelerator: Accelerator, kind: str
) -> None:
    run = checked_run(
        *("--pretrained_model_name_or_path", str(tiny_models[kind]), *photo_words(photos)),
        *("--output_dir", str(tmp_path), "--max_train_steps", "6", "--learning_rate", "1e-3"),
        *(["--v2"] if kind == "sd2" else []),
    )
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, 1)
    start = {key: value.clone() for key, value in learner.network.file_tensors().items()}
    trainer = build_trainer(run, accelerator, learner, planner, plan_run(planner, 6, None))
    trainer.run()
    trainer.log.close()

    end = learner.network.file_tensors()
    still = [key for key in start if not key.endswith(".alpha") and torch.equal(start[key], end[key])]
    assert still == []
    assert all(torch.equal(start[key], end[key]) for key in start if key.endswith(".alpha"))

    learner.network.detach()
    base, after = load_file(str(tiny_models[kind])), single_file_tensors(learner.models)
    assert set(after) == set(base)
    assert [key for key in base if not torch.equal(base[key], after[key].cpu())] == []


@pytest.mark.parametrize(
    ("flag", "prefix"),
    [("--network_train_unet_only", "lora_unet_"), ("--network_train_text_encoder_only", "lora_te_")],
)
def test_one_part_alone(tiny_models: dict[str, Path], photos: Path, tmp_path: Path, flag: str, prefix: str) -> None:
    tensors = run_here(tiny_models["sd1"], photo_words(photos), tmp_path, "--max_train_steps", "4", flag)
    assert all(key.startswith(prefix) for key in tensors)
    ups = [value for key, value in tensors.items() if key.endswith("lora_up.weight")]
    assert all(bool(value.any()) for value in ups)


def test_rates_are_per_part(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    rates = ["--unet_lr", "1e-3", "--text_encoder_lr", "1e-12"]
    tensors = run_here(tiny_models["sd1"], photo_words(photos), tmp_path, "--max_train_steps", "3", *rates)
    moved = {
        part: max(float(v.abs().max()) for k, v in tensors.items() if k.startswith(part) and "lora_up" in k)
        for part in ("lora_unet_", "lora_te_")
    }
    assert moved["lora_unet_"] > 1e-4 and moved["lora_te_"] < 1e-9


def test_diffusers_folder_trains_like_the_single_file(trained: Trained, photos: Path, tmp_path: Path) -> None:
    words = ["--max_train_steps", "8", "--network_dim", "4", "--network_alpha", "16", "--cache_latents"]
    tensors = run_here(trained.folder, photo_words(photos), tmp_path, *words)
    assert_same(tensors, trained.tensors)


def test_a_model_of_the_hub_trains_offline_from_the_cache(trained: Trained, photos: Path, tmp_path: Path) -> None:
    """The cache is laid out as huggingface_hub does it, and the network is out of reach."""
    repository = tmp_path / "cache" / "models--somebody--tiny"
    shutil.copytree(trained.folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    words = ["--pretrained_model_name_or_path", "somebody/tiny", *photo_words(photos), "--output_dir", str(tmp_path)]
    words += ["--max_train_steps", "1", "--max_data_loader_n_workers", "0", "--network_dim", "4"]
    settings = {**environment(), "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "train_network.py", *words]
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "model: somebody/tiny, Stable Diffusion" in result.stderr
    with safe_open(str(tmp_path / "last.safetensors"), "pt") as file:
        assert file.metadata()["ss_sd_model_name"] == "somebody/tiny"

    elsewhere = {**settings, "HF_HUB_CACHE": str(tmp_path / "empty")}
    result = subprocess.run(command, cwd=ROOT, env=elsewhere, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "no such folder here, and the Hub may not be asked, because HF_HUB_OFFLINE is set" in result.stderr


def test_a_ckpt_trains_like_the_safetensors_file(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    ckpt = tmp_path / "model.ckpt"
    save_single_file(load_stable_diffusion(identify(tiny_models["sd2"]), "epsilon"), ckpt, {})
    words = ["--max_train_steps", "2", "--v2"]
    first = run_here(tiny_models["sd2"], photo_words(photos), tmp_path / "a", *words)
    assert_same(run_here(ckpt, photo_words(photos), tmp_path / "b", *words), first)


def test_a_whole_run_needs_no_network(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    """Every connection is refused, and nothing tells the libraries that they are offline."""
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import train_network\n"
        "train_network.main(sys.argv[1:])\n"
    )
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *photo_words(photos)]
    words += ["--output_dir", str(tmp_path), "--max_train_steps", "1", "--max_data_loader_n_workers", "0"]
    settings = {key: value for key, value in environment().items() if key != "HF_HUB_OFFLINE"}
    result = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=settings, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "last.safetensors").is_file()


def test_the_gradient_limit_acts_and_zero_lifts_it(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    # eps far above the gradients makes AdamW's steps proportional to them, so that a limit shows
    words = ["--max_train_steps", "2", "--optimizer_args", "eps=1.0", "--max_grad_norm"]
    moved = {}
    for limit in ("0", "1e9", "1e-4"):
        tensors = run_here(tiny_models["sd1"], photo_words(photos), tmp_path / limit, *words, limit)
        moved[limit] = sum(float(v.square().sum()) for k, v in tensors.items() if "lora_up" in k) ** 0.5
    assert moved["0"] == moved["1e9"]
    assert moved["1e-4"] < 0.1 * moved["0"]


def test_captions_beyond_75_tokens_are_told(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, caption in (("cat", "a cat, " * 30), ("rocket", "a rocket")):
        (data / f"{name}.jpg").write_bytes((photos / f"{name}.jpg").read_bytes())
        (data / f"{name}.txt").write_text(caption, encoding="utf-8")
    words = ["--train_data_dir", str(data), "--resolution", "64"]
    run_here(tiny_models["sd1"], words, tmp_path / "out", "--max_train_steps", "1")
    assert "warning: 1 captions do not fit into 75 tokens; the rest is not read" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_loss_that_is_not_finite_stops_the_run(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no longer finite at update \d; its pictures: .*\.(jpg|png|webp)"):
        run_here(tiny_models["sd1"], photo_words(photos), tmp_path, "--max_train_steps", "9", "--learning_rate", "1e30")
    assert not (tmp_path / "last.safetensors").exists()


def test_contradictions_with_the_model_are_one_sentence(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--v2: the model is Stable Diffusion 1\.x"):
        run_here(tiny_models["sd1"], photo_words(photos), tmp_path, "--max_train_steps", "1", "--v2")
