"""Writes tags beside every picture, by a WD tagger or a DeepDanbooru model in ONNX form.

    python finetune/tag_images_by_wd14_tagger.py --batch_size 4 --remove_underscore train_data

Tags go into a file of the picture's name with the ending `.txt`. Pictures that have one are left alone, so a stopped
run goes on where it was. Exit code 3 when a picture got none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Problems, printable, run_script
from library.options.captioning import FolderOptions, TaggerOptions
from library.options.command_line import read_command_line

if TYPE_CHECKING:
    from library.captioning.work import Work

SCRIPT = "finetune/tag_images_by_wd14_tagger.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: with every problem that can be known before the model is there.
        Incomplete: with the pictures that got no tags.
    """
    options = read_command_line(SCRIPT, words)
    if options is None:
        return
    from library.captioning.runner import Outcome, run, tell
    from library.captioning.tag_options import check_tagger_options
    from library.captioning.tagger import open_tagger
    from library.captioning.tagger_files import bring_tagger, find_place
    from library.captioning.work import TextKind, find_work, threads_of

    folders, tags = options.of(FolderOptions), options.of(TaggerOptions)
    problems = Problems()
    problems.attempt(lambda: check_tagger_options(tags, folders))
    place = problems.attempt(lambda: find_place(tags, options.given))
    work = problems.attempt(lambda: find_work(folders, tags.caption_extension, TextKind.TAGS, tags.append_tags))
    problems.raise_if_any()
    if place is None or work is None:
        raise RuntimeError("a check failed and told nothing")
    outcome = Outcome(0, len(work.kept), ())
    if work.todo:
        tagger = open_tagger(bring_tagger(place, tags.force_download), tags)
        outcome = run(work, tagger, tags.batch_size, threads_of(folders))
    if tags.frequency_tags:
        _print_frequencies(work, tags.caption_separator)
    tell(outcome)


def _print_frequencies(work: Work, separator: str) -> None:
    from library.captioning.tag_text import count_tags

    for tag, count in count_tags(_lines(work), separator):
        print(printable(f"{tag}: {count}"))


def _lines(work: Work) -> Iterator[str]:
    """The line that counts of every picture that has a text."""
    from library.data.captions.caption_files import split_lines

    for target in chain(work.todo, work.kept):
        if target.file.is_file():
            yield split_lines(target.file.read_text(encoding="utf-8-sig", errors="replace"))[0]


if __name__ == "__main__":
    sys.exit(run_script(main))
