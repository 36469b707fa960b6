# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv of one exact version on a host, from the package index by hash, and the Pythons that uv manages. (outside)

<uv>/<version>/bin/uv, uvx      the programs alone, they need no Python; with .complete.json and .manifest.json
<uv>/current -> <version>
<uv>/install.log, .lock         pip's output; held while somebody installs
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from . import building, interpreters
from .building import BuildError, Step
from .interpreters import Interpreter, Need
from .lockfile import SpecError, check_spec, for_uv, parse
from .small_files import readable_by_all

PROGRAMS = ("uv", "uvx")
# The oldest whose bundled pip can check hashes and knows the wheels' platform tag (PEP 600).
PIP_PYTHON = ">=3.8"

# Where ensurepip has it: a distribution may keep its wheels elsewhere. Making a venv with it takes five seconds.
_PIP_WHEEL = """
import ensurepip, glob, os, sysconfig
bundled = os.path.join(os.path.dirname(ensurepip.__file__), "_bundled")
places = [sysconfig.get_config_var("WHEEL_PKG_DIR") or "", bundled]
print(next((path for place in places if place for path in glob.glob(os.path.join(place, "pip-*.whl"))), ""))
"""

UV_LOG = "install.log"
PYTHON_LOG = "install.log"
_LOCK_FILE = ".lock"
_PYTHON_LOCK_FILE = ".gpurig.lock"  # .lock is uv's own there
_VERSION = re.compile(r"^\d+(\.\d+)*([a-z]+\d+)?$")


class RequirementsError(BuildError):
    """The requirements do not name one hashed version of uv."""


class NoPythonError(BuildError):
    """No interpreter fits; the message says what was found and every way out."""


@dataclasses.dataclass(frozen=True)
class UvWish:
    """The uv that should be there. `requirements`: text of a hashed requirements file with uv alone in it.

    `python`: an interpreter with venv and ensurepip, empty to look for one. `wait_s`, `timeout_s`: see environments.
    """

    requirements: str
    uv_dir: Path
    python: str = ""
    wait_s: float = 600.0
    timeout_s: float = 1800.0


@dataclasses.dataclass(frozen=True)
class UvOutcome:
    """What was done, or in check mode would be. `before` and `after`: texts for a diff."""

    version: str
    path: Path
    steps: tuple[Step, ...]
    differences: tuple[str, ...]
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class UvState:
    """What is there. `version`: of what; `link`: the link's target; `complete`: the marker is there."""

    link: str
    complete: bool
    leftovers: tuple[str, ...]
    differences: tuple[str, ...]


def version_of(requirements: str, wanted: str = "") -> str:
    """The version of uv that the requirements name. `wanted`: the version that it must be, empty for any.

    Raises RequirementsError.
    """
    lock = parse(requirements)
    problems = list(lock.problems)
    if not problems and (lock.names != ("uv",) or len(lock.packages) != 1):
        problems.append(f"they name {', '.join(lock.names)}; needed: uv alone, in one version")
    version = lock.packages[0][1] if not problems else ""
    if not problems and not _VERSION.match(version):
        problems.append(f"uv's version is {version!r}; needed: one like 0.13.8")
    if not problems and wanted not in {"", version}:
        problems.append(f"version is {wanted}, but they name uv=={version}; make them anew for the version wanted")
    if problems:
        raise RequirementsError("requirements of uv cannot be used:\n" + "\n".join(problems))
    return version


def converge_uv(
    wish: UvWish, wanted: str = "", check: bool = False, environment: Mapping[str, str] | None = None
) -> UvOutcome:
    """Have uv there, or in check mode say what would be done. `environment`: of pip, this process's own by default.

    Raises BuildError and its kinds. On failure the earlier uv stays.
    """
    version = version_of(wish.requirements, wanted)
    variables = os.environ if environment is None else environment
    try:
        if check:
            return _uv_outcome(wish, version, _look(wish, version))
        with readable_by_all():
            wish.uv_dir.mkdir(parents=True, exist_ok=True)
            with building.exclusive(wish.uv_dir / _LOCK_FILE, wish.wait_s) as lock_fd:
                outcome = _uv_outcome(wish, version, _look(wish, version))
                for step in outcome.steps:
                    if step.action == "build":
                        _build_uv(wish, version, lock_fd, variables)
                    elif step.action == "switch":
                        building.switch_link(wish.uv_dir / building.LINK, version)
                    else:
                        building.remove(wish.uv_dir / step.subject)
                return outcome
    except OSError as error:
        raise BuildError(f"uv: {error.filename or wish.uv_dir}: {error.strerror or error}") from error


def plan_uv(state: UvState, version: str) -> tuple[Step, ...]:
    """The changes that lead to uv of this version, in order. Pure."""
    steps = [Step("remove", name, "left by a run that was cut off") for name in state.leftovers]
    if state.differences:
        more = f" and {len(state.differences) - 1} more" if len(state.differences) > 1 else ""
        steps.append(Step("build", version, f"damaged, {state.differences[0]}{more}"))
    elif not state.complete:
        steps.append(Step("build", version, "not there yet"))
    if state.link != version:
        steps.append(Step("switch", building.LINK, f"from {state.link or 'nothing'} to {version}"))
    return tuple(steps)


def _look(wish: UvWish, version: str) -> UvState:
    target = wish.uv_dir / version
    complete = building.is_finished(target)
    differences: list[str] = []
    if complete:
        differences = building.damage(target)
        try:
            said = building.answer_of([os.fspath(target / "bin" / "uv"), "--version"])
            if said.split()[1:2] != [version]:
                differences.append(f"bin/uv: says {said!r}, needed: uv {version}")
        except BuildError as error:
            differences.append(f"bin/uv: {error}")
    link = building.link_target(wish.uv_dir / building.LINK)
    return UvState(link, complete, tuple(building.leftovers(wish.uv_dir)), tuple(differences))


def _uv_outcome(wish: UvWish, version: str, state: UvState) -> UvOutcome:
    steps = plan_uv(state, version)
    lines = [f"current -> {state.link}"] if state.link else []
    lines += [f"complete {version}"] if state.complete else []
    after = [f"current -> {version}", f"complete {version}"]
    lines += [f"damaged {line}" for line in state.differences] + [f"unfinished {name}" for name in state.leftovers]
    before = "".join(f"{line}\n" for line in lines)
    return UvOutcome(
        version, wish.uv_dir / version, steps, state.differences, before, "".join(f"{line}\n" for line in after)
    )


def _build_uv(wish: UvWish, version: str, lock_fd: int, environment: Mapping[str, str]) -> None:
    python = _python_with_pip(wish.python, environment)
    building.check_space([("uv", wish.uv_dir, 2 * parse(wish.requirements).environment_bytes)], 16 << 20)
    target = wish.uv_dir / (building.BUILD_PREFIX + version)
    building.remove(target)
    runner = building.Runner(
        # A pip that insists on a virtual environment has none here, and changes nothing that is not ours.
        building.clean_environment(pip_environment(environment), PIP_REQUIRE_VIRTUALENV="0"),
        wish.uv_dir / UV_LOG,
        lock_fd,
        time.monotonic() + wish.timeout_s,
    )
    try:
        packages, tree = target / "packages", target / "tree"
        (tree / "bin").mkdir(parents=True)
        requirements = target / "requirements.txt"
        requirements.write_text(wish.requirements, encoding="utf-8")
        pip = [*_pip(python, target / "venv", runner), "install", "--require-hashes", "--no-deps"]
        pip += [
            "--only-binary=:all:",
            "--no-compile",
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar=off",
        ]
        pip += ["--target", os.fspath(packages), "--requirement", os.fspath(requirements)]
        runner.run(pip, f"pip install of uv=={version}")
        # The wheel is nothing but two programs that need no Python.
        for program in PROGRAMS:
            shutil.move(packages / "bin" / program, tree / "bin" / program)
        said = building.answer_of([os.fspath(tree / "bin" / "uv"), "--version"])
        if said.split()[1:2] != [version]:
            raise BuildError(f"the uv installed as {version} says {said!r}")
        building.finish(tree, {"version": version, "made_with": python})
        building.put_in_place(tree, wish.uv_dir / version)
    finally:
        building.remove(target)


def _pip(python: str, venv: Path, runner: building.Runner) -> list[str]:
    """The command of the pip that comes with Python, from its wheel; where that is not found, from a new venv."""
    wheel = building.answer_of([python, "-I", "-c", _PIP_WHEEL])
    if wheel:
        return [python, "-I", os.path.join(wheel, "pip")]  # noqa: PTH118 (inside of a file)
    runner.run([python, "-I", "-m", "venv", os.fspath(venv)], f"python -m venv with {python} for uv")
    return [os.fspath(venv / "bin" / "python"), "-I", "-m", "pip"]


def pip_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip needs to reach the index that uv's variables name: pip knows none of them. Set PIP_ variables win.

    Without a cache directory of its own pip keeps none, so that nothing of ours lies in somebody's home.
    """
    given = dict(environment)
    index = given.get("UV_DEFAULT_INDEX") or given.get("UV_INDEX_URL") or ""
    derived = {
        "PIP_INDEX_URL": re.sub(r"^[\w.-]+=(?=\w+:)", "", index),  # uv's may be named: mirror=https://...
        "PIP_CERT": given.get("SSL_CERT_FILE"),
        "PIP_FIND_LINKS": given.get("UV_FIND_LINKS", "").replace(",", " ").strip(),
    }
    found = {name: value for name, value in derived.items() if value and not given.get(name)}
    if not given.get("PIP_CACHE_DIR"):
        found["PIP_NO_CACHE_DIR"] = "1"
    return {**given, **found}


def _python_with_pip(python: str, environment: Mapping[str, str]) -> str:
    need = Need(PIP_PYTHON, venv=True)
    try:
        # The one that runs the module is nearly always good enough; looking for all of them takes a second.
        first = interpreters.probe(python or sys.executable)
        if not interpreters.lacks(first, need):
            return first.path
        found = interpreters.Survey((first,), ())
    except interpreters.ProbeError as error:
        found = interpreters.Survey((), ((python or sys.executable, str(error)),))
    if not python:
        found = interpreters.survey("", environment)
        chosen = interpreters.choose(need, found.interpreters)
        if chosen is not None:
            return chosen.path
    raise NoPythonError(
        f"uv is installed with Python {PIP_PYTHON} that has venv and ensurepip; none was found:\n"
        + "\n".join(interpreters.report(found, need))
        + "\nInstall the package python3-venv: apt-get install python3-venv"
    )


@dataclasses.dataclass(frozen=True)
class PythonWish:
    """The interpreter that should be there. `need`: what it must have; `install_dir`: where uv puts its own.

    `managed`: one of uv's before one of the system, which may be gone after a restart.
    """

    need: Need
    uv: str
    install_dir: Path
    wait_s: float = 600.0
    timeout_s: float = 1800.0
    managed: bool = False


@dataclasses.dataclass(frozen=True)
class PythonOutcome:
    """The interpreter, None in check mode when uv would install one; whether it was installed; all that was seen."""

    interpreter: Interpreter | None
    changed: bool
    candidates: tuple[str, ...]


def is_another_user(name: str) -> bool:
    """Whether `name` is not the user who runs this; a user who is not there yet is another one."""
    try:
        return bool(name) and pwd.getpwnam(name).pw_uid != os.geteuid()
    except KeyError:
        return True


def provide_python(
    wish: PythonWish, check: bool = False, environment: Mapping[str, str] | None = None, running: str | None = None
) -> PythonOutcome:
    """Find an interpreter, or have uv install one. `environment`, `running`: see interpreters.survey; also for uv.

    Where a managed one is wished for and uv cannot install one, a system one that fits is the second best.
    Raises NoPythonError with every way out, BuildError, BusyError.
    """
    variables = os.environ if environment is None else environment
    try:
        check_spec(wish.need.spec)
    except SpecError as error:
        raise BuildError(f"python: {error}") from error
    found = interpreters.survey(os.fspath(wish.install_dir), variables, running)
    chosen = _choose(wish, found)
    lines = tuple(interpreters.report(found, wish.need))
    if chosen is not None or check:
        return PythonOutcome(chosen, chosen is None, lines)
    try:
        changed = _have_installed(wish, variables, lines)
        found = interpreters.survey(os.fspath(wish.install_dir), variables, running)
        chosen = _choose(wish, found)
        lines = tuple(interpreters.report(found, wish.need))
        if chosen is None:
            raise NoPythonError(_ways_out(wish, lines, "What uv installed is not what was asked for."))  # noqa: TRY301
    except NoPythonError:
        chosen, changed = interpreters.choose(wish.need, found.interpreters), False
        if chosen is None:
            raise
    return PythonOutcome(chosen, changed, lines)


def _choose(wish: PythonWish, found: interpreters.Survey) -> Interpreter | None:
    allowed = (one for one in found.interpreters if one.source == "managed" or not wish.managed)
    return interpreters.choose(wish.need, allowed)


def _have_installed(wish: PythonWish, environment: Mapping[str, str], lines: tuple[str, ...]) -> bool:
    if not os.access(wish.uv, os.X_OK):
        raise NoPythonError(_ways_out(wish, lines, f"uv, which could install one, is not at {wish.uv}."))
    try:
        with readable_by_all():
            wish.install_dir.mkdir(parents=True, exist_ok=True)
            with building.exclusive(wish.install_dir / _PYTHON_LOCK_FILE, wish.wait_s) as lock_fd:
                return _install_python(wish, lock_fd, environment, lines)
    except OSError as error:
        raise BuildError(f"python: {error.filename or wish.install_dir}: {error.strerror or error}") from error


def _install_python(wish: PythonWish, lock_fd: int, environment: Mapping[str, str], lines: tuple[str, ...]) -> bool:
    managed = interpreters.survey(os.fspath(wish.install_dir), {}, "")
    if _choose(wish, managed) is not None:
        return False  # another run installed it while we waited
    # uv keeps no Python in its cache, and would make one in somebody's home for nothing.
    cleaned = building.clean_environment(
        environment, UV_PYTHON_INSTALL_DIR=os.fspath(wish.install_dir), UV_NO_CACHE="1"
    )
    runner = building.Runner(cleaned, wish.install_dir / PYTHON_LOG, lock_fd, time.monotonic() + wish.timeout_s)
    # --reinstall: uv takes a directory with the right name for an installed Python, even when it does not run.
    command = [wish.uv, "python", "install", "--no-bin", "--reinstall", for_uv(wish.need.spec) or "3"]
    try:
        runner.run(command, f"uv python install {command[-1]}")
    except BuildError as error:
        raise NoPythonError(_ways_out(wish, lines, f"uv could not install one: {error}")) from error
    return True


def _ways_out(wish: PythonWish, lines: tuple[str, ...], problem: str) -> str:
    need = wish.need
    wanted = f"Python {need.spec or '3'}" + (" with Python.h" if need.headers else "")
    wanted += " that every user may read" if need.for_everyone else ""
    example = next((part for part in re.findall(r"3\.\d+", need.spec)), "3")
    packages = f"python{example}" + (f" python{example}-dev" if need.headers else "")
    ways = [
        f"install one on the host, for example: apt-get install {packages}",
        "let uv download one: UV_PYTHON_DOWNLOADS must not be 'never', and github.com must be reachable",
        "name a mirror: UV_PYTHON_INSTALL_MIRROR or UV_PYTHON_DOWNLOADS_JSON_URL in rig_environment",
    ]
    seen = list(lines) or ["nothing"]
    return "\n".join([f"{wanted} is needed. {problem}", "Found:", *seen, "Ways out:", *(f"- {way}" for way in ways)])
