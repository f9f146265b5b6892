"""Gathers the tag files of pictures in one metadata file, in the field "tags" of each picture's entry.

    python finetune/merge_dd_tags_to_metadata.py pictures meta.json
    python finetune/merge_dd_tags_to_metadata.py --full_path pictures1 pictures2 --in_json meta1.json meta2.json

Exit code 1 when nothing could be written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import run_script
from library.options.command_line import read_command_line
from library.options.preparation import MergeTagsOptions

SCRIPT = "finetune/merge_dd_tags_to_metadata.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: with everything that is wrong.
    """
    options = read_command_line(SCRIPT, words)
    if options is None:
        return
    from library.preparation.merging import merge_texts

    merge_texts("tags", options.of(MergeTagsOptions))


if __name__ == "__main__":
    sys.exit(run_script(main))
