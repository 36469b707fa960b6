# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter inventory_errors: a host's variables in, everything wrong with them out. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ansible.errors import AnsibleError, AnsibleFilterError

from ansible_collections.gpurig.llm.plugins.module_utils.schema import PREFIX, Unreadable, validate


def _plain(value: object) -> object:
    """`value` with Ansible's lazy containers turned into dicts and lists, which renders every template inside."""
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_plain(item) for item in value]
    return value


def inventory_errors(variables: object) -> list[str]:
    """Everything wrong with the rig_* variables; other variables are not even rendered."""
    if not isinstance(variables, Mapping):
        raise AnsibleFilterError(
            "inventory_errors takes the variables of one host: "
            "hostvars[inventory_hostname] | gpurig.llm.inventory_errors"
        )
    rig: dict[str, object] = {}
    for name in variables:
        if not (isinstance(name, str) and name.startswith(PREFIX)):
            continue
        try:
            rig[name] = _plain(variables[name])
        except AnsibleError as error:
            rig[name] = Unreadable(f"cannot be rendered: {error}")
    return validate(rig)


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"inventory_errors": inventory_errors}
