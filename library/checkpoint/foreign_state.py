"""State folders of other tools, as far as they can be read: those that Accelerate's `save_state` writes.

kohya's sd-scripts and many others use it. Files: `model.safetensors`, `model_1.safetensors`, … (formerly
`pytorch_model.bin`, `pytorch_model_1.bin`, …), one for each model that was prepared, in that order; `optimizer.bin`,
`scheduler.bin`, `scaler.pt`, `random_states_RANK.pkl`. sd-scripts adds `train_state.json` with `current_epoch` (from 1)
and `current_step` (updates done). The pickles among them are read by `library/core/pickled.py`, which runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from library.checkpoint.naming import FOREIGN_BESIDE, FOREIGN_WEIGHTS, has_foreign_names
from library.core.errors import UserError
from library.core.json_files import read_json_object
from library.core.pickle_names import StoredTensor
from library.core.pickled import PickledContent, read_pickled
from library.core.tensor_files import read_safetensors

_PROGRESS, _OPTIMIZER, _SCHEDULER, _ = FOREIGN_BESIDE
_SCALER, _RANDOM = "scaler.pt", "random_states_{rank}.pkl"
# What the engines write that cut models into pieces: folders, or files of pieces.
_PIECES = ("pytorch_model", "pytorch_model_fsdp*", "optimizer_0", "zero_to_fp32.py", "latest")
_PLAIN = (bool, int, float, str, bytes)
_ALWAYS_MISSING = (
    "the place within the epoch, so the epoch is begun anew",
    "its random numbers: order, crops, captions and noise are drawn from --seed, as in a run of this program",
    "a running average of the weights",
)


@dataclass(frozen=True)
class ForeignState:
    """What another tool's state gives.

    Attributes:
        weights: tensors by name, a dict for each model in the order in which they were prepared.
        optimizer: as its `state_dict` gave it; None where there is none that can be read.
        scaler: the numbers of fp16's loss scale; None without one.
        step: updates done; None where nothing tells.
        epoch: the epoch the run was in, from 1; None where nothing tells.
        missing: what such a state does not give, each as the rest of a sentence that begins "Missing: ".
    """

    weights: list[dict[str, Tensor]]
    optimizer: dict[str, Any] | None
    scaler: dict[str, Any] | None
    step: int | None
    epoch: int | None
    missing: list[str]


def is_foreign_state(folder: Path) -> bool:
    """Whether the folder holds weights and what belongs to a state, under the names that Accelerate gives them."""
    return has_foreign_names({path.name for path in folder.glob("*") if path.is_file()})


def read_foreign_state(folder: Path) -> ForeignState:
    """Reads weights, optimizer and counters; the tensors are in CPU memory of their own.

    Raises:
        UserError: it is no such state, a file is damaged or malicious, or the models were saved in pieces.
    """
    _refuse_what_is_none(folder)
    missing = list(_ALWAYS_MISSING)
    weights = [_read_weights(path) for path in _weights_files(folder)]
    optimizer = _read_optimizer(folder, missing)
    scaler = _read_numbers(folder / _SCALER)
    step, epoch = _read_progress(folder, missing)
    return ForeignState(weights, optimizer, scaler, step, epoch, missing)


def _refuse_what_is_none(folder: Path) -> None:
    if is_foreign_state(folder):
        return
    if not folder.is_dir():
        raise UserError.of("no such folder", str(folder), "check the path")
    if any(next(folder.glob(pattern), None) for pattern in _PIECES):
        what = "a state whose models are in pieces, as DeepSpeed and FSDP write them; it cannot be read"
        fix = "join it with the tool that wrote it, and begin from the joined weights"
        raise UserError.of(what, str(folder), fix)
    what = "no state, neither of this program nor of another tool"
    raise UserError.of(what, str(folder), "give a folder NAME-…-state")


def _weights_files(folder: Path) -> Iterator[Path]:
    """The files of the models, in order; they end where a number is missing."""
    number = 0
    while True:
        counted = f"_{number}" if number else ""
        named = [folder / f"{stem}{counted}{ending}" for stem, ending in FOREIGN_WEIGHTS]
        path = next((path for path in named if path.is_file()), None)
        if path is None:
            return
        yield path
        number += 1


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        found = _read_values(path)
    except _Unknown:
        found = None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError.of("holds something else than weights", str(path), "give a state with model.safetensors")
    return found


def _read_optimizer(folder: Path, missing: list[str]) -> dict[str, Any] | None:
    if not (folder / _OPTIMIZER).is_file():
        missing.append(f"the optimizer's state: there is no {_OPTIMIZER}")
        return None
    if (folder / "optimizer_1.bin").is_file():
        missing.append("the optimizer's state: the run had several, and this program trains with one")
        return None
    try:
        found = _read_values(folder / _OPTIMIZER)
    except _Unknown as unknown:
        missing.append(f"the optimizer's state: {unknown} in {_OPTIMIZER} is not known here")
        return None
    if not isinstance(found, dict) or not {"state", "param_groups"} <= set(found):
        missing.append(f"the optimizer's state: {_OPTIMIZER} holds none")
        return None
    return found


def _read_numbers(path: Path) -> dict[str, Any] | None:
    """A dict of plain numbers out of a pickle; None where there is none."""
    content = read_pickled(path).content if path.is_file() else None
    if not isinstance(content, dict):
        return None
    return {key: value for key, value in content.items() if isinstance(value, int | float)}


def _read_progress(folder: Path, missing: list[str]) -> tuple[int | None, int | None]:
    """Updates done and the epoch, from `train_state.json`, else the updates that the schedule has counted.

    Accelerate advances a schedule once per process at each update.
    """
    noted = read_json_object(folder / _PROGRESS) if (folder / _PROGRESS).is_file() else {}
    step, epoch = _count(noted.get("current_step")), _count(noted.get("current_epoch"))
    if step is None:
        counted = _count((_read_numbers(folder / _SCHEDULER) or {}).get("last_epoch"))
        step = None if counted is None else counted // max(_processes(folder), 1)
        how = "nothing tells it" if step is None else f"{step}, as its schedule has counted"
        missing.append(f"the number of updates done: {how}")
    if not epoch:
        missing.append("the epoch it was in")
    return step, epoch or None


def _processes(folder: Path) -> int:
    """Processes that trained together: each wrote its random numbers."""
    rank = 0
    while (folder / _RANDOM.format(rank=rank)).is_file():
        rank += 1
    return rank


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


class _Unknown(Exception):  # noqa: N818 (it carries a place)
    """Something that is neither data nor tensor; the argument is its place."""


def _read_values(path: Path) -> Any:
    """What a file of `torch.save` holds, with its tensors.

    Raises:
        _Unknown: it holds an object of a class that we do not know.
        UserError: it is damaged or malicious.
    """
    content = read_pickled(path)
    try:
        return _revived(content, content.content, {})
    except RecursionError:
        raise _Unknown("what is nested without end") from None


def _revived(content: PickledContent, value: Any, read: dict[StoredTensor, Tensor], place: str = "") -> Any:
    """The value with its tensors read in; one that stands in several places is read once."""
    if isinstance(value, StoredTensor):
        if value not in read:
            read[value] = content.read(value)
        return read[value]
    if isinstance(value, dict):
        return {key: _revived(content, item, read, f"{place}[{key!r:.40}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_revived(content, item, read, f"{place}[{i}]") for i, item in enumerate(value))
    if value is None or isinstance(value, _PLAIN):
        return value
    raise _Unknown(place or "what it holds")
