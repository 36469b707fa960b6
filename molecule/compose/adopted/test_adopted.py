# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume of somebody else's page: its chats are served, from where its paths say, and to the host's network."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.compose.tests.seen import ADMIN, PORT, SECRETS, ask, inspected, titles
from ansible_collections.gpurig.llm.molecule.shared.rig import address
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import sign_in
from ansible_collections.gpurig.llm.tests.hosts import exposure
from testinfra.host import Host


def test_its_chats_are_served(host: Host) -> None:
    """And its models are those of the host."""
    assert titles(host) == ["Kept"]
    assert ask(host, "page.models()") == ["chat"]


def test_it_is_the_volume_itself(host: Host) -> None:
    """Where the maker's image has it, as its owner."""
    mounts = {mount["Destination"]: mount for mount in inspected(host)["Mounts"]}
    assert mounts["/app/backend/data"]["Name"] == "theirs"
    assert inspected(host)["Config"]["User"] == "0:0"


def test_it_is_reached_from_the_network_and_nothing_else_is(host: Host) -> None:
    """By who knows the password, from the machine that runs the tests."""
    place = address(host.backend.get_hostname())
    password = host.check_output("sed -n s/^WEBUI_ADMIN_PASSWORD=//p %s", SECRETS)
    page = sign_in(f"http://{place}:{PORT}", ADMIN, password)
    assert "Paris" in page.chat("chat", "What is the capital of France? Answer in one sentence.")
    assert exposure.scan(place) == [PORT]
