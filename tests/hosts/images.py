# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What test hosts are made from: Debian images by mmdebstrap, and a Python as uv downloads them.

    python tests/hosts/images.py SORT SUITE    prints the name of the image, for example of: systemd trixie
    python tests/hosts/images.py python        prints the folder with the Python, to be mounted at /srv/uv

Everything is made once and kept below the cache folder by the hash of all that it is made from. Nothing here names an
index: Debian's mirror is the one of this machine's apt.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpurig.llm.scripts.test_levels import CACHE, ROOT

OWNER = "owner"  # the ordinary user of every bare host
INIT = Path(__file__).with_name("init-cg2")
# The clock of a test machine may be far from that of the mirror.
NO_CLOCK = ('Acquire::Check-Valid-Until "false";', 'Acquire::Check-Date "false";')
NO_DOCUMENTS = ("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/locale/*")
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
# Where the folder of the Python is mounted.
PYTHON_MOUNT = "/srv/uv"


class HostError(Exception):
    """A host, or what it is made from, that could not be made."""


@dataclass(frozen=True)
class Sort:
    """What an image has beyond the smallest Debian: packages, hooks of mmdebstrap, settings of podman import."""

    packages: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()


POD = ("ca-certificates", "iproute2", "libnuma1", "procps", "python3", "python3-venv")
SORTS = {
    # With an ordinary user and else only what a test asks for.
    "bare": Sort(hooks=(f'chroot "$1" useradd --create-home --shell /bin/bash {OWNER}',)),
    # What an installed server has and a container lacks, and not what a role has to bring: no pip, no venv, no curl.
    "systemd": Sort(
        ("ca-certificates", "dbus", "iproute2", "procps", "python3", "python3-apt", "systemd", "systemd-sysv"),
        (
            'rm -f "$1"/etc/machine-id; : > "$1"/etc/machine-id',
            f'for unit in {" ".join(MASKED)}; do ln -sf /dev/null "$1"/etc/systemd/system/$unit; done',
            'ln -sf /lib/systemd/system/multi-user.target "$1"/etc/systemd/system/default.target',
            f"copy-in {shlex.quote(str(INIT))} /",
        ),
        (f'CMD ["/{INIT.name}"]', "STOPSIGNAL SIGRTMIN+3"),
    ),
    # What the images of providers have: no init, a Python that can make environments, and what torch's programs link.
    "pod": Sort(POD),
    # The same, reached by ssh from outside, with host keys made when it starts.
    "rented": Sort((*POD, "openssh-server"), ('rm -f "$1"/etc/ssh/ssh_host_*',)),
}


def podman(
    *words: str | Path, timeout_s: float = 120, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run podman with our settings, and without those of whoever logged in."""
    env = {**os.environ, "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf")}
    command = ["podman", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=timeout_s, input=stdin or b"")


def mirrors(suite: str) -> list[str]:
    """The lines of sources.list, with the Debian mirrors that this machine's own apt uses where it names some."""
    main, security = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)", "Created-By: Packages"]
        known = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        ours = sorted({line.split()[1] for line in known if line.startswith("Debian ")})
        main = next((site for site in ours if "security" not in site), main)
        security = next((site for site in ours if "security" in site), security)
    return [
        f"deb {main} {suite} main",
        f"deb {main} {suite}-updates main",
        f"deb {security} {suite}-security main",
    ]


@contextmanager
def alone(what: str) -> Iterator[None]:
    """Let others wait who want to make the same: scenarios run side by side."""
    (CACHE / "images").mkdir(parents=True, exist_ok=True)
    with (CACHE / f"images/.{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_image(sort: str, suite: str, packages: Sequence[str] = ()) -> str:
    """Name of the image, made when it is in neither podman's store nor the cache. `packages`: beyond the sort's own.

    Raises HostError.
    """
    recipe = SORTS[sort]
    clock = f'printf "%s\\n" {shlex.join(NO_CLOCK)} > "$1"/etc/apt/apt.conf.d/99test-clock'
    options = [
        *("--variant=minbase", "--mode=root", f"--include={','.join(sorted({*recipe.packages, *packages}))}"),
        *(f"--aptopt={line}" for line in NO_CLOCK),
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt={line}" for line in NO_DOCUMENTS),
        *(f"--customize-hook={hook}" for hook in (clock, *recipe.hooks)),
    ]
    made_from = "\n".join([suite, *options, *recipe.changes]).replace(str(INIT), INIT.read_text(encoding="utf-8"))
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    image, archive = f"localhost/gpurig-{sort}-{suite}:{digest}", CACHE / f"images/{sort}-{suite}-{digest}.tar"
    with alone(f"{sort}-{suite}"):
        if podman("image", "exists", image).returncode != 0:
            _make_image(image, archive, [*options, suite], recipe.changes)
    return image


def _make_image(image: str, archive: Path, options: Sequence[str], changes: Sequence[str]) -> None:
    if not archive.is_file():
        part = archive.with_suffix(".part.tar")
        part.unlink(missing_ok=True)
        command = ["mmdebstrap", "--quiet", *options, str(part), *mirrors(options[-1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
        if done.returncode:
            raise HostError(f"mmdebstrap could not make {image}: {done.stderr[-2000:]}")
        part.rename(archive)
    words = [word for change in changes for word in ("--change", change)]
    imported = podman("import", *words, archive, image, timeout_s=300)
    if imported.returncode:
        raise HostError(f"podman could not import {archive}: {imported.stderr.decode(errors='replace')}")


def python_archive() -> Path | None:
    """A local stand-in for the builds of Python that uv downloads: pyenv's 3.12, and 3.11 where it has one, packed so.

    Returns the folder that is to be mounted at PYTHON_MOUNT, or None without patchelf or a Python 3.12 in pyenv. For
    uv: UV_PYTHON_DOWNLOADS_JSON_URL=/srv/uv/downloads.json.
    """
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    newest = {}
    for path in sorted(root.glob("3.1[12].*")):
        if re.fullmatch(r"3\.1[12]\.\d+", path.name):
            newest[path.name.rpartition(".")[0]] = path
    if "3.12" not in newest or shutil.which("patchelf") is None:
        return None
    digest = hashlib.sha256("".join(map(str, newest.values())).encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = CACHE / f"images/python-{digest}"
    with alone("python"):
        if not folder.is_dir():
            part = folder.with_name(f"{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            part.chmod(0o755)  # read by any user of a host
            listing = dict(pack_python(prefix, part) for prefix in newest.values())
            (part / "downloads.json").write_text(json.dumps(listing), encoding="utf-8")
            part.rename(folder)
    return folder


def pack_python(prefix: Path, folder: Path) -> tuple[str, dict[str, object]]:
    """Pack the Python below `prefix` (its last part is the version) as uv downloads them; return its list entry."""
    archive, stage = folder / f"cpython-{prefix.name}.tar.gz", folder / "python"
    minor, patch = (int(part) for part in prefix.name.split(".")[1:])
    unwanted = shutil.ignore_patterns("test", "__pycache__", "*.a", "site-packages")
    shutil.copytree(prefix, stage, symlinks=True, ignore=unwanted)
    for library in stage.glob("lib/python3.*"):
        (library / "site-packages").mkdir()
    # Its own path to libpython is a folder of the machine that built it.
    rpath = ["patchelf", "--set-rpath", "$ORIGIN/../lib", stage / f"bin/python3.{minor}"]
    subprocess.run(rpath, check=True, capture_output=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(stage, "python")
    shutil.rmtree(stage)
    return f"cpython-{prefix.name}-linux-x86_64-gnu", {
        "name": "cpython",
        "arch": {"family": "x86_64", "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": 3,
        "minor": minor,
        "patch": patch,
        "prerelease": "",
        "variant": None,
        "build": "20260101",
        "url": f"file://{PYTHON_MOUNT}/{archive.name}",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }


def main(words: Sequence[str]) -> int:
    """Make what the command line names and print where it is; an empty line for a Python that cannot be packed."""
    try:
        if list(words) == ["python"]:
            print(python_archive() or "")
        elif len(words) == 2 and words[0] in SORTS:
            print(make_image(*words))
        else:
            print(f"usage: images.py {{{','.join(SORTS)}}} SUITE | python", file=sys.stderr)
            return 2
    except HostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
