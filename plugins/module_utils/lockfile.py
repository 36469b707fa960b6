# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock: a requirements file with hashes whose comments say what its environment needs. (pure)

    # gpurig: python=>=3.10,<3.15
    # gpurig: needs_headers=true
    # gpurig: download_bytes=4300000000
    # gpurig: environment_bytes=9100000000
    # gpurig: platform=x86_64-manylinux_2_28
    six==1.17.0 \\
        --hash=sha256:4721f391...

`uv pip compile --generate-hashes` writes such a file; the `# gpurig:` lines are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import operator
import re
from collections.abc import Callable, Iterable, Iterator

LOCK_ID_LENGTH = 16

_HEADER = re.compile(r"^#\s*gpurig:\s*(?P<rest>.*)$")
_HEADER_KEYS = ("python", "needs_headers", "download_bytes", "environment_bytes", "platform")
_PLATFORM = re.compile(r"^(x86_64|aarch64)-[a-z0-9_]+$")
# Names: PEP 508; versions: PEP 440 without the wildcard, so that exactly one release fits.
_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(?:\[[^\]]*\])?\s*"
    r"(?P<operator>===?)\s*(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)\s*(?:;\s*(?P<marker>.+))?$"
)
_HASH = re.compile(r"--hash[=\s]\s*(?P<hash>\S+)")
_HASH_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_CLAUSE = re.compile(r"^(?P<operator>==|!=|>=|<=|>|<)?\s*(?P<version>\d+(?:\.\d+){0,2})(?P<any>\.\*)?$")

_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class SpecError(ValueError):
    """A wish for a Python version that cannot be read; the message names it and the forms that can."""


@dataclasses.dataclass(frozen=True)
class Lock:
    """What one lock says.

    `python`: specifier for `matches`, empty when any Python will do. `needs_headers`: Python.h must be there (code is
    compiled at run time). Bytes are 0 when the lock does not say. `platform`: as `uv pip compile --python-platform`
    names it, empty for any. `packages`: (normalized name, version) in the lock's order; a name that has several
    versions for several markers is there several times. `problems`: why the lock must be refused, one line each.
    """

    python: str
    needs_headers: bool
    download_bytes: int
    environment_bytes: int
    platform: str
    packages: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The packages' normalized names, each once, in the lock's order."""
        return tuple(dict.fromkeys(name for name, _version in self.packages))

    @property
    def machine(self) -> str:
        """The processor that the lock is for, as `uname -m` names it; empty for any."""
        return self.platform.partition("-")[0]


def lock_id(text: str) -> str:
    """The first 16 hex digits of the text's SHA-256: the name of the directory that its environment lies in."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:LOCK_ID_LENGTH]


def normalized(name: str) -> str:
    """A distribution's name as all tools compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(text: str) -> Lock:
    """Read a lock. Never raises: what is wrong is listed in `problems`, each with its line."""
    problems: list[str] = []
    headers = _headers(text, problems)
    packages: list[tuple[str, str]] = []
    seen: dict[str, tuple[int, bool]] = {}
    for number, line in _logical_lines(text):
        found = _requirement(line)
        if isinstance(found, str):
            problems.append(f"line {number}: {found}")
            continue
        name, version, marked = found
        if name in seen and not (marked and seen[name][1]):
            problems.append(f"line {number}: {name} is there already, in line {seen[name][0]}; keep one of them")
        seen.setdefault(name, (number, marked))
        packages.append((name, version))
    if not packages and not problems:
        problems.append("the lock names no package; make it with `uv pip compile --generate-hashes`")
    return Lock(
        python=headers.get("python", ""),
        needs_headers=headers.get("needs_headers", "false") == "true",
        download_bytes=int(headers.get("download_bytes", "0")),
        environment_bytes=int(headers.get("environment_bytes", "0")),
        platform=headers.get("platform", ""),
        packages=tuple(packages),
        problems=tuple(problems),
    )


def matches(version: Iterable[int], spec: str) -> bool:
    """Whether a Python of this version, for example (3, 12, 1), is what `spec` asks for.

    `spec`: clauses with == != >= <= > < between commas, all of which must hold. A version of fewer than three numbers
    stands for all releases below it: `3.12`, `==3.12`, `==3.12.*` and `<=3.12` take 3.12.1, `>3.12` does not.
    An empty spec takes every version. Raises SpecError.
    """
    numbers = tuple(version)
    clauses = [_read_clause(clause, spec) for clause in _split(spec)]
    return all(_OPERATORS[wanted](numbers[: len(bound)], bound) for wanted, bound in clauses)


def check_spec(spec: str) -> None:
    """Raise SpecError when `matches` could not read this spec."""
    matches((), spec)


def for_uv(spec: str) -> str:
    """The same wish in uv's words (PEP 440, where `==3.12` is 3.12.0 alone and `<=3.12` leaves 3.12.1 out)."""
    clauses = [_read_clause(clause, spec) for clause in _split(spec)]
    if len(clauses) == 1 and clauses[0][0] == "==":
        return ".".join(map(str, clauses[0][1]))
    return ",".join(_pep440(wanted, numbers) for wanted, numbers in clauses)


def _headers(text: str, problems: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is None:
            continue
        key, equals, value = (part.strip() for part in header["rest"].partition("="))
        problem = _header_problem(key, equals, value, key in found)
        if problem:
            problems.append(f"line {number}: {problem}")
        else:
            found[key] = value
    return found


def _header_problem(key: str, equals: str, value: str, repeated: bool) -> str:
    if not equals or key not in _HEADER_KEYS:
        return f"`# gpurig: {key}` is not known; known: {', '.join(f'{name}=...' for name in _HEADER_KEYS)}"
    if repeated:
        return f"{key} is given twice"
    if key == "python":
        try:
            check_spec(value)
        except SpecError as error:
            return str(error)
        return "" if value else "python is empty; leave the line out when any Python will do"
    if key == "needs_headers" and value not in {"true", "false"}:
        return f"needs_headers is {value!r}; needed: true or false"
    if key.endswith("_bytes") and not re.fullmatch(r"[0-9]{1,18}", value):
        return f"{key} is {value!r}; needed: a whole number of bytes"
    if key == "platform" and not _PLATFORM.match(value):
        return f"platform is {value!r}; needed: a name of uv's, for example x86_64-manylinux_2_28"
    return ""


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Requirements, each on one line and without comments, with the number of the line that it begins in."""
    started, joined = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        # A comment starts at the line's begin or after a blank, as pip and uv read it.
        line = re.sub(r"(^|\s)#.*$", "", raw).rstrip()
        continued = line.endswith("\\")
        part = line.removesuffix("\\").strip()
        if part and not joined:
            started = number
        joined = f"{joined} {part}".strip()
        if joined and not continued:
            yield started, joined
            joined = ""
    if joined:
        yield started, joined


def _requirement(line: str) -> tuple[str, str, bool] | str:
    """(normalized name, version, has a marker) of one requirement, or what is wrong with it."""
    if line.startswith("-"):
        option = re.split(r"[=\s]", line, maxsplit=1)[0]
        return f"the option {option} does not belong into a lock; index and cache are set by rig_environment"
    hashes = [found["hash"] for found in _HASH.finditer(line)]
    rest = _HASH.sub("", line).strip()
    if "--" in rest:
        return f"{rest.split()[0]} has an option besides --hash; take it out"
    found = _REQUIREMENT.match(rest)
    if found is None:
        return f"{rest!r} is not pinned to one version; needed: name==version"
    for one in hashes:
        algorithm, _colon, digits = one.partition(":")
        if len(digits) != _HASH_LENGTHS.get(algorithm) or not re.fullmatch(r"[0-9a-f]+", digits):
            return f"{found['name']} has the hash {one!r}; needed: sha256: and 64 hex digits (sha384, sha512 will do)"
    if not hashes:
        return f"{found['name']}=={found['version']} has no --hash; make the lock with --generate-hashes"
    return normalized(found["name"]), found["version"], bool(found["marker"])


def _split(spec: str) -> list[str]:
    return [clause.strip() for clause in spec.split(",")] if spec.strip() else []


def _read_clause(clause: str, spec: str) -> tuple[str, tuple[int, ...]]:
    found = _CLAUSE.match(clause)
    if found is None or (found["any"] and found["operator"] not in {None, "==", "!="}):
        raise SpecError(
            f"the Python version {spec!r} cannot be read at {clause!r}; "
            "needed: a version (3.12, 3.12.1) or clauses like >=3.10,<3.15"
        )
    return found["operator"] or "==", tuple(int(part) for part in found["version"].split("."))


def _pep440(wanted: str, numbers: tuple[int, ...]) -> str:
    if len(numbers) == 3 or wanted in {">=", "<"}:
        return wanted + ".".join(map(str, numbers))
    if wanted in {"==", "!="}:
        return wanted + ".".join(map(str, numbers)) + ".*"
    following = ".".join(map(str, (*numbers[:-1], numbers[-1] + 1)))
    return {"<=": "<", ">": ">="}[wanted] + following
