# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of every host is reached from another network namespace: nothing but what its inventory names with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ansible_collections.gpurig.llm.molecule.shared.rig import noted, open_on_purpose
from ansible_collections.gpurig.llm.tests.hosts import exposure
from testinfra.host import Host

# Run on the host: listens on every address, IPv6 too where there is any, until it is ended, and prints its pid and its
# two ports.
OPEN = """
import os, socket, sys, time
both = os.path.exists("/proc/net/if_inet6") and socket.has_dualstack_ipv6()
family, every = (socket.AF_INET6, "::") if both else (socket.AF_INET, "0.0.0.0")
tcp = socket.create_server((every, 0), family=family, dualstack_ipv6=both)
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.bind((every, 0))
pid = os.fork()
if pid:
    print(pid, tcp.getsockname()[1], udp.getsockname()[1])
    sys.exit()
os.setsid()
for number in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
time.sleep(300)
"""


@contextmanager
def opened(host: Host) -> Iterator[tuple[str, str]]:
    """Two ports that are open on purpose: 'tcp N', 'udp N'."""
    pid, tcp, udp = host.check_output("python3 -c %s", OPEN).split()
    try:
        yield f"tcp {tcp}", f"udp {udp}"
    finally:
        host.check_output("kill %s", pid)


def asked(*command: str) -> str:
    """What a program says here, on the machine that runs the tests."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def tried(host: Host) -> tuple[dict[str, list[int]], list[str]]:
    """Every address of the host and the TCP ports that accept there; and those that cannot be tried from here.

    The latter are those of IPv6 where the machine that runs the tests has none on its side of the network. Addresses
    behind the host, of its own containers' bridges say, are tried by a neighbour who has a route to them.
    """
    networks = json.loads(asked("podman", "inspect", "--format", "{{json .NetworkSettings.Networks}}", name_of(host)))
    near = {network["IPAddress"]: name for name, network in networks.items()}
    known = exposure.addresses(json.loads(host.check_output("ip -json address show")))
    bridges = {
        interface: json.loads(asked("ip", "-json", "route", "get", address))[0]["dev"]
        for interface, address in known
        if address in near
    }
    found, behind, missed = {}, [], []
    for interface, address in known:
        local = address.startswith("fe80:")
        if interface in bridges and ":" in address and not asked("ip", "-6", "address", "show", bridges[interface]):
            missed.append(address)
        elif interface in bridges:
            found[address] = exposure.scan(f"{address}%{bridges[interface]}" if local else address)
        elif not local:  # that is nobody's but its own link's
            behind.append(address)
    return {**found, **(from_a_neighbour(host, next(iter(near.items())), behind) if behind else {})}, missed


def from_a_neighbour(host: Host, place: tuple[str, str], behind: list[str]) -> dict[str, list[int]]:
    """The same from another host, which sends what is for these addresses to this one. `place`: address, network."""
    near, network = place
    image = asked("podman", "inspect", "--format", "{{.Image}}", name_of(host))
    neighbour = asked("podman", "run", "--detach", "--rm", "--network", network, image, "sleep", "300")
    try:
        pid = asked("podman", "inspect", "--format", "{{.State.Pid}}", neighbour)
        there = ("nsenter", "--target", pid, "--net")
        for address in behind:
            asked(*there, "ip", "route", "add", address, "via", near)
        return dict(json.loads(asked(*there, sys.executable, str(Path(exposure.__file__)), *behind)))
    finally:
        asked("podman", "rm", "--force", "--time", "0", neighbour)


def name_of(host: Host) -> str:
    """The container's name."""
    return str(host.backend.get_hostname())


def listed(host: Host) -> set[str]:
    """What listens on another address than loopback, by what the host's kernel says."""
    names = ("tcp", "tcp6", "udp", "udp6")
    return exposure.listeners({name: host.check_output("cat /proc/net/%s", name) for name in names})


def test_nothing_is_reached_from_elsewhere(host: Host) -> None:
    """But a port that is opened on purpose now is found both ways, at every address, so the rest proves something."""
    with opened(host) as on_purpose:
        listening, (reached, missed) = listed(host), tried(host)
    by_port = {f"{place.split()[0]} {place.rpartition(':')[2]}": place for place in sorted(listening)}
    answering = {f"tcp {port}" for ports in reached.values() for port in ports}
    allowed = open_on_purpose(host)
    lines = [f"{address}: tcp {', '.join(map(str, ports)) or 'none'}" for address, ports in reached.items()]
    lines += [f"{address}: not tried, this machine has no IPv6 there" for address in missed]
    lines += [f"listens on {place}" for place in by_port.values()]
    lines += [f"allowed: {port}, {reason}" for port, reason in allowed.items()]
    noted(host, "exposed", [*lines, f"opened on purpose for this test: {', '.join(on_purpose)}"])
    assert any(":" not in address for address in reached)
    assert set(on_purpose) <= set(by_port)
    assert [
        address for address, ports in reached.items() if on_purpose[0] not in {f"tcp {port}" for port in ports}
    ] == []
    strangers = (answering | set(by_port)) - set(on_purpose) - set(allowed)
    assert strangers == set(), lines
    assert set(allowed) <= answering | set(by_port), "what is allowed and closed needs no permission"
