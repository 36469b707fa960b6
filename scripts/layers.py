# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that imports only point down the three layers of the plugins.

python scripts/layers.py [CHECKOUT]

A file of plugins/module_utils says its layer at the end of its docstring's first line: (pure), (outside) or (glue).
All other plugins are glue.

pure     standard library without input and output, and pure files
outside  standard library, pure and outside files; nvml.py alone also pynvml
glue     anything of Ansible's and ours

Files of module_utils import each other relatively, because the host tool is made of the same files under another name.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UTILS = "ansible_collections.gpurig.llm.plugins.module_utils"
OURS = "ansible_collections.gpurig.llm."
ORDER = {"pure": 0, "outside": 1, "glue": 2}
MARK = re.compile(r"\((pure|outside|glue)\)\.?$")
PURE_STDLIB = frozenset(
    {
        "__future__", "abc", "ast", "base64", "binascii", "bisect", "collections", "configparser",
        "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "enum", "fnmatch",
        "fractions", "functools", "hashlib", "heapq", "hmac", "html", "ipaddress", "itertools", "json",
        "keyword", "math", "numbers", "operator", "pathlib", "posixpath", "pprint", "re", "shlex",
        "statistics", "string", "struct", "textwrap", "tomllib", "types", "typing", "unicodedata",
        "urllib.parse", "uuid", "zlib",
    }
)  # fmt: skip
PURE_PATHLIB = frozenset({"PurePath", "PurePosixPath", "PureWindowsPath"})
IMPURE_CALLS = frozenset({"open", "print", "input", "__import__"})
MODULE_THIRD_PARTY = ("ansible.module_utils",)
PLUGIN_THIRD_PARTY = ("ansible", "yaml", "jinja2")


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted path, what `from` takes of it, and whether it was written relatively."""

    name: str
    names: tuple[str, ...]
    relative: bool
    line: int

    @property
    def root(self) -> str:
        """The distribution's top package."""
        return self.name.partition(".")[0]


def read_imports(tree: ast.Module, package: str) -> Iterator[Import]:
    """Every import of a file, also those inside functions; `package` is the dotted path of its folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), False, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            names = tuple(alias.name for alias in node.names)
            if name == UTILS or not node.module:  # `from . import layout`: the names are modules
                for module in names:
                    yield Import(f"{name}.{module}", (), node.level > 0, node.lineno)
            else:
                yield Import(name, names, node.level > 0, node.lineno)


def layer_of(tree: ast.Module) -> str | None:
    """The layer that a file of module_utils says it belongs to."""
    first = (ast.get_docstring(tree) or "").partition("\n")[0]
    match = MARK.search(first)
    return match.group(1) if match else None


def utils_layers(root: Path) -> dict[str, str | None]:
    """Layer of each file of module_utils, by its dotted path below it."""
    folder = root / "plugins/module_utils"
    found = {}
    for path in sorted(folder.rglob("*.py")):
        dotted = ".".join(path.relative_to(folder).with_suffix("").parts)
        if path.name != "__init__.py":
            found[dotted] = layer_of(ast.parse(path.read_text(encoding="utf-8")))
    return found


def pure_errors(imported: Import) -> Iterator[str]:
    """What a pure file may not import of the standard library."""
    if imported.name in PURE_STDLIB or imported.root in PURE_STDLIB - {"pathlib"}:
        if imported.name == "pathlib" and not (imported.names and set(imported.names) <= PURE_PATHLIB):
            yield "a pure file may only take PurePath and its kin from pathlib"
        return
    yield f"a pure file may not import {imported.name}: it reaches outside, or nobody said that it does not"


def utils_errors(path: Path, tree: ast.Module, layers: dict[str, str | None]) -> Iterator[tuple[int, str]]:
    """Findings in one file of module_utils, each with its line."""
    layer = layer_of(tree)
    if layer is None:
        yield 1, "the docstring's first line must end with (pure), (outside) or (glue)"
        return
    below_utils = path.parent.as_posix().rpartition("/module_utils")[2].strip("/")
    for imported in read_imports(tree, ".".join([UTILS, *filter(None, below_utils.split("/"))])):
        if imported.name.startswith(UTILS + "."):
            target = imported.name.removeprefix(UTILS + ".")
            below = layers.get(target)
            if not imported.relative:
                yield imported.line, f"imports {target} absolutely; within module_utils imports are relative"
            if target not in layers:
                yield imported.line, f"imports {target}, which is not in module_utils"
            elif below is not None and ORDER[below] > ORDER[layer]:
                yield imported.line, f"is {layer} and imports {target}, which is {below}"
        elif imported.relative or imported.name.startswith(OURS):
            yield imported.line, f"imports {imported.name}, which is above module_utils"
        elif imported.root in sys.stdlib_module_names:
            if layer == "pure":
                yield from ((imported.line, error) for error in pure_errors(imported))
        elif not (path.name == "nvml.py" and imported.root == "pynvml") and not (
            layer == "glue" and imported.name.startswith(MODULE_THIRD_PARTY)
        ):
            yield imported.line, f"is {layer} and imports {imported.root}, which is not in the standard library"
    if layer == "pure":
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
                yield node.lineno, f"is pure and calls {node.func.id}()"


def plugin_errors(kind: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Findings in a plugin of any other kind: where it takes what it is glued to from."""
    allowed = MODULE_THIRD_PARTY if kind == "modules" else PLUGIN_THIRD_PARTY
    for imported in read_imports(tree, f"{OURS}plugins.{kind}"):
        if imported.name.startswith(OURS):
            if kind == "modules" and not imported.name.startswith(UTILS + "."):
                yield imported.line, f"a module imports {imported.name}; Ansible only ships module_utils to a host"
        elif imported.root not in sys.stdlib_module_names and not any(
            imported.name == name or imported.name.startswith(name + ".") for name in allowed
        ):
            yield imported.line, f"imports {imported.name}; allowed are the standard library and {', '.join(allowed)}"


def pynvml_errors(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every mention of the binding as an import or as the name to import."""
    lines = [imported.line for imported in read_imports(tree, UTILS) if imported.root == "pynvml"]
    lines += [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == "pynvml"]
    for line in lines:
        yield line, "names pynvml; plugins/module_utils/nvml.py is the only door to it"


def errors(root: Path = ROOT) -> list[str]:
    """Every finding in a checkout, as `path:line: what`; empty when all is well."""
    layers = utils_layers(root)
    found = []
    for path in sorted((root / "plugins").rglob("*.py")):
        relative = path.relative_to(root)
        kind = relative.parts[1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "__init__.py" and not tree.body:
            continue
        findings = list(utils_errors(path, tree, layers) if kind == "module_utils" else plugin_errors(kind, tree))
        if relative.as_posix() != "plugins/module_utils/nvml.py":
            findings += pynvml_errors(tree)
        found += [f"{relative}:{line}: {text}" for line, text in sorted(findings)]
    return found


def main(arguments: list[str]) -> int:
    """Check one checkout (ours by default)."""
    found = errors(Path(arguments[0]) if arguments else ROOT)
    print("\n".join([*found, f"{len(found)} findings"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
