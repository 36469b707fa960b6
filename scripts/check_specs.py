# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check that every role's argument specification and its defaults say the same.

python scripts/check_specs.py [ROLES_FOLDER]

For the entry point `main`: each default is an option and each option that is not required has the same default, in both
files. For every entry point: it has a task file, and each option is described and of a type that its default fits.
Internal roles are checked like all others. Prints one line per finding; exit code 1 when there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SPEC, DEFAULTS = "meta/argument_specs.yml", "defaults/main.yml"
FITTING: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
    "bits": (str, int),
    "bytes": (str, int),
    "json": (str, list, dict),
    "jsonarg": (str, list, dict),
    "raw": (object,),
}
MISSING = object()
NO_TEXT = "has no description, or one that is not text (a colon in it? then quote it)"


class SpecError(Exception):
    """A file that cannot be read as what it should be."""


def load(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, empty for an empty or absent file. Raises SpecError with the place of a mistake."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{path.name}{place} is not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path.name} holds a {type(content).__name__}, not a mapping")
    return content


def is_template(value: object) -> bool:
    """Whether a value is only known at run time."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def fits(value: object, kind: str) -> bool:
    """Whether a default may stand for an option of this type. None stands for 'not set' everywhere."""
    if value is None or is_template(value):
        return True
    if isinstance(value, bool) and kind not in {"bool", "raw"}:
        return False
    return isinstance(value, FITTING[kind])


def same(left: object, right: object) -> bool:
    """Equality that tells 1, 1.0 and true apart, as YAML does."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


def is_text(description: object) -> bool:
    """Whether this is a description: one text or a list of them."""
    lines = description if isinstance(description, list) else [description]
    return bool(lines) and all(isinstance(line, str) and line.strip() for line in lines)


def option_errors(name: str, option: object) -> Iterator[str]:
    """What is wrong with one option of a specification, and with the options below it."""
    if not isinstance(option, dict):
        yield f"option {name}: is not a mapping"
        return
    if not is_text(option.get("description")):
        yield f"option {name}: {NO_TEXT}"
    kind = option.get("type", "str")
    if kind not in FITTING:
        yield f"option {name}: type {kind!r} does not exist; there are {', '.join(sorted(FITTING))}"
        return
    default, choices, elements = option.get("default"), option.get("choices"), option.get("elements")
    if not fits(default, kind):
        yield f"option {name}: default {default!r} is not of type {kind}"
    if option.get("required") and "default" in option:
        yield f"option {name}: is required and has a default; one of the two has no effect"
    if kind == "list" and elements not in FITTING:
        yield f"option {name}: is a list and does not say of what (elements)"
    elif isinstance(default, list) and not all(fits(item, elements or "raw") for item in default):
        yield f"option {name}: not every element of default {default!r} is of type {elements}"
    if choices is not None and default is not None and not is_template(default):
        for value in default if isinstance(default, list) else [default]:
            if value not in choices:
                yield f"option {name}: default {value!r} is not among its choices {choices}"
    for child, spec in (option.get("options") or {}).items():
        yield from option_errors(f"{name}.{child}", spec)


def default_errors(options: dict[str, Any], defaults: dict[str, Any]) -> Iterator[str]:
    """Where the options of `main` and defaults/main.yml differ."""
    for name in sorted(defaults.keys() - options.keys()):
        yield f"{name}: is in {DEFAULTS} and no option of 'main' in {SPEC}"
    for name, option in options.items():
        if not isinstance(option, dict):
            continue
        value, stated = defaults.get(name, MISSING), option.get("default", MISSING)
        if option.get("required"):
            if value is not MISSING:
                yield f"{name}: is required in {SPEC} and has a default in {DEFAULTS}"
        elif value is MISSING:
            yield f"{name}: is an option that is not required and has no default in {DEFAULTS}"
        elif stated is MISSING and value is not None:
            yield f"{name}: {SPEC} states no default, {DEFAULTS} has {value!r}"
        elif stated is not MISSING and not same(stated, value):
            yield f"{name}: default {stated!r} in {SPEC}, {value!r} in {DEFAULTS}"


def role_errors(role: Path) -> list[str]:
    """Everything wrong with one role's specification; empty when all is well."""
    if not (role / SPEC).is_file():
        return [f"has no {SPEC}"]
    try:
        entries = load(role / SPEC).get("argument_specs")
        defaults = load(role / DEFAULTS)
    except SpecError as error:
        return [str(error)]
    if not isinstance(entries, dict) or "main" not in entries:
        return [f"{SPEC} has no argument_specs.main"]
    errors: list[str] = []
    for entry, spec in entries.items():
        if not isinstance(spec, dict) or not isinstance(spec.get("short_description"), str):
            errors.append(f"entry point {entry}: has no short_description")
            continue
        if not any((role / "tasks" / f"{entry}{suffix}").is_file() for suffix in (".yml", ".yaml")):
            errors.append(f"entry point {entry}: has no tasks/{entry}.yml")
        if "description" in spec and not is_text(spec["description"]):
            errors.append(f"entry point {entry}: {NO_TEXT}")
        options = spec.get("options") or {}
        for name, option in options.items():
            errors.extend(option_errors(name, option))
        if entry == "main":
            errors.extend(default_errors(options, defaults))
    return errors


def main(arguments: list[str]) -> int:
    """Check all roles below a folder (the collection's own by default)."""
    folder = Path(arguments[0]) if arguments else ROOT / "roles"
    roles = sorted(path for path in folder.glob("*") if path.is_dir()) if folder.is_dir() else []
    found = [f"roles/{role.name}: {error}" for role in roles for error in role_errors(role)]
    print("\n".join([*found, f"{len(roles)} roles checked, {len(found)} findings"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
