# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine put into a directory: the simulated NVML library beside its description, trees for /sys and /proc, and
stand-ins for lspci and dmidecode.

As a program: `python -m ansible_collections.gpurig.llm.tests.rigs.live NAME DIR` (test hosts).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nvml_sim.build import SONAME, build
from .machines import Machine, machine
from .witnesses import Link, Tree, dmidecode, lspci, nvml_ini, proc, sysfs

VOLATILE = ("state.ini", "state.lock", "clients.lock")


@dataclass
class LiveRig:
    """A machine on disk. `arguments` are the module parameters that point at it."""

    machine: Machine
    directory: Path

    @property
    def nvml_path(self) -> str:
        """Directory of the simulated library."""
        return str(self.directory / "nvml")

    @property
    def sysfs_root(self) -> str:
        """Stands for /sys."""
        return str(self.directory / "sys")

    @property
    def proc_root(self) -> str:
        """Stands for /proc."""
        return str(self.directory / "proc")

    @property
    def bin(self) -> str:
        """Directory with lspci and dmidecode for PATH."""
        return str(self.directory / "bin")

    @property
    def arguments(self) -> dict[str, str]:
        """For the modules."""
        return {"nvml_path": self.nvml_path, "sysfs_root": self.sysfs_root, "proc_root": self.proc_root}

    def journal(self) -> list[dict[str, Any]]:
        """Every setter call so far: pid, euid, call, card (UUID), args, code."""
        file = Path(self.nvml_path, "journal.jsonl")
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def state(self) -> dict[str, dict[str, str]]:
        """What setters left, by UUID. A setting without persistence is dropped only when the next client comes."""
        parser = ConfigParser(strict=False, interpolation=None)
        parser.read(Path(self.nvml_path, "state.ini"), encoding="utf-8")
        return {section: dict(parser[section]) for section in parser.sections()}

    def reboot(self) -> None:
        """Forget everything that setters did, as a restart or a reload of the driver does."""
        for name in VOLATILE:
            Path(self.nvml_path, name).unlink(missing_ok=True)

    def describe(self, section: str, key: str, value: str | None) -> None:
        """Change the description: section 'machine' or a card's PCI address or UUID; None takes the key away."""
        file = Path(self.nvml_path, "rig.ini")
        lines = file.read_text(encoding="utf-8").splitlines()
        header = "[machine]" if section == "machine" else self._header(lines, section)
        start = lines.index(header) + 1
        end = next((n for n in range(start, len(lines)) if lines[n].startswith("[")), len(lines))
        kept = [line for line in lines[start:end] if line and line.partition("=")[0].strip() != key]
        if value is not None:
            kept.append(f"{key} = {value}")
        text = "\n".join([*lines[:start], *kept, "", *lines[end:]])
        temporary = file.with_suffix(".tmp")
        temporary.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        temporary.replace(file)

    @staticmethod
    def _header(lines: list[str], card: str) -> str:
        header = ""
        for line in lines:
            if line.startswith("["):
                header = line
            elif line in (f"pci = {card}", f"uuid = {card}"):
                return header
        raise KeyError(f"NVML of this rig knows no card {card}")

    def fault(self, section: str, function: str, code: int | None, when: str = "") -> None:
        """Let a function of NVML fail: `when` is '', 'after N' or 'for N' calls; '*' is every call on that card,
        'handle' every way to find it. Code None repairs it."""
        self.describe(section, f"fault.{function}", None if code is None else f"{code} {when}".strip())


def install(description: Machine, directory: Path, library: Path, copy: bool = False) -> LiveRig:
    """Write a machine into `directory`. `library` is linked (copied with `copy`, for another host)."""
    rig = LiveRig(description, directory)
    nvml = Path(rig.nvml_path)
    nvml.mkdir(parents=True, exist_ok=True)
    target = nvml / SONAME
    target.unlink(missing_ok=True)
    if copy:
        shutil.copy2(library, target)
    else:
        target.symlink_to(library)
    (nvml / "rig.ini").write_text(nvml_ini(description), encoding="utf-8")
    _write(Path(rig.sysfs_root), sysfs(description))
    _write(Path(rig.proc_root), proc(description))
    Path(rig.bin).mkdir(exist_ok=True)
    for name, text in (("lspci", lspci(description)), ("dmidecode", dmidecode(description))):
        output = directory / f"{name}.txt"
        output.write_text(text, encoding="utf-8")
        program = Path(rig.bin, name)
        program.write_text(f"#!/bin/sh\nexec cat {shlex.quote(str(output))}\n", encoding="utf-8")
        program.chmod(0o755)
    return rig


def _write(root: Path, tree: Tree) -> None:
    for name, content in tree.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            target = root / content.target
            target.mkdir(parents=True, exist_ok=True)
            if not path.is_symlink():
                path.symlink_to(os.path.relpath(target, path.parent))
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: live NAME DIR")
    where = Path(sys.argv[2])
    install(machine(sys.argv[1]), where, build(where / "build"), copy=True)
