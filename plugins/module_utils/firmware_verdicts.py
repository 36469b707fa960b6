# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the inventory expects of firmware, held against what was read, with the remedy in words. (pure)

An expectation is `{check, needed | at_least, gpu, must_be_known}`. Its verdict is ok, failed, or unjudged where the
host lets nobody see it; unjudged becomes failed with `must_be_known`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from .firmware_model import (
    ADDRESS_SPACE,
    BIOS,
    CARD,
    CARD_FIRMWARE,
    CONTAINER,
    IDLE,
    KERNEL,
    LOST,
    RIGHTS,
    SEAT,
    SLOT,
    UNDECIDED,
    UNKNOWN,
    VM,
)
from .gpu_selection import Selector, SelectorError, is_product, parse_selector
from .placement import did_you_mean

ENABLED, DISABLED, FULL = "enabled", "disabled", "full"
OK, FAILED, UNJUDGED, UNASKED = "ok", "failed", "unjudged", "-"


@dataclass(frozen=True)
class Check:
    """What can be expected of a reading. `needed`: the values; `numbers`: also a least number (at_least); `per_card`:
    of each card, else of the machine; `accepts`: value -> other readings that meet it, too.
    """

    needed: tuple[str, ...]
    per_card: bool = False
    numbers: bool = False
    accepts: Mapping[str, tuple[str, ...]] = MappingProxyType({})


CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "above_4g_decoding": Check((ENABLED, DISABLED)),
        "resizable_bar": Check(
            (ENABLED, DISABLED), per_card=True, accepts={ENABLED: ("large",), DISABLED: ("fixed", "hidden")}
        ),
        "boot_mode": Check(("uefi", "legacy")),
        "csm": Check((ENABLED, DISABLED)),
        "secure_boot": Check((ENABLED, DISABLED)),
        "iommu": Check(
            (ENABLED, DISABLED, "translated", "passthrough"), accepts={ENABLED: ("translated", "passthrough", "mixed")}
        ),
        "aspm_policy": Check(("default", "performance", "powersave", "powersupersave", "off")),
        "aspm": Check((ENABLED, DISABLED), per_card=True),
        "link_width": Check((FULL,), per_card=True, numbers=True),
        "link_generation": Check((FULL,), per_card=True, numbers=True),
        "attachment": Check(("slot", "oculink", "thunderbolt"), per_card=True),
    }
)
OCULINK_LANES_AT_MOST = 8

MENU: Final[Mapping[str, str]] = MappingProxyType(
    {
        "above_4g_decoding": "Above 4G Decoding (also called Above 4GB MMIO or Memory Mapped I/O above 4 GB)",
        "resizable_bar": "Resizable BAR (also called Re-Size BAR Support or Smart Access Memory)",
        "csm": "CSM (also called Launch CSM, Compatibility Support Module or Legacy Boot)",
        "secure_boot": "Secure Boot",
        "iommu": "Intel VT-d, AMD IOMMU or AMD-Vi",
        "aspm": "PCIe ASPM (also called Native ASPM or PCIe Power Management)",
    }
)
"""What settings are called where the board is not known."""

_NO_START = (
    "Mind that a system which was installed for legacy boot does not start any more with CSM disabled: give it a GPT "
    "with an EFI partition first, or install it anew."
)


# -- what is wrong with the expectations ------------------------------------------------------------------------------
def expectation_problems(expectations: Sequence[object], gpus: Sequence[str] | None, path: str) -> Iterator[str]:
    """What is wrong with a list of expectations, in words that begin with the place below `path`.

    `gpus`: the names of rig_gpus; None where they cannot be told.
    """
    seen: dict[tuple[str, str], str] = {}
    for number, entry in enumerate(expectations):
        where = f"{path}[{number}]"
        name = entry.get("check") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(name, str) or name not in CHECKS:
            continue  # the schema says so
        gpu = entry.get("gpu")
        check = CHECKS[name]
        yield from _value_problems(where, name, check, entry)
        if gpu is not None and not check.per_card:
            yield f"{where}.gpu: {name} is of the machine, not of a card. Remove it."
        elif isinstance(gpu, str) and gpus is not None:
            try:
                selector = parse_selector(gpu, gpus)
                if not (selector.name or selector.uuid or selector.pci):
                    yield f"{where}.gpu: found '{gpu}', needed one card. Leave gpu out for every card."
            except SelectorError as error:
                yield f"{where}.gpu: {error}"
        first = seen.setdefault((name, str(gpu)), where)
        if first != where:
            yield f"{where}: expects the same of the same as {first}. Keep one of them."


def _value_problems(where: str, name: str, check: Check, entry: Mapping[object, object]) -> Iterator[str]:
    needed, least = entry.get("needed"), entry.get("at_least")
    if isinstance(needed, int) and not isinstance(needed, bool) and check.numbers:
        yield f"{where}.needed: a number is written as at_least: {needed}."
    elif least is not None and not check.numbers:
        yield f"{where}.at_least: {name} is no number. Write needed: {' or '.join(check.needed)}."
    elif needed is None and least is None:
        also = " or at_least: a number" if check.numbers else ""
        yield f"{where}: says nothing that is needed. Write needed: {' or '.join(check.needed)}{also}."
    elif needed is not None and least is not None:
        yield f"{where}: has both needed and at_least. Keep one of them."
    elif isinstance(needed, str) and needed not in check.needed:
        yield (
            f"{where}.needed: found '{needed}', needed one of {', '.join(check.needed)} for {name}."
            f"{did_you_mean(needed, check.needed)}"
        )


def _type_problems(expectations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For a role that is used without the inventory's schema."""
    for number, entry in enumerate(expectations):
        if entry.get("check") not in CHECKS:
            yield f"expect[{number}].check: found {entry.get('check')!r}, needed one of {', '.join(CHECKS)}."
        if isinstance(entry.get("needed"), bool):
            yield f"expect[{number}].needed: YAML reads bare on and off as true and false. Write enabled, disabled."
        least = entry.get("at_least")
        if least is not None and (isinstance(least, bool) or not isinstance(least, int) or least < 1):
            yield f"expect[{number}].at_least: found {least!r}, needed a whole number of at least 1, without quotes."


# -- verdicts ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Verdict:
    """One expectation on the machine or on one card. `text` says everything, with the remedy."""

    check: str
    card: str
    needed: str
    found: str
    state: str
    cause: str = ""
    text: str = ""

    def as_dict(self) -> dict[str, str]:
        """For a filter's result."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def board_of(report: Mapping[str, Any], boards: Sequence[Mapping[str, Any]], named: str = "") -> Mapping[str, Any]:
    """The entry of `boards` for this machine, else one with the board's name only.

    `boards`: `{names: [...], menu: {check: name of the setting}}`. `named` is the inventory's word and wins over what
    the machine says of itself. Names are compared without case, blanks and the maker's name before them.
    """
    dmi = report.get("board", {})
    own = named or f"{dmi.get('board_vendor', '')} {dmi.get('board_name', '')}".strip()
    keys = {_key(named)} if named else {_key(own), _key(str(dmi.get("board_name", "")))}
    for board in boards:
        if keys & {_key(str(name)) for name in board["names"]}:
            return board
    return {"names": [own], "menu": {}}


def _key(name: str) -> str:
    text = "".join(name.lower().split())
    for maker in ("asustekcomputerinc.", "asus"):
        text = text.removeprefix(maker)
    return text or "-"


def verdicts(
    report: Mapping[str, Any],
    expectations: Sequence[Mapping[str, Any]],
    gpus: Sequence[Mapping[str, Any]] = (),
    boards: Sequence[Mapping[str, Any]] = (),
    board: str = "",
) -> list[Verdict]:
    """Every expectation held against the result of the module firmware_info.

    `gpus` is rig_gpus, `boards` and `board` see `board_of`. An expectation of cards gives a verdict for the card that
    `gpu` names; without `gpu` for each card that is ours and has no such expectation of its own.
    Raises ValueError with everything that is wrong with the expectations.
    """
    names = [str(gpu.get("name", "")) for gpu in gpus]
    problems = [*_type_problems(expectations), *expectation_problems(expectations, names, "expect")]
    if problems:
        raise ValueError("; ".join(problems))
    known = board_of(report, boards, board)
    meant = {id(entry): _cards(entry, report["cards"], gpus) for entry in expectations}
    found = []
    for entry in expectations:
        check = entry["check"]
        if not CHECKS[check].per_card:
            found.append(_judge(entry, report[check], None, report, known))
            continue
        cards, problem, certain = meant[id(entry)]
        own = [e for e in expectations if e["check"] == check and e.get("gpu") and e is not entry]
        named = [card["pci"] for other in own for card in meant[id(other)][0]]
        if not entry.get("gpu"):
            cards = [card for card in cards if card["pci"] not in named]
        found += [_judge(entry, card[check], card, report, known) for card in cards]
        if problem:
            found.append(_no_card(entry, problem, certain))
    return found


def _needed_text(expectation: Mapping[str, Any]) -> str:
    least = expectation.get("at_least")
    return str(expectation["needed"]) if least is None else f"at least {least}"


def _no_card(expectation: Mapping[str, Any], problem: str, certain: bool) -> Verdict:
    check, gpu, needed = expectation["check"], str(expectation.get("gpu", "")), _needed_text(expectation)
    state = FAILED if certain or expectation.get("must_be_known") else UNJUDGED
    text = f"{check} of {gpu or 'every card'}: needed {needed}, but {problem}"
    return Verdict(check, gpu, needed, "no card", state, "no_card", text)


def _cards(
    expectation: Mapping[str, Any], cards: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], str, bool]:
    """(the cards that are meant, what is wrong, whether that is certain)."""
    ours = [card for card in cards if card["ours"]]
    gpu = expectation.get("gpu")
    if not gpu:
        return ours, "" if ours else "no NVIDIA card can be seen.", False
    selector, others = parse_selector(gpu, [str(entry["name"]) for entry in gpus]), []
    if selector.name:
        selector = next(_declared(entry) for entry in gpus if entry["name"] == gpu)
        others = [
            _declared(entry) for entry in gpus if entry["name"] != gpu and (entry.get("pci") or entry.get("uuid"))
        ]
    addressed = bool(selector.pci or selector.uuid)  # of equal cards, one may be declared as 'the other one'
    fitting = [
        card
        for card in ours
        if _fits(selector, card) and (addressed or not any(_fits(other, card) for other in others))
    ]
    here = "; ".join(map(_label, ours)) or "none"
    if len(fitting) == 1:
        return fitting, "", True
    if not fitting and any(not _is_told(selector, card) for card in ours):
        return [], f"which card '{gpu}' is cannot be told before the driver runs. Cards here: {here}.", False
    return [], f"'{gpu}' fits {len(fitting) or 'no'} card{'s' * (len(fitting) > 1)}. Cards here: {here}.", True


def _declared(entry: Mapping[str, Any]) -> Selector:
    return parse_selector({key: entry[key] for key in ("product", "pci", "uuid") if entry.get(key)}, ())


def _label(card: Mapping[str, Any]) -> str:
    return f"{card['name']} ({card['pci']})"


def _is_told(selector: Selector, card: Mapping[str, Any]) -> bool:
    return not ((selector.uuid and not card["uuid"]) or (selector.product and card["name"].startswith("10de:")))


def _fits(selector: Selector, card: Mapping[str, Any]) -> bool:
    return (
        (not selector.uuid or selector.uuid == card["uuid"].lower())
        and (not selector.pci or selector.pci == card["pci"])
        and (not selector.product or is_product(selector.product, card["name"]))
    )


def _judge(
    expectation: Mapping[str, Any],
    reading: Mapping[str, Any],
    card: Mapping[str, Any] | None,
    report: Mapping[str, Any],
    board: Mapping[str, Any],
) -> Verdict:
    check, needed = expectation["check"], _needed_text(expectation)
    state, cause, why = _compare(expectation, reading, card)
    demanded = state == UNJUDGED and bool(expectation.get("must_be_known"))
    label = _label(card) if card else ""
    found = f"{reading['value']} (idle)" if cause == IDLE else str(reading["value"])
    if state == OK:
        return Verdict(check, label, needed, found, OK)
    evidence = f" ({reading['evidence']})" if reading["evidence"] else ""
    homeless = reading["value"] == "unassigned"  # a window without an address: that comes before its size
    remedy = _remedy("above_4g_decoding" if homeless else check, needed, cause, card, report, board)
    text = f"{check}{f' of {label}' if label else ''}: needed {needed}, found {found}: {why}{evidence}. {remedy}"
    if demanded:
        text += " The inventory demands that it is known (must_be_known)."
    return Verdict(check, label, needed, found, FAILED if demanded else state, cause, text.strip())


def _compare(
    expectation: Mapping[str, Any], reading: Mapping[str, Any], card: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    """(state, cause, why) of a reading."""
    check, value, cause = expectation["check"], reading["value"], reading["cause"]
    why = reading["reason"] or "it is set so"
    if value == UNKNOWN:
        return FAILED if cause == LOST else UNJUDGED, cause, why
    if check == "attachment" and card is not None:
        return _compare_attachment(expectation["needed"], reading, card)
    if CHECKS[check].numbers and card is not None:
        return _compare_number(expectation, reading, card["link"])
    wanted = (expectation["needed"], *CHECKS[check].accepts.get(expectation["needed"], ()))
    if value in wanted:
        return OK, "", ""
    if cause in (VM, CONTAINER):
        return UNJUDGED, cause, why
    is_kernels = check == "aspm_policy" or (check == "iommu" and value != DISABLED and wanted[0] != DISABLED)
    return FAILED, cause or (KERNEL if is_kernels else BIOS), why


def _compare_number(
    expectation: Mapping[str, Any], reading: Mapping[str, Any], link: Mapping[str, Any]
) -> tuple[str, str, str]:
    what = "width" if expectation["check"] == "link_width" else "generation"
    possible, limit = link[f"{what}_possible"], link[f"{what}_limited_by"]
    least = possible if expectation.get("needed") == FULL else expectation["at_least"]
    if reading["value"] >= least:
        return OK, "", ""
    if reading["cause"] == VM:
        return UNJUDGED, VM, reading["reason"]
    if possible < least:
        return FAILED, CARD if limit == "the card" else SLOT, f"{limit} can do {possible} at most"
    return UNJUDGED if reading["cause"] == IDLE else FAILED, reading["cause"], reading["reason"]


def _compare_attachment(needed: str, reading: Mapping[str, Any], card: Mapping[str, Any]) -> tuple[str, str, str]:
    """A declaration: only contradictions can be found, as Linux cannot tell OCuLink from a slot."""
    loose = reading["value"] in ("thunderbolt", "removable")
    if needed == "thunderbolt":
        return (OK, "", "") if loose else (FAILED, "declared", "nothing on its way is removable, as Thunderbolt is")
    if loose:
        return FAILED, "declared", "it hangs on something removable, such as Thunderbolt"
    width = card["link"]["width"]
    if needed == "oculink" and width and width > OCULINK_LANES_AT_MOST:
        return FAILED, "declared", f"{width} lanes are in use, and OCuLink has {OCULINK_LANES_AT_MOST} at most"
    return OK, "", ""


# -- remedies ---------------------------------------------------------------------------------------------------------
def _remedy(
    check: str,
    needed: str,
    cause: str,
    card: Mapping[str, Any] | None,
    report: Mapping[str, Any],
    board: Mapping[str, Any],
) -> str:
    if cause == BIOS:
        return _switch(check, needed, report, board)
    if cause == UNDECIDED and check == "csm":
        return "Look into the mainboard's firmware once; expect boot_mode: uefi to have Linux judge what it can."
    if cause == UNDECIDED:
        return (
            f"Run it as root to tell the card's firmware from the mainboard's. {_switch(check, needed, report, board)}"
        )
    if cause == CARD_FIRMWARE:
        vbios = f" (now {card['vbios']})" if card and card["vbios"] else ""
        return (
            f"No switch of the mainboard helps: update the card's own firmware, the VBIOS{vbios}, with the tool of the "
            "card's maker."
        )
    if cause == KERNEL and check in ("iommu", "aspm_policy"):
        return f"Start the kernel {_parameter(check, needed)}."
    if cause in (SLOT, SEAT):
        return _link_remedy(check, cause)
    return {
        CARD: "The card itself cannot do it: name in gpu the cards that can, or expect less.",
        VM: "It is hidden by the virtual machine or belongs to its host: ask whoever runs the host.",
        CONTAINER: "It cannot be read in a container: ask whoever runs the host.",
        RIGHTS: "Run it as root (become).",
        KERNEL: "A newer kernel or another kernel parameter is needed to see it.",
        ADDRESS_SPACE: (
            "Raise the MMIO size in the mainboard's firmware, where it has one, free a slot, or try the kernel "
            "parameter pci=realloc (for hot-plug ports pci=hpmmioprefsize=64G)."
        ),
        IDLE: "Judge it while the card computes.",
        LOST: "Switch the machine off, reseat the card and its power cables; dmesg | grep -i xid says more.",
        "declared": "Correct the declaration in the inventory, or the cabling.",
    }.get(cause, "")


def _parameter(check: str, needed: str) -> str:
    if check == "aspm_policy":
        return "with pcie_aspm=off" if needed == "off" else f"with pcie_aspm.policy={needed}"
    return {
        "passthrough": "with iommu=pt",
        "translated": "without iommu=pt and iommu.passthrough=1",
    }.get(needed, "with intel_iommu=on, or without amd_iommu=off and iommu=off")


def _link_remedy(check: str, cause: str) -> str:
    if cause == SLOT:
        return "Move the card to a slot or port that can do it, undo a bifurcation of the slot, or expect less."
    part = "lanes" if check == "link_width" else "speed"
    return (
        f"Lost {part} are mostly a contact: reseat the card, change riser or cable, and look at the corrected errors. "
        "Then look for a limit of the slot in the mainboard's firmware (PCIe link speed, bifurcation)."
    )


def _switch(check: str, needed: str, report: Mapping[str, Any], board: Mapping[str, Any]) -> str:
    """Which settings to switch, by the names of this board's menus where they are known."""
    menu = board["menu"]
    steps = [f"{menu.get(setting, MENU[setting])}: {word}" for setting, word in _steps(check, needed, report)]
    name = str(board["names"][0])
    whose = f"the mainboard's firmware ({name})" if name else "the mainboard's firmware"
    closing = ""
    if ("csm", "Disabled") in _steps(check, needed, report) and report["boot_mode"]["value"] == "legacy":
        closing = f" {_NO_START}"
    elif check == "resizable_bar" and needed == ENABLED:
        closing = " Where such a setting is missing, a newer firmware of the board may bring it."
    return f"Switch it in {whose}: {'; '.join(steps)}.{closing}"


def _steps(check: str, needed: str, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    word = "Enabled" if needed in (ENABLED, "translated", "passthrough", "legacy") else "Disabled"
    if check == "boot_mode":
        return [("csm", word)]
    if check == "resizable_bar" and needed == ENABLED:  # it needs 64-bit addresses, and most boards no CSM
        first = [] if report["above_4g_decoding"]["value"] == ENABLED else [("above_4g_decoding", "Enabled")]
        last = [("csm", "Disabled")] if report["csm"]["value"] == ENABLED else []
        return [*first, ("resizable_bar", "Enabled"), *last]
    return [(check, word)]


# -- the table --------------------------------------------------------------------------------------------------------
HEADINGS = ("check", "card", "needed", "found", "verdict")


def table(report: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    """Every reading as a line of text, those that the inventory asks for with their verdict first, and what a person
    should know below. Cards of which the same is to be said share a line."""
    rows = [(v["check"], v["card"], v["needed"], v["found"], v["state"]) for v in judged]
    asked = {(check, card) for check, card, *_rest in rows}
    for name, check in CHECKS.items():
        cards = [card for card in report["cards"] if card["ours"]] if check.per_card else []
        machine = [] if check.per_card else [("", report[name])]
        for label, reading in [*machine, *((_label(card), card[name]) for card in cards)]:
            if (name, label) not in asked:
                rows.append((name, label, UNASKED, str(reading["value"]), UNASKED))
    same: dict[tuple[str, ...], list[str]] = {}
    for check_name, card, *rest in rows:
        same.setdefault((check_name, *rest), []).append(card)
    cells = [HEADINGS]
    for (check_name, needed, found, state), labels in same.items():
        cells.append((check_name, labels[0] if len(labels) == 1 else f"{len(labels)} cards", needed, found, state))
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    told = tuple(f"{card}: {check_name} " for check_name, card in asked)
    notes = [text for text in report["findings"] if not text.startswith(told)]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:], *notes])
