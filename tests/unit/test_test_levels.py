# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The test levels count what ran, and let no skip and no empty level pass unseen."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.scripts import test_levels as levels

UNIT = next(level for level in levels.LEVELS if level.name == "unit")
ENTRIES = [
    {"level": "unit", "test": "tests.unit.test_a::test_root*", "reason": "r", "lifted_by": "x"},
    {"level": "unit", "test": "tests.unit.test_a::test_case[a]", "reason": "r", "lifted_by": "x"},
    {"level": "e2e", "test": "*", "reason": "r", "lifted_by": "x"},
]
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_good"/>
<testcase classname="tests.unit.test_a" name="test_bad"><failure message="assert 1 == 2&#10;more"/></testcase>
<testcase classname="tests.unit.test_a" name="test_broken"><error message="no fixture"/></testcase>
<testcase classname="tests.unit.test_a" name="test_skipped"><skipped message="no root"/></testcase>
<testcase classname="" name="tests.unit.test_b"><skipped message="whole file"/></testcase>
<testcase classname="sanity" name="pslint"><skipped>No tests applicable.</skipped></testcase>
</testsuite></testsuites>"""


def test_junit_is_counted_by_outcome(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT, encoding="utf-8")
    outcome = levels.Outcome()
    levels.read_junit(path, outcome)
    assert outcome.passed == 1
    assert outcome.failures == [
        "tests.unit.test_a::test_bad: assert 1 == 2",
        "tests.unit.test_a::test_broken: no fixture",
    ]
    assert outcome.skips == [
        ("tests.unit.test_a::test_skipped", "no root"),
        ("tests.unit.test_b", "whole file"),
        ("sanity::pslint", "No tests applicable."),
    ]


@pytest.mark.parametrize(
    ("level", "test", "listed"),
    [
        ("unit", "tests.unit.test_a::test_root", True),
        ("unit", "tests.unit.test_a::test_root_only[x]", True),
        ("unit", "tests.unit.test_a::test_case[a]", True),
        ("unit", "tests.unit.test_a::test_casea", False),
        ("unit", "tests.unit.test_b::test_root", False),
        ("integration", "tests.unit.test_a::test_root", False),
        ("e2e", "anything", True),
    ],
)
def test_a_skip_is_listed_by_level_and_pattern(level: str, test: str, listed: bool) -> None:
    assert levels.is_listed(level, test, ENTRIES) is listed


def test_an_unlisted_skip_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "read_skips", lambda: ENTRIES)
    outcome = levels.Outcome(passed=1, skips=[("tests.unit.test_a::test_root", "no root"), ("other", "lazy")])
    levels.judge(UNIT, outcome, everything=False)
    assert outcome.skips == [("tests.unit.test_a::test_root", "no root")]
    assert outcome.failures == ["other: skipped without an entry in tests/skips.yml (lazy)"]


@pytest.mark.parametrize(("everything", "failures"), [(False, []), (True, ["no test ran"])])
def test_a_level_without_tests_fails_only_among_all(everything: bool, failures: list[str]) -> None:
    outcome = levels.Outcome()
    levels.judge(UNIT, outcome, everything)
    assert outcome.failures == failures


@pytest.mark.parametrize(
    ("arguments", "names", "rest", "everything"),
    [
        ([], ["lint", "unit", "unit310", "artifact", "integration"], [], False),
        (["unit", "-k", "foo"], ["unit"], ["-k", "foo"], False),
        (["e2e", "lint"], ["lint", "e2e"], [], False),
        (["lint", "ruff"], ["lint"], ["ruff"], False),
        (["all"], [level.name for level in levels.LEVELS], [], True),
        (["-x"], ["lint", "unit", "unit310", "artifact", "integration"], ["-x"], False),
    ],
)
def test_arguments(arguments: list[str], names: list[str], rest: list[str], everything: bool) -> None:
    chosen, extra, asked_for_all = levels.split(arguments)
    assert ([level.name for level in chosen], extra, asked_for_all) == (names, rest, everything)


def test_an_unknown_level_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert levels.main(["units"]) == 2
    assert "there is no level 'units'" in capsys.readouterr().err


def test_all_levels_run_after_a_failure_and_the_last_line_is_plain(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = levels.Level("lint", "bad", lambda _extra: levels.Outcome(passed=2, failures=["ruff: exit code 1"]))
    good = levels.Level("unit", "good", lambda _extra: levels.Outcome(passed=3))
    monkeypatch.setattr(levels, "LEVELS", (bad, good))
    assert levels.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "lint: 2 passed, 1 failed, 0 skipped (0 s)" in lines
    assert "unit: 3 passed, 0 failed, 0 skipped (0 s)" in lines
    assert lines[-1] == "5 passed, 1 failed, 0 skipped"


def test_a_word_that_matches_no_test_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = levels.Level("unit", "empty", lambda _extra: levels.Outcome())
    monkeypatch.setattr(levels, "LEVELS", (empty,))
    assert levels.main(["unit", "-k", "typo"]) == 1
    assert "no test of unit matches -k typo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["MANIFEST.json", "README.md", "LICENSE", "meta/runtime.yml", "plugins/filter/rig.py"], None),
        (["MANIFEST.json", "README.md", "meta/runtime.yml"], "LICENSE is missing"),
        (["MANIFEST.json", "README.md", "LICENSE", "meta/runtime.yml", "tests/unit/a.py"], "tests/unit/a.py"),
        (["MANIFEST.json", "README.md", "LICENSE", "meta/runtime.yml", "plugins/__pycache__"], "__pycache__"),
    ],
)
def test_what_an_artifact_may_hold(names: list[str], problem: str | None) -> None:
    found = levels.artifact_errors(names)
    assert found is None if problem is None else found is not None and problem in found


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("from ansible_collections.gpurig.llm.plugins.module_utils.layout import x\nimport pytest, json\n", True),
        ("from ansible_collections.gpurig.llm.plugins.module_utils import layout\nimport ansible\n", False),
        (
            "from ansible_collections.gpurig.llm.plugins.module_utils import layout\ndef test_a(run_module): ...\n",
            False,
        ),
        ("from ansible_collections.gpurig.llm.plugins.filter import rig\n", False),
        ("import json\n", False),
    ],
)
def test_which_tests_run_on_the_oldest_python(tmp_path: Path, text: str, fits: bool) -> None:
    path = tmp_path / "test_x.py"
    path.write_text(text, encoding="utf-8")
    assert levels.needs_only_310(path) is fits


def test_a_program_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "PATIENCE_S", 0.2)  # a shell's background job ignores the polite end
    code, output = levels.run(["sh", "-c", "echo began; sleep 60 & echo $!; wait"], timeout_s=0.5)
    assert code == 124
    assert output.startswith("began\n")
    child = Path(f"/proc/{int(output.split()[1])}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and ") Z " not in child.read_text(encoding="utf-8") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.monotonic() < deadline, "the program is ended, what it started runs on"


def test_our_list_of_skips_is_sound() -> None:
    assert levels.skips_error() is None


def test_an_entry_without_a_reason_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [
        {**ENTRIES[0], "reason": " "},
        {**ENTRIES[0], "level": "units"},
        {**ENTRIES[0], "test": "tests.unit.gone::x"},
    ]
    monkeypatch.setattr(levels, "read_skips", lambda: wrong)
    error = levels.skips_error() or ""
    assert [part in error for part in ("must have", "no level 'units'", "no such test file")] == [True] * 3


def test_the_steps_of_a_scenario_are_measured() -> None:
    steps = levels.Steps(available_mib=1000)
    colour = "\x1b[36mINFO    \x1b[0m \x1b[32mpod\x1b[0m ➜ \x1b[33m{}\x1b[0m: \x1b[36m{}\x1b[0m\n"
    steps.see(colour.format("create", "Executing"), 10.0)
    steps.sample(700)
    steps.sample(900)
    steps.see("  create: Executing", 11.0)
    steps.see(colour.format("create", "Executed: Successful"), 12.0)
    steps.see(colour.format("verify", "Executing"), 12.5)
    steps.see(colour.format("verify", "Executing Testinfra tests found in molecule/pod/tests/..."), 13.0)
    steps.see(colour.format("verify", "Executed: Failed"), 15.5)
    steps.see(colour.format("create", "Executed: Successful"), 16.0)
    assert steps.rows == [("create", 2.0, 300), ("verify", 3.0, 0)]
    assert steps.in_words() == "5 s, 300 MiB: create 2 s 300 MiB, verify 3 s 0 MiB"


def test_what_a_scenario_failed_of_is_kept_for_the_end() -> None:
    steps = levels.Steps(available_mib=1000)
    for number in range(100):
        steps.see(f"  \x1b[31mline {number}\x1b[0m\n", 1.0)
    assert (len(steps.why), steps.why[-1]) == (60, "  line 99"), "a run that was stopped says nothing more"
    steps.see("ERROR pod ➜ converge: Executed: Failed\n", 2.0)
    steps.see("pod ➜ destroy: Executing\n", 3.0)
    steps.see("pod ➜ converge: Executed: Failed (ansible-playbook ended with 2)\n", 4.0)
    assert (len(steps.why), steps.why[-2:]) == (60, ["  line 99", "ERROR pod ➜ converge: Executed: Failed"])


def test_packages_of_servers_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(levels, "run", lambda command, **_options: told.append(command) or (0, ""))
    conf = tmp_path / "etc/postgresql-common/createcluster.conf"
    assert levels.start_nothing(["gcc"], tmp_path) is None
    assert levels.start_nothing(["openssh-server"], tmp_path) is None
    assert not conf.exists()
    assert told == [], "without systemd no package starts anything"
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert levels.start_nothing(["postgresql", "openssh-server"], tmp_path) is None
    assert conf.read_text(encoding="utf-8").splitlines()[-1] == "create_main_cluster = false"
    assert told == [["systemctl", "mask", "ssh.service", "ssh.socket"]]
    conf.write_text("theirs", encoding="utf-8")
    assert levels.start_nothing(["postgresql"], tmp_path) is None
    assert conf.read_text(encoding="utf-8") == "theirs"
