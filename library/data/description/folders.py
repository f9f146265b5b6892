"""Old-style folders (`N_identifier class` below one parent) as the dictionary a dataset file would have given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library.core.errors import Problems
from library.data.pictures.images import list_images

_REPEATS_AND_TEXT = re.compile(r"(\d+)_(.*)", re.DOTALL)


@dataclass(frozen=True)
class _Parent:
    """What lies directly in the folder that a flag names."""

    path: Path
    flag: str
    is_reg: bool
    numbered: tuple[Path, ...]  # N_text folders
    other: tuple[Path, ...]  # folders without a number that hold pictures
    loose_pictures: int

    @property
    def pattern(self) -> str:
        return "N_class" if self.is_reg else "N_identifier class"


def subset_tables(path: Path, flag: str, is_reg: bool, problems: Problems, notes: list[str]) -> list[dict[str, Any]]:
    """The subsets that an old-style parent folder stands for, as TOML tables.

    Args:
        path: the folder the user named.
        flag: the option that named it, for messages.
        is_reg: whether it holds regularisation pictures.
        problems: receives what would silently not be trained, and folders that cannot be understood.
        notes: receives how a plain folder of pictures was understood.
    """
    parent = _look_into(path, flag, is_reg, problems)
    if parent is None:
        return []
    _report_untrained(parent, problems)
    if parent.numbered:
        return [table for table in (_numbered_table(parent, folder, problems) for folder in parent.numbered) if table]
    if not parent.loose_pictures:
        if not parent.other:
            fix = f"put the pictures into a folder named {parent.pattern} below it, such as 10_shs dog"
            problems.add(f"neither pictures nor folders named {parent.pattern} in {path}", flag, fix)
        return []
    if _REPEATS_AND_TEXT.fullmatch(path.resolve().name):
        fix = f"give its parent {path.resolve().parent}"
        problems.add(f"{path} is itself a folder named {parent.pattern}; its parent is needed", flag, fix)
        return []
    notes.append(
        f"{flag} {path}: a plain folder of {parent.loose_pictures} pictures: each is used once an epoch, "
        f"captions come from files (a folder named {parent.pattern} below it would set repeats and text)"
    )
    return [{"image_dir": str(path), "num_repeats": 1, "is_reg": is_reg}]


def metadata_tables(file: str, image_dir: str | None, problems: Problems) -> list[dict[str, Any]]:
    """The subset that `--in_json` and `--train_data_dir` stand for, as a TOML table.

    Args:
        file: the metadata file.
        image_dir: the folder from which its keys count; None where they are full paths.
        problems: receives a folder that is none; what the file holds is judged with the pictures.
    """
    if image_dir is None:
        return [{"metadata_file": file}]
    if not _is_folder(Path(image_dir), "--train_data_dir", problems):
        return []
    return [{"image_dir": image_dir, "metadata_file": file}]


def _is_folder(path: Path, flag: str, problems: Problems) -> bool:
    if path.is_dir():
        return True
    what = "is a file, a folder is needed" if path.exists() else "does not exist"
    problems.add(f"{path} {what}", flag, "check the path")
    return False


def _look_into(path: Path, flag: str, is_reg: bool, problems: Problems) -> _Parent | None:
    if not _is_folder(path, flag, problems):
        return None
    try:
        folders = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
        numbered = [folder for folder in folders if _REPEATS_AND_TEXT.fullmatch(folder.name)]
        other = [folder for folder in folders if folder not in numbered and list_images(folder)]
        return _Parent(path, flag, is_reg, tuple(numbered), tuple(other), len(list_images(path)))
    except OSError as error:
        problems.add(f"cannot read {error.filename}: {error.strerror}", flag, "check the rights of the folder")
        return None


def _report_untrained(parent: _Parent, problems: Problems) -> None:
    if parent.other:
        names = ", ".join(folder.name for folder in parent.other)
        example = f"10_{parent.other[0].name}"
        fix = f"rename them to {parent.pattern} (number, underscore, text; such as {example}) or move them away"
        problems.add(
            f"folders with pictures but without a number of repeats: {names}", f"{parent.flag} {parent.path}", fix
        )
    if parent.numbered and parent.loose_pictures:
        what = f"{parent.loose_pictures} pictures lie beside the {parent.pattern} folders and would not be trained"
        fix = f"move them into a folder named {parent.pattern}"
        problems.add(what, f"{parent.flag} {parent.path}", fix)


def _numbered_table(parent: _Parent, folder: Path, problems: Problems) -> dict[str, Any] | None:
    match = _REPEATS_AND_TEXT.fullmatch(folder.name)
    if match is None or int(match[1]) == 0:
        fix = "give 1 repeat or more, or move the folder away"
        problems.add(f"the folder name {folder.name} asks for 0 repeats", f"{parent.flag} {folder}", fix)
        return None
    table: dict[str, Any] = {"image_dir": str(folder), "num_repeats": int(match[1]), "is_reg": parent.is_reg}
    text = match[2].strip()
    return {**table, "class_tokens": text} if text else table
