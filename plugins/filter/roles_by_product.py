# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter roles_by_product: the cards of an inventory by what they are called. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils import plan_inventory
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import PlanError


def roles_by_product(
    gpus: Sequence[Mapping[str, Any]], roles: Mapping[str, Any], products: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Return {GPU role: [product#number, ...]}."""
    try:
        return plan_inventory.roles_by_product(gpus, roles, products)
    except PlanError as error:
        raise AnsibleFilterError(f"The cards cannot be told from the inventory:\n{error}") from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"roles_by_product": roles_by_product}
