# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: N818 (the exceptions are named after the state they report, as NVML names its codes)
"""The collection's only door to NVML, through the binding nvidia-ml-py, whose module is pynvml. (outside)

The binding is imported when a library is opened, so that this file imports everywhere. Every code of NVML becomes
one of the exceptions below, with plain words and a remedy. Power is in milliwatts. Nothing here decides: it reads,
writes, reads back.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .gpu_model import READ_BACK_TOLERANCE_MW, Card, Power, Process, Unavailable, UnreachableCard, normalize_pci

SONAME = "libnvidia-ml.so.1"
_MEMORY_V2 = 0x02000028  # nvmlMemory_v2: struct version 2, 40 bytes
ODD_PLACES = (
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    "/run/opengl-driver/lib",
)
"""Where the library lies on systems whose loader does not find it: WSL, containers, Debian's alternatives, NixOS."""


class NvmlError(Exception):
    """A call to NVML failed. `reason` is the short name used in results; `code` NVML's, None where it has none."""

    reason = "unknown"
    words = "NVML failed without saying why"
    remedy = "See the kernel log (dmesg | grep -i -e nvrm -e xid)."

    def __init__(self, subject: str = "", detail: str = "", code: int | None = None) -> None:
        self.subject = subject
        self.detail = detail
        self.code = code
        text = f"{subject}: {self.words}" if subject else self.words
        if detail:
            text += f" ({detail})"
        super().__init__(f"{text}. {self.remedy}".strip())


class NotSupported(NvmlError):
    """The card or its driver has no such reading or setting."""

    reason = "not_supported"
    words = "this card does not support it"
    remedy = ""


class FunctionMissing(NotSupported):
    """The driver's library is too old for the call."""

    reason = "driver_too_old"
    words = "the installed NVIDIA driver is too old for this call"
    remedy = "Newer drivers have it."


class FrequencyNotSupported(NotSupported):
    """A clock outside the card's list."""

    reason = "frequency_not_supported"
    words = "the card does not support this clock"
    remedy = "nvidia-smi -q -d SUPPORTED_CLOCKS lists what it supports."


class NoData(NvmlError):
    """The reading exists but has no value now."""

    reason = "no_data"
    words = "the card has no value for this now"
    remedy = "Try again later."


class NoPermission(NvmlError):
    """Root is needed, or the container or the virtual machine may not change the card."""

    reason = "no_permission"
    words = "permission denied by the driver"
    remedy = "Use root (become: true); in a rented pod the provider keeps this right, so leave the setting out there."


class BlockedBySystem(NvmlError):
    """The operating system or a container's device rules blocked the call."""

    reason = "blocked_by_system"
    words = "the operating system blocked the request"
    remedy = "Check the container's device rules (cgroups) for /dev/nvidia*."


class InvalidValue(NvmlError):
    """NVML refused an argument."""

    reason = "invalid_value"
    words = "the driver refused the value as outside what the card accepts"
    remedy = "gpu_info shows the accepted range."


class CardNotFound(NvmlError):
    """No card with this UUID, PCI address or index."""

    reason = "not_found"
    words = "the driver knows no such card"
    remedy = "gpu_info lists the cards of this host."


class CardLost(NvmlError):
    """The card fell off the bus."""

    reason = "lost"
    words = "the card fell off the PCIe bus or otherwise cannot be reached"
    remedy = (
        "Power the machine off and on; if it happens again, check riser, power cables and the kernel log for Xid 79."
    )


class ResetRequired(NvmlError):
    """The card needs a reset."""

    reason = "reset_required"
    words = "the card needs a reset before it can be used"
    remedy = "End what runs on it and reboot the machine."


class InsufficientPower(NvmlError):
    """The card's power cable is missing."""

    reason = "insufficient_power"
    words = "the card has no external power"
    remedy = "Attach its power cables properly."


class InterruptProblem(NvmlError):
    """The kernel cannot deliver the card's interrupts."""

    reason = "interrupt_problem"
    words = "the kernel found a problem with the card's interrupts"
    remedy = "Move the card to another slot or update the mainboard's firmware."


class CorruptedInforom(NvmlError):
    """The card's information ROM is damaged."""

    reason = "corrupted_inforom"
    words = "the card's infoROM is corrupted"
    remedy = "Ask the card's maker; readings such as ECC counters cannot be trusted."


class CardBusy(NvmlError):
    """In use by another client."""

    reason = "in_use"
    words = "the card is in use by another program"
    remedy = "End that program, or wait for it."


class NotReady(NvmlError):
    """The card or the library is in the wrong state just now."""

    reason = "not_ready"
    words = "the card is not ready for this now"
    remedy = "Try again; if it stays so, reboot the machine."


class OutOfResources(NvmlError):
    """No memory or other resources."""

    reason = "out_of_resources"
    words = "the driver ran out of memory or other resources"
    remedy = "End programs on the card and try again."


class Timeout(NvmlError):
    """The driver did not answer in time."""

    reason = "timeout"
    words = "the driver did not answer in time"
    remedy = "The card may hang; see the kernel log for Xid messages."


class DriverMissing(NvmlError):
    """No NVIDIA kernel driver is loaded."""

    reason = "driver_not_loaded"
    words = "the NVIDIA kernel driver is not loaded"
    remedy = (
        "Load it (modprobe nvidia), or install it with the role nvidia_driver; after an upgrade or with Secure Boot "
        "and an unsigned module, dmesg says why it does not load."
    )


class DriverMismatch(NvmlError):
    """Kernel module and library are of different versions, usually after an upgrade without a reboot."""

    reason = "driver_mismatch"
    words = "the NVIDIA library and the loaded kernel driver are of different versions"
    remedy = "Reboot, so that the kernel loads the driver that was installed last."


class LibraryMissing(NvmlError):
    """The NVML library is not there or cannot be loaded."""

    reason = "library_missing"
    words = f"the NVML library {SONAME} was not found"
    remedy = (
        "It comes with the NVIDIA driver (role nvidia_driver); if it lies in an unusual place, name that in nvml_path."
    )


class BindingMissing(NvmlError):
    """The Python binding is not there."""

    reason = "binding_missing"
    words = "the Python module pynvml (package nvidia-ml-py) was not found"
    remedy = "The collection's roles put it under the rig's root; name that directory in nvml_path."


class ReadBackDiffers(NvmlError):
    """The driver said yes to a write, and yet the value is another."""

    reason = "read_back_differs"
    words = "the driver accepted the value but the card reports another"
    remedy = "Something else sets it too, or the card's firmware overrides it; look for other tools that set limits."


class NotOpen(NvmlError):
    """NVML was used outside `open_library`."""

    reason = "not_open"
    words = "NVML is not open"
    remedy = ""


ERRORS: dict[int, type[NvmlError]] = {
    1: NotOpen,
    2: InvalidValue,
    3: NotSupported,
    4: NoPermission,
    6: CardNotFound,
    8: InsufficientPower,
    9: DriverMissing,
    10: Timeout,
    11: InterruptProblem,
    12: LibraryMissing,
    13: FunctionMissing,
    14: CorruptedInforom,
    15: CardLost,
    16: ResetRequired,
    17: BlockedBySystem,
    18: DriverMismatch,
    19: CardBusy,
    20: OutOfResources,
    21: NoData,
    22: NotSupported,
    23: OutOfResources,
    24: FrequencyNotSupported,
    25: FunctionMissing,
    26: NotSupported,
    27: NotReady,
    28: CardNotFound,
    29: NotReady,
    30: NotSupported,
}
"""NVML's return codes (nvml.h, nvmlReturn_t). Others (5 already open, 7 buffer too small, 999) stay NvmlError."""

UNREACHABLE = (CardLost, ResetRequired, InsufficientPower, InterruptProblem)
"""Errors after which nothing more can be read from a card."""


def error_for(code: int, subject: str = "", detail: str = "") -> NvmlError:
    """Our exception for a return code of NVML."""
    return ERRORS.get(code, NvmlError)(subject, detail, code)


class Nvml:
    """An open NVML. Made by `open_library`; cards are re-resolved by UUID at each use."""

    def __init__(self, binding: Any, library: str) -> None:
        self._binding = binding
        self.library = library
        """Path of the library file, or its bare name where the loader found it and the path is not known."""

    # -- calls ---------------------------------------------------------------------------------------------------
    def call(self, subject: str, name: str, *args: Any) -> Any:
        """Call the binding's function `name`; errors become ours. `subject` (a card, a reading) starts the message."""
        function = getattr(self._binding, name, None)
        if function is None:
            raise FunctionMissing(subject, f"this nvidia-ml-py has no {name}")
        try:
            return function(*args)
        except self._binding.NVMLError as error:
            code = int(error.value)
            raise error_for(code, subject, f"{name}: {error}") from error
        except self._binding.NVMLLibraryMismatchError as error:
            raise FunctionMissing(subject, f"{name}: a symbol is missing in the library") from error

    def _first(self, subject: str, names: tuple[str, ...], *args: Any) -> Any:
        """The first of several equivalent functions that binding and driver both have."""
        for name in names[:-1]:
            with contextlib.suppress(FunctionMissing):
                return self.call(subject, name, *args)
        return self.call(subject, names[-1], *args)

    def _handle(self, card: Card) -> Any:
        return self.call(card.label, "nvmlDeviceGetHandleByUUID", card.uuid)

    # -- the machine ---------------------------------------------------------------------------------------------
    def driver_version(self) -> str:
        """Version of the loaded driver, for example '580.95.05'."""
        return _text(self.call("driver version", "nvmlSystemGetDriverVersion"))

    def library_version(self) -> str:
        """Version of NVML itself, for example '13.580.95.05'."""
        return _text(self.call("NVML version", "nvmlSystemGetNVMLVersion"))

    def cuda_version(self) -> str:
        """Newest CUDA that the driver supports, for example '13.0'."""
        number = int(
            self._first("CUDA version", ("nvmlSystemGetCudaDriverVersion_v2", "nvmlSystemGetCudaDriverVersion"))
        )
        return f"{number // 1000}.{number % 1000 // 10}"

    def list_cards(self) -> list[Card]:
        """Cards that answer, in NVML's order. Those that do not are in the second part of `survey`."""
        return self.survey()[0]

    def survey(self) -> tuple[list[Card], list[UnreachableCard]]:
        """Cards that answer, and cards that the driver counts but cannot hand out (lost, without power, closed)."""
        found = list(self._scan())
        cards = [card for card in found if isinstance(card, Card)]
        return cards, [card for card in found if isinstance(card, UnreachableCard)]

    def _scan(self) -> Iterator[Card | UnreachableCard]:
        for index in range(int(self.call("number of cards", "nvmlDeviceGetCount"))):
            subject = f"GPU {index}"
            pci: str | None = None
            try:
                handle = self.call(subject, "nvmlDeviceGetHandleByIndex", index)
                pci = normalize_pci(_text(self.call(subject, "nvmlDeviceGetPciInfo", handle).busId))
                uuid = _text(self.call(subject, "nvmlDeviceGetUUID", handle))
                yield Card(index, uuid, pci, _text(self.call(subject, "nvmlDeviceGetName", handle)))
            except NvmlError as error:
                yield UnreachableCard(error.reason, str(error), index, pci)

    # -- one card ------------------------------------------------------------------------------------------------
    def power(self, card: Card) -> Power:
        """Limits and persistence of a card. A reading it does not support is None; other errors are raised."""
        handle = self._handle(card)

        def optional(name: str) -> Any:
            with contextlib.suppress(NotSupported):
                return self.call(card.label, name, handle)
            return None

        low, high = optional("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
        persistence = optional("nvmlDeviceGetPersistenceMode")
        return Power(
            limit_mw=optional("nvmlDeviceGetPowerManagementLimit"),
            enforced_mw=optional("nvmlDeviceGetEnforcedPowerLimit"),
            default_mw=optional("nvmlDeviceGetPowerManagementDefaultLimit"),
            min_mw=low,
            max_mw=high,
            persistence=None if persistence is None else bool(persistence),
        )

    def set_power_limit(self, card: Card, limit_mw: int) -> int:
        """Set the power limit and return what the card reports afterwards, in milliwatts.

        Uses the unversioned setter: the binding's nvmlDeviceSetPowerManagementLimit_v2 returns success whatever the
        driver said (nvidia-ml-py 12.575 to 13.615). Raises ReadBackDiffers beyond READ_BACK_TOLERANCE_MW.
        """
        handle = self._handle(card)
        self.call(card.label, "nvmlDeviceSetPowerManagementLimit", handle, limit_mw)
        found = int(self.call(card.label, "nvmlDeviceGetPowerManagementLimit", handle))
        if abs(found - limit_mw) > READ_BACK_TOLERANCE_MW:
            raise ReadBackDiffers(card.label, f"power limit: wanted {limit_mw} mW, found {found} mW")
        return found

    def set_persistence(self, card: Card, enabled: bool) -> None:
        """Switch persistence mode and read it back. Without it a power limit is lost when the last client leaves."""
        handle = self._handle(card)
        self.call(card.label, "nvmlDeviceSetPersistenceMode", handle, int(enabled))
        found = bool(self.call(card.label, "nvmlDeviceGetPersistenceMode", handle))
        if found != enabled:
            raise ReadBackDiffers(card.label, f"persistence mode: wanted {enabled}, found {found}")

    def lock_clocks(self, card: Card, min_mhz: int, max_mhz: int) -> None:
        """Keep the graphics clock within a range. NVML has no reading for it, so this cannot be read back."""
        self.call(card.label, "nvmlDeviceSetGpuLockedClocks", self._handle(card), min_mhz, max_mhz)

    def reset_locked_clocks(self, card: Card) -> None:
        """Undo `lock_clocks`."""
        self.call(card.label, "nvmlDeviceResetGpuLockedClocks", self._handle(card))

    def readings(self, card: Card) -> tuple[dict[str, Any], list[Unavailable]]:
        """Everything in READINGS that the card gives, and by name what it does not give and why.

        When the card is lost on the way, what was read stays and the rest is named as lost, without asking again.
        """
        values: dict[str, Any] = {}
        missing: list[Unavailable] = []
        gone: NvmlError | None = None
        snapshot: _Snapshot | None = None
        try:
            snapshot = _Snapshot(self, card, self._handle(card))
        except NvmlError as error:
            gone = error
        for name in READINGS:
            if snapshot is not None and gone is None:
                found = snapshot.read(name)
                if not isinstance(found, NvmlError):
                    values[name] = found
                    continue
                if not isinstance(found, UNREACHABLE):
                    missing.append(Unavailable(name, found.reason, str(found)))
                    continue
                gone = found
            words = gone or NvmlError()
            missing.append(Unavailable(name, words.reason, f"{card.label}: {words.words}. {words.remedy}"))
        return values, missing


class _Snapshot:
    """One pass over a card: a call that feeds several readings is made once, so that they belong together."""

    def __init__(self, nvml: Nvml, card: Card, handle: Any) -> None:
        self._nvml = nvml
        self._card = card
        self._handle = handle
        self._answers: dict[tuple[Any, ...], Any] = {}
        self.subject = card.label

    def read(self, name: str) -> Any:
        """The reading, or the NvmlError that stood in its way."""
        self.subject = f"{self._card.label}: {name}"
        try:
            return READINGS[name](self)
        except NvmlError as error:
            return error

    def call(self, name: str, *args: Any) -> Any:
        key = (name, *args)
        if key not in self._answers:
            self._answers[key] = self._nvml.call(self.subject, name, self._handle, *args)
        return self._answers[key]

    def first(self, names: tuple[str, ...], *args: Any) -> Any:
        return self._nvml._first(self.subject, names, self._handle, *args)


Read = Callable[[_Snapshot], Any]


def _plain(name: str, *args: Any) -> Read:
    return lambda card: card.call(name, *args)


def _string(name: str) -> Read:
    return lambda card: _text(card.call(name))


def _flag(name: str) -> Read:
    return lambda card: bool(card.call(name))


def _item(name: str, index: int) -> Read:
    return lambda card: card.call(name)[index]


def _field(name: str, attribute: str, *args: Any) -> Read:
    return lambda card: int(getattr(card.call(name, *args), attribute))


def _memory(attribute: str) -> Read:
    """From nvmlMemory_v2, the only one that tells the reserved part apart (drivers from 510), else from the first."""

    def read(card: _Snapshot) -> int:
        try:
            return int(getattr(card.call("nvmlDeviceGetMemoryInfo", _MEMORY_V2), attribute))
        except NotSupported:
            if attribute == "reserved":
                raise
            return int(getattr(card.call("nvmlDeviceGetMemoryInfo"), attribute))

    return read


def _compute_capability(card: _Snapshot) -> str:
    major, minor = card.call("nvmlDeviceGetCudaComputeCapability")
    return f"{major}.{minor}"


def _temperature(card: _Snapshot) -> int:
    return int(card.first(("nvmlDeviceGetTemperatureV", "nvmlDeviceGetTemperature"), 0))


def _throttle_mask(card: _Snapshot) -> int:
    return int(card.first(("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")))


def _processes(kind: str) -> Read:
    def read(card: _Snapshot) -> list[Process]:
        found = card.call(f"nvmlDeviceGet{kind.capitalize()}RunningProcesses")
        return [Process(int(p.pid), kind, None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in found]

    return read


READINGS: dict[str, Read] = {
    "serial": _string("nvmlDeviceGetSerial"),
    "board_part_number": _string("nvmlDeviceGetBoardPartNumber"),
    "vbios_version": _string("nvmlDeviceGetVbiosVersion"),
    "brand": _plain("nvmlDeviceGetBrand"),
    "architecture": _plain("nvmlDeviceGetArchitecture"),
    "compute_capability": _compute_capability,
    "minor_number": _plain("nvmlDeviceGetMinorNumber"),
    "memory_total_bytes": _memory("total"),
    "memory_reserved_bytes": _memory("reserved"),
    "memory_used_bytes": _memory("used"),
    "memory_free_bytes": _memory("free"),
    "bar1_total_bytes": _field("nvmlDeviceGetBAR1MemoryInfo", "bar1Total"),
    "bar1_used_bytes": _field("nvmlDeviceGetBAR1MemoryInfo", "bar1Used"),
    "memory_bus_width_bits": _plain("nvmlDeviceGetMemoryBusWidth"),
    "ecc_enabled": lambda card: bool(card.call("nvmlDeviceGetEccMode")[0]),
    "mig_enabled": lambda card: bool(card.call("nvmlDeviceGetMigMode")[0]),
    "persistence": _flag("nvmlDeviceGetPersistenceMode"),
    "compute_mode": _plain("nvmlDeviceGetComputeMode"),
    "display_active": _flag("nvmlDeviceGetDisplayActive"),
    "power_limit_mw": _plain("nvmlDeviceGetPowerManagementLimit"),
    "power_enforced_mw": _plain("nvmlDeviceGetEnforcedPowerLimit"),
    "power_default_mw": _plain("nvmlDeviceGetPowerManagementDefaultLimit"),
    "power_min_mw": _item("nvmlDeviceGetPowerManagementLimitConstraints", 0),
    "power_max_mw": _item("nvmlDeviceGetPowerManagementLimitConstraints", 1),
    "power_usage_mw": _plain("nvmlDeviceGetPowerUsage"),
    "power_source": _plain("nvmlDeviceGetPowerSource"),
    "throttle_mask": _throttle_mask,
    "performance_state": _plain("nvmlDeviceGetPerformanceState"),
    "graphics_clock_mhz": _plain("nvmlDeviceGetClockInfo", 0),
    "memory_clock_mhz": _plain("nvmlDeviceGetClockInfo", 2),
    "graphics_clock_max_mhz": _plain("nvmlDeviceGetMaxClockInfo", 0),
    "memory_clock_max_mhz": _plain("nvmlDeviceGetMaxClockInfo", 2),
    "temperature_c": _temperature,
    "temperature_shutdown_c": _plain("nvmlDeviceGetTemperatureThreshold", 0),
    "temperature_slowdown_c": _plain("nvmlDeviceGetTemperatureThreshold", 1),
    "fan_percent": _plain("nvmlDeviceGetFanSpeed"),
    "utilization_gpu_percent": _field("nvmlDeviceGetUtilizationRates", "gpu"),
    "utilization_memory_percent": _field("nvmlDeviceGetUtilizationRates", "memory"),
    "pcie_generation_current": _plain("nvmlDeviceGetCurrPcieLinkGeneration"),
    "pcie_generation_max": _plain("nvmlDeviceGetMaxPcieLinkGeneration"),
    "pcie_generation_card_max": _plain("nvmlDeviceGetGpuMaxPcieLinkGeneration"),
    "pcie_width_current": _plain("nvmlDeviceGetCurrPcieLinkWidth"),
    "pcie_width_max": _plain("nvmlDeviceGetMaxPcieLinkWidth"),
    "pcie_replay_counter": _plain("nvmlDeviceGetPcieReplayCounter"),
    "compute_processes": _processes("compute"),
    "graphics_processes": _processes("graphics"),
}
"""Name of a reading -> how to read it. All are optional: no card gives every one."""


def _text(value: Any) -> str:
    """Bindings before 11.5 return bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


# -- finding binding and library --------------------------------------------------------------------------------
def _places(path: str) -> list[Path]:
    return [Path(part) for part in path.split(os.pathsep) if part]


def load_binding(path: str = "") -> Any:
    """The binding: importable already, or pynvml.py in one of the places of `path` (a directory or a venv's root).

    Raises BindingMissing with the places that were searched.
    """
    if loaded := sys.modules.get("pynvml"):
        return loaded
    for place in _places(path):
        for pattern in ("pynvml.py", "lib/python3*/site-packages/pynvml.py"):
            for file in sorted(place.glob(pattern)) if place.is_dir() else []:
                return _import_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyPI's pynvml is a shim that only warns about its name
            return importlib.import_module("pynvml")
    except ImportError as error:
        searched = path or "Python's own path"
        raise BindingMissing("", f"searched {searched} with {sys.executable}") from error


def _import_file(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("pynvml", file)
    if spec is None or spec.loader is None:
        raise BindingMissing("", f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pynvml"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules["pynvml"]
        raise BindingMissing("", f"{file} is there but does not import: {error}") from error
    return module


def _library_file(path: str) -> Path | None:
    """The library file that `path` names; None leaves it to the loader."""
    for place in _places(path):
        if place.is_file() and ".so" in place.name:
            return place
        for name in (SONAME, f"lib64/{SONAME}", f"lib/{SONAME}"):
            if (place / name).is_file():
                return place / name
    return None


_loaded: str = ""


def load_library(path: str = "") -> str:
    """Load the NVML library into this process and return where it came from.

    The binding asks the loader for the SONAME only, and the environment is read once at process start; a library
    that is already loaded by its path satisfies that request. A process can hold one library only.
    Raises LibraryMissing.
    """
    global _loaded  # noqa: PLW0603 (the loader's own state is per process, too)
    if _loaded:
        wanted = _library_file(path)
        if wanted is not None and str(wanted.resolve()) != _loaded:
            raise LibraryMissing("", f"{wanted} cannot be loaded, as this process already uses {_loaded}")
        return _loaded
    named = _library_file(path)
    candidates = [str(named)] if named else [SONAME, *(str(Path(place, SONAME)) for place in ODD_PLACES)]
    failures: list[str] = []
    for candidate in candidates:
        failure = _try_load(candidate)
        if not failure:
            _loaded = _mapped_file() or candidate
            return _loaded
        if not failures or Path(candidate).exists():
            failures.append(failure)
    absent = [str(place) for place in _places(path) if not place.exists()]
    if absent:
        failures.append(f"nvml_path names {' and '.join(absent)}, which is not there")
    raise LibraryMissing("", "; ".join(failures))


def _try_load(candidate: str) -> str:
    try:
        ctypes.CDLL(candidate)
    except OSError as error:
        return str(error)
    return ""


def _mapped_file() -> str:
    """The library's real path as this process has it mapped, '' where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            parts = line.split(maxsplit=5)
            if len(parts) == 6 and "libnvidia-ml" in Path(parts[5]).name:
                return parts[5]
    return ""


def kernel_driver_version(sysfs_root: str = "/sys", proc_root: str = "/proc") -> str:
    """Version of the kernel module that is loaded, '' where none is."""
    with contextlib.suppress(OSError):
        return Path(sysfs_root, "module/nvidia/version").read_text(encoding="utf-8").strip()
    with contextlib.suppress(OSError):
        text = Path(proc_root, "driver/nvidia/version").read_text(encoding="utf-8")
        if match := re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text):
            return match.group(1)
    return ""


def _mismatch_detail(binding: Any, sysfs_root: str, proc_root: str) -> str:
    library = ""
    with contextlib.suppress(binding.NVMLError):  # NVML tells its own version before it is initialised
        library = _text(binding.nvmlSystemGetNVMLVersion()).partition(".")[2]
    kernel = kernel_driver_version(sysfs_root, proc_root)
    return f"library {library or 'unknown'}, kernel module {kernel or 'unknown'}"


@contextlib.contextmanager
def open_library(path: str = "", sysfs_root: str = "/sys", proc_root: str = "/proc") -> Iterator[Nvml]:
    """Open NVML for the length of a `with` block.

    `path`: places separated by ':', each a directory (or venv root) with pynvml.py, a directory with the library or
    the library file itself; '' means what Python and the loader find. `sysfs_root` and `proc_root` are only read
    to name both versions when they differ.
    Raises BindingMissing, LibraryMissing, DriverMissing, DriverMismatch or another NvmlError.
    """
    binding = load_binding(path)
    library = load_library(path)
    try:
        binding.nvmlInit()
    except binding.NVMLError as error:
        code = int(error.value)
        detail = f"nvmlInit: {error}"
        if code == 18:
            detail = _mismatch_detail(binding, sysfs_root, proc_root)
        raise error_for(code, "", detail) from error
    try:
        yield Nvml(binding, library)
    finally:
        with contextlib.suppress(binding.NVMLError):
            binding.nvmlShutdown()
