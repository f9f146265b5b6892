"""build.py from nothing: what it refuses before it starts, the same bytes in every way, the model that is shipped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import safe_open

from examples.toy_world import build, train_text_encoder, train_unet, train_vae
from examples.toy_world.drawing import MODEL, Way, draw, load_model
from examples.toy_world.recipe import Build
from examples.toy_world.stages import check_checkpoints
from library.core.errors import Problems
from library.core.sizes import Size
from library.diffusion.schedule import scaled_linear_alphas_cumprod
from library.models.identify import identify
from library.models.save import save_diffusers, single_file_tensors
from library.models.tiny import make_tiny_model
from library.preview.generate import initial_noise, noise_generator
from library.preview.samplers import NoiseSchedule, make_sampler
from library.text.tokenizer import CaptionTokenizer, load_tokenizer, tokenizer_files

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 20_000_000  # bytes, as the issue allows
TINY = 5000  # divides every stage down to one step
STAGES = (*train_vae.STAGES[:2], train_text_encoder.STAGE, train_unet.STAGE, train_vae.DECODER_STAGE)  # as they run

# the VAE's first two blocks are equally wide, so nothing is there to fit their widths to one another
NO_SHORTCUTS = {
    f"first_stage_model.{block}.block.0.nin_shortcut.{kind}"
    for block in ("encoder.down.1", "decoder.up.0")
    for kind in ("weight", "bias")
}

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """build.py in this process, with one thread; its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["build.py", "--threads", "1", *map(str, words)])
        return build.run_script(build.main)

    return run


def command(work: Path, out: Path, divisor: int = TINY) -> list[str]:
    words = ["--work", str(work), "--out", str(out), "--steps_divisor", str(divisor), "--threads", "1"]
    return [sys.executable, str(ROOT / "examples" / "toy_world" / "build.py"), *words]


# --- from nothing -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_nothing(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All stages in one step each; a second run only reads them, and makes the same file."""
    work, out = tmp_path / "work", tmp_path / "new" / "toy.safetensors"
    state = torch.get_rng_state()
    assert run("--work", work, "--out", out, "--steps_divisor", TINY) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert_is_small_sd1(out)
    said = capsys.readouterr().out
    assert all(f"{stage.name}: step 1/1, loss" in said for stage in STAGES)
    first, checkpoints = out.read_bytes(), {path.name: path.stat().st_mtime_ns for path in work.iterdir()}
    assert set(checkpoints) == {f"{stage.name}.pt" for stage in STAGES}
    out.unlink()
    assert run("--work", work, "--out", out, "--steps_divisor", TINY) == 0
    said = capsys.readouterr().out
    assert all(f"{stage.name}: 1 of 1 steps are there" in said for stage in STAGES)
    assert "drawing" not in said  # pictures are made for steps alone
    assert out.read_bytes() == first
    assert {path.name: path.stat().st_mtime_ns for path in work.iterdir()} == checkpoints


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_and_one_that_is_killed_between_stages_make_the_same_bytes(tmp_path: Path) -> None:
    """Once from nothing in each of two processes; then from the checkpoints of the first stages alone."""
    outs = [tmp_path / f"{number}.safetensors" for number in range(2)]
    works = [tmp_path / str(number) for number in range(2)]
    for work, out in zip(works, outs, strict=True):
        done = subprocess.run(command(work, out, 1500), cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    assert outs[0].read_bytes() == outs[1].read_bytes()
    for kept in range(len(STAGES)):
        work, out = tmp_path / f"kept {kept}", tmp_path / f"kept {kept}.safetensors"
        work.mkdir()
        for stage in STAGES[:kept]:
            shutil.copy(works[0] / f"{stage.name}.pt", work)
        done = subprocess.run(command(work, out, 1500), cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        assert out.read_bytes() == outs[0].read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(os.name == "nt", reason="kills as POSIX does")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Killed whenever a stage has just begun or ended, and gone on with, it makes the bytes of one clean run."""
    clean, out = tmp_path / "clean.safetensors", tmp_path / "killed.safetensors"
    done = subprocess.run(command(tmp_path / "clean", clean, 1500), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "killed"
    for stage in STAGES:
        process = subprocess.Popen(command(work, out, 1500), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (work / f"{stage.name}.pt").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    done = subprocess.run(command(work, out, 1500), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == clean.read_bytes()


# --- what is told before it starts ------------------------------------------------------------------------------------


def test_every_problem_at_once(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no folder")
    words = ("--out", tmp_path / "toy.ckpt", "--work", tmp_path / "file" / "work", "--steps_divisor", "0")
    assert run(*words, "--threads", "0") == 1
    told = capsys.readouterr().err
    assert told.startswith("4 problems to mend")
    for text in ("--threads: must be 1 or more, got 0", "--steps_divisor: must be 1 or more, got 0",
                 "toy.ckpt has another ending", "file/work cannot be written to"):  # fmt: skip
        assert text.replace("/", os.sep) in told
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_no_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "toy.safetensors").mkdir()
    assert run("--out", tmp_path / "toy.safetensors", "--work", tmp_path) == 1
    assert "toy.safetensors is a folder" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the rights of folders do not bind this user")
def test_folders_without_rights(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert run("--out", closed / "toy.safetensors", "--work", closed / "work") == 1
    told = capsys.readouterr().err
    assert "--out" in told and "--work" in told and "Permission denied" in told


def test_the_checkpoints_of_another_run_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All at once and before anything is computed."""
    for stage in (train_vae.STAGE, train_unet.STAGE):
        torch.save(
            {"made_by": {**stage.asked(Build(1, tmp_path)), "first weights": "x"}},
            tmp_path / f"{stage.name}.pt",
        )
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert run("--work", tmp_path, "--out", tmp_path / "toy.safetensors") == 1
    told = capsys.readouterr()
    assert told.err.startswith("2 problems to mend")
    assert told.err.count("--seed 1 instead of 0") == 2
    assert not told.out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_stages_know_their_code() -> None:
    """Every module of ours that a stage's own modules import, but for the house around them, is in its digest."""
    known = {"build", "stages", "recipe", "__init__"}
    owners = {train_text_encoder.STAGE: "train_text_encoder", train_unet.STAGE: "train_unet"}
    for stage in STAGES:
        own = owners.get(stage, "train_vae")
        text = (ROOT / "examples" / "toy_world" / f"{own}.py").read_text(encoding="utf-8")
        imported = {
            line.split()[1].rsplit(".", 1)[1] for line in text.splitlines() if line.startswith("from examples.")
        }
        # known by the weights that they made; in the digest as well where more than those is taken
        earlier = {name for name in imported if name.startswith("train_")}
        assert imported - known - earlier | {own} == set(stage.code) - earlier
    assert "train_text_encoder" in train_unet.STAGE.code  # whose strewn words it takes


@pytest.mark.parametrize(("words", "work", "out"), [
    ((), "output/toy_world", build._HERE / "toy_world.safetensors"),
    (("--steps_divisor", "9"), "output/toy_world_9", "output/toy_world_9/toy_world.safetensors"),
    (("--steps_divisor", "9", "--work", "here"), "here", "here/toy_world.safetensors"),
    (("--steps_divisor", "9", "--out", "a.safetensors"), "output/toy_world_9", "a.safetensors"),
])  # fmt: skip
def test_a_shortened_run_replaces_nothing_that_draws(words: tuple[str, ...], work: str, out: str | Path) -> None:
    arguments = build._parser().parse_args(words)
    build._settle_places(arguments)
    assert (arguments.work, arguments.out) == (Path(work), Path(out))


# --- what is shipped --------------------------------------------------------------------------------------------------


def assert_is_small_sd1(path: Path) -> None:
    """Layout, number format, metadata and size of the model's file."""
    assert path.stat().st_size <= LARGEST
    found = identify(path)
    assert (found.family, found.prediction_type) == ("sd1", "epsilon")
    with safe_open(path, "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
        formats = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in names}
    assert metadata["format"] == "pt"
    assert metadata["modelspec.title"] == build.TITLE
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    expected = single_file_tensors(make_tiny_model("sd1", seed=0))
    assert set(formats) == set(expected) - NO_SHORTCUTS
    for name, (number_format, shape) in formats.items():
        assert len(shape) == expected[name].dim(), name
        assert number_format == ("F16" if expected[name].is_floating_point() else "I64"), name
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert formats[words][1][0] == len(load_tokenizer("sd1")) == 49408


def test_the_shipped_model_is_a_small_sd1() -> None:
    assert_is_small_sd1(MODEL)


def test_its_tokenizer_is_the_real_one() -> None:
    """The ids that OpenAI's CLIP and every public tool give."""
    ids = CaptionTokenizer("sd1")(["a photo of a cat"])[0][0, 0]
    assert ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_the_shipped_checkpoint_of_another_recipe_is_none(tmp_path: Path) -> None:
    problems = Problems()
    shutil.copy(MODEL, tmp_path / "vae.pt")
    check_checkpoints(STAGES, Build(0, tmp_path), problems)
    assert len(problems) == 1


@pytest.mark.slow
def test_diffusers_draws_what_we_draw(tmp_path: Path) -> None:
    """The file alone, with a folder of the same layout for the configurations that a file lacks."""
    model = load_model()
    save_diffusers(model, tmp_path / "config", tokenizer_files("sd1"))
    pipeline = StableDiffusionPipeline.from_single_file(
        str(MODEL), config=str(tmp_path / "config"), local_files_only=True, torch_dtype=torch.float32
    )
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    for part in ("unet", "vae", "text_encoder"):
        own, theirs = getattr(model, part).state_dict(), getattr(pipeline, part).state_dict()
        assert set(own) == set(theirs)
        assert all(torch.equal(theirs[name], own[name]) for name in own), part
    pipeline.set_progress_bar_config(disable=True)
    schedule = NoiseSchedule(tuple(scaled_linear_alphas_cumprod().tolist()), "epsilon")
    pipeline.scheduler = make_sampler("ddim", schedule)  # the times of which are its own matter
    prompt, way = "a large red circle in the centre, paper background", Way(steps=10)
    theirs = pipeline(
        prompt,
        width=64,
        height=64,
        num_inference_steps=way.steps,
        guidance_scale=way.scale,
        latents=initial_noise(noise_generator(3), Size(64, 64)),
        output_type="np",
    ).images[0]
    assert theirs.std() > 0.05
    assert abs(theirs * 255 - draw(model, [prompt], [3], way)[0]).max() < 2
