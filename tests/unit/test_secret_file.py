# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module secret_file: values are made once, kept, and never shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RunModule = Callable[..., dict[str, Any]]


def test_four_steps_and_no_value_in_any_result(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "chat.env"
    args = {"path": str(path), "names": ["LLAMA_API_KEY"]}
    predicted = run_module("secret_file", args, check=True)
    assert predicted["changed"]
    assert not path.exists()
    made = run_module("secret_file", args)
    assert made["changed"]
    assert made["generated"] == ["LLAMA_API_KEY"]
    value = path.read_text().strip().split("=", 1)[1]
    assert len(value) >= 40
    assert path.stat().st_mode & 0o777 == 0o600
    again, again_check = run_module("secret_file", args), run_module("secret_file", args, check=True)
    assert not again["changed"]
    assert not again_check["changed"]
    assert path.read_text().strip().split("=", 1)[1] == value
    for result in (predicted, made, again):
        assert value not in json.dumps(result)


def test_an_open_file_is_closed_and_keeps_its_values(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "chat.env"
    path.write_text("MINE=1\nLLAMA_API_KEY=kept\n")
    path.chmod(0o644)
    result = run_module("secret_file", {"path": str(path), "names": ["LLAMA_API_KEY", "OTHER_API_KEY"]})
    assert result["changed"]
    assert result["generated"] == ["OTHER_API_KEY"]
    lines = path.read_text().splitlines()
    assert lines[:2] == ["MINE=1", "LLAMA_API_KEY=kept"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert "kept" not in json.dumps(result)


def test_no_directory_is_an_error_in_words(run_module: RunModule, tmp_path: Path) -> None:
    result = run_module("secret_file", {"path": str(tmp_path / "no" / "x.env"), "names": ["A"]})
    assert result["failed"]
    assert "cannot be written" in result["msg"]


def test_given_values_are_kept_and_never_shown(run_module: RunModule, tmp_path: Path) -> None:
    path = tmp_path / "page.env"
    path.write_text("KEY=kept-secret\nPASSWORD=old-secret\nGONE=other-secret\n")
    path.chmod(0o600)
    values = {"PASSWORD": "new-secret", "EMPTY": "", "URL": "a=b secret"}
    args = {"path": str(path), "names": ["KEY", "PASSWORD", "MADE"], "values": values, "removed": ["GONE", "NEVER"]}
    predicted = run_module("secret_file", args, check=True)
    done = run_module("secret_file", args)
    assert predicted["diff"] == done["diff"]
    assert done["generated"] == ["MADE"]
    assert "PASSWORD=(another, hidden)" in done["diff"]["after"]
    assert "GONE" not in done["diff"]["after"]
    lines = path.read_text().splitlines()
    assert lines[:3] == ["KEY=kept-secret", "PASSWORD=new-secret", "URL=a=b secret"]
    assert [line.partition("=")[0] for line in lines[3:]] == ["MADE"]
    again = run_module("secret_file", args)
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"]
    for result in (predicted, done, again):
        assert "secret" not in json.dumps(result)


def test_a_value_that_a_line_cannot_carry_is_refused_unsaid(run_module: RunModule, tmp_path: Path) -> None:
    for value in (" secret", "secret\nOTHER=1", "secret\u2028x"):
        args = {"path": str(tmp_path / "x.env"), "names": [], "values": {"PASSWORD": value}}
        result = run_module("secret_file", args)
        assert "the value of PASSWORD" in result["msg"]
        assert "secret" not in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_kept_as_it_was_before_a_change(run_module: RunModule, tmp_path: Path) -> None:
    path, before = tmp_path / "page.env", tmp_path / "page.before"
    args = {"path": str(path), "names": ["KEY"], "before": str(before)}
    assert run_module("secret_file", args)["before"] == "", "there was nothing to keep"
    first = path.read_text()
    assert run_module("secret_file", args)["before"] == ""
    assert not before.exists()
    change = {**args, "values": {"URL": "other-secret"}}
    assert run_module("secret_file", change, check=True)["before"] == ""
    assert not before.exists()
    changed = run_module("secret_file", change)
    assert (changed["changed"], changed["before"]) == (True, str(before))
    assert (before.read_text(), before.stat().st_mode & 0o777) == (first, 0o600)
    again = run_module("secret_file", {**args, "values": {"URL": "third-secret"}})
    assert (again["before"], before.read_text()) == (str(before), first), "the next run lost it"
    assert run_module("secret_file", {**args, "values": {"URL": "third-secret"}})["before"] == str(before)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["page.before", "page.env"]
