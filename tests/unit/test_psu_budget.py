# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a power supply and a UPS carry: the guide's machine, the factors, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.psu_budget import (
    Budget,
    Check,
    budget,
    budget_as_dict,
    groups_of,
)
from hypothesis import given
from hypothesis import strategies as st

GUIDE: dict[str, Any] = {"rating_w": 1500, "standard": "atx2", "cpu_w": 165, "rest_w": 100}
BOTH = {"3090 Ti": 450.0, "4090": 450.0}


def check(result: Budget, kind: str, supply: str = "power") -> Check:
    return next(one for one in result.checks if one.kind == kind and one.supply.startswith(supply))


# --- the guide: 3090 Ti and 4090 on 1500 W


def test_inference_alone_is_fine() -> None:
    result = budget({"inference": {"4090": 450.0}}, GUIDE)
    assert result.fits
    assert result.refusals == []
    assert check(result, "sustained").sum_w == 715
    assert check(result, "transient").sum_w == pytest.approx(985)
    assert check(result, "transient").margin_w == pytest.approx(515)


def test_both_uncapped_are_refused_with_the_sum() -> None:
    result = budget({"training": BOTH}, GUIDE)
    assert not result.fits
    assert check(result, "sustained").fits
    (words,) = result.refusals
    assert "450 x 1.6 + 450 x 1.6 + 165 processor + 100 rest = 1705 W, allowed 1500 W: 205 W too much" in words
    assert "Limits of at most 771 W together would fit (rig_power.limits)." in words
    assert "sustained" not in words


def test_both_at_350_w_are_fine() -> None:
    result = budget({"training": {"3090 Ti": 350.0, "4090": 350.0}}, GUIDE)
    assert result.fits
    assert check(result, "transient").sum_w == pytest.approx(1385)
    assert check(result, "transient").text.endswith("= 1385 W, allowed 1500 W: 115 W to spare")


def test_with_atx3_both_uncapped_pass_and_the_report_says_by_how_little() -> None:
    result = budget({"training": BOTH}, {**GUIDE, "standard": "atx3"})
    assert result.fits
    assert check(result, "sustained").text == (
        "power supply of 1500 W (atx3), training, sustained: 450 + 450 + 165 processor + 100 rest = 1165 W, "
        "allowed 1200 W: 35 W to spare"
    )
    assert check(result, "transient").allowed_w == 2700
    assert not budget({"training": BOTH}, {**GUIDE, "standard": "atx3", "rest_w": 136}).fits
    assert budget({"training": BOTH}, {**GUIDE, "standard": "atx3", "rest_w": 135}).fits


# --- the UPS


def test_a_ups_feeds_the_losses_and_what_else_hangs_on_it() -> None:
    result = budget({"training": {"a": 350.0, "b": 350.0}}, GUIDE, {"rating_w": 1500, "other_w": 60})
    ups = check(result, "sustained", "UPS")
    assert ups.sum_w == pytest.approx(965 / 0.9 + 60)
    assert "(350 + 350 + 165 processor + 100 rest) / 0.9 + 60 other = 1132 W, allowed 1200 W: 68 W to spare" in ups.text
    assert check(result, "transient", "UPS").sum_w == pytest.approx((700 * 1.1 + 265) / 0.9 + 60)
    small = budget({"training": {"a": 350.0, "b": 350.0}}, GUIDE, {"rating_w": 1000})
    assert not small.fits
    assert "UPS of 1000 W, training, sustained" in small.refusals[0]
    assert "at most 455 W together" in small.refusals[0]


# --- the factors are variables


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"sustained_share": 1}, "sustained", ("allowed_w", 1500)),
        ({"transient_factor": 2}, "transient", ("sum_w", 2065)),
        ({"transient_share": 1.2}, "transient", ("allowed_w", 1800)),
        ({"standard": "atx3"}, "transient", ("allowed_w", 2700)),
        ({"rest_w": None}, "sustained", ("sum_w", 1165)),
        ({"rest_w": 0}, "sustained", ("sum_w", 1065)),
        ({"cpu_w": 0}, "sustained", ("sum_w", 1000)),
    ],
)
def test_factors(changes: dict[str, Any], kind: str, expected: tuple[str, float]) -> None:
    found = check(budget({"both": BOTH}, {**GUIDE, **changes}), kind)
    assert getattr(found, expected[0]) == pytest.approx(expected[1])


def test_the_processor_is_what_the_kernel_tells_when_nothing_is_declared() -> None:
    psu = {key: value for key, value in GUIDE.items() if key != "cpu_w"}
    result = budget({"both": BOTH}, psu, cpu_w=200.0)
    assert check(result, "sustained").sum_w == 1200
    assert check(result, "sustained").margin_w == 0
    assert result.notes == ("psu.cpu_w is not written; the kernel limits the processor to 200 W, which counts.",)
    assert budget({"both": BOTH}, GUIDE, cpu_w=200.0).notes == ()


def test_nothing_else_may_hang_on_a_ups() -> None:
    assert len(budget({"both": BOTH}, GUIDE, {"rating_w": 3000, "other_w": 0}).checks) == 4


def test_nothing_declared_is_nothing_checked() -> None:
    assert budget({"both": BOTH}, {}) == Budget()
    assert Budget().fits


def test_a_rest_that_is_too_much_alone() -> None:
    result = budget({"one": {"card": 1.0}}, {**GUIDE, "rest_w": 2000})
    assert "No limit would fit; the rest alone is too much" in result.refusals[0]


# --- bad input, all at once


@pytest.mark.parametrize(
    ("psu", "ups", "words"),
    [
        ({**GUIDE, "rating_w": "1500"}, {}, ["psu.rating_w: found '1500', needed a number above 0, without quotes."]),
        ({**GUIDE, "rating_w": 0}, {}, ["psu.rating_w: found 0, needed a number above 0"]),
        ({**GUIDE, "rating_w": True}, {}, ["psu.rating_w: found True"]),
        ({**GUIDE, "rating_w": math.nan}, {}, ["psu.rating_w: found nan"]),
        ({**GUIDE, "rating_w": None}, {}, ["psu.rating_w: missing"]),
        ({**GUIDE, "cpu_w": -1}, {}, ["psu.cpu_w: found -1, needed a number of at least 0"]),
        ({**GUIDE, "standard": "atx4"}, {}, ["psu.standard: found 'atx4', needed one of atx2, atx3."]),
        ({**GUIDE, "standard": ["atx2"]}, {}, ["psu.standard: found ['atx2'], needed one of atx2, atx3."]),
        ({**GUIDE, "standard": None}, {}, ["psu.standard: found None, needed one of atx2, atx3."]),
        ({"rating_w": 1500, "standard": "atx2"}, {}, ["psu.cpu_w: not written, and this host's kernel"]),
        ({**GUIDE, "cpu_w": None}, {}, ["psu.cpu_w: not written, and this host's kernel"]),
        (
            {**GUIDE, "watts": 3, "rest_w": "x"},
            {},
            ["psu.watts: no such key. Known here: rating_w,", "psu.rest_w: fou"],
        ),
        (GUIDE, {"rating_w": 900, "efficiency": 90}, ["ups.efficiency: found 90, needed a share of at most 1"]),
        (GUIDE, {"other_w": 9}, ["ups.rating_w: missing, needed the watts (not VA)"]),
        ({}, {"rating_w": 900}, ["ups: needs psu beside it"]),
    ],
)
def test_bad_input(psu: dict[str, Any], ups: dict[str, Any], words: list[str]) -> None:
    result = budget({"both": BOTH}, psu, ups)
    assert not result.fits
    assert result.checks == ()
    assert len(result.problems) == len(words)
    for problem, begin in zip(result.problems, words, strict=True):
        assert problem.startswith(begin)


def test_a_card_without_a_limit_cannot_be_summed_up() -> None:
    result = budget({"all cards": {"laptop card": None}}, GUIDE)
    assert result.problems[0].startswith("psu: laptop card tells no power limit, so all cards cannot be summed up.")


# --- who may be busy together

ROLES = {"inference": ["B"], "training": ["A", "B"], "gone": ["X"]}
CARDS = {"A": "A", "B": "B", "C": "C"}


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        (None, {"all cards": ["A", "B", "C"]}),
        ([["inference"]], {"inference": ["B"]}),
        ([["inference", "training"], ["inference"]], {"inference + training": ["B", "A"], "inference": ["B"]}),
        ([], {}),
    ],
)
def test_groups(together: Any, expected: dict[str, list[str]]) -> None:
    assert groups_of(together, ROLES, CARDS) == (expected, [], [])


def test_a_card_is_the_same_in_any_case() -> None:
    assert groups_of([["a"]], {"a": ["gpu-0A"]}, {"GPU-0a": "GPU-0a"}) == ({"a": ["GPU-0a"]}, [], [])


def test_a_group_without_cards_here_is_told_and_not_summed_up() -> None:
    groups, problems, notes = groups_of([["gone"], ["gone", "inference"]], ROLES, CARDS)
    assert (groups, problems) == ({"gone + inference": ["B"]}, [])
    assert notes == [
        "psu.together[0]: no card of gone answers here, so there is no sum for it.",
        "psu.together[1]: X does not answer here and is in no sum.",
    ]


def test_groups_that_are_wrong() -> None:
    groups, problems, notes = groups_of(["training", ["trainig"], [], [{"a": 1}]], ROLES, CARDS)
    assert (groups, notes) == ({}, [])
    assert problems == [
        "psu.together[0]: found 'training', needed a list of roles.",
        "psu.together[1]: no such role: trainig. Roles: gone, inference, training.",
        "psu.together[2]: names no role. List at least one, or remove the group.",
        "psu.together[3]: no such role: {'a': 1}. Roles: gone, inference, training.",
    ]


@pytest.mark.parametrize("together", ["training", 3, {"a": 1}])
def test_together_of_a_wrong_type(together: Any) -> None:
    assert groups_of(together, ROLES, CARDS)[1] == [
        f"psu.together: found {together!r}, needed a list of lists of roles, such as [[inference]]."
    ]


# --- laws


@given(
    limits=st.lists(st.floats(50, 700), min_size=1, max_size=8),
    rating_w=st.floats(300, 4000),
    standard=st.sampled_from(["atx2", "atx3"]),
    ups_w=st.floats(300, 4000),
)
def test_what_would_fit_fits_and_a_little_more_does_not(
    limits: list[float], rating_w: float, standard: str, ups_w: float
) -> None:
    psu = {"rating_w": rating_w, "standard": standard, "cpu_w": 100}
    result = budget({"all": {str(n): limit for n, limit in enumerate(limits)}}, psu, {"rating_w": ups_w})
    assert len(result.checks) == 4
    most_w = min(one.max_cards_w for one in result.checks)
    assert result.fits == (not result.refusals)
    assert result.fits == (sum(limits) <= most_w + 1e-6)
    if most_w > 1:
        assert budget({"all": {"one": most_w}}, psu, {"rating_w": ups_w}).fits
        assert not budget({"all": {"one": most_w + 0.01}}, psu, {"rating_w": ups_w}).fits


def test_as_data() -> None:
    told: Any = budget_as_dict(budget({"both": BOTH}, GUIDE))
    assert told["fits"] is False
    assert [(one["kind"], one["fits"], one["margin_w"]) for one in told["checks"]] == [
        ("sustained", True, 35.0),
        ("transient", False, -205.0),
    ]
    assert len(told["problems"]) == 1
