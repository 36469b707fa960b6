#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set those settings of a running Open WebUI that the inventory decides. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_settings
short_description: Set those settings of a running Open WebUI that the inventory decides
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Open WebUI keeps its settings in its database, and its environment decides at the first start only. So these are
    set over its API, as its administrator, while it runs.
  - Ours are the connections, the embedding of documents, the model of background tasks, whether tools are offered,
    and that nobody can sign himself up. All other settings stay as people made them, and so do connections that they
    added on the page.
  - Works with Open WebUI 0.12.
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
  secrets_pending:
    description:
      - Whether an earlier step of this very run changes O(secrets_file). It matters in check mode only, where that step
        has not written it.
    type: bool
    default: false
  connections:
    description: OpenAI-compatible APIs, see P(gpurig.llm.webui_connections#filter).
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: Its base URL, ending in C(/v1).
        type: str
        required: true
      key_file:
        description: File that holds its key, as a variable ending in C(API_KEY). Empty for none.
        type: str
        default: ""
      task:
        description: What it is for. The first one for V(embed) embeds documents.
        type: str
        choices: [chat, embed]
        default: chat
      model:
        description: Its model's name; needed for V(embed).
        type: str
        default: ""
      takes_tools:
        description: Whether it can be sent tools. They are offered when all connections take them.
        type: bool
        default: false
      prefix:
        description: What stands before the names of its models where O(connections[].prefixed), with a dot.
        type: str
        default: ""
      prefixed:
        description: Whether another connection has models of the same names, which would hide these.
        type: bool
        default: false
  task_model:
    description: Model that writes titles, tags and the like. Empty lets nobody write them.
    type: str
    default: ""
  settings:
    description: Further settings by the names that the page exports, for example C(ui.default_locale).
    type: dict
    default: {}
  data_dir:
    description: The page's data directory, where it is noted which connections are ours.
    type: path
    required: true
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: A page that does not run yet is taken for one that needs everything, a key file that is not there for one
      that this run would make.
  diff_mode:
    support: full
    details: Keys and passwords are hidden.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Connect the page with the engine
  gpurig.llm.open_webui_settings:
    url: http://127.0.0.1:8080
    admin: admin@example.org
    secrets_file: /etc/gpurig/secrets/open-webui.env
    data_dir: /var/lib/gpurig/open_webui
    connections:
      - url: http://127.0.0.1:8000/v1
        key_file: /etc/gpurig/secrets/chat.env
"""

RETURN = r"""
changes:
  description: Names of the settings that changed, or would in check mode.
  returned: success
  type: list
  elements: str
  sample: [openai.api_base_urls, openai.api_keys]
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.engine_api import EngineError, read_key
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, PageError, enter
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import (
    DatabaseError,
    acting_as_owner,
    note,
    read_record,
)
from ansible_collections.gpurig.llm.plugins.module_utils.webui_settings import (
    CHAT,
    Connection,
    Plan,
    SettingsError,
    plan,
)

OURS = "connections"
TO_COME = "made by this run"


def key_of(path: str, check: bool) -> str:
    """Return the key in the file; in check mode a word for the one of a file that is not there. Raises EngineError."""
    return TO_COME if check and path and not Path(path).exists() else read_key(path)


def planned(page: Page, params: dict[str, Any], owned: list[str], check: bool) -> tuple[Plan, dict[str, Any]]:
    """Return what has to change and the settings now. Raises PageError, EngineError, SettingsError."""
    wanted = [
        Connection(
            url=entry["url"].rstrip("/"),
            task=entry["task"],
            model=entry["model"],
            takes_tools=entry["takes_tools"],
            prefix=entry["prefix"],
            prefixed=entry["prefixed"],
            key=key_of(entry["key_file"], check),
        )
        for entry in params["connections"]
    ]
    current = page.settings()
    return plan(current, wanted, owned, params["task_model"], params["settings"]), current


def main() -> None:
    connection = {
        "url": {"type": "str", "required": True},
        "key_file": {"type": "str", "default": "", "no_log": False},
        "task": {"type": "str", "choices": ["chat", "embed"], "default": "chat"},
        "model": {"type": "str", "default": ""},
        "takes_tools": {"type": "bool", "default": False},
        "prefix": {"type": "str", "default": ""},
        "prefixed": {"type": "bool", "default": False},
    }
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "admin": {"type": "str", "default": ""},
            "secrets_file": {"type": "path", "required": True, "no_log": False},
            "secrets_pending": {"type": "bool", "default": False, "no_log": False},
            "connections": {"type": "list", "elements": "dict", "default": [], "options": connection},
            "task_model": {"type": "str", "default": ""},
            "settings": {"type": "dict", "default": {}},
            "data_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params, data_dir = module.params, Path(module.params["data_dir"])
    ours = [entry["url"].rstrip("/") for entry in params["connections"] if entry["task"] == CHAT]
    try:
        with acting_as_owner(data_dir):
            owned = [str(url) for url in read_record(data_dir).get(OURS) or []]
        page = enter(params["url"], params["admin"], params["secrets_file"])
        wanted, current = planned(page, params, owned, module.check_mode)
        if wanted.changes and not module.check_mode:
            page.change(current, wanted.values)
            left = planned(page, params, owned, check=False)[0].changes
            if left:
                names = ", ".join(change.name for change in left)
                module.fail_json(msg=f"{params['url']} did not keep what it was told: {names}")
        if owned != ours and data_dir.is_dir() and not module.check_mode:
            with acting_as_owner(data_dir):
                note(data_dir, **{OURS: ours})
    except PageError as error:
        if module.check_mode and (params["secrets_pending"] or not error.status):
            module.exit_json(changed=True, changes=[], diff={"before": "", "after": "set when the page runs\n"})
        module.fail_json(msg=str(error))
    except DatabaseError as error:
        module.fail_json(msg=str(error))
    except (EngineError, SettingsError) as error:
        module.fail_json(msg=f"{params['url']}: {error}")
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Run as the rig's user or as root.")
    module.exit_json(
        changed=bool(wanted.changes),
        changes=[change.name for change in wanted.changes],
        diff={
            "before": "".join(f"{change.name}: {change.before}\n" for change in wanted.changes),
            "after": "".join(f"{change.name}: {change.after}\n" for change in wanted.changes),
        },
    )


if __name__ == "__main__":
    main()
