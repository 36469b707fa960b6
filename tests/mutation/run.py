# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Change a source file in every small way and count how many of the changes its tests notice.

python tests/mutation/run.py SOURCE TEST... [--need PERCENT]
python tests/mutation/run.py plugins/module_utils/gpu_selection.py tests/unit/test_gpu_selection.py

Works on a temporary copy of the checkout. Prints the survivors, each with its line, and the kill rate; exit code 1
where the rate is below PERCENT (85). Takes minutes, so it is no part of ./rig test. POSIX only (it forks).

A mutant flips a comparison, swaps and/or and arithmetic, negates a condition, changes a constant, or removes a
statement. Annotations, imports, decorators, docstrings and the texts inside f-strings stay as they are.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "ansible_collections/gpurig/llm"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "output", "molecule")

FLIPS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
SWAPS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
}
REMOVED = (ast.Expr, ast.Raise, ast.AugAssign, ast.Continue, ast.Break, ast.Return)


@dataclass(frozen=True)
class Mutant:
    """One change: where, what it was and is, and the whole changed source."""

    line: int
    before: str
    after: str
    source: str


Change = Callable[[Any], ast.AST]


def alternatives(node: ast.AST) -> Iterator[Change]:
    """Functions that turn a copy of the node into a changed one."""
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for flipped in FLIPS[type(operator)]:
                yield partial(_flip, place, flipped)
    elif isinstance(node, ast.BoolOp):
        yield lambda found: _set(found, op=ast.Or() if isinstance(found.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda found: found.operand
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in SWAPS:
        yield lambda found: _set(found, op=SWAPS[type(found.op)]())
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield lambda found: ast.Constant(not found.value)
        elif isinstance(value, (int, float)):
            yield lambda found: ast.Constant(found.value + 1)
        elif isinstance(value, str):
            yield lambda found: ast.Constant("" if found.value else "x")
    if isinstance(node, (ast.If, ast.While, ast.IfExp)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield lambda found: _set(found, test=_not(found.test))
    if isinstance(node, ast.comprehension):
        for place in range(len(node.ifs)):
            yield partial(_negate, place)
    if isinstance(node, REMOVED) and ast.unparse(node) not in {"return", "return None"}:
        yield lambda found: ast.Return(None) if isinstance(found, ast.Return) and found.value else ast.Pass()


def _set(node: ast.AST, **fields: object) -> ast.AST:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _flip(place: int, flipped: type[ast.cmpop], found: ast.Compare) -> ast.AST:
    found.ops[place] = flipped()
    return found


def _negate(place: int, found: ast.comprehension) -> ast.AST:
    found.ifs[place] = _not(found.ifs[place])
    return found


def _not(test: ast.expr) -> ast.UnaryOp:
    return ast.UnaryOp(ast.Not(), test)


def places(tree: ast.Module) -> Iterator[list[tuple[str, int | None]]]:
    """The path from the module to each node that may be changed: (field, number in its list) for each step down."""

    def below(node: ast.AST, path: list[tuple[str, int | None]]) -> Iterator[list[tuple[str, int | None]]]:
        yield path
        for name, value in ast.iter_fields(node):
            if name in {"annotation", "returns", "decorator_list", "type_comment"}:
                continue
            for number, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(item, ast.AST) and not _left_alone(item):
                    yield from below(item, [*path, (name, number)])

    yield from below(tree, [])


def _left_alone(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or isinstance(node, (ast.Import, ast.ImportFrom))


def at(tree: ast.AST, path: list[tuple[str, int | None]]) -> ast.AST:
    """The node at the end of a path."""
    node: ast.AST = tree
    for name, number in path:
        value = getattr(node, name)
        node = value if number is None else value[number]
    return node


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a source text, each different from it and from the ones before."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for path in places(tree):
        if not path or _in_fstring(tree, path):
            continue
        original = at(tree, path)
        for change in alternatives(original):
            changed = copy.deepcopy(tree)
            new = change(at(changed, path))
            name, number = path[-1]
            parent = at(changed, path[:-1])
            if number is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[number] = new
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in seen:
                seen.add(text)
                yield Mutant(getattr(original, "lineno", 0) or _line(tree, path), _short(original), _short(new), text)


def _in_fstring(tree: ast.Module, path: list[tuple[str, int | None]]) -> bool:
    """Whether the node is a text of an f-string, or what formats a value in it; the values themselves are code."""
    for depth in range(len(path)):
        parent, name = at(tree, path[:depth]), path[depth][0]
        if isinstance(parent, ast.JoinedStr) and isinstance(at(tree, path[: depth + 1]), ast.Constant):
            return True
        if isinstance(parent, ast.FormattedValue) and name == "format_spec":
            return True
    return False


def _line(tree: ast.Module, path: list[tuple[str, int | None]]) -> int:
    return next((n.lineno for depth in range(len(path), 0, -1) if hasattr(n := at(tree, path[:depth]), "lineno")), 0)


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "..."


def run_tests(checkout: Path, tests: list[str], timeout_s: float, output: str = os.devnull) -> str:
    """Run the tests in a child process that prints to `output`; 'passed', 'failed' or 'timeout'."""
    pid = os.fork()
    if not pid:
        status = 3
        try:
            os.setsid()
            os.chdir(checkout)
            stream = os.open(output, os.O_RDWR | os.O_CREAT, 0o600)
            for number in range(3):
                os.dup2(stream, number)
            pytest = importlib.import_module("pytest")
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "timeout"


def measure(source: str, tests: list[str]) -> tuple[int, list[Mutant]]:
    """(number of mutants, survivors) of a file of the checkout. Raises SystemExit when the tests fail unchanged."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        checkout = Path(scratch, PACKAGE)
        shutil.copytree(ROOT, checkout, ignore=NOT_COPIED, symlinks=True)
        sys.path.insert(0, scratch)
        for name in ("pytest", "hypothesis", "yaml"):  # loaded once, for all children
            importlib.import_module(name)
        target = checkout / source
        text = target.read_text(encoding="utf-8")
        start = time.monotonic()
        output = Path(scratch, "output.txt")
        if run_tests(checkout, tests, 600, str(output)) != "passed":
            print(output.read_text(encoding="utf-8", errors="replace"))
            raise SystemExit(f"{' '.join(tests)}: does not pass without any change")
        timeout_s = 5 + 5 * (time.monotonic() - start)
        sys.dont_write_bytecode = True  # what is compiled by now is used again, except the file that changes
        for compiled in target.parent.glob(f"__pycache__/{target.stem}.*"):
            compiled.unlink()
        count, survivors = 0, []
        for mutant in mutants(text):
            target.write_text(mutant.source, encoding="utf-8")
            count += 1
            verdict = run_tests(checkout, tests, timeout_s)
            if verdict == "passed":
                survivors.append(mutant)
                print(f"survived  {source}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
    return count, survivors


def main() -> int:
    """Measure one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("tests", nargs="+")
    parser.add_argument("--need", type=float, default=85.0, metavar="PERCENT")
    given = parser.parse_args()
    start = time.monotonic()
    count, survivors = measure(given.source, given.tests)
    rate = 100 * (count - len(survivors)) / max(count, 1)
    print(
        f"{given.source}: {count} mutants, {len(survivors)} survived: {rate:.1f} % killed in "
        f"{time.monotonic() - start:.0f} s (needed {given.need:g} %)"
    )
    return 0 if rate >= given.need else 1


if __name__ == "__main__":
    sys.exit(main())
