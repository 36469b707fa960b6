# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Docker Compose is told about the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils import webui_compose
from ansible_collections.gpurig.llm.plugins.module_utils.webui_compose import LAUNCH, SECRETS, compose

PAGE: dict[str, Any] = {
    "image": f"ghcr.io/open-webui/open-webui@sha256:{'a' * 64}",
    "user": "998:997",
    "environment": {"PORT": "8080", "HOST": "127.0.0.1"},
    "secrets_file": "/etc/gpurig/secrets/containers/open-webui.env",
    "data_dir": "/var/lib/gpurig/open_webui",
}


def service(**change: Any) -> Any:
    return compose(**{**PAGE, **change})["services"]["open-webui"]


def targets(**change: Any) -> dict[str, Any]:
    return {mount["target"]: mount for mount in service(**change)["volumes"]}


def test_the_directory_is_where_it_is_on_the_host() -> None:
    """So that paths in the database are right for both providers."""
    data = targets()["/var/lib/gpurig/open_webui"]
    assert (data["type"], data["source"], data["read_only"]) == ("bind", "/var/lib/gpurig/open_webui", False)
    assert targets()[SECRETS]["read_only"] is True
    assert "volumes" not in compose(**PAGE)


def test_a_volume_is_where_the_makers_image_has_it() -> None:
    made = compose(**PAGE, volume="theirs")
    assert made["volumes"] == {"data": {"external": True, "name": "theirs"}}
    assert targets(volume="theirs")[webui_compose.IMAGE_DATA] == {
        "type": "volume",
        "source": "data",
        "target": webui_compose.IMAGE_DATA,
    }


def test_what_the_container_may() -> None:
    made = service()
    assert (made["read_only"], made["cap_drop"], made["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert (made["user"], made["restart"], made["network_mode"]) == ("998:997", "no", "host")
    assert made["healthcheck"] == {"disable": True}


def test_a_dollar_sign_is_no_variable_of_compose() -> None:
    made = service(environment={"NAME": "a$b${c}"}, data_dir="/srv/$x")
    assert made["environment"]["NAME"] == "a$$b$${c}"
    assert made["volumes"][1]["source"] == "/srv/$$x"


def test_the_first_process_reads_the_secrets_as_they_are(tmp_path: Path) -> None:
    """Also what a shell would take apart; a comment is none."""
    (tmp_path / "page.env").write_text("# x=1\n\nDATABASE_URL=postgresql://a:b%40c$d'e\"@h/n?x=1&y=2\nEMPTY=\n")
    program = LAUNCH.replace(SECRETS, str(tmp_path / "page.env"))
    show = "import json, os; print(json.dumps({k: os.environ.get(k) for k in ('DATABASE_URL', 'EMPTY', '# x')}))"
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-c", show],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "EMPTY": "not"},
    )
    assert json.loads(done.stdout) == {
        "DATABASE_URL": "postgresql://a:b%40c$d'e\"@h/n?x=1&y=2",
        "EMPTY": "",
        "# x": None,
    }
