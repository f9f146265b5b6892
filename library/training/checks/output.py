"""Whether a run can write what it is to write, where it is asked to, without harm to what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from library.checkpoint.naming import STATE_ENDING, average_file, last_stem
from library.checkpoint.saves import EPOCH, planned_number
from library.checkpoint.state import place_of
from library.core.atomic_io import size_on_disk
from library.core.errors import Problems
from library.core.wording import some_of
from library.models.forms import refuse_other_folder
from library.options.keeping import KeepingOptions
from library.training.checks.keeping import check_keeping, save_moments
from library.training.checks.resumed_state import list_of
from library.training.checks.save_sizes import SaveSizes, full_model_sizes
from library.training.keep.save_failures import free_space, mebibytes, told_waiting
from library.training.progress import RunPlan
from library.training.run import FullModelRun, OutputFiles, RunOptions

RESERVE = 1 << 25  # 32 MiB: logs, and what nobody has thought of
_NAMES_TOLD = 3


def check_space_again(run: FullModelRun, plan: RunPlan) -> None:
    """Room for the trained models, asked when a model of the Hub has been fetched: only then its size is known.

    Raises:
        UserError: the disk is too full.
    """
    problems = Problems()
    sizes = full_model_sizes(run.options, run.base.identity, run.files, run.trains_text_encoder)
    check_space(run.options, run.files, plan, sizes, problems)
    problems.raise_if_any()


def check_output(
    asked: RunOptions, files: OutputFiles, is_file: bool, plan: RunPlan | None, problems: Problems
) -> None:
    """Whether results (files, or folders) and logs can be written when and where they are asked for.

    Args:
        plan: None where the length of the run is not known.
    """
    check_keeping(asked.keeping, plan, problems)
    folders = {"--output_dir": files.folder}
    if asked.logs.logging_dir is not None:
        folders["--logging_dir"] = Path(asked.logs.logging_dir)
    blocked = False
    for flag, named in folders.items():
        file = next((path for path in (named, *named.parents) if path.is_file()), None)
        if file is not None:
            problems.add(f"{file} is a file, a folder is needed", flag, "name another folder")
            blocked = True
    if blocked:
        return
    found = list(_planned_files(asked.keeping, files, plan))
    for path in found:
        if not path.name.endswith(STATE_ENDING):
            _check_kind(path, files, is_file, problems)
    if asked.keeping.resume is None:
        _refuse_loss(found, asked, problems)


def check_resumed_output(
    asked: RunOptions, files: OutputFiles, plan: RunPlan | None, state: Path | None, problems: Problems
) -> None:
    """Whether a resumed run finds its own files where it will write, and not those of another.

    Args:
        state: the one that it goes on from; None where none is asked for, or it was refused.
    """
    if state is not None and not list_of(files.folder, files.name).goes_on_with(state):
        step, epoch = place_of(state)
        _refuse_loss(list(_planned_files(asked.keeping, files, plan, (step or 0, (epoch or 1) - 1))), asked, problems)


def _refuse_loss(found: list[Path], asked: RunOptions, problems: Problems) -> None:
    """Refuses to write over what is there, unless that is asked for.

    Args:
        found: what stands under a name that the run will use.
    """
    # a log alone is left of a run that was stopped; it stands in nobody's way
    if found and not asked.output.overwrite:
        names = some_of([str(path) for path in found[:_NAMES_TOLD]], len(found))
        problems.add(
            f"{names} of an earlier run would be lost",
            "--output_dir, --output_name",
            "choose another --output_name, move the old file away, or give --overwrite"
            if len(found) == 1
            else "choose another --output_name, move the old files away, or give --overwrite",
        )


def check_space(
    asked: RunOptions, files: OutputFiles, plan: RunPlan | None, sizes: SaveSizes, problems: Problems
) -> None:
    """Whether the disk has room for all that will lie there at once, what lies there already counted in."""
    folder = files.folder.absolute()
    free = free_space(folder)
    saves, states = saves_at_once(asked.keeping, plan)
    there = sum(size_on_disk(path) for path in _planned_files(asked.keeping, files, plan))
    # what is replaced is there until the new one is complete
    least = sizes.weights + (sizes.state if states else 0)
    needed = RESERVE + max(saves * sizes.weights + states * sizes.state - there, least)
    if free is None or free >= needed:
        return
    what = f"only {mebibytes(free)} are free on its disk, and about {mebibytes(needed)} are needed"
    parts = [f"{saves} x {mebibytes(sizes.weights)} for what is learned"] if sizes.weights else []
    parts += [f"{states} x {mebibytes(sizes.state)} for states"] if states else []
    fix = f"free {mebibytes(needed - free)} or choose another folder"
    fewer = _fewer(asked.keeping) if saves + states > 1 else ""
    problems.add(
        f"{what}: {', '.join(parts)}" if parts else what, "--output_dir", fix + fewer + told_waiting(files.folder)
    )


def saves_at_once(keeping: KeepingOptions, plan: RunPlan | None) -> tuple[int, int]:
    """How many saves of what is learned, and how many states, lie in the folder at once, at most.

    A new one is complete before an old one goes, so there is one more than is kept.
    """
    saves, states = 1, int(keeping.save_state or keeping.save_state_on_train_end)
    if plan is None:
        return saves, states
    moments = save_moments(keeping, plan.epochs)
    limits = (keeping.save_last_n_epochs, keeping.save_last_n_epochs_state or keeping.save_last_n_epochs)
    made = (plan.epochs - 1) // moments.every_epochs if moments.every_epochs else 0
    kept = [made if limit is None else min(made, limit + 1) for limit in limits]
    saves, states = saves + kept[0], states + kept[1] * keeping.save_state
    if every := moments.every_steps:
        limits = (keeping.save_last_n_steps, keeping.save_last_n_steps_state or keeping.save_last_n_steps)
        made = plan.total_updates // every
        kept = [made if limit is None else min(made, limit // every + 2) for limit in limits]
        saves, states = saves + kept[0], states + kept[1] * keeping.save_state
    return saves, states


def _fewer(keeping: KeepingOptions) -> str:
    """The options that would make less of it."""
    by_epoch = keeping.save_every_n_epochs is not None or keeping.save_n_epoch_ratio is not None
    by_step = keeping.save_every_n_steps is not None
    flags = ["--save_last_n_epochs"] if by_epoch and keeping.save_last_n_epochs is None else []
    flags += ["--save_last_n_steps"] if by_step and keeping.save_last_n_steps is None else []
    if not flags and keeping.save_state:
        flags = ["--save_state_on_train_end in the place of --save_state"]
    return f"; less is kept with {' and '.join(flags)}" if flags else ""


def _planned_files(
    keeping: KeepingOptions, files: OutputFiles, plan: RunPlan | None, after: tuple[int, int] = (0, 0)
) -> Iterator[Path]:
    """What lies in the folder under a name that the run will give to a file or folder of its own; the end first.

    Args:
        after: updates done where it begins, and epochs that have ended.
    """
    last = last_stem(files.name)
    ends = [files.result, files.average] if files.average else [files.result]
    states = [files.folder / f"{last}{STATE_ENDING}"]
    yield from (path for path in ends if path.exists())
    if keeping.save_state or keeping.save_state_on_train_end:
        yield from (path for path in states if path.exists())
    if plan is None or not files.folder.is_dir():
        return
    moments = save_moments(keeping, plan.epochs)
    for path in sorted(files.folder.iterdir()):
        stem = _stem_of(path, files, keeping.save_state)
        kind, number = (planned_number(stem, files.name) if stem else None) or ("", 0)
        every = moments.every_epochs if kind == EPOCH else moments.every_steps
        done = after[1] if kind == EPOCH else after[0]
        last_number = plan.epochs - 1 if kind == EPOCH else plan.total_updates
        if kind and every and number % every == 0 and done < number <= last_number:
            yield path


def _stem_of(path: Path, files: OutputFiles, with_states: bool) -> str | None:
    """The stem of a name that a save on the way could have; None of any other."""
    if with_states and path.name.endswith(STATE_ENDING):
        return path.name.removesuffix(STATE_ENDING)
    if not path.name.endswith(files.extension):
        return None
    stem = path.name.removesuffix(files.extension)
    is_average = files.keeps_average and path == average_file(files.of(stem.removesuffix("-ema")))
    return stem.removesuffix("-ema") if is_average else stem


def _check_kind(path: Path, files: OutputFiles, is_file: bool, problems: Problems) -> None:
    """Whether what stands there can be replaced: a file by a file, a model's folder by one."""
    if is_file and path.is_dir():
        what = f"{path} is a folder, and a file is to be written there"
        problems.add(what, "--output_name", "choose another name")
    elif not is_file and path not in (files.result, files.average):  # those are looked at before
        problems.attempt(lambda: refuse_other_folder(path))
