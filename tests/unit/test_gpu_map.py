# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan for the map of GPU roles: what it will hold, and the words for what changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_map import (
    MAP_NAME,
    WRITTEN_NAME,
    Found,
    MapError,
    Roles,
    look,
    parse,
    plan,
    render,
    update,
)
from hypothesis import given, settings
from hypothesis import strategies as st

OLD: Roles = {"inference": ["b"], "training": ["a", "b"]}


def ours(roles: Roles, **more: Any) -> Found:
    """A map as the last run left it."""
    text = render(roles)
    return Found(text, text.encode(), roles, written=(text,), **more)


def edited(text: str, written: Roles) -> Found:
    """A map that somebody changed after the last run."""
    return Found(text, text.encode(), parse(text), written=(render(written),))


@pytest.mark.parametrize(
    ("found", "wanted", "more", "roles", "changes"),
    [
        (Found(), {}, {}, {}, []),
        (Found(), {"a": ["x"]}, {}, {"a": ["x"]}, ["role a: new, x"]),
        (ours(OLD), OLD, {}, OLD, []),
        (ours(OLD), {"training": ["a"]}, {}, {"training": ["a"]},
         ["role inference: removed, it had b", "role training: a, b -> a"]),
        (ours(OLD), {"other": ["c"]}, {"purge": False}, {**OLD, "other": ["c"]}, ["role other: new, c"]),
        (ours(OLD), {"inference": ["b"]}, {"keep": ["training"]}, OLD, []),
        (ours(OLD), {"inference": ["b"]}, {"keep": ["new"]}, {"inference": ["b"]}, ["role training: removed, it had"]),
        (ours(OLD), {}, {}, {}, ["role inference: removed, it had b", "role training: removed, it had a, b"]),
        (ours(OLD), {"training": ["b", "a"]}, {}, {"training": ["b", "a"]}, ["role i", "role training: a, b -> b, a"]),
        (ours(OLD), {**OLD, "training": ["b", "a"]}, {"unordered": ["training"]}, OLD, []),
        (
            ours(OLD),
            {**OLD, "training": ["b", "c"]},
            {"unordered": ["training"]},
            {**OLD, "training": ["b", "c"]},
            ["role training: a, b -> b, c"],
        ),
        (ours(OLD, mode=0o600), OLD, {}, OLD, ["gpu_roles.json: mode 0600 -> 0644"]),
        (ours(OLD, uid=7), OLD, {}, OLD, ["gpu_roles.json: owner 7 -> 0"]),
        (ours(OLD), OLD, {"uid": 7}, OLD, ["gpu_roles.json: owner 0 -> 7"]),
        (ours({"a": []}), {"a": ["x"]}, {}, {"a": ["x"]}, ["role a: no cards -> x"]),
        (Found(written=(render(OLD),)), OLD, {}, OLD, ["gpu_roles.json: was removed by somebody else"]),
        (Found(written=(render(OLD),)), {"inference": ["b"]}, {"purge": False}, OLD, ["gpu_roles.json: was removed"]),
        (Found(is_link=True), {}, {}, {}, ["gpu_roles.json: was a link or a special file; replaced by the map"]),
    ],
)  # fmt: skip
def test_plan(found: Found, wanted: Roles, more: dict[str, Any], roles: Roles, changes: list[str]) -> None:
    planned = plan(found, wanted, **more)
    assert planned.roles == roles
    assert len([change for change in planned.changes if not change.startswith("role")]) <= 1
    for start, change in zip(changes, planned.changes, strict=False):
        assert change.startswith(start)
    assert bool(changes) == bool(planned.changes)
    assert planned.keep_aside is False
    assert (planned.text is None) == (not planned.changes and not roles)
    if planned.text is not None:
        assert parse(planned.text) == roles


@pytest.mark.parametrize(
    ("found", "purge", "words"),
    [
        (edited(render({"inference": ["b"], "training": ["x"]}), OLD), True, "was changed by somebody else"),
        (edited(render({"inference": ["b"], "training": ["x"]}), OLD), False, "was changed by somebody else"),
        (edited(render(OLD) + "\n", OLD), True, "was changed by somebody else"),
        (Found("{}", b"{}", {}), True, "was not written by a run; written anew"),
        (Found("x", b"x", None), True, "was not written by a run; written anew"),
    ],
)
def test_what_somebody_else_wrote_is_kept_aside(found: Found, purge: bool, words: str) -> None:
    planned = plan(found, OLD if purge else {"inference": ["b"]}, purge=purge)
    assert planned.keep_aside is True
    assert planned.roles == OLD
    assert planned.changes[0].startswith(f"{MAP_NAME}: {words}")


def test_a_map_that_somebody_wrote_as_we_would_is_no_change() -> None:
    text = render(OLD)
    assert plan(Found(text, text.encode(), OLD), OLD).changes == ()
    by_hand = Found(render({"mine": ["x"]}), b"", {"mine": ["x"]})
    assert plan(by_hand, {"a": ["y"]}, purge=False).roles == {"a": ["y"], "mine": ["x"]}


def test_an_exclusive_role_does_not_share_with_one_that_stays() -> None:
    with pytest.raises(MapError, match=r"role new is exclusive, and b is in role inference as well"):
        plan(ours(OLD), {"new": ["b"]}, keep=["inference"], exclusive=["new"])
    assert plan(ours(OLD), {"new": ["b"]}, exclusive=["new"]).roles == {"new": ["b"]}
    assert plan(ours(OLD), {"new": ["c"]}, purge=False, exclusive=["new", "gone"]).roles == {**OLD, "new": ["c"]}


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"a": "b"}', '{"a": [1]}', "[" * 100000, '{"\\ud800": []}'], ids=range(7)
)
def test_what_is_no_map(text: str) -> None:
    assert parse(text) is None


ROLES = st.dictionaries(
    st.text("abc-", min_size=1, max_size=4), st.lists(st.sampled_from("xyz"), unique=True), max_size=4
)
QUICK = settings(max_examples=100, deadline=None, database=None, derandomize=True)


@QUICK
@given(ROLES)
def test_a_map_reads_as_it_was_written(roles: Roles) -> None:
    assert parse(render(roles)) == roles
    assert render(roles).count("\n") == (len(roles) + 2 if roles else 1)


@QUICK
@given(ROLES, ROLES, st.booleans(), st.sets(st.sampled_from("abc")))
def test_a_second_plan_has_nothing_to_do(before: Roles, wanted: Roles, purge: bool, keep: set[str]) -> None:
    planned = plan(ours(before), wanted, keep, purge, unordered=wanted)
    assert plan(ours(planned.roles), wanted, keep, purge, unordered=wanted).changes == ()
    assert {role: sorted(cards) for role, cards in planned.roles.items() if role in wanted} == {
        role: sorted(cards) for role, cards in wanted.items()
    }
    others = set(planned.roles) - set(wanted)
    assert others == {role for role in before if role not in wanted and (not purge or role in keep)}


def test_update_on_disk(tmp_path: Path) -> None:
    config = str(tmp_path)
    assert update(config, {}).planned.changes == ()
    assert update(config, OLD, check=True).planned.changes != ()
    assert not (tmp_path / MAP_NAME).exists()
    assert update(config, OLD).aside == ""
    assert look(config).is_ours
    assert look(config).trusted == OLD
    (tmp_path / MAP_NAME).write_bytes(b"\xff")
    assert look(config).trusted == OLD
    aside = update(config, OLD).aside
    assert Path(aside).read_bytes() == b"\xff"
    (tmp_path / WRITTEN_NAME).write_text("broken")
    assert update(config, {"a": ["x"]}).planned.changes[0].startswith("gpu_roles.json: was not written by a run")
    assert look(str(tmp_path / "nowhere")) == Found()
