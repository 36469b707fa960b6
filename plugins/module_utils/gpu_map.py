# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The map of GPU roles on a host: one file that services start by, changed under a lock. (outside)

<config>/gpu_roles.json              {"ROLE": ["UUID", ...]}, mode 0644, owned by who writes it (root on metal and vm)
<config>/gpu_roles.json.edited-*     what somebody else had written there, before we repaired it
<config>/.gpu_roles.written.json     the last two texts that we wrote, by which a hand edit is told from our own
<config>/.gpu_roles.lock             flock of the run that changes the map
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .small_files import read_json, write_text

MAP_NAME = "gpu_roles.json"
WRITTEN_NAME = ".gpu_roles.written.json"
LOCK_NAME = ".gpu_roles.lock"
MODE = 0o644
LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.02

Roles = dict[str, list[str]]


class MapError(Exception):
    """The map cannot be written as asked; the message says why."""


@dataclass(frozen=True)
class Found:
    """The map as it lies there. `text` None: no file of ours (nothing, or a link). `written`: the texts that we wrote
    last, newest at the end.
    """

    text: str | None = None
    content: bytes = b""
    roles: Roles | None = None
    mode: int = MODE
    uid: int = 0
    is_link: bool = False
    written: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.text in self.written

    @property
    def trusted(self) -> Roles:
        """The roles that the last run left, whatever somebody else made of the file since; of a file that no run ever
        wrote, its own.
        """
        if self.is_ours or not self.written:
            return self.roles or {}
        return parse(self.written[-1]) or {}


@dataclass(frozen=True)
class Plan:
    """What is to do: the map's text afterwards (None: no file is needed), the changes in words, whether the present
    file is to be kept aside.
    """

    roles: Roles
    text: str | None
    changes: tuple[str, ...]
    keep_aside: bool = False


def parse(text: str) -> Roles | None:
    """The roles of a map's text; None when it is no map."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair cannot be told to anybody
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(
        isinstance(cards, list) and all(isinstance(card, str) for card in cards) for cards in found.values()
    ):
        return None
    return found


def render(roles: Mapping[str, Sequence[str]]) -> str:
    """The map's text: one role a line, roles sorted, cards in their order."""
    lines = [f"  {json.dumps(role)}: {json.dumps(list(cards))}" for role, cards in sorted(roles.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n" if lines else "{}\n"


def look(config: str) -> Found:
    """Return what lies in the config directory. Raises OSError, MapError for a directory in the map's place."""
    path = Path(config, MAP_NAME)
    texts = (read_json(f"{config}/{WRITTEN_NAME}") or {}).get("texts")
    written = tuple(str(text) for text in texts) if isinstance(texts, list) else ()
    try:
        seen = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return Found(written=written)
    if stat.S_ISDIR(seen.st_mode):
        raise MapError(f"{path}: is a directory, needed a file or nothing. Move it away.")
    if not stat.S_ISREG(seen.st_mode):
        return Found(written=written, is_link=True)
    content = path.read_bytes()
    text = content.decode("utf-8", "backslashreplace")
    return Found(text, content, parse(text), stat.S_IMODE(seen.st_mode), seen.st_uid, written=written)


def plan(
    found: Found,
    wanted: Mapping[str, Sequence[str]],
    keep: Collection[str] = (),
    purge: bool = True,
    exclusive: Collection[str] = (),
    unordered: Collection[str] = (),
    uid: int = 0,
) -> Plan:
    """What is to do so that the map holds `wanted` (role -> UUIDs).

    `keep`: roles that stay as they are where they exist, because nobody can say now what they should be. `purge`: all
    other roles go; without it they stay. `exclusive`: roles of `wanted` whose cards no other role may have.
    `unordered`: roles of `wanted` that keep their order when they have the same cards as before. `uid`: the map's
    owner. Raises MapError where a role that stays has a card of an exclusive one.
    """
    staying = {role: cards for role, cards in found.trusted.items() if role in keep or not purge}
    roles = {**staying, **{role: list(cards) for role, cards in wanted.items()}}
    for role in unordered:
        before = found.trusted.get(role, [])
        if role in wanted and sorted(before) == sorted(wanted[role]):
            roles[role] = before
    _refuse_shared(roles, wanted, exclusive)
    if found.text is None and not found.is_link and not found.written and not roles:
        return Plan(roles, None, ())
    text = render(roles)
    name = MAP_NAME
    changes: list[str] = []
    edited = found.text not in (None, text) and not found.is_ours
    if edited and found.written:
        changes.append(f"{name}: was changed by somebody else since the last run; repaired, their file is kept aside")
    elif edited:
        changes.append(f"{name}: was not written by a run; written anew, the file is kept aside")
    elif found.is_link:
        changes.append(f"{name}: was a link or a special file; replaced by the map")
    elif found.text is None and found.written:
        changes.append(f"{name}: was removed by somebody else since the last run; written again")
    changes += differences(found.roles or {}, roles)
    if found.text is not None and found.mode != MODE:
        changes.append(f"{name}: mode {found.mode:04o} -> {MODE:04o}")
    if found.text is not None and found.uid != uid:
        changes.append(f"{name}: owner {found.uid} -> {uid}")
    if found.text != text and not changes:
        changes.append(f"{name}: {'is new, without roles' if found.text is None else 'written in our own form'}")
    return Plan(roles, text, tuple(changes), edited)


def _refuse_shared(roles: Roles, wanted: Collection[str], exclusive: Collection[str]) -> None:
    shared = [
        f"role {role} is exclusive, and {card} is in role {other} as well"
        for role in exclusive
        if role in wanted
        for other in roles
        if other not in wanted
        for card in roles[role]
        if card in roles[other]
    ]
    if shared:
        raise MapError(f"{MAP_NAME}: {'; '.join(shared)}. Take the card out of one of them.")


def differences(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> list[str]:
    """What changes between two maps, in words, by role."""
    found = []
    for role in sorted({*before, *after}):
        old, new = before.get(role), after.get(role)
        if old is None and new is not None:
            found.append(f"role {role}: new, {_cards(new)}")
        elif new is None and old is not None:
            found.append(f"role {role}: removed, it had {_cards(old)}")
        elif old is not None and new is not None and list(old) != list(new):
            found.append(f"role {role}: {_cards(old)} -> {_cards(new)}")
    return found


def _cards(cards: Sequence[str]) -> str:
    return ", ".join(cards) or "no cards"


@contextlib.contextmanager
def locked(config: str, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the map's lock for the length of a `with` block. Raises MapError when another run holds it for too long."""
    path = f"{config}/{LOCK_NAME}"
    # Only the owner may open it: a lock that anybody can take, anybody can keep.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MapError(
                        f"{path}: another run has held this lock for {timeout_s:g} s. Wait for it, or end it."
                    ) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def apply(config: str, found: Found, planned: Plan) -> str:
    """Write the map, by somebody who holds the lock; return the path of the file kept aside, '' where there is none.

    The record comes first and names the text before, too: whenever this is cut off, the next run knows its own.
    """
    if planned.text is None or not planned.changes:
        return ""
    aside = ""
    if planned.keep_aside:
        aside = f"{config}/{MAP_NAME}.edited-{hashlib.sha256(found.content).hexdigest()[:8]}"
        Path(aside).write_bytes(found.content)
    texts = [render(found.trusted), planned.text]
    write_text(f"{config}/{WRITTEN_NAME}", json.dumps({"texts": texts}, indent=2) + "\n", MODE)
    write_text(f"{config}/{MAP_NAME}", planned.text, MODE)
    return aside


@dataclass(frozen=True)
class Outcome:
    """What `update` found and did, or would do."""

    found: Found
    planned: Plan
    aside: str = ""


def update(
    config: str,
    wanted: Mapping[str, Sequence[str]],
    keep: Collection[str] = (),
    purge: bool = True,
    exclusive: Collection[str] = (),
    unordered: Collection[str] = (),
    check: bool = False,
) -> Outcome:
    """Make the map hold `wanted`, see `plan`; with `check` nothing is written and no lock is taken.

    Runs that name different roles and do not purge may work at the same time. Raises MapError and OSError.
    """
    uid = os.geteuid()
    if check:
        found = look(config)
        return Outcome(found, plan(found, wanted, keep, purge, exclusive, unordered, uid))
    with locked(config):
        found = look(config)
        planned = plan(found, wanted, keep, purge, exclusive, unordered, uid)
        return Outcome(found, planned, apply(config, found, planned))
