# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers of the kernel's files, what is concluded from them, and what expectations make of that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils import firmware_model as model
from ansible_collections.gpurig.llm.plugins.module_utils.firmware_model import (
    GIB,
    MIB,
    Bar,
    Bridge,
    CardSeen,
    HostSeen,
    Link,
    Slot,
    Smbios,
)
from ansible_collections.gpurig.llm.plugins.module_utils.firmware_verdicts import (
    CHECKS,
    MENU,
    board_of,
    expectation_problems,
    table,
    verdicts,
)
from ansible_collections.gpurig.llm.plugins.module_utils.schema import validate
from ansible_collections.gpurig.llm.tests.rigs.machines import machine
from ansible_collections.gpurig.llm.tests.rigs.witnesses import _config, smbios
from hypothesis import given
from hypothesis import strategies as st

ROLE = Path(__file__).resolve().parents[2] / "roles" / "firmware"
WINDOW = 0x14220C
GEFORCE = tuple(64 * MIB << n for n in range(10))  # 64 MiB to 32 GiB

# -- parsers ----------------------------------------------------------------------------------------------------------
REBAR_ON = """\
0x00000000fb000000 0x00000000fbffffff 0x0000000000040200
0x0000006000000000 0x00000063ffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000006400000000 0x0000006401ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000e000 0x000000000000e07f 0x0000000000040101
0x00000000fc000000 0x00000000fc07ffff 0x0000000000046200
"""
REBAR_OFF = """\
0x00000000de000000 0x00000000deffffff 0x0000000000040200
0x00000000c0000000 0x00000000cfffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000d0000000 0x00000000d1ffffff 0x000000000014220c
"""


def test_resource_lines() -> None:
    bars = model.parse_resource(REBAR_ON)
    assert [bar.index for bar in bars] == [0, 1, 3, 5], "empty ones and the ROM are left out"
    assert bars[1] == Bar(1, 0x6000000000, 16 * GIB, WINDOW, True)
    assert model.memory_window(bars) == bars[1]
    off = model.memory_window(model.parse_resource(REBAR_OFF))
    assert off is not None
    assert (off.index, off.start, off.size_bytes) == (1, 0xC0000000, 256 * MIB)


def test_a_window_without_address_keeps_its_size() -> None:
    unset = f"0x0 0x{16 * GIB - 1:x} 0x{WINDOW | 0x20000000:x}"
    assert model.parse_resource(unset) == (Bar(0, 0, 16 * GIB, WINDOW | 0x20000000, False),)
    assert model.parse_resource("nonsense\n1 2\n0x0 zz 0x0\n") == ()


@pytest.mark.parametrize(
    ("size", "flags", "fits"),
    [
        (64 * MIB, WINDOW, True),
        (32 * MIB, WINDOW, False),
        (256 * MIB, 0x40200, False),
        (256 * MIB, WINDOW & ~0x2000, False),
        (256 * MIB, WINDOW & ~0x100000, False),
        (256 * MIB, WINDOW & ~0x200, False),
    ],
    ids=["smallest", "too small", "registers", "not prefetchable", "32 bit", "no memory"],
)
def test_what_can_be_a_window(size: int, flags: int, fits: bool) -> None:
    assert Bar(1, 0, size, flags, True).is_window is fits


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("0000000000007fc0\n", tuple(64 * MIB << n for n in range(9))),
        ("0000000000000100\n", (256 * MIB,)),
        ("1", (MIB,)),
        ("", ()),
        ("no", ()),
    ],
)
def test_resize_bitmap(text: str, sizes: tuple[int, ...]) -> None:
    assert model.parse_resize(text) == sizes


def test_rebar_capability_in_configuration_space() -> None:
    place = machine("guide_x299").place("0000:65:00.0")
    config = _config(place)
    assert model.parse_rebar(config) == {0: (16 * MIB,), 1: GEFORCE, 3: (32 * MIB,)}
    assert model.parse_rebar(_config(machine("vm_hidden_bar").places[0])) == {}
    assert model.parse_rebar(_config(machine("old_vbios").places[0])) == {
        0: (16 * MIB,),
        1: (256 * MIB,),
        3: (32 * MIB,),
    }
    assert model.parse_rebar(config[:64]) is None, "what others than root see"
    assert model.parse_rebar(config[:256]) is None
    assert model.parse_rebar(b"\xff" * 4096) is None, "lost"
    circle = bytearray(config)
    circle[0x100:0x104] = (0x0001 | 0x100 << 20).to_bytes(4, "little")
    assert model.parse_rebar(bytes(circle)) == {}, "a list that ends in itself"
    assert model.parse_rebar(bytes(4096)) == {}


@given(st.binary(max_size=64), st.integers(0, 4000), st.integers(0, 0xFFFFFFFF))
def test_any_configuration_space_is_survived(part: bytes, at: int, first: int) -> None:
    config = bytearray(4096)
    config[0x100:0x104] = first.to_bytes(4, "little")
    config[at : at + len(part)] = part
    found = model.parse_rebar(bytes(config[:4096]))
    assert found is None or all(0 <= index <= 7 for index in found)


@pytest.mark.parametrize(
    ("text", "generation"),
    [
        *(
            ("2.5 GT/s PCIe", 1),
            ("5.0 GT/s PCIe", 2),
            ("8.0 GT/s PCIe", 3),
            ("16.0 GT/s PCIe", 4),
            ("32.0 GT/s PCIe", 5),
        ),
        *(("64.0 GT/s PCIe", 6), ("8 GT/s", 3), ("Unknown", None), ("", None)),
    ],
)
def test_speeds(text: str, generation: int | None) -> None:
    assert model.parse_speed(text) == generation


@pytest.mark.parametrize(("text", "width"), [("16\n", 16), ("32", 32), ("1", 1), ("0", None), ("63", None), ("", None)])
def test_widths(text: str, width: int | None) -> None:
    assert model.parse_width(text) == width


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\6\0\0\0\1", True),
        (b"\6\0\0\0\0", False),
        (b"\6\0\0\0", None),
        (b"\6\0\0\0\2", None),
        (b"\6\0\0\0\1\0", None),
    ],
)
def test_efi_flag(data: bytes, value: bool | None) -> None:
    assert model.parse_efi_flag(data) is value


def test_root_windows() -> None:
    text = (
        "00000000-00000fff : Reserved\n80000000-efffffff : PCI Bus 0000:00\n  a0000000-afffffff : PCI Bus 0000:01\n"
        "6000000000-7fffffffff : PCI Bus 0000:00\n"
    )
    assert model.parse_root_windows(text) == [(0x80000000, 0xEFFFFFFF), (0x6000000000, 0x7FFFFFFFFF)]
    assert model.parse_root_windows("00000000-00000000 : PCI Bus 0000:00\n") is None, "hidden from all but root"
    assert model.parse_root_windows("") is None


def test_small_texts() -> None:
    assert model.parse_aspm_policy("default performance [powersave] powersupersave\n") == "powersave"
    assert model.parse_aspm_policy("default") == ""
    assert model.parse_errors("RxErr 0\nBadTLP 12\nTOTAL_ERR_COR 12\n") == 12
    assert model.parse_errors("RxErr 0\n") is None
    assert model.parse_kernel("6.8.0-49-generic\n") == (6, 8)
    assert model.parse_kernel("5.15.0") == (5, 15)
    assert model.parse_kernel("") == (0, 0)
    assert [model.size_text(size) for size in (256 * MIB, GIB, 32 * GIB, 24564 * MIB)] == [
        *("256 MiB", "1 GiB", "32 GiB", "24564 MiB")
    ]


def test_pci_ids() -> None:
    text = (
        "# list\n10dd  Nobody\n\t2684  Not this\n10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n"
        "\t\t1043 8889  A board\n# comment\n\t2236  GA102GL\n10df  Emulex\n\t0720  Other\n"
    )
    assert model.parse_pci_ids(text, "10de") == {"2684": "GeForce RTX 4090", "2236": "GA102GL"}
    assert model.parse_pci_ids("10de  First line\n\t0001  One\n", "10de") == {"0001": "One"}
    assert model.parse_pci_ids(text, "abcd") == {}


def test_smbios_tables() -> None:
    assert model.parse_smbios(smbios(machine("guide_x299"))) == Smbios(
        True, False, (Slot("PCIEX16_1", 16, "0000:17:00.0"), Slot("PCIEX16_5", 16, "0000:65:00.0"))
    )
    assert model.parse_smbios(smbios(machine("vm_2xa40"))) == Smbios(True, True, ())
    old = dataclasses.replace(machine("gtx_1080"), bios_supports_uefi=False)
    assert model.parse_smbios(smbios(old)).supports_uefi is False
    assert model.parse_smbios(b"") == Smbios()
    assert model.parse_smbios(smbios(machine("guide_x299"))[:24]) == Smbios(True, False), "cut off after the first"
    assert model.parse_smbios(smbios(machine("guide_x299"))[:23]) == Smbios(), "cut off within it"
    slot = bytes([9, 0x11, 0, 0, 9, 0xA5, 0x02, 4, 4, 1, 0, 0, 0, 1, 0, 0x3F, 0xE9]) + b"A\0\0"
    assert model.parse_smbios(slot).slots == (Slot("", None, "0001:3f:1d.1"),), "no such text, width not told"
    assert model.parse_smbios(bytes([0, 18]) + bytes(16) + b"\0\0") == Smbios(), "older tables are shorter"


@given(st.binary(max_size=200))
def test_any_smbios_is_survived(data: bytes) -> None:
    assert isinstance(model.parse_smbios(data), Smbios)


# -- readings ---------------------------------------------------------------------------------------------------------
METAL = HostSeen(
    kernel=(6, 8), efi=True, efi_variables=True, secure_boot=b"\6\0\0\0\0", iommu_units=("dmar0",), iommu_types=("DMA",)
)
GUEST = dataclasses.replace(METAL, vm_marks=("QEMU",))
POD = dataclasses.replace(METAL, container_marks=("masked",), efi=False, secure_boot=None)
LEGACY = dataclasses.replace(METAL, efi=False, secure_boot=None, efi_variables=False)


def window(size: int, start: int = 0x6000000000, assigned: bool = True) -> tuple[Bar, ...]:
    return (Bar(0, 0xFB000000, 16 * MIB, 0x40200, True), Bar(1, start, size, WINDOW, assigned))


PORT = Bridge("0000:00:01.0", Link(16, 16, 4, 4))
CARD = CardSeen(
    "0000:01:00.0",
    "2684",
    name="RTX 4090",
    uuid="GPU-254090cd-6522-5949-a0d8-b9d3c6f50694",
    vbios="95.02",
    memory_bytes=24 * GIB,
    performance_state=8,
    in_nvml=True,
    bars=window(32 * GIB),
    resize={1: GEFORCE},
    link=Link(16, 16, 1, 4),
    upstream=(PORT,),
)


def but(card: CardSeen = CARD, /, **changes: Any) -> CardSeen:
    return dataclasses.replace(card, **changes)


def also(host: HostSeen = METAL, /, **changes: Any) -> HostSeen:
    return dataclasses.replace(host, **changes)


SMALL = but(bars=window(256 * MIB))
REBAR: list[tuple[str, CardSeen, HostSeen, str, str]] = [
    ("all in reach", CARD, METAL, "enabled", ""),
    ("off in the firmware", SMALL, METAL, "disabled", "bios"),
    ("off, memory not known", but(SMALL, memory_bytes=None), METAL, "disabled", "bios"),
    ("on, memory not known", but(memory_bytes=None), METAL, "enabled", ""),
    ("window as large as the memory", but(bars=window(24 * GIB)), METAL, "enabled", ""),
    ("a byte less", but(bars=window(24 * GIB - 1)), METAL, "partial", "address_space"),
    ("just above small", but(bars=window(512 * MIB)), METAL, "partial", "address_space"),
    ("VBIOS offers 256 MB only", but(SMALL, resize={1: (256 * MIB,)}), METAL, "disabled", "card_firmware"),
    ("young card without the capability", but(SMALL, resize={}), METAL, "disabled", "card_firmware"),
    ("old card", but(SMALL, resize={}, device_id="1b80"), METAL, "fixed", "card"),
    ("first chip that can", but(SMALL, resize={}, device_id="2200"), METAL, "disabled", "card_firmware"),
    ("data-centre card, small", but(SMALL, resize={}, is_display=False), METAL, "fixed", "card"),
    ("data-centre card, large", but(resize={}, is_display=False), METAL, "large", ""),
    ("large, memory not known", but(resize={}, memory_bytes=None), METAL, "large", ""),
    ("hidden by the guest", but(SMALL, resize={}), GUEST, "hidden", "vm"),
    ("fixed by the guest", but(SMALL, resize={1: (256 * MIB,)}), GUEST, "hidden", "vm"),
    ("large in a guest", but(resize={}), GUEST, "large", ""),
    ("old kernel, no rights", but(SMALL, resize={}), also(kernel=(6, 0)), "disabled", "undecided"),
    ("old kernel, root", but(SMALL, resize={}, rebar={1: GEFORCE}), also(kernel=(5, 15)), "disabled", "bios"),
    ("old kernel, root, none", but(SMALL, resize={}, rebar={}), also(kernel=(5, 15)), "disabled", "card_firmware"),
    ("old kernel, large", but(resize={}), also(kernel=(5, 15)), "enabled", ""),
    ("first kernel that tells", but(SMALL, resize={}, device_id="1b80"), also(kernel=(6, 1)), "fixed", "card"),
    ("no address", but(bars=window(16 * GIB, 0, False)), METAL, "unassigned", "bios"),
    ("no address, no size", but(bars=window(16 * MIB)), METAL, "unassigned", "bios"),
    ("no address in a guest", but(bars=window(16 * MIB)), GUEST, "unassigned", "vm"),
    ("hot-plugged", but(SMALL, removable=True), METAL, "disabled", "address_space"),
    (
        "behind a hot-plug port",
        but(SMALL, upstream=(PORT, Bridge("x", Link(), True))),
        METAL,
        "disabled",
        "address_space",
    ),
    ("lost", but(lost=True), METAL, "unknown", "lost"),
    ("not readable", but(bars=()), METAL, "unknown", "rights"),
    ("in a pod", SMALL, POD, "disabled", "bios"),
]


@pytest.mark.parametrize(("card", "host", "value", "cause"), [c[1:] for c in REBAR], ids=[c[0] for c in REBAR])
def test_resizable_bar(card: CardSeen, host: HostSeen, value: str, cause: str) -> None:
    reading = model.resizable_bar(card, host)
    assert (reading.value, reading.cause) == (value, cause)
    assert bool(reading.reason) is bool(cause)
    assert reading.evidence or value == "unknown"


def test_resizable_bar_says_what_it_saw() -> None:
    assert (
        "BAR 1 has 256 MiB, offered 64 MiB to 32 GiB, the card's memory 24 GiB"
        in model.resizable_bar(SMALL, METAL).evidence
    )
    only = model.resizable_bar(but(SMALL, resize={1: (256 * MIB,)}), METAL)
    assert "offered 256 MiB only" in only.evidence
    assert "VBIOS) offers 256 MiB only" in only.reason
    assert "no Resizable BAR capability" in model.resizable_bar(but(resize={}), METAL).evidence
    assert "offers cannot be read" in model.resizable_bar(but(resize={}), also(kernel=(5, 15))).evidence
    assert "of 16 GiB got no address" in model.resizable_bar(but(bars=window(16 * GIB, 0, False)), METAL).reason


def test_sizes_offered_for_a_window_without_address() -> None:
    homeless = but(bars=window(16 * MIB))
    assert model.offered_sizes(homeless, METAL) == GEFORCE
    assert model.offered_sizes(but(homeless, resize={}), METAL) == ()
    assert model.offered_sizes(but(homeless, resize={}), also(kernel=(5, 4))) is None
    assert model.offered_sizes(but(resize={0: (16 * MIB,)}), METAL) == (), "of another BAR"


LOW = but(SMALL, bars=window(256 * MIB, 0xC0000000))
HOMELESS = but(bars=window(16 * MIB))
ABOVE: list[tuple[str, list[CardSeen], HostSeen, str, str]] = [
    ("a window above", [LOW, CARD], METAL, "enabled", ""),
    ("just there", [but(bars=window(GIB, 1 << 32))], METAL, "enabled", ""),
    ("just below", [but(bars=window(GIB, (1 << 32) - GIB))], METAL, "unknown", "rights"),
    ("only low ones, no rights", [LOW], METAL, "unknown", "rights"),
    ("only low ones, root, room above", [LOW], also(root_windows=((0x80000000, 1 << 32),)), "enabled", ""),
    ("only low ones, root, no room", [LOW], also(root_windows=((0x80000000, (1 << 32) - 1),)), "disabled", "bios"),
    ("no address", [LOW, HOMELESS], METAL, "disabled", "bios"),
    ("one lies above, one has none", [CARD, HOMELESS], METAL, "enabled", ""),
    ("lost does not count", [but(bars=(), lost=True), but(lost=True)], METAL, "unknown", "rights"),
    ("in a guest", [LOW], GUEST, "unknown", "vm"),
    ("above in a guest", [CARD], GUEST, "enabled", ""),
    ("in a pod", [LOW], POD, "unknown", "container"),
    ("above in a pod", [CARD], POD, "enabled", ""),
    ("no card", [], METAL, "unknown", "rights"),
    ("no card, root", [], also(root_windows=((0, 1 << 40),)), "enabled", ""),
]


@pytest.mark.parametrize(("cards", "host", "value", "cause"), [c[1:] for c in ABOVE], ids=[c[0] for c in ABOVE])
def test_above_4g_decoding(cards: list[CardSeen], host: HostSeen, value: str, cause: str) -> None:
    reading = model.above_4g_decoding(host, cards)
    assert (reading.value, reading.cause) == (value, cause)
    assert reading.evidence or reading.reason


UEFI_ABLE = Smbios(supports_uefi=True)
BOOT: list[tuple[str, HostSeen, tuple[str, str, str]]] = [
    # boot mode, csm, secure boot
    ("uefi", METAL, ("uefi", "unknown", "disabled")),
    ("secure boot", also(secure_boot=b"\6\0\0\0\1"), ("uefi", "disabled", "enabled")),
    ("legacy", LEGACY, ("legacy", "enabled", "disabled")),
    ("through CSM", also(LEGACY, smbios=UEFI_ABLE), ("legacy", "enabled", "disabled")),
    ("hidden by a parameter", also(LEGACY, cmdline=("noefi",)), ("unknown", "unknown", "unknown")),
    ("in a pod", POD, ("unknown", "unknown", "unknown")),
    ("in a guest", GUEST, ("uefi", "unknown", "disabled")),
    ("secure guest", also(GUEST, secure_boot=b"\6\0\0\0\1"), ("uefi", "unknown", "enabled")),
    ("guest without firmware", also(LEGACY, vm_marks=("x",)), ("unknown", "unknown", "unknown")),
    ("no such variable", also(secure_boot=None), ("uefi", "unknown", "disabled")),
    ("efivarfs missing", also(secure_boot=None, efi_variables=False), ("uefi", "unknown", "unknown")),
    ("strange variable", also(secure_boot=b"12"), ("uefi", "unknown", "unknown")),
]


@pytest.mark.parametrize(("host", "values"), [c[1:] for c in BOOT], ids=[c[0] for c in BOOT])
def test_boot(host: HostSeen, values: tuple[str, str, str]) -> None:
    readings = (model.boot_mode(host), model.csm(host), model.secure_boot(host))
    assert tuple(reading.value for reading in readings) == values
    assert all(reading.evidence or reading.reason for reading in readings)
    assert all(reading.cause for reading in readings if reading.value == "unknown")


def test_a_uefi_board_that_booted_otherwise_is_named() -> None:
    assert "SMBIOS" in model.boot_mode(also(LEGACY, smbios=UEFI_ABLE)).evidence
    assert "SMBIOS" not in model.boot_mode(also(LEGACY, smbios=Smbios(False))).evidence
    assert model.environment(POD).value == "container"
    assert model.environment(also(POD, vm_marks=("x",))).value == "container"
    assert model.environment(GUEST).value == "vm"
    assert model.environment(METAL).value == "metal"


NONE = also(iommu_units=(), iommu_types=())
IOMMU: list[tuple[str, HostSeen, str, str]] = [
    ("translated", METAL, "translated", ""),
    ("lazy", also(iommu_types=("DMA-FQ", "DMA")), "translated", ""),
    ("passthrough", also(iommu_types=("identity", "identity")), "passthrough", ""),
    ("mixed", also(iommu_types=("identity", "DMA")), "mixed", ""),
    ("groups only", also(iommu_units=None), "translated", ""),
    ("units only", also(iommu_types=None), "translated", ""),
    ("firmware has none", also(NONE, acpi_tables=("FACP",)), "disabled", "bios"),
    ("kernel does not use Intel's", also(NONE, acpi_tables=("DMAR", "FACP")), "disabled", "kernel"),
    ("kernel does not use AMD's", also(NONE, acpi_tables=("IVRS",)), "disabled", "kernel"),
    ("tables not readable", NONE, "disabled", "undecided"),
    ("guest", also(NONE, vm_marks=("x",)), "disabled", "vm"),
    ("no sysfs", also(iommu_units=None, iommu_types=None), "unknown", "kernel"),
]


@pytest.mark.parametrize(("host", "value", "cause"), [c[1:] for c in IOMMU], ids=[c[0] for c in IOMMU])
def test_iommu(host: HostSeen, value: str, cause: str) -> None:
    reading = model.iommu(host)
    assert (reading.value, reading.cause) == (value, cause)


def test_aspm() -> None:
    assert model.aspm_policy(also(aspm_policy="default")).value == "default"
    assert model.aspm_policy(also(aspm_policy="default", cmdline=("pcie_aspm=off",))).value == "off"
    assert model.aspm_policy(METAL).value == "unknown"
    states = {"l0s_aspm": "0", "l1_aspm": "1", "l1_1_aspm": "1"}
    assert model.aspm(but(aspm=states), METAL).evidence == "L1, L1.1"
    assert model.aspm(but(aspm=states), METAL).value == "enabled"
    assert model.aspm(but(aspm={"l1_aspm": "0"}), METAL).value == "disabled"
    assert model.aspm(CARD, also(cmdline=("pcie_aspm=off",))).value == "disabled"
    assert model.aspm(CARD, METAL).value == "unknown"


NARROW = Bridge("0000:00:01.0", Link(8, 8, 1, 3))
LINKS: list[tuple[str, CardSeen, HostSeen, tuple[int | str, str], tuple[int | str, str]]] = [
    # (width, cause), (generation, cause)
    ("idle, all lanes", CARD, METAL, (16, ""), (1, "idle")),
    ("load", but(link=Link(16, 16, 4, 4), performance_state=0), METAL, (16, ""), (4, "")),
    ("load, slow", but(link=Link(16, 16, 3, 4), performance_state=2), METAL, (16, ""), (3, "seat")),
    ("P3 is not load", but(link=Link(16, 16, 3, 4), performance_state=3), METAL, (16, ""), (3, "idle")),
    ("load not known", but(link=Link(16, 16, 3, 4), performance_state=None), METAL, (16, ""), (3, "idle")),
    ("bad contact", but(link=Link(8, 16, 1, 4)), METAL, (8, "seat"), (1, "idle")),
    ("narrow slot", but(link=Link(8, 16, 3, 4), upstream=(NARROW,)), METAL, (8, "slot"), (3, "slot")),
    ("bad contact in a narrow slot", but(link=Link(4, 16, 3, 4), upstream=(NARROW,)), METAL, (4, "seat"), (3, "slot")),
    ("narrow far above", but(link=Link(16, 16, 1, 4), upstream=(NARROW, PORT)), METAL, (16, "slot"), (1, "idle")),
    ("no bridge", but(upstream=()), METAL, (16, ""), (1, "idle")),
    ("guest, narrow", but(link=Link(8, 16, 1, 4)), GUEST, (8, "vm"), (1, "vm")),
    ("guest, full", but(link=Link(16, 16, 4, 4)), GUEST, (16, ""), (4, "")),
    ("guest without links", but(link=Link()), GUEST, ("unknown", "vm"), ("unknown", "vm")),
    ("no link", but(link=Link()), METAL, ("unknown", "kernel"), ("unknown", "kernel")),
    ("lost", but(lost=True), METAL, ("unknown", "lost"), ("unknown", "lost")),
]


@pytest.mark.parametrize(("card", "host", "width", "generation"), [c[1:] for c in LINKS], ids=[c[0] for c in LINKS])
def test_links(card: CardSeen, host: HostSeen, width: tuple[int | str, str], generation: tuple[int | str, str]) -> None:
    seen = model.link_width(card, host)
    assert (seen.value, seen.cause) == width
    seen = model.link_generation(card, host)
    assert (seen.value, seen.cause) == generation


def slots(*given_slots: Slot) -> HostSeen:
    return also(smbios=Smbios(slots=given_slots))


def test_slots_narrow_the_way() -> None:
    eight, four = Slot("LOW", 8, "0000:01:00.0"), Slot("TOP", 4, "0000:00:01.0")
    card = but(link=Link(8, 16, 1, 4))
    assert model.path_of(card, slots(eight)).width_by == "slot LOW"
    assert model.link_width(card, slots(eight)).cause == "slot"
    assert model.link_width(card, slots(four)).cause == "seat", "a table that claims less than runs does not count"
    assert model.slot_of(card, slots(four, eight)) == eight, "the card's own address comes first"
    assert model.slot_of(card, slots(four)) == four
    assert model.slot_of(card, slots(Slot("OTHER", 4, "0000:09:00.0"))) is None
    assert model.path_of(card, slots(Slot("LOW", None, "0000:01:00.0"))) == model.Path(16, 4, "the card", "the card")
    lower = but(upstream=(PORT, Bridge("0000:02:00.0", Link(16, 16, 4, 4))))
    assert model.slot_of(lower, slots(four, Slot("NEAR", 16, "0000:02:00.0"))) == Slot("NEAR", 16, "0000:02:00.0")


ATTACHED: list[tuple[str, CardSeen, HostSeen, str, bool]] = [
    ("slot", CARD, METAL, "pcie", False),
    ("four lanes", but(link=Link(4, 16, 1, 4), upstream=(Bridge("x", Link(4, 4, 1, 4)),)), METAL, "pcie", True),
    ("eight lanes", but(link=Link(8, 16, 1, 4), upstream=(NARROW,)), METAL, "pcie", True),
    ("a card of four lanes", but(link=Link(4, 4, 1, 4)), METAL, "pcie", False),
    ("four lanes in a guest", but(link=Link(4, 16, 1, 4), upstream=(Bridge("x", Link(4, 4)),)), GUEST, "pcie", False),
    ("removable", but(removable=True), METAL, "removable", False),
    ("thunderbolt", but(removable=True), also(thunderbolt=("Razer Core X",)), "thunderbolt", False),
    ("a slot beside a box", CARD, also(thunderbolt=("Razer Core X",)), "pcie", False),
    ("hidden", but(upstream=()), GUEST, "unknown", True),
    ("no bridge on metal", but(upstream=()), METAL, "pcie", False),
]


@pytest.mark.parametrize(("card", "host", "value", "hint"), [c[1:] for c in ATTACHED], ids=[c[0] for c in ATTACHED])
def test_attachment(card: CardSeen, host: HostSeen, value: str, hint: bool) -> None:
    reading = model.attachment(card, host)
    assert reading.value == value
    assert bool(reading.reason) is hint


def test_report() -> None:
    report = model.report(METAL, [CARD])
    assert report["complete"] is False, "ASPM of the card cannot be read"
    whole = but(aspm={"l1_aspm": "0"}, correctable_errors=7)
    report = model.report(also(aspm_policy="default"), [whole])
    assert report["complete"] is True, "CSM after UEFI does not count"
    [finding] = report["findings"]
    assert finding.startswith(
        "RTX 4090 (0000:01:00.0): 7 corrected errors on its link since start; a number that rises"
    )
    row = report["cards"][0]
    assert row["window"] == {
        "bar": 1,
        "address": "0x6000000000",
        "size_bytes": 32 * GIB,
        "offered_bytes": list(GEFORCE),
    }
    assert row["ours"] is True
    assert row["link"]["upstream"] == [
        {"pci": "0000:00:01.0", "width": 16, "width_max": 16, "generation": 4, "generation_max": 4}
    ]
    assert model.report(POD, [but(in_nvml=False), CARD])["cards"][0]["ours"] is False
    assert model.report(METAL, [but(in_nvml=False)])["cards"][0]["ours"] is True
    [lost] = model.report(METAL, [but(lost=True)])["findings"]
    assert "fell off the bus" in lost
    homeless = model.report(METAL, [HOMELESS])["cards"][0]["window"]
    assert homeless == {"bar": None, "address": None, "size_bytes": 0, "offered_bytes": list(GEFORCE)}
    unset = model.report(METAL, [but(bars=window(16 * GIB, 0, False))])["cards"][0]["window"]
    assert (unset["bar"], unset["address"], unset["size_bytes"]) == (1, None, 0)
    assert len(model.report(METAL, [SMALL])["findings"]) == 1
    assert model.report(GUEST, [SMALL])["findings"] == [], "what a guest hides is nobody's news"
    assert model.report(METAL, [but(SMALL, resize={}, device_id="1b80")])["findings"] == []


# -- expectations -----------------------------------------------------------------------------------------------------
GPUS = [{"name": "host", "product": "RTX 4090"}, {"name": "trainer", "pci": "02:00.0"}]
TRAINER = but(pci="0000:02:00.0", name="RTX 3090 Ti", uuid="GPU-0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f")
X299 = {"board_vendor": "ASUSTeK COMPUTER INC.", "board_name": "WS X299 SAGE"}


def boards() -> list[dict[str, Any]]:
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))
    known: list[dict[str, Any]] = variables["__firmware_known_boards"]
    return known


def judge(
    expectation: dict[str, Any], cards: list[CardSeen] | None = None, host: HostSeen = METAL, **more: Any
) -> list[tuple[str, str]]:
    """(state, cause) of each verdict."""
    found = verdicts(model.report(host, [CARD] if cards is None else cards), [expectation], GPUS, boards(), **more)
    assert all(bool(verdict.text) is (verdict.state != "ok") for verdict in found)
    return [(verdict.state, verdict.cause) for verdict in found]


def expect(check: str, needed: str | int = "enabled", **more: Any) -> dict[str, Any]:
    key = "at_least" if isinstance(needed, int) else "needed"
    return {"check": check, key: needed, **more}


KNOWN = {"must_be_known": True}
EIGHT = but(link=Link(8, 16, 1, 4))
TB = but(removable=True)
VERDICTS: list[tuple[str, dict[str, Any], list[CardSeen], HostSeen, list[tuple[str, str]]]] = [
    ("on", expect("resizable_bar"), [CARD], METAL, [("ok", "")]),
    ("large counts as on", expect("resizable_bar"), [but(resize={}, is_display=False)], METAL, [("ok", "")]),
    ("off", expect("resizable_bar"), [SMALL], METAL, [("failed", "bios")]),
    ("partial is not on", expect("resizable_bar"), [but(bars=window(GIB))], METAL, [("failed", "address_space")]),
    ("old VBIOS", expect("resizable_bar"), [but(SMALL, resize={})], METAL, [("failed", "card_firmware")]),
    ("old card", expect("resizable_bar"), [but(SMALL, resize={}, device_id="1eb8")], METAL, [("failed", "card")]),
    ("fixed counts as off", expect("resizable_bar", "disabled"), [but(SMALL, resize={}, device_id="1eb8")], METAL,
     [("ok", "")]),
    ("on though off is wanted", expect("resizable_bar", "disabled"), [CARD], METAL, [("failed", "bios")]),
    ("each card", expect("resizable_bar"), [SMALL, TRAINER], METAL, [("failed", "bios"), ("ok", "")]),
    ("one card by product", expect("resizable_bar", gpu="host"), [CARD, but(TRAINER, bars=())], METAL, [("ok", "")]),
    ("one card by address", expect("resizable_bar", gpu="trainer"), [SMALL, TRAINER], METAL, [("ok", "")]),
    ("one card by UUID", expect("resizable_bar", gpu=TRAINER.uuid), [SMALL, TRAINER], METAL, [("ok", "")]),
    ("the other one of two", expect("resizable_bar", gpu="host"), [SMALL, but(TRAINER, name="RTX 4090")], METAL,
     [("failed", "bios")]),
    ("no such card", expect("resizable_bar", gpu="trainer"), [CARD], METAL, [("failed", "no_card")]),
    ("two such cards", expect("resizable_bar", gpu="host"), [CARD, but(pci="0000:03:00.0")], METAL,
     [("failed", "no_card")]),
    ("nameless before the driver", expect("resizable_bar", gpu="host"), [but(name="10de:2684", uuid="")], METAL,
     [("unjudged", "no_card")]),
    ("nameless but must be known", expect("resizable_bar", gpu="host", **KNOWN), [but(name="10de:2684")], METAL,
     [("failed", "no_card")]),
    ("no card at all", expect("resizable_bar"), [], METAL, [("unjudged", "no_card")]),
    ("no card, must be known", expect("resizable_bar", **KNOWN), [], METAL, [("failed", "no_card")]),
    ("others' cards do not count", expect("resizable_bar"), [but(SMALL, in_nvml=False), CARD], POD, [("ok", "")]),
    ("hidden", expect("resizable_bar"), [but(SMALL, resize={})], GUEST, [("unjudged", "vm")]),
    ("hidden, must be known", expect("resizable_bar", **KNOWN), [but(SMALL, resize={})], GUEST, [("failed", "vm")]),
    ("hidden counts as off", expect("resizable_bar", "disabled"), [but(SMALL, resize={})], GUEST, [("ok", "")]),
    ("lost", expect("resizable_bar"), [but(lost=True)], METAL, [("failed", "lost")]),
    ("not readable", expect("resizable_bar"), [but(bars=())], METAL, [("unjudged", "rights")]),
    ("no address", expect("resizable_bar"), [HOMELESS], METAL, [("failed", "bios")]),
    ("above", expect("above_4g_decoding"), [CARD], METAL, [("ok", "")]),
    ("not above", expect("above_4g_decoding"), [HOMELESS], METAL, [("failed", "bios")]),
    ("not known above", expect("above_4g_decoding"), [LOW], METAL, [("unjudged", "rights")]),
    ("above in a pod", expect("above_4g_decoding"), [LOW], POD, [("unjudged", "container")]),
    ("uefi", expect("boot_mode", "uefi"), [], METAL, [("ok", "")]),
    ("not uefi", expect("boot_mode", "uefi"), [], LEGACY, [("failed", "bios")]),
    ("not legacy", expect("boot_mode", "legacy"), [], METAL, [("failed", "bios")]),
    ("uefi in a pod", expect("boot_mode", "uefi"), [], POD, [("unjudged", "container")]),
    ("csm after uefi", expect("csm", "disabled"), [], METAL, [("unjudged", "undecided")]),
    ("csm after legacy", expect("csm", "disabled"), [], LEGACY, [("failed", "bios")]),
    ("secure boot off", expect("secure_boot", "disabled"), [], METAL, [("ok", "")]),
    ("secure boot not on", expect("secure_boot"), [], METAL, [("failed", "bios")]),
    ("secure boot on", expect("secure_boot", "disabled"), [], also(secure_boot=b"\6\0\0\0\1"), [("failed", "bios")]),
    ("iommu", expect("iommu"), [], METAL, [("ok", "")]),
    ("iommu mixed", expect("iommu"), [], also(iommu_types=("identity", "DMA")), [("ok", "")]),
    ("iommu off", expect("iommu"), [], also(NONE, acpi_tables=()), [("failed", "bios")]),
    ("iommu off by kernel", expect("iommu"), [], also(NONE, acpi_tables=("DMAR",)), [("failed", "kernel")]),
    ("iommu not passthrough", expect("iommu", "passthrough"), [], METAL, [("failed", "kernel")]),
    ("iommu on though off is wanted", expect("iommu", "disabled"), [], METAL, [("failed", "bios")]),
    ("iommu of a guest", expect("iommu"), [], also(NONE, vm_marks=("x",)), [("unjudged", "vm")]),
    ("policy", expect("aspm_policy", "default"), [], also(aspm_policy="default"), [("ok", "")]),
    ("other policy", expect("aspm_policy", "performance"), [], also(aspm_policy="default"), [("failed", "kernel")]),
    ("link sleeps", expect("aspm", "disabled"), [but(aspm={"l1_aspm": "1"})], METAL, [("failed", "bios")]),
    ("full width", expect("link_width", "full"), [CARD], METAL, [("ok", "")]),
    ("full of a narrow slot", expect("link_width", "full"), [but(EIGHT, upstream=(NARROW,))], METAL, [("ok", "")]),
    ("lanes lost", expect("link_width", "full"), [EIGHT], METAL, [("failed", "seat")]),
    ("enough lanes", expect("link_width", 8), [EIGHT], METAL, [("ok", "")]),
    ("too few lanes", expect("link_width", 9), [EIGHT], METAL, [("failed", "seat")]),
    ("slot too narrow", expect("link_width", 16), [but(EIGHT, upstream=(NARROW,))], METAL, [("failed", "slot")]),
    ("card too narrow", expect("link_width", 16), [but(link=Link(8, 8, 1, 4))], METAL, [("failed", "card")]),
    ("lanes in a guest", expect("link_width", "full"), [EIGHT], GUEST, [("unjudged", "vm")]),
    ("generation of an idle card", expect("link_generation", 3), [CARD], METAL, [("unjudged", "idle")]),
    ("idle, must be known", expect("link_generation", 3, **KNOWN), [CARD], METAL, [("failed", "idle")]),
    ("generation out of reach", expect("link_generation", 5), [CARD], METAL, [("failed", "card")]),
    ("generation of the slot", expect("link_generation", 4), [but(upstream=(NARROW,))], METAL, [("failed", "slot")]),
    ("slow under load", expect("link_generation", "full"), [but(performance_state=0)], METAL, [("failed", "seat")]),
    ("fast enough", expect("link_generation", 1), [CARD], METAL, [("ok", "")]),
    ("slot", expect("attachment", "slot"), [CARD], METAL, [("ok", "")]),
    ("declared OCuLink", expect("attachment", "oculink"), [EIGHT], METAL, [("ok", "")]),
    ("OCuLink with 16 lanes", expect("attachment", "oculink"), [CARD], METAL, [("failed", "declared")]),
    ("OCuLink that is Thunderbolt", expect("attachment", "oculink"), [TB], METAL, [("failed", "declared")]),
    ("slot that is Thunderbolt", expect("attachment", "slot"), [TB], METAL, [("failed", "declared")]),
    ("Thunderbolt", expect("attachment", "thunderbolt"), [TB], METAL, [("ok", "")]),
    ("no Thunderbolt", expect("attachment", "thunderbolt"), [CARD], METAL, [("failed", "declared")]),
    ("hidden way", expect("attachment", "slot"), [but(upstream=())], GUEST, [("unjudged", "vm")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("expectation", "cards", "host", "found"), [c[1:] for c in VERDICTS], ids=[c[0] for c in VERDICTS]
)
def test_verdicts(
    expectation: dict[str, Any], cards: list[CardSeen], host: HostSeen, found: list[tuple[str, str]]
) -> None:
    assert judge(expectation, cards, host) == found


def text_of(expectation: dict[str, Any], card: CardSeen = CARD, host: HostSeen = METAL, board: str = "") -> str:
    host = also(host, dmi=X299)
    return verdicts(model.report(host, [card]), [expectation], GPUS, boards(), board)[0].text


TEXTS: list[tuple[str, dict[str, Any], CardSeen, HostSeen, list[str]]] = [
    ("board's own names", expect("resizable_bar"), SMALL, METAL,
     ["(ASUS WS X299 Sage): Re-Size BAR Support: Enabled. Where such a setting is missing"]),
    ("iommu translated in firmware", expect("iommu", "translated"), CARD, also(NONE, acpi_tables=()),
     ["AMD-Vi: Enabled."]),
    ("what it needs comes first", expect("resizable_bar"), LOW, also(LEGACY, root_windows=((0, 9),)),
     ["Above 4G Decoding: Enabled; Re-Size BAR Support: Enabled; Launch CSM: Disabled. Mind that"]),
    ("off again", expect("resizable_bar", "disabled"), CARD, METAL, ["Re-Size BAR Support: Disabled.", "it is set so"]),
    ("no address", expect("resizable_bar"), HOMELESS, METAL,
     ["found unassigned", "Sage): Above 4G Decoding: Enabled."]),
    ("the card's firmware", expect("resizable_bar"), but(SMALL, resize={}), METAL,
     ["No switch of the mainboard helps: update the card's own firmware, the VBIOS (now 95.02)"]),
    ("version not known", expect("resizable_bar"), but(SMALL, resize={}, vbios=""), METAL, ["VBIOS, with the tool"]),
    ("hidden", expect("resizable_bar"), but(SMALL, resize={}), GUEST, ["hidden by the virtual machine"]),
    ("container", expect("boot_mode", "uefi"), CARD, POD, ["cannot be read in a container"]),
    ("not told apart", expect("resizable_bar"), but(SMALL, resize={}), also(kernel=(5, 15)),
     ["Run it as root", "Re-Size BAR Support: Enabled"]),
    ("CSM", expect("boot_mode", "uefi"), CARD, LEGACY, ["Launch CSM: Disabled", "does not start any more"]),
    ("CSM wanted", expect("boot_mode", "legacy"), CARD, METAL, ["Launch CSM: Enabled"]),
    ("CSM not known", expect("csm", "disabled"), CARD, METAL, ["expect boot_mode: uefi"]),
    ("usual name where the board's is not known", expect("secure_boot"), CARD, METAL, ["Secure Boot: Enabled"]),
    ("iommu", expect("iommu"), CARD, also(NONE, acpi_tables=("DMAR",)), ["intel_iommu=on"]),
    ("iommu passthrough", expect("iommu", "passthrough"), CARD, METAL, ["Start the kernel with iommu=pt."]),
    ("iommu translated", expect("iommu", "translated"), CARD, also(iommu_types=("identity",)), ["without iommu=pt"]),
    ("iommu in firmware", expect("iommu"), CARD, also(NONE, acpi_tables=()), ["VT-d, AMD IOMMU or AMD-Vi: Enabled"]),
    ("policy", expect("aspm_policy", "performance"), CARD, also(aspm_policy="default"),
     ["pcie_aspm.policy=performance"]),
    ("no policy", expect("aspm_policy", "off"), CARD, also(aspm_policy="default"), ["with pcie_aspm=off"]),
    ("lanes", expect("link_width", "full"), EIGHT, METAL, ["needed full, found 8", "Lost lanes", "riser"]),
    ("speed", expect("link_generation", "full"), but(performance_state=0), METAL, ["Lost speed"]),
    ("slot", expect("link_width", 16), but(EIGHT, upstream=(NARROW,)), METAL,
     ["at least 16", "bridge 0000:00:01.0 can do 8 at most", "Move the card"]),
    ("room", expect("resizable_bar"), but(bars=window(GIB)), METAL, ["pci=realloc"]),
    ("idle", expect("link_generation", 3), CARD, METAL, ["found 1 (idle)", "while the card computes"]),
    ("demanded", expect("link_generation", 3, **KNOWN), CARD, METAL, ["must_be_known"]),
    ("lost", expect("link_width", 3), but(lost=True), METAL, ["reseat the card and its power cables"]),
    ("rights", expect("resizable_bar"), but(bars=()), METAL, ["Run it as root (become)."]),
    ("which card", expect("resizable_bar", gpu="trainer"), CARD, METAL,
     ["resizable_bar of trainer: needed enabled, but 'trainer' fits no card. Cards here: RTX 4090 (0000:01:00.0)."]),
]  # fmt: skip


@pytest.mark.parametrize(("expectation", "card", "host", "words"), [c[1:] for c in TEXTS], ids=[c[0] for c in TEXTS])
def test_remedies(expectation: dict[str, Any], card: CardSeen, host: HostSeen, words: list[str]) -> None:
    text = text_of(expectation, card, host)
    for word in words:
        assert word in text
    subject = f" of {expectation.get('gpu', card.label)}" if CHECKS[expectation["check"]].per_card else ""
    assert text.startswith(f"{expectation['check']}{subject}: needed ")


def test_an_expectation_of_one_card_takes_the_place_of_that_of_all() -> None:
    report = model.report(METAL, [SMALL, TRAINER])
    both = [
        expect("resizable_bar"),
        expect("resizable_bar", "disabled", gpu="host"),
        expect("resizable_bar", gpu=CARD.pci),
        expect("link_width", 8, gpu="trainer"),
    ]
    found = [(v.check, v.card, v.state) for v in verdicts(report, both, GPUS)]
    assert found == [
        ("resizable_bar", "RTX 3090 Ti (0000:02:00.0)", "ok"),
        ("resizable_bar", "RTX 4090 (0000:01:00.0)", "ok"),
        ("resizable_bar", "RTX 4090 (0000:01:00.0)", "failed"),
        ("link_width", "RTX 3090 Ti (0000:02:00.0)", "ok"),
    ], "what is expected of a card by two names is judged twice, what is expected of another check changes nothing"


@pytest.mark.parametrize(
    ("dmi", "named", "name"),
    [
        (X299, "", "ASUS WS X299 Sage"),
        ({"board_name": "WS X299 SAGE"}, "", "ASUS WS X299 Sage"),
        ({"board_name": "WS X299 SAGE/10G"}, "", "WS X299 SAGE/10G"),
        ({"board_vendor": "ASUS", "board_name": "PRO"}, "ASUS WS X299 Sage", "ASUS WS X299 Sage"),
        (X299, "My Board", "My Board"),
        ({}, "", ""),
    ],
    ids=["by DMI", "by DMI without maker", "another board", "by the inventory", "the inventory wins", "nothing told"],
)
def test_boards(dmi: dict[str, str], named: str, name: str) -> None:
    board = board_of({"board": dmi}, boards(), named)
    assert board["names"][0] == name
    assert bool(board["menu"]) is (name == "ASUS WS X299 Sage")
    other = text_of(expect("resizable_bar"), SMALL, board="None Such")
    assert "Switch it in the mainboard's firmware (None Such): Resizable BAR (also called" in other
    assert "Where such a setting is missing" not in text_of(expect("secure_boot"))


def test_board_data() -> None:
    """The guide's board ships with the names of its own menu."""
    [board] = boards()
    assert board["menu"] == {
        "above_4g_decoding": "Above 4G Decoding", "resizable_bar": "Re-Size BAR Support", "csm": "Launch CSM"
    }  # fmt: skip
    assert set(board["menu"]) <= set(MENU)


def test_table() -> None:
    report = model.report(also(aspm_policy="default"), [but(SMALL, correctable_errors=3), TRAINER])
    text = table(report, [v.as_dict() for v in verdicts(report, [expect("resizable_bar")], GPUS)])
    lines = text.splitlines()
    assert lines[0].split() == ["check", "card", "needed", "found", "verdict"]
    assert lines[2].split() == ["resizable_bar", "RTX", "4090", "(0000:01:00.0)", "enabled", "disabled", "failed"]
    assert lines[3].split()[-3:] == ["enabled", "enabled", "ok"]
    assert any(line.split() == ["link_width", "2", "cards", "-", "16", "-"] for line in lines)
    assert any(line.split() == ["boot_mode", "-", "uefi", "-"] for line in lines)
    assert "3 corrected errors" in lines[-1]
    assert "offers more than" not in text, "what a verdict says is not said again"
    assert "offers more than" in table(report, [])


PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    ("value of another check", expect("boot_mode", "enabled"), "expect[0].needed: found 'enabled', needed one of uefi"),
    ("near miss", expect("csm", "disable"), "Did you mean disabled?"),
    ("nothing", {"check": "csm"}, "expect[0]: says nothing that is needed. Write needed: enabled or disabled."),
    ("nothing of a number", {"check": "link_width"}, "Write needed: full or at_least: a number."),
    ("both", {"check": "link_width", "needed": "full", "at_least": 4}, "has both needed and at_least."),
    ("number of no number", {"check": "csm", "at_least": 4}, "expect[0].at_least: csm is no number."),
    ("number in the wrong key", {"check": "link_width", "needed": 16}, "a number is written as at_least: 16."),
    ("card of the machine", expect("csm", gpu="host"), "expect[0].gpu: csm is of the machine, not of a card."),
    ("unknown card", expect("aspm", gpu="hots"), "expect[0].gpu: found 'hots', needed a name of rig_gpus (host"),
    ("several cards", expect("aspm", gpu="all"), "needed one card. Leave gpu out for every card."),
]


@pytest.mark.parametrize(("entry", "begins"), [c[1:] for c in PROBLEMS], ids=[c[0] for c in PROBLEMS])
def test_wrong_expectations(entry: dict[str, Any], begins: str) -> None:
    [problem] = expectation_problems([entry], ["host", "trainer"], "expect")
    assert begins in problem
    with pytest.raises(ValueError, match="expect"):
        verdicts(model.report(METAL, [CARD]), [entry], GPUS)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"check": "nope"}, "expect[0].check: found 'nope', needed one of above_4g_decoding"),
        ({"needed": "x"}, "expect[0].check: found None"),
        ({"check": "csm", "needed": True}, "Write enabled, disabled."),
        ({"check": "link_width", "needed": True}, "Write enabled, disabled."),
        ({"check": "link_width", "at_least": "8"}, "expect[0].at_least: found '8', needed a whole number"),
        ({"check": "link_width", "at_least": 0}, "expect[0].at_least: found 0"),
        ({"check": "link_width", "at_least": True}, "expect[0].at_least: found True"),
    ],
)
def test_without_the_schema_types_are_checked(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="expect") as error:
        verdicts(model.report(METAL, [CARD]), [entry], GPUS)
    assert words in str(error.value)
    assert error.value.args[0].count("expect[0]") == 1


def test_expectations_in_the_inventory() -> None:
    twice = [expect("csm"), expect("csm"), expect("aspm"), expect("aspm", gpu="host")]
    assert list(expectation_problems(twice, ["host"], "e")) == [
        "e[1]: expects the same of the same as e[0]. Keep one of them."
    ]
    assert list(expectation_problems(["x", {"check": ["y"]}, {"check": "z"}, expect("aspm", gpu="x")], None, "e")) == []
    homelab = ROLE.parents[1] / "inventories/homelab/host_vars/homelab/hardware.yml"
    variables = yaml.safe_load(homelab.read_text(encoding="utf-8"))
    assert validate(variables) == []
    assert len(variables["rig_firmware"]["expect"]) >= 4
    wrong = {**variables, "rig_firmware": {"expect": [expect("boot_mode", "bios"), {"check": "nope", "needed": "x"}]}}
    first, second = sorted(validate(wrong))
    assert first.startswith("rig_firmware.expect[0].needed: found 'bios'")
    assert second.startswith("rig_firmware.expect[1].check: found the text 'nope', needed one of above_4g_decoding")


def test_the_role_knows_the_checks() -> None:
    spec = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    assert spec["argument_specs"]["main"]["options"]["firmware_expect"]["options"]["check"]["choices"] == list(CHECKS)
