# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the memory planner asks of a model's config.json, whatever its family calls it. (pure)

Widths and counts are elements, not bytes. Names follow config.json as transformers 4.x writes it; sources of what a
family does differently are the model files of vLLM (vllm/model_executor/models) and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
"""Bounds of what is believed; the largest public models have 126 layers and widths of 2^18."""

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "half": 2, "float": 4}
_TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
_UNGATED = frozenset(
    {"phi", "gpt2", "gpt_neox", "gptj", "opt", "bloom", "falcon", "starcoder2", "nemotron", "nemotron_h", "mpt"}
)
_QKV_BIAS = frozenset(
    {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_5_vl_text", "phi", "gpt_oss", "glm4", "qwen"}
)
_QK_NORM = frozenset({"qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_vl_text"})
_USUAL_POSITIONS = {"gemma3_text": 131072, "gemma3": 131072, "gemma2": 8192, "gpt_oss": 131072}
"""What transformers' configuration classes take where config.json is silent."""
_FOUR_NORMS = ("gemma2", "gemma3", "gemma4")


class ConfigError(ValueError):
    """config.json does not say what a plan needs, or says something impossible; the message names the key."""


@dataclass(frozen=True)
class Attention:
    """How one layer attends: what it stores per token, or per sequence.

    kind: full, sliding (the last `window` tokens), mla (one latent vector), linear and mamba (a constant state), none.
    """

    kind: str
    q_heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int | None = None
    owns_cache: bool = True
    has_value_weights: bool = True
    latent: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    v_head_dim: int = 0
    q_rank: int = 0
    index_dim: int = 0
    index_heads: int = 0
    state_elements: int = 0
    conv_elements: int = 0
    state_heads: int = 0
    output_gate: bool = False
    linear: tuple[int, int, int, int, int] | None = None
    """Gated delta net: key heads, value heads, key width, value width, convolution kernel."""
    mamba: tuple[int, int, int, int, int] | None = None
    """Mamba 2: heads, head width, state width, groups, convolution kernel."""


@dataclass(frozen=True)
class Mlp:
    """The other half of a layer. `experts` 0: dense; `width` is the dense width, `expert_width` that of one expert."""

    width: int = 0
    gated: bool = True
    experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    shared_width: int = 0
    shared_gate: bool = False
    expert_bias: bool = False


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True)
class Vision:
    """A tower for pictures or sound. `parameters` covers all that is not the language model."""

    parameters: int
    hidden: int = 0
    width: int = 0
    patches: int = 0


@dataclass(frozen=True)
class Architecture:
    """A model's shape. `incomplete` names what config.json does not tell: sums are then too low."""

    model_type: str
    hidden: int
    vocabulary: int
    tied: bool
    dtype_bytes: int
    max_position: int
    layers: tuple[Layer, ...]
    rope: tuple[tuple[int, int], ...]
    """One (positions, rotary width) per distinct table that an engine computes."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2
    vision: Vision | None = None
    ple: tuple[int, int] = (0, 0)
    """Embeddings per layer (Gemma 3n and 4 E): their vocabulary and width in one layer."""
    alternating: bool = False
    """Gemma 3n's alternating updates and low-rank residuals."""
    incomplete: tuple[str, ...] = field(default=())

    @property
    def is_moe(self) -> bool:
        return any(layer.mlp.experts for layer in self.layers)

    @property
    def is_mla(self) -> bool:
        return any(layer.attention.kind == "mla" for layer in self.layers)

    def kinds(self) -> dict[str, int]:
        """Count of layers by attention kind."""
        found: dict[str, int] = {}
        for layer in self.layers:
            found[layer.attention.kind] = found.get(layer.attention.kind, 0) + 1
        return found


class _Reader:
    """Reads numbers from one config object; a wrong type is an error that names the key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def number(self, *keys: str, default: int | None = None, limit: int = MAX_WIDTH) -> int:
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
                value = max(value)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
                raise ConfigError(f"config.json: {key} is {str(value)[:60]!r}; needed is a whole number up to {limit}")
            return value
        if default is None:
            raise ConfigError(f"config.json: {' or '.join(keys)} is missing; without it no plan can be made")
        return default

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        return default if value is None else bool(value)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json about the language model: the nested one where there is one, at most three deep."""
    current = config
    for _ in range(3):
        inner = next((current[key] for key in _TEXT_KEYS if isinstance(current.get(key), Mapping)), None)
        if inner is None or ("num_hidden_layers" in current and "num_hidden_layers" not in inner):
            return current
        # What the inner part leaves out (dtype, tied embeddings) is said outside.
        outer = {key: value for key, value in current.items() if key not in _TEXT_KEYS and key != "vision_config"}
        current = {**outer, **{key: value for key, value in inner.items() if value is not None}}
    return current


def read_config(config: Mapping[str, Any], vision_parameters: int | None = None) -> Architecture:
    """The shape of the model that `config` (a parsed config.json) describes.

    `vision_parameters`: the count where the caller knows it, for example from the headers. Raises ConfigError.
    """
    if not isinstance(config, Mapping):
        raise ConfigError("config.json is not an object")
    text = text_config(config)
    read = _Reader(text)
    count = read.number("num_hidden_layers", "n_layer", "num_layers", "n_layers", limit=MAX_LAYERS)
    hidden = read.number("hidden_size", "n_embd", "d_model", "dim")
    if not count or not hidden:
        raise ConfigError("config.json: num_hidden_layers and hidden_size must be above zero")
    model_type = str(text.get("model_type") or config.get("model_type") or "")
    dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    incomplete: list[str] = []
    attentions = _attentions(text, count, hidden, model_type)
    mlps = _mlps(text, count, hidden, model_type)
    vision = _vision(config, text, vision_parameters, incomplete)
    usual = _USUAL_POSITIONS.get(model_type, 0)
    max_position = read.number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", default=usual)
    tied_default = model_type.startswith(("gemma", "gpt2", "cohere"))
    vocabulary = read.number("vocab_size", default=0)
    ple = read.number("hidden_size_per_layer_input", default=0)
    return Architecture(
        model_type=model_type,
        hidden=hidden,
        vocabulary=vocabulary,
        tied=read.flag("tie_word_embeddings", tied_default),
        dtype_bytes=DTYPE_BYTES.get(dtype, 2),
        max_position=max_position,
        layers=tuple(Layer(a, m) for a, m in zip(attentions, mlps, strict=True)),
        rope=_rope(text, attentions, max_position, model_type),
        qkv_bias=read.flag("attention_bias", model_type in _QKV_BIAS) or read.flag("bias"),
        output_bias=(read.flag("attention_bias") and model_type not in _QKV_BIAS and bool(model_type))
        or read.flag("bias")
        or model_type in {"phi", "gpt_oss"},
        mlp_bias=read.flag("mlp_bias") or read.flag("bias") or model_type == "phi",
        head_bias=read.flag("bias") or model_type == "phi",
        qk_norm=model_type in _QK_NORM or read.flag("use_qk_norm"),
        norms_per_layer=4 if model_type.startswith(_FOUR_NORMS) else 2,
        vision=vision,
        ple=(read.number("vocab_size_per_layer_input", default=vocabulary), ple) if ple else (0, 0),
        alternating=model_type.startswith("gemma3n"),
        incomplete=tuple(incomplete),
    )


def _layer_types(text: Mapping[str, Any], count: int, model_type: str) -> list[str]:
    """One of full_attention, sliding_attention, linear_attention, mamba, none per layer."""
    given = text.get("layer_types") or text.get("layers_block_type") or text.get("attn_type_list")
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        if len(given) < count:
            raise ConfigError(f"config.json: layer_types has {len(given)} entries for {count} layers")
        return [_layer_type(str(kind)) for kind in given[:count]]
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and pattern:
        names = {"*": "full_attention", "M": "mamba", "-": "none", "E": "none"}
        return [names.get(letter, "full_attention") for letter in pattern[:count].ljust(count, "-")]
    read = _Reader(text)
    if text.get("attention_chunk_size") and model_type.startswith("llama4"):  # every fourth layer sees everything
        return ["full_attention" if (i + 1) % 4 == 0 else "sliding_attention" for i in range(count)]
    interval = read.number("full_attention_interval", default=0)
    if interval:
        return ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(count)]
    if text.get("sliding_window") is None or text.get("use_sliding_window") is False:
        return ["full_attention"] * count
    every = read.number("sliding_window_pattern", "_sliding_window_pattern", default=0)
    if not every:
        every = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "gemma3": 6, "gemma4_text": 6, "cohere2": 4}.get(
            model_type, 0
        )
    if every > 1:
        return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(count)]
    if text.get("use_sliding_window") and "max_window_layers" in text:  # Qwen2: windows only above this layer
        first = read.number("max_window_layers", default=count)
        return ["full_attention" if i < first else "sliding_attention" for i in range(count)]
    return ["sliding_attention"] * count


_LAYER_TYPES = {
    "full_attention": "full_attention",
    "attention": "full_attention",
    "global_attention": "full_attention",
    "1": "full_attention",
    "sliding_attention": "sliding_attention",
    "chunked_attention": "sliding_attention",
    "local_attention": "sliding_attention",
    "linear_attention": "linear_attention",
    "mamba": "mamba",
    "mamba2": "mamba",
    "mlp": "none",
    "moe": "none",
    "none": "none",
}


def _layer_type(kind: str) -> str:
    if kind not in _LAYER_TYPES:
        raise ConfigError(f"config.json: layers of the kind {kind[:40]!r} are not known to this planner")
    return _LAYER_TYPES[kind]


def _attentions(text: Mapping[str, Any], count: int, hidden: int, model_type: str) -> list[Attention]:
    read = _Reader(text)
    heads = read.number("num_attention_heads", "n_head", "num_heads", default=0)
    one_for_all = read.flag("multi_query") and not read.flag("new_decoder_architecture")  # Falcon
    kv_heads = read.number("num_key_value_heads", "n_head_kv", "num_kv_heads", default=1 if one_for_all else heads)
    derived = hidden // heads if heads else 0
    head_dim = read.number("head_dim", "kv_channels", default=derived) or derived
    types = _layer_types(text, count, model_type)
    if heads == 0 and any(kind.endswith("full_attention") or kind == "sliding_attention" for kind in types):
        raise ConfigError("config.json: num_attention_heads is missing or zero; without it no plan can be made")
    window = read.number("sliding_window", "attention_chunk_size", default=0) or None
    latent = read.number("kv_lora_rank", default=0)
    shared_from = count - read.number("num_kv_shared_layers", default=0)
    per_layer_heads = text.get("num_key_value_heads_per_layer") or text.get("block_configs")
    found = []
    for index, kind in enumerate(types):
        own_kv = _own_kv_heads(per_layer_heads, index, heads, kv_heads)
        if kind == "none" or (own_kv == 0 and kind == "full_attention" and not latent):
            found.append(Attention("none"))
        elif kind == "linear_attention":
            found.append(_linear(read))
        elif kind == "mamba":
            found.append(_mamba(read, hidden))
        elif latent:
            found.append(_mla(read, heads, latent))
        else:
            full = kind == "full_attention"
            wide = read.number("global_head_dim", default=0) if full else 0
            few = read.number("num_global_key_value_heads", default=0) if full else 0
            found.append(
                Attention(
                    "full" if full or window is None else "sliding",
                    q_heads=heads,
                    kv_heads=few or own_kv,
                    head_dim=wide or head_dim,
                    window=None if full else window,
                    owns_cache=index < shared_from,
                    has_value_weights=not (full and read.flag("attention_k_eq_v")),
                    output_gate=model_type.startswith(("qwen3_next", "qwen3_5")) or read.flag("attn_output_gate"),
                )
            )
    return found


def _own_kv_heads(given: Any, index: int, heads: int, usual: int) -> int:
    """KV heads of one layer, for models whose layers differ (layer-pruned ones have layers without attention)."""
    if not isinstance(given, Sequence) or isinstance(given, str) or index >= len(given):
        return usual
    entry = given[index]
    if isinstance(entry, int) and not isinstance(entry, bool):
        return max(0, min(entry, heads))
    attention = entry.get("attention") if isinstance(entry, Mapping) else None
    if not isinstance(attention, Mapping):
        return usual
    if attention.get("no_op") or attention.get("replace_with_linear"):
        return 0
    per_group = attention.get("n_heads_in_group")
    return heads // per_group if isinstance(per_group, int) and 0 < per_group <= heads else usual


def _mla(read: _Reader, heads: int, latent: int) -> Attention:
    return Attention(
        "mla",
        q_heads=heads,
        kv_heads=1,
        latent=latent,
        rope_dim=read.number("qk_rope_head_dim"),
        nope_dim=read.number("qk_nope_head_dim", default=128),
        v_head_dim=read.number("v_head_dim", default=128),
        q_rank=read.number("q_lora_rank", default=0),
        index_dim=read.number("index_head_dim", default=0),
        index_heads=read.number("index_n_heads", default=32),
    )


def _linear(read: _Reader) -> Attention:
    k_heads, v_heads = read.number("linear_num_key_heads"), read.number("linear_num_value_heads")
    k_dim, v_dim = read.number("linear_key_head_dim"), read.number("linear_value_head_dim")
    kernel = read.number("linear_conv_kernel_dim", default=4)
    return Attention(
        "linear",
        state_elements=v_heads * k_dim * v_dim,
        conv_elements=(kernel - 1) * (2 * k_heads * k_dim + v_heads * v_dim),
        state_heads=v_heads,
        linear=(k_heads, v_heads, k_dim, v_dim, kernel),
    )


def _mamba(read: _Reader, hidden: int) -> Attention:
    state = read.number("ssm_state_size", "mamba_d_state", "state_size", default=128)
    width = read.number("mamba_head_dim", "mamba_d_head", default=64)
    heads = read.number("mamba_num_heads", "mamba_n_heads", default=0) or (
        read.number("mamba_expand", "expand", default=2) * hidden // max(width, 1)
    )
    groups = read.number("n_groups", "mamba_n_groups", default=1)
    kernel = read.number("conv_kernel", "mamba_d_conv", default=4)
    return Attention(
        "mamba",
        state_elements=heads * width * state,
        conv_elements=max(kernel - 1, 0) * (heads * width + 2 * groups * state),
        state_heads=heads,
        mamba=(heads, width, state, groups, kernel),
    )


def _mlps(text: Mapping[str, Any], count: int, hidden: int, model_type: str) -> list[Mlp]:
    read = _Reader(text)
    experts = read.number("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", default=0)
    expert_width = read.number("moe_intermediate_size", "expert_intermediate_size", default=0)
    width = read.number("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=0)
    if not width and not experts:
        width = 4 * hidden
    gated = model_type not in _UNGATED and text.get("hidden_act") not in {"gelu_new", "relu2"}
    dense = Mlp(read.number("intermediate_size_mlp", default=width), gated)
    pattern = text.get("hybrid_override_pattern")
    patterned = isinstance(pattern, str) and bool(pattern)
    if not experts and not patterned:
        return [dense] * count
    shared = read.number("shared_expert_intermediate_size", default=0)
    shared = shared or read.number("n_shared_experts", default=0) * expert_width
    if model_type.startswith("llama4"):  # one shared expert beside the routed ones
        shared = width
    gemma4 = model_type.startswith("gemma4")  # a dense MLP beside the experts
    moe = Mlp(
        width=width if gemma4 else 0,
        gated=gated,
        experts=experts,
        top_k=read.number("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", default=8),
        expert_width=expert_width or width,
        shared_width=shared,
        shared_gate=bool(read.number("shared_expert_intermediate_size", default=0)),
        expert_bias=model_type == "gpt_oss",
    )
    first = read.number("first_k_dense_replace", default=0)
    step = max(read.number("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq", default=1), 1)
    only_dense = text.get("mlp_only_layers")
    dense_layers = set(only_dense) if isinstance(only_dense, list) else set()
    found = []
    for index in range(count):
        if patterned:
            letter = str(pattern)[index : index + 1]
            found.append({"-": dense, "E": moe}.get(letter, Mlp()))
        elif index < first or index in dense_layers or (index + 1) % step:
            found.append(dense)
        else:
            found.append(moe)
    return found


def _rope(
    text: Mapping[str, Any], attentions: Sequence[Attention], max_position: int, model_type: str
) -> tuple[tuple[int, int], ...]:
    """The cos/sin tables that vLLM keeps on the card: one per distinct rotary embedding, positions x rotary width.

    vLLM, layers/rotary_embedding: `_compute_cos_sin_cache` of the plain, linear and YaRN embeddings.
    """
    positions = _scaled_positions(text, max_position)
    share = text.get("partial_rotary_factor")
    part = float(share) if isinstance(share, (int, float)) and 0 < share <= 1 else 1.0
    if model_type == "phi" and share is None:
        part = 0.5
    if model_type.startswith(("qwen3_next", "qwen3_5")) and share is None:
        part = 0.25
    if model_type == "nemotron_h":  # its attention layers carry no positions
        return ()
    widths: list[int] = []
    tables: list[tuple[int, int]] = []
    own_local = model_type.startswith(("gemma3", "gemma4"))
    for kind in ("full", "sliding", "mla"):
        found = {int(a.rope_dim or a.head_dim * part) for a in attentions if a.kind == kind}
        if kind == "sliding" and not own_local:
            found -= set(widths)  # the same table serves both kinds, except where their base frequency differs
        widths += found
        length = max_position if kind == "sliding" and own_local else positions
        tables += [(length, width) for width in sorted(found) if width]
    return tuple(tables)


def _scaled_positions(text: Mapping[str, Any], max_position: int) -> int:
    """Rows of the table under rope_scaling: linear scaling makes it factor times longer, YaRN original x factor."""
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        return max_position
    factor, kind = scaling.get("factor"), scaling.get("rope_type", scaling.get("type"))
    if not isinstance(factor, (int, float)) or not 0 < factor < 1e6:
        return max_position
    original = scaling.get("original_max_position_embeddings")
    if kind == "linear":
        return min(int(max_position * factor), 1 << 26)
    if kind in {"yarn", "deepseek_yarn"} and isinstance(original, int):
        return max(max_position, min(int(original * factor), 1 << 26))
    return max_position


def _vision(
    config: Mapping[str, Any], text: Mapping[str, Any], parameters: int | None, incomplete: list[str]
) -> Vision | None:
    """The tower's size from vision_config: depth x (attention 4 h^2 + MLP) + patches, as ViT and SigLIP have it."""
    given = config.get("vision_config")
    names = [str(name) for name in config.get("architectures") or text.get("architectures") or []]
    if not isinstance(given, Mapping):
        thinker = config.get("thinker_config")
        given = thinker.get("vision_config") if isinstance(thinker, Mapping) else None
    if not isinstance(given, Mapping):
        if parameters:
            return Vision(parameters)
        if any("ConditionalGeneration" in name or "ForImage" in name for name in names):
            incomplete.append("a vision tower whose size config.json does not tell (no vision_config)")
        return None
    read = _Reader(given)
    hidden = read.number("hidden_size", "embed_dim", "width", default=1152)
    depth = read.number("num_hidden_layers", "depth", "layers", default=27, limit=MAX_LAYERS)
    width = read.number("intermediate_size", default=4 * hidden)
    patch = read.number("patch_size", default=14)
    matrices = 3 if "qwen2_5_vl" in str(given.get("model_type", "")) else 2
    merged = hidden * read.number("spatial_merge_size", default=1) ** 2
    out = read.number("out_hidden_size", default=_Reader(text).number("hidden_size"))
    total = depth * (4 * hidden * hidden + matrices * hidden * width) + 3 * hidden * patch * patch * 2
    total += read.number("num_position_embeddings", default=4096) * hidden + merged * (merged + out)
    return Vision(parameters or total, hidden, width, _vision_patches(read))


def _vision_patches(read: _Reader) -> int:
    """Patches of the largest picture that a start profiles: one of fixed size, or 16,384 merged patches."""
    image = read.number("image_size", default=0)
    patch = read.number("patch_size", default=14)
    if image and patch:
        return (image // patch) ** 2
    return 16384 * read.number("spatial_merge_size", default=2) ** 2
