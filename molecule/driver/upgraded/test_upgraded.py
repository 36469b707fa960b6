# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has after an upgrade, one that was taken back, and two that were refused."""

from __future__ import annotations

import json

from testinfra.host import Host

VERSION = "580.105.08"
PACKAGES = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1", "nvidia-persistenced")


def test_the_driver_of_before_is_there_and_loaded(host: Host) -> None:
    """All of it, by dpkg and by the kernel."""
    assert {host.package(name).version for name in PACKAGES} == {f"{VERSION}-1"}
    assert VERSION in host.file("/srv/rig/proc/driver/nvidia/version").content_string


def test_the_pin_holds_it(host: Host) -> None:
    """Not the one that failed."""
    assert f"Pin: version {VERSION}*" in host.file("/etc/apt/preferences.d/gpurig-nvidia-driver.pref").content_string


def test_its_files_are_kept(host: Host) -> None:
    """Those of the driver that is there, and no older ones."""
    folder = "/var/lib/gpurig/nvidia_driver"
    recorded = json.loads(host.file(f"{folder}/packages.json").content_string)
    assert {version for name, version in recorded.items() if name in PACKAGES} == {f"{VERSION}-1"}
    assert not [name for name in host.file(folder).listdir() if "580.95" in name]
