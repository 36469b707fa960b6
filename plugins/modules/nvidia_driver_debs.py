#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back of an NVIDIA driver: keep the installed packages' files, and install them again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_debs
short_description: Keep the .deb files of the installed NVIDIA driver, and go back to them
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - With O(state=kept) the folder has the files of the driver's packages as they are installed now, from apt's cache or
    its sources, and no others. A file that nobody has any more is reported in RV(missing) and is no failure.
  - With O(state=restored) the packages are installed that the folder was last made for, and those that came since are
    removed.
options:
  folder:
    description: Where the files lie.
    type: path
    required: true
  state:
    description: What is to be done.
    type: str
    choices: [kept, restored]
    default: kept
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: [With O(state=kept) a file that nobody has is looked for again each time.]
"""

EXAMPLES = r"""
- name: Keep what is installed before it is changed
  gpurig.llm.nvidia_driver_debs:
    folder: /var/lib/gpurig/state/nvidia_driver
  become: true

- name: Go back
  gpurig.llm.nvidia_driver_debs:
    folder: /var/lib/gpurig/state/nvidia_driver
    state: restored
  become: true
"""

RETURN = r"""
packages:
  description: The driver's packages with their versions that the folder stands for.
  returned: success
  type: dict
missing:
  description: Packages without a file.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.driver_debs import (
    AptError,
    installed,
    keep,
    look,
    recorded,
    restore,
)


def listed(packages: dict[str, str]) -> str:
    """For the difference."""
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["kept", "restored"], "default": "kept"},
        },
        supports_check_mode=True,
    )
    folder, now = Path(module.params["folder"]), installed()
    before = recorded(folder)
    if module.params["state"] == "kept":
        kept = look(folder, now)
        changed = bool(kept.stale) or before != now or bool(kept.missing)
        if changed and not module.check_mode:
            filled = keep(folder, now)
            changed = bool(kept.stale) or before != now or filled.missing != kept.missing
            kept = filled
        diff = {"before": listed(before), "after": listed(now)}
        module.exit_json(changed=changed, packages=now, missing=list(kept.missing), diff=diff)
    changed = now != before
    if changed and not module.check_mode:
        try:
            restore(folder, now)
        except AptError as error:
            module.fail_json(msg=f"The driver that was here before cannot be installed again: {error}")
    diff = {"before": listed(now), "after": listed(before)}
    module.exit_json(changed=changed, packages=before, missing=[], diff=diff)


if __name__ == "__main__":
    main()
