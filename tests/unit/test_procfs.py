# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports, processes and orphans, on this machine's real /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.procfs import (
    Process,
    end,
    listening_pids,
    orphans,
    parse_listeners,
    parse_ppid,
    processes,
    read_process,
)

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_listener_is_found_with_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listening_pids(port) == (True, [os.getpid()])
    assert listening_pids(port) == (False, [])


def test_an_ipv6_listener_counts() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert listening_pids(server.getsockname()[1])[0]


def test_a_connection_is_not_a_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert listening_pids(client.getsockname()[1]) == (False, [])


def test_the_tables_columns() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n"
        "   1: 0100007F:1F41 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n"
    )
    assert parse_listeners(table) == {8000: {"4242"}}


def test_a_process_name_may_hold_brackets() -> None:
    assert parse_ppid("12 (a) b) (c) S 7 12 12 0") == 7


@pytest.fixture
def marked(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "GPURIG_SERVICE": "chat", "GPURIG_ROOT": str(tmp_path)}
    with subprocess.Popen(SLEEP, env=environment) as process:
        # The environment in /proc is the new program's only after the exec.
        while (seen := read_process(process.pid)) is None or not seen.service:
            time.sleep(0.01)
        yield process
        process.kill()


def test_a_marked_process_is_recognised(marked: subprocess.Popen[bytes], tmp_path: Path) -> None:
    seen = read_process(marked.pid)
    assert seen is not None
    assert (seen.service, seen.root) == ("chat", str(tmp_path))
    assert seen.parent_pid == os.getpid()
    assert "service chat of" in seen.in_words()


def test_orphans_are_ours_and_not_looked_after(marked: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert [process.pid for process in orphans(str(tmp_path), None, processes())] == [marked.pid]
    assert orphans(str(tmp_path), os.getpid(), processes()) == []
    assert orphans("/another/root", None, processes()) == []


def test_a_process_that_says_which_unit_looks_after_it_is_no_orphan(tmp_path: Path) -> None:
    marks = {"GPURIG_ROOT": str(tmp_path), "GPURIG_UNIT": "gpurig-open-webui.service"}
    with subprocess.Popen(SLEEP, env={**os.environ, **marks}) as process:
        while (seen := read_process(process.pid)) is None or not seen.root:
            time.sleep(0.01)
        lost = orphans(str(tmp_path), None, processes())
        process.kill()
    assert (seen.unit, lost) == ("gpurig-open-webui.service", [])


def test_a_lost_supervisor_comes_before_its_programs() -> None:
    def process(pid: int, parent_pid: int, service: str = "", unit: str = "") -> Process:
        return Process(pid, parent_pid, "x", "x", "u", service, "/r", unit)

    program, supervisor = process(900001, 900002, "chat"), process(900002, 1)
    in_unit = process(900003, 1, "chat", "gpurig-chat.service")
    assert orphans("/r", None, [program, in_unit, supervisor]) == [supervisor, program]


def test_end_is_gentle_first_and_final_at_last(tmp_path: Path) -> None:
    stubborn = tmp_path / "stubborn.py"
    stubborn.write_text(
        "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('on', flush=True)\ntime.sleep(60)\n"
    )
    with (
        subprocess.Popen(SLEEP) as soft,
        subprocess.Popen([sys.executable, str(stubborn)], stdout=subprocess.PIPE) as hard,
    ):
        assert hard.stdout is not None
        assert hard.stdout.readline() == b"on\n"
        assert end([soft.pid, hard.pid], grace_s=0.6) == []
        assert soft.wait() == -15
        assert hard.wait() == -9
