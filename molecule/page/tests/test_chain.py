# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at home chats with the model in the pod, through the page and the tunnel, whatever happens on the way.

Page and browser are asked in the home host's network: what is loopback there stays loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra
from ansible_collections.gpurig.llm.molecule.shared.rig import QUESTIONS, Rig, wait
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, PageError, sign_in
from ansible_collections.gpurig.llm.tests.e2e import browser
from testinfra.host import Host

HOME, POD, USER = "gpurig-page-home", "gpurig-page-pod", "forward"
URL, ADMIN = "http://127.0.0.1:8080", "admin@home.example.org"
SECRETS = "/etc/gpurig/secrets"
PAGE_UNIT, TUNNEL_UNIT = "gpurig-open-webui.service", "gpurig-tunnel-pod.service"
QUESTION, WORD = QUESTIONS["smollm2"]
PORT, MOVED_PORT = 40022, 40023
CHECKOUT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
PLACE = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])

# selenium's own, where it lets go of its driver
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


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


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """The pod is left with its ssh server where the inventory says."""
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


# --- what lies there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [PAGE_UNIT, TUNNEL_UNIT])
def test_it_runs_confined_as_the_system_user(chain: Chain, unit: str) -> None:
    host = chain.home.host
    assert host.service(unit).is_enabled
    pid = main_pid(host, unit)
    assert host.check_output("stat --format=%%U:%%G /proc/%s", pid) == "gpurig:gpurig"
    status = host.file(f"/proc/{pid}/status").content_string
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    done = host.run("systemd-analyze verify /etc/systemd/system/%s", unit)
    assert (done.rc, done.stdout, done.stderr) == (0, "", "")


def test_no_secret_lies_in_a_unit_or_a_command_line(chain: Chain) -> None:
    """Neither the page's nor the key of the pod's engine; in files root alone reads them."""
    host = chain.home.host
    secrets = host.check_output("cat %s/open-webui.env %s/tunnel-pod.env", SECRETS, SECRETS).splitlines()
    values = [line.split("=", 1)[1] for line in secrets if len(line.split("=", 1)[1]) >= 20]
    assert len(values) >= 3
    assert chain.pod.key("chat") in values
    for command in (
        f"systemctl cat {PAGE_UNIT} {TUNNEL_UNIT}",
        f"systemctl show {PAGE_UNIT} {TUNNEL_UNIT}",
        "journalctl --no-pager --output=verbose",
        "ps -eww -o args",
    ):
        said = host.check_output(command)
        assert said
        assert [value for value in values if value in said] == [], command
    for name in ("open-webui.env", "tunnel-pod.env"):
        assert oct(host.file(f"{SECRETS}/{name}").mode) == "0o600"
    key = host.file("/etc/gpurig/tunnels/pod.key")
    assert (key.user, oct(key.mode)) == ("gpurig", "0o600")


def test_the_key_opens_one_port_of_the_pod_and_nothing_else(chain: Chain) -> None:
    """Neither a shell nor another port, whatever its owner tries."""
    host = chain.home.host
    known = "-o UserKnownHostsFile=/etc/gpurig/tunnels/pod.known_hosts -o HostKeyAlias=gpurig-page-pod"
    ssh = f"timeout 20 ssh -F none -o BatchMode=yes {known} -i /etc/gpurig/tunnels/pod.key -p {PORT} {USER}@{POD}"
    ran = host.run(f"{ssh} id")
    assert (ran.rc, ran.stdout) == (1, "")
    refused = host.run(f"{ssh} -W 127.0.0.1:{PORT}")
    assert refused.rc != 0
    assert "administratively prohibited" in refused.stderr


def test_the_key_is_its_users_alone(chain: Chain) -> None:
    """Ansible signs in as root and the tunnel as another: the line is in that one's file, and sshd may trust it."""
    host = chain.pod.host
    keys = host.file(f"/home/{USER}/.ssh/authorized_keys")
    assert (keys.user, oct(keys.mode), oct(host.file(f"/home/{USER}/.ssh").mode)) == (USER, "0o600", "0o700")
    assert "gpurig tunnel" in keys.content_string
    assert not host.file("/root/.ssh/authorized_keys").exists


# --- a person at home --------------------------------------------------------------------------------------------


def test_a_chat_in_the_browser_at_home(chain: Chain) -> None:
    password = chain.password()
    with inside(HOME), browser.Browser(PLACE / "browser") as person:
        began = time.monotonic()
        person.sign_in(URL, ADMIN, password)
        assert person.choose("chat") == ["chat"]
        answer = person.ask(QUESTION)
        assert WORD in answer.text
        long = person.ask("Write ten sentences about the sea.")
        print(f"\nin the browser: {time.monotonic() - began:.0f} s; {person.picture(PLACE / 'page.png')}")
    assert len(long.lengths) >= 3, f"the answer did not come bit by bit: {long.lengths}"


# --- what it survives: from here on the tests act, in this order -------------------------------------------------


def test_a_killed_page_comes_back(chain: Chain) -> None:
    page, before = chain.page(), chain.pids()
    chain.home.host.check_output("kill -9 %s", before[0])
    took_s = seconds_to_an_answer(page, time.monotonic(), 120)
    print(f"\nkill -9 of the page: a chat was answered {took_s:.1f} s later")
    after = chain.pids()
    assert after[0] not in {before[0], "0"}
    assert after[1] == before[1]
    assert chain.home.host.check_output("systemctl show %s --property=NRestarts --value", PAGE_UNIT) == "1"


def test_the_pods_ssh_server_goes_and_comes_back(chain: Chain) -> None:
    page, before = chain.page(), chain.pids()
    kill_sshd(chain.pod.host)
    wait("the tunnel says why", lambda: "cannot be reached" in chain.tunnel_says())
    said = is_up_and_says_so(page)
    took_s = seconds_to_an_answer(page, start_sshd(chain.pod.host, PORT))
    print(f"\nsshd was gone: a chat was answered {took_s:.1f} s after it was back; meanwhile the page said: {said}")
    assert took_s < 20
    assert chain.pids() == before


def drop_all(container: str, action: str) -> None:
    """Begin (-I) or end (-D) to lose every packet of the container that leaves its loopback."""
    for table, option in (("INPUT", "-i"), ("OUTPUT", "-o")):
        rule = ["iptables", "-w", action, table, "!", option, "lo", "-j", "DROP"]
        subprocess.run(["nsenter", f"--net={network_of(container)}", *rule], check=True, capture_output=True)


def test_the_network_falls_silent_and_comes_back(chain: Chain) -> None:
    """Nobody says goodbye: the tunnel must notice by itself."""
    page, before = chain.page(), chain.pids()
    drop_all(POD, "-I")
    try:
        began = time.monotonic()
        wait("the tunnel notices", lambda: "not responding" in chain.tunnel_says())
        noticed_s = time.monotonic() - began
        said = is_up_and_says_so(page)
    finally:
        drop_all(POD, "-D")
    took_s = seconds_to_an_answer(page, time.monotonic())
    print(f"\nsilence noticed after {noticed_s:.1f} s; answered {took_s:.1f} s after its end; the page said: {said}")
    assert noticed_s < 25
    assert took_s < 25
    assert chain.pids() == before


def test_a_boot_of_both_brings_everything_back(chain: Chain) -> None:
    """Without Ansible: systemd at home, the start command in the pod."""
    page = chain.page()
    began = time.monotonic()
    podman("restart", "--time", "5", POD)
    podman("restart", "--time", "20", HOME)
    back = time.monotonic()
    took_s = seconds_to_an_answer(page, back, 180)
    print(f"\nboth hosts started anew within {back - began:.0f} s; a chat was answered {took_s:.1f} s later")
    assert chain.home.host.check_output("systemctl is-system-running --wait") == "running"


def play(*more: str, **pod: Any) -> subprocess.CompletedProcess[str]:
    """Run site.yml over the scenario's inventory, in which the pod has been described anew."""
    moved = PLACE / "moved.json"
    moved.write_text(json.dumps({"all": {"hosts": {POD: pod}}}), encoding="utf-8")
    inventories = [
        f"--inventory={path}" for path in (os.environ["MOLECULE_SCENARIO_DIRECTORY"] + "/inventory.yml", moved)
    ]
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    command = [sys.executable, program, str(CHECKOUT / "site.yml"), *inventories, *more]
    env = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, env=env)


def test_another_pod_in_its_place_is_followed_when_the_inventory_says_so(chain: Chain) -> None:
    """As after a stop and start of a rented one: another port, another host key, and nobody's key authorized."""
    page, before, pod = chain.page(), chain.pids(), chain.pod.host
    kill_sshd(pod)
    pod.check_output("rm -r /home/forward/.ssh /etc/ssh/ssh_host_* && ssh-keygen -A")
    start_sshd(pod, PORT)
    wait("the tunnel says why", lambda: "another host key than the one pinned" in chain.tunnel_says())
    status = chain.home.host.check_output("%s status", chain.home.tool)
    assert "tunnel-pod" in status
    is_up_and_says_so(page)
    kill_sshd(pod)
    back = start_sshd(pod, MOVED_PORT)
    noted = PLACE / "pod_host_key.pub"
    noted.write_text(pod.check_output("cat /etc/ssh/ssh_host_ed25519_key.pub") + "\n", encoding="utf-8")
    done = play("--limit", HOME, ansible_port=MOVED_PORT)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    run_s = time.monotonic() - back
    took_s = seconds_to_an_answer(page, back, run_s + 60)
    print(f"\na moved pod: the playbook ran {run_s:.0f} s, a chat was answered {took_s:.1f} s after the pod was there")
    assert chain.pids() == before, "page or tunnel were started anew"
    assert "Page: http://127.0.0.1:8080" in done.stdout
    assert WORD in done.stdout[done.stdout.index("Asked through the page") :].splitlines()[0]
