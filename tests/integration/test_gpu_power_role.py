# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role gpu_power through ansible-playbook on the guide's simulated rig, with the homelab inventory's own policy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.tests.integration.installed import Rig, installed
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
REPOSITORY = Path(__file__).resolve().parents[2]
HARDWARE = REPOSITORY / "inventories/homelab/host_vars/homelab/hardware.yml"
TRAINER, HOST = "0000:17:00.0", "0000:65:00.0"
MakeRig = Callable[..., LiveRig]


@pytest.fixture
def host() -> Iterator[Rig]:
    with installed() as made:
        yield made


def play(tmp_path: Path, host: Rig, variables: dict[str, Any], *options: str) -> tuple[dict[str, int], str]:
    """Run the role on this host: (the recap's counts, what was printed). The host tool is installed already."""
    facts = {**host.facts, "group": "", "can_set_power": True, **variables.pop("facts", {})}
    tasks = [
        {"name": "Facts", "ansible.builtin.set_fact": {"rig": facts, "cacheable": True}},
        {"name": "Power", "ansible.builtin.include_role": {"name": "gpurig.llm.gpu_power"}},
    ]
    plays = [{"name": "Power", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
    playbook, given = tmp_path / "play.yml", tmp_path / "given.json"
    playbook.write_text(json.dumps(plays), encoding="utf-8")
    basics = {"ansible_python_interpreter": sys.executable, "host_tool_ready": True}
    given.write_text(json.dumps({**basics, **variables}), encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ansible", "playbook", "-i", "localhost,"),
            *(str(playbook), "--diff", "-e", f"@{given}", *options),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    text = done.stdout + done.stderr
    recap = text.partition("PLAY RECAP")[2]
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", recap)}, text


def test_the_homelabs_policy(tmp_path: Path, make_rig: MakeRig, host: Rig) -> None:
    rig = make_rig("guide_x299")
    host.install(nvml_path=rig.nvml_path)
    cards = {place.pci: place.uuid for place in rig.machine.places}
    variables = {
        "rig_power": yaml.safe_load(HARDWARE.read_text(encoding="utf-8"))["rig_power"],
        "gpu_power_roles": {"inference": [cards[HOST]], "training": [cards[TRAINER], cards[HOST]]},
        "gpu_power_nvml_path": rig.nvml_path,
        "gpu_power_sysfs_root": rig.sysfs_root,
        "gpu_power_proc_root": rig.proc_root,
    }
    foreseen, text = play(tmp_path, host, dict(variables), "--check")
    assert (foreseen["failed"], foreseen["changed"]) == (0, 2), text
    assert rig.journal() == []

    done, text = play(tmp_path, host, dict(variables))
    assert (done["failed"], done["changed"]) == (0, 2), text
    assert "= 1385 W, allowed 1500 W: 115 W to spare" in text
    assert {uuid: state["power_limit"] for uuid, state in rig.state().items()} == dict.fromkeys(
        cards.values(), "350000"
    )

    again, text = play(tmp_path, host, dict(variables))
    assert (again["failed"], again["changed"]) == (0, 0), text

    rig.reboot()
    assert host.command("restart", "gpu-power").returncode == 0
    assert {uuid: state["power_limit"] for uuid, state in rig.state().items()} == dict.fromkeys(
        cards.values(), "350000"
    )

    gone, text = play(tmp_path, host, {**variables, "rig_power": {}})
    assert gone["failed"] == 0, text
    assert {state["power_limit"] for state in rig.state().values() if "power_limit" in state} <= {"450000"}
    assert not Path(host.host.record("gpu-power")).exists()
    assert not Path(host.paths["config"], "gpu_power.json").exists()

    told, text = play(tmp_path, host, {**variables, "facts": {"can_set_power": False}})
    assert (told["failed"], told["changed"]) == (0, 0), text
    assert "power limit is 450 W, wanted 350 W" in text


def test_a_lost_card_does_not_keep_the_others_from_their_boot_unit(
    tmp_path: Path, make_rig: MakeRig, host: Rig
) -> None:
    rig = make_rig("guide_x299")
    host.install(nvml_path=rig.nvml_path)
    cards = {place.pci: place.uuid for place in rig.machine.places}
    rig.fault(TRAINER, "handle", 15)
    variables = {
        "gpu_power_limits": [{"gpu_role": "training", "limit_w": 350}],
        "gpu_power_roles": {"training": [cards[TRAINER], cards[HOST]]},
        "gpu_power_nvml_path": rig.nvml_path,
        "gpu_power_sysfs_root": rig.sysfs_root,
        "gpu_power_proc_root": rig.proc_root,
    }
    done, text = play(tmp_path, host, dict(variables))
    assert done["failed"] == 1, text
    assert f"card {cards[TRAINER]} does not answer" in text
    spec = json.loads(Path(host.host.record("gpu-power")).read_text(encoding="utf-8"))
    assert spec["capabilities"] == ["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_CHOWN", "CAP_DAC_OVERRIDE"]
    rig.reboot()
    assert host.command("restart", "gpu-power").returncode == 0
    assert rig.state()[cards[HOST]]["power_limit"] == "350000"

    wrong = {**variables, "gpu_power_limits": [{"gpu_role": "nobody", "limit_w": 350}]}
    refused, text = play(tmp_path, host, wrong)
    assert refused["failed"] == 1
    assert "no such role" in text
    assert "Read the limits back" not in text
