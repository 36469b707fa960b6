# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bare Debian hosts for tests: the smallest system that mmdebstrap makes, started by podman with runc.

    with Host("trixie", packages=("python3", "git")) as host:
        host.copy_checkout("/home/owner/rig")
        answer = host.run(["./rig", "up"], user="owner", cwd="/home/owner/rig")

Nothing here names an index: the machine's CA bundle and index settings are mounted.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from ansible_collections.gpurig.llm.scripts.test_levels import ROOT, tracked_files
from ansible_collections.gpurig.llm.tests.hosts.images import OWNER, HostError, make_image, podman

TOOLS = ("podman", "runc", "mmdebstrap")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
SETTINGS = ("/etc/pip.conf", "/etc/uv/uv.toml")  # where a machine may name its index
# Something has to be process 1 that takes in orphans, as any init would; bash does.
INIT = ("bash", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done")


def why_not() -> str | None:
    """What keeps this machine from running hosts; None when nothing does."""
    absent = [name for name in TOOLS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return "needs root: makes and starts Debian hosts"
    return f"needs {', '.join(absent)}: apt install {' '.join(absent)}" if absent else None


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
        image = make_image("bare", suite, packages)
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
