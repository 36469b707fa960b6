# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters between the inventory, the roles and the last report. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.llama_args import llama_argv
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import lock_id, parse
from ansible_collections.gpurig.llm.plugins.module_utils.report import report_text


def lock_info(text: str) -> dict[str, Any]:
    """Return what a lock's header and lines say."""
    lock = parse(text)
    return {
        "id": lock_id(text),
        "python": lock.python,
        "needs_headers": lock.needs_headers,
        "download_bytes": lock.download_bytes,
        "environment_bytes": lock.environment_bytes,
        "problems": list(lock.problems),
    }


def models_wanted(instances: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the models of all present instances, each once, in order."""
    present = [instance for instance in instances if instance.get("state", "present") == "present"]
    return list(dict.fromkeys(str(instance["model"]) for instance in present))


def models_found(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {model: {path, record, config}} from the results of a loop of model_fetch."""
    return {result["item"]["key"]: {key: result[key] for key in ("path", "record", "config")} for result in results}


def llama_arguments(instance: Mapping[str, Any], model_path: str) -> list[str]:
    """Return llama.cpp's arguments; a flag of ours is an error."""
    try:
        return llama_argv(instance, model_path)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def report_rows(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the report's rows from the results of a loop of engine_answer over instances."""
    return [
        {
            "instance": result["item"]["name"],
            "engine": result["item"]["engine"],
            "model": result["item"]["model"],
            "url": f"http://127.0.0.1:{result['item']['port']}/v1",
            "ready_s": result.get("ready_s"),
            "tokens_per_s": result["tokens_per_s"],
            "first_lines": [answer["first_line"] for answer in result["answers"]],
        }
        for result in answers
    ]


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "lock_info": lock_info,
            "models_wanted": models_wanted,
            "models_found": models_found,
            "llama_argv": llama_arguments,
            "report_rows": report_rows,
            "report_text": report_text,
        }
