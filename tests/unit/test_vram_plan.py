# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: the guides' starts, the accounting of each version, refusals, remedies, and what holds for every plan."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import CUDA_TOTAL_MIB
from ansible_collections.gpurig.llm.plugins.module_utils.vram import engine_llama, sets
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import read_config
from ansible_collections.gpurig.llm.plugins.module_utils.vram.cards import card_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.engine_vllm import (
    accounting_of,
    graph_sizes,
    parse_version,
    shape_of,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import HeaderError, Tensor
from ansible_collections.gpurig.llm.plugins.module_utils.vram.kv import KvError
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan import plan, plan_together
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import (
    FAILS,
    FITS,
    UNKNOWN,
    Card,
    Model,
    Plan,
    PlanError,
    Request,
    Wishes,
)
from ansible_collections.gpurig.llm.tests.unit.test_vram_model import DEEPSEEK_V3, GEMMA3, LLAMA_8B, MODELS, QWEN3_MOE
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30
MIB = 1 << 20
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 24077 * MIB, capability=(8, 9), uuid="a")
RTX_3090_TI = Card("NVIDIA GeForce RTX 3090 Ti", 24114 * MIB, capability=(8, 6), uuid="b")
RTX_5070_TI = Card("NVIDIA GeForce RTX 5070 Ti", 16302 * MIB, capability=(12, 0), uuid="c")
GTX_1080 = Card("NVIDIA GeForce GTX 1080", 8110 * MIB, capability=(6, 1), uuid="d")
T4 = Card("Tesla T4", 15094 * MIB, capability=(7, 5), uuid="e")
H100 = Card("NVIDIA H100 80GB HBM3", 81234 * MIB, capability=(9, 0), uuid="f")
MISTRAL_24B = {
    "model_type": "mistral", "num_hidden_layers": 40, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "hidden_size": 5120, "intermediate_size": 32768, "vocab_size": 131072,
    "max_position_embeddings": 32768,
}  # fmt: skip
LLAMA = Model("Llama-3.1-8B", LLAMA_8B)
MISTRAL_AWQ = Model("Mistral-Small-24B AWQ", MISTRAL_24B, quantization="awq")


def ask(model: Model, *cards: Card, engine: str = "vllm", version: str | None = "0.33.0", **wishes: Any) -> Plan:
    return plan(Request(model, cards, engine, version, Wishes(**wishes)))


# --- versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "v1", "label"),
    [
        ("0.2.4", None, "V0 up to 0.2.4"),
        ("0.2.7", None, "V0 0.2.5 to 0.3"),
        ("~0.5", None, "V0 0.4 to 0.6.3"),
        ("0.6.5-dev", False, "V0 0.6.4"),
        ("0.7.2", None, "V0 from 0.6.5"),
        ("~0.8.5", True, "V1 up to 0.9.0"),
        ("0.9.2", None, "V1 0.9.1 to 0.9.2"),
        ("0.10.2", None, "V1 0.10"),
        ("0.15.2rc1", None, "V1 0.11 to 0.19"),
        (">=0.20", None, "V1 0.20 to 0.27.0"),
        ("0.33.0", None, "V1 from 0.27.1"),
        (None, None, "V1 from 0.27.1"),
    ],
)
def test_each_version_has_its_accounting(text: str | None, v1: bool | None, label: str) -> None:
    assert accounting_of(parse_version(text), v1).label == label


def test_an_unreadable_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"write it as 0\.33\.0"):
        parse_version("newest")


def test_defaults_follow_card_and_version() -> None:
    def shape(version: str, gib: float, length: int = 4096, **options: Any) -> tuple[int, int]:
        found = parse_version(version)
        made = shape_of(accounting_of(found), found, gib * GIB, length, None, None, False, **options)
        return made.max_num_seqs, made.batched_tokens

    assert shape("0.33.0", 24) == (256, 2048)
    assert shape("0.33.0", 79.3) == (1024, 8192)
    assert shape("0.33.0", 79.3, ampere_data_centre=True) == (256, 2048)
    assert shape("0.33.0", 178) == (1024, 16384)
    assert shape("0.6.4", 24, 20000) == (256, 20000)
    assert shape("0.6.3", 24, 40000) == (256, 512)
    assert shape("0.7.2", 24, 40000) == (256, 2048)


def test_graph_sizes_are_those_that_are_captured() -> None:
    assert graph_sizes(256, (0, 33, 0), True) == 51
    assert graph_sizes(256, (0, 9, 0), True) == 67
    assert graph_sizes(256, (0, 7, 0), False) == 35
    assert graph_sizes(4, (0, 33, 0), True) == 4


# --- the guides' starts ------------------------------------------------------------------------------------------


def test_a_24b_awq_fits_a_4090_with_32_sequences() -> None:
    made = ask(MISTRAL_AWQ, RTX_4090, version="0.8.5", context=16384, max_num_seqs=32, utilization=0.85)
    assert made.verdict == FITS
    assert made.flags["max-num-seqs"] == 32
    assert made.largest_context >= 16384


def test_a_72b_awq_on_two_a40_is_as_the_guide_logged_it() -> None:
    """Guide rented-multi-gpu, vLLM 0.7.2: 19.40 GiB weights, 5.66 activation, 14.63 left for KV per card.

    No row that calibrated the pool has this card, this model or a batch of 32,768 tokens.
    """
    config = {
        "model_type": "qwen2", "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "hidden_size": 8192, "intermediate_size": 29696, "vocab_size": 152064, "max_position_embeddings": 32768,
    }  # fmt: skip
    model = Model("Qwen2.5-72B-Instruct-AWQ", config, quantization="awq")
    cards = (card_named("A40"), card_named("A40", 1))
    card = ask(model, *cards, version="0.7.2", tensor_parallel=2, utilization=0.9, explicit=True).cards[0]
    assert card.parts["weights"].likely / GIB == pytest.approx(19.40, rel=0.002)
    assert card.parts["activation"].likely / GIB == pytest.approx(5.66, rel=0.01)
    assert card.pool.low / GIB < 14.63
    assert card.pool.likely / GIB == pytest.approx(14.63, rel=0.02)


def test_a_plan_chooses_what_is_left_open_and_says_why() -> None:
    made = ask(MISTRAL_AWQ, RTX_4090)
    assert made.verdict == FITS
    assert made.context == made.largest_context
    assert made.context % 1024 == 0
    assert made.flags["max-model-len"] == made.context
    words = " ".join(made.reasons)
    assert all(flag in words for flag in ("gpu-memory-utilization", "max-num-seqs", "max-model-len", "from 0.27.1"))
    assert made.concurrency >= 1


def test_the_sum_is_text_and_data() -> None:
    made = ask(LLAMA, RTX_4090, context=8192)
    data = json.loads(json.dumps(made.to_dict()))
    card = data["cards"][0]
    inside = sum(part["likely"] for part in card["parts"].values())
    assert card["budget_bytes"] - inside == pytest.approx(card["pool"]["likely"], abs=8)
    assert card["pool"]["low"] <= card["pool"]["likely"] <= card["pool"]["high"]
    assert "left for KV" in data["sum"]
    assert sum(card["weights"].values()) == card["parts"]["weights"]["likely"]
    assert data["kv_bytes_per_token"] == 131072


def test_a_too_long_context_is_refused_with_ranked_remedies() -> None:
    made = ask(LLAMA, RTX_4090, context=131072)
    assert made.verdict == FAILS
    verdicts = [remedy.verdict for remedy in made.remedies]
    assert verdicts == sorted(verdicts, key=[FITS, UNKNOWN, FAILS].index)
    actions = {remedy.action: remedy for remedy in made.remedies}
    shorter = actions[f"shorter context (context: {made.largest_context})"]
    assert shorter.verdict == FITS
    assert shorter.flags["max-model-len"] == made.largest_context
    assert any("fp8" in action for action in actions)
    assert any("llama.cpp" in action for action in actions)
    assert all(remedy.effect.startswith(remedy.verdict) for remedy in made.remedies)


def test_an_asked_context_beyond_the_model_is_refused() -> None:
    made = ask(LLAMA, H100, context=200_000)
    assert (made.verdict, "maximum of 131072" in made.reason) == (FAILS, True)


def test_all_remedies_of_two_cards() -> None:
    made = ask(Model("70B", {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672,
                             "num_attention_heads": 64}), RTX_4090, RTX_3090_TI, context=8192, concurrency=4,
               utilization=0.9, tensor_parallel=1)  # fmt: skip
    assert made.verdict == FAILS
    actions = " | ".join(remedy.action for remedy in made.remedies)
    for words in (
        "memory fraction",
        "one request",
        "leave tensor-parallel-size",
        "awq",
        "cpu-offload",
        "enforce-eager",
        "layers on the",
    ):
        assert words in actions


# --- parallel ----------------------------------------------------------------------------------------------------


def test_equal_cards_share_every_layer() -> None:
    made = ask(Model("Qwen3-30B-A3B FP8", QWEN3_MOE, quantization="fp8"), RTX_4090, RTX_3090_TI, context=8192)
    assert made.verdict == FITS
    assert made.flags["tensor-parallel-size"] == 2
    assert len(made.cards) == 2


def test_unequal_cards_share_by_layers() -> None:
    model = Model("Qwen3-30B-A3B FP8", QWEN3_MOE, quantization="fp8")
    made = ask(model, RTX_5070_TI, RTX_4090, context=8192)
    assert made.verdict == FITS
    assert "tensor-parallel-size" not in made.flags
    assert made.flags["pipeline-parallel-size"] == 2
    assert made.environment == {"VLLM_PP_LAYER_PARTITION": "20,28"}
    assert [card.card[-4:] for card in made.cards] == ["0 Ti", "4090"], "the role's order is the engine's"
    refused = ask(model, RTX_4090, RTX_5070_TI, context=8192, tensor_parallel=2)
    assert refused.verdict == FAILS
    assert "unequal" in refused.reason
    allowed = ask(model, RTX_4090, RTX_5070_TI, context=8192, tensor_parallel=2, allow_unequal=True)
    assert "unequal" not in allowed.reason


def test_pipeline_ranks_may_be_dealt_by_hand() -> None:
    model = Model("Qwen3-30B-A3B FP8", QWEN3_MOE, quantization="fp8")
    made = ask(model, RTX_5070_TI, RTX_4090, context=8192, pipeline_parallel=2, layer_partition=(17, 31))
    assert [card.layers for card in made.cards] == [(0, 17), (17, 48)]
    assert made.flags["pipeline-parallel-size"] == 2


def test_heads_must_be_divisible() -> None:
    made = ask(LLAMA, *[replace(RTX_4090, uuid=str(i)) for i in range(3)], tensor_parallel=3, context=1024)
    assert "cannot be divided" in made.reason
    made = ask(LLAMA, RTX_4090, tensor_parallel=2, context=1024)
    assert "2 x 1 cards are asked for, 1 are given" in made.reason


# --- what forbids a start ----------------------------------------------------------------------------------------


def test_old_cards_are_sent_to_llama_cpp() -> None:
    made = ask(Model("Llama AWQ", LLAMA_8B, quantization="awq"), GTX_1080, context=2048)
    assert made.verdict == FAILS
    assert "7.5" in made.reason
    assert "6.1" in made.reason
    assert [remedy.action.split()[0] for remedy in made.remedies] == ["llama.cpp"]


def test_formats_have_their_least_capability() -> None:
    made = ask(Model("gpt-oss", {**QWEN3_MOE, "model_type": "gpt_oss"}, quantization="mxfp4"), T4, context=1024)
    assert "format mxfp4 needs compute capability 8.0" in made.reason
    half = ask(Model("Llama AWQ", LLAMA_8B, quantization="awq"), T4, context=4096)
    assert half.flags["dtype"] == "half"
    assert "plugin" in ask(Model("x", LLAMA_8B, quantization="gguf_q4_k_m"), H100).reason


def test_the_start_gate_counts_free_memory() -> None:
    busy = replace(RTX_4090, free_bytes=15 * GIB)
    made = ask(MISTRAL_AWQ, busy, utilization=0.9, context=4096)
    assert made.verdict == FAILS
    assert "free" in made.reason
    roomier = ask(MISTRAL_AWQ, replace(busy, free_bytes=20 * GIB), utilization=0.9, context=4096)
    assert roomier.remedies[0].verdict == FITS


def test_headroom_stays_free() -> None:
    """A desktop on the card: its headroom is left beside the budget and all that vLLM takes outside it."""
    model = Model("small", LLAMA_8B, quantization="awq")
    for headroom in (0, 2 * GIB, 6 * GIB):
        card = ask(model, RTX_4090, context=4096, headroom_bytes=headroom).cards[0]
        outside = sum(part.high for part in card.outside.values())
        assert card.total_bytes - card.budget_bytes - outside >= headroom
    held = ask(model, replace(RTX_4090, others_bytes=6 * GIB), context=4096).cards[0]
    assert held.budget_bytes <= card.budget_bytes + 0.01 * card.total_bytes


def test_too_large_a_share_runs_out_after_the_pool() -> None:
    made = ask(LLAMA, RTX_4090, version="0.15.0", utilization=0.995, context=2048)
    assert made.verdict == FAILS
    assert "after the pool was granted" in made.reason
    tight = ask(LLAMA, RTX_4090, version="0.15.0", utilization=0.95, context=2048, max_num_seqs=256)
    assert tight.verdict == UNKNOWN


def test_unified_memory_is_not_judged() -> None:
    made = ask(LLAMA, replace(H100, unified=True), context=2048)
    assert (made.verdict, "unified" in made.reason) == (UNKNOWN, True)


def test_versions_that_count_fragmentation_are_not_promised() -> None:
    made = ask(LLAMA, H100, version="0.2.7", context=2048)
    assert made.verdict == UNKNOWN


def test_states_are_counted_beside_the_pool_before_0_11() -> None:
    mamba = Model("hybrid", {**MODELS["mamba"], "num_hidden_layers": 6})
    old = ask(mamba, H100, version="0.10.1", context=1024, max_num_seqs=1024)
    new = ask(mamba, H100, version="0.12.0", context=1024, max_num_seqs=1024)
    assert old.cards[0].parts["states"].likely == 1024 * 2 * (128 * 80 * 128 * 4 + 3 * (128 * 80 + 2048) * 2)
    assert "states" not in new.cards[0].parts


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"utilization": 1.5}, "utilization"),
        ({"context": 0}, "context"),
        ({"max_num_seqs": -1}, "max_num_seqs"),
        ({"concurrency": 0}, "concurrency"),
        ({"headroom_bytes": -1}, "headroom_bytes"),
    ],
)
def test_impossible_wishes_are_refused(wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        ask(LLAMA, RTX_4090, **wishes)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(PlanError, match="at least one card"):
        ask(LLAMA)
    with pytest.raises(PlanError, match="known are vllm"):
        ask(LLAMA, RTX_4090, engine="sglang")
    with pytest.raises(PlanError, match="total of"):
        ask(LLAMA, Card("x", 0))
    with pytest.raises(HeaderError, match="no tensor"):
        ask(Model("x", LLAMA_8B, ()), RTX_4090)


def test_headers_are_preferred_and_quantize_online() -> None:
    tensors = (Tensor("model.layers.0.mlp.up_proj.weight", "BF16", (1 << 14, 1 << 15), 1 << 30),)
    plain = ask(Model("x", LLAMA_8B, tensors), RTX_4090, context=1024)
    online = ask(Model("x", LLAMA_8B, tensors, "fp8"), RTX_4090, context=1024)
    assert plain.cards[0].weights["mlp"] == 2 * online.cards[0].weights["mlp"]
    assert online.flags["quantization"] == "fp8"


# --- what holds for every plan -----------------------------------------------------------------------------------

DEMANDS = {
    "context": lambda wishes, more: {"context": min(wishes.context + 1024 * more, 131072)},
    "concurrency": lambda wishes, more: {"concurrency": wishes.concurrency + more},
    "headroom": lambda wishes, more: {"headroom_bytes": wishes.headroom_bytes + more * 256 * MIB},
    "sequences": lambda wishes, more: {"max_num_seqs": (wishes.max_num_seqs or 256) + 8 * more},
    "batch": lambda wishes, more: {"max_num_batched_tokens": (wishes.max_num_batched_tokens or 2048) + 512 * more},
}


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["llama", "window", "moe", "hybrid", "mamba"]),
    scheme=st.sampled_from(["", "awq", "fp8"]),
    card=st.sampled_from([RTX_4090, RTX_5070_TI, T4, H100]),
    version=st.sampled_from(["0.7.2", "0.9.0", "0.10.2", "0.15.0", "0.21.0", "0.33.0"]),
    context=st.integers(1, 64).map(lambda count: count * 1024),
    sequences=st.sampled_from([None, 4, 64]),
    batch=st.sampled_from([None, 4096]),
    utilization=st.sampled_from([None, 0.8, 0.9]),
    demand=st.sampled_from(sorted(DEMANDS)),
    more=st.integers(1, 40),
)
def test_a_refusal_never_becomes_a_fit_by_asking_for_more(
    name: str, scheme: str, card: Card, version: str, context: int, sequences: int | None, batch: int | None,
    utilization: float | None, demand: str, more: int,
) -> None:  # fmt: skip
    wishes = Wishes(
        context=context, max_num_seqs=sequences, max_num_batched_tokens=batch, utilization=utilization,
    )  # fmt: skip
    model = Model(name, MODELS[name], quantization=scheme)
    base = replace(wishes, max_num_seqs=sequences or 256) if demand == "sequences" else wishes
    base = replace(base, max_num_batched_tokens=batch or 2048) if demand == "batch" else base
    first = plan(Request(model, (card,), version=version, wishes=base), with_remedies=False)
    asked = replace(base, **DEMANDS[demand](base, more))
    raised = plan(Request(model, (card,), version=version, wishes=asked), with_remedies=False)
    assert first.fits or not raised.fits


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(MODELS)), tp=st.sampled_from([1, 2, 4]), scheme=st.sampled_from(["", "awq", "fp8"]))
def test_more_cards_never_need_more_each(name: str, tp: int, scheme: str) -> None:
    cards = tuple(replace(H100, uuid=str(index)) for index in range(8))
    heads = max(layer.attention.q_heads for layer in read_config(MODELS[name]).layers)
    if heads % (2 * tp):
        return
    model = Model(name, MODELS[name], quantization=scheme)
    few, many = (
        plan(Request(model, cards, wishes=Wishes(context=4096, tensor_parallel=count, utilization=0.9)), False)
        for count in (tp, 2 * tp)
    )
    assert many.cards[0].parts["weights"].likely <= few.cards[0].parts["weights"].likely
    assert many.need_bytes <= few.need_bytes


# --- several on one card -----------------------------------------------------------------------------------------


def test_instances_on_one_card_are_planned_together() -> None:
    small = Model("small", {**LLAMA_8B, "num_hidden_layers": 16}, quantization="awq")
    wishes = Wishes(context=4096, max_num_seqs=8)
    made = plan_together([Request(small, (RTX_4090,), wishes=wishes), Request(small, (RTX_4090,), wishes=wishes)])
    assert [each.verdict for each in made] == [FITS, FITS]
    assert sum(each.cards[0].budget_bytes for each in made) < RTX_4090.total_bytes
    assert all(each.flags["gpu-memory-utilization"] < 0.5 for each in made)
    crowd = plan_together([Request(LLAMA, (RTX_4090,), wishes=wishes), Request(LLAMA, (RTX_4090,), wishes=wishes)])
    assert [each.verdict == FITS for each in crowd] == [True, False]


# --- llama.cpp ---------------------------------------------------------------------------------------------------


def test_llama_cpp_takes_what_vllm_cannot() -> None:
    made = ask(Model("Llama Q4", LLAMA_8B, quantization="gguf_q4_k_m"), GTX_1080, engine="llama_cpp", context=8192)
    assert made.verdict == FITS
    assert made.flags["ctx-size"] == 8192
    assert made.cards[0].parts["kv"].likely == GIB


def test_llama_cpp_keeps_some_layers_on_the_processor() -> None:
    big = Model("671B", DEEPSEEK_V3, quantization="gguf_q4_k_m")
    made = ask(big, RTX_4090, engine="llama_cpp", context=4096)
    assert made.verdict == FITS
    assert 0 < made.flags["n-gpu-layers"] < 10
    assert "processor" in made.reason
    explicit = ask(big, RTX_4090, engine="llama_cpp", context=4096, explicit=True)
    assert explicit.verdict == FAILS
    assert ask(big, replace(RTX_4090, unified=True), engine="llama_cpp", context=4096).verdict == UNKNOWN


@pytest.mark.parametrize(
    ("config", "shape", "mib"),
    [
        pytest.param(LLAMA_8B, engine_llama.LlamaShape(8192), 1024, id="llama 8k"),
        pytest.param(LLAMA_8B, engine_llama.LlamaShape(1024, cache_k="iq4_nl"), 82, id="keys in 4 bit"),
        pytest.param(GEMMA3, engine_llama.LlamaShape(8192, 2), 640 + 52 * 20, id="windows of two slots"),
        pytest.param(GEMMA3, engine_llama.LlamaShape(8192, full_windows=True), 62 * 64, id="windows at full length"),
        pytest.param(DEEPSEEK_V3, engine_llama.LlamaShape(4096), 61 * 576 * 4096 * 2 / MIB, id="latent vectors"),
    ],
)
def test_llama_cpp_kv_buffers(config: dict[str, Any], shape: engine_llama.LlamaShape, mib: float) -> None:
    assert engine_llama.kv_bytes(read_config(config), shape) / MIB == pytest.approx(mib)


def test_llama_cpp_details() -> None:
    assert engine_llama.window_cells(1024, engine_llama.LlamaShape(8192, 4, 2048)) == 6144
    assert engine_llama.window_cells(128, engine_llama.LlamaShape(65536, 4, 512, unified=False)) == 4 * 768
    assert engine_llama.state_bytes(read_config(MODELS["hybrid"]), 4) / MIB == pytest.approx(301, abs=1)
    with pytest.raises(KvError, match="known are bf16"):
        engine_llama.cache_bytes("q3_k")
    tensors = [Tensor("token_embd.weight", "Q4_K", (8, 8), 100), Tensor("blk.1.attn_q.weight", "Q4_K", (8, 8), 10)]
    assert engine_llama.weights_bytes(tensors, range(2), whole=True) == 110  # a tied embedding is copied as output
    assert engine_llama.weights_bytes(tensors, range(1, 2), whole=False) == 10
    slow = engine_llama.compute_buffer(read_config(LLAMA_8B), engine_llama.LlamaShape(8192, flash_attention=False))
    assert slow.likely / MIB == pytest.approx(512 + 250.5 + 32)


def test_the_guides_sets_fit_only_at_these_contexts() -> None:
    """The guide sums A to 17.3, B to 18.3 and C to 20 GB and leaves the context out."""
    found = {}
    for letter in "ABC":
        models = sets.guide_set(letter)
        one = engine_llama.LlamaShape(4096, 1, unified=False)
        four = replace(one, slots=4)
        reserve = 2 * GIB  # OLLAMA_GPU_OVERHEAD of the guide
        found[letter] = (
            sets.plan_set(models, RTX_4090.total_bytes, one).verdict,
            sets.plan_set(models, RTX_4090.total_bytes - reserve, four).verdict,
        )
        assert sets.plan_set(models, RTX_4090.total_bytes, one).largest_context > 8192
    assert found == {"A": (FITS, UNKNOWN), "B": (FITS, FITS), "C": (FITS, FAILS)}
    loaded = sets.plan_set(sets.guide_set("A"), RTX_4090.total_bytes, engine_llama.LlamaShape(4096), max_loaded=2)
    assert loaded.verdict == FAILS
    assert "at most 2" in loaded.to_dict()["reason"]
    assert set(loaded.to_dict()["models"]) == {"deepseek-r1:7b", "qwen2.5-coder:7b", "phi3.5:3.8b"}


# --- cards by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mib", "capability"),
    [
        ("RTX 4090", 24077, (8, 9)),
        ("NVIDIA GeForce RTX 3090", 24146, (8, 6)),
        ("rtx 3090 ti", 24114, (8, 6)),
        ("T4", 15094, (7, 5)),
        ("L4", 22569, (8, 9)),
        ("A100-SXM4-40GB", 40438, (8, 0)),
        ("A100 80GB PCIe", 79.15 * 1024, (8, 0)),
        ("H100", 81234, (9, 0)),
        ("RTX 5090", 32154, (12, 0)),
        ("RTX A6000", 48 * 1024 * 0.91, (8, 6)),
        ("NVIDIA GeForce RTX 5070 Ti", 16 * 1024 * 0.91, (12, 0)),
    ],
)
def test_cards_are_found_by_name(name: str, mib: float, capability: tuple[int, int]) -> None:
    card = card_named(name)
    assert (card.total_bytes // MIB, card.capability) == (mib // 1, capability)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RTX 50", "not in the catalogue"),
        ("RTX 3080", "not in the catalogue"),
        ("A100", "several"),
        ("RTX 9999", "not in the catalogue"),
        ("", "not in the catalogue"),
    ],
)
def test_unknown_cards_are_refused_with_the_known_ones(name: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        card_named(name)


def test_every_card_of_the_catalogue_has_a_capability() -> None:
    assert [name for name in CUDA_TOTAL_MIB if card_named(name).capability is None] == []
