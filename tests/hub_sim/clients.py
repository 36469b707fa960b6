# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real programs that tests of models need, found or made once: uv, and the hub's client from the role's lock."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

COLLECTION = Path(__file__).resolve().parents[2]
HF_LOCK = COLLECTION / "roles" / "models" / "files" / "hf.lock"
UV_LOCK = COLLECTION / "requirements" / "uv.lock"
CACHE = COLLECTION / ".cache" / "unit"


@cache
def uv() -> Path:
    """uv on PATH, or the launcher's, or one from the package index by hash."""
    found = shutil.which("uv") or shutil.which(COLLECTION / ".cache" / "bootstrap" / "bin" / "uv")
    if found:
        return Path(found)
    venv = CACHE / f"uv-{_digest(UV_LOCK)}"
    with _made_once(venv) as missing:
        if missing:
            subprocess.run([sys.executable, "-m", "venv", venv], check=True, stdout=subprocess.DEVNULL)
            pip: list[str | Path] = [
                venv / "bin" / "python",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--require-hashes",
                "-r",
                UV_LOCK,
            ]
            subprocess.run(pip, check=True)
    return venv / "bin" / "uv"


@cache
def hf() -> Path:
    """The client `hf` in an environment made from roles/models/files/hf.lock."""
    venv = CACHE / f"hf-{_digest(HF_LOCK)}-{sys.version_info[0]}.{sys.version_info[1]}"
    with _made_once(venv) as missing:
        if missing:
            run: list[str | Path] = [uv(), "--quiet"]
            subprocess.run([*run, "venv", "--no-project", "--python", sys.executable, venv], check=True)
            install: list[str | Path] = [
                "pip",
                "install",
                "--no-deps",
                "--require-hashes",
                "--compile-bytecode",
                "-r",
                HF_LOCK,
            ]
            subprocess.run([*run, *install, "--python", venv / "bin" / "python"], check=True)
    return venv / "bin" / "hf"


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()[:16]


class _made_once:  # noqa: N801 (used like a function)
    """Holds a lock around the making of a directory; yields whether it is (still) missing or was left half-made."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.mark = target / ".made"

    def __enter__(self) -> bool:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.target.parent / f"{self.target.name}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.missing = not self.mark.exists()
        if self.missing:
            shutil.rmtree(self.target, ignore_errors=True)
        return self.missing

    def __exit__(self, kind: object, *_rest: object) -> None:
        if self.missing and kind is None:
            self.mark.touch()
        os.close(self.lock)
