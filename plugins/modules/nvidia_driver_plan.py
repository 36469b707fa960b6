#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which NVIDIA driver this host should have, and what would have to be done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_plan
short_description: Plan the NVIDIA driver of a host, and judge what apt would do for it
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Looks at cards, kernel, Secure Boot, driver and packages, and works out which branch, kernel module and source fit
    cards and engines, with the reason of every choice in words.
  - Simulates apt's transaction and refuses one that brings a kernel, removes what does not belong to a driver, or lands
    on another branch.
  - Changes nothing, in check mode or not. A refusal is a result, RV(plan.verdict), and no failure of the module.
options:
  instances:
    description: The instances of the host, as P(gpurig.llm.instances_for#filter) lists them.
    type: list
    elements: dict
    default: []
  state:
    description:
      - What the inventory asks for. With V(given) the driver is only judged, with V(present) one that fits is to be
        there, with V(latest) the newest of its branch.
    type: str
    choices: [given, present, latest]
    default: given
  source:
    description: Where its packages come from.
    type: str
    choices: [auto, ubuntu, nvidia, debian]
    default: auto
  branch:
    description: The branch, such as V(580). With V(0) the plan chooses.
    type: int
    default: 0
  modules:
    description: Kernel modules built here (V(dkms)) or signed by Canonical (V(signed)).
    type: str
    choices: [auto, dkms, signed]
    default: auto
  cards_wanted:
    description: Whether the inventory says that engines run on cards, as when it names some.
    type: bool
    default: false
  can_install_driver:
    description: Whether the driver is ours to change, as M(gpurig.llm.rig_facts) says.
    type: bool
    default: true
  fs_root:
    description: The tree that stands for C(/). apt is asked of the system all the same.
    type: path
    default: /
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.trees]
attributes:
  check_mode:
    support: full
    details: [This module changes nothing.]
  diff_mode:
    support: none
    details: [There is never a difference.]
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Look what the driver of this host needs
  gpurig.llm.nvidia_driver_plan:
    instances: "{{ rig_instances | gpurig.llm.instances_for('all', rig_models) }}"
    state: present
  become: true
  register: driver

- name: Show it
  ansible.builtin.debug:
    msg: "{{ driver.plan.words }}"
"""

RETURN = r"""
plan:
  description: The plan.
  returned: always
  type: dict
  contains:
    verdict: {description: 'V(nothing), V(install), V(upgrade), V(repair) or V(refused).', type: str}
    changes: {description: Whether anything would be done to the host., type: bool}
    branch: {description: 'The branch, such as V(580).', type: int}
    flavour: {description: 'Kernel module, V(open) or V(proprietary).', type: str}
    modules: {description: 'V(dkms) or V(signed).', type: str}
    source: {description: 'V(ubuntu), V(nvidia) or V(debian).', type: str}
    version: {description: NVIDIA's version; empty until the repository is known., type: str}
    packages:
      description: What is asked of apt by name.
      type: list
      elements: str
    removes:
      description: Packages that would bring another kernel module of the driver.
      type: list
      elements: str
    pinning: {description: NVIDIA's package that keeps apt on the branch., type: str}
    pin: {description: Text of apt's preferences that keep the version., type: str}
    repository:
      description: Name of NVIDIA's repository where it has to be added first, such as V(debian12).
      type: str
    load: {description: Whether the module can be loaded without a reboot., type: bool}
    reboot: {description: Whether the host has to be rebooted., type: bool}
    urgent: {description: Whether engines do not run until it is done., type: bool}
    unread: {description: Whether apt has read no list yet., type: bool}
    reasons:
      description: Why, for each choice.
      type: list
      elements: str
    problems:
      description: What stands in the way, each with its remedy.
      type: list
      elements: str
    ways_out:
      description: What else would do where the driver is not ours.
      type: list
      elements: str
    notes:
      description: What a person should know besides.
      type: list
      elements: str
    words: {description: All of it for a person., type: str}
install:
  description: What apt is to install, with versions.
  returned: always
  type: list
  elements: str
moving_pin:
  description: Text of apt's preferences while the driver is installed.
  returned: always
  type: str
transaction:
  description: What apt would do, as it says itself.
  returned: always
  type: list
  elements: dict
  contains:
    package: {description: Its name., type: str}
    old: {description: Version that is there., type: str}
    new: {description: Version that would be there., type: str}
seen:
  description: What was looked at.
  returned: always
  type: dict
  contains:
    module_version: {description: Version of the loaded module., type: str}
    library_version: {description: Version of the library on disk., type: str}
    secure_boot: {description: 'V(enabled), V(disabled) or V(unknown).', type: str}
    kernel: {description: The running kernel., type: str}
    cards:
      description: Cards with their generations.
      type: list
      elements: str
    packages: {description: Installed packages of the driver with their versions., type: dict}
    pin: {description: Text of apt's preferences that keep the installed version., type: str}
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.apt_transaction import (
    Step,
    complaint,
    judge,
    parse_simulation,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_choice import (
    GIVEN,
    MODULES,
    SOURCES,
    STATES,
    Wish,
    arguments,
    disk_version,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_facts import DriverFacts
from ansible_collections.gpurig.llm.plugins.module_utils.driver_packages import MOVED, pin_text
from ansible_collections.gpurig.llm.plugins.module_utils.driver_plan import NOTHING, Plan, apt_refused, needs_of, plan
from ansible_collections.gpurig.llm.plugins.module_utils.driver_scan import scan, simulate
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import TREES


def judged(made: Plan, wanted: list[str]) -> tuple[Plan, list[Step]]:
    """The plan, refused where apt's transaction for it must not happen; and that transaction."""
    code, text = simulate(wanted, moving_pin(made))
    steps = parse_simulation(text)
    if code:
        problems = [f"apt cannot install {' '.join(wanted)}: {complaint(text)}"]
    else:
        problems = [
            f"{problem}. Nothing was installed; 'apt-get -s install {' '.join(wanted)}' shows all that apt would do."
            for problem in judge(steps, made.wanted)
        ]
    return apt_refused(made, problems) if problems else made, steps


def moving_pin(made: Plan) -> str:
    """The pin while apt installs: it lets dependencies go back, too."""
    return pin_text(made.version, MOVED) if made.pin else ""


def describe(facts: DriverFacts) -> dict[str, object]:
    """What a person wants to know of what was looked at."""
    return {
        "module_version": facts.module_version,
        "library_version": facts.library_version,
        "secure_boot": facts.secure_boot,
        "kernel": facts.kernel,
        "cards": [f"{card.label}, {card.generation or 'newer than the table'}" for card in facts.cards],
        "packages": dict(facts.packages),
        "pin": pin_text(disk_version(facts)) if facts.packages and disk_version(facts) else "",
    }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "default": []},
            "state": {"type": "str", "choices": list(STATES), "default": GIVEN},
            "source": {"type": "str", "choices": list(SOURCES), "default": "auto"},
            "branch": {"type": "int", "default": 0},
            "modules": {"type": "str", "choices": list(MODULES), "default": "auto"},
            "cards_wanted": {"type": "bool", "default": False},
            "can_install_driver": {"type": "bool", "default": True},
            "fs_root": {"type": "path", "default": "/"},
            **TREES,
        },
        supports_check_mode=True,
    )
    given = module.params
    facts = scan(
        given["fs_root"],
        given["sysfs_root"],
        given["proc_root"],
        can_install_driver=given["can_install_driver"],
        ask_apt=given["state"] != GIVEN,
    )
    has_driver = bool(facts.module_version) or given["cards_wanted"] or given["state"] != GIVEN
    wish = Wish(
        given["state"],
        given["source"],
        given["branch"],
        given["modules"],
        needs_of(given["instances"], facts.cards, has_driver),
    )
    made = plan(facts, wish)
    wanted, steps = arguments(facts, made.version, made.source, made.packages, made.pinning), []
    if made.changes and wanted and not made.repository:
        made, steps = judged(made, [*wanted, *(f"{package}-" for package in made.removes)])
        wanted = [] if made.verdict == NOTHING else wanted
    module.exit_json(
        changed=False,
        plan=made.as_dict(),
        moving_pin=moving_pin(made),
        install=wanted,
        transaction=[asdict(step) for step in steps],
        seen=describe(facts),
    )


if __name__ == "__main__":
    main()
