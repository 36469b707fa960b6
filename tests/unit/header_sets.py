# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Header sets of large models without their weights: sparse files of the full size, for tests and benchmarks."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import read_config
from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import Tensor
from ansible_collections.gpurig.llm.plugins.module_utils.vram.tensors import derive, quantization_named

LLAMA_405B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 126, "num_attention_heads": 128,
    "num_key_value_heads": 8, "hidden_size": 16384, "intermediate_size": 53248, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16",
}  # fmt: skip
"""config.json of meta-llama/Llama-3.1-405B."""


def write_headers(folder: Path, config: Mapping[str, Any], scheme: str = "", shards: int = 1) -> list[Path]:
    """Write config.json and `shards` safetensors files whose tensors are holes; returns the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = list(each_alone(derive(read_config(config), quantization_named(scheme))))
    per_shard = -(-len(tensors) // shards)
    written = []
    for number in range(shards):
        path = folder / f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        _write(path, tensors[number * per_shard : (number + 1) * per_shard])
        written.append(path)
    return written


def each_alone(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    """Tensors that stand for many as the many that a checkpoint stores."""
    for tensor in tensors:
        for number in range(tensor.count):
            name = tensor.name.replace("*", str(number))
            yield Tensor(name, tensor.dtype, tensor.shape, tensor.size_bytes // tensor.count)


def _write(path: Path, tensors: Iterable[Tensor]) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        offsets = [end, end + tensor.size_bytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    head = json.dumps(entries, separators=(",", ":")).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)
