# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specifications and defaults that agree pass; each way to disagree is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.scripts import check_specs

GOOD_DEFAULTS = {
    "r_name": "chat",
    "r_port": 8000,
    "r_ratio": 0.5,
    "r_list": ["a"],
    "r_table": {"k": 1},
    "r_later": "{{ rig_later | default([]) }}",
    "r_unset": None,
}
GOOD_OPTIONS: dict[str, Any] = {
    "r_name": {"type": "str", "default": "chat", "choices": ["chat", "other"], "description": "Name."},
    "r_port": {"type": "int", "default": 8000, "description": ["Port.", "On loopback."]},
    "r_ratio": {"type": "float", "default": 0.5, "description": "Ratio."},
    "r_list": {"type": "list", "elements": "str", "default": ["a"], "description": "List."},
    "r_table": {
        "type": "dict",
        "default": {"k": 1},
        "description": "Table.",
        "options": {"k": {"type": "int", "description": "K."}},
    },
    "r_later": {"type": "list", "elements": "dict", "default": GOOD_DEFAULTS["r_later"], "description": "Later."},
    "r_unset": {"type": "path", "description": "Unset."},
    "r_token": {"type": "str", "required": True, "description": "Token."},
}


def plant(
    root: Path, options: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None, drop: str = ""
) -> Path:
    """A role `r` that is right but for what is given: options and defaults to add or replace, a name to drop."""
    role = root / "r"
    for folder in ("meta", "defaults", "tasks"):
        (role / folder).mkdir(parents=True, exist_ok=True)
    all_options = {name: spec for name, spec in {**GOOD_OPTIONS, **(options or {})}.items() if name != drop}
    spec = {"main": {"short_description": "A role", "options": all_options}, "verify": {"short_description": "Look"}}
    (role / "meta/argument_specs.yml").write_text(yaml.safe_dump({"argument_specs": spec}), encoding="utf-8")
    (role / "defaults/main.yml").write_text(yaml.safe_dump({**GOOD_DEFAULTS, **(defaults or {})}), encoding="utf-8")
    for entry in spec:
        (role / f"tasks/{entry}.yml").write_text("[]\n", encoding="utf-8")
    return role


def test_our_roles_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_specs.main([]) == 0, capsys.readouterr().out


def test_a_role_that_agrees_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path)
    assert check_specs.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "1 roles checked, 0 findings\n"


@pytest.mark.parametrize(
    ("options", "defaults", "drop", "expected"),
    [
        ({}, {"r_extra": 1}, "", "r_extra: is in defaults/main.yml and no option"),
        ({}, {}, "r_port", "r_port: is in defaults/main.yml and no option"),
        ({"r_more": {"description": "More."}}, {}, "", "r_more: is an option that is not required and has no default"),
        ({}, {"r_port": 8001}, "", "r_port: default 8000 in meta/argument_specs.yml, 8001"),
        ({}, {"r_port": "8000"}, "", "r_port: default 8000 in meta/argument_specs.yml, '8000'"),
        ({}, {"r_later": "{{ rig_other }}"}, "", "r_later: default"),
        ({"r_port": {"type": "int", "description": "P."}}, {}, "", "states no default"),
        ({}, {"r_token": "secret"}, "", "r_token: is required"),
        ({"r_token": {"required": True, "default": "x", "description": "T."}}, {}, "", "required and has a default"),
        ({"r_port": {"type": "int", "default": 8000}}, {}, "", "option r_port: has no description"),
        ({"r_port": {"type": "int", "default": 8000, "description": [{"a": "b"}]}}, {}, "", "not text"),
        ({"r_port": {"type": "number", "default": 8000, "description": "P."}}, {}, "", "type 'number' does not exist"),
        ({"r_port": {"type": "int", "default": "x", "description": "P."}}, {"r_port": "x"}, "", "not of type int"),
        ({"r_port": {"type": "int", "default": True, "description": "P."}}, {"r_port": True}, "", "not of type int"),
        ({"r_list": {"type": "list", "default": ["a"], "description": "L."}}, {}, "", "does not say of what"),
        (
            {"r_list": {"type": "list", "elements": "int", "default": ["a"], "description": "L."}},
            {},
            "",
            "not every element",
        ),
        (
            {"r_name": {"type": "str", "default": "chat", "choices": ["b"], "description": "N."}},
            {},
            "",
            "not among its choices",
        ),
        (
            {"r_table": {"type": "dict", "default": {"k": 1}, "description": "T.", "options": {"k": {"type": "int"}}}},
            {},
            "",
            "option r_table.k: has no description",
        ),
        ({"r_port": "int"}, {}, "", "option r_port: is not a mapping"),
    ],
)
def test_each_disagreement_is_found(
    tmp_path: Path, options: dict[str, Any], defaults: dict[str, Any], drop: str, expected: str
) -> None:
    found = check_specs.role_errors(plant(tmp_path, options, defaults, drop))
    assert any(expected in line for line in found), found


def test_a_role_without_specification_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    assert check_specs.main([str(tmp_path)]) == 1
    assert "roles/bare: has no meta/argument_specs.yml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("argument_specs:\n  main:\n    short_description: A rig: what it is\n", "argument_specs.yml:3 is not YAML"),
        ("- a\n", "holds a list"),
        ("argument_specs: {}\n", "no argument_specs.main"),
        (
            "argument_specs: {main: {short_description: A, description: [{a: b}]}}\n",
            "entry point main: has no description",
        ),
        ("argument_specs: {main: {options: {}}}\n", "entry point main: has no short_description"),
        ("argument_specs: {main: {short_description: A}, gone: {short_description: B}}\n", "has no tasks/gone.yml"),
    ],
)
def test_a_broken_specification_is_named(tmp_path: Path, text: str, expected: str) -> None:
    role = plant(tmp_path)
    (role / "meta/argument_specs.yml").write_text(text, encoding="utf-8")
    assert any(expected in line for line in check_specs.role_errors(role)), check_specs.role_errors(role)


def test_no_roles_yet_is_no_finding(tmp_path: Path) -> None:
    assert check_specs.main([str(tmp_path / "roles")]) == 0
