# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After an upgrade: the other release on the same data, a copy of the database, and the image of before."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.compose.tests.seen import ask, titles
from testinfra.host import Host


def test_the_new_release_has_the_chats(host: Host) -> None:
    """By its own word."""
    assert ask(host, "page.version()") == "0.12.4"
    assert titles(host) == ["Kept"]


def test_there_are_copies_of_the_database(host: Host) -> None:
    """From before the version that did not start; this one made a second, if anything was written in between."""
    copies = host.check_output("ls /var/lib/gpurig/open_webui/backups").splitlines()
    assert {name.split("-")[1] for name in copies} == {"0.12.0"}


def test_images_that_nothing_needs_are_gone(host: Host) -> None:
    """The release that runs stays; what it runs from is the way back too."""
    digests = host.check_output("docker images --digests --quiet 127.0.0.1:5000/open-webui/open-webui").splitlines()
    assert len(digests) == 1
    assert len(host.check_output("ls /etc/gpurig/instances").splitlines()) == 1
