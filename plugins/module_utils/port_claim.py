# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A service's TCP port: end what outlived its supervisor, and say who else holds it. (outside)"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .procfs import Process, end, listening_pids, orphans, processes, read_process
from .supervisor import Supervisor


@dataclasses.dataclass(frozen=True)
class Claim:
    """What came of it. `ended`: processes that were ended, or would be, in words. `holder`: the service itself when it
    has the port. `problem`: why it cannot have it. Texts are empty where there is nothing to say.
    """

    ended: list[str]
    holder: str
    problem: str


def claim(
    name: str,
    port: int,
    rig: Mapping[str, Any],
    kept: Collection[str] = (),
    where: str = "rig_instances",
    check: bool = False,
) -> Claim:
    """Have the port for the service. `port`: 0 only ends orphans. `kept`: the services of ours that stay, all if empty.

    `where`: the variable that gives the port, for the message. With `check` nothing is ended.
    """
    root = rig["root_dir"]
    lost = orphans(root, _supervisor_pid(rig), processes())
    words = [process.in_words() for process in lost]
    alive = end([process.pid for process in lost]) if lost and not check else []
    if alive:
        problem = f"left-over processes of {root} do not end: pids {alive}. End them by hand, then run again."
        return Claim(words, "", f"{name}: {problem}")
    gone = {process.pid for process in lost} if check else set()
    holder, taken_by = port_problem(name, port, root, gone, kept) if port else ("", "")
    if not taken_by:
        return Claim(words, holder, "")
    whom = "the instance" if where == "rig_instances" else "it"
    remedy = f"Stop that process or give {whom} another `port` in {where}."
    return Claim(words, holder, f"{name}: port {port} is taken by {taken_by}. {remedy}")


def _supervisor_pid(rig: Mapping[str, Any]) -> int | None:
    if rig["service_manager"] != "supervisord":
        return None
    supervisor = Supervisor(rig["paths"])
    pid = supervisor.daemon_pid()
    # A daemon that is only slow to answer still looks after its programs; one without its socket does not.
    return supervisor.recorded_pid() if pid is None and Path(supervisor.socket).exists() else pid


def port_problem(name: str, port: int, root: str, ended: set[int], kept: Collection[str]) -> tuple[str, str]:
    """Return (holder in words when it is the service itself, who else has the port); both empty for a free port."""
    busy, pids = listening_pids(port)
    if not busy:
        return "", ""
    holders = [process for process in map(read_process, pids) if process]
    strangers = [process for process in holders if process.pid not in ended and not is_own(process, name, root, kept)]
    if not holders:
        return "", "a process that this user may not look into (root can: ss -ltnp)"
    if strangers:
        return "", "; ".join(process.in_words() for process in strangers)
    own = [process.in_words() for process in holders if process.pid not in ended]
    return "; ".join(own), ""


def is_own(process: Process, name: str, root: str, kept: Collection[str]) -> bool:
    """Return whether the process is this very service of this very root, or one of ours that is not to stay."""
    if process.root == root and process.service and kept and process.service not in kept:
        return True
    return process.unit == f"gpurig-{name}.service" or (process.service == name and process.root == root)
