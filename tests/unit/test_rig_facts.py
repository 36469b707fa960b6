# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module rig_facts, run as Ansible runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.kinds import KINDS
from ansible_collections.gpurig.llm.tests.unit import trees

RunModule = Callable[..., dict[str, Any]]
HOME = {"HOME": "/home/ada", "XDG_DATA_HOME": ""}
RIG_KEYS = {
    *("kind", "kind_declared", "service_manager", "can_install_packages"),
    *("can_reboot", "can_install_driver", "can_set_power", "keeps_system"),
    *("container_engine", "root_dir", "volume_dir", "user", "group", "paths", "os", "arch", "cpu_count"),
    *("memory_bytes", "python_version", "python_venv", "nvidia_driver_version", "evidence", "warnings"),
    *("services", "tunnels"),
}


def listing(base: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in base.rglob("*"))


@pytest.mark.parametrize(
    ("build", "declared", "kind", "root", "user"),
    [
        (trees.metal, "auto", "metal", "/opt/gpurig", "gpurig"),
        (trees.vm, "vm", "vm", "/opt/gpurig", "gpurig"),
        (trees.pod, "auto", "pod", "/workspace/gpurig", "root"),
        (trees.sandbox, "sandbox", "sandbox", "/home/ada/.local/share/gpurig", None),
    ],
)
def test_facts(
    tmp_path: Path,
    run_module: RunModule,
    build: Callable[[Path], Path],
    declared: str,
    kind: str,
    root: str,
    user: str | None,
) -> None:
    base = build(tmp_path)
    before = listing(base)
    args = {"kind": declared, "fs_root": str(base)}
    result = run_module("rig_facts", args, environment=HOME)
    assert result["changed"] is False
    rig = result["ansible_facts"]["rig"]
    assert set(rig) == RIG_KEYS
    assert (rig["kind"], rig["kind_declared"], rig["root_dir"]) == (kind, declared, root)
    assert rig["paths"]["root"] == root
    assert {name: rig[name] for name in vars(KINDS[kind])} == vars(KINDS[kind])
    assert user in {None, rig["user"]}
    assert set(rig["evidence"]) == {"kind", "root_dir", "volume_dir", *vars(KINDS[kind])}
    assert all(set(witness) == {"source", "found"} for found in rig["evidence"].values() for witness in found)
    assert len(rig["warnings"]) == len(result.get("warnings", []))
    assert all(text in str(result["warnings"]) for text in rig["warnings"])
    assert run_module("rig_facts", args, check=True, environment=HOME) == result
    assert listing(base) == before
    assert trees.SECRET not in json.dumps(result)


def test_refusal_tells_everything(tmp_path: Path, run_module: RunModule) -> None:
    base = trees.pod(tmp_path)
    trees.distribution(base, "debian-11")
    result = run_module("rig_facts", {"kind": "metal", "fs_root": str(base)})
    assert result["failed"]
    assert len(result["problems"]) == 3
    for words in (
        "cannot be used as metal (declared by rig_kind)",
        "Debian GNU/Linux 11",
        "not booted",
        "CAP_SYS_MODULE",
    ):
        assert words in result["msg"]
    assert "ansible_facts" not in result
    assert trees.SECRET not in json.dumps(result)


def test_capabilities(tmp_path: Path, run_module: RunModule) -> None:
    base = trees.vm(tmp_path)
    args = {"kind": "vm", "fs_root": str(base), "root": "/srv/rig", "service_user": "llm"}
    rig = run_module("rig_facts", {**args, "capabilities": {"can_set_power": "yes"}})["ansible_facts"]["rig"]
    assert rig["can_set_power"] is True
    assert rig["can_reboot"] is True
    assert {"source": "rig_capabilities", "found": "true"} in rig["evidence"]["can_set_power"]
    assert (rig["paths"]["config"], rig["user"]) == ("/srv/rig/etc", "llm")
    result = run_module("rig_facts", {**args, "capabilities": {"can_fly": True}})
    assert result["failed"]
    assert "can_fly" in result["msg"]
    assert "can_set_power" in result["msg"]


def test_fs_root_that_is_none(tmp_path: Path, run_module: RunModule) -> None:
    result = run_module("rig_facts", {"fs_root": str(tmp_path / "missing")})
    assert result["failed"]
    assert "fs_root" in result["msg"]


def test_this_machine(tmp_path: Path, run_module: RunModule) -> None:
    """No tree: the machine that runs the tests, as whoever runs them."""
    root = tmp_path / "not" / "yet" / "there"
    result = run_module("rig_facts", {"kind": "sandbox", "root": str(root)})
    assert result["ansible_facts"]["rig"]["paths"]["root"] == str(root)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("text", "version"),
    [
        pytest.param(
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC 12\n",
            "580.95.05",
            id="proprietary",
        ),
        pytest.param(
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@x)\n",
            "580.95.05",
            id="open",
        ),
        pytest.param("something else\n", "", id="unknown-text"),
        pytest.param(None, "", id="no-driver"),
    ],
)
def test_the_loaded_driver_is_a_fact(run_module: RunModule, tmp_path: Path, text: str | None, version: str) -> None:
    base = trees.sandbox(tmp_path)
    if text is not None:
        place = base / "proc/driver/nvidia"
        place.mkdir(parents=True)
        (place / "version").write_text(text)
    result = run_module("rig_facts", {"kind": "sandbox", "fs_root": str(base)}, environment=HOME)
    assert result["ansible_facts"]["rig"]["nvidia_driver_version"] == version


def test_a_root_that_holds_somebody_elses_files_is_refused(run_module: RunModule, tmp_path: Path) -> None:
    base = trees.sandbox(tmp_path / "host")
    root = tmp_path / "documents"
    (root / "cache").mkdir(parents=True)
    args = {"kind": "sandbox", "fs_root": str(base), "root": str(root)}
    ours = run_module("rig_facts", args, environment=HOME)
    assert not ours.get("failed"), "what a run that was cut off left is ours"
    (root / "thesis.odt").write_text("years of work")
    refused = run_module("rig_facts", args, environment=HOME)
    assert refused["failed"]
    assert "thesis.odt" in refused["msg"]
    assert "set rig_root" in refused["msg"]
    (root / "etc").mkdir()
    (root / "etc" / "host.json").write_text("{}")
    assert not run_module("rig_facts", args, environment=HOME).get("failed"), "host.json says that the root is ours"


def test_what_is_on_record_here(tmp_path: Path, run_module: RunModule) -> None:
    """Of what nobody can read there is nothing to say."""
    services, tunnels = tmp_path / "rig/etc/services", tmp_path / "rig/etc/tunnels"
    for folder in (services, tunnels):
        folder.mkdir(parents=True)
        (folder / "broken.json").write_text("{")
        (folder / "list.json").write_text("[]")
    (services / "chat.json").write_text('{"labels": {"owner": "instances"}}')
    (services / "theirs.json").write_text('{"labels": null}')
    (services / "note.txt").write_text("{}")
    (tunnels / "pod.json").write_text('{"identity": "pod.key"}')
    (tunnels / "other.json").write_text("{}")
    rig = run_module("rig_facts", {"kind": "sandbox", "root": str(tmp_path / "rig")})["ansible_facts"]["rig"]
    assert rig["services"] == {"broken": "", "chat": "instances", "list": "", "theirs": ""}
    assert rig["tunnels"] == ["pod"]
