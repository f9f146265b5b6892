"""Writes a caption beside every picture, in the words of a BLIP model.

    python finetune/make_captions.py --batch_size 8 --seed 42 train_data

A caption goes into a file of the picture's name with the ending `.caption`. Pictures that have one are left alone, so a
stopped run goes on where it was. Exit code 3 when a picture got none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.core.errors import Problems, run_script
from library.options.captioning import BlipOptions, FolderOptions
from library.options.command_line import read_command_line

if TYPE_CHECKING:
    from library.captioning.blip import BlipCaptioner

SCRIPT = "finetune/make_captions.py"


def main(words: Sequence[str] | None = None) -> None:
    """Parses the command line, then imports what is slow.

    Raises:
        UserError: with every problem that can be known before the model is there.
        Incomplete: with the pictures that got no caption.
    """
    options = read_command_line(SCRIPT, words)
    if options is None:
        return
    from library.captioning.blip_files import bring, find_source, option_problems
    from library.captioning.runner import Outcome, run, tell
    from library.captioning.work import TextKind, find_work, threads_of

    folders, blip = options.of(FolderOptions), options.of(BlipOptions)
    problems = Problems()
    problems.extend(option_problems(blip, options.given))
    source = problems.attempt(lambda: find_source(blip, options.given))
    work = problems.attempt(lambda: find_work(folders, blip.caption_extension, TextKind.CAPTION))
    problems.raise_if_any()
    if work is None or source is None:
        raise RuntimeError("a check failed and told nothing")
    if not work.todo:
        tell(Outcome(0, len(work.kept), ()))
        return
    captioner = _load(bring(source, blip.force_download), blip)
    tell(run(work, captioner, blip.batch_size, threads_of(folders)))


def _load(folder: Path, blip: BlipOptions) -> BlipCaptioner:
    import torch

    from library.captioning.blip import BlipCaptioner
    from library.core.log import get_logger

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU (no CUDA card can be used here)"
    get_logger(SCRIPT).info("captions by %s, computed by %s", folder, name)
    return BlipCaptioner(folder, blip, device)


if __name__ == "__main__":
    sys.exit(run_script(main))
