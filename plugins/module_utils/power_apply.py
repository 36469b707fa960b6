# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Power limits on this host's cards: look, set, read back, and the policy file that says what is ours. (outside)

The policy file is written before a card is touched, so that whatever a killed run has set is known to the next one,
and again when something was given back. Persistence mode is switched through NVML, which asks nvidia-persistenced where
that runs and keeps the driver loaded by itself where it does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import nvml
from .gpu_model import Card, UnreachableCard
from .power_plan import (
    LOCKED_CLOCKS,
    PERSISTENCE,
    POWER_LIMIT,
    Change,
    PolicyError,
    Record,
    Seen,
    record_as_dict,
    record_from_dict,
    roles_from,
    settled,
)
from .small_files import write_text

POLICY_NAME = "gpu_power.json"
ROLES_NAME = "gpu_roles.json"
LOCK_NAME = ".gpu_power.lock"
LOCK_TIMEOUT_S = 120.0
_POLL_S = 0.01
_PLAUSIBLE_CPU_W = 1000.0


@dataclass(frozen=True)
class Look:
    """The host's cards: those that answer, those that the driver cannot hand out, and what failed in words."""

    seen: tuple[Seen, ...]
    lost: tuple[UnreachableCard, ...]


@dataclass(frozen=True)
class Outcome:
    """What was done of a plan, what failed in words, and on which cards (UUIDs)."""

    done: tuple[Change, ...]
    failures: tuple[str, ...]
    failed_cards: tuple[str, ...]


def look(library: nvml.Nvml) -> Look:
    """Read what a power policy needs of every card. A card that is lost meanwhile counts as lost."""
    cards, lost = library.survey()
    seen: list[Seen] = []
    gone = list(lost)
    for card in cards:
        found = _read(library, card)
        if isinstance(found, Seen):
            seen.append(found)
        else:
            gone.append(found)
    return Look(tuple(seen), tuple(gone))


def _read(library: nvml.Nvml, card: Card) -> Seen | UnreachableCard:
    try:
        return Seen(card, library.power(card))
    except nvml.NvmlError as error:
        return UnreachableCard(error.reason, str(error), card.index, card.pci)


# -- files ------------------------------------------------------------------------------------------------------------
def _load(path: str) -> Any:
    """The file's JSON, None where there is no file. Raises PolicyError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"{path}: is no JSON ({error})") from error


def read_record(config: str) -> Record:
    """What we set on this host's cards; empty where we set nothing. Raises PolicyError for a file edited by hand."""
    path = f"{config}/{POLICY_NAME}"
    data = _load(path)
    try:
        return Record() if data is None else record_from_dict(data)
    except PolicyError as error:
        raise PolicyError(
            f"{path}: {error}; it is written by gpurig alone. Remove it and run the playbook again: what is set now is "
            "then nobody's, and a limit that the inventory no longer names stays until the next boot."
        ) from error


def read_roles(config: str) -> dict[str, list[str]]:
    """Role -> cards from the map that the role gpu_roles writes; empty where there is none. Raises PolicyError."""
    path = f"{config}/{ROLES_NAME}"
    data = _load(path)
    try:
        return {} if data is None else roles_from(data)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}. The role gpu_roles writes this file: run it again.") from error


def record_text(record: Record) -> str:
    """The policy file's content; '' for a record of nothing, which has no file."""
    if not record.cards and not record.released:
        return ""
    return json.dumps(record_as_dict(record), indent=2, sort_keys=True) + "\n"


def write_record(config: str, record: Record) -> None:
    """Replace the policy file in one step where its content changes, remove it where there is nothing to say."""
    path = Path(config, POLICY_NAME)
    text = record_text(record)
    if not text:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        Path(config).mkdir(mode=0o755, parents=True, exist_ok=True)
        write_text(str(path), text)


@contextlib.contextmanager
def alone(config: str) -> Iterator[None]:
    """Let one process at a time read, change and write the policy of this host. Raises PolicyError, OSError."""
    Path(config).mkdir(mode=0o755, parents=True, exist_ok=True)
    handle = os.open(f"{config}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _locked(handle):
            if time.monotonic() > deadline:
                raise PolicyError(
                    f"{config}/{LOCK_NAME}: held by another run for more than {LOCK_TIMEOUT_S:.0f} s. "
                    "End that run (it may wait for a card that hangs), then run again."
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


# -- setting ----------------------------------------------------------------------------------------------------------
def carry_out(library: nvml.Nvml, changes: Iterable[Change], seen: Sequence[Seen]) -> Outcome:
    """Make the changes, each read back where NVML can. A card that fails keeps no other card from its changes.

    After a refusal that concerns the whole card (lost, no permission) the card's further changes are not tried.
    """
    cards = {one.card.uuid: one.card for one in seen}
    done: list[Change] = []
    failures: list[str] = []
    failed: dict[str, bool] = {}
    for change in changes:
        if failed.get(change.uuid):
            continue
        try:
            _set(library, cards[change.uuid], change)
            done.append(change)
        except nvml.NvmlError as error:
            failures.append(f"{change.setting} to {change.after}: {error}")
            failed[change.uuid] = isinstance(error, (*nvml.UNREACHABLE, nvml.NoPermission, nvml.CardNotFound))
    return Outcome(tuple(done), tuple(failures), tuple(failed))


def _set(library: nvml.Nvml, card: Card, change: Change) -> None:
    if change.setting == POWER_LIMIT:
        library.set_power_limit(card, change.value)
    elif change.setting == PERSISTENCE:
        library.set_persistence(card, bool(change.value))
    elif change.value:
        library.lock_clocks(card, 0, change.value)
    else:
        library.reset_locked_clocks(card)


def enforce(
    library: nvml.Nvml, config: str, aim: Record, changes: Sequence[Change], seen: Sequence[Seen], boot: str
) -> Outcome:
    """Write the policy, make the changes, and write what is then known. The caller holds `alone`. Raises OSError."""
    write_record(config, aim)
    outcome = carry_out(library, changes, seen)
    locked = [change.uuid for change in outcome.done if change.setting == LOCKED_CLOCKS and change.value]
    write_record(config, settled(aim, seen, outcome.failed_cards, locked, boot))
    return outcome


# -- the processor ----------------------------------------------------------------------------------------------------
def processor_limit_w(sysfs_root: str = "/sys") -> float | None:
    """The sustained limit of all processor packages, as RAPL has it; None where the kernel does not tell.

    Some boards write a limit of several kilowatts, which means none.
    """
    total_w = 0.0
    for zone in sorted(Path(sysfs_root, "class/powercap").glob("intel-rapl:*")):
        if not _word(zone / "name").startswith("package"):
            continue
        limits = [
            _word(name.with_name(name.name.replace("_name", "_power_limit_uw")))
            for name in sorted(zone.glob("constraint_*_name"))
            if _word(name) == "long_term"
        ]
        if not limits or not limits[0].isdigit() or not 0 < int(limits[0]) / 1e6 <= _PLAUSIBLE_CPU_W:
            return None
        total_w += int(limits[0]) / 1e6
    return round(total_w, 1) or None


def _word(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def groups_in_watts(
    groups: Mapping[str, Sequence[str]], limits_mw: Mapping[str, int | None], seen: Sequence[Seen]
) -> dict[str, dict[str, float | None]]:
    """The groups of a budget with each card's limit in watts."""
    labels = {one.card.uuid: one.card.label for one in seen}
    watts = {uuid: None if mw is None else mw / 1000 for uuid, mw in limits_mw.items()}
    return {group: {labels[uuid]: watts[uuid] for uuid in uuids} for group, uuids in groups.items()}
