# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's database: what version it is of, a copy before an upgrade, and the way back. (outside)

Open WebUI changes its database one way only: a newer version migrates it, no version migrates back. The database
names the last migration that it went through (Alembic's table); a package knows a database whose migration it has.
Here is SQLite, in the page's data directory; webui_postgres has PostgreSQL.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .small_files import write_text

DATABASE = "webui.db"
BACKUPS = "backups"
RECORD = "gpurig.json"
DESCRIPTION = "open_webui.json"
"""In place of an environment: what an image was asked, its `version` and the `revisions` that it knows."""
_REVISION = re.compile(r"""^revision(?:\s*:\s*\w+)?\s*=\s*['"]([0-9a-f]+)['"]""", re.MULTILINE)
_BUSY_S = 30.0


class DatabaseError(Exception):
    """The database cannot be used as asked; the message says why and what helps."""


@contextlib.contextmanager
def acting_as_owner(directory: Path) -> Iterator[None]:
    """Let root do nothing in a service's directory, where there is one, that the service could not do itself.

    For a while only: a module's last words take parts of Ansible that root alone may read. Where the owner is root, as
    of a volume in which a container writes as root, nothing is let go, so links are refused for everybody.
    Raises DatabaseError for what the service cannot have put there, or a directory that its owner cannot reach.
    """
    if os.geteuid() != 0 or not directory.is_dir():
        refuse_links(directory)
        yield
        return
    owner, group, groups = directory.stat(), os.getegid(), os.getgroups()
    os.setgroups([])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        _refuse_closed(directory)
        refuse_links(directory)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def refuse_links(data_dir: Path) -> None:
    """Raise DatabaseError where what we are to write is a link, or not the file or directory that it should be."""
    files = [RECORD, *(DATABASE + end for end in ("", "-wal", "-shm", "-journal"))]
    for name, is_right, needed in [
        (BACKUPS, stat.S_ISDIR, "directory"),
        *((one, stat.S_ISREG, "file") for one in files),
    ]:
        path = data_dir / name
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = path.lstat().st_mode
            if not is_right(mode):
                found = f"a link to {path.readlink()}" if stat.S_ISLNK(mode) else f"no {needed}"
                raise DatabaseError(
                    f"{path} is {found}; needed: a {needed}, since links in the page's directory are not followed. See "
                    "who made it, and move it away."
                )


def _refuse_closed(directory: Path) -> None:
    """Raise DatabaseError where the present rights do not reach the directory."""
    way = [*reversed(directory.parents), directory]
    closed = next((path for path in way if not os.access(path, os.X_OK, effective_ids=True)), None)
    if closed:
        raise DatabaseError(
            f"{closed} does not let uid {os.geteuid()} pass, who owns {directory}, and nothing is written there with "
            "more rights than his. Give the data to root, as a container's volume has them by default, or have them in "
            "a directory that he reaches (without rig_webui.volume)."
        )


def described(environment: Path) -> dict[str, Any]:
    """Return what an image said of itself; empty for a Python environment."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((environment / DESCRIPTION).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def package_version(environment: Path) -> str:
    """Return the version of Open WebUI in an environment or an image. Raises DatabaseError when there is none."""
    if version := described(environment).get("version"):
        return str(version)
    for found in environment.glob("lib/python3*/site-packages/open_webui-*.dist-info"):
        return found.name[len("open_webui-") : -len(".dist-info")]
    raise DatabaseError(f"{environment} holds no Open WebUI; run the role again")


def known_revisions(environment: Path) -> frozenset[str]:
    """Return the migrations that the package knows. Raises DatabaseError when it has none."""
    if revisions := described(environment).get("revisions"):
        return frozenset(map(str, revisions))
    files = environment.glob("lib/python3*/site-packages/open_webui/migrations/versions/*.py")
    found = {match[1] for path in files if (match := _REVISION.search(path.read_text(encoding="utf-8")))}
    if not found:
        raise DatabaseError(f"{environment} holds no migrations of Open WebUI, so nobody can tell what it can read")
    return frozenset(found)


@dataclass(frozen=True)
class User:
    """Somebody who can sign in; `role` is admin, user or pending."""

    address: str
    role: str


class Store(Protocol):
    """A database of Open WebUI. Everything raises DatabaseError when it cannot be reached or is not Open WebUI's."""

    @property
    def in_words(self) -> str:
        """Where it is, without its password."""

    @property
    def identity(self) -> str:
        """By which it is known again; '' for the one in the data directory, wherever that is."""

    @property
    def suffix(self) -> str:
        """Of the files that are its copies."""

    def exists(self) -> bool:
        """Whether Open WebUI began to make it."""

    def revisions(self) -> frozenset[str]:
        """The migrations that it stands at; empty for one that Open WebUI never finished making."""

    def users(self) -> list[User]:
        """Who can sign in."""

    def copy_to(self, target: Path) -> None:
        """Copy it, also while the page writes, into a file that only its owner reads."""

    def take_back(self, source: Path) -> None:
        """Become what was copied, in one step."""


@dataclass(frozen=True)
class Sqlite:
    """The database that lies in the data directory."""

    path: Path

    @property
    def in_words(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def identity(self) -> str:
        """See Store."""
        return ""

    @property
    def suffix(self) -> str:
        """A copy is a database too."""
        return ".db"

    def exists(self) -> bool:
        """Whether the file is there."""
        return self.path.exists()

    def revisions(self) -> frozenset[str]:
        """See Store."""
        with opened(self.path) as database:
            return frozenset(str(row[0]) for row in self._rows(database, "alembic_version", "version_num"))

    def users(self) -> list[User]:
        """See Store."""
        with opened(self.path) as database:
            return [User(str(row[0]), str(row[1])) for row in self._rows(database, "user", "email, role")]

    @staticmethod
    def _rows(database: sqlite3.Connection, table: str, columns: str) -> list[tuple[object, ...]]:
        named = "SELECT 1 FROM sqlite_master WHERE type='table' AND name=?"
        if not database.execute(named, [table]).fetchone():
            return []
        return database.execute(f'SELECT {columns} FROM "{table}"').fetchall()  # noqa: S608  our own words

    def copy_to(self, target: Path) -> None:
        """With SQLite's own backup, which is right also while the page writes."""
        copy_database(self.path, target)

    def take_back(self, source: Path) -> None:
        """See Store."""
        copy_database(source, self.path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an existing database, errors as DatabaseError."""
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_S)
    except sqlite3.Error as error:
        raise DatabaseError(f"{path}: {error}") from error
    try:
        yield connection
    except sqlite3.Error as error:
        raise DatabaseError(f"{path}: {error}. Is it Open WebUI's database?") from error
    finally:
        connection.close()


def copy_database(source: Path, target: Path) -> None:
    """Copy with SQLite's own backup; the target changes in one step.

    An existing target keeps its owner and mode; a new one only its owner reads.
    """
    if not os.path.lexists(target):
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with opened(source) as here, opened(target) as there:
        here.backup(there)


def recorded_version(data_dir: Path, store: Store) -> str:
    """Return the version that used the database last, as far as we know; 'unknown' for an adopted one."""
    record = read_record(data_dir)
    same = record.get("database", "") == store.identity
    return str(record.get("version") or "unknown") if same else "unknown"


def pending_upgrade(data_dir: Path, store: Store) -> dict[str, Any]:
    """Return what back_up noted when it made way for a version that nobody saw healthy since; empty without one."""
    pending = read_record(data_dir).get("pending")
    return pending if isinstance(pending, dict) and pending.get("database") == store.identity else {}


def read_record(data_dir: Path) -> dict[str, object]:
    """Return what we noted about this data directory."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((data_dir / RECORD).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def note(data_dir: Path, **values: object) -> None:
    """Note values beside those that are there, in one step; None removes one."""
    new = {name: value for name, value in {**read_record(data_dir), **values}.items() if value is not None}
    write_text(str(data_dir / RECORD), json.dumps(new, indent=2, sort_keys=True) + "\n", 0o600)


def note_version(data_dir: Path, store: Store, version: str) -> None:
    """Note which version uses the database from now on. No upgrade is pending then."""
    note(data_dir, version=version, database=store.identity, pending=None)


def backups(data_dir: Path, store: Store) -> list[Path]:
    """Return the copies of databases of this kind, the newest last."""
    found = (data_dir / BACKUPS).glob(f"webui-*{store.suffix}")
    files = [path for path in found if stat.S_ISREG(path.lstat().st_mode)]
    return sorted(files, key=lambda path: (path.lstat().st_mtime, path.name))


def upgrade_problem(data_dir: Path, environment: Path, store: Store) -> str:
    """Say why the package in `environment` must not be started on this database; '' when it may."""
    unknown = store.revisions() - known_revisions(environment)
    if not unknown:
        return ""
    copies = ", ".join(path.name for path in backups(data_dir, store)) or "none"
    return (
        f"{store.in_words} was used by a newer Open WebUI (its migration {', '.join(sorted(unknown))} is unknown "
        f"to {package_version(environment)}), and databases do not go back. Ask for that newer version, or put a copy "
        f"back: {copies} in {data_dir / BACKUPS}."
    )


def back_up(data_dir: Path, environment: Path, keep: int, store: Store) -> Path:
    """Copy the database before another version gets it, note that as pending, and return the copy to go back to.

    An upgrade that was pending already may have changed the database: then that copy from before stays the way back,
    beside the one of what is there now. Of the others `keep` - 1 stay; unchanged data take no second copy.
    """
    folder, pending = data_dir / BACKUPS, pending_upgrade(data_dir, store)
    folder.mkdir(mode=0o700, exist_ok=True)
    now = sorted(store.revisions())
    earlier = {path.name: path for path in backups(data_dir, store)}.get(str(pending.get("backup")))
    migrated = earlier is not None and pending["revisions"] != now
    made = _copied(folder, pending["version"] if migrated else recorded_version(data_dir, store), store, data_dir)
    back = earlier if earlier is not None and migrated else made
    noted = {"version": package_version(environment), "database": store.identity, "backup": back.name}
    note(data_dir, pending={**noted, "revisions": pending["revisions"] if migrated else now})
    others = [path for path in backups(data_dir, store) if path != back]
    for old in others[: max(0, len(others) - (keep - 1))]:
        old.unlink()
    return back


def _copied(folder: Path, version: str, store: Store, data_dir: Path) -> Path:
    """Return a new copy, or the newest one of the version where it holds the same."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    made = folder / f"webui-{version}-{stamp}{store.suffix}"
    part = folder / f".{made.name}.part"
    part.unlink(missing_ok=True)
    try:
        store.copy_to(part)
        same = [path for path in backups(data_dir, store) if version_of(path.name) == version]
        if same and filecmp.cmp(same[-1], part, shallow=False):
            return same[-1]
        part.replace(made)
    finally:
        part.unlink(missing_ok=True)
    return made


def put_back(data_dir: Path, name: str, store: Store) -> Path:
    """Put a copy's content back into the database, and note its version. Raises DatabaseError for an unknown copy."""
    copies = {path.name: path for path in backups(data_dir, store)}
    if name not in copies:
        known = ", ".join(copies) or "none"
        raise DatabaseError(f"{data_dir / BACKUPS} has no copy {name!r} of {store.in_words}; there are: {known}")
    store.take_back(copies[name])
    note_version(data_dir, store, version_of(name))
    return copies[name]


def version_of(copy: str) -> str:
    """Return the version in a copy's name."""
    return copy.removeprefix("webui-").rpartition("-")[0]
