# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How vLLM shares out a card's memory, by version: what counts against the KV pool, and what comes on top. (pure)

All sizes are bytes per card. A part that no formula gives exactly is a Range: `low` and `high` are what was seen on
other hosts and what the source allows, `likely` is the middle that most starts take. The accounting was read in the
wheels of 26 releases (0.2.7 to 0.33.0); the pool's error is printed by tests/benchmarks/vram_accuracy.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import ceil

from .architecture import Architecture
from .weights import LoadRules

GIB = 1 << 30
MIB = 1 << 20
Version = tuple[int, int, int]
LATEST: Version = (0, 33, 0)

TOKEN_BYTES = 6
"""Peak bytes per token and element of MLP width plus hidden size: gate_up (2 x 2 B) and its product (2 B)."""
TOKEN_BYTES_4_BIT = 8
"""The same where linear layers are stored in 4-bit integers: their kernels hold one more 16-bit copy (the log of a 72B
AWQ with a profile of 32,768 tokens on two cards: 5.66 GiB)."""
SAMPLER_BYTES_V1 = 22
"""Bytes per logit of V1's sampler at its peak: 16-bit and 32-bit logits, sorted values and indices, probabilities."""
SAMPLER_BYTES_V0 = 38.4
"""The same in V0, with its copies for penalties and log probabilities, measured on V0 profiles; V1's upper bound."""
CONTEXT = (0.25, 0.45, 0.75)
"""GiB of a CUDA context with its modules; public start-ups that print it have 0.35 to 0.73."""
NON_TORCH = {1: (0.01, 0.1, 0.3), 2: (0.25, 0.5, 0.8), 4: (0.4, 0.8, 1.3), 8: (0.6, 1.5, 2.1)}
"""GiB outside torch without the context, by cards that work together: NCCL's buffers and cuBLAS workspaces."""
GRAPHS = (0.05, 0.5, 1.6)
"""GiB of CUDA graphs of a model with 36 layers and 51 sizes: usually 0.5; one host gave 0.62 to 1.59 on three boots."""
GRAPH_LAYERS, GRAPH_SIZES = 36, 51
MARGIN_V0 = (0.1, 0.0175)
MARGIN_V1 = (0.5, 0.03)
"""Unforeseen, as (GiB, share of the card's total): not physics, but what boots of one host differ by, larger on larger
cards. V1 compiles within the measured window. Calibrated on public logs as a whole; the benchmark's figures with one
family left out say what they are worth on models that they have not seen.
"""
UNKNOWN_TOWER = (0.0, 1.3, 1.5)
"""GiB of a vision tower that config.json does not describe: public ones have 0.4 to 0.7 billion 16-bit parameters."""
MLA_WORKSPACE_TOKENS = {False: 128 * 1024, True: 64 * 1024}
"""Tokens of context that MLA prefill expands at once, V0 and V1 (MLACommonMetadataBuilder, its prefill workspace)."""


@dataclass(frozen=True)
class Range:
    """A size in bytes that is known as a range."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Range:
        """The range with all three figures multiplied."""
        return Range(self.low * factor, self.likely * factor, self.high * factor)

    def to_dict(self) -> dict[str, int]:
        """As whole bytes."""
        return {"low": round(self.low), "likely": round(self.likely), "high": round(self.high)}


ZERO = Range(0, 0, 0)


def gib(figures: tuple[float, float, float]) -> Range:
    """A range from figures in GiB."""
    return Range(*(figure * GIB for figure in figures))


def exactly(size_bytes: float) -> Range:
    """A range without width."""
    return Range(size_bytes, size_bytes, size_bytes)


@dataclass(frozen=True)
class Accounting:
    """What one span of versions counts. `since`: its first version, `label`: the span for people.

    context_counts / others_count: the process's CUDA context and other processes lessen the pool. collectives_count:
    NCCL's buffers lie inside the budget. graphs_count: an estimate of the graphs is subtracted. start_gate: free memory
    must be at least the budget at the start. grouped_windows: sliding layers keep only their window.
    """

    label: str
    v1: bool
    since: Version
    context_counts: bool
    others_count: bool
    collectives_count: bool
    graphs_count: bool
    start_gate: bool
    default_utilization: float
    grouped_windows: bool = False
    captures_graphs: bool = True
    unpredictable: str = ""
    """Why no start of these versions is promised to fit."""


ACCOUNTING = (
    Accounting("V0 up to 0.2.4", False, (0, 2, 0), True, True, True, False, False, 0.9, captures_graphs=False),
    Accounting(
        "V0 0.2.5 to 0.3", False, (0, 2, 5), True, True, True, False, False, 0.9,
        unpredictable="it counts what torch's allocator reserved at its peak, which fragmentation decides",
    ),
    Accounting("V0 0.4 to 0.6.3", False, (0, 4, 0), False, False, True, False, False, 0.9),
    Accounting("V0 0.6.4", False, (0, 6, 4), True, True, True, False, False, 0.9),
    Accounting("V0 from 0.6.5", False, (0, 6, 5), False, False, True, False, False, 0.9),
    Accounting("V1 up to 0.9.0", True, (0, 6, 4), True, True, True, False, False, 0.9),
    Accounting("V1 0.9.1 to 0.9.2", True, (0, 9, 1), False, False, True, False, True, 0.9),
    Accounting("V1 0.10", True, (0, 10, 0), False, False, True, False, True, 0.9, True),
    Accounting("V1 0.11 to 0.19", True, (0, 11, 0), False, False, False, False, True, 0.9, True),
    Accounting("V1 0.20 to 0.27.0", True, (0, 20, 0), False, False, False, True, True, 0.92, True),
    Accounting("V1 from 0.27.1", True, (0, 27, 1), False, False, False, True, True, 0.92, True),
)  # fmt: skip
FIRST_V1_DEFAULT: Version = (0, 8, 0)


def parse_version(text: str | None) -> Version:
    """'0.7.2', '~0.8', '>=0.20' or '0.15.2rc1' as numbers; the newest when nothing is given. A dev build counts as its
    predecessor, whose accounting it usually still has. Raises ValueError.
    """
    if not text:
        return LATEST
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not match:
        raise ValueError(f"vLLM version {text[:40]!r} is not readable; write it as 0.33.0")
    major, minor, patch = (int(part or 0) for part in match.groups())
    if "dev" in text and patch:
        patch -= 1
    return major, minor, patch


def accounting_of(version: Version, v1: bool | None = None) -> Accounting:
    """The row of the table that holds for a version. `v1` None: what the version starts by default."""
    engine_v1 = version >= FIRST_V1_DEFAULT if v1 is None else v1
    rows = [row for row in ACCOUNTING if row.v1 == engine_v1]
    return next((row for row in reversed(rows) if row.since <= version), rows[0])


def load_rules(version: Version, v1: bool, arch: Architecture, online_fp8: bool = False) -> LoadRules:
    """What a version keeps beside the stored weights: tables per layer, copies of MLA's projections."""
    copies = "none" if version < (0, 7, 0) else "absorbed" if not v1 and version < (0, 8, 0) else "split"
    per_layer = arch.model_type == "gemma2" and version < (0, 5, 5)
    return LoadRules(mla_copies=copies, rope_per_layer=per_layer, online_fp8=online_fp8)


@dataclass(frozen=True)
class Shape:
    """The flags that decide activation and graphs, after defaults. `chunked`: the profile runs `batched_tokens`."""

    max_num_seqs: int
    batched_tokens: int
    chunked: bool
    eager: bool


def shape_of(
    accounting: Accounting,
    version: Version,
    total_bytes: float,
    max_model_len: int,
    max_num_seqs: int | None,
    batched_tokens: int | None,
    eager: bool,
    ampere_data_centre: bool = False,
) -> Shape:
    """Defaults of the flags that were not given (vLLM, engine/arg_utils.py), for a card of `total_bytes`.

    V1: 2048 tokens and 256 sequences; from 70 GiB on 8192 and 1024 (not an A100 from 0.11); from 0.33 16384 from 160
    GiB on. V0: one prompt of max_model_len, above 32,768 chunks of 512, from 0.6.5 on of 2048.
    """
    if not accounting.v1:
        chunked = max_model_len > 32768 and version >= (0, 5, 0)
        batch = batched_tokens or (v0_chunk(version) if chunked else max(max_model_len, 2048))
        return Shape(max_num_seqs or 256, batch, chunked, eager)
    large = total_bytes >= 70 * GIB and not (ampere_data_centre and version >= (0, 11, 0))
    batch, sequences = (8192, 1024) if large else (2048, 256)
    if large and version >= (0, 33, 0) and total_bytes >= 160 * GIB:
        batch = 16384
    return Shape(max_num_seqs or sequences, batched_tokens or batch, True, eager)


def v0_chunk(version: Version) -> int:
    """Tokens per chunk of V0's chunked prefill."""
    return 2048 if version >= (0, 6, 5) else 512


def activation(arch: Architecture, shape: Shape, v1: bool, tp: int, four_bit: bool = False) -> Range:
    """Peak bytes of a profile run beside the weights, on one card.

    The larger of the token term (batched_tokens x 6 B x (MLP width / tp + hidden), with experts their workspaces) and
    the sampler term (bytes per logit x sequences x vocabulary); pictures come on top. Within 7 % in most V0 profiles.
    """
    tokens = shape.batched_tokens * _token_bytes(arch, tp, TOKEN_BYTES_4_BIT if four_bit else TOKEN_BYTES)
    sampled = min(shape.max_num_seqs, shape.batched_tokens) * arch.vocabulary
    if not v1:
        sampler = 0.0 if shape.chunked else SAMPLER_BYTES_V0 * sampled
        text = exactly(max(tokens, sampler))
    else:
        text = Range(
            max(tokens, SAMPLER_BYTES_V1 * sampled * 0.5),
            max(tokens, SAMPLER_BYTES_V1 * sampled),
            max(tokens * 1.5, SAMPLER_BYTES_V0 * sampled),
        )
    return text + vision_profile(arch, tp) + exactly(_mla_workspace(arch, v1, tp))


def _mla_workspace(arch: Architecture, v1: bool, tp: int) -> float:
    """Latent vectors of the workspace's tokens, and their keys and values for one layer, in 16 bit."""
    a = next((layer.attention for layer in arch.layers if layer.attention.kind == "mla"), None)
    if a is None:
        return 0
    width = a.latent + a.rope_dim + a.q_heads / tp * (a.nope_dim + a.v_head_dim)
    return MLA_WORKSPACE_TOKENS[v1] * width * 2


def _token_bytes(arch: Architecture, tp: int, each: int) -> float:
    """Bytes per token of the widest layer. Experts: vLLM's fused_moe workspaces 13 and 2, top_k copies in 16 bit."""
    widest = 0.0
    for layer in arch.layers:
        mlp = layer.mlp
        size = each * (mlp.width / tp + arch.hidden)
        if mlp.experts:
            width = mlp.expert_width / tp
            size += 2 * mlp.top_k * (max(2 * width, arch.hidden) + width) + each * mlp.shared_width / tp
        widest = max(widest, size)
    return widest


def vision_profile(arch: Architecture, tp: int) -> Range:
    """Peak of one largest picture through the tower: patches x (14 hidden + 3 MLP widths) x 2 B, the rotary step in
    32 bit; a start may also profile none (limit_mm_per_prompt), or several.
    """
    vision = arch.vision
    if vision is None and not arch.incomplete:
        return ZERO
    hidden, width, patches = (vision.hidden, vision.width, vision.patches) if vision else (0, 0, 0)
    hidden, width, patches = hidden or 1152, width or 4304, patches or 65536
    peak = patches * (14 * hidden + 3 * width / tp) * 2
    return Range(0, peak * 0.5, peak)


def non_torch(cards: int) -> Range:
    """NCCL and libraries on one of `cards` cards that share every layer; between table rows the next larger row."""
    return gib(next((figures for count, figures in NON_TORCH.items() if count >= cards), NON_TORCH[8]))


def graph_sizes(max_num_seqs: int, version: Version, v1: bool) -> int:
    """How many batch sizes are captured: 1, 2, 4 and multiples of 8 up to twice the sequences.

    V0 stops at 256 (worker/model_runner.py), V1 at 512 (cudagraph_capture_sizes), from 0.11 in steps of 16 above 256.
    """
    largest = min(2 * max_num_seqs, 512) if v1 else min(max_num_seqs, 256)
    step = 16 if v1 and version >= (0, 11, 0) else 8
    return sum(1 for size in (1, 2, 4) if size <= largest) + min(largest, 256) // 8 + max(largest - 256, 0) // step


def graphs(arch: Architecture, shape: Shape, accounting: Accounting, version: Version) -> Range:
    """CUDA graphs on one card: nodes, and so memory, go with the batch sizes captured and the layers."""
    if shape.eager or not accounting.captures_graphs:
        return ZERO
    sizes = graph_sizes(shape.max_num_seqs, version, accounting.v1)
    return gib(GRAPHS).times(sizes / GRAPH_SIZES * len(arch.layers) / GRAPH_LAYERS)


def margin_bytes(accounting: Accounting, total_bytes: float) -> float:
    """What `low` keeps back for boots that take more than the sum of the parts."""
    fixed, share = MARGIN_V1 if accounting.v1 else MARGIN_V0
    return fixed * GIB + share * total_bytes


@dataclass(frozen=True)
class Pool:
    """A card's sum. `inside`: parts that lessen the pool; `outside`: what is taken beside the budget, after it."""

    budget_bytes: float
    weights_bytes: float
    inside: dict[str, Range]
    outside: dict[str, Range]
    pool: Range
    margin_bytes: float


def pool_of(
    accounting: Accounting,
    version: Version,
    arch: Architecture,
    shape: Shape,
    total_bytes: float,
    utilization: float,
    weights_bytes: float,
    others_bytes: float,
    tp: int,
    pp: int = 1,
    state_bytes: float = 0,
    four_bit: bool = False,
) -> Pool:
    """What is left for KV on one card: utilization x total - weights - what the version counts.

    `others_bytes`: held on the card by others; `state_bytes`: recurrent states that a version keeps beside the pool.
    The result's pool.low is the figure to plan with, pool.high the one never reached.
    """
    inside = {"activation": activation(arch, shape, accounting.v1, tp, four_bit)}
    outside: dict[str, Range] = {}
    collectives = non_torch(max(tp, 2 if pp > 1 else 1))
    (inside if accounting.collectives_count or tp * pp == 1 else outside)["non_torch"] = collectives
    (inside if accounting.context_counts else outside)["context"] = gib(CONTEXT)
    (inside if accounting.graphs_count else outside)["graphs"] = graphs(arch, shape, accounting, version)
    (inside if accounting.others_count else outside)["others"] = exactly(others_bytes)
    if arch.incomplete:
        inside["unknown_tower"] = gib(UNKNOWN_TOWER).times(1 / tp)
    if state_bytes:
        inside["states"] = exactly(state_bytes)
    taken = sum(inside.values(), ZERO)
    budget = min(ceil(total_bytes * utilization), total_bytes)
    margin = margin_bytes(accounting, total_bytes)
    left = budget - weights_bytes
    pool = Range(left - taken.likely - margin, left - taken.likely, left - taken.low)
    return Pool(budget, weights_bytes, inside, outside, pool, margin)
