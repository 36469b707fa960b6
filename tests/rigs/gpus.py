# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of graphics cards (gpus.yml) as objects; `sources` tells where each figure comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CATALOGUE = Path(__file__).with_name("gpus.yml")
BUSY_WHEN_IDLE = ("a100_40", "h100", "h200")
"""These stay in P0 at full link speed when idle (as their captures show); the others drop to P8 and generation 1."""


@dataclass(frozen=True)
class Gpu:
    """One model of card. MiB, watts, MHz, degrees Celsius; None: the card has no such reading."""

    key: str
    name: str
    chip: str
    pci_device: str
    subsystem: str
    audio_device: str | None
    audio_chip: str | None
    compute_capability: str
    architecture: int
    brand: int
    memory_total_mib: int
    memory_reserved_mib: int
    cuda_total_mib: int
    memory_bus_width_bits: int
    cores: int
    power_min_w: float | None
    power_default_w: float | None
    power_max_w: float | None
    idle_power_w: float
    power_source: int | None
    pcie_generation: int
    pcie_width: int
    bar0_mib: int
    window_bar: int
    window_mib: int
    has_io_bar: bool
    resizable_mib: list[int]
    vbios: str
    board_part_number: str | None
    clock_graphics_max_mhz: int
    clock_memory_max_mhz: int
    temperature_shutdown_c: int | None
    temperature_slowdown_c: int | None
    fan: bool
    ecc: bool | None
    mig: bool | None
    sources: dict[str, str]

    @property
    def is_display(self) -> bool:
        """Display cards are PCI class 0300 with an I/O BAR and an audio function, data-centre cards 0302."""
        return self.has_io_bar

    @property
    def idles_at_full_speed(self) -> bool:
        """Whether power state and link stay up without load."""
        return self.key in BUSY_WHEN_IDLE


@cache
def catalogue() -> dict[str, Gpu]:
    """All cards by key. Raises ValueError on a figure that is missing, given twice, or without a known source."""
    data = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {key: _gpu(key, groups, data["sources"]) for key, groups in data["gpus"].items()}


def _gpu(key: str, groups: list[dict[str, Any]], sources: dict[str, str]) -> Gpu:
    figures: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for group in groups:
        source = sources[group["source"]]
        for name, value in group.items():
            if name == "source":
                continue
            if name in figures:
                raise ValueError(f"{CATALOGUE.name}: {key}.{name} is given twice")
            figures[name] = value
            origin[name] = source
    wanted = {field.name for field in fields(Gpu)} - {"key", "sources"}
    if set(figures) != wanted:
        raise ValueError(f"{CATALOGUE.name}: {key} lacks or does not know {sorted(set(figures) ^ wanted)}")
    return Gpu(key=key, sources=origin, **figures)
