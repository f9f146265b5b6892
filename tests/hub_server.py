"""A server that answers uploads and downloads as the Hugging Face Hub does, and fails when it is told to.

It speaks what huggingface_hub 2.4 asks with HF_HUB_DISABLE_XET=1: accounts, repositories, small files inside commits,
large ones by git's LFS protocol, listings, and downloads in parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_doNotTellAnybodyThisToken"
READER = "hf_aTokenThatMayOnlyRead"
OWNERS = ("owner", "team")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
Answer = tuple[int, bytes, dict[str, str]]  # status, content, headers
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
    """A repository.

    Attributes:
        visibility: who does not send a token sees those that are "public".
        commits: what made it: (message, added paths, deleted paths).
        is_gated: it is shown to all and given to nobody.
        is_down: every question about it fails with status 500.
        told_sizes: what the description says instead of the true sizes of files.
    """

    visibility: str
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    is_gated: bool = False
    is_down: bool = False
    told_sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_folder(cls, folder: Path) -> Repo:
        """A public one with all files below a folder."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return cls("public", {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"commit {len(self.commits)}".encode()).hexdigest()


@dataclass
class Mishap:
    """What befalls one download of a file.

    Attributes:
        status: it is answered with this and nothing else.
        cut_after: bytes after which the line is cut.
        hold_after: bytes after which nothing comes until `HubServer.go_on` is set.
        spoil: the last byte is another one.
        ignores_range: all of the file comes, whatever was asked for.
    """

    status: int = 0
    cut_after: int | None = None
    hold_after: int | None = None
    spoil: bool = False
    ignores_range: bool = False


@dataclass
class Request:
    """A request as it came, and how many bytes of a content were sent for it."""

    line: str
    headers: dict[str, str]
    sent: int = 0


class HubServer:
    """The Hub on a port of this machine.

    Attributes:
        repos: by (kind, "owner/name").
        stored: large files by SHA-256, whether or not a commit names them yet.
        requests: all of them, in their order.
        locked: repositories into which nobody may write.
        tell_wrong: paths whose content the listing tells wrongly, once each.
        mishaps: of the next downloads of a path, one after the other.
        moved_to: address of another server that stores the large files; who asks for one is sent there.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.mishaps: dict[str, list[Mishap]] = {}
        self.moved_to: str | None = None
        self.go_on = threading.Event()
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

    @property
    def asked(self) -> list[str]:
        """Every request as "METHOD path", in their order."""
        return [request.line for request in self.requests]

    def requests_for(self, name: str) -> list[Request]:
        """The requests for the content of a file."""
        line = re.compile(rf"GET /.*/resolve/[^/]+/{re.escape(name)}")
        return [request for request in self.requests if line.fullmatch(request.line)]

    def downloads(self, repo_id: str) -> list[str]:
        """The files of a model whose content was asked for."""
        start = f"GET /{repo_id}/resolve/{self.repo(repo_id).sha}/"
        return sorted(line.removeprefix(start) for line in self.asked if line.startswith(start))

    def stop(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    # --- one request --------------------------------------------------------------------------------------------------

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlparse(request.path).path)
        headers = {key.lower(): value for key, value in request.headers.items()}
        self.requests.append(seen := Request(f"{request.command} {path}", headers))
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
        mishap = self.next_mishap(path) if request.command == "GET" else Mishap()
        if mishap.status:
            status, content, headers = mishap.status, b"", {}
        if mishap.spoil and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if status == 200 and "ETag" in headers and not mishap.ignores_range:
            status, content, headers = ranged(request, content, headers)
        self.send_content(request, seen, (status, content, headers), mishap)

    def next_mishap(self, path: str) -> Mishap:
        waiting = self.mishaps.get(path.partition("/resolve/")[2].partition("/")[2])
        return waiting.pop(0) if waiting else Mishap()

    def send_content(self, request: BaseHTTPRequestHandler, seen: Request, answer: Answer, mishap: Mishap) -> None:
        """As far as the mishap lets it come."""
        status, content, headers = answer
        start_answer(request, status, len(content), headers)
        if request.command == "HEAD":
            return
        ends = [end for end in (mishap.hold_after, mishap.cut_after) if end is not None]
        for begin, end in pairwise((0, *ends, len(content))):
            request.wfile.write(content[begin:end])
            request.wfile.flush()
            seen.sent += len(content[begin:end])
            if end == mishap.cut_after:
                return cut(request)
            if end == mishap.hold_after:
                self.go_on.wait()

    def decide(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> Answer:
        if path.startswith("/store/"):
            is_transfer = request.command in ("PUT", "GET")  # to another company's machine, or from there
            self.token_seen_by_store |= is_transfer and "authorization" in request.headers
            return self.store(request.command, path.removeprefix("/store/"), body)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        parts = path.strip("/").split("/")
        if path == "/api/agent-harnesses":
            return 404, b"", {}
        if token not in ((TOKEN, READER, "") if self.is_for_all(request.command, parts) else (TOKEN, READER)):
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
        if self.repos[kind, repo_id].is_down:
            return 500, b"", {}
        if path.endswith("/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        return self.download(self.repos[kind, repo_id], rest[3], "/".join(rest[4:]))

    def is_for_all(self, command: str, parts: list[str]) -> bool:
        """Whether it is asked of a public model, or of one that is not there, and changes nothing."""
        repo = self.repos.get(("model", "/".join(parts[2:4] if parts[0] == "api" else parts[:2])))
        is_named = parts[:2] == ["api", "models"] or parts[2:3] == ["resolve"]
        return is_named and command in ("GET", "HEAD") and (repo is None or repo.visibility == "public")

    def create(self, asked: dict[str, Any]) -> Answer:
        key = (asked.get("type", "model"), f"{asked['organization']}/{asked['name']}")
        if asked["organization"] not in OWNERS:
            return 403, b"", {}
        status = 409 if key in self.repos else 200
        self.repos.setdefault(key, Repo(asked["visibility"]))
        return status, json.dumps({"url": f"{self.endpoint}/{prefix_of(key[0])}{key[1]}"}).encode(), {}

    def api(self, request: BaseHTTPRequestHandler, kind: str, repo_id: str, what: list[str], body: bytes) -> Answer:
        repo = self.repos.get((kind, repo_id))
        if repo is None:
            return absent("RepoNotFound")
        if repo.is_down:
            return 500, b"", {}
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
        with_facts = "blobs" in parse_qs(urlparse(request.path).query)
        siblings = [self.sibling(repo, name) if with_facts else {"rfilename": name} for name in sorted(repo.files)]
        return told({"id": repo_id, "sha": repo.sha, "private": repo.visibility != "public", "siblings": siblings})

    # --- files --------------------------------------------------------------------------------------------------------

    def mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        there = repo.files.get(file["path"])
        is_large = file["size"] >= LARGE
        oid = None if there is None else (sha256(there) if len(there) >= LARGE else git_hash(there))
        mode = "lfs" if is_large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def batch(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for item in asked["objects"]:
            actions = {
                "upload": {"href": f"{self.endpoint}/store/{item['oid']}", "header": {}},
                "verify": {"href": f"{self.endpoint}/store/{item['oid']}/verify", "header": {}},
            }
            objects.append(item if item["oid"] in self.stored else {**item, "actions": actions})
        return told({"transfer": "basic", "objects": objects})

    def store(self, command: str, name: str, body: bytes) -> Answer:
        oid, _, verify = name.partition("/")
        if command == "GET":
            return (200, self.stored[oid], {"ETag": f'"{oid}"'}) if oid in self.stored else (404, b"", {})
        if verify:
            asked = json.loads(body)
            return (200 if len(self.stored.get(asked["oid"], b"")) == asked["size"] else 404), b"{}", {}
        if sha256(body) != oid:
            return 400, b"", {}
        self.stored[oid] = body
        return 200, b"", {}

    def commit(self, repo: Repo, lines: list[dict[str, Any]], page: str) -> Answer:
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

    def sibling(self, repo: Repo, path: str) -> dict[str, Any]:
        """What the description of a repository says of a file, where all of it is wanted."""
        entry = self.entry(repo, path)
        facts = {"rfilename": path, "size": repo.told_sizes.get(path, entry["size"]), "blobId": entry["oid"]}
        if "lfs" in entry:
            facts["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}
        return facts

    def download(self, repo: Repo, revision: str, path: str) -> Answer:
        if repo.is_gated:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        if revision not in ("main", repo.sha):
            return absent("RevisionNotFound")
        if path not in repo.files:
            return absent("EntryNotFound")
        content = repo.files[path]
        if self.moved_to is not None and len(content) >= LARGE:
            return 302, b"", {"Location": f"{self.moved_to}/store/{sha256(content)}"}
        return 200, content, {"ETag": f'"{sha256(content)}"', "X-Repo-Commit": repo.sha}


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


def told(content: Any) -> Answer:
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


def absent(code: str) -> Answer:
    return (401 if code == "RepoNotFound" else 404), b"", {"X-Error-Code": code}


def cut(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def ranged(request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str]) -> Answer:
    """The part of a file that was asked for."""
    start = request.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
    if not start.isdecimal() or int(start) == 0:
        return 200, content, headers
    if int(start) >= len(content):
        return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
    place = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return 206, content[int(start) :], {**headers, "Content-Range": place}


def start_answer(request: BaseHTTPRequestHandler, status: int, length: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for key, value in {**headers, "Content-Length": str(length)}.items():
        request.send_header(key, value)
    request.end_headers()


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    start_answer(request, status, len(content), headers)
    if request.command != "HEAD":
        request.wfile.write(content)
