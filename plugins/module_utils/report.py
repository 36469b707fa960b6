# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last report: one table that says what runs and that it answers. (pure)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADINGS = ("instance", "engine", "model", "URL", "ready in", "tokens/s", "first line of the answer")
ANSWER_WIDTH = 72


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as text.

    Each row has `instance`, `engine`, `model`, `url`, `ready_s` (seconds or None), `tokens_per_s` and `first_lines`
    (one per question); every further question gets a line of its own.
    """
    cells = [HEADINGS]
    for row in rows:
        ready = "unknown" if row.get("ready_s") is None else f"{float(row['ready_s']):.1f} s"
        first, *more = [_shorten(str(line), ANSWER_WIDTH) for line in row["first_lines"]] or [""]
        cells.append(
            (
                str(row["instance"]),
                str(row["engine"]),
                str(row["model"]),
                str(row["url"]),
                ready,
                f"{float(row['tokens_per_s']):.1f}",
                first,
            )
        )
        cells.extend(("", "", "", "", "", "", line) for line in more)
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
