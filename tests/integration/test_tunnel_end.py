# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tunnel_end as a real process, with the real ssh-keygen."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.owned_files import InstallError, Owner, plan_file

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs openssh-client's ssh-keygen")

RunModule = Callable[..., dict[str, Any]]
PROGRAM = "print('the program')\n"
HOST_KEY = "ssh-ed25519 AAAAofthenode"
SECRETS = "LLAMA_API_KEY=the-key-of-the-node\n"
TARGET = {"address": "10.0.0.5", "ssh_port": 22, "remote_port": 8000, "local_port": 18000}


class Near:
    """The near end of the tunnel `far`."""

    def __init__(self, place: Path, run_module: RunModule) -> None:
        self.place, self._run = place, run_module
        (place / "envs").mkdir()
        (place / "secrets").mkdir()
        self.folder = place / "tunnels"
        self.key, self.public = self.folder / "far.key", self.folder / "far.key.pub"
        self.known_hosts, self.target = self.folder / "far.known_hosts", self.folder / "far.json"
        self.secrets = place / "secrets" / "tunnel-far.env"
        self.program = place / "envs" / "tunnel.py"
        self.common = {"name": "far", "dir": str(self.folder), "host": "pod1", "user": "forward"}
        self.common["rig"] = {"user": "", "group": ""}

    def keyed(self, check: bool = False, environment: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        own = {"program": str(self.program), "program_text": PROGRAM, "comment": "gpurig tunnel far of home"}
        return self._run("tunnel_end", {**self.common, "state": "keyed", **own, **more}, check, environment=environment)

    def pointed(self, check: bool = False, environment: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        own = {"target": TARGET, "host_key": HOST_KEY, "secrets": SECRETS, "secrets_path": str(self.secrets)}
        arguments = {**self.common, "state": "pointed", **own, **more}
        return self._run("tunnel_end", arguments, check, environment=environment)

    def seen(self, environment: dict[str, str] | None = None) -> dict[str, Any]:
        names = {name: self.common[name] for name in ("name", "dir", "rig")}
        return self._run("tunnel_end", {**names, "state": "seen"}, environment=environment)

    def without_keygen(self) -> dict[str, str]:
        """An environment in which ssh-keygen is of no use, wherever else Ansible looks for one."""
        (self.place / "bin").mkdir()
        (self.place / "bin" / "ssh-keygen").write_text("#!/bin/sh\necho broken >&2\nexit 1\n", encoding="utf-8")
        (self.place / "bin" / "ssh-keygen").chmod(0o755)
        return {"PATH": f"{self.place}/bin:{os.environ['PATH']}"}

    def files(self) -> dict[str, tuple[str, int]]:
        """What every file below has, and its mode."""
        paths = [path for path in self.place.rglob("*") if path.is_file()]
        return {path.name: (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) for path in paths}


@pytest.fixture
def near(tmp_path: Path, run_module: RunModule) -> Near:
    return Near(tmp_path, run_module)


def test_a_key_is_made_once_and_kept_for_ever(near: Near) -> None:
    foreseen = near.keyed(check=True)
    assert (foreseen["changed"], foreseen["public"], near.files()) == (True, "", {})
    made = near.keyed()
    assert made["changed"]
    assert [line.split(":")[0] for line in made["changes"]] == [str(near.program), str(near.folder), str(near.key)]
    assert (near.folder.stat().st_mode & 0o777, near.key.stat().st_mode & 0o777) == (0o700, 0o600)
    derived = subprocess.run(["ssh-keygen", "-y", "-f", near.key], check=True, capture_output=True, text=True).stdout
    assert derived.strip() == f"{made['public']} gpurig tunnel far of home"
    assert made["public"].startswith("ssh-ed25519 AAAA")
    assert (near.program.read_text(encoding="utf-8"), made["before"], made["leave"]) == (PROGRAM, {}, False)
    assert near.key.read_text(encoding="utf-8").splitlines()[1] not in json.dumps(made)
    before = near.files()
    for check in (True, False):
        again = near.keyed(check)
        assert (again["changed"], again["public"], near.files()) == (False, made["public"], before)
    near.key.chmod(0o640)
    near.folder.chmod(0o755)
    assert near.keyed()["changed"]
    assert near.files() == before
    assert near.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", [None, "", "ssh-ed25519\n", f"ssh-ed25519 AAAA{'A' * 64} of somebody else\n"])
def test_a_public_half_that_is_not_the_key_s_is_read_from_the_private_one(near: Near, text: str | None) -> None:
    """An empty one would stand for every line of the node's authorized_keys."""
    public, right = near.keyed()["public"], near.public.read_text(encoding="utf-8")
    near.public.unlink()
    if text is not None:
        near.public.write_text(text, encoding="utf-8")
    assert near.seen()["public"] == public
    mended = near.keyed()
    assert (mended["changed"], mended["public"], near.public.read_text(encoding="utf-8")) == (True, public, right)


def test_of_a_lost_private_half_the_public_one_is_still_known(near: Near) -> None:
    assert (near.seen()["public"], near.seen().get("warnings")) == ("", None)
    public = near.keyed()["public"]
    near.pointed()
    kept = near.key.read_text(encoding="utf-8")
    for text in (None, "damaged\n", kept):
        near.key.unlink(missing_ok=True)
        if text is not None:
            near.key.write_text(text, encoding="utf-8")
        before, environment = near.files(), near.without_keygen() if text == kept else None
        for seen in (near.seen(environment), near.keyed(leave_first=True, host="pod2", environment=environment)):
            assert (seen["public"], seen["before"]["host"]) == (public, "pod1"), text
        assert near.files().items() >= before.items()
    near.key.unlink()
    near.public.write_text("ssh-ed25519\n", encoding="utf-8")
    lost = near.seen()
    assert lost["public"] == ""
    assert "look in its authorized_keys for a line with 'gpurig tunnel far'" in str(lost["warnings"])


@pytest.mark.parametrize("check", [True, False])
def test_a_directory_in_a_file_s_place_goes_only_without_files(near: Near, check: bool) -> None:
    near.keyed()
    (near.known_hosts / "deep").mkdir(parents=True)
    theirs = near.known_hosts / "deep/notes"
    theirs.write_text("mine", encoding="utf-8")
    refused = near.pointed(check)
    assert refused["msg"] == f"{near.known_hosts}: is a directory with files in it. Move it away, then run again."
    assert theirs.read_text(encoding="utf-8") == "mine"
    theirs.unlink()
    assert near.pointed(check)["changed"]
    assert near.known_hosts.is_dir() == check


@pytest.mark.parametrize("late", ["theirs", "deep/theirs", "deep/link"])
def test_files_that_come_after_the_plan_are_kept_too(tmp_path: Path, late: str) -> None:
    (tmp_path / "ours/deep").mkdir(parents=True)
    [step] = plan_file(str(tmp_path / "ours"), "text", 0o644, Owner())
    theirs = tmp_path / "ours" / late
    theirs.symlink_to(tmp_path) if theirs.name == "link" else theirs.touch()
    with pytest.raises(InstallError, match="ours: is a directory with files in it"):
        step.act()
    assert theirs.exists()


@pytest.mark.parametrize("there", ["file", "link", "dangling", "nothing"])
def test_what_is_no_directory_makes_room(tmp_path: Path, there: str) -> None:
    path, other = tmp_path / "ours", tmp_path / "other"
    (other / "deep").mkdir(parents=True)
    if there == "file":
        path.write_text("old", encoding="utf-8")
    elif there != "nothing":
        path.symlink_to(other if there == "link" else tmp_path / "gone")
    [step] = plan_file(str(path), "text", 0o644, Owner())
    step.act()
    assert (path.read_text(encoding="utf-8"), path.is_symlink()) == ("text", False)
    assert (other / "deep").is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_who_runs_the_tunnel_names_no_line_that_is_not_its_own(near: Near) -> None:
    """Root would take that line out of the authorized_keys of a node that this user names, too."""
    near.keyed()
    near.pointed()
    near.key.unlink()
    near.public.write_text(f"ssh-ed25519 AAAA{'A' * 64} the administrator\n", encoding="utf-8")
    os.chown(near.public, pwd.getpwnam("nobody").pw_uid, -1)
    for seen in (near.seen(), near.keyed(leave_first=True, host="pod2")):
        assert seen["public"] == ""
        assert "belongs to somebody else" in str(seen["warnings"])


def test_it_says_where_the_tunnel_leads_and_tells_no_secret(near: Near) -> None:
    near.keyed()
    before = near.files()
    assert near.pointed(check=True)["changed"]
    assert near.files() == before
    done = near.pointed()
    assert done["changed"]
    assert near.known_hosts.read_text(encoding="utf-8") == f"pod1 {HOST_KEY}\n"
    assert near.secrets.read_text(encoding="utf-8") == SECRETS
    # As earlier releases wrote it: an installation that has it does not change.
    assert near.target.read_text(encoding="utf-8") == (
        f'{{\n    "address": "10.0.0.5",\n    "host": "pod1",\n    "identity": "{near.key}",\n'
        f'    "known_hosts": "{near.known_hosts}",\n    "local_port": "18000",\n    "remote_port": "8000",\n'
        '    "ssh_port": "22",\n    "user": "forward"\n}\n'
    )
    assert {path.stat().st_mode & 0o777 for path in (near.known_hosts, near.secrets, near.target)} == {0o600}
    for result in (done, near.pointed(secrets=SECRETS.replace("the", "another"))):
        assert result["changed"]
        assert "key-of-the-node" not in json.dumps(result)
    assert near.pointed()["changed"]
    for check in (True, False):
        assert not near.pointed(check)["changed"]
    moved = near.pointed(target={**TARGET, "remote_port": 8001})
    assert [line.split(":")[0] for line in moved["changes"]] == [str(near.target)]
    assert '"remote_port": "8000"' in moved["diff"]["before"]
    assert '"remote_port": "8001"' in moved["diff"]["after"]


def test_without_the_engine_s_key_that_file_is_left_alone(near: Near) -> None:
    near.keyed()
    near.pointed()
    near.secrets.write_text("LLAMA_API_KEY=kept\n", encoding="utf-8")
    assert not near.pointed(secrets=None)["changed"]
    assert near.secrets.read_text(encoding="utf-8") == "LLAMA_API_KEY=kept\n"


def test_another_node_is_left_before_the_key_goes(near: Near) -> None:
    public = near.keyed()["public"]
    near.pointed()
    before = near.files()
    for other in ({"host": "pod2"}, {"user": "somebody"}):
        asked = near.keyed(leave_first=True, **other)
        assert (asked["leave"], asked["changed"], asked["public"]) == (True, False, public)
        assert asked["before"] == {"name": "far", "host": "pod1", "user": "forward"}
        assert near.files() == before
    assert not near.keyed(leave_first=True)["leave"]
    silent = near.keyed(host="pod2")
    assert (silent["leave"], silent["changed"], silent["public"]) == (False, False, public), "it cannot be told"
    assert near.files() == before
    near.program.unlink()
    near.program.mkdir()
    near.folder.chmod(0o755)
    asked = near.keyed(leave_first=True, host="pod2")
    assert (asked["leave"], asked["changed"], near.folder.stat().st_mode & 0o777) == (True, True, 0o700)


def test_what_cannot_be_done_is_said_before_a_node_is_left(near: Near) -> None:
    near.keyed()
    near.pointed()
    moved = near.folder.with_name("aside")
    near.folder.rename(moved)
    near.folder.symlink_to(moved)
    assert near.keyed(leave_first=True, host="pod2")["leave"], "a link is somebody's own choice of place"
    envs = near.program.parent
    envs.rename(envs.with_name("gone"))
    failed = near.keyed(leave_first=True, host="pod2")
    assert failed["failed"]
    assert str(envs) in failed["msg"]
    envs.with_name("gone").rename(envs)
    for path in (near.known_hosts, near.secrets):
        path.unlink()
        path.mkdir()
        assert near.keyed(leave_first=True, host="pod2", secrets_path=str(near.secrets))["leave"]
        (path / "theirs").write_text("", encoding="utf-8")
        failed = near.keyed(leave_first=True, host="pod2", secrets_path=str(near.secrets))
        assert f"{path}: is a directory with files in it" in failed["msg"]
        shutil.rmtree(path)
        path.touch()


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_damaged_record_is_named(near: Near, text: str) -> None:
    near.keyed()
    near.target.write_text(text, encoding="utf-8")
    failed = near.keyed(leave_first=True)
    assert failed["failed"]
    assert f"{near.target}: does not say where the tunnel has led" in failed["msg"]
    for other in (near.keyed(), near.seen()):
        assert other["before"] == {}


@pytest.mark.parametrize("text", ["nothing\n", ""])
def test_a_damaged_key_is_named(near: Near, text: str) -> None:
    near.keyed()
    near.key.write_text(text, encoding="utf-8")
    failed = near.keyed()
    assert failed["failed"]
    assert f"{near.key}: ssh-keygen says" in failed["msg"]
    assert near.key.read_text(encoding="utf-8") == text


def test_a_useless_ssh_keygen_is_named_and_leaves_no_half_key(near: Near) -> None:
    environment = near.without_keygen()
    failed = near.keyed(environment=environment)
    assert failed["failed"]
    assert "ssh-keygen says: broken" in failed["msg"]
    assert not near.key.exists()
    assert not near.public.exists()
    public = near.keyed()["public"]
    assert not near.pointed(environment=environment).get("failed"), "needs none"
    assert near.seen(environment)["public"] == public


def test_a_line_end_is_a_part_of_the_secret(near: Near) -> None:
    near.keyed()
    for check, changed in ((False, True), (True, False), (False, False)):
        assert near.pointed(check, secrets="LLAMA_API_KEY=windows\r\n")["changed"] is changed
    assert near.secrets.read_bytes() == b"LLAMA_API_KEY=windows\r\n"


def test_nobody_else_s_file_is_followed(near: Near) -> None:
    """The folder is the service's user's: what is in it leads wherever that user likes."""
    near.keyed()
    near.pointed()
    other, keys = near.place / "other", near.place / "keys"
    other.write_text(json.dumps({"host": "a", "user": "b", "password": "secret"}), encoding="utf-8")
    other.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", keys], check=True)
    strange = (keys.with_suffix(".pub").read_text(encoding="utf-8").split()[1], "secret")
    for name, there in ((near.key, keys), (near.public, keys.with_suffix(".pub")), (near.target, other)):
        kept = name.with_name("aside")
        name.rename(kept)
        for put in (name.symlink_to, name.hardlink_to):
            put(there)
            results = [near.keyed(leave_first=True, host="pod2"), near.keyed(), near.seen()]
            for said in map(json.dumps, results):
                assert not [text for text in strange if text in said], name
            assert any(result.get("failed") for result in results), name
            name.unlink()
        kept.rename(name)
    os.mkfifo(near.place / "pipe")
    for name in (near.known_hosts, near.target):
        name.unlink()
        name.symlink_to(other)
        assert near.pointed()["changed"]
        assert not name.is_symlink()
        name.unlink()
        (near.place / "pipe").rename(name)
        assert near.pointed()["changed"]
        os.mkfifo(near.place / "pipe")
    assert other.stat().st_mode & 0o777 == 0o600
    assert "secret" in other.read_text(encoding="utf-8")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_who_runs_the_tunnel_has_its_files_and_root_the_rest(near: Near) -> None:
    near.common["rig"] = {"user": "nobody", "group": grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name}
    near.keyed()
    near.pointed()
    theirs = {path.name for path in near.place.rglob("*") if path.owner() == "nobody"}
    assert theirs == {"tunnels", "far.key", "far.known_hosts", "far.json"}
    os.chown(near.target, 0, 0)
    assert near.pointed()["changed"]
    assert near.target.owner() == "nobody"
    near.common["rig"] = {"user": "nobody-here", "group": ""}
    assert "nobody-here" in near.pointed()["msg"]
    assert not near.pointed(check=True).get("failed")
