# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How firewalls are read and told, with programs in the place of ufw, nft, systemctl and others that print what the
real ones printed and write down what they were told. The real ones are in molecule/publish.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import cli, firewall_host, firewall_plan
from ansible_collections.gpurig.llm.plugins.module_utils.firewall_host import FirewallHostError, apply, give_back, look
from ansible_collections.gpurig.llm.plugins.module_utils.firewall_plan import plan

HOME = "192.168.1.0/24"
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
    {
        "ifname": "eth0",
        "addr_info": [
            {"local": "192.168.1.5", "prefixlen": 24, "scope": "global"},
            {"local": "fd00::5", "prefixlen": 64, "scope": "global", "temporary": True},
            {"local": "fe80::1", "prefixlen": 64, "scope": "link"},
        ],
    },
    {"ifname": "wg-work", "addr_info": [{"local": "10.8.0.6", "prefixlen": 16, "scope": "global"}]},
    {
        "ifname": "work",
        "linkinfo": {"info_kind": "tun", "info_data": {"type": "tun"}},
        "addr_info": [{"local": "10.9.0.6", "prefixlen": 16, "scope": "global"}],
    },
    {"ifname": "docker0", "addr_info": [{"local": "172.17.0.1", "prefixlen": 16, "scope": "global"}]},
]
UNIT = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead", "NeedDaemonReload": "no"}
UNIT |= {"UnitFileState": "disabled", "Result": "success"}
STATUS = "Status: active\nLogging: on (low)\nDefault: deny (incoming), allow (outgoing), deny (routed)\n"
ADDED = "Added user rules (see 'ufw status' for running firewall):\nufw allow 22/tcp comment 'theirs'\n"
OURS = f"ufw allow from {HOME} to any port 8080 proto tcp comment 'gpurig'\n"
TABLE: dict[str, Any] = {
    "nftables": [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": "inet", "name": "gpurig"}}]
}


@dataclass
class Programs:
    """A folder with programs; each prints a file by its words or its name, and writes its words down."""

    bin: Path

    def put(self, name: str, **answers: str) -> None:
        """`answers`: first word (with _ for -) -> what it prints, `default` for all others."""
        for word, text in answers.items():
            (self.bin / f"{name}.{word}.txt").write_text(text, encoding="utf-8")
        program = self.bin / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {self.bin}/told\nword=$(echo "$1" | sed "s/^-*//; s/-/_/g")\n'
            f"for file in {self.bin}/{name}.$word.txt {self.bin}/{name}.default.txt; do\n"
            '[ -f "$file" ] && exec cat "$file"\ndone\nexit 0\n',
            encoding="utf-8",
        )
        program.chmod(0o755)

    def told(self) -> list[str]:
        """What they were told since the last look, without what only asks."""
        lines = (self.bin / "told").read_text(encoding="utf-8").splitlines()
        (self.bin / "told").unlink()
        asks = ("ufw status", "ufw show", "nft --json", "systemctl show", "ip ", "docker ps", "firewall-cmd ")
        return [line for line in lines if not line.startswith(asks)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A host with nftables, as root."""
    made = Programs(tmp_path / "bin")
    made.bin.mkdir()
    (tmp_path / "etc").mkdir()
    path = f"{made.bin}:/usr/bin:/bin"
    monkeypatch.setattr(firewall_host, "_PATH", path)
    monkeypatch.setattr(firewall_host.shutil, "which", lambda name, **_options: _found(made.bin / name))
    monkeypatch.setattr(firewall_host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(firewall_host, "paths", lambda *_config: _paths(tmp_path))
    monkeypatch.setattr(firewall_plan, "paths", lambda *_config: _paths(tmp_path))
    monkeypatch.setenv("PATH", path)
    made.put("ip", default=json.dumps(ADDRESSES))
    made.put("nft", json=json.dumps({"nftables": []}))
    made.put("systemctl", show="".join(f"{name}={value}\n" for name, value in UNIT.items()))
    return made


def _found(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _paths(folder: Path) -> tuple[str, str, str]:
    etc = f"{folder}/etc"
    return f"{etc}/firewall.nft", f"{etc}/gpurig-firewall.service", f"{etc}/nftables.service.d/gpurig.conf"


def test_a_host_with_nftables(programs: Programs, tmp_path: Path) -> None:
    facts = look(str(tmp_path / "etc"))
    assert (facts.addresses, facts.ufw, facts.nft) == (("192.168.1.5/24",), "", str(programs.bin / "nft"))
    assert facts.tunnels == ("10.8.0.6/16", "10.9.0.6/16")
    programs.told()
    made = plan(facts, str(tmp_path / "etc"), 8080)
    apply(made.changes)
    table, unit, addition = (Path(path) for path in _paths(tmp_path))
    assert f"ip saddr {{ {HOME} }} accept" in table.read_text(encoding="utf-8")
    assert f"ExecStart={facts.nft} -f {table}" in unit.read_text(encoding="utf-8")
    assert f"ExecStartPost=-+{facts.nft} -f {table}" in addition.read_text(encoding="utf-8")
    assert programs.told() == [
        "systemctl daemon-reload",
        "systemctl enable gpurig-firewall.service",
        "systemctl start gpurig-firewall.service",
    ]
    running = {**UNIT, "ActiveState": "active", "UnitFileState": "enabled"}
    programs.put("systemctl", show="".join(f"{name}={value}\n" for name, value in running.items()))
    programs.put("nft", json=json.dumps(TABLE))
    apply(plan(look(str(tmp_path / "etc")), str(tmp_path / "etc"), 8080).changes)
    assert programs.told()[-1] == "systemctl reload gpurig-firewall.service", "a restart would take the page along"
    give_back(str(tmp_path / "etc"))
    assert programs.told() == [
        "systemctl disable gpurig-firewall.service",
        "systemctl daemon-reload",
        "systemctl stop gpurig-firewall.service",
        "nft delete table inet gpurig",
        *["systemctl daemon-reload"] * 3,
    ]
    assert not table.exists()
    assert not unit.exists()
    assert not addition.parent.exists()


def test_a_host_with_ufw(programs: Programs, tmp_path: Path) -> None:
    programs.put("ufw", status=STATUS, show=ADDED)
    config = str(tmp_path / "etc")
    facts = look(config)
    assert (facts.ufw, facts.ufw_rules) == ("active", ())
    programs.told()
    apply(plan(facts, config, 8080).changes)
    told = programs.told()
    assert told[-2:] == [
        "systemctl start gpurig-firewall.service",
        f"ufw allow proto tcp from {HOME} to any port 8080 comment gpurig",
    ]
    programs.put("ufw", show=ADDED + OURS)
    assert [change.act for change in plan(look(config), config, 8080).changes] == ["load"]
    programs.told()
    give_back(config)
    assert programs.told()[0] == f"ufw delete allow proto tcp from {HOME} to any port 8080"


@pytest.mark.parametrize("comment", ["", " comment 'theirs'"])
def test_an_equal_rule_of_theirs_is_left_alone(programs: Programs, tmp_path: Path, comment: str) -> None:
    programs.put("ufw", status=STATUS, show=ADDED + OURS.replace(" comment 'gpurig'", comment))
    config = str(tmp_path / "etc")
    apply(plan(look(config), config, 8080).changes)
    give_back(config)
    assert [line for line in programs.told() if line.startswith("ufw")] == []


def test_where_nothing_of_ours_is_nothing_is_asked_for_a_removal(programs: Programs, tmp_path: Path) -> None:
    for name in ("ufw", "nft", "systemctl", "ip"):
        programs.put(name)
        (programs.bin / name).write_text(f"#!/bin/sh\necho {name} >> {programs.bin}/told\nexit 3\n", encoding="utf-8")
    give_back(str(tmp_path / "etc"))
    assert not (programs.bin / "told").exists()
    Path(_paths(tmp_path)[1]).touch()
    with pytest.raises(FirewallHostError, match="ufw status failed with 3"):
        give_back(str(tmp_path / "etc"))


def test_what_else_is_seen(programs: Programs, tmp_path: Path) -> None:
    programs.put("ufw", status="Status: inactive\n", show=ADDED)
    programs.put("firewall-cmd", state="running\n", list_rich_rules="rule one\nrule two\n")
    programs.put("docker", ps="theirs\t0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 9000/tcp\nshy\t127.0.0.1:1->1/tcp\n")
    facts = look(str(tmp_path / "etc"))
    assert (facts.ufw, facts.firewalld, facts.firewalld_rules) == ("inactive", True, ("rule one", "rule two"))
    assert facts.published == (("theirs", "0.0.0.0:8080"), ("theirs", "[::]:8080"), ("shy", "127.0.0.1:1"))


def test_a_program_that_fails_is_an_error_in_words(programs: Programs, tmp_path: Path) -> None:
    (programs.bin / "nft").write_text("#!/bin/sh\necho 'no permission' >&2\nexit 3\n", encoding="utf-8")
    with pytest.raises(FirewallHostError, match="nft --json list ruleset failed with 3: no permission"):
        look(str(tmp_path / "etc"))
    programs.put("nft", json="what?")
    with pytest.raises(FirewallHostError, match="printed no rules: 'what"):
        look(str(tmp_path / "etc"))
    (programs.bin / "nft").unlink()
    assert (look(str(tmp_path / "etc")).nft, look(str(tmp_path / "etc")).ruleset) == ("", [])


def test_without_root_or_systemd_nothing_is_asked(programs: Programs, tmp_path: Path) -> None:
    assert look(str(tmp_path / "etc"), "supervisord").service_manager == "supervisord"
    assert programs.told() == []


def test_an_uninstall_goes_on_when_a_rule_stays(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs.bin / "nft").write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    Path(_paths(tmp_path)[0]).touch()
    cli._give_back_rules(str(tmp_path / "etc"))
    assert "a firewall rule of ours stays: nft --json" in capsys.readouterr().err


# --- the module ------------------------------------------------------------------------------------------------------


def rig(tmp_path: Path, manager: str) -> dict[str, Any]:
    return {"service_manager": manager, "can_install_packages": False, "paths": {"config": str(tmp_path)}}


def test_a_pod_is_refused_in_words(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    done = run_module("publish_port", {"port": 8080, "rig": rig(tmp_path, "supervisord")})
    assert done["failed"]
    assert "the provider's proxy publishes a port" in done["msg"]
    assert "nothing was changed" in done["msg"]


def test_where_nothing_is_published_nothing_changes(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    done = run_module("publish_port", {"state": "absent", "rig": rig(tmp_path, "supervisord")})
    assert (done["changed"], done["changes"], done["origins"]) == (False, [], [])
