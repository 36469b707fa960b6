# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of llama.cpp's server for one instance. (pure)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .engine_flags import owned


def llama_argv(instance: Mapping[str, Any], model_path: str) -> list[str]:
    """Return the arguments that follow the program's name, the same for the release binary and our launcher.

    `context` is tokens per request; llama.cpp's --ctx-size counts the tokens of all slots together (measured: with
    --ctx-size 2048 --parallel 2 the server reports 1024 per slot). Without `context` the model's own length is taken.
    A flag with value true is given bare, false is given as --no-FLAG, a list repeats the flag.

    Raises ValueError for a flag that the collection sets.
    """
    parallel = int(instance.get("parallel") or 1)
    argv = ["--model", model_path, "--alias", str(instance["name"])]
    argv += ["--host", "127.0.0.1", "--port", str(instance["port"])]
    argv += ["--ctx-size", str(int(instance.get("context") or 0) * parallel), "--parallel", str(parallel)]
    argv += ["--metrics", "--jinja"]
    if instance.get("task") == "embed":
        argv.append("--embeddings")
    for key, value in (instance.get("flags") or {}).items():
        flag = str(key).replace("_", "-").lstrip("-")
        if instead := owned(flag):
            raise ValueError(f"instance {instance['name']}: the flag {flag} is set by the collection; {instead}.")
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            for single in value if isinstance(value, list) else [value]:
                argv += [f"--{flag}", str(single)]
    return argv
