# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the firmware of mainboard and cards left for Linux to see, and what follows from it. (pure)

Parsers take the text or bytes of one file of the kernel; the functions below them turn what was seen of a host and of
its cards into readings. A reading has a value, the evidence for it, and where the value is 'unknown' or a hindrance the
reason and its cause. Sizes are in bytes, widths in lanes, generations are PCIe's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

UNKNOWN = "unknown"
MIB, GIB = 1 << 20, 1 << 30
FOUR_GIB = 4 * GIB
SMALL_WINDOW_BYTES = 256 * MIB
"""The window into a card's memory where Resizable BAR is off."""
LEAST_WINDOW_BYTES = 64 * MIB
"""The smallest window any card offers; smaller BARs are something else."""
RESIZE_FILES_SINCE = (6, 1)
"""Kernel from which `resourceN_resize` exists for each BAR with the capability, so that its absence tells."""
FIRST_GEFORCE_WITH_REBAR = 0x2200
"""PCI device numbers of GA102 and all later chips; Turing and older have no Resizable BAR."""
LOADED_STATE = 2
"""Up to this performance state a card's link runs at full speed; idle cards lower its generation."""

# Why a reading is what it is.
BIOS, CARD_FIRMWARE, CARD, VM, CONTAINER = "bios", "card_firmware", "card", "vm", "container"
RIGHTS, KERNEL, ADDRESS_SPACE, SEAT, SLOT = "rights", "kernel", "address_space", "seat", "slot"
IDLE, LOST, UNDECIDED = "idle", "lost", "undecided"

_MEMORY, _PREFETCHABLE, _WIDE, _UNSET = 0x200, 0x2000, 0x100000, 0x20000000  # include/linux/ioport.h
_GENERATIONS = {
    "2.5": 1,
    "5": 2,
    "5.0": 2,
    "8": 3,
    "8.0": 3,
    "16": 4,
    "16.0": 4,
    "32": 5,
    "32.0": 5,
    "64": 6,
    "64.0": 6,
}
_SLOT_WIDTHS = {0x08: 1, 0x09: 2, 0x0A: 4, 0x0B: 8, 0x0C: 12, 0x0D: 16, 0x0E: 32}  # SMBIOS 3.2, 7.10.2
_EXTENDED_START, _EXTENDED_END, _REBAR_ID = 0x100, 0x1000, 0x0015


@dataclass(frozen=True)
class Reading:
    """One thing that was found out. `value` 'unknown' has a `reason`; so has a hindrance. `cause`: one of the above."""

    value: str | int
    evidence: str = ""
    reason: str = ""
    cause: str = ""


def unknown(reason: str, cause: str, evidence: str = "") -> Reading:
    """A reading that could not be taken."""
    return Reading(UNKNOWN, evidence, reason, cause)


# -- parsers ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Bar:
    """A base address register. `start` is 0 and `assigned` false where it got no address."""

    index: int
    start: int
    size_bytes: int
    flags: int
    assigned: bool

    @property
    def is_window(self) -> bool:
        """Whether it can be the window into the card's memory."""
        wanted = _MEMORY | _PREFETCHABLE | _WIDE
        return self.flags & wanted == wanted and self.size_bytes >= LEAST_WINDOW_BYTES


def parse_resource(text: str) -> tuple[Bar, ...]:
    """BAR0 to BAR5 of a PCI device's `resource` file: lines of first address, last address, flags, in hex.

    A BAR without an address is all zeros, or has its size and the kernel's flag IORESOURCE_UNSET. Other lines and what
    is no hex are left out.
    """
    bars = []
    for index, line in enumerate(text.splitlines()[:6]):
        try:
            start, end, flags = (int(number, 16) for number in line.split())
        except ValueError:
            continue
        if end:
            assigned = not flags & _UNSET
            bars.append(Bar(index, start if assigned else 0, end - start + 1, flags, assigned))
    return tuple(bars)


def memory_window(bars: Sequence[Bar]) -> Bar | None:
    """The window into the card's memory: the largest 64-bit prefetchable BAR (BAR 1, on Hopper BAR 2)."""
    return max((one for one in bars if one.is_window), key=lambda one: one.size_bytes, default=None)


def parse_resize(text: str) -> tuple[int, ...]:
    """Sizes in bytes that a `resourceN_resize` file offers: a hex bitmap, bit n stands for 2^(n+20) bytes."""
    try:
        bits = int(text.strip() or "0", 16)
    except ValueError:
        return ()
    return tuple(MIB << n for n in range(bits.bit_length()) if bits >> n & 1)


def parse_rebar(config: bytes) -> dict[int, tuple[int, ...]] | None:
    """BAR index -> sizes in bytes, from the Resizable BAR capability in a device's `config` file.

    None where the extended part cannot be read (only root may, and only of PCI Express devices); {} where the device
    has no such capability. PCI Express 5.0, 7.8.6.
    """
    if len(config) < _EXTENDED_END or config[:4] == b"\xff\xff\xff\xff":
        return None
    offset, seen = _EXTENDED_START, set()
    while offset >= _EXTENDED_START and offset not in seen:
        seen.add(offset)
        header = _dword(config, offset)
        if header & 0xFFFF == _REBAR_ID:
            return _rebar_entries(config, offset + 4)
        offset = header >> 20 & 0xFFC
    return {}


def _rebar_entries(config: bytes, offset: int) -> dict[int, tuple[int, ...]]:
    found = {}
    count = _dword(config, offset + 4) >> 5 & 0x7
    for number in range(count):
        sizes, control = _dword(config, offset + 8 * number) >> 4, _dword(config, offset + 8 * number + 4)
        found[control & 0x7] = tuple(MIB << n for n in range(28) if sizes >> n & 1)
    return found


def _dword(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def parse_speed(text: str) -> int | None:
    """PCIe generation of '16.0 GT/s PCIe'; None for 'Unknown' and anything else."""
    return _GENERATIONS.get(text.partition("GT/s")[0].strip())


def parse_width(text: str) -> int | None:
    """Lanes; None where there is no link (0) or the device does not answer (63, 255)."""
    text = text.strip()
    return int(text) if text.isdigit() and 0 < int(text) <= 32 else None


def parse_efi_flag(data: bytes) -> bool | None:
    """An EFI variable of one byte as efivarfs shows it: four bytes of attributes, then the value."""
    return bool(data[4]) if len(data) == 5 and data[4] in (0, 1) else None


def parse_root_windows(iomem: str) -> list[tuple[int, int]] | None:
    """(first, last) address of the memory that host bridges pass to PCI, from /proc/iomem; None where it is hidden.

    Only root sees addresses there, others see zeros (kernel/resource.c). Only lines without indent are roots.
    """
    ranges = [
        (int(a, 16), int(b, 16)) for a, b in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : PCI Bus ", iomem, re.MULTILINE)
    ]
    return ranges if any(last for _first, last in ranges) else None


def parse_aspm_policy(text: str) -> str:
    """'default' of '[default] performance powersave powersupersave'; '' where none is marked."""
    found = re.search(r"\[(\w+)\]", text)
    return found.group(1) if found else ""


def parse_errors(text: str) -> int | None:
    """The sum at the end of an `aer_dev_correctable` file."""
    found = re.search(r"^TOTAL_ERR_COR (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else None


def parse_kernel(text: str) -> tuple[int, int]:
    """(6, 8) of '6.8.0-49-generic'; (0, 0) where it is no version."""
    found = re.match(r"(\d+)\.(\d+)", text.strip())
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def parse_pci_ids(text: str, vendor: str) -> dict[str, str]:
    """Device number -> name of one vendor, from the text of pci.ids; a name in brackets is the product's."""
    names: dict[str, str] = {}
    _before, found, rest = f"\n{text}".partition(f"\n{vendor}  ")
    for line in rest.splitlines()[1:] if found else ():
        if line and not line.startswith(("\t", "#")):
            break
        device = re.match(r"\t([0-9a-f]{4})  (.+)", line)
        if device:
            product = re.search(r"\[(.+)\]", device.group(2))
            names[device.group(1)] = product.group(1) if product else device.group(2)
    return names


@dataclass(frozen=True)
class Slot:
    """A slot as the mainboard's firmware describes it; `width` None where it does not say."""

    name: str
    width: int | None
    pci: str


@dataclass(frozen=True)
class Smbios:
    """What the SMBIOS tables add to /sys/class/dmi: None where they say nothing of it."""

    supports_uefi: bool | None = None
    is_virtual: bool | None = None
    slots: tuple[Slot, ...] = ()


def parse_smbios(data: bytes) -> Smbios:
    """Types 0 (BIOS) and 9 (slots) of the tables in /sys/firmware/dmi/tables/DMI. SMBIOS 3.2, 7.1 and 7.10."""
    supports_uefi, is_virtual, slots, offset = None, None, [], 0
    while offset + 4 <= len(data) and 4 <= data[offset + 1] <= len(data) - offset:
        kind, length = data[offset], data[offset + 1]
        body, after = data[offset : offset + length], offset + length
        end = data.find(b"\0\0", after)
        end = len(data) if end < 0 else end
        texts = [text.decode("ascii", "replace").strip() for text in data[after:end].split(b"\0")]
        if kind == 0 and length > 0x13:
            supports_uefi, is_virtual = bool(body[0x13] & 8), bool(body[0x13] & 16)
        if kind == 9 and length > 0x10:
            slots.append(_slot(body, texts))
        offset = end + 2
    return Smbios(supports_uefi, is_virtual, tuple(slots))


def _slot(body: bytes, texts: Sequence[str]) -> Slot:
    name = texts[body[4] - 1] if 0 < body[4] <= len(texts) else ""
    segment, bus, device = int.from_bytes(body[0x0D:0x0F], "little"), body[0x0F], body[0x10]
    return Slot(name, _SLOT_WIDTHS.get(body[6]), f"{segment:04x}:{bus:02x}:{device >> 3:02x}.{device & 7}")


# -- what was seen ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Link:
    """A PCIe link as one device tells it; None where it does not."""

    width: int | None = None
    width_max: int | None = None
    generation: int | None = None
    generation_max: int | None = None


@dataclass(frozen=True)
class Bridge:
    """A bridge above a card."""

    pci: str
    link: Link
    removable: bool = False


@dataclass(frozen=True)
class CardSeen:
    """All that was read of one card. `resize` and `rebar`: BAR index -> sizes, from sysfs and from `config`."""

    pci: str
    device_id: str
    name: str = ""
    uuid: str = ""
    vbios: str = ""
    kernel_driver: str = ""
    is_display: bool = True
    memory_bytes: int | None = None
    performance_state: int | None = None
    in_nvml: bool = False
    bars: tuple[Bar, ...] = ()
    resize: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    rebar: Mapping[int, tuple[int, ...]] | None = None
    link: Link = Link()
    upstream: tuple[Bridge, ...] = ()
    removable: bool = False
    aspm: Mapping[str, str] = field(default_factory=dict)
    correctable_errors: int | None = None
    lost: bool = False

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.name} ({self.pci})"

    @property
    def is_removable(self) -> bool:
        """Whether it, or a bridge on its way, can be plugged while the machine runs."""
        return self.removable or any(bridge.removable for bridge in self.upstream)

    @property
    def can_resize(self) -> bool:
        """Whether cards of this age have Resizable BAR at all."""
        return self.is_display and int(self.device_id or "0", 16) >= FIRST_GEFORCE_WITH_REBAR


@dataclass(frozen=True)
class HostSeen:
    """All that was read of a host. None: the file or folder is not there or not readable."""

    kernel: tuple[int, int] = (0, 0)
    cmdline: tuple[str, ...] = ()
    vm_marks: tuple[str, ...] = ()
    container_marks: tuple[str, ...] = ()
    dmi: Mapping[str, str] = field(default_factory=dict)
    smbios: Smbios | None = None
    efi: bool = False
    efi_variables: bool = False
    secure_boot: bytes | None = None
    root_windows: tuple[tuple[int, int], ...] | None = None
    iommu_units: tuple[str, ...] | None = None
    iommu_types: tuple[str, ...] | None = None
    acpi_tables: tuple[str, ...] | None = None
    aspm_policy: str = ""
    thunderbolt: tuple[str, ...] = ()

    @property
    def is_virtual(self) -> bool:
        """A guest of a hypervisor: what the guest sees of firmware and of links is made by its host."""
        return bool(self.vm_marks)

    @property
    def is_container(self) -> bool:
        """Firmware is masked from inside; the PCI files are those of the machine."""
        return bool(self.container_marks)


# -- the machine ------------------------------------------------------------------------------------------------------
def environment(host: HostSeen) -> Reading:
    """container, vm or metal: who can see and who may switch the firmware."""
    if host.is_container:
        return Reading("container", ", ".join(host.container_marks))
    if host.is_virtual:
        return Reading("vm", ", ".join(host.vm_marks))
    return Reading("metal", "no mark of a hypervisor or of a container")


def boot_mode(host: HostSeen) -> Reading:
    """uefi or legacy: how this system was started."""
    if host.efi:
        return Reading("uefi", "/sys/firmware/efi exists")
    absent = "/sys/firmware/efi does not exist"
    if host.is_container:
        return unknown("containers do not see the machine's firmware", CONTAINER, ", ".join(host.container_marks))
    if "noefi" in host.cmdline:
        return unknown("the kernel parameter noefi hides it", KERNEL, absent)
    if host.is_virtual:
        return unknown("this virtual machine was started without UEFI, or without any firmware", VM, absent)
    if host.smbios and host.smbios.supports_uefi:
        return Reading("legacy", f"{absent}, though the board supports UEFI (SMBIOS)", "started through CSM", BIOS)
    return Reading("legacy", absent, "started as a legacy BIOS does", BIOS)


def csm(host: HostSeen) -> Reading:
    """enabled or disabled. Linux cannot see it: it follows from the boot mode or from Secure Boot, or is not known."""
    mode = boot_mode(host)
    if mode.value == "legacy":
        return Reading(
            "enabled", mode.evidence, "a legacy boot goes through CSM, or the board has no UEFI at all", BIOS
        )
    if mode.value == UNKNOWN:
        return mode
    if host.is_virtual:
        return unknown("a virtual machine does not tell about the firmware of its host", VM)
    if secure_boot(host).value == "enabled":
        return Reading("disabled", "Secure Boot is on, and no firmware allows both")
    return unknown(
        "this boot was UEFI's; whether the firmware would also start legacy systems cannot be seen from Linux",
        UNDECIDED,
    )


def secure_boot(host: HostSeen) -> Reading:
    """enabled or disabled, from the firmware's own variable."""
    mode = boot_mode(host)
    if mode.value == UNKNOWN:
        return mode
    if mode.value == "legacy":
        return Reading("disabled", "legacy boot has no Secure Boot")
    if host.secure_boot is not None:
        flag = parse_efi_flag(host.secure_boot)
        if flag is None:
            return unknown(f"the variable SecureBoot has an unknown form ({len(host.secure_boot)} bytes)", UNDECIDED)
        return Reading("enabled" if flag else "disabled", f"EFI variable SecureBoot is {int(flag)}")
    if host.efi_variables:
        return Reading("disabled", "the firmware has no variable SecureBoot")
    return unknown("no EFI variables can be read: efivarfs is not mounted or not readable", RIGHTS)


def above_4g_decoding(host: HostSeen, cards: Sequence[CardSeen]) -> Reading:
    """enabled or disabled: whether PCI devices get addresses beyond 4 GiB."""
    windows = [(card, memory_window(card.bars)) for card in cards if card.bars and not card.lost]
    for card, window in windows:
        if window and window.assigned and window.start >= FOUR_GIB:
            return Reading("enabled", f"BAR {window.index} of {card.pci} lies at {window.start:#x}")
    if host.is_virtual:
        return unknown("a virtual machine sees the addresses that its host gives it", VM)
    if host.root_windows is not None:
        high = next((first for first, last in host.root_windows if last >= FOUR_GIB), None)
        if high is not None:
            return Reading("enabled", f"the host bridge passes memory at {high:#x} to PCI (/proc/iomem)")
        return Reading(
            "disabled",
            "no host bridge passes memory beyond 4 GiB to PCI (/proc/iomem)",
            "64-bit BARs get no room beyond 4 GiB",
            BIOS,
        )
    homeless = [card.pci for card, window in windows if not (window and window.assigned)]
    if homeless:
        return Reading(
            "disabled",
            f"the memory window of {', '.join(homeless)} got no address, and no other card's lies beyond 4 GiB",
            "large windows get no room",
            BIOS,
        )
    if host.is_container:
        return unknown("the host's address map is hidden from containers", CONTAINER)
    below = "every card's window lies below 4 GiB, where a small one may lie with the setting on or off"
    return unknown(f"{below if windows else 'no card can be seen'}; only root sees /proc/iomem", RIGHTS)


def iommu(host: HostSeen) -> Reading:
    """translated, passthrough, mixed or disabled."""
    if host.iommu_units is None and host.iommu_types is None:
        return unknown("neither /sys/class/iommu nor /sys/kernel/iommu_groups exists", KERNEL)
    units, types = host.iommu_units or (), set(host.iommu_types or ())
    if units or types:
        evidence = f"{', '.join(units) or 'IOMMU groups'}, type {', '.join(sorted(types)) or 'not told'}"
        if types == {"identity"}:
            return Reading("passthrough", evidence)
        return Reading("mixed" if "identity" in types else "translated", evidence)
    evidence = "/sys/class/iommu and /sys/kernel/iommu_groups are empty"
    if host.is_virtual:
        return Reading("disabled", evidence, "the virtual machine has none", VM)
    table = next((name for name in ("DMAR", "IVRS") if name in (host.acpi_tables or ())), "")
    if table:
        reason = f"the firmware offers one (ACPI table {table}), the kernel does not use it"
        return Reading("disabled", evidence, reason, KERNEL)
    if host.acpi_tables is None:
        return Reading("disabled", evidence, "off in the firmware or in the kernel", UNDECIDED)
    return Reading("disabled", evidence, "the firmware offers none (no ACPI table DMAR or IVRS)", BIOS)


def aspm_policy(host: HostSeen) -> Reading:
    """The kernel's policy: default, performance, powersave or powersupersave."""
    if "pcie_aspm=off" in host.cmdline:
        return Reading("off", "kernel parameter pcie_aspm=off")
    if host.aspm_policy:
        return Reading(host.aspm_policy, "/sys/module/pcie_aspm/parameters/policy")
    return unknown("/sys/module/pcie_aspm/parameters/policy is not there", KERNEL)


# -- a card -----------------------------------------------------------------------------------------------------------
def size_text(size_bytes: int) -> str:
    """'32 GiB' or '256 MiB'."""
    return f"{size_bytes // GIB} GiB" if size_bytes >= GIB and size_bytes % GIB == 0 else f"{size_bytes // MIB} MiB"


def offered_sizes(card: CardSeen, host: HostSeen) -> tuple[int, ...] | None:
    """Sizes that the card offers for its window; () where it has no such capability, None where that cannot be read."""
    window = memory_window(card.bars)
    for source in (card.resize, card.rebar or {}):
        if window and window.index in source:
            return source[window.index]
        large = [sizes for sizes in source.values() if max(sizes, default=0) >= LEAST_WINDOW_BYTES]
        if large and window is None:
            return large[0]
    if card.resize or card.rebar is not None or host.kernel >= RESIZE_FILES_SINCE:
        return ()
    return None


def resizable_bar(card: CardSeen, host: HostSeen) -> Reading:
    """How much of the card's memory the processor can reach at once.

    enabled (all of it, by Resizable BAR), large (all of it, without that capability: data-centre cards), partial,
    disabled, fixed (the card can do no more), hidden (by the virtual machine), unassigned (no address) or unknown.
    """
    if card.lost:
        return unknown("the card does not answer", LOST)
    if not card.bars:
        return unknown("its file `resource` cannot be read", RIGHTS)
    window, offered = memory_window(card.bars), offered_sizes(card, host)
    if window is None or not window.assigned:
        asked = f" of {size_text(window.size_bytes)}" if window else ""
        reason = f"the window into the card's memory{asked} got no address; its driver cannot work so"
        return Reading(
            "unassigned", f"no BAR of {card.pci} is its memory window", reason, VM if host.is_virtual else BIOS
        )
    size = window.size_bytes
    evidence = f"BAR {window.index} has {size_text(size)}" + _offered_text(offered)
    if card.memory_bytes is not None:
        evidence += f", the card's memory {size_text(card.memory_bytes)}"
    if size >= card.memory_bytes if card.memory_bytes is not None else size > SMALL_WINDOW_BYTES:
        return Reading("large" if offered == () else "enabled", evidence)
    if host.is_virtual:
        return Reading("hidden", evidence, "the virtual machine shows no larger window and no way to one", VM)
    if offered is None:
        reason = "whether the card offers more only root can read on this kernel"
        return Reading("disabled", evidence, reason, UNDECIDED)
    if max(offered, default=0) > size:
        if card.is_removable:
            return Reading("disabled", evidence, "its hot-plug port was given no room for more", ADDRESS_SPACE)
        if size > SMALL_WINDOW_BYTES:
            return Reading("partial", evidence, "the firmware found no room for the whole window", ADDRESS_SPACE)
        return Reading("disabled", evidence, "the card offers more than the mainboard's firmware set", BIOS)
    if offered or card.can_resize:
        only = f"{size_text(max(offered))} only" if offered else "no other size"
        return Reading("disabled", evidence, f"the card's own firmware (VBIOS) offers {only}", CARD_FIRMWARE)
    return Reading("fixed", evidence, "cards of this kind have no Resizable BAR", CARD)


def _offered_text(offered: tuple[int, ...] | None) -> str:
    if offered is None:
        return ", offers cannot be read"
    if not offered:
        return ", no Resizable BAR capability"
    return (
        f", offered {size_text(min(offered))} to {size_text(max(offered))}"
        if len(offered) > 1
        else (f", offered {size_text(offered[0])} only")
    )


def slot_of(card: CardSeen, host: HostSeen) -> Slot | None:
    """The slot that the firmware's table gives this card; its address is the card's or that of a bridge above it."""
    slots = host.smbios.slots if host.smbios else ()
    mine = [card.pci, *(bridge.pci for bridge in reversed(card.upstream))]
    found = [(mine.index(slot.pci), slot) for slot in slots if slot.pci in mine]
    return min(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Path:
    """What a card's link could be: the most that card, slot and all bridges above can do, and what narrows it."""

    width: int | None
    generation: int | None
    width_by: str
    generation_by: str


def path_of(card: CardSeen, host: HostSeen) -> Path:
    """The link's ceiling. A slot that claims fewer lanes than run is a wrong table and does not count."""
    widths, generations = [], []
    if card.link.width_max:
        widths.append((card.link.width_max, "the card"))
    if card.link.generation_max:
        generations.append((card.link.generation_max, "the card"))
    slot = slot_of(card, host)
    if slot and slot.width and slot.width >= (card.link.width or 0):
        widths.append((slot.width, f"slot {slot.name}"))
    for bridge in card.upstream:
        if bridge.link.width_max:
            widths.append((bridge.link.width_max, f"bridge {bridge.pci}"))
        if bridge.link.generation_max:
            generations.append((bridge.link.generation_max, f"bridge {bridge.pci}"))
    width, width_by = min(widths, key=lambda pair: pair[0], default=(None, ""))
    generation, generation_by = min(generations, key=lambda pair: pair[0], default=(None, ""))
    return Path(width, generation, width_by, generation_by)


def link_width(card: CardSeen, host: HostSeen) -> Reading:
    """Lanes in use. `cause` seat: fewer than card, slot and bridges can; slot: the way up is narrower than the card."""
    path, link = path_of(card, host), card.link
    if card.lost:
        return unknown("the card does not answer", LOST)
    if link.width is None or path.width is None:
        return unknown("the kernel tells no link width", VM if host.is_virtual else KERNEL)
    evidence = f"x{link.width} of x{link.width_max or '?'} (card), at most x{path.width} by {path.width_by}"
    if link.width >= path.width and path.width_by == "the card":
        return Reading(link.width, evidence)
    if host.is_virtual:
        return Reading(link.width, evidence, "links in a virtual machine are what its host makes them", VM)
    if link.width < path.width:
        return Reading(link.width, evidence, "fewer lanes than card, slot and bridges can do", SEAT)
    return Reading(link.width, evidence, f"{path.width_by} is narrower than the card", SLOT)


def link_generation(card: CardSeen, host: HostSeen) -> Reading:
    """Generation in use. Idle cards lower it, so that less than possible only counts under load."""
    path, link = path_of(card, host), card.link
    if card.lost:
        return unknown("the card does not answer", LOST)
    if link.generation is None or path.generation is None:
        return unknown("the kernel tells no link speed", VM if host.is_virtual else KERNEL)
    state = card.performance_state
    load = "performance state not known" if state is None else f"performance state P{state}"
    evidence = (
        f"generation {link.generation} of {link.generation_max or '?'} (card), at most {path.generation} by "
        f"{path.generation_by}, {load}"
    )
    if link.generation >= path.generation:
        return Reading(link.generation, evidence, *(("", SLOT) if path.generation_by != "the card" else ("", "")))
    if host.is_virtual:
        return Reading(link.generation, evidence, "links in a virtual machine are what its host makes them", VM)
    if state is None or state > LOADED_STATE:
        return Reading(link.generation, evidence, "the card may only be idle: the generation counts under load", IDLE)
    return Reading(link.generation, evidence, "lower than card and bridges can do, under load", SEAT)


def aspm(card: CardSeen, host: HostSeen) -> Reading:
    """Whether the card's link may sleep: enabled when any of its states (L0s, L1, substates) is."""
    on = sorted(name.removesuffix("_aspm").replace("_", ".").upper() for name, text in card.aspm.items() if text == "1")
    if on:
        return Reading("enabled", ", ".join(on))
    if card.aspm:
        return Reading("disabled", f"all of {len(card.aspm)} switches below link/ are 0")
    if "pcie_aspm=off" in host.cmdline:
        return Reading("disabled", "kernel parameter pcie_aspm=off")
    return unknown("the kernel shows no ASPM of this link: it has none, or the firmware kept it to itself", KERNEL)


def attachment(card: CardSeen, host: HostSeen) -> Reading:
    """thunderbolt, removable or pcie. OCuLink and adapters are plain PCIe: they can only be declared."""
    loose = [bridge.pci for bridge in card.upstream if bridge.removable] + [card.pci] * card.removable
    if loose:
        evidence = f"{', '.join(loose)} removable" + "".join(f"; Thunderbolt: {name}" for name in host.thunderbolt)
        return Reading("thunderbolt" if host.thunderbolt else "removable", evidence)
    if not card.upstream and (host.is_virtual or host.is_container):
        return unknown("the way to the card is hidden", VM if host.is_virtual else CONTAINER)
    hint = ""
    path = path_of(card, host)
    if path.width is not None and path.width <= 8 and (card.link.width_max or 0) > path.width and not host.is_virtual:
        hint = f"x{path.width} below a card of x{card.link.width_max} may be OCuLink, an adapter or a narrow slot"
    return Reading("pcie", "nothing on its way is removable", hint)


# -- the report -------------------------------------------------------------------------------------------------------
def report(host: HostSeen, cards: Sequence[CardSeen]) -> dict[str, Any]:
    """Everything for a module's result: plain dictionaries, lists, texts, numbers."""
    rows = [_card_as_dict(card, host) for card in cards]
    machine = {
        "environment": environment(host),
        "boot_mode": boot_mode(host),
        "csm": csm(host),
        "secure_boot": secure_boot(host),
        "above_4g_decoding": above_4g_decoding(host, cards),
        "iommu": iommu(host),
        "aspm_policy": aspm_policy(host),
    }
    return {
        **{name: asdict(reading) for name, reading in machine.items()},
        "board": dict(host.dmi),
        "thunderbolt": list(host.thunderbolt),
        "cards": rows,
        "complete": not any(
            reading.value == UNKNOWN and reading.cause != UNDECIDED
            for reading in [*machine.values(), *(read(card, host) for card in cards for read in CARD_READINGS.values())]
        ),
        "findings": [text for card in cards for text in _findings(card, host)],
    }


CARD_READINGS = {
    "resizable_bar": resizable_bar,
    "link_width": link_width,
    "link_generation": link_generation,
    "aspm": aspm,
    "attachment": attachment,
}


def _card_as_dict(card: CardSeen, host: HostSeen) -> dict[str, Any]:
    window, slot, path = memory_window(card.bars), slot_of(card, host), path_of(card, host)
    offered = offered_sizes(card, host)
    return {
        "pci": card.pci,
        "name": card.name,
        "uuid": card.uuid,
        "device_id": card.device_id,
        "vbios": card.vbios,
        "kernel_driver": card.kernel_driver,
        "in_nvml": card.in_nvml,
        "ours": card.in_nvml or not host.is_container,
        "lost": card.lost,
        "memory_bytes": card.memory_bytes,
        "window": {
            "bar": window.index if window else None,
            "address": f"{window.start:#x}" if window and window.assigned else None,
            "size_bytes": window.size_bytes if window and window.assigned else 0,
            "offered_bytes": None if offered is None else list(offered),
        },
        **{name: asdict(read(card, host)) for name, read in CARD_READINGS.items()},
        "link": {
            **asdict(card.link),
            "width_possible": path.width,
            "width_limited_by": path.width_by,
            "generation_possible": path.generation,
            "generation_limited_by": path.generation_by,
            "slot": slot.name if slot else "",
            "slot_width": slot.width if slot else None,
            "upstream": [{"pci": bridge.pci, **asdict(bridge.link)} for bridge in card.upstream],
            "correctable_errors": card.correctable_errors,
        },
    }


def _findings(card: CardSeen, host: HostSeen) -> list[str]:
    texts = []
    if card.lost:
        return [f"{card.label}: on the PCI bus, but it does not answer: it fell off the bus"]
    for name in ("resizable_bar", "link_width", "link_generation"):
        reading = CARD_READINGS[name](card, host)
        if reading.reason and reading.cause not in (IDLE, CARD, VM):
            texts.append(f"{card.label}: {name} {reading.value}: {reading.reason} ({reading.evidence})")
    if card.correctable_errors:
        texts.append(
            f"{card.label}: {card.correctable_errors} corrected errors on its link since start; a number that rises "
            "means a bad riser, cable or contact"
        )
    return texts
