# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write each role's README.md from its argument specification, so that there is one truth.

python scripts/role_readme.py [--check] [ROLES_FOLDER]

An example comes from the end of meta/argument_specs.yml: a comment line `# EXAMPLE` and the commented YAML below it.
With --check nothing is written; exit code 1 and one line for each README that is not what would be written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.scripts.check_specs import ROOT, SPEC, SpecError, load

MARKUP = re.compile(r"\b([CVOIBPEML])\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
NOTE = "<!-- Written by scripts/role_readme.py from meta/argument_specs.yml: change that file, not this one. -->"


def plain(text: object) -> str:
    """Ansible's markup as Markdown: C(x) V(x) O(x) E(x) P(x) as code, I(x) and B(x) emphasized."""

    def replace(match: re.Match[str]) -> str:
        kind, content = match.groups()
        if kind in {"M", "P"}:
            content = content.partition("#")[0]
        if kind == "L":
            label, _comma, url = content.partition(",")
            return f"[{label.strip()}]({url.strip()})"
        return {"I": f"*{content}*", "B": f"**{content}**"}.get(kind, f"`{content}`")

    return MARKUP.sub(replace, str(text))


def sentences(description: object) -> list[str]:
    """A description, which may be one text or a list of them, as a list."""
    lines = description if isinstance(description, list) else [description] if description else []
    return [plain(line) for line in lines]


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def rows(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The table's lines, one for each option; options below an option carry its name before theirs."""
    for name, option in options.items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
        if option.get("required"):
            default = "required"
        else:
            value = option.get("default")
            text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
            default = "" if value is None else f"`{cell(text)}`"
        words = " ".join(sentences(option.get("description")))
        if option.get("choices"):
            words += " One of " + ", ".join(f"`{choice}`" if choice else '`""`' for choice in option["choices"]) + "."
        yield f"| `{prefix}{name}` | {kind} | {default} | {cell(words)} |"
        yield from rows(option.get("options") or {}, f"{prefix}{name}.")


def example(spec_text: str) -> list[str]:
    """The example at the end of a specification, without its comment signs; empty when there is none."""
    _before, sign, after = spec_text.partition("\n# EXAMPLE\n")
    return [re.sub(r"^# ?", "", line) for line in after.splitlines() if line.startswith("#")] if sign else []


def readme(role: Path) -> str:
    """The README of a role. Raises SpecError for a specification that cannot be read."""
    entries = load(role / SPEC).get("argument_specs") or {}
    lines = [f"# gpurig.llm.{role.name}", "", NOTE]
    for entry, spec in entries.items():
        if entry != "main":
            lines += ["", f"## Entry point `{entry}`"]
        short = plain(spec.get("short_description", "")).rstrip(".")
        lines += ["", f"{short}."]
        for sentence in sentences(spec.get("description")):
            lines += ["", sentence]
        if entry == "main":
            lines += ["", "## Variables"]
        if spec.get("options"):
            lines += ["", "| name | type | default | meaning |", "| --- | --- | --- | --- |", *rows(spec["options"])]
        elif entry == "main":
            lines += ["", "None."]
    shown = example((role / SPEC).read_text(encoding="utf-8"))
    if shown:
        lines += ["", "## Example", "", "```yaml", *shown, "```"]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the READMEs of all roles below a folder (the collection's own by default)."""
    check = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    folder = Path(folders[0]) if folders else ROOT / "roles"
    roles = sorted(path.parent.parent for path in folder.glob(f"*/{SPEC}")) if folder.is_dir() else []
    stale = broken = 0
    for role in roles:
        path = role / "README.md"
        try:
            wanted = readme(role)
        except SpecError as error:
            print(f"roles/{role.name}: {error}")
            broken += 1
            continue
        if path.is_file() and path.read_text(encoding="utf-8") == wanted:
            continue
        stale += 1
        if check:
            print(f"roles/{role.name}/README.md is not what its {SPEC} says; run: python scripts/role_readme.py")
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"roles/{role.name}/README.md written")
    print(f"{len(roles)} roles, {stale} {'stale' if check else 'written'}, {broken} without a readable specification")
    return 1 if broken or (stale and check) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
