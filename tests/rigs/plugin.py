# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of simulated rigs. A test module takes them with

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ..nvml_sim.build import build
from .live import LiveRig, install
from .machines import Machine, machine

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def nvml_library() -> Path:
    """The simulated library, built once per content of its sources (kept in the ignored .cache)."""
    return build(REPOSITORY / ".cache" / "nvml_sim")


@pytest.fixture
def make_rig(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LiveRig]:
    """`make_rig(machine_or_name, setters="anyone")` puts a machine into a fresh directory and returns it.

    The last rig made is also the one that NVML sees in the test's own process. `setters` says who may write: `anyone`
    (tests run as any user), `root` (as the real driver) or `nobody`; a machine that says so itself keeps its word.
    """
    made = 0

    def make(which: Machine | str, setters: str = "anyone") -> LiveRig:
        nonlocal made
        made += 1
        description = machine(which) if isinstance(which, str) else which
        description = dataclasses.replace(description, nvml={"setters": setters, **description.nvml})
        rig = install(description, tmp_path / f"rig{made}", nvml_library)
        monkeypatch.setenv("NVML_SIM_DIR", rig.nvml_path)
        return rig

    return make
