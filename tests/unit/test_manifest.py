# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a directory: every kind of damage is named, what may change is not."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.manifest import (
    ManifestError,
    compare,
    write_manifest,
    write_text,
)

A_SECOND_NS = 1_000_000_000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small directory with everything that occurs in an environment, and its manifest."""
    top = tmp_path / "tree"
    (top / "lib/pkg/__pycache__").mkdir(parents=True)
    (top / "bin").mkdir()
    (top / "lib/pkg/a.py").write_text("a = 1\n")
    (top / "lib/pkg/b.py").write_text("b = 1\n")
    (top / "lib/pkg/__pycache__/a.pyc").write_text("x")
    (top / "lib/pkg/__pycache__/a.cache.nbi").write_text("numba keeps its own there")
    (top / "lib/pkg/old.pyc").write_text("x")
    (top / "bin/python").symlink_to("/usr/bin/python3")
    (top / "lib64").symlink_to("lib")
    (top / "dangling").symlink_to("nowhere")
    (top / "may-change").write_text("1")
    (top / "cache/deep").mkdir(parents=True)
    (top / "cache/deep/file").write_text("1")
    os.mkfifo(top / "pipe")
    (top / os.fsdecode(b"not-utf8-\xff")).write_text("1")
    assert write_manifest(top, top / ".manifest.json", {"may-change", "cache"}) == 6
    assert compare(top, top / ".manifest.json") == []
    return top


def later(path: Path) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + A_SECOND_NS))


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "file gone": (lambda top: (top / "lib/pkg/a.py").unlink(), "lib/pkg/a.py: missing"),
    "file longer": (lambda top: (top / "lib/pkg/a.py").write_text("a = 10\n"), "lib/pkg/a.py: size is 7, was 6"),
    "file touched": (lambda top: later(top / "lib/pkg/a.py"), "lib/pkg/a.py: mtime_ns is "),
    "file now a link": (lambda top: relink(top / "lib/pkg/a.py", "b.py"), "a.py: kind is a link, was a file"),
    "file now a directory": (lambda top: into_directory(top / "lib/pkg/a.py"), "a.py: kind is a directory, was a file"),
    "odd name gone": (lambda top: (top / os.fsdecode(b"not-utf8-\xff")).unlink(), ": missing"),
    "link gone": (lambda top: (top / "bin/python").unlink(), "bin/python: missing"),
    "link elsewhere": (
        lambda top: relink(top / "bin/python", "/bin/sh"),
        "bin/python: target is /bin/sh, was /usr/bin/python3",
    ),
    "link now a file": (
        lambda top: ((top / "lib64").unlink(), (top / "lib64").write_text("")),
        "lib64: kind is a file, was a link",
    ),
    "link now a pipe": (
        lambda top: ((top / "lib64").unlink(), os.mkfifo(top / "lib64")),
        "lib64: kind is something else, was a link",
    ),
    "directory moved": (lambda top: (top / "bin").rename(top / "nib"), "bin/python: missing"),
    "directory now a file": (
        lambda top: ((top / "bin").rename(top / "nib"), (top / "bin").write_text("")),
        "bin/python: missing",
    ),
}


@pytest.mark.parametrize(("act", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(tree: Path, act: Callable[[Path], object], words: str) -> None:
    act(tree)
    differences = [str(difference) for difference in compare(tree, tree / ".manifest.json")]
    assert len(differences) == 1
    assert words in differences[0]


def test_all_damages_are_named_by_path_in_order(tree: Path) -> None:
    (tree / "lib/pkg/b.py").unlink()
    (tree / "lib64").unlink()
    (tree / "lib/pkg/a.py").write_text("")
    assert [difference.path for difference in compare(tree, tree / ".manifest.json")] == [
        "lib/pkg/a.py",
        "lib/pkg/b.py",
        "lib64",
    ]


def test_what_may_change_is_no_damage(tree: Path) -> None:
    (tree / "may-change").write_text("22")
    (tree / "cache/deep/file").unlink()
    (tree / "lib/pkg/__pycache__/a.pyc").unlink()
    (tree / "lib/pkg/__pycache__/b.pyc").write_text("y")
    (tree / "lib/pkg/__pycache__/a.cache.nbi").unlink()
    (tree / "lib/pkg/old.pyc").write_text("yy")
    (tree / "lib/pkg/new.py").write_text("")
    (tree / "pipe").unlink()
    assert compare(tree, tree / ".manifest.json") == []


@pytest.mark.parametrize("step_ns", [100, 1_000, 1_000_000, A_SECOND_NS])
def test_a_file_system_that_cuts_times_off_is_no_damage(tree: Path, step_ns: int) -> None:
    file = tree / "lib/pkg/a.py"
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    write_manifest(tree, tree / ".manifest.json")
    os.utime(file, ns=(0, 1_700_000_000_123_456_789 // step_ns * step_ns))
    assert compare(tree, tree / ".manifest.json") == []
    os.utime(file, ns=(0, 1_700_000_000_123_456_788))
    assert [difference.kind for difference in compare(tree, tree / ".manifest.json")] == ["mtime_ns"]


def test_a_manifest_may_lie_outside(tree: Path, tmp_path: Path) -> None:
    write_manifest(tree, tmp_path / "other.json")
    (tree / "may-change").unlink()
    assert [str(difference) for difference in compare(tree, tmp_path / "other.json")] == ["may-change: missing"]


BROKEN = {
    "cut off": '{"format":1,"files":{"a":[1,',
    "empty": "",
    "list": "[]",
    "other format": '{"format":2,"files":{},"links":{}}',
    "no links": '{"format":1,"files":{}}',
    "no files": '{"format":1,"files":[],"links":{}}',
    "odd entry": '{"format":1,"files":{"a":[1]},"links":{}}',
    "text as size": '{"format":1,"files":{"a":["1",2]},"links":{}}',
    "odd link": '{"format":1,"files":{},"links":{"a":1}}',
    "not text": "\udcff",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_manifest_is_named(tree: Path, text: str) -> None:
    (tree / ".manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ManifestError, match=r"\.manifest\.json: (cannot be read|not a manifest)"):
        compare(tree, tree / ".manifest.json")


def test_a_missing_manifest_is_named(tree: Path) -> None:
    (tree / ".manifest.json").unlink()
    with pytest.raises(ManifestError, match=r"\.manifest\.json: missing"):
        compare(tree, tree / ".manifest.json")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_text(file, "one", 0o600)
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("one", 0o600)
    write_text(file, "two")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("two", 0o644)
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "three \udcff")
    assert file.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_five_thousand_files_take_a_fraction_of_a_second(tmp_path: Path) -> None:
    top = tmp_path / "big"
    for number in range(25):
        directory = top / f"d{number}"
        directory.mkdir(parents=True)
        for name in range(200):
            os.close(os.open(directory / f"f{name}", os.O_CREAT | os.O_WRONLY))
    began = time.process_time()
    assert write_manifest(top, tmp_path / "m.json") == 5000
    assert compare(top, tmp_path / "m.json") == []
    assert time.process_time() - began < 0.4
    assert json.loads((tmp_path / "m.json").read_text())["format"] == 1
