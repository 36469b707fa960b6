# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host tool: what it becomes, what it refuses, what it tells people."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import cli, docker_images, procfs, services, supervisor
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import Card
from ansible_collections.gpurig.llm.tests.integration.installed import SLEEPER, Rig, installed, wait_for

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]

NO_DELAY = {"starts": 3, "window_s": 600, "delay_s": 0}


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(services, "STEADY_S", 0.1)
    with installed() as made:
        monkeypatch.setenv("GPURIG_HOST_JSON", made.host_json)
        yield made


def tool(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the tool in this process: (exit code, stdout, stderr)."""
    code = cli.main(words)
    seen = capsys.readouterr()
    return code, seen.out, seen.err


# --- exec


def test_exec_becomes_the_engine_with_its_environment(rig: Rig) -> None:
    secrets = Path(rig.paths["secrets"], "chat.env")
    secrets.write_text("# made by the playbook\n\nLLAMA_API_KEY=s3 cret=='x'\nOTHER=\n")
    rig.write("chat", SLEEPER)
    show = "import json, os, sys; print(json.dumps([dict(os.environ), sys.argv, os.getpid()]))"
    words = ["exec", "--name", "chat", "--secrets", str(secrets), "--env", "A=b c=d", "--env", "EMPTY=", "--"]
    argv = [sys.executable, "-c", show, "an argument", "--", "--secrets", "$HOME"]
    process = subprocess.Popen(
        [f"{rig.root}/bin/gpurig", *words, *argv],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "CALLER": "seen"},
    )
    environment, seen_argv, pid = json.loads(process.communicate(timeout=30)[0])
    assert pid == process.pid, "the engine is not the supervised process itself"
    assert seen_argv == ["-c", "an argument", "--", "--secrets", "$HOME"]
    assert {name: environment.get(name) for name in ("A", "EMPTY", "CALLER", "LLAMA_API_KEY", "OTHER")} == {
        "A": "b c=d",
        "EMPTY": "",
        "CALLER": "seen",
        "LLAMA_API_KEY": "s3 cret=='x'",
        "OTHER": "",
    }
    assert environment["GPURIG_SERVICE"] == "chat"
    assert environment["GPURIG_ROOT"] == str(rig.root)
    assert not {"GPURIG_HOST_JSON", "PYTHONPATH", "CUDA_VISIBLE_DEVICES"} & set(environment)

    run = services.read_run(rig.host, "chat")
    assert run
    assert run.pid == pid
    assert run.boot_id == services.boot_id()
    assert run.fingerprint == services.origin(rig.host, "chat", rig.host.spec("chat")).value
    assert abs(run.started_at_s - time.time()) < 30
    assert "s3 cret" not in Path(rig.host.run_record("chat")).read_text()


def test_the_engine_does_not_inherit_pythons_deafness(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    done = rig.command("exec", "--name", "chat", "--", "/bin/cat", "/proc/self/status")
    ignored = next(line for line in done.stdout.splitlines() if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


def test_the_budget_ends_with_78_and_says_what_to_do(rig: Rig) -> None:
    rig.write("chat", ["/bin/true"])
    words = ("exec", "--name", "chat", "--restart-budget", "2/600", "--restart-delay", "0.3", "--", "/bin/echo", "up")
    began = time.monotonic()
    first = rig.command(*words)
    assert (first.returncode, first.stdout, first.stderr) == (0, "up\n", "")
    undelayed_s = time.monotonic() - began
    second = rig.command(*words)
    assert (second.returncode, second.stdout) == (0, "up\n")
    assert second.stderr == "gpurig exec: chat: start 2 in a row, waiting 0.3 s\n"
    assert time.monotonic() - began > undelayed_s + 0.3
    for _ in range(2):
        third = rig.command(*words)
        assert (third.returncode, third.stdout) == (78, "")
        assert third.stderr.count("\n") == 1
        assert "2 starts within 600 s, the restart budget is spent" in third.stderr
        assert "gpurig logs chat" in third.stderr
        assert "gpurig start chat" in third.stderr
    assert services.read_starts(rig.host, "chat").spent
    services.clear_budget(rig.host, "chat")
    assert rig.command(*words).returncode == 0


def test_starts_of_another_boot_and_a_broken_record_do_not_count(rig: Rig) -> None:
    host = rig.host
    services.write_starts(host, "chat", services.Starts((1.0, 2.0), 2, True))
    record = Path(host.starts_record("chat"))
    assert services.read_starts(host, "chat") == services.Starts((1.0, 2.0), 2, True)
    for text in (record.read_text().replace(services.boot_id(), "another"), "{", "[]", '{"boot_id": 3}', ""):
        record.write_text(text)
        assert services.read_starts(host, "chat") == services.Starts()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            ["--secrets", "/nowhere/x.env", "--", "/bin/true"], "/nowhere/x.env: No such file", id="no secrets"
        ),
        pytest.param(["--secrets", "SECRETS", "--", "/bin/true"], "line 2: is not NAME=VALUE", id="bad secrets"),
        pytest.param(["--", "/nowhere/engine"], "cannot start /nowhere/engine: ", id="no program"),
        pytest.param(["--gpu-role", "fast", "--", "/bin/true"], "GPU role 'fast' is unknown", id="no role"),
        pytest.param(["--gpu-role", "empty", "--", "/bin/true"], "GPU role 'empty' has no cards", id="empty role"),
        pytest.param([], "program is missing", id="no command"),
        pytest.param(["--restart-budget", "5", "--", "/bin/true"], "5/600", id="bad budget"),
        pytest.param(["--env", "novalue", "--", "/bin/true"], "--env, line 1: is not NAME=VALUE", id="bad variable"),
        pytest.param(["--what", "--", "/bin/true"], "unrecognized arguments", id="unknown option"),
    ],
)
def test_a_start_that_cannot_be_ends_with_78(
    rig: Rig, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    secrets = Path(rig.paths["secrets"], "chat.env")
    secrets.write_text("A=1\nhush hush\n")
    Path(rig.paths["config"], "gpu_roles.json").write_text('{"empty": []}')
    rig.write("chat", SLEEPER)
    before = signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGXFSZ)
    code, out, err = tool(capsys, "exec", "--name", "chat", *[str(secrets) if w == "SECRETS" else w for w in words])
    signal.signal(signal.SIGPIPE, before[0])
    signal.signal(signal.SIGXFSZ, before[1])
    assert (code, out) == (78, "")
    assert expected in err
    assert "hush" not in err


def test_exec_has_the_folder_in_memory_or_does_not_start(
    rig: Rig, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rig.write("chat", SLEEPER)
    code, _, err = tool(capsys, "exec", "--name", "chat", "--memory-dir", "/proc/gpurig-test", "--", "/bin/true")
    assert (code, "would lie on proc, needed a tmpfs" in err) == (78, True)
    folder = Path("/dev/shm", f"gpurig-test-{os.getpid()}")
    try:
        done = rig.command("exec", "--name", "chat", "--memory-dir", str(folder), "--", "/bin/true")
        assert (done.returncode, folder.stat().st_mode & 0o7777) == (0, 0o700), done.stderr
    finally:
        folder.rmdir()


def test_exec_without_a_record_or_a_host(
    rig: Rig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = tool(capsys, "exec", "--name", "ghost", "--", "/bin/true")
    assert (code, "ghost: no such service" in err) == (78, True)
    monkeypatch.setenv("GPURIG_HOST_JSON", "/nowhere/host.json")
    code, _, err = tool(capsys, "exec", "--name", "chat", "--", "/bin/true")
    assert (code, "/nowhere/host.json: cannot be used" in err) == (78, True)
    monkeypatch.delenv("GPURIG_HOST_JSON")
    code, _, err = tool(capsys, "status")
    assert (code, "GPURIG_HOST_JSON is not set" in err) == (1, True)
    assert cli.main(["exec", "--help"]) == 0


CARDS = [
    Card(0, "GPU-aaaa", "0000:17:00.0", "NVIDIA GeForce RTX 3090 Ti"),
    Card(1, "GPU-bbbb", "0000:65:00.0", "NVIDIA GeForce RTX 4090"),
]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["GPU-bbbb"], [1]),
        (["gpu-BBBB", "GPU-aaaa"], [1, 0]),
        (["0000:17:00.0"], [0]),
        (["00000000:65:00.0", "17:00.0"], [1, 0]),
    ],
)
def test_cards_become_indices_in_the_roles_order(wanted: list[str], expected: list[int]) -> None:
    assert cli.card_indices(wanted, CARDS, "r") == expected


@pytest.mark.parametrize(
    ("wanted", "cards", "words"),
    [
        (["GPU-cccc"], CARDS, "card GPU-cccc does not answer. Cards that do: GPU-aaaa at 0000:17:00.0 .*3090 Ti"),
        (["GPU-aaaa"], [], "Cards that do: none"),
        (["GPU-aaaa", "0000:17:00.0"], CARDS, "names one card twice"),
    ],
)
def test_cards_that_cannot_be_given(wanted: list[str], cards: list[Card], words: str) -> None:
    with pytest.raises(cli.StartError, match=words):
        cli.card_indices(wanted, cards, "r")


def test_exec_gives_the_cards_of_the_role_by_index(rig: Rig, make_rig: Callable[..., Any]) -> None:
    rig.install(make_rig("guide_x299").nvml_path)
    rig.write("chat", SLEEPER, gpu_role="inference")
    roles = Path(rig.paths["config"], "gpu_roles.json")
    words = ("exec", "--name", "chat", "--gpu-role", "inference", "--", "/usr/bin/env")
    for cards, expected in ((["0000:65:00.0"], "1"), (["0000:65:00.0", "0000:17:00.0"], "1,0")):
        roles.write_text(json.dumps({"inference": cards}))
        done = rig.command(*words, env={"PATH": os.environ["PATH"]})
        assert done.returncode == 0, done.stderr
        seen = dict(line.split("=", 1) for line in done.stdout.splitlines())
        assert (seen["CUDA_VISIBLE_DEVICES"], seen["CUDA_DEVICE_ORDER"]) == (expected, "PCI_BUS_ID")
        run = services.read_run(rig.host, "chat")
        assert run
        assert run.cards == tuple(cards)
    roles.write_text(json.dumps({"inference": ["GPU-absent"]}))
    wanted = services.origin(rig.host, "chat", rig.host.spec("chat"))
    assert "its cards changed" in services.differences(run, wanted)[0]
    done = rig.command(*words, env={"PATH": os.environ["PATH"]})
    assert (done.returncode, "card GPU-absent does not answer" in done.stderr) == (78, True)


def test_the_environment_for_a_gpu_role(rig: Rig, make_rig: Callable[..., Any]) -> None:
    rig.install(make_rig("guide_x299").nvml_path)
    Path(rig.paths["config"], "gpu_roles.json").write_text('{"all": ["0000:65:00.0", "0000:17:00.0"]}')
    assert cli.gpu_environment(rig.host, "all") == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1,0",
    }


def test_starts_are_counted_within_the_window_and_since_the_last_start_on_purpose(rig: Rig) -> None:
    order = cli.Order("chat", ["/bin/true"], budget=(3, 600))
    assert [cli.spend_start(rig.host, order) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(cli.StartError, match="3 starts within 600 s"):
        cli.spend_start(rig.host, order)
    starts = services.read_starts(rig.host, "chat")
    assert (starts.total, starts.spent) == (3, True)
    old = tuple(time_s - 601 for time_s in starts.times_s)
    services.write_starts(rig.host, "chat", services.Starts(old, 3, True))
    assert cli.spend_start(rig.host, order) == 0
    starts = services.read_starts(rig.host, "chat")
    assert (len(starts.times_s), starts.total, starts.spent) == (1, 4, False)


def test_a_left_over_process_of_the_service_is_ended_and_no_other(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    marks = [("chat", str(rig.root)), ("code", str(rig.root)), ("chat", "/elsewhere")]
    processes = [
        subprocess.Popen(SLEEPER, env={"GPURIG_SERVICE": service, "GPURIG_ROOT": root}) for service, root in marks
    ]
    try:
        cli.end_predecessor(rig.host, "chat")
        assert [process.poll() for process in processes] == [-signal.SIGTERM, None, None]
        assert f"ending left-over sleep (pid {processes[0].pid}," in capsys.readouterr().err
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("machine", ["driver_mismatch", "no_power_cable"])
def test_exec_on_a_machine_with_a_broken_card_says_so(
    rig: Rig, make_rig: Callable[..., Any], capsys: pytest.CaptureFixture[str], machine: str
) -> None:
    rig.install(make_rig(machine).nvml_path)
    rig.write("chat", SLEEPER)
    Path(rig.paths["config"], "gpu_roles.json").write_text(json.dumps({"inference": ["0000:01:00.0"]}))
    done = rig.command("exec", "--name", "chat", "--gpu-role", "inference", "--", "/bin/true")
    assert done.returncode == 78
    assert "GPU role 'inference'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_exec_ends_what_a_killed_engine_left_and_refuses_a_second_one(rig: Rig) -> None:
    child = "import subprocess, time; subprocess.Popen(['/bin/sleep', '1001']); time.sleep(1000)"
    rig.write("chat", [sys.executable, "-c", child])
    assert rig.command("start").returncode == 0
    engine = services.service_state(rig.host, "chat").pid

    def workers() -> list[int]:
        return [p.pid for p in procfs.processes() if p.root == str(rig.root) and p.command == "/bin/sleep 1001"]

    wait_for(workers, "the engine's worker")
    old = workers()
    done = rig.command("exec", "--name", "chat", "--", "/bin/true")
    assert (done.returncode, f"already runs as pid {engine}" in done.stderr) == (78, True)
    assert workers() == old

    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: workers() and workers() != old, "another worker")
    assert not set(old) & set(workers()), "the killed engine's worker still holds the card"
    log = Path(rig.paths["log"], "chat.log").read_text()
    assert f"ending left-over sleep (pid {old[0]}," in log


# --- start, stop, restart, status


def test_start_status_restart_stop(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"engine": "llama_cpp", "model": "tiny", "url": "http://127.0.0.1:8000/v1"}
    rig.write("chat", SLEEPER, labels=labels)
    rig.write("code", SLEEPER)
    assert tool(capsys, "status")[0] == 0
    code, out, err = tool(capsys, "start")
    assert (code, err) == (0, "")
    pids = {name: services.service_state(rig.host, name).pid for name in ("chat", "code")}
    assert out == f"chat: running (pid {pids['chat']})\ncode: running (pid {pids['code']})\n"
    assert tool(capsys, "start")[:2] == (0, out), "a running service was started again"

    code, out, _ = tool(capsys, "status")
    heading, chat, other = out.splitlines()
    assert heading.split() == ["SERVICE", "STATE", "ENGINE", "MODEL", "URL", "UP", "SINCE", "RESTARTS", "STALE"]
    assert chat.split()[:5] == ["chat", "running", "llama_cpp", "tiny", "http://127.0.0.1:8000/v1"]
    assert chat.split()[-2:] == ["0", "-"]
    assert other.split()[:5] == ["code", "running", "-", "-", "-"]
    told = {service["name"]: service for service in json.loads(tool(capsys, "status", "--json")[1])}
    assert told["chat"]["labels"] == labels
    assert told["chat"]["fingerprint_running"] == told["chat"]["fingerprint_wanted"] != ""

    rig.write("chat", SLEEPER, labels=labels, start_timeout_s=5)
    code, out, _ = tool(capsys, "status")
    assert out.splitlines()[1].endswith("stale")
    assert out.splitlines()[-1] == f"chat: {rig.host.record('chat')} changed"

    assert tool(capsys, "restart", "chat")[0] == 0
    after = {name: services.service_state(rig.host, name).pid for name in ("chat", "code")}
    assert after["chat"] not in {0, pids["chat"]}
    assert after["code"] == pids["code"]

    assert tool(capsys, "stop", "code")[:2] == (0, "code: stopped\n")
    assert services.service_state(rig.host, "code").state == "stopped"
    assert services.service_state(rig.host, "chat").pid == after["chat"]
    assert tool(capsys, "stop")[0] == 0
    assert supervisor.Supervisor(rig.paths).daemon_pid() is None
    assert [p.in_words() for p in procfs.processes() if p.root == str(rig.root)] == []
    assert tool(capsys, "stop")[0] == 0

    code, _, err = tool(capsys, "start", "chat", "ghost")
    assert (code, "ghost: no such service" in err, "chat, code" in err) == (1, True, True)
    assert supervisor.Supervisor(rig.paths).daemon_pid() is None


def test_a_broken_record_hides_no_other_service(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("chat", "code"):
        rig.write(name, SLEEPER)
    assert tool(capsys, "start")[0] == 0
    record = Path(rig.host.record("chat"))
    record.write_text("{", encoding="utf-8")
    told = f"{record} is broken. Run the playbook again"
    code, out, _ = tool(capsys, "status")
    assert (code, f"chat: {told}" in out) == (0, True)
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["chat", "running"], ["code", "running"]]
    code, out, _ = tool(capsys, "restart")
    assert (code, f"chat: not started; {told}" in out, "code: running" in out) == (1, True, True)
    rows = {row["name"]: row for row in json.loads(tool(capsys, "status", "--json")[1])}
    assert (rows["chat"]["state"], rows["code"]["state"]) == ("running", "running")
    assert tool(capsys, "stop", "chat")[:2] == (0, "chat: stopped\n")
    assert services.service_state(rig.host, "code").state == "running"
    assert tool(capsys, "stop")[0] == 0
    assert [p.in_words() for p in procfs.processes() if p.root == str(rig.root)] == []


def test_start_of_a_broken_service_shows_its_last_lines(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.write("chat", ["/bin/sh", "-c", "echo out of memory; exit 1"])
    code, out, _ = tool(capsys, "start")
    assert code == 1
    assert out.startswith(("chat: budget spent\n", "chat: starting"))
    assert "  out of memory\n" in out
    wait_for(lambda: services.service_state(rig.host, "chat").state == "budget_spent", "the end of the budget")
    out = tool(capsys, "status")[1]
    assert "chat: its restart budget is spent: gpurig logs chat, then gpurig start chat" in out


def test_stop_ends_what_a_killed_daemon_left(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.write("chat", SLEEPER)
    tool(capsys, "start")
    engine, daemon = services.service_state(rig.host, "chat").pid, supervisor.Supervisor(rig.paths).daemon_pid()
    os.kill(daemon or 0, signal.SIGKILL)
    code, out, _ = tool(capsys, "stop")
    assert (code, f"ended left-over sleep (pid {engine}," in out) == (0, True)
    assert procfs.read_process(engine) is None
    tool(capsys, "start")
    engine, daemon = services.service_state(rig.host, "chat").pid, supervisor.Supervisor(rig.paths).daemon_pid()
    os.kill(daemon or 0, signal.SIGKILL)
    code, out, _ = tool(capsys, "start")
    assert (code, procfs.read_process(engine)) == (0, None)
    assert f"ended left-over sleep (pid {engine}," in out
    assert services.read_starts(rig.host, "chat").total == 1, "the start on purpose did not bring a fresh budget"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90061, "1d01h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert cli.duration(seconds) == text


# --- logs, key


def test_logs(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.write("chat", SLEEPER)
    code, _, err = tool(capsys, "logs", "chat")
    assert (code, "chat: has no log yet" in err) == (1, True)
    Path(rig.paths["log"], "chat.log").write_bytes(b"".join(b"line %d\n" % n for n in range(100)) + b"\xff\n")
    assert tool(capsys, "logs", "chat", "-n", "2")[1] == "line 99\n\N{REPLACEMENT CHARACTER}\n"
    assert len(tool(capsys, "logs", "chat")[1].splitlines()) == 50
    assert tool(capsys, "logs", "chat", "-n", "0")[1] == ""
    assert tool(capsys, "logs", "ghost")[0] == 1


def test_logs_follow_through_a_rotation(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    log = Path(rig.paths["log"], "chat.log")
    log.write_text("old\n")
    # The tests themselves may run where ctrl-c is ignored, in the background of a script say.
    command = ["env", "--default-signal=INT", f"{rig.root}/bin/gpurig", "logs", "chat", "-n", "1", "-f"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    watchdog = threading.Timer(20, process.kill)
    watchdog.start()
    try:
        assert process.stdout.readline() == "old\n"
        time.sleep(0.4)
        with log.open("a") as stream:
            stream.write("new\n")
        assert process.stdout.readline() == "new\n"
        log.rename(f"{log}.1")
        log.write_text("rotated\n")
        assert process.stdout.readline() == "rotated\n"
    finally:
        watchdog.cancel()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        process.stdout.close()


def test_following_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def change(_: float, turns: list[Callable[[], object]]) -> None:
        turns.pop(0)()

    turns: list[Callable[[], object]] = [
        lambda: path.write_text("one\n"),
        lambda: path.write_text("one\ntwo\n"),
        lambda: path.write_text("x\n"),
        path.unlink,
        lambda: path.write_text("again\n"),
    ]
    found = cli.follow_file(str(path), lambda seconds: change(seconds, turns))
    assert [next(found) for _ in range(4)] == ["one\n", "two\n", "x\n", "again\n"]


def test_key(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = Path(rig.paths["secrets"], "chat.env")
    rig.write("chat", SLEEPER, secrets_file=str(secrets))
    rig.write("bare", SLEEPER)
    code, _, err = tool(capsys, "key", "chat")
    assert (code, "chat.env: No such file" in err) == (1, True)
    secrets.write_text("OTHER=1\nEMPTY_API_KEY=\n")
    code, _, err = tool(capsys, "key", "chat")
    assert (code, "no variable that ends in API_KEY" in err) == (1, True)
    secrets.write_text("OTHER=1\nLLAMA_API_KEY=the key\n")
    assert tool(capsys, "key", "chat") == (0, "the key\n", "")
    code, _, err = tool(capsys, "key", "bare")
    assert (code, "no secrets file" in err) == (1, True)


def test_a_reader_that_leaves_is_no_error(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    Path(rig.paths["log"], "chat.log").write_text("line\n" * 100_000)
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" logs chat -n 100000 | head -n 1', f"{rig.root}/bin/gpurig"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "line\n"
    assert done.stderr == ""


# --- uninstall


def fill(rig: Rig) -> None:
    rig.write("chat", SLEEPER)
    for name in ("models/weights.gguf", "envs/llama/file", "cache/x", "pages/data.db"):
        path = rig.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_uninstall_stops_removes_and_keeps_the_data(rig: Rig) -> None:
    fill(rig)
    assert rig.command("start").returncode == 0
    done = rig.command("uninstall")
    assert (done.returncode, "no terminal to ask on" in done.stderr) == (1, True)
    assert f"keep   {rig.root}/models\n" in done.stdout
    assert (rig.root / "bin" / "gpurig").exists()
    assert services.service_state(rig.host, "chat").state == "running"

    done = rig.command("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert sorted(str(path.relative_to(rig.root)) for path in rig.root.rglob("*") if path.is_file()) == [
        "models/weights.gguf",
        "pages/data.db",
    ]
    assert sorted(path.name for path in rig.root.iterdir()) == ["models", "pages"]
    assert [p.in_words() for p in procfs.processes() if p.root == str(rig.root)] == []


def test_uninstall_with_purge_leaves_nothing(rig: Rig) -> None:
    fill(rig)
    done = rig.command("uninstall", "--purge", "--yes")
    assert done.returncode == 0, done.stderr
    assert not rig.root.exists()


def test_an_uninstall_that_was_killed_can_be_run_again(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    fill(rig)
    plan = cli.plan_removal(rig.host, rig.host_json, purge=False)
    assert plan.remove[-1] == rig.host_json
    for path in plan.remove[:-1]:
        cli.remove(path, plan.below)
    assert cli.plan_removal(rig.host, rig.host_json, purge=False).remove == (rig.host_json,)
    assert tool(capsys, "uninstall", "--yes")[0] == 0
    assert sorted(path.name for path in rig.root.iterdir()) == ["models", "pages"]


def test_uninstall_forgets_what_was_in_memory_alone(rig: Rig) -> None:
    folder, theirs = (Path("/dev/shm", f"{name}-test-{os.getpid()}") for name in ("gpurig-uninstall", "theirs"))
    rig.write("page", SLEEPER, memory_dir=str(folder))
    rig.write("other", SLEEPER, memory_dir=str(theirs))
    try:
        for path in (folder, theirs):
            path.mkdir()
            (path / "chats.db").write_text("a chat")
        done = rig.command("uninstall", "--yes")
        assert (done.returncode, f"remove {folder}\n" in done.stdout) == (0, True), done.stderr
        assert (folder.exists(), theirs.exists()) == (False, True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(theirs, ignore_errors=True)


@pytest.mark.parametrize("answers", [True, False])
def test_uninstall_takes_the_page_out_of_docker(rig: Rig, tmp_path: Path, answers: bool) -> None:
    """With consent only, and where no Docker answers it says what stays and goes on."""
    fill(rig)
    image = docker_images.Image("ghcr.io/open-webui/open-webui", f"sha256:{'a' * 64}")
    answer = docker_images.answer_dir(image, Path(rig.host.paths["config"], docker_images.PAGE_ANSWERS))
    answer.mkdir(parents=True)
    (answer / "open_webui.json").write_text(json.dumps({"reference": image.reference}))
    docker, calls = tmp_path / "docker", tmp_path / "docker.calls"
    docker.write_text(f'#!/bin/sh\necho "$@" >> "$0.calls"\nexit {0 if answers else 1}\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    asked = rig.command("uninstall", env=environment)
    assert f"remove the container {docker_images.PAGE} and its images; volumes stay\n" in asked.stdout
    assert not calls.exists()
    done = rig.command("uninstall", "--yes", env=environment)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in rig.root.iterdir()) == ["models", "pages"]
    orders = [line for line in calls.read_text().splitlines() if "rm" in line.split()]
    assert orders == ([f"rm --force {docker_images.PAGE}", f"image rm {image.reference}"] if answers else [])
    for what in (docker_images.PAGE, image.reference):
        assert (f"{what}: no Docker answers here. Remove it with" in done.stderr) != answers


@pytest.mark.parametrize(("answer", "removed"), [("yes", True), ("y", False), ("", False)])
def test_uninstall_asks_on_a_terminal(rig: Rig, answer: str, removed: bool) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execv(f"{rig.root}/bin/gpurig", ["gpurig", "uninstall"])  # noqa: S606
    os.write(terminal, f"{answer}\n".encode())
    wait_for(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "its end")
    os.close(terminal)
    assert (rig.root / "bin" / "gpurig").exists() is not removed


def test_uninstall_takes_the_socket_directory_only_when_it_is_ours(rig: Rig) -> None:
    described = json.loads(Path(rig.host_json).read_text())
    for place, taken in (("/tmp/gpurig-0-0123456789ab", True), ("/tmp", False)):
        Path(place).mkdir(exist_ok=True)
        paths = {**described["paths"], "supervisor_socket": f"{place}/supervisor.sock"}
        Path(rig.host_json).write_text(json.dumps({**described, "paths": paths}))
        host = services.Host.load(rig.host_json)
        assert (place in cli.plan_removal(host, rig.host_json, purge=True).remove) is taken
    Path("/tmp/gpurig-0-0123456789ab").rmdir()


def test_uninstall_takes_our_udev_rule_alone(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the plan is made, of a rule below tmp_path.
    rule = tmp_path / "60-gpurig-nvidia.rules"
    monkeypatch.setattr(cli, "UDEV_RULE", str(rule))
    shipped = Path(__file__).resolve().parents[2] / "roles/gpu_power/files" / rule.name
    systemd = dataclasses.replace(rig.host, manager="systemd", unit_dir=str(tmp_path / "units"))
    for text, host, taken in (
        (None, systemd, False),
        ("# of somebody else\n", systemd, False),
        (shipped.read_text(encoding="utf-8"), systemd, True),
        (shipped.read_text(encoding="utf-8"), rig.host, False),
    ):
        if text is not None:
            rule.write_text(text, encoding="utf-8")
        plan = cli.plan_removal(host, rig.host_json, purge=False)
        assert (str(rule) in plan.remove, str(tmp_path) in plan.below) == (taken, taken)
    assert rule.exists()


def test_uninstall_takes_the_unit_of_our_rules(rig: Rig, tmp_path: Path) -> None:
    # Only the plan is made.
    units = tmp_path / "units"
    ours = {str(units / "gpurig-firewall.service"), str(units / "nftables.service.d/gpurig.conf")}
    systemd = dataclasses.replace(rig.host, manager="systemd", unit_dir=str(units))
    assert not ours.intersection(cli.plan_removal(systemd, rig.host_json, purge=False).remove)
    for unit in ours:
        Path(unit).parent.mkdir(parents=True, exist_ok=True)
        Path(unit).touch()
    assert ours.issubset(cli.plan_removal(systemd, rig.host_json, purge=False).remove)
    assert not ours.intersection(cli.plan_removal(rig.host, rig.host_json, purge=False).remove)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({}, "is not the host.json", id="another-host-json"),
        pytest.param({"root": "/"}, "/ is not a directory of ours alone", id="root-of-the-system"),
        pytest.param({"state": "/tmp"}, "/tmp is not a directory of ours alone", id="tmp"),
        pytest.param({"state": "HOME"}, "is not a directory of ours alone", id="home"),
        pytest.param({"envs": "/usr/lib"}, "/usr/lib: lies outside of", id="outside"),
        pytest.param({"envs": "ROOT/../usr"}, "/../usr: lies outside of", id="dots"),
    ],
)
def test_uninstall_refuses_what_is_not_ours(rig: Rig, tmp_path: Path, change: dict[str, str], words: str) -> None:
    # Only the plan is made: if this check ever breaks, the test must not remove what it names.
    described = json.loads(Path(rig.host_json).read_text())
    elsewhere = tmp_path / "host.json"
    filled = {
        key: value.replace("HOME", str(Path.home())).replace("ROOT", str(rig.root)) for key, value in change.items()
    }
    paths = {**described["paths"], **({"config": str(tmp_path)} if change else {}), **filled}
    elsewhere.write_text(json.dumps({**described, "paths": paths}))
    with pytest.raises(cli.ToolError, match=re.escape(words)):
        cli.plan_removal(services.Host.load(str(elsewhere)), str(elsewhere), purge=True)


def test_the_removal_itself_refuses_what_lies_outside(tmp_path: Path) -> None:
    inside, outside = tmp_path / "ours" / "log", tmp_path / "theirs"
    inside.mkdir(parents=True)
    outside.mkdir()
    for path in (outside, tmp_path / "ours" / ".." / "theirs", tmp_path / "ours"):
        with pytest.raises(cli.ToolError, match="lies outside"):
            cli.remove(str(path), [str(tmp_path / "ours")])
    assert outside.exists()
    cli.remove(str(inside), [str(tmp_path / "ours")])
    assert not inside.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["paths"].pop("run"), "its paths lack run"),
        (lambda d: d.update(paths=3), "its paths lack bin, config"),
        (lambda d: d.update(service_manager="init"), "'init'; needed: systemd or supervisord"),
    ],
)
def test_a_broken_host_json(
    rig: Rig, capsys: pytest.CaptureFixture[str], change: Callable[[dict[str, Any]], object], words: str
) -> None:
    described = json.loads(Path(rig.host_json).read_text())
    change(described)
    Path(rig.host_json).write_text(json.dumps(described))
    code, _, err = tool(capsys, "status")
    assert (code, words in err, "Run the playbook again" in err) == (1, True, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_files_of_another_user_are_an_error_in_words(rig: Rig) -> None:
    rig.root.chmod(0o755)
    rig.write("chat", SLEEPER)
    child = os.fork()
    if not child:
        os.setuid(65534)
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
        os._exit(cli.main(["exec", "--name", "chat", "--", "/bin/true"]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 78
