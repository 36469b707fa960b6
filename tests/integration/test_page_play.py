# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/page.yml with --tags: what it removes, it removes then too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_what_nobody_asks_for_is_stopped_with_tags_too(tmp_path: Path) -> None:
    """The firewall's rules go with that tag, so the page has to go with it before."""
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "rig_kind": "sandbox",
        "rig_root": str(tmp_path / "rig"),
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"here": host}}}), encoding="utf-8")
    services = tmp_path / "rig/etc/services"
    services.mkdir(parents=True)
    for name, owner in (("open-webui", "page"), ("tunnel-far", "tunnel")):
        record = {"name": name, "labels": {"owner": owner}}
        (services / f"{name}.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ansible", "playbook", "--inventory", str(inventory), "--check"),
            *("--tags", "open_webui,tunnel", str(REPOSITORY / "playbooks/page.yml")),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed: [here] => (item=open-webui)" in done.stdout
    assert "changed: [here] => (item=tunnel-far)" in done.stdout
    assert "open_webui : See whether the page ran in a container" in done.stdout
