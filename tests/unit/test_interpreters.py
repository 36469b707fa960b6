# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding interpreters: real ones are run, and programs that only look like one are seen through."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import interpreters
from ansible_collections.gpurig.llm.plugins.module_utils.interpreters import (
    Interpreter,
    Need,
    ProbeError,
    Survey,
    candidate_paths,
    choose,
    lacks,
    open_to_everyone,
    probe,
    report,
    survey,
)
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import SpecError

BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def answering(path: Path, **changes: Any) -> str:
    """A program that answers the probe as an interpreter of another make would."""
    answer = {
        "version": [3, 12, 1],
        "final": True,
        "implementation": "CPython",
        "bits": 64,
        "base": str(path),
        "is_venv": False,
        "library": "/usr/lib",
        "include": "/usr/include/python3.12",
        "headers": True,
        "venv": True,
        **changes,
    }
    return program(path, f"cat <<'END'\nsome noise\ngpurig:{json.dumps(answer)}\nEND")


def made_up(path: str = "/usr/bin/python3.12", **changes: Any) -> Interpreter:
    values: dict[str, Any] = {
        "path": path,
        "source": "system",
        "version": (3, 12, 1),
        "implementation": "CPython",
        "bits": 64,
        "final": True,
        "headers": True,
        "include": "/usr/include/python3.12",
        "venv": True,
        "for_everyone": True,
        **changes,
    }
    return Interpreter(**values)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment whose python is a copy: its path does not give away what it was made from."""
    top = tmp_path_factory.mktemp("venv")
    subprocess.run([BASE, "-m", "venv", "--without-pip", "--copies", str(top)], check=True)
    return top


def test_the_base_of_this_python() -> None:
    found = probe(BASE)
    assert found.path == BASE
    assert found.version == sys.version_info[:3]
    assert found.version_text == platform.python_version()
    assert (found.implementation, found.bits, found.final) == ("CPython", 64, True)
    assert found.headers is (Path(found.include) / "Python.h").is_file()


@pytest.mark.parametrize("name", ["python", "python3"])
def test_a_virtual_environment_stands_for_its_base(venv: Path, name: str) -> None:
    assert probe(str(venv / "bin" / name)) == probe(BASE)
    assert probe(sys.executable).path == BASE


def test_a_virtual_environment_of_nothing_real(tmp_path: Path) -> None:
    other = answering(tmp_path / "other", is_venv=True)
    with pytest.raises(ProbeError, match="is a virtual environment's, and what it was made from does not run"):
        probe(answering(tmp_path / "python3", is_venv=True, base=other, base_prefix=str(tmp_path)))


def test_a_virtual_environment_that_names_itself_as_its_base(tmp_path: Path) -> None:
    """As those of copies do before 3.11."""
    base = answering(tmp_path / "base/bin/python3.12")
    found = probe(answering(tmp_path / "venv/python3", is_venv=True, base_prefix=str(tmp_path / "base")))
    assert found.path == base


NOT_AN_INTERPRETER = {
    "shim": (
        "echo 'pyenv: python3.9: command not found' >&2; exit 127",
        "exit 127: pyenv: python3.9: command not found",
    ),
    "silent": ("exit 3", "exit 3: said nothing"),
    "chatty": ("echo Python 3.12", "exit 0: said nothing"),
    "half an answer": ("echo 'gpurig:{'", "exit 0: said nothing"),
    "wrong answer": ("echo 'gpurig:[]'", "exit 0: said nothing"),
    "killed": ("kill -9 $$", "exit -9: said nothing"),
    "no library": ("exec /nonexistent/libpython 2>&1 >&2", "exit 127: "),
}


@pytest.mark.parametrize(("text", "reason"), NOT_AN_INTERPRETER.values(), ids=NOT_AN_INTERPRETER.keys())
def test_what_only_looks_like_an_interpreter(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ProbeError) as caught:
        probe(program(tmp_path / "python3.9", text))
    assert str(caught.value).startswith(reason)


def test_a_file_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "python3").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "python3").chmod(0o755)
    with pytest.raises(ProbeError, match="cannot be run: Exec format error"):
        probe(str(tmp_path / "python3"))
    with pytest.raises(ProbeError, match="cannot be run: No such file"):
        probe(str(tmp_path / "nothing"))


def test_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "PROBE_TIMEOUT_S", 0.2)
    with pytest.raises(ProbeError, match=r"gave no answer within 0\.2 s"):
        probe(program(tmp_path / "python3", "exec sleep 5"))


def test_candidates_from_everywhere(tmp_path: Path) -> None:
    on_path = program(tmp_path / "path/python3.11", "")
    pyenv = program(tmp_path / "home/.pyenv/versions/3.13.0/bin/python3.13", "")
    pyenv_root = program(tmp_path / "root/versions/3.10.0/bin/python3", "")
    managed = program(tmp_path / "managed/cpython-3.12.1-linux/bin/python3.12", "")
    (tmp_path / "managed/cpython-3.12-linux").symlink_to("cpython-3.12.1-linux")
    (tmp_path / "path/python3").symlink_to("python3.11")
    (tmp_path / "path/python3.12").symlink_to("nowhere")
    (tmp_path / "path/python3.8").mkdir()
    program(tmp_path / "path/python3.10", "")
    (tmp_path / "path/python3.10").chmod(0o644)
    for name in ("python", "python2.7", "python3.11-config", "python3.11m", "pypy3"):
        program(tmp_path / "path" / name, "")
    environment = {
        "PATH": f"relative:{tmp_path}/path:{tmp_path}/missing:{Path(managed).parent}:{tmp_path}/path",
        "HOME": f"{tmp_path}/home",
        "PYENV_ROOT": f"{tmp_path}/root",
    }
    found = candidate_paths(f"{tmp_path}/managed", environment, running=f"{tmp_path}/path/python3")
    assert [entry for entry in found if entry[0].startswith(str(tmp_path))] == [
        (managed, "managed"),
        (on_path, "system"),
        (pyenv_root, "system"),
        (pyenv, "system"),
    ]
    assert {path for path, _source in candidate_paths("", {}, running=on_path)} > {on_path}


def test_a_survey_runs_all_and_says_why_some_were_skipped(
    tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "SYSTEM_DIRECTORIES", ())
    good = answering(tmp_path / "path/python3.12")
    newer = answering(tmp_path / "path/python3.14", version=[3, 14, 0])
    managed = answering(tmp_path / "managed/cpython-3.15/bin/python3.15", version=[3, 15, 0])
    shim = program(tmp_path / "path/python3.9", "echo 'pyenv: python3.9: command not found' >&2; exit 127")
    environment = {"PATH": f"{tmp_path}/path:{venv}/bin"}
    found = survey(f"{tmp_path}/managed", environment, running=BASE)
    assert sorted(path.path for path in found.interpreters) == sorted([good, newer, managed, BASE])
    assert found.interpreters[-1].path == managed
    assert found.skipped == ((shim, "exit 127: pyenv: python3.9: command not found"),)


def test_the_running_one_is_found_without_any_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "SYSTEM_DIRECTORIES", ())
    assert [found.path for found in survey("", {}).interpreters] == [BASE]


LACKS = {
    "nothing": ({}, Need("3.12", headers=True, venv=True, for_everyone=True), []),
    "version": ({"version": (3, 11, 2)}, Need(">=3.12"), ["not >=3.12"]),
    "implementation": ({"implementation": "PyPy"}, Need(""), ["PyPy, not CPython"]),
    "bits": ({"bits": 32}, Need(""), ["32 bit"]),
    "beta": ({"final": False}, Need(""), ["not a final release"]),
    "headers": ({"headers": False}, Need("", headers=True), ["no Python.h in /usr/include/python3.12"]),
    "include": ({"headers": False, "include": ""}, Need("", headers=True), ["no Python.h in its include directory"]),
    "headers not needed": ({"headers": False}, Need(""), []),
    "venv": ({"venv": False}, Need("", venv=True), ["no venv with ensurepip"]),
    "in root's home": ({"for_everyone": False}, Need("", for_everyone=True), ["other users may not read it"]),
    "several": ({"bits": 32, "final": False}, Need("3.11"), ["not 3.11", "32 bit", "not a final release"]),
}


@pytest.mark.parametrize(("changes", "need", "reasons"), LACKS.values(), ids=LACKS.keys())
def test_what_an_interpreter_lacks(changes: dict[str, Any], need: Need, reasons: list[str]) -> None:
    assert lacks(made_up(**changes), need) == reasons


def test_an_unreadable_wish() -> None:
    with pytest.raises(SpecError):
        choose(Need("~=3.12"), [made_up()])


OLD = made_up("/usr/bin/python3.10", version=(3, 10, 12))
MIDDLE = made_up("/usr/bin/python3.12", version=(3, 12, 3), headers=False)
MIDDLE_LOCAL = made_up("/usr/local/bin/python3.12", version=(3, 12, 3))
NEW = made_up("/home/dev/.pyenv/versions/3.13.0/bin/python3.13", version=(3, 13, 0), for_everyone=False)
TEN = made_up("/usr/bin/python3.9", version=(3, 9, 18))
MANAGED = made_up("/opt/gpurig/python/cpython-3.14/bin/python3.14", source="managed", version=(3, 14, 2))
ALL = [MANAGED, OLD, MIDDLE_LOCAL, NEW, MIDDLE, TEN]

CHOICES = {
    "highest of the distribution": (Need(">=3.10,<3.15"), MIDDLE),
    "another when none of the distribution fits": (Need(">=3.13"), NEW),
    "readable by all": (Need(">=3.13", for_everyone=True), MANAGED),
    "same version: by path": (Need("3.12"), MIDDLE),
    "with headers": (Need("3.12", headers=True), MIDDLE_LOCAL),
    "3.10 is newer than 3.9": (Need("<3.11"), OLD),
    "managed when no system one fits": (Need(">=3.14"), MANAGED),
    "none": (Need(">=3.15"), None),
}


@pytest.mark.parametrize(("need", "chosen"), CHOICES.values(), ids=CHOICES.keys())
def test_the_choice_does_not_depend_on_the_order(need: Need, chosen: Interpreter | None) -> None:
    assert choose(need, ALL) == chosen
    assert choose(need, reversed(ALL)) == chosen


def test_the_report_names_every_candidate_with_its_reason() -> None:
    lines = report(Survey((NEW, OLD), (("/shims/python3.9", "exit 127: command not found"),)), Need("3.10"))
    assert lines == [
        "/home/dev/.pyenv/versions/3.13.0/bin/python3.13: system CPython 3.13.0 (not 3.10)",
        "/usr/bin/python3.10: system CPython 3.10.12",
        "/shims/python3.9: skipped (exit 127: command not found)",
    ]


CLOSINGS: dict[str, Callable[[Path], None]] = {
    "directory above": lambda top: top.chmod(0o700),
    "directory": lambda top: (top / "bin").chmod(0o750),
    "file not readable": lambda top: (top / "bin/python3").chmod(0o711),
    "file not runnable": lambda top: (top / "bin/python3").chmod(0o644),
    "file gone": lambda top: (top / "bin/python3").unlink(),
}


@pytest.mark.parametrize("close", CLOSINGS.values(), ids=CLOSINGS.keys())
def test_who_may_read_an_interpreter(close: Callable[[Path], None]) -> None:
    # pytest's own temporary directories are closed to others.
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        path = program(top / "bin/python3", "")
        top.chmod(0o755)
        (top / "bin").chmod(0o755)
        assert open_to_everyone(path) is True
        close(top)
        assert open_to_everyone(path) is False
