# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A rig of one directory with the real host tool in it, without services: for the tests of what runs on a host."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils import procfs, service_spec, services
from ansible_collections.gpurig.llm.plugins.module_utils.supervisor import Supervisor
from ansible_collections.gpurig.llm.plugins.modules import host_tool, service_run

SLEEPER = ["/bin/sleep", "1000"]
SUBDIRECTORIES = ("bin", "tool", "envs", "uv", "python", "models", "cache", "log", "run")


class Rig:
    """An installed rig below `root`."""

    def __init__(self, root: Path, manager: str = "supervisord") -> None:
        self.root = root
        paths = {name: f"{root}/{name}" for name in SUBDIRECTORIES}
        paths |= {"root": str(root), "state": str(root), "config": f"{root}/etc"}
        paths |= {"secrets": f"{root}/etc/secrets", "services": f"{root}/etc/services"}
        paths |= {"supervisor_conf": f"{root}/etc/supervisord.conf", "supervisor_programs": f"{root}/etc/supervisor.d"}
        paths |= {"supervisor_socket": f"{root}/run/supervisor.sock"}
        self.paths = paths
        self.host_json = f"{root}/etc/host.json"
        self.facts = {"kind": "sandbox", "service_manager": manager, "root_dir": str(root), "user": "", "paths": paths}

    def install(self, nvml_path: str = "") -> None:
        params = {"rig": self.facts, "python": sys.executable, "version": "", "user": "", "group": ""}
        host_tool.apply(host_tool.plan({**params, "nvml_path": nvml_path}, check=False)[0], sys.executable)
        Path(self.paths["supervisor_conf"]).write_text(service_spec.render_supervisord_conf(self.paths))

    @property
    def host(self) -> services.Host:
        return services.Host.from_rig(self.facts)

    def supervisor(self) -> Supervisor:
        return Supervisor(self.paths, sys.executable)

    def texts(self, name: str, argv: list[str], **more: Any) -> dict[str, str]:
        """The record and the manager's file of a service, as service_run takes them."""
        restart = {"starts": 5, "window_s": 600, "delay_s": 0}
        spec = {"name": name, "argv": argv, "stop_timeout_s": 5, "restart": restart, **more}
        program = service_spec.render(spec, self.host.manager, self.paths)
        return {"record_text": service_spec.to_json(spec), "program_text": program}

    def write(self, name: str, argv: list[str], **more: Any) -> None:
        texts = self.texts(name, argv, **more)
        Path(self.host.record(name)).write_text(texts["record_text"])
        Path(self.host.program_file(name)).write_text(texts["program_text"])

    def run(self, name: str = "chat", state: str = "started", check: bool = False, **more: Any) -> dict[str, Any]:
        """What the module service_run does, in this process."""
        texts = {"record_text": None, "program_text": None}
        params = {"name": name, "state": state, "pending": False, "port": None, "rig": self.facts, **texts, **more}
        host = self.host
        plan, seen = service_run.converge(host, params, service_run.plan_files(host, params), check)
        return {"reasons": plan.reasons, "state": seen.state, "pid": seen.pid, "since_s": seen.since_s}

    def command(self, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run the installed tool."""
        return subprocess.run(
            [f"{self.root}/bin/gpurig", *words], capture_output=True, text=True, check=False, timeout=60, **more
        )

    def end(self) -> None:
        own = [process.pid for process in procfs.processes() if process.root == str(self.root)]
        assert procfs.end(own, send=lambda pid, _: os.kill(pid, signal.SIGKILL)) == []


@contextmanager
def installed() -> Iterator[Rig]:
    """A rig in a directory with a blank in its name, short enough for a socket."""
    made = Rig(Path(tempfile.mkdtemp(prefix="rig ", dir="/tmp")))
    made.install()
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(made.root, ignore_errors=True)


def wait_for(true: Callable[[], object], what: str, limit_s: float = 15.0) -> None:
    """Wait until `true()` is."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.05)
