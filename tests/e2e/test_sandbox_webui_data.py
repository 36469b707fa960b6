# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the page's data are: the real Open WebUI on a real PostgreSQL, in memory alone, and without sign-in.

The tests of this file follow each other on one rig, which has no engine: that the page works with engines is in
test_sandbox_webui.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.memory_dir import file_system
from ansible_collections.gpurig.llm.plugins.module_utils.postgres_url import database_url
from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, enter
from ansible_collections.gpurig.llm.scripts import bump
from ansible_collections.gpurig.llm.tests.e2e import postgres
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
from ansible_collections.gpurig.llm.tests.e2e.sandbox import FULL, Result, Sandbox, free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

USER, NAME = "web ui@sqlite", "chats-1.x"
PASSWORD = "p@ss:/%#?= sqlite'\"\\ü✓;&+$ {{ x }}"
PASSWORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)

LONG = pytest.mark.skipif(not FULL, reason="three runs more, with two releases on PostgreSQL")
pytestmark = pytest.mark.skipif(not postgres.PROGRAMS, reason="needs PostgreSQL's server, Debian's postgresql")


@dataclass
class Rig(PageRig):
    """A sandbox with nothing but the page, and the server beside it."""

    cluster: postgres.Cluster

    def database(self) -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.cluster.port, "name": NAME, "user": USER}

    def run(self, *more: str, password: str = PASSWORD, page: dict[str, Any] | None = None, **variables: Any) -> Result:
        wanted = {"admin": ADMIN, "postgres": self.database()} if page is None else page
        # As from a vault: a password is text, whatever is in it.
        secret = {"open_webui_postgres_password": {"__ansible_unsafe": password}} if page is None else {}
        variables = {"rig_instances": [], "rig_webui": {"port": self.port, **wanted}, **secret, **variables}
        playbook = "playbooks/page.yml" if self.secrets_file.exists() else "site.yml"
        return self.box.run(playbook, *more, **variables)

    def module(self, **more: Any) -> dict[str, Any]:
        """The arguments by which the modules find the database."""
        environment = self.box.root / "envs" / "open_webui" / "current"
        common = {"data_dir": str(self.data), "environment_dir": str(environment)}
        return {**common, "secrets_file": str(self.secrets_file), **more}


@pytest.fixture(scope="module")
def rig(place: Path) -> Iterator[Rig]:
    (place / "home").mkdir()
    cluster = postgres.start()
    first = earlier_lock(place) if FULL else bump.ROOT / bump.PAGE_LOCK  # what nobody upgrades needs no earlier one
    made = Rig(Sandbox(place / "rig", free_port(), place / "home"), free_port(), first, cluster)
    try:
        quoted = PASSWORD.replace("'", "''")
        cluster.ask("SET standard_conforming_strings = on", f"CREATE ROLE \"{USER}\" LOGIN PASSWORD '{quoted}'")
        cluster.ask(f'CREATE DATABASE "{NAME}" OWNER "{USER}"')
        yield made
    finally:
        made.box.end()
        cluster.end()


def test_the_page_on_postgresql_with_a_password_of_odd_characters(rig: Rig) -> None:
    result = rig.run(open_webui_lock=str(rig.earlier))
    assert result.rc == 0, result.text[-6000:]
    where = f"PostgreSQL database {NAME} at 127.0.0.1 port {rig.cluster.port} as user {USER}"
    assert f"Database: {where}" in result.text, result.text[-3000:]
    assert not (rig.data / "webui.db").exists()
    assert int(rig.cluster.ask('SELECT count(*) FROM "user"', database=NAME)) == 1
    keep_a_chat(rig.page(), "On PostgreSQL")


def test_no_output_unit_process_or_open_file_tells_the_password(rig: Rig) -> None:
    before = rig.pid()
    result = rig.run("-vvv", "--diff", open_webui_lock=str(rig.earlier))
    assert (result.rc, result.changed, rig.pid()) == (0, 0, before), result.changed_tasks
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


def test_a_wrong_password_stops_nothing(rig: Rig) -> None:
    before, kept = rig.pid(), rig.secrets_file.read_bytes()
    result = rig.run(password="wrong-one", open_webui_lock=str(rig.earlier))
    assert result.rc != 0
    assert "open_webui_postgres_password" in result.text
    assert "wrong-one" not in result.text
    assert (rig.pid(), rig.secrets_file.read_bytes()) == (before, kept)


@LONG
def test_an_upgrade_has_a_copy_and_the_copy_is_the_way_back(rig: Rig, run_module: Any) -> None:
    result = rig.run()
    assert result.rc == 0, result.text[-6000:]
    assert Page(rig.url).version() == PRESENT
    [copy] = (rig.data / "backups").glob("webui-*")
    assert re.fullmatch(rf"webui-{EARLIER}-\w+\.dump", copy.name)
    assert copy.stat().st_mode & 0o777 == 0o600
    rig.page().call("POST", "/api/v1/auths/add", {"name": "Late", "email": "late@rig.example.org", "password": "x" * 9})
    assert rig.box.tool("stop", "open-webui").returncode == 0
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    newer = int(rig.cluster.ask(tables, database=NAME))
    refused = run_module("open_webui_database", rig.module(state="restored", backup="webui-none.dump"))
    assert copy.name in refused["msg"]
    done = run_module("open_webui_database", rig.module(state="restored"))
    assert (done.get("changed"), done.get("backup")) == (True, copy.name), done
    assert int(rig.cluster.ask(tables, database=NAME)) < newer, "what the newer version added is gone"
    assert rig.cluster.ask("SELECT title FROM chat", database=NAME) == "On PostgreSQL"
    assert rig.cluster.ask('SELECT count(*) FROM "user"', database=NAME) == "1"
    assert [path.name for path in (rig.data / "backups").iterdir()] == [copy.name]


@LONG
def test_an_adopted_database_wants_its_administrators_own_password(rig: Rig) -> None:
    password, text = rig.secret("WEBUI_ADMIN_PASSWORD"), rig.secrets_file.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("WEBUI_ADMIN_PASSWORD=")]
    rig.secrets_file.write_text("".join(lines), encoding="utf-8")
    refused = rig.run()
    assert refused.rc != 0
    assert "open_webui_admin_password" in refused.text
    assert rig.secrets_file.read_text(encoding="utf-8") == "".join(lines), "none was generated"
    result = rig.run("-vvv", open_webui_admin_password=password)
    assert result.rc == 0, result.text[-6000:]
    assert password not in result.text
    assert rig.secret("WEBUI_ADMIN_PASSWORD") == password
    chats = [chat["title"] for chat in rig.page().call("GET", "/api/v1/chats/?page=1")]
    assert (Page(rig.url).version(), chats) == (PRESENT, ["On PostgreSQL"])


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
    before = {path: path.stat().st_mtime_ns for path in rig.data.rglob("*")}
    expected = Path("/dev/shm/gpurig-open-webui-" + hashlib.sha256(str(rig.box.root).encode()).hexdigest()[:12])
    try:
        result = rig.run(page={"auth": False, "keep": False})
        assert result.rc == 0, result.text[-6000:]
        report = result.text[result.text.index("Page: ") :]
        assert "everybody on this host is administrator" in report
        assert f"The chats from before stay in PostgreSQL database {NAME}" in report
        memory = Path(re.search(r"in memory, in (/dev/shm/[\w-]+)", report)[1])  # type: ignore[index]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        assert memory == expected
        assert (memory.stat().st_mode & 0o777, file_system(str(memory), mounts)) == (0o700, "tmpfs")
        assert (memory / "webui.db").exists()
        assert {path: path.stat().st_mtime_ns for path in rig.data.rglob("*")} == before
        page = enter(rig.url, "", str(rig.secrets_file))
        assert page.settings()["ui.enable_signup"] is False
        keep_a_chat(page, "Forgotten")
        # As after a boot: nothing of it is there any more.
        assert rig.box.tool("stop", "open-webui").returncode == 0
        shutil.rmtree(memory)
        assert rig.box.tool("start", "open-webui").returncode == 0
        result = rig.run(page={"auth": False, "keep": False})
        assert (result.rc, result.changed_tasks) == (0, ["Set what the inventory decides"]), result.text[-6000:]
        assert enter(rig.url, "", str(rig.secrets_file)).call("GET", "/api/v1/chats/?page=1") == []
    finally:
        rig.box.tool("stop", "open-webui")
        shutil.rmtree(expected, ignore_errors=True)
