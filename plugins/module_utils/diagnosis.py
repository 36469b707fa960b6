# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service's log says about why it ended: the one line a person should read first. (pure)"""

from __future__ import annotations

import re
from collections.abc import Sequence

_ANSI = re.compile(r"\x1b\[[0-9;]*m")

# What systemd itself writes into a unit's journal; up to version 249 the second form lacks the unit's name.
_SYSTEMD = re.compile(r"\S+\.service: |(Starting|Started|Stopping|Stopped|Failed to start) ")

# Ordered by how much a line explains: the first pattern with a match wins, and of its matches the last one.
_TELLING = (
    re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Exit|Interrupt): .+"),
    re.compile(r"error loading model: .+"),
    re.compile(r"^[0-9.]+ E "),
    re.compile(r"^(gpurig exec|llama_server): .*(error|refus|spent)"),
    re.compile(r"\b(error|failed|cannot|could not|refused|no such file|out of memory|unable)\b", re.IGNORECASE),
)


def last_error_line(lines: Sequence[str]) -> str:
    """Return the log line that best explains an end, without colour codes; empty when the log is empty.

    `lines` is the tail of one service's log, oldest first. A raised Python error beats a plain line that merely
    mentions an error, because the engines print such lines while they recover as well.
    """
    clean = [_ANSI.sub("", line).strip() for line in lines]
    clean = [line for line in clean if line]
    # "Failed with result 'exit-code'." is true of every failure; it only counts when the program said nothing.
    clean = [line for line in clean if not _SYSTEMD.match(line)] or clean
    for pattern in _TELLING:
        found = [line for line in clean if pattern.search(line)]
        if found:
            return found[-1]
    return clean[-1] if clean else ""
