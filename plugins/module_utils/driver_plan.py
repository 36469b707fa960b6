# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be done so that a host has the NVIDIA driver that cards and engines need: facts in, plan out. (pure)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .apt_transaction import Wanted, module_flavour_of
from .driver_choice import (
    GIVEN,
    LATEST,
    Limits,
    Need,
    NotThisWayError,
    Wish,
    choose,
    disk_version,
    installed_source,
    knows_nvidia,
    limits_of,
    offered,
)
from .driver_facts import (
    NVIDIA,
    OPEN,
    PROPRIETARY,
    UBUNTU,
    DriverCard,
    DriverFacts,
    branch_of,
    own_cards,
    upstream,
    version_key,
)
from .driver_packages import (
    DKMS,
    ENGINE_FLOORS,
    OLDER_THAN_TURING,
    OLLAMA_ON_OLD_CARDS,
    SIGNED,
    pin_text,
    server_kind,
)

NOTHING, INSTALL, UPGRADE, REPAIR, REFUSED = "nothing", "install", "upgrade", "repair", "refused"
RELEASES = {"ubuntu": ("22.04", "24.04", "26.04"), "debian": ("12", "13")}
REPOSITORY = "https://developer.download.nvidia.com/compute/cuda/repos"
_OLDER_VLLM = (
    "An older vLLM is no way out: the builds of its makers for CUDA 12 lie below 0.31.0, the lowest version without "
    "known holes."
)


@dataclass(frozen=True)
class Plan:
    """What to do. `verdict`: nothing, install, upgrade, repair or refused.

    packages    what is asked of apt by name; `version` is the driver's, '' until its repository is known
    removes     packages that would bring another kernel module of the driver
    pinning     NVIDIA's package that keeps apt on the branch, installed first
    pin         text of apt's preferences that keep the driver where it is
    repository  name of NVIDIA's repository where it has to be added first, such as debian12
    load        the module can be loaded at once; otherwise `reboot` says whether the host must be rebooted
    urgent      engines do not run until it is done
    unread      apt has read no list yet, so nothing can be said of packages
    problems    why it is refused, each with its remedy; `ways_out` what else would do
    """

    verdict: str
    branch: int = 0
    flavour: str = ""
    modules: str = ""
    source: str = ""
    version: str = ""
    packages: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    pinning: str = ""
    pin: str = ""
    repository: str = ""
    load: bool = False
    reboot: bool = False
    urgent: bool = False
    unread: bool = False
    reasons: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    ways_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether anything would be done to the host."""
        return self.verdict in (INSTALL, UPGRADE, REPAIR)

    @property
    def wanted(self) -> Wanted:
        """For the judge of apt's transaction."""
        return Wanted(self.branch, self.flavour, self.version)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with `changes` and the plan in `words`."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {**plain, "changes": self.changes, "words": in_words(self)}


_URGENT = ("missing", "unloaded", "mismatch", "old", "new", "flavour")


@dataclass(frozen=True)
class _Wrong:
    """`what`: missing, unloaded, mismatch, old, new, flavour, kernel, asked or newer."""

    what: str
    words: str


def needs_of(instances: Iterable[Mapping[str, Any]], cards: Sequence[DriverCard], has_driver: bool) -> tuple[Need, ...]:
    """Which instances (as `instances_for` lists them) need a driver, and which.

    `has_driver`: there is one, or the inventory wants one; then device `auto` means the cards.
    """
    devices = ("cuda", "auto") if has_driver else ("cuda",)
    own = own_cards(cards)
    old = bool(own) and all(card.generation in ("maxwell", "pascal") for card in own)
    needs = []
    for instance in instances:
        engine = str(instance.get("engine", ""))
        floor = ENGINE_FLOORS.get(engine, 0)
        if floor and instance.get("device", "auto") in devices and instance.get("state", "present") == "present":
            floor = max(floor, OLLAMA_ON_OLD_CARDS) if engine == "ollama" and old else floor
            needs.append(Need(str(instance.get("name", "")), engine, floor))
    return tuple(needs)


def plan(facts: DriverFacts, wish: Wish) -> Plan:
    """The plan for one host. Never raises: what stands in the way is collected in `problems`."""
    facts = replace(facts, cards=own_cards(facts.cards))
    if not facts.cards:
        return Plan(NOTHING, reasons=("There is no NVIDIA card on the PCI bus, so no driver is needed.",))
    served = _served(facts, wish)
    limits = limits_of(served)
    wrong = _what_is_wrong(facts, wish, limits)
    if not facts.can_install_driver or wish.state == GIVEN:
        made = _judge_given(facts, wish, limits, wrong)
    elif not wrong:
        made = _nothing(facts, wish)
    elif [one.what for one in wrong] == ["kernel"]:
        made = _next_kernel(facts, wish, limits, wrong)
    elif problems := [*limits.problems, *_platform_problems(facts), *_need_problems(wish, limits)]:
        made = Plan(REFUSED, problems=tuple(problems))
    else:
        made = _repair(facts, limits, wrong) or _change(facts, wish, limits, wrong)
    urgent = bool(wish.needs) and any(one.what in _URGENT for one in wrong)
    notes = (*_card_notes(facts, wish), *_left_out(facts, served), *made.notes)
    return replace(made, urgent=urgent and made.changes, notes=notes)


def apt_refused(made: Plan, problems: Sequence[str]) -> Plan:
    """The plan where apt's transaction for it must not happen: a kernel to come stops no host whose driver works."""
    if made.verdict == REPAIR and not (made.load or made.reboot):
        return replace(made, verdict=NOTHING, packages=(), notes=(*made.notes, *problems, _MOVES_BOTH))
    return replace(made, verdict=REFUSED, problems=(*made.problems, *problems))


def _served(facts: DriverFacts, wish: Wish) -> tuple[DriverCard, ...]:
    """The cards that the driver is judged by: where the loaded one serves the engines, those that it drives.

    Nothing tells which cards engines use, so one that it does not drive must not stop what works. A newer driver that
    drives all of them is still worth a change where the inventory asks for a driver.
    """
    branch = branch_of(facts.module_version)
    driven = tuple(card for card in facts.cards if _drives(facts, card))
    other_asked = wish.state != GIVEN and wish.branch not in (0, branch)
    if not branch or branch < wish.floor or not driven or other_asked:
        return facts.cards
    newer = tuple(card for card in facts.cards if card in driven or branch < limits_of((card,)).first)
    return newer if wish.state != GIVEN and not limits_of(newer).problems else driven


def _drives(facts: DriverFacts, card: DriverCard) -> bool:
    limits = limits_of((card,))
    return limits.fits(branch_of(facts.module_version)) and facts.module_flavour in ("", *limits.flavours)


def _left_out(facts: DriverFacts, served: Sequence[DriverCard]) -> list[str]:
    left = ", ".join(card.label for card in facts.cards if card not in served)
    driver = f"{facts.module_version} ({facts.module_flavour or 'kernel module'})"
    return [f"{left}: not driven by the loaded driver {driver}, which serves the other cards."] if left else []


def _card_notes(facts: DriverFacts, wish: Wish) -> list[str]:
    unknown = [card.label for card in facts.cards if not card.generation]
    old = [card.label for card in facts.cards if card.generation in OLDER_THAN_TURING]
    notes = [f"{', '.join(unknown)}: newer than the table of cards, so only the open modules."] if unknown else []
    if old and any(need.engine == "vllm" for need in wish.needs):
        notes.append(f"{', '.join(old)}: no driver makes vLLM run there, it needs Turing or newer; llama.cpp does run.")
    return notes


def _need_problems(wish: Wish, limits: Limits) -> list[str]:
    return [
        f"{need.name} runs on {need.engine}, which needs R{need.floor} or newer, and the last branch for the oldest "
        f"card here is R{limits.last}. Give it a model in format gguf for llama.cpp, or run it on another host."
        for need in wish.needs
        if limits.last and need.floor > limits.last
    ]


def _platform_problems(facts: DriverFacts) -> list[str]:
    problems = []
    if facts.release not in RELEASES.get(facts.distribution, ()):
        known = ", ".join(f"{name} {release}" for name, releases in RELEASES.items() for release in releases)
        problems.append(
            f"The distribution is {facts.distribution or 'not known'} {facts.release}; this role installs drivers on "
            f"{known}. Install one by its maker's guide and leave rig_driver.state at given."
        )
    if facts.arch != "x86_64":
        problems.append(f"The processor is {facts.arch}; this role installs drivers on x86_64 only.")
    if facts.held:
        problems.append(
            f"Packages of the driver are on hold, so apt cannot change them: sudo apt-mark unhold "
            f"{' '.join(facts.held)}. The role keeps the driver by a pin of its own."
        )
    return problems


# --- what is wrong with what there is -------------------------------------------------------------------------------


def _what_is_wrong(facts: DriverFacts, wish: Wish, limits: Limits) -> list[_Wrong]:
    loaded, disk = facts.module_version, disk_version(facts)
    if not loaded and not disk:
        return [_Wrong("missing", "There is no NVIDIA driver.")]
    wrong = []
    if not loaded:
        wrong.append(
            _Wrong("unloaded", f"Driver {disk} is installed, and its kernel module is not loaded{_why(facts)}.")
        )
    elif disk and disk != loaded:
        wrong.append(
            _Wrong(
                "mismatch",
                f"The loaded module is {loaded} and the library on disk is {disk}: programs that start now fail with "
                "'Driver/library version mismatch'.",
            )
        )
    version = disk or loaded
    wrong += _misfits(version, facts.module_flavour if version == loaded else "", wish, limits)
    if not wrong and facts.packages and facts.running.module and not facts.next_kernel.module:
        wrong.append(
            _Wrong("kernel", f"The next boot takes kernel {facts.next_kernel.release}, which has no NVIDIA module.")
        )
    if wish.branch and branch_of(version) != wish.branch:
        wrong.append(_Wrong("asked", f"rig_driver.branch asks for R{wish.branch}, and the driver is {version}."))
    newest = _newest_of_branch(facts, version)
    if wish.state == LATEST and newest:
        wrong.append(_Wrong("newer", f"The driver is {version}, and its branch has {newest}."))
    return wrong


def _why(facts: DriverFacts) -> str:
    if facts.foreign_driver:
        return f": {facts.foreign_driver} holds a card"
    if not facts.running.module:
        return f": kernel {facts.kernel} has none"
    return ": Secure Boot is on, and the firmware does not know who signed it" if _is_locked_out(facts) else ""


def _is_locked_out(facts: DriverFacts) -> bool:
    return facts.secure_boot == "enabled" and facts.running.module == DKMS and not facts.mok_enrolled


def _misfits(version: str, flavour: str, wish: Wish, limits: Limits) -> list[_Wrong]:
    branch = branch_of(version)
    wrong = [
        _Wrong(
            "old", f"{need.name} runs on {need.engine}, which needs R{need.floor} or newer; the driver is {version}."
        )
        for need in wish.needs
        if branch < need.floor
    ]
    if limits.last and branch > limits.last:
        wrong.append(_Wrong("new", f"Driver {version} no longer drives the oldest card, whose last is R{limits.last}."))
    if branch < limits.first:
        wrong.append(_Wrong("old", f"Driver {version} does not know the newest card, whose first is R{limits.first}."))
    if flavour and limits.flavours and flavour not in limits.flavours:
        wrong.append(
            _Wrong("flavour", f"The loaded module is the {flavour} one, which does not drive every card here.")
        )
    return wrong


def _newest_of_branch(facts: DriverFacts, version: str) -> str:
    """The newest version of the same branch that the driver's own source offers, '' where there is none newer."""
    source = installed_source(facts)
    leaders = [name for name in facts.packages if module_flavour_of(name) or name.startswith("nvidia-headless-")]
    found = [
        upstream(offer.version)
        for offer in facts.offers
        if offer.package in leaders and branch_of(offer.version) == branch_of(version) and source in ("", offer.source)
    ]
    newest = max(found, key=version_key, default="")
    return newest if version_key(newest) > version_key(version) else ""


# --- drivers that are not ours to change ----------------------------------------------------------------------------


def _judge_given(facts: DriverFacts, wish: Wish, limits: Limits, wrong: Sequence[_Wrong]) -> Plan:
    """Only the need of an engine makes a driver that is not ours a problem; without one it is a finding."""
    found = [one for one in wrong if one.what not in ("asked", "newer")]
    grave = [one.words for one in found if one.what != "kernel"] if wish.needs else []
    problems = [*limits.problems, *_need_problems(wish, limits), *grave] if wish.needs else []
    seen = Plan(NOTHING, branch_of(facts.module_version), facts.module_flavour, version=facts.module_version)
    if problems:
        return replace(seen, verdict=REFUSED, problems=tuple(problems), ways_out=_ways_out(facts, wish, found))
    fine = [_fine(facts, wish)] if facts.module_version else []
    return replace(seen, reasons=(*fine, *(one.words for one in found)))


def _ways_out(facts: DriverFacts, wish: Wish, wrong: Sequence[_Wrong]) -> tuple[str, ...]:
    ways = []
    vllm = ", ".join(need.name for need in wish.needs if need.engine == "vllm")
    if vllm:
        ways.append(f"llama.cpp runs on older drivers and on the processor: give {vllm} a model in format gguf.")
    if facts.can_install_driver:
        ways.append(
            "Let the run bring the driver: rig_driver: {state: present}, rig_allow_driver_change: true, and "
            "rig_allow_reboot: true if it may reboot."
        )
    elif any(one.what == "mismatch" for one in wrong):
        ways.append("Have the node's owner reboot it, or take a new node or pod, whose driver is whole.")
    else:
        ways.append(
            f"Take a node with R{wish.floor} or newer (RunPod: minCudaVersion 13.0 for R580). Where the driver is "
            "yours after all, write rig_capabilities: {can_install_driver: true}."
        )
    if vllm and 0 < branch_of(facts.module_version) < ENGINE_FLOORS["vllm"]:
        ways.append(_OLDER_VLLM)
    return tuple(ways)


def _fine(facts: DriverFacts, wish: Wish) -> str:
    for_whom = f"; the engines need R{wish.floor}" if wish.floor else ""
    return f"Driver {facts.module_version} ({facts.module_flavour or 'kernel module'}) is loaded{for_whom}."


def _nothing(facts: DriverFacts, wish: Wish) -> Plan:
    version = facts.module_version
    return Plan(
        NOTHING,
        branch_of(version),
        facts.module_flavour,
        facts.running.module,
        installed_source(facts),
        version,
        pin=pin_text(version) if facts.packages else "",
        reasons=(_fine(facts, wish),),
    )


# --- putting right what is there ------------------------------------------------------------------------------------


def _repair(facts: DriverFacts, limits: Limits, wrong: Sequence[_Wrong]) -> Plan | None:
    """A reboot, or a module for a kernel that has none; None where packages of the driver have to change."""
    kinds = {one.what for one in wrong}
    disk = disk_version(facts)
    flavours = {module_flavour_of(name) for name in facts.packages} & {OPEN, PROPRIETARY}
    flavour = flavours.pop() if len(flavours) == 1 else facts.module_flavour
    if kinds - {"unloaded", "mismatch", "kernel"} or flavour not in {*limits.flavours, ""} or _is_locked_out(facts):
        return None
    reboot = bool(facts.module_version or facts.foreign_driver) and kinds != {"kernel"}
    base = Plan(
        REPAIR,
        branch_of(disk),
        flavour,
        facts.running.module,
        installed_source(facts),
        disk,
        pin=pin_text(disk) if facts.packages and disk else "",
        load=not reboot and kinds != {"kernel"},
        reboot=reboot,
        reasons=tuple(one.words for one in wrong),
    )
    kernel = facts.next_kernel if kinds == {"kernel"} else facts.running
    return base if kernel.module else _module_for(facts, base, kernel.release)


def _module_for(facts: DriverFacts, base: Plan, kernel: str) -> Plan | None:
    """Have the module built, or fetched signed, for a kernel that has none."""
    if any(name.startswith("linux-modules-nvidia-") for name in facts.packages):
        signed = f"linux-modules-nvidia-{server_kind(base.branch, base.flavour)}-{kernel}"
        if offered(facts, signed, UBUNTU):
            return replace(base, modules=SIGNED, packages=(signed,))
        if kernel == facts.kernel:
            return None
        note = (
            f"There is no {signed} yet: boot {facts.kernel} until it comes, or let rig_driver: {{state: latest}} move "
            "driver and modules together."
        )
        return replace(base, verdict=NOTHING, notes=(note,))
    if not any(module_flavour_of(name) for name in facts.packages):
        return None
    headers = f"linux-headers-{kernel}"
    if headers in facts.headers_offered - facts.headers_installed:
        return replace(base, modules=DKMS, packages=(headers,))
    remedy = (
        "although its headers are there, so the build failed. Read /var/lib/dkms/nvidia/*/build/make.log, and boot "
        "another kernel until then."
        if headers in facts.headers_installed
        else f"and nobody offers {headers} to build it with. Boot the newest kernel, then run again."
    )
    return replace(base, verdict=REFUSED, problems=(f"Kernel {kernel} has no NVIDIA module, {remedy}",))


_MOVES_BOTH = (
    "Until that kernel has a module, keep booting this one, or a build that still runs may finish. Where modules come "
    "signed from Ubuntu, rig_driver: {state: latest} moves driver and modules together."
)


def _next_kernel(facts: DriverFacts, wish: Wish, limits: Limits, wrong: Sequence[_Wrong]) -> Plan:
    """A kernel to come without a module: helped where that is possible, and never a reason to stop."""
    stays = replace(_nothing(facts, wish), notes=(*(one.words for one in wrong), _MOVES_BOTH))
    if _platform_problems(facts):
        return stays
    made = _repair(facts, limits, wrong)
    if made is None:
        return stays
    if made.verdict == REFUSED:
        return replace(stays, notes=(*(one.words for one in wrong), *made.problems, _MOVES_BOTH))
    return made


# --- another driver -------------------------------------------------------------------------------------------------


def _change(facts: DriverFacts, wish: Wish, limits: Limits, wrong: Sequence[_Wrong]) -> Plan:
    whys = tuple(one.words for one in wrong)
    disk = disk_version(facts)
    if disk and not facts.packages:
        remedy = (
            f"Driver {disk} was not installed from packages (NVIDIA's .run file, it seems), and both would fight over "
            "the same files. Remove it first with sudo nvidia-uninstall, then run again."
        )
        return Plan(REFUSED, reasons=whys, problems=(remedy,))
    if not (facts.offers or facts.headers_offered):
        unread = "apt has read no list of packages yet, so nothing can be chosen. Run apt update."
        return Plan(REFUSED, unread=True, reasons=whys, problems=(unread,))
    try:
        choice = choose(facts, wish, limits)
    except NotThisWayError as error:
        return Plan(REFUSED, reasons=whys, problems=tuple(str(error).splitlines()))
    reboot = bool(facts.module_version or facts.foreign_driver)
    absent = choice.source == NVIDIA and not knows_nvidia(facts)
    return Plan(
        UPGRADE if facts.packages else INSTALL,
        choice.branch,
        choice.flavour,
        choice.modules,
        choice.source,
        choice.version,
        (*choice.extras, *choice.names.required),
        tuple(name for name in facts.packages if _is_rival(name, choice.names.required)),
        choice.names.pinning,
        pin_text(choice.version) if choice.version else "",
        f"{facts.distribution}{facts.release.replace('.', '')}" if absent else "",
        load=not reboot,
        reboot=reboot,
        reasons=(*whys, *choice.reasons),
        notes=choice.notes,
    )


def _is_rival(installed: str, required: Sequence[str]) -> bool:
    """Whether an installed package would go on bringing a module that stands before the chosen one."""
    return bool(module_flavour_of(installed)) and "dkms" in installed and installed not in required


# --- in words -------------------------------------------------------------------------------------------------------


def in_words(plan: Plan) -> str:
    """The plan for a person: what, why, and what stands in the way."""
    heads = {NOTHING: "Nothing to do.", INSTALL: "Install", UPGRADE: "Change to", REPAIR: "Repair", REFUSED: "Refused."}
    head = heads[plan.verdict]
    if plan.changes:
        sort = ", ".join(filter(None, [f"{plan.flavour} module" if plan.flavour else "", plan.modules, plan.source]))
        head += f" driver {plan.version or f'R{plan.branch}'} ({sort})."
    lines = [head, *plan.reasons]
    if plan.repository:
        lines.append(f"Add {REPOSITORY}/{plan.repository}; the newest R{plan.branch} in it is taken.")
    if plan.packages:
        lines.append(f"Packages: {' '.join(filter(None, [plan.pinning, *plan.packages]))}")
    if plan.removes:
        lines.append(f"Removed: {' '.join(plan.removes)}")
    if plan.verdict in (INSTALL, UPGRADE):
        lines.append("A pin keeps the driver at this version; all else keeps its security updates.")
    if plan.reboot:
        lines.append("The host has to be rebooted.")
    elif plan.load:
        lines.append("The module can be loaded without a reboot.")
    return "\n".join([*lines, *plan.problems, *(f"Way out: {way}" for way in plan.ways_out), *plan.notes])
