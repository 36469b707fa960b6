# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README of a role says what its specification says, and is found when it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.scripts import role_readme

SPEC = """---
argument_specs:
  main:
    short_description: Things that run
    description:
      - Runs C(things), see O(r_port).
      - Twice.
    options:
      r_port: {type: int, default: 8000, description: "Port, V(0) for none."}
      r_list: {type: list, elements: str, default: [], description: [A list., "Of a|b."]}
      r_kind: {type: str, default: "", choices: ["", one], description: Kind.}
      r_token: {type: str, required: true, description: Token.}
      r_table:
        type: dict
        default: {}
        description: Table.
        options:
          depth: {type: int, description: Depth.}
  verify:
    short_description: Looks only
# EXAMPLE
# - hosts: all
#   roles: [gpurig.llm.r]
"""
README = """# gpurig.llm.r

<!-- Written by scripts/role_readme.py from meta/argument_specs.yml: change that file, not this one. -->

Things that run.

Runs `things`, see `r_port`.

Twice.

## Variables

| name | type | default | meaning |
| --- | --- | --- | --- |
| `r_port` | int | `8000` | Port, `0` for none. |
| `r_list` | list of str | `[]` | A list. Of a\\|b. |
| `r_kind` | str | `""` | Kind. One of `""`, `one`. |
| `r_token` | str | required | Token. |
| `r_table` | dict | `{}` | Table. |
| `r_table.depth` | int |  | Depth. |

## Entry point `verify`

Looks only.

## Example

```yaml
- hosts: all
  roles: [gpurig.llm.r]
```
"""


@pytest.fixture
def role(tmp_path: Path) -> Path:
    path = tmp_path / "r"
    (path / "meta").mkdir(parents=True)
    (path / "meta/argument_specs.yml").write_text(SPEC, encoding="utf-8")
    return path


def test_the_readme_says_what_the_specification_says(role: Path) -> None:
    assert role_readme.readme(role) == README


def test_check_finds_a_missing_and_a_stale_readme(role: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roles = str(role.parent)
    assert role_readme.main(["--check", roles]) == 1
    assert not (role / "README.md").exists(), "--check writes nothing"
    assert role_readme.main([roles]) == 0
    assert role_readme.main(["--check", roles]) == 0
    (role / "README.md").write_text("old\n", encoding="utf-8")
    assert role_readme.main(["--check", roles]) == 1
    assert "roles/r/README.md is not what" in capsys.readouterr().out


def test_a_broken_specification_is_an_error_either_way(role: Path) -> None:
    (role / "meta/argument_specs.yml").write_text("a: b: c\n", encoding="utf-8")
    assert role_readme.main([str(role.parent)]) == 1
    assert role_readme.main(["--check", str(role.parent)]) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C(a) V(b) O(c) E(D) RV(e)", "`a` `b` `c` `D` RV(e)"),
        ("I(soft) B(loud)", "*soft* **loud**"),
        (
            "P(gpurig.llm.instances_for#filter) and M(ansible.builtin.copy)",
            "`gpurig.llm.instances_for` and `ansible.builtin.copy`",
        ),
        ("L(the page, https://example.org/a)", "[the page](https://example.org/a)"),
        ("V(f(x))", "`f(x)`"),
    ],
)
def test_markup(text: str, expected: str) -> None:
    assert role_readme.plain(text) == expected
