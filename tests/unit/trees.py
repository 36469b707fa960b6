# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts as directories: what /proc, /sys, /etc and /run of a machine would tell, below a temporary directory."""

from __future__ import annotations

from pathlib import Path

# Values of variables in every tree's environments: none may ever be seen again.
SECRET = "rpa_S3CRETVALUE0123456789"

MODULE_RIGHTS = "000001ffffffffff"
CONTAINER_RIGHTS = "00000000a80425fb"  # Docker's default for root: CAP_SYS_MODULE is not in it
NO_RIGHTS = "0000000000000000"

OS_RELEASE = {
    "ubuntu-22.04": (
        'PRETTY_NAME="Ubuntu 22.04.5 LTS"\nNAME="Ubuntu"\nVERSION_ID="22.04"\nVERSION="22.04.5 LTS (Jammy Jellyfish)"\n'
        "VERSION_CODENAME=jammy\nID=ubuntu\nID_LIKE=debian\nUBUNTU_CODENAME=jammy\n"
    ),
    "ubuntu-24.04": (
        'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nNAME="Ubuntu"\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\nID=ubuntu\n'
        "ID_LIKE=debian\nUBUNTU_CODENAME=noble\n"
    ),
    "ubuntu-26.04": 'PRETTY_NAME="Ubuntu 26.04 LTS"\nVERSION_ID="26.04"\nID=ubuntu\nID_LIKE=debian\n',
    "ubuntu-20.04": 'PRETTY_NAME="Ubuntu 20.04.6 LTS"\nVERSION_ID="20.04"\nVERSION_CODENAME=focal\nID=ubuntu\n',
    "debian-11": 'PRETTY_NAME="Debian GNU/Linux 11 (bullseye)"\nVERSION_ID="11"\nID=debian\n',
    "debian-12": (
        'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nVERSION_ID="12"\n'
        'VERSION="12 (bookworm)"\nVERSION_CODENAME=bookworm\nID=debian\nHOME_URL="https://www.debian.org/"\n'
    ),
    "debian-13": 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nVERSION_CODENAME=trixie\nID=debian\n',
    "debian-sid": 'PRETTY_NAME="Debian GNU/Linux forky/sid"\nVERSION_CODENAME=forky\nID=debian\n',
    "fedora-43": 'NAME="Fedora Linux"\nVERSION_ID=43\nID=fedora\nPRETTY_NAME="Fedora Linux 43 (Workstation Edition)"\n',
    "alpine-3.22": 'NAME="Alpine Linux"\nID=alpine\nVERSION_ID=3.22.2\nPRETTY_NAME="Alpine Linux v3.22"\n',
}
GLIBC = {
    "ubuntu-22.04": "2.35",
    "ubuntu-24.04": "2.39",
    "ubuntu-26.04": "2.43",
    "ubuntu-20.04": "2.31",
    "debian-11": "2.31",
    "debian-12": "2.36",
    "debian-13": "2.41",
    "debian-sid": "2.42",
    "fedora-43": "2.42",
}


def write(base: Path, path: str, content: str | bytes) -> None:
    """Write `content` at the absolute `path` of the host below `base`."""
    target = base / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)


def distribution(base: Path, name: str, link: str = "../usr/lib/os-release") -> None:
    """os-release as distributions ship it (a link from /etc), and a C library that says its version."""
    write(base, "/usr/lib/os-release", OS_RELEASE[name])
    release = base / "etc/os-release"
    release.parent.mkdir(parents=True, exist_ok=True)
    release.unlink(missing_ok=True)
    release.symlink_to(link)
    libc = base / "lib/x86_64-linux-gnu/libc.so.6"
    libc.unlink(missing_ok=True)
    if name.startswith("alpine"):
        write(base, "/lib/ld-musl-x86_64.so.1", b"\x7fELF musl libc")
    else:
        banner = f"GNU C Library (GNU libc) stable release version {GLIBC[name]}.\nCopyright (C) the makers.\n"
        write(base, "/lib/x86_64-linux-gnu/libc.so.6", b"\x7fELF\0\0" + banner.encode() + b"\0")


def identity(base: Path, uid: int, rights: str) -> None:
    """Who we are on the host, as /proc/self/status tells it."""
    write(
        base,
        "/proc/self/status",
        f"Name:\tpython3\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\n"
        f"CapInh:\t{NO_RIGHTS}\nCapPrm:\t{rights}\nCapEff:\t{rights}\n",
    )


def environ(base: Path, names: list[str]) -> None:
    """The environment of PID 1: the given names and others, all with secret values."""
    entries = [f"{name}={SECRET}" for name in ("PATH", "HF_TOKEN", "PUBLIC_KEY", *names)]
    entries.append(f"NOTES=first line\nRUNPOD_POD_ID={SECRET}")  # a value is not a name
    write(base, "/proc/1/environ", "\0".join(entries) + "\0")


def processors(base: Path, count: int, hypervisor: bool) -> None:
    flags = "fpu vme sse4_2 avx2" + (" hypervisor" if hypervisor else "")
    text = "".join(f"processor\t: {n}\nmodel name\t: A Processor\nflags\t\t: {flags}\n\n" for n in range(count))
    write(base, "/proc/cpuinfo", text)


def machine(base: Path, uid: int = 0) -> Path:
    """What all hosts have in common."""
    for folder in ("opt", "var/lib", "etc", "run", "tmp", "home/ada", "root"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    distribution(base, "debian-12")
    identity(base, uid, MODULE_RIGHTS if uid == 0 else NO_RIGHTS)
    write(base, "/proc/sys/kernel/arch", "x86_64\n")
    write(base, "/proc/meminfo", "MemTotal:       65850148 kB\nMemFree:        1000000 kB\n")
    write(base, "/proc/mounts", "/dev/nvme0n1p2 / ext4 rw,relatime 0 0\nproc /proc proc rw,nosuid 0 0\n")
    write(base, "/proc/self/cgroup", "0::/user.slice/user-0.slice/session-3.scope\n")
    processors(base, 8, hypervisor=False)
    return base


def systemd(base: Path, booted: bool = True) -> None:
    """systemd's programs, and its directory in /run when it is booted."""
    write(base, "/usr/lib/systemd/systemd", b"\x7fELF")
    if booted:
        (base / "run/systemd/system").mkdir(parents=True, exist_ok=True)
        write(base, "/proc/1/comm", "systemd\n")
        environ(base, [])


def dmi(base: Path, vendor: str, product: str) -> None:
    write(base, "/sys/class/dmi/id/sys_vendor", f"{vendor}\n")
    write(base, "/sys/class/dmi/id/product_name", f"{product}\n")


def metal(base: Path) -> Path:
    """Own machine: Ubuntu 24.04, systemd, a desktop board."""
    machine(base)
    distribution(base, "ubuntu-24.04")
    systemd(base)
    dmi(base, "ASUS", "ProArt X670E-CREATOR WIFI")
    return base


def vm(base: Path) -> Path:
    """Rented virtual machine: Ubuntu 22.04, systemd, KVM."""
    machine(base)
    distribution(base, "ubuntu-22.04")
    systemd(base)
    dmi(base, "QEMU", "Standard PC (Q35 + ICH9, 2009)")
    processors(base, 16, hypervisor=True)
    return base


def container(base: Path, pid1: str = "sleep") -> Path:
    """A container as Docker makes it, on somebody's server whose hardware shows through."""
    machine(base)
    distribution(base, "ubuntu-22.04")
    identity(base, 0, CONTAINER_RIGHTS)
    write(base, "/proc/1/comm", f"{pid1}\n")
    environ(base, [])
    write(base, "/.dockerenv", "")
    write(base, "/proc/self/cgroup", "0::/\n")
    write(base, "/proc/mounts", "overlay / overlay rw,relatime,lowerdir=/l/A 0 0\nproc /proc proc rw,nosuid 0 0\n")
    dmi(base, "Supermicro", "AS -4124GS-TNR")
    return base


def pod(base: Path, names_in: str = "environ", pid1: str = "start.sh", volume: bool = True) -> Path:
    """A RunPod pod. `names_in`: environ (PID 1's), file (what its images write for login shells), or nothing."""
    container(base, pid1)
    names = ["RUNPOD_POD_ID", "RUNPOD_GPU_COUNT", "RUNPOD_TCP_PORT_22", "RUNPOD_API_KEY", "RUNPOD_SECRET_bank"]
    if names_in == "environ":
        environ(base, names)
    if names_in == "file":
        write(base, "/etc/rp_environment", "".join(f'export {name}="{SECRET}"\n' for name in names))
    if volume:
        (base / "workspace").mkdir(exist_ok=True)
        mounts = (base / "proc/mounts").read_text() + "mfs#eu:9421 /workspace fuse rw,nosuid,nodev,relatime 0 0\n"
        write(base, "/proc/mounts", mounts)
    return base


def sandbox(base: Path) -> Path:
    """A developer's laptop: Fedora, systemd, a user without rights."""
    machine(base, uid=1000)
    distribution(base, "fedora-43")
    systemd(base)
    (base / "proc/1/environ").unlink()  # not ours to read
    dmi(base, "LENOVO", "21HM")
    return base
