# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights and KV of well-known models against published figures, and what must hold for every model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import (
    Architecture,
    ConfigError,
    read_config,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import Tensor
from ansible_collections.gpurig.llm.plugins.module_utils.vram.kv import KvError, KvLayout, layout
from ansible_collections.gpurig.llm.plugins.module_utils.vram.tensors import (
    Quantization,
    derive,
    quantization_named,
    read_quantization,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vram.weights import (
    LoadRules,
    Split,
    allocated,
    partition_layers,
    weights_per_rank,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30
LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
QWEN3_MOE = {
    "model_type": "qwen3_moe", "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
    "head_dim": 128, "hidden_size": 2048, "intermediate_size": 6144, "vocab_size": 151936, "num_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 768, "max_position_embeddings": 40960,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "hidden_size": 7168, "intermediate_size": 18432, "vocab_size": 129280, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1, "first_k_dense_replace": 3,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "max_position_embeddings": 163840,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "model_type": "gemma3_text", "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "vocab_size": 262208, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 896},
}  # fmt: skip
QWEN_NEXT = {
    "model_type": "qwen3_next", "num_hidden_layers": 48, "num_attention_heads": 16, "num_key_value_heads": 2,
    "head_dim": 256, "hidden_size": 2048, "intermediate_size": 5120, "vocab_size": 151936, "num_experts": 512,
    "num_experts_per_tok": 10, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "max_position_embeddings": 262144,
}  # fmt: skip
NEMOTRON = {
    "model_type": "nemotron_h", "num_hidden_layers": 6, "num_attention_heads": 40, "num_key_value_heads": 8,
    "head_dim": 128, "hidden_size": 4480, "intermediate_size": 15680, "vocab_size": 131072,
    "hybrid_override_pattern": "M-M*-E", "mamba_num_heads": 128, "mamba_head_dim": 80, "ssm_state_size": 128,
    "n_groups": 8, "conv_kernel": 4, "n_routed_experts": 8, "moe_intermediate_size": 1856,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_8B,
    "moe": QWEN3_MOE,
    "mla": DEEPSEEK_V3,
    "window": GEMMA3,
    "hybrid": QWEN_NEXT,
    "mamba": NEMOTRON,
}


def elements(tensors: list[Tensor]) -> int:
    return sum(tensor.elements for tensor in tensors)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        pytest.param("llama", 8.030, id="Llama-3.1-8B"),
        pytest.param("moe", 30.532, id="Qwen3-30B-A3B"),
        pytest.param("mla", 671.03, id="DeepSeek-V3 without its draft layer"),
        pytest.param("window", 27.43, id="Gemma-3-27B with its vision tower"),
        pytest.param("hybrid", 79.67, id="Qwen3-Next-80B"),
    ],
)
def test_derived_tensors_have_the_published_parameter_count(name: str, billions: float) -> None:
    found = elements(derive(read_config(MODELS[name]), Quantization())) / 1e9
    assert found == pytest.approx(billions, rel=0.002)


def like(
    model_type: str, layers: int, heads: int, kv_heads: int, hidden: int, width: int, words: int, **more: Any
) -> Any:
    return {
        "model_type": model_type, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_size": hidden, "intermediate_size": width, "vocab_size": words, **more,
    }  # fmt: skip


NEMOTRON_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
MAMBA2 = {"mamba_num_heads": 128, "mamba_head_dim": 80, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4}
PUBLISHED: dict[str, tuple[float, dict[str, Any]]] = {
    "Mixtral 8x7B": (46.70, like("mixtral", 32, 32, 8, 4096, 14336, 32000, num_local_experts=8)),
    "Phi-4": (14.66, like("phi3", 40, 40, 10, 5120, 17920, 100352)),
    "Gemma 2 27B": (27.23, like("gemma2", 46, 32, 16, 4608, 36864, 256000, head_dim=128, sliding_window=4096)),
    "GLM-4.5-Air": (
        106.85,
        like(
            "glm4_moe", 46, 96, 8, 4096, 10944, 151552, head_dim=128, moe_intermediate_size=1408, n_routed_experts=128,
            n_shared_experts=1, first_k_dense_replace=1, attention_bias=True,
        ),
    ),
    "Llama 4 Scout, text": (
        107.77,
        like(
            "llama4_text", 48, 40, 8, 5120, 8192, 202048, head_dim=128, intermediate_size_mlp=16384,
            num_local_experts=16, attention_chunk_size=8192,
        ),
    ),
    "Command R": (34.98, like("cohere", 40, 64, 64, 8192, 22528, 256000)),
    "DeepSeek V2 Lite": (
        15.71,
        like(
            "deepseek_v2", 27, 16, 16, 2048, 10944, 102400, n_routed_experts=64, moe_intermediate_size=1408,
            n_shared_experts=2, first_k_dense_replace=1, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128,
            v_head_dim=128,
        ),
    ),
    "Qwen1.5 MoE": (
        14.32,
        like(
            "qwen2_moe", 24, 16, 16, 2048, 5632, 151936, num_experts=60, moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
        ),
    ),
    "gpt-oss 120B": (
        116.83,
        like("gpt_oss", 36, 64, 8, 2880, 2880, 201088, head_dim=64, num_local_experts=128, sliding_window=128),
    ),
    "MiniMax M2": (228.69, like("minimax_m2", 62, 48, 8, 3072, 1536, 200064, head_dim=128, num_local_experts=256)),
    "Nemotron Nano 9B v2": (
        8.89,
        like("nemotron_h", 56, 40, 8, 4480, 15680, 131072, head_dim=128, hybrid_override_pattern=NEMOTRON_9B, **MAMBA2),
    ),
    "Qwen3 32B": (32.76, like("qwen3", 64, 64, 8, 5120, 25600, 151936, head_dim=128)),
    "Falcon 7B": (
        6.92, {**like("falcon", 32, 71, 1, 4544, 0, 65024, tie_word_embeddings=True), "num_key_value_heads": None,
               "multi_query": True},
    ),
    "StarCoder2 7B": (7.17, like("starcoder2", 32, 36, 4, 4608, 18432, 49152, tie_word_embeddings=True)),
    "Granite 3.3 8B": (8.17, like("granite", 40, 32, 8, 4096, 12800, 49159, tie_word_embeddings=True)),
    "Llama 3.2 1B": (1.236, like("llama", 16, 32, 8, 2048, 8192, 128256, head_dim=64, tie_word_embeddings=True)),
    "OLMoE": (6.92, like("olmoe", 16, 16, 16, 2048, 1024, 50304, num_experts=64)),
    "Gemma 3n E4B, text": (
        6.87,
        like(
            "gemma3n_text", 35, 8, 2, 2048, 16384, 262400, head_dim=256, hidden_size_per_layer_input=256,
            vocab_size_per_layer_input=262144, num_kv_shared_layers=15, tie_word_embeddings=True,
        ),
    ),
}  # fmt: skip
"""Billions of parameters as their makers or model pages state them; none of these served to calibrate anything."""


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_models_that_nothing_was_fitted_to_have_their_published_size(name: str) -> None:
    billions, config = PUBLISHED[name]
    assert elements(derive(read_config(config), Quantization())) / 1e9 == pytest.approx(billions, rel=0.006)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)), st.data(),
    st.one_of(st.none(), st.booleans(), st.integers(-5, 1 << 40), st.floats(), st.text(max_size=9),
              st.lists(st.integers(-1, 9), max_size=3), st.dictionaries(st.text(max_size=3), st.integers())),
)  # fmt: skip
def test_any_config_ends_in_a_shape_or_in_words(name: str, data: st.DataObject, value: Any) -> None:
    config = dict(MODELS[name].get("text_config", MODELS[name]))
    config[data.draw(st.sampled_from([*sorted(config), "layer_types", "rope_scaling", "quantization_config"]))] = value
    try:
        arch = read_config(config)
        quantization = read_quantization(config)
        weights_per_rank(derive(arch, quantization), arch, quantization)
        layout(arch)
    except (ConfigError, KvError) as error:
        assert str(error)


def test_every_layer_kind_is_recognised() -> None:
    assert read_config(GEMMA3).kinds() == {"sliding": 52, "full": 10}
    assert read_config(QWEN_NEXT).kinds() == {"linear": 36, "full": 12}
    assert read_config(DEEPSEEK_V3).kinds() == {"mla": 61}
    assert read_config(NEMOTRON).kinds() == {"mamba": 2, "none": 3, "full": 1}
    mistral = {**LLAMA_8B, "sliding_window": 4096}
    assert read_config(mistral).kinds() == {"sliding": 32}
    assert read_config({**mistral, "use_sliding_window": False}).kinds() == {"full": 32}
    assert read_config({**mistral, "use_sliding_window": True, "max_window_layers": 30}).kinds() == {
        "full": 30,
        "sliding": 2,
    }
    assert read_config({**mistral, "layer_types": ["chunked_attention"] * 8 + ["attention"] * 24}).kinds() == {
        "sliding": 8,
        "full": 24,
    }


def test_layer_pruned_models_have_layers_without_attention() -> None:
    blocks = [{"attention": {"n_heads_in_group": 4}}, {"attention": {"no_op": True}}, {"attention": None}]
    arch = read_config({**LLAMA_8B, "num_hidden_layers": 3, "block_configs": blocks})
    assert [(layer.attention.kind, layer.attention.kv_heads) for layer in arch.layers] == [
        ("full", 8),
        ("none", 0),
        ("full", 8),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"num_hidden_layers": None}, "num_hidden_layers", id="no layers"),
        pytest.param({"num_hidden_layers": 0}, "above zero", id="zero layers"),
        pytest.param({"num_hidden_layers": 1 << 40}, "up to 4096", id="a trillion layers"),
        pytest.param({"hidden_size": "4096"}, "hidden_size", id="text"),
        pytest.param({"hidden_size": True}, "hidden_size", id="bool"),
        pytest.param({"num_key_value_heads": -8}, "num_key_value_heads", id="negative"),
        pytest.param({"num_attention_heads": None}, "num_attention_heads", id="no heads"),
        pytest.param({"layer_types": ["full_attention"]}, "layer_types has 1", id="short layer_types"),
    ],
)
def test_an_impossible_config_is_refused_by_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_config({**LLAMA_8B, **change})


def test_a_picture_model_without_vision_config_says_so() -> None:
    config = {**LLAMA_8B, "architectures": ["SomeForConditionalGeneration"]}
    assert "vision tower" in read_config(config).incomplete[0]
    assert read_config(config, vision_parameters=10).vision is not None


# --- quantization ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, ("awq", 4, 128)),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, ("gptq", 8, 0)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8_block", 8, 128)),
        ({"quant_method": "fp8"}, ("fp8", 8, 0)),
        ({"quant_method": "mxfp4"}, ("mxfp4", 4, 32)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, ("int8_bnb", 8, 0)),
        ({"quant_method": "bitsandbytes"}, ("bnb4", 4, 64)),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, ("nvfp4", 4, 16)),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
            },
            ("wna16", 4, 32),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}, "input_activations": {"a": 1}}},
            },
            ("int8", 8, 0),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
            },
            ("fp8", 8, 0),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"g": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            ("nvfp4", 4, 16),
        ),
        (None, ("none", 16, 0)),
    ],
)
def test_quantization_is_read_from_the_config(given: dict[str, Any] | None, wanted: tuple[str, int, int]) -> None:
    for config in ({"quantization_config": given}, {"text_config": {"quantization_config": given}}):
        found = read_quantization(config)
        assert (found.scheme, found.bits, found.group) == wanted


def test_unknown_quantization_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="known are awq"):
        quantization_named("q5")
    with pytest.raises(ConfigError, match="config_groups"):
        read_quantization({"quantization_config": {"quant_method": "compressed-tensors"}})
    with pytest.raises(ConfigError, match="not known without its header"):
        derive(read_config(LLAMA_8B), quantization_named("gguf_iq1_s"))


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        pytest.param("awq", 4 + 20 / 128, id="awq: 16-bit scale and 4-bit zero per 128"),
        pytest.param("w4a16", 4 + 16 / 128, id="w4a16: 16-bit scale per 128"),
        pytest.param("nvfp4", 4.5, id="nvfp4: 8-bit scale per 16"),
        pytest.param("bitsandbytes", 4 + 8 / 64 + 32 / 256 / 64, id="nf4: nested scales"),
        pytest.param("fp8", 8 + 32 / 128**2, id="fp8: 32-bit scale per block"),
        pytest.param("w8a8", 8, id="int8"),
    ],
)
def test_bits_per_quantized_weight(scheme: str, bits: float) -> None:
    tensors = derive(read_config(LLAMA_8B), quantization_named(scheme))
    up = [t for t in tensors if t.name.startswith("model.layers.0.mlp.up_proj")]
    assert sum(t.size_bytes for t in up) * 8 / (14336 * 4096) == pytest.approx(bits, rel=0.002)
    head = next(t for t in tensors if t.name.startswith("lm_head"))
    assert head.dtype == "BF16"


@pytest.mark.parametrize(
    ("kind", "size_gb"),
    [
        pytest.param("q4_k_m", 4.92, id="Q4_K_M"),
        pytest.param("q8_0", 8.54, id="Q8_0"),
        pytest.param("f16", 16.06, id="F16"),
        pytest.param("q5_k_m", 5.73, id="Q5_K_M"),
        pytest.param("q4_k_s", 4.69, id="Q4_K_S"),
    ],
)
def test_gguf_files_have_the_published_size(kind: str, size_gb: float) -> None:
    tensors = derive(read_config(LLAMA_8B), quantization_named(f"gguf_{kind}"))
    assert sum(t.size_bytes for t in tensors) / 1e9 == pytest.approx(size_gb, rel=0.01)


# --- weights on cards --------------------------------------------------------------------------------------------


def weights(
    config: dict[str, Any], scheme: str = "", split: Split | None = None, rules: LoadRules | None = None
) -> float:
    arch, quantization = read_config(config), quantization_named(scheme)
    return weights_per_rank(derive(arch, quantization), arch, quantization, split, rules)[0].total_bytes / GIB


def test_llama_8b_is_what_vllm_prints() -> None:
    assert weights(LLAMA_8B) == pytest.approx(14.9888, abs=0.0001)  # vllm-project/vllm#10517


def test_headers_and_config_agree() -> None:
    arch = read_config(QWEN3_MOE)
    tensors = derive(arch, quantization_named("fp8"))
    stored = [
        Tensor(t.name.replace("*", str(number)), t.dtype, t.shape, t.size_bytes // t.count)
        for t in tensors
        for number in range(t.count)
    ]
    one = weights_per_rank(tensors, arch, quantization_named("fp8"), Split(4))
    other = weights_per_rank(stored, arch, quantization_named("fp8"), Split(4))
    assert one == other


def test_what_an_engine_does_not_load_is_not_counted() -> None:
    arch = read_config({**LLAMA_8B, "tie_word_embeddings": True})
    tensors = derive(arch, Quantization())
    extra = [
        Tensor("lm_head.weight", "BF16", (128256, 4096), 128256 * 4096 * 2),
        Tensor("model.layers.32.self_attn.q_proj.weight", "BF16", (4096, 4096), 1 << 25),
        Tensor("mtp.layers.0.q_proj.weight", "BF16", (4096, 4096), 1 << 25),
        Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (64,), 256),
    ]
    plain = weights_per_rank(tensors, arch, Quantization())
    assert weights_per_rank([*tensors, *extra], arch, Quantization()) == plain


def test_fused_and_vision_tensors_are_placed() -> None:
    arch = read_config(LLAMA_8B)
    fused = [
        Tensor("model.layers.0.self_attn.qkv_proj.weight", "BF16", (6144, 4096), 6144 * 4096 * 2),
        Tensor("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", (32, 10, 90), 28800),
        Tensor("visual.blocks.0.attn.qkv.weight", "F32", (3840, 1280), 3840 * 1280 * 4),
    ]
    whole, half = (weights_per_rank(fused, arch, Quantization(), Split(tp))[0].parts for tp in (1, 2))
    assert half["attention"] * 2 == whole["attention"] == 6144 * 4096 * 2
    assert half["experts"] * 2 == whole["experts"] == 28800
    assert whole["vision"] == 3840 * 1280 * 2  # loaded in the model's dtype


def test_an_engine_can_quantize_while_loading() -> None:
    arch = read_config(LLAMA_8B)
    tensors = derive(arch, Quantization())
    online = weights_per_rank(tensors, arch, Quantization(), rules=LoadRules(online_fp8=True))[0]
    linear = (8_030_261_248 - 2 * 128256 * 4096) / GIB
    assert online.total_bytes / GIB == pytest.approx(linear + 2 * 128256 * 4096 * 2 / GIB, rel=0.01)


def test_pipeline_ranks_hold_their_layers() -> None:
    assert partition_layers(10, Split(1, 4)) == [(0, 2), (2, 5), (5, 8), (8, 10)]
    arch = read_config(LLAMA_8B)
    first, last = weights_per_rank(derive(arch, Quantization()), arch, Quantization(), Split(1, 2, (8, 24)))
    assert (first.layers, last.layers) == ((0, 8), (8, 32))
    assert first.parts["embedding"] == last.parts["head"] == 128256 * 4096 * 2
    assert 3 * first.parts["mlp"] == last.parts["mlp"]
    with pytest.raises(ValueError, match="does not cover"):
        partition_layers(10, Split(1, 2, (4, 4)))


def test_mla_keeps_copies_of_its_projections() -> None:
    none, split, absorbed = (
        weights(DEEPSEEK_V3, "fp8", Split(8), LoadRules(mla_copies=kind)) for kind in ("none", "split", "absorbed")
    )
    assert split - none == pytest.approx(61 * 16 * 256 * 512 * 2 / GIB)
    assert absorbed > split


def test_mxfp4_experts_grow_to_the_kernel_tiles() -> None:
    config = {
        "model_type": "gpt_oss", "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8,
        "head_dim": 64, "hidden_size": 2880, "intermediate_size": 2880, "vocab_size": 201088, "sliding_window": 128,
        "num_local_experts": 32, "num_experts_per_tok": 4,
    }  # fmt: skip
    plain = weights(config, "mxfp4", rules=LoadRules(mxfp4_padding=False))
    assert weights(config, "mxfp4") / plain == pytest.approx(1.07, abs=0.01)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        pytest.param(100, 512, id="small blocks are whole 512s"),
        pytest.param(3 << 20, 3 << 20, id="below 10 MiB they share a segment"),
        pytest.param((11 << 20) + 512, 12 << 20, id="a short rest stays"),
        pytest.param((10 << 20) + 512, (10 << 20) + 512, id="a long rest is given back"),
    ],
)
def test_the_allocator_rounds(size: int, wanted: int) -> None:
    assert allocated(size) == wanted


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("scheme", ["", "awq", "fp8"])
def test_more_tensor_parallel_never_needs_more_weights(name: str, scheme: str) -> None:
    arch, quantization = read_config(MODELS[name]), quantization_named(scheme)
    tensors = derive(arch, quantization)
    totals = [weights_per_rank(tensors, arch, quantization, Split(tp))[0].total_bytes for tp in (1, 2, 4, 8, 16)]
    assert totals == sorted(totals, reverse=True)


# --- KV ----------------------------------------------------------------------------------------------------------


def kv(name: str, **wishes: Any) -> KvLayout:
    return layout(read_config(MODELS[name]), **wishes)


def test_bytes_per_token_of_known_models() -> None:
    assert kv("llama").bytes_per_token == 131072
    assert kv("llama", tp=8).bytes_per_token == 16384
    assert kv("llama", tp=16).bytes_per_token == 16384  # heads are replicated
    assert kv("llama", kv_dtype="fp8").bytes_per_token == 65536
    assert kv("mla", tp=8).bytes_per_token == 61 * 576 * 2  # tensor parallel does not divide a latent vector
    assert kv("window", windows=False).bytes_per_token == 62 * 8192
    sparse = read_config({**DEEPSEEK_V3, "index_head_dim": 128})
    assert layout(sparse).bytes_per_token == 61 * (576 * 2 + 132)


def test_sliding_layers_keep_their_window() -> None:
    found = kv("window")
    assert sorted((group.kind, group.layers) for group in found.groups) == [("full", 10)] + [("sliding", 10)] * 6
    assert found.blocks(109.86 * GIB) == 89997  # the log of a start prints 89,994 from the unrounded size
    assert found.tokens(109.86 * GIB) == 205696
    assert found.concurrency(109.86 * GIB, 4096, 8192) == pytest.approx(50.05, abs=0.01)


def test_a_state_fits_into_an_enlarged_block() -> None:
    config = {
        "model_type": "qwen3_5_text", "num_hidden_layers": 64, "num_attention_heads": 24, "num_key_value_heads": 4,
        "head_dim": 256, "hidden_size": 5120, "intermediate_size": 17408, "vocab_size": 248320,
        "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    found = layout(read_config(config))
    assert {group.block_tokens for group in found.groups if group.kind == "full"} == {784}
    assert [group.kind for group in found.groups].count("state") == 3
    assert found.blocks_of_request(32768, 2048) == 42 + 3


def test_mamba_states_are_shared_out() -> None:
    found = kv("mamba")
    assert found.state_bytes == 2 * (128 * 80 * 128 * 4 + 3 * (128 * 80 + 2 * 8 * 128) * 2)
    assert found.bytes_per_token == 2 * 8 * 128 * 2


def test_layers_that_share_a_cache_cost_nothing() -> None:
    shared = read_config({**LLAMA_8B, "num_kv_shared_layers": 12})
    assert layout(shared).bytes_per_token == 20 * 4096


def test_context_parallel_divides_the_tokens() -> None:
    one, eight = kv("mla"), kv("mla", ranks=8)
    assert eight.tokens(40 * GIB) == 8 * one.tokens(40 * GIB)
    assert eight.blocks_of_request(128_000, 2048) == 1000


def test_unknown_wishes_are_refused() -> None:
    with pytest.raises(KvError, match="known are auto"):
        kv("llama", kv_dtype="q3")
    empty = replace(read_config(LLAMA_8B), layers=())
    with pytest.raises(KvError, match="none of the model's layers"):
        layout(empty)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)), st.integers(1, 200_000), st.integers(0, 100_000), st.integers(16, 16384),
    st.sampled_from(["auto", "fp8"]), st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_more_context_never_needs_less(name: str, tokens: int, more: int, batch: int, dtype: str, tp: int) -> None:
    found = kv(name, kv_dtype=dtype, tp=tp)
    assert found.request_bytes(tokens + more, batch) >= found.request_bytes(tokens, batch)
    assert found.request_bytes(tokens, batch + more) >= found.request_bytes(tokens, batch)
    pool = found.request_bytes(tokens + more, batch)
    longest = found.max_tokens(pool, batch, 1 << 20)
    assert found.blocks_of_request(longest, batch) <= found.blocks(pool)
    assert longest >= (tokens + more) // 16 * 16


def architecture_names() -> dict[str, Architecture]:
    return {name: read_config(config) for name, config in MODELS.items()}


def test_every_model_has_a_plain_shape() -> None:
    shapes = architecture_names()
    assert [name for name, arch in shapes.items() if arch.is_moe] == ["moe", "mla", "hybrid", "mamba"]
    assert [name for name, arch in shapes.items() if arch.is_mla] == ["mla"]
