"""finetune/tag_images_by_wd14_tagger.py: tags beside pictures, with the models of all families, without network."""

from __future__ import annotations

import csv
import importlib
import logging
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from library.core.errors import Incomplete, UserError
from tests.captioning.tiny_tagger import (
    DD_TAGS,
    WD_TAGS,
    Shape,
    make_deepdanbooru,
    make_wd_tagger,
    write_lines,
    write_model,
)
from tests.finetune.steps import contents, copy_photos, photo_names
from tests.hub_client_process import answer_of, hub_environment, start_client
from tests.hub_server import Mishap, Repo, served
from tests.training.runs import ROOT, environment

script = importlib.import_module("finetune.tag_images_by_wd14_tagger")
DEFAULT = "SmilingWolf_wd-v1-4-convnext-tagger-v2"
SIDE = 64


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture(autouse=True)
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What was logged, although a script's own handler keeps it from the root logger."""
    logger = logging.getLogger("sd_atelier")
    yield caplog
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """Photographs without texts, in a folder with a Japanese name."""
    return copy_photos(photos, tmp_path / "写真", photo_names(photos))


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    return make_wd_tagger(tmp_path / "tagger", "v3", SIDE)


def tag(folder: Path, tagger: Path, *words: str) -> dict[str, str]:
    """The tags of every picture, by its name."""
    script.main([*words, "--model_dir", str(tagger), str(folder)])
    return texts_in(folder)


def texts_in(folder: Path, ending: str = ".txt") -> dict[str, str]:
    found = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob(f"*{ending}")}
    assert all(text.count("\n") <= 1 for text in found.values())
    return {stem: text.rstrip("\n") for stem, text in found.items()}


def tags_by_hand(picture: Path, tagger: Path, side: int) -> list[str]:
    """As public scripts do it: white square, scaled, BGR, tags from 0.35 on but for the first four, the ratings."""
    image = Image.open(picture).convert("RGB")
    square = Image.new("RGB", (max(image.size),) * 2, (255, 255, 255))
    square.paste(image, ((square.width - image.width) // 2, (square.width - image.height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC), np.float32)[None, ..., ::-1]
    session = onnxruntime.InferenceSession(str(tagger / "model.onnx"), providers=["CPUExecutionProvider"])
    values = session.run(None, {session.get_inputs()[0].name: pixels})[0][0]
    rows = list(csv.DictReader((tagger / "selected_tags.csv").read_text(encoding="utf-8").splitlines()))
    sure = [abs(value - 0.35) > 0.01 for value in values]  # the filters differ a little
    return [
        row["name"] for row, v, s in zip(rows, values, sure, strict=True) if row["category"] != "9" and v >= 0.35 and s
    ]


@pytest.mark.parametrize(("layout", "side"), [("v1-4", 448), ("v3", 448)])
def test_photographs_get_the_tags_that_public_scripts_give_them(
    folder: Path, tmp_path: Path, layout: str, side: int
) -> None:
    tagger = make_wd_tagger(tmp_path / "tagger", layout, side)
    found = tag(folder, tagger)
    assert len(found) == len(photo_names(folder)) >= 12
    assert len(set(found.values())) > 5  # they depend on the picture
    for name in photo_names(folder):
        ours, theirs = found[Path(name).stem].split(", "), tags_by_hand(folder / name, tagger, side)
        assert set(theirs) <= set(ours) and len(ours) - len(theirs) <= 2, name
        assert ours == [tag for tag in WD_TAGS if tag in ours]  # the list's order


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_the_batch_size_changes_nothing(folder: Path, tmp_path: Path, batch: int | None) -> None:
    tagger = make_wd_tagger(tmp_path / "tagger", "nchw", SIDE, batch)
    results = [tag(folder, tagger, "--overwrite", "--batch_size", size) for size in ("1", "2", "3", "8")]
    assert all(result == results[0] for result in results)


def test_options_of_the_texts(folder: Path, tagger: Path) -> None:
    plain = tag(folder, tagger)
    words = ["--remove_underscore", "--use_rating_tags", "--always_first_tags", "solo", "--undesired_tags", "no humans"]
    changed = tag(folder, tagger, *words, "--tag_replacement", "long_hair,hair\\, long", "--caption_extension", ".tags")
    assert changed == plain  # .txt files stay
    for stem, text in texts_in(folder, ".tags").items():
        parts = text.split(", ")
        assert parts[0] == "solo" and parts[1] in WD_TAGS[:4]
        old = [
            name.replace("_", " ") if len(name) > 3 and name != "(o)_(o)" else name for name in plain[stem].split(", ")
        ]
        expected = [name for name in old if name not in ("no humans", "solo")]
        assert ", ".join(parts[2:]) == ", ".join(expected).replace("long hair", "hair, long")


def test_deepdanbooru(folder: Path, tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    model = make_deepdanbooru(tmp_path / "dd", SIDE)
    told.set_level(logging.INFO)
    found = tag(folder, model, "--use_rating_tags_as_last_tag", "--character_tags_first")
    for text in found.values():
        parts = text.split(", ")
        assert parts[-1] in ("rating:safe", "rating:questionable", "rating:explicit")
        assert set(parts) <= set(DD_TAGS) and "solo" in parts
    assert len(set(found.values())) > 5
    assert any(text.startswith(("hatsune_miku,", "saber_(fate),", "kirisame_marisa,")) for text in found.values())
    without = make_deepdanbooru(tmp_path / "dd2", SIDE, characters=False)
    with pytest.raises(UserError, match="--character_tags_first: this tagger has no names of characters"):
        tag(folder, without, "--overwrite", "--character_tags_first")


def test_appending_can_be_repeated(folder: Path, tagger: Path) -> None:
    plain = tag(folder, tagger)
    write_lines(folder / "cat.txt", ["my cat, solo"])
    write_lines(folder / "rocket.txt", [""])
    (folder / "coins.txt").unlink()
    once = tag(folder, tagger, "--append_tags")
    new = [name for name in plain["cat"].split(", ") if name != "solo"]
    assert once == {**plain, "cat": ", ".join(["my cat", "solo", *new])}
    assert tag(folder, tagger, "--append_tags") == once


def test_texts_that_are_there_stay_and_no_model_is_loaded(folder: Path, tagger: Path, tmp_path: Path) -> None:
    found = tag(folder, tagger)
    (tagger / "model.onnx").write_bytes(b"broken")
    before = contents(folder)
    assert tag(folder, tagger) == found
    assert contents(folder) == before
    (folder / "cat.txt").unlink()
    with pytest.raises(UserError, match="no ONNX model"):
        tag(folder, tagger)


def test_frequencies_of_all_texts(folder: Path, tagger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(folder / "cat.txt", ["mine, solo, a\x1b[31mb"])  # kept
    found = tag(folder, tagger, "--frequency_tags")
    printed = [line.rpartition(": ") for line in capsys.readouterr().out.splitlines()]
    counts = Counter(name for text in found.values() for name in text.split(", "))
    assert {name: int(count) for name, _, count in printed} == {
        name.replace("\x1b", "\\x1b"): count for name, count in counts.items()
    }
    assert printed[0][0] == "solo" and [int(count) for _, _, count in printed] == sorted(counts.values(), reverse=True)
    tag(folder, tagger, "--frequency_tags")  # nothing to do, and still told
    assert capsys.readouterr().out.splitlines() == ["".join(parts) for parts in printed]


def test_pictures_that_get_no_tags_are_told_at_the_end(folder: Path, tmp_path: Path) -> None:
    tagger = tmp_path / "tagger"
    make_wd_tagger(tagger, "v3", SIDE)
    shape = replace(Shape("input", "output", SIDE), blind_below=0.1)
    write_model(tagger / "model.onnx", shape, len(WD_TAGS), WD_TAGS.index("solo"))
    Image.new("RGB", (50, 40), (3, 3, 3)).resize((50, 50)).save(folder / "night.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    with pytest.raises(Incomplete) as caught:
        tag(folder, tagger, "--batch_size", "4")
    problems = {Path(problem.where).name: problem.what for problem in caught.value.problems}
    assert "no probabilities (NaN" in problems.pop("night.png")
    assert problems.pop("broken.jpg")
    assert problems == {}
    assert len(texts_in(folder)) == len(photo_names(folder)) - 2
    with pytest.raises(Incomplete, match="no tag that is wanted reaches the threshold"):
        tag(folder, tagger, "--overwrite", "--thresh", "0.999")


def test_everything_is_told_before_a_model_is_opened(tmp_path: Path, tagger: Path) -> None:
    (tagger / "model.onnx").write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        tag(
            tmp_path / "nowhere", tagger, "--tag_replacement", "a", "--use_rating_tags", "--use_rating_tags_as_last_tag"
        )
    places = [problem.where for problem in caught.value.problems]
    assert [place.split(",")[0] for place in places[:2]] == ["--use_rating_tags", "--tag_replacement"]
    assert "nowhere" in places[2] and len(places) == 3


def test_unknown_tags_are_told_before_the_model_is_opened(folder: Path, tagger: Path) -> None:
    (tagger / "model.onnx").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"knows no tag 'lng_hair'\n    -> did you mean long_hair\?"):
        tag(folder, tagger, "--tag_replacement", "lng hair,hair")


def test_a_tagger_of_the_hub_that_is_there_already(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "wd14_tagger_model"
    make_wd_tagger(top / DEFAULT, "v1-4", SIDE)
    make_wd_tagger(top / "owner_other", "v1-4", SIDE, ends_in_sigmoid=False)
    found = tag(folder, top, "--onnx")  # the folder was given, and the usual tagger lies below it
    script.main([str(folder), "--overwrite", "--repo_id", "owner/other", "--model_dir", str(top)])
    assert texts_in(folder) == found  # the same model; its numbers are made probabilities


def test_a_process_of_its_own(folder: Path, tagger: Path, tmp_path: Path) -> None:
    """Two folders, one with a broken picture: counts, the provider, and the exit code."""
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    (second / "bad.png").write_bytes(b"no picture")
    command = [sys.executable, str(ROOT / "finetune" / "tag_images_by_wd14_tagger.py")]
    words = ["--batch_size", "4", "--model_dir", str(tagger), str(folder), "second"]
    result = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8"
    )
    assert result.returncode == 3, result.stderr
    count = len(photo_names(folder))
    assert f"written {2 * count}, kept 0, failed 1" in result.stderr and "bad.png" in result.stderr
    assert "tagging on CPU (CPUExecutionProvider)" in result.stderr and "Traceback" not in result.stderr
    assert texts_in(folder) == texts_in(second)


# Asks for a tagger as often as JSON on standard input says; where it lies, or what is wrong.
CLIENT = """
import json, sys
from library.captioning.tagger_files import bring_tagger, find_place
from library.core.errors import UserError
from library.options.captioning import TaggerOptions
answers = []
for words in json.load(sys.stdin):
    options = TaggerOptions(**words)
    try:
        answers.append(str(bring_tagger(find_place(options, set(words)), options.force_download).model))
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_a_tagger_is_fetched_once(tmp_path: Path, tagger: Path) -> None:
    """From a server that cuts the line; afterwards nobody asks it again, but when that is forced."""
    top = tmp_path / "taggers"
    named = {"model_dir": str(top), "repo_id": "owner/wd-tagger"}
    with served() as hub:
        repo = Repo.of_folder(tagger)
        repo.files |= {"README.md": b"# hi", "model.msgpack": b"another form", "sub/model.onnx": b"no"}
        repo.files |= {"model.onnx_data": b"weights"}
        hub.repos[("model", "owner/wd-tagger")] = repo
        hub.repos[("model", "owner/keras")] = Repo("public", {"saved_model.pb": b"x", "selected_tags.csv": b"x"})
        hub.mishaps["model.onnx"] = [Mishap(cut_after=1000)]
        settings = hub_environment(tmp_path / "home", hub.endpoint)

        def ask(*calls: dict[str, object]) -> list[str]:
            answers: list[str] = answer_of(start_client(CLIENT, list(calls), settings))[0]
            return answers

        place = top / "owner_wd-tagger"
        model = str(place / "model.onnx")
        keras = {**named, "repo_id": "owner/keras"}
        answers = ask(named, keras)
        assert answers[0] == model and "it has no model.onnx" in answers[1]
        names = ("model.onnx", "model.onnx_data", "selected_tags.csv")
        assert contents(place) == {f"{place.name}/{name}": repo.files[name] for name in names}
        asked = len(hub.requests)
        (place / "model.onnx").write_bytes(b"broken")
        assert ask(named) == [model] and len(hub.requests) == asked
        assert ask({**named, "force_download": True}) == [model] and len(hub.requests) > asked
        assert contents(place) == {f"{place.name}/{name}": repo.files[name] for name in names}
