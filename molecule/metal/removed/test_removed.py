# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left when the inventory no longer names the instance, see remove.yml."""

from __future__ import annotations

from testinfra.host import Host

UNIT = "gpurig-chat.service"


def test_the_service_is_gone(host: Host) -> None:
    """From systemd, from the disk, from our records, from the port and from the process list."""
    said = host.check_output("systemctl show %s --property=LoadState,ActiveState", UNIT)
    assert sorted(said.splitlines()) == ["ActiveState=inactive", "LoadState=not-found"]
    assert host.run("find /etc/systemd /run/systemd -name '*gpurig-chat*'").stdout == ""
    assert not host.file("/etc/gpurig/services/chat.json").exists
    assert host.check_output("ss -Htln sport = :8000") == ""
    assert "llama_server" not in host.check_output("ps -eww -o args")
    assert "No services here yet" in host.check_output("/opt/gpurig/bin/gpurig status")


def test_nothing_has_failed(host: Host) -> None:
    """systemd keeps no memory of the service either."""
    assert host.check_output("systemctl is-system-running") == "running"


def test_the_model_stays(host: Host) -> None:
    """It is data, and data goes only on request."""
    model = host.file("/var/lib/gpurig/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert model.size > 90_000_000
