# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What containers are started from: images by digest and volumes, through Docker's own command. (outside)"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .small_files import readable_by_all, write_text

COMPOSE = "/usr/libexec/docker/cli-plugins/docker-compose"
"""Where the packages of Docker and of Debian put the plugin."""
PAGE = "gpurig-open-webui"
"""The container of the page."""
PAGE_ANSWERS = "open_webui_images"
"""Below the rig's directory of settings: what is known of the page's images."""
_QUICK_S = 60.0
_PULL_S = 3600.0
_ANSWER_S = 300.0

# What Docker says (moby's distribution and containerd's remotes) and what it means to a person.
_CAUSES = (
    (("manifest unknown", "not found"), "the registry has no image of this digest, so it was not read from there"),
    (
        ("verification failed", "unexpected commit digest", "did not match", "digest mismatch", "digest invalid"),
        "what the registry sent is not what the digest names. Do not use it; ask who runs that registry",
    ),
    (("no basic auth", "denied", "unauthorized"), "the registry lets nobody in without signing in (docker login)"),
    (("no space left",), "the disk is full"),
    (
        ("no such host", "connection refused", "i/o timeout", "unreachable", "deadline exceeded", "TLS"),
        (
            "the registry cannot be reached. Check the network, rig_webui.image_prefix, and the proxy of Docker's "
            "daemon (proxies in container_engine_daemon; it does not see rig_environment)"
        ),
    ),
)


class ImageError(Exception):
    """An image, a volume or Docker itself that cannot be used; the message says why and what helps."""


@dataclass(frozen=True)
class Image:
    """One image: its repository with registry, and its digest, sha256:..."""

    repository: str
    digest: str

    @property
    def reference(self) -> str:
        return f"{self.repository}@{self.digest}"


def is_installed() -> bool:
    """Whether there is a docker command at all."""
    return shutil.which("docker") is not None


def _docker(*words: str, timeout_s: float = _QUICK_S, log: IO[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run docker. With `log` its output goes there too, line by line. Raises ImageError when it does not end."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["docker", *words],
            stdout=log or subprocess.PIPE,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=environment,
        )
    except FileNotFoundError as error:
        raise ImageError("there is no docker command here") from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"docker {words[0]} did not end within {timeout_s:.0f} s") from error


def answers_now() -> bool:
    """Whether there is a docker command, and its daemon answers."""
    try:
        return _docker("version", "--format", "{{.Server.Version}}").returncode == 0
    except ImageError:
        return False


def _asked(*words: str, timeout_s: float = _QUICK_S) -> str:
    done = _docker(*words, timeout_s=timeout_s)
    if done.returncode:
        said = " ".join(done.stderr.split()) or "it said nothing"
        raise ImageError(f"docker {' '.join(words[:2])} failed: {said}")
    return done.stdout


def compose_program() -> str:
    """Return the path of Compose 2, which runs by itself too.

    The docker command before version 25 does not hand a SIGTERM on to its plugins, so a service is Compose itself.
    Raises ImageError when Docker does not answer, or has no Compose 2.
    """
    known = json.loads(_asked("info", "--format", "{{json .ClientInfo.Plugins}}") or "null") or []
    for plugin in known:
        if plugin.get("Name") == "compose" and plugin.get("Path"):
            return str(plugin["Path"])
    raise ImageError("Docker has no Compose 2. Install docker-compose-plugin, or let the role container_engine do it")


def is_present(image: Image) -> bool:
    """Whether Docker has the image."""
    return _docker("image", "inspect", "--format", "{{.Id}}", image.reference).returncode == 0


def explained(image: Image, said: str) -> str:
    """Return in words why a pull failed."""
    lower = said.lower()
    cause = next((words for marks, words in _CAUSES if any(mark.lower() in lower for mark in marks)), "it was not got")
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing")
    return f"{image.reference}: {cause}. Docker said: {last[:300]}"


def pull(image: Image, log_path: str) -> None:
    """Get the image; Docker's output goes to the log. Docker itself checks content against digests.

    Raises ImageError.
    """
    log = Path(log_path)
    with readable_by_all():
        log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w+", encoding="utf-8") as stream:
        done = _docker("pull", image.reference, timeout_s=_PULL_S, log=stream)
        stream.seek(0)
        said = stream.read()
    log.unlink()
    if done.returncode:
        raise ImageError(explained(image, said))


def ask(image: Image, program: Sequence[str]) -> str:
    """Run a program of the image, without network and rights, and return what it prints. Raises ImageError."""
    options = ["--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", "--user", "65534:65534"]
    options += ["--security-opt", "no-new-privileges", "--log-driver", "none", "--pull", "never"]
    words = ["run", *options, "--entrypoint", program[0], image.reference, *program[1:]]
    return _asked(*words, timeout_s=_ANSWER_S)


def write_answer(image: Image, program: Sequence[str], path: Path) -> None:
    """Write the JSON object that the program prints, with what it was asked of. Raises ImageError when it is none."""
    answer = ask(image, program)
    try:
        known = {**json.loads(answer), "reference": image.reference}
    except (TypeError, ValueError) as error:
        raise ImageError(f"{image.reference}: is no image as was expected; it answered: {answer[:200]!r}") from error
    with readable_by_all():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(str(path), json.dumps(known, indent=2) + "\n")


def mountpoint(volume: str) -> str:
    """Return where the host has the content of the volume. Raises ImageError when there is none of this name."""
    done = _docker("volume", "inspect", "--format", "{{.Mountpoint}}", volume)
    if done.returncode:
        names = ", ".join(sorted(_asked("volume", "ls", "--quiet").split())) or "none"
        raise ImageError(f"Docker has no volume {volume!r}; there are: {names}")
    return done.stdout.strip()


def running_users(volume: str) -> list[str]:
    """Return the names of the containers that run with the volume. Raises ImageError."""
    return _asked("ps", "--filter", f"volume={volume}", "--format", "{{.Names}}").split()


def has_container(name: str) -> bool:
    """Whether there is a container of this name, running or not."""
    return _docker("container", "inspect", "--format", "{{.Id}}", name).returncode == 0


def remove_container(name: str) -> None:
    """Remove the container; its volumes stay. Raises ImageError."""
    _asked("rm", "--force", name)


def answer_dir(image: Image, answers: Path) -> Path:
    """Return the folder of what is known of the image: one for each reference, whatever registry it has."""
    return answers / hashlib.sha256(image.reference.encode()).hexdigest()


def ours(answers: Path) -> list[Image]:
    """Return the images that we pulled, from any registry: those that have an answer. Raises ImageError."""
    found = []
    for path in sorted(answers.glob("*/*.json")):
        try:
            repository, _at, digest = json.loads(path.read_text(encoding="utf-8"))["reference"].partition("@")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ImageError(f"{path}: does not say of which image it is. Remove it, and the image by hand") from error
        found.append(Image(repository, digest))
    return found


def drop(image: Image, answers: Path) -> bool:
    """Remove the image and its answer; False when something else still uses it."""
    if is_present(image) and _docker("image", "rm", image.reference).returncode:
        return False
    shutil.rmtree(answer_dir(image, answers), ignore_errors=True)
    return True


def take_away(answers: Path, container: str = "", needed: str = "", check: bool = False) -> tuple[list[str], list[str]]:
    """Remove the container and the images that we pulled; what stands in the text `needed` stays, and all volumes.

    Return (removed, left), each as names, those that are left with the reason. `check` removes nothing. Raises
    ImageError.
    """
    known = ours(answers)
    if not answers_now():
        there = [container] if container and known else []
        return [], [f"{name}: no Docker answers here" for name in (*there, *(image.reference for image in known))]
    removed, left = [], []
    if container and has_container(container):
        removed.append(container)
        if not check:
            remove_container(container)
    for image in known:
        if image.reference in needed:
            left.append(f"{image.reference}: runs, or is the way back")
        elif check or drop(image, answers):
            removed.append(image.reference)
        else:
            left.append(f"{image.reference}: another container uses it")
    return removed, left


def named_in(paths: Iterable[Path]) -> str:
    """Return the text of the files, in which the references that are still needed stand."""
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)
