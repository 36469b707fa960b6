# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Hugging Face hub, or whatever speaks its language at HF_ENDPOINT. (outside)

The only file that knows it. What is there is asked over HTTP: sizes and checksums before a byte is fetched, and
errors by status and not by text. The bytes are fetched by the hub's own client `hf` (huggingface_hub 2.4.0), which
knows Xet, mirrors and resuming.
"""

from __future__ import annotations

import json
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from .child import log_tail, run_child

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30
RETRY_AFTER_S = (1.0, 3.0)  # after 429 and 5xx
INVALID_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 (the hub's words in X-Error-Message)


class HubError(Exception):
    """The hub did not give what was asked for; the message says what, and what to do."""


class HubUnreachableError(HubError):
    """Nothing that speaks the hub's language answered at HF_ENDPOINT."""


class HubNotFoundError(HubError):
    """No such repository, revision or file."""


class HubAccessError(HubError):
    """The repository is gated or private and the token (or its absence) does not open it."""


class HubNoSpaceError(HubError):
    """The disk became full while the client was writing."""


@dataclass(frozen=True)
class Token:
    """A secret and where it came from, for messages; never part of a command line or a log."""

    secret: str
    origin: str

    def __repr__(self) -> str:
        return f"Token(***, {self.origin!r})"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a revision. `sha256` is known for large files (LFS), `git_sha1` (of the Git blob) for the others."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None

    def matches(self, sha256: str, git_sha1: str) -> bool:
        return sha256 == self.sha256 if self.sha256 else git_sha1 == self.git_sha1


def read_token(token_file: str | None, environment: Mapping[str, str]) -> Token | None:
    """The token of `token_file`, else of HF_TOKEN, else None. Raises HubAccessError when the file holds none."""
    if token_file:
        try:
            text = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not text"
            raise HubAccessError(f"token_file {token_file} cannot be read: {reason}") from exc
        if not re.fullmatch(r"[!-~]+", text):
            raise HubAccessError(f"token_file {token_file} must hold one token on one line, and nothing else")
        return Token(text, f"token_file {token_file}")
    text = environment.get("HF_TOKEN", "").strip()
    return Token(text, "HF_TOKEN") if re.fullmatch(r"[!-~]+", text) else None


def _origin(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, the token only within the same origin: a hub sends large files to other hosts."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],  # noqa: ARG002 (urllib's signature)
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: Message,  # noqa: ARG002
        newurl: str,
    ) -> urllib.request.Request | None:
        new = urllib.request.Request(newurl, headers=dict(req.headers), method=req.get_method())  # noqa: S310
        token = req.unredirected_hdrs.get("Authorization")
        if token and _origin(req.full_url) == _origin(newurl):
            new.add_unredirected_header("Authorization", token)
        return new

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know 308


class Hub:
    """Read-only questions to one hub. `environment` gives HF_ENDPOINT and the CA bundle; proxies come from ours."""

    def __init__(self, environment: Mapping[str, str], token: Token | None = None) -> None:
        self.environment = environment
        self.token = token
        self.endpoint = (environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        handlers: list[urllib.request.BaseHandler] = [_Redirects()]
        bundle = _ca_bundle(environment)
        if bundle:
            context = ssl.create_default_context()
            try:
                context.load_verify_locations(bundle)
            except OSError as exc:
                raise HubUnreachableError(f"the CA bundle {bundle} cannot be read: {exc.strerror}") from exc
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def files(self, repo: str, revision: str) -> dict[str, RemoteFile]:
        """Every file of a revision by its path. Raises HubError and its kinds."""
        url: str | None = f"{self.endpoint}/api/models/{repo}/tree/{revision}?recursive=true&expand=false"
        found: dict[str, RemoteFile] = {}
        while url:
            data, headers = self._get(url, repo, revision)
            try:
                for entry in json.loads(data):
                    if entry["type"] == "file":
                        file = _remote_file(entry)
                        found[file.path] = file
            except (ValueError, KeyError, TypeError) as exc:
                raise HubUnreachableError(
                    f"{self._where} does not answer as a Hugging Face hub does (tree of {repo}: {exc!r})"
                ) from exc
            url = self._next_page(headers)
        return found

    def read(self, repo: str, revision: str, path: str, limit: int) -> bytes:
        """The first `limit` bytes of one file; a refusal here is a refusal of the download, before it began."""
        url = f"{self.endpoint}/{repo}/resolve/{revision}/{urllib.parse.quote(path)}"
        data, _headers = self._get(url, repo, revision, limit)
        return data

    @property
    def _where(self) -> str:
        return f"HF_ENDPOINT ({self.endpoint})"

    def _next_page(self, headers: Message) -> str | None:
        match = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("Link") or "")
        # A mirror may hand on the hub's own links; the client does the same replacement.
        return match[1].replace(DEFAULT_ENDPOINT, self.endpoint) if match else None

    def _get(self, url: str, repo: str, revision: str, limit: int | None = None) -> tuple[bytes, Message]:
        offline = next((n for n in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _true(self.environment.get(n))), None)
        if offline:
            raise HubUnreachableError(f"{offline} is set, so {repo} cannot be asked for: unset it for this step")
        request = urllib.request.Request(url, headers={"User-Agent": "gpurig"})  # noqa: S310 (HF_ENDPOINT is the user's)
        if limit is not None:
            request.add_header("Range", f"bytes=0-{limit - 1}")
        if self.token and _origin(url) == _origin(self.endpoint):
            request.add_unredirected_header("Authorization", f"Bearer {self.token.secret}")
        status, data, headers = self._once(request, limit)
        for wait_s in RETRY_AFTER_S:
            if not (status == 429 or status >= 500):
                break
            time.sleep(wait_s)
            status, data, headers = self._once(request, limit)
        if status == 416:  # an empty file has no range
            return b"", headers
        if status >= 300:  # also a redirect that leads nowhere
            raise self._refusal(status, headers, repo, revision, url)
        return data, headers

    def _once(self, request: urllib.request.Request, limit: int | None) -> tuple[int, bytes, Message]:
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                return response.status, response.read() if limit is None else response.read(limit), response.headers
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, b"", exc.headers
        except (OSError, HTTPException, ValueError) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            raise HubUnreachableError(
                f"{self._where} cannot be reached: {reason}. Check the network, and proxy, CA bundle and "
                "HF_ENDPOINT in rig_environment"
            ) from exc

    def _refusal(self, status: int, headers: Message, repo: str, revision: str, url: str) -> HubError:
        code, words = headers.get("X-Error-Code") or "", headers.get("X-Error-Message") or ""
        if code == "RevisionNotFound":
            return HubNotFoundError(revision_not_found(repo, revision, self.endpoint))
        if code == "EntryNotFound":
            return HubNotFoundError(f"{repo} at {revision} has no file {url.rsplit(revision + '/', 1)[-1]}")
        if words == INVALID_TOKEN:
            return HubAccessError(
                f"the token of {self.token.origin if self.token else 'nobody'} is not valid at {self.endpoint}: "
                "put a current one there"
            )
        if code == "GatedRepo":
            return HubAccessError(no_access(repo, self.token, self.endpoint))
        if status == 403:
            return HubAccessError(f"{self._where} forbids {repo} (403 {words or 'without a reason'})")
        if code == "RepoNotFound" or status in (401, 404):
            return HubNotFoundError(repo_not_found(repo, self.token, self.endpoint))
        return HubUnreachableError(f"{self._where} answers {status} {words} to {url}".replace("  ", " "))


def repo_not_found(repo: str, token: Token | None, endpoint: str) -> str:
    private = (
        f"or it is private and the token of {token.origin} does not open it"
        if token
        else "or it is private: then give a token in hub.token_file"
    )
    return f"hub.repo {repo} does not exist at {endpoint}, {private}"


def revision_not_found(repo: str, revision: str, endpoint: str) -> str:
    commits = f"{endpoint}/{repo}/commits"
    return f"hub.revision {revision} does not exist in {repo} at {endpoint}: take the full commit from {commits}"


def no_access(repo: str, token: Token | None, endpoint: str) -> str:
    terms = f"accept its terms once at {endpoint}/{repo}"
    if token is None:
        return f"{repo} is gated: {terms}, and give a token of that account in hub.token_file"
    return f"{repo} is gated and the token of {token.origin} has no access: {terms} with that token's account"


def _true(value: str | None) -> bool:
    return (value or "").upper() in ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


def _ca_bundle(environment: Mapping[str, str]) -> str | None:
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return next((environment[name] for name in names if environment.get(name)), None)


def _remote_file(entry: Mapping[str, Any]) -> RemoteFile:
    large = entry.get("lfs")
    return RemoteFile(
        path=str(entry["path"]),
        size=int(entry["size"]),
        sha256=str(large["oid"]).removeprefix("sha256:") if large else None,
        git_sha1=None if large else str(entry["oid"]),
    )


# --- the client ---


def client_environment(environment: Mapping[str, str], token: Token | None, home: Path) -> dict[str, str]:
    """The environment `hf` gets: ours, quiet, with its own files below `home`, and the token if there is one."""
    child = dict(environment)
    child.pop("HUGGING_FACE_HUB_TOKEN", None)
    child.pop("HF_TOKEN", None)
    child |= {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    child.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(TIMEOUT_S))
    bundle = _ca_bundle(environment)
    if bundle:
        child["SSL_CERT_FILE"] = bundle
    if token:
        child["HF_TOKEN"] = token.secret
    return child


def download(
    client: Path,
    hub: Hub,
    repo: str,
    revision: str,
    names: Sequence[str],
    target: Path,
    log: Path,
    home: Path,
    on_tick: Callable[[], None] = lambda: None,
    keep_open: Sequence[int] = (),
) -> str:
    """Fetch these files of a revision into `target` with the client `hf`; returns the end of what it printed.

    Files that are already complete there are not fetched again; a file that was cut off by a kill starts anew. That
    the client ends with 0 is no proof, so callers hash what they got. Raises HubError and its kinds. `home` takes the
    client's own files.
    """
    home.mkdir(parents=True, exist_ok=True)
    argv = [str(client), "download", "--quiet", "--revision", revision, "--local-dir", str(target), "--", repo, *names]
    secrets = [hub.token.secret] if hub.token else []
    try:
        status = run_child(
            argv,
            client_environment(hub.environment, hub.token, home),
            log,
            target,
            on_tick=on_tick,
            keep_open=keep_open,
        )
    except OSError as exc:
        raise HubError(
            f"the hub's client {client} cannot be started: {exc.strerror}; the role models installs it (hf.lock)"
        ) from exc
    output = _worth_reading(log_tail(log, lines=200, secrets=secrets))
    if status != 0 or re.search(_NOTHING_DONE, output):
        raise _client_refusal(output, status, hub, repo, revision)
    return output


def remove_leftovers(target: Path) -> None:
    """Delete the parts of unfinished files that a killed client left, gigabytes each, which it never uses again."""
    for path in (target / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
        path.unlink(missing_ok=True)


_NETWORK = (
    r"Local entry not found|ConnectError|ConnectTimeout|ReadTimeout|ReadError|RemoteProtocolError|ProxyError"
    r"|Connection (?:refused|reset|aborted)|timed out|peer closed connection|Server disconnected"
    r"|Name or service not known|Temporary failure in name resolution|CERTIFICATE_VERIFY_FAILED"
    r"|50[0-9] Server Error|429 "
)
# Without a hub the client is content with a directory that has something in it, and ends with 0.
_NOTHING_DONE = r"Returning existing local_dir|Couldn't access the Hub to check for update"
# What huggingface_hub 2.4.0 prints (cli/_errors.py, and exceptions that pass through), most special first.
_SAYS: tuple[tuple[str, str], ...] = (
    ("space", r"No space left on device|Errno 28|not enough free disk space"),
    ("token", re.escape(INVALID_TOKEN)),
    ("gated", r"Access denied\.|Cannot access gated repo"),
    ("forbidden", r"403 Forbidden"),
    ("revision", r"Revision not found"),
    ("file", r"File not found in"),
    ("repo", r"^Error: \w+ '[^']*' not found\.|Repository Not Found"),
    ("network", f"{_NETWORK}|{_NOTHING_DONE}"),
)


def _worth_reading(output: str) -> str:
    """The client's output without the insides of tracebacks and without its own retries."""
    lines = [line for line in output.splitlines() if not line.startswith((" ", "Traceback ", "Retrying in "))]
    return "\n".join(dict.fromkeys(lines[-6:]))


def _client_refusal(output: str, status: int, hub: Hub, repo: str, revision: str) -> HubError:
    kind = next((name for name, pattern in _SAYS if re.search(pattern, output, re.MULTILINE)), "")
    last = f"\nhf said:\n{output}" if output else ""
    origin = hub.token.origin if hub.token else "nobody"
    if kind == "space":
        return HubNoSpaceError(f"the disk became full while {repo} was fetched: free space, then run again{last}")
    if kind == "token":
        return HubAccessError(f"the token of {origin} is not valid at {hub.endpoint}: put a current one there{last}")
    if kind == "gated":
        return HubAccessError(no_access(repo, hub.token, hub.endpoint) + last)
    if kind == "forbidden":
        return HubAccessError(f"HF_ENDPOINT ({hub.endpoint}) forbids files of {repo}{last}")
    if kind == "revision":
        return HubNotFoundError(revision_not_found(repo, revision, hub.endpoint) + last)
    if kind == "file":
        return HubNotFoundError(f"a file of {repo} at {revision} is gone{last}")
    if kind == "repo":
        return HubNotFoundError(repo_not_found(repo, hub.token, hub.endpoint) + last)
    if kind == "network":
        return HubUnreachableError(
            f"HF_ENDPOINT ({hub.endpoint}) was lost while {repo} was fetched: run again, whole files are kept{last}"
        )
    ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return HubError(f"hf {ended} while fetching {repo}{last}")
