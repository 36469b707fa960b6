# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of memory plans: one bar for each card, whose parts add up, readable by itself."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.instance_plan import plan_instances
from ansible_collections.gpurig.llm.plugins.module_utils.plan_page import KINDS, WIDTH, bars_of, plan_page
from ansible_collections.gpurig.llm.plugins.module_utils.vram.cards import card_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import Model
from ansible_collections.gpurig.llm.tests.unit.test_instance_plan import QWEN_7B, asked

SMALL = Model("small", {**QWEN_7B, "num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 8})
TOO_LARGE = Model("large", {**QWEN_7B, "num_hidden_layers": 60})


def plans(*requests: Any) -> list[dict[str, Any]]:
    return list(plan_instances(requests).values())


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314  our own


def test_the_parts_of_a_bar_add_up_to_the_card() -> None:
    (bar,) = bars_of(plans(asked()))
    assert bar.total_bytes == card_named("RTX 4090").total_bytes
    assert sum(part.likely for part in bar.parts) == pytest.approx(bar.total_bytes)
    kinds = [part.kind for part in bar.parts]
    assert {"weights", "kv", "activation", "graphs", "engine", "free"} <= set(kinds) <= set(KINDS)


def test_instances_on_one_card_share_its_bar() -> None:
    (bar,) = bars_of(plans(asked("chat"), asked("notes", SMALL)))
    assert {part.instance for part in bar.parts if part.kind == "weights"} == {"chat", "notes"}
    assert sum(part.likely for part in bar.parts) <= bar.total_bytes * 1.001
    assert not [part for part in bar.parts if part.kind == "others"], "the other instance is no stranger"


def test_the_drawing_has_a_piece_for_each_part_side_by_side() -> None:
    page = plan_page({"homelab": plans(asked())})
    (svg,) = drawings(page)
    pieces = list(svg.iter("rect"))
    (bar,) = bars_of(plans(asked()))
    assert len(pieces) == len([part for part in bar.parts if part.likely > 0])
    ends = [float(piece.attrib["x"]) + float(piece.attrib["width"]) for piece in pieces]
    starts = [float(piece.attrib["x"]) for piece in pieces]
    assert starts[0] == 0
    assert ends[-1] == pytest.approx(WIDTH, abs=0.5)
    assert all(begin == pytest.approx(end, abs=0.2) for begin, end in zip(starts[1:], ends, strict=False))
    assert "weights" in svg.attrib["aria-label"]


def test_what_does_not_fit_goes_beyond_the_card_s_end() -> None:
    page = plan_page({"homelab": plans(asked(model=TOO_LARGE))})
    (svg,) = drawings(page)
    (edge,) = list(svg.iter("line"))
    assert 0 < float(edge.attrib["x1"]) < WIDTH
    (bar,) = bars_of(plans(asked(model=TOO_LARGE)))
    drawn = sum(part.likely for part in bar.parts if part.kind != "missing")
    assert float(edge.attrib["x1"]) == pytest.approx(bar.total_bytes / drawn * WIDTH, abs=0.1)
    assert "missing" in svg.attrib["aria-label"]
    assert "What would help" in page


def test_every_colour_is_defined_for_light_dark_and_paper() -> None:
    page = plan_page({})
    for kind in KINDS:
        assert page.count(f"--{kind}:") == 2, kind
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_stands_alone_and_is_well_formed() -> None:
    page = plan_page({"a": plans(asked()), "b": plans(asked(model=None), asked("two", TOO_LARGE))})
    assert not re.search(r"(src|href)=|<script|@import|url\(", page)
    opened: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, _attributes: Any) -> None:
            if tag not in {"meta", "rect", "line"}:
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in {"rect", "line"}:
                assert opened.pop() == tag

    Check().feed(page)
    assert opened == []


def test_names_cannot_break_out() -> None:
    evil = '<b>"x"</b>&'
    page = plan_page({evil: plans(asked(evil, Model(evil, QWEN_7B)))})
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    drawings(page)
