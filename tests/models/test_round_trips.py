"""From form to form and back: nothing is lost, and what we write gives the same pictures in Diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from library.models.extras import EXTRAS_FILE, ModelExtras, read_extras
from library.models.forms import target_for
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.precision import Precisions
from library.models.save import save_model, single_file_tensors
from library.models.stable_diffusion import StableDiffusion
from library.text.tokenizer import tokenizer_files

PREDICTION = {"sd1": "epsilon", "sd2": "epsilon", "sd2_v": "v_prediction"}
FORMATS = {"fp32": torch.float32, "fp16": torch.float16}
METADATA = {"format": "pt", "ss_epoch": "3", "ss_steps": "120", "modelspec.title": "größe"}
LAYER_23 = "cond_stage_model.model.transformer.resblocks.23."


def as_format(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def extra_tensors(family: str, own: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What real files hold beside the networks; random where a value that is made up anew could pass for it."""
    draw = torch.Generator().manual_seed(7)
    extras: dict[str, Tensor] = {
        "betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square(),
        "alphas_cumprod": torch.rand(1000, generator=draw),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "model_ema.decay": torch.tensor(0.9999),
        "somebody.else": torch.rand(2, 3, generator=draw).to(dtype),
    }
    if family == "sd1":
        name = "cond_stage_model.transformer.text_model.embeddings.position_ids"
        return {**extras, name: torch.arange(77)[None]}
    names = ("cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale")
    random = [name for name in own if name.startswith((LAYER_23, *names))]
    return {**extras, **{name: torch.rand(own[name].shape, generator=draw).to(dtype) for name in random}}


@pytest.fixture(scope="module")
def sources(
    models_in_memory: dict[str, StableDiffusion], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """Single files by kind and number format, written by the safetensors library, with all that real files hold."""
    folder, found = tmp_path_factory.mktemp("sources"), {}
    for kind, model in models_in_memory.items():
        for name, dtype in FORMATS.items():
            own = {key: as_format(tensor, dtype).contiguous() for key, tensor in single_file_tensors(model).items()}
            extras = extra_tensors(model.family, own, dtype)
            found[kind, name] = folder / f"{kind}_{name}.safetensors"
            save_file({**own, **extras}, found[kind, name], METADATA)
    return found


class Converted:
    """Models by the chain of forms they have gone through; each link is made once."""

    def __init__(self, sources: Mapping[tuple[str, str], Path], folder: Path) -> None:
        self._paths: dict[tuple[str, ...], Path] = dict(sources)
        self._folder = folder

    def __call__(self, kind: str, number_format: str, *forms: str) -> Path:
        chain = (kind, number_format, *forms)
        if chain not in self._paths:
            before = self(*chain[:-1])
            self._paths[chain] = convert(before, kind, self._folder / "-".join(chain), forms[-1])
        return self._paths[chain]


@pytest.fixture(scope="module")
def converted(sources: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(sources, tmp_path_factory.mktemp("converted"))


def pairs_of(number_format: str) -> tuple[tuple[str, str], ...]:
    """Each folder form with one single-file form; the two number formats have all four pairs between them."""
    singles = ("ckpt", "safetensors") if number_format == "fp32" else ("safetensors", "ckpt")
    return tuple(zip(("diffusers", "diffusers_safetensors"), singles, strict=True))


def convert(source: Path, kind: str, folder: Path, form: str) -> Path:
    """The model at `source` in another form, with all that its files hold."""
    identity = identify(source)
    model, extras = load_stable_diffusion(identity, PREDICTION[kind]), read_extras(identity)
    target = target_for(folder, "model", form)
    save_model(model, target, Precisions(), extras, extras.metadata, tokenizer_files(model.family))
    return target.path


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a single file, by the libraries the forms belong to."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return load_file(path), file.metadata()
    loaded = torch.load(path, weights_only=True)
    return loaded["state_dict"], loaded["metadata"]


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slow(*values: str) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


CASES = (
    ("sd1", "fp32"),
    slow("sd1", "fp16"),
    slow("sd2", "fp32"),
    ("sd2", "fp16"),
    ("sd2_v", "fp32"),
    slow("sd2_v", "fp16"),
)


@pytest.mark.parametrize(("kind", "number_format"), CASES)
def test_single_file_to_folder_and_back_loses_nothing(converted: Converted, kind: str, number_format: str) -> None:
    expected, metadata = content(converted(kind, number_format))
    for folder_form, single_form in pairs_of(number_format):
        tensors, kept = content(converted(kind, number_format, folder_form, single_form))
        assert_same(tensors, expected)
        assert kept == metadata == METADATA


@pytest.mark.parametrize(("kind", "number_format"), CASES)
def test_folder_to_single_file_and_back_is_the_same_folder(converted: Converted, kind: str, number_format: str) -> None:
    for folder_form, single_form in pairs_of(number_format):
        first = files_of(converted(kind, number_format, folder_form))
        second = files_of(converted(kind, number_format, folder_form, single_form, folder_form))
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []
        assert EXTRAS_FILE in first


def test_a_folder_without_extras_comes_back_without_them(
    models_in_memory: dict[str, StableDiffusion], tmp_path: Path
) -> None:
    folder = target_for(tmp_path, "model", "diffusers")
    save_model(models_in_memory["sd1"], folder, Precisions(), ModelExtras(), {}, tokenizer_files("sd1"))
    again = convert(convert(folder.path, "sd1", tmp_path / "2", "ckpt"), "sd1", tmp_path / "3", "diffusers")
    assert EXTRAS_FILE not in files_of(folder.path)
    assert files_of(again) == files_of(folder.path)


# --- what others read -------------------------------------------------------------------------------------------------


def own_pipeline(model: StableDiffusion, files: Path) -> StableDiffusionPipeline:
    """A pipeline put together from the modules in memory, nothing of ours between them."""
    scheduler = DDIMScheduler.from_config(json.loads((files / "scheduler" / "scheduler_config.json").read_text()))
    return StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(files / "tokenizer"),
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def picture(pipeline: StableDiffusionPipeline) -> Tensor:
    for network in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        # out of mapped files, whose alignment changes the last bits of a result
        network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    out = pipeline("a cat", height=64, width=64, num_inference_steps=2, generator=generator, output_type="pt")
    return out.images


@pytest.mark.parametrize("kind", ("sd1", slow("sd2"), slow("sd2_v")))
def test_every_form_gives_the_same_picture_in_diffusers(
    models_in_memory: dict[str, StableDiffusion], converted: Converted, kind: str
) -> None:
    folders = [converted(kind, "fp32", form) for form, _ in pairs_of("fp32")]
    files = [converted(kind, "fp32", *pair) for pair in pairs_of("fp32")]
    assert [path.suffix for path in files] == [".ckpt", ".safetensors"]
    expected = picture(own_pipeline(models_in_memory[kind], folders[0]))
    assert expected.std() > 0.01
    for path in (*folders, *files):
        if path.is_dir():
            pipeline = StableDiffusionPipeline.from_pretrained(path, local_files_only=True)
        else:
            config = str(folders[0])
            pipeline = StableDiffusionPipeline.from_single_file(str(path), config=config, local_files_only=True)
        assert pipeline.scheduler.config.prediction_type == PREDICTION[kind]
        assert torch.equal(picture(pipeline), expected), path


@pytest.mark.parametrize("folder_form", ("diffusers", "diffusers_safetensors"))
@pytest.mark.parametrize("kind", ("sd1", "sd2"))
def test_transformers_finds_every_weight_under_the_pinned_prefix(
    converted: Converted, kind: str, folder_form: str
) -> None:
    folder = converted(kind, "fp16", folder_form) / "text_encoder"
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    assert safe.exists() != pickled.exists()
    written = load_file(safe) if safe.exists() else torch.load(pickled, weights_only=True)
    assert all(name.startswith("text_model.") for name in written)
    model, report = CLIPTextModel.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert {key: list(value) for key, value in report.items() if value} == {}
    assert model.dtype == torch.float16
    assert_same({f"text_model.{name}": tensor for name, tensor in model.state_dict().items()}, written)


@pytest.mark.parametrize(("number_format", "told"), [("fp32", "float32"), ("fp16", "float16")])
def test_the_text_encoder_says_its_number_format(converted: Converted, number_format: str, told: str) -> None:
    folder = converted("sd1", number_format, "diffusers")
    config = json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))
    assert (config["dtype"], config["torch_dtype"]) == (told, told)
