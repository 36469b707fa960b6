# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A person at home chats with the model in the pod, through the page and the tunnel, whatever happens on the way.

Page and browser are asked in the home host's network: what is loopback there stays loopback.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest
from ansible_collections.gpurig.llm.molecule.page.chain import (
    ADMIN,
    HOME,
    PAGE_UNIT,
    PLACE,
    POD,
    PORT,
    QUESTION,
    SECRETS,
    TUNNEL_UNIT,
    URL,
    USER,
    WORD,
    Chain,
    both_ends,
    inside,
    is_up_and_says_so,
    kill_sshd,
    main_pid,
    network_of,
    seconds_to_an_answer,
    start_sshd,
)
from ansible_collections.gpurig.llm.molecule.shared.rig import wait
from ansible_collections.gpurig.llm.tests.e2e import browser

# selenium's own, where it lets go of its driver
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    yield from both_ends()


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
