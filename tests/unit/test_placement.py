# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine an instance gets, and what a role is handed."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import placement
from ansible_collections.gpurig.llm.plugins.module_utils.placement import PlacementError, engine_for, instances_for

MODELS = {
    "small": {"source": "local", "local": {"path": "/m/small.gguf"}, "format": "gguf"},
    "big": {"source": "hub", "hub": {"repo": "o/n", "revision": "0" * 40}, "format": "awq"},
}


@pytest.mark.parametrize(
    ("form", "engine", "expected"),
    [
        ("gguf", None, "llama_cpp"),
        ("gguf", "auto", "llama_cpp"),
        ("gguf", "llama_cpp", "llama_cpp"),
        ("gguf", "ollama", "ollama"),
        ("safetensors", "auto", "vllm"),
        ("awq", "auto", "vllm"),
        ("gptq", "vllm", "vllm"),
        ("fp8", "auto", "vllm"),
    ],
)
def test_the_engine_follows_the_format_unless_it_is_named(form: str, engine: str | None, expected: str) -> None:
    instance = {} if engine is None else {"engine": engine}
    assert engine_for({"format": form}, instance) == expected


@pytest.mark.parametrize(
    ("form", "engine", "words"),
    [
        ("gguf", "vllm", "engine vllm reads safetensors, awq, gptq, fp8, and the model's format is gguf"),
        (
            "awq",
            "llama_cpp",
            "engine llama_cpp reads gguf, and the model's format is awq. Write engine: auto (here vllm)",
        ),
        ("fp8", "ollama", "engine ollama reads gguf"),
        ("ggfu", "auto", "format 'ggfu' is none of gguf, safetensors, awq, gptq, fp8. Did you mean gguf?"),
        ("", "auto", "format '' is none of"),
        ("gguf", "llamacpp", "engine 'llamacpp' is none of auto, vllm, llama_cpp, ollama. Did you mean llama_cpp?"),
    ],
)
def test_an_engine_that_cannot_read_the_model_is_refused_in_words(form: str, engine: str, words: str) -> None:
    with pytest.raises(PlacementError) as caught:
        engine_for({"format": form}, {"engine": engine})
    assert words in str(caught.value)


def test_every_format_has_an_engine_that_reads_it_and_every_built_engine_is_known() -> None:
    for form, engine in placement.AUTO_ENGINE.items():
        assert form in placement.ENGINE_FORMATS[engine]
    assert set(placement.BUILT_ENGINES) <= set(placement.ENGINES)
    assert {form for forms in placement.ENGINE_FORMATS.values() for form in forms} == set(placement.FORMATS)


def test_a_role_gets_its_instances_complete_and_in_order() -> None:
    written = [
        {"name": "b", "model": "small"},
        {"name": "v", "model": "big", "port": 8001},
        {
            "name": "a",
            "model": "small",
            "engine": "llama_cpp",
            "device": "cuda",
            "gpu_role": "training",
            "port": 9000,
            "context": 100,
            "parallel": 3,
            "task": "embed",
            "flags": {"threads": 2},
            "state": "present",
        },
    ]
    before = copy.deepcopy(written)
    chosen = instances_for(written, MODELS, "llama_cpp")
    assert chosen == [
        {
            "name": "b",
            "model": "small",
            "model_entry": MODELS["small"],
            "engine": "llama_cpp",
            "device": "auto",
            "gpu_role": "inference",
            "port": 8000,
            "context": 4096,
            "parallel": 1,
            "task": "chat",
            "flags": {},
            "state": "present",
        },
        {**written[2], "model_entry": MODELS["small"]},
    ]
    assert written == before
    assert json.loads(json.dumps(chosen)) == chosen, "Ansible has to be able to carry it"
    assert [one["name"] for one in instances_for(written, MODELS, "vllm")] == ["v"]
    assert instances_for(written, MODELS, "ollama") == []
    everyone = [(one["name"], one["engine"]) for one in instances_for(written, MODELS, "all")]
    assert everyone == [("b", "llama_cpp"), ("v", "vllm"), ("a", "llama_cpp")]


def test_what_a_role_gets_is_its_own_copy() -> None:
    chosen = instances_for([{"name": "b", "model": "small"}, {"name": "c", "model": "small"}], MODELS, "llama_cpp")
    chosen[0]["flags"]["x"] = 1
    chosen[0]["model_entry"]["x"] = 1
    assert chosen[1]["flags"] == {}
    assert "x" not in MODELS["small"]
    assert placement.INSTANCE_DEFAULTS["flags"] == {}


@pytest.mark.parametrize(
    ("instance", "role"),
    [
        ({"device": "cpu"}, ""),
        ({"device": "cpu", "gpu_role": "inference"}, "inference"),
        ({"device": "cuda"}, "inference"),
        ({"gpu_role": None}, "inference"),
    ],
)
def test_the_processor_needs_no_card(instance: dict[str, object], role: str) -> None:
    chosen = instances_for([{"name": "b", "model": "small", **instance}], MODELS, "llama_cpp")
    assert chosen[0]["gpu_role"] == role


@pytest.mark.parametrize(
    ("written", "parallel", "context"),
    [
        ({"model": "small"}, 1, 4096),
        ({"model": "small", "task": "embed"}, 1, None),
        ({"model": "big"}, None, None),
        ({"model": "big", "context": 64}, None, 64),
        ({"model": "big", "task": "embed"}, None, None),
        ({"model": "big", "task": "embed", "parallel": 2, "context": 64}, 2, 64),
    ],
)
def test_what_an_engine_decides_itself_stays_open(
    written: dict[str, object], parallel: object, context: object
) -> None:
    chosen = instances_for([{"name": "a", **written}], MODELS, "all")[0]
    assert (chosen["parallel"], chosen["context"]) == (parallel, context)


@pytest.mark.parametrize(
    "written", [{"model": "small"}, {"model": "gone"}, {"model": "big", "engine": "llama_cpp"}, {}]
)
def test_absent_instances_are_left_out_whatever_they_say(written: dict[str, object]) -> None:
    old = {"name": "old", "state": "absent", **written}
    for engine in ("llama_cpp", "all"):
        chosen = instances_for([old, {"name": "new", "model": "small"}], MODELS, engine)
        assert [one["name"] for one in chosen] == ["new"]


@pytest.mark.parametrize(
    ("instances", "models", "engine", "words"),
    [
        ([{"name": "a", "model": "smal"}], MODELS, "llama_cpp", "rig_instances[0].model: instance 'a' names the model"),
        ([{"name": "a", "model": "smal"}], MODELS, "llama_cpp", "rig_models has: big, small. Did you mean small?"),
        ([{"name": "a", "model": "small"}], {}, "llama_cpp", "rig_models has: none."),
        ([{"model": "small"}], MODELS, "llama_cpp", "rig_instances[0].name: missing"),
        (
            [{"name": "a", "model": "small", "engine": "vllm"}],
            MODELS,
            "llama_cpp",
            "[0].engine: instance 'a': engine vllm",
        ),
        ([], MODELS, "llama-cpp", "no engine 'llama-cpp'; known: vllm, llama_cpp, ollama. Did you mean llama_cpp?"),
    ],
)
def test_what_cannot_be_placed_is_named(
    instances: list[dict[str, object]], models: dict[str, dict[str, object]], engine: str, words: str
) -> None:
    with pytest.raises(PlacementError) as caught:
        instances_for(instances, models, engine)
    assert words in str(caught.value)
