# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a power supply, and a UPS before it, carry the cards that may be busy together. (pure)

Two sums for each supply, in watts:

    sustained   (cards + fixed) / efficiency + other                     <= rating x sustained_share
    transient   (cards x transient_factor + fixed) / efficiency + other  <= rating x transient_share

`cards` is the sum of their limits, `fixed` is processor and rest, `other` what else hangs on a UPS. The factors are
choices, each a variable:

- sustained_share 0.8: a supply that runs all day keeps a fifth in reserve.
- transient_factor 1.6: a power limit bounds the average of seconds, not the first milliseconds. Measured on an RTX 5090
  of 575 W: 901 W below 1 ms, 824 W for 1 to 5 ms, which is x 1.57 and x 1.43 (Igor's Lab, told by slashgear.com
  2025-07-07); a 3090 Ti of 450 W is said to reach 650 W, x 1.44.
- transient_share of a power supply: 1.8 with ATX 3, which demands 180 % of the rating for 1 ms (Intel's design guide
  for ATX 3.x, table 3-4, a unit of 1000 W); 1.0 with ATX 2, which has no such rule, so that its protection may trip.
- a UPS stands before the supply's capacitors, which cover the shortest spikes: transient_factor 1.1 (the same
  measurement over 10 to 20 ms: x 1.09), transient_share 1.0. It also feeds the supply's losses: efficiency 0.9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

TRANSIENT_SHARES: Final[Mapping[str, float]] = {"atx2": 1.0, "atx3": 1.8}
REST_W: Final = 100.0
"""Board, memory, disks and fans, where nothing is declared."""
_PSU_KEYS = ("rating_w", "standard", "cpu_w", "rest_w", "sustained_share", "transient_factor", "transient_share")
_UPS_KEYS = ("rating_w", "other_w", "efficiency", "sustained_share", "transient_factor", "transient_share")


@dataclass(frozen=True)
class Supply:
    """A power supply or a UPS. `fixed_w`: what the computer takes besides the cards; `parts`: the same in words."""

    label: str
    rating_w: float
    fixed_w: float
    parts: str
    sustained_share: float
    transient_factor: float
    transient_share: float
    efficiency: float = 1.0
    other_w: float = 0.0


@dataclass(frozen=True)
class Check:
    """One sum against what is allowed, in watts; `max_cards_w` is the sum of limits that would just fit."""

    supply: str
    group: str
    kind: str
    sum_w: float
    allowed_w: float
    max_cards_w: float
    words: str

    @property
    def margin_w(self) -> float:
        """What is to spare; negative: what is too much."""
        return self.allowed_w - self.sum_w

    @property
    def fits(self) -> bool:
        """Whether the supply carries it."""
        return self.margin_w > -1e-6

    @property
    def text(self) -> str:
        """The sum in words."""
        end = f"{self.margin_w:.0f} W to spare" if self.fits else f"{math.ceil(-self.margin_w)} W too much"
        return f"{self.supply}, {self.group}, {self.kind}: {self.words}, allowed {self.allowed_w:.0f} W: {end}"


@dataclass(frozen=True)
class Budget:
    """All checks. `problems` are mistakes in what was declared; with any there are no checks."""

    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def fits(self) -> bool:
        """Whether everything is carried."""
        return not self.problems and all(check.fits for check in self.checks)

    @property
    def refusals(self) -> list[str]:
        """For each group that does not fit: the sums that are too high and what would fit."""
        found = []
        for group in dict.fromkeys(check.group for check in self.checks):
            checks = [check for check in self.checks if check.group == group]
            bad = [check.text for check in checks if not check.fits]
            if bad:
                most_w = min(check.max_cards_w for check in checks)
                remedy = (
                    f"Limits of at most {math.floor(most_w)} W together would fit"
                    if most_w >= 1
                    else "No limit would fit; the rest alone is too much"
                )
                found.append(f"{'; '.join(bad)}. {remedy} (rig_power.limits).")
        return found


def budget(
    groups: Mapping[str, Mapping[str, float | None]],
    psu: Mapping[str, object],
    ups: Mapping[str, object] | None = None,
    cpu_w: float | None = None,
) -> Budget:
    """Check every group of cards that may be busy together.

    `groups`: name of the group -> {card: its limit in watts, None where it tells none}. `psu` and `ups` as in
    `rig_power`. `cpu_w`: the processor's limit as the kernel tells it, for a `psu` without cpu_w.
    """
    problems: list[str] = []
    notes: list[str] = []
    supplies = _supplies(psu, ups or {}, cpu_w, problems, notes)
    for group, cards in groups.items():
        problems += [
            f"psu: {card} tells no power limit, so {group} cannot be summed up. Leave psu out, or name in psu.together "
            "the roles that may be busy, without this card."
            for card, limit_w in cards.items()
            if limit_w is None
        ]
    if problems:
        return Budget(problems=tuple(problems), notes=tuple(notes))
    checks = [
        check
        for supply in supplies
        for group, cards in groups.items()
        for check in _checks(supply, group, [limit_w for limit_w in cards.values() if limit_w is not None])
    ]
    return Budget(tuple(checks), notes=tuple(notes))


def _supplies(
    psu: Mapping[str, object], ups: Mapping[str, object], cpu_w: float | None, problems: list[str], notes: list[str]
) -> list[Supply]:
    if not psu:
        if ups:
            problems.append("ups: needs psu beside it, which says what processor and rest take.")
        return []
    given = _numbers("psu", psu, _PSU_KEYS, problems)
    standard = psu.get("standard")
    if not isinstance(standard, str) or standard not in TRANSIENT_SHARES:
        problems.append(f"psu.standard: found {standard!r}, needed one of {', '.join(TRANSIENT_SHARES)}.")
    if "cpu_w" not in given and cpu_w is not None:
        notes.append(f"psu.cpu_w is not written; the kernel limits the processor to {cpu_w:g} W, which counts.")
        given["cpu_w"] = cpu_w
    elif "cpu_w" not in given and psu.get("cpu_w") is None:
        problems.append(
            "psu.cpu_w: not written, and this host's kernel does not tell the processor's limit. Write the watts of "
            "the processor at full load."
        )
    if "rating_w" not in given and psu.get("rating_w") is None:
        problems.append("psu.rating_w: missing, needed the watts on its label.")
    their = _numbers("ups", ups, _UPS_KEYS, problems)
    if ups and ups.get("rating_w") is None:
        problems.append("ups.rating_w: missing, needed the watts (not VA) on its label.")
    if problems:
        return []
    processor, rest = given["cpu_w"], given.get("rest_w", REST_W)
    supplies = [
        Supply(
            label=f"power supply of {given['rating_w']:g} W ({standard})",
            rating_w=given["rating_w"],
            fixed_w=processor + rest,
            parts=f"{processor:g} processor + {rest:g} rest",
            sustained_share=given.get("sustained_share", 0.8),
            transient_factor=given.get("transient_factor", 1.6),
            transient_share=given.get("transient_share", TRANSIENT_SHARES[str(standard)]),
        )
    ]
    if ups:
        supplies.append(
            Supply(
                label=f"UPS of {their['rating_w']:g} W",
                rating_w=their["rating_w"],
                fixed_w=processor + rest,
                parts=f"{processor:g} processor + {rest:g} rest",
                sustained_share=their.get("sustained_share", 0.8),
                transient_factor=their.get("transient_factor", 1.1),
                transient_share=their.get("transient_share", 1.0),
                efficiency=their.get("efficiency", 0.9),
                other_w=their.get("other_w", 0.0),
            )
        )
    return supplies


def _numbers(where: str, raw: Mapping[str, object], keys: Sequence[str], problems: list[str]) -> dict[str, float]:
    """The numbers that are written, each checked: above 0, `cpu_w`, `rest_w` and `other_w` also 0."""
    known = (*keys, "together") if where == "psu" else keys
    problems += [f"{where}.{key}: no such key. Known here: {', '.join(known)}." for key in raw if key not in known]
    found = {}
    for key in keys:
        value = raw.get(key)
        if value is None or key == "standard":
            continue
        may_be_zero = key in ("cpu_w", "rest_w", "other_w")
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < 0 or (value == 0 and not may_be_zero):  # type: ignore[operator]
            need = "of at least 0" if may_be_zero else "above 0"
            problems.append(f"{where}.{key}: found {value!r}, needed a number {need}, without quotes.")
        elif key == "efficiency" and value > 1:  # type: ignore[operator]
            problems.append(f"{where}.{key}: found {value!r}, needed a share of at most 1, such as 0.9.")
        else:
            found[key] = float(value)  # type: ignore[arg-type]
    return found


def _checks(supply: Supply, group: str, limits_w: Sequence[float]) -> list[Check]:
    cards_w = sum(limits_w)
    found = []
    for kind, factor, share in (
        ("sustained", 1.0, supply.sustained_share),
        ("transient", supply.transient_factor, supply.transient_share),
    ):
        sum_w = (cards_w * factor + supply.fixed_w) / supply.efficiency + supply.other_w
        allowed_w = supply.rating_w * share
        times = "" if factor == 1 else f" x {factor:g}"
        terms = " + ".join([*(f"{limit_w:g}{times}" for limit_w in limits_w), supply.parts])
        if supply.efficiency != 1:
            terms = f"({terms}) / {supply.efficiency:g}"
        if supply.other_w:
            terms += f" + {supply.other_w:g} other"
        found.append(
            Check(
                supply=supply.label,
                group=group,
                kind=kind,
                sum_w=sum_w,
                allowed_w=allowed_w,
                max_cards_w=((allowed_w - supply.other_w) * supply.efficiency - supply.fixed_w) / factor,
                words=f"{terms} = {sum_w:.0f} W",
            )
        )
    return found


def groups_of(
    together: object, roles: Mapping[str, Sequence[str]], cards: Mapping[str, str]
) -> tuple[dict[str, list[str]], list[str], list[str]]:
    """Which cards may be busy together: {group: UUIDs}, mistakes in words, and notes about cards that are not here.

    `together`: lists of roles; None: every card of the host at once. `roles`: role -> UUIDs or PCI addresses in the
    spelling of `cards`, which is {that name: UUID}; upper and lower case are the same.
    """
    if together is None:
        return {"all cards": list(dict.fromkeys(cards.values()))}, [], []
    if isinstance(together, str) or not isinstance(together, Sequence):
        needed = "needed a list of lists of roles, such as [[inference]]."
        return {}, [f"psu.together: found {together!r}, {needed}"], []
    here = {name.lower(): uuid for name, uuid in cards.items()}
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    notes: list[str] = []
    for number, names in enumerate(together):
        if isinstance(names, str) or not isinstance(names, Sequence):
            problems.append(f"psu.together[{number}]: found {names!r}, needed a list of roles.")
            continue
        if not names:
            problems.append(f"psu.together[{number}]: names no role. List at least one, or remove the group.")
            continue
        unknown = [name for name in names if not isinstance(name, str) or name not in roles]
        if unknown:
            known = ", ".join(sorted(roles)) or "none"
            problems.append(f"psu.together[{number}]: no such role: {', '.join(map(str, unknown))}. Roles: {known}.")
            continue
        members = dict.fromkeys(card for name in names for card in roles[name])
        group, away = " + ".join(names), [card for card in members if card.lower() not in here]
        if len(away) == len(members):
            notes.append(f"psu.together[{number}]: no card of {group} answers here, so there is no sum for it.")
            continue
        notes += [f"psu.together[{number}]: {card} does not answer here and is in no sum." for card in away]
        found[group] = list(dict.fromkeys(here[card.lower()] for card in members if card not in away))
    return found, problems, notes


def budget_as_dict(result: Budget) -> dict[str, object]:
    """For a module's or a filter's result."""
    return {
        "fits": result.fits,
        "checks": [
            {
                "supply": check.supply,
                "group": check.group,
                "kind": check.kind,
                "sum_w": round(check.sum_w, 1),
                "allowed_w": round(check.allowed_w, 1),
                "margin_w": round(check.margin_w, 1),
                "fits": check.fits,
                "text": check.text,
            }
            for check in result.checks
        ],
        "problems": [*result.problems, *result.refusals],
        "notes": list(result.notes),
    }
