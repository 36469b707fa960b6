# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of supervisord against a real one, in a directory with a blank in its name."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import procfs
from ansible_collections.gpurig.llm.plugins.module_utils.service_spec import render_supervisord_conf
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import (
    DaemonDownError,
    DaemonStoppingError,
    ProgramConfigError,
    ProgramUnknownError,
    RefusedError,
    Supervisor,
    SupervisorError,
)

SLEEPER = "/bin/sleep 1000"
STUBBORN = "/bin/sh -c 'trap \"\" TERM; while :; do sleep 0.1; done'"


def layout(root: Path) -> dict[str, str]:
    return {
        "root": str(root),
        "config": f"{root}/etc",
        "log": f"{root}/log",
        "run": f"{root}/run",
        "supervisor_conf": f"{root}/etc/supervisord.conf",
        "supervisor_programs": f"{root}/etc/supervisor.d",
        "supervisor_socket": f"{root}/run/supervisor.sock",
    }


def program(supervisor: Supervisor, name: str, command: str, *more: str) -> None:
    lines = [f"[program:{name}]", f"command={command}", "startsecs=0", "stopwaitsecs=5", *more]
    Path(supervisor.programs_dir, f"{name}.conf").write_text("\n".join(lines) + "\n")


def wait_for(true: Callable[[], object], what: str, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def end_all(root: str) -> None:
    """End every process that carries the root's mark, whatever a test has done to its supervisor."""
    own = [process.pid for process in procfs.processes() if process.root == root]
    assert procfs.end(own, send=lambda pid, _: os.kill(pid, signal.SIGKILL)) == []


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    """A rig with a written configuration and no daemon yet."""
    # A short path, as the socket's may have 107 bytes.
    root = Path(tempfile.mkdtemp(prefix="rig ", dir="/tmp"))
    paths = layout(root)
    for name in ("etc/supervisor.d", "log", "run"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "supervisord.conf").write_text(render_supervisord_conf(paths))
    yield Supervisor(paths, sys.executable)
    end_all(str(root))
    shutil.rmtree(root, ignore_errors=True)


def test_life_of_a_daemon_and_its_programs(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "leak")
    program(supervisor, "chat", SLEEPER)
    program(supervisor, "code", SLEEPER)

    assert supervisor.daemon_pid() is None
    assert supervisor.shutdown() is False
    with pytest.raises(DaemonDownError, match="gpurig start"):
        supervisor.programs()

    assert supervisor.start_daemon() == []
    daemon = supervisor.daemon_pid()
    assert daemon is not None
    assert daemon == supervisor.recorded_pid()
    assert supervisor.start_daemon() == []
    assert supervisor.daemon_pid() == daemon, "a running daemon was started again"

    environment = Path(f"/proc/{daemon}/environ").read_bytes().decode().split("\0")
    assert {pair.partition("=")[0] for pair in environment if pair} == {"PATH", "HOME", "LANG", "GPURIG_ROOT"}
    assert os.getsid(daemon) == daemon, "it is tied to our session"
    assert Path(f"/proc/{daemon}/cwd").readlink() == Path(supervisor.root)

    wait_for(lambda: all(p.state == "RUNNING" for p in supervisor.programs().values()), "autostart")
    before = supervisor.programs()
    assert set(before) == {"chat", "code"}
    assert supervisor.update("chat") == ""
    assert supervisor.program("chat") == before["chat"]
    assert before["chat"].log.startswith("/")

    # One program changes, the other one's file too: only the one asked for is touched.
    program(supervisor, "chat", SLEEPER, "priority=5")
    program(supervisor, "code", SLEEPER, "priority=6")
    program(supervisor, "third", SLEEPER)
    pending = supervisor.pending()
    assert (pending.added, sorted(pending.changed), pending.removed) == (("third",), ["chat", "code"], ())
    assert supervisor.update("chat") == "changed"
    supervisor.start("chat")
    after = supervisor.programs()
    assert after["code"] == before["code"]
    assert set(after) == {"chat", "code"}
    wait_for(lambda: supervisor.programs()["chat"].pid, "the changed program runs")
    assert supervisor.programs()["chat"].pid != before["chat"].pid

    assert supervisor.update("third") == "added"
    supervisor.start("third")  # whether autostart was faster makes no difference
    wait_for(lambda: supervisor.programs()["third"].state == "RUNNING", "the added program runs")

    Path(supervisor.programs_dir, "third.conf").unlink()
    third = supervisor.programs()["third"].pid
    assert supervisor.update("third") == "removed"
    assert supervisor.program("third") is None
    assert procfs.read_process(third) is None

    old = supervisor.programs()["code"].pid
    supervisor.restart("code")
    wait_for(lambda: supervisor.programs()["code"].pid not in {0, old}, "a restart gives another process")
    supervisor.stop("code")
    assert supervisor.programs()["code"].state == "STOPPED"
    supervisor.stop("code")
    supervisor.stop("unknown")
    with pytest.raises(ProgramUnknownError, match=r"unknown: supervisord has no such program.*unknown\.conf"):
        supervisor.start("unknown")

    chat = supervisor.programs()["chat"].pid
    assert supervisor.shutdown() is True
    assert procfs.read_process(daemon) is None
    assert procfs.read_process(chat) is None
    assert not Path(supervisor.socket).exists()
    assert supervisor.daemon_pid() is None


def test_a_killed_daemon_leaves_files_and_processes_and_both_are_cleared(supervisor: Supervisor) -> None:
    program(supervisor, "chat", SLEEPER)
    supervisor.start_daemon()
    wait_for(lambda: supervisor.programs()["chat"].pid, "it runs")
    daemon, chat = supervisor.daemon_pid(), supervisor.programs()["chat"].pid
    assert daemon is not None
    os.kill(daemon, signal.SIGKILL)
    wait_for(lambda: procfs.read_process(daemon) is None, "the daemon is dead")
    assert Path(supervisor.socket).exists()
    assert Path(supervisor.pidfile).exists()
    assert supervisor.daemon_pid() is None
    assert supervisor.recorded_pid() is None
    assert procfs.read_process(chat) is not None, "the program outlives its daemon"
    assert [process.pid for process in supervisor.leftovers()] == [chat]

    ended = supervisor.start_daemon()
    assert len(ended) == 1
    assert f"pid {chat}" in ended[0]
    assert procfs.read_process(chat) is None
    wait_for(lambda: supervisor.programs()["chat"].pid not in {0, chat}, "it runs anew")


def test_a_daemon_whose_root_was_deleted_is_found_and_ended(supervisor: Supervisor) -> None:
    program(supervisor, "chat", SLEEPER)
    supervisor.start_daemon()
    wait_for(lambda: supervisor.programs()["chat"].pid, "it runs")
    lost = [supervisor.daemon_pid(), supervisor.programs()["chat"].pid]
    Path(supervisor.socket).unlink()
    Path(supervisor.pidfile).unlink()
    assert [process.pid for process in supervisor.leftovers()] == lost
    assert len(supervisor.start_daemon()) == 2
    assert [procfs.read_process(pid) for pid in lost if pid] == [None, None]
    assert supervisor.daemon_pid() not in {None, *lost}


def test_a_pid_file_with_a_reused_pid_is_no_daemon(supervisor: Supervisor) -> None:
    stranger = subprocess.Popen(["/bin/sleep", "1000"])
    try:
        Path(supervisor.pidfile).write_text(f"{stranger.pid}\n")
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(supervisor.socket)
        stale.close()
        assert supervisor.recorded_pid() is None
        assert supervisor.start_daemon() == []
        assert supervisor.daemon_pid() == supervisor.recorded_pid() != stranger.pid
        assert stranger.poll() is None, "a stranger was ended"
    finally:
        stranger.kill()
        stranger.wait()


def test_only_one_of_two_starters_starts(supervisor: Supervisor) -> None:
    program(supervisor, "chat", SLEEPER)
    problems: list[object] = []

    def start() -> None:
        try:
            problems.extend(supervisor.start_daemon())
        except SupervisorError as error:
            problems.append(error)

    starters = [threading.Thread(target=start) for _ in range(3)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert problems == []
    daemons = [p for p in procfs.processes() if p.root == supervisor.root and "supervisor" in p.command]
    assert [process.pid for process in daemons] == [supervisor.daemon_pid()]


def test_a_broken_file_of_another_program_is_named(supervisor: Supervisor) -> None:
    program(supervisor, "chat", SLEEPER)
    supervisor.start_daemon()
    wait_for(lambda: supervisor.programs()["chat"].pid, "it runs")
    before = supervisor.programs()["chat"]
    Path(supervisor.programs_dir, "broken.conf").write_text("[program:broken]\nstartsecs=soon\n")
    with pytest.raises(ProgramConfigError, match=r"broken\.conf"):
        supervisor.update("chat")
    assert supervisor.programs()["chat"] == before


def test_a_program_that_cannot_be_started_says_why(supervisor: Supervisor) -> None:
    program(supervisor, "chat", "/nowhere/engine", "autostart=false", "startretries=0")
    supervisor.start_daemon()
    with pytest.raises(SupervisorError, match=r"chat: supervisord could not start its command: .*nowhere/engine"):
        supervisor.start("chat")
    with pytest.raises(RefusedError, match="readLog was refused"):
        supervisor._ask("readLog", -1, 5)


def test_a_program_that_does_not_stop_in_time(supervisor: Supervisor) -> None:
    program(supervisor, "chat", STUBBORN, "stopwaitsecs=1", "killasgroup=true")
    supervisor.start_daemon()
    wait_for(lambda: supervisor.programs()["chat"].pid, "it runs")
    time.sleep(0.2)
    with pytest.raises(SupervisorError, match=r"chat: still stopping \(pid \d+\) 0 s after"):
        supervisor.stop("chat", timeout_s=0.3)
    assert supervisor.shutdown() is True


def test_a_stopping_daemon_takes_no_orders_and_is_waited_for(supervisor: Supervisor) -> None:
    program(supervisor, "chat", STUBBORN, "stopwaitsecs=1", "killasgroup=true")
    supervisor.start_daemon()
    wait_for(lambda: supervisor.programs()["chat"].pid, "it runs")
    time.sleep(0.2)
    daemon = supervisor.daemon_pid()
    with pytest.raises(SupervisorError, match="still stopping its programs"):
        supervisor.shutdown(timeout_s=0.2)
    with pytest.raises(DaemonStoppingError, match="shutting down"):
        supervisor.programs()
    assert supervisor.daemon_pid() == daemon
    supervisor.start_daemon()
    assert supervisor.daemon_pid() not in {None, daemon}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda s: Path(s.config).unlink(), "supervisord.conf is missing", id="no configuration"),
        pytest.param(lambda s: setattr(s, "python", "/nowhere/python"), "/nowhere/python is missing", id="no Python"),
        pytest.param(lambda s: setattr(s, "python", ""), "Python of the tool is missing", id="Python unknown"),
        pytest.param(
            lambda s: Path(s.config).write_text("[supervisord]\nlogfile=/nowhere/log\n"), "/nowhere", id="bad file"
        ),
        pytest.param(lambda s: shutil.rmtree(Path(s.pidfile).parent), "cannot be written", id="no run directory"),
    ],
)
def test_why_it_does_not_start(supervisor: Supervisor, damage: Callable[[Supervisor], object], words: str) -> None:
    damage(supervisor)
    with pytest.raises(SupervisorError, match=words):
        supervisor.start_daemon(timeout_s=10.0)
    assert supervisor.daemon_pid() is None


def test_a_socket_outside_the_root_lies_in_a_directory_of_ours_alone(supervisor: Supervisor) -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        elsewhere = {**layout(Path(supervisor.root)), "supervisor_socket": f"{place}/s/supervisor.sock"}
        Path(supervisor.config).write_text(render_supervisord_conf(elsewhere))
        displaced = Supervisor(elsewhere, sys.executable)
        displaced.start_daemon()
        assert displaced.daemon_pid() is not None
        assert (place / "s").stat().st_mode & 0o777 == 0o700
        displaced.shutdown()
        (place / "s").chmod(0o755)
        with pytest.raises(SupervisorError, match="not a directory of ours with mode 0700"):
            displaced.start_daemon()
        shutil.rmtree(place / "s")
        (place / "s").symlink_to(place)
        with pytest.raises(SupervisorError, match="not a directory of ours"):
            displaced.start_daemon()
    finally:
        shutil.rmtree(place)


def test_a_socket_that_says_nonsense_is_no_daemon(supervisor: Supervisor) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(supervisor.socket)
    server.listen(1)

    def answer() -> None:
        for _ in range(2):  # the client asks once more when a connection breaks
            connection, _address = server.accept()
            connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    assert supervisor.daemon_pid() is None
    thread.join()
    server.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_socket_is_not_trusted(supervisor: Supervisor) -> None:
    Path(supervisor.root).chmod(0o755)
    Path(supervisor.root, "run").chmod(0o777)
    listening, child_is = os.pipe()
    child = os.fork()
    if not child:
        os.setuid(65534)
        server = socket.socket(socket.AF_UNIX)
        server.bind(supervisor.socket)
        Path(supervisor.socket).chmod(0o777)
        server.listen(1)
        os.write(child_is, b"1")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(listening, 1)
        asker = os.fork()
        if not asker:
            os.setuid(65533)
            try:
                supervisor.programs()
            except SupervisorError as error:
                os._exit(0 if "belongs to user 65534" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(asker, 0)[1] == 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(listening)
        os.close(child_is)
