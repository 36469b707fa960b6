# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for the processor: sizes, verdicts and remedies; what real engines logged; what holds for every plan."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import CPU_KV_BYTES
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import read_config
from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import HeaderError, Tensor
from ansible_collections.gpurig.llm.plugins.module_utils.vram.kv import concurrent_batches, layout
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan_cpu import logged_tokens, parse_bytes, plan_cpu
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import (
    FAILS,
    FITS,
    UNKNOWN,
    Model,
    Plan,
    PlanError,
    Request,
    Wishes,
)
from ansible_collections.gpurig.llm.tests.tiny_model.make import Shape, files
from ansible_collections.gpurig.llm.tests.unit.test_vram_model import (
    DEEPSEEK_V3,
    GEMMA3,
    LLAMA_8B,
    MODELS,
    NEMOTRON,
    QWEN_NEXT,
)
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

GIB = 1 << 30
MIB = 1 << 20
BERT = {
    "model_type": "bert", "num_hidden_layers": 6, "num_attention_heads": 12, "hidden_size": 384,
    "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "torch_dtype": "float32",
}  # fmt: skip


def ask(config: dict[str, Any], kv: str = "1G", memory_bytes: float | None = None, amx: bool = False, **w: Any) -> Plan:
    return plan_cpu(Request(Model("m", config), (), wishes=Wishes(**w)), parse_bytes(kv), memory_bytes, amx)


def tiny(**shape: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(Shape(**shape))["config.json"])
    return found


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("100K", 102400),
        ("64M", 64 * MIB),
        ("1G", GIB),
        ("1T", 1 << 40),
        ("1k", 1000),
        ("1.5m", 1500000),
        ("2.5g", 2500000000),
        ("25.6k", 25600),
        ("1t", 10**12),
        (" 4096 ", 4096),
        (4096, 4096),
        ("0", 0),
    ],
)
def test_sizes_are_read_as_vllm_reads_them(text: str | int, size: int) -> None:
    """The same texts were given to vLLM 0.32.0's human_readable_int."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1.5G", r"write 1\.5g"),
        ("1.5", r"write 1\.5g"),
        ("64MB", "needed a number of bytes"),
        ("", "needed a number of bytes"),
        ("-1", "needed a number of bytes"),
        ("auto", "needed a number of bytes"),
    ],
)
def test_other_sizes_are_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_bytes(text)


def test_the_default_of_an_instance_is_a_size() -> None:
    assert parse_bytes(CPU_KV_BYTES) == GIB


# --- what real engines logged ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kv", "wishes", "logged"),
    [
        ({"kv_heads": 1}, "200K", {"context": 640}, (768, 1.20, 640)),
        ({"kv_heads": 1}, "200K", {"context": 512}, (768, 1.50, 640)),
        ({"kv_heads": 1}, "200K", {"context": 1408, "kv_dtype": "fp8"}, (1536, 1.09, 1408)),
        ({"architecture": "gemma3_text", "layers": 6, "window": 300}, "2M", {"context": 512}, (1170, 2.29, 1152)),
        ({"architecture": "gemma3_text", "layers": 6, "window": 300}, "2M", {"context": 1152}, (1271, 1.10, 1152)),
        (
            {"architecture": "gemma3_text", "layers": 5, "window": 300},
            "1.5m",
            {"context": 700, "max_num_seqs": 4, "max_num_batched_tokens": 256},
            (855, 1.22, None),
        ),
        ({"architecture": "mistral", "layers": 3, "window": 300}, "1M", {"context": 1000}, (1111, 1.11, None)),
        ({"architecture": "mixtral", "layers": 3}, "900k", {"context": 500}, (1125, 2.25, None)),
        ({"architecture": "deepseek_v2"}, "3M", {"context": 1344}, (1360, 1.01, 1344)),
    ],
    ids=["gqa", "gqa short", "fp8", "window", "window longest", "uneven", "window alone", "experts", "latent"],
)
def test_the_log_of_vllm_0_32_is_foreseen(
    shape: dict[str, Any], kv: str, wishes: dict[str, Any], logged: tuple[int, float, int | None]
) -> None:
    """Tokens, concurrency and, where the engine named it, the estimated maximum model length of starts on a processor
    without AMX (tests/e2e/test_engine_kv.py).
    """
    tokens, concurrency, largest = logged
    made = ask(tiny(**shape), kv, **wishes)
    assert (made.verdict, logged_tokens(made), round(made.concurrency, 2)) == (FITS, tokens, concurrency)
    if largest:
        assert made.largest_context == largest


def test_older_versions_count_the_tokens_by_groups() -> None:
    """gemma-3-27b on 0.18: 205,696 tokens in a pool that holds 50.05 requests of 131,072."""
    found = layout(read_config(GEMMA3))
    pool, context, batched = 109.86 * GIB, 131072, 8192
    assert found.logged_tokens(pool, context, batched, (0, 18, 2)) == found.tokens(pool) == 205696
    concurrency = found.concurrency(pool, context, batched)
    assert found.logged_tokens(pool, context, batched, (0, 33, 0)) == int(concurrency * context)


def test_a_window_keeps_two_batches_on_cards_from_0_26_on() -> None:
    """Gemma 4 31B with 262,144 tokens and a batch of 32,768 (vllm-project/vllm issue 49878): 45.79 GiB needed in 0.25,
    70.79 GiB by the error of 0.26.0.
    """
    config = {
        "model_type": "gemma4_text", "num_hidden_layers": 60, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 256, "global_head_dim": 512, "num_global_key_value_heads": 4, "hidden_size": 5376,
        "intermediate_size": 21504, "vocab_size": 262144, "sliding_window": 1024, "max_position_embeddings": 262144,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
    }  # fmt: skip
    arch = read_config(config)
    needed = {
        version: layout(arch, batches=concurrent_batches(version)).request_bytes(262144, 32768) / GIB
        for version in ((0, 25, 1), (0, 26, 0))
    }
    assert [round(size, 2) for size in needed.values()] == [45.79, 70.79]


@pytest.mark.parametrize(("global_head_dim", "blocks"), [(512, [128, 256]), (256, [128, 512]), (160, [128, 128])])
def test_blocks_of_smaller_pages_grow_by_a_whole_factor_or_are_padded(global_head_dim: int, blocks: list[int]) -> None:
    """unify_kv_cache_spec_page_size in 0.32.0; the window's pages are those of 8 heads of 128 numbers."""
    config = {
        "model_type": "gemma4_text", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8,
        "head_dim": 128, "global_head_dim": global_head_dim, "num_global_key_value_heads": 1, "hidden_size": 256,
        "sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    found = layout(read_config(config), block_tokens=128)
    assert sorted(group.block_tokens for group in found.groups) == blocks
    assert found.block_bytes == 128 * 2 * 8 * 128 * 2


# --- verdicts ----------------------------------------------------------------------------------------------------


def test_the_default_holds_8064_tokens_of_an_8b() -> None:
    """1 GiB has 64 blocks of 128 tokens at 128 KiB a token; the engine keeps one block."""
    made = ask(LLAMA_8B)
    assert (made.verdict, made.context, made.largest_context) == (FITS, 8064, 8064)
    assert made.flags == {"max-model-len": 8064, "kv-cache-memory-bytes": GIB}
    assert logged_tokens(made) == 8192
    assert "64 blocks of 128 tokens" in made.reasons[0]
    (card,) = made.cards
    assert (card.card, card.pool.likely) == ("main memory", GIB)
    assert card.parts["weights"].likely / GIB == pytest.approx(14.99, rel=0.002)
    json.dumps(made.to_dict())


def test_a_too_long_context_is_refused_with_ranked_remedies() -> None:
    made = ask(LLAMA_8B, context=16384)
    assert made.verdict == FAILS
    assert "the largest context is 8064" in made.reason
    assert [(remedy.action.partition(" (")[0], remedy.verdict) for remedy in made.remedies] == [
        ("shorter context", FITS),
        ("more memory for KV", FITS),
        ("store KV in 8 bit", FAILS),
    ]
    assert made.remedies[1].flags["kv-cache-memory-bytes"] == 129 * 16 * MIB
    assert ask(LLAMA_8B, "2063M", context=16384).verdict == FAILS, "what was named is the least"
    assert ask(LLAMA_8B, "1032M", context=16384, kv_dtype="fp8").verdict == FITS


def test_a_remedy_that_is_more_than_the_machine_has_is_no_remedy() -> None:
    made = ask(LLAMA_8B, memory_bytes=18 * GIB, context=131072)
    by_name = {remedy.action.partition(" (")[0]: remedy.verdict for remedy in made.remedies}
    assert (by_name["shorter context"], by_name["more memory for KV"]) == (FITS, FAILS)


def test_weights_and_kv_must_fit_into_the_machine() -> None:
    made = ask(LLAMA_8B, "4G", memory_bytes=18 * GIB, context=8192)
    assert made.verdict == FAILS
    assert "14.96 GiB of weights" in made.reason or "14.99 GiB of weights" in made.reason
    best = made.remedies[0]
    assert (best.action, best.verdict) == (
        "no more memory for KV than needed (kv-cache-memory-bytes: 1040M under flags)",
        FITS,
    )
    assert "a sibling in awq, 4 bit" in [remedy.action for remedy in made.remedies]
    tight = ask(LLAMA_8B, "2G", memory_bytes=17.2 * GIB, context=8192)
    assert (tight.verdict, "leave the engine itself too little" in tight.reason) == (UNKNOWN, True)


def test_several_requests_need_their_sum() -> None:
    made = ask(LLAMA_8B, context=4096, concurrency=2)
    assert (made.verdict, made.largest_context) == (FAILS, 3968)
    assert made.remedies[2].action == "guarantee one request of full length instead of several"
    assert made.remedies[2].verdict == FITS


def test_a_smaller_batch_needs_less_where_there_is_a_window() -> None:
    """A layer with a window keeps the batch that is being computed, too."""
    shape = tiny(architecture="gemma3_text", layers=6, window=300)
    few = ask(shape, "2M", context=1024, max_num_batched_tokens=128)
    assert few.need_bytes < ask(shape, "2M", context=1024).need_bytes
    assert few.flags["max-num-batched-tokens"] == 128


def test_two_ranks_share_the_heads() -> None:
    one, two = ask(LLAMA_8B), ask(LLAMA_8B, tensor_parallel=2)
    assert two.largest_context == 2 * one.largest_context + 128
    assert two.cards[0].pool.likely == 2 * GIB
    assert two.flags["tensor-parallel-size"] == 2
    assert ask(LLAMA_8B, tensor_parallel=3).reason == "32 attention heads cannot be divided by tensor parallel 3"


def test_recurrent_states_are_judged_with_a_margin() -> None:
    made = ask(QWEN_NEXT)
    assert made.verdict == FITS
    nearly = int(made.largest_context * 1.08)
    assert ask(QWEN_NEXT, context=nearly).verdict == UNKNOWN
    assert ask(QWEN_NEXT, context=2 * nearly).verdict == FAILS
    assert ask(NEMOTRON, context=32768).verdict == FITS


def test_encoders_need_no_memory_for_kv() -> None:
    made = ask(BERT, "100K")
    assert (made.verdict, made.context, made.need_bytes, made.kv_bytes_per_token) == (FITS, 512, 0, 0)
    assert ask(BERT, context=1024).reason == "context 1024 is above the model's maximum of 512"
    assert ask(BERT, "10M", memory_bytes=20 * MIB).verdict == FAILS


def test_32_bit_models_are_loaded_as_16_bit() -> None:
    wide = {**LLAMA_8B, "torch_dtype": "float32"}
    assert ask(wide).largest_context == ask(LLAMA_8B).largest_context


@pytest.mark.parametrize(
    ("config", "wishes", "words"),
    [
        (LLAMA_8B, {"kv_dtype": "int8"}, "kv-cache-dtype int8; on the processor vLLM has auto, fp8"),
        ({**LLAMA_8B, "head_dim": 80}, {"kv_dtype": "fp8"}, "multiple of 32 numbers, these have 80"),
        (DEEPSEEK_V3, {"kv_dtype": "fp8"}, "keeps latent vectors in 16 bit only"),
        ({**DEEPSEEK_V3, "kv_lora_rank": 256}, {}, "256 \\+ 64 numbers; without AMX vLLM computes 576 only"),
        ({**DEEPSEEK_V3, "index_head_dim": 128}, {}, "no sparse attention on the processor"),
    ],
    ids=["kv dtype", "heads", "latent fp8", "latent width", "sparse"],
)
def test_what_the_build_cannot_do_is_refused(config: dict[str, Any], wishes: dict[str, Any], words: str) -> None:
    made = ask(config, "4G", context=1024, **wishes)
    assert made.verdict == FAILS
    assert re.search(words, made.reason), made.reason
    if "kv_dtype" in wishes:
        assert ("leave kv-cache-dtype out of flags", FITS) in [
            (remedy.action, remedy.verdict) for remedy in made.remedies
        ]


def test_amx_changes_the_blocks_of_latent_attention() -> None:
    plain, amx = ask(DEEPSEEK_V3), ask(DEEPSEEK_V3, amx=True)
    assert (plain.largest_context % 16, amx.largest_context % 128) == (0, 0)
    assert amx.largest_context < plain.largest_context


def test_headers_are_preferred() -> None:
    with pytest.raises(HeaderError, match="name no tensor"):
        plan_cpu(Request(Model("m", LLAMA_8B, tensors=()), ()), GIB)


@pytest.mark.parametrize(
    ("kv_bytes", "memory_bytes", "wishes", "words"),
    [
        (0, None, {}, "kv_bytes is 0"),
        (GIB, -1, {}, "memory_bytes is -1"),
        (GIB, None, {"context": 0}, "context is 0"),
        (GIB, None, {"concurrency": 0}, "concurrency is 0"),
        (GIB, None, {"pipeline_parallel": 2}, "pipeline_parallel is not planned"),
    ],
)
def test_impossible_requests_are_refused(
    kv_bytes: float, memory_bytes: float | None, wishes: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        plan_cpu(Request(Model("m", LLAMA_8B), (), wishes=Wishes(**wishes)), kv_bytes, memory_bytes)


def test_not_even_one_token() -> None:
    made = ask(LLAMA_8B, "100K")
    assert (made.verdict, made.largest_context) == (FAILS, 0)
    assert "not even one token fits" in made.reason


# --- what holds for every plan -----------------------------------------------------------------------------------

sizes = st.integers(1 * MIB, 8 * GIB)
contexts = st.integers(1, 200000)
models = st.sampled_from(sorted(name for name in MODELS if name not in {"hybrid", "mamba"}))


ONE_TENSOR = (Tensor("model.norm.weight", "BF16", (8,), 16),)


def at(name: str, kv_bytes: int, explicit: bool = True, **wishes: Any) -> Plan:
    """A plan whose weights count for nothing: to sum them is most of the work."""
    model = Model(name, MODELS[name], ONE_TENSOR)
    return plan_cpu(Request(model, (), wishes=Wishes(explicit=explicit, **wishes)), kv_bytes)


@settings(max_examples=60, deadline=None)
@given(models, sizes, contexts)
@example("moe", 4051697664, 40961)  # room for one more than the model's own maximum, and that asked for
def test_the_largest_context_starts_and_one_more_does_not(name: str, kv_bytes: int, context: int) -> None:
    made, longest = at(name, kv_bytes, context=context), read_config(MODELS[name]).max_position
    largest = made.largest_context
    assert (made.verdict == FITS) == (context <= largest) or context > longest
    if largest:
        assert at(name, kv_bytes, context=largest).verdict == FITS
        assert made.concurrency >= 1 or context > largest
    if largest < min(made.context, longest):
        assert at(name, kv_bytes, context=largest + 1).verdict == FAILS


@settings(max_examples=60, deadline=None)
@given(models, sizes, contexts, contexts, st.integers(1, 8), st.integers(0, 4 * GIB))
def test_a_refusal_never_becomes_a_fit_by_asking_for_more(
    name: str, kv_bytes: int, context: int, more: int, concurrency: int, less_bytes: int
) -> None:
    refused = at(name, kv_bytes, context=context)
    assume(refused.verdict == FAILS)
    assert at(name, kv_bytes, context=context + more).verdict == FAILS
    assert at(name, kv_bytes, context=context, concurrency=concurrency).verdict == FAILS
    assert at(name, max(kv_bytes - less_bytes, 1), context=context).verdict == FAILS


@settings(max_examples=40, deadline=None)
@given(models, sizes, contexts, st.integers(1, 4))
def test_remedies_that_promise_a_fit_keep_it(name: str, kv_bytes: int, context: int, concurrency: int) -> None:
    limit = read_config(MODELS[name]).max_position
    made = at(name, kv_bytes, explicit=False, context=min(context, limit), concurrency=concurrency)
    assert [remedy.verdict for remedy in made.remedies] == sorted(
        (remedy.verdict for remedy in made.remedies), key=[FITS, UNKNOWN, FAILS].index
    )
    for remedy in made.remedies:
        if remedy.verdict == FITS and remedy.action.startswith("shorter context"):
            flags = remedy.flags
            kept = at(name, flags["kv-cache-memory-bytes"], context=flags["max-model-len"], concurrency=concurrency)
            assert kept.verdict == FITS
