# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks take away of a page, on a sandbox that has the records of one and a docker command.

Containers of a real Docker are in molecule/compose.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.docker_images import Image, answer_dir

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE = Image("ghcr.io/open-webui/open-webui", f"sha256:{'a' * 64}")
Play = Callable[..., str]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a playbook of ours on a sandbox with a page in a container and a tunnel; return what it printed."""
    host = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "rig_kind": "sandbox",
        "rig_root": str(tmp_path / "rig"),
    }
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"here": host}}}), encoding="utf-8")
    config = tmp_path / "rig/etc"
    (config / "services").mkdir(parents=True)
    for name, owner in (("open-webui", "page"), ("tunnel-far", "tunnel")):
        record = {"name": name, "labels": {"owner": owner}}
        (config / f"services/{name}.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    answer = answer_dir(IMAGE, config / "open_webui_images") / "open_webui.json"
    answer.parent.mkdir(parents=True)
    answer.write_text(json.dumps({"reference": IMAGE.reference}), encoding="utf-8")
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text("#!/bin/sh\n", encoding="utf-8")
    docker.chmod(0o755)

    def run(name: str, *words: str, rc: int = 0) -> str:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "ansible",
                "playbook",
                "-i",
                inventory,
                REPOSITORY / "playbooks" / name,
                *words,
            ],
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "PATH": f"{docker.parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == rc, done.stdout + done.stderr
        return done.stdout

    return run


def test_what_nobody_asks_for_is_stopped_with_tags_too(play: Play) -> None:
    """The firewall's rules go with that tag, so the page has to go with it before."""
    said = play("page.yml", "--check", "--tags", "open_webui,tunnel")
    assert "changed: [here] => (item=open-webui)" in said
    assert "changed: [here] => (item=tunnel-far)" in said
    assert "open_webui : Remove its container and its images" in said


def test_nothing_is_gone_back_from_where_a_port_was_refused(play: Play, tmp_path: Path) -> None:
    """Who has the port is said, and what runs goes on."""
    book, record = tmp_path / "service.yml", tmp_path / "rig/etc/services/open-webui.json"
    spec = {"name": "open-webui", "argv": ["/bin/false"], "health_url": "http://127.0.0.1:9/"}
    learn = {"ansible.builtin.import_tasks": str(REPOSITORY / "playbooks/tasks/learn.yml")}
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = {"service_spec": spec, "service_port": other.getsockname()[1], "host_tool_ready": True}
        tasks = [learn, {"ansible.builtin.include_role": {"name": "gpurig.llm.service"}, "vars": given}]
        book.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
        before = record.read_bytes()
        said = play(book, rc=2)
    assert "is taken by" in said
    assert "Say what went wrong and what serves now" in said
    assert "Bring back what was healthy before" not in said, "a skipped task is not shown"
    assert record.read_bytes() == before
