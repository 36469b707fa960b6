# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From wanted power limits and what the cards report to the list of changes. (pure)

Power is in milliwatts, as NVML has it; people write and read watts. What was asked for is an `Order`; what one card is
to have is a `Target`; the targets that we once set are the `Record`, which says what is ours to give back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from .gpu_model import READ_BACK_TOLERANCE_MW, Card, PciAddressError, Power, UnreachableCard, normalize_pci, pci_key

ON_UNSUPPORTED: Final = ("error", "report", "lock_clocks")
"""What to do with a card that takes no limit at all, as laptop cards do."""
POWER_LIMIT, PERSISTENCE, LOCKED_CLOCKS = "power limit", "persistence mode", "graphics clock"

_AMOUNTS = ("limit_w", "percent", "optimal")
_KEYS = ("gpu_role", "card", *_AMOUNTS, "on_unsupported", "lock_mhz")
_FORMAT = 1


class PolicyError(ValueError):
    """A policy file or a map of roles whose content is not what it should be; the message says what does not fit."""


@dataclass(frozen=True)
class Optimum:
    """A limit in watts at which a card loses little, and where that was measured."""

    limit_w: int
    loses: str
    source: str


OPTIMAL: Final[Mapping[str, Optimum]] = {
    "NVIDIA GeForce RTX 3090": Optimum(
        280,
        "under 5 % of training throughput and under 1 % of llama.cpp's tokens per second, against 350 W",
        "pugetsystems.com/labs/hpc/quad-rtx3090-gpu-wattage-limited-maxq-tensorflow-performance-1974 (2020), "
        "jeanfbrito.github.io/posts/rtx-3090-power-limit-sweet-spot",
    ),
    "NVIDIA GeForce RTX 3090 Ti": Optimum(
        300,
        "about 10 % of frames per second, against 450 W",
        "Igor's Lab, told by pcgamer.com/uk/an-rtx-3090-ti-set-to-a-300w-limit-still-beats-amds-best (2022)",
    ),
    "NVIDIA GeForce RTX 4090": Optimum(
        315,
        "about 2 % of frames per second, at 70 % of 450 W",
        "Quasarzone, told by hardwaretimes.com/nvidia-rtx-4090-loses-almost-no-gaming-performance-at-4k-with-a-power-"
        "limit-of-300w (2022)",
    ),
    "NVIDIA GeForce RTX 5060 Ti": Optimum(
        150,
        "under 1 % of llama.cpp's tokens per second, against 180 W",
        "inventivehq.com/blog/gpu-power-limit-tokens-per-watt",
    ),
    "NVIDIA GeForce RTX 5090": Optimum(
        400,
        "about 5 % of llama.cpp's tokens per second without and 18 % with speculative decoding, against 600 W",
        "github.com/sudoingX/qwen38-mtp/pull/47 (2026)",
    ),
}
"""NVML's product name -> the limit that V(optimal) means. A card that is not listed has no V(optimal)."""


@dataclass(frozen=True)
class Order:
    """One checked entry of the limits. Exactly one of `gpu_role`, `card` and one of the three amounts is set."""

    where: str
    gpu_role: str = ""
    card: str = ""
    limit_w: float | None = None
    percent: float | None = None
    optimal: bool = False
    on_unsupported: str = "error"
    lock_mhz: int | None = None

    @property
    def in_words(self) -> str:
        """The amount as it was asked for."""
        if self.limit_w is not None:
            return f"{self.limit_w:g} W"
        return "optimal" if self.optimal else f"{self.percent:g} %"


@dataclass(frozen=True)
class Seen:
    """A card that answers, with its power readings."""

    card: Card
    power: Power


@dataclass(frozen=True)
class Target:
    """What a card is to have. `limit_mw` None: it takes no limit and `lock_mhz` stands in for one.

    `persistence`: it is to have persistence mode on. `persistence_set`: that was off before us. `locked_boot`: the boot
    in which the clock was locked.
    """

    uuid: str
    name: str
    pci: str
    limit_mw: int | None = None
    lock_mhz: int | None = None
    why: str = ""
    persistence: bool = True
    persistence_set: bool = False
    locked_boot: str = ""

    @property
    def label(self) -> str:
        """As `Card.label`."""
        return f"{self.name} ({self.pci})"


@dataclass(frozen=True)
class Record:
    """What we set, by UUID. `released`: what is to get its default back and did not answer when it was to."""

    cards: Mapping[str, Target] = field(default_factory=dict)
    released: Mapping[str, Target] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One setting of one card. `value`: milliwatts, 1 or 0, or MHz with 0 for 'no longer locked'."""

    uuid: str
    label: str
    setting: str
    before: str
    after: str
    value: int


@dataclass(frozen=True)
class Plan:
    """What is to be done. `record`: what we own from the first change on.

    `problems` are mistakes of the inventory: nothing is done. `faults` are cards that do not answer: the others are
    done. `notes` are for the report.
    """

    changes: tuple[Change, ...] = ()
    record: Record = Record()
    selected: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def watts_text(milliwatts: int | None) -> str:
    """'350 W', 'unknown' for None."""
    return "unknown" if milliwatts is None else f"{milliwatts / 1000:g} W"


# -- what was asked for -----------------------------------------------------------------------------------------------
def parse_orders(raw: Iterable[object]) -> tuple[list[Order], list[str]]:
    """The limits as `rig_power.limits` has them, and everything wrong with them in words.

    A key without a value counts as not written.
    """
    orders: list[Order] = []
    problems: list[str] = []
    for number, entry in enumerate(raw):
        where = f"limits[{number}]"
        if not isinstance(entry, Mapping):
            problems.append(f"{where}: found {_found(entry)}, needed a mapping such as {{gpu_role: ..., limit_w: ...}}")
            continue
        given = {str(key): value for key, value in entry.items() if value is not None}
        if given.get("optimal") is False:
            del given["optimal"]
        before = len(problems)
        problems += [
            f"{where}.{key}: no such key. Known here: {', '.join(_KEYS)}." for key in given if key not in _KEYS
        ]
        problems += _one_of(where, given, ("gpu_role", "card"), "Name a role or one card.")
        problems += _one_of(where, given, _AMOUNTS, "Write watts, percent of the card's default, or optimal: true.")
        problems += _value_problems(where, given)
        if len(problems) == before:
            name = str(given.get("gpu_role") or given.get("card"))
            label = f"gpu_role {name}" if "gpu_role" in given else f"card {name}"
            orders.append(
                Order(
                    where=f"{where} ({label})",
                    gpu_role=str(given.get("gpu_role", "")),
                    card=str(given.get("card", "")),
                    limit_w=given.get("limit_w"),
                    percent=given.get("percent"),
                    optimal="optimal" in given,
                    on_unsupported=str(given.get("on_unsupported", "error")),
                    lock_mhz=given.get("lock_mhz"),
                )
            )
    return orders, problems


def _found(value: object) -> str:
    return f"the text '{value}'" if isinstance(value, str) else f"{value!r}"


def _one_of(where: str, given: Mapping[str, object], keys: Sequence[str], remedy: str) -> list[str]:
    found = [key for key in keys if key in given]
    if len(found) == 1:
        return []
    return [f"{where}: {' and '.join(found) or 'nothing'} written, needed exactly one of {', '.join(keys)}. {remedy}"]


def _value_problems(where: str, given: Mapping[str, object]) -> list[str]:
    problems = []
    for key in ("limit_w", "percent"):
        value = given.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            hint = " Write it without quotes and unit." if isinstance(value, str) else ""
            problems.append(f"{where}.{key}: found {_found(value)}, needed a number above 0.{hint}")
    for key in ("gpu_role", "card"):
        value = given.get(key, "x")
        if not isinstance(value, str) or not value:
            hint = " An index changes when cards move and is no name." if key == "card" else ""
            problems.append(f"{where}.{key}: found {_found(value)}, needed a text.{hint}")
        elif key == "card" and key in given and not _is_card_name(value):
            problems.append(f"{where}.card: found {_found(value)}, needed a UUID (GPU-...) or a PCI address.")
    if given.get("optimal", True) is not True:
        problems.append(f"{where}.optimal: found {_found(given['optimal'])}, needed true.")
    how = given.get("on_unsupported", "error")
    if how not in ON_UNSUPPORTED:
        problems.append(f"{where}.on_unsupported: found {_found(how)}, needed one of {', '.join(ON_UNSUPPORTED)}.")
    clock = given.get("lock_mhz")
    if "lock_mhz" in given and (isinstance(clock, bool) or not isinstance(clock, int) or clock <= 0):
        problems.append(f"{where}.lock_mhz: found {_found(clock)}, needed a whole number above 0.")
    if ("lock_mhz" in given) != (how == "lock_clocks"):
        problems.append(f"{where}: lock_mhz and on_unsupported: lock_clocks need each other. Write both or neither.")
    return problems


def _is_card_name(text: str) -> bool:
    return text.lower().startswith("gpu-") or _pci(text) != ""


def _pci(text: str) -> str:
    try:
        return normalize_pci(text)
    except PciAddressError:
        return ""


def _names(card: Card | Target, name: str) -> bool:
    return name.lower() == card.uuid.lower() or (_pci(name) != "" and _pci(name) == normalize_pci(card.pci))


# -- from orders to targets -------------------------------------------------------------------------------------------
@dataclass
class _Draft:
    """Collected while orders become targets."""

    targets: dict[str, Target] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    selected: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _resolve(
    orders: Sequence[Order], roles: Mapping[str, Sequence[str]], seen: Sequence[Seen], lost: Sequence[UnreachableCard]
) -> _Draft:
    draft = _Draft()
    asked: dict[str, list[tuple[Order, Target]]] = {}
    for order in orders:
        if order.gpu_role and not roles.get(order.gpu_role):
            what = "no such role" if order.gpu_role not in roles else "the role has no cards"
            draft.problems.append(f"{order.where}: {what}. Roles of this host: {', '.join(sorted(roles)) or 'none'}.")
            continue
        names = roles[order.gpu_role] if order.gpu_role else [order.card]
        for name in names:
            found = next((one for one in seen if _names(one.card, name)), None)
            if found is None:
                draft.absent.append(name)
                draft.faults.append(_absent(order, name, seen, lost))
                continue
            draft.selected[found.card.uuid] = None
            target = _target(order, found, draft)
            if target is not None:
                asked.setdefault(target.uuid, []).append((order, target))
    for uuid, pairs in asked.items():
        first_order, first = pairs[0]
        for order, target in pairs[1:]:
            if (target.limit_mw, target.lock_mhz) != (first.limit_mw, first.lock_mhz):
                draft.problems.append(
                    f"{first.label}: two limits, {_aim(first)} by {first_order.where} and {_aim(target)} by "
                    f"{order.where}. Keep one of them, or take the card out of one role."
                )
        draft.targets[uuid] = first
    return draft


def _aim(target: Target) -> str:
    return watts_text(target.limit_mw) if target.limit_mw is not None else f"at most {target.lock_mhz} MHz"


def _absent(order: Order, name: str, seen: Sequence[Seen], lost: Sequence[UnreachableCard]) -> str:
    here = "; ".join(f"{one.card.uuid} at {one.card.pci} ({one.card.name})" for one in seen) or "none"
    why = "".join(f" The driver says: {card.message}" for card in lost if card.pci in (None, _pci(name) or card.pci))
    return f"{order.where}: card {name} does not answer.{why} Cards that do: {here}."


def _target(order: Order, seen: Seen, draft: _Draft) -> Target | None:
    """The target of one card; None when it cannot or need not have one, for a reason added to the draft."""
    card, power = seen.card, seen.power
    target = Target(card.uuid, card.name, card.pci, why=order.where)
    low, high = power.min_mw, power.max_mw
    if low is None or high is None:
        if order.on_unsupported == "lock_clocks":
            return replace(target, lock_mhz=order.lock_mhz)
        words = f"{order.where}: {card.label} takes no power limit at all, as laptop cards do"
        if order.on_unsupported == "report":
            draft.notes.append(f"{words}; it keeps what its firmware allows.")
        else:
            draft.problems.append(
                f"{words}. Write on_unsupported: report to go on without, or on_unsupported: lock_clocks with lock_mhz."
            )
        return None
    wanted, remark = _wanted_mw(order, card, power)
    if wanted is None:
        draft.problems.append(f"{order.where}: {remark}")
        return None
    if order.optimal and not low <= wanted <= high:
        clamped = min(max(wanted, low), high)
        remark += f", moved to {watts_text(clamped)}, as the card accepts {watts_text(low)} to {watts_text(high)}"
        wanted = clamped
    if remark:
        draft.notes.append(f"{order.where}: {remark}.")
    if low <= wanted <= high:
        return replace(target, limit_mw=wanted)
    of = "" if order.limit_w is not None else f" is {watts_text(wanted)} and"
    draft.problems.append(
        f"{order.where}: {order.in_words} for {card.label}{of} lies outside of what the card accepts, "
        f"{watts_text(low)} to {watts_text(high)} (its default is {watts_text(power.default_mw)})."
    )
    return None


def _wanted_mw(order: Order, card: Card, power: Power) -> tuple[int | None, str]:
    """The limit, and a remark about it; None with the reason why there is none."""
    if order.limit_w is not None:
        return round(order.limit_w * 1000), ""
    if order.percent is not None:
        if power.default_mw is None:
            return None, f"{card.label} does not tell its default limit. Write limit_w."
        return round(order.percent * power.default_mw / 100), ""
    best = OPTIMAL.get(card.name)
    if best is None:
        known = ", ".join(sorted(OPTIMAL))
        return None, f"no optimal limit is known for {card.label}. Write limit_w or percent. Known: {known}."
    return best.limit_w * 1000, f"optimal for {card.label} is {best.limit_w} W: it loses {best.loses} ({best.source})"


# -- from targets to changes ------------------------------------------------------------------------------------------
def make_plan(
    orders: Sequence[Order],
    roles: Mapping[str, Sequence[str]],
    seen: Sequence[Seen],
    lost: Sequence[UnreachableCard] = (),
    record: Record | None = None,
    exclusive: bool = True,
    persistence: bool = True,
    boot: str = "",
) -> Plan:
    """What it takes to let the cards have what the orders say.

    `roles`: role -> UUIDs or PCI addresses. `seen` and `lost`: the host's cards. `record`: what we set before.
    `exclusive`: a card of the record that no order names gets its default back; otherwise it is left alone.
    `persistence`: the cards of the orders are to have persistence mode on. `boot`: id of this boot.
    """
    record = record or Record()
    draft = _resolve(orders, roles, seen, lost)
    cards = _inherit(draft.targets, record, seen, persistence)
    released = {uuid: target for uuid, target in record.released.items() if uuid not in cards}
    answering = {one.card.uuid for one in seen}
    for uuid, target in record.cards.items():
        if uuid in cards:
            continue
        awaited = uuid not in answering and any(_names(target, name) for name in draft.absent)
        if not exclusive or awaited:
            cards[uuid] = target
        else:
            released[uuid] = target
    named_now = {uuid: cards[uuid] for uuid in draft.targets}
    planned = changes_of(Record(named_now, released), seen, record, boot)
    return Plan(
        changes=tuple(planned),
        record=Record(cards, released),
        selected=tuple(draft.selected),
        problems=tuple(draft.problems),
        faults=tuple(draft.faults),
        notes=tuple(draft.notes),
    )


def _inherit(
    targets: Mapping[str, Target], record: Record, seen: Sequence[Seen], persistence: bool
) -> dict[str, Target]:
    """The targets with what the record knows of their cards, or with what is to be known from now on."""
    power = {one.card.uuid: one.power for one in seen}
    found = {}
    for uuid, target in targets.items():
        old = record.cards.get(uuid) or record.released.get(uuid)
        found[uuid] = replace(
            target,
            persistence=persistence,
            persistence_set=(old is not None and old.persistence_set)
            or (persistence and power[uuid].persistence is False),
            locked_boot=old.locked_boot if old and target.lock_mhz and old.lock_mhz == target.lock_mhz else "",
        )
    return found


def changes_of(
    aim: Record,
    seen: Sequence[Seen],
    record: Record | None = None,
    boot: str = "",
) -> list[Change]:
    """What differs between the aim and the cards, card by card in PCI order.

    `record`: what was set before, for what cannot be read from a card: a locked clock. Without it every clock is
    locked again.
    """
    changes: list[Change] = []
    for one in sorted(seen, key=lambda one: pci_key(one.card.pci)):
        uuid = one.card.uuid
        if uuid in aim.cards:
            old = record.cards.get(uuid) or record.released.get(uuid) if record else None
            changes += _card_changes(aim.cards[uuid], one, old, boot)
        elif uuid in aim.released:
            changes += _release_changes(aim.released[uuid], one)
    return changes


def _differs(found_mw: int | None, wanted_mw: int) -> bool:
    return found_mw is None or abs(found_mw - wanted_mw) > READ_BACK_TOLERANCE_MW


def _change(one: Seen, setting: str, before: str, after: str, value: int) -> Change:
    return Change(one.card.uuid, one.card.label, setting, before, after, value)


def _clock_text(mhz: int | None) -> str:
    return f"at most {mhz} MHz" if mhz else "not locked"


def _card_changes(target: Target, one: Seen, old: Target | None, boot: str) -> list[Change]:
    found = []
    if target.persistence and one.power.persistence is False:
        # First: without it the driver forgets the limit when its last client leaves.
        found.append(_change(one, PERSISTENCE, "off", "on", 1))
    if target.limit_mw is not None and _differs(one.power.limit_mw, target.limit_mw):
        after = watts_text(target.limit_mw)
        found.append(_change(one, POWER_LIMIT, watts_text(one.power.limit_mw), after, target.limit_mw))
    before = old.lock_mhz if old and (old.locked_boot == boot or not target.lock_mhz) else None
    if target.lock_mhz != before:
        found.append(
            _change(one, LOCKED_CLOCKS, _clock_text(before), _clock_text(target.lock_mhz), target.lock_mhz or 0)
        )
    return found


def _release_changes(target: Target, one: Seen) -> list[Change]:
    found = []
    default = one.power.default_mw
    if target.limit_mw is not None and default is not None and _differs(one.power.limit_mw, default):
        found.append(_change(one, POWER_LIMIT, watts_text(one.power.limit_mw), watts_text(default), default))
    if target.lock_mhz:
        found.append(_change(one, LOCKED_CLOCKS, _clock_text(target.lock_mhz), _clock_text(None), 0))
    if target.persistence_set and one.power.persistence:
        found.append(_change(one, PERSISTENCE, "on", "off", 0))
    return found


def settled(aim: Record, seen: Sequence[Seen], failed: Iterable[str], locked: Iterable[str], boot: str) -> Record:
    """The record after the changes: what was given back is forgotten, what was locked has its boot.

    `failed`: UUIDs of cards with a change that failed. `locked`: UUIDs whose clock was locked.
    """
    answered = {one.card.uuid for one in seen} - set(failed)
    clocks = set(locked)
    return Record(
        {uuid: replace(card, locked_boot=boot) if uuid in clocks else card for uuid, card in aim.cards.items()},
        {uuid: card for uuid, card in aim.released.items() if uuid not in answered},
    )


def limits_after(seen: Sequence[Seen], plan: Plan) -> dict[str, int | None]:
    """The limit in milliwatts that each card may draw after the plan, by UUID; None where it tells none.

    A card that is not ours counts with the higher of its limit and its default, which it has again after a boot.
    """
    found: dict[str, int | None] = {}
    for one in seen:
        target = plan.record.cards.get(one.card.uuid)
        if target and target.limit_mw is not None:
            found[one.card.uuid] = target.limit_mw
            continue
        known = [one.power.default_mw]
        if one.card.uuid not in plan.record.released:
            known.append(one.power.limit_mw)
        found[one.card.uuid] = max((mw for mw in known if mw is not None), default=None)
    return found


def drift(target: Target, power: Power) -> list[str]:
    """What of a target a card does not have, in words; a locked clock cannot be read and is never told."""
    found = []
    if target.limit_mw is not None:
        if _differs(power.limit_mw, target.limit_mw):
            found.append(f"its limit is {watts_text(power.limit_mw)}, wanted {watts_text(target.limit_mw)}")
        elif power.enforced_mw is not None and power.enforced_mw < target.limit_mw - READ_BACK_TOLERANCE_MW:
            found.append(
                f"{watts_text(power.enforced_mw)} is in force, less than its limit of {watts_text(target.limit_mw)}: "
                "the card's firmware or its power cables hold it down"
            )
    if target.persistence and power.persistence is False:
        found.append("persistence mode is off, so the driver forgets the limit when nothing uses the card")
    return found


# -- the record as data -----------------------------------------------------------------------------------------------
def record_as_dict(record: Record) -> dict[str, object]:
    """For the policy file."""

    def plain(targets: Mapping[str, Target]) -> dict[str, object]:
        return {
            uuid: {key: value for key, value in asdict(target).items() if key != "uuid"}
            for uuid, target in sorted(targets.items())
        }

    return {"format": _FORMAT, "cards": plain(record.cards), "released": plain(record.released)}


def record_from_dict(data: object) -> Record:
    """The record of a policy file's content. Raises PolicyError."""
    if not isinstance(data, Mapping) or data.get("format") != _FORMAT:
        raise PolicyError(f"it has no format {_FORMAT}")
    parts = []
    for part in ("cards", "released"):
        entries = data.get(part)
        if not isinstance(entries, Mapping):
            raise PolicyError(f"{part} is no mapping")
        parts.append({str(uuid): _target_from(f"{part}.{uuid}", str(uuid), entry) for uuid, entry in entries.items()})
    return Record(*parts)


def _target_from(where: str, uuid: str, entry: object) -> Target:
    if not isinstance(entry, Mapping):
        raise PolicyError(f"{where} is no mapping")
    try:
        target = Target(uuid=uuid, **entry)
    except TypeError as error:
        raise PolicyError(f"{where} has other keys than expected") from error
    fits = all(isinstance(text, str) for text in (target.name, target.pci, target.why, target.locked_boot))
    fits = fits and all(
        number is None or (isinstance(number, int) and number > 0) for number in (target.limit_mw, target.lock_mhz)
    )
    fits = fits and all(isinstance(switch, bool) for switch in (target.persistence, target.persistence_set))
    if not fits or not _pci(target.pci):
        raise PolicyError(f"{where} has a value of the wrong type")
    return target


def roles_from(data: object) -> dict[str, list[str]]:
    """Role -> cards, from the map file's content or an option. Raises PolicyError."""
    if not isinstance(data, Mapping):
        raise PolicyError('it is no mapping {"ROLE": ["UUID", ...]}')
    for role, cards in data.items():
        if not isinstance(cards, list) or not all(isinstance(card, str) and _is_card_name(card) for card in cards):
            raise PolicyError(f"the role {role!r} has no list of UUIDs or PCI addresses")
    return {str(role): list(cards) for role, cards in data.items()}
