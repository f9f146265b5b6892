"""tools/dataset_report.py: what it says is true, complete, and told by the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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


def make_broken(folder: Path, count: int) -> set[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"bad{number}.png").write_bytes(b"<html>")
    return {f"bad{number}.png" for number in range(count)}


def names_in(problems: list[dict[str, str]], ending: str = ".png") -> list[str]:
    return sorted(Path(problem["where"]).name for problem in problems if problem["where"].endswith(ending))


def test_a_folder_of_broken_pictures_alone_names_each(tmp_path: Path) -> None:
    broken = sorted(make_broken(tmp_path / "data", 30))
    words = ["--train_data_dir", str(tmp_path / "data"), *SIZES]
    failed = report_of(tmp_path, *words)
    assert names_in(failed["problems"]) == broken and len(failed["problems"]) == 30 and failed["left_out"] == []
    skipped = report_of(tmp_path, *words, "--bad_images", "skip")
    assert names_in(skipped["left_out"]) == broken and all(left["what"] for left in skipped["left_out"])
    (problem,) = skipped["problems"]
    assert "none of its 30 pictures can be read" in problem["what"] and set(problem) == {"what", "where", "fix"}


def test_many_broken_pictures_beside_many_broken_captions(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    broken = sorted(make_broken(folder, 30))
    for number in range(30):
        save_picture(folder / f"{number}.png", (64, 64), number)
        (folder / f"{number}.txt").write_bytes(b"\xff\xfe\x00caption")
    words = ["--train_data_dir", str(folder), *SIZES]
    values = report_of(tmp_path, *words)
    assert names_in(values["problems"]) == broken and len(values["images"]) == 30
    captions = names_in(values["problems"], ".txt")
    assert len(captions) == 30 == len(set(captions)) and len(values["problems"]) == 60
    skipped = report_of(tmp_path, *words, "--bad_images", "skip")
    assert names_in(skipped["problems"], ".txt") == captions and len(skipped["problems"]) == 30
    assert names_in(skipped["left_out"]) == broken


def two_readers(tmp_path: Path, *endings: str) -> Path:
    """A dataset file with a subset for each ending, all on one folder."""
    config = tmp_path / "data.toml"
    lines = ["[[datasets]]", "resolution = 64"]
    for ending in endings:
        lines += ["[[datasets.subsets]]", f"image_dir = '{tmp_path / 'data'}'", f"caption_extension = '{ending}'"]
    config.write_text("\n".join(lines), encoding="utf-8")
    return config


def test_captions_beside_problems_are_those_of_their_own_subset(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for number in range(2):
        save_picture(folder / f"{number}.png", (64, 64), number)
        (folder / f"{number}.txt").write_text("from txt", encoding="utf-8")
        (folder / f"{number}.caption").write_text("from caption", encoding="utf-8")
    (folder / "0.txt").write_bytes(b"\xff\xff")
    values = report_of(tmp_path, "--dataset_config", str(two_readers(tmp_path, ".txt", ".caption")))
    assert names_in(values["problems"], ".txt") == ["0.txt"]
    assert [image["caption"] for image in values["images"]] == ["", "from txt", "from caption", "from caption"]


def test_a_broken_picture_of_two_subsets_is_one_problem(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save_picture(folder / "a.png")
    for ending in ("txt", "caption"):
        (folder / f"a.{ending}").write_text("a cat", encoding="utf-8")
        (folder / f"bad0.{ending}").write_text("a cat", encoding="utf-8")
    make_broken(folder, 1)
    words = ["--dataset_config", str(two_readers(tmp_path, ".txt", ".caption"))]
    assert names_in(report_of(tmp_path, *words)["problems"]) == ["bad0.png"]
    assert names_in(report_of(tmp_path, *words, "--bad_images", "skip")["left_out"]) == ["bad0.png"]


def test_of_captions_with_wildcards_the_drawn_ones_are_counted(folder: Path, tmp_path: Path) -> None:
    short = "a cat, {" + "|".join(f"word number {letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 2) + "}"
    long = "{" + "|".join(" ".join([letter, "dog"] * 50) for letter in "abc") + "}"
    for number, caption in enumerate((short, "photo of a cat", long)):
        (folder / "2_mira cat" / f"{number}.txt").write_text(f"{caption}\n", encoding="utf-8")
    values = report_of(tmp_path, "--train_data_dir", str(folder), *SIZES, "--enable_wildcard")
    told = {Path(image["path"]).name: image for image in values["images"]}
    assert (told["0.png"]["caption"], told["0.png"]["tokens"], told["0.png"]["tokens_lost"]) == (short, 6, 0)
    assert (told["1.png"]["tokens"], told["1.png"]["tokens_lost"]) == (4, 0)
    assert told["2.png"]["tokens"] == 100 and told["2.png"]["tokens_lost"] == 25
    used = {use["name"]: use["tokens"] for batch in values["batches"] for use in batch["uses"]}
    assert used["0.png"] == 6
    (warning,) = [text for text in values["warnings"] if "not read" in text]
    assert warning == "1 caption is too long, the last 25 tokens are not read: 2.png"


def test_an_epoch_that_cannot_be_planned_is_a_problem_of_the_report(folder: Path, tmp_path: Path) -> None:
    make_broken(folder / "2_mira cat", 1)
    config = tmp_path / "data.toml"
    lines = ["[[datasets]]", "resolution = 64", "[[datasets.subsets]]", f"image_dir = '{folder / '2_mira cat'}'"]
    config.write_text("\n".join([*lines, "num_repeats = 0.1", "class_tokens = 'cat'"]), encoding="utf-8")
    values = report_of(tmp_path, "--dataset_config", str(config), "--bad_images", "skip")
    assert any("less than one picture an epoch" in problem["what"] for problem in values["problems"])
    assert values["images"] == [] and names_in(values["left_out"]) == ["bad0.png"]


def caught_by(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        dataset_report.main(words)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_a_file_that_cannot_be_written_hides_neither_problems_nor_the_other_file(tmp_path: Path) -> None:
    broken = make_broken(tmp_path / "data", 3)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file", encoding="utf-8")
    words = ["--train_data_dir", str(tmp_path / "data"), *SIZES]
    for json_file, html_file, missing in (
        (blocked / "x.json", tmp_path / "r.html", "--json"),
        (tmp_path / "data", tmp_path / "r.html", "--json"),
        (tmp_path / "r.json", blocked / "x.html", "--html"),
    ):
        told = caught_by(*words, "--json", str(json_file), "--html", str(html_file))
        assert len(told) == 4 and told[3].startswith(f"{missing}: ") and "cannot be written" in told[3]
        assert all(any(name in line for line in told) for name in broken)
        assert (tmp_path / ("r.html" if missing == "--json" else "r.json")).is_file()
        (tmp_path / "r.html").unlink(missing_ok=True)


def test_mistakes_of_the_command_line_and_the_dataset_file_are_in_the_report(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text("[general\n", encoding="utf-8")
    html = tmp_path / "r.html"
    for words, what in (
        (["--dataset_config", str(config)], "not valid TOML"),
        (["--dataset_config", str(tmp_path / "none.toml")], "does not exist"),
        (["--config_file", str(config)], "not valid TOML"),
        (["--train_data_dir", str(folder), "--resolution", "abc"], "abc"),
        (["--train_data_dir", str(folder), "--resolutoin", "64"], "is not an option"),
    ):
        (tmp_path / "report.json").write_text('{"ok": true}', encoding="utf-8")  # of an earlier time
        values = report_of(tmp_path, *words, "--html", str(html))
        assert any(what in problem["what"] for problem in values["problems"]), words
        assert what in html.read_text(encoding="utf-8")
        html.unlink()


def test_one_file_for_both_reports_is_refused(folder: Path, tmp_path: Path) -> None:
    both = ["--json", str(tmp_path / "x"), "--html", str(tmp_path / "data" / ".." / "x")]
    assert caught_by("--train_data_dir", str(folder), *SIZES, *both) == [
        "--json, --html: both would be written to one file"
    ]
    assert "is not an option" in caught_by("--nope", *both)[0]
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="names there cannot hold control characters")
def test_control_characters_of_names_do_not_reach_the_console(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save_picture(folder / "wide\x1b[31m\nline.png", (600, 64))
    Image.new("RGBA", (64, 64)).save(folder / "clear\x9b2J.png")
    words = ["--train_data_dir", str(folder), *SIZES, "--allow_missing_captions"]
    good = run_tool(*words, folder=tmp_path)
    assert good.returncode == 0 and r"wide\x1b[31m\nline.png" in good.stdout and r"clear\x9b2J.png" in good.stdout
    (folder / "broken\x1b[2J\n.png").write_bytes(b"")
    bad = run_tool(*words, folder=tmp_path)
    assert bad.returncode == 1 and r"broken\x1b[2J\n.png" in bad.stderr
    for text in (good.stdout, good.stderr, bad.stdout, bad.stderr):
        assert not set(text) & {"\x1b", "\x9b"}
