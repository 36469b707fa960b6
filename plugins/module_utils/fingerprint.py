# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One value that changes when anything a service was started from changes. (outside)"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CONTENT_LIMIT_BYTES = 4 * 1024 * 1024
_OTHERS_READ = 0o004


def _content(path: str) -> str | None:
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(CONTENT_LIMIT_BYTES + 1)
    except OSError:
        return None
    return None if len(data) > CONTENT_LIMIT_BYTES else hashlib.sha256(data).hexdigest()


def describe(path: str) -> list[str | int]:
    """Return what the input at `path` is now, as a list that starts with the kind.

    A link is its target's text, a directory its real path, a file of at most 4 MiB that everybody may read its
    content, any other file its size and time. The mode decides and not a try to open it: root could read files that
    the service's user cannot, and both must come to the same answer. What lies below a directory named `secrets` is
    never opened.
    """
    try:
        if "secrets" in Path(path).parent.parts:
            seen = Path(path).stat()
            return ["stat", seen.st_size, seen.st_mtime_ns]
        seen = Path(path).lstat()
        if stat.S_ISLNK(seen.st_mode):
            return ["link", str(Path(path).readlink())]
    except OSError:
        return ["missing"]
    if stat.S_ISDIR(seen.st_mode):
        return ["directory", os.path.realpath(path)]
    if stat.S_ISREG(seen.st_mode) and seen.st_mode & _OTHERS_READ and seen.st_size <= CONTENT_LIMIT_BYTES:
        content = _content(path)
        if content is not None:
            return ["content", content]
    return ["stat", seen.st_size, seen.st_mtime_ns]


def parts(record_path: str, inputs: Iterable[str]) -> dict[str, str]:
    """Return {path: what it is now, as one text} of the spec record and of every input, to say later what changed."""
    found = {path: " ".join(map(str, describe(path))) for path in sorted(set(inputs))}
    content = _content(record_path)
    return {**found, record_path: f"content {content}" if content else "missing"}


def fingerprint(record_path: str, inputs: Iterable[str]) -> str:
    """Return the SHA-256 (64 hex digits) of the spec record's bytes and of every input's state.

    The order of the inputs and repeated ones make no difference. A record that cannot be read counts as missing.
    """
    return hashlib.sha256(json.dumps(parts(record_path, inputs), sort_keys=True).encode()).hexdigest()
