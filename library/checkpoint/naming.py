"""Names of the files a run leaves in its output folder."""

from __future__ import annotations

from pathlib import Path

DEFAULT_LAST_NAME = "last"


def last_file(output_dir: Path, output_name: str | None, extension: str) -> Path:
    """The file of the end of the run: NAME.ext, or last.ext without a name."""
    return output_dir / f"{output_name or DEFAULT_LAST_NAME}{extension}"


def log_file(output_dir: Path, output_name: str | None) -> Path:
    """The JSONL log of the run: NAME-log.jsonl."""
    return output_dir / f"{output_name or DEFAULT_LAST_NAME}-log.jsonl"
