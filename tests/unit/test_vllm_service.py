# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an instance to its service: what the files are named by, and which build runs it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import service_spec
from ansible_collections.gpurig.llm.plugins.module_utils.placement import instances_for
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import ConfigError
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_service import metadata_dir, services_for

MODELS = {"m": {"format": "safetensors", "source": "local", "local": {"path": "/srv/m"}}}
FOUND = {"m": {"path": "/srv/m", "record": "/var/lib/gpurig/models/m/.gpurig.json", "config": {}}}
ENVS = {"vllm_cuda": "/opt/gpurig/envs/vllm_cuda/aaaa", "vllm_cpu": "/opt/gpurig/envs/vllm_cpu/bbbb"}
PATHS = {"config": "/etc/gpurig", "secrets": "/etc/gpurig/secrets", "state": "/var/lib/gpurig", "log": "/var/log/x"}
RIG = {"user": "gpurig", "group": "gpurig", "paths": {**PATHS, "cache": "/var/lib/gpurig/cache"}}
OPTIONS = {"on_cards": ["chat"], "start_timeout_s": 1800, "shutdown_timeout_s": 30, "environment": {}}


def made(envs: dict[str, str] = ENVS, options: dict[str, Any] | None = None, **chat: Any) -> list[dict[str, Any]]:
    notes = {"name": "notes", "model": "m", "port": 8001, "device": "cpu", "task": "embed"}
    written = [{"name": "chat", "model": "m", "port": 8000, **chat}, notes]
    return services_for(instances_for(written, MODELS, "vllm"), FOUND, envs, RIG, {**OPTIONS, **(options or {})})


def test_a_card_s_instance_and_a_processor_s() -> None:
    chat, notes = made()
    assert chat["spec"]["argv"][:3] == ["/opt/gpurig/envs/vllm_cuda/aaaa/bin/vllm", "serve", "--config"]
    assert notes["spec"]["argv"][:3] == ["/opt/gpurig/envs/vllm_cpu/bbbb/bin/vllm", "serve", "--config"]
    assert (chat["spec"]["gpu_role"], notes["spec"]["gpu_role"]) == ("inference", "")
    assert "PYTHONPATH" not in chat["spec"]["environment"]
    assert notes["spec"]["environment"]["PYTHONPATH"] == "/opt/gpurig/envs/vllm_cpu/metadata-bbbb"
    assert metadata_dir(ENVS["vllm_cpu"]) == notes["spec"]["environment"]["PYTHONPATH"]
    for one, port in ((chat, 8000), (notes, 8001)):
        assert one["spec"]["argv"][3] == one["checked"]["path"]
        assert one["checked"]["checker"][0].startswith(one["spec"]["argv"][0].rpartition("/")[0])
        assert (one["port"], one["spec"]["health_url"]) == (port, f"http://127.0.0.1:{port}/health")
        assert one["spec"]["stop_timeout_s"] > OPTIONS["shutdown_timeout_s"], "killed while requests drain"
        service_spec.parse(one["spec"])


def test_a_file_is_named_by_its_text_and_its_environment() -> None:
    def path(**more: Any) -> str:
        return str(made(**more)[0]["checked"]["path"])

    assert path() == path()
    assert len({path(), path(context=512), path(envs={**ENVS, "vllm_cuda": "/opt/gpurig/envs/vllm_cuda/cccc"})}) == 3
    assert made()[1]["checked"]["path"] == made(context=512)[1]["checked"]["path"], "another instance's file changed"


def test_no_secret_is_in_a_file_or_a_unit() -> None:
    for one in made():
        assert "key" not in one["checked"]["text"].lower().replace("tokenizer", "")
        assert "VLLM_API_KEY" not in one["spec"]["environment"]
        assert one["spec"]["secrets_file"].startswith("/etc/gpurig/secrets/")


def test_the_problems_of_all_instances_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        made(flags={"max-model": 1}, options={"environment": {"VLLM_USE_V1": "1"}})
    assert "instance chat: flags.max-model" in str(caught.value)
    assert "vllm_process_environment.VLLM_USE_V1" in str(caught.value)
