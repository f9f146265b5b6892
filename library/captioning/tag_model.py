"""A tagger in ONNX form: pixels in, a confidence for each tag out. What it wants is asked from the file.

Input: one, (N, H, W, 3) or (N, 3, H, W), float32, float16 or float64, H = W, N open or fixed. Output: (N, tags).
A WD tagger takes blue, green, red from 0 to 255; DeepDanbooru red, green, blue from 0 to 1 (read in public code).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from library.captioning.onnx_session import PACKAGE, OnnxModel, fixed, onnx_errors, open_onnx, reason_of
from library.captioning.tag_list import Family, TaggerFiles
from library.core.errors import UserError, printable
from library.core.log import get_logger
from library.core.optional import import_optional
from library.data.pictures.images import Pixels

_LOG = get_logger(__name__)
_ELEMENTS: Mapping[str, DTypeLike] = MappingProxyType(
    {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
)
_USUAL_SIDE = MappingProxyType({Family.WD: 448, Family.DEEPDANBOORU: 512})
_SMALLEST_SIDE, _LARGEST_SIDE = 16, 2048
_LARGEST_BATCH = 256
_SLACK = 1e-3  # by which a probability may miss 0 to 1 through rounding
_OTHER = "take another tagger"


@dataclass(frozen=True)
class Layout:
    """How a model wants its pictures: (N, side, side, 3), or with the colours in front; `batch` None takes any N."""

    input: str
    element: DTypeLike
    side: int
    colours_first: bool
    batch: int | None


class TagModel:
    """An open tagger. Its results for a picture depend on nothing but the picture.

    The CPU is handed one picture at a time, which takes no longer and rounds the same in any company. A card gets
    `batch_size` pictures, the last batch filled up with black ones.

    Attributes:
        side: of the square pictures it takes, in pixels.
    """

    def __init__(self, files: TaggerFiles, tag_count: int, batch_size: int) -> None:
        """Opens a model and tries it on two made-up pictures.

        Raises:
            UserError: it cannot be opened, is no tagger, or has another number of outputs than there are tags.
        """
        model = open_onnx(files.model, files.fix)
        self._path, self._model, self._family = files.model, model, files.family
        self._errors = onnx_errors(import_optional("onnxruntime", PACKAGE, "tagging"))
        self._layout = _layout_of(model, files)
        self._batch = self._layout.batch or (batch_size if model.on_card else 1)
        if self._layout.batch is not None and self._layout.batch != batch_size:
            _LOG.info("this model takes %d pictures at a time; --batch_size changes nothing", self._layout.batch)
        self.side = self._layout.side
        try:
            self._output, self._needs_sigmoid = self._try_out(_outputs_of(model, tag_count, files), tag_count)
        except self._errors as error:
            what = f"it fails for any picture: {reason_of(error)}"
            raise UserError.of(
                what, str(files.model), "close what else needs memory, or take another tagger"
            ) from error

    def confidences(self, pictures: Sequence[Pixels]) -> NDArray[np.float32]:
        """(N, tags), from 0 to 1; the row of a picture for which the model finds no numbers holds NaN.

        Args:
            pictures: (side, side, 3) each, red, green, blue.

        Raises:
            Exception: that of onnxruntime, where it fails for a single picture.
        """
        found = self._rows(pictures, self._output)
        if self._needs_sigmoid:
            return _sigmoid(found)
        is_none = (found < -_SLACK) | (found > 1 + _SLACK)
        found[is_none.any(axis=1)] = np.nan
        return found

    def _rows(self, pictures: Sequence[Pixels], output: str) -> NDArray[np.float32]:
        """An output as the model gives it: (N, numbers). One by one where a card's memory is too small for a batch."""
        try:
            return np.concatenate([self._run(part, output) for part in self._parts(pictures)])
        except self._errors as error:
            if self._batch == 1 or self._layout.batch is not None:
                raise
            what = f"{self._batch} pictures at once are too much ({reason_of(error)})"
            _LOG.warning("%s; they are tagged one by one from here", printable(what))
        self._batch = 1
        return self._rows(pictures, output)

    def _parts(self, pictures: Sequence[Pixels]) -> list[Sequence[Pixels]]:
        return [pictures[start : start + self._batch] for start in range(0, len(pictures), self._batch)]

    def _run(self, pictures: Sequence[Pixels], output: str) -> NDArray[np.float32]:
        """An output for up to `self._batch` pictures, as the model gives it: (N, numbers)."""
        layout = self._layout
        batch = np.zeros((self._batch, layout.side, layout.side, 3), layout.element)
        for place, pixels in zip(batch, pictures, strict=False):
            place[:] = pixels[..., ::-1] if self._family is Family.WD else pixels / np.float32(255)
        if layout.colours_first:
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        found = np.array(self._model.session.run([output], {layout.input: batch})[0], np.float32)
        if found.ndim < 2 or len(found) < len(pictures):
            raise ValueError(f"it has no row of numbers for each picture, but {found.shape}")
        return found.reshape(len(found), -1)[: len(pictures)]

    def _try_out(self, outputs: Sequence[str], tag_count: int) -> tuple[str, bool]:
        """The output that holds the tags, and whether it still needs a sigmoid: what no probability is tells."""
        fitting, counts = list[tuple[str, NDArray[np.float32]]](), list[str]()
        for name in outputs:
            values = self._rows(_probes(self.side), name)
            counts.append(str(values.shape[1]))
            fitting += [(name, values)] if values.shape[1] == tag_count else []
        if not fitting:
            raise _wrong_count(", ".join(counts), tag_count, self._path)
        for name, values in fitting:
            if np.isfinite(values).any() and _are_probabilities(values):
                return name, False
        name, values = fitting[0]
        if not np.isfinite(values).any():
            raise UserError.of("it gives no numbers at all (NaN)", str(self._path), _OTHER)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        _LOG.info("its numbers (%.3g to %.3g) are no probabilities yet; a sigmoid is applied to them", low, high)
        return name, True


def _layout_of(model: OnnxModel, files: TaggerFiles) -> Layout:
    where = str(files.model)
    inputs = model.session.get_inputs()
    if len(inputs) != 1:
        raise UserError.of(f"it takes {len(inputs)} inputs, a tagger takes one: pictures", where, _OTHER)
    shape = inputs[0].shape
    shown = "x".join(str(axis) for axis in shape) or "a single number"
    if inputs[0].type not in _ELEMENTS:
        raise UserError.of(f"it takes {inputs[0].type}, pictures are given as {', '.join(_ELEMENTS)}", where, _OTHER)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise UserError.of(f"it takes {shown}; pictures have 4 axes and 3 colours", where, _OTHER)
    colours_first = shape[3] != 3
    height, width = (fixed(axis) for axis in (shape[2:] if colours_first else shape[1:3]))
    if height is None and width is None:
        height = width = _USUAL_SIDE[files.family]
        _LOG.info("this model takes pictures of any size; it is given %dx%d", width, height)
    if height != width or height is None or not _SMALLEST_SIDE <= height <= _LARGEST_SIDE:
        what = f"it takes {shown}; squares of {_SMALLEST_SIDE} to {_LARGEST_SIDE} pixels are expected"
        raise UserError.of(what, where, _OTHER)
    batch = fixed(shape[0])
    if batch is not None and batch > _LARGEST_BATCH:
        raise UserError.of(f"it takes {batch} pictures at once, {_LARGEST_BATCH} at most are given", where, _OTHER)
    return Layout(inputs[0].name, _ELEMENTS[inputs[0].type], height, colours_first, batch)


def _outputs_of(model: OnnxModel, tag_count: int, files: TaggerFiles) -> list[str]:
    """The outputs that may hold a number for each tag; some models give further ones, such as embeddings."""
    outputs = [item for item in model.session.get_outputs() if item.type in _ELEMENTS]
    counts = {item.name: _count_in(item.shape) for item in outputs}
    possible = [name for name, count in counts.items() if count in (None, tag_count)]
    if not possible:
        raise _wrong_count(", ".join(map(str, counts.values())) or "no", tag_count, files.model)
    return [name for name in possible if counts[name] == tag_count] or possible


def _count_in(shape: Sequence[Any]) -> int | None:
    """Numbers that an output has for each picture, None where the file does not say."""
    axes = [fixed(axis) for axis in shape[1:]]
    return None if None in axes or not axes else math.prod(axis for axis in axes if axis is not None)


def _wrong_count(counts: str, tag_count: int, path: Path) -> UserError:
    fix = "model and list do not belong together: take both from one place"
    return UserError.of(f"it has {counts} outputs, its list names {tag_count} tags", str(path), fix)


def _probes(side: int) -> list[Pixels]:
    """Two fixed pictures: a white one, and one of many colours."""
    rows, columns = np.mgrid[:side, :side] * 256 // side
    colourful = np.stack([rows, columns, (rows * 5 + columns * 3) % 256], axis=-1).astype(np.uint8)
    return [np.full((side, side, 3), 255, np.uint8), colourful]


def _are_probabilities(values: NDArray[np.float32]) -> bool:
    return bool(np.nanmin(values) >= -_SLACK and np.nanmax(values) <= 1 + _SLACK)


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without overflow: the exponential is taken of negative numbers alone."""
    shrunk = np.exp(-np.abs(values))
    found: NDArray[np.float32] = np.where(values >= 0, 1 / (1 + shrunk), shrunk / (1 + shrunk)).astype(np.float32)
    return found
