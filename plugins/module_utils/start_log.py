# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What vLLM logs of its memory at a start, beside what was planned. (pure)

Lines as of vLLM 0.6 to 0.33 (v1/worker/gpu_worker.py, v1/core/kv_cache_utils.py, model_executor/model_loader).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .start_causes import starts

WARN_SHARE = 0.05
"""A figure that differs by more than this share of the planned one is told."""

_GIB = 1 << 30
_NUMBER = r"([\d,]+(?:\.\d+)?)"
_LINES = (
    ("weights_bytes", re.compile(rf"Model loading took {_NUMBER} GiB"), _GIB),
    ("pool_bytes", re.compile(rf"Available KV cache memory: {_NUMBER} GiB"), _GIB),
    ("kv_tokens", re.compile(rf"KV cache size: {_NUMBER} tokens"), 1),
    ("concurrency", re.compile(rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x"), 1),
    ("graphs_bytes", re.compile(rf"Graph capturing finished in .*?, took {_NUMBER} GiB"), _GIB),
)
_LAST_DIGIT = {"weights_bytes": 0.005 * _GIB, "pool_bytes": 0.005 * _GIB, "kv_tokens": 0.5, "concurrency": 0.005}
"""Half of the last digit that the log prints: no difference below it is one."""
LABELS = {
    "weights_bytes": "weights",
    "pool_bytes": "memory left for KV",
    "kv_tokens": "KV tokens",
    "concurrency": "requests of full length at once",
    "graphs_bytes": "CUDA graphs",
}


@dataclass(frozen=True)
class Difference:
    """One figure: planned and logged in the unit that its name ends with; share: (logged - planned) / planned."""

    figure: str
    planned: float
    logged: float
    share: float

    def in_words(self) -> str:
        scale, unit = (_GIB, " GiB") if self.figure.endswith("_bytes") else (1, "")
        digits = 0 if self.figure.endswith("_tokens") else 2
        return (
            f"{LABELS[self.figure]}: planned {self.planned / scale:,.{digits}f}{unit}, the engine logged "
            f"{self.logged / scale:,.{digits}f}{unit} ({self.share:+.1%})"
        )


def logged_figures(lines: Sequence[str]) -> dict[str, float]:
    """The figures of the last start in `lines` (oldest first); with several workers the smallest of each.

    Sizes in bytes. Missing figures are left out.
    """
    parts = starts(lines)
    found: dict[str, float] = {}
    for line in parts[-1] if parts else []:
        for name, pattern, scale in _LINES:
            if hit := pattern.search(line):
                value = float(hit[1].replace(",", "")) * scale
                found[name] = min(value, found.get(name, value))
    return found


def planned_figures(plan: Mapping[str, Any]) -> dict[str, float]:
    """The same figures of a plan (`Plan.to_dict`): the likely ones, with several cards the smallest of each."""
    cards = plan.get("cards") or []
    if not cards:
        return {}
    found: dict[str, float] = {
        "weights_bytes": min(float(card["parts"].get("weights", {"likely": 0})["likely"]) for card in cards),
        "pool_bytes": min(float(card["pool"]["likely"]) for card in cards),
        "kv_tokens": float(int(plan["concurrency"] * plan["context"])),  # so printed since 0.21
        "concurrency": float(plan["concurrency"]),
    }
    return {name: value for name, value in found.items() if value > 0}


def compare(plan: Mapping[str, Any], logged: Mapping[str, float]) -> list[Difference]:
    """Planned beside logged, where both are known."""
    planned = planned_figures(plan)
    return [
        Difference(name, planned[name], logged[name], (logged[name] - planned[name]) / planned[name])
        for name in LABELS
        if name in planned and name in logged
    ]


def surprises(differences: Sequence[Difference]) -> list[str]:
    """In words, what differs by more than WARN_SHARE and by more than the log's last digit."""
    return [
        each.in_words()
        for each in differences
        if abs(each.share) > WARN_SHARE and abs(each.logged - each.planned) > _LAST_DIGIT.get(each.figure, 0)
    ]
