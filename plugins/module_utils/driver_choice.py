# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which branch, kernel module, source and packages serve a host's cards and engines, and why. (pure)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .apt_transaction import module_flavour_of
from .driver_facts import (
    DEBIAN,
    NVIDIA,
    OPEN,
    PROPRIETARY,
    UBUNTU,
    DriverCard,
    DriverFacts,
    branch_of,
    upstream,
    version_key,
)
from .driver_packages import (
    BRANCHES,
    DEBIANS_OWN,
    DKMS,
    GENERATIONS,
    NEWER_THAN_KNOWN,
    NO_PROPRIETARY_FROM,
    OPEN_PREFERRED_FROM,
    SIGNED,
    PackageSet,
    header_metas,
    module_metas,
    package_set,
    server_kind,
)

GIVEN, PRESENT, LATEST = "given", "present", "latest"
STATES, SOURCES, MODULES = (GIVEN, PRESENT, LATEST), ("auto", UBUNTU, NVIDIA, DEBIAN), ("auto", DKMS, SIGNED)
# The key that DKMS signs with, and how it is made, as dkms itself does (dkms 3.0.10, prepare_signing).
_MAKE_KEY = (
    "sudo openssl req -new -x509 -nodes -days 36500 -subj '/CN=DKMS module signing key' -newkey rsa:2048 "
    "-keyout /var/lib/dkms/mok.key -outform DER -out /var/lib/dkms/mok.pub"
)
_MOK = {
    "debian": ("sudo apt install dkms mokutil openssl", _MAKE_KEY, "/var/lib/dkms/mok.pub"),
    "ubuntu": (
        "sudo apt install dkms mokutil",
        "sudo update-secureboot-policy --new-key",
        "/var/lib/shim-signed/mok/MOK.der",
    ),
}
_DESKTOP_PARTS = ("libnvidia-gl", "xserver-xorg-video-nvidia", "libgl1-nvidia", "libglx-nvidia", "nvidia-driver-libs")
_WHERE = {UBUNTU: "Ubuntu's own packages", DEBIAN: "Debian's own packages", NVIDIA: "NVIDIA's repository"}
_ABSENT = {
    UBUNTU: "Enable the component restricted and run apt update.",
    DEBIAN: "Add contrib non-free non-free-firmware to Debian's line in apt's sources and run apt update.",
    NVIDIA: "Run apt update, or name another branch.",
}


@dataclass(frozen=True)
class Need:
    """An instance that runs on cards, and the lowest branch that its engine starts on."""

    name: str
    engine: str
    floor: int


@dataclass(frozen=True)
class Wish:
    """What the inventory asks for.

    state    'given': the driver is judged and left; 'present': one that fits; 'latest': the newest of its branch
    source   'auto', 'ubuntu', 'nvidia' or 'debian'
    branch   0 for the one that the plan chooses
    modules  'auto', 'dkms' (built here for each kernel) or 'signed' (Ubuntu's, built and signed by Canonical)
    """

    state: str = GIVEN
    source: str = "auto"
    branch: int = 0
    modules: str = "auto"
    needs: tuple[Need, ...] = ()

    @property
    def floor(self) -> int:
        """The lowest branch that all engines start on; 0 where none needs a driver."""
        return max((need.floor for need in self.needs), default=0)


@dataclass(frozen=True)
class Limits:
    """What the cards leave open: branches first..last (`last` 0: no end) and kernel modules."""

    first: int
    last: int
    flavours: frozenset[str]
    problems: tuple[str, ...]

    def fits(self, branch: int) -> bool:
        """Whether the branch drives every card."""
        return branch >= self.first and (not self.last or branch <= self.last)

    def flavour_for(self, branch: int) -> str:
        """The kernel module to take, '' where this branch has none for these cards."""
        usable = self.flavours - ({PROPRIETARY} if branch >= NO_PROPRIETARY_FROM else set())
        order = (OPEN, PROPRIETARY) if branch >= OPEN_PREFERRED_FROM else (PROPRIETARY, OPEN)
        return next((flavour for flavour in order if flavour in usable), "")


@dataclass(frozen=True)
class Choice:
    """What to install. `version` is '' where the repository has to be added first; `extras`: beside the set."""

    source: str
    branch: int
    flavour: str
    modules: str
    names: PackageSet
    version: str = ""
    extras: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class NotThisWayError(Exception):
    """A source or branch cannot serve; each line of the text says why and what would help."""


def limits_of(cards: Sequence[DriverCard]) -> Limits:
    """What the cards of a host leave open together, with a problem for each pair that excludes each other."""
    known = [(card, GENERATIONS.get(card.generation, NEWER_THAN_KNOWN)) for card in cards]
    first_card, first = max(known, key=lambda pair: pair[1].first)
    ending = [(card, generation) for card, generation in known if generation.last]
    last_card, last = min(ending, key=lambda pair: pair[1].last, default=(first_card, first))
    flavours = frozenset({OPEN, PROPRIETARY}).intersection(*(generation.flavours for _card, generation in known))
    problems = []
    if last.last and last.last < min(BRANCHES):
        problems.append(
            f"{last_card.label} is of generation {last_card.generation}: its last branch is R{last.last}, which gets "
            "no fixes and which no engine here starts on. Take the card out, or leave this host to the processor "
            "(device: cpu)."
        )
    elif not flavours:
        old = next(card for card, generation in known if OPEN not in generation.flavours)
        new = next(card for card, generation in known if PROPRIETARY not in generation.flavours)
        problems.append(
            f"No driver serves both {old.label} ({old.generation}), which only the proprietary kernel module drives, "
            f"and {new.label} ({new.generation or 'newer than this table'}), which only the open one drives; a host "
            "has one module. Take one of the cards out, or give each its own host."
        )
    return Limits(first.first, last.last, flavours, tuple(problems))


def mok_steps(distribution: str) -> tuple[str, ...]:
    """What a person does so that the firmware trusts modules that are built on this host."""
    packages, make, key = _MOK[distribution]
    return (
        packages,
        make,
        f"sudo mokutil --import {key}, and choose a password",
        "sudo reboot",
        "at the machine's own screen: Enroll MOK, Continue, Yes, that password, Reboot",
        "run this playbook again",
    )


def offered(facts: DriverFacts, package: str, source: str) -> list[str]:
    """Versions of a package that a source has."""
    return [offer.version for offer in facts.offers if offer.package == package and offer.source == source]


def knows_nvidia(facts: DriverFacts) -> bool:
    """Whether apt has NVIDIA's repository."""
    return any(offer.source == NVIDIA for offer in facts.offers)


def disk_version(facts: DriverFacts) -> str:
    """The installed driver's version: its library's, else that of its newest module package."""
    packaged = [upstream(version) for name, version in facts.packages.items() if module_flavour_of(name)]
    return facts.library_version or max(filter(None, packaged), key=version_key, default="")


def installed_source(facts: DriverFacts) -> str:
    """Where the installed driver's packages came from, '' where that cannot be told.

    By names that NVIDIA's repository alone has, by who offers these versions, else by who has packages of these names:
    an archive drops a version when the next one comes.
    """
    if {"nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-dkms-open"} & set(facts.packages):
        return NVIDIA
    named = [offer for offer in facts.offers if offer.package in facts.packages]
    exact = {offer.source for offer in named if offer.version == facts.packages[offer.package]}
    sources = exact or {offer.source for offer in named}
    return sources.pop() if len(sources) == 1 else ""


def choose(facts: DriverFacts, wish: Wish, limits: Limits) -> Choice:
    """The first source and branch that serve. NotThisWayError has a line for each that does not."""
    own = UBUNTU if facts.distribution == "ubuntu" else DEBIAN
    if wish.source not in ("auto", own, NVIDIA):
        raise NotThisWayError(f"rig_driver.source: found {wish.source}, and this host is {facts.distribution}.")
    order = [wish.source] if wish.source != "auto" else [installed_source(facts), own, NVIDIA]
    refused: list[str] = []
    for source in dict.fromkeys(source for source in order if source in (own, NVIDIA)):
        for branch in _branches(facts, wish, limits, source):
            found = _attempt(facts, wish, limits, source, branch)
            if isinstance(found, Choice):
                return replace(found, reasons=_reasons(facts, wish, limits, found, refused))
            refused.append(found)
    raise NotThisWayError("\n".join(dict.fromkeys(refused)))


def _attempt(facts: DriverFacts, wish: Wish, limits: Limits, source: str, branch: int) -> Choice | str:
    try:
        return _try(facts, wish, limits, source, branch)
    except NotThisWayError as error:
        return f"{_WHERE[source]}: {error}"


def _branches(facts: DriverFacts, wish: Wish, limits: Limits, source: str) -> list[int]:
    """Which to try: the one asked for, else first the one that is there if it fits."""
    if wish.branch:
        return [wish.branch]
    if source == DEBIAN:
        return [DEBIANS_OWN[facts.release]]
    present = branch_of(disk_version(facts))
    stays = installed_source(facts) in ("", source) and wish.floor <= present and limits.fits(present)
    keep = [present] if facts.packages and stays else []
    return list(dict.fromkeys([*keep, *(number for number, branch in BRANCHES.items() if branch.automatic)]))


def _try(facts: DriverFacts, wish: Wish, limits: Limits, source: str, branch: int) -> Choice:
    if branch < wish.floor:
        worst = max(wish.needs, key=lambda need: need.floor)
        raise NotThisWayError(f"R{branch} is below R{worst.floor}, which {worst.engine} ({worst.name}) needs.")
    if not limits.fits(branch):
        bound = f"end with R{limits.last}" if limits.last and branch > limits.last else f"begin with R{limits.first}"
        raise NotThisWayError(f"the drivers of the cards here {bound}, so R{branch} does not drive them all.")
    flavour = limits.flavour_for(branch)
    modules = _modules(facts, wish, source, branch, flavour)
    names = package_set(source, facts.distribution, branch, flavour, modules, facts.kernel)
    choice = replace(
        Choice(source, branch, flavour, modules, names),
        version=_version(facts, source, branch, names),
    )
    return _with_extras(facts, choice)


def _version(facts: DriverFacts, source: str, branch: int, names: PackageSet) -> str:
    """NVIDIA's version of the newest offer of the branch; '' where the repository is not known yet."""
    if source == NVIDIA and not knows_nvidia(facts):
        return ""
    versions = offered(facts, names.leader, source)
    fitting = [upstream(version) for version in versions if branch_of(version) == branch]
    if not fitting and versions:
        raise NotThisWayError(
            f"{names.leader} is now {versions[0]}, of branch R{branch_of(versions[0])}: it has become transitional, "
            f"and R{branch} is gone there."
        )
    if not fitting:
        raise NotThisWayError(f"apt knows no {names.leader} of R{branch}. {_ABSENT[source]}")
    return max(fitting, key=version_key)


def _modules(facts: DriverFacts, wish: Wish, source: str, branch: int, flavour: str) -> str:
    """'signed' or 'dkms'. Under Secure Boot only what the firmware trusts is of any use."""
    locked = facts.secure_boot == "enabled" and not facts.mok_enrolled
    if source != UBUNTU and wish.modules == SIGNED:
        raise NotThisWayError("it has no signed modules; only Ubuntu has. Write rig_driver.modules: auto.")
    if locked and (source != UBUNTU or wish.modules == DKMS):
        raise NotThisWayError(
            "Secure Boot is on, and modules that are built here are signed by nobody whom the firmware knows. Turn "
            "Secure Boot off in the firmware, or enroll a key of this host's own: "
            + "; ".join(f"{number}. {step}" for number, step in enumerate(mok_steps(facts.distribution), start=1))
        )
    if source != UBUNTU:
        return DKMS
    # Where Secure Boot is off for certain, modules built here keep up with kernels whatever the driver's version.
    wanted = wish.modules if wish.modules != "auto" else DKMS if facts.secure_boot == "disabled" else SIGNED
    package = f"linux-modules-nvidia-{server_kind(branch, flavour)}-{facts.kernel}"
    if wanted == SIGNED and not offered(facts, package, UBUNTU):
        if not locked and wish.modules == "auto":
            return DKMS
        raise NotThisWayError(
            f"there is no signed module for the running kernel {facts.kernel} ({package}). Update the kernel, reboot "
            "into it, and run again."
        )
    return wanted


def _with_extras(facts: DriverFacts, choice: Choice) -> Choice:
    """Add headers to build with, or what brings signed modules for later kernels."""
    optional = [name for name in choice.names.optional if offered(facts, name, choice.source)][:1]
    if any(name.startswith(_DESKTOP_PARTS) for name in facts.packages):
        optional.append(choice.names.desktop)
    if choice.modules == DKMS:
        headers = f"linux-headers-{facts.kernel}"
        known = facts.headers_installed | facts.headers_offered
        if headers not in known:
            raise NotThisWayError(
                f"the module is built here, and nobody offers {headers}: the running kernel has left the archive. "
                "Reboot into the newest kernel, then run again."
            )
        metas = [name for name in header_metas(facts.distribution, facts.release, facts.kernel) if name in known]
        return replace(choice, extras=(headers, *metas[:1], *optional))
    abi = "-".join(facts.kernel.split("-")[:2])
    metas = list(module_metas(facts.distribution, facts.release, choice.branch, choice.flavour, facts.kernel))
    for meta in metas:
        versions = offered(facts, meta, choice.source)
        if versions and max(versions, key=version_key).startswith(abi):
            return replace(choice, extras=(meta, *optional))
    note = (
        f"{metas[0]} brings modules for later kernels, and today it would pull in another kernel. Run this again after "
        "the next kernel update."
    )
    return replace(choice, extras=tuple(optional), notes=(note,))


# --- why ------------------------------------------------------------------------------------------------------------


def _reasons(facts: DriverFacts, wish: Wish, limits: Limits, choice: Choice, refused: Sequence[str]) -> tuple[str, ...]:
    state = BRANCHES[choice.branch].state if choice.branch in BRANCHES else "not in the table of branches"
    asked = "as rig_driver.branch asks; it is" if wish.branch else "which is"
    old = next((card for card in facts.cards if GENERATIONS.get(card.generation, NEWER_THAN_KNOWN).last), None)
    return (
        f"Branch R{choice.branch}, {asked} {state}.",
        *([f"{old.label} is of generation {old.generation}, whose last branch is R{limits.last}."] if old else []),
        _flavour_reason(limits, choice),
        _source_reason(facts, wish, choice, refused),
        _modules_reason(facts, choice),
    )


def _flavour_reason(limits: Limits, choice: Choice) -> str:
    if choice.flavour == OPEN:
        only = PROPRIETARY not in limits.flavours
        return (
            f"The open kernel modules: {'a card here has no other' if only else 'NVIDIA suggests them from Turing on'}."
        )
    if OPEN not in limits.flavours:
        return "The proprietary kernel module: a card older than Turing has no other."
    return f"The proprietary kernel module: NVIDIA suggests the open ones from R{OPEN_PREFERRED_FROM} on."


def _source_reason(facts: DriverFacts, wish: Wish, choice: Choice, refused: Sequence[str]) -> str:
    if wish.source != "auto":
        return f"From {_WHERE[choice.source]}, as rig_driver.source asks."
    if choice.source == installed_source(facts):
        return f"From {_WHERE[choice.source]}, where the installed driver came from."
    if choice.source == UBUNTU:
        return "From Ubuntu's own packages, which are made and signed for its kernels."
    if choice.source == DEBIAN:
        return "From Debian's own packages: no engine here needs a newer driver than they have."
    because = f" {refused[0]}" if refused else ""
    return f"From NVIDIA's repository, with {choice.names.pinning} first.{because}"


def _modules_reason(facts: DriverFacts, choice: Choice) -> str:
    if choice.modules == SIGNED:
        return "Modules built and signed by Canonical: they load under Secure Boot."
    trusted = " with a key that the firmware knows" if facts.mok_enrolled and facts.secure_boot == "enabled" else ""
    return (
        f"Modules built here by DKMS{trusted}, also for each kernel that security updates bring later, while the "
        "driver stays at its version."
    )


def arguments(facts: DriverFacts, version: str, source: str, packages: Sequence[str], pinning: str = "") -> list[str]:
    """What apt is given: packages of the driver with the exact version that the source has, others by name."""
    named = []
    for package in filter(None, (pinning, *packages)):
        exact = [found for found in offered(facts, package, source) if version and upstream(found) == version]
        named.append(f"{package}={max(exact, key=version_key)}" if exact else package)
    return named
