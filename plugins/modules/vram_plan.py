#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plan the cards' memory for vLLM instances before they start. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: vram_plan
short_description: Say before a start whether models fit on their cards, and choose the engine's memory options
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Sums weights, KV cache, activations, CUDA graphs and the rest as the version of vLLM does that the collection
    installs, each as low, likely and high, and judges each instance. The verdict is V(fits), V(does not fit),
    V(cannot judge), or V(not planned) where there is nothing to sum.
  - Reads the headers of the weights' files, never a weight. A model that is not on the disk yet is looked at on its hub
    before it is downloaded.
  - Options that an instance leaves open are chosen, and those that it has are judged.
  - Instances that share a card are planned together.
  - A plan is kept while nothing that was asked for has changed, so that an engine is not restarted because others use
    more or less of a card today.
options:
  instances:
    description: The instances, in the form that the filter P(gpurig.llm.instances_for#filter) gives them.
    type: list
    elements: dict
    required: true
  on_cards:
    description: Names of the instances that run on cards; the others run on the processor.
    type: list
    elements: str
    default: []
  gpu_roles:
    description:
      - GPU role to a list of UUIDs of cards of this host, as in the fact C(gpu_roles); or of product names such as
        V(RTX 4090), to plan for cards that are not here. C(RTX 4090#0) and C(RTX 4090#1) tell equal ones apart.
    type: dict
    default: {}
  models_dir:
    description: Where the models lie. Empty plans from the hubs and from local sources alone.
    type: str
    default: ''
  state_dir:
    description: Below it, in C(plans), each instance's plan is kept. Empty keeps nothing.
    type: str
    default: ''
  rig:
    description:
      - The facts of M(gpurig.llm.rig_facts). With them the memory of the host's own engines is told from that of
        others. Of an engine on record that is neither in O(instances) nor in O(stays), it counts as free, since such an
        engine is removed before the planned ones start.
    type: dict
    default: {}
  stays:
    description: Names of engines that keep running beside O(instances).
    type: list
    elements: str
    default: []
  headroom_gib:
    description: What stays free on each card, for a desktop for instance, in GiB.
    type: float
    default: 0
  refuse:
    description: Whether an instance that does not fit is an error.
    type: bool
    default: true
  force:
    description: Whether an instance that does not fit is only a warning. It gets none of the plan's options then.
    type: bool
    default: false
  replan:
    description: Whether plans on record are made anew.
    type: bool
    default: false
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.nvml, gpurig.llm.trees]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: gpurig.llm.vram_check
"""

EXAMPLES = r"""
- name: Plan the instances that run on cards
  gpurig.llm.vram_plan:
    instances: "{{ rig_instances | gpurig.llm.instances_for('vllm', rig_models) }}"
    on_cards: [chat]
    gpu_roles: "{{ ansible_facts.gpu_roles }}"
    models_dir: /var/lib/gpurig/models
    state_dir: /var/lib/gpurig/state

- name: See what a card that is not here could run
  gpurig.llm.vram_plan:
    instances: "{{ rig_instances | gpurig.llm.instances_for('vllm', rig_models) }}"
    on_cards: [chat]
    gpu_roles: {inference: [RTX 4090]}
    refuse: false
"""

RETURN = r"""
plans:
  description: The plan of each instance by its name.
  returned: always
  type: dict
  contains:
    verdict: {description: 'V(fits), V(does not fit), V(cannot judge) or V(not planned).', type: str}
    reason: {description: Why., type: str}
    flags: {description: Options of the engine that the plan adds to those of the instance., type: dict}
    environment: {description: Variables that belong to them., type: dict}
    context: {description: 'Tokens of one request, where the instance leaves it open.', type: int}
    parallel: {description: 'Requests at once, where the instance leaves it open.', type: int}
    problem: {description: Why it must not start; empty when it may., type: str}
    remedies: {description: 'What would help, best first.', type: list, elements: str}
    plan:
      description:
        - The sums, with sizes in bytes. For each of C(cards) its C(parts) and C(pool) (what is left for KV) as low,
          likely and high; C(largest_context), C(concurrency), C(kv_bytes_per_token), C(reasons).
      type: dict
order:
  description: The instances in the order in which to start them; who gives memory of a card back comes first.
  returned: always
  type: list
  elements: str
text:
  description: The plans in words, to be printed.
  returned: always
  type: str
"""

import os
from collections.abc import Collection, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_scan import scan
from ansible_collections.gpurig.llm.plugins.module_utils.instance_plan import (
    Asked,
    doubts_of,
    plan_instances,
    plan_text,
    shrinking_first,
)
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import NVML_PATH, TREES
from ansible_collections.gpurig.llm.plugins.module_utils.plan_host import (
    cards_of,
    engines_of,
    has_amx,
    read_model,
    read_plan,
    write_plan,
)
from ansible_collections.gpurig.llm.plugins.module_utils.services import Host
from ansible_collections.gpurig.llm.plugins.module_utils.vram.cards import card_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.engine_vllm import GIB
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import Card, PlanError


def is_uuid(name: str) -> bool:
    return name.upper().startswith("GPU-")


def ours_of(params: dict[str, Any]) -> dict[str, Collection[str]]:
    """Engines whose memory on a card is to be planned anew, and the cards that each is on now."""
    on_record = engines_of(Host.from_rig(params["rig"])) if params["rig"] else {}
    planned = {str(one["name"]): on_record.get(str(one["name"]), ()) for one in params["instances"]}
    return {**{name: cards for name, cards in on_record.items() if name not in params["stays"]}, **planned}


def cards_by_role(params: dict[str, Any], ours: Mapping[str, Collection[str]]) -> dict[str, list[Card]]:
    """The cards of each role that an instance on cards names. Raises PlanError for a product that is not known."""
    wanted = {
        str(one.get("gpu_role") or "")
        for one in params["instances"]
        if one["name"] in params["on_cards"] and one.get("gpu_role") in params["gpu_roles"]
    }
    roles = {role: [str(name) for name in params["gpu_roles"][role]] for role in sorted(wanted)}
    here = any(is_uuid(name) for names in roles.values() for name in names)
    report = scan(params["nvml_path"], params["sysfs_root"], params["proc_root"]) if here else None
    found: dict[str, list[Card]] = {}
    for role, names in roles.items():
        uuids = [name for name in names if is_uuid(name)]
        found[role] = cards_of(report, uuids, ours, params["proc_root"]) if report else []
        seen: dict[str, int] = {}
        for name in names:
            if not is_uuid(name):
                # Without a number, the same product in another role is the same card, and twice in one role it is two.
                product, _hash, number = name.partition("#")
                seen[product] = int(number) if number.isdigit() else seen.get(product, -1) + 1
                found[role].append(card_named(product, seen[product]))
    return found


def ask(params: dict[str, Any], ours: Mapping[str, Collection[str]]) -> list[Asked]:
    """What is to be planned, with all that is known of it."""
    cards = cards_by_role(params, ours)
    models: dict[str, Any] = {}
    asked = []
    for one in params["instances"]:
        key = str(one["model"])
        if key not in models:
            models[key] = read_model(key, one.get("model_entry") or {}, params["models_dir"], dict(os.environ))
        model, why_not = models[key]
        on_cards = one["name"] in params["on_cards"]
        asked.append(
            Asked(
                instance=one,
                device="cuda" if on_cards else "cpu",
                model=model,
                cards=tuple(cards.get(str(one.get("gpu_role") or ""), ())) if on_cards else (),
                memory_bytes=params["rig"].get("memory_bytes") or None,
                why_not=why_not,
                amx=has_amx(params["proc_root"]),
                headroom_bytes=params["headroom_gib"] * GIB,
            )
        )
    return asked


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "instances": {"type": "list", "elements": "dict", "required": True},
            "on_cards": {"type": "list", "elements": "str", "default": []},
            "gpu_roles": {"type": "dict", "default": {}},
            "models_dir": {"type": "str", "default": ""},
            "state_dir": {"type": "str", "default": ""},
            "rig": {"type": "dict", "default": {}},
            "stays": {"type": "list", "elements": "str", "default": []},
            "headroom_gib": {"type": "float", "default": 0},
            "refuse": {"type": "bool", "default": True},
            "force": {"type": "bool", "default": False},
            "replan": {"type": "bool", "default": False},
            **NVML_PATH,
            **TREES,
        },
        supports_check_mode=True,
    )
    params = module.params
    state_dir, names = params["state_dir"], [str(one["name"]) for one in params["instances"]]
    recorded = {name: found for name in names if state_dir and (found := read_plan(state_dir, name))}
    try:
        asked = ask(params, ours_of(params))
    except PlanError as error:
        module.fail_json(msg=f"gpu_roles: {error}")
    plans = plan_instances(asked, {} if params["replan"] else recorded, keep_refused=params["force"])
    before, after = plan_text(recorded.values()), plan_text(plans.values())
    changed = bool(state_dir) and plans != recorded
    result = {"plans": plans, "text": after, "order": shrinking_first(plans, recorded)}
    problems = [one["problem"] for one in plans.values() if one["problem"]]
    if problems and params["refuse"] and not params["force"]:
        remedy = "To start it all the same: vllm_force: true."
        module.fail_json(msg="\n".join([*problems, remedy]), **result)
    for problem in problems if params["force"] else []:
        module.warn(f"forced: {problem}")
    for doubt in doubts_of(plans.values()):
        module.warn(doubt)
    if changed and not module.check_mode:
        try:
            for name, one in plans.items():
                if one != recorded.get(name):
                    write_plan(state_dir, name, one)
        except OSError as error:
            module.fail_json(msg=f"{error.filename or state_dir}: {error.strerror or error}", **result)
    diff = {"diff": {"before": f"{before}\n", "after": f"{after}\n"}} if changed else {}
    module.exit_json(changed=changed, **result, **diff)


if __name__ == "__main__":
    main()
