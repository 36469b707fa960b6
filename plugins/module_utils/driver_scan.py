# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A read-only look at a host's NVIDIA driver, its packages and what apt would do. (outside)

Files lie below given roots. apt's own programs are asked where they are there; they find the system that APT_CONFIG
names, as always.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .driver_facts import (
    UNKNOWN,
    DriverCard,
    DriverFacts,
    Kernel,
    Offer,
    deb_architectures,
    generation_of,
    library_versions,
    own_cards,
    parse_dpkg_status,
    parse_module_version,
    parse_os_release,
    parse_policy,
)
from .driver_packages import DKMS, names_of_interest
from .firmware_model import parse_efi_flag, parse_pci_ids
from .firmware_scan import NVIDIA, PCI_IDS, SECURE_BOOT
from .gpu_scan import scan_pci

_MOK_LIST = "firmware/efi/efivars/MokListRT-605dab50-e046-4300-abb6-3dd810dd8b23"
_MOK_KEYS = ("var/lib/shim-signed/mok/MOK.der", "var/lib/dkms/mok.pub")
_LIBRARY_PLACES = ("usr/lib", "usr/lib/*", "usr/lib/*/nvidia/*", "usr/lib64", "usr/local/nvidia/lib64")
_APT_TIMEOUT_S = 120
_NO_CACHE = ("-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
"""Asked as root, apt would otherwise write its cache anew."""


def scan(
    fs_root: str = "/",
    sysfs_root: str = "/sys",
    proc_root: str = "/proc",
    can_install_driver: bool = True,
    ask_apt: bool = True,
) -> DriverFacts:
    """The facts that a plan is made of. What is missing or not readable stays empty.

    apt, which takes seconds, is asked only where there are cards whose driver may be installed.
    """
    root, sys, proc = Path(fs_root), Path(sysfs_root), Path(proc_root)
    release = parse_os_release(_text(root / "etc/os-release"))
    distribution, version_id = release.get("ID", ""), release.get("VERSION_ID", "")
    kernel = _text(proc / "sys/kernel/osrelease").strip()
    module_version, module_flavour = parse_module_version(_text(proc / "driver/nvidia/version"))
    module_version = module_version or _text(sys / "module/nvidia/version").strip()
    architectures = deb_architectures(platform.machine())
    packages, held, headers = parse_dpkg_status(_text(root / "var/lib/dpkg/status"), architectures)
    kernels = _kernels(root / "lib/modules")
    cards = tuple(_cards(str(sysfs_root), root))
    offers: list[Offer] = []
    if ask_apt and can_install_driver and own_cards(cards):
        offers = parse_policy(_policy([*names_of_interest(distribution, version_id, kernel), *packages]), distribution)
        wanted_headers = {f"linux-headers-{one.release}" for one in kernels} - {offer.package for offer in offers}
        offers += parse_policy(_policy(sorted(wanted_headers)), distribution)
    return DriverFacts(
        distribution=distribution,
        release=version_id,
        arch=platform.machine(),
        kernel=kernel,
        kernels=kernels,
        cards=cards,
        secure_boot=_secure_boot(sys),
        mok_enrolled=_mok_enrolled(sys, root),
        module_version=module_version,
        module_flavour=module_flavour,
        library_version=library_versions(
            file.name
            for place in _LIBRARY_PLACES
            for name in ("libnvidia-ml.so.*", "libcuda.so.*")
            for file in root.glob(f"{place}/{name}")
        ),
        packages=packages,
        held=tuple(held),
        offers=tuple(offer for offer in offers if not offer.package.startswith("linux-headers-")),
        headers_installed=frozenset(headers),
        headers_offered=frozenset(offer.package for offer in offers if offer.package.startswith("linux-headers-")),
        can_install_driver=can_install_driver,
    )


def _cards(sysfs_root: str, root: Path) -> Iterable[DriverCard]:
    functions = scan_pci(sysfs_root)
    lists = (_text(root / place.lstrip("/")) for place in PCI_IDS) if functions else iter(())
    names = parse_pci_ids(next(filter(None, lists), ""), NVIDIA)
    for function in functions:
        device_id = function.device_id
        name = names.get(device_id, "")
        yield DriverCard(function.pci, device_id, generation_of(device_id), name, function.kernel_driver)


def _kernels(modules: Path) -> tuple[Kernel, ...]:
    """Kernels whose modules are installed; a folder that only DKMS left behind has no `kernel` below it."""
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        folders = sorted(folder for folder in modules.iterdir() if (folder / "kernel").is_dir())
    return tuple(Kernel(folder.name, _module_of(folder)) for folder in folders)


def _module_of(folder: Path) -> str:
    """DKMS puts its modules below updates/dkms, Ubuntu's packages theirs below kernel/nvidia-*."""
    for module in folder.rglob("nvidia*.ko*"):
        if module.name.split(".")[0] in ("nvidia", "nvidia-current"):
            return DKMS if "dkms" in module.relative_to(folder).parts[:-1] else "packaged"
    return ""


def _secure_boot(sys: Path) -> str:
    """A firmware whose variables can be seen and that has none for Secure Boot does not know it."""
    if not (sys / "firmware/efi").is_dir():
        return "disabled"
    data = _bytes(sys / SECURE_BOOT)
    flag = parse_efi_flag(data)
    if flag is None:
        return "disabled" if not data and any((sys / "firmware/efi/efivars").glob("*")) else UNKNOWN
    return "enabled" if flag else "disabled"


def _mok_enrolled(sys: Path, root: Path) -> bool:
    """The firmware's list of owner keys holds the certificates themselves, so ours is a part of it or not."""
    known = _bytes(sys / _MOK_LIST)
    return any(key and key in known for key in (_bytes(root / place) for place in _MOK_KEYS))


# --- apt ------------------------------------------------------------------------------------------------------------


def _policy(names: Sequence[str]) -> str:
    if not names or not shutil.which("apt-cache"):
        return ""
    return _run(["apt-cache", *_NO_CACHE, "policy", *names])[1]


def simulate(arguments: Sequence[str], preferences: str) -> tuple[int, str]:
    """Exit code and text of `apt-get --simulate install` under these preferences, beside those of the system."""
    main = Path(
        _run(["apt-config", "shell", "FILE", "Dir::Etc::preferences/f"])[1].partition("=")[2].strip().strip("'")
    )
    with tempfile.NamedTemporaryFile("w", suffix=".pref", encoding="utf-8") as file:
        file.write(f"{preferences}\n{_text(main)}")
        file.flush()
        Path(file.name).chmod(0o644)
        options = ["-o", f"Dir::Etc::preferences={file.name}", "--allow-downgrades", "--no-install-recommends"]
        return _run(["apt-get", "--simulate", *_NO_CACHE, *options, "install", *arguments])


def _run(command: Sequence[str]) -> tuple[int, str]:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_APT_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.returncode, done.stdout + ("" if done.returncode == 0 else done.stderr)


# --- files ----------------------------------------------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", "replace")
