#!/usr/bin/env python3
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make plugins/module_utils/vllm_flags.py again: what vLLM's own parser, parser lists and variables are.

    scripts/vllm_flags.py CUDA_PYTHON CPU_PYTHON            write the table
    scripts/vllm_flags.py --check CUDA_PYTHON CPU_PYTHON    change nothing; exit 1 when it would change

The arguments are the interpreters of two environments, built from roles/vllm/files/cuda.lock and cpu.lock. No card is
needed; each takes half a minute, nearly all of it vLLM's imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "plugins/module_utils/vllm_flags.py"
METADATA = ROOT / "roles/vllm/files/cpu_metadata"
CATEGORIES = ("switches", "marks", "lists", "values", "tool_parsers", "reasoning_parsers", "variables")

# Runs in the engine's environment. Names like -tp cannot stand in a configuration file and are left out.
ASK = """
import argparse, importlib.metadata, json, sys
from vllm import envs
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
found = {name: [] for name in ("switches", "marks", "lists", "values")}
for option, action in make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))._option_string_actions.items():
    if not option.startswith("--") or option.startswith("--no-") or option in ("--help", "--config"):
        continue
    if isinstance(action, argparse.BooleanOptionalAction):
        kind = "switches"
    elif action.nargs == 0:
        kind = "marks"
    else:
        kind = "lists" if action.nargs == "+" else "values"
    found[kind].append(option[2:])
found["tool_parsers"] = ToolParserManager.list_registered()
found["reasoning_parsers"] = ReasoningParserManager.list_registered()
found["variables"] = [name for name in envs.environment_variables if name.startswith("VLLM_")]
found["version"] = importlib.metadata.version("vllm").partition("+")[0]
print("FOUND" + json.dumps(found))
"""

HEAD = '''# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options, parsers and variables of the two vLLM builds, as the engines name them; by scripts/vllm_flags.py. (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Engine:
    """One build of vLLM.

    Options without leading dashes: `switches` take true or false, `marks` true only, `lists` one or more values,
    `values` one. `variables` are those of its own whose names begin with VLLM_; it warns about any other.
    """

    version: str
    switches: frozenset[str]
    marks: frozenset[str]
    lists: frozenset[str]
    values: frozenset[str]
    tool_parsers: frozenset[str]
    reasoning_parsers: frozenset[str]
    variables: frozenset[str]

    @property
    def options(self) -> frozenset[str]:
        """Every option's name."""
        return self.switches | self.marks | self.lists | self.values


def _words(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in text.split())


'''


def ask(python: str, cpu: bool) -> dict[str, Any]:
    """Return what the engine of this interpreter's environment says about itself."""
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if cpu:
        # What lies in that folder goes to hosts: no bytecode of the plugin in it.
        environment |= {"PYTHONPATH": str(METADATA), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-c", ASK], env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    if done.returncode or not lines:
        raise SystemExit(f"{python}: vLLM did not say what it knows:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("FOUND"))
    return found


def block(name: str, words: set[str]) -> str:
    """Return an assignment of the words as one wrapped text, or of an empty text."""
    if not words:
        return f'{name} = ""\n'
    wrapped = textwrap.fill(" ".join(sorted(words)), 118, break_on_hyphens=False, break_long_words=False)
    return f'{name} = """\n{wrapped}\n"""\n'


def table(cuda: dict[str, Any], cpu: dict[str, Any]) -> str:
    """Return the module's text: what both builds know once, and what only one of them knows."""
    text = HEAD
    engines = {"CUDA": cuda, "CPU": cpu}
    for category in CATEGORIES:
        both = set(cuda[category]) & set(cpu[category])
        text += block(f"_{category.upper()}", both)
        for build, found in engines.items():
            if only := set(found[category]) - both:
                text += block(f"_{category.upper()}_{build}", only)
        text += "\n"
    text += "ENGINES: Mapping[str, Engine] = MappingProxyType(\n    {\n"
    for build, found in engines.items():
        text += f'        "{build.lower()}": Engine(\n            version="{found["version"]}",\n'
        for category in CATEGORIES:
            parts = [f"_{category.upper()}"]
            if set(found[category]) - (set(cuda[category]) & set(cpu[category])):
                parts.append(f"_{category.upper()}_{build}")
            text += f"            {category}=_words({', '.join(parts)}),\n"
        text += "        ),\n"
    return text + '    }\n)\n"""Device -> its build; the locks of roles/vllm name the same versions."""\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cuda_python")
    parser.add_argument("cpu_python")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the table would change")
    options = parser.parse_args()
    text = table(ask(options.cuda_python, cpu=False), ask(options.cpu_python, cpu=True))
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        print(f"{TARGET.relative_to(ROOT)}: up to date")
        return 0
    print(f"{TARGET.relative_to(ROOT)}: {'would change' if options.check else 'written'}")
    if not options.check:
        TARGET.write_text(text, encoding="utf-8")
    return 1 if options.check else 0


if __name__ == "__main__":
    sys.exit(main())
