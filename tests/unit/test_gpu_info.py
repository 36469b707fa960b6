# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module gpu_info on simulated rigs through the real binding, and the pure functions under it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import (
    Card,
    Power,
    UnreachableCard,
    cuda_total,
    gpu_from_readings,
    locate,
    pci_key,
    pci_order,
    report_as_dict,
    throttle_reasons,
)
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_scan import scan, scan_pci
from ansible_collections.gpurig.llm.plugins.modules import gpu_info
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import MACHINES, Process, machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
TRAINER, HOST = "0000:17:00.0", "0000:65:00.0"
MIB = 1 << 20
MakeRig = Callable[..., LiveRig]
RunModule = Callable[..., dict[str, Any]]


def look(rig: LiveRig) -> dict[str, Any]:
    """The module's result without the module's process."""
    result: dict[str, Any] = json.loads(json.dumps(report_as_dict(scan(**rig.arguments))))
    return result


# -- the module as a process ------------------------------------------------------------------------------------------
RIGS = ("guide_x299", "lost_card", "rtx_5090", "laptop", "vm_2xa40", "pod_4090", "driver_mismatch", "hgx_8xh100")


@pytest.mark.parametrize("name", RIGS)
def test_module_changes_nothing(make_rig: MakeRig, run_module: RunModule, name: str) -> None:
    rig = make_rig(name, setters="root")
    result = run_module("gpu_info", rig.arguments, check=RIGS.index(name) % 2 == 0)
    assert not result.get("failed")
    assert result["changed"] is False
    assert "diff" not in result
    assert rig.journal() == []
    assert rig.state() == {}
    told = {key: value for key, value in result.items() if key not in ("changed", "invocation", "rc_process")}
    assert told == look(rig)


def test_check_mode_tells_the_same(make_rig: MakeRig, run_module: RunModule) -> None:
    rig = make_rig("mixed")
    assert run_module("gpu_info", rig.arguments, check=True) == run_module("gpu_info", rig.arguments)


def test_guide_machine(make_rig: MakeRig, run_module: RunModule) -> None:
    result = run_module("gpu_info", make_rig("guide_x299").arguments)
    assert result["complete"] is True
    assert result["findings"] == []
    trainer, host = result["gpus"]
    assert (trainer["name"], trainer["pci"], trainer["cuda_index"]) == ("NVIDIA GeForce RTX 3090 Ti", TRAINER, 0)
    assert (host["name"], host["pci"], host["cuda_index"]) == ("NVIDIA GeForce RTX 4090", HOST, 1)
    assert (host["architecture"], host["compute_capability"], host["brand"]) == ("ada", "8.9", "geforce")
    assert host["power"] == {
        "limit_w": 450.0,
        "enforced_w": 450.0,
        "default_w": 450.0,
        "min_w": 10.0,
        "max_w": 600.0,
        "usage_w": 26.0,
        "source": "ac",
        "persistence": False,
        "limit_supported": True,
    }
    assert host["memory"]["cuda_total_bytes"] == 24077 * MIB
    assert host["memory"]["cuda_total_source"] == "logged"
    assert host["pcie"]["generation_max"] == 3, "the board, not the card"
    assert host["pcie"]["generation_card_max"] == 4
    assert host["display_active"] is True
    assert result["driver"]["driver_version"] == result["driver"]["kernel_module_version"] == "550.163.01"
    assert result["driver"]["kernel_module_flavour"] == "proprietary"


def test_binding_missing(make_rig: MakeRig, run_module: RunModule, tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('not here')\n", encoding="utf-8")
    result = run_module("gpu_info", make_rig("guide_x299").arguments, environment={"PYTHONPATH": str(tmp_path)})
    assert result["driver"]["reason"] == "binding_missing"
    assert "nvidia-ml-py" in result["driver"]["message"]
    assert [card["pci"] for card in result["pci_cards"]] == [TRAINER, HOST], "the bus is still read"
    assert result["gpus"] == []
    assert result["complete"] is False


def test_library_missing(make_rig: MakeRig, run_module: RunModule) -> None:
    rig = make_rig("guide_x299")
    Path(rig.nvml_path, "libnvidia-ml.so.1").unlink()
    result = run_module("gpu_info", rig.arguments)
    assert result["driver"]["nvml_available"] is False
    assert result["driver"]["reason"] == "library_missing"
    assert result["driver"]["kernel_module_version"] == "550.163.01"


def test_defaults_on_this_machine(run_module: RunModule) -> None:
    result = run_module("gpu_info", {})
    assert not result.get("failed")
    assert isinstance(result["driver"]["nvml_available"], bool)


# -- what is missing is named, never zero -----------------------------------------------------------------------------
WHERE = {
    "memory_bus_width_bits": ("memory", "bus_width_bits"),
    "bar1_total_bytes": ("memory", "bar1_total_bytes"),
    "bar1_used_bytes": ("memory", "bar1_used_bytes"),
    "ecc_enabled": ("memory", "ecc_enabled"),
    "persistence": ("power", "persistence"),
    "throttle_mask": ("clocks", "throttle_mask"),
    "performance_state": ("clocks", "performance_state"),
    "graphics_clock_mhz": ("clocks", "graphics_mhz"),
    "memory_clock_mhz": ("clocks", "memory_mhz"),
    "graphics_clock_max_mhz": ("clocks", "graphics_max_mhz"),
    "memory_clock_max_mhz": ("clocks", "memory_max_mhz"),
    "temperature_c": ("temperature", "gpu_c"),
    "temperature_slowdown_c": ("temperature", "slowdown_c"),
    "temperature_shutdown_c": ("temperature", "shutdown_c"),
    "fan_percent": ("temperature", "fan_percent"),
    "utilization_gpu_percent": ("utilization", "gpu_percent"),
    "utilization_memory_percent": ("utilization", "memory_percent"),
}


def value_of(gpu: dict[str, Any], reading: str) -> Any:
    if reading in WHERE:
        group, key = WHERE[reading]
        return gpu[group][key]
    for prefix, group in (("memory_", "memory"), ("power_", "power"), ("pcie_", "pcie")):
        if reading.startswith(prefix):
            return gpu[group][reading.removeprefix(prefix).replace("_mw", "_w")]
    return gpu[reading] if reading in gpu else gpu["processes"]


@pytest.mark.parametrize("name", MACHINES)
def test_unavailable_readings_are_null(make_rig: MakeRig, name: str) -> None:
    for gpu in look(make_rig(name))["gpus"]:
        for reading, why in gpu["unavailable"].items():
            assert value_of(gpu, reading) is None
            assert why["reason"] == "not_supported"
            assert gpu["name"] in why["message"]
        assert value_of(gpu, "memory_total_bytes") > 0


@pytest.mark.parametrize("code", [3, 4, 21, 999])
def test_every_reading_can_be_refused_alone(make_rig: MakeRig, code: int) -> None:
    rig = make_rig("vm_l4")
    rig.fault("0000:00:03.0", "*", code, "after 4")  # finding the card takes four calls
    gpu = look(rig)["gpus"][0]
    reasons = {3: "not_supported", 4: "no_permission", 21: "no_data", 999: "unknown"}
    assert {why["reason"] for why in gpu["unavailable"].values()} == {reasons[code]}
    assert {value_of(gpu, reading) for reading in gpu["unavailable"]} == {None}
    assert gpu["memory"]["cuda_total_bytes"] is None, "never NVML's total"
    assert gpu["state"] == "ok"
    assert gpu["processes"] is None


# -- lost and unreachable cards ---------------------------------------------------------------------------------------
def test_lost_card_is_named_by_its_address(make_rig: MakeRig) -> None:
    result = look(make_rig("lost_card"))
    assert result["complete"] is False
    assert [(c["index"], c["pci"], c["reason"]) for c in result["unreachable"]] == [(0, "0000:01:00.0", "lost")]
    assert [gpu["pci"] for gpu in result["gpus"]] == ["0000:02:00.0"]
    assert result["gpus"][0]["unavailable"].keys() <= {"serial", "board_part_number", "mig_enabled", "fan_percent"} | {
        "temperature_slowdown_c",
        "temperature_shutdown_c",
    }
    assert "Xid 79" in result["findings"][0]
    assert all(card["in_nvml"] for card in result["pci_cards"])


def test_card_without_power_cable(make_rig: MakeRig) -> None:
    result = look(make_rig("no_power_cable"))
    assert [(c["pci"], c["reason"]) for c in result["unreachable"]] == [("0000:01:00.0", "insufficient_power")]
    assert "Attach its power cables" in result["findings"][0]


def test_card_lost_while_it_is_read(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.fault(TRAINER, "*", 15, "after 20")
    result = look(rig)
    trainer, host = result["gpus"]
    assert trainer["state"] == "lost"
    assert trainer["memory"]["total_bytes"] == 24564 * MIB, "what was read stays"
    assert trainer["temperature"]["gpu_c"] is None
    assert trainer["unavailable"]["temperature_c"]["reason"] == "lost"
    assert host["state"] == "ok"
    assert host["temperature"]["gpu_c"] == 34, "the other card is read in full"
    assert result["complete"] is False
    assert any("lost while it was read" in finding for finding in result["findings"])


# -- machines ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "reason", "findings"),
    [
        ("driver_mismatch", "driver_mismatch", ["library 580.95.05, kernel module 570.195.03"]),
        ("nouveau", "driver_not_loaded", ["kernel driver is not loaded", "driven by nouveau"]),
        ("secure_boot", "driver_not_loaded", ["kernel driver is not loaded", "no driver is bound"]),
        ("above_4g_off", "", ["0000:02:00.0: on the PCI bus, but no driver is bound"]),
        ("pod_4090", "", ["not given to this container"] * 3),
        ("hgx_8xh100", "", []),
    ],
)
def test_findings(make_rig: MakeRig, name: str, reason: str, findings: list[str]) -> None:
    result = look(make_rig(name))
    assert result["driver"]["reason"] == reason
    assert len(result["findings"]) == len(findings)
    for part, finding in zip(findings, result["findings"], strict=True):
        assert part in finding


def test_pod_sees_only_its_own_card(make_rig: MakeRig) -> None:
    result = look(make_rig("pod_4090"))
    assert [gpu["pci"] for gpu in result["gpus"]] == ["0000:42:00.0"]
    assert [card["in_nvml"] for card in result["pci_cards"]] == [False, False, True, False]
    assert result["complete"] is True, "the other cards are not ours"


def test_eight_cards_in_milliseconds(make_rig: MakeRig) -> None:
    rig = make_rig("hgx_8xh100")
    look(rig)
    start = time.perf_counter()
    result = look(rig)
    assert time.perf_counter() - start < 1
    assert [gpu["cuda_index"] for gpu in result["gpus"]] == list(range(8))
    assert [gpu["numa_node"] for gpu in result["gpus"]] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert result["driver"]["kernel_module_flavour"] == "open"
    assert {gpu["power"]["persistence"] for gpu in result["gpus"]} == {True}


def test_processes_and_load(make_rig: MakeRig) -> None:
    busy = with_card(machine("guide_x299"), HOST, busy=True, processes=(Process(77, "python3", None),), replays=9)
    host = look(make_rig(busy))["gpus"][1]
    assert host["processes"] == [{"pid": 77, "kind": "compute", "used_bytes": None}]
    assert host["clocks"]["throttle_reasons"] == ["software_power_cap"]
    assert host["pcie"]["generation_current"] == 3
    assert host["pcie"]["replay_counter"] == 9
    assert host["utilization"]["gpu_percent"] == 97


def test_versions_that_cannot_be_read(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.fault("machine", "nvmlSystemGetCudaDriverVersion", 999)
    rig.fault("machine", "nvmlSystemGetCudaDriverVersion_v2", 999)
    result = look(rig)
    assert result["driver"]["cuda_version"] == ""
    assert result["driver"]["driver_version"] == "550.163.01"
    assert "CUDA version" in result["findings"][0]


def test_no_sysfs(make_rig: MakeRig, tmp_path: Path) -> None:
    assert scan_pci(str(tmp_path / "nothing")) == []
    rig = make_rig("lost_card")
    report = scan(rig.nvml_path, str(tmp_path / "nothing"), str(tmp_path / "nothing"))
    assert report.unreachable[0].pci is None, "without the bus the address of a lost card cannot be known"
    assert report.driver.kernel_module_version == ""


def test_audio_and_foreign_devices_are_no_cards(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    foreign = Path(rig.sysfs_root, "bus/pci/devices/0000:00:02.0")
    foreign.mkdir()
    (foreign / "vendor").write_text("0x8086\n")
    (foreign / "class").write_text("0x030000\n")
    assert [function.pci for function in scan_pci(rig.sysfs_root)] == [TRAINER, HOST]


# -- pure functions ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "total", "reserved", "wanted"),
    [
        ("NVIDIA L4", 23034 * MIB, 556 * MIB, (22569 * MIB, "logged")),
        ("Tesla T4", 16384 * MIB, 300 * MIB, (16084 * MIB, "estimated")),  # ECC off: the logged value does not hold
        ("NVIDIA Unheard 9000", 1000 * MIB, 100 * MIB, (900 * MIB, "estimated")),
        ("NVIDIA L4", 23034 * MIB, None, (None, None)),
        ("NVIDIA L4", None, None, (None, None)),
    ],
)
def test_cuda_total(name: str, total: int | None, reserved: int | None, wanted: tuple[int | None, str | None]) -> None:
    assert cuda_total(name, total, reserved) == wanted


def test_throttle_reasons() -> None:
    assert throttle_reasons(0) == []
    assert throttle_reasons(0x84) == ["software_power_cap", "hardware_power_brake"]
    assert throttle_reasons(0x801) == ["gpu_idle", "bit_0x800"]


def test_unknown_numbers_keep_their_number() -> None:
    gpu = gpu_from_readings(Card(0, "GPU-1", HOST, "new"), {"architecture": 99, "compute_mode": 0}, [])
    assert (gpu.architecture, gpu.compute_mode, gpu.brand) == ("unknown 99", "default", None)
    assert gpu.activity.throttle_reasons is None


def test_pci_order_is_numeric() -> None:
    cards = [Card(n, f"GPU-{n}", pci, "x") for n, pci in enumerate(("10000:01:00.0", "0000:c1:00.0", "0000:0a:00.0"))]
    assert [card.pci for card in pci_order(cards)] == ["0000:0a:00.0", "0000:c1:00.0", "10000:01:00.0"]
    assert pci_key("65:00") == (0, 0x65, 0, 0)


GONE = UnreachableCard("lost", "gone", 1)
HERE = Card(0, "GPU-0", "0000:01:00.0", "x")


@pytest.mark.parametrize(
    ("bus", "wanted"),
    [
        (["0000:02:00.0", "0000:01:00.0"], "0000:02:00.0"),
        (["0000:01:00.0"], None),  # the bus lost it as well
        (["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"], None),  # one of them, no telling which
        (["0000:00:00.0", "0000:02:00.0"], None),  # the card that answers is not where the order would have it
    ],
)
def test_locate(bus: list[str], wanted: str | None) -> None:
    assert locate([GONE], [HERE], bus) == [dataclasses.replace(GONE, pci=wanted)]


def test_locate_keeps_what_is_known() -> None:
    known = UnreachableCard("lost", "gone", 1, "0000:09:00.0")
    assert locate([known], [HERE], ["0000:01:00.0", "0000:02:00.0"]) == [known]


def test_power_without_range_has_no_limits() -> None:
    assert not Power(limit_mw=1, min_mw=1).has_limits
    assert Power(min_mw=1, max_mw=2).has_limits


# -- documentation ----------------------------------------------------------------------------------------------------
def documented(entries: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, entry in entries.items():
        yield f"{prefix}{name}"
        yield from documented(entry.get("contains", {}), f"{prefix}{name}.")


def returned(value: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(value, list):
        for element in value[:1]:
            yield from returned(element, prefix)
    elif isinstance(value, dict) and prefix != "gpus.unavailable.":
        for name, inner in value.items():
            yield f"{prefix}{name}"
            yield from returned(inner, f"{prefix}{name}.")


def test_every_returned_key_is_documented(make_rig: MakeRig) -> None:
    busy = with_card(machine("lost_card"), "0000:02:00.0", processes=(Process(1, "a", 1),))
    assert set(returned(look(make_rig(busy)))) == set(documented(yaml.safe_load(gpu_info.RETURN)))
