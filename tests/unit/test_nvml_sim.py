# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated NVML library itself: what tests of everything else rely on."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest
from ansible_collections.gpurig.llm.tests.nvml_sim import build as builder
from ansible_collections.gpurig.llm.tests.nvml_sim.make_stubs import stubs, symbols
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig, install
from ansible_collections.gpurig.llm.tests.rigs.machines import Process, machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
TRAINER, HOST = "0000:17:00.0", "0000:65:00.0"
MakeRig = Callable[..., LiveRig]

CLIENT = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1] + "/libnvidia-ml.so.1")
import pynvml as n
if os.environ.get("AS_USER"):
    os.setuid(int(os.environ["AS_USER"]))
n.nvmlInit()
h = n.nvmlDeviceGetHandleByPciBusId(b"0000:65:00.0")
def limit(mw=None):
    if mw is not None:
        n.nvmlDeviceSetPowerManagementLimit(h, mw)
    return n.nvmlDeviceGetPowerManagementLimit(h)
"""


def client(rig: LiveRig, code: str, **environment: str) -> str:
    """Run code with the real binding as another process; its output, or the name of the exception."""
    program = CLIENT + "try:\n" + "".join(f"    {line}\n" for line in code.splitlines())
    program += "except n.NVMLError as error:\n    print(type(error).__name__)\n"
    done = subprocess.run(
        [sys.executable, "-c", program, rig.nvml_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def session(rig: LiveRig) -> Iterator[None]:
    """Keep NVML open in this process."""
    ctypes.CDLL(rig.nvml_path + "/libnvidia-ml.so.1")
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def handle(pci: str = HOST) -> object:
    return pynvml.nvmlDeviceGetHandleByPciBusId(pci)


# -- building ---------------------------------------------------------------------------------------------------------
def test_every_symbol_of_the_binding_is_there(nvml_library: Path) -> None:
    names = symbols(Path(str(pynvml.__file__)).read_text(encoding="utf-8"))
    assert len(names) > 400
    library = ctypes.CDLL(str(nvml_library))
    assert [name for name in names if not hasattr(library, name)] == []


def test_stubs_are_weak_and_named() -> None:
    text = stubs('x = _nvmlGetFunctionPointer("nvmlB")\ny = _nvmlGetFunctionPointer("nvmlA")\n' * 2)
    assert re.findall(r"^STUB\((\w+)\)$", text, re.MULTILINE) == ["nvmlA", "nvmlB"]
    assert "weak" in text


def test_built_once(nvml_library: Path) -> None:
    before = nvml_library.stat().st_mtime_ns
    assert builder.build(nvml_library.parents[1]) == nvml_library
    assert nvml_library.stat().st_mtime_ns == before


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(builder.BuildError, match="install gcc"):
        builder.build(tmp_path)


def test_compiler_error_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "FLAGS", [*builder.FLAGS, "-fno-such-flag"])
    with pytest.raises(builder.BuildError, match="no-such-flag"):
        builder.build(tmp_path)
    assert list(tmp_path.rglob("*.so.1")) == []


def test_program_writes_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, str(Path(builder.__file__)), str(tmp_path / "out")], check=True, timeout=60)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [builder.SONAME]


def test_everything_else_says_not_supported(make_rig: MakeRig) -> None:
    with session(make_rig("guide_x299")):
        for function in (
            lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle()),
            lambda: pynvml.nvmlDeviceGetEncoderUtilization(handle()),
            lambda: pynvml.nvmlDeviceGetSupportedMemoryClocks(handle()),
            pynvml.nvmlUnitGetCount,
        ):
            with pytest.raises(pynvml.NVMLError_NotSupported):
                function()


# -- without a session ------------------------------------------------------------------------------------------------
def test_closed_library_says_so(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with session(rig):
        card = handle()
    for function in (
        pynvml.nvmlDeviceGetCount,
        pynvml.nvmlShutdown,
        pynvml.nvmlSystemGetDriverVersion,
        lambda: pynvml.nvmlDeviceGetName(card),
        lambda: pynvml.nvmlDeviceGetHandleByIndex(0),
        lambda: pynvml.nvmlDeviceGetEncoderUtilization(card),
    ):
        with pytest.raises(pynvml.NVMLError_Uninitialized):
            function()
    assert pynvml.nvmlSystemGetNVMLVersion() == "12.550.163.01", "it tells its own version before it is opened"


def test_no_description_means_no_driver(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVML_SIM_DIR", str(tmp_path))
    ctypes.CDLL(str(nvml_library))
    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_description_lies_beside_the_library(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig("guide_x299")
    monkeypatch.delenv("NVML_SIM_DIR")
    assert client(rig, "print(n.nvmlDeviceGetCount())") == "2"


def test_library_linked_into_the_loaders_path(
    make_rig: MakeRig, nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig("guide_x299")
    monkeypatch.delenv("NVML_SIM_DIR")
    target = Path(rig.nvml_path, builder.SONAME)
    target.unlink()
    target.write_bytes(nvml_library.read_bytes())
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / builder.SONAME).symlink_to(target)
    program = "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetCount())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "lib")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "2\n"


# -- finding cards ----------------------------------------------------------------------------------------------------
def test_handles(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with session(rig):
        uuid = rig.machine.place(HOST).uuid
        for found in (
            pynvml.nvmlDeviceGetHandleByIndex(1),
            pynvml.nvmlDeviceGetHandleByUUID(uuid),
            pynvml.nvmlDeviceGetHandleByPciBusId("00000000:65:00.0"),
            pynvml.nvmlDeviceGetHandleByPciBusId("65:00.0"),
        ):
            assert pynvml.nvmlDeviceGetUUID(found) == uuid
        info = pynvml.nvmlDeviceGetPciInfo(handle())
        assert (info.busId, info.pciDeviceId, info.pciSubSystemId) == ("00000000:65:00.0", 0x268410DE, 0x40BF1458)
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetHandleByIndex(2)
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-none")
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByPciBusId("0000:99:00.0")


def test_processes(make_rig: MakeRig) -> None:
    many = tuple(Process(1000 + n, f"worker{n}", n) for n in range(40))
    with session(make_rig(with_card(machine("guide_x299"), HOST, processes=many))):
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle())
        assert [(p.pid, p.usedGpuMemory) for p in found] == [(1000 + n, n << 20) for n in range(40)]
        assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle()) == []
        assert pynvml.nvmlSystemGetProcessName(1007) == "worker7"
        assert pynvml.nvmlDeviceGetMemoryInfo(handle()).used == (sum(range(40)) + 346) << 20


# -- settings, processes, driver life ---------------------------------------------------------------------------------
def test_next_process_sees_the_setting(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with session(rig):
        assert client(rig, "print(limit(250000))") == "250000"
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle()) == 250000
        assert client(rig, "print(limit())") == "250000"


@pytest.mark.parametrize(
    ("case", "kept"),
    [
        ("nothing", False),
        ("persistence mode", True),
        ("nvidia-persistenced", True),
        ("a process on the card", True),
        ("another client", True),
    ],
)
def test_limit_is_lost_with_the_last_client(make_rig: MakeRig, case: str, kept: bool) -> None:
    """The driver unloads its state when persistence is off and nobody has it open."""
    rig = make_rig("guide_x299")
    if case == "nvidia-persistenced":
        rig.describe("machine", "persistenced", "1")
    if case == "a process on the card":
        rig.describe(HOST, "process", "77 1024 c python3")
    before = "n.nvmlDeviceSetPersistenceMode(h, 1)\n" if case == "persistence mode" else ""
    if case == "another client":
        with session(rig):
            client(rig, "limit(250000)")
            assert client(rig, "print(limit())") == "250000"
        assert client(rig, "print(limit())") == "450000", "and gone after that one too"
    else:
        client(rig, before + "limit(250000)")
        assert ("power_limit" in rig.state().get(rig.machine.place(HOST).uuid, {})) is kept
        assert client(rig, "print(limit())") == ("250000" if kept else "450000")


@contextmanager
def running_client(rig: LiveRig) -> Iterator[subprocess.Popen[str]]:
    """Another process that has set 250 W and stays; it leaves when its input ends."""
    program = CLIENT + "limit(250000)\nprint('set', flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen(
        [sys.executable, "-c", program, rig.nvml_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "set\n"
            yield running
        finally:
            running.kill()


def test_killed_client_counts_as_gone(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with running_client(rig) as running:
        assert client(rig, "print(limit())") == "250000"
        running.send_signal(signal.SIGKILL)
        running.wait(timeout=10)
    assert "power_limit" in rig.state()[rig.machine.place(HOST).uuid], "nobody was there to notice"
    assert client(rig, "n.nvmlDeviceSetPersistenceMode(h, 1)\nprint(limit())") == "450000"


def test_first_client_leaves_before_the_second(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with running_client(rig) as running, session(rig):
        running.communicate(timeout=10)
        assert running.returncode == 0
        assert pynvml.nvmlDeviceGetPowerManagementLimit(handle()) == 250000
    assert client(rig, "print(limit())") == "450000"


def test_reboot_forgets_everything(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    client(rig, "n.nvmlDeviceSetPersistenceMode(h, 1)\nlimit(250000)\nn.nvmlDeviceSetComputeMode(h, 3)")
    assert set(rig.state()[rig.machine.place(HOST).uuid]) == {"persistence", "power_limit", "compute_mode"}
    rig.reboot()
    assert rig.state() == {}
    assert client(rig, "print(limit(), n.nvmlDeviceGetPersistenceMode(h))") == "450000 0"


def test_two_processes_at_once_lose_nothing(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    loop = CLIENT + (
        "h = n.nvmlDeviceGetHandleByPciBusId(sys.argv[2].encode())\n"
        "for i in range(100):\n"
        "    assert limit(200000 + i) == 200000 + i, i\n"
    )
    with session(rig):
        running = [
            subprocess.Popen([sys.executable, "-c", loop, rig.nvml_path, pci], stderr=subprocess.PIPE, text=True)
            for pci in (TRAINER, HOST)
        ]
        errors = [process.communicate(timeout=60)[1] for process in running]
        assert errors == ["", ""]
        assert [pynvml.nvmlDeviceGetPowerManagementLimit(handle(pci)) for pci in (TRAINER, HOST)] == [200099, 200099]
    assert len(rig.journal()) == 200


# -- rights, ranges, journal ------------------------------------------------------------------------------------------
def test_only_root_may_set(nvml_library: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:  # not below pytest's, which other users cannot enter
        Path(directory).chmod(0o755)
        rig = install(machine("guide_x299"), Path(directory, "rig"), nvml_library, copy=True)
        nobody = {}
        if os.geteuid() == 0:
            assert client(rig, "print(limit(250000))") == "250000"
            nobody = {"AS_USER": "65534"}
        assert client(rig, "print(limit(260000))", **nobody) == "NVMLError_NoPermission"
        if os.geteuid() == 0:
            assert [call["code"] for call in rig.journal()] == [0, 4]


def test_range_and_choices(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    with session(rig):
        for code, attempt in (
            (2, lambda: pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 600001)),
            (2, lambda: pynvml.nvmlDeviceSetPersistenceMode(handle(), 2)),
            (2, lambda: pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 2000, 1000)),
            (2, lambda: pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 210, 9000)),
        ):
            with pytest.raises(pynvml.NVMLError) as caught:
                attempt()
            assert caught.value.value == code
        assert rig.state() == {}
        pynvml.nvmlDeviceSetMemoryLockedClocks(handle(), 405, 5001)
        pynvml.nvmlDeviceResetMemoryLockedClocks(handle())


def test_journal_has_every_setter_and_no_getter(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    uuid = rig.machine.place(HOST).uuid
    with session(rig):
        pynvml.nvmlDeviceGetName(handle())
        pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle())
        assert rig.journal() == []
        pynvml.nvmlDeviceSetPowerManagementLimit(handle(), 300000)
        pynvml.nvmlDeviceSetPowerManagementLimit_v2(handle(), 0, 310000)
        pynvml.nvmlDeviceSetGpuLockedClocks(handle(), 210, 1500)
        pynvml.nvmlDeviceResetGpuLockedClocks(handle())
        with pytest.raises(pynvml.NVMLError_NotSupported):
            pynvml.nvmlDeviceSetFanSpeed_v2(handle(), 0, 50)
    assert [(c["call"], c["card"], c["args"], c["code"]) for c in rig.journal()] == [
        ("nvmlDeviceSetPowerManagementLimit", uuid, [300000], 0),
        ("nvmlDeviceSetPowerManagementLimit_v2", uuid, [310000], 0),
        ("nvmlDeviceSetGpuLockedClocks", uuid, [210, 1500], 0),
        ("nvmlDeviceResetGpuLockedClocks", uuid, [], 0),
        ("nvmlDeviceSetFanSpeed_v2", uuid, [], 3),
    ]
    assert {c["pid"] for c in rig.journal()} == {os.getpid()}


# -- faults -----------------------------------------------------------------------------------------------------------
def test_fault_after_n_calls_is_shared_and_stays(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.fault(HOST, "nvmlDeviceGetPowerUsage", 15, "after 2")
    assert client(rig, "print(n.nvmlDeviceGetPowerUsage(h))") == "26000"
    assert client(rig, "print(n.nvmlDeviceGetPowerUsage(h))") == "26000"
    assert client(rig, "print(n.nvmlDeviceGetPowerUsage(h))") == "NVMLError_GpuIsLost"
    assert client(rig, "print(n.nvmlDeviceGetName(h))") == "NVIDIA GeForce RTX 4090", "only that call"
    rig.reboot()
    assert client(rig, "print(n.nvmlDeviceGetPowerUsage(h))") == "26000"
    rig.fault(HOST, "nvmlDeviceGetPowerUsage", None)


def test_fault_for_n_calls_passes(make_rig: MakeRig) -> None:
    rig = make_rig("guide_x299")
    rig.fault(HOST, "nvmlDeviceGetPowerUsage", 10, "for 2")
    code = "print(n.nvmlDeviceGetPowerUsage(h))"
    assert [client(rig, code) for _ in range(3)] == ["NVMLError_Timeout", "NVMLError_Timeout", "26000"]


@pytest.mark.parametrize(
    ("section", "function", "code", "name"),
    [
        (HOST, "*", 15, "NVMLError_GpuIsLost"),
        (HOST, "handle", 8, "NVMLError_InsufficientPower"),
        (HOST, "nvmlDeviceGetHandleByPciBusId_v2", 4, "NVMLError_NoPermission"),
        ("machine", "nvmlDeviceGetName", 999, "NVMLError_Unknown"),
        (HOST, "nvmlDeviceGetEncoderUtilization", 27, "NVMLError_NotReady"),
    ],
)
def test_faults(make_rig: MakeRig, section: str, function: str, code: int, name: str) -> None:
    rig = make_rig("guide_x299")
    rig.fault(section, function, code)
    steps = "n.nvmlDeviceGetName(x)\nn.nvmlDeviceGetEncoderUtilization(x)"
    with session(rig), pytest.raises(getattr(pynvml, name)):
        for step in steps.splitlines():
            eval(step, {"n": pynvml, "x": handle()})  # noqa: S307 (our own text)
    with session(rig):
        other = handle(TRAINER)
        if section != "machine":
            assert pynvml.nvmlDeviceGetName(other) == "NVIDIA GeForce RTX 3090 Ti"


def test_texts_of_all_errors(make_rig: MakeRig) -> None:
    with session(make_rig("guide_x299")):
        texts = {code: pynvml.nvmlErrorString(code) for code in [*range(31), 999, -1]}
    assert texts[18] == "Driver/library version mismatch"
    assert texts[999] == texts[-1] == "Unknown Error"
    assert len(set(texts.values())) == 32


def test_describe_refuses_an_unknown_card(make_rig: MakeRig) -> None:
    with pytest.raises(KeyError, match=r"0000:99:00\.0"):
        make_rig("guide_x299").describe("0000:99:00.0", "lost", "1")
