# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the test levels: ./rig test [LEVEL...|all] [ARGUMENTS]

Without a level the ones that run as any user. ARGUMENTS, from the first word that is no level, go to pytest, or name
single checks of `lint` and `sanity` or scenarios of `molecule`. Every level runs, also after a failure; each ends with
one line. A skip that tests/skips.yml does not list is a failure. Exit code 1: something failed; 2: wrong usage.
"""

from __future__ import annotations

import ast
import configparser
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpurig-tests"
SKIPS = "tests/skips.yml"
SKIP_KEYS = {"level", "test", "reason", "lifted_by"}
COVERAGE_DATA = ROOT / ".cache" / "coverage"
COVERAGE_NEEDED = 90.0
PATIENCE_S = 20.0  # from a polite end to a hard one
NEVER_TRACKED = {".git", ".venv", ".cache", ".ansible", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
NEVER_TRACKED |= {"__pycache__", "build", "output"}
Command = Sequence[str | Path]
RUNNING: set[subprocess.Popen[str]] = set()
LONG_SCENARIOS = {"compose", "page", "vllm"}
FULL = "GPURIG_MOLECULE_FULL"
OURS = "ansible_collections.gpurig.llm."
# What an installed collection has no use for; a name here is wrong as any part of a path in it.
NOT_SHIPPED = {
    ".git",
    ".github",
    ".ci",
    ".venv",
    ".cache",
    ".ansible",
    "tests",
    "molecule",
    "scripts",
    "__pycache__",
    "rig",
}
UNIT_PACKAGES = ("gcc", "libc6-dev", "patchelf")
INTEGRATION_PACKAGES = (*UNIT_PACKAGES, "openssh-client", "postgresql")
HOST_PACKAGES = (
    *("podman", "runc", "conmon", "netavark", "aardvark-dns", "iptables", "uidmap"),
    *("mmdebstrap", "busybox-static", "patchelf", "openssh-client", "git", "ca-certificates", "debian-archive-keyring"),
    *("gnupg", "iproute2"),
)
BROWSER_PACKAGES = ("chromium", "chromium-driver")
# A browser for the page and a database, an ssh server for the tunnel.
E2E_PACKAGES = (*HOST_PACKAGES, *BROWSER_PACKAGES, "openssh-server", "postgresql")


@dataclass
class Outcome:
    """What one level found: how many passed, one line per failure, id and reason of each skip."""

    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, problem: str | None) -> None:
        """Count one check, failed when there is a problem."""
        if problem is None:
            self.passed += 1
        else:
            self.failures.append(f"{name}: {problem}")


@dataclass(frozen=True)
class Level:
    """A named level; `anybody`: it runs as any user and so without being named."""

    name: str
    summary: str
    run: Callable[[list[str]], Outcome]
    anybody: bool = True


# --- helpers -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print at once, so that our lines and those of the programs we run keep their order."""
    print(text, flush=True)


def run(
    command: Command,
    *,
    capture: bool = True,
    timeout_s: float = 900,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    onto: int | None = None,
) -> tuple[int, str]:
    """Run a program in a process group of its own; returns exit code (124: too long) and, when captured, its output.

    `onto`: the descriptor that gets the output when it is not captured, ours by default.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if capture else onto,
        stderr=subprocess.STDOUT if capture or onto is not None else None,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    RUNNING.add(process)
    try:
        output, _none = process.communicate(timeout=timeout_s)
    except BaseException as error:
        output = stop(process)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return 124, f"{output or ''}\nended after {timeout_s:.0f} s"
    finally:
        RUNNING.discard(process)
    return process.returncode, output or ""


def stop(process: subprocess.Popen[str]) -> str:
    """End a program and all that it started, first politely, so that it can remove what it made; returns its output."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=PATIENCE_S)[0] or ""
    return ""


def tracked_files() -> list[Path]:
    """Every file that belongs to the checkout, relative to it: git's and, without git, all but caches."""
    code, top = run(["git", "rev-parse", "--show-toplevel"])
    if code == 0 and Path(top.strip()).resolve() == ROOT:
        _code, names = run(["git", "ls-files", "-co", "--exclude-standard", "-z"])
        found = {Path(name) for name in names.split("\0") if name}
    else:
        found = {path.relative_to(ROOT) for path in ROOT.rglob("*") if not path.is_dir() or path.is_symlink()}
        found = {path for path in found if not NEVER_TRACKED.intersection(path.parts)}
    return sorted(path for path in found if (ROOT / path).is_symlink() or (ROOT / path).is_file())


def copy_checkout(target: Path, paths: list[Path]) -> None:
    """Copy some of the checkout's files into a new folder."""
    for path in paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path, follow_symlinks=False)


def has_tests(folder: str) -> bool:
    """Whether there is something for pytest to collect."""
    return any((ROOT / folder).rglob("test_*.py"))


def read_junit(path: Path, outcome: Outcome) -> None:
    """Add the test cases of a JUnit file. An id is `dotted.module::test`."""
    for case in ET.parse(path).getroot().iter("testcase"):  # noqa: S314  # written by the program we just ran
        name = "::".join(part for part in (case.get("classname", ""), case.get("name", "")) if part)
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skipped = case.find("skipped")
        if bad is not None:
            outcome.failures.append(f"{name}: {(bad.get('message') or bad.text or '').strip().partition(chr(10))[0]}")
        elif skipped is not None:
            outcome.skips.append((name, (skipped.get("message") or skipped.text or "no reason").strip()))
        else:
            outcome.passed += 1


def pytest(
    folder: str, extra: list[str], *options: str, python: Path | None = None, timeout_s: float = 1800
) -> Outcome:
    """Run pytest over a folder, its output on ours, and count from its JUnit file."""
    outcome = Outcome()
    places = [] if any((ROOT / word.partition("::")[0]).exists() for word in extra) else [folder]
    with tempfile.TemporaryDirectory(prefix="gpurig-junit-") as temporary:
        report = Path(temporary) / "junit.xml"
        command = [python or sys.executable, "-m", "pytest", *places, "-q", f"--junitxml={report}", *options, *extra]
        code, _output = run(command, capture=False, timeout_s=timeout_s)
        if report.is_file():
            read_junit(report, outcome)
        if code not in {0, 1, 5} or (code == 1 and not outcome.failures):
            outcome.failures.append(f"pytest ended with exit code {code}")
    return outcome


def is_root_on_debian() -> bool:
    """Whether we may install packages with apt."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install_packages(names: Sequence[str]) -> str | None:
    """Bring the programs that a level needs, when we are root on Debian; returns what went wrong."""
    if not is_root_on_debian():
        return None
    absent = [name for name in names if "ok installed" not in run(["dpkg-query", "-W", "-f=${Status}", name])[1]]
    if not absent:
        return None
    say(f"installing {' '.join(absent)} ...")
    if problem := start_nothing(absent):
        return problem
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-q"], env=quiet)  # one unreachable repository of many is no reason to stop
    code, output = run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *absent], env=quiet)
    return None if code == 0 else f"apt-get install {' '.join(absent)} failed: {output.strip().splitlines()[-1:]}"


def start_nothing(absent: Sequence[str], root: Path = Path("/")) -> str | None:
    """Let these packages be programs only, for tests start what they need: no cluster of a database, no ssh server.

    Files that are there already are left as they are. Returns what went wrong.
    """
    clusters = root / "etc/postgresql-common/createcluster.conf"
    if "postgresql" in absent and not clusters.exists():
        clusters.parent.mkdir(parents=True, exist_ok=True)
        clusters.write_text("# Of ./rig test: its tests make their own clusters.\ncreate_main_cluster = false\n")
    if "openssh-server" in absent and (root / "run/systemd/system").is_dir():
        say("ssh.service and ssh.socket stay masked; for an ssh server: systemctl unmask ssh.service ssh.socket")
        code, output = run(["systemctl", "mask", "ssh.service", "ssh.socket"])
        return None if code == 0 else f"systemctl mask ssh.service ssh.socket failed: {output.strip()}"
    return None


def pip_settings() -> configparser.RawConfigParser:
    """What pip is told on this machine, by its configuration files and by the environment, which wins."""
    settings = configparser.RawConfigParser()
    settings["global"] = {}
    config_home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    user = (Path.home() / ".pip/pip.conf", config_home / "pip/pip.conf")
    settings.read(["/etc/pip.conf", *user, os.environ.get("PIP_CONFIG_FILE", "")])
    for name, value in os.environ.items():
        if name.startswith("PIP_") and name not in {"PIP_CONFIG_FILE", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}:
            settings["global"][name[4:].lower().replace("_", "-")] = value
    return settings


def torch_cpu() -> str:
    """Where torch's build for the processor is, which the package index has not: a folder that pip is told to look
    into and that has it, or its maker's page."""
    places = pip_settings()["global"].get("find-links", "")
    folders = [place for place in places.split() if any(Path(place).glob("torch-*+cpu-*.whl"))]
    return folders[0] if folders else "https://download.pytorch.org/whl/cpu/torch/"


def has_torch_cpu() -> bool:
    """Whether that place can be read: vLLM for the processor cannot be built without."""
    place = torch_cpu()
    if place.startswith("/"):
        return True
    with suppress(OSError), urllib.request.urlopen(place, timeout=10) as page:  # noqa: S310  its maker's, by https
        return bool(page.status == 200)
    return False


def find_python(version: str) -> Path | None:
    """A Python of this version that runs and can make environments: on PATH (shims may not run) or pyenv's."""
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders += [path / "bin" for path in sorted(pyenv.glob(f"versions/{version}.*"))]
    check = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for path in (folder / f"python{version}" for folder in folders):
        with suppress(OSError):
            if path.exists() and run([path, "-I", "-c", check], timeout_s=30)[0] == 0:
                return path
    return None


# --- lint --------------------------------------------------------------------------------------------------------


def shell_scripts() -> list[Path]:
    """Tracked files that a shell runs."""
    shebang = re.compile(rb"#!.*\b(ba|da|k)?sh\b")
    return [
        path
        for path in tracked_files()
        if path.suffix == ".sh" or (not path.suffix and shebang.match((ROOT / path).read_bytes()[:80]))
    ]


def read_skips() -> list[dict[str, str]]:
    """The entries of tests/skips.yml, one for each test pattern."""
    path = ROOT / SKIPS
    entries = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or []
    return [
        {**entry, "test": test}
        for entry in entries
        for test in (entry.get("test") if isinstance(entry.get("test"), list) else [entry.get("test")])
    ]


def skips_error() -> str | None:
    """What is wrong with tests/skips.yml: a missing reason, an unknown level, a test file that is gone."""
    found = []
    for entry in read_skips():
        if set(entry) != SKIP_KEYS or not all(isinstance(value, str) and value.strip() for value in entry.values()):
            found.append(f"{entry}: must have {', '.join(sorted(SKIP_KEYS))}, each with text")
            continue
        if entry["level"] not in {level.name for level in LEVELS}:
            found.append(f"{entry['test']}: there is no level {entry['level']!r}")
        module = entry["test"].partition("::")[0]
        if (
            module.startswith("tests.")
            and "*" not in module
            and not (ROOT / f"{module.replace('.', '/')}.py").is_file()
        ):
            found.append(f"{entry['test']}: there is no such test file")
    return "\n".join(found) or None


def lint_commands() -> Iterator[tuple[str, Command | Callable[[], str | None]]]:
    """Name and command of each check; a function returns the problem it found."""
    python = Path(sys.executable)
    yield "ruff", [BIN / "ruff", "check", "."]
    yield "ruff-format", [BIN / "ruff", "format", "--check", "."]
    yield "yamllint", [BIN / "yamllint", "--strict", "."]
    yield "ansible-lint", [BIN / "ansible-lint", "--offline", "--nocolor", "-p", "-q"]
    if any((ROOT / "plugins/module_utils").glob("*.py")):
        yield "mypy", [BIN / "mypy", "--python-version", "3.10", "plugins/module_utils"]
    yield "mypy-scripts", [BIN / "mypy", "--disable-error-code", "import-untyped", "scripts"]
    yield "shellcheck", [BIN / "shellcheck", *shell_scripts()]
    yield "specs", [python, "scripts/check_specs.py"]
    yield "layers", [python, "scripts/layers.py"]
    yield "readmes", [python, "scripts/role_readme.py", "--check"]
    yield "changelog", [BIN / "antsibull-changelog", "lint"]
    yield "skips", skips_error


def lint(extra: list[str]) -> Outcome:
    """All static checks, or those named; the output of a failed one is shown."""
    outcome = Outcome()
    checks = dict(lint_commands())
    unknown = [name for name in extra if name not in checks]
    if unknown:
        outcome.failures.append(f"no such check: {', '.join(unknown)}; there are {', '.join(checks)}")
    for name, check in checks.items():
        if extra and name not in extra:
            continue
        started = time.monotonic()
        if callable(check):
            problem = check()
        else:
            code, output = run(check, env={"NO_COLOR": "1"})
            problem = None if code == 0 else f"exit code {code}\n{output.rstrip()}"
        say(f"  {'ok    ' if problem is None else 'FAILED'} {name} ({time.monotonic() - started:.1f} s)")
        if problem:
            say(problem)
        outcome.add(name, problem and problem.splitlines()[0])
    return outcome


# --- unit tests --------------------------------------------------------------------------------------------------


def measured(level: str, extra: list[str]) -> list[str]:
    """pytest's options for a level that runs on both cores and, when run as a whole, counts which lines it reached."""
    options = ["-n", str(os.cpu_count() or 1), "--dist", "loadfile"]
    if extra:
        return [] if any(word.startswith("-") for word in extra) else options
    COVERAGE_DATA.mkdir(parents=True, exist_ok=True)
    os.environ["COVERAGE_FILE"] = str(COVERAGE_DATA / level)
    return [*options, "--cov=plugins/module_utils", "--cov-report="]


def add_coverage(outcome: Outcome) -> None:
    """Judge what unit and integration reached together; either alone leaves a part to the other."""
    parts = [COVERAGE_DATA / level for level in ("unit", "integration")]
    if not all(part.is_file() for part in parts):
        say("coverage is judged when unit and integration have both been run as a whole")
        return
    report, both = COVERAGE_DATA / "coverage.json", f"--data-file={COVERAGE_DATA / 'both'}"
    coverage = [sys.executable, "-m", "coverage"]
    run([*coverage, "combine", "--keep", both, *parts])
    run([*coverage, "json", both, "-o", report])
    say(run([*coverage, "report", both, "--skip-covered"])[1])
    percent = json.loads(report.read_text(encoding="utf-8"))["totals"]["percent_covered"]
    short = f"{percent:.1f} % of plugins/module_utils, {COVERAGE_NEEDED:.0f} % are needed"
    outcome.add("coverage", None if percent >= COVERAGE_NEEDED else short)


def unit(extra: list[str]) -> Outcome:
    """The unit tests."""
    if not has_tests("tests/unit"):
        return Outcome()
    if not extra and (problem := install_packages(UNIT_PACKAGES)):
        return Outcome(failures=[problem])
    return pytest("tests/unit", extra, *measured("unit", extra))


def needs_only_310(path: Path, seen: frozenset[Path] = frozenset()) -> bool:
    """Whether a test file works without Ansible and has to do with module_utils.

    It does when it and those of our helpers that it imports use nothing but the standard library, files of module_utils
    and what requirements/unit310.lock has.
    """
    text = path.read_text(encoding="utf-8")
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == f"{OURS}tests.unit")
    names.discard(f"{OURS}tests.unit")
    for name in names:
        helper = ROOT / f"{name.removeprefix(OURS).replace('.', '/')}.py"
        if name.startswith(f"{OURS}tests."):
            if helper in seen or not helper.is_file() or not needs_only_310(helper, seen | {path}):
                return False
        elif name.startswith(f"{OURS}plugins.module_utils"):
            continue
        elif name.partition(".")[0] not in sys.stdlib_module_names | {
            "pytest",
            "hypothesis",
            "yaml",
            "supervisor",
            "pynvml",
        }:
            return False
    return bool(seen) or ("plugins.module_utils" in text and "run_module" not in text)


def environment_310(python: Path) -> Path:
    """The interpreter of an environment for the unit tests on Python 3.10, built when its lock or place has changed."""
    folder, lock = ROOT / ".cache/unit310", ROOT / "requirements/unit310.lock"
    interpreter, mark = folder / "bin/python", folder / ".complete"
    stamp = f"{hashlib.sha256(lock.read_bytes()).hexdigest()} {python} {ROOT}"
    if not (interpreter.exists() and mark.is_file() and mark.read_text(encoding="utf-8") == stamp):
        say("building the environment of Python 3.10 ...")
        shutil.rmtree(folder, ignore_errors=True)
        options = ["--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
        certificate = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
        commands: tuple[list[str | Path], ...] = (
            [python, "-I", "-m", "venv", folder],
            [interpreter, "-m", "pip", "install", *options, "-r", lock],
        )
        for command in commands:
            code, output = run(command, env={"PIP_CERT": certificate} if certificate else None)
            if code:
                raise RuntimeError(f"{command[-1]}: {output.strip()}")
        for site in folder.glob("lib/python3*/site-packages"):
            (site / "ansible_collections/gpurig").mkdir(parents=True)
            (site / "ansible_collections/gpurig/llm").symlink_to(ROOT)
        mark.write_text(stamp, encoding="utf-8")
    return interpreter


def unit310(extra: list[str]) -> Outcome:
    """Code that goes to hosts, on the oldest Python that a host may have: it is imported, and its tests are run."""
    files = [path for path in sorted((ROOT / "tests/unit").glob("test_*.py")) if needs_only_310(path)]
    if not files:
        return Outcome()
    python = find_python("3.10")
    if python is None:
        return Outcome(skips=[("python3.10", "no Python 3.10 with venv and ensurepip on PATH or in pyenv")])
    try:
        interpreter = environment_310(python)
    except RuntimeError as error:
        return Outcome(failures=[f"environment: {error}"])
    say(f"{len(files)} files that need no Ansible, with {python}")
    names = [str(path.relative_to(ROOT)) for path in files]
    named = any((ROOT / word.partition("::")[0]).exists() for word in extra)
    outcome = pytest("tests/unit", [*([] if named else names), *extra], python=interpreter)
    for path in sorted((ROOT / "plugins/module_utils").glob("*.py")):
        if (
            not extra
            and path.stem != "__init__"
            and "(glue)" not in path.read_text(encoding="utf-8").partition("\n\n")[0]
        ):
            code, output = run([interpreter, "-W", "error", "-c", f"import {OURS}plugins.module_utils.{path.stem}"])
            outcome.add(f"import {path.stem}", None if code == 0 else output.strip().splitlines()[-1])
    return outcome


# --- ansible-test ------------------------------------------------------------------------------------------------

GET_PIP = """\
import ensurepip, os, subprocess, sys
environment = dict(os.environ)  # ensurepip hides pip's configuration from its own process and so from its children
ensurepip.bootstrap()
subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", "pip=={version}"], env=environment)
"""


def sanity_home() -> Path:
    """A home for ansible-test: it keeps its environments there, and only by it pip's settings reach its pip."""
    home = CACHE / "sanity-home"
    settings = pip_settings()
    if "cert" not in settings["global"] and os.environ.get("SSL_CERT_FILE"):
        settings["global"]["cert"] = os.environ["SSL_CERT_FILE"]
    (home / ".config/pip").mkdir(parents=True, exist_ok=True)
    with (home / ".config/pip/pip.conf").open("w", encoding="utf-8") as file:
        settings.write(file)
    # ansible-test downloads pip's bootstrap script from its makers' own server unless it finds one in its cache.
    source = next(BIN.parent.glob("lib/python3*/site-packages/ansible_test/_internal/python_requirements.py"))
    match = re.search(r"pip='([\d.]+)'", source.read_text(encoding="utf-8"))
    if match:
        script = home / f".ansible/test/cache/get_pip_{match.group(1).replace('.', '_')}.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(GET_PIP.format(version=match.group(1)), encoding="utf-8")
    return home


def sanity(extra: list[str]) -> Outcome:
    """ansible-test's sanity tests of what is shipped, in a copy, because it refuses a path with a link in it."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="gpurig-sanity-") as temporary:
        copy = Path(temporary).resolve() / "ansible_collections/gpurig/llm"
        shipped = [
            path for path in tracked_files() if path.parts[0] not in NOT_SHIPPED or path.parts[1:2] == ("sanity",)
        ]
        copy_checkout(copy, shipped)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        command: list[str | Path] = [
            BIN / "ansible-test",
            "sanity",
            "--venv",
            "--python",
            version,
            "--junit",
            "--color",
            "no",
        ]
        chosen = [word for name in extra for word in ("--test", name)]
        code, output = run([*command, *chosen], cwd=copy, env={"HOME": str(sanity_home())}, timeout_s=1800)
        for report in sorted(copy.glob("tests/output/junit/*.xml")):
            read_junit(report, outcome)
        lines = [line for line in output.splitlines() if line.startswith(("ERROR", "FATAL", "See documentation"))]
        if lines:
            say("\n".join(lines))
        if code and not outcome.failures:
            say(output)
            outcome.failures.append(f"ansible-test ended with exit code {code}")
    return outcome


# --- the built artifact ------------------------------------------------------------------------------------------


def artifact_errors(names: list[str]) -> str | None:
    """Files of a built collection that have no business in it, or that it lacks."""
    wrong = [name for name in names if NOT_SHIPPED.intersection(Path(name).parts) or name.endswith((".pyc", ".tar.gz"))]
    absent = [name for name in ("MANIFEST.json", "README.md", "LICENSE", "meta/runtime.yml") if name not in names]
    found = [*(f"{name} should not be shipped" for name in wrong), *(f"{name} is missing" for name in absent)]
    return "; ".join(found[:10]) or None


def artifact(_extra: list[str]) -> Outcome:
    """Build the collection, install it elsewhere, and let Ansible read its playbooks from there."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="gpurig-artifact-") as temporary:
        place = Path(temporary)
        (place / "ansible.cfg").write_text("[defaults]\n", encoding="utf-8")
        env = {
            "ANSIBLE_CONFIG": str(place / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(place / "collections"),
            "ANSIBLE_COLLECTIONS_SCAN_SYS_PATH": "false",  # or the link of the checkout would be found
            "ANSIBLE_DEPRECATION_WARNINGS": "true",
        }
        code, output = run([BIN / "ansible-galaxy", "collection", "build", "--output-path", place], env=env)
        built = next(iter(place.glob("*.tar.gz")), None)
        outcome.add("build", None if code == 0 and built else output.strip())
        if code or built is None:
            return outcome
        with tarfile.open(built) as archive:
            names = [member.name for member in archive.getmembers()]
        outcome.add("listing", artifact_errors(names))
        say(f"  {built.name}: {len(names)} entries, {built.stat().st_size / 1e6:.1f} MB")
        install: Command = [
            BIN / "ansible-galaxy",
            "collection",
            "install",
            "--no-deps",
            "-p",
            place / "collections",
            built,
        ]
        code, output = run(install, env=env, cwd=place)
        outcome.add("install", None if code == 0 else output.strip())
        if not (ROOT / "playbooks/site.yml").is_file():
            return outcome
        inventory = place / "collections/ansible_collections/gpurig/llm/inventories/local"
        play: list[str | Path] = [
            BIN / "ansible-playbook",
            "gpurig.llm.site",
            "-i",
            inventory if inventory.exists() else "localhost,",
        ]
        for option, expected in (("--syntax-check", f"playbook: {place.resolve()}"), ("--list-tasks", "TAGS: [")):
            code, output = run([*play, option], env=env, cwd=place)
            fine = code == 0 and expected in output and "[WARNING]" not in output
            outcome.add(f"gpurig.llm.site {option}", None if fine else output.strip())
    for failure in outcome.failures:
        say(failure)
    return outcome


# --- levels on test hosts ----------------------------------------------------------------------------------------


def integration(extra: list[str]) -> Outcome:
    """The modules as real processes; together with unit they must cover module_utils."""
    if not has_tests("tests/integration"):
        return Outcome()
    if not extra and (problem := install_packages(INTEGRATION_PACKAGES)):
        return Outcome(failures=[problem])
    outcome = pytest("tests/integration", extra, *measured("integration", extra), timeout_s=3600)
    if not extra:
        add_coverage(outcome)
    return outcome


def e2e(extra: list[str]) -> Outcome:
    """The whole thing on bare hosts that we build."""
    if not has_tests("tests/e2e"):
        return Outcome()
    if problem := install_packages(E2E_PACKAGES):
        return Outcome(failures=[problem])
    return pytest("tests/e2e", extra, *(() if extra else ("-n", "2", "--dist", "loadfile")), timeout_s=3600)


class Steps:
    """How long each step of a Molecule run took, and how much memory it needed, from the output as it comes.

    `rows`: (step, seconds, MiB that were in use at most, beyond what was in use when the run began). `why`: the
    lines up to where the first step failed, else the last ones.
    """

    _LINE = re.compile(r"➜ (\w+): (Executing|Executed: .*)$")
    _COLOUR = re.compile(r"\x1b\[[0-9;]*m")

    def __init__(self, available_mib: float) -> None:
        self.rows: list[tuple[str, float, float]] = []
        self._failed: list[str] = []
        self._last: deque[str] = deque(maxlen=60)
        self._first_mib = self._least_mib = available_mib
        self._began_s: float | None = None

    def sample(self, available_mib: float) -> None:
        """Take note of the memory that is available now."""
        self._least_mib = min(self._least_mib, available_mib)

    def see(self, line: str, now_s: float) -> None:
        """Take note of a line of output."""
        plain = self._COLOUR.sub("", line).rstrip()
        self._last.append(plain)
        found = self._LINE.search(plain)
        if found and not self._failed and found[2].startswith("Executed: Failed"):
            self._failed = list(self._last)
        if found and found[2] == "Executing":
            self._began_s, self._least_mib = now_s, self._first_mib
        elif found and self._began_s is not None:  # the recap at the end names each step again
            self.rows.append((found[1], now_s - self._began_s, self._first_mib - self._least_mib))
            self._began_s = None

    @property
    def why(self) -> list[str]:
        """The lines in which the reason should be when the run failed."""
        return self._failed or list(self._last)

    def in_words(self) -> str:
        """All of it in one line."""
        total_s, most_mib = sum(row[1] for row in self.rows), max((row[2] for row in self.rows), default=0)
        parts = ", ".join(f"{step} {seconds:.0f} s {mib:.0f} MiB" for step, seconds, mib in self.rows)
        return f"{total_s:.0f} s, {most_mib:.0f} MiB: {parts}"


def available_mib() -> float:
    """Memory that programs could have (proc_meminfo(5))."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return int(found[1]) / 1024 if found else 0.0


def scenario(name: str, env: Mapping[str, str]) -> tuple[int, Steps]:
    """Run one scenario with its output on ours; returns Molecule's exit code and what became of the steps."""
    steps = Steps(available_mib())
    ended = threading.Event()
    read, write = os.pipe()

    def follow() -> None:
        with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                say(f"{name}| {line.rstrip()}")
                steps.see(line, time.monotonic())

    def sample() -> None:
        while not ended.wait(0.5):
            steps.sample(available_mib())

    threads = [threading.Thread(target=work, daemon=True) for work in (follow, sample)]
    for thread in threads:
        thread.start()
    try:
        command: Command = [BIN / "molecule", "test", "-s", name]
        code, _output = run(command, capture=False, timeout_s=3600, env=env, onto=write)
    finally:
        os.close(write)
        ended.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    return code, steps


def inventory_of(scenario: str) -> str:
    """The text of a scenario's inventory."""
    return (ROOT / "molecule" / scenario / "inventory.yml").read_text(encoding="utf-8")


def molecule(extra: list[str]) -> Outcome:
    """Every Molecule scenario, or those named; two at a time, for each waits half of its time."""
    scenarios = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
    chosen = [name for name in scenarios if not extra or name in extra]
    if not is_root_on_debian():
        return Outcome(skips=[(f"{name}: hosts", "needs root and Debian: it starts containers") for name in chosen])
    browser = BROWSER_PACKAGES if any("molecule_browser" in inventory_of(name) for name in chosen) else ()
    if chosen and (problem := install_packages((*HOST_PACKAGES, *browser))):
        return Outcome(failures=[problem])
    outcome = Outcome()
    for name in [name for name in chosen if "molecule_tiny_model" in inventory_of(name) and not has_torch_cpu()]:
        chosen.remove(name)
        outcome.skips.append(
            (f"{name}: torch", f"needs torch's build for the processor, and {torch_cpu()} does not answer")
        )
    env = {
        "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf"),
        "GPURIG_TORCH_CPU": torch_cpu(),
    }
    long = [name for name in chosen if (ROOT / "molecule" / name / "full.yml").is_file()]
    files = {name: "full.yml" if name in long and os.environ.get(FULL) else "molecule.yml" for name in chosen}
    outcome.skips += [(f"{name}: full.yml", "takes long") for name in long if files[name] != "full.yml"]
    at_once = min(2, os.cpu_count() or 1)
    chosen.sort(key=lambda name: (name not in LONG_SCENARIOS, name))
    with ThreadPoolExecutor(at_once) as pool:
        runs = {
            name: pool.submit(scenario, name, {**env, "MOLECULE_GLOB": f"molecule/*/{files[name]}"}) for name in chosen
        }
        try:
            wait(runs.values())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                stop(process)
            raise
    for name, done in runs.items():
        code, steps = done.result()
        outcome.add(name, None if code == 0 else f"molecule ended with exit code {code}")
        beside = " (memory: with the scenario beside it)" if len(chosen) > 1 and at_once > 1 else ""
        say(f"{name}: {steps.in_words()}{beside}")
    for name, done in runs.items():
        # Once more at the end, which is what is left of the output where only its end is kept.
        code, steps = done.result()
        for line in steps.why if code else []:
            say(f"{name} failed: {line}")
    return outcome


LEVELS = (
    Level("lint", "static checks: ruff, mypy, ansible-lint, specs, layers ...", lint),
    Level("unit", "tests/unit: pure functions and single parts", unit),
    Level("unit310", "the unit tests that need no Ansible, on Python 3.10", unit310),
    Level("sanity", "ansible-test sanity", sanity, anybody=False),
    Level("artifact", "the built and installed collection", artifact),
    Level("integration", "tests/integration: modules as real processes; coverage", integration),
    Level("e2e", "tests/e2e: the whole run, and bare Debian hosts (root)", e2e, anybody=False),
    Level("molecule", "every scenario of molecule/ (root, Debian)", molecule, anybody=False),
)


# --- the command -------------------------------------------------------------------------------------------------


def is_listed(level: str, test: str, entries: list[dict[str, str]]) -> bool:
    """Whether tests/skips.yml knows this skip; `*` in its pattern stands for anything, brackets for themselves.

    What may be skipped among the unit tests may be so on Python 3.10, too.
    """
    return any(
        entry.get("level") in {level, "unit" if level == "unit310" else level}
        and re.fullmatch(re.escape(entry.get("test", "")).replace(r"\*", ".*"), test, re.DOTALL) is not None
        for entry in entries
    )


def judge(level: Level, outcome: Outcome, everything: bool) -> None:
    """Turn unlisted skips into failures, and a level without any test into one when all levels were asked for."""
    entries = read_skips()
    for test, reason in list(outcome.skips):
        if not is_listed(level.name, test, entries):
            outcome.skips.remove((test, reason))
            outcome.failures.append(f"{test}: skipped without an entry in {SKIPS} ({reason})")
    if everything and not (outcome.passed or outcome.failures or outcome.skips):
        outcome.failures.append("no test ran")


def summary(outcome: Outcome) -> str:
    """The three numbers in words."""
    return f"{outcome.passed} passed, {len(outcome.failures)} failed, {len(outcome.skips)} skipped"


def split(arguments: list[str]) -> tuple[list[Level], list[str], bool]:
    """Levels, the arguments after them, and whether all were asked for. ValueError for a word that is no level."""
    by_name = {level.name: level for level in LEVELS}
    names = []
    rest = list(arguments)
    while rest and (rest[0] in by_name or rest[0] == "all"):
        names.append(rest.pop(0))
    if rest and not names and not rest[0].startswith("-"):
        raise ValueError(f"there is no level {rest[0]!r}; there are {', '.join(by_name)} and 'all'")
    if "all" in names:
        return list(LEVELS), rest, True
    return [level for level in LEVELS if (level.name in names if names else level.anybody)], rest, False


def main(arguments: list[str]) -> int:
    """Run the levels and say how they went."""
    if arguments and arguments[0] in {"-h", "--help", "--list"}:
        say((__doc__ or "") if arguments[0] != "--list" else "")
        for level in LEVELS:
            say(f"  {level.name:<12} {level.summary}{'' if level.anybody else '; only when named, or with all'}")
        return 0
    try:
        levels, extra, everything = split(arguments)
    except ValueError as error:
        print(f"rig test: {error}", file=sys.stderr)
        return 2
    os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.pop("ANSIBLE_CONFIG", None)  # ./rig's, for people's runs; tests say themselves what they are run with
    results: list[tuple[Level, Outcome, float]] = []
    for level in levels:
        say(f"== {level.name}: {level.summary}")
        started = time.monotonic()
        outcome = level.run(extra)
        judge(level, outcome, everything)
        results.append((level, outcome, time.monotonic() - started))
        for failure in outcome.failures:
            say(f"  FAILED {failure.splitlines()[0]}")
        say(f"{level.name}: {summary(outcome)} ({results[-1][2]:.0f} s)")
    if len(results) > 1:
        say(f"\n{'level':<12} {'passed':>7} {'failed':>7} {'skipped':>7} {'seconds':>8}")
        for level, outcome, seconds in results:
            counts = (outcome.passed, len(outcome.failures), len(outcome.skips))
            say(f"{level.name:<12} {counts[0]:>7} {counts[1]:>7} {counts[2]:>7} {seconds:>8.0f}")
        for level, outcome, _seconds in results:
            for test, reason in outcome.skips:
                say(f"skipped, as listed: {level.name} {test}: {reason}")
            for failure in outcome.failures:
                say(f"FAILED: {level.name} {failure.splitlines()[0]}")
    total = Outcome(
        sum(outcome.passed for _level, outcome, _seconds in results),
        [failure for _level, outcome, _seconds in results for failure in outcome.failures],
        [skip for _level, outcome, _seconds in results for skip in outcome.skips],
    )
    if not (total.passed or total.failures or total.skips):
        total.failures.append("no test ran")
        say(f"FAILED: no test of {', '.join(level.name for level in levels)} matches {' '.join(extra)}")
    say(summary(total))
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
