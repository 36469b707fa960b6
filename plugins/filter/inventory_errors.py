# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter inventory_errors: a host's variables in, everything wrong with them out. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleError, AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.schema import PREFIX, Unreadable, validate
from jinja2 import StrictUndefined, UndefinedError


def _rendered(container: Any, key: Any) -> object:
    """`container[key]` as plain data. Ansible renders a value when it is taken out; one that fails is Unreadable."""
    try:
        value = container[key]
        if isinstance(value, StrictUndefined):
            str(value)  # raises, and only then says what is undefined
    except (AnsibleError, UndefinedError) as error:
        return Unreadable(f"its template cannot be rendered: {error.__cause__ or error}")
    if isinstance(value, Mapping):
        return {name: _rendered(value, name) for name in value}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_rendered(value, number) for number in range(len(value))]
    plain: object = value
    return plain


def inventory_errors(variables: object) -> list[str]:
    """Everything wrong with the rig_* variables; other variables are not even rendered."""
    if not isinstance(variables, Mapping):
        raise AnsibleFilterError(
            "inventory_errors takes the variables of one host: "
            "hostvars[inventory_hostname] | gpurig.llm.inventory_errors"
        )
    ours = [name for name in variables if isinstance(name, str) and name.startswith(PREFIX)]
    problems: list[str] = validate({name: _rendered(variables, name) for name in ours})
    return problems


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"inventory_errors": inventory_errors}
