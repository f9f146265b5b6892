"""Files that wait for their upload, kept so that neither a crash nor a clean-up can lose them.

The queue is a folder with a folder for each thing that is to be uploaded, numbered in their order. It holds a hard link
to each file (a copy where the file system has no links), so that the original may be deleted at any time, and
`entry.json`, which is written last: without it the folder is nothing. There is no token in it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from library.checkpoint.hub_client import RemoteFile, Repository
from library.checkpoint.naming import last_stem
from library.core.atomic_io import write_text_whole
from library.core.log import get_logger

log = get_logger(__name__)

_ENTRY = "entry.json"
_ENDING = "-uploads"
_FORMAT = 1
_DIGITS = 8
_FORSAKEN = 60 * 60  # seconds after which an unfinished entry belongs to nobody


@dataclass(frozen=True)
class UploadPlace:
    """Where on the Hub something goes.

    Attributes:
        is_public: of a repository that is made for it.
        name: the path in the repository of the file, or of the folder.
        is_set: whether the remote folder shall hold the files of ours and no other (a state).
    """

    repository: Repository
    is_public: bool
    name: str
    is_set: bool = False


@dataclass(frozen=True)
class QueueEntry:
    """One thing that becomes one commit: a file, or a folder with all its files; `number` is its turn."""

    number: int
    place: UploadPlace
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    def replaces(self, older: QueueEntry) -> bool:
        """Whether the older one need not be uploaded any more."""
        is_same_place = (self.place.repository, self.place.name) == (older.place.repository, older.place.name)
        return is_same_place and self.number > older.number


def queue_folder(output_dir: Path, output_name: str | None) -> Path:
    """Where the uploads of a run wait: `.NAME-uploads` in its output folder."""
    return output_dir / f".{last_stem(output_name)}{_ENDING}"


def queues_in(output_dir: Path) -> list[Path]:
    """The queues of all runs that wrote into this folder."""
    return sorted(path for path in output_dir.glob(f".*{_ENDING}") if path.is_dir())


def waiting_sizes(output_dir: Path) -> dict[Path, int]:
    """The queues in this folder that hold files, with their bytes; these stay on the disk until they are uploaded, also
    where the files they were linked to are deleted."""
    sizes = {}
    for folder in queues_in(output_dir):
        size = 0
        for parent, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):  # it was just uploaded
                    size += (Path(parent) / name).stat().st_size if name != _ENTRY else 0
        if size:
            sizes[folder] = size
    return sizes


class UploadQueue:
    """The queue of a run, in memory and on disk; threads may share it.

    Args:
        folder: `queue_folder`; it need not be there, and goes when the queue is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._entries = {entry.number: entry for entry in _read_entries(folder)}
        self._last = max(self._entries, default=0)
        self._in_work: int | None = None
        _clear_away(folder)

    def entries(self) -> list[QueueEntry]:
        """What waits, the first first."""
        with self._lock:
            return [self._entries[number] for number in sorted(self._entries)]

    def add(self, source: Path, place: UploadPlace) -> QueueEntry:
        """Puts a file or folder at the end; what waits for the same place goes, unless it is being uploaded.

        Args:
            source: complete, and never written to again.

        Raises:
            OSError: it could not be linked or copied; nothing is queued.
        """
        with self._lock:
            self._last = self._make_folder(self._last + 1)
            folder = self._folder_of(self._last)
            try:
                entry = QueueEntry(self._last, place, _take_files(source, place.name, folder))
                write_text_whole(folder / _ENTRY, _to_text(entry))
            except OSError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            self._entries[entry.number] = entry
            for older in list(self._entries.values()):
                if entry.replaces(older) and older.number != self._in_work:
                    self._remove(older.number)
            return entry

    def begin(self, entry: QueueEntry) -> bool:
        """Marks an entry as being uploaded, so that it stays until `end`; False where it is gone."""
        with self._lock:
            self._in_work = entry.number if entry.number in self._entries else None
            return self._in_work is not None

    def end(self, entry: QueueEntry, is_uploaded: bool) -> None:
        """The upload of an entry is over; it goes when it was made, or a newer one waits for the same place."""
        with self._lock:
            self._in_work = None
            is_replaced = any(other.replaces(entry) for other in self._entries.values())
            if (is_uploaded or is_replaced) and entry.number in self._entries:
                self._remove(entry.number)

    def folder_of(self, entry: QueueEntry) -> Path:
        """Where an entry lies; who deletes it drops the upload."""
        return self._folder_of(entry.number)

    def _make_folder(self, number: int) -> int:
        while True:  # another run may use the same queue
            try:
                self._folder_of(number).mkdir(parents=True)
                return number
            except FileExistsError:
                number += 1

    def _remove(self, number: int) -> None:
        del self._entries[number]
        folder = self._folder_of(number)
        with suppress(OSError):
            (folder / _ENTRY).unlink(missing_ok=True)  # first: what is half removed is no entry
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # as long as others are in it
            self.folder.rmdir()

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"{number:0{_DIGITS}d}"


def _take_files(source: Path, name: str, folder: Path) -> tuple[RemoteFile, ...]:
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.is_file())
        pairs = [(str(PurePosixPath(name, path.relative_to(source).as_posix())), path) for path in found]
    else:
        pairs = [(name, source)]
    files = []
    for place, (path_in_repo, path) in enumerate(pairs):
        stored = folder / str(place)
        _link(path, stored)
        files.append(RemoteFile(path_in_repo, stored, stored.stat().st_size))
    return tuple(files)


def _link(path: Path, link: Path) -> None:
    try:
        os.link(path, link)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, link)
        with link.open("rb+") as file:
            os.fsync(file.fileno())


def _to_text(entry: QueueEntry) -> str:
    content = {
        "format": _FORMAT,
        "repo_id": entry.place.repository.repo_id,
        "repo_type": entry.place.repository.repo_type,
        "is_public": entry.place.is_public,
        "name": entry.place.name,
        "is_set": entry.place.is_set,
        "files": [{"path": file.path_in_repo, "size": file.size} for file in entry.files],
    }
    return json.dumps(content, indent=2) + "\n"


def _read_entries(folder: Path) -> list[QueueEntry]:
    if not folder.is_dir():
        return []
    entries = []
    for path in sorted(folder.iterdir()):
        if _is_entry_name(path.name) and (path / _ENTRY).is_file():
            try:
                content = json.loads((path / _ENTRY).read_text(encoding="utf-8"))
                entries.append(_from_content(path, content))
            except (OSError, ValueError, KeyError, TypeError):
                log.warning("%s cannot be read and is not uploaded; its files are beside it", path / _ENTRY)
    return entries


def _from_content(folder: Path, content: dict[str, Any]) -> QueueEntry:
    if content["format"] != _FORMAT:
        raise ValueError("of another version")
    files = [
        RemoteFile(str(file["path"]), folder / str(place), int(file["size"]))
        for place, file in enumerate(content["files"])
    ]
    repository = Repository(str(content["repo_id"]), str(content["repo_type"]))
    place = UploadPlace(repository, bool(content["is_public"]), str(content["name"]), bool(content["is_set"]))
    return QueueEntry(int(folder.name), place, tuple(files))


def _clear_away(folder: Path) -> None:
    """Removes what a killed run had not finished; it may hold links to gigabytes."""
    with suppress(OSError):
        for path in folder.iterdir():
            is_unfinished = _is_entry_name(path.name) and not (path / _ENTRY).exists()
            if is_unfinished and time.time() - path.stat().st_mtime > _FORSAKEN:
                shutil.rmtree(path, ignore_errors=True)


def _is_entry_name(name: str) -> bool:
    return len(name) >= _DIGITS and name.isascii() and name.isdecimal()
