# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host tool `gpurig`: what a person and the service managers call on the host, without Ansible. (outside)

Two callers, two contracts. People get words and exit code 0 or 1. Managers call `gpurig exec`, which either becomes
the engine or ends with 78 (EX_CONFIG), after which no manager starts it again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from . import procfs, systemd
from .budget import BudgetError, decide, parse_budget, recent
from .gpu_model import Card, PciAddressError, normalize_pci
from .memory_dir import MemoryDirError, make_memory_dir, recorded
from .services import (
    BROKEN_RECORD,
    EXIT_CONFIG,
    GOOD,
    PLANS_DIR,
    Host,
    HostError,
    ServiceState,
    Starts,
    SupervisordManager,
    all_services,
    boot_time_s,
    clear_budget,
    gpu_role_cards,
    log_lines,
    log_path,
    manager_of,
    origin,
    read_starts,
    service_state,
    stop_timeout_s,
    wait_settled,
    write_run,
    write_starts,
)
from .small_files import read_json
from .supervisor import Supervisor, SupervisorError
from .systemd import SystemdError

HOST_JSON = "GPURIG_HOST_JSON"
FOLLOW_S = 0.25
_DEFAULT_WINDOW_S = 600
# setproctitle, which engines use, writes over /proc/PID/environ unless told not to; we recognise our processes by it.
_KEEP_ENVIRON = "SPT_NOENV"
_HEADINGS = ("SERVICE", "STATE", "ENGINE", "MODEL", "URL", "UP SINCE", "RESTARTS", "STALE")


class ToolError(Exception):
    """What was asked cannot be done; the message says why and what helps."""


class StartError(ToolError):
    """The service cannot start, and trying again does not help."""


def say(line: str) -> None:
    """Print a line for the log or the person, at once."""
    print(line, file=sys.stderr, flush=True)


# --- exec


@dataclasses.dataclass(frozen=True)
class Order:
    """The command line of `gpurig exec`."""

    name: str
    argv: list[str]
    gpu_role: str = ""
    secrets: str = ""
    budget: tuple[int, int] | None = None
    delay_s: float = 0.0
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    memory_dir: str = ""


def parse_pairs(lines: Sequence[str], where: str) -> dict[str, str]:
    """Return {NAME: value} of NAME=VALUE lines; values as they are, without quoting rules.

    Blank lines and lines that start with # are skipped. Raises StartError naming the line's number, never its text.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise StartError(f"{where}, line {number}: is not NAME=VALUE")
        found[name] = value
    return found


def read_secrets(path: str) -> dict[str, str]:
    """Return the variables of a secrets file. Raises StartError when it is missing, unreadable or broken."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise StartError(f"secrets file {path}: {reason}. Run the playbook again; it makes the file.") from error
    return parse_pairs(text.splitlines(), f"secrets file {path}")


def card_indices(wanted: Sequence[str], cards: Sequence[Card], role: str) -> list[int]:
    """Return the present index of each card named by UUID or PCI address, in the given order. Raises StartError."""
    by_name: dict[str, int] = {}
    for card in cards:
        by_name[card.uuid.lower()] = card.index
        by_name[card.pci.lower()] = card.index
    found = {name: by_name.get(_card_key(name)) for name in wanted}
    here = "; ".join(f"{card.uuid} at {card.pci} ({card.name})" for card in cards) or "none"
    absent = [name for name, index in found.items() if index is None]
    if absent:
        raise StartError(
            f"GPU role {role!r}: card {', '.join(absent)} does not answer. Cards that do: {here}. "
            f"See the kernel's log for the card, or give the role other cards (rig_gpu_roles) and run the playbook."
        )
    indices = [index for index in found.values() if index is not None]
    if len(set(indices)) != len(indices):
        raise StartError(f"GPU role {role!r}: names one card twice ({', '.join(wanted)}). Correct rig_gpu_roles.")
    return indices


def _card_key(name: str) -> str:
    with contextlib.suppress(PciAddressError):
        return normalize_pci(name)
    return name.lower()


def gpu_environment(host: Host, role: str) -> dict[str, str]:
    """Return the variables that give a process the cards of the role.

    An index and not a UUID, which vLLM cannot read; NVML counts cards in PCI order, and CUDA is told to do the same.
    Raises StartError.
    """
    from .nvml import NvmlError, open_library  # noqa: PLC0415 (only GPU services need it)

    wanted = gpu_role_cards(host, role)
    file = f"{host.paths['config']}/gpu_roles.json"
    if not wanted:
        what = "is unknown" if wanted is None else "has no cards"
        raise StartError(f"GPU role {role!r} {what} in {file}. Name its cards in rig_gpu_roles and run the playbook.")
    try:
        with open_library(host.nvml_path) as nvml:
            cards = nvml.list_cards()
    except NvmlError as error:
        raise StartError(f"GPU role {role!r}: the cards cannot be read: {error}") from error
    indices = card_indices(wanted, cards, role)
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, indices))}


def spend_start(host: Host, order: Order) -> int:
    """Count this start and return how many came before it within the window. Raises StartError when none is left."""
    starts = read_starts(host, order.name)
    now_s = boot_time_s()
    window_s = order.budget[1] if order.budget else _DEFAULT_WINDOW_S
    counted = recent(starts.times_s, now_s, window_s)
    if order.budget and not decide(counted, now_s, *order.budget).allowed:
        write_starts(host, order.name, dataclasses.replace(starts, spent=True))
        raise StartError(
            f"{order.budget[0]} starts within {window_s} s, the restart budget is spent; it stays down. "
            f"Find the cause: gpurig logs {order.name}. Then: gpurig start {order.name}"
        )
    write_starts(host, order.name, Starts((*counted, now_s), starts.total + 1))
    return len(counted)


def end_predecessor(host: Host, name: str) -> None:
    """End what an earlier start of the service left behind: a killed engine's workers, or the engine of a killed
    supervisord. They would hold the port and the cards. Raises StartError when the service runs as it should.
    """
    daemon_pid = Supervisor(host.paths).recorded_pid()
    table = {process.pid: process for process in procfs.processes()}
    others = [
        process
        for process in table.values()
        if process.service == name and process.root == host.root and process.pid not in {os.getpid(), os.getppid()}
    ]
    for process in others:
        if daemon_pid and procfs.is_below(process, daemon_pid, table):
            raise StartError(f"already runs as pid {process.pid}. To start it anew: gpurig restart {name}")
    if others:
        say(f"gpurig exec: {name}: ending left-over {'; '.join(process.in_words() for process in others)}")
    alive = procfs.end([process.pid for process in others], grace_s=5.0)
    if alive:
        raise StartError(f"left-over processes do not end: pids {alive}. End them by hand.")


def exec_service(host: Host, order: Order) -> int:
    """Become the service. Returns only when that is not possible, with the exit code."""
    try:
        before = spend_start(host, order)
        if before and order.delay_s:
            say(f"gpurig exec: {order.name}: start {before + 1} in a row, waiting {order.delay_s:g} s")
            time.sleep(order.delay_s)
        if host.manager == "supervisord":
            end_predecessor(host, order.name)
        environment = {**os.environ, **order.environment}
        if order.memory_dir:
            make_memory_dir(order.memory_dir)
        if order.secrets:
            environment |= read_secrets(order.secrets)
        if order.gpu_role:
            environment |= gpu_environment(host, order.gpu_role)
            say(f"gpurig exec: {order.name}: GPU role {order.gpu_role}: index {environment['CUDA_VISIBLE_DEVICES']}")
        environment.pop(HOST_JSON, None)
        environment |= {procfs.SERVICE_MARK: order.name, procfs.ROOT_MARK: host.root, _KEEP_ENVIRON: "1"}
        if not shutil.which(order.argv[0], path=environment.get("PATH", os.defpath)):
            raise StartError(f"cannot start {order.argv[0]}: there is no such program. Run the playbook again.")  # noqa: TRY301
        write_run(host, order.name, origin(host, order.name, host.spec(order.name)), time.time())
        # Python ignores these two, and what a process ignores it would keep ignoring as the engine.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        os.execvpe(order.argv[0], order.argv, environment)  # noqa: S606 (to become the engine is the purpose)
    except (StartError, HostError, MemoryDirError) as error:
        say(f"gpurig exec: {order.name}: {error}")
    except OSError as error:
        what = error.filename or order.argv[0]
        say(f"gpurig exec: {order.name}: cannot start {order.argv[0]}: {what}: {error.strerror}")
    return EXIT_CONFIG


def _exec_order(words: Sequence[str]) -> Order:
    parser = argparse.ArgumentParser(prog="gpurig exec", description="Become a service; called by the service manager.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--gpu-role", default="", metavar="ROLE")
    parser.add_argument("--secrets", default="", metavar="FILE")
    parser.add_argument("--memory-dir", default="", metavar="FOLDER")
    parser.add_argument("--restart-budget", default="", metavar="STARTS/WINDOW_S")
    parser.add_argument("--restart-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.usage = parser.format_usage().removeprefix("usage: ").strip() + " -- PROGRAM [ARGUMENT...]"
    cut = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:cut])
    argv = list(words[cut + 1 :])
    if not argv:
        parser.error("the program is missing; write it after --")
    budget = None
    environment: dict[str, str] = {}
    try:
        budget = parse_budget(given.restart_budget) if given.restart_budget else None
        environment = parse_pairs(given.env, "--env")
    except (BudgetError, StartError) as error:
        parser.error(str(error))
    return Order(
        name=given.name,
        argv=argv,
        gpu_role=given.gpu_role,
        secrets=given.secrets,
        budget=budget,
        delay_s=given.restart_delay,
        environment=environment,
        memory_dir=given.memory_dir,
    )


# --- status


def render_status(services: Sequence[ServiceState], now_s: float) -> str:
    """Return the table for people, with a line below it for everything that needs a word."""
    rows = [_HEADINGS, *(_status_row(service, now_s) for service in services)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for service in services:
        words = [*service.why_stale, *([service.note] if service.note else [])]
        if service.state == "budget_spent":
            words.append(f"its restart budget is spent: gpurig logs {service.name}, then gpurig start {service.name}")
        lines += [f"{service.name}: {word}" for word in words]
    return "\n".join(lines)


def _status_row(service: ServiceState, now_s: float) -> tuple[str, ...]:
    up = "-"
    if service.since_s:
        up = f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(service.since_s))} ({duration(now_s - service.since_s)})"
    return (
        service.name,
        service.state.replace("_", " "),
        service.labels.get("engine") or "-",
        service.labels.get("model") or "-",
        service.url or "-",
        up,
        str(service.restarts),
        "stale" if service.stale else "-",
    )


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units: 45s, 12m30s, 3h05m, 2d04h."""
    whole = max(int(seconds), 0)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02d}h"
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minutes}m{second:02d}s" if minutes else f"{second}s"


def status(host: Host, as_json: bool) -> int:
    """Print all services. The exit code says whether it could be told, not whether all is well."""
    services = all_services(host)
    if as_json:
        print(json.dumps([dataclasses.asdict(service) for service in services], indent=2))
    elif services:
        print(render_status(services, time.time()))
    else:
        print(f"No services here yet ({host.paths['services']} is empty).")
    return 0


# --- start, stop, restart


def _chosen(host: Host, names: Sequence[str]) -> list[str]:
    known = host.names()
    for name in set(names) - set(known):
        host.spec(name)
    return list(names) or known


def _report(host: Host, names: Sequence[str]) -> int:
    good = True
    for name in names:
        seen = wait_settled(host, name)
        good = good and seen.state in GOOD
        print(f"{name}: {seen.state.replace('_', ' ')}" + (f" (pid {seen.pid})" if seen.pid else ""))
        if seen.state not in GOOD:
            print("".join(f"  {line}\n" for line in log_lines(host, name, seen.log_path, 5)), end="")
    return 0 if good else 1


def start(host: Host, names: Sequence[str], again: bool = False) -> int:
    """Start the services that do not run, with a fresh budget; `again` also a oneshot that did its work."""
    named = _chosen(host, names)
    chosen = [name for name in named if read_json(host.record(name)) is not None]
    for name in set(named) - set(chosen):
        print(f"{name}: not started; {BROKEN_RECORD.format(host.record(name))}")
    manager = manager_of(host)
    waiting = [name for name in chosen if again or service_state(host, name, lines=0).state not in GOOD]
    if isinstance(manager, SupervisordManager):
        down = manager.supervisor.daemon_pid() is None
        waiting = chosen if down else waiting  # what still runs has nobody to look after it and is replaced
        for name in host.names() if down else waiting:  # the daemon starts all of them
            clear_budget(host, name)
        for words in manager.supervisor.start_daemon():
            print(f"ended left-over {words}")
    for name in waiting:
        clear_budget(host, name)
        manager.prepare(name, stop_timeout_s(host.spec(name)))
        manager.start(name)
    return max(_report(host, chosen), int(chosen != named))


def stop(host: Host, names: Sequence[str]) -> int:
    """Stop the services; without names all of them and, on a host without init, supervisord."""
    chosen = _chosen(host, names)
    manager = manager_of(host)
    if not names and isinstance(manager, SupervisordManager):
        limits_s = [_stop_limit_s(host, name) for name in chosen]
        manager.supervisor.shutdown(sum(limits_s) + 30.0)
        for words in manager.supervisor.end_leftovers():
            print(f"ended left-over {words}")
    else:
        for name in chosen:
            manager.stop(name, _stop_limit_s(host, name))
    for name in chosen:
        print(f"{name}: stopped")
    return 0


def _stop_limit_s(host: Host, name: str) -> float:
    """A service with a broken record has the default."""
    return stop_timeout_s(read_json(host.record(name)) or {})


def restart(host: Host, names: Sequence[str]) -> int:
    """Stop and start the services, with a fresh budget; what could not be started again is not stopped."""
    manager = manager_of(host)
    chosen = _chosen(host, names)
    for name in chosen:
        if read_json(host.record(name)) is not None:
            manager.stop(name, _stop_limit_s(host, name))
    return start(host, chosen, again=True) if chosen else 0


# --- logs, key


def logs(host: Host, name: str, lines: int, follow: bool) -> int:
    """Print the service's log."""
    spec = host.spec(name)
    if host.manager == "systemd":
        # --all: Compose writes a control character before each line, for which journalctl would show "blob data".
        command = ["journalctl", "--all", "--unit", systemd.unit_name(name), "--lines", str(lines), "--no-pager"]
        os.execvp(command[0], command + (["--follow"] if follow else []))  # noqa: S606
    path = log_path(host, name, spec)
    if not Path(path).exists() and not follow:
        raise ToolError(f"{name}: has no log yet ({path} does not exist)")
    for line in log_lines(host, name, path, lines):
        print(line, flush=follow)
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            for text in follow_file(path):
                print(text, end="", flush=True)
    return 0


def follow_file(path: str, wait: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Yield what is appended to the file from now on, also after it was rotated or made anew. Never ends by itself."""
    position, inode = _size_and_inode(path)
    while True:
        size, now_inode = _size_and_inode(path)
        if now_inode != inode or size < position:
            position, inode = 0, now_inode
        if size > position:
            with contextlib.suppress(OSError), Path(path).open("rb") as stream:
                stream.seek(position)
                text = stream.read()
                position += len(text)
                yield text.decode(errors="replace")
        wait(FOLLOW_S)


def _size_and_inode(path: str) -> tuple[int, int]:
    try:
        seen = Path(path).stat()
    except OSError:
        return 0, 0
    return seen.st_size, seen.st_ino


def key(host: Host, name: str) -> int:
    """Print the API key of the service."""
    path = str(host.spec(name).get("secrets_file") or "")
    if not path:
        raise ToolError(f"{name}: has no secrets file, so no API key")
    try:
        found = read_secrets(path)
    except StartError as error:
        raise ToolError(f"{name}: {error}") from error
    keys = [value for variable, value in found.items() if variable.endswith("API_KEY") and value]
    if not keys:
        raise ToolError(f"{name}: {path} has no variable that ends in API_KEY")
    print(keys[0])
    return 0


# --- uninstall


UDEV_RULE = "/etc/udev/rules.d/60-gpurig-nvidia.rules"
FIREWALL_UNITS = ("gpurig-firewall.service", "nftables.service.d/gpurig.conf")
_UDEV_HEADER = "# Written by the role gpurig.llm.gpu_power."


@dataclasses.dataclass(frozen=True)
class Removal:
    """What an uninstall would do: `remove` in this order, `keep` stays. `below`: the directories that hold it all."""

    remove: tuple[str, ...]
    keep: tuple[str, ...]
    below: tuple[str, ...]


def plan_removal(host: Host, host_json: str, purge: bool) -> Removal:
    """Return what to remove. What tells a later run that this is ours, host.json, comes last.

    Without `purge` only what we made ourselves goes; models and what services keep below the state directory stay.
    Raises ToolError when the directories do not look like ours.
    """
    paths = host.paths
    here = f"{paths['config']}/host.json"
    if not Path(here).is_file() or not Path(host_json).is_file() or not Path(here).samefile(host_json):
        raise ToolError(f"{here} is not the host.json that this tool was started with; nothing is removed")
    tops = [paths["root"], paths["config"], paths["state"]]
    for top in tops:
        if not top.startswith("/") or len(Path(top).parts) < 3 or Path(top) == Path.home():
            raise ToolError(f"{top} is not a directory of ours alone; nothing is removed. Correct {here}")
    units = [host.program_file(name) for name in host.names()] if host.manager == "systemd" else []
    rules = [UDEV_RULE] if host.manager == "systemd" and _is_our_rule() else []
    if host.manager == "systemd":
        units += [f"{host.unit_dir}/{name}" for name in FIREWALL_UNITS]
    socket_dir = str(Path(Supervisor(paths).socket).parent)
    ours = [paths[name] for name in ("run", "log", "cache", "uv", "python") if name in paths]
    ours.append(f"{paths['state']}/{PLANS_DIR}")
    if Path(socket_dir).name.startswith("gpurig-"):  # as layout names it when the socket does not fit below the root
        ours.append(socket_dir)
        sockets = [str(Path(socket_dir).parent)]
    else:
        sockets = []
    # Chats that were not to be kept, and nothing else would remove them before the next boot.
    memory = [found for name in host.names() if (found := recorded(read_json(host.record(name)) or {}))]
    config = [str(path) for path in sorted(Path(paths["config"]).iterdir()) if path.name != "host.json"]
    tool = [paths["envs"], paths["tool"], paths["bin"]]
    stray = [path for path in [*ours, *tool] if path != socket_dir and not _below(path, tops)]
    if stray:
        raise ToolError(f"{', '.join(stray)}: lies outside of {', '.join(tops)}; nothing is removed. Correct {here}")
    kept: list[str] = []
    data: list[str] = []
    if purge:
        known = {*ours, *tool, *config, *tops, here}
        for top in dict.fromkeys((paths["root"], paths["state"])):
            with contextlib.suppress(OSError):
                data += [str(path) for path in sorted(Path(top).iterdir()) if str(path) not in known]
    remove = [*units, *rules, *memory, *data, *ours, *config, *tool, here]
    remove = [path for path in dict.fromkeys(remove) if os.path.lexists(path)]
    if not purge:
        for top in dict.fromkeys((paths["root"], paths["state"])):
            with contextlib.suppress(OSError):
                kept += [str(path) for path in sorted(Path(top).iterdir()) if not _covered(str(path), remove, tops)]
    outside = [str(Path(path).parent) for path in (*rules, *memory)]
    return Removal(tuple(remove), tuple(kept), (*tops, *sockets, host.unit_dir, *outside))


def _is_our_rule() -> bool:
    with contextlib.suppress(OSError):
        return Path(UDEV_RULE).read_text(encoding="utf-8", errors="replace").startswith(_UDEV_HEADER)
    return False


def _below(path: str, tops: Sequence[str]) -> bool:
    return any(Path(top) in Path(os.path.normpath(path)).parents for top in tops)


def _covered(path: str, removed: Sequence[str], tops: Sequence[str]) -> bool:
    return path in removed or any(top == path or top.startswith(f"{path}/") for top in tops)


def uninstall(host: Host, host_json: str, purge: bool, yes: bool) -> int:
    """Stop everything and remove what we installed."""
    plan, contained = plan_removal(host, host_json, purge), page_in_docker(host.paths["config"])
    lines = [*(f"remove {one}" for one in (*contained, *plan.remove)), *(f"keep   {path}" for path in plan.keep)]
    print("".join(f"{line}\n" for line in lines), end="")
    if not yes:
        if not sys.stdin.isatty():
            raise ToolError("nothing is removed: there is no terminal to ask on. To go ahead: gpurig uninstall --yes")
        if input("Remove all this? Type yes: ").strip() != "yes":
            raise ToolError("nothing is removed")
    stop(host, [])
    from . import power_cli  # noqa: PLC0415 (only this and `gpurig power` need it)

    power_cli.give_back(host)
    if host.manager == "systemd":
        _give_back_rules(host.paths["config"])
        units = [systemd.unit_name(name) for name in host.names()]
        systemd.order("disable", [unit for unit in units if systemd.show(unit).enabled])
        for unit in units:
            Path(host.unit_dir, unit).unlink(missing_ok=True)
        systemd.daemon_reload()
    if contained:
        leave_docker(host.paths["config"])
    for path in plan.remove:
        remove(path, plan.below)
    for top in sorted({host.paths["root"], host.paths["config"], host.paths["state"]}, reverse=True):
        with contextlib.suppress(OSError):
            Path(top).rmdir()  # only when nothing of anybody's is left in it
    print("Removed." + (f" Kept: {', '.join(plan.keep)}" if plan.keep else ""))
    return 0


def _give_back_rules(config: str) -> None:
    """Who may reach the page is nobody's matter any more; what cannot be taken away is told."""
    from . import firewall_host  # noqa: PLC0415 (only an uninstall needs it)

    try:
        firewall_host.give_back(config)
    except (firewall_host.FirewallHostError, SystemdError, OSError) as error:
        say(f"a firewall rule of ours stays: {error}")


def page_in_docker(config: str) -> list[str]:
    """What a page that ran in a container has in Docker, in words."""
    from . import docker_images  # noqa: PLC0415 (only an uninstall needs it)

    known = Path(config, docker_images.PAGE_ANSWERS).is_dir()
    return [f"the container {docker_images.PAGE} and its images; volumes stay"] if known else []


def leave_docker(config: str) -> None:
    """What Docker does not let go of is told, with the reason."""
    from . import docker_images  # noqa: PLC0415 (only an uninstall needs it)

    try:
        _removed, left = docker_images.take_away(Path(config, docker_images.PAGE_ANSWERS), docker_images.PAGE)
    except (docker_images.ImageError, OSError) as error:
        left = [str(error)]
    for words in left:
        say(f"something of the page's container stays in Docker: {words}. Remove it with docker rm or docker image rm")


def remove(path: str, below: Sequence[str]) -> None:
    """Remove one file or tree of ours. Raises ToolError for what does not lie below one of the directories.

    The plan refuses the same already; a mistake there must not cost anybody's data.
    """
    if not _below(path, below):
        raise ToolError(f"{path} lies outside of {', '.join(below)}; it is not removed")
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


# --- main


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpurig", description="The services of this GPU host.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser("status", help="what runs, from what, since when")
    verb.add_argument("--json", action="store_true", help="for programs")
    for name, words in (
        ("start", "start services that do not run, with a fresh restart budget"),
        ("stop", "stop services"),
        ("restart", "stop and start services"),
    ):
        verb = verbs.add_parser(name, help=words)
        verb.add_argument("names", nargs="*", metavar="NAME", help="all services when left out")
    verb = verbs.add_parser("logs", help="a service's log")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("-n", "--lines", type=int, default=50)
    verb.add_argument("-f", "--follow", action="store_true")
    verb = verbs.add_parser("key", help="print the API key of a service")
    verb.add_argument("name", metavar="NAME")
    verb = verbs.add_parser("power", help="the cards' power limits: wanted, set, enforced; apply sets them again")
    verb.add_argument("action", choices=("status", "apply"), nargs="?", default="status")
    verb.add_argument("--json", action="store_true", help="status for programs")
    verb.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="apply waits so long for the cards")
    verb = verbs.add_parser("uninstall", help="stop everything and remove what was installed; models stay")
    verb.add_argument("--purge", action="store_true", help="remove models and all data, too")
    verb.add_argument("--yes", action="store_true", help="do not ask")
    verbs.add_parser("exec", help="become a service; called by the service manager")
    return parser


def _run(host: Host, host_json: str, given: argparse.Namespace) -> int:
    if given.verb == "status":
        return status(host, given.json)
    if given.verb in {"start", "stop", "restart"}:
        return {"start": start, "stop": stop, "restart": restart}[given.verb](host, given.names)
    if given.verb == "logs":
        return logs(host, given.name, given.lines, given.follow)
    if given.verb == "key":
        return key(host, given.name)
    if given.verb == "power":
        from . import power_cli  # noqa: PLC0415 (no start of a service is to wait for this import)

        return power_cli.run(host, given.action, given.json, given.wait)
    return uninstall(host, host_json, given.purge, given.yes)


def _host(host_json: str) -> Host:
    if not host_json:
        raise HostError(f"{HOST_JSON} is not set. Call the tool by its wrapper, <rig_root>/bin/gpurig")
    return Host.load(host_json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    host_json = os.environ.get(HOST_JSON, "")
    verb = words[0] if words else ""
    try:
        if verb == "exec":
            order = _exec_order(words[1:])
            return exec_service(_host(host_json), order)
        given = _parser().parse_args(words)
        return _run(_host(host_json), host_json, given)
    except SystemExit as end:
        # argparse ends with 2 for a wrong command line, at which a manager would try for ever.
        return EXIT_CONFIG if verb == "exec" and end.code else int(end.code or 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; the last flush is quiet now
        return 0
    except (ToolError, HostError, SupervisorError, SystemdError) as error:
        say(f"gpurig {verb}: {error}")
    except OSError as error:
        say(f"gpurig {verb}: {error.filename or ''}: {error.strerror}. Are you the user whom it belongs to?")
    return EXIT_CONFIG if verb == "exec" else 1
