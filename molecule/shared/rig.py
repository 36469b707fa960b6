# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig on a host as the tests of every scenario see it, and the instances that the scenario's inventory names."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.gpurig.llm.tests.tiny_model import make
from testinfra.host import Host

ONLY_ON = "only_on"  # the host of an instance that is not on every host
HOST_JSON = ("/etc/gpurig/host.json", "/workspace/gpurig/etc/host.json")
# A question that each model of ours can answer, and a word of the answer.
QUESTIONS = {
    "smollm2": ("What is the capital of France? Answer in one sentence.", "Paris"),
    "tiny": ("Hello?", make.ANSWER),
}
# Run on the host, which has no curl. Prints the HTTP status and the body.
ASK = """
import sys, urllib.error, urllib.request
url, key, body = sys.argv[1:]
request = urllib.request.Request(url, data=body.encode() or None)
request.add_header("Content-Type", "application/json")
if key:
    request.add_header("Authorization", "Bearer " + key)
try:
    with urllib.request.urlopen(request, timeout=120) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def instances() -> list[dict[str, Any]]:
    """What the inventory of the scenario that is tested wants to run, on every host or on one."""
    text = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "inventory.yml").read_text(encoding="utf-8")
    group = yaml.safe_load(text)["all"]["children"]["instances"]
    own = {name: host.get("rig_instances", []) for name, host in group["hosts"].items() if host}
    everywhere = list(group["vars"].get("rig_instances", []))
    return everywhere + [{**one, ONLY_ON: name} for name, entries in own.items() for one in entries]


def open_on_purpose(host: Host) -> dict[str, str]:
    """'tcp PORT' -> reason: what the inventory says may be reached on this host, in `molecule_open`."""
    text = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"], "inventory.yml").read_text(encoding="utf-8")
    group = yaml.safe_load(text)["all"]["children"]["instances"]
    own = group["hosts"][host.backend.get_hostname()] or {}
    return dict(own.get("molecule_open", group["vars"].get("molecule_open", {})))


def address(name: str) -> str:
    """Where the machine that runs the tests, in another network namespace, reaches the host of this name."""
    command = ["podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def noted(host: Host, topic: str, lines: Sequence[str]) -> None:
    """Keep lines about a host for the end of the run, where all of them are printed."""
    folder = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"], "noted")
    folder.mkdir(exist_ok=True)
    text = "".join(f"{host.backend.get_hostname()} {topic}: {line}\n" for line in lines)
    (folder / f"{host.backend.get_hostname()}-{topic}.txt").write_text(text, encoding="utf-8")


def wait(what: str, seen: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until it is so."""
    end = time.monotonic() + timeout_s
    while not seen():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.5)


@dataclass(frozen=True)
class Rig:
    """`paths` as in the rig facts, `described` is host.json."""

    host: Host
    paths: Mapping[str, str]
    described: Mapping[str, Any]

    @classmethod
    def of(cls, host: Host) -> Rig:
        """The rig of a host."""
        described = json.loads(host.check_output("cat %s %s 2> /dev/null || true", *HOST_JSON))
        return cls(host, described["paths"], described)

    @property
    def tool(self) -> str:
        """The program gpurig."""
        return f"{self.paths['bin']}/gpurig"

    def row(self, name: str) -> dict[str, Any]:
        """The instance's row of `gpurig status --json`."""
        rows = json.loads(self.host.check_output("%s status --json", self.tool))
        return next(row for row in rows if row["name"] == name)

    def key(self, name: str) -> str:
        """The API key of the instance."""
        key = self.host.check_output("%s key %s", self.tool, name)
        assert len(key) >= 20
        return key

    def ask(self, port: int, path: str, key: str = "", **body: object) -> tuple[int, str]:
        """Ask an engine, on the host itself; status 0 when nobody listens."""
        url = f"http://127.0.0.1:{port}{path}"
        done = self.host.run("python3 -c %s %s %s %s", ASK, url, key, json.dumps(body) if body else "")
        status, _blank, text = done.stdout.partition(" ")
        return (int(status), text) if done.rc == 0 else (0, done.stderr)

    def is_healthy(self, instance: Mapping[str, Any]) -> bool:
        """Whether the engine has loaded its model."""
        return self.ask(instance["port"], "/health")[0] == 200

    def answers(self, instance: Mapping[str, Any]) -> bool:
        """Whether the model gives the right answer, to somebody with the key."""
        if instance.get("task") == "embed":
            return self.embeds(instance)
        question, word = QUESTIONS[instance["model"]]
        status, text = self.ask(
            instance["port"],
            "/v1/chat/completions",
            self.key(instance["name"]),
            model=instance["name"],
            messages=[{"role": "user", "content": question}],
            max_tokens=30,
            temperature=0,
        )
        assert status == 200, text
        return word in json.loads(text)["choices"][0]["message"]["content"]

    def embeds(self, instance: Mapping[str, Any]) -> bool:
        """Whether the instance turns texts into vectors of the model's size, to somebody with the key."""
        key = self.key(instance["name"])
        status, text = self.ask(instance["port"], "/v1/embeddings", key, model=instance["name"], input=["a", "b"])
        assert status == 200, text
        return [len(row["embedding"]) for row in json.loads(text)["data"]] == [make.Shape().hidden] * 2
