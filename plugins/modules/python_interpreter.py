#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find a Python that fits, or have uv install one. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_interpreter
short_description: Find a Python that fits, or have uv install one
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - >-
    Runs every Python of the host that can be found (C(PATH), C(/usr/bin), C(/usr/local/bin), pyenv's, uv's in
    O(install_dir), the one that runs the module) and takes the highest version that fits. The distribution's in
    C(/usr/bin) come before others on the system, and those before uv's.
  - Never a virtual environment's; those stand for the Python that they were made from.
  - >-
    When none fits, uv installs its own into O(install_dir). Mirrors and proxies are taken from the task's
    environment.
options:
  python:
    description: Version specifier such as V(3.12) or V(>=3.10,<3.15). Empty takes any Python 3.
    type: str
    required: true
  needs_headers:
    description: Whether C(Python.h) must be there, because code is compiled at run time.
    type: bool
    default: false
  user:
    description: >-
      User who will run the Python. When it is another than the one who runs the module, a Python that not everybody
      may read (in root's home) is not taken.
    type: str
    default: ""
  uv:
    description: The program uv. Needed only when a Python has to be installed.
    type: path
    required: true
  install_dir:
    description: Directory for the Pythons that uv installs.
    type: path
    required: true
  wait_s:
    description: How long to wait for another run that installs at the same place, in seconds.
    type: float
    default: 600
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: When uv would install a Python, RV(path) and RV(version) are empty.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Find a Python 3.12 with headers
  gpurig.llm.python_interpreter:
    python: "3.12"
    needs_headers: true
    user: gpurig
    uv: /opt/gpurig/uv/current/bin/uv
    install_dir: /opt/gpurig/python
  environment: "{{ rig_environment }}"
"""

RETURN = r"""
path:
  description: The interpreter, free of links.
  returned: always
  type: str
  sample: /usr/bin/python3.12
version:
  description: Its version.
  returned: always
  type: str
  sample: 3.12.3
source:
  description: Where it comes from, V(system) or V(managed) by uv.
  returned: always
  type: str
candidates:
  description: Everything that was looked at, one line each, with the reason where it was not taken.
  returned: always
  type: list
  elements: str
progress_file:
  description: File on the host with uv's output, when one is installed.
  returned: always
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.building import BuildError
from ansible_collections.gpurig.llm.plugins.module_utils.interpreters import Need
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import (
    PYTHON_LOG,
    PythonWish,
    is_another_user,
    provide_python,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "str", "required": True},
            "needs_headers": {"type": "bool", "default": False},
            "user": {"type": "str", "default": ""},
            "uv": {"type": "path", "required": True},
            "install_dir": {"type": "path", "required": True},
            "wait_s": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    install_dir = Path(params["install_dir"])
    need = Need(params["python"], headers=params["needs_headers"], for_everyone=is_another_user(params["user"]))
    try:
        outcome = provide_python(PythonWish(need, params["uv"], install_dir, params["wait_s"]), module.check_mode)
    except BuildError as error:
        module.fail_json(msg=str(error))
    found = outcome.interpreter
    result = {
        "changed": outcome.changed,
        "path": found.path if found else "",
        "version": found.version_text if found else "",
        "source": found.source if found else "managed",
        "candidates": list(outcome.candidates),
        "progress_file": str(install_dir / PYTHON_LOG),
    }
    if outcome.changed:
        after = f"{found.path} {found.version_text}" if found else f"Python {need.spec or '3'} by uv in {install_dir}"
        result["diff"] = {"before": "", "after": after + "\n"}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
