# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a host is and what the inventory asks to a plan for its container engine, with the reasons. (pure)

Three ways: Docker's own repository; the distribution's packages where they have Compose version 2 and CDI; or the
Docker that is there already, which is adopted. Nothing of somebody else's is replaced or stopped without consent
(`replace`). Sources: docker/docs, content/manuals/engine/install/{debian,ubuntu}.md (packages, suites, what conflicts);
NVIDIA/cloud-native-docs, container-toolkit/{install-guide,release-notes,troubleshooting}.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from .container_daemon import POOLS, Json, Merge, masked, merge, pool_problems, wanted_settings

NETWORK: Final = ("ip", "default-network-opts", "default-address-pools")
DOCKER, DISTRIBUTION, ADOPTED = "docker", "distribution", "adopted"
SOURCES: Final = ("auto", DOCKER, DISTRIBUTION)
GPU: Final = ("auto", "always", "never")
CDI_FLOOR: Final = (26, 1)
"""CDI 0.7, which the toolkit writes, wants Docker 26.1 (release notes of the NVIDIA container toolkit)."""
LOOPBACK_FLOOR: Final = (28,)
"""Before, neighbours in the same network segment reach ports on loopback (moby/moby#45610)."""
REFRESH_FLOOR: Final = (1, 18)
"""Since then the toolkit's own units write the CDI file anew; 1.17.8 closed the last known escape."""
COMPOSE_FLOOR: Final = (2,)
VALIDATE_FLOOR: Final = (23,)
"""Since then dockerd knows --validate."""

# Releases whose suites Docker's repository has (docker/docs install pages).
DOCKER_SUITES: Final[Mapping[tuple[str, str], str]] = {
    ("debian", "12"): "bookworm",
    ("debian", "13"): "trixie",
    ("ubuntu", "22.04"): "jammy",
    ("ubuntu", "24.04"): "noble",
    ("ubuntu", "26.04"): "resolute",
}
ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64"}
DOCKER_PACKAGES: Final = (
    *("docker-ce", "docker-ce-cli", "containerd.io"),
    *("docker-buildx-plugin", "docker-compose-plugin"),
)
DISTRIBUTION_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "debian": ("docker.io", "docker-cli", "docker-compose"),
    "ubuntu": ("docker.io", "docker-compose-v2"),
}
TOOLKIT_PACKAGES: Final = (
    *("nvidia-container-toolkit", "nvidia-container-toolkit-base"),
    *("libnvidia-container-tools", "libnvidia-container1"),
)
# What Docker's documentation has one remove before its own packages are installed.
CONFLICTING: Final = (
    *("docker.io", "docker-cli", "docker-doc", "docker-compose", "docker-compose-v2", "docker-buildx"),
    *("podman-docker", "containerd", "runc", "moby-engine", "moby-cli", "moby-compose"),
    *("moby-buildx", "moby-containerd", "moby-runc"),
)
OTHERS_WITH: Final = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
OUR_SOURCES: Final = ("gpurig-docker.sources", "gpurig-nvidia-container.sources")
WATCHED: Final = tuple(dict.fromkeys((*DOCKER_PACKAGES, *CONFLICTING, *TOOLKIT_PACKAGES, "apparmor")))
"""The packages whose installed version and candidate a plan looks at."""


@dataclass(frozen=True)
class Facts:
    """What was seen of a host; the module container_info tells each of these."""

    distribution: str = ""
    release: str = ""
    arch: str = "x86_64"
    installed: Mapping[str, str] = field(default_factory=dict)  # package -> version
    held: Sequence[str] = ()
    candidates: Mapping[str, str] = field(default_factory=dict)  # package -> version that apt would install
    apt_lists: bool = True  # whether apt knows any package at all
    apt_sources: Sequence[Mapping[str, str]] = ()  # not ours: file, type, uri, suite, signed_by of each
    engine_version: str = ""  # of dockerd, however it came here
    compose_version: str = ""
    snap: bool = False
    daemon: Mapping[str, Any] | None = None  # /etc/docker/daemon.json, None where there is none
    daemon_problem: str = ""
    stale: bool = False  # daemon.json was written after dockerd began
    unit_flags: Sequence[str] = ()
    containers: int = 0
    running: int = 0
    swarm: bool = False
    routes: Sequence[str] = ()
    firewall: str = ""
    apparmor: bool = False
    cards: int = 0
    driver: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wishes:
    """What the inventory asks; the role's variables of the same names."""

    able: bool = True  # the capability container_engine
    source: str = "auto"
    branch: str = "29"
    replace: bool = False
    upgrade: bool = False
    gpu: str = "auto"
    cgroupfs: bool = False
    toolkit_version: str = "1.20.0-1"
    log_max_size: str = "50m"
    log_max_files: int = 3
    address_pools: Sequence[str] = POOLS
    daemon: Mapping[str, Any] = field(default_factory=dict)
    docker_uri: str = "https://download.docker.com/linux"
    docker_fingerprints: Sequence[str] = ()
    nvidia_uri: str = "https://nvidia.github.io/libnvidia-container"
    nvidia_fingerprints: Sequence[str] = ()


@dataclass(frozen=True)
class Repository:
    """A foreign repository: `text` is its .sources file, and the key must have one of the fingerprints."""

    name: str
    key_url: str
    keyring: str
    fingerprints: tuple[str, ...]
    text: str
    path: str


@dataclass(frozen=True)
class Plan:
    """What is to be done, in order: refusals or a reason to do nothing; else repositories to handlers."""

    refusals: tuple[str, ...] = ()
    skipped: str = ""
    source: str = ""
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    repositories: tuple[Repository, ...] = ()
    superseded: tuple[str, ...] = ()  # our files of repositories that apt reads through somebody else's
    preferences: str = ""
    remove: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    install: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    daemon_text: str = ""
    private: bool = False  # daemon.json or the record may hold a password: no diff of them
    validates: bool = False
    restart: bool = False  # although daemon.json is right: dockerd has not read it
    reload_first: bool = False
    toolkit: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For Ansible: plain data."""
        told: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return told


def version_tuple(version: str) -> tuple[int, ...]:
    """(26, 1, 5) of 26.1.5+dfsg1-9+b9 or 5:26.1.5-1~debian.12~bookworm; () of no version."""
    found = re.match(r"(?:\d+:)?v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


@dataclass
class _Draft:
    """Collects while it is planned."""

    refusals: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    repositories: list[Repository] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)
    pins: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def plan(facts: Facts, wishes: Wishes) -> Plan:
    """The plan. With refusals it has nothing else: nothing may be changed then."""
    if not wishes.able:
        return Plan(skipped=NOT_HERE)
    draft = _Draft()
    if wishes.source not in SOURCES:
        draft.refusals.append(f"container_engine_source: found {wishes.source}, needed one of {', '.join(SOURCES)}.")
    if facts.arch not in ARCHITECTURES:
        draft.refusals.append(
            f"processor {facts.arch}: there are packages for {', '.join(ARCHITECTURES)} only. Take another host, or "
            "set rig_container_engine.wanted: false."
        )
    if facts.daemon_problem:
        draft.refusals.append(
            f"/etc/docker/daemon.json: {facts.daemon_problem}. dockerd does not start with it either: repair or remove "
            "it, then run again."
        )
    draft.refusals += pool_problems(wishes.address_pools)
    source = _engine(facts, wishes, draft)
    toolkit = _toolkit(facts, wishes, draft)
    if facts.apparmor and source != ADOPTED:
        draft.packages.append("apparmor")
    if draft.refusals:
        return Plan(refusals=tuple(draft.refusals), source=source)
    daemon, text, restart, reload_first, network = _daemon(facts, wishes, source, draft)
    _remarks(facts, source, draft)
    names = [package.partition("=")[0] for package in draft.packages]
    missing = [name for name in names if name not in facts.installed]
    wrong = [
        package
        for package, name in zip(draft.packages, names, strict=True)
        if name in facts.installed and "=" in package and facts.installed[name] != package.partition("=")[2]
    ]
    hold = [name for name in draft.held if name not in facts.held]
    changes = [
        *(f"remove {name} {facts.installed[name]}" for name in draft.remove),
        *(f"install {package}" for package in draft.packages if package.partition("=")[0] in missing),
        *(f"install {package} in place of {facts.installed[package.partition('=')[0]]}" for package in wrong),
        *(f"hold {name}" for name in hold),
        *(f"daemon.json: {line}" for line in daemon.added),
        *(["restart Docker: it has not read daemon.json since that was written"] if restart else []),
    ]
    record = {
        "owner": _owner(facts, source),
        "source": source,
        "network": network,
        "toolkit": "ours" if toolkit and _toolkit_ours(facts) else "",
        "daemon": daemon.ours,
        "versions": {name: version for name, version in sorted(facts.installed.items()) if name in names},
    }
    return Plan(
        source=source,
        reasons=tuple(draft.reasons),
        notes=(*draft.notes, *daemon.kept),
        waiting=tuple(draft.waiting),
        changes=tuple(changes),
        repositories=tuple(draft.repositories),
        superseded=tuple(draft.superseded),
        preferences="\n".join(draft.pins),
        remove=tuple(draft.remove),
        packages=tuple(names),
        install=tuple(
            package for package in draft.packages if package.partition("=")[0] in missing or package in wrong
        ),
        hold=tuple(hold),
        daemon_text=text,
        private=any(masked(one) != one for one in (dict(facts.daemon or {}), daemon.merged, daemon.ours)),
        validates=version_tuple(facts.engine_version) >= VALIDATE_FLOOR,
        restart=restart,
        reload_first=reload_first,
        toolkit=toolkit,
        record=record,
    )


NOT_HERE: Final = (
    "No container engine here: the capability container_engine is false. A pod is itself a container of its provider, "
    "who runs the engine; a sandbox has no root. The chat page runs as a process there (provider: process). Where "
    "Docker may be installed after all, say so: rig_capabilities: {container_engine: true}."
)


# --- where the engine comes from ---


def _owner(facts: Facts, source: str) -> str:
    return "gpurig" if source != ADOPTED else str(facts.record.get("owner") or "others")


def _origin(facts: Facts) -> str:
    """Whose Docker is installed: a source, snap, podman, other, or '' for none."""
    if facts.snap:
        return "snap"
    if "docker-ce" in facts.installed:
        return DOCKER
    if "docker.io" in facts.installed:
        return DISTRIBUTION
    if "podman-docker" in facts.installed:
        return "podman"
    return "other" if facts.engine_version else ""


def _engine(facts: Facts, wishes: Wishes, draft: _Draft) -> str:
    """Fill in where the engine comes from; returns its source."""
    origin = _origin(facts)
    ours = facts.record.get("owner") == "gpurig" and origin == facts.record.get("source")
    asked = wishes.source in ("auto", origin)
    if origin and ours and (asked or not wishes.replace):
        if not asked:
            draft.waiting.append(f"source {wishes.source} is asked for and {_NAMES[origin]} is installed: {CONSENT}.")
        return _install(origin, facts, wishes, draft)
    if not origin:
        return _install(DOCKER if wishes.source == "auto" else wishes.source, facts, wishes, draft)
    return _adopt(origin, facts, wishes, draft)


_NAMES: Final[Mapping[str, str]] = {
    DOCKER: "Docker from Docker's repository",
    DISTRIBUTION: "the distribution's docker.io",
    "other": "a Docker that neither Docker's nor the distribution's packages brought",
}

CONSENT: Final = (
    "container_engine_replace: true (rig_allow_container_engine_change) replaces it; images, volumes and containers in "
    "/var/lib/docker stay, running containers stop meanwhile"
)


def _adopt(origin: str, facts: Facts, wishes: Wishes, draft: _Draft) -> str:
    """An engine of somebody else: use it where it is good enough, replace it only with consent."""
    if origin == "snap":
        draft.refusals.append(
            "Docker is installed as a snap. It reads another daemon.json and sees neither CDI files nor most of the "
            "host's directories. Its images and volumes go with it, so you must decide: save them, then "
            "'snap remove docker', and run again."
        )
        return ADOPTED
    problems = [_podman_words()] if origin == "podman" else _too_old(origin, facts, wishes)
    other = wishes.source not in ("auto", origin)
    if (problems or other) and wishes.replace and origin != "other":
        source = DOCKER if wishes.source == "auto" else wishes.source
        draft.remove += _in_the_way(source, facts)
        draft.reasons.append(f"replaced with consent: {'; '.join(problems) or f'source {source} is asked for'}")
        return _install(source, facts, wishes, draft)
    if problems:
        remedy = CONSENT if origin != "other" else "remove it the way it was installed, then run again"
        draft.refusals.append(f"{'; '.join(problems)}. Remedy: {remedy}.")
        return ADOPTED
    if other:
        draft.waiting.append(f"source {wishes.source} is asked for and {_NAMES[origin]} is installed: {CONSENT}.")
    draft.reasons.append(f"{_NAMES[origin]} {facts.engine_version} is there already and good enough: adopted")
    if version_tuple(facts.compose_version) < COMPOSE_FLOOR:
        draft.packages += _compose_for(origin, facts)
    return ADOPTED


def _podman_words() -> str:
    return "podman-docker is installed: the command docker is podman there, which has no daemon and no Compose plugin"


def _too_old(origin: str, facts: Facts, wishes: Wishes) -> list[str]:
    """Why an installed engine cannot be used, in words."""
    found = []
    version = version_tuple(facts.engine_version)
    if _gpu_wanted(facts, wishes) and version < CDI_FLOOR:
        found.append(
            f"{_NAMES[origin]} is {facts.engine_version}: without CDI for containers with cards, which needs 26.1 or "
            "newer"
        )
    compose = version_tuple(facts.compose_version)
    if compose < COMPOSE_FLOOR and not _compose_for(origin, facts):
        had = f"Compose {facts.compose_version} only" if compose else "no Compose"
        found.append(f"{_NAMES[origin]} has {had}, version 2 is needed, and apt has none that goes with it")
    return found


def _compose_for(origin: str, facts: Facts) -> list[str]:
    """The package with Compose version 2 that goes with an installed engine, as far as apt has one."""
    names = {DOCKER: ["docker-compose-plugin"], DISTRIBUTION: ["docker-compose-v2", "docker-compose"]}
    for name in names.get(origin, []):
        if version_tuple(facts.candidates.get(name, "")) >= COMPOSE_FLOOR:
            return [name]
    return []


def _in_the_way(source: str, facts: Facts) -> list[str]:
    return [name for name in (CONFLICTING if source == DOCKER else OTHERS_WITH) if name in facts.installed]


def _install(source: str, facts: Facts, wishes: Wishes, draft: _Draft) -> str:
    key = (facts.distribution, facts.release)
    if key not in DOCKER_SUITES:
        known = ", ".join(f"{name} {release}" for name, release in DOCKER_SUITES)
        draft.refusals.append(
            f"{facts.distribution or 'this distribution'} {facts.release}: no packages are known for it, only for "
            f"{known}. Install Docker 26.1 or newer with Compose 2 yourself, then it is adopted."
        )
        return source
    if source == DISTRIBUTION:
        _from_distribution(facts, draft)
    else:
        _from_docker(facts, wishes, draft)
    return source


def _from_distribution(facts: Facts, draft: _Draft) -> None:
    names = DISTRIBUTION_PACKAGES[facts.distribution]
    engine, compose = facts.candidates.get("docker.io", ""), facts.candidates.get(names[-1], "")
    label = f"{facts.distribution.capitalize()} {facts.release}"
    if not facts.apt_lists:
        draft.notes.append("apt has no package lists yet; which version the distribution has is looked at then")
    else:
        lacks = []
        if version_tuple(engine) < CDI_FLOOR:
            lacks.append(f"docker.io is {engine or 'missing'} and CDI needs 26.1 or newer")
        if version_tuple(compose) < COMPOSE_FLOOR:
            lacks.append(f"{names[-1]} is {compose or 'missing'} and Compose 2 or newer is needed")
        if lacks:
            draft.refusals.append(
                f"container_engine_source: distribution: {label}'s own packages do not do: {'; '.join(lacks)}. "
                "Remedy: source: docker (rig_container_engine.source), Docker's repository has both."
            )
    present = [name for name in names if name in facts.installed or facts.candidates.get(name) or not facts.apt_lists]
    draft.packages += present
    draft.reasons.append(
        f"{label}'s own packages: they have Compose 2 and CDI, and their security updates come with the "
        "distribution's, so they are not held"
    )


def _from_docker(facts: Facts, wishes: Wishes, draft: _Draft) -> None:
    suite = DOCKER_SUITES[facts.distribution, facts.release]
    if not wishes.docker_fingerprints:
        draft.refusals.append(
            "container_engine_docker_fingerprints: empty, so no key could be trusted. Write the fingerprint that "
            "Docker publishes for its repository."
        )
    if not re.fullmatch(r"\d+(\.\d+)*", wishes.branch):
        draft.refusals.append(f"container_engine_branch: found '{wishes.branch}', needed a number such as 29 or 29.1.")
    uri = f"{wishes.docker_uri}/{facts.distribution}"
    ours = _repository("gpurig-docker", uri, suite, "stable", f"{uri}/gpg", wishes.docker_fingerprints, facts.arch)
    _have(ours, uri, suite, facts, draft)
    draft.pins += _pin("docker-ce docker-ce-cli docker-ce-rootless-extras", f"5:{wishes.branch}.*")
    draft.packages += DOCKER_PACKAGES
    if not wishes.upgrade:
        draft.held += DOCKER_PACKAGES
    draft.reasons.append(
        f"Docker's own repository, branch {wishes.branch}: the version that is resolved is recorded and held; "
        "container_engine_upgrade: true moves it within the branch"
    )


def _have(ours: Repository, uri: str, suite: str, facts: Facts, draft: _Draft) -> None:
    """Plan our file, unless apt reads that repository already: with two values of Signed-By it reads none at all."""
    same = [one for one in facts.apt_sources if (one["uri"], one["suite"]) == (uri.rstrip("/"), suite)]
    theirs = next((one for one in same if one["type"] == "deb"), None)
    if theirs:
        draft.superseded.append(ours.path)
        draft.notes.append(
            f"{theirs['file']} has {uri} already, signed by {theirs['signed_by'] or 'any key that apt trusts'}: used "
            "as it is, its key is not checked here and ours is not written, since apt refuses every list when one "
            "address has two keys. Remove that file, and the next run writes ours."
        )
    elif same:
        draft.refusals.append(
            f"{same[0]['file']}: found only deb-src of {uri}, and with our source beside it apt would read no list at "
            "all. Remove that line or add its deb line, then run again."
        )
    else:
        draft.repositories.append(ours)


def _repository(
    name: str, uri: str, suite: str, component: str, key_url: str, fingerprints: Sequence[str], arch: str
) -> Repository:
    keyring = f"/etc/apt/keyrings/{name}.gpg"
    lines = [
        "Types: deb",
        f"URIs: {uri}",
        f"Suites: {suite}",
        *([f"Components: {component}"] if component else []),
        f"Architectures: {ARCHITECTURES.get(arch, arch)}",
        f"Signed-By: {keyring}",
    ]
    path = f"/etc/apt/sources.list.d/{name}.sources"
    return Repository(name, key_url, keyring, tuple(fingerprints), "\n".join(lines) + "\n", path)


def _pin(packages: str, version: str) -> list[str]:
    return [f"Package: {packages}", f"Pin: version {version}", "Pin-Priority: 990", ""]


# --- cards ---


def _gpu_wanted(facts: Facts, wishes: Wishes) -> bool:
    return wishes.gpu == "always" or (wishes.gpu == "auto" and bool(facts.driver))


def _toolkit_ours(facts: Facts) -> bool:
    return "nvidia-container-toolkit-base" not in facts.installed or facts.record.get("toolkit") == "ours"


def _toolkit(facts: Facts, wishes: Wishes, draft: _Draft) -> bool:
    """Fill in the NVIDIA container toolkit; returns whether it is wanted."""
    if wishes.gpu not in GPU:
        draft.refusals.append(f"container_engine_gpu: found {wishes.gpu}, needed one of {', '.join(GPU)}.")
    if not _gpu_wanted(facts, wishes):
        if facts.cards and wishes.gpu == "auto":
            draft.notes.append(
                f"{facts.cards} NVIDIA card(s) and no driver: the container toolkit comes with the next run after the "
                "driver"
            )
        return False
    if not facts.cards and not facts.driver:
        draft.refusals.append(
            "container_engine_gpu: always, and this host has neither an NVIDIA card on its PCI bus nor a driver. Write "
            "auto or never, or look at the passthrough of the card."
        )
        return False
    installed = facts.installed.get("nvidia-container-toolkit-base", "")
    if not _toolkit_ours(facts) and not (wishes.replace and version_tuple(installed) < REFRESH_FLOOR):
        if version_tuple(installed) < REFRESH_FLOOR:
            draft.refusals.append(
                f"nvidia-container-toolkit {installed} is installed, not by us: it has known ways out of a container "
                "(CVE-2025-23266 and older) and does not keep its CDI file up to date, which 1.18 does. Update it, or "
                "let container_engine_replace: true (rig_allow_container_engine_change) do so."
            )
        else:
            draft.reasons.append(f"nvidia-container-toolkit {installed} is there already: adopted")
        return True
    if not wishes.nvidia_fingerprints:
        draft.refusals.append(
            "container_engine_nvidia_fingerprints: empty, so no key could be trusted. Write the fingerprint that "
            "NVIDIA publishes for its container toolkit."
        )
    uri = f"{wishes.nvidia_uri}/stable/deb/{ARCHITECTURES.get(facts.arch, facts.arch)}"
    key_url = f"{wishes.nvidia_uri}/gpgkey"
    ours = _repository("gpurig-nvidia-container", uri, "/", "", key_url, wishes.nvidia_fingerprints, facts.arch)
    _have(ours, uri, "/", facts, draft)
    draft.pins += _pin(" ".join(TOOLKIT_PACKAGES), wishes.toolkit_version)
    draft.packages += [f"{name}={wishes.toolkit_version}" for name in TOOLKIT_PACKAGES]
    draft.held += TOOLKIT_PACKAGES
    draft.reasons.append(
        f"NVIDIA container toolkit {wishes.toolkit_version}, all four packages: a mixture of versions does not work; "
        "its units write the CDI file again when the driver changes"
    )
    return True


# --- daemon.json and remarks ---


def _daemon(facts: Facts, wishes: Wishes, source: str, draft: _Draft) -> tuple[Merge, str, bool, bool, str]:
    """(the merge, its text where it differs, restart where not, reload before, whose networks: ours or theirs)."""
    recorded = facts.record.get("daemon") or {}
    existing: Json = dict(facts.daemon or {})
    written = facts.record.get("network") == "ours" and any(
        key in existing and existing[key] == recorded.get(key) for key in NETWORK
    )
    theirs = facts.record.get("network") == "theirs" or (source == ADOPTED and not written)
    cautious = theirs and not wishes.replace
    version = version_tuple(facts.engine_version) if not draft.remove else ()
    wanted, notes = wanted_settings(
        version=version,
        existing=existing,
        recorded=recorded,
        flags=facts.unit_flags,
        routes=facts.routes,
        cautious=cautious,
        swarm=facts.swarm,
        log_max_size=wishes.log_max_size,
        log_max_files=wishes.log_max_files,
        pools=wishes.address_pools,
        cgroupfs=wishes.cgroupfs,
        more=wishes.daemon,
    )
    merged = merge(existing, wanted, recorded)
    network = "theirs" if cautious else "ours"
    restart = merged.merged == existing and facts.stale and bool(facts.record)  # a run of ours was cut off
    if merged.merged == existing and not restart:
        draft.notes += notes
        return merged, "", False, False, network
    survives = merged.merged.get("live-restore") is True or "live-restore" in facts.unit_flags
    if facts.running and not wishes.replace and (not survives or (wishes.cgroupfs and _new_exec(existing, merged))):
        draft.waiting.append(
            f"daemon.json is left as it is: a new one needs a restart of Docker, and {facts.running} running "
            "container(s) would stop with it. container_engine_replace: true (rig_allow_container_engine_change) "
            "allows it."
        )
        return Merge(existing, recorded), "", False, False, str(facts.record.get("network") or network)
    draft.notes += notes
    if facts.containers and "ip" in merged.merged and "ip" not in existing:
        draft.notes.append(
            "Networks that exist keep their addresses and where they publish: make them anew ('docker compose down' "
            "and 'up'). The default bridge takes both when Docker starts while no container runs."
        )
    text = "" if restart else json.dumps(merged.merged, indent=2, ensure_ascii=False) + "\n"
    reload_first = bool(facts.running) and survives and (restart or existing.get("live-restore") is not True)
    return merged, text, restart, reload_first, network


def _new_exec(existing: Mapping[str, Any], merged: Merge) -> bool:
    return bool(merged.merged.get("exec-opts") != existing.get("exec-opts"))


def _remarks(facts: Facts, source: str, draft: _Draft) -> None:
    version = version_tuple(facts.engine_version or facts.candidates.get("docker.io", ""))
    if source != DOCKER and version and version < LOOPBACK_FLOOR:
        draft.notes.append(
            f"Docker {'.'.join(map(str, version))}: before 28 a neighbour in the same network segment can reach ports "
            "that are published on loopback (moby/moby#45610). On a network that you do not trust take source: docker."
        )
    if facts.firewall in ("ufw", "firewalld"):
        draft.notes.append(
            f"{facts.firewall} is active and does not see published ports: Docker's rules come before its own. They "
            "stay on loopback unless a container names an address; filter such a one in the chain DOCKER-USER."
        )
    if facts.firewall == "nftables":
        draft.notes.append(
            "nftables.service is active: a 'flush ruleset' in its file also deletes Docker's rules whenever it is "
            "loaded. Restart Docker after it, or flush your own tables only."
        )
    if (facts.daemon or {}).get("iptables") is False:
        draft.notes.append(
            "iptables: false stays: Docker sets no rule, so published ports and outgoing traffic are yours"
        )
