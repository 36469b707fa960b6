# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may reach a port of a host: from its firewalls as they are to the rules that are needed. (pure)

A table of our own, `inet gpurig`, drops the port for everybody else; it lets nobody in whom another firewall keeps
out. An active ufw keeps out what it does not know, so it gets a rule for each network as well, which only lets in: who
is kept out depends on no rule of ufw's and goes on when it is switched off. Other people's rules are read and never
changed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

UFW, NFTABLES = "ufw", "nftables"
COMMENT = "gpurig"
"""By it we know our rules in ufw, and the name of our table."""
UNIT = "gpurig-firewall.service"
PAGE_UNIT = "gpurig-open-webui.service"
HEADER = "# Written by gpurig.llm, role firewall. 'gpurig uninstall' takes it away."
PRIVATE = tuple(ipaddress.ip_network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"))
BRIDGES = re.compile(
    r"(lo|docker\d+|docker_gwbridge|br-[0-9a-f]{12}|veth.*|virbr\d+|cni.*|podman\d+|lxcbr\d+|lxdbr\d+)"
)
TUNNELS = re.compile(r"(tun|tap|wg|tailscale|zt|ppp|ipsec|nordlynx|proton).*")
TUNNEL_KINDS = frozenset({"tun", "wireguard", "ppp", "xfrm", "vti", "vti6", "gre", "ipip", "sit", "ip6tnl", "ip6gre"})
"""Of `ip -details -json`, linkinfo.info_kind: what is behind such a link is a network elsewhere."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class FirewallError(ValueError):
    """Networks that are none; the message says which."""


@dataclass(frozen=True)
class Facts:
    """What was seen of a host.

    addresses       ADDRESS/BITS of its interfaces, without loopback, bridges of containers and tunnels
    tunnels         those in networks of a VPN: nobody at home unless they are named
    ufw             '' (not installed), 'inactive' or 'active'
    ufw_rules       (network, port) of each rule with our comment; ufw_theirs: of equal rules that others made
    firewalld       whether it runs; firewalld_rules: its rich rules as they are printed
    ruleset         the list `nftables` of `nft --json list ruleset`
    files           path -> text of our files, '' where one is missing
    published       (container, address:port) of running containers whose port Docker itself publishes
    """

    is_root: bool = True
    service_manager: str = "systemd"
    can_install_packages: bool = True
    addresses: tuple[str, ...] = ()
    tunnels: tuple[str, ...] = ()
    ufw: str = ""
    ufw_ipv6: bool = True
    ufw_rules: tuple[tuple[str, int], ...] = ()
    ufw_theirs: tuple[tuple[str, int], ...] = ()
    firewalld: bool = False
    firewalld_rules: tuple[str, ...] = ()
    nft: str = ""
    ruleset: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    unit_enabled: bool = False
    unit_active: bool = False
    published: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Change:
    """One step: `words` for people; `act` is write, remove, load, unload, ufw_add or ufw_delete, with its `argument`s.

    write: path, text. remove: path. load, unload: nothing. ufw_add, ufw_delete: network, port.
    """

    words: str
    act: str
    argument: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What to do, in order; nothing of it when there are `refusals`. `lacks`: packages that must be installed first."""

    networks: tuple[str, ...] = ()
    provider: str = ""
    changes: tuple[Change, ...] = ()
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


def paths(config: str, unit_dir: str = "/etc/systemd/system") -> tuple[str, str, str]:
    """(file with our table, unit that loads it, addition to nftables.service)."""
    return f"{config}/firewall.nft", f"{unit_dir}/{UNIT}", f"{unit_dir}/nftables.service.d/gpurig.conf"


# --- networks --------------------------------------------------------------------------------------------------------


def parse_networks(wanted: Iterable[str]) -> tuple[Network, ...]:
    """The networks, each once; an address without bits is itself. Raises FirewallError."""
    found: list[Network] = []
    for text in wanted:
        try:
            network = ipaddress.ip_network(text)
        except ValueError as error:
            raise FirewallError(f"'{text}' is no network: {error}") from error
        if network not in found:
            found.append(network)
    return tuple(found)


def connected(addresses: Iterable[str]) -> tuple[Network, ...]:
    """The private networks that a host with these addresses (ADDRESS/BITS) is in; not those of one address alone."""
    found: list[Network] = []
    for text in addresses:
        network = ipaddress.ip_interface(text).network
        if network.num_addresses > 1 and network not in found and _is_private(network):
            found.append(network)
    return tuple(sorted(found, key=lambda one: (one.version, int(one.network_address))))


def reachable(facts: Facts, networks: Iterable[str]) -> tuple[str, ...]:
    """The host's addresses where somebody of these networks finds it: those of a tunnel only for those behind it."""
    known = parse_networks(networks)
    named = [one for one in facts.tunnels if any(ipaddress.ip_interface(one).ip in network for network in known)]
    return (*facts.addresses, *named)


def _is_private(network: Network) -> bool:
    return any(network.version == one.version and network.subnet_of(one) for one in PRIVATE)  # type: ignore[arg-type]


def origins(addresses: Iterable[str], hostname: str, port: int) -> list[str]:
    """As what browsers see the page on this host: its IPv4 addresses and its name, also as mDNS has it."""
    names = [str(ipaddress.ip_interface(text).ip) for text in addresses if ":" not in text]
    short = hostname.partition(".")[0]
    names += [hostname, *([short] if short != hostname else []), f"{short}.local"] if short else []
    return [f"http://{name}:{port}" for name in dict.fromkeys(names)]


# --- the plan --------------------------------------------------------------------------------------------------------


def plan(
    facts: Facts, config: str, port: int, wanted: Sequence[str] = (), kept_ports: bool = False, gone: bool = False
) -> Plan:
    """What has to change so that `port` is reached from `wanted` only, by default from the private networks around.

    `kept_ports`: ports of an earlier run stay restricted as well, for something may listen there still. `gone`: all
    that is ours is taken away. Raises FirewallError for networks that are none.
    """
    if gone:
        return Plan(changes=(*_ufw_changes(facts, set(), set()), *_without_table(facts, config)))
    networks = parse_networks(wanted) or connected(facts.addresses)
    names = tuple(map(str, networks))
    refusals = list(_unable(facts)) or ([] if networks else [_no_network(facts)])
    if refusals:
        return Plan(names, refusals=tuple(refusals))
    notes = [_welcome(port, names, not wanted), *_notes(facts, port, networks)]
    provider = UFW if facts.ufw == "active" else NFTABLES
    refusals = list(_foreign(facts, port, networks, notes))
    lacks = () if facts.nft else ("nftables",)
    if lacks and not facts.can_install_packages:
        refusals.append("nftables is not there and packages may not be installed on this host. Install nftables.")
    if refusals:
        return Plan(names, provider, (), tuple(refusals), tuple(notes))
    usable = [one for one in networks if one.version == 4 or facts.ufw_ipv6]
    rules = {(str(one), port) for one in usable} if provider == UFW else set()
    kept = {rule for rule in facts.ufw_rules if kept_ports and (provider != UFW or rule[1] != port)}
    changes = (*_with_table(facts, config, port, networks, kept_ports), *_ufw_changes(facts, rules, kept))
    return Plan(names, provider, changes, (), tuple(notes), lacks)


def _unable(facts: Facts) -> Iterator[str]:
    if facts.service_manager != "systemd":
        yield (
            "this host has no firewall of its own to set: in a pod the provider's proxy publishes a port, in a sandbox "
            "whoever owns the machine. Remove the entry from rig_publish and use the provider's page or ssh -L."
        )
    elif not facts.is_root:
        yield "only root sets firewall rules. Run with become: true, or remove the entry from rig_publish."


def _no_network(facts: Facts) -> str:
    seen = ", ".join([*facts.addresses, *(f"{one} of a tunnel" for one in facts.tunnels)]) or "none"
    return f"the host is in no private network (its addresses: {seen}). Name the networks in rig_publish[].from."


def _welcome(port: int, names: Sequence[str], computed: bool) -> str:
    why = ", the private networks that this host is in" if computed else ""
    return f"port {port} is reached from {', '.join(names)}{why}, and from nowhere else"


def _notes(facts: Facts, port: int, networks: Sequence[Network]) -> Iterator[str]:
    yield "it is plain http: who can listen in that network reads passwords and chats; for TLS put a proxy before it"
    six = [str(one) for one in networks if one.version == 6]
    if six:
        yield f"the page listens on IPv4; {', '.join(six)} has a rule and finds nobody there"
    if facts.ufw == "inactive":
        yield "ufw is inactive and stays so, for enabling it could lock you out"
    for container, place in facts.published:
        if place.rpartition(":")[2] == str(port) and not place.startswith(("127.", "[::1]")):
            yield (
                f"the container {container} publishes {place}: Docker's rules come before every firewall's, so that "
                "one is reached from everywhere. Publish it on 127.0.0.1"
            )


# --- ufw -------------------------------------------------------------------------------------------------------------


def ufw_rules(added: str, theirs: bool = False) -> tuple[tuple[str, int], ...]:
    """(network, port) of each rule like ours in what `ufw show added` prints: with our comment, or `theirs`."""
    pattern = r"(?m)^ufw allow from ([\da-fA-F:./]+) to any port (\d+) proto tcp(?: comment '(.*)')?$"
    found = re.findall(pattern, added)
    return tuple((str(ipaddress.ip_network(one)), int(port)) for one, port, by in found if (by != COMMENT) == theirs)


def ufw_words(network: str, port: int | str) -> list[str]:
    """What `ufw` is told to allow."""
    return ["allow", "proto", "tcp", "from", network, "to", "any", "port", str(port)]


def _ufw_changes(facts: Facts, wanted: set[tuple[str, int]], kept: set[tuple[str, int]]) -> Iterator[Change]:
    """An equal rule of somebody else's serves as well: ufw would put our comment on it, and it would go with ours."""
    there = set(facts.ufw_rules)
    for network, port in sorted(wanted - there - set(facts.ufw_theirs)):
        yield Change(f"ufw: allow tcp {port} from {network}", "ufw_add", (network, str(port)))
    for network, port in sorted(there - wanted - kept):
        yield Change(f"ufw: no longer allow tcp {port} from {network}", "ufw_delete", (network, str(port)))


# --- our table -------------------------------------------------------------------------------------------------------


def table_text(ports: Iterable[int], networks: Iterable[Network]) -> str:
    """The file that makes the table, whatever there was of it. What it does not drop is left to other tables."""
    known = list(networks)
    rules = [
        f"        {family} saddr {{ {', '.join(found)} }} accept"
        for family, version in (("ip", 4), ("ip6", 6))
        if (found := [str(one) for one in known if one.version == version])
    ]
    listed = ", ".join(map(str, sorted(set(ports))))
    body = "\n".join(
        [
            f"table inet {COMMENT}",
            f"delete table inet {COMMENT}",
            f"table inet {COMMENT} {{",
            "    chain input {",
            "        type filter hook input priority -10; policy accept;",
            f"        tcp dport {{ {listed} }} jump published",
            "    }",
            "    chain published {",
            '        iifname "lo" accept',
            *rules,
            "        counter drop",
            "    }",
            "}",
        ]
    )
    mark = hashlib.sha256(body.encode()).hexdigest()[:16]
    return f"{HEADER}\n" + body.replace("counter drop", f'counter drop comment "{mark}"') + "\n"


def unit_text(nft: str, table_file: str) -> str:
    """The unit that loads it before anything listens; a page without the table does not run."""
    return f"""{HEADER}
[Unit]
Description=Who reaches the port that is published (nftables, table inet {COMMENT})
# Debian's nftables.service deletes all tables, also ours, when it is stopped; for its start see nftables.service.d.
After=nftables.service ufw.service firewalld.service
PartOf=nftables.service
Before={PAGE_UNIT} docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {table_file}
ExecReload={nft} -f {table_file}
ExecStop=-{nft} delete table inet {COMMENT}

[Install]
WantedBy=multi-user.target
RequiredBy={PAGE_UNIT}
"""


def addition_text(nft: str, table_file: str) -> str:
    """What makes Debian's nftables.service, whose file begins with `flush ruleset`, load our table after its own."""
    return f"""{HEADER}
[Service]
ExecStartPost=-+{nft} -f {table_file}
ExecReload=-+{nft} -f {table_file}
"""


def is_loaded(ruleset: Iterable[Mapping[str, Any]], text: str) -> bool:
    """Whether the table of this text is the one that is there."""
    mark = re.search(r'comment "([0-9a-f]{16})"', text)
    ours = [item["rule"] for item in ruleset if item.get("rule", {}).get("table") == COMMENT]
    lines = sum(line.endswith(("accept", "published")) or "counter drop" in line for line in text.splitlines())
    return mark is not None and len(ours) == lines and any(rule.get("comment") == mark[1] for rule in ours)


def _with_table(
    facts: Facts, config: str, port: int, networks: Sequence[Network], kept_ports: bool
) -> Iterator[Change]:
    table_file, unit_file, addition_file = paths(config)
    before = facts.files.get(table_file, "")
    ports = {port, *(_ports(before) if kept_ports else ())}
    text = table_text(ports, networks)
    nft = facts.nft or "/usr/sbin/nft"
    units = {unit_file: unit_text(nft, table_file), addition_file: addition_text(nft, table_file)}
    changed = {path: unit for path, unit in units.items() if facts.files.get(path, "") != unit}
    if before != text:
        yield Change(f"write {table_file}: {', '.join(map(str, sorted(ports)))}", "write", (table_file, text))
    for path, unit in changed.items():
        yield Change(f"write {path}", "write", (path, unit))
    stale = changed or not facts.unit_enabled or not facts.unit_active
    if stale or before != text or not is_loaded(facts.ruleset, text):
        yield Change(f"load the table inet {COMMENT}, now and at every boot", "load")


def _without_table(facts: Facts, config: str) -> Iterator[Change]:
    table_file, unit_file, addition_file = paths(config)
    loaded = any(item.get("table", {}).get("name") == COMMENT for item in facts.ruleset)
    if facts.unit_enabled or facts.unit_active or loaded:
        yield Change(f"unload the table inet {COMMENT}", "unload")
    for path in (addition_file, unit_file, table_file):
        if facts.files.get(path, "").startswith(HEADER):
            yield Change(f"remove {path}", "remove", (path,))


def _ports(text: str) -> list[int]:
    found = re.search(r"tcp dport \{ ([\d, ]+) \} jump", text)
    return [int(port) for port in found[1].split(", ")] if found else []


# --- other people's rules --------------------------------------------------------------------------------------------


def _foreign(facts: Facts, port: int, networks: Sequence[Network], notes: list[str]) -> Iterator[str]:
    """What keeps the networks out although our rules let them in, with the remedy; what cannot be told is noted."""
    if facts.firewalld:
        missing = [one for one in networks if not _in_firewalld(facts.firewalld_rules, one, port)]
        if missing:
            commands = "; ".join(f"firewall-cmd --permanent --add-rich-rule='{_rich(one, port)}'" for one in missing)
            yield f"firewalld is active and is not ours to change. Let them in: {commands}; firewall-cmd --reload"
    tables = {COMMENT} | ({"firewalld"} if facts.firewalld else set())
    rules = [item["rule"] for item in facts.ruleset if "rule" in item]
    for chain in (item["chain"] for item in facts.ruleset if "chain" in item):
        managed = facts.ufw == "active" and chain["table"] == "filter" and chain["family"] in ("ip", "ip6")
        if chain.get("hook") != "input" or chain.get("type") != "filter" or chain["table"] in tables or managed:
            continue
        where = f"{chain['family']} {chain['table']} {chain['name']}"
        seen = {one: _decided(chain, rules, one, port) for one in networks if _family_fits(chain["family"], one)}
        out = [one for one, verdict in seen.items() if verdict == _DROP]
        if out:
            remedy = "; ".join(f"nft insert rule {where} {_saddr(one)} tcp dport {port} accept" for one in out)
            yield (
                f"the chain {where} of nftables keeps {', '.join(map(str, out))} out of port {port} and is not ours to "
                f"change. Add to it, and to the file that it is loaded from: {remedy}"
            )
        unsure = [str(one) for one, verdict in seen.items() if verdict == _UNSURE]
        if unsure:
            notes.append(
                f"the chain {where} has rules that cannot be judged here; make sure that it lets {', '.join(unsure)} "
                f"in to tcp port {port}"
            )


def _in_firewalld(rules: Iterable[str], network: Network, port: int) -> bool:
    wanted = (f'source address="{network}"', f'port port="{port}" protocol="tcp"', "accept")
    return any(all(word in rule for word in wanted) for rule in rules)


def _rich(network: Network, port: int) -> str:
    return f'rule family="ipv{network.version}" source address="{network}" port port="{port}" protocol="tcp" accept'


def _saddr(network: Network) -> str:
    return f"{'ip' if network.version == 4 else 'ip6'} saddr {network}"


def _family_fits(family: str, network: Network) -> bool:
    return family in ("inet", "ip" if network.version == 4 else "ip6")


_ACCEPT, _DROP, _UNSURE, _ON = "accept", "drop", "unsure", "on"
_MOST_JUMPS = 16  # the kernel's own limit


def _decided(chain: Mapping[str, Any], rules: Sequence[Mapping[str, Any]], network: Network, port: int) -> str:
    """What a base chain does with a new connection to the port from the network: accept, drop or unsure."""
    verdict, unsure = _through(chain, chain["name"], rules, network, port, 0)
    if verdict == _ON:
        verdict = _DROP if chain.get("policy") == "drop" else _ACCEPT
    return _UNSURE if unsure and verdict == _DROP else verdict


def _through(
    chain: Mapping[str, Any],
    name: str,
    rules: Sequence[Mapping[str, Any]],
    network: Network,
    port: int,
    depth: int,
) -> tuple[str, bool]:
    """(verdict, whether a rule on the way could have accepted that we cannot judge)."""
    unsure = False
    for rule in rules:
        if (rule["family"], rule["table"], rule["chain"]) != (chain["family"], chain["table"], name):
            continue
        fits, verdict, target = _judge(rule.get("expr", ()), network, port)
        if fits is False or not verdict:
            continue
        if verdict in ("jump", "goto"):
            inner, inner_unsure = (_ON, True) if depth >= _MOST_JUMPS else ("", False)
            if not inner:
                inner, inner_unsure = _through(chain, target, rules, network, port, depth + 1)
            unsure = unsure or inner_unsure or (fits is None and inner == _ACCEPT)
            if fits and inner != _ON:
                return inner, unsure
            if fits and verdict == "goto":
                return _ON, unsure
        elif fits is None:
            unsure = unsure or verdict == _ACCEPT
        elif verdict == "return":
            return _ON, unsure
        else:
            return (_ACCEPT if verdict == _ACCEPT else _DROP), unsure
    return _ON, unsure


def _judge(expressions: Iterable[Mapping[str, Any]], network: Network, port: int) -> tuple[bool | None, str, str]:
    """(whether the rule matches, None: cannot be told; its verdict; where it jumps)."""
    fits: bool | None = True
    for expression in expressions:
        for kind, content in expression.items():
            if kind == "match":
                fits = _both(fits, _matches(content, network, port))
            elif kind == "vmap":
                return _mapped(content, fits, network, port)
            elif kind in (_ACCEPT, _DROP, "reject", "return"):
                return fits, kind, ""
            elif kind in ("jump", "goto"):
                return fits, kind, str(content["target"])
            elif kind not in ("counter", "log", "mangle", "notrack"):
                fits = _both(fits, None)
    return fits, "", ""


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return None if one is None or other is None else True


def _mapped(content: Mapping[str, Any], fits: bool | None, network: Network, port: int) -> tuple[bool | None, str, str]:
    pairs = content.get("data", {}).get("set", ()) if isinstance(content.get("data"), Mapping) else None
    if pairs is None:
        return None, _ACCEPT, ""  # a map with a name, whose content is elsewhere
    for key, verdict in pairs:
        hit = _matches({"op": "==", "left": content["key"], "right": key}, network, port)
        if hit is not False:
            kind, where = next(iter(verdict.items()))
            return _both(fits, hit), kind, str(where["target"]) if isinstance(where, Mapping) else ""
    return False, "", ""


def _matches(match: Mapping[str, Any], network: Network, port: int) -> bool | None:
    """Whether a new TCP connection to the port from anywhere in the network matches; None where it cannot be told."""
    left, right, operator = match["left"], match["right"], match.get("op", "==")
    found: bool | None = None
    payload, meta = left.get("payload"), left.get("meta", {})
    if payload and payload.get("field") == "dport" and payload.get("protocol") in ("tcp", "udp", "th"):
        found = payload["protocol"] != "udp" and _has(right, str(port), port)
    elif payload and payload.get("field") == "saddr" and payload.get("protocol") in ("ip", "ip6"):
        same = payload["protocol"] == ("ip" if network.version == 4 else "ip6")
        found = _covers(right, network) if same else False
    elif left.get("ct", {}).get("key") == "state":
        found = _has(right, "new", None)
    elif meta.get("key") in ("iif", "iifname") and right == "lo":
        found = False
    elif meta.get("key") == "l4proto" or (payload and payload.get("field") in ("protocol", "nexthdr")):
        found = _has(right, "tcp", 6)
    elif meta.get("key") == "nfproto":
        found = _has(right, f"ipv{network.version}", None)
    if found is None or operator not in ("==", "in", "!="):
        return None
    return not found if operator == "!=" else found


def _elements(right: Any) -> list[Any] | None:
    if isinstance(right, Mapping) and "set" in right:
        return [one.get("elem", {}).get("val", one) if isinstance(one, Mapping) else one for one in right["set"]]
    if isinstance(right, str) and right.startswith("@"):
        return None
    return list(right) if isinstance(right, list) else [right]


def _has(right: Any, text: str, number: int | None) -> bool | None:
    elements = _elements(right)
    if elements is None:
        return None
    for one in elements:
        if one in (text, number) and one is not None:
            return True
        if isinstance(one, Mapping) and "range" in one and number is not None:
            low, high = one["range"]
            if isinstance(low, int) and isinstance(high, int) and low <= number <= high:
                return True
    return False


def _covers(right: Any, network: Network) -> bool | None:
    """Whether all of the network is in; None for a part of it or a set with a name."""
    elements = _elements(right)
    if elements is None:
        return None
    part = False
    for one in elements:
        if isinstance(one, Mapping) and "prefix" in one:
            known = ipaddress.ip_network(f"{one['prefix']['addr']}/{one['prefix']['len']}", strict=False)
        elif isinstance(one, str):
            known = ipaddress.ip_network(one)
        else:
            part = True
            continue
        if network.subnet_of(known):  # type: ignore[arg-type]
            return True
        part = part or network.overlaps(known)
    return None if part else False
