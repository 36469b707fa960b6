# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the simulated NVML library once per content of its sources, binding and compiler.

As a program: `python tests/nvml_sim/build.py DIR` leaves DIR/libnvidia-ml.so.1 (for test hosts).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SONAME = "libnvidia-ml.so.1"
FLAGS = ["-shared", "-fPIC", "-fvisibility=hidden", "-O1", "-Wall", "-Wextra", "-Werror", f"-Wl,-soname,{SONAME}"]


class BuildError(RuntimeError):
    """The library cannot be built; the message says what is missing or shows the compiler's words."""


def binding_file() -> Path:
    """pynvml.py of the running Python."""
    spec = importlib.util.find_spec("pynvml")
    if spec is None or not spec.origin:
        raise BuildError(f"nvidia-ml-py is not installed for {sys.executable}; it names the symbols to build")
    return Path(spec.origin)


def build(cache: Path) -> Path:
    """Path of the built library below `cache`; compiles only what was not built before (about a second)."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: install gcc to build the simulated NVML library")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = [HERE / "nvml_sim.c", HERE / "make_stubs.py", binding_file()]
    content = b"".join(path.read_bytes() for path in sources) + f"{version}{FLAGS}".encode()
    target = cache / hashlib.sha256(content).hexdigest()[:16] / SONAME
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        generator = [sys.executable, str(HERE / "make_stubs.py"), str(binding_file())]
        stubs = Path(scratch, "stubs.c")
        stubs.write_text(subprocess.run(generator, capture_output=True, text=True, check=True).stdout, encoding="utf-8")
        built = Path(scratch, SONAME)
        command = [compiler, *FLAGS, "-o", str(built), str(HERE / "nvml_sim.c"), str(stubs), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr}")
        os.replace(built, target)  # noqa: PTH105 (atomic: two test runs may build at once)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: build.py DIR")
    destination = Path(sys.argv[1])
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy2(build(Path(directory)), destination / SONAME)
