# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes of a model's weights on each card, tensor by tensor, as vLLM loads them. (pure)

What is fused, split or replicated over tensor parallel ranks: vLLM's model files and layers (QKVParallelLinear,
MergedColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding, FusedMoE). What torch's allocator makes of it:
c10/cuda/CUDACachingAllocator.cpp. The errors against logged sizes are printed by tests/benchmarks/vram_accuracy.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from .architecture import Architecture
from .headers import Tensor
from .tensors import Quantization

MIB = 1 << 20
VOCABULARY_PADDING = 64
"""vLLM, layers/vocab_parallel_embedding.py, DEFAULT_VOCAB_PADDING_SIZE."""

_COLUMN = frozenset(
    {
        "q_proj", "k_proj", "v_proj", "qkv_proj", "Wqkv", "query_key_value", "c_attn", "q_b_proj", "kv_b_proj",
        "gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "dense_h_to_4h", "w1", "w3", "in_proj", "in_proj_qkvz",
        "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "in_proj_ba", "conv1d", "A_log", "dt_bias", "D", "qkv",
    }
)  # fmt: skip
_ROW = frozenset({"o_proj", "down_proj", "fc2", "dense", "dense_4h_to_h", "out_proj", "c_proj", "w2", "wo", "proj"})
_VOCABULARY = frozenset({"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out", "embed_tokens_per_layer"})
_WHOLE = frozenset({"q_a_proj", "kv_a_proj_with_mqa", "gate", "router", "indexer", "shared_expert_gate"})
_FUSED = {
    "q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up", "w1": "gate_up",
    "w3": "gate_up", "in_proj_qkv": "in_proj", "in_proj_z": "in_proj", "in_proj_a": "in_ba", "in_proj_b": "in_ba",
}  # fmt: skip
_VISION = ("visual", "vision", "audio", "multi_modal", "mm_proj", "image_", "patch_", "embed_vision", "embed_audio")
_LAYERS = frozenset({"layers", "h", "blocks", "blk"})
_FLOATS = frozenset({"F16", "BF16", "F32"})
_SUFFIXES = (("_blocks", "weight_packed"), ("_scales", "weight_scale"), ("_bias", "bias"))


@dataclass(frozen=True)
class Split:
    """How a model is spread: `tp` cards share each layer, `pp` groups hold `partition[i]` layers each."""

    tp: int = 1
    pp: int = 1
    partition: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoadRules:
    """What a version of the engine does to weights beyond storing them.

    mla_copies: 'none', 'absorbed' (products of projections) or 'split' (per-head copies of kv_b_proj) beside them.
    rope_per_layer: no sharing of tables between layers. online_fp8: 16-bit linear layers become 8 bit while loading.
    """

    mla_copies: str = "split"
    rope_per_layer: bool = False
    rope_copies: int = 1
    online_fp8: bool = False
    mxfp4_padding: bool = True
    rounding: bool = True


@dataclass(frozen=True)
class Weights:
    """Bytes of one card. `parts`: embedding, attention, mlp, experts, head, vision, rope, copies, other, rounding."""

    parts: dict[str, int]
    layers: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


def partition_layers(count: int, split: Split) -> list[tuple[int, int]]:
    """First and last+1 layer of each pipeline rank: vLLM, distributed/utils.py, get_pp_indices."""
    sizes = list(split.partition)
    if not sizes:
        sizes = [count // split.pp] * split.pp
        for extra in range(2, count % split.pp + 2):
            sizes[-extra] += 1
    if len(sizes) != split.pp or sum(sizes) != count:
        raise ValueError(f"the layer partition {sizes} does not cover {count} layers on {split.pp} ranks")
    starts = [sum(sizes[:rank]) for rank in range(split.pp)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def allocated(size_bytes: float) -> int:
    """What torch's allocator counts for one tensor.

    Blocks are multiples of 512 bytes; from 10 MiB on a segment of whole 2 MiB is asked of the driver, and a rest of at
    most 1 MiB is not split off (kMinBlockSize, kMinLargeAlloc, kRoundLarge, kSmallSize). Not with expandable_segments.
    """
    size = ceil(size_bytes / 512) * 512
    if size < 10 * MIB:
        return size
    segment = ceil(size / (2 * MIB)) * 2 * MIB
    return segment if segment - size <= MIB else size


@dataclass(frozen=True)
class _Place:
    """Where a tensor belongs: its layer (None: outside), group of parts, fused parameter and way of splitting."""

    layer: int | None
    part: str
    fused: str
    how: str


def _layer_index(words: Sequence[str]) -> int | None:
    for word, following in pairwise(words):
        if word in _LAYERS and following.isdigit():
            return int(following)
    return None


def _place(name: str) -> _Place | None:
    """Read a tensor's name; None for what an engine does not load."""
    words = name.split(".")
    if "mtp" in words or words[-1] in {"inv_freq", "g_idx", "weight_shape"}:
        return None
    if any(word.startswith(_VISION) for word in words):
        return _Place(None, "vision", name, "whole" if "*" in name else "vision")
    layer = _layer_index(words)
    module, suffix = _module(words)
    if "experts" in words:
        return _Place(layer, "experts", f"experts.{_FUSED.get(module, module)}.{suffix}", "expert")
    if module in _VOCABULARY:
        part = "head" if module in {"lm_head", "embed_out"} else "embedding"
        return _Place(layer, part, f"{module}.{suffix}", "vocabulary")
    if module in _WHOLE or "indexer" in words or module.endswith("norm"):
        return _Place(layer, "attention" if "indexer" in words else "other", name, "whole")
    attention = any(word.endswith(("attn", "attention", "mixer")) for word in words)
    part = "attention" if attention else "mlp"
    if module in {"k_proj", "v_proj"}:
        return _Place(layer, part, f"{part}.qkv.{suffix}", "kv")
    fused = f"{'.'.join(words[:-2]) if 'shared' in name else part}.{_FUSED.get(module, module)}.{suffix}"
    if module in _COLUMN:
        return _Place(layer, part, fused, "packed_kv" if module in {"qkv_proj", "Wqkv"} and attention else "column")
    if module in _ROW:
        return _Place(layer, part, fused, "row")
    return _Place(layer, "other", name, "whole")


_KNOWN = _COLUMN | _ROW | _VOCABULARY | _WHOLE


def _module(words: Sequence[str]) -> tuple[str, str]:
    """The module's name and what of it this is: ('q_proj', 'weight'); stacked experts carry both in one word."""
    for at in range(len(words) - 1, max(len(words) - 5, -1), -1):
        word = words[at]
        if word in _KNOWN:
            return word, ".".join(words[at + 1 :]) or "weight"
        for ending, suffix in _SUFFIXES:
            if word.endswith(ending) and word.removesuffix(ending) in _KNOWN:
                return word.removesuffix(ending), suffix
    return (words[-2] if len(words) > 1 else words[-1]), words[-1]


def _loaded_bytes(tensor: Tensor, place: _Place, arch: Architecture, rules: LoadRules) -> float:
    """Bytes of a whole tensor once it is loaded: plain 16/32-bit numbers take the model's dtype, others stay."""
    last = tensor.name.rpartition(".")[2]
    plain = tensor.dtype in _FLOATS and "scale" not in last and last not in {"A_log", "e_score_correction_bias"}
    if not plain:
        return tensor.size_bytes
    width: float = arch.dtype_bytes
    if rules.online_fp8 and place.how in {"column", "row", "kv", "packed_kv", "expert"} and len(tensor.shape) > 1:
        width = 1
    return tensor.elements * width


def _share(tensor: Tensor, place: _Place, arch: Architecture, tp: int) -> float:
    """The share of a tensor that one of `tp` ranks holds."""
    if place.how == "whole" or tp == 1 or not tensor.shape:
        return 1.0
    kv_heads = 0
    if place.how in {"kv", "packed_kv"} and place.layer is not None and place.layer < len(arch.layers):
        kv_heads = arch.layers[place.layer].attention.kv_heads
    if place.how == "kv":
        return 1 / min(tp, kv_heads or tp)
    if place.how == "packed_kv":
        q_heads = arch.layers[place.layer or 0].attention.q_heads
        rows = q_heads / tp + 2 * max(1, kv_heads // tp)
        return rows / max(q_heads + 2 * kv_heads, 1)
    last = tensor.name.rpartition(".")[2]
    per_channel = "scale" in last and (len(tensor.shape) < 2 or tensor.shape[-1] == 1)
    if place.how == "row" and (last == "bias" or per_channel):
        return 1.0
    return 1 / tp


def _padding(tensor: Tensor, place: _Place, arch: Architecture, quantization: Quantization, tp: int) -> float:
    """Factor by which an engine enlarges a tensor: vocabularies to 64 rows; MXFP4 experts to the kernel's tiles.

    MXFP4: vLLM, quantization/utils/mxfp4_utils and Marlin's preparation: width per rank to 128, hidden to 256.
    """
    if place.how == "vocabulary" and tensor.shape and tensor.shape[0]:
        rows = tensor.shape[0]
        return ceil(rows / VOCABULARY_PADDING) * VOCABULARY_PADDING / rows
    if place.how == "expert" and quantization.scheme == "mxfp4" and tensor.dtype == "U8":
        mlp = next((layer.mlp for layer in arch.layers if layer.mlp.experts), None)
        if mlp and mlp.expert_width:
            width = mlp.expert_width / tp
            return (ceil(width / 128) * 128 / width) * (ceil(arch.hidden / 256) * 256 / arch.hidden)
    return 1.0


def _mla_copies(arch: Architecture, rules: LoadRules, tp: int, layers: range) -> int:
    """Bytes of the projections that MLA attention keeps beside kv_b_proj, in 16 bit.

    vLLM, v1/attention/backends/mla/common.py: W_UV and W_UK_T; V0 up to 0.7.x (VLLM_MLA_PERFORM_MATRIX_ABSORPTION):
    W_Q_UK, W_UV_O and W_QR instead.
    """
    total = 0
    for index in layers:
        a = arch.layers[index].attention
        if a.kind != "mla" or rules.mla_copies == "none":
            continue
        heads = a.q_heads / tp
        if rules.mla_copies == "absorbed":
            source = a.q_rank or arch.hidden
            elements = heads * (source * (a.latent + a.rope_dim) + a.latent * arch.hidden)
        else:
            elements = heads * (a.nope_dim + a.v_head_dim) * a.latent
        total += int(elements * 2)
    return total


def _rope_bytes(arch: Architecture, rules: LoadRules, layers: range) -> int:
    copies = len(layers) if rules.rope_per_layer else rules.rope_copies
    return sum(positions * width * arch.dtype_bytes for positions, width in arch.rope) * copies


def weights_per_rank(
    tensors: Iterable[Tensor],
    arch: Architecture,
    quantization: Quantization,
    split: Split | None = None,
    rules: LoadRules | None = None,
) -> list[Weights]:
    """Bytes of weights on the cards of each pipeline rank; the `tp` cards of a rank hold equal shares.

    Raises ValueError when the partition does not cover the layers. Source: see the module; errors: the benchmark.
    """
    split, rules = split or Split(), rules or LoadRules()
    ranges = partition_layers(len(arch.layers), split)
    rank_of = {index: rank for rank, (start, end) in enumerate(ranges) for index in range(start, end)}
    groups: list[dict[tuple[int | None, str], float]] = [{} for _ in ranges]
    parts: dict[tuple[int | None, str], str] = {}
    last = len(ranges) - 1
    for tensor in tensors:
        place = _place(tensor.name)
        if place is None or (place.layer is not None and place.layer not in rank_of):
            continue
        if place.part == "head" and arch.tied:
            continue
        size = _loaded_bytes(tensor, place, arch, rules) * _share(tensor, place, arch, split.tp)
        if rules.mxfp4_padding or place.how == "vocabulary":
            size *= _padding(tensor, place, arch, quantization, split.tp)
        if place.layer is not None:
            ranks = {rank_of[place.layer]}
        elif place.part == "embedding" and arch.tied:
            ranks = {0, last}
        else:
            ranks = {last if place.part in {"head", "other"} else 0}
        key = (place.layer, place.fused)
        parts[key] = place.part
        for rank in ranks:
            groups[rank][key] = groups[rank].get(key, 0) + size
    return [_summed(group, parts, arch, rules, split.tp, range(*ranges[rank])) for rank, group in enumerate(groups)]


def _summed(
    group: dict[tuple[int | None, str], float],
    parts: dict[tuple[int | None, str], str],
    arch: Architecture,
    rules: LoadRules,
    tp: int,
    layers: range,
) -> Weights:
    sums = dict.fromkeys(("embedding", "attention", "mlp", "experts", "head", "vision", "other"), 0)
    rounding = 0
    for key, size in group.items():
        sums[parts[key]] += ceil(size)
        if rules.rounding and parts[key] != "vision":
            rounding += allocated(size) - ceil(size)
    sums["rope"] = _rope_bytes(arch, rules, layers)
    sums["copies"] = _mla_copies(arch, rules, tp, layers)
    sums["rounding"] = rounding
    return Weights(sums, (layers.start, layers.stop))
