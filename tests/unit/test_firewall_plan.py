# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a host's firewalls to the rules that are needed: a table of hosts, and other people's chains as nft lists them.

The rules in RULES were printed by `nft --json list ruleset` of nftables 1.0.6 on Debian 12.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.firewall_plan import (
    HEADER,
    Change,
    Facts,
    FirewallError,
    Plan,
    addition_text,
    connected,
    is_loaded,
    origins,
    parse_networks,
    paths,
    plan,
    reachable,
    table_text,
    ufw_rules,
    ufw_words,
    unit_text,
)

CONFIG = "/etc/gpurig"
TABLE_FILE, UNIT_FILE, ADDITION_FILE = paths(CONFIG)
HOME = "192.168.1.0/24"
RICH = f'rule family="ipv4" source address="{HOME}" port port="8080" protocol="tcp" accept'
BARE = Facts(addresses=("192.168.1.5/24", "203.0.113.7/24"), nft="/usr/sbin/nft")
UFW = replace(BARE, ufw="active")
NEW = ["write", "write", "write", "load"]


def acts(made: Plan) -> list[str]:
    """The kinds of its changes."""
    return [change.act for change in made.changes]


def loaded(text: str) -> list[dict[str, Any]]:
    """What nft lists of our table once this text was loaded, as far as we look at it."""
    mark = text.partition('comment "')[2].partition('"')[0]
    rules: list[dict[str, Any]] = [{"rule": {"table": "gpurig", "expr": []}} for _line in range(text.count("accept"))]
    return [{"table": {"name": "gpurig"}}, *rules, {"rule": {"table": "gpurig", "comment": mark}}]


def settled(facts: Facts, port: int = 8080, networks: tuple[str, ...] = (HOME,)) -> Facts:
    """The host after a run."""
    text = table_text([port], parse_networks(networks))
    nft = "/usr/sbin/nft"
    files = {TABLE_FILE: text, UNIT_FILE: unit_text(nft, TABLE_FILE), ADDITION_FILE: addition_text(nft, TABLE_FILE)}
    return replace(facts, files=files, unit_enabled=True, unit_active=True, ruleset=loaded(text))


# --- hosts -----------------------------------------------------------------------------------------------------------

HOSTS: list[Any] = [
    # facts, networks asked for, provider, kinds of changes, words of refusals, words of notes
    pytest.param(BARE, [], "nftables", NEW, [], ["192.168.1.0/24, the private"], id="nftables"),
    pytest.param(UFW, [], "ufw", [*NEW, "ufw_add"], [], ["plain http"], id="ufw"),
    pytest.param(replace(UFW, nft=""), [], "ufw", [*NEW, "ufw_add"], [], [], id="ufw-made-with-iptables"),
    pytest.param(replace(UFW, ufw_theirs=((HOME, 8080),)), [], "ufw", NEW, [], [], id="ufw-has-a-rule-of-theirs"),
    pytest.param(replace(BARE, ufw="inactive"), [], "nftables", NEW, [], ["ufw is inactive"], id="ufw-off"),
    pytest.param(UFW, ["10.0.0.0/8", "10.9.8.7"], "ufw", [*NEW, "ufw_add", "ufw_add"], [], [], id="two-networks"),
    pytest.param(UFW, ["fd00::/8"], "ufw", [*NEW, "ufw_add"], [], ["IPv4; fd00::/8"], id="ufw-ipv6"),
    pytest.param(
        replace(UFW, ufw_ipv6=False), [HOME, "fd00::/8"], "ufw", [*NEW, "ufw_add"], [], [], id="ufw-without-ipv6"
    ),
    pytest.param(replace(BARE, nft=""), [], "nftables", NEW, [], [], id="nothing-there"),
    pytest.param(
        replace(BARE, nft="", can_install_packages=False),
        [],
        "nftables",
        [],
        ["Install nftables"],
        [],
        id="nor-allowed",
    ),
    pytest.param(
        Facts(service_manager="supervisord", is_root=True), [], "", [], ["provider's proxy"], [], id="pod-or-sandbox"
    ),
    pytest.param(replace(BARE, is_root=False), [], "", [], ["only root"], [], id="not-root"),
    pytest.param(
        replace(BARE, addresses=("203.0.113.7/24", "10.0.0.1/32")),
        [],
        "",
        [],
        ["rig_publish[].from"],
        [],
        id="no-network",
    ),
    pytest.param(
        Facts(tunnels=("10.8.0.6/16",)), [], "", [], ["10.8.0.6/16 of a tunnel). Name the networks"], [], id="tunnel"
    ),
    pytest.param(
        replace(BARE, tunnels=("10.8.0.6/16",)), ["10.8.0.0/16"], "nftables", NEW, [], [], id="a-tunnel-that-is-named"
    ),
    pytest.param(
        replace(BARE, firewalld=True),
        [],
        "nftables",
        [],
        [f"firewall-cmd --permanent --add-rich-rule='{RICH}'; firewall-cmd --reload"],
        [],
        id="firewalld",
    ),
    pytest.param(
        replace(
            BARE,
            firewalld=True,
            firewalld_rules=(RICH,),
        ),
        [],
        "nftables",
        NEW,
        [],
        [],
        id="firewalld-lets-in",
    ),
    pytest.param(
        replace(BARE, published=(("theirs", "0.0.0.0:8080"), ("shy", "127.0.0.1:8080"), ("far", "0.0.0.0:9090"))),
        [],
        "nftables",
        NEW,
        [],
        ["container theirs publishes 0.0.0.0:8080"],
        id="docker-goes-past",
    ),
]


@pytest.mark.parametrize(("facts", "networks", "provider", "kinds", "refusals", "notes"), HOSTS)
def test_hosts(
    facts: Facts, networks: list[str], provider: str, kinds: list[str], refusals: list[str], notes: list[str]
) -> None:
    made = plan(facts, CONFIG, 8080, networks)
    assert (made.provider, acts(made)) == (provider, kinds)
    assert len(made.refusals) == len(refusals), made.refusals
    for said, words in zip(made.refusals, refusals, strict=True):
        assert words in said
    for words in notes:
        assert sum(words in note for note in made.notes) == 1, made.notes
    assert not any("shy" in note or "far" in note for note in made.notes)
    assert made.lacks == (() if facts.nft or refusals else ("nftables",))


def test_a_second_run_changes_nothing() -> None:
    assert acts(plan(settled(BARE), CONFIG, 8080, [HOME])) == []
    assert acts(plan(replace(settled(UFW), ufw_rules=((HOME, 8080),)), CONFIG, 8080, [])) == []


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        pytest.param(replace(settled(BARE), ruleset=[]), ["load"], id="somebody-flushed-the-rules"),
        pytest.param(replace(settled(BARE), ruleset=settled(BARE).ruleset[:-1]), ["load"], id="a-rule-is-missing"),
        pytest.param(replace(settled(BARE), unit_enabled=False), ["load"], id="not-at-boot"),
        pytest.param(replace(settled(BARE), unit_active=False), ["load"], id="not-now"),
        pytest.param(
            replace(settled(BARE), files={**settled(BARE).files, UNIT_FILE: ""}), ["write", "load"], id="no-unit"
        ),
        pytest.param(
            replace(settled(BARE), files={**settled(BARE).files, ADDITION_FILE: ""}),
            ["write", "load"],
            id="no-addition",
        ),
        pytest.param(settled(BARE, networks=("10.0.0.0/8",)), ["write", "load"], id="other-networks"),
        pytest.param(replace(settled(BARE), ufw_rules=((HOME, 8080),)), ["ufw_delete"], id="ufw-was-switched-off"),
        pytest.param(settled(UFW), ["ufw_add"], id="ufw-was-switched-on"),
        pytest.param(
            replace(settled(UFW), ufw_rules=((HOME, 8090), ("10.0.0.0/8", 8080))),
            ["ufw_add", "ufw_delete", "ufw_delete"],
            id="ufw-other-port-and-network",
        ),
    ],
)
def test_what_differs_is_put_right(facts: Facts, kinds: list[str]) -> None:
    assert acts(plan(facts, CONFIG, 8080, [HOME])) == kinds


def test_the_port_of_before_stays_restricted_until_nothing_listens_there() -> None:
    during = plan(settled(BARE, port=8090), CONFIG, 8080, [HOME], kept_ports=True)
    assert "tcp dport { 8080, 8090 } jump published" in during.changes[0].argument[1]
    between = replace(
        settled(BARE), files={**settled(BARE).files, TABLE_FILE: during.changes[0].argument[1]}, ruleset=()
    )
    after = plan(between, CONFIG, 8080, [HOME])
    assert "tcp dport { 8080 } jump published" in after.changes[0].argument[1]
    ufw = replace(settled(UFW), ufw_rules=((HOME, 8090),))
    assert acts(plan(ufw, CONFIG, 8080, [HOME], kept_ports=True)) == ["ufw_add"]


def test_all_that_is_ours_goes_and_nothing_else() -> None:
    made = plan(replace(settled(BARE), ufw_rules=((HOME, 8080),)), CONFIG, 0, gone=True)
    assert acts(made) == ["ufw_delete", "unload", "remove", "remove", "remove"]
    assert [change.argument for change in made.changes[2:]] == [(ADDITION_FILE,), (UNIT_FILE,), (TABLE_FILE,)]
    theirs = replace(BARE, files={TABLE_FILE: "# mine\n", UNIT_FILE: ""}, ruleset=[{"table": {"name": "filter"}}])
    assert acts(plan(theirs, CONFIG, 0, gone=True)) == []
    assert acts(plan(Facts(service_manager="supervisord"), CONFIG, 0, gone=True)) == []


# --- texts -----------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    text = table_text([8090, 8080], parse_networks(["192.168.1.0/24", "10.0.0.1", "fd00::/8"]))
    assert text.startswith(HEADER)
    assert [line.strip() for line in text.splitlines()[4:] if "comment" not in line] == [
        "chain input {",
        "type filter hook input priority -10; policy accept;",
        "tcp dport { 8080, 8090 } jump published",
        "}",
        "chain published {",
        'iifname "lo" accept',
        "ip saddr { 192.168.1.0/24, 10.0.0.1/32 } accept",
        "ip6 saddr { fd00::/8 } accept",
        "}",
        "}",
    ]
    assert is_loaded(loaded(text), text)
    assert not is_loaded(loaded(text), table_text([8080], parse_networks(["10.0.0.1"])))


def test_the_page_does_not_run_without_the_table() -> None:
    text = unit_text("/usr/sbin/nft", TABLE_FILE)
    assert "RequiredBy=gpurig-open-webui.service" in text
    assert "Before=gpurig-open-webui.service" in text


def test_ufw_is_read_as_it_prints_and_told_as_it_reads() -> None:
    added = """Added user rules (see 'ufw status' for running firewall):
ufw allow from 10.88.0.1 to any port 8080 proto tcp comment 'gpurig'
ufw allow 22/tcp comment 'my ssh'
ufw allow from 10.0.0.0/8 to any port 8080 proto tcp
ufw allow from fd00::/8 to any port 8080 proto tcp comment 'gpurig'
ufw allow from 192.168.1.0/24 to any port 8080 proto tcp comment 'not gpurig'
ufw deny from 10.0.0.1 to any port 8080 proto tcp
"""
    assert ufw_rules(added) == (("10.88.0.1/32", 8080), ("fd00::/8", 8080))
    assert ufw_rules(added, theirs=True) == (("10.0.0.0/8", 8080), (HOME, 8080))
    assert " ".join(ufw_words(HOME, 8080)) == "allow proto tcp from 192.168.1.0/24 to any port 8080"


def test_an_address_of_a_tunnel_is_told_to_those_behind_it() -> None:
    facts = replace(BARE, tunnels=("10.8.0.6/16", "100.64.0.9/32"))
    assert reachable(facts, [HOME]) == BARE.addresses
    assert reachable(facts, [HOME, "10.8.0.0/24"]) == (*BARE.addresses, "10.8.0.6/16")


def test_networks() -> None:
    assert [str(one) for one in connected(("192.168.1.5/24", "100.64.0.1/10", "fd00::2/64", "192.168.1.6/24"))] == [
        "192.168.1.0/24",
        "fd00::/64",
    ]
    with pytest.raises(FirewallError, match=r"'10.0.0.5/8' is no network"):
        parse_networks(["10.0.0.5/8"])
    assert origins(("192.168.1.5/24", "fd00::2/64"), "rig.example.org", 80) == [
        "http://192.168.1.5:80",
        "http://rig.example.org:80",
        "http://rig:80",
        "http://rig.local:80",
    ]


# --- other people's chains -------------------------------------------------------------------------------------------


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def prefix(text: str) -> dict[str, Any]:
    address, _slash, bits = text.partition("/")
    return {"prefix": {"addr": address, "len": int(bits)}}


DPORT: dict[str, Any] = {"payload": {"protocol": "tcp", "field": "dport"}}
SADDR: dict[str, Any] = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE: dict[str, Any] = {"ct": {"key": "state"}}
ACCEPT: dict[str, Any] = {"accept": None}
HARMLESS = [
    [match({"meta": {"key": "iif"}}, "lo"), ACCEPT],
    [{"vmap": {"key": STATE, "data": {"set": [["invalid", {"drop": None}], ["established", ACCEPT]]}}}],
    [match(STATE, ["established", "related"], "in"), ACCEPT],
    [match(DPORT, 22), ACCEPT],
    [match({"payload": {"protocol": "ip", "field": "protocol"}}, "icmp"), ACCEPT],
    [match({"payload": {"protocol": "ip6", "field": "saddr"}}, prefix("fd00::/8")), ACCEPT],
    [match({"payload": {"protocol": "udp", "field": "dport"}}, 8080), ACCEPT],
    [{"vmap": {"key": DPORT, "data": {"set": [[22, ACCEPT], [23, {"drop": None}]]}}}],
    [{"counter": {"packets": 0, "bytes": 0}}],
]
JUMP = {"jump": {"target": "more"}}
CHAINS: list[Any] = [
    # rules of the chain after the harmless ones, rules of the chain more, what becomes of it
    pytest.param([], [], "out", id="names-others-only"),
    pytest.param([[match(DPORT, 8080), ACCEPT]], [], "in", id="the-port"),
    pytest.param(
        [[match(DPORT, {"set": [80, {"range": [8000, 8100]}]}), {"counter": {}}, ACCEPT]], [], "in", id="range"
    ),
    pytest.param([[match(DPORT, {"range": [1, 100]}), ACCEPT]], [], "out", id="another-range"),
    pytest.param([[match(SADDR, prefix("192.168.0.0/16")), ACCEPT]], [], "in", id="the-network"),
    pytest.param([[match(SADDR, {"set": [prefix("10.0.0.0/8"), prefix(HOME)]}), ACCEPT]], [], "in", id="networks"),
    pytest.param([[match(SADDR, prefix("192.168.1.0/25")), ACCEPT]], [], "unsure", id="half-of-the-network"),
    pytest.param([[match(SADDR, "192.168.7.7"), ACCEPT]], [], "out", id="another-address"),
    pytest.param([[match(SADDR, "@admins"), ACCEPT]], [], "unsure", id="a-set-with-a-name"),
    pytest.param([[match({"meta": {"key": "iifname"}}, "eth9"), ACCEPT]], [], "unsure", id="an-interface"),
    pytest.param([[{"xt": {"type": "match", "name": "multiport"}}, ACCEPT]], [], "unsure", id="made-with-iptables"),
    pytest.param([[match(STATE, "new"), match(DPORT, 8080), ACCEPT]], [], "in", id="new-connections"),
    pytest.param([[{"drop": None}], [match(DPORT, 8080), ACCEPT]], [], "out", id="dropped-before"),
    pytest.param([[{"reject": {"type": "icmpx"}}]], [], "out", id="rejected"),
    pytest.param([[match(DPORT, 25, "!="), JUMP]], [[match(DPORT, 8080), ACCEPT]], "in", id="jump"),
    pytest.param([[JUMP]], [[{"return": None}], [match(DPORT, 8080), ACCEPT]], "out", id="returned"),
    pytest.param([[{"goto": {"target": "more"}}], [match(DPORT, 8080), ACCEPT]], [], "out", id="goto"),
    pytest.param([[JUMP]], [[JUMP]], "unsure", id="a-circle"),
    pytest.param([[match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), ACCEPT]], [], "in", id="all-of-tcp"),
    pytest.param([[match({"meta": {"key": "nfproto"}}, "ipv6"), ACCEPT]], [], "out", id="the-other-family"),
    pytest.param([[{"vmap": {"key": DPORT, "data": {"set": [[8080, JUMP]]}}}]], [[ACCEPT]], "in", id="map-to-a-jump"),
    pytest.param([[{"vmap": {"key": DPORT, "data": "@ports"}}]], [], "unsure", id="a-map-with-a-name"),
]


def chains(rules: list[list[Any]], more: list[list[Any]], policy: str = "drop", family: str = "inet") -> list[Any]:
    known = {"family": family, "table": "filter"}
    base = {**known, "name": "input", "type": "filter", "hook": "input", "prio": 0, "policy": policy}
    return [
        {"chain": base},
        {"chain": {**known, "name": "more"}},
        *({"rule": {**known, "chain": "input", "expr": expressions}} for expressions in [*HARMLESS, *rules]),
        *({"rule": {**known, "chain": "more", "expr": expressions}} for expressions in more),
    ]


@pytest.mark.parametrize(("rules", "more", "verdict"), CHAINS)
def test_other_peoples_chains(rules: list[list[Any]], more: list[list[Any]], verdict: str) -> None:
    ruleset = json.loads(json.dumps(chains(rules, more)))
    made = plan(replace(BARE, ruleset=ruleset), CONFIG, 8080, [HOME])
    assert bool(made.refusals) == (verdict == "out"), made.refusals
    assert any("cannot be judged" in note for note in made.notes) == (verdict == "unsure"), made.notes
    if verdict == "out":
        assert "nft insert rule inet filter input ip saddr 192.168.1.0/24 tcp dport 8080 accept" in made.refusals[0]
        assert made.changes == ()


def test_a_chain_that_lets_everything_in_or_is_for_the_other_family_is_no_matter() -> None:
    for ruleset in (chains([], [], "accept"), chains([], [], family="ip6")):
        assert plan(replace(BARE, ruleset=ruleset), CONFIG, 8080, [HOME]).refusals == ()


def test_the_chains_that_ufw_made_are_its_own() -> None:
    ruleset = chains([], [], family="ip")
    assert plan(replace(UFW, ruleset=ruleset), CONFIG, 8080, [HOME]).refusals == ()
    assert plan(replace(BARE, ruleset=ruleset), CONFIG, 8080, [HOME]).refusals != ()
    assert isinstance(plan(UFW, CONFIG, 8080, [HOME]).changes[0], Change)
