# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a host can be reached from elsewhere: every TCP port tried, and every listener that its kernel lists.

    python exposure.py [--ports LOW-HIGH] ADDRESS...    tries them from here and prints {address: open ports} as JSON

Standard library only: it also runs in another network namespace, without any environment.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import os
import resource
import select
import socket
import sys
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

EVERY_PORT = range(1, 65536)
# What answers neither yes nor no for so long counts as closed; the hosts are on this machine.
PATIENCE_S = 1.5
_AT_ONCE = 19000  # where a firewall keeps silent, each round of so many ports takes PATIENCE_S
_LISTENING = {"tcp": "0A", "udp": "07"}  # linux/tcp_states.h; a udp socket without a peer is "closed"


# --- by trying -------------------------------------------------------------------------------------------------------


def scan(address: str, ports: Iterable[int] = EVERY_PORT, patience_s: float = PATIENCE_S) -> list[int]:
    """The TCP ports where somebody accepts. `address`: IPv4 or IPv6, a link-local one as ADDRESS%INTERFACE.

    Closed is what refuses or keeps silent. Raises OSError where a try proves nothing, for want of a route say.
    """
    family, _kind, _protocol, _name, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    at_once = _descriptors()
    waiting: dict[int, tuple[socket.socket, int, float]] = {}
    poll, found, rest = select.epoll(), [], iter(ports)
    try:
        while True:
            for port in rest:
                probe = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                said = probe.connect_ex((place[0], port, *place[2:]))
                if said == errno.EINPROGRESS:
                    poll.register(probe, select.EPOLLOUT)
                    waiting[probe.fileno()] = (probe, port, time.monotonic() + patience_s)
                else:
                    probe.close()
                    found += [port] if _accepts(said, address, port) else []
                if len(waiting) >= at_once:
                    break
            if not waiting:
                return sorted(found)
            found += list(_answered(poll, waiting, address))
    finally:
        poll.close()
        for probe, _port, _deadline in waiting.values():
            probe.close()


def _accepts(said: int, address: str, port: int) -> bool:
    if said not in (0, errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT):
        raise OSError(said, f"{os.strerror(said)}; whether port {port} is open was not learnt", address)
    return said == 0


def _answered(poll: select.epoll, waiting: dict[int, tuple[socket.socket, int, float]], address: str) -> Iterator[int]:
    """Ports that accepted; those that refused or kept silent for too long are no longer waited for.

    Too long only where nothing comes any more: on a busy machine answers lie here longer than they took.
    """
    answers = poll.poll(0.05)
    for number, _event in answers:
        probe, port, _deadline = waiting.pop(number)
        said = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        probe.close()
        if _accepts(said, address, port):
            yield port
    now = time.monotonic()
    late = [] if answers else [number for number, (_probe, _port, deadline) in waiting.items() if deadline < now]
    for number in late:
        waiting.pop(number)[0].close()


def _descriptors() -> int:
    """How many sockets we may have at once, as many as we are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _AT_ONCE + 500
    if soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500, 50)


# --- by what the kernel says -----------------------------------------------------------------------------------------


def listeners(tables: Mapping[str, str], inodes: Container[str] | None = None) -> set[str]:
    """'tcp 0.0.0.0:8080' of every listener that is not on loopback. `tables`: /proc/net/{tcp,tcp6,udp,udp6} by name.

    `inodes`: of these sockets only.
    """
    found = set()
    for name, table in tables.items():
        for row in table.splitlines()[1:]:
            columns = row.split()
            if len(columns) < 10 or (inodes is not None and columns[9] not in inodes):
                continue
            if columns[3] == _LISTENING[name[:3]]:
                digits, _colon, port = columns[1].partition(":")
                address = _address(digits)
                if not address.is_loopback:
                    found.add(f"{name[:3]} {address}:{int(port, 16)}")
    return found


def _address(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of the kernel's notation: words of 32 bits, each with its bytes turned round."""
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def addresses(listed: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(interface, address) of `ip --json address show`, without loopback."""
    return [
        (interface["ifname"], address["local"])
        for interface in listed
        for address in interface.get("addr_info", ())
        if not ipaddress.ip_address(address["local"]).is_loopback
    ]


def main(words: list[str]) -> int:
    """Scan what the command line names."""
    parser = argparse.ArgumentParser(description="Try TCP ports and print the open ones as JSON.")
    parser.add_argument("--ports", default="1-65535", metavar="LOW-HIGH[,...]")
    parser.add_argument("addresses", nargs="+", metavar="ADDRESS")
    given = parser.parse_args(words)
    pairs = [part.partition("-") for part in given.ports.split(",")]
    ports = [port for low, _dash, high in pairs for port in range(int(low), int(high or low) + 1)]
    print(json.dumps({address: scan(address, ports) for address in given.addresses}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
