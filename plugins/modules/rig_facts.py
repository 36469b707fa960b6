#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What kind of host this is, what it may do, and where everything lies on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rig_facts
short_description: Host kind, capabilities and paths of a GPU host
version_added: 0.1.0
description:
  - Detects the kind of the host, or verifies the kind that the inventory declares, and returns what follows from it.
  - A capability of the kind that the host contradicts fails the module, with everything that was seen and the remedy.
    A label that only looks wrong (V(metal) on a virtual machine) is a warning.
  - Roles read the capabilities and paths, never the kind.
  - Of environment variables only known names are looked at; values are never kept.
author:
  - gpurig.llm maintainers (@gpurig)
extends_documentation_fragment:
  - gpurig.llm.attributes
attributes:
  check_mode:
    support: full
    details: Only reads, with or without check mode.
  diff_mode:
    support: none
    details: Nothing is ever changed.
  idempotent:
    support: full
options:
  kind:
    description:
      - The host kind (C(rig_kind)).
      - V(metal) is an own machine, V(vm) a virtual machine with systemd and root, V(pod) a rented container with one
        persistent volume, V(sandbox) one directory of a user on any Linux.
      - V(auto) detects one of the first three. V(sandbox) is chosen, never detected.
    type: str
    choices: [auto, metal, vm, pod, sandbox]
    default: auto
  root:
    description:
      - The directory below which everything of ours lies (C(rig_root)).
      - Empty means the default of the kind, which is C(/opt/gpurig), C(/etc/gpurig) and C(/var/lib/gpurig) for
        V(metal) and V(vm), C(/workspace/gpurig) for V(pod), and C(${XDG_DATA_HOME:-$HOME/.local/share}/gpurig) for
        V(sandbox).
      - The directory need not exist, but it must be possible to create it.
    type: path
    default: ''
  service_user:
    description: The user as whom services run on V(metal) and V(vm). On V(pod) and V(sandbox) it is the present user.
    type: str
    default: gpurig
  capabilities:
    description:
      - What the inventory knows better about single capabilities of the host (C(rig_capabilities)).
      - It is believed and recorded as evidence.
      - What is not named here follows from the kind.
    type: dict
    default: {}
    suboptions:
      can_install_packages:
        description: Whether the distribution's packages are ours to install.
        type: bool
      can_reboot:
        description: Whether a reboot is ours to do.
        type: bool
      can_install_driver:
        description: Whether the GPU driver is ours to install.
        type: bool
      can_set_power:
        description: Whether power limits of GPUs are ours to set.
        type: bool
      container_engine:
        description: Whether containers may run on the host.
        type: bool
  fs_root:
    description: The directory that holds C(/proc), C(/sys), C(/etc) and C(/run) of the host, for tests.
    type: path
    default: /
seealso:
  - module: ansible.builtin.setup
"""

EXAMPLES = r"""
- name: Learn what this host is
  gpurig.llm.rig_facts:

- name: Verify what the inventory declares
  gpurig.llm.rig_facts:
    kind: "{{ rig_kind }}"
    root: "{{ rig_root | default('') }}"

- name: A virtual machine that may set power limits, and whose driver is the provider's
  gpurig.llm.rig_facts:
    kind: vm
    capabilities:
      can_set_power: true
      can_install_driver: false
"""

RETURN = r"""
ansible_facts:
  description: Facts to be used as C(ansible_facts.rig).
  returned: success
  type: dict
  contains:
    rig:
      description: What the host is, may do, and where everything lies.
      type: dict
      returned: success
      contains:
        kind:
          description: The host kind (metal, vm, pod, sandbox).
          type: str
          returned: success
          sample: vm
        kind_declared:
          description: What was asked for, which may be auto.
          type: str
          returned: success
          sample: auto
        service_manager:
          description: What keeps services alive (systemd or supervisord).
          type: str
          returned: success
          sample: systemd
        can_install_packages:
          description: Whether the distribution's packages are ours to install.
          type: bool
          returned: success
        can_reboot:
          description: Whether a reboot is ours to do.
          type: bool
          returned: success
        can_install_driver:
          description: Whether the GPU driver is ours to install.
          type: bool
          returned: success
        can_set_power:
          description: Whether power limits of GPUs are ours to set.
          type: bool
          returned: success
        container_engine:
          description: Whether containers may run on the host.
          type: bool
          returned: success
        keeps_system:
          description: Whether what lies outside of our directories outlives a restart; of a pod only the volume does.
          type: bool
          returned: success
        root_dir:
          description: The directory below which our programs lie.
          type: str
          returned: success
          sample: /opt/gpurig
        volume_dir:
          description:
            - The directory that outlives a rebuild. The state directory of metal and vm, the mount point of the volume
              that holds the root of a pod, the root of a sandbox.
          type: str
          returned: success
          sample: /workspace
        user:
          description: The user as whom services run.
          type: str
          returned: success
          sample: gpurig
        group:
          description: The group as which services run.
          type: str
          returned: success
          sample: gpurig
        paths:
          description:
            - Absolute paths (root, bin, tool, envs, uv, python, config, secrets, services, state, models, cache, log,
              run, supervisor_conf, supervisor_programs, supervisor_socket).
            - The socket moves to a directory in C(/tmp) when its path would be longer than a Unix socket's may be. That
              directory must be created with mode 0700 and refused when it is somebody else's.
          type: dict
          returned: success
          sample: {root: /opt/gpurig, config: /etc/gpurig, models: /var/lib/gpurig/models}
        os:
          description: The distribution (id, version_id, pretty_name, codename).
          type: dict
          returned: success
          sample: {id: debian, version_id: '12', pretty_name: Debian GNU/Linux 12 (bookworm), codename: bookworm}
        arch:
          description: The architecture.
          type: str
          returned: success
          sample: x86_64
        cpu_count:
          description: Processors that may be used, with a container's quota taken into account.
          type: int
          returned: success
          sample: 16
        memory_bytes:
          description: Memory that may be used, with a container's limit taken into account. 0 when it is not known.
          type: int
          returned: success
          sample: 67430551552
        nvidia_driver_version:
          description: Version of the loaded NVIDIA driver; empty when none is loaded.
          type: str
          returned: success
          sample: 580.95.05
        python_venv:
          description: Whether the Python that the modules run on can make virtual environments.
          type: bool
          returned: success
        python_version:
          description: The Python that ran this module.
          type: str
          returned: success
          sample: 3.12.3
        services:
          description: The services on record here, with who asked for each, when the module looked.
          type: dict
          returned: success
          sample: {chat: serve, open-webui: page}
        tunnels:
          description: The tunnels that have a key here, when the module looked.
          type: list
          elements: str
          returned: success
          sample: [pod]
        evidence:
          description: For the kind and each capability, what was seen where (a list of source and found).
          type: dict
          returned: success
          sample: {service_manager: [{source: /run/systemd/system, found: exists}]}
        warnings:
          description: What looks wrong without contradicting a capability.
          type: list
          elements: str
          returned: success
problems:
  description: Each contradiction with what was seen, what is needed and the remedy; the message holds them all.
  returned: failure
  type: list
  elements: str
"""

import contextlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.host import read_evidence
from ansible_collections.gpurig.llm.plugins.module_utils.kinds import AUTO, KINDS, OVERRIDABLE, KindError, decide
from ansible_collections.gpurig.llm.plugins.module_utils.owned_files import InstallError, read_own
from ansible_collections.gpurig.llm.plugins.module_utils.small_files import read_json


def foreign_entries(paths: dict[str, str]) -> list[str]:
    """Return what lies in an existing root that no run of ours made; empty once host.json says that it is ours."""
    root = Path(paths["root"])
    if Path(paths["config"], "host.json").exists() or not root.is_dir():
        return []
    known = {"lost+found"} | {Path(path).parts[len(root.parts)] for path in paths.values() if is_inside(path, root)}
    return sorted(entry.name for entry in root.iterdir() if entry.name not in known)


def is_inside(path: str, root: Path) -> bool:
    """Whether the path lies below the root and is not the root itself."""
    return Path(path) != root and Path(path).is_relative_to(root)


def services_on_record(services: str) -> dict[str, str]:
    """Return name and owner of each service that has a record in the directory; "" for one that names no owner."""
    owners = {}
    for path in sorted(Path(services).glob("*.json")):
        labels = (read_json(str(path)) or {}).get("labels")
        owners[path.stem] = str(labels.get("owner", "")) if isinstance(labels, dict) else ""
    return owners


def tunnels_on_record(tunnels: Path) -> list[str]:
    """Return the names of the tunnels that the role tunnel has files of."""
    found = []
    for path in sorted(tunnels.glob("*.json")):
        with contextlib.suppress(InstallError, OSError, ValueError):
            record = json.loads(read_own(str(path)) or "{}")
            found += [path.stem] if isinstance(record, dict) and "identity" in record else []
    return found


def nvidia_driver_version(fs_root: str) -> str:
    """Return the version of the loaded NVIDIA driver, as its own /proc file says; empty when none is loaded."""
    try:
        text = Path(fs_root, "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": [AUTO, *KINDS], "default": AUTO},
            "root": {"type": "path", "default": ""},
            "service_user": {"type": "str", "default": "gpurig"},
            "capabilities": {
                "type": "dict",
                "default": {},
                "options": {name: {"type": "bool"} for name in OVERRIDABLE},
            },
            "fs_root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    kind, root, fs_root = (module.params[name] for name in ("kind", "root", "fs_root"))
    if not Path(fs_root).is_absolute() or not Path(fs_root).is_dir():
        module.fail_json(
            msg=f"fs_root: found {fs_root!r}. Needed: an absolute path of a directory. Remedy: correct or drop it."
        )
    overrides = {name: value for name, value in module.params["capabilities"].items() if value is not None}

    evidence = read_evidence(fs_root, root, ask_pid1_environ=kind != "sandbox")
    try:
        facts = decide(kind, evidence, root, module.params["service_user"], overrides)
    except KindError as error:
        module.fail_json(msg=str(error), problems=list(error.problems))
    for warning in facts.warnings:
        module.warn(warning)
    strangers = foreign_entries(facts.layout.as_dict())
    if strangers:
        module.fail_json(
            msg=(
                f"rig_root: {facts.layout.root} holds what is not ours: {', '.join(strangers[:5])}. Needed: a "
                "directory that is missing, empty or made by this collection. Remedy: set rig_root to one of its own."
            )
        )
    # Debian ships Python without ensurepip; python3-venv brings it.
    rig = {
        **facts.as_dict(),
        "python_venv": find_spec("ensurepip") is not None,
        "nvidia_driver_version": nvidia_driver_version(fs_root),
        "services": services_on_record(facts.layout.services),
        "tunnels": tunnels_on_record(Path(facts.layout.config, "tunnels")),
    }
    module.exit_json(changed=False, ansible_facts={"rig": rig})


if __name__ == "__main__":
    main()
