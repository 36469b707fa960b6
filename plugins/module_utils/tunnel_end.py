# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of a tunnel's near end: its key, whom it trusts and where it leads. (outside)"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .owned_files import InstallError, Owner, Step, lstat, mark, plan_directory, plan_file, plan_mark
from .small_files import read_json, write_text

FOLDER_MODE, PRIVATE_MODE, PROGRAM_MODE = 0o700, 0o600, 0o644
KEYGEN_S = 30


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
    """Return where the tunnel has led; empty when nowhere yet. Raises InstallError for an unreadable file."""
    if lstat(end.target) is None:
        return {}
    found = read_json(end.target)
    if found is None or not {"host", "user"} <= found.keys():
        raise InstallError(
            f"{end.target}: does not say where the tunnel has led, so its node cannot be told that it ends. Move the "
            "file away, take the tunnel's line out of that node's authorized_keys, then run again."
        )
    return {key: str(value) for key, value in found.items()}


def blob(public: str) -> str:
    """Return what tells a key from every other: the type and the key of a line as in a .pub file, without comment."""
    return " ".join(public.split()[:2])


def public_half(end: End, keygen: str) -> str:
    """Return the key's blob; empty when there is no key. Raises InstallError when the private half cannot be read."""
    if lstat(end.key) is None:
        return ""
    try:
        # The folder is the service's user's, who could put a link to somebody else's file in its place.
        with open(os.open(f"{end.key}.pub", os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:  # noqa: PTH123
            return blob(file.read())
    except FileNotFoundError:
        return blob(_run(end.key, [keygen, "-y", "-P", "", "-f", end.key]))


def _run(path: str, argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=KEYGEN_S)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"{path}: ssh-keygen says: {error.stderr.strip()}. Move it away, then run again.") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{path}: ssh-keygen did not run: {error}") from error
    return done.stdout


def make_key(end: End, comment: str, keygen: str, scratch: str | None) -> None:
    """Make a key pair. It is made elsewhere first, so that no half of one is ever in place. Raises InstallError."""
    with tempfile.TemporaryDirectory(dir=scratch) as made:
        _run(end.key, [keygen, "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", f"{made}/key"])
        public, private = (Path(made, name).read_text(encoding="utf-8") for name in ("key.pub", "key"))
        write_text(f"{end.key}.pub", public)
        write_text(end.key, private, PRIVATE_MODE)


def plan_key(end: End, owner: Owner, comment: str, keygen: str, scratch: str | None) -> list[Step]:
    """Return the changes that make the key and give it to who runs the tunnel; one that is there is kept for ever."""

    def make() -> None:
        make_key(end, comment, keygen, scratch)
        mark(end.key, PRIVATE_MODE, owner)

    if lstat(end.key) is None:
        return [Step(end.key, "missing", "a new ed25519 key", make)]
    return plan_mark(end.key, PRIVATE_MODE, owner)


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


def plan_folder(end: End, owner: Owner, ours: Owner, program: str, text: str) -> list[Step]:
    """Return the changes that bring the program and the folder of the tunnels."""
    return plan_file(program, text, PROGRAM_MODE, ours) + plan_directory(end.folder, FOLDER_MODE, owner)
