"""What `--network_args` of `networks.lora` say, read and checked without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from library.core.errors import Problems, suggest_name
from library.core.numbers import finite_number
from networks.lora_modules import Dropouts

DEFAULT_RANK, DEFAULT_ALPHA = 4, 1.0
# The U-Net as block-wise tools count it: IN00 is its first convolution, IN03, IN06, IN09 hold a downsampler.
SIDE_BLOCKS = 12
BLOCKS = (*(f"IN{i:02}" for i in range(SIDE_BLOCKS)), "MID", *(f"OUT{i:02}" for i in range(SIDE_BLOCKS)))
_LINEAR_SHAPE_NAMES = ("block_dims", "block_alphas")
_CONVOLUTION_NAMES = ("conv_dim", "conv_alpha", "conv_block_dims", "conv_block_alphas")
_WEIGHT_NAMES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_THRESHOLD = "block_lr_zero_threshold"
_RATIO, _UNET_RATIO, _TEXT_RATIO = "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"
SHAPE_NAMES = (*_LINEAR_SHAPE_NAMES, *_CONVOLUTION_NAMES)
UNET_NAMES = (*SHAPE_NAMES, *_WEIGHT_NAMES, _THRESHOLD, _UNET_RATIO)
TEXT_ENCODER_NAMES = (_TEXT_RATIO,)
KNOWN_ARGUMENTS = (
    *(*SHAPE_NAMES, *_WEIGHT_NAMES, _THRESHOLD),
    *("rank_dropout", "module_dropout", _RATIO, _UNET_RATIO, _TEXT_RATIO),
)
WHERE = "--network_args"
# Weights over one side of the U-Net in the order of computation, from t = 0 (its first block) to t = 1 (its last).
CURVES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "sine": lambda t: math.sin(math.pi / 2 * t),
        "cosine": lambda t: math.sin(math.pi / 2 * (1 - t)),
        "linear": lambda t: t,
        "reverse_linear": lambda t: 1 - t,
        "zeros": lambda t: 0.0,
    }
)


@dataclass(frozen=True)
class Grid:
    """Ranks and alphas of one kind of layer, one for each of the 25 blocks; a rank of 0 leaves the block out."""

    ranks: tuple[int, ...]
    alphas: tuple[float, ...]


@dataclass(frozen=True)
class LoraArguments:
    """The shape of a network and how it trains.

    Attributes:
        rank, alpha: of the text encoder's modules; alpha 0 means alpha = rank.
        linear: of the U-Net's linear layers and 1x1 convolutions.
        convolutions: of the U-Net's 3x3 convolutions; None leaves these, and the layers that come with them, alone.
        weights: factor of the U-Net's rate in each block; 0 leaves the block out. None: all blocks train alike.
        ratios: rate of `lora_up` by rate of `lora_down` (LoRA+, Hayou et al. 2024), by "text_encoder" and "unet".
    """

    rank: int
    alpha: float
    linear: Grid
    convolutions: Grid | None
    weights: tuple[float, ...] | None
    dropouts: Dropouts
    ratios: Mapping[str, float]


def parse_arguments(
    rank: int | None, alpha: float | None, neuron_dropout: float | None, given: Mapping[str, str]
) -> LoraArguments:
    """Reads the options of a network.

    Args:
        rank, alpha: `--network_dim` (default 4) and `--network_alpha` (default 1; 0 means alpha = rank).
        neuron_dropout: `--network_dropout`.
        given: the words of `--network_args`.

    Raises:
        UserError: with everything that is wrong: unknown names, values that are no numbers, lists of a wrong length,
            arguments without effect.
    """
    rank, alpha = DEFAULT_RANK if rank is None else rank, DEFAULT_ALPHA if alpha is None else alpha
    problems = Problems()
    for name in given:
        if name not in KNOWN_ARGUMENTS:
            fix = suggest_name(name, KNOWN_ARGUMENTS, f"networks.lora knows {', '.join(KNOWN_ARGUMENTS)}")
            problems.add(f"{name} is not an argument of networks.lora", WHERE, fix)
    reader = _Reader(given, problems)
    convolutions = _convolutions(reader)
    arguments = LoraArguments(
        rank=rank,
        alpha=alpha,
        linear=Grid(
            tuple(map(int, reader.blocks("block_dims", _whole_from_zero) or len(BLOCKS) * (rank,))),
            reader.blocks("block_alphas", _from_zero) or len(BLOCKS) * (alpha,),
        ),
        convolutions=convolutions,
        weights=_weights(reader),
        dropouts=Dropouts(
            neuron_dropout or 0.0,
            reader.number("rank_dropout", _share) or 0.0,
            reader.number("module_dropout", _share) or 0.0,
        ),
        ratios=_ratios(reader),
    )
    problems.raise_if_any()
    return arguments


class _Reader:
    """Takes values out of the arguments and gathers what is wrong with them."""

    def __init__(self, given: Mapping[str, str], problems: Problems) -> None:
        self.given = given
        self.problems = problems

    def complain(self, name: str, what: str, fix: str) -> None:
        self.problems.add(f"{name}={self.given.get(name, '')}: {what}", WHERE, fix)

    def number(self, name: str, check: Callable[[float], str | None]) -> float | None:
        """The one number of an argument; None where it is not given, or wrong."""
        found = self._numbers(name, 1, check)
        return found[0] if found else None

    def blocks(self, name: str, check: Callable[[float], str | None]) -> tuple[float, ...] | None:
        """A number for each block; None where it is not given, or wrong."""
        return self._numbers(name, len(BLOCKS), check)

    def side(self, name: str) -> tuple[float, ...] | None:
        """The weights of the 12 blocks of one side: numbers, or the name of a curve with an offset behind it."""
        word, plus, offset = self.given.get(name, "").partition("+")
        if word not in CURVES:
            if not word.isidentifier():
                return self._numbers(name, SIDE_BLOCKS, _from_zero)
            self.complain(
                name, "neither 12 numbers nor a curve", suggest_name(word, CURVES, f"curves: {', '.join(CURVES)}")
            )
            return None
        added = finite_number(offset) if plus else 0.0
        if added is None or added < 0:
            self.complain(name, "a number from 0 stands behind the +", f"for example {word}+0.25")
            return None
        return tuple(CURVES[word](i / (SIDE_BLOCKS - 1)) + added for i in range(SIDE_BLOCKS))

    def _numbers(self, name: str, count: int, check: Callable[[float], str | None]) -> tuple[float, ...] | None:
        if name not in self.given:
            return None
        numbers = [finite_number(word) for word in self.given[name].split(",")]
        found = [number for number in numbers if number is not None]
        if len(found) < len(numbers):
            self.complain(name, "not a number", "write numbers with commas between them, without blanks")
        elif len(found) != count:
            wanted = "one number is" if count == 1 else f"{count} numbers are"
            blocks = "" if count == 1 else f": {_named_blocks(count)}"
            self.complain(name, f"{wanted} needed, here are {len(found)}", f"give {count}{blocks}")
        elif complaint := next((said for said in map(check, found) if said), None):
            self.complain(name, complaint, "change the number")
        else:
            return tuple(found)
        return None


def _named_blocks(count: int) -> str:
    return "IN00 to IN11, MID, OUT00 to OUT11" if count == len(BLOCKS) else "one for each block of that side"


def _convolutions(reader: _Reader) -> Grid | None:
    """What the arguments say of 3x3 convolutions."""
    given = reader.given
    ranks = reader.blocks("conv_block_dims", _whole_from_zero)
    rank = reader.number("conv_dim", _whole_from_one)
    alphas = reader.blocks("conv_block_alphas", _from_zero)
    alpha = reader.number("conv_alpha", _from_zero)
    for one, many in (("conv_dim", "conv_block_dims"), ("conv_alpha", "conv_block_alphas")):
        if one in given and many in given:
            reader.complain(one, f"{many} says it for every block", f"give {one} or {many}")
    if "conv_dim" not in given and "conv_block_dims" not in given:
        for name in ("conv_alpha", "conv_block_alphas"):
            if name in given:
                reader.complain(name, "convolutions get no modules", "give conv_dim, for example conv_dim=4")
        return None
    each = len(BLOCKS)
    return Grid(
        tuple(map(int, ranks or each * (rank or 1,))),
        alphas or each * (DEFAULT_ALPHA if alpha is None else alpha,),
    )


def _weights(reader: _Reader) -> tuple[float, ...] | None:
    """The factor of the rate in each block."""
    given = reader.given
    threshold = reader.number(_THRESHOLD, _from_zero)
    if not any(name in given for name in _WEIGHT_NAMES):
        if _THRESHOLD in given:
            reader.complain(_THRESHOLD, "there are no weights to compare with", f"give {', '.join(_WEIGHT_NAMES)}")
        return None
    plain = SIDE_BLOCKS * (1.0,)
    middle = reader.number("mid_lr_weight", _from_zero)
    down, up = reader.side("down_lr_weight") or plain, reader.side("up_lr_weight") or plain
    weights = (*down, 1.0 if middle is None else middle, *up)
    return tuple(weight if weight > (threshold or 0.0) else 0.0 for weight in weights)


def _ratios(reader: _Reader) -> dict[str, float]:
    both = reader.number(_RATIO, _above_zero)
    own = {"text_encoder": reader.number(_TEXT_RATIO, _above_zero), "unet": reader.number(_UNET_RATIO, _above_zero)}
    if all(name in reader.given for name in (_RATIO, _TEXT_RATIO, _UNET_RATIO)):
        reader.complain(_RATIO, "both parts have a ratio of their own", f"remove {_RATIO}, or one of the others")
    ratios = {part: both if ratio is None else ratio for part, ratio in own.items()}
    return {part: ratio for part, ratio in ratios.items() if ratio is not None}


def idle_ratio(given: Mapping[str, str], trains_text_encoder: bool, trains_unet: bool) -> str | None:
    """Why `loraplus_lr_ratio` would do nothing where one part trains alone; None where it does something."""
    own = _TEXT_RATIO if trains_text_encoder else _UNET_RATIO
    if _RATIO in given and own in given and trains_text_encoder != trains_unet:
        return f"{_RATIO}: the only part that trains has a ratio of its own"
    return None


def _from_zero(number: float) -> str | None:
    return None if number >= 0 else f"must be 0 or more, got {number:g}"


def _above_zero(number: float) -> str | None:
    return None if number > 0 else f"must be above 0, got {number:g}"


def _share(number: float) -> str | None:
    return None if 0 <= number < 1 else f"must be at least 0 and below 1, got {number:g}"


def _whole_from_zero(number: float) -> str | None:
    return None if number >= 0 and number == int(number) else f"must be a whole number from 0, got {number:g}"


def _whole_from_one(number: float) -> str | None:
    return None if number >= 1 and number == int(number) else f"must be a whole number from 1, got {number:g}"
