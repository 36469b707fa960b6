# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module and role gpu_roles on simulated rigs, and the map file under two runs at once, hand edits and kills."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from ansible_collections.gpurig.llm.plugins.module_utils import cli, gpu_map
from ansible_collections.gpurig.llm.plugins.module_utils.services import Host
from ansible_collections.gpurig.llm.plugins.modules import gpu_roles
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import Machine, machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
MakeRig = Callable[..., LiveRig]
RunModule = Callable[..., dict[str, Any]]
REPOSITORY = Path(__file__).resolve().parents[2]
TRAINER, HOST = "0000:17:00.0", "0000:65:00.0"
GUIDE = {
    "gpus": [{"name": "trainer", "product": "RTX 3090 Ti"}, {"name": "host", "product": "RTX 4090"}],
    "roles": {"inference": ["host"], "training": ["trainer", "host"]},
}


@pytest.fixture
def quick_module() -> RunModule:
    """run_module without the start of an interpreter: a fork of this process becomes the module.

    Not for rigs without a library: this process may have loaded it.
    """

    def run(_name: str, args: dict[str, Any], check: bool = False) -> dict[str, Any]:
        given = {**args, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}

        def become_module() -> str:
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit), patch_module_args(given):
                gpu_roles.main()
            return output.getvalue()

        result: dict[str, Any] = json.loads(in_child(become_module))
        return result

    return run


def in_child(action: Callable[[], str]) -> str:
    """What `action` returns, or the exception's text, in a child process."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        with os.fdopen(write, "w", encoding="utf-8") as stream:
            try:
                stream.write(action())
            except BaseException as error:
                stream.write(repr(error))
            stream.flush()
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config directory of an installed rig."""
    path = tmp_path / "etc"
    path.mkdir()
    return path


def arguments(rig: LiveRig, config: Path, **more: Any) -> dict[str, Any]:
    return {**rig.arguments, "rig": {"paths": {"config": str(config)}}, **more}


def uuids(rig: LiveRig, *addresses: str) -> list[str]:
    return [rig.machine.place(pci).uuid for pci in addresses]


def on_disk(config: Path) -> Any:
    return json.loads((config / gpu_map.MAP_NAME).read_text(encoding="utf-8"))


def content(config: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in config.iterdir()}


# -- four steps -------------------------------------------------------------------------------------------------------
HGX = [place.pci for place in machine("hgx_8xh100").places]
DECIDED: dict[str, tuple[dict[str, Any], dict[str, list[str]], dict[str, str]]] = {
    # rig: arguments, role -> addresses, role -> CUDA_VISIBLE_DEVICES
    "guide_x299": (GUIDE, {"inference": [HOST], "training": [TRAINER, HOST]}, {"inference": "1", "training": "0,1"}),
    "vm_2xa40": (
        {"roles": {"a": ["0000:d6:00.0"], "both": ["all"], "first": ["all except 0000:d6:00.0"]}},
        {"a": ["0000:d6:00.0"], "both": ["0000:ce:00.0", "0000:d6:00.0"], "first": ["0000:ce:00.0"]},
        {"a": "1", "both": "0,1", "first": "0"},
    ),
    "hgx_8xh100": (
        {"roles": {"chat": {"cards": [HGX[7], HGX[0]], "exclusive": True}, "rest": [f"all except {HGX[7]}, {HGX[0]}"]}},
        {"chat": [HGX[7], HGX[0]], "rest": HGX[1:7]},
        {"chat": "7,0", "rest": "1,2,3,4,5,6"},
    ),
    "mixed": (
        {
            "roles": {
                "fast": ["fastest"],
                "large": [{"min_memory_gib": 44, "take": "all"}],
                "new": [{"min_compute_capability": "8.9", "min_memory_gib": 40, "product": "L40S"}],
            }
        },
        {"fast": ["0000:61:00.0"], "large": ["0000:41:00.0", "0000:61:00.0"], "new": ["0000:41:00.0"]},
        {"fast": "5", "large": "3,5", "new": "3"},
    ),
    "pod_4090": ({}, {"inference": ["0000:42:00.0"]}, {"inference": "0"}),
    "gtx_1080": ({}, {"inference": ["0000:01:00.0"]}, {"inference": "0"}),
    "rtx_5090": ({"gpus": [{"name": "one", "product": "5090", "pci": "01:00.0"}]}, {"inference": ["0000:01:00.0"]}, {}),
    "laptop": ({"roles": {"a": [{"product": "RTX 4070 Laptop"}]}}, {"a": ["0000:01:00.0"]}, {"a": "0"}),
}


# Those whose four steps are four starts of the module; the others are quicker.
STARTED = ("guide_x299", "vm_2xa40", "hgx_8xh100", "lost card", "no permission at all", "versions differ")
STARTED += ("driver not loaded", "no NVML")


@pytest.mark.parametrize("name", DECIDED)
def test_four_steps(make_rig: MakeRig, run_module: RunModule, quick_module: RunModule, config: Path, name: str) -> None:
    run_module = run_module if name in STARTED else quick_module
    given, wanted, visible = DECIDED[name]
    rig = make_rig(name, setters="root")
    args = arguments(rig, config, **given)
    expected = {role: uuids(rig, *addresses) for role, addresses in wanted.items()}

    check = run_module("gpu_roles", args, check=True)
    assert check["changed"] is True
    assert content(config) == {}
    change = run_module("gpu_roles", args)
    assert not change.get("failed"), change
    assert {key: change[key] for key in ("changed", "changes", "diff", "roles", "ansible_facts", "summary")} == {
        key: check[key] for key in ("changed", "changes", "diff", "roles", "ansible_facts", "summary")
    }
    assert change["ansible_facts"] == {"gpu_roles": expected}
    assert on_disk(config) == expected
    seen = (config / gpu_map.MAP_NAME).stat()
    assert (seen.st_mode & 0o7777, seen.st_uid) == (0o644, os.geteuid())
    assert change["diff"]["before"] == ""
    assert json.loads(change["diff"]["after"]) == expected
    for role, numbers in visible.items():
        assert change["roles"][role]["cuda_visible_devices"] == numbers
        assert [card["pci"] for card in change["roles"][role]["cards"]] == wanted[role]

    before = content(config)
    for again in (run_module("gpu_roles", args), run_module("gpu_roles", args, check=True)):
        assert (again["changed"], again["changes"]) == (False, [])
        assert again["diff"]["before"] == again["diff"]["after"]
        assert again["roles"] == change["roles"]
    assert content(config) == before
    assert rig.journal() == []
    assert rig.state() == {}


def as_it_is(_rig: LiveRig) -> None:
    pass


def break_library(rig: LiveRig) -> None:
    Path(rig.nvml_path, "libnvidia-ml.so.1").unlink()


def close_card(rig: LiveRig) -> None:
    rig.fault(HOST, "handle", 4)


def close_library(rig: LiveRig) -> None:
    rig.fault("machine", "nvmlInitWithFlags", 4)


def lose_on_the_way(rig: LiveRig) -> None:
    rig.fault(TRAINER, "*", 15, "after 20")


LOST_GUIDE = {
    "gpus": [{"name": "trainer", "product": "RTX 3090"}, {"name": "host", "product": "RTX 4090"}],
    "roles": {"inference": ["host"], "training": ["trainer", "host"], "every": ["all"], "rest": ["all except trainer"]},
}
BROKEN: dict[str, tuple[str, Callable[[LiveRig], object], dict[str, Any], dict[str, list[str]], list[str]]] = {
    # id: rig, what is done to it, arguments, roles that are written nevertheless, words of the message
    "lost card": (
        "lost_card",
        as_it_is,
        LOST_GUIDE,
        {"inference": ["0000:02:00.0"], "rest": ["0000:02:00.0"]},
        ["rig_gpus[0] (trainer): 'trainer' does not answer: 0000:01:00.0", "Xid 79", "role training: has no cards yet",
         "rig_gpu_roles.every[0]: 'all' cannot be decided while", "done: role inference: new, GPU-"],
    ),
    "lost while it is read": (
        "guide_x299",
        lose_on_the_way,
        GUIDE,
        {"inference": [HOST]},
        ["'trainer' does not answer: 0000:17:00.0: lost while it was read", "training[0]: needs 'trainer'"],
    ),
    "no power cable": (
        "no_power_cable",
        as_it_is,
        {"roles": {"a": ["0000:02:00.0"], "b": ["0000:01:00.0"]}},
        {"a": ["0000:02:00.0"]},
        ["rig_gpu_roles.b[0]: '0000:01:00.0' does not answer", "Attach its power cables properly"],
    ),
    "no permission for a card": (
        "guide_x299",
        close_card,
        {"roles": {"a": [TRAINER], "b": ["fastest"]}},
        {"a": [TRAINER]},
        ["rig_gpu_roles.b[0]: 'fastest' cannot be decided", "permission denied by the driver"],
    ),
    "no permission at all": (
        "guide_x299",
        close_library,
        GUIDE,
        {},
        ["The inventory names cards (roles and gpus), and they cannot be read", "permission denied by the driver"],
    ),
    "versions differ": (
        "driver_mismatch",
        as_it_is,
        {"roles": {"a": ["all"]}},
        {},
        ["library 580.95.05, kernel module 570.195.03", "Reboot, so that the kernel loads the driver"],
    ),
    "driver not loaded": (
        "nouveau",
        as_it_is,
        {"roles": {"a": ["all"]}},
        {},
        ["the NVIDIA kernel driver is not loaded", "modprobe nvidia", "0000:01:00.0: on the PCI bus, but driven by"],
    ),
    "refused by secure boot": (
        "secure_boot",
        as_it_is,
        {"gpus": [{"name": "a", "product": "RTX 4090"}]},
        {},
        ["The inventory names cards (gpus)", "Secure Boot"],
    ),
    "no NVML": ("guide_x299", break_library, GUIDE, {}, ["libnvidia-ml.so.1", "role nvidia_driver"]),
    "another machine": (
        "vm_2xa40",
        as_it_is,
        GUIDE,
        {},
        ["nothing was changed", "rig_gpus[0] (trainer): '{product: RTX 3090 Ti}' fits no card.", "A40 (0000:ce:00.0"],
    ),
    "two equal cards": (
        "vm_2xa40",
        as_it_is,
        {"roles": {"a": [{"product": "A40"}], "b": ["0000:ce:00.0"], "c": ["1"]}},
        {},
        ["rig_gpu_roles.a[0]: '{product: A40}' fits 2 cards", "0000:d6:00.0", "rig_gpu_roles.c[0]: found '1'", "index"],
    ),
    "shared though exclusive": (
        "guide_x299",
        as_it_is,
        {**GUIDE, "roles": {"inference": {"cards": ["host"], "exclusive": True}, "training": ["trainer", "host"]}},
        {},
        ["in the roles inference, training, and inference is exclusive"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_four_steps_on_a_broken_rig(
    make_rig: MakeRig, run_module: RunModule, quick_module: RunModule, config: Path, name: str
) -> None:
    run_module = run_module if name in STARTED else quick_module
    which, damage, given, written, words = BROKEN[name]
    rig = make_rig(which, setters="root")
    damage(rig)
    args = arguments(rig, config, **given)
    results = []
    for check in (True, False, False, True):
        results.append(run_module("gpu_roles", args, check=check))
        if name == "lost while it is read":
            rig.reboot()  # the calls are counted anew
    first, second, third, fourth = results
    assert all(result["failed"] for result in results)
    assert [word for word in words if word not in second["msg"]] == [], second["msg"]
    assert first["msg"] == second["msg"].replace("\n- was done: ", "\n- would be done: ")
    assert (first.get("changed", False), second.get("changed", False)) == (bool(written), bool(written))
    assert not third.get("changed")
    assert not fourth.get("changed")
    if written:
        expected = {role: uuids(rig, *addresses) for role, addresses in written.items()}
        assert on_disk(config) == expected
        assert second["ansible_facts"]["gpu_roles"] == expected
    else:
        assert not (config / gpu_map.MAP_NAME).exists()
    assert rig.journal() == []


# -- what the map says, and who reads it ------------------------------------------------------------------------------
def test_services_start_on_the_cards_that_the_module_names(
    make_rig: MakeRig, quick_module: RunModule, config: Path
) -> None:
    rig = make_rig("guide_x299")
    result = quick_module("gpu_roles", arguments(rig, config, **GUIDE))
    host = Host("sandbox", "supervisord", {"config": str(config)}, nvml_path=rig.nvml_path)
    for role in ("inference", "training"):
        assert cli.gpu_environment(host, role) == {
            "CUDA_DEVICE_ORDER": result["roles"][role]["cuda_device_order"],
            "CUDA_VISIBLE_DEVICES": result["roles"][role]["cuda_visible_devices"],
        }


def swapped(name: str, one: str, other: str) -> Machine:
    """The machine with two cards in each other's slots."""
    described = machine(name)
    moved = {one: other, other: one}
    return dataclasses.replace(
        described,
        places=tuple(dataclasses.replace(p, pci=moved.get(p.pci, p.pci)) for p in described.places),
    )


@pytest.mark.parametrize(
    ("name", "one", "other", "given"),
    [
        ("guide_x299", TRAINER, HOST, GUIDE),
        ("vm_2xa40", "0000:ce:00.0", "0000:d6:00.0", {}),
        ("hgx_8xh100", HGX[0], HGX[7], {"roles": {"a": [{"product": "H100", "take": "all"}]}}),
    ],
)
def test_cards_that_moved_are_the_same_cards(
    make_rig: MakeRig, quick_module: RunModule, config: Path, name: str, one: str, other: str, given: dict[str, Any]
) -> None:
    before = quick_module("gpu_roles", arguments(make_rig(name), config, **given))
    after = quick_module("gpu_roles", arguments(make_rig(swapped(name, one, other)), config, **given))
    assert (after["changed"], after["changes"]) == (False, [])
    assert after["ansible_facts"] == before["ansible_facts"]
    for role, now in after["roles"].items():
        assert [card["uuid"] for card in now["cards"]] == [card["uuid"] for card in before["roles"][role]["cards"]]
        assert now["cuda_visible_devices"] != before["roles"][role]["cuda_visible_devices"]


def test_a_card_that_moved_alone(make_rig: MakeRig, quick_module: RunModule, config: Path) -> None:
    before = quick_module("gpu_roles", arguments(make_rig("guide_x299"), config, **GUIDE))
    moved = make_rig(with_card(machine("guide_x299"), HOST, pci="0000:05:00.0"))
    after = quick_module("gpu_roles", arguments(moved, config, **GUIDE))
    assert after["changed"] is False
    assert (
        before["roles"]["inference"]["cuda_visible_devices"],
        after["roles"]["inference"]["cuda_visible_devices"],
    ) == (
        "1",
        "0",
    )


def test_a_role_that_is_no_longer_named_leaves_the_map(
    make_rig: MakeRig, quick_module: RunModule, config: Path
) -> None:
    rig = make_rig("guide_x299")
    quick_module("gpu_roles", arguments(rig, config, **GUIDE))
    fewer = arguments(rig, config, gpus=GUIDE["gpus"], roles={"inference": ["trainer"]})
    kept = quick_module("gpu_roles", {**fewer, "purge": False})
    assert sorted(on_disk(config)) == ["inference", "training"]
    assert kept["changes"] == [f"role inference: {uuids(rig, HOST)[0]} -> {uuids(rig, TRAINER)[0]}"]
    gone = quick_module("gpu_roles", fewer)
    assert on_disk(config) == {"inference": uuids(rig, TRAINER)}
    assert gone["changes"] == [f"role training: removed, it had {', '.join(uuids(rig, TRAINER, HOST))}"]
    assert [card["pci"] for card in gone["unassigned"]] == [HOST]
    assert f"no role has NVIDIA GeForce RTX 4090 ({HOST})" in gone["summary"]
    assert gone["kept_aside"] == ""


def test_a_lost_card_leaves_its_roles_as_they_were(make_rig: MakeRig, quick_module: RunModule, config: Path) -> None:
    rig = make_rig("guide_x299")
    quick_module("gpu_roles", arguments(rig, config, **GUIDE))
    before = on_disk(config)
    rig.describe(TRAINER, "lost", "1")
    changed = {**GUIDE, "roles": {**GUIDE["roles"], "other": ["host"]}}  # type: ignore[dict-item]
    result = quick_module("gpu_roles", arguments(rig, config, **changed))
    assert result["failed"]
    assert on_disk(config) == {**before, "other": uuids(rig, HOST)}
    assert f"role training: stays as it was: {', '.join(uuids(rig, TRAINER, HOST))}" in result["msg"]
    rig.describe(TRAINER, "lost", None)
    healed = quick_module("gpu_roles", arguments(rig, config, **changed))
    assert not healed.get("failed")
    assert healed["changed"] is False


def test_an_exclusive_card_is_not_shared_with_a_role_that_stays(
    make_rig: MakeRig, quick_module: RunModule, config: Path
) -> None:
    rig = make_rig("guide_x299")
    quick_module("gpu_roles", arguments(rig, config, **GUIDE))
    before = content(config)
    alone = {"gpus": GUIDE["gpus"], "roles": {"alone": {"cards": ["host"], "exclusive": True}}}
    refused = quick_module("gpu_roles", arguments(rig, config, purge=False, **alone))
    assert refused["failed"]
    assert "role alone is exclusive, and" in refused["msg"]
    assert "is in role inference as well" in refused["msg"]
    assert content(config) == before
    assert quick_module("gpu_roles", arguments(rig, config, **alone))["roles"]["alone"]["exclusive"] is True


# -- machines without cards, and first runs ---------------------------------------------------------------------------
@pytest.mark.parametrize("damage", [break_library, close_library], ids=["no library", "closed"])
def test_without_wishes_a_machine_without_nvml_is_no_failure(
    make_rig: MakeRig, run_module: RunModule, config: Path, damage: Callable[[LiveRig], object]
) -> None:
    rig = make_rig("guide_x299")
    damage(rig)
    result = run_module("gpu_roles", arguments(rig, config))
    assert not result.get("failed")
    assert (result["changed"], content(config)) == (False, {})
    assert result["findings"]
    rig = make_rig("guide_x299")
    run_module("gpu_roles", arguments(rig, config))
    before = content(config)
    damage(rig)
    assert run_module("gpu_roles", arguments(rig, config))["changed"] is False
    assert content(config) == before, "a driver that is away for a moment costs nobody his roles"


def test_first_check_before_the_binding_is_there(
    make_rig: MakeRig, run_module: RunModule, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    away = {"PYTHONPATH": str(tmp_path)}
    args = arguments(make_rig("guide_x299"), config, **GUIDE)
    check = run_module("gpu_roles", args, check=True, environment=away)
    assert not check.get("failed")
    assert check["changes"] == ["gpu_roles.json: would be written once NVML's Python binding is installed"]
    real = run_module("gpu_roles", args, environment=away)
    assert real["failed"]
    assert "nvidia-ml-py" in real["msg"]
    run_module("gpu_roles", args)
    assert run_module("gpu_roles", args, check=True, environment=away)["changed"] is False


def test_no_directory_to_write_to(make_rig: MakeRig, quick_module: RunModule, tmp_path: Path) -> None:
    args = arguments(make_rig("guide_x299"), tmp_path / "nowhere", **GUIDE)
    assert quick_module("gpu_roles", args, check=True)["changed"] is True
    result = quick_module("gpu_roles", args)
    assert result["failed"]
    assert "No such file or directory" in result["msg"]
    assert "role host_tool" in result["msg"]


# -- by hand ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "edit",
    [
        '{"inference": ["GPU-0"], "training": []}\n',
        "not JSON",
        "[]",
        '{"inference": 3}',
        "",
        "\xff\x00",
        '{"\\ud800": []}',
    ],
    ids=repr,
)
@pytest.mark.parametrize("purge", [True, False])
def test_a_map_that_was_edited_is_repaired(
    make_rig: MakeRig, quick_module: RunModule, config: Path, edit: str, purge: bool
) -> None:
    rig = make_rig("guide_x299")
    args = arguments(rig, config, **GUIDE)
    quick_module("gpu_roles", args)
    good = (config / gpu_map.MAP_NAME).read_bytes()
    wrong = edit.encode("latin-1")
    (config / gpu_map.MAP_NAME).write_bytes(wrong)
    if not purge:  # a run that names one role mends the others, too
        args = {**args, "roles": {"inference": ["host"]}, "purge": False}
    check = quick_module("gpu_roles", args, check=True)
    assert (config / gpu_map.MAP_NAME).read_bytes() == wrong
    assert check["kept_aside"] == ""
    result = quick_module("gpu_roles", args)
    assert result["changed"] is check["changed"] is True
    assert result["changes"] == check["changes"]
    assert result["changes"][0] == (
        "gpu_roles.json: was changed by somebody else since the last run; repaired, their file is kept aside"
    )
    assert (config / gpu_map.MAP_NAME).read_bytes() == good
    assert Path(result["kept_aside"]).read_bytes() == wrong
    assert quick_module("gpu_roles", args)["changed"] is False
    assert len(list(config.glob("gpu_roles.json.edited-*"))) == 1


def test_mode_and_a_link_are_repaired(make_rig: MakeRig, quick_module: RunModule, config: Path, tmp_path: Path) -> None:
    args = arguments(make_rig("guide_x299"), config, **GUIDE)
    quick_module("gpu_roles", args)
    path = config / gpu_map.MAP_NAME
    path.chmod(0o666)
    assert quick_module("gpu_roles", args)["changes"] == ["gpu_roles.json: mode 0666 -> 0644"]
    elsewhere = tmp_path / "elsewhere.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert quick_module("gpu_roles", args)["changes"][0].startswith("gpu_roles.json: was a link")
    assert not path.is_symlink()
    assert elsewhere.exists()
    path.unlink()
    assert quick_module("gpu_roles", args)["changes"][0].startswith("gpu_roles.json: was removed by somebody else")
    path.unlink()
    path.mkdir()
    assert "is a directory" in quick_module("gpu_roles", args)["msg"]


# -- several runs at once ---------------------------------------------------------------------------------------------
ROUNDS = 100
FORK = multiprocessing.get_context("fork")


def writer(config: str, number: int, together: Any, errors: Any) -> None:
    """Give role NUMBER its card of each round, at the same moment as the others; then look whether nothing is lost."""
    try:
        for turn in range(ROUNDS):
            together.wait(30)
            gpu_map.update(config, {f"role-{number}": [f"card-{number}-{turn}"]}, purge=False)
            together.wait(30)
            roles = gpu_map.look(config).roles
            if roles != {f"role-{other}": [f"card-{other}-{turn}"] for other in range(together.parties)}:
                errors.put(f"round {turn}: {roles}")
    except Exception as error:
        errors.put(repr(error))
        together.abort()


def test_two_runs_at_once_lose_nothing_in_100_rounds(config: Path) -> None:
    together, errors = FORK.Barrier(2), FORK.SimpleQueue()
    workers = [FORK.Process(target=writer, args=(str(config), number, together, errors)) for number in range(2)]
    for worker in workers:
        worker.start()
    torn = 0
    while any(worker.is_alive() for worker in workers):
        text = (config / gpu_map.MAP_NAME).read_text() if (config / gpu_map.MAP_NAME).exists() else "{}"
        torn += gpu_map.parse(text) is None
    for worker in workers:
        worker.join()
    found = []
    while not errors.empty():
        found.append(errors.get())
    assert found == []
    assert torn == 0, "a reader saw half a map"
    assert on_disk(config) == {f"role-{number}": [f"card-{number}-{ROUNDS - 1}"] for number in range(2)}
    assert sorted(path.name for path in config.iterdir()) == [
        ".gpu_roles.lock",
        ".gpu_roles.written.json",
        "gpu_roles.json",
    ]


def test_two_real_module_runs_at_once(make_rig: MakeRig, run_module: RunModule, config: Path) -> None:
    rig = make_rig("guide_x299", setters="root")
    places = [TRAINER, HOST]
    with ThreadPoolExecutor(2) as pool:
        for turn in range(3):
            cards = places if turn % 2 else places[::-1]
            orders = [
                arguments(rig, config, roles={f"role-{number}": [cards[number]]}, purge=False) for number in range(2)
            ]
            results = list(pool.map(lambda args: run_module("gpu_roles", args), orders))
            assert not any(result.get("failed") for result in results), results
            assert all(result["changed"] for result in results)
            assert on_disk(config) == {f"role-{number}": uuids(rig, cards[number]) for number in range(2)}
    assert rig.journal() == []


def test_a_run_that_is_killed_leaves_a_whole_map_of_ours(config: Path) -> None:
    def change_for_ever() -> None:
        for turn in range(10**6):
            gpu_map.update(str(config), {"a": [f"card-{turn}"], "b": ["card"]})

    gpu_map.update(str(config), {"a": ["first"], "b": ["card"]})
    for turn in range(20):
        worker = FORK.Process(target=change_for_ever)
        worker.start()
        time.sleep(0.02 + turn * 0.0013)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        found = gpu_map.look(str(config))
        assert found.roles is not None
        assert found.roles["b"] == ["card"]
        assert found.is_ours, "the next run would blame somebody else"
        assert gpu_map.update(str(config), found.roles).planned.changes == ()


def test_a_lock_that_is_held_too_long(config: Path) -> None:
    with (
        gpu_map.locked(str(config)),
        pytest.raises(gpu_map.MapError, match=r"another run has held this lock for 0\.1 s"),
        gpu_map.locked(str(config), timeout_s=0.1),
    ):
        pass
    with gpu_map.locked(str(config), timeout_s=0.1):
        assert (config / gpu_map.LOCK_NAME).stat().st_mode & 0o777 == 0o600


def as_nobody(action: Callable[[], str]) -> str:
    """What `action` returns in a process of a user without rights (of this one, where it has none already)."""

    def drop_rights() -> str:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setuid(65534)
        return action()

    return in_child(drop_rights)


def test_a_user_without_rights(tmp_path: Path) -> None:
    closed = Path("/proc/self/fdinfo")  # nobody may write there, not even root
    with pytest.raises(OSError, match=r"fdinfo/\.gpu_roles\.lock"):
        gpu_map.update(str(closed), {"a": ["card"]})
    mine = tmp_path / "mine"
    mine.mkdir()
    for directory in (mine, *mine.parents):
        if directory.owner() == Path.home().owner() and directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    mine.chmod(0o777)

    def act() -> str:
        done = gpu_map.update(str(mine), {"a": ["card"]})
        again = gpu_map.update(str(mine), {"a": ["card"]})
        return f"{len(done.planned.changes)} {len(again.planned.changes)} {done.found.uid}"

    assert as_nobody(act) == "1 0 0"
    assert on_disk(mine) == {"a": ["card"]}
    mine.chmod(0o755)
    if os.geteuid() == 0:
        taken = gpu_map.update(str(mine), {"a": ["card"]})
        assert taken.planned.changes == ("gpu_roles.json: owner 65534 -> 0",)
        refused = as_nobody(lambda: str(gpu_map.update(str(mine), {"a": []})))
        assert "PermissionError" in refused


# -- the role ---------------------------------------------------------------------------------------------------------
def play(tmp_path: Path, variables: dict[str, Any], *more: str) -> subprocess.CompletedProcess[str]:
    book = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "connection": "local",
            "vars": {"ansible_python_interpreter": sys.executable, "host_tool_ready": True, "rig_kind": "sandbox"},
            "roles": ["gpurig.llm.gpu_roles"],
            "post_tasks": [{"name": "Fact", "ansible.builtin.debug": {"var": "ansible_facts.gpu_roles"}}],
        }
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump(book), encoding="utf-8")
    (tmp_path / "vars.yml").write_text(yaml.safe_dump(variables), encoding="utf-8")
    command = ["ansible-playbook", str(tmp_path / "play.yml"), "-e", f"@{tmp_path / 'vars.yml'}", *more]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        env=environment, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip


def test_the_role(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig("guide_x299", setters="root")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    variables = {
        "rig_root": str(tmp_path / "root"),
        **{f"gpu_roles_{name}": path for name, path in rig.arguments.items()},
        "rig_gpus": GUIDE["gpus"],
        "rig_gpu_roles": GUIDE["roles"],
    }
    for check, changed in ((True, 1), (False, 1), (True, 0)):
        done = play(tmp_path, variables, *(["--check"] if check else []))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"changed={changed} " in done.stdout, done.stdout
        assert "inference: NVIDIA GeForce RTX 4090 (0000:65:00.0); CUDA_VISIBLE_DEVICES=1" in done.stdout
        assert uuids(rig, HOST)[0] in done.stdout.partition("TASK [Fact]")[2]
    assert on_disk(tmp_path / "root" / "etc") == {"inference": uuids(rig, HOST), "training": uuids(rig, TRAINER, HOST)}
    assert rig.journal() == []


def test_a_role_named_twice_is_refused(tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        "all:\n  hosts:\n    a:\n      rig_gpu_roles:\n        inference: [host]\n        inference: [trainer]\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(inventory), "--list"],
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "duplicate" in done.stderr.lower()
    assert "inference" in done.stderr


# -- documentation ----------------------------------------------------------------------------------------------------
def test_every_returned_key_is_documented(make_rig: MakeRig, quick_module: RunModule, config: Path) -> None:
    result = quick_module("gpu_roles", arguments(make_rig("guide_x299"), config, roles={"a": ["fastest"]}))
    documented = yaml.safe_load(gpu_roles.RETURN)
    assert set(result) - {"changed", "diff", "invocation"} == set(documented)
    role = documented["roles"]["contains"]["ROLE"]["contains"]
    assert set(result["roles"]["a"]) == set(role)
    assert set(result["roles"]["a"]["cards"][0]) == set(role["cards"]["contains"])
