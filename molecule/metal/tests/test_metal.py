# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What site.yml leaves on a host with systemd: a confined service that answers, keeps its key and comes back."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Callable

import pytest
from testinfra.host import Host

UNIT = "gpurig-chat.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
SECRETS = "/etc/gpurig/secrets/chat.env"
MODEL = "/var/lib/gpurig/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENVIRONMENT = "/opt/gpurig/envs/llama_cpp"
EXEC_START = (
    "ExecStart=/opt/gpurig/bin/gpurig exec --name chat --secrets ${CREDENTIALS_DIRECTORY}/secrets --"
    f" {ENVIRONMENT}/ID/bin/python {ENVIRONMENT}/llama_server-ID.py --model {MODEL} --alias chat"
    " --host 127.0.0.1 --port 8000 "
)
HARDENING = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "read-only",
    "PrivateTmp": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictRealtime": "yes",
    "RestrictNamespaces": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ReadWritePaths": "/var/lib/gpurig/cache /var/lib/gpurig/run",
}
# Run on the host, which has no curl. Prints the HTTP status and the body.
ASK = """
import sys, urllib.error, urllib.request
path, key, body = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:8000" + path, data=body.encode() or None)
request.add_header("Content-Type", "application/json")
if key:
    request.add_header("Authorization", "Bearer " + key)
try:
    with urllib.request.urlopen(request, timeout=120) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def show(host: Host, *names: str) -> dict[str, str]:
    """Properties of the unit."""
    lines = host.check_output("systemctl show %s --property=%s", UNIT, ",".join(names)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def wait(what: str, seen: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until it is so."""
    end = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.5)


def key_of(host: Host) -> str:
    """The API key of the instance."""
    found = re.fullmatch(r"LLAMA_API_KEY=(\S{20,})\n", host.file(SECRETS).content_string)
    assert found
    return found[1]


def ask(host: Host, path: str, key: str = "", **body: object) -> tuple[int, str]:
    """Ask the engine, on the host itself; status 0 when nobody listens."""
    done = host.run("python3 -c %s %s %s %s", ASK, path, key, json.dumps(body) if body else "")
    status, _blank, text = done.stdout.partition(" ")
    return (int(status), text) if done.rc == 0 else (0, done.stderr)


def capital_of_france(host: Host) -> str:
    """What the model says to the question."""
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}
    status, text = ask(
        host, "/v1/chat/completions", key_of(host), model="chat", messages=[question], max_tokens=30, temperature=0
    )
    assert status == 200, text
    return str(json.loads(text)["choices"][0]["message"]["content"])


def is_healthy(host: Host) -> bool:
    """Whether the engine has loaded its model."""
    return ask(host, "/health")[0] == 200


def status(host: Host) -> dict[str, object]:
    """The one row of `gpurig status --json`."""
    (row,) = json.loads(host.check_output("/opt/gpurig/bin/gpurig status --json"))
    return dict(row)


# --- what lies there ---------------------------------------------------------------------------------------------


def test_the_unit_is_enabled_and_runs(host: Host) -> None:
    """Now and after a boot."""
    service = host.service(UNIT)
    assert service.is_enabled
    assert service.is_running
    assert show(host, "NRestarts", "Result", "NeedDaemonReload") == {
        "NRestarts": "0",
        "Result": "success",
        "NeedDaemonReload": "no",
    }


def test_it_runs_as_the_system_user(host: Host) -> None:
    """By the process, not by the unit."""
    user = host.user("gpurig")
    assert (user.shell, user.home) == ("/usr/sbin/nologin", "/var/lib/gpurig")
    pid = show(host, "MainPID")["MainPID"]
    assert host.check_output("stat --format=%%U:%%G /proc/%s", pid) == "gpurig:gpurig"


def test_exec_start_goes_through_the_host_tool(host: Host) -> None:
    """And in the end the process is the engine: nothing of ours stands between it and systemd."""
    lines = [line for line in host.file(UNIT_FILE).content_string.splitlines() if line.startswith("ExecStart")]
    assert len(lines) == 1
    assert lines[0].startswith(EXEC_START)
    pid = show(host, "MainPID")["MainPID"]
    words = host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", pid)
    assert words.startswith(f"{ENVIRONMENT}/current/bin/python {ENVIRONMENT}/llama_server.py --model {MODEL} ")


def test_the_hardening_is_in_force(host: Host) -> None:
    """What systemd has read, and what the kernel has made of it."""
    assert show(host, *HARDENING) == HARDENING
    families = show(host, "RestrictAddressFamilies")["RestrictAddressFamilies"]
    assert set(families.split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    pid = show(host, "MainPID")["MainPID"]
    kernel = dict(re.findall(r"(?m)^(\w+):\s+(\S+)$", host.file(f"/proc/{pid}/status").content_string))
    assert (kernel["NoNewPrivs"], kernel["Seccomp"]) == ("1", "2")
    assert int(kernel["CapEff"], 16) == int(kernel["CapBnd"], 16) == 0
    # As root, so that only the read-only mounts can be what stops it.
    for place, writable in {"/usr": False, "/etc/gpurig": False, "/var/lib/gpurig/cache": True}.items():
        done = host.run("nsenter --target %s --mount -- touch %s/written", pid, place)
        assert (done.rc == 0) == writable, (place, done.stderr)
        host.run("rm -f %s/written", place)


def test_systemd_has_nothing_to_complain_about(host: Host) -> None:
    """Neither a warning nor an unknown setting, on old and new systemd."""
    done = host.run("systemd-analyze verify %s", UNIT_FILE)
    assert (done.rc, done.stdout, done.stderr) == (0, "", "")
    assert host.check_output("systemctl is-system-running") == "running"


def test_the_exposure_is_low(host: Host) -> None:
    """systemd's own score, from 0 (confined) to 10; without our settings it is above 9."""
    said = host.check_output("systemd-analyze security --no-pager %s | tail -n 1", UNIT)
    score = float(re.findall(r"\d+\.\d+", said)[0])
    print(f"\n{host.backend.get_hostname()}: {said.strip()}")
    assert score <= 4.0, said


def test_the_role_brought_what_python_needs(host: Host) -> None:
    """The host was made without it, see shared/prepare.yml."""
    assert host.package("python3-venv").is_installed


# --- what it says, and to whom -----------------------------------------------------------------------------------


def test_it_answers_with_the_key(host: Host) -> None:
    """The model is small and still knows that much."""
    assert "Paris" in capital_of_france(host)


@pytest.mark.parametrize("key", ["", "wrong"])
def test_it_answers_nobody_without_the_key(host: Host, key: str) -> None:
    """Neither with no key nor with another one."""
    found, _text = ask(host, "/v1/chat/completions", key, messages=[{"role": "user", "content": "Hello"}])
    assert found == 401


def test_it_listens_on_loopback_only(host: Host) -> None:
    """By what the kernel says, and by trying from outside."""
    assert host.check_output("ss -Htln sport = :8000 | awk '{print $4}'") == "127.0.0.1:8000"
    address = host.check_output("hostname -I").split()[0]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 8000), timeout=5)


def test_the_key_lies_in_one_file(host: Host) -> None:
    """And that file is root's alone."""
    secrets, folder = host.file(SECRETS), host.file("/etc/gpurig/secrets")
    assert (secrets.user, secrets.group, oct(secrets.mode)) == ("root", "root", "0o600")
    assert (folder.user, folder.group, folder.mode & 0o066) == ("root", "root", 0)
    places = "/etc /opt /root /tmp /var"
    found = host.run(f"grep -rlFs --exclude=*.gguf -e %s {places}", key_of(host)).stdout.split()
    assert found == [SECRETS]


@pytest.mark.parametrize(
    "command",
    [
        f"systemctl show {UNIT}",
        f"systemctl cat {UNIT}",
        "systemctl show-environment",
        "journalctl --no-pager --output=verbose",
        "ps -eww -o args",
        "/opt/gpurig/bin/gpurig status --json",
        "/opt/gpurig/bin/gpurig logs chat --lines 1000",
    ],
)
def test_the_key_is_shown_nowhere(host: Host, command: str) -> None:
    """Nor is it in what the unit hands on as environment."""
    said = host.check_output(command)
    assert said
    assert key_of(host) not in said


def test_another_user_cannot_read_the_key(host: Host) -> None:
    """Neither from the file, nor from the credentials, nor from the process."""
    pid = show(host, "MainPID")["MainPID"]
    for place in (SECRETS, f"/run/credentials/{UNIT}/secrets", f"/proc/{pid}/environ"):
        done = host.run("setpriv --reuid=65534 --regid=65534 --clear-groups cat %s", place)
        assert done.rc != 0, place
        assert "ermission denied" in done.stderr


def test_status_tells_root(host: Host) -> None:
    """In a table for people and as JSON."""
    table = host.check_output("/opt/gpurig/bin/gpurig status")
    assert all(word in table for word in ("chat", "running", "llama_cpp", "smollm2", "http://127.0.0.1:8000/v1"))
    row = status(host)
    assert row["state"] == "running"
    assert str(row["pid"]) == show(host, "MainPID")["MainPID"]


# --- what it survives: from here on the tests act, in this order --------------------------------------------------


def test_a_killed_engine_comes_back(host: Host) -> None:
    """By itself, as another process."""
    before = show(host, "MainPID")["MainPID"]
    host.check_output("kill -9 %s", before)
    wait("another process", lambda: show(host, "MainPID")["MainPID"] not in {before, "0"})
    wait("the model is loaded", lambda: is_healthy(host))
    assert show(host, "NRestarts") == {"NRestarts": "1"}
    assert "Paris" in capital_of_france(host)


def test_a_crash_loop_ends(host: Host) -> None:
    """After as many starts as the unit allows; status says so, and one command brings the repaired service back."""
    folder = f"/etc/systemd/system/{UNIT}.d"
    broken = "[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec=100ms\n"
    host.check_output("mkdir %s && printf %s > %s/broken.conf", folder, broken, folder)
    try:
        host.check_output("systemctl daemon-reload && systemctl reset-failed %s", UNIT)
        host.run("systemctl restart %s", UNIT)
        wait("systemd gives up", lambda: show(host, "ActiveState") == {"ActiveState": "failed"})
        limit = show(host, "StartLimitBurst", "StartLimitIntervalUSec", "NRestarts")
        assert limit == {"StartLimitBurst": "5", "StartLimitIntervalUSec": "5min", "NRestarts": "5"}
        assert "repeated too quickly" in host.check_output("journalctl --no-pager --unit=%s --lines=20", UNIT)
        time.sleep(2)
        assert show(host, "ActiveState", "MainPID") == {"ActiveState": "failed", "MainPID": "0"}
        assert status(host)["state"] not in {"running", "starting"}
    finally:
        host.check_output("rm -r %s && systemctl daemon-reload", folder)
    host.check_output("/opt/gpurig/bin/gpurig start chat")
    wait("the model is loaded", lambda: is_healthy(host))


def test_a_reboot_brings_it_back(host: Host) -> None:
    """The container's restart is the host's boot."""
    name = host.backend.get_hostname()
    before = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --property=KernelTimestamp")
    subprocess.run(["podman", "restart", "--time", "20", name], check=True, capture_output=True)
    wait("systemd is up", lambda: host.run("systemctl is-system-running").stdout.strip() == "running")
    wait("the model is loaded", lambda: is_healthy(host))
    after = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --property=KernelTimestamp")
    assert after != before
    assert host.service(UNIT).is_running
    assert "Paris" in capital_of_france(host)
