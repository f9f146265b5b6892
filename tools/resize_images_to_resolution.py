"""Makes smaller copies of pictures, one for each resolution, to train a set in several sizes.

    python tools/resize_images_to_resolution.py pictures smaller --max_resolution 512x512,384x384 --save_as_png

Copies are named after their picture and the resolution (cat+512x512.jpg). Started again, it goes on where it was. Exit
code 3 when a copy that was asked for is missing at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Incomplete, run_script
from library.core.log import get_logger
from library.options.command_line import read_command_line
from library.options.data import default_worker_count
from library.options.preparation import ResizeOptions, parse_resolutions

if TYPE_CHECKING:
    from library.preparation.resizing import Copied

SCRIPT = "tools/resize_images_to_resolution.py"
_log = get_logger(__name__)


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: nothing was begun, or nothing can be written.
        Incomplete: copies are missing at the end.
    """
    values = read_command_line(SCRIPT, words)
    if values is None:
        return
    options = values.of(ResizeOptions)

    from library.preparation.copies_plan import plan_copies
    from library.preparation.resizing import Resizing, make_copies

    resolutions = parse_resolutions(options.max_resolution)
    how = Resizing(
        resolutions, options.divisible_by, options.interpolation, options.save_as_png, overwrite=options.overwrite
    )
    threads = options.max_data_loader_n_workers or max(1, default_worker_count())
    copied = make_copies(plan_copies(options), how, threads)
    _tell(copied)
    if copied.failed:
        raise Incomplete(copied.failed, end="the copies are made")


def _tell(copied: Copied) -> None:
    from library.preparation import resizing as r

    counts = copied.counts
    _log.info("copies written: %d, kept as they were: %d", counts[r.WRITTEN], counts[r.STAYED])
    if counts[r.OLDER]:
        told = "%d copies are older than their pictures, which may have changed since; --overwrite writes them anew"
        _log.warning(told, counts[r.OLDER])
    if counts[r.OWN_SIZE]:
        told = "%d of them have the size of their picture, which is no larger than the resolution: nothing is enlarged"
        _log.info(told, counts[r.OWN_SIZE])
    if counts[r.BESIDE] or counts[r.BESIDE_STAYED]:
        told = "captions and other files beside them: %d copied, %d kept as they were"
        _log.info(told, counts[r.BESIDE], counts[r.BESIDE_STAYED])
    if counts[r.BESIDE_DIFFERS]:
        told = "%d files beside copies differ from those beside the pictures, and stay; --overwrite copies them anew"
        _log.warning(told, counts[r.BESIDE_DIFFERS])
    if counts[r.WHITENED]:
        told = "%d pictures are transparent in parts and lie on white in their copies; --save_as_png keeps transparency"
        _log.warning(told, counts[r.WHITENED])


if __name__ == "__main__":
    sys.exit(run_script(main))
