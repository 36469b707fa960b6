# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter instances_for: the entries of rig_instances that one engine's role has to run. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils import placement


def instances_for(instances: Any, engine: str, models: Any) -> list[dict[str, object]]:
    """The instances of `engine`, complete with defaults and their model."""
    if not isinstance(instances, Sequence) or isinstance(instances, (str, bytes)):
        raise AnsibleFilterError("instances_for takes a list: rig_instances | gpurig.llm.instances_for(...)")
    if not isinstance(models, Mapping):
        raise AnsibleFilterError("instances_for: the second argument is the mapping rig_models")
    for number, instance in enumerate(instances):
        if not isinstance(instance, Mapping):
            raise AnsibleFilterError(f"rig_instances[{number}]: found '{instance}', needed a mapping")
    for name, model in models.items():
        if not isinstance(model, Mapping):
            raise AnsibleFilterError(f"rig_models.{name}: found '{model}', needed a mapping")
    try:
        chosen: list[dict[str, object]] = placement.instances_for(instances, models, engine)
    except placement.PlacementError as error:
        raise AnsibleFilterError(str(error)) from error
    return chosen


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"instances_for": instances_for}
