#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have uv of one exact version on the host. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: uv_tool
short_description: Have uv of one exact version on the host
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - >-
    Installs uv from the package index, by hash, into C(<uv_dir>/<version>/bin), and points the link
    C(<uv_dir>/current) to it.
  - The pip that comes with Python does it, or where that is not found one of a temporary virtual environment; no script
    from the network is run.
  - >-
    A missing or edited program and a wrong link are found on every run and repaired. A run that was killed is no
    harm.
options:
  requirements:
    description: Text of a requirements file that names one version of uv with its hashes, and nothing else.
    type: str
    required: true
  version:
    description: The version that O(requirements) must name. Empty takes what it names.
    type: str
    default: ""
  uv_dir:
    description: Directory for uv.
    type: path
    required: true
  python:
    description: Interpreter with C(venv) and C(ensurepip) to install with. Empty looks for one on the host.
    type: path
    default: ""
  wait_s:
    description: How long to wait for another run that installs at the same place, in seconds.
    type: float
    default: 600
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
notes:
  - >-
    pip gets the task's environment. Where C(PIP_INDEX_URL), C(PIP_CERT) or C(PIP_FIND_LINKS) are not set they are
    taken from C(UV_DEFAULT_INDEX), C(SSL_CERT_FILE) and C(UV_FIND_LINKS).
"""

EXAMPLES = r"""
- name: Install uv
  gpurig.llm.uv_tool:
    requirements: "{{ lookup('ansible.builtin.file', 'uv.lock') }}"
    uv_dir: /opt/gpurig/uv
  environment: "{{ rig_environment }}"
"""

RETURN = r"""
path:
  description: The program uv.
  returned: always
  type: str
  sample: /opt/gpurig/uv/0.13.8/bin/uv
version:
  description: Its version.
  returned: always
  type: str
differences:
  description: What was wrong with the uv that was there, one line each.
  returned: always
  type: list
  elements: str
plan:
  description: What was done, or in check mode would be.
  returned: always
  type: list
  elements: str
progress_file:
  description: File on the host with pip's output.
  returned: always
  type: str
download_bytes:
  description: What has to be downloaded, as the header of O(requirements) says; 0 when nothing is to be installed.
  returned: always
  type: int
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.building import BuildError
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import parse
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import UV_LOG, UvWish, converge_uv


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "requirements": {"type": "str", "required": True},
            "version": {"type": "str", "default": ""},
            "uv_dir": {"type": "path", "required": True},
            "python": {"type": "path", "default": ""},
            "wait_s": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    uv_dir = Path(params["uv_dir"])
    wish = UvWish(params["requirements"], uv_dir, params["python"] or "", params["wait_s"])
    try:
        outcome = converge_uv(wish, params["version"], module.check_mode)
    except BuildError as error:
        module.fail_json(msg=str(error))
    builds = any(step.action == "build" for step in outcome.steps)
    result = {
        "changed": bool(outcome.steps),
        "path": str(outcome.path / "bin" / "uv"),
        "version": outcome.version,
        "differences": list(outcome.differences),
        "plan": [str(step) for step in outcome.steps],
        "progress_file": str(uv_dir / UV_LOG),
        "download_bytes": parse(params["requirements"]).download_bytes if builds else 0,
    }
    if outcome.steps:
        result["diff"] = {"before": outcome.before, "after": outcome.after}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
