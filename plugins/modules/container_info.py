#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a plan for a host's container engine is made from. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_info
short_description: Look at a host's container engine
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Reads which packages of Docker and of the NVIDIA container toolkit are installed and which ones apt would install,
    C(/etc/docker/daemon.json), the options of dockerd's unit, containers, routes, the firewall and the cards.
  - Changes nothing. The filter P(gpurig.llm.container_plan#filter) turns the result into a plan.
options:
  record:
    description: The file in which the role C(container_engine) keeps what it did.
    type: path
    default: /etc/gpurig/container_engine.json
  root:
    description: The tree that stands for C(/). With another one no program is asked, only files are read.
    type: path
    default: /
  unmasked:
    description:
      - Whether C(facts.daemon) and C(facts.record) have what may be a password as it is, such as the values of
        C(proxies). A plan that is to be carried out needs it. Use it with C(no_log) only.
    type: bool
    default: false
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.trees]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: [There is never a difference.]
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Look at the container engine
  gpurig.llm.container_info:
  register: engine
"""

RETURN = r"""
facts:
  description: What was seen.
  returned: always
  type: dict
  contains:
    distribution: {description: ID of os-release., type: str}
    release: {description: VERSION_ID of os-release., type: str}
    arch: {description: The processor., type: str}
    installed: {description: Package to installed version., type: dict}
    held: {description: Packages on hold., type: list, elements: str}
    candidates: {description: Package to the version that apt would install., type: dict}
    apt_lists: {description: Whether apt has any package list., type: bool}
    apt_sources:
      description: Sources that apt reads besides those of the role, with file, type, uri, suite and signed_by.
      type: list
      elements: dict
    engine_version: {description: Version of dockerd., type: str}
    compose_version: {description: Version of Compose., type: str}
    snap: {description: Whether Docker is a snap., type: bool}
    daemon: {description: 'daemon.json, masked unless O(unmasked=true).', type: dict}
    daemon_problem: {description: Why it cannot be read., type: str}
    stale: {description: Whether daemon.json was written after dockerd began., type: bool}
    unit_flags: {description: Names of the options that dockerd's unit gives., type: list, elements: str}
    containers: {description: How many containers there are., type: int}
    running: {description: How many of them run; all of them where Docker does not say., type: int}
    swarm: {description: Whether the engine is a member of a swarm., type: bool}
    routes: {description: IPv4 routes without Docker's own., type: list, elements: str}
    firewall: {description: 'V(ufw), V(firewalld), V(nftables) or nothing.', type: str}
    apparmor: {description: Whether the kernel enforces AppArmor., type: bool}
    cards: {description: NVIDIA cards on the PCI bus., type: int}
    driver: {description: Version of the loaded NVIDIA driver., type: str}
    record: {description: 'What an earlier run kept, masked likewise.', type: dict}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.container_daemon import masked
from ansible_collections.gpurig.llm.plugins.module_utils.container_scan import scan
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import TREES


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "record": {"type": "path", "default": "/etc/gpurig/container_engine.json"},
            "root": {"type": "path", "default": "/"},
            **TREES,
            "unmasked": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    facts = asdict(scan(given["record"], given["root"], given["sysfs_root"], given["proc_root"]))
    if not given["unmasked"]:
        facts |= {name: masked(facts[name]) for name in ("daemon", "record")}
    module.exit_json(changed=False, facts=facts)


if __name__ == "__main__":
    main()
