# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configurations are written only after the checker has read them all, and read once only."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunModule = Callable[..., dict[str, Any]]
CHECKER = """
import os, pathlib, sys
with open(sys.argv[1], "a") as log:
    log.write(f"{len(sys.argv) - 2} {os.environ.get('WORD', '')}\\n")
print("INFO: many lines before")
bad = [f"{file}: {text.strip()}" for file in sys.argv[2:] if "bad" in (text := pathlib.Path(file).read_text())]
print("dry_run: " + (" | ".join(bad) or "ok"))
print("and some after")
"""


class Place:
    """A directory with a checker that notes how often it was asked."""

    def __init__(self, root: Path, run_module: RunModule) -> None:
        self.root, self.run_module = root, run_module
        (root / "check.py").write_text(CHECKER)

    def config(self, name: str, text: str, **more: Any) -> dict[str, Any]:
        checker = [sys.executable, str(self.root / "check.py"), str(self.root / "asked")]
        return {"name": name, "path": str(self.root / f"etc/{name}.yaml"), "text": text, "checker": checker, **more}

    def run(self, *configs: dict[str, Any], check: bool = False, **more: Any) -> dict[str, Any]:
        return self.run_module("engine_config", {"name": "vllm", "configs": list(configs), **more}, check=check)

    @property
    def asked(self) -> list[str]:
        return (self.root / "asked").read_text().splitlines() if (self.root / "asked").exists() else []

    @property
    def written(self) -> list[str]:
        return sorted(path.name for path in (self.root / "etc").glob("*"))


@pytest.fixture
def place(tmp_path: Path, run_module: RunModule) -> Place:
    return Place(tmp_path, run_module)


def test_check_change_and_nothing_more(place: Place) -> None:
    both = [place.config("chat", "a: 1\n"), place.config("notes", "b: 1\n")]
    foreseen = place.run(*both, check=True)
    assert (foreseen["changed"], place.written, place.asked) == (True, [], ["2 "])
    assert (place.run(*both, check=True, look_only=True)["changed"], place.asked) == (True, ["2 "])
    done = place.run(*both)
    assert (done["changed"], done["diff"], place.written) == (True, foreseen["diff"], ["chat.yaml", "notes.yaml"])
    assert (place.root / "etc/chat.yaml").read_text() == "a: 1\n"
    asked = place.asked
    for check in (False, True):
        again = place.run(*both, check=check)
        assert (again["changed"], again["written"], place.asked) == (False, [], asked)


def test_one_refused_and_none_is_written(place: Place) -> None:
    failed = place.run(place.config("chat", "fine"), place.config("a", "bad one"), place.config("b", "bad two"))
    assert failed["failed"]
    assert failed["refused"] == ["instance a: bad one", "instance b: bad two"]
    assert "rig_instances" in failed["msg"]
    assert place.written == []
    assert "instance a: bad one" in place.run(place.config("a", "bad one"), check=True)["msg"]


def test_each_kind_of_checker_runs_once_with_its_variables(place: Place) -> None:
    words = [
        place.config(name, name, environment={"WORD": word}) for name, word in (("a", "x"), ("b", "y"), ("c", "x"))
    ]
    assert place.run(*words)["changed"]
    assert sorted(place.asked) == ["1 y", "2 x"]


@pytest.mark.parametrize(
    ("program", "part"),
    [
        ("import sys; print('Segmentation fault'); sys.exit(3)", "exit code 3. Its last lines:\nSegmentation fault"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_a_checker_that_does_not_work(place: Place, program: str, part: str) -> None:
    failed = place.run(place.config("chat", "x", checker=[sys.executable, "-c", program]), timeout_s=1)
    assert part in failed["msg"]
    assert place.written == []


def test_without_the_environment_check_mode_foresees_and_a_run_fails(place: Place) -> None:
    config = place.config("chat", "x", checker=["/no/such/python"])
    assert place.run(config, check=True)["changed"]
    assert "/no/such/python: No such file" in place.run(config)["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_the_checker_runs_as_the_engine_s_user(place: Place) -> None:
    program = "import os, sys; print('dry_run: ' + ('ok' if os.getuid() else 'root'))"
    config = place.config("chat", "x", checker=["/usr/bin/python3", "-c", program])
    assert place.run(config)["refused"] == ["root"]
    assert place.run(config, user="nobody")["changed"]
