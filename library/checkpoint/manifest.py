"""The list of a state folder's files, with sizes and checksums, by which a torn or altered folder is known.

`manifest.json` holds the name of the format, its version, `files` (name: bytes, sha256) and `checksum`: the SHA-256 of
all the rest as compact JSON with sorted keys. Later versions must keep the first two and the last as they are, so that
a newer manifest can be told from a damaged one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from library.checkpoint.naming import STATE_MANIFEST
from library.core.errors import Problem, UserError
from library.core.pickled import explained
from library.core.tensor_files import file_hash

MANIFEST = STATE_MANIFEST
FORMAT, VERSION = "sd-atelier state", 1
_FIX_TORN = "resume from another state, or copy this one again from where it is whole"


class TornStateError(UserError):
    """A state that was not written, copied or downloaded to its end, or was altered since."""


@dataclass(frozen=True)
class Listed:
    """What a file must be."""

    bytes: int
    sha256: str


def list_file(path: Path) -> Listed:
    """The file as it is on the disk now."""
    return Listed(path.stat().st_size, file_hash(path))


def manifest_text(files: Mapping[str, Listed]) -> str:
    """The content of `manifest.json`; the same files give the same text."""
    listed = {name: asdict(files[name]) for name in sorted(files)}
    content = {"format": FORMAT, "version": VERSION, "files": listed}
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n"


def has_manifest(folder: Path) -> bool:
    """Whether the folder has a manifest of ours, whole or not, of this version or another."""
    try:
        return FORMAT.encode() in (folder / MANIFEST).read_bytes()
    except OSError:
        return False


def read_manifest(folder: Path) -> dict[str, Listed]:
    """The files that the folder must have, by name.

    Raises:
        TornStateError: the manifest is damaged.
        UserError: it was written by a newer version, or cannot be read.
    """
    path = folder / MANIFEST
    with explained(path):
        text = path.read_bytes()
    try:
        content = json.loads(text)
        if content.pop("checksum") != _checksum(content):
            raise ValueError
        version = content["version"]
        if version == VERSION:
            return {_plain_name(name): Listed(**facts) for name, facts in content["files"].items()}
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise torn("its manifest is damaged", path) from error
    what = f"a state in version {version} of its format, and this program knows version {VERSION}"
    raise UserError.of(what, str(folder), "resume with the version of the program that wrote it, or a newer one")


def check_sizes(folder: Path, files: Mapping[str, Listed]) -> None:
    """Whether every file is there and has its size: quick, and finds what was cut off.

    Raises:
        TornStateError: it is not so.
    """
    for name, listed in files.items():
        path = folder / name
        if not path.is_file():
            raise torn(f"{name} is missing", folder)
        with explained(path):
            size = path.stat().st_size
        if size < listed.bytes:
            raise torn(f"it is cut off, {listed.bytes - size:,} of {listed.bytes:,} bytes are missing", path)
        if size > listed.bytes:
            raise torn(f"it has {size - listed.bytes:,} bytes too many", path)


def check_sum(folder: Path, name: str, listed: Listed) -> None:
    """Whether the file holds what was written.

    Raises:
        TornStateError: it does not.
        UserError: it cannot be read.
    """
    with explained(folder / name):
        if file_hash(folder / name) != listed.sha256:
            raise torn("its content is not what was written, the checksum is another", folder / name)


def torn(how: str, where: Path) -> TornStateError:
    """The error for a state that is not whole."""
    return TornStateError([Problem(f"the state is damaged: {how}", str(where), _FIX_TORN)])


def _plain_name(name: str) -> str:
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file in the folder")
    return name


def _checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
