# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tensor list that a model must have, from config.json and its quantization alone. (pure)

The second way to a plan: before any header is read. Names and shapes are those of the checkpoints that transformers
and the quantizers write, so that weights.py treats both ways alike; equal tensors of experts stand as one with a count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..model_files import GGML_BLOCKS
from .architecture import Architecture, Attention, ConfigError, Layer, Mlp
from .headers import GGML_TYPES, SAFETENSORS_BITS, Tensor

FLOATS = {1: "F8_E4M3", 2: "BF16", 4: "F32"}


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `group` 0: one scale per output channel (or tensor).

    scheme: none, awq, gptq, wna16 (compressed-tensors), fp8, fp8_block, int8, nvfp4, mxfp4, bnb4, int8_bnb, gguf.
    `experts_only`: the other linear layers stay in 16 bit. `gguf_type`: the file type, for example Q4_K_M.
    """

    scheme: str = "none"
    bits: int = 16
    group: int = 0
    symmetric: bool = True
    experts_only: bool = False
    gguf_type: str = ""

    @property
    def weight_bits(self) -> int:
        """Bits per weight without scales, for the capability gates."""
        return self.bits


_BY_NAME = {
    "awq": Quantization("awq", 4, 128, symmetric=False),
    "gptq": Quantization("gptq", 4, 128),
    "w4a16": Quantization("wna16", 4, 128),
    "int4": Quantization("wna16", 4, 128),
    "w8a8": Quantization("int8", 8),
    "int8": Quantization("int8", 8),
    "fp8": Quantization("fp8_block", 8, 128),
    "nvfp4": Quantization("nvfp4", 4, 16),
    "mxfp4": Quantization("mxfp4", 4, 32, experts_only=True),
    "bitsandbytes": Quantization("bnb4", 4, 64),
}
_ALIASES = {
    "awq_marlin": "awq", "awq_int4": "awq", "int4_awq": "awq", "gptq_marlin": "gptq", "gptq_int4": "gptq",
    "w4a16_g128": "w4a16", "modelopt": "fp8", "modelopt_fp4": "nvfp4", "fbgemm_fp8": "fp8", "fp8_dynamic": "fp8",
    "fp8_e4m3": "fp8", "w8a8_fp8": "fp8", "w8a8_int8": "w8a8", "bnb": "bitsandbytes", "nf4": "bitsandbytes",
    "bnb_4bit": "bitsandbytes",
}  # fmt: skip


def quantization_named(name: str) -> Quantization:
    """The usual layout behind a short name: awq, gptq, w4a16, fp8, nvfp4, mxfp4, gguf_q4_k_m ... Raises ConfigError."""
    key = name.lower().replace("-", "_")
    key = _ALIASES.get(key, key)
    if key in {"", "none", "auto", "bf16", "bfloat16", "f16", "fp16", "float16"}:
        return Quantization()
    if key.startswith("gguf_"):
        return Quantization("gguf", 4, 256, gguf_type=key.removeprefix("gguf_").upper())
    if key not in _BY_NAME:
        known = ", ".join(sorted([*_BY_NAME, *_ALIASES, "gguf_<type>"]))
        raise ConfigError(f"quantization {name[:40]!r} is not known; known are {known}")
    return _BY_NAME[key]


def read_quantization(config: Mapping[str, Any]) -> Quantization:
    """The layout from config.json's quantization_config; 16 bit when there is none. Raises ConfigError."""
    given = config.get("quantization_config") or config.get("compression_config")
    text = config.get("text_config")
    if given is None and isinstance(text, Mapping):
        given = text.get("quantization_config")
    if not isinstance(given, Mapping):
        return Quantization()
    method = str(given.get("quant_method") or given.get("quant_algo") or "").lower()
    if method == "compressed-tensors":
        return _compressed(given)
    bits, group = given.get("bits", given.get("w_bit", 4)), given.get("group_size", given.get("q_group_size", 128))
    bits = bits if isinstance(bits, int) and 1 <= bits <= 16 else 4
    group = group if isinstance(group, int) and group > 0 else 0
    if method in {"awq", "awq_marlin"}:
        return Quantization("awq", bits, group, symmetric=not given.get("zero_point", True))
    if method in {"gptq", "gptq_marlin"}:
        return Quantization("gptq", bits, group, symmetric=bool(given.get("sym", True)))
    if method == "fp8":
        block = given.get("weight_block_size")
        return Quantization("fp8_block", 8, 128) if isinstance(block, list) else Quantization("fp8", 8)
    if method == "mxfp4":
        return _BY_NAME["mxfp4"]
    if method == "bitsandbytes":
        return Quantization("int8_bnb", 8) if given.get("load_in_8bit") else _BY_NAME["bitsandbytes"]
    if method.startswith("modelopt") or "quant_algo" in given:
        return _BY_NAME["nvfp4" if "fp4" in (method + str(given.get("quant_algo"))).lower() else "fp8"]
    return quantization_named(method)


def _compressed(given: Mapping[str, Any]) -> Quantization:
    groups = given.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError("config.json: quantization_config.config_groups does not describe the weights")
    bits, kind = weights.get("num_bits", 8), str(weights.get("type", "int"))
    group = weights.get("group_size")
    group = group if isinstance(group, int) and group > 0 else 0
    if kind == "float" and bits == 4:
        return _BY_NAME["nvfp4"] if group != 32 else Quantization("mxfp4", 4, 32)
    if kind == "float":
        return Quantization("fp8_block" if weights.get("strategy") == "block" else "fp8", 8, group)
    if bits == 8 and first is not None and first.get("input_activations"):
        return Quantization("int8", 8)
    return Quantization("wna16", int(bits) if bits in (2, 3, 4, 8) else 4, group, bool(weights.get("symmetric", True)))


def _stored(name: str, dtype: str, shape: tuple[int, ...], count: int = 1) -> Tensor:
    elements = count
    for width in shape:
        elements *= width
    return Tensor(name, dtype, shape, (elements * SAFETENSORS_BITS[dtype] + 7) // 8, count)


class _Writer:
    """Writes the tensors of linear layers in one quantization's layout."""

    def __init__(self, arch: Architecture, quantization: Quantization) -> None:
        self.arch = arch
        self.quantization = quantization
        self.float = FLOATS[arch.dtype_bytes]

    def plain(self, name: str, *shape: int, count: int = 1) -> Iterator[Tensor]:
        if all(shape):
            yield _stored(name, self.float, shape, count)

    def linear(
        self, name: str, rows: int, columns: int, *, bias: bool = False, count: int = 1, expert: bool = False
    ) -> Iterator[Tensor]:
        """A weight of `rows` outputs and `columns` inputs."""
        if not (rows and columns and count):
            return
        q = self.quantization
        if q.scheme in {"none", "gguf"} or (q.experts_only and not expert):
            yield from self.plain(f"{name}.weight", rows, columns, count=count)
        else:
            yield from self._quantized(name, rows, columns, count)
        if bias:
            yield from self.plain(f"{name}.bias", rows, count=count)

    def _quantized(self, name: str, rows: int, columns: int, count: int) -> Iterator[Tensor]:
        q = self.quantization
        groups = -(-columns // q.group) if q.group else 1
        per_word = max(32 // q.bits, 1)
        words = -(-columns // per_word)
        if q.scheme in {"awq", "gptq"}:
            shape = (columns, -(-rows // per_word)) if q.scheme == "awq" else (words, rows)
            yield _stored(f"{name}.qweight", "I32", shape, count)
            yield _stored(f"{name}.scales", self.float, (groups, rows), count)
            if not q.symmetric:
                yield _stored(f"{name}.qzeros", "I32", (groups, -(-rows // per_word)), count)
        elif q.scheme == "wna16":
            yield _stored(f"{name}.weight_packed", "I32", (rows, words), count)
            yield _stored(f"{name}.weight_scale", self.float, (rows, groups), count)
            if not q.symmetric:
                yield _stored(f"{name}.weight_zero_point", "I32", (-(-rows // per_word), groups), count)
        elif q.scheme == "fp8_block":
            yield _stored(f"{name}.weight", "F8_E4M3", (rows, columns), count)
            yield _stored(f"{name}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128)), count)
        elif q.scheme in {"fp8", "int8", "int8_bnb"}:
            yield _stored(f"{name}.weight", "F8_E4M3" if q.scheme == "fp8" else "I8", (rows, columns), count)
            yield _stored(f"{name}.weight_scale", "F32", (rows, 1), count)
        elif q.scheme == "nvfp4":
            yield _stored(f"{name}.weight_packed", "U8", (rows, -(-columns // 2)), count)
            yield _stored(f"{name}.weight_scale", "F8_E4M3", (rows, -(-columns // 16)), count)
            yield _stored(f"{name}.weight_global_scale", "F32", (1,), count)
        elif q.scheme == "mxfp4":
            yield _stored(f"{name}.weight_packed", "U8", (rows, -(-columns // 2)), count)
            yield _stored(f"{name}.weight_scale", "U8", (rows, -(-columns // 32)), count)
        else:  # bnb4: nested absmax, bitsandbytes functional.quantize_4bit(compress_statistics=True)
            yield _stored(f"{name}.weight", "U8", (-(-rows * columns // 2), 1), count)
            blocks = -(-rows * columns // 64)
            yield _stored(f"{name}.weight.absmax", "U8", (blocks,), count)
            yield _stored(f"{name}.weight.nested_absmax", "F32", (-(-blocks // 256),), count)


def derive(arch: Architecture, quantization: Quantization) -> list[Tensor]:
    """Every tensor that the weights of `arch` in `quantization` consist of.

    Sum against 55 logged sizes: see weights.py. Raises ConfigError for a GGUF type whose mix is not known.
    """
    write = _Writer(arch, quantization)
    found = [*write.plain("model.embed_tokens.weight", arch.vocabulary, arch.hidden)]
    found += _per_layer_embeddings(write, arch)
    for index, layer in enumerate(arch.layers):
        found += _layer(write, f"model.layers.{index}", arch, layer)
    found += write.plain("model.norm.weight", arch.hidden)
    if not arch.tied:
        found += write.plain("lm_head.weight", arch.vocabulary, arch.hidden)
        if arch.head_bias:
            found += write.plain("lm_head.bias", arch.vocabulary)
    if arch.vision:
        found += write.plain("vision_tower.weight", arch.vision.parameters)
    if quantization.scheme == "gguf":
        return list(_as_gguf(found, arch, quantization.gguf_type))
    return found


def _per_layer_embeddings(write: _Writer, arch: Architecture) -> Iterator[Tensor]:
    """Gemma 3n and 4 E (transformers, modeling_gemma3n.py): a table, a projection, and two matrices in each layer."""
    words, width = arch.ple
    layers = len(arch.layers)
    yield from write.plain("model.embed_tokens_per_layer.weight", words, width * layers)
    yield from write.plain("model.per_layer_model_projection.weight", width * layers, arch.hidden)
    for index in range(layers if width else 0):
        yield from write.plain(f"model.layers.{index}.per_layer_input_gate.weight", width, arch.hidden)
        yield from write.plain(f"model.layers.{index}.per_layer_projection.weight", arch.hidden, width)
    if arch.alternating:
        yield from write.plain("model.altup_projections.weight", 6 * arch.hidden, arch.hidden)
        for index in range(layers):
            yield from write.plain(f"model.layers.{index}.laurel.weight", 2 * 64, arch.hidden)


def _layer(write: _Writer, base: str, arch: Architecture, layer: Layer) -> Iterator[Tensor]:
    for number in range(arch.norms_per_layer):
        yield from write.plain(f"{base}.norm{number}.weight", arch.hidden)
    a = layer.attention
    if a.kind == "mla":
        yield from _mla(write, f"{base}.self_attn", arch.hidden, a)
    elif a.kind == "linear" and a.linear:
        yield from _delta_net(write, f"{base}.linear_attn", arch.hidden, a.linear)
    elif a.kind == "mamba" and a.mamba:
        yield from _mamba(write, f"{base}.mixer", arch.hidden, a.mamba)
    elif a.kind != "none":
        yield from _plain_attention(write, f"{base}.self_attn", arch, a)
    yield from _mlp(write, f"{base}.mlp", arch, layer.mlp)


def _plain_attention(write: _Writer, base: str, arch: Architecture, a: Attention) -> Iterator[Tensor]:
    q, kv = a.q_heads * a.head_dim, a.kv_heads * a.head_dim
    yield from write.linear(f"{base}.q_proj", q * (2 if a.output_gate else 1), arch.hidden, bias=arch.qkv_bias)
    if a.owns_cache:
        yield from write.linear(f"{base}.k_proj", kv, arch.hidden, bias=arch.qkv_bias)
        if a.has_value_weights:
            yield from write.linear(f"{base}.v_proj", kv, arch.hidden, bias=arch.qkv_bias)
    yield from write.linear(f"{base}.o_proj", arch.hidden, q, bias=arch.output_bias)
    if arch.qk_norm:
        yield from write.plain(f"{base}.q_norm.weight", a.head_dim)
        yield from write.plain(f"{base}.k_norm.weight", a.head_dim)


def _mla(write: _Writer, base: str, hidden: int, a: Attention) -> Iterator[Tensor]:
    width = a.q_heads * (a.nope_dim + a.rope_dim)
    if a.q_rank:
        yield from write.linear(f"{base}.q_a_proj", a.q_rank, hidden)
        yield from write.plain(f"{base}.q_a_layernorm.weight", a.q_rank)
        yield from write.linear(f"{base}.q_b_proj", width, a.q_rank)
    else:
        yield from write.linear(f"{base}.q_proj", width, hidden)
    yield from write.linear(f"{base}.kv_a_proj_with_mqa", a.latent + a.rope_dim, hidden)
    yield from write.plain(f"{base}.kv_a_layernorm.weight", a.latent)
    yield from write.linear(f"{base}.kv_b_proj", a.q_heads * (a.nope_dim + a.v_head_dim), a.latent)
    yield from write.linear(f"{base}.o_proj", hidden, a.q_heads * a.v_head_dim)
    if a.index_dim:
        yield from write.linear(f"{base}.indexer.wq_b", a.index_heads * a.index_dim, a.q_rank or hidden)
        yield from write.linear(f"{base}.indexer.wk", a.index_dim, hidden)
        yield from write.plain(f"{base}.indexer.weights_proj.weight", a.index_heads, hidden)


def _delta_net(write: _Writer, base: str, hidden: int, shape: tuple[int, int, int, int, int]) -> Iterator[Tensor]:
    k_heads, v_heads, k_dim, v_dim, kernel = shape
    mixed, out = 2 * k_heads * k_dim + v_heads * v_dim, v_heads * v_dim
    yield from write.linear(f"{base}.in_proj_qkvz", mixed + out, hidden)
    yield from write.plain(f"{base}.in_proj_ba.weight", 2 * v_heads, hidden)
    yield from write.plain(f"{base}.conv1d.weight", mixed, 1, kernel)
    yield from write.linear(f"{base}.out_proj", hidden, out)
    yield _stored(f"{base}.A_log", "F32", (v_heads,))
    yield from write.plain(f"{base}.norm.weight", v_dim)


def _mamba(write: _Writer, base: str, hidden: int, shape: tuple[int, int, int, int, int]) -> Iterator[Tensor]:
    heads, width, state, groups, kernel = shape
    inner = heads * width
    yield from write.linear(f"{base}.in_proj", 2 * inner + 2 * groups * state + heads, hidden)
    yield from write.plain(f"{base}.conv1d.weight", inner + 2 * groups * state, 1, kernel)
    yield from write.linear(f"{base}.out_proj", hidden, inner)
    yield from write.plain(f"{base}.norm.weight", inner)


def _mlp(write: _Writer, base: str, arch: Architecture, mlp: Mlp) -> Iterator[Tensor]:
    yield from _one_mlp(write, base, arch, mlp.width, mlp.gated)
    if not mlp.experts:
        return
    yield from write.plain(f"{base}.gate.weight", mlp.experts, arch.hidden)
    experts = f"{base}.experts.*"
    for name, rows, columns in _matrices(mlp.expert_width, arch.hidden, mlp.gated):
        yield from write.linear(
            f"{experts}.{name}", rows, columns, bias=mlp.expert_bias, count=mlp.experts, expert=True
        )
    yield from _one_mlp(write, f"{base}.shared_expert", arch, mlp.shared_width, mlp.gated)
    if mlp.shared_gate:
        yield from write.plain(f"{base}.shared_expert_gate.weight", 1, arch.hidden)


def _matrices(width: int, hidden: int, gated: bool) -> list[tuple[str, int, int]]:
    first = [("gate_proj", width, hidden)] if gated else []
    return [*first, ("up_proj", width, hidden), ("down_proj", hidden, width)]


def _one_mlp(write: _Writer, base: str, arch: Architecture, width: int, gated: bool) -> Iterator[Tensor]:
    for name, rows, columns in _matrices(width, arch.hidden, gated):
        yield from write.linear(f"{base}.{name}", rows, columns, bias=arch.mlp_bias)


_PURE_GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q6_K", "F16", "BF16", "F32", "IQ4_NL")


def _more_bits(index: int, layers: int) -> bool:
    """llama.cpp, src/llama-quant.cpp, use_more_bits: which layers get the larger type in a _K_M mix."""
    return index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2


def _gguf_type_of(name: str, index: int, layers: int, file_type: str) -> str:
    """llama.cpp, src/llama-quant.cpp, llama_tensor_get_type, for models with grouped KV heads."""
    head = "Q6_K"
    if name.startswith("lm_head"):
        return file_type if file_type in {"Q8_0", "F16", "BF16", "F32"} else head
    if file_type in _PURE_GGUF:
        return file_type
    base, larger = {"Q4_K_M": ("Q4_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K"), "Q4_K_S": ("Q4_K", "Q5_K")}[file_type]
    if name.endswith((".v_proj.weight", ".down_proj.weight")):
        more = index < layers // 8 if file_type == "Q4_K_S" else _more_bits(index, layers)
        return larger if more else base
    return base


def _as_gguf(tensors: list[Tensor], arch: Architecture, file_type: str) -> Iterator[Tensor]:
    if file_type not in (*_PURE_GGUF, "Q4_K_M", "Q5_K_M", "Q4_K_S"):
        raise ConfigError(
            f"which tensors a GGUF file of type {file_type or '(not given)'} stores how is not known without its header"
        )
    for tensor in tensors:
        parts = tensor.name.split(".")
        index = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else 0
        kind = "F32" if len(tensor.shape) < 2 else _gguf_type_of(tensor.name, index, len(arch.layers), file_type)
        block, block_bytes = GGML_BLOCKS[GGML_TYPES[kind]]
        if tensor.shape[-1] % block:  # rows that the block does not divide fall back to a type of small blocks
            kind = "Q8_0" if tensor.shape[-1] % 32 == 0 else "F16"
            block, block_bytes = GGML_BLOCKS[GGML_TYPES[kind]]
        yield Tensor(tensor.name, kind, tensor.shape, tensor.elements // block * block_bytes, tensor.count)
