"""The network (LoRA and the like) trained beside a frozen base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import above, at_least, share_below_one


@dataclass(frozen=True)
class NetworkOptions(OptionGroup):
    """Options of train_network.py; the network module itself is loaded by its dotted name."""

    title: ClassVar[str] = "Network"

    network_module: str = option("networks.lora", "Python module of the network, by its dotted name", metavar="MODULE")
    network_dim: int = option(4, "rank of the network", check=at_least(1), metavar="N")
    network_alpha: float = option(
        1.0,
        "scale of the network: its change is multiplied by alpha / dim; 0 means alpha = dim",
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
    network_train_unet_only: bool = option(False, "train only the U-Net part")
    network_train_text_encoder_only: bool = option(False, "train only the text encoder part")
    unet_lr: float | None = option(
        None, "learning rate of the U-Net part; default: --learning_rate", check=above(0), metavar="RATE"
    )
    text_encoder_lr: float | None = option(
        None, "learning rate of the text encoder part; default: --learning_rate", check=above(0), metavar="RATE"
    )
