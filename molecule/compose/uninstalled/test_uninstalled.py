# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rig that is uninstalled while its page runs in a container that keeps nothing."""

from __future__ import annotations

from testinfra.host import Host


def test_nothing_of_the_container_stays(host: Host) -> None:
    """No container, no image, nothing in memory; what was kept before is there."""
    assert host.check_output("docker ps --all --quiet") == ""
    assert host.check_output("docker images --quiet") == ""
    assert host.check_output("ls /dev/shm | grep gpurig || true") == ""
    assert not host.file("/etc/gpurig").exists
    assert host.file("/var/lib/gpurig/open_webui/webui.db").exists
