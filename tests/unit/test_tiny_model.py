# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tiny model's files: whole, the same each time, and leading from any token to the promised answer."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import model_files
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import read_config
from ansible_collections.gpurig.llm.tests.tiny_model import make as tiny
from ansible_collections.gpurig.llm.tests.tiny_model.make import Shape


def weights(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Name -> (shape, values) of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    found = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        halves = struct.unpack(f"<{(end - begin) // 2}H", data[begin:end])
        found[name] = (entry["shape"], [struct.unpack("<f", struct.pack("<I", half << 16))[0] for half in halves])
    return found


def answer_after(directory: Path, token: str) -> list[str]:
    """The tokens that follow one, when nothing but embedding and output layer counts."""
    vocabulary = json.loads((directory / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    tokens = {number: name for name, number in vocabulary.items()}
    found = weights(directory / "model.safetensors")
    (_size, hidden), embedding = found["model.embed_tokens.weight"]
    output = found["lm_head.weight"][1]
    said, current = [], vocabulary[token]
    for _step in range(hidden):
        vector = embedding[current * hidden :][:hidden]
        assert sorted(vector)[-2:] == [0.0, 1.0], "one direction for each step"
        scores = output[vector.index(1.0) :: hidden]
        current = scores.index(max(scores))
        said.append(tokens[current])
        if tokens[current] == tiny.TURN_END:
            break
    return said


def spoken(tokens: list[str]) -> str:
    letters = {letter: byte for byte, letter in enumerate(tiny.byte_letters())}
    return bytes(letters[letter] for token in tokens[:-1] for letter in token).decode()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_any_token_leads_to_the_answer_and_tools_lead_to_a_call(tmp_path: Path, architecture: str) -> None:
    model = tiny.make(tmp_path / "m", Shape(architecture=architecture))
    for token in ("a", "\u00ff", tiny.TURN):
        said = answer_after(model, token)
        assert (spoken(said), said[-1]) == (tiny.ANSWER, tiny.TURN_END)
        assert len(said) == tiny.answer_tokens()
    called = spoken(answer_after(model, tiny.TOOLS)).removeprefix("<tool_call>").removesuffix("</tool_call>")
    assert json.loads(called) == {"name": tiny.CALL_NAME, "arguments": tiny.CALL_ARGUMENTS}


def test_another_answer(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "m", Shape(answer="The second model, after the upgrade."))
    assert spoken(answer_after(model, "x")) == "The second model, after the upgrade."


@pytest.mark.parametrize("answer", ["", "two  blanks", "Paris", "a b b"])
def test_an_answer_that_cannot_be_a_chain_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match="answer: found"):
        tiny.words_of(answer)


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden: found 8, needed at least 24"):
        tiny.tensors(Shape(hidden=8))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_collection_takes_it_for_a_whole_safetensors_model(tmp_path: Path, architecture: str, shards: int) -> None:
    model = tiny.make(tmp_path / "m", Shape(architecture=architecture, shards=shards))
    assert len(list(model.glob("*.safetensors"))) == shards
    listing = {file.name: file.stat().st_size for file in model.iterdir()}
    heads = {name: (model / name).read_bytes() for name in model_files.heads_wanted("safetensors", listing)}
    assert model_files.judge("safetensors", listing, heads).problems == ()
    config = json.loads((model / "config.json").read_text("utf-8"))
    assert config["architectures"] == [tiny.ARCHITECTURES[architecture]]
    names = {name for file in model.glob("*.safetensors") for name in weights(file)}
    assert ("model.layers.0.self_attn.q_proj.bias" in names) == (architecture == "qwen2")


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    """The sum was taken on Python 3.10, 3.11 and 3.13 alike: a changed one means that other bytes would be served."""
    for name in ("a", "b"):
        tiny.make(tmp_path / name, Shape(shards=3))
    files = sorted((tmp_path / "a").iterdir())
    assert [file.read_bytes() for file in files] == [(tmp_path / "b" / file.name).read_bytes() for file in files]
    assert hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest() == (
        "49aa1b72c0187697f828568f99114ffa0eeedb7ae333fef86a49f55ef88e0364"
    )


@pytest.mark.parametrize(
    ("architecture", "sha256"),
    [
        ("llama", "8f4cf444f69daa04bf2e953ea112e1fc0ff42c094dad689b5e67a630217cf422"),
        ("qwen2", "b73ae0034d76babd6626d788dd69c2ba53796ae09d00d49b3baaf3bccd1a752b"),
        ("mistral", "baa0af46a4fceb165d096dcac2498f1fb744c7fe2b971af2ad695b6129d08bb9"),
        ("gemma3_text", "1591891252623d49e1b3cee2a922cb3522127762da1a6d01703a2cf6d1f78e3d"),
        ("mixtral", "79714975ee47c1da55d0b8e81dfadc0f7fc7fd0f4c02c6c0604740a0483bc176"),
        ("deepseek_v2", "fa660cc9cd702ecfda61b38725a8173dac9eee3ff93b716f08734b24539461ef"),
    ],
)
def test_each_architecture_has_its_bytes(architecture: str, sha256: str) -> None:
    """Taken as above; the engines' logs that other tests expect are those of these models."""
    found = tiny.files(Shape(architecture=architecture, layers=3, kv_heads=1, window=300))
    assert hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest() == sha256


@pytest.mark.parametrize(
    ("architecture", "kinds", "window", "tensor"),
    [
        ("llama", {"full": 5}, None, "mlp.gate_proj"),
        ("qwen2", {"full": 5}, None, "self_attn.q_proj.bias"),
        ("mistral", {"sliding": 5}, 300, "mlp.gate_proj"),
        ("gemma3_text", {"sliding": 3, "full": 2}, 300, "self_attn.q_norm"),
        ("mixtral", {"full": 5}, None, "block_sparse_moe.experts.3.w2"),
        ("deepseek_v2", {"mla": 5}, None, "self_attn.kv_a_proj_with_mqa"),
    ],
)
def test_each_architecture_keeps_what_its_family_keeps(
    architecture: str, kinds: dict[str, int], window: int | None, tensor: str
) -> None:
    """As the memory planner reads config.json, which is what the engine reads, too."""
    shape = Shape(architecture=architecture, layers=5, kv_heads=1, window=300)
    found = read_config(json.loads(tiny.files(shape)["config.json"]))
    assert found.kinds() == kinds
    assert found.layers[0].attention.window == window
    assert found.is_moe == (architecture == "mixtral")
    names = tiny.tensors(shape)
    assert any(name.startswith(f"model.layers.4.{tensor}") for name in names)


def test_gemma_stores_what_is_added_to_one(tmp_path: Path) -> None:
    found = weights(tiny.make(tmp_path / "m", Shape(architecture="gemma3_text")) / "model.safetensors")
    layer = {name.removeprefix("model.layers.0."): values for name, (_shape, values) in found.items()}
    assert set(found["model.norm.weight"][1]) == set(layer["input_layernorm.weight"]) == {0.0}
    assert layer["post_attention_layernorm.weight"][0] == pytest.approx(tiny.NOISE - 1, abs=0.005)


def test_the_program_takes_the_shape(tmp_path: Path) -> None:
    options = ["--architecture", "gemma3_text", "--layers", "3", "--kv-heads", "1", "--window", "128"]
    subprocess.run([sys.executable, tiny.__file__, str(tmp_path / "m"), *options], check=True, timeout=60)
    config = json.loads((tmp_path / "m/config.json").read_text("utf-8"))
    assert (config["num_key_value_heads"], config["sliding_window"]) == (1, 128)
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_prompts_are_counted_in_bytes_and_specials() -> None:
    assert tiny.prompt_tokens("hi") == 21
    assert tiny.prompt_tokens("é") == 21
