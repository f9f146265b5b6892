"""What is resized to where: found and checked before the first picture is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from library.core.atomic_io import why_not_writable
from library.core.errors import Problems
from library.data.pictures.picture_kinds import is_picture_name, other_pictures, system_path
from library.options.preparation import ResizeOptions
from library.preparation.picture_folders import PictureFolder, list_folders
from library.preparation.resizing import FolderOfCopies

_NEVER_COPIED = (".npz",)  # cached latents: those of the picture's own size


def plan_copies(options: ResizeOptions) -> list[FolderOfCopies]:
    """The pictures of SRC, the folders of their copies, and the files that go with them.

    Raises:
        UserError: with everything that is wrong: SRC is missing or holds no pictures, DST is SRC or lies where it would
            be read or written as well, DST cannot be written to, two pictures would share a name.
    """
    problems = Problems()
    source, target = Path(options.src_img_folder), Path(options.dst_img_folder)
    folders = list_folders([options.src_img_folder], options.recursive, problems)
    _check_places(source, target, options.recursive, problems)
    planned = []
    for folder in folders:
        _check_stems(folder, problems)
        beside = _files_beside(folder) if options.copy_associated_files else {}
        place = target / os.path.relpath(folder.folder, source)
        planned.append(FolderOfCopies(folder.folder, place, folder.names, beside))
    problems.raise_if_any()
    return planned


def _check_places(source: Path, target: Path, recursive: bool, problems: Problems) -> None:
    real, real_target = _real(source), _real(target)
    if real == real_target:
        problems.add("SRC and DST are one folder", str(target), "name another folder for the copies")
    elif recursive and real in real_target.parents:
        problems.add("DST lies in SRC: copies would be made of copies", str(target), "name a folder outside of SRC")
    elif recursive and real_target in real.parents:
        problems.add("SRC lies in DST: copies could come among the pictures", str(target), "name another folder")
    if target.exists() and not target.is_dir():
        problems.add("this is a file; a folder for the copies is expected", str(target), "name another folder")
        return
    there = next((folder for folder in (real_target, *real_target.parents) if folder.is_dir()), None)
    error = why_not_writable(there) if there is not None else None
    if error is not None:
        problems.add(f"cannot write there: {error.strerror}", str(target), "name another folder, or change its rights")


def _real(path: Path) -> Path:
    return Path(os.path.normcase(os.path.realpath(path)))


def _check_stems(folder: PictureFolder, problems: Problems) -> None:
    """Copies are named by stems; names that differ in case alone are one on Windows and macOS."""
    known: dict[str, str] = {}
    for name in folder.names:
        first = known.setdefault(Path(name).stem.casefold(), name)
        if first != name:
            what = f"the copies of {first} and {name} would have the same name"
            problems.add(what, str(folder.folder), "rename one of them, or take it out of the folder")


def _files_beside(folder: PictureFolder) -> Mapping[str, Sequence[str]]:
    """For stems of pictures the other files with that stem, sorted; no pictures, no cached latents, nothing hidden."""
    stems = {Path(name).stem for name in folder.names}
    pictures = set(other_pictures(folder.folder))
    found: dict[str, list[str]] = {}
    with os.scandir(system_path(folder.folder)) as entries:
        for entry in entries:
            stem, ending = os.path.splitext(entry.name)  # noqa: PTH122
            is_other = ending.lower() in _NEVER_COPIED or is_picture_name(entry.name) or entry.name in pictures
            if stem in stems and not is_other and ending and not entry.is_dir(follow_symlinks=False):
                found.setdefault(stem, []).append(entry.name)
    return {stem: sorted(names) for stem, names in found.items()}
