# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules of the page as real processes, against a server that keeps settings as Open WebUI 0.12.4 does.

The real one is in tests/e2e/test_sandbox_webui.py; here is what would take it too long, or what it never does.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import webui_api
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, PageError, enter, read_password
from ansible_collections.gpurig.llm.tests.unit.test_webui_database import package
from ansible_collections.gpurig.llm.tests.unit.test_webui_settings import FRESH

ADMIN, PASSWORD = "admin@example.org", "the-administrators-password"
Module = Callable[..., dict[str, Any]]


class Standing:
    """The server's state: its settings, its files, what was sent to it, and how it misbehaves."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = dict(FRESH)
        self.files: dict[str, str] = {}
        self.models = ["chat"]
        self.sign_up = False
        self.forgets = False
        self.embeds = True
        self.posted: list[str] = []
        self.people = [{"email": ADMIN, "password": PASSWORD}]


class Handler(http.server.BaseHTTPRequestHandler):
    """The addresses that our client uses, with the answers of 0.12.4 as far as they are looked at."""

    @property
    def standing(self) -> Standing:
        return self.server.standing  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        path, state = self.path.partition("?")[0], self.standing
        answers: dict[str, Any] = {
            "/api/version": {"version": "0.12.4"},
            "/api/config": {"features": {"enable_signup": state.sign_up}},
        }
        if path in answers:
            self.reply(200, answers[path])
        elif self.headers.get("Authorization") != "Bearer a-token":
            self.reply(401, {"detail": "no"})
        elif path == "/api/v1/configs/export":
            self.reply(200, state.settings)
        elif path == "/api/models":
            self.reply(200, {"data": [{"id": name} for name in state.models]})
        elif path.endswith("/process/status"):
            self.reply(200, {"status": "completed" if state.embeds else "failed"})
        elif path.startswith("/api/v1/files/"):
            self.reply(200, {"data": {"error": "the engine said no"}})
        else:
            self.reply(200, "<html>")

    def do_DELETE(self) -> None:
        self.standing.files.pop(self.path.rpartition("/")[2], None)
        self.reply(200, {})

    def do_POST(self) -> None:
        state = self.standing
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        state.posted.append(self.path)
        if self.path == "/api/v1/files/":
            state.files["f1"] = raw.decode()
            self.reply(200, {"id": "f1"})
            return
        body = json.loads(raw)
        if self.path == "/api/v1/auths/signin":
            right = body in state.people
            self.reply(*((200, {"token": "a-token"}) if right else (400, {"detail": "wrong"})))
        elif self.path == "/api/chat/completions":
            text = "Violet." if body.get("files") else "\nParis.\nMore."
            self.reply(200, {"choices": [{"message": {"content": text}}]})
        else:
            if not state.forgets:
                state.settings |= self.taken(body)
            self.reply(200, body)

    def taken(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.path == "/openai/config/update":
            names = ("openai.enable", "openai.api_base_urls", "openai.api_keys", "openai.api_configs")
            return dict(zip(names, body.values(), strict=True))
        if self.path == "/api/v1/retrieval/embedding/update":
            api = body["openai_config"]
            values = (body["RAG_EMBEDDING_ENGINE"], body["RAG_EMBEDDING_MODEL"], api["url"], api["key"])
            return dict(zip(webui_api.EMBEDDING, values, strict=True))
        return dict(body["config"])

    def reply(self, status: int, value: Any) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[Standing, dict[str, Any]]]:
    """A server, and the arguments by which the modules find it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "page.env").write_text(f"WEBUI_SECRET_KEY=x\nWEBUI_ADMIN_PASSWORD={PASSWORD}\n")
    (tmp_path / "chat.env").write_text("LLAMA_API_KEY=secret-of-chat\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.standing = Standing()  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        yield (
            server.standing,  # type: ignore[attr-defined]
            {"url": url, "admin": ADMIN, "secrets_file": str(tmp_path / "page.env")},
        )
        server.shutdown()


def settings_for(arguments: dict[str, Any], tmp_path: Path, **more: Any) -> dict[str, Any]:
    chat = {"url": "http://127.0.0.1:8000/v1", "key_file": str(tmp_path / "chat.env")}
    notes = {"url": "http://127.0.0.1:8001/v1", "task": "embed", "model": "notes"}
    return {**arguments, "data_dir": str(tmp_path / "data"), "connections": [chat, notes], **more}


def test_settings_in_four_steps(page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module) -> None:
    state, arguments = page
    wanted = settings_for(arguments, tmp_path)
    checked = run_module("open_webui_settings", wanted, check=True)
    assert (checked["changed"], state.settings) == (True, FRESH)
    done = run_module("open_webui_settings", wanted)
    assert (done["changed"], done["changes"]) == (True, checked["changes"])
    assert done["diff"] == checked["diff"]
    assert "secret-of-chat" not in json.dumps(done)
    assert state.settings["openai.api_keys"] == ["secret-of-chat"]
    assert state.settings["rag.embedding_model"] == "notes"
    assert state.settings["webui.url"] == FRESH["webui.url"]
    posted = [path for path in state.posted if "signin" not in path]
    assert posted == ["/openai/config/update", "/api/v1/retrieval/embedding/update", "/api/v1/configs/import"]
    for check in (False, True):
        again = run_module("open_webui_settings", wanted, check=check)
        assert (again["changed"], again["changes"]) == (False, []), again


def test_a_connection_that_is_wanted_no_more_goes(
    page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module
) -> None:
    state, arguments = page
    run_module("open_webui_settings", settings_for(arguments, tmp_path))
    state.settings["openai.api_base_urls"].append("https://theirs.example.org/v1")
    state.settings["openai.api_keys"].append("theirs")
    run_module("open_webui_settings", settings_for(arguments, tmp_path, connections=[]))
    assert state.settings["openai.api_base_urls"] == ["https://theirs.example.org/v1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"admin": "other@example.org"}, ["refuses other@example.org", "page.env"], id="password"),
        pytest.param({"url": "http://127.0.0.1:1"}, ["does not answer"], id="down"),
        pytest.param({"secrets_file": "/nowhere/page.env"}, ["/nowhere/page.env"], id="no-secrets"),
        pytest.param({"connections": [{"url": "u", "key_file": "/nowhere/k"}]}, ["/nowhere/k"], id="no-key"),
        pytest.param({"settings": {"ui.nothing": 1}}, ["ui.nothing"], id="unknown-setting"),
    ],
)
def test_what_goes_wrong_is_said(
    page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module, change: dict[str, Any], words: list[str]
) -> None:
    state, arguments = page
    failed = run_module("open_webui_settings", settings_for({**arguments}, tmp_path, **change))
    assert failed.get("failed"), failed
    for word in words:
        assert word in failed["msg"]
    assert PASSWORD not in failed["msg"]
    assert state.settings == FRESH


def test_a_page_that_keeps_nothing_fails(
    page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module
) -> None:
    state, arguments = page
    state.forgets = True
    failed = run_module("open_webui_settings", settings_for(arguments, tmp_path))
    assert "did not keep" in failed["msg"]


def test_a_page_that_does_not_run_yet_would_be_set(tmp_path: Path, run_module: Module) -> None:
    arguments = {"url": "http://127.0.0.1:1", "admin": ADMIN, "secrets_file": str(tmp_path / "absent.env")}
    checked = run_module("open_webui_settings", settings_for(arguments, tmp_path), check=True)
    assert checked["changed"]


def test_check_mode_takes_what_this_run_would_make_as_to_come(
    page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module
) -> None:
    state, arguments = page
    new = {"connections": [{"url": "http://127.0.0.1:8009/v1", "key_file": str(tmp_path / "new.env")}]}
    checked = run_module("open_webui_settings", settings_for(arguments, tmp_path, **new), check=True)
    assert "openai.api_keys" in checked["changes"], checked
    state.people = [{"email": ADMIN, "password": "the-new-one"}]
    wrong = settings_for(arguments, tmp_path)
    assert "refuses" in run_module("open_webui_settings", wrong, check=True)["msg"]
    wrong["secrets_pending"] = True
    assert run_module("open_webui_settings", wrong, check=True)["changed"]
    assert "refuses" in run_module("open_webui_settings", wrong)["msg"]
    assert state.settings == FRESH


def test_answers(page: tuple[Standing, dict[str, Any]], run_module: Module) -> None:
    state, arguments = page
    done = run_module("open_webui_answer", {**arguments, "models": ["chat"], "documents": True})
    assert (done["answer"], done["document"], done["version"]) == ("Paris.", "Violet.", "0.12.4")
    assert (done["problems"], state.files) == ([], {})
    state.embeds = False
    done = run_module("open_webui_answer", {**arguments, "models": ["chat"], "documents": True})
    assert "the engine said no" in done["problems"][0]
    state.models = []
    done = run_module("open_webui_answer", {**arguments, "models": ["chat"]})
    assert (done["answer"], len(done["problems"])) == ("", 1)
    assert "chat cannot be chosen" in done["problems"][0]
    assert "no model" in run_module("open_webui_answer", arguments)["problems"][0]
    state.sign_up = True
    assert "sign themselves up" in run_module("open_webui_answer", arguments)["msg"]


def test_what_is_no_open_webui(page: tuple[Standing, dict[str, Any]], tmp_path: Path) -> None:
    url = page[1]["url"]
    with pytest.raises(PageError, match="not JSON"):
        Page(url, "a-token").call("GET", "/elsewhere")
    (tmp_path / "empty.env").write_text("OTHER=1\n")
    with pytest.raises(PageError, match="has no WEBUI_ADMIN_PASSWORD"):
        read_password(str(tmp_path / "empty.env"))
    with pytest.raises(PageError, match="cannot read"):
        enter(url, ADMIN, str(tmp_path / "absent.env"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with contextlib.closing(sqlite3.connect(folder / "webui.db")) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('aa11')")
        database.commit()
    return folder


def test_database_in_four_steps_and_back(tmp_path: Path, data: Path, run_module: Module) -> None:
    arguments = {"data_dir": str(data), "environment_dir": str(package(tmp_path, "0.12.4", "aa11"))}
    checked = run_module("open_webui_database", arguments, check=True)
    assert (checked["changed"], (data / "backups").exists()) == (True, False)
    done = run_module("open_webui_database", arguments)
    assert done["changed"]
    assert Path(done["backup"]).exists()
    again = run_module("open_webui_database", arguments)
    assert (again["changed"], again["backup"]) == (True, done["backup"]), "the upgrade is pending"
    used = {**arguments, "state": "used"}
    results = [run_module("open_webui_database", used, check=check) for check in (True, False, True, False)]
    assert [result["changed"] for result in results] == [True, True, False, False]
    for check in (False, True):
        assert not run_module("open_webui_database", arguments, check=check)["changed"]
    back = run_module("open_webui_database", {**arguments, "state": "restored"})
    assert (back["changed"], back["backup"]) == (True, Path(done["backup"]).name)
    refused = {**arguments, "environment_dir": str(package(tmp_path, "0.11.0", "99"))}
    assert "newer Open WebUI" in run_module("open_webui_database", refused)["msg"]
    assert "open_webui_copies" in run_module("open_webui_database", {**arguments, "keep": 0})["msg"]
    (data / "backups").rename(tmp_path / "elsewhere")
    (data / "backups").symlink_to(tmp_path / "elsewhere")
    assert "is a link to" in run_module("open_webui_database", arguments)["msg"]


def test_a_first_start_is_noted_and_no_change(tmp_path: Path, run_module: Module) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    arguments = {"data_dir": str(folder), "environment_dir": str(package(tmp_path, "0.12.4", "aa11"))}
    assert not run_module("open_webui_database", arguments, check=True)["changed"]
    assert list(folder.iterdir()) == []
    assert not run_module("open_webui_database", arguments)["changed"]
    assert json.loads((folder / "gpurig.json").read_text()) == {"database": "", "version": "0.12.4"}
    absent = {**arguments, "data_dir": str(tmp_path / "absent")}
    assert not run_module("open_webui_database", absent, check=True)["changed"]
    assert "no copy" in run_module("open_webui_database", {**arguments, "state": "restored"}).get("msg", "no copy")


def test_a_page_without_sign_in(page: tuple[Standing, dict[str, Any]], tmp_path: Path, run_module: Module) -> None:
    state, arguments = page
    nobody = {**arguments, "admin": ""}
    failed = run_module("open_webui_settings", settings_for(nobody, tmp_path))
    assert "asks who signs in" in failed["msg"]
    assert "rig_webui.admin" in failed["msg"]
    state.people = [{"email": "", "password": ""}]
    assert run_module("open_webui_settings", settings_for(nobody, tmp_path))["changed"]
    assert run_module("open_webui_answer", nobody)["answer"] == "Paris."
    # Used so before, and now with people who sign in.
    state.people = [{"email": ADMIN, "password": PASSWORD}, {"email": "admin@localhost", "password": "admin"}]
    assert "used without authentication" in run_module("open_webui_answer", arguments)["msg"]


def users(data: Path, *rows: tuple[str, str]) -> None:
    with contextlib.closing(sqlite3.connect(data / "webui.db")) as database:
        database.execute('CREATE TABLE "user" (id TEXT, email TEXT, role TEXT)')
        database.executemany("INSERT INTO \"user\" VALUES ('x', ?, ?)", rows)
        database.commit()


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        pytest.param([], {}, [], id="nobody-yet"),
        pytest.param([("A@b.cd", "admin")], {"admin": "a@B.cd", "admin_password_given": True}, [], id="given"),
        pytest.param(
            [("a@b.cd", "admin")], {"admin": "a@b.cd"}, ["open_webui_admin_password", "page.env"], id="unknown"
        ),
        pytest.param(
            [("a@b.cd", "admin"), ("me@b.cd", "user")],
            {"admin": "me@b.cd", "admin_password_given": True},
            ["me@b.cd is no administrator", "(a@b.cd)", "rig_webui.admin"],
            id="no-administrator",
        ),
        pytest.param([("a@b.cd", "admin")], {"auth": False}, ["has 1 users", "rig_webui.auth"], id="auth-off"),
        pytest.param([("admin@localhost", "admin")], {"auth": False}, [], id="auth-was-off"),
    ],
)
def test_preflight_looks_at_the_users(
    tmp_path: Path, data: Path, run_module: Module, rows: list[Any], options: dict[str, Any], words: list[str]
) -> None:
    users(data, *rows)
    common = {"data_dir": str(data), "environment_dir": str(package(tmp_path, "0.12.4", "aa11"))}
    result = run_module("open_webui_preflight", {**common, "secrets_file": str(tmp_path / "page.env"), **options})
    assert bool(result.get("failed")) is bool(words), result
    for word in words:
        assert word in result["msg"]
    if not words:
        assert (result["users"], result["database"], result["notes"]) == (len(rows), str(data / "webui.db"), [])


def test_preflight_says_everything_at_once_and_what_stays_behind(
    tmp_path: Path, data: Path, run_module: Module
) -> None:
    users(data, ("a@b.cd", "admin"))
    common = {"data_dir": str(data), "environment_dir": str(package(tmp_path, "0.11.0", "99"))}
    common["secrets_file"] = str(tmp_path / "page.env")
    both = run_module("open_webui_preflight", {**common, "admin": "a@b.cd"})["msg"]
    assert "newer Open WebUI" in both
    assert "open_webui_admin_password" in both
    never = "/dev/shm/gpurig-test-never-made"
    for there, forgotten in ((never, False), (str(tmp_path), True)):
        memory = run_module("open_webui_preflight", {**common, "memory_dir": never, "forgotten_dir": there})
        assert memory["forgotten"] is forgotten
    stays = "The chats from before stay in {}, and are not on this page."
    assert memory["notes"] == [stays.format(data / "webui.db")]
    Path(common["secrets_file"]).write_text("DATABASE_URL=postgresql+psycopg://u:secret@h:1/n\n")
    memory = run_module("open_webui_preflight", {**common, "memory_dir": never})
    assert memory["notes"][1] == stays.format("PostgreSQL database n at h port 1 as user u")
    assert "secret@" not in json.dumps(memory)
    disk = run_module("open_webui_preflight", {**common, "memory_dir": "/proc/page"})
    assert "rig_webui.keep is false: /proc/page would lie on proc, needed a tmpfs" in disk["msg"]
    assert not Path(never).exists()
