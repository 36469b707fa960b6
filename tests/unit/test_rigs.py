# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue of cards and machines: complete, with sources, and every witness tells the same story."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import (
    ARCHITECTURES,
    BRANDS,
    CUDA_TOTAL_MIB,
    CUDA_TOTAL_TOLERANCE,
    pci_key,
)
from ansible_collections.gpurig.llm.tests.rigs import gpus
from ansible_collections.gpurig.llm.tests.rigs.gpus import Gpu, catalogue
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import MACHINES, Machine, Place, machine, with_card
from ansible_collections.gpurig.llm.tests.rigs.witnesses import (
    FLAGS_WINDOW,
    SECURE_BOOT_VARIABLE,
    Link,
    bars,
    dmidecode,
    lspci,
    nvml_ini,
    proc,
    sysfs,
)

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
MIB = 1 << 20
PLACES = [pytest.param(m, p, id=f"{m.name}-{p.pci}") for m in MACHINES.values() for p in m.places]
ALL = [pytest.param(m, id=m.name) for m in MACHINES.values()]


# -- catalogue --------------------------------------------------------------------------------------------------------
def test_the_cards_that_tests_speak_of_are_there() -> None:
    assert set(catalogue()) >= {
        *("gtx_1080", "rtx_3090", "rtx_3090_ti", "rtx_4090", "rtx_5090"),
        *("a10", "a40", "l4", "l40s", "t4", "a100_40", "h100", "h200"),
    }
    assert catalogue()["rtx_5090"].power_min_w == 400


@pytest.mark.parametrize("gpu", catalogue().values(), ids=catalogue())
def test_figures_are_plausible_and_have_sources(gpu: Gpu) -> None:
    assert set(gpu.sources) == {field.name for field in dataclasses.fields(Gpu)} - {"key", "sources"}
    assert all(len(source) > 20 for source in gpu.sources.values())
    assert gpu.cuda_total_mib < gpu.memory_total_mib, "CUDA sees less than NVML"
    estimate = gpu.memory_total_mib - gpu.memory_reserved_mib
    assert abs(estimate - gpu.cuda_total_mib) < CUDA_TOTAL_TOLERANCE * gpu.memory_total_mib
    if gpu.power_min_w is not None and gpu.power_default_w is not None and gpu.power_max_w is not None:
        assert 0 < gpu.power_min_w <= gpu.power_default_w <= gpu.power_max_w
        assert gpu.idle_power_w < gpu.power_default_w
    assert gpu.architecture in ARCHITECTURES
    assert gpu.brand in BRANDS
    assert gpu.window_mib.bit_count() == 1
    assert all(size.bit_count() == 1 and size <= 262144 for size in gpu.resizable_mib)
    assert not gpu.resizable_mib or gpu.window_mib in gpu.resizable_mib
    assert CUDA_TOTAL_MIB[gpu.name] == gpu.cuda_total_mib, "the product's table says the same"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: {x: y}\ngpus: {a: [{source: x, name: b}, {source: x, name: c}]}", "given twice"),
        ("sources: {x: y}\ngpus: {a: [{source: x, name: b}]}", "lacks or does not know"),
        ("sources: {x: y}\ngpus: {a: [{source: z, name: b}]}", "z"),
    ],
    ids=["twice", "missing", "source"],
)
def test_bad_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    file = tmp_path / "gpus.yml"
    file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(gpus, "CATALOGUE", file)
    with pytest.raises((ValueError, KeyError), match=message):
        catalogue.__wrapped__()


# -- machines ---------------------------------------------------------------------------------------------------------
def test_the_machines_that_tests_speak_of_are_there() -> None:
    assert set(MACHINES) >= {
        *("guide_x299", "vm_2xa40", "vm_l4", "gtx_1080", "oculink_4090", "hgx_8xh100", "vm_hidden_bar", "pod_4090"),
        *("lost_card", "old_vbios", "csm_boot", "secure_boot", "rtx_5090", "laptop", "driver_mismatch"),
    }
    with pytest.raises(KeyError, match="guide_x299"):
        machine("guide")


@pytest.mark.parametrize("described", ALL)
def test_cards_of_a_machine_are_distinct(described: Machine) -> None:
    assert len({place.uuid for place in described.places}) == len(described.places)
    assert len({place.pci for place in described.places}) == len(described.places)
    assert len(described.story) > 20


def test_a_card_keeps_its_name_when_it_moves() -> None:
    guide = machine("guide_x299")
    moved = with_card(guide, "0000:65:00.0", pci="0000:b3:00.0")
    assert moved.place("0000:b3:00.0").uuid == guide.place("0000:65:00.0").uuid
    with pytest.raises(ValueError, match="no card at 0000:99"):
        with_card(guide, "0000:99:00.0", lost=True)


@pytest.mark.parametrize("described", ALL)
def test_windows_do_not_overlap_and_lie_where_the_setting_says(described: Machine) -> None:
    taken: list[tuple[int, int]] = []
    for lines in bars(described).values():
        for bar in lines[:5]:
            if bar.start:
                assert bar.start % bar.size == 0
                assert all(bar.start >= end or bar.start + bar.size <= start for start, end in taken)
                taken.append((bar.start, bar.start + bar.size))
                if bar.flags == FLAGS_WINDOW:
                    assert (bar.start >= 1 << 32) is described.above_4g


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit below 4 GiB"):
        bars(dataclasses.replace(machine("guide_x299"), above_4g=False))


# -- witnesses agree --------------------------------------------------------------------------------------------------
def ini_of(described: Machine) -> dict[str, dict[str, str]]:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.read_string(nvml_ini(described))
    return {parser[s]["pci"]: dict(parser[s]) for s in parser.sections() if s.startswith("gpu")}


def device(described: Machine, pci: str) -> dict[str, str]:
    tree = sysfs(described)
    link = tree[f"bus/pci/devices/{pci}"]
    assert isinstance(link, Link)
    prefix = link.target + "/"
    return {name.removeprefix(prefix): str(text) for name, text in tree.items() if name.startswith(prefix)}


def window(described: Machine, place: Place) -> int:
    line = device(described, place.pci)["resource"].splitlines()[place.model.window_bar]
    start, end, _ = (int(number, 16) for number in line.split())
    return end - start + 1 if start else 0


@pytest.mark.parametrize(("described", "place"), PLACES)
def test_sysfs_nvml_and_lspci_agree(described: Machine, place: Place) -> None:
    files = device(described, place.pci)
    lines = files["resource"].splitlines()
    assert len(lines) == 7
    assert {len(line) for line in lines} == {56}
    assert window(described, place) == place.window * MIB

    block = next(b for b in lspci(described).split("\n\n") if b.startswith(place.pci))
    assert f"NVIDIA Corporation {place.model.chip}" in block
    speed = {"2.5GT/s": 1, "5GT/s": 2, "8GT/s": 3, "16GT/s": 4, "32GT/s": 5}
    if place.lost:
        assert "!!! Unknown header type 7f" in block
        assert files["current_link_width"] == "63\n"
    else:
        assert files["current_link_width"] == f"{place.link_width}\n"
        start = int(lines[place.model.window_bar].split()[0], 16)
        assert (f"Region {place.model.window_bar}: Memory at {start:x} (64-bit, prefetchable)" in block) is bool(start)
    if not place.lost and not described.is_container:
        found = re.search(r"LnkSta:\tSpeed (\S+?)(?: \(downgraded\))?, Width x(\d+)", block)
        assert found
        assert (speed[found[1]], int(found[2])) == (place.link_generation, place.link_width)
        offered = re.search(rf"BAR {place.model.window_bar}: current size: \S+, supported: (.*)", block)
        assert (offered is not None) is (f"resource{place.model.window_bar}_resize" in files)
    if place.in_nvml:
        keys = ini_of(described)[place.pci]
        assert int(keys["bar1_total"]) == place.window * MIB
        assert int(keys["pcie_gen_current"]) == place.link_generation
        assert int(keys["pcie_width_current"]) == place.link_width
        assert keys["uuid"] in str(proc(described).get(f"driver/nvidia/gpus/{place.pci}/information", keys["uuid"]))
    else:
        assert place.pci not in ini_of(described)


@pytest.mark.parametrize("described", ALL)
def test_nvml_numbers_cards_in_pci_order(described: Machine) -> None:
    addresses = list(ini_of(described))
    assert addresses == sorted(addresses, key=pci_key)


def test_resize_bitmap_as_the_kernel_writes_it() -> None:
    ten_sizes = device(machine("guide_x299"), "0000:65:00.0")["resource1_resize"]
    assert ten_sizes == "000000000000ffc0\n", "bit n is 2^(n+20) bytes: 64 MiB to 32 GiB"
    assert device(machine("old_vbios"), "0000:21:00.0")["resource1_resize"] == "0000000000000100\n"
    assert "resource1_resize" not in device(machine("vm_hidden_bar"), "0000:01:00.0")
    assert "BAR 1: current size: 256MB, supported: 256MB\n" in lspci(machine("old_vbios"))


def test_guide_machine_as_dmidecode_shows_it() -> None:
    text = dmidecode(machine("guide_x299"))
    assert "\tProduct Name: WS X299 SAGE\n" in text
    assert "\tType: x16 PCI Express 3 x16\n" in text
    assert "\tBus Address: 0000:65:00.0\n" in text
    assert "UEFI is supported" in text


def test_boot_modes() -> None:
    def firmware(described: Machine, below: str = "firmware/") -> set[str]:
        return {name for name in sysfs(described) if name.startswith(below)}

    variable = f"firmware/efi/efivars/{SECURE_BOOT_VARIABLE}"
    assert sysfs(machine("secure_boot"))[variable] == b"\x06\0\0\0\x01"
    assert sysfs(machine("guide_x299"))[variable] == b"\x06\0\0\0\x00"
    assert firmware(machine("csm_boot"), "firmware/efi") == set()
    assert "UEFI is supported" in dmidecode(machine("csm_boot")), "the firmware could, this boot did not"
    assert firmware(machine("pod_4090")) == set()
    assert "/dev/mem: No such file" in dmidecode(machine("pod_4090"))


def test_without_root_lspci_hides_capabilities() -> None:
    text = lspci(machine("guide_x299"), root=False)
    assert "Capabilities: <access denied>" in text
    assert "LnkSta" not in text
    assert lspci(machine("pod_4090")) == lspci(machine("pod_4090"), root=False)


def test_bridges_are_on_the_path_of_the_card() -> None:
    link = sysfs(machine("hgx_8xh100"))["bus/pci/devices/0000:1b:00.0"]
    assert link == Link("devices/pci0000:18/0000:18:01.0/0000:19:00.0/0000:1a:00.0/0000:1b:00.0")


def test_iommu_off_leaves_empty_directories() -> None:
    tree = sysfs(machine("gtx_1080"))
    assert [name for name in tree if "iommu" in name] == ["class/iommu", "kernel/iommu_groups"]


# -- on disk ----------------------------------------------------------------------------------------------------------
MakeRig = Callable[..., LiveRig]


@pytest.mark.parametrize("name", ["guide_x299", "hgx_8xh100", "thunderbolt_3090", "pod_4090"])
def test_machine_on_disk(make_rig: MakeRig, name: str) -> None:
    rig = make_rig(name)
    for place in rig.machine.places:
        link = Path(rig.sysfs_root, "bus/pci/devices", place.pci)
        real = link.resolve()
        assert real.is_relative_to(Path(rig.sysfs_root).resolve() / "devices"), "links stay inside the tree"
        assert [p.name for p in real.parents][: len(place.upstream)] == [b.pci for b in reversed(place.upstream)]
        assert (link / "driver").resolve().name == place.kernel_driver
        assert (Path(rig.sysfs_root, "bus/pci/drivers", place.kernel_driver, place.pci)).resolve() == real
    output = subprocess.run([f"{rig.bin}/lspci", "-D", "-vv"], capture_output=True, text=True, check=True, timeout=10)
    assert output.stdout == lspci(rig.machine)
    assert subprocess.run([f"{rig.bin}/dmidecode"], capture_output=True, check=True, timeout=10).stdout


def test_removable_marks_the_box(make_rig: MakeRig) -> None:
    rig = make_rig("thunderbolt_3090")
    card = Path(rig.sysfs_root, "bus/pci/devices/0000:04:00.0").resolve()
    assert (card / "removable").read_text() == "removable\n"
    assert not (card.parents[2] / "removable").exists(), "the root port is not"
    assert Path(rig.sysfs_root, "bus/thunderbolt/devices/0-1/authorized").read_text() == "1\n"


def test_program_installs_a_machine_for_another_host(tmp_path: Path) -> None:
    module = "ansible_collections.gpurig.llm.tests.rigs.live"
    subprocess.run([sys.executable, "-m", module, "vm_l4", str(tmp_path / "rig")], check=True, timeout=60)
    library = tmp_path / "rig/nvml/libnvidia-ml.so.1"
    assert library.is_file()
    assert not library.is_symlink()
    assert (tmp_path / "rig/nvml/rig.ini").is_file()
