"""What can be known of a LoRA's options and files before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from library.core.errors import Problems, UserError
from library.models.files.weights import open_weights
from networks.lora_arguments import (
    BLOCKS,
    SHAPE_NAMES,
    TEXT_ENCODER_NAMES,
    UNET_NAMES,
    WHERE,
    LoraArguments,
    idle_ratio,
    parse_arguments,
)
from networks.lora_files import DOWN, FileModule, modules_in
from networks.lora_targets import TEXT_ENCODER_PREFIX, UNET_PREFIX, block_of, trained_blocks, unet_shape


def check_options(
    network_dim: int | None,
    network_args: Mapping[str, str],
    weights: Path | None,
    network_alpha: float | None = None,
    save_dtype: torch.dtype | None = None,
) -> None:
    """Looks at the options before any model is loaded; the host calls it where a module has it.

    Args:
        network_dim: the rank asked for; None where every rank comes from the file.
        network_args: the words of `--network_args`.
        weights: file to go on from.
        network_alpha: the alpha asked for, as the rank.
        save_dtype: number format of the file that will be written, where it is known.

    Raises:
        UserError: for arguments that do not exist, make no sense or contradict each other, an alpha that the file
            cannot hold, or a file that is no LoRA of these ranks.
    """
    problems = Problems()
    arguments = problems.attempt(lambda: parse_arguments(network_dim, network_alpha, None, network_args))
    if arguments is not None and save_dtype is not None:
        _check_alphas(arguments, save_dtype, problems)
    if weights is not None and network_dim is None:
        for name in SHAPE_NAMES:
            if name in network_args:
                problems.add(f"{name}: the file says it", WHERE, f"remove {name}, or --dim_from_weights")
        problems.attempt(lambda: modules_in(open_weights(weights).shapes, f"--network_weights {weights}"))
    elif weights is not None and arguments is not None:
        is_plain = not any(name in network_args for name in SHAPE_NAMES)
        problems.attempt(lambda: _check_file(weights, arguments, is_plain))
    problems.raise_if_any()


def _check_alphas(arguments: LoraArguments, dtype: torch.dtype, problems: Problems) -> None:
    grids = [grid for grid in (arguments.linear, arguments.convolutions) if grid is not None]
    for alpha in {arguments.alpha, *(alpha for grid in grids for alpha in grid.alphas)}:
        saved = torch.tensor(alpha, dtype=torch.float64).to(dtype)
        if not bool(saved.isfinite()) or bool(saved == 0) != (alpha == 0):  # in a file, 0 means that of the rank
            what = f"an alpha of {alpha:g} would be saved as {float(saved):g} in {str(dtype).removeprefix('torch.')}"
            problems.add(what, f"--network_alpha, {WHERE}", "give another alpha, or --save_precision float")


def check_parts(
    network_args: Mapping[str, str], trains_text_encoder: bool, trains_unet: bool, weights: Path | None = None
) -> None:
    """Whether arguments and file speak of the parts that train; the host calls it where a module has it.

    Args:
        weights: file to go on from.

    Raises:
        UserError: naming arguments that would do nothing, a U-Net that shall train and has no block that does, or a
            part that the file lacks, or has and shall not train.
    """
    problems = Problems()
    parts = (("text encoder", trains_text_encoder, TEXT_ENCODER_NAMES), ("U-Net", trains_unet, UNET_NAMES))
    for part, trains, names in parts:
        for name in names:
            if name in network_args and not trains:
                problems.add(f"{name}: the {part} does not train", WHERE, f"remove {name}, or let the {part} train")
    idle = idle_ratio(network_args, trains_text_encoder, trains_unet)
    if idle is not None:
        problems.add(idle, WHERE, "remove one of the two")
    if trains_unet and _leaves_unet_out(network_args):
        other = ", or give --network_train_text_encoder_only and no blocks" if trains_text_encoder else ""
        problems.add("no block of the U-Net is left to train", WHERE, f"give one a rank and a weight above 0{other}")
    if weights is not None and _is_lora(weights):
        problems.attempt(lambda: _check_file_parts(weights, trains_text_encoder, trains_unet))
    problems.raise_if_any()


def _leaves_unet_out(network_args: Mapping[str, str]) -> bool:
    try:
        return not any(trained_blocks(parse_arguments(None, None, None, network_args)))
    except UserError:  # told by `check_options`
        return False


def check_family(weights: Path, where: str, text_width: int) -> None:
    """Whether a file was made for this family of models; the host calls it where a module has it.

    Args:
        where: how messages name the file.
        text_width: numbers in a text state of the base model.

    Raises:
        UserError: it was made for another one.
    """
    for key, shape in open_weights(weights).shapes.items() if _is_lora(weights) else ():
        if key.startswith(UNET_PREFIX) and key.endswith(f"attn2_to_k.{DOWN}") and shape[1] != text_width:
            what = f"it was made for text states of the width {shape[1]}, and the base model has {text_width}"
            raise UserError.of(what, where, "use a file that was trained with a model of this family")


# --- files ------------------------------------------------------------------------------------------------------------


def _is_lora(path: Path) -> bool:
    """Whether there is anything to look at; what is wrong with the file is told by `check_options`."""
    try:
        return bool(modules_in(open_weights(path).shapes, str(path)))
    except UserError:
        return False


def _check_file(path: Path, arguments: LoraArguments, plain: bool) -> None:
    """Whether a file can be gone on from with the shapes that are asked for.

    Args:
        plain: the shapes are said by `--network_dim` alone.

    Raises:
        UserError: it is no LoRA file, or has other shapes.
    """
    where = f"--network_weights {path}"
    modules = modules_in(open_weights(path).shapes, where)
    _check_convolutions(modules, arguments, where)
    ranks = sorted({module.rank for module in modules.values()})
    if plain and ranks != [arguments.rank]:
        found = " and ".join(map(str, ranks))
        what = f"the file has rank {found}, --network_dim asks for {arguments.rank}"
        one = f"give --network_dim {found}"
        fix = one if len(ranks) == 1 else "give --dim_from_weights, which takes every rank from the file"
        raise UserError.of(what, where, fix)
    for name, module in modules.items():
        asked = _asked_rank(name, module, arguments)
        if asked != module.rank:
            what = f"{name} has rank {module.rank}, the options ask for {asked or 'no such module'}"
            raise UserError.of(what, where, "give --dim_from_weights, and no dims in --network_args")

    _check_blocks(modules, arguments, where)


def _check_file_parts(path: Path, trains_text_encoder: bool, trains_unet: bool) -> None:
    """Whether a file has something for each part that trains, and for no other.

    Raises:
        UserError: naming the first part of which this is not so.
    """
    names = modules_in(open_weights(path).shapes, f"--network_weights {path}")
    parts = (
        ("text encoder", TEXT_ENCODER_PREFIX, trains_text_encoder, "--network_train_unet_only"),
        ("U-Net", UNET_PREFIX, trains_unet, "--network_train_text_encoder_only"),
    )
    for part, prefix, trains, without in parts:
        has = any(name.startswith(f"{prefix}_") for name in names)
        if has != trains:
            what = f"the file has {'modules' if has else 'nothing'} for the {part}, which {_trains(trains)}"
            raise UserError.of(what, f"--network_weights {path}", f"{'remove' if has else 'give'} {without}")


def _trains(trains: bool) -> str:
    return "trains" if trains else "does not train"


def _check_blocks(modules: Mapping[str, FileModule], arguments: LoraArguments, where: str) -> None:
    """Whether the file has something in every block of the U-Net for which modules are asked for."""
    if not any(name.startswith(f"{UNET_PREFIX}_") for name in modules):
        return  # a matter of parts
    for wide, asked in zip((False, True), trained_blocks(arguments), strict=True):
        there = {block_of(name) for name, module in modules.items() if module.wide == wide}
        missing = [BLOCKS[block] for block in asked if block not in there]
        if missing:
            what = f"the file has no modules in {', '.join(missing)}, and the options ask for some"
            raise UserError.of(what, where, "give --dim_from_weights, or leave these blocks out (rank or weight 0)")


def _asked_rank(name: str, module: FileModule, arguments: LoraArguments) -> int:
    """The rank that the options give to a module of this name; 0 if they make none."""
    if name.startswith(f"{TEXT_ENCODER_PREFIX}_"):
        return arguments.rank
    shape = unet_shape(name, module.wide, arguments)
    return 0 if shape is None else shape.rank


def _check_convolutions(modules: Mapping[str, FileModule], arguments: LoraArguments, where: str) -> None:
    wide = [module.rank for module in modules.values() if module.wide]
    if wide and arguments.convolutions is None:
        fix = f"give --dim_from_weights, or --network_args conv_dim={wide[0]}"
        raise UserError.of("the file has modules for 3x3 convolutions, and none are asked for", where, fix)
    if not wide and trained_blocks(arguments)[1]:
        fix = "give --dim_from_weights, or remove the conv_… arguments from --network_args"
        raise UserError.of("the file has no modules for 3x3 convolutions, and these are asked for", where, fix)
