#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy Open WebUI's database before an upgrade, and put a copy back. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_database
short_description: Copy Open WebUI's database before an upgrade, and put a copy back
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - An upgrade of Open WebUI changes its database one way only. So a copy is made before another version gets it, and
    a version that does not know the database is refused.
  - Copies are made by SQLite's own backup or by C(pg_dump), also while the page writes. They lie in C(backups) in the
    data directory.
  - Works as the owner of the directory, also when root calls it.
options:
  data_dir:
    description: The page's data directory, which holds C(webui.db) unless the database is PostgreSQL.
    type: path
    required: true
  secrets_file:
    description:
      - The page's secrets file. Where it has a C(DATABASE_URL), that PostgreSQL database is meant, and copies need
        the programs of the package postgresql-client, at least as new as the server.
    type: path
  environment_dir:
    description:
      - The Python environment of the version that is to run, or the folder with what its image said
        of itself (M(gpurig.llm.container_image)).
    type: path
    required: true
  state:
    description:
      - V(ready) makes sure that the version may be started on this database, and that there is a copy when the
        database was last used by another one. Nothing happens without a database.
      - V(used) notes that the version uses the database from now on. Until then the upgrade is pending, and
        O(state=ready) makes sure of a copy again.
      - V(restored) puts O(backup) back. Stop the page before.
    type: str
    choices: [ready, used, restored]
    default: ready
  backup:
    description: Name of the copy to put back. Empty takes the newest one.
    type: str
    default: ""
  keep:
    description: How many copies stay, at least one.
    type: int
    default: 3
extends_documentation_fragment: [gpurig.llm.attributes]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details: O(state=restored) always puts the copy back.
"""

EXAMPLES = r"""
- name: Have a copy before another version gets the database
  gpurig.llm.open_webui_database:
    data_dir: /var/lib/gpurig/open_webui
    environment_dir: /opt/gpurig/envs/open_webui/current
- name: Go back
  gpurig.llm.open_webui_database:
    data_dir: /var/lib/gpurig/open_webui
    environment_dir: /opt/gpurig/envs/open_webui/current
    secrets_file: /etc/gpurig/secrets/open-webui.env
    state: restored
"""

RETURN = r"""
backup:
  description: The copy that was made or put back, or would be made in check mode; empty when there was nothing to do.
  returned: success
  type: str
version:
  description: The version that used the database last; V(unknown) for one that was not ours, empty without a database.
  returned: success
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import PageError, read_secret
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import (
    DATABASE,
    DatabaseError,
    Sqlite,
    Store,
    acting_as_owner,
    back_up,
    backups,
    note_version,
    package_version,
    pending_upgrade,
    put_back,
    recorded_version,
    upgrade_problem,
    version_of,
)
from ansible_collections.gpurig.llm.plugins.module_utils.webui_postgres import store_of


def ready(store: Store, data_dir: Path, environment: Path, keep: int, check: bool) -> tuple[str, str, str]:
    """Return (copy, version before, version after); the copy is empty when none was needed. Raises DatabaseError."""
    before = recorded_version(data_dir, store)
    if check and not environment.exists():
        return f"webui-{before}-*{store.suffix}", before, "a version that this run would install"
    after = package_version(environment)
    problem = upgrade_problem(data_dir, environment, store)
    if problem:
        raise DatabaseError(problem)
    if before == after and not pending_upgrade(data_dir, store):
        return "", before, after
    if check:
        return f"webui-{before}-*{store.suffix}", before, after
    return str(back_up(data_dir, environment, keep, store)), before, after


def restored(store: Store, data_dir: Path, name: str, check: bool) -> tuple[str, str, str]:
    """Return (copy, version before, version of the copy). Raises DatabaseError."""
    copies = backups(data_dir, store)
    if not name and not copies:
        raise DatabaseError(f"{data_dir} has no copy of {store.in_words} to put back")
    before = recorded_version(data_dir, store)
    wanted = name or copies[-1].name
    if not check:
        put_back(data_dir, wanted, store)
    return wanted, before, version_of(wanted)


def used(store: Store, data_dir: Path, environment: Path, check: bool) -> tuple[bool, str, str]:
    """Return (whether that is news, version before, version after). Raises DatabaseError."""
    before, after = recorded_version(data_dir, store), package_version(environment)
    news = before != after or bool(pending_upgrade(data_dir, store))
    if news and not check:
        note_version(data_dir, store, after)
    return news, before, after


def there(store: Store, environment: Path, check: bool) -> bool:
    """Whether there is a database to look at. A first run in check mode has nothing to look into PostgreSQL with."""
    if check and not environment.exists() and not isinstance(store, Sqlite):
        return False
    return store.exists()


def done(store: Store, params: dict[str, Any], check: bool) -> dict[str, Any]:
    """Do what is asked and return it as the module does. Raises DatabaseError, OSError, PageError."""
    data_dir, environment = Path(params["data_dir"]), Path(params["environment_dir"])
    if not there(store, environment, check):
        if params["state"] == "ready" and not check:
            note_version(data_dir, store, package_version(environment))
        return {"changed": False, "backup": "", "version": "", "diff": {"before": "", "after": ""}}
    copy = ""
    if params["state"] == "used":
        changed, before, after = used(store, data_dir, environment, check)
    elif params["state"] == "ready":
        copy, before, after = ready(store, data_dir, environment, params["keep"], check)
        changed = bool(copy)
    else:
        copy, before, after = restored(store, data_dir, params["backup"], check)
        changed = True
    diff = {"before": f"last used by {before}\n", "after": f"last used by {after}\n"}
    return {"changed": changed, "backup": copy, "version": before, "diff": diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "data_dir": {"type": "path", "required": True},
            "secrets_file": {"type": "path", "no_log": False},
            "environment_dir": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["ready", "used", "restored"], "default": "ready"},
            "backup": {"type": "str", "default": ""},
            "keep": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )
    params = module.params
    data_dir, environment = Path(params["data_dir"]), Path(params["environment_dir"])
    if params["keep"] < 1:
        found = params["keep"]
        module.fail_json(msg=f"keep (open_webui_copies) is {found}; needed: 1 or more, as a copy is the way back.")
    try:
        url = read_secret(params["secrets_file"], "DATABASE_URL") if params["secrets_file"] else ""
        store: Store = store_of(url, environment) if url else Sqlite(data_dir / DATABASE)
        with acting_as_owner(data_dir):
            result = done(store, params, module.check_mode)
    except (DatabaseError, PageError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Run as the directory's owner or as root.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
