# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what tells a host's kind: files below /proc, /sys, /etc and /run. Changes nothing, starts nothing. (outside)

Importable on Python 3.9, so that a host with too old a Python is told so in words.
"""

from __future__ import annotations

import grp
import math
import os
import platform
import pwd
import re
import shlex
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from .kinds import RUNPOD_WITNESS, Directory, Evidence, Mount, OsRelease
from .layout import candidate_directories

_CAP_SYS_MODULE = 16  # linux/capability.h
_LINKS_AT_MOST = 40  # as the kernel's own limit
_READ_AT_MOST_BYTES = 4 << 20
# The dot only before slice and payload: /system.slice/docker.service is Docker on a host, not a container.
_CGROUP_MARKS = re.compile(r"/(docker|kubepods|libpod|lxc|crio|cri-containerd)(?:[-/:]|\.slice|\.payload)")
_SYSTEMD_PROGRAMS = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_LIBC_FOLDERS = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
_LIBC_FOLDERS_ARM = ("/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu")


def read_evidence(
    fs_root: str = "/",
    root: str = "",
    environment: Mapping[str, str] | None = None,
    ask_pid1_environ: bool = True,
) -> Evidence:
    """Look at the host whose files lie below `fs_root` (links are followed inside it, as chroot would).

    `root`: rig_root, empty for the kinds' defaults; the directories that any kind would use are looked at.
    `environment`: of this process, for HOME and XDG_DATA_HOME only; os.environ by default. `ask_pid1_environ`: whether
    the names in PID 1's environment are wanted; of all variables only known names are kept, values never.

    Never raises for what is missing or unreadable: an empty value says so. Names of users come from this system.
    """
    variables = os.environ if environment is None else environment
    euid, module_rights = _identity(fs_root)
    user, group, home = _account(euid)
    home = variables.get("HOME", "") or home
    xdg_data_home = variables.get("XDG_DATA_HOME", "")

    environ = _bytes(fs_root, "/proc/1/environ") if ask_pid1_environ else None
    pid1_names = {entry.partition(b"=")[0].decode("ascii", "replace") for entry in (environ or b"").split(b"\0")}
    mounts = parse_mounts(_text(fs_root, "/proc/mounts"))
    cpuinfo = _text(fs_root, "/proc/cpuinfo")
    glibc_version, musl = _c_library(fs_root)
    return Evidence(
        systemd_booted=_is_directory(fs_root, "/run/systemd/system"),
        systemd_program=next((path for path in _SYSTEMD_PROGRAMS if _exists(fs_root, path)), ""),
        pid1_comm=_text(fs_root, "/proc/1/comm").strip(),
        euid=euid,
        user=user,
        group=group,
        home=home,
        xdg_data_home=xdg_data_home,
        module_rights=module_rights,
        runpod_pid1=tuple(sorted(name for name in pid1_names if RUNPOD_WITNESS.fullmatch(name))),
        runpod_file=_runpod_file_names(_text(fs_root, "/etc/rp_environment")),
        pid1_environ=_how_read(ask_pid1_environ, environ),
        dmi_vendor=_text(fs_root, "/sys/class/dmi/id/sys_vendor").strip(),
        dmi_product=_text(fs_root, "/sys/class/dmi/id/product_name").strip(),
        hypervisor_flag=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        dockerenv=_exists(fs_root, "/.dockerenv"),
        container_marks=tuple(_container_marks(fs_root, pid1_names, mounts)),
        mounts=mounts,
        directories=tuple(
            look_at_directory(fs_root, path) for path in candidate_directories(root, home, xdg_data_home)
        ),
        system=os.uname().sysname,
        arch=_text(fs_root, "/proc/sys/kernel/arch").strip() or os.uname().machine,
        glibc_version=glibc_version,
        musl=musl,
        os=parse_os_release(_text(fs_root, "/etc/os-release") or _text(fs_root, "/usr/lib/os-release")),
        cpu_count=_cpu_count(fs_root, cpuinfo),
        memory_bytes=_memory_bytes(fs_root),
        python_version=platform.python_version(),
    )


def resolve_below(fs_root: str, path: str) -> str:
    """`path` without links, both as seen from inside `fs_root`; parts that do not exist stay. OSError: links circle."""
    done: list[str] = []
    todo = path.split("/")[::-1]
    links = 0
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            del done[-1:]
            continue
        try:
            target = str(_outside(fs_root, "/" + "/".join([*done, part])).readlink())
        except OSError:  # no link, or nothing there
            done.append(part)
            continue
        links += 1
        if links > _LINKS_AT_MOST:
            raise OSError(f"links circle at {path}")
        if target.startswith("/"):
            done = []
        todo += target.split("/")[::-1]
    return "/" + "/".join(done)


def look_at_directory(fs_root: str, path: str) -> Directory:
    """What stands at `path` or at its nearest existing parent below `fs_root`, and whether we may write it."""
    parts = [part for part in path.split("/") if part]
    depth = len(parts)
    while depth and not _exists(fs_root, "/" + "/".join(parts[:depth]), follow=False):
        depth -= 1
    existing = "/" + "/".join(parts[:depth])
    try:
        real = resolve_below(fs_root, existing)
        outside = _outside(fs_root, real)
        status = outside.stat()
    except OSError:  # a link to nothing or in a circle: tell about the link itself
        real = _without_last_link(fs_root, existing)
        outside = _outside(fs_root, real)
        status = outside.lstat()
    return Directory(
        path=path,
        real_path="/" + "/".join([part for part in real.split("/") if part] + parts[depth:]),
        existing=existing,
        is_directory=stat.S_ISDIR(status.st_mode),
        owner=_user_name(status.st_uid),
        owner_uid=status.st_uid,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        writable=os.access(outside, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids),
    )


def parse_os_release(text: str) -> OsRelease:
    """Of os-release's text (man 5 os-release): shell quoting, comments; lines that are no assignment are left out."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith("#"):
            continue
        try:
            values[name] = " ".join(shlex.split(value))
        except ValueError:  # an unbalanced quote
            values[name] = value
    return OsRelease(
        id=values.get("ID", ""),
        version_id=values.get("VERSION_ID", ""),
        pretty_name=values.get("PRETTY_NAME", ""),
        codename=values.get("VERSION_CODENAME", "") or values.get("UBUNTU_CODENAME", ""),
    )


def parse_mounts(text: str) -> tuple[Mount, ...]:
    """Of /proc/mounts (man 5 proc): blanks in mount points are written as octal numbers."""
    mounts = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 4:
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), fields[1])
            mounts.append(Mount(point=point, fs_type=fields[2], options=tuple(fields[3].split(","))))
    return tuple(mounts)


def _outside(fs_root: str, path: str) -> Path:
    return Path(fs_root.rstrip("/") + path)


def _without_last_link(fs_root: str, path: str) -> str:
    """As `resolve_below`, but the last part stays as it is, link or not."""
    parent, _slash, name = path.rstrip("/").rpartition("/")
    return f"{resolve_below(fs_root, parent).rstrip('/')}/{name}"


def _exists(fs_root: str, path: str, follow: bool = True) -> bool:
    try:
        inside = resolve_below(fs_root, path) if follow else _without_last_link(fs_root, path)
    except OSError:
        return False
    return os.path.lexists(_outside(fs_root, inside))


def _is_directory(fs_root: str, path: str) -> bool:
    return _exists(fs_root, path) and _outside(fs_root, resolve_below(fs_root, path)).is_dir()


def _bytes(fs_root: str, path: str) -> bytes | None:
    """The first bytes of a file; None when it is missing or not readable to us."""
    try:
        with _outside(fs_root, resolve_below(fs_root, path)).open("rb") as file:
            return file.read(_READ_AT_MOST_BYTES)
    except OSError:
        return None


def _text(fs_root: str, path: str) -> str:
    return (_bytes(fs_root, path) or b"").decode("utf-8", "replace")


def _identity(fs_root: str) -> tuple[int, bool | None]:
    """Effective uid and whether kernel modules may be loaded, as the kernel tells it in /proc/self/status."""
    status = _text(fs_root, "/proc/self/status")
    uids = re.search(r"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
    rights = re.search(r"^CapEff:\s+([0-9a-fA-F]+)", status, re.MULTILINE)
    return (
        int(uids.group(1)) if uids else os.geteuid(),
        bool(int(rights.group(1), 16) >> _CAP_SYS_MODULE & 1) if rights else None,
    )


def _account(uid: int) -> tuple[str, str, str]:
    """Names of a user and of his first group, and his home; numbers as text where the system knows no names."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # usual in containers that run as any uid
        return str(uid), str(os.getegid()), ""
    try:
        return entry.pw_name, grp.getgrgid(entry.pw_gid).gr_name, entry.pw_dir
    except KeyError:
        return entry.pw_name, str(entry.pw_gid), entry.pw_dir


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "a user without a name"


def _runpod_file_names(text: str) -> tuple[str, ...]:
    """Names in the lines `export NAME="value"` that RunPod's images write for login shells."""
    names = re.findall(r"^\s*(?:export\s+)?([A-Z_0-9]+)=", text, re.MULTILINE)
    return tuple(sorted({name for name in names if RUNPOD_WITNESS.fullmatch(name)}))


def _how_read(asked: bool, environ: bytes | None) -> str:
    if not asked:
        return "not looked at"
    return "not readable" if environ is None else "read"


def _container_marks(fs_root: str, pid1_names: set[str], mounts: Sequence[Mount]) -> list[str]:
    marks = [path for path in ("/run/.containerenv", "/run/systemd/container") if _exists(fs_root, path)]
    marks += [
        f"{name} in PID 1's environment" for name in ("container", "KUBERNETES_SERVICE_HOST") if name in pid1_names
    ]
    runtime = _CGROUP_MARKS.search(_text(fs_root, "/proc/self/cgroup"))
    if runtime:
        marks.append(f"{runtime.group(1)} in /proc/self/cgroup")
    if any(mount.point == "/" and mount.fs_type in {"overlay", "fuse.fuse-overlayfs"} for mount in mounts):
        marks.append("the root file system is an overlay")
    return marks


def _c_library(fs_root: str) -> tuple[str, bool]:
    """(glibc's version or '', whether it is musl). musl's loader beside a glibc means nothing: Debian packages it."""
    if fs_root == "/":
        try:
            name, _space, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        except (OSError, ValueError):  # this Python is not built on glibc; the system may still have one
            name, version = "", ""
        if name == "glibc":
            return version, False
    for folder in (*_LIBC_FOLDERS, *_LIBC_FOLDERS_ARM):
        banner = re.search(
            rb"GNU C Library .*stable release version ([0-9.]*[0-9])", _bytes(fs_root, f"{folder}/libc.so.6") or b""
        )
        if banner:
            return banner.group(1).decode("ascii"), False
    return "", any(_exists(fs_root, f"/lib/ld-musl-{arch}.so.1") for arch in ("x86_64", "aarch64"))


def _cpu_count(fs_root: str, cpuinfo: str) -> int:
    """Processors that we may use: a container sees all of its host's, its quota says how many are its own."""
    count = len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)) or os.cpu_count() or 1
    limit = _text(fs_root, "/sys/fs/cgroup/cpu.max") or " ".join(  # cgroup v2, else v1
        _text(fs_root, f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    )
    quota = re.fullmatch(r"(\d+) ([1-9]\d*)\s*", limit)  # not: max, -1
    return max(1, min(count, math.ceil(int(quota.group(1)) / int(quota.group(2))))) if quota else count


def _memory_bytes(fs_root: str) -> int:
    """Memory that we may use: of the machine, or the container's limit when that is less. 0: not known."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", _text(fs_root, "/proc/meminfo"), re.MULTILINE)
    amounts = [int(total.group(1)) * 1024] if total else []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _text(fs_root, name).strip()
        if limit.isdigit():
            amounts.append(int(limit))
    return min(amounts, default=0)
