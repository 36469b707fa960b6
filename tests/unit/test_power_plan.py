# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From wanted limits to changes: selection, amounts, ranges, conflicts, removal, drift, the policy file's data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import power_plan
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import Card, Power, UnreachableCard
from ansible_collections.gpurig.llm.plugins.module_utils.power_plan import (
    LOCKED_CLOCKS,
    OPTIMAL,
    PERSISTENCE,
    POWER_LIMIT,
    Plan,
    PolicyError,
    Record,
    Seen,
    Target,
    changes_of,
    drift,
    limits_after,
    make_plan,
    parse_orders,
    record_as_dict,
    record_from_dict,
    roles_from,
    settled,
)
from hypothesis import given
from hypothesis import strategies as st

W = 1000
TI = Card(0, "GPU-0000000a-0000-0000-0000-000000000000", "0000:17:00.0", "NVIDIA GeForce RTX 3090 Ti")
ADA = Card(1, "GPU-0000000b-0000-0000-0000-000000000000", "0000:65:00.0", "NVIDIA GeForce RTX 4090")
BIG = Card(2, "GPU-0000000c-0000-0000-0000-000000000000", "0000:b3:00.0", "NVIDIA GeForce RTX 5090")
LAPTOP = Card(3, "GPU-0000000d-0000-0000-0000-000000000000", "0000:01:00.0", "NVIDIA GeForce RTX 4070 Laptop GPU")
POWERS = {
    TI: Power(450 * W, 450 * W, 450 * W, 100 * W, 480 * W, persistence=False),
    ADA: Power(450 * W, 450 * W, 450 * W, 10 * W, 600 * W, persistence=False),
    BIG: Power(575 * W, 575 * W, 575 * W, 400 * W, 575 * W, persistence=True),
    LAPTOP: Power(persistence=False),
}
ROLES = {"training": [TI.uuid, ADA.uuid], "inference": [ADA.pci], "big": [BIG.uuid], "mobile": [LAPTOP.uuid]}


def see(*cards: Card, **changes: Any) -> list[Seen]:
    return [Seen(card, dataclasses.replace(POWERS[card], **changes)) for card in cards or POWERS]


def plan(
    limits: Sequence[Mapping[str, Any]],
    seen: Sequence[Seen] | None = None,
    roles: Mapping[str, Sequence[str]] = ROLES,
    **more: Any,
) -> Plan:
    orders, problems = parse_orders(limits)
    assert problems == []
    return make_plan(orders, roles, see() if seen is None else seen, **more)


def told(found: Plan | list[Any]) -> list[tuple[str, str, str, str]]:
    changes = found.changes if isinstance(found, Plan) else found
    return [(change.uuid, change.setting, change.before, change.after) for change in changes]


def owned(card: Card, limit_w: int | None = None, **more: Any) -> Record:
    limit_mw = None if limit_w is None else limit_w * W
    return Record({card.uuid: Target(card.uuid, card.name, card.pci, limit_mw, why="x", **more)})


# --- selection and amounts


def test_a_role_gives_every_card_its_limit_and_persistence_first() -> None:
    found = plan([{"gpu_role": "training", "limit_w": 350}])
    assert told(found) == [
        (TI.uuid, PERSISTENCE, "off", "on"),
        (TI.uuid, POWER_LIMIT, "450 W", "350 W"),
        (ADA.uuid, PERSISTENCE, "off", "on"),
        (ADA.uuid, POWER_LIMIT, "450 W", "350 W"),
    ]
    assert [change.value for change in found.changes] == [1, 350 * W, 1, 350 * W]
    assert found.selected == (TI.uuid, ADA.uuid)
    assert found.record.cards[ADA.uuid] == Target(
        ADA.uuid, ADA.name, ADA.pci, 350 * W, None, "limits[0] (gpu_role training)", persistence_set=True
    )
    assert (found.problems, found.faults, found.notes) == ((), (), ())


@pytest.mark.parametrize("name", [ADA.uuid, ADA.uuid.upper(), "0000:65:00.0", "65:00.0", "00000000:65:00.0"])
def test_one_card_by_any_of_its_names(name: str) -> None:
    found = plan([{"card": name, "limit_w": 300.5}], persistence=False)
    assert told(found) == [(ADA.uuid, POWER_LIMIT, "450 W", "300.5 W")]
    assert found.record.cards[ADA.uuid].persistence_set is False


@pytest.mark.parametrize(
    ("limit", "card", "expected_mw"),
    [
        ({"percent": 80}, ADA, 360 * W),
        ({"percent": 120}, ADA, 540 * W),
        ({"percent": 77.7}, TI, 349650),
        ({"limit_w": 600}, ADA, 600 * W),
        ({"limit_w": 10}, ADA, 10 * W),
        ({"optimal": True}, TI, 300 * W),
        ({"optimal": True}, ADA, 315 * W),
        ({"optimal": True}, BIG, 400 * W),
    ],
)
def test_amounts(limit: dict[str, Any], card: Card, expected_mw: int) -> None:
    found = plan([{"card": card.uuid, **limit}])
    assert found.problems == ()
    assert found.record.cards[card.uuid].limit_mw == expected_mw


def test_optimal_names_its_loss_and_source() -> None:
    (note,) = plan([{"card": ADA.uuid, "optimal": True}]).notes
    assert note.startswith("limits[0] (card GPU-0000000b")
    assert "optimal for NVIDIA GeForce RTX 4090 (0000:65:00.0) is 315 W: it loses about 2 %" in note
    assert "hardwaretimes.com" in note


@pytest.mark.parametrize(("low", "high", "expected_w"), [(320, 600, 320), (100, 310, 310), (100, 315, 315)])
def test_optimal_stays_within_the_cards_range(low: int, high: int, expected_w: int) -> None:
    found = plan([{"card": ADA.uuid, "optimal": True}], see(ADA, min_mw=low * W, max_mw=high * W))
    assert found.problems == ()
    assert found.record.cards[ADA.uuid].limit_mw == expected_w * W
    assert (f"moved to {expected_w} W" in found.notes[0]) == (expected_w != 315)


def test_the_catalogue_of_optimal_limits_names_its_sources() -> None:
    for name, best in OPTIMAL.items():
        assert name.startswith("NVIDIA "), name
        assert 0 < best.limit_w < 600
        assert "." in best.source
        assert "%" in best.loses


# --- what cannot be


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (
            {"gpu_role": "big", "limit_w": 300},
            "300 W for NVIDIA GeForce RTX 5090 (0000:b3:00.0) lies outside of what the",
        ),
        ({"gpu_role": "big", "limit_w": 399.999}, "lies outside of what the card accepts, 400 W to 575 W"),
        ({"gpu_role": "big", "limit_w": 575.001}, "lies outside"),
        (
            {"gpu_role": "big", "percent": 60},
            "60 % for NVIDIA GeForce RTX 5090 (0000:b3:00.0) is 345 W and lies outside",
        ),
        ({"gpu_role": "nobody", "limit_w": 300}, "no such role. Roles of this host: big, empty, inference"),
        ({"gpu_role": "empty", "limit_w": 300}, "the role has no cards."),
        (
            {"gpu_role": "mobile", "limit_w": 80},
            "takes no power limit at all, as laptop cards do. Write on_unsupported",
        ),
    ],
)
def test_problems(limit: dict[str, Any], words: str) -> None:
    found = plan([limit], roles={**ROLES, "empty": []})
    (problem,) = found.problems
    assert problem.startswith(f"limits[0] (gpu_role {limit['gpu_role']}): ")
    assert words in problem


def test_what_a_card_must_tell_for_an_amount() -> None:
    found = plan([{"card": ADA.uuid, "percent": 80}], see(ADA, default_mw=None))
    assert "does not tell its default limit. Write limit_w." in found.problems[0]
    t4 = Card(0, "GPU-x", "0000:01:00.0", "Tesla T4")
    found = plan([{"card": "GPU-x", "optimal": True}], [Seen(t4, Power(70 * W, 70 * W, 70 * W, 60 * W, 70 * W))])
    assert "no optimal limit is known for Tesla T4 (0000:01:00.0). Write limit_w or percent." in found.problems[0]


def test_two_limits_for_one_card_name_both() -> None:
    found = plan([{"gpu_role": "training", "limit_w": 350}, {"gpu_role": "inference", "percent": 100}])
    (problem,) = found.problems
    assert problem == (
        "NVIDIA GeForce RTX 4090 (0000:65:00.0): two limits, 350 W by limits[0] (gpu_role training) and 450 W by "
        "limits[1] (gpu_role inference). Keep one of them, or take the card out of one role."
    )
    same = plan([{"gpu_role": "training", "limit_w": 360}, {"gpu_role": "inference", "percent": 80}])
    assert same.problems == ()
    assert len([change for change in same.changes if change.uuid == ADA.uuid]) == 2


def test_every_problem_is_told_at_once() -> None:
    found = plan(
        [
            {"gpu_role": "big", "limit_w": 1},
            {"gpu_role": "nobody", "limit_w": 1},
            {"gpu_role": "mobile", "optimal": True},
            {"gpu_role": "training", "limit_w": 5},
        ]
    )
    assert len(found.problems) == 5


def test_a_card_that_does_not_answer_is_a_fault_and_keeps_nobody_else() -> None:
    lost = UnreachableCard("lost", "GPU 0: fell off the bus.", 0, None)
    found = plan([{"gpu_role": "training", "limit_w": 350}], see(ADA), lost=[lost])
    assert found.problems == ()
    assert {change.uuid for change in found.changes} == {ADA.uuid}
    (fault,) = found.faults
    assert f"card {TI.uuid} does not answer. The driver says: GPU 0: fell off the bus." in fault
    assert f"Cards that do: {ADA.uuid} at 0000:65:00.0 (NVIDIA GeForce RTX 4090)." in fault


def test_the_words_of_another_lost_card_are_not_its_own() -> None:
    lost = [UnreachableCard("lost", "fell off the bus", 0, "0000:99:00.0")]
    found = plan([{"card": "0000:17:00.0", "limit_w": 350}], see(ADA), lost=lost)
    assert "The driver says" not in found.faults[0]
    lost = [UnreachableCard("lost", "fell off the bus", 0, "0000:17:00.0")]
    assert "The driver says: fell" in plan([{"card": "17:00.0", "limit_w": 350}], see(ADA), lost=lost).faults[0]


# --- cards that take no limit


def test_report_goes_on_without() -> None:
    found = plan([{"gpu_role": "mobile", "limit_w": 80, "on_unsupported": "report"}])
    assert (found.problems, found.changes, found.record) == ((), (), Record())
    assert "it keeps what its firmware allows" in found.notes[0]
    assert found.selected == (LAPTOP.uuid,)


LOCK = {"gpu_role": "mobile", "limit_w": 80, "on_unsupported": "lock_clocks", "lock_mhz": 1500}


def test_a_locked_clock_is_known_by_its_boot() -> None:
    found = plan([LOCK], boot="one")
    assert told(found) == [
        (LAPTOP.uuid, PERSISTENCE, "off", "on"),
        (LAPTOP.uuid, LOCKED_CLOCKS, "not locked", "at most 1500 MHz"),
    ]
    done = settled(found.record, see(), [], [LAPTOP.uuid], "one")
    assert done.cards[LAPTOP.uuid].locked_boot == "one"
    running = see(LAPTOP, persistence=True)
    assert plan([LOCK], running, record=done, boot="one").changes == ()
    assert told(plan([LOCK], running, record=done, boot="two"))[0][2:] == ("not locked", "at most 1500 MHz")
    other = plan([{**LOCK, "lock_mhz": 1200}], running, record=done, boot="one")
    assert told(other) == [(LAPTOP.uuid, LOCKED_CLOCKS, "at most 1500 MHz", "at most 1200 MHz")]
    assert other.record.cards[LAPTOP.uuid].locked_boot == ""
    gone = plan([], running, record=done, boot="two")
    assert told(gone)[0] == (LAPTOP.uuid, LOCKED_CLOCKS, "at most 1500 MHz", "not locked")
    assert gone.changes[0].value == 0


def test_a_card_that_takes_limits_since_a_new_driver_loses_its_lock() -> None:
    seen = see(ADA)
    record = owned(ADA, lock_mhz=1500, locked_boot="one")
    found = told(plan([{"card": ADA.uuid, "limit_w": 300}], seen, record=record, boot="one"))
    assert (ADA.uuid, LOCKED_CLOCKS, "at most 1500 MHz", "not locked") in found


# --- idempotence and removal


@pytest.mark.parametrize(("found_mw", "differs"), [(350000, False), (349500, False), (350500, False), (349499, True)])
def test_the_tolerance_of_a_read_back(found_mw: int, differs: bool) -> None:
    found = plan([{"card": ADA.uuid, "limit_w": 350}], see(ADA, limit_mw=found_mw, persistence=True))
    assert bool(found.changes) == differs


def test_what_nobody_names_gets_its_default_back_when_the_list_is_the_whole() -> None:
    record = owned(ADA, 300, persistence_set=True)
    seen = see(TI, ADA, persistence=True, limit_mw=300 * W)
    found = plan([{"card": TI.uuid, "limit_w": 300}], seen, record=record)
    assert told(found) == [(ADA.uuid, POWER_LIMIT, "300 W", "450 W"), (ADA.uuid, PERSISTENCE, "on", "off")]
    assert set(found.record.released) == {ADA.uuid}
    assert set(found.record.cards) == {TI.uuid}
    assert settled(found.record, seen, [], [], "").released == {}
    assert set(settled(found.record, seen, [ADA.uuid], [], "").released) == {ADA.uuid}

    kept = plan([{"card": TI.uuid, "limit_w": 300}], seen, record=record, exclusive=False)
    assert kept.changes == ()
    assert set(kept.record.cards) == {TI.uuid, ADA.uuid}


def test_persistence_that_was_on_before_us_stays_on() -> None:
    found = plan([], see(ADA, persistence=True, limit_mw=300 * W), record=owned(ADA, 300))
    assert told(found) == [(ADA.uuid, POWER_LIMIT, "300 W", "450 W")]


def test_a_card_that_is_away_when_it_is_to_be_given_back_is_remembered() -> None:
    away = plan([], see(TI), record=owned(ADA, 300))
    assert away.changes == ()
    assert set(away.record.released) == {ADA.uuid}
    later = settled(away.record, see(TI), [], [], "")
    assert set(later.released) == {ADA.uuid}
    back = plan([], see(ADA, limit_mw=300 * W), record=later)
    assert told(back) == [(ADA.uuid, POWER_LIMIT, "300 W", "450 W")]
    again = plan([{"card": ADA.uuid, "limit_w": 300}], see(ADA, limit_mw=300 * W), record=later, persistence=False)
    assert (again.changes, again.record.released) == ((), {})


def test_a_lost_card_that_is_still_wanted_stays_ours() -> None:
    record = owned(ADA, 350)
    found = plan([{"gpu_role": "training", "limit_w": 350}], see(TI), record=record)
    assert found.record.cards[ADA.uuid] == record.cards[ADA.uuid]
    assert found.record.released == {}
    assert len(found.faults) == 1


def test_a_card_that_left_the_address_of_its_limit_gets_its_default_back() -> None:
    """Two cards that changed slots, a card that moved and one that was replaced: the limit belongs to the address."""
    limits = [{"card": "0000:17:00.0", "limit_w": 300}]
    record = owned(TI, 300)
    moved = Seen(dataclasses.replace(TI, pci=ADA.pci), dataclasses.replace(POWERS[TI], limit_mw=300 * W))
    here = Seen(dataclasses.replace(ADA, pci=TI.pci), POWERS[ADA])
    swapped = plan(limits, [moved, here], record=record)
    assert (set(swapped.record.cards), set(swapped.record.released)) == ({ADA.uuid}, {TI.uuid})
    assert (TI.uuid, POWER_LIMIT, "300 W", "450 W") in told(swapped)
    replaced = plan(limits, [here], record=record)
    assert replaced.faults == ()
    assert (set(replaced.record.cards), set(replaced.record.released)) == ({ADA.uuid}, {TI.uuid})
    empty = plan(limits, [moved], record=record)
    assert len(empty.faults) == 1
    assert (set(empty.record.cards), set(empty.record.released)) == (set(), {TI.uuid})


def test_the_wish_for_persistence_is_in_the_record() -> None:
    found = plan([{"card": ADA.uuid, "limit_w": 350}], see(ADA), persistence=False)
    capped = see(ADA, limit_mw=350 * W, enforced_mw=350 * W)
    kept = record_from_dict(record_as_dict(found.record))
    assert told(changes_of(kept, see(ADA))) == [(ADA.uuid, POWER_LIMIT, "450 W", "350 W")]
    assert changes_of(kept, capped) == []
    assert drift(kept.cards[ADA.uuid], capped[0].power) == []
    wanted = plan([{"card": ADA.uuid, "limit_w": 350}], capped, record=kept)
    assert told(changes_of(wanted.record, capped)) == [(ADA.uuid, PERSISTENCE, "off", "on")]


def test_what_a_boot_sets_again() -> None:
    record = owned(ADA, 350, persistence_set=True)
    assert told(changes_of(record, see(TI, ADA))) == [
        (ADA.uuid, PERSISTENCE, "off", "on"),
        (ADA.uuid, POWER_LIMIT, "450 W", "350 W"),
    ]
    assert changes_of(record, see(ADA, limit_mw=350 * W, persistence=True)) == []
    assert changes_of(record, see(TI)) == []


def test_cards_are_done_in_pci_order() -> None:
    cards = [change.uuid for change in plan([{"gpu_role": "training", "limit_w": 350}], see(ADA, TI)).changes]
    assert cards == [TI.uuid, TI.uuid, ADA.uuid, ADA.uuid]


# --- sums and drift


def test_limits_for_the_sums() -> None:
    seen = [*see(TI, limit_mw=480 * W), *see(ADA, limit_mw=300 * W), *see(BIG, limit_mw=450 * W), *see(LAPTOP)]
    found = plan([{"card": TI.uuid, "limit_w": 350}], seen, record=owned(BIG, 450))
    assert limits_after(seen, found) == {
        TI.uuid: 350 * W,
        ADA.uuid: 450 * W,  # not ours: after a boot it has its default again
        BIG.uuid: 575 * W,  # given back
        LAPTOP.uuid: None,
    }
    assert limits_after(see(TI, limit_mw=480 * W), Plan())[TI.uuid] == 480 * W
    given_back = plan([], see(TI, limit_mw=480 * W), record=owned(TI, 480))
    assert limits_after(see(TI, limit_mw=480 * W), given_back)[TI.uuid] == 450 * W


TARGET = Target(ADA.uuid, ADA.name, ADA.pci, 350 * W)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"limit_mw": 450 * W}, ["its limit is 450 W, wanted 350 W"]),
        ({"limit_mw": None}, ["its limit is unknown, wanted 350 W"]),
        ({"enforced_mw": 300 * W}, ["300 W is in force, less than its limit of 350 W"]),
        ({"enforced_mw": 349600}, []),
        ({"persistence": False}, ["persistence mode is off"]),
        ({"persistence": None}, []),
    ],
)
def test_drift(changes: dict[str, Any], words: list[str]) -> None:
    good = {"limit_mw": 350 * W, "enforced_mw": 350 * W, "persistence": True}
    found = drift(TARGET, Power(**{**good, **changes}))
    assert len(found) == len(words)
    assert all(text.startswith(begin) for text, begin in zip(found, words, strict=True))
    assert drift(dataclasses.replace(TARGET, limit_mw=None, lock_mhz=1500), Power(persistence=True)) == []


# --- bad input


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("350", "limits[0]: found the text '350', needed a mapping"),
        ({"gpu_role": "a"}, "limits[0]: nothing written, needed exactly one of limit_w, percent, optimal."),
        ({"limit_w": 1}, "limits[0]: nothing written, needed exactly one of gpu_role, card."),
        ({"gpu_role": "a", "limit_w": 1, "percent": 2}, "limits[0]: limit_w and percent written, needed exactly one"),
        ({"gpu_role": "a", "limit_w": -350}, "limits[0].limit_w: found -350, needed a number above 0."),
        ({"gpu_role": "a", "limit_w": 0}, "limits[0].limit_w: found 0"),
        (
            {"gpu_role": "a", "limit_w": "350"},
            "limits[0].limit_w: found the text '350', needed a number above 0. Write",
        ),
        ({"gpu_role": "a", "limit_w": "350 W"}, "limits[0].limit_w: found the text '350 W'"),
        ({"gpu_role": "a", "limit_w": True}, "limits[0].limit_w: found True"),
        ({"gpu_role": "a", "limit_w": float("inf")}, "limits[0].limit_w: found inf"),
        ({"gpu_role": "a", "limit_w": float("nan")}, "limits[0].limit_w: found nan"),
        ({"gpu_role": "a", "percent": [80]}, "limits[0].percent: found [80]"),
        ({"gpu_role": "a", "optimal": "yes"}, "limits[0].optimal: found the text 'yes', needed true."),
        ({"gpu_role": 3, "limit_w": 1}, "limits[0].gpu_role: found 3, needed a text."),
        ({"card": 1, "limit_w": 1}, "limits[0].card: found 1, needed a text. An index changes when cards move"),
        ({"card": "1", "limit_w": 1}, "limits[0].card: found the text '1', needed a UUID (GPU-...) or a PCI address."),
        ({"gpu_role": "a", "limit_w": 1, "watts": 3}, "limits[0].watts: no such key. Known here: gpu_role, card,"),
        ({"gpu_role": "a", "limit_w": 1, "on_unsupported": "warn"}, "limits[0].on_unsupported: found the text 'warn'"),
        ({"gpu_role": "a", "limit_w": 1, "on_unsupported": "lock_clocks"}, "limits[0]: lock_mhz and on_unsupported"),
        ({"gpu_role": "a", "limit_w": 1, "lock_mhz": 1500}, "limits[0]: lock_mhz and on_unsupported"),
        ({**LOCK, "lock_mhz": 1500.5}, "limits[0].lock_mhz: found 1500.5, needed a whole number above 0."),
        ({**LOCK, "lock_mhz": 0}, "limits[0].lock_mhz: found 0"),
        ({**LOCK, "lock_mhz": True}, "limits[0].lock_mhz: found True"),
    ],
)
def test_entries_that_are_wrong(entry: Any, words: str) -> None:
    orders, problems = parse_orders([entry])
    assert orders == []
    assert len(problems) == 1
    assert problems[0].startswith(words)


def test_keys_without_a_value_count_as_not_written() -> None:
    nothing = dict.fromkeys(("card", "percent", "optimal", "on_unsupported", "lock_mhz"))
    orders, problems = parse_orders(
        [{**nothing, "gpu_role": "a", "limit_w": 350}, {"card": "17:00.0", "optimal": True}]
    )
    assert problems == []
    assert [(order.in_words, order.on_unsupported) for order in orders] == [("350 W", "error"), ("optimal", "error")]
    assert parse_orders([{"gpu_role": "a", "percent": 80, "optimal": False}])[0][0].in_words == "80 %"


# --- the policy file and the map of roles


def test_the_record_comes_back_from_its_data() -> None:
    record = Record(
        {
            TI.uuid: Target(TI.uuid, TI.name, TI.pci, 350 * W, None, "limits[0]", persistence_set=True),
            LAPTOP.uuid: Target(LAPTOP.uuid, LAPTOP.name, LAPTOP.pci, None, 1500, "limits[1]", locked_boot="b"),
        },
        owned(ADA, 300).cards,
    )
    assert record_from_dict(json.loads(json.dumps(record_as_dict(record)))) == record
    assert record_from_dict(record_as_dict(Record())) == Record()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ([], "it has no format 1"),
        ({"format": 2}, "it has no format 1"),
        ({"cards": []}, "cards is no mapping"),
        ({"cards": {ADA.uuid: 3}}, f"cards.{ADA.uuid} is no mapping"),
        ({"cards": {ADA.uuid: {"limit": 3}}}, "has other keys than expected"),
        ({"cards": {ADA.uuid: {"name": "x"}}}, "has other keys than expected"),
        ({"released": {ADA.uuid: {"name": "x", "pci": "0000:65:00.0", "limit_mw": "1"}}}, "has a value of the wrong"),
        ({"cards": {ADA.uuid: {"name": "x", "pci": "0000:65:00.0", "limit_mw": -1}}}, "has a value of the wrong type"),
        ({"cards": {ADA.uuid: {"name": "x", "pci": "slot 3"}}}, "has a value of the wrong type"),
        ({"cards": {ADA.uuid: {"name": 5, "pci": "0000:65:00.0"}}}, "has a value of the wrong type"),
        ({"cards": {ADA.uuid: {"name": "x", "pci": "65:00", "persistence_set": 1}}}, "has a value of the wrong type"),
        ({"cards": {ADA.uuid: {"name": "x", "pci": "65:00.0", "persistence": 1}}}, "has a value of the wrong type"),
    ],
)
def test_a_record_edited_by_hand(damage: Any, words: str) -> None:
    data = {**record_as_dict(Record()), **damage} if isinstance(damage, dict) else damage
    with pytest.raises(PolicyError, match=words.replace("(", r"\(").replace(".", r"\.")):
        record_from_dict(data)


@pytest.mark.parametrize("data", [None, [], {"a": "GPU-x"}, {"a": [1]}, {"a": ["1"]}, {"a": ["host"]}])
def test_a_map_of_roles_that_is_none(data: Any) -> None:
    with pytest.raises(PolicyError):
        roles_from(data)


def test_a_map_of_roles() -> None:
    assert roles_from({"a": ["GPU-x", "17:00.0"], "b": []}) == {"a": ["GPU-x", "17:00.0"], "b": []}


# --- laws


@given(
    limit_w=st.floats(1, 700),
    now_mw=st.integers(10_000, 600_000),
    persistence=st.booleans(),
    owned_before=st.booleans(),
)
def test_done_once_nothing_is_left_and_given_back_nothing_stays(
    limit_w: float, now_mw: int, persistence: bool, owned_before: bool
) -> None:
    seen = see(ADA, limit_mw=now_mw, persistence=persistence)
    limits = [{"card": ADA.uuid, "limit_w": limit_w}]
    first = plan(limits, seen, record=owned(ADA, 333) if owned_before else None)
    inside = 10 * W <= round(limit_w * W) <= 600 * W
    assert bool(first.problems) != inside
    if not inside:
        assert first.changes == () or owned_before
        return
    after = _done(seen, first)
    record = settled(first.record, after, [], [], "")
    assert plan(limits, after, record=record).changes == ()
    assert plan(limits, after, record=record).record == record
    last = plan([], after, record=record)
    end = _done(after, last)
    assert end[0].power.limit_mw is not None
    assert abs(end[0].power.limit_mw - 450 * W) <= power_plan.READ_BACK_TOLERANCE_MW
    assert end[0].power.persistence is persistence
    assert settled(last.record, end, [], [], "") == Record()


def _done(seen: Sequence[Seen], found: Plan) -> list[Seen]:
    """The cards after the changes."""
    after = {one.card.uuid: one for one in seen}
    for change in found.changes:
        one = after[change.uuid]
        new = {"limit_mw": change.value} if change.setting == POWER_LIMIT else {"persistence": bool(change.value)}
        after[change.uuid] = Seen(one.card, dataclasses.replace(one.power, **new))  # type: ignore[arg-type]
    return list(after.values())
