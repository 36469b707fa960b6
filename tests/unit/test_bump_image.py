# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""scripts/bump.py reads an image's digest from a registry: here one that speaks the protocol, with its tokens."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from ansible_collections.gpurig.llm.scripts import bump

MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": bump.MANIFESTS[0], "manifests": []}).encode()
DIGEST = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
TOKEN = "a-token-for-nobody"


class Registry(http.server.BaseHTTPRequestHandler):
    """A public registry as ghcr.io is: 401 with a challenge, a token for anybody, then the manifest."""

    says = ""
    kind = bump.MANIFESTS[0]
    token = json.dumps({"token": TOKEN})
    challenge = 'Bearer realm="{}/token",service="registry.example.org",scope="repository:page/page:pull"'

    def do_GET(self) -> None:
        path, _mark, query = self.path.partition("?")
        if path == "/token":
            right = query == "service=registry.example.org&scope=repository%3Apage%2Fpage%3Apull"
            self.reply(*((200, self.token.encode()) if right else (403, b"{}")))
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            here = f"http://127.0.0.1:{self.server.server_address[1]}"
            self.reply(401, b"{}", {"WWW-Authenticate": self.challenge.format(here)})
        elif path != "/v2/page/page/manifests/v1.2.3":
            self.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        elif bump.MANIFESTS[0] not in self.headers["Accept"]:
            self.reply(200, b"another manifest")
        else:
            self.reply(200, MANIFEST, {"Docker-Content-Digest": self.says or DIGEST, "Content-Type": self.kind})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Registry, "says", "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_digest_is_that_of_what_the_registry_sends(registry: str) -> None:
    assert bump.image_digest(f"{registry}/page/page:v1.2.3", "http") == DIGEST


@pytest.mark.parametrize(
    ("reference", "says", "challenge", "words"),
    [
        pytest.param("{}/page/page:v9", "", None, "HTTP 404", id="no-such-tag"),
        pytest.param("{}/page/page:v1.2.3", f"sha256:{'0' * 64}", None, "and what it sends has", id="another-digest"),
        pytest.param("{}/page/page:v1.2.3", "", 'Basic realm="x"', "it is not public", id="private"),
        pytest.param("{}/page/page:v1.2.3", "", 'Bearer realm="{}/token"', "gave no token", id="no-token"),
        pytest.param("{}/page/page", "", None, "needed: registry/name:tag", id="no-tag"),
        pytest.param("127.0.0.1:1/page/page:v1", "", None, "127.0.0.1:1", id="nobody-there"),
    ],
)
def test_what_goes_wrong_is_said(
    registry: str, monkeypatch: pytest.MonkeyPatch, reference: str, says: str, challenge: str | None, words: str
) -> None:
    monkeypatch.setattr(Registry, "says", says)
    monkeypatch.setattr(Registry, "challenge", challenge or Registry.challenge)
    with pytest.raises(bump.RegistryError, match=words):
        bump.image_digest(reference.format(registry), "http")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param({"kind": "text/html; charset=utf-8"}, "text/html and no manifest", id="a-proxy-s-page"),
        pytest.param({"kind": ""}, "of no type and no manifest", id="no-type"),
        pytest.param({"says": "no digest"}, "says no digest", id="no-digest"),
        pytest.param({"token": "<html>sign in</html>"}, "no JSON, so no token", id="token-page"),
        pytest.param({"token": '["token"]'}, "gave no token", id="token-list"),
    ],
)
def test_what_is_no_registry_s_answer_is_refused(
    registry: str, monkeypatch: pytest.MonkeyPatch, answer: dict[str, str], words: str
) -> None:
    for name, value in answer.items():
        monkeypatch.setattr(Registry, name, value)
    with pytest.raises(bump.RegistryError, match=words):
        bump.image_digest(f"{registry}/page/page:v1.2.3", "http")


def test_the_page_s_image_is_of_the_version_in_the_lock() -> None:
    assert bump.page_image().startswith(f"{bump.PAGE_IMAGE}:v0.1")
