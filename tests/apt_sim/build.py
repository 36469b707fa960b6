# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Archives of small stand-in packages for apt, made from packages.yml without any tool.

    python -m ansible_collections.gpurig.llm.tests.apt_sim.build FOLDER

Below FOLDER each archive of packages.yml has NVIDIA's repository for Debian 12 and 13 and a small one of Debian's. In a
test host the folder lies at /srv/apt, and /srv/apt/now points at the archive of the moment.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

HERE = "/srv/apt/now"
DATA = Path(__file__).with_name("packages.yml")
RELEASES = ("debian12", "debian13")
LIBRARY = "simulated-library"
UNIT = """[Unit]
Description=Stand-in
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
"""
# DKMS builds for every kernel whose headers are there, and takes away what it built.
BUILD = """#!/bin/sh
for headers in /usr/src/linux-headers-*; do
    [ -d "$headers" ] || continue
    folder=/lib/modules/${headers#/usr/src/linux-headers-}/updates/dkms
    mkdir -p "$folder"
    echo "@VERSION@ @SORT@" > "$folder/nvidia.ko"
done
"""
UNBUILD = '#!/bin/sh\n[ "$1" = upgrade ] || rm -f /lib/modules/*/updates/dkms/nvidia.ko\n'


def archive(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """A tar.gz of path -> (content, mode), the same for the same content."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:xz", format=tarfile.GNU_FORMAT) as tar:
        folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
        for folder in folders:
            info = tarfile.TarInfo(f"./{folder}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, (content, mode) in sorted(files.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def deb(control: str, scripts: Mapping[str, str], files: Mapping[str, str]) -> bytes:
    """A .deb file (deb(5))."""
    head = {"control": (control.encode(), 0o644), **{name: (text.encode(), 0o755) for name, text in scripts.items()}}
    parts = (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", archive(head)),
        ("data.tar.xz", archive({name: (text.encode(), 0o644) for name, text in files.items()})),
    )
    made = b"!<arch>\n"
    for name, content in parts:
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        made += content + b"\n" * (len(content) % 2)
    return made


def package(name: str, version: str, entry: Mapping[str, Any]) -> tuple[str, bytes]:
    """(control, .deb) of one package."""
    fields = {"Package": name, "Version": version, "Architecture": "amd64", "Maintainer": "gpurig.llm maintainers"}
    fields |= {key.title(): str(entry[key]).replace("{v}", version) for key in ("depends", "conflicts") if key in entry}
    control = "".join(f"{key}: {value}\n" for key, value in fields.items()) + f"Description: stand-in for {name}\n"
    upstream = version.partition("-")[0]
    files = {f"usr/share/doc/{name}/stand-in": f"{version}\n", **entry.get("files", {})}
    scripts = {}
    if entry.get("library"):
        for library in ("libnvidia-ml", "libcuda"):
            files[f"usr/lib/x86_64-linux-gnu/{library}.so.{upstream}"] = "stand-in\n"
    if entry.get("headers"):
        files[f"usr/src/{name}/stand-in"] = "\n"
    if entry.get("unit"):
        files["usr/lib/systemd/system/nvidia-persistenced.service"] = UNIT
    if "module" in entry:
        build = BUILD.replace("@VERSION@", upstream).replace("@SORT@", entry["module"])
        scripts = {"postinst": build, "prerm": UNBUILD}
    return control, deb(control, scripts, files)


def repository(folder: Path, origin: str, packages: list[tuple[str, str, Mapping[str, Any]]]) -> None:
    """A flat repository."""
    folder.mkdir(parents=True)
    index = ""
    for name, version, entry in packages:
        control, content = package(name, version, entry)
        file = f"{name}_{version}_amd64.deb"
        (folder / file).write_bytes(content)
        index += f"{control}Filename: ./{file}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    (folder / "Packages").write_text(index, encoding="utf-8")
    sums = f" {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    head = f"Origin: {origin}\nLabel: {origin}\nSuite: stable\nCodename: stable\nDate: Sat, 21 Nov 2026 00:00:00 UTC\n"
    release = f"{head}Architectures: amd64\nSHA256:\n{sums}"
    (folder / "Release").write_text(release, encoding="utf-8")


def keyring(release: str, base: str) -> bytes:
    """NVIDIA's package that adds its repository, for one release."""
    line = f"deb [trusted=yes] file:{base}/compute/cuda/repos/{release}/x86_64 ./\n"
    entry = {"files": {f"etc/apt/sources.list.d/cuda-{release}-x86_64.list": line}}
    return package("cuda-keyring", "1.1-1", entry)[1]


def pinning(branch: int) -> dict[str, Any]:
    """NVIDIA's package that keeps apt on a branch."""
    text = f"Package: *nvidia* libcuda1\nPin: version {branch}.*\nPin-Priority: 1000\n"
    return {"files": {f"etc/apt/preferences.d/nvidia-driver-pinning-{branch}": text}}


def build(folder: Path, base: str = HERE) -> None:
    """All archives; `base` is where the one of the moment will be found."""
    data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    for name, held in data["archives"].items():
        driver = [
            (package_name, version, entry)
            for version, which in held["driver"].items()
            for package_name, entry in data[which].items()
        ]
        branches = sorted({int(version.partition(".")[0]) for version in held["driver"]})
        driver += [(f"nvidia-driver-pinning-{branch}", f"{branch}-1", pinning(branch)) for branch in branches]
        for release in RELEASES:
            place = folder / name / "compute/cuda/repos" / release / "x86_64"
            repository(place, "NVIDIA", driver)
            (place / "cuda-keyring_1.1-1_all.deb").write_bytes(keyring(release, base))
        base_packages = [(one, entry["version"], entry) for one, entry in data["base"].items()]
        repository(folder / name / "debian", "Debian", [*base_packages, (LIBRARY, held["library"], {})])
    for release in RELEASES:
        (folder / f"{release}.sha256").write_text(hashlib.sha256(keyring(release, base)).hexdigest(), encoding="ascii")


def main(words: list[str]) -> int:
    """Build into a folder, anew."""
    if len(words) != 1:
        print("usage: build FOLDER", file=sys.stderr)
        return 2
    shutil.rmtree(words[0], ignore_errors=True)
    build(Path(words[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
