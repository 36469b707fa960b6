# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts of config.json from a GGUF file's metadata, so that one planner serves both formats. (pure)

Keys: ggml's docs/gguf.md and gguf-py's constants (LLM, Attention, SSM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import ConfigError
from .headers import Gguf

MODEL_TYPES = {
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "qwen3next": "qwen3_next", "gemma3": "gemma3_text",
    "gemma4": "gemma4_text", "gpt-oss": "gpt_oss", "phi2": "phi", "deepseek2": "deepseek_v3", "gptneox": "gpt_neox",
}  # fmt: skip
_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.q_lora_rank": "q_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "attention.value_length_mla": "v_head_dim",
    "attention.shared_kv_layers": "num_kv_shared_layers",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "leading_dense_block_count": "first_k_dense_replace",
    "vocab_size": "vocab_size",
    "full_attention_interval": "full_attention_interval",
}


def config_of(gguf: Gguf) -> dict[str, Any]:
    """The metadata under config.json's names. Raises ConfigError when the file names no architecture."""
    architecture = gguf.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ConfigError("the GGUF file has no general.architecture: it is no language model, or not its first part")
    config: dict[str, Any] = {"model_type": MODEL_TYPES.get(architecture, architecture), "torch_dtype": "float16"}
    for key, name in _KEYS.items():
        value = gguf.metadata.get(f"{architecture}.{key}")
        if value is not None:
            config[name] = value
    kv_heads = gguf.metadata.get(f"{architecture}.attention.head_count_kv")
    if isinstance(kv_heads, list):
        config["num_key_value_heads_per_layer"] = kv_heads
        config["num_key_value_heads"] = max([*kv_heads, 1])
    elif kv_heads is not None:
        config["num_key_value_heads"] = kv_heads
    shapes = {tensor.name: tensor.shape for tensor in gguf.tensors}
    embedding = shapes.get("token_embd.weight", ())
    if "vocab_size" not in config and len(embedding) == 2:
        config["vocab_size"] = max(embedding)
    config["tie_word_embeddings"] = "output.weight" not in shapes
    if "kv_lora_rank" in config:
        config |= _mla(gguf.metadata, architecture)
    elif "qk_rope_head_dim" in config:
        del config["qk_rope_head_dim"]
    if config["model_type"] == "qwen3_next":
        config |= _delta_net(gguf.metadata, architecture)
    return config


def _mla(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """MLA keeps the head's width under another key once the file stores latents."""
    width = metadata.get(f"{architecture}.attention.key_length_mla")
    rope = metadata.get(f"{architecture}.rope.dimension_count")
    if isinstance(width, int) and isinstance(rope, int) and width > rope:
        return {"qk_nope_head_dim": width - rope, "head_dim": width}
    return {}


def _delta_net(metadata: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Gated delta nets under the names of state space models (gguf-py: SSM)."""
    state = metadata.get(f"{architecture}.ssm.state_size", 128)
    v_heads = metadata.get(f"{architecture}.ssm.time_step_rank", 32)
    inner = metadata.get(f"{architecture}.ssm.inner_size", 4096)
    return {
        "linear_num_key_heads": metadata.get(f"{architecture}.ssm.group_count", 16),
        "linear_num_value_heads": v_heads,
        "linear_key_head_dim": state,
        "linear_value_head_dim": inner // v_heads if v_heads else state,
        "linear_conv_kernel_dim": metadata.get(f"{architecture}.ssm.conv_kernel", 4),
        "full_attention_interval": metadata.get(f"{architecture}.full_attention_interval", 4),
    }
