# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parsers of what drivers, dpkg and apt say, the table of cards, and the judge of apt's transaction."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.apt_transaction import (
    Step,
    Wanted,
    complaint,
    is_kernel,
    judge,
    module_flavour_of,
    parse_simulation,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_facts import (
    DriverFacts,
    Kernel,
    Offer,
    branch_of,
    generation_of,
    is_driver_package,
    library_versions,
    parse_dpkg_status,
    parse_module_version,
    parse_os_release,
    parse_policy,
    upstream,
)
from ansible_collections.gpurig.llm.plugins.module_utils.driver_packages import (
    MOVED,
    header_metas,
    kernel_flavour,
    pin_text,
)
from ansible_collections.gpurig.llm.tests.rigs.gpus import catalogue

# As /proc/driver/nvidia/version reads, by tests/rigs/witnesses.py and public reports of both modules.
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025\nGCC version:  gcc\n"
OPENED = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue Sep 23\n"
)
# `apt-cache policy`: a package of two sources, one that only dpkg knows, and one that nobody offers.
POLICY = """\
nvidia-driver-cuda:
  Installed: 580.95.05-1
  Candidate: 580.95.05-1
  Version table:
     610.43.02-1 600
        600 https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64  Packages
 *** 580.95.05-1 1001
        100 /var/lib/dpkg/status
        600 https://mirror.example/compute/cuda/repos/debian12/x86_64  Packages
nvidia-kernel-dkms:
  Installed: (none)
  Candidate: 535.309.01-1~deb12u1
  Version table:
     535.309.01-1~deb12u1 500
        500 http://security.debian.org/debian-security bookworm-security/non-free amd64 Packages
        500 http://deb.debian.org/debian bookworm/non-free amd64 Packages
old-thing:
  Installed: 1.0
  Candidate: 1.0
  Version table:
 *** 1.0 100
        100 /var/lib/dpkg/status
none-of-it:
  Installed: (none)
  Candidate: (none)
  Version table:
"""
# `apt-get -s install`, with a removal and an upgrade.
SIMULATION = """\
Reading package lists...
The following NEW packages will be installed:
  linux-image-6.8.0-51-generic nvidia-dkms-580-open
Remv nvidia-dkms-550 [550.163.01-0ubuntu1] [linux-image:amd64 ]
Inst linux-image-6.8.0-51-generic (6.8.0-51.52 Ubuntu:24.04/noble-updates [amd64])
Inst libc6:amd64 [2.39-0ubuntu8.3] (2.39-0ubuntu8.4 Ubuntu:24.04/noble-updates [amd64]) [libc-bin:amd64 ]
Inst nvidia-dkms-580-open (580.95.05-0ubuntu0.24.04.3 Ubuntu:24.04/noble-updates [amd64])
Conf nvidia-dkms-580-open (580.95.05-0ubuntu0.24.04.3 Ubuntu:24.04/noble-updates [amd64])
"""
WANTED = Wanted(580, "open", "580.95.05")


def test_the_loaded_module() -> None:
    """Version and flavour of both modules; nothing of anything else."""
    assert parse_module_version(CLOSED) == ("550.163.01", "proprietary")
    assert parse_module_version(OPENED) == ("580.95.05", "open")
    assert parse_module_version("") == parse_module_version("NVRM version: garbage") == ("", "")


@pytest.mark.parametrize(
    ("version", "bare", "branch"),
    [
        ("580.95.05-0ubuntu0.24.04.3", "580.95.05", 580),
        ("1:595.71.05-1", "595.71.05", 595),
        ("580.142-1", "580.142", 580),
        ("535.309.01-1~deb12u1", "535.309.01", 535),
        ("6.8.0-49.49+1", "", 0),
        ("1.20.0-1", "", 0),
        ("580-1", "", 0),
        ("", "", 0),
    ],
)
def test_nvidias_version_in_a_packages(version: str, bare: str, branch: int) -> None:
    """Epoch and the distribution's part are cut off; what is none stays empty."""
    assert (upstream(version), branch_of(version)) == (bare, branch)


def test_policy() -> None:
    """Who offers what; NVIDIA's repository is known by its path, also behind a mirror."""
    assert parse_policy(POLICY, "debian") == [
        Offer("nvidia-driver-cuda", "610.43.02-1", "nvidia"),
        Offer("nvidia-driver-cuda", "580.95.05-1", "nvidia"),
        Offer("nvidia-kernel-dkms", "535.309.01-1~deb12u1", "debian"),
    ]
    assert parse_policy(POLICY, "ubuntu")[-1].source == "ubuntu"
    assert parse_policy("", "debian") == parse_policy("garbage\n  more\n", "debian") == []


def test_dpkgs_status() -> None:
    """Installed packages of the driver, what is on hold, and headers; what is only configured is not installed."""
    paragraph = "Package: {}\nStatus: {} ok {}\nArchitecture: amd64\nVersion: {}\nDescription: x\n more: y\n\n"
    text = "".join(
        paragraph.format(*fields)
        for fields in (
            ("nvidia-driver-cuda", "install", "installed", "580.95.05-1"),
            ("libcuda1", "hold", "installed", "580.95.05-1"),
            ("nvidia-kernel-dkms", "deinstall", "config-files", "535.1-1"),
            ("nvidia-container-toolkit", "install", "installed", "1.20.0-1"),
            ("linux-headers-6.1.0-56-amd64", "install", "installed", "6.1.192-2"),
            ("bash", "install", "installed", "5.2"),
        )
    )
    packages, held, headers = parse_dpkg_status(text)
    assert packages == {"nvidia-driver-cuda": "580.95.05-1", "libcuda1": "580.95.05-1"}
    assert (held, headers) == (["libcuda1"], {"linux-headers-6.1.0-56-amd64"})
    assert parse_dpkg_status("") == ({}, [], set())
    foreign = paragraph.format("libcuda1", "hold", "installed", "570.1.1-1").replace("amd64", "i386")
    assert parse_dpkg_status(text + foreign, ("amd64", "all")) == (packages, held, headers)


def test_os_release_and_library_names() -> None:
    """With quotes, comments and blank lines; only names that end with a version."""
    assert parse_os_release("# c\nID=debian\nVERSION_ID=\"12\"\n\nNAME='x'\n") == {
        "ID": "debian",
        "VERSION_ID": "12",
        "NAME": "x",
    }
    names = ["libnvidia-ml.so.1", "libnvidia-ml.so.580.95.05", "libcuda.so.580.105.08", "libcuda.so"]
    assert library_versions(names) == "580.105.08"
    assert library_versions(["libcuda.so.1"]) == ""


@pytest.mark.parametrize("card", catalogue().values(), ids=lambda card: card.key)
def test_the_table_of_cards_agrees_with_the_catalogue(card: object) -> None:
    """By NVML's architecture of each card that was read from public sources."""
    architectures = {4: "pascal", 5: "volta", 6: "turing", 7: "ampere", 8: "ada", 9: "hopper", 10: "blackwell"}
    assert generation_of(card.pci_device) == architectures[card.architecture]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("device_id", "generation"),
    [
        ("102d", "kepler"),
        ("1180", "kepler"),
        ("13c2", "maxwell"),
        ("17c8", "maxwell"),
        ("15f8", "pascal"),
        ("1b06", "pascal"),
        ("1db6", "volta"),
        ("1e07", "turing"),
        ("2184", "turing"),
        ("20b5", "ampere"),
        ("2484", "ampere"),
        ("2335", "hopper"),
        ("2782", "ada"),
        ("2d04", "blackwell"),
        ("2f04", "blackwell"),
        ("4000", ""),
        ("", ""),
        ("xyz", ""),
    ],
)
def test_generation_by_device_number(device_id: str, generation: str) -> None:
    """Numbers of well-known cards: K80, GTX 680, GTX 970, GTX 980 Ti, P100, 1080 Ti, V100, 2080 Ti, 1660, A100 ..."""
    assert generation_of(device_id) == generation


def test_the_table_of_cards_agrees_with_pci_ids() -> None:
    """Every card of the local pci.ids whose chip's name tells the generation; a machine without the list has no say."""
    file = next(
        (path for path in map(Path, ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")) if path.is_file()), None
    )
    if file is None:
        return
    chips = {
        "GK": "kepler",
        "GM": "maxwell",
        "GP": "pascal",
        "GV": "volta",
        "TU": "turing",
        "GA": "ampere",
        "AD": "ada",
        "GH": "hopper",
        "GB": "blackwell",
    }
    text = file.read_text(encoding="utf-8").partition("\n10de  ")[2]
    listed = re.findall(r"(?m)^\t([0-9a-f]{4})  (GK|GM|GP|GV|TU|GA|AD|GH|GB)\d{3}\w* ", text)
    wrong = [(number, chip) for number, chip in listed if generation_of(number) not in (chips[chip], "")]
    assert not wrong


def test_kernels_and_their_packages() -> None:
    """Flavours of Debian and Ubuntu, and which package brings headers of kernels to come."""
    assert [
        kernel_flavour(kernel) for kernel in ("6.8.0-49-generic", "6.1.0-56-cloud-amd64", "6.12.94+deb13-amd64", "6.1")
    ] == [
        "generic",
        "cloud-amd64",
        "amd64",
        "",
    ]
    assert header_metas("debian", "12", "6.1.0-56-amd64") == ("linux-headers-amd64",)
    assert header_metas("ubuntu", "24.04", "6.8.0-49-generic") == ("linux-headers-generic",)
    assert header_metas("ubuntu", "24.04", "6.14.0-33-generic")[0] == "linux-headers-generic-hwe-24.04"
    facts = DriverFacts(
        "ubuntu", "24.04", kernel="a", kernels=(Kernel("6.8.0-9-generic"), Kernel("6.8.0-51-generic", "dkms"))
    )
    assert facts.next_kernel.release == "6.8.0-51-generic"
    assert facts.running == Kernel("a")


@pytest.mark.parametrize(
    ("name", "kernel", "driver", "flavour"),
    [
        ("linux-image-6.8.0-51-generic", True, False, ""),
        ("linux-image-unsigned-6.8.0-51-generic", True, False, ""),
        ("linux-modules-6.8.0-51-generic", True, False, ""),
        ("linux-modules-extra-6.8.0-51-generic", True, False, ""),
        ("linux-generic-hwe-24.04", True, False, ""),
        ("linux-image-amd64", True, False, ""),
        ("proxmox-kernel-6.17", True, False, ""),
        ("linux-headers-6.8.0-49-generic", False, False, ""),
        ("linux-libc-dev", False, False, ""),
        ("linux-modules-nvidia-580-server-open-6.8.0-49-generic", False, True, "open"),
        ("linux-modules-nvidia-580-server-6.8.0-49-generic", False, True, "proprietary"),
        ("nvidia-dkms-580-server-open", False, True, "open"),
        ("nvidia-dkms-580", False, True, "proprietary"),
        ("nvidia-kernel-open-dkms", False, True, "open"),
        ("nvidia-open-kernel-dkms", False, True, "open"),
        ("nvidia-kernel-dkms", False, True, "proprietary"),
        ("libcuda1", False, True, ""),
        ("cuda-drivers", False, True, ""),
        ("linux-image-6.8.0-1016-nvidia", True, False, ""),
        ("linux-nvidia-hwe-24.04", True, False, ""),
        ("linux-image-nvidia-hwe-24.04", True, False, ""),
        ("linux-signatures-nvidia-6.8.0-49-generic", False, True, ""),
        ("nvidia-cuda-toolkit", False, False, ""),
        ("nvidia-container-toolkit", False, False, ""),
        ("nvidia-driver-pinning-580", False, False, ""),
    ],
)
def test_what_a_package_is(name: str, kernel: bool, driver: bool, flavour: str) -> None:
    """Kernels, parts of drivers, and which module they bring."""
    assert (is_kernel(name), is_driver_package(name), module_flavour_of(name)) == (kernel, driver, flavour)


def test_a_simulation() -> None:
    """What comes, what goes, what moves."""
    assert parse_simulation(SIMULATION) == [
        Step("nvidia-dkms-550", "550.163.01-0ubuntu1", ""),
        Step("linux-image-6.8.0-51-generic", "", "6.8.0-51.52"),
        Step("libc6", "2.39-0ubuntu8.3", "2.39-0ubuntu8.4"),
        Step("nvidia-dkms-580-open", "", "580.95.05-0ubuntu0.24.04.3"),
    ]


def test_why_apt_gave_up() -> None:
    """The unmet dependencies where it tells of some, else its errors, else the end of what it said; on one line."""
    head = "Reading package lists...\nSome packages could not be installed. This may mean\n"
    unmet = (
        "The following packages have unmet dependencies:\n nvidia-driver-cuda : Depends: libcuda1 (>= 580.140.02-1) but"
        " 580.105.08-1 is to be installed\n                      Depends: dkms\n"
    )
    broken = "E: Unable to correct problems, you have held broken packages.\n"
    assert complaint(head + unmet + broken) == (
        "nvidia-driver-cuda : Depends: libcuda1 (>= 580.140.02-1) but 580.105.08-1 is to be installed Depends: dkms"
    )
    assert complaint(f"{head}E: Unable to locate package x\nE: more\n") == "E: Unable to locate package x E: more"
    assert complaint("a" * 600) == "a" * 500


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([Step("nvidia-dkms-580-open", "", "580.95.05-1"), Step("nvidia-dkms-550", "550.1.1-1", "")], ""),
        ([Step("libc6", "2.39-1", "2.39-2")], ""),
        ([Step("nvidia-driver-pinning-595", "595-1", "")], ""),
        ([Step("linux-generic", "", "6.8.0.51")], "linux-generic 6.8.0.51 is a kernel"),
        ([Step("docker-ce", "28.1", "")], "docker-ce would be removed"),
        ([Step("libc6", "2.39-2", "2.39-1")], "libc6 would go back"),
        ([Step("libcuda1", "", "590.48.01-1")], "libcuda1 590.48.01-1 is of branch R590, needed R580"),
        (
            [Step("nvidia-headless-no-dkms-580-server-open", "", "595.71.05-1")],
            "is of branch R595, needed R580: the package of R580 has become transitional",
        ),
        (
            [Step("nvidia-driver-565-server", "", "580.95.05-1")],
            "nvidia-driver-565-server 580.95.05-1 is of branch R565",
        ),
        ([Step("nvidia-dkms-580-open", "", "580.105.08-1")], "would be 580.105.08, needed 580.95.05"),
        ([Step("nvidia-dkms-580", "", "580.95.05-1")], "is the proprietary module, needed the open one"),
        (
            [Step("nvidia-kernel-open-dkms", "", "580.95.05-1"), Step("libcuda1", "", "580.105.08-1")],
            "such a pair does not work",
        ),
    ],
)
def test_the_judge(steps: list[Step], said: str) -> None:
    """Each thing that may not happen, and what may."""
    found = "\n".join(judge(steps, WANTED))
    assert (said in found) if said else found == ""


def test_the_pin_is_for_the_driver_alone_and_below_what_takes_back() -> None:
    """Its version is the driver's; no kernel and no other package is named."""
    text = pin_text("580.95.05")
    assert re.findall(r"(?m)^Package: (.*)$", text) == ["*nvidia* libcuda1 libnvcuvid1 cuda-drivers*"] * 2
    assert re.findall(r"(?m)^Pin: (.*)$", text) == ["version 580.95.05*", "version 580.*"]
    assert re.findall(r"(?m)^Pin-Priority: (.*)$", text) == ["999", "998"]
    assert re.findall(r"(?m)^Pin-Priority: (.*)$", pin_text("580.95.05", MOVED)) == ["1001"]
