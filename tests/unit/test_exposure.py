# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two searches that every scenario runs on its hosts: for ports that are open, for secrets that are elsewhere."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.hosts import exposure, secrets_search

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, state: str, inode: str = "77") -> str:
    """A row of /proc/net/tcp as Linux 6 prints it."""
    return f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1\n"


def test_listeners_beyond_loopback_are_read_from_the_kernels_tables() -> None:
    tables = {
        "tcp": HEAD
        + row("0100007F:1F40", "0A")
        + row("00000000:1F90", "0A")
        + row("05BE580A:0016", "0A", "88")
        + row("05BE580A:0050", "01"),
        "tcp6": HEAD
        + row("00000000000000000000000001000000:1F40", "0A")
        + row("00000000000000000000000000000000:1F91", "0A")
        + row("0000000000000000FFFF00000100007F:1F40", "0A"),
        "udp": HEAD + row("00000000:0044", "07") + row("0100007F:0035", "07"),
        "udp6": HEAD,
    }
    assert exposure.listeners(tables) == {"tcp 0.0.0.0:8080", "tcp 10.88.190.5:22", "tcp :::8081", "udp 0.0.0.0:68"}
    assert exposure.listeners(tables, {"88"}) == {"tcp 10.88.190.5:22"}


HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "lo" in Path("/proc/net/if_inet6").read_text(encoding="ascii")


@pytest.mark.parametrize("address", ["127.0.0.1", *(["::1"] if HAS_IPV6 else [])])
def test_open_ports_are_found_among_closed_ones(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # A port that is bound and nobody listens at refuses, and nobody else can have it.
    with socket.create_server((address, 0), family=family) as opened, socket.socket(family) as closed:
        closed.bind((address, 0))
        ports = [one.getsockname()[1] for one in (opened, closed)]
        assert exposure.scan(address, ports) == ports[:1]


@pytest.mark.parametrize("said", [errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH, errno.EACCES])
@pytest.mark.parametrize("later", [False, True])
def test_a_try_that_proves_nothing_is_no_closed_port(monkeypatch: pytest.MonkeyPatch, said: int, later: bool) -> None:
    class Probe(socket.socket):
        def connect_ex(self, _address: object) -> int:
            return errno.EINPROGRESS if later else said

        def getsockopt(self, *_option: object) -> int:  # type: ignore[override]
            return said

    monkeypatch.setattr(exposure.socket, "socket", Probe)
    with pytest.raises(OSError, match="whether port 9 is open was not learnt") as caught:
        exposure.scan("192.0.2.1", [9])
    assert caught.value.errno == said


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A host whose trees all lie below tmp_path, with a key, an address with a password, and a private key."""
    paths = {name: str(tmp_path / name) for name in ("secrets", "state", "config", "log", "envs")}
    for path in paths.values():
        Path(path).mkdir()
    (tmp_path / "state/open_webui").mkdir(mode=0o700)
    monkeypatch.setattr(secrets_search, "PLACES", (str(tmp_path),))
    monkeypatch.setattr(secrets_search, "OPEN_TO_ALL", str(tmp_path))
    snapshots = str(tmp_path / "containerd" / secrets_search.SNAPSHOTS)
    monkeypatch.setattr(secrets_search, "LAYERS", (str(tmp_path / "layers"), snapshots))
    monkeypatch.setattr(secrets_search, "PRINTED", str(tmp_path / "containers"))
    monkeypatch.setattr(secrets_search, "texts", lambda: iter([("command line of 1", b"serve\0--port")]))
    monkeypatch.setattr(secrets_search.shutil, "which", lambda _name: None)
    chat = Path(paths["secrets"], "chat.env")
    chat.write_text(
        "API_KEY=chat-key-chat\nDATABASE_URL=postgresql://u:pass%40word@db/x\nSHORT=abc\n", encoding="utf-8"
    )
    key = Path(paths["state"], "far.key")
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nsame-in-all\nprivate-lines\n-----END\n", encoding="utf-8")
    for path in (chat, key):
        path.chmod(0o600)
    yield paths


def test_secrets_in_their_own_files_are_fine(host: dict[str, str]) -> None:
    Path(host["state"], "open_webui/webui.db").write_text("chat-key-chat", encoding="utf-8")
    Path(host["envs"], "x.py").write_text("chat-key-chat", encoding="utf-8")
    done = secrets_search.main(host)
    assert (done["wrong"], done["modes"]) == ([], [])
    assert set(done["planted"]) == set(done["found"])
    values = done["values"]
    assert isinstance(values, dict)
    assert set(values) == {
        *("chat-key-chat", "postgresql://u:pass%40word@db/x", "pass%40word", "pass@word", "private-lines")
    }


@pytest.mark.parametrize(
    ("place", "text", "secret"),
    [
        ("log/chat.log", "started with chat-key-chat", "secrets/chat.env"),
        ("config/compose.yml", "password: pass@word", "secrets/chat.env"),
        ("state/record.json", "private-lines", "state/far.key"),
        ("layers/0a1b/diff/app/env", "chat-key-chat", "secrets/chat.env"),
        (f"containerd/{secrets_search.SNAPSHOTS}/7/fs/app/env", "chat-key-chat", "secrets/chat.env"),
        ("containers/0a1b/0a1b-json.log", "chat-key-chat", "secrets/chat.env"),
    ],
)
def test_a_secret_elsewhere_is_found(host: dict[str, str], place: str, text: str, secret: str) -> None:
    top = Path(host["log"]).parent
    (top / place).parent.mkdir(parents=True, exist_ok=True)
    (top / place).write_text(text, encoding="utf-8")
    done = secrets_search.main(host)
    assert done["wrong"] == [f"{top / secret} is in {top / place}"]
    assert done["layers"] == place.startswith(("layers", "containerd"))


def test_images_are_counted_where_docker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if not Path("/usr/bin/docker").exists():
        assert secrets_search.images() == 0
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho 0123456789ab; echo ba9876543210\n", encoding="utf-8")
    docker.chmod(0o755)
    assert secrets_search.images() == 2
    docker.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        secrets_search.images()


def test_a_secret_on_a_command_line_and_a_file_that_others_read_are_found(
    host: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets_search, "texts", lambda: iter([("command line of 1", b"serve\0chat-key-chat")]))
    Path(host["secrets"], "chat.env").chmod(0o640)
    Path(host["state"], "open_webui").chmod(0o755)
    Path(host["state"], "open_webui/webui.db").write_text("chat-key-chat", encoding="utf-8")
    done = secrets_search.main(host)
    chat = f"{host['secrets']}/chat.env"
    assert done["wrong"] == [f"{chat} is in {host['state']}/open_webui/webui.db", f"{chat} is in command line of 1"]
    assert done["modes"] == [chat]
