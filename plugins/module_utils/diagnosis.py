# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service's log says about why it ended: the one line a person should read first. (pure)"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# vLLM's processes before their lines: (EngineCore pid=104) ERROR 05-05 12:36:59 [core.py:1136]
_PROCESS = re.compile(r"^(?:\s*\([A-Za-z][\w. ]*(?:\brank=\d+ )?pid=\d+(?:, [^)]*)?\)|\[rank\d+\]:)+ ?")
_ERROR_HEAD = re.compile(r"^(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ (?:\[[\w./]+:\d+\]|[\w.]+:\d+\]) ?")

# What vLLM's other processes say when one of them fails.
_HOLLOW = re.compile(
    r"See root cause above|See stack trace|Engine(Core|Dead).*(stack trace|failed to start)|Worker proc .* died"
    r"|initialization failed due to an exception in a background process|destroy_process_group"
)

# What systemd itself writes into a unit's journal; up to version 249 the second form lacks the unit's name.
_SYSTEMD = re.compile(r"\S+\.service: |(Starting|Started|Stopping|Stopped|Failed to start) ")

# Ordered by how much a line explains: the first pattern with a match wins, and of its matches the last one.
_TELLING = (
    re.compile(r"^(Value error, |[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt): ).+"),
    re.compile(r"error loading model: .+"),
    re.compile(r"^[0-9.]+ E "),
    re.compile(r"^(gpurig exec|llama_server): .*(error|refus|spent)"),
    re.compile(r"\b(error|failed|cannot|could not|refused|no such file|out of memory|unable)\b", re.IGNORECASE),
)


def bare(line: str) -> str:
    """Return the line without colour codes, the names of vLLM's processes, and the head of its error lines."""
    return _ERROR_HEAD.sub("", _PROCESS.sub("", _ANSI.sub("", line).rstrip())).strip()


def is_of_systemd(line: str) -> bool:
    """Return whether systemd wrote this line of a unit's journal, not the program."""
    return bool(_SYSTEMD.match(line))


def last_error_line(lines: Sequence[str]) -> str:
    """Return the log line that best explains an end, without colour codes; empty when the log is empty.

    `lines` is the tail of one service's log, oldest first. A raised Python error beats a plain line that merely
    mentions an error, because the engines print such lines while they recover as well.
    """
    clean = [line for line in map(bare, lines) if line]
    # "Failed with result 'exit-code'." is true of every failure; it only counts when the program said nothing.
    clean = [line for line in clean if not _SYSTEMD.match(line)] or clean
    clean = [line for line in clean if not _HOLLOW.search(line)] or clean
    for pattern in _TELLING:
        found = [line for line in clean if pattern.search(line)]
        if found:
            return found[-1]
    return clean[-1] if clean else ""
