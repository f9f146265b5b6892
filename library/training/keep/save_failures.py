"""What goes wrong when files are saved, in sentences, and how much room there is."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from safetensors import SafetensorError

from library.checkpoint.upload_queue import waiting_sizes
from library.core.errors import Problem, UserError

# what the libraries that write files raise when a disk is full, a folder cannot be written to, or memory is short
SAVE_FAILURES = (UserError, OSError, RuntimeError, ValueError, MemoryError, SafetensorError)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def save_problems(error: BaseException, path: Path, needed: int | None = None) -> list[Problem]:
    """What to tell where `path` could not be saved.

    Args:
        needed: bytes that it takes at least, where that is known.
    """
    if isinstance(error, UserError):
        return list(error.problems)
    said = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    what = f"could not be saved: {said.splitlines()[0]}"
    fix = "look at the folder and its disk"
    if isinstance(error, OSError) and error.errno in _FULL:
        free = free_space(path.parent)
        known = "" if needed is None else f", {mebibytes(needed)} needed at least"
        what += "" if free is None else f" ({mebibytes(free)} free{known})"
        fix = f"make room; --save_last_n_epochs and --save_last_n_steps keep fewer files{told_waiting(path.parent)}"
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        fix = "no file may be so large here (a FAT32 disk ends at 4 GB, `ulimit -f` tells a limit); take another disk"
    elif isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        fix = "make the folder writable"
    return [Problem(what, str(path), fix)]


def free_space(folder: Path) -> int | None:
    """Bytes free on the disk of a folder, or of the nearest one above it that is there; None where nobody tells."""
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), None)
    try:
        return None if nearest is None else shutil.disk_usage(nearest).free
    except OSError:
        return None


def told_waiting(folder: Path) -> str:
    """The rest of an advice to make room, where uploads wait in the folder: their files stay until they are made."""
    return "".join(
        f"; {mebibytes(size)} wait for their upload in {queue} and stay on the disk until it is made: "
        f"python tools/upload_left_overs.py {folder}, or delete {queue} to drop them"
        for queue, size in waiting_sizes(folder).items()
    )


def mebibytes(count: int) -> str:
    """Bytes as people read them."""
    return f"{count / (1 << 20):.1f} MiB" if count < 10 << 20 else f"{count >> 20} MiB"
