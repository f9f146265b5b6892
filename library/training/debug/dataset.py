"""What `--debug_dataset` does: shows what would be trained on, in a window or as a page, and never waits in vain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from library.core.atomic_io import write_text_whole
from library.core.errors import UserError, printable
from library.core.launch import launched_processes
from library.core.log import get_logger
from library.data.report.report_page import page_of
from library.text.tokenizer import CaptionTokenizer
from library.training.checks.pictures import Pictures
from library.training.debug.pictures_told import Asked, Told, tell
from library.training.run import EmbeddingRun, Run

PAGE_NAME = "dataset_report.html"

# A display that is named but does not answer can block for minutes, and Tk may end its process: another one tries it.
_PROBE = "import tkinter; tkinter.Tk().destroy()"
_PROBE_SECONDS = 10

log = get_logger(__name__)


def show_dataset(run: Run) -> None:
    """Shows the pictures of a checked run: in a window where one can be opened, else as a page in the output folder.

    Raises:
        UserError: the page cannot be written.
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes one shows it
        return
    options = run.options
    asked = Asked(options.data, options.caching, options.text, options.training)
    # not from training/methods.py, which imports the model code for seconds
    alias = run.word.alias if isinstance(run, EmbeddingRun) else None
    tokenizer = CaptionTokenizer(run.base.identity.family, options.text, alias)
    pictures = Pictures(run.description, run.index, run.placements)
    told = tell(pictures, asked, tokenizer=tokenizer, processes=launched_processes())
    for warning in told.report.warnings:
        log.info("worth a look: %s", printable(warning))
    if told.source is not None and can_open_window():
        from library.training.debug.window import show_window

        show_window(told.source)
        return
    path = run.files.result.parent / PAGE_NAME
    write_page(told, path, "--output_dir")
    print(f"no window can be opened here; open this page in a browser: {printable(str(path.absolute()))}")


def write_page(told: Told, path: Path, flag: str) -> None:
    """Writes the report page.

    Raises:
        UserError: the file cannot be written; `flag` is what named its place.
    """
    try:
        write_text_whole(path, page_of(told.report, told.source))
    except OSError as error:
        raise UserError.of(f"{path} cannot be written: {error.strerror or error}", flag, "name another place") from None


def can_open_window() -> bool:
    """Whether a window opens here, tried in a process of its own within a few seconds."""
    if sys.platform not in ("win32", "darwin") and not os.environ.get("DISPLAY"):
        return False  # Tk knows X alone; Wayland desktops set DISPLAY as well
    try:
        tried = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.returncode == 0
