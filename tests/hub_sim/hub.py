# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hub itself: repositories with immutable revisions, gates, and the faults of real networks.

What is answered follows what huggingface_hub 2.4.0 asks (file_download.py, _snapshot_download.py, utils/_http.py):

GET  /api/models/R[/revision/REV]          JSON with sha and siblings
GET  /api/models/R/tree/REV                files with size, oid, lfs; pages by a Link header
GET  /api/models/R/refs                    branches (llama-server asks)
HEAD, GET /R/resolve/REV/PATH              X-Repo-Commit, ETag, ranges; with cdn=True large files redirect elsewhere
errors                                     status, X-Error-Code, X-Error-Message as the hub sends them

Not there: Xet (no X-Xet-Hash is sent, so clients use plain HTTP), uploads, datasets and spaces.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

LARGE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".model", ".onnx", ".pt")
LARGE_BYTES = 10 * 1024 * 1024  # the hub keeps files from here on in LFS whatever they are called
CHUNK_BYTES = 64 * 1024
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>refs|revision|tree)(?:/(?P<revision>[^/]+))?)?/?")
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
GATED = "Access to model {} is restricted and you are not in the authorized list. Visit {}/{} to ask for access."


@dataclass(frozen=True)
class Stored:
    """One file of a revision; `size` is what the hub claims, the bytes are those of `source`."""

    source: Path
    size: int
    sha256: str
    git_sha1: str
    large: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_sha1


@dataclass
class Repository:
    """`users` is None for an open repository, else the accounts that may read it; `private` hides its existence."""

    revisions: dict[str, dict[str, Stored]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    users: frozenset[str] | None = None
    private: bool = False


@dataclass
class Seen:
    """One request that was answered: `account` is the user, '' without a token, '?' with an unknown one."""

    server: str
    method: str
    path: str
    range: str
    account: str
    status: int
    sent_bytes: int = 0


class HubSim:
    """A hub on a free port of localhost; use it as a context manager. All settings may be changed while it runs.

    rate_bytes_s: speed of each connection, 0 for unlimited.
    drop_after_bytes, drops: cut so many file downloads off after so many bytes.
    corrupt: {path: how many downloads of it arrive with one byte changed}.
    broken: {path suffix: [statuses]} answered instead, one after the other.
    page_size: entries per page of a tree. cdn: send large files from a second origin.
    gate_listing: gated repositories hide their file list too.
    """

    def __init__(self, port: int = 0, page_size: int = 1000, cdn: bool = False) -> None:
        self.repositories: dict[str, Repository] = {}
        self.accounts: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self.requests: list[Seen] = []
        self.rate_bytes_s = 0
        self.drop_after_bytes = 0
        self.drops = 0
        self.corrupt: dict[str, int] = {}
        self.broken: dict[str, list[int]] = {}
        self.page_size = page_size
        self.gate_listing = False
        self.lock = threading.Lock()
        self._servers = [_Server(port, self, "hub")]
        if cdn:
            self._servers.append(_Server(0, self, "cdn"))
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]

    @property
    def endpoint(self) -> str:
        return self._servers[0].url

    @property
    def cdn(self) -> str | None:
        return self._servers[1].url if len(self._servers) > 1 else None

    def __enter__(self) -> HubSim:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def add(
        self,
        repo: str,
        directory: Path,
        users: Iterable[str] | None = None,
        private: bool = False,
        claimed_sizes: Mapping[str, int] | None = None,
    ) -> str:
        """Publish the files of a directory as the newest revision of a repository; returns the commit (40 hex).

        `users` makes it gated for everybody else. The files are served from where they are: leave them alone.
        `claimed_sizes` lets the listing state other sizes than the files have.
        """
        files = {}
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                name = path.relative_to(directory).as_posix()
                files[name] = _stored(path, (claimed_sizes or {}).get(name))
        listing = json.dumps({name: [file.size, file.sha256] for name, file in files.items()}, sort_keys=True)
        commit = hashlib.sha1(f"{repo}\n{listing}".encode(), usedforsecurity=False).hexdigest()
        repository = self.repositories.setdefault(repo, Repository())
        repository.revisions[commit] = files
        repository.refs["main"] = commit
        repository.users = frozenset(users) if users is not None else repository.users
        repository.private = private or repository.private
        return commit

    def add_account(self, user: str, token: str) -> None:
        self.accounts[token] = user

    def rename(self, old: str, new: str) -> None:
        """The hub redirects a renamed repository's old name."""
        self.renamed.pop(new, None)
        self.repositories[new] = self.repositories.pop(old)
        self.renamed[old] = new

    def downloads(self, suffix: str = "") -> list[Seen]:
        """The GET requests for file contents that were answered, of paths with this ending."""
        return [
            seen
            for seen in self.requests
            if seen.method == "GET"
            and ("/resolve/" in seen.path or seen.server == "cdn")
            and seen.path.endswith(suffix)
        ]


def _stored(path: Path, claimed: int | None) -> Stored:
    sha256 = hashlib.sha256()
    size = path.stat().st_size
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
    large = path.suffix in LARGE_SUFFIXES or size >= LARGE_BYTES
    return Stored(path, size if claimed is None else claimed, sha256.hexdigest(), git.hexdigest(), large)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, hub: HubSim, role: str) -> None:
        self.hub = hub
        self.role = role
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests, not an event."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are kept in `hub.requests`."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    # --- answers ---

    def _answer(self) -> None:
        hub = self.server.hub
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        header = self.headers.get("Authorization", "")
        account = hub.accounts.get(header.removeprefix("Bearer "), "?") if header else ""
        self.seen = Seen(self.server.role, self.command, path, self.headers.get("Range", ""), account, 0)
        with hub.lock:
            hub.requests.append(self.seen)
            statuses = next((s for suffix, s in hub.broken.items() if s and path.endswith(suffix)), None)
            status = statuses.pop(0) if statuses else 0
        if status:
            return self._error(status, "", "Injected fault")
        if self.server.role == "cdn":
            return self._content(path)
        if account == "?":
            return self._error(401, "", "Invalid credentials in Authorization header")
        if match := API.fullmatch(path):
            return self._api(match, query, account)
        if match := RESOLVE.fullmatch(path):
            return self._resolve(match, account)
        if path == "/api/whoami-v2" and account:
            return self._json({"type": "user", "name": account, "orgs": [], "auth": {"type": "access_token"}})
        return self._error(404, "", "Sorry, we can't find the page you are looking for.")

    def _content(self, path: str) -> None:
        """The second origin: files by their sha256."""
        for repository in self.server.hub.repositories.values():
            for files in repository.revisions.values():
                for name, file in files.items():
                    if path == f"/{file.sha256}/{name}":
                        return self._file(name, file, {"ETag": f'"{file.sha256}"'})
        return self._error(404, "", "NoSuchKey")

    def _open(self, match: re.Match[str], account: str, listing: bool) -> tuple[str, dict[str, Stored]] | None:
        """The revision that is asked for, or None after an error was sent."""
        hub = self.server.hub
        name, wanted = match["repo"], match["revision"] or "main"
        if name in hub.renamed:
            self._send(307, b"", {"Location": self.path.replace(name, hub.renamed[name], 1)})
            return None
        repository = hub.repositories.get(name)
        allowed = repository is not None and (repository.users is None or account in repository.users)
        if repository is None or (repository.private and not allowed):
            # To somebody unknown the hub does not even say that there is nothing.
            self._error(404 if account else 401, "RepoNotFound", "Repository not found")
            return None
        if not allowed and not (listing and not hub.gate_listing):
            self._error(403 if account else 401, "GatedRepo", GATED.format(name, hub.endpoint, name))
            return None
        commit = repository.refs.get(wanted, wanted)
        if commit not in repository.revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {wanted}")
            return None
        return commit, repository.revisions[commit]

    def _api(self, match: re.Match[str], query: dict[str, str], account: str) -> None:
        opened = self._open(match, account, listing=True)
        if opened is None:
            return None
        commit, files = opened
        repository = self.server.hub.repositories[match["repo"]]
        if match["what"] == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in repository.refs.items()
            ]
            return self._json({"branches": branches, "tags": [], "converts": []})
        if match["what"] == "tree":
            return self._tree(files, query)
        return self._json(
            {
                "_id": commit[:24],
                "id": match["repo"],
                "modelId": match["repo"],
                "sha": commit,
                "private": repository.private,
                "gated": "manual" if repository.users is not None and not repository.private else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": name} for name in files],
            }
        )

    def _tree(self, files: Mapping[str, Stored], query: Mapping[str, str]) -> None:
        size = self.server.hub.page_size
        start = int(query.get("cursor", "0"))
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "size": 0, "oid": "0" * 40}
            for folder in sorted({name.rsplit("/", 1)[0] for name in files if "/" in name})
        ]
        for name, file in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": file.size, "oid": file.git_sha1}
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            entries.append(entry)
        headers = {}
        if start + size < len(entries):
            again = urllib.parse.urlencode({**query, "cursor": start + size})
            place = self.server.hub.endpoint + self.path.split("?")[0]
            headers["Link"] = f'<{place}?{again}>; rel="next"'
        self._json(entries[start : start + size], headers)

    def _resolve(self, match: re.Match[str], account: str) -> None:
        opened = self._open(match, account, listing=False)
        if opened is None:
            return None
        commit, files = opened
        file = files.get(match["path"])
        if file is None:
            return self._error(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if file.large and self.server.hub.cdn:
            name = urllib.parse.quote(match["path"])
            headers |= {
                "X-Linked-Etag": f'"{file.etag}"',
                "X-Linked-Size": str(file.size),
                "Location": f"{self.server.hub.cdn}/{file.sha256}/{name}",
            }
            return self._send(302, b"", headers)
        return self._file(match["path"], file, headers)

    def _file(self, name: str, file: Stored, headers: dict[str, str]) -> None:
        size = file.source.stat().st_size
        first, last, status = 0, size - 1, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.seen.range)
        if asked:
            first, last = int(asked[1]), min(size - 1, int(asked[2]) if asked[2] else size - 1)
            if first > last:
                return self._error(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        self._head(status, last - first + 1, headers)
        if self.command == "HEAD":
            return None
        return self._stream(name, file, first, last)

    def _stream(self, name: str, file: Stored, first: int, last: int) -> None:
        hub = self.server.hub
        with hub.lock:
            cut = hub.drop_after_bytes if hub.drops > 0 and hub.drop_after_bytes < last - first + 1 else 0
            hub.drops -= 1 if cut else 0
            spoil = hub.corrupt.get(name, 0) > 0 and first == 0
            if spoil:
                hub.corrupt[name] -= 1
        with file.source.open("rb") as stream:
            stream.seek(first)
            while self.seen.sent_bytes <= last - first:
                left = last - first + 1 - self.seen.sent_bytes
                chunk = stream.read(min(CHUNK_BYTES, left, cut - self.seen.sent_bytes if cut else left))
                if spoil and self.seen.sent_bytes == 0 and chunk:
                    chunk = chunk[:-1] + bytes([chunk[-1] ^ 0xFF])
                self.wfile.write(chunk)
                self.seen.sent_bytes += len(chunk)
                if cut and self.seen.sent_bytes >= cut:
                    self.close_connection = True
                    return
                if hub.rate_bytes_s:
                    time.sleep(len(chunk) / hub.rate_bytes_s)

    # --- replies ---

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        names = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **names})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.seen.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
