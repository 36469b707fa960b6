# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a memory plan needs to know of a host, and what is kept of it there: cards, models, plans, history. (outside)"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .gpu_model import Gpu, GpuReport
from .hub import Hub, HubError, read_token
from .model_files import ModelEntry, ModelEntryError, parse_entry, select_files
from .model_store import ModelStoreError, inspect
from .procfs import read_process
from .services import PLANS_DIR, Host, read_run
from .small_files import read_json, write_json, write_text
from .vram.request import Card, Model
from .vram_source import SourceError, from_hub, from_path

HISTORY = "history.jsonl"
KEYS = frozenset({"name", "device", "verdict", "reason", "flags", "context", "parallel", "problem", "plan", "inputs"})
"""What a plan on record has at least."""
HISTORY_ROWS = 1000
OTHERS_STEP_BYTES = 64 << 20
"""What others hold is rounded up to this, so that a plan does not hang on a window that was just opened."""


def plan_file(state_dir: str, name: str) -> Path:
    """Where an instance's plan lies."""
    return Path(state_dir, PLANS_DIR, f"{name}.json")


def history_file(state_dir: str) -> Path:
    """Where planned and logged figures of every start lie, one JSON object in a line, oldest first."""
    return Path(state_dir, PLANS_DIR, HISTORY)


def read_plan(state_dir: str, name: str) -> dict[str, Any] | None:
    """The plan on record (`Planned.to_dict`), None without one that this version can use."""
    found = read_json(str(plan_file(state_dir, name)))
    return found if found and found.keys() >= KEYS and isinstance(found["plan"], (dict, type(None))) else None


def write_plan(state_dir: str, name: str, content: Mapping[str, Any]) -> None:
    """Put the plan on record."""
    plan_file(state_dir, name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_json(str(plan_file(state_dir, name)), content)


def read_history(state_dir: str) -> list[dict[str, Any]]:
    """The rows of the history; a line that cannot be read is left out."""
    try:
        lines = history_file(state_dir).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def add_to_history(state_dir: str, rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> None:
    """Write the history anew with one row more, the oldest beyond HISTORY_ROWS dropped. Crash-safe."""
    kept = [*rows, row][-HISTORY_ROWS:]
    path = history_file(state_dir)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    write_text(str(path), "".join(json.dumps(each, sort_keys=True) + "\n" for each in kept))


def has_amx(proc_root: str = "/proc") -> bool:
    """Whether the processor has AMX's tiles, by its flags."""
    try:
        return "amx_tile" in Path(proc_root, "cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False


def engines_of(host: Host) -> dict[str, tuple[str, ...]]:
    """{name: UUIDs of the cards on which it runs, empty when it does not run} of the host's engines.

    Engines are services whose record says that they are instances.
    """
    found = {}
    for name in host.names():
        labels = (read_json(host.record(name)) or {}).get("labels") or {}
        if isinstance(labels, Mapping) and labels.get("owner") == "instances":
            run = read_run(host, name)
            found[name] = run.cards if run and run.is_process(run.pid) else ()
    return found


def cards_of(
    report: GpuReport, uuids: Sequence[str], ours: Mapping[str, Collection[str]], proc_root: str = "/proc"
) -> list[Card]:
    """The cards with these UUIDs, in this order, for the planner; cards that do not answer are left out.

    ours: engines whose memory does not count as others', since it is what is planned, and the cards that each is on.
    """
    by_uuid = {gpu.card.uuid.lower(): gpu for gpu in report.gpus if not gpu.is_lost}
    chosen = [by_uuid[uuid.lower()] for uuid in uuids if uuid.lower() in by_uuid]
    return [card for gpu in chosen if (card := _card(gpu, ours, proc_root))]


def _card(gpu: Gpu, ours: Mapping[str, Collection[str]], proc_root: str) -> Card | None:
    total = gpu.memory.cuda_total_bytes
    if not total:
        return None
    held = min(_others_bytes(gpu, ours, proc_root), total)
    pair = (gpu.compute_capability or "").partition(".")
    capability = (int(pair[0]), int(pair[2])) if pair[0].isdigit() and pair[2].isdigit() else None
    return Card(gpu.card.name, total, total - held, held, capability, uuid=gpu.card.uuid)


def _others_bytes(gpu: Gpu, ours: Mapping[str, Collection[str]], proc_root: str) -> float:
    """What is in use on the card and not by engines of ours, rounded up; 0 where ours cannot be told apart.

    In a container the driver names processes by the numbers that they have outside, or not at all.
    """
    used = gpu.memory.used_bytes or 0
    mine, told = 0, False
    for process in gpu.processes or ():
        seen = read_process(process.pid, Path(proc_root))
        if seen is not None and seen.service in ours:
            if process.used_bytes is None:
                return 0
            mine, told = mine + process.used_bytes, True
    if not told and any(gpu.card.uuid in cards for cards in ours.values()):
        return 0
    return -(-max(used - mine, 0) // OTHERS_STEP_BYTES) * OTHERS_STEP_BYTES


def read_model(
    key: str, model: Mapping[str, Any], models_dir: str, environment: Mapping[str, str]
) -> tuple[Model | None, str]:
    """(the model, '') or (None, why it cannot be read yet). model: an entry of rig_models.

    Looked for on the disk first, then at its hub, of which only the headers are read.
    """
    source = str(model.get("source") or "")
    details = model.get(source) or {}
    try:
        entry = parse_entry(key, source, str(model.get("format") or ""), details)
        path = _on_disk(entry, models_dir) or (str(details.get("path")) if source == "local" else "")
        if source == "local" and not models_dir and not Path(path).exists():
            return None, f"{path} is not on this machine; the run itself plans it on its host"
        if path:
            return replace(from_path(path).model, name=key), ""
        if source == "hub":
            patterns = [str(pattern) for pattern in details.get("files") or []]
            token = read_token(str(details.get("token_file") or "") or None, environment)
            found = from_hub(
                Hub(environment, token),
                str(details["repo"]),
                str(details["revision"]),
                chosen=lambda sizes: select_files(entry.format, sizes, patterns),
            )
            return replace(found.model, name=key), ""
    except (ModelEntryError, ModelStoreError, SourceError, HubError) as error:
        return None, str(error)
    except OSError as error:
        return None, f"{key}: {error.filename or models_dir}: {error.strerror or error}"
    return None, f"{key} is not on this host yet, and its source {source} does not tell its headers before"


def _on_disk(entry: ModelEntry, models_dir: str) -> str:
    if not models_dir:
        return ""
    state = inspect(Path(models_dir, entry.name), entry)
    return state.record.path if state.status == "complete" and state.record else ""
