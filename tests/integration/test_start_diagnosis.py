# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A failing start is explained by the modules: real supervisord and tool; the engines print logs of real ones."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import services
from ansible_collections.gpurig.llm.plugins.module_utils.start_failure import Kills, explain, holders
from ansible_collections.gpurig.llm.tests.integration.installed import Rig, installed
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.rigs.machines import Process, machine, with_card

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]

RunModule = Callable[..., dict[str, Any]]
LOGS = Path(__file__).parents[1] / "data" / "start_logs"
HOST = "0000:65:00.0"
# It prints a log, then ends or goes on without ever answering.
ENGINE = """
import sys, time
for line in open(sys.argv[1]).read().splitlines()[2:]:
    print(line, flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with installed() as made:
        yield made


@pytest.fixture
def url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/health"


def start(rig: Rig, run_module: RunModule, name: str, log: Path, then_s: float, **more: Any) -> dict[str, Any]:
    script = rig.root / "engine.py"
    script.write_text(ENGINE)
    texts = rig.texts(name, [sys.executable, str(script), str(log), str(then_s), "1"], **more)
    return run_module("service_run", {"name": name, "rig": rig.facts, **texts})


def test_a_start_is_followed_and_its_end_explained(rig: Rig, run_module: RunModule, url: str, tmp_path: Path) -> None:
    log = tmp_path / "loading.log"
    shards = "Loading safetensors checkpoint shards:  27% Completed | 8/30 [00:02<00:07, 2.84it/s]"
    log.write_text(f"#\n#\nINFO vLLM API server version 0.32.0\n{shards}\n")
    started = start(rig, run_module, "slow", log, 1000)
    args = {"name": "slow", "health_url": url, "rig": rig.facts, "first_pid": started["pid"]}
    seen = run_module("engine_health", {**args, "slice_s": 1})
    assert seen["phase"] == "loading weights, 27 % (8 of 30 files)"
    assert not seen["ready"]
    late = run_module("engine_health", {**args, "timeout_s": 1})
    assert "slow was not ready after 1 s: loading weights, 27 % (8 of 30 files)." in late["msg"]
    assert (late["cause"], late["remedy"]) == ("unknown", "")
    rig.run("slow", "absent")


def test_a_death_names_cause_and_remedy(rig: Rig, run_module: RunModule, url: str) -> None:
    log = LOGS / "context_too_long_for_memory-1.log"
    started = start(rig, run_module, "chat", log, 3, restart={"starts": 5, "window_s": 600, "delay_s": 1})
    assert started["service_state"] == "running"
    args = {"name": "chat", "health_url": url, "rig": rig.facts, "first_pid": started["pid"], "timeout_s": 60}
    failed = run_module("engine_health", args)
    assert failed["cause"] == "context_too_long_for_memory"
    assert failed["remedy"].startswith("Write context: 2560 or less")
    assert failed["remedy"] in failed["msg"]
    assert "One request of 8192 tokens needs 0.18 GiB" in failed["msg"]
    assert "gpurig logs chat" in failed["msg"]
    assert len(failed["log_tail"]) <= services.LOG_LINES
    rig.run("chat", "absent")


def test_service_run_explains_too(rig: Rig, run_module: RunModule) -> None:
    failed = start(rig, run_module, "port", LOGS / "port_taken-1.log", 0, restart={"starts": 1, "window_s": 600})
    assert "port: is budget spent after its start" in failed["msg"] or "port: is starting" in failed["msg"]
    assert "Another process listens on the instance's port. End that process" in failed["msg"]
    rig.run("port", "absent")


def test_who_holds_the_memory(rig: Rig, make_rig: Callable[..., LiveRig]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        held = (Process(other.pid, "python3", 20480), Process(os.getpid(), "python3", 1024))
        live = make_rig(with_card(machine("guide_x299"), HOST, processes=held))
        facts = json.loads(Path(rig.host_json).read_text())
        Path(rig.host_json).write_text(json.dumps({**facts, "nvml_path": live.nvml_path}))
        rig.write("chat", ["/bin/true"], gpu_role="inference")
        roles = Path(rig.paths["config"], "gpu_roles.json")
        lines = (LOGS / "memory_taken_by_others-1.log").read_text().splitlines()[2:]
        state = services.ServiceState("chat", "failed", log_tail=lines)
        roles.write_text(json.dumps({"inference": [HOST]}))
        found = explain(rig.host, state, Kills())
        assert found.cause == "memory_taken_by_others"
        assert f"Now process {other.pid} (" in found.sentence
        assert ") holds 20.00 GiB of NVIDIA GeForce RTX 4090 (0000:65:00.0); process" in found.sentence
        roles.write_text(json.dumps({"inference": ["0000:17:00.0"]}))
        assert holders(rig.host, "chat") == []
        Path(rig.host_json).write_text(json.dumps(facts))
        other.communicate(b"\n")
