# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the GPU modules say on a machine with real cards; nothing is set there.

    .venv/bin/python tests/hardware/capture.py [FILE]

Runs gpu_info, firmware_info, nvidia_driver_plan as it judges a given driver for vLLM, and gpu_power in check mode,
which wants each card at its own lowest limit, and prints the results as JSON (or writes FILE, to be kept as a fixture).
UUIDs, serial numbers, the host's name and process ids are replaced. Exit code 1 when a module fails or a setter would
have been called outside check mode.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHAT = {"name": "chat", "engine": "vllm", "device": "cuda"}
PROGRAM = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
name, arguments = sys.argv[1], json.loads(sys.argv[2])
module = importlib.import_module(f"ansible_collections.gpurig.llm.plugins.modules.{name}")
with patch_module_args({**arguments, "_ansible_check_mode": True, "_ansible_diff": True}):
    module.main()
"""


def run(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The result of one module in check mode."""
    command = [sys.executable, "-c", PROGRAM, name, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{name} printed no result:\n{done.stdout}{done.stderr}")
    return dict(json.loads(lines[-1]))


def scrub(value: Any, known: dict[str, str]) -> Any:
    """The value without what tells one machine from another; the same thing gets the same stand-in everywhere."""
    if isinstance(value, dict):
        return {
            scrub(key, known): 0 if key == "pid" else "SERIAL" if key == "serial" and item else scrub(item, known)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [scrub(item, known) for item in value]
    if not isinstance(value, str):
        return value

    def stand_in(found: re.Match[str]) -> str:
        return known.setdefault(found[0].lower(), f"GPU-{len(known):08d}-0000-0000-0000-000000000000")

    text = re.sub(r"GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", stand_in, value)
    return text.replace(socket.gethostname(), "HOST")


def main(words: list[str]) -> int:
    known: dict[str, str] = {}
    info = run("gpu_info", {})
    with tempfile.TemporaryDirectory(prefix="gpurig-hardware-") as config:
        limits = [
            {"card": gpu["uuid"], "limit_w": gpu["power"]["min_w"]}
            for gpu in info.get("gpus", [])
            if (gpu.get("power") or {}).get("min_w")
        ]
        power = run("gpu_power", {"limits": limits, "config": config, "can_set_power": True}) if limits else {}
        written = [path.name for path in Path(config).iterdir()]
    results = {
        "gpu_info": info,
        "firmware_info": run("firmware_info", {}),
        "gpu_power": power,
        "nvidia_driver_plan": run("nvidia_driver_plan", {"instances": [CHAT]}),
    }
    text = json.dumps(scrub(results, known), indent=1, sort_keys=True) + "\n"
    if words:
        Path(words[0]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    failed = [name for name, result in results.items() if result.get("failed")]
    for problem in [*(f"{name} failed: {results[name].get('msg')}" for name in failed), *written]:
        print(problem, file=sys.stderr)
    return 1 if failed or written else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
