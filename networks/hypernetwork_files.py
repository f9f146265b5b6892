"""Hypernetwork files of the Web UI: `.pt`, a dict.

Whole numbers are widths of contexts; each stands before a pair of state dicts, the module of the keys and that of the
values, with `linear.N.weight` and `linear.N.bias` (the oldest files: `linear1.*` and `linear2.*`). Beside them stand
`name`, `step`, the structure and the model it was trained on. Files of older versions lack some of these; what they
mean then is what the Web UI takes them for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library.core.errors import UserError
from library.core.log import get_logger
from library.core.pickle_names import StoredTensor
from library.core.pickle_writer import write_pickled_content
from library.core.pickled import PickledContent
from library.models.files.weights import PickledFile, open_weights
from library.models.precision import in_precision
from library.models.recognise import HYPERNETWORK, recognise
from networks.hypernetwork_structure import ACTIVATIONS, DROPOUT_RATE, INITIALIZATIONS, Structure, usual_dropout

FILE_EXTENSION = ".pt"
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]
_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}
_HASH_LENGTH = 10  # digits of a model's SHA-256 by which the Web UI names it
_FIX = "give a hypernetwork of this program or of the Web UI"

log = get_logger(__name__)


@dataclass(frozen=True)
class HypernetworkFile:
    """What a file holds.

    Attributes:
        pairs: float32 state dicts of the two modules, by width.
    """

    structure: Structure
    pairs: Mapping[int, Pair]


def read_hypernetwork(path: Path) -> HypernetworkFile:
    """Reads a file of any version.

    Raises:
        UserError: the file is damaged, malicious, holds something else, or its parts contradict each other.
    """
    file = open_weights(path)
    found = recognise(file.shapes)
    if found.kind != HYPERNETWORK or not isinstance(file, PickledFile) or not isinstance(file.content.content, dict):
        raise UserError.of(f"this is {found.detail}, no hypernetwork", str(path), _FIX)
    top = file.content.content
    pairs = {width: _read_pair(path, width, value, file.content) for width, value in top.items() if type(width) is int}
    return HypernetworkFile(_read_structure(path, top), pairs)


def write_hypernetwork(
    path: Path, structure: Structure, pairs: Mapping[int, Pair], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    """Writes a file that every version of the Web UI reads, whole or not at all.

    Args:
        dtype: number format in the file; where a number does not fit, it is written in float32 and that is told.
        metadata: of the run; the file has room for the name, the step and the base model.
    """
    try:
        write_pickled_content(path, _content(path, structure, pairs, dtype, metadata))
    except UserError as error:
        write_pickled_content(path, _content(path, structure, pairs, torch.float32, metadata))
        log.warning("%s: the hypernetwork was saved in float32 instead", error.problems[0].what)


def _content(
    path: Path, structure: Structure, pairs: Mapping[int, Pair], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> dict[int | str, object]:
    def states(width: int, number: int) -> dict[str, object]:
        return {
            name: in_precision(f"{width}.{number}.{name}", value.detach().cpu(), dtype, path)
            for name, value in pairs[width][number].items()
        }

    told = {key: value for key, value in metadata.items() if value not in ("", "None")}
    digest, old_digest = told.get("ss_new_sd_model_hash"), told.get("ss_sd_model_hash")
    drops = any(structure.dropout_structure)
    return {
        **{width: (states(width, 0), states(width, 1)) for width in pairs},
        "step": int(told.get("ss_steps", "0")),
        "name": told.get("ss_output_name") or told.get("modelspec.title", "hypernetwork").removesuffix(FILE_EXTENSION),
        "layer_structure": list(structure.layer_structure),
        "activation_func": structure.activation_func,
        "is_layer_norm": structure.is_layer_norm,
        "weight_initialization": structure.weight_initialization,
        "use_dropout": drops,
        "sd_checkpoint": digest[:_HASH_LENGTH] if digest is not None else old_digest,
        "sd_checkpoint_name": _model_name(told.get("ss_sd_model_name")),
        "activate_output": structure.activate_output,
        "last_layer_dropout": drops and structure.dropout_structure[-2] > 0,
        "dropout_structure": list(structure.dropout_structure),
    }


def _model_name(name: str | None) -> str | None:
    """As the Web UI names models: without the ending of a file."""
    return None if name is None else name.removesuffix(".safetensors").removesuffix(".ckpt")


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_pair(path: Path, width: int, value: Any, content: PickledContent) -> Pair:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise _contradiction(path, f"the width {width} has not two modules")
    keys, values = (_read_states(path, width, states, content) for states in value)
    return keys, values


def _read_states(path: Path, width: int, states: Any, content: PickledContent) -> dict[str, Tensor]:
    if not isinstance(states, dict) or not all(isinstance(tensor, StoredTensor) for tensor in states.values()):
        raise _contradiction(path, f"a module of the width {width} holds more than tensors")
    found: dict[str, Tensor] = {}
    for name, tensor in states.items():
        first, _, rest = str(name).partition(".")
        values = content.read(tensor).float()
        if not bool(values.isfinite().all()):
            raise _contradiction(path, f"{width}.{name} is not finite")
        found[f"{_OLD_NAMES.get(first, first)}.{rest}"] = values
    return found


def _read_structure(path: Path, top: Mapping[Any, Any]) -> Structure:
    layers = _read_numbers(path, top.get("layer_structure"), (1, 2, 1), "layer_structure")
    if len(layers) < 2 or layers[0] != 1 or layers[-1] != 1 or min(layers) <= 0:
        raise _contradiction(path, f"layer_structure is {list(layers)}")
    activation = str(top.get("activation_func") or "linear").lower()
    if activation not in ACTIVATIONS:
        fix = f"hypernetworks are read with {', '.join(ACTIVATIONS)}"
        raise UserError.of(f"its activation function {activation!r} is not one of ours", str(path), fix)
    usual = (0.0,) * len(layers)
    if top.get("use_dropout"):
        usual = usual_dropout(layers, DROPOUT_RATE, bool(top.get("last_layer_dropout", False)))
    drops = _read_numbers(path, top.get("dropout_structure"), usual, "dropout_structure")
    if len(drops) != len(layers) or drops[-1] or not all(0 <= share < 1 for share in drops):
        raise _contradiction(path, f"dropout_structure is {list(drops)}, and layer_structure {list(layers)}")
    known = top.get("weight_initialization")
    return Structure(
        layer_structure=layers,
        activation_func=activation,
        weight_initialization=known if known in INITIALIZATIONS else Structure.weight_initialization,
        is_layer_norm=bool(top.get("is_layer_norm", False)),
        activate_output=bool(top.get("activate_output", True)),  # before there was the choice, it was
        dropout_structure=drops,
    )


def _read_numbers(path: Path, value: Any, absent: tuple[float, ...], name: str) -> tuple[float, ...]:
    if value is None:
        return absent
    if not isinstance(value, list | tuple) or not all(
        type(number) in (int, float) and math.isfinite(number) for number in value
    ):
        raise _contradiction(path, f"{name} is no list of numbers")
    return tuple(value)


def _contradiction(path: Path, what: str) -> UserError:
    return UserError.of(f"its parts make no hypernetwork: {what}", str(path), _FIX)
