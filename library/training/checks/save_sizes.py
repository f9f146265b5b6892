"""How large the files of a run will be, as far as options and the base model's files tell before it is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from library.core.device import dtype_of
from library.core.errors import UserError
from library.methods.base import TEXT_ENCODER, UNET
from library.methods.network_module import parse_network_args
from library.models.embedding_files import text_width
from library.models.files.folder_weights import STEMS, weights_files
from library.models.files.weights import open_weights
from library.models.identify import ModelIdentity
from library.optim.registry import adapts_by_distance, chosen_path
from library.options.network import NetworkOptions, network_dim_in_force
from library.options.training import OutputOptions
from library.training.checks.new_word import NewWord
from library.training.run import OutputFiles, RunOptions

UNKNOWN_NETWORK = 1 << 28  # bytes; more than any network in use has, for modules that we know nothing of
_HEADER = 1 << 18  # of a file of many small tensors
_PREFIXES = {UNET: "model.diffusion_model.", TEXT_ENCODER: "cond_stage_model."}  # in a single file
_TEXT_LAYERS = (".layers.", ".resblocks.")
_TRANSFORMERS = (".transformer_blocks.", ".proj_in.", ".proj_out.")
_JOINED = "in_proj_weight"  # queries, keys and values in one tensor; a network has three layers there

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SaveSizes:
    """Bytes of what one save writes: the trained file with its running average, and the state. 0 where nothing is
    known."""

    weights: int
    state: int


def network_sizes(
    asked: RunOptions, network: NetworkOptions, identity: ModelIdentity | None, files: OutputFiles
) -> SaveSizes:
    """Of a network; of one whose module is not ours, more than enough."""
    given = Path(network.network_weights) if network.network_weights is not None else None
    if network.dim_from_weights and given is not None and given.is_file():
        return SaveSizes(given.stat().st_size * files.copies, _state_size(asked, given.stat().st_size // 2))
    if network.network_module != "networks.lora" or identity is None:
        return SaveSizes(UNKNOWN_NETWORK * files.copies, UNKNOWN_NETWORK * 3)
    try:
        wide_rank = int(parse_network_args(network.network_args).get("conv_dim", 0))
    except (ValueError, UserError):  # told where arguments are checked
        wide_rank = 0
    untrained = {UNET} if network.network_train_text_encoder_only else set()
    untrained |= {TEXT_ENCODER} if network.network_train_unet_only else set()
    numbers = sum(
        _lora_numbers(part, shapes, network_dim_in_force(network) or 0, wide_rank)
        for part, shapes in part_shapes(identity).items()
        if part not in untrained
    )
    item = dtype_of(asked.output.save_precision or asked.training.mixed_precision).itemsize
    return SaveSizes((numbers * item + _HEADER) * files.copies, _state_size(asked, numbers))


def embedding_sizes(
    asked: RunOptions, word: NewWord | None, identity: ModelIdentity | None, files: OutputFiles
) -> SaveSizes:
    """Of a new word's vectors."""
    width = text_width(identity) if identity is not None else None
    if word is None or width is None:
        return SaveSizes(0, 0)
    numbers = word.start.count * word.start.layers * width
    return SaveSizes((numbers * 4 + _HEADER) * files.copies, _state_size(asked, numbers))


def full_model_sizes(asked: RunOptions, identity: ModelIdentity, files: OutputFiles, learns_text: bool) -> SaveSizes:
    """Of a whole model; 0 where it is still to be fetched."""
    learning = {UNET, TEXT_ENCODER} if learns_text else {UNET}
    numbers = sum(
        math.prod(shape)
        for part, shapes in part_shapes(identity).items()
        if part in learning
        for shape in shapes.values()
    )
    size = full_model_size(identity, asked.output, files.copies)
    return SaveSizes(size + _HEADER * files.copies if size else 0, _state_size(asked, numbers) if size else 0)


def full_model_size(identity: ModelIdentity, output: OutputOptions, copies: int) -> int:
    """Bytes that so many copies of the trained model may take: those of the base model's weights, twice as many where
    half precision is saved as float32; 0 where they are still to be fetched."""
    grown = (2 if output.save_precision == "float" else 1) * copies
    if identity.layout == "single_file":
        return grown * identity.path.stat().st_size
    try:
        files = [path for part, stem in STEMS.items() for path in weights_files(identity.path / part, stem)]
    except UserError:  # told when they are loaded
        return 0
    return grown * sum(path.stat().st_size for path in files)


def part_shapes(identity: ModelIdentity) -> dict[str, Shapes]:
    """The shapes of U-Net and text encoder by part and name; nothing where the files are missing or damaged, which is
    told when they are loaded."""
    try:
        if identity.layout == "single_file":
            shapes = open_weights(identity.path).shapes
            return {
                part: {name: shape for name, shape in shapes.items() if name.startswith(prefix)}
                for part, prefix in _PREFIXES.items()
            }
        return {
            part: dict(
                pair
                for path in weights_files(identity.path / part, STEMS[part])
                for pair in open_weights(path).shapes.items()
            )
            for part in _PREFIXES
        }
    except UserError:
        return {}


def _lora_numbers(part: str, shapes: Shapes, rank: int, wide_rank: int) -> int:
    """Numbers of the modules of a LoRA over these weights; with `wide_rank` residual blocks have them as well."""
    total = 0
    for name, shape in shapes.items():
        if len(shape) not in (2, 4) or not name.endswith("weight"):
            continue
        marks = _TEXT_LAYERS if part == TEXT_ENCODER else _TRANSFORMERS
        if not any(mark in name for mark in marks) and (part == TEXT_ENCODER or not wide_rank):
            continue
        is_wide = len(shape) == 4 and shape[2:] != (1, 1)
        inputs = math.prod(shape[1:]) * (3 if name.endswith(_JOINED) else 1)
        total += (wide_rank if is_wide else rank) * (shape[0] + inputs)
    return total


def _state_size(asked: RunOptions, numbers: int) -> int:
    """Bytes of a state with so many trained numbers."""
    path = chosen_path(asked.optimizer)
    optimizer = 2 if "8bit" in path else 16 if adapts_by_distance(path) else 8
    weight = 2 if asked.memory.full_fp16 or asked.memory.full_bf16 else 4
    average = 4 if asked.validation.ema else 0
    return numbers * (weight + optimizer + average) + _HEADER
