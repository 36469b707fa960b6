# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which cards a GPU role gets: the inventory's selectors against the cards of a machine. (pure)

A selector is a text (a name of rig_gpus, a UUID, a PCI address, 'fastest', 'all', 'all except X, Y') or a mapping of
conditions, all of which must hold. It takes one card unless it says `take`, and never guesses: nothing that fits, or
more than was asked for, is an error that lists the candidates. Which cards a role gets does not depend on the order in
which NVML lists them, nor on slots unless a PCI address is written; several cards of one selector are in PCI order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .gpu_model import Gpu, GpuReport, PciAddressError, normalize_pci, pci_key
from .placement import DEFAULT_GPU_ROLE, did_you_mean

ONE, FASTEST, ALL = "one", "fastest", "all"
TAKES = (ONE, FASTEST, ALL)
KEYS = ("uuid", "pci", "product", "min_memory_gib", "min_compute_capability", "take", "except")
RESERVED_NAMES = (FASTEST, ALL)

VARIANTS = frozenset({"ti", "super", "laptop", "mobile", "max", "d"})
"""Words after a product's name that make it another product: RTX 3090 is not RTX 3090 Ti."""

_GIB = 1 << 30
_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")
_EXCEPT = re.compile(r"all\s+except\s+(.+)")
_MAKER = ("nvidia", "geforce", "tesla", "quadro")


class SelectorError(ValueError):
    """A selector that cannot be read, or that does not give the cards it should; the message says why."""


class CardMissingError(SelectorError):
    """A selector cannot be decided, as a card does not answer. `cards`: the one it names, else those it could mean."""

    def __init__(self, message: str, cards: Sequence[MissingCard], named: bool) -> None:
        super().__init__(message)
        self.cards = tuple(cards)
        self.named = named


# -- what the inventory says ------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Selector:
    """Conditions on a card, all of which must hold; `words` are the inventory's own, for messages.

    `name` is of rig_gpus and stands alone. Memory in GiB as CUDA reports it, which is less than the label says.
    """

    words: str
    name: str = ""
    uuid: str = ""
    pci: str = ""
    product: str = ""
    min_memory_gib: float = 0.0
    min_compute_capability: tuple[int, int] = (0, 0)
    take: str = ONE
    excluded: tuple[Selector, ...] = ()


@dataclass(frozen=True)
class DeclaredCard:
    """An entry of rig_gpus; `path` is its place in the inventory."""

    path: str
    name: str
    selector: Selector


@dataclass(frozen=True)
class WantedRole:
    """An entry of rig_gpu_roles: its selectors, each with its place in the inventory."""

    name: str
    selectors: tuple[tuple[str, Selector], ...]
    exclusive: bool = False


def parse_gpus(entries: Iterable[object]) -> tuple[list[DeclaredCard], list[str]]:
    """rig_gpus as (cards, what is wrong with it in words)."""
    cards: list[DeclaredCard] = []
    problems: list[str] = []
    for number, entry in enumerate(entries):
        path = f"rig_gpus[{number}]"
        written = {str(key): value for key, value in entry.items() if value} if isinstance(entry, Mapping) else {}
        name = str(written.pop("name", ""))
        if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
            problems.append(
                f"{path}.name: found '{name}', needed a name of small letters, digits and hyphens, other than "
                f"{' and '.join(RESERVED_NAMES)}."
            )
            continue
        if name in (card.name for card in cards):
            problems.append(f"{path}.name: the name '{name}' is used twice. Give each card its own.")
        if not written or not set(written) <= {"product", "pci", "uuid"}:
            problems.append(f"{path}: needed name and one or more of product, pci, uuid.")
            continue
        try:
            cards.append(DeclaredCard(path, name, parse_selector(written, ())))
        except SelectorError as error:
            problems.append(f"{path}: {error}")
    return cards, problems


def parse_roles(roles: Mapping[str, object], names: Collection[str]) -> tuple[list[WantedRole], list[str]]:
    """rig_gpu_roles as (roles, what is wrong with it in words); `names` are those of rig_gpus.

    A role is a list of selectors, or a mapping {cards: [...], exclusive: true}.
    """
    wanted: list[WantedRole] = []
    problems: list[str] = []
    for role, entry in roles.items():
        path = f"rig_gpu_roles.{role}"
        cards, exclusive = entry, False
        if isinstance(entry, Mapping):
            cards, exclusive = entry.get("cards"), entry.get("exclusive", False)
            path += ".cards"
            if not set(entry) <= {"cards", "exclusive"} or not isinstance(exclusive, bool):
                problems.append(f"rig_gpu_roles.{role}: needed the keys cards (a list) and exclusive (true or false).")
        if not _NAME.fullmatch(str(role)):
            problems.append(f"rig_gpu_roles: the name '{role}' needs to be of small letters, digits and hyphens.")
        if not isinstance(cards, (list, tuple)) or not cards:
            problems.append(f"{path}: needed a list of at least one card. Name one, or remove the role.")
            continue
        selectors: list[tuple[str, Selector]] = []
        for number, value in enumerate(cards):
            try:
                selectors.append((f"{path}[{number}]", parse_selector(value, names)))
            except SelectorError as error:  # noqa: PERF203 (everything is tried)
                problems.append(f"{path}[{number}]: {error}")
        wanted.append(WantedRole(str(role), tuple(selectors), bool(exclusive)))
    return wanted, problems


def parse_selector(value: object, names: Collection[str]) -> Selector:
    """The selector that `value` (text or mapping) means; `names` are those of rig_gpus. Raises SelectorError."""
    if isinstance(value, Mapping):
        return _parse_conditions(value, names)
    if isinstance(value, str):
        return _parse_text(value.strip(), names)
    raise SelectorError(f"found {value!r}, needed a text or a mapping. An address is written in quotes.")


def _parse_text(text: str, names: Collection[str]) -> Selector:
    if text in names:
        return Selector(text, name=text)
    if _UUID.fullmatch(text):
        return Selector(text, uuid=text.lower())
    if text in {FASTEST, ALL}:
        return Selector(text, take=text)
    if match := _EXCEPT.fullmatch(text):
        parts = (part.strip() for part in match.group(1).split(","))
        return Selector(text, take=ALL, excluded=tuple(_parse_text(part, names) for part in parts))
    if ":" in text:
        return Selector(text, pci=_pci(text))
    hint = did_you_mean(text, [*names, *RESERVED_NAMES])
    if text.isdigit():
        hint = " An index is no name: it changes when a card moves."
    elif text.upper().startswith("GPU-"):
        hint = " A UUID is GPU- and 32 hex digits in groups of 8, 4, 4, 4 and 12."
    elif text.upper().startswith("MIG-"):
        hint = " A part of a card (MIG) cannot be given to a role."
    raise SelectorError(
        f"found '{text}', needed a name of rig_gpus ({', '.join(names) or 'none'}), a UUID (GPU-...), a PCI address "
        f"(0000:17:00.0), fastest, all, 'all except ...', or a mapping such as {{product: RTX 4090}}.{hint}"
    )


def _parse_conditions(value: Mapping[object, object], names: Collection[str]) -> Selector:
    words = "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    unknown = [str(key) for key in value if key not in KEYS]
    if unknown:
        hint = did_you_mean(unknown[0], KEYS)
        raise SelectorError(f"{words}: no such key: {', '.join(unknown)}.{hint} Known: {', '.join(KEYS)}.")
    take = value.get("take", ONE)
    if take not in TAKES:
        raise SelectorError(
            f"{words}: take is {take!r}, needed one of {', '.join(TAKES)}.{did_you_mean(str(take), TAKES)}"
        )
    if take == ONE and not set(value) - {"take", "except"}:
        raise SelectorError(f"{words}: says nothing about the card. Add {', '.join(KEYS[:5])}, or take: all.")
    uuid, pci, product = (value.get(key, "") for key in ("uuid", "pci", "product"))
    if not (isinstance(uuid, str) and isinstance(pci, str) and isinstance(product, str)):
        raise SelectorError(f"{words}: uuid, pci and product are texts. Write them in quotes.")
    if uuid and not _UUID.fullmatch(uuid):
        raise SelectorError(f"{words}: '{uuid}' is no UUID of a card; nvidia-smi -L prints them, GPU-... .")
    excluded = value.get("except", ())
    if not isinstance(excluded, (list, tuple)):
        raise SelectorError(f"{words}: except is {excluded!r}, needed a list of selectors.")
    return Selector(
        words,
        uuid=uuid.lower(),
        pci=_pci(pci) if pci else "",
        product=product,
        min_memory_gib=_gib(words, value.get("min_memory_gib", 0)),
        min_compute_capability=_capability(words, value.get("min_compute_capability", "0.0")),
        take=str(take),
        excluded=tuple(parse_selector(part, names) for part in excluded),
    )


def _pci(text: str) -> str:
    try:
        return normalize_pci(text)
    except PciAddressError as error:
        raise SelectorError(f"{error}.") from error


def _gib(words: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise SelectorError(f"{words}: min_memory_gib is {value!r}, needed a number of GiB, such as 20.")
    return float(value)


def _capability(words: str, value: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:\.(\d))?", str(value))
    if not match:
        raise SelectorError(f"{words}: min_compute_capability is {value!r}, needed a number such as '8.0'.")
    return int(match.group(1)), int(match.group(2) or 0)


# -- what the machine has ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MissingCard:
    """A card that does not answer; what is not known of it is empty. `message` says what is wrong with it."""

    message: str
    pci: str = ""
    uuid: str = ""
    name: str = ""


@dataclass(frozen=True)
class Machine:
    """What selectors are applied to. `cards` answer and are in PCI order; `missing` do not answer; `silent` are on the
    PCI bus, but the driver says nothing of them. `declared` is what rig_gpus calls them.
    """

    cards: tuple[Gpu, ...]
    missing: tuple[MissingCard, ...] = ()
    silent: tuple[MissingCard, ...] = ()
    declared: Mapping[str, Gpu | CardMissingError] | None = None


def machine_of(report: GpuReport) -> Machine:
    """The machine as one look at it (`gpu_scan.scan`) gives it."""
    cards = sorted((gpu for gpu in report.gpus if not gpu.is_lost), key=lambda gpu: pci_key(gpu.card.pci))
    missing = [MissingCard(card.message, card.pci or "") for card in report.unreachable]
    missing += [
        MissingCard("lost while it was read", gpu.card.pci, gpu.card.uuid.lower(), gpu.card.name)
        for gpu in report.gpus
        if gpu.is_lost
    ]
    silent = [MissingCard("on the PCI bus, but the NVIDIA driver does not show it", pci) for pci in report.not_in_nvml]
    return Machine(tuple(cards), tuple(missing), tuple(silent))


def describe(gpu: Gpu) -> str:
    """A card for messages: product, address, UUID, memory, compute capability."""
    memory = gpu.memory.cuda_total_bytes
    size = f"{memory / _GIB:.1f} GiB" if memory else "memory not known"
    return (
        f"{gpu.card.name} ({gpu.card.pci}, {gpu.card.uuid}, {size}, "
        f"compute capability {gpu.compute_capability or 'not known'})"
    )


def _listed(cards: Iterable[Gpu]) -> str:
    return "; ".join(describe(gpu) for gpu in cards) or "none"


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def is_product(product: str, name: str) -> bool:
    """Whether a card called `name` is a `product`: its words in a row, and no other variant of it (VARIANTS)."""
    wanted, found = _words(product), _words(name)
    return any(
        found[start : start + len(wanted)] == wanted and not VARIANTS & set(found[start + len(wanted) :][:1])
        for start in range(len(found))
        if wanted
    )


def short_name(name: str) -> str:
    """A product without its maker: 'RTX 4090'."""
    words = name.split()
    while len(words) > 1 and words[0].lower() in _MAKER:
        words.pop(0)
    return " ".join(words)


def speed(gpu: Gpu) -> float | None:
    """How fast a card is for language models, to put cards in order: memory bandwidth in GB/s times compute capability.

    Bandwidth (bus width x highest memory clock, two bits per clock) bounds how fast an answer is written; the compute
    capability tells cards of equal bandwidth apart (RTX 3090 Ti and 4090: both 1008 GB/s). None where a card does not
    tell.
    """
    width_bits, clock_mhz = gpu.memory.bus_width_bits, gpu.activity.memory_clock_max_mhz
    if not width_bits or not clock_mhz or not gpu.compute_capability:
        return None
    return width_bits / 8 * clock_mhz * 2 / 1000 * float(gpu.compute_capability)


def _fits(selector: Selector, gpu: Gpu) -> bool:
    card = gpu.card
    return (
        (not selector.uuid or selector.uuid == card.uuid.lower())
        and (not selector.pci or selector.pci == card.pci)
        and (not selector.product or is_product(selector.product, card.name))
        and (gpu.memory.cuda_total_bytes or 0) >= selector.min_memory_gib * _GIB
        and _capability("", gpu.compute_capability or "0.0") >= selector.min_compute_capability
    )


def _names(selector: Selector, card: MissingCard) -> bool:
    """Whether the selector names this very card by its address or UUID."""
    return (bool(selector.pci) and selector.pci == card.pci) or (bool(selector.uuid) and selector.uuid == card.uuid)


def _could_mean(selector: Selector, card: MissingCard) -> bool:
    """Whether nothing that is known of the card speaks against it."""
    return not (
        (selector.pci and card.pci and selector.pci != card.pci)
        or (selector.uuid and card.uuid and selector.uuid != card.uuid)
        or (selector.product and card.name and not is_product(selector.product, card.name))
    )


def _missing_words(cards: Iterable[MissingCard]) -> str:
    return "; ".join((f"{card.pci}: " if card.pci else "") + card.message.rstrip(".") for card in cards)


def choose(selector: Selector, machine: Machine) -> list[Gpu]:
    """The cards that the selector takes, at least one.

    Raises CardMissingError where a card that does not answer stands in the way, SelectorError otherwise.
    """
    if selector.name:
        found = (machine.declared or {}).get(selector.name)
        if isinstance(found, Gpu):
            return [found]
        if found:
            raise CardMissingError(f"needs '{selector.words}', which does not answer", found.cards, True)
        raise SelectorError(f"'{selector.words}' is no card that can be used; see rig_gpus.")
    out, out_missing = _left_out(selector, machine)
    fitting = [gpu for gpu in machine.cards if gpu.card.uuid not in out and _fits(selector, gpu)]
    if not fitting:
        for card in (*machine.missing, *machine.silent):
            if _names(selector, card):
                raise CardMissingError(f"'{selector.words}' does not answer: {_missing_words([card])}", [card], True)
    unsure = [card for card in machine.missing if card not in out_missing and _could_mean(selector, card)]
    if unsure and (selector.take != ONE or not fitting):
        known = ", ".join(card.pci for card in unsure) if all(card.pci for card in unsure) else "ADDRESS"
        hint = f" To go on without it: all except {known}, or name the cards." if selector.take == ALL else ""
        raise CardMissingError(
            f"'{selector.words}' cannot be decided while a card does not answer: {_missing_words(unsure)}.{hint}",
            unsure,
            False,
        )
    if not fitting:
        raise SelectorError(
            f"'{selector.words}' fits no card.{_near(selector, machine)} Cards here: {_listed(machine.cards)}."
        )
    if selector.take == FASTEST:
        fitting = _fastest(selector, fitting)
    if selector.take != ALL and len(fitting) > 1:
        raise SelectorError(
            f"'{selector.words}' fits {len(fitting)} cards: {_listed(fitting)}. "
            "Name one by its UUID or PCI address, or write take: all for every one of them."
        )
    return fitting


def _left_out(selector: Selector, machine: Machine) -> tuple[set[str], set[MissingCard]]:
    """UUIDs of the cards, and the missing cards, that `except` names."""
    uuids: set[str] = set()
    missing: set[MissingCard] = set()
    for part in selector.excluded:
        try:
            uuids |= {gpu.card.uuid for gpu in choose(part, machine)}
        except CardMissingError as error:  # noqa: PERF203 (everything is tried)
            if not error.named:
                raise
            missing |= set(error.cards)
    return uuids, missing


def _fastest(selector: Selector, cards: Sequence[Gpu]) -> list[Gpu]:
    speeds = [(speed(gpu) or 0.0, gpu) for gpu in cards]
    untold = [gpu for rate, gpu in speeds if not rate]
    if untold and len(cards) > 1:
        raise SelectorError(
            f"'{selector.words}': no memory bandwidth or compute capability is known of {_listed(untold)}. "
            "Name the card by its UUID or PCI address."
        )
    best = max(rate for rate, _gpu in speeds)
    return [gpu for rate, gpu in speeds if rate == best]


def _near(selector: Selector, machine: Machine) -> str:
    if selector.product and not any(is_product(selector.product, gpu.card.name) for gpu in machine.cards):
        here = sorted({short_name(gpu.card.name) for gpu in machine.cards})
        wanted = set(_words(short_name(selector.product)))
        variant = [name for name in here if wanted <= set(_words(name))]
        return f" Did you mean {variant[0]}?" if variant else did_you_mean(short_name(selector.product), here)
    if selector.min_memory_gib:
        return " Memory counts as engines see it: a card of 24 GB has about 23.5 GiB."
    return ""


# -- roles ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Resolution:
    """`roles`: those that could be decided, cards in their order. `unordered`: roles whose order is only that of the
    slots. `undecided`: role -> why not, for want of a card that does not answer. `missing`: declared cards that do not
    answer, in words. `problems`: what is wrong with the inventory on this machine; with any of them nothing should be
    done.
    """

    roles: Mapping[str, tuple[Gpu, ...]]
    undecided: Mapping[str, str]
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unordered: frozenset[str] = frozenset()


def resolve(report: GpuReport, declared: Sequence[DeclaredCard], wanted: Sequence[WantedRole]) -> Resolution:
    """Give each role its cards.

    Where no role is wanted and the machine has cards, the role `inference` gets all of them.
    """
    bare = machine_of(report)
    names, problems = match_declared(declared, bare)
    machine = Machine(bare.cards, bare.missing, bare.silent, names)
    if not wanted and (machine.cards or machine.missing):
        wanted = [WantedRole(DEFAULT_GPU_ROLE, (("rig_gpu_roles (not written)", Selector(ALL, take=ALL)),))]
    roles: dict[str, tuple[Gpu, ...]] = {}
    undecided: dict[str, str] = {}
    for role in wanted:
        chosen: dict[str, tuple[str, Gpu]] = {}
        for path, selector in role.selectors:
            try:
                for gpu in choose(selector, machine):
                    first = chosen.setdefault(gpu.card.uuid, (path, gpu))[0]
                    if first != path:
                        problems.append(f"{path}: {describe(gpu)} is already in this role by {first}. Name it once.")
            except CardMissingError as error:  # noqa: PERF203 (everything is tried)
                undecided[role.name] = f"{path}: {error}"
            except SelectorError as error:
                if not selector.name:  # what is wrong with a declared card is told once, by match_declared
                    problems.append(f"{path}: {error}")
        if role.name not in undecided:
            roles[role.name] = tuple(gpu for _path, gpu in chosen.values())
    problems += _exclusive_problems(wanted, roles)
    missing = [
        f"{card.path} ({card.name}): {found}"
        for card in declared
        if isinstance(found := names.get(card.name), CardMissingError)
    ]
    unordered = frozenset(role.name for role in wanted if len(role.selectors) == 1 and role.selectors[0][1].take == ALL)
    return Resolution(roles, undecided, tuple(missing), tuple(problems), unordered)


def _exclusive_problems(wanted: Sequence[WantedRole], roles: Mapping[str, Sequence[Gpu]]) -> Iterator[str]:
    holders: dict[str, list[WantedRole]] = {}
    cards = {gpu.card.uuid: gpu for chosen in roles.values() for gpu in chosen}
    for role in wanted:
        for gpu in roles.get(role.name, ()):
            holders.setdefault(gpu.card.uuid, []).append(role)
    for uuid, sharing in holders.items():
        strict = [role.name for role in sharing if role.exclusive]
        if strict and len(sharing) > 1:
            yield (
                f"rig_gpu_roles: {describe(cards[uuid])} is in the roles {', '.join(role.name for role in sharing)}, "
                f"and {' and '.join(strict)} {'is' if len(strict) == 1 else 'are'} exclusive. "
                "Take the card out of all but one of them, or write exclusive: false."
            )


def match_declared(
    declared: Sequence[DeclaredCard], machine: Machine
) -> tuple[dict[str, Gpu | CardMissingError], list[str]]:
    """(name of rig_gpus -> the card that answers or why it does not, how the machine contradicts the list in words).

    Entries with an address come first, so that 'the other RTX 3090' may be declared by its product alone.
    """
    found: dict[str, Gpu | CardMissingError] = {}
    problems: dict[str, str] = {}
    claimed: dict[str, str] = {}
    gone: set[MissingCard] = set()
    for card in sorted(declared, key=lambda card: not (card.selector.pci or card.selector.uuid)):
        addressed = bool(card.selector.pci or card.selector.uuid)
        cards = tuple(gpu for gpu in machine.cards if addressed or gpu.card.uuid not in claimed)
        here = Machine(cards, tuple(lost for lost in machine.missing if lost not in gone), machine.silent)
        try:
            gpu = choose(card.selector, here)[0]
        except CardMissingError as error:
            lost = error.cards[0]  # the list says what is bolted in: what neither answers nor is another one is this
            gone.add(lost)
            found[card.name] = CardMissingError(
                f"'{card.name}' does not answer: {_missing_words([lost])}", [lost], True
            )
            continue
        except SelectorError as error:
            taken = f" Other entries take {len(claimed)} cards." if claimed and not addressed else ""
            problems[card.path] = f"{card.path} ({card.name}): {_contradiction(card, machine) or error}{taken}"
            continue
        if gpu.card.uuid in claimed:
            problems[card.path] = f"{card.path} ({card.name}): {describe(gpu)} is {claimed[gpu.card.uuid]} already."
        claimed.setdefault(gpu.card.uuid, f"{card.path} ({card.name})")
        found[card.name] = gpu
    extra = [gpu for gpu in machine.cards if gpu.card.uuid not in claimed] if declared and not problems else []
    undeclared = [
        f"rig_gpus: does not list {describe(gpu)}, which is in the machine. Add it, for example "
        f"- {{name: ..., uuid: {gpu.card.uuid}}}, or take it out of the machine."
        for gpu in extra
    ]
    return found, [problems[card.path] for card in declared if card.path in problems] + undeclared


def _contradiction(card: DeclaredCard, machine: Machine) -> str:
    """What is in the declared place, or where the declared card is instead; '' where neither is known."""
    wanted = card.selector
    for gpu in machine.cards:
        if wanted.uuid == gpu.card.uuid.lower():
            return (
                f"declared as '{wanted.words}', found {describe(gpu)}. Correct the entry, or leave pci out: it moved."
            )
    for gpu in machine.cards:
        if wanted.pci == gpu.card.pci:
            return (
                f"declared as '{wanted.words}', found there {describe(gpu)}. Correct the entry, or put the card back."
            )
    return ""
