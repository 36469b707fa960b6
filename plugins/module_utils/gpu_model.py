# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a graphics card is to this collection: plain data, no I/O.

Power is in milliwatts (as NVML has it), memory in bytes, clocks in MHz, temperatures in degrees Celsius.
A card is named by its UUID or its PCI address; its index changes when cards move and is never identity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

READ_BACK_TOLERANCE_MW = 500
"""A limit read back within half a watt of the wanted one counts as equal: some boards store coarser steps than 1 mW."""

_PCI = re.compile(r"^(?:([0-9a-f]{1,8}):)?([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.([0-7]))?$", re.IGNORECASE)


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


@dataclass(frozen=True)
class UnreachableCard:
    """A card that the driver counts or the PCI bus shows, but that cannot be used; unknown parts are None."""

    reason: str
    message: str
    index: int | None = None
    pci: str | None = None


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
