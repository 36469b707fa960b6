# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What apt would do, from the text of `apt-get -s install`, and whether a driver may be installed that way. (pure)"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .driver_facts import OPEN, PROPRIETARY, branch_of, is_driver_package, upstream, version_key

_STEP = re.compile(r"(Inst|Remv|Purg) (\S+)(?: \[([^\]]+)\])?(?: \((\S+)[^)]*\))?")
# Packages that bring a kernel: images, their modules and the metas that follow them, by Debian, Ubuntu and Proxmox.
_KERNEL = re.compile(
    r"linux-(image|signed-image|main-modules)-.*|linux-modules(-extra|-ipu)?-(?!nvidia).*|"
    r"linux-(generic|virtual|lowlatency|aws|azure|gcp|oracle|oem|nvidia|kvm)(-.*)?|"
    r"(proxmox|pve)-(kernel|default-kernel)(-.*)?"
)
_BRANCH_IN_NAME = re.compile(r"-(\d{3})(?:-server)?(?:-open)?(?:-|$)")


@dataclass(frozen=True)
class Step:
    """One package: `old` '' where it is not installed, `new` '' where it goes."""

    package: str
    old: str = ""
    new: str = ""


@dataclass(frozen=True)
class Wanted:
    """What the driver that is to be installed is: 580, 'open' or 'proprietary', '580.95.05' or '' where any will do."""

    branch: int
    flavour: str
    version: str = ""


def parse_simulation(text: str) -> list[Step]:
    """The steps of `apt-get --simulate`, in its order; lines of anything else are left out."""
    steps = []
    for line in text.splitlines():
        found = _STEP.match(line)
        if found:
            verb, package, old, new = found.groups()
            steps.append(Step(package.split(":")[0], old or "", "" if verb != "Inst" else new or ""))
    return steps


def complaint(text: str) -> str:
    """Why apt gave up, on one line: the dependencies that it could not meet, else its errors."""
    unmet = re.search(r"unmet dependencies:\n(.*?)\n(?:E|N): ", text, re.DOTALL)
    errors = "\n".join(re.findall(r"(?m)^E: .*$", text)) or text[-500:]
    return " ".join((unmet[1] if unmet else errors).split())


def is_kernel(package: str) -> bool:
    """Whether a package is or brings a kernel; the driver's own modules and headers are not."""
    return _KERNEL.fullmatch(package) is not None


def module_flavour_of(package: str) -> str:
    """'open' or 'proprietary' for a package that brings the driver's kernel module, '' for any other."""
    if re.fullmatch(r"nvidia-(kernel-open|open-kernel)-dkms", package):
        return OPEN
    if package == "nvidia-kernel-dkms":
        return PROPRIETARY
    if re.match(r"(nvidia-dkms|linux-modules-nvidia)(-|$)", package):
        return OPEN if re.search(r"-open(-|$)", package) else PROPRIETARY
    return ""


def judge(steps: list[Step], wanted: Wanted) -> list[str]:
    """Everything that speaks against this transaction, each with its package; [] where it may go ahead."""
    problems = []
    for step in steps:
        if step.new and is_kernel(step.package):
            problems.append(f"{step.package} {step.new} is a kernel, and the driver may bring none")
        if not is_driver_package(step.package):
            problems += _unrelated(step)
        elif step.new:
            problems += _driver(step, wanted)
    modules = {
        upstream(step.new) for step in steps if step.new and module_flavour_of(step.package) and upstream(step.new)
    }
    libraries = {
        upstream(step.new)
        for step in steps
        if step.new and re.match(r"(libnvidia-(compute|ml1)|libcuda1)(-|$)", step.package)
    }
    if modules and libraries and modules != libraries:
        problems.append(
            f"the module would be {', '.join(sorted(modules))} and the libraries {', '.join(sorted(libraries))}: "
            "such a pair does not work"
        )
    return problems


def _unrelated(step: Step) -> list[str]:
    if not step.new:
        return [] if step.package.startswith("nvidia-driver-pinning") else [f"{step.package} would be removed"]
    if step.old and version_key(step.new) < version_key(step.old):
        return [f"{step.package} would go back from {step.old} to {step.new}"]
    return []


def _driver(step: Step, wanted: Wanted) -> list[str]:
    named = _BRANCH_IN_NAME.search(step.package)
    name_branch = int(named[1]) if named else 0
    real = branch_of(step.new)
    problems = []
    if real and real != wanted.branch:
        turned = f": the package of R{name_branch} has become transitional" if name_branch == wanted.branch else ""
        problems.append(f"{step.package} {step.new} is of branch R{real}, needed R{wanted.branch}{turned}")
    elif name_branch and name_branch != wanted.branch:
        problems.append(f"{step.package} {step.new} is of branch R{name_branch}, needed R{wanted.branch}")
    elif wanted.version and module_flavour_of(step.package) and real and upstream(step.new) != wanted.version:
        problems.append(f"{step.package} would be {upstream(step.new)}, needed {wanted.version}")
    flavour = module_flavour_of(step.package)
    if flavour and flavour != wanted.flavour:
        problems.append(f"{step.package} is the {flavour} module, needed the {wanted.flavour} one")
    return problems
