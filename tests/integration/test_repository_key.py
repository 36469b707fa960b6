# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module repository_key as a process: four steps, keys of strangers, damaged files, a server without the key."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RunModule = Callable[..., dict[str, Any]]


def key(letter: bytes) -> bytes:
    """A public key of version 4 in one packet; what it says is nonsense, but its fingerprint is that of these bytes."""
    body = b"\x04" + letter * 60
    return bytes([0xC6, len(body)]) + body


def fingerprint(letter: bytes) -> str:
    body = b"\x04" + letter * 60
    return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body, usedforsecurity=False).hexdigest().upper()


@pytest.fixture
def args(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "gpg").write_bytes(key(b"a"))
    ring = tmp_path / "etc/apt/keyrings/gpurig-docker.gpg"
    return {"url": (tmp_path / "gpg").as_uri(), "path": str(ring), "fingerprints": [fingerprint(b"a")]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A server of tmp_path; yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, directory=str(tmp_path), **named)

        def log_message(self, *_words: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_four_steps(run_module: RunModule, args: dict[str, Any]) -> None:
    ring = Path(args["path"])
    predicted = run_module("repository_key", args, check=True)
    assert predicted["changed"]
    assert not ring.parent.exists()
    made = run_module("repository_key", args)
    assert made["changed"]
    assert made["diff"] == predicted["diff"]
    assert made["diff"]["after"] == f"key {fingerprint(b'a')}\nmode 0644\n"
    assert (ring.read_bytes(), ring.stat().st_mode & 0o777) == (key(b"a"), 0o644)
    for check in (False, True):
        assert not run_module("repository_key", args, check=check)["changed"]


def test_a_keyring_that_is_right_asks_nobody(run_module: RunModule, args: dict[str, Any]) -> None:
    run_module("repository_key", args)
    gone = {**args, "url": "http://127.0.0.1:9/gone"}
    assert run_module("repository_key", gone)["changed"] is False
    Path(args["path"]).chmod(0o600)
    assert run_module("repository_key", gone)["changed"] is True
    assert Path(args["path"]).stat().st_mode & 0o777 == 0o644


def test_a_stranger_s_key_is_refused_alone_and_among_others(
    run_module: RunModule, args: dict[str, Any], tmp_path: Path
) -> None:
    for content in (key(b"x"), key(b"a") + key(b"x")):
        (tmp_path / "gpg").write_bytes(content)
        refused = run_module("repository_key", args)
        assert refused["failed"]
        assert f"holds the key {fingerprint(b'x')}, expected {fingerprint(b'a')}" in refused["msg"]
        assert not Path(args["path"]).exists()


def test_a_keyring_that_was_changed_is_put_right(run_module: RunModule, args: dict[str, Any]) -> None:
    run_module("repository_key", args)
    for content in (key(b"a") + key(b"x"), key(b"x"), b"", b"nonsense"):
        Path(args["path"]).write_bytes(content)
        assert run_module("repository_key", args)["changed"]
        assert Path(args["path"]).read_bytes() == key(b"a")


def test_a_new_key_beside_the_old_one(run_module: RunModule, args: dict[str, Any], tmp_path: Path) -> None:
    both = {**args, "fingerprints": [fingerprint(b"a"), fingerprint(b"b")]}
    (tmp_path / "gpg").write_bytes(key(b"a") + key(b"b"))
    assert run_module("repository_key", both)["fingerprints"] == both["fingerprints"]


def test_by_http_and_what_a_server_says_instead(
    run_module: RunModule, args: dict[str, Any], server: str, tmp_path: Path
) -> None:
    (tmp_path / "page").write_text("<html>sign in</html>")
    missing = run_module("repository_key", {**args, "url": f"{server}/none"})
    page = run_module("repository_key", {**args, "url": f"{server}/page"})
    assert "404" in missing["msg"]
    assert "rig_environment name the proxy" in missing["msg"]
    assert "it is no OpenPGP data" in page["msg"]
    assert run_module("repository_key", {**args, "url": f"{server}/gpg"})["changed"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fingerprints": []}, "fingerprints: empty"),
        ({"fingerprints": ["0EBFCD88"]}, "no fingerprint of 40 hex digits"),
        ({"path": "/nowhere/docker.asc"}, "its name must end in .gpg"),
    ],
)
def test_arguments_that_cannot_be_right(
    run_module: RunModule, args: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    refused = run_module("repository_key", {**args, **change})
    assert refused["failed"]
    assert words in refused["msg"]
