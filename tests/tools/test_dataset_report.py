"""tools/dataset_report.py: what it says is true, complete, and told by the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dataset_report
from library.core.errors import UserError
from library.text.tokenizer import CaptionTokenizer
from tests.data.data_helpers import save_picture
from tests.data.pictures.odd_pictures import Verdict, write_odd_folder
from tests.training.runs import ROOT, environment

SIZES = ["--resolution", "64", "--enable_bucket", "--min_bucket_reso", "32", "--bucket_reso_steps", "16"]


def run_tool(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own, started from another folder."""
    command = [sys.executable, str(ROOT / "tools" / "dataset_report.py"), *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8", errors="replace"
    )


def report_of(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The JSON report; problems do not stop it."""
    file = tmp_path / "report.json"
    try:
        dataset_report.main([*words, "--json", str(file)])
        failed = False
    except UserError:
        failed = True
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert values["ok"] is not failed
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, size in enumerate([(64, 64), (100, 50), (200, 190)]):
        save_picture(tmp_path / "data" / "2_mira cat" / f"{number}.png", size, number)
    (tmp_path / "data" / "2_mira cat" / "1.txt").write_text("photo of a sleeping cat, sofa", encoding="utf-8")
    return tmp_path / "data"


def test_a_good_folder_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    words = ["--train_data_dir", str(folder), *SIZES, "--json", "out/r.json", "--html", "out/r.html", "--flip_aug"]
    result = run_tool(*words, folder=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "2_mira cat: 3 pictures x 2 repeats" in result.stdout and "an epoch: 6 training uses" in result.stdout
    values = json.loads((tmp_path / "out" / "r.json").read_text(encoding="utf-8"))
    assert values["ok"] and values["problems"] == []
    told = {Path(image["path"]).name: image for image in values["images"]}
    assert set(told) == {"0.png", "1.png", "2.png"}
    assert told["1.png"]["size"] == [100, 50] and told["1.png"]["bucket"] == [80, 48]
    assert told["1.png"]["caption"] == "photo of a sleeping cat, sofa"
    assert told["1.png"]["tokens"] == CaptionTokenizer("sd1").count_tokens(["photo of a sleeping cat, sofa"])[0] == 7
    assert told["0.png"]["caption"] == "mira cat" and told["0.png"]["flips"] is True
    page = (tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "photo of a sleeping cat, sofa" in page


def test_forty_odd_files_are_diagnosed_by_one_call(tmp_path: Path) -> None:
    expected = write_odd_folder(tmp_path / "data" / "odd")
    config = tmp_path / "data.toml"
    config.write_text(
        '[general]\nresolution = 64\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = "data/odd"\n', encoding="utf-8"
    )
    words = ["--dataset_config", str(config), "--json", "r.json", "--html", "r.html"]
    result = run_tool(*words, folder=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    values = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    trained = {Path(image["path"]).name for image in values["images"]}
    odd, problems, warnings = 0, values["problems"], values["warnings"]
    for name, entry in expected.items():
        if name == "pipe.png":
            continue  # like folders of such names, it is no file and not looked at
        # a caption's problem names the caption file
        told = [p for p in problems if Path(p["where"]).name in (name, Path(name).with_suffix(".txt").name)]
        if entry.verdict in (Verdict.REFUSED, Verdict.CAPTION_REFUSED):
            assert len(told) == 1 and entry.word in told[0]["what"] and told[0]["fix"], (name, told)
            assert told[0]["where"] in result.stderr
            assert (name in trained) == (entry.verdict is Verdict.CAPTION_REFUSED), name
            odd += 1
        elif entry.verdict is Verdict.CAPTION_MISSING:
            assert told == [] and any(name in p["what"] for p in problems) and name in trained, name
            odd += 1
        elif entry.verdict in (Verdict.UNREAD, Verdict.NOTED):
            found = [text for text in warnings if name in text and entry.word in text]
            assert told == [] and found, (name, entry, warnings)
            assert (name in trained) == (entry.verdict is Verdict.NOTED), name
            odd += 1
        else:
            assert told == [] and (name in trained) == (entry.verdict is Verdict.FINE), name
    assert odd >= 40
    captions = {Path(image["path"]).name: image["caption"] for image in values["images"]}
    assert captions["caption_marked.png"] == "a dog" and captions["caption_latin1.png"] == ""
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count('<li class="bad">') == len(problems)


def test_every_broken_picture_is_named_also_where_many_are_alike(folder: Path, tmp_path: Path) -> None:
    for number in range(30):
        (folder / "2_mira cat" / f"empty{number}.png").write_bytes(b"")
    values = report_of(tmp_path, "--train_data_dir", str(folder), *SIZES)
    assert {Path(p["where"]).name for p in values["problems"]} == {f"empty{number}.png" for number in range(30)}
    assert len(values["problems"]) == 30 and len(values["images"]) == 3


def test_broken_pictures_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "2_mira cat" / "empty.png").write_bytes(b"")
    values = report_of(tmp_path, "--train_data_dir", str(folder), *SIZES, "--bad_images", "skip")
    assert values["ok"] and len(values["images"]) == 3
    assert [Path(left["where"]).name for left in values["left_out"]] == ["empty.png"]


def test_what_is_understood_is_told_beside_a_missing_folder(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "data.toml"
    lines = ["[[datasets]]", "resolution = 64"]
    for name in ("2_mira cat", "nowhere"):
        lines += ["[[datasets.subsets]]", f"image_dir = '{folder / name}'", "class_tokens = 'cat'"]
    config.write_text("\n".join(lines), encoding="utf-8")
    values = report_of(tmp_path, "--dataset_config", str(config))
    assert [p["where"] for p in values["problems"]] == [str(folder / "nowhere")]
    assert len(values["images"]) == 3 and values["buckets"] and values["batches"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--resolution", "64"], "no pictures are given"),
        (["--train_data_dir", "DATA"], "the training resolution is missing"),
        (["--train_data_dir", "DATA", "--resolution", "500"], "must be divisible by 64"),
        (["--train_data_dir", "DATA", *SIZES, "--no_token_padding", "--max_token_length", "150"], "always padded"),
    ],
)
def test_other_mistakes_are_problems_of_the_report(folder: Path, tmp_path: Path, words: list[str], what: str) -> None:
    values = report_of(tmp_path, *[str(folder) if word == "DATA" else word for word in words])
    assert any(what in problem["what"] for problem in values["problems"])


def test_the_run_s_length_moves_the_warm_up_of_tags(folder: Path, tmp_path: Path) -> None:
    words = ["--train_data_dir", str(folder), *SIZES, "--token_warmup_step", "0.9", "--seed", "1"]
    short = report_of(tmp_path, *words, "--max_train_steps", "2")
    long = report_of(tmp_path, *words, "--max_train_steps", "5000")
    counts = [sum(use["tokens"] for b in values["batches"] for use in b["uses"]) for values in (short, long)]
    assert counts[0] > counts[1]


def test_accumulation_counts_updates(folder: Path, tmp_path: Path) -> None:
    base = ["--train_data_dir", str(folder), *SIZES]
    (plain,) = report_of(tmp_path, *base)["epochs"]
    (joined,) = report_of(tmp_path, *base, "--gradient_accumulation_steps", "4")["epochs"]
    assert plain["updates"] == plain["batches"] == joined["batches"] == 6 and joined["updates"] == 2


@pytest.mark.parametrize("flag", ["--json", "--html"])
def test_a_file_that_cannot_be_written_is_said_so(folder: Path, tmp_path: Path, flag: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        dataset_report.main(["--train_data_dir", str(folder), *SIZES, flag, str(blocked / "out")])
    assert caught.value.problems[0].where == flag


def test_options_of_other_scripts_are_refused_with_the_nearest_name(folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean --html"):
        dataset_report.main(["--train_data_dir", str(folder), "--htm", "x"])
    with pytest.raises(UserError, match="belongs to the training scripts"):
        dataset_report.main(["--train_data_dir", str(folder), *SIZES, "--debug_dataset"])
