"""The dataset file: every mistake at once, each with its line, level and mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import Problems
from library.core.sizes import Size
from library.core.toml_files import read_toml
from library.data.description.schema import Structure, read_structure

GOOD = """
[general]
enable_bucket = true
num_repeats = 3

[[datasets]]
resolution = [512, 768]
batch_size = 4
class_tokens = "shs dog"

  [[datasets.subsets]]
  image_dir = 'C:\\dogs'

  [[datasets.subsets]]
  image_dir = "reg"
  is_reg = true
  caption_extension = ".caption"
  allow_missing_captions = true
"""


def read(tmp_path: Path, text: str) -> tuple[Structure, list[str]]:
    path = tmp_path / "data.toml"
    path.write_text(text, encoding="utf-8")
    file = read_toml(path, "--dataset_config")
    problems = Problems()
    structure = read_structure(file.content, file.where, problems)
    return structure, [str(problem) for problem in problems]


def test_good_file_is_converted(tmp_path: Path) -> None:
    structure, problems = read(tmp_path, GOOD)
    assert problems == []
    (dataset,) = structure.datasets
    assert structure.general.values == {"enable_bucket": True, "num_repeats": 3}
    assert dataset.table.values["resolution"] == Size(512, 768)
    assert [subset.values["image_dir"] for subset in dataset.subsets] == ["C:\\dogs", "reg"]
    assert "line 7, key resolution" in dataset.table.places["resolution"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("resolutoin = 512", "did you mean resolution?"),
        ("batch_size = 'four'", "a whole number is expected, got 'four' (text)"),
        ("batch_size = 0", "must be 1 or more"),
        ("num_repeats = 0", "write for example num_repeats = 10"),
        ("enable_bucket = 'yes'", "true or false is expected"),
        ("resolution = [512, 512, 3]", "one number, or width and height"),
        ("bucket_reso_steps = 12", "multiple of 8"),
        ("image_dir = 'dogs'", "move it to [[datasets.subsets]]"),
        ("metadata_file = 'dogs.json'", "move it to [[datasets.subsets]]"),
        ("metadatafile = 'dogs.json'", "did you mean metadata_file?"),
        ("caption_extension = 'txt'", "must begin with a dot"),
        ("shuffle_caption = 1", "true or false is expected"),
        ("keep_tokens = -1", "must be 0 or more"),
        ("keep_tokens = 1.5", "a whole number is expected"),
        ("caption_tag_dropout_rate = 1.1", "must be between 0 and 1"),
        ("caption_dropout_rate = -0.1", "must be between 0 and 1"),
        ("caption_dropout_rate = nan", "must be between 0 and 1"),
        ("shufle_caption = true", "did you mean shuffle_caption?"),
    ],
)
def test_one_mistake_in_a_dataset(tmp_path: Path, line: str, told: str) -> None:
    _, problems = read(tmp_path, f"[[datasets]]\n{line}\n[[datasets.subsets]]\nimage_dir = 'a'\n")
    assert len(problems) == 1
    assert told in problems[0] and "data.toml, line 2" in problems[0] and "dataset 1" in problems[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there is no [[datasets]]"),
        ("[datasets]\nbatch_size = 1\n", "write [[datasets]]"),
        ("[[datasets]]\nbatch_size = 1\n", "the dataset has no subsets"),
        ("[[datasets]]\n[datasets.subsets]\nimage_dir = 'a'\n", "write [[datasets.subsets]]"),
        ("[[general]]\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n", "write [general]"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n", "image_dir is missing"),
        (
            "resolution = 512\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n",
            "move it to [general] or [[datasets]]",
        ),
        ("[[subsets]]\nimage_dir = 'a'\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n", "[[datasets.subsets]]"),
    ],
)
def test_wrong_structure(tmp_path: Path, text: str, told: str) -> None:
    _, problems = read(tmp_path, text)
    assert len(problems) == 1 and told in problems[0]


def test_every_mistake_is_told_at_once_with_its_own_line(tmp_path: Path) -> None:
    text = """
[general]
batch_size = 0
[[datasets]]
resolution = "big"
  [[datasets.subsets]]
  image_dir = 'a'
  num_repeats = 0
  [[datasets.subsets]]
  image_dir = 'b'
  num_repeats = 0
  batch_size = 2
  [[datasets.subsets]]
  is_reg = 1
  numrepeats = 4
"""
    _, problems = read(tmp_path, text)
    lines = sorted(int(problem.split("line ")[1].split(",")[0]) for problem in problems)
    assert lines == [3, 5, 8, 11, 12, 13, 14, 15]
    assert any("subset 3" in problem and "image_dir is missing" in problem for problem in problems)
