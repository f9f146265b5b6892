"""Metadata that other tools made with keys from the working folder, through our scripts up to a training's pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from finetune import merge_dd_tags_to_metadata, prepare_buckets_latents
from library.core.sizes import Size
from library.data.description.config import describe
from library.data.index.index import build_index
from library.options.data import DataOptions
from library.training.prepared import PREPARED


def test_two_folders_from_the_working_folder(
    tiny_models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ("td1/cat.jpg", "td1/coins.png", "td2\\cat.jpg")
    for key in keys:
        path = Path(key.replace("\\", "/"))
        path.parent.mkdir(exist_ok=True)
        shutil.copy(photos / path.name, path)
        path.with_suffix(".txt").write_text(f"tag, {path.parent}", encoding="utf-8")
    Path("1.json").write_text(json.dumps({key: {"caption": key} for key in keys}), encoding="utf-8")
    merge_dd_tags_to_metadata.main(["--full_path", "td1", "--in_json", "1.json", "2.json"])
    merge_dd_tags_to_metadata.main(["--full_path", "td2", "--in_json", "2.json", "3.json"])
    model = [str(tiny_models["sd1"]), "--max_resolution", "64", "--min_bucket_reso", "64", "--max_bucket_reso", "64"]
    model += ["--max_data_loader_n_workers", "0"]
    capsys.readouterr()
    prepare_buckets_latents.main(["--full_path", "td1", "3.json", "4.json", *model])
    assert "2 keys fit only as paths from the working folder" in capsys.readouterr().err
    entries = json.loads(Path("4.json").read_text(encoding="utf-8"))
    assert [PREPARED in entry for entry in entries.values()] == [True, True, False]
    prepare_buckets_latents.main(["--full_path", "td2", "4.json", "5.json", *model])
    entries = json.loads(Path("5.json").read_text(encoding="utf-8"))
    assert tuple(entries) == keys and all(PREPARED in entry for entry in entries.values())
    assert len(list(tmp_path.rglob("*.npz"))) == 3

    options = DataOptions(in_json="5.json", train_data_dir="td1", resolution=Size(64, 64))
    index = build_index(describe(options), 1.0)
    texts = {index.path(record).resolve(): index.caption(record) for record in range(len(index))}
    assert texts == {
        tmp_path / "td1" / "cat.jpg": "td1/cat.jpg, tag, td1",
        tmp_path / "td1" / "coins.png": "td1/coins.png, tag, td1",
        tmp_path / "td2" / "cat.jpg": "td2\\cat.jpg, tag, td2",
    }
    assert any("3 keys fit only as paths from the working folder" in note for note in index.notes)
