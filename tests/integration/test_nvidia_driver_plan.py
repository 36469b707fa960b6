# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nvidia_driver_plan as a real process on simulated machines, with the real apt on archives of stand-in packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.driver_facts import generation_of
from ansible_collections.gpurig.llm.plugins.module_utils.driver_packages import MOVED, pin_text
from ansible_collections.gpurig.llm.plugins.module_utils.driver_scan import scan, simulate
from ansible_collections.gpurig.llm.tests.apt_sim import build
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import MACHINES, machine

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="there is no apt")

KERNEL = "6.1.0-56-amd64"
CHAT = {"name": "chat", "engine": "vllm", "device": "cuda"}
OLD = {
    "nvidia-driver-cuda": "580.95.05-1",
    "libcuda1": "580.95.05-1",
    "libnvidia-ml1": "580.95.05-1",
    "nvidia-persistenced": "580.95.05-1",
    "nvidia-kernel-support": "580.95.05-1",
    "nvidia-kernel-open-dkms": "580.95.05-1",
}
RunModule = Callable[..., dict[str, Any]]


@dataclass
class Host:
    """A simulated Debian with its own apt: `plan(...)` runs the module on it."""

    root: Path
    rig: LiveRig
    archives: Path
    run_module: RunModule

    @property
    def environment(self) -> dict[str, str]:
        """What leads apt's programs to it."""
        return {"APT_CONFIG": str(self.root / "apt.conf")}

    def plan(self, check: bool = False, **arguments: Any) -> dict[str, Any]:
        """The module's result."""
        given = {
            "instances": [CHAT],
            "state": "present",
            "fs_root": str(self.root),
            "sysfs_root": self.rig.sysfs_root,
            "proc_root": self.rig.proc_root,
            **arguments,
        }
        return self.run_module("nvidia_driver_plan", given, check=check, environment=self.environment)

    def archive(self, name: str, nvidia: bool = True) -> None:
        """Let apt see an archive of tests/apt_sim, with NVIDIA's repository or without."""
        now = self.archives / "now"
        now.unlink(missing_ok=True)
        now.symlink_to(self.archives / name)
        lines = [f"deb [trusted=yes] file:{now}/debian ./"]
        if nvidia:
            lines.append(f"deb [trusted=yes] file:{now}/compute/cuda/repos/debian12/x86_64 ./")
        (self.root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = ["apt-get", "-qq", "update"]
        subprocess.run(command, env={**os.environ, **self.environment}, check=True, capture_output=True, timeout=60)

    def install(self, packages: dict[str, str], module: str = "", loaded: str = "") -> None:
        """Pretend that packages are installed, with a module built by DKMS, and one that is loaded."""
        status = "".join(
            f"Package: {name}\nStatus: install ok installed\nVersion: {version}\nArchitecture: amd64\n"
            "Maintainer: nobody\nDescription: stand-in\n\n"
            for name, version in packages.items()
        )
        (self.root / "var/lib/dpkg/status").write_text(status, encoding="utf-8")
        built = self.root / f"lib/modules/{KERNEL}/updates/dkms/nvidia.ko.xz"
        if module:
            built.parent.mkdir(parents=True, exist_ok=True)
            built.write_text(module, encoding="utf-8")
            library = self.root / f"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.{module}"
            library.parent.mkdir(parents=True, exist_ok=True)
            library.touch()
        if loaded:
            version = Path(self.rig.proc_root, "driver/nvidia/version")
            version.parent.mkdir(parents=True, exist_ok=True)
            version.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {loaded}  Release Build\n")

    def kernel(self, release: str) -> None:
        """Let this kernel be the running one."""
        Path(self.rig.proc_root, "sys/kernel/osrelease").write_text(f"{release}\n", encoding="utf-8")
        (self.root / "lib/modules" / release / "kernel").mkdir(parents=True)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives, built once."""
    folder = tmp_path_factory.mktemp("apt")
    build.build(folder, str(folder / "now"))
    return folder


@pytest.fixture
def host(tmp_path: Path, archives: Path, make_rig: Callable[..., LiveRig], run_module: RunModule) -> Host:
    """A Debian 12 with a 3090 that nouveau drives, and no driver."""
    root = tmp_path / "root"
    for folder in (
        "etc/apt/preferences.d",
        "var/lib/dpkg",
        "var/lib/apt/lists/partial",
        "var/cache/apt/archives/partial",
    ):
        (root / folder).mkdir(parents=True)
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\n', encoding="utf-8")
    (root / "var/lib/dpkg/status").touch()
    (root / "apt.conf").write_text(
        f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\nAPT::Architecture "amd64";\n'
        'APT::Sandbox::User "root";\nDir::Etc::parts "none";\nDir::Etc::main "none";\n',
        encoding="utf-8",
    )
    made = Host(root, make_rig("nouveau"), archives, run_module)
    made.kernel(KERNEL)
    return made


def test_a_debian_without_lists_is_told_what_is_missing(host: Host) -> None:
    """Nothing can be said of packages; the role reads the lists then, check mode says so."""
    result = host.plan(check=True)
    plan = result["plan"]
    assert (plan["verdict"], plan["unread"]) == ("refused", True)
    assert "apt has read no list" in plan["problems"][0]
    assert result["seen"]["cards"][0].endswith("ampere")


@needs_apt
def test_the_transaction_of_a_first_driver(host: Host) -> None:
    """Exact versions of R580, although the archive has R590; the whole transaction is shown and has no kernel."""
    host.archive("first")
    result = host.plan()
    assert result["plan"]["verdict"] == "install", result["plan"]["words"]
    assert result["install"] == [
        "nvidia-driver-pinning-580",
        f"linux-headers-{KERNEL}",
        "linux-headers-amd64",
        "nvidia-persistenced=580.95.05-1",
        "nvidia-kernel-open-dkms=580.95.05-1",
        "nvidia-driver-cuda=580.95.05-1",
    ]
    new = {step["package"]: step["new"] for step in result["transaction"]}
    assert {version for name, version in new.items() if name in OLD} == {"580.95.05-1"}
    assert set(OLD) < set(new)
    assert result["plan"]["reboot"] is True
    assert host.plan(check=True)["plan"] == result["plan"]


@needs_apt
def test_the_scan_asks_apt(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers with their sources, headers apart, and a simulation that leaves no file behind."""
    host.archive("next")
    host.install({"libcuda1": "580.95.05-1"}, module="580.95.05")
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    facts = scan(str(host.root), host.rig.sysfs_root, host.rig.proc_root)
    assert [offer.version for offer in facts.offers if offer.package == "libcuda1"] == [
        "595.71.05-1",
        "580.105.08-1",
        "580.95.05-1",
    ]
    assert {offer.source for offer in facts.offers} == {"nvidia"}
    assert facts.headers_offered == {f"linux-headers-{KERNEL}", "linux-headers-amd64"}
    assert (facts.running.module, facts.library_version, facts.packages) == (
        "dkms",
        "580.95.05",
        {"libcuda1": "580.95.05-1"},
    )
    before = sorted(path for path in host.root.rglob("*"))
    code, text = simulate(["libcuda1=580.105.08-1", "libnvidia-ml1"], pin_text("580.105.08"))
    assert (code, "Inst libnvidia-ml1 (580.105.08-1 NVIDIA" in text) == (0, True)
    assert sorted(path for path in host.root.rglob("*")) == before


@needs_apt
def test_without_the_repository_it_has_to_be_added(host: Host) -> None:
    """The version is not known then, and nothing is simulated."""
    host.archive("first", nvidia=False)
    result = host.plan()
    assert (result["plan"]["verdict"], result["plan"]["repository"]) == ("install", "debian12")
    assert (result["plan"]["version"], result["transaction"]) == ("", [])


@needs_apt
def test_an_upgrade_within_the_branch(host: Host) -> None:
    """state: present leaves a driver that serves; state: latest moves all its packages together."""
    host.install({**OLD, "dkms": "3.0.10-8+deb12u1"}, module="580.95.05", loaded="580.95.05")
    host.archive("next")
    assert host.plan()["plan"]["verdict"] == "nothing"
    result = host.plan(state="latest")
    assert result["plan"]["verdict"] == "upgrade", result["plan"]["words"]
    assert (result["plan"]["version"], result["plan"]["reboot"]) == ("580.105.08", True)
    moved = {step["package"]: (step["old"], step["new"]) for step in result["transaction"] if step["package"] in OLD}
    assert moved == dict.fromkeys(OLD, ("580.95.05-1", "580.105.08-1"))


@needs_apt
@pytest.mark.parametrize(
    ("archive", "said"),
    [
        ("kernel", "linux-image-6.1.0-99-amd64 6.1.999-1 is a kernel"),
        ("shell", "libnvidia-ml1 595.71.05-1 is of branch R595, needed R580"),
    ],
)
def test_a_repository_that_misbehaves_is_refused(host: Host, archive: str, said: str) -> None:
    """Before anything is installed, with what apt would have done."""
    host.install({**OLD, "dkms": "3.0.10-8+deb12u1"}, module="580.95.05", loaded="580.95.05")
    host.archive(archive)
    result = host.plan(state="latest")
    assert result["plan"]["verdict"] == "refused", result["transaction"]
    assert said in "\n".join(result["plan"]["problems"])
    assert "Nothing was installed" in result["plan"]["problems"][0]


@needs_apt
@pytest.mark.parametrize("pinning", [False, True], ids=["alone", "with NVIDIA's pinning"])
@pytest.mark.parametrize(
    ("there", "pinned", "stays"),
    [("580.95.05-1", "580.95.05", True), ("580.105.08-1", "580.95.05", True)],
    ids=["kept", "moved by hand"],
)
def test_the_pin_keeps_and_never_takes_back(host: Host, pinning: bool, there: str, pinned: str, stays: bool) -> None:
    """An unattended upgrade leaves the version alone, also one that its owner installed after the pin was written."""
    host.archive("next")
    host.install(dict.fromkeys(("libcuda1", "libnvidia-ml1"), there))
    preferences = host.root / "etc/apt/preferences.d"
    (preferences / "gpurig-nvidia-driver.pref").write_text(pin_text(pinned), encoding="utf-8")
    if pinning:
        text = "Package: *nvidia* libcuda1\nPin: version 580.*\nPin-Priority: 1000\n"
        (preferences / "nvidia-driver-pinning-580").write_text(text, encoding="utf-8")
    environment = {**os.environ, **host.environment}
    command = ["apt-cache", "policy", "libcuda1", "libnvidia-ml1"]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout
    assert (text.count(f"Candidate: {there}\n") == 2) is stays, text


@needs_apt
def test_the_branch_can_be_gone_back(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pin of the moment lets dependencies go back that the call does not name; the one that stays does not."""
    host.archive("next")
    host.install(dict.fromkeys(("libcuda1", "libnvidia-ml1"), "580.105.08-1"))
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    code, text = simulate(["libcuda1=580.95.05-1", "libnvidia-ml1"], pin_text("580.95.05", MOVED))
    assert (code, text.count("(580.95.05-1 NVIDIA")) == (0, 4), text
    code, text = simulate(["libnvidia-ml1"], pin_text("580.95.05"))
    assert "580.95.05-1" not in text


@needs_apt
def test_apt_is_asked_only_where_it_matters(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a driver that is only judged, and not without cards."""
    host.archive("next")
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    roots = (str(host.root), host.rig.sysfs_root, host.rig.proc_root)
    assert scan(*roots).offers
    assert not scan(*roots, ask_apt=False).offers
    assert not scan(*roots, can_install_driver=False).offers
    assert not scan(str(host.root), str(host.root / "none"), host.rig.proc_root).offers


def test_the_version_of_a_module_without_its_file_in_proc(make_rig: Callable[..., LiveRig], tmp_path: Path) -> None:
    """sysfs has it too."""
    rig = make_rig("nouveau")
    version = Path(rig.sysfs_root, "module/nvidia/version")
    version.parent.mkdir(parents=True, exist_ok=True)
    version.write_text("580.95.05\n", encoding="utf-8")
    facts = scan(str(tmp_path), rig.sysfs_root, rig.proc_root)
    assert (facts.module_version, facts.module_flavour) == ("580.95.05", "")


@needs_apt
def test_what_apt_cannot_resolve_is_told_in_its_words(host: Host) -> None:
    """A package that excludes ours, for instance."""
    host.install({"strange": "1"})
    status = host.root / "var/lib/dpkg/status"
    text = status.read_text(encoding="utf-8").replace(
        "Version: 1\n", "Version: 1\nEssential: yes\nConflicts: libcuda1\n"
    )
    status.write_text(text, encoding="utf-8")
    host.archive("first")
    result = host.plan()
    assert result["plan"]["verdict"] == "refused"
    assert "strange" in result["plan"]["problems"][0]


@needs_apt
def test_a_pin_of_the_host_counts_in_the_simulation(host: Host) -> None:
    """Somebody forbids NVIDIA's module: apt refuses, and so does the plan."""
    (host.root / "etc/apt/preferences").write_text(
        "Package: dkms\nPin: version *\nPin-Priority: -1\n", encoding="utf-8"
    )
    host.archive("first")
    result = host.plan()
    assert result["plan"]["verdict"] == "refused"
    assert "dkms" in result["plan"]["problems"][0]


@pytest.mark.parametrize("name", sorted(MACHINES))
def test_the_scan_sees_what_the_machine_is(name: str, make_rig: Callable[..., LiveRig], tmp_path: Path) -> None:
    """Cards, generations, Secure Boot and loaded module of every named machine."""
    rig = make_rig(name)
    facts = scan(str(tmp_path / "none"), rig.sysfs_root, rig.proc_root)
    described = machine(name)
    assert {card.pci for card in facts.cards} == {place.pci for place in described.places}
    generations = {
        2: "kepler",
        3: "maxwell",
        4: "pascal",
        5: "volta",
        6: "turing",
        7: "ampere",
        8: "ada",
        9: "hopper",
        10: "blackwell",
    }
    wanted = {place.pci: generations[place.model.architecture] for place in described.places}
    assert {card.pci: generation_of(card.device_id) for card in facts.cards} == wanted
    assert facts.module_version == described.driver
    if described.driver:
        assert facts.module_flavour == ("open" if described.open_module else "proprietary")
    if not described.is_container and described.efi:
        assert facts.secure_boot == ("enabled" if described.secure_boot else "disabled")
    assert facts.kernel == described.kernel


def test_a_key_in_the_firmwares_list_is_known(make_rig: Callable[..., LiveRig], tmp_path: Path) -> None:
    """The list holds certificates as they are; ours is a part of it or not."""
    rig = make_rig(replace(machine("guide_x299"), secure_boot=True))
    key = tmp_path / "var/lib/dkms/mok.pub"
    key.parent.mkdir(parents=True)
    key.write_bytes(b"certificate of this host")
    assert scan(str(tmp_path), rig.sysfs_root, rig.proc_root).mok_enrolled is False
    variables = Path(rig.sysfs_root, "firmware/efi/efivars")
    listed = variables / "MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23"
    listed.write_bytes(b"\x06\0\0\0 somebody's; certificate of this host; another")
    assert scan(str(tmp_path), rig.sysfs_root, rig.proc_root).mok_enrolled is True
