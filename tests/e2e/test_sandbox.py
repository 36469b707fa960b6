# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The main job on this machine: site.yml with the real engine and the real model, then bad input."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.e2e.sandbox import CHECKOUT, Result, Sandbox, free_port, marked_pids
from ansible_collections.gpurig.llm.tests.hosts import exposure


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


# Listens on every address for as long as it is let, under the name of a rig.
OPEN = """
import socket, time
opened = socket.create_server(("0.0.0.0", 0))
print(opened.getsockname()[1], flush=True)
time.sleep(99)
"""


def test_the_rig_listens_on_loopback_only(rig: Sandbox) -> None:
    """All of its processes, by what the kernel says and by trying from another network namespace.

    With one more process of the rig that listens on every address both find it.
    """
    assert rig.answers()
    assert _exposed(rig) == set()
    environment = {**os.environ, "GPURIG_ROOT": str(rig.root)}
    command = [sys.executable, "-c", OPEN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as opened:
        try:
            assert opened.stdout
            port = int(opened.stdout.readline())
            assert _exposed(rig) == {f"tcp 0.0.0.0:{port}"}
            if os.geteuid() == 0:
                with namespace() as scan:
                    found = scan([rig.port, port])
                assert found
                assert all(ports == [port] for ports in found.values()), found
        finally:
            opened.kill()


def _exposed(rig: Sandbox) -> set[str]:
    """What the rig's processes listen on beyond loopback."""
    inodes = set()
    for pid in marked_pids("GPURIG_ROOT", str(rig.root)):
        descriptors: list[Path] = []
        with contextlib.suppress(OSError):  # it may have ended by now
            descriptors += Path(f"/proc/{pid}/fd").iterdir()
        for descriptor in descriptors:
            with contextlib.suppress(OSError):
                inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    assert inodes
    names = ("tcp", "tcp6", "udp", "udp6")
    return exposure.listeners({name: Path("/proc/net", name).read_text(encoding="ascii") for name in names}, inodes)


@contextlib.contextmanager
def namespace() -> Iterator[Callable[[list[int]], dict[str, list[int]]]]:
    """A network namespace with a way to this machine; yields what tries ports of all our addresses from there."""
    # Four addresses for each run, of the network for tests (RFC 2544); an interface's name has at most 15 letters.
    subnet = ipaddress.ip_address("198.18.0.0") + os.getpid() % 2**15 * 4
    name, here, there = f"rig-{os.getpid()}", subnet + 1, subnet + 2
    steps = [
        f"link add {name} type veth peer name {name}-1 netns {name}",
        f"address add {here}/30 dev {name}",
        f"link set {name} up",
        f"-netns {name} address add {there}/30 dev {name}-1",
        f"-netns {name} link set {name}-1 up",
        f"-netns {name} route add default via {here}",
    ]

    def scan(ports: list[int]) -> dict[str, list[int]]:
        listed = json.loads(ip("-json address show"))
        addresses = [address for _name, address in exposure.addresses(listed) if ":" not in address]
        program = [sys.executable, str(Path(exposure.__file__)), "--ports", ",".join(map(str, ports)), *addresses]
        return dict(json.loads(ip(f"netns exec {name}", *program)))

    ip(f"netns add {name}")
    try:
        for step in steps:
            ip(step)
        yield scan
    finally:
        ip(f"netns delete {name}")


def ip(words: str, *more: str) -> str:
    """What iproute2 says."""
    done = subprocess.run(["ip", *words.split(), *more], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


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
