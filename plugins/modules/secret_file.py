#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep secrets, generated and given ones, in a file that only its owner reads. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_file
short_description: Keep secrets in a file that only its owner reads
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Writes a file of C(NAME=VALUE) lines with mode 0600 and generates a random value for each name that has none.
  - Values that exist are kept for ever, unless O(values) gives others; names that are not asked for are left alone.
  - Generated values are made on the host and never leave it; neither the result nor the diff shows any value.
options:
  path:
    description: The file.
    type: path
    required: true
  names:
    description: Variables that must have a value.
    type: list
    elements: str
    required: true
  values:
    description:
      - Values that are given, by their names. A name with an empty value is left alone.
      - A value is one line that neither begins nor ends with a blank.
    type: dict
    default: {}
  removed:
    description: Variables that must not be there.
    type: list
    elements: str
    default: []
  before:
    description:
      - Where the file is kept as it was, before it is changed. What is there already stays, since that is from an
        earlier run that was cut off.
    type: path
  owner:
    description: Owner of the file. Empty leaves it to the user who runs the module.
    type: str
    default: ""
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details: The diff names the variables and the mode, never a value.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Make the instance's API key
  gpurig.llm.secret_file:
    path: /etc/gpurig/secrets/chat.env
    names: [LLAMA_API_KEY]
- name: Keep a password that somebody else chose
  gpurig.llm.secret_file:
    path: /etc/gpurig/secrets/open-webui.env
    names: [WEBUI_SECRET_KEY]
    values:
      WEBUI_ADMIN_PASSWORD: "{{ vault_page_password }}"
"""

RETURN = r"""
generated:
  description: Names that got a value in this run.
  returned: always
  type: list
  elements: str
path:
  description: The file.
  returned: always
  type: str
before:
  description: O(before) when it is there now, otherwise empty.
  returned: success
  type: str
"""

import os
import pwd
import secrets
import stat
import tempfile
from collections.abc import Collection
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

MODE = 0o600
KEY_BYTES = 32


def read_values(path: Path) -> dict[str, str]:
    """Return the NAME=VALUE pairs of the file; empty when it does not exist."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def describe(values: dict[str, str], mode: int | None, other: Collection[str] = ()) -> str:
    """Return the diff's text: names and mode, no value; of the names in `other` that the value is another one."""
    if mode is None:
        return ""
    shown = (f"{name}=({'another, ' if name in other else ''}hidden)\n" for name in sorted(values) if values[name])
    return "".join(shown) + f"mode {mode:04o}\n"


def bad_values(values: dict[str, str]) -> list[str]:
    """Return the names whose values a line of the file cannot carry."""
    return [name for name, value in values.items() if value != value.strip() or len(value.splitlines()) > 1]


def replace(path: Path, content: bytes) -> None:
    """Replace the file in one step; it is never there half written or readable by others."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), MODE)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "values": {"type": "dict", "default": {}, "no_log": True},
            "removed": {"type": "list", "elements": "str", "default": []},
            "before": {"type": "path"},
            "owner": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    path, owner = Path(module.params["path"]), module.params["owner"]
    before = Path(module.params["before"]) if module.params["before"] else None
    given = {name: str(value) for name, value in module.params["values"].items() if value not in (None, "")}
    if bad := bad_values(given):
        module.fail_json(msg=f"{path}: the value of {', '.join(bad)} begins or ends with a blank or has several lines.")
    try:
        values = read_values(path)
        state = path.stat() if path.exists() else None
    except OSError as error:
        module.fail_json(msg=f"{path}: cannot be read: {error.strerror}. Run as its owner or as root.")
    mode = None if state is None else stat.S_IMODE(state.st_mode)
    wanted_uid = pwd.getpwnam(owner).pw_uid if owner and not (module.check_mode and state is None) else None
    missing = [name for name in module.params["names"] if not values.get(name) and name not in given]
    other = {name for name, value in given.items() if values.get(name) not in (None, "", value)}
    kept = {name: value for name, value in values.items() if name not in module.params["removed"]}
    wrong_owner = wanted_uid is not None and state is not None and state.st_uid != wanted_uid
    changed = bool(missing) or {**kept, **given} != values or mode != MODE or wrong_owner
    after = {**kept, **given, **dict.fromkeys(missing, "generated")}
    result = {
        "changed": changed,
        "generated": missing,
        "path": str(path),
        "diff": {"before": describe(values, mode), "after": describe(after, MODE, other)},
    }
    if changed and not module.check_mode:
        try:
            made = {name: secrets.token_urlsafe(KEY_BYTES) for name in missing}
            if before and state is not None and not before.exists():
                replace(before, path.read_bytes())
            lines = (f"{name}={value}\n" for name, value in {**kept, **given, **made}.items())
            replace(path, "".join(lines).encode())
            if wanted_uid is not None:
                os.chown(path, wanted_uid, -1)
        except OSError as error:
            module.fail_json(msg=f"{path}: cannot be written: {error.strerror}. Check the directory's owner.", **result)
    module.exit_json(before=str(before) if before and before.exists() else "", **result)


if __name__ == "__main__":
    main()
