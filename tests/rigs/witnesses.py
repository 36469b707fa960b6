# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine looks like to NVML, to /sys, to /proc, to lspci and to dmidecode: pure text from one description.

Formats: Linux 6.8 sysfs and proc, pciutils 3.9, dmidecode 3.4. Of each device only what a reader of graphics cards
needs is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .machines import Bridge, Machine, Place

MIB = 1 << 20
SPEED = {1: "2.5 GT/s PCIe", 2: "5.0 GT/s PCIe", 3: "8.0 GT/s PCIe", 4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe"}
LSPCI_SPEED = {1: "2.5GT/s", 2: "5GT/s", 3: "8GT/s", 4: "16GT/s", 5: "32GT/s"}
FLAGS_MEMORY, FLAGS_WINDOW, FLAGS_IO = 0x40200, 0x14220C, 0x40101
VENDORS = {
    "10de": "NVIDIA Corporation",
    "8086": "Intel Corporation",
    "1022": "Advanced Micro Devices, Inc. [AMD]",
    "1b36": "Red Hat, Inc.",
    "1000": "Broadcom / LSI",
    "1458": "Gigabyte Technology Co., Ltd",
    "1569": "Palit Microsystems Inc.",
    "17aa": "Lenovo",
}
EFI_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SECURE_BOOT_VARIABLE = f"SecureBoot-{EFI_GLOBAL}"
SLOT_WIDTH_CODES = {1: 0x08, 2: 0x09, 4: 0x0A, 8: 0x0B, 16: 0x0D}  # SMBIOS 3.2, 7.10.2


@dataclass(frozen=True)
class Link:
    """A symbolic link; the target is relative to the tree's root."""

    target: str


Tree = dict[str, "str | bytes | Link | None"]
"""Path below the root -> content; None is an empty directory."""


@dataclass(frozen=True)
class Bar:
    """A base address register: first address (0 where unassigned), size in bytes, resource flags."""

    start: int
    size: int
    flags: int


# -- NVML ---------------------------------------------------------------------------------------------------------
def nvml_ini(machine: Machine) -> str:
    """rig.ini for the simulated library; '' where no library is installed."""
    library = machine.library or machine.driver
    lines = ["[machine]"]
    if machine.driver:
        lines.append(f"driver = {machine.driver}")
    lines += [f"nvml = {machine.cuda.partition('.')[0]}.{library}", f"cuda = {machine.cuda}"]
    if machine.persistenced:
        lines.append("persistenced = 1")
    lines += [f"{key} = {value}" for key, value in machine.nvml.items()]
    visible = [place for place in machine.places if place.in_nvml]
    for index, place in enumerate(sorted(visible, key=lambda p: p.pci)):
        lines += ["", f"[gpu{index}]", *(f"{key} = {value}" for key, value in _nvml_card(machine, place).items())]
        for p in place.processes:
            used = "-" if p.used_mib is None else p.used_mib * MIB
            lines.append(f"process = {p.pid} {used} {p.kind} {p.name}")
    return "\n".join(lines) + "\n"


def _nvml_card(machine: Machine, place: Place) -> dict[str, object]:
    gpu = place.model
    index = sorted(p.pci for p in machine.places).index(place.pci)
    keys: dict[str, object | None] = {
        "name": gpu.name,
        "uuid": place.uuid,
        "pci": place.pci,
        "pci_ids": f"0x{gpu.pci_device}10de",
        "pci_subsystem_ids": f"0x{gpu.subsystem[4:]}{gpu.subsystem[:4]}",
        "minor": index,
        "serial": None if gpu.is_display else f"13220000000{place.unit:02d}",
        "vbios": gpu.vbios,
        "board_part_number": gpu.board_part_number,
        "brand": gpu.brand,
        "architecture": gpu.architecture,
        "compute_capability": gpu.compute_capability,
        "cores": gpu.cores,
        "memory_bus_width": gpu.memory_bus_width_bits,
        "memory_total": gpu.memory_total_mib * MIB,
        "memory_reserved": gpu.memory_reserved_mib * MIB,
        "memory_used": sum(p.used_mib or 0 for p in place.processes) * MIB,
        "bar1_total": place.window * MIB,
        "bar1_used": 2 * MIB,
        "ecc": _flag(gpu.ecc),
        "mig": _flag(gpu.mig),
        "persistence": int(place.persistence or machine.persistenced),
        "compute_mode": 0,
        "display_mode": int(place.display),
        "display_active": int(place.display),
        "power_min": _milli(gpu.power_min_w),
        "power_max": _milli(gpu.power_max_w),
        "power_default": _milli(gpu.power_default_w),
        "power_limit": _milli(place.power_limit_w),
        "power_usage": _milli(0.8 * gpu.power_default_w if place.busy and gpu.power_default_w else gpu.idle_power_w),
        "power_source": gpu.power_source,
        "throttle": "0x4" if place.busy else "0x1",
        "pstate": 0 if gpu.idles_at_full_speed else (2 if place.busy else 8),
        "clock_graphics": gpu.clock_graphics_max_mhz - 150 if place.busy else 210,
        "clock_memory": gpu.clock_memory_max_mhz if place.busy or gpu.idles_at_full_speed else 405,
        "clock_graphics_max": gpu.clock_graphics_max_mhz,
        "clock_memory_max": gpu.clock_memory_max_mhz,
        "temperature": 67 if place.busy else 34,
        "temperature_shutdown": gpu.temperature_shutdown_c,
        "temperature_slowdown": gpu.temperature_slowdown_c,
        "fan": (55 if place.busy else 0) if gpu.fan else None,
        "utilization_gpu": 97 if place.busy else 0,
        "utilization_memory": 60 if place.busy else 0,
        "pcie_gen_current": place.link_generation,
        "pcie_gen_max": place.link_generation_max,
        "pcie_gen_card_max": gpu.pcie_generation,
        "pcie_width_current": place.link_width,
        "pcie_width_max": min([gpu.pcie_width, *(bridge.width for bridge in place.upstream)]),
        "pcie_replays": place.replays,
        "lost": 1 if place.lost else None,
        **place.nvml,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _milli(watts: float | None) -> int | None:
    return None if watts is None else round(watts * 1000)


def _flag(value: bool | None) -> int | None:
    return None if value is None else int(value)


# -- addresses ------------------------------------------------------------------------------------------------------
def bars(machine: Machine) -> dict[str, list[Bar]]:
    """Lines 0 to 6 of each card's `resource` file: BAR0 to BAR5 and the ROM, as firmware would place them."""
    high, low, io = 0x6000000000, 0x80000000, 0x3000
    result: dict[str, list[Bar]] = {}
    for place in machine.places:
        gpu = place.model
        lines = [Bar(0, 0, 0)] * 7
        if gpu.window_bar == 2:  # Hopper: all three are 64-bit and prefetchable
            high = _align(high, gpu.bar0_mib * MIB)
            lines[0], high = Bar(high, gpu.bar0_mib * MIB, FLAGS_WINDOW), high + gpu.bar0_mib * MIB
        else:
            low = _align(low, gpu.bar0_mib * MIB)
            lines[0], low = Bar(low, gpu.bar0_mib * MIB, FLAGS_MEMORY), low + gpu.bar0_mib * MIB
        for index, size in ((gpu.window_bar, place.window * MIB), (gpu.window_bar + 2, 32 * MIB)):
            if size == 0:
                lines[index] = Bar(0, 0, FLAGS_WINDOW)
            elif machine.above_4g:
                high = _align(high, size)
                lines[index], high = Bar(high, size, FLAGS_WINDOW), high + size
            else:
                low = _align(low, size)
                lines[index], low = Bar(low, size, FLAGS_WINDOW), low + size
        if low > 0xF0000000:
            raise ValueError(f"{machine.name}: the cards' windows do not fit below 4 GiB")
        if gpu.has_io_bar:
            lines[5], io = Bar(io, 128, FLAGS_IO), io + 0x1000
        result[place.pci] = lines
    return result


def _align(address: int, size: int) -> int:
    return (address + size - 1) // size * size


def _resource_line(bar: Bar) -> str:
    end = bar.start + bar.size - 1 if bar.start else 0
    flags = bar.flags if bar.start else 0
    return f"0x{bar.start:016x} 0x{end:016x} 0x{flags:016x}"


# -- /sys -------------------------------------------------------------------------------------------------------------
def sysfs(machine: Machine) -> Tree:
    """The tree below /sys."""
    tree: Tree = {
        "bus/pci/devices": None,
        "bus/thunderbolt/devices": None,
        "class/iommu": None,
        "kernel/iommu_groups": None,
        "module/pcie_aspm/parameters/policy": _aspm_policy(machine.aspm) + "\n",
    }
    groups: dict[str, int] = {}
    for path, device in _devices(machine):
        pci = path.rsplit("/", 1)[1]
        tree[f"bus/pci/devices/{pci}"] = Link(path)
        for name, content in device.items():
            tree[f"{path}/{name}"] = content
        driver = device.get("driver")
        if isinstance(driver, Link):
            tree[f"{driver.target}/{pci}"] = Link(path)
        if machine.iommu:
            slot = pci.rsplit(".", 1)[0]
            group = groups.setdefault(slot, len(groups) + 10)
            tree[f"kernel/iommu_groups/{group}/type"] = machine.iommu_type + "\n"
            tree[f"kernel/iommu_groups/{group}/devices/{pci}"] = Link(path)
            tree[f"{path}/iommu_group"] = Link(f"kernel/iommu_groups/{group}")
    if machine.iommu:
        tree["class/iommu/dmar0" if machine.cpu_vendor == "GenuineIntel" else "class/iommu/ivhd0"] = None
    if machine.driver:
        tree["module/nvidia/version"] = machine.driver + "\n"
        tree["module/nvidia/initstate"] = "live\n"
    if any(place.kernel_driver == "nouveau" for place in machine.places):
        tree["module/nouveau/initstate"] = "live\n"
    for name, vendor, device_name in machine.thunderbolt:
        base = f"bus/thunderbolt/devices/{name}"
        tree |= {
            f"{base}/authorized": "1\n",
            f"{base}/vendor_name": vendor + "\n",
            f"{base}/device_name": device_name + "\n",
        }
    tree |= _sysfs_firmware(machine)
    return tree


def _sysfs_firmware(machine: Machine) -> Tree:
    tree: Tree = {
        f"class/dmi/id/{name}": value + "\n"
        for name, value in {
            "sys_vendor": machine.vendor,
            "product_name": machine.product,
            "board_vendor": machine.board_vendor,
            "board_name": machine.board,
            "bios_vendor": machine.bios_vendor,
            "bios_version": machine.bios_version,
            "bios_date": machine.bios_date,
        }.items()
        if value
    }
    if machine.is_container:  # container engines mask /sys/firmware
        return tree
    tree["firmware/dmi/tables/DMI"] = smbios(machine)
    tree["firmware/acpi/tables/FACP"] = b"FACP"
    if machine.iommu:
        name = "DMAR" if machine.cpu_vendor == "GenuineIntel" else "IVRS"
        tree[f"firmware/acpi/tables/{name}"] = name.encode()
    if machine.efi:
        tree["firmware/efi/fw_platform_size"] = "64\n"
        tree[f"firmware/efi/efivars/BootCurrent-{EFI_GLOBAL}"] = b"\x06\x00\x00\x00\x01\x00"
        if machine.secure_boot is not None:
            value = b"\x06\x00\x00\x00" + bytes([machine.secure_boot])
            tree[f"firmware/efi/efivars/{SECURE_BOOT_VARIABLE}"] = value
    return tree


def _aspm_policy(policy: str) -> str:
    names = ("default", "performance", "powersave", "powersupersave")
    return " ".join(f"[{name}]" if name == policy else name for name in names)


def _devices(machine: Machine) -> Iterator[tuple[str, Tree]]:
    seen: set[str] = set()
    addresses = bars(machine)
    for place in machine.places:
        first = place.upstream[0].pci if place.upstream else place.pci
        path = f"devices/pci{first.rsplit(':', 1)[0]}"
        for bridge in place.upstream:
            path += f"/{bridge.pci}"
            if bridge.pci not in seen:
                seen.add(bridge.pci)
                yield path, _bridge(machine, place, bridge)
        yield f"{path}/{place.pci}", _card(machine, place, addresses[place.pci])
        if place.model.audio_device and place.rebar != "hidden":
            audio = place.pci[:-1] + "1"
            yield f"{path}/{audio}", _audio(place)


def _bridge(machine: Machine, place: Place, bridge: Bridge) -> Tree:
    return {
        **_identity(bridge.ids, bridge.ids[:4] + "0000", "060400", place.numa_node),
        **_link(bridge.generation, bridge.width, place.link_generation, place.link_width),
        **_aer(0),
        **({"removable": "removable\n"} if place.removable and bridge is not place.upstream[0] else {}),
        "resource": "\n".join(_resource_line(Bar(0, 0, 0)) for _ in range(17)) + "\n",
        "driver": Link("bus/pci/drivers/pcieport"),
        "link/l1_aspm": _l1(machine),
    }


def _card(machine: Machine, place: Place, lines: list[Bar]) -> Tree:
    gpu = place.model
    tree: Tree = {
        **_identity(f"10de{gpu.pci_device}", gpu.subsystem, "030000" if gpu.is_display else "030200", place.numa_node),
        **_link(gpu.pcie_generation, gpu.pcie_width, place.link_generation, place.link_width),
        **_aer(place.correctable_errors),
        "resource": "\n".join(_resource_line(bar) for bar in lines) + "\n",
        "link/l1_aspm": _l1(machine),
        "power/runtime_status": "active\n",
    }
    if gpu.is_display:
        tree["boot_vga"] = f"{int(place.display)}\n"
    if place.removable:
        tree["removable"] = "removable\n"
    if place.resizable_mib and machine.has_resize_files:
        tree[f"resource{gpu.window_bar}_resize"] = f"{_size_bits(place.resizable_mib):016x}\n"
    tree["config"] = b"\xff" * 64 if place.lost else _config(place)[: 64 if machine.is_container else None]
    if place.kernel_driver:
        tree["driver"] = Link(f"bus/pci/drivers/{place.kernel_driver}")
    if place.lost:  # configuration space reads all ones
        tree |= {"current_link_speed": "Unknown\n", "current_link_width": "63\n"}
    return tree


def _size_bits(sizes_mib: list[int]) -> int:
    return sum(1 << (size.bit_length() - 1) for size in sizes_mib)  # bit n: 2^(n+20) bytes


def _config(place: Place) -> bytes:
    """Configuration space as root reads it, with the Resizable BAR capability at bb0 where the card has it."""
    gpu, space = place.model, bytearray(4096)
    space[0:4] = bytes.fromhex(gpu.pci_device + "10de")[::-1]
    bars = {0: [gpu.bar0_mib], gpu.window_bar: place.resizable_mib, gpu.window_bar + 2: [32]}
    entries = sorted(bars.items()) if place.resizable_mib else []
    space[0x100:0x104] = (0x0001 | 2 << 16 | (0xBB0 << 20 if entries else 0)).to_bytes(4, "little")  # AER, then next
    if entries:
        space[0xBB0:0xBB4] = (0x0015 | 1 << 16).to_bytes(4, "little")
    for number, (index, sizes) in enumerate(entries):
        control = index | (len(entries) << 5 if number == 0 else 0)
        at = 0xBB4 + 8 * number
        space[at : at + 8] = (_size_bits(sizes) << 4).to_bytes(4, "little") + control.to_bytes(4, "little")
    return bytes(space)


def _audio(place: Place) -> Tree:
    return {
        **_identity(f"10de{place.model.audio_device}", place.model.subsystem, "040300", place.numa_node),
        **_link(place.model.pcie_generation, place.model.pcie_width, place.link_generation, place.link_width),
        "driver": Link("bus/pci/drivers/snd_hda_intel"),
    }


def _identity(ids: str, subsystem: str, class_code: str, numa_node: int) -> Tree:
    return {
        "vendor": f"0x{ids[:4]}\n",
        "device": f"0x{ids[4:]}\n",
        "subsystem_vendor": f"0x{subsystem[:4]}\n",
        "subsystem_device": f"0x{subsystem[4:]}\n",
        "class": f"0x{class_code}\n",
        "revision": "0xa1\n",
        "enable": "1\n",
        "numa_node": f"{numa_node}\n",
    }


def _link(generation_max: int, width_max: int, generation: int, width: int) -> Tree:
    return {
        "current_link_speed": SPEED[min(generation, generation_max)] + "\n",
        "current_link_width": f"{width}\n",
        "max_link_speed": SPEED[generation_max] + "\n",
        "max_link_width": f"{width_max}\n",
    }


def _aer(errors: int) -> Tree:
    names = ("RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", "NonFatalErr", "CorrIntErr", "HeaderOF")
    counts = [f"{name} {errors if name == 'BadTLP' else 0}" for name in names]
    return {"aer_dev_correctable": "\n".join([*counts, f"TOTAL_ERR_COR {errors}"]) + "\n"}


def _l1(machine: Machine) -> str:
    return f"{int(machine.aspm in ('powersave', 'powersupersave'))}\n"


# -- /proc ------------------------------------------------------------------------------------------------------------
def proc(machine: Machine) -> Tree:
    """The tree below /proc."""
    flags = "fpu vme de pse tsc msr pae mce cx8 apic sse sse2 avx2" + (" hypervisor" if machine.is_virtual else "")
    cpus = "\n".join(
        f"processor\t: {n}\nvendor_id\t: {machine.cpu_vendor}\nmodel name\t: {machine.cpu}\nflags\t\t: {flags}\n"
        for n in range(machine.cpus)
    )
    tree: Tree = {
        "cmdline": machine.cmdline + "\n",
        "cpuinfo": cpus + "\n",
        "meminfo": f"MemTotal:       {machine.memory_gib * 1024 * 1024} kB\n",
        "sys/kernel/osrelease": machine.kernel + "\n",
        "1/comm": machine.init + "\n",
        "1/environ": "".join(f"{key}={value}\0" for key, value in machine.environment.items()),
        "iomem": _iomem(machine),
        "mounts": _mounts(machine),
        "modules": _modules(machine),
    }
    if machine.driver:
        flavour = "Open Kernel Module for x86_64" if machine.open_module else "x86_64 Kernel Module"
        tree["driver/nvidia/version"] = (
            f"NVRM version: NVIDIA UNIX {flavour}  {machine.driver}  Tue Sep 23 10:11:16 UTC 2025\n"
            "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
        )
        for minor, place in enumerate(sorted(machine.places, key=lambda p: p.pci)):
            if place.kernel_driver == "nvidia":
                tree[f"driver/nvidia/gpus/{place.pci}/information"] = (
                    f"Model: \t\t {place.model.name}\nIRQ:   \t\t {140 + minor}\nGPU UUID: \t {place.uuid}\n"
                    f"Video BIOS: \t {place.model.vbios.lower()}\nBus Type: \t PCIe\nDMA Size: \t 47 bits\n"
                    f"DMA Mask: \t 0x7fffffffffff\nBus Location: \t {place.pci}\nDevice Minor: \t {minor}\n"
                    f"GPU Firmware: \t {machine.driver if machine.open_module else 'N/A'}\nGPU Excluded:\t No\n"
                )
    return tree


def _iomem(machine: Machine) -> str:
    """As root sees it; in containers all addresses are zero."""
    root = machine.places[0].upstream[0].pci[:7] if machine.places[0].upstream else "0000:00"
    low = "00000000-00000fff : Reserved\n00100000-7effffff : System RAM\n"
    windows = f"80000000-efffffff : PCI Bus {root}\n  f0000000-f0ffffff : PCI Bus 0000:01\n"
    high = f"6000000000-ffffffffff : PCI Bus {root}\n" if machine.above_4g else ""
    text = low + windows + high
    return re.sub(r"[0-9a-f]{8,}-[0-9a-f]{8,}", "00000000-00000000", text) if machine.is_container else text


def _mounts(machine: Machine) -> str:
    if machine.is_container:
        return (
            "overlay / overlay rw,relatime,lowerdir=/a,upperdir=/b,workdir=/c 0 0\nsysfs /sys sysfs ro,nosuid 0 0\n"
            "tmpfs /sys/firmware tmpfs ro,relatime 0 0\n"
        )
    return "/dev/mapper/vg-root / ext4 rw,relatime 0 0\nsysfs /sys sysfs rw,nosuid,nodev,noexec,relatime 0 0\n"


def _modules(machine: Machine) -> str:
    lines = []
    if machine.driver:
        lines = [
            "nvidia_uvm 2076672 0 - Live 0x0000000000000000 (POE)",
            "nvidia_drm 135168 0 - Live 0x0000000000000000 (POE)",
            "nvidia_modeset 1638400 1 nvidia_drm, Live 0x0000000000000000 (POE)",
            "nvidia 104165376 2 nvidia_uvm,nvidia_modeset, Live 0x0000000000000000 (POE)",
        ]
    if any(place.kernel_driver == "nouveau" for place in machine.places):
        lines.append("nouveau 3096576 1 - Live 0x0000000000000000")
    return "".join(line + "\n" for line in lines)


# -- lspci ------------------------------------------------------------------------------------------------------------
def lspci(machine: Machine, root: bool = True) -> str:
    """`lspci -D -vv` of bridges, cards and their audio functions; without root the capabilities are hidden."""
    if machine.is_container:
        root = False
    blocks: dict[str, str] = {}
    addresses = bars(machine)
    for place in machine.places:
        for bridge in place.upstream:
            blocks.setdefault(bridge.pci, _lspci_bridge(place, bridge, root))
        blocks[place.pci] = _lspci_card(machine, place, addresses[place.pci], root)
        if place.model.audio_device and place.rebar != "hidden":
            audio = place.pci[:-1] + "1"
            blocks[audio] = (
                f"{audio} Audio device: {VENDORS['10de']} {place.model.audio_chip} (rev a1)\n"
                "\tKernel driver in use: snd_hda_intel\n"
            )
    return "\n".join(blocks[pci] for pci in sorted(blocks))


def _lspci_bridge(place: Place, bridge: Bridge, root: bool) -> str:
    vendor = VENDORS.get(bridge.ids[:4], f"Vendor {bridge.ids[:4]}")
    kind = "Root Port (Slot+)" if bridge is place.upstream[0] else "Downstream Port (Slot+)"
    lines = [f"{bridge.pci} PCI bridge: {vendor} {bridge.name} (rev 04) (prog-if 00 [Normal decode])"]
    if root:
        lines += [
            f"\tCapabilities: [90] Express (v2) {kind}, MSI 00",
            *_lspci_link(bridge.generation, bridge.width, place.link_generation, place.link_width, 0),
        ]
    else:
        lines.append("\tCapabilities: <access denied>")
    return "\n".join([*lines, "\tKernel driver in use: pcieport"]) + "\n"


def _lspci_card(machine: Machine, place: Place, lines: list[Bar], root: bool) -> str:
    gpu = place.model
    kind = "VGA compatible controller" if gpu.is_display else "3D controller"
    head = f"{place.pci} {kind}: {VENDORS['10de']} {gpu.chip}"
    if place.lost:
        driver = f"\tKernel driver in use: {place.kernel_driver}"
        return f"{head} (rev ff) (prog-if ff)\n\t!!! Unknown header type 7f\n{driver}\n"
    subsystem = VENDORS.get(gpu.subsystem[:4], f"Vendor {gpu.subsystem[:4]}")
    text = [
        f"{head} (rev a1)" + (" (prog-if 00 [VGA controller])" if gpu.is_display else ""),
        f"\tSubsystem: {subsystem} Device {gpu.subsystem[4:]}",
        "\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+",
        f"\tNUMA node: {place.numa_node}",
    ]
    for index, bar in enumerate(lines):
        if bar.flags == FLAGS_IO:
            text.append(f"\tRegion {index}: I/O ports at {bar.start:x} [size=128]")
        elif bar.size:
            kind = "64-bit, prefetchable" if bar.flags == FLAGS_WINDOW else "32-bit, non-prefetchable"
            text.append(
                f"\tRegion {index}: Memory at {bar.start:x} ({kind}) [size={_size(bar.size // MIB, short=True)}]"
            )
        elif bar.flags:
            text.append(f"\tRegion {index}: Memory at <unassigned> (64-bit, prefetchable)")
    if root:
        text += [
            "\tCapabilities: [60] Power Management version 3",
            "\t\tStatus: D0 NoSoftRst+ PME-Enable- DSel=0 DScale=0 PME-",
            f"\tCapabilities: [78] Express (v2) {'Legacy Endpoint' if gpu.is_display else 'Endpoint'}, MSI 00",
            *_lspci_link(
                gpu.pcie_generation, gpu.pcie_width, place.link_generation, place.link_width, int(_l1(machine))
            ),
        ]
        if place.resizable_mib:
            sizes = " ".join(_size(size) for size in place.resizable_mib)
            text += [
                "\tCapabilities: [bb0 v1] Physical Resizable BAR",
                f"\t\tBAR 0: current size: {_size(gpu.bar0_mib)}, supported: {_size(gpu.bar0_mib)}",
                f"\t\tBAR {gpu.window_bar}: current size: {_size(place.window)}, supported: {sizes}",
                f"\t\tBAR {gpu.window_bar + 2}: current size: 32MB, supported: 32MB",
            ]
    else:
        text.append("\tCapabilities: <access denied>")
    if place.kernel_driver:
        text.append(f"\tKernel driver in use: {place.kernel_driver}")
    return "\n".join([*text, "\tKernel modules: nvidiafb, nouveau, nvidia_drm, nvidia"]) + "\n"


def _lspci_link(generation_max: int, width_max: int, generation: int, width: int, l1: int) -> list[str]:
    generation = min(generation, generation_max)
    speed = LSPCI_SPEED[generation] + (" (downgraded)" if generation < generation_max else "")
    lanes = f"x{width}" + (" (downgraded)" if width < width_max else "")
    return [
        f"\t\tLnkCap:\tPort #0, Speed {LSPCI_SPEED[generation_max]}, Width x{width_max}, ASPM L1, Exit Latency L1 <4us",
        "\t\t\tClockPM+ Surprise- LLActRep- BwNot- ASPMOptComp+",
        f"\t\tLnkCtl:\tASPM {'L1 Enabled' if l1 else 'Disabled'}; RCB 64 bytes, Disabled- CommClk+",
        f"\t\tLnkSta:\tSpeed {speed}, Width {lanes}",
        "\t\t\tTrErr- Train- SlotClk+ DLActive- BWMgmt- ABWMgmt-",
    ]


def _size(mib: int, short: bool = False) -> str:
    number, unit = (mib // 1024, "G") if mib >= 1024 else (mib, "M")
    return f"{number}{unit}" if short else f"{number}{unit}B"


# -- dmidecode --------------------------------------------------------------------------------------------------------
def dmidecode(machine: Machine) -> str:
    """`dmidecode` as root; in a container it has nothing to read."""
    if machine.is_container:
        return (
            "# dmidecode 3.4\n/sys/firmware/dmi/tables/smbios_entry_point: No such file or directory\n"
            "Scanning /dev/mem for entry point.\n/dev/mem: No such file or directory\n"
        )
    uefi = "\t\tUEFI is supported\n" if machine.bios_supports_uefi else ""
    bios = (
        f"Handle 0x0000, DMI type 0, 26 bytes\nBIOS Information\n\tVendor: {machine.bios_vendor}\n"
        f"\tVersion: {machine.bios_version}\n\tRelease Date: {machine.bios_date}\n\tCharacteristics:\n"
        f"\t\tPCI is supported\n\t\tBIOS is upgradeable\n{uefi}\tBIOS Revision: 5.14\n"
    )
    system = (
        f"Handle 0x0001, DMI type 1, 27 bytes\nSystem Information\n\tManufacturer: {machine.vendor}\n"
        f"\tProduct Name: {machine.product}\n\tVersion: Not Specified\n\tWake-up Type: Power Switch\n"
    )
    parts = ["# dmidecode 3.4\nGetting SMBIOS data from sysfs.\nSMBIOS 3.2.1 present.\n", bios, system]
    if machine.board:
        parts.append(
            f"Handle 0x0002, DMI type 2, 15 bytes\nBase Board Information\n\tManufacturer: {machine.board_vendor}\n"
            f"\tProduct Name: {machine.board}\n\tVersion: Rev 1.xx\n"
        )
    for number, place in enumerate((p for p in machine.places if p.slot), start=1):
        bridge = place.upstream[-1]
        parts.append(
            f"Handle 0x{0x28 + number:04X}, DMI type 9, 17 bytes\nSystem Slot Information\n"
            f"\tDesignation: {place.slot}\n\tType: x{bridge.width} PCI Express {bridge.generation} x{bridge.width}\n"
            f"\tCurrent Usage: In Use\n\tLength: Long\n\tID: {number}\n\tBus Address: {place.pci}\n"
        )
    return "\n".join(parts) + "\nHandle 0x007F, DMI type 127, 4 bytes\nEnd Of Table\n\n"


def smbios(machine: Machine) -> bytes:
    """The same tables as bytes, as in /sys/firmware/dmi/tables/DMI: types 0 and 9 and the end."""
    extension = (8 if machine.bios_supports_uefi else 0) | (16 if machine.is_virtual else 0)
    bios = bytes([1, 2]) + bytes(12) + bytes([3, extension]) + bytes(4)  # characteristics are bytes 12h and 13h
    tables = [_structure(0, bios, [machine.bios_vendor, machine.bios_version])]
    for number, place in enumerate((p for p in machine.places if p.slot), start=1):
        segment, bus, device, function = (int(part, 16) for part in re.split("[:.]", place.pci))
        width = SLOT_WIDTH_CODES[place.upstream[-1].width]
        body = bytes([1, 0xA5, width, 4, 4, number, 0, 0, 0]) + segment.to_bytes(2, "little")
        tables.append(_structure(9, body + bytes([bus, device << 3 | function]), [place.slot]))
    return b"".join([*tables, _structure(127, b"", [])])


def _structure(kind: int, body: bytes, texts: list[str]) -> bytes:
    head = bytes([kind, 4 + len(body)]) + b"\x00\x00"
    return head + body + b"".join(text.encode() + b"\0" for text in texts) + (b"\0" if texts else b"\0\0")
