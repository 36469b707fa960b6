# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several models loaded at once on one card by llama.cpp or Ollama: which sets fit, and at which context. (pure)

Sizes are bytes; a set fits when the sum of all models at the high end of their ranges stays below what the card gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .architecture import Architecture, read_config
from .engine_llama import LlamaShape, LlamaSum, sum_on_card
from .engine_vllm import GIB
from .headers import Tensor
from .tensors import derive, quantization_named

STEP = 256


@dataclass(frozen=True)
class SetModel:
    """One model of a set: its shape and its tensors as the file stores them."""

    name: str
    arch: Architecture
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class SetPlan:
    """Whether a set fits. `largest_context`: tokens per slot for each model at which it still does; 0: none does.

    `verdict`: fits, does not fit, cannot judge (between the likely and the high sum).
    """

    verdict: str
    reason: str
    context: int
    largest_context: int
    total_bytes: float
    available_bytes: float
    models: Mapping[str, LlamaSum]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; sizes in bytes."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "context": self.context,
            "largest_context": self.largest_context,
            "available_bytes": round(self.available_bytes),
            "high_bytes": round(self.total_bytes),
            "models": {
                name: {
                    "weights": part.weights_bytes,
                    "kv": part.kv_bytes,
                    "state": part.state_bytes,
                    "compute": part.compute.to_dict(),
                    "cuda": part.cuda.to_dict(),
                }
                for name, part in self.models.items()
            },
        }


def model_from_config(name: str, config: Mapping[str, Any], gguf_type: str) -> SetModel:
    """A model of a set from its config.json and GGUF file type. Raises ConfigError."""
    arch = read_config(config)
    return SetModel(name, arch, tuple(derive(arch, quantization_named(f"gguf_{gguf_type.lower()}"))))


def plan_set(
    models: Sequence[SetModel], available_bytes: float, shape: LlamaShape, max_loaded: int | None = None
) -> SetPlan:
    """Whether all `models` fit together, each with shape.context tokens per slot.

    `available_bytes`: the card's total less what others and a reserve (OLLAMA_GPU_OVERHEAD) take. `max_loaded`:
    OLLAMA_MAX_LOADED_MODELS; a larger set is never loaded at once. Every model is a process of its own with its own
    CUDA context.
    """
    sums = _sums(models, shape)
    likely = sum(part.total.likely for part in sums.values())
    high = sum(part.total.high for part in sums.values())
    largest = _largest_context(models, available_bytes, shape)
    if max_loaded is not None and len(models) > max_loaded:
        verdict, reason = "does not fit", f"{len(models)} models, but at most {max_loaded} are kept loaded at once"
    elif high <= available_bytes:
        verdict, reason = "fits", f"at most {high / GIB:.1f} of {available_bytes / GIB:.1f} GiB"
    elif likely <= available_bytes:
        verdict = "cannot judge"
        reason = f"likely {likely / GIB:.1f}, at most {high / GIB:.1f} of {available_bytes / GIB:.1f} GiB"
    else:
        verdict, reason = "does not fit", f"likely {likely / GIB:.1f} of {available_bytes / GIB:.1f} GiB"
    return SetPlan(verdict, reason, shape.context, largest, high, available_bytes, sums)


def _sums(models: Sequence[SetModel], shape: LlamaShape) -> dict[str, LlamaSum]:
    whole = replace(shape, context=shape.context * shape.slots)
    return {model.name: sum_on_card(model.arch, model.tensors, whole) for model in models}


def _largest_context(models: Sequence[SetModel], available_bytes: float, shape: LlamaShape) -> int:
    """Largest context per slot, a multiple of 256, at which the high sum fits, up to the smallest model's maximum."""
    limits = [model.arch.max_position for model in models if model.arch.max_position]
    low, high = 0, min(limits, default=131072) // STEP
    while low < high:
        middle = (low + high + 1) // 2
        sums = _sums(models, replace(shape, context=middle * STEP))
        if sum(part.total.high for part in sums.values()) <= available_bytes:
            low = middle
        else:
            high = middle - 1
    return low * STEP


_QWEN2 = {"model_type": "qwen2", "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072}
GUIDE_MODELS: Mapping[str, tuple[dict[str, Any], str]] = {
    "deepseek-r1:7b": (
        {**_QWEN2, "num_hidden_layers": 28, "num_attention_heads": 28, "hidden_size": 3584, "intermediate_size": 18944},
        "Q4_K_M",
    ),
    "qwen2.5-coder:7b": (
        {
            **_QWEN2,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "max_position_embeddings": 32768,
        },
        "Q4_K_M",
    ),
    "phi3.5:3.8b": (
        {
            "model_type": "phi3",
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "vocab_size": 32064,
            "max_position_embeddings": 131072,
        },
        "Q4_0",
    ),
    "deepseek-r1:14b": (
        {
            **_QWEN2,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "hidden_size": 5120,
            "intermediate_size": 13824,
        },
        "Q4_K_M",
    ),
    "deepseek-r1:32b": (
        {
            **_QWEN2,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "hidden_size": 5120,
            "intermediate_size": 27648,
        },
        "Q4_K_M",
    ),
}
"""config.json of the models that the Ollama guide names (deepseek-ai, Qwen, microsoft), and the file type it pulls."""

GUIDE_SETS: Mapping[str, tuple[str, ...]] = {
    "A": ("deepseek-r1:7b", "qwen2.5-coder:7b", "phi3.5:3.8b"),
    "B": ("deepseek-r1:14b", "qwen2.5-coder:7b"),
    "C": ("deepseek-r1:32b",),
}


def guide_set(letter: str) -> list[SetModel]:
    """The models of configuration A, B or C. Raises KeyError for another letter."""
    return [model_from_config(name, *GUIDE_MODELS[name]) for name in GUIDE_SETS[letter]]
