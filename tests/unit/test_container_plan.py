# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a host to a plan: a table of hosts, what is refused in words, and that no second plan has anything to do.

Sources of the versions in the table: Debian's package index (bookworm docker.io 20.10.24+dfsg1-1+deb12u1,
docker-compose 1.29.2-3; trixie docker.io 26.1.5+dfsg1-9, docker-compose 2.26.1-4), Ubuntu's docker.io of noble
(manpages.ubuntu.com: 26.1.3 in plucky; older ones as somebody may have them), docker/docs install pages for suites and
names, NVIDIA/cloud-native-docs container-toolkit for the toolkit.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.container_plan import (
    DISTRIBUTION_PACKAGES,
    DOCKER_PACKAGES,
    DOCKER_SUITES,
    TOOLKIT_PACKAGES,
    Facts,
    Plan,
    Wishes,
    plan,
    version_tuple,
)
from hypothesis import given
from hypothesis import strategies as st

KEY = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
NVIDIA_KEY = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
WISHES = Wishes(docker_fingerprints=[KEY], nvidia_fingerprints=[NVIDIA_KEY])
BOOKWORM = {"docker.io": "20.10.24+dfsg1-1+deb12u1+b6", "docker-compose": "1.29.2-3"}
TRIXIE = {"docker.io": "26.1.5+dfsg1-9+b9", "docker-cli": "26.1.5+dfsg1-9+b9", "docker-compose": "2.26.1-4"}
JAMMY_OLD = {"docker.io": "20.10.12-0ubuntu4", "docker-compose": "1.29.2-1"}
NOBLE = {"docker.io": "26.1.3-0ubuntu1~24.04.1", "docker-compose-v2": "2.24.6+ds1-0ubuntu2"}
CE = dict.fromkeys(DOCKER_PACKAGES, "5:29.1.3-1~debian.12~bookworm")
TOOLKIT = dict.fromkeys(TOOLKIT_PACKAGES, "1.20.0-1")
DRIVER: dict[str, Any] = {"cards": 2, "driver": "580.95.05"}
OURS: dict[str, Any] = {"owner": "gpurig", "network": "ours"}


def host(distribution: str, release: str, candidates: dict[str, str], **more: Any) -> Facts:
    return Facts(distribution=distribution, release=release, candidates=candidates, **more)


def debian12(**more: Any) -> Facts:
    return host("debian", "12", BOOKWORM, **more)


def debian13(**more: Any) -> Facts:
    return host("debian", "13", TRIXIE, **more)


def ubuntu24(**more: Any) -> Facts:
    return host("ubuntu", "24.04", NOBLE, **more)


def wish(**more: Any) -> Wishes:
    return dataclasses.replace(WISHES, **more)


def trixie_docker(**more: Any) -> Facts:
    """A Debian 13 with somebody else's docker.io and Compose."""
    return debian13(
        **{"installed": dict(TRIXIE), "engine_version": TRIXIE["docker.io"], "compose_version": "2.26.1-4", **more}
    )


def bookworm_docker(**more: Any) -> Facts:
    return debian12(
        **{"installed": dict(BOOKWORM), "engine_version": BOOKWORM["docker.io"], "compose_version": "1.29.2-3", **more}
    )


# id, facts, wishes, source, packages or words of the refusal
ALL_CE = set(DOCKER_PACKAGES)
TABLE: list[tuple[str, Facts, Wishes, str, set[str] | str]] = [
    ("debian 12", debian12(), WISHES, "docker", ALL_CE),
    ("debian 13", debian13(), WISHES, "docker", ALL_CE),
    ("ubuntu 22.04", host("ubuntu", "22.04", JAMMY_OLD), WISHES, "docker", ALL_CE),
    ("ubuntu 24.04", ubuntu24(), WISHES, "docker", ALL_CE),
    ("ubuntu 26.04", host("ubuntu", "26.04", {}), WISHES, "docker", ALL_CE),
    ("arm", debian13(arch="aarch64"), WISHES, "docker", ALL_CE),
    ("apparmor", debian13(apparmor=True), WISHES, "docker", ALL_CE | {"apparmor"}),
    ("debian 12's own", debian12(), wish(source="distribution"), "distribution", "docker.io is 20.10.24"),
    ("debian 13's own", debian13(), wish(source="distribution"), "distribution", set(TRIXIE)),
    ("ubuntu 24.04's own", ubuntu24(), wish(source="distribution"), "distribution", set(NOBLE)),
    (
        "ubuntu 22.04's first own",
        host("ubuntu", "22.04", JAMMY_OLD),
        wish(source="distribution"),
        "distribution",
        "docker-compose-v2 is missing",
    ),
    ("no lists", host("debian", "13", {}, apt_lists=False), wish(source="distribution"), "distribution", set(TRIXIE)),
    ("empty lists", host("debian", "13", {}), wish(source="distribution"), "distribution", "docker.io is missing"),
    ("debian 11", host("debian", "11", {}), WISHES, "docker", "only for debian 12"),
    ("fedora", host("fedora", "43", {}), WISHES, "docker", "Install Docker 26.1 or newer"),
    ("riscv", debian13(arch="riscv64"), WISHES, "docker", "processor riscv64"),
    ("no such source", debian13(), wish(source="snap"), "snap", "container_engine_source: found snap"),
    ("no fingerprint", debian13(), wish(docker_fingerprints=[]), "docker", "container_engine_docker_fingerprints"),
    ("no pool", debian13(), wish(address_pools=["10.0.0.1/8"]), "docker", "found 10.0.0.1/8, needed an IPv4 network"),
    ("small pool", debian13(), wish(address_pools=["10.9.9.0/25"]), "docker", "container_engine_address_pools"),
    ("no branch", debian13(), wish(branch="latest"), "docker", "container_engine_branch: found 'latest'"),
    ("driver", ubuntu24(**DRIVER), WISHES, "docker", ALL_CE | set(TOOLKIT)),
    ("driver, never", ubuntu24(**DRIVER), wish(gpu="never"), "docker", ALL_CE),
    ("cards, no driver yet", ubuntu24(cards=2), WISHES, "docker", ALL_CE),
    ("cards, always", ubuntu24(cards=2), wish(gpu="always"), "docker", ALL_CE | set(TOOLKIT)),
    ("no card, always", ubuntu24(), wish(gpu="always"), "docker", "neither an NVIDIA card"),
    ("no such gpu", ubuntu24(), wish(gpu="yes"), "docker", "container_engine_gpu: found yes"),
    ("no nvidia key", ubuntu24(**DRIVER), wish(nvidia_fingerprints=[]), "docker", "container_engine_nvidia_fingerpr"),
    ("docker.io there", trixie_docker(), WISHES, "adopted", set()),
    ("docker.io there, docker asked", trixie_docker(), wish(source="docker"), "adopted", set()),
    ("the same with consent", trixie_docker(), wish(source="docker", replace=True), "docker", ALL_CE),
    ("docker.io and a driver", trixie_docker(**DRIVER), WISHES, "adopted", set(TOOLKIT)),
    (
        "docker.io without compose",
        trixie_docker(installed={"docker.io": TRIXIE["docker.io"]}, compose_version=""),
        WISHES,
        "adopted",
        {"docker-compose"},
    ),
    (
        "ubuntu's docker.io without compose",
        ubuntu24(installed={"docker.io": NOBLE["docker.io"]}, engine_version=NOBLE["docker.io"]),
        WISHES,
        "adopted",
        {"docker-compose-v2"},
    ),
    ("debian 12's docker.io", bookworm_docker(), WISHES, "adopted", "has Compose 1.29.2-3 only"),
    ("debian 12's and a driver", bookworm_docker(**DRIVER), WISHES, "adopted", "without CDI for containers with cards"),
    ("debian 12's with consent", bookworm_docker(), wish(replace=True), "docker", ALL_CE),
    (
        "docker-ce there",
        debian12(installed=CE, engine_version=CE["docker-ce"], compose_version="2.40.3"),
        WISHES,
        "adopted",
        set(),
    ),
    (
        "old docker-ce and a driver",
        debian12(
            installed={"docker-ce": "5:24.0.7-1"}, engine_version="5:24.0.7-1", compose_version="2.21.0", **DRIVER
        ),
        WISHES,
        "adopted",
        "needs 26.1 or newer",
    ),
    ("snap", ubuntu24(snap=True), wish(replace=True), "adopted", "installed as a snap"),
    ("podman-docker", debian13(installed={"podman-docker": "5.4.2"}), WISHES, "adopted", "docker is podman there"),
    ("podman, consent", debian13(installed={"podman-docker": "5.4.2"}), wish(replace=True), "docker", ALL_CE),
    ("binaries", debian13(engine_version="28.3.1", compose_version="2.39.0"), WISHES, "adopted", set()),
    ("old binaries", debian13(engine_version="20.10.1"), wish(replace=True), "adopted", "the way it was installed"),
    (
        "old toolkit",
        ubuntu24(installed=dict.fromkeys(TOOLKIT, "1.14.3-1"), **DRIVER),
        WISHES,
        "docker",
        "CVE-2025-23266",
    ),
    (
        "old toolkit, consent",
        ubuntu24(installed=dict.fromkeys(TOOLKIT, "1.14.3-1"), **DRIVER),
        wish(replace=True),
        "docker",
        ALL_CE | set(TOOLKIT),
    ),
    (
        "newer toolkit of others",
        ubuntu24(installed=dict.fromkeys(TOOLKIT, "1.21.0-1"), **DRIVER),
        WISHES,
        "docker",
        ALL_CE,
    ),
    ("broken daemon.json", trixie_docker(daemon_problem="line 3 is no JSON"), WISHES, "adopted", "line 3 is no JSON"),
]


@pytest.mark.parametrize(
    ("facts", "wishes", "source", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_table(facts: Facts, wishes: Wishes, source: str, expected: set[str] | str) -> None:
    found = plan(facts, wishes)
    assert found.source == source
    if isinstance(expected, str):
        assert any(expected in words for words in found.refusals), found.refusals
        assert (found.changes, found.install, found.daemon_text) == ((), (), "")
    else:
        assert found.refusals == ()
        assert set(found.packages) == expected
        assert set(found.install) >= {name for name in expected - set(facts.installed) if name not in TOOLKIT}


def test_the_table_is_long_enough_and_says_debian_12_in_full() -> None:
    assert len(TABLE) >= 40
    (words,) = plan(debian12(), wish(source="distribution")).refusals
    assert words == (
        "container_engine_source: distribution: Debian 12's own packages do not do: docker.io is "
        "20.10.24+dfsg1-1+deb12u1+b6 and CDI needs 26.1 or newer; docker-compose is 1.29.2-3 and Compose 2 or newer is "
        "needed. Remedy: source: docker (rig_container_engine.source), Docker's repository has both."
    )


def test_all_refusals_come_together() -> None:
    found = plan(
        debian12(arch="riscv64", daemon_problem="it holds no JSON object"),
        wish(source="distribution", gpu="always"),
    )
    assert len(found.refusals) == 4


def test_a_pod_is_told_so_and_nothing_else() -> None:
    found = plan(debian13(**DRIVER), wish(able=False))
    assert "itself a container" in found.skipped
    assert found == Plan(skipped=found.skipped)


def test_docker_s_repository() -> None:
    (repository,) = plan(debian12(), WISHES).repositories
    assert repository.key_url == "https://download.docker.com/linux/debian/gpg"
    assert repository.fingerprints == (KEY,)
    assert repository.text == (
        "Types: deb\nURIs: https://download.docker.com/linux/debian\nSuites: bookworm\nComponents: stable\n"
        "Architectures: amd64\nSigned-By: /etc/apt/keyrings/gpurig-docker.gpg\n"
    )
    pins = plan(debian12(), WISHES).preferences
    assert "Package: docker-ce docker-ce-cli docker-ce-rootless-extras\nPin: version 5:29.*\nPin-Priority: 990" in pins


def test_the_toolkit_is_one_version_from_nvidia_s_repository() -> None:
    found = plan(ubuntu24(**DRIVER), WISHES)
    repository = found.repositories[1]
    assert "URIs: https://nvidia.github.io/libnvidia-container/stable/deb/amd64\nSuites: /\nArch" in repository.text
    assert {f"{name}=1.20.0-1" for name in TOOLKIT_PACKAGES} <= set(found.install)
    assert found.toolkit


DOCKER_URI = "https://download.docker.com/linux/debian"
TOOLKIT_URI = "https://nvidia.github.io/libnvidia-container/stable/deb/amd64"


def source(uri: str, suite: str, kind: str = "deb") -> dict[str, str]:
    return {"file": "/etc/apt/x.list", "type": kind, "uri": uri, "suite": suite, "signed_by": "/k.asc"}


@pytest.mark.parametrize(
    ("facts", "written", "superseded", "packages"),
    [
        (debian12(), ["gpurig-docker"], [], ALL_CE),
        (debian12(apt_sources=[source(DOCKER_URI, "bookworm")]), [], ["gpurig-docker"], ALL_CE),
        (debian12(apt_sources=[source(DOCKER_URI, "bullseye")]), ["gpurig-docker"], [], ALL_CE),
        (
            debian12(
                installed=CE,
                engine_version=CE["docker-ce"],
                compose_version="2.40",
                apt_sources=[source(DOCKER_URI, "bookworm"), source(TOOLKIT_URI, "/")],
                **DRIVER,
            ),
            [],
            ["gpurig-nvidia-container"],
            set(TOOLKIT),
        ),
        (
            debian12(apt_sources=[source(TOOLKIT_URI, "/")], **DRIVER),
            ["gpurig-docker"],
            ["gpurig-nvidia-container"],
            ALL_CE | set(TOOLKIT),
        ),
    ],
    ids=["none", "leftover docker.list", "of another release", "toolkit beside an adopted docker", "toolkit alone"],
)
def test_a_source_that_is_there_is_used_and_ours_is_not_written(
    facts: Facts, written: list[str], superseded: list[str], packages: set[str]
) -> None:
    """With the same pins, and with words that name the file."""
    found, alone = plan(facts, WISHES), plan(dataclasses.replace(facts, apt_sources=()), WISHES)
    assert [one.name for one in found.repositories] == written
    assert found.superseded == tuple(f"/etc/apt/sources.list.d/{name}.sources" for name in superseded)
    assert set(found.packages) == packages
    assert (found.preferences, found.install, found.hold) == (alone.preferences, alone.install, alone.hold)
    words = [note for note in found.notes if note.startswith("/etc/apt/x.list has ")]
    assert len(words) == len(superseded)
    assert all("signed by /k.asc" in note for note in words)


def test_a_source_without_packages_is_refused() -> None:
    (words,) = plan(debian12(apt_sources=[source(DOCKER_URI, "bookworm", "deb-src")]), WISHES).refusals
    assert words.startswith(f"/etc/apt/x.list: found only deb-src of {DOCKER_URI}")


def test_what_may_be_a_password_is_in_no_words() -> None:
    """It is in the text that is written, and then no diff is shown."""
    proxies = {"http-proxy": "http://me:hush@proxy:3128", "no-proxy": "example.org"}
    found = plan(
        trixie_docker(daemon={"proxies": proxies}), wish(daemon={"proxies": {"http-proxy": "http://x:hush@y"}})
    )
    assert json.loads(found.daemon_text)["proxies"] == proxies
    assert found.private
    assert "hush" not in json.dumps({**found.as_dict(), "daemon_text": ""})
    ours = plan(debian12(), wish(daemon={"registry-mirrors": ["https://me:hush@mirror.example.org"]}))
    assert "hush" not in "".join(ours.changes)
    assert ours.private
    assert not plan(trixie_docker(daemon={"dns": ["192.0.2.1"]}), WISHES).private


def test_what_stands_in_the_way_goes_only_with_consent() -> None:
    without, consent = (
        plan(trixie_docker(), wish(source="docker")),
        plan(trixie_docker(), wish(source="docker", replace=True)),
    )
    assert without.remove == ()
    assert "docker is asked for" in without.waiting[0]
    assert set(consent.remove) == set(TRIXIE)
    assert consent.record["owner"] == "gpurig"
    assert without.record["owner"] == "others"


def test_containers_of_others_keep_their_addresses_and_ports() -> None:
    theirs = trixie_docker(containers=3, running=2, daemon={"data-root": "/srv/docker"})
    cautious = plan(theirs, WISHES)
    settings = json.loads(cautious.daemon_text)
    assert settings["data-root"] == "/srv/docker"
    assert settings["live-restore"] is True
    assert not {"ip", "default-address-pools", "default-network-opts"} & set(settings)
    assert any("This Docker is somebody else's" in words for words in cautious.notes)
    assert cautious.reload_first
    assert "ip" in json.loads(plan(theirs, wish(replace=True)).daemon_text)


NETWORK = {"ip", "default-address-pools", "default-network-opts"}


def test_an_adopted_engine_without_containers_keeps_them_too() -> None:
    """As after docker compose down; a new engine of ours has the settings, and what consent once wrote stays."""
    found = plan(trixie_docker(), WISHES)
    assert not NETWORK & set(json.loads(found.daemon_text))
    (words,) = [note for note in found.notes if "This Docker is somebody else's" in note]
    assert "also while there is no container" in words
    assert "rig_allow_container_engine_change" in words
    assert (found.record["network"], found.reload_first) == ("theirs", False)
    assert set(json.loads(plan(debian13(), WISHES).daemon_text)) >= NETWORK
    ours = carried_out(trixie_docker(), plan(trixie_docker(), wish(replace=True)))
    assert set(ours.daemon or {}) >= NETWORK
    later = plan(ours, WISHES)
    assert (later.changes, later.record["network"]) == ((), "ours")
    rewritten = plan(dataclasses.replace(ours, daemon={"dns": ["192.0.2.1"]}), WISHES)
    assert not NETWORK & set(json.loads(rewritten.daemon_text))


@pytest.mark.parametrize("more", [{"swarm": True}, {"daemon": {"live-restore": False}}], ids=["swarm", "switched off"])
def test_running_containers_that_would_stop_wait_for_consent(more: dict[str, Any]) -> None:
    running = trixie_docker(containers=1, running=1, **more)
    found = plan(running, WISHES)
    assert found.daemon_text == ""
    assert "1 running container(s) would stop" in found.waiting[0]
    assert not any("daemon.json:" in change for change in found.changes)
    assert plan(running, wish(replace=True)).daemon_text


def test_settings_that_dockerd_never_read_are_read_after_all() -> None:
    """A run that was cut off after it wrote them, found by the next one; running containers are kept."""
    first = plan(trixie_docker(), WISHES)
    cut_off = carried_out(trixie_docker(stale=True), first)
    second = plan(cut_off, WISHES)
    assert (second.restart, second.reload_first, second.daemon_text) == (True, False, "")
    assert second.changes == ("restart Docker: it has not read daemon.json since that was written",)
    assert plan(dataclasses.replace(cut_off, running=1), WISHES).reload_first
    assert not plan(dataclasses.replace(cut_off, stale=False), WISHES).restart
    assert not plan(dataclasses.replace(cut_off, record={}), WISHES).restart
    in_swarm = dataclasses.replace(cut_off, running=1, swarm=True, daemon={})
    assert not plan(in_swarm, WISHES).restart
    assert plan(in_swarm, WISHES).waiting


def test_an_old_dockerd_gets_no_key_that_it_does_not_know() -> None:
    old = debian12(installed={"docker-ce": "5:23.0.1-1"}, engine_version="5:23.0.1-1", compose_version="2.16")
    found = plan(old, WISHES)
    assert not {"features", "default-network-opts"} & set(json.loads(found.daemon_text))
    assert found.validates


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"firewall": "ufw"}, "ufw is active"),
        ({"firewall": "firewalld"}, "firewalld is active"),
        ({"firewall": "nftables"}, "flush ruleset"),
        ({"daemon": {"iptables": False}}, "iptables: false stays"),
        ({"daemon": {"log-driver": "journald"}}, "the log driver is journald already"),
        ({"daemon": {"bip": "10.9.0.1/24"}}, "bip 10.9.0.1/24"),
        ({"unit_flags": ["live-restore"]}, "with both dockerd does not start"),
        ({"swarm": True}, "refuses it on a member of a swarm"),
        ({"routes": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]}, "container_engine_address_pools names others"),
        ({"cards": 1}, "1 NVIDIA card(s) and no driver"),
        ({}, "moby/moby#45610"),
    ],
)
def test_remarks(more: dict[str, Any], words: str) -> None:
    found = plan(trixie_docker(**more), wish(replace=True))
    assert any(words in note for note in found.notes), found.notes


def test_our_own_engine_keeps_its_source_until_there_is_consent() -> None:
    ours = trixie_docker(record={**OURS, "source": "distribution", "daemon": {}})
    waiting = plan(ours, wish(source="docker"))
    assert (waiting.source, waiting.remove) == ("distribution", ())
    assert "replaces it" in waiting.waiting[0]
    assert plan(ours, wish(source="docker", replace=True)).source == "docker"


def test_an_upgrade_lets_go_of_the_hold() -> None:
    assert set(plan(debian12(), WISHES).hold) == ALL_CE
    assert plan(debian12(), wish(upgrade=True)).hold == ()


def test_versions() -> None:
    assert version_tuple("5:26.1.5-1~debian.12~bookworm") == (26, 1, 5)
    assert version_tuple("v2.39.1") == (2, 39, 1)
    assert version_tuple("") == ()


# --- the second plan ---


def carried_out(facts: Facts, first: Plan) -> Facts:
    """The host as it is after the plan was applied; a simulation of the role, whose own check is the same plan."""
    versions = (
        {**TRIXIE, **NOBLE, **CE, **TOOLKIT, "apparmor": "4.1"}
        if first.source != "docker"
        else {**TRIXIE, **CE, **TOOLKIT, "apparmor": "4.1"}
    )
    installed = {name: version for name, version in facts.installed.items() if name not in first.remove}
    for package in first.install:
        name, _equals, version = package.partition("=")
        installed[name] = version or versions[name]
    engine = next((installed[name] for name in ("docker-ce", "docker.io") if name in installed), facts.engine_version)
    composes = ("docker-compose-plugin", "docker-compose-v2", "docker-compose")
    compose = next((installed[name] for name in composes if name in installed), facts.compose_version)
    return dataclasses.replace(
        facts,
        installed=installed,
        held=[*facts.held, *first.hold],
        engine_version=engine,
        compose_version=compose,
        daemon=json.loads(first.daemon_text) if first.daemon_text else facts.daemon,
        record=json.loads(json.dumps(first.record)),
        apt_lists=True,
    )


VALUES = st.sampled_from(
    [
        {},
        {"log-driver": "journald"},
        {"log-driver": "local"},
        {"log-opts": {"max-size": "1m"}},
        {"log-opts": {"tag": "x"}, "features": {"buildkit": True}},
        {"ip": "0.0.0.0"},
        {"default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1450"}}},
        {"bip": "10.9.0.1/24"},
        {"live-restore": False},
        {"default-address-pools": [{"base": "10.0.0.0/8", "size": 20}]},
        {"dns": ["192.0.2.1"], "runtimes": {"nvidia": {"path": "nvidia-container-runtime"}}},
    ]
)
HOSTS = st.sampled_from([debian12(), debian13(), ubuntu24(), trixie_docker(), bookworm_docker()])


@given(
    base=HOSTS,
    daemon=st.none() | VALUES,
    containers=st.integers(0, 2),
    running=st.integers(0, 1),
    swarm=st.booleans(),
    flags=st.sampled_from([(), ("log-driver",), ("ip", "live-restore")]),
    driver=st.booleans(),
    source=st.sampled_from(["auto", "docker", "distribution"]),
    replace=st.booleans(),
    cgroupfs=st.booleans(),
)
def test_a_second_plan_is_empty_and_no_key_is_lost(
    base: Facts,
    daemon: dict[str, Any] | None,
    containers: int,
    running: int,
    swarm: bool,
    flags: tuple[str, ...],
    driver: bool,
    source: str,
    replace: bool,
    cgroupfs: bool,
) -> None:
    there = bool(base.engine_version)
    facts = dataclasses.replace(
        base,
        daemon=daemon,
        containers=containers if there else 0,
        running=min(running, containers) if there else 0,
        swarm=swarm and there,
        unit_flags=flags if there else (),
        **(DRIVER if driver else {}),
    )
    wishes = wish(source=source, replace=replace, cgroupfs=cgroupfs)
    first = plan(facts, wishes)
    if first.refusals:
        assert first.changes == ()
        return
    done = carried_out(facts, first)
    second = plan(done, wishes)
    assert second.refusals == ()
    assert second.changes == ()
    assert (second.daemon_text, second.install, second.hold, second.remove) == ("", (), (), ())
    third = plan(dataclasses.replace(done, record=json.loads(json.dumps(second.record))), wishes)
    assert third.record == second.record
    assert leaves(daemon or {}) <= leaves(done.daemon or {})


def leaves(value: Any, path: tuple[str, ...] = ()) -> set[str]:
    """Every path with its value, as text."""
    if isinstance(value, dict) and value:
        return set().union(*(leaves(item, (*path, key)) for key, item in value.items()))
    return {json.dumps([path, value])} if path else set()


def test_every_release_that_is_named_has_packages() -> None:
    assert {distribution for distribution, _release in DOCKER_SUITES} == set(DISTRIBUTION_PACKAGES)
