# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Directories and files of ours with text, mode and owner: what would change, in words, and the change. (outside)"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .small_files import write_text


class InstallError(Exception):
    """It cannot be made as asked; the message says why."""


@dataclass(frozen=True)
class Step:
    """One change: `before` and `after` describe `path`, `act` makes it so."""

    path: str
    before: str
    after: str
    act: Callable[[], object]

    def in_words(self) -> str:
        return f"{self.path}: {self.before} -> {self.after}"


def result(steps: Sequence[Step]) -> dict[str, Any]:
    """Return a module's result of the changes: changed, changes in words, diff."""
    return {
        "changed": bool(steps),
        "changes": [step.in_words().partition("\n")[0] for step in steps],
        "diff": {
            "before": "".join(f"{step.path}: {step.before}\n" for step in steps),
            "after": "".join(f"{step.path}: {step.after}\n" for step in steps),
        },
    }


@dataclass(frozen=True)
class Owner:
    """Who a path is to belong to; a negative id leaves it as it is, as chown has it."""

    uid: int = -1
    gid: int = -1


def lstat(path: str) -> os.stat_result | None:
    """Return what is at `path` itself, be it a link; None when nothing is."""
    try:
        return Path(path).lstat()
    except FileNotFoundError:
        return None


def _describe(kind: str, mode: int, owner: Owner) -> str:
    names = []
    with contextlib.suppress(KeyError):
        names = [pwd.getpwuid(owner.uid).pw_name] if owner.uid >= 0 else []
        names += [grp.getgrgid(owner.gid).gr_name] if owner.gid >= 0 else []
    return " ".join([kind, f"{mode:04o}", ":".join(names)]).strip()


def _right(seen: os.stat_result, mode: int, owner: Owner) -> bool:
    return (
        stat.S_IMODE(seen.st_mode) & 0o777 == mode and owner.uid in {-1, seen.st_uid} and owner.gid in {-1, seen.st_gid}
    )


def read_own(path: str, uid: int = -1) -> str | None:
    """Return the text of the file at `path` itself; None when nothing is there. Raises InstallError.

    `uid`: who must own it; -1 takes it from anybody.

    Where a service's user may write, root finds what that user put there: links, other names of somebody else's file,
    pipes that never end.
    """
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InstallError(f"{path}: is a link, which it must not be. Move it away, then run again.") from error
    seen = os.fstat(held)
    if not stat.S_ISREG(seen.st_mode) or seen.st_nlink > 1:
        os.close(held)
        raise InstallError(f"{path}: must be a file with no other name. Move it away, then run again.")
    if uid not in {-1, seen.st_uid}:
        os.close(held)
        raise InstallError(f"{path}: belongs to somebody else. Move it away, then run again.")
    with os.fdopen(held, encoding="utf-8", errors="replace", newline="") as file:
        return file.read()


def mark(path: str, mode: int, owner: Owner) -> None:
    """Set owner and mode of the very thing at `path`: a service's user could put a link to elsewhere in its place.

    Raises InstallError for a file that has another name, too.
    """
    held = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.fstat(held)
        if not stat.S_ISDIR(seen.st_mode) and seen.st_nlink > 1:
            raise InstallError(f"{path}: is also somewhere else, by a hard link. Move it away, then run again.")
        if owner != Owner():
            os.chown(f"/proc/self/fd/{held}", owner.uid, owner.gid)
        Path(f"/proc/self/fd/{held}").chmod(mode)
    finally:
        os.close(held)


def plan_directory(path: str, mode: int, owner: Owner) -> list[Step]:
    """Return the change that makes `path` a directory with mode and owner. Raises InstallError for something else.

    A link to a directory is somebody's own choice of place; its target stays as it is.
    """
    wanted = _describe("directory", mode, owner)

    def make() -> None:
        Path(path).mkdir(mode=mode, parents=True, exist_ok=True)
        mark(path, mode, owner)

    seen = lstat(path)
    if seen is None:
        return [Step(path, "missing", wanted, make)]
    if stat.S_ISLNK(seen.st_mode) and Path(path).is_dir():
        return []
    if not stat.S_ISDIR(seen.st_mode):
        raise InstallError(f"{path}: is not a directory, which it must be. Move it away, then run again.")
    if _right(seen, mode, owner):
        return []
    had = _describe("directory", stat.S_IMODE(seen.st_mode) & 0o777, _held(seen, owner))
    return [Step(path, had, wanted, lambda: mark(path, mode, owner))]


def _held(seen: os.stat_result, owner: Owner) -> Owner:
    return Owner(seen.st_uid if owner.uid >= 0 else -1, seen.st_gid if owner.gid >= 0 else -1)


def _walk(path: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each directory at and below `path`, the deepest first, and what is in it that is no directory."""

    def stop(error: OSError) -> None:
        raise error

    seen = lstat(path)
    if seen is None or not stat.S_ISDIR(seen.st_mode):
        return
    for directory, names, files in os.walk(path, topdown=False, onerror=stop):
        yield directory, files + [name for name in names if Path(directory, name).is_symlink()]


def refuse_directory(path: str) -> None:
    """Raise InstallError when a file cannot come to `path` without the loss of others: a directory has some in it."""
    if any(others for _directory, others in _walk(path)):
        raise InstallError(f"{path}: is a directory with files in it. Move it away, then run again.")


def _clear(path: str) -> None:
    try:
        for directory, _others in _walk(path):
            Path(directory).rmdir()
    except OSError:
        refuse_directory(path)
        raise


def plan_file(path: str, text: str, mode: int, owner: Owner, show: bool = False) -> list[Step]:
    """Return the change that gives the file its text, mode and owner; `show` puts the text into the diff.

    Raises InstallError, and so does the change, where there is a directory with files in it, which would be lost.
    """

    def write() -> None:
        _clear(path)
        write_text(path, text, mode, owner=(owner.uid, owner.gid))

    seen = lstat(path)
    wanted = _describe("file", mode, owner)
    if seen is None:
        return [Step(path, "missing", f"{wanted}\n{text}" if show else wanted, write)]
    refuse_directory(path)
    had = read_own(path) if stat.S_ISREG(seen.st_mode) and seen.st_nlink <= 1 else None
    if had != text:
        before = f"{wanted}\n{had or ''}" if show else "other content"
        return [Step(path, before, f"{wanted}\n{text}" if show else wanted, write)]
    return plan_mark(path, mode, owner)


def plan_mark(path: str, mode: int, owner: Owner) -> list[Step]:
    """Return the change that gives the file mode and owner, whatever is in it. Raises InstallError for no file."""
    seen = lstat(path)
    if seen is None or not stat.S_ISREG(seen.st_mode):
        raise InstallError(f"{path}: is not a file, which it must be. Move it away, then run again.")
    if _right(seen, mode, owner):
        return []
    had = _describe("file", stat.S_IMODE(seen.st_mode) & 0o777, _held(seen, owner))
    return [Step(path, had, _describe("file", mode, owner), lambda: mark(path, mode, owner))]


def owners(user: str, group: str, must_exist: bool) -> tuple[Owner, Owner]:
    """Return who our directories and the services' directories are to belong to.

    Only root can give directories away; any other user must be the one as whom the services run. Raises InstallError.
    """
    me = pwd.getpwuid(os.geteuid()).pw_name if _known(os.geteuid()) else str(os.geteuid())
    if os.geteuid() != 0:
        if user not in {"", me}:
            raise InstallError(
                f"rig.user: services are to run as {user}, but this run is {me}, who cannot give files away. "
                f"Run the task with become: true, or let services run as {me}."
            )
        return Owner(), Owner()
    try:
        uid = pwd.getpwnam(user).pw_uid if user else 0
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        if must_exist:
            raise InstallError(
                f"rig.user, rig.group: {user}:{group} does not exist on this host ({error.args[0]}). "
                f"The role host_tool makes it; run the role and not the module alone."
            ) from error
        return Owner(0), Owner()
    return Owner(0), Owner(uid, gid)


def _known(uid: int) -> bool:
    try:
        return bool(pwd.getpwuid(uid))
    except KeyError:
        return False
