#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a port of a host be reached from named networks only. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: publish_port
short_description: Let a port be reached from named networks only
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Sets the rule before anything listens there. A table of our own, C(inet gpurig), drops what comes from elsewhere,
    and the unit C(gpurig-firewall.service) loads it before the page starts. An active ufw gets a rule for each network
    as well, which only lets in. Rules of other people that open the port, and ufw switched off, open it to nobody else.
  - Never enables a firewall and never changes rules of other people. Where those keep the networks out, it fails with
    the rule to add, and nothing is changed.
  - Needs root, systemd and nftables.
options:
  port:
    description: The TCP port. Needed for O(state=present).
    type: int
  networks:
    description:
      - Networks and addresses that may reach it. Empty are the private networks of the host's own addresses, bridges of
        containers and tunnels of a VPN left out.
    type: list
    elements: str
    default: []
  state:
    description: V(absent) takes away every rule that is ours.
    type: str
    choices: [present, absent]
    default: present
  keep_ports:
    description: Ports of an earlier run stay restricted as well, for as long as something may listen there still.
    type: bool
    default: false
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
- name: Let the home network reach the page
  gpurig.llm.publish_port:
    port: 8080
    networks: [192.168.1.0/24]
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
changes:
  description: What was done, or would be in check mode, in words.
  returned: always
  type: list
  elements: str
lacks:
  description: Packages to install before anything else; in check mode only, else their lack is a failure.
  returned: success
  type: list
  elements: str
networks:
  description: Who may reach the port.
  returned: success
  type: list
  elements: str
notes:
  description: What to know, in words.
  returned: success
  type: list
  elements: str
origins:
  description: The addresses under which browsers see the host there.
  returned: success
  type: list
  elements: str
provider:
  description: V(ufw) where it got rules as well, V(nftables), or nothing for O(state=absent).
  returned: success
  type: str
"""

import socket

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.firewall_host import (
    FirewallHostError,
    apply,
    look,
    look_for_ours,
)
from ansible_collections.gpurig.llm.plugins.module_utils.firewall_plan import FirewallError, origins, plan, reachable
from ansible_collections.gpurig.llm.plugins.module_utils.systemd import SystemdError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "port": {"type": "int"},
            "networks": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "keep_ports": {"type": "bool", "default": False},
            "rig": {"type": "dict", "required": True},
        },
        required_if=[("state", "present", ["port"])],
        supports_check_mode=True,
    )
    given, rig = module.params, module.params["rig"]
    config, port = rig["paths"]["config"], given["port"] or 0
    try:
        gone, manager = given["state"] == "absent", rig["service_manager"]
        facts = look_for_ours(config, manager) if gone else look(config, manager, rig["can_install_packages"])
        wanted = plan(facts, config, port, given["networks"], given["keep_ports"], gone)
        refusals = list(wanted.refusals)
        if wanted.lacks and not module.check_mode:
            refusals.append(f"{', '.join(wanted.lacks)} must be installed first; the role firewall does it.")
        if refusals:
            lines = "\n".join(f"- {refusal}" for refusal in refusals)
            module.fail_json(msg=f"Port {port} is not published; nothing was changed.\n{lines}", changes=[])
        if not module.check_mode:
            apply(wanted.changes)
    except (FirewallError, FirewallHostError, SystemdError) as error:
        module.fail_json(msg=f"port {port}: {error}", changes=[])
    except OSError as error:
        module.fail_json(msg=f"port {port}: {error.filename}: {error.strerror}.", changes=[])
    words = [change.words for change in wanted.changes]
    texts = [
        {
            "before_header": change.argument[0],
            "after_header": change.argument[0],
            "before": facts.files.get(change.argument[0], ""),
            "after": change.argument[1] if change.act == "write" else "",
        }
        for change in wanted.changes
        if change.act in {"write", "remove"}
    ]
    module.exit_json(
        changed=bool(words),
        changes=words,
        lacks=list(wanted.lacks),
        networks=list(wanted.networks),
        notes=list(wanted.notes),
        origins=[] if gone else origins(reachable(facts, wanted.networks), socket.gethostname(), port),
        provider=wanted.provider,
        diff=[*texts, {"before": "", "after": "".join(f"{line}\n" for line in words)}],
    )


if __name__ == "__main__":
    main()
