#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have the files of a tunnel's near end. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: tunnel_end
short_description: Have the files of a tunnel's near end
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Keeps the key of a tunnel, the node's host key that it trusts, and the file that says where it leads.
  - Every state tells the public half of the key, which the node must accept between V(keyed) and V(pointed).
  - The role tunnel uses this module; it is of little use alone.
options:
  name:
    description: Name of the tunnel.
    type: str
    required: true
  dir:
    description: Folder of the tunnels' files. It belongs to O(rig)'s user.
    type: path
    required: true
  host:
    description: Name of the host that the tunnel is to lead to. Needed unless O(state=seen).
    type: str
  user:
    description: Who signs in there. Needed unless O(state=seen).
    type: str
  state:
    description:
      - V(keyed) has program, folder and key. A key that is there is kept.
      - V(pointed) has the host key, the engine's API key and where the tunnel leads. A tunnel that runs follows.
      - V(seen) changes nothing.
    type: str
    choices: [keyed, pointed, seen]
    required: true
  program:
    description: Where the program of the tunnels is to be. Needed with O(state=keyed).
    type: path
  program_text:
    description: Its text. Needed with O(state=keyed).
    type: str
  comment:
    description: Comment of a new key. Needed with O(state=keyed).
    type: str
  leave_first:
    description:
      - Leave the key alone when the tunnel has led to another host or user, whose node must first accept it no longer.
        See RV(leave).
    type: bool
    default: false
  target:
    description:
      - Where the tunnel leads, besides O(host), O(user) and the paths of its own files. Needed with O(state=pointed).
    type: dict
  host_key:
    description: The node's public host key. Needed with O(state=pointed).
    type: str
  secrets_path:
    description:
      - Where the API key of the engine is to be. Needed with O(secrets).
      - With O(state=keyed) it is only seen to that a file can be put there.
    type: path
  secrets:
    description: Content of the file with the engine's API key. Without it that file is left alone.
    type: str
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: partial
    details: The diff shows neither a key nor the program.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Have the key of a tunnel
  gpurig.llm.tunnel_end:
    name: pod
    dir: /etc/gpurig/tunnels
    host: pod1
    user: forward
    state: keyed
    program: /opt/gpurig/envs/tunnel.py
    program_text: "{{ lookup('ansible.builtin.file', 'tunnel.py', rstrip=false) }}"
    comment: gpurig tunnel pod of home
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode, in words.
  returned: success
  type: list
  elements: str
public:
  description: Type and key of the public half, without comment; empty when there is no key, or none that can be read.
  returned: unless O(state=pointed)
  type: str
  sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI
before:
  description:
    - The tunnel's C(name) with the C(host) and C(user) that it has led to; empty when nowhere, or when that is not
      known.
  returned: success
  type: dict
leave:
  description: That the key was left alone, because of O(leave_first).
  returned: success
  type: bool
"""

import errno

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.owned_files import InstallError, Step, owners, result
from ansible_collections.gpurig.llm.plugins.module_utils.tunnel_end import (
    End,
    earlier_target,
    last_known_half,
    plan_folder,
    plan_key,
    plan_target,
    public_half,
)


def known_target(end: End, module: AnsibleModule) -> dict[str, str]:
    """Return where the tunnel has led. Raises InstallError when that cannot be read and a node is to be left for it."""
    try:
        return earlier_target(end)
    except InstallError as error:
        if module.params["leave_first"]:
            raise
        if module.params["state"] == "seen":
            module.warn(str(error))
        return {}


def known_key(end: End, module: AnsibleModule, keygen: str, needed: bool) -> str:
    """Return the public half of the key; where it is not `needed`, that is warned of and not raised."""
    if needed:
        return public_half(end, keygen, lambda: module.tmpdir)
    found, why = last_known_half(end, keygen, lambda: module.tmpdir)
    if why:
        module.warn(
            f"{why} So it is not known which key the tunnel {end.name} has had, and the node may go on accepting it: "
            f"look in its authorized_keys for a line with 'gpurig tunnel {end.name}'."
        )
    return found


def plan(end: End, module: AnsibleModule, keygen: str, leave: bool) -> list[Step]:
    """Return all changes in the order in which they are made. Raises InstallError."""
    params = module.params
    rig = params["rig"]
    ours, theirs = owners(rig.get("user", ""), rig.get("group", ""), must_exist=not module.check_mode)
    if params["state"] == "keyed":
        steps = plan_folder(end, theirs, ours, params["program"], params["program_text"], params["secrets_path"] or "")
        return steps if leave else steps + plan_key(end, theirs, params["comment"], keygen, lambda: module.tmpdir)
    secrets = None if params["secrets"] is None else (params["secrets_path"], params["secrets"])
    target = {**params["target"], "host": params["host"], "user": params["user"]}
    return plan_target(end, theirs, params["host_key"], {key: str(value) for key, value in target.items()}, secrets)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "dir": {"type": "path", "required": True},
            "host": {"type": "str"},
            "user": {"type": "str"},
            "state": {"type": "str", "choices": ["keyed", "pointed", "seen"], "required": True},
            "program": {"type": "path"},
            "program_text": {"type": "str"},
            "comment": {"type": "str"},
            "leave_first": {"type": "bool", "default": False},
            "target": {"type": "dict"},
            "host_key": {"type": "str", "no_log": False},
            "secrets_path": {"type": "path", "no_log": False},
            "secrets": {"type": "str", "no_log": True},
            "rig": {"type": "dict", "required": True},
        },
        required_if=[
            ("state", "keyed", ("host", "user", "program", "program_text", "comment")),
            ("state", "pointed", ("host", "user", "host_key", "target")),
        ],
        required_by={"secrets": "secrets_path"},
        supports_check_mode=True,
    )
    params = module.params
    end = End(params["dir"], params["name"])
    # In check mode the package that brings it may be missing still.
    keygen = module.get_bin_path("ssh-keygen") or ("" if module.check_mode else "ssh-keygen")
    steps: list[Step] = []
    known: dict[str, str] = {}
    try:
        before = known_target(end, module)
        elsewhere = bool(before) and (before["host"], before["user"]) != (params["host"], params["user"])
        leave = elsewhere and params["leave_first"]
        if params["state"] != "seen":
            steps = plan(end, module, keygen, leave)
        if not module.check_mode:
            for step in steps:
                step.act()
        if params["state"] != "pointed":
            certain = params["state"] == "keyed" and not leave and not module.check_mode
            known["public"] = known_key(end, module, keygen, certain)
    except InstallError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        denied = error.errno in {errno.EACCES, errno.EPERM}
        advice = " Run as the user whom the rig belongs to, or as root." if denied else ""
        module.fail_json(msg=f"{error.filename or end.folder}: {error.strerror}.{advice}")
    module.exit_json(before={**before, "name": end.name} if before else {}, leave=leave, **known, **result(steps))


if __name__ == "__main__":
    main()
