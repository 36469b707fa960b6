# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stand-ins for Docker's and NVIDIA's apt repositories: small packages under the real names, signed with a fresh key.

    python tests/hosts/docker_repository.py FOLDER

FOLDER is to be mounted or copied to /srv/apt. It gets docker/debian (suite bookworm) and nvidia as their makers lay
them out, each with its public key, and the fingerprints, as gpg prints them, in FOLDER/fingerprints.json.

The names and what depends on what are those of the makers' packages (docker/docs content/manuals/engine/install and
NVIDIA/cloud-native-docs container-toolkit/install-guide.md). The programs only answer what the role asks them; a real
engine is what the scenario's other hosts have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCKERD = """\
#!/bin/sh
# Checks its settings as dockerd does, then waits.
config=/etc/docker/daemon.json
case "$*" in *--config-file*) config=${*##*--config-file } ;; esac
case "$*" in
  *--version*) echo "Docker version 29.1.3, build 0000000"; exit 0 ;;
  *--validate*) exec python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "$config" ;;
esac
exec sleep infinity
"""
DOCKER = """\
#!/bin/sh
case "$1" in
  info)
    systemctl is-active --quiet docker || exit 1
    echo '{"ServerVersion": "29.1.3", "CDISpecDirs": ["/etc/cdi", "/var/run/cdi"], "LiveRestoreEnabled": true}' ;;
  compose) exec /usr/libexec/docker/cli-plugins/docker-compose "$@" ;;
  ps|images) ;;
  *) exit 125 ;;
esac
"""
COMPOSE = "#!/bin/sh\necho 2.40.3\n"
UNIT = """\
[Service]
ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock
ExecReload=/bin/kill -s HUP $MAINPID
[Install]
WantedBy=multi-user.target
"""
ENABLE = "#!/bin/sh\nsystemctl daemon-reload\nsystemctl enable --now {unit}\n"
CTK = """\
#!/bin/sh
[ "$1 $2" = "cdi list" ] || exit 1
test -e /var/run/cdi/nvidia.yaml && printf 'nvidia.com/gpu=0\\nnvidia.com/gpu=all\\n'
"""
CDI = """\
#!/bin/sh
mkdir -p /var/run/cdi
cat > /var/run/cdi/nvidia.yaml <<END
cdiVersion: "0.5.0"
kind: nvidia.com/gpu
devices:
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidiactl
END
"""
REFRESH = "[Service]\nType=oneshot\nExecStart=/usr/libexec/stand-in-cdi\n"
REFRESH_PATH = "[Path]\nPathChanged=/lib/modules\n[Install]\nWantedBy=multi-user.target\n"


@dataclass(frozen=True)
class Package:
    """One stand-in. `files`: absolute path -> text; what begins with #! is a program."""

    name: str
    version: str
    depends: str = ""
    conflicts: str = ""
    files: dict[str, str] = field(default_factory=dict)
    postinst: str = ""


def docker_packages() -> list[Package]:
    """Docker's, in the branch that is wanted, an older and a newer version, and one branch further on."""
    found = []
    for version in ("29.0.0", "29.1.3", "30.0.0"):
        full = f"5:{version}-1~debian.12~bookworm"
        found += [
            Package(
                "docker-ce",
                full,
                "containerd.io, docker-ce-cli",
                "docker.io",
                {
                    "/usr/bin/dockerd": DOCKERD.replace("29.1.3", version),
                    "/usr/lib/systemd/system/docker.service": UNIT,
                },
                ENABLE.format(unit="docker.service"),
            ),
            Package("docker-ce-cli", full, "", "docker.io", {"/usr/bin/docker": DOCKER.replace("29.1.3", version)}),
        ]
    plugin = {"/usr/libexec/docker/cli-plugins/docker-compose": COMPOSE}
    return [
        *found,
        Package("containerd.io", "2.2.0-1~debian.12~bookworm", "", "containerd, runc"),
        Package("docker-buildx-plugin", "0.30.0-1~debian.12~bookworm"),
        Package("docker-compose-plugin", "2.40.3-1~debian.12~bookworm", files=plugin),
    ]


def toolkit_packages() -> list[Package]:
    """NVIDIA's four, in the version that is wanted and a newer one."""
    found = []
    for version in ("1.20.0-1", "1.21.0-1"):
        base = {
            "/usr/bin/nvidia-ctk": CTK,
            "/usr/libexec/stand-in-cdi": CDI,
            "/usr/lib/systemd/system/nvidia-cdi-refresh.service": REFRESH,
            "/usr/lib/systemd/system/nvidia-cdi-refresh.path": REFRESH_PATH,
        }
        found += [
            Package(
                "nvidia-container-toolkit",
                version,
                f"nvidia-container-toolkit-base (= {version}), libnvidia-container-tools (= {version})",
            ),
            Package("nvidia-container-toolkit-base", version, files=base),
            Package("libnvidia-container-tools", version, f"libnvidia-container1 (= {version})"),
            Package("libnvidia-container1", version),
        ]
    return found


def build(package: Package, pool: Path, work: Path) -> str:
    """Build the package into the pool; returns its paragraph for the index, without the path."""
    tree = work / f"{package.name}_{package.version}"
    control = [
        f"Package: {package.name}",
        f"Version: {package.version}",
        "Architecture: all",
        "Maintainer: gpurig.llm maintainers <nobody@example.org>",
        *([f"Depends: {package.depends}"] if package.depends else []),
        *([f"Conflicts: {package.conflicts}"] if package.conflicts else []),
        "Description: stand-in for tests",
    ]
    for path, text in {**package.files, "/DEBIAN/control": "\n".join(control) + "\n"}.items():
        write(tree / path.lstrip("/"), text)
    if package.postinst:
        write(tree / "DEBIAN/postinst", package.postinst)
    deb = pool / f"{package.name}_{package.version.replace(':', '.')}_all.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    data = deb.read_bytes()
    return "\n".join([*control, f"Size: {len(data)}", f"SHA256: {hashlib.sha256(data).hexdigest()}"])


def write(path: Path, text: str) -> None:
    """A file of a package, and its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755 if text.startswith("#!") else 0o644)


def repository(root: Path, release: Path, index: Path, packages: Sequence[Package], gpg: Sequence[str]) -> None:
    """Lay out one repository below `root`; `release` and `index` are where Release and Packages lie in it."""
    pool = root / "pool"
    pool.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as work:
        paragraphs = [
            f"{build(package, pool, Path(work))}\nFilename: ./pool/{package.name}_"
            f"{package.version.replace(':', '.')}_all.deb\n"
            for package in packages
        ]
    text = "\n".join(paragraphs).encode()
    (root / index).parent.mkdir(parents=True, exist_ok=True)
    (root / index).write_bytes(text)
    inside = (root / index).relative_to(root / release)
    lines = [
        "Origin: stand-in",
        "Suite: bookworm",
        "Codename: bookworm",
        "Components: stable",
        "Architectures: all amd64",
        "SHA256:",
        f" {hashlib.sha256(text).hexdigest()} {len(text)} {inside}",
    ]
    (root / release / "Release").write_text("\n".join(lines) + "\n", encoding="utf-8")
    signed = [*gpg, "--clearsign", "--output", root / release / "InRelease", root / release / "Release"]
    subprocess.run(signed, check=True, capture_output=True)


def main(folder: Path) -> None:
    """Make both repositories in a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = {}
    for name in ("docker", "nvidia"):
        with tempfile.TemporaryDirectory() as home:
            gpg = ["gpg", "--homedir", home, "--batch", "--yes", "--pinentry-mode", "loopback", "--passphrase", ""]
            user = f"Stand-in of {name} <{name}@example.org>"
            subprocess.run(
                [*gpg, "--quick-generate-key", user, "ed25519", "sign", "never"], check=True, capture_output=True
            )
            listed = subprocess.run([*gpg, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True)
            told[name] = next(line.split(":")[9] for line in listed.stdout.splitlines() if line.startswith("fpr:"))
            public = subprocess.run([*gpg, "--armor", "--export"], check=True, capture_output=True).stdout
            if name == "docker":
                root, key = folder / "docker/debian", folder / "docker/debian/gpg"
                release, index = Path("dists/bookworm"), Path("dists/bookworm/stable/binary-amd64/Packages")
                repository(root, release, index, docker_packages(), gpg)
            else:
                root, key = folder / "nvidia/stable/deb/amd64", folder / "nvidia/gpgkey"
                repository(root, Path(), Path("Packages"), toolkit_packages(), gpg)
            key.write_bytes(public)
            subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True)
    (folder / "fingerprints.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]))
