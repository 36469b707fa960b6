# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in a container: what it answers, what it may, who sees its secrets, and how it is stopped and started."""

from __future__ import annotations

import socket

import pytest
from ansible_collections.gpurig.llm.molecule.compose.tests.seen import CONTAINER, PORT, ask, inspected, is_ready, titles
from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, address, wait
from testinfra.host import Host

UNIT = "gpurig-open-webui.service"
QUESTION = "What is the capital of France? Answer in one sentence."
DOCUMENT = "The secret colour of the rig is violet. " * 20
CHAT = {"chat": {"title": "Kept", "models": ["chat"], "messages": [], "history": {"messages": {}, "currentId": None}}}
# Every secret that the rig generated, as patterns for grep; shorter values are no secrets of ours.
PATTERNS = "sed -n 's/^[A-Z_]*=\\(.\\{20,\\}\\)$/\\1/p' /etc/gpurig/secrets/*.env | sort -u > /root/patterns"


@pytest.fixture(scope="module")
def patterns(host: Host) -> str:
    """A file with the secrets."""
    host.check_output(PATTERNS)
    assert int(host.check_output("wc -l < /root/patterns")) >= 4
    return "/root/patterns"


def test_it_answers(host: Host) -> None:
    """A model of the host, through the page, and a question about a document."""
    assert ask(host, "page.version()").startswith("0.12.")
    assert ask(host, "page.models()") == ["chat"]
    assert "Paris" in ask(host, f"page.chat('chat', {QUESTION!r})")
    with_document = f"page.chat('chat', 'Which colour?', (page.add_document('colour.txt', {DOCUMENT!r}),))"
    assert ask(host, with_document)
    assert ask(host, f"page.call('POST', '/api/v1/chats/new', {CHAT!r})['title']") == "Kept"


def test_what_the_container_may(host: Host) -> None:
    """Nothing that it does not need."""
    seen = inspected(host)
    limits = seen["HostConfig"]
    owner = host.check_output("stat --format %u:%g /var/lib/gpurig/open_webui")
    assert (seen["Config"]["User"], owner == "0:0") == (owner, False)
    assert (limits["ReadonlyRootfs"], limits["CapDrop"], limits["Privileged"]) == (True, ["ALL"], False)
    assert limits["SecurityOpt"] == ["no-new-privileges:true"]
    assert (limits["NetworkMode"], limits["RestartPolicy"]["Name"]) == ("host", "no")
    assert seen["Config"]["Image"].startswith("127.0.0.1:5000/open-webui/open-webui@sha256:")
    assert host.run("docker exec %s touch /app/backend/x", CONTAINER).rc != 0


def test_nobody_else_reaches_its_secrets(host: Host) -> None:
    """Not the services' user either, whose file it is."""
    owner = host.check_output("stat --format %U /var/lib/gpurig/open_webui")
    assert owner != "root"
    read = host.run("runuser --user %s -- cat /etc/gpurig/secrets/containers/open-webui.env", owner)
    assert (read.rc, "Permission denied" in read.stderr) == (1, True)


def test_it_listens_on_loopback_only(host: Host) -> None:
    """And another network namespace does not reach it."""
    listening = host.check_output("ss --listening --tcp --numeric --no-header sport = :%s", str(PORT))
    assert [line.split()[3] for line in listening.splitlines()] == [f"127.0.0.1:{PORT}"]
    place = (address(host.backend.get_hostname()), PORT)
    with pytest.raises(OSError, match="refused"), socket.create_connection(place, timeout=5):
        pass


def test_no_secret_is_where_others_look(host: Host, patterns: str) -> None:
    """Not in what Docker keeps (containers, their logs), nor in units, compose files and command lines; the layers of
    images are searched where every host is (../shared/private)."""
    looked = "/var/lib/docker /etc/systemd/system /etc/gpurig/instances /etc/gpurig/services /var/lib/gpurig/services"
    search = f"grep -rlFsa -f {patterns} --exclude-dir=overlay2 {looked} || true"
    assert host.check_output(search) == ""
    for command in ("docker inspect %s", "docker history --no-trunc $(docker inspect --format '{{.Image}}' %s)"):
        assert host.run(f"{command % CONTAINER} | grep -qFa -f {patterns}").rc == 1
    assert host.run(f"cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -qFa -f {patterns}").rc == 1
    assert host.run(f"journalctl --unit {UNIT} --output cat | grep -qFa -f {patterns}").rc == 1
    host.check_output(f"head -1 {patterns} > /var/lib/docker/containers/planted")
    seen = host.check_output(search)
    host.check_output("rm /var/lib/docker/containers/planted")
    assert seen == "/var/lib/docker/containers/planted"


def test_the_log_is_the_service_s(host: Host, rig: Rig) -> None:
    """What the page says is in the journal."""
    assert "open_webui." in host.check_output("%s logs open-webui -n 400", rig.tool)


def test_it_stops_and_starts_as_every_service(host: Host, rig: Rig) -> None:
    """The container with the unit, and no failure remains."""
    host.check_output("%s stop open-webui", rig.tool)
    assert inspected(host)["State"]["Running"] is False
    state = host.check_output("systemctl show --property=ActiveState,Result %s", UNIT)
    assert set(state.split()) == {"ActiveState=inactive", "Result=success"}
    host.check_output("%s start open-webui", rig.tool)
    wait("the page is up", lambda: is_ready(host), 240)
    assert titles(host) == ["Kept"]


def test_it_survives_a_restart_of_docker(host: Host) -> None:
    """The unit brings back what it needs."""
    host.check_output("systemctl restart docker")
    wait("the page is up", lambda: is_ready(host) and host.service(UNIT.removesuffix(".service")).is_running, 240)
    assert inspected(host)["State"]["Running"] is True
    assert titles(host) == ["Kept"]
