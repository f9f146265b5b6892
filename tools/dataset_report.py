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

from library.core.errors import UserError, run_script
from library.options.caching import CachingOptions
from library.options.command_line import read_command_line
from library.options.data import DataOptions
from library.options.parse import OptionValues
from library.options.report import ReportOptions
from library.options.text import TextOptions
from library.options.training import TrainingOptions

if TYPE_CHECKING:
    from library.training.pictures_told import Told

SCRIPT = "tools/dataset_report.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: with every problem that would stop a training, after both files are written.
    """
    options = read_command_line(SCRIPT, words)
    if options is None:
        return
    if options.of(DataOptions).debug_dataset:
        raise UserError.of("it belongs to the training scripts", "--debug_dataset", "give --html FILE instead")
    told = _look(options)
    _write(told, options.of(ReportOptions))
    if told.report.problems:
        raise UserError(told.report.problems)


def _look(options: OptionValues) -> Told:
    from library.data.report.start_report import describe_dataset
    from library.training.pictures_told import Asked, look_at_pictures

    groups = (options.of(DataOptions), options.of(CachingOptions), options.of(TextOptions), options.of(TrainingOptions))
    told = look_at_pictures(Asked(*groups))
    source = told.source
    if source is not None:
        for line in (*source.notes, *describe_dataset(source.index, source.views.placements, source.planner)):
            print(line)
    return told


def _write(told: Told, files: ReportOptions) -> None:
    from library.core.atomic_io import write_text_whole
    from library.data.report.dataset_report import as_json_values
    from library.training.debug_dataset import write_page

    if files.json is not None:
        try:
            write_text_whole(Path(files.json), json.dumps(as_json_values(told.report), indent=1) + "\n")
        except OSError as error:
            raise UserError.of(f"cannot be written: {error.strerror}", "--json", "name another file") from None
        print(f"written: {files.json}")
    if files.html is not None:
        write_page(told, Path(files.html), "--html")
        print(f"written: {files.html}")


if __name__ == "__main__":
    sys.exit(run_script(main))
