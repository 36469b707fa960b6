# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's database, here with real SQLite and a package of two migrations: copies, the way back, refusals."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils import webui_database
from ansible_collections.gpurig.llm.plugins.module_utils.webui_database import (
    DATABASE,
    DatabaseError,
    Sqlite,
    User,
    acting_as_owner,
    back_up,
    backups,
    known_revisions,
    note,
    note_version,
    package_version,
    pending_upgrade,
    put_back,
    recorded_version,
    upgrade_problem,
)


def package(place: Path, version: str, *revisions: str) -> Path:
    """An environment with this version of Open WebUI, as far as it is looked at."""
    site = place / version / "lib" / "python3.12" / "site-packages"
    (site / f"open_webui-{version}.dist-info").mkdir(parents=True)
    migrations = site / "open_webui" / "migrations" / "versions"
    migrations.mkdir(parents=True)
    forms = ("revision = '{}'\ndown_revision = None\n", 'x = 1\nrevision: str = "{}"\ndown_revision = "0"\n')
    for number, revision in enumerate(revisions):
        (migrations / f"{revision}_step.py").write_text(forms[number % 2].format(revision))
    return place / version


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('aa11')")
        database.execute("CREATE TABLE chat (text TEXT)")
        database.execute("INSERT INTO chat VALUES ('hello')")
    return folder


def store(data: Path) -> Sqlite:
    return Sqlite(data / DATABASE)


def chats(data: Path) -> list[str]:
    with sqlite3.connect(data / DATABASE) as database:
        return [row[0] for row in database.execute("SELECT text FROM chat")]


def test_what_a_package_and_a_database_say(tmp_path: Path, data: Path) -> None:
    new = package(tmp_path, "0.12.4", "aa11", "bb22")
    assert (package_version(new), known_revisions(new)) == ("0.12.4", {"aa11", "bb22"})
    assert store(data).revisions() == {"aa11"}
    assert recorded_version(data, store(data)) == "unknown"


def test_a_copy_while_the_page_writes_and_the_way_back(tmp_path: Path, data: Path) -> None:
    new = package(tmp_path, "0.12.4", "aa11", "bb22")
    page = sqlite3.connect(data / DATABASE)
    page.execute("INSERT INTO chat VALUES ('not committed')")
    made = back_up(data, new, 3, store(data))
    page.commit()
    assert made.name.startswith("webui-unknown-")
    assert made.stat().st_mode & 0o777 == 0o600
    assert recorded_version(data, store(data)) == "unknown", "nobody saw the new version healthy"
    assert pending_upgrade(data, store(data))["version"] == "0.12.4"
    page.execute("UPDATE alembic_version SET version_num = 'bb22'")
    page.execute("ALTER TABLE chat RENAME TO conversation")
    page.commit()
    put_back(data, made.name, store(data))
    assert (chats(data), store(data).revisions()) == (["hello"], {"aa11"})
    assert page.execute("SELECT text FROM chat").fetchall() == [("hello",)]
    assert recorded_version(data, store(data)) == "unknown"
    assert not pending_upgrade(data, store(data))
    page.close()


def test_of_copies_the_newest_stay(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = iter(f"2026112{number}T000000Z" for number in range(5))
    monkeypatch.setattr(webui_database.time, "strftime", lambda *_args: next(stamps))
    made = []
    for number in range(4):
        made.append(back_up(data, package(tmp_path, f"0.12.{number}", "aa11"), 2, store(data)))
        note_version(data, store(data), f"0.12.{number}")
    assert backups(data, store(data)) == made[-2:]
    assert made[-1].name == "webui-0.12.2-20261123T000000Z.db"


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path, data: Path) -> None:
    assert upgrade_problem(data, package(tmp_path, "0.12.4", "aa11"), store(data)) == ""
    problem = upgrade_problem(data, package(tmp_path, "0.11.0", "9900"), store(data))
    for word in (str(data / DATABASE), "aa11", "0.11.0", "newer"):
        assert word in problem


def test_a_database_that_was_never_finished_is_no_problem(tmp_path: Path, data: Path) -> None:
    with sqlite3.connect(data / DATABASE) as database:
        database.execute("DROP TABLE alembic_version")
    assert upgrade_problem(data, package(tmp_path, "0.12.4", "aa11"), store(data)) == ""


def test_what_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DatabaseError, match="Is it Open WebUI's database"):
        upgrade_problem(tmp_path, package(tmp_path, "0.12.4", "aa11"), store(tmp_path))
    with pytest.raises(DatabaseError, match="unable to open"):
        Sqlite(tmp_path / "absent.db").revisions()


@pytest.mark.parametrize("what", ["package_version", "known_revisions"])
def test_an_empty_environment_is_refused(tmp_path: Path, what: str) -> None:
    with pytest.raises(DatabaseError, match="no "):
        getattr(webui_database, what)(tmp_path)


def test_an_unknown_copy_is_refused_with_those_that_there_are(tmp_path: Path, data: Path) -> None:
    made = back_up(data, package(tmp_path, "0.12.4", "aa11"), 3, store(data))
    with pytest.raises(DatabaseError, match=made.name):
        put_back(data, "../../etc/passwd", store(data))
    assert chats(data) == ["hello"]


def test_users_and_the_version_of_another_database(data: Path) -> None:
    assert store(data).users() == []
    with sqlite3.connect(data / DATABASE) as database:
        database.execute('CREATE TABLE "user" (id TEXT, email TEXT, role TEXT)')
        database.execute("INSERT INTO user VALUES ('1', 'a@b.cd', 'admin')")
    assert store(data).users() == [User("a@b.cd", "admin")]
    webui_database.note(data, version="0.12.4")
    assert recorded_version(data, store(data)) == "0.12.4"
    webui_database.note(data, database="PostgreSQL database webui at 127.0.0.1 port 5432 as user webui")
    assert recorded_version(data, store(data)) == "unknown"


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, data: Path) -> None:
    for path in data.glob(f"{DATABASE}*"):
        path.unlink()
    (data / DATABASE).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(DatabaseError):
        back_up(data, package(tmp_path, "0.12.4", "aa11"), 3, store(data))
    assert list((data / "backups").iterdir()) == []


def add_chat(data: Path, text: str) -> None:
    with sqlite3.connect(data / DATABASE) as database:
        database.execute("INSERT INTO chat VALUES (?)", [text])


def stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = iter(f"2026112{number}T000000Z" for number in range(9))
    monkeypatch.setattr(webui_database.time, "strftime", lambda *_args: next(stamps))


def test_an_upgrade_that_was_cut_off_before_it_began_is_copied_again(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(monkeypatch)
    new = package(tmp_path, "0.12.4", "aa11", "bb22")
    note_version(data, store(data), "0.12.0")
    first = back_up(data, new, 3, store(data))
    assert back_up(data, new, 3, store(data)) == first, "the same data are one copy"
    add_chat(data, "later")
    second = back_up(data, new, 3, store(data))
    assert backups(data, store(data)) == [first, second]
    assert [path.name.split("-")[1] for path in (first, second)] == ["0.12.0", "0.12.0"]


def test_an_upgrade_that_was_cut_off_after_it_began_goes_back_to_before(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamped(monkeypatch)
    new = package(tmp_path, "0.12.4", "aa11", "bb22")
    note_version(data, store(data), "0.12.0")
    first = back_up(data, new, 2, store(data))
    with sqlite3.connect(data / DATABASE) as database:
        database.execute("UPDATE alembic_version SET version_num = 'bb22'")
    for text in ("one", "two", "three"):
        add_chat(data, text)
        assert back_up(data, new, 2, store(data)) == first
    assert [path.name.split("-")[1] for path in backups(data, store(data))] == ["0.12.0", "0.12.4"]
    put_back(data, first.name, store(data))
    assert (store(data).revisions(), recorded_version(data, store(data))) == ({"aa11"}, "0.12.0")
    assert not pending_upgrade(data, store(data))


@pytest.mark.parametrize("name", ["gpurig.json", "backups", DATABASE, f"{DATABASE}-wal"])
@pytest.mark.parametrize("kind", ["link", "dangling", "other"])
def test_what_is_a_link_is_refused_in_words(tmp_path: Path, name: str, kind: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    outside = tmp_path / "outside"
    if kind == "other":
        (data / name).write_text("") if name == "backups" else (data / name).mkdir()
    else:
        (data / name).symlink_to(outside)
    if kind == "link":
        outside.mkdir() if name == "backups" else outside.write_text("{}")
    words = rf"{data / name} is (a link to {outside}|no (file|directory)); needed: a "
    with pytest.raises(DatabaseError, match=words), acting_as_owner(data):
        raise AssertionError
    assert outside.exists() is (kind == "link")


def test_a_note_goes_through_no_link(tmp_path: Path, data: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("theirs")
    for name in (".gpurig.json.new", "gpurig.json"):
        (data / name).symlink_to(outside)
    note(data, version="0.12.4")
    assert outside.read_text() == "theirs"
    assert not (data / "gpurig.json").is_symlink()


def test_a_copy_that_is_a_link_is_none(tmp_path: Path, data: Path) -> None:
    (data / "backups").mkdir()
    (data / "backups" / "webui-0.12.0-x.db").symlink_to(data / DATABASE)
    assert backups(data, store(data)) == []
    with pytest.raises(DatabaseError, match="there are: none"):
        put_back(data, "webui-0.12.0-x.db", store(data))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_directory_that_its_owner_cannot_reach_is_refused_with_the_reason(tmp_path: Path) -> None:
    closed = tmp_path / "docker"
    (closed / "volume" / "_data").mkdir(parents=True)
    os.chown(closed / "volume" / "_data", 12345, 12345)
    closed.chmod(0o710)
    words = r"does not let uid 12345 pass, who owns"
    with pytest.raises(DatabaseError, match=words), acting_as_owner(closed / "volume" / "_data"):
        raise AssertionError
    assert os.geteuid() == 0
