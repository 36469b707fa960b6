# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody else's Docker is used as it is: same packages, same process in its container, every key of theirs."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.containers.tests.seen import (
    RECORD,
    SETTINGS,
    info,
    is_reached,
    read,
)
from testinfra.host import Host

testinfra_hosts = ["podman://gpurig-containers-adopted"]


def test_the_owner_s_keys_are_all_there(host: Host) -> None:
    """Beside ours; and how the file may be read is still as the owner chose."""
    settings = read(host, SETTINGS)
    assert settings["dns"] == ["192.0.2.53"]
    assert settings["log-opts"] == {"labels": "owner", "max-size": "50m", "max-file": "3"}
    assert settings["features"] == {"containerd-snapshotter": False, "cdi": True}
    assert oct(host.file(SETTINGS).mode) == "0o600"


def test_where_their_containers_publish_was_not_touched(host: Host) -> None:
    """It was the whole network before and is so now."""
    assert not {"ip", "default-network-opts", "default-address-pools"} & set(read(host, SETTINGS))
    assert is_reached(host, 8081)
    assert (read(host, RECORD)["owner"], read(host, RECORD)["network"]) == ("others", "theirs")


def test_their_container_was_never_stopped(host: Host) -> None:
    """Docker was restarted, which without live restore stops every container."""
    started = host.check_output("docker inspect --format '{{.State.StartedAt}} {{.RestartCount}}' theirs")
    daemon = host.check_output("systemctl show docker --property=ExecMainStartTimestamp --value")
    since = host.check_output("date --date=%s +%%s", daemon)
    begun = host.check_output("date --date=%s +%%s", started.split()[0])
    assert int(begun) < int(since)
    assert started.split()[1] == "0"
    assert info(host)["LiveRestoreEnabled"] is True
    assert info(host)["CDISpecDirs"]


def test_nothing_was_installed_or_held(host: Host) -> None:
    """No repository, no preferences, no hold."""
    assert host.check_output("apt-mark showhold") == ""
    assert not host.file("/etc/apt/preferences.d/gpurig-container-engine").exists
    assert host.check_output("ls /etc/apt/sources.list.d /etc/apt/keyrings 2>/dev/null | grep -c gpurig || true") == "0"
