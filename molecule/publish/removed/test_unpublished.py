# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left on a host that publishes nothing any more, see remove.yml."""

from __future__ import annotations

from testinfra.host import Host


def test_nothing_of_ours_is_left(host: Host) -> None:
    """Neither rule nor table, unit nor file; the owner's rule is."""
    assert not host.file("/etc/systemd/system/gpurig-firewall.service").exists
    assert not host.file("/etc/systemd/system/nftables.service.d").exists
    assert not host.file("/etc/gpurig/firewall.nft").exists
    assert not host.file("/etc/systemd/system/gpurig-open-webui.service.requires").exists
    if host.exists("ufw"):
        assert "gpurig" not in host.check_output("ufw show added")
        assert "theirs" in host.check_output("ufw status")
    assert "gpurig" not in host.check_output("nft list tables")


def test_the_page_went_on_on_loopback(host: Host) -> None:
    """It was not stopped with the unit that it had required."""
    assert host.service("gpurig-open-webui").is_running
    assert "127.0.0.1:8080" in host.check_output("ss -Htln")
