# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the container's start command brings back when only the volume survived, see restart.yml."""

from __future__ import annotations

import subprocess
from typing import Any

from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, wait


def test_it_is_another_container(rig: Rig) -> None:
    """With another name, and without the system's Python that the run before had used."""
    assert rig.host.check_output("hostname") == "gpurig-pod-again"
    assert 'VERSION_ID="12"' in rig.host.file("/etc/os-release").content_string
    assert not rig.host.file("/usr/bin/python3.13").exists


def test_the_start_command_brings_the_engine_back(rig: Rig, instance: dict[str, Any]) -> None:
    """By itself, in spite of all that lay on the volume, and with the key that clients have."""
    wait("the model is loaded", lambda: rig.is_healthy(instance), timeout_s=300)
    row = rig.row(instance["name"])
    assert (row["state"], row["restarts"], row["stale"]) == ("running", 0, False)
    assert rig.answers(instance)
    assert rig.ask(instance["port"], "/v1/models", "wrong")[0] == 401


def test_the_providers_log_tells(rig: Rig, instance: dict[str, Any]) -> None:
    """What the start command prints is what the provider shows as the container's log."""
    command = ["podman", "logs", rig.host.backend.get_hostname()]
    said = f"{instance['name']}: running (pid "
    wait(
        "the start is reported",
        lambda: said in subprocess.run(command, check=True, capture_output=True, text=True).stdout,
    )
