# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module host_tool: installs, repairs, keeps one old version; and the tool it installs runs."""

from __future__ import annotations

import ast
import getpass
import grp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.owned_files import Owner
from ansible_collections.gpurig.llm.plugins.modules import host_tool

FOLDER = Path(host_tool.cli.__file__).parent
RunModule = Callable[..., dict[str, Any]]


def rig_at(root: Path, kind: str = "sandbox") -> dict[str, Any]:
    names = ("bin", "tool", "envs", "uv", "python", "models", "cache", "log", "run")
    paths = {name: f"{root}/{name}" for name in names}
    paths |= {"root": str(root), "state": str(root), "config": f"{root}/etc"}
    paths |= {"secrets": f"{root}/etc/secrets", "services": f"{root}/etc/services"}
    paths |= {"supervisor_conf": f"{root}/etc/supervisord.conf", "supervisor_programs": f"{root}/etc/supervisor.d"}
    paths["supervisor_socket"] = f"{root}/run/supervisor.sock"
    user = getpass.getuser()
    return {
        "kind": kind,
        "service_manager": "supervisord",
        "root_dir": str(root),
        "user": user,
        "group": grp.getgrgid(os.getgid()).gr_name,
        "paths": paths,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "it's a root"


@pytest.fixture
def args(root: Path) -> dict[str, Any]:
    return {"rig": rig_at(root), "python": sys.executable, "version": "0.1.0"}


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Every path with its mode and content, apart from Python's caches."""
    found = {}
    for path in sorted(root.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        content = str(path.readlink()) if path.is_symlink() else path.read_text() if path.is_file() else ""
        found[str(path.relative_to(root))] = (path.lstat().st_mode & 0o7777, content)
    return found


def gpurig(root: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "bin" / "gpurig"), *words], capture_output=True, text=True, check=False, timeout=60, **more
    )


def test_the_list_of_tool_modules_is_complete_and_no_longer_than_needed() -> None:
    """What cli imports, directly or not, and nothing else: a missing one would break the tool on the host only."""
    needed: set[str] = set()
    todo = {"cli"}
    while todo:
        name = todo.pop()
        needed.add(name)
        tree = ast.parse((FOLDER / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                todo |= {node.module} if node.module else {alias.name for alias in node.names}
            else:
                names = [node.module] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                assert not [word for word in names if word and word.startswith("ansible")], f"{name} needs Ansible"
        todo -= needed
    assert {module.__name__.rpartition(".")[2] for module in host_tool.TOOL_MODULES} == needed


def test_first_run_second_run_and_check_mode(run_module: RunModule, args: dict[str, Any], root: Path) -> None:
    foreseen = run_module("host_tool", args, check=True)
    assert foreseen["changed"]
    assert not root.exists()

    done = run_module("host_tool", args)
    assert done["changed"], done
    assert done["changes"] == foreseen["changes"]
    assert done["diff"] == foreseen["diff"]
    assert Path(done["tool_dir"]) == (root / "tool" / "current").resolve()
    assert len(Path(done["tool_dir"]).name) == 16

    assert (root / "etc" / "secrets").stat().st_mode & 0o777 == 0o700
    assert (root / "etc").stat().st_mode & 0o777 == 0o755
    assert (root / "log").stat().st_mode & 0o777 == 0o750
    described = json.loads((root / "etc" / "host.json").read_text())
    assert described["version"] == "0.1.0"
    assert described["paths"] == args["rig"]["paths"]
    assert described["python"] == sys.executable

    before = snapshot(root)
    for check in (True, False):
        again = run_module("host_tool", args, check=check)
        assert (again["changed"], again["changes"], again["diff"]) == (False, [], {"before": "", "after": ""})
    assert snapshot(root) == before

    status = gpurig(root, "status")
    assert (status.returncode, status.stderr) == (0, "")
    assert "No services here yet" in status.stdout
    assert not run_module("host_tool", args)["changed"], "running the tool counts as damage"


def version(root: Path) -> Path:
    return (root / "tool" / "current").resolve()


def to_directory(path: Path) -> None:
    path.unlink()
    (path / "deep").mkdir(parents=True)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (lambda r: (version(r) / "gpurig" / "cli.py").write_text("x"), "cli.py"),
    "a missing file": (lambda r: (version(r) / "gpurig" / "budget.py").unlink(), "budget.py"),
    "a file that shadows": (lambda r: (version(r) / "json.py").write_text("x"), "json.py"),
    "a file that is a directory": (lambda r: to_directory(version(r) / "gpurig" / "cli.py"), "cli.py"),
    "a missing version": (lambda r: shutil.rmtree(version(r)), "__main__.py"),
    "a missing link": (lambda r: (r / "tool" / "current").unlink(), "current"),
    "a link elsewhere": (lambda r: host_tool.plan_link(f"{r}/tool/current", "/tmp")[0].act(), "current"),
    "a link that is a directory": (lambda r: to_directory(r / "tool" / "current"), "current"),
    "mode of the wrapper": (lambda r: (r / "bin" / "gpurig").chmod(0o644), "bin/gpurig"),
    "text of the wrapper": (lambda r: (r / "bin" / "gpurig").write_text("#!/bin/sh\n"), "bin/gpurig"),
    "a wrapper that is a link": (lambda r: relink(r / "bin" / "gpurig"), "bin/gpurig"),
    "host.json": (lambda r: (r / "etc" / "host.json").write_text("{}"), "host.json"),
    "mode of a directory": (lambda r: (r / "etc" / "secrets").chmod(0o755), "secrets"),
    "a missing directory": (lambda r: (r / "run").rmdir(), "run"),
    "a half written file": (lambda r: (version(r) / "gpurig" / ".cli.py.abc").write_text("x"), ".cli.py.abc"),
    "a half switched link": (lambda r: (r / "tool" / "current.new").symlink_to("nowhere"), "current.new"),
}


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/bin/true")


def test_every_damage_is_reported_and_repaired(run_module: RunModule, args: dict[str, Any], root: Path) -> None:
    run_module("host_tool", args)
    good = snapshot(root)
    for name, (damage, word) in DAMAGES.items():
        damage(root)
        damaged = snapshot(root)
        assert damaged != good, f"{name}: the damage shows in nothing"
        steps, _ = host_tool.plan({**DEFAULTS, **args}, check=True)
        assert snapshot(root) == damaged, f"{name}: planning changed something"
        assert any(word in step.path for step in steps), f"{name}: {[step.in_words() for step in steps]}"
        host_tool.apply(steps, sys.executable)
        assert snapshot(root) == good, name
        assert host_tool.plan({**DEFAULTS, **args}, check=True)[0] == [], name
    assert Path("/bin/true").stat().st_size > 1000, "a link was written through"


DEFAULTS = {"version": "", "user": "", "group": "", "nvml_path": ""}


def test_a_run_that_was_killed_anywhere_is_finished_by_the_next(args: dict[str, Any], root: Path) -> None:
    params = {**DEFAULTS, **args}
    total = len(host_tool.plan(params, check=False)[0])
    for cut in range(0, total, 4):
        shutil.rmtree(root, ignore_errors=True)
        for step in host_tool.plan(params, check=False)[0][:cut]:
            step.act()
        host_tool.apply(host_tool.plan(params, check=False)[0], sys.executable)
        assert host_tool.plan(params, check=False)[0] == [], f"killed after {cut} of {total} steps"
        assert (root / "tool" / "current" / "gpurig" / "cli.py").exists()


def test_one_old_version_is_kept(args: dict[str, Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {**DEFAULTS, **args}
    versions = []
    for text in ("one", "two", "three", "one"):
        monkeypatch.setattr(host_tool, "_INIT", f"# {text}\n")
        steps, home = host_tool.plan(params, check=False)
        host_tool.apply(steps, sys.executable)
        versions.append(Path(home).name)
        os.utime(home, (1, 1))  # what counts is which one was in use last, not which one looks new
        assert host_tool.plan(params, check=False)[0] == []
    assert versions[0] == versions[3]
    kept = {path.name for path in (root / "tool").iterdir()}
    assert kept == {"current", versions[3], versions[2]}


def test_a_link_to_a_directory_elsewhere_is_left_alone(args: dict[str, Any], root: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir(mode=0o700)
    root.mkdir()
    (root / "models").symlink_to(tmp_path / "big disk")
    steps, _ = host_tool.plan({**DEFAULTS, **args}, check=False)
    host_tool.apply(steps, sys.executable)
    assert (root / "models").is_symlink()
    assert (tmp_path / "big disk").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_done_is_said(run_module: RunModule, args: dict[str, Any], root: Path) -> None:
    failed = run_module("host_tool", {**args, "python": "/nowhere/python"})
    assert failed["failed"]
    assert "/nowhere/python does not exist" in failed["msg"]
    assert not root.exists()
    assert run_module("host_tool", {**args, "python": "/nowhere/python"}, check=True)["changed"]

    root.mkdir()
    (root / "bin").write_text("")
    failed = run_module("host_tool", args)
    assert f"{root}/bin: is not a directory" in failed["msg"]


def test_an_unknown_user_is_a_finding_in_check_mode_only(args: dict[str, Any]) -> None:
    if os.geteuid() != 0:
        with pytest.raises(host_tool.InstallError, match="cannot give files away"):
            host_tool.owners("nobody-here", "nobody-here", must_exist=True)
        return
    assert host_tool.owners("nobody-here", "nobody-here", must_exist=False) == (Owner(0), Owner())
    with pytest.raises(host_tool.InstallError, match="role host_tool makes it"):
        host_tool.owners("nobody-here", "nobody-here", must_exist=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_with_a_service_user_the_state_is_his_and_the_rest_is_roots(args: dict[str, Any], root: Path) -> None:
    params = {**DEFAULTS, **args, "user": "nobody", "group": "nogroup"}
    host_tool.apply(host_tool.plan(params, check=False)[0], sys.executable)
    theirs = {name for name in args["rig"]["paths"] if owner(args["rig"]["paths"][name]) == "nobody"}
    assert theirs == {"models", "cache", "log", "run"}
    assert (root / "etc" / "secrets").stat().st_mode & 0o777 == 0o711
    os.chown(root / "run", 0, 0)
    steps, _ = host_tool.plan(params, check=False)
    assert [step.in_words() for step in steps] == [
        f"{root}/run: directory 0755 root:root -> directory 0755 nobody:nogroup"
    ]
    host_tool.apply(steps, sys.executable)
    assert owner(f"{root}/run") == "nobody"


def owner(path: str) -> str:
    return Path(path).owner() if Path(path).exists() else ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_told_to_become(args: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            host_tool.owners("gpurig", "gpurig", must_exist=True)
        except host_tool.InstallError as error:
            os._exit(0 if "become: true" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_wrapper_is_deaf_to_the_callers_python(args: dict[str, Any], root: Path, tmp_path: Path) -> None:
    host_tool.apply(host_tool.plan({**DEFAULTS, **args}, check=False)[0], sys.executable)
    hostile = tmp_path / "hostile"
    (hostile / "gpurig").mkdir(parents=True)
    for name in ("json.py", "gpurig/__init__.py", "sitecustomize.py"):
        (hostile / name).write_text("raise SystemExit('hijacked')\n")
    seen = gpurig(root, "status", "--json", cwd=hostile, env={"PYTHONPATH": str(hostile), "PATH": os.environ["PATH"]})
    assert (seen.returncode, json.loads(seen.stdout)) == (0, [])
    text = (root / "bin" / "gpurig").read_text()
    (root / "bin" / "gpurig").write_text(text.replace(sys.executable, "/nowhere/python"))
    seen = gpurig(root, "status")
    assert (seen.returncode, "/nowhere/python is missing" in seen.stderr) == (78, True)


def test_the_payload_that_ansible_ships_installs_a_tool_that_runs(args: dict[str, Any], root: Path) -> None:
    done = subprocess.run(
        [
            shutil.which("ansible", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "ansible",
            "localhost",
            *("--inventory", "localhost,", "--connection", "local", "--module-name", "gpurig.llm.host_tool"),
            *("--args", json.dumps(args), "--extra-vars", json.dumps({"ansible_python_interpreter": sys.executable})),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_LOCALHOST_WARNING": "False", "ANSIBLE_DEVEL_WARNING": "0"},
    )
    assert "CHANGED" in done.stdout, done.stdout + done.stderr
    installed = {path.name: path.read_text() for path in (version(root) / "gpurig").glob("*.py")}
    for module in host_tool.TOOL_MODULES:
        name = Path(module.__file__ or "").name
        assert installed[name] == (FOLDER / name).read_text()
    seen = gpurig(root, "status", "--json")
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, "[]\n", "")
