# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host kinds and what each may do: the table, and the decision from what was seen of a host. (pure)

Importable on Python 3.9, so that a host with too old a Python is told so in words.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from .layout import POD_VOLUME, Layout, LayoutError, is_below, layout_for

AUTO = "auto"
MINIMUM_PYTHON = (3, 10)
MINIMUM_GLIBC = (2, 28)  # the manylinux tag of vLLM's wheels
ARCHITECTURE = "x86_64"
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {"ubuntu": ("22.04", "24.04", "26.04"), "debian": ("12", "13")}

# Set by RunPod for PID 1 of a pod. RUNPOD_API_KEY is not among them: people set it on their own machine as well.
RUNPOD_WITNESS = re.compile(
    r"RUNPOD_(?:POD_ID|POD_HOSTNAME|PUBLIC_IP|GPU_COUNT|CPU_COUNT|MEM_GB|VOLUME_ID|DC_ID|TCP_PORT_[0-9]{1,5})"
)


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What a host kind may do. Roles read these, never the kind."""

    service_manager: str  # systemd or supervisord
    can_install_packages: bool
    can_reboot: bool
    can_install_driver: bool
    can_set_power: bool
    container_engine: bool
    keeps_system: bool  # what lies outside of our directories outlives a restart; in a pod only the volume does


KINDS: dict[str, Capabilities] = {
    "metal": Capabilities(
        service_manager="systemd",
        can_install_packages=True,
        can_reboot=True,
        can_install_driver=True,
        can_set_power=True,
        container_engine=True,
        keeps_system=True,
    ),
    "vm": Capabilities(
        service_manager="systemd",
        can_install_packages=True,
        can_reboot=True,
        can_install_driver=True,
        can_set_power=False,  # the owner of the machine sets it, unless the inventory says otherwise
        container_engine=True,
        keeps_system=True,
    ),
    "pod": Capabilities(
        service_manager="supervisord",
        can_install_packages=True,
        can_reboot=False,
        can_install_driver=False,
        can_set_power=False,
        container_engine=False,
        keeps_system=False,
    ),
    "sandbox": Capabilities(
        service_manager="supervisord",
        can_install_packages=False,
        can_reboot=False,
        can_install_driver=False,
        can_set_power=False,
        container_engine=False,
        keeps_system=True,
    ),
}

OVERRIDABLE = ("can_install_packages", "can_reboot", "can_install_driver", "can_set_power", "container_engine")

# Where a virtual machine names itself (the table of systemd's virt.c, without the vendors that also make hardware;
# Amazon's metal instances carry the vendor of its virtual ones, so there the processor's flag decides).
_VM_VENDORS = ("QEMU", "VMware", "innotek GmbH", "Xen", "Bochs", "Parallels", "BHYVE", "OpenStack", "DigitalOcean")
_VM_PRODUCTS = (
    "KVM",
    "Standard PC",
    "OpenStack",
    "KubeVirt",
    "Virtual Machine",
    "VirtualBox",
    "VMware",
    "HVM domU",
    "Google Compute Engine",
    "Bochs",
)
_LOST_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
_USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class KindError(Exception):
    """The host is not, or cannot carry, what the inventory says. `problems`: each with what was seen and the remedy."""

    def __init__(self, heading: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([heading, *(f"{n}. {text}" for n, text in enumerate(self.problems, start=1))]))


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    point: str
    fs_type: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Directory:
    """What stands today where we want a directory."""

    path: str
    real_path: str  # with the links of the existing part resolved
    existing: str  # the path itself or its nearest existing parent
    is_directory: bool  # whether `existing` is one
    owner: str
    owner_uid: int
    mode: str  # octal digits, such as 0755
    writable: bool  # by us, now


@dataclasses.dataclass(frozen=True)
class OsRelease:
    """Of /etc/os-release; a missing key is an empty string."""

    id: str
    version_id: str
    pretty_name: str
    codename: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was seen of a host. Of environment variables it holds names, never values."""

    systemd_booted: bool  # /run/systemd/system exists
    systemd_program: str  # path of an installed systemd, empty if none
    pid1_comm: str
    euid: int
    user: str
    group: str
    home: str
    xdg_data_home: str
    module_rights: bool | None  # CAP_SYS_MODULE; None: not known
    runpod_pid1: tuple[str, ...]  # names in PID 1's environment
    runpod_file: tuple[str, ...]  # names in /etc/rp_environment
    pid1_environ: str  # read, not readable, not looked at
    dmi_vendor: str
    dmi_product: str
    hypervisor_flag: bool
    dockerenv: bool  # a bad witness: the file exists on real virtual machines
    container_marks: tuple[str, ...]  # all other marks of a container
    mounts: tuple[Mount, ...]
    directories: tuple[Directory, ...]
    system: str  # uname -s
    arch: str
    glibc_version: str  # empty: not found
    musl: bool  # no glibc, and musl's loader is there
    os: OsRelease
    cpu_count: int
    memory_bytes: int
    python_version: str


@dataclasses.dataclass(frozen=True)
class Witness:
    """Where something was seen, and what."""

    source: str
    found: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """The decision; `as_dict` is `ansible_facts.rig`."""

    kind_declared: str
    kind: str
    capabilities: Capabilities
    layout: Layout
    volume_dir: str
    user: str
    group: str
    host: Evidence
    witnesses: dict[str, tuple[Witness, ...]]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain dictionaries, lists, texts, numbers and booleans."""
        return {
            "kind": self.kind,
            "kind_declared": self.kind_declared,
            **dataclasses.asdict(self.capabilities),
            "root_dir": self.layout.root,
            "volume_dir": self.volume_dir,
            "user": self.user,
            "group": self.group,
            "paths": self.layout.as_dict(),
            "os": dataclasses.asdict(self.host.os),
            "arch": self.host.arch,
            "cpu_count": self.host.cpu_count,
            "memory_bytes": self.host.memory_bytes,
            "python_version": self.host.python_version,
            "evidence": {
                capability: [dataclasses.asdict(witness) for witness in witnesses]
                for capability, witnesses in self.witnesses.items()
            },
            "warnings": list(self.warnings),
        }


def decide(
    declared: str,
    evidence: Evidence,
    root: str = "",
    service_user: str = "gpurig",
    overrides: Mapping[str, bool] | None = None,
) -> Facts:
    """Detect the kind (`declared` auto) or verify the declared one, and work out all that follows from it.

    `root`: rig_root, empty for the kind's default. `service_user`: who services run as on metal and vm. `overrides`:
    what the inventory knows better about single capabilities (keys of OVERRIDABLE).

    A capability of the kind that the host contradicts is a problem; a label (metal or vm, pod or not) that looks wrong
    is a warning. Raises KindError with all problems at once.
    """
    if declared != AUTO and declared not in KINDS:
        raise KindError(
            "The host kind is not known.",
            [f"rig_kind: found {declared!r}. Needed: one of {', '.join((AUTO, *KINDS))}. Remedy: correct rig_kind."],
        )
    kind = detect(evidence) if declared == AUTO else declared
    wanted = dict(overrides or {})
    problems = [_bad_override(key) for key in sorted(wanted) if key not in OVERRIDABLE]
    if not _USER_NAME.fullmatch(service_user):
        problems.append(
            f"service_user: found {service_user!r}. Needed: a user name of small letters, digits, '_' and '-'. "
            "Remedy: correct service_user."
        )
    problems += _platform_problems(kind, evidence)
    if not kind:
        raise KindError("rig_kind auto: the host does not tell what it is.", [_undetected(evidence), *problems])

    known = {key: value for key, value in wanted.items() if key in OVERRIDABLE}
    given = KINDS[kind]
    if evidence.euid != 0:
        given = dataclasses.replace(given, can_install_packages=False)
    capabilities = dataclasses.replace(given, **known)  # type: ignore[arg-type]
    problems += _rights_problems(kind, capabilities, evidence, set(known))
    try:
        layout = layout_for(kind, root, evidence.home, evidence.xdg_data_home, evidence.euid)
    except LayoutError as error:
        raise KindError(_heading(declared, kind), [*problems, str(error)]) from None
    problems += _directory_problems(kind, layout, evidence)
    if problems:
        raise KindError(_heading(declared, kind), problems)

    volume_dir, volume_witness = _volume(kind, layout, evidence)
    own_user = kind in {"metal", "vm"}
    return Facts(
        kind_declared=declared,
        kind=kind,
        capabilities=capabilities,
        layout=layout,
        volume_dir=volume_dir,
        user=service_user if own_user else evidence.user,
        group=service_user if own_user else evidence.group,
        host=evidence,
        witnesses={
            "kind": (Witness("rig_kind", declared), *_kind_witnesses(evidence)),
            **_capability_witnesses(kind, known, evidence),
            "root_dir": _root_witnesses(kind, root, layout, evidence),
            "volume_dir": (volume_witness,),
        },
        warnings=tuple(_warnings(kind, layout, evidence)),
    )


def detect(evidence: Evidence) -> str:
    """metal, vm or pod, or an empty string when the host does not tell. A sandbox is chosen, never detected."""
    if evidence.runpod_pid1 or evidence.runpod_file:
        return "pod"
    if evidence.systemd_booted:
        return "vm" if virtual_machine_marks(evidence) else "metal"
    if evidence.euid == 0 and evidence.container_marks:
        return "pod"
    return ""


def virtual_machine_marks(evidence: Evidence) -> tuple[str, ...]:
    """What says that the host is a virtual machine, in words; empty on bare metal."""
    return marks_of_a_virtual_machine(evidence.dmi_vendor, evidence.dmi_product, evidence.hypervisor_flag)


def marks_of_a_virtual_machine(vendor: str, product: str, hypervisor_flag: bool) -> tuple[str, ...]:
    """The same, from DMI's names of the system and the processor's flag."""
    marks = []
    if vendor.startswith(_VM_VENDORS):
        marks.append(f"DMI vendor {vendor!r}")
    if any(word in product for word in _VM_PRODUCTS):
        marks.append(f"DMI product {product!r}")
    if hypervisor_flag:
        marks.append("the processor's hypervisor flag")
    return tuple(marks)


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that holds `path`: the deepest, and of equal ones the last, which lies on top. None: none known."""
    best: Mount | None = None
    for mount in mounts:
        if is_below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def _heading(declared: str, kind: str) -> str:
    how = "detected" if declared == AUTO else "declared by rig_kind"
    return f"This host cannot be used as {kind} ({how})."


def _bad_override(key: str) -> str:
    return (
        f"rig_capabilities: found the key {key!r}. Needed: keys of {', '.join(OVERRIDABLE)} only"
        + (" (the service manager follows the kind)" if key == "service_manager" else "")
        + ". Remedy: correct or remove it."
    )


def _undetected(evidence: Evidence) -> str:
    seen = f"systemd is not booted ({_systemd_seen(evidence)}); we run as {_who(evidence)}; marks of a container: "
    seen += ", ".join(evidence.container_marks) or "none"
    if evidence.dockerenv:
        seen += " (/.dockerenv exists, which alone proves nothing: real virtual machines have it)"
    if evidence.pid1_environ == "not readable":
        seen += "; PID 1's environment, where RunPod's variables would be, is not readable to us"
    return (
        f"seen: {seen}. Needed: systemd, or root in a container. Remedy: set rig_kind: sandbox to keep all in one "
        "directory of this user, or rig_kind: pod if this is a rented container."
    )


def _systemd_seen(evidence: Evidence) -> str:
    text = f"/run/systemd/system is missing, PID 1 is {evidence.pid1_comm or 'unknown'!r}"
    if evidence.systemd_program:
        text += f", {evidence.systemd_program} is installed but does not run"
    return text


def _who(evidence: Evidence) -> str:
    return f"{evidence.user} (uid {evidence.euid})"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", version)[:2])


def _platform_problems(kind: str, evidence: Evidence) -> list[str]:
    """`kind` empty: only what no kind can do without."""
    problems = []
    if evidence.system != "Linux":
        problems.append(
            f"system: found {evidence.system!r}. Needed: Linux. Remedy: use a Linux host or a virtual machine."
        )
    if evidence.arch != ARCHITECTURE:
        problems.append(
            f"architecture: found {evidence.arch!r}. Needed: {ARCHITECTURE}, for which engines are locked. "
            f"Remedy: use an {ARCHITECTURE} host."
        )
    if _numbers(evidence.python_version) < MINIMUM_PYTHON:
        problems.append(
            f"Python of the modules: found {evidence.python_version!r}. Needed: "
            f"{'.'.join(map(str, MINIMUM_PYTHON))} or newer. Remedy: point ansible_python_interpreter at a newer one."
        )
    if evidence.musl:
        problems.append(
            f"C library: found musl ({_os_name(evidence)}). Needed: glibc, for which engines are built. "
            f"Remedy: use {_distributions()}."
        )
    if not kind:
        return problems
    listed = evidence.os.version_id in DISTRIBUTIONS.get(evidence.os.id, ())
    if kind != "sandbox" and not listed:
        problems.append(
            f"distribution: found {_os_name(evidence)}. Needed: {_distributions()}. "
            "Remedy: install one of these, or set rig_kind: sandbox to try it in one directory."
        )
    minimum = ".".join(map(str, MINIMUM_GLIBC))
    if evidence.glibc_version and _numbers(evidence.glibc_version) < MINIMUM_GLIBC:
        problems.append(
            f"C library: found glibc {evidence.glibc_version}. Needed: {minimum} or newer. "
            f"Remedy: use a newer distribution, such as {_distributions()}."
        )
    if not evidence.glibc_version and not evidence.musl and not listed:
        problems.append(
            f"C library: no glibc was found on {_os_name(evidence)}. Needed: glibc {minimum} or newer. "
            f"Remedy: use {_distributions()}."
        )
    return problems


def _os_name(evidence: Evidence) -> str:
    system = evidence.os
    seen = f"ID={system.id or '?'} VERSION_ID={system.version_id or '?'} in /etc/os-release"
    return f"{system.pretty_name!r} ({seen})" if system.pretty_name else seen


def _distributions() -> str:
    return ", ".join(f"{name} {' / '.join(versions)}" for name, versions in DISTRIBUTIONS.items())


def _rights_problems(kind: str, capabilities: Capabilities, evidence: Evidence, overridden: set[str]) -> list[str]:
    problems = []
    systemd = capabilities.service_manager == "systemd"
    if systemd and not evidence.systemd_booted:
        problems.append(
            f"service_manager: {kind} claims systemd, and it is not booted: {_systemd_seen(evidence)}. Needed: systemd "
            "as PID 1. Remedy: boot with systemd, or set rig_kind: pod (container) or sandbox (one directory)."
        )
    if systemd and evidence.euid != 0:
        problems.append(
            f"root rights: {kind} installs for the whole system, and we run as {_who(evidence)}. Needed: uid 0. "
            "Remedy: run with become: true, or set rig_kind: sandbox."
        )
    if (
        capabilities.can_install_driver
        and "can_install_driver" not in overridden
        and evidence.euid == 0
        and evidence.module_rights is False
    ):
        problems.append(
            f"can_install_driver: {kind} claims it, and root may not load kernel modules here (CAP_SYS_MODULE is "
            f"missing; marks of a container: {', '.join(evidence.container_marks) or 'none'}). Needed: that right, or "
            "the word that the driver is not ours. Remedy: set rig_capabilities: {can_install_driver: false} for this "
            "host, or rig_kind: pod."
        )
    return problems


def _directory_problems(kind: str, layout: Layout, evidence: Evidence) -> list[str]:
    problems = []
    system_wide = kind in {"metal", "vm"}
    for path in layout.directories():
        seen = _looked_at(path, evidence)
        if seen is None:
            problems.append(f"rig_root: nobody looked at {path}. Remedy: report this as a defect of rig_facts.")
        elif not seen.is_directory:
            problems.append(
                f"rig_root: {path} cannot be a directory: {seen.existing} is a file or a link to nothing, owned by "
                f"{seen.owner} (uid {seen.owner_uid}). Needed: a directory. Remedy: move it away, or set rig_root."
            )
        elif not seen.writable and not (system_wide and evidence.euid != 0):  # told as missing root rights already
            problems.append(
                f"rig_root: {path} is not ours to write: {seen.existing} belongs to {seen.owner} (uid "
                f"{seen.owner_uid}), mode {seen.mode}, and we run as {_who(evidence)}. Needed: a directory that we may "
                "write. Remedy: set rig_root to one"
                + (", or run with become: true." if evidence.euid != 0 else ", or mount it writable.")
            )
    root = _looked_at(layout.root, evidence)
    mount = mount_of(root.real_path, evidence.mounts) if root else None
    if mount and "noexec" in mount.options:
        problems.append(
            f"rig_root: {layout.root} lies on {mount.point}, which is mounted noexec, so no engine could start from "
            "it. Needed: a file system that allows programs. Remedy: set rig_root elsewhere, or mount it with exec."
        )
    return problems


def _looked_at(path: str, evidence: Evidence) -> Directory | None:
    return next((seen for seen in evidence.directories if seen.path == path), None)


def _real_root(layout: Layout, evidence: Evidence) -> str:
    seen = _looked_at(layout.root, evidence)
    return seen.real_path if seen else layout.root


def _volume(kind: str, layout: Layout, evidence: Evidence) -> tuple[str, Witness]:
    if kind != "pod":
        return layout.state, Witness("layout", f"state directory of {kind}")
    mount = mount_of(_real_root(layout, evidence), evidence.mounts)
    if mount and mount.point != "/":
        return mount.point, Witness("/proc/mounts", f"{mount.point} ({mount.fs_type}) holds the root")
    return layout.root, Witness("/proc/mounts", "no volume of its own holds the root")


def _kind_witnesses(evidence: Evidence) -> list[Witness]:
    witnesses = [*_systemd_witnesses(evidence), Witness("effective uid", str(evidence.euid))]
    if evidence.runpod_pid1:
        witnesses.append(Witness("/proc/1/environ", "names: " + ", ".join(evidence.runpod_pid1)))
    else:
        found = "no RunPod names" if evidence.pid1_environ == "read" else evidence.pid1_environ
        witnesses.append(Witness("/proc/1/environ", found))
    if evidence.runpod_file:
        witnesses.append(Witness("/etc/rp_environment", "names: " + ", ".join(evidence.runpod_file)))
    witnesses += [
        Witness("/sys/class/dmi/id/sys_vendor", evidence.dmi_vendor or "missing"),
        Witness("/sys/class/dmi/id/product_name", evidence.dmi_product or "missing"),
        Witness("/proc/cpuinfo", "hypervisor flag" if evidence.hypervisor_flag else "no hypervisor flag"),
        Witness("container marks", ", ".join(evidence.container_marks) or "none"),
    ]
    if evidence.dockerenv:
        witnesses.append(Witness("/.dockerenv", "exists, which alone proves nothing"))
    return witnesses


def _systemd_witnesses(evidence: Evidence) -> list[Witness]:
    return [
        Witness("/run/systemd/system", "exists" if evidence.systemd_booted else "missing"),
        Witness("/proc/1/comm", evidence.pid1_comm or "unknown"),
    ]


def _capability_witnesses(
    kind: str, overrides: Mapping[str, bool], evidence: Evidence
) -> dict[str, tuple[Witness, ...]]:
    found: dict[str, tuple[Witness, ...]] = {}
    for name, value in dataclasses.asdict(KINDS[kind]).items():
        witnesses = [Witness(f"kind {kind}", str(value).lower())]
        if name == "service_manager":
            witnesses += _systemd_witnesses(evidence)
        if name == "can_install_packages":
            witnesses.append(Witness("effective uid", str(evidence.euid)))
        if name == "can_install_driver" and evidence.module_rights is not None:
            right = "held" if evidence.module_rights else "missing"
            witnesses.append(Witness("/proc/self/status", f"CAP_SYS_MODULE {right}"))
        if name in overrides:
            witnesses.append(Witness("rig_capabilities", str(overrides[name]).lower()))
        found[name] = tuple(witnesses)
    return found


def _root_witnesses(kind: str, root: str, layout: Layout, evidence: Evidence) -> tuple[Witness, ...]:
    source = Witness("rig_root", root) if root else Witness(f"default of {kind}", layout.root)
    seen = (_looked_at(path, evidence) for path in layout.directories())
    return (
        source,
        *(
            Witness(at.existing, f"owned by {at.owner} (uid {at.owner_uid}), mode {at.mode}, writable for {at.path}")
            for at in seen
            if at
        ),
    )


def _warnings(kind: str, layout: Layout, evidence: Evidence) -> list[str]:
    warnings = []
    virtual = virtual_machine_marks(evidence)
    runpod = evidence.runpod_pid1 or evidence.runpod_file
    if kind == "metal" and virtual:
        warnings.append(f"rig_kind is metal, and the host looks like a virtual machine: {', '.join(virtual)}.")
    if kind == "vm" and not virtual:
        warnings.append("rig_kind is vm, and nothing of a virtual machine was seen (DMI, hypervisor flag).")
    if kind in {"metal", "vm"} and (evidence.container_marks or runpod):
        marks = [*evidence.container_marks, *(["RunPod's variables"] if runpod else [])]
        warnings.append(f"rig_kind is {kind}, and the host looks like a container: {', '.join(marks)}.")
    if kind == "pod" and evidence.systemd_booted:
        warnings.append(
            "The host is treated as a pod, and systemd runs on it: services go to supervisord all the same. "
            "Set rig_kind: vm (or metal) if the whole system is ours."
        )
    if kind == "pod" and not (evidence.container_marks or runpod):
        warnings.append("rig_kind is pod, and no mark of a container was seen.")
    if kind == "sandbox" and evidence.os.version_id not in DISTRIBUTIONS.get(evidence.os.id, ()):
        warnings.append(f"The distribution is not tested: {_os_name(evidence)}; tested: {_distributions()}.")
    mount = mount_of(_real_root(layout, evidence), evidence.mounts)
    if kind == "pod" and (mount is None or mount.point == "/"):
        warnings.append(
            f"{layout.root} lies on the container's own disk: no volume is mounted there, so models and environments "
            f"are lost with the pod. Mount a volume at {POD_VOLUME}, or set rig_root below one."
        )
    elif mount and mount.fs_type in _LOST_FILE_SYSTEMS:
        warnings.append(f"{layout.root} lies on {mount.point} ({mount.fs_type}), which is lost at a restart.")
    return warnings
