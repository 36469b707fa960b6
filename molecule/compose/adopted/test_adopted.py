# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume of somebody else's page: its chats are served, from where its paths say."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.compose.tests.seen import ask, inspected, titles
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
