# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One read-only look at a host's container engine: packages, apt, daemon.json, units, routes, what runs. (outside)

`root` stands for / where files are read. Programs are asked only with `root` /.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .container_plan import ARCHITECTURES, OUR_SOURCES, WATCHED, Facts
from .gpu_scan import scan_pci
from .nvml import kernel_driver_version
from .services import boot_time_s, start_ticks

DAEMON_JSON = "etc/docker/daemon.json"
DROP_INS = ("etc/systemd/system/docker.service.d", "run/systemd/system/docker.service.d")
UNITS = ("etc/systemd/system/docker.service", "usr/lib/systemd/system/docker.service", "etc/default/docker")
PATIENCE_S = 20
_NO_CACHE = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")  # else it writes one
_BRIDGES = re.compile(r"docker\d|br-[0-9a-f]{12}|veth|docker_gwbridge|lo$")


def scan(record_path: str, root: str = "/", sysfs_root: str = "/sys", proc_root: str = "/proc") -> Facts:
    """Everything that a plan needs; what cannot be read counts as not there. Cards and driver come from the latter."""
    top = Path(root)
    asking = top == Path("/")
    release = _os_release(top)
    installed, held = _packages(_text(top / "var/lib/dpkg/status"))
    daemon, problem = read_daemon(top / DAEMON_JSON)
    flags = _flags(top)
    engine = _engine_version(installed, asking)
    data = top / str((daemon or {}).get("data-root", "/var/lib/docker")).lstrip("/")
    containers = len(_names(data / "containers"))
    running = running_containers(engine, containers, "data-root" in flags) if asking else 0
    return Facts(
        distribution=release.get("ID", ""),
        release=release.get("VERSION_ID", ""),
        arch=os.uname().machine,
        installed=installed,
        held=held,
        candidates=_candidates() if asking else {},
        apt_lists=any((top / "var/lib/apt/lists").glob("*Packages*")),
        apt_sources=apt_sources(top),
        engine_version=engine,
        compose_version=_compose_version(installed, asking),
        snap=(top / "snap/bin/docker").exists() or (top / "var/lib/snapd/snap/bin/docker").exists(),
        daemon=daemon,
        daemon_problem=problem,
        stale=asking and _is_stale(top / DAEMON_JSON),
        unit_flags=flags,
        containers=max(containers, running),
        running=running,
        swarm=(data / "swarm/docker-state.json").exists(),
        routes=_routes(_text(top / "proc/net/route")),
        firewall=_firewall(top),
        apparmor=_text(top / "sys/module/apparmor/parameters/enabled").strip() == "Y",
        cards=len(scan_pci(sysfs_root)),
        driver=kernel_driver_version(sysfs_root, proc_root),
        record=_json(Path(record_path)),
    )


def read_daemon(path: Path) -> tuple[dict[str, Any] | None, str]:
    """(daemon.json, what is wrong with it); None where there is none. An empty file is an empty object to dockerd."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if text.strip() else {}
    except FileNotFoundError:
        return None, ""
    except json.JSONDecodeError as error:
        return None, f"line {error.lineno} is no JSON: {error.msg}"
    except (OSError, UnicodeDecodeError) as error:
        return None, f"it cannot be read: {error}"
    return (content, "") if isinstance(content, dict) else (None, "it holds no JSON object")


def running_containers(engine: str, containers: int, elsewhere: bool = False) -> int:
    """How many containers run. Where an engine does not say, all that are known count, and at least one where they
    lie `elsewhere`, in a directory that only dockerd's unit names.
    """
    said = _ask("docker", "ps", "--quiet")
    if said is not None:
        return len(said.split())
    return max(containers, int(elsewhere)) if engine else 0


def apt_sources(top: Path) -> list[dict[str, str]]:
    """What apt reads besides our own files: file, type, uri (no / at its end), suite and signed_by, each combined."""
    folder = top / "etc/apt/sources.list.d"
    found = []
    for path in (top / "etc/apt/sources.list", *sorted(folder.glob("*.list")), *sorted(folder.glob("*.sources"))):
        if path.name in OUR_SOURCES:
            continue
        read = _deb822 if path.suffix == ".sources" else _one_line
        for kind, uri, suite, signed_by in read(_text(path)):
            place = uri.replace("$(ARCH)", ARCHITECTURES.get(os.uname().machine, "")).rstrip("/")
            row = {"type": kind, "uri": place, "suite": suite, "signed_by": signed_by}
            found.append({"file": f"/{path.relative_to(top)}", **row})
    return found


def _one_line(text: str) -> list[tuple[str, str, str, str]]:
    found = []
    for kind, options, uri, suite in re.findall(
        r"(?m)^[ \t]*(deb|deb-src)[ \t]+(?:\[([^\]\n]*)\][ \t]*)?(\S+)[ \t]+(\S+)", text
    ):
        signed_by = re.search(r"(?i)(?:^|\s)signed-by=(\S+)", options)
        found.append((kind, uri, suite, signed_by[1] if signed_by else ""))
    return found


def _deb822(text: str) -> list[tuple[str, str, str, str]]:
    """A field goes on in lines that begin with a blank; a key may stand in the field Signed-By itself."""
    found = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"(?m)^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", paragraph)
        }
        if "".join(fields.get("enabled", [])).lower() in ("no", "false", "without", "off", "disable", "0"):
            continue
        signed_by = fields.get("signed-by", [])
        keys = "a key in that file" if "-----BEGIN" in signed_by else " ".join(signed_by)
        found += [
            (kind, uri, suite, keys)
            for kind in fields.get("types", [])
            for uri in fields.get("uris", [])
            for suite in fields.get("suites", [])
        ]
    return found


def _is_stale(path: Path) -> bool:
    """Whether the file was written after the dockerd that runs began."""
    pid = _run("systemctl", "show", "docker", "--property=MainPID", "--value").strip()
    ticks = start_ticks(int(pid)) if pid.isdigit() and pid != "0" else 0
    if not ticks or not path.exists():
        return False
    age_s = boot_time_s() - ticks / os.sysconf("SC_CLK_TCK")
    return path.stat().st_mtime > time.time() - age_s


def _packages(status: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Watched packages that are installed with their versions, and which of them are held, from dpkg's status file."""
    installed, held = {}, []
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"(?m)^(Package|Status|Version): (.*)$", paragraph))
        name, state = fields.get("Package", ""), fields.get("Status", "").split()
        if name in WATCHED and state[1:] == ["ok", "installed"]:
            installed[name] = fields.get("Version", "")
            if state[0] == "hold":
                held.append(name)
    return installed, tuple(held)


def _candidates() -> dict[str, str]:
    found = {}
    for paragraph in re.split(r"\n(?=\S)", _run("apt-cache", *_NO_CACHE, "policy", *WATCHED)):
        name, _colon, rest = paragraph.partition(":\n")
        candidate = re.search(r"Candidate: (\S+)", rest)
        if candidate and candidate[1] != "(none)":
            found[name] = candidate[1]
    return found


def _engine_version(installed: Mapping[str, str], asking: bool) -> str:
    for name in ("docker-ce", "docker.io", "moby-engine"):
        if name in installed:
            return installed[name]
    found = re.search(r"version (\d\S*?),", _run("dockerd", "--version")) if asking else None
    return found[1] if found else ""


def _compose_version(installed: Mapping[str, str], asking: bool) -> str:
    if asking:
        said = _run("docker", "compose", "version", "--short").strip()
        return said if re.match(r"v?\d", said) else installed.get("docker-compose", "")
    names = ("docker-compose-plugin", "docker-compose-v2", "docker-compose")
    return next((installed[name] for name in names if name in installed), "")


def _flags(top: Path) -> tuple[str, ...]:
    """Names of the options that dockerd's unit and its drop-ins give it, without their values."""
    unit = next((text for text in map(_text, (top / one for one in UNITS[:2])) if text), "")
    texts = [unit, *(_text(path) for folder in DROP_INS for path in sorted((top / folder).glob("*.conf")))]
    options = _text(top / UNITS[2])
    words = [line for text in texts for line in _starts(text)][-1:]
    words += re.findall(r"(?m)^\s*DOCKER_OPTS=(.*)$", options)
    found = {flag for line in words for flag in re.findall(r"(?<!\S)[\"']?--([a-z][a-z0-9-]*)", line)}
    return tuple(sorted(found))


def _starts(unit: str) -> list[str]:
    """The commands of ExecStart lines; one that is empty takes the earlier ones back, the next one then counts."""
    return [line for line in re.findall(r"(?m)^ExecStart=(.*)$", unit.replace("\\\n", " ")) if line.strip()]


def _routes(table: str) -> tuple[str, ...]:
    """IPv4 routes of /proc/net/route as CIDR, without Docker's own bridges and the default route."""
    found = []
    for line in table.splitlines()[1:]:
        parts = line.split()
        if len(parts) < 8 or _BRIDGES.match(parts[0]):
            continue
        address, mask = (ipaddress.IPv4Address(bytes.fromhex(parts[at])[::-1]) for at in (1, 7))
        if int(mask):
            found.append(str(ipaddress.ip_network(f"{address}/{mask}", strict=False)))
    return tuple(sorted(set(found)))


def _firewall(top: Path) -> str:
    if re.search(r"(?m)^ENABLED=yes", _text(top / "etc/ufw/ufw.conf")):
        return "ufw"
    for name in ("firewalld", "nftables"):
        wants = top / "etc/systemd/system"
        if any(wants.glob(f"*.target.wants/{name}.service")):
            return name
    return ""


def _os_release(top: Path) -> dict[str, str]:
    pairs = re.findall(r"(?m)^([A-Z_]+)=(.*)$", _text(top / "etc/os-release"))
    return {name: value.strip("\"'") for name, value in pairs}


def _json(path: Path) -> dict[str, Any]:
    with suppress(ValueError):
        content = json.loads(_text(path) or "{}")
        return content if isinstance(content, dict) else {}
    return {}


def _names(folder: Path) -> Sequence[str]:
    with suppress(OSError):
        return [entry.name for entry in folder.iterdir()]
    return []


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _run(*command: str) -> str:
    """What a program prints, '' where it is missing or fails."""
    return _ask(*command) or ""


def _ask(*command: str) -> str | None:
    """The same with None where it is missing, fails or takes too long."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        return done.stdout if done.returncode == 0 else None
    return None
