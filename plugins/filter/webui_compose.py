# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter webui_compose: what Docker Compose is told about the page. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.webui_compose import compose


def webui_compose(page: Mapping[str, Any]) -> dict[str, object]:
    """Return the compose file as data, to be written with to_nice_yaml."""
    try:
        made: dict[str, object] = compose(**page)
    except TypeError as error:
        raise AnsibleFilterError(f"webui_compose: {error}") from error
    return made


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"webui_compose": webui_compose}
