"""The walk-through from a folder of photographs to a file that trains, as steps that tests run here or as processes."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.captioning.tiny_blip import make_tiny_blip
from tests.captioning.tiny_tagger import make_wd_tagger
from tests.training.runs import ROOT, environment

SIZES = (
    *("--max_resolution", "128,128", "--min_bucket_reso", "64", "--max_bucket_reso", "256"),
    *("--bucket_reso_steps", "32"),
)


@dataclass(frozen=True)
class Step:
    """One command line of a walk-through: a script in finetune/, and its words."""

    script: str
    words: Sequence[str]

    def run_here(self) -> None:
        importlib.import_module(f"finetune.{self.script}").main(list(self.words))

    def start(self) -> subprocess.Popen[str]:
        """As a process; what it says goes to one pipe."""
        command = [sys.executable, str(ROOT / "finetune" / f"{self.script}.py"), *self.words]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )


@dataclass(frozen=True)
class Models:
    """What the walk-through needs, all tiny and random."""

    blip: Path
    tagger: Path
    diffusion: Path


def make_models(folder: Path, diffusion: Path, layout: str = "v1-4") -> Models:
    blip, tagger = folder / "blip", folder / "wd14_tagger_model"
    make_tiny_blip(blip)
    make_wd_tagger(tagger, layout)
    return Models(blip, tagger, diffusion)


def copy_photos(photos: Path, folder: Path, names: Iterable[str]) -> Path:
    """Photographs without their captions."""
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(photos / name, folder)
    return folder


def photo_names(photos: Path) -> list[str]:
    return sorted(path.name for path in photos.iterdir() if path.suffix in (".jpg", ".png", ".webp"))


def describe_steps(folders: Sequence[Path], models: Models) -> list[Step]:
    """Captions and tags beside the pictures."""
    named = [str(folder) for folder in folders]
    return [
        Step("make_captions", [*named, "--caption_weights", str(models.blip), "--batch_size", "8", "--seed", "42"]),
        Step("tag_images_by_wd14_tagger", ["--batch_size", "4", "--model_dir", str(models.tagger), *named]),
    ]


def one_folder(folder: Path, work: Path, models: Models, *full_path: str) -> list[Step]:
    """PRE-38; the last file is meta_lat.json in `work`."""
    captions, tags, clean, latents = (
        str(work / f"{name}.json") for name in ("meta_cap", "meta_cap_dd", "meta_clean", "meta_lat")
    )
    return [
        *describe_steps([folder], models),
        Step("merge_captions_to_metadata", [*full_path, str(folder), captions]),
        Step("merge_dd_tags_to_metadata", [*full_path, str(folder), "--in_json", captions, tags]),
        Step("clean_captions_and_tags", [tags, clean]),
        Step(
            "prepare_buckets_latents",
            [*full_path, str(folder), clean, latents, str(models.diffusion), "--batch_size", "4", *SIZES, "--flip_aug"],
        ),
    ]


def two_folders(first: Path, second: Path, work: Path, models: Models) -> list[Step]:
    """PRE-39; the last file is meta_lat2.json in `work`."""
    at = {
        name: str(work / f"meta_{name}.json")
        for name in ("cap1", "cap2", "cap_dd1", "cap_dd2", "clean", "lat1", "lat2")
    }
    latents = [str(models.diffusion), "--batch_size", "4", *SIZES, "--mixed_precision", "no"]
    return [
        *describe_steps([first, second], models),
        Step("merge_captions_to_metadata", ["--full_path", str(first), at["cap1"]]),
        Step("merge_captions_to_metadata", ["--full_path", str(second), "--in_json", at["cap1"], at["cap2"]]),
        Step("merge_dd_tags_to_metadata", ["--full_path", str(first), "--in_json", at["cap2"], at["cap_dd1"]]),
        Step("merge_dd_tags_to_metadata", ["--full_path", str(second), "--in_json", at["cap_dd1"], at["cap_dd2"]]),
        Step("clean_captions_and_tags", [at["cap_dd2"], at["clean"]]),
        Step("prepare_buckets_latents", ["--full_path", str(first), at["clean"], at["lat1"], *latents]),
        Step("prepare_buckets_latents", ["--full_path", str(second), at["lat1"], at["lat2"], *latents]),
    ]


def contents(*folders: Path) -> dict[str, bytes]:
    """All files below folders, by their names from there."""
    return {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
