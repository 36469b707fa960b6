# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plugin of the processor's build, beside a torch that says what it is told to.

With the real engine it is the restarts of molecule/vllm that show it, on a machine whose processor has AMX.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import CPU_PLUGIN

FOLDER = Path(__file__).parents[2] / "roles/vllm/files/cpu_metadata"


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what vLLM would call: the entry point's function, found as vLLM finds it."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    [point] = [point for one in distributions(path=[str(FOLDER)]) for point in one.entry_points]
    assert (point.group, point.name) == ("vllm.general_plugins", CPU_PLUGIN)
    function: Callable[[], None] = point.load()
    return function


@pytest.mark.parametrize(
    ("has", "granted", "asked", "left", "words"),
    [
        (True, True, 1, True, ""),
        (True, False, 1, False, "Linux refuses the processor's AMX"),
        (False, False, 0, False, ""),
    ],
)
def test_amx_is_asked_for_or_not_used(
    register: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    has: bool,
    granted: bool,
    asked: int,
    left: bool,
    words: str,
) -> None:
    calls = []
    torch, cpu = ModuleType("torch"), ModuleType("torch.cpu")
    functions = {"_is_amx_tile_supported": lambda: has, "_init_amx": lambda: calls.append(1) or granted}
    vars(cpu).update(functions)
    vars(torch)["cpu"] = cpu
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.cpu", cpu)
    with caplog.at_level(logging.WARNING, "vllm"):
        register()
    assert (len(calls), vars(cpu)["_is_amx_tile_supported"]()) == (asked, left)
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)
