# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver plan: a table of hosts with sources, what holds for every plan, and the plans of the rigs in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils.apt_transaction import is_kernel, module_flavour_of
from ansible_collections.gpurig.llm.plugins.module_utils.driver_choice import (
    MODULES,
    SOURCES,
    STATES,
    Wish,
    arguments,
    installed_source,
    limits_of,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_facts import (
    DriverCard,
    DriverFacts,
    Kernel,
    Offer,
    branch_of,
    generation_of,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_packages import (
    BRANCHES,
    ENGINE_FLOORS,
    GENERATIONS,
    names_of_interest,
    pin_text,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_plan import (
    Plan,
    apt_refused,
    in_words,
    needs_of,
    plan,
)
from ansible_collections.gpurig.llm.tests.rigs.machines import MACHINES
from hypothesis import given
from hypothesis import strategies as st

DATA = Path(__file__).resolve().parents[1] / "data" / "driver_plans.yml"
GOLDEN = Path(__file__).with_name("golden") / "driver_plans.txt"
TABLE = yaml.safe_load(DATA.read_text(encoding="utf-8"))
INSTALLED = {
    "": {},
    "ubuntu_dkms": {
        "nvidia-dkms-580-server-open": "580.95.05-0ubuntu0.24.04.3",
        "nvidia-headless-no-dkms-580-server-open": "580.95.05-0ubuntu0.24.04.3",
        "libnvidia-compute-580-server": "580.95.05-0ubuntu0.24.04.3",
    },
    "ubuntu_closed": {
        "nvidia-dkms-580-server": "580.95.05-0ubuntu0.24.04.3",
        "nvidia-headless-no-dkms-580-server": "580.95.05-0ubuntu0.24.04.3",
    },
    "ubuntu_595": {
        "nvidia-dkms-595-server-open": "595.58.03-0ubuntu0.24.04.1",
        "nvidia-headless-no-dkms-595-server-open": "595.58.03-0ubuntu0.24.04.1",
    },
    "ubuntu_550": {
        "nvidia-dkms-550": "550.163.01-0ubuntu0.24.04.2",
        "nvidia-utils-550": "550.163.01-0ubuntu0.24.04.2",
    },
}


def offers_of(archive: Mapping[str, Any], host: Mapping[str, str]) -> list[Offer]:
    """What apt knows, written out from the table's patterns and not from the planner's own names."""
    found = []
    kernel, release = host["kernel"], host["release"]
    for branch, version in archive.get("ubuntu", {}).get("branches", {}).items():
        for dash in ("", "-open"):
            kind = f"{branch}-server{dash}"
            found += [Offer(f"{name}-{kind}", version, "ubuntu") for name in ("nvidia-headless-no-dkms", "nvidia-dkms")]
            if archive["ubuntu"]["kernel_modules"]:
                abi = "-".join(kernel.split("-")[:2])
                for last in (kernel, "generic", f"generic-hwe-{release}"):
                    found.append(Offer(f"linux-modules-nvidia-{kind}-{last}", f"{abi}.1+1", "ubuntu"))
        names = (f"nvidia-utils-{branch}-server", f"nvidia-compute-utils-{branch}-server")
        found += [Offer(name, version, "ubuntu") for name in names]
    for branch, version in archive.get("nvidia_ubuntu", {}).get("branches", {}).items():
        names = (f"nvidia-dkms-{branch}", f"nvidia-dkms-{branch}-open", f"libnvidia-compute-{branch}")
        found += [Offer(name, version, "nvidia") for name in (*names, f"nvidia-utils-{branch}")]
    for version in archive.get("nvidia_debian", []):
        names = ("nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia-persistenced")
        found += [Offer(name, version, "nvidia") for name in names]
    if "debian" in archive:
        names = ("nvidia-kernel-dkms", "nvidia-open-kernel-dkms", "libcuda1", "nvidia-smi", "nvidia-persistenced")
        found += [Offer(name, archive["debian"], "debian") for name in names]
    return found


def facts_of(row: Mapping[str, Any]) -> DriverFacts:
    """The host of a row."""
    host, archive = TABLE["hosts"][row["host"]], TABLE["archives"][row["archive"]]
    module, packages = row.get("module", ""), INSTALLED[row.get("installed", "")]
    library = row.get("library", module)
    has_module = "dkms" if library else ""
    kernels = [Kernel(host["kernel"], has_module)]
    if "next_kernel" in row:
        kernels.append(Kernel(row["next_kernel"]))
    bound = "nouveau" if row.get("nouveau") else "nvidia" if module else ""
    drivers = row.get("drivers", [bound] * len(row["cards"]))
    metas = {
        "debian": ["linux-headers-amd64"],
        "ubuntu": ["linux-headers-generic", f"linux-headers-generic-hwe-{host['release']}"],
    }.get(host["distribution"], [])
    headers = [] if archive.get("no_headers") else [f"linux-headers-{kernel.release}" for kernel in kernels]
    return DriverFacts(
        **host,
        kernels=tuple(kernels),
        cards=tuple(
            DriverCard(f"0000:{number:02x}:00.0", TABLE["cards"][card], generation_of(TABLE["cards"][card]), "", driver)
            for number, (card, driver) in enumerate(zip(row["cards"], drivers, strict=True), start=1)
        ),
        secure_boot=row.get("secure_boot", "disabled"),
        mok_enrolled=row.get("mok_enrolled", False),
        module_version=module,
        module_flavour=("proprietary" if row.get("installed") == "ubuntu_closed" else "open") if module else "",
        library_version=library,
        packages=packages,
        held=tuple(packages) if row.get("held") else (),
        offers=tuple(offers_of(archive, host)),
        headers_offered=frozenset([*headers, *metas]),
        can_install_driver=row.get("can_install", True),
    )


def wish_of(row: Mapping[str, Any], facts: DriverFacts) -> Wish:
    """What the inventory of a row asks for."""
    instances = [{"name": "chat", "engine": row["engine"], "device": "cuda"}] if "engine" in row else []
    needs = needs_of(instances, facts.cards, has_driver=True)
    return Wish(
        row.get("state", "present"), row.get("source", "auto"), row.get("branch", 0), row.get("modules", "auto"), needs
    )


def plan_of(row: Mapping[str, Any]) -> Plan:
    """The plan of a row."""
    facts = facts_of(row)
    return plan(facts, wish_of(row, facts))


@pytest.mark.parametrize("row", TABLE["rows"], ids=lambda row: row["id"])
def test_the_table(row: dict[str, Any]) -> None:
    """Each host of the table gets its plan."""
    made = plan_of(row)
    for key, value in row["expect"].items():
        if key in ("packages", "notes"):
            assert list(getattr(made, key)) == value
        elif key == "packages_have":
            assert value in made.packages
        elif key in ("reason", "problem", "note", "ways_out"):
            texts = made.ways_out if key == "ways_out" else getattr(made, f"{key}s")
            assert value in "\n".join(texts), in_words(made)
        else:
            assert getattr(made, key) == value, in_words(made)


def test_the_table_is_long_enough_and_every_row_has_a_source() -> None:
    """At least 40 rows; ids once; sources known, and each of them used."""
    rows = TABLE["rows"]
    assert len(rows) >= 40
    assert len({row["id"] for row in rows}) == len(rows)
    used = {key for row in rows for key in row["because"]}
    assert used == set(TABLE["sources"])
    assert all(row["because"] for row in rows)


# --- properties -----------------------------------------------------------------------------------------------------

ROWS = st.fixed_dictionaries(
    {
        "host": st.sampled_from(["jammy", "noble", "noble_hwe", "resolute", "bookworm", "trixie"]),
        "archive": st.sampled_from(sorted(TABLE["archives"])),
        "cards": st.lists(st.sampled_from(sorted(TABLE["cards"])), min_size=1, max_size=3),
        "secure_boot": st.sampled_from(["enabled", "disabled", "unknown"]),
        "engine": st.sampled_from([*ENGINE_FLOORS, "other"]),
        "state": st.sampled_from(STATES),
        "source": st.sampled_from(SOURCES),
        "modules": st.sampled_from(MODULES),
        "branch": st.sampled_from([0, 0, 0, *BRANCHES]),
        "module": st.sampled_from(["", "", "535.309.01", "550.163.01", "580.95.05", "595.71.05"]),
        "installed": st.sampled_from(sorted(INSTALLED)),
        "nouveau": st.booleans(),
        "can_install": st.booleans(),
    }
)


@given(row=ROWS)
def test_what_holds_for_every_plan(row: dict[str, Any]) -> None:
    """No plan names a kernel, mixes modules, breaks a floor or a card's limit, or refuses without a word."""
    facts = facts_of(row)
    wish = wish_of(row, facts)
    made = plan(facts, wish)
    packages = [*made.packages, *filter(None, [made.pinning])]
    assert not [package for package in packages if is_kernel(package)]
    assert "linux-image" not in made.pin
    flavours = {module_flavour_of(package) for package in made.packages} - {""}
    assert len(flavours) <= 1
    assert made.verdict != "refused" or made.problems
    assert not (made.reboot and made.load)
    assert json.dumps(made.as_dict())
    if made.verdict in ("install", "upgrade"):
        assert facts.can_install_driver
        assert wish.state != "given"
        assert made.branch >= wish.floor
        assert flavours == {made.flavour}
        for card in facts.cards:
            generation = GENERATIONS.get(card.generation)
            if generation:
                assert made.branch >= generation.first
                assert not generation.last or made.branch <= generation.last
                assert made.flavour in generation.flavours
        assert not (facts.secure_boot == "enabled" and made.modules == "dkms")
        assert branch_of(made.version) in (0, made.branch)
        assert bool(made.version) != bool(made.repository)
        assert set(packages) <= {
            *names_of_interest(facts.distribution, facts.release, facts.kernel),
        }
        exact = arguments(facts, made.version, made.source, made.packages, made.pinning)
        assert not made.version or any("=" in word for word in exact)
    if made.verdict == "nothing" and wish.needs:
        assert branch_of(facts.module_version) >= wish.floor


@given(row=ROWS)
def test_a_host_that_did_as_planned_needs_nothing_more(row: dict[str, Any]) -> None:
    """After the installed packages are there and loaded, the same wish asks for no change."""
    facts = facts_of(row)
    wish = wish_of(row, facts)
    made = plan(facts, wish)
    if made.verdict not in ("install", "upgrade") or not made.version:
        return
    exact = [word.split("=") for word in arguments(facts, made.version, made.source, made.packages)]
    after = replace(
        facts,
        packages={pair[0]: pair[1] for pair in exact if len(pair) == 2 and "nvidia" in pair[0]},
        kernels=tuple(replace(kernel, module=made.modules) for kernel in facts.kernels),
        cards=tuple(replace(card, kernel_driver="nvidia") for card in facts.cards),
        module_version=made.version,
        module_flavour=made.flavour,
        library_version=made.version,
    )
    again = plan(after, wish)
    assert again.verdict == "nothing", in_words(again)
    assert again.pin == pin_text(made.version)


# --- single parts ---------------------------------------------------------------------------------------------------


def test_which_instances_need_a_driver() -> None:
    """Device auto counts where there is a driver or one is wanted; absent ones and the processor's never."""
    instances = [
        {"name": "a", "engine": "vllm", "device": "cuda"},
        {"name": "b", "engine": "vllm", "device": "auto"},
        {"name": "c", "engine": "vllm", "device": "cpu"},
        {"name": "d", "engine": "llama_cpp", "device": "auto", "state": "absent"},
        {"name": "e", "engine": "ollama", "device": "cuda"},
    ]
    pascal = (DriverCard("0000:01:00.0", "1b80", "pascal"),)
    assert [(need.name, need.floor) for need in needs_of(instances, (), has_driver=False)] == [("a", 580), ("e", 550)]
    assert [(need.name, need.floor) for need in needs_of(instances, pascal, has_driver=True)] == [
        ("a", 580),
        ("b", 580),
        ("e", 570),
    ]


@pytest.mark.parametrize(
    ("row_id", "key"),
    [
        ("bookworm-4090-secure-boot", "/var/lib/dkms/mok.pub"),
        ("noble-nvidia-asked-secure-boot", "/shim-signed/mok/MOK.der"),
    ],
)
def test_the_steps_to_a_key_of_ones_own(row_id: str, key: str) -> None:
    """Six of them, each for its distribution, in their order."""
    made = plan_of(next(row for row in TABLE["rows"] if row["id"] == row_id))
    text = made.problems[-1]
    steps = [
        "apt install dkms mokutil",
        key,
        "mokutil --import",
        "sudo reboot",
        "Enroll MOK",
        "run this playbook again",
    ]
    places = [text.index(f"{number}. ") for number in range(1, 7)]
    assert places == sorted(places)
    assert all(step in text for step in steps)
    assert ("update-secureboot-policy" in text) == (row_id.startswith("noble"))


@pytest.mark.parametrize(
    ("cards", "branch", "flavour"),
    [
        (["rtx_4090"], 550, "proprietary"),
        (["rtx_4090"], 560, "open"),
        (["rtx_4090"], 620, "open"),
        (["gtx_1080"], 580, "proprietary"),
        (["gtx_1080"], 620, ""),
        (["rtx_5090"], 570, "open"),
        (["gtx_1080", "rtx_5090"], 580, ""),
    ],
)
def test_which_module_a_branch_has_for_cards(cards: list[str], branch: int, flavour: str) -> None:
    """Below 560 the proprietary one, from 620 on there is none, and cards have their say."""
    numbers = [TABLE["cards"][card] for card in cards]
    limits = limits_of(
        [DriverCard(f"0000:{n:02x}:00.0", device, generation_of(device)) for n, device in enumerate(numbers)]
    )
    assert limits.flavour_for(branch) == flavour


@pytest.mark.parametrize(
    ("card", "fits"), [("rtx_5090", (569, 570)), ("rtx_4090", (524, 525)), ("gtx_1080", (581, 580)), ("t4", (514, 515))]
)
def test_where_the_branches_of_a_card_begin_and_end(card: str, fits: tuple[int, int]) -> None:
    """The one beside the edge does not drive it, the one on it does."""
    device = TABLE["cards"][card]
    limits = limits_of([DriverCard("0000:01:00.0", device, generation_of(device))])
    assert [limits.fits(branch) for branch in fits] == [False, True]


@pytest.mark.parametrize(
    ("packages", "source"),
    [
        ({"nvidia-driver-cuda": "1"}, "nvidia"),
        ({"nvidia-kernel-open-dkms": "1"}, "nvidia"),
        ({"nvidia-dkms-open": "1"}, "nvidia"),
        ({"nvidia-dkms-580-server": "580.159.03-0ubuntu0.24.04.1"}, "ubuntu"),
        ({"nvidia-dkms-580-server": "580.1.1-1"}, "ubuntu"),
        ({"nvidia-dkms-550": "550.1.1-1"}, ""),
        ({}, ""),
    ],
)
def test_where_the_installed_driver_came_from(packages: dict[str, str], source: str) -> None:
    """By names that only one source has, else by who offers that very version."""
    facts = facts_of(next(row for row in TABLE["rows"] if row["id"] == "noble-4090-vllm"))
    assert installed_source(replace(facts, packages=packages)) == source


def test_cards_that_exclude_each_other_are_both_named() -> None:
    """The older with its module, the newer with its own, also one that the table does not know."""
    refused = limits_of(
        [
            DriverCard("0000:01:00.0", "1b80", "pascal", "GTX 1080"),
            DriverCard("0000:02:00.0", "2b85", "blackwell", "RTX 5090"),
        ]
    ).problems
    assert "GTX 1080 (0000:01:00.0) (pascal), which only the proprietary" in refused[0]
    assert "RTX 5090 (0000:02:00.0) (blackwell), which only the open" in refused[0]
    strange = [DriverCard("0000:01:00.0", "1b80", "pascal"), DriverCard("0000:02:00.0", "4000")]
    assert "newer than this table" in limits_of(strange).problems[0]
    assert len(limits_of([DriverCard("0000:01:00.0", "102d", "kepler")]).problems) == 1


def test_another_processor_is_refused() -> None:
    """Only where a driver would be installed; with a node's own driver it is no matter."""
    row = next(row for row in TABLE["rows"] if row["id"] == "noble-4090-vllm")
    facts = replace(facts_of(row), arch="aarch64")
    assert "The processor is aarch64" in plan(facts, wish_of(row, facts)).problems[0]
    given = replace(facts, module_version="580.95.05", library_version="580.95.05", can_install_driver=False)
    assert plan(given, wish_of(row, given)).verdict == "nothing"


def test_what_apt_is_given() -> None:
    """The driver's packages with the version that the source has, others by name, the pin before all."""
    row = next(row for row in TABLE["rows"] if row["id"] == "bookworm-4090-vllm-repository-there")
    made, facts = plan_of(row), facts_of(row)
    given = arguments(facts, made.version, made.source, made.packages, made.pinning)
    assert given == [
        "nvidia-driver-pinning-580",
        "linux-headers-6.1.0-56-amd64",
        "linux-headers-amd64",
        "nvidia-persistenced=580.105.08-1",
        "nvidia-kernel-open-dkms=580.105.08-1",
        "nvidia-driver-cuda=580.105.08-1",
    ]
    assert arguments(facts, "", made.source, ["nvidia-driver-cuda"]) == ["nvidia-driver-cuda"]


def test_a_desktop_stays_one() -> None:
    """Where the driver shows a desktop today, the next one brings what that needs."""
    row = next(row for row in TABLE["rows"] if row["id"] == "guide-550-vllm")
    facts = facts_of(row)
    desktop = replace(facts, packages={**facts.packages, "libnvidia-gl-550": "550.163.01-0ubuntu0.24.04.2"})
    assert "nvidia-driver-580-server-open" not in plan(facts, wish_of(row, facts)).packages
    assert "nvidia-driver-580-server-open" in plan(desktop, wish_of(row, desktop)).packages


def test_signed_modules_follow_the_kernel_and_never_bring_one() -> None:
    """Ubuntu's package for later kernels is left out while its newest is for another kernel."""
    row = next(row for row in TABLE["rows"] if row["id"] == "noble-4090-vllm-secure-boot")
    facts = facts_of(row)
    newer = tuple(
        replace(offer, version="6.8.0-51.52+1")
        if offer.package.endswith("-generic") and "6.8" not in offer.package
        else offer
        for offer in facts.offers
    )
    made = plan(replace(facts, offers=newer), wish_of(row, facts))
    assert "linux-modules-nvidia-580-server-open-generic" not in made.packages
    assert "pull in another kernel" in made.notes[0]


@pytest.mark.parametrize(
    ("offered", "installed", "verdict", "said"),
    [
        (["linux-modules-nvidia-580-server-open-6.8.0-51-generic"], [], "repair", ""),
        ([], [], "nothing", "boot 6.8.0-49-generic until it comes"),
    ],
    ids=["signed module offered", "none yet"],
)
def test_a_signed_driver_and_a_kernel_without_module(
    offered: list[str], installed: list[str], verdict: str, said: str
) -> None:
    """The module for the next kernel is fetched, or a person is told to wait."""
    row = next(row for row in TABLE["rows"] if row["id"] == "new-kernel-without-module")
    facts = replace(
        facts_of(row),
        packages={
            "linux-modules-nvidia-580-server-open-6.8.0-49-generic": "6.8.0-49.49",
            **dict.fromkeys(installed, "1"),
        },
        offers=tuple(Offer(name, "6.8.0-51.52", "ubuntu") for name in offered),
    )
    made = plan(facts, wish_of(row, facts))
    assert (made.verdict, list(made.packages)) == (verdict, offered)
    assert said in in_words(made)


@pytest.mark.parametrize(
    ("offered", "installed", "said"),
    [(False, True, "the build failed"), (False, False, "nobody offers linux-headers-6.8.0-51-generic")],
    ids=["built in vain", "no headers"],
)
def test_a_kernel_for_which_no_module_can_be_built(offered: bool, installed: bool, said: str) -> None:
    """Nothing is done and nothing stops, and it is said where to look."""
    row = next(row for row in TABLE["rows"] if row["id"] == "new-kernel-without-module")
    name = frozenset(["linux-headers-6.8.0-51-generic"])
    facts = replace(facts_of(row), headers_offered=name if offered else frozenset())
    facts = replace(facts, headers_installed=name if installed else frozenset())
    made = plan(facts, wish_of(row, facts))
    assert (made.verdict, made.packages, made.problems) == ("nothing", (), ())
    assert said in "\n".join(made.notes)
    assert "rig_driver: {state: latest} moves driver and modules together" in made.notes[-1]


def test_what_apt_refuses_stops_only_what_is_needed() -> None:
    """Headers for a kernel to come are a note; a driver is a refusal."""
    rows = {row["id"]: row for row in TABLE["rows"]}
    kernel = apt_refused(plan_of(rows["new-kernel-without-module"]), ["no way"])
    assert (kernel.verdict, kernel.packages, kernel.problems, kernel.changes) == ("nothing", (), (), False)
    assert "no way" in kernel.notes
    driver = apt_refused(plan_of(rows["guide-550-vllm"]), ["no way"])
    assert (driver.verdict, driver.problems) == ("refused", ("no way",))


def test_the_plan_of_every_named_machine_in_words() -> None:
    """For a person to read: tests/unit/golden/driver_plans.txt, printed by tests/rigs/driver_words.py."""
    from ansible_collections.gpurig.llm.tests.rigs.driver_words import words

    assert words() == GOLDEN.read_text(encoding="utf-8")
    assert all(f"{name}:" in words() for name in MACHINES)
