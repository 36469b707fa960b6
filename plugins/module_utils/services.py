# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The services of one host: what should run, what runs, and how to start and stop it, under either manager. (outside)

Three things meet here: the spec record (services/NAME.json, what is wanted and that it is ours), the manager (systemd
or supervisord, what has a process), and the run record (run/NAME.json, written by `gpurig exec` in the very process
that becomes the engine: what that process was started from).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from . import procfs, systemd
from .fingerprint import fingerprint, parts
from .small_files import read_json, write_json
from .supervisor import DaemonDownError, DaemonStoppingError, Program, Supervisor

EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h: starting again does not help
LOG_LINES = 40
POLL_S = 0.05
SETTLE_S = 20.0
RESTARTED_S = 3.0
STEADY_S = 0.25
DEFAULT_STOP_TIMEOUT_S = 60.0
CONFIG_FILES_DIR = "instances"
PLANS_DIR = "plans"
BROKEN_RECORD = "{} is broken. Run the playbook again, which writes it anew"
_TAIL_BYTES = 64 * 1024

GOOD = ("running", "finished")
"""States in which a service is what it should be; 'finished' is a oneshot that did its work."""


class HostError(Exception):
    """The host's own description cannot be used, or a service is not known; the message says what to do."""


def tail(path: str, lines: int) -> list[str]:
    """Return the last lines of a text file, oldest first; empty when it cannot be read."""
    wanted_bytes = _TAIL_BYTES
    try:
        with Path(path).open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            while True:
                stream.seek(max(0, size - wanted_bytes))
                text = stream.read()
                if wanted_bytes >= size or text.count(b"\n") > lines:
                    break
                wanted_bytes *= 4
    except OSError:
        return []
    return text.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []


# --- the machine's processes


def boot_id() -> str:
    """Return the kernel's id of this boot; '' where /proc does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def start_ticks(pid: int) -> int:
    """Return when the process started, in clock ticks since boot (field 22 of /proc/PID/stat); 0 when it is gone.

    A pid together with this number is never used twice in one boot, and exec changes neither.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
        return int(stat.rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


# --- the host


@dataclass(frozen=True)
class Host:
    """What the tool and the modules know about the host; `paths` as in the rig facts."""

    kind: str
    manager: str
    paths: Mapping[str, str]
    user: str = ""
    group: str = ""
    python: str = ""
    version: str = ""
    nvml_path: str = ""
    unit_dir: str = systemd.UNIT_DIR

    @classmethod
    def from_rig(cls, rig: Mapping[str, Any]) -> Host:
        """Return the host of the rig facts; what only the installed tool knows is read from its host.json."""
        paths = dict(rig["paths"])
        known = read_json(f"{paths['config']}/host.json") or {}
        return cls(
            kind=str(rig.get("kind", "")),
            manager=str(rig["service_manager"]),
            paths=paths,
            user=str(rig.get("user", "")),
            group=str(rig.get("group", "")),
            python=str(known.get("python", "")),
            version=str(known.get("version", "")),
            nvml_path=str(known.get("nvml_path", "")),
            unit_dir=str(known.get("unit_dir") or systemd.UNIT_DIR),
        )

    @classmethod
    def load(cls, path: str) -> Host:
        """Return the host that host.json describes. Raises HostError."""
        known = read_json(path)
        problem = _host_problem(known)
        if known is None or problem:
            raise HostError(
                f"{path}: cannot be used ({problem}). Run the playbook again; its role host_tool writes this file."
            )
        return cls(
            kind=str(known.get("kind", "")),
            manager=str(known["service_manager"]),
            paths={str(key): str(value) for key, value in known["paths"].items()},
            user=str(known.get("user", "")),
            group=str(known.get("group", "")),
            python=str(known.get("python", "")),
            version=str(known.get("version", "")),
            nvml_path=str(known.get("nvml_path", "")),
            unit_dir=str(known.get("unit_dir") or systemd.UNIT_DIR),
        )

    @property
    def root(self) -> str:
        return self.paths["root"]

    def record(self, name: str) -> str:
        """The spec record; that it exists says that the service is ours."""
        return f"{self.paths['services']}/{name}.json"

    def run_record(self, name: str) -> str:
        return f"{self.paths['run']}/{name}.json"

    def starts_record(self, name: str) -> str:
        return f"{self.paths['run']}/{name}.starts.json"

    def ready_record(self, name: str) -> str:
        return f"{self.paths['run']}/{name}.ready.json"

    def good_record(self, name: str) -> str:
        """The record and the manager's file with which the service was last healthy, to go back to."""
        return f"{self.paths['services']}/good/{name}.json"

    def plan_record(self, name: str) -> str:
        """The memory plan of an engine (module vram_plan)."""
        return f"{self.paths['state']}/{PLANS_DIR}/{name}.json"

    def config_files(self, name: str) -> list[str]:
        """The engine's configuration files of the service, each named by its content, sorted."""
        pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}\.yaml")
        directory = Path(self.paths["config"], CONFIG_FILES_DIR)
        with contextlib.suppress(OSError):
            return sorted(str(path) for path in directory.iterdir() if pattern.fullmatch(path.name))
        return []

    def program_file(self, name: str) -> str:
        """The manager's own file of the service."""
        if self.manager == "systemd":
            return f"{self.unit_dir}/{systemd.unit_name(name)}"
        return f"{Supervisor(self.paths).programs_dir}/{name}.conf"

    def names(self) -> list[str]:
        """The services that we own, sorted."""
        with contextlib.suppress(OSError):
            return sorted(path.stem for path in Path(self.paths["services"]).glob("*.json"))
        return []

    def spec(self, name: str) -> dict[str, Any]:
        """The service's spec. Raises HostError when there is none."""
        found = read_json(self.record(name))
        if found is None:
            known = ", ".join(self.names()) or "none"
            raise HostError(
                f"{name}: no such service ({self.record(name)} is missing or broken). Services here: {known}"
            )
        return found


def _host_problem(known: Mapping[str, Any] | None) -> str:
    if known is None:
        return "it is missing, unreadable or no JSON object"
    paths = known.get("paths")
    needed = {"root", "bin", "tool", "envs", "config", "secrets", "services", "state", "log", "run"}
    missing = needed - set(paths if isinstance(paths, dict) else ())
    if missing:
        return f"its paths lack {', '.join(sorted(missing))}"
    if known.get("service_manager") not in _MANAGERS:
        return f"its service_manager is {known.get('service_manager')!r}; needed: systemd or supervisord"
    return ""


# --- what a service is started from


def gpu_role_cards(host: Host, role: str) -> list[str] | None:
    """Return the cards of the role (UUIDs or PCI addresses) from gpu_roles.json; None when the role is unknown."""
    cards = (read_json(f"{host.paths['config']}/gpu_roles.json") or {}).get(role)
    return [str(card) for card in cards] if isinstance(cards, list) else None


def inputs_of(host: Host, name: str, spec: Mapping[str, Any]) -> list[str]:
    """Return the files that a start of the service depends on: those the spec names, its secrets, the environments
    that its command line names, and the manager's file.
    """
    found = [str(path) for path in spec.get("inputs") or []]
    if spec.get("secrets_file"):
        found.append(str(spec["secrets_file"]))
    envs = host.paths["envs"]
    for word in spec.get("argv") or []:
        if str(word).startswith(f"{envs}/"):
            env, _, rest = str(word)[len(envs) + 1 :].partition("/")
            if rest.startswith("current/"):
                found.append(f"{envs}/{env}/current")
    return [*found, host.program_file(name)]


@dataclass(frozen=True)
class Origin:
    """What a process was, or would be, started from: `value` for the whole, `parts` per file, `cards` of its role."""

    value: str
    parts: Mapping[str, str]
    cards: tuple[str, ...]


def origin(host: Host, name: str, spec: Mapping[str, Any]) -> Origin:
    """Return what a start of the service now would be a start from."""
    inputs = inputs_of(host, name, spec)
    role = str(spec.get("gpu_role") or "")
    return Origin(
        value=fingerprint(host.record(name), inputs),
        parts=parts(host.record(name), inputs),
        cards=tuple(gpu_role_cards(host, role) or ()) if role else (),
    )


@dataclass(frozen=True)
class Run:
    """The run record: which process was started, when, and from what."""

    pid: int
    started_at_s: float
    boot_id: str
    start_ticks: int
    fingerprint: str
    parts: Mapping[str, str]
    cards: tuple[str, ...]

    def is_process(self, pid: int) -> bool:
        """Whether the record is about the process that has this pid now."""
        return bool(pid) and pid == self.pid and self.boot_id == boot_id() and self.start_ticks == start_ticks(pid)


def read_run(host: Host, name: str) -> Run | None:
    """Return the run record of the service; None when there is none that can be read."""
    known = read_json(host.run_record(name))
    try:
        if known is None:
            return None
        return Run(
            pid=int(known["pid"]),
            started_at_s=float(known["started_at_s"]),
            boot_id=str(known["boot_id"]),
            start_ticks=int(known["start_ticks"]),
            fingerprint=str(known["fingerprint"]),
            parts={str(path): str(value) for path, value in known["parts"].items()},
            cards=tuple(str(card) for card in known["cards"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def is_engine(host: Host, run: Run | None, pid: int) -> bool:
    """Return whether the process `pid` was started by the run on record and is no longer `gpurig exec` itself."""
    if run is None or not run.is_process(pid):
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return (f"{host.paths['tool']}/current", "exec") not in itertools.pairwise(words)


def write_run(host: Host, name: str, seen: Origin, now_s: float) -> None:
    """Record that this very process now becomes the service."""
    pid = os.getpid()
    write_json(
        host.run_record(name),
        {
            "pid": pid,
            "started_at_s": now_s,
            "boot_id": boot_id(),
            "start_ticks": start_ticks(pid),
            "fingerprint": seen.value,
            "parts": dict(seen.parts),
            "cards": list(seen.cards),
        },
    )


def differences(run: Run, wanted: Origin) -> list[str]:
    """Return in words what is not what the process was started from; empty when it is up to date."""
    if run.fingerprint == wanted.value and run.cards == wanted.cards:
        return []
    found = []
    for path in sorted(set(run.parts) | set(wanted.parts)):
        before, after = run.parts.get(path), wanted.parts.get(path)
        if before != after:
            found.append(
                f"{path} {'is new' if before is None else 'is no longer used' if after is None else 'changed'}"
            )
    if run.cards != wanted.cards:
        found.append(f"its cards changed from {list(run.cards)} to {list(wanted.cards)}")
    return found or ["what it was started from has changed"]


# --- starts and the budget


@dataclass(frozen=True)
class Starts:
    """The starts since somebody last started the service on purpose; times are seconds since boot."""

    times_s: tuple[float, ...] = ()
    total: int = 0
    spent: bool = False


def boot_time_s() -> float:
    """Seconds since boot: unlike the clock on the wall it never jumps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_starts(host: Host, name: str) -> Starts:
    """Return the recorded starts; none when the record is missing, broken or of another boot."""
    known = read_json(host.starts_record(name)) or {}
    try:
        if known.get("boot_id") == boot_id():
            return Starts(
                tuple(float(time_s) for time_s in known["times_s"]), int(known["total"]), bool(known["spent"])
            )
    except (KeyError, TypeError, ValueError):
        pass
    return Starts()


def write_starts(host: Host, name: str, starts: Starts) -> None:
    """Record the starts."""
    content = {"boot_id": boot_id(), "times_s": list(starts.times_s), "total": starts.total, "spent": starts.spent}
    write_json(host.starts_record(name), content)


def clear_budget(host: Host, name: str) -> None:
    """Forget the starts: somebody starts the service on purpose."""
    Path(host.starts_record(name)).unlink(missing_ok=True)


def stop_timeout_s(spec: Mapping[str, Any]) -> float:
    """Return how long to wait for the service's end: its own limit, after which it is killed, and a little more."""
    limit_s = spec.get("stop_timeout_s")
    return (float(limit_s) if isinstance(limit_s, (int, float)) else DEFAULT_STOP_TIMEOUT_S) + 15.0


# --- the managers


@dataclass(frozen=True)
class View:
    """One service as its manager sees it. `known`: the manager has it. `enabled`: it starts with the manager.
    `unattended`: processes of ours that no manager looks after, in words. `started_at_s`: seconds since 1970.
    """

    state: str
    pid: int = 0
    restarts: int = 0
    known: bool = True
    enabled: bool = True
    log: str = ""
    note: str = ""
    unattended: tuple[str, ...] = ()
    started_at_s: float = 0.0


class Manager(Protocol):
    """What starts and stops services."""

    def view(self, name: str, oneshot: bool) -> View:
        """Look, change nothing."""

    def outdated(self, name: str) -> str:
        """Return in words why the manager works with another file of the service than the one on disk; '' if not."""

    def prepare(self, name: str, stop_timeout_s: float) -> list[str]:
        """Make the manager run and know the service's present file; return what it ended on the way."""

    def start(self, name: str) -> None:
        """Start the service, which does not run."""

    def stop(self, name: str, timeout_s: float) -> None:
        """Stop the service and what is left of it; fine when nothing runs."""

    def forget(self, name: str, timeout_s: float) -> None:
        """Let the manager forget the stopped service, whose file is gone."""


def supervisor_state(program: Program, spent: bool, oneshot: bool) -> str:
    """Return our word for supervisord's state (supervisor/states.py)."""
    state = program.state
    if state in {"RUNNING", "STOPPING", "STOPPED"}:
        return state.lower()
    if state == "EXITED" and oneshot and program.exit_status == 0:
        return "finished"
    # A server that ended with anything but 78 is between two starts: our program files say exitcodes=78.
    if state in {"STARTING", "BACKOFF"} or (state == "EXITED" and not oneshot and program.exit_status != EXIT_CONFIG):
        return "starting"
    return "budget_spent" if spent else "failed"


def systemd_state(unit: systemd.Unit, spent: bool, oneshot: bool = False) -> str:
    """Return our word for systemd's ActiveState, SubState and Result. An oneshot that is to run again does not stay
    active after its work.
    """
    if unit.active_state == "active":
        return "finished" if unit.sub_state == "exited" else "running"
    if unit.active_state in {"reloading", "refreshing"}:
        return "running"
    if unit.active_state == "deactivating":
        return "stopping"
    if unit.active_state == "activating":
        return "starting"
    if unit.active_state == "failed":
        return "budget_spent" if spent or unit.result == "start-limit-hit" else "failed"
    return "finished" if oneshot and unit.has_run and unit.result == "success" else "stopped"


class SupervisordManager:
    """Services under supervisord, on hosts without systemd."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.supervisor = Supervisor(host.paths, host.python)

    def view(self, name: str, oneshot: bool) -> View:
        spent = read_starts(self.host, name).spent
        restarts = max(read_starts(self.host, name).total - 1, 0)
        try:
            program = self.supervisor.program(name)
        except (DaemonDownError, DaemonStoppingError) as error:
            lost = [process for process in self.supervisor.leftovers() if process.service in {name, ""}]
            own = [process for process in lost if process.service == name]
            return View(
                state="running" if own else "stopped",
                pid=self._leader(name, own),
                restarts=restarts,
                known=False,
                note=str(error),
                unattended=tuple(process.in_words() for process in lost),
            )
        if program is None:
            return View(state="stopped", restarts=restarts, known=False)
        return View(
            state=supervisor_state(program, spent, oneshot),
            pid=program.pid,
            restarts=restarts,
            log=program.log,
            note=program.error,
            started_at_s=float(program.start_s),
        )

    def _leader(self, name: str, lost: list[procfs.Process]) -> int:
        run = read_run(self.host, name)
        pids = [process.pid for process in lost]
        return run.pid if run and run.pid in pids else (pids[0] if pids else 0)

    def outdated(self, name: str) -> str:
        try:
            pending = self.supervisor.pending()
        except (DaemonDownError, DaemonStoppingError):
            return "supervisord does not run"
        if name in pending.added:
            return "supervisord does not know it yet"
        if name in pending.changed:
            return f"supervisord has not read the changed {self.host.program_file(name)}"
        return f"{self.host.program_file(name)} is gone" if name in pending.removed else ""

    def prepare(self, name: str, stop_timeout_s: float) -> list[str]:
        ended = self.supervisor.start_daemon()
        self.supervisor.update(name, stop_timeout_s)
        return ended

    def start(self, name: str) -> None:
        self.supervisor.start(name)

    def stop(self, name: str, timeout_s: float) -> None:
        with contextlib.suppress(DaemonDownError, DaemonStoppingError):
            self.supervisor.stop(name, timeout_s)
        self.supervisor.end_leftovers(name)  # a killed engine's workers, say

    def forget(self, name: str, timeout_s: float) -> None:
        with contextlib.suppress(DaemonDownError, DaemonStoppingError):
            self.supervisor.update(name, timeout_s)


class SystemdManager:
    """Services under systemd."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def view(self, name: str, oneshot: bool) -> View:
        unit = systemd.show(systemd.unit_name(name))
        starts = read_starts(self.host, name)
        return View(
            state=systemd_state(unit, starts.spent, oneshot),
            pid=unit.main_pid,
            restarts=max(unit.restarts, starts.total - 1),
            known=unit.load_state != "not-found",
            enabled=unit.enabled,
            note="" if unit.result == "success" else f"{unit.result}, exit status {unit.exit_status}",
        )

    def outdated(self, name: str) -> str:
        unit = systemd.show(systemd.unit_name(name))
        if unit.load_state == "not-found":
            return "systemd does not know it yet"
        return f"systemd has not read the changed {self.host.program_file(name)}" if unit.needs_reload else ""

    def prepare(self, name: str, stop_timeout_s: float) -> list[str]:  # noqa: ARG002 (systemd needs no limit here)
        unit = systemd.show(systemd.unit_name(name))
        if unit.needs_reload or unit.load_state == "not-found":
            systemd.daemon_reload()
            unit = systemd.show(systemd.unit_name(name))
        if not unit.enabled:
            systemd.order("enable", [unit.name])
        return []

    def start(self, name: str) -> None:
        systemd.order("reset-failed", [systemd.unit_name(name)])
        systemd.order("start", [systemd.unit_name(name)])

    def stop(self, name: str, timeout_s: float) -> None:  # noqa: ARG002 (the unit has its own limit)
        if systemd.show(systemd.unit_name(name)).load_state != "not-found":
            systemd.order("stop", [systemd.unit_name(name)])

    def forget(self, name: str, timeout_s: float) -> None:  # noqa: ARG002
        systemd.daemon_reload()
        with contextlib.suppress(systemd.SystemdError):  # it fails for a unit that is not loaded, which is the aim
            systemd.order("reset-failed", [systemd.unit_name(name)])


_MANAGERS: Mapping[str, type[SupervisordManager] | type[SystemdManager]] = {
    "supervisord": SupervisordManager,
    "systemd": SystemdManager,
}


def manager_of(host: Host) -> SupervisordManager | SystemdManager:
    """Return the manager of the host's services. Raises HostError for an unknown one."""
    try:
        return _MANAGERS[host.manager](host)
    except KeyError:
        raise HostError(f"service manager {host.manager!r} is not known; needed: systemd or supervisord") from None


# --- the whole picture


@dataclass(frozen=True)
class ServiceState:
    """One service in full. `state`: running, starting, stopping, stopped, failed, budget_spent, or finished for a
    oneshot that did its work. `stale`: it runs, but not from what a start would use now; `why_stale` says in words what
    differs. `since_s`: seconds since 1970, 0 when it does not run.
    """

    name: str
    state: str
    pid: int = 0
    since_s: float = 0.0
    restarts: int = 0
    fingerprint_running: str = ""
    fingerprint_wanted: str = ""
    stale: bool = False
    why_stale: list[str] = field(default_factory=list)
    url: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    log_path: str = ""
    log_tail: list[str] = field(default_factory=list)
    note: str = ""


def log_path(host: Host, name: str, spec: Mapping[str, Any], view: View | None = None) -> str:
    """Return the service's log file."""
    if view is not None and view.log.startswith("/"):
        return view.log
    return f"{spec.get('log_dir') or host.paths['log']}/{name}.log"


def log_lines(host: Host, name: str, path: str, lines: int) -> list[str]:
    """Return the last lines of the service's log: of its file, or of the journal under systemd."""
    if host.manager == "systemd":
        try:
            return systemd.journal(systemd.unit_name(name), lines)
        except systemd.SystemdError as error:
            return [str(error)]
    return tail(path, lines)


def settled_state(view: View, current: bool) -> str:
    """Return the state, given whether the run record is about the process that the manager has: until it is, that
    process is still `gpurig exec`, which waits or prepares.
    """
    if view.state in {"running", "starting"} and not view.unattended:
        return "running" if current else "starting"
    return view.state


def service_state(host: Host, name: str, lines: int = LOG_LINES) -> ServiceState:
    """Return the whole picture of one service. Raises HostError for an unknown one, SystemdError, SupervisorError."""
    spec = host.spec(name)
    oneshot = bool(spec.get("oneshot"))
    view = manager_of(host).view(name, oneshot)
    run = read_run(host, name)
    wanted = origin(host, name, spec)
    current = is_engine(host, run, view.pid)
    state = settled_state(view, current)
    why = differences(run, wanted) if run and (current or state == "finished") else []
    labels = {str(key): str(value) for key, value in (spec.get("labels") or {}).items()}
    path = log_path(host, name, spec, view)
    since_s = (run.started_at_s if run and current else view.started_at_s) if view.pid else 0.0
    return ServiceState(
        name=name,
        state=state,
        pid=view.pid,
        since_s=since_s,
        restarts=view.restarts,
        fingerprint_running=run.fingerprint if run and current else "",
        fingerprint_wanted=wanted.value,
        stale=bool(why),
        why_stale=why,
        url=labels.get("url", ""),
        labels=labels,
        log_path=path,
        log_tail=log_lines(host, name, path, lines) if lines else [],
        note=("not supervised: supervisord is gone. gpurig start takes care" if view.unattended else view.note),
    )


def all_services(host: Host, lines: int = 0) -> list[ServiceState]:
    """Return every service that we own; one whose record cannot be read says so and hides no other."""
    seen = []
    for name in host.names():
        if read_json(host.record(name)) is None:
            seen.append(_unrecorded(host, name))
        else:
            seen.append(service_state(host, name, lines))
    return seen


def _unrecorded(host: Host, name: str) -> ServiceState:
    view = manager_of(host).view(name, oneshot=False)
    note = BROKEN_RECORD.format(host.record(name))
    return ServiceState(name=name, state=view.state, pid=view.pid, restarts=view.restarts, note=note)


def read_service(rig: Mapping[str, Any], name: str, lines: int = LOG_LINES) -> ServiceState:
    """Return the service's picture on the host of the rig facts; 'stopped' when there is no such service yet."""
    host = Host.from_rig(rig)
    if read_json(host.record(name)) is None:
        return ServiceState(name=name, state="stopped", note=f"{host.record(name)} does not exist")
    return service_state(host, name, lines)


def wait_settled(host: Host, name: str, timeout_s: float = SETTLE_S) -> ServiceState:
    """Wait until the process that was just started has become the engine, or has ended for good; return the picture.

    A oneshot has its own time to end. What runs must run for a moment, which shows an engine that cannot start at all.
    A service that was started again meanwhile gets only a little more time: it will hardly become good.
    """
    spec = host.spec(name)
    unsettled = {"starting", "stopping"}
    if spec.get("oneshot"):
        unsettled.add("running")
        timeout_s = max(timeout_s, float(spec.get("start_timeout_s") or 0))
    deadline = time.monotonic() + timeout_s
    pid, since_s = 0, 0.0
    while True:
        seen = service_state(host, name)
        if seen.pid != pid or seen.state in unsettled:
            pid, since_s = seen.pid, time.monotonic()
        steady = seen.state != "running" or time.monotonic() - since_s >= STEADY_S
        if (seen.state not in unsettled and steady) or time.monotonic() > deadline:
            return seen
        if seen.restarts:
            deadline = min(deadline, time.monotonic() + RESTARTED_S)
        time.sleep(POLL_S)


# --- how long it took to become ready


def read_ready_s(rig: Mapping[str, Any], name: str, state: ServiceState) -> float | None:
    """Return the recorded seconds from start to readiness of the process that runs now; None when not recorded."""
    known = read_json(Host.from_rig(rig).ready_record(name)) or {}
    try:
        if known["pid"] == state.pid and float(known["since_s"]) == state.since_s:
            return float(known["ready_s"])
    except (KeyError, TypeError, ValueError):
        pass
    return None


def write_ready_s(rig: Mapping[str, Any], name: str, state: ServiceState) -> float | None:
    """Record that the running process is ready now and return the seconds since its start; None without a start."""
    if not state.pid or not state.since_s:
        return None
    ready_s = round(max(time.time() - state.since_s, 0.0), 3)
    write_json(Host.from_rig(rig).ready_record(name), {"pid": state.pid, "since_s": state.since_s, "ready_s": ready_s})
    return ready_s


def own_files(host: Host, names: Iterable[str]) -> list[str]:
    """Return the files of the services that exist beside record and manager's file, sorted."""
    found = [
        path
        for name in names
        for path in (
            host.run_record(name),
            host.starts_record(name),
            host.ready_record(name),
            host.good_record(name),
            host.plan_record(name),
            *host.config_files(name),
        )
    ]
    return sorted(path for path in found if Path(path).exists())
