# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of this scenario share: what Docker says, and who reaches a port from where."""

from __future__ import annotations

import json
import socket
from typing import Any

from ansible_collections.gpurig.llm.molecule.shared.rig import address
from testinfra.host import Host

RECORD = "/etc/gpurig/container_engine.json"
SETTINGS = "/etc/docker/daemon.json"


def read(host: Host, path: str) -> Any:
    """A JSON file."""
    return json.loads(host.file(path).content_string)


def info(host: Host) -> dict[str, Any]:
    """docker info."""
    return dict(json.loads(host.check_output("docker info --format '{{json .}}'")))


def is_reached(host: Host, port: int) -> bool:
    """Whether the host accepts a connection from the machine that runs the tests."""
    try:
        with socket.create_connection((address(host.backend.get_hostname()), port), timeout=3):
            return True
    except OSError:
        return False


def is_served(host: Host, port: int) -> bool:
    """Whether the host itself gets the page from its loopback address."""
    return "hello" in host.run("/srv/busybox wget -q -O - http://127.0.0.1:%s/", str(port)).stdout
