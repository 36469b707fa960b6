# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on which port, and which processes of ours outlived their supervisor, read from /proc. (outside)"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"

# Environment variables that `gpurig exec` and the supervisor are started with, so that a process can be recognised.
SERVICE_MARK = "GPURIG_SERVICE"
ROOT_MARK = "GPURIG_ROOT"
# What a container is given, whose processes are not below our unit: the unit that looks after it.
UNIT_MARK = "GPURIG_UNIT"


@dataclass(frozen=True)
class Process:
    """One running process; `service` and `root` are empty when it is not ours or its environment is not readable."""

    pid: int
    parent_pid: int
    name: str
    command: str
    user: str
    service: str
    root: str
    unit: str

    def in_words(self) -> str:
        """Name the process so that a person can find and judge it."""
        ours = f", service {self.service} of {self.root}" if self.service else ""
        return f"{self.name} (pid {self.pid}, user {self.user}{ours}): {self.command[:120]}"


def parse_listeners(table: str) -> dict[int, set[str]]:
    """Return {port: socket inodes} of the LISTEN rows of a /proc/net/tcp or /proc/net/tcp6 text."""
    found: dict[int, set[str]] = {}
    for row in table.splitlines()[1:]:
        columns = row.split()
        if len(columns) > 9 and columns[3] == _LISTEN:
            port = int(columns[1].rsplit(":", 1)[1], 16)
            found.setdefault(port, set()).add(columns[9])
    return found


def parse_ppid(stat: str) -> int:
    """Return the parent's pid of a /proc/PID/stat text; the name in it may hold spaces and brackets."""
    return int(stat.rsplit(")", 1)[1].split()[1])


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _environment_marks(proc: Path) -> tuple[str, str, str]:
    names = (SERVICE_MARK, ROOT_MARK, UNIT_MARK)
    marks = dict(
        pair.split("=", 1)
        for pair in _read(proc / "environ").split("\0")
        if pair.startswith(tuple(f"{name}=" for name in names))
    )
    return marks.get(SERVICE_MARK, ""), marks.get(ROOT_MARK, ""), marks.get(UNIT_MARK, "")


def _unit(cgroup: str) -> str:
    for line in cgroup.splitlines():
        last = line.rsplit("/", 1)[-1]
        if last.startswith("gpurig-") and last.endswith(".service"):
            return last
    return ""


def read_process(pid: int, proc_root: Path = Path("/proc")) -> Process | None:
    """Return what /proc says of a process, or None when it is gone or a zombie."""
    proc = proc_root / str(pid)
    stat = _read(proc / "stat")
    if not stat or stat.rsplit(")", 1)[1].split()[0] == "Z":
        return None
    try:
        uid = proc.stat().st_uid
    except OSError:
        return None
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    service, root, unit = _environment_marks(proc)
    return Process(
        pid=pid,
        parent_pid=parse_ppid(stat),
        name=_read(proc / "comm").strip(),
        command=_read(proc / "cmdline").replace("\0", " ").strip(),
        user=user,
        service=service,
        root=root,
        unit=_unit(_read(proc / "cgroup")) or unit,
    )


def processes(proc_root: Path = Path("/proc")) -> list[Process]:
    """Return every process that /proc shows, oldest pid first."""
    found = [read_process(int(entry.name), proc_root) for entry in proc_root.iterdir() if entry.name.isdigit()]
    return sorted((process for process in found if process), key=lambda process: process.pid)


def listening_pids(port: int, proc_root: Path = Path("/proc")) -> tuple[bool, list[int]]:
    """Return whether anybody listens on the TCP port, and the pids that hold the socket.

    The list is empty for a port held by another user's process when we are not root: the kernel hides its sockets.
    """
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        inodes |= parse_listeners(_read(proc_root / "net" / table)).get(port, set())
    if not inodes:
        return False, []
    wanted = {f"socket:[{inode}]" for inode in inodes}
    pids = []
    for entry in proc_root.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(str(descriptor.readlink()) in wanted for descriptor in (entry / "fd").iterdir()):
                pids.append(int(entry.name))
    return True, sorted(pids)


def is_below(process: Process, ancestor_pid: int, table: dict[int, Process]) -> bool:
    """Return whether `ancestor_pid` is the process itself or one of its ancestors."""
    pid = process.pid
    while pid > 1:
        if pid == ancestor_pid:
            return True
        step = table.get(pid)
        if step is None:
            return False
        pid = step.parent_pid
    return False


def orphans(root: str, supervisor_pid: int | None, found: Iterable[Process]) -> list[Process]:
    """Return the processes marked with our root that no living supervisor of ours looks after.

    A process is looked after when the supervisor that answers on our socket is its ancestor, or when it runs in one
    of our systemd units. A supervisor of ours that no longer answers (its root was deleted below it) is an orphan
    too, and comes first: it would start its programs again.
    """
    table = {process.pid: process for process in found}
    lost = [
        process
        for process in table.values()
        if process.root == root
        and not process.unit
        and (supervisor_pid is None or not is_below(process, supervisor_pid, table))
    ]
    own_pids = {os.getpid(), os.getppid()}
    lost = [process for process in lost if process.pid not in own_pids]
    return sorted(lost, key=lambda process: (bool(process.service), process.pid))


def _alive(pid: int) -> bool:
    return read_process(pid) is not None


def end(
    pids: Iterable[int],
    grace_s: float = 10.0,
    send: Callable[[int, int], None] = os.kill,
) -> list[int]:
    """End the processes: SIGTERM to all in the given order, SIGKILL after `grace_s`; return those still alive."""
    remaining = list(pids)
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                send(pid, sign)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline and any(_alive(pid) for pid in remaining):
            time.sleep(0.05)
        remaining = [pid for pid in remaining if _alive(pid)]
        if not remaining:
            break
    return remaining
