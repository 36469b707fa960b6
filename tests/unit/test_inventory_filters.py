# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two inventory filters inside real Ansible: lazy variables, templates, errors, documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ansible.errors", reason="ansible-core needs a newer Python than the oldest target's")

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.filter import instances_for, inventory_errors, postgres_url
from ansible_collections.gpurig.llm.plugins.module_utils.schema import SCHEMA
from ansible_collections.gpurig.llm.plugins.modules import model_fetch

HOMELAB = Path(__file__).resolve().parents[2] / "inventories" / "homelab"

INVENTORY = """
rigs:
  hosts:
    right:
    wrong:
"""

RIGHT = """
base_port: 8000
file: /srv/mine.gguf
poison: "{{ lookup('ansible.builtin.pipe', 'touch POISONED') }}{{ nothing_here }}"
rig_root: "{{ '/srv' ~ '/rig' }}"
rig_models:
  mine: {source: local, local: {path: "{{ file }}"}, format: "{{ 'gguf' }}"}
rig_instances:
  - {name: chat, model: mine, port: "{{ base_port + 1 }}", flags: {threads: "{{ [1, 2] | max }}"}}
  - {name: old, model: mine, state: absent}
"""

WRONG = """
poison: "{{ lookup('ansible.builtin.pipe', 'touch POISONED') }}{{ nothing_here }}"
rig_kind: "{{ lookup('ansible.builtin.file', '/not/there') }}"
rig_root: "{{ nothing_here }}/x"
rig_environment: {HTTPS_PROXY: "http://{{ nothing.at.all }}"}
rig_gpus: [{name: first, pci: 0000:17:00.0}]
rig_models:
  mine: {source: local, local: {path: /srv/mine.gguf}, format: gguf}
rig_instances:
  - {name: chat, model: mine, prot: 1}
  - {name: other, model: "{{ rig_models.mine.nope }}", port: 8001}
rig_gpu_roles: "{{ 1 // 0 }}"
"""

PLAYBOOK = """
- hosts: right
  gather_facts: false
  vars:
    seen:
      right.errors: "{{ hostvars['right'] | gpurig.llm.inventory_errors }}"
      wrong.errors: "{{ hostvars['wrong'] | gpurig.llm.inventory_errors }}"
      homelab.errors: "{{ hostvars['homelab'] | gpurig.llm.inventory_errors }}"
      right.instances: "{{ rig_instances | gpurig.llm.instances_for('llama_cpp', rig_models) }}"
      homelab.instances: >-
        {{ hostvars['homelab'].rig_instances
        | gpurig.llm.instances_for('all', hostvars['homelab'].rig_models) }}
  tasks:
    - ansible.builtin.copy:
        dest: "{{ playbook_dir }}/seen.json"
        content: "{{ seen | to_json }}"
        mode: "0600"
"""


def tool(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_") or key.endswith("_PATH")}
    (folder / "ansible.cfg").touch()
    environment = {**kept, "ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
    return subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env=environment,
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of Ansible over a right host, a wrong one and the shipped inventory: what it made of them."""
    folder = tmp_path_factory.mktemp("inventory")
    (folder / "host_vars").mkdir()
    (folder / "hosts.yml").write_text(INVENTORY)
    (folder / "host_vars" / "right.yml").write_text(RIGHT.replace("POISONED", str(folder / "poisoned")))
    (folder / "host_vars" / "wrong.yml").write_text(WRONG.replace("POISONED", str(folder / "poisoned")))
    (folder / "play.yml").write_text(PLAYBOOK)
    here = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "rig_allow_reboot": True,
    }
    inventories = ["-i", str(folder / "hosts.yml"), "-i", str(HOMELAB)]
    extra = ["-e", json.dumps(here), "-e", "rig_allow_driver_change=true"]
    done = tool("ansible-playbook", *inventories, *extra, "play.yml", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder / "poisoned").exists(), "a variable that is none of ours was rendered"
    result: dict[str, Any] = json.loads((folder / "seen.json").read_text())
    return result


BY_COMMAND_LINE = (
    "rig_allow_driver_change: found the text 'true', needed true or false. Write it without quotes (on the"
)


def test_templates_in_a_right_inventory_are_rendered_and_extra_variables_seen(seen: dict[str, Any]) -> None:
    assert [problem[: len(BY_COMMAND_LINE)] for problem in seen["right.errors"]] == [BY_COMMAND_LINE]


def test_each_failing_template_is_named_and_hides_no_other_problem(seen: dict[str, Any]) -> None:
    starts = [
        "rig_kind: its template cannot be rendered: The lookup plugin 'ansible.builtin.file' failed: Unable to access",
        "rig_root: its template cannot be rendered: 'nothing_here' is undefined",
        "rig_environment.HTTPS_PROXY: its template cannot be rendered: 'nothing' is undefined",
        "rig_gpus[0].pci: found the number 1020.0, needed a PCI address",
        "rig_gpu_roles: its template cannot be rendered: ",
        "rig_instances[0].prot: no such key. Did you mean port?",
        "rig_instances[1].model: its template cannot be rendered: ",
        BY_COMMAND_LINE,
    ]
    problems = seen["wrong.errors"]
    assert len(problems) == len(starts), problems
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_the_shipped_inventory_in_ansible(seen: dict[str, Any]) -> None:
    problems = seen["homelab.errors"]
    assert [problem.split(":")[0] for problem in problems] == [
        "rig_models.mistral-small.hub.revision",
        "rig_allow_driver_change",
    ]
    assert [(one["name"], one["engine"], one["port"]) for one in seen["homelab.instances"]] == [("chat", "vllm", 8000)]


def test_a_role_is_handed_rendered_instances(seen: dict[str, Any]) -> None:
    (chat,) = seen["right.instances"]
    assert (chat["name"], chat["port"], chat["flags"]) == ("chat", 8001, {"threads": 2})
    assert chat["model_entry"] == {"source": "local", "local": {"path": "/srv/mine.gguf"}, "format": "gguf"}


def test_both_filters_are_documented(tmp_path: Path) -> None:
    names = ["gpurig.llm.instances_for", "gpurig.llm.inventory_errors"]
    done = tool("ansible-doc", "-t", "filter", "--json", *names, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    documents = json.loads(done.stdout)
    for name in names:
        assert documents[name]["doc"]["short_description"]
        assert documents[name]["doc"]["options"]["_input"]["required"] is True
        assert documents[name]["examples"]
        assert documents[name]["return"]["_value"]["type"] == "list"
    assert documents[names[0]]["doc"]["positional"] == "_input, engine, models"


def test_the_plugin_files_offer_their_filters() -> None:
    assert set(inventory_errors.FilterModule().filters()) == {"inventory_errors"}
    assert set(instances_for.FilterModule().filters()) == {"instances_for"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({"a": 1}, "llama_cpp", {}), "instances_for takes a list"),
        (("text", "llama_cpp", {}), "instances_for takes a list"),
        (([], "llama_cpp", []), "the second argument is the mapping rig_models"),
        ((["chat"], "llama_cpp", {}), "rig_instances[0]: found 'chat', needed a mapping"),
        (([], "llama_cpp", {"m": 1}), "rig_models.m: found '1', needed a mapping"),
        (([], "llama", {}), "no engine 'llama'; known: vllm, llama_cpp, ollama"),
        (([{"name": "a", "model": "b"}], "llama_cpp", {}), "rig_instances[0].model: instance 'a' names the model 'b'"),
    ],
)
def test_what_instances_for_cannot_use_is_an_error_in_words(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        instances_for.instances_for(*arguments)
    assert words in str(caught.value)


def test_inventory_errors_wants_the_variables_of_a_host() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        inventory_errors.inventory_errors(["rig_kind"])
    assert "hostvars[inventory_hostname] | gpurig.llm.inventory_errors" in str(caught.value)


def test_the_inventory_and_the_module_that_fetches_mean_the_same_keys() -> None:
    model = SCHEMA["rig_models"].items
    assert model is not None
    for source in model.keys["source"].choices:
        options = model_fetch.ARGUMENTS[source]["options"]
        ours = {key: one.required for key, one in model.keys[source].keys.items()}
        assert ours == {key: option.get("required", False) for key, option in options.items()}


def test_the_url_of_a_database() -> None:
    make = postgres_url.FilterModule().filters()["postgres_url"]
    assert make({}) == ""
    assert make({"name": "n", "user": "u"}) == "postgresql+psycopg://%75@127.0.0.1:5432/n"
    full = {"name": "n", "user": "u", "host": "::1", "port": 5433}
    assert make(full, "p") == "postgresql+psycopg://%75:%70@[::1]:5433/n"
    with pytest.raises(AnsibleFilterError, match="name and user"):
        make({"host": "h"})
    with pytest.raises(AnsibleFilterError, match="a character that PostgreSQL cannot take") as caught:
        make(full, "se\0cret")
    assert "cret" not in str(caught.value)
