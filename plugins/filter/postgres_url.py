# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter postgres_url: the URL of a PostgreSQL database. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.postgres_url import database_url


def postgres_url(postgres: Mapping[str, Any], password: str = "") -> str:
    """Return the URL; '' for an empty mapping."""
    if not postgres:
        return ""
    try:
        place = (str(postgres.get("host", "127.0.0.1")), int(postgres.get("port", 5432)))
        url: str = database_url(*place, str(postgres["name"]), str(postgres["user"]), str(password))
    except KeyError as error:
        raise AnsibleFilterError(f"postgres_url: {error} is missing; needed: name and user of the database") from error
    except ValueError as error:
        raise AnsibleFilterError(f"postgres_url: {error}") from None
    return url


class FilterModule:
    """What Ansible asks a filter plugin file for."""

    def filters(self) -> dict[str, Callable[..., object]]:
        return {"postgres_url": postgres_url}
