"""Makes the project's own Python environment in .venv; shared by quickstart.py and test.py.

Needs nothing but the standard library, and starts on Pythons too old for the rest, to say so. A stamp file, written
last, says what was installed: when it still fits, nothing is run at all, and an interrupted installation is taken up
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ("requirements.txt",)
WITH_TESTS = ("requirements.txt", "requirements-dev.txt")

MINIMUM = (3, 11)
STAMP_NAME = "sd-atelier-stamp.json"
LOG_NAME = "sd-atelier-install.log"
CUDA_TORCH_INDEX = "https://download.pytorch.org/whl/cu130"
_SHOWN_PIP_LINES = 12
_PROBE = "import sys, venv, ensurepip; print(sys.version_info[0], sys.version_info[1], sys.maxsize > 2**32)"

_PIP_MENDS = (
    ("No space left", "free some disk space (2 GB are enough) and run the same command again"),
    ("denied", "close programs that use .venv (a running training, an editor) and run the same command again"),
    ("CERTIFICATE", "pip does not trust the network's certificate: name it with pip config set global.cert FILE"),
    ("onnection", "check the network connection (and the proxy, if there is one) and run the same command again"),
    ("No matching distribution", "this Python or this machine has no such package: use 64-bit Python 3.11 to 3.13"),
)


class BootstrapError(Exception):
    """Something a person has to mend before the environment can be made."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n    -> {fix}")


def run_tool(main: Callable[[], int]) -> int:
    """Runs a tool's `main`; what a person can mend is shown as text, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may not know every character
            stream.reconfigure(errors="replace", line_buffering=True)
    try:
        return main()
    except BootstrapError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on", file=sys.stderr)
        return 130


def say(text: str = "") -> None:
    """Prints at once, also when the output goes into a file."""
    print(text, flush=True)


def venv_python(venv: Path, windows: bool | None = None) -> Path:
    """The Python of a virtual environment: `bin/python`, on Windows `Scripts\\python.exe`."""
    windows = os.name == "nt" if windows is None else windows
    return venv / "Scripts" / "python.exe" if windows else venv / "bin" / "python"


def ensure_environment(root: Path, requirement_files: Sequence[str]) -> Path:
    """Makes `.venv` under `root` and installs into it, or does nothing when all is there.

    Args:
        root: folder of the project.
        requirement_files: names of requirement files in `root`.

    Returns:
        The Python to run everything else with.

    Raises:
        BootstrapError: with what to do about it.
    """
    venv = root / ".venv"
    python = venv_python(venv)
    stamp = venv / STAMP_NAME
    if python.exists() and is_current(stamp, wanted_stamp(root, venv, requirement_files)):
        return python
    stamp.unlink(missing_ok=True)
    _make_venv(venv)
    _refuse_other_torch(root, venv)
    _install(root, venv, requirement_files)
    write_stamp(stamp, wanted_stamp(root, venv, requirement_files))
    return python


def wanted_stamp(root: Path, venv: Path, requirement_files: Sequence[str]) -> dict[str, Any]:
    """What the stamp must say: the folder, the Python, and a digest of every file that decides what is installed."""
    names = [*requirement_files, "setup.py"]
    return {
        "folder": str(root.resolve()),
        "python": _venv_version(venv),
        "files": {name: _digest(root / name) for name in names},
    }


def is_current(stamp: Path, wanted: dict[str, Any]) -> bool:
    """Does the stamp cover everything wanted? It may cover more (the test tools as well)."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
        same_place = found["folder"] == wanted["folder"] and found["python"] == wanted["python"]
        return same_place and wanted["files"].items() <= found["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def write_stamp(stamp: Path, content: dict[str, Any]) -> None:
    """Writes the stamp whole or not at all."""
    temporary = stamp.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, stamp)


def _digest(path: Path) -> str:
    """The same on Windows and Linux, whatever git did to the line ends."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def _venv_version(venv: Path) -> str:
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^version(?:_info)?\s*=\s*(\S+)", text, re.MULTILINE)
    return found.group(1) if found else ""


# --- the virtual environment ------------------------------------------------------------------------------------------


def _make_venv(venv: Path) -> None:
    if _answers(venv_python(venv), "import sys, pip; sys.exit(sys.version_info < (3, 11))"):
        return
    base = find_python()
    say(f"making the environment {venv}")
    made = subprocess.run([*base, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, errors="replace")
    if made.returncode != 0:
        lines = (made.stdout + made.stderr).strip().splitlines()[-_SHOWN_PIP_LINES:]
        raise BootstrapError("the virtual environment could not be made:\n" + "\n".join(lines), _python_mend())


def _answers(python: Path, code: str) -> bool:
    if not python.exists():
        return False
    try:
        return subprocess.run([str(python), "-c", code], capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_python() -> list[str]:
    """The command of a Python that can make a virtual environment: the running one if it can, else the first found.

    Raises:
        BootstrapError: when there is none; says why each candidate was refused.
    """
    refused = []
    for command in _candidates():
        reason = why_unusable(command)
        if reason is None:
            return command
        refused.append(f"    {' '.join(command)}: {reason}")
    raise BootstrapError("no usable Python was found:\n" + "\n".join(refused), _python_mend())


def _candidates() -> list[list[str]]:
    commands = [[sys.executable]]
    for minor in (12, 11, 13):  # 3.12 and 3.11 first: every package has builds for them
        if os.name == "nt" and shutil.which("py"):
            commands.append(["py", f"-3.{minor}"])
        elif shutil.which(f"python3.{minor}"):
            commands.append([f"python3.{minor}"])
    return commands


def why_unusable(command: Sequence[str]) -> str | None:
    """Why this Python cannot make our environment; None when it can."""
    try:
        asked = subprocess.run([*command, "-c", _PROBE], capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not start ({error})"
    if asked.returncode != 0:
        last = (asked.stderr.strip().splitlines() or ["does not start"])[-1]
        return "its venv module is incomplete (no ensurepip)" if "ensurepip" in last else last
    major, minor, is_64_bit = asked.stdout.split()[-3:]
    if (int(major), int(minor)) < MINIMUM:
        return f"is Python {major}.{minor}, at least {MINIMUM[0]}.{MINIMUM[1]} is needed"
    return None if is_64_bit == "True" else "is a 32-bit Python, torch needs 64 bit"


def _python_mend() -> str:
    if os.name == "nt":
        return "install 64-bit Python 3.12 from https://www.python.org/downloads/ and run the same command again"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}" if sys.version_info >= MINIMUM else "3.11"
    package = f"python{version}-venv"
    return f"install Python {version} (Debian, Ubuntu: sudo apt install {package}), then run the same command again"


# --- packages ---------------------------------------------------------------------------------------------------------


def installed_version(venv: Path, distribution: str) -> str | None:
    """Version of a package in a virtual environment, read from its metadata folder without starting Python."""
    for site in [*venv.glob("lib/python*/site-packages"), venv / "Lib" / "site-packages"]:
        for folder in site.glob("*.dist-info"):
            name, _, version = folder.stem.partition("-")
            if name.lower().replace("_", "-") == distribution:
                return version
    return None


def read_pins(path: Path) -> dict[str, str]:
    """The `name==version` lines of a requirement file."""
    pins = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        found = re.match(r"([\w.-]+)==([\w.+!-]+)", line.strip())
        if found:
            pins[found.group(1)] = found.group(2)
    return pins


def _refuse_other_torch(root: Path, venv: Path) -> None:
    """Pip would exchange a torch of another version, and with it the build for the card. Better to ask."""
    pinned = read_pins(root / "requirements.txt").get("torch")
    found = installed_version(venv, "torch")
    if pinned is None or found is None or found.split("+")[0] == pinned:
        return
    command = f"{venv_python(venv)} -m pip install torch=={pinned} --index-url {CUDA_TORCH_INDEX}"
    raise BootstrapError(
        f"{venv} holds torch {found}, this version of sd-atelier is tested with torch {pinned}",
        f"NVIDIA card: {command}\n    -> else: delete the folder .venv; then run the same command again",
    )


def effective_requirements(root: Path, venv: Path, requirement_files: Sequence[str]) -> list[str]:
    """The lines to install. onnxruntime is left out where onnxruntime-gpu has taken its place: they share a folder."""
    lines = [line for name in requirement_files for line in (root / name).read_text(encoding="utf-8").splitlines()]
    if installed_version(venv, "onnxruntime-gpu"):
        lines = [line for line in lines if not line.startswith("onnxruntime==")]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _install(root: Path, venv: Path, requirement_files: Sequence[str]) -> None:
    listing = venv / "sd-atelier-requirements.txt"
    listing.write_text("\n".join(effective_requirements(root, venv, requirement_files)) + "\n", encoding="utf-8")
    say("installing the packages (the first time this takes a while: about 2 GB, with an NVIDIA build of torch 6 GB)")
    command = [str(venv_python(venv)), "-m", "pip", "install", "--progress-bar", "off", "-r", str(listing)]
    environment = {**os.environ, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUTF8": "1"}
    lines, code = _run_quietly(command, root, environment, venv / LOG_NAME)
    if code != 0:
        raise BootstrapError(
            "pip could not install the packages; its last lines:\n" + "\n".join(lines[-_SHOWN_PIP_LINES:]),
            f"{pip_mend(lines)}\n    -> all that pip said: {venv / LOG_NAME}",
        )
    say("the packages are in place")


def pip_mend(lines: Sequence[str]) -> str:
    """What to do about a failed installation, from what pip said last."""
    tail = "\n".join(lines[-40:])
    for mark, mend in _PIP_MENDS:
        if mark in tail:
            return mend
    return "run the same command again; if it fails in the same way, report it with the log named below"


def _run_quietly(command: list[str], folder: Path, environment: dict[str, str], log: Path) -> tuple[list[str], int]:
    """Runs pip; its output goes into a log, and to a terminal as one line that keeps changing."""
    lines: list[str] = []
    live = sys.stdout.isatty()
    with log.open("w", encoding="utf-8") as file, subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace",
    ) as process:
        for line in process.stdout or ():
            lines.append(line.rstrip())
            file.write(line)
            if live:
                print(f"\r  {_shorten(line.strip()):<78}", end="", flush=True)
    if live:
        print("\r" + " " * 80 + "\r", end="", flush=True)
    return lines, process.returncode


def _shorten(text: str, width: int = 76) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
