# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role vllm runs. (glue)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import ConfigError
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_service import services_for


def vllm_services(
    instances: list[dict[str, Any]],
    models: dict[str, dict[str, Any]],
    env_paths: dict[str, str],
    rig: dict[str, Any],
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return each instance's configuration file, check and service spec; what vLLM must not get is an error."""
    try:
        return services_for(instances, models, env_paths, rig, options)
    except ConfigError as error:
        raise AnsibleFilterError(f"vLLM cannot be started so:\n{error}") from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"vllm_services": vllm_services}
