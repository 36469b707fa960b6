# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each managed file, link and program is damaged; the next run reports it and repairs it.

GPURIG_E2E_FULL=1 gives each damage a run of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.e2e.sandbox import FULL, Sandbox


def _edit(path: Path) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n# edited\n")


def _only(pattern: str) -> Callable[[Sandbox], Path]:
    def find(box: Sandbox) -> Path:
        found = sorted(box.root.glob(pattern))
        assert len(found) == 1, (pattern, found)
        return found[0]

    return find


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0xFF]))


def _kill_service(box: Sandbox) -> None:
    os.kill(box.services()["chat"]["pid"], signal.SIGKILL)


def _kill_supervisor(box: Sandbox) -> None:
    os.kill(int((box.root / "run" / "supervisord.pid").read_text()), signal.SIGKILL)


def _at(pattern: str, action: Callable[[Path], object]) -> Callable[[Sandbox], None]:
    find = _only(pattern)

    def damage(box: Sandbox) -> None:
        action(find(box))

    return damage


# name -> (what is done, task that must report a change). Groups share a run; FULL gives each its own.
DAMAGE: dict[str, tuple[str, Callable[[Sandbox], None], str]] = {
    "uv-binary-truncated": ("a", _at("uv/*.*.*/bin/uv", _truncate), "Install uv"),
    "tool-env-python-gone": (
        "a",
        _at("envs/tool/current/bin/python", Path.unlink),
        "Build the environment and switch to it",
    ),
    "tool-file-edited": ("a", _at("tool/current/gpurig/cli.py", _edit), "Install the tool"),
    "model-truncated": (
        "a",
        _at("models/smollm2/**/*.gguf", _truncate),
        "Fetch what is missing and mend what is damaged",
    ),
    "launcher-edited": ("a", _at("envs/llama_cpp/llama_server-*.py", _edit), "Put the launcher beside the environment"),
    "program-edited": ("a", _at("etc/supervisor.d/chat.conf", _edit), "Bring the service to its state"),
    "uv-link-gone": ("b", _at("uv/current", Path.unlink), "Install uv"),
    "wrapper-gone": ("b", _at("bin/gpurig", Path.unlink), "Install the tool"),
    "engine-library-truncated": (
        "b",
        _at("envs/llama_cpp/current/lib/**/xllamacpp*.so", _truncate),
        "Build the environment and switch to it",
    ),
    "secrets-gone": ("b", _at("etc/secrets/chat.env", Path.unlink), "Generate each instance's API key"),
    "record-gone": ("b", _at("etc/services/chat.json", Path.unlink), "Bring the service to its state"),
    "model-byte-flipped": (
        "b",
        _at("models/smollm2/**/*.gguf", _flip),
        "Fetch what is missing and mend what is damaged",
    ),
    "host-json-broken": ("c", _at("etc/host.json", _truncate), "Install the tool"),
    "env-link-gone": ("c", _at("envs/llama_cpp/current", Path.unlink), "Build the environment and switch to it"),
    "model-record-gone": (
        "c",
        _at("models/smollm2/.gpurig.json", Path.unlink),
        "Fetch what is missing and mend what is damaged",
    ),
    "secrets-readable": (
        "c",
        _at("etc/secrets/chat.env", lambda path: path.chmod(0o644)),
        "Generate each instance's API key",
    ),
    "supervisor-conf-edited": ("c", _at("etc/supervisord.conf", _edit), "Install the tool"),
    "supervisor-killed": ("d", _kill_supervisor, "Make sure that every instance can have its port"),
    "tool-link-gone": ("d", _at("tool/current", Path.unlink), "Install the tool"),
    "program-gone": ("e", _at("etc/supervisor.d/chat.conf", Path.unlink), "Bring the service to its state"),
    "socket-gone": ("e", _at("run/supervisor.sock", Path.unlink), "Make sure that every instance can have its port"),
}
GROUPS = sorted(DAMAGE) if FULL else sorted({group for group, _damage, _task in DAMAGE.values()})


@pytest.mark.parametrize("group", GROUPS)
def test_damage_is_reported_and_repaired(rig: Sandbox, group: str) -> None:
    wanted = rig.snapshot()
    chosen = {name: entry for name, entry in DAMAGE.items() if group in (name, entry[0])}
    # What takes the supervisor or the tool away comes last, or the other damages could not look around.
    for name in sorted(chosen, key=lambda name: ("record" in name, "secrets" in name, name)):
        chosen[name][1](rig)
    result = rig.run()
    assert result.rc == 0, result.text[-6000:]
    missing = {name: task for name, (_group, _damage, task) in chosen.items() if task not in result.changed_tasks}
    assert not missing, (missing, result.changed_tasks)
    assert rig.snapshot() == wanted
    assert rig.answers()
    if FULL or group == GROUPS[-1]:
        again = rig.run()
        assert (again.rc, again.changed) == (0, 0), again.changed_tasks
