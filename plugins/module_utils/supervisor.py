# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of supervisord, the process manager of hosts without systemd, over its Unix socket. (outside)

Written for supervisor 4.3.0; where its behaviour surprises, the comment names the function of its source.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import pwd
import socket
import stat
import struct
import subprocess
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import procfs

POLL_S = 0.05
RPC_TIMEOUT_S = 15.0
START_TIMEOUT_S = 30.0
SHUTDOWN_TIMEOUT_S = 180.0
# The daemon links its socket before it writes its pid file and answers nobody in between.
_SETTLE_S = 5.0

# supervisor/xmlrpc.py, class Faults
_SHUTDOWN_STATE = 6
_BAD_NAME = 10
_NO_FILE = 20
_NOT_EXECUTABLE = 21
_SPAWN_ERROR = 50
_ALREADY_STARTED = 60
_NOT_RUNNING = 70
_ALREADY_ADDED = 90
_STILL_RUNNING = 91
_CANT_REREAD = 92

# supervisor/states.py, class ProcessStates
ALIVE_STATES = ("STARTING", "RUNNING", "STOPPING")
_AT_REST = ("STOPPED", "FATAL", "UNKNOWN")

_DAEMON_MODULE = "supervisor.supervisord"
# Long enough for a lost daemon to stop its programs, each within its own limit.
_DAEMON_GRACE_S = 45.0

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class SupervisorError(Exception):
    """supervisord did not do what was asked; the message says what and what to do."""


class DaemonDownError(SupervisorError):
    """No supervisord of this rig answers."""


class DaemonStoppingError(SupervisorError):
    """supervisord is shutting down and takes no orders."""


class ProgramUnknownError(SupervisorError):
    """supervisord has no program of that name."""


class ProgramConfigError(SupervisorError):
    """supervisord cannot read its files."""


class RefusedError(SupervisorError):
    """supervisord refused an order; `code` is one of its faults."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Program:
    """One program as supervisord sees it. `pid` is 0 without a process, `start_s` seconds since 1970, 0 if never."""

    name: str
    state: str
    pid: int
    start_s: int
    exit_status: int
    error: str
    log: str


@dataclass(frozen=True)
class Pending:
    """Programs whose files differ from what the running daemon works with."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=RPC_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(RPC_TIMEOUT_S)
        self.sock.connect(self._path)
        _pid, uid, _gid = struct.unpack(
            "3i", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        if os.geteuid() not in {0, uid} and uid != 0:
            raise SupervisorError(f"the socket {self._path} belongs to user {uid} and not to us; it is not used")


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._unix = _UnixConnection(path)

    def make_connection(self, _host: Any) -> http.client.HTTPConnection:
        return self._unix

    def close(self) -> None:
        self._unix.close()


def clean_environment(root: str) -> dict[str, str]:
    """Return all that the daemon gets to see: nothing of the caller's, whose keys and proxies would reach engines."""
    return {"PATH": _SYSTEM_PATH, "HOME": _home(), "LANG": "C.UTF-8", procfs.ROOT_MARK: root}


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/"


class Supervisor:
    """The supervisord of one rig. `paths`: the rig's paths; `python`: the interpreter that has supervisor, to start."""

    def __init__(self, paths: Mapping[str, str], python: str = "") -> None:
        self.root = paths["root"]
        self.config = paths.get("supervisor_conf") or f"{paths['config']}/supervisord.conf"
        self.programs_dir = paths.get("supervisor_programs") or f"{paths['config']}/supervisor.d"
        self.socket = paths.get("supervisor_socket") or f"{paths['run']}/supervisor.sock"
        self.pidfile = f"{paths['run']}/supervisord.pid"
        self.python = python

    # the daemon

    def _ask(self, method: str, *args: Any) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self.socket), allow_none=True)
        with proxy:
            try:
                return getattr(proxy.supervisor, method)(*args)
            except xmlrpc.client.Fault as fault:
                raise self._in_words(method, fault, args) from fault
            except (OSError, http.client.HTTPException, xmlrpc.client.Error) as error:
                raise DaemonDownError(
                    f"supervisord does not answer on {self.socket} ({error}). Start it: gpurig start"
                ) from error

    def _in_words(self, method: str, fault: xmlrpc.client.Fault, args: tuple[Any, ...]) -> SupervisorError:
        name = str(args[0]) if args else ""
        text = fault.faultString
        if fault.faultCode == _SHUTDOWN_STATE:
            return DaemonStoppingError("supervisord is shutting down; wait until it is gone, then: gpurig start")
        if fault.faultCode == _BAD_NAME:
            return ProgramUnknownError(
                f"{name}: supervisord has no such program; its file would be {self.programs_dir}/{name}.conf"
            )
        if fault.faultCode == _CANT_REREAD:
            return ProgramConfigError(f"supervisord cannot read its files below {self.programs_dir}: {text}")
        if fault.faultCode in {_NO_FILE, _NOT_EXECUTABLE, _SPAWN_ERROR}:
            return SupervisorError(f"{name}: supervisord could not start its command: {text}")
        return RefusedError(f"{name or 'supervisord'}: {method} was refused: {text}", int(fault.faultCode))

    def _ask_unless(self, fine: int, method: str, *args: Any) -> None:
        """Give an order; the fault `fine` says that there is nothing to do."""
        try:
            self._ask(method, *args)
        except RefusedError as refused:
            if refused.code != fine:
                raise

    def daemon_pid(self) -> int | None:
        """Return the pid of the daemon that answers on our socket, also while it shuts down; None when none does."""
        try:
            return int(self._ask("getPID"))
        except DaemonStoppingError:
            return self.recorded_pid()
        except SupervisorError:
            return None

    def recorded_pid(self) -> int | None:
        """Return the pid in the pid file if that process is a supervisord with our configuration; None otherwise.

        A pid file outlives a killed daemon, and its number may belong to somebody else by now.
        """
        try:
            pid = int(Path(self.pidfile).read_text(encoding="ascii"))
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            return None
        ours = self.config in words and any("supervisord" in word for word in words if word != self.config)
        return pid if ours and procfs.read_process(pid) else None

    def leftovers(self) -> list[procfs.Process]:
        """Return processes of this rig that no living supervisord of ours looks after, a lost daemon first."""
        return procfs.orphans(self.root, self.daemon_pid(), procfs.processes())

    def end_leftovers(self, name: str = "", grace_s: float = 10.0) -> list[str]:
        """End the leftovers, of one service when `name` is given, and return them in words.

        A lost daemon goes first and alone, as it would start again what is ended beside it; it stops its programs
        itself. Raises SupervisorError when some do not end.
        """
        found = self.leftovers()
        daemons = [process for process in found if not process.service and _DAEMON_MODULE in process.command]
        alive = procfs.end([process.pid for process in daemons], _DAEMON_GRACE_S)
        rest = [process for process in self.leftovers() if not name or process.service == name] if found else []
        alive += procfs.end([process.pid for process in rest], grace_s)
        if alive:
            raise SupervisorError(
                f"left-over processes of {self.root} do not end: pids {alive}. End them by hand, then run again."
            )
        known = {process.pid: process.in_words() for process in [*found, *rest] if not name or process.service == name}
        known.update({process.pid: process.in_words() for process in daemons})
        return list(known.values())

    def start_daemon(self, timeout_s: float = START_TIMEOUT_S) -> list[str]:
        """Start supervisord unless it runs, detached from us, and wait until it answers.

        A dead daemon's socket and pid file, and processes that it left behind, are removed first; they are returned in
        words. Raises SupervisorError when it does not come up.
        """
        with self._start_lock():
            return self._start_locked(timeout_s)

    @contextlib.contextmanager
    def _start_lock(self) -> Iterator[None]:
        """Keep two starters apart: the second would take the first one's half-started daemon for a lost one."""
        try:
            lock = os.open(f"{self.pidfile}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SupervisorError(
                f"supervisord cannot start: {self.pidfile}.lock cannot be written ({error}). Run the playbook again."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _start_locked(self, timeout_s: float) -> list[str]:
        if self._answers_or_ends(timeout_s):
            return []
        problems = [
            f"{path} is missing" for path in (self.config, self.python or "the Python of the tool") if not _exists(path)
        ]
        problems += self._socket_problems()
        if problems:
            raise SupervisorError(f"supervisord cannot start: {'; '.join(problems)}. Run the playbook again.")
        ended = self.end_leftovers()
        for stale in (self.socket, self.pidfile):
            Path(stale).unlink(missing_ok=True)
        self._spawn(timeout_s)
        return ended

    def _answers_or_ends(self, timeout_s: float) -> bool:
        """Return True when a daemon answers; waits for one that is just coming up or going down."""
        deadline = time.monotonic() + timeout_s
        settled = time.monotonic() + min(_SETTLE_S, timeout_s)
        while True:
            try:
                self._ask("getPID")
            except DaemonStoppingError:
                if time.monotonic() > deadline:
                    raise
            except DaemonDownError:
                if self.recorded_pid() is None or time.monotonic() > settled:
                    return False
            else:
                return True
            time.sleep(POLL_S)

    def _socket_problems(self) -> list[str]:
        directory = Path(self.socket).parent
        displaced = str(directory) != str(Path(self.pidfile).parent)
        if displaced:
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        try:
            seen = directory.lstat()
        except OSError as error:
            return [f"the directory of its socket cannot be used ({error})"]
        if displaced and not (
            stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not stat.S_IMODE(seen.st_mode) & 0o077
        ):
            return [f"{directory} is not a directory of ours with mode 0700; remove it"]
        return []

    def _spawn(self, timeout_s: float) -> None:
        # -I: neither the directory we stand in nor PYTHON* variables decide what is imported.
        command = [self.python, "-I", "-m", _DAEMON_MODULE, "-c", self.config]
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=clean_environment(self.root),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            deadline = time.monotonic() + timeout_s
            # It returns once the socket is open; the daemon goes on as its child.
            while time.monotonic() < deadline:
                ended = process.poll()
                if ended or (ended == 0 and self.daemon_pid() is not None and self.recorded_pid() is not None):
                    break
                time.sleep(POLL_S)
            if process.poll() == 0 and self.daemon_pid() is not None:
                return
            if process.poll() is None:
                process.kill()
                process.wait()
            output.seek(0)
            said = " ".join(output.read().decode(errors="replace").split()) or "it said nothing"
        raise SupervisorError(f"supervisord did not come up within {timeout_s:.0f} s ({' '.join(command)}): {said}")

    def shutdown(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> bool:
        """Stop every program and the daemon, and wait until it is gone; False when none was running.

        Raises SupervisorError when it is still there after `timeout_s`.
        """
        pid = self.daemon_pid()
        if pid is None:
            return False
        with contextlib.suppress(DaemonStoppingError, DaemonDownError):
            self._ask("shutdown")
        deadline = time.monotonic() + timeout_s
        while procfs.read_process(pid) is not None:
            if time.monotonic() > deadline:
                raise SupervisorError(
                    f"supervisord (pid {pid}) is still stopping its programs after {timeout_s:.0f} s. See its log; a "
                    f"program that ignores its stop signal is killed after its stop_timeout_s."
                )
            time.sleep(POLL_S)
        return True

    # its programs

    def programs(self) -> dict[str, Program]:
        """Return {name: Program} of all programs. Raises DaemonDownError, DaemonStoppingError."""
        return {program.name: program for program in map(_program, self._ask("getAllProcessInfo"))}

    def program(self, name: str) -> Program | None:
        """Return the program, None when the daemon does not know it. Raises DaemonDownError, DaemonStoppingError."""
        try:
            return _program(self._ask("getProcessInfo", name))
        except ProgramUnknownError:
            return None

    def pending(self) -> Pending:
        """Let the daemon read its files again and return what differs; no program is touched by that.

        Raises ProgramConfigError when any of the files is broken.
        """
        added, changed, removed = self._ask("reloadConfig")[0]
        return Pending(tuple(added), tuple(changed), tuple(removed))

    def update(self, name: str, stop_timeout_s: float = 60.0) -> str:
        """Bring this one program in line with its file and leave all others alone.

        Returns what was done: 'added', 'changed' (it was stopped and is not started here, except by its own
        autostart), 'removed', or '' when nothing differed.
        """
        pending = self.pending()
        if name in pending.added:
            self._add(name)
            return "added"
        if name in pending.changed:
            self._remove(name, stop_timeout_s)
            self._add(name)
            return "changed"
        if name in pending.removed:
            self._remove(name, stop_timeout_s)
            return "removed"
        return ""

    def _add(self, name: str) -> None:
        self._ask_unless(_ALREADY_ADDED, "addProcessGroup", name)

    def _remove(self, name: str, stop_timeout_s: float) -> None:
        deadline = time.monotonic() + stop_timeout_s
        while True:
            self.stop(name, max(deadline - time.monotonic(), 1.0))
            try:
                self._ask("removeProcessGroup", name)
            except ProgramUnknownError:
                return
            except RefusedError as refused:
                if refused.code != _STILL_RUNNING or time.monotonic() > deadline:
                    raise
            else:
                return

    def start(self, name: str) -> None:
        """Start the program unless it runs; does not wait for it to stay up."""
        self._ask_unless(_ALREADY_STARTED, "startProcess", name, False)

    def stop(self, name: str, timeout_s: float = 60.0) -> None:
        """Stop the program and wait until it is at rest. Raises SupervisorError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        exited = 0
        while True:
            program = self.program(name)
            if program is None or program.state in _AT_REST:
                return
            # EXITED may be the moment before a restart, since orders are heard before states move on
            # (Supervisor.runforever); seen twice in a row it is the end.
            exited = exited + 1 if program.state == "EXITED" else 0
            if exited > 1:
                return
            if time.monotonic() > deadline:
                raise SupervisorError(
                    f"{name}: still {program.state.lower()} (pid {program.pid}) {timeout_s:.0f} s after it was told "
                    f"to stop"
                )
            if program.state not in {"EXITED", "STOPPING"}:
                self._ask_unless(_NOT_RUNNING, "stopProcess", name, False)
            time.sleep(POLL_S)

    def restart(self, name: str, stop_timeout_s: float = 60.0) -> None:
        """Stop the program, wait until it is at rest, start it."""
        self.stop(name, stop_timeout_s)  # startProcess on a stopping program says yes and does nothing
        self.start(name)


def _exists(path: str) -> bool:
    return Path(path).exists()


def _program(info: Mapping[str, Any]) -> Program:
    return Program(
        name=str(info["name"]),
        state=str(info["statename"]),
        pid=int(info["pid"]),
        start_s=int(info["start"]),
        exit_status=int(info["exitstatus"]),
        error=str(info["spawnerr"]),
        log=str(info["stdout_logfile"]),
    )
