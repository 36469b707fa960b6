# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's daemon.json: what we want in it and why, merged so that no key of the owner is lost. (pure)

A value that differs from ours stays and is told, unless it is the one that an earlier run of ours wrote there (the
record says so). A key that we wrote and no longer want goes, if nobody has changed it since.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

LOOPBACK: Final = "127.0.0.1"
BINDING: Final = "com.docker.network.bridge.host_binding_ipv4"
POOLS: Final = ("10.201.0.0/16", "10.233.0.0/16", "172.29.0.0/16", "192.168.192.0/18")
POOL_SIZE: Final = 24
ROTATING: Final = ("json-file", "local")
"""The log drivers that know max-size and max-file; another one refuses every container that is given them."""

# Sources: docker/docs, content/manuals/engine/: daemon/live-restore.md, network/port-publishing.md ("Setting the
# default bind address for containers"), logging; moby/moby's dockerd for the names and their flags.
REASONS: Final[Mapping[str, str]] = {
    "log-driver": "rotation needs a log driver that knows it",
    "log-opts": "without a size a talkative container fills the disk",
    "live-restore": "containers outlive a restart of the daemon, so also its update and this role's own",
    "default-address-pools": (
        "Docker's own pools end after some 30 networks and lie where home networks and VPNs are; this one does not "
        "overlap a route of this host"
    ),
    "features": (
        "CDI gives containers their cards through a file that systemd knows of, so a daemon-reload takes none away"
    ),
    "ip": "a port published without an address stays on loopback; Docker's own rules go around ufw and firewalld",
    "default-network-opts": "the same for the networks that Compose makes: the key ip is for the default bridge alone",
    "exec-opts": "asked for by container_engine_cgroupfs, NVIDIA's other cure of the loss of cards at a daemon-reload",
}
# Top-level key -> the option of dockerd that says the same. With both, dockerd does not start.
FLAGS: Final[Mapping[str, str]] = {
    "log-driver": "log-driver",
    "log-opts": "log-opt",
    "live-restore": "live-restore",
    "default-address-pools": "default-address-pool",
    "features": "feature",
    "ip": "ip",
    "default-network-opts": "default-network-opt",
    "exec-opts": "exec-opt",
}

MASK: Final = "********"
_PRIVATE = re.compile(r"(?i)^proxies$|passw|secret|token|credential|(api|access|private)[-_]?key")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+(?=@)")

Json = dict[str, Any]


def masked(value: Any, path: Sequence[str] = ()) -> Any:
    """`value`, which stands at `path`, without what may be a password: everything of `proxies` and of keys that look
    like credentials, and the user part of every address.
    """
    if isinstance(value, Mapping):
        return {key: masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, path) for item in value]
    if any(_PRIVATE.search(key) for key in path) and value not in (None, "") and not isinstance(value, bool):
        return MASK
    return _IN_ADDRESS.sub(MASK, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Merge:
    """`text` is daemon.json as it is to be; `ours` what of it we wrote; `kept` what of the owner's differs, in words;
    `added` the changed paths with the reason, in words.
    """

    merged: Json
    ours: Json
    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()


def pool_for(bases: Sequence[str], routes: Sequence[str]) -> str:
    """The first of `bases` (CIDR) that overlaps none of `routes` (CIDR; a default route is none), else ''."""
    taken = [ipaddress.ip_network(route, strict=False) for route in routes]
    taken = [net for net in taken if net.version == 4 and net.prefixlen > 0]
    for base in bases:
        if not any(ipaddress.ip_network(base).overlaps(net) for net in taken):
            return base
    return ""


def pool_problems(bases: Sequence[str]) -> list[str]:
    """Which of the pools are none, in words."""
    found = []
    for base in bases:
        try:
            fits = ipaddress.IPv4Network(base).prefixlen <= POOL_SIZE
        except ValueError:
            fits = False
        if not fits:
            found.append(
                f"container_engine_address_pools: found {base}, needed an IPv4 network of at least /{POOL_SIZE} "
                "without host bits, such as 10.201.0.0/16."
            )
    return found


def merge(existing: Mapping[str, Any], wanted: Mapping[str, Any], recorded: Mapping[str, Any]) -> Merge:
    """Bring `wanted` into `existing`. Objects are merged, every other value, lists too, is taken or left whole."""
    return _merge(existing, wanted, recorded, ())


def _merge(
    existing: Mapping[str, Any], wanted: Mapping[str, Any], recorded: Mapping[str, Any], path: tuple[str, ...]
) -> Merge:
    merged, ours = dict(existing), {}
    kept: list[str] = []
    added: list[str] = []
    for key, value in wanted.items():
        here, before = (*path, key), recorded.get(key)
        if key not in merged:
            merged[key] = ours[key] = value
            added.append(_told(here, value))
        elif value and isinstance(value, Mapping) and isinstance(merged[key], Mapping):
            inner = _merge(merged[key], value, before if isinstance(before, Mapping) else {}, here)
            merged[key] = inner.merged
            kept += inner.kept
            added += inner.added
            if inner.ours:
                ours[key] = inner.ours
        elif merged[key] == value:
            if key in recorded:
                ours[key] = value
        elif key in recorded and merged[key] == before:
            merged[key] = ours[key] = value
            added.append(_told(here, value))
        else:
            kept.append(
                f"{_dotted(here)} stays {_shown(merged[key], here)} as its owner wrote it; "
                f"ours would be {masked(value, here)!r}"
            )
    for key, before in recorded.items():
        if key not in wanted and key in merged:
            gone = _forget(merged[key], before)
            if gone is None:
                del merged[key]
                added.append(f"{_dotted((*path, key))} goes: nothing asks for it any more")
            else:
                merged[key] = gone
    return Merge(merged, ours, tuple(kept), tuple(added))


def _forget(value: Any, before: Any) -> Any:
    """`value` without what we wrote into it; None when that was all."""
    if isinstance(value, Mapping) and isinstance(before, Mapping):
        rest = {key: _forget(item, before[key]) if key in before else item for key, item in value.items()}
        return {key: item for key, item in rest.items() if item is not None or value[key] is None} or None
    return None if value == before else value


def _dotted(path: Sequence[str]) -> str:
    return " > ".join(path)


def _shown(value: Any, path: Sequence[str]) -> str:
    return (
        repr(masked(value, path))
        if not isinstance(value, Mapping)
        else f"an object with {', '.join(value) or 'no key'}"
    )


def _told(path: Sequence[str], value: Any) -> str:
    reason = REASONS.get(path[0], "container_engine_daemon of the inventory")
    return f"{_dotted(path)} = {masked(value, path)!r}: {reason}"


def wanted_settings(
    *,
    version: tuple[int, ...],
    existing: Mapping[str, Any],
    recorded: Mapping[str, Any],
    flags: Sequence[str],
    routes: Sequence[str],
    cautious: bool,
    swarm: bool,
    log_max_size: str,
    log_max_files: int,
    pools: Sequence[str] = POOLS,
    cgroupfs: bool = False,
    more: Mapping[str, Any] | None = None,
) -> tuple[Json, list[str]]:
    """What we want in daemon.json, and notes on what we leave out and why.

    `version` of dockerd, () when it is not installed yet: options that an old one does not know stop it from starting.
    `cautious`: somebody else's engine: addresses and published ports of its containers, also of later ones, must not
    move.
    """
    notes: list[str] = []
    wanted: Json = {"live-restore": True, "features": {"cdi": True}}
    driver = existing.get("log-driver", "json-file")
    if driver in ROTATING and "log-driver" not in flags:
        wanted = {
            "log-driver": driver,
            "log-opts": {"max-size": log_max_size, "max-file": str(log_max_files)},
            **wanted,
        }
    else:
        notes.append(f"logs: the log driver is {driver} already and rotates by its own rules; left so")
    if swarm:
        del wanted["live-restore"]
        notes.append("live-restore: left off, dockerd refuses it on a member of a swarm")
    if version and version < (25,):
        del wanted["features"]
    if cautious:
        notes.append(
            "This Docker is somebody else's: where ports are published and from which addresses networks are made "
            "stays as it is, also while there is no container. Our own containers name 127.0.0.1. "
            "container_engine_replace: true (rig_allow_container_engine_change) sets both for all."
        )
    else:
        wanted |= _network(version, existing, recorded, routes, pools, notes)
    if cgroupfs:
        wanted["exec-opts"] = ["native.cgroupdriver=cgroupfs"]
    wanted |= more or {}
    for key in [key for key in wanted if FLAGS.get(key, key) in flags]:
        del wanted[key]
        notes.append(
            f"{key}: dockerd's unit gives --{FLAGS.get(key, key)} already, and with both dockerd does not start; "
            "left to the unit"
        )
    return wanted, notes


def _network(
    version: tuple[int, ...],
    existing: Mapping[str, Any],
    recorded: Mapping[str, Any],
    routes: Sequence[str],
    pools: Sequence[str],
    notes: list[str],
) -> Json:
    wanted: Json = {"ip": LOOPBACK}
    if not version or version >= (24,):
        wanted["default-network-opts"] = {"bridge": {BINDING: LOOPBACK}}
    if "default-address-pools" in existing:
        if existing["default-address-pools"] == recorded.get("default-address-pools"):
            wanted["default-address-pools"] = existing["default-address-pools"]
    elif "bip" in existing:
        notes.append(f"default-address-pools: bip {existing['bip']} says that addresses are planned here; left so")
    elif base := pool_for(pools, routes):
        wanted["default-address-pools"] = [{"base": base, "size": POOL_SIZE}]
    else:
        notes.append(
            f"default-address-pools: each of {', '.join(pools)} overlaps a route of this host; Docker's own pools "
            "stay. container_engine_address_pools names others"
        )
    return wanted
