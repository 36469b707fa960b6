#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Use Open WebUI as a person would, and say how it went. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_answer
short_description: Use Open WebUI as a person would, and say how it went
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Signs in, looks which models can be chosen, asks the first one a question through the page and, where documents are
    embedded, one about a small document that is removed again.
  - An engine that is down is no failure of the page; RV(problems) says so.
options:
  url:
    description: Where the page answers.
    type: str
    required: true
  admin:
    description: Address of the administrator. Empty for a page without authentication.
    type: str
    default: ""
  secrets_file:
    description: File that holds his password as C(WEBUI_ADMIN_PASSWORD).
    type: path
    required: true
  models:
    description: Models that must be there to be chosen.
    type: list
    elements: str
    default: []
  documents:
    description: Whether to ask about a document.
    type: bool
    default: false
  question:
    description: What to ask.
    type: str
    default: What is the capital of France? Answer in one sentence.
  timeout_s:
    description: Longest time for one answer, in seconds.
    type: int
    default: 300
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: It asks in check mode too.
  diff_mode:
    support: none
    details: It changes nothing that stays.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Ask through the page
  gpurig.llm.open_webui_answer:
    url: http://127.0.0.1:8080
    admin: admin@example.org
    secrets_file: /etc/gpurig/secrets/open-webui.env
    models: [chat]
"""

RETURN = r"""
version:
  description: The version that answers.
  returned: success
  type: str
models:
  description: The models that can be chosen.
  returned: success
  type: list
  elements: str
answer:
  description: First line of the answer, empty when there was nobody to ask.
  returned: success
  type: str
seconds:
  description: How long that answer took.
  returned: success
  type: float
document:
  description: First line of the answer about the document.
  returned: with O(documents)
  type: str
problems:
  description: What does not work behind the page, in words.
  returned: success
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import NOBODY, Page, PageError, enter, open_to_all

DOCUMENT_NAME = "gpurig-check.txt"
DOCUMENT = "Notes about the machine room. The door of the machine room is painted violet. The key hangs in the kitchen."
DOCUMENT_QUESTION = "What colour is the door of the machine room? Answer in one word."


def first_line(text: str) -> str:
    """Return the first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def use(page: Page, params: dict[str, Any]) -> dict[str, Any]:
    """Return how the page works. Raises PageError when the page itself does not."""
    result: dict[str, Any] = {"version": page.version(), "models": page.models(), "answer": "", "seconds": 0.0}
    problems = [
        f"model {name} cannot be chosen; does its engine run? gpurig status"
        for name in params["models"]
        if name not in result["models"]
    ]
    there = [name for name in params["models"] if name in result["models"]] or result["models"]
    if not there and not problems:
        problems.append("no model can be chosen: no engine that the page knows answers")
    try:
        if there:
            began = time.monotonic()
            result["answer"] = first_line(page.chat(there[0], params["question"], timeout_s=params["timeout_s"]))
            result["seconds"] = round(time.monotonic() - began, 3)
        if there and params["documents"]:
            identity = page.add_document(DOCUMENT_NAME, DOCUMENT)
            try:
                said = page.chat(there[0], DOCUMENT_QUESTION, (identity,), params["timeout_s"])
                result["document"] = first_line(said)
            finally:
                page.remove_document(identity)
    except PageError as error:
        problems.append(str(error))
    return {**result, "problems": problems}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "admin": {"type": "str", "default": ""},
            "secrets_file": {"type": "path", "required": True, "no_log": False},
            "models": {"type": "list", "elements": "str", "default": []},
            "documents": {"type": "bool", "default": False},
            "question": {"type": "str", "default": "What is the capital of France? Answer in one sentence."},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    try:
        page = enter(module.params["url"], module.params["admin"], module.params["secrets_file"])
        if page.sign_up_open():
            module.fail_json(msg=f"{module.params['url']}: strangers can sign themselves up. Run the role open_webui.")
        if module.params["admin"] and open_to_all(module.params["url"]):
            module.fail_json(
                msg=f"{module.params['url']} was used without authentication: everybody can sign in as {NOBODY}, whose "
                "password is known. Give that user another password on the page, or remove the user."
            )
        result = use(page, module.params)
    except PageError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
