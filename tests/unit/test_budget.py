# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The restart budget: how many starts are left, and from when on there is another."""

from __future__ import annotations

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.budget import (
    BudgetError,
    Verdict,
    decide,
    parse_budget,
    recent,
)
from hypothesis import example, given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("starts_s", "now_s", "expected"),
    [
        pytest.param([], 100.0, Verdict(True, 3, 0.0), id="first start"),
        pytest.param([90.0, 95.0], 100.0, Verdict(True, 1, 0.0), id="one left"),
        pytest.param([80.0, 90.0, 95.0], 100.0, Verdict(False, 0, 40.0), id="spent, the oldest leaves in 40 s"),
        pytest.param([39.0, 90.0, 95.0], 100.0, Verdict(True, 1, 0.0), id="the oldest has left the window"),
        pytest.param([40.0, 90.0, 95.0], 100.0, Verdict(True, 1, 0.0), id="exactly at the window's edge has left"),
        pytest.param([500.0, 90.0, 95.0], 100.0, Verdict(True, 1, 0.0), id="a time in the future is not counted"),
        pytest.param([95.0, 80.0, 90.0], 100.0, Verdict(False, 0, 40.0), id="order makes no difference"),
        pytest.param([70.0, 80.0, 85.0, 90.0], 100.0, Verdict(False, 0, 40.0), id="more than the budget"),
    ],
)
def test_verdict(starts_s: list[float], now_s: float, expected: Verdict) -> None:
    assert decide(starts_s, now_s, starts=3, window_s=60) == expected


@example([6.25e-307], 1.0, 1, 1.0)
@given(
    st.lists(st.floats(0, 1000), max_size=30),
    st.floats(0, 1000),
    st.integers(1, 10),
    st.floats(1, 500),
)
def test_the_promise_of_wait_s_holds(starts_s: list[float], now_s: float, starts: int, window_s: float) -> None:
    verdict = decide(starts_s, now_s, starts, window_s)
    assert verdict.allowed == (verdict.wait_s == 0.0) == (verdict.remaining > 0)
    if not verdict.allowed:
        counted = recent(starts_s, now_s, window_s)
        assert decide(counted, now_s + verdict.wait_s + 1e-6, starts, window_s).allowed


def test_never_more_starts_than_the_budget_in_any_window() -> None:
    made: list[float] = []
    for now_s in range(0, 1000, 7):
        if decide(made, now_s, starts=4, window_s=100).allowed:
            made.append(float(now_s))
    assert max(sum(1 for other in made if start <= other < start + 100) for start in made) == 4


@pytest.mark.parametrize(("starts", "window_s"), [(0, 60), (-1, 60), (3, 0), (3, -5), (3, float("inf"))])
def test_nonsense_is_refused(starts: int, window_s: float) -> None:
    with pytest.raises(BudgetError, match="above 0"):
        decide([], 0.0, starts, window_s)


def test_text_form() -> None:
    assert parse_budget("5/600") == (5, 600)


@pytest.mark.parametrize("text", ["", "5", "5/", "/600", "0/600", "5/0", "-1/600", "5/600s", "a/b", "5/6/7"])
def test_bad_text_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match="5/600"):
        parse_budget(text)
