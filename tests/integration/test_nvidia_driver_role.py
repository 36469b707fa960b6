# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role nvidia_driver on hosts whose driver is not its to change: judged before anything is downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import Machine, machine

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
REPOSITORY = Path(__file__).resolve().parents[2]
CHAT = {"name": "chat", "engine": "vllm", "device": "cuda", "state": "present"}
HOSTS: dict[str, tuple[Machine, dict[str, object]]] = {
    "good": (machine("pod_4090"), {}),
    "good_asked": (machine("pod_4090"), {"rig_driver": {"state": "present"}, "rig_allow_driver_change": True}),
    "old": (machine("guide_x299"), {}),
    "old_for_the_processor": (machine("guide_x299"), {"nvidia_driver_instances": [{**CHAT, "device": "cpu"}]}),
    "no_card": (machine("guide_x299"), {"nvidia_driver_sysfs_root": "/none"}),
}
PLAN = {
    "verdict": "install",
    "changes": True,
    "urgent": True,
    "reboot": True,
    "repository": "",
    "words": "w",
}
ALLOWED: dict[str, tuple[dict[str, object], bool, str]] = {
    "itself": ({"nvidia_driver_reboot": True}, False, "Run it from another machine, or without rig_allow_reboot"),
    "by_hand": ({"nvidia_driver_reboot": False}, True, ""),
    "no_sum": ({"repository": "debian12"}, False, "keyring_sha256) is empty"),
    "sum": ({"repository": "debian12", "nvidia_driver_keyring_sha256": "0"}, True, ""),
}


def test_what_cannot_end_well_stops_before_any_change(tmp_path: Path) -> None:
    """A reboot of the machine that the run is on, and a repository that nothing vouches for; check mode tells it."""
    hosts = {}
    for name, (variables, _passes, _said) in ALLOWED.items():
        plan = {**PLAN, "repository": variables.get("repository", "")}
        hosts[name] = {**variables, "__look": {"plan": plan}}
    rig = {"can_reboot": True}
    given = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "rig_allow_reboot": False}
    inventory, playbook = tmp_path / "inventory.yml", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": given}}), encoding="utf-8")
    tasks = [
        {
            "name": "Facts",
            "ansible.builtin.set_fact": {"ansible_facts": {"rig": rig}, "__nvidia_driver_look": "{{ __look }}"},
        },
        {
            "name": "Allowed",
            "ansible.builtin.include_role": {"name": "gpurig.llm.nvidia_driver", "tasks_from": "allowed.yml"},
            "vars": {"nvidia_driver_change": True},
        },
    ]
    playbook.write_text(json.dumps([{"name": "P", "hosts": "all", "gather_facts": False, "tasks": tasks}]))
    for check in ([], ["--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", *check, "-i", str(inventory), str(playbook)],
            env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        recap = done.stdout.partition("PLAY RECAP")[2]
        passed = {line.split()[0]: "failed=0" in line for line in recap.splitlines() if "unreachable=0" in line}
        assert passed == {name: bool(check) or case[1] for name, case in ALLOWED.items()}, done.stdout
        for name, (_variables, passes, said) in ALLOWED.items():
            if not passes and not check:
                assert said in " ".join(done.stdout.partition(f"fatal: [{name}]")[2].split()), done.stdout
        assert "keyring_sha256) is empty" in " ".join(done.stdout.split())


def test_given_drivers_are_judged(tmp_path: Path, make_rig: Callable[..., LiveRig]) -> None:
    """One that serves passes, one that does not stops the run with the ways out; nothing is ever changed."""
    listed = {}
    for name, (described, variables) in HOSTS.items():
        rig = make_rig(described)
        listed[name] = {
            "nvidia_driver_sysfs_root": rig.sysfs_root,
            "nvidia_driver_proc_root": rig.proc_root,
            "nvidia_driver_instances": [CHAT],
            **variables,
        }
    given = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "rig_kind": "sandbox",
        "rig_root": str(tmp_path / "rig"),
    }
    inventory, playbook = tmp_path / "inventory.yml", tmp_path / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": listed, "vars": given}}), encoding="utf-8")
    role = {"name": "Driver", "ansible.builtin.include_role": {"name": "gpurig.llm.nvidia_driver"}}
    play = {"name": "Driver", "hosts": "all", "gather_facts": False, "tasks": [role]}
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory), str(playbook)],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    recap = done.stdout.partition("PLAY RECAP")[2]
    passed = {line.split()[0]: "failed=0" in line for line in recap.splitlines() if "unreachable=0" in line}
    assert passed == {
        "good": True,
        "good_asked": True,
        "old": False,
        "old_for_the_processor": True,
        "no_card": True,
    }, done.stdout
    assert recap.count("changed=0") == len(HOSTS)
    old = " ".join(done.stdout.partition("fatal: [old]")[2].partition("fatal: ")[0].split())
    assert "needs R580 or newer; the driver is 550.163.01" in old
    assert "llama.cpp runs on older drivers" in old
    assert "minCudaVersion 13.0" in old
    assert "lie below 0.31.0" in old
