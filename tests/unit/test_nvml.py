# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVML layer through the real binding, against the simulated library."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import nvml
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import (
    READ_BACK_TOLERANCE_MW,
    Card,
    PciAddressError,
    Process,
    normalize_pci,
)
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import machine, with_card
from hypothesis import given
from hypothesis import strategies as st

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
COLLECTION = Path(__file__).resolve().parents[2]
UTILS = COLLECTION / "plugins" / "module_utils"
HOST = "0000:65:00.0"
MakeRig = Callable[..., LiveRig]


def standalone(tmp_path: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a Python without site-packages, with the layer copied as package `gpurig`, as on a host."""
    package = tmp_path / "standalone" / "gpurig"
    package.mkdir(parents=True, exist_ok=True)
    for name in ("nvml.py", "gpu_model.py"):
        shutil.copy2(UTILS / name, package / name)
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(package.parent), **environment},
    )


OPEN = "import sys\nfrom gpurig import nvml\nwith nvml.open_library(sys.argv[1]) as n: print(n.list_cards()[0].name)\n"
CATCH = (
    "import sys\nfrom gpurig import nvml\n"
    "try:\n    with nvml.open_library(sys.argv[1]): print('opened')\n"
    "except nvml.NvmlError as error: print(error.reason, '|', error)\n"
)


# -- binding and library ----------------------------------------------------------------------------------------------
def test_only_this_file_imports_the_binding() -> None:
    importers = set()
    for file in (COLLECTION / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "__import__"):
                names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if any(str(name).partition(".")[0] == "pynvml" for name in names):
                importers.add(file.name)
    assert importers == {"nvml.py"}


def test_without_the_binding_the_file_imports_and_opening_names_it(tmp_path: Path, make_rig: MakeRig) -> None:
    done = standalone(tmp_path, CATCH, make_rig("rtx_5090").nvml_path)
    assert done.stdout.startswith("binding_missing | the Python module pynvml (package nvidia-ml-py) was not found")
    assert "nvml_path" in done.stdout


@pytest.mark.parametrize("layout", ["", "lib/python3.12/site-packages"], ids=["directory", "venv"])
def test_binding_and_library_from_nvml_path(tmp_path: Path, make_rig: MakeRig, layout: str) -> None:
    place = tmp_path / "tool" / layout
    place.mkdir(parents=True)
    shutil.copy2(str(pynvml.__file__), place / "pynvml.py")
    done = standalone(tmp_path, OPEN, f"{tmp_path / 'tool'}:{make_rig('rtx_5090').nvml_path}")
    assert done.stdout == "NVIDIA GeForce RTX 5090\n", done.stderr


def test_broken_binding_is_named(tmp_path: Path, make_rig: MakeRig) -> None:
    (tmp_path / "pynvml.py").write_text("raise RuntimeError('half a file')\n", encoding="utf-8")
    done = standalone(tmp_path, CATCH, f"{tmp_path}:{make_rig('rtx_5090').nvml_path}")
    assert "binding_missing" in done.stdout
    assert "half a file" in done.stdout


BINDING_ONLY = str(Path(str(pynvml.__file__)).parent)


def test_library_missing(tmp_path: Path) -> None:
    done = standalone(tmp_path, CATCH, f"{BINDING_ONLY}:/nowhere/at/all")
    assert done.stdout.startswith("library_missing | the NVML library libnvidia-ml.so.1 was not found")
    assert "/nowhere/at/all, which is not there" in done.stdout


def test_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / nvml.SONAME).write_text("not a library", encoding="utf-8")
    done = standalone(tmp_path, CATCH, f"{BINDING_ONLY}:{tmp_path}")
    assert done.stdout.startswith("library_missing")
    assert str(tmp_path / nvml.SONAME) in done.stdout


def test_library_by_the_loader_and_by_its_file(tmp_path: Path, make_rig: MakeRig) -> None:
    rig = make_rig("rtx_5090")
    by_loader = standalone(tmp_path, OPEN, BINDING_ONLY, LD_LIBRARY_PATH=rig.nvml_path)
    by_file = standalone(tmp_path, OPEN, f"{BINDING_ONLY}:{rig.nvml_path}/{nvml.SONAME}")
    assert by_loader.stdout == by_file.stdout == "NVIDIA GeForce RTX 5090\n", by_loader.stderr + by_file.stderr


def test_library_in_an_odd_place(tmp_path: Path, make_rig: MakeRig) -> None:
    code = OPEN.replace("with nvml", "nvml.ODD_PLACES = (sys.argv[2],)\nwith nvml")
    done = standalone(tmp_path, code, BINDING_ONLY, make_rig("rtx_5090").nvml_path)
    assert done.stdout == "NVIDIA GeForce RTX 5090\n", done.stderr


def test_a_process_cannot_change_its_library(tmp_path: Path, make_rig: MakeRig) -> None:
    rig = make_rig("rtx_5090")
    shutil.copy2(Path(rig.nvml_path, nvml.SONAME), tmp_path / nvml.SONAME)
    done = standalone(
        tmp_path,
        f"{OPEN}\ntry:\n    nvml.load_library(sys.argv[2])\nexcept nvml.LibraryMissing as error: print(error)\n",
        f"{BINDING_ONLY}:{rig.nvml_path}",
        str(tmp_path),
    )
    assert "this process already uses" in done.stdout, done.stderr


def test_finding_the_binding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    with pytest.raises(nvml.BindingMissing, match="searched Python's own path"):
        nvml.load_binding()
    with pytest.raises(nvml.BindingMissing, match="searched /nowhere"):
        nvml.load_binding("/nowhere")
    for n, layout in enumerate(("", "lib/python3.12/site-packages")):
        place = tmp_path / f"tool{n}" / layout
        place.mkdir(parents=True)
        (place / "pynvml.py").write_text(f"number = {n}\n", encoding="utf-8")
        monkeypatch.setitem(sys.modules, "pynvml", None)
        assert nvml.load_binding(f"/nowhere:{tmp_path / f'tool{n}'}").number == n
        assert nvml.load_binding("/nowhere").number == n, "a process keeps the one it has"
    (tmp_path / "pynvml.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(nvml.BindingMissing, match="does not import: division by zero"):
        nvml.load_binding(str(tmp_path))


def test_finding_the_library(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken" / nvml.SONAME
    broken.parent.mkdir()
    broken.write_text("not a library", encoding="utf-8")
    for layout in ("", "lib64", "lib"):
        place = tmp_path / f"at-{layout}" / layout
        place.mkdir(parents=True)
        (place / nvml.SONAME).symlink_to(nvml_library)
        monkeypatch.setattr(nvml, "_loaded", "")
        assert nvml.load_library(str(tmp_path / f"at-{layout}")) == str(nvml_library)
    with pytest.raises(nvml.LibraryMissing, match="this process already uses"):
        nvml.load_library(str(broken))
    assert nvml.load_library("/nowhere") == str(nvml_library)
    monkeypatch.setattr(nvml, "_loaded", "")
    with pytest.raises(nvml.LibraryMissing, match="file too short"):
        nvml.load_library(f"{broken}:/nowhere")
    assert nvml._loaded == ""


# -- errors -----------------------------------------------------------------------------------------------------------
CODES = sorted({value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_")})


def test_every_code_of_the_binding_is_known() -> None:
    assert set(nvml.ERRORS) <= set(CODES)
    assert set(CODES) - set(nvml.ERRORS) == {5, 7, 999}


@pytest.mark.parametrize("code", CODES)
def test_each_code_becomes_our_exception_with_plain_words(make_rig: MakeRig, code: int) -> None:
    rig = make_rig("guide_x299")
    rig.fault(HOST, "nvmlDeviceGetPowerManagementLimit", code)
    wanted = nvml.ERRORS.get(code, nvml.NvmlError)
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        with pytest.raises(nvml.NvmlError) as caught:
            library.call(card.label, "nvmlDeviceGetPowerManagementLimit", library._handle(card))
    assert type(caught.value) is wanted
    assert caught.value.code == code
    message = str(caught.value)
    assert message.startswith("NVIDIA GeForce RTX 4090 (0000:65:00.0): " + wanted.words)
    assert "nvmlDeviceGetPowerManagementLimit: " in message
    assert message.endswith(".")
    assert ".." not in message


def test_reasons_are_distinct() -> None:
    reasons = [cls.reason for cls in {nvml.NvmlError, *nvml.ERRORS.values(), nvml.BindingMissing, nvml.ReadBackDiffers}]
    assert len(reasons) == len(set(reasons))


@pytest.mark.parametrize(
    ("name", "error", "parts"),
    [
        ("secure_boot", nvml.DriverMissing, ["kernel driver is not loaded", "modprobe nvidia", "Secure Boot"]),
        ("driver_mismatch", nvml.DriverMismatch, ["library 580.95.05", "kernel module 570.195.03", "Reboot"]),
    ],
)
def test_open_fails_with_the_remedy(
    make_rig: MakeRig, name: str, error: type[nvml.NvmlError], parts: list[str]
) -> None:
    rig = make_rig(name)
    with pytest.raises(error) as caught, nvml.open_library(rig.nvml_path, rig.sysfs_root, rig.proc_root):
        pass
    for part in parts:
        assert part in str(caught.value)


def test_kernel_driver_version(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig("driver_mismatch")
    assert nvml.kernel_driver_version(rig.sysfs_root, rig.proc_root) == "570.195.03"
    assert nvml.kernel_driver_version(str(tmp_path), rig.proc_root) == "570.195.03", "from /proc where /sys has none"
    assert nvml.kernel_driver_version(str(tmp_path), str(tmp_path)) == ""
    open_module = make_rig("rtx_5090")
    assert nvml.kernel_driver_version(str(tmp_path), open_module.proc_root) == "580.95.05"
    Path(open_module.proc_root, "driver/nvidia/version").write_text("NVRM version: unreadable\n", encoding="utf-8")
    assert nvml.kernel_driver_version(str(tmp_path), open_module.proc_root) == ""


def test_used_after_closing(make_rig: MakeRig) -> None:
    with nvml.open_library(make_rig("guide_x299").nvml_path) as library:
        pass
    with pytest.raises(nvml.NotOpen):
        library.list_cards()


def test_function_that_the_binding_lacks(make_rig: MakeRig) -> None:
    lacks = pytest.raises(nvml.FunctionMissing, match="this nvidia-ml-py has no nvmlDeviceGetMoon")
    with nvml.open_library(make_rig("guide_x299").nvml_path) as library, lacks:
        library.call("moon", "nvmlDeviceGetMoon")


# -- cards ------------------------------------------------------------------------------------------------------------
def test_machine_and_cards(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        assert library.driver_version() == "550.163.01"
        assert library.library_version() == "12.550.163.01"
        assert library.cuda_version() == "12.4"
        assert library.library.endswith(nvml.SONAME)
        assert library.list_cards() == [
            Card(0, rig.machine.places[0].uuid, "0000:17:00.0", "NVIDIA GeForce RTX 3090 Ti"),
            Card(1, rig.machine.places[1].uuid, "0000:65:00.0", "NVIDIA GeForce RTX 4090"),
        ]


def test_lost_card_is_told_apart_and_others_stay(make_rig: MakeRig) -> None:
    with nvml.open_library(make_rig("lost_card").nvml_path) as library:
        cards, unreachable = library.survey()
    assert [card.name for card in cards] == ["NVIDIA GeForce RTX 4090"]
    assert [(card.index, card.reason, card.pci) for card in unreachable] == [(0, "lost", None)]
    assert "Xid 79" in unreachable[0].message


def test_card_that_goes_between_handle_and_name(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.fault(HOST, "nvmlDeviceGetUUID", 15)
    with nvml.open_library(rig.nvml_path) as library:
        unreachable = library.survey()[1]
    assert [(card.index, card.pci, card.reason) for card in unreachable] == [(1, HOST, "lost")]


def test_unknown_card(make_rig: MakeRig) -> None:
    with nvml.open_library(make_rig("guide_x299").nvml_path) as library, pytest.raises(nvml.CardNotFound):
        library.power(Card(0, "GPU-none", "0000:01:00.0", "ghost"))


# -- power ------------------------------------------------------------------------------------------------------------
def test_power_limit_is_set_and_read_back(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        trainer, host = library.list_cards()
        before = library.power(host)
        assert (before.min_mw, before.default_mw, before.limit_mw, before.max_mw) == (10000, 450000, 450000, 600000)
        assert before.persistence is False
        assert library.set_power_limit(host, 350000) == 350000
        assert library.power(host).enforced_mw == 350000
        assert library.power(trainer).limit_mw == 450000
    assert [(call["call"], call["card"], call["args"]) for call in rig.journal()] == [
        ("nvmlDeviceSetPowerManagementLimit", host.uuid, [350000])
    ]


@pytest.mark.parametrize("limit", [0, 9999, 600001, 900000, 2**31])
def test_limit_outside_the_range(make_rig: MakeRig, limit: int) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        with pytest.raises(nvml.InvalidValue):
            library.set_power_limit(card, limit)
        assert library.power(card).limit_mw == 450000


def test_the_bindings_second_setter_swallows_errors(make_rig: MakeRig) -> None:
    """Why the unversioned setter is used: this one reports success for 900 W on a 600 W card."""
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        handle = library._handle(library.list_cards()[1])
        assert pynvml.nvmlDeviceSetPowerManagementLimit_v2(handle, 0, 900000) == 0
    assert rig.journal()[-1]["code"] == 2


def test_accepted_but_not_done_is_an_error(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.describe(HOST, "ignores.nvmlDeviceSetPowerManagementLimit", "1")
    rig.describe(HOST, "ignores.nvmlDeviceSetPersistenceMode", "1")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        with pytest.raises(nvml.ReadBackDiffers, match="wanted 350000 mW, found 450000 mW"):
            library.set_power_limit(card, 350000)
        with pytest.raises(nvml.ReadBackDiffers, match="wanted True, found False"):
            library.set_persistence(card, True)


@pytest.mark.parametrize(("step", "fine"), [(READ_BACK_TOLERANCE_MW, True), (10000, False)])
def test_boards_with_coarser_steps(make_rig: MakeRig, step: int, fine: bool) -> None:
    rig = make_rig("guide_x299")
    rig.describe(HOST, "power_step", str(step))
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        if fine:
            assert library.set_power_limit(card, 351499) == 351000
        else:
            with pytest.raises(nvml.ReadBackDiffers):
                library.set_power_limit(card, 351499)


def test_no_permission(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299", setters="nobody")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        for action in (
            lambda: library.set_power_limit(card, 350000),
            lambda: library.set_persistence(card, True),
            lambda: library.lock_clocks(card, 210, 1500),
            lambda: library.reset_locked_clocks(card),
        ):
            with pytest.raises(nvml.NoPermission, match="Use root"):
                action()


def test_laptop_card_has_no_limits(make_rig: MakeRig) -> None:
    rig = make_rig("laptop")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[0]
        power = library.power(card)
        assert not power.has_limits
        assert (power.limit_mw, power.min_mw, power.max_mw, power.default_mw) == (None, None, None, None)
        with pytest.raises(nvml.NotSupported):
            library.set_power_limit(card, 50000)
        library.lock_clocks(card, 210, 1500)
        assert rig.state()[card.uuid]["clocks_locked"] == "210,1500"
        library.reset_locked_clocks(card)
        assert "clocks_locked" not in rig.state().get(card.uuid, {})


def test_persistence(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        library.set_persistence(card, True)
        assert library.power(card).persistence is True
        library.set_persistence(card, False)
        assert library.power(card).persistence is False


def test_power_of_a_lost_card_is_an_error_not_none(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
    rig.fault(HOST, "nvmlDeviceGetPowerManagementLimitConstraints", 15)
    with nvml.open_library(rig.nvml_path) as library, pytest.raises(nvml.CardLost):
        library.power(card)


# -- readings ---------------------------------------------------------------------------------------------------------
def readings(rig: LiveRig, index: int = 0) -> tuple[dict[str, object], dict[str, str]]:
    with nvml.open_library(rig.nvml_path) as library:
        values, missing = library.readings(library.list_cards()[index])
    assert set(values).isdisjoint({m.reading for m in missing})
    assert set(values) | {m.reading for m in missing} == set(nvml.READINGS)
    return values, {m.reading: m.reason for m in missing}


def test_unsupported_readings_are_named(make_rig: MakeRig) -> None:
    values, missing = readings(make_rig("vm_l4"))
    assert missing == dict.fromkeys(
        ("power_source", "mig_enabled", "temperature_shutdown_c", "temperature_slowdown_c", "fan_percent"),
        "not_supported",
    )
    assert values["memory_total_bytes"] == 23034 << 20
    assert values["compute_capability"] == "8.9"
    assert values["ecc_enabled"] is True


def test_memory_of_one_snapshot(make_rig: MakeRig) -> None:
    values, _ = readings(make_rig("gtx_1080"))
    assert values["memory_used_bytes"] == 210 << 20
    assert values["memory_total_bytes"] == (
        values["memory_used_bytes"] + values["memory_reserved_bytes"] + values["memory_free_bytes"]  # type: ignore[operator]
    )
    assert values["graphics_processes"] == [Process(1712, "graphics", 210 << 20)]


def test_old_driver_falls_back(make_rig: MakeRig) -> None:
    rig = make_rig("gtx_1080")
    new, _ = readings(rig)
    for function in (
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
    ):
        rig.fault("0000:01:00.0", function, 13)
    old, missing = readings(rig)
    assert old["temperature_c"] == new["temperature_c"]
    assert old["throttle_mask"] == new["throttle_mask"]
    assert old["memory_total_bytes"] == new["memory_total_bytes"]
    assert old["memory_used_bytes"] == 301 << 20, "the first version counts the reserved part as used"
    assert missing["memory_reserved_bytes"] == "driver_too_old"
    assert missing["compute_processes"] == "driver_too_old", "NVMLLibraryMismatchError is no NVMLError"
    rig.fault("machine", "nvmlSystemGetCudaDriverVersion_v2", 13)
    with nvml.open_library(rig.nvml_path) as library:
        assert library.cuda_version() == "13.0"


@pytest.mark.parametrize("calls", [6, 12, 25])
def test_card_lost_in_the_middle_keeps_what_was_read(make_rig: MakeRig, calls: int) -> None:
    rig = make_rig("guide_x299")
    everything, _ = readings(rig, 1)
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        rig.fault(HOST, "*", 15, f"after {calls}")
    with nvml.open_library(rig.nvml_path) as library:
        values, missing = library.readings(card)
    lost = [m for m in missing if m.reason == "lost"]
    assert values
    assert values.items() <= everything.items()
    assert len(values) + len(missing) == len(nvml.READINGS)
    assert len(lost) > 10
    assert int(rig.state()[card.uuid]["calls.fault.*"]) == calls + 1, "a lost card is not asked again"


def test_card_lost_before_the_first_reading(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with nvml.open_library(rig.nvml_path) as library:
        card = library.list_cards()[1]
        rig.describe(HOST, "lost", "1")
    with nvml.open_library(rig.nvml_path) as library:
        values, missing = library.readings(card)
    assert values == {}
    assert {m.reason for m in missing} == {"lost"}


def test_process_whose_memory_is_hidden(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.describe(HOST, "process", "77 - c python3")
    values, _ = readings(rig, 1)
    assert values["compute_processes"] == [Process(77, "compute", None)]


def test_text_of_old_bindings() -> None:
    assert nvml._text(b"580.95.05") == nvml._text("580.95.05") == "580.95.05"


# -- addresses --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("00000000:17:00.0", "0000:17:00.0"),
        ("0000:CE:00.0", "0000:ce:00.0"),
        ("65:00.0", "0000:65:00.0"),
        ("1:0", "0000:01:00.0"),
        ("00010000:E1:00.0", "10000:e1:00.0"),
        (" 0000:17:1f.7 ", "0000:17:1f.7"),
    ],
)
def test_pci_addresses(text: str, wanted: str) -> None:
    assert normalize_pci(text) == wanted


@pytest.mark.parametrize("text", ["", "17", "GPU-1", "0000:17:00.9", "0000:117:00.0", "0:0:0:0.0"])
def test_bad_pci_addresses(text: str) -> None:
    with pytest.raises(PciAddressError, match="write it as lspci -D does"):
        normalize_pci(text)


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 31))
def test_nvml_and_linux_spellings_agree(domain: int, bus: int, device: int) -> None:
    linux = f"{domain:04x}:{bus:02x}:{device:02x}.0"
    assert normalize_pci(f"{domain:08X}:{bus:02X}:{device:02X}.0") == linux
    assert normalize_pci(linux) == linux


def test_card_in_a_large_domain(make_rig: MakeRig) -> None:
    rig = make_rig(with_card(machine("vm_l4"), "0000:00:03.0", pci="10000:e1:00.0", upstream=()))
    with nvml.open_library(rig.nvml_path) as library:
        assert library.list_cards()[0].pci == "10000:e1:00.0"
