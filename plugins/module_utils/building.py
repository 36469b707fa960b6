# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a directory beside the one in use, then put it in place; a kill at any point does no harm. (outside)

What every builder here keeps to: one lock file per place; a directory is finished when its marker, written last, is
there; it is built under another name and renamed; what lies around from a run that was cut off is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import manifest
from .child import log_tail, run_child

MARKER = ".complete.json"
MANIFEST = ".manifest.json"
BUILD_PREFIX = ".build-"
OLD_PREFIX = ".old-"
LINK = "current"
_NEW_LINK = ".current.new"

_TAIL_LINES = 15
_LOCK_POLL_S = 0.1
_VERSION_TIMEOUT_S = 30.0

# Each would bend what is installed or where to; index, mirror, proxy, certificates and cache pass through.
_DROPPED = frozenset(
    [
        "CONDA_PREFIX",
        "PIP_CONSTRAINT",
        "PIP_NO_BINARY",
        "PIP_PREFIX",
        "PIP_REQUIREMENT",
        "PIP_ROOT",
        "PIP_TARGET",
        "PIP_USER",
        "PYTHONHOME",
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "UV_BREAK_SYSTEM_PACKAGES",
        "UV_BUILD_CONSTRAINT",
        "UV_CONSTRAINT",
        "UV_EXCLUDE",
        "UV_EXCLUDE_NEWER",
        "UV_MANAGED_PYTHON",
        "UV_NO_BINARY",
        "UV_NO_MANAGED_PYTHON",
        "UV_NO_VERIFY_HASHES",
        "UV_OVERRIDE",
        "UV_PROJECT",
        "UV_PYTHON",
        "UV_SYSTEM_PYTHON",
        "UV_TORCH_BACKEND",
        "UV_VENV_CLEAR",
        "UV_VENV_SEED",
        "UV_WORKING_DIR",
        "VIRTUAL_ENV",
    ]
)

_HINTS = (
    ("Hash mismatch", "The index serves another file than the lock names: make the lock again, or look at the mirror."),
    ("DO NOT MATCH THE HASHES", "The index serves another file than the lock names: make it again, or see the mirror."),
    ("UnknownIssuer", "The server's certificate is not known here: set SSL_CERT_FILE in rig_environment."),
    ("CERTIFICATE_VERIFY_FAILED", "The certificate is not known here: set SSL_CERT_FILE in rig_environment."),
    ("No space left on device", "Free space there, or put rig_root on a larger disk."),
    ("dns error", "No way out to the index: set a proxy or a mirror (UV_DEFAULT_INDEX) in rig_environment."),
    ("error sending request", "No way to the index: set a proxy or a mirror (UV_DEFAULT_INDEX) in rig_environment."),
    ("Failed to establish a new connection", "No way to the index: set HTTPS_PROXY or UV_DEFAULT_INDEX."),
)


class BuildError(Exception):
    """Something could not be built; the message says what, why and what to do."""


class BusyError(BuildError):
    """Another run works at the same place and did not end within the time given."""


class SpaceError(BuildError):
    """The disk is too full; nothing was begun."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One change. `action`: build, switch or remove; `subject`: the directory's name; `reason`: in words."""

    action: str
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.action} {self.subject}: {self.reason}"


@dataclasses.dataclass
class Runner:
    """Runs the programs of one build: output in `log`, never longer than until `deadline` (time.monotonic)."""

    environment: Mapping[str, str]
    log: Path
    lock_fd: int
    deadline: float

    def run(self, argv: Sequence[str], what: str) -> None:
        """Run to the end. Raises BuildError with the program's last lines when it fails or takes too long."""
        began = time.monotonic()

        def watch() -> None:
            if time.monotonic() > self.deadline:
                raise BuildError(
                    f"{what} was stopped after {time.monotonic() - began:.0f} s, the time for the whole build is up "
                    f"(timeout_s). Last lines:\n{self._tail()}\nWhole output: {self.log}"
                )

        try:
            status = run_child(
                argv, self.environment, self.log, self.log.parent, on_tick=watch, tick_s=0.1, keep_open=(self.lock_fd,)
            )
        except OSError as error:
            raise BuildError(f"{what}: {argv[0]} cannot be started: {error.strerror or error}") from error
        if status:
            tail = self._tail()
            ended = f"ended by signal {-status}" if status < 0 else f"exit {status}"
            hints = list(dict.fromkeys(hint for mark, hint in _HINTS if mark in tail))[:1]
            raise BuildError("\n".join([f"{what} failed ({ended}):", tail, *hints, f"Whole output: {self.log}"]))

    def _tail(self) -> str:
        return log_tail(self.log, _TAIL_LINES, passwords(self.environment))


def clean_environment(environment: Mapping[str, str], **own: str) -> dict[str, str]:
    """A copy without what would bend a build, in plain English and without colours, with `own` set."""
    kept = {name: value for name, value in environment.items() if name not in _DROPPED}
    return {**kept, "NO_COLOR": "1", "LC_ALL": "C.UTF-8", "PYTHONUTF8": "1", **own}


def passwords(environment: Mapping[str, str]) -> list[str]:
    """Passwords and tokens in URLs of the environment (index, proxy): they must not reach a message."""
    logins = [found for value in environment.values() for found in re.findall(r"://([^/\s@]+)@", value)]
    return [login.partition(":")[2] or login.partition(":")[0] for login in logins]


@contextlib.contextmanager
def exclusive(path: Path, wait_s: float) -> Iterator[int]:
    """Hold the lock file `path`, after waiting for it up to `wait_s`; yields its file descriptor.

    Children that inherit the descriptor keep the lock when we are killed: nobody builds while they still write.
    Raises BusyError, OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip()
                    raise BusyError(
                        f"{path} is still held after {wait_s:g} s by process {holder or 'unknown'} or one that it "
                        "started: another run builds here. Wait for it or end it, then run again (wait_s)."
                    ) from None
                time.sleep(_LOCK_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def finish(directory: Path, marker: Mapping[str, Any], exclude: Iterable[str] = ()) -> None:
    """Record the directory's files and write the marker last: from then on it counts as complete. Raises OSError."""
    manifest.write_manifest(directory, directory / MANIFEST, {MARKER, *exclude})
    manifest.write_text(directory / MARKER, json.dumps(dict(marker), indent=1, sort_keys=True) + "\n")


def is_finished(directory: Path) -> bool:
    """Whether the marker is there."""
    return (directory / MARKER).is_file()


def read_marker(directory: Path) -> dict[str, Any]:
    """What the marker says; empty when it is missing or not one."""
    try:
        read = json.loads((directory / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def damage(directory: Path) -> list[str]:
    """What is not as it was when the directory was finished, one line each. Raises OSError."""
    try:
        return [str(difference) for difference in manifest.compare(directory, directory / MANIFEST)]
    except manifest.ManifestError as error:
        return [str(error)]


def put_in_place(built: Path, target: Path) -> None:
    """Rename `built` to `target` and remove what was there; between two renames the name is missing. Raises OSError."""
    old = target.with_name(OLD_PREFIX + target.name)
    remove(old)
    if os.path.lexists(target):
        target.rename(old)
    built.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Remove a directory, its marker first, so that half of it never counts as complete. Raises OSError."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        (path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(path)


def link_target(link: Path) -> str:
    """Where the link points, "" when there is none. Raises BuildError when something else lies there."""
    if link.is_symlink():
        return os.readlink(link)  # noqa: PTH115  (as text: a trailing slash is a difference)
    if link.exists():
        raise BuildError(f"{link} is not a link, so it is not ours to change. Move it away and run again.")
    return ""


def switch_link(link: Path, target: str) -> None:
    """Point the link at `target`; there is no moment without a link. Raises OSError."""
    new = link.with_name(_NEW_LINK)
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def leftovers(directory: Path) -> list[str]:
    """Names of what an earlier run was building, replacing or linking when it was cut off."""
    if not directory.is_dir():
        return []
    names = sorted(path.name for path in directory.iterdir())
    return [name for name in names if name.startswith((BUILD_PREFIX, OLD_PREFIX)) or name == _NEW_LINK]


def check_space(wanted: Iterable[tuple[str, Path, int]], margin_bytes: int) -> None:
    """Refuse to begin on a disk that is too full. `wanted`: (what for, below which path, bytes).

    What lies on one file system is added up, with `margin_bytes` on top of each. Raises SpaceError.
    """
    disks: dict[int, tuple[Path, list[tuple[str, int]]]] = {}
    for what, path, size_bytes in wanted:
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        disks.setdefault(there.stat().st_dev, (path, []))[1].append((what, size_bytes))
    problems = []
    for path, parts in disks.values():
        there = next(parent for parent in (path, *path.parents) if parent.exists())
        state = os.statvfs(there)
        free, needed = state.f_bavail * state.f_frsize, sum(size for _what, size in parts) + margin_bytes
        if free < needed:
            listed = " + ".join(f"{what} {gib(size)}" for what, size in parts if size)
            problems.append(
                f"{path}: {gib(needed)} needed ({listed}{' + ' if listed else ''}margin {gib(margin_bytes)}), "
                f"{gib(free)} free. Free space there, or put rig_root on a larger disk."
            )
    if problems:
        raise SpaceError("\n".join(problems))


def gib(size_bytes: int) -> str:
    """For people: 9.1 GiB, or MiB below one GiB."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.0f} MiB"


def answer_of(argv: Sequence[str]) -> str:
    """First line of what a short program prints. Raises BuildError with the reason when it does not run."""
    try:
        done = subprocess.run(
            list(argv),
            capture_output=True,
            check=False,
            timeout=_VERSION_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ),
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"gave no answer within {_VERSION_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise BuildError(f"does not run: {error.strerror or error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise BuildError(f"does not run: exit {done.returncode}{': ' + said[-1] if said else ''}")
    return (done.stdout.decode("utf-8", "replace").splitlines() or [""])[0].strip()
