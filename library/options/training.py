"""How long, how fast and how exactly the run trains, and where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least, file_stem, not_blank
from library.options.saving import PRECISIONS


@dataclass(frozen=True)
class TrainingOptions(OptionGroup):
    """The loop: length, precision, memory, seed."""

    title: ClassVar[str] = "Training"

    max_train_steps: int | None = option(None, "number of updates", check=at_least(1), metavar="N")
    max_train_epochs: int | None = option(
        None, "number of epochs; wins over --max_train_steps when both are given", check=at_least(1), metavar="N"
    )
    gradient_accumulation_steps: int = option(
        1, "batches whose gradients are averaged into one update", check=at_least(1), metavar="N"
    )
    gradient_checkpointing: bool = option(False, "compute activations again in the backward pass: less memory, slower")
    mixed_precision: str = option(
        "no", "precision of the computation; trained weights stay float32", choices=("no", "fp16", "bf16")
    )
    max_grad_norm: float = option(
        1.0, "limit of the gradient norm; 0 switches it off", check=at_least(0), metavar="NORM"
    )
    seed: int = option(42, "seed of every random number of the run", metavar="N")


@dataclass(frozen=True)
class FineTuningOptions(OptionGroup):
    """Options of fine_tune.py."""

    title: ClassVar[str] = "Fine-tuning"

    train_text_encoder: bool = option(False, "train the text encoder as well, not the U-Net alone")
    hypernetwork_module: str | None = option(
        None,
        "train this network beside the frozen model instead, networks.hypernetwork as older guides name it; the same as"
        " train_network.py --network_module",
        check=not_blank,
        metavar="MODULE",
    )
    hypernetwork_weights: str | None = option(
        None, "file of a trained hypernetwork to go on from; with --hypernetwork_module", metavar="FILE"
    )


@dataclass(frozen=True)
class DreamBoothOptions(OptionGroup):
    """Options of train_db.py."""

    title: ClassVar[str] = "DreamBooth"

    stop_text_encoder_training: int | None = option(
        None,
        "train the text encoder for the first N updates only; 0 and -1 leave it as it is",
        check=at_least(-1),
        metavar="N",
    )


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    """Where results go."""

    title: ClassVar[str] = "Output"

    output_dir: str | None = option(None, "folder for the trained file and the log", required=True, metavar="DIR")
    output_name: str | None = option(
        None, "name of the trained file, without extension; default: last", check=file_stem, metavar="NAME"
    )
    overwrite: bool = option(False, "replace the trained file and log of an earlier run with the same name")
    save_precision: str | None = option(
        None,
        "precision of the saved weights; default: for a network that of the training (float, or that of"
        " --mixed_precision), for a whole model that of the base model (in a .ckpt fp16 instead of bf16, which the"
        " Web UI refuses), for an embedding float",
        choices=PRECISIONS,
    )
    training_comment: str | None = option(None, "a comment kept in the metadata of the file", metavar="TEXT")
