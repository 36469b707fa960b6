# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter psu_budget: whether a power supply carries cards that are busy together. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils import psu_budget as pure


def psu_budget(cards: Any, psu: Any, ups: Any = None, group: str = "these cards") -> dict[str, object]:
    """The sums of one group of cards."""
    if not isinstance(cards, Sequence) or isinstance(cards, (str, bytes)):
        raise AnsibleFilterError("psu_budget takes a list of cards, each with name and limit_w")
    if not isinstance(psu, Mapping) or not psu or not isinstance(ups or {}, Mapping):
        raise AnsibleFilterError("psu_budget: psu and ups are mappings as rig_power has them, psu not empty")
    limits: dict[str, float | None] = {}
    for number, card in enumerate(cards):
        limit_w = card.get("limit_w") if isinstance(card, Mapping) else None
        if isinstance(limit_w, bool) or not isinstance(limit_w, (int, float)) or limit_w <= 0:
            raise AnsibleFilterError(f"psu_budget: card {number} needs limit_w, a number of watts above 0")
        limits[f"{number}: {card.get('name', '')}"] = float(limit_w)
    result = pure.budget({str(group): limits}, psu, ups or {})
    if result.problems:
        raise AnsibleFilterError("; ".join(result.problems))
    told: dict[str, object] = pure.budget_as_dict(result)
    return told


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"psu_budget": psu_budget}
