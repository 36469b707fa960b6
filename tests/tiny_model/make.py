#!/usr/bin/env python3
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a tiny, real chat model (Hugging Face layout, safetensors) whose answer is fixed; standard library only.

    make.py DIRECTORY [--architecture llama|qwen2|mistral|gemma3_text|mixtral|deepseek_v2] [--answer TEXT] [--shards N]
        [--intermediate N] [--layers N] [--kv-heads N] [--window N]

Nothing is trained: each word of the answer has a direction of its own in the embedding, and the output layer maps that
direction to the next word. Whatever is asked, at any temperature, an engine answers with ANSWER; a chat request that
carries tools is answered with a call of CALL_NAME with CALL_ARGUMENTS, as hermes writes it. It ends with finish_reason
stop or tool_calls. Attention and MLP compute with small noise. As an embedding model it returns `hidden` numbers.

The architectures differ in what they keep per token: llama, qwen2 and mistral keys and values of `kv_heads` heads,
mistral with a window only the last tokens, gemma3_text in two layers of three, mixtral adds experts, deepseek_v2 keeps
one latent vector, of the width that vLLM computes on every processor.

The same arguments give the same bytes on every Python. Prompts count one token for each byte and special token.
"""

from __future__ import annotations

import argparse
import array
import json
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ANSWER = "Hello from a tiny model: this answer is always the same."
CALL_NAME = "get_weather"
CALL_ARGUMENTS = {"city": "Paris"}
CALL = (
    "<tool_call>",
    '\n{"name": "',
    CALL_NAME,
    '", "arguments": {"',
    "city",
    '": "',
    "Paris",
    '"}}\n',
    "</tool_call>",
)

PAD, BEGIN, END, TURN, TURN_END, TOOLS = (
    *("<|pad|>", "<|begin|>", "<|endoftext|>"),
    *("<|im_start|>", "<|im_end|>", "<|tools|>"),
)
SPECIAL = (PAD, BEGIN, END, TURN, TURN_END, TOOLS)

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
}
LATENT, ROPE, NOPE, VALUE = 512, 64, 32, 32
"""deepseek_v2's widths: the latent vector and its rotary part, and what one head expands it to."""
EXPERTS, EXPERTS_USED = 4, 2
FULL_EVERY = 3
"""gemma3_text: every third layer and the last one see all tokens, the others a window."""

TEMPLATE = """\
{%- if tools -%}
{{- '<|im_start|>system\\nTools:' -}}
{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- elif message['content'] -%}
{%- for part in message['content'] -%}{{- part['text'] if part['type'] == 'text' -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if tools and messages[-1]['role'] != 'tool' -%}{{- '<|tools|>' -}}{%- endif -%}
{%- endif -%}
"""

NOISE = 0.01
SIGNAL = 4.0


@dataclass(frozen=True)
class Shape:
    """What the model is like. `hidden` must hold one direction for each word of the answer and of the call, plus 4."""

    architecture: str = "llama"
    answer: str = ANSWER
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    intermediate: int = 128
    context: int = 2048
    shards: int = 1
    seed: int = 0
    window: int = 0
    """Tokens that a layer with a window sees; for mistral 0 means none, for gemma3_text 512."""

    @property
    def gemma(self) -> bool:
        return self.architecture == "gemma3_text"


@dataclass(frozen=True)
class Tensor:
    """A weight: its shape and its bfloat16 values, little-endian."""

    shape: tuple[int, ...]
    data: bytes


def words_of(answer: str) -> list[str]:
    """The answer in tokens: words with the blank before them, and punctuation. Raises ValueError when one repeats."""
    words = re.findall(r" ?\w+| ?[^\w\s]", answer)
    repeated = sorted({word for word in words if words.count(word) > 1 or word in CALL})
    if "".join(words) != answer or not words or repeated:
        raise ValueError(f"answer: found {answer!r}, needed different words with single blanks; {repeated} repeat")
    return words


def prompt_tokens(content: str) -> int:
    """Tokens of a chat request with one message of the user and without tools."""
    return 3 + len(b"user\n" + content.encode() + b"\n" + b"assistant\n")


def answer_tokens(answer: str = ANSWER) -> int:
    """Tokens that an answer is counted as, its end included."""
    return len(words_of(answer)) + 1


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE (GPT-2's encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    for number, byte in enumerate(byte for byte in range(256) if byte not in letters):
        letters[byte] = chr(256 + number)
    return [letters[byte] for byte in range(256)]


def vocabulary(shape: Shape) -> dict[str, int]:
    """Token -> id, as the tokenizer's file writes tokens: specials, bytes, words."""
    letters = byte_letters()
    spelled = ["".join(letters[byte] for byte in word.encode()) for word in (*words_of(shape.answer), *CALL)]
    tokens = dict.fromkeys((*SPECIAL, *letters, *spelled))
    return {token: number for number, token in enumerate(tokens)}


def bfloat16(values: Sequence[float]) -> bytes:
    floats = array.array("f", values)
    if sys.byteorder == "big":
        floats.byteswap()
    raw = floats.tobytes()
    halves = bytearray(len(raw) // 2)
    halves[0::2], halves[1::2] = raw[2::4], raw[3::4]  # the upper half of a float32 is a bfloat16
    return bytes(halves)


def tensors(shape: Shape) -> dict[str, Tensor]:
    """All weights by their names in the file. Raises ValueError when `hidden` is too small for the answer."""
    ids = vocabulary(shape)
    size = -(-len(ids) // 64) * 64
    # Each step: the tokens after which it comes, and the token that it leads to.
    letters = byte_letters()
    number_of = {
        word: ids["".join(letters[byte] for byte in word.encode())] for word in (*words_of(shape.answer), *CALL)
    }
    anything = [token for token in range(size) if token != ids[TOOLS]]
    steps: list[tuple[list[int], int]] = []
    for begin, words in ((anything, words_of(shape.answer)), ([ids[TOOLS]], CALL)):
        before = begin
        for word in words:
            steps.append((before, number_of[word]))
            before = [number_of[word]]
        steps.append((before, ids[TURN_END]))
    if len(steps) > shape.hidden:
        raise ValueError(f"hidden: found {shape.hidden}, needed at least {len(steps)} for this answer")
    embedding = [0.0] * (size * shape.hidden)
    output = [0.0] * (size * shape.hidden)
    direction = {token: step for step, (before, _next) in enumerate(steps) for token in before}
    for token, step in direction.items():
        embedding[token * shape.hidden + step] = 1.0
    for step, (_before, following) in enumerate(steps):
        output[following * shape.hidden + step] = SIGNAL
    found = {"model.embed_tokens.weight": Tensor((size, shape.hidden), bfloat16(embedding))}
    for layer in range(shape.layers):
        found.update({f"model.layers.{layer}.{name}": tensor for name, tensor in layer_tensors(shape, layer)})
    found["model.norm.weight"] = norm(shape, shape.hidden)
    found["lm_head.weight"] = Tensor((size, shape.hidden), bfloat16(output))
    return found


def constant(size: int, value: float) -> Tensor:
    return Tensor((size,), bfloat16([value] * size))


def norm(shape: Shape, size: int, factor: float = 1.0) -> Tensor:
    """Weights of a norm that multiplies by `factor`; Gemma stores what is added to 1."""
    return constant(size, factor - 1.0 if shape.gemma else factor)


def layer_tensors(shape: Shape, layer: int) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of one layer: attention and MLP of small noise, which the answer does not depend on."""
    chance = random.Random(f"{shape.seed} {layer}")  # noqa: S311  weights, not keys

    def noise(rows: int, columns: int) -> Tensor:
        return Tensor((rows, columns), bfloat16([NOISE * (2 * chance.random() - 1) for _ in range(rows * columns)]))

    hidden = shape.hidden
    yield "input_layernorm.weight", norm(shape, hidden)
    for name, tensor in attention(shape, noise):
        yield f"self_attn.{name}", tensor
    if shape.gemma:  # its norms behind attention and MLP would make noise as loud as the signal
        yield "post_attention_layernorm.weight", norm(shape, hidden, NOISE)
        yield "pre_feedforward_layernorm.weight", norm(shape, hidden)
        yield "post_feedforward_layernorm.weight", norm(shape, hidden, NOISE)
    else:
        yield "post_attention_layernorm.weight", norm(shape, hidden)
    if shape.architecture == "mixtral":
        yield "block_sparse_moe.gate.weight", noise(EXPERTS, hidden)
        for expert in range(EXPERTS):
            yield f"block_sparse_moe.experts.{expert}.w1.weight", noise(shape.intermediate, hidden)
            yield f"block_sparse_moe.experts.{expert}.w3.weight", noise(shape.intermediate, hidden)
            yield f"block_sparse_moe.experts.{expert}.w2.weight", noise(hidden, shape.intermediate)
        return
    yield "mlp.gate_proj.weight", noise(shape.intermediate, hidden)
    yield "mlp.up_proj.weight", noise(shape.intermediate, hidden)
    yield "mlp.down_proj.weight", noise(hidden, shape.intermediate)


def attention(shape: Shape, noise: Callable[[int, int], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of one layer's attention."""
    hidden, heads, head = shape.hidden, shape.heads, shape.hidden // shape.heads
    if shape.architecture == "deepseek_v2":
        yield "q_proj.weight", noise(heads * (NOPE + ROPE), hidden)
        yield "kv_a_proj_with_mqa.weight", noise(LATENT + ROPE, hidden)
        yield "kv_a_layernorm.weight", norm(shape, LATENT)
        yield "kv_b_proj.weight", noise(heads * (NOPE + VALUE), LATENT)
        yield "o_proj.weight", noise(hidden, heads * VALUE)
        return
    for name, rows in (("q", hidden), ("k", shape.kv_heads * head), ("v", shape.kv_heads * head)):
        yield f"{name}_proj.weight", noise(rows, hidden)
        if shape.architecture == "qwen2":
            yield f"{name}_proj.bias", constant(rows, 0.0)
    yield "o_proj.weight", noise(hidden, hidden)
    if shape.gemma:
        yield "q_norm.weight", norm(shape, head)
        yield "k_norm.weight", norm(shape, head)


def safetensors(weights: dict[str, Tensor]) -> bytes:
    """The bytes of one safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in weights.items():
        begin, end = end, end + len(weight.data)
        header[name] = {"dtype": "BF16", "shape": weight.shape, "data_offsets": [begin, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(weight.data for weight in weights.values())


def weight_files(shape: Shape) -> Iterator[tuple[str, bytes]]:
    """(name, contents) of the weights' files, with an index where there are several."""
    weights = tensors(shape)
    if shape.shards == 1:
        yield "model.safetensors", safetensors(weights)
        return
    place = {}
    for shard in range(shape.shards):
        name = f"model-{shard + 1:05d}-of-{shape.shards:05d}.safetensors"
        part = dict(list(weights.items())[shard :: shape.shards])
        place.update(dict.fromkeys(part, name))
        yield name, safetensors(part)
    total = sum(len(weight.data) for weight in weights.values())
    yield "model.safetensors.index.json", text({"metadata": {"total_size": total}, "weight_map": place})


def text(content: object) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def own_config(shape: Shape) -> dict[str, object]:
    """What config.json says of one architecture only."""
    if shape.architecture == "mistral":
        return {"sliding_window": shape.window or None}
    if shape.architecture == "mixtral":
        return {"sliding_window": None, "num_local_experts": EXPERTS, "num_experts_per_tok": EXPERTS_USED}
    if shape.gemma:
        full = [(layer + 1) % FULL_EVERY == 0 or layer == shape.layers - 1 for layer in range(shape.layers)]
        return {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": shape.hidden // shape.heads,
            "sliding_window": shape.window or 512,
            "layer_types": ["full_attention" if sees_all else "sliding_attention" for sees_all in full],
        }
    if shape.architecture == "deepseek_v2":
        return {
            "kv_lora_rank": LATENT,
            "q_lora_rank": None,
            "qk_rope_head_dim": ROPE,
            "qk_nope_head_dim": NOPE,
            "v_head_dim": VALUE,
            "head_dim": ROPE,
            "n_routed_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_USED,
            "moe_intermediate_size": shape.intermediate,
            "first_k_dense_replace": shape.layers,
        }
    return {}


def files(shape: Shape) -> dict[str, bytes]:
    """Name -> contents of every file of the model."""
    ids = vocabulary(shape)
    begin, end, pad = ids[BEGIN], ids[TURN_END], ids[PAD]
    config = {
        "architectures": [ARCHITECTURES[shape.architecture]],
        "model_type": shape.architecture,
        "vocab_size": -(-len(ids) // 64) * 64,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": pad,
        **own_config(shape),
    }
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": ids[token], "content": token, **special} for token in SPECIAL],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": ids, "merges": []},
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": TURN_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.context,
        "chat_template": TEMPLATE,
        "added_tokens_decoder": {str(ids[token]): {"content": token, **special} for token in SPECIAL},
    }
    generation = {"bos_token_id": begin, "eos_token_id": [end, ids[END]], "pad_token_id": pad}
    return {
        "config.json": text(config),
        "generation_config.json": text(generation),
        "tokenizer.json": text(tokenizer),
        "tokenizer_config.json": text(tokenizer_config),
        **dict(weight_files(shape)),
    }


def make(directory: Path, shape: Shape | None = None) -> Path:
    """Write the model's files into the directory and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files(shape or Shape()).items():
        (directory / name).write_bytes(content)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=Shape.architecture)
    parser.add_argument("--answer", default=Shape.answer)
    parser.add_argument("--shards", type=int, default=Shape.shards)
    parser.add_argument("--intermediate", type=int, default=Shape.intermediate, help="24576 makes 19 MB")
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--kv-heads", type=int, default=Shape.kv_heads)
    parser.add_argument("--window", type=int, default=Shape.window)
    options = vars(parser.parse_args())
    make(options.pop("directory"), Shape(**options))


if __name__ == "__main__":
    main()
