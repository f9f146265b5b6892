"""Names on the Hugging Face Hub: of repositories, and of the files in them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # of files that hold weights

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*", re.ASCII)
_ID_LIMIT = 96
_IN_NO_NAME = re.compile(r'[\x00-\x1f\x7f-\x9f\\:*?"<>|]')  # controls, and what Windows takes for something else
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, whatever the ending


def is_repo_id(name: str) -> bool:
    """Whether the text has the form `owner/name` of the Hub's ids and does not name a model file."""
    is_id = _REPO_ID.fullmatch(name) is not None and len(name) <= _ID_LIMIT and ".." not in name and "--" not in name
    return is_id and not name.lower().endswith((*MODEL_ENDINGS, ".git")) and name[-1] not in ".-"


def stays_below(name: str) -> bool:
    """Whether a file of that name, taken below some folder, lies below it on every system, and under just that name."""
    parts = name.split("/")
    is_path = (
        parts == list(PurePosixPath(name).parts) and ".." not in parts
    )  # without empty parts, "." and "/" in front
    is_whole = all(part.rstrip(" .") == part for part in parts)  # Windows drops such an end
    return is_path and is_whole and not _IN_NO_NAME.search(name) and not any(map(_DEVICES.fullmatch, parts))
