"""Uploads what runs have left in the upload queues of an output folder, without training anything.

python tools/upload_left_overs.py output

The access token is that of the environment (HF_TOKEN) or of `hf auth login`. Ctrl-C leaves the rest in the queues.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, from any folder

from library.checkpoint.hub_client import Hub, found_token, is_offline
from library.checkpoint.hub_uploads import UploadWorker
from library.checkpoint.upload_queue import UploadQueue, queues_in
from library.core.errors import Incomplete, Problem, UserError, run_script
from library.core.log import start_logging


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the --output_dir of the runs")
    folder: Path = parser.parse_args(words).folder
    start_logging()
    queues = [UploadQueue(path) for path in queues_in(folder)]
    if not any(queue.entries() for queue in queues):
        raise UserError.of("no uploads wait there", str(folder), "name the --output_dir of a run that could not upload")
    if is_offline():
        raise UserError.of("the environment variable HF_HUB_OFFLINE forbids every upload", "HF_HUB_OFFLINE", "unset it")
    if found_token() is None:
        fix = "log in once with hf auth login, or set the environment variable HF_TOKEN"
        raise UserError.of("there is no access token to upload with", "HF_TOKEN", fix)
    left = [problem for queue in queues for problem in upload(queue)]
    if left:
        raise Incomplete(left)


def upload(queue: UploadQueue) -> list[Problem]:
    """Works a queue off; tells what is left in it."""
    left = UploadWorker(queue, Hub(None)).finish()
    waiting = [entry for entry in queue.entries() if entry.number in left]
    fix = "it stays in the queue; start this again later, or to drop it delete"
    return [
        Problem(f"is not uploaded: {left[entry.number]}", entry.place.name, f"{fix} {queue.folder_of(entry)}")
        for entry in waiting
    ]


if __name__ == "__main__":
    sys.exit(run_script(main))
