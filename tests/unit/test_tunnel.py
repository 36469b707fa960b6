# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tunnel's program says and asks; that it works is shown in tests/e2e/test_tunnel.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "roles" / "tunnel" / "files" / "tunnel.py"
TARGET = {
    "host": "pod1",
    "address": "192.0.2.7",
    "ssh_port": "40022",
    "user": "root",
    "remote_port": "8000",
    "local_port": "18000",
    "identity": "/state/far.key",
    "known_hosts": "/state/far.known_hosts",
}


@pytest.fixture(scope="module")
def tunnel() -> Any:
    spec = importlib.util.spec_from_file_location("tunnel_program", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The lines of OpenSSH 9.2.
CASES = {
    "changed-key": (
        ["@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @", "Host key verification failed."],
        ["another host key", "rig_tunnels", "pod1 (192.0.2.7 port 40022)"],
    ),
    "unknown-key": (["Host key verification failed."], ["another host key"]),
    "denied": (["root@192.0.2.7: Permission denied (publickey)."], ["refuses the tunnel's key for root"]),
    "port-taken": (
        ["bind [127.0.0.1]:18000: Address already in use", "Could not request local forwarding."],
        ["port 18000 of this host is taken"],
    ),
    "refused": (["ssh: connect to host 192.0.2.7 port 40022: Connection refused"], ["cannot be reached", "refused"]),
    "timeout": (["ssh: connect to host 192.0.2.7 port 40022: Connection timed out"], ["cannot be reached"]),
    "name": (["ssh: Could not resolve hostname pod1: Name or service not known"], ["cannot be reached"]),
    "silent": (["Timeout, server 192.0.2.7 not responding."], ["ended: Timeout, server 192.0.2.7 not responding."]),
    "nothing": ([], ["ssh said nothing"]),
}


@pytest.mark.parametrize("name", CASES)
def test_why_a_connection_ended(tunnel: Any, name: str) -> None:
    said, words = CASES[name]
    text = tunnel.explain([f"{line}\n" for line in said], TARGET)
    for word in words:
        assert word in text


def test_the_command_pins_the_host_and_binds_loopback(tunnel: Any) -> None:
    argv = tunnel.ssh_argv(TARGET)
    assert argv[:2] == ["ssh", "-F"]
    assert argv[-4:] == ["-L", "127.0.0.1:18000:127.0.0.1:8000", "--", "root@192.0.2.7"]
    for option in (
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=/state/far.known_hosts",
        "GlobalKnownHostsFile=/dev/null",
        "HostKeyAlias=pod1",
        "ExitOnForwardFailure=yes",
        "ServerAliveInterval=5",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
    ):
        assert argv[argv.index(option) - 1] == "-o"


def test_a_target_that_cannot_be_used_is_named(tunnel: Any, tmp_path: Path) -> None:
    path = tmp_path / "far.json"
    for text in (None, "{", '{"host": "pod1"}', "[]"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(tunnel.TargetError, match=r"far\.json.*Run the playbook again"):
            tunnel.read_target(path)
    path.write_text(json.dumps({**TARGET, "ssh_port": 40022}))
    assert tunnel.read_target(path) == TARGET
