# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything of ours lies on a host: one table of absolute paths per host kind. (pure)"""

from __future__ import annotations

import dataclasses
import hashlib
import posixpath

SYSTEM_ROOT = "/opt/gpurig"
SYSTEM_CONFIG = "/etc/gpurig"
SYSTEM_STATE = "/var/lib/gpurig"
POD_VOLUME = "/workspace"
OUR_NAME = "gpurig"

SUPERVISOR_CONF_NAME = "supervisord.conf"
SUPERVISOR_PROGRAMS_NAME = "supervisor.d"
SUPERVISOR_SOCKET_NAME = "supervisor.sock"

# sockaddr_un.sun_path holds 108 bytes with the closing NUL (man 7 unix).
SOCKET_PATH_BYTES = 107
# supervisord binds `<socket>.<its PID>` first and then links the socket to it (supervisor/http.py,
# supervisor_af_unix_http_server), so the dot and the seven digits of the largest PID (4194304) must fit as well.
SUPERVISOR_SUFFIX_BYTES = 8

# The root gets bin/, log/ and more directly below it and is removed as a whole by an uninstall.
# fmt: off
_NEVER_A_ROOT = frozenset({
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/media", "/mnt", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local",  # noqa: S108
    "/usr/local/bin", "/usr/sbin", "/usr/share", "/var", "/var/lib", "/var/log", POD_VOLUME,
})
# fmt: on
_NEVER_ABOVE_A_ROOT = ("/dev/", "/proc/", "/sys/")


class LayoutError(ValueError):
    """The root directory cannot be used or cannot be worked out; the message names the variable and the remedy."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Absolute paths of everything we own on one host. `secrets` and `supervisor_socket`'s directory want mode 0700."""

    root: str
    bin: str
    tool: str
    envs: str
    uv: str
    python: str
    config: str
    secrets: str
    services: str
    state: str
    models: str
    cache: str
    log: str
    run: str
    supervisor_conf: str
    supervisor_programs: str
    supervisor_socket: str

    def as_dict(self) -> dict[str, str]:
        """The same as a new plain dictionary, for Ansible's facts."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def directories(self) -> tuple[str, ...]:
        """The uppermost directories that we create: (root, config, state) without those that lie below another."""
        tops: list[str] = []
        for path in (self.root, self.config, self.state):
            if not any(is_below(path, top) for top in tops):
                tops.append(path)
        return tuple(tops)


def is_below(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies in it; both absolute and normal."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def layout_for(kind: str, root: str, home: str, xdg_data_home: str, uid: int) -> Layout:
    """The layout of a host.

    `kind`: metal, vm, pod or sandbox. `root`: the wished root (rig_root), empty for the kind's default. `home` and
    `xdg_data_home`: of the connecting user, may be empty, used for a sandbox without a wished root only. `uid`: numeric
    id of the user whose supervisor it is; it names the socket's directory when the socket does not fit below the root.

    `layout_for(kind, layout.root, ...)` gives the same layout again. That directory of a displaced socket lies in /tmp,
    where anybody may create it first: whoever creates it uses mode 0700 and refuses one that is not his own.

    Raises LayoutError for an unknown kind and for a root that is relative, a system directory, or somebody's home.
    """
    if kind in {"metal", "vm"}:
        chosen = _checked_root(root, home) if root else SYSTEM_ROOT
        if chosen == SYSTEM_ROOT:
            return _layout(SYSTEM_ROOT, SYSTEM_CONFIG, SYSTEM_STATE, SYSTEM_STATE, uid)
        return _layout(chosen, f"{chosen}/etc", f"{chosen}/var", f"{chosen}/var", uid)
    if kind == "pod":
        chosen = _checked_root(root, home) if root else f"{POD_VOLUME}/{OUR_NAME}"
    elif kind == "sandbox":
        chosen = _checked_root(root or _sandbox_root(home, xdg_data_home), home)
    else:
        raise LayoutError(f"rig_kind: {kind!r} has no layout; known: metal, vm, pod, sandbox")
    return _layout(chosen, f"{chosen}/etc", chosen, chosen, uid)


def candidate_directories(root: str, home: str, xdg_data_home: str) -> tuple[str, ...]:
    """Every directory that `layout_for` may choose for any kind, to be looked at before the kind is known."""
    found: dict[str, None] = {}
    for kind in ("metal", "vm", "pod", "sandbox"):
        try:
            layout = layout_for(kind, root, home, xdg_data_home, 0)
        except LayoutError:
            continue
        found.update(dict.fromkeys(layout.directories()))
    return tuple(found)


def _sandbox_root(home: str, xdg_data_home: str) -> str:
    # The XDG base directory specification has relative values ignored.
    if xdg_data_home.startswith("/"):
        return f"{xdg_data_home}/{OUR_NAME}"
    if not home.startswith("/"):
        raise LayoutError(
            f"rig_root: a sandbox lies in the user's home, and HOME is {home!r}. Needed: an absolute path. "
            "Remedy: set rig_root to a directory that the user may write."
        )
    return f"{home}/.local/share/{OUR_NAME}"


def _checked_root(root: str, home: str) -> str:
    remedy = f"Remedy: name a directory of our own, for example {POD_VOLUME}/{OUR_NAME} or /srv/{OUR_NAME}."
    if not root.startswith("/"):
        raise LayoutError(f"rig_root: {root!r} is not an absolute path. {remedy}")
    if ".." in root.split("/"):
        raise LayoutError(f"rig_root: {root!r} has '..' in it, which links make ambiguous. {remedy}")
    if any(ord(letter) < 0x21 or ord(letter) == 0x7F or letter in ":;%\"'\\$`" for letter in root):
        # Blanks break the first line of a venv's scripts, ':' breaks PATH, '%' both supervisord and systemd.
        raise LayoutError(f"rig_root: {root!r} has a blank, a control character or one of :;%\"'\\$` in it. {remedy}")
    normal = "/" + posixpath.normpath(root).lstrip("/")
    if normal in _NEVER_A_ROOT or normal.startswith(_NEVER_ABOVE_A_ROOT) or normal == home.rstrip("/"):
        raise LayoutError(f"rig_root: {normal!r} belongs to the system or to a user, not to us alone. {remedy}")
    return normal


def _layout(root: str, config: str, state: str, data: str, uid: int) -> Layout:
    run = f"{data}/run"
    return Layout(
        root=root,
        bin=f"{root}/bin",
        tool=f"{root}/tool",
        envs=f"{root}/envs",
        uv=f"{root}/uv",
        python=f"{root}/python",
        config=config,
        secrets=f"{config}/secrets",
        services=f"{config}/services",
        state=state,
        models=f"{data}/models",
        cache=f"{data}/cache",
        log=f"{data}/log",
        run=run,
        supervisor_conf=f"{config}/{SUPERVISOR_CONF_NAME}",
        supervisor_programs=f"{config}/{SUPERVISOR_PROGRAMS_NAME}",
        supervisor_socket=_socket(run, root, uid),
    )


def _socket(run: str, root: str, uid: int) -> str:
    path = f"{run}/{SUPERVISOR_SOCKET_NAME}"
    if len(path.encode("utf-8", "surrogateescape")) + SUPERVISOR_SUFFIX_BYTES <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(root.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return f"/tmp/gpurig-{uid}-{digest}/{SUPERVISOR_SOCKET_NAME}"  # noqa: S108  (see layout_for: 0700, ours only)
