"""One file from the Hugging Face Hub: under its final name only when it is whole and checked.

What has arrived lies beside it as `NAME.KEY.part`, where the key stands for the content, so that a transfer that was
cut goes on where it stopped, and never with another version. huggingface_hub 2.4 itself would begin anew (its
unfinished file is gone at the first error), compare no checksum, and leave a folder of its own behind.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from tqdm import tqdm

from library.core.atomic_io import flush_folder
from library.core.errors import printable
from library.core.file_lock import alone_with, remove_held, remove_unless_held, rename_held
from library.core.hub_errors import Fault, asked_again
from library.core.log import get_logger

log = get_logger(__name__)

PAUSES = (1.0, 3.0, 10.0)
_CONNECT_SECONDS = 10.0
_SHOWN_FROM = 1 << 20  # bytes; a smaller file needs no progress bar
_BLOCK = 1 << 20
_PART = ".part"
_KEY_LENGTH = 12


class WrongContent(Exception):  # noqa: N818 (the Hub's, not ours)
    """What arrived is not what the Hub says the file holds; nothing of it was kept."""


class NoRoom(Exception):  # noqa: N818 (nothing has failed yet)
    """The disk has less room than the file needs."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"needs {_megabytes(needed)}, {_megabytes(free)} are free")


@dataclass(frozen=True)
class HubFile:
    """A file of one version of a repository, as the Hub lists it.

    Attributes:
        commit: the version.
        size: in bytes; None where the Hub does not tell.
        sha256: of its content, as hexadecimal digits; large files alone have it.
        blob_id: what git calls the content, the SHA-1 of "blob SIZE" and it; only where it is no large file.
    """

    repo_id: str
    commit: str
    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None

    @property
    def key(self) -> str:
        """Stands for the content: parts of files with the same key can be continued by each other."""
        known = self.sha256 or self.blob_id or f"{self.commit}/{self.name}"
        return hashlib.sha256(known.encode()).hexdigest()[:_KEY_LENGTH]

    def is_content_of(self, path: Path) -> bool:
        """Whether a file holds just this, as far as the Hub tells what it is."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return False
        if self.sha256 is not None:
            return _digest(path, hashlib.sha256()) == self.sha256
        return self.blob_id is None or _digest(path, hashlib.sha1(b"blob %d\0" % size)) == self.blob_id


def bring(file: HubFile, target: Path, pauses: Sequence[float] = PAUSES) -> None:
    """Makes `target` the file of the Hub; nothing is transferred where it is that already.

    Of several processes that want the same file one fetches it, and the others wait. What has arrived of it stays for
    the next time when something goes wrong on the way.

    Args:
        pauses: seconds before each further try, when nothing has arrived since the one before.

    Raises:
        WrongContent, NoRoom: see there.
        Exception: whatever huggingface_hub, its network layer or the disk raise; see `hub_errors.told_as`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{file.key}{_PART}")
    shown = printable(file.name)
    with alone_with(part, lambda: log.info("%s: another process fetches it; waiting", shown)) as held:
        try:
            if _is_there(file, target):
                remove_held(held, part)
            else:
                _fill(file, held, part, pauses)
                rename_held(held, part, target)
        except BaseException:
            if part.is_file() and part.stat().st_size == 0:
                remove_held(held, part)
            raise
    flush_folder(target.parent)
    for other in target.parent.iterdir():  # begun from versions that are out of date by now
        if re.fullmatch(rf"{re.escape(target.name)}\.[0-9a-f]{{{_KEY_LENGTH}}}{re.escape(_PART)}", other.name):
            remove_unless_held(other)


def _is_there(file: HubFile, target: Path) -> bool:
    is_told = file.sha256 is not None or file.blob_id is not None  # a size alone proves nothing
    return is_told and target.is_file() and file.is_content_of(target)


def _fill(file: HubFile, held: FileIO, part: Path, pauses: Sequence[float]) -> None:
    """Brings what is missing into the part, and checks all of it; a beginning from before may have been spoilt."""
    begun = _length(held)
    if begun:
        log.info("%s: goes on after %s", printable(file.name), _megabytes(begun))
    while True:
        _check_room(file, held, part)
        _receive(file, held, pauses)
        os.fsync(held.fileno())
        if file.is_content_of(part):
            return
        held.truncate(0)
        if not begun:
            raise WrongContent
        log.warning("%s: what was there of it is spoilt; fetching it anew", printable(file.name))
        begun = 0


def _check_room(file: HubFile, held: FileIO, part: Path) -> None:
    needed = (file.size or 0) - _length(held)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise NoRoom(needed, free)


def _receive(file: HubFile, held: FileIO, pauses: Sequence[float]) -> None:
    """Until all of it is here, with new tries when the line is cut or the Hub is busy."""
    is_long = file.size is None or file.size >= _SHOWN_FROM
    shown = printable(file.name)
    with tqdm(
        desc=shown, total=file.size, initial=_length(held), unit="B", unit_scale=True, disable=not is_long
    ) as bar:
        if file.size is None or _length(held) != file.size:
            asked_again(lambda: _request(file, held, bar), shown, pauses, _may_pass, lambda: _length(held))


def _may_pass(fault: Fault) -> bool:
    return fault.is_passing


def _request(file: HubFile, held: FileIO, bar: tqdm[Any]) -> None:
    """Asks once for what is missing, and writes it as it comes."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    start = _length(held)
    # compressed, the Hub could not go on at a place; the network layer takes the token off where an answer names
    # another host (the Hub's store)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    wait = max(1.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT))
    timeout = (min(wait, _CONNECT_SECONDS), wait, wait, wait)  # connect, read, write, pool
    url = hf_hub_url(file.repo_id, file.name, revision=file.commit)
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        if start and response.status_code == 416:  # nothing lies behind the part: the check will tell
            return
        hf_raise_for_status(response)
        if start and not _goes_on_at(start, response):
            held.truncate(0)
            bar.update(-bar.n)
            if response.status_code != 200:  # with that, all of it comes from the beginning
                raise ConnectionError("another place than the one asked for")
        for block in response.iter_bytes():
            _write(held, block)
            bar.update(len(block))
            if file.size is not None and _length(held) > file.size:
                return  # the check will find it wrong; more of it would only fill the disk
    if file.size is not None and _length(held) < file.size:
        raise ConnectionError("the answer ended early")


def _goes_on_at(start: int, response: Any) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and found is not None and int(found[1]) == start


def _write(held: FileIO, block: bytes) -> None:
    """All of it at the end of the file; by itself a file without a buffer may take a part only."""
    held.seek(0, os.SEEK_END)
    rest = memoryview(block)
    while rest:
        rest = rest[held.write(rest) :]


def _length(held: FileIO) -> int:
    return held.seek(0, os.SEEK_END)


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
