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


from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.port_claim import claim


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
    params = module.params
    done = claim(
        params["name"], params["port"], params["rig"], params["kept"], params["where"], check=module.check_mode
    )
    result = {
        "changed": bool(done.ended),
        "ended": done.ended,
        "diff": {"before": "".join(f"orphan: {line}\n" for line in done.ended), "after": ""},
    }
    if done.problem:
        module.fail_json(msg=done.problem, **result)
    module.exit_json(holder=done.holder, **result)


if __name__ == "__main__":
    main()
