"""Which state `--resume` means: the one that is named, or the last whole one of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from library.checkpoint.foreign_state import is_foreign_state
from library.checkpoint.manifest import TornStateError
from library.checkpoint.naming import STATE_ENDING
from library.checkpoint.saves import SaveList
from library.checkpoint.state import check_state, is_state, names_of, place_of, read_facts, state_folders, states_of
from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.training.checks.uploads import fetch_resumed_state
from library.training.run import OutputFiles, RunOptions

FLAG, LATEST = "--resume", "latest"
_NAMES_TOLD = 5


def find_state(asked: RunOptions, files: OutputFiles, warnings: list[str], problems: Problems) -> Path | None:
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
    return _first_whole(_and_those_before(folder), warnings, problems)


def list_of(folder: Path, name: str | None) -> SaveList:
    """The list of what was saved under a name; an empty one where there is none that can be read."""
    try:
        return SaveList.read(folder, name)
    except UserError:  # told where the run begins a new one
        return SaveList(folder, name)


def _latest(files: OutputFiles, warnings: list[str], problems: Problems) -> Path | None:
    """The newest state of the run whose list lies in the output folder; torn ones that were passed over are told."""
    listed = list_of(files.folder, files.name)
    found = [state for state in states_of(files.folder, files.name) if not listed.passes_over(state)]
    torn = list(_torn_ones(files, listed))
    if found:
        return _first_whole(found, warnings, problems, torn)
    name = "without an --output_name" if files.name is None else f"of --output_name {files.name}"
    told = "".join(f"; {problem.where}: {problem.what}" for _, problem in torn)
    others = [str(state) for state in states_of(files.folder, files.name)]  # passed over, all of them
    if others:
        what = f"the run that {listed.path} belongs to has no state{told}; "
        what += f"{some_of(others[:_NAMES_TOLD], len(others))} {'is' if len(others) == 1 else 'are'} of an earlier run"
        fix = "name a state to go on with that earlier run, or leave --resume out to begin anew"
        problems.add(what, f"{FLAG} {LATEST}", fix)
        return None
    fix = _hint(files.folder) or "leave --resume out to begin anew"
    problems.add(f"there is no state {name} in {files.folder}{told}", f"{FLAG} {LATEST}", fix)
    return None


def _torn_ones(files: OutputFiles, listed: SaveList) -> Iterator[tuple[Path, Problem]]:
    """What is wrong with states of the run that do not even look whole."""
    for folder in state_folders(files.folder, files.name):
        if not listed.passes_over(folder):
            yield from ((folder, problem) for problem in _problems_of(folder, read_facts))


def _problems_of(folder: Path, look: Callable[[Path], Any]) -> tuple[Problem, ...]:
    """Why a state is torn; nothing where it is whole, or no state at all."""
    try:
        look(folder)
    except TornStateError as error:
        return error.problems
    except UserError:
        return ()
    return ()


def _and_those_before(state: Path) -> Iterator[Path]:
    """A state, and where somebody asks on, those of the same run that are not later, as far as it still tells."""
    yield state
    names, (step, epoch) = names_of(state), place_of(state)
    lists = [list_of(state.parent, name) for name in names]
    is_left = any(listed.passes_over(state) for listed in lists)
    for other in sorted({path for name in names for path in states_of(state.parent, name)}, key=_recent):
        reached, ended = place_of(other)
        is_before = (step is not None and reached is not None and reached <= step) or (
            step is None and epoch is not None and ended is not None and ended <= epoch
        )
        if is_before and other.name != state.name and any(of.passes_over(other) for of in lists) == is_left:
            yield other


def _recent(state: Path) -> tuple[int, str]:
    """Sorts the one with the most updates first."""
    step, _ = place_of(state)
    return -(step or 0), state.name


def _first_whole(
    candidates: Iterable[Path], warnings: list[str], problems: Problems, torn: Iterable[tuple[Path, Problem]] = ()
) -> Path | None:
    """The first one that is whole; those that are not are told, and those that `torn` has already. What is no state at
    all is refused, whatever follows it."""
    broken, tried = list(torn), list[Path]()
    for folder in candidates:
        try:
            check_state(folder)
        except TornStateError as error:
            tried.append(folder)
            broken += [(folder, problem) for problem in error.problems]
        except UserError as error:
            problems.extend([*(problem for _, problem in broken), *error.problems])
            return None
        else:
            warnings += [f"{problem.where}: {problem.what}" for _, problem in broken]
            reached = place_of(folder)[0] or 0
            # one that was asked for by its name may not tell where it stood
            if any(step > reached for step in (place_of(state)[0] or 0 for state, _ in broken)) or any(
                place_of(state)[0] is None for state in tried
            ):
                warnings.append(f"so the run goes on from {folder.name}, the last whole state before")
            return folder
    problems.extend(problem for _, problem in broken)
    return None


def _hint(folder: Path) -> str | None:
    """The states in a folder, as a mend; None where there are none."""
    names = sorted(path.name for path in folder.iterdir() if is_state(path)) if folder.is_dir() else []
    if not names:
        return None
    return f"there is {some_of([str(folder / name) for name in names[-_NAMES_TOLD:]], len(names))}"
