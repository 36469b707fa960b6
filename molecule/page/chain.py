# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page at home and the engine in the pod, with the tunnel between them; asked in the home host's network."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import testinfra
from ansible_collections.gpurig.llm.molecule.shared.rig import QUESTIONS, Rig
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, PageError, sign_in
from testinfra.host import Host

HOME, POD, USER = "gpurig-page-home", "gpurig-page-pod", "forward"
URL, ADMIN = "http://127.0.0.1:8080", "admin@home.example.org"
SECRETS = "/etc/gpurig/secrets"
PAGE_UNIT, TUNNEL_UNIT = "gpurig-open-webui.service", "gpurig-tunnel-pod.service"
QUESTION, WORD = QUESTIONS["smollm2"]
PORT = 40022
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


def podman(*words: str) -> str:
    return subprocess.run(["podman", *words], check=True, capture_output=True, text=True).stdout.strip()


def network_of(container: str) -> str:
    return f"/proc/{podman('inspect', '--format', '{{.State.Pid}}', container)}/ns/net"


@contextlib.contextmanager
def inside(container: str) -> Iterator[None]:
    """Be in the container's network, with this thread and what it starts."""
    with Path("/proc/thread-self/ns/net").open("rb") as here, Path(network_of(container)).open("rb") as there:
        os.setns(there.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(here.fileno(), os.CLONE_NEWNET)


@dataclass(frozen=True)
class Chain:
    """The two ends."""

    home: Rig
    pod: Rig

    def password(self) -> str:
        text = self.home.host.check_output("cat %s/open-webui.env", SECRETS)
        return dict(line.split("=", 1) for line in text.splitlines())["WEBUI_ADMIN_PASSWORD"]

    def page(self) -> Page:
        with inside(HOME):
            return sign_in(URL, ADMIN, self.password())

    def pids(self) -> tuple[str, str]:
        return main_pid(self.home.host, PAGE_UNIT), main_pid(self.home.host, TUNNEL_UNIT)

    def tunnel_says(self) -> str:
        return self.home.host.check_output("%s logs tunnel-pod --lines 12", self.home.tool)


def both_ends() -> Iterator[Chain]:
    """What a fixture yields; the pod is left with its ssh server where the inventory says."""
    made = Chain(*(Rig.of(testinfra.get_host(f"podman://{name}")) for name in (HOME, POD)))
    yield made
    made.pod.host.run("kill -9 $(pgrep sshd)")
    start_sshd(made.pod.host, PORT)


def main_pid(host: Host, unit: str) -> str:
    return host.check_output("systemctl show %s --property=MainPID --value", unit)


def seconds_to_an_answer(page: Page, since: float, limit_s: float = 90) -> float:
    """From `since` until the model has answered through the page."""
    with inside(HOME):
        while True:
            with contextlib.suppress(PageError):
                if page.models() == ["chat"] and WORD in page.chat("chat", QUESTION, timeout_s=60):
                    return time.monotonic() - since
            assert time.monotonic() - since < limit_s, f"no answer within {limit_s} s"
            time.sleep(0.2)


def is_up_and_says_so(page: Page) -> str:
    """While the pod is gone: the page answers, offers no model, and says in words why it does not chat."""
    with inside(HOME):
        assert page.version()
        assert page.models() == []
        with pytest.raises(PageError) as refused:
            page.chat("chat", QUESTION, timeout_s=30)
    return str(refused.value)


def start_sshd(pod: Host, port: int) -> float:
    pod.check_output("/usr/sbin/sshd -p %s", str(port))
    return time.monotonic()


def kill_sshd(pod: Host) -> None:
    """The server and its sessions, as when the node goes away."""
    pod.check_output("kill -9 $(pgrep sshd)")
