#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give each GPU role its cards and write the map that services start by. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_roles
short_description: Decide which graphics cards each GPU role has
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Reads the cards through NVML, compares them with the declared list, applies the selectors of each role, and writes
    the result as C(gpu_roles.json) into the config directory. C(gpurig exec) resolves a role by this file at each start
    of a service.
  - Cards are held by UUID, so the map stays the same when cards move to other slots. Cards of one selector with C(take)
    V(all) come in PCI order, and keep that order later on.
  - Nothing is guessed. A selector that fits no card or more than it takes, a declared card that is not there, a card
    that the list lacks, and a shared card of an exclusive role are errors. All of them are told together, with the
    cards that came into question, and nothing is written.
  - Where a card does not answer, roles that need it stay as they are, the other roles are written, and the module fails
    at the end and says both.
  - Without O(roles), the role C(inference) gets all cards; on a machine without cards nothing is written.
  - A map that somebody else changed is repaired, and what was in it is kept aside.
options:
  gpus:
    description:
      - The cards that are bolted in, as in C(rig_gpus). With any entry, the machine must have these cards and no other.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What O(roles) calls the card.
        type: str
        required: true
      product:
        description: Words of its name in C(nvidia-smi), such as V(RTX 4090). V(RTX 3090) is not V(RTX 3090 Ti).
        type: str
      pci:
        description: Its PCI address.
        type: str
      uuid:
        description: Its UUID.
        type: str
  roles:
    description:
      - Role to cards, as in C(rig_gpu_roles). A role is a list of selectors, or a mapping with this list as C(cards)
        and C(exclusive), which says that no other role may have its cards.
      - A selector is a text or a mapping. As a text it is a name of O(gpus), a UUID, a PCI address, V(fastest), V(all),
        or V(all except X, Y), where C(X) and C(Y) are such texts.
      - As a mapping it has one or more of C(uuid), C(pci), C(product), C(min_memory_gib) (as CUDA reports memory) and
        C(min_compute_capability), all of which must hold; C(take), one of V(one) (the default), V(fastest) and
        V(all); and C(except), a list of selectors.
    type: dict
    default: {}
  purge:
    description:
      - Whether O(roles) is the whole truth, so that other roles leave the map. With V(false) they stay, and runs that
        name different roles may work at the same time.
    type: bool
    default: true
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.nvml, gpurig.llm.trees, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
    details: Where the Python binding is not installed yet, it can only say that the map would be written.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: The 4090 answers, both cards train
  gpurig.llm.gpu_roles:
    rig: "{{ ansible_facts.rig }}"
    gpus:
      - {name: trainer, product: RTX 3090 Ti}
      - {name: host, product: RTX 4090}
    roles:
      inference: [host]
      training: [trainer, host]

- name: Keep the fastest card for answers alone, whatever it is
  gpurig.llm.gpu_roles:
    rig: "{{ ansible_facts.rig }}"
    roles:
      inference: {cards: [fastest], exclusive: true}
      batch: [all except fastest]

- name: Every card with at least 40 GiB that can do bfloat16
  gpurig.llm.gpu_roles:
    rig: "{{ ansible_facts.rig }}"
    roles:
      large: [{min_memory_gib: 40, min_compute_capability: '8.0', take: all}]
    purge: false
"""

RETURN = r"""
roles:
  description: The roles that could be decided.
  returned: when the cards could be read
  type: dict
  contains:
    ROLE:
      description: One role.
      type: dict
      contains:
        cards:
          description: Its cards, in their order.
          type: list
          elements: dict
          contains:
            uuid: {description: UUID., type: str}
            pci: {description: PCI address., type: str}
            name: {description: Product., type: str}
            index: {description: Its number now; it changes when cards move., type: int}
        cuda_device_order: {description: V(PCI_BUS_ID), type: str}
        cuda_visible_devices: {description: The numbers as CUDA wants them now., type: str, sample: '0,1'}
        exclusive: {description: Whether no other role may have its cards., type: bool}
unassigned:
  description: Cards that no role has.
  returned: when the cards could be read
  type: list
  elements: dict
changes:
  description: What was changed, or would be in check mode, in words.
  returned: when the cards could be read
  type: list
  elements: str
kept_aside:
  description: The file that holds what somebody else had written into the map; empty where there is none.
  returned: when the cards could be read
  type: str
map_path:
  description: The map.
  returned: always
  type: str
summary:
  description: What each card is for, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ['inference: NVIDIA GeForce RTX 4090 (0000:65:00.0); CUDA_VISIBLE_DEVICES=1']
findings:
  description: What a person should know about the cards, in sentences.
  returned: always
  type: list
  elements: str
ansible_facts:
  description: What the map holds now, or would hold in check mode.
  returned: when the cards could be read
  type: dict
  contains:
    gpu_roles:
      description: Role to UUIDs.
      type: dict
      sample: {inference: [GPU-254090cd-6522-5949-a0d8-b9d3c6f50694]}
"""

import errno
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_map import MAP_NAME, MapError, Outcome, look, update
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import Gpu, GpuReport
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_scan import scan
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_selection import (
    Resolution,
    WantedRole,
    parse_gpus,
    parse_roles,
    resolve,
)
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import NVML_PATH, TREES

HEADING = "The GPU roles do not fit this machine; nothing was changed."


def card_as_dict(gpu: Gpu) -> dict[str, Any]:
    """One card for the result."""
    return {"uuid": gpu.card.uuid, "pci": gpu.card.pci, "name": gpu.card.name, "index": gpu.card.index}


def roles_as_dict(resolution: Resolution, outcome: Outcome, wanted: Sequence[WantedRole]) -> dict[str, Any]:
    """The decided roles for the result, cards in the map's order."""
    exclusive = {role.name for role in wanted if role.exclusive}
    found = {}
    for role, cards in resolution.roles.items():
        order = outcome.planned.roles[role]
        ordered = sorted(cards, key=lambda gpu: order.index(gpu.card.uuid))
        found[role] = {
            "cards": [card_as_dict(gpu) for gpu in ordered],
            "cuda_device_order": "PCI_BUS_ID",
            "cuda_visible_devices": ",".join(str(gpu.card.index) for gpu in ordered),
            "exclusive": role in exclusive,
        }
    return found


def outcome_as_dict(outcome: Outcome, path: str) -> dict[str, Any]:
    """What was done, for the result."""
    planned, found = outcome.planned, outcome.found
    return {
        "changed": bool(planned.changes),
        "changes": list(planned.changes),
        "kept_aside": outcome.aside,
        "ansible_facts": {"gpu_roles": planned.roles},
        "diff": {
            "before_header": path,
            "after_header": path,
            "before": found.text or "",
            "after": (planned.text if planned.changes else found.text) or "",
        },
    }


def summary_of(roles: dict[str, Any], unassigned: list[dict[str, Any]]) -> list[str]:
    """What each card is for, in sentences."""
    lines = []
    for name, role in roles.items():
        cards = ", ".join(_label(card) for card in role["cards"])
        lines.append(f"{name}: {cards}; CUDA_VISIBLE_DEVICES={role['cuda_visible_devices']}")
    return lines + [f"no role has {_label(card)}" for card in unassigned]


def _label(card: dict[str, Any]) -> str:
    return f"{card['name']} ({card['pci']})"


def in_lines(heading: str, lines: Sequence[str]) -> str:
    """A heading with its points, or the one point alone."""
    return "\n- ".join([heading, *lines])


def without_cards(module: AnsibleModule, report: GpuReport, result: dict[str, Any]) -> None:
    """End where NVML does not answer: a failure when somebody counts on cards, else a finding."""
    params, config = module.params, module.params["rig"]["paths"]["config"]
    if module.check_mode and report.driver.reason == "binding_missing":
        new = look(config).text is None
        changes = [f"{MAP_NAME}: would be written once NVML's Python binding is installed"] if new else []
        module.exit_json(changed=new, changes=changes, **result)
    if params["roles"] or params["gpus"]:
        names = [name for name in ("roles", "gpus") if params[name]]
        heading = f"The inventory names cards ({' and '.join(names)}), and they cannot be read; nothing was changed."
        module.fail_json(msg=in_lines(heading, report.findings), **result)
    module.exit_json(changed=False, changes=[], **result)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "rig": {"type": "dict", "required": True},
            "gpus": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "product": {"type": "str"},
                    "pci": {"type": "str"},
                    "uuid": {"type": "str"},
                },
            },
            "roles": {"type": "dict", "default": {}},
            "purge": {"type": "bool", "default": True},
            **NVML_PATH,
            **TREES,
        },
        supports_check_mode=True,
    )
    params = module.params
    config = params["rig"]["paths"]["config"]
    path = f"{config}/{MAP_NAME}"
    declared, gpu_problems = parse_gpus(params["gpus"])
    wanted, role_problems = parse_roles(params["roles"], [card.name for card in declared])
    problems = [*gpu_problems, *role_problems]
    report = scan(params["nvml_path"], params["sysfs_root"], params["proc_root"])
    result: dict[str, Any] = {"map_path": path, "summary": [], "findings": list(report.findings)}
    try:
        if report.driver.nvml_available:
            resolution = resolve(report, () if gpu_problems else declared, wanted)
            problems += [*resolution.problems, *(resolution.missing if resolution.problems else ())]
        if problems:
            module.fail_json(msg=in_lines(HEADING, problems), **result)
        if not report.driver.nvml_available:
            without_cards(module, report, result)
        cards = {role: [gpu.card.uuid for gpu in chosen] for role, chosen in resolution.roles.items()}
        outcome = update(
            config,
            cards,
            keep=resolution.undecided,
            purge=params["purge"],
            exclusive=[role.name for role in wanted if role.exclusive],
            unordered=resolution.unordered,
            check=module.check_mode,
        )
    except MapError as error:
        module.fail_json(msg=str(error), **result)
    except OSError as error:
        remedy = (
            "The role host_tool makes the directory." if error.errno == errno.ENOENT else "Run as root or its owner."
        )
        module.fail_json(msg=f"{error.filename or path}: {error.strerror}. {remedy}", **result)
    given = {uuid for chosen in outcome.planned.roles.values() for uuid in chosen}
    result |= outcome_as_dict(outcome, path)
    result["roles"] = roles_as_dict(resolution, outcome, wanted)
    result["unassigned"] = [card_as_dict(gpu) for gpu in report.gpus if gpu.card.uuid not in given]
    result["summary"] = summary_of(result["roles"], result["unassigned"])
    if resolution.undecided or resolution.missing:
        module.fail_json(msg=incomplete(resolution, outcome, module.check_mode), **result)
    module.exit_json(**result)


def incomplete(resolution: Resolution, outcome: Outcome, check: bool) -> str:
    """What to say where a card does not answer: what is wrong, what was done, what stays as it was."""
    lines = [*resolution.missing, *resolution.undecided.values()]
    for role in resolution.undecided:
        cards = outcome.planned.roles.get(role)
        lines.append(f"role {role}: stays as it was: {', '.join(cards)}" if cards else f"role {role}: has no cards yet")
    did = "would be" if check else "was"
    done = outcome.planned.changes or ["nothing, the other roles are as they should be"]
    lines += [f"{did} done: {change}" for change in done]
    return in_lines("A card does not answer; roles that do not need it are not held up by it.", lines)


if __name__ == "__main__":
    main()
