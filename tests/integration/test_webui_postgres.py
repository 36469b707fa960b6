# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page's database in a real PostgreSQL, looked into by the real psycopg, copied by the real pg_dump.

The tables are few and made here; those of the real Open WebUI are in tests/e2e/test_sandbox_webui.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import webui_postgres
from ansible_collections.gpurig.llm.plugins.module_utils.postgres_url import Server, database_url
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import (
    DESCRIPTION,
    DatabaseError,
    User,
    recorded_version,
)
from ansible_collections.gpurig.llm.plugins.module_utils.webui_postgres import Postgres, client, store_of
from ansible_collections.gpurig.llm.tests.e2e import postgres
from ansible_collections.gpurig.llm.tests.hub_sim import clients
from ansible_collections.gpurig.llm.tests.unit.test_webui_database import package

LOCK = Path(__file__).resolve().parents[2] / "roles" / "open_webui" / "files" / "webui.lock"
PASSWORD = "p@ss:/%#?= sqlite'\"\\ü✓;&+$"
Module = Callable[..., dict[str, Any]]

pytestmark = pytest.mark.skipif(not postgres.PROGRAMS, reason="needs PostgreSQL's server, Debian's postgresql")


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    made = postgres.start()
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the psycopg of the page's lock."""
    place = tmp_path_factory.mktemp("driver")
    text = LOCK.read_text(encoding="utf-8")
    wanted = ("psycopg", "psycopg-binary", "typing-extensions")
    entries = [re.search(rf"^{name}==.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL) for name in wanted]
    (place / "lock").write_text("".join(entry[0] for entry in entries if entry), encoding="utf-8")
    uv = str(clients.uv())
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, place / "venv"], check=True)
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", place / "venv/bin/python"]
    subprocess.run([*install, "-r", place / "lock"], check=True)
    return place / "venv" / "bin" / "python"


def with_driver(environment: Path, driver: Path) -> Path:
    (environment / "bin").mkdir()
    (environment / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(str(driver))} "$@"\n')
    (environment / "bin" / "python").chmod(0o755)
    return environment


@pytest.fixture(params=["package", "image"])
def store(request: pytest.FixtureRequest, cluster: postgres.Cluster, driver: Path, tmp_path: Path) -> Postgres:
    """An empty database of its own, looked into by the page's own Python, or beside an image by psql."""
    quoted = PASSWORD.replace("'", "''")
    cluster.ask('DROP DATABASE IF EXISTS "page-1.x"', 'DROP ROLE IF EXISTS "page@x sqlite"')
    cluster.ask(f"CREATE ROLE \"page@x sqlite\" LOGIN PASSWORD '{quoted}'")
    cluster.ask('CREATE DATABASE "page-1.x" OWNER "page@x sqlite"')
    if request.param == "image":
        environment = tmp_path / "answer"
        environment.mkdir()
        said = {"version": "0.12.4", "revisions": ["aa11", "bb22"]}
        (environment / DESCRIPTION).write_text(json.dumps(said), encoding="utf-8")
    else:
        environment = with_driver(package(tmp_path, "0.12.4", "aa11", "bb22"), driver)
    return Postgres(Server("127.0.0.1", cluster.port, "page-1.x", "page@x sqlite", PASSWORD), environment)


def fill(cluster: postgres.Cluster) -> None:
    cluster.ask(
        'SET ROLE "page@x sqlite"',
        "CREATE TABLE alembic_version (version_num text)",
        "INSERT INTO alembic_version VALUES ('aa11')",
        'CREATE TABLE "user" (id text PRIMARY KEY, email text, role text)',
        "INSERT INTO \"user\" VALUES ('1', 'a@b.cd', 'admin')",
        'CREATE TABLE chat (id serial, owner text REFERENCES "user", text text)',
        "INSERT INTO chat (owner, text) VALUES ('1', 'hello')",
        database="page-1.x",
    )


def test_an_empty_and_a_used_database(store: Postgres, cluster: postgres.Cluster) -> None:
    assert (store.exists(), store.revisions(), store.users()) == (False, frozenset(), [])
    fill(cluster)
    assert (store.exists(), store.revisions()) == (True, {"aa11"})
    assert store.users() == [User("a@b.cd", "admin")]


def test_a_copy_and_the_way_back(store: Postgres, cluster: postgres.Cluster, tmp_path: Path) -> None:
    fill(cluster)
    copy = tmp_path / "copy.dump"
    store.copy_to(copy)
    assert (copy.read_bytes()[:5], copy.stat().st_mode & 0o777) == (b"PGDMP", 0o600)
    newer = ['SET ROLE "page@x sqlite"', "UPDATE alembic_version SET version_num = 'bb22'", "DELETE FROM chat"]
    newer += ['CREATE TABLE "App ""x""" (id text REFERENCES "user")', "ALTER TABLE chat RENAME TO conversation"]
    cluster.ask(*newer, database="page-1.x")
    store.take_back(copy)
    assert store.revisions() == {"aa11"}
    assert cluster.ask("SELECT text FROM chat", database="page-1.x") == "hello"
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    assert cluster.ask(tables, database="page-1.x").split() == ["alembic_version", "chat", "user"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["copy.dump"]


def test_a_broken_copy_changes_nothing(store: Postgres, cluster: postgres.Cluster, tmp_path: Path) -> None:
    fill(cluster)
    copy = tmp_path / "copy.dump"
    store.copy_to(copy)
    copy.write_bytes(copy.read_bytes()[:-200])
    with pytest.raises(DatabaseError, match="failed and changed nothing"):
        store.take_back(copy)
    assert cluster.ask("SELECT text FROM chat", database="page-1.x") == "hello"


def test_a_copy_that_does_not_fit_changes_nothing(store: Postgres, cluster: postgres.Cluster, tmp_path: Path) -> None:
    fill(cluster)
    cluster.ask('SET ROLE "page@x sqlite"', "CREATE TYPE mood AS ENUM ('good')", database="page-1.x")
    store.copy_to(tmp_path / "copy.dump")
    with pytest.raises(DatabaseError, match=r"failed and changed nothing.*already exists"):
        store.take_back(tmp_path / "copy.dump")
    assert cluster.ask("SELECT text FROM chat", database="page-1.x") == "hello"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"password": "wrong-one"}, "Set open_webui_postgres_password", id="password"),
        pytest.param({"password": ""}, "Set open_webui_postgres_password", id="no-password"),
        pytest.param({"name": "absent"}, "Make the database", id="database"),
        pytest.param({"port": 1}, "See that the server runs", id="unreachable"),
        pytest.param({"host": "host.invalid"}, "See that the server runs", id="no-host"),
    ],
)
def test_what_is_wrong_is_said(store: Postgres, change: dict[str, Any], words: str) -> None:
    wrong = dataclasses.replace(store, server=dataclasses.replace(store.server, **change))
    with pytest.raises(DatabaseError, match=words) as caught:
        wrong.exists()
    for word in (wrong.server.host, str(wrong.server.port), wrong.server.name, wrong.server.user):
        assert word in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_tables_of_something_else_are_refused(store: Postgres, cluster: postgres.Cluster) -> None:
    cluster.ask("CREATE TABLE theirs (x int)", database="page-1.x")
    with pytest.raises(DatabaseError, match="1 tables that are not Open WebUI's"):
        store.exists()


def test_a_user_who_may_make_no_tables_is_refused(store: Postgres, cluster: postgres.Cluster) -> None:
    cluster.ask('ALTER DATABASE "page-1.x" OWNER TO boss')
    with pytest.raises(DatabaseError, match="is empty, and that user may make no tables in it"):
        store.exists()
    cluster.ask('GRANT CREATE ON SCHEMA public TO "page@x sqlite"', database="page-1.x")
    assert not store.exists()


def test_what_cannot_look_says_so(store: Postgres, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="run the role again"):
        dataclasses.replace(store, environment=tmp_path / "absent").users()
    (tmp_path / "plain").mkdir()
    plain = with_driver(tmp_path / "plain", Path(sys.executable))
    with pytest.raises(DatabaseError, match=r"cannot look into PostgreSQL.*psycopg"):
        dataclasses.replace(store, environment=plain).users()
    with pytest.raises(DatabaseError, match="no URL of a PostgreSQL database; run the role again"):
        store_of("sqlite:///x", tmp_path)


def test_the_oldest_program_that_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for major in (13, 15, 17):
        folder = tmp_path / str(major) / "bin"
        folder.mkdir(parents=True)
        (folder / "pg_dump").write_text(f'#!/bin/sh\necho "pg_dump (PostgreSQL) {major}.4 (Debian {major}.4-1)"\n')
        (folder / "pg_dump").chmod(0o755)
    monkeypatch.setattr(webui_postgres, "DEBIANS_PROGRAMS", tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert client("pg_dump", 14) == str(tmp_path / "15/bin/pg_dump")
    with pytest.raises(DatabaseError, match=r"needs pg_dump of PostgreSQL 18.*is of 17.*postgresql-client"):
        client("pg_dump", 18)
    with pytest.raises(DatabaseError, match="there is none"):
        client("pg_restore", 14)


def test_the_modules_in_four_steps_and_back(
    store: Postgres, cluster: postgres.Cluster, tmp_path: Path, run_module: Module
) -> None:
    data, secrets = tmp_path / "data", tmp_path / "page.env"
    data.mkdir()
    server = store.server
    url = database_url(server.host, server.port, server.name, server.user, server.password)
    secrets.write_text(f"WEBUI_ADMIN_PASSWORD=x\nDATABASE_URL={url}\n", encoding="utf-8")
    common = {"data_dir": str(data), "environment_dir": str(store.environment), "secrets_file": str(secrets)}
    see = {**common, "database_url": url, "admin": "a@b.cd"}
    assert run_module("open_webui_preflight", see)["users"] == 0
    assert not run_module("open_webui_database", common)["changed"]
    assert recorded_version(data, store) == "0.12.4"
    fill(cluster)
    results = [run_module("open_webui_preflight", see)]
    assert (results[0]["users"], results[0]["database"]) == (1, server.in_words)
    (data / "gpurig.json").unlink()
    checked = run_module("open_webui_database", common, check=True)
    results += [checked, run_module("open_webui_database", common)]
    assert run_module("open_webui_database", {**common, "state": "used"})["changed"]
    results.append(run_module("open_webui_database", common))
    assert [result["changed"] for result in results] == [False, True, True, False]
    assert Path(results[2]["backup"]).name.startswith("webui-unknown-")
    cluster.ask("UPDATE alembic_version SET version_num = 'cc33'", database="page-1.x")
    results += [run_module("open_webui_preflight", see), run_module("open_webui_database", common)]
    assert all("newer Open WebUI" in result["msg"] for result in results[-2:])
    results.append(run_module("open_webui_database", {**common, "state": "restored"}))
    assert (results[-1]["changed"], store.revisions()) == (True, {"aa11"})
    absent = {**see, "environment_dir": str(tmp_path / "absent")}
    assert run_module("open_webui_preflight", absent, check=True)["database"] == server.in_words
    for result in results:
        assert PASSWORD not in json.dumps(result, ensure_ascii=False)
        assert url.split(":")[2].partition("@")[0] not in json.dumps(result)
