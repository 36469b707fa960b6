# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What files a directory of ours held when it was finished, to see later that one is gone or was edited. (outside)

Size and modification time are compared, not content: 60,000 files take a second, and that on every run. What Python
writes by itself (__pycache__, *.pyc) and files that came later are not looked at.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

FORMAT = 1

# A network volume may answer with full nanoseconds at first and with what it really stored (seconds; NFS: often
# microseconds) once the client's cache is gone: the same time with its tail cut off is the same time.
_TIME_STEPS_NS = (100, 1_000, 1_000_000, 1_000_000_000)


class ManifestError(Exception):
    """The manifest is missing or is not one; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One file that is not as it was. `kind`: missing, kind (file, link, other), size, mtime_ns or target."""

    path: str
    kind: str
    expected: str
    found: str

    def __str__(self) -> str:
        if self.kind == "missing":
            return f"{self.path}: missing"
        return f"{self.path}: {self.kind} is {self.found}, was {self.expected}"


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace the file in one step, on the disk when this returns. Raises OSError."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_manifest(directory: Path, path: Path, exclude: Collection[str] = ()) -> int:
    """Record every file and link below `directory` in `path` and return how many there are.

    `exclude`: files and directories, relative to `directory`, that may change; `path` itself is left out anyway.
    Raises OSError, also when something vanishes meanwhile.
    """
    left_out = {*exclude, os.path.relpath(path, directory)}
    files: dict[str, list[int]] = {}
    links: dict[str, str] = {}
    for name, entry in _walk(os.fspath(directory), left_out):
        if entry.is_symlink():
            links[name] = os.readlink(entry.path)  # noqa: PTH115  (60,000 Path objects would double the time)
        else:
            state = entry.stat(follow_symlinks=False)
            files[name] = [state.st_size, state.st_mtime_ns]
    # ASCII only: names that are not UTF-8 are surrogates here, which JSON can hold and a UTF-8 file cannot.
    write_text(path, json.dumps({"format": FORMAT, "files": files, "links": links}, separators=(",", ":")) + "\n")
    return len(files) + len(links)


def compare(directory: Path, manifest: Path) -> list[Difference]:
    """What is not as the manifest says, by path; empty when all is well. Raises ManifestError and OSError."""
    files, links = _read(manifest)
    prefix = os.fspath(directory) + "/"
    differences: list[Difference] = []
    for name, (size, mtime_ns) in files.items():
        state = _lstat(prefix + name)
        if state is None:
            differences.append(Difference(name, "missing", "a file", "nothing"))
        elif not stat.S_ISREG(state.st_mode):
            differences.append(Difference(name, "kind", "a file", _kind(state)))
        elif state.st_size != size:
            differences.append(Difference(name, "size", str(size), str(state.st_size)))
        elif state.st_mtime_ns != mtime_ns and not _same_time(mtime_ns, state.st_mtime_ns):
            differences.append(Difference(name, "mtime_ns", str(mtime_ns), str(state.st_mtime_ns)))
    for name, target in links.items():
        state = _lstat(prefix + name)
        if state is None:
            differences.append(Difference(name, "missing", f"a link to {target}", "nothing"))
        elif not stat.S_ISLNK(state.st_mode):
            differences.append(Difference(name, "kind", "a link", _kind(state)))
        elif (found := os.readlink(prefix + name)) != target:  # noqa: PTH115
            differences.append(Difference(name, "target", target, found))
    return sorted(differences, key=lambda difference: difference.path)


def _walk(top: str, left_out: Collection[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    waiting = [""]
    while waiting:
        below = waiting.pop()
        with os.scandir(f"{top}/{below}") as entries:
            for entry in entries:
                name = below + entry.name
                if name in left_out or entry.name == "__pycache__" or entry.name.endswith(".pyc"):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{name}/")
                elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                    yield name, entry


def _read(manifest: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    try:
        read = json.loads(manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{manifest}: missing") from None
    except (ValueError, OSError) as error:
        raise ManifestError(f"{manifest}: cannot be read: {error}") from error
    if not isinstance(read, dict) or read.get("format") != FORMAT:
        raise ManifestError(f"{manifest}: not a manifest of format {FORMAT}")
    files, links = read.get("files"), read.get("links")
    if (
        not isinstance(files, dict)
        or not isinstance(links, dict)
        or not all(isinstance(entry, list) and [type(part) for part in entry] == [int, int] for entry in files.values())
        or not all(isinstance(target, str) for target in links.values())
    ):
        raise ManifestError(f"{manifest}: not a manifest: an entry has a wrong form")
    return files, links


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _kind(state: os.stat_result) -> str:
    if stat.S_ISLNK(state.st_mode):
        return "a link"
    if stat.S_ISDIR(state.st_mode):
        return "a directory"
    return "a file" if stat.S_ISREG(state.st_mode) else "something else"


def _same_time(recorded_ns: int, found_ns: int) -> bool:
    return any(found_ns == recorded_ns - recorded_ns % step_ns for step_ns in _TIME_STEPS_NS)
