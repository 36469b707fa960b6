# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of this scenario share: what Docker says, and who reaches a port from where."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import Any

from testinfra.host import Host

RECORD = "/etc/gpurig/container_engine.json"
SETTINGS = "/etc/docker/daemon.json"


def read(host: Host, path: str) -> Any:
    """A JSON file."""
    return json.loads(host.file(path).content_string)


def info(host: Host) -> dict[str, Any]:
    """docker info."""
    return dict(json.loads(host.check_output("docker info --format '{{json .}}'")))


def address(host: Host) -> str:
    """Where the machine that runs the tests, in another network namespace, reaches the host."""
    command = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", host.backend.get_hostname()]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def is_reached(place: str, port: int) -> bool:
    """Whether somebody accepts a connection there."""
    try:
        with socket.create_connection((place, port), timeout=3):
            return True
    except OSError:
        return False


def is_served(host: Host, port: int) -> bool:
    """Whether the host itself gets the page from its loopback address."""
    return "hello" in host.run("/srv/busybox wget -q -O - http://127.0.0.1:%s/", str(port)).stdout
