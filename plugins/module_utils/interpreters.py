# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which Python interpreters a host has, and which of them an environment is built on. (outside)

Every candidate is run, because a name tells little: a pyenv shim may answer 'command not found', python3 may be a
virtual environment's, a distribution's Python may lack ensurepip or Python.h.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .lockfile import matches

_DISTRIBUTION = "/usr/bin/"
SYSTEM_DIRECTORIES = ("/usr/bin", "/usr/local/bin")
PROBE_TIMEOUT_S = 20.0
_PROBES_AT_ONCE = 8

_PYTHON_NAME = re.compile(r"^python3(\.\d+)?$")

# Runs on any Python 3: only what 3.4 knew.
_PROBE = r"""
import json, os, platform, sys, sysconfig
try:
    import ensurepip
    ensurepip.version()
    import venv
    has_venv = True
except Exception:
    has_venv = False
include = [sysconfig.get_paths().get("include"), sysconfig.get_config_var("INCLUDEPY")]
print("gpurig:" + json.dumps({
    "version": list(sys.version_info[:3]),
    "final": sys.version_info[3] == "final",
    "implementation": platform.python_implementation(),
    "bits": 64 if sys.maxsize > 2 ** 32 else 32,
    "base": getattr(sys, "_base_executable", None) or sys.executable,
    "is_venv": sys.prefix != sys.base_prefix,
    "base_prefix": sys.base_exec_prefix,
    "library": os.path.dirname(os.__file__),
    "include": include[0] or include[1] or "",
    "headers": any(path and os.path.isfile(os.path.join(path, "Python.h")) for path in include),
    "venv": has_venv,
}))
"""


class ProbeError(Exception):
    """A candidate that is no usable interpreter; the message says in one line what it answered."""


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """One interpreter that ran. Never a virtual environment's: those are resolved to what they were made from.

    `path`: free of links. `source`: system or managed (installed by uv below our own directory). `headers`: Python.h
    is there. `venv`: venv and ensurepip are there. `for_everyone`: other users may run it; one in root's home is not.
    """

    path: str
    source: str
    version: tuple[int, int, int]
    implementation: str
    bits: int
    final: bool
    headers: bool
    include: str
    venv: bool
    for_everyone: bool

    @property
    def version_text(self) -> str:
        """For example 3.12.1."""
        return ".".join(map(str, self.version))


@dataclasses.dataclass(frozen=True)
class Need:
    """What an interpreter must have. `spec`: as lockfile.matches reads it."""

    spec: str
    headers: bool = False
    venv: bool = False
    for_everyone: bool = False


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found: interpreters, best first, and the candidates that did not run with what they answered."""

    interpreters: tuple[Interpreter, ...]
    skipped: tuple[tuple[str, str], ...]


def candidate_paths(managed_dir: str, environment: Mapping[str, str], running: str = "") -> list[tuple[str, str]]:
    """(path, source) of everything that looks like an interpreter, free of links, each path once.

    `managed_dir`: where uv installs interpreters, empty for none. `environment`: PATH, HOME and PYENV_ROOT are read.
    `running`: the base interpreter of this process, `sys._base_executable`.
    """
    directories = [part for part in environment.get("PATH", "").split(os.pathsep) if part.startswith("/")]
    directories += SYSTEM_DIRECTORIES
    home = environment.get("HOME", "")
    pyenv_roots = [environment.get("PYENV_ROOT", ""), f"{home}/.pyenv" if home.startswith("/") else ""]
    for pyenv_root in filter(None, pyenv_roots):
        directories += [os.fspath(path) for path in _sorted_below(Path(pyenv_root) / "versions", "*/bin")]
    found: dict[str, str] = {}
    if managed_dir:
        for path in _sorted_below(Path(managed_dir), "cpython-*/bin"):
            found.update(dict.fromkeys(_pythons_in(path), "managed"))
    for directory in dict.fromkeys(directories):
        for name in _pythons_in(Path(directory)):
            found.setdefault(name, "system")
    if running:
        found.setdefault(os.path.realpath(running), "system")
    return list(found.items())


def probe(path: str, source: str = "system") -> Interpreter:
    """Run an interpreter and describe it; one of a virtual environment stands for the one it was made from.

    Raises ProbeError, within PROBE_TIMEOUT_S per interpreter run.
    """
    answer = _ask(path)
    if answer["is_venv"]:
        answer = _ask_base(answer)
    real = os.path.realpath(str(answer["base"]))
    return Interpreter(
        path=real,
        source=source,
        version=(int(answer["version"][0]), int(answer["version"][1]), int(answer["version"][2])),
        implementation=str(answer["implementation"]),
        bits=int(answer["bits"]),
        final=bool(answer["final"]),
        headers=bool(answer["headers"]),
        include=str(answer["include"]),
        venv=bool(answer["venv"]),
        for_everyone=open_to_everyone(real) and open_to_everyone(str(answer["library"])),
    )


def survey(managed_dir: str, environment: Mapping[str, str] | None = None, running: str | None = None) -> Survey:
    """Find and run every candidate of this host. `environment` and `running`: by default this process's own."""
    variables = os.environ if environment is None else environment
    base = str(getattr(sys, "_base_executable", sys.executable) or "") if running is None else running
    candidates = candidate_paths(managed_dir, variables, base)
    found: dict[str, Interpreter] = {}
    skipped: list[tuple[str, str]] = []
    with concurrent.futures.ThreadPoolExecutor(_PROBES_AT_ONCE) as pool:
        for (path, _source), answer in zip(candidates, pool.map(_probe_or_reason, candidates), strict=True):
            if isinstance(answer, str):
                skipped.append((path, answer))
            else:
                found.setdefault(answer.path, answer)
    return Survey(tuple(sorted(found.values(), key=_rank)), tuple(skipped))


def lacks(interpreter: Interpreter, need: Need) -> list[str]:
    """Why this interpreter cannot be used, in few words each; empty when it can. Raises lockfile.SpecError."""
    reasons = []
    if not matches(interpreter.version, need.spec):
        reasons.append(f"not {need.spec}")
    if interpreter.implementation != "CPython":
        reasons.append(f"{interpreter.implementation}, not CPython")
    if interpreter.bits != 64:
        reasons.append(f"{interpreter.bits} bit")
    if not interpreter.final:
        reasons.append("not a final release")
    if need.headers and not interpreter.headers:
        reasons.append(f"no Python.h in {interpreter.include or 'its include directory'}")
    if need.venv and not interpreter.venv:
        reasons.append("no venv with ensurepip")
    if need.for_everyone and not interpreter.for_everyone:
        reasons.append("other users may not read it")
    return reasons


def choose(need: Need, candidates: Iterable[Interpreter]) -> Interpreter | None:
    """The best of those that lack nothing: a system one before a managed one, of those the distribution's first, then
    the highest version, then the path.

    The distribution's is built with optimizations, which pyenv's is not (by a third slower), gets security updates, and
    is in nobody's home. Raises lockfile.SpecError.
    """
    fitting = [interpreter for interpreter in candidates if not lacks(interpreter, need)]
    return min(fitting, key=_rank, default=None)


def report(found: Survey, need: Need) -> list[str]:
    """One line per candidate: what it is and why it was not taken. Raises lockfile.SpecError."""
    lines = []
    for interpreter in found.interpreters:
        reasons = lacks(interpreter, need)
        lines.append(
            f"{interpreter.path}: {interpreter.source} {interpreter.implementation} {interpreter.version_text}"
            + (f" ({', '.join(reasons)})" if reasons else "")
        )
    return lines + [f"{path}: skipped ({reason})" for path, reason in found.skipped]


def open_to_everyone(path: str) -> bool:
    """Whether any user may reach and read (a directory: list) this path, by the permission bits of all above it."""
    try:
        target = Path(path).resolve(strict=True)
        if not target.stat().st_mode & stat.S_IROTH:
            return False
        return all(directory.stat().st_mode & stat.S_IXOTH for directory in (target, *target.parents))
    except (OSError, RuntimeError):
        return False


def _sorted_below(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(directory.glob(pattern))
    except OSError:
        return []


def _pythons_in(directory: Path) -> list[str]:
    try:
        files = sorted(path for path in directory.iterdir() if _PYTHON_NAME.match(path.name))
    except OSError:
        return []
    real = [os.path.realpath(path) for path in files]
    return list(dict.fromkeys(path for path in real if os.access(path, os.X_OK) and Path(path).is_file()))


def _probe_or_reason(candidate: tuple[str, str]) -> Interpreter | str:
    try:
        return probe(*candidate)
    except ProbeError as error:
        return str(error)


def _ask_base(answer: dict[str, Any]) -> dict[str, Any]:
    # Before 3.11 a virtual environment of copies names itself as its base: then the base's prefix tells.
    name = "python{}.{}".format(*answer["version"])
    tried = [str(answer["base"]), f"{answer['base_prefix']}/bin/{name}"]
    for base in tried:
        with contextlib.suppress(ProbeError):
            found = _ask(base)
            if not found["is_venv"]:
                return found
    raise ProbeError(f"is a virtual environment's, and what it was made from does not run ({', '.join(tried)})")


def _ask(path: str) -> dict[str, Any]:
    # LC_ALL: the reason that a shim or the loader gives is quoted to the user, so in one language.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [path, "-I", "-c", _PROBE],
            capture_output=True,
            check=False,
            timeout=PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"gave no answer within {PROBE_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise ProbeError(f"cannot be run: {error.strerror or error}") from error
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("gpurig:"):
            try:
                answer = json.loads(line.removeprefix("gpurig:"))
            except ValueError:
                break
            if isinstance(answer, dict):
                return answer
    said = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    raise ProbeError(f"exit {done.returncode}: {said[0] if said else 'said nothing'}")


def _rank(interpreter: Interpreter) -> tuple[bool, bool, tuple[int, ...], str]:
    added = not interpreter.path.startswith(_DISTRIBUTION)
    return interpreter.source != "system", added, tuple(-number for number in interpreter.version), interpreter.path
