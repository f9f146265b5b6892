"""Preparing a few photographs in tests, and what lies beside them then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from finetune import prepare_buckets_latents

PICTURES = ("cat.jpg", "coins.png", "coffee.jpg", "rocket.jpg")
SIZES = ("--max_resolution", "64", "--min_bucket_reso", "32", "--max_bucket_reso", "128", "--bucket_reso_steps", "16")

Files = dict[str, tuple[int, bytes]]


def copy_pictures(photos: Path, folder: Path, names: Iterable[str] = PICTURES) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(photos / name, folder)
    return folder


def write_metadata(file: Path, keys: Iterable[str]) -> Path:
    entries = {key: {"caption": f"picture {number}", "tags": "a, b"} for number, key in enumerate(keys)}
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def read(file: Path) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return entries


def prepare(*words: str | Path) -> None:
    prepare_buckets_latents.main([*map(str, words), *SIZES, "--max_data_loader_n_workers", "0"])


def latents_in(folder: Path) -> Files:
    """Every file of latents below a folder: when it was written, and its bytes."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*.npz"))}


def contents(files: Files) -> dict[str, bytes]:
    return {name: content for name, (_, content) in files.items()}
