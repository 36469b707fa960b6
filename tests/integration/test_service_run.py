# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module service_run under a real supervisord with the real tool, and under a recording systemctl."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import cli, procfs, service_spec, services, systemd
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import Program
from ansible_collections.gpurig.llm.plugins.modules import service_run
from ansible_collections.gpurig.llm.tests.integration.installed import SLEEPER, Rig, installed, wait_for

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STEADY_S", 0.1)
    monkeypatch.setattr(services, "POLL_S", 0.02)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with installed() as made:
        yield made


def status(rig: Rig, name: str = "chat") -> dict[str, Any]:
    return dataclasses.asdict(services.service_state(rig.host, name))


def command(pid: int) -> str:
    process = procfs.read_process(pid)
    return process.command if process else ""


def test_from_nothing_to_running_to_gone(rig: Rig, run_module: RunModule) -> None:
    args = {"name": "chat", "rig": rig.facts}

    foreseen = run_module("service_run", args, check=True)
    assert foreseen["changed"]
    assert all(reason.startswith("would start:") for reason in foreseen["reasons"])
    failed = run_module("service_run", args)
    assert "chat.json" in failed["msg"]
    assert "role service" in failed["msg"]

    rig.write("chat", SLEEPER)
    foreseen = run_module("service_run", args, check=True)
    assert foreseen["reasons"] == ["supervisord does not run", "it is stopped"]
    assert rig.supervisor().daemon_pid() is None, "check mode started something"

    done = run_module("service_run", args)
    assert done["changed"], done
    assert done["reasons"] == foreseen["reasons"]
    assert done["diff"] == foreseen["diff"]
    assert done["service_state"] == "running"
    assert command(done["pid"]) == "/bin/sleep 1000", "the supervised process is the engine itself"
    assert rig.supervisor().programs()["chat"].pid == done["pid"]
    assert abs(done["started_at_s"] - time.time()) < 30

    again = run_module("service_run", args)
    assert (again["changed"], again["reasons"], again["pid"]) == (False, [], done["pid"])
    assert again["diff"] == [{"before": "", "after": ""}]
    assert rig.run(check=True)["reasons"] == []


def test_stopped_and_absent(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    pid = rig.run()["pid"]
    assert rig.run(state="stopped", check=True)["reasons"] == ["it is running"]
    assert procfs.read_process(pid) is not None
    assert rig.run(state="stopped")["reasons"] == ["it is running"]
    assert procfs.read_process(pid) is None
    assert rig.run(state="stopped")["reasons"] == []
    assert rig.run()["reasons"] == ["it is stopped"]

    (rig.root / "data").write_text("kept")
    foreseen = rig.run(state="absent", check=True)
    assert Path(rig.host.record("chat")).exists()
    assert rig.run(state="absent")["reasons"] == foreseen["reasons"]
    assert [path.name for path in (rig.root / "etc").rglob("*chat*")] == []
    assert [path.name for path in (rig.root / "run").glob("chat*")] == []
    assert rig.supervisor().program("chat") is None
    assert (rig.root / "log" / "chat.log").exists()
    assert (rig.root / "data").read_text() == "kept"
    assert rig.run(state="absent")["reasons"] == []


def test_absent_forgets_what_was_in_memory_alone(rig: Rig) -> None:
    folder = Path("/dev/shm", f"gpurig-absent-test-{os.getpid()}")
    rig.write("page", SLEEPER, memory_dir=str(folder))
    folder.mkdir()
    try:
        (folder / "chats.db").write_text("a chat")
        assert f"{folder} exists" in rig.run("page", state="absent", check=True)["reasons"]
        assert folder.exists()
        rig.run("page", state="absent")
        assert not folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_absent_takes_what_a_killed_daemon_left(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    engine, daemon = rig.run()["pid"], rig.supervisor().daemon_pid()
    os.kill(daemon or 0, signal.SIGKILL)
    wait_for(lambda: procfs.read_process(daemon or 0) is None, "the daemon is dead")
    assert rig.run(state="absent", check=True)["reasons"][0] == "it is running"
    rig.run(state="absent")
    assert procfs.read_process(engine) is None
    assert rig.supervisor().daemon_pid() is None, "a daemon was started to remove something"
    assert rig.run(state="absent")["reasons"] == []


def test_an_edited_input_restarts_with_its_name_as_reason(rig: Rig) -> None:
    setting, other = rig.root / "setting", rig.root / "other"
    secret = rig.root / "etc" / "secrets" / "chat.env"
    for path in (setting, other, secret):
        path.write_text("API_KEY=one\n")
    (rig.root / "envs" / "engine" / "aaaa").mkdir(parents=True)
    link = rig.root / "envs" / "engine" / "current"
    link.symlink_to("aaaa")
    (link / "run").symlink_to("/bin/sleep")
    more = {"inputs": [str(setting)], "secrets_file": str(secret)}
    argv = [f"{link}/run", "1000"]
    rig.write("chat", argv, **more)
    pids = [rig.run()["pid"]]
    assert rig.run()["reasons"] == []

    def edit_spec() -> None:
        rig.write("chat", argv, start_timeout_s=77, **more)

    def switch_environment() -> None:
        shutil.copytree(link.parent / "aaaa", link.parent / "bbbb", symlinks=True)
        link.unlink()
        link.symlink_to("bbbb")

    changes: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: setting.write_text("two"), [f"{setting} changed"]),
        (lambda: secret.write_text("API_KEY=two\n# rotated"), [f"{secret} changed"]),
        (switch_environment, [f"{link} changed"]),
        (edit_spec, [f"{rig.host.record('chat')} changed"]),
    ]
    for change, reasons in changes:
        change()
        assert status(rig)["stale"] is True
        assert status(rig)["why_stale"] == reasons
        assert rig.run(check=True)["reasons"] == reasons
        done = rig.run()
        assert done["reasons"] == reasons
        assert done["pid"] not in pids
        assert rig.run()["reasons"] == []
        assert status(rig)["stale"] is False
        pids.append(done["pid"])
    other.write_text("not an input")
    assert rig.run()["reasons"] == []


def test_a_changed_program_file_is_read_even_when_the_process_restarted_meanwhile(rig: Rig) -> None:
    rig.write("chat", ["/bin/sleep", "1000"])
    rig.write("code", SLEEPER)
    rig.run()
    code = rig.run("code")["pid"]
    rig.write("chat", ["/bin/sleep", "2000"])
    os.kill(rig.run(check=True)["pid"], signal.SIGKILL)
    # supervisord starts the old command again, whose record then speaks of the new files.
    wait_for(lambda: not status(rig)["stale"] and status(rig)["state"] == "running", "a restart by supervisord")
    file = rig.host.program_file("chat")
    assert rig.run(check=True)["reasons"] == [f"supervisord has not read the changed {file}"]
    done = rig.run()
    assert command(done["pid"]) == "/bin/sleep 2000"
    assert rig.run()["reasons"] == []
    assert rig.run("code")["pid"] == code, "another service was touched"


def test_a_killed_engine_comes_back_by_itself(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    first = rig.run()["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: status(rig)["pid"] not in {0, first} and status(rig)["state"] == "running", "a new process")
    assert status(rig)["restarts"] == 1
    assert rig.run()["reasons"] == []


def test_a_killed_daemon_is_replaced_and_its_engine_with_it(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    engine, daemon = rig.run()["pid"], rig.supervisor().daemon_pid()
    assert daemon
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: procfs.read_process(daemon) is None, "the daemon is dead")
    seen = status(rig)
    assert (seen["state"], seen["pid"]) == ("running", engine)
    assert "supervisord is gone" in seen["note"]

    reasons = rig.run(check=True)["reasons"]
    assert reasons[0] == "supervisord does not run"
    assert f"(pid {engine}," in reasons[1]
    assert procfs.read_process(engine) is not None
    done = rig.run()
    assert done["reasons"] == reasons
    assert procfs.read_process(engine) is None, "the old engine still holds its port"
    assert rig.supervisor().programs()["chat"].pid == done["pid"]
    assert rig.run()["reasons"] == []


def test_a_deleted_root_leaves_nothing_behind_after_the_next_run(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    old = [rig.run()["pid"], rig.supervisor().daemon_pid()]
    shutil.rmtree(rig.root)
    rig.root.mkdir()
    rig.install()
    rig.write("chat", SLEEPER)
    done = rig.run()
    assert done["state"] == "running"
    assert [procfs.read_process(pid) for pid in old if pid] == [None, None]
    own = [process for process in procfs.processes() if process.root == str(rig.root)]
    assert sorted(process.pid for process in own) == sorted([done["pid"], rig.supervisor().daemon_pid() or 0])


def test_a_crash_loop_ends_at_the_budget_and_a_run_gives_a_fresh_one(rig: Rig) -> None:
    flag = rig.root / "healthy"
    argv = ["/bin/sh", "-c", f"test -e '{flag}' && exec sleep 1000; echo engine is broken; exit 3"]
    rig.write("chat", argv, restart={"starts": 3, "window_s": 600, "delay_s": 0})
    with pytest.raises(service_run.RunError, match=r"chat: is (budget spent|starting) after its start"):
        rig.run()
    wait_for(lambda: status(rig)["state"] == "budget_spent", "the end of the budget")
    seen = status(rig)
    assert (seen["state"], seen["pid"], seen["restarts"]) == ("budget_spent", 0, 2)
    log = Path(seen["log_path"]).read_text()
    assert log.count("engine is broken") == 3
    assert log.count("3 starts within 600 s, the restart budget is spent") == 1
    assert "gpurig logs chat" in log
    text = subprocess.run([f"{rig.root}/bin/gpurig", "status"], capture_output=True, text=True, check=True).stdout
    assert "budget spent" in text
    time.sleep(0.3)
    assert status(rig)["state"] == "budget_spent", "it was started again"

    flag.touch()
    done = rig.run()
    assert done["reasons"] == ["it is budget spent"]
    assert (done["state"], status(rig)["restarts"]) == ("running", 0)


def test_a_process_without_our_record_is_started_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.write("chat", SLEEPER)
    first = rig.run()["pid"]
    record = json.loads(Path(rig.host.run_record("chat")).read_text())
    for damage in ({"pid": 1}, {"boot_id": "another boot"}, {"start_ticks": 1}):
        Path(rig.host.run_record("chat")).write_text(json.dumps({**record, **damage}))
        monkeypatch.setattr(service_run, "STARTING_S", 0.1)
        assert rig.run(check=True)["reasons"] == ["it is starting"], damage
    Path(rig.host.run_record("chat")).write_text("{broken")
    assert rig.run()["reasons"] == ["it is starting"]
    assert rig.run()["pid"] != first


def test_an_engine_that_ends_at_once_is_not_taken_for_a_running_one(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "STEADY_S", 2.0)
    more = {"restart": {"starts": 1, "window_s": 600, "delay_s": 0}}
    rig.write("chat", ["/bin/sh", "-c", "sleep 0.5; echo wrong flag; exit 1"], **more)
    with pytest.raises(service_run.RunError, match=r"chat: is (budget spent|starting) after its start"):
        rig.run()


def test_the_tool_on_its_way_to_the_engine_is_not_the_engine(rig: Rig) -> None:
    for words, expected in ((["exec"], False), (["metrics"], True)):
        process = subprocess.Popen([sys.executable, "-c", "input()", f"{rig.root}/tool/current", *words], stdin=-1)
        try:
            ticks = services.start_ticks(process.pid)
            run = services.Run(process.pid, time.time(), services.boot_id(), ticks, "", {}, ())
            wait_for(lambda pid=process.pid: "tool/current" in command(pid), "its command line")
            assert services.is_engine(rig.host, run, process.pid) is expected
        finally:
            process.kill()
            process.communicate()


def test_pending_changes_show_in_check_mode_only(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    rig.run()
    assert rig.run(check=True, pending=True)["reasons"] == ["its files change in this run"]
    assert rig.run(pending=True)["reasons"] == []


def test_files_given_as_texts_are_written_and_their_change_restarts(rig: Rig, run_module: RunModule) -> None:
    def texts(argv: list[str]) -> dict[str, Any]:
        spec = {"name": "chat", "argv": argv}
        program = service_spec.render(spec, "supervisord", rig.paths)
        record = service_spec.to_json(spec)
        return {"name": "chat", "rig": rig.facts, "record_text": record, "program_text": program}

    files = [rig.host.record("chat"), rig.host.program_file("chat")]
    foreseen = run_module("service_run", texts(SLEEPER), check=True)
    assert foreseen["changed"]
    assert [Path(path).exists() for path in files] == [False, False]
    done = run_module("service_run", texts(SLEEPER))
    assert done["reasons"][:2] == [f"{path} is new" for path in files]
    assert [part.get("after_header") for part in done["diff"]] == [*files, None]
    assert not run_module("service_run", texts(SLEEPER))["changed"]

    other = texts(["/bin/sleep", "2000"])
    foreseen = run_module("service_run", other, check=True)
    assert foreseen["reasons"] == [*(f"{path} changes" for path in files), "its files change in this run"]
    assert [part.get("after") for part in foreseen["diff"][:2]] == [other["record_text"], other["program_text"]]
    assert foreseen["pid"] == done["pid"]
    again = run_module("service_run", other)
    assert command(again["pid"]) == "/bin/sleep 2000"
    assert again["reasons"][:2] == [f"{path} changes" for path in files]
    assert not run_module("service_run", other)["changed"]


def test_nothing_is_written_or_stopped_for_a_port_that_another_has(rig: Rig, run_module: RunModule) -> None:
    rig.write("chat", SLEEPER)
    pid, kept = rig.run()["pid"], Path(rig.host.record("chat")).read_text()
    other = {"record_text": service_spec.to_json({"name": "chat", "argv": ["/bin/false"]}), "program_text": "x"}
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        port = theirs.getsockname()[1]
        args = {"name": "chat", "rig": rig.facts, "port": port, **other}
        failed = run_module("service_run", args)
        assert f"chat: port {port} is taken by" in failed["msg"], failed
        assert failed["untouched"] is True
        assert run_module("service_run", args, check=True)["changed"], "whoever has it may be gone by then"
    assert (status(rig)["pid"], Path(rig.host.record("chat")).read_text()) == (pid, kept)
    assert rig.run(port=port)["reasons"] == []


def test_who_outlived_its_supervisor_is_ended_before_the_start(rig: Rig, run_module: RunModule) -> None:
    rig.write("chat", SLEEPER)
    environment = {**os.environ, "GPURIG_ROOT": str(rig.root), "GPURIG_SERVICE": "chat"}
    with subprocess.Popen(["/bin/sleep", "3000"], env=environment) as orphan:
        try:
            done = run_module("service_run", {"name": "chat", "rig": rig.facts, "port": 0})
            assert [reason for reason in done["reasons"] if "nobody looked after" in reason], done
            assert orphan.wait(10) == -signal.SIGTERM
        finally:
            orphan.kill()
    assert not run_module("service_run", {"name": "chat", "rig": rig.facts, "port": 0})["changed"]


def test_a_oneshot_that_did_its_work_is_left_alone(rig: Rig) -> None:
    rig.write("once", ["/bin/sh", "-c", f"echo ran >> '{rig.root}/ran'"], oneshot=True)
    assert rig.run("once")["state"] == "finished"
    assert rig.run("once")["reasons"] == []
    assert (rig.root / "ran").read_text() == "ran\n"
    rig.write("once", ["/bin/sh", "-c", f"sleep 0.5; echo again >> '{rig.root}/ran'"], oneshot=True)
    assert rig.run("once")["state"] == "finished"
    assert (rig.root / "ran").read_text() == "ran\nagain\n"
    rig.write("once", ["/bin/false"], oneshot=True)
    with pytest.raises(service_run.RunError, match="once: is failed"):
        rig.run("once")
    assert rig.run("once", check=True)["reasons"] == ["it is failed"]


def test_cards_of_the_role_that_changed_are_a_reason(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    rig.run()
    run = services.read_run(rig.host, "chat")
    assert run
    wanted = services.Origin(run.fingerprint, run.parts, ("GPU-2",))
    assert services.differences(run, wanted) == ["its cards changed from [] to ['GPU-2']"]


def test_a_start_that_cannot_be_is_explained(rig: Rig, run_module: RunModule) -> None:
    rig.write("chat", SLEEPER, secrets_file=f"{rig.root}/etc/secrets/none.env")
    failed = run_module("service_run", {"name": "chat", "rig": rig.facts})
    assert "chat: is failed after its start" in failed["msg"]
    assert "none.env: No such file" in failed["msg"]
    assert any("none.env" in line for line in failed["log_tail"])
    failed = run_module("service_run", {"name": "../etc", "rig": rig.facts})
    assert "needed: a to z" in failed["msg"]
    Path(rig.paths["config"], "host.json").unlink()
    rig.supervisor().shutdown()
    failed = run_module("service_run", {"name": "chat", "rig": rig.facts})
    assert "Python of the tool is missing" in failed["msg"]


# --- systemd, which cannot run here: a stand-in that records every order. Its answers are composed by hand in the form
# of `systemctl show` of systemd 252 (NAME=VALUE lines), and its `start` runs the unit's ExecStart for real.

SYSTEMCTL = r"""#!PYTHON -IS
import json, os, pathlib, shlex, signal, subprocess, sys, time
here = pathlib.Path(__file__).parent
units, state_file = pathlib.Path(os.environ["UNITS"]), here / "state.json"
state = json.loads(state_file.read_text()) if state_file.exists() else {}
verb, words = sys.argv[1], [word for word in sys.argv[2:] if not word.startswith("--")]
if verb != "show":
    with (here / "orders").open("a") as stream:
        stream.write(" ".join(sys.argv[1:]) + "\n")
if (here / "broken").exists():
    sys.exit("Failed to connect to bus: No such file or directory")
def text(unit):
    path = units / unit
    return path.read_text() if path.exists() else None
def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
def known(unit):
    if unit not in state and text(unit) is not None:
        state[unit] = {"loaded": text(unit), "pid": 0, "enabled": False, "up": False, "result": "success"}
    return state.get(unit)
code = 0
if verb == "daemon-reload":
    for unit in list(state):
        state[unit]["loaded"] = text(unit)
        if state[unit]["loaded"] is None and not alive(state[unit]["pid"]):
            del state[unit]
for unit in words:
    entry = known(unit)
    if verb == "show":
        entry = entry or {"loaded": None, "pid": 0, "enabled": False, "up": False, "result": "success"}
        up = alive(entry["pid"])
        failed = entry["up"] and not up or entry["result"] != "success"
        active = "active" if up else "failed" if failed else "inactive"
        print("Result=" + ("exit-code" if failed and entry["result"] == "success" else entry["result"]))
        print("NRestarts=0\nMainPID=%d\nExecMainStatus=%d" % (entry["pid"] if up else 0, 3 if failed else 0))
        print("LoadState=" + ("not-found" if entry["loaded"] is None else "loaded"))
        print("ActiveState=%s\nSubState=%s" % (active, "running" if up else "failed" if failed else "dead"))
        print("UnitFileState=" + ("" if entry["loaded"] is None else "enabled" if entry["enabled"] else "disabled"))
        print("NeedDaemonReload=" + ("yes" if entry["loaded"] != text(unit) and entry["loaded"] else "no"))
    elif entry is None:
        print(f"Failed to {verb} {unit}: Unit {unit} not loaded.", file=sys.stderr)
        code = 5
    elif verb in ("enable", "disable"):
        entry["enabled"] = verb == "enable"
    elif verb == "start":
        command = next(l for l in entry["loaded"].splitlines() if l.startswith("ExecStart=")).partition("=")[2]
        with (here / f"{unit}.journal").open("ab") as log:
            child = subprocess.Popen(shlex.split(command), stdout=log, stderr=log, start_new_session=True)
        entry.update(pid=child.pid, up=True, result="success")
    elif verb == "stop":
        if alive(entry["pid"]):
            os.kill(entry["pid"], signal.SIGTERM)
            while alive(entry["pid"]):
                time.sleep(0.01)
        entry.update(up=False, pid=0)
    elif verb == "reset-failed":
        entry.update(up=alive(entry["pid"]), result="success")
state_file.write_text(json.dumps(state))
sys.exit(code)
"""
JOURNALCTL = """#!/bin/sh
echo "journalctl $*" >>"$(dirname "$0")/orders"
while [ $# -gt 0 ]; do [ "$1" = --unit ] && unit=$2; [ "$1" = --lines ] && lines=$2; shift; done
tail -n "$lines" "$(dirname "$0")/$unit.journal"
"""
UNIT = "gpurig-chat.service"


class SystemdRig(Rig):
    """A rig whose services are under the stand-in."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "systemd")
        self.programs = root / "programs"
        self.units = root / "units"

    def install(self) -> None:
        super().install()
        self.programs.mkdir(exist_ok=True)
        self.units.mkdir(exist_ok=True)
        host_json = Path(self.paths["config"], "host.json")
        host_json.write_text(json.dumps({**json.loads(host_json.read_text()), "unit_dir": str(self.units)}))
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
            (self.programs / name).write_text(text.replace("PYTHON", str(Path(sys.executable).resolve())))
            (self.programs / name).chmod(0o755)

    def write(self, name: str, argv: list[str], **more: Any) -> dict[str, Any]:
        spec = {"name": name, "argv": argv, "stop_timeout_s": 5, **more}
        Path(self.host.record(name)).write_text(service_spec.to_json(spec))
        command = shlex.join([f"{self.root}/bin/gpurig", "exec", "--name", name, "--", *argv])
        self.units.joinpath(f"gpurig-{name}.service").write_text(f"[Service]\nExecStart={command}\n")
        return spec

    def orders(self) -> list[str]:
        """What was ordered since the last call."""
        path = self.programs / "orders"
        found = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return [line for line in found if not line.startswith("journalctl")]


@pytest.fixture
def systemd_rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemdRig]:
    made = SystemdRig(Path(tempfile.mkdtemp(prefix="rig ", dir="/tmp")))
    made.install()
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setenv("UNITS", str(made.units))
    yield made
    made.end()
    shutil.rmtree(made.root, ignore_errors=True)


def test_systemd_from_nothing_to_gone(systemd_rig: SystemdRig) -> None:
    rig = systemd_rig
    rig.write("chat", SLEEPER)
    assert rig.run(check=True)["reasons"] == ["it is stopped", "it does not start with the host"]
    assert rig.orders() == []
    done = rig.run()
    assert done["reasons"] == ["it is stopped", "it does not start with the host"]
    assert command(done["pid"]) == "/bin/sleep 1000"
    assert rig.orders() == [f"stop {UNIT}", f"enable {UNIT}", f"reset-failed {UNIT}", f"start {UNIT}"]
    assert rig.run()["reasons"] == []
    assert rig.orders() == []

    rig.write("chat", ["/bin/sleep", "2000"])
    record, unit = rig.host.record("chat"), rig.host.program_file("chat")
    expected = [f"systemd has not read the changed {unit}", f"{record} changed", f"{unit} changed"]
    assert rig.run(check=True)["reasons"] == expected
    assert command(rig.run()["pid"]) == "/bin/sleep 2000"
    assert rig.orders() == [f"stop {UNIT}", "daemon-reload", f"reset-failed {UNIT}", f"start {UNIT}"]

    subprocess.run(["systemctl", "disable", UNIT], check=True)
    before = rig.run(check=True)["pid"]
    rig.orders()
    assert rig.run()["reasons"] == ["it does not start with the host"]
    assert rig.orders() == [f"enable {UNIT}"]
    assert rig.run()["pid"] == before, "it was restarted only to be enabled"

    assert rig.run(state="stopped")["reasons"] == ["it is running"]
    assert rig.run(state="stopped")["reasons"] == []
    rig.run()
    rig.orders()
    foreseen = rig.run(state="absent", check=True)
    assert rig.orders() == []
    assert rig.run(state="absent")["reasons"] == foreseen["reasons"]
    assert rig.orders() == [f"stop {UNIT}", f"disable {UNIT}", "daemon-reload", f"reset-failed {UNIT}"]
    assert not Path(unit).exists()
    assert not Path(record).exists()
    assert rig.run(state="absent")["reasons"] == []


def test_systemd_says_why_a_service_fails(systemd_rig: SystemdRig, run_module: RunModule) -> None:
    rig = systemd_rig
    rig.write("chat", ["/bin/sh", "-c", "echo out of memory; exit 3"])
    args = {"name": "chat", "rig": rig.facts}
    failed = run_module("service_run", args)
    assert "chat: is failed after its start" in failed["msg"]
    assert "out of memory" in failed["msg"]
    (rig.programs / "broken").touch()
    failed = run_module("service_run", args)
    assert "Failed to connect to bus" in failed["msg"]
    (rig.programs / "systemctl").unlink()
    failed = run_module("service_run", args, environment={"PATH": str(rig.programs)})
    assert "systemctl was not found" in failed["msg"]


SHOWN = {
    "Result": "success",
    "NRestarts": "0",
    "MainPID": "0",
    "ExecMainStatus": "0",
    "LoadState": "loaded",
    "ActiveState": "inactive",
    "SubState": "dead",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
}


@pytest.mark.parametrize(
    ("shown", "spent", "expected"),
    [
        ({}, False, "stopped"),
        ({"ActiveState": "active", "SubState": "running"}, False, "running"),
        ({"ActiveState": "active", "SubState": "exited"}, False, "finished"),
        ({"ActiveState": "reloading"}, False, "running"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"}, False, "starting"),
        ({"ActiveState": "deactivating"}, False, "stopping"),
        ({"ActiveState": "failed", "Result": "exit-code"}, False, "failed"),
        ({"ActiveState": "failed", "Result": "exit-code"}, True, "budget_spent"),
        ({"ActiveState": "failed", "Result": "start-limit-hit"}, False, "budget_spent"),
    ],
)
def test_words_for_systemds_states(shown: dict[str, str], spent: bool, expected: str) -> None:
    text = "".join(f"{name}={value}\n" for name, value in {**SHOWN, **shown}.items())
    assert services.systemd_state(systemd.parse_show(UNIT, text), spent) == expected


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({}, "stopped"),
        ({"ExecMainExitTimestampMonotonic": "0"}, "stopped"),
        ({"ExecMainExitTimestampMonotonic": "5"}, "finished"),
        ({"ExecMainExitTimestampMonotonic": "5", "ActiveState": "failed", "Result": "exit-code"}, "failed"),
        ({"ExecMainExitTimestampMonotonic": "5", "ActiveState": "activating"}, "starting"),
    ],
)
def test_words_for_an_oneshot_that_does_not_stay_active(shown: dict[str, str], expected: str) -> None:
    text = "".join(f"{name}={value}\n" for name, value in {**SHOWN, **shown}.items())
    assert services.systemd_state(systemd.parse_show(UNIT, text), spent=False, oneshot=True) == expected
    assert services.systemd_state(systemd.parse_show(UNIT, text), spent=False) != "finished"


def test_an_answer_of_systemd_that_lacks_something_is_an_error() -> None:
    with pytest.raises(systemd.SystemdError, match="did not tell ActiveState"):
        systemd.parse_show(UNIT, "".join(f"{n}={v}\n" for n, v in SHOWN.items() if n != "ActiveState"))


@pytest.mark.parametrize(
    ("state", "exit_status", "spent", "oneshot", "expected"),
    [
        ("STARTING", 0, False, False, "starting"),
        ("RUNNING", 0, False, False, "running"),
        ("STOPPING", 0, False, False, "stopping"),
        ("STOPPED", 0, True, False, "stopped"),
        ("BACKOFF", 0, False, False, "starting"),
        ("FATAL", 0, False, False, "failed"),
        ("EXITED", 78, False, False, "failed"),
        ("EXITED", 78, True, False, "budget_spent"),
        ("EXITED", 0, False, False, "starting"),
        ("EXITED", -1, False, False, "starting"),
        ("EXITED", 0, False, True, "finished"),
        ("EXITED", 1, False, True, "failed"),
    ],
)
def test_words_for_supervisords_states(state: str, exit_status: int, spent: bool, oneshot: bool, expected: str) -> None:
    program = Program("chat", state, 0, 0, exit_status, "", "")
    assert services.supervisor_state(program, spent, oneshot) == expected


def test_both_sides_know_the_same_exit_code() -> None:
    assert services.EXIT_CONFIG == service_spec.BUDGET_SPENT_EXIT


def test_readiness_is_recorded_for_the_process_that_runs(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    assert services.read_service(rig.facts, "ghost").state == "stopped"
    assert services.write_ready_s(rig.facts, "chat", services.ServiceState("chat", "stopped")) is None
    rig.run()
    state = services.read_service(rig.facts, "chat")
    assert services.read_ready_s(rig.facts, "chat", state) is None
    ready_s = services.write_ready_s(rig.facts, "chat", state)
    assert ready_s is not None
    assert 0 <= ready_s < 30
    assert services.read_ready_s(rig.facts, "chat", services.read_service(rig.facts, "chat")) == ready_s
    os.kill(state.pid, signal.SIGKILL)

    def is_another() -> bool:
        now = services.read_service(rig.facts, "chat")
        return now.state == "running" and now.pid != state.pid

    wait_for(is_another, "it runs again")
    assert services.read_ready_s(rig.facts, "chat", services.read_service(rig.facts, "chat")) is None


def test_the_tool_under_systemd(
    systemd_rig: SystemdRig, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = systemd_rig
    rig.write("chat", SLEEPER)
    rig.write("code", ["/bin/sh", "-c", "echo hello from code; exec sleep 1000"])
    monkeypatch.setenv("GPURIG_HOST_JSON", f"{rig.paths['config']}/host.json")
    assert cli.main(["start"]) == 0
    assert cli.main(["start"]) == 0
    assert cli.main(["restart", "chat"]) == 0
    assert cli.main(["status"]) == 0
    out = capfd.readouterr().out
    assert out.count("chat: running (pid ") == 3
    assert out.splitlines()[-1].startswith("code     running")
    done = subprocess.run([f"{rig.root}/bin/gpurig", "logs", "code"], capture_output=True, text=True, check=True)
    assert done.stdout == "hello from code\n"
    orders = (rig.programs / "orders").read_text().splitlines()
    assert orders[-1] == "journalctl --all --unit gpurig-code.service --lines 50 --no-pager"
    assert cli.main(["stop", "code"]) == 0
    assert services.service_state(rig.host, "code").state == "stopped"
    assert services.service_state(rig.host, "code").log_tail == ["hello from code"]

    # An uninstall that was killed after it removed the first unit is finished by the next one.
    (rig.units / "gpurig-code.service").unlink()
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    assert cli.main(["uninstall", "--yes"]) == 0
    assert list(rig.units.iterdir()) == []
    assert not Path(rig.paths["config"]).exists()
    assert [p.in_words() for p in procfs.processes() if p.root == str(rig.root)] == []
