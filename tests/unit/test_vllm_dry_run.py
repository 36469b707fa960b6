# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dry run's own part: one clear line from whatever vLLM says. What vLLM says, molecule shows with the engine."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "roles/vllm/files/dry_run.py"


@pytest.fixture(scope="module")
def dry_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vllm_dry_run", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class LikePydanticError(ValueError):
    """A pydantic ValidationError: its text has several lines, its errors() the reason."""

    def errors(self) -> list[dict[str, str]]:
        return [{"msg": "Value error, User-specified max_model_len (9) is greater"}, {"msg": "second"}]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LikePydanticError("1 validation error\n  for X"), "User-specified max_model_len (9) is greater; second"),
        (ValueError("two\n   lines"), "two lines"),
        (KeyError(), "KeyError"),
        (SystemExit(1), "1"),
    ],
)
def test_a_refusal_is_one_line(dry_run: ModuleType, error: BaseException, words: str) -> None:
    assert dry_run.refused_by(error) == words


def parser(prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog=prog)
    made.add_argument("command")
    made.add_argument("--config")
    made.add_argument("--needed", required=True)
    return made


@pytest.mark.parametrize("prog", ["vllm", "vllm serve"])
def test_the_parsers_last_line_is_the_reason(dry_run: ModuleType, prog: str) -> None:
    with pytest.raises(dry_run.RefusedError, match=r"^the following arguments are required: --needed$"):
        dry_run.parse(parser(prog), "chat.yaml")


def test_a_program_that_says_nothing(dry_run: ModuleType) -> None:
    assert dry_run.last_line(" \n") == "no message"


def test_without_files_it_says_how_it_is_called(dry_run: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"usage: dry_run\.py FILE"):
        dry_run.main([])
    assert "vllm" not in sys.modules
