"""Files of Textual Inversion: one tensor `emb_params` (n, D), a row for each vector of the new word.

`.safetensors`, or `.pt` as a dict with that tensor; both load in the Web UI and in Diffusers. Read as well: the `.pt`
of the Web UI (`string_to_param`, a dict of one tensor) and files that hold one tensor under the new word's own name, as
Diffusers writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from library.core.errors import UserError
from library.core.json_files import read_json_object
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import write_safetensors
from library.models.files.weights import PICKLED_SUFFIXES, WeightsFile, open_weights
from library.models.identify import ModelIdentity
from library.models.precision import in_precision
from library.models.recognise import EMBEDDING, FAMILY_NAMES, UNKNOWN, recognise

VECTORS_KEY = "emb_params"
_WEB_UI_PREFIX = "string_to_param."
_TABLE_NAME = "token_embedding.weight"
_FIX_KIND = "give an embedding of Textual Inversion: .safetensors or .pt"


def write_embedding(path: Path, vectors: Tensor, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes an embedding, whole or not at all.

    Args:
        path: final name; .pt has no room for metadata, every other ending is a .safetensors file.
        vectors: (n, D), any device.
        dtype: number format in the file.

    Raises:
        UserError: a value does not fit the number format.
    """
    values = in_precision(VECTORS_KEY, vectors.detach().cpu(), dtype, path)
    if path.suffix in PICKLED_SUFFIXES:
        write_pickled(path, {VECTORS_KEY: values}, None)
    else:
        write_safetensors(path, {VECTORS_KEY: values}, metadata)


def read_embedding(path: Path) -> Tensor:
    """The vectors of an embedding, (n, D) float32.

    Raises:
        UserError: the file is damaged, malicious, or holds something else.
    """
    file = open_weights(path)
    vectors = file.read(_vectors_name(file))
    rows = vectors[None] if vectors.dim() == 1 else vectors
    if rows.dim() != 2 or rows.numel() == 0 or not rows.dtype.is_floating_point:
        what = f"its tensor has the shape {tuple(vectors.shape)}, and a row for each vector is needed"
        raise UserError.of(what, str(path), _FIX_KIND)
    if not bool(rows.isfinite().all()):
        raise UserError.of("its vectors are not finite, so nothing can start from them", str(path), _FIX_KIND)
    return rows.float()


def _vectors_name(file: WeightsFile) -> str:
    """The name of the one tensor that holds the vectors."""
    if VECTORS_KEY in file.shapes:
        return VECTORS_KEY
    of_web_ui = [name for name in file.shapes if name.startswith(_WEB_UI_PREFIX)]
    candidates = of_web_ui or list(file.shapes)
    found = recognise(file.shapes)
    if len(candidates) == 1 and found.kind in (EMBEDDING, UNKNOWN):
        return candidates[0]
    if found.kind == EMBEDDING:
        raise UserError.of(f"this is {found.detail}, with {len(candidates)} tensors", str(file.path), _FIX_KIND)
    raise UserError.of(f"this is {found.detail}, no embedding", str(file.path), _FIX_KIND)


def check_width(vectors: Tensor, where: Path, identity: ModelIdentity) -> None:
    """Whether an embedding (n, D) fits a model, as far as its files tell before it is loaded.

    Raises:
        UserError: the model's words have another width.
    """
    width = text_width(identity)
    if width is not None and vectors.shape[1] != width:
        family = FAMILY_NAMES[identity.family]
        what = f"its vectors have {vectors.shape[1]} numbers, and those of {identity.name} ({family}) have {width}"
        raise UserError.of(what, str(where), "give an embedding that was made for this family of models")


def text_width(identity: ModelIdentity) -> int | None:
    """How many numbers the vector of a word has in this model; None where its files are still to be fetched."""
    if identity.layout == "single_file":
        shapes = open_weights(identity.path).shapes
        return next((shape[-1] for name, shape in shapes.items() if name.endswith(_TABLE_NAME)), None)
    config = identity.path / "text_encoder" / "config.json"
    width = read_json_object(config).get("hidden_size") if config.is_file() else None
    return width if isinstance(width, int) else None
