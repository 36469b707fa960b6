# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One entry to the memory planner: plan(request) says whether a start fits, with which flags, and why. (pure)

Three verdicts: 'fits' only where the need is covered at the low end of every range; 'does not fit' where it is not
even at the high end, or something forbids the start; 'cannot judge' between them, or where a fact is missing. More
context, sequences or headroom never turn a refusal into a fit, because the ranges only move one way with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any

from ..vllm_config import longest_context
from .architecture import Architecture, ConfigError, read_config
from .engine_vllm import (
    CONTEXT,
    GIB,
    ZERO,
    Accounting,
    Pool,
    Range,
    Shape,
    Version,
    accounting_of,
    load_rules,
    parse_version,
    pool_of,
    shape_of,
    v0_chunk,
)
from .headers import HeaderError, Tensor
from .kv import KvError, KvLayout, concurrent_batches, layout
from .plan_llama import plan_llama
from .request import FAILS, FITS, UNKNOWN, Card, CardPlan, Plan, PlanError, Remedy, Request, Wishes, span
from .tensors import Quantization, derive, quantization_named, read_quantization
from .weights import Split, Weights, partition_layers, weights_per_rank

STEP_TOKENS = 1024
SMALLEST_CONTEXT = 1024
ENOUGH_CONTEXT = 8192
"""A context that is left open goes before sequences up to here: a long prompt is refused, one in a queue only waits."""
HIGHEST_UTILIZATION = 0.95
SEQUENCES = (256, 128, 64, 32, 16, 8, 4, 2, 1)
UNEQUAL = 0.03
"""Cards whose totals differ by more than this share are unequal."""

CAPABILITY = {
    "none": (7, 5), "awq": (7, 5), "gptq": (7, 5), "wna16": (7, 5), "int8": (7, 5), "fp8": (7, 5), "fp8_block": (7, 5),
    "nvfp4": (7, 5), "mxfp4": (8, 0), "int8_bnb": (7, 5), "bnb4": (7, 5), "gguf": (7, 5),
}  # fmt: skip
"""Least compute capability per format in vLLM 0.33.0 (vllm/platforms/cuda.py, quantization/*): fp8 and nvfp4 run below
8.9 and 10.0 as weight-only formats. bfloat16 itself needs 8.0."""
FP8_KV = (8, 9)
"""Least capability at which 8-bit KV is offered (vLLM's documentation, quantized KV cache)."""
NO_HALF = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Models that vLLM refuses in float16 (vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS)."""
OUT_OF_CORE = {"gguf": "vllm-gguf-plugin", "bnb4": "vllm-bnb-plugin", "int8_bnb": "vllm-bnb-plugin"}
"""Formats that left vLLM's core in 0.33; the plugin that reads them."""


@dataclass(frozen=True)
class _Facts:
    """What holds for every attempt of one request."""

    request: Request
    arch: Architecture
    quantization: Quantization
    tensors: tuple[Tensor, ...]
    online_fp8: bool
    version: Version
    accounting: Accounting
    weighed: dict[Split, list[Weights]] = field(default_factory=dict, compare=False)
    """Weights by split, so that each is summed once whatever else is tried."""


@dataclass(frozen=True)
class _Attempt:
    """One choice of flags with its judgement."""

    verdict: str
    reason: str
    wishes: Wishes
    utilization: float
    shape: Shape
    tp: int
    pp: int
    partition: tuple[int, ...]
    cards: tuple[CardPlan, ...]
    layouts: tuple[KvLayout, ...]
    context: int
    largest: int
    need_bytes: float


def plan(request: Request, with_remedies: bool = True, always_remedies: bool = False) -> Plan:
    """Judge and choose: the one entry of this package.

    Chooses parallelism, memory share, sequences and context where the wishes leave them open, checks them where they
    are given. always_remedies: also those of a plan that fits, for a start that fails all the same. Raises PlanError
    for a wrong request, ConfigError and HeaderError for a model that cannot be read.
    """
    check(request)
    if request.engine in {"llama_cpp", "ollama"}:
        return plan_llama(request)
    facts = _facts(request)
    refusal = _refusal(facts)
    attempt = _best(facts)
    if refusal:
        attempt = replace(attempt, verdict=FAILS, reason=refusal)
    wanted = always_remedies or (with_remedies and attempt.verdict != FITS)
    remedies = tuple(_remedies(facts, attempt, refusal)) if wanted else ()
    return _as_plan(facts, attempt, remedies)


def check(request: Request) -> None:
    """Raise PlanError naming a wish that no engine can be asked for."""
    wishes = request.wishes
    if request.engine not in {"vllm", "llama_cpp", "ollama"}:
        raise PlanError(f"engine {request.engine!r} is not known; known are vllm, llama_cpp, ollama")
    if not request.cards:
        raise PlanError("cards is empty: a plan needs at least one card")
    for card in request.cards:
        if not 0 < card.total_bytes < 1 << 50:
            raise PlanError(f"cards: {card.name} has a total of {card.total_bytes} bytes")
    if wishes.utilization is not None and not 0 < wishes.utilization <= 1:
        raise PlanError(f"utilization is {wishes.utilization}; needed is a share above 0 and up to 1")
    for name in ("context", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel", "pipeline_parallel"):
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise PlanError(f"{name} is {value}; needed is a whole number above 0")
    if wishes.concurrency <= 0 or wishes.headroom_bytes < 0 or wishes.context_parallel < 1 or wishes.slots < 1:
        raise PlanError("concurrency, slots and context_parallel must be above 0, headroom_bytes not below 0")


def _facts(request: Request) -> _Facts:
    model = request.model
    arch = read_config(model.config, model.vision_parameters)
    arch = replace(
        arch,
        dtype_bytes=min(arch.dtype_bytes, 2),  # 32 bit is loaded as 16 (vllm/config/model.py)
        max_position=longest_context(model.config) or arch.max_position,
    )
    stored = read_quantization(model.config)
    named = quantization_named(model.quantization) if model.quantization else Quantization()
    online = stored.scheme == "none" and named.scheme.startswith("fp8") and model.tensors is not None
    chosen = stored if stored.scheme != "none" else (Quantization() if online else named)
    if model.tensors is not None and arch.vision is None and arch.incomplete:
        arch = replace(arch, incomplete=())  # the headers tell what config.json does not
    tensors = model.tensors if model.tensors is not None else tuple(derive(arch, chosen))
    if not tensors:
        raise HeaderError(f"{model.name}: the headers name no tensor")
    version = parse_version(request.version)
    return _Facts(request, arch, chosen, tensors, online, version, accounting_of(version, request.v1))


def _refusal(facts: _Facts) -> str:
    """What forbids the start whatever the memory: the card's generation, the format."""
    scheme = facts.quantization.scheme
    needed = CAPABILITY.get(scheme, (7, 5))
    if facts.version < (0, 10, 0):
        needed = min(needed, (7, 0))
    for card in facts.request.cards:
        if card.capability is not None and card.capability < needed:
            have, need = (".".join(map(str, pair)) for pair in (card.capability, needed))
            what = f"the format {scheme}" if scheme != "none" else "vLLM"
            return f"{what} needs compute capability {need}, {card.name} has {have}; llama.cpp runs on it"
    if _needs_half(facts) and facts.arch.model_type in NO_HALF:
        return f"{facts.arch.model_type} loses its numbers in float16, and cards before Ampere have no bfloat16"
    if scheme in OUT_OF_CORE and facts.version >= (0, 33, 0):
        return f"vLLM 0.33 reads {scheme} only with the plugin {OUT_OF_CORE[scheme]}; llama.cpp reads GGUF itself"
    return ""


# --- choosing ----------------------------------------------------------------------------------------------------


def _unequal(cards: Sequence[Card]) -> bool:
    totals = [card.total_bytes for card in cards]
    return max(totals) - min(totals) > UNEQUAL * max(totals)


def _parallel(facts: _Facts) -> Iterator[tuple[Split, tuple[Card, ...]]]:
    """Ways to use the cards, the simplest first, each with its cards in rank order."""
    cards, wishes = facts.request.cards, facts.request.wishes
    if wishes.tensor_parallel or wishes.pipeline_parallel or wishes.explicit:
        tp, pp = wishes.tensor_parallel or 1, wishes.pipeline_parallel or 1
        yield Split(tp, pp, wishes.layer_partition if pp > 1 else ()), cards[: tp * pp]
        return
    yield Split(), cards[:1]  # an engine of one rank takes the first card it is given
    heads = max((layer.attention.q_heads for layer in facts.arch.layers), default=0)
    layers = len(facts.arch.layers)
    for count in range(2, len(cards) + 1):
        chosen = cards[:count]
        if (not _unequal(chosen) or wishes.allow_unequal) and heads and heads % count == 0:
            yield Split(count), chosen
        if count <= layers:
            yield Split(1, count), chosen
            if _unequal(chosen):
                yield Split(1, count, _by_memory(layers, chosen)), chosen


def _by_memory(layers: int, cards: Sequence[Card]) -> tuple[int, ...]:
    """Layers per pipeline rank in proportion to the cards' memory, at least one each (VLLM_PP_LAYER_PARTITION)."""
    room = [max(card.total_bytes - card.others_bytes, 1) for card in cards]
    shares = [max(floor(layers * size / sum(room)), 1) for size in room]
    shares[0] += layers - sum(shares)
    return tuple(shares)


def _best(facts: _Facts) -> _Attempt:
    """The first attempt that fits, else the one that comes nearest: by its verdict, then by its context."""
    nearest: _Attempt | None = None
    enough = min(facts.arch.max_position or ENOUGH_CONTEXT, ENOUGH_CONTEXT)
    order = {FITS: 0, UNKNOWN: 1, FAILS: 2}
    for split, cards in _parallel(facts):
        for wishes in _sequences(facts):
            attempt = _attempt(facts, wishes, split, cards)
            if attempt.verdict == FITS and (wishes.context or attempt.context >= enough):
                return attempt
            here = (order[attempt.verdict], -attempt.largest)
            if nearest is None or here < (order[nearest.verdict], -nearest.largest):
                nearest = attempt
    if nearest is None:
        raise ValueError("no way to place the model was tried")
    return nearest


def _sequences(facts: _Facts) -> Iterator[Wishes]:
    """The wishes with each choice of max_num_seqs that is left open: the default first, then fewer."""
    wishes = facts.request.wishes
    if wishes.max_num_seqs is not None or wishes.explicit:
        yield wishes
        return
    most = wishes.max_num_batched_tokens or SEQUENCES[0]  # vLLM refuses more sequences than tokens in a batch
    for count in SEQUENCES:
        if count <= most and (count >= wishes.concurrency or count == SEQUENCES[0]):
            yield replace(wishes, max_num_seqs=count)


def _attempt(facts: _Facts, wishes: Wishes, split: Split, cards: tuple[Card, ...]) -> _Attempt:
    """Judge one set of flags."""
    arch, accounting = facts.arch, facts.accounting
    problem = _split_problem(arch, split, cards, wishes)
    if problem:
        split = Split()  # what one card would need still shows in the sum
        cards = (cards or facts.request.cards)[:1]
    tp, pp = split.tp, split.pp
    context = wishes.context or arch.max_position or 32768
    largest_total = min(card.total_bytes for card in cards)
    shape = shape_of(
        accounting, facts.version, largest_total, context, wishes.max_num_seqs, wishes.max_num_batched_tokens,
        bool(wishes.enforce_eager), any("A100" in card.name for card in cards),  # as vLLM itself asks
    )  # fmt: skip
    if not accounting.v1 and not wishes.explicit and not shape.chunked and facts.version >= (0, 5, 0):
        # Chunks keep V0's profile from growing with the context, and the plan from depending on its length.
        shape = replace(shape, chunked=True, batched_tokens=wishes.max_num_batched_tokens or v0_chunk(facts.version))
    ranks = _weights(facts, split)
    ranges = partition_layers(len(arch.layers), split)
    layouts = tuple(
        layout(
            arch,
            wishes.kv_dtype,
            tp,
            wishes.context_parallel,
            ranges[rank],
            accounting.grouped_windows,
            accounting.v1,
            batches=concurrent_batches(facts.version),
        )
        for rank in range(pp)
    )
    utilization = wishes.utilization or accounting.default_utilization
    if wishes.utilization is None and not wishes.explicit:
        utilization = _utilization(facts, wishes, shape, cards, ranks, layouts, tp, pp)
    pools = [
        _card_pool(facts, wishes, shape, card, ranks[rank // tp], layouts[rank // tp], utilization, tp, pp)
        for rank, card in enumerate(cards)
    ]
    card_plans = tuple(
        _card_plan(card, pool, ranks[rank // tp]) for rank, (card, pool) in enumerate(zip(cards, pools, strict=True))
    )
    largest = _largest(pools, layouts, tp, shape.batched_tokens, wishes.concurrency, arch.max_position or 1 << 20)
    if wishes.context is None and not wishes.explicit:
        context = largest or SMALLEST_CONTEXT
    attempt = _Attempt(
        UNKNOWN, "", wishes, utilization, shape, tp, pp, split.partition, card_plans, layouts, context, largest,
        max(rank.request_bytes(context, shape.batched_tokens) for rank in layouts) * wishes.concurrency,
    )  # fmt: skip
    verdict, reason = (FAILS, problem) if problem else _judge(facts, attempt, cards, pools)
    return replace(attempt, verdict=verdict, reason=reason)


def _largest(
    pools: Sequence[Pool], layouts: Sequence[KvLayout], tp: int, batched_tokens: int, concurrency: float, limit: int
) -> int:
    """Longest context that fits at the low end on every card: the model's own, else whole 1024s, else whole 16s."""
    longest = limit
    for rank, pool in enumerate(pools):
        kv = layouts[rank // tp]
        blocks = int(kv.blocks(pool.pool.low) / concurrency)
        if kv.blocks_of_request(limit, batched_tokens) > blocks:
            longest = min(longest, kv.max_tokens(blocks * kv.block_bytes, batched_tokens, limit))
    if longest < limit and longest >= STEP_TOKENS:
        return longest // STEP_TOKENS * STEP_TOKENS
    return longest


def _capacity(attempt: _Attempt, pools: Sequence[Pool], end: str) -> float:
    """Requests of the attempt's context that the tightest card holds at one end of its range."""
    return min(
        kv.blocks(getattr(pool.pool, end)) / max(kv.blocks_of_request(attempt.context, attempt.shape.batched_tokens), 1)
        for pool, kv in ((pool, attempt.layouts[rank // attempt.tp]) for rank, pool in enumerate(pools))
    )


def _weights(facts: _Facts, split: Split) -> list[Weights]:
    if split not in facts.weighed:
        rules = load_rules(facts.version, facts.accounting.v1, facts.arch, facts.online_fp8)
        facts.weighed[split] = weights_per_rank(facts.tensors, facts.arch, facts.quantization, split, rules)
    return facts.weighed[split]


def _split_problem(arch: Architecture, split: Split, cards: Sequence[Card], wishes: Wishes) -> str:
    if len(cards) < split.tp * split.pp:
        return f"{split.tp} x {split.pp} cards are asked for, {len(cards)} are given"
    heads = {layer.attention.q_heads for layer in arch.layers if layer.attention.q_heads}
    if any(count % split.tp for count in heads):
        return f"{max(heads)} attention heads cannot be divided by tensor parallel {split.tp}"
    if split.pp > len(arch.layers):
        return f"{len(arch.layers)} layers cannot be dealt to {split.pp} pipeline ranks"
    if split.tp > 1 and _unequal(cards) and not wishes.allow_unequal:
        sizes = ", ".join(f"{card.name} {card.total_bytes / GIB:.1f} GiB" for card in cards)
        return (
            f"tensor parallel over unequal cards ({sizes}) wastes the larger one: use pipeline parallel or one card "
            "each, or ask for it with tensor-parallel-size"
        )
    return ""


def _card_pool(
    facts: _Facts, wishes: Wishes, shape: Shape, card: Card, weights: Weights, kv: KvLayout,
    utilization: float, tp: int, pp: int,
) -> Pool:  # fmt: skip
    states = 0
    if kv.state_bytes and facts.version < (0, 11, 0):
        states = kv.state_bytes * shape.max_num_seqs
    return pool_of(
        facts.accounting, facts.version, facts.arch, shape, card.total_bytes, utilization,
        max(weights.total_bytes - wishes.cpu_offload_bytes, 0), card.others_bytes, tp, pp, states,
        facts.quantization.scheme in {"awq", "gptq", "wna16"} and facts.quantization.bits == 4,
    )  # fmt: skip


def _card_plan(card: Card, pool: Pool, weights: Weights) -> CardPlan:
    exact = Range(pool.weights_bytes, pool.weights_bytes, pool.weights_bytes)
    return CardPlan(
        card.name, card.uuid, card.total_bytes, pool.budget_bytes, {"weights": exact, **pool.inside}, pool.pool,
        pool.outside, weights.parts, weights.layers, pool.margin_bytes,
    )  # fmt: skip


def _utilization(
    facts: _Facts, wishes: Wishes, shape: Shape, cards: Sequence[Card], ranks: Sequence[Weights],
    layouts: Sequence[KvLayout], tp: int, pp: int,
) -> float:  # fmt: skip
    """The memory share to ask for: what leaves room for everything outside the budget, at most the highest sane one.

    With `least` no more than the wishes need. One fraction serves all cards, so the tightest decides.
    """
    shares = []
    for rank, card in enumerate(cards):
        pool = _card_pool(facts, wishes, shape, card, ranks[rank // tp], layouts[rank // tp], 0.5, tp, pp)
        outside = sum(pool.outside.values(), ZERO).high + (0 if "others" in pool.outside else card.others_bytes)
        room = card.total_bytes - outside - wishes.headroom_bytes
        if card.free_bytes is not None and facts.accounting.start_gate:
            room = min(room, card.free_bytes - CONTEXT[2] * GIB - wishes.headroom_bytes)
        share = room / card.total_bytes
        if wishes.least:
            context = wishes.context or SMALLEST_CONTEXT
            need = layouts[rank // tp].request_bytes(context, shape.batched_tokens) * wishes.concurrency
            missing = need + layouts[rank // tp].block_bytes - pool.pool.low
            share = min(share, (pool.budget_bytes + missing) / card.total_bytes + 0.01)
        shares.append(share)
    return max(floor(min(*shares, HIGHEST_UTILIZATION) * 100) / 100, 0.01)


# --- judging -----------------------------------------------------------------------------------------------------


def _judge(facts: _Facts, attempt: _Attempt, cards: Sequence[Card], pools: Sequence[Pool]) -> tuple[str, str]:
    wishes, arch = attempt.wishes, facts.arch
    if arch.max_position and attempt.context > arch.max_position and not wishes.explicit:
        return FAILS, f"context {attempt.context} is above the model's maximum of {arch.max_position}"
    wanted = f"{attempt.need_bytes / GIB:.2f} GiB of KV for {wishes.concurrency:g} x {attempt.context} tokens"
    low, likely, high = (_capacity(attempt, pools, end) for end in ("low", "likely", "high"))
    tightest = min(pools, key=lambda pool: pool.pool.low)
    left = span(tightest.pool)
    if any(card.unified for card in cards):
        return UNKNOWN, "unified memory: the system's page cache counts as used, so that no sum holds"
    if high < wishes.concurrency:
        if tightest.pool.high <= 0:
            return FAILS, f"the weights and the start itself leave no memory for KV ({left} GiB)"
        return FAILS, f"{wanted} needed, {left} GiB left (low/likely/high)"
    gate = _gate(facts, attempt, cards, pools)
    if gate[0] == FAILS:
        return gate
    if low < wishes.concurrency:
        which = "likely enough" if likely >= wishes.concurrency else "likely too little"
        return UNKNOWN, f"{wanted} needed, {left} GiB left (low/likely/high): {which}, but boots differ by that much"
    if gate[0] == UNKNOWN:
        return gate
    if facts.accounting.unpredictable:
        return UNKNOWN, f"{facts.accounting.label}: {facts.accounting.unpredictable}"
    return FITS, f"{wanted} needed, at least {tightest.pool.low / GIB:.2f} GiB left"


def _gate(facts: _Facts, attempt: _Attempt, cards: Sequence[Card], pools: Sequence[Pool]) -> tuple[str, str]:
    """What happens beside the pool: the check of free memory at the start, and allocations after the pool is taken."""
    worst = (FITS, "")
    for card, pool in zip(cards, pools, strict=True):
        budget = pool.budget_bytes
        if facts.accounting.start_gate and card.free_bytes is not None and card.free_bytes < budget:
            share = floor(card.free_bytes / card.total_bytes * 100) / 100
            return FAILS, (
                f"{card.name} has {card.free_bytes / GIB:.2f} GiB free, the start wants {budget / GIB:.2f} "
                f"({attempt.utilization:g} of its total): free the card or ask for at most {share:g}"
            )
        outside = sum(pool.outside.values(), ZERO)
        held = 0 if "others" in pool.outside else card.others_bytes
        left = card.total_bytes - budget - held - attempt.wishes.headroom_bytes
        names = " and ".join(name for name, part in pool.outside.items() if part.high)
        if left < outside.low:
            return FAILS, (
                f"beside the budget of {budget / GIB:.2f} GiB {card.name} needs {span(outside)} GiB for {names}, "
                f"{max(left, 0) / GIB:.2f} are left: out of memory after the pool was granted; lower the utilization"
            )
        if left < _surely(pool.outside):
            worst = (
                UNKNOWN,
                f"beside the budget {card.name} needs {span(outside)} GiB for {names}, {left / GIB:.2f} are left",
            )
    return worst


def _surely(outside: Mapping[str, Range]) -> float:
    """Bytes outside the budget that a start is sure to find enough: the high end for graphs, which vary most."""
    return sum(part.high if name in {"graphs", "others"} else part.likely for name, part in outside.items())


# --- telling -----------------------------------------------------------------------------------------------------


def _flags(facts: _Facts, attempt: _Attempt) -> dict[str, Any]:
    wishes = attempt.wishes
    flags: dict[str, Any] = {
        "max-model-len": attempt.context,
        "gpu-memory-utilization": attempt.utilization,
        "max-num-seqs": attempt.shape.max_num_seqs,
        "max-num-batched-tokens": attempt.shape.batched_tokens,
    }
    if attempt.tp > 1:
        flags["tensor-parallel-size"] = attempt.tp
    if attempt.pp > 1:
        flags["pipeline-parallel-size"] = attempt.pp
    if wishes.kv_dtype != "auto":
        flags["kv-cache-dtype"] = wishes.kv_dtype
    if attempt.shape.eager:
        flags["enforce-eager"] = True
    if wishes.cpu_offload_bytes:
        flags["cpu-offload-gb"] = round(wishes.cpu_offload_bytes / GIB, 1)
    if not facts.accounting.v1 and attempt.shape.chunked:
        flags["enable-chunked-prefill"] = True
    if facts.online_fp8:
        flags["quantization"] = "fp8"
    if _needs_half(facts):
        flags["dtype"] = "half"
    return flags


def _needs_half(facts: _Facts) -> bool:
    """Cards before Ampere have no bfloat16 (vllm/platforms/cuda.py)."""
    return any(card.capability is not None and card.capability < (8, 0) for card in facts.request.cards)


def _why(facts: _Facts, attempt: _Attempt) -> list[str]:
    wishes, given = attempt.wishes, facts.request.wishes
    version = ".".join(map(str, facts.version))
    reasons = [f"memory is counted as by {facts.accounting.label} (vLLM {version})"]
    if given.utilization is None and not wishes.explicit:
        reasons.append(
            f"gpu-memory-utilization {attempt.utilization:g}: leaves room for what vLLM takes beside its budget"
            + (", and no more than the wishes need" if wishes.least else "")
        )
    if given.max_num_seqs is None and not wishes.explicit:
        reasons.append(f"max-num-seqs {attempt.shape.max_num_seqs}: the most that starts with this context")
    if given.context is None and not wishes.explicit:
        reasons.append(f"max-model-len {attempt.context}: the longest that fits at the low end, in steps of 1024")
    first, *others = facts.request.cards
    larger = max(
        (card for card in others if card.total_bytes > first.total_bytes * (1 + UNEQUAL)),
        key=lambda card: card.total_bytes,
        default=None,
    )
    if attempt.tp * attempt.pp == 1 and larger:
        reasons.append(f"the first card of the role is used, {first.name}; {larger.name} is larger: name it first")
    if attempt.tp > 1:
        reasons.append(f"tensor-parallel-size {attempt.tp}: one card alone is too small, the cards are equal")
    if attempt.pp > 1:
        reasons.append(
            f"pipeline-parallel-size {attempt.pp}: one card alone is too small; uneven cards share by layers"
        )
    if _needs_half(facts):
        reasons.append("dtype half: the card is older than compute capability 8.0 and has no bfloat16")
    reasons += [f"not counted exactly: {what}" for what in facts.arch.incomplete]
    return reasons


def _as_plan(facts: _Facts, attempt: _Attempt, remedies: tuple[Remedy, ...]) -> Plan:
    tight = min(attempt.cards, key=lambda card: card.pool.likely)
    rank = attempt.cards.index(tight) // attempt.tp
    kv = attempt.layouts[rank]
    return Plan(
        verdict=attempt.verdict,
        reason=attempt.reason,
        model=facts.request.model.name,
        engine="vllm",
        version=".".join(map(str, facts.version)),
        accounting=facts.accounting.label,
        flags=_flags(facts, attempt),
        cards=attempt.cards,
        context=attempt.context,
        largest_context=attempt.largest,
        concurrency=kv.concurrency(tight.pool.likely, attempt.context, attempt.shape.batched_tokens),
        need_bytes=attempt.need_bytes,
        kv_bytes_per_token=kv.bytes_per_token,
        reasons=tuple(_why(facts, attempt)),
        remedies=remedies,
        incomplete=facts.arch.incomplete,
        environment=_environment(attempt),
    )


def _environment(attempt: _Attempt) -> dict[str, str]:
    return {"VLLM_PP_LAYER_PARTITION": ",".join(map(str, attempt.partition))} if attempt.partition else {}


# --- remedies ----------------------------------------------------------------------------------------------------


def _remedies(facts: _Facts, failed: _Attempt, refusal: str) -> Iterator[Remedy]:
    """What would help, each tried on the planner itself; what makes it fit comes first, the cheapest first of all."""
    found: list[Remedy] = []
    if not refusal:
        for action, request in _changes(facts, failed):
            try:
                changed = _facts(request)
                attempt = _best(changed)
            except (ConfigError, KvError):
                continue
            verdict = UNKNOWN if _refusal(changed) else attempt.verdict
            effect = f"{verdict}: {attempt.reason}"
            found.append(Remedy(action, effect, verdict, _flags(changed, attempt)))
    found += _llama_remedy(facts)
    order = {FITS: 0, UNKNOWN: 1, FAILS: 2}
    yield from sorted(found, key=lambda remedy: order[remedy.verdict])


def _changes(facts: _Facts, failed: _Attempt) -> Iterator[tuple[str, Request]]:
    request = facts.request
    wishes = replace(failed.wishes, explicit=False)

    def changed(**values: Any) -> Request:
        return replace(request, wishes=replace(wishes, **values))

    if wishes.utilization is not None:
        yield "let the plan choose the memory fraction", changed(utilization=None)
    if failed.shape.max_num_seqs > 16:
        yield "fewer requests at once (parallel: 16)", changed(max_num_seqs=16)
    if wishes.concurrency > 1:
        yield "guarantee one request of full length instead of several", changed(concurrency=1)
    if SMALLEST_CONTEXT <= failed.largest < failed.context:
        yield f"shorter context (context: {failed.largest})", changed(context=failed.largest)
    fp8_kv = wishes.kv_dtype == "auto" and all((card.capability or FP8_KV) >= FP8_KV for card in request.cards)
    if fp8_kv:
        yield "store KV in 8 bit (kv-cache-dtype: fp8 under flags)", changed(kv_dtype="fp8")
    if not failed.shape.eager:
        yield (
            "no CUDA graphs (enforce-eager: true under flags): slower, for experts much slower",
            changed(enforce_eager=True),
        )
    if len(request.cards) > failed.tp * failed.pp or (wishes.tensor_parallel or 1) > len(request.cards):
        yield (
            "leave tensor-parallel-size and pipeline-parallel-size to the plan",
            changed(tensor_parallel=None, pipeline_parallel=None),
        )
    if facts.quantization.scheme == "none":
        for name in ("fp8", "awq"):
            sibling = replace(request.model, tensors=None, quantization=name, name=f"{request.model.name} in {name}")
            yield f"a sibling in {name}", replace(request, model=sibling, wishes=wishes)
            if fp8_kv:
                both = replace(wishes, kv_dtype="fp8")
                yield f"a sibling in {name}, and KV in 8 bit", replace(request, model=sibling, wishes=both)
    missing = max(failed.need_bytes - min(card.pool.low for card in failed.cards), GIB)
    yield (
        f"keep {missing / GIB:.1f} GiB of weights in system memory (cpu-offload-gb): slow",
        changed(cpu_offload_bytes=missing),
    )


def _llama_remedy(facts: _Facts) -> list[Remedy]:
    """llama.cpp with a 4-bit file and as many layers on the first card as fit."""
    request = facts.request
    sibling = replace(request.model, tensors=None, quantization="gguf_q4_k_m", config=_plain(request.model.config))
    wishes = Wishes(context=request.wishes.context or SMALLEST_CONTEXT, headroom_bytes=request.wishes.headroom_bytes)
    try:
        found = plan_llama(replace(request, model=sibling, engine="llama_cpp", wishes=wishes, version=None))
    except (ConfigError, KvError, KeyError):
        return []
    layers = min(found.flags.get("n-gpu-layers", 0), len(facts.arch.layers))  # it counts the output layer, too
    action = f"llama.cpp with a Q4_K_M file, {layers} of {len(facts.arch.layers)} layers on the card"
    return [Remedy(action, f"{found.verdict}: {found.reason}", found.verdict, found.flags)]


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in {"quantization_config", "compression_config"}}


# --- several instances on one card -------------------------------------------------------------------------------


def plan_together(requests: Sequence[Request]) -> list[Plan]:
    """Plans of several instances that share cards, in the order in which they must be started, one after the other.

    Each takes no more than its wishes need, and the next sees what the ones before it hold at the high end. Cards are
    the same when their UUIDs (or, without one, their names) are.
    """
    held: dict[str, float] = {}
    plans = []
    for request in requests:
        cards = tuple(
            replace(card, others_bytes=card.others_bytes + held.get(card.uuid or card.name, 0), free_bytes=None)
            for card in request.cards
        )
        made = plan(replace(request, cards=cards, wishes=replace(request.wishes, least=True)))
        plans.append(made)
        for card in made.cards:
            key = card.uuid or card.card
            taken = card.budget_bytes if made.engine == "vllm" else sum(part.high for part in card.parts.values())
            taken += sum(part.high for name, part in card.outside.items() if name != "others")
            held[key] = held.get(key, 0) + taken
    return plans
