# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of the page as its maker lays them out, in a registry's storage folder, for hosts that reach no registry.

    python tests/hosts/webui_image.py    prints the folder, made once and kept by the hash of what it is made from

The folder has registry/, which docker-registry serves, and digests.json: release to digest. With GPURIG_MOLECULE_FULL
set there is an earlier release, too, which takes as long again. Each image is a Debian with
a Python, the packages of the repository's own lock, and Open WebUI from its wheel at /app/backend, with the frontend
at /app/build, package.json and a start script that reads the variables that the maker's reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from ansible_collections.gpurig.llm.scripts import bump
from ansible_collections.gpurig.llm.scripts.test_levels import CACHE, FULL, ROOT
from ansible_collections.gpurig.llm.tests.hosts.images import HostError, alone, make_image, podman, python_archive

LOCK = ROOT / "roles/open_webui/files/webui.lock"
NAME = "open-webui/open-webui"
EARLIER = "0.12.0"  # the last release with fewer migrations than the one that is locked
EARLIER_SHA256 = "27da8c9b8228bf72b12ac3fe18ac16a129fa636cbd6352d5bdb6396e1e7f97fd"  # wheel, from the package index
START = """#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")" || exit
PORT="${PORT:-8080}"
HOST="${HOST:-0.0.0.0}"
exec python3 -m uvicorn open_webui.main:app --host "$HOST" --port "$PORT" \\
  --forwarded-allow-ips "${FORWARDED_ALLOW_IPS:-*}" --workers "${UVICORN_WORKERS:-1}"
"""
# What the maker's image sets and a page could trip over.
SETTINGS = """ENV ENV=prod PORT=8080 DOCKER=true HOME=/root PYTHONUNBUFFERED=1 OPENAI_API_KEY= WEBUI_SECRET_KEY= \\
    OLLAMA_BASE_URL=/ollama OPENAI_API_BASE_URL= HF_HOME=/app/backend/data/cache/embedding/models \\
    WHISPER_MODEL_DIR=/app/backend/data/cache/whisper/models TIKTOKEN_CACHE_DIR=/app/backend/data/cache/tiktoken
WORKDIR /app/backend
EXPOSE 8080
CMD ["bash", "start.sh"]
"""
REGISTRY = """version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: /srv/store}}
http: {addr: ":5000"}
"""


def run(*words: str | Path, timeout_s: float = 600) -> str:
    """Run a command that must succeed; return what it printed. Raises HostError."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise HostError(f"{' '.join(map(str, words[:4]))} ... failed: {done.stderr[-2000:]}")
    return done.stdout


def uv() -> str:
    """The uv of this checkout's tests, or the one on PATH. Raises HostError."""
    for path in (ROOT / ".cache/bootstrap/bin/uv", shutil.which("uv")):
        if path and Path(path).exists():
            return str(path)
    raise HostError("no uv: run ./rig env once")


def install(requirements: Path, target: Path, python: Path, *more: str) -> None:
    """Put packages into a folder, compiled, as the locks have them."""
    # A layer keeps whole seconds: by their sources' times half of the bytecode would be out of date in the image.
    words = [
        "env",
        "PYC_INVALIDATION_MODE=UNCHECKED_HASH",
        uv(),
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--compile-bytecode",
        *more,
    ]
    run(*words, "--python", python, "--target", target, "--requirement", requirements)


def earlier_packages(place: Path) -> Path:
    """A requirements file with what the earlier release needs and the lock has not, by hash. Raises HostError."""
    source, made = place / "earlier.in", place / "earlier.lock"
    source.write_text(f"open-webui=={EARLIER}\n", encoding="utf-8")
    shutil.copy(LOCK, made)  # versions that fit stay
    try:
        bump.resolve(next(lock for lock in bump.LOCKS if ROOT / lock.target == LOCK), source, made, uv())
    except SystemExit as error:
        raise HostError(str(error)) from error
    known, wanted = (re.split(r"\n(?=[A-Za-z])", path.read_text(encoding="utf-8")) for path in (LOCK, made))
    more = [lines for lines in wanted if lines.strip() not in {have.strip() for have in known}]
    if not any(EARLIER_SHA256 in lines for lines in more):
        raise HostError(f"the index has another wheel of open-webui {EARLIER}")
    made.write_text("\n".join(more) + "\n", encoding="utf-8")
    return made


def lay_out(packages: Path, app: Path) -> str:
    """Move Open WebUI out of the installed packages to where its maker's image has it; return the release."""
    described = next(packages.glob("open_webui-*.dist-info"))
    release = described.name.removeprefix("open_webui-").removesuffix(".dist-info")
    shutil.rmtree(described)
    (app / "backend").mkdir(parents=True)
    (packages / "open_webui").rename(app / "backend/open_webui")
    (app / "backend/open_webui/frontend").rename(app / "build")
    (app / "backend/data").mkdir()
    (app / "backend/start.sh").write_text(START, encoding="utf-8")
    shutil.copy(app / "backend/open_webui/CHANGELOG.md", app / "CHANGELOG.md")
    (app / "package.json").write_text(json.dumps({"name": "open-webui", "version": release}), encoding="utf-8")
    return release


def build(place: Path, base: str, name: str, lines: str) -> None:
    """Build an image from a folder and the lines of its recipe. Raises HostError."""
    recipe = place / "Containerfile"
    recipe.write_text(f"FROM {base}\n{lines}", encoding="utf-8")
    done = podman("build", "--quiet", "--layers=false", "--tag", name, "--file", recipe, place, timeout_s=900)
    if done.returncode:
        raise HostError(f"podman could not build {name}: {done.stderr.decode(errors='replace')[-2000:]}")


def fetched_python() -> Path:
    """The prefix of the Python 3.12 that uv fetches, which runs from any place. Raises HostError."""
    options = ["--install-dir", str(CACHE / "python")] if not os.environ.get("UV_PYTHON_INSTALL_DIR") else []
    try:
        run(uv(), "python", "install", "--quiet", "--no-bin", *options, "3.12")
        place = os.environ.get("UV_PYTHON_INSTALL_DIR") or str(CACHE / "python")
        return max(Path(place).glob("cpython-3.12.*/bin/python3.12")).resolve().parents[1]
    except (HostError, ValueError) as error:
        raise HostError(
            "needs a Python 3.12: there is none in pyenv (with patchelf to make it run from any place), and uv could "
            f"not fetch one: {error}"
        ) from error


def put_python(target: Path) -> Path:
    """Have a Python 3.12 in the folder; return its interpreter. Raises HostError."""
    folder = python_archive()
    if folder is None:
        shutil.copytree(fetched_python(), target, symlinks=True, dirs_exist_ok=True)
    else:
        run("tar", "-xzf", next(folder.glob("cpython-3.12.*.tar.gz")), "-C", target, "--strip-components=1")
    (target / "bin/python3").unlink(missing_ok=True)
    (target / "bin/python3").symlink_to("python3.12")
    return target / "bin/python3.12"


def images(place: Path, with_earlier: bool) -> dict[str, str]:
    """Build the locked release and perhaps the earlier one; return release to the image's name in podman's store."""
    made = {}
    base, packages = place / "base", place / "base/usr/local/lib/python3.12/site-packages"
    (base / "usr/local").mkdir(parents=True)
    interpreter = put_python(base / "usr/local")
    shutil.rmtree(packages)
    install(LOCK, packages, interpreter)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    app = place / "new/app"
    made[lay_out(packages, app)] = app.parent
    build(base, make_image("pod", "trixie"), "localhost/gpurig-webui-base", "COPY usr /usr\n")
    if with_earlier:
        earlier = place / "earlier"
        earlier.mkdir()
        install(earlier_packages(place), earlier / "packages", interpreter)
        made[lay_out(earlier / "packages", earlier / "app")] = earlier
        # Before those of the lock.
        (earlier / "packages").rename(earlier / "app/packages")
    names = {}
    for release, folder in made.items():
        names[release] = f"localhost/gpurig-webui:{release}"
        before = "ENV PYTHONPATH=/app/packages\n" if release == EARLIER else ""
        build(folder, "localhost/gpurig-webui-base", names[release], f"COPY app /app\n{before}{SETTINGS}")
    return names


def port_of(container: str) -> int:
    """The port of this machine's loopback at which the registry answers, once it does. Raises HostError."""
    port = int(podman("port", container, "5000").stdout.decode().rpartition(":")[2])
    for _try in range(60):
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=5):
            return port
        time.sleep(0.5)
    raise HostError("the registry did not come up")


def push(names: dict[str, str], part: Path) -> dict[str, str]:
    """Push the images to a real registry over the folder; return release to digest. Raises HostError."""
    server = make_image("systemd", "trixie", ["docker-registry"])
    (part / "registry").mkdir()
    (part / "config.yml").write_text(REGISTRY, encoding="utf-8")
    container = f"gpurig-registry-{os.getpid()}"
    mounts = ["--volume", f"{part}/registry:/srv/store", "--volume", f"{part}/config.yml:/srv/config.yml:ro"]
    command = ["docker-registry", "serve", "/srv/config.yml"]
    started = podman(
        "run", "--detach", "--rm", "--name", container, "--publish", "127.0.0.1::5000", *mounts, server, *command
    )
    if started.returncode:
        raise HostError(f"the registry does not start: {started.stderr.decode(errors='replace')}")
    digests = {}
    try:
        port = port_of(container)
        for release, name in names.items():
            written = part / "digest"
            to = f"docker://127.0.0.1:{port}/{NAME}:v{release}"
            options = ["--tls-verify=false", "--format", "oci", "--compression-format", "zstd", "--digestfile", written]
            pushed = podman("push", "--quiet", *options, name, to, timeout_s=900)
            if pushed.returncode:
                raise HostError(f"podman could not push {name}: {pushed.stderr.decode(errors='replace')}")
            digests[release] = written.read_text(encoding="ascii").strip()
            written.unlink()
    finally:
        podman("rm", "--force", "--ignore", "--time", "0", container)
    return digests


def folder(with_earlier: bool) -> Path:
    """The folder with registry/ and digests.json, made when it is not there. Raises HostError."""
    made_from = Path(__file__).read_bytes() + LOCK.read_bytes()
    made_from += Path(__file__).with_name("images.py").read_bytes() + Path(bump.__file__).read_bytes()
    one = CACHE / f"images/webui-{hashlib.sha256(made_from).hexdigest()[:16]}"
    both = one.with_name(f"{one.name}-both")
    with alone("webui"):
        done = both if with_earlier or both.is_dir() else one
        if not done.is_dir():
            make_folder(done, with_earlier)
    return done


def make_folder(done: Path, with_earlier: bool) -> None:
    """Make it, in place of those of earlier recipes. Raises HostError."""
    for old in done.parent.glob("webui-*"):
        if re.fullmatch(r"webui-[0-9a-f]{16}(-both)?(\.part)?", old.name):
            shutil.rmtree(old)
    part = done.with_name(f"{done.name}.part")
    part.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=done.parent) as place:
        names = images(Path(place), with_earlier)
    digests = push(names, part)
    (part / "digests.json").write_text(json.dumps(digests), encoding="ascii")
    podman("rmi", "--force", *names.values(), "localhost/gpurig-webui-base")
    part.rename(done)


def main() -> int:
    """Print where the folder is."""
    try:
        print(folder(bool(os.environ.get(FULL))))
    except HostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
