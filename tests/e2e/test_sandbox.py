# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on this machine: site.yml with the real engine and the real model, then damage and bad input.

GPURIG_E2E_FULL=1 gives each damage a run of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.e2e.sandbox import CHECKOUT, Result, Sandbox, free_port, marked_pids

FULL = bool(os.environ.get("GPURIG_E2E_FULL"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def first(place: Path) -> Iterator[tuple[Sandbox, Result]]:
    """A rig built from nothing; every later test of this file leaves it converged."""
    home = place / "home"
    home.mkdir()
    box = Sandbox(place / "rig", free_port(), home)
    try:
        yield box, box.run()
    finally:
        box.end()


@pytest.fixture
def rig(first: tuple[Sandbox, Result]) -> Sandbox:
    assert first[1].rc == 0, first[1].text[-6000:]
    return first[0]


def test_first_check_run_changes_nothing(place: Path) -> None:
    box = Sandbox(place / "unborn", free_port(), place)
    result = box.run("site.yml", "--check", "--diff")
    assert result.rc == 0, result.text[-4000:]
    assert result.changed > 5
    assert not box.root.exists()


def test_the_run_ends_with_an_answer(first: tuple[Sandbox, Result]) -> None:
    box, result = first
    assert result.rc == 0, result.text[-6000:]
    assert "downloading about 93 MB" in result.text
    report = result.text[result.text.index("first line of the answer") :]
    assert "Paris" in report
    assert f"http://127.0.0.1:{box.port}/v1" in report


def test_the_second_run_changes_nothing(rig: Sandbox) -> None:
    before = rig.services()["chat"]["pid"]
    result = rig.run()
    assert (result.rc, result.changed) == (0, 0), result.changed_tasks
    assert rig.services()["chat"]["pid"] == before
    checked = rig.run("site.yml", "--check")
    assert (checked.rc, checked.changed) == (0, 0), checked.changed_tasks


def test_the_api_is_private(rig: Sandbox) -> None:
    assert rig.answers()
    assert rig.ask("Who are you?", key="wrong")[0] == 401
    address = _own_address()
    if address:
        with pytest.raises(OSError, match="refused"), socket.create_connection((address, rig.port), timeout=5):
            pass
    key = rig.key()
    command_lines = b"".join(path.read_bytes() for path in _command_lines())
    assert key.encode() not in command_lines
    secrets = rig.root / "etc" / "secrets" / "chat.env"
    assert secrets.stat().st_mode & 0o777 == 0o600
    for path in (rig.root / "etc").rglob("*"):
        if path.is_file() and path != secrets:
            assert key.encode() not in path.read_bytes(), path
    assert key.encode() not in (rig.root / "log" / "chat.log").read_bytes()


def _own_address() -> str:
    """Return an address of this machine that is not loopback; empty when it has none. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def _command_lines() -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "cmdline").exists():
            yield entry / "cmdline"


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
    "launcher-edited": ("a", _at("envs/llama_cpp/llama_server.py", _edit), "Put the launcher beside the environment"),
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
    again = rig.run()
    assert (again.rc, again.changed) == (0, 0), again.changed_tasks


def test_a_killed_engine_comes_back_by_itself(rig: Sandbox) -> None:
    before = rig.services()["chat"]["pid"]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (_listens(rig.port) and rig.answers()):
        time.sleep(0.2)
    seen = rig.services()["chat"]
    assert (seen["state"], seen["pid"] != before) == ("running", True)
    assert rig.answers()
    assert seen["restarts"] >= 1


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def test_a_removed_instance_is_stopped(rig: Sandbox) -> None:
    result = rig.run(rig_instances=[])
    assert result.rc == 0, result.text[-4000:]
    assert "Stop and remove a service that is no longer wanted" in result.changed_tasks
    assert not rig.services()
    assert not _listens(rig.port)
    assert (rig.root / "models" / "smollm2").is_dir()
    back = rig.run()
    assert back.rc == 0, back.text[-4000:]
    assert rig.answers()


def test_a_changed_port_moves_the_server(rig: Sandbox) -> None:
    old, rig.port = rig.port, free_port()
    result = rig.run()
    assert result.rc == 0, result.text[-4000:]
    assert rig.answers()
    assert not _listens(old)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        pytest.param({"rig_instances": [{"name": "chat", "model": "smollm2", "prot": 1}]}, ["prot", "port"], id="key"),
        pytest.param({"rig_instnces": []}, ["rig_instnces", "rig_instances"], id="variable"),
        pytest.param(
            {"rig_instances": [{"name": name, "model": "smollm2", "port": 8111} for name in ("one", "two")]},
            ["8111", "rig_instances[0].port"],
            id="two-on-one-port",
        ),
        pytest.param(
            {"rig_instances": [{"name": "chat", "model": "gone"}]}, ["gone", "rig_models"], id="no-such-model"
        ),
        pytest.param({"rig_root": "/proc/gpurig"}, ["rig_root", "/proc"], id="root-not-writable"),
        pytest.param({"rig_kind": "metal"}, ["systemd", "rig_kind"], id="capability-contradicted"),
    ],
)
def test_bad_input_changes_nothing(rig: Sandbox, variables: dict[str, object], words: list[str]) -> None:
    if variables.get("rig_kind") == "metal" and Path("/run/systemd/system").exists():
        pytest.skip("this machine runs systemd, so metal is not contradicted")
    before = rig.snapshot()
    result = rig.run("site.yml", **variables)
    assert result.rc != 0
    assert result.changed <= 0, result.changed_tasks
    failure = result.text[result.text.index("fatal") if "fatal" in result.text else 0 :]
    for word in words:
        assert word in failure, failure[:3000]
    assert rig.snapshot() == before
    assert rig.answers()


def test_a_port_of_somebody_else_is_named(rig: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        instance = {"name": "chat", "model": "smollm2", "engine": "llama_cpp", "device": "cpu", "port": port}
        result = rig.run(rig_instances=[instance])
    assert result.rc != 0
    assert result.changed == 0
    assert f"pid {os.getpid()}" in result.text
    assert str(port) in result.text


def test_a_model_without_what_its_format_needs_is_refused(rig: Sandbox, tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model" * 100)
    models = {"broken": {"source": "local", "format": "gguf", "local": {"path": str(fake)}}}
    instance = {"name": "chat", "model": "broken", "engine": "llama_cpp", "device": "cpu", "port": rig.port}
    result = rig.run(rig_models=models, rig_instances=[instance])
    assert result.rc != 0
    assert "GGUF" in result.text
    assert rig.answers()


def test_an_engine_that_dies_shows_its_own_last_error(rig: Sandbox) -> None:
    instance = {"name": "chat", "model": "smollm2", "engine": "llama_cpp", "device": "cpu", "port": rig.port}
    result = rig.run(rig_instances=[{**instance, "flags": {"bogus-flag": 1}}])
    assert result.rc != 0
    assert "unrecognized arguments: --bogus-flag 1" in result.text
    assert rig.run().rc == 0
    assert rig.answers()


def test_orphans_of_a_deleted_root_are_ended(rig: Sandbox) -> None:
    pids = marked_pids("GPURIG_ROOT", str(rig.root))
    assert len(pids) >= 2
    models = rig.root.with_name("models-kept")
    (rig.root / "models").rename(models)
    shutil.rmtree(rig.root)
    assert _listens(rig.port)
    rig.root.mkdir()
    models.rename(rig.root / "models")
    result = rig.run()
    assert result.rc == 0, result.text[-6000:]
    assert "Make sure that every instance can have its port" in result.changed_tasks
    assert not set(pids) & set(marked_pids("GPURIG_ROOT", str(rig.root)))
    assert rig.answers()


def test_stop_start_uninstall_and_again(rig: Sandbox) -> None:
    assert rig.run("playbooks/stop.yml").rc == 0
    assert not _listens(rig.port)
    assert not marked_pids("GPURIG_ROOT", str(rig.root))
    assert rig.run("playbooks/status.yml").rc == 0
    assert rig.run("playbooks/start.yml").rc == 0
    assert rig.run().rc == 0
    assert rig.answers()
    removed = rig.run("playbooks/uninstall.yml", rig_tool_args=["--yes"])
    assert removed.rc == 0, removed.text[-3000:]
    assert not marked_pids("GPURIG_ROOT", str(rig.root))
    assert sorted(path.name for path in rig.root.iterdir()) == ["models"]
    assert rig.run().rc == 0
    assert rig.answers()


def test_both_inventories_can_be_listed() -> None:
    for inventory in ("local", "homelab"):
        for question in ("--syntax-check", "--list-tasks"):
            box = Sandbox(Path("/nowhere"), 1, Path.home())
            command = [*box.command()[:3], "-i", str(CHECKOUT / "inventories" / inventory), question]
            done = subprocess.run(command, env=box.environment(), capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
