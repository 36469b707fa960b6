#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the host tool gpurig and the directories of a rig. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_tool
short_description: Install the host tool gpurig and the directories of a rig
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Makes the directories of the rig with their modes and owners.
  - Installs the tool C(gpurig), which starts services, keeps their restart budgets and answers C(status), C(logs),
    C(start), C(stop) and C(uninstall) on the host without Ansible. It is made of the same files as the modules, taken
    from what Ansible ships with this module.
  - Writes C(host.json), which tells the tool what this host is, and on hosts without systemd the configuration of
    supervisord.
  - Whatever is missing, damaged or has another mode is repaired and reported. Of older versions of the tool the last
    one is kept.
options:
  python:
    description: The interpreter that runs the tool, that of its own environment with supervisor and nvidia-ml-py.
    type: path
    required: true
  version:
    description: Version of the collection, for C(host.json).
    type: str
    default: ""
  user:
    description: The user as whom services run. Empty takes it from O(rig).
    type: str
    default: ""
  group:
    description: The group as which services run. Empty takes it from O(rig).
    type: str
    default: ""
  nvml_path:
    description: Where the tool finds NVML, when the loader does not; places separated by a colon.
    type: str
    default: ""
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Of the tool's own files it names those that differ, not their lines.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Install the tool
  gpurig.llm.host_tool:
    rig: "{{ ansible_facts.rig }}"
    python: "{{ ansible_facts.rig.paths.envs }}/tool/current/bin/python"
"""

RETURN = r"""
changes:
  description: What was changed, or would be in check mode, in words.
  returned: success
  type: list
  elements: str
tool_dir:
  description: Directory of the installed version of the tool.
  returned: success
  type: str
"""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils import (
    budget,
    cli,
    docker_images,
    fingerprint,
    firewall_host,
    firewall_plan,
    gpu_model,
    memory_dir,
    nvml,
    power_apply,
    power_cli,
    power_plan,
    procfs,
    services,
    small_files,
    supervisor,
    systemd,
)
from ansible_collections.gpurig.llm.plugins.module_utils.owned_files import (
    InstallError,
    Step,
    lstat,
    owners,
    plan_directory,
    plan_file,
    result,
)
from ansible_collections.gpurig.llm.plugins.module_utils.service_spec import SpecError, render_supervisord_conf

# All that cli imports, directly or not; a test compares. Imported by name, so that Ansible ships them with this module.
TOOL_MODULES: tuple[ModuleType, ...] = (
    budget,
    cli,
    docker_images,
    fingerprint,
    firewall_host,
    firewall_plan,
    gpu_model,
    memory_dir,
    nvml,
    power_apply,
    power_cli,
    power_plan,
    procfs,
    services,
    small_files,
    supervisor,
    systemd,
)

_HEAD = "# Written by gpurig.llm. The next run writes it again: changes made here are lost.\n"
_INIT = _HEAD + '"""The host tool of gpurig.llm."""\n'
_MAIN = _HEAD + "from gpurig.cli import main\n\nraise SystemExit(main())\n"
_DIRECTORY_MODE = 0o755
_LOG_MODE = 0o750
_FILE_MODE = 0o644
_PROGRAM_MODE = 0o755
_PRIVATE_MODE = 0o600
_OWN_NAME = re.compile(r"[0-9a-f]{16}|current\.new|\..*")  # versions, and what a run that was cut off left

# Directories that belong to whoever installs, and those that the services write.
_OURS = ("root", "bin", "tool", "envs", "uv", "python", "config", "secrets", "services", "supervisor_programs")
_SERVICES = ("state", "models", "cache", "log", "run")


def payload() -> dict[str, str]:
    """Return {relative path: text} of one version of the tool."""
    files = {"__main__.py": _MAIN, "gpurig/__main__.py": _MAIN, "gpurig/__init__.py": _INIT}
    for module in TOOL_MODULES:
        # The module's own loader reads it from a directory as well as from the archive that Ansible runs.
        loader: Any = module.__spec__.loader if module.__spec__ else None
        name = module.__name__.rpartition(".")[2]
        files[f"gpurig/{name}.py"] = loader.get_data(module.__file__).decode("utf-8")
    return files


def content_id(files: Mapping[str, str]) -> str:
    """Return the name of the version: 16 hex digits that stand for its content."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def wrapper(python: str, tool: str, host_json: str) -> str:
    """Return the text of <bin>/gpurig."""
    return f"""#!/bin/sh
{_HEAD}GPURIG_HOST_JSON={shlex.quote(host_json)}
export GPURIG_HOST_JSON
python={shlex.quote(python)}
if [ ! -x "$python" ]; then
  echo "gpurig: $python is missing. Run the playbook again." >&2
  exit 78 # no manager starts a service again after this code
fi
# -I: neither the directory one stands in nor PYTHON* variables decide what is imported; -P does not exist before 3.11.
exec "$python" -I {shlex.quote(f"{tool}/current")} "$@"
"""


def plan_link(path: str, target: str) -> list[Step]:
    """Return the change that makes `path` a link to `target`, replaced in one step."""

    def link() -> None:
        if Path(path).is_dir() and not Path(path).is_symlink():
            shutil.rmtree(path)
        temporary = Path(f"{path}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(path)

    had = str(Path(path).readlink()) if Path(path).is_symlink() else None
    if had == target:
        return []
    before = f"link to {had}" if had else ("not a link" if lstat(path) else "missing")
    return [Step(path, before, f"link to {target}", link)]


def _remove(path: str) -> None:
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def plan_strangers(directory: str, known: set[str]) -> list[Step]:
    """Return the removals of what is in a version's directory and not part of it; Python's caches are left alone."""
    found = []
    for path in sorted(Path(directory).rglob("*")):
        relative = str(path.relative_to(directory))
        if "__pycache__" not in path.parts and relative not in known and not path.is_dir():
            found.append(Step(str(path), "not part of the tool", "missing", functools.partial(_remove, str(path))))
    return found


def plan_versions(tool: str, version: str) -> list[Step]:
    """Return the removals of old versions and of what broken runs left, all but the last old version."""
    try:
        entries = [path for path in Path(tool).iterdir() if path.name != version and _OWN_NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    current = Path(tool, "current")
    previous = current.readlink().name if current.is_symlink() else ""
    old = [path for path in entries if path.is_dir() and not path.is_symlink()]
    # The version that is current until this run is the last one, whenever it was made.
    old.sort(key=lambda path: (path.name == previous, path.stat().st_mtime, path.name))
    keep = {path.name for path in old[-1:]}
    return [
        Step(str(path), "old version", "missing", functools.partial(_remove, str(path)))
        for path in sorted(entries)
        if path.name not in keep
    ]


def plan(params: Mapping[str, Any], check: bool) -> tuple[list[Step], str]:
    """Return all changes in the order in which they are made, and the directory of the tool's version."""
    rig = params["rig"]
    paths = rig["paths"]
    user, group = params["user"] or rig.get("user", ""), params["group"] or rig.get("group", "")
    ours, theirs = owners(user, group, must_exist=not check)
    shared = os.geteuid() == 0 and user not in {"", "root"}
    steps: list[Step] = []
    tops = set()
    for name in (*_OURS, *_SERVICES):
        if name not in paths or paths[name] in tops:
            continue
        tops.add(paths[name])
        if name == "supervisor_programs" and rig["service_manager"] != "supervisord":
            continue
        mode = {"secrets": 0o711 if shared else 0o700, "log": _LOG_MODE}.get(name, _DIRECTORY_MODE)
        steps += plan_directory(paths[name], mode, ours if name in _OURS else theirs)
    files = payload()
    version = content_id(files)
    home = f"{paths['tool']}/{version}"
    for directory in (home, f"{home}/gpurig"):
        steps += plan_directory(directory, _DIRECTORY_MODE, ours)
    steps += plan_strangers(home, set(files))
    for relative, text in sorted(files.items()):
        steps += plan_file(f"{home}/{relative}", text, _FILE_MODE, ours)
    host_json = f"{paths['config']}/host.json"
    described = {
        "version": params["version"],
        "kind": rig["kind"],
        "service_manager": rig["service_manager"],
        "paths": dict(paths),
        "user": user,
        "group": group,
        "python": params["python"],
        "nvml_path": params["nvml_path"],
    }
    steps += plan_file(host_json, json.dumps(described, indent=2, sort_keys=True) + "\n", _FILE_MODE, ours, show=True)
    if rig["service_manager"] == "supervisord" and "supervisor_conf" in paths:
        steps += plan_file(paths["supervisor_conf"], render_supervisord_conf(paths), _PRIVATE_MODE, ours, show=True)
    # Last what makes the new version the one in use: a run that is killed before leaves the old one working.
    old = plan_versions(paths["tool"], version)
    steps += plan_link(f"{paths['tool']}/current", version)
    text = wrapper(params["python"], paths["tool"], host_json)
    steps += plan_file(f"{paths['bin']}/gpurig", text, _PROGRAM_MODE, ours, show=True)
    return steps + old, home


def apply(steps: Sequence[Step], python: str) -> None:
    """Make the changes. Raises InstallError, before the first one, when the interpreter is missing."""
    if not Path(python).exists():
        raise InstallError(f"python: {python} does not exist. Build the tool's environment first (role host_tool).")
    for step in steps:
        step.act()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "rig": {"type": "dict", "required": True},
            "python": {"type": "path", "required": True},
            "version": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "group": {"type": "str", "default": ""},
            "nvml_path": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        steps, home = plan(params, module.check_mode)
        if not module.check_mode:
            apply(steps, params["python"])
    except (InstallError, SpecError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename}: {error.strerror}. Run as the user whom the rig belongs to, or as root."
        )
    module.exit_json(tool_dir=home, **result(steps))


if __name__ == "__main__":
    main()
