# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The few orders that we give to systemd, through systemctl and journalctl. (outside)"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

UNIT_DIR = "/etc/systemd/system"
QUERY_TIMEOUT_S = 30.0
# systemctl waits for the job, and a unit has its own limits; this one only ends a wait that would never end.
JOB_TIMEOUT_S = 1800.0

_PROPERTIES = (
    "ActiveState",
    "ExecMainExitTimestampMonotonic",
    "ExecMainStatus",
    "LoadState",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)
_NOT_ALWAYS = {"ExecMainExitTimestampMonotonic", "ExecMainStatus", "MainPID", "NRestarts"}


class SystemdError(Exception):
    """systemctl or journalctl failed; the message holds what it said."""


@dataclass(frozen=True)
class Unit:
    """What `systemctl show` says of a unit. `main_pid` is 0 without a process; `has_run`: it ended once."""

    name: str
    load_state: str
    active_state: str
    sub_state: str
    main_pid: int
    needs_reload: bool
    enabled: bool
    result: str
    restarts: int
    exit_status: int
    has_run: bool = False


def unit_name(service: str) -> str:
    """Return the unit of one of our services."""
    return f"gpurig-{service}.service"


def _run(command: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""},
        )
    except FileNotFoundError as error:
        raise SystemdError(f"{command[0]} was not found on this host; is systemd installed?") from error
    except subprocess.TimeoutExpired as error:
        raise SystemdError(f"{' '.join(command)} did not return within {timeout_s:.0f} s") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or "it said nothing"
        raise SystemdError(f"{' '.join(command)} failed with {done.returncode}: {said}")
    return done.stdout


def parse_show(name: str, text: str) -> Unit:
    """Return the unit from the NAME=VALUE lines of `systemctl show`. Raises SystemdError when one is missing."""
    seen = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    missing = sorted(set(_PROPERTIES) - _NOT_ALWAYS - set(seen))
    if missing:
        raise SystemdError(f"{name}: systemctl show did not tell {', '.join(missing)}")
    return Unit(
        name=name,
        load_state=seen["LoadState"],
        active_state=seen["ActiveState"],
        sub_state=seen["SubState"],
        main_pid=int(seen.get("MainPID") or 0),
        needs_reload=seen["NeedDaemonReload"] == "yes",
        enabled=seen["UnitFileState"] == "enabled",
        result=seen["Result"],
        restarts=int(seen.get("NRestarts") or 0),
        exit_status=int(seen.get("ExecMainStatus") or 0),
        has_run=int(seen.get("ExecMainExitTimestampMonotonic") or 0) > 0,
    )


def show(name: str) -> Unit:
    """Return what systemd knows of the unit; an unknown one has load_state 'not-found'."""
    return parse_show(name, _run(["systemctl", "show", f"--property={','.join(_PROPERTIES)}", name], QUERY_TIMEOUT_S))


def daemon_reload() -> None:
    """Let systemd read its unit files again."""
    _run(["systemctl", "daemon-reload"], QUERY_TIMEOUT_S * 4)


def order(verb: str, names: Iterable[str]) -> None:
    """Give an order for the units: enable, disable, start, restart, stop or reset-failed. Raises SystemdError."""
    wanted = list(names)
    if wanted:
        _run(["systemctl", verb, *wanted], JOB_TIMEOUT_S)


def journal(name: str, lines: int) -> list[str]:
    """Return the unit's last log lines, oldest first, without time and host. Raises SystemdError."""
    command = ["journalctl", "--unit", name, "--lines", str(lines), "--output", "cat", "--quiet", "--no-pager"]
    return _run(command, QUERY_TIMEOUT_S).splitlines()
