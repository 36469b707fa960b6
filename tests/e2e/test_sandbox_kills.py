# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run itself is killed, ten times on its way; the next one ends where an undisturbed one ends.

GPURIG_E2E_FULL=1 gives each kill a rig of its own; GPURIG_E2E_SEED=N draws other moments.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ansible_collections.gpurig.llm.tests.e2e.sandbox import FULL, Sandbox, free_port


def _started(path: Path) -> Callable[[], bool]:
    return path.exists


def _after(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def test_ten_kills_of_the_run(tmp_path: Path) -> None:
    """The run is killed at ten moments on its way; the one that is left alone ends where an undisturbed run ends."""
    undisturbed = Sandbox(tmp_path / "undisturbed", free_port(), tmp_path)
    box = Sandbox(tmp_path / "killed", free_port(), tmp_path)
    seed = int(os.environ.get("GPURIG_E2E_SEED", "20261121"))
    chance = random.Random(seed)  # noqa: S311  moments, not secrets
    env, models = box.root / "envs" / "llama_cpp", box.root / "models"
    moments: list[Callable[[], Callable[[], bool]]] = [
        *(lambda: _after(chance.uniform(1, 8)) for _ in range(3)),
        lambda: _started(models / ".staging" / "smollm2"),  # the model's copy
        lambda: _started(models / "smollm2"),
        lambda: lambda: any(env.glob("????????????????/pyvenv.cfg")),  # the environment's build
        lambda: lambda: any(env.glob("*/.complete.json")),  # just before or after the link's switch
        lambda: _started(box.root / "run" / "supervisor.sock"),  # the service's start
        *(lambda: _after(chance.uniform(4, 14)) for _ in range(2)),
    ]
    assert len(moments) == 10
    try:
        result = undisturbed.run()
        assert result.rc == 0, result.text[-6000:]
        wanted = undisturbed.snapshot()
        killed = 0
        for moment in moments:
            killed += box.killed_run(moment())
            if FULL:
                result = box.run()
                assert result.rc == 0, result.text[-6000:]
                assert box.snapshot() == wanted
                box.end()
                shutil.rmtree(box.root)
        assert killed >= 8, f"only {killed} of 10 runs were killed before they ended (seed {seed})"
        result = box.run()
        assert result.rc == 0, result.text[-6000:]
        assert box.snapshot() == wanted
        assert box.answers()
        again = box.run()
        assert (again.rc, again.changed) == (0, 0), again.changed_tasks
    finally:
        undisturbed.end()
        box.end()
