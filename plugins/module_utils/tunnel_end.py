# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a tunnel's near end: its key, whom it trusts and where it leads. (outside)

The folder belongs to whoever runs the tunnel, so what is found in it is judged before it is used.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .owned_files import (
    InstallError,
    Owner,
    Step,
    lstat,
    plan_directory,
    plan_file,
    plan_mark,
    read_own,
    refuse_directory,
)
from .small_files import write_text

FOLDER_MODE, PRIVATE_MODE, READABLE_MODE = 0o700, 0o600, 0o644
KEYGEN_S = 30
# Anything shorter would stand for more than one line of a node's authorized_keys.
_PUBLIC = re.compile(r"(ssh-[\w-]+|ecdsa-[\w-]+) [A-Za-z0-9+/]{40,}={0,3}")


@dataclass(frozen=True)
class End:
    """Where the files of the tunnel `name` are."""

    folder: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.folder}/{self.name}.key"

    @property
    def target(self) -> str:
        return f"{self.folder}/{self.name}.json"

    @property
    def known_hosts(self) -> str:
        return f"{self.folder}/{self.name}.known_hosts"


def earlier_target(end: End) -> dict[str, str]:
    """Return host and user that the tunnel has led to; empty when nowhere. Raises InstallError for a damaged record."""
    text = read_own(end.target)
    if text is None:
        return {}
    try:
        found = json.loads(text)
        return {name: str(found[name]) for name in ("host", "user")}
    except (ValueError, KeyError, TypeError) as error:
        raise InstallError(
            f"{end.target}: does not say where the tunnel has led, so its node cannot be told that it ends. Move the "
            "file away, take the tunnel's line out of that node's authorized_keys, then run again."
        ) from error


def blob(public: str) -> str:
    """Return what tells a key from every other: type and key of a line as in a .pub file; empty when it is none."""
    found = _PUBLIC.match(public)
    return found[0] if found else ""


def public_half(end: End, keygen: str, scratch: Callable[[], str]) -> str:
    """Return the blob of the key, read from its private half; empty when there is none. Raises InstallError.

    `scratch` returns a folder that nobody else enters.
    """
    text = read_own(end.key)
    if text is None:
        return ""
    # In a copy: ssh-keygen refuses a key that others may read, which a run is there to mend.
    with tempfile.NamedTemporaryFile("w", dir=scratch(), encoding="utf-8") as copy:
        copy.write(text)
        copy.flush()
        found = blob(_run(end.key, [keygen, "-y", "-P", "", "-f", copy.name]))
    if not found:
        raise InstallError(f"{end.key}: is no key for ssh. Move it away, then run again.")
    return found


def last_known_half(end: End, keygen: str, scratch: Callable[[], str]) -> tuple[str, str]:
    """Return (blob, why it is not known): the key's, or that of the public half that we wrote where the private one
    cannot be read. Both are empty when there is no key at all.

    A public half that the service's user wrote is not believed: it would have root take somebody else's line out of a
    node's authorized_keys.
    """
    why = ""
    try:
        if found := public_half(end, keygen, scratch):
            return found, ""
    except InstallError as error:
        why = str(error)
    try:
        text = read_own(f"{end.key}.pub", os.geteuid())
    except InstallError as error:
        return "", why or str(error)
    found = blob(text or "")
    if found or (text is None and not why):
        return found, ""
    return "", why or f"{end.key}.pub: is no public key."


def _run(path: str, argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=KEYGEN_S)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"{path}: ssh-keygen says: {error.stderr.strip()}. Move it away, then run again.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{path}: ssh-keygen did not run: {error}") from error
    return done.stdout


def make_key(end: End, owner: Owner, comment: str, keygen: str, scratch: str) -> None:
    """Make a key pair elsewhere and move it here, the private half last. Raises InstallError."""
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        _run(end.key, [keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", f"{made}/key"])
        public, private = (Path(made, name).read_text(encoding="utf-8") for name in ("key.pub", "key"))
        write_text(f"{end.key}.pub", public, READABLE_MODE)
        write_text(end.key, private, PRIVATE_MODE, owner=(owner.uid, owner.gid))


def plan_key(end: End, owner: Owner, comment: str, keygen: str, scratch: Callable[[], str]) -> list[Step]:
    """Return the changes that make the key and give it to who runs the tunnel; one that is there is kept for ever.

    `scratch` returns a folder that nobody else enters. Without `keygen` the public half is left alone. Raises
    InstallError.
    """
    if lstat(end.key) is None:
        make = Step(end.key, "missing", "a new ed25519 key", lambda: make_key(end, owner, comment, keygen, scratch()))
        return [make]
    steps, path = plan_mark(end.key, PRIVATE_MODE, owner), f"{end.key}.pub"
    if keygen:
        public, seen = public_half(end, keygen, scratch), lstat(path)
        if seen is None or seen.st_uid != os.geteuid() or blob(read_own(path) or "") != public:
            steps += plan_file(path, f"{public} {comment}\n", READABLE_MODE, Owner(os.geteuid()))
    return steps


def plan_target(
    end: End, owner: Owner, host_key: str, target: Mapping[str, str], secrets: tuple[str, str] | None
) -> list[Step]:
    """Return the changes that pin the node's key and say where it is; `secrets`: path and text of the engine's key.

    A running tunnel follows the target, so that comes after what it needs.
    """
    steps = plan_file(end.known_hosts, f"{target['host']} {host_key}\n", PRIVATE_MODE, owner, show=True)
    if secrets is not None:
        steps += plan_file(*secrets, PRIVATE_MODE, Owner())
    text = json.dumps({**target, "identity": end.key, "known_hosts": end.known_hosts}, indent=4, sort_keys=True)
    return steps + plan_file(end.target, f"{text}\n", PRIVATE_MODE, owner, show=True)


def plan_folder(end: End, owner: Owner, ours: Owner, program: str, text: str, secrets: str) -> list[Step]:
    """Return the changes that bring the program and the folder of the tunnels.

    Raises InstallError, also where plan_target could not put its files, `secrets` among them: that comes after an
    earlier node has been left.
    """
    for path in filter(None, (end.known_hosts, end.target, secrets)):
        refuse_directory(path)
    return plan_file(program, text, READABLE_MODE, ours) + plan_directory(end.folder, FOLDER_MODE, owner)
