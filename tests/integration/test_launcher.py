# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher, for real: a checkout with a blank in its path, a strange home, broken Pythons on PATH.

The environments are real and come from the package index by hash, but from locks with one small package; only one test
builds the one that users get. What the verbs run is a stand-in for ansible-playbook that tells how it was called.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(getattr(sys, "_base_executable", sys.executable))
STAND_IN = """#!/bin/sh
exec "{python}" -I -c 'import json, os, sys
print(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}))
sys.exit(int(os.environ.get("STAND_IN_EXIT", "0")))' "$@"
"""
Answer = subprocess.CompletedProcess[str]


def small_lock() -> str:
    """The lock of one small package, with its hashes, as our own lock has it."""
    text = (ROOT / "requirements/test.lock").read_text(encoding="utf-8")
    match = re.search(r"^iniconfig==.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)
    assert match, "requirements/test.lock no longer has iniconfig: name another small package here"
    return match.group()


class Checkout:
    """A copy of what the launcher needs, and the surroundings that it is started in."""

    def __init__(self, place: Path, home: Path, pyenv: Path, cache: Path) -> None:
        self.path = place
        (place / "requirements").mkdir(parents=True)
        for name in ("rig", "ansible.cfg", "requirements/uv.lock"):
            shutil.copy2(ROOT / name, place / name)
        for kind in ("run", "test"):
            (place / f"requirements/{kind}.lock").write_text(f"# {kind}\n{small_lock()}", encoding="utf-8")
        for folder, name, text in (
            ("playbooks", "status.yml", "[]\n"),
            ("playbooks", "site.yml", "[]\n"),
            (".", "site.yml", "[]\n"),
            ("scripts", "test_levels.py", "import sys\nprint(sys.argv[1:])\n"),
        ):
            (place / folder).mkdir(exist_ok=True)
            (place / folder / name).write_text(text, encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "ANSIBLE_", "PYENV"))}
        kept.setdefault("XDG_CONFIG_HOME", str(Path.home() / ".config"))  # where an index mirror may be named
        path = [
            part for part in kept["PATH"].split(":") if "pyenv" not in part and Path(part) != Path(sys.prefix) / "bin"
        ]
        self.env = {
            **kept,
            "HOME": str(home),
            "PATH": ":".join(path),
            "LANG": "C.UTF-8",
            "PYENV_ROOT": str(pyenv),
            "UV_CACHE_DIR": str(cache),
        }

    @property
    def venv(self) -> Path:
        return self.path / ".venv"

    @property
    def stamp(self) -> Path:
        return self.venv / ".rig-stamp"

    def start(self, *arguments: str, program: Path | None = None, cwd: Path | None = None, **env: str | None) -> Answer:
        """Run the launcher; an environment variable given as None is unset."""
        surroundings = {name: value for name, value in {**self.env, **env}.items() if value is not None}
        command = [str(program or self.path / "rig"), *arguments]
        return subprocess.run(
            command, cwd=cwd or "/", env=surroundings, text=True, capture_output=True, check=False, timeout=120
        )

    def build(self) -> Checkout:
        """Build the environment and put the stand-in for Ansible into it."""
        answer = self.start("env")
        assert answer.returncode == 0, answer.stderr
        program = self.venv / "bin/ansible-playbook"
        program.write_text(STAND_IN.format(python=PYTHON), encoding="utf-8")
        program.chmod(0o755)
        return self

    def call(self, *arguments: str, **env: str | None) -> dict[str, object]:
        """Run a verb and return how it called Ansible."""
        answer = self.start(*arguments, **env)
        assert answer.returncode == 0, answer.stderr
        called: dict[str, object] = json.loads(answer.stdout)
        return called


@pytest.fixture(scope="module")
def pyenv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyenv root that has the Python of these tests."""
    root = tmp_path_factory.mktemp("pyenv")
    (root / "versions/3.12.99/bin").mkdir(parents=True)
    (root / "versions/3.12.99/bin/python3").symlink_to(PYTHON)
    return root


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, pyenv: Path) -> Checkout:
    """A checkout that was started once, uv and all, with nothing but broken Pythons in front of PATH."""
    place = tmp_path_factory.mktemp("first")
    shims = place / "shims"
    shims.mkdir()
    for name in ("python3.12", "python3.13", "python3.14"):
        (shims / name).write_text("#!/bin/sh\necho pyenv: command not found >&2\nexit 127\n", encoding="utf-8")
        (shims / name).chmod(0o755)
    (shims / "python3").write_text("#!/nowhere/python3\n", encoding="utf-8")
    (shims / "python3").chmod(0o755)
    (place / "home").mkdir()
    checkout = Checkout(place / "a checkout", place / "home", pyenv, place / "cache")
    checkout.env["PATH"] = f"{shims}:{checkout.env['PATH']}"
    checkout.first_answer = checkout.start("env")  # type: ignore[attr-defined]
    return checkout


def with_uv(place: Path, first: Checkout) -> Checkout:
    """A checkout that has uv and no environment yet."""
    (place / "home").mkdir()
    fresh = Checkout(
        place / "a checkout", place / "home", Path(first.env["PYENV_ROOT"]), Path(first.env["UV_CACHE_DIR"])
    )
    (fresh.path / ".cache").mkdir()
    (fresh.path / ".cache/bootstrap").symlink_to(first.path / ".cache/bootstrap")
    return fresh


@pytest.fixture
def checkout(tmp_path: Path, first: Checkout) -> Checkout:
    return with_uv(tmp_path, first)


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory, first: Checkout) -> Checkout:
    return with_uv(tmp_path_factory.mktemp("changing"), first)


@pytest.fixture(scope="module")
def built(first: Checkout) -> Checkout:
    """A checkout whose environment is built, for tests that leave it as it is."""
    return first.build()


def test_first_start_with_broken_pythons_on_path(first: Checkout) -> None:
    answer: Answer = first.first_answer  # type: ignore[attr-defined]
    assert answer.returncode == 0, answer.stderr
    assert [line for line in answer.stderr.splitlines() if line.startswith("rig: ")] == [
        "rig: fetching uv (about 20 MB) ...",
        "rig: building the environment (about 10 MB) ...",
        "rig: environment ready",
    ]
    link = next(first.venv.glob("lib/python3*/site-packages")) / "ansible_collections/gpurig/llm"
    assert link.resolve() == first.path
    assert not any(Path(first.env["HOME"]).glob(".ansible*"))


def test_env_prints_lines_for_a_shell(built: Checkout) -> None:
    script = f'eval "$("{built.path}/rig" env)" && command -v ansible-playbook && printf %s "$ANSIBLE_CONFIG"'
    answer = subprocess.run(["sh", "-c", script], env=built.env, text=True, capture_output=True, check=True)
    assert answer.stdout == f"{built.venv}/bin/ansible-playbook\n{built.path}/ansible.cfg"


def test_second_start_is_quick_and_starts_no_python(built: Checkout) -> None:
    python = built.venv / "bin/python"
    python.rename(python.with_name("aside"))
    try:
        python.write_text("#!/bin/sh\necho started >&2\nexit 99\n", encoding="utf-8")
        python.chmod(0o755)
        times = []
        for _round in range(3):
            started = time.monotonic()
            answer = built.start("env")
            times.append(time.monotonic() - started)
            assert (answer.returncode, answer.stderr) == (0, "")
    finally:
        python.unlink()
        python.with_name("aside").rename(python)
    assert min(times) < 0.5, f"{times} s: the launcher may add less than a second"


def test_the_environment_that_users_get(checkout: Checkout) -> None:
    shutil.copy2(ROOT / "requirements/run.lock", checkout.path / "requirements/run.lock")
    answer = checkout.start(
        "play", "--version", UV_CACHE_DIR=os.environ.get("UV_CACHE_DIR"), HOME=os.environ.get("HOME")
    )
    assert answer.returncode == 0, answer.stderr
    assert f"config file = {checkout.path}/ansible.cfg" in answer.stdout


def test_through_a_link_from_another_folder(built: Checkout, tmp_path: Path) -> None:
    (tmp_path / "rig").symlink_to(built.path / "rig")
    (tmp_path / "again").symlink_to(tmp_path / "rig")
    answer = built.start("play", "mine.yml", program=tmp_path / "again", cwd=tmp_path)
    called = json.loads(answer.stdout)
    assert called["argv"] == ["mine.yml"]
    assert called["cwd"] == str(tmp_path), "a path on the command line is the caller's"
    assert called["env"]["ANSIBLE_CONFIG"] == f"{built.path}/ansible.cfg"


@pytest.mark.parametrize("home", [None, "/nonexistent", ""], ids=["unset", "missing", "empty"])
def test_without_a_home(built: Checkout, home: str | None) -> None:
    answer = built.start("up", HOME=home)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["env"]["HOME"] == f"{built.path}/.cache/home"
    assert "HOME is unset or not writable" in answer.stderr


@pytest.mark.parametrize(
    ("lang", "expected"),
    [("C", "C.UTF-8"), ("xx_XX.UTF-8", "C.UTF-8"), (None, "C.UTF-8"), ("C.UTF-8", None)],
    ids=["C", "not_installed", "unset", "fine"],
)
def test_locale(built: Checkout, lang: str | None, expected: str | None) -> None:
    called = built.call("up", LANG=lang)
    assert called["env"].get("LC_ALL") == expected  # type: ignore[attr-defined]


def test_pythons_own_variables_do_not_get_in(built: Checkout) -> None:
    theirs = {"PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
    env = built.call("up", **theirs)["env"]
    assert not set(theirs) & set(env)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["up"], ["{here}/site.yml"]),
        (["up", "-i", "inventories/homelab", "--check"], ["{here}/site.yml", "-i", "inventories/homelab", "--check"]),
        (["play", "status", "-v"], ["{here}/playbooks/status.yml", "-v"]),
        (["play", "some/other.yml"], ["some/other.yml"]),
        (["play", "gpurig.llm.site"], ["gpurig.llm.site"]),
        (["play", "--version"], ["--version"]),
        (["status"], ["{here}/playbooks/status.yml", "-e", {"rig_tool_args": []}]),
        (
            ["logs", "-i", "inv", "chat", "--lines", "5", "--limit=a", 'it\'s "here"', "-vv"],
            [
                *("{here}/playbooks/logs.yml", "-i", "inv", "--limit=a", "-vv", "-e"),
                {"rig_tool_args": ["chat", "--lines", "5", 'it\'s "here"']},
            ],
        ),
        (["stop", "--", "-v", "-i"], ["{here}/playbooks/stop.yml", "-e", {"rig_tool_args": ["-v", "-i"]}]),
    ],
    ids=lambda value: " ".join(value) if all(isinstance(word, str) for word in value) else "",
)
def test_verbs(built: Checkout, arguments: list[str], expected: list[object]) -> None:
    argv = built.call(*arguments)["argv"]
    wanted = [word.format(here=built.path) if isinstance(word, str) else word for word in expected]
    if isinstance(wanted[-1], dict):
        assert json.loads(argv.pop()) == wanted.pop()  # type: ignore[attr-defined]
    assert argv == wanted


def test_exit_codes_pass_through(built: Checkout) -> None:
    assert built.start("up", STAND_IN_EXIT="4").returncode == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["upp"], 2, "unknown verb 'upp'"),
        ([], 2, "usage:"),
        (["play"], 2, "which playbook?"),
        (["play", "nothing"], 2, "there are: site status"),
        (["status", "-i"], 2, "-i needs a value"),
        (["--help"], 0, "usage:"),
        (["up", "--help"], 0, "usage:"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_and_help(built: Checkout, arguments: list[str], code: int, words: str) -> None:
    answer = built.start(*arguments)
    assert answer.returncode == code
    assert words in (answer.stdout if code == 0 else answer.stderr)


def test_help_builds_nothing(checkout: Checkout) -> None:
    assert checkout.start("-h").returncode == 0
    assert checkout.start("nonsense").returncode == 2
    assert not checkout.venv.exists()


def test_a_half_built_environment_is_built_again(checkout: Checkout) -> None:
    process = subprocess.Popen([checkout.path / "rig", "env"], env=checkout.env, start_new_session=True)
    deadline = time.monotonic() + 60
    while not checkout.venv.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    assert not checkout.stamp.exists(), "killed too late: this test proves nothing"
    (checkout.venv / "rest").write_text("", encoding="utf-8")
    answer = checkout.start("env")
    assert answer.returncode == 0, answer.stderr
    assert checkout.stamp.exists()
    assert not (checkout.venv / "rest").exists()


def test_two_starts_at_once_build_once(checkout: Checkout) -> None:
    processes = [
        subprocess.Popen([checkout.path / "rig", "env"], env=checkout.env, stderr=subprocess.PIPE, text=True)
        for _number in range(2)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "".join(errors).count("building the environment") == 1


def other_python(checkout: Checkout) -> Checkout:
    (checkout.venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.9.2\n", encoding="utf-8")
    return checkout


def newer_lock(checkout: Checkout) -> Checkout:
    with (checkout.path / "requirements/run.lock").open("a", encoding="utf-8") as file:
        file.write("# newer\n")
    return checkout


def moved(checkout: Checkout) -> Checkout:
    checkout.path = checkout.path.rename(checkout.path.with_name("moved here"))
    return checkout


def dangling_python(checkout: Checkout) -> Checkout:
    (checkout.venv / "bin/python").unlink()
    (checkout.venv / "bin/python").symlink_to("/nowhere/python")
    return checkout


def no_stamp(checkout: Checkout) -> Checkout:
    checkout.stamp.unlink()
    return checkout


@pytest.mark.parametrize("change", [other_python, newer_lock, moved, dangling_python, no_stamp])
def test_an_environment_that_is_not_ours_any_more_is_built_again(
    changing: Checkout, change: Callable[[Checkout], Checkout]
) -> None:
    assert changing.start("env").returncode == 0
    assert "building" not in changing.start("env").stderr
    checkout = change(changing)
    answer = checkout.start("env")
    assert answer.returncode == 0, answer.stderr
    assert "building" in answer.stderr
    assert (
        next(checkout.venv.glob("lib/python3*/site-packages/ansible_collections/gpurig/llm")).resolve() == checkout.path
    )
    assert "building" not in checkout.start("env").stderr


def test_the_test_environment_serves_all_verbs(checkout: Checkout) -> None:
    assert "building the environment" in checkout.start("env").stderr
    answer = checkout.start("lint", "ruff")
    assert "building the test environment" in answer.stderr
    assert answer.stdout == "['lint', 'ruff']\n"
    assert "building" not in checkout.start("env").stderr


def test_without_any_python(checkout: Checkout, tmp_path: Path) -> None:
    shutil.rmtree(checkout.path / ".cache")
    answer = checkout.start("up", PATH=tools_only(tmp_path), PYENV_ROOT="/nowhere")
    assert answer.returncode == 3
    assert "no python3 found on PATH. Remedy: apt install python3 python3-venv" in answer.stderr


def test_python_without_venv(checkout: Checkout, tmp_path: Path) -> None:
    shutil.rmtree(checkout.path / ".cache")
    path = tools_only(tmp_path)
    bare = Path(path) / "python3"  # as Debian ships it: everything but ensurepip
    hide = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])"
    bare.write_text(f'#!/bin/sh\nexec "{PYTHON}" -I -c "{hide}" "$3"\n', encoding="utf-8")
    bare.chmod(0o755)
    answer = checkout.start("up", PATH=path, PYENV_ROOT="/nowhere")
    assert answer.returncode == 3
    assert "Remedy: apt install python3-venv" in answer.stderr
    assert not checkout.venv.exists()


def tools_only(tmp_path: Path) -> str:
    """A folder with the programs that every Debian has, and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in (
        "bash",
        "sh",
        "env",
        "readlink",
        "dirname",
        "locale",
        "mkdir",
        "id",
        "flock",
        "cat",
        "rm",
        "sha256sum",
    ):
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


def test_the_index_of_pips_settings_is_used(checkout: Checkout) -> None:
    empty = {"UV_DEFAULT_INDEX": None, "UV_INDEX_URL": None, "UV_CACHE_DIR": str(checkout.path / "cold")}
    answer = checkout.start("env", PIP_INDEX_URL="file:///nowhere/simple", **empty)
    assert answer.returncode == 1
    assert "the environment could not be built" in answer.stderr
    assert not checkout.stamp.exists()


def test_a_wrong_hash_stops_the_build(checkout: Checkout) -> None:
    lock = checkout.path / "requirements/run.lock"
    lock.write_text(re.sub(r"sha256:\w{8}", "sha256:00000000", lock.read_text(encoding="utf-8")), encoding="utf-8")
    answer = checkout.start("env")
    assert answer.returncode == 1
    assert "Hash mismatch" in answer.stderr
    assert not checkout.stamp.exists()


def test_somebody_who_may_not_write(first: Checkout) -> None:
    place = Path(tempfile.mkdtemp(prefix="gpurig-readonly-"))  # not below pytest's folder, which is for its user alone
    try:
        checkout = with_uv(place, first)
        command = [str(checkout.path / "rig"), "up"]
        if os.geteuid() == 0:
            command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        for path in (place, checkout.path, checkout.path / ".cache"):
            path.chmod(0o555)
        env = {**checkout.env, "HOME": "/tmp"}
        answer = subprocess.run(command, env=env, text=True, capture_output=True, check=False, timeout=60, cwd="/")
        assert answer.returncode == 3, answer.stderr
        assert "is not writable for" in answer.stderr
    finally:
        for path in (place, place / "a checkout", place / "a checkout/.cache"):
            path.chmod(0o755)
        shutil.rmtree(place)
