#!/usr/bin/python
# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until an engine is healthy and serves its model. (glue)"""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_health
short_description: Wait until an engine is healthy and serves its model
version_added: 0.1.0
author: [gpurig.llm maintainers (@gpurig)]
description:
  - Waits until the health URL answers 200 and, when O(model) is given, until C(/v1/models) lists it.
  - Ends early when the service's process dies, with the cause, what to change in the inventory, and the engine's own
    last error line, instead of waiting in vain.
  - Records what the service is healthy with, for O(ignore:state=restored) of M(gpurig.llm.service_run) to go back to.
  - Run from a playbook it prints a progress line at least every ten seconds (an action plugin asks in short slices).
options:
  name:
    description: Name of the service.
    type: str
    required: true
  health_url:
    description: URL that answers 200 once the engine is ready.
    type: str
    required: true
  base_url:
    description: Base URL of the OpenAI-compatible API, ending in C(/v1). Needed to check O(model).
    type: str
    default: ""
  model:
    description: Model name that must be listed.
    type: str
    default: ""
  secrets_file:
    description: File that holds the API key, as a variable ending in C(API_KEY).
    type: path
  timeout_s:
    description: How long to wait, in seconds.
    type: int
    default: 600
  slice_s:
    description: Return after so many seconds without failing, with RV(ready=false). For the action plugin.
    type: int
    default: 0
  first_pid:
    description: The process id that the service had when the wait began. V(0) takes the present one.
    type: int
    default: 0
  first_kills:
    description:
      - How many processes the kernel had killed for lack of memory when the wait began, as in RV(kills). V(-1) takes
        the present count. For the action plugin.
    type: int
    default: -1
extends_documentation_fragment: [gpurig.llm.attributes, gpurig.llm.rig]
attributes:
  check_mode:
    support: full
    details: In check mode it looks once and does not wait.
  diff_mode:
    support: none
    details: It changes nothing but its own records, the measured start-up time and the way back.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Wait for the chat engine
  gpurig.llm.engine_health:
    name: chat
    health_url: http://127.0.0.1:8000/health
    base_url: http://127.0.0.1:8000/v1
    model: chat
    secrets_file: /etc/gpurig/secrets/chat.env
    timeout_s: 600
    rig: "{{ ansible_facts.rig }}"
"""

RETURN = r"""
ready:
  description: Whether the engine is healthy and lists the model.
  returned: always
  type: bool
ready_s:
  description: Seconds from the start of the process to its first healthy answer, as measured by the wait that saw it.
  returned: when known
  type: float
phase:
  description:
    - What the engine does now, in words. While its health URL does not answer, this is what its log tells, for instance
      that it loads its weights.
  returned: always
  type: str
  sample: loading weights, 45 % (5 of 11 files)
cause:
  description: Name of the cause that the log shows; V(unknown) when it shows none of those known.
  returned: failure
  type: str
  sample: context_too_long_for_memory
remedy:
  description: What to change in the inventory or on the host; empty when the cause is unknown.
  returned: failure
  type: str
kills:
  description: How many processes the kernel had killed for lack of memory when the wait began.
  returned: when it is not ready yet
  type: int
pid:
  description: Process id of the service; V(0) when it has none.
  returned: always
  type: int
log_tail:
  description: Last lines of the service's log.
  returned: failure
  type: list
  elements: str
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpurig.llm.plugins.module_utils.engine_api import (
    EngineError,
    healthy,
    listed_models,
    read_key,
)
from ansible_collections.gpurig.llm.plugins.module_utils.gate import remember
from ansible_collections.gpurig.llm.plugins.module_utils.services import (
    LOG_LINES as SHOWN_LINES,
)
from ansible_collections.gpurig.llm.plugins.module_utils.services import (
    Host,
    HostError,
    ServiceState,
    read_ready_s,
    read_service,
    write_ready_s,
)
from ansible_collections.gpurig.llm.plugins.module_utils.start_causes import LOG_LINES, start_phase
from ansible_collections.gpurig.llm.plugins.module_utils.start_failure import Kills, explain, kernel_kills
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import SupervisorError
from ansible_collections.gpurig.llm.plugins.module_utils.systemd import SystemdError

POLL_S = 0.25
ENDED = ("stopped", "failed", "budget_spent")


class WrongModelError(Exception):
    """The engine is healthy and serves something else, which no waiting mends."""


def look(params: dict) -> tuple[bool, str]:
    """Return (ready, what was seen in words). Raises WrongModelError."""
    ok, seen = healthy(params["health_url"])
    if not ok:
        return False, seen
    if not params["model"]:
        return True, "healthy"
    try:
        names = listed_models(params["base_url"], read_key(params["secrets_file"] or ""))
    except EngineError as error:
        return False, str(error)
    if params["model"] in names:
        return True, f"healthy, serves {params['model']}"
    if not names:
        return False, "healthy, but lists no model yet"
    raise WrongModelError(
        f"{params['name']}: {params['base_url']}/models lists {', '.join(names)} instead of {params['model']}: "
        f"another server answers on this port, or the engine was started with another name"
    )


def death(state: ServiceState, first_pid: int) -> str:
    """Return in words that the process that was started is gone; empty while it lives."""
    if state.state == "budget_spent":
        return "was started again and again and always ended; its restart budget is spent"
    if state.state in ENDED:
        return f"ended ({state.state})"
    if first_pid and state.pid and state.pid != first_pid:
        return f"ended (process {first_pid}) and was started again"
    return ""


def failure(module: AnsibleModule, msg: str, phase: str, state: ServiceState, **more: str) -> None:
    """End with the message and the last lines of the log."""
    module.fail_json(msg=msg, ready=False, phase=phase, pid=state.pid, log_tail=state.log_tail[-SHOWN_LINES:], **more)


def wait(module: AnsibleModule) -> None:
    """Look until the engine is ready, its process dies or the time is over; ends the module."""
    params = module.params
    name, rig = params["name"], params["rig"]
    host = Host.from_rig(rig)
    first_pid = params["first_pid"] or read_service(rig, name, lines=0).pid
    kills = kernel_kills()
    if params["first_kills"] >= 0:
        kills = Kills(params["first_kills"], kills.file)
    began = time.monotonic()
    limit_s = 0 if module.check_mode else params["slice_s"] or params["timeout_s"]
    while True:
        try:
            ready, phase = look(params)
        except WrongModelError as error:
            remedy = "End the process that listens on this port (ss -ltnp shows it), or write another port."
            state = read_service(rig, name)
            failure(module, str(error), "serves another model", state, cause="another_server", remedy=remedy)
        state = read_service(rig, name, lines=0)
        if ready and state.state == "running":
            known = read_ready_s(rig, name, state)
            if not module.check_mode:
                known = write_ready_s(rig, name, state) if known is None else known
                if not state.stale:
                    remember(host, name)
            extra = {} if known is None else {"ready_s": known}
            module.exit_json(changed=False, ready=True, phase=phase, pid=state.pid, **extra)
        why = death(state, first_pid)
        over = time.monotonic() - began >= limit_s
        if (why and not module.check_mode) or over:
            break
        time.sleep(POLL_S)
    # The journal takes its time, so the log is read once and not with every look.
    state = read_service(rig, name, lines=LOG_LINES)
    again = bool(why) and state.pid != first_pid and state.state not in ENDED
    if not again and not healthy(params["health_url"])[0]:
        phase = start_phase(state.log_tail) or phase
    if module.check_mode or (params["slice_s"] and not why):
        module.exit_json(changed=False, ready=False, phase=phase, pid=state.pid, kills=kills.count)
    found = explain(host, state, kills, again)
    what = why or f"was not ready after {params['timeout_s']} s: {phase}"
    whole = f"The whole log: {rig['paths']['bin']}/gpurig logs {name}"
    failure(module, f"{name} {what}. {found.message()}\n{whole}", phase, state, cause=found.cause, remedy=found.remedy)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "health_url": {"type": "str", "required": True},
            "base_url": {"type": "str", "default": ""},
            "model": {"type": "str", "default": ""},
            "secrets_file": {"type": "path", "no_log": False},
            "timeout_s": {"type": "int", "default": 600},
            "slice_s": {"type": "int", "default": 0},
            "first_pid": {"type": "int", "default": 0},
            "first_kills": {"type": "int", "default": -1},
            "rig": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        wait(module)
    except (HostError, SupervisorError, SystemdError) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}", ready=False, phase="", pid=0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        module.fail_json(msg=f"{module.params['name']}: {where}{error.strerror or error}", ready=False, phase="", pid=0)


if __name__ == "__main__":
    main()
