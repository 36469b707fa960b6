# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bare Debian hosts for tests: the smallest system that mmdebstrap makes, started by podman with runc.

    with Host("trixie", packages=("python3", "git")) as host:
        host.copy_checkout("/home/owner/rig")
        answer = host.run(["./rig", "up"], user="owner", cwd="/home/owner/rig")

An image is made once and kept below the cache folder by the hash of all that it is made from. Nothing here names an
index: Debian's mirror is the one of this machine's apt, and the machine's CA bundle and index settings are mounted.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ansible_collections.gpurig.llm.scripts.test_levels import CACHE, ROOT, tracked_files

TOOLS = ("podman", "runc", "mmdebstrap")
OWNER = "owner"  # the ordinary user of every host
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SETTINGS = ("/etc/pip.conf", "/etc/uv/uv.toml")  # where a machine may name its index
# The clock of a test machine may be far from that of the mirror.
NO_CLOCK = ('Acquire::Check-Valid-Until "false";', 'Acquire::Check-Date "false";')
DPKG = ("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/locale/*")
HOOKS = (
    f"printf '%s\\n' {' '.join(repr(line) for line in NO_CLOCK)} > \"$1\"/etc/apt/apt.conf.d/99test-clock",
    f'chroot "$1" useradd --create-home --shell /bin/bash {OWNER}',
)
# Something has to be process 1 that takes in orphans, as any init would; bash does.
INIT = ("bash", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")


class HostError(Exception):
    """A host that could not be made or started."""


def why_not() -> str | None:
    """What keeps this machine from running hosts; None when nothing does."""
    absent = [name for name in TOOLS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "needs root: makes and starts Debian hosts"
    return f"needs {', '.join(absent)}: apt install {' '.join(absent)}" if absent else None


def podman(
    *words: str | Path, timeout_s: float = 120, stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run podman with our settings, and without those of whoever logged in."""
    env = {**os.environ, "CONTAINERS_CONF": str(ROOT / "tests/hosts/containers.conf")}
    command = ["podman", *map(str, words)]
    give = stdin or b""
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=timeout_s, input=give)


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


def make_image(suite: str, packages: Sequence[str]) -> str:
    """Name of an image of this suite with these packages, made when it is in neither podman's store nor the cache."""
    options = [
        *("--variant=minbase", "--mode=root", f"--include={','.join(sorted(packages))}"),
        *(f"--aptopt={line}" for line in NO_CLOCK),
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt={line}" for line in DPKG),
        *(f"--customize-hook={hook}" for hook in HOOKS),
    ]
    digest = hashlib.sha256("\n".join([suite, *options]).encode()).hexdigest()[:16]
    image, archive = f"localhost/gpurig-{suite}:{digest}", CACHE / f"minbase/{suite}-{digest}.tar"
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
    done_import = podman("import", archive, image, timeout_s=300)
    if done_import.returncode:
        raise HostError(f"podman could not import {archive}: {done_import.stderr.decode(errors='replace')}")
    return image


class Host:
    """One running host. Use as a context manager, or call close(); it is gone afterwards whatever happened."""

    def __init__(
        self,
        suite: str,
        packages: Sequence[str] = ("ca-certificates", "git", "python3"),
        volumes: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = f"gpurig-{suite}-{uuid.uuid4().hex[:8]}"
        image = make_image(suite, packages)
        mounts = {place: place for place in SETTINGS if Path(place).is_file()}
        self.environment = dict(environment or {})
        bundle = os.environ.get("SSL_CERT_FILE", "")
        if Path(bundle).is_file():
            mounts[bundle] = CA_BUNDLE
            self.environment.setdefault("SSL_CERT_FILE", CA_BUNDLE)
        volume_options = [
            word for source, target in {**mounts, **(volumes or {})}.items() for word in ("-v", f"{source}:{target}:ro")
        ]
        started = podman("run", "-d", "--name", self.name, "--hostname", suite, *volume_options, image, *INIT)
        if started.returncode:
            self.close()
            raise HostError(f"podman could not start {image}: {started.stderr.decode(errors='replace')}")

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the host. Twice, because the first try fails when a process of it died behind podman's back."""
        for _try in range(2):
            podman("rm", "-f", "-v", "-t", "0", self.name)

    def run(
        self,
        command: Sequence[str],
        user: str = "root",
        cwd: str = "/",
        env: Mapping[str, str] | None = None,
        timeout_s: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host as `user`, with that user's home and otherwise almost no environment."""
        home = "/root" if user == "root" else f"/home/{user}"
        variables = {"HOME": home, **self.environment, **(env or {})}
        options = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
        done = podman("exec", "-u", user, "-w", cwd, *options, self.name, *command, timeout_s=timeout_s)
        texts = (done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))
        return subprocess.CompletedProcess(done.args, done.returncode, *texts)

    def check(self, command: Sequence[str], **options: object) -> str:
        """Run a program that must succeed; returns what it wrote."""
        done = self.run(command, **options)  # type: ignore[arg-type]
        if done.returncode:
            raise HostError(
                f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def install(self, *packages: str) -> None:
        """Install Debian packages, as the remedies in our messages say it."""
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        self.check(["apt-get", "update", "-q"], env=quiet)
        self.check(["apt-get", "install", "-y", "-q", *packages], env=quiet)

    def copy_checkout(self, target: str, user: str = OWNER) -> None:
        """Put what belongs to our checkout into a new folder of the host, owned by `user`."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path in tracked_files():
                archive.add(ROOT / path, str(path), recursive=False)
        self.check(["mkdir", "-p", target])
        words = ["exec", "-i", self.name, "tar", "--no-same-owner", "-xf", "-", "-C", target]
        done = podman(*words, stdin=buffer.getvalue())
        if done.returncode:
            raise HostError(f"the checkout could not be copied: {done.stderr.decode(errors='replace')}")
        self.check(["chown", "-R", f"{user}:{user}", target])


def python_archive(folder: Path) -> Path | None:
    """A local stand-in for the builds of Python that uv downloads: pyenv's 3.12 packed as one of them.

    Writes the archive and a downloads.json into `folder`, which is to be mounted as /srv/uv; returns that JSON, or None
    without a Python 3.12 in pyenv. For uv: UV_PYTHON_DOWNLOADS_JSON_URL=/srv/uv/downloads.json.
    """
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [path for path in sorted(root.glob("3.12.*")) if re.fullmatch(r"3\.12\.\d+", path.name)]
    if not found or shutil.which("patchelf") is None:
        return None
    version = found[-1].name
    folder.chmod(0o755)  # read by the host's ordinary user
    archive = folder / "cpython.tar.gz"
    stage = folder / "python"
    unwanted = shutil.ignore_patterns("test", "__pycache__", "*.a", "site-packages")
    shutil.copytree(found[-1], stage, symlinks=True, ignore=unwanted)
    for library in stage.glob("lib/python3.*"):
        (library / "site-packages").mkdir()
    # Its own path to libpython is a folder of the machine that built it.
    subprocess.run(
        ["patchelf", "--set-rpath", "$ORIGIN/../lib", stage / "bin/python3.12"], check=True, capture_output=True
    )
    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        packed.add(stage, "python")
    shutil.rmtree(stage)
    micro = int(version.rpartition(".")[2])
    entry = {
        "name": "cpython",
        "arch": {"family": "x86_64", "variant": None},
        "os": "linux",
        "libc": "gnu",
        "major": 3,
        "minor": 12,
        "patch": micro,
        "prerelease": "",
        "variant": None,
        "build": "20260101",
        "url": "file:///srv/uv/cpython.tar.gz",
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    listing = folder / "downloads.json"
    listing.write_text(json.dumps({f"cpython-{version}-linux-x86_64-gnu": entry}), encoding="utf-8")
    return listing
