# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for vLLM on the processor, where the memory for keys and values is given and not what a card has left. (pure)

So nothing is a range: what the engine will log is known before it starts. Read in vLLM 0.32.0 (platforms/cpu.py,
v1/core/kv_cache_utils.py, engine/arg_utils.py) and compared with real starts by tests/e2e/test_engine_kv.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final

from ..vllm_config import longest_context
from .architecture import Architecture, ConfigError, read_config
from .engine_vllm import GIB, MIB, Range, Version, exactly, gib, load_rules, parse_version
from .headers import HeaderError, Tensor
from .kv import KvError, KvLayout, layout
from .request import FAILS, FITS, UNKNOWN, CardPlan, Plan, PlanError, Remedy, Request, Wishes
from .tensors import derive, quantization_named, read_quantization
from .weights import Split, Weights, weights_per_rank

BLOCK_TOKENS: Final = 128
MLA_BLOCK_TOKENS: Final = 16
"""The kernel for one latent vector takes no other block, except where the processor has AMX."""
MLA_WIDTH: Final = 576
"""Latent and rotary numbers that this kernel is compiled for: those of DeepSeek V2 and V3."""
SEQUENCES: Final = 128
BATCHED_TOKENS: Final = 2048
"""What a server takes for max-num-seqs and max-num-batched-tokens, for each rank."""
KV_DTYPES: Final = frozenset({"auto", "fp8", "fp8_e4m3", "fp8_e5m2"})
STATE_SHARE: Final = 0.1
"""How far the sum of a model with recurrent states may be off: vLLM enlarges its blocks by rules of each family."""
PROCESS_GIB: Final = (0.9, 1.0, 1.5)
"""Python, torch and the engine beside weights and KV, measured with a model of 0.25 MB: 0.93; 1.38 with compilation."""
WITHOUT_CACHE: Final = frozenset(
    {"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "new", "gte", "camembert", "distilbert"}
)
"""Encoders read a text at once and keep nothing of it."""

_UNITS: Final = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "K": 1 << 10,
    "M": 1 << 20,
    "G": 1 << 30,
    "T": 1 << 40,
}


def parse_bytes(text: str | int) -> int:
    """Bytes of a size as vLLM reads it: small letters are powers of 1000, capitals of 1024; '64M', '1G', '2.5g', 4096.

    Source: vllm/utils/argparse_utils.py, human_readable_int. Raises ValueError, as vLLM does for '1.5G'.
    """
    found = re.fullmatch(r"(\d+)(\.\d+)?([kKmMgGtT]?)", str(text).strip())
    if found is None:
        raise ValueError(f"found {text!r}, needed a number of bytes, or one with k, m, g, t or K, M, G, T behind it")
    whole, fraction, letter = found.groups()
    if not fraction:
        return int(whole) * _UNITS.get(letter, 1)
    if not letter or letter.isupper():
        instead = f"{whole}{fraction}{letter.lower() or 'g'}"
        raise ValueError(
            f"found {text!r}: vLLM takes fractions with small letters only, powers of 1000; write {instead}"
        )
    return int(float(whole + fraction) * _UNITS[letter])


@dataclass(frozen=True)
class _Facts:
    """What one request comes to. kv None: the model keeps no keys and values."""

    request: Request
    arch: Architecture
    weights: Weights
    kv: KvLayout | None
    version: Version
    kv_bytes: int
    memory_bytes: float | None
    limit: int
    refusal: str

    @property
    def ranks(self) -> int:
        return self.request.wishes.tensor_parallel or 1

    @property
    def band(self) -> float:
        return STATE_SHARE if self.kv and self.kv.state_bytes else 0

    @property
    def usable_bytes(self) -> int:
        """Whole blocks of the pool without the one that the engine keeps to point at."""
        block = self.kv.block_bytes if self.kv else 1
        return max(self.kv_bytes // block - 1, 0) * block

    def batched_tokens(self, context: int) -> int:
        """engine/arg_utils.py: _set_default_max_num_seqs_and_batched_tokens_args, for a server."""
        wishes = self.request.wishes
        sequences = wishes.max_num_seqs or SEQUENCES * self.ranks
        return wishes.max_num_batched_tokens or min(sequences * context, BATCHED_TOKENS * self.ranks)


def plan_cpu(request: Request, kv_bytes: float, memory_bytes: float | None = None, amx: bool = False) -> Plan:
    """Judge an instance on the processor: `kv_bytes` is kv-cache-memory-bytes, `memory_bytes` the machine's memory.

    The request's cards do not count. largest_context is what the engine names as 'estimated maximum model length' when
    the context is too long (one block stays free, as it does there); concurrency is what it logs. `amx`: the processor
    has AMX, which changes the blocks of models with latent attention. Raises PlanError, ConfigError, HeaderError and
    KvError.
    """
    facts = _facts(request, kv_bytes, memory_bytes, amx)
    made = _planned(facts)
    return made if made.fits else replace(made, remedies=tuple(_remedies(facts, made, amx)))


def logged_tokens(made: Plan) -> int:
    """N of the engine's 'CPU KV cache size: N tokens' for such a plan, in 0.32 and 0.33; KvLayout.logged_tokens knows
    the older versions.
    """
    return int(made.concurrency * made.context)


def _facts(request: Request, kv_bytes: float, memory_bytes: float | None, amx: bool) -> _Facts:
    model, wishes = request.model, request.wishes
    _check(wishes, kv_bytes, memory_bytes)
    arch = read_config(model.config, model.vision_parameters)
    arch = replace(arch, dtype_bytes=min(arch.dtype_bytes, 2))  # 32 bit is loaded as 16 (config/model.py)
    stored = read_quantization(model.config)
    if stored.scheme == "none" and model.quantization and model.tensors is None:
        stored = quantization_named(model.quantization)
    tensors: tuple[Tensor, ...] = tuple(derive(arch, stored)) if model.tensors is None else model.tensors
    if not tensors:
        raise HeaderError(f"{model.name}: the headers name no tensor")
    version = parse_version(request.version or "0.32.0")
    rules = replace(load_rules(version, True, arch), rounding=False)
    split = Split(wishes.tensor_parallel or 1)
    refusal = _refusal(arch, wishes, amx)
    kv = None
    if arch.model_type not in WITHOUT_CACHE:
        blocks = MLA_BLOCK_TOKENS if arch.is_mla and not amx else BLOCK_TOKENS
        kv_dtype = "auto" if wishes.kv_dtype not in KV_DTYPES else wishes.kv_dtype
        kv = layout(arch, kv_dtype, split.tp, block_tokens=blocks)
    weights = weights_per_rank(tensors, arch, stored, split, rules)[0]
    limit = longest_context(model.config) or arch.max_position or 1 << 20
    return _Facts(request, arch, weights, kv, version, int(kv_bytes), memory_bytes, limit, refusal)


def _check(wishes: Wishes, kv_bytes: float, memory_bytes: float | None) -> None:
    if not 0 < kv_bytes < 1 << 50:
        raise PlanError(f"kv_bytes is {kv_bytes}; needed is the memory for keys and values, above 0")
    if memory_bytes is not None and not 0 < memory_bytes < 1 << 60:
        raise PlanError(f"memory_bytes is {memory_bytes}; needed is the machine's memory, above 0")
    for name in ("context", "max_num_seqs", "max_num_batched_tokens", "tensor_parallel"):
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise PlanError(f"{name} is {value}; needed is a whole number above 0")
    if wishes.concurrency <= 0:
        raise PlanError(f"concurrency is {wishes.concurrency}; needed is a number above 0")
    if (wishes.pipeline_parallel or 1) > 1:
        raise PlanError("pipeline_parallel is not planned on the processor; use tensor_parallel")


def _refusal(arch: Architecture, wishes: Wishes, amx: bool) -> str:
    """What the processor's build cannot do whatever the memory (v1/attention/backends/cpu_attn.py, mla/cpu_mla.py)."""
    for a in (layer.attention for layer in arch.layers):
        if a.index_dim:
            return "vLLM has no sparse attention on the processor"
        if a.kind == "mla" and not amx and a.latent + a.rope_dim != MLA_WIDTH:
            return f"latent attention of {a.latent} + {a.rope_dim} numbers; without AMX vLLM computes {MLA_WIDTH} only"
        if a.q_heads % (wishes.tensor_parallel or 1):
            return f"{a.q_heads} attention heads cannot be divided by tensor parallel {wishes.tensor_parallel}"
    return _kv_dtype_problem(arch, wishes.kv_dtype)


def _kv_dtype_problem(arch: Architecture, kv_dtype: str) -> str:
    if kv_dtype == "auto":
        return ""
    if kv_dtype not in KV_DTYPES:
        return f"kv-cache-dtype {kv_dtype}; on the processor vLLM has {', '.join(sorted(KV_DTYPES))}"
    if arch.is_mla:
        return f"kv-cache-dtype {kv_dtype}; on the processor vLLM keeps latent vectors in 16 bit only"
    odd = [a.head_dim for layer in arch.layers if (a := layer.attention).head_dim % 32]
    return f"kv-cache-dtype {kv_dtype} needs heads of a multiple of 32 numbers, these have {odd[0]}" if odd else ""


# --- judging -----------------------------------------------------------------------------------------------------


def _planned(facts: _Facts) -> Plan:
    wishes, kv = facts.request.wishes, facts.kv
    asked = wishes.context or facts.limit
    if kv is None:
        largest, context, need, concurrency = facts.limit, asked, 0.0, float(wishes.max_num_seqs or SEQUENCES)
    else:
        largest = _largest(facts, kv, asked)
        context = asked if wishes.context or wishes.explicit or not largest else largest
        batched = facts.batched_tokens(context)
        need = kv.request_bytes(context, batched) * wishes.concurrency
        concurrency = kv.concurrency(facts.kv_bytes, context, batched)
    verdict, reason = _judge(facts, context, largest, need)
    held = facts.weights.total_bytes * facts.ranks
    parts: dict[str, Range] = {"weights": exactly(held), "process": gib(PROCESS_GIB).times(facts.ranks)}
    pool = exactly(facts.kv_bytes * facts.ranks)
    total = facts.memory_bytes or held + parts["process"].likely + pool.likely
    card = CardPlan(
        "main memory", "", total, total, parts, pool, {}, facts.weights.parts, facts.weights.layers, 0
    )  # fmt: skip
    return Plan(
        verdict=verdict,
        reason=reason,
        model=facts.request.model.name,
        engine="vllm",
        version=".".join(map(str, facts.version)),
        accounting="processor: memory for KV is given",
        flags=_flags(facts, context),
        cards=(card,),
        context=context,
        largest_context=largest,
        concurrency=concurrency,
        need_bytes=need,
        kv_bytes_per_token=kv.bytes_per_token if kv else 0,
        reasons=tuple(_why(facts, context, largest)),
        incomplete=facts.arch.incomplete,
    )


def _largest(facts: _Facts, kv: KvLayout, asked: int) -> int:
    """As the engine estimates it with the batch that goes with the context that was asked; where that one fits, the
    largest that starts with the batch of its own.
    """
    room = facts.usable_bytes * (1 - facts.band) / facts.request.wishes.concurrency
    largest = kv.max_tokens(room, facts.batched_tokens(asked), facts.limit, step=1)
    low, high = (asked, largest) if asked < largest else (largest, largest)
    while low < high:
        middle = (low + high + 1) // 2
        if kv.blocks_of_request(middle, facts.batched_tokens(middle)) <= kv.blocks(room):
            low = middle
        else:
            high = middle - 1
    return low


def _judge(facts: _Facts, context: int, largest: int, need: float) -> tuple[str, str]:
    wishes, kv = facts.request.wishes, facts.kv
    if facts.refusal:
        return FAILS, facts.refusal
    if context > facts.limit and not wishes.explicit:
        return FAILS, f"context {context} is above the model's maximum of {facts.limit}"
    memory = _memory_problem(facts)
    if memory[0] == FAILS or kv is None:
        return memory if memory[1] else (FITS, "the model keeps no keys and values")
    usable, band = facts.usable_bytes, facts.band
    wanted = f"{need / MIB:.1f} MiB for {wishes.concurrency:g} x {context} tokens"
    given = f"{usable / MIB:.1f} of kv-cache-memory-bytes' {facts.kv_bytes / MIB:.1f} can be used"
    if need > usable * (1 + band):
        longest = f"; the largest context is {largest}" if largest else "; not even one token fits"
        return FAILS, f"{wanted} needed, {given}{longest}"
    if need > usable * (1 - band):
        return UNKNOWN, f"{wanted} needed, {given}, and recurrent states are counted to {band:.0%} only"
    return memory if memory[1] else (FITS, f"{wanted} needed, {given}")


def _memory_problem(facts: _Facts) -> tuple[str, str]:
    """(verdict, reason) where the machine's memory does not surely hold weights, KV and the engine itself."""
    if facts.memory_bytes is None:
        return FITS, ""
    held = (facts.weights.total_bytes + facts.kv_bytes) * facts.ranks
    sizes = (
        f"{facts.weights.total_bytes * facts.ranks / GIB:.2f} GiB of weights and "
        f"{facts.kv_bytes * facts.ranks / GIB:.2f} for KV"
    )
    if held > facts.memory_bytes:
        return FAILS, f"{sizes} are more than the machine's {facts.memory_bytes / GIB:.2f} GiB of memory"
    if held + PROCESS_GIB[2] * facts.ranks * GIB > facts.memory_bytes:
        return (
            UNKNOWN,
            f"{sizes} leave the engine itself too little of the machine's {facts.memory_bytes / GIB:.2f} GiB",
        )
    return FITS, ""


# --- telling -----------------------------------------------------------------------------------------------------


def _flags(facts: _Facts, context: int) -> dict[str, Any]:
    wishes = facts.request.wishes
    wanted = {
        "max-model-len": context,
        "kv-cache-memory-bytes": facts.kv_bytes,
        "max-num-seqs": wishes.max_num_seqs,
        "max-num-batched-tokens": wishes.max_num_batched_tokens,
        "tensor-parallel-size": wishes.tensor_parallel if facts.ranks > 1 else None,
        "kv-cache-dtype": wishes.kv_dtype if wishes.kv_dtype != "auto" else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _why(facts: _Facts, context: int, largest: int) -> Iterator[str]:
    kv = facts.kv
    if kv is None:
        yield f"a {facts.arch.model_type} model keeps no keys and values: no context is too long for the memory"
    else:
        yield (
            f"kv-cache-memory-bytes {facts.kv_bytes}: {kv.blocks(facts.kv_bytes)} blocks of {kv.block_tokens} tokens, "
            f"{kv.block_bytes} bytes each, of which the engine keeps one for itself"
        )
        if context == largest and not facts.request.wishes.context:
            limited = "the model's own" if context == facts.limit else "the longest that fits"
            yield f"max-model-len {context}: {limited}"
    yield from (f"not counted exactly: {what}" for what in facts.arch.incomplete)


# --- remedies ----------------------------------------------------------------------------------------------------


def _remedies(facts: _Facts, failed: Plan, amx: bool) -> list[Remedy]:
    """What would help, each tried on the planner itself; what makes it fit comes first, the cheapest first of all."""
    found: list[Remedy] = []
    for action, request, kv_bytes in _changes(facts, failed):
        try:
            changed = _planned(_facts(request, kv_bytes, facts.memory_bytes, amx))
        except (ConfigError, KvError, PlanError):
            continue
        found.append(Remedy(action, f"{changed.verdict}: {changed.reason}", changed.verdict, changed.flags))
    order = {FITS: 0, UNKNOWN: 1, FAILS: 2}
    return sorted(found, key=lambda remedy: order[remedy.verdict])


def _changes(facts: _Facts, failed: Plan) -> Iterator[tuple[str, Request, int]]:
    request, wishes, kv = facts.request, replace(facts.request.wishes, explicit=False), facts.kv

    def changed(**values: Any) -> Request:
        return replace(request, wishes=replace(wishes, **values))

    if kv is not None and failed.need_bytes > facts.usable_bytes * (1 - facts.band):
        if 0 < failed.largest_context < failed.context:
            shorter = f"shorter context (context: {failed.largest_context})"
            yield shorter, changed(context=failed.largest_context), facts.kv_bytes
        more = _kv_mib(facts, failed, kv)
        yield f"more memory for KV (kv-cache-memory-bytes: {more}M under flags)", changed(), more * MIB
        if wishes.concurrency > 1:
            yield "guarantee one request of full length instead of several", changed(concurrency=1), facts.kv_bytes
        if wishes.kv_dtype == "auto" and not _kv_dtype_problem(facts.arch, "fp8"):
            yield (
                "store KV in 8 bit (kv-cache-dtype: fp8 under flags; takes AVX-512)",
                changed(kv_dtype="fp8"),
                facts.kv_bytes,
            )
    if _kv_dtype_problem(facts.arch, wishes.kv_dtype):
        yield "leave kv-cache-dtype out of flags", changed(kv_dtype="auto"), facts.kv_bytes
    if _memory_problem(facts)[1]:
        if kv is not None and _kv_mib(facts, failed, kv) * MIB < facts.kv_bytes:
            less = _kv_mib(facts, failed, kv)
            yield (
                f"no more memory for KV than needed (kv-cache-memory-bytes: {less}M under flags)",
                changed(),
                less * MIB,
            )
        if read_quantization(request.model.config).scheme == "none" and not request.model.quantization:
            sibling = replace(request.model, tensors=None, quantization="awq", name=f"{request.model.name} in awq")
            yield "a sibling in awq, 4 bit", replace(request, model=sibling, wishes=wishes), facts.kv_bytes


def _kv_mib(facts: _Facts, wanted: Plan, kv: KvLayout) -> int:
    """The least kv-cache-memory-bytes for a plan's wishes, in whole MiB."""
    blocks = ceil(wanted.need_bytes / (1 - facts.band) / kv.block_bytes) + 1
    return ceil(blocks * kv.block_bytes / MIB)
