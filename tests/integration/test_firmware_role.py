# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role firmware through ansible-playbook on simulated rigs, with the homelab inventory's own expectations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
REPOSITORY = Path(__file__).resolve().parents[2]
HARDWARE = REPOSITORY / "inventories/homelab/host_vars/homelab/hardware.yml"
MakeRig = Callable[..., LiveRig]


def play(tmp_path: Path, hosts: dict[str, tuple[LiveRig, dict[str, Any]]], *arguments: str) -> tuple[int, str]:
    """Run the role on a local host for each rig with its variables; (return code, what was printed).

    The argument 'verify' runs that entry alone, others go to ansible-playbook.
    """
    given = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "rig_kind": "sandbox",
        "rig_root": str(tmp_path / "rig"),
    }
    inventory, playbook = tmp_path / "inventory.yml", tmp_path / "play.yml"
    listed = {
        name: {
            "firmware_nvml_path": rig.nvml_path,
            "firmware_sysfs_root": rig.sysfs_root,
            "firmware_proc_root": rig.proc_root,
            **variables,
        }
        for name, (rig, variables) in hosts.items()
    }
    inventory.write_text(json.dumps({"all": {"hosts": listed, "vars": given}}), encoding="utf-8")
    role = {"name": "gpurig.llm.firmware", "tasks_from": "verify" if "verify" in arguments else "main"}
    tasks = [{"name": "Firmware", "ansible.builtin.include_role": role}]
    plays = [{"name": "Firmware", "hosts": "all", "gather_facts": False, "tasks": tasks}]
    playbook.write_text(json.dumps(plays), encoding="utf-8")
    options = [argument for argument in arguments if argument != "verify"]
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(inventory), str(playbook), *options],
        env={
            **{name: value for name, value in os.environ.items() if name != "NVML_SIM_DIR"},
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def results(text: str) -> dict[str, bool]:
    """Host -> whether it came through, from the recap."""
    recap = text.partition("PLAY RECAP")[2]
    return {line.split()[0]: "failed=0" in line for line in recap.splitlines() if "unreachable=0" in line}


def message(text: str, host: str) -> str:
    """What the failed assertion of a host said, in one line."""
    said = text.partition(f"fatal: [{host}]: FAILED!")[2].partition("\nfatal: ")[0].partition("\nok: ")[0]
    return " ".join(said.split())


def test_expectations_on_many_rigs(tmp_path: Path, make_rig: MakeRig) -> None:
    homelab = {"rig_firmware": yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))["rig_firmware"]}
    names = ("guide_x299", "csm_boot", "old_vbios", "vm_hidden_bar", "pod_4090", "lost_card")
    declared = {
        "rig_gpus": [{"name": "host", "product": "RTX 4090"}],
        "rig_firmware": {
            "expect": [
                {"check": "attachment", "needed": "oculink", "gpu": "host"},
                {"check": "link_width", "at_least": 4, "gpu": "host"},
            ]
        },
    }
    demand = {"rig_firmware": {"expect": [{"check": "boot_mode", "needed": "uefi", "must_be_known": True}]}}
    wrong = {"rig_firmware": {"expect": [{"check": "csm", "needed": "off"}]}}
    rc, text = play(
        tmp_path,
        {
            **{name: (make_rig(name), homelab) for name in names},
            "oculink": (make_rig("oculink_4090"), declared),
            "pod_demanded": (make_rig("pod_4090"), demand),
            "wrong": (make_rig("guide_x299"), wrong),
        },
    )
    assert rc == 2
    assert results(text) == {
        "guide_x299": True,
        "csm_boot": False,
        "old_vbios": False,
        "vm_hidden_bar": True,
        "pod_4090": True,
        "lost_card": False,
        "oculink": True,
        "pod_demanded": False,
        "wrong": False,
    }
    assert "changed=1" not in text
    csm = message(text, "csm_boot")
    for words in (
        "above_4g_decoding: needed enabled, found disabled",
        "(ASUS WS X299 Sage): Above 4G Decoding: Enabled.",
        "resizable_bar of NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): needed enabled, found disabled",
        "resizable_bar of NVIDIA GeForce RTX 4090 (0000:65:00.0): needed enabled, found disabled",
        "Above 4G Decoding: Enabled; Re-Size BAR Support: Enabled; Launch CSM: Disabled",
        "boot_mode: needed uefi, found legacy",
    ):
        assert words in csm, "all failures at once, by the board's own names"
    old = message(text, "old_vbios")
    assert "No switch of the mainboard helps" in old
    assert "0000:41:00.0" not in old, "the other card is right"
    assert "reseat the card" in message(text, "lost_card")
    assert "must_be_known" in message(text, "pod_demanded")
    assert "expect[0].needed: found 'off', needed one of enabled, disabled for csm." in " ".join(text.split())
    told = " ".join(text.partition("Show what cannot be judged here")[2].partition("TASK [")[0].split())
    assert "hidden by the virtual machine" in told
    assert "cannot be read in a container" in told
    table = text.partition("ok: [guide_x299] => \n    msg: |-\n")[2].partition("\nok: ")[0]
    assert 10 <= len(table.splitlines()) <= 15, "a short table"


def test_audit_by_verify_alone_in_check_mode(tmp_path: Path, make_rig: MakeRig) -> None:
    homelab = {"rig_firmware": yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))["rig_firmware"]}
    hosts = {
        "right": (make_rig("guide_x299"), homelab),
        "wrong": (make_rig("csm_boot"), homelab),
        "silent": (make_rig("csm_boot"), {}),
    }
    rc, text = play(tmp_path, hosts, "verify", "--check", "--diff")
    assert (rc, results(text)) == (2, {"right": True, "wrong": False, "silent": True})
