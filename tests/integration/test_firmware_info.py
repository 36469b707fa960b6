# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module firmware_info as a process on simulated rigs: what it says of each, and that it touches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils.firmware_scan import scan
from ansible_collections.gpurig.llm.plugins.modules import firmware_info
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import MACHINES, Machine, machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
MakeRig = Callable[..., LiveRig]
RunModule = Callable[..., dict[str, Any]]

CARD_READINGS = ("resizable_bar", "link_width", "link_generation", "aspm", "attachment")
HOST_READINGS = ("boot_mode", "csm", "secure_boot", "above_4g_decoding", "iommu", "aspm_policy")

# rig -> environment; boot_mode, csm, secure_boot, above 4G, iommu; of each card (resizable_bar, cause), (width, cause)
RIGS: dict[str, tuple[str, tuple[str, ...], list[tuple[tuple[str, str], tuple[int | str, str]]]]] = {
    "guide_x299": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("enabled", ""), (16, "")), (("enabled", ""), (16, ""))],
    ),
    "csm_boot": (
        "metal",
        ("legacy", "enabled", "disabled", "disabled", "translated"),
        [(("disabled", "bios"), (16, "")), (("disabled", "bios"), (16, ""))],
    ),
    "secure_boot": (
        "metal",
        ("uefi", "disabled", "enabled", "enabled", "translated"),
        [(("enabled", ""), (16, ""))],
    ),
    "old_vbios": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("disabled", "card_firmware"), (16, "")), (("enabled", ""), (16, ""))],
    ),
    "rebar_off": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("disabled", "bios"), (16, ""))],
    ),
    "above_4g_off": (
        "metal",
        ("uefi", "unknown", "disabled", "disabled", "translated"),
        [(("fixed", "card"), (16, "")), (("unassigned", "bios"), (16, ""))],
    ),
    "lost_card": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("unknown", "lost"), ("unknown", "lost")), (("enabled", ""), (8, "slot"))],
    ),
    "gtx_1080": ("metal", ("uefi", "unknown", "disabled", "enabled", "disabled"), [(("fixed", "card"), (16, ""))]),
    "oculink_4090": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("enabled", ""), (4, "slot"))],
    ),
    "thunderbolt_3090": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("disabled", "address_space"), (4, "slot"))],
    ),
    "laptop": ("metal", ("uefi", "unknown", "disabled", "enabled", "translated"), [(("enabled", ""), (8, ""))]),
    "vm_2xa40": (
        "vm",
        ("uefi", "unknown", "disabled", "enabled", "disabled"),
        [(("large", ""), (16, "")), (("large", ""), (16, ""))],
    ),
    "vm_hidden_bar": ("vm", ("uefi", "unknown", "disabled", "enabled", "disabled"), [(("hidden", "vm"), (16, ""))]),
    "pod_4090": (
        "container",
        ("unknown", "unknown", "unknown", "enabled", "translated"),
        [(("enabled", ""), (16, ""))] * 4,
    ),
    "hgx_8xh100": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("enabled", ""), (16, ""))] * 8,
    ),
    "nouveau": ("metal", ("uefi", "unknown", "disabled", "enabled", "translated"), [(("enabled", ""), (16, ""))]),
    "driver_mismatch": (
        "metal",
        ("uefi", "unknown", "disabled", "enabled", "translated"),
        [(("enabled", ""), (16, ""))],
    ),
}


def summary(result: dict[str, Any]) -> tuple[Any, ...]:
    return (
        result["environment"]["value"],
        tuple(result[name]["value"] for name in HOST_READINGS[:5]),
        [
            tuple((card[name]["value"], card[name]["cause"]) for name in ("resizable_bar", "link_width"))
            for card in result["cards"]
        ],
    )


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".lock"}


@pytest.mark.parametrize("name", RIGS)
def test_each_rig(make_rig: MakeRig, run_module: RunModule, name: str) -> None:
    rig = make_rig(name, setters="root")
    before = content(rig.directory)
    first = run_module("firmware_info", rig.arguments, check=True)
    again = run_module("firmware_info", rig.arguments)
    assert not first.get("failed"), first
    assert first["changed"] is again["changed"] is False
    assert "diff" not in first
    assert summary(first) == RIGS[name]
    assert first == again, "check mode sees the same"
    assert content(rig.directory) == before
    assert rig.journal() == []
    for reading in [first[key] for key in HOST_READINGS] + [
        card[key] for card in first["cards"] for key in CARD_READINGS
    ]:
        assert set(reading) == {"value", "evidence", "reason", "cause"}
        assert reading["evidence"] or reading["reason"]
        assert reading["value"] != "unknown" or (reading["reason"] and reading["cause"])


def test_what_it_returns_is_documented(make_rig: MakeRig, run_module: RunModule) -> None:
    def keys(given: Any, told: dict[str, Any], path: str) -> None:
        for key, value in given.items():
            assert key in told, f"{path}.{key} is not documented"
            inner = told[key].get("contains")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict) and inner:
                    keys(part, inner, f"{path}.{key}")
        assert not set(told) - set(given), f"{path}: documented, not returned: {set(told) - set(given)}"

    result = run_module("firmware_info", make_rig("guide_x299").arguments)
    keys({k: v for k, v in result.items() if k not in ("changed", "invocation", "rc_process")},
         yaml.safe_load(firmware_info.RETURN), "result")  # fmt: skip


# -- partial results --------------------------------------------------------------------------------------------------
def look(rig: LiveRig, **more: str) -> dict[str, Any]:
    return scan(**{**rig.arguments, **more})


def test_every_machine_can_be_read(make_rig: MakeRig) -> None:
    for name, described in MACHINES.items():
        result = look(make_rig(described))
        assert len(result["cards"]) == len(described.places), name
        assert result["environment"]["value"] == {"metal": "metal", "vm": "vm", "pod": "container"}[described.kind], (
            name
        )


def test_a_machine_without_anything(tmp_path: Path, run_module: RunModule) -> None:
    nowhere = {"sysfs_root": str(tmp_path / "sys"), "proc_root": str(tmp_path / "proc"), "nvml_path": str(tmp_path)}
    result = run_module("firmware_info", nowhere)
    assert result["rc_process"] == 0
    assert result["cards"] == []
    assert result["complete"] is False
    assert result["driver"]


def on_kernel(described: Machine, kernel: str) -> Machine:
    return dataclasses.replace(described, kernel=kernel)


def test_old_kernels_are_read_through_configuration_space(make_rig: MakeRig) -> None:
    """Before 6.1 there is no resourceN_resize; root sees the capability itself, others do not."""
    rig = make_rig(on_kernel(machine("old_vbios"), "5.15.0-100-generic"))
    assert not list(Path(rig.sysfs_root).rglob("resource?_resize"))
    assert [card["resizable_bar"]["cause"] for card in look(rig)["cards"]] == ["card_firmware", ""]
    for config in Path(rig.sysfs_root).rglob("config"):
        config.write_bytes(config.read_bytes()[:64])
    assert [card["resizable_bar"]["cause"] for card in look(rig)["cards"]] == ["undecided", ""]
    assert look(rig)["cards"][0]["window"]["offered_bytes"] is None


def test_without_root_less_is_known(make_rig: MakeRig) -> None:
    rig = make_rig("csm_boot")
    Path(rig.proc_root, "iomem").write_text("00000000-00000000 : PCI Bus 0000:16\n", encoding="utf-8")
    Path(rig.sysfs_root, "firmware/dmi/tables/DMI").unlink()
    result = look(rig)
    assert (result["above_4g_decoding"]["value"], result["above_4g_decoding"]["cause"]) == ("unknown", "rights")
    assert result["boot_mode"]["value"] == "legacy"
    assert result["cards"][0]["link"]["slot"] == ""
    assert result["cards"][0]["resizable_bar"]["cause"] == "bios"


def test_without_nvml_cards_are_judged_and_named(make_rig: MakeRig, tmp_path: Path) -> None:
    names = tmp_path / "pci.ids"
    names.write_text("10de  NVIDIA Corporation\n\t2684  AD102 [GeForce RTX 4090]\n", encoding="utf-8")
    rig = make_rig("secure_boot")
    [card] = look(rig, pci_ids=str(names))["cards"]
    assert (card["name"], card["uuid"], card["memory_bytes"]) == ("GeForce RTX 4090", "", None)
    assert card["resizable_bar"]["value"] == "enabled"
    [card] = look(rig, pci_ids=str(tmp_path / "none"))["cards"]
    assert card["name"] == "10de:2684"
    mismatch = look(make_rig("driver_mismatch"))
    [card] = mismatch["cards"]
    assert card["name"] == "NVIDIA GeForce RTX 3090", "the driver's files name it"
    assert card["uuid"].startswith("GPU-")
    assert card["vbios"] == "94.02.71.40.72"
    assert "570.195.03" in mismatch["driver"]


def test_load_decides_about_the_generation(make_rig: MakeRig) -> None:
    host = "0000:65:00.0"
    idle = look(make_rig("guide_x299"))["cards"][1]["link_generation"]
    assert (idle["value"], idle["cause"]) == (1, "idle")
    busy = look(make_rig(with_card(machine("guide_x299"), host, busy=True)))["cards"][1]
    assert (busy["link_generation"]["value"], busy["link_generation"]["cause"]) == (3, "slot")
    assert busy["link"]["generation_limited_by"] == "bridge 0000:64:00.0"
    assert busy["link"]["slot"] == "PCIEX16_5"


def test_a_bad_riser_is_told_from_a_narrow_slot(make_rig: MakeRig) -> None:
    riser = with_card(machine("guide_x299"), "0000:65:00.0", width=8, correctable_errors=311)
    result = look(make_rig(riser))
    assert (result["cards"][1]["link_width"]["value"], result["cards"][1]["link_width"]["cause"]) == (8, "seat")
    assert result["cards"][1]["link"]["correctable_errors"] == 311
    assert any("311 corrected errors" in finding for finding in result["findings"])
    assert [bridge["pci"] for bridge in look(make_rig("hgx_8xh100"))["cards"][0]["link"]["upstream"]] == [
        *("0000:18:01.0", "0000:19:00.0", "0000:1a:00.0")
    ]


def test_external_cards(make_rig: MakeRig) -> None:
    box = look(make_rig("thunderbolt_3090"))
    assert box["cards"][0]["attachment"]["value"] == "thunderbolt"
    assert box["thunderbolt"] == ["Razer Core X"]
    oculink = look(make_rig("oculink_4090"))["cards"][0]["attachment"]
    assert oculink["value"] == "pcie"
    assert "OCuLink" in oculink["reason"], "a hint, no claim"
    rig = make_rig("thunderbolt_3090")
    Path(rig.sysfs_root, "bus/thunderbolt/devices/0-1/authorized").write_text("0\n", encoding="utf-8")
    assert look(rig)["thunderbolt"] == ["Razer Core X (not authorized)"]


def test_only_given_cards_are_ours_in_a_pod(make_rig: MakeRig) -> None:
    cards = look(make_rig("pod_4090"))["cards"]
    assert [card["ours"] for card in cards] == [False, False, True, False]


def test_aspm(make_rig: MakeRig) -> None:
    result = look(make_rig(dataclasses.replace(machine("guide_x299"), aspm="powersave")))
    assert result["aspm_policy"]["value"] == "powersave"
    assert {card["aspm"]["value"] for card in result["cards"]} == {"enabled"}
    assert {card["aspm"]["value"] for card in look(make_rig("guide_x299"))["cards"]} == {"disabled"}


def test_marks_of_containers(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    Path(rig.proc_root, "1/environ").write_bytes(b"PATH=/bin\0container=podman\0")
    assert look(rig)["environment"] == {
        "value": "container", "evidence": "container in PID 1's environment", "reason": "", "cause": ""
    }  # fmt: skip
    Path(rig.proc_root, "1/environ").unlink()
    Path(rig.proc_root, "mounts").write_text("tmpfs /sys/firmware tmpfs ro 0 0\n", encoding="utf-8")
    assert look(rig)["environment"]["evidence"] == "/sys/firmware is masked"
