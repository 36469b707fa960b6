#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Have a container image by its digest, and the volume that goes with it. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_image
short_description: Have a container image by its digest, and the volume that goes with it
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Pulls an image by its digest and never by a tag, so that it is known before what will run. Docker checks all that
    it gets against the digest.
  - What a caller has to know of an image is asked of it once, in a container without network and rights, and kept.
  - Run from a playbook it says every few seconds how far a pull is.
  - Docker's daemon pulls, so a proxy is that of the daemon's own settings (C(proxies) in C(container_engine_daemon));
    the environment of this task does not matter.
options:
  name:
    description: Registry and repository, as in C(ghcr.io/open-webui/open-webui). Needed with O(state=present).
    type: str
    default: ""
  digest:
    description: C(sha256:) and 64 hex digits. Needed with O(state=present).
    type: str
    default: ""
  state:
    description:
      - V(present) has the image.
      - V(pruned) removes the images that O(answers) knows, of whatever registry, and no file of O(needed_by) names.
        Images that others pulled stay, and so does one that a container uses. O(container) is removed first. Where no
        Docker answers nothing is removed, and RV(left) says so.
    type: str
    choices: [present, pruned]
    default: present
  program:
    description: Program of the image, with arguments, that prints what is to be known of it as JSON.
    type: list
    elements: str
    default: []
  answers:
    description:
      - Folder of the answers and of what Docker says while it pulls. Each answer has a folder, named by the SHA-256 of
        its image's reference, with C(open_webui.json), which names the image too.
      - Nobody but root may write there.
    type: path
    required: true
  needed_by:
    description: Folder with files C(*.yaml) that name images. Without it no image of ours is needed.
    type: path
  volume:
    description:
      - An existing volume. Empty asks for none. One that another container than O(container) has while it runs is
        refused, because two pages on one database destroy it.
    type: str
    default: ""
  container:
    description: The container that may have O(volume), or is removed with O(state=pruned). Its volumes stay.
    type: str
    default: ""
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Have the page's image
  gpurig.llm.container_image:
    name: ghcr.io/open-webui/open-webui
    digest: "{{ rig_webui.image_digest }}"
    program: [python3, -c, "print('{}')"]
    answers: /etc/gpurig/open_webui_images
"""

RETURN = r"""
reference:
  description: What a compose file names.
  returned: O(state=present)
  type: str
answer_dir:
  description: Folder with the answer of this image.
  returned: O(state=present)
  type: str
compose:
  description: Path of Docker Compose.
  returned: O(state=present)
  type: str
mountpoint:
  description: Where the host has the content of O(volume); empty without one.
  returned: O(state=present)
  type: str
removed:
  description: The container and the images that were removed.
  returned: O(state=pruned)
  type: list
  elements: str
left:
  description: What stays of ours, with the reason.
  returned: O(state=pruned)
  type: list
  elements: str
progress_file:
  description: File on the host with Docker's output, while it pulls.
  returned: O(state=present)
  type: str
"""

import contextlib
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.docker_images import (
    COMPOSE,
    Image,
    ImageError,
    answer_dir,
    compose_program,
    is_installed,
    is_present,
    mountpoint,
    named_in,
    pull,
    running_users,
    take_away,
    write_answer,
)

ANSWER = "open_webui.json"


def present(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return the result; in check mode nothing is done, and a Docker that is still to come is no problem."""
    image = Image(params["name"], params["digest"])
    answer = answer_dir(image, Path(params["answers"])) / ANSWER
    log = Path(params["answers"], "pull.log")
    result = {"reference": image.reference, "answer_dir": str(answer.parent), "progress_file": str(log)}
    if check and not is_installed():
        return {**result, "changed": True, "compose": COMPOSE, "mountpoint": "", "diff": difference(image, there=False)}
    volume = params["volume"]
    result |= {"compose": compose_program(), "mountpoint": mountpoint(volume) if volume else ""}
    others = [name for name in running_users(volume) if name != params["container"]] if volume else []
    if others:
        raise ImageError(
            f"the volume {volume!r} is in use: {', '.join(others)} runs with it, and two pages on one database destroy "
            f"it. Stop it first: docker stop {' '.join(others)}"
        )
    there = is_present(image)
    changed = not there or not answer.exists()
    if changed and not check:
        if not there:
            pull(image, str(log))
        write_answer(image, params["program"], answer)
    return {**result, "changed": changed, "diff": difference(image, there)}


def difference(image: Image, there: bool) -> dict[str, str]:
    """Return the diff."""
    after = f"{image.reference}\n"
    return {"before": after if there else "", "after": after}


def pruned(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return the result."""
    answers = Path(params["answers"])
    needed = named_in(sorted(Path(params["needed_by"]).glob("*.yaml"))) if params["needed_by"] else ""
    removed, left = take_away(answers, params["container"], needed, check)
    if not check:
        with contextlib.suppress(OSError):
            answers.rmdir()  # only when none is left
    text = "".join(f"{name}\n" for name in removed)
    return {"changed": bool(removed), "removed": removed, "left": left, "diff": {"before": text, "after": ""}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": ""},
            "digest": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "pruned"], "default": "present"},
            "program": {"type": "list", "elements": "str", "default": []},
            "answers": {"type": "path", "required": True},
            "needed_by": {"type": "path"},
            "volume": {"type": "str", "default": ""},
            "container": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    act = present if module.params["state"] == "present" else pruned
    try:
        result = act(module.params, module.check_mode)
    except ImageError as error:
        module.fail_json(msg=f"{error}." + (" Nothing was stopped." if act is present else ""))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Run as root.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
