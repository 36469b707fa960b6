# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the KV cache of a model costs in vLLM: bytes per token, blocks per request, tokens in a pool. (pure)

Page arithmetic as in vllm/v1/kv_cache_interface.py and vllm/v1/core/kv_cache_utils.py: layers of one kind form groups
of equal size, a block is one page in every layer of a group, and all pages have the same size. Against logs: tokens of
a logged pool median 0.02 % off, most of it the log's own rounding (tests/benchmarks/vram_accuracy.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from .architecture import Architecture, Attention

KV_BYTES = {"auto": 0.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "int8": 1.0}
BLOCK_TOKENS = 16
"""vLLM's default block on CUDA cards; on the processor it is longer (plan_cpu.py)."""
TOKENS_BY_CONCURRENCY = (0, 21, 0)
"""From this version on the log's token figure is concurrency x max_model_len: one model went from 55,000 tokens in
0.20.0 to 525,000 in 0.21.0 with the same pool (vllm-project/vllm issue 43308)."""
TWO_BATCHES = (0, 26, 0)
"""From this version on a window keeps the tokens of two batches on cards, where scheduling runs ahead of computing
(VllmConfig.max_in_flight_tokens, vllm-project/vllm pull request 47728); on the processor it does not."""
INDEXER_BYTES = 132
"""DeepSeek sparse attention: 128 bytes of FP8 key and a 4 byte scale per token and layer (vLLM, DeepseekV32Indexer)."""
STATE_BYTES = 4
"""The recurrent state is kept in 32 bit (mamba_ssm_cache_dtype of public hybrids), the convolution's in the dtype."""


class KvError(ValueError):
    """The wished KV cache cannot be planned; the message names the value and what is possible."""


@dataclass(frozen=True)
class Group:
    """`layers` layers of one kind whose pages share one block number. window: tokens that a request keeps, or None."""

    kind: str
    layers: int
    block_tokens: int
    window: int | None = None


@dataclass(frozen=True)
class KvLayout:
    """How one card's KV pool is divided. `block_bytes`: one block, that is a page in each layer of a group.

    `bytes_per_token`: one more token of full context in all layers that grow with it.
    """

    block_bytes: int
    groups: tuple[Group, ...]
    bytes_per_token: float
    state_bytes: int
    ranks: int = 1
    v1: bool = True
    block_tokens: int = BLOCK_TOKENS
    batches: int = 1

    def blocks(self, pool_bytes: float) -> int:
        """Blocks that a pool of so many bytes holds; zero when it is negative."""
        return max(int(pool_bytes // self.block_bytes), 0)

    def blocks_of_request(self, tokens: int, batched_tokens: int) -> int:
        """Blocks that one request of `tokens` tokens needs: vLLM's max_memory_usage_bytes of each group's kind."""
        total = 0
        for group in self.groups:
            if group.kind == "state":
                total += 1
            elif group.window is None:
                total += ceil(ceil(tokens / self.ranks) / group.block_tokens)
            else:
                kept = min(group.window - 1 + self.batches * batched_tokens, tokens)
                total += ceil(kept / group.block_tokens) + 1
        return total

    def request_bytes(self, tokens: int, batched_tokens: int) -> int:
        """Bytes of one request of `tokens` tokens: the figure of vLLM's 'GiB KV cache is needed'."""
        return self.blocks_of_request(tokens, batched_tokens) * self.block_bytes

    def concurrency(self, pool_bytes: float, tokens: int, batched_tokens: int) -> float:
        """Requests of `tokens` tokens that fit at once: vLLM's 'Maximum concurrency'. V0 does not round to blocks."""
        if not self.v1:
            return self.blocks(pool_bytes) * self.block_tokens / max(tokens, 1)
        return self.blocks(pool_bytes) / max(self.blocks_of_request(tokens, batched_tokens), 1)

    def tokens(self, pool_bytes: float) -> int:
        """Tokens as the log counts them up to 0.20: whole blocks shared out over the groups."""
        size = min((group.block_tokens for group in self.groups if group.kind != "state"), default=self.block_tokens)
        return self.blocks(pool_bytes) // len(self.groups) * size * self.ranks

    def logged_tokens(
        self, pool_bytes: float, tokens: int, batched_tokens: int, version: tuple[int, int, int] = TOKENS_BY_CONCURRENCY
    ) -> int:
        """What the log of a version says as 'KV cache size: N tokens' for a max_model_len of `tokens`.

        vllm/v1/core/kv_cache_utils.py: get_kv_cache_capacity, before it _report_kv_cache_config.
        """
        if version < TOKENS_BY_CONCURRENCY:
            return self.tokens(pool_bytes)
        return int(self.concurrency(pool_bytes, tokens, batched_tokens) * tokens)

    def max_tokens(self, pool_bytes: float, batched_tokens: int, limit: int, step: int = BLOCK_TOKENS) -> int:
        """Longest request, a multiple of `step` up to `limit`, that fits in the pool; zero when none does.

        With a step of 1 it is vLLM's 'estimated maximum model length' (_estimate_max_model_len_from_groups).
        """
        blocks = self.blocks(pool_bytes)
        low, high = 0, limit // step
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_of_request(middle * step, batched_tokens) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low * step


def kv_element_bytes(kv_dtype: str, arch: Architecture) -> float:
    """Bytes of one stored number. Raises KvError for a dtype that is not known."""
    if kv_dtype not in KV_BYTES:
        raise KvError(f"KV dtype {kv_dtype!r} is not known; known are {', '.join(sorted(KV_BYTES))}")
    return KV_BYTES[kv_dtype] or min(arch.dtype_bytes, 4)


def concurrent_batches(version: tuple[int, int, int]) -> int:
    """Batches whose tokens a window keeps on a card, with vLLM's default of asynchronous scheduling."""
    return 2 if version >= TWO_BATCHES else 1


def layer_token_bytes(attention: Attention, element_bytes: float, tp: int) -> float:
    """Bytes that one token takes in one layer on one card; zero for layers without a growing cache.

    Keys and values of max(1, kv_heads / tp) heads; MLA: one latent vector that tensor parallel does not divide.
    """
    if not attention.owns_cache:
        return 0
    if attention.kind == "mla":
        return (attention.latent + attention.rope_dim) * element_bytes + (INDEXER_BYTES if attention.index_dim else 0)
    if attention.kind in {"full", "sliding"}:
        return 2 * max(1, ceil(attention.kv_heads / tp)) * attention.head_dim * element_bytes
    return 0


def layer_state_bytes(attention: Attention, dtype_bytes: int, tp: int) -> int:
    """Bytes of the constant state of one sequence in one layer on one card; zero for attention with a cache."""
    if attention.kind not in {"linear", "mamba"}:
        return 0
    return ceil((attention.state_elements * STATE_BYTES + attention.conv_elements * dtype_bytes) / tp)


def layout(
    arch: Architecture,
    kv_dtype: str = "auto",
    tp: int = 1,
    ranks: int = 1,
    layers: tuple[int, int] | None = None,
    windows: bool = True,
    v1: bool = True,
    block_tokens: int = BLOCK_TOKENS,
    batches: int = 1,
) -> KvLayout:
    """The layout on one card. `layers`: those of a pipeline rank; `ranks`: decode context parallel size.

    `windows` False: layers of all kinds at full length, as V0 and V1 before 0.10 have it. `block_tokens`: --block-size.
    `batches`: how many are computed at once, see `concurrent_batches`. Raises KvError.
    """
    element = kv_element_bytes(kv_dtype, arch)
    chosen = arch.layers[slice(*layers)] if layers else arch.layers
    buckets: dict[tuple[str, int | None, float], int] = {}
    states = 0
    state_bytes = 0
    for layer in chosen:
        a = layer.attention
        size = layer_token_bytes(a, element, tp)
        if size:
            sliding = a.kind == "sliding" and windows
            key = ("sliding" if sliding else "full", a.window if sliding else None, size)
            buckets[key] = buckets.get(key, 0) + 1
        state = layer_state_bytes(a, arch.dtype_bytes, tp)
        if state:
            states += 1
            state_bytes = max(state_bytes, state)
    per_token = sum(key[2] * count for key, count in buckets.items() if key[1] is None)
    if not buckets and not states:
        if layers is None or tuple(layers) == (0, len(arch.layers)):
            raise KvError("none of the model's layers has a cache: it is no decoder that vLLM serves")
        return KvLayout(1, (), 0, 0, ranks, v1, block_tokens, batches)  # a pipeline rank of layers without one
    if not states and len({(kind, window) for kind, window, _size in buckets}) == 1:
        (kind, window), whole = next((k[0], k[1]) for k in buckets), sum(k[2] * n for k, n in buckets.items())
        page = int(whole * block_tokens)
        group = Group(kind, len(chosen), block_tokens, window)
        return KvLayout(page, (group,), whole, 0, ranks, v1, block_tokens, batches)
    grouped = _grouped(buckets, states, state_bytes, per_token, ranks, v1, block_tokens)
    return replace(grouped, batches=batches)


def _grouped(
    buckets: dict[tuple[str, int | None, float], int],
    states: int,
    state_bytes: int,
    per_token: float,
    ranks: int,
    v1: bool,
    block: int,
) -> KvLayout:
    """Layers of several kinds: pages are made equal by longer blocks, layers are dealt into groups of one size.

    vLLM, kv_cache_utils.py: unify_kv_cache_spec_page_size, _get_kv_cache_groups_uniform_page_size: a block grows by a
    whole factor; a page that does not divide the largest is padded. A state's page must fit into an attention page,
    whose block grows by `block` tokens until it does.
    """
    largest = max((key[2] for key in buckets), default=0)
    page = int(largest * block) or state_bytes
    if states and largest:
        block *= ceil(state_bytes / (block * largest))
        page = int(block * largest)
    counts = [*buckets.values(), *([states] if states else [])]
    size = min(counts)
    if max(counts) < 1.5 * size:
        size = max(counts)
    groups: list[Group] = []
    for (kind, window, token_bytes), count in buckets.items():
        factor, rest = divmod(page, token_bytes * block)
        groups += [Group(kind, size, block if rest else block * int(factor), window)] * ceil(count / size)
    if states:
        groups += [Group("state", size, block)] * ceil(states / size)
    return KvLayout(page * size, tuple(groups), per_token, state_bytes * states, ranks, v1, block)
