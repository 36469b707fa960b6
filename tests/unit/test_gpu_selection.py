# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""GPU selection: each selector, each way to get it wrong, declared hardware, cards that do not answer."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import (
    Activity,
    Card,
    Driver,
    Gpu,
    GpuReport,
    Memory,
    PciFunction,
    Unavailable,
    UnreachableCard,
)
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_selection import (
    MissingCard,
    Resolution,
    SelectorError,
    WantedRole,
    describe,
    is_product,
    machine_of,
    parse_gpus,
    parse_roles,
    parse_selector,
    resolve,
    short_name,
    speed,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30
# product -> usable GiB, compute capability, bus width in bits, highest memory clock in MHz
PRODUCTS: dict[str, tuple[float, str, int, int]] = {
    "NVIDIA GeForce RTX 3090 Ti": (23.5, "8.6", 384, 10501),
    "NVIDIA GeForce RTX 4090": (23.5, "8.9", 384, 10501),
    "NVIDIA GeForce RTX 3090": (23.6, "8.6", 384, 9751),
    "NVIDIA A40": (44.5, "8.6", 384, 7251),
    "Tesla T4": (14.7, "7.5", 256, 5001),
    "NVIDIA L4": (22.0, "8.9", 192, 6251),
    "NVIDIA H100 80GB HBM3": (79.3, "9.0", 5120, 2619),
    "NVIDIA GeForce RTX 5090": (31.4, "12.0", 512, 14001),
}
TI, ADA, OLD, A40, T4, L4, H100, NEW = PRODUCTS


def uuid(number: int) -> str:
    return f"GPU-{number:08d}-aaaa-4bbb-8ccc-dddddddddddd"


def card(number: int, product: str, pci: str = "") -> Gpu:
    memory_gib, capability, width_bits, clock_mhz = PRODUCTS[product]
    return Gpu(
        card=Card(number, uuid(number), pci or f"0000:{number + 1:02x}:00.0", product),
        compute_capability=capability,
        memory=Memory(cuda_total_bytes=int(memory_gib * GIB), bus_width_bits=width_bits),
        activity=Activity(memory_clock_max_mhz=clock_mhz),
    )


def lost(gpu: Gpu) -> Gpu:
    return dataclasses.replace(gpu, unavailable=(Unavailable("serial", "lost", "gone"),))


def report(
    *gpus: Gpu, unreachable: Sequence[UnreachableCard] = (), silent: Sequence[str] = (), nvml: bool = True
) -> GpuReport:
    on_bus = tuple(PciFunction(pci, "0000", "", None) for pci in silent)
    return GpuReport(Driver(nvml), tuple(gpus), tuple(unreachable), on_bus)


def solve(
    seen: GpuReport,
    roles: Mapping[str, object] | None = None,
    gpus: Sequence[object] = (),
    parse_problems: bool = False,
) -> Resolution:
    declared, gpu_problems = parse_gpus(gpus)
    wanted, role_problems = parse_roles(roles or {}, [one.name for one in declared])
    assert parse_problems or [*gpu_problems, *role_problems] == []
    return resolve(seen, declared, wanted)


def numbers(found: Resolution, role: str = "r") -> list[int]:
    return [gpu.card.index for gpu in found.roles[role]]


GUIDE = report(card(0, TI, "0000:17:00.0"), card(1, ADA, "0000:65:00.0"))
GUIDE_GPUS = [{"name": "trainer", "product": "RTX 3090 Ti"}, {"name": "host", "product": "RTX 4090"}]
BENCH = report(card(0, OLD), card(1, T4), card(2, A40), card(3, L4), card(4, H100))
PAIR = report(card(0, A40), card(1, A40))


# -- selectors that fit -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seen", "selector", "wanted"),
    [
        (BENCH, uuid(2), [2]),
        (BENCH, uuid(2).upper().replace("GPU", "gpu"), [2]),
        (BENCH, "0000:03:00.0", [2]),
        (BENCH, "3:00", [2]),
        (BENCH, "  0000:03:00.0 ", [2]),
        (BENCH, "all", [0, 1, 2, 3, 4]),
        (BENCH, "fastest", [4]),
        (GUIDE, "fastest", [1]),  # equal bandwidth: the newer card
        (BENCH, f"all except {uuid(2)}, 0000:01:00.0", [1, 3, 4]),
        (BENCH, "all  except fastest", [0, 1, 2, 3]),
        (PAIR, "all except 0000:01:00.0", [1]),
        (BENCH, {"product": "T4"}, [1]),
        (BENCH, {"product": "tesla t4"}, [1]),
        (BENCH, {"product": "H100"}, [4]),
        (BENCH, {"uuid": uuid(3)}, [3]),
        (BENCH, {"uuid": uuid(3).upper().replace("GPU", "GPU"), "product": "L4"}, [3]),
        (BENCH, {"pci": "04:00.0"}, [3]),
        (BENCH, {"min_memory_gib": 50}, [4]),
        (BENCH, {"min_memory_gib": 44.5, "take": "all"}, [2, 4]),
        (BENCH, {"min_memory_gib": 44.6, "take": "all"}, [4]),
        (BENCH, {"min_compute_capability": "8.9", "take": "all"}, [3, 4]),
        (BENCH, {"min_compute_capability": 9.0}, [4]),
        (BENCH, {"min_compute_capability": 9}, [4]),
        (BENCH, {"min_compute_capability": "8.6", "min_memory_gib": 40, "take": "all"}, [2, 4]),
        (BENCH, {"min_memory_gib": 20, "take": "fastest", "except": [{"product": "H100"}]}, [0]),
        (BENCH, {"take": "all", "except": ["fastest", {"min_memory_gib": 40, "take": "all"}]}, [0, 1, 3]),
        (BENCH, {"min_memory_gib": 23, "except": [uuid(2), {"product": "H100"}]}, [0]),
        (PAIR, {"product": "A40", "take": "all"}, [0, 1]),
        (report(card(0, NEW)), {"min_compute_capability": "8.9"}, [0]),  # 12.0 is more than 8.9, not less
        (report(card(0, NEW), card(1, H100)), {"min_compute_capability": "10.0"}, [0]),
        (report(card(0, T4)), "fastest", [0]),
        (report(dataclasses.replace(card(0, T4), compute_capability=None)), "fastest", [0]),  # no other to compare with
    ],
)
def test_selectors(seen: GpuReport, selector: object, wanted: list[int]) -> None:
    found = solve(seen, {"r": [selector]})
    assert found.problems == ()
    assert found.undecided == {}
    assert numbers(found) == wanted


def test_cards_come_in_the_order_of_the_selectors_and_in_pci_order_within_one() -> None:
    assert numbers(solve(BENCH, {"r": ["0000:03:00.0", uuid(0)]})) == [2, 0]
    assert numbers(solve(BENCH, {"r": ["fastest", "all except fastest"]})) == [4, 0, 1, 2, 3]
    high = report(card(0, A40, "10000:01:00.0"), card(1, A40, "0000:c1:00.0"), card(2, A40, "0000:0a:00.0"))
    found = solve(
        high, {"r": ["all"], "s": [uuid(0)], "t": [{"product": "A40", "take": "all"}], "u": ["all except 0a:00"]}
    )
    assert numbers(found) == [2, 1, 0]
    assert found.unordered == {"r", "t", "u"}
    assert solve(BENCH, {"r": ["fastest", "all except fastest"]}).unordered == frozenset()


def test_names_of_declared_cards() -> None:
    found = solve(
        GUIDE, {"inference": ["host"], "training": ["trainer", "host"], "rest": ["all except host"]}, GUIDE_GPUS
    )
    assert (found.problems, found.missing, found.undecided) == ((), (), {})
    assert numbers(found, "inference") == [1]
    assert numbers(found, "training") == [0, 1]
    assert numbers(found, "rest") == [0]


def test_without_roles_inference_gets_every_card() -> None:
    assert numbers(solve(BENCH), "inference") == [0, 1, 2, 3, 4]
    assert list(solve(BENCH).roles) == ["inference"]
    assert WantedRole("r", ()).exclusive is False
    assert solve(BENCH).unordered == {"inference"}
    nothing = solve(report())
    assert (nothing.roles, nothing.undecided, nothing.problems) == ({}, {}, ())


def test_a_card_may_be_in_two_roles_unless_one_is_exclusive() -> None:
    both = {"inference": ["host"], "training": ["trainer", "host"]}
    assert solve(GUIDE, both, GUIDE_GPUS).problems == ()
    strict = {**both, "inference": {"cards": ["host"], "exclusive": True}}
    [problem] = solve(GUIDE, strict, GUIDE_GPUS).problems
    assert "RTX 4090 (0000:65:00.0" in problem
    assert "in the roles inference, training, and inference is exclusive" in problem
    stricter = {role: {"cards": cards, "exclusive": True} for role, cards in both.items()}
    [problem] = solve(GUIDE, stricter, GUIDE_GPUS).problems
    assert "inference and training are exclusive" in problem
    alone = {"inference": {"cards": ["host"], "exclusive": True}, "training": ["trainer"]}
    assert solve(GUIDE, alone, GUIDE_GPUS).problems == ()
    lax = {**both, "inference": {"cards": ["host"], "exclusive": False}}
    assert solve(GUIDE, lax, GUIDE_GPUS).problems == ()


# -- selectors that do not --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seen", "selector", "words"),
    [
        (
            PAIR,
            {"product": "A40"},
            ["'{product: A40}' fits 2 cards: NVIDIA A40 (0000:01:00.0, ", "0000:02:00.0", "UUID"],
        ),
        (PAIR, "fastest", ["'fastest' fits 2 cards", uuid(0), uuid(1), "44.5 GiB", "compute capability 8.6"]),
        (BENCH, {"min_memory_gib": 40}, ["fits 2 cards", "NVIDIA A40", "8.6); NVIDIA H100", "take: all"]),
        (
            BENCH,
            {"min_memory_gib": 100},
            ["fits no card", "a card of 24 GB has about 23.5 GiB", "Cards here: ", "79.3"],
        ),
        (GUIDE, {"min_memory_gib": 24}, ["fits no card", "23.5 GiB"]),
        (BENCH, {"product": "RTX 4900"}, ["'{product: RTX 4900}' fits no card. Did you mean RTX 3090?", "Tesla T4 ("]),
        (GUIDE, {"product": "RTX 4900"}, ["Did you mean RTX 4090?"]),
        (GUIDE, {"product": "NVIDIA GeForce RTX 4900"}, ["Did you mean RTX 4090?"]),
        (GUIDE, {"product": "RTX 3090"}, ["fits no card. Did you mean RTX 3090 Ti?"]),
        (BENCH, {"product": "A4"}, ["fits no card"]),
        (BENCH, {"product": "A40", "min_memory_gib": 50}, ["fits no card. Memory counts as engines see it"]),
        (BENCH, uuid(9), [f"'{uuid(9)}' fits no card. Cards here: NVIDIA GeForce RTX 3090 ("]),
        (BENCH, "0000:99:00.0", ["'0000:99:00.0' fits no card. Cards here:"]),
        (BENCH, "all except 0000:99:00.0", ["'0000:99:00.0' fits no card"]),
        (report(card(0, A40)), "all except fastest", ["'all except fastest' fits no card"]),
        (report(), "all", ["'all' fits no card. Cards here: none."]),
        (BENCH, {"uuid": uuid(1), "product": "A40"}, ["fits no card"]),
        (BENCH, {"pci": "02:00.0", "min_compute_capability": "8.0"}, ["fits no card"]),
    ],
)
def test_a_selector_that_does_not_fit_lists_the_candidates(seen: GpuReport, selector: object, words: list[str]) -> None:
    found = solve(seen, {"r": [selector]})
    [problem] = found.problems
    assert problem.startswith("rig_gpu_roles.r[0]: ")
    assert [word for word in words if word not in problem] == [], problem


def test_all_problems_come_together() -> None:
    found = solve(PAIR, {"a": ["fastest", "0000:77:00.0"], "b": {"cards": [{"product": "T4"}]}, "c": ["0000:01:00.0"]})
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "rig_gpu_roles.a[0]",
        "rig_gpu_roles.a[1]",
        "rig_gpu_roles.b.cards[0]",
    ]


def test_one_card_by_two_selectors_of_a_role() -> None:
    [problem] = solve(BENCH, {"r": ["0000:03:00.0", {"product": "A40"}]}).problems
    assert problem.startswith("rig_gpu_roles.r[1]: NVIDIA A40 (0000:03:00.0")
    assert "already in this role by rig_gpu_roles.r[0]. Name it once." in problem


def test_unknown_readings_never_fit_a_condition() -> None:
    mute = dataclasses.replace(card(0, A40), memory=Memory(), compute_capability=None)
    for selector in ({"min_memory_gib": 0.1}, {"min_compute_capability": "1.0"}):
        [problem] = solve(report(mute), {"r": [selector]}).problems
        assert "memory not known, compute capability not known" in problem
    [problem] = solve(report(mute, card(1, T4)), {"r": ["fastest"]}).problems
    assert "no memory bandwidth or compute capability is known of NVIDIA A40 (0000:01:00.0" in problem
    assert "Tesla" not in problem
    assert numbers(solve(report(mute), {"r": ["all"]})) == [0]


# -- what is written wrongly ------------------------------------------------------------------------------------------
NAMES = ("trainer", "host")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hots", ["found 'hots', needed a name of rig_gpus (trainer, host), a UUID", "Did you mean host?"]),
        ("fastes", ["Did you mean fastest?"]),
        ("al", ["Did you mean all?"]),
        ("", ["found ''"]),
        ("0", ["An index is no name: it changes when a card moves."]),
        ("12", ["An index is no name"]),
        ("GPU-1234", ["A UUID is GPU- and 32 hex digits in groups of 8, 4, 4, 4 and 12."]),
        ("gpu-" + "0" * 36, ["A UUID is GPU-"]),
        (uuid(1) + "0", ["A UUID is GPU-"]),
        (uuid(1).replace("GPU", "MIG"), ["A part of a card (MIG) cannot be given to a role."]),
        ("0000:17:00:0", ["'0000:17:00:0' is not a PCI address; write it as lspci -D does, for example 0000:17:00.0."]),
        ("17:00.9", ["is not a PCI address"]),
        ("all except", ["found 'all except'"]),
        ("all except hots", ["found 'hots'", "Did you mean host?"]),
        ("all except host, 17", ["found '17'", "An index is no name"]),
        ("all except host,", ["found ''"]),
        (17, ["found 17, needed a text or a mapping. An address is written in quotes."]),
        (None, ["found None"]),
        (
            {},
            ["{}: says nothing about the card. Add uuid, pci, product, min_memory_gib, min_compute_capability, or"],
        ),
        ({"except": ["host"]}, ["says nothing about the card"]),
        ({"take": "one"}, ["says nothing about the card"]),
        ({"produkt": "T4"}, ["{produkt: T4}: no such key: produkt. Did you mean product? Known: uuid, pci, product,"]),
        ({"name": "host"}, ["no such key: name"]),
        ({"take": "some"}, ["take is 'some', needed one of one, fastest, all."]),
        ({"product": "T4", "take": "fastet"}, ["{product: T4, take: fastet}: take is", "Did you mean fastest?"]),
        ({"product": 4090}, ["uuid, pci and product are texts. Write them in quotes."]),
        ({"pci": 17.0}, ["are texts"]),
        ({"uuid": 1}, ["are texts"]),
        ({"uuid": "GPU-1"}, ["{uuid: GPU-1}: 'GPU-1' is no UUID of a card; nvidia-smi -L prints them"]),
        ({"pci": "x"}, ["'x' is not a PCI address"]),
        ({"min_memory_gib": "20"}, ["min_memory_gib is '20', needed a number of GiB, such as 20."]),
        ({"min_memory_gib": True}, ["min_memory_gib is True"]),
        ({"min_memory_gib": -1}, ["min_memory_gib is -1"]),
        ({"min_memory_gib": float("nan")}, ["min_memory_gib is nan"]),
        ({"min_compute_capability": "ada"}, ["min_compute_capability is 'ada', needed a number such as '8.0'."]),
        ({"min_compute_capability": "8.61"}, ["is '8.61'"]),
        ({"min_compute_capability": "8."}, ["is '8.'"]),
        ({"take": "all", "except": "host"}, ["except is 'host', needed a list of selectors."]),
        ({"take": "all", "except": ["hots"]}, ["found 'hots'"]),
        ({"take": "all", "except": [{"product": "T4", "except": [1]}]}, ["found 1"]),
    ],
    ids=repr,
)
def test_selectors_that_cannot_be_read(value: object, words: list[str]) -> None:
    with pytest.raises(SelectorError) as error:
        parse_selector(value, NAMES)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


def test_a_name_goes_before_what_else_a_text_could_mean() -> None:
    assert parse_selector("12", ["12"]).name == "12"
    assert parse_selector("host", NAMES).name == "host"
    assert parse_selector("all except host, trainer", NAMES).excluded == (
        parse_selector("host", NAMES),
        parse_selector("trainer", NAMES),
    )
    assert parse_selector({"take": "all"}, ()).take == "all"
    assert parse_selector({"take": "fastest"}, ()).take == "fastest"
    assert parse_selector({"product": "T4"}, ()).take == "one"
    assert parse_selector({"min_memory_gib": 0, "product": "T4"}, ()).min_memory_gib == 0
    with pytest.raises(SelectorError, match=r"rig_gpus \(none\)"):
        parse_selector("x", ())


@pytest.mark.parametrize(
    ("roles", "problems"),
    [
        ({"r": []}, ["rig_gpu_roles.r: needed a list of at least one card. Name one, or remove the role."]),
        ({"r": "host"}, ["rig_gpu_roles.r: needed a list"]),
        ({"r": None}, ["rig_gpu_roles.r: needed a list"]),
        ({"r": {"exclusive": True}}, ["rig_gpu_roles.r.cards: needed a list"]),
        (
            {"r": {"cards": ["host"], "exclusiv": True}},
            ["rig_gpu_roles.r: needed the keys cards (a list) and exclusive"],
        ),
        ({"r": {"cards": ["host"], "exclusive": "yes"}}, ["rig_gpu_roles.r: needed the keys cards"]),
        ({"R x": ["host"]}, ["rig_gpu_roles: the name 'R x' needs to be of small letters, digits and hyphens."]),
        ({1: ["host"]}, []),
        (
            {"r": ["hots", "host", "0"], "s": {"cards": ["17"]}},
            [
                "rig_gpu_roles.r[0]: found 'hots'",
                "rig_gpu_roles.r[2]: found '0'",
                "rig_gpu_roles.s.cards[0]: found '17'",
            ],
        ),
    ],
    ids=repr,
)
def test_roles_that_are_written_wrongly(roles: dict[Any, object], problems: list[str]) -> None:
    _wanted, found = parse_roles(roles, NAMES)
    assert len(found) == len(problems), found
    for start, problem in zip(problems, found, strict=True):
        assert problem.startswith(start)


def test_roles_as_they_are_read() -> None:
    wanted, problems = parse_roles({"a": ("host",), "b": {"cards": ["all"], "exclusive": True}}, NAMES)
    assert problems == []
    assert [(role.name, role.exclusive) for role in wanted] == [("a", False), ("b", True)]
    assert parse_roles({"a": {"cards": ["host"]}}, NAMES)[0][0].exclusive is False
    assert wanted[0].selectors == (("rig_gpu_roles.a[0]", parse_selector("host", NAMES)),)
    assert wanted[1].selectors == (("rig_gpu_roles.b.cards[0]", parse_selector("all", ())),)


@pytest.mark.parametrize(
    ("entries", "problems"),
    [
        (
            ["x"],
            [
                (
                    "rig_gpus[0].name: found '', needed a name of small letters, digits and hyphens, "
                    "other than fastest and all."
                )
            ],
        ),
        ([{"product": "T4"}], ["rig_gpus[0].name: found ''"]),
        ([{"name": "A B", "product": "T4"}], ["rig_gpus[0].name: found 'A B'"]),
        ([{"name": "all", "product": "T4"}], ["rig_gpus[0].name: found 'all', needed a name of small letters"]),
        ([{"name": "a"}], ["rig_gpus[0]: needed name and one or more of product, pci, uuid."]),
        ([{"name": "a", "product": "", "pci": None}], ["rig_gpus[0]: needed name and"]),
        ([{"name": "a", "product": "T4", "take": "all"}], ["rig_gpus[0]: needed name and"]),
        ([{"name": "a", "pci": "zz"}], ["rig_gpus[0]: 'zz' is not a PCI address"]),
        ([{"name": "a", "uuid": "GPU-0"}], ["rig_gpus[0]: {uuid: GPU-0}: 'GPU-0' is no UUID"]),
        (
            [{"name": "a", "product": "T4"}, {"name": "b"}, {"name": "a", "product": "A40"}],
            ["rig_gpus[1]: needed", "rig_gpus[2].name: the name 'a' is used twice. Give each card its own."],
        ),
    ],
    ids=repr,
)
def test_declared_cards_that_are_written_wrongly(entries: list[object], problems: list[str]) -> None:
    _cards, found = parse_gpus(entries)
    assert len(found) == len(problems), found
    for start, problem in zip(problems, found, strict=True):
        assert problem.startswith(start)


def test_declared_cards_as_they_are_read() -> None:
    [one], problems = parse_gpus([{"name": "a", "product": "T4", "pci": "17:00", "uuid": uuid(1)}])
    assert problems == []
    assert (one.path, one.name, one.selector.pci) == ("rig_gpus[0]", "a", "0000:17:00.0")
    assert (one.selector.product, one.selector.uuid) == ("T4", uuid(1).lower())


# -- products ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("product", "name", "fits"),
    [
        ("RTX 4090", ADA, True),
        ("4090", ADA, True),
        ("rtx 4090", ADA, True),
        (ADA, ADA, True),
        ("RTX 3090", OLD, True),
        ("RTX 3090", TI, False),
        ("RTX 3090 Ti", TI, True),
        ("RTX 3090 Ti", OLD, False),
        ("RTX 3090Ti", TI, False),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070 Ti SUPER", False),
        ("RTX 4070", "NVIDIA GeForce RTX 4070 SUPER", False),
        ("RTX 4070", "NVIDIA GeForce RTX 4070 Laptop GPU", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 D", False),
        ("RTX 2080", "NVIDIA GeForce RTX 2080 Max-Q", False),
        ("GTX 1060", "NVIDIA GeForce GTX 1060 Mobile", False),
        ("RTX 2080", "NVIDIA GeForce RTX 2080 with Max-Q Design", True),
        ("A10", "NVIDIA A100-SXM4-40GB", False),
        ("A100", "NVIDIA A100-SXM4-40GB", True),
        ("A100 40GB", "NVIDIA A100-SXM4-40GB", False),
        ("SXM4 40GB", "NVIDIA A100-SXM4-40GB", True),
        ("L4", "NVIDIA L40S", False),
        ("L40", "NVIDIA L40S", False),
        ("H100", H100, True),
        ("H100 80GB", H100, True),
        ("RTX", ADA, True),
        ("", ADA, False),
        ("-", ADA, False),
        ("NVIDIA GeForce RTX 4090 and more", ADA, False),
        ("ti", "Ti Ti x", True),
    ],
)
def test_products(product: str, name: str, fits: bool) -> None:
    assert is_product(product, name) is fits


def test_short_names() -> None:
    assert short_name(ADA) == "RTX 4090"
    assert short_name(T4) == "T4"
    assert short_name("Quadro NVIDIA") == "NVIDIA"
    assert short_name("NVIDIA") == "NVIDIA"


def test_describe() -> None:
    assert describe(card(1, ADA)) == f"{ADA} (0000:02:00.0, {uuid(1)}, 23.5 GiB, compute capability 8.9)"


def test_speed_is_bandwidth_times_compute_capability() -> None:
    assert speed(card(0, ADA)) == pytest.approx(384 / 8 * 10501e6 * 2 / 1e9 * 8.9)  # 1008 GB/s
    ranking = sorted(PRODUCTS, key=lambda product: speed(card(0, product)) or 0)
    assert ranking == [T4, L4, A40, OLD, TI, ADA, NEW, H100]
    for gone in (
        {"compute_capability": None},
        {"activity": Activity()},
        {"memory": Memory()},
    ):
        assert speed(dataclasses.replace(card(0, ADA), **gone)) is None  # type: ignore[arg-type]


# -- declared hardware ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seen", "gpus", "problems"),
    [
        (GUIDE, GUIDE_GPUS, []),
        (GUIDE, [{**GUIDE_GPUS[0], "pci": "17:00.0"}, {**GUIDE_GPUS[1], "uuid": uuid(1)}], []),
        (
            GUIDE,
            [GUIDE_GPUS[0]],
            [["rig_gpus: does not list NVIDIA GeForce RTX 4090 (0000:65:00.0", f"- {{name: ..., uuid: {uuid(1)}}}"]],
        ),
        (
            GUIDE,
            [GUIDE_GPUS[0], {"name": "host", "product": "RTX 5090"}],
            [
                [
                    "rig_gpus[1] (host): '{product: RTX 5090}' fits no card.",
                    "RTX 4090 (0000:65:00.0",
                    "Other entries take 1 c",
                ]
            ],
        ),
        (
            GUIDE,
            [GUIDE_GPUS[0], {"name": "host", "product": "RTX 4090", "pci": "17:00.0"}],
            [["rig_gpus[1] (host): declared as '{product: RTX 4090, pci: 17:00.0}', found there NVIDIA GeForce RTX 3"]],
        ),
        (
            GUIDE,
            [GUIDE_GPUS[0], {"name": "host", "uuid": uuid(1), "pci": "18:00.0"}],
            [
                [
                    "rig_gpus[1] (host): declared as",
                    "found NVIDIA GeForce RTX 4090 (0000:65:00.0",
                    "or leave pci out: it moved",
                ]
            ],
        ),
        (
            GUIDE,
            [*GUIDE_GPUS, {"name": "third", "pci": "99:00.0"}],
            [["rig_gpus[2] (third): '{pci: 99:00.0}' fits no card. Cards here: NVIDIA GeForce RTX 3090 Ti"]],
        ),
        (
            PAIR,
            [{"name": "a", "product": "A40"}, {"name": "b", "product": "A40"}],
            [["rig_gpus[0] (a): '{product: A40}' fits 2 cards"], ["rig_gpus[1] (b): '{product: A40}' fits 2 cards"]],
        ),
        (PAIR, [{"name": "a", "product": "A40"}, {"name": "b", "pci": "01:00.0"}], []),  # a is the other one
        (
            PAIR,
            [{"name": "a", "uuid": uuid(0)}, {"name": "b", "pci": "01:00.0"}],
            [["rig_gpus[1] (b): NVIDIA A40 (0000:01:00.0", "is rig_gpus[0] (a) already."]],
        ),
        (
            report(),
            [{"name": "a", "product": "A40"}],
            [["rig_gpus[0] (a): '{product: A40}' fits no card. Cards here: none."]],
        ),
        (
            report(card(0, OLD), card(1, TI)),
            [{"name": "a", "product": "RTX 3090"}, {"name": "b", "product": "3090 Ti"}],
            [],
        ),
    ],
)
def test_declared_hardware(seen: GpuReport, gpus: list[object], problems: list[list[str]]) -> None:
    found = solve(seen, {"r": ["all"]} if seen.gpus else {}, gpus)
    assert len(found.problems) == len(problems), found.problems
    for words, problem in zip(problems, found.problems, strict=True):
        assert [word for word in words if word not in problem] == [], problem


def test_what_other_entries_take_is_told_where_it_matters() -> None:
    [problem] = solve(GUIDE, {}, [*GUIDE_GPUS, {"name": "third", "pci": "99:00.0"}]).problems
    assert problem.endswith("compute capability 8.9).")
    [problem] = solve(report(), {}, [{"name": "a", "product": "A40"}]).problems
    assert problem.endswith("Cards here: none.")


def test_a_wrong_declaration_is_told_once_and_not_again_by_each_role() -> None:
    gpus = [{"name": "host", "product": "RTX 5090"}]
    found = solve(GUIDE, {"a": ["host"], "b": ["host"]}, gpus)
    assert len(found.problems) == 1
    found = solve(GUIDE, {"a": ["all except host"]}, gpus)
    assert found.problems[1] == "rig_gpu_roles.a[0]: 'host' is no card that can be used; see rig_gpus."


# -- cards that do not answer -----------------------------------------------------------------------------------------
FELL = UnreachableCard("lost", "fell off the bus.", 0, "0000:17:00.0")
NOWHERE = UnreachableCard("lost", "fell off the bus.", 0, None)
HALF = report(card(1, ADA, "0000:65:00.0"), unreachable=[FELL])
BLIND = report(card(1, ADA, "0000:65:00.0"), unreachable=[NOWHERE])


@pytest.mark.parametrize("seen", [HALF, BLIND], ids=["place known", "place unknown"])
def test_roles_that_need_a_lost_card_wait_and_the_others_do_not(seen: GpuReport) -> None:
    roles = {
        "inference": ["host"],
        "training": ["trainer", "host"],
        "other": [{"product": "RTX 4090"}],
        "by": [uuid(1)],
    }
    found = solve(seen, roles, GUIDE_GPUS)
    assert found.problems == ()
    assert sorted(found.roles) == ["by", "inference", "other"]
    assert list(found.undecided) == ["training"]
    assert found.undecided["training"] == "rig_gpu_roles.training[0]: needs 'trainer', which does not answer"
    [missing] = found.missing
    assert missing.startswith("rig_gpus[0] (trainer): 'trainer' does not answer: ")
    assert missing.endswith("fell off the bus")


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        (
            "all",
            "'all' cannot be decided while a card does not answer: 0000:17:00.0: fell off the bus. To go on without it",
        ),
        ("all", "To go on without it: all except 0000:17:00.0, or name the cards."),
        ("fastest", "'fastest' cannot be decided while a card does not answer: 0000:17:00.0: fell off the bus."),
        ("0000:17:00.0", "'0000:17:00.0' does not answer: 0000:17:00.0: fell off the bus"),
        (uuid(0), f"'{uuid(0)}' cannot be decided while a card does not answer"),
        ({"product": "RTX 3090 Ti"}, "cannot be decided while"),
        ({"min_memory_gib": 20, "take": "all"}, "cannot be decided while"),
        ({"min_memory_gib": 40}, "cannot be decided while"),
        (f"all except {uuid(0)}", f"'{uuid(0)}' cannot be decided while"),
    ],
)
def test_what_a_lost_card_leaves_open(selector: object, words: str) -> None:
    found = solve(HALF, {"r": [selector], "s": ["0000:65:00.0"]})
    assert found.problems == ()
    assert list(found.roles) == ["s"]
    assert words in found.undecided["r"]
    assert "To go on" not in found.undecided["r"] or "all" in str(selector)
    assert found.undecided["r"].endswith(("fell off the bus", "fell off the bus.", "or name the cards."))


def test_two_lost_cards_are_both_named() -> None:
    seen = report(card(2, T4), unreachable=[FELL, dataclasses.replace(FELL, pci="0000:65:00.0", message="no power")])
    assert solve(seen, {"r": ["all"]}).undecided["r"] == (
        "rig_gpu_roles.r[0]: 'all' cannot be decided while a card does not answer: 0000:17:00.0: fell off the bus; "
        "0000:65:00.0: no power. To go on without it: all except 0000:17:00.0, 0000:65:00.0, or name the cards."
    )


@pytest.mark.parametrize(
    "selector",
    ["0000:65:00.0", uuid(1), "all except 0000:17:00.0", {"product": "RTX 4090"}, {"min_memory_gib": 20}],
    ids=str,
)
def test_what_a_lost_card_does_not_touch(selector: object) -> None:
    found = solve(HALF, {"r": [selector]})
    assert (found.problems, found.undecided, found.missing) == ((), {}, ())
    assert numbers(found) == [1]


def test_a_wrong_address_is_no_lost_card() -> None:
    [problem] = solve(HALF, {"r": ["0000:18:00.0"]}).problems
    assert "'0000:18:00.0' fits no card" in problem
    found = solve(BLIND, {"r": ["0000:18:00.0"], "s": ["all"]})
    assert found.problems == ()
    assert "cannot be decided" in found.undecided["r"]
    assert "To go on without it: all except ADDRESS, or name the cards" in found.undecided["s"]


def test_a_card_lost_while_it_was_read_is_known_by_name() -> None:
    seen = report(lost(card(0, TI)), card(1, ADA), card(2, ADA))
    assert machine_of(seen).missing == (MissingCard("lost while it was read", "0000:01:00.0", uuid(0).lower(), TI),)
    roles = {
        "a": [{"product": "RTX 4090", "take": "all"}],
        "b": [{"product": "RTX 3090 Ti"}],
        "c": [uuid(0)],
        "d": [f"all except {uuid(0)}"],
        "e": [{"product": "RTX 4090", "take": "all", "min_memory_gib": 1}],
    }
    found = solve(seen, roles)
    assert found.problems == ()
    assert {role: numbers(found, role) for role in found.roles} == {"a": [1, 2], "d": [1, 2], "e": [1, 2]}
    assert sorted(found.undecided) == ["b", "c"]
    assert f"'{uuid(0)}' does not answer: 0000:01:00.0: lost while it was read" in found.undecided["c"]
    [problem] = solve(seen, {"r": [uuid(7)]}).problems
    assert "fits no card" in problem


def test_a_declared_lost_card_may_be_left_out_by_name() -> None:
    for seen in (HALF, BLIND):
        found = solve(seen, {"r": ["all except trainer"]}, GUIDE_GPUS)
        assert numbers(found) == [1]
        assert len(found.missing) == 1


def test_two_lost_cards_are_two_declared_ones() -> None:
    seen = report(card(2, T4), unreachable=[FELL, dataclasses.replace(FELL, pci="0000:65:00.0")])
    gpus = [*GUIDE_GPUS, {"name": "third", "product": "T4"}]
    found = solve(seen, {"a": ["all except trainer, host"], "b": ["all except trainer"], "c": ["third"]}, gpus)
    assert found.problems == ()
    assert len(found.missing) == 2
    assert numbers(found, "a") == numbers(found, "c") == [2]
    assert "0000:65:00.0: fell off" in found.undecided["b"]
    assert "0000:17:00.0" not in found.undecided["b"].partition("To go on")[0]
    one = report(card(2, T4), unreachable=[FELL])
    [problem] = solve(one, {"c": ["third"]}, gpus).problems
    assert problem.startswith("rig_gpus[1] (host): '{product: RTX 4090}' fits no card")


def test_a_card_on_the_bus_without_a_driver() -> None:
    seen = report(card(0, T4), silent=["0000:09:00.0"])
    found = solve(seen, {"r": ["0000:09:00.0"], "s": ["all"]})
    assert numbers(found, "s") == [0]
    assert "'0000:09:00.0' does not answer: 0000:09:00.0: on the PCI bus, but" in found.undecided["r"]
    gpus = [{"name": "a", "product": "T4"}, {"name": "b", "pci": "09:00.0"}]
    found = solve(seen, {"r": ["b"], "s": ["a"]}, gpus)
    assert list(found.roles) == ["s"]
    assert found.missing == (
        "rig_gpus[1] (b): 'b' does not answer: 0000:09:00.0: on the PCI bus, but the NVIDIA driver does not show it",
    )


def test_without_roles_a_lost_card_leaves_inference_open() -> None:
    found = solve(HALF)
    assert found.roles == {}
    assert list(found.undecided) == ["inference"]
    alone = solve(report(unreachable=[FELL]))
    assert list(alone.undecided) == ["inference"]
    assert alone.undecided["inference"].startswith("rig_gpu_roles (not written): 'all' cannot be decided")


def test_an_undecided_role_is_not_judged_as_exclusive() -> None:
    roles = {"a": {"cards": ["0000:17:00.0", uuid(1)], "exclusive": True}, "b": [uuid(1)]}
    found = solve(HALF, roles)
    assert (found.problems, list(found.roles), list(found.undecided)) == ((), ["b"], ["a"])


# -- properties -------------------------------------------------------------------------------------------------------
MACHINES = st.lists(st.sampled_from(list(PRODUCTS)), min_size=1, max_size=8)
SELECTORS = st.one_of(
    st.sampled_from(["all", "fastest", "all except fastest"]),
    st.integers(0, 8).map(uuid),
    st.builds(dict, product=st.sampled_from(["RTX 3090", "A40", "T4", "RTX"]), take=st.sampled_from(["one", "all"])),
    st.builds(dict, min_memory_gib=st.sampled_from([10, 20, 30, 50]), take=st.sampled_from(["one", "fastest", "all"])),
    st.builds(
        dict, min_compute_capability=st.sampled_from(["8.0", "8.9", "10.0"]), take=st.sampled_from(["one", "all"])
    ),
)
QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)


def build(products: Sequence[str], slots: Sequence[int]) -> GpuReport:
    """The same cards in other slots; NVML numbers them in the order in which it lists them."""
    gpus = [
        card(number, product, f"0000:{slot + 1:02x}:00.0")
        for (number, product), slot in zip(enumerate(products), slots, strict=True)
    ]
    return report(*gpus)


def chosen(found: Resolution) -> dict[str, set[str]]:
    return {role: {gpu.card.uuid for gpu in cards} for role, cards in found.roles.items()}


@QUICK
@given(MACHINES, st.lists(SELECTORS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_the_order_in_which_nvml_lists_cards_does_not_matter(
    products: list[str], selectors: list[object], shuffle: random.Random
) -> None:
    seen = build(products, range(len(products)))
    gpus = list(seen.gpus)
    shuffle.shuffle(gpus)
    renumbered = [
        dataclasses.replace(gpu, card=dataclasses.replace(gpu.card, index=number)) for number, gpu in enumerate(gpus)
    ]
    one = solve(seen, {"r": selectors})
    other = solve(dataclasses.replace(seen, gpus=tuple(renumbered)), {"r": selectors})
    assert [gpu.card.uuid for gpu in one.roles["r"]] == [gpu.card.uuid for gpu in other.roles["r"]]
    assert one.problems == other.problems


@QUICK
@given(MACHINES, st.lists(SELECTORS, min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_which_cards_a_role_gets_does_not_depend_on_their_slots(
    products: list[str], selectors: list[object], shuffle: random.Random
) -> None:
    slots = list(range(len(products)))
    one = solve(build(products, slots), {"r": selectors})
    shuffle.shuffle(slots)
    other = solve(build(products, slots), {"r": selectors})
    assert chosen(one) == chosen(other)
    assert len(one.problems) == len(other.problems)


@QUICK
@given(MACHINES, SELECTORS)
def test_a_selector_gives_cards_or_says_why_not(products: list[str], selector: object) -> None:
    seen = build(products, range(len(products)))
    found = solve(seen, {"r": [selector]})
    cards = found.roles["r"]
    assert bool(cards) != bool(found.problems)
    assert found.undecided == {}
    take = selector.get("take", "one") if isinstance(selector, dict) else selector
    if cards and take in {"one", "fastest"}:
        assert len(cards) == 1
    if take == "fastest" and cards and selector == "fastest":
        assert speed(cards[0]) == max(speed(gpu) or 0 for gpu in seen.gpus)


@QUICK
@given(MACHINES, st.sets(st.integers(0, 7)))
def test_all_except_is_all_without_these(products: list[str], out: set[int]) -> None:
    seen = build(products, range(len(products)))
    excluded = [uuid(number) for number in sorted(out) if number < len(products)]
    found = solve(seen, {"r": [f"all except {', '.join(excluded)}" if excluded else "all"]})
    left = [gpu.card.uuid for gpu in seen.gpus if gpu.card.uuid not in excluded]
    assert [gpu.card.uuid for gpu in found.roles["r"]] == left
    assert bool(found.problems) == (not left)


@QUICK
@given(MACHINES, st.lists(SELECTORS, min_size=1, max_size=3), st.integers(0, 7))
def test_a_lost_card_never_changes_what_a_role_that_is_decided_has(
    products: list[str], selectors: list[object], number: int
) -> None:
    """A role either waits for the card, or has what it would have with it; errors of the inventory stay errors."""
    seen = build(products, range(len(products)))
    gone = number % len(products)
    broken = dataclasses.replace(
        seen,
        gpus=tuple(gpu for gpu in seen.gpus if gpu.card.index != gone),
        unreachable=(UnreachableCard("lost", "gone", gone, None),),
    )
    whole, part = solve(seen, {"r": selectors}), solve(broken, {"r": selectors})
    if not whole.problems and "r" in part.roles and not part.problems:
        assert [gpu.card.uuid for gpu in part.roles["r"]] == [gpu.card.uuid for gpu in whole.roles["r"]]
