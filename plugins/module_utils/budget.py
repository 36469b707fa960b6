# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How often a service may start within a window of time. (pure)"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


class BudgetError(ValueError):
    """The budget's numbers or its text make no sense."""


@dataclass(frozen=True)
class Verdict:
    """`allowed`: a start now is within the budget. `remaining`: starts that are left, this one included.
    `wait_s`: seconds until the next start is allowed; 0 when it is allowed now.
    """

    allowed: bool
    remaining: int
    wait_s: float


def parse_budget(text: str) -> tuple[int, int]:
    """Return (starts, window_s) of 'STARTS/WINDOW_S', for example '5/600'. Raises BudgetError."""
    starts, slash, window_s = text.partition("/")
    if not slash or not (starts.isdecimal() and window_s.isdecimal()) or not (int(starts) and int(window_s)):
        raise BudgetError(f"restart budget: {text!r} is not STARTS/WINDOW_S with two numbers above 0, such as 5/600")
    return int(starts), int(window_s)


def recent(start_times_s: Iterable[float], now_s: float, window_s: float) -> list[float]:
    """Return the start times that count, oldest first: within the last `window_s` seconds.

    A time that lies in the future comes from another clock and counts for nothing.
    """
    # The same sum as in `decide`, so that rounding cannot make a start count for no time at all.
    return sorted(start_s for start_s in start_times_s if start_s <= now_s and start_s + window_s - now_s > 0)


def decide(start_times_s: Iterable[float], now_s: float, starts: int, window_s: float) -> Verdict:
    """Return whether one more start is allowed when at most `starts` may fall into any `window_s` seconds.

    All times are seconds of one and the same clock. Raises BudgetError for numbers that are not above 0.
    """
    if starts <= 0 or window_s <= 0 or not math.isfinite(window_s):
        raise BudgetError(f"restart budget: {starts} starts in {window_s} s; both numbers must be above 0")
    counted = recent(start_times_s, now_s, window_s)
    if len(counted) < starts:
        return Verdict(allowed=True, remaining=starts - len(counted), wait_s=0.0)
    return Verdict(allowed=False, remaining=0, wait_s=counted[-starts] + window_s - now_s)
