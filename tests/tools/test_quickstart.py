"""quickstart.py: its command lines, what it draws and writes, and (slow) whole runs of every method."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bootstrap
import quickstart
import quickstart_recipes as recipes
from examples.toy_world import applied, lesson, show
from examples.toy_world.drawing import MODEL
from examples.toy_world.novelties import NOVELTIES, picture_of
from examples.toy_world.result_page import Score, losses_of, options_told, page_of, sample_file, smoothed
from examples.toy_world.result_picture import WIDTH, Row, Section, draw_page
from examples.toy_world.world import draw_scene
from library.core.errors import UserError
from library.models.embedding_files import write_embedding
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.save import save_single_file
from library.models.stable_diffusion import StableDiffusion
from library.models.tiny import make_tiny_model
from library.options.parse import OptionValues, parse_options
from library.options.scripts import TRAINING_SCRIPTS
from networks import hypernetwork, lora

METHODS, NEW_THINGS = tuple(recipes.RECIPES), tuple(recipes.THINGS)
FOLDER = Path("output/quick start")
SCORE = Score(before=1, after=22, asked=24, kept_before=24, kept_after=23, kept=24, change=1.5)


def arguments_of(method: str, new_thing: str = "toadstool", folder: Path = FOLDER, steps: int = 20) -> list[str]:
    return recipes.training_arguments(recipes.RECIPES[method], recipes.THINGS[new_thing], folder, steps)


def lesson_in(folder: Path, method: str = "lora", new_thing: str = "toadstool") -> lesson.Lesson:
    """The lesson of a run, as quickstart.py writes it and show.py reads it."""
    told = quickstart.lesson_of(method, new_thing, folder, arguments_of(method, new_thing, folder))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / quickstart.LESSON).write_text(json.dumps(told), encoding="utf-8")
    return lesson.read_lesson(folder)


def parsed(arguments: list[str]) -> OptionValues:
    return parse_options(arguments[0], "", TRAINING_SCRIPTS[arguments[0]].groups, arguments[1:])


# --- command lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_both_command_lines_are_understood(method: str) -> None:
    for new_thing in NEW_THINGS:
        given = parsed(arguments_of(method, new_thing)).given
        assert {"train_data_dir", "output_dir", "output_name", "seed", "max_train_steps"} <= given
    assert parsed(recipes.real_arguments(recipes.RECIPES[method])).given > {"mixed_precision", "enable_bucket"}


@pytest.mark.parametrize("method", METHODS)
def test_each_option_of_the_command_line_is_explained(method: str) -> None:
    arguments = arguments_of(method)
    told = list(options_told(arguments))
    flags = [word for word in arguments if word.startswith("--")]
    assert [flag for flag, _, _ in told] == flags
    assert all(meaning for _, _, meaning in told)
    values = " ".join(value for _, value, _ in told if value)
    assert values == " ".join(word for word in arguments[1:] if not word.startswith("--"))


def test_the_command_can_be_typed_as_shown() -> None:
    arguments = ["train_network.py", "--train_data_dir", "my pictures"]
    assert recipes.format_command("py", arguments, windows=False) == (
        "py train_network.py \\\n    --train_data_dir 'my pictures'"
    )
    in_one_line = 'py train_network.py --train_data_dir "my pictures"'
    assert recipes.format_command("py", arguments, windows=True) == in_one_line


def test_the_recipes_speak_of_what_there_is() -> None:
    assert set(recipes.THINGS) == set(NOVELTIES)
    assert set(METHODS) == set(applied.METHODS)
    assert (bootstrap.ROOT / recipes.MODEL).resolve() == MODEL
    assert (bootstrap.ROOT / quickstart.SHOW).is_file()
    assert (quickstart.LESSON, recipes.PROMPTS) == (lesson.LESSON, lesson.PROMPTS)
    for name, thing in recipes.THINGS.items():
        assert (thing.words, thing.class_word) == (NOVELTIES[name].thing, NOVELTIES[name].class_word)
    for recipe in recipes.RECIPES.values():
        assert (bootstrap.ROOT / recipe.guide).is_file()
        assert (bootstrap.ROOT / recipe.script).is_file()


@pytest.mark.parametrize("words", [("--steps", "0"), ("--method", "sorcery"), ("--new_thing", "dog")])
def test_what_makes_no_sense_is_refused_at_once(words: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *words])
    with pytest.raises(SystemExit) as end:
        quickstart.main()
    assert end.value.code == 2


def test_a_missing_model_is_told_with_its_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    with pytest.raises(bootstrap.BootstrapError, match=r"toy_world\.safetensors is missing\n.*build\.py"):
        quickstart._require_model()


@pytest.mark.skipif(os.name == "nt", reason="signals to a group of processes")
def test_after_an_interruption_the_training_may_save_and_end(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "def save(*_):\n time.sleep(0.5)\n open('saved', 'w').close()\n sys.exit(75)\n"
        "signal.signal(signal.SIGINT, save)\nopen('ready', 'w').close()\ntime.sleep(60)"
    )
    parent = (
        f"import sys; sys.path.insert(0, {str(bootstrap.ROOT / 'tools')!r})\n"
        "from pathlib import Path\nimport bootstrap, os, quickstart\nquickstart.ROOT = Path.cwd()\n"
        f"work = lambda: quickstart._run([sys.executable, '-c', {child!r}], dict(os.environ), 'failed')\n"
        "sys.exit(bootstrap.run_tool(work))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    waited = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < waited:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said and "Traceback" not in said
    assert (tmp_path / "saved").exists()


# --- what is taught ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "word"), [("dreambooth", "sks toadstool"), ("textual_inversion", "toadstool-x")])
def test_pictures_captions_and_prompts_are_those_of_the_lesson(tmp_path: Path, method: str, word: str) -> None:
    taught = lesson_in(tmp_path / "a b", method)
    lesson.prepare(taught, tmp_path / "a b")
    pictures = sorted(taught.pictures.glob("*.png"))
    assert len(pictures) == quickstart.PICTURES
    assert taught.pictures.name == f"10_{word}"
    assert all(word in picture.with_suffix(".txt").read_text() for picture in pictures)
    lines = (tmp_path / "a b" / recipes.PROMPTS).read_text().splitlines()
    assert [word in line for line in lines] == [True, True, False]
    has_class = taught.class_pictures is not None
    assert has_class == (method == "dreambooth")
    if taught.class_pictures is not None:
        captions = [path.read_text() for path in taught.class_pictures.glob("*.txt")]
        assert len(captions) == 3 * quickstart.PICTURES
        assert sum("heart" in caption for caption in captions) >= quickstart.PICTURES
        assert not any(word in caption for caption in captions)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    lesson.prepare(taught, tmp_path / "a b")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}


def test_headings_tell_what_varies_and_nothing_of_the_thing() -> None:
    scene = lesson.SHOWN[0]
    told = {name: replace_thing(name).heading(scene) for name in NEW_THINGS}
    assert told == {
        "toadstool": "meadow, centre, large",
        "crescent": "blue, meadow, centre, large",
        "teal": "circle, meadow, centre, large",
        "bricks": "blue circle, centre, large",
    }


def replace_thing(new_thing: str) -> lesson.Lesson:
    arguments = arguments_of("lora", new_thing)
    told = quickstart.lesson_of("lora", new_thing, FOLDER, arguments)
    return lesson.Lesson(**{**told, "arguments": tuple(arguments), "next": tuple(told["next"])})


def test_a_folder_without_a_lesson_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quickstart"):
        lesson.read_lesson(tmp_path)
    (tmp_path / lesson.LESSON).write_text('{"method": "lora"}')
    with pytest.raises(UserError, match="new_thing"):
        lesson.read_lesson(tmp_path)


# --- how it is shown --------------------------------------------------------------------------------------------------


def box_of(page: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of all pixels of a colour."""
    rows, columns = np.nonzero(np.abs(np.asarray(page.convert("RGB")).astype(int) - colour).max(-1) < 8)
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_the_page_has_its_pictures_in_rows_and_columns() -> None:
    shades = [[(250, 0, 0), (0, 250, 0), (0, 0, 250)], [(250, 0, 250), (250, 250, 0), (0, 250, 250)]]
    flat = [[np.full((64, 64, 3), shade, np.uint8) for shade in row] for row in shades]
    section = Section("Asked for", "a note", [Row("before", "", flat[0]), Row("after", "", flat[1])], ["a", "b", "c"])
    strip = Section("Taught", "", [Row("", "", [np.full((64, 64, 3), (120, 60, 0), np.uint8)] * 12)])
    page = draw_page("title", "lead", [strip, section], "closing")
    assert page.width == WIDTH and page.mode == "P"
    boxes = [[box_of(page, shade) for shade in row] for row in shades]
    for row in boxes:
        assert len({(top, bottom) for _, top, _, bottom in row}) == 1
        assert all(one[2] < other[0] for one, other in pairwise(row))
        assert all(right - left == bottom - top >= 120 for left, top, right, bottom in row)
    for upper, lower in zip(*boxes, strict=True):
        assert (upper[0], upper[2]) == (lower[0], lower[2]) and upper[3] < lower[1]
    left, _, right, bottom = box_of(page, (120, 60, 0))
    assert left > 0 and right < WIDTH - left and bottom < boxes[0][0][1]
    assert boxes[1][2][2] < WIDTH - 20 and boxes[1][2][3] < page.height - 40


def test_words_that_are_too_long_stay_on_the_page() -> None:
    tile = np.zeros((64, 64, 3), np.uint8)
    section = Section("word " * 60, "note " * 60, [Row("label" * 3, "note " * 9, [tile] * 6)], ["heading " * 4] * 6)
    page = np.asarray(draw_page("title " * 12, "lead " * 25, [section], "closing " * 14).convert("RGB"))
    margins = np.concatenate([page[:, :20], page[:, -20:]], axis=1)
    assert (margins == margins[0, 0]).all()


def drawn_for(taught: lesson.Lesson, learned: bool) -> show.Drawn:
    """Pictures as a model would draw them that knows the new thing, or does not."""
    scenes = lesson.judged_scenes()
    draws = [np.random.default_rng(number) for number in range(len(scenes))]
    old = np.stack([draw_scene(scene, 64, 64, draw) for scene, draw in zip(scenes, draws, strict=True)])
    new = np.stack([picture_of(taught.novelty, s, 64, 64, draw) for s, draw in zip(scenes, draws, strict=True)])
    after = new if learned else old
    shown = len(lesson.SHOWN)
    return show.Drawn({0.0: old, 0.5: old[:shown], 0.8: after[:shown], 1.0: after}, {0.0: old, 1.0: old})


@pytest.mark.parametrize("new_thing", NEW_THINGS)
def test_the_judge_tells_the_new_from_the_known(new_thing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lesson, "JUDGED", 8)
    taught = replace_thing(new_thing)
    score = show.judged(taught, drawn_for(taught, learned=True))
    assert (score.before, score.asked) == (0, 8)
    assert score.after >= 7
    assert score.kept_before == score.kept_after >= 7
    assert score.change == 0
    assert show.judged(taught, drawn_for(taught, learned=False)).after == 0


class Page(HTMLParser):
    """What a page refers to, and its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.points = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = {name: value or "" for name, value in attrs}
        self.loaded += [given[name] for name in ("src", "srcset", "data", "poster", "xlink:href") if name in given]
        self.links += [given["href"]] if "href" in given else []
        self.points += len(given.get("points", "").split())


def test_the_report_needs_nothing_beside_it(tmp_path: Path) -> None:
    taught = replace(lesson_in(tmp_path), spoken="a <b>bold</b> toadstool", seconds=61.0)
    rows = [{"step": step, "loss/current": 0.3 - 0.001 * step} for step in range(1, 21)]
    log = tmp_path / f"{recipes.NAME}-log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (0, 5, 20):
        path = sample_file(taught, tmp_path, step, 0)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (step, 0, 0)).save(path)
    drawn = drawn_for(taught, learned=True)
    page = page_of(taught, SCORE, show.picture_of(taught, drawn, SCORE), tmp_path)
    found = Page(page)
    assert not {"script", "link", "iframe", "object"} & set(found.tags) and "<b>bold" not in page
    assert len(found.loaded) == 1 + 3 + quickstart.PICTURES
    assert all(source.startswith("data:image/png;base64,") for source in found.loaded)
    assert all(link.startswith("https://") for link in found.links)
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page
    assert found.points > 10
    assert all(word in page for word in ("22 of 24", "61 s", "--network_dim", "--mixed_precision fp16"))


def test_the_loss_is_read_and_smoothed(tmp_path: Path) -> None:
    assert losses_of(tmp_path / "none.jsonl") == []
    path = tmp_path / "log.jsonl"
    rows = [{"step": step, "loss/current": float(step)} for step in range(1, 31)]
    lines = [{"step": 0, "loss/validation": 9.0}, *rows, {"step": 31, "loss/current": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    losses = losses_of(path)
    assert losses == [(step, float(step)) for step in range(1, 31)]
    assert smoothed(losses)[0] == (3, 2.0) and smoothed(losses)[-1] == (30, 29.0)


# --- trained files at a strength --------------------------------------------------------------------------------------


def weights_of(model: StableDiffusion) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone()
        for part in (model.unet, model.text_encoder)
        for name, value in part.named_parameters()
    }


@torch.no_grad()
def answer(model: StableDiffusion) -> torch.Tensor:
    """What the U-Net says of fixed noise and words."""
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    states = torch.randn((1, 77, model.unet.config["cross_attention_dim"]), generator=torch.Generator().manual_seed(2))
    return model.unet(noise, 500, states).sample


@pytest.mark.parametrize("method", ["lora", "hypernetwork"])
def test_a_network_has_the_strength_that_is_set(method: str, tmp_path: Path) -> None:
    model = make_tiny_model("sd1", seed=0)
    before = answer(model)
    module, file = (lora, "a.safetensors") if method == "lora" else (hypernetwork, "a.pt")
    network = module.create_network(1.0, None, None, None, model.text_encoder, model.unet)
    for number, weight in enumerate(network.parameters()):
        weight.data.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)))
    network.save_weights(tmp_path / file, None, {})
    put = applied.apply(method, tmp_path / file, model, "sks", "heart")
    full = answer(model)
    put.set_strength(0.5)
    half = answer(model)
    put.set_strength(0.0)
    assert torch.equal(answer(model), before)
    assert not torch.equal(full, before) and not torch.equal(half, full) and not torch.equal(half, before)


def test_a_whole_model_is_mixed_with_its_base(tmp_path: Path) -> None:
    save_single_file(make_tiny_model("sd1", seed=1), tmp_path / "trained.safetensors", {})
    model = make_tiny_model("sd1", seed=0)
    base = weights_of(model)
    trained = weights_of(load_stable_diffusion(identify(tmp_path / "trained.safetensors"), "epsilon"))
    put = applied.apply("dreambooth", tmp_path / "trained.safetensors", model, "sks", "heart")
    assert all(torch.equal(value, trained[name]) for name, value in weights_of(model).items())
    put.set_strength(0.5)
    middle = weights_of(model)
    assert all(torch.allclose(middle[name], (base[name] + trained[name]) / 2, atol=1e-6) for name in base)
    put.set_strength(0.0)
    assert all(torch.equal(value, base[name]) for name, value in weights_of(model).items())


def test_a_word_goes_from_its_first_vectors_to_its_last(tmp_path: Path) -> None:
    model = make_tiny_model("sd1", seed=0)
    known = model.text_encoder.embeddings.token_embedding.weight.detach().clone()
    learned = torch.randn((2, known.shape[1]), generator=torch.Generator().manual_seed(1))
    write_embedding(tmp_path / "word.safetensors", learned, torch.float32, {})
    plain, word = "a red heart", "a red toadstool-x"
    put = applied.apply("textual_inversion", tmp_path / "word.safetensors", model, "toadstool-x", "heart")
    new = model.text_encoder.embeddings.token_embedding.new.weight
    assert torch.equal(new, learned)
    states = put.reader.states(model.text_encoder, [plain, word])
    put.set_strength(0.0)
    first = put.reader.states(model.text_encoder, [plain, word])
    (heart,) = applied.CaptionTokenizer("sd1").text_ids("heart")
    assert torch.equal(new, known[heart].repeat(2, 1))
    assert torch.equal(states[0], first[0]) and not torch.equal(states[1], first[1])
    with pytest.raises(UserError, match="no such file"):
        applied.apply("lora", tmp_path / "none.safetensors", model, "sks", "heart")


# --- whole runs -------------------------------------------------------------------------------------------------------


def run_quickstart(output: Path, *words: str) -> tuple[Path, str]:
    """The folder of a run in the environment that is there, and what was said."""
    command = [sys.executable, str(bootstrap.ROOT / "tools/quickstart.py"), "--output", str(output), "--device", "cpu"]
    run = subprocess.run([*command, *words], capture_output=True, text=True, cwd=output.parent)
    assert run.returncode == 0, run.stdout + run.stderr
    (folder,) = output.iterdir()
    return folder, run.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_to_its_picture(method: str, tmp_path: Path) -> None:
    output = tmp_path / "my results"
    mine = output / f"{method}-crescent" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("keep me")
    for _ in range(2 if method == "lora" else 1):  # a second run replaces what the first one wrote, and nothing else
        folder, said = run_quickstart(output, "--method", method, "--new_thing", "crescent", "--steps", "3")
        assert said.count("Traceback") == 0 and f"python {recipes.RECIPES[method].script}" in said.replace("\n", " ")
    with Image.open(folder / show.PICTURE) as picture:
        assert picture.width == WIDTH
    page = (folder / show.PAGE).read_text(encoding="utf-8")
    assert len(Page(page).loaded) == 1 + 3 * 4 + quickstart.PICTURES  # samples after 0, 1, 2 and 3 updates
    assert (folder / f"{recipes.NAME}{recipes.RECIPES[method].ending}").is_file()
    assert mine.read_text() == "keep me"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_default_teaches_a_crescent_within_three_minutes(tmp_path: Path) -> None:
    used = os.times()
    folder, said = run_quickstart(tmp_path / "out")
    seconds = os.times().children_user - used.children_user
    score = Score(**json.loads((folder / show.FIGURES).read_text(encoding="utf-8")))
    told = json.loads((folder / quickstart.LESSON).read_text(encoding="utf-8"))
    print(score, f"{told['seconds']} s of training, {seconds:.0f} s of processor time in all")
    assert score.before <= 1
    assert score.after >= 20  # 24 of 24 when this was written
    assert score.kept_after >= score.kept_before - 4  # 1 fewer
    assert (folder / show.PICTURE).stat().st_size < 400_000
    assert seconds < 180
    assert f"in {score.after} after" in said


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora"])
def test_every_other_method_teaches_its_thing_and_spoils_nothing(method: str, tmp_path: Path) -> None:
    folder, _ = run_quickstart(tmp_path / "out", "--method", method)
    score = Score(**json.loads((folder / show.FIGURES).read_text(encoding="utf-8")))
    print(method, score)
    assert score.before <= 1 and score.after >= 14  # 19 to 24 of 24 when this was written
    assert score.kept_after >= score.kept_before - 4  # none fewer
