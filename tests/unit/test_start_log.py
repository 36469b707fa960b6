# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vLLM logs of its memory is read, and compared with a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.start_log import (
    compare,
    logged_figures,
    planned_figures,
    surprises,
)

LOGS = Path(__file__).parents[1] / "data/start_logs"
GIB = 1 << 30
HEAD = "(EngineCore pid=1) INFO 11-21 10:00:09"
CUDA = [
    "INFO 11-21 10:00:01 [api_server.py:1] vLLM API server version 0.33.0",
    f"{HEAD} [gpu_model_runner.py:1] Model loading took 14.25 GiB memory and 3.1 seconds",
    f"{HEAD} [gpu_worker.py:1] Available KV cache memory: 4.50 GiB",
    f"{HEAD} [kv_cache_utils.py:1] GPU KV cache size: 84,224 tokens",
    f"{HEAD} [kv_cache_utils.py:2] Maximum concurrency for 8,192 tokens per request: 10.28x",
    f"{HEAD} [gpu_model_runner.py:9] Graph capturing finished in 11 secs, took 0.44 GiB",
]
"""The wording of vLLM 0.33 (facts of its sources); the numbers are made up."""


def a_plan(**changes: float) -> dict[str, Any]:
    values = {"weights": 14.25 * GIB, "pool": 4.5 * GIB, "concurrency": 10.28, **changes}
    card = {
        "parts": {"weights": {"likely": values["weights"]}},
        "pool": {"likely": values["pool"]},
    }
    roomy = {"parts": {"weights": {"likely": 2 * values["weights"]}}, "pool": {"likely": 9 * values["pool"]}}
    return {"cards": [roomy, card], "concurrency": values["concurrency"], "context": 8192}


def test_every_figure_is_read() -> None:
    assert logged_figures(CUDA) == {
        "weights_bytes": 14.25 * GIB,
        "pool_bytes": 4.5 * GIB,
        "kv_tokens": 84224,
        "concurrency": 10.28,
        "graphs_bytes": 0.44 * GIB,
    }


@pytest.mark.parametrize(
    ("log", "tokens", "concurrency"), [("no_cause-1.log", 2816, 2.75), ("host_memory-1.log", 139776, 136.5)]
)
def test_a_captured_log_of_the_processor_s_build(log: str, tokens: int, concurrency: float) -> None:
    found = logged_figures((LOGS / log).read_text(encoding="utf-8").splitlines())
    assert (found["kv_tokens"], found["concurrency"]) == (tokens, concurrency)


def test_of_several_workers_the_smallest_counts() -> None:
    more = CUDA[2].replace("4.50", "4.10")
    assert logged_figures([*CUDA, more])["pool_bytes"] == 4.1 * GIB


def test_only_the_last_start_counts() -> None:
    again = [line.replace("14.25", "7.00") for line in CUDA[:2]]
    assert logged_figures([*CUDA, *again]) == {"weights_bytes": 7 * GIB}


def test_no_log_has_no_figures() -> None:
    assert logged_figures([]) == logged_figures(["nothing of that kind"]) == {}


def test_the_plan_s_figures_are_the_smallest_of_all_cards() -> None:
    assert planned_figures(a_plan()) == {
        "weights_bytes": 14.25 * GIB,
        "pool_bytes": 4.5 * GIB,
        "kv_tokens": int(10.28 * 8192),
        "concurrency": 10.28,
    }
    assert planned_figures({"cards": []}) == {}


def test_what_is_as_planned_is_no_surprise() -> None:
    assert surprises(compare(a_plan(), logged_figures(CUDA))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pool": 4.0 * GIB}, "memory left for KV: planned 4.00 GiB, the engine logged 4.50 GiB (+12.5%)"),
        ({"weights": 15.5 * GIB}, "weights: planned 15.50 GiB, the engine logged 14.25 GiB (-8.1%)"),
    ],
)
def test_more_than_five_percent_is_told(changes: dict[str, float], words: str) -> None:
    assert surprises(compare(a_plan(**changes), logged_figures(CUDA))) == [words]


def test_five_percent_itself_is_not_told() -> None:
    assert surprises(compare(a_plan(pool=4.5 * GIB / 1.0499), logged_figures(CUDA))) == []
    assert len(surprises(compare(a_plan(pool=4.5 * GIB / 1.0501), logged_figures(CUDA)))) == 1


def test_the_last_digit_of_the_log_is_no_difference() -> None:
    tiny = a_plan(weights=0.0003 * GIB)
    logged = logged_figures([CUDA[0], CUDA[1].replace("14.25", "0.00")])
    assert surprises(compare(tiny, logged)) == []
