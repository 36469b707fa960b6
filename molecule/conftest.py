# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""For the tests of all scenarios."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.molecule.shared.rig import ONLY_ON, Rig, instances
from testinfra.host import Host
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling


@pytest.fixture(scope="module")
def rig(host: Host) -> Rig:
    """The rig of the host."""
    return Rig.of(host)


@pytest.fixture(params=instances(), ids=lambda instance: instance["name"])
def instance(request: pytest.FixtureRequest) -> dict[str, object]:
    """Each instance of the scenario's inventory."""
    return dict(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ask each host about its own instances only."""

    def belongs(item: pytest.Item) -> bool:
        values = getattr(item, "callspec", None)
        owner = values.params.get("instance", {}).get(ONLY_ON) if values else None
        return owner is None or bool(values.params["_testinfra_host"].backend.get_hostname() == owner)

    items[:] = [item for item in items if belongs(item)]


class ByHost(LoadScopeScheduling):
    """Tests several hosts at the same time, and each of them with its tests in their order."""

    def _split_scope(self, nodeid: str) -> str:
        return next((host for host in self.config.option.hosts.split(",") if host in nodeid), "")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByHost:
    """Where a scenario asks for several processes (-n)."""
    return ByHost(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure that says why: Molecule counts no skips."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"A scenario's test may not be skipped: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests noted about hosts (rig.noted), once and not where nobody reads it."""
    if hasattr(terminalreporter.config, "workerinput"):
        return
    for path in sorted(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]).glob("noted/*.txt")):
        terminalreporter.write(path.read_text(encoding="utf-8"))
        path.unlink()
