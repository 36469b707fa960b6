#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a service run, from what is there now. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_run
short_description: Make a service run, stop it or remove it
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Writes the record of the service and the manager's file when their texts are given, lets systemd or supervisord
    know the service, and starts it.
  - A service that runs is restarted only when something that it was started from has changed since. That is its record,
    the manager's file, the files of O(ignore:inputs) in its record, its secrets, the environment that its command
    names, and the cards of its GPU role. Not who changed them counts, but what the running process was started from.
  - On a host without systemd it brings up supervisord, and ends what a killed supervisord left running.
  - A start by this module has a fresh restart budget.
options:
  name:
    description: Name of the service.
    type: str
    required: true
  state:
    description:
      - V(started) lets it run now and from now on. V(stopped) ends it; it comes back with the host or with
        C(gpurig start).
      - V(absent) ends it and removes the manager's file, the record and its run files. Data and logs stay.
      - V(restored) is for the case that a changed service did not become healthy. Where the service was healthy with
        another record before, that record and its manager's file come back, and the module waits until the service is
        healthy again. See RV(restored). Nothing happens where there is nothing to go back to.
    type: str
    choices: [started, stopped, absent, restored]
    default: started
  manager:
    description: Who keeps it alive. Empty takes it from O(rig).
    type: str
    choices: ["", systemd, supervisord]
    default: ""
  record_text:
    description: What the record of the service is to hold, see P(gpurig.llm.service_record#filter). For V(started).
    type: str
  program_text:
    description:
      - What the manager's file is to hold, see P(gpurig.llm.service_unit#filter). For V(started).
    type: str
  port:
    description:
      - The TCP port that the service is to have, for V(started). Processes of this rig that outlived their supervisor
        are ended, and another one that listens there is named, as by M(gpurig.llm.port_claim), before anything is
        written. With V(0) only the former. Without a port neither is done, nor in check mode.
    type: int
  pending:
    description:
      - Whether an earlier step of this very run changes the files of the service. It matters in check mode only, where
        that step has not written them.
    type: bool
    default: false
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
    details: To compare, supervisord is asked to read its files again; that touches no program.
  diff_mode:
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Run the chat engine
  gpurig.llm.service_run:
    name: chat
    state: started
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
reasons:
  description: Why something was done, or would be in check mode, in words. Empty when nothing was to do.
  returned: always
  type: list
  elements: str
service_state:
  description: The state now. See C(gpurig status).
  returned: always
  type: str
  sample: running
restored:
  description:
    - How going back went, as a sentence. Empty when there was nothing to go back to.
  returned: with O(state=restored)
  type: str
  sample: What ran before serves again, after 4.2 s.
good:
  description: Whether the service was ever healthy with what its files say now, and so can be again.
  returned: with O(state=restored)
  type: bool
pid:
  description: Process id of the service; V(0) when it has none.
  returned: always
  type: int
started_at_s:
  description: When that process was started, in seconds since 1970; V(0) when it has none.
  returned: always
  type: float
untouched:
  description: That it failed before anything was written, stopped or started, so that there is nothing to go back from.
  returned: failure for the port
  type: bool
log_tail:
  description: Last lines of the service's log.
  returned: failure
  type: list
  elements: str
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils import systemd
from ansible_collections.gpurig.llm.plugins.module_utils.diagnosis import last_error_line
from ansible_collections.gpurig.llm.plugins.module_utils.gate import go_back, last_good, present, way_back
from ansible_collections.gpurig.llm.plugins.module_utils.memory_dir import recorded, remove_memory_dir
from ansible_collections.gpurig.llm.plugins.module_utils.port_claim import claim
from ansible_collections.gpurig.llm.plugins.module_utils.service_spec import SpecError, file_name
from ansible_collections.gpurig.llm.plugins.module_utils.services import (
    GOOD,
    POLL_S,
    Host,
    HostError,
    ServiceState,
    clear_budget,
    differences,
    is_engine,
    manager_of,
    origin,
    own_files,
    read_run,
    service_state,
    settled_state,
    stop_timeout_s,
    wait_settled,
)
from ansible_collections.gpurig.llm.plugins.module_utils.small_files import read_json, write_text
from ansible_collections.gpurig.llm.plugins.module_utils.start_causes import LOG_LINES
from ansible_collections.gpurig.llm.plugins.module_utils.start_failure import explain, kernel_kills
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import SupervisorError

STARTING_S = 3.0
LIVE = ("running", "starting", "stopping", "finished")


class RunError(Exception):
    """The service did not come to the wanted state."""


class RefusedError(RunError):
    """Nothing was written, stopped or started."""


@dataclass(frozen=True)
class Plan:
    """Why something is to be done; `restart`: it must be started, and stopped before if it runs."""

    reasons: list[str]
    restart: bool = False


def plan_started(host: Host, name: str, pending: bool) -> Plan:
    """Return why the service is to be started anew. Raises HostError when its files are missing."""
    spec = host.spec(name)
    manager = manager_of(host)
    deadline = time.monotonic() + STARTING_S
    while True:
        view = manager.view(name, bool(spec.get("oneshot")))
        run = read_run(host, name)
        state = settled_state(view, is_engine(host, run, view.pid))
        # A process that was started a moment ago, by a supervisord that just came up, say, is no reason for a restart.
        if state != "starting" or not view.pid or time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    outdated = manager.outdated(name)
    reasons = [outdated] if outdated else []
    reasons += [f"no supervisor looks after {process}" for process in view.unattended]
    if pending:
        reasons.append("its files change in this run")
    if state not in GOOD:
        reasons.append(f"it is {state.replace('_', ' ')}")
    elif run is None:
        reasons.append("nothing tells what its process was started from")
    else:
        reasons += differences(run, origin(host, name, spec))
    restart = bool(reasons)
    if not view.enabled:
        reasons.append("it does not start with the host")
    return Plan(reasons, restart)


def plan_first(host: Host, name: str) -> list[str]:
    """Return which of the service's own files are missing."""
    return [path for path in (host.record(name), host.program_file(name)) if not Path(path).exists()]


def apply_started(host: Host, name: str, plan: Plan) -> ServiceState:
    """Make the manager know the service and start it. Raises RunError when its process does not come up."""
    manager = manager_of(host)
    limit_s = stop_timeout_s(host.spec(name))
    if plan.restart:
        manager.stop(name, limit_s)
        clear_budget(host, name)
    manager.prepare(name, limit_s)
    if not plan.restart:
        return service_state(host, name)
    kills = kernel_kills()
    manager.start(name)
    seen = wait_settled(host, name)
    if seen.state not in GOOD:
        again = seen.state == "starting" and seen.restarts > 0
        times = f", for the {seen.restarts + 1}. time" if again else ""
        found = explain(host, service_state(host, name, LOG_LINES), kills, again)
        raise RunError(f"{name}: is {seen.state.replace('_', ' ')} after its start{times}. {found.message()}")
    return seen


def plan_stopped(host: Host, name: str) -> Plan:
    """Return why the service is to be stopped."""
    spec = read_json(host.record(name)) or {}
    view = manager_of(host).view(name, bool(spec.get("oneshot")))
    reasons = [f"it is {view.state}"] if view.pid or view.state in LIVE else []
    return Plan(reasons)


def plan_absent(host: Host, name: str) -> Plan:
    """Return why something of the service is to be removed."""
    view = manager_of(host).view(name, oneshot=False)
    stop = plan_stopped(host, name)
    known = [f"{host.manager} knows it"] if view.known else []
    memory = recorded(read_json(host.record(name)) or {})
    paths = [host.program_file(name), *own_files(host, [name]), *([memory] if memory else []), host.record(name)]
    files = [f"{path} exists" for path in paths]
    return Plan(stop.reasons + known + [text for text in files if os.path.lexists(text.removesuffix(" exists"))])


def apply_absent(host: Host, name: str) -> None:
    """End the service and remove what is ours of it, the record last: it tells a later run that we own the rest."""
    manager = manager_of(host)
    spec = read_json(host.record(name)) or {}
    limit_s = stop_timeout_s(spec)
    manager.stop(name, limit_s)
    if host.manager == "systemd" and systemd.show(systemd.unit_name(name)).enabled:
        systemd.order("disable", [systemd.unit_name(name)])
    Path(host.program_file(name)).unlink(missing_ok=True)
    manager.forget(name, limit_s)
    if memory := recorded(spec):
        remove_memory_dir(memory)
    for path in [*own_files(host, [name]), host.record(name)]:
        Path(path).unlink(missing_ok=True)


def apply_restored(host: Host, name: str, check: bool) -> tuple[Plan, str]:
    """Go back to what the service was last healthy with; return (why, how it went as a sentence)."""
    good = way_back(host, name)
    if good is None:
        return Plan([]), ""
    plan = Plan([f"it was healthy with another {host.record(name)}"], restart=True)
    if check:
        return plan, ""
    try:
        back = go_back(host, name, good)
    except (HostError, SupervisorError, systemd.SystemdError, OSError) as error:
        return plan, f"What ran before could not be started again: {error}"
    if back.healthy:
        return plan, f"What ran before serves again, after {back.seconds} s{back.seen.removeprefix('healthy')}."
    said = last_error_line(back.state.log_tail) or "nothing"
    return plan, f"What ran before was started again, and is {back.seen} after {back.seconds} s. Its log says: {said}"


def look(host: Host, name: str) -> ServiceState:
    """Return the present picture; 'stopped' without a record."""
    if read_json(host.record(name)) is None:
        return ServiceState(name=name, state="stopped")
    return service_state(host, name)


def read_text(path: str) -> str:
    """Return the file's text; empty when it is not there or cannot be read as text, so that it is written anew."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def plan_files(host: Host, params: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (path, text now, text to be) of the files that differ; the record first, which makes the rest ours."""
    if params["state"] != "started":
        return []
    name = params["name"]
    wanted = ((host.record(name), params["record_text"]), (host.program_file(name), params["program_text"]))
    seen = [(path, read_text(path), text) for path, text in wanted if text is not None]
    return [(path, before, after) for path, before, after in seen if before != after]


def converge(
    host: Host, params: dict[str, Any], files: list[tuple[str, str, str]], check: bool
) -> tuple[Plan, ServiceState]:
    """Return what was to do and how the service is now; in check mode nothing is done."""
    name, state = params["name"], params["state"]
    written = [f"{path} {'changes' if before else 'is new'}" for path, before, _after in files]
    if state == "started" and params["port"] is not None and not check:
        done = claim(name, params["port"], params["rig"])
        if done.problem:
            raise RefusedError(done.problem)
        written += [f"ended {process}, which nobody looked after" for process in done.ended]
    if not check:
        for path, _before, after in files:
            write_text(path, after)
    if state == "started":
        missing = plan_first(host, name)
        if missing and not check:
            raise RunError(f"{name}: {', '.join(missing)} is missing. The role service writes it; run the role.")
        if missing:
            return Plan([f"would start: {path} does not exist yet" for path in missing], restart=True), look(host, name)
        plan = plan_started(host, name, check and (params["pending"] or bool(files)))
        plan = Plan([*written, *plan.reasons], plan.restart)
        if plan.reasons and not check:
            return plan, apply_started(host, name, plan)
    elif state == "stopped":
        plan = plan_stopped(host, name)
        if plan.reasons and not check:
            manager_of(host).stop(name, stop_timeout_s(read_json(host.record(name)) or {}))
    else:
        plan = plan_absent(host, name)
        if plan.reasons and not check:
            apply_absent(host, name)
    return plan, look(host, name)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["started", "stopped", "absent", "restored"], "default": "started"},
            "manager": {"type": "str", "choices": ["", "systemd", "supervisord"], "default": ""},
            "rig": {"type": "dict", "required": True},
            "record_text": {"type": "str"},
            "program_text": {"type": "str"},
            "port": {"type": "int"},
            "pending": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = dict(module.params)
    rig = dict(params["rig"])
    rig["service_manager"] = params["manager"] or rig["service_manager"]
    params["rig"] = rig
    host = Host.from_rig(rig)
    name, wanted = params["name"], params["state"]
    extra: dict[str, Any] = {}
    try:
        file_name({"name": name}, host.manager)
        files = plan_files(host, params)
        if wanted == "restored":
            plan, extra["restored"] = apply_restored(host, name, module.check_mode)
            extra["good"] = last_good(host, name) is not None and last_good(host, name) == present(host, name)
            seen = look(host, name)
        else:
            plan, seen = converge(host, params, files, module.check_mode)
    except RefusedError as error:
        module.fail_json(msg=str(error), untouched=True)
    except systemd.SystemdError as error:
        tail = tail_or_nothing(host, name)
        said = last_error_line(tail)
        module.fail_json(msg=f"{error} Its log says: {said}" if said else str(error), log_tail=tail)
    except (RunError, HostError, SpecError, SupervisorError) as error:
        module.fail_json(msg=str(error), log_tail=tail_or_nothing(host, name))
    except OSError as error:
        module.fail_json(msg=f"{name}: {error.filename}: {error.strerror}. Run as the rig's user or as root.")
    module.exit_json(
        changed=bool(plan.reasons),
        reasons=plan.reasons,
        service_state=seen.state,
        pid=seen.pid,
        started_at_s=seen.since_s,
        **extra,
        diff=[
            *({"before_header": path, "after_header": path, "before": old, "after": new} for path, old, new in files),
            {
                "before": "".join(f"{reason}\n" for reason in plan.reasons),
                "after": f"{name}: {wanted}\n" if plan.reasons else "",
            },
        ],
    )


def tail_or_nothing(host: Host, name: str) -> list[str]:
    """Return the last lines of the service's log, for a failure whose cause may be there or not."""
    try:
        return look(host, name).log_tail
    except (HostError, SupervisorError, systemd.SystemdError, OSError):
        return []


if __name__ == "__main__":
    main()
