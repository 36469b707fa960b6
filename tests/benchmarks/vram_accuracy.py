# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How near the memory planner comes to what engines really logged.

python tests/benchmarks/vram_accuracy.py [FILE...] [--json] [--rows] [--hf-mem PYTHON]

FILE: start-ups in the format of tests/data/vram_cases.jsonl (the default); several are judged as one. `--rows` prints
every row's figures, `--hf-mem` sets that program's weights beside ours. Beside each table stand its coverage (rows that
the planner answers, of those usable) and a baseline that needs no planner. Only the margin of the pool was calibrated
(engine_vllm.MARGIN_*, and the ranges that its docstrings call seen); it is also judged with one family left out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils.vram import engine_llama
from ansible_collections.gpurig.llm.plugins.module_utils.vram.architecture import Architecture, read_config
from ansible_collections.gpurig.llm.plugins.module_utils.vram.cards import card_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.engine_vllm import (
    MARGIN_V0,
    MARGIN_V1,
    accounting_of,
    load_rules,
    parse_version,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vram.kv import KvLayout, concurrent_batches, layout
from ansible_collections.gpurig.llm.plugins.module_utils.vram.plan import plan
from ansible_collections.gpurig.llm.plugins.module_utils.vram.request import (
    FITS,
    UNKNOWN,
    Card,
    Model,
    PlanError,
    Request,
    Wishes,
)
from ansible_collections.gpurig.llm.plugins.module_utils.vram.tensors import derive, quantization_named
from ansible_collections.gpurig.llm.plugins.module_utils.vram.weights import Split, weights_per_rank
from ansible_collections.gpurig.llm.tests.benchmarks import hf_mem_peer

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/vram_cases.jsonl"
GIB = 1 << 30
MIB = 1 << 20
LLAMA = ("llama.cpp", "ollama")
SAFE_SHARE = 0.95

CLASS_GIB = {8: 7.65, 16: 14.56, 24: 23.51, 32: 31.4, 40: 39.39, 48: 44.31, 80: 79.15}
"""Smallest total that CUDA reports on a card of a size class: the totals that public logs print (vLLM, llama.cpp)."""
MODEL_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "mistral", "qwen-moe": "qwen3_moe",
    "vl": "qwen2_5_vl", "gpt-oss": "gpt_oss", "minimax": "minimax_m2",
}  # fmt: skip
"""model_type of the families where a row's abbreviated config leaves it out."""
GEMMA3_ROPE = {"rope_type": "linear", "factor": 8.0}
"""rope_scaling in the public config.json of every Gemma 3 with pictures; the rows' abbreviated configs leave it out."""

Row = Mapping[str, Any]


# --- rows as requests --------------------------------------------------------------------------------------------


def read_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """All rows of all files that were not dropped as contradictory."""
    rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [row for row in rows if "DROPPED" not in (row.get("flags") or [])]


def config_of(row: Row) -> dict[str, Any]:
    """The row's abbreviated config with the keys that config.json has under other names."""
    config = dict(row["config"])
    if not config.get("model_type"):
        kind = MODEL_TYPES.get(row["family"], "")
        if row["family"] == "gemma":
            kind = "gemma3_text" if config.get("sliding_window_pattern") else "gemma2"
        if row["family"] == "phi" and config.get("mlp_matrices") == 2:
            kind = "phi"
        config["model_type"] = kind
    if config["model_type"] == "gemma3_text" and config.get("vision_params_b_approx"):
        config.setdefault("rope_scaling", GEMMA3_ROPE)
    counts = config.get("layer_types_count")
    if counts and "layer_types" not in config:
        config["layer_types"] = _spread(counts)
    return config


def _spread(counts: Mapping[str, int]) -> list[str]:
    """Layer kinds dealt evenly: the rarer kind closes each group, as the public models have it."""
    few, many = sorted(counts, key=lambda kind: counts[kind])[:2]
    total, rare = counts[few] + counts[many], counts[few]
    return [few if (index + 1) * rare // total > index * rare // total else many for index in range(total)]


def model_of(row: Row) -> Model:
    approximately = row["config"].get("vision_params_b_approx")
    return Model(
        row["model"],
        config_of(row),
        quantization=row["quantization"] or "none",
        vision_parameters=int(approximately * 1e9) if approximately else None,
    )


def architecture_of(row: Row) -> Architecture:
    model = model_of(row)
    return read_config(model.config, model.vision_parameters)


def total_gib(row: Row) -> tuple[list[float], bool]:
    """Totals of the row's cards as CUDA sees them, and whether the row says them."""
    text = row["gpu"] or ""
    logged = row["logged"].get("gpu_total_gib")
    if logged:
        return [logged] * (row["gpu_count"] or 1), True
    names = [part.strip() for part in text.split("+")]
    found = [_one_total(name) for name in names]
    if not text or any(total is None for total, _stated in found):
        return [], False
    totals = [total for total, _stated in found if total is not None]
    if len(totals) == 1:
        totals *= row["gpu_count"] or 1
    return totals, all(stated for _total, stated in found)


def _one_total(name: str) -> tuple[float | None, bool]:
    gib, decimal = re.search(r"([\d.]+) GiB", name), re.search(r"([\d.]+) GB\)", name)
    if gib:
        return float(gib[1]), True
    if decimal:
        return float(decimal[1]) * 1e9 / GIB, True
    size = re.search(r"\b(\d+) ?GB\b", name)
    if size and int(size[1]) in CLASS_GIB:
        return CLASS_GIB[int(size[1])], True
    try:
        return card_named(name).total_bytes / GIB, True
    except PlanError:
        return None, False


def request_of(row: Row, context: int | None = None) -> Request | None:
    """The row's start as a request, flags as they were; None when the planner would lack the model or the cards."""
    totals, _stated = total_gib(row)
    if not row["config"] or not totals or row["engine"] is None:
        return None
    cards = tuple(
        Card(row["gpu"], total * GIB, unified="unified_memory" in (row["flags"] or []), uuid=str(index))
        for index, total in enumerate(totals)
    )
    partition = re.search(r"PP_LAYER_PARTITION=([\d,]+)", row.get("other_flags") or "")
    cp = re.search(r"decode context parallel (\d+)", row.get("other_flags") or "")
    wishes = Wishes(
        context=context or row["max_model_len"],
        kv_dtype=row["kv_cache_dtype"] or "auto",
        tensor_parallel=row["tp"],
        pipeline_parallel=row["pp"],
        layer_partition=tuple(map(int, partition[1].split(","))) if partition else (),
        utilization=row["gpu_memory_utilization"],
        max_num_seqs=row["max_num_seqs"],
        max_num_batched_tokens=row["max_num_batched_tokens"],
        enforce_eager=row["enforce_eager"],
        context_parallel=int(cp[1]) if cp else 1,
        explicit=True,
    )
    if row["engine"] in LLAMA:
        kinds = (row["kv_cache_dtype"] or "f16").split(",")
        wishes = replace(wishes, kv_dtype=kinds[0].removeprefix("k="), slots=1, tensor_parallel=1, pipeline_parallel=1)
        return Request(model_of(row), cards, "llama_cpp", None, wishes)
    return Request(model_of(row), cards, "vllm", row["vllm_version"], wishes, row["engine"] == "v1")


def missing_inputs(row: Row) -> list[str]:
    """Which inputs of an outcome the row does not state."""
    totals, stated = total_gib(row)
    found = [] if totals and stated else ["the card's memory"]
    found += [] if row["config"] else ["the model's config"]
    if row["engine"] in LLAMA:
        return found + ([] if row["max_model_len"] else ["max_model_len"])
    found += [name for name in ("gpu_memory_utilization", "max_model_len", "engine") if row[name] is None]
    return found


# --- measures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One row's figure: predicted and logged, `naive` by the baseline."""

    id: str
    family: str
    predicted: float
    logged: float
    naive: float | None = None
    low: float | None = None
    margin: float = 0.0
    flagged: bool = False

    @property
    def error(self) -> float:
        return abs(self.predicted / self.logged - 1)


@dataclass
class Table:
    """The figures of one measure and which usable rows the planner gave no figure for, with the reason."""

    usable: int
    rows: list[Measured]
    uncovered: dict[str, str]


Predict = Callable[[Row], "Measured | str"]


def measure(rows: Sequence[Row], usable: Callable[[Row], bool], predict: Predict) -> Table:
    chosen = [row for row in rows if usable(row)]
    found: list[Measured] = []
    uncovered: dict[str, str] = {}
    for row in chosen:
        try:
            result = predict(row)
        except ValueError as error:
            result = str(error)
        if isinstance(result, str):
            uncovered[row["id"]] = result
        else:
            found.append(result)
    return Table(len(chosen), found, uncovered)


def is_llama(row: Row) -> bool:
    return row["engine"] in LLAMA


def usable_for(name: str) -> Callable[[Row], bool]:
    return lambda row: name in row["usable_for"]


def predict_weights(row: Row) -> Measured | str:
    logged = row["logged"].get("weights_gib")
    if logged is None:
        return "a llama.cpp model buffer: which tensors a file of this type holds is not known without its header"
    if not row["config"]:
        return "no config"
    arch = architecture_of(row)
    if arch.incomplete:
        return "; ".join(arch.incomplete)
    quantization = quantization_named(row["quantization"] or "")
    version = parse_version(row["vllm_version"])
    rules = load_rules(version, row["engine"] == "v1" or (row["engine"] is None and version >= (0, 8, 0)), arch)
    split = Split(row["tp"], row["pp"])
    tensors = derive(arch, quantization)
    found = weights_per_rank(tensors, arch, quantization, split, rules)[0].total_bytes / GIB
    naive = (row.get("check") or {}).get("naive_weights_gib")
    return Measured(row["id"], row["family"], found, logged, naive)


def layout_of(row: Row) -> KvLayout:
    version = parse_version(row["vllm_version"])
    accounting = accounting_of(version, None if row["engine"] is None else row["engine"] == "v1")
    cp = re.search(r"decode context parallel (\d+)", row.get("other_flags") or "")
    return layout(
        architecture_of(row),
        row["kv_cache_dtype"] or "auto",
        row["tp"],
        int(cp[1]) if cp else 1,
        windows=accounting.grouped_windows,
        v1=accounting.v1,
        batches=concurrent_batches(version),
    )


def batched_of(row: Row) -> int:
    return int(row["max_num_batched_tokens"] or 2048)


def logged_tokens(row: Row) -> int | None:
    logged = row["logged"]
    if logged.get("kv_tokens"):
        return int(logged["kv_tokens"])
    return logged["gpu_blocks"] * (logged["block_size"] or 16) if logged.get("gpu_blocks") else None


def predict_tokens(row: Row) -> Measured | str:
    """Tokens of the logged pool: bytes per token and page arithmetic at once. llama.cpp: the KV buffer itself."""
    logged = row["logged"]
    if not row["config"]:
        return "no config"
    if is_llama(row):
        return _llama_kv(row)
    tokens = logged_tokens(row)
    if tokens is None or logged.get("kv_cache_gib") is None:
        return "the log prints no pool or no tokens"
    pool = logged["kv_cache_gib"] * GIB
    naive = pool / _naive_token_bytes(row)
    return Measured(row["id"], row["family"], layout_of(row).tokens(pool), tokens, naive)


def _naive_token_bytes(row: Row) -> float:
    """What a calculator without layer kinds takes: 2 x layers x KV heads x head size x 2 bytes / TP."""
    c = row["config"]
    heads = c.get("num_key_value_heads") or c["num_attention_heads"]
    width = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return 2 * c["num_hidden_layers"] * heads * width * 2 / row["tp"]


def _llama_kv(row: Row) -> Measured | str:
    logged = row["logged"].get("kv_buffer_mib") or row["logged"].get("ollama_kv_mib")
    if logged is None or row["max_model_len"] is None:
        return "the log prints no KV buffer or no context"
    if "kv_not_mla" in (row["flags"] or []):
        return "an engine without MLA support"
    kinds = dict(part.split("=") for part in (row["kv_cache_dtype"] or "f16").split(",") if "=" in part)
    usual = row["kv_cache_dtype"] if not kinds else "f16"
    slots = row["max_num_seqs"] or 1
    shape = engine_llama.LlamaShape(
        row["max_model_len"], slots, row["max_num_batched_tokens"] or 512, kinds.get("k", usual), kinds.get("v", usual),
        bool(row.get("kv_unified")) or row["engine"] == "ollama", full_windows="swa_full" in (row["flags"] or []),
    )  # fmt: skip
    arch = architecture_of(row)
    found = engine_llama.kv_bytes(arch, shape) + engine_llama.state_bytes(arch, slots)
    naive = _naive_token_bytes({**row, "tp": 1}) * row["max_model_len"] / MIB
    return Measured(row["id"], row["family"], found / MIB, logged, naive)


def predict_need(row: Row) -> Measured | str:
    found = layout_of(row).request_bytes(row["max_model_len"], batched_of(row)) / GIB
    naive = _naive_token_bytes(row) * row["max_model_len"] / GIB
    return Measured(row["id"], row["family"], found, row["logged"]["kv_needed_gib"], naive)


def predict_concurrency(row: Row) -> Measured | str:
    """From the logged pool, else from its tokens: what the planner would print for that pool."""
    logged = row["logged"]
    length = row["max_model_len"]
    if not row["config"] or logged.get("max_concurrency") is None or not length:
        return "no config, no concurrency or no max_model_len"
    kv, tokens, pool = layout_of(row), logged_tokens(row), logged.get("kv_cache_gib")
    if pool is not None:
        found = kv.concurrency(pool * GIB, length, batched_of(row))
    elif tokens is not None:
        sizes = [group.block_tokens for group in kv.groups if group.kind != "state"]
        found = kv.concurrency(tokens * len(kv.groups) / min(sizes) * kv.block_bytes, length, batched_of(row))
    else:
        return "the log prints neither pool nor tokens"
    naive = tokens / length if tokens else None
    return Measured(row["id"], row["family"], found, logged["max_concurrency"], naive)


def _pool_lengths(row: Row, arch: Architecture) -> list[int]:
    """Contexts to plan a pool with: the stated one; unstated, all that V0's profile could have run."""
    if row["max_model_len"]:
        return [row["max_model_len"]]
    longest = arch.max_position or 32768
    return [longest] if row["engine"] == "v1" else sorted({longest, min(longest, 32768)})


def predict_pool(row: Row) -> Measured | str:
    logged = row["logged"].get("kv_cache_gib")
    if not row["config"]:
        return "no config"
    kv = layout_of(row)
    if logged is None:
        tokens = logged_tokens(row)
        if tokens is None:
            return "the log prints neither pool nor tokens"
        logged = tokens * kv.bytes_per_token / GIB
    plans = []
    for length in _pool_lengths(row, architecture_of(row)):
        request = request_of(row, length)
        if request is None:
            return "the card's memory is not stated"
        plans.append(plan(request, with_remedies=False))
    pools = [min(made.cards, key=lambda card: card.pool.low) for made in plans]
    tightest = min(pools, key=lambda card: card.pool.low)
    naive_weights = (row.get("check") or {}).get("naive_weights_gib") or 0
    return Measured(
        row["id"],
        row["family"],
        tightest.pool.likely / GIB,
        logged,
        tightest.total_bytes / GIB * row["gpu_memory_utilization"] - naive_weights,
        tightest.pool.low / GIB,
        tightest.margin_bytes / GIB,
        bool(row["flags"]),
    )


@dataclass(frozen=True)
class Judged:
    """One start: what the planner said and what happened."""

    id: str
    family: str
    verdict: str
    reason: str
    outcome: str
    missing: tuple[str, ...]
    flagged: bool

    @property
    def right(self) -> bool:
        return (self.verdict == FITS) == (self.outcome == "ok") and self.verdict != UNKNOWN

    @property
    def false_promise(self) -> bool:
        return self.verdict == FITS and self.outcome != "ok"


def judge(row: Row) -> Judged:
    """Verdict over one row; inputs that the row does not state are taken from the engine's defaults."""
    missing = tuple(missing_inputs(row))
    request = request_of(row)
    if request is None:
        verdict, reason = UNKNOWN, f"not stated: {', '.join(missing)}"
    else:
        try:
            made = plan(request, with_remedies=False)
            verdict, reason = made.verdict, made.reason
        except ValueError as error:
            verdict, reason = UNKNOWN, str(error)
    if missing and verdict != UNKNOWN:
        verdict, reason = UNKNOWN, f"{verdict} with the defaults, but not stated: {', '.join(missing)}"
    flags = tuple(row["flags"] or ())
    return Judged(row["id"], row["family"], verdict, reason, row["outcome"], missing, bool(flags))


def judge_all(rows: Sequence[Row]) -> list[Judged]:
    return [judge(row) for row in rows if "outcome" in row["usable_for"] and row["outcome"]]


# --- figures -----------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest-rank quantile; 0 for nothing."""
    ordered = sorted(values)
    return ordered[min(max(-(-int(share * 1000 * len(ordered)) // 1000) - 1, 0), len(ordered) - 1)] if ordered else 0.0


def errors_of(found: Sequence[Measured]) -> dict[str, Any]:
    errors = [row.error for row in found]
    naive = [abs(row.naive / row.logged - 1) for row in found if row.naive is not None]
    return {
        "rows": len(found),
        "median": round(statistics.median(errors), 6) if errors else None,
        "p95": round(quantile(errors, 0.95), 6) if errors else None,
        "max": round(max(errors), 6) if errors else None,
        "within_1_percent": round(sum(error <= 0.01 for error in errors) / len(errors), 4) if errors else None,
        "naive_median": round(statistics.median(naive), 6) if naive else None,
        "naive_p95": round(quantile(naive, 0.95), 6) if naive else None,
    }


def by_family(found: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    families = sorted({row.family for row in found})
    return {family: errors_of([row for row in found if row.family == family]) for family in families}


def pool_figures(found: Sequence[Measured]) -> dict[str, Any]:
    """Safety and waste of `low` over unflagged rows, and the error of `likely` in GiB."""
    clean = [row for row in found if not row.flagged and row.low is not None]
    if not clean:
        return {"rows": 0}
    gaps = [1 - (row.low or 0) / row.logged for row in clean]
    naive = [row.naive - row.logged for row in clean if row.naive is not None]
    return {
        "rows": len(clean),
        "low_is_safe": round(sum(gap >= 0 for gap in gaps) / len(clean), 4),
        "low_above_logged": [row.id for row, gap in zip(clean, gaps, strict=True) if gap < 0],
        "low_median_below": round(statistics.median(gaps), 4),
        "likely_median_error_gib": round(statistics.median(abs(row.predicted - row.logged) for row in clean), 3),
        "naive_safe": round(sum(gap <= 0 for gap in naive) / len(naive), 4) if naive else None,
        "naive_median_error_gib": round(statistics.median(map(abs, naive)), 3) if naive else None,
    }


def left_out(found: Sequence[Measured]) -> dict[str, Any]:
    """The pool's margin, scaled anew on all families but one and judged on that one; summed over the families.

    The scale is the least multiple of 0.05 of MARGIN_* at which `low` is safe on 95 % of the other families' rows.
    """
    clean = [row for row in found if not row.flagged and row.low is not None]
    scales: dict[str, float] = {}
    judged: list[Measured] = []
    for family in sorted({row.family for row in clean}):
        others = [row for row in clean if row.family != family]
        if not others:
            continue
        scale = next((step / 20 for step in range(201) if _safe(others, step / 20) >= SAFE_SHARE), 10.0)
        scales[family] = scale
        judged += [replace(row, low=row.predicted - scale * row.margin) for row in clean if row.family == family]
    return {"scales": scales, **pool_figures(judged)}


def _safe(found: Sequence[Measured], scale: float) -> float:
    return sum(row.predicted - scale * row.margin <= row.logged for row in found) / len(found)


def outcome_figures(found: Sequence[Judged]) -> dict[str, Any]:
    answered = [row for row in found if row.verdict != UNKNOWN]
    return {
        "rows": len(found),
        "right": round(sum(row.right for row in found) / len(found), 4) if found else None,
        "right_of_answered": round(sum(row.right for row in answered) / len(answered), 4) if answered else None,
        "cannot_judge": round(1 - len(answered) / len(found), 4) if found else None,
        "false_promises": [row.id for row in found if row.false_promise],
        "wrong": [row.id for row in answered if not row.right],
        "unjudged": {row.id: row.reason for row in found if row.verdict == UNKNOWN},
        "always_fits": round(sum(row.outcome == "ok" for row in found) / len(found), 4) if found else None,
        "always_fits_false_promises": sum(row.outcome != "ok" for row in found),
    }


def accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """All tables as plain data; shares and relative errors as fractions of 1."""
    engines = [row for row in rows if not is_llama(row)]
    llama = [row for row in rows if is_llama(row)]
    tables = {
        "weights": measure(engines, usable_for("weights"), predict_weights),
        "kv_tokens": measure(engines, usable_for("kv_bytes"), predict_tokens),
        "kv_need": measure(engines, usable_for("kv_need"), predict_need),
        "concurrency": measure(engines, usable_for("concurrency"), predict_concurrency),
        "llama_kv": measure(llama, usable_for("kv_bytes"), predict_tokens),
    }
    pool = measure(engines, usable_for("pool"), predict_pool)
    judged = judge_all(rows)
    stated = [row for row in judged if not row.missing and not row.flagged]
    result: dict[str, Any] = {
        name: {
            "usable": table.usable,
            **errors_of(table.rows),
            "uncovered": table.uncovered,
            "families": by_family(table.rows),
        }
        for name, table in tables.items()
    }
    result["pool"] = {
        "usable": pool.usable,
        **pool_figures(pool.rows),
        "uncovered": pool.uncovered,
        "margin_v0_gib_share": list(MARGIN_V0),
        "margin_v1_gib_share": list(MARGIN_V1),
        "left_out": left_out(pool.rows),
    }
    result["outcome"] = {"stated": outcome_figures(stated), "all": outcome_figures(judged)}
    result["row_figures"] = {
        **{name: [vars(row) for row in table.rows] for name, table in tables.items()},
        "pool": [vars(row) for row in pool.rows],
        "outcome": [vars(row) for row in judged],
    }
    return result


def peer_weights(rows: Sequence[Row], python: str) -> dict[str, Any]:
    """hf-mem on the tensors of the rows whose weights the planner answers; its sum is divided by TP for it."""
    table = measure([row for row in rows if not is_llama(row)], usable_for("weights"), predict_weights)
    ours = {row.id: row for row in table.rows}
    chosen = {
        row["id"]: row
        for row in rows
        if row["id"] in ours and quantization_named(row["quantization"] or "").scheme != "gguf"
    }
    tensors = {
        name: derive(architecture_of(row), quantization_named(row["quantization"] or ""))
        for name, row in chosen.items()
    }
    found = hf_mem_peer.weights_bytes(python, tensors)
    peers = [replace(ours[name], predicted=size / chosen[name]["tp"] / GIB, naive=None) for name, size in found.items()]
    return {"hf_mem": errors_of(peers), "ours_on_the_same_rows": errors_of([ours[name] for name in found])}


# --- printing ----------------------------------------------------------------------------------------------------


def _percent(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value * 100:.{digits}f} %"


def in_words(result: Mapping[str, Any], with_rows: bool = False) -> str:
    """The tables for people."""
    lines = ["measure       rows/usable   median       p95          max          within 1 %   naive median / p95"]
    for name in ("weights", "kv_tokens", "kv_need", "concurrency", "llama_kv"):
        table = result[name]
        lines.append(
            f"{name:13} {table['rows']:>4}/{table['usable']:<7} {_percent(table['median']):>9} "
            f"{_percent(table['p95']):>12} {_percent(table['max']):>12} {_percent(table['within_1_percent'], 1):>11}   "
            f"{_percent(table['naive_median'], 1)} / {_percent(table['naive_p95'], 1)}"
        )
        lines += [
            f"  {family:14} {found['rows']:>3} rows, median {_percent(found['median'])}, max {_percent(found['max'])}"
            for family, found in table["families"].items()
        ]
        lines += [f"  without an answer: {row} ({reason})" for row, reason in table["uncovered"].items()]
    pool, without = result["pool"], result["pool"]["left_out"]
    lines.append(
        f"pool: {pool['rows']} unflagged rows of {pool['usable']}; low is safe on {_percent(pool['low_is_safe'], 1)} "
        f"(above the log: {', '.join(pool['low_above_logged']) or 'none'}), its median "
        f"{_percent(pool['low_median_below'], 1)} below the log; likely is off by {pool['likely_median_error_gib']} GiB"
    )
    lines.append(
        f"  naive (share x total - naive weights): safe on {_percent(pool['naive_safe'], 1)}, off by "
        f"{pool['naive_median_error_gib']} GiB"
    )
    lines.append(
        f"  each family judged with the margin of the others: safe on {_percent(without['low_is_safe'], 1)}, median "
        f"{_percent(without['low_median_below'], 1)} below the log; margin scaled by "
        + ", ".join(f"{scale:g} ({family})" for family, scale in without["scales"].items())
    )
    for name, found in result.get("peer", {}).items():
        lines.append(
            f"{name} (weights): {found['rows']} rows, median {_percent(found['median'])}, p95 "
            f"{_percent(found['p95'])}, max {_percent(found['max'])}"
        )
    for name, found in result["outcome"].items():
        lines.append(
            f"outcome, {name} rows: {found['rows']}, right {_percent(found['right'], 1)} "
            f"(of those answered {_percent(found['right_of_answered'], 1)}), cannot judge "
            f"{_percent(found['cannot_judge'], 1)}, 'fits' for a failed start: "
            f"{', '.join(found['false_promises']) or 'none'}; always 'fits' is right on "
            f"{_percent(found['always_fits'], 1)} with {found['always_fits_false_promises']} false promises"
        )
        lines += [f"  wrong: {row}" for row in found["wrong"]]
        lines += [f"  cannot judge {row}: {reason}" for row, reason in found["unjudged"].items()]
    if with_rows:
        for name, figures in result["row_figures"].items():
            lines += [f"{name} {json.dumps(figure)}" for figure in figures]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", default=[DATA])
    parser.add_argument("--json", action="store_true", help="all figures as JSON")
    parser.add_argument("--rows", action="store_true", help="every row's figures")
    parser.add_argument("--hf-mem", metavar="PYTHON", help="an interpreter whose environment has hf-mem (PyPI)")
    chosen = parser.parse_args(arguments)
    rows = read_rows(chosen.files or [DATA])
    result = accuracy(rows)
    if chosen.hf_mem:
        result["peer"] = peer_weights(rows, chosen.hf_mem)
    if not chosen.rows:
        del result["row_figures"]
    print(json.dumps(result, indent=2) if chosen.json else in_words(result, chosen.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
