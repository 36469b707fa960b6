# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One sandbox rig in a directory of its own: run the real site.yml on it, look at it, damage it, kill the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
INVENTORY = CHECKOUT / "inventories" / "local"
RUN_MARK = "GPURIG_E2E_RUN"
FULL = bool(os.environ.get("GPURIG_E2E_FULL"))
"""Whether tests that take long run, too."""

# What differs between two equal rigs: measured times, process ids, generated keys, logs and caches.
VOLATILE = re.compile(
    r"^(cache|log|run)(/|$)|^etc/secrets/|/__pycache__|\.pyc$|\.log$|\.json$|\.lock$|^models/\.|^python/|\.previous$"
)


@dataclass
class Result:
    """What one ansible-playbook run said."""

    rc: int
    text: str
    seconds: float

    @property
    def changed(self) -> int:
        found = re.search(r"changed=(\d+)", self.text)
        return int(found[1]) if found else -1

    @property
    def changed_tasks(self) -> list[str]:
        """Names of the tasks that reported a change, in order."""
        names, task = [], ""
        for line in self.text.splitlines():
            if line.startswith("TASK ["):
                task = line[6:].split("]", 1)[0].split(" : ")[-1]
            elif line.startswith("changed: [") and task not in names:
                names.append(task)
        return names


@dataclass
class Sandbox:
    """A rig below `root`, with its chat instance on `port`."""

    root: Path
    port: int
    home: Path
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def gpurig(self) -> str:
        return str(self.root / "bin" / "gpurig")

    def command(self, playbook: str = "site.yml", *more: str, **variables: Any) -> list[str]:
        """Return the ansible-playbook command; `variables` beat the sandbox's and the inventory's."""
        instance = {"name": "chat", "model": "smollm2", "engine": "llama_cpp", "device": "cpu", "port": self.port}
        given = {"rig_root": str(self.root), "rig_instances": [{**instance, "context": 2048}]}
        given = {**given, **self.variables, **variables}
        playbook_path = CHECKOUT / playbook
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        return [sys.executable, program, str(playbook_path), "-i", str(INVENTORY), "-e", json.dumps(given), *more]

    def environment(self, run_id: str = "") -> dict[str, str]:
        mark = {RUN_MARK: run_id} if run_id else {}
        return {
            **os.environ,
            "HOME": str(self.home),
            "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
            **mark,
        }

    def run(self, playbook: str = "site.yml", *more: str, **variables: Any) -> Result:
        began = time.monotonic()
        done = subprocess.run(
            self.command(playbook, *more, **variables),
            env=self.environment(),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=900,
        )
        return Result(done.returncode, done.stdout, time.monotonic() - began)

    def killed_run(self, reached: Callable[[], bool], limit_s: float = 300, modules_too: bool = True) -> bool:
        """Start a run and SIGKILL all of it as soon as `reached`; return whether it was killed before it ended.

        Without `modules_too` only Ansible dies, as when its terminal or its machine is lost: a module that is at work
        on the host comes to its end.
        """
        run_id = uuid.uuid4().hex
        with subprocess.Popen(
            self.command(),
            env=self.environment(run_id),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            deadline = time.monotonic() + limit_s
            while process.poll() is None and not reached() and time.monotonic() < deadline:
                time.sleep(0.005)
            killed = process.poll() is None
            if modules_too:
                kill_marked(run_id)
            else:
                process.kill()
                while marked_pids(RUN_MARK, run_id) and time.monotonic() < deadline + limit_s:
                    time.sleep(0.5)
        return killed

    def tool(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.gpurig, *words], capture_output=True, text=True, check=False, timeout=120)

    def services(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(self.tool("status", "--json").stdout)
        rows = listed["services"] if isinstance(listed, dict) else listed
        return {row["name"]: row for row in rows}

    def key(self) -> str:
        return self.tool("key", "chat").stdout.strip()

    def ask(self, question: str, key: str | None = None) -> tuple[int, dict[str, Any]]:
        """Ask over the real API with the standard library only; return (status, reply)."""
        body = {"model": "chat", "messages": [{"role": "user", "content": question}], "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps({**body, "max_tokens": 48}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.key() if key is None else key}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def answers(self) -> bool:
        """Whether the server is there and its model says what the capital of France is."""
        try:
            status, reply = self.ask("What is the capital of France? Answer in one sentence.")
        except OSError:
            return False
        return status == 200 and "Paris" in reply["choices"][0]["message"]["content"]

    def snapshot(self) -> dict[str, str]:
        """Return {relative path: what it is} of everything that two equal rigs have in common."""
        found = {}
        for directory, names, files in os.walk(self.root):
            for name in [*names, *files]:
                path = Path(directory, name)
                relative = str(path.relative_to(self.root))
                if VOLATILE.search(relative):
                    continue
                if path.is_symlink():
                    found[relative] = f"-> {str(path.readlink()).replace(str(self.root), 'ROOT')}"
                elif path.is_dir():
                    found[relative] = f"directory {path.stat().st_mode & 0o777:o}"
                elif path.is_file():
                    content = path.read_bytes()
                    if not relative.startswith(("envs/", "models/", "uv/")):  # five digits turn up there by chance
                        content = content.replace(str(self.port).encode(), b"PORT")
                    content = content.replace(str(self.root).encode(), b"ROOT")
                    found[relative] = f"{path.stat().st_mode & 0o777:o} {hashlib.sha256(content).hexdigest()}"
        return found

    def end(self) -> None:
        """Stop everything that was started from this root, also when its tool is gone."""
        if Path(self.gpurig).exists():
            self.tool("stop")
        for pid in marked_pids("GPURIG_ROOT", str(self.root)):
            _kill(pid)


def marked_pids(name: str, value: str) -> list[int]:
    """Return the processes whose environment has the variable with exactly this value."""
    wanted = f"{name}={value}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except OSError:
                continue
    return pids


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_marked(run_id: str) -> None:
    """SIGKILL every process of one run, again until none is left; the services it started are not among them."""
    while pids := marked_pids(RUN_MARK, run_id):
        for pid in pids:
            _kill(pid)
        time.sleep(0.02)


def system_python() -> str:
    """The distribution's Python, by which Ansible's modules run on most hosts; ours where it is missing or too old."""
    check = "import sys; sys.exit(sys.version_info < (3, 10))"
    path = Path("/usr/bin/python3")
    fits = path.exists() and subprocess.run([path, "-I", "-c", check], check=False).returncode == 0
    return str(path) if fits else sys.executable


def free_port() -> int:
    """Return a TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
