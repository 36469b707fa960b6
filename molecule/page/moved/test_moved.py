# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After a kill of the page and what takes both ends away: a boot, and another pod in the place of the one that was
there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.molecule.page.chain import (
    HOME,
    PAGE_UNIT,
    PLACE,
    POD,
    PORT,
    WORD,
    Chain,
    both_ends,
    is_up_and_says_so,
    kill_sshd,
    podman,
    seconds_to_an_answer,
    start_sshd,
)
from ansible_collections.gpurig.llm.molecule.shared.rig import wait

CHECKOUT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
MOVED_PORT = 40023


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    yield from both_ends()


def test_a_killed_page_comes_back(chain: Chain) -> None:
    page, before = chain.page(), chain.pids()
    chain.home.host.check_output("kill -9 %s", before[0])
    took_s = seconds_to_an_answer(page, time.monotonic(), 120)
    print(f"\nkill -9 of the page: a chat was answered {took_s:.1f} s later")
    after = chain.pids()
    assert after[0] not in {before[0], "0"}
    assert after[1] == before[1]
    assert chain.home.host.check_output("systemctl show %s --property=NRestarts --value", PAGE_UNIT) == "1"


def test_a_boot_of_both_brings_everything_back(chain: Chain) -> None:
    """Without Ansible: systemd at home, the start command in the pod."""
    page = chain.page()
    began = time.monotonic()
    podman("restart", "--time", "5", POD)
    podman("restart", "--time", "20", HOME)
    back = time.monotonic()
    took_s = seconds_to_an_answer(page, back, 180)
    print(f"\nboth hosts started anew within {back - began:.0f} s; a chat was answered {took_s:.1f} s later")
    assert chain.home.host.check_output("systemctl is-system-running --wait") == "running"


def play(*more: str, **pod: Any) -> subprocess.CompletedProcess[str]:
    """Run site.yml over the scenario's inventory, in which the pod has been described anew."""
    moved = PLACE / "moved.json"
    moved.write_text(json.dumps({"all": {"hosts": {POD: pod}}}), encoding="utf-8")
    inventories = [
        f"--inventory={path}" for path in (os.environ["MOLECULE_SCENARIO_DIRECTORY"] + "/inventory.yml", moved)
    ]
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [sys.executable, program, str(CHECKOUT / "site.yml"), *inventories, *more]
    env = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, env=env)


def test_another_pod_in_its_place_is_followed_when_the_inventory_says_so(chain: Chain) -> None:
    """As after a stop and start of a rented one: another port, another host key, and nobody's key authorized."""
    page, before, pod = chain.page(), chain.pids(), chain.pod.host
    kill_sshd(pod)
    pod.check_output("rm -r /home/forward/.ssh /etc/ssh/ssh_host_* && ssh-keygen -A")
    start_sshd(pod, PORT)
    wait("the tunnel says why", lambda: "another host key than the one pinned" in chain.tunnel_says())
    status = chain.home.host.check_output("%s status", chain.home.tool)
    assert "tunnel-pod" in status
    is_up_and_says_so(page)
    kill_sshd(pod)
    back = start_sshd(pod, MOVED_PORT)
    noted = PLACE / "pod_host_key.pub"
    noted.write_text(pod.check_output("cat /etc/ssh/ssh_host_ed25519_key.pub") + "\n", encoding="utf-8")
    done = play("--limit", HOME, ansible_port=MOVED_PORT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    run_s = time.monotonic() - back
    took_s = seconds_to_an_answer(page, back, run_s + 60)
    print(f"\na moved pod: the playbook ran {run_s:.0f} s, a chat was answered {took_s:.1f} s after the pod was there")
    assert chain.pids() == before, "page or tunnel were started anew"
    assert "Page: http://127.0.0.1:8080" in done.stdout
    assert WORD in done.stdout[done.stdout.index("Asked through the page") :].splitlines()[0]
