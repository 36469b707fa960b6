# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locked environments, with the real uv and small packages from the index: built, damaged, cut off, repaired."""

from __future__ import annotations

import dataclasses
import json
import os
import py_compile
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import building, bytecode, environments
from ansible_collections.gpurig.llm.plugins.module_utils.building import BuildError, BusyError, SpaceError
from ansible_collections.gpurig.llm.plugins.module_utils.environments import (
    LockRefusedError,
    Outcome,
    State,
    Wish,
    converge,
    plan,
    unlike_record,
)
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import lock_id
from ansible_collections.gpurig.llm.plugins.module_utils.manifest import compare
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import UvWish, converge_uv

COLLECTION = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
SMALL = (DATA / "small.lock").read_text(encoding="utf-8")
EARLIER = (DATA / "small-earlier.lock").read_text(encoding="utf-8")
EARLIEST = (DATA / "small-earliest.lock").read_text(encoding="utf-8")
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

BASE = os.path.realpath(getattr(sys, "_base_executable", sys.executable))

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def uv() -> str:
    """The real uv of the version that the collection installs, kept in the checkout's cache."""
    requirements = (COLLECTION / "roles/python_uv/files/uv.lock").read_text(encoding="utf-8")
    return str(converge_uv(UvWish(requirements, COLLECTION / ".cache/tests/uv")).path / "bin/uv")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, uv: str, cache: Path) -> Path:
    """An <envs> with three environments called `demo`, EARLIEST to SMALL; tests copy it (they are relocatable)."""
    envs = tmp_path_factory.mktemp("envs")
    for text in (EARLIEST, EARLIER, SMALL):
        converge(Wish("demo", text, envs, uv, BASE, cache, keep=2))
    return envs


@pytest.fixture
def wish(tmp_path: Path, uv: str, cache: Path) -> Wish:
    return Wish("demo", SMALL, tmp_path / "envs", uv, BASE, cache)


@pytest.fixture
def done(wish: Wish, built: Path) -> Wish:
    """A wish that is fulfilled."""
    copy_finished(built, wish, SMALL)
    return wish


def copy_finished(built: Path, wish: Wish, *texts: str) -> None:
    """Copy environments; `current` points to the last."""
    for text in texts:
        shutil.copytree(built / "demo" / lock_id(text), wish.home / lock_id(text), symlinks=True)
    building.switch_link(wish.link, lock_id(texts[-1]))


def six_version(wish: Wish) -> str:
    answer = subprocess.run(
        [wish.link / "bin/python", "-c", "import six, tabulate; print(six.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip()


def assert_perfect(wish: Wish) -> None:
    assert str(wish.link.readlink()) == wish.lock_id
    assert building.leftovers(wish.home) == []
    assert unlike_record(wish.path, contents=True) == []
    assert six_version(wish) == "1.17.0"
    assert converge(wish).steps == ()


def module_args(wish: Wish, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    lock = tmp_path / "demo.lock"
    lock.write_text(wish.lock_text)
    return {
        "name": wish.name,
        "lock": str(lock),
        "envs_dir": str(wish.envs_dir),
        "uv": wish.uv,
        "python": wish.python,
        "cache_dir": str(wish.cache_dir),
        **changes,
    }


def actions(outcome: Outcome) -> list[tuple[str, str]]:
    return [(step.action, step.subject) for step in outcome.steps]


# --- the module, as Ansible runs it ---------------------------------------------------------------------------------


def test_the_module_from_nothing_to_unchanged(run_module: RunModule, wish: Wish, tmp_path: Path) -> None:
    args = module_args(wish, tmp_path)
    predicted = run_module("python_env", args, check=True)
    assert (predicted["changed"], predicted["built"], predicted["download_bytes"]) == (True, True, 60000)
    assert not wish.envs_dir.exists()
    first = run_module("python_env", args)
    assert first["changed"], first
    assert first["diff"] == predicted["diff"]
    assert first["plan"] == predicted["plan"]
    assert first["diff"]["before"] == ""
    assert first["diff"]["after"].splitlines() == [
        f"current -> {wish.lock_id}",
        f"complete {wish.lock_id}",
        "six==1.17.0",
        "tabulate==0.9.0",
    ]
    assert (first["path"], first["lock_id"]) == (str(wish.path), lock_id(SMALL))
    assert (first["built"], first["previous"], first["differences"]) == (True, "", [])
    assert first["python"] == f"{wish.path}/bin/python"
    assert first["current"] == str(wish.link)
    assert "Installed 2 packages" in Path(first["progress_file"]).read_text()
    # A script of the environment runs through the link, though it was built under another name.
    table = subprocess.run([wish.link / "bin/tabulate"], input="a b\n", capture_output=True, text=True, check=True)
    assert "a  b" in table.stdout
    assert list((wish.path / SITE / "__pycache__").glob("six.*.pyc"))
    second = run_module("python_env", args)
    assert (second["changed"], second["built"], second["plan"], second["download_bytes"]) == (False, False, [], 0)
    assert "diff" not in second
    assert second["path"] == first["path"]
    assert_perfect(wish)


def test_the_hosts_own_python_is_second_best(run_module: RunModule, wish: Wish, tmp_path: Path) -> None:
    args = module_args(wish, tmp_path, python="", python_dir=str(tmp_path / "python"), prefer_managed=True)
    done = run_module("python_env", args, environment={"UV_PYTHON_DOWNLOADS": "never"})
    assert done["built"], done
    said = json.dumps(done["warnings"])
    assert "demo is built on" in said
    assert "uv could not install a Python of its own" in said


def test_the_module_names_damage_and_repairs_it(run_module: RunModule, done: Wish, tmp_path: Path) -> None:
    (done.path / SITE / "tabulate.py").unlink(missing_ok=True)
    (done.path / SITE / "six.py").unlink()
    args = module_args(done, tmp_path)
    result = run_module("python_env", args, check=True)
    assert result["differences"][0] == f"{SITE}/six.py: missing"
    assert f"damaged {SITE}/six.py: missing\n" in result["diff"]["before"]
    assert not (done.path / SITE / "six.py").exists()
    result = run_module("python_env", args)
    assert (result["changed"], result["built"]) == (True, True)
    assert result["plan"] == [f"build {done.lock_id}: damaged, {SITE}/six.py: missing"]
    assert_perfect(done)


def test_the_module_shows_the_first_fifty_of_many(run_module: RunModule, done: Wish, tmp_path: Path) -> None:
    shutil.rmtree(done.path / "lib")
    shutil.rmtree(done.path / "bin")
    (done.path / ".manifest.json").write_text(
        json.dumps({"format": 1, "files": {f"f{number:03}": [1, 1] for number in range(80)}, "links": {}})
    )
    result = run_module("python_env", module_args(done, tmp_path), check=True)
    assert len(result["differences"]) == 50
    assert result["differences"][-1] == "and 32 more"


def test_the_module_without_a_lock_file(run_module: RunModule, wish: Wish, tmp_path: Path) -> None:
    args = module_args(wish, tmp_path, lock=str(tmp_path / "missing.lock"))
    result = run_module("python_env", args)
    assert result["failed"]
    assert "missing.lock is not there" in result["msg"]
    predicted = run_module("python_env", args, check=True)
    assert predicted["changed"]
    assert "is not there yet" in predicted["plan"][0]


BAD_ARGUMENTS = {
    "keep": ({"keep": -1}, "keep is -1; needed: 0 or more"),
    "name": ({"name": "../x"}, "name is '../x'; needed: letters"),
    "lock is a directory": ({"lock": "/"}, "lock: / cannot be read"),
    "uv": ({"uv": "/nonexistent/uv"}, "uv: /nonexistent/uv is not there; needed to build demo. Run the role python_uv"),
}


@pytest.mark.parametrize(("changes", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys())
def test_the_module_fails_in_words(
    run_module: RunModule, wish: Wish, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    result = run_module("python_env", module_args(wish, tmp_path, **changes))
    assert result["failed"]
    assert words in result["msg"]


def test_two_runs_at_once(run_module: RunModule, wish: Wish, tmp_path: Path) -> None:
    results: list[dict[str, Any]] = []
    args = module_args(wish, tmp_path)
    threads = [threading.Thread(target=lambda: results.append(run_module("python_env", args))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result["built"] for result in results) == [False, True], results
    assert_perfect(wish)


# --- upgrade, way back, tidying up ----------------------------------------------------------------------------------


def test_an_upgrade_keeps_one_earlier_and_the_way_back_builds_nothing(wish: Wish) -> None:
    earliest, earlier = (dataclasses.replace(wish, lock_text=text) for text in (EARLIEST, EARLIER))
    converge(earliest)
    converge(earlier)
    up = converge(wish)
    assert actions(up) == [("build", wish.lock_id), ("switch", "current"), ("remove", earliest.lock_id)]
    assert up.previous == earlier.lock_id
    assert "six==1.16.0" in up.before
    assert "six==1.17.0" in up.after
    assert six_version(wish) == "1.17.0"
    back = converge(earlier)
    assert (actions(back), back.built, back.previous) == ([("switch", "current")], False, wish.lock_id)
    assert six_version(wish) == "1.16.0"
    # The one that was left last is kept, though it was built before the others.
    again = converge(earliest)
    assert actions(again) == [("build", earliest.lock_id), ("switch", "current"), ("remove", wish.lock_id)]
    assert again.previous == earlier.lock_id


def compiled(wish: Wish, name: str) -> Path:
    [path] = (wish.path / SITE).glob(name)
    return path


def test_an_upgrade_compiles_only_what_it_changes(wish: Wish) -> None:
    earlier = dataclasses.replace(wish, lock_text=EARLIER)
    converge(earlier)
    converge(wish)
    same, other = "tabulate/__pycache__/version.*.pyc", "__pycache__/six.*.pyc"
    assert compiled(wish, same).samefile(compiled(earlier, same))
    assert not compiled(wish, other).samefile(compiled(earlier, other))
    assert json.loads((wish.path / ".complete.json").read_text())["bytecode_reused"] == 2
    command = [wish.path / "bin/python", "-v", "-c", "import tabulate, six; print(tabulate.simple_separated_format)"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    for name in ("tabulate", "six"):
        assert re.search(rf"matches .*/{name}(/__init__)?\.py", said), said


def test_a_damaged_environment_takes_no_bytecode_over(wish: Wish, built: Path) -> None:
    copy_finished(built, wish, EARLIER, SMALL)
    (wish.path / SITE / "six.py").unlink()
    converge(wish)
    assert json.loads((wish.path / ".complete.json").read_text())["bytecode_reused"] == 0


def a_package(environment: Path, source: str = "a = 1\n", digest: str = "one") -> Path:
    """An environment with a package of a file, compiled; its bytecode."""
    site = environment / SITE
    (site / "demo-1.0.dist-info").mkdir(parents=True)
    (site / "demo-1.0.dist-info/RECORD").write_text(f"a.py,sha256={digest},6\n,\ndemo-1.0.dist-info/RECORD,,\n")
    (site / "a.py").write_text(source)
    os.utime(site / "a.py", (1_700_000_000, 1_700_000_000))
    return Path(py_compile.compile(str(site / "a.py"), doraise=True))


@pytest.mark.parametrize(
    ("there", "taken"),
    {
        "the same": ({}, True),
        "another hash in the record": ({"digest": "two"}, False),
        "another size": ({"source": "a = 1 \n"}, False),
    }.values(),
)
def test_bytecode_is_taken_over_of_the_same_file_only(tmp_path: Path, there: dict[str, str], taken: bool) -> None:
    earlier, now = a_package(tmp_path / "earlier", **there), a_package(tmp_path / "now")
    now.unlink()
    assert bytecode.reuse(tmp_path / "earlier", tmp_path / "now") == taken
    assert (now.exists() and now.samefile(earlier)) == taken


@pytest.mark.parametrize("damage", ["cut off", "of another time", "by hash"])
def test_bytecode_that_python_would_not_load_is_not_taken_over(tmp_path: Path, damage: str) -> None:
    earlier, now = a_package(tmp_path / "earlier"), a_package(tmp_path / "now")
    now.unlink()
    source = earlier.parents[1] / "a.py"
    if damage == "cut off":
        earlier.write_bytes(earlier.read_bytes()[:15])
    elif damage == "by hash":
        py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    else:
        os.utime(source, (1_700_000_001, 1_700_000_001))
        py_compile.compile(str(source))
    assert bytecode.reuse(tmp_path / "earlier", tmp_path / "now") == 0
    assert not now.exists()


def test_damaged_bytecode_is_compiled_anew_and_stays_as_it_is_elsewhere(tmp_path: Path) -> None:
    """As after a loss of power: the length is right, the content is not."""
    earlier, now = a_package(tmp_path / "earlier"), a_package(tmp_path / "now")
    sound = now.read_bytes()
    now.unlink()
    lost = sound[:16] + bytes(len(sound) - 16)
    earlier.write_bytes(lost)
    assert bytecode.reuse(tmp_path / "earlier", tmp_path / "now") == 1
    (tmp_path / "now/bin").mkdir()
    (tmp_path / "now/bin/python").symlink_to(BASE)
    subprocess.run(bytecode.compile_command(tmp_path / "now"), check=True)
    assert (now.read_bytes() == sound, earlier.read_bytes() == lost) == (True, True)


def test_what_has_no_bytecode_is_compiled_but_packages_own_tests(tmp_path: Path) -> None:
    there = a_package(tmp_path / "env")
    kept, site = there.stat().st_ino, tmp_path / "env" / SITE
    for name in ("b.py", "tests/test_b.py", "broken.py"):
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text("print 1" if name == "broken.py" else "b = '\\d'\n")
    (site / "nowhere.py").symlink_to("gone.py")
    (tmp_path / "env/bin").mkdir()
    (tmp_path / "env/bin/python").symlink_to(BASE)
    done = subprocess.run(bytecode.compile_command(tmp_path / "env"), capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert [path.name.split(".")[0] for path in sorted(site.rglob("*.pyc"))] == ["a", "b"]
    assert there.stat().st_ino == kept


@pytest.mark.parametrize(("keep", "left"), [(0, 1), (1, 2), (2, 3), (9, 3)])
def test_as_many_earlier_ones_stay_as_wished(wish: Wish, built: Path, keep: int, left: int) -> None:
    copy_finished(built, wish, EARLIEST, EARLIER, SMALL)
    converge(dataclasses.replace(wish, keep=keep))
    assert len(list(wish.home.glob("*[0-9]*/.complete.json"))) == left
    assert_perfect(dataclasses.replace(wish, keep=keep))


A, B, C = "a" * 16, "b" * 16, "c" * 16
PLANS = {
    "nothing there": (State("", (), (), (), ()), [f"build {A}: not there yet", f"switch current: from nothing to {A}"]),
    "all well": (State(A, (A, B), (), (), ()), []),
    "way back": (State(B, (B, A), (), (), ()), [f"switch current: from {B} to {A}"]),
    "unfinished": (State(A, (), (A,), (), ()), [f"build {A}: was not finished"]),
    "damaged": (State(A, (A,), (), (), ("x: missing",)), [f"build {A}: damaged, x: missing"]),
    "much damaged": (State(A, (A,), (), (), ("x", "y", "z")), [f"build {A}: damaged, x and 2 more"]),
    "previous is what the link names, not the youngest": (
        State(C, (B, C, A), (), (), ()),
        [f"switch current: from {C} to {A}", f"remove {B}: older than the 1 kept"],
    ),
    "unfinished others go after the switch, leftovers before": (
        State(B, (A,), (B,), (f".old-{B}", f".build-{A}"), ()),
        [
            f"remove .old-{B}: left by a run that was cut off",
            f"remove .build-{A}: left by a run that was cut off",
            f"switch current: from {B} to {A}",
            f"remove {B}: was not finished",
        ],
    ),
    "what was built is not thrown away": (
        State(A, (), (), (f".build-{A}", ".current.new"), ()),
        ["remove .current.new: left by a run that was cut off", f"build {A}: not there yet"],
    ),
}


@pytest.mark.parametrize(("state", "steps"), PLANS.values(), ids=PLANS.keys())
def test_the_plan(state: State, steps: list[str]) -> None:
    assert [str(step) for step in plan(state, A, keep=1)] == steps


# --- damage ---------------------------------------------------------------------------------------------------------


def edit(path: Path) -> None:
    """Replace a file as an editor does; the one in uv's cache stays."""
    text = path.read_text()
    path.unlink()
    path.write_text(text + "# edited\n")


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


DAMAGES: dict[str, tuple[Callable[[Wish], object], str]] = {
    "file gone": (lambda wish: (wish.path / SITE / "six.py").unlink(), f"{SITE}/six.py: missing"),
    "file edited": (lambda wish: edit(wish.path / SITE / "six.py"), f"{SITE}/six.py: size is"),
    "script gone": (lambda wish: (wish.path / "bin/tabulate").unlink(), "bin/tabulate: missing"),
    "settings gone": (lambda wish: (wish.path / "pyvenv.cfg").unlink(), "pyvenv.cfg: missing"),
    "all packages gone": (lambda wish: shutil.rmtree(wish.path / SITE), f"{SITE}/six.py: missing"),
    "python gone": (lambda wish: (wish.path / "bin/python").unlink(), "bin/python: missing"),
    "python elsewhere": (
        lambda wish: relink(wish.path / "bin/python", "/nonexistent/python3"),
        "bin/python: target is /nonexistent/python3",
    ),
    "manifest gone": (lambda wish: (wish.path / ".manifest.json").unlink(), ".manifest.json: missing"),
    "manifest cut off": (lambda wish: (wish.path / ".manifest.json").write_text("{"), "cannot be read"),
    "marker empty": (lambda wish: (wish.path / ".complete.json").write_text(""), "is not this environment's marker"),
    "marker of another": (
        lambda wish: (wish.path / ".complete.json").write_text('{"lock_id": "x"}'),
        "is not this environment's marker",
    ),
    "marker gone": (lambda wish: (wish.path / ".complete.json").unlink(), ""),
    "directory gone": (lambda wish: shutil.rmtree(wish.path), ""),
    "link gone": (lambda wish: wish.link.unlink(), ""),
    "link elsewhere": (lambda wish: relink(wish.link, "nowhere"), ""),
    "link not in our form": (lambda wish: relink(wish.link, f"{wish.lock_id}/"), ""),
    "half an earlier one": (lambda wish: (wish.home / A / "lib").mkdir(parents=True), ""),
    "leftovers": (lambda wish: [(wish.home / name).mkdir() for name in (f".build-{A}", f".old-{A}")], ""),
    "leftover link": (lambda wish: (wish.home / ".current.new").symlink_to("x"), ""),
}


@pytest.mark.parametrize(("act", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_reported_and_repaired(done: Wish, act: Callable[[Wish], object], words: str) -> None:
    act(done)
    predicted = converge(done, check=True)
    assert predicted.steps
    assert words in " ".join(predicted.differences)
    assert predicted.before != predicted.after
    repaired = converge(done)
    assert repaired == predicted
    assert_perfect(done)


def test_a_file_edited_in_place_is_edited_in_uvs_cache_too_and_still_repaired(wish: Wish, tmp_path: Path) -> None:
    own = dataclasses.replace(wish, cache_dir=tmp_path / "cache")
    converge(own)
    file = own.path / SITE / "six.py"
    assert file.stat().st_nlink > 1, "uv did not hard-link: the test shows nothing"
    genuine = file.read_bytes()
    with file.open("r+b") as stream:  # same size: only the content gives it away
        stream.write(b"raise SystemExit('bad')"[:20])
    outcome = converge(own)
    assert f"{SITE}/six.py: mtime_ns is" in outcome.differences[0]
    assert file.read_bytes() == genuine
    marker = json.loads((own.path / ".complete.json").read_text())
    assert marker["downloaded_again"] == ["six"]
    assert_perfect(own)


def test_a_spoiled_cache_is_noticed_by_the_first_build(wish: Wish, tmp_path: Path) -> None:
    own = dataclasses.replace(wish, cache_dir=tmp_path / "cache")
    converge(own)
    with (own.path / SITE / "tabulate/version.py").open("w"):
        pass
    shutil.rmtree(own.home)
    converge(own)
    assert json.loads((own.path / ".complete.json").read_text())["downloaded_again"] == ["tabulate"]
    assert (own.path / SITE / "tabulate/version.py").stat().st_size > 0
    assert_perfect(own)


def test_a_python_that_was_replaced_by_another_version_is_damage(done: Wish) -> None:
    marker = done.path / ".complete.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": "3.9.1"}))
    assert "the environment was built for 3.9.1" in converge(done, check=True).differences[0]


def test_a_directory_in_the_links_place_is_not_ours(done: Wish) -> None:
    done.link.unlink()
    done.link.mkdir()
    with pytest.raises(BuildError, match=r"current is not a link, so it is not ours to change\. Move it away"):
        converge(done)


def test_a_repair_that_fails_leaves_what_was_there(done: Wish) -> None:
    (done.path / SITE / "six.py").unlink()
    with pytest.raises(BuildError, match="uv pip install of 2 packages for demo failed"):
        converge(dataclasses.replace(done, cache_dir=done.home / "cold"), environment={"UV_OFFLINE": "1"})
    assert (done.path / ".complete.json").is_file()
    assert (done.path / "bin/python").exists()
    assert building.leftovers(done.home) == []
    converge(done)
    assert_perfect(done)


RECORDS = {
    "as recorded": (
        "a.py,sha256=ypeBEsobvcr6wjGzmiPcTaeG7_gUfE5yuYB3ha_uSLs,1\nMy_Pkg-1.0.dist-info/RECORD,,\n",
        False,
    ),
    "no size, no hash": ("a.py,,\n\nMy_Pkg-1.0.dist-info/RECORD,,\n", False),
    "bytecode that uv has compiled anew": ("__pycache__/a.pyc,,2\nMy_Pkg-1.0.dist-info/RECORD,,\n", False),
    "short line": ("a.py\nMy_Pkg-1.0.dist-info/RECORD,,\n", False),
    "other hash algorithm": ("a.py,md5=x,1\nMy_Pkg-1.0.dist-info/RECORD,,\n", False),
    "missing": ("a.py,,\nb.py,,\nMy_Pkg-1.0.dist-info/RECORD,,\n", True),
    "other size": ("a.py,,2\nMy_Pkg-1.0.dist-info/RECORD,,\n", True),
    "no number": ("a.py,,x\nMy_Pkg-1.0.dist-info/RECORD,,\n", True),
    "other content": ("a.py,sha256=" + "A" * 43 + ",1\nMy_Pkg-1.0.dist-info/RECORD,,\n", True),
    "no hash after all": ("a.py,sha256=A,1\nMy_Pkg-1.0.dist-info/RECORD,,\n", True),
    "empty": ("", True),
    "not text": ("\udcff", True),
}


@pytest.mark.parametrize(("record", "spoiled"), RECORDS.values(), ids=RECORDS.keys())
def test_files_are_compared_with_what_their_wheel_says(tmp_path: Path, record: str, spoiled: bool) -> None:
    site = tmp_path / "lib/python3.12/site-packages"
    (site / "My_Pkg-1.0.dist-info").mkdir(parents=True)
    (site / "a.py").write_text("a")
    (site / "My_Pkg-1.0.dist-info/RECORD").write_bytes(record.encode("utf-8", "surrogateescape"))
    assert unlike_record(tmp_path, contents=True) == (["my-pkg"] if spoiled else [])


# --- refused, and failing -------------------------------------------------------------------------------------------


def test_a_wrong_hash_is_a_clear_error_and_what_runs_stays(wish: Wish, built: Path) -> None:
    copy_finished(built, wish, EARLIER)
    wrong = SMALL.replace("4721f391ed9", "0721f391ed9").replace("ff70335d468", "0f70335d468")
    with pytest.raises(BuildError) as caught:
        converge(dataclasses.replace(wish, lock_text=wrong, cache_dir=wish.home / "cache"))
    message = str(caught.value)
    assert "uv pip install of 2 packages for demo failed (exit 1)" in message
    assert "Hash mismatch for `six==1.17.0`" in message
    assert "The index serves another file than the lock names" in message
    assert f"Whole output: {wish.home}/build.log" in message
    assert str(wish.link.readlink()) == lock_id(EARLIER)
    assert six_version(wish) == "1.16.0"
    assert building.leftovers(wish.home) == []
    assert not (wish.home / lock_id(wrong)).exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unhashed": ({"lock_text": "six==1.17.0\nb"}, "line 1: six==1.17.0 has no --hash.*\nline 2: 'b' is not pinned"),
    "name": ({"name": ".x"}, "name is '.x'"),
    "processor": ({"lock_text": f"# gpurig: platform=aarch64-linux\n{SMALL}"}, "for aarch64-linux, this machine is"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_before_anything_is_done(
    wish: Wish, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(environments.platform, "machine", lambda: "x86_64")
    for check in (True, False):
        with pytest.raises(LockRefusedError, match=f"(?s)the lock of .* cannot be used:\n.*{words}"):
            converge(dataclasses.replace(wish, **changes), check)
    assert not wish.envs_dir.exists()


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "no uv": ({"uv": "/nonexistent"}, "uv: /nonexistent is not there"),
    "no python named": ({"python": ""}, "python is empty; needed: an interpreter to build demo on"),
    "python that does not run": ({"python": "/nonexistent"}, "python: /nonexistent cannot be run: No such file"),
    "python that does not fit": (
        {"lock_text": SMALL.replace("python=>=3.10,<3.15", "python=<3.8")},
        "(?s)python: /.* is CPython .* \\(not <3.8\\); the lock of demo needs <3.8",
    ),
    "uv that fails": ({"uv": "/bin/false"}, "(?s)uv venv for demo failed \\(exit 1\\)"),
}


@pytest.mark.parametrize(("changes", "words"), FAILING.values(), ids=FAILING.keys())
def test_what_stops_a_build(wish: Wish, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BuildError, match=words):
        converge(dataclasses.replace(wish, **changes))
    assert building.leftovers(wish.home) == []
    assert not wish.link.is_symlink()


def test_a_directory_that_cannot_be_made(wish: Wish, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match=r"environment demo: .*file.*: Not a directory"):
        converge(dataclasses.replace(wish, envs_dir=tmp_path / "file"))


def test_a_full_disk_stops_it_before_it_begins(wish: Wish) -> None:
    greedy = SMALL.replace("environment_bytes=300000", "environment_bytes=9000000000000000")
    with pytest.raises(SpaceError) as caught:
        converge(dataclasses.replace(wish, lock_text=greedy))
    message = str(caught.value)
    assert message.startswith(
        f"{wish.home}: 8381903.4 GiB needed (environment 8381903.2 GiB + download 0 MiB + margin 256 MiB), "
    )
    assert " free. Free space there, or put rig_root on a larger disk." in message
    assert building.leftovers(wish.home) == []


def test_on_two_disks_everything_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(SpaceError) as caught:
        building.check_space([("a", tmp_path / "x/y", 0), ("b", Path("/dev/shm/x"), 1 << 60)], 1 << 60)
    assert f"{tmp_path}/x/y: 1073741824.0 GiB needed (margin" in str(caught.value)
    assert "/dev/shm/x: 2147483648.0 GiB needed (b 1073741824.0 GiB + margin" in str(caught.value)


def test_a_cache_on_another_disk_needs_the_unpacked_size_too(wish: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = environments.read_lock(wish)
    assert [what for what, _path, _size in environments._cache_space(wish, lock)] == ["download"]
    monkeypatch.setattr(environments, "_device", hash)
    assert environments._cache_space(wish, lock)[1] == ("unpacked", wish.cache_dir, 300000)


def test_a_build_that_takes_too_long_is_stopped(wish: Wish, tmp_path: Path) -> None:
    slow = script(tmp_path / "uv", "echo working; exec sleep 30")
    began = time.monotonic()
    with pytest.raises(BuildError, match=r"(?s)uv venv for demo was stopped after 0 s.*timeout_s.*working"):
        converge(dataclasses.replace(wish, uv=slow, timeout_s=0.3))
    assert time.monotonic() - began < 5


def test_a_password_of_the_index_reaches_no_message(wish: Wish, tmp_path: Path) -> None:
    leaky = script(tmp_path / "uv", 'echo "cannot reach $UV_DEFAULT_INDEX and $HTTPS_PROXY"; exit 2')
    environment = {"UV_DEFAULT_INDEX": "https://me:s3cret@h/simple", "HTTPS_PROXY": "http://t0ken@proxy:1", "X": "a@b"}
    with pytest.raises(BuildError) as caught:
        converge(dataclasses.replace(wish, uv=leaky), environment=environment)
    assert "cannot reach https://me:***@h/simple and http://***@proxy:1" in str(caught.value)


@pytest.mark.parametrize(("given", "used"), [({}, "5"), ({"UV_HTTP_RETRIES": "0"}, "0")])
def test_an_index_that_is_away_for_some_seconds_is_asked_again(
    wish: Wish, tmp_path: Path, given: dict[str, str], used: str
) -> None:
    telling = script(tmp_path / "uv", 'echo "asks again: $UV_HTTP_RETRIES"; exit 2')
    with pytest.raises(BuildError, match=f"asks again: {used}\n"):
        converge(dataclasses.replace(wish, uv=telling), environment=given)


def test_the_python_of_a_virtual_environment_stands_for_its_base(wish: Wish) -> None:
    converge(dataclasses.replace(wish, python=sys.executable))
    assert str((wish.path / "bin/python").readlink()) == BASE
    assert json.loads((wish.path / ".complete.json").read_text())["python"] == BASE


def test_what_would_bend_the_build_is_taken_out_of_the_environment(wish: Wish, tmp_path: Path) -> None:
    bent = {
        **os.environ,
        "UV_PYTHON": "3.1",
        "VIRTUAL_ENV": "/x",
        "UV_VENV_SEED": "1",
        "UV_NO_VERIFY_HASHES": "1",
        "UV_SYSTEM_PYTHON": "1",
        "PYTHONPATH": "/x",
        "PYTHONHOME": "/x",
    }
    before = os.umask(0o077)
    try:
        converge(wish, environment=bent)
    finally:
        os.umask(before)
    assert not (wish.path / SITE / "pip").exists()
    for path in (wish.home, wish.path, wish.path / SITE / "tabulate", wish.path / "bin/tabulate"):
        assert path.stat().st_mode & 0o055 == 0o055, path
    assert_perfect(wish)


# --- cut off ---------------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def run_until(wish: Wish, stop: int) -> tuple[int, list[str]]:
    """Run converge in a process that kills itself just before the n-th thing that it changes or starts uv for.

    Returns (signal or exit status, those things). n = 0 is never. Removing a tree counts once, its files are many.
    """
    log = wish.envs_dir.with_suffix(".events")
    child = os.fork()
    if child == 0:
        seen: list[str] = []

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                ours = isinstance(args[0], str) and args[0].startswith(f"{wish.home}/")
                if not ours or not args[2] & (os.O_WRONLY | os.O_RDWR):
                    return
            elif event == "subprocess.Popen":
                if args[0] != wish.uv and f"{building.BUILD_PREFIX}{wish.lock_id}/bin/" not in args[0]:
                    return
            elif event not in {"os.link", "os.rename", "os.symlink", "os.utime", "shutil.rmtree"}:
                return
            seen.append(f"{event} {args[0]}")
            if len(seen) == stop:
                os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            converge(wish)
            log.write_text(json.dumps(seen))
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(log.read_text()) if log.exists() else []


def test_killed_at_every_step_of_an_upgrade_the_next_run_leads_to_the_same_end(
    wish: Wish, built: Path, tmp_path: Path
) -> None:
    def at_the_start(name: str) -> Wish:
        """Two older ones are there, and half of the wanted one."""
        own = dataclasses.replace(wish, envs_dir=tmp_path / name)
        copy_finished(built, own, EARLIEST, EARLIER)
        shutil.copytree(own.home / lock_id(EARLIER), own.path, symlinks=True)
        (own.path / ".complete.json").unlink()
        return own

    def end_state(own: Wish) -> list[str]:
        assert converge(own, check=True).steps == ()
        assert unlike_record(own.path, contents=True) == []
        return sorted(path.name for path in own.home.iterdir())

    whole = at_the_start("whole")
    status, events = run_until(whole, 0)
    assert status == 0
    expected = end_state(whole)
    assert expected == sorted([".lock", "build.log", "compile.log", "current", lock_id(EARLIER), lock_id(SMALL)])
    kinds = {event.split()[0] for event in events}
    assert kinds >= {"open", "os.link", "os.rename", "os.symlink", "os.utime", "shutil.rmtree", "subprocess.Popen"}
    assert len(events) >= 15
    for stop in range(1, len(events) + 1):
        own = at_the_start(f"cut{stop}")
        assert run_until(own, stop)[0] == -signal.SIGKILL, events[stop - 1]
        # What was in use is in use still, or the new one is, whole: there is no moment without.
        in_use = str(own.link.readlink())
        assert in_use in {lock_id(EARLIER), own.lock_id}, events[stop - 1]
        assert compare(own.home / in_use, own.home / in_use / ".manifest.json") == [], events[stop - 1]
        converge(own)
        assert end_state(own) == expected, events[stop - 1]
        shutil.rmtree(own.envs_dir)


def test_killed_while_a_damaged_one_is_replaced(done: Wish, tmp_path: Path) -> None:
    (done.path / SITE / "six.py").unlink()
    _status, events = run_until(done, 0)
    renames = [number for number, event in enumerate(events, 1) if event.startswith("os.rename")]
    for stop in renames[-2:]:
        (done.path / SITE / "six.py").unlink()
        assert run_until(done, stop)[0] == -signal.SIGKILL
        converge(done)
        assert_perfect(done)


def test_between_the_two_renames_nothing_is_built_twice(done: Wish, uv: str) -> None:
    done.path.rename(done.home / f".build-{done.lock_id}")
    outcome = converge(dataclasses.replace(done, uv="/bin/false"))
    assert actions(outcome) == [("build", done.lock_id)]
    assert_perfect(done)


def test_uv_killed_in_the_middle_is_an_error_and_the_next_run_repairs(wish: Wish, tmp_path: Path) -> None:
    dying = script(tmp_path / "uv", f'[ "$1" = venv ] || kill -9 $$; exec "{wish.uv}" "$@"')
    with pytest.raises(BuildError, match=r"uv pip install of 2 packages for demo failed \(ended by signal 9\)"):
        converge(dataclasses.replace(wish, uv=dying))
    converge(wish)
    assert_perfect(wish)


def test_a_uv_that_outlives_its_module_keeps_the_lock(wish: Wish, tmp_path: Path) -> None:
    began, go_on = tmp_path / "began", tmp_path / "go-on"
    os.mkfifo(go_on)
    stubborn = script(tmp_path / "uv", f"trap '' TERM; echo $$ > {began}; read line < {go_on}")
    module = os.fork()
    if module == 0:
        converge(dataclasses.replace(wish, uv=stubborn))
        os._exit(0)
    deadline = time.monotonic() + 20
    while not (began.exists() and began.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(module, signal.SIGKILL)
    os.waitpid(module, 0)
    with pytest.raises(BusyError, match=rf"\.lock is still held after 0\.2 s by process {module} or one that it"):
        converge(dataclasses.replace(wish, wait_s=0.2))
    go_on.write_text("\n")
    assert converge(dataclasses.replace(wish, wait_s=20)).built
    assert_perfect(wish)


def test_half_removed_is_never_complete(done: Wish, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(_path: Path) -> None:
        raise OSError("cut off")

    monkeypatch.setattr(building.shutil, "rmtree", cut_off)
    with pytest.raises(OSError, match="cut off"):
        building.remove(done.path)
    assert not building.is_finished(done.path)


def test_a_program_that_hangs_or_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_VERSION_TIMEOUT_S", 0.2)
    with pytest.raises(BuildError, match=r"gave no answer within 0\.2 s"):
        building.answer_of([script(tmp_path / "a", "exec sleep 5")])
    with pytest.raises(BuildError, match="does not run: exit 3: last words"):
        building.answer_of([script(tmp_path / "b", "echo first >&2; echo last words >&2; exit 3")])
    with pytest.raises(BuildError, match=r"does not run: exit 4$"):
        building.answer_of([script(tmp_path / "c", "exit 4")])
    assert building.answer_of([script(tmp_path / "d", "exit 0")]) == ""
