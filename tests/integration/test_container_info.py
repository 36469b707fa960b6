# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The look at a host's engine, on trees that stand for hosts and on this machine, and the role's plan from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.filter.container_plan import container_plan
from ansible_collections.gpurig.llm.plugins.module_utils import container_scan
from ansible_collections.gpurig.llm.plugins.module_utils.container_plan import ARCHITECTURES
from ansible_collections.gpurig.llm.plugins.module_utils.container_scan import apt_sources, running_containers, scan

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


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "sources.list.d/docker.list",
            "deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.asc] https://d.example.org/debian/ bookworm stable",
            [("deb", "https://d.example.org/debian", "bookworm", "/etc/apt/keyrings/docker.asc")],
        ),
        (
            "sources.list.d/nvidia-container-toolkit.list",
            "deb [signed-by=/k.gpg] https://n.example.org/stable/deb/$(ARCH) /\n#deb [signed-by=/k.gpg] https://e /\n",
            [("deb", "https://n.example.org/stable/deb/ARCH", "/", "/k.gpg")],
        ),
        ("sources.list", " deb-src http://d.example.org x main\n", [("deb-src", "http://d.example.org", "x", "")]),
        ("sources.list", "# deb http://d.example.org x main\n", []),
        (
            "sources.list.d/docker.sources",
            "# one\nTypes: deb\nURIs: https://d.example.org/\n https://e.example.org\nSuites: a\n#b\nsigned-by: /k.asc",
            [("deb", "https://d.example.org", "a", "/k.asc"), ("deb", "https://e.example.org", "a", "/k.asc")],
        ),
        (
            "sources.list.d/docker.sources",
            "Enabled: no\nTypes: deb\nURIs: d\nSuites: a\n\nTypes: deb\nURIs: e:/\nSuites: a\nSigned-By:\n -----BEGIN",
            [("deb", "e:", "a", "a key in that file")],
        ),
        ("sources.list.d/gpurig-docker.sources", "Types: deb\nURIs: https://d.example.org\nSuites: a\n", []),
        ("sources.list.d/docker.list.save", "deb https://d.example.org a main\n", []),
    ],
    ids=["list", "toolkit", "source code", "commented out", "deb822", "not enabled", "ours", "not read by apt"],
)
def test_sources_that_apt_reads(
    tmp_path: Path, name: str, text: str, expected: list[tuple[str, str, str, str]]
) -> None:
    write(tmp_path, {f"etc/apt/{name}": text})
    arch = ARCHITECTURES[os.uname().machine]
    found = [(one["type"], one["uri"], one["suite"], one["signed_by"]) for one in apt_sources(tmp_path)]
    assert found == [(kind, uri.replace("ARCH", arch), suite, key) for kind, uri, suite, key in expected]
    assert all(one["file"] == f"/etc/apt/{name}" for one in apt_sources(tmp_path))


def test_a_leftover_list_reaches_the_plan(look: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    line = "deb [signed-by=/k.asc] https://download.docker.com/linux/debian bookworm stable\n"
    files = {"etc/apt/sources.list.d/docker.list": line, "etc/os-release": "ID=debian\nVERSION_ID=12\n"}
    write(tmp_path / "root", files)
    plan = container_plan(look(), {"docker_fingerprints": ["A" * 40]})
    assert (plan["source"], plan["repositories"]) == ("docker", [])
    assert plan["notes"][0].startswith("/etc/apt/sources.list.d/docker.list has ")


@pytest.mark.parametrize(
    ("script", "engine", "elsewhere", "expected"),
    [
        ("echo 0123; echo 4567", "29.1", False, 2),
        ("true", "29.1", True, 0),
        ("exit 1", "29.1", False, 3),
        ("sleep 5", "29.1", False, 3),
        ("exit 1", "29.1", True, 3),
        ("exit 1", "", False, 0),
    ],
    ids=["two", "none", "fails", "does not answer", "elsewhere", "no engine"],
)
def test_containers_of_a_docker_that_does_not_answer_count_as_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, engine: str, elsewhere: bool, expected: int
) -> None:
    (tmp_path / "docker").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(container_scan, "PATIENCE_S", 0.5)
    assert running_containers(engine, 3, elsewhere) == expected
    assert script != "exit 1" or running_containers("29.1", 0, elsewhere) == int(elsewhere)


def test_no_password_is_returned(run_module: RunModule, tmp_path: Path) -> None:
    """Neither of the owner's file nor of the record; a plan that is carried out has them."""
    text = '{"proxies": {"http-proxy": "http://me:hush@proxy:1"}}'
    files = {"etc/docker/daemon.json": text, "record.json": f'{{"daemon": {text}}}'}
    write(tmp_path, files)
    given = {"record": str(tmp_path / "record.json"), "root": str(tmp_path)}
    told = run_module("container_info", given)
    assert told["facts"]["daemon"] == {"proxies": {"http-proxy": "********"}}
    assert "hush" not in json.dumps(told["facts"])
    whole = run_module("container_info", {**given, "unmasked": True})["facts"]
    assert whole["daemon"] == json.loads(text)


def test_the_role_shows_no_task_that_carries_them() -> None:
    """Who asks for everything has no_log; so have the files that hold it, where there is such a thing."""
    folder = Path(__file__).parents[2] / "roles/container_engine/tasks"
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yml")))
    tasks = [
        task for task in text.split("\n\n") if "unmasked:" in task or "daemon_text }}" in task or ".record |" in task
    ]
    assert len(tasks) == 6
    assert all("no_log:" in task for task in tasks)


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
