# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tunnel with a real sshd: cut and restored, moved, a changed host key, an unreachable node."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.tests.e2e.sandbox import CHECKOUT, FULL, Result, Sandbox, free_port, system_python

PROGRAM = CHECKOUT / "roles" / "tunnel" / "files" / "tunnel.py"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
USER = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")

pytestmark = pytest.mark.skipif(SSHD is None, reason="needs openssh-server's sshd")


def keygen(path: Path) -> str:
    """Make a key pair and return its public half."""
    path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return Path(f"{path}.pub").read_text(encoding="utf-8").strip()


@dataclass
class Node:
    """An sshd of our own on loopback, and a server behind it that says its name."""

    place: Path
    ssh_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    host_key: str = ""
    more: str = ""

    def start(self, new_key: bool = False) -> None:
        key = self.place / "host_key"
        if new_key or not key.exists():
            self.host_key = keygen(key)
        config = self.place / "sshd_config"
        config.write_text(
            f"Port {self.ssh_port}\nListenAddress 127.0.0.1\nHostKey {key}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.authorized}\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"{self.more}"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with (self.place / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=log)
        wait_for(lambda: listens(self.ssh_port), 10, "sshd")

    def sessions(self) -> list[int]:
        """The processes that serve one connection each."""
        parent = str(self.process.pid if self.process else 0)
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", parent], check=False, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    @property
    def authorized(self) -> Path:
        return self.place / "authorized_keys"

    def stop(self) -> None:
        """End the server and its sessions, as when a node goes away."""
        if self.process is None:
            return
        for pid in [*self.sessions(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        self.process = None


class Says(http.server.BaseHTTPRequestHandler):
    """Answers every question with the name of its server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.says)  # type: ignore[attr-defined]

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def server(says: str) -> Iterator[int]:
    """A server on loopback; yields its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Says) as made:
        made.says = says.encode()  # type: ignore[attr-defined]
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_address[1]
        made.shutdown()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def answer(port: int) -> str:
    """What is said at the near end of the tunnel; empty when nothing is."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/health", timeout=3) as reply:
        return str(reply.read().decode())
    return ""


def wait_for(reached: Callable[[], bool], limit_s: float, what: str) -> float:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < limit_s, f"{what}: not within {limit_s} s"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def node(place: Path) -> Iterator[Node]:
    folder = place / "node"
    folder.mkdir()
    made = Node(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


@dataclass
class Near:
    """The near end: the program as its service runs it."""

    place: Path
    node: Node
    port: int
    log: Path

    def point(self, remote_port: int, **more: Any) -> None:
        """Write the target, and pin the node's present host key."""
        pinned = self.place / "known_hosts"
        if not pinned.exists():
            pinned.write_text(f"pod1 {self.node.host_key}\n")
        target = {
            "host": "pod1",
            "address": "127.0.0.1",
            "ssh_port": self.node.ssh_port,
            "user": USER,
            "remote_port": remote_port,
            "local_port": self.port,
            "identity": str(self.place / "id"),
            "known_hosts": str(pinned),
            **more,
        }
        part = self.place / "target.part"
        part.write_text(json.dumps(target))
        part.replace(self.place / "target.json")

    def says(self) -> str:
        return self.log.read_text(encoding="utf-8")


@pytest.fixture
def near(node: Node, tmp_path: Path) -> Iterator[Near]:
    if node.process is None:
        node.start()
    node.authorized.write_text(f"restrict,port-forwarding {keygen(tmp_path / 'id')}\n")
    made = Near(tmp_path, node, free_port(), tmp_path / "log")
    (tmp_path / "target.json").write_text("{}")
    with made.log.open("wb") as log:
        process = subprocess.Popen([sys.executable, "-I", str(PROGRAM), str(tmp_path / "target.json")], stdout=log)
        try:
            yield made
        finally:
            process.terminate()
            assert process.wait(timeout=15) == 0
    assert not listens(made.port), "ssh outlived the tunnel"


def test_cut_and_restored(near: Near) -> None:
    with server("first") as port:
        near.point(port)
        wait_for(lambda: answer(near.port) == "first", 10, "the tunnel")
        near.node.stop()
        wait_for(lambda: answer(near.port) == "", 10, "the cut")
        wait_for(lambda: "cannot be reached" in near.says(), 15, "the reason")
        assert f"pod1 (127.0.0.1 port {near.node.ssh_port})" in near.says()
        near.node.start()
        restored_s = wait_for(lambda: answer(near.port) == "first", 20, "the tunnel again")
    print(f"restored {restored_s:.1f} s after the node was back")
    assert restored_s < 12


@pytest.mark.skipif(not FULL, reason="as long a wait as in molecule/page, where a network falls silent")
def test_a_silent_node_is_noticed(near: Near) -> None:
    """A cut line sends no goodbye: here sshd's processes are stopped, not ended."""
    with server("first") as port:
        near.point(port)
        wait_for(lambda: answer(near.port) == "first", 10, "the tunnel")
        sessions = near.node.sessions()
        assert sessions
        for pid in sessions:
            os.kill(pid, signal.SIGSTOP)
        try:
            noticed_s = wait_for(lambda: answer(near.port) == "first", 40, "a new connection")
        finally:
            for pid in sessions:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    print(f"a silent node was noticed and the tunnel restored after {noticed_s:.1f} s")
    assert 5 < noticed_s < 30


def test_a_moved_port_is_followed(near: Near) -> None:
    with server("first") as first, server("second") as second:
        near.point(first)
        wait_for(lambda: answer(near.port) == "first", 10, "the tunnel")
        near.point(second)
        moved_s = wait_for(lambda: answer(near.port) == "second", 10, "the moved target")
    print(f"followed a moved target after {moved_s:.1f} s")


def test_a_changed_host_key_is_refused_in_words(near: Near) -> None:
    with server("first") as port:
        near.point(port)
        wait_for(lambda: answer(near.port) == "first", 10, "the tunnel")
        near.node.stop()
        near.node.start(new_key=True)
        wait_for(lambda: "another host key" in near.says(), 15, "the refusal")
        time.sleep(2)
        assert answer(near.port) == ""
    assert "host_key" in near.says()


def test_a_refused_key_and_a_taken_port_are_named(near: Near) -> None:
    near.node.authorized.write_text("")
    with server("first") as port, socket.create_server(("127.0.0.1", near.port)):
        near.point(port)
        wait_for(lambda: "refuses the tunnel's key" in near.says(), 15, "the refused key")
        near.node.authorized.write_text(f"restrict,port-forwarding {(near.place / 'id.pub').read_text()}")
        wait_for(lambda: f"port {near.port} of this host is taken" in near.says(), 30, "the taken port")


PLAY = f"""
- hosts: node:other
  gather_facts: false
  tasks:
    - name: Learn where the node has its keys
      ansible.builtin.import_tasks: {CHECKOUT}/playbooks/tasks/learn.yml
- hosts: home
  gather_facts: false
  tasks:
    - name: Have the tunnels
      ansible.builtin.import_role:
        name: gpurig.llm.tunnel
"""


class Homes:
    """A home host and a node, both sandboxes on this machine, the node behind its sshd."""

    def __init__(self, place: Path, node: Node) -> None:
        self.place, self.node = place, node
        self.port = free_port()
        self.reached: dict[str, Any] = {}  # how Ansible reaches the node, where that is not as the tunnel does
        self.box = Sandbox(place / "home", self.port, place)
        self.python = system_python()
        secrets = place / "away" / "etc" / "secrets"
        secrets.mkdir(parents=True)
        (secrets / "chat.env").write_text("LLAMA_API_KEY=the-key-of-the-node\n")
        (place / "play.yml").write_text(PLAY)

    def run(self, remote_port: int, *more: str, **tunnel: Any) -> Result:
        one = {"name": "far", "host": "node", "instance": "chat", "port": self.port, "host_key": self.node.host_key}
        local = {"ansible_connection": "local", "ansible_python_interpreter": self.python, "rig_kind": "sandbox"}
        where = {"ansible_host": "127.0.0.1", "ansible_port": self.node.ssh_port, "ansible_user": USER}
        instances = [{"name": "chat", "model": "any", "port": remote_port}]
        home = {"rig_root": str(self.box.root), "rig_tunnels": [{**one, **tunnel}]}
        home |= {"tunnel_authorized_keys": str(self.node.authorized), "tunnel_start_timeout_s": 15}
        if Path(self.box.gpurig).exists():
            home["host_tool_ready"] = True  # as after phase host
        node = {**where, "rig_root": str(self.place / "away"), "rig_instances": instances}
        hosts = {"home": {**local, **home}, "node": {**local, **node, **self.reached}, "other": {**local, **node}}
        (self.place / "hosts.yml").write_text(json.dumps({"all": {"hosts": hosts}}))
        return self.play(self.place / "play.yml", *more)

    def blob(self) -> str:
        """What tells the tunnel's key from every other."""
        return (self.box.root / "etc" / "tunnels" / "far.key.pub").read_text().split()[1]

    def play(self, playbook: Path, *more: str) -> Result:
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [sys.executable, program, str(playbook), "-i", str(self.place / "hosts.yml"), *more]
        began = time.monotonic()
        done = subprocess.run(
            command,
            env=self.box.environment(),
            cwd=self.place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        recap = "\n".join(line for line in done.stdout.splitlines() if line.startswith("home "))
        assert recap or done.returncode, done.stdout
        return Result(done.returncode, done.stdout + recap, time.monotonic() - began)


def with_the_key(keys: Path, node: Node) -> list[str]:
    """The ssh command of somebody who has copied the tunnel's key."""
    options = ["-F", "none", "-o", "BatchMode=yes", "-o", "HostKeyAlias=node", "-o", "ExitOnForwardFailure=yes"]
    options += ["-o", f"UserKnownHostsFile={keys / 'far.known_hosts'}", "-i", str(keys / "far.key")]
    return ["timeout", "10", "ssh", *options, "-p", str(node.ssh_port), f"{USER}@127.0.0.1"]


def reaches_sockets(keys: Path, node: Node) -> list[bool]:
    """Whether the tunnel's key connects to a UNIX socket of the node, and whether it makes one there."""
    there, made = node.place / "there.sock", node.place / "made.sock"
    near = keys.parent / "near.sock"
    for path in (there, made, near):
        path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(there))
        listening.listen()
        ssh = [*with_the_key(keys, node)[2:], "-N"]
        forwards = ["-L", f"{near}:{there}", "-R", f"{made}:127.0.0.1:9", "-o", "ExitOnForwardFailure=no"]
        with subprocess.Popen(["ssh", *forwards, *ssh[1:]], stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(near.exists, 10, "the near end")
                with socket.socket(socket.AF_UNIX) as asking:
                    asking.connect(str(near))
                    reached = bool(select.select([listening], [], [], 3)[0])
                return [reached, made.exists()]
            finally:
                process.terminate()


def may_nothing_else(keys: Path, node: Node) -> bool:
    """Whether the tunnel's key neither runs a command nor opens or listens on another TCP port of the node."""
    ssh = with_the_key(keys, node)
    more = (["echo", "ran"], ["-W", f"127.0.0.1:{node.ssh_port}"], ["-N", "-R", f"127.0.0.1:{free_port()}:127.0.0.1:9"])
    done = [subprocess.run([*ssh, *words], check=False, capture_output=True, text=True) for words in more]
    assert [one.returncode for one in done] == [1, 255, 255], done
    return "ran" not in done[0].stdout and "prohibited" in done[1].stderr and "forwarding failed" in done[2].stderr


def test_the_role(node: Node, tmp_path: Path) -> None:
    if node.process is None:
        node.start()
    node.authorized.write_text("")
    homes = Homes(tmp_path, node)
    try:
        with server("first") as first, server("second") as second:
            result = homes.run(first, "-vvv")
            assert result.rc == 0, result.text[-5000:]
            assert answer(homes.port) == "first"
            key = tmp_path / "home" / "etc" / "secrets" / "tunnel-far.env"
            assert (key.read_text(), key.stat().st_mode & 0o777) == ("LLAMA_API_KEY=the-key-of-the-node\n", 0o600)
            assert "the-key-of-the-node" not in result.text
            rights = f'restrict,port-forwarding,permitopen="127.0.0.1:{first}",permitlisten="127.0.0.1:1"'
            assert node.authorized.read_text().startswith(f'{rights},command="/bin/false" ssh-ed25519 ')
            keys = tmp_path / "home" / "etc" / "tunnels"
            assert may_nothing_else(keys, node)
            assert reaches_sockets(keys, node) == [False, True], "README and role say that sshd cannot limit the latter"
            node.stop()
            node.more = "AllowStreamLocalForwarding no\n"
            node.start()
            assert reaches_sockets(keys, node) == [False, False]
            wait_for(lambda: answer(homes.port) == "first", 20, "the tunnel, which needs none")
            again = homes.run(first)
            assert (again.rc, again.changed) == (0, 0), again.changed_tasks
            pid = homes.box.services()["tunnel-far"]["pid"]
            blob = f"ssh-ed25519 {homes.blob()}"
            neighbour = "restrict ssh-ed25519 AAAAneighbour gpurig tunnel far of home\n"
            node.authorized.write_text(f"restrict,port-forwarding {blob} gpurig tunnel far\n{neighbour}")
            moved = homes.run(second)
            assert moved.rc == 0, moved.text[-5000:]
            wait_for(lambda: answer(homes.port) == "second", 20, "the moved engine")
            assert homes.box.services()["tunnel-far"]["pid"] == pid, "the tunnel was restarted"
            mended = node.authorized.read_text()
            assert mended.startswith(f"{neighbour}{rights.replace(str(first), str(second))},command=")
            assert mended.endswith(f" {blob} gpurig tunnel far of home\n")
            assert mended.count("ssh-ed25519") == 2
            nowhere = homes.run(second, instance="chatt")
            assert nowhere.rc != 0
            assert "Instances there: chat" in nowhere.text
            homes.reached = {"ansible_connection": "ssh", "ansible_port": free_port()}
            silent = homes.run(second, "--limit", "home", ssh_port=free_port())
            assert (silent.rc, silent.changed) == (0, 0), silent.text[-5000:]
            assert "node does not answer now, so the tunnel far stays as it was" in silent.text
            time.sleep(2)  # a running tunnel looks at its target twice a second
            assert answer(homes.port) == "second"
            homes.reached = {}
            limited = homes.run(second, "--limit", "home")
            assert (limited.rc, limited.changed) == (0, 0), limited.changed_tasks
            unbuilt = tmp_path / "away" / "etc" / "secrets" / "chat.env"
            unbuilt.rename(unbuilt.with_suffix(".aside"))
            early = homes.run(second, "--limit", "home")
            assert early.rc != 0
            assert "node has no instance chat yet" in early.text
            assert "without --limit, or with --limit node" in early.text
            unbuilt.with_suffix(".aside").rename(unbuilt)
            other = homes.run(second, host="other")
            assert other.rc == 0, other.text[-5000:]
            wait_for(lambda: answer(homes.port) == "second", 20, "the other node")
            now = node.authorized.read_text().removeprefix(neighbour)
            assert ([now.count("ssh-ed25519"), blob in now], now.split()[2]) == ([1, False], homes.blob())
            removed = homes.play(CHECKOUT / "playbooks" / "uninstall.yml", "-e", '{"rig_tool_args": ["--yes"]}')
            assert removed.rc == 0, removed.text[-5000:]
            assert not listens(homes.port)
            assert (node.authorized.read_text(), list(homes.box.root.rglob("*far*"))) == (neighbour, [])
    finally:
        homes.box.end()
        node.more = ""
