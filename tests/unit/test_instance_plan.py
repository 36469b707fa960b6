# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances of the inventory become plans, and plans become options, refusals and words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.instance_plan import (
    NOT_PLANNED,
    Asked,
    doubts_of,
    plan_instances,
    plan_text,
    shrinking_first,
    wishes_of,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import config_for
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_service import planned_instance
from ansible_collections.gpurig.llm.plugins.module_utils.vram import sets
from ansible_collections.gpurig.llm.plugins.module_utils.vram.cards import card_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.engine_llama import LlamaShape
from ansible_collections.gpurig.llm.plugins.module_utils.vram.engine_vllm import GIB
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import FAILS, FITS, Card, Model, PlanError

QWEN_7B = {
    "model_type": "qwen2", "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "hidden_size": 3584, "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16",
}  # fmt: skip
"""config.json of Qwen/Qwen2.5-7B-Instruct."""
SMALL = {
    "model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048, "max_position_embeddings": 4096,
}  # fmt: skip
CODER = Model("coder", QWEN_7B)
CARD = card_named("RTX 4090")


def asked(name: str = "chat", model: Model | None = CODER, cards: tuple[Card, ...] = (CARD,), **keys: Any) -> Asked:
    instance = {"name": name, "port": 8000, "context": 8192, "parallel": None, "task": "chat", "flags": {}, **keys}
    return Asked(instance, "cuda" if cards else "cpu", model, cards, memory_bytes=64 * GIB)


def one(request: Asked) -> dict[str, Any]:
    return plan_instances([request])[request.name]


def test_what_the_instance_leaves_open_is_chosen() -> None:
    made = one(asked())
    assert (made["verdict"], made["problem"]) == (FITS, "")
    assert 0.5 < made["flags"]["gpu-memory-utilization"] <= 0.95
    assert made["flags"]["max-num-batched-tokens"] > 0
    assert made["parallel"] > 0
    assert made["context"] is None, "the instance says it"
    assert not {"max-model-len", "max-num-seqs"} & set(made["flags"]), "the collection writes these from keys"


def test_the_plan_s_options_pass_the_engine_s_check() -> None:
    """What the plan adds is what the role may write: no option of ours, none that vLLM does not know."""
    request = asked(context=None)
    made = one(request)
    options = config_for(planned_instance(request.instance, made), "/model", "cuda", QWEN_7B)
    assert options["max-model-len"] == made["context"] == 32768
    assert options["max-num-seqs"] == made["parallel"]
    assert options["gpu-memory-utilization"] == made["flags"]["gpu-memory-utilization"]


@pytest.mark.parametrize("spelling", ["gpu-memory-utilization", "gpu_memory_utilization"])
def test_what_the_instance_says_wins(spelling: str) -> None:
    request = asked(parallel=3, flags={spelling: 0.8, "enforce-eager": True})
    made = one(request)
    assert made["verdict"] == FITS
    assert "gpu-memory-utilization" not in made["flags"]
    assert made["parallel"] is None
    assert made["plan"]["cards"][0]["budget_bytes"] == pytest.approx(0.8 * CARD.total_bytes, rel=1e-6)
    assert planned_instance(request.instance, made)["flags"][spelling] == 0.8


def test_a_context_that_does_not_fit_is_refused_with_one_that_does() -> None:
    request = asked(context=32768, flags={"gpu-memory-utilization": 0.68})
    made = one(request)
    assert made["verdict"] == FAILS
    assert made["flags"] == {}
    fitting = made["plan"]["largest_context"]
    assert f"a context of 32768 tokens, the largest that fits is {fitting}: write context: {fitting}" in made["problem"]
    assert CARD.name in made["problem"]
    again = one(asked(context=fitting, flags={"gpu-memory-utilization": 0.68}))
    assert again["verdict"] == FITS


def test_a_model_that_is_too_large_names_what_helps() -> None:
    made = one(asked(model=Model("large", {**QWEN_7B, "num_hidden_layers": 80, "hidden_size": 8192})))
    assert made["verdict"] == FAILS
    assert made["remedies"]
    assert made["remedies"][0] in made["problem"]
    assert any("awq" in words or "llama.cpp" in words for words in made["remedies"])


def test_a_plan_that_fits_knows_what_to_do_when_the_start_fails_all_the_same() -> None:
    assert one(asked())["remedies"]


def test_a_card_that_is_too_old_is_refused() -> None:
    made = one(asked(cards=(card_named("Tesla P40"),)))
    assert made["verdict"] == FAILS
    assert "compute capability 7.5" in made["problem"]


def test_instances_on_one_card_are_planned_together() -> None:
    small = Model("small", {**QWEN_7B, "num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 8})
    pair = [asked("chat"), asked("notes", small, task="embed", context=None)]
    alone = [one(each)["plan"]["cards"][0]["budget_bytes"] for each in pair]
    made = plan_instances(pair)
    assert [each["verdict"] for each in made.values()] == [FITS, FITS]
    together = [each["plan"]["cards"][0]["budget_bytes"] for each in made.values()]
    assert sum(alone) > CARD.total_bytes > sum(together)
    assert list(made) == ["chat", "notes"]


def test_instances_on_other_cards_do_not_mind_each_other() -> None:
    other = card_named("RTX 3090 Ti")
    made = plan_instances([asked("chat"), asked("notes", cards=(other,))])
    assert made["chat"]["flags"] == one(asked("chat"))["flags"]
    assert made["notes"]["plan"]["cards"][0]["card"] == other.name


def test_a_plan_is_kept_whatever_others_do_on_the_card() -> None:
    first = plan_instances([asked()])
    busy = replace(CARD, others_bytes=3 * GIB, free_bytes=CARD.total_bytes - 3 * GIB)
    assert plan_instances([asked(cards=(busy,))], first) == first
    fresh = plan_instances([asked(cards=(busy,))])
    assert fresh["chat"]["flags"]["gpu-memory-utilization"] < first["chat"]["flags"]["gpu-memory-utilization"]


CHANGES: dict[str, Asked] = {
    "context": asked(context=4096),
    "flag": asked(flags={"enforce-eager": True}),
    "model": asked(model=Model("coder", {**QWEN_7B, "num_hidden_layers": 20})),
    "card": asked(cards=(card_named("RTX 3090 Ti"),)),
    "headroom": replace(asked(), headroom_bytes=GIB),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_plan_is_made_anew_when_what_is_asked_changes(change: str) -> None:
    first = plan_instances([asked()])
    assert plan_instances([CHANGES[change]], first)["chat"]["inputs"] != first["chat"]["inputs"]


def test_a_new_neighbour_makes_the_plan_anew() -> None:
    first = plan_instances([asked()])
    small = asked("notes", Model("small", {**QWEN_7B, "num_hidden_layers": 8}))
    both = plan_instances([asked(), small], first)
    assert both["chat"]["inputs"] != first["chat"]["inputs"]
    assert plan_instances([asked(), small], both) == both


def test_a_refused_plan_is_never_kept() -> None:
    bad = asked(context=32768, flags={"gpu-memory-utilization": 0.68})
    recorded = {"chat": {**one(bad), "reason": "what was thought before"}}
    assert plan_instances([bad], recorded)["chat"]["reason"] != "what was thought before"


UNPLANNED: dict[str, tuple[Asked, str]] = {
    "option": (asked(flags={"speculative-config": "{}"}), "does not count speculative-config"),
    "option's key": (asked(flags={"hf-overrides.rope_theta": 1}), "does not count hf-overrides.rope_theta"),
    "no card": (replace(asked(cards=()), device="cuda"), "no card is known"),
    "model": (replace(asked(model=None), why_not="it is not on this host yet"), "it is not on this host yet"),
    "no cache": (asked(model=Model("bert", {"model_type": "bert"})), ""),
    "value": (asked(flags={"quantization": "mxfp8"}), "does not count quantization"),
    "dtype": (asked(flags={"dtype": "float32"}), "does not count dtype"),
    "chunks": (asked(flags={"enable-chunked-prefill": False}), "does not count enable-chunked-prefill"),
    "kv dtype": (asked(flags={"kv-cache-dtype": "fp3"}), "fp3"),
}


@pytest.mark.parametrize("case", UNPLANNED)
def test_what_cannot_be_planned_is_said_and_not_refused(case: str) -> None:
    request, words = UNPLANNED[case]
    made = one(request)
    assert (made["verdict"], made["problem"], made["flags"], made["plan"]) == (NOT_PLANNED, "", {}, None)
    assert words in made["reason"]
    assert made["reason"]
    assert len(doubts_of([made])) == 1


def test_on_the_processor_the_pool_is_what_the_options_say() -> None:
    def cpu(**keys: Any) -> dict[str, Any]:
        return one(asked(model=Model("small", SMALL), cards=(), **keys))

    fits = cpu(context=1024, flags={"kv-cache-memory-bytes": "64M"})
    assert (fits["verdict"], fits["flags"], fits["parallel"]) == (FITS, {}, None)
    refused = cpu(context=1024, flags={"kv-cache-memory-bytes": "100K"})
    assert refused["verdict"] == FAILS
    assert "main memory" in refused["problem"]
    largest = cpu(context=4096, flags={"kv-cache-memory-bytes": "4M"})["plan"]["largest_context"]
    assert 0 < largest < 4096
    assert cpu(context=largest, flags={"kv-cache-memory-bytes": "4M"})["verdict"] == FITS
    assert cpu(context=largest + 1, flags={"kv-cache-memory-bytes": "4M"})["verdict"] == FAILS


def test_wishes_are_the_options_that_are_counted() -> None:
    flags = {"tensor_parallel_size": "2", "kv-cache-dtype": "fp8", "cpu-offload-gb": 4, "enforce-eager": False}
    wishes = wishes_of({"context": 100, "parallel": 2, "flags": flags}, 5.0)
    assert (wishes.tensor_parallel, wishes.kv_dtype, wishes.cpu_offload_bytes) == (2, "fp8", 4 * GIB)
    assert (wishes.context, wishes.max_num_seqs, wishes.enforce_eager, wishes.headroom_bytes) == (100, 2, False, 5.0)
    with pytest.raises(PlanError, match=r"flags\.tensor-parallel-size is 'two'"):
        wishes_of({"flags": {"tensor-parallel-size": "two"}})


def test_doubt_is_told_and_lets_the_start_go_on() -> None:
    def judged() -> Iterator[dict[str, Any]]:
        # Between the context that fits for sure and the one that is refused lies what nobody can know.
        surely = one(asked(context=32768, flags={"gpu-memory-utilization": 0.68}))["plan"]["largest_context"]
        for more in range(0, 24000, 1024):
            yield one(asked(context=surely + more, flags={"gpu-memory-utilization": 0.68}))

    doubtful = next(made for made in judged() if made["verdict"] == "cannot judge")
    assert doubtful["problem"] == ""
    assert doubts_of([doubtful])[0].startswith("instance chat: whether it fits cannot be said for sure")


def test_a_person_can_read_it() -> None:
    made = plan_instances([asked(), asked("notes", model=None, cards=(card_named("RTX 3090"),))])
    text = plan_text(made.values())
    assert text.startswith("chat: fits\n")
    assert "GiB may be used" in text
    assert "chosen: parallel" in text
    assert "because gpu-memory-utilization" in text
    assert "notes: not planned" in text


def test_llama_cpp_gets_as_many_layers_as_fit() -> None:
    large = Model("large", {**QWEN_7B, "num_hidden_layers": 80, "hidden_size": 8192}, None, "gguf_q4_k_m")
    made = one(asked(model=large, engine="llama_cpp", parallel=2))
    assert made["verdict"] == FITS
    assert 0 < made["flags"]["n-gpu-layers"] < 80
    assert not {"ctx-size", "parallel"} & set(made["flags"]), "the collection writes these from keys"
    all_of_them = one(asked(model=large, engine="llama_cpp", flags={"n-gpu-layers": 81}))
    assert all_of_them["verdict"] == FAILS
    on_processor = one(asked(model=large, engine="llama_cpp", cards=()))
    assert on_processor["verdict"] == NOT_PLANNED
    assert doubts_of([on_processor]) == [], "main memory is taken as it is needed"


@pytest.mark.parametrize("letter", sets.GUIDE_SETS)
def test_the_guide_s_sets_are_plan_input(letter: str) -> None:
    """The guide's own sums leave out the context; with 8192 tokens each, its sets fit on its card."""
    requests = []
    for name in sets.GUIDE_SETS[letter]:
        config, kind = sets.GUIDE_MODELS[name]
        model = Model(name, config, None, f"gguf_{kind.lower()}")
        requests.append(asked(name, model, engine="ollama", parallel=1))
    made = plan_instances(requests)
    assert {each["verdict"] for each in made.values()} == {FITS}
    whole = sets.plan_set(sets.guide_set(letter), CARD.total_bytes, LlamaShape(8192))
    assert whole.verdict == FITS, "planned as one set, too"
    assert whole.largest_context < 131072, "and there is an end to it"


# -- what people's machines are like --------------------------------------------------------------------------------
SMALL_CARD = card_named("RTX 3060")


@pytest.mark.parametrize("flags", [{"gpu-memory-utilization": "most"}, {"gpu-memory-utilization": 90}])
def test_a_value_that_no_engine_takes_is_refused(flags: dict[str, Any]) -> None:
    made = one(asked(flags=flags))
    assert made["verdict"] in {FAILS, NOT_PLANNED}
    assert "utilization" in made["problem"]


def test_an_engine_of_one_rank_is_planned_on_the_first_card_of_its_role() -> None:
    made = one(asked(cards=(SMALL_CARD, CARD), context=4096, flags={"tensor-parallel-size": 1}))
    assert made["verdict"] == FAILS, "14 GiB on 12"
    assert made["plan"]["cards"][0]["card"] == SMALL_CARD.name
    larger_first = one(asked(cards=(CARD, SMALL_CARD), context=4096))
    assert (larger_first["verdict"], larger_first["plan"]["cards"][0]["card"]) == (FITS, CARD.name)
    little = one(asked(model=Model("small", SMALL), cards=(SMALL_CARD, CARD), context=1024))
    assert any("NVIDIA GeForce RTX 4090 is larger: name it first" in reason for reason in little["plan"]["reasons"])


def test_two_instances_of_a_role_with_two_cards_are_summed_on_the_first() -> None:
    pair = (card_named("RTX 4090", 0), card_named("RTX 4090", 1))
    tight = {"tensor-parallel-size": 1}
    made = plan_instances([asked("chat", cards=pair, flags=tight), asked("two", cards=pair, flags=tight)])
    assert {each["plan"]["cards"][0]["uuid"] for each in made.values()} == {pair[0].uuid}
    assert [each["verdict"] for each in made.values()] != [FITS, FITS], "two of 14 GiB on one card of 23"


def test_open_contexts_on_a_shared_card_are_long() -> None:
    small = Model("small", {**QWEN_7B, "num_hidden_layers": 12, "hidden_size": 1024, "num_attention_heads": 8})
    made = plan_instances([asked("a", small, context=None), asked("b", small, context=None)])
    assert [each["verdict"] for each in made.values()] == [FITS, FITS]
    assert [each["context"] for each in made.values()] == [32768, 32768], "the model's own limit"
    beside_bert = plan_instances([asked(context=None), asked("notes", Model("bert", BERT), task="embed", context=None)])
    assert beside_bert["chat"]["context"] >= 8192
    assert beside_bert["notes"]["verdict"] == FITS


BERT = {
    "model_type": "bert", "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768,
    "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip


def test_an_encoder_beside_a_chat_takes_its_room() -> None:
    alone = one(asked())
    made = plan_instances([asked(), asked("notes", Model("bert", BERT), task="embed", context=None)])
    notes = made["notes"]
    assert (notes["verdict"], notes["flags"], notes["context"], notes["parallel"]) == (FITS, {}, None, None)
    share = "gpu-memory-utilization"
    assert made["chat"]["flags"][share] < alone["flags"][share] - 0.05
    hopeless = plan_instances([asked("notes", Model("bert", {**BERT, "num_hidden_layers": 4000}), task="embed")])
    assert hopeless["notes"]["verdict"] == "cannot judge"


def test_a_neighbour_that_cannot_be_summed_takes_the_plan_away_unless_it_has_a_share() -> None:
    odd = {"speculative-config": "{}"}
    made = plan_instances([asked(), asked("two", flags=odd)])
    assert made["chat"]["verdict"] == NOT_PLANNED
    assert "shares its card with two" in made["chat"]["reason"]
    with_share = plan_instances([asked(), asked("two", flags={**odd, "gpu-memory-utilization": 0.2})])
    assert with_share["chat"]["verdict"] == FITS


def test_who_gives_memory_back_starts_first() -> None:
    small = Model("small", {**QWEN_7B, "num_hidden_layers": 8})
    before = plan_instances([asked("chat", small)])
    after = plan_instances([asked("aux", small), asked("chat", small)], before)
    assert shrinking_first(after, before) == ["chat", "aux"]
    assert shrinking_first(after, after) == ["aux", "chat"]
    assert shrinking_first(before, {}) == ["chat"]


def test_what_is_not_planned_is_never_kept() -> None:
    request = replace(asked(model=None), why_not="the hub is offline")
    first = plan_instances([request])
    again = plan_instances([replace(request, why_not="the repository is gated")], first)
    assert again["chat"]["reason"] == "the repository is gated"


def test_a_forced_plan_stays_while_it_is_forced() -> None:
    bad = asked(context=32768, flags={"gpu-memory-utilization": 0.68})
    first = plan_instances([bad])
    busy = replace(bad, cards=(replace(CARD, others_bytes=GIB, free_bytes=CARD.total_bytes - GIB),))
    assert plan_instances([busy], first, keep_refused=True) == first
    assert plan_instances([busy], first) != first
    assert "Others hold 1.00 GiB of the card" in plan_instances([busy], first)["chat"]["problem"]


def test_instances_on_the_processor_share_its_memory() -> None:
    flags = {"kv-cache-memory-bytes": "10G"}
    pair = [replace(asked(name, CODER, cards=(), flags=flags), memory_bytes=40 * GIB) for name in ("a", "b")]
    made = plan_instances(pair)
    assert [each["verdict"] for each in made.values()] == [FITS, FAILS]


def test_32_bit_weights_are_loaded_as_16() -> None:
    wide = one(asked(model=Model("coder", {**QWEN_7B, "torch_dtype": "float32"})))
    assert wide["plan"]["cards"][0]["parts"]["weights"] == one(asked())["plan"]["cards"][0]["parts"]["weights"]
    assert wide["plan"]["kv_bytes_per_token"] == one(asked())["plan"]["kv_bytes_per_token"]


def test_the_longest_context_is_that_of_the_engine_s_check() -> None:
    scaled = {**QWEN_7B, "max_position_embeddings": 8192, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    assert one(asked(model=Model("long", scaled), context=32768))["verdict"] == FITS
    shorter = {**QWEN_7B, "max_sequence_length": 2048}
    assert one(asked(model=Model("short", shorter), context=None))["context"] == 2048


def test_texts_to_embed_leave_the_model_s_own_limit_to_the_engine() -> None:
    made = one(asked(model=Model("small", SMALL), task="embed", context=None))
    assert (made["verdict"], made["context"]) == (FITS, None)


def test_a_batch_bounds_the_sequences() -> None:
    assert one(asked(flags={"max-num-batched-tokens": 128}))["parallel"] <= 128
    assert one(asked(flags={"max-num-batched-tokens": "2k"}))["verdict"] == FITS


def test_models_that_need_bfloat16_are_refused_before_ampere() -> None:
    gemma = {**SMALL, "model_type": "gemma2", "head_dim": 64, "torch_dtype": "bfloat16"}
    made = one(asked(model=Model("gemma", gemma), cards=(card_named("T4"),), context=1024))
    assert made["verdict"] == FAILS
    assert "bfloat16" in made["problem"]


def test_a_wish_for_unequal_tensor_parallel_is_taken_at_its_word() -> None:
    pair = (CARD, card_named("RTX 3090"), card_named("RTX 3060"))[1:]
    made = one(asked(cards=pair, flags={"tensor-parallel-size": 2}, context=4096))
    assert len(made["plan"]["cards"]) == 2
    assert "unequal" not in made["reason"]
