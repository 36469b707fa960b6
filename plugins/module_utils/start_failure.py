# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a service of this host did not start: its log, its manager and the kernel's counters. (outside)"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .gpu_scan import scan
from .procfs import read_process
from .services import Host, ServiceState, gpu_role_cards
from .small_files import read_json
from .start_causes import Diagnosis, Ending, diagnose

# The container's own counter; else the whole machine's, in which also other containers' kills are counted.
KILL_COUNTERS = ("sys/fs/cgroup/memory.events", "proc/vmstat")
SHARED_MEMORY_CAUSES = ("memory_taken_by_others", "memory_changed_meanwhile")
REMEDIES_SHOWN = 3
_GIB = 1024**3


@dataclass(frozen=True)
class Kills:
    """How many processes the kernel has killed for lack of memory, and which file says so; '' when none does."""

    count: int = 0
    file: str = ""


def kernel_kills(root: str = "/") -> Kills:
    """Return the kernel's count of such kills, of this container if we are in one with its own (cgroup v2)."""
    for name in KILL_COUNTERS:
        path = Path(root, name)
        try:
            words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        except (OSError, ValueError):
            continue
        for pair in words:
            if len(pair) == 2 and pair[0] == "oom_kill" and pair[1].isdigit():
                return Kills(int(pair[1]), str(path))
    return Kills()


def memory_kill(state: ServiceState, before: Kills, now: Kills) -> str:
    """Return the evidence, in words, that the kernel killed the service for lack of memory; '' without evidence."""
    if state.note.startswith("oom-kill"):
        return "systemd says Result=oom-kill"
    if now.file and now.file == before.file and now.count > before.count:
        return f"oom_kill in {now.file} rose from {before.count} to {now.count} meanwhile"
    return ""


def holders(host: Host, name: str, proc_root: str = "/proc") -> list[str]:
    """Return in words who holds memory of the cards of the service's GPU role, the largest first; others only.

    Without a role, of all cards. In a container the driver does not tell of processes outside.
    """
    role = str((read_json(host.record(name)) or {}).get("gpu_role") or "")
    ours = {card.lower() for card in gpu_role_cards(host, role) or []}
    found = []
    for gpu in scan(host.nvml_path).gpus:
        if ours and not ours & {gpu.card.uuid.lower(), gpu.card.pci.lower()}:
            continue
        for process in gpu.processes or ():
            seen = read_process(process.pid, Path(proc_root))
            if seen is not None and seen.service == name:
                continue
            held = "an unknown part" if process.used_bytes is None else f"{process.used_bytes / _GIB:.2f} GiB"
            who = f"process {process.pid}"
            if seen is not None:
                who += f" ({f'the service {seen.service}' if seen.service else seen.name} of user {seen.user})"
            found.append((process.used_bytes or 0, f"{who} holds {held} of {gpu.card.label}"))
    return [words for _held, words in sorted(found, reverse=True)]


def planned_remedies(host: Host, name: str) -> list[str]:
    """What the engine's memory plan names as help, best first; empty without a plan."""
    words = (read_json(host.plan_record(name)) or {}).get("remedies")
    return [str(word) for word in words] if isinstance(words, list) else []


def explain(host: Host, state: ServiceState, before: Kills, again: bool = False) -> Diagnosis:
    """Return why the service is not running, from `state.log_tail`, which should hold LOG_LINES lines.

    `before`: kernel_kills() from before the start. `again`: it was started again since.
    """
    planned = planned_remedies(host, state.name)[:REMEDIES_SHOWN]
    found = diagnose(state.log_tail, Ending(memory_kill(state, before, kernel_kills()), again), planned)
    if found.cause not in SHARED_MEMORY_CAUSES:
        return found
    others = holders(host, state.name)
    return replace(found, sentence=f"{found.sentence} Now {'; '.join(others)}.") if others else found
