"""The list of what a run has saved, NAME-saves.json in the output folder: what may be removed, what files must hold.

A JSON object `{"format": 1, "saves": […]}`, in the order in which the files were written. An entry has `kind` (epoch,
step, request, end), `is_state`, `step` and `epoch` (updates done, and the epoch of the last one, from 1), `names` (of
files and folders in the output folder that belong together) and `files`: each file by its path from there, with `size`
and `sha256`. What is not listed was not written by this run and is never removed.

Where states of that name lie there that the run has nothing to do with, of earlier runs and of a way that was left when
the run was resumed from an earlier state, `passed_over` has them: the SHA-256 of each one's manifest by its name. So a
state that was written and, because of a kill, never listed is still the run's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from library.checkpoint.manifest import MANIFEST
from library.checkpoint.naming import DEFAULT_LAST_NAME, epoch_stem, step_stem
from library.checkpoint.state import names_of
from library.core.atomic_io import write_text_whole
from library.core.errors import UserError
from library.core.json_files import read_json_object
from library.core.tensor_files import file_hash

EPOCH, STEP, REQUEST, END = "epoch", "step", "request", "end"
FORMAT = 1
_PASSED_OVER = "passed_over"
_NUMBERED = re.compile(r"-(?P<step>step)?(?P<number>\d+)$")


@dataclass(frozen=True)
class FileFacts:
    """A file as it was written: bytes, and SHA-256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Save:
    """Files and folders that were saved together.

    Attributes:
        kind: why it was saved, one of the four constants above.
        is_state: whether it is a state to resume from, or what was learned.
        step, epoch: updates done, and the epoch of the last one, counted from 1.
        names: files and folders in the output folder.
        files: every file by its path from the output folder, with forward slashes.
    """

    kind: str
    is_state: bool
    step: int
    epoch: int
    names: tuple[str, ...]
    files: Mapping[str, FileFacts]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(facts.size for facts in self.files.values())

    def is_as_written(self, folder: Path) -> bool:
        """Whether the files below the output folder are those that were written; reads all of them."""
        try:
            return files_of(folder, self.names) == self.files
        except OSError:
            return False


class SaveList:
    """The saves of one output name.

    Args:
        folder: the output folder.
        output_name: `--output_name`, or None.
        saves: in the order in which they were written.
        passed_over: states of this name that are not the run's, by name, with the SHA-256 of each one's manifest.
    """

    def __init__(
        self,
        folder: Path,
        output_name: str | None,
        saves: Iterable[Save] = (),
        passed_over: Mapping[str, str] | None = None,
    ) -> None:
        self.path = list_file(folder, output_name)
        self.saves = list(saves)
        self.passed_over = dict(passed_over or {})
        self._name = output_name

    @classmethod
    def read(cls, folder: Path, output_name: str | None) -> SaveList:
        """The list in `folder`; an empty one where there is none.

        Raises:
            UserError: it is damaged, or a newer version of this program wrote it.
        """
        path = list_file(folder, output_name)
        if not path.exists():
            return cls(folder, output_name)
        content = read_json_object(path)
        fix = "move it away; the files that it lists are then nobody's, and stay"
        if content.get("format") != FORMAT:
            raise UserError.of(f"its format is {content.get('format')!r}, and {FORMAT} is known", str(path), fix)
        try:
            passed_over = {str(name): str(digest) for name, digest in content.get(_PASSED_OVER, {}).items()}
            return cls(folder, output_name, [_as_save(entry) for entry in content["saves"]], passed_over)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError.of(f"is no list of saves: {error!r}", str(path), fix) from None

    def add(self, save: Save) -> None:
        """Lists what was written; what had one of its names before is gone."""
        self.saves = [other for other in self.saves if not set(other.names) & set(save.names)] + [save]
        for name in save.names:
            self.passed_over.pop(name, None)

    def drop(self, save: Save) -> None:
        """Forgets it."""
        self.saves.remove(save)

    def forget_after(self, step: int) -> None:
        """Forgets what was saved later: a run that goes on from there writes it again."""
        self.saves = [save for save in self.saves if save.step <= step]

    def of(self, kind: str, is_state: bool) -> list[Save]:
        """The saves of a kind, oldest first."""
        return [save for save in self.saves if save.kind == kind and save.is_state == is_state]

    def holds(self, name: str) -> bool:
        """Whether a file or folder of this name is listed."""
        return any(name in save.names for save in self.saves)

    def pass_over(self, states: Iterable[Path]) -> None:
        """Notes states in the folder that are not the run's, as they are now."""
        self.passed_over |= {state.name: _manifest_hash(state) for state in states}

    def passes_over(self, state: Path) -> bool:
        """Whether a state, wherever it lies, is one of those, and was not written anew since."""
        return self.passed_over.get(state.name) == _manifest_hash(state)

    def holds_state(self, state: Path) -> bool:
        """Whether a state, wherever it lies and whatever it is called, is a listed one or a copy of it."""
        known = {
            facts.sha256
            for save in self.saves
            if save.is_state
            for name, facts in save.files.items()
            if name.rpartition("/")[2] == MANIFEST
        }
        return _manifest_hash(state) in known

    def goes_on_with(self, state: Path) -> bool:
        """Whether a run that goes on from a state is the one that this is the list of: the state is listed, or lies
        beside the list and is the run's all the same (it was killed before it could list it, or the list is lost)."""
        if self.holds_state(state):
            return True
        is_beside = state.parent.resolve() == self.path.parent.resolve()
        return is_beside and self._name in names_of(state) and not self.passes_over(state)

    def write(self) -> None:
        """Writes the list, whole or not at all.

        Raises:
            OSError: it could not be written.
        """
        content: dict[str, Any] = {"format": FORMAT, "saves": [asdict(save) for save in self.saves]}
        if self.passed_over:
            content[_PASSED_OVER] = dict(sorted(self.passed_over.items()))
        write_text_whole(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def list_file(folder: Path, output_name: str | None) -> Path:
    """The list of a name: NAME-saves.json."""
    return folder / f"{output_name or DEFAULT_LAST_NAME}-saves.json"


def files_of(folder: Path, names: Iterable[str]) -> dict[str, FileFacts]:
    """What the files of these names, and all files below folders of these names, hold.

    Raises:
        OSError: one is not there or cannot be read.
    """
    found: dict[str, FileFacts] = {}
    for name in names:
        path = folder / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            found[file.relative_to(folder).as_posix()] = FileFacts(file.stat().st_size, file_hash(file))
    return found


def planned_number(stem: str, output_name: str | None) -> tuple[str, int] | None:
    """What a name without extension tells: (EPOCH, 3) of NAME-000003, (STEP, 12) of NAME-step00000012; else None."""
    found = _NUMBERED.search(stem)
    if found is None:
        return None
    number = int(found["number"])
    kind, name = (STEP, step_stem) if found["step"] else (EPOCH, epoch_stem)
    return (kind, number) if stem == name(output_name, number) else None


def _manifest_hash(state: Path) -> str:
    """Empty where there is none to read."""
    try:
        return file_hash(state / MANIFEST)
    except OSError:
        return ""


def _as_save(entry: Mapping[str, Any]) -> Save:
    """An entry as it was read; whatever is missing or of another kind raises."""
    if entry["kind"] not in (EPOCH, STEP, REQUEST, END):
        raise ValueError(f"unknown kind {entry['kind']!r}")
    names = tuple(str(name) for name in entry["names"])
    if any(name != Path(name).name or name in ("", ".", "..") for name in names):
        raise ValueError(f"{names} are no plain names")  # what is listed may be removed
    files = {str(path): FileFacts(int(facts["size"]), str(facts["sha256"])) for path, facts in entry["files"].items()}
    return Save(entry["kind"], bool(entry["is_state"]), int(entry["step"]), int(entry["epoch"]), names, files)
