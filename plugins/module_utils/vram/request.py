# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the planner is asked and what it answers, as plain data. (pure)

Sizes are bytes, contexts tokens. `to_dict` of an answer holds nothing but what JSON knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .engine_vllm import GIB, Range
from .headers import Tensor

FITS, FAILS, UNKNOWN = "fits", "does not fit", "cannot judge"


class PlanError(ValueError):
    """The request itself is wrong; the message names the field."""


@dataclass(frozen=True)
class Card:
    """One graphics card. total_bytes: as CUDA sees it, not NVML's. others_bytes: held by others for the whole time.

    free_bytes: free at this moment, None where nobody looked. capability: (8, 9); None where it is not known.
    """

    name: str
    total_bytes: float
    free_bytes: float | None = None
    others_bytes: float = 0
    capability: tuple[int, int] | None = None
    unified: bool = False
    uuid: str = ""


@dataclass(frozen=True)
class Model:
    """What is to be served. tensors: from headers, None: derived from config and quantization.

    quantization: a short name where config.json does not say it (awq, fp8, gguf_q4_k_m ...); fp8 on a 16-bit model
    means that the engine quantizes while loading.
    """

    name: str
    config: Mapping[str, Any]
    tensors: tuple[Tensor, ...] | None = None
    quantization: str | None = None
    vision_parameters: int | None = None


@dataclass(frozen=True)
class Wishes:
    """What the user wants; None leaves the choice to the plan. headroom_bytes: kept free on each card.

    explicit: take flags that are None from the engine's own defaults instead of choosing them, to judge a given start.
    least: take only the memory that the wishes need, for a card that is shared.
    """

    context: int | None = None
    concurrency: float = 1
    kv_dtype: str = "auto"
    headroom_bytes: float = 0
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    layer_partition: tuple[int, ...] = ()
    utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    context_parallel: int = 1
    cpu_offload_bytes: float = 0
    allow_unequal: bool = False
    explicit: bool = False
    least: bool = False
    gpu_layers: int | None = None
    slots: int = 1


@dataclass(frozen=True)
class Request:
    """One instance to plan. engine: vllm, llama_cpp or ollama; version None: the newest that is known."""

    model: Model
    cards: tuple[Card, ...]
    engine: str = "vllm"
    version: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    v1: bool | None = None


@dataclass(frozen=True)
class CardPlan:
    """One card's sum in bytes. parts: low/likely/high of what is taken; pool: what is left for KV."""

    card: str
    uuid: str
    total_bytes: float
    budget_bytes: float
    parts: Mapping[str, Range]
    pool: Range
    outside: Mapping[str, Range]
    weights: Mapping[str, int]
    layers: tuple[int, int]
    margin_bytes: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "card": self.card,
            "uuid": self.uuid,
            "total_bytes": round(self.total_bytes),
            "budget_bytes": round(self.budget_bytes),
            "parts": {name: part.to_dict() for name, part in self.parts.items()},
            "outside": {name: part.to_dict() for name, part in self.outside.items()},
            "pool": self.pool.to_dict(),
            "weights": dict(self.weights),
            "layers": list(self.layers),
            "margin_bytes": round(self.margin_bytes),
        }


@dataclass(frozen=True)
class Remedy:
    """A turn of a knob, what it does to the verdict, and the flags that belong to it."""

    action: str
    effect: str
    verdict: str
    flags: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"action": self.action, "effect": self.effect, "verdict": self.verdict, "flags": dict(self.flags)}


@dataclass(frozen=True)
class Plan:
    """The answer. largest_context: the longest request that fits at `low`; need_bytes: KV of the wished requests on the
    card that has least left; concurrency: requests of `context` tokens at the likely pool.
    """

    verdict: str
    reason: str
    model: str
    engine: str
    version: str
    accounting: str
    flags: Mapping[str, Any]
    cards: tuple[CardPlan, ...]
    context: int
    largest_context: int
    concurrency: float
    need_bytes: float
    kv_bytes_per_token: float
    reasons: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    incomplete: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that belong to the flags."""

    @property
    def fits(self) -> bool:
        return self.verdict == FITS

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; sizes in bytes."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "model": self.model,
            "engine": self.engine,
            "version": self.version,
            "accounting": self.accounting,
            "flags": dict(self.flags),
            "environment": dict(self.environment),
            "cards": [card.to_dict() for card in self.cards],
            "context": self.context,
            "largest_context": self.largest_context,
            "concurrency": round(self.concurrency, 2),
            "need_bytes": round(self.need_bytes),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "reasons": list(self.reasons),
            "remedies": [remedy.to_dict() for remedy in self.remedies],
            "incomplete": list(self.incomplete),
            "sum": self.sum_text(),
        }

    def sum_text(self) -> str:
        """The sum that proves the verdict, one line per card, in GiB as low / likely / high."""
        lines = []
        for card in self.cards:
            parts = ", ".join(f"{name} {span(part)}" for name, part in card.parts.items() if part.high)
            outside = ", ".join(f"{name} {span(part)}" for name, part in card.outside.items() if part.high)
            lines.append(
                f"{card.card}: {card.budget_bytes / GIB:.2f} of {card.total_bytes / GIB:.2f} GiB may be used; {parts}; "
                f"left for KV {span(card.pool)}" + (f"; outside the budget: {outside}" if outside else "")
            )
        return "\n".join([*lines, f"needed for KV {self.need_bytes / GIB:.2f}: {self.verdict} ({self.reason})"])


def span(part: Range) -> str:
    """A range in GiB as low/likely/high, or one figure."""
    if part.low == part.high:
        return f"{part.likely / GIB:.2f}"
    return f"{part.low / GIB:.2f}/{part.likely / GIB:.2f}/{part.high / GIB:.2f}"
