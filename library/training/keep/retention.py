"""The files that a run has saved so far, and which of them go when newer ones have come."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from library.checkpoint.manifest import MANIFEST, read_manifest
from library.checkpoint.naming import STATE_ENDING
from library.checkpoint.saves import END, EPOCH, STEP, FileFacts, Save, SaveList, files_of
from library.checkpoint.state import place_of, state_folders
from library.core.atomic_io import remove_left_overs, temporary_name
from library.core.errors import UserError
from library.core.log import get_logger
from library.core.whole_folder import remove_left_over_folders
from library.options.keeping import KeepingOptions

log = get_logger(__name__)

_ENDINGS = (".safetensors", ".ckpt", ".pt", ".json", ".yaml", "")  # of files that are written here
_REMOVED = ".new"  # of a folder that a process left behind; those who write folders clear it away
_Seen = tuple[tuple[str, int, int, int], ...]


class KeptFiles:
    """Lists what is saved in NAME-saves.json, and removes what is older than the options ask to keep.

    Only what is listed is ever removed, and only while it is what was written. A list that cannot be written is told;
    nothing else depends on it.

    Args:
        folder: the output folder.
        name: `--output_name`, or None.
    """

    def __init__(self, folder: Path, name: str | None, options: KeepingOptions) -> None:
        self._folder = folder
        self._name = name
        self._options = options
        self._list = SaveList(folder, name)
        self._keeps_list = False
        self._seen: dict[str, _Seen] = {}  # what this process wrote, by its first name: it need not be read again

    @property
    def path(self) -> Path:
        """Of the list."""
        return self._list.path

    def begin(self, resumed: Path | None, step: int, saves_on_way: bool) -> None:
        """Clears away what killed processes left, and takes up the list of the run that is resumed.

        A new run begins with an empty list, so that what an earlier run of that name has saved is not taken for its
        own, and so does one that goes on from a state of another run. States that are not the run's are passed over
        from now on. One that saves nothing but its end needs no list where there are none.

        Args:
            resumed: the state folder that the run goes on from; None where it begins.
            step: updates done.
            saves_on_way: whether more than the file of the end will be saved.
        """
        for ending in _ENDINGS:
            remove_left_overs(self._folder, ending)
        remove_left_over_folders(self._folder)
        others = [state for state in state_folders(self._folder, self._name) if not _is_same(state, resumed)]
        self._keeps_list = saves_on_way or resumed is not None or bool(others) or self._list.path.exists()
        if resumed is not None and self._take_up(resumed):
            self._list.forget_after(step)
            for save in [save for save in self._list.saves if not self._is_there(save)]:
                self._list.drop(save)  # removed, and the run was killed before it could say so
            self._adopt(resumed, step)
            others = [state for state in others if _is_after(state, step) and not self._list.holds(state.name)]
        self._list.pass_over(others)
        self.write()

    def _take_up(self, resumed: Path) -> bool:
        """Reads the list of the run that is resumed; whether there is one, and it is this run's."""
        try:
            found = SaveList.read(self._folder, self._name)
        except UserError as error:
            log.warning("%s; a new list is begun, and no older file is removed", error)
            return False
        if found.goes_on_with(resumed):
            self._list = found
            return True
        if found.saves:
            log.info("%s is of another run, so a new list is begun, and no older file is removed", found.path)
        return False

    def add(self, kind: str, is_state: bool, place: tuple[int, int], paths: Sequence[Path]) -> None:
        """Lists what was just written.

        Args:
            kind: one of `library.checkpoint.saves`.
            place: updates done, and the epoch of the last one.
            paths: files and folders in the output folder.
        """
        self._keeps_list = self._keeps_list or is_state or kind != END
        if not self._keeps_list:
            return
        names = tuple(path.name for path in paths)
        try:
            files = _files_of_state(paths[0]) if is_state else files_of(self._folder, names)
        except (OSError, UserError) as error:
            log.warning("%s was written and cannot be read: %s", paths[0], error)
            return
        self._list.add(Save(kind, is_state, *place, names, files))
        self._seen[names[0]] = _look(self._folder, names)
        self.write()

    def retire(self, kinds: Collection[tuple[str, bool]], step: int) -> None:
        """Removes what has become too old.

        Args:
            kinds: of what was just written, each with whether it is a state: nothing goes without a newer one.
            step: updates done.
        """
        old = [save for kind, is_state in sorted(kinds) for save in self._too_old(kind, is_state, step)]
        for save in old:
            if self._is_ours(save):
                for name in save.names:
                    with suppress(OSError):  # it stays, and nobody is hurt
                        remove_whole(self._folder / name)
            elif self._is_there(save):
                log.info("%s is not what was saved under that name, so it stays", self._folder / save.names[0])
            self._list.drop(save)
            self._seen.pop(save.names[0], None)
        if old:
            self.write()

    def write(self) -> None:
        """Writes the list, where there is one."""
        if not self._keeps_list:
            return
        try:
            self._list.write()
        except OSError as error:
            log.warning("%s could not be written: %s", self._list.path, error.strerror or error)

    def _too_old(self, kind: str, is_state: bool, step: int) -> list[Save]:
        options, saves = self._options, self._list.of(kind, is_state)
        if kind == EPOCH:
            own = options.save_last_n_epochs_state if is_state else None
            count = own or options.save_last_n_epochs
            return saves[:-count] if count is not None else []
        if kind == STEP:
            own = options.save_last_n_steps_state if is_state else None
            reach = own or options.save_last_n_steps
            return [save for save in saves[:-1] if save.step < step - reach] if reach is not None else []
        return []

    def _is_there(self, save: Save) -> bool:
        return any((self._folder / name).exists() for name in save.names)

    def _is_ours(self, save: Save) -> bool:
        seen = self._seen.get(save.names[0])
        if seen is not None and seen == _look(self._folder, save.names):
            return True
        return save.is_as_written(self._folder)

    def _adopt(self, state: Path, step: int) -> None:
        """Lists the state that the run goes on from, where the run that wrote it was killed before it could: it is of
        the kind of the files of its name."""
        if state.parent.resolve() != self._folder.resolve() or self._list.holds(state.name):
            return
        stem = state.name.removesuffix(STATE_ENDING)
        beside = (save for save in self._list.saves if any(_stem(name) == stem for name in save.names))
        weights = next((save for save in beside if save.step == step), None)
        if weights is not None:
            with suppress(OSError, UserError):
                files = _files_of_state(state)
                self._list.add(Save(weights.kind, True, step, weights.epoch, (state.name,), files))


def remove_whole(path: Path) -> None:
    """Removes a file or folder; at no moment is a part of it left under its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path.with_name(temporary_name(_REMOVED))
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _is_same(state: Path, resumed: Path | None) -> bool:
    return resumed is not None and state.resolve() == resumed.resolve()


def _is_after(state: Path, step: int) -> bool:
    """Also where it is not known."""
    reached, _ = place_of(state)
    return reached is None or reached > step


def _files_of_state(folder: Path) -> dict[str, FileFacts]:
    """As its manifest has them, which were compared when it was written; large states are not read once more."""
    listed = {
        f"{folder.name}/{name}": FileFacts(facts.bytes, facts.sha256) for name, facts in read_manifest(folder).items()
    }
    return listed | files_of(folder.parent, [f"{folder.name}/{MANIFEST}"])


def _look(folder: Path, names: Collection[str]) -> _Seen:
    """What changes when a file is replaced or written to, without reading it."""
    found = []
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            with suppress(OSError):
                at = file.stat()
                found.append((str(file), at.st_ino, at.st_mtime_ns, at.st_size))
    return tuple(found)


def _stem(name: str) -> str:
    ending = next((ending for ending in _ENDINGS if ending and name.endswith(ending)), "")
    return name.removesuffix(ending)
