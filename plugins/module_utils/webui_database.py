# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's SQLite database: what version it is of, a copy before an upgrade, and the way back. (outside)

Open WebUI changes its database one way only: a newer version migrates it, no version migrates back. The database
names the last migration that it went through (Alembic's table); a package knows a database whose migration it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

DATABASE = "webui.db"
BACKUPS = "backups"
RECORD = "gpurig.json"
_REVISION = re.compile(r"""^revision(?:\s*:\s*\w+)?\s*=\s*['"]([0-9a-f]+)['"]""", re.MULTILINE)
_BUSY_S = 30.0


class DatabaseError(Exception):
    """The database cannot be used as asked; the message says why and what helps."""


def act_as_owner(directory: Path) -> None:
    """Let root do nothing in a service's directory that the service could not do itself."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.setgroups([])
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)


def package_version(environment: Path) -> str:
    """Return the version of Open WebUI in a Python environment. Raises DatabaseError when there is none."""
    for found in environment.glob("lib/python3*/site-packages/open_webui-*.dist-info"):
        return found.name[len("open_webui-") : -len(".dist-info")]
    raise DatabaseError(f"{environment} holds no Open WebUI; run the role again")


def known_revisions(environment: Path) -> frozenset[str]:
    """Return the migrations that the package knows. Raises DatabaseError when it has none."""
    files = environment.glob("lib/python3*/site-packages/open_webui/migrations/versions/*.py")
    found = {match[1] for path in files if (match := _REVISION.search(path.read_text(encoding="utf-8")))}
    if not found:
        raise DatabaseError(f"{environment} holds no migrations of Open WebUI, so nobody can tell what it can read")
    return frozenset(found)


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


def database_revisions(path: Path) -> frozenset[str]:
    """Return the migrations that the database stands at; empty for one that Open WebUI never finished making."""
    with opened(path) as database:
        named = database.execute("SELECT 1 FROM sqlite_master WHERE type='table' AND name='alembic_version'").fetchone()
        if not named:
            return frozenset()
        return frozenset(str(row[0]) for row in database.execute("SELECT version_num FROM alembic_version"))


def copy_database(source: Path, target: Path) -> None:
    """Copy with SQLite's own backup, which is right also while the page writes; the target changes in one step.

    An existing target keeps its owner and mode; a new one only its owner reads.
    """
    if not target.exists():
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with opened(source) as here, opened(target) as there:
        here.backup(there)


def recorded_version(data_dir: Path) -> str:
    """Return the version that used the database last, as far as we know; 'unknown' for an adopted one."""
    return str(read_record(data_dir).get("version") or "unknown")


def read_record(data_dir: Path) -> dict[str, object]:
    """Return what we noted about this data directory."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((data_dir / RECORD).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def note(data_dir: Path, **values: object) -> None:
    """Note values beside those that are there, in one step."""
    new = data_dir / f".{RECORD}.new"
    text = json.dumps({**read_record(data_dir), **values}, indent=2, sort_keys=True) + "\n"
    new.write_text(text, encoding="utf-8")
    new.replace(data_dir / RECORD)


def backups(data_dir: Path) -> list[Path]:
    """Return the copies, the newest last."""
    return sorted((data_dir / BACKUPS).glob("webui-*.db"), key=lambda path: (path.stat().st_mtime, path.name))


def upgrade_problem(data_dir: Path, environment: Path) -> str:
    """Say why the package in `environment` must not be started on this database; '' when it may."""
    unknown = database_revisions(data_dir / DATABASE) - known_revisions(environment)
    if not unknown:
        return ""
    copies = ", ".join(path.name for path in backups(data_dir)) or "none"
    return (
        f"{data_dir / DATABASE} was used by a newer Open WebUI (its migration {', '.join(sorted(unknown))} is unknown "
        f"to {package_version(environment)}), and databases do not go back. Ask for that newer version, or put a copy "
        f"back: {copies} in {data_dir / BACKUPS}."
    )


def back_up(data_dir: Path, environment: Path, keep: int) -> Path:
    """Copy the database before another version gets it, note that version, and return the copy.

    Of older copies `keep` - 1 stay.
    """
    folder = data_dir / BACKUPS
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    made = folder / f"webui-{recorded_version(data_dir)}-{stamp}.db"
    part = folder / f".{made.name}.part"
    part.unlink(missing_ok=True)
    copy_database(data_dir / DATABASE, part)
    part.replace(made)
    note(data_dir, version=package_version(environment))
    for old in backups(data_dir)[:-keep]:
        old.unlink()
    return made


def put_back(data_dir: Path, name: str) -> Path:
    """Put a copy's content back into the database, and note its version. Raises DatabaseError for an unknown copy."""
    copies = {path.name: path for path in backups(data_dir)}
    if name not in copies:
        known = ", ".join(copies) or "none"
        raise DatabaseError(f"{data_dir / BACKUPS} has no copy {name!r}; there are: {known}")
    copy_database(copies[name], data_dir / DATABASE)
    note(data_dir, version=name.removeprefix("webui-").rpartition("-")[0])
    return copies[name]
