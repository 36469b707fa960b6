# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`gpurig power apply` and `gpurig power status`: the power policy of this host without Ansible. (outside)"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from . import nvml
from .gpu_model import gpu_from_readings, throttle_reasons, watts
from .power_apply import POLICY_NAME, Look, Outcome, alone, enforce, look, read_record
from .power_plan import PolicyError, Record, Seen, Target, changes_of, drift, watts_text
from .services import Host, boot_id

_POLL_S = 0.5
_HEADINGS = ("CARD", "WANTED", "SET", "ENFORCED", "DEFAULT", "DRAW", "PERSISTENCE", "STATE", "HELD DOWN BY")
_AWAITED = (nvml.DriverMissing, nvml.NotReady)


def run(host: Host, verb: str, as_json: bool = False, wait_s: float = 0.0) -> int:
    """Do `apply` or `status` and return the exit code; errors are told in words."""
    try:
        if verb == "apply":
            return apply(host, wait_s)
        return status(host, as_json)
    except (nvml.NvmlError, PolicyError) as error:
        print(f"gpurig power {verb}: {error}", file=sys.stderr, flush=True)
    return 1


# -- apply ------------------------------------------------------------------------------------------------------------
def apply(host: Host, wait_s: float = 0.0) -> int:
    """Set what the policy file says; a locked clock in any case, as it cannot be read.

    `wait_s`: how long to wait for the driver and for the cards, which come up beside us when the host boots. Cards that
    are there are set at once.
    """
    config = host.paths["config"]
    record = read_record(config)
    if not record.cards and not record.released:
        print(f"No power policy here ({config}/{POLICY_NAME} does not exist).")
        return 0
    deadline = time.monotonic() + wait_s
    tried: set[str] = set()
    while True:
        last = time.monotonic() >= deadline
        try:
            with nvml.open_library(host.nvml_path) as library:
                cards = look(library)
                if last or not _missing(read_record(config), cards):
                    return _apply_now(library, config)
                here = {one.card.uuid for one in cards.seen}
                if here - tried:
                    _tell(_set(library, config)[2])  # what fails is told by the last try
                tried |= here
        except _AWAITED:
            if last:
                raise
        time.sleep(_POLL_S)


def _missing(record: Record, cards: Look) -> list[Target]:
    here = {one.card.uuid for one in cards.seen}
    return [target for uuid, target in record.cards.items() if uuid not in here]


def _set(library: nvml.Nvml, config: str) -> tuple[Record, Look, Outcome]:
    with alone(config):
        record = read_record(config)
        cards = look(library)
        outcome = enforce(library, config, record, changes_of(record, cards.seen), cards.seen, boot_id())
    return record, cards, outcome


def _apply_now(library: nvml.Nvml, config: str) -> int:
    record, cards, outcome = _set(library, config)
    failures = [*_absences(record, cards), *outcome.failures]
    _tell(outcome)
    for target in record.cards.values():
        if target.limit_mw is not None:
            kept = target.uuid not in {change.uuid for change in outcome.done} | set(outcome.failed_cards)
            if kept and target not in _missing(record, cards):
                print(f"{target.label}: {watts_text(target.limit_mw)}, as wanted")
    for failure in failures:
        print(f"gpurig power apply: {failure}", file=sys.stderr, flush=True)
    return 1 if failures else 0


def _absences(record: Record, cards: Look) -> list[str]:
    why = "".join(f" The driver says: {lost.message}" for lost in cards.lost)
    return [f"{target.label}: does not answer.{why}" for target in _missing(record, cards)]


def _tell(outcome: Outcome) -> None:
    for change in outcome.done:
        print(f"{change.label}: {change.setting} {change.before} -> {change.after}")


def give_back(host: Host) -> int:
    """Give every card of the policy its default back, for an uninstall; what fails is told and leaves a 1."""
    config = host.paths["config"]
    try:
        record = read_record(config)
        if not record.cards and not record.released:
            return 0
        aim = Record({}, {**record.released, **record.cards})
        with nvml.open_library(host.nvml_path) as library, alone(config):
            cards = look(library)
            outcome = enforce(library, config, aim, changes_of(aim, cards.seen), cards.seen, boot_id())
    except (nvml.NvmlError, PolicyError, OSError) as error:
        failures: Sequence[str] = [str(error)]
    else:
        _tell(outcome)
        failures = [*_absences(record, cards), *outcome.failures]
    for failure in failures:
        print(f"a power limit stays until the next boot: {failure}", file=sys.stderr, flush=True)
    return 1 if failures else 0


# -- status -----------------------------------------------------------------------------------------------------------
def status(host: Host, as_json: bool) -> int:
    """Print wanted, set, enforced and what differs, for every card. The exit code says whether it could be told."""
    record = read_record(host.paths["config"])
    with nvml.open_library(host.nvml_path) as library:
        cards = look(library)
        rows = [_row(library, record, one) for one in cards.seen]
    rows += [_lost_row(target) for target in _missing(record, cards)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render(rows))
    for lost in cards.lost:
        print(f"{lost.pci or 'a card'}: {lost.message}")
    return 0


def _row(library: nvml.Nvml, record: Record, one: Seen) -> dict[str, Any]:
    gpu = gpu_from_readings(one.card, *library.readings(one.card))
    uuid = one.card.uuid
    target = record.cards.get(uuid)
    words = drift(target, one.power) if target else []
    if uuid in record.released:
        words.append("is to get its default back: gpurig power apply")
    mask = gpu.activity.throttle_mask
    return {
        "card": one.card.label,
        "uuid": uuid,
        "ours": target is not None,
        "why": target.why if target else "",
        "wanted_w": watts(target.limit_mw) if target else None,
        "lock_mhz": target.lock_mhz if target else None,
        "limit_w": watts(one.power.limit_mw),
        "enforced_w": watts(one.power.enforced_mw),
        "default_w": watts(one.power.default_mw),
        "usage_w": watts(gpu.power.usage_mw),
        "persistence": one.power.persistence,
        "throttle_reasons": None if mask is None else throttle_reasons(mask),
        "drift": words,
        "answers": True,
    }


def _lost_row(target: Target) -> dict[str, Any]:
    nothing = dict.fromkeys(("limit_w", "enforced_w", "default_w", "usage_w", "persistence", "throttle_reasons"), None)
    return {
        "card": target.label,
        "uuid": target.uuid,
        "ours": True,
        "why": target.why,
        "wanted_w": watts(target.limit_mw),
        "lock_mhz": target.lock_mhz,
        **nothing,
        "drift": ["does not answer"],
        "answers": False,
    }


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The table for people, with a line below it for everything that needs a word."""
    table = [_HEADINGS, *(tuple(_cells(row)) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([*lines, *(f"{row['card']}: {word}" for row in rows for word in row["drift"])])


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield row["card"]
    yield _watts(row["wanted_w"]) if not row["lock_mhz"] else f"<= {row['lock_mhz']} MHz"
    for key in ("limit_w", "enforced_w", "default_w", "usage_w"):
        yield _watts(row[key])
    yield {True: "on", False: "off"}.get(row["persistence"], "-")
    if not row["answers"]:
        yield "lost"
    elif row["drift"]:
        yield "drift"
    else:
        yield "ok" if row["ours"] else "not ours"
    yield ", ".join(row["throttle_reasons"] or ()) or "-"


def _watts(number: float | None) -> str:
    return "-" if number is None else f"{number:g} W"
