# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One rig for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.e2e.sandbox import Result, Sandbox, free_port


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def first(place: Path) -> Iterator[tuple[Sandbox, Result]]:
    """A rig built from nothing; every later test of this file leaves it converged."""
    home = place / "home"
    home.mkdir()
    box = Sandbox(place / "rig", free_port(), home)
    try:
        yield box, box.run()
    finally:
        box.end()


@pytest.fixture
def rig(first: tuple[Sandbox, Result]) -> Sandbox:
    assert first[1].rc == 0, first[1].text[-6000:]
    return first[0]
