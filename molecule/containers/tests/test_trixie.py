# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real engine, installed by the role: Compose, ports, logs, addresses, and a device by CDI that stays."""

from __future__ import annotations

import json

import pytest
from ansible_collections.gpurig.llm.molecule.containers.tests.seen import (
    RECORD,
    SETTINGS,
    info,
    is_reached,
    is_served,
    read,
)
from testinfra.host import Host

testinfra_hosts = ["podman://gpurig-containers-trixie"]
COMPOSE = """
services:
  web:
    image: tiny:1
    ports: ["8083:8080"]
    healthcheck: {test: [CMD, busybox, "true"], interval: 1s}
  card:
    image: tiny:1
    deploy:
      resources:
        reservations:
          devices: [{driver: cdi, capabilities: [gpu], device_ids: ["gpurig.example/device=one"]}]
  world:
    image: tiny:1
    ports: ["0.0.0.0:8084:8080"]
"""
CDI = {
    "cdiVersion": "0.6.0",
    "kind": "gpurig.example/device",
    "devices": [
        {
            "name": "one",
            "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpurig0", "hostPath": "/dev/fuse", "type": "c"}],
                "env": ["GPURIG_CARD=one"],
            },
        }
    ],
}
IMPORT = """docker import -c 'ENV PATH=/bin' -c 'CMD ["httpd","-f","-p","8080","-h","/www"]' /srv/image.tar tiny:1"""


@pytest.fixture(scope="module", autouse=True)
def services(host: Host) -> None:
    """An image from nothing, a CDI file, and containers of all sorts."""
    host.check_output(IMPORT)
    host.check_output("mkdir -p /etc/cdi /srv/compose")
    host.check_output("printf %%s %s > /etc/cdi/device.json", json.dumps(CDI))
    host.check_output("printf %%s %s > /srv/compose/compose.yaml", COMPOSE)
    host.check_output("docker compose --file /srv/compose/compose.yaml up --detach --wait")
    run = "docker run --detach --name card --device gpurig.example/device=one --publish 8082:8080 tiny:1"
    host.check_output(run)


def opens(host: Host, container: str, device: str = "/dev/gpurig0") -> bool:
    """Whether the control group of the container lets a process in it open the device."""
    return host.run("docker exec %s sh -c %s", container, f": <> {device}").rc == 0


def test_the_engine_is_the_distribution_s(host: Host) -> None:
    """With Compose 2, CDI, live restore and rotated logs, by its own account."""
    told = info(host)
    assert told["ServerVersion"].startswith("26.1")
    assert told["CDISpecDirs"] == ["/etc/cdi", "/var/run/cdi"]
    assert (told["LiveRestoreEnabled"], told["LoggingDriver"]) == (True, "json-file")
    assert host.check_output("docker compose version --short").startswith("2.")
    assert host.service("docker").is_enabled
    assert read(host, RECORD)["source"] == "distribution"


@pytest.mark.parametrize("port", [8082, 8083], ids=["docker run", "compose"])
def test_a_published_port_stays_on_loopback(host: Host, port: int) -> None:
    """The host reaches it, another network namespace does not; one that names 0.0.0.0 proves that it could."""
    assert is_served(host, port)
    assert not is_reached(host, port)
    assert is_reached(host, 8084)


def test_logs_of_each_container_rotate(host: Host) -> None:
    """As the container was given it, not as the file says it."""
    given = host.check_output("docker inspect --format '{{json .HostConfig.LogConfig}}' card")
    assert json.loads(given) == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "50m"}}


def test_networks_are_made_from_our_addresses(host: Host) -> None:
    """Docker's first bridge too, since the settings were there before it."""
    for network in ("bridge", "compose_default"):
        subnet = host.check_output("docker network inspect --format '{{(index .IPAM.Config 0).Subnet}}' %s", network)
        assert subnet.startswith("10.201."), (network, subnet)


@pytest.mark.parametrize("container", ["card", "compose-card-1"])
def test_a_device_by_cdi_outlives_a_daemon_reload(host: Host, container: str) -> None:
    """A container that was given it, by docker run or by Compose, may still open it afterwards."""
    # What docker exec starts has the environment of the image, so the first process is asked.
    assert "GPURIG_CARD=one" in host.check_output("docker exec %s busybox cat /proc/1/environ", container)
    assert opens(host, container)
    host.check_output("systemctl daemon-reload")
    assert opens(host, container)


def test_no_other_container_may_open_that_device(host: Host) -> None:
    """Not even through a node that it made itself: so the test above can fail."""
    assert host.run("docker exec compose-web-1 busybox mknod /other c 10 229").rc == 0
    assert not opens(host, "compose-web-1", "/other")


def test_containers_outlive_a_restart_of_docker(host: Host) -> None:
    """The same process, which still has its device."""
    before = host.check_output("docker inspect --format '{{.State.Pid}}' card")
    host.check_output("systemctl restart docker")
    assert host.check_output("docker inspect --format '{{.State.Pid}} {{.State.Running}}' card") == f"{before} true"
    assert opens(host, "card")


def test_nothing_of_the_settings_was_there_before(host: Host) -> None:
    """So all of it is recorded as ours."""
    assert read(host, RECORD)["daemon"] == read(host, SETTINGS)
