# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a graphics card is to this collection: plain data, no I/O. (pure)

Power is in milliwatts (as NVML has it), memory in bytes, clocks in MHz, temperatures in degrees Celsius; results for
people (`as_dict`) have watts. None always means 'not known', never zero: `Gpu.unavailable` says why.
A card is named by its UUID or its PCI address; its index changes when cards move and is never identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

READ_BACK_TOLERANCE_MW = 500
"""A limit read back within half a watt of the wanted one counts as equal: some boards store coarser steps than 1 mW."""

ARCHITECTURES = {
    2: "kepler",
    3: "maxwell",
    4: "pascal",
    5: "volta",
    6: "turing",
    7: "ampere",
    8: "ada",
    9: "hopper",
    10: "blackwell",
    13: "rubin",
}
BRANDS = {
    1: "quadro",
    2: "tesla",
    3: "nvs",
    4: "grid",
    5: "geforce",
    6: "titan",
    12: "quadro_rtx",
    13: "nvidia_rtx",
    14: "nvidia",
    15: "geforce_rtx",
    16: "titan_rtx",
}
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
POWER_SOURCES = {0: "ac", 1: "battery", 2: "undersized"}
THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "software_power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal_slowdown",
    0x40: "hardware_thermal_slowdown",
    0x80: "hardware_power_brake",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""NVML's enumerations (nvml.h)."""

CUDA_TOTAL_MIB = {
    "NVIDIA GeForce GTX 1080": 8110,
    "NVIDIA GeForce RTX 3090": 24146,
    "NVIDIA GeForce RTX 3090 Ti": 24114,
    "NVIDIA GeForce RTX 4070 Laptop GPU": 7834,
    "NVIDIA GeForce RTX 4090": 24077,
    "NVIDIA GeForce RTX 5080": 16302,
    "NVIDIA GeForce RTX 5090": 32154,
    "NVIDIA A10": 22600,
    "NVIDIA A10G": 22835,
    "NVIDIA A40": 45517,
    "NVIDIA L4": 22569,
    "NVIDIA L40S": 45466,
    "Tesla T4": 15094,
    "NVIDIA A100-SXM4-40GB": 40438,
    "NVIDIA H100 80GB HBM3": 81234,
    "NVIDIA H200": 143155,
}
"""Total memory as CUDA reports it, from start-up logs of engines (to 0.01 GiB); less than NVML's total.

Sources: vllm-project/vllm issues 10517, 23230, 25970, 30707, 50722; noonghunna/club-3090 issue 1087; llama.cpp's
documentation of fit-params; OCI and EKS guides; vLLM logs of 2 x A40, L4, T4, H200, RTX 4070 laptop and an 8 GB card.
"""
CUDA_TOTAL_TOLERANCE = 0.03
"""A logged total is used only where NVML's total minus reserved is this near: ECC off or another variant is not it."""

_PCI = re.compile(r"^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?$", re.IGNORECASE)
_MIB = 1 << 20


class PciAddressError(ValueError):
    """The text is no PCI address."""


def normalize_pci(text: str) -> str:
    """The address as Linux writes it under /sys, '0000:17:00.0', from any usual spelling.

    Accepts NVML's '00000000:17:00.0', '0000:17:00.0', '17:00.0' and '17:00' in either case.
    Raises PciAddressError otherwise.
    """
    match = _PCI.match(text.strip())
    if not match:
        raise PciAddressError(f"{text!r} is not a PCI address; write it as lspci -D does, for example 0000:17:00.0")
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{int(bus, 16):02x}:{int(device, 16):02x}.{function or '0'}"


def pci_key(address: str) -> tuple[int, ...]:
    """Sort key of a PCI address: the order of CUDA_DEVICE_ORDER=PCI_BUS_ID, also for domains above ffff."""
    return tuple(int(part, 16) for part in re.split(r"[:.]", normalize_pci(address)))


@dataclass(frozen=True)
class Card:
    """One card that answers. `index` is NVML's of this moment, for display only."""

    index: int
    uuid: str
    pci: str
    name: str

    @property
    def label(self) -> str:
        """For messages: 'NVIDIA GeForce RTX 4090 (0000:65:00.0)'."""
        return f"{self.name} ({self.pci})"


def pci_order(cards: Iterable[Card]) -> list[Card]:
    """Cards as CUDA numbers them under CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    return sorted(cards, key=lambda card: pci_key(card.pci))


@dataclass(frozen=True)
class UnreachableCard:
    """A card that the driver counts but cannot hand out; unknown parts are None."""

    reason: str
    message: str
    index: int | None = None
    pci: str | None = None


@dataclass(frozen=True)
class PciFunction:
    """An NVIDIA display or 3D controller as the PCI bus shows it, whatever the driver says."""

    pci: str
    device_id: str
    kernel_driver: str
    numa_node: int | None


@dataclass(frozen=True)
class Unavailable:
    """A reading that a card did not give: `reason` is the error's short name, `message` its plain words."""

    reading: str
    reason: str
    message: str


@dataclass(frozen=True)
class Process:
    """A process on a card; `used_bytes` None where the driver does not tell (it hides other containers' memory)."""

    pid: int
    kind: str
    used_bytes: int | None


@dataclass(frozen=True)
class Power:
    """What a power policy needs, in milliwatts; None where the card has no such reading."""

    limit_mw: int | None = None
    enforced_mw: int | None = None
    default_mw: int | None = None
    min_mw: int | None = None
    max_mw: int | None = None
    persistence: bool | None = None
    usage_mw: int | None = None
    source: str | None = None

    @property
    def has_limits(self) -> bool:
        """Whether the card lets its limit be set at all (laptop cards do not)."""
        return self.min_mw is not None and self.max_mw is not None


@dataclass(frozen=True)
class Memory:
    """`cuda_total_bytes` is what engines can count on; its source is `logged`, `estimated` or None."""

    total_bytes: int | None = None
    reserved_bytes: int | None = None
    used_bytes: int | None = None
    free_bytes: int | None = None
    cuda_total_bytes: int | None = None
    cuda_total_source: str | None = None
    bus_width_bits: int | None = None
    bar1_total_bytes: int | None = None
    bar1_used_bytes: int | None = None
    ecc_enabled: bool | None = None


@dataclass(frozen=True)
class Pcie:
    """`generation_max` is card and machine together, `generation_card_max` the card alone; idle cards drop the
    current generation, never the width."""

    generation_current: int | None = None
    generation_max: int | None = None
    generation_card_max: int | None = None
    width_current: int | None = None
    width_max: int | None = None
    replay_counter: int | None = None


@dataclass(frozen=True)
class Activity:
    """What the card does just now."""

    utilization_gpu_percent: int | None = None
    utilization_memory_percent: int | None = None
    performance_state: int | None = None
    graphics_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    graphics_clock_max_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    throttle_mask: int | None = None
    temperature_c: int | None = None
    temperature_slowdown_c: int | None = None
    temperature_shutdown_c: int | None = None
    fan_percent: int | None = None

    @property
    def throttle_reasons(self) -> list[str] | None:
        """Names of the reasons that hold the clocks down."""
        return None if self.throttle_mask is None else throttle_reasons(self.throttle_mask)


@dataclass(frozen=True)
class Gpu:
    """One card with everything it told."""

    card: Card
    brand: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    serial: str | None = None
    board_part_number: str | None = None
    vbios_version: str | None = None
    minor_number: int | None = None
    compute_mode: str | None = None
    display_active: bool | None = None
    mig_enabled: bool | None = None
    memory: Memory = Memory()
    power: Power = Power()
    pcie: Pcie = Pcie()
    activity: Activity = Activity()
    processes: tuple[Process, ...] | None = None
    unavailable: tuple[Unavailable, ...] = ()

    @property
    def is_lost(self) -> bool:
        """The card left while it was read."""
        return any(missing.reason in UNREACHABLE_REASONS for missing in self.unavailable)


UNREACHABLE_REASONS = ("lost", "reset_required", "insufficient_power", "interrupt_problem")
"""Reasons that concern the whole card and not one reading of it."""


def throttle_reasons(mask: int) -> list[str]:
    """Names of the bits of NVML's clock event reasons; unknown bits as 'bit_0x800'."""
    names = [name for bit, name in THROTTLE_REASONS.items() if mask & bit]
    rest = mask & ~sum(THROTTLE_REASONS)
    return names + [f"bit_{1 << n:#x}" for n in range(rest.bit_length()) if rest >> n & 1]


def cuda_total(name: str, total_bytes: int | None, reserved_bytes: int | None) -> tuple[int | None, str | None]:
    """Memory that CUDA reports as total: (bytes, 'logged' or 'estimated'), (None, None) where it cannot be told.

    The catalogue's logged value where the card's own figures agree with it, else NVML's total minus reserved.
    """
    if total_bytes is None or reserved_bytes is None:
        return None, None
    estimate = total_bytes - reserved_bytes
    logged = CUDA_TOTAL_MIB.get(name, 0) * _MIB
    if logged and abs(logged - estimate) <= CUDA_TOTAL_TOLERANCE * total_bytes:
        return logged, "logged"
    return estimate, "estimated"


def gpu_from_readings(card: Card, values: Mapping[str, Any], missing: Sequence[Unavailable]) -> Gpu:
    """Sort the readings of `Nvml.readings` into a Gpu. Numbers without a known name stay as text ('unknown 99')."""
    cuda_bytes, cuda_source = cuda_total(
        card.name, values.get("memory_total_bytes"), values.get("memory_reserved_bytes")
    )
    processes: tuple[Process, ...] | None = None
    if "compute_processes" in values or "graphics_processes" in values:
        processes = (*values.get("compute_processes", ()), *values.get("graphics_processes", ()))
    return Gpu(
        card=card,
        brand=_name(BRANDS, values.get("brand")),
        architecture=_name(ARCHITECTURES, values.get("architecture")),
        compute_capability=values.get("compute_capability"),
        serial=values.get("serial"),
        board_part_number=values.get("board_part_number"),
        vbios_version=values.get("vbios_version"),
        minor_number=values.get("minor_number"),
        compute_mode=_name(COMPUTE_MODES, values.get("compute_mode")),
        display_active=values.get("display_active"),
        mig_enabled=values.get("mig_enabled"),
        memory=Memory(
            total_bytes=values.get("memory_total_bytes"),
            reserved_bytes=values.get("memory_reserved_bytes"),
            used_bytes=values.get("memory_used_bytes"),
            free_bytes=values.get("memory_free_bytes"),
            cuda_total_bytes=cuda_bytes,
            cuda_total_source=cuda_source,
            bus_width_bits=values.get("memory_bus_width_bits"),
            bar1_total_bytes=values.get("bar1_total_bytes"),
            bar1_used_bytes=values.get("bar1_used_bytes"),
            ecc_enabled=values.get("ecc_enabled"),
        ),
        power=Power(
            limit_mw=values.get("power_limit_mw"),
            enforced_mw=values.get("power_enforced_mw"),
            default_mw=values.get("power_default_mw"),
            min_mw=values.get("power_min_mw"),
            max_mw=values.get("power_max_mw"),
            persistence=values.get("persistence"),
            usage_mw=values.get("power_usage_mw"),
            source=_name(POWER_SOURCES, values.get("power_source")),
        ),
        pcie=Pcie(**{name: values.get(f"pcie_{name}") for name in Pcie.__dataclass_fields__}),
        activity=Activity(**{name: values.get(name) for name in Activity.__dataclass_fields__}),
        processes=processes,
        unavailable=tuple(missing),
    )


def _name(names: Mapping[int, str], number: int | None) -> str | None:
    return None if number is None else names.get(number, f"unknown {number}")


@dataclass(frozen=True)
class Driver:
    """What drives the cards: NVML's words and the kernel's. Empty text: not there or not told."""

    nvml_available: bool
    reason: str = ""
    message: str = ""
    library: str = ""
    library_version: str = ""
    driver_version: str = ""
    cuda_version: str = ""
    kernel_module_version: str = ""
    kernel_module_flavour: str = ""


@dataclass(frozen=True)
class GpuReport:
    """Everything that one look at a host gives. `gpus` are in PCI order, which is CUDA's."""

    driver: Driver
    gpus: tuple[Gpu, ...] = ()
    unreachable: tuple[UnreachableCard, ...] = ()
    pci: tuple[PciFunction, ...] = ()
    findings: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """NVML answered, and no card was out of reach or lost on the way. Unsupported readings do not count."""
        return self.driver.nvml_available and not self.unreachable and not any(gpu.is_lost for gpu in self.gpus)

    @property
    def not_in_nvml(self) -> list[str]:
        """Addresses on the bus that NVML says nothing of: no driver, another driver, or not given to this container."""
        known = {gpu.card.pci for gpu in self.gpus} | {card.pci for card in self.unreachable}
        return [function.pci for function in self.pci if function.pci not in known]


def locate(
    unreachable: Sequence[UnreachableCard], cards: Sequence[Card], on_bus: Iterable[str]
) -> list[UnreachableCard]:
    """Give unreachable cards their PCI address where it can be known.

    NVML numbers cards in PCI order, so index n is the n-th of the addresses bound to the driver, but only if their
    number and the places of all cards that do answer agree with that.
    """
    addresses = sorted(on_bus, key=pci_key)
    fits = len(addresses) == len(cards) + len(unreachable) and all(addresses[card.index] == card.pci for card in cards)
    return [
        UnreachableCard(card.reason, card.message, card.index, addresses[card.index])
        if fits and card.pci is None and card.index is not None
        else card
        for card in unreachable
    ]


# -- for results ------------------------------------------------------------------------------------------------------
def watts(milliwatts: int | None) -> float | None:
    """Milliwatts as watts, None stays None."""
    return None if milliwatts is None else milliwatts / 1000


def gpu_as_dict(gpu: Gpu, cuda_index: int, numa_node: int | None) -> dict[str, Any]:
    """A Gpu for a module's result; power in watts."""
    memory, power, activity = gpu.memory, gpu.power, gpu.activity
    return {
        "index": gpu.card.index,
        "cuda_index": cuda_index,
        "uuid": gpu.card.uuid,
        "pci": gpu.card.pci,
        "name": gpu.card.name,
        "state": "lost" if gpu.is_lost else "ok",
        "brand": gpu.brand,
        "architecture": gpu.architecture,
        "compute_capability": gpu.compute_capability,
        "serial": gpu.serial,
        "board_part_number": gpu.board_part_number,
        "vbios_version": gpu.vbios_version,
        "minor_number": gpu.minor_number,
        "numa_node": numa_node,
        "compute_mode": gpu.compute_mode,
        "display_active": gpu.display_active,
        "mig_enabled": gpu.mig_enabled,
        "memory": {name: getattr(memory, name) for name in Memory.__dataclass_fields__},
        "power": {
            "limit_w": watts(power.limit_mw),
            "enforced_w": watts(power.enforced_mw),
            "default_w": watts(power.default_mw),
            "min_w": watts(power.min_mw),
            "max_w": watts(power.max_mw),
            "usage_w": watts(power.usage_mw),
            "source": power.source,
            "persistence": power.persistence,
            "limit_supported": power.has_limits,
        },
        "pcie": {name: getattr(gpu.pcie, name) for name in Pcie.__dataclass_fields__},
        "clocks": {
            "graphics_mhz": activity.graphics_clock_mhz,
            "graphics_max_mhz": activity.graphics_clock_max_mhz,
            "memory_mhz": activity.memory_clock_mhz,
            "memory_max_mhz": activity.memory_clock_max_mhz,
            "performance_state": activity.performance_state,
            "throttle_mask": activity.throttle_mask,
            "throttle_reasons": activity.throttle_reasons,
        },
        "temperature": {
            "gpu_c": activity.temperature_c,
            "slowdown_c": activity.temperature_slowdown_c,
            "shutdown_c": activity.temperature_shutdown_c,
            "fan_percent": activity.fan_percent,
        },
        "utilization": {
            "gpu_percent": activity.utilization_gpu_percent,
            "memory_percent": activity.utilization_memory_percent,
        },
        "processes": None
        if gpu.processes is None
        else [{"pid": p.pid, "kind": p.kind, "used_bytes": p.used_bytes} for p in gpu.processes],
        "unavailable": {m.reading: {"reason": m.reason, "message": m.message} for m in gpu.unavailable},
    }


def report_as_dict(report: GpuReport) -> dict[str, Any]:
    """A GpuReport for a module's result."""
    numa = {function.pci: function.numa_node for function in report.pci}
    known = set(report.not_in_nvml)
    return {
        "driver": {name: getattr(report.driver, name) for name in Driver.__dataclass_fields__},
        "complete": report.complete,
        "gpus": [gpu_as_dict(gpu, place, numa.get(gpu.card.pci)) for place, gpu in enumerate(report.gpus)],
        "unreachable": [
            {"index": c.index, "pci": c.pci, "reason": c.reason, "message": c.message} for c in report.unreachable
        ],
        "pci_cards": [
            {
                "pci": f.pci,
                "device_id": f.device_id,
                "kernel_driver": f.kernel_driver,
                "numa_node": f.numa_node,
                "in_nvml": f.pci not in known,
            }
            for f in report.pci
        ],
        "findings": list(report.findings),
    }
