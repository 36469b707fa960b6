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
