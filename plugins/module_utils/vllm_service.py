# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One vLLM instance as a service: its configuration file, how that is checked, and the spec of its process. (pure)"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from .vllm_config import ConfigError, config_for, config_text, environment_for

CHECKER = "dry_run.py"
_STOP_MARGIN_S = 30  # the workers' own end comes after the drain


def metadata_dir(env_path: str) -> str:
    """Where the metadata lies that the `vllm` command of the processor's build looks for, apart for each build."""
    return f"{posixpath.dirname(env_path)}/metadata-{posixpath.basename(env_path)}"


def services_for(
    instances: Iterable[Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    env_paths: Mapping[str, str],
    rig: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return {name, port, checked, spec} for each instance, in the order in which to start them.

    `instances`: of `instances_for('vllm')`. `models`: {model: {path, record, config}} of `models_found`. `env_paths`:
    {'vllm_cuda': path, 'vllm_cpu': path}. `rig`: the rig facts. `options`: on_cards (names of the instances that run
    on cards), start_timeout_s, shutdown_timeout_s, environment (further variables of the engines' processes), plans
    ({name: plan of the module vram_plan}; what an instance leaves open is taken from it), order (names in the order
    in which to start them; those it does not name come first).

    `checked` is an entry for the module engine_config, `spec` what the role service takes. The configuration file is
    named by all that the engine's parser judges: text, environment, variables, and which model it is. With another of
    them it is another file, which has to be read anew.
    Raises ConfigError with the problems of all instances.
    """
    made, problems = [], []
    for instance in instances:
        try:
            made.append(_service(instance, models[instance["model"]], env_paths, rig, options))
        except ConfigError as error:  # noqa: PERF203 (everything is tried)
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    order = list(options.get("order") or [])
    return sorted(made, key=lambda service: order.index(service["name"]) if service["name"] in order else -1)


def planned_instance(instance: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The instance with what its memory plan adds: its own keys and options win."""
    flags = {**(plan.get("flags") or {}), **(instance.get("flags") or {})}
    chosen = {key: plan.get(key) for key in ("context", "parallel") if not instance.get(key)}
    return {**instance, **chosen, "flags": flags}


def _service(
    instance: Mapping[str, Any],
    model: Mapping[str, Any],
    env_paths: Mapping[str, str],
    rig: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    name, port, paths = str(instance["name"]), int(instance["port"]), rig["paths"]
    device = "cuda" if name in options["on_cards"] else "cpu"
    env_path = env_paths[f"vllm_{device}"]
    plan = (options.get("plans") or {}).get(name) or {}
    instance = planned_instance(instance, plan)
    drain_s = int(options["shutdown_timeout_s"])
    text = config_text(config_for(instance, str(model["path"]), device, model.get("config"), drain_s))
    environment = environment_for(
        device,
        f"{paths['cache']}/vllm",
        {**(plan.get("environment") or {}), **options["environment"]},
        metadata_dir(env_path) if device == "cpu" else "",
        "vllm_process_environment",
    )
    depends = json.dumps([env_path, text, environment, instance.get("model_entry")], sort_keys=True)
    digest = hashlib.sha256(depends.encode()).hexdigest()[:12]
    config_path = f"{paths['config']}/instances/{name}-{digest}.yaml"
    url = f"http://127.0.0.1:{port}"
    return {
        "name": name,
        "port": port,
        "checked": {
            "name": name,
            "path": config_path,
            "text": text,
            "checker": [f"{env_path}/bin/python", f"{posixpath.dirname(env_path)}/{CHECKER}"],
            "environment": environment,
            "needs": str(model["path"]),
        },
        "spec": {
            "name": name,
            "description": f"vLLM serving {instance['model']}",
            "argv": [f"{env_path}/bin/vllm", "serve", "--config", config_path],
            "environment": environment,
            "secrets_file": f"{paths['secrets']}/{name}.env",
            "gpu_role": str(instance.get("gpu_role") or "") if device == "cuda" else "",
            "user": rig["user"],
            "group": rig["group"],
            "working_dir": paths["state"],
            "start_timeout_s": int(options["start_timeout_s"]),
            "stop_timeout_s": drain_s + _STOP_MARGIN_S,
            "health_url": f"{url}/health",
            "log_dir": paths["log"],
            "inputs": [str(model["record"])],
            "read_write_paths": [paths["cache"]],
            "labels": {"owner": "instances", "engine": "vllm", "model": str(instance["model"]), "url": f"{url}/v1"},
        },
    }
