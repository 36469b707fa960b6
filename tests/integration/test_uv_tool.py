# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""uv itself, installed from the package index with its real hashes, and the Pythons that uv installs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import building, interpreters, uv_install
from ansible_collections.gpurig.llm.plugins.module_utils.building import BuildError, BusyError
from ansible_collections.gpurig.llm.plugins.module_utils.interpreters import Need, Survey
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import (
    NoPythonError,
    PythonWish,
    RequirementsError,
    UvWish,
    converge_uv,
    pip_environment,
    provide_python,
    version_of,
)

COLLECTION = Path(__file__).resolve().parents[2]
REQUIREMENTS = (COLLECTION / "roles/python_uv/files/uv.lock").read_text(encoding="utf-8")
VERSION = version_of(REQUIREMENTS)
A_HASH = "--hash=sha256:" + "a" * 64

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def installed() -> Path:
    """A <uv> with the real uv in it, kept in the checkout's cache; tests copy it."""
    uv_dir = COLLECTION / ".cache/tests/uv"
    converge_uv(UvWish(REQUIREMENTS, uv_dir))
    return uv_dir


@pytest.fixture
def done(installed: Path, tmp_path: Path) -> UvWish:
    """A wish that is fulfilled."""
    shutil.copytree(installed, tmp_path / "uv", symlinks=True)
    return UvWish(REQUIREMENTS, tmp_path / "uv")


def uv_of(wish: UvWish) -> Path:
    return wish.uv_dir / VERSION / "bin/uv"


def assert_perfect(wish: UvWish) -> None:
    assert converge_uv(wish).steps == ()
    assert str((wish.uv_dir / "current").readlink()) == VERSION
    assert sorted(path.name for path in wish.uv_dir.iterdir()) == [".lock", VERSION, "current", "install.log"]
    assert sorted(path.name for path in (wish.uv_dir / VERSION / "bin").iterdir()) == ["uv", "uvx"]


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


# --- uv itself -------------------------------------------------------------------------------------------------------


def test_the_module_from_nothing_to_unchanged(run_module: RunModule, tmp_path: Path) -> None:
    args = {"requirements": REQUIREMENTS, "version": VERSION, "uv_dir": str(tmp_path / "uv")}
    predicted = run_module("uv_tool", args, check=True)
    assert predicted["changed"], predicted
    assert predicted["download_bytes"] > 1e7
    assert not (tmp_path / "uv").exists()
    first = run_module("uv_tool", args)
    assert first["changed"], first
    assert (first["plan"], first["diff"]) == (predicted["plan"], predicted["diff"])
    assert first["plan"] == [f"build {VERSION}: not there yet", f"switch current: from nothing to {VERSION}"]
    assert first["diff"] == {"before": "", "after": f"current -> {VERSION}\ncomplete {VERSION}\n"}
    assert first["version"] == VERSION
    answer = subprocess.run([first["path"], "--version"], capture_output=True, text=True, check=True)
    assert answer.stdout.split()[:2] == ["uv", VERSION]
    second = run_module("uv_tool", args)
    assert (second["changed"], second["plan"], second["download_bytes"]) == (False, [], 0)
    assert "diff" not in second
    assert_perfect(UvWish(REQUIREMENTS, tmp_path / "uv"))


REFUSED = {
    "no hash": (f"uv=={VERSION}", "", "line 1: uv=={VERSION} has no --hash"),
    "another version": (REQUIREMENTS, "0.1.0", "version is 0.1.0, but they name uv=={VERSION}"),
    "not alone": (f"uv==1.0 {A_HASH}\nsix==1.0 {A_HASH}", "", "they name uv, six; needed: uv alone"),
    "another one": (f"six==1.0 {A_HASH}", "", "they name six; needed: uv alone"),
    "two versions": (
        f"uv==1.0 ; python_version<'3' {A_HASH}\nuv==2.0 ; python_version>'3' {A_HASH}",
        "",
        "needed: uv alone, in one version",
    ),
    "odd version": (f"uv==1!1.0 {A_HASH}", "", "uv's version is '1!1.0'; needed: one like 0.13.8"),
}


@pytest.mark.parametrize(("text", "version", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_requirements_that_are_refused(tmp_path: Path, text: str, version: str, words: str) -> None:
    with pytest.raises(RequirementsError) as caught:
        converge_uv(UvWish(text, tmp_path / "uv"), version)
    assert words.replace("{VERSION}", VERSION) in str(caught.value)
    assert not (tmp_path / "uv").exists()


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


DAMAGES: dict[str, tuple[Callable[[UvWish], object], str]] = {
    "gone": (lambda wish: uv_of(wish).unlink(), "bin/uv: missing"),
    "cut off": (lambda wish: os.truncate(uv_of(wish), 1000), "bin/uv: size is 1000"),
    "not runnable": (lambda wish: uv_of(wish).chmod(0o644), "bin/uv: does not run: Permission denied"),
    "another program": (lambda wish: script(uv_of(wish), "echo uv 0.1.0"), "bin/uv: says 'uv 0.1.0'"),
    "manifest gone": (lambda wish: (uv_of(wish).parents[1] / ".manifest.json").unlink(), ".manifest.json: missing"),
    "second program gone": (lambda wish: uv_of(wish).with_name("uvx").unlink(), "bin/uvx: missing"),
}


@pytest.mark.parametrize(("act", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_found(done: UvWish, act: Callable[[UvWish], object], words: str) -> None:
    act(done)
    outcome = converge_uv(done, check=True)
    assert words in " ".join(outcome.differences)
    assert [step.action for step in outcome.steps] == ["build"]
    assert f"damaged {outcome.differences[0]}\n" in outcome.before
    assert "damaged" not in outcome.after


def test_damage_is_repaired(done: UvWish, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_runner: building.Runner, _argv: list[str], what: str) -> None:
        """Stands for pip, which the test of the module runs."""
        if what.startswith("pip"):
            shutil.copytree(installed / VERSION / "bin", done.uv_dir / f".build-{VERSION}/packages/bin")

    monkeypatch.setattr(building.Runner, "run", run)
    uv_of(done).unlink()
    (done.uv_dir / "current").unlink()
    (done.uv_dir / f".old-{VERSION}").mkdir()
    outcome = converge_uv(done)
    assert [(step.action, step.subject) for step in outcome.steps] == [
        ("remove", f".old-{VERSION}"),
        ("build", VERSION),
        ("switch", "current"),
    ]
    assert_perfect(done)


def test_where_pip_s_wheel_is_not_found_a_venv_has_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run = building.Runner.run

    def noted(runner: building.Runner, argv: list[str], what: str) -> None:
        ran.append(what.partition(" with ")[0])
        run(runner, argv, what)

    monkeypatch.setattr(uv_install, "_PIP_WHEEL", "print()")
    monkeypatch.setattr(building.Runner, "run", noted)
    wish = UvWish(REQUIREMENTS, tmp_path / "uv")
    converge_uv(wish)
    assert ran == ["python -m venv", f"pip install of uv=={VERSION}"]
    assert_perfect(wish)


def test_a_pip_that_wants_a_virtual_environment_does_without(tmp_path: Path) -> None:
    wish = UvWish(REQUIREMENTS, tmp_path / "uv")
    converge_uv(wish, environment={**os.environ, "PIP_REQUIRE_VIRTUALENV": "1"})
    assert_perfect(wish)


LINKS: dict[str, Callable[[Path], object]] = {
    "gone": lambda link: link.unlink(),
    "dangling": lambda link: relink(link, "0.0.1"),
    "absolute": lambda link: relink(link, f"{link.parent}/{VERSION}"),
}


@pytest.mark.parametrize("act", LINKS.values(), ids=LINKS.keys())
def test_a_broken_link_is_repaired_without_a_download(done: UvWish, act: Callable[[Path], object]) -> None:
    act(done.uv_dir / "current")
    outcome = converge_uv(done, environment={"PIP_INDEX_URL": "http://127.0.0.1:9/"})
    assert [step.action for step in outcome.steps] == ["switch"]
    assert_perfect(done)


def test_a_wrong_hash_is_a_clear_error_and_leaves_what_was_there(done: UvWish) -> None:
    uv_of(done).with_name("uvx").unlink()
    wish = dataclasses.replace(done, requirements=f"uv=={VERSION} {A_HASH}\n")
    with pytest.raises(BuildError, match=rf"pip install of uv=={VERSION} failed \(exit 1\)") as caught:
        converge_uv(wish)
    assert "The index serves another file than the lock names" in str(caught.value)
    assert uv_of(done).exists()
    assert building.leftovers(done.uv_dir) == []


def run_until(wish: UvWish, stop: int) -> tuple[int, list[str]]:
    """Run converge_uv in a process that kills itself just before the n-th change of the file system (0: never).

    Returns (signal or exit status, changes). What is run stands for pip, so that a kill at each step costs no download.
    """
    home = str(wish.uv_dir)
    log = wish.uv_dir.with_suffix(".events")
    child = os.fork()
    if child == 0:
        seen: list[str] = []

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                if not isinstance(args[0], str) or not args[0].startswith(f"{home}/") or not args[2] & 3:
                    return
            elif event not in {"os.rename", "os.symlink", "shutil.rmtree"}:
                return
            seen.append(f"{event} {args[0]}")
            if len(seen) == stop:
                os.kill(os.getpid(), signal.SIGKILL)

        def run(_runner: building.Runner, _argv: list[str], _what: str) -> None:
            for name in uv_install.PROGRAMS:
                program = wish.uv_dir / f".build-{VERSION}/packages/bin/{name}"
                if not program.exists():
                    script(program, f"echo uv {VERSION}")

        status = 1
        try:
            building.Runner.run = run  # type: ignore[method-assign,assignment]
            sys.addaudithook(hook)
            converge_uv(wish)
            log.write_text(json.dumps(seen))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(log.read_text()) if log.exists() else []


def test_killed_at_every_step_the_next_run_leads_to_the_same_end(tmp_path: Path) -> None:
    def end_state(wish: UvWish) -> list[str]:
        assert converge_uv(wish, check=True).steps == ()
        return sorted(str(path.relative_to(wish.uv_dir)) for path in wish.uv_dir.rglob("*"))

    def at_the_start(name: str) -> UvWish:
        """A damaged uv, so that one is replaced."""
        (tmp_path / name / VERSION / "bin").mkdir(parents=True)
        (tmp_path / name / VERSION / ".complete.json").write_text("{}")
        return UvWish(REQUIREMENTS, tmp_path / name)

    whole = at_the_start("whole")
    status, events = run_until(whole, 0)
    assert status == 0
    assert len(events) > 12, events
    expected = end_state(whole)
    for stop in range(1, len(events) + 1):
        wish = at_the_start(f"cut{stop}")
        assert run_until(wish, stop)[0] == -signal.SIGKILL, events[stop - 1]
        assert run_until(wish, 0)[0] == 0, events[stop - 1]
        assert end_state(wish) == expected, events[stop - 1]


def test_another_run_at_the_same_place_is_waited_for(done: UvWish) -> None:
    with building.exclusive(done.uv_dir / ".lock", 1), pytest.raises(BusyError, match=f"by process {os.getpid()} or"):
        converge_uv(dataclasses.replace(done, wait_s=0.2))


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"uv: .*file.*: Not a directory"):
        converge_uv(UvWish(REQUIREMENTS, tmp_path / "file/uv"))


def without_ensurepip(path: Path) -> str:
    """An interpreter as a distribution ships it before its package python3-venv is installed."""
    site = path.parent / "hidden"
    (site / "ensurepip").mkdir(parents=True)
    (site / "ensurepip/__init__.py").write_text("raise ImportError('no ensurepip')")
    hide = f'import sys; sys.path.insert(0, "{site}"); exec(sys.argv.pop(1))'
    return script(path, f"exec {interpreters.probe(sys.executable).path} -I -c '{hide}' \"$3\"")


def test_a_python_without_ensurepip_is_named_with_the_package_that_brings_it(done: UvWish, tmp_path: Path) -> None:
    uv_of(done).unlink()
    python = without_ensurepip(tmp_path / "python3")
    for path, reason in ((python, "no venv with ensurepip"), ("/nonexistent", "cannot be run")):
        with pytest.raises(NoPythonError) as caught:
            converge_uv(dataclasses.replace(done, python=path))
        assert reason in str(caught.value)
        assert "apt-get install python3-venv" in str(caught.value)


def test_another_python_is_looked_for_when_the_running_one_has_no_ensurepip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = interpreters.probe(sys.executable)
    poor = dataclasses.replace(base, venv=False)
    monkeypatch.setattr(interpreters, "probe", lambda _path: poor)
    monkeypatch.setattr(interpreters, "survey", lambda _dir, _environment: Survey((poor, base), ()))
    assert uv_install._python_with_pip("", {}) == base.path
    monkeypatch.setattr(interpreters, "survey", lambda _dir, _environment: Survey((poor,), ()))
    with pytest.raises(NoPythonError, match="python3-venv"):
        uv_install._python_with_pip("", {})


PIP = {
    "nothing": ({}, {"PIP_NO_CACHE_DIR": "1"}),
    "index": ({"UV_INDEX_URL": "https://m/simple"}, {"PIP_INDEX_URL": "https://m/simple"}),
    "named index": ({"UV_DEFAULT_INDEX": "m=https://m/simple?a=b"}, {"PIP_INDEX_URL": "https://m/simple?a=b"}),
    "index with =": ({"UV_DEFAULT_INDEX": "https://m/simple?a=b"}, {"PIP_INDEX_URL": "https://m/simple?a=b"}),
    "pip's own wins": ({"UV_INDEX_URL": "https://m", "PIP_INDEX_URL": "https://p"}, {"PIP_INDEX_URL": "https://p"}),
    "certificates": ({"SSL_CERT_FILE": "/ca.pem"}, {"PIP_CERT": "/ca.pem"}),
    "links": ({"UV_FIND_LINKS": "/a,/b"}, {"PIP_FIND_LINKS": "/a /b"}),
    "cache": ({"PIP_CACHE_DIR": "/c"}, {"PIP_CACHE_DIR": "/c"}),
}


@pytest.mark.parametrize(("given", "found"), PIP.values(), ids=PIP.keys())
def test_pip_is_told_what_uv_is_told(given: dict[str, str], found: dict[str, str]) -> None:
    if "PIP_CACHE_DIR" not in given:
        found = {**found, "PIP_NO_CACHE_DIR": "1"}
    assert pip_environment(given) == {**given, **found}


# --- Pythons ---------------------------------------------------------------------------------------------------------


def nowhere(tmp_path: Path) -> dict[str, str]:
    """An environment that leads to no interpreter but the system's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYENV", "UV_"))}
    (tmp_path / "home").mkdir(exist_ok=True)
    return {**kept, "PYENV_ROOT": "", "PATH": str(tmp_path / "empty"), "HOME": str(tmp_path / "home")}


def test_the_module_finds_the_python_that_runs_it(run_module: RunModule, tmp_path: Path) -> None:
    base = interpreters.probe(sys.executable)
    args = {"python": base.version_text, "uv": "/nonexistent", "install_dir": str(tmp_path / "python")}
    for check in (True, False):
        result = run_module("python_interpreter", args, check=check, environment=nowhere(tmp_path))
        assert not result["changed"], result
        assert (result["version"], result["source"]) == (base.version_text, "system")
        assert any(result["path"] in line for line in result["candidates"])
    assert not (tmp_path / "python").exists()


def test_the_module_says_what_it_found_and_every_way_out(run_module: RunModule, tmp_path: Path) -> None:
    args = {"python": ">=3.70,<4", "needs_headers": True, "user": "nobody", "uv": "/nonexistent/uv"}
    args["install_dir"] = str(tmp_path / "python")
    few = nowhere(tmp_path)
    predicted = run_module("python_interpreter", args, check=True, environment=few)
    assert (predicted["changed"], predicted["path"], predicted["source"]) == (True, "", "managed")
    assert predicted["diff"]["after"] == f"Python >=3.70,<4 by uv in {tmp_path}/python\n"
    result = run_module("python_interpreter", args, environment=few)
    assert result["failed"]
    for words in (
        "Python >=3.70,<4 with Python.h that every user may read is needed. uv, which could install one, is not at",
        f"{interpreters.probe(sys.executable).path}: system CPython",
        "apt-get install python3.70 python3.70-dev",
        "UV_PYTHON_DOWNLOADS",
        "UV_PYTHON_INSTALL_MIRROR or UV_PYTHON_DOWNLOADS_JSON_URL in rig_environment",
    ):
        assert words in result["msg"]
    unreadable = run_module("python_interpreter", {**args, "python": "~=3"}, environment=few)
    assert "python: the Python version '~=3' cannot be read" in unreadable["msg"]


def test_downloads_that_are_not_allowed_are_named(installed: Path, tmp_path: Path) -> None:
    wish = PythonWish(Need(">=3.70"), str(installed / "current/bin/uv"), tmp_path / "python")
    with pytest.raises(NoPythonError) as caught:
        provide_python(wish, environment={**nowhere(tmp_path), "UV_PYTHON_DOWNLOADS": "never"}, running="")
    assert "uv could not install one: uv python install >=3.70 failed" in str(caught.value)
    assert "UV_PYTHON_DOWNLOADS must not be 'never'" in str(caught.value)


def test_a_place_for_pythons_that_cannot_be_made(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wish = PythonWish(Need(">=3.70"), str(installed / "current/bin/uv"), tmp_path / "file/python")
    with pytest.raises(BuildError, match=r"python: .*file.*: Not a directory"):
        provide_python(wish, environment=nowhere(tmp_path), running="")


@pytest.fixture(scope="module")
def repacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(version, downloads JSON): an interpreter of this machine, packed as uv's downloads are."""
    top = tmp_path_factory.mktemp("repacked")
    patchelf = shutil.which("patchelf")
    if patchelf is None:
        pytest.skip("patchelf is not installed: no interpreter can be repacked")
    system = {found.version for found in interpreters.survey("", {"PATH": ""}, running="").interpreters}
    for found in interpreters.survey("").interpreters:
        name = f"python{found.version[0]}.{found.version[1]}"
        prefix = Path(found.path).parent.parent
        own = (prefix / "lib" / name / "os.py").is_file() and prefix not in {Path("/usr"), Path("/usr/local")}
        if own and found.version >= (3, 10) and found.version not in system and found.headers:
            break
    else:
        pytest.skip("no interpreter of its own prefix on this machine besides the system's (pyenv has such)")
    stage = top / "python"
    needless = shutil.ignore_patterns("test", "tests", "__pycache__", "*.a", "site-packages", "config-*", "idlelib")
    shutil.copytree(prefix / "lib", stage / "lib", symlinks=True, ignore=needless)
    (stage / "lib" / name / "site-packages").mkdir()
    (stage / "bin").mkdir()
    shutil.copy2(found.path, stage / "bin" / name)
    (stage / "bin/python3").symlink_to(name)
    (stage / "include" / name).mkdir(parents=True)
    for header in ("Python.h", "pyconfig.h"):
        shutil.copy2(Path(found.include) / header, stage / "include" / name / header)
    subprocess.run([patchelf, "--set-rpath", "$ORIGIN/../lib", stage / "bin" / name], check=True)
    archive = top / "cpython.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(stage, "python")
    shutil.rmtree(stage)
    key = f"cpython-{found.version_text}-linux-{os.uname().machine}-gnu"
    entry = {
        "name": "cpython",
        "arch": {"family": os.uname().machine, "variant": None},
        "os": "linux",
        "libc": "gnu",
        **dict(zip(("major", "minor", "patch"), found.version, strict=True)),
        "prerelease": "",
        "url": archive.as_uri(),
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "variant": None,
        "build": "20260101",
    }
    (top / "downloads.json").write_text(json.dumps({key: entry}))
    return found.version_text, top / "downloads.json"


def test_uv_installs_a_python_and_repairs_it(installed: Path, repacked: tuple[str, Path], tmp_path: Path) -> None:
    version, downloads = repacked
    environment = {**nowhere(tmp_path), "UV_PYTHON_DOWNLOADS_JSON_URL": str(downloads)}
    need = Need(version, headers=True)
    wish = PythonWish(need, str(installed / "current/bin/uv"), tmp_path / "python")
    assert provide_python(wish, check=True, environment=environment, running="").changed
    assert not wish.install_dir.exists()
    first = provide_python(wish, environment=environment, running="")
    assert first.changed
    assert first.interpreter is not None
    assert (first.interpreter.version_text, first.interpreter.source) == (version, "managed")
    assert first.interpreter.path.startswith(f"{wish.install_dir}/cpython-{version}-")
    assert f"Installed Python {version}" in (wish.install_dir / "install.log").read_text()
    assert not (tmp_path / "home/.local").exists()
    assert not (tmp_path / "home/.cache").exists()
    second = provide_python(wish, environment=environment, running="")
    assert second == dataclasses.replace(first, changed=False)
    # One that does not run any more is installed again, though uv takes its directory for an installed Python.
    Path(first.interpreter.path).unlink()
    assert provide_python(wish, environment=environment, running="") == first
    # Another run that installs meanwhile is waited for.
    Path(first.interpreter.path).unlink()
    with building.exclusive(wish.install_dir / ".gpurig.lock", 1), pytest.raises(BusyError):
        provide_python(dataclasses.replace(wish, wait_s=0.1), environment=environment, running="")
    # A Python that is not what was asked for is an error that says so.
    lacking = dataclasses.replace(wish, need=dataclasses.replace(need, venv=True))
    script(tmp_path / "uv", "exit 0")
    with pytest.raises(NoPythonError, match="What uv installed is not what was asked for"):
        provide_python(dataclasses.replace(lacking, uv=str(tmp_path / "uv")), environment=environment, running="")
    # Where a managed one is preferred it goes before the system's own; without a download the system's own has to do.
    either = dataclasses.replace(wish, need=Need(">=3.10"), managed=True)
    own = interpreters.probe(sys.executable)
    assert provide_python(either, environment=environment, running=own.path).interpreter == first.interpreter
    offline = {**environment, "UV_PYTHON_DOWNLOADS": "never"}
    elsewhere = dataclasses.replace(either, install_dir=tmp_path / "other")
    second_best = provide_python(elsewhere, environment=offline, running=own.path)
    assert (second_best.changed, second_best.interpreter and second_best.interpreter.source) == (False, "system")
    assert "Python downloads are" in (elsewhere.install_dir / "install.log").read_text(), (
        elsewhere.install_dir / "install.log"
    ).read_text()


def test_a_python_that_came_while_we_waited_is_taken(tmp_path: Path) -> None:
    base = interpreters.probe(sys.executable)
    managed = tmp_path / "python/cpython-x/bin"
    managed.mkdir(parents=True)
    (managed / "python3").symlink_to(base.path)
    wish = PythonWish(Need(base.version_text), "/bin/false", tmp_path / "python")
    assert uv_install._install_python(wish, -1, {}, ()) is False
