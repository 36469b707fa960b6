#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a package repository's key on a host, after its fingerprint was checked. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: repository_key
short_description: Have the key of a package repository, checked by its fingerprint
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Fetches an OpenPGP key file and writes it as a binary keyring for C(Signed-By) of an apt source, if every key in it
    has one of the fingerprints. Any key of a keyring can sign, so one stranger among them refuses the file.
  - A keyring that is there and holds keys with these fingerprints only is left alone and nothing is fetched.
  - Needs no gpg on the host.
options:
  url:
    description: Where the key is, C(https://), C(http://) or C(file://). Only the fingerprint vouches for it.
    type: str
    required: true
  path:
    description: The keyring. Its name ends in C(.gpg), by which apt knows that it is binary. Its directory is made.
    type: path
    required: true
  fingerprints:
    description: Fingerprints of 40 hex digits; blanks do not matter.
    type: list
    elements: str
    required: true
  timeout_s:
    description: How long the server may be silent, in seconds.
    type: int
    default: 30
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: The key is fetched and checked, and not written.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Have the key of Docker's repository
  gpurig.llm.repository_key:
    url: https://download.docker.com/linux/debian/gpg
    path: /etc/apt/keyrings/gpurig-docker.gpg
    fingerprints: ["9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88"]
"""

RETURN = r"""
fingerprints:
  description: The fingerprints of the keys in the keyring.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.gpurig.llm.plugins.module_utils.openpgp import (
    KeyFileError,
    fingerprints,
    key_bytes,
    normalized,
    unexpected,
)

MODE = 0o644  # apt reads it as another user
MOST_BYTES = 1 << 20


def refuse_arguments(path: Path, wanted: Sequence[str]) -> None:
    """Raise KeyFileError for arguments with which no keyring could be right."""
    if not wanted:
        raise KeyFileError("fingerprints: empty, so no key could be trusted. Write the one that the maker publishes")
    if path.suffix != ".gpg":
        raise KeyFileError(f"path {path}: its name must end in .gpg, or apt does not read a binary keyring")


def current(path: Path) -> tuple[bytes, tuple[str, ...]]:
    """The keyring as it is, and its keys; nothing of one that is missing or damaged."""
    try:
        data = path.read_bytes()
        return data, fingerprints(data)
    except (OSError, KeyFileError):
        return b"", ()


def checked(data: bytes, wanted: Sequence[str], url: str) -> bytes:
    """The keyring to be. Raises KeyFileError when the file is not exactly what was vouched for."""
    packets = key_bytes(data)
    strange = unexpected(fingerprints(packets), wanted)
    if strange:
        raise KeyFileError(
            f"{url} holds the key {', '.join(strange)}, expected {', '.join(map(normalized, wanted))}. Nothing was "
            "written. Either the file is not the maker's, or the maker has a new key: compare with the maker's own "
            "page, then change the fingerprint"
        )
    return packets


def write(path: Path, data: bytes) -> None:
    """Replace the keyring in one step."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), MODE)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def shown(found: Sequence[str], mode: int | None) -> str:
    """The diff's text."""
    return "".join(f"key {one}\n" for one in found) + (f"mode {mode:04o}\n" if found and mode is not None else "")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "path": {"type": "path", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    url, path, wanted = module.params["url"], Path(module.params["path"]), module.params["fingerprints"]
    try:
        refuse_arguments(path, wanted)
        known = {normalized(one) for one in wanted}
        data, found = current(path)
        mode = path.stat().st_mode & 0o777 if found else None
        packets = data
        if not found or not set(found) <= known:
            with open_url(url, timeout=module.params["timeout_s"], follow_redirects="all") as answer:
                packets = checked(answer.read(MOST_BYTES), wanted, url)
        after = fingerprints(packets)
        changed = packets != data or mode != MODE
        if changed and not module.check_mode:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write(path, packets)
    except KeyFileError as error:
        module.fail_json(msg=f"{path.name}: {error}.")
    except (urllib.error.URLError, OSError, ValueError) as error:
        module.fail_json(
            msg=f"{path.name}: {url} cannot be fetched or written: {error}. Is the host online, and does "
            "rig_environment name the proxy or mirror?"
        )
    diff = {
        "before": shown(found, mode),
        "after": shown(after, MODE),
        "before_header": str(path),
        "after_header": str(path),
    }
    module.exit_json(changed=changed, fingerprints=list(after), diff=diff)


if __name__ == "__main__":
    main()
