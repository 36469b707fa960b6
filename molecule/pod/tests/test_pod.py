# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is particular to a rented container: all lies on the volume, and supervisord keeps the engines alive."""

from __future__ import annotations

import re
import time
from typing import Any

from ansible_collections.gpurig.llm.molecule.shared.rig import Rig, wait

ROOT = "/workspace/gpurig"
# Rights that would make this more than a plain container (linux/capability.h).
NET_ADMIN, SYS_MODULE, SYS_PTRACE, SYS_ADMIN = 12, 16, 19, 21


def test_the_kind_was_detected(rig: Rig) -> None:
    """The inventory does not name it."""
    assert (rig.described["kind"], rig.described["service_manager"]) == ("pod", "supervisord")
    assert rig.paths["root"] == ROOT


def test_the_container_is_a_plain_one(rig: Rig) -> None:
    """Without init and without rights, or the scenario would prove nothing."""
    assert not rig.host.file("/run/systemd/system").exists
    assert rig.host.check_output("cat /proc/1/comm") == "sleep"
    rights = int(re.findall(r"CapBnd:\s+(\S+)", rig.host.file("/proc/1/status").content_string)[0], 16)
    assert [right for right in (NET_ADMIN, SYS_MODULE, SYS_PTRACE, SYS_ADMIN) if rights >> right & 1] == []


def test_nothing_lies_outside_of_the_volume(rig: Rig) -> None:
    """What the container's own disk holds is gone after a restart."""
    others = "/proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /root/.ansible"
    find = f"find / -xdev ( -path {others} ) -prune -o -type f -cnewer /root/.before-check -print"
    assert rig.host.check_output(find.replace("(", r"\(").replace(")", r"\)")) == ""


def test_every_environment_brings_its_python(rig: Rig) -> None:
    """One that uv manages, on the volume: the next container may come from another image."""
    found = rig.host.check_output(f"readlink -f {ROOT}/envs/*/current/bin/python").split()
    assert len(found) >= 2
    assert [python for python in found if not python.startswith(f"{ROOT}/python/cpython-")] == []


def test_the_engine_does_not_see_the_providers_variables(rig: Rig, instance: dict[str, Any]) -> None:
    """Among them is a key to the account."""
    assert "RUNPOD_API_KEY" in rig.host.check_output("tr '\\0' '\\n' < /proc/1/environ")
    pid = rig.row(instance["name"])["pid"]
    seen = rig.host.check_output("tr '\\0' '\\n' < /proc/%s/environ", str(pid))
    assert "GPURIG_SERVICE=" in seen
    assert "RUNPOD" not in seen


# --- what it survives: from here on the tests act, in this order --------------------------------------------------


def test_a_killed_supervisord_is_started_again(rig: Rig, instance: dict[str, Any]) -> None:
    """By the same command as in the container's start command; the engine that it left behind is replaced."""
    before = rig.row(instance["name"])["pid"]
    rig.host.check_output("kill -9 $(cat %s/run/supervisord.pid)", ROOT)
    said = rig.host.check_output("%s start", rig.tool)
    assert f"(pid {before}, user root, service {instance['name']} of {ROOT})" in said
    wait("the model is loaded", lambda: rig.is_healthy(instance), timeout_s=300)
    assert rig.answers(instance)


def test_a_crash_loop_ends(rig: Rig, instance: dict[str, Any]) -> None:
    """When the budget is spent; status says so, and one command brings the repaired service back."""
    name, program = instance["name"], f"{ROOT}/etc/supervisor.d/{instance['name']}.conf"
    rig.host.check_output("cp %s /tmp/program.conf", program)
    starts = int(re.findall(r"--restart-budget (\d+)/", rig.host.file(program).content_string)[0])
    try:
        broken = "s/--restart-delay [0-9]*/--restart-delay 0/; s/^(command=.*) -- .*/\\1 -- \\/bin\\/false/"
        rig.host.check_output("sed -E -i %s %s", broken, program)
        rig.host.run("%s restart %s", rig.tool, name)
        wait("the budget is spent", lambda: rig.row(name)["state"] == "budget_spent")
        assert rig.row(name)["restarts"] == starts - 1
        assert f"{starts} starts within" in rig.host.check_output("%s logs %s --lines 5", rig.tool, name)
        time.sleep(2)
        assert (rig.row(name)["state"], rig.row(name)["pid"]) == ("budget_spent", 0)
        assert f"gpurig start {name}" in rig.host.check_output("%s status", rig.tool)
    finally:
        rig.host.check_output("cp /tmp/program.conf %s", program)
    rig.host.check_output("%s start %s", rig.tool, name)
    wait("the model is loaded", lambda: rig.is_healthy(instance), timeout_s=300)
