# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module gpu_power and `gpurig power` as real processes on simulated rigs, through the real binding of NVML."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.filter.psu_budget import FilterModule
from ansible_collections.gpurig.llm.plugins.module_utils import cli, nvml, power_apply, power_cli
from ansible_collections.gpurig.llm.plugins.module_utils.power_plan import PolicyError, Record, changes_of
from ansible_collections.gpurig.llm.plugins.module_utils.services import Host
from ansible_collections.gpurig.llm.plugins.modules import gpu_power
from ansible_collections.gpurig.llm.tests.integration.installed import Rig, installed
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
TRAINER, HOST = "0000:17:00.0", "0000:65:00.0"
LIMIT, PERSISTENCE, LOCK = (
    "nvmlDeviceSetPowerManagementLimit",
    "nvmlDeviceSetPersistenceMode",
    "nvmlDeviceSetGpuLockedClocks",
)
GUIDE_PSU = {"rating_w": 1500, "standard": "atx2", "cpu_w": 165, "rest_w": 100}
MakeRig = Callable[..., LiveRig]
Power = Callable[..., dict[str, Any]]
Setting = tuple[str, str]


# As Ansible runs a module, each in its own process, but forked after the imports, which take ten times as long.
SERVER = """
import json, os, sys
import pynvml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpurig.llm.plugins.modules import gpu_power
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ["NVML_SIM_DIR"] = order["nvml"]
        with patch_module_args(order["args"]):
            gpu_power.main()
    print(json.dumps({"rc_process": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process


@pytest.fixture
def power(server: subprocess.Popen[str]) -> Power:
    """Run the module in a process of its own: `power(args, check=False)`."""

    def run(args: dict[str, Any], check: bool = False) -> dict[str, Any]:
        assert server.stdin
        assert server.stdout
        ansible = {"_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
        order = {"args": {**args, **ansible}, "nvml": os.environ.get("NVML_SIM_DIR", "")}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        said: list[dict[str, Any]] = []
        while "rc_process" not in (said[-1] if said else {}):
            line = server.stdout.readline()
            assert line, "the module's process ended"
            if line.startswith("{"):
                said.append(json.loads(line))
        assert len(said) == 2, said
        result = said[0]
        assert said[1]["rc_process"] == int(bool(result.get("failed")))
        return result

    return run


def uuids(rig: LiveRig) -> dict[str, str]:
    return {place.pci: place.uuid for place in rig.machine.places}


def setters(rig: LiveRig) -> list[tuple[str, str, int]]:
    """Every setter call so far: (card's PCI address, call, code)."""
    addresses = {uuid: pci for pci, uuid in uuids(rig).items()}
    return [(addresses[line["card"]], line["call"], line["code"]) for line in rig.journal()]


def arguments(rig: LiveRig, limits: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Of the module: roles 'all' and 'one' (the last card), config beside the rig."""
    cards = list(uuids(rig).values())
    roles = {"all": cards, "one": cards[-1:]}
    return {**rig.arguments, "config": str(rig.directory / "etc"), "roles": roles, "limits": limits, **more}


def policy(rig: LiveRig) -> dict[str, Any] | None:
    file = rig.directory / "etc" / "gpu_power.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


# --- four steps on many rigs: check, change, idempotent, idempotent check


@dataclasses.dataclass(frozen=True)
class Story:
    """A rig, what is asked for, and what is to come of it. `calls`: every setter call of all four steps."""

    limits: tuple[dict[str, Any], ...]
    calls: tuple[tuple[str, str, int], ...] = ()
    rig: str = "guide_x299"
    fails: str = ""
    fails_in_check: bool = True
    would: bool = True
    blocked: int = 0
    setters: str = "anyone"
    more: tuple[tuple[str, Any], ...] = ()


def both(pci: str) -> tuple[tuple[str, str, int], ...]:
    return ((pci, PERSISTENCE, 0), (pci, LIMIT, 0))


STORIES = {
    "guide": Story(({"gpu_role": "all", "limit_w": 350},), both(TRAINER) + both(HOST), more=(("psu", GUIDE_PSU),)),
    "one_of_two": Story(({"card": HOST, "percent": 80},), both(HOST)),
    "only_as_root": Story(
        ({"gpu_role": "one", "optimal": True},),
        both(HOST) if os.geteuid() == 0 else ((HOST, PERSISTENCE, 4),) * 2,
        setters="root",
        fails="" if os.geteuid() == 0 else "permission denied by the driver",
        fails_in_check=False,
    ),
    "lost_card": Story(
        ({"gpu_role": "all", "limit_w": 350},), both("0000:02:00.0"), "lost_card", "the card fell off the PCIe bus"
    ),
    "a_card_without_power": Story(
        ({"gpu_role": "all", "limit_w": 300},), both("0000:02:00.0"), "no_power_cable", "has no external power"
    ),
    "below_the_floor": Story(
        ({"gpu_role": "one", "limit_w": 399},), (), "rtx_5090", "399 W for NVIDIA GeForce RTX 5090 (0000:01:00.0) lies "
        "outside of what the card accepts, 400 W to 575 W", would=False
    ),
    "at_the_floor": Story(({"gpu_role": "one", "optimal": True},), both("0000:01:00.0"), "rtx_5090"),
    "no_permission": Story(
        ({"gpu_role": "all", "limit_w": 350},),
        ((TRAINER, PERSISTENCE, 4), (HOST, PERSISTENCE, 4)) * 2,
        setters="nobody",
        fails="permission denied by the driver (nvmlDeviceSetPersistenceMode: Insufficient Permissions). Use root",
        fails_in_check=False,
    ),
    "pod": Story(({"card": "42:00.0", "limit_w": 300},), (), "pod_4090", blocked=2, more=(("can_set_power", False),)),
    "mismatch": Story(
        ({"gpu_role": "one", "limit_w": 300},), (), "driver_mismatch",
        "(library 580.95.05, kernel module 570.195.03). Reboot", would=False,
    ),
    "not_loaded": Story(
        ({"gpu_role": "one", "limit_w": 300},), (), "nouveau", "the NVIDIA kernel driver is not loaded", would=False
    ),
    "laptop_locks": Story(
        ({"gpu_role": "one", "limit_w": 80, "on_unsupported": "lock_clocks", "lock_mhz": 1500},),
        (("0000:01:00.0", PERSISTENCE, 0), ("0000:01:00.0", LOCK, 0)), "laptop",
    ),
    "laptop_reports": Story(
        ({"gpu_role": "one", "limit_w": 80, "on_unsupported": "report"},), (), "laptop", would=False
    ),
    "laptop_refuses": Story(
        ({"gpu_role": "one", "limit_w": 80},), (), "laptop", "takes no power limit at all", would=False
    ),
    "vm_with_persistence": Story(
        ({"gpu_role": "all", "percent": 75},), (("0000:ce:00.0", LIMIT, 0), ("0000:d6:00.0", LIMIT, 0)), "vm_2xa40"
    ),
    "two_of_eight": Story(
        ({"card": "0000:1b:00.0", "limit_w": 500}, {"card": "0000:dc:00.0", "limit_w": 600}),
        (("0000:1b:00.0", LIMIT, 0), ("0000:dc:00.0", LIMIT, 0)), "hgx_8xh100",
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_four_steps(make_rig: MakeRig, power: Power, story: Story) -> None:
    rig = make_rig(story.rig, setters=story.setters)
    args = arguments(rig, list(story.limits), **dict(story.more))
    fails = bool(story.fails)

    check = power(args, check=True)
    assert bool(check.get("failed")) == (fails and story.fails_in_check), check
    assert rig.journal() == []
    assert rig.state() == {}
    assert policy(rig) is None
    assert not (rig.directory / "etc").exists()

    change = power(args)
    assert bool(change.get("failed")) == fails, change
    assert story.fails in change.get("msg", "")
    assert not [pci for pci, _call, _code in setters(rig) if pci not in {call[0] for call in story.calls}]
    if story.fails and not story.would:
        assert (check["msg"], check.get("changed", False)) == (change["msg"], False)
        assert policy(rig) is None
    elif not fails or story.fails_in_check:
        assert check["changed"] is change["changed"] is (story.would and not story.blocked)
        assert check["changes"] == change["changes"]
        assert check["diff"] == change["diff"]
        assert len(check["blocked"]) == len(change["blocked"]) == story.blocked

    before = setters(rig)
    again = power(args)
    assert again.get("changed", False) is False, again
    assert bool(again.get("failed")) == fails
    assert again.get("changes", []) == []
    assert again.get("diff", []) == []

    last = power(args, check=True)
    if not fails or story.fails_in_check:
        assert last.get("changed", False) is False, last
        assert setters(rig) == before
    assert tuple(setters(rig)) == story.calls


def test_what_is_set_is_read_back_and_told(make_rig: MakeRig, run_module: Callable[..., dict[str, Any]]) -> None:
    rig = make_rig("guide_x299")
    done = run_module("gpu_power", arguments(rig, [{"gpu_role": "all", "limit_w": 350}], psu=GUIDE_PSU))
    assert [(card["pci"], card["wanted_w"], card["limit_w"], card["enforced_w"]) for card in done["cards"]] == [
        (TRAINER, 350.0, 350.0, 350.0),
        (HOST, 350.0, 350.0, 350.0),
    ]
    assert (done["cards"][1]["default_w"], done["cards"][1]["min_w"], done["cards"][1]["max_w"]) == (450.0, 10.0, 600.0)
    first, record = done["diff"]
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0), power limit: 450 W\n" in first["before"]
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0), power limit: 350 W\n" in first["after"]
    assert record["before"] == ""
    assert json.loads(record["after"]) == policy(rig)
    assert any(note.endswith("= 1385 W, allowed 1500 W: 115 W to spare") for note in done["notes"])
    assert done["budget"]["fits"] is True
    owned = (policy(rig) or {})["cards"][uuids(rig)[HOST]]
    assert (owned["limit_mw"], owned["persistence_set"], owned["why"]) == (350000, True, "limits[0] (gpu_role all)")


def test_a_coarse_board_and_one_that_only_says_yes(make_rig: MakeRig, power: Power) -> None:
    coarse = make_rig(with_card(machine("rtx_5090"), "0000:01:00.0", nvml={"power_step": "500"}))
    args = arguments(coarse, [{"gpu_role": "one", "limit_w": 450.4}])
    assert power(args)["cards"][0]["limit_w"] == 450.0
    assert power(args)["changed"] is False
    liar = make_rig(with_card(machine("rtx_5090"), "0000:01:00.0", nvml={f"ignores.{LIMIT}": "1"}))
    said = power(arguments(liar, [{"gpu_role": "one", "limit_w": 450}]))
    assert said["failed"]
    assert "the driver accepted the value but the card reports another (power limit: wanted 450000 mW" in said["msg"]


def test_a_card_lost_in_the_middle(make_rig: MakeRig, power: Power) -> None:
    """The trainer leaves at its limit, after its persistence mode: the host is done, the end is a failure."""
    rig = make_rig("guide_x299")
    rig.fault(TRAINER, LIMIT, 15)
    args = arguments(rig, [{"gpu_role": "all", "limit_w": 350}])
    done = power(args)
    assert done["failed"]
    assert done["changed"] is True
    assert "power limit to 350 W: NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): the card fell off" in done["msg"]
    assert "Done: NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): persistence mode off -> on; " in done["msg"]
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0): power limit 450 W -> 350 W." in done["msg"]
    assert [change["setting"] for change in done["changes"]] == ["persistence mode", "persistence mode", "power limit"]
    assert rig.state()[uuids(rig)[HOST]]["power_limit"] == "350000"
    rig.fault(TRAINER, LIMIT, None)
    mended = power(args)
    assert [change["card"] for change in mended["changes"]] == ["NVIDIA GeForce RTX 3090 Ti (0000:17:00.0)"]
    assert not mended.get("failed")


def test_a_card_lost_while_it_is_read(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    rig.fault(TRAINER, "nvmlDeviceGetPowerManagementLimitConstraints", 15)
    done = power(arguments(rig, [{"gpu_role": "all", "limit_w": 350}]))
    assert done["failed"]
    assert "Done: NVIDIA GeForce RTX 4090" in done["msg"]
    assert {pci for pci, _call, _code in setters(rig)} == {HOST}
    alone = power(arguments(rig, [{"card": HOST, "limit_w": 350}]))
    assert not alone.get("failed")
    assert any("fell off" in note for note in alone["notes"])


# --- giving back


def test_what_is_no_longer_named_gets_its_default_back(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    power(arguments(rig, [{"gpu_role": "all", "limit_w": 350}], exclusive=True))
    rig.describe(HOST, "power_limit", None)
    fewer = arguments(rig, [{"card": TRAINER, "limit_w": 350}], exclusive=True)
    foreseen = power(fewer, check=True)
    done = power(fewer)
    assert foreseen["changes"] == done["changes"]
    assert foreseen["diff"] == done["diff"]
    assert [(change["setting"], change["before"], change["after"]) for change in done["changes"]] == [
        ("power limit", "350 W", "450 W"),
        ("persistence mode", "on", "off"),
    ]
    assert power(fewer)["changed"] is False
    assert set((policy(rig) or {})["cards"]) == {uuids(rig)[TRAINER]}
    nothing = arguments(rig, [], exclusive=True)
    assert len(power(nothing)["changes"]) == 2
    assert policy(rig) is None
    calls = len(rig.journal())
    assert power(nothing)["changed"] is False
    assert len(rig.journal()) == calls


def test_a_list_that_is_not_the_whole_leaves_other_cards_alone(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    power(arguments(rig, [{"card": TRAINER, "limit_w": 350}]))
    power(arguments(rig, [{"card": HOST, "limit_w": 400}]))
    assert power(arguments(rig, []))["changed"] is False
    assert set((policy(rig) or {})["cards"]) == set(uuids(rig).values())
    assert rig.state()[uuids(rig)[TRAINER]]["power_limit"] == "350000"


# --- what is refused, before anything is done


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"limits": [{"gpu_role": "all", "limit_w": -350}]},
            ["limits[0].limit_w: found -350, needed a number above 0."],
        ),
        ({"limits": [{"gpu_role": "all", "limit_w": "a lot"}]}, ["limits[0].limit_w: found the text 'a lot'"]),
        ({"limits": [{"gpu_role": "trainig", "limit_w": 300}]}, ["no such role. Roles of this host: all, one."]),
        (
            {"limits": [{"gpu_role": "all", "limit_w": 350}, {"gpu_role": "one", "limit_w": 400}]},
            ["two limits, 350 W by limits[0] (gpu_role all) and 400 W by limits[1] (gpu_role one)."],
        ),
        (
            {"limits": [{"gpu_role": "all", "limit_w": 600}, {"card": "0", "limit_w": 1}]},
            ["limits[1].card: found the text '0', needed a UUID"],
        ),
        (
            {"limits": [{"card": TRAINER, "limit_w": 99}, {"card": HOST, "limit_w": 601}]},
            [
                "99 W for NVIDIA GeForce RTX 3090 Ti",
                "100 W to 480 W",
                "601 W for NVIDIA GeForce RTX 4090",
                "10 W to 600 W",
            ],
        ),
        (
            {"psu": GUIDE_PSU, "limits": [{"gpu_role": "one", "limit_w": 450}]},
            ["450 x 1.6 + 450 x 1.6 + 165 processor + 100 rest = 1705 W, allowed 1500 W: 205 W too much", "771 W"],
        ),
        ({"psu": GUIDE_PSU, "limits": []}, ["= 1705 W, allowed 1500 W: 205 W too much"]),
        ({"psu": {"rating_w": 1500, "standard": "atx2"}}, ["psu.cpu_w: not written, and this host's kernel does not"]),
        ({"psu": {**GUIDE_PSU, "together": [["nobody"]]}}, ["psu.together[0]: no such role: nobody."]),
        ({"ups": {"rating_w": 900}}, ["ups: needs psu beside it"]),
        ({"roles": {"all": ["0"]}}, ["roles: the role 'all' has no list of UUIDs or PCI addresses"]),
    ],
)
def test_refusals(make_rig: MakeRig, power: Power, changes: dict[str, Any], words: list[str]) -> None:
    rig = make_rig("guide_x299")
    args = {**arguments(rig, [{"gpu_role": "all", "limit_w": 350}]), **changes}
    done = power(args)
    assert done["failed"]
    for word in words:
        assert word in done["msg"]
    assert rig.journal() == []
    assert policy(rig) is None


def test_the_guides_supply(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    inference = {**GUIDE_PSU, "together": [["one"]]}
    alone = power(arguments(rig, [], psu=inference))
    assert not alone.get("failed")
    assert [check["group"] for check in alone["budget"]["checks"]] == ["one", "one"]
    uncapped = power(arguments(rig, [], psu={**GUIDE_PSU, "standard": "atx3"}))
    assert not uncapped.get("failed")
    assert any("= 1165 W, allowed 1200 W: 35 W to spare" in note for note in uncapped["notes"])
    assert rig.journal() == []


def test_the_processor_counts_as_the_kernel_tells(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    package(rig.sysfs_root, "165000000")
    psu = {"rating_w": 1500, "standard": "atx2"}
    done = power(arguments(rig, [{"gpu_role": "all", "limit_w": 350}], psu=psu), check=True)
    assert any("the kernel limits the processor to 165 W" in note for note in done["notes"])
    assert any("= 1385 W" in note for note in done["notes"])


def package(sysfs: str, microwatts: str, number: int = 0, name: str = "long_term") -> None:
    zone = Path(sysfs, f"class/powercap/intel-rapl:{number}")
    zone.mkdir(parents=True, exist_ok=True)
    for file, text in (
        ("name", f"package-{number}"),
        ("constraint_0_name", name),
        ("constraint_0_power_limit_uw", microwatts),
        ("constraint_1_name", "short_term"),
        ("constraint_1_power_limit_uw", "300000000"),
    ):
        (zone / file).write_text(f"{text}\n", encoding="utf-8")


def test_limits_of_processors(tmp_path: Path) -> None:
    assert power_apply.processor_limit_w(str(tmp_path)) is None
    package(str(tmp_path), "165000000")
    package(str(tmp_path), "150500000", 1)
    dram = tmp_path / "class/powercap/intel-rapl:0:0"
    dram.mkdir()
    (dram / "name").write_text("dram\n")
    assert power_apply.processor_limit_w(str(tmp_path)) == 315.5
    package(str(tmp_path), "4095875000", 1)  # a board that switches the limit off
    assert power_apply.processor_limit_w(str(tmp_path)) is None
    package(str(tmp_path), "165000000", 1, "peak_power")
    assert power_apply.processor_limit_w(str(tmp_path)) is None


# --- a host that may not, or not yet


def test_a_host_that_may_not_set_limits(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("pod_4090")
    args = arguments(rig, [{"card": "0000:42:00.0", "limit_w": 300}], can_set_power=False)
    done = power(args)
    assert not done.get("failed")
    assert "power limit is 450 W, wanted 300 W" in done["blocked"][1]
    asked = power({**args, "required": True})
    assert asked["failed"]
    assert "rig_power.required: the limits must be set, but can_set_power is false" in asked["msg"]
    assert "power limit is 450 W, wanted 300 W" in asked["msg"]
    outside = power({**args, "limits": [{"card": "0000:42:00.0", "limit_w": 900}]})
    assert outside["failed"]
    lost = power({**args, "limits": [{"card": "0000:02:00.0", "limit_w": 300}]})
    assert not lost.get("failed")
    assert "does not answer" in lost["blocked"][0]
    rig.fault("machine", "nvmlInitWithFlags", 9)
    unloaded = power(args)
    assert not unloaded.get("failed")
    assert "not looked at: the NVIDIA kernel driver is not loaded" in unloaded["blocked"][0]
    assert power({**args, "required": True})["failed"]
    rig.describe("machine", "fault.nvmlInitWithFlags", None)
    for wanted in (450, 300):  # the provider's own limit is as good as ours
        limits = [{"card": "42:00.0", "limit_w": wanted}]
        found = power({**args, "persistence": False, "limits": limits})
        assert len(found["blocked"]) == (wanted == 300)
    assert rig.journal() == []


def test_where_no_limit_may_be_set_the_sums_take_those_that_are(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    wanted = arguments(rig, [{"gpu_role": "all", "limit_w": 350}], psu=GUIDE_PSU, can_set_power=False)
    told = power(wanted)
    assert not told.get("failed"), told
    assert "= 1705 W, allowed 1500 W: 205 W too much" in told["blocked"][-1]
    assert told["budget"]["fits"] is False
    asked = power({**wanted, "required": True})
    assert asked["failed"]
    assert "205 W too much" in asked["msg"]
    assert power({**wanted, "psu": {**GUIDE_PSU, "standard": "atx4"}})["failed"]
    assert rig.journal() == []


def test_a_group_whose_cards_are_elsewhere_has_no_sum(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    roles = {"gone": ["GPU-00000000"], "one": [uuids(rig)[HOST].upper()]}
    done = power(arguments(rig, [], roles=roles, psu={**GUIDE_PSU, "together": [["gone"], ["one"]]}))
    assert [(check["group"], check["sum_w"]) for check in done["budget"]["checks"]] == [("one", 715.0), ("one", 985.0)]
    assert "psu.together[0]: no card of gone answers here, so there is no sum for it." in done["notes"]


def test_without_nvml(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    args = {"limits": [{"gpu_role": "a", "limit_w": 300}], "config": str(tmp_path), "roles": {"a": ["GPU-x"]}}
    args["nvml_path"] = str(tmp_path / "libnvidia-ml.so.1")
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    foreseen = run_module("gpu_power", args, check=True)
    assert not foreseen.get("failed")
    assert "Nothing is foreseen: the NVML library libnvidia-ml.so.1 was not found" in foreseen["notes"][0]
    assert run_module("gpu_power", args)["failed"]
    assert run_module("gpu_power", {**args, "limits": []})["changed"] is False


# --- files


def test_the_map_of_roles_is_read(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    args = {key: value for key, value in arguments(rig, [{"gpu_role": "x", "limit_w": 300}]).items() if key != "roles"}
    assert "no such role. Roles of this host: none." in power(args)["msg"]
    etc = Path(args["config"])
    etc.mkdir(exist_ok=True)
    (etc / "gpu_roles.json").write_text(json.dumps({"x": [uuids(rig)[HOST]]}), encoding="utf-8")
    assert power(args)["changed"] is True
    assert {pci for pci, _call, _code in setters(rig)} == {HOST}
    for broken in ("{", '{"x": "GPU-1"}', "[]"):
        (etc / "gpu_roles.json").write_text(broken, encoding="utf-8")
        said = power(args)
        assert said["failed"]
        assert "gpu_roles.json: " in said["msg"]


def test_a_policy_file_edited_by_hand(make_rig: MakeRig, power: Power) -> None:
    rig = make_rig("guide_x299")
    args = arguments(rig, [{"gpu_role": "one", "limit_w": 300}])
    power(args)
    file = Path(args["config"], "gpu_power.json")
    assert oct(file.stat().st_mode & 0o777) == "0o644"
    file.write_text('{"format": 1, "cards": {"GPU-x": 350}, "released": {}}', encoding="utf-8")
    calls = len(rig.journal())
    said = power(args)
    assert "gpu_power.json: cards.GPU-x is no mapping; it is written by gpurig alone. Remove it and run" in said["msg"]
    assert len(rig.journal()) == calls
    file.unlink()
    assert power(args)["changed"] is True
    assert len(rig.journal()) == calls


def test_a_run_that_is_killed_leaves_what_it_wanted(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed run has set is known: the record comes first, and a restart does the rest."""
    rig = make_rig("guide_x299")
    config = str(rig.directory / "etc")
    cards = uuids(rig)
    names = {place.pci: place.model.name for place in rig.machine.places}
    targets = {
        cards[pci]: power_apply.record_from_dict(
            {"format": 1, "released": {}, "cards": {cards[pci]: {"name": names[pci], "pci": pci, "limit_mw": 350000}}}
        ).cards[cards[pci]]
        for pci in (TRAINER, HOST)
    }
    record = Record(targets)
    Path(config).mkdir()
    real, done = power_apply._set, []

    def dies(library: Any, card: Any, change: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        real(library, card, change)
        done.append(change)

    monkeypatch.setattr(power_apply, "_set", dies)
    with nvml.open_library(rig.nvml_path) as library:
        seen = power_apply.look(library).seen
        with pytest.raises(KeyboardInterrupt):
            power_apply.enforce(library, config, record, changes_of(record, seen), seen, "")
    assert set(rig.state()) == {cards[TRAINER]}
    assert power_apply.read_record(config) == record
    monkeypatch.undo()
    monkeypatch.setenv("NVML_SIM_DIR", rig.nvml_path)
    with nvml.open_library(rig.nvml_path) as library:
        seen = power_apply.look(library).seen
        left = changes_of(power_apply.read_record(config), seen)
        assert {change.uuid for change in left} == {cards[HOST]}


def test_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_apply, "LOCK_TIMEOUT_S", 0.1)
    with (
        power_apply.alone(str(tmp_path / "etc")),
        pytest.raises(PolicyError, match="held by another run"),
        power_apply.alone(str(tmp_path / "etc")),
    ):
        pass
    assert oct((tmp_path / "etc" / power_apply.LOCK_NAME).stat().st_mode & 0o777) == "0o600"


# Each run is a process of its own, forked after the imports: 100 rounds in seconds, not minutes.
WORKER = """
import json, os, sys, time
import pynvml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpurig.llm.plugins.modules import gpu_power
look = gpu_power.look
# Longer between reading and writing the policy, so that two runs without a lock would meet there.
gpu_power.look = lambda library: (look(library), time.sleep(0.02))[0]
rounds, args, uuid = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]

def check(when):
    with open(args["config"] + "/gpu_power.json") as file:
        found = json.load(file)["cards"][uuid]["limit_mw"]
    if found != args["limits"][0]["limit_w"] * 1000:
        sys.exit(f"{when}: lost")

for number in range(rounds):
    if number:
        check(f"before round {number}")
    args["limits"][0]["limit_w"] = 300 if (rounds - number) % 2 == 0 else 350
    pid = os.fork()
    if pid == 0:
        with patch_module_args({**args, "_ansible_remote_tmp": "/tmp"}):
            gpu_power.main()
    if os.waitpid(pid, 0)[1]:
        sys.exit(f"round {number} failed")
    check(f"after round {number}")
"""


def test_two_runs_at_once_lose_nothing(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rounds = int(os.environ.get("GPURIG_ROUNDS", "25"))
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rounds), json.dumps(arguments(rig, [{"card": pci}])), uuids(rig)[pci]],
            stdout=subprocess.DEVNULL,
        )
        for pci in (TRAINER, HOST)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    owned = (policy(rig) or {})["cards"]
    assert {uuid: card["limit_mw"] for uuid, card in owned.items()} == dict.fromkeys(uuids(rig).values(), 350000)
    assert {uuid: card["power_limit"] for uuid, card in rig.state().items()} == dict.fromkeys(
        uuids(rig).values(), "350000"
    )
    limits = [line for line in setters(rig) if line[1] == LIMIT]
    assert len(limits) == 2 * rounds
    assert {code for _pci, _call, code in setters(rig)} == {0}


def test_the_parts_in_this_process(make_rig: MakeRig, tmp_path: Path) -> None:
    """The same as above without the module's process, so that a debugger and the coverage see it."""
    rig = make_rig("guide_x299")
    rest = {"exclusive": False, "persistence": True, "can_set_power": True, "required": False, "ups": {}}
    params = {**arguments(rig, [{"gpu_role": "all", "limit_w": 350}]), **rest, "psu": GUIDE_PSU}
    rig.fault(TRAINER, LIMIT, 15)
    done = gpu_power.run(params, check=False)
    assert [change["setting"] for change in done.changes] == ["persistence mode", "persistence mode", "power limit"]
    assert done.failures[0].startswith("power limit to 350 W: NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): the card fell")
    rig.fault(TRAINER, "nvmlDeviceGetPowerManagementLimit", 15)
    unread = gpu_power.run({**params, "limits": [{"card": HOST, "limit_w": 350}]}, check=True)
    assert (unread.changed, unread.failures) == (True, [])  # the reason of the limit is another one now
    config = tmp_path / "etc"
    config.mkdir()
    assert power_apply.read_roles(str(config)) == {}
    for name, read in (("gpu_power.json", power_apply.read_record), ("gpu_roles.json", power_apply.read_roles)):
        for text in ("{", "[]"):
            (config / name).write_text(text, encoding="utf-8")
            with pytest.raises(PolicyError, match=f"{name}: "):
                read(str(config))
    (config / "gpu_roles.json").unlink()
    (config / "gpu_roles.json").mkdir()
    with pytest.raises(PolicyError, match="Is a directory"):
        power_apply.read_roles(str(config))


# --- the host tool


@pytest.fixture
def host() -> Iterator[Rig]:
    with installed() as made:
        yield made


Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tool(host: Rig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tool:
    """The tool in this process: (exit code, stdout, stderr)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setenv(cli.HOST_JSON, host.host_json)
        code = cli.main(words)
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return run


def capped(rig: LiveRig, host: Rig, power: Power, limits: list[dict[str, Any]] | None = None) -> None:
    """Install the tool for the rig and set its limits."""
    host.install(nvml_path=rig.nvml_path)
    args = arguments(rig, limits or [{"gpu_role": "all", "limit_w": 350}])
    assert power({**args, "config": host.paths["config"]})["changed"] is True


def test_after_a_reboot_the_tool_sets_the_limits_again(make_rig: MakeRig, power: Power, host: Rig) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power)
    kept = host.command("power", "apply")
    assert (kept.returncode, kept.stderr) == (0, "")
    assert kept.stdout.splitlines() == [
        "NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): 350 W, as wanted",
        "NVIDIA GeForce RTX 4090 (0000:65:00.0): 350 W, as wanted",
    ]
    rig.reboot()
    drifted = json.loads(host.command("power", "status", "--json").stdout)
    assert [card["limit_w"] for card in drifted] == [450.0, 450.0]
    assert drifted[0]["drift"][0] == "its limit is 450 W, wanted 350 W"
    applied = host.command("power", "apply")
    assert applied.returncode == 0
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0): power limit 450 W -> 350 W" in applied.stdout
    good = json.loads(host.command("power", "status", "--json").stdout)
    assert [(card["wanted_w"], card["limit_w"], card["enforced_w"], card["persistence"]) for card in good] == [
        (350.0, 350.0, 350.0, True)
    ] * 2
    assert [card["drift"] for card in good] == [[], []]
    again = arguments(rig, [{"gpu_role": "all", "limit_w": 350}], config=host.paths["config"])
    assert power(again)["changed"] is False


def test_status_for_people(make_rig: MakeRig, power: Power, host: Rig, tool: Tool) -> None:
    rig = make_rig(with_card(machine("guide_x299"), TRAINER, nvml={"power_enforced_ceiling": "300000"}))
    capped(rig, host, power)
    rig.describe(HOST, "throttle", "0x4")
    lines = tool("power")[1].splitlines()
    assert lines[0].split() == [
        *("CARD", "WANTED", "SET", "ENFORCED", "DEFAULT", "DRAW", "PERSISTENCE", "STATE", "HELD", "DOWN", "BY"),
    ]
    assert lines[1].endswith("on           drift  gpu_idle")
    assert "350 W   350 W  300 W     450 W" in lines[1]
    assert lines[2].endswith("on           ok     software_power_cap")
    assert lines[3].startswith("NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): 300 W is in force, less than its limit")
    rig.fault(HOST, "*", 15)
    code, said, _error = tool("power", "status")
    assert code == 0
    assert "  lost  " in said
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0): does not answer" in said


def test_status_without_a_policy_shows_the_cards(make_rig: MakeRig, host: Rig, tool: Tool) -> None:
    rig = make_rig("laptop")
    host.install(nvml_path=rig.nvml_path)
    assert "not ours" in tool("power", "status")[1]
    code, said, _error = tool("power", "apply")
    assert (code, said.startswith("No power policy here (")) == (0, True)


def test_apply_waits_for_driver_and_cards(make_rig: MakeRig, power: Power, host: Rig, tool: Tool) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power)
    rig.reboot()
    rig.fault("machine", "nvmlInitWithFlags", 9, "for 2")
    rig.fault(HOST, "handle", 15, "for 2")
    assert tool("power", "apply")[0] == 1
    code, said, error = tool("power", "apply", "--wait", "20")
    assert code == 0, error
    assert said.count("power limit 450 W -> 350 W") == 2
    rig.fault("machine", "nvmlInitWithFlags", 9)
    code, _said, error = tool("power", "apply", "--wait", "0.6")
    assert code == 1
    assert error.startswith("gpurig power apply: the NVIDIA kernel driver is not loaded")
    rig.fault("machine", "nvmlInitWithFlags", 18)
    assert "of different versions" in tool("power", "apply", "--wait", "20")[2]


def test_apply_sets_the_cards_that_are_there_while_it_waits(
    make_rig: MakeRig, power: Power, host: Rig, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power)
    rig.reboot()
    rig.fault(HOST, "handle", 15)
    cards = uuids(rig)

    def until_it_waits(_seconds: float) -> None:
        assert {uuid: state["power_limit"] for uuid, state in rig.state().items()} == {cards[TRAINER]: "350000"}
        rig.fault(HOST, "handle", None)

    monkeypatch.setattr(power_cli.time, "sleep", until_it_waits)
    code, said, error = tool("power", "apply", "--wait", "20")
    assert (code, error) == (0, "")
    assert said.count("power limit 450 W -> 350 W") == 2
    assert rig.state()[cards[HOST]]["power_limit"] == "350000"


def test_apply_leaves_persistence_off_where_that_was_asked_for(
    make_rig: MakeRig, power: Power, host: Rig, tool: Tool
) -> None:
    rig = make_rig("guide_x299")
    host.install(nvml_path=rig.nvml_path)
    limits = [{"gpu_role": "all", "limit_w": 350}]
    power(arguments(rig, limits, persistence=False, config=host.paths["config"]))
    rig.reboot()
    assert tool("power", "apply")[0] == 0
    assert [call for _pci, call, _code in setters(rig)] == [LIMIT] * 4
    # Without it the driver forgets the limit when the last client leaves, which is told; persistence itself is not.
    told = json.loads(tool("power", "status", "--json")[1])
    assert [card["drift"] for card in told] == [["its limit is 450 W, wanted 350 W"]] * 2


def test_apply_does_what_it_can(make_rig: MakeRig, power: Power, host: Rig, tool: Tool) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power)
    rig.reboot()
    rig.fault(TRAINER, "handle", 15)
    code, said, error = tool("power", "apply")
    assert code == 1
    assert "NVIDIA GeForce RTX 3090 Ti (0000:17:00.0): does not answer. The driver says: " in error
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0): power limit 450 W -> 350 W" in said
    Path(host.paths["config"], "gpu_power.json").write_text("{", encoding="utf-8")
    assert "gpu_power.json: is no JSON" in tool("power", "apply")[2]


def test_a_locked_clock_is_locked_at_each_apply(make_rig: MakeRig, power: Power, host: Rig) -> None:
    rig = make_rig("laptop")
    limit = {"gpu_role": "one", "limit_w": 80, "on_unsupported": "lock_clocks", "lock_mhz": 1500}
    capped(rig, host, power, [limit])
    assert "<= 1500 MHz" in host.command("power").stdout
    rig.reboot()
    assert host.command("power", "apply").returncode == 0
    assert rig.state()[uuids(rig)["0000:01:00.0"]]["clocks_locked"] == "0,1500"
    args = arguments(rig, [], exclusive=True, config=host.paths["config"])
    given = power(args)
    assert [change["setting"] for change in given["changes"]] == ["graphics clock", "persistence mode"]
    assert "clocks_locked" not in rig.state().get(uuids(rig)["0000:01:00.0"], {})


def test_an_uninstall_gives_the_limits_back(make_rig: MakeRig, power: Power, host: Rig) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power, [{"card": HOST, "limit_w": 300}])
    done = host.command("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert "NVIDIA GeForce RTX 4090 (0000:65:00.0): power limit 300 W -> 450 W" in done.stdout
    assert [line["args"] for line in rig.journal() if line["call"] == LIMIT] == [[300000], [450000]]
    assert {pci for pci, _call, _code in setters(rig)} == {HOST}
    assert not Path(host.paths["config"], "gpu_power.json").exists()


def test_giving_back_tells_what_stays(
    make_rig: MakeRig, power: Power, host: Rig, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig("guide_x299")
    capped(rig, host, power)
    known = dataclasses.replace(Host.load(host.host_json), nvml_path=rig.nvml_path)
    rig.fault(HOST, "handle", 15)
    assert power_cli.give_back(known) == 1
    assert "a power limit stays until the next boot" in capsys.readouterr().err
    assert set(power_apply.read_record(host.paths["config"]).released) == {uuids(rig)[HOST]}
    assert "is to get its default back" not in tool("power")[1]
    rig.fault(HOST, "handle", None)
    assert "is to get its default back: gpurig power apply" in tool("power")[1]
    assert tool("power", "apply")[0] == 0
    assert not Path(host.paths["config"], "gpu_power.json").exists()
    assert power_cli.give_back(known) == 0


# --- the filter


def test_the_filter() -> None:
    psu_budget = FilterModule().filters()["psu_budget"]
    cards = [{"name": "RTX 3090 Ti", "limit_w": 450}, {"name": "RTX 4090", "limit_w": 450}]
    refused: Any = psu_budget(cards, GUIDE_PSU)
    assert refused["fits"] is False
    assert "= 1705 W, allowed 1500 W: 205 W too much" in refused["problems"][0]
    assert psu_budget(cards[1:], GUIDE_PSU, {"rating_w": 1500}, "inference")["fits"] is True  # type: ignore[index]
    for wrong in (("x", GUIDE_PSU), (cards, {}), (cards, "x"), ([{"limit_w": "450"}], GUIDE_PSU), ([1], GUIDE_PSU)):
        with pytest.raises(AnsibleFilterError, match="psu_budget"):
            psu_budget(*wrong)
    with pytest.raises(AnsibleFilterError, match="found 'atx9'"):
        psu_budget(cards, {**GUIDE_PSU, "standard": "atx9"})
