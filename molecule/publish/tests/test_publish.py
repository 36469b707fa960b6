# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches the published port, tried from where."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from ansible_collections.gpurig.llm.molecule.shared.rig import address, noted, wait
from ansible_collections.gpurig.llm.tests.hosts import exposure
from testinfra.host import Host

PAGE, ENGINE = 8080, 8000
TABLE_FILE = "/etc/gpurig/firewall.nft"
STRANGER = "198.51.100.7"  # of a documentation network (RFC 5737), so nobody's
BY_UFW, BY_TABLE = "gpurig-publish-bookworm", "gpurig-publish-trixie"
# Run on a host: whether an address and port accept, from an address of ours.
TRY = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 3, (sys.argv[3], 0)).close()
    print("reached")
except OSError:
    print("not reached")
"""


def on(name: str, *command: str) -> str:
    """What a program says on a host."""
    done = subprocess.run(["podman", "exec", name, *command], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def reaches(who: str, whom: str, port: int, source: str = "") -> bool:
    """Whether one host reaches a port of the other one."""
    return on(who, "python3", "-c", TRY, address(whom), str(port), source) == "reached"


@contextmanager
def stranger() -> Iterator[str]:
    """An address that the one host has and the other one knows a way to, in no network that was allowed."""
    on(BY_TABLE, "ip", "address", "replace", f"{STRANGER}/32", "dev", "lo")
    on(BY_UFW, "ip", "route", "replace", STRANGER, "via", address(BY_TABLE))
    try:
        yield STRANGER
    finally:
        on(BY_UFW, "ip", "route", "delete", STRANGER)
        on(BY_TABLE, "ip", "address", "delete", f"{STRANGER}/32", "dev", "lo")


@pytest.fixture
def name(host: Host) -> str:
    return str(host.backend.get_hostname())


def test_the_page_and_nothing_else_is_reached_from_here(host: Host, name: str) -> None:
    """Every port tried from an address that is allowed. The engine runs, and only the host itself reaches it."""
    wait("the page listens", lambda: f":{PAGE} " in host.check_output("ss -Htln"))
    assert f"127.0.0.1:{ENGINE}" in host.check_output("ss -Htln")
    found = exposure.scan(address(name))
    noted(host, "published", [f"{address(name)}: tcp {found}"])
    assert found == [PAGE]


def test_the_page_does_not_start_without_its_rule(host: Host) -> None:
    """It ends with the unit that loads it, and stays down while it cannot be loaded."""
    assert "gpurig-firewall.service" in host.check_output("systemctl show --property=Requires gpurig-open-webui")
    host.check_output("systemctl stop gpurig-firewall && mv %s /root/kept.nft && echo x > %s", TABLE_FILE, TABLE_FILE)
    try:
        assert not host.service("gpurig-open-webui").is_running
        assert host.run("systemctl start gpurig-open-webui").rc != 0
        assert not host.service("gpurig-open-webui").is_running
    finally:
        host.check_output("mv /root/kept.nft %s && systemctl start gpurig-open-webui", TABLE_FILE)
    wait("the page listens", lambda: f":{PAGE} " in host.check_output("ss -Htln"))


def test_an_address_that_was_not_named_is_kept_out(name: str) -> None:
    """On the host with the table the other host is one; on the other host it needs an address from elsewhere.

    Neither a rule of the owner's in ufw nor ufw switched off lets it in.
    With our table taken away the same attempt succeeds, so the way is open otherwise.
    """
    if name == BY_TABLE:
        assert not reaches(BY_UFW, BY_TABLE, PAGE)
        on(BY_TABLE, "nft", "delete", "table", "inet", "gpurig")
        assert reaches(BY_UFW, BY_TABLE, PAGE)
        on(BY_TABLE, "systemctl", "reload", "gpurig-firewall")
        assert not reaches(BY_UFW, BY_TABLE, PAGE)
        return
    with stranger() as source:
        assert not reaches(BY_TABLE, BY_UFW, PAGE, source)
        try:
            on(BY_UFW, "ufw", "allow", f"{PAGE}/tcp")
            assert not reaches(BY_TABLE, BY_UFW, PAGE, source)
            on(BY_UFW, "nft", "delete", "table", "inet", "gpurig")
            assert reaches(BY_TABLE, BY_UFW, PAGE, source)
            on(BY_UFW, "systemctl", "reload", "gpurig-firewall")
            on(BY_UFW, "ufw", "disable")
            assert not reaches(BY_TABLE, BY_UFW, PAGE, source)
        finally:
            on(BY_UFW, "systemctl", "reload", "gpurig-firewall")
            on(BY_UFW, "ufw", "--force", "enable")
            on(BY_UFW, "ufw", "delete", "allow", f"{PAGE}/tcp")


def test_no_stranger_reaches_the_engine(name: str) -> None:
    """Nor does a neighbour who may see the page."""
    other = BY_UFW if name == BY_TABLE else BY_TABLE
    assert not reaches(other, name, ENGINE)


def test_what_the_owner_allowed_is_there(host: Host, name: str) -> None:
    """And our rule names itself."""
    if name == BY_UFW:
        said = host.check_output("ufw show added")
        assert "ufw allow 22/tcp comment 'theirs'" in said
        assert f"to any port {PAGE} proto tcp comment 'gpurig'" in said
    assert "inet gpurig" in host.check_output("nft list tables")


def test_nftables_in_other_hands_takes_the_page_along(host: Host, name: str) -> None:
    """Debian's nftables.service flushes every table, ours as well, when it stops: the page ends before, not after.

    When it starts or reloads it flushes as well, and our table comes back with its own.
    """
    if name != BY_TABLE:
        return
    assert not host.service("nftables").is_running
    for order in ("start", "reload"):
        host.check_output("systemctl %s nftables", order)
        assert "inet gpurig" in host.check_output("nft list tables")
        assert not reaches(BY_UFW, BY_TABLE, PAGE)
        assert host.service("gpurig-open-webui").is_running
    host.check_output("systemctl restart nftables")
    wait("the page is back", lambda: host.service("gpurig-open-webui").is_running)
    assert "inet gpurig" in host.check_output("nft list tables")
    host.check_output("systemctl stop nftables")
    assert not host.service("gpurig-open-webui").is_running
    host.check_output("systemctl start gpurig-open-webui")
    assert "inet gpurig" in host.check_output("nft list tables")
    assert not reaches(BY_UFW, BY_TABLE, PAGE)
