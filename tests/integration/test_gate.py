# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that does not become healthy is taken back: real supervisord, real tool, small HTTP servers as engines."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import gate, services
from ansible_collections.gpurig.llm.plugins.module_utils.model_files import parse_entry
from ansible_collections.gpurig.llm.plugins.module_utils.model_store import (
    FileRecord,
    Places,
    Record,
    publish,
    read_record,
    record_digest,
)
from ansible_collections.gpurig.llm.tests.integration.installed import Rig, installed

RunModule = Callable[..., dict[str, Any]]
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[2].encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DIES = "import sys; sys.exit('ValueError: no such flag')"


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(services, "STEADY_S", 0.1)
    with installed() as made:
        yield made


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Chat:
    """The service `chat`, changed by the modules as the role does it."""

    def __init__(self, rig: Rig, run_module: RunModule, port: int) -> None:
        self.rig, self.run_module, self.port = rig, run_module, port

    def change(self, word: str, program: str = SERVER, port: int = 0, **more: Any) -> dict[str, Any]:
        """Ask for an engine that answers `word`; return what the first failing step returned, or the last one."""
        port = port or self.port
        url = f"http://127.0.0.1:{port}/health"
        script = self.rig.root / f"{word}.py"
        script.write_text(program)
        argv = [sys.executable, str(script), str(port), word]
        texts = self.rig.texts("chat", argv, health_url=url, start_timeout_s=10, **more)
        started = self.run_module("service_run", {"name": "chat", "rig": self.rig.facts, **texts})
        if started.get("failed"):
            return started
        args = {"name": "chat", "health_url": url, "timeout_s": 10, "first_pid": started["pid"], "rig": self.rig.facts}
        return self.run_module("engine_health", args)

    def back(self, check: bool = False) -> dict[str, Any]:
        return self.run_module("service_run", {"name": "chat", "rig": self.rig.facts, "state": "restored"}, check=check)

    def answer(self, port: int = 0) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}/", timeout=5) as reply:
            return str(reply.read().decode())


@pytest.fixture
def chat(rig: Rig, run_module: RunModule, port: int) -> Chat:
    return Chat(rig, run_module, port)


def test_an_engine_that_dies_gives_way_to_the_one_before(chat: Chat) -> None:
    assert chat.back() == {**chat.back(), "changed": False, "restored": ""}, "nothing was ever healthy"
    assert chat.change("old")["ready"]
    record = Path(chat.rig.host.record("chat")).read_text()

    failed = chat.change("new", DIES)
    assert "no such flag" in failed["msg"]
    foreseen = chat.back(check=True)
    assert foreseen["changed"]
    assert Path(chat.rig.host.record("chat")).read_text() != record, "check mode went back"
    done = chat.back()
    assert done["changed"]
    assert done["restored"].startswith("What ran before serves again, after ")
    assert Path(chat.rig.host.record("chat")).read_text() == record
    assert chat.answer() == "old"

    again = chat.back()
    assert (again["changed"], again["restored"]) == (False, "")
    assert chat.change("newer")["ready"]
    assert chat.answer() == "newer"
    assert not chat.back()["changed"], "what is healthy now is the new way back"


def test_a_new_port_is_taken_back_too(chat: Chat, port: int) -> None:
    assert chat.change("old")["ready"]
    with socket.socket() as taken:  # somebody else's: the new engine cannot have it
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        failed = chat.change("new", port=taken.getsockname()[1])
        assert "Address already in use" in failed["msg"]
        assert chat.back()["restored"].startswith("What ran before serves again")
    assert chat.answer(port) == "old"


def test_a_way_back_that_is_broken_too_is_said(chat: Chat) -> None:
    assert chat.change("old")["ready"]
    assert chat.change("new", DIES)["failed"]
    (chat.rig.root / "old.py").write_text("raise SystemExit('OSError: the disk is gone')")
    said = chat.back()["restored"]
    assert said.startswith("What ran before was started again, and is ")
    assert "the disk is gone" in said


def put_model(rig: Rig, text: str) -> Places:
    """A model named `m` in our directory, whose source says `text`."""
    places = Places(Path(rig.paths["models"]), "m")
    places.staging.mkdir(parents=True)
    file = places.staging / "model.gguf"
    file.write_text(text)
    entry = parse_entry("m", "hub", "gguf", {"repo": "a/b", "revision": text * 40})
    seen = FileRecord(1, "0" * 64, file.stat().st_mtime_ns)
    publish(places, Record(entry.identity(), "gguf", str(places.home), "model.gguf", {"model.gguf": seen}, 1))
    return places


def test_a_model_of_another_revision_comes_back_with_its_service(chat: Chat) -> None:
    places = put_model(chat.rig, "a")
    assert chat.change("old", inputs=[str(places.record)])["ready"]
    digest = record_digest(places.record)
    put_model(chat.rig, "b")
    assert (places.earlier / "model.gguf").read_text() == "a"
    assert chat.change("new", DIES, inputs=[str(places.record)])["failed"]
    assert chat.back()["restored"].startswith("What ran before serves again")
    assert (places.home / "model.gguf").read_text() == "a"
    assert record_digest(places.record) == digest
    assert not places.earlier.exists(), "what never served is kept"

    put_model(chat.rig, "b")
    put_model(chat.rig, "c")
    assert (places.earlier / "model.gguf").read_text() == "a", "the way back is the one that served"
    put_model(chat.rig, "b")
    assert chat.change("new", inputs=[str(places.record)])["ready"]
    assert not places.earlier.exists(), "nothing good needs it any more"
    assert read_record(places.record).source["revision"] == "b" * 40


def test_configuration_files_that_nothing_names_go(chat: Chat) -> None:
    directory = Path(chat.rig.paths["config"], services.CONFIG_FILES_DIR)
    directory.mkdir()
    names = ["chat-0123456789ab.yaml", "chat-ba9876543210.yaml", "chat-2-0123456789ab.yaml", "chat.yaml"]
    for name in names:
        (directory / name).write_text("")
    used = str(directory / names[0])
    assert chat.change("old", environment={"CONFIG": used})["ready"]
    assert sorted(path.name for path in directory.iterdir()) == sorted({*names} - {names[1]})
    gone = chat.run_module("service_run", {"name": "chat", "rig": chat.rig.facts, "state": "absent"})
    assert gone["changed"]
    assert sorted(path.name for path in directory.iterdir()) == ["chat-2-0123456789ab.yaml", "chat.yaml"]
    assert not Path(chat.rig.host.good_record("chat")).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"record": "x"}', json.dumps({"record": 1, "models": 2, "program": 3})])
def test_a_broken_way_back_is_none(rig: Rig, text: str) -> None:
    Path(rig.host.good_record("chat")).parent.mkdir()
    Path(rig.host.good_record("chat")).write_text(text)
    rig.write("chat", ["/bin/sleep", "1"])
    assert gate.way_back(rig.host, "chat") is None
    shutil.rmtree(Path(rig.host.good_record("chat")).parent)
