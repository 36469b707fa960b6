# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules vram_plan and vram_check, and the playbook plan: simulated cards, real headers, a small hub, a real log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import services
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import Card as SeenCard
from ansible_collections.gpurig.llm.plugins.module_utils.gpu_model import Driver, Gpu, GpuReport, Memory, Process
from ansible_collections.gpurig.llm.plugins.module_utils.plan_host import (
    HISTORY_ROWS,
    add_to_history,
    cards_of,
    engines_of,
    history_file,
    read_history,
    read_model,
    read_plan,
    write_plan,
)
from ansible_collections.gpurig.llm.plugins.module_utils.procfs import read_process
from ansible_collections.gpurig.llm.plugins.module_utils.start_failure import planned_remedies
from ansible_collections.gpurig.llm.plugins.modules.service_run import RunError
from ansible_collections.gpurig.llm.plugins.modules.vram_plan import ours_of
from ansible_collections.gpurig.llm.tests.hub_sim import HubSim
from ansible_collections.gpurig.llm.tests.integration.installed import Rig, installed
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig
from ansible_collections.gpurig.llm.tests.unit.header_sets import write_headers
from ansible_collections.gpurig.llm.tests.unit.test_instance_plan import QWEN_7B, SMALL
from ansible_collections.gpurig.llm.tests.unit.tiny_models import write_gguf

pytest_plugins = ["ansible_collections.gpurig.llm.tests.rigs.plugin"]
MakeRig = Callable[..., LiveRig]
RunModule = Callable[..., dict[str, Any]]
REPOSITORY = Path(__file__).resolve().parents[2]
HOST = "0000:65:00.0"
GIB = 1 << 30


@pytest.fixture
def coder(tmp_path: Path) -> Path:
    """A model of 14 GiB whose weights are holes."""
    write_headers(tmp_path / "coder", QWEN_7B, shards=2)
    return tmp_path / "coder"


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """A model of a few megabytes, for a hub, which reads all of it."""
    write_headers(tmp_path / "little", SMALL, shards=2)
    return tmp_path / "little"


def local(path: Path) -> dict[str, Any]:
    return {"source": "local", "format": "safetensors", "local": {"path": str(path)}}


def instance(path: Path, **keys: Any) -> dict[str, Any]:
    defaults = {"name": "chat", "port": 8000, "gpu_role": "inference", "context": 8192, "parallel": None}
    return {**defaults, "model": "coder", "task": "chat", "flags": {}, "model_entry": local(path), **keys}


def arguments(rig: LiveRig, tmp_path: Path, *instances: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        **rig.arguments,
        "instances": list(instances),
        "on_cards": [each["name"] for each in instances],
        "gpu_roles": {"inference": [rig.machine.place(HOST).uuid]},
        "models_dir": str(tmp_path / "models"),
        "state_dir": str(tmp_path / "state"),
        **more,
    }


def said(result: dict[str, Any]) -> list[str]:
    """The module's warnings, which this version of Ansible may give as records."""
    return [each["event"]["msg"] if isinstance(each, dict) else each for each in result.get("warnings", [])]


def content(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "state").rglob("*")) if path.is_file()}


def test_four_steps(make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule) -> None:
    rig = make_rig("guide_x299")
    given = arguments(rig, tmp_path, instance(coder))
    seen = run_module("vram_plan", given, check=True)
    assert seen["changed"] is True
    assert content(tmp_path) == {}
    made = run_module("vram_plan", given)
    assert (made["changed"], made["plans"]) == (True, seen["plans"])
    plan = made["plans"]["chat"]
    assert plan["verdict"] == "fits", plan["reason"]
    assert plan["plan"]["cards"][0]["card"] == "NVIDIA GeForce RTX 4090"
    assert "chat: fits" in made["diff"]["after"]
    assert read_plan(str(tmp_path / "state"), "chat") == plan
    before = content(tmp_path)
    for check in (False, True):
        again = run_module("vram_plan", given, check=check)
        assert (again["changed"], again["plans"], content(tmp_path)) == (False, made["plans"], before)
    assert rig.journal() == [], "nothing was set on a card"


def test_what_others_hold_counts_until_the_plan_is_made(
    make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule
) -> None:
    rig = make_rig("guide_x299")
    given = arguments(rig, tmp_path, instance(coder))
    idle = run_module("vram_plan", given)["plans"]["chat"]
    rig.describe(HOST, "memory_used", str(4 * GIB))
    assert run_module("vram_plan", given)["plans"]["chat"] == idle, "an engine is not restarted for a new window"
    busy = run_module("vram_plan", {**given, "replan": True})["plans"]["chat"]
    share = "gpu-memory-utilization"
    assert busy["flags"][share] < idle["flags"][share]


def test_what_does_not_fit_is_refused_or_forced(
    make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule
) -> None:
    rig = make_rig("guide_x299")
    tight = instance(coder, context=32768, flags={"gpu-memory-utilization": 0.68})
    given = arguments(rig, tmp_path, tight)
    refused = run_module("vram_plan", given)
    assert refused["failed"]
    for words in ("instance chat", "NVIDIA GeForce RTX 4090", "You asked for a context of 32768", "vllm_force: true"):
        assert words in refused["msg"]
    assert content(tmp_path) == {}
    forced = run_module("vram_plan", {**given, "force": True})
    assert not forced.get("failed")
    assert any(warning.startswith("forced: instance chat") for warning in said(forced))
    assert forced["plans"]["chat"]["flags"] == {}
    assert not run_module("vram_plan", {**given, "refuse": False}).get("failed")


def test_all_problems_are_told_together(make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule) -> None:
    rig = make_rig("guide_x299")
    flags = {"gpu-memory-utilization": 0.3}
    pair = [instance(coder, flags=flags), instance(coder, name="two", gpu_role="training", flags=flags)]
    roles = {"inference": [rig.machine.place(HOST).uuid], "training": [rig.machine.place("0000:17:00.0").uuid]}
    refused = run_module("vram_plan", arguments(rig, tmp_path, *pair, gpu_roles=roles))
    assert "instance chat" in refused["msg"]
    assert "instance two" in refused["msg"]
    assert "RTX 3090 Ti" in refused["msg"]


def test_a_hub_is_asked_for_headers_before_anything_is_fetched(
    make_rig: MakeRig, tmp_path: Path, little: Path, run_module: RunModule
) -> None:
    rig = make_rig("guide_x299")
    with HubSim() as hub:
        commit = hub.add("acme/little", little)
        entry = {"source": "hub", "format": "safetensors", "hub": {"repo": "acme/little", "revision": commit}}
        given = arguments(rig, tmp_path, instance(little, context=1024, model_entry=entry))
        made = run_module("vram_plan", given, environment={"HF_ENDPOINT": hub.endpoint})
        assert made["plans"]["chat"]["verdict"] == "fits"
        assert len(hub.downloads(".safetensors")) == 2, "one range request for each shard"
        assert all(seen.range.startswith("bytes=0-") for seen in hub.downloads(".safetensors"))
    on_disk = run_module("vram_plan", arguments(rig, tmp_path, instance(little, context=1024)))
    assert on_disk["changed"] is False, "the same model from a disk asks for no new plan"


def test_of_many_quantizations_the_one_that_is_fetched_is_read(tmp_path: Path) -> None:
    for kind in ("Q2_K", "Q4_K_M", "Q8_0"):
        write_gguf(tmp_path / "many" / f"tiny-{kind}.gguf")
    with HubSim() as hub:
        commit = hub.add("acme/many", tmp_path / "many")
        files = {"repo": "acme/many", "revision": commit, "files": ["*-Q4_K_M.gguf"]}
        entry = {"source": "hub", "format": "gguf", "hub": files}
        model, why_not = read_model("tiny", entry, "", {"HF_ENDPOINT": hub.endpoint})
        assert why_not == ""
        assert model is not None
        assert model.tensors
        assert {seen.path.rpartition("/")[2] for seen in hub.downloads(".gguf")} == {"tiny-Q4_K_M.gguf"}


def test_what_cannot_be_read_is_said_and_not_refused(
    make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule
) -> None:
    rig = make_rig("guide_x299")
    (coder / "config.json").write_text("{", encoding="utf-8")
    entries = {
        "broken": local(coder),
        "gone": local(tmp_path / "gone"),
        "packed": {
            "source": "package",
            "format": "gguf",
            "package": {"package": "a", "version": "1", "sha256": "0" * 64, "file": "a.gguf"},
        },
        "far": {"source": "hub", "format": "safetensors", "hub": {"repo": "acme/far", "revision": "0" * 40}},
    }
    instances = [instance(coder, name=name, model=name, model_entry=entry) for name, entry in entries.items()]
    given = arguments(rig, tmp_path, *instances)
    made = run_module("vram_plan", given, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert {plan["verdict"] for plan in made["plans"].values()} == {"not planned"}
    reasons = {name: plan["reason"] for name, plan in made["plans"].items()}
    assert "config.json is not JSON" in reasons["broken"]
    assert "no such file or directory" in reasons["gone"]
    assert "packed is not on this host yet" in reasons["packed"]
    assert "127.0.0.1:9" in reasons["far"]
    assert len(said(made)) == 4


def test_an_unknown_product_is_refused(tmp_path: Path, coder: Path, run_module: RunModule) -> None:
    given = {"instances": [instance(coder)], "on_cards": ["chat"], "gpu_roles": {"inference": ["RTX 9999"]}}
    assert "gpu_roles: card 'RTX 9999' is not in the catalogue" in run_module("vram_plan", given)["msg"]


def test_two_equal_products_are_two_cards(coder: Path, run_module: RunModule) -> None:
    roles = {"inference": ["RTX 4090"], "training": ["RTX 4090"], "third": ["RTX 4090#1"]}
    names = {"chat": "inference", "same": "training", "apart": "third"}
    instances = [instance(coder, name=name, gpu_role=role, context=1024) for name, role in names.items()]
    given = {"instances": instances, "on_cards": list(names), "gpu_roles": roles, "refuse": False}
    made = run_module("vram_plan", given)["plans"]
    assert made["apart"]["verdict"] == "fits"
    assert [made[name]["verdict"] for name in ("chat", "same")] != ["fits", "fits"], "two of 14 GiB on one card"


# -- whose memory it is ---------------------------------------------------------------------------------------------
def card_with(used_bytes: float, *processes: Process) -> GpuReport:
    memory = Memory(total_bytes=24 * GIB, used_bytes=int(used_bytes), cuda_total_bytes=24 * GIB)
    return GpuReport(Driver(True), (Gpu(SeenCard(0, "GPU-1", HOST, "a card"), memory=memory, processes=processes),))


def held(report: GpuReport, ours: dict[str, tuple[str, ...]]) -> float:
    return cards_of(report, ["GPU-1"], ours)[0].others_bytes


@pytest.fixture
def engine() -> Iterator[int]:
    """A process that is the service `chat`."""
    environment = {"GPURIG_SERVICE": "chat", "GPURIG_ROOT": "/rig"}
    with subprocess.Popen(["/bin/sleep", "60"], env=environment) as process:
        deadline = time.monotonic() + 5
        while (read_process(process.pid) or read_process(1)).service != "chat" and time.monotonic() < deadline:  # type: ignore[union-attr]
            time.sleep(0.01)
        yield process.pid
        process.kill()


def test_an_engine_that_is_planned_anew_is_no_stranger(engine: int) -> None:
    seen = card_with(20 * GIB, Process(engine, "compute", 19 * GIB), Process(1, "graphics", GIB))
    assert held(seen, {"chat": ("GPU-1",)}) == GIB
    assert held(seen, {"other": ()}) == 20 * GIB, "an engine that stays holds what it holds"


@pytest.mark.parametrize("processes", [(), (Process(999_999_999, "compute", None),)])
def test_in_a_container_our_own_engine_is_not_taken_for_another(processes: tuple[Process, ...]) -> None:
    seen = card_with(20 * GIB, *processes)
    assert held(seen, {"chat": ("GPU-1",)}) == 0
    assert held(seen, {"chat": ("GPU-2",)}) == 20 * GIB, "it runs on another card"
    assert held(seen, {"chat": ()}) == 20 * GIB, "it does not run"


def test_engines_on_record_are_known_by_their_label(served: Rig) -> None:
    for name, owner in (("chat", "instances"), ("page", "webui")):
        served.write(name, ["/bin/sleep", "60"], labels={"owner": owner})
    assert engines_of(served.host) == {"chat": ()}
    given: dict[str, Any] = {"rig": served.facts, "instances": [{"name": "new"}], "stays": []}
    assert ours_of(given) == {"chat": (), "new": ()}, "what is renamed or removed gives its memory back"
    assert ours_of({**given, "stays": ["chat"]}) == {"new": ()}


def test_a_record_of_another_kind_is_no_plan(
    make_rig: MakeRig, tmp_path: Path, coder: Path, run_module: RunModule
) -> None:
    write_plan(str(tmp_path / "state"), "chat", {"remedies": ["x"]})
    made = run_module("vram_plan", arguments(make_rig("guide_x299"), tmp_path, instance(coder)))
    assert made["plans"]["chat"]["verdict"] == "fits"


def test_the_history_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    history_file(str(tmp_path)).parent.mkdir()
    for name in ("history.jsonl", ".history.jsonl.new"):
        history_file(str(tmp_path)).with_name(name).symlink_to(victim)
    add_to_history(str(tmp_path), [], {"name": "chat"})
    assert victim.read_text(encoding="utf-8") == "mine"
    assert not history_file(str(tmp_path)).is_symlink()


# -- after a start -----------------------------------------------------------------------------------------------------
ENGINE = """
import sys, time
print("INFO [api_server.py:1] vLLM API server version 0.32.0", flush=True)
print("INFO [kv_cache_utils.py:1] CPU KV cache size: {tokens} tokens, Maximum concurrency for 1,024 tokens per "
      "request: {concurrency}x", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(services, "STEADY_S", 0.1)
    with installed() as made:
        yield made


def start(rig: Rig, tokens: str, concurrency: str) -> None:
    program = ENGINE.replace("{tokens}", tokens).replace("{concurrency}", concurrency)
    script = rig.root / "engine.py"
    script.write_text(program, encoding="utf-8")
    rig.write("chat", [sys.executable, str(script)], inputs=[str(script)])
    rig.run("chat")


def test_a_start_is_compared_with_its_plan(served: Rig, tmp_path: Path, run_module: RunModule) -> None:
    write_headers(tmp_path / "small", SMALL)
    chat = instance(tmp_path / "small", context=1024, flags={"kv-cache-memory-bytes": "64M"})
    state = served.paths["state"]
    planned = run_module("vram_plan", {"instances": [chat], "state_dir": state})["plans"]["chat"]["plan"]
    concurrency = planned["concurrency"]
    start(served, f"{int(concurrency * 1024):,}", f"{concurrency:.2f}")
    given = {"name": "chat", "rig": served.facts}
    looked = run_module("vram_check", given, check=True)
    assert (looked["changed"], looked["surprises"]) == (False, [])
    assert not history_file(state).exists()
    first = run_module("vram_check", given)
    assert (first["surprises"], said(first)) == ([], [])
    assert first["row"]["logged"]["kv_tokens"] == first["row"]["planned"]["kv_tokens"]
    assert read_history(state) == [first["row"]]
    run_module("vram_check", given)
    assert len(read_history(state)) == 1, "one start is one row"

    rig_lies = f"{int(concurrency * 1024 * 0.8):,}"
    start(served, rig_lies, f"{concurrency * 0.8:.2f}")
    second = run_module("vram_check", given)
    assert len(said(second)) == len(second["surprises"]) == 2
    assert second["surprises"][0].startswith("KV tokens: planned 16,384, the engine logged 13,107 (")
    assert "(-20" in second["surprises"][0]
    assert [row["name"] for row in read_history(state)] == ["chat", "chat"]
    assert said(run_module("vram_check", given)) == [], "once for each start"


def test_without_a_plan_nothing_is_compared(served: Rig, run_module: RunModule) -> None:
    start(served, "1,024", "1.00")
    assert run_module("vram_check", {"name": "chat", "rig": served.facts})["row"] == {}
    assert run_module("vram_check", {"name": "nobody", "rig": served.facts})["row"] == {}


def test_the_history_is_bounded_and_survives_a_torn_line(tmp_path: Path) -> None:
    state = str(tmp_path)
    add_to_history(state, [{"name": str(number)} for number in range(HISTORY_ROWS)], {"name": "new"})
    rows = read_history(state)
    assert (len(rows), rows[0]["name"], rows[-1]["name"]) == (HISTORY_ROWS, "1", "new")
    with history_file(state).open("a", encoding="utf-8") as stream:
        stream.write('{"name": "to')
    assert read_history(state) == rows


def test_a_failed_start_is_answered_with_the_plan_s_remedies(served: Rig) -> None:
    state = served.paths["state"]
    write_plan(state, "chat", {"remedies": ["shorter context", "8 bit KV", "no graphs", "too much"]})
    assert planned_remedies(served.host, "chat")[:2] == ["shorter context", "8 bit KV"]
    dies = "import sys; sys.exit('ValueError: No available memory for the cache blocks. Try increasing')"
    served.write("chat", [sys.executable, "-c", dies])
    with pytest.raises(RunError, match="What would help: shorter context; 8 bit KV; no graphs"):
        served.run("chat")
    served.run("chat", "absent")
    assert read_plan(state, "chat") is None, "the plan goes with its service"


# -- the playbook ------------------------------------------------------------------------------------------------------
def playbook(
    tmp_path: Path, inventory: dict[str, Any], *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    hosts = {"all": {"hosts": {"rig": {"ansible_host": "192.0.2.1", "ansible_connection": "ssh", **inventory}}}}
    (tmp_path / "hosts.json").write_text(json.dumps(hosts), encoding="utf-8")
    command = [Path(sys.executable).with_name("ansible-playbook"), REPOSITORY / "playbooks/plan.yml"]
    return subprocess.run(
        [*command, "-i", tmp_path / "hosts.json", "-e", f"plan_page={tmp_path}/plan.html", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path), "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), **environment},
    )


def test_the_playbook_plans_without_touching_a_host(tmp_path: Path, little: Path) -> None:
    with HubSim() as hub:
        commit = hub.add("acme/little", little)
        inventory = {
            "rig_gpus": [{"name": "trainer", "product": "RTX 3090 Ti"}, {"name": "host", "product": "RTX 4090"}],
            "rig_gpu_roles": {"inference": ["host"], "training": ["trainer", "host"]},
            "rig_models": {
                "little": {"source": "hub", "format": "safetensors", "hub": {"repo": "acme/little", "revision": commit}}
            },
            "rig_instances": [{"name": "chat", "model": "little", "context": 1024}],
            "rig_environment": {"HF_ENDPOINT": hub.endpoint},
        }
        done = playbook(tmp_path, inventory)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "chat: fits" in done.stdout
        assert "NVIDIA GeForce RTX 4090" in done.stdout
        page = (tmp_path / "plan.html").read_text(encoding="utf-8")
        assert "rig: NVIDIA GeForce RTX 4090" in page
        other = playbook(tmp_path, {**inventory, "rig_gpu_roles": {}}, "-e", '{"plan_cards": ["L4"]}')
        assert "NVIDIA L4" in other.stdout, other.stdout + other.stderr
        small = playbook(tmp_path, {**inventory, "rig_gpu_roles": {}}, "-e", '{"plan_cards": ["GTX 1080"]}')
        assert small.returncode == 0
        assert "chat: does not fit" in small.stdout
        assert "would help" in small.stdout
