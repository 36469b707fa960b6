# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping a driver's packages and going back to them, with the real apt; it only simulates the installation here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.driver_debs import (
    AptError,
    installed,
    keep,
    look,
    recorded,
    restore,
)
from ansible_collections.gpurig.llm.tests.apt_sim import build

OLD = {"libcuda1": "580.95.05-1", "libnvidia-ml1": "580.95.05-1"}
NEW = {"libcuda1": "580.105.08-1", "libnvidia-ml1": "580.105.08-1", "nvidia-kernel-support": "580.105.08-1"}


def status(packages: dict[str, str]) -> str:
    """dpkg's file for these packages."""
    fields = "Status: install ok installed\nArchitecture: amd64\nMaintainer: nobody\nDescription: x\n"
    return "".join(f"Package: {name}\nVersion: {version}\n{fields}\n" for name, version in packages.items())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of apt's own, to which APT_CONFIG leads, with the driver 580.95.05 installed and 580.105.08 offered."""
    if shutil.which("apt-get") is None:
        pytest.skip("there is no apt")
    root, archives = tmp_path / "root", tmp_path / "archives"
    build.build(archives, str(archives / "next"))
    for folder in (
        "etc/apt/preferences.d",
        "var/lib/dpkg",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ):
        (root / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(status(OLD), encoding="utf-8")
    source = f"deb [trusted=yes] file:{archives}/next/compute/cuda/repos/debian12/x86_64 ./\n"
    (root / "etc/apt/sources.list").write_text(source, encoding="utf-8")
    (root / "apt.conf").write_text(
        f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\nAPT::Architecture "amd64";\n'
        'APT::Sandbox::User "root";\nAPT::Get::Simulate "true";\nDir::Etc::parts "none";\nDir::Etc::main "none";\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("APT_CONFIG", str(root / "apt.conf"))
    subprocess.run(["apt-get", "-qq", "update", "-o", "APT::Get::Simulate=false"], check=True, capture_output=True)
    return root


def test_keep_and_go_back(root: Path, tmp_path: Path) -> None:
    """Files come from apt's cache or its sources, once; apt accepts them as a way back."""
    folder, cache = tmp_path / "kept", root / "var/cache/apt/archives"
    assert look(folder, OLD).missing == tuple(OLD)
    with pytest.raises(AptError, match="a record of what was installed"):
        restore(folder, NEW)
    now = installed(str(root / "var/lib/dpkg/status"))
    assert now == OLD
    subprocess.run(
        ["apt-get", "download", "libcuda1=580.95.05-1", "-o", "APT::Get::Simulate=false"],
        cwd=cache,
        check=True,
        capture_output=True,
        env=dict(os.environ),
    )
    text = (root / "apt.conf").read_text(encoding="utf-8")
    (root / "apt.conf").write_text(text.replace('Simulate "true"', 'Simulate "false"'), encoding="utf-8")
    kept = keep(folder, now, cache)
    assert (kept.missing, kept.stale) == ((), ())
    assert recorded(folder) == OLD
    assert keep(folder, now, cache) == kept

    (root / "apt.conf").write_text(text, encoding="utf-8")
    (root / "var/lib/dpkg/status").write_text(status(NEW), encoding="utf-8")
    given = restore(folder, NEW)
    assert [Path(one).name for one in given] == [
        "libcuda1_580.95.05-1_amd64.deb",
        "libnvidia-ml1_580.95.05-1_amd64.deb",
        "nvidia-kernel-support-",
    ]
    (folder / "libcuda1_580.95.05-1_amd64.deb").write_bytes(b"damaged")
    with pytest.raises(AptError):
        restore(folder, NEW)


def test_what_nobody_has_is_missing_and_what_is_old_goes(root: Path, tmp_path: Path) -> None:
    """An archive that dropped the version leaves no way back, and says so; files of older drivers do not pile up."""
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "libcuda1_570.1.1-1_amd64.deb").touch()
    kept = keep(folder, {"libcuda1": "550.1.1-1"}, root / "var/cache/apt/archives")
    assert (kept.missing, kept.stale) == (("libcuda1",), ())
    assert not list(folder.glob("*.deb"))
    with pytest.raises(AptError, match="lacks libcuda1"):
        restore(folder, NEW)


def test_files_of_another_architecture_do_not_count(tmp_path: Path) -> None:
    """Steam's i386 library is no way back."""
    (tmp_path / "libcuda1_580.95.05-1_i386.deb").touch()
    assert look(tmp_path, OLD).missing == tuple(OLD)
    file = tmp_path / "status"
    file.write_text(status(OLD) + status({"libcuda1": "570.1.1-1"}).replace("amd64", "i386"), encoding="utf-8")
    assert installed(str(file)) == OLD


def test_a_version_with_an_epoch(tmp_path: Path) -> None:
    """apt writes its colon as %3a in names of files."""
    (tmp_path / "libcuda1_1%3a580.95.05-1_amd64.deb").touch()
    assert look(tmp_path, {"libcuda1": "1:580.95.05-1"}).present == ("libcuda1",)
