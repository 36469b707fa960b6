# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is particular to a host with systemd: a confined service under its own user, that a reboot brings back."""

from __future__ import annotations

import re
import subprocess
import time

import pytest
from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, instances, wait
from testinfra.host import Host

CHAT = instances()[0]
UNIT = "gpurig-chat.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
SECRETS = "/etc/gpurig/secrets/chat.env"
MODEL = "/var/lib/gpurig/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENVIRONMENT = "/opt/gpurig/envs/llama_cpp"
ENGINE = f"{ENVIRONMENT}/ID/bin/python {ENVIRONMENT}/llama_server-ID.py --model {MODEL} "
EXEC_START = "ExecStart=/opt/gpurig/bin/gpurig exec --name chat --secrets ${CREDENTIALS_DIRECTORY}/secrets -- "
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


def show(host: Host, *names: str) -> dict[str, str]:
    """Properties of the unit."""
    lines = host.check_output("systemctl show %s --property=%s", UNIT, ",".join(names)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def without_ids(text: str) -> str:
    """The text with ID for the hashes by which environments and launchers are named."""
    return re.sub(r"(?<=[/-])[0-9a-f]{12,16}(?=[/.])", "ID", text)


# --- what lies there ---------------------------------------------------------------------------------------------


def test_the_unit_is_enabled_and_runs(host: Host, rig: Rig) -> None:
    """Now and after a boot; status tells of the same process."""
    service = host.service(UNIT)
    assert service.is_enabled
    assert service.is_running
    assert show(host, "NeedDaemonReload", "MainPID") == {
        "NeedDaemonReload": "no",
        "MainPID": str(rig.row("chat")["pid"]),
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
    assert without_ids(lines[0]).startswith(EXEC_START + ENGINE)
    pid = show(host, "MainPID")["MainPID"]
    words = host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", pid)
    assert without_ids(words).startswith(ENGINE)


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
    """The host was made without it, see metal/prepare.yml."""
    assert host.package("python3-venv").is_installed


# --- who may see the key -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        f"systemctl show {UNIT}",
        f"systemctl cat {UNIT}",
        "systemctl show-environment",
        "journalctl --no-pager --output=verbose",
    ],
)
def test_systemd_shows_no_key(host: Host, rig: Rig, command: str) -> None:
    """Nor does it hand the key on as environment."""
    said = host.check_output(command)
    assert said
    assert rig.key("chat") not in said


def test_another_user_cannot_read_the_key(host: Host) -> None:
    """Neither from the file, nor from the credentials, nor from the process."""
    pid = show(host, "MainPID")["MainPID"]
    for place in (SECRETS, f"/run/credentials/{UNIT}/secrets", f"/proc/{pid}/environ"):
        done = host.run("setpriv --reuid=65534 --regid=65534 --clear-groups cat %s", place)
        assert done.rc != 0, place
        assert "ermission denied" in done.stderr


# --- what it survives: from here on the tests act, in this order --------------------------------------------------


def test_a_crash_loop_ends(host: Host, rig: Rig) -> None:
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
        assert rig.row("chat")["state"] not in {"running", "starting"}
    finally:
        host.check_output("rm -r %s && systemctl daemon-reload", folder)
    host.check_output("/opt/gpurig/bin/gpurig start chat")
    wait("the model is loaded", lambda: rig.is_healthy(CHAT))


def test_a_reboot_brings_it_back(host: Host, rig: Rig) -> None:
    """The container's restart is the host's boot."""
    name = host.backend.get_hostname()
    before = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --property=KernelTimestamp")
    subprocess.run(["podman", "restart", "--time", "20", name], check=True, capture_output=True)
    wait("systemd is up", lambda: host.run("systemctl is-system-running").stdout.strip() == "running")
    wait("the model is loaded", lambda: rig.is_healthy(CHAT))
    after = host.check_output("systemctl show --property=UserspaceTimestampMonotonic --property=KernelTimestamp")
    assert after != before
    assert host.service(UNIT).is_running
    assert rig.answers(CHAT)
