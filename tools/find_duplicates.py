"""Finds pictures that are there more than once: same file, same pixels, or a resized, compressed, cropped copy.

    python tools/find_duplicates.py pictures more_pictures --recursive --html duplicates.html

Tells which picture of each group to keep, and where captions differ; changes nothing. Exit code 0 whether duplicates
were found or not, 3 when a picture could not be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.atomic_io import write_text_whole
from library.core.errors import Incomplete, Problems, UserError, run_script
from library.options.command_line import read_command_line
from library.options.data import default_worker_count
from library.options.preparation import DuplicateOptions

SCRIPT = "tools/find_duplicates.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: nothing was begun.
        Incomplete: pictures could not be read, or a file could not be written.
    """
    values = read_command_line(SCRIPT, words)
    if values is None:
        return
    options = values.of(DuplicateOptions)
    if options.json and options.html and Path(options.json).resolve() == Path(options.html).resolve():
        raise UserError.of("both would be written to one file", "--json, --html", "name two files")

    from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS
    from library.data.pictures.folders import list_folders
    from library.preparation.duplicates import Search, find_duplicates
    from library.preparation.duplicates_told import as_json_values, lines_of, page_of
    from library.preparation.results import check_result_file

    extensions = (options.caption_extension,) if options.caption_extension else DEFAULT_CAPTION_EXTENSIONS
    problems = Problems()
    for name, flag in ((options.json, "--json"), (options.html, "--html")):
        if name is not None:
            check_result_file(name, flag, (*DEFAULT_CAPTION_EXTENSIONS, *extensions), problems)
    folders = list(list_folders(options.train_data_dir, options.recursive, problems))
    problems.raise_if_any()
    threads = options.max_data_loader_n_workers or max(1, default_worker_count())
    found = find_duplicates(folders, Search(options.threshold, options.mirrored, threads))
    for line in lines_of(found, extensions):
        print(line)
    problems.extend(found.unreadable)
    _write(options.json, "--json", lambda: json.dumps(as_json_values(found, extensions), indent=1) + "\n", problems)
    _write(options.html, "--html", lambda: page_of(found, extensions), problems)
    if problems:
        raise Incomplete(problems, end="the search is over")


def _write(name: str | None, flag: str, text: Callable[[], str], problems: Problems) -> None:
    if name is None:
        return
    try:
        write_text_whole(Path(name), text())
    except OSError as error:
        problems.add(f"{name} cannot be written: {error.strerror or error}", flag, "name another place")


if __name__ == "__main__":
    sys.exit(run_script(main))
