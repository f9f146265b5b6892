"""train_textual_inversion.py: a new word learns beside a frozen model, and other programs load it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import train_textual_inversion
from library.core.errors import UserError
from library.models.extras import ModelExtras
from library.models.forms import SaveTarget
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import Precisions, save_model
from library.models.stable_diffusion import StableDiffusion
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import tokenizer_files
from library.training.assemble import Learner, build_trainer, load_learner, make_planner
from library.training.checks.preflight import check_embedding_run
from library.training.progress import plan_run
from library.training.run import EmbeddingRun
from tests.training.runs import assert_same
from tests.training.styles import CAPTION_FILES, CASES, PICTURES, SIZES, style_words

WORD = "zumira"


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, WORD, photos, tmp_path / "data")


def words_of(model: Path, data: list[str], out: Path, *words: str) -> list[str]:
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), "--token_string", WORD]
    return [*base, "--max_data_loader_n_workers", "0", "--max_train_steps", "2", *words]


def train(model: Path, data: list[str], out: Path, *words: str) -> Tensor:
    train_textual_inversion.main(words_of(model, data, out, *words))
    return load_file(str(out / "last.safetensors"))["emb_params"]


def checked(model: Path, data: list[str], out: Path, *words: str) -> EmbeddingRun:
    script = SCRIPTS["train_textual_inversion.py"]
    given = words_of(model, data, out, *words)
    return check_embedding_run(parse_options("train_textual_inversion.py", "", script.groups, given))


def trained(run: EmbeddingRun) -> Learner:
    """The models of a run after its training."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, 1)
    plan = plan_run(planner, run.options.training.max_train_steps, None)
    build_trainer(run, accelerator, learner, planner, plan).run()
    return learner


@pytest.mark.parametrize(("style", "with_reg"), CASES)
def test_the_word_learns_from_every_style(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, style: str, with_reg: bool
) -> None:
    data = style_words(style, WORD, photos, tmp_path, with_reg)
    words = ["--num_vectors_per_token", "2", "--init_word", "grey cat", "--train_batch_size", "2"]
    words += ["--max_train_steps", "6"]  # with regularisation one epoch at most: all pictures have their turn
    vectors = train(tiny_models["sd1"], data, tmp_path / "out", *words)
    start = load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon").text_encoder.get_input_embeddings().weight
    assert vectors.shape == (2, 32) and vectors.dtype == torch.float32
    difference = (vectors - start[[5046, 2368]]).abs()  # grey, cat
    # AdamW moves each number by about the rate at first, unless it has no gradient
    assert 0 < float(difference.max()) < 6 * 5.5e-4 and float((difference > 1e-4).float().mean()) > 0.9


@pytest.mark.parametrize("kind", ["sd1", "sd2_v"])
def test_nothing_but_the_new_vectors_moves(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, kind: str
) -> None:
    words = ["--num_vectors_per_token", "3", "--learning_rate", "0.1", "--optimizer_args", "weight_decay=0.5"]
    words += ["--v_parameterization"] if kind == "sd2_v" else []
    run = checked(tiny_models[kind], data, tmp_path, *words)
    learner = trained(run)
    before = load_stable_diffusion(run.base.identity, run.base.prediction_type)
    for name in ("unet", "text_encoder", "vae"):
        old, new = getattr(before, name).state_dict(), getattr(learner.models, name).cpu().state_dict()
        new = {key.replace("token_embedding.table.", "token_embedding."): value for key, value in new.items()}
        added = set(new) - set(old)
        assert added == ({"embeddings.token_embedding.new.weight"} if name == "text_encoder" else set())
        assert all(torch.equal(new[key], old[key]) for key in old), name
    (group,) = learner.groups
    assert [p.shape[0] for p in group["params"]] == [3]


def pipeline_of(model: StableDiffusion, folder: Path) -> StableDiffusionPipeline:
    target = SaveTarget(folder, "diffusers_safetensors")
    save_model(model, target, Precisions(), ModelExtras(), {}, tokenizer_files(model.family))
    return StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)


@pytest.mark.parametrize(("kind", "form", "count"), [("sd1", "safetensors", 3), ("sd1", "pt", 1), ("sd2", "pt", 2)])
def test_diffusers_reads_prompts_with_the_word_as_the_training_did(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, kind: str, form: str, count: int
) -> None:
    words = ["--num_vectors_per_token", str(count), "--save_model_as", form, "--learning_rate", "0.5"]
    words += ["--v2"] if kind == "sd2" else []
    run = checked(tiny_models[kind], data, tmp_path, *words)
    learner = trained(run)
    learner.method.save(run.files.result, torch.float32, {})
    assert run.files.result.name == f"last.{form}"

    pipe = pipeline_of(load_stable_diffusion(run.base.identity, "epsilon"), tmp_path / "pipe")
    before = pipe.encode_prompt(f"a photo of {WORD} on a sofa", "cpu", 1, False)[0]
    pipe.load_textual_inversion(str(run.files.result), token=WORD)
    for prompt in (f"a photo of {WORD} on a sofa", f"{WORD}, {WORD}'s hat", "a plain cat"):
        theirs = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
        ids, _ = learner.tokenizer([prompt])
        with torch.no_grad():
            ours = CaptionEncoder(run.options.text)(learner.models.text_encoder.cpu(), ids, None)
        assert torch.allclose(ours, theirs, atol=1e-5), prompt
    assert not torch.allclose(before, pipe.encode_prompt(f"a photo of {WORD} on a sofa", "cpu", 1, False)[0], atol=0.1)


def test_the_file_tells_of_its_making(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    words = ["--output_name", "mira", "--logging_dir", str(tmp_path / "logs"), "--num_vectors_per_token", "2"]
    train_textual_inversion.main(words_of(tiny_models["sd1"], data, tmp_path, *words))
    with safe_open(str(tmp_path / "mira.safetensors"), "pt") as file:
        told = file.metadata()
        assert list(file.keys()) == ["emb_params"]
    assert told["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert (told["modelspec.title"], told["ss_steps"], told["ss_learning_rate"]) == ("mira", "2", "0.0005")
    assert told["ss_sd_model_name"] == "sd1.safetensors"
    assert len(list((tmp_path / "logs").glob("*/textual_inversion/events*"))) == 1
    log = [json.loads(line) for line in (tmp_path / "mira-log.jsonl").read_text().splitlines()]
    assert any("lr/embedding" in row for row in log)


def test_training_goes_on_from_a_file(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    model = tiny_models["sd1"]
    first = train(model, data, tmp_path / "a", "--num_vectors_per_token", "3", "--learning_rate", "0.1")
    weights = ["--weights", str(tmp_path / "a" / "last.safetensors")]
    run = checked(model, data, tmp_path / "b", *weights)
    assert run.word.alias.count == 3
    second = train(model, data, tmp_path / "b", *weights, "--learning_rate", "1e-7")
    assert 0 < float((second - first).abs().max()) < 1e-6


def test_precision_of_the_file(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    vectors = train(tiny_models["sd1"], data, tmp_path, "--save_precision", "fp16", "--save_model_as", "safetensors")
    assert vectors.dtype == torch.float16


def test_loader_processes_caches_and_checkpointing_change_nothing(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    model = tiny_models["sd1"]
    plain = {"emb_params": train(model, data, tmp_path / "a", "--use_style_template")}
    workers = train(model, data, tmp_path / "b", "--use_style_template", "--max_data_loader_n_workers", "2")
    assert_same({"emb_params": workers}, plain)
    cached = train(model, data, tmp_path / "c", "--use_style_template", "--cache_latents")
    assert_same({"emb_params": cached}, plain)
    again = train(model, data, tmp_path / "d", "--use_style_template", "--gradient_checkpointing")
    assert torch.allclose(again, plain["emb_params"], atol=1e-5)


def test_vectors_start_unrounded_and_in_float32_beside_models_of_half_precision(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    run = checked(tiny_models["sd1"], data, tmp_path, "--mixed_precision", "bf16", "--init_word", "cat")
    learner = load_learner(run, torch.device("cpu"))
    exact = load_stable_diffusion(run.base.identity, "epsilon").text_encoder.get_input_embeddings().weight[2368]
    assert learner.models.unet.dtype == learner.models.text_encoder.dtype == torch.bfloat16
    (vectors,) = learner.groups[0]["params"]
    assert vectors.dtype == torch.float32 and torch.equal(vectors[0], exact)
    assert not torch.equal(exact, exact.bfloat16().float())


def test_the_word_comes_to_mean_what_it_is_trained_on(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    """On noise that stays the same the loss falls."""
    run = checked(tiny_models["sd1"], data, tmp_path, "--num_vectors_per_token", "4", "--learning_rate", "0.05")
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    learner = load_learner(run, accelerator.device)
    planner = make_planner(run, 1)
    trainer = build_trainer(run, accelerator, learner, planner, plan_run(planner, 1, None))
    trainer.batches = [batch for batch in trainer.batches for _ in range(30)]
    losses: list[float] = []
    trainer.log.record = lambda *numbers: losses.append(float(numbers[2])) or False  # type: ignore[method-assign]
    trainer.run()
    assert len(losses) == 30 and losses[-1] < losses[0] - 1e-3 and min(losses) == losses[-1]


def test_templates_need_no_captions(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in PICTURES:
        shutil.copy(photos / name, folder)
    data = [*SIZES, "--train_data_dir", str(folder)]
    with pytest.raises(UserError, match="have neither a caption file"):
        train(tiny_models["sd1"], data, tmp_path / "none")
    one = train(tiny_models["sd1"], data, tmp_path / "object", "--use_object_template")
    other = train(tiny_models["sd1"], data, tmp_path / "style", "--use_style_template")
    assert not torch.equal(one, other)


def test_a_word_in_few_captions_is_waited_for(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    """Three updates without any gradient stop a run whose weights learn; here the word has its turn later."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for picture in sorted(photos.glob("*.jpg")):
        shutil.copy(picture, folder)
    (folder / "cat.txt").write_text(WORD, encoding="utf-8")
    words = [*SIZES, "--train_data_dir", str(folder), "--allow_missing_captions", "--init_word", "cat"]
    words += ["--optimizer_args", "weight_decay=0"]
    start = load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon").text_encoder.get_input_embeddings().weight
    with pytest.raises(UserError, match="embedding should train but received no gradient in the first 3 updates"):
        train(tiny_models["sd1"], words, tmp_path / "short", "--max_train_steps", "3")
    whole_epoch = train(
        tiny_models["sd1"], words, tmp_path / "long", "--max_train_steps", str(len(list(folder.glob("*.jpg"))))
    )
    assert not torch.equal(whole_epoch[0], start[2368])
