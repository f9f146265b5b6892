"""What is kept on the way: saves, states to resume from, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least, not_blank


@dataclass(frozen=True)
class KeepingOptions(OptionGroup):
    """Saves before the end of the run, states, and going on from one."""

    title: ClassVar[str] = "Saving and resuming"

    save_every_n_epochs: int | None = option(
        None, "save the trained file after every N epochs, as NAME-000001", check=at_least(1), metavar="N"
    )
    save_every_n_steps: int | None = option(
        None, "save the trained file after every N updates, as NAME-step00000001", check=at_least(1), metavar="N"
    )
    save_n_epoch_ratio: int | None = option(
        None,
        "save after so many epochs that there are at least N files at the end, that of the end included; after every"
        " epoch where the run has fewer than N",
        check=at_least(1),
        metavar="N",
    )
    save_last_n_epochs: int | None = option(
        None, "of the files saved after epochs, keep the last N only", check=at_least(1), metavar="N"
    )
    save_last_n_epochs_state: int | None = option(
        None,
        "of the states saved after epochs, keep the last N only; default: as --save_last_n_epochs",
        check=at_least(1),
        metavar="N",
    )
    save_last_n_steps: int | None = option(
        None,
        "of the files saved every so many updates, keep those of the last N updates only",
        check=at_least(1),
        metavar="N",
    )
    save_last_n_steps_state: int | None = option(
        None,
        "of the states saved every so many updates, keep those of the last N updates only; default: as"
        " --save_last_n_steps",
        check=at_least(1),
        metavar="N",
    )
    save_state: bool = option(
        False, "with each save and at the end, keep a folder NAME-…-state that --resume goes on from"
    )
    save_state_on_train_end: bool = option(False, "keep a state at the end of the run only")
    save_on_signal: bool = option(
        False,
        "save the trained file and a state, and go on, at SIGUSR1 (Ctrl+Break on Windows); Ctrl-C and SIGTERM always"
        " save and stop",
    )
    resume: str | None = option(
        None,
        "go on from a state folder, or from the last one of this --output_name with the word latest; with"
        " --resume_from_huggingface {repo_id}/{path_in_repo}:{revision}:{repo_type}",
        check=not_blank,
        metavar="STATE",
    )
    allow_changed_options: bool = option(
        False, "resume although options or pictures are not those of the state; the result is that of neither run alone"
    )
