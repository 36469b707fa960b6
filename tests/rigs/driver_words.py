# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver plan of every named machine in words, for a person to check: each with vLLM on its cards.

`python -m ansible_collections.gpurig.llm.tests.rigs.driver_words` prints them; tests/unit/golden/driver_plans.txt keeps
them.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace

from ...plugins.module_utils.driver_choice import PRESENT, Wish
from ...plugins.module_utils.driver_facts import (
    OPEN,
    PROPRIETARY,
    DriverCard,
    DriverFacts,
    Kernel,
    Offer,
    generation_of,
)
from ...plugins.module_utils.driver_packages import header_metas
from ...plugins.module_utils.driver_plan import in_words, needs_of, plan
from .machines import MACHINES, Machine

CHAT = {"name": "chat", "engine": "vllm", "device": "cuda"}
OFFERED = "580.159.03-0ubuntu0.24.04.1"


def offers(kernel: str) -> tuple[Offer, ...]:
    """Ubuntu 24.04 as its package pages showed it in November 2026, R580 only."""
    found = [
        Offer("nvidia-utils-580-server", OFFERED, "ubuntu"),
        Offer("nvidia-compute-utils-580-server", OFFERED, "ubuntu"),
    ]
    for dash in ("", "-open"):
        found += [
            Offer(f"{name}-580-server{dash}", OFFERED, "ubuntu") for name in ("nvidia-dkms", "nvidia-headless-no-dkms")
        ]
        abi = "-".join(kernel.split("-")[:2])
        found.append(Offer(f"linux-modules-nvidia-580-server{dash}-{kernel}", f"{abi}.1", "ubuntu"))
        found.append(Offer(f"linux-modules-nvidia-580-server{dash}-generic", f"{abi}.1", "ubuntu"))
    return tuple(found)


def facts_of(machine: Machine) -> DriverFacts:
    """The machine as an Ubuntu 24.04 whose driver came from Ubuntu's packages."""
    branch = machine.driver.split(".")[0]
    installed = machine.library or machine.driver
    dash = "-open" if machine.open_module else ""
    packages = {f"nvidia-dkms-{branch or '580'}-server{dash}": f"{installed}-0ubuntu0.24.04.1"} if installed else {}
    return DriverFacts(
        distribution="ubuntu",
        release="24.04",
        kernel=machine.kernel,
        kernels=(Kernel(machine.kernel, "dkms" if installed else ""),),
        cards=tuple(
            DriverCard(
                place.pci,
                place.model.pci_device.lower(),
                generation_of(place.model.pci_device),
                place.model.name,
                place.kernel_driver,
            )
            for place in machine.places
        ),
        secure_boot={None: "disabled", True: "enabled", False: "disabled"}[machine.secure_boot],
        module_version=machine.driver,
        module_flavour=(OPEN if machine.open_module else PROPRIETARY) if machine.driver else "",
        library_version=installed,
        packages={} if machine.is_container else packages,
        offers=offers(machine.kernel),
        headers_offered=frozenset(
            [f"linux-headers-{machine.kernel}", *header_metas("ubuntu", "24.04", machine.kernel)]
        ),
        can_install_driver=not machine.is_container,
    )


def words() -> str:
    """For each machine: the plan as it stands, and where a driver may be installed, the plan for it without any."""
    lines = []
    for machine in MACHINES.values():
        facts = facts_of(machine)
        wish = Wish(PRESENT, needs=needs_of([CHAT], facts.cards, has_driver=True))
        lines += [f"{machine.name}: {machine.story}", textwrap.indent(in_words(plan(facts, wish)), "    ")]
        if facts.can_install_driver:
            bare = replace(facts, module_version="", module_flavour="", library_version="", packages={})
            lines += ["  Without a driver:", textwrap.indent(in_words(plan(bare, wish)), "    ")]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(words())
