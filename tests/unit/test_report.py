# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table at the end of a run."""

from __future__ import annotations

from ansible_collections.gpurig.llm.plugins.module_utils.report import report_text

ROW = {
    "instance": "chat",
    "engine": "llama_cpp",
    "model": "smollm2",
    "url": "http://127.0.0.1:8000/v1",
    "ready_s": 0.64,
    "tokens_per_s": 41.26,
    "first_lines": ["The capital of France is Paris.", "x" * 100],
}


def test_every_column_stands_below_its_heading() -> None:
    heading, rule, first, second = report_text([ROW]).splitlines()
    for name, text in (("engine", "llama_cpp"), ("ready in", "0.6 s"), ("tokens/s", "41.3"), ("first line", "The cap")):
        assert first.index(text) == heading.index(name)
    assert second.strip().endswith("…")
    assert set(rule) == {"-", " "}


def test_an_unknown_start_time_is_named_as_such() -> None:
    assert "unknown" in report_text([{**ROW, "ready_s": None}])
