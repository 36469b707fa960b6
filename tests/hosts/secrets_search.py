# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every secret of a host, searched in all places of the host that are not its own. Standard library only, runs there.

    python3 -c SOURCE PATHS    prints JSON, see `main`; PATHS: the rig's paths as JSON, {} for no rig

A secret is a value in a file of the rig's secrets directory, the password of an address among them, and each line of a
private key. It may stand in its own file, for its owner only, and in the page's data, which only the page's user reads.
One value of our own is planted in several places first and has to be found there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LEAST_LETTERS = 8
# Packages, models and their caches: huge, and made from what everybody can download.
LEFT_OUT = ("envs", "models", "python", "uv")
PLACES = (
    "/dev/shm",
    "/etc",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/lib/systemd",
    "/root",
    "/home",
    "/opt",
    "/srv/compose",
)
OPEN_TO_ALL = "/tmp"
# Layers of images and what containers wrote, each once and not again as it is mounted: of Docker's own store, and of
# containerd's, which new hosts have since Docker 29, in the system's containerd and in the one that Docker starts.
SNAPSHOTS = "io.containerd.snapshotter.v1.overlayfs/snapshots"
LAYERS = (
    "/var/lib/docker/overlay2",
    "/var/lib/docker/vfs/dir",
    f"/var/lib/containerd/{SNAPSHOTS}",
    f"/var/lib/docker/containerd/daemon/{SNAPSHOTS}",
)
PRINTED = "/var/lib/docker/containers"
MOUNTED = ("merged", "work")
CREDENTIALS = r"/run/credentials/gpurig-[^/]+\.service/"
DOCKERS_OWN = ("config.v2.json", "hostconfig.json")  # root's alone; the environment of a container stands in it
CONTENT_MOST_BYTES = 1 << 28
FILES_AT_ONCE = 2000


def secret_files(paths: dict[str, str]) -> list[Path]:
    """Files that hold secrets by purpose: all of the secrets directory, and private keys below the state directory."""
    folder = paths.get("secrets")
    found = [path for path in Path(folder).rglob("*") if path.is_file()] if folder else []
    for top in {paths.get("state", ""), paths.get("config", "")} - {""}:
        found += [path for path in Path(top).rglob("*.key") if b"PRIVATE KEY-----" in path.read_bytes()[:64]]
    return found


def values_of(path: Path) -> Iterator[str]:
    """The secrets in one of these files."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if lines and "PRIVATE KEY-----" in lines[0]:
        yield from lines[2:-1]  # the first line of the body is the same in every key of its kind
        return
    for line in lines:
        value = line.partition("=")[2] or line
        yield value
        with suppress(ValueError):
            password = urllib.parse.urlsplit(value).password or ""
            yield from (password, urllib.parse.unquote(password))


def has_journal() -> bool:
    """Whether systemd runs here; its programs may be there without it."""
    return Path("/run/systemd/system").exists() and shutil.which("systemd-cat") is not None


def texts() -> Iterator[tuple[str, bytes]]:
    """(what it is, its content) of everything that is no file of these trees."""
    commands = {
        "systemctl show": ["systemctl", "show", "--no-pager", "--all", "*"],
        "journal": ["journalctl", "--no-pager", "--all", "--output", "export"],
    }
    for name, command in commands.items():
        if has_journal():
            yield name, subprocess.run(command, capture_output=True, check=False, timeout=60).stdout
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                yield f"command line of {process.name}", (process / "cmdline").read_bytes()


def trees(paths: dict[str, str]) -> list[str]:
    """Folders to search, none of them inside another one."""
    tops = {*PLACES, *(path for name, path in paths.items() if name not in LEFT_OUT)}
    tops.update(folder for folder in (*LAYERS, PRINTED) if Path(folder).is_dir())
    return sorted(top for top in tops if not any(top != other and top.startswith(f"{other}/") for other in tops))


def files(paths: dict[str, str]) -> Iterator[Path]:
    """Regular files of these trees, each once."""
    left_out = {path for name, path in paths.items() if name in LEFT_OUT}
    for top in trees(paths):
        for folder, names, leaves in os.walk(top):
            if "CACHEDIR.TAG" in leaves:  # of packages, as uv's
                names.clear()
                continue
            in_layers = str(Path(folder).parent) in LAYERS
            names[:] = [name for name in names if f"{folder}/{name}" not in left_out]
            names[:] = [name for name in names if not (in_layers and name in MOUNTED)]
            for leaf in leaves:
                if folder.startswith(PRINTED) and leaf in DOCKERS_OWN:
                    continue
                path = Path(folder, leaf)
                with suppress(OSError):
                    seen = path.lstat()
                    if stat.S_ISREG(seen.st_mode) and 0 < seen.st_size < CONTENT_MOST_BYTES:
                        yield path


def is_private(path: Path, data: list[Path]) -> bool:
    """Whether it lies in the page's data, which nobody but the page's user may enter, or is what systemd gives to a
    service (LoadCredential=), whose group bits are the mask of an access list for the service's user.
    """
    if re.match(CREDENTIALS, str(path)):
        return path.stat().st_mode & 0o007 == 0 and path.parent.stat().st_mode & 0o007 == 0
    return any(folder in path.parents and stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in data)


def planted(paths: dict[str, str], value: str) -> dict[str, Path]:
    """One value in places where no secret may be."""
    spots = {
        "world-readable file": Path(OPEN_TO_ALL) / f"planted-{os.getpid()}",
        "log": Path(paths.get("log", "/var/log")) / f"planted-{os.getpid()}.log",
        "file of root": Path(paths.get("config", "/etc")) / f"planted-{os.getpid()}",
    }
    for name, path in spots.items():
        path.write_text(f"x={value}\n", encoding="utf-8")
        path.chmod(0o600 if name == "file of root" else 0o644)
    if has_journal():
        subprocess.run(["systemd-cat"], input=value.encode(), check=True, timeout=20)
        subprocess.run(["journalctl", "--sync"], check=False, timeout=20)
    return spots


def holding(values: list[bytes], paths: list[str]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files that have one of the values in them; grep looks at all of them at once."""
    for number in range(0, len(paths), FILES_AT_ONCE):
        command = [
            "grep",
            "--files-with-matches",
            "--null",
            "--text",
            "--fixed-strings",
            "--file=-",
            "--",
        ]
        files = paths[number : number + FILES_AT_ONCE]
        done = subprocess.run(
            [*command, *files],
            input=b"\n".join(values),
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            check=False,
            timeout=600,
        )
        unread = [line for line in done.stderr.splitlines() if not line.endswith(b": No such file or directory")]
        if done.returncode not in (0, 1, 2) or unread:
            raise RuntimeError(f"grep exit {done.returncode}: {unread[:3]}")
        for name in done.stdout.split(b"\0")[:-1]:
            path = os.fsdecode(name)
            with suppress(OSError):
                yield path, Path(path).read_bytes()


def images() -> int:
    """How many images Docker has here; 0 without Docker. Each has a layer, so something of it has to be searched."""
    if not shutil.which("docker"):
        return 0
    listed = subprocess.run(["docker", "images", "--quiet"], capture_output=True, check=True, timeout=60).stdout
    return len(listed.split())


def main(paths: dict[str, str]) -> dict[str, object]:
    """{values: secret -> its file, wrong: what was found where it may not be, found: places of the planted value,
    planted: places where it was put, modes: secret files that others may read, searched: number of files, layers: of
    them in layers of images, images: how many images Docker has}.
    """
    kept = secret_files(paths)
    known: dict[bytes, str] = {}
    for path in kept:
        for value in values_of(path):
            if len(value) >= LEAST_LETTERS:
                known.setdefault(value.encode(), str(path))
    mine = secrets.token_urlsafe(32)
    spots = planted(paths, mine)
    data = [*Path("/dev/shm").glob("gpurig-open-webui-*")]
    data += [Path(paths["state"], "open_webui")] if "state" in paths else []
    own = set(kept)
    wrong, found = [], []
    try:
        said = list(texts())
        searched = [str(path) for path in files(paths) if path not in own and not is_private(path, data)]
        for where, text in [*said, *holding([*known, mine.encode()], searched)]:
            found += [where] if mine.encode() in text else []
            wrong += sorted({f"{path} is in {where}" for value, path in known.items() if value in text})
    finally:
        for path in spots.values():
            path.unlink(missing_ok=True)
    planted_in = [str(path) for path in spots.values()] + (["journal"] if has_journal() else [])
    return {
        "values": {value.decode(): path for value, path in known.items()},
        "wrong": sorted(wrong),
        "found": sorted(found),
        "planted": sorted(planted_in),
        "modes": [str(path) for path in kept if stat.S_IMODE(path.stat().st_mode) & 0o077],
        "searched": len(said) + len(searched),
        "layers": sum(where.startswith(tuple(f"{folder}/" for folder in LAYERS)) for where in searched),
        "images": images(),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
