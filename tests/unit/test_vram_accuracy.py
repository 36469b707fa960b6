# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The planner against real start-ups: the accuracy that was reached must not get worse unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from ansible_collections.gpurig.llm.tests.benchmarks import vram_accuracy


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return vram_accuracy.accuracy(vram_accuracy.read_rows([vram_accuracy.DATA]))


@pytest.mark.parametrize(
    ("measure", "median", "p95", "covered"),
    [
        pytest.param("weights", 0.001, 0.01, 0.9, id="weights"),
        pytest.param("kv_tokens", 0.0005, 0.01, 1.0, id="KV bytes per token"),
        pytest.param("kv_need", 0.001, 0.001, 1.0, id="KV need of a request"),
        pytest.param("concurrency", 0.001, 0.01, 1.0, id="concurrency"),
        pytest.param("llama_kv", 0.0005, 0.03, 0.7, id="llama.cpp KV buffer"),
    ],
)
def test_formulas_are_near(figures: dict[str, Any], measure: str, median: float, p95: float, covered: float) -> None:
    found = figures[measure]
    assert found["median"] <= median
    assert found["p95"] <= p95
    assert found["rows"] >= covered * found["usable"]


def test_concurrency_is_right_within_one_percent(figures: dict[str, Any]) -> None:
    assert figures["concurrency"]["within_1_percent"] >= 0.95


def test_the_low_end_of_the_pool_is_safe_and_not_wasteful(figures: dict[str, Any]) -> None:
    pool = figures["pool"]
    assert pool["low_is_safe"] >= 0.95
    assert 0 <= pool["low_median_below"] <= 0.12
    assert pool["rows"] == pool["usable"]
    assert pool["left_out"]["low_is_safe"] >= 0.9


def test_verdicts_are_right_and_no_failed_start_was_promised(figures: dict[str, Any]) -> None:
    stated, everything = figures["outcome"]["stated"], figures["outcome"]["all"]
    assert stated["rows"] >= 20
    assert stated["right_of_answered"] >= 0.95
    assert stated["cannot_judge"] <= 0.1
    assert stated["false_promises"] == everything["false_promises"] == []
    assert stated["always_fits"] < stated["right_of_answered"]


def test_a_card_whose_memory_is_not_stated_is_not_guessed() -> None:
    """A row that names its memory is taken at its word; a name that is sold in several sizes says nothing."""

    def total(text: str, count: int = 1) -> tuple[list[float], bool]:
        return vram_accuracy.total_gib({"gpu": text, "gpu_count": count, "logged": {}})

    assert total("A10 (22.07 GiB)") == ([22.07], True)
    assert total("80 GB class", 2) == ([79.15, 79.15], True)
    assert total("A100") == ([], False)
    assert total("A100-40GB") == ([39.39], True)
    assert total("RTX 3090") == ([24146 / 1024], True)
    assert total("some card") == ([], False)
    assert len(total("a 16GB card + another of 32GB", 2)[0]) == 2


def test_the_program_prints_tables_and_json() -> None:
    command = [sys.executable, vram_accuracy.__file__]
    rows = vram_accuracy.DATA.read_text(encoding="utf-8").splitlines()[:12]
    few = subprocess.run([*command, "/dev/stdin", "--json"], input="\n".join(rows), capture_output=True, text=True,
                         check=True, timeout=120)  # fmt: skip
    assert json.loads(few.stdout)["weights"]["rows"] > 3
    words = vram_accuracy.in_words(vram_accuracy.accuracy([json.loads(row) for row in rows]), with_rows=True)
    assert "weights" in words
    assert "'fits' for a failed start" in words
