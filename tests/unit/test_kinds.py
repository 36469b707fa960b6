# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host kinds: from trees of real files to the decision."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.host import (
    parse_mounts,
    parse_os_release,
    read_evidence,
    resolve_below,
)
from ansible_collections.gpurig.llm.plugins.module_utils.kinds import (
    KINDS,
    Evidence,
    Facts,
    KindError,
    Mount,
    decide,
    detect,
    mount_of,
)
from ansible_collections.gpurig.llm.tests.unit import trees

UTILS = Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
HOME = {"HOME": "/home/ada"}


def look(base: Path, root: str = "", **more: Any) -> Evidence:
    return read_evidence(str(base), root, environment=HOME, **more)


def facts(base: Path, kind: str = "auto", root: str = "", overrides: dict[str, bool] | None = None) -> Facts:
    return decide(kind, look(base, root), root, overrides=overrides)


def refusal(base: Path, kind: str = "auto", root: str = "", overrides: dict[str, bool] | None = None) -> KindError:
    with pytest.raises(KindError) as caught:
        facts(base, kind, root, overrides)
    assert all("Remedy:" in problem for problem in caught.value.problems)
    return caught.value


def has(error: KindError, *words: str) -> bool:
    return any(all(word in problem for word in words) for problem in error.problems)


# Detection


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        pytest.param(trees.metal, "metal", id="metal"),
        pytest.param(trees.vm, "vm", id="vm"),
        pytest.param(trees.pod, "pod", id="pod-environ-start.sh"),
        pytest.param(lambda base: trees.pod(base, pid1="tini"), "pod", id="pod-environ-tini"),
        pytest.param(lambda base: trees.pod(base, names_in="file", pid1="sleep"), "pod", id="pod-file-sleep"),
        pytest.param(lambda base: trees.pod(base, names_in="nothing"), "pod", id="pod-by-container-marks"),
    ],
)
def test_detected_and_declared_agree(tmp_path: Path, build: Callable[[Path], Path], kind: str) -> None:
    base = build(tmp_path)
    detected = facts(base)
    assert detected.kind == kind
    assert detected.capabilities == KINDS[kind]
    assert detected.warnings == ()
    declared = facts(base, kind)
    assert declared == dataclasses.replace(
        detected, kind_declared=kind, witnesses={**detected.witnesses, "kind": declared.witnesses["kind"]}
    )


@pytest.mark.parametrize("names_in", ["environ", "file"])
def test_runpod_without_any_other_mark(tmp_path: Path, names_in: str) -> None:
    base = trees.pod(tmp_path, names_in)
    (base / ".dockerenv").unlink()
    mounts = (base / "proc/mounts").read_text().replace("overlay / overlay", "/dev/vda / ext4")
    trees.write(base, "/proc/mounts", mounts)
    assert facts(base).kind == "pod"


def test_names_that_people_set_at_home_are_no_witness(tmp_path: Path) -> None:
    base = trees.metal(tmp_path)
    trees.environ(base, ["RUNPOD_API_KEY", "RUNPOD_SECRET_bank", "MY_RUNPOD_POD_ID", "RUNPOD_POD_ID_OLD"])
    trees.write(base, "/etc/rp_environment", f"# RUNPOD_POD_ID=1\nexport RUNPOD_API_KEY={trees.SECRET}\n")
    assert facts(base).kind == "metal"


@pytest.mark.parametrize(
    ("vendor", "product", "flag", "kind"),
    [
        ("QEMU", "Ubuntu 24.04 PC (Q35)", False, "vm"),  # the flag can be hidden for passed-through cards
        ("Google", "Google Compute Engine", False, "vm"),
        ("Microsoft Corporation", "Virtual Machine", False, "vm"),
        ("Microsoft Corporation", "Surface Laptop Studio", False, "metal"),
        ("Google", "Banshee", False, "metal"),
        ("Amazon EC2", "g6.xlarge", True, "vm"),
        ("Amazon EC2", "g4dn.metal", False, "metal"),
        ("", "", True, "vm"),
        ("", "", False, "metal"),
    ],
)
def test_metal_or_vm(tmp_path: Path, vendor: str, product: str, flag: bool, kind: str) -> None:
    base = trees.metal(tmp_path)
    trees.dmi(base, vendor, product)
    trees.processors(base, 8, hypervisor=flag)
    assert facts(base).kind == kind


def test_sandbox_is_never_detected(tmp_path: Path) -> None:
    error = refusal(trees.sandbox(tmp_path))
    assert "metal" in str(error)
    assert has(error, "root rights", "become: true", "rig_kind: sandbox")


def test_dockerenv_alone_makes_no_container(tmp_path: Path) -> None:
    base = trees.vm(tmp_path / "booted")
    trees.write(base, "/.dockerenv", "")
    assert (facts(base).kind, facts(base).warnings) == ("vm", ())

    base = trees.machine(tmp_path / "not-booted")
    trees.write(base, "/proc/1/comm", "launcher\n")
    trees.write(base, "/.dockerenv", "")
    error = refusal(base)
    assert has(error, "rig_kind: sandbox", "rig_kind: pod", "PID 1 is 'launcher'", "/.dockerenv", "proves nothing")
    assert facts(base, "sandbox").kind == "sandbox"
    assert "no mark of a container" in " ".join(facts(base, "pod", "/opt/pod").warnings)


def test_container_without_root_is_not_detected(tmp_path: Path) -> None:
    base = trees.container(tmp_path)
    trees.identity(base, 1000, trees.NO_RIGHTS)
    (base / "proc/1/environ").unlink()
    error = refusal(base)
    assert has(error, "uid 1000", "overlay", "not readable to us")


@pytest.mark.parametrize(
    ("path", "content", "mark"),
    [
        ("/run/.containerenv", "", "/run/.containerenv"),
        ("/run/systemd/container", "podman", "/run/systemd/container"),
        ("/proc/1/environ", f"A=b\0container={trees.SECRET}\0", "container in PID 1"),
        ("/proc/1/environ", f"KUBERNETES_SERVICE_HOST={trees.SECRET}\0", "KUBERNETES"),
        ("/proc/self/cgroup", "12:pids:/docker/0123abc\n", "docker in /proc/self/cgroup"),
        ("/proc/self/cgroup", "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-9.scope\n", "kubepods"),
        ("/proc/self/cgroup", "0::/lxc.payload.web/system.slice\n", "lxc"),
        ("/proc/self/cgroup", "0::/machine.slice/libpod-9.scope\n", "libpod"),
    ],
)
def test_marks_of_a_container(tmp_path: Path, path: str, content: str, mark: str) -> None:
    base = trees.machine(tmp_path)
    trees.write(base, path, content)
    marks = look(base).container_marks
    assert len(marks) == 1
    assert mark in marks[0]
    assert facts(base).kind == "pod"


def test_docker_on_a_host_is_no_mark(tmp_path: Path) -> None:
    base = trees.metal(tmp_path)
    trees.write(base, "/proc/self/cgroup", "0::/system.slice/docker.service\n")
    assert look(base).container_marks == ()


# Verification: systemd, rights, labels


def test_pid1_called_systemd_is_not_believed(tmp_path: Path) -> None:
    base = trees.container(tmp_path, pid1="systemd")
    assert has(refusal(base, "metal"), "service_manager", "/run/systemd/system is missing", "PID 1 is 'systemd'")
    assert facts(base).kind == "pod"


def test_pid1_not_called_systemd_is_not_believed_either(tmp_path: Path) -> None:
    base = trees.metal(tmp_path)
    trees.write(base, "/proc/1/comm", "init\n")
    assert facts(base, "metal").capabilities.service_manager == "systemd"


def test_systemd_installed_but_not_booted(tmp_path: Path) -> None:
    base = trees.container(tmp_path, pid1="tini")
    trees.systemd(base, booted=False)
    error = refusal(base, "vm")
    assert has(
        error, "service_manager", "'tini'", "/usr/lib/systemd/systemd is installed but does not run", "rig_kind: pod"
    )


def test_metal_claimed_for_a_laptop_user_tells_all_at_once(tmp_path: Path) -> None:
    base = trees.sandbox(tmp_path)
    shutil.rmtree(base / "run/systemd")
    error = refusal(base, "metal", overrides={"can_fly": True})
    assert len(error.problems) == 4
    for words in (["capabilities", "can_fly"], ["Fedora Linux 43"], ["not booted"], ["uid 1000", "become"]):
        assert has(error, *words)
    assert [line[:2] for line in str(error).splitlines()[1:]] == ["1.", "2.", "3.", "4."]


def test_pod_where_systemd_runs_is_a_warning(tmp_path: Path) -> None:
    """A pod claims less than systemd offers: nothing is contradicted, and the label alone only warns."""
    found = facts(trees.vm(tmp_path), "pod", "/opt/pod")
    assert found.capabilities == KINDS["pod"]
    assert "systemd runs" in " ".join(found.warnings)


def test_runpod_with_systemd_is_a_pod_with_a_warning(tmp_path: Path) -> None:
    base = trees.pod(tmp_path, "file")
    trees.systemd(base)
    found = facts(base)
    assert found.kind == "pod"
    assert "Set rig_kind: vm" in " ".join(found.warnings)


@pytest.mark.parametrize(
    ("build", "kind", "said"),
    [
        (trees.vm, "metal", "looks like a virtual machine: DMI vendor 'QEMU'"),
        (trees.metal, "vm", "nothing of a virtual machine"),
    ],
)
def test_metal_and_vm_are_labels(tmp_path: Path, build: Callable[[Path], Path], kind: str, said: str) -> None:
    found = facts(build(tmp_path), kind)
    assert found.kind == kind
    assert len(found.warnings) == 1
    assert said in found.warnings[0]


def test_system_container_may_not_claim_the_driver(tmp_path: Path) -> None:
    base = trees.vm(tmp_path)
    trees.identity(base, 0, trees.CONTAINER_RIGHTS)
    trees.write(base, "/run/systemd/container", "lxc")
    error = refusal(base, "vm")
    assert len(error.problems) == 1
    assert has(error, "can_install_driver", "CAP_SYS_MODULE", "{can_install_driver: false}")
    for believed in (False, True):
        found = facts(base, "vm", overrides={"can_install_driver": believed})
        assert found.capabilities.can_install_driver is believed
        assert "looks like a container" in found.warnings[0]


def test_declared_vm_with_runpod_names_warns(tmp_path: Path) -> None:
    base = trees.vm(tmp_path)
    trees.write(base, "/etc/rp_environment", 'export RUNPOD_POD_ID="x"\n')
    assert "RunPod's variables" in " ".join(facts(base, "vm").warnings)


# Sandbox


@pytest.mark.parametrize(
    "build", [trees.sandbox, trees.metal, trees.vm, trees.pod, trees.container, trees.machine], ids=lambda f: f.__name__
)
def test_sandbox_is_never_contradicted(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    found = facts(build(tmp_path), "sandbox")
    assert found.kind == "sandbox"
    assert found.capabilities == KINDS["sandbox"]
    assert found.layout.root == found.volume_dir == "/home/ada/.local/share/gpurig"
    assert found.user == found.host.user


def test_sandbox_does_not_read_pid1(tmp_path: Path) -> None:
    base = trees.pod(tmp_path)
    seen = look(base, ask_pid1_environ=False)
    assert (seen.runpod_pid1, seen.pid1_environ) == ((), "not looked at")


def test_sandbox_without_home(tmp_path: Path) -> None:
    seen = dataclasses.replace(look(trees.sandbox(tmp_path)), home="")
    with pytest.raises(KindError, match="rig_root: a sandbox lies in the user's home"):
        decide("sandbox", seen)


# Platform


@pytest.mark.parametrize(
    ("name", "listed"),
    [(name, name not in {"ubuntu-20.04", "debian-11", "debian-sid", "fedora-43"}) for name in trees.GLIBC],
)
def test_distributions(tmp_path: Path, name: str, listed: bool) -> None:
    base = trees.metal(tmp_path)
    trees.distribution(base, name)
    if listed:
        assert facts(base).kind == "metal"
    else:
        assert has(refusal(base), "distribution", "Needed: ubuntu 22.04", "debian 12 / 13")
    warnings = " ".join(facts(base, "sandbox").warnings)
    assert ("not tested" in warnings) is not listed


def test_debian_11_is_named_in_words(tmp_path: Path) -> None:
    base = trees.vm(tmp_path)
    trees.distribution(base, "debian-11")
    assert has(refusal(base, "vm"), "'Debian GNU/Linux 11 (bullseye)'", "ID=debian VERSION_ID=11")


@pytest.mark.parametrize("kind", ["auto", "metal", "pod", "sandbox"])
def test_musl_is_refused_by_every_kind(tmp_path: Path, kind: str) -> None:
    base = trees.metal(tmp_path)
    trees.distribution(base, "alpine-3.22")
    assert has(refusal(base, kind, "/opt/x"), "found musl", "Alpine Linux v3.22", "glibc")


def test_musl_beside_glibc_means_nothing(tmp_path: Path) -> None:
    base = trees.metal(tmp_path)
    trees.write(base, "/lib/ld-musl-x86_64.so.1", b"\x7fELF")
    assert facts(base).host.glibc_version == "2.39"


@pytest.mark.parametrize(("version", "good"), [("2.27", False), ("2.28", True), ("2.9", False), ("2.100", True)])
def test_glibc_of_a_sandbox(tmp_path: Path, version: str, good: bool) -> None:
    base = trees.sandbox(tmp_path)
    trees.write(
        base, "/lib/x86_64-linux-gnu/libc.so.6", f"GNU C Library (X {version}-1) stable release version {version}."
    )
    if good:
        assert facts(base, "sandbox").host.glibc_version == version
    else:
        assert has(refusal(base, "sandbox"), f"found glibc {version}", "2.28 or newer")


def test_no_c_library_found(tmp_path: Path) -> None:
    base = trees.sandbox(tmp_path)
    (base / "lib/x86_64-linux-gnu/libc.so.6").unlink()
    assert has(refusal(base, "sandbox"), "no glibc was found")


@pytest.mark.parametrize("kind", ["auto", "metal", "sandbox"])
def test_aarch64_is_refused(tmp_path: Path, kind: str) -> None:
    base = trees.metal(tmp_path)
    trees.write(base, "/proc/sys/kernel/arch", "aarch64\n")
    assert has(refusal(base, kind), "architecture", "aarch64", "x86_64")


@pytest.mark.parametrize(
    ("version", "good"), [("3.9.18", False), ("3.8.10", False), ("3.10.0", True), ("3.14.0rc1", True), ("2.7", False)]
)
@pytest.mark.parametrize("kind", ["metal", "sandbox"])
def test_python(tmp_path: Path, kind: str, version: str, good: bool) -> None:
    seen = dataclasses.replace(look(trees.metal(tmp_path)), python_version=version)
    if good:
        assert decide(kind, seen).kind == kind
    else:
        with pytest.raises(KindError, match=r"3\.10 or newer"):
            decide(kind, seen)


def test_other_systems_are_refused(tmp_path: Path) -> None:
    seen = dataclasses.replace(look(trees.sandbox(tmp_path)), system="Darwin")
    with pytest.raises(KindError, match="found 'Darwin'"):
        decide("sandbox", seen)


def test_undetected_tells_the_platform_as_well(tmp_path: Path) -> None:
    base = trees.machine(tmp_path, uid=1000)
    trees.write(base, "/proc/sys/kernel/arch", "riscv64\n")
    error = refusal(base)
    assert len(error.problems) == 2
    assert has(error, "riscv64")


@pytest.mark.parametrize("path", ["listing_only", "/usr/lib/os-release", "../usr/lib/os-release"])
def test_os_release_links(tmp_path: Path, path: str) -> None:
    base = trees.metal(tmp_path)
    if path == "listing_only":
        (base / "etc/os-release").unlink()
    else:
        trees.distribution(base, "ubuntu-24.04", link=path)
    assert dataclasses.astuple(look(base).os) == ("ubuntu", "24.04", "Ubuntu 24.04.3 LTS", "noble")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ID=debian\nVERSION_ID='12'\n", ("debian", "12", "", "")),
        ('# ID=no\nID="a\\"b"\nPRETTY_NAME=It is"\nUBUNTU_CODENAME=noble', ('a"b', "", 'It is"', "noble")),
        ("", ("", "", "", "")),
        ("nonsense\n=x\nID=\n", ("", "", "", "")),
    ],
)
def test_os_release_text(text: str, expected: tuple[str, ...]) -> None:
    assert dataclasses.astuple(parse_os_release(text)) == expected


# Overrides, users


def test_override_is_believed_and_recorded(tmp_path: Path) -> None:
    found = facts(trees.vm(tmp_path), "vm", overrides={"can_set_power": True, "can_install_driver": False})
    assert found.capabilities == dataclasses.replace(KINDS["vm"], can_set_power=True, can_install_driver=False)
    evidence: Any = found.as_dict()["evidence"]
    assert evidence["can_set_power"] == [
        {"source": "kind vm", "found": "false"},
        {"source": "rig_capabilities", "found": "true"},
    ]
    assert all(witness["source"] != "rig_capabilities" for witness in evidence["can_reboot"])


@pytest.mark.parametrize("key", ["can_fly", "service_manager", "kind"])
def test_unknown_capability(tmp_path: Path, key: str) -> None:
    assert has(refusal(trees.vm(tmp_path), "vm", overrides={key: True}), repr(key), "can_reboot")


def test_unknown_kind(tmp_path: Path) -> None:
    assert has(refusal(trees.vm(tmp_path), "toaster"), "'toaster'", "auto, metal, vm, pod, sandbox")


@pytest.mark.parametrize("user", ["", "Ada", "0x", "a b", "a\n", "x" * 33, "../x"])
def test_service_user_that_is_no_name(tmp_path: Path, user: str) -> None:
    with pytest.raises(KindError, match="service_user"):
        decide("vm", look(trees.vm(tmp_path)), service_user=user)


def test_users(tmp_path: Path) -> None:
    base = trees.vm(tmp_path)
    found = decide("vm", look(base), service_user="llm")
    assert (found.user, found.group) == ("llm", "llm")
    found = decide("pod", look(base, "/opt/pod"), "/opt/pod", service_user="llm")
    assert (found.user, found.group) == ("root", "root")


def test_user_without_a_name(tmp_path: Path) -> None:
    base = trees.container(tmp_path)
    trees.identity(base, 3999999999, trees.NO_RIGHTS)
    assert look(base).user == "3999999999"


# Storage


def test_volume_of_a_pod(tmp_path: Path) -> None:
    found = facts(trees.pod(tmp_path))
    assert (found.layout.root, found.volume_dir) == ("/workspace/gpurig", "/workspace")
    assert found.warnings == ()


def test_pod_without_a_volume_warns(tmp_path: Path) -> None:
    found = facts(trees.pod(tmp_path, volume=False))
    assert (found.layout.root, found.volume_dir) == ("/workspace/gpurig", "/workspace/gpurig")
    assert "lost with the pod" in " ".join(found.warnings)


def test_pod_whose_workspace_is_a_link_to_the_volume(tmp_path: Path) -> None:
    base = trees.pod(tmp_path, volume=False)
    (base / "runpod-volume").mkdir()
    (base / "workspace").symlink_to("/runpod-volume")
    mounts = (base / "proc/mounts").read_text() + "nfs:/v /runpod-volume nfs4 rw 0 0\n"
    trees.write(base, "/proc/mounts", mounts)
    found = facts(base)
    assert (found.volume_dir, found.warnings) == ("/runpod-volume", ())


def test_volume_of_metal_is_the_state(tmp_path: Path) -> None:
    assert facts(trees.metal(tmp_path)).volume_dir == "/var/lib/gpurig"


def test_root_in_memory_warns(tmp_path: Path) -> None:
    base = trees.vm(tmp_path)
    trees.write(base, "/proc/mounts", "/dev/vda / ext4 rw 0 0\ntmpfs /opt tmpfs rw 0 0\n")
    assert "lost at a restart" in " ".join(facts(base, "vm").warnings)


def test_noexec_root_is_refused(tmp_path: Path) -> None:
    base = trees.sandbox(tmp_path)
    trees.write(base, "/proc/mounts", "/dev/vda / ext4 rw 0 0\n/dev/vdb /home ext4 rw,nosuid,noexec 0 0\n")
    assert has(refusal(base, "sandbox"), "/home", "noexec")
    assert facts(base, "sandbox", "/opt/ada").kind == "sandbox"


@pytest.mark.parametrize("what", ["file", "dangling", "circle"])
def test_root_that_cannot_be_a_directory(tmp_path: Path, what: str) -> None:
    base = trees.metal(tmp_path)
    place = base / "opt/gpurig"
    if what == "file":
        place.write_text("")
    else:
        place.symlink_to("/nowhere" if what == "dangling" else "gpurig")
    assert has(refusal(base), "/opt/gpurig cannot be a directory", "is a file or a link to nothing")


def test_root_nobody_looked_at(tmp_path: Path) -> None:
    with pytest.raises(KindError, match="nobody looked at /elsewhere/x"):
        decide("metal", look(trees.metal(tmp_path)), "/elsewhere/x")


@pytest.fixture
def open_base() -> Iterator[Path]:
    """An empty host below a path that every user may enter, unlike pytest's own."""
    base = Path(tempfile.mkdtemp(dir="/tmp"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


def look_without_rights(base: Path, locked: Path) -> Evidence:
    """Look while `locked` may not be written by us; root becomes nobody for the time."""
    locked.chmod(0o555)
    uid = os.geteuid()
    try:
        if uid == 0:
            os.seteuid(65534)
        return look(base)
    finally:
        os.seteuid(uid)
        locked.chmod(0o755)


def test_root_that_is_not_ours_to_write(open_base: Path) -> None:
    trees.sandbox(open_base)
    seen = look_without_rights(open_base, open_base / "home/ada")
    with pytest.raises(KindError) as caught:
        decide("sandbox", seen)
    assert len(caught.value.problems) == 1
    owner = f"/home/ada belongs to {pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()}), mode 0555"
    assert has(caught.value, "rig_root: /home/ada/.local/share/gpurig", owner, "we run as", "(uid 1000)")
    assert has(caught.value, "set rig_root", "become: true")


def test_read_only_root_for_the_superuser(open_base: Path) -> None:
    trees.metal(open_base)
    with pytest.raises(KindError) as caught:
        decide("metal", look_without_rights(open_base, open_base / "opt"))
    assert has(caught.value, "rig_root: /opt/gpurig is not ours to write: /opt belongs", "mount it writable")
    assert not has(caught.value, "become")


def test_missing_root_rights_are_told_once(open_base: Path) -> None:
    trees.metal(open_base)
    trees.identity(open_base, 1000, trees.NO_RIGHTS)
    seen = look_without_rights(open_base, open_base / "opt")
    assert not seen.directories[0].writable
    with pytest.raises(KindError) as caught:
        decide("metal", seen)
    assert len(caught.value.problems) == 1
    assert has(caught.value, "root rights")


def test_deepest_and_topmost_mount() -> None:
    mounts = parse_mounts(
        "a / ext4 rw 0 0\nb /data ext4 rw 0 0\nc /data ext4 ro,noexec 0 0\nd /data\\040two xfs rw 0 0\nbroken line\n"
    )
    assert mount_of("/data/x", mounts) == Mount("/data", "ext4", ("ro", "noexec"))
    assert mount_of("/data two/x", mounts) == Mount("/data two", "xfs", ("rw",))
    assert mount_of("/database", mounts) == Mount("/", "ext4", ("rw",))
    assert mount_of("/x", ()) is None


# What a container may use


@pytest.mark.parametrize(
    ("path", "content", "cpus", "memory_bytes"),
    [
        ("/sys/fs/cgroup/cpu.max", "250000 100000\n", 3, 65850148 * 1024),
        ("/sys/fs/cgroup/cpu.max", "max 100000\n", 8, 65850148 * 1024),
        ("/sys/fs/cgroup/cpu.max", "rubbish\n", 8, 65850148 * 1024),
        ("/sys/fs/cgroup/cpu.max", "1000 100000\n", 1, 65850148 * 1024),
        ("/sys/fs/cgroup/memory.max", "1000000\n", 8, 1000000),
        ("/sys/fs/cgroup/memory.max", "max\n", 8, 65850148 * 1024),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n", 8, 65850148 * 1024),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n", 8, 2000000),
    ],
)
def test_limits_of_a_container(tmp_path: Path, path: str, content: str, cpus: int, memory_bytes: int) -> None:
    base = trees.container(tmp_path)
    trees.write(base, path, content)
    seen = look(base)
    assert (seen.cpu_count, seen.memory_bytes) == (cpus, memory_bytes)


def test_cgroup_v1_quota(tmp_path: Path) -> None:
    base = trees.container(tmp_path)
    trees.write(base, "/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    for quota, cpus in (("-1", 8), ("400000", 4)):
        trees.write(base, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", f"{quota}\n")
        assert look(base).cpu_count == cpus


# Reading


def test_an_empty_host_is_read_without_an_error(tmp_path: Path) -> None:
    seen = look(tmp_path)
    assert (seen.pid1_comm, seen.memory_bytes, seen.glibc_version, seen.musl) == ("", 0, "", False)
    assert (seen.module_rights, seen.pid1_environ) == (None, "not readable")
    assert detect(seen) == ""


def test_this_machine_as_sandbox() -> None:
    """The real /proc of this process; PID 1 is not asked."""
    seen = read_evidence(ask_pid1_environ=False)
    assert (seen.euid, seen.system, seen.arch) == (os.geteuid(), "Linux", os.uname().machine)
    assert seen.glibc_version.startswith("2.")
    assert seen.memory_bytes > 0
    assert seen.cpu_count >= 1
    assert seen.os.id
    assert mount_of("/", seen.mounts) is not None


def test_libc_of_this_machine_read_as_a_file(tmp_path: Path) -> None:
    """The file's own words and the interpreter's answer are the same."""
    libc = next(
        path
        for path in map(Path, ("/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/libc.so.6"))
        if path.exists()
    )
    trees.write(tmp_path, "/usr/lib64/libc.so.6", libc.read_bytes())
    assert f"glibc {look(tmp_path).glibc_version}" == os.confstr("CS_GNU_LIBC_VERSION")


def test_links_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to("../../../../b")
    (tmp_path / "a/absolute").symlink_to("/b")
    (tmp_path / "circle").symlink_to("circle")
    assert resolve_below(str(tmp_path), "/a/up/c") == resolve_below(str(tmp_path), "/a/absolute/c") == "/b/c"
    assert resolve_below(str(tmp_path), "/a/./../missing/../x") == "/x"
    with pytest.raises(OSError, match="circle"):
        resolve_below(str(tmp_path), "/circle/x")


def test_values_of_variables_are_never_kept(tmp_path: Path) -> None:
    for names_in in ("environ", "file"):
        base = trees.pod(tmp_path / names_in, names_in)
        seen = look(base)
        assert (seen.runpod_pid1 or seen.runpod_file) == ("RUNPOD_GPU_COUNT", "RUNPOD_POD_ID", "RUNPOD_TCP_PORT_22")
        told = [repr(seen), json.dumps(facts(base).as_dict()), str(refusal(base, "metal"))]
        for text in told:
            assert trees.SECRET not in text
            assert "HF_TOKEN" not in text
            assert "bank" not in text


def test_the_code_loads_on_python_3_9() -> None:
    for name in ("layout", "kinds", "host"):
        ast.parse((UTILS / f"{name}.py").read_text(), feature_version=(3, 9))
