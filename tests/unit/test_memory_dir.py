# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders in memory: on a tmpfs, and of nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.memory_dir import (
    MemoryDirError,
    file_system,
    make_memory_dir,
    memory_problem,
)

MOUNTS = r"""22 1 0:20 / / rw,relatime - ext4 /dev/vda1 rw
23 22 0:21 / /dev rw shared:2 - devtmpfs udev rw
24 23 0:22 / /dev/shm rw,nosuid shared:3 master:1 - tmpfs tmpfs rw,size=64k
25 22 0:23 / /mnt/a\040b rw - tmpfs tmpfs rw
26 22 0:24 / /mnt/over rw - tmpfs tmpfs rw
27 22 0:25 / /mnt/over rw - xfs /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dev/shm/x", "tmpfs"),
        ("/dev/shm", "tmpfs"),
        ("/dev/shmx", "devtmpfs"),
        ("/var/lib/x", "ext4"),
        ("/mnt/a b/x", "tmpfs"),
        ("/mnt/over/x", "xfs"),
    ],
)
def test_what_a_path_lies_on(path: str, kind: str) -> None:
    assert file_system(path, MOUNTS) == kind


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A list of mounts in which the test's folder is a tmpfs."""
    (tmp_path / "mounts").write_text(f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path} rw - tmpfs tmpfs rw\n")
    return tmp_path / "mounts"


def test_a_folder_is_made_once_and_kept(tmp_path: Path, memory: Path) -> None:
    for _again in range(2):
        make_memory_dir(str(tmp_path / "page"), memory)
    assert (tmp_path / "page").stat().st_mode & 0o7777 == 0o700
    assert memory_problem(str(tmp_path / "page"), 1, memory) == ""
    assert "MiB free" in memory_problem(str(tmp_path / "page"), 1 << 62, memory)


def test_what_is_no_memory_or_not_ours_is_refused(tmp_path: Path, memory: Path) -> None:
    with pytest.raises(MemoryDirError, match="would lie on ext4, needed a tmpfs"):
        make_memory_dir("/gpurig-test-that-is-never-made", memory)
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "open").mkdir(mode=0o755)
    for name in ("link", "open"):
        with pytest.raises(MemoryDirError, match="only we can read"):
            make_memory_dir(str(tmp_path / name), memory)
    with pytest.raises(MemoryDirError, match="cannot be made"):
        make_memory_dir(str(tmp_path / "absent" / "page"), memory)
    if os.geteuid() == 0:
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 65534, 65534)
        with pytest.raises(MemoryDirError, match="only we can read"):
            make_memory_dir(str(tmp_path / "theirs"), memory)
