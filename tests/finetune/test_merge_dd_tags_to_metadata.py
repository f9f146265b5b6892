"""finetune/merge_dd_tags_to_metadata.py, and with it the chains of files that people know."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune import merge_captions_to_metadata, merge_dd_tags_to_metadata
from library.core.errors import Problems
from library.data.index.metadata import find_pictures, read_metadata
from tests.training.runs import ROOT, environment

# as DeepDanbooru and WD taggers write them
TAGS = {"cat": "no_humans, cat,whiskers, rating:safe", "coins": "still_life,  coin", "grass": "grass, ^_^"}
TIDY = {"cat": "no_humans, cat, whiskers, rating:safe", "coins": "still_life, coin", "grass": "grass, ^_^"}


def fill(photos: Path, folder: Path, names: tuple[str, ...]) -> Path:
    """Photographs, each with a caption that names the folder, and tags."""
    folder.mkdir()
    for name in names:
        picture = Path(shutil.copy(photos / name, folder))
        picture.with_suffix(".caption").write_text(f"{picture.stem} of {folder.name}\n", encoding="utf-8")
        picture.with_suffix(".txt").write_text(TAGS[picture.stem], encoding="utf-8")
    return folder


def entries_of(path: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return entries


def trained(file: Path, image_dir: Path | None) -> dict[str, str | None]:
    """The text of each picture by its name, as training reads it."""
    problems = Problems()
    found = find_pictures(read_metadata(file, problems), file, image_dir, problems)
    assert not problems, list(problems)
    return {picture.name: picture.caption for picture in found.pictures}


def joined(folder: str, stem: str) -> str:
    return f"{stem} of {folder}, {TIDY[stem]}"


@pytest.mark.parametrize("full_path", [(), ("--full_path",)], ids=["relative", "full"])
def test_one_folder(photos: Path, tmp_path: Path, full_path: tuple[str, ...]) -> None:
    """PRE-38, up to meta_cap_dd.json; run twice, which changes nothing."""
    folder = fill(photos, tmp_path / "train_data", ("cat.jpg", "coins.png"))
    captions, both = tmp_path / "meta_cap.json", tmp_path / "meta_cap_dd.json"
    for _ in range(2):
        merge_captions_to_metadata.main([*full_path, str(folder), str(captions)])
        merge_dd_tags_to_metadata.main([*full_path, str(folder), "--in_json", str(captions), str(both)])
    keys = ["cat", "coins"] if not full_path else [(folder / name).as_posix() for name in ("cat.jpg", "coins.png")]
    assert entries_of(captions) == {
        key: {"caption": f"{stem} of train_data"} for key, stem in zip(keys, ("cat", "coins"), strict=True)
    }
    assert [entry["tags"] for entry in entries_of(both).values()] == [TIDY["cat"], TIDY["coins"]]
    expected = {"cat.jpg": joined("train_data", "cat"), "coins.png": joined("train_data", "coins")}
    assert trained(both, folder) == expected and (not full_path or trained(both, None) == expected)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["meta_cap.json", "meta_cap_dd.json"]


def test_two_folders(photos: Path, tmp_path: Path) -> None:
    """PRE-39, up to meta_cap_dd2.json, with one name in both; in one go it is the same."""
    one = fill(photos, tmp_path / "train_data1", ("cat.jpg", "coins.png"))
    two = fill(photos, tmp_path / "train_data2", ("cat.jpg", "grass.jpg"))
    at = {name: str(tmp_path / f"meta_{name}.json") for name in ("cap1", "cap2", "cap_dd1", "cap_dd2", "cap", "all")}
    captions, tags = merge_captions_to_metadata.main, merge_dd_tags_to_metadata.main
    captions(["--full_path", str(one), at["cap1"]])
    captions(["--full_path", str(two), "--in_json", at["cap1"], at["cap2"]])
    tags(["--full_path", str(one), "--in_json", at["cap2"], at["cap_dd1"]])
    tags(["--full_path", str(two), "--in_json", at["cap_dd1"], at["cap_dd2"]])
    assert [len(entries_of(Path(at[name]))) for name in ("cap1", "cap2", "cap_dd1", "cap_dd2")] == [2, 4, 4, 4]
    assert trained(Path(at["cap_dd2"]), None) == {
        "train_data1/cat.jpg": joined("train_data1", "cat"),
        "train_data1/coins.png": joined("train_data1", "coins"),
        "train_data2/cat.jpg": joined("train_data2", "cat"),
        "train_data2/grass.jpg": joined("train_data2", "grass"),
    }
    captions([str(one), str(two), at["cap"], "--full_path"])
    tags([str(one), str(two), at["all"], "--in_json", at["cap"], "--full_path"])
    assert Path(at["all"]).read_bytes() == Path(at["cap_dd2"]).read_bytes()


def test_as_a_process(photos: Path, tmp_path: Path) -> None:
    folder = fill(photos, tmp_path / "data", ("cat.jpg",))
    (folder / "cat.txt").unlink()
    command = [sys.executable, str(ROOT / "finetune" / "merge_dd_tags_to_metadata.py"), "data", "meta.json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "none of 1 pictures has a .txt file beside it" in done.stderr
    assert "there are files with .caption" in done.stderr and not (tmp_path / "meta.json").exists()
    (folder / "cat.txt").write_text("cat,sofa", encoding="utf-8")
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and entries_of(tmp_path / "meta.json") == {"cat": {"tags": "cat, sofa"}}
