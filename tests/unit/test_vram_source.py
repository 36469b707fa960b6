# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models are read from a disk and from a hub: headers only, one request per shard, bounded, and refused in words."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import vram_source
from ansible_collections.gpurig.llm.plugins.module_utils.hub import Hub, HubAccessError, HubNotFoundError, Token
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan import plan
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import FITS, Card, Model, Request, Wishes
from ansible_collections.gpurig.llm.plugins.module_utils.vram_source import SourceError, from_hub, from_path
from ansible_collections.gpurig.llm.tests.hub_sim import HubSim
from ansible_collections.gpurig.llm.tests.unit.header_sets import write_headers
from ansible_collections.gpurig.llm.tests.unit.tiny_models import write_gguf

SMALL = {
    "model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "hidden_size": 512, "intermediate_size": 1024, "vocab_size": 2048, "max_position_embeddings": 4096,
}  # fmt: skip
CARD = Card("NVIDIA GeForce RTX 4090", 24077 << 20)
KEY = "hf_let_me_in"  # a made-up token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_headers(tmp_path / "model", SMALL, shards=3)
    return tmp_path / "model"


@pytest.fixture
def hub() -> Iterator[HubSim]:
    with HubSim() as sim:
        yield sim


def weights(model: Model) -> float:
    return plan(Request(model, (CARD,), wishes=Wishes(context=1024))).cards[0].parts["weights"].likely


def test_headers_on_disk_give_the_same_plan_as_the_config(folder: Path) -> None:
    found = from_path(folder)
    assert found.reads == 4
    assert len(found.files) == 3
    assert weights(found.model) == weights(Model("config alone", SMALL))


def test_a_second_copy_and_other_files_are_left_out(folder: Path) -> None:
    before = weights(from_path(folder).model)
    for name in ("consolidated.safetensors", "notes.txt"):
        (folder / name).write_bytes(b"never read")
    (folder / "sub").mkdir()
    (folder / "sub/extra.safetensors").write_bytes(b"never read")
    assert weights(from_path(folder).model) == before


def test_a_hub_is_asked_once_per_shard(folder: Path, hub: HubSim) -> None:
    commit = hub.add("acme/small", folder)
    found = from_hub(Hub({"HF_ENDPOINT": hub.endpoint}), "acme/small", commit)
    shards = hub.downloads(".safetensors")
    assert len(shards) == 3
    assert all(seen.range.startswith("bytes=0-") for seen in shards)
    assert found.reads == 4
    assert weights(found.model) == weights(from_path(folder).model)


def test_a_long_header_costs_a_second_request(folder: Path, hub: HubSim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram_source, "FIRST_READ_BYTES", 64)
    commit = hub.add("acme/small", folder)
    found = from_hub(Hub({"HF_ENDPOINT": hub.endpoint}), "acme/small", commit)
    assert found.reads == 1 + 2 * 3
    assert weights(found.model) == weights(from_path(folder).model)


def test_a_gated_model_needs_its_token(folder: Path, hub: HubSim) -> None:
    hub.add_account("ann", KEY)
    commit = hub.add("acme/gated", folder, users=["ann"])
    environment = {"HF_ENDPOINT": hub.endpoint}
    with pytest.raises(HubAccessError, match="gated"):
        from_hub(Hub(environment), "acme/gated", commit)
    assert from_hub(Hub(environment, Token(KEY, "HF_TOKEN")), "acme/gated", commit).model.tensors
    with pytest.raises(HubNotFoundError):
        from_hub(Hub(environment), "acme/absent", commit)


def test_gguf_files_are_read_from_disk_and_hub(tmp_path: Path, hub: HubSim) -> None:
    path = write_gguf(tmp_path / "files/tiny.gguf")
    with pytest.raises(Exception, match="num_hidden_layers"):
        plan(Request(from_path(path).model, (CARD,), "llama_cpp"))
    commit = hub.add("acme/gguf", tmp_path / "files")
    found = from_hub(Hub({"HF_ENDPOINT": hub.endpoint}), "acme/gguf", commit, file="tiny.gguf")
    assert found.model.config["model_type"] == "llama"
    assert [t.name for t in found.model.tensors or ()] == ["output_norm.weight", "token_embd.weight"]
    with pytest.raises(SourceError, match="no file other"):
        from_hub(Hub({"HF_ENDPOINT": hub.endpoint}), "acme/gguf", commit, file="other.gguf")


def gguf_part(tensor: str, pairs: dict[str, int]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, value in pairs.items():
        metadata += text(f"llama.{key}") + struct.pack("<II", 4, value)
    body = text(tensor) + struct.pack("<I2QIQ", 2, 512, 2048, 12, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1 + len(pairs)) + metadata + body


def test_split_gguf_files_are_one_model(tmp_path: Path) -> None:
    shape = {
        "block_count": 2, "embedding_length": 512, "feed_forward_length": 1024, "context_length": 4096,
        "attention.head_count": 8, "attention.head_count_kv": 4,
    }  # fmt: skip
    for number, tensor in enumerate(("token_embd.weight", "blk.0.ffn_up.weight"), 1):
        (tmp_path / f"m-{number:05d}-of-00002.gguf").write_bytes(gguf_part(tensor, shape))
    (tmp_path / "mmproj-f16.gguf").write_bytes(b"a projector, not the model")
    found = from_path(tmp_path)
    assert len(found.files) == 2
    made = plan(Request(found.model, (CARD,), "llama_cpp", wishes=Wishes(context=4096)))
    assert made.verdict == FITS
    assert made.cards[0].parts["weights"].likely == 2 * 512 * 2048 // 256 * 144  # the tied embedding is the output too


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("config.json", b"{", "config.json is not JSON", id="broken config"),
        pytest.param("config.json", b"[]", "not a JSON object", id="config is a list"),
        pytest.param("config.json", None, "config.json is missing", id="no config"),
        pytest.param("model-00002-of-00003.safetensors", b"\0" * 20, "00002-of-00003.* not a safetensors", id="zeros"),
        pytest.param("model-00002-of-00003.safetensors", struct.pack("<Q", 99), "truncated", id="cut in the header"),
    ],
)
def test_damage_is_named_with_its_file(folder: Path, name: str, content: bytes | None, words: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(SourceError, match=words):
        from_path(folder)


def test_places_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing in it"):
        from_path(tmp_path / "absent")
    (tmp_path / "model.bin").write_bytes(b"pickle")
    with pytest.raises(SourceError, match=r"neither \.safetensors nor \.gguf"):
        from_path(tmp_path)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 5, 0))
    with pytest.raises(SourceError, match="truncated"):
        from_path(tmp_path)


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MAX_SHARDS", 2, "3 shards; at most 2"),
        ("MAX_HEADERS_BYTES", 100, "larger than 100 bytes"),
        ("DEADLINE_S", -1.0, "took more than"),
    ],
)
def test_work_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: Any, words: str) -> None:
    monkeypatch.setattr(vram_source, limit, value)
    with pytest.raises(SourceError, match=words):
        from_path(folder)


def test_the_config_may_be_nested(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "outer", "text_config": SMALL}), encoding="utf-8")
    assert weights(from_path(folder).model) == weights(Model("config alone", SMALL))
