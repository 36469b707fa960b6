# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module service_run under a real supervisord with the real tool, and under a recording systemctl."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import procfs, service_spec, services
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import Supervisor
from ansible_collections.gpurig.llm.plugins.modules import host_tool, service_run

RunModule = Callable[..., dict[str, Any]]
SLEEPER = ["/bin/sleep", "1000"]


class Rig:
    """An installed rig of one directory, without services."""

    def __init__(self, root: Path, manager: str = "supervisord") -> None:
        self.root = root
        names = ("bin", "tool", "envs", "uv", "python", "models", "cache", "log", "run")
        paths = {name: f"{root}/{name}" for name in names}
        paths |= {"root": str(root), "state": str(root), "config": f"{root}/etc"}
        paths |= {"secrets": f"{root}/etc/secrets", "services": f"{root}/etc/services"}
        paths |= {"supervisor_conf": f"{root}/etc/supervisord.conf", "supervisor_programs": f"{root}/etc/supervisor.d"}
        paths |= {"supervisor_socket": f"{root}/run/supervisor.sock"}
        self.paths = paths
        self.units = root / "units"
        self.facts = {"kind": "sandbox", "service_manager": manager, "root_dir": str(root), "user": "", "paths": paths}

    def install(self) -> None:
        params = {"rig": self.facts, "python": sys.executable, "version": "", "user": "", "group": "", "nvml_path": ""}
        host_tool.apply(host_tool.plan(params, check=False)[0], sys.executable)
        Path(self.paths["supervisor_conf"]).write_text(service_spec.render_supervisord_conf(self.paths))
        self.units.mkdir(exist_ok=True)

    @property
    def host(self) -> services.Host:
        return services.Host.from_rig(self.facts, str(self.units))

    def supervisor(self) -> Supervisor:
        return Supervisor(self.paths, sys.executable)

    def write(self, name: str, argv: list[str], **more: Any) -> dict[str, Any]:
        restart = {"starts": 5, "window_s": 600, "delay_s": 0}
        spec = {"name": name, "argv": argv, "stop_timeout_s": 5, "restart": restart, **more}
        Path(self.host.record(name)).write_text(service_spec.to_json(spec))
        text = service_spec.render(spec, self.host.manager, self.paths)
        Path(self.host.program_file(name)).write_text(text)
        return spec

    def run(self, name: str = "chat", state: str = "started", check: bool = False, **more: Any) -> dict[str, Any]:
        params = {"name": name, "state": state, "pending": False, **more}
        plan, seen = service_run.converge(self.host, params, check)
        return {"reasons": plan.reasons, "state": seen.state, "pid": seen.pid, "since_s": seen.since_s}

    def end(self) -> None:
        own = [process.pid for process in procfs.processes() if process.root == str(self.root)]
        assert procfs.end(own, grace_s=1.0) == []


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(Path(tempfile.mkdtemp(prefix="rig ", dir="/tmp")))
    made.install()
    yield made
    made.end()
    shutil.rmtree(made.root, ignore_errors=True)


def wait_for(true: Callable[[], object], what: str, limit_s: float = 15.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.05)


def status(rig: Rig, name: str = "chat") -> dict[str, Any]:
    done = subprocess.run(
        [f"{rig.root}/bin/gpurig", "status", "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    return next(service for service in json.loads(done.stdout) if service["name"] == name)


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

    for check in (True, False):
        again = run_module("service_run", args, check=check)
        assert (again["changed"], again["reasons"], again["pid"]) == (False, [], done["pid"])

    foreseen = run_module("service_run", {**args, "state": "stopped"}, check=True)
    assert foreseen["reasons"] == ["it is running"]
    assert run_module("service_run", {**args, "state": "stopped"})["reasons"] == ["it is running"]
    assert procfs.read_process(done["pid"]) is None
    assert not run_module("service_run", {**args, "state": "stopped"})["changed"]
    assert run_module("service_run", args)["reasons"] == ["it is stopped"]

    (rig.root / "data").write_text("kept")
    gone = {**args, "state": "absent"}
    foreseen = run_module("service_run", gone, check=True)
    assert Path(rig.host.record("chat")).exists()
    removed = run_module("service_run", gone)
    assert removed["reasons"] == foreseen["reasons"]
    assert removed["diff"] == foreseen["diff"]
    assert [path.name for path in (rig.root / "etc").rglob("*chat*")] == []
    assert [path.name for path in (rig.root / "run").glob("chat*")] == []
    assert rig.supervisor().program("chat") is None
    assert (rig.root / "log" / "chat.log").exists()
    assert (rig.root / "data").read_text() == "kept"
    assert not run_module("service_run", gone)["changed"]


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
    with pytest.raises(service_run.RunError, match="chat: is budget spent after its start"):
        rig.run()
    seen = status(rig)
    assert (seen["state"], seen["pid"], seen["restarts"]) == ("budget_spent", 0, 2)
    log = Path(seen["log_path"]).read_text()
    assert log.count("engine is broken") == 3
    assert log.count("3 starts within 600 s, the restart budget is spent") == 1
    assert "gpurig logs chat" in log
    text = subprocess.run([f"{rig.root}/bin/gpurig", "status"], capture_output=True, text=True, check=True).stdout
    assert "budget spent" in text
    time.sleep(0.5)
    assert status(rig)["state"] == "budget_spent", "it was started again"

    flag.touch()
    done = rig.run()
    assert done["reasons"] == ["it is budget spent"]
    assert (done["state"], status(rig)["restarts"]) == ("running", 0)


def test_a_process_without_our_record_is_started_anew(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    first = rig.run()["pid"]
    record = json.loads(Path(rig.host.run_record("chat")).read_text())
    for damage in ({"pid": 1}, {"boot_id": "another boot"}, {"start_ticks": 1}):
        Path(rig.host.run_record("chat")).write_text(json.dumps({**record, **damage}))
        service_run.STARTING_S = 0.1
        assert rig.run(check=True)["reasons"] == ["it is starting"], damage
    Path(rig.host.run_record("chat")).write_text("{broken")
    assert rig.run()["reasons"] == ["it is starting"]
    assert rig.run()["pid"] != first


def test_pending_changes_show_in_check_mode_only(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    rig.run()
    assert rig.run(check=True, pending=True)["reasons"] == ["its files change in this run"]
    assert rig.run(pending=True)["reasons"] == []


def test_a_oneshot_that_did_its_work_is_left_alone(rig: Rig) -> None:
    rig.write("once", ["/bin/sh", "-c", f"echo ran >> '{rig.root}/ran'"], oneshot=True)
    assert rig.run("once")["state"] == "finished"
    assert rig.run("once")["reasons"] == []
    assert (rig.root / "ran").read_text() == "ran\n"
    rig.write("once", ["/bin/sh", "-c", f"echo again >> '{rig.root}/ran'"], oneshot=True)
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
