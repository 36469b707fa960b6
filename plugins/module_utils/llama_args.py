# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of llama.cpp's server for one instance. (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the instance's own keys decide; a flag of the same name would contradict them.
OWNED_FLAGS = {
    "model": "model",
    "alias": "name",
    "host": "rig_publish",
    "port": "port",
    "ctx-size": "context",
    "parallel": "parallel",
    "api-key": "(generated)",
    "api-key-file": "(generated)",
}


def llama_argv(instance: Mapping[str, Any], model_path: str) -> list[str]:
    """Return the arguments that follow the program's name, the same for the release binary and our launcher.

    `context` is tokens per request; llama.cpp's --ctx-size counts the tokens of all slots together (measured: with
    --ctx-size 2048 --parallel 2 the server reports 1024 per slot). Without `context` the model's own length is taken.
    A flag with value true is given bare, false is given as --no-FLAG, a list repeats the flag.

    Raises ValueError for a flag that one of the instance's keys decides.
    """
    parallel = int(instance.get("parallel") or 1)
    argv = ["--model", model_path, "--alias", str(instance["name"])]
    argv += ["--host", "127.0.0.1", "--port", str(instance["port"])]
    argv += ["--ctx-size", str(int(instance.get("context") or 0) * parallel), "--parallel", str(parallel)]
    argv += ["--metrics", "--jinja"]
    for key, value in (instance.get("flags") or {}).items():
        flag = str(key).replace("_", "-").lstrip("-")
        if flag in OWNED_FLAGS:
            raise ValueError(
                f"instance {instance['name']}: the flag {flag} is decided by {OWNED_FLAGS[flag]}, not by flags"
            )
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for single in value if isinstance(value, list) else [value]:
                argv += [f"--{flag}", str(single)]
    return argv
