"""The network (LoRA and the like) trained beside a frozen base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.core.errors import Problems
from library.core.numbers import finite_number
from library.options.base import OptionGroup, option
from library.options.checks import above, at_least, share_below_one

NETWORK_FORMS = ("safetensors", "ckpt", "pt")
DEFAULT_NETWORK_DIM, DEFAULT_NETWORK_ALPHA = 4, 1.0


@dataclass(frozen=True)
class NetworkOptions(OptionGroup):
    """Options of train_network.py; the network module itself is loaded by its dotted name."""

    title: ClassVar[str] = "Network"

    network_module: str = option("networks.lora", "Python module of the network, by its dotted name", metavar="MODULE")
    network_dim: int | None = option(
        None, f"rank of the network; default: {DEFAULT_NETWORK_DIM}", check=at_least(1), metavar="N"
    )
    network_alpha: float | None = option(
        None,
        "scale of the network: its change is multiplied by alpha / dim; 0 means alpha = dim;"
        f" default: {DEFAULT_NETWORK_ALPHA:g}",
        check=at_least(0),
        metavar="ALPHA",
    )
    network_dropout: float | None = option(
        None,
        "share of the network's inner values dropped at each training step",
        check=share_below_one,
        metavar="SHARE",
    )
    network_args: tuple[str, ...] = option(
        (), "further arguments of the network module, each key=value", metavar="KEY=VALUE"
    )
    network_weights: str | None = option(None, "file of a trained network to go on from", metavar="FILE")
    dim_from_weights: bool = option(False, "take ranks and alphas from the file of --network_weights")
    base_weights: tuple[str, ...] = option(
        (), "files of trained networks that are merged into the base model before training", metavar="FILE"
    )
    base_weights_multiplier: tuple[str, ...] = option(
        (), "strength of each file of --base_weights; default: 1", metavar="STRENGTH"
    )
    scale_weight_norms: float | None = option(
        None,
        "after each update, scale the change of every layer down to this norm; 1 is a usual start",
        check=above(0),
        metavar="NORM",
    )
    network_train_unet_only: bool = option(False, "train only the U-Net part")
    network_train_text_encoder_only: bool = option(False, "train only the text encoder part")
    save_model_as: str | None = option(
        None, "form of the trained network; default: safetensors, pt for a hypernetwork", choices=NETWORK_FORMS
    )


def network_dim_in_force(options: NetworkOptions) -> int | None:
    """The rank of a new network; None where every rank comes from the file of `--network_weights`."""
    if options.dim_from_weights:
        return None
    return DEFAULT_NETWORK_DIM if options.network_dim is None else options.network_dim


def network_alpha_in_force(options: NetworkOptions) -> float | None:
    """The alpha of a new network; None where it comes from the file of `--network_weights`."""
    if options.dim_from_weights:
        return None
    return DEFAULT_NETWORK_ALPHA if options.network_alpha is None else options.network_alpha


def check_network_files(options: NetworkOptions, problems: Problems) -> None:
    """What `--network_weights`, `--dim_from_weights` and `--base_weights` must agree on."""
    if options.dim_from_weights:
        if options.network_weights is None:
            fix = "name a trained network with --network_weights, or give --network_dim instead"
            problems.add("there is no file to take ranks from", "--dim_from_weights", fix)
        for name in ("network_dim", "network_alpha"):
            if getattr(options, name) is not None:
                fix = f"remove --{name}, or --dim_from_weights"
                problems.add("ranks and alphas come from the file", f"--{name}, --dim_from_weights", fix)
    files, strengths = options.base_weights, options.base_weights_multiplier
    if strengths and not files:
        problems.add("there is nothing to merge", "--base_weights_multiplier", "name files with --base_weights")
    elif strengths and len(strengths) != len(files):
        what = f"{len(files)} files and {len(strengths)} strengths"
        problems.add(what, "--base_weights, --base_weights_multiplier", "give each file a strength, or none")
    for word in strengths:
        if finite_number(word) is None:
            problems.add(f"{word!r} is not a number", "--base_weights_multiplier", "for example 0.8")


def base_weights_in_force(options: NetworkOptions) -> list[tuple[str, float]]:
    """The files that are merged into the base model, in order, with their strengths; after `check_network_files`."""
    strengths = [finite_number(word) for word in options.base_weights_multiplier] or [1.0] * len(options.base_weights)
    return [
        (file, 1.0 if strength is None else strength)
        for file, strength in zip(options.base_weights, strengths, strict=True)
    ]
