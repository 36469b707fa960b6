#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what an engine logged of its memory with what was planned. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: vram_check
short_description: Compare what an engine logged of its memory with the plan, and keep both
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Reads the log of the service's last start and compares weights, memory left for KV, KV tokens and concurrency with
    the plan on record (M(gpurig.llm.vram_plan)).
  - Adds one line for each start to C(plans/history.jsonl) in the state directory, and warns of what differs by more
    than five percent.
  - Does nothing for a service without a plan, and for a start that is in the history already.
  - The history is an observation and no state of the host, so this module never reports a change.
options:
  name:
    description: Name of the service.
    type: str
    required: true
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: [There is never a difference.]
  idempotent:
    support: full
seealso:
  - module: gpurig.llm.vram_plan
"""

EXAMPLES = r"""
- name: Compare the start with the plan
  gpurig.llm.vram_check:
    name: chat
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
row:
  description: The line of the history for this start; empty without a plan, or when the log tells nothing.
  returned: always
  type: dict
  contains:
    at_s: {description: 'When the process was started, in seconds since 1970.', type: float}
    name: {description: The service., type: str}
    pid: {description: Its process., type: int}
    model: {description: The model., type: str}
    version: {description: Version of vLLM., type: str}
    inputs: {description: Digest of what was asked for., type: str}
    planned: {description: Planned figures by name; sizes in bytes., type: dict}
    logged: {description: Logged figures by name; sizes in bytes., type: dict}
surprises:
  description: What differs by more than five percent, in words.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.plan_host import (
    add_to_history,
    read_history,
    read_plan,
)
from ansible_collections.gpurig.llm.plugins.module_utils.services import HostError, ServiceState, read_service
from ansible_collections.gpurig.llm.plugins.module_utils.start_causes import LOG_LINES
from ansible_collections.gpurig.llm.plugins.module_utils.start_log import (
    compare,
    logged_figures,
    planned_figures,
    surprises,
)
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import SupervisorError
from ansible_collections.gpurig.llm.plugins.module_utils.systemd import SystemdError

SAME_START_S = 2.0
"""Two readings of one process's start differ by less: the clock may have been set meanwhile."""


def row_of(state: ServiceState, plan: dict[str, Any], logged: dict[str, float]) -> dict[str, Any]:
    """The history's line for this start."""
    return {
        "at_s": round(state.since_s, 1),
        "name": state.name,
        "pid": state.pid,
        "model": plan["plan"]["model"],
        "version": plan["plan"]["version"],
        "inputs": plan["inputs"],
        "planned": planned_figures(plan["plan"]),
        "logged": logged,
    }


def is_same_start(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two lines of the history are about the same process."""
    same = one.get("name") == other["name"] and one.get("pid") == other["pid"]
    return same and abs(float(one.get("at_s") or 0) - other["at_s"]) < SAME_START_S


def check(module: AnsibleModule) -> None:
    """Compare, keep and warn; ends the module."""
    name, rig = module.params["name"], module.params["rig"]
    state_dir = rig["paths"]["state"]
    plan = read_plan(state_dir, name)
    state = read_service(rig, name, lines=LOG_LINES)
    logged = logged_figures(state.log_tail)
    if not plan or not plan.get("plan") or not logged or not state.pid:
        module.exit_json(changed=False, row={}, surprises=[])
    row = row_of(state, plan, logged)
    history = read_history(state_dir)
    known = any(is_same_start(each, row) for each in history)
    found = surprises(compare(plan["plan"], logged))
    if not known:
        if not module.check_mode:
            add_to_history(state_dir, history, row)
        for words in found:
            module.warn(f"{name}: {words}")
    module.exit_json(changed=False, row=row, surprises=found)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"name": {"type": "str", "required": True}, "rig": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    try:
        check(module)
    except (HostError, SupervisorError, SystemdError) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}", row={}, surprises=[])
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or module.params['name']}: {error.strerror or error}", row={}, surprises=[]
        )


if __name__ == "__main__":
    main()
