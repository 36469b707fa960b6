# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One read-only look at what firmware left behind: files of the kernel below given roots, and NVML. (outside)

No tool is called. Whatever is missing or not readable stays empty, and the readings made of it say so.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import gpu_scan
from .firmware_model import (
    Bridge,
    CardSeen,
    HostSeen,
    Link,
    parse_aspm_policy,
    parse_errors,
    parse_kernel,
    parse_pci_ids,
    parse_rebar,
    parse_resize,
    parse_resource,
    parse_root_windows,
    parse_smbios,
    parse_speed,
    parse_width,
    report,
)
from .gpu_model import Gpu
from .host import parse_mounts
from .kinds import RUNPOD_WITNESS, marks_of_a_virtual_machine

SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
PCI_IDS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")
"""Where Debian and Ubuntu keep the names of PCI devices; without a driver nothing else names a card."""
NVIDIA = "10de"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_DMI = ("sys_vendor", "product_name", "board_vendor", "board_name", "bios_vendor", "bios_version", "bios_date")
_READ_AT_MOST_BYTES = 1 << 20


def scan(nvml_path: str = "", sysfs_root: str = "/sys", proc_root: str = "/proc", pci_ids: str = "") -> dict[str, Any]:
    """Everything about firmware and cards of this host, partial where something is missing."""
    sys, proc = Path(sysfs_root), Path(proc_root)
    gpus = gpu_scan.scan(nvml_path, sysfs_root, proc_root)
    known = {gpu.card.pci: gpu for gpu in gpus.gpus}
    names = _names(pci_ids)
    cards = [
        _card(sys, proc, function.pci, function.device_id, function.kernel_driver, known.get(function.pci), names)
        for function in gpus.pci
    ]
    return {**report(read_host(sys, proc), cards), "driver": gpus.driver.message if not known else ""}


def read_host(sys: Path, proc: Path) -> HostSeen:
    """What the kernel tells of the machine."""
    dmi = {name: _text(sys / "class/dmi/id" / name) for name in _DMI}
    tables = _bytes(sys / "firmware/dmi/tables/DMI")
    smbios = parse_smbios(tables) if tables else None
    hypervisor = bool(re.search(r"^flags\s*:.*\bhypervisor\b", _text(proc / "cpuinfo"), re.MULTILINE))
    marks = marks_of_a_virtual_machine(dmi["sys_vendor"], dmi["product_name"], hypervisor)
    if smbios and smbios.is_virtual:
        marks = (*marks, "SMBIOS says virtual machine")
    windows = parse_root_windows(_text(proc / "iomem"))
    groups = _names_in(sys / "kernel/iommu_groups")
    return HostSeen(
        kernel=parse_kernel(_text(proc / "sys/kernel/osrelease")),
        cmdline=tuple(_text(proc / "cmdline").split()),
        vm_marks=marks,
        container_marks=_container_marks(proc),
        dmi=dmi,
        smbios=smbios,
        efi=(sys / "firmware/efi").is_dir(),
        efi_variables=bool(_names_in(sys / "firmware/efi/efivars")),
        secure_boot=_bytes(sys / SECURE_BOOT),
        root_windows=None if windows is None else tuple(windows),
        iommu_units=_names_in(sys / "class/iommu"),
        iommu_types=None
        if groups is None
        else tuple(filter(None, (_text(sys / "kernel/iommu_groups" / group / "type") for group in groups))),
        acpi_tables=_names_in(sys / "firmware/acpi/tables"),
        aspm_policy=parse_aspm_policy(_text(sys / "module/pcie_aspm/parameters/policy")),
        thunderbolt=tuple(_thunderbolt(sys / "bus/thunderbolt/devices")),
    )


def _container_marks(proc: Path) -> tuple[str, ...]:
    marks = [
        "/sys/firmware is masked"
        for mount in parse_mounts(_text(proc / "mounts"))
        if mount.point == "/sys/firmware" and mount.fs_type == "tmpfs"
    ][:1]
    environ = (_bytes(proc / "1/environ") or b"").split(b"\0")
    names = {entry.partition(b"=")[0].decode("ascii", "replace") for entry in environ}
    told = sorted(name for name in names if name == "container" or RUNPOD_WITNESS.fullmatch(name))
    if told:
        marks.append(f"{told[0]} in PID 1's environment")
    return tuple(marks)


def _thunderbolt(folder: Path) -> list[str]:
    found = []
    for name in _names_in(folder) or ():
        vendor, device = _text(folder / name / "vendor_name"), _text(folder / name / "device_name")
        if device:
            allowed = "" if _text(folder / name / "authorized") != "0" else " (not authorized)"
            found.append(f"{vendor} {device}".strip() + allowed)
    return found


def _card(
    sys: Path, proc: Path, pci: str, device_id: str, kernel_driver: str, gpu: Gpu | None, names: Mapping[str, str]
) -> CardSeen:
    device = sys / "bus/pci/devices" / pci
    config = _bytes(device / "config") or b""
    information = _text(proc / "driver/nvidia/gpus" / pci / "information")
    link = _link(device)
    return CardSeen(
        pci=pci,
        device_id=device_id,
        name=gpu.card.name if gpu else _line(information, "Model") or names.get(device_id, f"{NVIDIA}:{device_id}"),
        uuid=gpu.card.uuid if gpu else _line(information, "GPU UUID"),
        vbios=(gpu.vbios_version if gpu else None) or _line(information, "Video BIOS").upper(),
        kernel_driver=kernel_driver,
        is_display=_text(device / "class").startswith("0x0300"),
        memory_bytes=gpu.memory.total_bytes if gpu else None,
        performance_state=gpu.activity.performance_state if gpu else None,
        in_nvml=gpu is not None,
        bars=parse_resource(_text(device / "resource")),
        resize=_resize(device),
        rebar=parse_rebar(config),
        link=link,
        upstream=_upstream(device),
        removable=_text(device / "removable") == "removable",
        aspm={name: _text(device / "link" / name) for name in _names_in(device / "link") or () if "_aspm" in name},
        correctable_errors=parse_errors(_text(device / "aer_dev_correctable")),
        lost=config[:4] == b"\xff\xff\xff\xff" or _text(device / "current_link_width") in ("63", "255"),
    )


def _resize(device: Path) -> dict[int, tuple[int, ...]]:
    files = {index: _text(device / f"resource{index}_resize") for index in range(6)}
    return {index: parse_resize(text) for index, text in files.items() if text}


def _link(device: Path) -> Link:
    return Link(
        width=parse_width(_text(device / "current_link_width")),
        width_max=parse_width(_text(device / "max_link_width")),
        generation=parse_speed(_text(device / "current_link_speed")),
        generation_max=parse_speed(_text(device / "max_link_speed")),
    )


def _upstream(device: Path) -> tuple[Bridge, ...]:
    """The bridges above a device, from the root port down: the folders on its real path."""
    with contextlib.suppress(OSError, RuntimeError):
        above = [folder for folder in device.resolve(strict=True).parents if _ADDRESS.fullmatch(folder.name)]
        return tuple(
            Bridge(folder.name, _link(folder), _text(folder / "removable") == "removable") for folder in above[::-1]
        )
    return ()


def _names(path: str) -> dict[str, str]:
    for place in (path,) if path else PCI_IDS:
        text = _text(Path(place), at_most=8 << 20)
        if text:
            return parse_pci_ids(text, NVIDIA)
    return {}


def _line(text: str, key: str) -> str:
    found = re.search(rf"^{key}:\s*(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""


def _names_in(folder: Path) -> tuple[str, ...] | None:
    with contextlib.suppress(OSError):
        return tuple(sorted(entry.name for entry in folder.iterdir()))
    return None


def _bytes(path: Path, at_most: int = _READ_AT_MOST_BYTES) -> bytes | None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(at_most)
    return None


def _text(path: Path, at_most: int = _READ_AT_MOST_BYTES) -> str:
    return (_bytes(path, at_most) or b"").decode("utf-8", "replace").strip()
