# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bytecode of an environment: what an earlier one has for the same file is taken over, the rest compiled. (outside)

An upgrade changes few of its packages, and compiling all of them takes longer than everything else in a build.
Folders of packages' own tests stay without bytecode: what has none is compiled whenever a process imports it.
"""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_HEADER = struct.Struct("<4sIII")  # magic, flags, the source's mtime and size: PEP 552, flags 0 for checked by mtime
_PROGRAM = """
import compileall, importlib.util, marshal, os, signal, sys

def is_sound(bytecode):
    try:
        with open(bytecode, "rb") as stream:
            return hasattr(marshal.loads(stream.read()[16:]), "co_code")
    except (OSError, EOFError, TypeError, ValueError):
        return False

def work_on(file):
    bytecode = importlib.util.cache_from_source(file)
    if os.path.lexists(bytecode) and not is_sound(bytecode):
        os.unlink(bytecode)
    compileall.compile_file(file, quiet=2)

sizes = {}
for place, folders, names in os.walk(sys.argv[1]):
    folders[:] = [name for name in folders if name != "tests"]
    files = [os.path.join(place, name) for name in names if name.endswith(".py")]
    sizes.update((file, os.path.getsize(file)) for file in files if os.path.isfile(file))
found = sorted(sizes, key=sizes.get)
processes = min(len(os.sched_getaffinity(0)), 16)
signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL))
for number in range(processes):
    if os.fork() == 0:
        for file in found[number::processes]:
            work_on(file)
        os._exit(0)
ends = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(processes)]
if any(ends):
    sys.exit(f"processes that compiled ended with {ends}; a negative number is the signal that killed one")
"""


def compile_command(environment: Path) -> list[str]:
    """The command that compiles, on up to 16 processors, what has no bytecode that is sound and its own, and can be.

    It wants a session of its own, which it ends when it is told to end. It never changes a file in place: what it
    compiles anew is another file than the one that was taken over.
    """
    python = os.fspath(environment / "bin/python")
    return [python, "-I", "-W", "ignore", "-c", _PROGRAM, os.fspath(environment / "lib")]


def reuse(earlier: Path, environment: Path) -> int:
    """Link the bytecode of files that are the same in both environments, and return of how many.

    `earlier`: built for the same version of Python. The same are files of which wheels' records have the same hash, and
    bytecode is taken when it was compiled from a file of this very size and time. What cannot be linked is left out.
    """
    known, wanted = dict(_recorded(earlier)), dict(_recorded(environment))
    done, top = 0, os.fspath(earlier)
    for folder, _folders, names in os.walk(os.path.join(top, "lib")):  # noqa: PTH118 (paths would triple the time)
        if not folder.endswith("/__pycache__"):
            continue
        package = os.path.relpath(os.path.dirname(folder), top)  # noqa: PTH120
        for name in names:
            source = f"{package}/{name.rsplit('.', 2)[0]}.py"  # of name.cpython-312.pyc
            digest = wanted.get(source)
            if digest and known.get(source) == digest:
                with suppress(OSError):
                    done += _link(f"{folder}/{name}", f"{environment}/{source}", f"{environment}/{package}/__pycache__")
    return done


def _link(compiled: str, source: str, folder: str) -> bool:
    with open(compiled, "rb") as stream:  # noqa: PTH123
        header = stream.read(_HEADER.size)
    state = os.stat(source)  # noqa: PTH116
    if len(header) < _HEADER.size or _HEADER.unpack(header)[1:] != (0, int(state.st_mtime), state.st_size):
        return False
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    os.link(compiled, os.path.join(folder, os.path.basename(compiled)))  # noqa: PTH118,PTH119
    return True


def _recorded(environment: Path) -> Iterator[tuple[str, str]]:
    """Python files below the environment and their hashes, as their wheels say."""
    for record in environment.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        site = record.parent.parent.relative_to(environment)
        with suppress(OSError, ValueError, csv.Error):
            for name, digest, *_size in csv.reader(record.read_text(encoding="utf-8").splitlines()):
                if name.endswith(".py") and digest:
                    yield f"{site}/{name}", digest
