# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's machine, simulated: cards by role, capped power, and a boot after which the caps are there again."""

from __future__ import annotations

import configparser
import json
import subprocess

from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, wait
from testinfra.host import Host

STATE = "/srv/rig/nvml/state.ini"
UNIT = "gpurig-gpu-power.service"
CAP_MW = "350000"


def limits_mw(host: Host) -> list[str]:
    """What the simulated driver keeps as each card's power limit, in milliwatts; nothing for a card not set."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(host.run("cat %s", STATE).stdout)
    return [parser[card]["power_limit"] for card in parser.sections() if "power_limit" in parser[card]]


def test_the_map_names_cards_by_uuid(host: Host, rig: Rig) -> None:
    """Inference has the one card, training both; root alone may change it."""
    file = host.file(f"{rig.paths['config']}/gpu_roles.json")
    roles = json.loads(file.content_string)
    assert sorted(roles) == ["inference", "training"]
    assert (len(roles["inference"]), len(roles["training"])) == (1, 2)
    assert set(roles["inference"]) < set(roles["training"])
    assert all(card.startswith("GPU-") for cards in roles.values() for card in cards)
    assert (file.user, oct(file.mode)) == ("root", "0o644")


def test_both_cards_are_capped(host: Host, rig: Rig) -> None:
    """As the role training says; status tells of no drift."""
    assert limits_mw(host) == [CAP_MW, CAP_MW]
    status = host.run("%s power status", rig.tool)
    assert status.rc == 0, status.stdout + status.stderr
    assert status.stdout.count("350 W") >= 2, status.stdout


def test_the_caps_come_before_the_engines(host: Host) -> None:
    """By systemd's own account."""
    assert host.service(UNIT).is_enabled
    before = host.check_output("systemctl show %s --property=Before --value", UNIT).split()
    assert "gpurig-chat.service" in before


def test_a_boot_brings_the_caps_back(host: Host) -> None:
    """The driver forgets at a boot; the unit sets again, before anybody asks."""
    name = host.backend.get_hostname()
    host.check_output("rm -f %s", STATE)
    assert limits_mw(host) == []
    subprocess.run(["podman", "restart", "--time", "20", name], check=True, capture_output=True)
    wait("the caps are set again", lambda: limits_mw(host) == [CAP_MW, CAP_MW])
    wait("the unit is done", lambda: host.run("systemctl is-active --quiet %s", UNIT).rc == 3)
    assert host.check_output("systemctl show %s --property=Result --value", UNIT) == "success"


def test_a_changed_limit_is_set_again_by_the_tool(host: Host, rig: Rig) -> None:
    """What somebody else set is drift: told, and undone by one command."""
    content = host.file(STATE).content_string
    host.check_output("printf %%s %s > %s", content.replace(CAP_MW, "300000", 1), STATE)
    rows = json.loads(host.check_output("%s power status --json", rig.tool))
    assert sorted(len(row["drift"]) for row in rows) == [0, 1]
    host.check_output("%s power apply", rig.tool)
    assert limits_mw(host) == [CAP_MW, CAP_MW]
