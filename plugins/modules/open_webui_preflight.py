#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say whether Open WebUI may be started on its database, before anything is stopped. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_preflight
short_description: Say whether Open WebUI may be started on its database, before anything is stopped
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Looks into the database that the page is to use, in its data directory or in PostgreSQL, and fails with everything
    that is wrong with it at once.
  - It must be reachable, be Open WebUI's, be known to the version that is to run, and its users must fit the way in
    which the page is to be entered.
  - PostgreSQL is looked into with the Python and the driver of O(environment_dir), so that the host needs nothing more.
options:
  data_dir:
    description: The page's data directory.
    type: path
    required: true
  environment_dir:
    description: The Python environment of the version that is to run.
    type: path
    required: true
  database_url:
    description: Where the database is PostgreSQL, its URL, see P(gpurig.llm.postgres_url#filter).
    type: str
    default: ""
  secrets_file:
    description: The page's secrets file, which may not be there yet.
    type: path
    required: true
  auth:
    description: Whether people sign in.
    type: bool
    default: true
  admin:
    description: Address of the administrator.
    type: str
    default: ""
  admin_password_given:
    description: Whether the administrator's password is given, so that it need not be in O(secrets_file).
    type: bool
    default: false
  memory_dir:
    description: Where everything is to be in memory, the folder that is to hold it. Then no database is looked into.
    type: path
  forgotten_dir:
    description: Where everything of an earlier page may be in memory.
    type: path
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
    details: A first run has nothing yet to look into PostgreSQL with.
  diff_mode:
    support: none
    details: It changes nothing.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: See whether the page may be started on its database
  gpurig.llm.open_webui_preflight:
    data_dir: /var/lib/gpurig/open_webui
    environment_dir: /opt/gpurig/envs/open_webui/current
    secrets_file: /etc/gpurig/secrets/open-webui.env
    admin: admin@example.org
"""

RETURN = r"""
database:
  description: Where the database is, without its password.
  returned: success
  type: str
  sample: PostgreSQL database webui at 127.0.0.1 port 5432 as user webui
users:
  description: How many people can sign in; 0 for a database that is to be made.
  returned: success
  type: int
forgotten:
  description: Whether O(forgotten_dir) is there.
  returned: success
  type: bool
notes:
  description: What stays behind, in words.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.memory_dir import memory_problem
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import NOBODY, PASSWORD, PageError, read_secret
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import (
    DATABASE,
    DatabaseError,
    Sqlite,
    Store,
    User,
    acting_as_owner,
    upgrade_problem,
)
from ansible_collections.gpurig.llm.plugins.module_utils.webui_postgres import store_of

MEMORY_BYTES = 256 << 20  # a fresh page takes some 10 MiB; the rest is for chats and documents


def user_problems(users: list[User], params: dict[str, Any], password_known: bool, where: str) -> list[str]:
    """Return why the page could not be entered as asked on a database with these users."""
    if not users:
        return []
    ours = {user.address.lower() for user in users if user.role == "admin"}
    if not params["auth"]:
        if any(user.address == NOBODY for user in users):
            return []
        without = f"{where} has {len(users)} users, and Open WebUI turns authentication off only without any. "
        return [without + "Leave rig_webui.auth at true, or move that database away; nothing here deletes it."]
    admin, problems = params["admin"], []
    if admin.lower() not in ours:
        names = ", ".join(sorted(ours)) or "none"
        problems.append(
            f"{where} has its users already, and {admin} is no administrator among them ({names}). Name one of those "
            "as rig_webui.admin, and give that password once as open_webui_admin_password."
        )
    elif not password_known:
        problems.append(
            f"{where} has its users already, so no password can be generated for {admin}. Give that administrator's "
            f"own once as open_webui_admin_password; it is kept as {PASSWORD} in {params['secrets_file']}."
        )
    return problems


def database_problems(store: Store, params: dict[str, Any]) -> tuple[list[str], int]:
    """Return what is wrong with the database, and how many users it has. Raises DatabaseError."""
    environment = Path(params["environment_dir"])
    if not store.exists():
        return [], 0
    problems = []
    if environment.exists() and (problem := upgrade_problem(Path(params["data_dir"]), environment, store)):
        problems.append(problem)
    users = store.users()
    known = params["admin_password_given"] or params["password_kept"]
    return [*problems, *user_problems(users, params, known, store.in_words)], len(users)


def notes(params: dict[str, Any], store: Store | None) -> list[str]:
    """Say which databases of before are not the page's, in words; `store` is None where it keeps nothing."""
    data_dir, environment = Path(params["data_dir"]), Path(params["environment_dir"])
    before: list[Store] = [local] if (local := Sqlite(data_dir / DATABASE)).exists() else []
    if url := read_secret(params["secrets_file"], "DATABASE_URL"):
        before.append(store_of(url, environment))
    ours = store.in_words if store else ""
    return [
        f"The chats from before stay in {one.in_words}, and are not on this page."
        for one in before
        if one.in_words != ours
    ]


def looked(params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Return problems and what else is to be said. Raises DatabaseError, OSError, PageError."""
    data_dir, environment = Path(params["data_dir"]), Path(params["environment_dir"])
    if params["memory_dir"]:
        problem = memory_problem(params["memory_dir"], MEMORY_BYTES)
        problems = [f"rig_webui.keep is false: {problem}. Otherwise leave rig_webui.keep at true."] if problem else []
        return {"problems": problems, "database": params["memory_dir"], "users": 0, "notes": notes(params, None)}
    params["password_kept"] = bool(read_secret(params["secrets_file"], PASSWORD))
    url = params["database_url"]
    store: Store = store_of(url, environment) if url else Sqlite(data_dir / DATABASE)
    result = {"problems": [], "database": store.in_words, "users": 0, "notes": notes(params, store)}
    if url and check and not environment.exists():
        return result
    with acting_as_owner(data_dir):
        problems, users = database_problems(store, params)
    return {**result, "problems": problems, "users": users}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "data_dir": {"type": "path", "required": True},
            "environment_dir": {"type": "path", "required": True},
            "database_url": {"type": "str", "default": "", "no_log": True},
            "secrets_file": {"type": "path", "required": True, "no_log": False},
            "auth": {"type": "bool", "default": True},
            "admin": {"type": "str", "default": ""},
            "admin_password_given": {"type": "bool", "default": False, "no_log": False},
            "memory_dir": {"type": "path"},
            "forgotten_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        result = looked(module.params, module.check_mode)
    except (DatabaseError, PageError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Run as the directory's owner or as root.")
    if result["problems"]:
        module.fail_json(msg="\n".join(result["problems"]))
    forgotten = module.params["forgotten_dir"]
    result["forgotten"] = bool(forgotten) and Path(forgotten).exists()
    module.exit_json(changed=False, **{name: value for name, value in result.items() if name != "problems"})


if __name__ == "__main__":
    main()
