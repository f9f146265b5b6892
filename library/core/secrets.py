"""Tokens and keys that were given as words of the command line: told, and hidden from those who list processes."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

from library.core.log import get_logger

log = get_logger(__name__)

HIDDEN = "***"
_ARGUMENTS_START, _ARGUMENTS_END = (
    47,
    48,
)  # fields of /proc/PID/stat, counted from 0 (proc_pid_stat(5): arg_start, arg_end)


def taken_secret(value: str | None, flag: str, better: str) -> str | None:
    """A secret option's value without blanks around it; None where it is not given, or empty.

    One that stands on the command line of this process is hidden there (`hide_word`), with a warning. One of a
    `--config_file` is taken as it is: a file has rights.

    Args:
        flag: the option, such as `--wandb_api_key`.
        better: where it should stand instead, such as "the environment (WANDB_API_KEY)".
    """
    secret = (value or "").strip()
    if value and hide_word(value, flag) and os.environ.get("RANK", "0") == "0":  # of several processes one tells it
        log.warning("%s on the command line can be read by every user of this machine; better in %s", flag, better)
    return secret or None


def hide_word(secret: str, flag: str) -> bool:
    """Replaces a secret in `sys.argv`, `sys.orig_argv` (trackers record them) and, on Linux, in the process title.

    The shell's history and a launcher (`torchrun`, `accelerate launch`) still know it.

    Returns:
        Whether it stood there; False when it was hidden before.
    """
    stood_there = False
    for words in (sys.argv, sys.orig_argv):
        for place, word in enumerate(words):
            if word in (secret, f"{flag}={secret}"):
                words[place] = word.replace(secret, HIDDEN)
                stood_there = True
    if stood_there:
        _overwrite_in_title(os.fsencode(secret), flag.encode())
    return stood_there


def _overwrite_in_title(secret: bytes, flag: bytes) -> None:
    """Overwrites the words where the kernel reads what `ps` shows: in this process's own memory."""
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        fields = ["", "", *stat[stat.rindex(")") + 2 :].split()]  # the name in brackets may hold blanks
        start, end = int(fields[_ARGUMENTS_START]), int(fields[_ARGUMENTS_END])
        shown = Path("/proc/self/cmdline").read_bytes()
        if start == 0 or end - start != len(shown) or ctypes.string_at(start, len(shown)) != shown:
            return  # another kernel, or the title was changed before: not the memory we think it is
        place = 0
        for word in shown.split(b"\0"):
            if word in (secret, flag + b"=" + secret):
                ctypes.memset(start + place + len(word) - len(secret), ord("x"), len(secret))
            place += len(word) + 1
