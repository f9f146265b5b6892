"""Options that must reach the loop of every script: each test fails when its option is ignored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn

import train_network
from library.core.errors import UserError
from library.optim.optimizers import eval_mode
from library.options.caching import CachingOptions
from library.options.memory import MemoryOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions
from library.options.parse import OptionValues, parse_options
from library.options.scripts import SCRIPTS
from library.options.text import TextOptions
from library.options.validation import ValidationOptions
from library.training.assemble import Learner, build_trainer, load_learner, make_planner
from library.training.checks.preflight import (
    check_embedding_run,
    check_fine_tuning_run,
    check_full_model_run,
    check_network_run,
)
from library.training.methods import make_caption_encoder
from library.training.progress import plan_run
from library.training.reg_images import needs_reg_images
from library.training.run import Run
from library.training.runtime import start_runtime
from library.training.trainer import Trainer
from tests.methods.test_layered_embedding import predict, read_by_hand
from tests.training.runs import assert_same, largest_difference
from tests.training.styles import CAPTION_FILES, CLASS_TOKENS, style_words

WORD = "zumira"
CHECKS: dict[str, Callable[[OptionValues], Run]] = {
    "train_network.py": check_network_run,
    "train_db.py": check_full_model_run,
    "fine_tune.py": check_fine_tuning_run,
    "train_textual_inversion.py": check_embedding_run,
}
NETWORK, DREAMBOOTH, FINE_TUNING, INVERSION = CHECKS
OWN = {INVERSION: ("--token_string", WORD)}


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, WORD, photos, tmp_path / "data")


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision of the first run of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def checked(script: str, model: Path, data: Sequence[str], out: Path, *words: str) -> Run:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), *OWN.get(script, ())]
    base += ["--max_data_loader_n_workers", "0", "--max_train_steps", "2", *words]
    return CHECKS[script](parse_options(script, "", SCRIPTS[script].groups, base))


def built(run: Run) -> tuple[Learner, Trainer]:
    accelerator = start_runtime(run.options.training.mixed_precision)
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, 1)
    plan = plan_run(planner, run.options.training.max_train_steps, None)
    return learner, build_trainer(run, accelerator, learner, planner, plan)


def trained(trainer: Trainer) -> list[nn.Parameter]:
    return [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]


def test_the_large_groups_of_options_are_those_of_the_run(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    objective = ObjectiveOptions(
        noise_offset=0.1,
        noise_offset_random_strength=True,
        adaptive_noise_scale=0.02,
        multires_noise_iterations=4,
        multires_noise_discount=0.5,
        ip_noise_gamma=0.2,
        ip_noise_gamma_random_strength=True,
        min_snr_gamma=3.0,
        loss_type="smooth_l1",
        huber_schedule="exponential",
        huber_c=0.2,
        huber_scale=2.0,
        min_timestep=20,
        max_timestep=900,
    )
    optimizer = OptimizerOptions(
        optimizer_type="lion",
        optimizer_args=("weight_decay=0.1",),
        learning_rate=3e-4,
        lr_scheduler="polynomial",
        lr_scheduler_args=("lr_end=0",),
        lr_warmup_steps=0.5,
        lr_scheduler_power=2.0,
    )
    memory = MemoryOptions(mem_eff_attn=True, lowram=True, torch_compile=True, dynamo_backend="eager")
    validation = ValidationOptions(1, 2, 3, True, 0.9)
    text, caching = TextOptions(no_token_padding=True), CachingOptions(cache_latents=True, vae_batch_size=2)
    asked: list[Any] = [objective, optimizer, memory, validation, text, caching]
    words = ["--validation_split", "0.34"]
    for group in asked:
        usual = type(group)()
        for name, value in vars(group).items():
            if value != getattr(usual, name):
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{name}", *(() if value is True else map(str, values))]
    for script in CHECKS:
        found = checked(script, tiny_models["sd1"], data, tmp_path / "out", *words).options
        kept = [found.objective, found.optimizer, found.memory, found.validation, found.text, found.caching]
        assert kept == asked, script


def test_every_script_fills_folders_of_class_images(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    data = style_words(CLASS_TOKENS, WORD, photos, tmp_path / "data", with_reg=True)  # two of them are there
    for script in CHECKS:
        run = checked(script, tiny_models["sd1"], data, tmp_path / "out", "--generate_reg_images", "5")
        images = needs_reg_images(run)
        assert [image.prompt for image in images] == ["ground"] * 3, script
        assert {image.size for image in images} <= set(run.placements.buckets), script


@pytest.mark.parametrize("script", [INVERSION, pytest.param(NETWORK, marks=pytest.mark.slow)])
def test_checkpointing_computes_the_blocks_again(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, script: str
) -> None:
    """In both models: gradients run through the text encoder, too."""
    counts = []
    for words in ([], ["--gradient_checkpointing"]):
        run = checked(script, tiny_models["sd1"], data, tmp_path / str(len(words)), *words, "--max_train_steps", "1")
        learner, trainer = built(run)
        calls = dict.fromkeys(("unet", "text_encoder"), 0)

        def count(part: str, calls: dict[str, int] = calls) -> Callable[..., None]:
            def hook(*_: object) -> None:
                calls[part] += 1

            return hook

        unet, text_encoder = learner.models.unet, learner.models.text_encoder
        unet.get_submodule("down_blocks.1.resnets.0.conv1").register_forward_pre_hook(count("unet"))
        text_encoder.get_submodule("encoder.layers.0.mlp").register_forward_pre_hook(count("text_encoder"))
        trainer.run()
        trainer.log.close()
        counts.append(calls)
    assert counts == [{"unet": 1, "text_encoder": 1}, {"unet": 2, "text_encoder": 2}]


def test_the_fused_backward_pass_never_has_all_gradients(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    most = []
    for words in ([], ["--fused_backward_pass"]):
        run = checked(DREAMBOOTH, tiny_models["sd1"], data, tmp_path / str(len(words)), *words, "--max_grad_norm", "0",
                      "--max_train_steps", "1")  # fmt: skip
        _, trainer = built(run)
        parameters, alive = trained(trainer), [0]

        def note(_: object, parameters: list[nn.Parameter] = parameters, alive: list[int] = alive) -> None:
            alive.append(sum(parameter.grad is not None for parameter in parameters))

        for parameter in parameters[::20]:
            parameter.register_post_accumulate_grad_hook(note)
        trainer.run()
        trainer.log.close()
        most.append(max(alive) / len(parameters))
    assert most[0] > 0.9 and most[1] < 0.1


@pytest.mark.parametrize("script", [DREAMBOOTH, pytest.param(NETWORK, marks=pytest.mark.slow)])
def test_full_bf16_holds_what_learns_in_bf16_and_loses_no_small_update(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, script: str
) -> None:
    """A rate of 1e-5 is a sixth of a step of bf16 at 0.01: rounded to the nearest, none of these weights would move."""
    words = ["--mixed_precision", "bf16", "--full_bf16", "--learning_rate", "1e-5", "--max_train_steps", "2"]
    learner, trainer = built(checked(script, tiny_models["sd1"], data, tmp_path / "out", *words))
    parameters = trained(trainer)
    assert {parameter.dtype for parameter in parameters} == {torch.bfloat16}
    before = [parameter.detach().clone() for parameter in parameters]
    trainer.run()
    trainer.log.close()
    large = [(old != new.detach())[old.abs() > 0.01] for old, new in zip(before, parameters, strict=True)]
    moved = float(torch.cat(large).float().mean())
    assert 0.002 < moved < 0.4
    assert {parameter.dtype for parameter in learner.models.vae.parameters()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    _, trainer = built(checked(NETWORK, tiny_models["sd1"], data, tmp_path / "out", "--learning_rate", "1e30",
                               "--max_train_steps", "9"))  # fmt: skip
    with pytest.raises(UserError, match=r"(loss is|gradients are) no longer finite at update \d; its pictures: \w+\."):
        trainer.run()
    trainer.log.close()
    weights = trained(trainer)
    assert all(bool(weight.isfinite().all()) for weight in weights)
    assert max(float(weight.detach().abs().max()) for weight in weights) > 1e20, "the updates before it did happen"


def test_weights_in_captions_are_refused_for_vectors_of_each_layer_too(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="weights in captions are not available for Textual Inversion"):
        checked(INVERSION, tiny_models["sd1"], data, tmp_path / "out", "--xti", "--weighted_captions")


@pytest.mark.parametrize("other", ["--mem_eff_attn", "--xformers", "--diffusers_xformers"])
def test_the_usual_attention_excludes_the_others(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, other: str
) -> None:
    with pytest.raises(UserError, match="attention is computed in one way"):
        checked(NETWORK, tiny_models["sd1"], data, tmp_path / "out", "--sdpa", other)


@torch.no_grad()
def test_another_reader_gets_from_a_trained_file_what_the_training_saw(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    """Vectors for each layer after a real training; the model is the one that the reader makes for itself."""
    words = ["--xti", "--num_vectors_per_token", "2", "--learning_rate", "0.5", "--max_train_steps", "1"]
    run = checked(INVERSION, tiny_models["sd1"], data, tmp_path / "out", *words)
    learner, trainer = built(run)
    with torch.enable_grad():
        trainer.run()
    trainer.log.close()
    learner.method.save(run.files.result, torch.float32, {})
    for part in (learner.models.unet, learner.models.text_encoder):
        nn.Module.to(part, "cpu", torch.float64)  # in which a single layer's share is far above rounding
    captions = [f"a photo of {WORD} on a sofa", "a plain cat"]
    ids, weights = learner.tokenizer(captions)
    ours = predict(learner.models, make_caption_encoder(run)(learner.models.text_encoder, ids, weights))
    vectors = load_file(str(run.files.result))
    torch.testing.assert_close(ours, read_by_hand("sd1", vectors, captions, TextOptions()), atol=1e-10, rtol=0)
    exchanged = {**vectors, "IN01": vectors["OUT11"], "OUT11": vectors["IN01"]}
    assert float((ours - read_by_hand("sd1", exchanged, captions, TextOptions())).abs().max()) > 1e-8


@pytest.mark.slow
def test_of_a_schedule_free_optimizer_the_average_is_saved(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    words = ["--optimizer_type", "AdamWScheduleFree", "--learning_rate", "1e-2", "--max_train_steps", "4"]
    base = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, "--max_data_loader_n_workers", "0"]
    train_network.main([*base, "--output_dir", str(tmp_path / "saved"), *words])
    saved = load_file(str(tmp_path / "saved" / "last.safetensors"))
    learner, trainer = built(checked(NETWORK, tiny_models["sd1"], data, tmp_path / "out", *words))
    trainer.run()
    trainer.log.close()
    files = {"at work": tmp_path / "a.safetensors", "average": tmp_path / "b.safetensors"}
    learner.method.save(files["at work"], torch.float32, {})
    eval_mode(trainer.optimizer)
    learner.method.save(files["average"], torch.float32, {})
    assert_same(saved, load_file(str(files["average"])))
    assert largest_difference(saved, load_file(str(files["at work"]))) > 1e-3
