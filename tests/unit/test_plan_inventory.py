# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cards of an inventory are told by their products, without the machine."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.plan_inventory import roles_by_product
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import PlanError

TI, ADA = "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090"
GUIDE = [{"name": "trainer", "product": "RTX 3090 Ti"}, {"name": "host", "product": "RTX 4090"}]


def test_the_guide_s_machine() -> None:
    found = roles_by_product(GUIDE, {"inference": ["host"], "training": ["trainer", "host"]})
    assert found == {"inference": [f"{ADA}#1"], "training": [f"{TI}#0", f"{ADA}#1"]}


def test_equal_cards_are_told_apart_by_their_place_in_the_inventory() -> None:
    pair = [{"name": "a", "product": "A40", "pci": "0000:0a:00.0"}, {"name": "b", "product": "A40", "pci": "0b:00.0"}]
    found = roles_by_product(pair, {"chat": ["b"], "rest": ["all except b"], "by": ["0000:0a:00.0"]})
    assert found == {"chat": ["NVIDIA A40#1"], "rest": ["NVIDIA A40#0"], "by": ["NVIDIA A40#0"]}


def test_without_roles_inference_gets_all() -> None:
    assert roles_by_product(GUIDE, {}) == {"inference": [f"{TI}#0", f"{ADA}#1"]}


def test_other_products_take_the_place_of_the_inventory_s() -> None:
    assert roles_by_product(GUIDE, {}, ["RTX 5090", "L4"]) == {
        "inference": ["NVIDIA GeForce RTX 5090#0", "NVIDIA L4#1"]
    }


def test_no_card_gives_no_role() -> None:
    assert roles_by_product([], {"inference": ["all"]}) == {}


PROBLEMS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], list[str], str]] = {
    "no product": ([{"name": "a", "pci": "0000:0a:00.0"}], {}, [], "rig_gpus[0] (a): a plan without the machine needs"),
    "unknown product": ([{"name": "a", "product": "RTX 9999"}], {}, [], "card 'RTX 9999' is not in the catalogue"),
    "several": ([], {}, ["RTX"], "stands for several"),
    "fastest": (GUIDE, {"inference": ["fastest"]}, [], "no memory bandwidth"),
    "role": (GUIDE, {"inference": ["hostt"]}, [], "Did you mean host"),
    "names of cards that are replaced": (GUIDE, {"inference": ["host"]}, ["L4"], "found 'host'"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_only_the_machine_knows_is_said(case: str) -> None:
    gpus, roles, products, words = PROBLEMS[case]
    with pytest.raises(PlanError) as caught:
        roles_by_product(gpus, roles, products)
    assert words in str(caught.value)
