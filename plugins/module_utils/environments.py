# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python environment of one engine: what a lock names, installed by uv, beside the one that is in use. (outside)

<envs>/<name>/<lock id>/             a relocatable venv, with .complete.json, .manifest.json, requirements.lock
<envs>/<name>/current -> <lock id>   switched last
<envs>/<name>/build.log, compile.log, .lock   uv's output; the compiler's; held while somebody builds
"""

from __future__ import annotations

import base64
import binascii
import csv
import dataclasses
import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import building, bytecode, interpreters
from .building import BuildError, Step
from .lockfile import Lock, lock_id, normalized, parse
from .small_files import readable_by_all

LOCK_COPY = "requirements.lock"
LOG = "build.log"
COMPILE_LOG = "compile.log"
LOCK_FILE = ".lock"

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
_ID = re.compile(r"^[0-9a-f]{16}$")
_MAY_CHANGE = (".lock",)  # uv's own lock file inside a venv, touched by every `uv pip list`
_HASH_BLOCK_BYTES = 1 << 20
# As many as pip's. uv's own 3 give an index 10 s to come back, these about 25 s (measured with uv 0.13.8).
_HTTP_RETRIES = "5"


class LockRefusedError(BuildError):
    """The lock cannot be used; the message lists every reason."""


@dataclasses.dataclass(frozen=True)
class Wish:
    """The environment that should be there.

    `lock_text`: see lockfile. `python`: an interpreter, of a venv or not; used only when something must be built.
    `keep`: how many earlier environments stay, beside those that a text below `records_dir` names: a service runs from
    them, or could go back to them. `margin_bytes`: what must stay free on the disk. `wait_s`: for another
    run at the same place. `timeout_s`: for one build.
    """

    name: str
    lock_text: str
    envs_dir: Path
    uv: str
    python: str
    cache_dir: Path
    keep: int = 1
    records_dir: Path | None = None
    margin_bytes: int = 256 << 20
    wait_s: float = 1800.0
    timeout_s: float = 7200.0

    @property
    def lock_id(self) -> str:
        """Name of the environment's directory."""
        return lock_id(self.lock_text)

    @property
    def home(self) -> Path:
        """Where all environments of this name lie."""
        return self.envs_dir / self.name

    @property
    def path(self) -> Path:
        """The environment."""
        return self.home / self.lock_id

    @property
    def link(self) -> Path:
        """The link that services use."""
        return self.home / building.LINK


@dataclasses.dataclass(frozen=True)
class State:
    """What is there.

    `current`: the link's target, "" for none. `complete`: ids, last used first. `unfinished`: ids without a marker.
    `leftovers`: what runs that were cut off were building, replacing or linking. `differences`: what is wrong with the
    wanted environment, if that is complete. `used`: ids that a service's record names.
    """

    current: str
    complete: tuple[str, ...]
    unfinished: tuple[str, ...]
    leftovers: tuple[str, ...]
    differences: tuple[str, ...]
    used: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was done, or in check mode would be. `before` and `after`: texts for a diff."""

    steps: tuple[Step, ...]
    differences: tuple[str, ...]
    previous: str
    before: str
    after: str

    @property
    def built(self) -> bool:
        """Whether the environment was built, not only switched to or tidied up."""
        return any(step.action == "build" for step in self.steps)


def read_lock(wish: Wish) -> Lock:
    """The wish's lock. Raises LockRefusedError, also for a name that cannot be a directory's and a wrong processor."""
    lock = parse(wish.lock_text)
    problems = list(lock.problems)
    if not _NAME.match(wish.name):
        problems.append(f"name is {wish.name!r}; needed: letters, digits, '.', '_' and '-', not '.' first")
    if lock.machine and lock.machine != platform.machine():
        problems.append(f"the lock is for {lock.platform}, this machine is {platform.machine()}")
    if problems:
        raise LockRefusedError(f"the lock of {wish.name} cannot be used:\n" + "\n".join(problems))
    return lock


def look(wish: Wish) -> State:
    """See what is there; changes nothing. Raises BuildError when `current` is not a link, OSError."""
    current = building.link_target(wish.link)
    found = [path.name for path in wish.home.iterdir() if _ID.match(path.name)] if wish.home.is_dir() else []
    complete = [name for name in sorted(found) if building.is_finished(wish.home / name)]
    complete.sort(key=lambda name: -_last_used_ns(wish.home / name))
    unfinished = [name for name in sorted(found) if name not in complete]
    differences = _damage(wish) if wish.lock_id in complete else []
    leftovers = tuple(building.leftovers(wish.home))
    used = _used(wish, found)
    return State(current, tuple(complete), tuple(unfinished), leftovers, tuple(differences), used)


def _used(wish: Wish, ids: Iterable[str]) -> frozenset[str]:
    records = wish.records_dir.rglob("*.json") if wish.records_dir else ()
    text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in records)
    return frozenset(name for name in ids if f"/{wish.name}/{name}/" in text)


def plan(state: State, wanted: str, keep: int) -> tuple[Step, ...]:
    """The changes that lead from `state` to the wanted environment, in order. Pure."""
    build = bool(state.differences) or wanted not in state.complete
    # Leftovers go first, for their space; but a finished build that only waits for its rename is used.
    used = {building.BUILD_PREFIX + wanted} if build else set()
    steps = [Step("remove", name, "left by a run that was cut off") for name in state.leftovers if name not in used]
    if state.differences:
        steps.append(Step("build", wanted, f"damaged, {_counted(state.differences)}"))
    elif build:
        steps.append(Step("build", wanted, "was not finished" if wanted in state.unfinished else "not there yet"))
    if state.current != wanted:
        steps.append(Step("switch", building.LINK, f"from {state.current or 'nothing'} to {wanted}"))
    earlier = [name for name in state.complete if name != wanted and name not in state.used]
    earlier.sort(key=lambda name: name != state.current)
    steps += [
        Step("remove", name, "was not finished") for name in state.unfinished if name not in {wanted, *state.used}
    ]
    steps += [Step("remove", name, f"older than the {keep} kept") for name in earlier[keep:]]
    return tuple(steps)


def converge(wish: Wish, check: bool = False, environment: Mapping[str, str] | None = None) -> Outcome:
    """Make the environment that is wished for, or in check mode say what would be done.

    `environment`: of uv, this process's own by default. On failure everything is as it was, `current` above all.
    Raises BuildError and its kinds.
    """
    lock = read_lock(wish)
    try:
        if check:
            return _outcome(wish, look(wish))
        with readable_by_all():
            wish.home.mkdir(parents=True, exist_ok=True)
            with building.exclusive(wish.home / LOCK_FILE, wish.wait_s) as lock_fd:
                state = look(wish)
                outcome = _outcome(wish, state)
                for step in outcome.steps:
                    _apply(step, wish, lock, state, lock_fd, os.environ if environment is None else environment)
                return outcome
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise BuildError(f"environment {wish.name}: {where}{error.strerror or error}") from error


def _apply(step: Step, wish: Wish, lock: Lock, state: State, lock_fd: int, environment: Mapping[str, str]) -> None:
    if step.action == "build":
        _build(wish, lock, bool(state.differences), lock_fd, environment)
    elif step.action == "switch":
        if state.current in state.complete:
            # The marker's time says when an environment was last in use; the youngest is the one to keep.
            os.utime(wish.home / state.current / building.MARKER)
        building.switch_link(wish.link, wish.lock_id)
    else:
        building.remove(wish.home / step.subject)


def _build(wish: Wish, lock: Lock, damaged: bool, lock_fd: int, environment: Mapping[str, str]) -> None:
    target = wish.home / (building.BUILD_PREFIX + wish.lock_id)
    # Cut off between the marker and the rename: all the work is done.
    if not (building.is_finished(target) and not building.damage(target)):
        base = _base(wish, lock)
        building.remove(target)
        building.check_space(
            [("environment", wish.home, lock.environment_bytes), *_cache_space(wish, lock)], wish.margin_bytes
        )
        try:
            _install(wish, lock, base, target, damaged, lock_fd, environment)
        except BaseException:
            building.remove(target)
            raise
    building.put_in_place(target, wish.path)


def _cache_space(wish: Wish, lock: Lock) -> list[tuple[str, Path, int]]:
    # uv unpacks into its cache and hard-links from there; on two file systems everything is there twice.
    parts = [("download", wish.cache_dir, lock.download_bytes)]
    if _device(wish.cache_dir) != _device(wish.home):
        parts.append(("unpacked", wish.cache_dir, lock.environment_bytes))
    return parts


def _device(path: Path) -> int:
    return next(parent for parent in (path, *path.parents) if parent.exists()).stat().st_dev


def _base(wish: Wish, lock: Lock) -> interpreters.Interpreter:
    if not os.access(wish.uv, os.X_OK):
        raise BuildError(f"uv: {wish.uv} is not there; needed to build {wish.name}. Run the role python_uv first.")
    if not wish.python:
        raise BuildError(f"python is empty; needed: an interpreter to build {wish.name} on (python_interpreter).")
    try:
        base = interpreters.probe(wish.python)
        reasons = interpreters.lacks(base, interpreters.Need(lock.python, headers=lock.needs_headers))
    except interpreters.ProbeError as error:
        raise BuildError(f"python: {wish.python} {error}. Give one that python_interpreter found.") from error
    if reasons:
        raise BuildError(
            f"python: {base.path} is {base.implementation} {base.version_text} ({', '.join(reasons)}); "
            f"the lock of {wish.name} needs {lock.python or 'any version'}"
            f"{' with Python.h' if lock.needs_headers else ''}. Give one that python_interpreter found."
        )
    return base


def _install(
    wish: Wish,
    lock: Lock,
    base: interpreters.Interpreter,
    target: Path,
    damaged: bool,
    lock_fd: int,
    environment: Mapping[str, str],
) -> None:
    began = time.monotonic()
    cleaned = building.clean_environment(
        {"UV_HTTP_RETRIES": _HTTP_RETRIES, **environment},
        UV_CACHE_DIR=os.fspath(wish.cache_dir),
        UV_PYTHON_DOWNLOADS="never",
    )
    runner = building.Runner(cleaned, wish.home / LOG, lock_fd, began + wish.timeout_s)
    python = os.fspath(target / "bin" / "python")
    # Relocatable, since it is renamed when it is complete; the name that services use is never without its files.
    make = [wish.uv, "venv", "--no-project", "--relocatable", "--prompt", wish.name, "--python", base.path]
    runner.run([*make, os.fspath(target)], f"uv venv for {wish.name}")
    copy = target / LOCK_COPY
    copy.write_text(wish.lock_text, encoding="utf-8")
    # --no-deps: the lock is whole; without it uv resolves again and stumbles over what the lock overrides.
    install = [wish.uv, "pip", "install", "--python", python, "--require-hashes", "--no-deps", "-r", os.fspath(copy)]
    runner.run(install, f"uv pip install of {len(lock.names)} packages for {wish.name}")
    spoiled = unlike_record(target, contents=damaged)
    if spoiled:
        # uv hard-links from its cache: a file edited in an environment, or lost with the power, is edited there too.
        runner.run([wish.uv, "cache", "clean", *spoiled], f"uv cache clean of {', '.join(spoiled)}")
        again = [part for name in spoiled for part in ("--reinstall-package", name)]
        runner.run([*install, *again], f"uv pip install of {', '.join(spoiled)} again for {wish.name}")
    reused = 0 if damaged else sum(bytecode.reuse(earlier, target) for earlier in _earlier(wish, base))
    compiler = dataclasses.replace(runner, log=wish.home / COMPILE_LOG)
    compiler.run(bytecode.compile_command(target), f"compiling the packages of {wish.name}")
    marker = {
        "name": wish.name,
        "lock_id": wish.lock_id,
        "python": base.path,
        "version": base.version_text,
        "packages": len(lock.names),
        "downloaded_again": spoiled,
        "bytecode_reused": reused,
        "seconds": round(time.monotonic() - began, 1),
    }
    building.finish(target, marker, _MAY_CHANGE)


def _earlier(wish: Wish, base: interpreters.Interpreter) -> list[Path]:
    """Environments of this name for the same Python, last used first."""
    found = [path.parent for path in wish.home.glob(f"*/{building.MARKER}") if _ID.match(path.parent.name)]
    same = [path for path in found if building.read_marker(path).get("version") == base.version_text]
    return sorted(same, key=lambda path: -_last_used_ns(path))


def unlike_record(environment: Path, contents: bool) -> list[str]:
    """Packages that are not as their wheels say (RECORD): a file is missing or has another size, with `contents` also
    another SHA-256. Normalized names, sorted. What an installer writes itself carries no such entry and is skipped."""
    spoiled = set()
    for record in environment.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        site = record.parent.parent
        try:
            rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
        except (ValueError, csv.Error):
            rows = []
        if not rows or not all(_as_recorded(site, row, contents) for row in rows):
            spoiled.add(normalized(record.parent.name.removesuffix(".dist-info").rpartition("-")[0]))
    return sorted(spoiled)


def _as_recorded(site: Path, row: list[str], contents: bool) -> bool:
    name, digest, size = (*row, "", "", "")[:3]
    file = site / name
    if name.endswith(".pyc"):  # some wheels ship bytecode, and it is compiled anew
        return True
    try:
        if size and file.stat().st_size != int(size):
            return False
        if contents and digest.startswith("sha256="):
            return _sha256(file) == _unpadded(digest.removeprefix("sha256="))
        return file.exists()
    except (OSError, ValueError, binascii.Error):
        return False


def _unpadded(digest: str) -> bytes:
    return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4))


def _sha256(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def _damage(wish: Wish) -> list[str]:
    marker = building.read_marker(wish.path)
    version = str(marker.get("version", ""))
    if marker.get("lock_id") != wish.lock_id or not version:
        return [f"{building.MARKER}: is not this environment's marker"]
    differences = building.damage(wish.path)
    try:
        found = building.answer_of(
            [
                os.fspath(wish.path / "bin" / "python"),
                "-I",
                "-S",
                "-c",
                "import platform as p; print(p.python_version())",
            ]
        )
    except BuildError as error:
        return [*differences, f"bin/python: {error}"]
    if found.split(".")[:2] != version.split(".")[:2]:
        differences.append(f"bin/python: is Python {found}, the environment was built for {version}")
    return differences


def _outcome(wish: Wish, state: State) -> Outcome:
    steps = plan(state, wish.lock_id, wish.keep)
    previous = state.current if state.current != wish.lock_id else ""
    if not steps:
        text = _text(wish, state.current, state.complete, ())
        return Outcome((), state.differences, previous, text, text)
    removed = {step.subject for step in steps if step.action == "remove"}
    notes = [f"damaged {line}" for line in state.differences]
    notes += [f"unfinished {name}" for name in (*state.unfinished, *state.leftovers)]
    before = _text(wish, state.current, state.complete, notes)
    stays = {wish.lock_id, *state.complete} - removed
    after = _text(wish, wish.lock_id, stays, ())
    return Outcome(steps, state.differences, previous, before, after)


def _text(wish: Wish, current: str, complete: Iterable[str], notes: Iterable[str]) -> str:
    lines = [f"current -> {current}"] if current else []
    lines += [f"complete {name}" for name in sorted(complete)]
    lines += notes
    text = wish.lock_text if current == wish.lock_id else _stored_lock(wish.home / current)
    lines += [f"{name}=={version}" for name, version in parse(text).packages]
    return "".join(f"{line}\n" for line in lines)


def _stored_lock(directory: Path) -> str:
    try:
        return (directory / LOCK_COPY).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _last_used_ns(directory: Path) -> int:
    try:
        return (directory / building.MARKER).stat().st_mtime_ns
    except OSError:
        return 0


def _counted(lines: tuple[str, ...]) -> str:
    return f"{lines[0]}" + (f" and {len(lines) - 1} more" if len(lines) > 1 else "")
