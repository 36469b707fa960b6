#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make sure that an instance can have its port. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: port_claim
short_description: Make sure that a service can have its TCP port
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Ends processes of this rig that outlived their supervisor, for example because the root directory was deleted
    below them, so that they neither hold a port nor answer in place of the right server.
  - Fails when another process listens on the port, and names that process.
  - A port that the service already holds itself is fine.
options:
  name:
    description: Name of the service that is to have the port.
    type: str
    required: true
  port:
    description: The TCP port. V(0) checks no port and only ends orphans.
    type: int
    required: true
  kept:
    description:
      - The services that stay on this host. A service of ours that is not among them may hold the port, since it is
        removed before the port is needed. Empty means all stay.
    type: list
    elements: str
    default: []
  where:
    description: The variable of the inventory that gives the port, for the message.
    type: str
    default: rig_instances
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Claim the port
  gpurig.llm.port_claim:
    name: chat
    port: 8000
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
ended:
  description: The orphans that were ended, or would be in check mode, in words.
  returned: always
  type: list
  elements: str
holder:
  description: The process that holds the port when it is the service itself, in words; otherwise empty.
  returned: success
  type: str
"""


from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.procfs import (
    Process,
    end,
    listening_pids,
    orphans,
    processes,
    read_process,
)
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import Supervisor


def port_problem(name: str, port: int, root: str, ended: set[int], kept: list[str]) -> tuple[str, str]:
    """Return (holder in words when it is the service itself, problem in words); both empty for a free port."""
    busy, pids = listening_pids(port)
    if not busy:
        return "", ""
    holders = [process for process in map(read_process, pids) if process]
    strangers = [process for process in holders if process.pid not in ended and not is_own(process, name, root, kept)]
    if not holders:
        return "", "a process that this user may not look into (root can: ss -ltnp)"
    if strangers:
        return "", "; ".join(process.in_words() for process in strangers)
    own = [process.in_words() for process in holders if process.pid not in ended]
    return "; ".join(own), ""


def is_own(process: Process, name: str, root: str, kept: list[str]) -> bool:
    """Return whether the process is this very service of this very root, or one of ours that is not to stay."""
    if process.root == root and process.service and kept and process.service not in kept:
        return True
    return process.unit == f"gpurig-{name}.service" or (process.service == name and process.root == root)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "rig": {"type": "dict", "required": True},
            "kept": {"type": "list", "elements": "str", "default": []},
            "where": {"type": "str", "default": "rig_instances"},
        },
        supports_check_mode=True,
    )
    name, port, rig = module.params["name"], module.params["port"], module.params["rig"]
    where = module.params["where"]
    whom = "the instance" if where == "rig_instances" else "it"
    root = rig["root_dir"]
    supervisor_pid = None
    if rig["service_manager"] == "supervisord":
        supervisor = Supervisor(rig["paths"])
        supervisor_pid = supervisor.daemon_pid()
        # A daemon that is only slow to answer still looks after its programs; one without its socket does not.
        if supervisor_pid is None and Path(supervisor.socket).exists():
            supervisor_pid = supervisor.recorded_pid()
    lost = orphans(root, supervisor_pid, processes())
    words = [process.in_words() for process in lost]
    alive: list[int] = []
    if lost and not module.check_mode:
        alive = end([process.pid for process in lost])
    result = {
        "changed": bool(lost),
        "ended": words,
        "diff": {"before": "".join(f"orphan: {line}\n" for line in words), "after": ""},
    }
    if alive:
        module.fail_json(
            msg=f"{name}: left-over processes of {root} do not end: pids {alive}. End them by hand, then run again.",
            **result,
        )
    gone = {process.pid for process in lost} if module.check_mode else set()
    holder, problem = port_problem(name, port, root, gone, module.params["kept"]) if port else ("", "")
    if problem:
        module.fail_json(
            msg=(
                f"{name}: port {port} is taken by {problem}. "
                f"Stop that process or give {whom} another `port` in {where}."
            ),
            **result,
        )
    module.exit_json(holder=holder, **result)


if __name__ == "__main__":
    main()
