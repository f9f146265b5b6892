"""Samples through the real scripts: what Diffusers makes of the saved file, and the training does not notice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

import fine_tune
import train_db
import train_network
import train_textual_inversion
from library.core.clock import FIXED_TIME
from library.core.errors import UserError
from library.models.embedding_files import LAYERS
from library.models.save import save_diffusers, save_single_file
from library.models.tiny import make_tiny_model
from library.text.tokenizer import load_tokenizer, tokenizer_files
from tests.networks.hypernetwork_reader import Reader
from tests.training.runs import environment, run_script_in_processes
from tests.training.styles import CAPTION_FILES, style_words

WORD = "zumira"
PROMPT = f"{WORD} by a window --n blurry --d 5 --s 4 --l 5 --w 80 --h 64"
ONE_SHADE = 1 / 255
SCRIPTS: dict[str, Callable[[Sequence[str]], None]] = {
    "fine_tune.py": fine_tune.main,
    "train_db.py": train_db.main,
    "train_network.py": train_network.main,
    "train_textual_inversion.py": train_textual_inversion.main,
}
Runs = Callable[..., Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models as Diffusers folders, which its pipeline loads as they are."""
    root = tmp_path_factory.mktemp("bases")
    for kind in ("sd1", "sd2_v"):
        model = make_tiny_model(kind, seed=0)
        save_diffusers(model, root / kind, tokenizer_files(model.family))
    return {kind: root / kind for kind in ("sd1", "sd2_v")}


@pytest.fixture
def train(bases: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs a script for two updates of one epoch each; returns its output folder."""
    monkeypatch.setenv(FIXED_TIME, "1700000000")  # so that equal runs give equal bytes
    data = style_words(CAPTION_FILES, WORD, photos, tmp_path / "data")

    def run(
        script: str, *words: str, name: str = "out", base: Path | None = None, prompts: str | None = PROMPT
    ) -> Path:
        asked = []
        if prompts is not None:
            (tmp_path / "prompts.txt").write_text(prompts, encoding="utf-8")
            asked = ["--sample_prompts", str(tmp_path / "prompts.txt")]
            if not any(word.startswith("--sample_") for word in words):
                asked += ["--sample_every_n_steps", "1"]
        model = base or bases["sd1"]
        SCRIPTS[script](
            [
                *("--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(tmp_path / name)),
                *("--output_name", "mira", "--max_train_steps", "2", "--train_batch_size", "3"),
                *("--learning_rate", "1e-2", "--max_data_loader_n_workers", "0", *asked, *words),
            ]
        )
        return tmp_path / name

    return run


def sample(out: Path, step: int = 2, number: int = 1, seed: int = 5) -> np.ndarray:
    with Image.open(out / "sample" / f"mira_{step:08d}_{number:02d}_{seed}.png") as picture:
        return np.asarray(picture) / 255


def pipeline_of(folder: Path, **scheduler: Any) -> Any:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **scheduler)
    return pipeline


def picture_of(
    pipeline: Any, prompt: str = f"{WORD} by a window", negative: str = "blurry", **words: Any
) -> np.ndarray:
    """What the pipeline makes of PROMPT."""
    told = words or {"prompt": prompt, "negative_prompt": negative}
    seeded = torch.Generator().manual_seed(5)
    made = pipeline(
        **told, width=80, height=64, num_inference_steps=4, guidance_scale=5.0, generator=seeded, output_type="np"
    )
    return made.images[0]


def assert_near(first: np.ndarray, second: np.ndarray) -> None:
    assert first.shape == second.shape and first.std() > 0.01
    assert np.abs(first - second).max() < ONE_SHADE


# --- the same as stand-alone inference --------------------------------------------------------------------------------


def test_a_lora_sample_is_that_of_the_saved_file(train: Runs, bases: dict[str, Path]) -> None:
    out = train(
        "train_network.py", "--network_module", "networks.lora", "--sample_at_first", "--sample_every_n_steps", "2"
    )
    pipeline = pipeline_of(bases["sd1"], clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    assert_near(sample(out, step=0), picture_of(pipeline))
    pipeline.load_lora_weights(str(out / "mira.safetensors"))
    assert_near(sample(out), picture_of(pipeline))
    assert np.abs(sample(out) - sample(out, step=0)).max() > 10 * ONE_SHADE
    assert not (out / "sample" / "mira_00000001_01_5.png").exists()


@pytest.mark.slow
def test_a_sample_of_a_whole_model_is_that_of_the_saved_folder(train: Runs) -> None:
    """With clip skip, for which Diffusers is given the states; another sampler by the line's own word."""
    words = ["--clip_skip", "2", "--save_model_as", "diffusers_safetensors", "--sample_sampler", "pndm"]
    out = train("train_db.py", *words, "--sample_every_n_epochs", "2", prompts=f"{PROMPT} --ss k_euler\n{PROMPT}")
    pipeline = pipeline_of(out / "mira")
    ids = load_tokenizer("sd1")(
        ["blurry", f"{WORD} by a window"], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    hidden = pipeline.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    negative, positive = pipeline.text_encoder.final_layer_norm(hidden).detach().split(1)
    states = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    pipeline.scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert_near(sample(out), picture_of(pipeline, **states))
    assert np.abs(sample(out) - sample(out, number=2)).max() > 10 * ONE_SHADE
    assert not (out / "sample" / "mira_00000001_01_5.png").exists()


@pytest.mark.slow  # XTI shows the same
def test_a_new_word_is_known_to_samples(train: Runs, bases: dict[str, Path]) -> None:
    words = ["--token_string", WORD, "--init_word", "grey cat", "--num_vectors_per_token", "2"]
    out = train("train_textual_inversion.py", *words, "--learning_rate", "0.5")
    pipeline = pipeline_of(bases["sd1"], clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    plain = picture_of(pipeline)
    pipeline.load_textual_inversion(str(out / "mira.safetensors"), token=WORD)
    assert_near(sample(out), picture_of(pipeline))
    assert np.abs(sample(out) - plain).max() > 10 * ONE_SHADE


def test_each_layer_of_xti_has_its_own_words_in_samples(train: Runs, bases: dict[str, Path]) -> None:
    """By hand: the states of each layer are made with that layer's vector and handed to its cross-attention."""
    out = train(
        "train_textual_inversion.py",
        *("--token_string", WORD, "--init_word", "cat", "--xti", "--learning_rate", "0.5"),
    )
    vectors = load_file(str(out / "mira.safetensors"))
    pipeline = pipeline_of(bases["sd1"], clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    tokenizer, encoder = load_tokenizer("sd1"), pipeline.text_encoder
    ids = tokenizer(["blurry", "cat by a window"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    table, (cat,) = encoder.get_input_embeddings().weight.data, tokenizer("cat", add_special_tokens=False).input_ids
    for name, path in LAYERS.items():
        table[cat] = vectors[name][0]
        states = encoder(ids).last_hidden_state.detach()
        for block in pipeline.unet.get_submodule(path).transformer_blocks:
            block.attn2.register_forward_pre_hook(
                lambda _, args, words, own=states: (args, {**words, "encoder_hidden_states": own}), with_kwargs=True
            )
    assert_near(sample(out), picture_of(pipeline))


@pytest.mark.slow
def test_a_hypernetwork_takes_part_in_samples(train: Runs, bases: dict[str, Path]) -> None:
    """By a reader of such files that shares no code with ours; Diffusers has none."""
    words = ["--network_module", "networks.hypernetwork", "--network_dropout", "0.3"]
    out = train("train_network.py", *words, "--learning_rate", "0.1")
    pipeline = pipeline_of(bases["sd1"], clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    plain = picture_of(pipeline)
    pipeline.unet.set_attn_processor(Reader(out / "mira.pt"))
    assert_near(sample(out), picture_of(pipeline))
    assert np.abs(sample(out) - plain).max() > 10 * ONE_SHADE


@pytest.mark.slow
def test_a_schedule_that_ends_in_pure_noise_is_sampled_so(train: Runs, bases: dict[str, Path]) -> None:
    words = ["--network_module", "networks.lora", "--zero_terminal_snr", "--v2", "--v_parameterization"]
    out = train("train_network.py", *words, base=bases["sd2_v"])
    rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 1}
    settings = {"clip_sample": False, "set_alpha_to_one": False, "prediction_type": "v_prediction", **rescaled}
    pipeline = pipeline_of(bases["sd2_v"], **settings)
    pipeline.load_lora_weights(str(out / "mira.safetensors"))
    assert_near(sample(out), picture_of(pipeline))


# --- the training does not notice -------------------------------------------------------------------------------------

SINGLE = ["--save_model_as", "safetensors"]
LORA = ["--network_module", "networks.lora", "--network_dropout", "0.3"]


QUIET = ["--optimizer_type", "AdamWScheduleFree", "--max_data_loader_n_workers", "2", "--cache_latents"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train_network.py", [*LORA, *QUIET]),
        pytest.param("train_network.py", [*LORA, "--mixed_precision", "bf16"], marks=pytest.mark.slow),
        pytest.param("train_network.py", [*LORA, "--gradient_checkpointing"], marks=pytest.mark.slow),
        pytest.param("fine_tune.py", ["--train_text_encoder", "--ema", *SINGLE], marks=pytest.mark.slow),
        pytest.param("fine_tune.py", ["--cache_text_encoder_outputs", *SINGLE], marks=pytest.mark.slow),
        pytest.param("train_textual_inversion.py", ["--token_string", WORD], marks=pytest.mark.slow),
        pytest.param("train_textual_inversion.py", ["--token_string", WORD, "--xti"], marks=pytest.mark.slow),
        pytest.param("train_db.py", ["--stop_text_encoder_training", "1", *SINGLE], marks=pytest.mark.slow),
    ],
    ids=[
        *("schedule-free, workers", "half precision", "checkpointing", "whole model", "cached texts", "embedding"),
        *("embedding of layers", "text encoder that stops"),
    ],
)
@pytest.mark.usefixtures("fresh_accelerate")
def test_weights_are_the_same_bytes_without_samples(train: Runs, script: str, words: list[str]) -> None:
    prompts = f"{PROMPT} --ss k_euler_a\na ({WORD}:1.3)"
    sampled = train(script, *words, "--sample_every_n_steps", "1", "--sample_at_first", prompts=prompts)
    plain = train(script, *words, name="plain", prompts=None)
    assert len(list((sampled / "sample").glob("mira_0*.png"))) == 6
    assert not (plain / "sample").exists()
    names = [path.name for path in plain.glob("*.safetensors")]
    assert names
    for name in names:
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (sampled, plain)}
        assert len(digests) == 1, name


@pytest.mark.slow
def test_of_several_processes_one_makes_the_samples(
    bases: dict[str, Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FIXED_TIME, "1700000000")
    assert environment()[FIXED_TIME]
    data = style_words(CAPTION_FILES, WORD, photos, tmp_path / "data")
    (tmp_path / "prompts.txt").write_text(PROMPT, encoding="utf-8")
    moments = ["--sample_every_n_steps", "1", "--sample_prompts", str(tmp_path / "prompts.txt")]
    files = []
    for name, more in (("sampled", moments), ("plain", [])):
        words = ["--pretrained_model_name_or_path", str(bases["sd1"]), *data, "--output_dir", str(tmp_path / name)]
        words += [*LORA, "--max_train_steps", "2", "--output_name", "mira", "--max_data_loader_n_workers", "0", *more]
        run_script_in_processes("train_network.py", words, 2)
        files.append((tmp_path / name / "mira.safetensors").read_bytes())
    assert files[0] == files[1]
    assert len(list((tmp_path / "sampled" / "sample").glob("mira_0*.png"))) == 2


@pytest.mark.slow  # tests/training/test_previews.py shows the same without a run
def test_samples_that_cannot_be_made_stop_nothing(
    train: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the VAE decodes to numbers that are none; it is told once for each prompt, and the run ends well."""
    broken = make_tiny_model("sd1", seed=0)
    broken.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    save_single_file(broken, tmp_path / "broken.safetensors", {})
    out = train("train_network.py", *LORA, base=tmp_path / "broken.safetensors")
    assert (out / "mira.safetensors").is_file() and not (out / "sample").exists()
    told = capsys.readouterr().err
    assert told.count("no sample picture 01 of 'zumira by a window': ") == 1
    assert "not finite" in told and "training goes on" in told


# --- files ------------------------------------------------------------------------------------------------------------


def test_pictures_sort_by_name_and_say_how_they_were_made(train: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = f"# first\n{PROMPT}\n\na house --s 2"
    out = train("train_network.py", *LORA, "--seed", "7", "--clip_skip", "2", prompts=prompts)
    names = sorted(path.name for path in (out / "sample").iterdir())
    assert names == [
        *("mira_00000001_01_5.png", "mira_00000001_02_8.png", "mira_00000002_01_5.png", "mira_00000002_02_8.png"),
        "mira_sheet.png",
    ]
    with Image.open(out / "sample" / names[3]) as picture:
        assert picture.size == (64, 64)  # of the training
        assert picture.info["parameters"] == (
            "a house\nSteps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 8, Size: 64x64, Model: mira, Clip skip: 2,"
            " Training step: 2"
        )
    with Image.open(out / "sample" / "mira_sheet.png") as sheet:
        assert sheet.size == (96 + 80 + 6 + 64 + 6, 34 + 2 * (64 + 6))
    assert re.search(r"samples: 2 prompts, every 1 updates, in \S+sample", capsys.readouterr().err)


def test_prompts_may_wait_until_samples_are_asked_for(train: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    out = train("train_network.py", *LORA, "--sample_sampler", "heun")
    assert (
        'samples: 1 prompt, made when a file "sample now" in the output folder asks for them' in capsys.readouterr().err
    )
    assert (out / "mira.safetensors").is_file() and not (out / "sample").exists()


@pytest.mark.parametrize(
    ("words", "prompts", "told"),
    [
        (["--sample_every_n_steps", "1"], "a cat --w 65\na dog --z 1", ["line 1, --w", "line 2: there is no option"]),
        (["--sample_every_n_steps", "3"], PROMPT, ["the run has 2 updates, so no sample would be made after 3"]),
        (["--sample_every_n_epochs", "3"], PROMPT, ["the run has 2 whole epochs, so no sample would be made after 3"]),
        (["--sample_every_n_steps", "1"], None, ["--sample_every_n_steps: there are no prompts to make samples of"]),
        (["--sample_sampler", "heun"], None, ["--sample_sampler: there are no prompts"]),
        (["--sample_at_first", "--sample_sampler", "heun"], f"{PROMPT} --ss ddim", ["a sampler of its own"]),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    train: Runs, tmp_path: Path, words: list[str], prompts: str | None, told: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        train("train_network.py", *LORA, *words, base=tmp_path / "missing", prompts=prompts)
    assert all(text in str(error.value) for text in told)
    assert not (tmp_path / "out").exists()
