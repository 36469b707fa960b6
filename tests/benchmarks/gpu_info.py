# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to know the cards of a machine: in a process, as a module, and as Ansible tasks over ssh.

    python tests/benchmarks/gpu_info.py [--machine hgx_8xh100] [--rounds 20]

The cards are simulated, the rest is real: nvidia-ml-py, the module's process, ansible-playbook, and an sshd of one's
own on loopback (Debian's openssh-server), which is left out where there is none. Prints medians in milliseconds, and
each as a multiple of the first. `ansible.builtin.ping` over the same connection says what of it is Ansible's own.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ansible_collections.gpurig.llm.plugins.module_utils.gpu_scan import scan
from ansible_collections.gpurig.llm.tests.nvml_sim.build import build
from ansible_collections.gpurig.llm.tests.rigs.live import LiveRig, install
from ansible_collections.gpurig.llm.tests.rigs.machines import machine

REPOSITORY = Path(__file__).resolve().parents[2]
SSHD = Path("/usr/sbin/sshd")


def milliseconds(what: Callable[[], object], rounds: int) -> float:
    """The median time of `rounds` calls, after one that does not count."""
    what()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        what()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


@contextlib.contextmanager
def ssh_server(scratch: Path) -> Iterator[dict[str, str]]:
    """An sshd for the present user alone, on a free loopback port; yields Ansible's connection variables."""
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", scratch / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [
        *("ListenAddress=127.0.0.1", f"Port={port}", f"HostKey={scratch / 'host'}", f"PidFile={scratch / 'pid'}"),
        *(f"AuthorizedKeysFile={scratch / 'user.pub'}", "StrictModes=no", "UsePAM=no"),
    ]
    options = [part for setting in settings for part in ("-o", setting)]
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with subprocess.Popen([SSHD, "-D", "-f", "/dev/null", *options], stderr=subprocess.DEVNULL) as server:
        try:
            time.sleep(0.5)
            yield {
                "ansible_host": "127.0.0.1",
                "ansible_port": str(port),
                "ansible_user": getpass.getuser(),
                "ansible_ssh_private_key_file": str(scratch / "user"),
                "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null",
                "ansible_python_interpreter": sys.executable,
            }
        finally:
            server.terminate()


def tasks_ms(rig: LiveRig, connection: dict[str, str], scratch: Path, rounds: int) -> dict[str, float]:
    """Medians of the tasks `ping` and `gpu_info` over ssh, by Ansible's own clock (callback profile_tasks)."""
    arguments = json.dumps(rig.arguments)
    names = [name for _ in range(rounds + 1) for name in ("ping", "gpu_info")]
    modules = {"ping": "ansible.builtin.ping: {}", "gpu_info": f"gpurig.llm.gpu_info: {arguments}"}
    environment = json.dumps({"NVML_SIM_DIR": rig.nvml_path})
    tasks = "".join(f"    - name: {name} {number}\n      {modules[name]}\n" for number, name in enumerate(names))
    play = f"- hosts: all\n  gather_facts: false\n  environment: {environment}\n  tasks:\n{tasks}"
    (scratch / "ansible.cfg").write_text("[defaults]\n", encoding="utf-8")
    (scratch / "play.yml").write_text(play, encoding="utf-8")
    (scratch / "hosts.json").write_text(json.dumps({"all": {"hosts": {"rig": connection}}}), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-i", scratch / "hosts.json", scratch / "play.yml"],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(scratch / "ansible.cfg"),
            "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks",
            "PROFILE_TASKS_TASK_OUTPUT_LIMIT": "all",
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "COLUMNS": "120",
        },
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"ansible-playbook failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    found: dict[str, list[float]] = {"ping": [], "gpu_info": []}
    for name, number, seconds in re.findall(r"^(ping|gpu_info) (\d+) -+ ([\d.]+)s$", done.stdout, re.MULTILINE):
        if int(number) > 1:  # the first of each opens the connection
            found[name].append(float(seconds) * 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def module_call(rig: LiveRig) -> None:
    """The module's own file as a process, without Ansible's transport."""
    payload = json.dumps({"ANSIBLE_MODULE_ARGS": {**rig.arguments, "_ansible_remote_tmp": tempfile.gettempdir()}})
    program = (
        "import sys; from ansible.module_utils.testing import patch_module_args; import json\n"
        "from ansible_collections.gpurig.llm.plugins.modules import gpu_info\n"
        "with patch_module_args(json.loads(sys.argv[1])['ANSIBLE_MODULE_ARGS']): gpu_info.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, payload], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["gpus"], done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--machine", default="hgx_8xh100")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpurig-bench-") as temporary:
        scratch = Path(temporary)
        rig = install(machine(options.machine), scratch / "rig", build(REPOSITORY / ".cache" / "nvml_sim"))
        os.environ["NVML_SIM_DIR"] = rig.nvml_path
        rows = {"in process": milliseconds(lambda: scan(**rig.arguments), options.rounds)}
        rows["module process"] = milliseconds(lambda: module_call(rig), options.rounds)
        if SSHD.exists():
            with ssh_server(scratch) as connection:
                over_ssh = tasks_ms(rig, connection, scratch, options.rounds)
            rows["task over ssh"] = over_ssh["gpu_info"]
            rows["ansible.builtin.ping over ssh"] = over_ssh["ping"]
    cards = len(rig.machine.places)
    print(f"{options.machine}, {cards} cards, median of {options.rounds}")
    first = next(iter(rows.values()))
    for name, value in rows.items():
        print(f"{name:<32}{value:9.1f} ms {value / first:8.1f} x")


if __name__ == "__main__":
    main()
