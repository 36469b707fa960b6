# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The look at a host's engine, on trees that stand for hosts and on this machine, and the role's plan from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.filter.container_plan import container_plan
from ansible_collections.gpurig.llm.plugins.module_utils.container_scan import scan

RunModule = Callable[..., dict[str, Any]]
STATUS = """\
Package: docker.io
Status: install ok installed
Version: 26.1.5+dfsg1-9+b9

Package: docker-compose
Status: hold ok installed
Version: 2.26.1-4

Package: containerd
Status: deinstall ok config-files
Version: 1.7.24

Package: bash
Status: install ok installed
Version: 5.2
"""
ROUTES = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
eth0\t00000000\t0158580A\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t0058580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
br-0123456789ab\t0000C90A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""
UNIT = """\
[Service]
ExecStart=/usr/sbin/dockerd -H fd:// \\
  --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write files below a root and return the facts."""

    def run(**files: str) -> dict[str, Any]:
        root = tmp_path / "root"
        write(root, {name.replace("__", "/").replace("_json", ".json"): text for name, text in files.items()})
        seen = scan(str(root / "record.json"), str(root), str(root / "sys"), str(root / "proc"))
        return dict(json.loads(json.dumps(asdict(seen))))

    return run


def test_an_empty_tree_has_nothing(look: Callable[..., dict[str, Any]]) -> None:
    facts = look()
    assert (facts["distribution"], facts["installed"], facts["daemon"], facts["record"]) == ("", {}, None, {})
    assert (facts["apt_lists"], facts["cards"], facts["containers"], facts["firewall"]) == (False, 0, 0, "")


def test_a_host_with_docker(look: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    write(
        tmp_path / "root",
        {
            "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian"\n',
            "var/lib/dpkg/status": STATUS,
            "etc/docker/daemon.json": '{"data-root": "/srv/docker"}',
            "srv/docker/containers/0123/config.v2.json": "{}",
            "srv/docker/swarm/docker-state.json": "{}",
            "proc/net/route": ROUTES,
            "usr/lib/systemd/system/docker.service": UNIT,
            "etc/default/docker": 'DOCKER_OPTS="--log-driver=journald"\n#DOCKER_OPTS="--ip=1.2.3.4"\n',
            "var/lib/apt/lists/deb_Packages": "",
            "etc/ufw/ufw.conf": "ENABLED=yes\n",
            "sys/module/apparmor/parameters/enabled": "Y\n",
            "sys/module/nvidia/version": "580.95.05\n",
            "record.json": '{"owner": "others"}',
        },
    )
    facts = look()
    assert facts["installed"] == {"docker.io": "26.1.5+dfsg1-9+b9", "docker-compose": "2.26.1-4"}
    assert facts["held"] == ["docker-compose"]
    assert (facts["engine_version"], facts["compose_version"]) == ("26.1.5+dfsg1-9+b9", "2.26.1-4")
    assert (facts["containers"], facts["swarm"], facts["daemon"]) == (1, True, {"data-root": "/srv/docker"})
    assert facts["routes"] == ["10.88.0.0/16"]
    assert facts["unit_flags"] == ["containerd", "log-driver"]
    assert (facts["firewall"], facts["apparmor"], facts["driver"]) == ("ufw", True, "580.95.05")
    assert facts["record"] == {"owner": "others"}
    assert container_plan(facts, {"nvidia_fingerprints": ["A" * 40]})["source"] == "adopted"


def test_a_drop_in_replaces_the_unit_s_command(look: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    drop_in = "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd --ip 127.0.0.1 --live-restore\n"
    write(
        tmp_path / "root",
        {"etc/systemd/system/docker.service": UNIT, "etc/systemd/system/docker.service.d/x.conf": drop_in},
    )
    assert look()["unit_flags"] == ["ip", "live-restore"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1,}', "line 1 is no JSON"),
        ("[]", "it holds no JSON object"),
        ("{}", ""),
        ("", ""),
    ],
)
def test_daemon_json_that_dockerd_would_not_read(
    look: Callable[..., dict[str, Any]], tmp_path: Path, text: str, words: str
) -> None:
    write(tmp_path / "root", {"etc/docker/daemon.json": text})
    facts = look()
    assert words in facts["daemon_problem"]
    assert (facts["daemon"] == {}) == (not words)


@pytest.mark.parametrize(("service", "found"), [("firewalld", "firewalld"), ("nftables", "nftables")])
def test_other_firewalls(look: Callable[..., dict[str, Any]], tmp_path: Path, service: str, found: str) -> None:
    write(tmp_path / "root", {f"etc/systemd/system/multi-user.target.wants/{service}.service": ""})
    assert look()["firewall"] == found


def test_docker_of_other_makers(look: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    write(
        tmp_path / "root",
        {"snap/bin/docker": "", "var/lib/dpkg/status": STATUS.replace("docker.io", "docker-ce"), "record.json": "["},
    )
    facts = look()
    assert (facts["snap"], facts["record"]) == (True, {})
    assert facts["engine_version"] == "26.1.5+dfsg1-9+b9"


def test_this_machine(run_module: RunModule, tmp_path: Path) -> None:
    """Whatever it is: programs are asked, nothing fails, and a plan comes out."""
    told = run_module("container_info", {"record": str(tmp_path / "none.json")}, check=True)
    facts = told["facts"]
    assert facts == json.loads(json.dumps(asdict(scan(str(tmp_path / "none.json")))))
    assert (told["changed"], bool(facts["arch"])) == (False, True)
    plan = container_plan(facts, {"docker_fingerprints": ["A" * 40], "nvidia_fingerprints": ["A" * 40]})
    assert json.dumps(plan)


def test_the_filter_names_what_it_does_not_know() -> None:
    with pytest.raises(AnsibleFilterError, match="facts has no bogus"):
        container_plan({"bogus": 1}, {})
    with pytest.raises(AnsibleFilterError, match="wishes is a mapping"):
        container_plan({}, [])
