"""Names of the files a run leaves in its output folder."""

from __future__ import annotations

from pathlib import Path

DEFAULT_LAST_NAME = "last"
_EXTENSIONS = (".safetensors", ".ckpt", ".pt")


def last_file(output_dir: Path, output_name: str | None, extension: str) -> Path:
    """The file of the end of the run: NAME.ext, or last.ext without a name."""
    return output_dir / f"{output_name or DEFAULT_LAST_NAME}{extension}"


def average_file(result: Path) -> Path:
    """The running average of what `result` (a file, or the folder of a model) holds: NAME-ema beside it."""
    if result.suffix in _EXTENSIONS:
        return result.with_name(f"{result.stem}-ema{result.suffix}")
    return result.with_name(f"{result.name}-ema")  # a folder's dots are its name


def log_file(output_dir: Path, output_name: str | None) -> Path:
    """The JSONL log of the run: NAME-log.jsonl."""
    return output_dir / f"{output_name or DEFAULT_LAST_NAME}-log.jsonl"
