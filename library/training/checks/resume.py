"""Whether a run can go on from the state that is asked for, and what has changed since."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from library.checkpoint.foreign_state import is_foreign_state, read_foreign_state
from library.checkpoint.manifest import TornStateError
from library.checkpoint.naming import STATE_ENDING, last_stem
from library.checkpoint.state import check_state, is_state, read_facts, states_of
from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.optim.optimizers import has_own_schedule
from library.optim.schedulers import make_scheduler
from library.options.optimizer import OptimizerOptions
from library.options.record import TRAINS, Kind
from library.training.checks.uploads import fetch_resumed_state
from library.training.progress import RunPlan
from library.training.state_facts import STEP, TORCH, UPDATES, Change, changes_between, facts_of

if TYPE_CHECKING:  # a run holds the point that it goes on from
    from library.training.checks.pictures import Pictures
    from library.training.run import BaseModel, OutputFiles, RunOptions

FLAG, LATEST, ALLOW = "--resume", "latest", "--allow_changed_options"
_LENGTH = "updates of the run"
_NAMES_TOLD = 5
_RAISE_LENGTH = "raise --max_train_steps (or --max_train_epochs) to train longer"


@dataclass(frozen=True)
class ResumePoint:
    """The state that a run goes on from.

    Attributes:
        folder: of the state; whole, and checked.
        step: updates done.
        changes: what is not as it was when it was written, but for what nothing depends on.
        is_exact: the run goes on as if it had never stopped; else the options of now are put in force.
        is_foreign: another tool wrote it.
        warnings: what people should know before it goes on.
    """

    folder: Path
    step: int
    changes: tuple[Change, ...] = ()
    is_exact: bool = True
    is_foreign: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Begun:
    """What the checks have found of the run that would go on; None where they found mistakes."""

    base: BaseModel | None
    pictures: Pictures | None
    plan: RunPlan | None


def check_resume(asked: RunOptions, files: OutputFiles, begun: Begun, problems: Problems) -> ResumePoint | None:
    """The state of `--resume`; None where none is asked for, or it was refused."""
    if asked.keeping.resume is None:
        if asked.keeping.allow_changed_options:
            problems.add("there is no state whose options could have changed", ALLOW, f"give {FLAG}, or remove it")
        return None
    warnings: list[str] = []
    folder = _find(asked, files, warnings, problems)
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
    if step >= begun.plan.total_updates:
        what = f"{folder.name} is of update {step}, and the run ends at update {begun.plan.total_updates}"
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
    return ResumePoint(folder, step, tuple(changes), is_exact, warnings=tuple(warnings))


def _find(asked: RunOptions, files: OutputFiles, warnings: list[str], problems: Problems) -> Path | None:
    """The folder of the state that is meant, whole; where the one that is asked for is torn, an older one."""
    named = str(asked.keeping.resume)
    if asked.upload.resume_from_huggingface:
        fetched = fetch_resumed_state(asked.upload, asked.keeping, problems)
        return None if fetched is None else _first_whole([fetched], warnings, problems)
    if named == LATEST:
        return _latest(files, warnings, problems)
    folder = Path(named)
    if not folder.is_dir():
        what = f"{folder} is a file, a state is a folder" if folder.exists() else f"{folder} is not there"
        problems.add(what, FLAG, _hint(folder.parent) or f"name a folder that ends in {STATE_ENDING}, or {LATEST}")
        return None
    if is_foreign_state(folder):
        return folder
    if not is_state(folder) and _hint(folder) is not None:
        problems.add(f"{folder} is no state, but holds some", FLAG, f"{_hint(folder)}; or give {LATEST}")
        return None
    older = [path for path in states_of(folder.parent, files.name) if path.name != folder.name]
    return _first_whole([folder, *_before(folder, older)], warnings, problems)


def _latest(files: OutputFiles, warnings: list[str], problems: Problems) -> Path | None:
    """The newest state of the run's name; torn ones that were passed over are told."""
    found = states_of(files.folder, files.name)
    if found:
        warnings += _torn_ones(files)
        return _first_whole(found, warnings, problems)
    name = "without an --output_name" if files.name is None else f"of --output_name {files.name}"
    torn = "".join(f"; {text}" for text in _torn_ones(files))
    fix = _hint(files.folder) or "leave --resume out to begin anew"
    problems.add(f"there is no state {name} in {files.folder}{torn}", f"{FLAG} {LATEST}", fix)
    return None


def _torn_ones(files: OutputFiles) -> list[str]:
    """What is wrong with states of the run's name that do not even look whole."""
    stem = last_stem(files.name) if files.name is not None else ""
    told = []
    for folder in sorted(files.folder.glob(f"*{STATE_ENDING}")) if files.folder.is_dir() else []:
        if folder.name.startswith(stem) and folder.is_dir():
            told += [f"{problem.where}: {problem.what}" for problem in _problems_of(folder, read_facts)]
    return told


def _problems_of(folder: Path, look: Callable[[Path], Any]) -> tuple[Problem, ...]:
    """Why a state is torn; nothing where it is whole, or no state at all."""
    try:
        look(folder)
    except TornStateError as error:
        return error.problems
    except UserError:
        return ()
    return ()


def _before(torn: Path, others: list[Path]) -> list[Path]:
    """Those that are not later than a state, as far as it still tells where it stood."""
    try:
        step = int(read_facts(torn)[STEP])
    except UserError:
        return others
    return [path for path in others if int(read_facts(path)[STEP]) <= step]


def _first_whole(candidates: list[Path], warnings: list[str], problems: Problems) -> Path | None:
    """The first one that is whole; the others are told. What is no state at all is refused, whatever follows it."""
    torn: list[Problem] = []
    for folder in candidates:
        try:
            check_state(folder)
        except TornStateError as error:
            torn += error.problems
        except UserError as error:
            problems.extend([*torn, *error.problems])
            return None
        else:
            warnings += [f"{problem.where}: {problem.what}" for problem in torn]
            if torn or warnings:
                warnings.append(f"so the run goes on from {folder.name}, the last whole state before")
            return folder
    problems.extend(torn)
    return None


def _hint(folder: Path) -> str | None:
    """The states in a folder, as a mend; None where there are none."""
    names = sorted(path.name for path in folder.iterdir() if is_state(path)) if folder.is_dir() else []
    if not names:
        return None
    return f"there is {some_of([str(folder / name) for name in names[-_NAMES_TOLD:]], len(names))}"


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
