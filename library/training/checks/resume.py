"""Whether a run can go on from the state that is asked for, and what has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from library.checkpoint.foreign_state import is_foreign_state, read_foreign_state
from library.checkpoint.saves import END
from library.checkpoint.state import read_facts
from library.core.errors import Problems, UserError
from library.optim.optimizers import has_own_schedule
from library.optim.schedulers import make_scheduler
from library.options.optimizer import OptimizerOptions
from library.options.record import TRAINS, Kind
from library.training.checks.pictures import Pictures
from library.training.checks.resumed_state import FLAG, find_state, list_of
from library.training.checks.uploads import fetch_resumed_state
from library.training.keep.state_facts import STEP, TORCH, UPDATES, begun_with, changes_between, facts_of
from library.training.progress import RunPlan
from library.training.resume_point import Change, ResumePoint
from library.training.run import BaseModel, OutputFiles, RunOptions

ALLOW = "--allow_changed_options"
_LENGTH = "updates of the run"
_RAISE_LENGTH = "raise --max_train_steps (or --max_train_epochs) to train longer"


@dataclass(frozen=True)
class Begun:
    """What the checks have found of the run that would go on; None where they found mistakes."""

    base: BaseModel | None
    pictures: Pictures | None
    plan: RunPlan | None


def check_resume(asked: RunOptions, files: OutputFiles, begun: Begun, problems: Problems) -> ResumePoint | None:
    """The state of `--resume`; None where none is asked for, or it was refused."""
    if asked.keeping.resume is None:
        fetch_resumed_state(asked.upload, asked.keeping, problems)  # fetches nothing, but refuses an idle option
        if asked.keeping.allow_changed_options:
            problems.add("there is no state whose options could have changed", ALLOW, f"give {FLAG}, or remove it")
        return None
    warnings: list[str] = []
    folder = find_state(asked, files, warnings, problems)
    if folder is None:
        return None
    if is_foreign_state(folder):
        return _foreign_point(folder, asked, begun.plan, problems)
    facts = problems.attempt(lambda: read_facts(folder))
    if facts is None:
        return None
    if facts.get(TRAINS) != asked.record[TRAINS]:
        what = f"{folder.name} is the state of a run that trained {facts.get(TRAINS)}, and this one trains"
        problems.add(f"{what} {asked.record[TRAINS]}", FLAG, "resume with the script that wrote it")
        return None
    if begun.base is None or begun.pictures is None or begun.plan is None:
        return None  # what is wrong with them is told
    pictures = begun.pictures
    new = facts_of(asked, begun.base, pictures.index, pictures.placements, begun.plan)
    step = int(facts[STEP])
    length = begun.plan.total_updates
    if step > length or (step == length and _has_end(files, folder, step)):
        what = f"{folder.name} is of update {step}, and the run ends at update {length}"
        problems.add(f"it is finished: {what}", FLAG, _RAISE_LENGTH)
        return None
    changes = changes_between(facts, new)
    changes += _length_change(facts, asked, new, begun)
    _judge(changes, asked.keeping.allow_changed_options, folder, problems)
    if facts.get(TORCH) != new[TORCH]:
        warnings.append(
            f"the state was written with torch {facts.get(TORCH)}, now it is {new[TORCH]}: last bits differ"
        )
    is_exact = not changes and facts.get(UPDATES) == new[UPDATES]
    return ResumePoint(folder, step, tuple(changes), is_exact, warnings=tuple(warnings), begun_with=begun_with(facts))


def _has_end(files: OutputFiles, state: Path, step: int) -> bool:
    """Whether what a run has learned at its end is saved; where it could not be, a run that goes on from the state of
    the end saves it, and trains no more."""
    ends = [files.result] if files.average is None else [files.result, files.average]
    if not all(end.exists() for end in ends):
        return False
    listed = list_of(files.folder, files.name)
    if not listed.saves or not listed.goes_on_with(state):
        return True
    written = {name for save in listed.of(END, is_state=False) if save.step >= step for name in save.names}
    return all(end.name in written for end in ends)


def _foreign_point(
    folder: Path, asked: RunOptions, plan: RunPlan | None, problems: Problems
) -> ResumePoint | None:  # fmt: skip
    """A state of another tool; it tells no options, so none can have changed."""
    foreign = problems.attempt(lambda: read_foreign_state(folder))
    if foreign is None:
        return None
    step = foreign.step or 0
    if plan is not None and step >= plan.total_updates:
        what = f"{folder.name} is of update {step}, and the run ends at update {plan.total_updates}"
        problems.add(f"it is finished: {what}", FLAG, _RAISE_LENGTH)
    if asked.keeping.allow_changed_options:
        what = "a state of another tool tells no options, so none can have changed"
        problems.add(what, ALLOW, "remove it")
    return ResumePoint(folder, step, is_exact=False, is_foreign=True)


def _judge(changes: list[Change], is_allowed: bool, folder: Path, problems: Problems) -> None:
    """Refuses what cannot be changed, and what may be if nobody has allowed it; everything at once."""
    for change in changes:
        if change.kind is Kind.FIXED:
            what = f"{change}; the weights of {folder.name} would not fit"
            problems.add(what, FLAG, "give the old value, or begin a new run")
        elif change.kind is Kind.STARTS:
            what = f"{change}; it says where a run begins, and this one goes on from {folder.name}"
            problems.add(what, FLAG, f"leave {change.name} out, or give the old value")
    deciding = [str(change) for change in changes if change.kind is Kind.DECIDES]
    if deciding and not is_allowed:
        what = f"not as it was when {folder.name} was written: {'; '.join(deciding)}"
        fix = "give the old values to finish the run that was begun, or"
        problems.add(what, FLAG, f"{fix} {ALLOW} to go on with the new ones")


def _length_change(
    facts: Mapping[str, Any], asked: RunOptions, new: Mapping[str, Any], begun: Begun
) -> list[Change]:  # fmt: skip
    """Another length is a change where something before the state depended on it: it is no part of the longer run."""
    old_length, new_length = int(facts[UPDATES]), int(new[UPDATES])
    if old_length == new_length:
        return []
    subsets = (
        [subset for dataset in begun.pictures.index.training_datasets for subset in dataset.subsets]
        if (begun.pictures)
        else []
    )
    warms_up = any(0 < subset.caption_changes.warmup_step < 1 for subset in subsets)
    rates, step = asked.rates, int(facts[STEP])
    before, now = (_rates(asked.optimizer, rates.unet, length, step) for length in (old_length, new_length))
    if not warms_up and before == now:
        return []
    return [Change(_LENGTH, old_length, new_length, Kind.DECIDES)]


def _rates(options: OptimizerOptions, rate: float, length: int, updates: int) -> list[float] | None:
    """The rates of the first updates of a run of a length; None where it cannot have the schedule."""
    if has_own_schedule(options):
        return []
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate, "name": "trial"}
    optimizer = torch.optim.SGD([group])
    try:
        scheduler = make_scheduler(options, optimizer, length)
    except UserError:  # told where the schedule is checked
        return None
    optimizer.step()  # nothing has a gradient; a schedule warns where it is advanced alone
    found = []
    for _ in range(updates):
        found.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step()
    return found
