# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left on every host when the inventory no longer names any instance, see shared/remove.yml."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.gpurig.llm.molecule.shared.rig import Rig


def test_the_service_is_gone(rig: Rig, instance: dict[str, Any]) -> None:
    """From our records, from the port and from the process list."""
    assert not rig.host.file(f"{rig.paths['services']}/{instance['name']}.json").exists
    assert rig.host.check_output("ss -Htln sport = :%s", str(instance["port"])) == ""
    assert f"--port {instance['port']} " not in rig.host.check_output("ps -eww -o args")
    rows = json.loads(rig.host.check_output("%s status --json", rig.tool))
    assert [row["name"] for row in rows if row["labels"]["owner"] == "instances"] == []


def test_the_model_stays(rig: Rig, instance: dict[str, Any]) -> None:
    """It is data, and data goes only on request."""
    record = rig.host.file(f"{rig.paths['models']}/{instance['model']}/.gpurig.json")
    known = json.loads(record.content_string)
    root = known.get("root") or f"{rig.paths['models']}/{instance['model']}"
    assert known["files"]
    for name, file in known["files"].items():
        assert rig.host.file(f"{root}/{name}").size == file["size"]
