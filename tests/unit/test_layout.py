# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where everything lies, for each kind of host."""

from __future__ import annotations

import hashlib
import socket
import tempfile
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.layout import (
    LayoutError,
    candidate_directories,
    is_below,
    layout_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st

KEYS = [
    *("root", "bin", "tool", "envs", "uv", "python", "config", "secrets", "services", "state", "models", "cache"),
    *("log", "run", "supervisor_conf", "supervisor_programs", "supervisor_socket"),
]


@pytest.mark.parametrize("kind", ["metal", "vm"])
def test_system_default(kind: str) -> None:
    assert layout_for(kind, "", "/root", "", 0).as_dict() == {
        "root": "/opt/gpurig",
        "bin": "/opt/gpurig/bin",
        "tool": "/opt/gpurig/tool",
        "envs": "/opt/gpurig/envs",
        "uv": "/opt/gpurig/uv",
        "python": "/opt/gpurig/python",
        "config": "/etc/gpurig",
        "secrets": "/etc/gpurig/secrets",
        "services": "/etc/gpurig/services",
        "state": "/var/lib/gpurig",
        "models": "/var/lib/gpurig/models",
        "cache": "/var/lib/gpurig/cache",
        "log": "/var/lib/gpurig/log",
        "run": "/var/lib/gpurig/run",
        "supervisor_conf": "/etc/gpurig/supervisord.conf",
        "supervisor_programs": "/etc/gpurig/supervisor.d",
        "supervisor_socket": "/var/lib/gpurig/run/supervisor.sock",
    }


def test_system_below_one_directory() -> None:
    layout = layout_for("metal", "/srv/rig/", "/root", "", 0)
    assert (layout.root, layout.config, layout.state) == ("/srv/rig", "/srv/rig/etc", "/srv/rig/var")
    assert (layout.secrets, layout.models, layout.bin) == (
        "/srv/rig/etc/secrets",
        "/srv/rig/var/models",
        "/srv/rig/bin",
    )
    assert layout.directories() == ("/srv/rig",)


@pytest.mark.parametrize(
    ("kind", "root", "home", "xdg", "expected"),
    [
        ("pod", "", "/root", "", "/workspace/gpurig"),
        ("pod", "/volume/ours", "/root", "", "/volume/ours"),
        ("sandbox", "", "/home/ada", "", "/home/ada/.local/share/gpurig"),
        ("sandbox", "", "/home/ada", "/data/ada", "/data/ada/gpurig"),
        ("sandbox", "", "/home/ada", "not/absolute", "/home/ada/.local/share/gpurig"),
        ("sandbox", "/scratch//ada/./rig", "/home/ada", "/data/ada", "/scratch/ada/rig"),
        ("sandbox", "//scratch/rig", "/home/ada", "", "/scratch/rig"),
    ],
)
def test_one_directory(kind: str, root: str, home: str, xdg: str, expected: str) -> None:
    layout = layout_for(kind, root, home, xdg, 1000)
    assert layout.root == layout.state == expected
    assert layout.config == f"{expected}/etc"
    assert list(layout.as_dict()) == KEYS
    assert all(is_below(path, expected) for path in layout.as_dict().values())
    assert layout.models == f"{expected}/models"
    assert layout.directories() == (expected,)


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("relative/path", "not an absolute path"),
        ("/a/../etc", "'..'"),
        ("/", "belongs to the system"),
        ("/usr/", "belongs to the system"),
        ("//usr//local", "belongs to the system"),
        ("/workspace", "belongs to the system"),
        ("/home/ada", "belongs to the system or to a user"),
        ("/proc/ours", "belongs to the system"),
        ("/my rig", "a blank"),
        ("/rig\n[program:x]", "a blank, a control character"),
        ("/rig:bin", "one of :"),
        ("/rig%h", "one of :"),
    ],
)
@pytest.mark.parametrize("kind", ["metal", "pod", "sandbox"])
def test_roots_that_are_refused(kind: str, root: str, said: str) -> None:
    with pytest.raises(LayoutError, match="rig_root") as caught:
        layout_for(kind, root, "/home/ada", "", 0)
    assert said in str(caught.value)
    assert "Remedy:" in str(caught.value)


def test_sandbox_without_home() -> None:
    with pytest.raises(LayoutError, match="HOME is ''"):
        layout_for("sandbox", "", "", "", 1000)
    assert layout_for("sandbox", "", "", "/data", 1000).root == "/data/gpurig"


def test_unknown_kind() -> None:
    with pytest.raises(LayoutError, match="toaster"):
        layout_for("toaster", "", "/root", "", 0)


def test_socket_moves_when_its_path_is_too_long() -> None:
    fits = "/" + "a" * (107 - 8 - len("/" + "/run/supervisor.sock"))
    assert layout_for("pod", fits, "", "", 7).supervisor_socket == f"{fits}/run/supervisor.sock"
    too_long = fits + "a"
    digest = hashlib.sha256(too_long.encode()).hexdigest()[:12]
    assert layout_for("pod", too_long, "", "", 7).supervisor_socket == f"/tmp/gpurig-7-{digest}/supervisor.sock"


def test_socket_length_is_counted_in_bytes() -> None:
    root = "/" + "ü" * 45  # 45 letters, 90 bytes
    assert layout_for("pod", root, "", "", 7).supervisor_socket.startswith("/tmp/gpurig-7-")


def test_longest_socket_can_be_bound_by_supervisord() -> None:
    """supervisord binds `<socket>.<PID>` first: a path of 107 bytes itself is refused by it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        root = base + "/" + "a" * (107 - 8 - len(base) - len("/" + "/run/supervisor.sock"))
        path = layout_for("sandbox", root, "", "", 0).supervisor_socket
        assert path.startswith(root)
        assert len(path) == 99
        Path(path).parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as longest:
            longest.bind(f"{path}.4194304")
        with socket.socket(socket.AF_UNIX) as refused, pytest.raises(OSError, match="too long"):
            refused.bind(f"{path}.41943040")


def test_candidates_hold_every_kinds_directories() -> None:
    assert candidate_directories("", "/home/ada", "") == (
        "/opt/gpurig",
        "/etc/gpurig",
        "/var/lib/gpurig",
        "/workspace/gpurig",
        "/home/ada/.local/share/gpurig",
    )
    assert candidate_directories("/srv/rig", "/home/ada", "") == ("/srv/rig",)
    assert candidate_directories("/usr", "/home/ada", "") == ()
    assert "/workspace/gpurig" in candidate_directories("", "", "")


PARTS = st.lists(st.text("abcXYZ019._-", min_size=1, max_size=60), min_size=1, max_size=6)


@settings(database=None, deadline=None)
@given(kind=st.sampled_from(["metal", "vm", "pod", "sandbox"]), parts=PARTS, uid=st.integers(0, 2**32 - 2))
def test_any_root(kind: str, parts: list[str], uid: int) -> None:
    root = "/" + "/".join(part for part in parts if part not in {".", ".."})
    try:
        layout = layout_for(kind, root, "/home/ada", "", uid)
    except LayoutError:
        assert root.count("/") < 3 or root.startswith(("/dev", "/proc", "/sys"))
        return
    assert layout_for(kind, layout.root, "/home/ada", "", uid) == layout
    assert len(layout.supervisor_socket.encode()) <= 99
    inside = {key: value for key, value in layout.as_dict().items() if key != "supervisor_socket"}
    assert all(is_below(path, layout.root) for path in inside.values())
    assert layout_for(kind, layout.root, "/home/ada", "", uid + 1).root == layout.root


def test_the_default_given_as_root_is_the_default() -> None:
    assert layout_for("metal", "/opt/gpurig", "/root", "", 0) == layout_for("metal", "", "/root", "", 0)
