# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What llama.cpp and Ollama take on one card: model buffer, KV cache, states, compute buffer, CUDA context. (pure)

Sizes are bytes. KV sizes follow llama.cpp, src/llama-kv-cache.cpp and llama-kv-cache-iswa.cpp, and match logged buffers
to the printed digit; the compute buffer and what CUDA itself takes are ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from .architecture import Architecture
from .engine_vllm import MIB, Range, exactly, gib
from .headers import Tensor
from .kv import KvError

CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
"""Bytes per stored number by --cache-type-k/-v: ggml's block sizes."""
CELL_STEP = 256
"""Caches are padded to whole 256 cells (llama.cpp, llama_kv_cache::get_padding with flash attention)."""
DEFAULT_UBATCH = 512
CUDA = (0.35, 0.8, 1.5)
"""GiB of CUDA context, cuBLAS and memory pools on a card that nobody else uses; NVIDIA's own context is 0.3 to 0.5."""
STATE_BYTES = 4
"""Recurrent states are kept in 32 bit (llama.cpp, llama-memory-recurrent.cpp, type F32)."""


@dataclass(frozen=True)
class LlamaShape:
    """The flags that decide memory. context: tokens over all slots. unified: slots share one cache."""

    context: int
    slots: int = 1
    ubatch: int = DEFAULT_UBATCH
    cache_k: str = "f16"
    cache_v: str = "f16"
    unified: bool = True
    flash_attention: bool = True
    full_windows: bool = False
    gpu_layers: int | None = None
    """Layers on the card, counted from the last; None: all, and the output layer."""


@dataclass(frozen=True)
class LlamaSum:
    """One model's memory on one card, by part."""

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute: Range
    cuda: Range

    @property
    def total(self) -> Range:
        return exactly(self.weights_bytes + self.kv_bytes + self.state_bytes) + self.compute + self.cuda


def _cells(count: int) -> int:
    return ceil(count / CELL_STEP) * CELL_STEP


def cache_bytes(kind: str) -> float:
    """Bytes of one stored number. Raises KvError for an unknown type."""
    if kind not in CACHE_BYTES:
        raise KvError(f"cache type {kind[:40]!r} is not known; known are {', '.join(sorted(CACHE_BYTES))}")
    return CACHE_BYTES[kind]


def window_cells(window: int, shape: LlamaShape) -> int:
    """Cells of a sliding layer, over all slots: the window of each slot and one batch, at most the context."""
    if shape.unified:
        return _cells(min(shape.context, window * shape.slots + shape.ubatch))
    return shape.slots * _cells(min(shape.context // shape.slots, window + shape.ubatch))


def kv_bytes(arch: Architecture, shape: LlamaShape, layers: Sequence[int] | None = None) -> int:
    """Bytes of the KV cache of `layers` (all by default): sum of (key width x bytes + value width x bytes) x cells."""
    k_bytes, v_bytes = cache_bytes(shape.cache_k), cache_bytes(shape.cache_v)
    total = 0.0
    for index in range(len(arch.layers)) if layers is None else layers:
        a = arch.layers[index].attention
        if not a.owns_cache or a.kind not in {"full", "sliding", "mla"}:
            continue
        cells = _cells(shape.context)
        if a.kind == "sliding" and a.window and not shape.full_windows:
            cells = window_cells(a.window, shape)
        if a.kind == "mla":
            width = a.latent + a.rope_dim  # one latent vector serves as key and value
            total += cells * width * k_bytes
        else:
            total += cells * a.kv_heads * a.head_dim * (k_bytes + v_bytes)
    return ceil(total)


def state_bytes(arch: Architecture, slots: int, layers: Sequence[int] | None = None) -> int:
    """Bytes of recurrent states: one per slot and linear layer."""
    chosen = range(len(arch.layers)) if layers is None else layers
    elements = sum(
        arch.layers[index].attention.state_elements + arch.layers[index].attention.conv_elements for index in chosen
    )
    return elements * STATE_BYTES * slots


def layer_of(name: str) -> int | None:
    """The layer in a tensor's name, as GGUF ('blk.3.') or transformers ('layers.3.') writes it."""
    words = name.split(".")
    for at, word in enumerate(words[:-1]):
        if word in {"blk", "layers"} and words[at + 1].isdigit():
            return int(words[at + 1])
    return None


def weights_bytes(tensors: Iterable[Tensor], layers: Sequence[int], whole: bool) -> int:
    """Bytes of the tensors of `layers` on the card; `whole`: with the output layer (all layers are there).

    The input embedding stays in system memory; a tied one is copied to the card as the output layer.
    """
    chosen = set(layers)
    total = embedding = 0
    has_output = False
    for tensor in tensors:
        layer = layer_of(tensor.name)
        if layer is not None:
            total += tensor.size_bytes if layer in chosen else 0
        elif tensor.name.startswith(("token_embd.", "model.embed_tokens.")):
            embedding = tensor.size_bytes
        elif whole:
            has_output = has_output or tensor.name.startswith(("output.weight", "lm_head."))
            total += tensor.size_bytes
    return total + (embedding if whole and not has_output else 0)


def compute_buffer(arch: Architecture, shape: LlamaShape) -> Range:
    """Scratch memory: logits and activations of one ubatch in 32 bit; without flash attention also the scores."""
    heads = max((layer.attention.q_heads for layer in arch.layers), default=0)
    likely = shape.ubatch * 4 * (arch.vocabulary + 4 * arch.hidden)
    if not shape.flash_attention:
        likely += shape.ubatch * 4 * heads * _cells(shape.context)
    return Range(likely * 0.8, likely, likely * 1.5 + 256 * MIB)


def sum_on_card(arch: Architecture, tensors: Sequence[Tensor], shape: LlamaShape) -> LlamaSum:
    """Memory of one model on one card. Raises KvError for unknown cache types."""
    count = len(arch.layers)
    on_card = count if shape.gpu_layers is None else max(0, min(shape.gpu_layers, count))
    layers = range(count - on_card, count)
    whole = shape.gpu_layers is None or shape.gpu_layers > count
    return LlamaSum(
        weights_bytes=weights_bytes(tensors, layers, whole),
        kv_bytes=kv_bytes(arch, shape, layers),
        state_bytes=state_bytes(arch, shape.slots, layers),
        compute=compute_buffer(arch, shape),
        cuda=gib(CUDA),
    )
