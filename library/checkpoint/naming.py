"""Names of the files a run leaves in its output folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

DEFAULT_LAST_NAME, DEFAULT_EPOCH_NAME, DEFAULT_STEP_NAME = "last", "epoch", "at"
STATE_ENDING, STATE_MANIFEST = "-state", "manifest.json"
_EXTENSIONS = (".safetensors", ".ckpt", ".pt")

# In states that Accelerate writes (see foreign_state.py): stem and ending of the models' files, and what stands beside
# them, the public tool's own file first.
FOREIGN_WEIGHTS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
FOREIGN_BESIDE = ("train_state.json", "optimizer.bin", "scheduler.bin", "random_states_0.pkl")


def last_stem(output_name: str | None) -> str:
    """The name of the end of the run, without extension: NAME, or last without a name."""
    return output_name or DEFAULT_LAST_NAME


def epoch_stem(output_name: str | None, epoch: int) -> str:
    """The name after an epoch (counted from 1): NAME-000001, or epoch-000001 without a name."""
    return f"{output_name or DEFAULT_EPOCH_NAME}-{epoch:06d}"


def step_stem(output_name: str | None, step: int) -> str:
    """The name after so many updates: NAME-step00000001, or at-step00000001 without a name."""
    return f"{output_name or DEFAULT_STEP_NAME}-step{step:08d}"


def last_file(output_dir: Path, output_name: str | None, extension: str) -> Path:
    """The file of the end of the run: NAME.ext, or last.ext without a name."""
    return output_dir / f"{last_stem(output_name)}{extension}"


def state_folder(output_dir: Path, stem: str) -> Path:
    """The state that belongs to the file with this name: NAME-state, NAME-000001-state, …"""
    return output_dir / f"{stem}{STATE_ENDING}"


def average_file(result: Path) -> Path:
    """The running average of what `result` (a file, or the folder of a model) holds: NAME-ema beside it."""
    if result.suffix in _EXTENSIONS:
        return result.with_name(f"{result.stem}-ema{result.suffix}")
    return result.with_name(f"{result.name}-ema")  # a folder's dots are its name


def log_file(output_dir: Path, output_name: str | None) -> Path:
    """The JSONL log of the run: NAME-log.jsonl."""
    return output_dir / f"{output_name or DEFAULT_LAST_NAME}-log.jsonl"


def has_foreign_names(names: Collection[str]) -> bool:
    """Whether files of these names make a state as Accelerate writes it: weights, and something of a state beside."""
    has_weights = any(stem + ending in names for stem, ending in FOREIGN_WEIGHTS)
    return has_weights and any(name in names for name in FOREIGN_BESIDE)
