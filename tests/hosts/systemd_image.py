# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of Debian hosts that boot systemd in a container: `python tests/hosts/systemd_image.py SUITE` prints the name.

An image is made once and kept below the cache folder by the hash of all that it is made from. It holds what an
installed Debian server has and a container lacks, and not what a role has to bring: no pip, no venv, no curl.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ansible_collections.gpurig.llm.scripts.test_levels import CACHE
from ansible_collections.gpurig.llm.tests.hosts.minbase import DPKG, NO_CLOCK, HostError, mirrors, podman

INIT = Path(__file__).with_name("init-cg2")
PACKAGES = ("ca-certificates", "dbus", "iproute2", "procps", "python3", "python3-apt", "systemd", "systemd-sysv")
# What a container cannot do or must not do to the machine below it, and what would work in the background.
MASKED = (
    *("systemd-sysctl.service", "systemd-modules-load.service", "systemd-remount-fs.service"),
    *("systemd-udevd.service", "systemd-udev-trigger.service"),
    *("systemd-udevd-control.socket", "systemd-udevd-kernel.socket"),
    *("proc-sys-fs-binfmt_misc.automount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount"),
    *("getty.target", "console-getty.service", "systemd-logind.service", "systemd-networkd-wait-online.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer"),
)
HOOKS = (
    'rm -f "$1"/etc/machine-id; : > "$1"/etc/machine-id',
    f'for unit in {" ".join(MASKED)}; do ln -sf /dev/null "$1"/etc/systemd/system/$unit; done',
    f'printf "%s\\n" {shlex.join(NO_CLOCK)} > "$1"/etc/apt/apt.conf.d/99test-clock',
    'ln -sf /lib/systemd/system/multi-user.target "$1"/etc/systemd/system/default.target',
    f"copy-in {INIT} /",
)
CHANGES = ("--change", f'CMD ["/{INIT.name}"]', "--change", "STOPSIGNAL SIGRTMIN+3")


def make_image(suite: str) -> str:
    """Name of the image of a suite, made when it is in neither podman's store nor the cache. Raises HostError."""
    options = [
        *("--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"),
        *(f"--aptopt={line}" for line in NO_CLOCK),
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt={line}" for line in DPKG),
        *(f"--customize-hook={hook}" for hook in HOOKS),
    ]
    made_from = "\n".join([suite, *options, *CHANGES]).replace(str(INIT), INIT.name) + INIT.read_text(encoding="utf-8")
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    image, archive = f"localhost/gpurig-systemd-{suite}:{digest}", CACHE / f"systemd/{suite}-{digest}.tar"
    if podman("image", "exists", image).returncode == 0:
        return image
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        for old in archive.parent.glob(f"{suite}-*.part.tar"):
            old.unlink()
        part = archive.with_suffix(".part.tar")
        command = ["mmdebstrap", "--quiet", *options, suite, str(part), *mirrors(suite)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            raise HostError(f"mmdebstrap could not make {suite}: {done.stderr[-2000:]}")
        part.rename(archive)
    imported = podman("import", *CHANGES, archive, image, timeout_s=300)
    if imported.returncode:
        raise HostError(f"podman could not import {archive}: {imported.stderr.decode(errors='replace')}")
    return image


def main() -> int:
    """Make the image of the suite that the command line names and print its name."""
    if len(sys.argv) != 2:
        print("usage: systemd_image.py SUITE", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        print(make_image(sys.argv[1]))
    except HostError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{time.monotonic() - started:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
