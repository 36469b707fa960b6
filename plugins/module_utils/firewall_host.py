# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's firewalls: ufw, nftables and firewalld, read and changed through their own programs. (outside)"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import systemd
from .firewall_plan import (
    BRIDGES,
    COMMENT,
    TUNNEL_KINDS,
    TUNNELS,
    UNIT,
    Change,
    Facts,
    paths,
    plan,
    ufw_rules,
    ufw_words,
)
from .small_files import write_text

PATIENCE_S = 60.0
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_MODE = 0o644


class FirewallHostError(Exception):
    """A program failed or cannot be read; the message holds what it said."""


def look(config: str, service_manager: str = "systemd", can_install_packages: bool = True) -> Facts:
    """What a plan needs; without root and systemd only that, as nothing is ours there. Raises FirewallHostError."""
    ours = paths(config)
    is_root = os.geteuid() == 0
    addresses, tunnels = _addresses()
    if service_manager != "systemd" or not is_root:
        return Facts(is_root=is_root, service_manager=service_manager, addresses=addresses, tunnels=tunnels)
    status = _run("ufw", "status") if _program("ufw") else ""
    added = _run("ufw", "show", "added") if status else ""
    firewalld = _program("firewall-cmd") and _run("firewall-cmd", "--state", fails=True).strip() == "running"
    unit = systemd.show(UNIT)
    return Facts(
        service_manager=service_manager,
        can_install_packages=can_install_packages,
        addresses=addresses,
        tunnels=tunnels,
        ufw=("active" if re.search(r"(?m)^Status: active$", status) else "inactive") if status else "",
        ufw_ipv6=re.search(r"(?m)^IPV6=no", _text("/etc/default/ufw")) is None,
        ufw_rules=ufw_rules(added),
        ufw_theirs=ufw_rules(added, theirs=True),
        firewalld=bool(firewalld),
        firewalld_rules=tuple(_run("firewall-cmd", "--list-rich-rules").splitlines()) if firewalld else (),
        nft=_program("nft"),
        ruleset=_ruleset(),
        files={path: _text(path) for path in ours},
        unit_enabled=unit.enabled,
        unit_active=unit.active_state == "active",
        published=_published(),
    )


def apply(changes: Iterable[Change]) -> None:
    """Walk the changes. Raises FirewallHostError, SystemdError, OSError."""
    for change in changes:
        if change.act == "write":
            Path(change.argument[0]).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_text(change.argument[0], change.argument[1], _MODE)
        elif change.act == "remove":
            Path(change.argument[0]).unlink(missing_ok=True)
            if change.argument[0].endswith(".service.d/gpurig.conf"):
                with suppress(OSError):
                    Path(change.argument[0]).parent.rmdir()  # only where nobody else adds anything
            systemd.daemon_reload()
        elif change.act == "load":
            _load()
        elif change.act == "unload":
            _unload()
        elif change.act == "ufw_add":
            _run("ufw", *ufw_words(*change.argument), "comment", COMMENT)
        else:
            _run("ufw", "delete", *ufw_words(*change.argument))


def look_for_ours(config: str, service_manager: str = "systemd") -> Facts:
    """What taking away needs: nothing is asked where none of our files is, and so nothing of it can fail."""
    return look(config, service_manager) if any(Path(path).exists() for path in paths(config)) else Facts()


def give_back(config: str) -> None:
    """Take away all that is ours, for an uninstall; what listens must have stopped. Raises as `apply`."""
    for change in plan(look_for_ours(config), config, 0, gone=True).changes:
        print(change.words)
        apply([change])


def _load() -> None:
    """A page that requires the unit would be restarted with it, so it is loaded again without a restart."""
    systemd.daemon_reload()
    systemd.order("enable", [UNIT])
    active = systemd.show(UNIT).active_state == "active"
    systemd.order("reload" if active else "start", [UNIT])


def _unload() -> None:
    """First nobody requires it any more: what listens on loopback by now goes on."""
    with suppress(systemd.SystemdError):
        systemd.order("disable", [UNIT])
    systemd.daemon_reload()
    with suppress(systemd.SystemdError):
        systemd.order("stop", [UNIT])
    if any(item.get("table", {}).get("name") == COMMENT for item in _ruleset()):
        _run("nft", "delete", "table", "inet", COMMENT)


def _addresses() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """ADDRESS/BITS of the interfaces that are no tunnels, and of those that are."""
    near: list[str] = []
    far: list[str] = []
    with suppress(ValueError, FirewallHostError, TypeError):
        for interface in json.loads(_run("ip", "-details", "-json", "address", "show")):
            name, kind = interface.get("ifname", ""), interface.get("linkinfo", {}).get("info_kind", "")
            if not BRIDGES.fullmatch(name):
                (far if kind in TUNNEL_KINDS or TUNNELS.fullmatch(name) else near).extend(
                    f"{address['local']}/{address['prefixlen']}"
                    for address in interface.get("addr_info", [])
                    if address.get("scope") == "global" and not address.get("temporary") and "local" in address
                )
    return tuple(near), tuple(far)


def _ruleset() -> list[dict[str, Any]]:
    if not _program("nft"):
        return []
    said = _run("nft", "--json", "list", "ruleset")
    try:
        found = json.loads(said)["nftables"]
    except (ValueError, KeyError, TypeError) as error:
        raise FirewallHostError(f"nft --json list ruleset printed no rules: {said[:200]!r}") from error
    return list(found)


def _published() -> tuple[tuple[str, str], ...]:
    """(name, address:port) of running containers; nothing where Docker does not answer."""
    if not _program("docker"):
        return ()
    said = _run("docker", "ps", "--format", "{{.Names}}\t{{.Ports}}", fails=True)
    rows = (line.partition("\t") for line in said.splitlines())
    return tuple((name, place) for name, _tab, ports in rows for place in re.findall(r"(\S+:\d+)->", ports))


def _program(name: str) -> str:
    return shutil.which(name, path=_PATH) or ""


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""


def _run(*command: str, fails: bool = False) -> str:
    """What a program prints; with `fails` also when it fails. Raises FirewallHostError."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C", "PATH": _PATH},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FirewallHostError(f"{' '.join(command)}: {error}") from error
    if done.returncode and not fails:
        said = " ".join((done.stderr or done.stdout).split())
        raise FirewallHostError(f"{' '.join(command)} failed with {done.returncode}: {said}")
    return done.stdout
