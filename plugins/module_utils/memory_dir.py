# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders of a service that lie in memory: on a tmpfs, ours alone, made anew after each boot. (outside)"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
_MEMORY = frozenset({"tmpfs", "ramfs"})


class MemoryDirError(Exception):
    """The folder cannot be had in memory; the message says why."""


def file_system(path: str, mounts: str) -> str:
    """Return the type of the file system that holds `path`, from the text of /proc/self/mountinfo (proc(5))."""
    found, length = "", -1
    for line in mounts.splitlines():
        left, _dash, right = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        if f"{path}/".startswith(point.rstrip("/") + "/") and len(point) >= length:  # later ones hide earlier ones
            found, length = right.split()[0], len(point)
    return found


def memory_problem(path: str, needed_bytes: int = 0, mounts: Path = MOUNTS) -> str:
    """Say why nothing below `path` would be kept in memory alone; '' when it would, with `needed_bytes` free."""
    kind = file_system(path, mounts.read_text(encoding="utf-8"))
    if kind not in _MEMORY:
        return f"{path} would lie on {kind or 'no file system'}, needed a tmpfs, which is memory"
    parent = next(folder for folder in Path(path).parents if folder.is_dir())
    seen = os.statvfs(parent)
    free = seen.f_bavail * seen.f_frsize
    if free < needed_bytes:
        return f"{parent} has {free >> 20} MiB free, needed {needed_bytes >> 20} MiB (mount -o remount,size=...)"
    return ""


def make_memory_dir(path: str, mounts: Path = MOUNTS) -> None:
    """Have the folder, on a tmpfs, for us alone. Raises MemoryDirError, also for one that somebody else made."""
    problem = memory_problem(path, mounts=mounts)
    if problem:
        raise MemoryDirError(problem)
    try:
        Path(path).mkdir(mode=0o700, exist_ok=True)
        state = Path(path).lstat()
    except OSError as error:
        raise MemoryDirError(f"{path} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o077:
        raise MemoryDirError(f"{path} is not a folder that only we can read; see who made it, and remove it")


def recorded(spec: Mapping[str, object]) -> str:
    """Return the folder that the record of a service names, when it is there and has a name as we give; else ''."""
    path = str(spec.get("memory_dir") or "")
    return path if Path(path).name.startswith("gpurig-") and os.path.lexists(path) else ""


def remove_memory_dir(path: str) -> None:
    """Remove the folder and what is in it; of a link only the link. Raises OSError."""
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
