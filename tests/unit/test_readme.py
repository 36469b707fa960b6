# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's inventory of a home host and a rented node is a right one, and what molecule/page proves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.gpurig.llm.plugins.module_utils.schema import validate

ROOT = Path(__file__).resolve().parents[2]
MODEL = {"source": "local", "local": {"path": "/srv/chat.gguf"}, "format": "gguf"}


def hosts() -> dict[str, dict[str, Any]]:
    """Each host's variables, with the two values filled in that a person must read elsewhere."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### At home against a rented node")[2]
    text = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    group = yaml.safe_load(text.replace("AAAA...", "A" * 68))["all"]
    assert group["vars"]["rig_models"] == {"chat": "..."}
    return {name: {**host, "rig_models": {"chat": MODEL}} for name, host in group["hosts"].items()}


def test_the_inventory_has_no_errors() -> None:
    for name, host in hosts().items():
        assert validate({key: value for key, value in host.items() if key.startswith("rig_")}) == [], name
    tunnel = hosts()["home"]["rig_tunnels"][0]
    assert tunnel["instance"] in [one["name"] for one in hosts()[tunnel["host"]]["rig_instances"]]


def test_the_scenario_says_the_same_of_its_hosts() -> None:
    text = (ROOT / "molecule" / "page" / "inventory.yml").read_text(encoding="utf-8")
    proven = yaml.safe_load(text)["all"]["children"]["instances"]["hosts"]
    home, pod = proven["gpurig-page-home"], proven["gpurig-page-pod"]
    assert set(hosts()["home"]) - {"ansible_connection", "rig_models"} <= set(home)
    assert set(hosts()["pod1"]) - {"rig_models"} <= set(pod)
    # The scenario also gives the tunnel a user of its own, as the text below advises.
    assert {*hosts()["home"]["rig_tunnels"][0], "user"} == set(home["rig_tunnels"][0])
