# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter container_plan: what is to be done for a host's container engine, and why. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.container_plan import Facts, Wishes, plan


def _plain(value: Any) -> Any:
    """Dictionaries and lists in place of Ansible's lazy ones, which cannot be copied."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def container_plan(facts: Any, wishes: Any) -> dict[str, Any]:
    """The plan as data."""
    parts: dict[str, Any] = {}
    for name, kind, given in (("facts", Facts, facts), ("wishes", Wishes, wishes)):
        if not isinstance(given, Mapping):
            raise AnsibleFilterError(f"container_plan: {name} is a mapping")
        strange = sorted(set(given) - {one.name for one in fields(kind)})
        if strange:
            raise AnsibleFilterError(f"container_plan: {name} has no {', '.join(strange)}")
        parts[name] = kind(**_plain(given))
    return plan(parts["facts"], parts["wishes"]).as_dict()


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"container_plan": container_plan}
