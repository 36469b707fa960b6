# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is seen of a host's NVIDIA driver and of what its packages offer: plain data and the parsers of it. (pure)

A version is NVIDIA's own, such as 580.95.05; its branch is the first number. A package's version has more around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

UNKNOWN = "unknown"

OPEN, PROPRIETARY = "open", "proprietary"

# Where driver packages come from.
UBUNTU, NVIDIA, DEBIAN = "ubuntu", "nvidia", "debian"

# First and last PCI device number of a chip's products, and their generation: the code names of pci.ids (GK, GM, GP,
# GV, TU, GA, AD, GH, GB), which NVIDIA gives out in blocks.
_CHIPS = (
    (0x06C0, 0x0FBF, "fermi"),
    (0x0FC0, 0x103F, "kepler"),
    (0x1040, 0x117F, "fermi"),
    (0x1180, 0x12BF, "kepler"),
    (0x1340, 0x15EF, "maxwell"),
    (0x15F0, 0x15FF, "pascal"),
    (0x1600, 0x17FF, "maxwell"),
    (0x1B00, 0x1D7F, "pascal"),
    (0x1D80, 0x1DFF, "volta"),
    (0x1E00, 0x1FFF, "turing"),
    (0x2080, 0x20FF, "ampere"),
    (0x2180, 0x21FF, "turing"),
    (0x2200, 0x22FF, "ampere"),
    (0x2300, 0x23FF, "hopper"),
    (0x2400, 0x25FF, "ampere"),
    (0x2600, 0x28FF, "ada"),
    (0x2900, 0x32FF, "blackwell"),
)


@dataclass(frozen=True)
class DriverCard:
    """An NVIDIA display or 3D controller. `generation` is '' where its device number is not in the table."""

    pci: str
    device_id: str
    generation: str = ""
    name: str = ""
    kernel_driver: str = ""

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.name or f'10de:{self.device_id}'} ({self.pci})"


PASSED_ON = ("vfio-pci", "pciback", "pci-stub")
"""Kernel drivers that hold a card for a virtual machine."""
_DEB_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def own_cards(cards: Iterable[DriverCard]) -> tuple[DriverCard, ...]:
    """The cards that are this host's own to use."""
    return tuple(card for card in cards if card.kernel_driver not in PASSED_ON)


def deb_architectures(machine: str) -> tuple[str, ...]:
    """What Debian calls packages for a machine as the kernel names it; () where that is not known."""
    return (_DEB_ARCHITECTURES[machine], "all") if machine in _DEB_ARCHITECTURES else ()


@dataclass(frozen=True)
class Kernel:
    """An installed kernel. `module`: where its NVIDIA module comes from, 'dkms' or 'packaged', '' for none."""

    release: str
    module: str = ""


@dataclass(frozen=True)
class Offer:
    """One version of a package that apt could install, and the source that has it."""

    package: str
    version: str
    source: str


@dataclass(frozen=True)
class DriverFacts:
    """Everything that the plan depends on.

    secure_boot      'enabled', 'disabled' or 'unknown'
    module_version   of the loaded module; '' where none is loaded
    library_version  of the NVML or CUDA library on disk; '' where there is none
    packages         installed driver packages -> version
    offers           what apt knows of the packages that `driver_packages.names_of_interest` names
    headers_*        packages of kernel headers
    mok_enrolled     the firmware knows the key that DKMS signs with
    """

    distribution: str
    release: str
    arch: str = "x86_64"
    kernel: str = ""
    kernels: tuple[Kernel, ...] = ()
    cards: tuple[DriverCard, ...] = ()
    secure_boot: str = UNKNOWN
    mok_enrolled: bool = False
    module_version: str = ""
    module_flavour: str = ""
    library_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    offers: tuple[Offer, ...] = ()
    headers_installed: frozenset[str] = frozenset()
    headers_offered: frozenset[str] = frozenset()
    can_install_driver: bool = True

    @property
    def running(self) -> Kernel:
        """The running kernel; without a module where its folder is not there."""
        return next((one for one in self.kernels if one.release == self.kernel), Kernel(self.kernel))

    @property
    def next_kernel(self) -> Kernel:
        """The kernel that the boot loader takes next: the newest one."""
        return max(self.kernels, key=lambda one: version_key(one.release), default=self.running)

    @property
    def foreign_driver(self) -> str:
        """The in-tree driver that holds a card and must be out of the way, '' for none."""
        bound = {card.kernel_driver for card in self.cards}
        return next((name for name in ("nouveau", "nova_core") if name in bound), "")


def version_key(version: str) -> tuple[int, ...]:
    """Its numbers, for comparing versions of NVIDIA and releases of kernels."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def upstream(version: str) -> str:
    """NVIDIA's version within a package's: '1:580.95.05-0ubuntu0.24.04.3' gives '580.95.05'; '' where there is none."""
    found = re.match(r"(?:\d+:)?(\d{3}\.\d+(?:\.\d+)?)(?![\d.])", version)
    return found[1] if found else ""


def branch_of(version: str) -> int:
    """580 of '580.95.05' and of a package's version; 0 where there is none."""
    return int((upstream(version) or "0").split(".")[0])


def generation_of(device_id: str) -> str:
    """Generation of a PCI device number in hex without 0x; '' where the table has none, as for cards newer than it."""
    try:
        number = int(device_id, 16)
    except ValueError:
        return ""
    return next((generation for first, last, generation in _CHIPS if first <= number <= last), "")


def parse_module_version(text: str) -> tuple[str, str]:
    """(version, flavour) of /proc/driver/nvidia/version; ('', '') of anything else."""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    if not found:
        return "", ""
    return found[1], OPEN if "Open Kernel Module" in text else PROPRIETARY


def parse_os_release(text: str) -> dict[str, str]:
    """Key -> value of an os-release file."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip().strip("\"'") for key, _equals, value in pairs}


_NO_PART = re.compile(
    r"nvidia-(container-|ctk|docker|driver-pinning|cuda-|cudnn|prime|settings).*|libnvidia-container.*|python3?-.*|"
    r"linux-(?!(modules|objects|signatures)-nvidia-).*"
)


def is_driver_package(name: str) -> bool:
    """Whether a package is part of a driver: not the container toolkit, not CUDA, not NVIDIA's flavour of a kernel."""
    named = "nvidia" in name or name in {"libcuda1", "libnvcuvid1"} or name.startswith("cuda-drivers")
    return named and not _NO_PART.fullmatch(name)


def parse_dpkg_status(text: str, architectures: Sequence[str] = ()) -> tuple[dict[str, str], list[str], set[str]]:
    """Of dpkg's status file: (driver packages -> version, those on hold, installed packages of kernel headers).

    Packages of other architectures are left out; () takes all.
    """
    packages, held, headers = {}, [], set()
    for paragraph in re.split(r"\n\n+", text):
        head = dict(re.findall(r"(?m)^(Package|Status|Version|Architecture): (.+)$", paragraph))
        name, status = head.get("Package", ""), head.get("Status", "").split()
        foreign = bool(architectures) and head.get("Architecture", "all") not in architectures
        if status[-1:] != ["installed"] or foreign:
            continue
        if name.startswith("linux-headers-"):
            headers.add(name)
        if is_driver_package(name):
            packages[name] = head.get("Version", "")
            if status[0] == "hold":
                held.append(name)
    return packages, held, headers


def source_of(line: str, distribution: str) -> str:
    """Which source a line of an apt version table names: NVIDIA's repository has this path also behind a mirror."""
    if "/compute/cuda/repos/" in line:
        return NVIDIA
    return UBUNTU if distribution == "ubuntu" else DEBIAN


def parse_policy(text: str, distribution: str) -> list[Offer]:
    """What `apt-cache policy NAMES...` says can be installed, newest version of a package first.

    A version that only dpkg's own status file knows is not offered by anybody.
    """
    offers, package, version = [], "", ""
    for line in text.splitlines():
        name = re.fullmatch(r"(\S+):", line)
        entry = re.fullmatch(r" (?:\*\*\*|   ) (\S+)(?: \d+)?", line)
        place = re.fullmatch(r"\s{8,}-?\d+ (\S+://?\S*|\S+:/\S*) .*Packages", line)
        if name:
            package, version = name[1], ""
        elif entry:
            version = entry[1]
        elif place and version:
            offer = Offer(package, version, source_of(place[1], distribution))
            if offer not in offers:
                offers.append(offer)
    return offers


def library_versions(names: Iterable[str]) -> str:
    """The newest version that file names such as libnvidia-ml.so.580.95.05 carry; '' for none."""
    found = [match[1] for name in names if (match := re.search(r"\.so\.(\d{3}(?:\.\d+)+)$", name))]
    return max(found, key=version_key, default="")
