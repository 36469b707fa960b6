# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mutation tool: what it changes, what it leaves alone, and that it tells a killed mutant from a survivor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.mutation.run import mutants, run_tests

SOURCES = [
    ("x = a < b", {"x = a <= b", "x = a >= b"}),
    ("x = a in b is c", {"x = a not in b is c", "x = a in b is not c"}),
    ("x = a and (not b)", {"x = a or not b", "x = a and b"}),
    ("x = a * 2 + 1.5", {"x = a / 2 + 1.5", "x = a * 3 + 1.5", "x = a * 2 - 1.5", "x = a * 2 + 2.5"}),
    ("x = ('', 'a', True)", {"x = ('x', 'a', True)", "x = ('', '', True)", "x = ('', 'a', False)"}),
    ("if a:\n    f()", {"if not a:\n    f()", "if a:\n    pass"}),
    ("x = [a for a in b if a]", {"x = [a for a in b if not a]"}),
    ("def f():\n    return a", {"def f():\n    return"}),
    ("def f():\n    return None", set()),
    ('"""Words."""\nimport os\nx: Final[3]', set()),
    ("x = f'words {a + b} {c:>3}'", {"x = f'words {a - b} {c:>3}'"}),
]


@pytest.mark.parametrize(("source", "wanted"), SOURCES, ids=[source for source, _wanted in SOURCES])
def test_mutants(source: str, wanted: set[str]) -> None:
    assert {mutant.source for mutant in mutants(source)} == {ast.unparse(ast.parse(text)) for text in wanted}


def test_a_mutant_says_where_it_is() -> None:
    [first, *_rest] = mutants("x = 1\ny = a == b\n")
    assert (first.line, first.before, first.after) == (1, "1", "2")
    assert [mutant.line for mutant in mutants("x = 1\ny = a == b\n")] == [1, 2]


@pytest.mark.parametrize(
    ("test", "verdict"),
    [("assert True", "passed"), ("assert False", "failed"), ("while True: pass", "timeout")],
)
def test_verdicts(tmp_path: Path, test: str, verdict: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(f"def test_it():\n    {test}\n", encoding="utf-8")
    assert run_tests(tmp_path, ["test_it.py"], 3 if verdict == "timeout" else 60) == verdict
