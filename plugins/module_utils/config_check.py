# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let an engine's own parser read configuration files before they are used. (outside)"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from pathlib import Path
from typing import Any

OUTPUT_LINES = 15


class CheckerError(Exception):
    """The checker itself did not work; the message says how it ended."""


def as_user(user: str) -> dict[str, Any]:
    """Return the arguments of Popen that make it another user's process, where we may do that."""
    if not user or os.geteuid() != 0 or user == "root":
        return {}
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        raise CheckerError(f"user {user} does not exist on this host; the role host_tool makes it") from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def verdicts(configs: list[dict[str, Any]], user: str, timeout_s: int) -> list[str]:
    """Let one checker read the files; return what it refuses, one line each. Raises CheckerError."""
    with tempfile.TemporaryDirectory(prefix="gpurig-config-") as scratch:
        Path(scratch).chmod(0o755)
        files = {}
        for config in configs:
            path = Path(scratch, f"{config['name']}.yaml")
            path.write_text(config["text"], encoding="utf-8")
            path.chmod(0o644)
            files[str(path)] = config["name"]
        argv = [*configs[0]["checker"], *files]
        environment = {**os.environ, **{key: str(value) for key, value in configs[0]["environment"].items()}}
        try:
            done = subprocess.run(
                argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout_s,
                **as_user(user),
            )
        except OSError as error:
            raise CheckerError(f"{argv[0]}: {error.strerror}") from error
        except subprocess.TimeoutExpired as error:
            raise CheckerError(f"{' '.join(argv[:2])} did not end within {timeout_s} s") from error
    lines = done.stdout.splitlines()
    said = next((line for line in reversed(lines) if line.startswith("dry_run: ")), "")
    if not said:
        tail = "\n".join(lines[-OUTPUT_LINES:])
        raise CheckerError(f"{' '.join(argv[:2])} ended with exit code {done.returncode}. Its last lines:\n{tail}")
    text = said.removeprefix("dry_run: ")
    for file, name in files.items():
        text = text.replace(file, f"instance {name}")
    return [] if text == "ok" else text.split(" | ")
