# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Named machines: one description each, from which every witness (NVML, sysfs, proc, lspci, dmidecode) is made.

Change one for a test with `dataclasses.replace(machine("guide_x299"), secure_boot=True)`, or one of its cards with
`with_card(machine, "0000:65:00.0", lost=True)`.
"""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass, field
from typing import Any

from .gpus import Gpu, catalogue

_NAMESPACE = uuid.UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True)
class Bridge:
    """A PCIe bridge above a card; `generation` and `width` are the most it can do."""

    pci: str
    ids: str
    name: str
    generation: int
    width: int = 16


@dataclass(frozen=True)
class Process:
    """A process on a card; `used_mib` None: the driver does not tell."""

    pid: int
    name: str
    used_mib: int | None
    kind: str = "c"


@dataclass(frozen=True)
class Place:
    """One card in its place. `upstream` lists the bridges from the root port down."""

    gpu: str
    pci: str
    upstream: tuple[Bridge, ...] = ()
    unit: int = 1
    """Tells cards of one model apart; UUID and serial come from it, so that a card keeps them when it moves."""
    width: int | None = None
    """Negotiated width where it is less than slot and card could do."""
    window_mib: int | None = None
    """Size of the memory window: None as the card can, 256 with Resizable BAR off, 0 where nothing was assigned."""
    rebar: str = "card"
    """Resizable BAR capability: `card` as the catalogue says, `old_vbios` (256 MB only), `hidden` (by a hypervisor)."""
    slot: str = ""
    numa_node: int = 0
    persistence: bool = False
    display: bool = False
    busy: bool = False
    lost: bool = False
    in_nvml: bool = True
    kernel_driver: str = "nvidia"
    removable: bool = False
    power_limit_w: float | None = None
    replays: int = 0
    correctable_errors: int = 0
    processes: tuple[Process, ...] = ()
    nvml: dict[str, str] = field(default_factory=dict)
    """Further keys of the simulated library's description, also faults: {"fault.<function>": "15 after 3"}."""

    @property
    def model(self) -> Gpu:
        """The card's model."""
        return catalogue()[self.gpu]

    @property
    def uuid(self) -> str:
        """NVML's name of the card."""
        return f"GPU-{uuid.uuid5(_NAMESPACE, f'gpurig/{self.gpu}/{self.unit}')}"

    @property
    def window(self) -> int:
        """Size of the memory window in MiB."""
        return self.model.window_mib if self.window_mib is None else self.window_mib

    @property
    def resizable_mib(self) -> list[int]:
        """Sizes that the Resizable BAR capability offers; empty: no such capability."""
        if self.rebar == "hidden":
            return []
        return [256] if self.rebar == "old_vbios" else self.model.resizable_mib

    @property
    def link_width(self) -> int:
        """The negotiated width."""
        return self.width or min([self.model.pcie_width, *(bridge.width for bridge in self.upstream)])

    @property
    def link_generation_max(self) -> int:
        """The generation that card and everything above it can do together."""
        return min([self.model.pcie_generation, *(bridge.generation for bridge in self.upstream)])

    @property
    def link_generation(self) -> int:
        """The generation now: idle cards drop it."""
        return self.link_generation_max if self.busy or self.model.idles_at_full_speed else 1


@dataclass(frozen=True)
class Machine:
    """A host with its cards."""

    name: str
    story: str
    places: tuple[Place, ...]
    kind: str = "metal"
    vendor: str = "To Be Filled By O.E.M."
    product: str = "System Product Name"
    board_vendor: str = "ASUSTeK COMPUTER INC."
    board: str = "PRIME X670E-PRO WIFI"
    bios_vendor: str = "American Megatrends Inc."
    bios_version: str = "3205"
    bios_date: str = "07/03/2024"
    bios_supports_uefi: bool = True
    cpu: str = "AMD Ryzen 9 7950X 16-Core Processor"
    cpu_vendor: str = "AuthenticAMD"
    cpus: int = 32
    memory_gib: int = 64
    efi: bool = True
    secure_boot: bool | None = False
    above_4g: bool = True
    iommu: bool = True
    iommu_type: str = "DMA-FQ"
    aspm: str = "default"
    cmdline: str = "BOOT_IMAGE=/boot/vmlinuz-6.8.0-49-generic root=/dev/mapper/vg-root ro"
    kernel: str = "6.8.0-49-generic"
    driver: str = "580.95.05"
    """Version of the loaded kernel module; '' where none is loaded."""
    library: str = ""
    """Version of the installed library where it is not the driver's."""
    open_module: bool = False
    cuda: str = "13.0"
    persistenced: bool = False
    thunderbolt: tuple[tuple[str, str, str], ...] = ()
    """(name below /sys/bus/thunderbolt/devices, vendor, device), all authorised."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment of process 1: in pods it names the provider."""
    init: str = "systemd"
    nvml: dict[str, str] = field(default_factory=dict)

    @property
    def is_virtual(self) -> bool:
        """A guest of a hypervisor."""
        return self.kind == "vm"

    @property
    def is_container(self) -> bool:
        """A container: firmware and capabilities are not to be read from inside."""
        return self.kind == "pod"

    @property
    def has_resize_files(self) -> bool:
        """Whether the kernel has `resourceN_resize`: from 6.1 on."""
        return tuple(int(part) for part in self.kernel.split(".")[:2]) >= (6, 1)

    def place(self, pci: str) -> Place:
        """The card at an address."""
        return next(place for place in self.places if place.pci == pci)


def with_card(machine: Machine, pci: str, /, **changes: Any) -> Machine:
    """The same machine with one card changed; changing `pci` moves it to another slot."""
    places = tuple(dataclasses.replace(p, **changes) if p.pci == pci else p for p in machine.places)
    if machine.places == places and changes:
        raise ValueError(f"{machine.name} has no card at {pci}, or nothing changed")
    return dataclasses.replace(machine, places=places)


def _x299(pci: str, generation: int = 3) -> tuple[Bridge, ...]:
    return (Bridge(pci, "80862030", "Sky Lake-E PCI Express Root Port A", generation),)


def _am5(pci: str, width: int = 16, generation: int = 5) -> tuple[Bridge, ...]:
    return (Bridge(pci, "102214db", "Device 14db", generation, width),)


def _qemu(pci: str) -> tuple[Bridge, ...]:
    return (Bridge(pci, "1b36000c", "QEMU PCIe Root port", 4),)


def _hgx(bus: int) -> tuple[Bridge, ...]:
    return (
        Bridge(f"0000:{bus:02x}:01.0", "8086352a", "Device 352a", 5),
        Bridge(f"0000:{bus + 1:02x}:00.0", "1000c030", "PEX890xx PCIe Gen 5 Switch", 5),
        Bridge(f"0000:{bus + 2:02x}:00.0", "1000c030", "PEX890xx PCIe Gen 5 Switch", 5),
    )


_VM = {
    "kind": "vm",
    "vendor": "QEMU",
    "product": "Standard PC (Q35 + ICH9, 2009)",
    "board_vendor": "",
    "board": "",
    "bios_vendor": "EFI Development Kit II / OVMF",
    "bios_version": "edk2-stable202302",
    "bios_date": "03/07/2023",
    "cpu": "AMD EPYC-Rome Processor",
    "iommu": False,
}
_X299 = {
    "vendor": "ASUS",
    "product": "All Series",
    "board": "WS X299 SAGE",
    "bios_version": "4001",
    "bios_date": "05/26/2023",
    "cpu": "Intel(R) Core(TM) i9-10940X CPU @ 3.30GHz",
    "cpu_vendor": "GenuineIntel",
    "cpus": 28,
    "memory_gib": 256,
    "driver": "550.163.01",
    "cuda": "12.4",
}
_GUIDE = (
    Place("rtx_3090_ti", "0000:17:00.0", _x299("0000:16:00.0"), slot="PCIEX16_1"),
    Place("rtx_4090", "0000:65:00.0", _x299("0000:64:00.0"), slot="PCIEX16_5", display=True),
)
_A40_PAIR = (
    Place("a40", "0000:ce:00.0", _qemu("0000:00:02.0"), persistence=True, rebar="hidden"),
    Place("a40", "0000:d6:00.0", _qemu("0000:00:02.1"), unit=2, persistence=True, rebar="hidden"),
)


def _make() -> list[Machine]:
    hgx_buses = (0x18, 0x28, 0x38, 0x5A, 0x9A, 0xA9, 0xB8, 0xD9)
    hgx = tuple(
        Place("h100", f"0000:{bus + 3:02x}:00.0", _hgx(bus), unit=n + 1, persistence=True, numa_node=n // 4)
        for n, bus in enumerate(hgx_buses)
    )
    return [
        Machine(
            "guide_x299",
            "The guide's rig: 3090 Ti (training pool) and 4090 (inference host) on an ASUS WS X299 SAGE, set right.",
            _GUIDE,
            **_X299,
        ),
        Machine(
            "csm_boot",
            "The guide's rig booted through CSM, with Above 4G decoding and Resizable BAR off.",
            tuple(dataclasses.replace(place, window_mib=256) for place in _GUIDE),
            efi=False,
            above_4g=False,
            secure_boot=None,
            **_X299,
        ),
        Machine(
            "secure_boot",
            "A 4090 under Secure Boot: the unsigned driver module was refused, so there is no driver.",
            (Place("rtx_4090", "0000:01:00.0", _am5("0000:00:01.1"), kernel_driver="", in_nvml=False),),
            secure_boot=True,
            driver="",
            nvml={"fault.nvmlInitWithFlags": "9"},
            library="580.95.05",
        ),
        Machine(
            "lost_card",
            "A 3090 that fell off the bus beside a 4090 that works.",
            (
                Place("rtx_3090", "0000:01:00.0", _am5("0000:00:01.1", width=8), slot="PCIEX16_1", lost=True),
                Place("rtx_4090", "0000:02:00.0", _am5("0000:00:01.2", width=8), slot="PCIEX16_2"),
            ),
        ),
        Machine(
            "old_vbios",
            "Two 3090s, firmware set right; the first card's own VBIOS offers a 256 MB window only.",
            (
                Place("rtx_3090", "0000:21:00.0", _am5("0000:20:01.1"), window_mib=256, rebar="old_vbios"),
                Place("rtx_3090", "0000:41:00.0", _am5("0000:40:01.1"), unit=2),
            ),
            board="Pro WS WRX80E-SAGE SE WIFI",
            cpu="AMD Ryzen Threadripper PRO 5965WX 24-Cores",
            cpus=48,
        ),
        Machine(
            "rebar_off",
            "A 4090 with Above 4G decoding on and Resizable BAR off in the mainboard's firmware.",
            (Place("rtx_4090", "0000:01:00.0", _am5("0000:00:01.1"), window_mib=256),),
        ),
        Machine(
            "above_4g_off",
            "A T4 and an A40 with Above 4G decoding off: the A40's 64 GiB window found no place, its driver gave up.",
            (
                Place("t4", "0000:01:00.0", _am5("0000:00:01.1", generation=3)),
                Place("a40", "0000:02:00.0", _am5("0000:00:01.2"), window_mib=0, in_nvml=False, kernel_driver=""),
            ),
            above_4g=False,
            secure_boot=None,
        ),
        Machine(
            "rtx_5090",
            "One 5090, whose lowest power limit is 400 W.",
            (Place("rtx_5090", "0000:01:00.0", _am5("0000:00:01.1"), slot="PCIEX16_1", display=True),),
            open_module=True,
        ),
        Machine(
            "gtx_1080",
            "An older desktop with a GTX 1080 (compute capability 6.1): too old for vLLM, fine for llama.cpp.",
            (
                Place(
                    "gtx_1080",
                    "0000:01:00.0",
                    (Bridge("0000:00:01.0", "80861901", "6th-10th Gen Core Processor PCIe Controller (x16)", 3),),
                    slot="PCIEX16_1",
                    display=True,
                    processes=(Process(1712, "/usr/lib/xorg/Xorg", 210, "g"),),
                ),
            ),
            board="PRIME Z270-A",
            bios_version="1302",
            bios_date="03/15/2018",
            cpu="Intel(R) Core(TM) i7-7700K CPU @ 4.20GHz",
            cpu_vendor="GenuineIntel",
            cpus=8,
            iommu=False,
            secure_boot=None,
        ),
        Machine(
            "oculink_4090",
            "A mini PC with a 4090 on OCuLink: plain PCIe, four lanes.",
            (Place("rtx_4090", "0000:03:00.0", _am5("0000:00:02.1", width=4, generation=4), width=4),),
            vendor="Micro Computer (HK) Tech Limited",
            product="F7BSC",
            board_vendor="Shenzhen Meigao Electronic Equipment Co.,Ltd",
            board="F7BSC",
            bios_version="1.14",
            cpu="AMD Ryzen 9 7940HS w/ Radeon 780M Graphics",
            cpus=16,
        ),
        Machine(
            "thunderbolt_3090",
            "A 3090 in a Thunderbolt box.",
            (
                Place(
                    "rtx_3090",
                    "0000:04:00.0",
                    (
                        Bridge("0000:00:07.0", "8086a73f", "Device a73f", 3, 4),
                        Bridge(
                            "0000:02:00.0", "80861578", "JHL6540 Thunderbolt 3 Bridge (C step) [Alpine Ridge 4C]", 3, 4
                        ),
                        Bridge(
                            "0000:03:01.0", "80861578", "JHL6540 Thunderbolt 3 Bridge (C step) [Alpine Ridge 4C]", 3, 4
                        ),
                    ),
                    width=4,
                    window_mib=256,
                    removable=True,
                ),
            ),
            thunderbolt=(("0-1", "Razer", "Core X"),),
        ),
        Machine(
            "laptop",
            "A laptop whose card refuses power limits.",
            (Place("rtx_4070_laptop", "0000:01:00.0", _am5("0000:00:01.1", width=8, generation=4)),),
            vendor="LENOVO",
            product="82WK",
            board_vendor="LENOVO",
            board="LNVNB161216",
            bios_vendor="LENOVO",
            bios_version="KWCN47WW",
            cpu="AMD Ryzen 7 7745HX with Radeon Graphics",
            cpus=16,
        ),
        Machine(
            "vm_2xa40",
            "The guide's rented VM with 2 x A40: firmware is the provider's, root is ours.",
            _A40_PAIR,
            driver="565.57.01",
            cuda="12.7",
            **_VM,
        ),
        Machine(
            "vm_l4",
            "A cloud VM with one L4.",
            (Place("l4", "0000:00:03.0", persistence=True, rebar="hidden", width=8),),
            **{
                **_VM,
                "vendor": "Google",
                "product": "Google Compute Engine",
                "bios_vendor": "Google",
                "bios_version": "Google",
                "bios_date": "10/25/2024",
                "cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz",
            },
        ),
        Machine(
            "vm_hidden_bar",
            "A VM with a 4090 passed through: the guest sees a 256 MB window and no Resizable BAR capability.",
            (Place("rtx_4090", "0000:01:00.0", _qemu("0000:00:02.0"), window_mib=256, rebar="hidden"),),
            **_VM,
        ),
        Machine(
            "hgx_8xh100",
            "A server with 8 x H100 SXM behind PCIe switches.",
            hgx,
            vendor="Dell Inc.",
            product="PowerEdge XE9680",
            board_vendor="Dell Inc.",
            board="0XYZ12",
            bios_vendor="Dell Inc.",
            bios_version="2.4.4",
            cpu="Intel(R) Xeon(R) Platinum 8480+",
            cpu_vendor="GenuineIntel",
            cpus=224,
            memory_gib=2048,
            open_module=True,
            persistenced=True,
        ),
        Machine(
            "pod_4090",
            "A rented pod on a host with four 4090s, one of which is ours: no rights over power, no firmware to see.",
            tuple(
                Place("rtx_4090", f"0000:{bus:02x}:00.0", _am5(f"0000:{bus - 1:02x}:01.1"), unit=n, in_nvml=n == 3)
                for n, bus in enumerate((0x02, 0x22, 0x42, 0x62), start=1)
            ),
            kind="pod",
            init="start.sh",
            nvml={"setters": "nobody"},
            environment={"RUNPOD_POD_ID": "abc123", "RUNPOD_GPU_COUNT": "1", "RUNPOD_TCP_PORT_22": "10022"},
        ),
        Machine(
            "driver_mismatch",
            "A 3090 after a driver upgrade without a reboot: library and kernel module differ.",
            (Place("rtx_3090", "0000:01:00.0", _am5("0000:00:01.1")),),
            driver="570.195.03",
            library="580.95.05",
            nvml={"fault.nvmlInitWithFlags": "18"},
        ),
        Machine(
            "nouveau",
            "A 3090 driven by nouveau: NVIDIA's library is there, its driver is not.",
            (Place("rtx_3090", "0000:01:00.0", _am5("0000:00:01.1"), kernel_driver="nouveau", in_nvml=False),),
            driver="",
            library="580.95.05",
            nvml={"fault.nvmlInitWithFlags": "9"},
        ),
        Machine(
            "no_power_cable",
            "A 3090 without its power cable beside one that works.",
            (
                Place("rtx_3090", "0000:01:00.0", _am5("0000:00:01.1", width=8), nvml={"fault.handle": "8"}),
                Place("rtx_3090", "0000:02:00.0", _am5("0000:00:01.2", width=8), unit=2),
            ),
        ),
        Machine(
            "mixed",
            "An open bench with a 3090, a T4, an A10, an L40S, an A100 and an H200: every class of card at once.",
            tuple(
                Place(gpu, f"0000:{bus:02x}:00.0", _am5(f"0000:{bus - 1:02x}:01.1"))
                for gpu, bus in zip(
                    ("rtx_3090", "t4", "a10", "l40s", "a100_40", "h200"),
                    (0x11, 0x21, 0x31, 0x41, 0x51, 0x61),
                    strict=True,
                )
            ),
            board="Pro WS WRX90E-SAGE SE",
        ),
    ]


MACHINES: dict[str, Machine] = {machine.name: machine for machine in _make()}


def machine(name: str) -> Machine:
    """A named machine; the error lists the names."""
    if name not in MACHINES:
        raise KeyError(f"no machine {name!r}; there are {', '.join(sorted(MACHINES))}")
    return MACHINES[name]
