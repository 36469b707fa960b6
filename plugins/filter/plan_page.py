# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter plan_page: memory plans as an HTML page. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils import plan_page as page


def plan_page(hosts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the page for {host: {instance: plan}}."""
    return page.plan_page({host: list(plans.values()) for host, plans in hosts.items()})


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"plan_page": plan_page}
