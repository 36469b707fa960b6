# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""daemon.json: what is merged into it, what stays, what goes again, and that no key of the owner is ever lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.container_daemon import (
    BINDING,
    FLAGS,
    MASK,
    POOLS,
    REASONS,
    masked,
    merge,
    pool_for,
    wanted_settings,
)
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.sampled_from(["ip", "log-opts", "features", "live-restore", "dns", "a.b"])
LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["x", "y"]) | st.lists(st.integers(0, 1))
OBJECTS = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=6)
SETTINGS = st.dictionaries(KEYS, OBJECTS, max_size=4)


def wanted(**more: Any) -> tuple[dict[str, Any], list[str]]:
    given_ones: dict[str, Any] = {
        "version": (29, 1),
        "existing": {},
        "recorded": {},
        "flags": (),
        "routes": (),
        "cautious": False,
        "swarm": False,
        "log_max_size": "50m",
        "log_max_files": 3,
    }
    return wanted_settings(**{**given_ones, **more})


def paths(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Path -> value of everything that is no object with keys."""
    if isinstance(value, dict) and value:
        found: dict[tuple[str, ...], Any] = {}
        for key, item in value.items():
            found |= paths(item, (*path, key))
        return found
    return {path: value}


def test_a_new_file_has_everything_with_reasons() -> None:
    settings, notes = wanted()
    assert settings == {
        "log-driver": "json-file",
        "log-opts": {"max-size": "50m", "max-file": "3"},
        "live-restore": True,
        "features": {"cdi": True},
        "ip": "127.0.0.1",
        "default-network-opts": {"bridge": {BINDING: "127.0.0.1"}},
        "default-address-pools": [{"base": POOLS[0], "size": 24}],
    }
    assert notes == []
    assert set(settings) <= set(REASONS)
    assert set(FLAGS) == set(REASONS)
    told = merge({}, settings, {}).added
    assert len(told) == len(settings)
    assert all(": " in line for line in told)


def test_the_owner_wins_and_is_told() -> None:
    existing = {"ip": "0.0.0.0", "log-opts": {"tag": "x", "max-size": "1g"}, "features": {"buildkit": True}}
    found = merge(existing, wanted(existing=existing)[0], {})
    assert found.merged["ip"] == "0.0.0.0"
    assert found.merged["log-opts"] == {"tag": "x", "max-size": "1g", "max-file": "3"}
    assert found.merged["features"] == {"buildkit": True, "cdi": True}
    assert "ip" not in found.ours
    assert found.ours["log-opts"] == {"max-file": "3"}
    assert found.kept == (
        "log-opts > max-size stays '1g' as its owner wrote it; ours would be '50m'",
        "ip stays '0.0.0.0' as its owner wrote it; ours would be '127.0.0.1'",
    )


def test_what_we_wrote_follows_its_variable_until_somebody_changes_it() -> None:
    first = merge({}, {"log-opts": {"max-size": "50m"}}, {})
    follows = merge(first.merged, {"log-opts": {"max-size": "9m"}}, first.ours)
    assert follows.merged == {"log-opts": {"max-size": "9m"}}
    assert follows.added == ("log-opts > max-size = '9m': without a size a talkative container fills the disk",)
    changed = merge({"log-opts": {"max-size": "1g"}}, {"log-opts": {"max-size": "9m"}}, first.ours)
    assert changed.merged == {"log-opts": {"max-size": "1g"}}
    assert changed.ours == {}


def test_what_nothing_asks_for_goes_if_it_is_still_ours() -> None:
    first = merge({"exec-opts-of-others": 1}, {"exec-opts": ["x"], "features": {"cdi": True}}, {})
    second = merge(first.merged, {}, first.ours)
    assert second.merged == {"exec-opts-of-others": 1}
    assert second.added[0] == "exec-opts goes: nothing asks for it any more"
    assert merge({"exec-opts": ["y"], "features": {"cdi": True, "z": 1}}, {}, first.ours).merged == {
        "exec-opts": ["y"],
        "features": {"z": 1},
    }


def test_an_object_where_we_want_a_value_stays() -> None:
    assert merge({"ip": {"odd": 1}}, {"ip": "127.0.0.1"}, {}).merged == {"ip": {"odd": 1}}
    (words,) = merge({"ip": {"odd": 1}}, {"ip": "127.0.0.1"}, {}).kept
    assert "an object with odd" in words


@pytest.mark.parametrize(
    ("routes", "base"),
    [
        ([], POOLS[0]),
        (["0.0.0.0/0"], POOLS[0]),
        (["192.168.1.0/24"], POOLS[0]),
        (["10.0.0.0/8"], "172.29.0.0/16"),
        (["10.201.7.0/24"], "10.233.0.0/16"),
        (["10.0.0.0/8", "172.16.0.0/12"], "192.168.192.0/18"),
        (["10.0.0.0/8", "172.16.0.0/12", "192.168.200.0/24"], ""),
        (["fd00::/8"], POOLS[0]),
    ],
)
def test_a_pool_that_no_route_uses(routes: list[str], base: str) -> None:
    assert pool_for(POOLS, routes) == base


def test_our_pool_stays_where_it_is_even_when_docker_s_networks_are_routes_now() -> None:
    pool = [{"base": POOLS[0], "size": 24}]
    here = {"default-address-pools": pool}
    settings, _notes = wanted(existing=here, recorded=here, routes=["10.201.0.0/24"])
    assert settings["default-address-pools"] == pool
    foreign = {"default-address-pools": [{"base": "10.0.0.0/8", "size": 20}]}
    assert "default-address-pools" not in wanted(existing=foreign)[0]


@pytest.mark.parametrize("key", sorted(FLAGS))
def test_an_option_of_the_unit_is_not_said_twice(key: str) -> None:
    settings, notes = wanted(flags=[FLAGS[key]], cgroupfs=True)
    assert key not in settings
    assert notes


@pytest.mark.parametrize(
    ("version", "absent"),
    [
        ((23, 0, 1), {"features", "default-network-opts"}),
        ((24, 0), {"features"}),
        ((25,), set()),
        ((), set()),
    ],
)
def test_what_an_old_dockerd_does_not_know(version: tuple[int, ...], absent: set[str]) -> None:
    assert set(wanted()[0]) - set(wanted(version=version)[0]) == absent


def test_what_is_left_out_is_told() -> None:
    everything = set(wanted()[0])
    for more, absent, words in (
        ({"swarm": True}, {"live-restore"}, "member of a swarm"),
        ({"cautious": True}, {"ip", "default-network-opts", "default-address-pools"}, "somebody else's"),
        ({"existing": {"log-driver": "journald"}}, {"log-driver", "log-opts"}, "journald already"),
        ({"flags": ["log-driver"]}, {"log-driver", "log-opts"}, "rotates by its own rules"),
        ({"existing": {"bip": "10.9.0.1/24"}}, {"default-address-pools"}, "bip 10.9.0.1/24"),
        ({"routes": ["0.0.0.0/1", "128.0.0.0/1"]}, {"default-address-pools"}, ", ".join(POOLS)),
    ):
        settings, notes = wanted(**more)
        assert everything - set(settings) == absent
        assert len(notes) == 1
        assert words in notes[0]
    assert wanted(existing={"log-driver": "local"})[0]["log-driver"] == "local"


def test_more_keys_of_the_inventory() -> None:
    settings, _notes = wanted(more={"registry-mirrors": ["https://mirror.example.org"]}, cgroupfs=True)
    assert settings["registry-mirrors"] == ["https://mirror.example.org"]
    assert settings["exec-opts"] == ["native.cgroupdriver=cgroupfs"]


def test_passwords_are_masked_wherever_they_stand() -> None:
    private = {
        "proxies": {"http-proxy": "http://me:hush@proxy:1", "https-proxy": "hush", "no-proxy": ""},
        "log-opts": {"splunk-token": "hush", "splunk-url": "https://me:hush@log.example.org/x", "max-size": "9m"},
        "registry-mirrors": ["https://hush@mirror.example.org"],
        "dns": ["192.0.2.1"],
        "live-restore": True,
    }
    assert masked(private) == {
        "proxies": {"http-proxy": MASK, "https-proxy": MASK, "no-proxy": ""},
        "log-opts": {"splunk-token": MASK, "splunk-url": f"https://{MASK}@log.example.org/x", "max-size": "9m"},
        "registry-mirrors": [f"https://{MASK}@mirror.example.org"],
        "dns": ["192.0.2.1"],
        "live-restore": True,
    }
    assert masked(None) is None


@given(existing=SETTINGS, wish=SETTINGS)
def test_no_value_of_the_owner_is_ever_lost(existing: dict[str, Any], wish: dict[str, Any]) -> None:
    """Whatever is wanted: each of their paths has its value, except an empty object that was filled."""
    found = paths(merge(existing, wish, {}).merged)
    for path, value in paths(existing).items():
        assert value == {} or found[path] == value


@given(existing=SETTINGS, wish=SETTINGS, later=SETTINGS)
def test_what_we_wrote_is_ours_alone(existing: dict[str, Any], wish: dict[str, Any], later: dict[str, Any]) -> None:
    """A second merge changes nothing; after any later wish, and after none, the owner's values are still there."""
    first = merge(existing, wish, {})
    recorded = json.loads(json.dumps(first.ours))
    again = merge(first.merged, wish, recorded)
    assert (again.merged, again.ours, again.added) == (first.merged, first.ours, ())
    for settings in (later, {}):
        found = paths(merge(first.merged, settings, recorded).merged)
        for path, value in paths(existing).items():
            assert value == {} or found[path] == value
