# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which engine runs an instance, and which instances one engine's role has to run: plain data in and out. (pure)"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

BUILT_ENGINES = ("vllm", "llama_cpp")
"""Engines that this version of the collection has a role for; a new role adds its name here and nowhere else."""

ENGINE_FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"vllm": ("safetensors", "awq", "gptq", "fp8"), "llama_cpp": ("gguf",), "ollama": ("gguf",)}
)
"""Engine -> the model formats it reads. awq, gptq and fp8 are safetensors files with quantized weights."""

AUTO_ENGINE: Mapping[str, str] = MappingProxyType(
    {"gguf": "llama_cpp", "safetensors": "vllm", "awq": "vllm", "gptq": "vllm", "fp8": "vllm"}
)
"""Format -> what `engine: auto` means. Ollama runs only where an instance names it."""

ENGINES = tuple(ENGINE_FORMATS)
FORMATS = tuple(AUTO_ENGINE)
EVERY_ENGINE = "all"
DEFAULT_GPU_ROLE = "inference"
TASKS = ("chat", "embed")

INSTANCE_DEFAULTS: Mapping[str, object] = MappingProxyType(
    {
        "engine": "auto",
        "device": "auto",
        "gpu_role": DEFAULT_GPU_ROLE,
        "port": 8000,
        "context": 4096,
        "parallel": 1,
        "task": "chat",
        "flags": MappingProxyType({}),
        "state": "present",
    }
)
"""What an instance is where the inventory says nothing. One exception: `device: cpu` without a role needs no card.

`instances_for` knows more: what vLLM answers at once, and how long a request may be, comes from its memory plan; and
texts to embed may be as long as the model takes. There `parallel` or `context` is None.
"""


class PlacementError(ValueError):
    """An instance cannot be given to an engine; the message says why and what to write instead."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean port?' with a leading space where one of the known words is close, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""


def engine_for(model: Mapping[str, object], instance: Mapping[str, object]) -> str:
    """The engine of `instance` (its key `engine`, where `auto` or nothing means: by the model's format).

    Raises PlacementError for an unknown format or engine, and for an engine that cannot read the format.
    The answer may be an engine that is not built; `BUILT_ENGINES` tells.
    """
    form = str(model.get("format") or "")
    if form not in AUTO_ENGINE:
        raise PlacementError(
            f"the model's format '{form}' is none of {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}"
        )
    engine = str(instance.get("engine") or "auto")
    if engine == "auto":
        return AUTO_ENGINE[form]
    if engine not in ENGINE_FORMATS:
        allowed = ("auto", *ENGINES)
        raise PlacementError(f"engine '{engine}' is none of {', '.join(allowed)}.{did_you_mean(engine, allowed)}")
    if form not in ENGINE_FORMATS[engine]:
        raise PlacementError(
            f"engine {engine} reads {', '.join(ENGINE_FORMATS[engine])}, and the model's format is {form}. "
            f"Write engine: auto (here {AUTO_ENGINE[form]}), or name a model in a format that {engine} reads."
        )
    return engine


def with_defaults(instance: Mapping[str, object]) -> dict[str, object]:
    """`instance` with every key of the schema; keys without a value count as not written."""
    written = {key: value for key, value in instance.items() if value is not None}
    filled: dict[str, object] = {**INSTANCE_DEFAULTS, **written}
    if filled["device"] == "cpu" and "gpu_role" not in written:
        filled["gpu_role"] = ""
    flags = filled["flags"]
    filled["flags"] = dict(flags) if isinstance(flags, Mapping) else flags
    return filled


def instances_for(
    instances: Iterable[Mapping[str, object]], models: Mapping[str, Mapping[str, object]], engine: str
) -> list[dict[str, object]]:
    """The instances that `engine`'s role has to run, in the inventory's order; `engine` 'all' takes every engine's.

    `instances` is rig_instances, `models` is rig_models. Each result has every key of the schema, `engine` resolved,
    and `model_entry`, a copy of its model. Absent instances are left out like those that nobody names any more: what
    of them is still on a host, the host's own record of services tells.

    Raises PlacementError for an unknown `engine`, an instance without a name or with a model that `models` lacks, and
    an engine that cannot read the model.
    """
    if engine not in (EVERY_ENGINE, *ENGINES):
        raise PlacementError(f"no engine '{engine}'; known: {', '.join(ENGINES)}.{did_you_mean(engine, ENGINES)}")
    chosen: list[dict[str, object]] = []
    for number, written in enumerate(instances):
        path = f"rig_instances[{number}]"
        instance = with_defaults(written)
        name = instance.get("name")
        if not name:
            raise PlacementError(f"{path}.name: missing; every instance needs a name")
        if instance["state"] == "absent":
            continue
        key = str(instance.get("model") or "")
        model = models.get(key)
        if model is None:
            known = ", ".join(sorted(models)) or "none"
            raise PlacementError(
                f"{path}.model: instance '{name}' names the model '{key}', and rig_models has: "
                f"{known}.{did_you_mean(key, models)}"
            )
        try:
            resolved = engine_for(model, instance)
        except PlacementError as error:
            raise PlacementError(f"{path}.engine: instance '{name}': {error}") from error
        if engine in (EVERY_ENGINE, resolved):
            open_keys = {"parallel": resolved == "vllm", "context": resolved == "vllm" or instance["task"] == "embed"}
            left = {key: None for key, is_open in open_keys.items() if is_open and written.get(key) is None}
            chosen.append({**instance, **left, "engine": resolved, "model_entry": dict(model)})
    return chosen
