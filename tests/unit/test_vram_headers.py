# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of safetensors and GGUF files: real ones are read to the byte, bad ones refused in words and in bounds."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.vram import headers
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import ConfigError, read_config
from ansible_collections.gpurig.llm.plugins.module_utils.vram.gguf import config_of
from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import (
    Gguf,
    HeaderError,
    ShortHeaderError,
    merge,
    parse_gguf,
    parse_safetensors,
    safetensors_length,
)
from ansible_collections.gpurig.llm.tests.unit.tiny_models import gguf_bytes
from hypothesis import given, settings
from hypothesis import strategies as st


def safetensors(tensors: dict[str, Any], pad: int = 0) -> bytes:
    text = json.dumps(tensors).encode() + b" " * pad
    return struct.pack("<Q", len(text)) + text


def entry(dtype: str, shape: list[int], start: int = 0, size: int | None = None) -> dict[str, Any]:
    if size is None:
        size = headers.SAFETENSORS_BITS[dtype] // 8
        for width in shape:
            size *= width
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(pairs: bytes = b"", count: int = 0, tensors: bytes = b"", tensor_count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensor_count, count) + pairs + tensors


def test_a_safetensors_header_is_read_to_the_byte() -> None:
    head = safetensors(
        {"__metadata__": {"format": "pt"}, "a": entry("BF16", [3, 4]), "b": entry("F8_E4M3", [5], 24)}, 3
    )
    found = parse_safetensors(head, len(head) + 29)
    assert [(t.name, t.dtype, t.shape, t.size_bytes, t.elements) for t in found] == [
        ("a", "BF16", (3, 4), 24, 12),
        ("b", "F8_E4M3", (5,), 5, 5),
    ]


@pytest.mark.parametrize(
    ("head", "size", "words"),
    [
        pytest.param(b"", None, "truncated", id="empty"),
        pytest.param(b"\x10\0\0", None, "truncated", id="three bytes"),
        pytest.param(b"version https://git-lfs", None, "Git LFS pointer", id="lfs pointer"),
        pytest.param(struct.pack("<Q", 1 << 63), None, "claims 9223372036854775808", id="huge length"),
        pytest.param(struct.pack("<Q", 0), None, "not a safetensors file", id="no header"),
        pytest.param(struct.pack("<Q", 9) + b"not json!", None, "not JSON", id="no json"),
        pytest.param(struct.pack("<Q", 4) + b"\xff\xfe{}", None, "not JSON", id="no text"),
        pytest.param(struct.pack("<Q", 2) + b"[]", None, "not a JSON object", id="a list"),
        pytest.param(struct.pack("<Q", 60_000) + b"[" * 60_000, None, "not JSON", id="deep nesting"),
        pytest.param(struct.pack("<Q", 4_000_000) + b"[" * 4_000_000, None, "entries", id="many brackets"),
        pytest.param(safetensors({"a": 7}), None, "not described", id="a number"),
        pytest.param(safetensors({"a": entry("F13", [1], 0, 1)}), None, "unknown dtype", id="wrong dtype"),
        pytest.param(safetensors({"a": entry("F16", [-1], 0, 2)}), None, "impossible shape", id="negative width"),
        pytest.param(safetensors({"a": entry("F16", [1 << 60], 0, 2)}), None, "impossible shape", id="huge width"),
        pytest.param(safetensors({"a": entry("F16", [1] * 9)}), None, "impossible shape", id="nine dimensions"),
        pytest.param(
            safetensors({"a": {"dtype": "F16", "shape": "x", "data_offsets": [0, 1]}}), None, "shape", id="text shape"
        ),
        pytest.param(
            safetensors({"a": {"dtype": "F16", "shape": [True], "data_offsets": [0, 2]}}), None, "shape", id="bool"
        ),
        pytest.param(safetensors({"a": entry("F16", [4], 0, 4)}), None, "needs 8 bytes", id="offsets too small"),
        pytest.param(
            safetensors({"a": {"dtype": "F16", "shape": [1], "data_offsets": [9]}}),
            None,
            "data_offsets",
            id="one offset",
        ),
        pytest.param(safetensors({"a": entry("F16", [4])}), 70, "truncated", id="file ends early"),
        pytest.param(struct.pack("<Q", 100), 20, "end within its header", id="file ends in header"),
    ],
)
def test_a_bad_safetensors_header_is_refused_in_words(head: bytes, size: int | None, words: str) -> None:
    with pytest.raises(HeaderError, match=words):
        parse_safetensors(head, size)


def test_a_short_read_says_how_much_is_wanted() -> None:
    head = safetensors({"a": entry("F16", [4])})
    with pytest.raises(ShortHeaderError) as caught:
        parse_safetensors(head[:20])
    assert caught.value.needed_bytes == len(head) == safetensors_length(head[:8])


def test_a_tensor_in_two_shards_is_refused() -> None:
    one = parse_safetensors(safetensors({"a": entry("F16", [4])}))
    with pytest.raises(HeaderError, match="in two files"):
        merge([one, one])


def test_a_gguf_header_is_read() -> None:
    found = parse_gguf(gguf_bytes())
    assert found.metadata["general.architecture"] == "llama"
    assert found.metadata["llama.context_length"] == 2048
    assert found.metadata["tokenizer.ggml.tokens"] is None
    assert found.metadata["tokenizer.ggml.token_type"] == [3, 1, 1, 5]
    assert {t.name: (t.dtype, t.size_bytes) for t in found.tensors} == {
        "output_norm.weight": ("F32", 96),
        "token_embd.weight": ("F32", 16384),
    }


ARRAY = text("k") + struct.pack("<I", 9)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        pytest.param(b"GGML" + b"\0" * 40, "begins with b'GGML'", id="magic"),
        pytest.param(gguf(version=9), "version 9", id="version"),
        pytest.param(gguf(version=3)[:4] + struct.pack(">I", 3) + b"\0" * 16, "big-endian", id="big-endian"),
        pytest.param(gguf(struct.pack("<Q", 1 << 62), 1), "a field claims", id="huge string"),
        pytest.param(gguf(ARRAY + struct.pack("<IQ", 0, 1 << 62), 1), "a field claims", id="huge array"),
        pytest.param(gguf(ARRAY + struct.pack("<IQ", 9, 1 << 62), 1), "array of", id="huge array of arrays"),
        pytest.param(gguf(ARRAY + struct.pack("<IQ", 9, 1) * 90, 1), "nests", id="nested arrays"),
        pytest.param(gguf(text("k") + struct.pack("<I", 77), 1), "unknown type 77", id="value type"),
        pytest.param(gguf(count=1 << 60), "goes on", id="pairs beyond the end"),
        pytest.param(gguf(tensor_count=1 << 60), "goes on", id="tensors beyond the end"),
        pytest.param(gguf(tensors=text("t") + struct.pack("<I", 99), tensor_count=1), "99 dimensions", id="dimensions"),
        pytest.param(
            gguf(tensors=text("t") + struct.pack("<I2Q", 2, 1 << 40, 1 << 40), tensor_count=1), "impossible", id="shape"
        ),
        pytest.param(
            gguf(tensors=text("t") + struct.pack("<IQIQ", 1, 32, 99, 0), tensor_count=1), "newer than", id="tensor type"
        ),
    ],
)
def test_a_bad_gguf_header_is_refused_in_words(head: bytes, words: str) -> None:
    with pytest.raises(HeaderError, match=words):
        parse_gguf(head)


BRACKETS = b'{"a":[' + b"[]," * 200_000 + b"[]]}"


@pytest.mark.parametrize(
    ("parse", "head"),
    [
        pytest.param(parse_safetensors, struct.pack("<Q", len(BRACKETS)) + BRACKETS, id="brackets"),
        pytest.param(parse_gguf, gguf(ARRAY + struct.pack("<IQ", 8, 1 << 40) + b"\0" * 1_600_000, 1), id="strings"),
        pytest.param(parse_gguf, gguf(ARRAY + struct.pack("<IQ", 9, 1 << 20) + b"\0" * 1_600_000, 1), id="arrays"),
    ],
)
def test_hostile_headers_cost_little(parse: Callable[[bytes], object], head: bytes) -> None:
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(HeaderError):
        parse(head)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20
    assert time.process_time() - started < 10


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(0, 400))
def test_any_bytes_end_in_a_list_or_in_words(data: bytes, is_gguf: bool, cut: int) -> None:
    good = gguf_bytes() if is_gguf else safetensors({"a": entry("F16", [4])}, 60)
    head = good[:cut] + data + good[cut + len(data) :]
    try:
        (parse_gguf if is_gguf else parse_safetensors)(head)
    except HeaderError as error:
        assert str(error)


# --- GGUF as config.json -----------------------------------------------------------------------------------------


def file(architecture: str, **metadata: Any) -> Gguf:
    named = {f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tensors = (headers.Tensor("token_embd.weight", "Q4_K", (4096, 32000), 1),)
    return Gguf({"general.architecture": architecture, **named}, tensors)


def test_metadata_becomes_a_config() -> None:
    config = config_of(
        file(
            "llama", block_count=2, embedding_length=4096, feed_forward_length=14336, context_length=8192,
            attention__head_count=32, attention__head_count_kv=[8, 0], rope__dimension_count=128,
        )
    )  # fmt: skip
    arch = read_config(config)
    assert arch.vocabulary == 32000
    assert arch.tied
    assert [layer.attention.kind for layer in arch.layers] == ["full", "none"]
    assert arch.layers[0].attention.head_dim == 128


def test_latents_and_delta_nets_are_read() -> None:
    mla = read_config(
        config_of(
            file(
                "deepseek2", block_count=2, embedding_length=2048, feed_forward_length=10944, attention__head_count=16,
                attention__kv_lora_rank=512, rope__dimension_count=64, attention__key_length_mla=192,
                attention__value_length_mla=128, expert_count=64, expert_used_count=6, expert_feed_forward_length=1408,
                leading_dense_block_count=1,
            )
        )
    )  # fmt: skip
    first = mla.layers[0].attention
    assert (first.latent, first.rope_dim, first.nope_dim, first.v_head_dim) == (512, 64, 128, 128)
    assert [layer.mlp.experts for layer in mla.layers] == [0, 64]
    hybrid = read_config(
        config_of(
            file("qwen3next", block_count=4, embedding_length=2048, attention__head_count=16, ssm__inner_size=4096)
        )
    )
    assert hybrid.kinds() == {"linear": 3, "full": 1}


def test_a_file_without_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"general\.architecture"):
        config_of(Gguf({}, ()))
