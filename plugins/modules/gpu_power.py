#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set power limits of chosen cards, keep them, and give back what is no longer wanted. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_power
short_description: Set power limits of NVIDIA graphics cards and keep them
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Sets the power limit of each chosen card and reads it back, and switches persistence mode on, without which the
    driver forgets a limit when nothing uses the card.
  - Cards are chosen by GPU role, UUID or PCI address, never by index. A card that is not chosen is never touched.
  - What it set is recorded in C(gpu_power.json) of O(config), from where C(gpurig power apply) sets it again after a
    boot, a resume or a reload of the driver. A card of that record that is no longer wanted gets its default limit
    back.
  - All mistakes of the arguments are told at once, before anything is changed. A card that is lost, or refuses,
    keeps no other card from its limit; the module then fails and says what was done.
options:
  limits:
    description: The limits, as C(rig_power.limits) of the inventory has them.
    type: list
    elements: dict
    default: []
    suboptions:
      gpu_role:
        description: The cards of this role. Exactly one of this and O(limits[].card).
        type: raw
      card:
        description: One card by UUID or PCI address.
        type: raw
      limit_w:
        description: The limit in watts. Exactly one of this, O(limits[].percent) and O(limits[].optimal).
        type: raw
      percent:
        description: The limit in percent of the card's own default limit.
        type: raw
      optimal:
        description:
          - V(true) takes a limit at which this product was measured to lose little. The result names the source.
            A product without one is an error.
        type: raw
      on_unsupported:
        description:
          - What to do with a card that takes no limit at all, as laptop cards do. V(error) is the default,
            V(report) goes on without, V(lock_clocks) keeps the graphics clock at or below O(limits[].lock_mhz).
        type: raw
      lock_mhz:
        description: The highest graphics clock in MHz for V(lock_clocks). NVML cannot read it back.
        type: raw
  roles:
    description: GPU role -> list of UUIDs or PCI addresses. By default the map C(gpu_roles.json) in O(config).
    type: dict
  config:
    description: Directory of the map of roles and of the record.
    type: path
    default: /etc/gpurig
  exclusive:
    description:
      - Whether O(limits) are all limits of this host, so that other cards of the record get their default back.
      - V(false) leaves those cards alone.
    type: bool
    default: false
  persistence:
    description: Whether persistence mode is switched on for the chosen cards.
    type: bool
    default: true
  can_set_power:
    description:
      - Whether this host may set limits at all. V(false) reports what would have to be set and sets nothing.
    type: bool
    default: true
  required:
    description: Whether it is an error when limits would have to be set and O(can_set_power) is V(false).
    type: bool
    default: false
  psu:
    description:
      - The power supply, as C(rig_power.psu) has it. What it cannot carry is refused before anything is changed;
        with O(can_set_power=false) it is told in RV(blocked), summed up with the limits that the cards have.
        See P(gpurig.llm.psu_budget#filter).
      - C(together) is a list of lists of GPU roles that may be busy at the same time; by default all cards may.
    type: dict
    default: {}
  ups:
    description: A UPS before the power supply, as C(rig_power.ups) has it.
    type: dict
    default: {}
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.nvml, gpurig.llm.trees]
attributes:
  check_mode:
    support: full
    details: Where NVML or its binding is not installed yet, it says so and foresees nothing.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - A locked clock cannot be read from a card. It is locked once in each boot, and when its value changes.
"""

EXAMPLES = r"""
- name: Cap the training pool
  gpurig.llm.gpu_power:
    limits:
      - gpu_role: training
        limit_w: 350
    psu:
      rating_w: 1500
      standard: atx2
      cpu_w: 165
      rest_w: 100

- name: One card at 80 percent of its default
  gpurig.llm.gpu_power:
    limits:
      - card: "0000:65:00.0"
        percent: 80

- name: Give all limits back
  gpurig.llm.gpu_power:
    limits: []
    exclusive: true
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode, in the order in which it is done.
  returned: always
  type: list
  elements: dict
  contains:
    uuid: {description: The card., type: str}
    card: {description: Product and PCI address., type: str}
    setting: {description: 'V(power limit), V(persistence mode) or V(graphics clock).', type: str}
    before: {description: What it was., type: str}
    after: {description: What it is., type: str}
cards:
  description: The chosen cards that answer, as they are after the run. Power in watts, V(null) where not known.
  returned: when NVML was asked
  type: list
  elements: dict
  contains:
    uuid: {description: The card., type: str}
    pci: {description: PCI address., type: str}
    name: {description: Product., type: str}
    wanted_w: {description: The limit that it is to have., type: float}
    lock_mhz: {description: The highest clock that it is to have., type: int}
    limit_w: {description: Its limit., type: float}
    enforced_w: {description: The limit in force., type: float}
    default_w: {description: Its default limit., type: float}
    min_w: {description: The lowest limit that it accepts., type: float}
    max_w: {description: The highest limit that it accepts., type: float}
    persistence: {description: Whether persistence mode is on., type: bool}
budget:
  description: The sums of the power supply, see P(gpurig.llm.psu_budget#filter).
  returned: when O(psu) is given and NVML was asked
  type: dict
blocked:
  description: What would have to be set and may not be set here, and sums that do not fit without it, in words.
  returned: always
  type: list
  elements: str
failures:
  description: What could not be done, in words.
  returned: always
  type: list
  elements: str
notes:
  description: Everything else that a person should know.
  returned: always
  type: list
  elements: str
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils import nvml
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import normalize_pci, watts
from ansible_collections.gpurig.llm.plugins.module_utils.machine_args import NVML_PATH, TREES
from ansible_collections.gpurig.llm.plugins.module_utils.power_apply import (
    POLICY_NAME,
    Look,
    alone,
    enforce,
    groups_in_watts,
    look,
    processor_limit_w,
    read_record,
    read_roles,
    record_text,
)
from ansible_collections.gpurig.llm.plugins.module_utils.power_plan import (
    LOCKED_CLOCKS,
    Change,
    Order,
    Plan,
    PolicyError,
    Record,
    limits_after,
    make_plan,
    parse_orders,
    roles_from,
    settled,
)
from ansible_collections.gpurig.llm.plugins.module_utils.psu_budget import budget, budget_as_dict, groups_of
from ansible_collections.gpurig.llm.plugins.module_utils.services import boot_id

_NOT_INSTALLED = (nvml.LibraryMissing, nvml.BindingMissing)


class RefusedError(Exception):
    """Nothing was changed; `problems` say why."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n- ".join(("Nothing was changed:", *self.problems)))


@dataclass
class Result:
    """What the module tells."""

    changed: bool = False
    changes: list[dict[str, str]] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        rest = {key: value for key, value in vars(self).items() if key != "more"}
        return {**rest, **self.more}


def roles_of(params: Mapping[str, Any], orders: Sequence[Order]) -> dict[str, list[str]]:
    """The map of roles: the option, else the file where something names a role. Raises PolicyError."""
    if params["roles"] is not None:
        try:
            return roles_from(params["roles"])
        except PolicyError as error:
            raise PolicyError(f"roles: {error}") from error
    if any(order.gpu_role for order in orders) or params["psu"].get("together") is not None:
        return read_roles(params["config"])
    return {}


def planned(
    params: Mapping[str, Any], orders: Sequence[Order], cards: Look, record: Record
) -> tuple[Plan, Any, list[str]]:
    """The plan, the budget as data, and the sums that do not fit where no limit may be set.

    Raises RefusedError with all problems of plan and budget, PolicyError.
    """
    roles = roles_of(params, orders)
    plan = make_plan(
        orders,
        roles,
        cards.seen,
        cards.lost,
        record,
        exclusive=params["exclusive"],
        persistence=params["persistence"],
        boot=boot_id(),
    )
    sums = None
    too_much: list[str] = []
    problems = list(plan.problems)
    if (params["psu"] or params["ups"]) and not problems:
        names = {one.card.uuid: one.card.uuid for one in cards.seen} | {
            one.card.pci: one.card.uuid for one in cards.seen
        }
        spelled = {role: [_spelled(card) for card in members] for role, members in roles.items()}
        groups, problems, notes = groups_of(params["psu"].get("together"), spelled, names)
        after = limits_after(cards.seen, plan if params["can_set_power"] else Plan())
        limits = groups_in_watts(groups, after, cards.seen)
        found = budget(limits, params["psu"], params["ups"], processor_limit_w(params["sysfs_root"]))
        sums = {**budget_as_dict(found), "notes": [*found.notes, *notes]}
        problems += found.problems
        too_much = found.refusals
    if params["can_set_power"]:
        problems += too_much
    if problems:
        raise RefusedError(problems)
    return plan, sums, too_much


def _spelled(card: str) -> str:
    with contextlib.suppress(ValueError):
        return normalize_pci(card)
    return card


def tell(result: Result, plan: Plan, sums: Any, cards: Look, changes: Sequence[Change]) -> None:
    """Fill in what is told of a plan."""
    result.notes += [*plan.notes, *(f"{lost.pci or 'a card'}: {lost.message}" for lost in cards.lost)]
    result.failures += plan.faults
    result.changes = [
        {"uuid": one.uuid, "card": one.label, "setting": one.setting, "before": one.before, "after": one.after}
        for one in changes
    ]
    if sums is not None:
        result.more["budget"] = {key: sums[key] for key in ("fits", "checks")}
        result.notes += [*sums["notes"], *(check["text"] for check in sums["checks"])]
        if cards.lost:
            result.notes.append("A card that does not answer is in no sum of the power supply.")


def show_cards(result: Result, plan: Plan, cards: Look) -> None:
    """Fill in the chosen cards."""
    targets = plan.record.cards
    result.more["cards"] = [
        {
            "uuid": one.card.uuid,
            "pci": one.card.pci,
            "name": one.card.name,
            "wanted_w": watts(targets[one.card.uuid].limit_mw) if one.card.uuid in targets else None,
            "lock_mhz": targets[one.card.uuid].lock_mhz if one.card.uuid in targets else None,
            "limit_w": watts(one.power.limit_mw),
            "enforced_w": watts(one.power.enforced_mw),
            "default_w": watts(one.power.default_mw),
            "min_w": watts(one.power.min_mw),
            "max_w": watts(one.power.max_mw),
            "persistence": one.power.persistence,
        }
        for one in cards.seen
        if one.card.uuid in plan.selected
    ]


def show_difference(result: Result, config: str, before: str, after: str, changes: Sequence[Change]) -> None:
    """Fill in `changed` and the diff: the cards' settings, and the policy file."""
    if changes:
        result.diff.append(
            {
                "before": "".join(f"{one.label}, {one.setting}: {one.before}\n" for one in changes),
                "after": "".join(f"{one.label}, {one.setting}: {one.after}\n" for one in changes),
            }
        )
    if before != after:
        header = f"{config}/{POLICY_NAME}"
        result.diff.append({"before_header": header, "after_header": header, "before": before, "after": after})
    result.changed = bool(changes) or before != after


def foreseen(plan: Plan, cards: Look) -> Record:
    """The record as it would be if every change went well."""
    locked = [change.uuid for change in plan.changes if change.setting == LOCKED_CLOCKS and change.value]
    return settled(plan.record, cards.seen, [], locked, boot_id())


def converge(library: nvml.Nvml, params: Mapping[str, Any], orders: Sequence[Order], check: bool) -> Result:
    """Plan and, unless in check mode, act. Raises RefusedError, PolicyError, OSError."""
    config = params["config"]
    with contextlib.ExitStack() as stack:
        if not check and params["can_set_power"]:
            stack.enter_context(alone(config))
        record = read_record(config)
        cards = look(library)
        plan, sums, too_much = planned(params, orders, cards, record)
        result = Result()
        if not params["can_set_power"]:
            tell(result, plan, sums, cards, [])
            show_cards(result, plan, cards)
            wishes = [f"{one.label}: {one.setting} is {one.before}, wanted {one.after}" for one in plan.changes]
            result.blocked, result.failures = [*plan.faults, *wishes, *too_much], []
            return result
        if check:
            changes: Sequence[Change] = plan.changes
            tell(result, plan, sums, cards, changes)
        else:
            outcome = enforce(library, config, plan.record, plan.changes, cards.seen, boot_id())
            changes = outcome.done
            tell(result, plan, sums, cards, changes)
            result.failures += outcome.failures
            cards = look(library)
        show_cards(result, plan, cards)
        after = foreseen(plan, cards) if check else read_record(config)
        show_difference(result, config, record_text(record), record_text(after), changes)
        return result


def run(params: Mapping[str, Any], check: bool) -> Result:
    """Do all there is to do. Raises RefusedError, PolicyError, nvml.NvmlError, OSError."""
    orders, problems = parse_orders(params["limits"])
    if problems:
        raise RefusedError(problems)
    record = read_record(params["config"])
    ours = params["exclusive"] and (record.cards or record.released)
    if not orders and not ours and not params["psu"]:
        return Result()
    try:
        with nvml.open_library(params["nvml_path"], params["sysfs_root"], params["proc_root"]) as library:
            return converge(library, params, orders, check)
    except nvml.NvmlError as error:
        if params["can_set_power"] and not (check and isinstance(error, _NOT_INSTALLED)):
            raise
        asked = [f"{order.where}: {order.in_words}, not looked at: {error}" for order in orders]
        return Result(blocked=[] if params["can_set_power"] else asked, notes=[f"Nothing is foreseen: {error}"])


def message(result: Result, check: bool) -> str:
    """What failed and what was done, or would be, in spite of it."""
    done = [f"{one['card']}: {one['setting']} {one['before']} -> {one['after']}" for one in result.changes]
    return "\n- ".join(
        (
            "Not everything could be done:",
            *result.failures,
            f"{'Would be done' if check else 'Done'}: {'; '.join(done) or 'nothing'}.",
        )
    )


def main() -> None:
    """Run the module."""
    raw = {"type": "raw"}
    module = AnsibleModule(
        argument_spec={
            "limits": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "gpu_role": raw,
                    "card": raw,
                    "limit_w": raw,
                    "percent": raw,
                    "optimal": raw,
                    "on_unsupported": raw,
                    "lock_mhz": raw,
                },
            },
            "roles": {"type": "dict"},
            "config": {"type": "path", "default": "/etc/gpurig"},
            "exclusive": {"type": "bool", "default": False},
            "persistence": {"type": "bool", "default": True},
            "can_set_power": {"type": "bool", "default": True},
            "required": {"type": "bool", "default": False},
            "psu": {"type": "dict", "default": {}},
            "ups": {"type": "dict", "default": {}},
            **NVML_PATH,
            **TREES,
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        result = run(params, module.check_mode)
    except (RefusedError, PolicyError, nvml.NvmlError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or params['config']}: {error.strerror}. Run as root (become: true).")
    told = result.as_dict()
    if result.blocked and params["required"]:
        demand = (
            "rig_power.required: the limits must be set, but can_set_power is false for this host. Set them on the "
            "machine below, say can_set_power: true in rig_capabilities, or drop rig_power.required:"
        )
        told["msg"] = "\n- ".join((demand, *result.blocked))
        module.fail_json(**told)
    if result.failures:
        module.fail_json(msg=message(result, module.check_mode), **told)
    module.exit_json(**told)


if __name__ == "__main__":
    main()
