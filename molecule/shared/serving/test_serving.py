# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every host serves, whatever keeps it alive: right answers, to those with the key, on loopback only."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, wait


def test_it_runs_since_its_first_start(rig: Rig, instance: dict[str, Any]) -> None:
    """No restart was needed, and status says so in a table for people and as JSON."""
    table = rig.host.check_output("%s status", rig.tool)
    url = f"http://127.0.0.1:{instance['port']}/v1"
    assert all(word in table for word in (instance["name"], "running", instance["model"], url))
    row = rig.row(instance["name"])
    assert (row["state"], row["restarts"], row["stale"], row["url"]) == ("running", 0, False, url)


def test_it_answers_with_the_key(rig: Rig, instance: dict[str, Any]) -> None:
    """The model is small and still knows that much."""
    assert rig.answers(instance)


@pytest.mark.parametrize("key", ["", "wrong"])
def test_it_answers_nobody_without_the_key(rig: Rig, instance: dict[str, Any], key: str) -> None:
    """Neither with no key nor with another one."""
    messages = [{"role": "user", "content": "Hello"}]
    found, _text = rig.ask(instance["port"], "/v1/chat/completions", key, messages=messages)
    assert found == 401


def test_it_listens_on_loopback_only(rig: Rig, instance: dict[str, Any]) -> None:
    """By what the kernel says, and by trying from outside."""
    port = instance["port"]
    assert rig.host.check_output("ss -Htln sport = :%s | awk '{print $4}'", str(port)) == f"127.0.0.1:{port}"
    address = rig.host.check_output("hostname -I").split()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, port), timeout=5)


def test_the_key_lies_in_one_file(rig: Rig, instance: dict[str, Any]) -> None:
    """And that file is root's alone."""
    folder = rig.host.file(rig.paths["secrets"])
    secrets = rig.host.file(f"{rig.paths['secrets']}/{instance['name']}.env")
    assert (secrets.user, secrets.group, oct(secrets.mode)) == ("root", "root", "0o600")
    assert (folder.user, folder.group, folder.mode & 0o066) == ("root", "root", 0)
    places = "/etc /opt /root /tmp /var /workspace"
    leave_out = "--exclude=*.gguf --exclude=*.safetensors"
    found = rig.host.run(f"grep -rlFs {leave_out} -e %s {places}", rig.key(instance["name"])).stdout.split()
    assert found == [secrets.path]


def test_the_key_is_shown_nowhere(rig: Rig, instance: dict[str, Any]) -> None:
    """Neither by the tool nor in the list of processes."""
    name = instance["name"]
    for command in (f"{rig.tool} status --json", f"{rig.tool} logs {name} --lines 1000", "ps -eww -o args"):
        said = rig.host.check_output(command)
        assert said
        assert rig.key(name) not in said, command


def test_a_killed_engine_comes_back(rig: Rig, instance: dict[str, Any]) -> None:
    """By itself, as another process."""
    before = rig.row(instance["name"])
    rig.host.check_output("kill -9 %s", str(before["pid"]))
    wait("another process", lambda: rig.row(instance["name"])["pid"] not in {before["pid"], 0})
    wait("the model is loaded", lambda: rig.is_healthy(instance), timeout_s=300)
    assert rig.row(instance["name"])["restarts"] == before["restarts"] + 1
    assert rig.answers(instance)
