"""Where losses, rates and pictures are logged, beside the JSONL file that every run writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option, secret_option
from library.options.checks import file_stem

TENSORBOARD, WANDB, ALL = TRACKERS = ("tensorboard", "wandb", "all")

KEY_PLACES = "the environment (WANDB_API_KEY) or stored by `wandb login`"


@dataclass(frozen=True)
class LogOptions(OptionGroup):
    """Trackers."""

    title: ClassVar[str] = "Logs"

    logging_dir: str | None = option(
        None,
        "folder for TensorBoard logs; each run writes into a folder named by date and time; wandb keeps its files"
        " there, too",
        metavar="DIR",
    )
    log_prefix: str | None = option(
        None, "put before the date-time name of the log folder", check=file_stem, metavar="NAME"
    )
    log_with: str | None = option(
        None,
        "what to log with, beside the JSONL file that every run writes; default: tensorboard where --logging_dir is"
        " given",
        choices=TRACKERS,
    )
    log_tracker_name: str | None = option(
        None,
        "name of the project in the tracker; default: finetuning, dreambooth, network_train or textual_inversion",
        check=file_stem,
        metavar="NAME",
    )
    log_tracker_config: str | None = option(
        None,
        "TOML file with further settings of the trackers: a table [tensorboard] for SummaryWriter, a table [wandb] for"
        " wandb.init",
        metavar="FILE",
    )
    wandb_run_name: str | None = option(None, "name of the run in wandb; default: wandb chooses one", metavar="NAME")
    wandb_api_key: str | None = secret_option("key of wandb", metavar="KEY", better=KEY_PLACES)
