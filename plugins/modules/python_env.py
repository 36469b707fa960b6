#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the Python environment that a lock describes, beside the one in use, and switch to it. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_env
short_description: Build the Python environment that a lock describes and switch to it
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - >-
    Has uv install what the lock names, every file checked by its hash, into C(<envs_dir>/<name>/<lock id>), and
    then points the link C(<envs_dir>/<name>/current) to it. The lock id is the first 16 hex digits of the SHA-256
    of its text.
  - >-
    Everything but packages' own tests is compiled to bytecode; that of packages which an earlier environment has in the
    same version is taken over from there.
  - The environment in use is not touched meanwhile. When anything fails, C(current) stays as it was.
  - >-
    On every run each file is compared with what it was when the environment was finished. A damaged environment is
    named by file and built again, with damaged files in uv's cache downloaded again.
  - A run that was killed is no harm; two runs at once wait for each other.
options:
  name:
    description: Name of the environment.
    type: str
    required: true
  lock:
    description: >-
      The lock on the host, a requirements file with hashes. Comment lines such as C(# gpurig: python=>=3.10,<3.15)
      say what it needs (C(python), C(needs_headers), C(download_bytes), C(environment_bytes), C(platform)).
      This or O(lock_text) is required.
    type: path
  lock_text:
    description: The text of the lock, in place of a file on the host.
    type: str
  envs_dir:
    description: Directory of all environments.
    type: path
    required: true
  uv:
    description: The program uv.
    type: path
    required: true
  python:
    description: >-
      Interpreter to build on, see M(gpurig.llm.python_interpreter). Not used when nothing has to be built; an
      environment that is there and works stays, also when a newer Python has come. Empty looks for one that fits the
      lock, which needs O(python_dir).
    type: str
    default: ""
  python_dir:
    description: Directory of uv's managed Pythons, where uv may install one when the host has none that fits.
    type: path
  prefer_managed:
    description: >-
      Build on one of uv's managed Pythons, for a host whose own is gone after a restart. The host's own is used, with a
      warning, when uv cannot install one.
    type: bool
    default: false
  user:
    description: Who is to run the environment; a Python that only its owner may read does not do for another user.
    type: str
    default: ""
  cache_dir:
    description: uv's cache. On the file system of O(envs_dir) files are hard-linked from it, elsewhere copied.
    type: path
    required: true
  keep:
    description: How many earlier environments stay, for a way back.
    type: int
    default: 1
  records_dir:
    description: >-
      Directory of the services' records. An environment that one of them names stays, whatever O(keep) says.
    type: path
  margin_bytes:
    description: What must stay free on the disk beyond what the lock says it needs.
    type: int
    default: 268435456
  wait_s:
    description: How long to wait for another run that builds at the same place, in seconds.
    type: float
    default: 1800
  timeout_s:
    description: How long one build may take, in seconds.
    type: float
    default: 7200
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: A lock that is not on the host yet counts as one whose environment would be built.
  diff_mode:
    support: full
    details: Shows the packages and versions, the environments that are there and what is damaged.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Build the environment of llama.cpp
  gpurig.llm.python_env:
    name: llama_cpp
    lock: /opt/gpurig/envs/llama_cpp/cpu.lock
    envs_dir: /opt/gpurig/envs
    uv: /opt/gpurig/uv/current/bin/uv
    python: "{{ found.path }}"
    cache_dir: /var/lib/gpurig/cache/uv
  environment: "{{ rig_environment }}"
"""

RETURN = r"""
path:
  description: The environment.
  returned: always
  type: str
  sample: /opt/gpurig/envs/llama_cpp/0123456789abcdef
current:
  description: The link that services use.
  returned: always
  type: str
python:
  description: The environment's interpreter.
  returned: always
  type: str
lock_id:
  description: Name of the environment's directory.
  returned: always
  type: str
previous:
  description: Lock id that the link pointed to before; empty when it was this one or there was none.
  returned: always
  type: str
built:
  description: Whether the environment was built, not only switched to.
  returned: always
  type: bool
differences:
  description: What was damaged, one line each, at most 50.
  returned: always
  type: list
  elements: str
plan:
  description: What was done, or in check mode would be, in order.
  returned: always
  type: list
  elements: str
seconds:
  description: How long it took.
  returned: always
  type: float
progress_file:
  description: File on the host with uv's output.
  returned: always
  type: str
download_bytes:
  description: What has to be downloaded at most, as the lock says; 0 when nothing is to be built.
  returned: always
  type: int
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.building import BuildError
from ansible_collections.gpurig.llm.plugins.module_utils.environments import LOG, Wish, converge
from ansible_collections.gpurig.llm.plugins.module_utils.interpreters import Need
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import parse
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import (
    PYTHON_LOG,
    PythonWish,
    is_another_user,
    provide_python,
)

SHOWN_AT_MOST = 50


def read_lock(module: AnsibleModule) -> str:
    """The lock's text. In check mode an earlier task may only say that it would put the lock there."""
    if module.params["lock_text"] is not None:
        return str(module.params["lock_text"])
    path = Path(module.params["lock"])
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if module.check_mode:
            module.exit_json(
                changed=True,
                path="",
                current=str(Path(module.params["envs_dir"]) / module.params["name"] / "current"),
                python="",
                lock_id="",
                previous="",
                built=True,
                differences=[],
                plan=[f"build {module.params['name']}: the lock {path} is not there yet"],
                seconds=0.0,
                progress_file="",
                download_bytes=0,
                diff={"before": "", "after": f"environment {module.params['name']} of {path}\n"},
            )
        module.fail_json(msg=f"lock: {path} is not there. Copy the lock to the host first.")
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"lock: {path} cannot be read: {error}")
    return ""


def chosen_python(module: AnsibleModule, wish: Wish) -> str:
    """The interpreter to build on: empty when nothing has to be built. Raises NoPythonError with every way out."""
    if not any(step.action == "build" for step in converge(wish, check=True).steps):
        return ""
    params, lock = module.params, parse(wish.lock_text)
    need = Need(lock.python, headers=lock.needs_headers, for_everyone=is_another_user(params["user"]))
    managed = bool(params["prefer_managed"])
    wanted = PythonWish(need, params["uv"], Path(params["python_dir"]), params["wait_s"], managed=managed)
    found = provide_python(wanted).interpreter
    if found and managed and found.source != "managed":
        module.warn(
            f"{wish.name} is built on {found.path}, because uv could not install a Python of its own (see "
            f"{params['python_dir']}/{PYTHON_LOG}). When a restart brings another system, run the playbook again."
        )
    return found.path if found else ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "lock": {"type": "path"},
            "lock_text": {"type": "str"},
            "envs_dir": {"type": "path", "required": True},
            "uv": {"type": "path", "required": True},
            "python": {"type": "str", "default": ""},
            "python_dir": {"type": "path"},
            "prefer_managed": {"type": "bool", "default": False},
            "user": {"type": "str", "default": ""},
            "cache_dir": {"type": "path", "required": True},
            "keep": {"type": "int", "default": 1},
            "records_dir": {"type": "path"},
            "margin_bytes": {"type": "int", "default": 256 << 20},
            "wait_s": {"type": "float", "default": 1800},
            "timeout_s": {"type": "float", "default": 7200},
        },
        required_one_of=[("lock", "lock_text")],
        mutually_exclusive=[("lock", "lock_text")],
        supports_check_mode=True,
    )
    params = module.params
    if params["keep"] < 0:
        module.fail_json(msg=f"keep is {params['keep']}; needed: 0 or more earlier environments.")
    began = time.monotonic()
    wish = Wish(
        name=params["name"],
        lock_text=read_lock(module),
        envs_dir=Path(params["envs_dir"]),
        uv=params["uv"],
        python=params["python"] or "",
        cache_dir=Path(params["cache_dir"]),
        keep=params["keep"],
        records_dir=Path(params["records_dir"]) if params["records_dir"] else None,
        margin_bytes=params["margin_bytes"],
        wait_s=params["wait_s"],
        timeout_s=params["timeout_s"],
    )
    try:
        if not wish.python and params["python_dir"] and not module.check_mode:
            wish = dataclasses.replace(wish, python=chosen_python(module, wish))
        outcome = converge(wish, module.check_mode)
    except BuildError as error:
        module.fail_json(msg=str(error), progress_file=str(wish.home / LOG))
    shown = list(outcome.differences[:SHOWN_AT_MOST])
    if len(outcome.differences) > SHOWN_AT_MOST:
        shown[-1] = f"and {len(outcome.differences) - SHOWN_AT_MOST + 1} more"
    result: dict[str, Any] = {
        "changed": bool(outcome.steps),
        "path": str(wish.path),
        "current": str(wish.link),
        "python": str(wish.path / "bin" / "python"),
        "lock_id": wish.lock_id,
        "previous": outcome.previous,
        "built": outcome.built,
        "differences": shown,
        "plan": [str(step) for step in outcome.steps],
        "seconds": round(time.monotonic() - began, 2),
        "progress_file": str(wish.home / LOG),
        "download_bytes": parse(wish.lock_text).download_bytes if outcome.built else 0,
    }
    if outcome.steps:
        result["diff"] = {"before": outcome.before, "after": outcome.after}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
