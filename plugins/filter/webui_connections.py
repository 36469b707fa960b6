# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter webui_connections: what a page is connected with. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.webui_settings import connections_for


def webui_connections(
    instances: Sequence[Mapping[str, Any]],
    more: Sequence[Mapping[str, Any]],
    secrets_dir: str,
    tunnels: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, object]]:
    """Return one connection for each instance and each tunnel, then `more`."""
    try:
        connections: list[dict[str, object]] = connections_for(instances, more, secrets_dir, tunnels)
    except (KeyError, TypeError) as error:
        raise AnsibleFilterError(
            f"webui_connections: {error} is missing; needed: instances as instances_for gives them, and connections "
            "with their url"
        ) from error
    return connections


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"webui_connections": webui_connections}
