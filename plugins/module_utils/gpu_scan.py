# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One read-only look at a host's graphics cards: NVML, the PCI bus and the driver's files. (outside)

Nothing here fails because a card, a driver or a reading is missing: the report names what is missing and why.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import nvml
from .gpu_model import (
    Driver,
    Gpu,
    GpuReport,
    PciFunction,
    UnreachableCard,
    gpu_from_readings,
    locate,
    pci_key,
)

NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"


def scan_pci(sysfs_root: str = "/sys") -> list[PciFunction]:
    """NVIDIA's display and 3D controllers on the PCI bus, in PCI order; audio and other functions are left out."""
    found = []
    with contextlib.suppress(OSError):
        for device in Path(sysfs_root, "bus/pci/devices").iterdir():
            if _text(device / "vendor") == NVIDIA_VENDOR and _text(device / "class").startswith(DISPLAY_CLASS):
                driver = device / "driver"
                node = _text(device / "numa_node")
                found.append(
                    PciFunction(
                        pci=device.name,
                        device_id=_text(device / "device").removeprefix("0x"),
                        kernel_driver=driver.resolve().name if driver.exists() else "",
                        numa_node=int(node) if node.lstrip("-").isdigit() and int(node) >= 0 else None,
                    )
                )
    return sorted(found, key=lambda function: pci_key(function.pci))


def module_flavour(proc_root: str = "/proc") -> str:
    """'open' or 'proprietary' for the loaded NVIDIA kernel module, '' where none is loaded."""
    text = _text(Path(proc_root, "driver/nvidia/version"))
    if not text:
        return ""
    return "open" if "Open Kernel Module" in text else "proprietary"


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").strip()
    return ""


def scan(nvml_path: str = "", sysfs_root: str = "/sys", proc_root: str = "/proc") -> GpuReport:
    """Everything about the cards of this host, partial where something is missing."""
    on_bus = scan_pci(sysfs_root)
    kernel = {
        "kernel_module_version": nvml.kernel_driver_version(sysfs_root, proc_root),
        "kernel_module_flavour": module_flavour(proc_root),
    }
    gpus: list[Gpu] = []
    unreachable: list[UnreachableCard] = []
    findings: list[str] = []
    try:
        with nvml.open_library(nvml_path, sysfs_root, proc_root) as library:
            driver = _driver(library, kernel, findings)
            cards, lost = library.survey()
            unreachable = locate(lost, cards, [f.pci for f in on_bus if f.kernel_driver == "nvidia"])
            gpus = [gpu_from_readings(card, *library.readings(card)) for card in cards]
    except nvml.NvmlError as error:
        driver = Driver(nvml_available=False, reason=error.reason, message=str(error), **kernel)
        findings.append(str(error))
    report = GpuReport(
        driver=driver,
        gpus=tuple(sorted(gpus, key=lambda gpu: pci_key(gpu.card.pci))),
        unreachable=tuple(unreachable),
        pci=tuple(on_bus),
    )
    findings += [_where(card) for card in report.unreachable]
    findings += [f"{gpu.card.label}: lost while it was read" for gpu in report.gpus if gpu.is_lost]
    findings += [
        _not_in_nvml(function)
        for function in on_bus
        if function.pci in report.not_in_nvml and (driver.nvml_available or function.kernel_driver != "nvidia")
    ]
    return GpuReport(report.driver, report.gpus, report.unreachable, report.pci, tuple(findings))


def _driver(library: nvml.Nvml, kernel: dict[str, str], findings: list[str]) -> Driver:
    def version(read: Callable[[], str]) -> str:
        try:
            return read()
        except nvml.NvmlError as error:
            findings.append(str(error))
            return ""

    return Driver(
        nvml_available=True,
        library=library.library,
        library_version=version(library.library_version),
        driver_version=version(library.driver_version),
        cuda_version=version(library.cuda_version),
        **kernel,
    )


def _where(card: UnreachableCard) -> str:
    return f"{card.pci}: {card.message}" if card.pci else card.message


def _not_in_nvml(function: PciFunction) -> str:
    if function.kernel_driver == "nvidia":
        return (
            f"{function.pci}: on the PCI bus with NVIDIA's driver, but NVML does not show it: not given to this "
            "container, or the driver gave it up (dmesg | grep -i nvrm)"
        )
    if function.kernel_driver:
        return f"{function.pci}: on the PCI bus, but driven by {function.kernel_driver}, not by NVIDIA's driver"
    return f"{function.pci}: on the PCI bus, but no driver is bound to it (dmesg | grep -i -e nvrm -e nouveau)"
