# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A page that nobody asks for: no container, no image, and all data."""

from __future__ import annotations

from testinfra.host import Host


def test_nothing_runs_and_the_data_stay(host: Host) -> None:
    """The directory and the volume."""
    assert host.check_output("docker ps --all --quiet") == ""
    assert host.check_output("docker images --quiet") == ""
    assert host.check_output("docker volume ls --quiet") == "theirs"
    assert host.file("/var/lib/gpurig/open_webui/webui.db").exists
    assert not host.file("/etc/gpurig/secrets/containers").exists
    assert not host.file("/etc/gpurig/open_webui_images").exists
    assert not host.file("/etc/systemd/system/gpurig-open-webui.service").exists
    assert host.run("nft list table inet gpurig").rc != 0
