# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host has after the driver was installed: one run, reboot included."""

from __future__ import annotations

import json

from testinfra.host import Host

VERSION = "580.95.05"
PACKAGES = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "libcuda1", "libnvidia-ml1", "nvidia-persistenced")


def test_the_module_is_loaded_after_the_reboot(host: Host) -> None:
    """The open one, for the running kernel, and no longer nouveau."""
    text = host.file("/srv/rig/proc/driver/nvidia/version").content_string
    assert "Open Kernel Module" in text
    assert VERSION in text
    assert host.check_output("readlink /srv/rig/sys/bus/pci/devices/*/driver").endswith("drivers/nvidia")


def test_every_package_has_one_version(host: Host) -> None:
    """Of the branch that was chosen, although the archive has R590; the pinning package came with them."""
    assert {host.package(name).version for name in PACKAGES} == {f"{VERSION}-1"}
    assert host.package("nvidia-driver-pinning-580").is_installed
    assert host.package("linux-headers-amd64").is_installed
    assert not host.package("linux-image-6.1.0-99-amd64").is_installed


def test_the_pin_keeps_the_driver_and_nothing_else(host: Host) -> None:
    """apt itself says so; nothing is on hold."""
    pin = host.file("/etc/apt/preferences.d/gpurig-nvidia-driver.pref").content_string
    assert f"Pin: version {VERSION}*" in pin
    assert f"Candidate: {VERSION}-1" in host.check_output("apt-cache policy nvidia-driver-cuda")
    assert host.check_output("apt-mark showhold") == ""


def test_nouveau_is_out(host: Host) -> None:
    """Of the next initramfs, too."""
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/gpurig-nvidia-driver.conf").content_string
    assert set(host.file("/var/log/update-initramfs").content_string.splitlines()) == {"-u -k all"}


def test_persistenced_runs(host: Host) -> None:
    """Now and after a boot."""
    service = host.service("nvidia-persistenced")
    assert service.is_enabled
    assert service.is_running


def test_the_way_back_is_kept(host: Host) -> None:
    """The installed packages' files lie there for the next change."""
    folder = "/var/lib/gpurig/nvidia_driver"
    recorded = json.loads(host.file(f"{folder}/packages.json").content_string)
    assert recorded["libcuda1"] == f"{VERSION}-1"
    files = host.file(folder).listdir()
    assert {f"{name}_{version}_amd64.deb" for name, version in recorded.items()} == set(files) - {"packages.json"}
