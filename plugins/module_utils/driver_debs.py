# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back of a driver: the .deb files of what is installed, kept in a folder, and their installation. (outside)

Archives drop a version when the next one comes, so the files are fetched before anything is changed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .driver_facts import deb_architectures, parse_dpkg_status
from .small_files import write_text

RECORD = "packages.json"
_FETCH_TIMEOUT_S, _INSTALL_TIMEOUT_S = 1800, 3600


@dataclass(frozen=True)
class Kept:
    """`missing`: installed packages whose .deb nobody has any more. `stale`: files of what is no longer installed."""

    wanted: Mapping[str, str]
    present: tuple[str, ...]
    missing: tuple[str, ...]
    stale: tuple[str, ...]


class AptError(Exception):
    """apt or dpkg failed; the text holds the end of what it said."""


def installed(status_file: str = "/var/lib/dpkg/status") -> dict[str, str]:
    """Installed packages of the driver with their versions."""
    text = Path(status_file).read_text(encoding="utf-8", errors="replace")
    return parse_dpkg_status(text, deb_architectures(platform.machine()))[0]


def look(folder: Path, packages: Mapping[str, str]) -> Kept:
    """What the folder has of the packages' files."""
    files = {file.name for file in folder.glob("*.deb")} if folder.is_dir() else set()
    found = {name: _file(files, name, version) for name, version in packages.items()}
    return Kept(
        dict(packages),
        tuple(name for name, file in found.items() if file),
        tuple(name for name, file in found.items() if not file),
        tuple(sorted(files - set(found.values()))),
    )


def recorded(folder: Path) -> dict[str, str]:
    """The packages that the folder was last made for; {} where it never was."""
    try:
        text = (folder / RECORD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return dict(json.loads(text))


def keep(folder: Path, packages: Mapping[str, str], cache: Path = Path("/var/cache/apt/archives")) -> Kept:
    """Bring the files of the packages into the folder, from apt's cache or its sources, and drop all others."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in look(folder, packages).missing:
        cached = _file((file.name for file in cache.glob(f"{name}_*.deb")), name, packages[name])
        if cached:
            shutil.copy2(cache / cached, folder / cached)
        else:
            _run(["apt-get", "download", f"{name}={packages[name]}"], _FETCH_TIMEOUT_S, folder)
    for stale in look(folder, packages).stale:
        (folder / stale).unlink()
    write_text(str(folder / RECORD), json.dumps(dict(sorted(packages.items())), indent=2) + "\n", 0o644)
    return look(folder, packages)


def restore(folder: Path, now: Mapping[str, str]) -> list[str]:
    """Install what the folder was made for and remove what came since; returns what apt was given. AptError."""
    before = recorded(folder)
    kept = look(folder, before)
    if not before or kept.missing:
        raise AptError(f"{folder} lacks {', '.join(kept.missing) or 'a record of what was installed'}")
    names = {file.name for file in folder.glob("*.deb")}
    files = [str(folder / _file(names, name, version)) for name, version in sorted(before.items())]
    gone = [f"{name}-" for name in sorted(set(now) - set(before))]
    command = ["apt-get", "install", "--yes", "--allow-downgrades", "--no-install-recommends", *files, *gone]
    code, said = _run(command, _INSTALL_TIMEOUT_S, folder)
    if code:
        raise AptError(said[-2000:])
    return [*files, *gone]


def _file(names: Iterable[str], name: str, version: str) -> str:
    """The file name of this machine's package among `names`; apt writes a colon in a version as %3a."""
    architectures = deb_architectures(platform.machine())
    wanted = {f"{name}_{one}_{last}.deb" for one in (version, version.replace(":", "%3a")) for last in architectures}
    return next((one for one in names if one in wanted), "")


def _run(command: Sequence[str], timeout_s: int, folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
    return done.returncode, done.stdout + done.stderr
