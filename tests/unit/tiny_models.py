# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small models with true headers: GGUF (single and split) and the safetensors family, written with struct and json."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

F32 = 0
Q4_1 = 3


def _noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 (weights, not keys)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, kind: int, packed: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + packed


def gguf_bytes(
    elements: int = 4096, seed: int = 0, version: int = 3, tensor_type: int = F32, alignment: int = 64
) -> bytes:
    """A GGUF file with every kind of value in its metadata and two tensors, the second of `elements` elements."""
    words = ["Hello", " world", "é", ""]
    pairs = [
        _pair("general.architecture", 8, _string("llama")),
        _pair("general.alignment", 4, struct.pack("<I", alignment)),
        _pair("llama.context_length", 10, struct.pack("<Q", 2048)),
        _pair("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
        _pair("tokenizer.ggml.add_bos_token", 7, struct.pack("<?", False)),
        _pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, len(words)) + b"".join(map(_string, words))),
        _pair("tokenizer.ggml.token_type", 9, struct.pack("<IQ", 5, len(words)) + struct.pack("<4i", 3, 1, 1, 5)),
    ]
    block, block_bytes = {F32: (1, 4), Q4_1: (32, 20)}[tensor_type]
    size = -(-elements // block) * block_bytes
    first = 96 + -96 % alignment
    infos = [
        _string("output_norm.weight") + struct.pack("<IQIQ", 1, 24, F32, 0),
        _string("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, elements // 64, tensor_type, first),
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    noise = _noise(seed, size)
    return head + b"\0" * (-len(head) % alignment) + b"\1" * 96 + b"\0" * (first - 96) + noise


def write_gguf(path: Path, **wishes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(**wishes))
    return path


def write_split_gguf(directory: Path, stem: str, parts: int) -> list[Path]:
    names = [f"{stem}-{n:05d}-of-{parts:05d}.gguf" for n in range(1, parts + 1)]
    return [write_gguf(directory / name, seed=n) for n, name in enumerate(names)]


def safetensors_bytes(tensors: Mapping[str, int], seed: int = 0) -> bytes:
    """A safetensors file of F32 vectors: {name: number of elements}."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, elements in tensors.items():
        header[name] = {"dtype": "F32", "shape": [elements], "data_offsets": [end, end + 4 * elements]}
        end += 4 * elements
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + _noise(seed, end)


def write_safetensors(
    directory: Path,
    shards: int = 1,
    elements: int = 512,
    quantization: Mapping[str, Any] | None = None,
    seed: int = 0,
    tokenizer: Sequence[str] = ("tokenizer.json", "tokenizer_config.json"),
) -> Path:
    """A directory as a hub serves it: config, tokenizer, and weights in one file or in shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64}
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in tokenizer:
        (directory / name).write_text(json.dumps({"version": "1.0", "model": {"vocab": {"a": 0}}}), encoding="utf-8")
    (directory / "README.md").write_text("# Tiny\n", encoding="utf-8")
    if shards == 1:
        (directory / "model.safetensors").write_bytes(safetensors_bytes({"a": elements, "b": elements}, seed))
        return directory
    weights = {}
    for n in range(1, shards + 1):
        name = f"model-{n:05d}-of-{shards:05d}.safetensors"
        (directory / name).write_bytes(safetensors_bytes({f"layer.{n}": elements}, seed + n))
        weights[f"layer.{n}"] = name
    index = {"metadata": {"total_size": 4 * elements * shards}, "weight_map": weights}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory
