# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same site.yml with the real vLLM on the processor: several instances, upgrades, and changes that fail.

The tests of this file follow each other on one rig. GPURIG_E2E_FULL=1 adds ten kills of a run that changes the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.scripts.test_levels import has_torch_cpu, torch_cpu
from ansible_collections.gpurig.llm.tests.e2e.sandbox import CHECKOUT, FULL, Sandbox, free_port
from ansible_collections.gpurig.llm.tests.tiny_model import make

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpurig-tests"
FLAGS = {"kv-cache-memory-bytes": "64M"}
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


pytestmark = pytest.mark.skipif(not has_torch_cpu(), reason="torch's build for the processor cannot be had")


@dataclass
class Watch:
    """Asks a health URL ten times a second, and knows when it did not answer."""

    port: int
    seen: list[tuple[float, bool]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.ended.is_set():
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2) as reply:
                    self.seen.append((time.monotonic(), reply.status == 200))
                time.sleep(0.1)
                continue
            self.seen.append((time.monotonic(), False))
            time.sleep(0.1)

    @property
    def outage_s(self) -> float:
        """Seconds from the first missing answer to the last one, 0 without any."""
        missing = [at for at, ok in self.seen if not ok]
        return round(missing[-1] - missing[0], 1) if missing else 0.0


@contextlib.contextmanager
def watched(port: int) -> Iterator[Watch]:
    watch = Watch(port)
    thread = threading.Thread(target=watch.look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        thread.join(timeout=10)


@dataclass
class Rig:
    """The sandbox, its two ports, and the models that it knows."""

    box: Sandbox
    embed_port: int
    models: dict[str, Any]

    def instances(self, model: str = "tiny", flags: dict[str, Any] | None = None, **more: Any) -> list[dict[str, Any]]:
        common = {"device": "cpu", "context": 1024}
        chat = {"name": "chat", "model": model, "port": self.box.port, "parallel": 4, "flags": flags or FLAGS}
        notes = {"name": "notes", "model": "tiny", "port": self.embed_port, "task": "embed", "flags": FLAGS}
        return [{**common, **chat, **more}, {**common, **notes}]

    def variables(self, *args: Any, **more: Any) -> dict[str, Any]:
        return {"rig_instances": self.instances(*args, **more), "rig_models": self.models}

    def pids(self) -> dict[str, int]:
        return {name: row["pid"] for name, row in self.box.services().items()}

    def request(self, port: int, path: str, body: dict[str, Any], key: str) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310  our own server
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def says(self) -> str:
        status, reply = self.box.ask("Hello?")
        assert status == 200, reply
        return str(reply["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def rig(place: Path) -> Iterator[Rig]:
    home = place / "home"
    home.mkdir()
    tiny = make.make(place / "tiny")
    models = {"tiny": {"source": "local", "format": "safetensors", "local": {"path": str(tiny)}}}
    box = Sandbox(place / "rig", free_port(), home, {"rig_environment": {"UV_FIND_LINKS": torch_cpu()}})
    made = Rig(box, free_port(), models)
    box.variables |= made.variables()
    try:
        yield made
    finally:
        box.end()


def test_two_instances_from_nothing(rig: Rig) -> None:
    result = rig.box.run()
    assert result.rc == 0, result.text[-6000:]
    assert make.ANSWER in result.text, "the report shows the answer"
    assert "2 vectors of 64 numbers" in result.text
    status, reply = rig.box.ask("Hello?")
    assert status == 200
    choice = reply["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (make.ANSWER, "stop")
    assert reply["usage"]["completion_tokens"] == make.answer_tokens()
    assert reply["usage"]["prompt_tokens"] == make.prompt_tokens("Hello?")
    assert rig.box.ask("Hello?", key="wrong")[0] == 401
    key = rig.box.tool("key", "notes").stdout.strip()
    assert key != rig.box.key(), "each instance has a key of its own"
    status, reply = rig.request(rig.embed_port, "/v1/embeddings", {"model": "notes", "input": ["a", "b"]}, key)
    assert (status, [len(row["embedding"]) for row in reply["data"]]) == (200, [64, 64])
    log = rig.box.tool("logs", "chat", "-n", "500").stdout
    assert "Unknown vLLM environment variable" not in log
    assert rig.box.key() not in log


def test_a_bad_instance_stops_nothing(rig: Rig) -> None:
    before = rig.pids()
    wrong = {"max-model": 512, "swap-space": 4, "tool-call-parser": "hermez", "no-such": 1}
    result = rig.box.run(**rig.variables(flags={**FLAGS, **wrong}))
    assert result.rc != 0
    for part in ("max-model-len", "swap-space", "hermez", "no-such"):
        assert part in result.text, result.text[-4000:]
    assert (result.changed_tasks, rig.pids(), rig.says()) == ([], before, make.ANSWER)


def test_what_only_the_engine_refuses_stops_nothing(rig: Rig) -> None:
    before = rig.pids()
    result = rig.box.run(**rig.variables(flags={**FLAGS, "dtype": "float17"}))
    assert result.rc != 0
    assert "instance chat" in result.text
    assert "float17" in result.text
    assert (rig.pids(), rig.says()) == (before, make.ANSWER)


def test_what_the_memory_plan_refuses_stops_nothing(rig: Rig) -> None:
    before = rig.pids()
    result = rig.box.run(**rig.variables(flags={"kv-cache-memory-bytes": "300K"}))
    assert result.rc != 0
    fitting = re.search(r"You asked for a context of 1024 tokens, the largest that fits is (\d+)", result.text)
    assert fitting, result.text[-4000:]
    assert 0 < int(fitting[1]) < 1024
    assert (result.changed_tasks, rig.pids(), rig.says()) == ([], before, make.ANSWER)


def test_each_start_is_in_the_history_beside_its_plan(rig: Rig) -> None:
    rows = [json.loads(line) for line in (rig.box.root / "plans" / "history.jsonl").read_text().splitlines()]
    assert {row["name"] for row in rows} == {"chat", "notes"}
    for row in rows:
        assert row["logged"]["kv_tokens"] == row["planned"]["kv_tokens"], row
        assert row["logged"]["concurrency"] == pytest.approx(row["planned"]["concurrency"], abs=0.005)


def test_a_truncated_model_stops_nothing(rig: Rig, place: Path) -> None:
    before = rig.pids()
    broken = Path(shutil.copytree(place / "tiny", place / "broken"))
    weights = next(broken.glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    rig.models["broken"] = {"source": "local", "format": "safetensors", "local": {"path": str(broken)}}
    result = rig.box.run(**rig.variables("broken"))
    assert result.rc != 0
    assert "broken" in result.text
    assert weights.name in result.text
    assert (rig.pids(), rig.says()) == (before, make.ANSWER)


def test_a_change_that_does_not_start_is_taken_back(rig: Rig) -> None:
    notes = rig.pids()["notes"]
    port = free_port()
    with watched(rig.box.port) as watch:
        # Room for less than one request: vLLM's parser cannot know, its engine says so when it has loaded the weights.
        small = rig.variables(flags={"kv-cache-memory-bytes": "100K"}, port=port)
        result = rig.box.run(**small, vllm_force=True)
    assert result.rc != 0
    assert "forced: instance chat" in result.text
    assert "What ran before serves again" in result.text, result.text[-4000:]
    assert (rig.says(), rig.pids()["notes"]) == (make.ANSWER, notes)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
    print(f"outage of a change that was taken back: {watch.outage_s} s")
    assert watch.outage_s > 0


def smollm2(rig: Rig) -> Path:
    """The small chat model in plain safetensors, made once from the GGUF file of its wheel."""
    script = CHECKOUT / "tests/engines/dequantize.py"
    lock = CHECKOUT / "tests/engines/convert.lock"
    digest = hashlib.sha256(script.read_bytes() + lock.read_bytes()).hexdigest()[:16]
    target = CACHE / f"smollm2-{digest}"
    if not target.is_dir():
        extra = rig.box.home / "convert"
        python = next((rig.box.root / "envs" / "vllm_cpu").glob("????????????????/bin/python"))
        uv = rig.box.root / "uv" / "current" / "bin" / "uv"
        install = [uv, "pip", "install", "-q", "--python", python, "--target", extra, "--no-deps", "--require-hashes"]
        subprocess.run([*install, "-r", lock], check=True, timeout=300)
        gguf = next((rig.box.root / "models" / "gguf").rglob(SMOLLM2_FILE))
        target.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(extra), "HF_HUB_OFFLINE": "1"}
        subprocess.run([python, script, gguf, target], check=True, timeout=600, env=environment, capture_output=True)
    return target


def test_another_model_answers_in_english(rig: Rig) -> None:
    """The upgrade that succeeds: the processor's model of the default inventory, served by vLLM."""
    inventory = (CHECKOUT / "inventories/local/group_vars/all.yml").read_text(encoding="utf-8")
    rig.models["gguf"] = yaml.safe_load(inventory)["rig_models"]["smollm2"]
    fetch = {**rig.variables(), "models_wanted": ["gguf"]}
    assert rig.box.run("site.yml", "--tags", "models", **fetch).rc == 0
    rig.models["smollm2"] = {"source": "local", "format": "safetensors", "local": {"path": str(smollm2(rig))}}
    notes = rig.pids()["notes"]
    with watched(rig.box.port) as watch:
        result = rig.box.run(**rig.variables("smollm2"))
    assert result.rc == 0, result.text[-6000:]
    assert "The capital of France is Paris." in result.text
    assert rig.box.answers()
    assert rig.pids()["notes"] == notes, "the other instance was restarted"
    print(f"outage of a changed model: {watch.outage_s} s")


def test_a_killed_engine_comes_back(rig: Rig) -> None:
    pid = rig.pids()["chat"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 180
    while not (rig.pids()["chat"] not in (0, pid) and rig.box.answers()):
        assert time.monotonic() < deadline, rig.box.tool("logs", "chat").stdout[-3000:]
        time.sleep(1)


def serves(rig: Rig, limit_s: float, why: str) -> None:
    """Wait until the chat instance answers whatever its model says."""
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError):
            if rig.box.ask("Hello?")[0] == 200:
                return
        assert time.monotonic() < deadline, f"{why}: nothing serves"
        time.sleep(1)


def kill_engine(rig: Rig) -> None:
    os.kill(rig.pids()["chat"] or rig.pids()["notes"], signal.SIGKILL)


def kill_supervisor(rig: Rig) -> None:
    os.kill(int((rig.box.root / "run" / "supervisord.pid").read_text()), signal.SIGKILL)


@pytest.mark.skipif(not FULL, reason="ten kills of a run that changes the model take ten minutes")
@pytest.mark.parametrize("victim", ["run", "engine", "supervisor"])
def test_kills_of_an_upgrade(rig: Rig, victim: str) -> None:
    """Ten runs killed, two engines and two supervisors, each at a seeded moment of a run that changes the model."""
    chance = random.Random(f"{os.environ.get('GPURIG_E2E_SEED', '20261121')} {victim}")  # noqa: S311  not secrets
    models = ["tiny", "smollm2"]
    for number in range(10 if victim == "run" else 2):
        rig.box.variables |= rig.variables(models[number % 2])
        moment = chance.uniform(10, 70)
        why = f"kill {number} of the {victim} after {moment:.0f} s"
        if victim == "run":
            until = time.monotonic() + moment
            rig.box.killed_run(lambda until=until: time.monotonic() >= until, modules_too=False)
        else:
            timer = threading.Timer(moment, kill_engine if victim == "engine" else kill_supervisor, [rig])
            timer.start()
            result = rig.box.run()
            timer.cancel()
            print(f"{why}: the run ended with {result.rc} after {result.seconds:.0f} s")
            if victim == "supervisor":  # nothing watches over it in a sandbox: its user starts it again
                rig.box.tool("start")
        serves(rig, 180, why)
    rig.box.variables |= rig.variables("smollm2")
    result = rig.box.run()
    assert result.rc == 0, result.text[-6000:]
    assert rig.box.answers()
    again = rig.box.run()
    assert (again.rc, again.changed) == (0, 0), again.changed_tasks


@pytest.mark.skipif(not FULL, reason="a figure to compare with, not a promise")
def test_the_outage_of_stopping_first(rig: Rig) -> None:
    """What the upgrade is measured against: stop, take away, install, start."""
    with watched(rig.box.port) as watch:
        assert rig.box.tool("stop").returncode == 0
        shutil.rmtree(rig.box.root / "envs" / "vllm_cpu")
        result = rig.box.run(**rig.variables("tiny"))
    assert result.rc == 0, result.text[-6000:]
    assert rig.says() == make.ANSWER
    print(f"outage of stopping, installing and starting: {watch.outage_s} s")
