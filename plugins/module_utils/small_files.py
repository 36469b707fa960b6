# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small files of ours: read as JSON, replaced in one step, readable by those who need them. (outside)"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def read_json(path: str) -> dict[str, Any] | None:
    """Return the JSON object in the file; None when it is missing, unreadable or something else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: str, content: Mapping[str, Any], mode: int = 0o644) -> None:
    """Replace the record of a run in one step. It means nothing after the next boot, so no start waits for the disk."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n", mode, durable=False)


@contextlib.contextmanager
def readable_by_all() -> Iterator[None]:
    """Create files that services may read, whatever the caller's umask is: they run as other users than we do."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def write_text(
    path: str, text: str, mode: int = 0o644, durable: bool = True, owner: tuple[int, int] = (-1, -1)
) -> None:
    """Replace the file in one step: a reader sees the old or the new content and no mixture, if `durable` also after
    a power failure. `owner`: the ids of user and group, set before the file is in place; -1 leaves one as it is.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            if owner != (-1, -1):
                os.fchown(stream.fileno(), *owner)
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
