# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of the unit when the inventory no longer names the instance, see shared/remove.yml."""

from __future__ import annotations

from testinfra.host import Host


def test_systemd_has_forgotten_it(host: Host) -> None:
    """It is gone from the disk, and no failure of it is remembered."""
    said = host.check_output("systemctl show gpurig-chat.service --property=LoadState,ActiveState")
    assert sorted(said.splitlines()) == ["ActiveState=inactive", "LoadState=not-found"]
    assert host.run("find /etc/systemd /run/systemd -name '*gpurig-chat*'").stdout == ""
    assert host.check_output("systemctl is-system-running") == "running"
