# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of this scenario share: Docker's view of the page, and the page's own."""

from __future__ import annotations

import json
from typing import Any

from testinfra.host import Host

CONTAINER = "gpurig-open-webui"
PORT = 8080
ADMIN = "admin@rig.example.org"
SECRETS = "/etc/gpurig/secrets/open-webui.env"
# Run on the host, where the page listens; prints what the last line gives as JSON.
ASK = """
import json, sys, types
package = types.ModuleType("library")
package.__path__ = ["/srv"]
sys.modules["library"] = package
from library.webui_api import Page, enter
page = enter("http://127.0.0.1:8080", {admin!r}, {secrets!r})
print(json.dumps({expression}))
"""


def inspected(host: Host) -> dict[str, Any]:
    """docker inspect of the page."""
    return dict(json.loads(host.check_output("docker inspect %s", CONTAINER))[0])


def ask(host: Host, expression: str) -> Any:
    """What the page says to its administrator: the value of an expression with `page`."""
    return json.loads(
        host.check_output("python3 -c %s", ASK.format(admin=ADMIN, secrets=SECRETS, expression=expression))
    )


def titles(host: Host) -> list[str]:
    """The titles of the administrator's chats."""
    return sorted(ask(host, "[chat['title'] for chat in page.call('GET', '/api/v1/chats/?page=1')]"))


def is_ready(host: Host) -> bool:
    """Whether the page answers that it is up."""
    return host.run("python3 -c %s", f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/ready')").rc == 0
