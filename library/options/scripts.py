"""Which options each script understands: the one list that the scripts, `--help` and docs/options.md share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from library.options.base import OptionGroup
from library.options.data import DataOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import OptimizerOptions, OutputOptions, TrainingOptions


@dataclass(frozen=True)
class Script:
    """A script's own sentence and its option groups."""

    description: str
    groups: tuple[type[OptionGroup], ...]


SCRIPTS: Mapping[str, Script] = MappingProxyType(
    {
        "train_network.py": Script(
            "Trains a LoRA (or another network module) on your own pictures, beside a frozen base model.",
            (ModelOptions, DataOptions, TextOptions, NetworkOptions, TrainingOptions, OptimizerOptions, OutputOptions),
        ),
        "train_db.py": Script(
            "Trains a whole model, U-Net and text encoder, on your own pictures (DreamBooth and fine-tuning).",
            (
                *(ModelOptions, DataOptions, TextOptions, TrainingOptions, OptimizerOptions),
                *(OutputOptions, ModelSavingOptions),
            ),
        ),
    }
)
