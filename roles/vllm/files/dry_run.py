# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have vLLM's own parser and checks judge configuration files, without starting a server.

    ENVIRONMENT/bin/python dry_run.py FILE...

Run it with the variables that the engine will have: unknown VLLM_* ones are refused too. The last line of the output
says `dry_run: ok` or, with exit code 1, what vLLM has against which file. Nearly all of its time are vLLM's imports,
so that several files cost what one does. It takes no memory of a card and loads no weights.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any


class RefusedError(Exception):
    """vLLM would not start with this; the message is its own where it has one."""


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def refused_by(error: BaseException) -> str:
    """Return vLLM's message as one line; pydantic puts the reason on the third line of several."""
    reasons = [one["msg"] for one in error.errors()] if hasattr(error, "errors") else []
    text = "; ".join(reasons) or str(error) or type(error).__name__
    return " ".join(text.removeprefix("Value error, ").split())


def parse(parser: Any, file: str) -> Namespace:
    """Return the options of a file. Raises RefusedError with the parser's message."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options: Namespace = parser.parse_args(["serve", "--config", file])
    except SystemExit:
        raise RefusedError(re.sub("^vllm.*? error: ", "", last_line(said.getvalue()))) from None
    return options


def check_parsers(options: Namespace) -> None:
    """Raise RefusedError for a parser that vLLM does not have: neither its options nor its engine check the names."""
    from vllm.reasoning import ReasoningParserManager  # noqa: PLC0415  only in the engine's environment
    from vllm.tool_parsers import ToolParserManager  # noqa: PLC0415

    for name, wanted, plugin, known in (
        ("tool-call-parser", options.tool_call_parser, options.tool_parser_plugin, ToolParserManager),
        ("reasoning-parser", options.reasoning_parser, options.reasoning_parser_plugin, ReasoningParserManager),
    ):
        if wanted and not plugin and wanted not in known.list_registered():
            raise RefusedError(f"{name}: no parser {wanted!r}; known: {', '.join(sorted(known.list_registered()))}")


def check(serve: Any, parser: Any, file: str) -> None:
    """Raise RefusedError when vLLM would not start with this file."""
    from vllm import AsyncEngineArgs  # noqa: PLC0415

    options = parse(parser, file)
    options.model = options.model_tag or options.model
    if not Path(options.model).is_dir():
        raise RefusedError(f"model: {options.model} is not a folder; vLLM would look for that name on the hub")
    serve.validate(options)
    check_parsers(options)
    AsyncEngineArgs.from_cli_args(options).create_engine_config()


def problem_of(serve: Any, parser: Any, file: str) -> str:
    """Return what vLLM has against a file, '' for nothing. Whatever it raises is its answer."""
    try:
        check(serve, parser, file)
    except (Exception, SystemExit) as error:
        return f"{file}: {refused_by(error)}"
    return ""


def main(files: list[str]) -> int:
    if not files:
        sys.exit("usage: dry_run.py FILE...")
    from vllm.entrypoints.cli.serve import cmd_init  # noqa: PLC0415
    from vllm.platforms import current_platform  # noqa: PLC0415
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    parser = FlexibleArgumentParser(prog="vllm")
    serve = cmd_init()[0]
    serve.subparser_init(parser.add_subparsers(dest="subparser"))
    problems = []
    try:
        current_platform.validate_environ(hard_fail=True)
    except ValueError as error:
        problems.append(refused_by(error))
    problems += filter(None, [problem_of(serve, parser, file) for file in files])
    sys.stderr.flush()
    print(f"dry_run: {' | '.join(problems) if problems else 'ok'}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
