"""Shows what a training would do with its pictures: sizes, buckets, crops, captions, first batches. Needs no model.

    python tools/dataset_report.py --train_data_dir pictures --resolution 512 --enable_bucket --html report.html

Takes the dataset, caption, cache and training options of the scripts. Exit code 1 when something would stop a training.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Problem, Problems, UserError, printable, run_script
from library.options.caching import CachingOptions
from library.options.command_line import read_command_line
from library.options.data import DataOptions
from library.options.parse import OptionValues, build_parser
from library.options.report import ReportOptions
from library.options.text import TextOptions
from library.options.training import TrainingOptions

if TYPE_CHECKING:
    from library.training.debug.pictures_told import Told

SCRIPT = "tools/dataset_report.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: with every problem that would stop a training, after both files are written.
    """
    words = sys.argv[1:] if words is None else words
    try:
        options = read_command_line(SCRIPT, words)
        if options is not None:
            from library.training.prepared import take_prepared

            options = take_prepared(options)
    except UserError as error:
        files = _files_in(words)
        if files == ReportOptions():
            raise
        raise UserError(_report_mistakes(error.problems, files)) from None
    if options is None:
        return
    files = options.of(ReportOptions)
    _check_files(files)
    if options.of(DataOptions).debug_dataset:
        raise UserError.of("it belongs to the training scripts", "--debug_dataset", "give --html FILE instead")
    told = _look(options)
    problems = [*told.report.problems, *_write(told, files)]
    if problems:
        raise UserError(problems)


def _files_in(words: Sequence[str]) -> ReportOptions:
    """The files that a command line with mistakes names, so that a program reading them is told of these."""
    try:
        found, _ = build_parser(SCRIPT, "", (ReportOptions,)).parse_known_args(list(words))
        files = ReportOptions(**vars(found))
        _check_files(files)
    except UserError:
        return ReportOptions()
    return files


def _check_files(files: ReportOptions) -> None:
    if files.json is not None and files.html is not None and Path(files.json).resolve() == Path(files.html).resolve():
        raise UserError.of("both would be written to one file", "--json, --html", "name two files")


def _report_mistakes(problems: Sequence[Problem], files: ReportOptions) -> list[Problem]:
    """Writes a report of the command line's mistakes; they, and what went wrong in doing so."""
    from library.data.report.dataset_report import report_of_problems
    from library.training.debug.pictures_told import Told

    return [*problems, *_write(Told(report_of_problems(problems), None), files)]


def _look(options: OptionValues) -> Told:
    from library.data.report.start_report import describe_dataset
    from library.training.debug.pictures_told import Asked, look_at_pictures

    groups = (options.of(DataOptions), options.of(CachingOptions), options.of(TextOptions), options.of(TrainingOptions))
    told = look_at_pictures(Asked(*groups))
    source = told.source
    if source is not None:
        for line in (*source.notes, *describe_dataset(source.index, source.views.placements, source.planner)):
            print(printable(line))
    return told


def _write(told: Told, files: ReportOptions) -> list[Problem]:
    """Writes the files that were asked for; what could not be written."""
    from library.core.atomic_io import write_text_whole
    from library.data.report.dataset_report import as_json_values
    from library.training.debug.dataset import write_page

    problems = Problems()
    if files.json is not None:
        try:
            write_text_whole(Path(files.json), json.dumps(as_json_values(told.report), indent=1) + "\n")
            print(f"written: {files.json}")
        except OSError as error:
            problems.add(f"{files.json} cannot be written: {error.strerror or error}", "--json", "name another place")
    if files.html is not None:
        try:
            write_page(told, Path(files.html), "--html")
            print(f"written: {files.html}")
        except UserError as error:
            problems.extend(error.problems)
    return list(problems)


if __name__ == "__main__":
    sys.exit(run_script(main))
