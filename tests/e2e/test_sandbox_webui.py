# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page: site.yml with the real Open WebUI, used in a real browser, with real engines behind it.

Last come the other places of its data: a real PostgreSQL, and memory alone without sign-in. The tests of this file
follow each other on one rig.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.memory_dir import file_system
from ansible_collections.gpurig.llm.plugins.module_utils.postgres_url import database_url
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, PageError, enter, sign_in
from ansible_collections.gpurig.llm.tests.e2e import browser, postgres
from ansible_collections.gpurig.llm.tests.e2e.page_rig import (
    ADMIN,
    EARLIER,
    PRESENT,
    PageRig,
    command_lines,
    earlier_lock,
    holding,
    keep_a_chat,
    readable_by_all,
)
from ansible_collections.gpurig.llm.tests.e2e.sandbox import FULL, Result, Sandbox, free_port, system_python
from ansible_collections.gpurig.llm.tests.e2e.test_sandbox import _own_address
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FRIEND, FRIENDS_PASSWORD = "friend@rig.example.org", "a-password-of-the-friend"
NOWHERE = {"DATABASE_URL": "sqlite:////proc/nowhere/webui.db"}
USER, NAME = "web ui@sqlite", "chats-1.x"
PASSWORD = "p@ss:/%#?= sqlite'\"\\ü✓;&+$ {{ x }}"
PASSWORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)

LONG = pytest.mark.skipif(not FULL, reason="a run or three more, with two releases")
ON_POSTGRESQL = pytest.mark.skipif(not postgres.PROGRAMS, reason="needs PostgreSQL's server, Debian's postgresql")

pytestmark = [
    pytest.mark.skipif(bool(browser.missing()), reason=f"needs {browser.missing()}"),
    # selenium's own, where it lets go of its driver
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class Rig(PageRig):
    """The sandbox with a chat engine, an engine that embeds, and the page."""

    embed_port: int

    def instances(self) -> list[dict[str, Any]]:
        small = {"model": "smollm2", "engine": "llama_cpp", "device": "cpu"}
        return [
            # People ask without a temperature, and an answer that is drawn may be any.
            {"name": "chat", "port": self.box.port, "context": 2048, "flags": {"temp": 0}, **small},
            {
                "name": "notes",
                "port": self.embed_port,
                "context": 512,
                "task": "embed",
                "flags": {"pooling": "mean"},  # a chat model does not say how it pools
                **small,
            },
        ]

    def run(
        self, *more: str, page: dict[str, Any] | None = None, playbook: str = "site.yml", **variables: Any
    ) -> Result:
        wanted = {"admin": ADMIN, "port": self.port} if page is None else page
        return self.box.run(playbook, *more, rig_instances=self.instances(), rig_webui=wanted, **variables)

    def run_page(self, *more: str, **variables: Any) -> Result:
        """The phase of the page alone, which takes a third of the time."""
        return self.run(*more, playbook="playbooks/page.yml", **variables)

    def copies(self) -> list[str]:
        """The versions of which there are copies of the database, in order."""
        return sorted(path.name.split("-")[1] for path in (self.data / "backups").glob("webui-*"))

    def version(self) -> str:
        """The version that answers."""
        return Page(self.url).version()


@pytest.fixture(scope="module")
def built(place: Path) -> Iterator[tuple[Rig, Result]]:
    home = place / "home"
    home.mkdir()
    box = Sandbox(place / "rig", free_port(), home, {"ansible_python_interpreter": system_python()})
    rig = Rig(box, free_port(), earlier_lock(place), free_port())
    try:
        yield rig, rig.run(open_webui_lock=str(rig.earlier))
    finally:
        rig.box.end()


@pytest.fixture
def rig(built: tuple[Rig, Result]) -> Rig:
    assert built[1].rc == 0, built[1].text[-6000:]
    return built[0]


def assert_works(rig: Rig, result: Result, version: str) -> None:
    """The page's report says so, each line of it."""
    assert result.rc == 0, result.text[-6000:]
    report = result.text[result.text.index("Page: ") :]
    for words in (rig.url, f"Open WebUI {version}", ADMIN, str(rig.secrets_file), "Models to choose: chat\n"):
        assert words in report, report
    assert "Paris" in report[report.index("Asked through the page") :].splitlines()[0]
    assert report[report.index("Asked about a document: ") :].splitlines()[0].strip() != "Asked about a document:"
    assert "Does not work" not in report, report


def test_from_nothing_to_an_answer_through_the_page_of_an_earlier_release(built: tuple[Rig, Result]) -> None:
    rig, result = built
    assert_works(rig, result, EARLIER)
    assert result.text.rindex(f"Page: {rig.url}") > result.text.index("first line of the answer"), "the last report"
    status = Path(f"/proc/{rig.pid()}/status").read_text(encoding="utf-8")
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    print(
        f"bare directory to answer through the page: {result.seconds:.0f} s; the page takes {int(resident) >> 10} MiB"
    )


def titles(rig: Rig) -> list[str]:
    return [str(chat["title"]) for chat in rig.page().call("GET", "/api/v1/chats/?page=1")]


def test_an_upgrade_that_does_not_start_is_taken_back_with_its_database(rig: Rig) -> None:
    keep_a_chat(rig.page(), "Before the upgrade")
    friend = {"name": "Friend", "email": FRIEND, "password": FRIENDS_PASSWORD, "role": "user"}
    rig.page().call("POST", "/api/v1/auths/add", friend)
    secrets = rig.secrets_file.read_bytes()
    result = rig.run_page(open_webui_process_environment=NOWHERE, open_webui_admin_password=1234567890)
    assert result.rc != 0
    assert "What ran before serves again" in result.text, result.text[-5000:]
    assert "what ran before was started on them" in result.text, result.text[-5000:]
    assert rig.secrets_file.read_bytes() == secrets
    assert [path.name for path in rig.secrets_file.parent.glob("*.before")] == []
    assert rig.copies() == [EARLIER]
    assert json.loads((rig.data / "gpurig.json").read_text(encoding="utf-8"))["version"] == EARLIER
    ready(rig)
    assert (rig.version(), titles(rig)) == (EARLIER, ["Before the upgrade"])


@LONG
def test_a_first_start_that_fails_on_an_adopted_database_leaves_it_alone(rig: Rig) -> None:
    [good], record = rig.box.root.rglob("good/open-webui.json"), rig.data / "gpurig.json"
    kept = record.read_bytes()
    good.unlink()
    record.unlink()
    result = rig.run_page(open_webui_process_environment=NOWHERE)
    assert result.rc != 0
    assert "The page is stopped, since it was never healthy before." in result.text, result.text[-5000:]
    assert (rig.pid(), rig.copies()) == (0, [EARLIER, "unknown"])
    next((rig.data / "backups").glob("webui-unknown-*")).unlink()
    record.write_bytes(kept)


def test_an_upgrade_keeps_people_and_chats_and_has_a_copy(rig: Rig) -> None:
    before = rig.pid()
    result = rig.run_page()
    assert_works(rig, result, PRESENT)
    assert "Have a copy of the database before another version gets it" in result.changed_tasks
    assert (rig.version(), titles(rig), rig.copies()) == (PRESENT, ["Before the upgrade"], [EARLIER, EARLIER])
    assert rig.pid() != before
    sign_in(rig.url, FRIEND, FRIENDS_PASSWORD)


def test_the_second_run_changes_nothing_and_tells_no_secret(rig: Rig) -> None:
    before = rig.pid()
    result = rig.run_page("-vvv", "--diff")  # of the engines it is in test_sandbox, of both in molecule/page
    assert (result.rc, result.changed, rig.pid()) == (0, 0, before), result.changed_tasks
    secrets = rig.secrets()
    assert len(secrets) >= 4, list(secrets)
    assert holding(secrets, [("the output at -vvv", result.text.encode())]) == []
    assert holding(secrets, command_lines()) == []
    assert holding(secrets, readable_by_all(rig.box.root)) == []
    logs = [(path.name, path.read_bytes()) for path in (rig.box.root / "log").iterdir() if path.is_file()]
    assert holding(secrets, logs) == []
    planted = rig.box.root / "etc" / "planted"
    planted.write_text(f"key={rig.password()}\n", encoding="utf-8")
    planted.chmod(0o644)
    seen = holding(secrets, readable_by_all(rig.box.root))
    planted.unlink()
    assert seen == [f"open-webui.env:WEBUI_ADMIN_PASSWORD in {planted}"]
    if address := _own_address():
        with pytest.raises(OSError, match="refused"), socket.create_connection((address, rig.port), timeout=5):
            pass
    assert (rig.secrets_file.stat().st_mode & 0o777, rig.data.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_person_signs_in_chooses_the_model_and_sees_the_answer_come(rig: Rig, place: Path) -> None:
    with browser.Browser(place / "admin") as person:
        began = time.monotonic()
        person.sign_in(rig.url, ADMIN, rig.password())
        assert person.choose("chat") == ["chat"]
        answer = person.ask("What is the capital of France? Answer in one sentence.")
        assert "Paris" in answer.text
        long = person.ask("Write ten sentences about the sea.")
        print(f"in the browser: {time.monotonic() - began:.0f} s; {person.picture(place / 'chat.png')}")
    assert len(long.lengths) >= 3, f"the answer did not come bit by bit: {long.lengths}"
    assert long.lengths == sorted(long.lengths)


def test_a_second_person_and_no_third(rig: Rig, place: Path) -> None:
    with pytest.raises(PageError) as refused:
        body = {"name": "Third", "email": "third@rig.example.org", "password": "a-password"}
        Page(rig.url).call("POST", "/api/v1/auths/signup", body)
    assert refused.value.status == 403
    theirs = sign_in(rig.url, FRIEND, FRIENDS_PASSWORD)
    assert theirs.models() == ["chat"]
    with pytest.raises(PageError):
        theirs.settings()
    with browser.Browser(place / "friend") as person:
        person.sign_in(rig.url, FRIEND, FRIENDS_PASSWORD)
        assert person.choose("chat") == ["chat"]
        assert "Paris" in person.ask("What is the capital of France? Answer in one sentence.").text


def ready(rig: Rig, limit_s: float = 90) -> float:
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        with contextlib.suppress(PageError):
            Page(rig.url).call("GET", "/ready")
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"the page was not ready within {limit_s} s")


def test_a_restart_keeps_chats_and_sessions(rig: Rig) -> None:
    before, session = titles(rig), rig.page()
    assert before
    assert rig.box.tool("restart", "open-webui").returncode == 0
    print(f"the page was ready {ready(rig):.1f} s after its restart")
    assert titles(rig) == before
    assert session.models() == ["chat"], "who was signed in still is"


def test_an_engine_that_is_down(rig: Rig) -> None:
    assert rig.box.tool("stop", "chat").returncode == 0
    page = rig.page()
    assert page.models() == []
    with pytest.raises(PageError):
        page.chat("chat", "Hello?")
    assert rig.box.tool("start", "chat").returncode == 0
    deadline = time.monotonic() + 30
    while page.models() != ["chat"]:
        assert time.monotonic() < deadline
    assert "Paris" in page.chat("chat", "What is the capital of France? Answer in one sentence.")


def test_models_of_one_name_are_told_apart_by_their_tunnel(rig: Rig, run_module: Any) -> None:
    keys = rig.secrets_file.parent
    chat = {"url": f"http://127.0.0.1:{rig.box.port}/v1", "key_file": str(keys / "chat.env")}
    notes = {"url": f"http://127.0.0.1:{rig.embed_port}/v1", "key_file": str(keys / "notes.env")}
    here = [chat, {**notes, "task": "embed", "model": "notes"}]
    node = {**chat, "url": f"http://localhost:{rig.box.port}/v1", "prefix": "node", "prefixed": True}
    common = {"url": rig.url, "admin": ADMIN, "secrets_file": str(rig.secrets_file), "data_dir": str(rig.data)}
    page = rig.page()
    assert run_module("open_webui_settings", {**common, "connections": [*here, node]})["changed"]
    assert sorted(page.models()) == ["chat", "node.chat"]
    assert "Paris" in page.chat("node.chat", "What is the capital of France? Answer in one sentence.")
    assert run_module("open_webui_settings", {**common, "connections": here})["changed"]
    assert page.models() == ["chat"]


def test_a_moved_engine_is_followed_and_people_s_settings_stay(rig: Rig) -> None:
    page, before = rig.page(), rig.pid()
    now = page.settings()
    theirs = "http://127.0.0.1:9/v1"
    page.change(
        now,
        {
            "ui.default_locale": "de-DE",
            "ui.enable_signup": True,
            "openai.api_base_urls": [theirs, *now["openai.api_base_urls"]],
            "openai.api_keys": ["their-own-key", *now["openai.api_keys"]],
        },
    )
    rig.box.port = free_port()
    result = rig.run("--diff")
    assert result.rc == 0, result.text[-6000:]
    assert "Set what the inventory decides" in result.changed_tasks
    assert "ui.enable_signup: false" in result.text
    assert "their-own-key" not in result.text
    assert rig.pid() == before, "the page was restarted"
    now = rig.page().settings()
    assert now["openai.api_base_urls"] == [f"http://127.0.0.1:{rig.box.port}/v1", theirs]
    assert now["openai.api_keys"][1] == "their-own-key"
    assert (now["ui.default_locale"], now["ui.enable_signup"]) == ("de-DE", False)
    assert "Paris" in rig.page().chat("chat", "What is the capital of France? Answer in one sentence.")


def test_a_database_of_a_newer_version_is_refused(rig: Rig) -> None:
    before = rig.pid()
    result = rig.run_page(open_webui_lock=str(rig.earlier))
    assert result.rc != 0
    assert "newer Open WebUI" in result.text
    assert f"is unknown to {EARLIER}" in " ".join(result.text.split())
    assert (rig.version(), rig.pid()) == (PRESENT, before)


def test_bad_input_changes_nothing(rig: Rig) -> None:
    before = rig.pid()
    result = rig.run_page(page={"admin": "admin", "port": rig.port})
    assert result.rc != 0
    assert "rig_webui.admin" in result.text
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = rig.run_page(page={"admin": ADMIN, "port": port})
    assert result.rc != 0
    assert f"port {port} is taken" in result.text
    assert "rig_webui" in result.text
    assert rig.pid() == before


def test_a_page_that_nobody_asks_for_is_stopped_and_its_data_stay(rig: Rig) -> None:
    result = rig.run_page(page={})
    assert result.rc == 0, result.text[-6000:]
    assert "open-webui" not in rig.box.services()
    assert (rig.data / "webui.db").exists()
    with pytest.raises(OSError, match="refused"), socket.create_connection(("127.0.0.1", rig.port), timeout=5):
        pass


def test_the_way_back_is_the_old_copy_and_the_old_release(rig: Rig, run_module: Any) -> None:
    environment = rig.box.root / "envs" / "open_webui" / "current"
    back = {"data_dir": str(rig.data), "environment_dir": str(environment), "state": "restored"}
    done = run_module("open_webui_database", back)
    assert done["changed"], done
    result = rig.run_page(open_webui_lock=str(rig.earlier))
    assert_works(rig, result, EARLIER)
    assert (rig.version(), titles(rig)) == (EARLIER, ["Before the upgrade"]), "later chats are in no copy"
    sign_in(rig.url, FRIEND, FRIENDS_PASSWORD)


# --- the other places of its data --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    made = postgres.start()
    try:
        quoted = PASSWORD.replace("'", "''")
        made.ask("SET standard_conforming_strings = on", f"CREATE ROLE \"{USER}\" LOGIN PASSWORD '{quoted}'")
        made.ask(f'CREATE DATABASE "{NAME}" OWNER "{USER}"')
        yield made
    finally:
        made.end()


@dataclass
class OnPostgres:
    """The rig's page with its data in the cluster."""

    rig: Rig
    cluster: postgres.Cluster

    def run(self, *more: str, password: str = PASSWORD, **variables: Any) -> Result:
        database = {"host": "127.0.0.1", "port": self.cluster.port, "name": NAME, "user": USER}
        page = {"admin": ADMIN, "port": self.rig.port, "postgres": database}
        # As from a vault: a password is text, whatever is in it.
        secret = {"open_webui_postgres_password": {"__ansible_unsafe": password}}
        return self.rig.run_page(*more, page=page, **secret, **variables)

    def module(self, **more: Any) -> dict[str, Any]:
        """The arguments by which the modules find the database."""
        environment = self.rig.box.root / "envs" / "open_webui" / "current"
        common = {"data_dir": str(self.rig.data), "environment_dir": str(environment)}
        return {**common, "secrets_file": str(self.rig.secrets_file), **more}


@pytest.fixture
def there(rig: Rig, cluster: postgres.Cluster) -> OnPostgres:
    return OnPostgres(rig, cluster)


@ON_POSTGRESQL
def test_the_page_on_postgresql_with_a_password_of_odd_characters(rig: Rig, there: OnPostgres) -> None:
    result = there.run("-vvv", "--diff", open_webui_lock=str(rig.earlier))
    assert_works(rig, result, EARLIER)
    assert_nothing_tells_the_password(rig, result)
    where = f"PostgreSQL database {NAME} at 127.0.0.1 port {there.cluster.port} as user {USER}"
    assert f"Database: {where}" in result.text, result.text[-3000:]
    assert there.cluster.ask('SELECT count(*) FROM "user"', database=NAME) == "1"
    assert titles(rig) == []
    with contextlib.closing(sqlite3.connect(rig.data / "webui.db")) as before:
        assert before.execute("SELECT title FROM chat").fetchall() == [("Before the upgrade",)], "what was there stays"
    keep_a_chat(rig.page(), "On PostgreSQL")


def assert_nothing_tells_the_password(rig: Rig, result: Result) -> None:
    """No output, unit, process or file that others may read."""
    url = rig.secret("DATABASE_URL")
    secrets = {
        "the password": PASSWORD,
        "as JSON": json.dumps(PASSWORD)[1:-1],
        "quoted": url.split(":")[2].split("@")[0],
    }
    assert holding(secrets, [("the output at -vvv", result.text.encode())]) == []
    assert holding(secrets, command_lines()) == []
    assert holding(secrets, readable_by_all(rig.box.root)) == []
    logs = [(path.name, path.read_bytes()) for path in (rig.box.root / "log").iterdir() if path.is_file()]
    assert holding(secrets, logs) == []
    records = [(path.name, path.read_bytes()) for path in rig.box.root.rglob("open-webui.*") if path.suffix != ".env"]
    assert holding(secrets, records) == []
    assert rig.secrets_file.stat().st_mode & 0o777 == 0o600


@LONG
@ON_POSTGRESQL
def test_the_second_run_on_postgresql_changes_nothing(rig: Rig, there: OnPostgres) -> None:
    before = rig.pid()
    result = there.run(open_webui_lock=str(rig.earlier))
    assert (result.rc, result.changed, rig.pid()) == (0, 0, before), result.changed_tasks


@ON_POSTGRESQL
def test_a_wrong_password_stops_nothing(rig: Rig, there: OnPostgres) -> None:
    before, kept = rig.pid(), rig.secrets_file.read_bytes()
    result = there.run(password="wrong-one", open_webui_lock=str(rig.earlier))
    assert result.rc != 0
    assert "open_webui_postgres_password" in result.text
    assert "wrong-one" not in result.text
    assert (rig.pid(), rig.secrets_file.read_bytes()) == (before, kept)


@LONG
@ON_POSTGRESQL
def test_an_upgrade_on_postgresql_has_a_copy_and_the_copy_is_the_way_back(
    rig: Rig, there: OnPostgres, run_module: Any
) -> None:
    result = there.run()
    assert result.rc == 0, result.text[-6000:]
    assert rig.version() == PRESENT
    [copy] = (rig.data / "backups").glob("webui-*.dump")
    assert re.fullmatch(rf"webui-{EARLIER}-\w+\.dump", copy.name)
    assert copy.stat().st_mode & 0o777 == 0o600
    rig.page().call("POST", "/api/v1/auths/add", {"name": "Late", "email": "late@rig.example.org", "password": "x" * 9})
    assert rig.box.tool("stop", "open-webui").returncode == 0
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    newer = int(there.cluster.ask(tables, database=NAME))
    refused = run_module("open_webui_database", there.module(state="restored", backup="webui-none.dump"))
    assert copy.name in refused["msg"]
    done = run_module("open_webui_database", there.module(state="restored"))
    assert (done.get("changed"), done.get("backup")) == (True, copy.name), done
    assert int(there.cluster.ask(tables, database=NAME)) < newer, "what the newer version added is gone"
    assert there.cluster.ask("SELECT title FROM chat", database=NAME) == "On PostgreSQL"
    assert there.cluster.ask('SELECT count(*) FROM "user"', database=NAME) == "1"
    assert [path.name for path in (rig.data / "backups").glob("*.dump")] == [copy.name]


@LONG
@ON_POSTGRESQL
def test_an_adopted_database_wants_its_administrators_own_password(rig: Rig, there: OnPostgres) -> None:
    password, text = rig.secret("WEBUI_ADMIN_PASSWORD"), rig.secrets_file.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("WEBUI_ADMIN_PASSWORD=")]
    rig.secrets_file.write_text("".join(lines), encoding="utf-8")
    refused = there.run()
    assert refused.rc != 0
    assert "open_webui_admin_password" in refused.text
    assert rig.secrets_file.read_text(encoding="utf-8") == "".join(lines), "none was generated"
    result = there.run("-vvv", open_webui_admin_password=password)
    assert result.rc == 0, result.text[-6000:]
    assert password not in result.text
    assert rig.secret("WEBUI_ADMIN_PASSWORD") == password
    assert (rig.version(), titles(rig)) == (PRESENT, ["On PostgreSQL"])


def test_any_password_survives_the_parsers_of_the_page(rig: Rig) -> None:
    """SQLAlchemy's, and libpq's as psycopg asks it, in the page's own Python."""
    seen: list[tuple[str, str]] = []

    @settings(max_examples=200, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(password=PASSWORDS)
    def collect(password: str) -> None:
        seen.append((password, database_url("127.0.0.1", 1, NAME, USER, password)))

    collect()
    program = (
        "import json, sys; from sqlalchemy import make_url; from psycopg.conninfo import conninfo_to_dict\n"
        "for password, url in json.load(sys.stdin):\n"
        "    read, plain = make_url(url), conninfo_to_dict(url.replace('+psycopg', '', 1))\n"
        "    print(read.password == plain['password'] == password, read.database == plain['dbname'], read.username)\n"
    )
    python = rig.box.root / "envs" / "open_webui" / "current" / "bin" / "python"
    done = subprocess.run([python, "-c", program], input=json.dumps(seen), capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()) == {f"True True {USER}"}


def test_in_memory_alone_and_without_sign_in(rig: Rig) -> None:
    page = {"port": rig.port, "auth": False, "keep": False}
    before = {path: path.stat().st_mtime_ns for path in rig.data.rglob("*")}
    expected = Path("/dev/shm/gpurig-open-webui-" + hashlib.sha256(str(rig.box.root).encode()).hexdigest()[:12])
    try:
        result = rig.run_page(page=page)
        assert result.rc == 0, result.text[-6000:]
        report = result.text[result.text.index("Page: ") :]
        assert "everybody on this host is administrator" in report
        if postgres.PROGRAMS:
            assert f"The chats from before stay in PostgreSQL database {NAME} at 127.0.0.1" in report
        assert f"The chats from before stay in {rig.data / 'webui.db'}" in report
        memory = Path(re.search(r"in memory, in (/dev/shm/[\w-]+)", report)[1])  # type: ignore[index]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        assert memory == expected
        assert (memory.stat().st_mode & 0o777, file_system(str(memory), mounts)) == (0o700, "tmpfs")
        assert (memory / "webui.db").exists()
        assert {path: path.stat().st_mtime_ns for path in rig.data.rglob("*")} == before
        anybody = enter(rig.url, "", str(rig.secrets_file))
        assert anybody.settings()["ui.enable_signup"] is False
        keep_a_chat(anybody, "Forgotten")
        # As after a boot: nothing of it is there any more.
        assert rig.box.tool("stop", "open-webui").returncode == 0
        shutil.rmtree(memory)
        assert rig.box.tool("start", "open-webui").returncode == 0
        if FULL:
            result = rig.run_page(page=page)
            assert (result.rc, result.changed_tasks) == (0, ["Set what the inventory decides"]), result.text[-6000:]
        ready(rig)
        assert enter(rig.url, "", str(rig.secrets_file)).call("GET", "/api/v1/chats/?page=1") == []
    finally:
        rig.box.tool("stop", "open-webui")
        shutil.rmtree(expected, ignore_errors=True)
