"""Files of Textual Inversion: one tensor `emb_params` (n, D), a row for each vector of the new word.

`.safetensors`, or `.pt` as a dict with that tensor; both load in the Web UI and in Diffusers. Read as well: the `.pt`
of the Web UI (`string_to_param`, a dict of one tensor) and files that hold one tensor under the new word's own name, as
Diffusers writes them.

Extended Textual Inversion (XTI, Voynov et al., "P+", 2023) has 16 tensors (n, D) instead, one for each cross-attention
layer of the U-Net, by the names of the paper's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

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
# The layers of XTI, in the order in which the U-Net runs through them: names in files to Diffusers' paths.
LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "IN01": "down_blocks.0.attentions.0",
        "IN02": "down_blocks.0.attentions.1",
        "IN04": "down_blocks.1.attentions.0",
        "IN05": "down_blocks.1.attentions.1",
        "IN07": "down_blocks.2.attentions.0",
        "IN08": "down_blocks.2.attentions.1",
        "MID": "mid_block.attentions.0",
        "OUT03": "up_blocks.1.attentions.0",
        "OUT04": "up_blocks.1.attentions.1",
        "OUT05": "up_blocks.1.attentions.2",
        "OUT06": "up_blocks.2.attentions.0",
        "OUT07": "up_blocks.2.attentions.1",
        "OUT08": "up_blocks.2.attentions.2",
        "OUT09": "up_blocks.3.attentions.0",
        "OUT10": "up_blocks.3.attentions.1",
        "OUT11": "up_blocks.3.attentions.2",
    }
)
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
    _write(path, {VECTORS_KEY: vectors}, dtype, metadata)


def write_layered_embedding(path: Path, vectors: Tensor, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes an embedding of XTI, as `write_embedding`.

    Args:
        vectors: (16 n, D), the n vectors of the first layer of `LAYERS` first.
    """
    _write(path, dict(zip(LAYERS, vectors.chunk(len(LAYERS)), strict=True)), dtype, metadata)


def _write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    values = {name: in_precision(name, tensor.detach().cpu(), dtype, path) for name, tensor in tensors.items()}
    if path.suffix in PICKLED_SUFFIXES:
        write_pickled(path, values, None)
    else:
        write_safetensors(path, values, metadata)


def read_embedding(path: Path) -> Tensor:
    """The vectors of an embedding, (n, D) float32.

    Raises:
        UserError: the file is damaged, malicious, or holds something else.
    """
    file = open_weights(path)
    if is_layered(file):
        what = "this is an embedding of Extended Textual Inversion, with vectors for each layer"
        raise UserError.of(what, str(path), "train with --xti as well, or give an ordinary embedding")
    return _rows(file, _vectors_name(file))


def read_layered_embedding(path: Path) -> Tensor:
    """The vectors of an embedding of XTI, (16 n, D) float32; those of an ordinary one are given to every layer.

    Raises:
        UserError: as `read_embedding`, or layers are missing or differ in shape.
    """
    file = open_weights(path)
    if not is_layered(file):
        return read_embedding(path).repeat(len(LAYERS), 1)
    missing, others = [name for name in LAYERS if name not in file.shapes], set(file.shapes) - set(LAYERS)
    if missing or others:
        what = f"{', '.join(missing)} missing" if missing else f"{', '.join(sorted(others))} too many"
        raise UserError.of(f"its layers are not those of Stable Diffusion: {what}", str(path), _FIX_KIND)
    layers = [_rows(file, name) for name in LAYERS]
    if len({layer.shape for layer in layers}) > 1:
        raise UserError.of("its layers have different numbers of vectors", str(path), _FIX_KIND)
    return torch.cat(layers)


def is_layered(file: WeightsFile) -> bool:
    """Whether a file holds vectors for each layer (XTI), some or all."""
    return recognise(file.shapes).kind == EMBEDDING and any(name in LAYERS for name in file.shapes)


def _rows(file: WeightsFile, name: str) -> Tensor:
    """One tensor of vectors, (n, D) float32."""
    vectors = file.read(name)
    rows = vectors[None] if vectors.dim() == 1 else vectors
    if rows.dim() != 2 or rows.numel() == 0 or not rows.dtype.is_floating_point:
        what = f"its tensor has the shape {tuple(vectors.shape)}, and a row for each vector is needed"
        raise UserError.of(what, str(file.path), _FIX_KIND)
    if not bool(rows.isfinite().all()):
        raise UserError.of("its vectors are not finite, so nothing can start from them", str(file.path), _FIX_KIND)
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
