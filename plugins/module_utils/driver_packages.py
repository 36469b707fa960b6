# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Branches and generations of NVIDIA's drivers, and how each source of packages names what belongs to one. (pure)

Which branch serves what and until when: NVIDIA's driver installation guide and its list of supported branches, as of
2026-11. Names: the package pages of Ubuntu and Debian, NVIDIA's guide for its own repositories.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .driver_facts import DEBIAN, NVIDIA, OPEN, PROPRIETARY, UBUNTU, branch_of

DKMS, SIGNED = "dkms", "signed"


@dataclass(frozen=True)
class Branch:
    """`automatic`: taken where nobody names one. `state` completes the sentence 'R580 is ...'."""

    number: int
    state: str
    automatic: bool = False


BRANCHES = {
    branch.number: branch
    for branch in (
        Branch(535, "the old long-term branch, which NVIDIA ended in June 2026"),
        Branch(550, "an ended branch"),
        Branch(570, "an ended branch"),
        Branch(580, "the long-term branch, kept until June 2028", automatic=True),
        Branch(590, "an ended branch"),
        Branch(595, "the production branch, kept until March 2027", automatic=True),
        Branch(610, "a feature branch, which ended in August 2026"),
        Branch(615, "a newer branch, whose end is not known"),
        Branch(620, "a newer branch, whose end is not known"),
    )
}
DEBIANS_OWN = {"12": 535, "13": 550}
"""The branch in Debian's own non-free, by release."""
NO_PROPRIETARY_FROM = 620
"""From this branch on there are only the open modules."""
OPEN_PREFERRED_FROM = 560
"""From this branch on NVIDIA suggests the open modules wherever they run."""


@dataclass(frozen=True)
class Generation:
    """First and last branch that drive it, `last` 0 where none is; and the kernel modules that do."""

    first: int
    last: int
    flavours: frozenset[str]


_OLD, _BOTH = frozenset({PROPRIETARY}), frozenset({OPEN, PROPRIETARY})
GENERATIONS = {
    "fermi": Generation(0, 390, _OLD),
    "kepler": Generation(0, 470, _OLD),
    "maxwell": Generation(0, 580, _OLD),
    "pascal": Generation(0, 580, _OLD),
    "volta": Generation(0, 580, _OLD),
    "turing": Generation(515, 0, _BOTH),
    "ampere": Generation(515, 0, _BOTH),
    "ada": Generation(525, 0, _BOTH),
    "hopper": Generation(525, 0, _BOTH),
    "blackwell": Generation(570, 0, frozenset({OPEN})),
}
OLDER_THAN_TURING = tuple(name for name, generation in GENERATIONS.items() if OPEN not in generation.flavours)
NEWER_THAN_KNOWN = Generation(0, 0, frozenset({OPEN}))
"""A card that the table does not name is newer than it."""

ENGINE_FLOORS = {"vllm": 580, "ollama": 550, "llama_cpp": 525}
"""Lowest branch an engine starts on: vLLM's wheel is built for CUDA 13, Ollama's documentation says 550, builds of
llama.cpp are for CUDA 12 (NVIDIA's table of CUDA compatibility)."""
OLLAMA_ON_OLD_CARDS = 570
"""Ollama on compute capability 5.0 to 6.2, by its documentation."""


@dataclass(frozen=True)
class PackageSet:
    """`leader` tells the driver's version; `optional` is taken where it is offered; `pinning` is installed first.

    `desktop` brings what shows a desktop, for hosts whose driver has that today.
    """

    leader: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    pinning: str = ""
    desktop: str = ""


def server_kind(branch: int, flavour: str) -> str:
    """'580-server-open': how Ubuntu names a data-centre driver and its flavour."""
    return f"{branch}-server{'-open' if flavour == OPEN else ''}"


def package_set(source: str, distribution: str, branch: int, flavour: str, modules: str, kernel: str) -> PackageSet:
    """What has to be installed for computing, without a desktop."""
    dash_open = "-open" if flavour == OPEN else ""
    if source == UBUNTU:
        kind = server_kind(branch, flavour)
        module = f"nvidia-dkms-{kind}" if modules == DKMS else f"linux-modules-nvidia-{kind}-{kernel}"
        leader = f"nvidia-headless-no-dkms-{kind}"
        named = (module, leader, f"nvidia-utils-{branch}-server")
        return PackageSet(leader, named, (f"nvidia-compute-utils-{branch}-server",), desktop=f"nvidia-driver-{kind}")
    if source == DEBIAN:
        module = "nvidia-open-kernel-dkms" if flavour == OPEN else "nvidia-kernel-dkms"
        return PackageSet(module, (module, "libcuda1", "nvidia-smi"), ("nvidia-persistenced",), desktop="nvidia-driver")
    pinning = f"nvidia-driver-pinning-{branch}"
    if distribution == "debian":
        module = "nvidia-kernel-open-dkms" if flavour == OPEN else "nvidia-kernel-dkms"
        return PackageSet(module, (module, "nvidia-driver-cuda"), ("nvidia-persistenced",), pinning, "nvidia-driver")
    if branch < 590:
        module = f"nvidia-dkms-{branch}{dash_open}"
        named = (module, f"libnvidia-compute-{branch}", f"nvidia-utils-{branch}")
        optional = (f"nvidia-compute-utils-{branch}", "nvidia-persistenced")
        return PackageSet(module, named, optional, pinning, f"libnvidia-gl-{branch}")
    module = f"nvidia-dkms{dash_open}"
    return PackageSet(
        module, (module, "libnvidia-compute"), ("nvidia-utils", "nvidia-persistenced"), pinning, "libnvidia-gl"
    )


def kernel_flavour(kernel: str) -> str:
    """'generic' of '6.8.0-49-generic', 'cloud-amd64' of '6.1.0-50-cloud-amd64', 'amd64' of '6.12.38+deb13-amd64'."""
    found = re.search(r"-((?:[a-z]+-)*[a-z][a-z0-9]*)$", kernel)
    return found[1] if found else ""


def header_metas(distribution: str, release: str, kernel: str) -> tuple[str, ...]:
    """Packages that bring the headers of kernels to come, the fitting one first."""
    flavour = kernel_flavour(kernel)
    if distribution != "ubuntu":
        return (f"linux-headers-{flavour}",) if flavour else ()
    with_kernel = {"22.04": "5.15.", "24.04": "6.8.", "26.04": "7.0."}.get(release, "")
    hwe = f"linux-headers-{flavour}-hwe-{release}"
    plain = f"linux-headers-{flavour}"
    return (plain,) if with_kernel and kernel.startswith(with_kernel) else (hwe, plain)


def module_metas(distribution: str, release: str, branch: int, flavour: str, kernel: str) -> tuple[str, ...]:
    """Ubuntu's packages that bring signed modules for kernels to come, the fitting one first."""
    return tuple(
        name.replace("linux-headers-", f"linux-modules-nvidia-{server_kind(branch, flavour)}-")
        for name in header_metas(distribution, release, kernel)
    )


def names_of_interest(distribution: str, release: str, kernel: str) -> list[str]:
    """Every package that a plan may name, to ask apt for all of them at once."""
    sources = (UBUNTU, NVIDIA) if distribution == "ubuntu" else (DEBIAN, NVIDIA)
    names = {f"linux-headers-{kernel}", *header_metas(distribution, release, kernel)}
    for branch in BRANCHES:
        for flavour in (OPEN, PROPRIETARY):
            if distribution == "ubuntu":
                names.update(module_metas(distribution, release, branch, flavour, kernel))
            for source in sources:
                for modules in (DKMS, SIGNED):
                    found = package_set(source, distribution, branch, flavour, modules, kernel)
                    names.update((*found.required, *found.optional, *filter(None, [found.pinning, found.desktop])))
    return sorted(names)


KEPT, MOVED = 999, 1001


def pin_text(version: str, priority: int = KEPT) -> str:
    """apt's preferences that keep a driver at one version; what is of another version is left to apt.

    Below 1000 apt never goes back to it from a version that somebody installed by hand; only MOVED, while the role
    installs, lets dependencies go back too. The rest of the branch stands below, as NVIDIA's pinning package would
    put it at 1000; of two records apt takes the one of the first file. The names fit the whole family; the container
    toolkit and the kernel's own packages have other versions, so they keep their updates.
    """
    names = "Package: *nvidia* libcuda1 libnvcuvid1 cuda-drivers*\n"
    rest = f"\n{names}Pin: version {branch_of(version)}.*\nPin-Priority: {KEPT - 1}\n" if priority == KEPT else ""
    return (
        "# Written by the role gpurig.llm.nvidia_driver. The next run writes it again: changes made here are lost.\n"
        f"# Keeps the NVIDIA driver at {version}; rig_driver: {{state: latest}} moves it.\n"
        f"{names}Pin: version {version}*\nPin-Priority: {priority}\n{rest}"
    )


BLACKLIST = (
    "# Written by the role gpurig.llm.nvidia_driver. The next run writes it again: changes made here are lost.\n"
    "# The kernel's own drivers would take the cards at boot, before NVIDIA's can.\n"
    "blacklist nouveau\nblacklist nova_core\noptions nouveau modeset=0\n"
)
