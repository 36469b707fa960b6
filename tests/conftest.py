# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures shared by all unit tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COLLECTION = Path(__file__).resolve().parents[1]


@pytest.fixture
def run_module() -> Callable[..., dict[str, Any]]:
    """Run one of the collection's modules as its own process, as Ansible would, and return its JSON result.

    `run_module(name, args, check=False, diff=True, environment=None)`; a result with `failed` is returned, not raised.
    """

    def run(
        name: str,
        args: dict[str, Any],
        check: bool = False,
        diff: bool = True,
        environment: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        payload = {
            "ANSIBLE_MODULE_ARGS": {
                **args,
                "_ansible_check_mode": check,
                "_ansible_diff": diff,
                "_ansible_remote_tmp": "/tmp",
            }
        }
        program = (
            "import json, sys\n"
            "from ansible.module_utils import basic\n"
            "from ansible.module_utils.testing import patch_module_args\n"
            "import importlib\n"
            "payload = json.loads(sys.stdin.read())\n"
            f"module = importlib.import_module('ansible_collections.gpurig.llm.plugins.modules.{name}')\n"
            "with patch_module_args(payload['ANSIBLE_MODULE_ARGS']):\n"
            "    module.main()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(payload),
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, **(environment or {})},
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise AssertionError(f"{name} printed no JSON: rc {done.returncode}\n{done.stdout}\n{done.stderr}")
        result: dict[str, Any] = json.loads(lines[-1])
        result["rc_process"] = done.returncode
        return result

    return run
