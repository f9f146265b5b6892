"""Whether a run can write what it is to write, where it is asked to, without harm to what is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from library.core.errors import Problems, UserError
from library.models.files.folder_weights import STEMS, weights_files
from library.models.identify import ModelIdentity
from library.options.training import OutputOptions
from library.training.run import FullModelRun, OutputFiles, RunOptions

NEEDED_SPACE = 1 << 28  # 256 MiB: the largest network file in use, its temporary twin, and the logs


def check_space_again(run: FullModelRun) -> None:
    """Room for the trained model, asked when a model of the Hub has been fetched: only then its size is known.

    Raises:
        UserError: the disk is too full.
    """
    problems, output = Problems(), run.options.output
    check_space(output, full_model_size(run.base.identity, output, run.files.copies), problems)
    problems.raise_if_any()


def full_model_size(identity: ModelIdentity, output: OutputOptions, copies: int) -> int:
    """Bytes that so many copies of the trained model may take: those of the base model's weights, twice as many where
    half precision is saved as float32; 0 where they are still to be fetched."""
    grown = (2 if output.save_precision == "float" else 1) * copies
    if identity.layout == "single_file":
        return grown * identity.path.stat().st_size
    try:
        files = [path for part, stem in STEMS.items() for path in weights_files(identity.path / part, stem)]
    except UserError:  # told when they are loaded
        return 0
    return grown * sum(path.stat().st_size for path in files)


def check_output(asked: RunOptions, files: OutputFiles, is_file: bool, problems: Problems) -> None:
    """Whether result (a file, or a folder) and logs can be written where they are asked for."""
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
    if is_file and files.result.is_dir():
        what = f"{files.result} is a folder, and a file is to be written there"
        problems.add(what, "--output_name", "choose another name")
    # a log alone is left of a run that was stopped; it stands in nobody's way
    for written in (files.result, files.average):
        if written is not None and written.exists() and not asked.output.overwrite:
            problems.add(
                f"{written} of an earlier run would be lost",
                "--output_dir, --output_name",
                "choose another --output_name, move the old file away, or give --overwrite",
            )


def check_space(output: OutputOptions, model_size: int, problems: Problems) -> None:
    """Whether the disk has room for a trained model of `model_size` bytes and what is written beside it."""
    folder, needed = Path(str(output.output_dir)).absolute(), NEEDED_SPACE + model_size
    nearest = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(nearest).free
    if free < needed:
        fix = f"free {needed >> 20} MiB or choose another folder"
        problems.add(f"only {free >> 20} MiB are free on its disk", "--output_dir", fix)
