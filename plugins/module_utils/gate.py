# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way back: what a service was last healthy with, kept until something newer is healthy. (outside)

A service's record names what it starts from: the environment by its lock, the configuration file by its content, the
model by its place. So the record, the manager's file and the digests of the models' records are the whole way back.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .engine_api import healthy
from .model_store import RECORD as MODEL_RECORD
from .model_store import Places, drop_earlier, exchange, locked, record_digest, recover
from .services import GOOD, Host, ServiceState, clear_budget, manager_of, service_state, stop_timeout_s, wait_settled
from .small_files import read_json, write_text

POLL_S = 0.25


@dataclass(frozen=True)
class Configuration:
    """The texts of a service's record and of its manager's file, and {path: SHA-256} of its models' records."""

    record: str
    program: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class Return:
    """How going back went: `healthy` again after `seconds`, or what is wrong in `seen`."""

    healthy: bool
    seconds: float
    seen: str
    state: ServiceState


def present(host: Host, name: str) -> Configuration | None:
    """Return what is there now; None when one of the two files is missing or no text."""
    try:
        record = Path(host.record(name)).read_text(encoding="utf-8")
        program = Path(host.program_file(name)).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    inputs = (read_json(host.record(name)) or {}).get("inputs") or []
    models = [str(path) for path in inputs if Path(path).name == MODEL_RECORD]
    return Configuration(record, program, {path: record_digest(Path(path)) for path in models})


def last_good(host: Host, name: str) -> Configuration | None:
    """Return what the service was last healthy with; None when nothing is recorded."""
    known = read_json(host.good_record(name)) or {}
    try:
        return Configuration(str(known["record"]), str(known["program"]), dict(known["models"]))
    except (KeyError, TypeError, ValueError):
        return None


def remember(host: Host, name: str) -> bool:
    """Record the present files as good, and drop the configuration files and models that nothing good needs.

    Return whether something changed. To be called only when the process that runs was started from them.
    """
    now = present(host, name)
    if now is None:
        return False
    changed = now != last_good(host, name)
    if changed:
        Path(host.good_record(name)).parent.mkdir(mode=0o755, exist_ok=True)
        write_text(host.good_record(name), json.dumps(dataclasses.asdict(now), indent=2, sort_keys=True) + "\n")
    for path in host.config_files(name):
        if json.dumps(path)[1:-1] not in now.record:
            Path(path).unlink(missing_ok=True)
    drop_unneeded_models(host)
    return changed


def drop_unneeded_models(host: Host) -> None:
    """Discard the earlier models that no service could go back to."""
    good = [last_good(host, name) for name in host.names()]
    needed = {digest for each in good if each for digest in each.models.values()}
    drop_earlier(Path(host.paths["models"]), needed.__contains__)


def way_back(host: Host, name: str) -> Configuration | None:
    """Return the good configuration where it differs from the present one; None when there is no way back."""
    good = last_good(host, name)
    return good if good is not None and good != present(host, name) else None


def go_back(host: Host, name: str, good: Configuration) -> Return:
    """Start the service from `good` and wait until it is healthy, at most the start_timeout_s of its record.

    Killed on the way, the next run finds either configuration and goes on from there.
    Raises HostError, SupervisorError, SystemdError, OSError.
    """
    began = time.monotonic()
    manager = manager_of(host)
    manager.stop(name, stop_timeout_s(host.spec(name)))
    lost = []
    for path, digest in good.models.items():
        places = Places(Path(path).parent.parent, Path(path).parent.name)
        if record_digest(places.record) != digest == record_digest(places.earlier / MODEL_RECORD):
            with locked(places):
                recover(places)
                exchange(places)
        if record_digest(places.record) != digest:
            lost.append(places.key)
    write_text(host.record(name), good.record)
    write_text(host.program_file(name), good.program)
    clear_budget(host, name)
    spec = host.spec(name)
    manager.prepare(name, stop_timeout_s(spec))
    manager.start(name)
    state = wait_settled(host, name)
    url = str(spec.get("health_url") or "")
    deadline = began + float(spec.get("start_timeout_s") or 600)
    while state.state in {*GOOD, "starting"}:
        ok, seen = healthy(url) if url else (state.state in GOOD, state.state)
        if ok and state.state in GOOD:
            drop_unneeded_models(host)
            if lost:
                seen += f", but with another state of the model {', '.join(lost)}, whose earlier one is gone"
            return Return(True, round(time.monotonic() - began, 1), seen, state)
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
        state = service_state(host, name, lines=0)
    state = service_state(host, name)
    return Return(False, round(time.monotonic() - began, 1), state.state.replace("_", " "), state)
