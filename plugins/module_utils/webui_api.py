# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP side of Open WebUI: sign in, settings, models, a chat, a document. (outside)

The page answers on loopback, so no proxy of the environment is ever used. Neither a password nor a key of an engine
is in the text of an error: the page's answers to settings repeat them, so they are never shown.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .webui_settings import CONFIGS, CONNECTED, EMBEDDING, KEYS, URLS

PASSWORD = "WEBUI_ADMIN_PASSWORD"  # noqa: S105  the name of a variable
NOBODY, NOBODYS_PASSWORD = "admin@localhost", "admin"
"""Whom Open WebUI 0.12 makes administrator where nobody signs in, and his password (its routers/auths.py)."""

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SHOWN = 160


class PageError(Exception):
    """The page did not do what was asked; `status` is 0 when nobody answered."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Page:
    """A page at `url` (http://127.0.0.1:8080) and who asks it."""

    url: str
    token: str = field(default="", repr=False)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        timeout_s: float = 60.0,
        raw: tuple[str, bytes] | None = None,
        private: bool = False,
    ) -> Any:
        """Send one request and return the JSON that came. `raw`: content type and bytes in place of a JSON body.

        `private`: the page's words are not repeated in an error. Raises PageError.
        """
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None
        if raw:
            headers["Content-Type"], data = raw
        elif body is not None:
            headers["Content-Type"], data = "application/json", json.dumps(body).encode()
        ask = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)  # noqa: S310  ours
        try:
            with _OPENER.open(ask, timeout=timeout_s) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            said = "" if private else f": {_message(error.read())}"
            raise PageError(f"{method} {path}: status {error.code}{said}", error.code) from None
        except (OSError, http.client.HTTPException) as error:
            raise PageError(f"{self.url} does not answer: {getattr(error, 'reason', error)}") from None
        except ValueError:
            raise PageError(f"{method} {path}: the answer is not JSON; is this Open WebUI?", 200) from None

    # --- settings

    def settings(self) -> dict[str, Any]:
        """Return every setting by its dotted name; of administrators only."""
        found = self.call("GET", "/api/v1/configs/export", private=True)
        return found if isinstance(found, dict) else {}

    def change(self, current: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        """Set the values, each over the address that lets the page take it up at once. Raises PageError."""
        after = {**current, **values}
        rest = dict(values)
        if any(name in rest for name in (CONNECTED, URLS, KEYS, CONFIGS)):
            body = {
                "ENABLE_OPENAI_API": after[CONNECTED],
                "OPENAI_API_BASE_URLS": after[URLS],
                "OPENAI_API_KEYS": after[KEYS],
                "OPENAI_API_CONFIGS": after[CONFIGS],
            }
            self.call("POST", "/openai/config/update", body, private=True)
        if any(name in rest for name in EMBEDDING):
            body = {
                "RAG_EMBEDDING_ENGINE": after[EMBEDDING[0]],
                "RAG_EMBEDDING_MODEL": after[EMBEDDING[1]],
                "RAG_EMBEDDING_BATCH_SIZE": after.get("rag.embedding_batch_size", 1),
                "ENABLE_ASYNC_EMBEDDING": after.get("rag.enable_async_embedding", True),
                "RAG_EMBEDDING_CONCURRENT_REQUESTS": after.get("rag.embedding_concurrent_requests", 0),
                "openai_config": {"url": after[EMBEDDING[2]], "key": after[EMBEDDING[3]]},
            }
            self.call("POST", "/api/v1/retrieval/embedding/update", body, private=True)
        for name in (CONNECTED, URLS, KEYS, CONFIGS, *EMBEDDING):
            rest.pop(name, None)
        if rest:
            self.call("POST", "/api/v1/configs/import", {"config": rest}, private=True)

    # --- use

    def version(self) -> str:
        """Return the version that answers."""
        return str(self.call("GET", "/api/version").get("version", ""))

    def sign_up_open(self) -> bool:
        """Whether a stranger could make himself an account."""
        return bool(self.call("GET", "/api/config").get("features", {}).get("enable_signup", True))

    def models(self) -> list[str]:
        """Return the models that the asking person can choose."""
        found = self.call("GET", "/api/models?refresh=true").get("data", [])
        return [str(model.get("id")) for model in found]

    def chat(self, model: str, question: str, files: tuple[str, ...] = (), timeout_s: float = 300.0) -> str:
        """Ask one question through the page and return the answer's text."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "stream": False,
            "max_tokens": 96,
            "temperature": 0,
        }
        if files:
            body["files"] = [{"type": "file", "id": name} for name in files]
        reply = self.call("POST", "/api/chat/completions", body, timeout_s=timeout_s)
        try:
            return str(reply["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise PageError(f"no answer in {str(reply)[:_SHOWN]}", 200) from None

    def add_document(self, name: str, text: str, timeout_s: float = 120.0) -> str:
        """Upload a text, wait until it is embedded and return its id. Raises PageError when embedding fails."""
        mark = uuid.uuid4().hex
        head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain'
        data = f"--{mark}\r\n{head}\r\n\r\n{text}\r\n--{mark}--\r\n".encode()
        sent = self.call("POST", "/api/v1/files/", raw=(f"multipart/form-data; boundary={mark}", data))
        identity = str(sent["id"])
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.call("GET", f"/api/v1/files/{identity}/process/status").get("status")
            if status == "completed":
                return identity
            if status == "failed" or time.monotonic() > deadline:
                data_of = self.call("GET", f"/api/v1/files/{identity}").get("data") or {}
                self.remove_document(identity)
                raise PageError(f"the document was not embedded ({status}): {str(data_of.get('error'))[:_SHOWN]}", 200)
            time.sleep(0.25)

    def remove_document(self, identity: str) -> None:
        """Remove an uploaded text and its vectors."""
        self.call("DELETE", f"/api/v1/files/{identity}")


def sign_in(url: str, address: str, password: str) -> Page:
    """Return the page as the person with this address sees it. Raises PageError, with status 400 for a wrong password.

    Neither address nor password can be told apart by the page's answer.
    """
    body = {"email": address, "password": password}
    return Page(url, str(Page(url).call("POST", "/api/v1/auths/signin", body).get("token", "")))


def enter(url: str, address: str, secrets_file: str) -> Page:
    """Return the page as its administrator sees it. Raises PageError, in words that help.

    Without an address it is a page without authentication, which takes everybody for its administrator.
    """
    if not address:
        try:
            return sign_in(url, "", "")
        except PageError as error:
            if error.status not in {400, 401, 403}:
                raise
            raise PageError(
                f"{url} asks who signs in, and no administrator was named. Write rig_webui.admin, or, for a page "
                "without authentication, rig_webui.auth: false, which takes a database that has no users.",
                error.status,
            ) from None
    password = read_password(secrets_file)
    try:
        return sign_in(url, address, password)
    except PageError as error:
        if error.status not in {400, 401, 403}:
            raise
        raise PageError(
            f"{url} refuses {address} with the password of {secrets_file}, and nothing was changed on it. Was the "
            "password set on the page, or did the database have its users before? Then give it once as "
            f"open_webui_admin_password (or write it into that file, as {PASSWORD}=...), or name another "
            "administrator of the page as rig_webui.admin.",
            error.status,
        ) from None


def open_to_all(url: str) -> bool:
    """Whether everybody can sign in as the administrator that a page without authentication made."""
    try:
        sign_in(url, NOBODY, NOBODYS_PASSWORD)
    except PageError:
        return False
    return True


def read_password(path: str) -> str:
    """Return the administrator's password from the secrets file of the page. Raises PageError without one."""
    if not Path(path).exists():
        raise PageError(f"cannot read the secrets file {path}: it is not there")
    password = read_secret(path, PASSWORD)
    if not password:
        raise PageError(f"the secrets file {path} has no {PASSWORD}")
    return password


def read_secret(path: str, wanted: str) -> str:
    """Return a value of a secrets file; '' when the file or the value is not there. Raises PageError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise PageError(f"cannot read the secrets file {path}: {error.strerror}") from error
    found = (line.partition("=") for line in lines)
    return next((value.strip() for name, _sep, value in found if name.strip() == wanted), "")


def _message(data: bytes) -> str:
    text = data.decode(errors="replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        return text[:_SHOWN]
    return str(value.get("detail", value) if isinstance(value, dict) else value)[:_SHOWN]
