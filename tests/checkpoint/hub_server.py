"""A server that answers uploads and downloads as the Hugging Face Hub does, and fails at random when it is told to.

It speaks what huggingface_hub 2.4 asks with HF_HUB_DISABLE_XET=1: accounts, repositories, small files inside commits,
large ones by git's LFS protocol, listings, and downloads in parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_doNotTellAnybodyThisToken"
READER = "hf_aTokenThatMayOnlyRead"
OWNERS = ("owner", "team")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = 4096  # bytes from which on a file goes by LFS


@dataclass
class Faults:
    """What goes wrong, by chance: each fault at most `most` times, so that a patient client gets through.

    Attributes:
        share: of the requests that suffer one.
        slow: seconds that any answer may take longer.
        down: every request fails with status 503.
    """

    seed: int = 0
    share: float = 0.0
    most: int = 0
    slow: float = 0.0
    down: bool = False

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self.happened: list[str] = []

    def next_of(self, kinds: tuple[str, ...]) -> str | None:
        """The fault that befalls a request which may suffer these."""
        with self._lock:
            if self.slow:
                time.sleep(self._random.random() * self.slow)
            if self.down:
                return "503"
            if self._random.random() >= self.share:
                return None
            open_kinds = [kind for kind in kinds if self.happened.count(kind) < self.most]
            if not open_kinds:
                return None
            self.happened.append(self._random.choice(open_kinds))
            return self.happened[-1]


@dataclass
class Repo:
    """A repository: its files, and the commits that made them: (message, added paths, deleted paths)."""

    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str], list[str]]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()


class HubServer:
    """The Hub on a port of this machine.

    Attributes:
        repos: by (kind, "owner/name").
        stored: large files by SHA-256, whether or not a commit names them yet.
        asked: every request as "METHOD path", in their order.
        locked: repositories into which nobody may write.
        tell_wrong: paths whose content the listing tells wrongly, once each.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.faults = Faults()
        self.locked: set[str] = set()
        self.tell_wrong: set[str] = set()
        self.token_seen_by_store = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_POST(self) -> None:
                hub.answer(self)

            def do_PUT(self) -> None:
                hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:  # a client that was killed
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=lambda: self.server.serve_forever(poll_interval=0.02))
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    # --- one request --------------------------------------------------------------------------------------------------

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlparse(request.path).path)
        self.asked.append(f"{request.command} {path}")
        is_put = request.command == "PUT"
        fault = self.faults.next_of(("500", "503", "cut") if is_put else ("500", "503", "no answer", "lost answer"))
        length = int(request.headers.get("Content-Length", 0))
        if fault == "cut":
            request.rfile.read(length // 2)
            return cut(request)
        body = request.rfile.read(length)
        if fault == "no answer":
            return cut(request)
        if fault in ("500", "503"):
            return send(request, int(fault), b"", {"Retry-After": "0"} if fault == "503" else {})
        status, content, headers = self.decide(request, path, body)
        if fault == "lost answer":
            return cut(request)
        send(request, status, content, headers)

    def decide(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if path.startswith("/store/"):
            is_transfer = request.command == "PUT"  # to another company's machine
            self.token_seen_by_store |= is_transfer and "authorization" in request.headers
            return self.store(path.removeprefix("/store/"), body)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        parts = path.strip("/").split("/")
        if path == "/api/agent-harnesses":
            return 404, b"", {}
        if token not in (TOKEN, READER):
            return 401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            role = "write" if token == TOKEN else "read"
            orgs = [{"name": name} for name in OWNERS[1:]]
            return told({"name": OWNERS[0], "orgs": orgs, "auth": {"accessToken": {"role": role}}})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if parts[0] == "api":
            return self.api(request, KINDS[parts[1]], "/".join(parts[2:4]), parts[4:], body)
        kind = KINDS.get(parts[0], "model")
        rest = parts if kind == "model" else parts[1:]
        repo_id = "/".join(rest[:2]).removesuffix(".git")
        if (kind, repo_id) not in self.repos:
            return absent("RepoNotFound")
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        return self.download(request, self.repos[kind, repo_id], "/".join(rest[4:]))

    def create(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        key = (asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
        if asked["organization"] not in OWNERS:
            return 403, b"", {}
        status = 409 if key in self.repos else 200
        self.repos.setdefault(key, Repo(asked["visibility"]))
        return status, json.dumps({"url": f"{self.endpoint}/{prefix_of(key[0])}{key[1]}"}).encode(), {}

    def api(
        self, request: BaseHTTPRequestHandler, kind: str, repo_id: str, what: list[str], body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        repo = self.repos.get((kind, repo_id))
        if repo is None:
            return absent("RepoNotFound")
        action = what[0] if what else ""
        if action in ("revision", "tree") and what[1] not in ("main", repo.sha):
            return absent("RevisionNotFound")
        if action in ("preupload", "commit") and repo_id in self.locked:
            return 403, b"", {}
        if action == "preupload":
            return told({"files": [self.mode(repo, file) for file in json.loads(body)["files"]]})
        if action == "commit":
            page = f"{self.endpoint}/{prefix_of(kind)}{repo_id}"
            return self.commit(repo, [json.loads(line) for line in body.splitlines()], page)
        if action == "paths-info":
            paths = parse_qs(body.decode())["paths"]
            return told([self.entry(repo, path) for path in paths if path in repo.files])
        if action == "tree":
            below = "/".join(what[2:])
            names = [name for name in sorted(repo.files) if not below or name.startswith(f"{below}/")]
            return told([self.entry(repo, name) for name in names]) if names or not below else absent("EntryNotFound")
        siblings = [{"rfilename": name} for name in sorted(repo.files)]
        return told({"id": repo_id, "sha": repo.sha, "private": repo.visibility != "public", "siblings": siblings})

    # --- files --------------------------------------------------------------------------------------------------------

    def mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        there = repo.files.get(file["path"])
        is_large = file["size"] >= LARGE
        oid = None if there is None else (sha256(there) if len(there) >= LARGE else git_hash(there))
        mode = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def batch(self, asked: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for item in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/store/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.endpoint}/store/{item['oid']}/verify", "header": {}},
            }
            objects.append(item if item["oid"] in self.stored else {**item, "actions": actions})
        return told({"transfer": "basic", "objects": objects})

    def store(self, name: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        oid, _, verify = name.partition("/")
        if verify:
            asked = json.loads(body)
            return (200 if len(self.stored.get(asked["oid"], b"")) == asked["size"] else 404), b"{}", {}
        if sha256(body) != oid:
            return 400, b"", {}
        self.stored[oid] = body
        return 200, b"", {}

    def commit(self, repo: Repo, lines: list[dict[str, Any]], page: str) -> tuple[int, bytes, dict[str, str]]:
        added, deleted = {}, []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.stored:
                    return 400, b"", {}
                added[value["path"]] = self.stored[value["oid"]]
            else:
                deleted.append(value["path"])
        for path in deleted:
            del repo.files[path]
        repo.files.update(added)
        repo.commits.append((lines[0]["value"]["summary"], list(added), deleted))
        return told({"commitUrl": f"{page}/commit/{repo.sha}", "commitOid": repo.sha})

    def entry(self, repo: Repo, path: str) -> dict[str, Any]:
        content = repo.files[path]
        if path in self.tell_wrong:
            self.tell_wrong.remove(path)
            content = content[:-1] + b"?"
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if len(content) >= LARGE:
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        return entry

    def download(self, request: BaseHTTPRequestHandler, repo: Repo, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path not in repo.files:
            return absent("EntryNotFound")
        content = repo.files[path]
        headers = {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": repo.sha}
        start = request.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if start.isdecimal() and int(start):
            return 206, content[int(start) :], headers
        return 200, content, headers


@contextmanager
def served() -> Iterator[HubServer]:
    """A server that ends with the block."""
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.stop()


def prefix_of(kind: str) -> str:
    return "" if kind == "model" else f"{kind}s/"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def told(content: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def absent(code: str) -> tuple[int, bytes, dict[str, str]]:
    return (401 if code == "RepoNotFound" else 404), b"", {"X-Error-Code": code}


def cut(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
