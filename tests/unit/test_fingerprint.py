# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fingerprint changes when an input does, and only then, for whoever takes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.fingerprint import (
    CONTENT_LIMIT_BYTES,
    describe,
    fingerprint,
    parts,
)


def build(folder: Path) -> Path:
    """A record and one input of every kind."""
    top = folder / "with blank"
    (top / "secrets").mkdir(parents=True)
    (top / "env-a").mkdir()
    (top / "env-b").mkdir()
    for name in ("disk-a", "disk-b"):
        (top / name / "data").mkdir(parents=True)
    (top / "disk").symlink_to("disk-a")
    (top / "record.json").write_text('{"name": "chat"}')
    (top / "small").write_text("text")
    (top / "hidden").write_text("text")
    (top / "hidden").chmod(0o640)
    (top / "secrets" / "chat.env").write_text("API_KEY=1")
    (top / "secrets" / "chat.env").chmod(0o600)
    (top / "current").symlink_to("env-a")
    with (top / "big").open("wb") as stream:
        stream.truncate(CONTENT_LIMIT_BYTES + 1)
    for path in top.rglob("*"):
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    return top


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return build(tmp_path)


def take(top: Path) -> str:
    names = ["small", "hidden", "secrets/chat.env", "current", "env-a", "disk/data", "big", "absent"]
    return fingerprint(str(top / "record.json"), [str(top / name) for name in names])


def replace(path: Path, text: str) -> None:
    """Other content with the old time and the old length of name; only the content differs."""
    path.write_text(text)
    os.utime(path, ns=(10**18, 10**18))


def relink(top: Path) -> None:
    (top / "current").unlink()
    (top / "current").symlink_to("env-b")


def move_directory(top: Path) -> None:
    (top / "disk").unlink()
    (top / "disk").symlink_to("disk-b")


CHANGES: dict[str, Callable[[Path], object]] = {
    "the record": lambda top: replace(top / "record.json", '{"name": "talk"}'),
    "content of a small file, same size and time": lambda top: replace(top / "small", "TEXT"),
    "size of a file that not everybody reads": lambda top: replace(top / "hidden", "text!"),
    "time of a file that not everybody reads": lambda top: os.utime(top / "hidden"),
    "time of a secret": lambda top: os.utime(top / "secrets" / "chat.env"),
    "size of a secret": lambda top: replace(top / "secrets" / "chat.env", "API_KEY=12"),
    "time of a big file": lambda top: os.utime(top / "big"),
    "target of a link": relink,
    "real path of a directory": move_directory,
    "a missing file appears": lambda top: (top / "absent").write_text(""),
    "a file disappears": lambda top: (top / "small").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_shows(tree: Path, change: Callable[[Path], object]) -> None:
    before = take(tree)
    change(tree)
    assert take(tree) != before


KEPT: dict[str, Callable[[Path], object]] = {
    "nothing": lambda _top: None,
    "time of a small file": lambda top: os.utime(top / "small"),
    "mode of the record": lambda top: (top / "record.json").chmod(0o600),
    "a file in a directory": lambda top: (top / "env-a" / "new").write_text("x"),
    "a file behind a link": lambda top: (top / "env-a" / "new").write_text("x"),
    "content of a secret, same size and time": lambda top: replace(top / "secrets" / "chat.env", "API_KEY=2"),
}


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT.keys())
def test_what_makes_no_difference_does_not_show(tree: Path, change: Callable[[Path], object]) -> None:
    before = take(tree)
    change(tree)
    assert take(tree) == before


def test_order_and_repetition_make_no_difference(tree: Path) -> None:
    record, one, two = (str(tree / name) for name in ("record.json", "small", "big"))
    assert fingerprint(record, [one, two]) == fingerprint(record, [two, one, two])


def test_which_input_changed_can_be_told(tree: Path) -> None:
    record, small = str(tree / "record.json"), str(tree / "small")
    before = parts(record, [small])
    (tree / "small").write_text("else")
    after = parts(record, [small])
    assert [path for path in after if after[path] != before[path]] == [small]


def test_no_secret_is_opened(tree: Path) -> None:
    secret = tree / "secrets" / "chat.env"
    secret.chmod(0o644)
    os.utime(secret, ns=(1, 10**18))
    assert describe(str(secret)) == ["stat", 9, 10**18]
    assert secret.stat().st_atime_ns == 1


def test_missing_kinds(tmp_path: Path) -> None:
    assert describe(str(tmp_path / "nothing")) == ["missing"]
    assert describe(str(tmp_path / "file" / "below")) == ["missing"]
    assert parts(str(tmp_path / "record"), []) == {str(tmp_path / "record"): "missing"}


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o644)
    assert describe(str(tmp_path / "pipe"))[0] == "stat"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_root_and_the_service_user_agree() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        top = build(Path(folder))
        (top / "secrets").chmod(0o711)
        (top / "hidden").chmod(0o600)
        expected = take(top)
        child = os.fork()
        if not child:
            os.setgid(65534)
            os.setuid(65534)
            access = [os.access(top / name, os.R_OK) for name in ("small", "hidden", "secrets/chat.env")]
            os._exit(0 if access == [True, False, False] and take(top) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
