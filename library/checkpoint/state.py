"""State folders: what a run needs to go on as if it had never stopped.

A folder holds `facts.json` (what people and checks read), for each part `PART.json` (`library/core/nested.py`) and,
where the part has tensors, `PART.safetensors` (named by number), and the list of all these (`manifest.py`). No time is
noted and no path: equal states are equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from library.checkpoint.manifest import (
    MANIFEST,
    Listed,
    check_sizes,
    check_sum,
    has_manifest,
    list_file,
    manifest_text,
    read_manifest,
    torn,
)
from library.checkpoint.naming import DEFAULT_EPOCH_NAME, DEFAULT_LAST_NAME, DEFAULT_STEP_NAME, STATE_ENDING
from library.core.atomic_io import write_text_whole
from library.core.errors import UserError
from library.core.nested import put_together, take_apart
from library.core.pickled import explained
from library.core.tensor_files import read_safetensors, write_safetensors
from library.core.whole_folder import folders_aside, remove_left_over_folders, write_whole_folder

FACTS = "facts.json"
NAME_FACT = "name"  # of the run, None for one without; states of before it was noted have none
_PLAIN, _TENSORS = ".json", ".safetensors"
_PART_NAME = re.compile("[a-z][a-z0-9_]*")
_NUMBERED = re.compile("(?P<name>.+)-(?P<step>step(?=[0-9]{8}))?(?P<number>[0-9]{6,})")
_RESERVED = {Path(MANIFEST).stem, Path(FACTS).stem}


# --- writing ----------------------------------------------------------------------------------------------------------


def write_state(folder: Path, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes a state folder, whole or not at all; an older one of that name is there until the new one is complete.

    Every file is read again and compared before the folder gets its name. Tensors are written one at a time.

    Args:
        folder: final name. What lies in it and belongs to no state stays.
        parts: nested values by name (lower case letters, digits, underscores).
        facts: plain JSON; `step` (updates done) and `epoch` (of the last one, from 1) among it, and `NAME_FACT`.

    Raises:
        UserError: a part holds what cannot be kept in a file.
        OSError: the disk is full or failing; the older state of that name is as it was.
        ValueError: names or facts are not what they must be.
    """
    wrong = [name for name in parts if not _PART_NAME.fullmatch(name) or name in _RESERVED]
    if wrong or not _are_facts(facts):
        raise ValueError(f"names of parts, or facts, are not what they must be: {wrong or dict(facts)}")
    names = {name + ending for name in parts for ending in (_PLAIN, _TENSORS)}
    own = {MANIFEST, FACTS, *names, *_names_in(folder)}
    write_whole_folder(folder, partial(_fill, parts=parts, facts=facts), own)


def _fill(folder: Path, parts: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes the files of a state into an empty folder."""
    files = {FACTS: _write_text(folder / FACTS, json.dumps(facts, indent=1, allow_nan=False))}
    for name, part in parts.items():
        try:
            plain, tensors = take_apart(part)
            files[name + _PLAIN] = _write_text(folder / (name + _PLAIN), json.dumps(plain, separators=(",", ":")))
            if tensors:
                files[name + _TENSORS] = _write_tensors(folder / (name + _TENSORS), tensors)
        except ValueError as error:
            fix = "train without --save_state, or with another optimizer or schedule"
            raise UserError.of(f"{error}", f"state of the run, {name}", fix) from error
    _write_text(folder / MANIFEST, manifest_text(files).rstrip("\n"))


def _write_text(path: Path, text: str) -> Listed:
    write_text_whole(path, text + "\n")
    if path.read_bytes() != (text + "\n").encode():
        raise _not_as_written(path)
    return list_file(path)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Listed:
    write_safetensors(path, tensors, {})
    with safe_open(str(path), framework="pt") as file:
        for name, tensor in tensors.items():
            if not _are_same(file.get_tensor(name), tensor.to("cpu")):
                raise _not_as_written(path)
    return list_file(path)


def _are_same(found: Tensor, written: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself."""
    if (found.dtype, found.shape) != (written.dtype, written.shape) or not found.numel():
        return (found.dtype, found.shape) == (written.dtype, written.shape)
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (found, written)))


def _not_as_written(path: Path) -> OSError:
    return OSError(f"{path.name} was not written as asked; the disk may be full or failing")


# --- reading ----------------------------------------------------------------------------------------------------------


def is_state(folder: Path) -> bool:
    """Whether this is a state folder of ours, whole or torn; one that lost its manifest is not known any more."""
    return has_manifest(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a state; quick, for the numbers themselves are not read: only that every file has its size.

    Raises:
        TornStateError: a file is missing or has another size.
        UserError: the folder is not there, is no state, or was written by a newer version.
    """
    _refuse_what_is_none(folder)
    files = read_manifest(folder)
    check_sizes(folder, files)
    if FACTS not in files:
        raise torn(f"{FACTS} is not in its manifest", folder)
    check_sum(folder, FACTS, files[FACTS])
    facts = _read_json(folder / FACTS)
    if not isinstance(facts, dict) or not _are_facts(facts):
        raise torn("it does not say where the run stood", folder / FACTS)
    return facts


def check_state(folder: Path) -> None:
    """Compares the checksum of every file; takes as long as reading them.

    Raises:
        TornStateError: a file is missing, or is not what was written.
        UserError: as `read_facts`.
    """
    read_facts(folder)
    for name, listed in read_manifest(folder).items():
        check_sum(folder, name, listed)


def read_state(folder: Path) -> dict[str, Any]:
    """The parts as they were given to `write_state`, tensors in CPU memory of their own. Checksums are compared.

    Raises:
        UserError: as `check_state`.
    """
    return {name: read_part(folder, name) for name in part_names(folder)}


def part_names(folder: Path) -> list[str]:
    """The parts that a state has, sorted.

    Raises:
        UserError: as `read_facts`.
    """
    read_facts(folder)
    found = (Path(name) for name in read_manifest(folder) if name != FACTS)
    return sorted(path.stem for path in found if path.suffix == _PLAIN)


def read_part(folder: Path, name: str) -> Any:
    """One part of a state, for those who want to hold one at a time.

    Raises:
        UserError: as `check_state`.
        KeyError: the state has no such part.
    """
    files = read_manifest(folder)
    plain, tensors = files[name + _PLAIN], files.get(name + _TENSORS)
    own = {name + _PLAIN: plain} | ({} if tensors is None else {name + _TENSORS: tensors})
    check_sizes(folder, own)
    for file, listed in own.items():
        check_sum(folder, file, listed)
    try:
        found = {} if tensors is None else read_safetensors(folder / (name + _TENSORS))
        return put_together(_read_json(folder / (name + _PLAIN)), found)
    except ValueError as error:
        raise torn(str(error), folder / (name + _PLAIN)) from error


def states_of(output_dir: Path, output_name: str | None) -> list[Path]:
    """The states of the runs with this name that look whole, the one with the most updates first.

    One whose replacement was cut off is put back first, or found where it lies aside while the process that did it may
    still live. See `state_folders`.
    """
    steps = [(path, _step_of(path)) for path in state_folders(output_dir, output_name)]
    return [path for path, step in sorted(steps, key=lambda pair: -pair[1]) if step >= 0]


def state_folders(output_dir: Path, output_name: str | None) -> list[Path]:
    """All states of the runs with this name, whole or torn, sorted by name.

    A state must be called like one of this name. Where its facts tell the name of its run (`NAME_FACT`), that must be
    the same: a run called `NAME-000001` ends with a state that is called like the first epoch's of one called `NAME`.
    """
    remove_left_over_folders(output_dir)
    try:
        beside = sorted(output_dir.iterdir())
    except OSError:
        return []
    ours = (path for path in (*beside, *folders_aside(output_dir)) if output_name in _names_in_name(path.name))
    return [path for path in ours if _was_state(path) and output_name in names_of(path)]


def names_of(folder: Path) -> frozenset[str | None]:
    """The names (`--output_name`, or None) of the runs that may have written a state, whole or torn.

    The one that its facts tell, or where they tell none, those after which it may be called so; perhaps none at all.
    """
    told = _facts_left(folder).get(NAME_FACT, _names_in_name(folder.name))
    return told if isinstance(told, frozenset) else frozenset([told])


def place_of(folder: Path) -> tuple[int | None, int | None]:
    """Updates done, and the epoch of the last one from 1, of a state that may be torn: as its facts tell, or else its
    name; None for what neither does."""
    facts = _facts_left(folder)
    if facts:
        return int(facts["step"]), int(facts["epoch"])
    found = _NUMBERED.fullmatch(folder.name.removesuffix(STATE_ENDING))
    if found is None:
        return None, None
    return (int(found["number"]), None) if found["step"] else (None, int(found["number"]))


def _names_in_name(name: str) -> frozenset[str | None]:
    """The names of the runs that would call a state so."""
    stem = name.removesuffix(STATE_ENDING)
    if stem == name or not stem:
        return frozenset()
    found = _NUMBERED.fullmatch(stem)
    names: set[str | None] = {stem} if found is None else {stem, found["name"]}
    usual = DEFAULT_LAST_NAME if found is None else DEFAULT_STEP_NAME if found["step"] else DEFAULT_EPOCH_NAME
    return frozenset(names | {None} if usual in names else names)


def _was_state(folder: Path) -> bool:
    return is_state(folder) or (folder / FACTS).is_file()


def _facts_left(folder: Path) -> dict[str, Any]:
    """The facts of a state that may be torn; empty where they are not known to be those that were written."""
    try:
        if is_state(folder):
            check_sum(folder, FACTS, read_manifest(folder)[FACTS])
        facts = _read_json(folder / FACTS)
    except (UserError, KeyError):
        return {}
    return facts if isinstance(facts, dict) and _are_facts(facts) else {}


def _step_of(folder: Path) -> int:
    """Updates done; -1 where the state is not whole, or not for us to read."""
    try:
        return int(read_facts(folder)["step"])
    except UserError:
        return -1


def _refuse_what_is_none(folder: Path) -> None:
    """Raises UserError, in words for each case, where there is no state."""
    if not folder.exists():
        raise UserError.of("no such folder", str(folder), "check the path")
    if not folder.is_dir():
        raise UserError.of("a file; a state is a folder", str(folder), "give the folder, such as NAME-000001-state")
    if has_manifest(folder):
        return
    if (folder / MANIFEST).is_file() and (folder / FACTS).is_file():
        raise torn("its manifest is damaged", folder / MANIFEST)
    if (folder / FACTS).is_file():
        raise torn("its manifest is missing", folder)
    inside = next((path for path in sorted(folder.iterdir()) if is_state(path)), None)
    fix = f"it holds states: give one of them, such as {inside}" if inside else "give a folder NAME-…-state"
    raise UserError.of("this folder is no state", str(folder), fix)


def _read_json(path: Path) -> Any:
    with explained(path):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise torn("it is no JSON", path) from error


def _names_in(folder: Path) -> list[str]:
    """Files of a state that stands there already."""
    try:
        return list(read_manifest(folder)) if is_state(folder) else []
    except UserError:
        return []


def _are_facts(facts: Mapping[str, Any]) -> bool:
    least = {"step": 0, "epoch": 1}
    return all(type(facts.get(key)) is int and facts[key] >= lowest for key, lowest in least.items())
