# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every cause on its own logs and on all others'; each log says whether it was captured or quoted, and where."""

from __future__ import annotations

import itertools
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import start_causes
from ansible_collections.gpurig.llm.plugins.module_utils.services import Host, ServiceState
from ansible_collections.gpurig.llm.plugins.module_utils.start_causes import (
    CAUSES,
    IMPORTING,
    NAMES,
    UNKNOWN,
    Ending,
    cuda_version,
    diagnose,
    matches,
    remedy_of,
    start_phase,
    starts,
)
from ansible_collections.gpurig.llm.plugins.module_utils.start_failure import Kills, explain, kernel_kills, memory_kill

FOLDER = Path(__file__).parents[1] / "data" / "start_logs"
NO_CAUSE = "no_cause"
SECOND_START = "gpurig exec: chat: start 2 in a row, waiting 5 s"


@dataclass(frozen=True)
class Log:
    name: str
    cause: str
    source: str
    lines: tuple[str, ...]


def read(path: Path) -> Log:
    cause, source, *lines = path.read_text(encoding="utf-8").splitlines()
    return Log(path.stem, cause.removeprefix("# cause: "), source, tuple(lines))


LOGS = tuple(read(path) for path in sorted(FOLDER.glob("*.log")))
FAILED = tuple(log for log in LOGS if log.cause != NO_CAUSE)
CAUSE = {cause.name: cause for cause in CAUSES}


def log_of(name: str) -> list[str]:
    return list(next(log for log in LOGS if log.name == name).lines)


# --- the logs themselves


def test_there_are_at_least_twenty_causes_with_a_log_each() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 20
    without = set(NAMES) - {log.cause for log in LOGS}
    assert without == {"refused_by_gpurig"}, "its texts are our own, see test_what_gpurig_refuses"


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_each_log_says_where_it_is_from(log: Log) -> None:
    assert log.cause in {*NAMES, NO_CAUSE}
    captured = re.match(r"# captured: (vLLM 0\.\d+\.\d+|xllamacpp [\d.]+) .*: .+", log.source)
    quoted = re.match(r"# quoted: [\w.-]+/[\w.-]+#\d+", log.source)
    assert captured or quoted, log.source
    assert not re.search(r"/(root|home|tmp|work)/", "\n".join(log.lines))


# --- the confusion table


def test_each_log_has_exactly_its_own_cause() -> None:
    """The whole table: every cause's patterns over every log."""
    table: dict[str, list[str]] = defaultdict(list)
    for log in LOGS:
        text = "\n".join(itertools.chain.from_iterable(starts(log.lines)))
        for cause in CAUSES:
            if matches(cause, text):
                table[log.name].append(cause.name)
    wrong = {log.name: table[log.name] for log in LOGS if table[log.name] != [log.cause] * (log.cause != NO_CAUSE)}
    assert not wrong


@pytest.mark.parametrize("log", FAILED, ids=lambda log: log.name)
def test_the_cause_is_found_with_a_remedy(log: Log) -> None:
    found = diagnose(log.lines)
    assert found.cause == log.cause
    assert "{" not in found.sentence + found.remedy
    assert found.line
    message = found.message()
    assert found.sentence in message
    assert found.remedy in message
    assert len(message) < 1500


def test_a_later_start_hides_the_earlier_ones() -> None:
    one_each = {log.cause: log for log in FAILED}.values()
    for before, after in itertools.permutations(one_each, 2):
        found = diagnose([*before.lines, SECOND_START, *after.lines])
        assert found.cause == after.cause, f"{before.name} before {after.name}"


@pytest.mark.parametrize("log", [log for log in LOGS if log.cause == NO_CAUSE], ids=lambda log: log.name)
def test_a_good_start_has_no_cause(log: Log) -> None:
    assert diagnose(log.lines).cause == UNKNOWN


# --- what a diagnosis says


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("context_too_long_for_memory-1", "context: 2560 or less"),
        ("context_too_long_for_memory-2", "context: 34560 or less"),
        ("context_too_long_for_memory-3", "a smaller context"),
        ("context_too_long_for_blocks-1", "context: 7168 or less"),
        ("context_above_model-1", "context: 8192 or less"),
        ("heads_do_not_divide-1", "possible here: 1, 3, 9"),
        ("driver_too_old-1", "knows CUDA 12.8"),
        ("format_needs_newer_card-1", "compute capability 7.0, needed is 7.5"),
        ("format_needs_newer_card-2", "compute capability 7.5, needed is 8.0"),
        ("tool_parser_unknown-1", "named hermes9"),
        ("memory_taken_by_others-1", "47.38 GiB only 31.44 are free"),
        ("out_of_memory_after_pool-2", "2.00 MiB wanted, 448.00 KiB of 44.53 GiB free"),
        ("flag_unknown-1", "--swap-space 4"),
        ("gated_model-1", "meta-llama/Llama-3.2-1B-Instruct"),
        ("dtype_needs_newer_card-1", "Tesla T4"),
        ("architecture_unknown-1", "architecture foo"),
        ("architecture_unknown-2", "FooForCausalLM"),
        ("model_missing-3", "smollm2/gone.gguf"),
        ("no_permission-1", "secret.gguf"),
    ],
)
def test_the_values_of_the_log_are_used(name: str, said: str) -> None:
    assert said in diagnose(log_of(name)).message()


@pytest.mark.parametrize(
    "piece", ["x", "--flag 4 ", "OSError: '", "Quantization scheme is not supported for ", "(a pid=1) "]
)
def test_a_hostile_log_takes_no_time(piece: str) -> None:
    began = time.process_time()
    assert diagnose([piece * 50_000] * start_causes.LOG_LINES).cause == UNKNOWN
    assert time.process_time() - began < 5


def test_an_unknown_cause_gives_the_last_lines() -> None:
    found = diagnose(["usage: x", "one", "two", "Surprise: ValueError is not at the start", "three", "four"])
    assert found.cause == UNKNOWN
    assert found.remedy == ""
    assert found.line.endswith("three\n  four")
    assert diagnose([]).message() == "The cause is not one of those known. Its log is empty."


def test_the_planner_knows_better_about_memory_only() -> None:
    planned = ["context 8192 (fits)", "tensor-parallel-size 2 (fits)"]
    found = diagnose(log_of("context_too_long_for_memory-2"), planned=planned)
    assert found.remedy == "What would help: context 8192 (fits); tensor-parallel-size 2 (fits)."
    assert remedy_of(CAUSE["port_taken"], {}, planned) == CAUSE["port_taken"].remedy


def test_cuda_versions() -> None:
    assert [cuda_version(text) for text in ("12080", "13000", "9020", "12")] == ["12.8", "13.0", "9.2", "12"]


# --- starts


def test_the_start_before_counts_while_the_new_one_is_silent() -> None:
    lines = [*log_of("port_taken-1"), SECOND_START]
    assert diagnose(lines).cause == "port_taken"
    loading = [
        "INFO 11-21 10:00:00 [api_server.py:1] vLLM API server version 0.32.0",
        "(EngineCore pid=7) INFO 11-21 14:23:06 [cpu_worker.py:68] Starting to load model x",
    ]
    assert diagnose([*lines, *loading]).cause == UNKNOWN
    assert diagnose([*lines, *loading], Ending(again=True)).cause == "port_taken"


def test_a_spent_budget_is_no_cause() -> None:
    lines = [
        "Started gpurig-chat.service - vLLM.",
        *log_of("port_taken-1"),
        "Started gpurig-chat.service - vLLM.",
        "gpurig exec: chat: 3 starts within 600 s, the restart budget is spent; it stays down. See gpurig logs chat",
        "gpurig-chat.service: Main process exited, code=exited, status=78/CONFIG",
    ]
    assert diagnose(lines).cause == "port_taken"
    silent = diagnose(["loading", lines[-2]])
    assert silent.line == "loading"


def test_a_library_that_tells_its_version_is_no_start() -> None:
    lines = [
        "[worker.py:1] Available KV cache memory: 1 GiB",
        "NCCL version 2.27.3",
        *log_of("out_of_memory_loading-1"),
    ]
    assert diagnose(lines).cause == "out_of_memory_after_pool"


def test_what_gpurig_refuses() -> None:
    found = diagnose([*log_of("port_taken-1"), SECOND_START, "gpurig exec: chat: GPU role inference: no card answers"])
    assert found.cause == "port_taken", "a role that is resolved is no refusal"
    found = diagnose([SECOND_START, "gpurig exec: chat: secrets file /srv/gpurig/secrets/chat.env: No such file"])
    assert found.cause == "refused_by_gpurig"
    assert "chat.env: No such file" in found.sentence


# --- the kernel


def test_a_kill_needs_evidence() -> None:
    loading = ["(EngineCore pid=7) INFO 11-21 14:23:06 [cpu_worker.py:68] Starting to load model x"]
    assert diagnose(loading).cause == UNKNOWN
    found = diagnose(loading, Ending("oom_kill in memory.events rose from 0 to 1 meanwhile"))
    assert found.cause == "killed_for_memory"
    assert "probably by the kernel" in found.sentence
    assert "rose from 0 to 1" in found.sentence
    assert diagnose(log_of("killed-1")).cause == "killed"
    assert diagnose(log_of("killed-1"), Ending("the counter rose")).cause == "killed_for_memory"
    assert diagnose(log_of("port_taken-1"), Ending("the counter rose")).cause == "port_taken"


def state(note: str = "", *lines: str) -> ServiceState:
    return ServiceState("chat", "failed", note=note, log_tail=list(lines))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sys/fs/cgroup/memory.events", "low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 0\n"),
        ("proc/vmstat", "nr_free_pages 17\noom_kill 2\n"),
    ],
)
def test_the_kernels_counters(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert kernel_kills(str(tmp_path)) == Kills(2, str(path))
    assert f"oom_kill in {path} rose from 1 to 2" in memory_kill(
        state(), Kills(1, str(path)), kernel_kills(str(tmp_path))
    )


def test_no_evidence_without_a_counter_that_rose(tmp_path: Path) -> None:
    assert kernel_kills(str(tmp_path)) == Kills()
    assert memory_kill(state(), Kills(), Kills()) == ""
    assert memory_kill(state(), Kills(2, "a"), Kills(2, "a")) == ""
    assert memory_kill(state(), Kills(0, "a"), Kills(2, "b")) == ""
    assert memory_kill(state("exit-code, exit status 1"), Kills(), Kills()) == ""


def test_systemd_is_believed(tmp_path: Path) -> None:
    host = Host("pod", "supervisord", {"services": str(tmp_path), "state": str(tmp_path)})
    found = explain(host, state("oom-kill, exit status 9", "loading"), kernel_kills())
    assert found.cause == "killed_for_memory"
    assert "systemd says Result=oom-kill" in found.sentence


# --- phases


def phases(lines: list[str]) -> list[str]:
    seen = [start_phase(lines[: count + 1]) for count in range(len(lines))]
    return [phase for phase, _same in itertools.groupby(seen)]


def test_the_phases_of_real_starts() -> None:
    eager = phases(log_of("no_cause-1"))
    order = [
        "reading the model's configuration",
        "starting its processes",
        "loading weights",
        "loading weights, 0 % (0 of 1 files)",
        "loading weights, 100 % (1 of 1 files)",
        "measuring memory with the largest batch",
        "allocating the KV cache",
        "warming up",
        "opening its port",
        "serving",
    ]
    assert [phase for phase in eager if phase in order] == order
    compiled = phases(log_of("no_cause-2"))
    assert compiled[-1] == "compiling"
    assert "loading weights, 100 % (1 of 1 files)" in compiled
    llama = phases(log_of("no_cause-3"))
    assert llama[-2:] == ["warming up", "serving"] or llama[-1] == "serving"
    assert "loading weights" in llama


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        # gpustack/runner#251, vLLM 0.27.1
        (
            "(Worker_TP1 pid=448) INFO 08-14 14:07:20 [gpu_model_runner.py:6681] Profiling CUDA graph memory: PIE",
            "measuring the graphs' memory",
        ),
        (
            "(Worker_TP0 pid=447) INFO 08-14 14:07:22 [gpu_worker.py:563] Available KV cache memory: 6.87 GiB",
            "allocating the KV cache",
        ),
        # vllm-project/vllm#15039 and #18390
        (
            "Loading safetensors checkpoint shards: 27% Completed | 8/30 [00:02<00:07, 2.84it/s]",
            "loading weights, 27 % (8 of 30 files)",
        ),
        ("INFO 05-19 06:18:39 [backends.py:426] Dynamo bytecode transform time: 27.52 s", "compiling"),
        # vllm-project/vllm#15598
        (
            "INFO 03-27 10:29:03 [model_runner.py:1442] Capturing cudagraphs for decoding. This may lead",
            "capturing graphs",
        ),
        ("Capturing CUDA graph shapes:  40%|####      | 14/35 [00:09<00:13,  1.52it/s]", "capturing graphs, 40 %"),
        # ggml-org/llama.cpp#20431
        ("load_tensors: loading model tensors, this can take a while... (mmap = true)", "loading weights"),
        ("a line of some other program", ""),
        ("gpurig exec: chat: GPU role inference: index 0", IMPORTING),
    ],
)
def test_the_phase_of_a_line(line: str, phase: str) -> None:
    assert (
        start_phase(
            ["INFO 11-21 10:00:00 [api_server.py:1] vLLM API server version 0.32.0", "usage: x", line]
            if phase != IMPORTING
            else [line]
        )
        == phase
    )


def test_a_silent_start_is_importing() -> None:
    assert start_phase([]) == IMPORTING
    assert start_phase([*log_of("no_cause-1"), "Started gpurig-chat.service - vLLM."]) == IMPORTING


def test_the_table_is_in_inventory_words() -> None:
    """No remedy tells people to use an option that the roles set themselves."""
    for cause in CAUSES:
        text = cause.remedy if isinstance(cause.remedy, str) else cause.remedy({})
        assert text or cause.name == "refused_by_gpurig"
        assert not re.search(r"max[-_]model[-_]len|max[-_]num[-_]seqs|ctx-size|flags\.(port|model|parallel)\b", text)
    assert start_causes.LOG_LINES >= 400
