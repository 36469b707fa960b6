#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write an engine's configuration files, after the engine's own parser has read them. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_config
short_description: Write an engine's configuration files, after the engine's own parser has read them
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - A configuration file is named by its content, so it is written once and never changed; a running engine keeps its
    own. That a file is there says that the engine's parser accepted it.
  - All new files are read by one run of O(configs[].checker), because most of its time is the engine's imports. When
    one is refused none is written, and every refusal is reported.
  - Run from a playbook it says every few seconds that it is at work.
options:
  name:
    description: Name of the engine, for messages.
    type: str
    required: true
  configs:
    description: The files that are to be there.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the instance.
        type: str
        required: true
      path:
        description: The file.
        type: path
        required: true
      text:
        description: What it holds.
        type: str
        required: true
      checker:
        description:
          - >-
            Program and arguments that check files of this kind; the files' paths follow. The last line that it prints
            and that begins with C(dry_run) says V(ok) behind the colon, or what is wrong with which file, the problems
            joined by C( | ).
        type: list
        elements: str
        required: true
      environment:
        description: Variables for the checker.
        type: dict
        default: {}
      needs:
        description: A path that this very run may bring; while it is missing, check mode leaves the checker out.
        type: path
  user:
    description: Run the checker as this user. Empty, and for anybody but root, it runs as the present one.
    type: str
    default: ""
  look_only:
    description: Say in check mode which files are missing, without the checker. For the action plugin.
    type: bool
    default: false
  timeout_s:
    description: How long the checker may take, in seconds.
    type: int
    default: 300
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: The checker runs in check mode too, where it is installed already.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Check and write the configurations
  gpurig.llm.engine_config:
    name: vllm
    configs:
      - name: chat
        path: /etc/gpurig/instances/chat-0123456789ab.yaml
        text: "model: /var/lib/gpurig/models/chat\n"
        checker: [/opt/gpurig/envs/vllm/0123456789abcdef/bin/python, /opt/gpurig/envs/vllm/dry_run.py]
    user: gpurig
"""

RETURN = r"""
written:
  description: The files that were written, or in check mode would be.
  returned: always
  type: list
  elements: str
refused:
  description: What the engine's parser refuses, one line each.
  returned: failure
  type: list
  elements: str
"""

import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.config_check import CheckerError, verdicts
from ansible_collections.gpurig.llm.plugins.module_utils.small_files import write_text


def read_text(path: str) -> str:
    """Return the file's text; empty when it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def is_there(config: dict[str, Any]) -> bool:
    """Whether the checker and what the file is about exist, which in check mode they may not yet."""
    return all(Path(path).exists() for path in (config["checker"][0], config["needs"]) if path)


def by_checker(configs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the configurations in groups that one run of a checker can read."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        groups.setdefault(json.dumps([config["checker"], config["environment"]], sort_keys=True), []).append(config)
    return list(groups.values())


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "configs": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "path": {"type": "path", "required": True},
                    "text": {"type": "str", "required": True},
                    "checker": {"type": "list", "elements": "str", "required": True},
                    "environment": {"type": "dict", "default": {}},
                    "needs": {"type": "path"},
                },
            },
            "user": {"type": "str", "default": ""},
            "look_only": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    missing = [config for config in params["configs"] if read_text(config["path"]) != config["text"]]
    refused: list[str] = []
    try:
        judged = [config for config in missing if not module.check_mode or is_there(config)]
        for group in [] if params["look_only"] else by_checker(judged):
            refused += verdicts(group, params["user"], params["timeout_s"])
    except CheckerError as error:
        module.fail_json(msg=f"{params['name']}: the configurations could not be checked: {error}", refused=[])
    if refused:
        module.fail_json(
            msg="\n- ".join([f"{params['name']} refuses what it is to be started with:", *refused])
            + "\nNothing was stopped. Correct the instance in rig_instances.",
            refused=refused,
        )
    try:
        for config in [] if module.check_mode else missing:
            Path(config["path"]).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_text(config["path"], config["text"])
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: cannot be written: {error.strerror}.", refused=[])
    module.exit_json(
        changed=bool(missing),
        written=[config["path"] for config in missing],
        diff=[
            {"before_header": config["path"], "after_header": config["path"], "before": "", "after": config["text"]}
            for config in missing
        ],
    )


if __name__ == "__main__":
    main()
