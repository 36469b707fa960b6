# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open WebUI's database where it is PostgreSQL. (outside)

It is looked into by the psycopg that Open WebUI brings, in Open WebUI's own Python, so that a host needs nothing more;
only copies, and a page that is in a container, need PostgreSQL's own programs. The password goes by environment, never
on a command line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .postgres_url import Server, server_of
from .webui_database import DatabaseError, User, described

CLIENT_PACKAGE = "postgresql-client"
DEBIANS_PROGRAMS = Path("/usr/lib/postgresql")
"""One folder for each major version; what is on PATH chooses by rules of its own."""

_LOOK_S, _COPY_S = 60.0, 1800.0
_ERROR_SHOWN = 400

_LOOK = """
import json, sys
import psycopg
def rows(db, table, columns):
    there = db.execute("SELECT to_regclass(quote_ident(%s))", [table]).fetchone()[0]
    return db.execute(f'SELECT {columns} FROM "{table}"').fetchall() if there else []
try:
    with psycopg.connect(connect_timeout=10, autocommit=True) as db:
        count = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()"
        found = {
            "server": db.info.server_version,
            "tables": db.execute(count).fetchone()[0],
            "creates": db.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')").fetchone()[0],
            "revisions": [row[0] for row in rows(db, "alembic_version", "version_num")],
            "users": rows(db, "user", "email, role"),
        }
except psycopg.Error as error:
    found = {"error": " ".join(str(error).split())}
print(json.dumps(found))
"""

# The same with psql: lines of JSON that belong together. It has no way to ask a table that may not be there.
_LOOK_PSQL = r"""
SELECT to_regclass('alembic_version') IS NOT NULL AS revisions, to_regclass('"user"') IS NOT NULL AS users \gset
SELECT json_build_object('server', current_setting('server_version_num')::int, 'revisions', '[]'::json,
  'users', '[]'::json, 'creates', has_schema_privilege(current_schema(), 'CREATE'),
  'tables', (SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()));
\if :revisions
SELECT json_build_object('revisions', coalesce(json_agg(version_num), '[]'::json)) FROM alembic_version;
\endif
\if :users
SELECT json_build_object('users', coalesce(json_agg(json_build_array(email, role)), '[]'::json)) FROM "user";
\endif
"""

# Of the schema in which the page's tables are: those that a newer version added are in no copy.
_EMPTY = """
SET client_min_messages = warning;
DO $$
DECLARE name text;
BEGIN
  FOR name IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = current_schema() LOOP
    EXECUTE 'DROP TABLE ' || name || ' CASCADE';
  END LOOP;
END $$;
"""


@dataclass(frozen=True)
class Postgres:
    """The database of `server`; `environment` is a Python environment with Open WebUI, or what an image said."""

    server: Server
    environment: Path

    @property
    def in_words(self) -> str:
        """All but the password."""
        return self.server.in_words

    @property
    def identity(self) -> str:
        """The same."""
        return self.in_words

    @property
    def suffix(self) -> str:
        """Of pg_dump's custom format."""
        return ".dump"

    def exists(self) -> bool:
        """Whether it has tables. Raises DatabaseError when they are not Open WebUI's, or could not be made."""
        found = self._look()
        if found["tables"] and not found["revisions"]:
            raise DatabaseError(
                f"{self.in_words} holds {found['tables']} tables that are not Open WebUI's. "
                "Give the page a database of its own (rig_webui.postgres.name)."
            )
        if not found["tables"] and not found["creates"]:
            raise DatabaseError(
                f"{self.in_words} is empty, and that user may make no tables in it. Let the user own the database, or "
                "GRANT CREATE on its schema."
            )
        return bool(found["tables"])

    def revisions(self) -> frozenset[str]:
        """See Store."""
        return frozenset(self._look()["revisions"])

    def users(self) -> list[User]:
        """See Store."""
        return [User(*row) for row in self._look()["users"]]

    def copy_to(self, target: Path) -> None:
        """With pg_dump, which sees one moment also while the page writes."""
        program = client("pg_dump", self._look()["server"] // 10000)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._run([program, "--format=custom", "--no-owner", "--no-privileges", "--no-password", f"--file={target}"])

    def take_back(self, source: Path) -> None:
        """In one transaction: every table goes, then the copy comes."""
        major = self._look()["server"] // 10000
        program, psql = client("pg_restore", major), client("psql", major)
        script = source.with_name(f".{source.name}.sql")
        script.unlink(missing_ok=True)
        os.close(os.open(script, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            self._run([program, "--no-owner", "--no-privileges", "--no-comments", f"--file={script}", str(source)])
            once = ["--no-psqlrc", "--quiet", "--no-password", "--single-transaction", "--set=ON_ERROR_STOP=1"]
            self._run([psql, *once, f"--command={_EMPTY}", f"--file={script}"])
        finally:
            script.unlink(missing_ok=True)

    def _look(self) -> dict[str, Any]:
        if described(self.environment):
            once = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1", "--tuples-only", "--no-align"]
            return self._seen([client("psql"), *once, "--file=-"], _LOOK_PSQL)
        return self._seen([str(self.environment / "bin" / "python"), "-I", "-c", _LOOK])

    def _seen(self, argv: list[str], script: str = "") -> dict[str, Any]:
        try:
            done = subprocess.run(
                argv,
                env=self._environment(),
                input=script,
                capture_output=True,
                text=True,
                check=False,
                timeout=_LOOK_S,
            )
        except OSError as error:
            raise DatabaseError(f"{self.environment}: {error.strerror}; run the role again") from error
        except subprocess.TimeoutExpired:
            raise DatabaseError(f"{self.in_words} did not answer within {_LOOK_S:.0f} s") from None
        found: dict[str, Any] = {}
        try:
            for line in done.stdout.splitlines():
                found.update(json.loads(line))
        except ValueError:
            found = {}
        said = str(found.get("error") or (" ".join(done.stderr.split()) if script and done.returncode else ""))
        if said:
            raise DatabaseError(f"{self.in_words}: {self._short(said)}. {_remedy(said)}")
        if "tables" not in found:
            raise DatabaseError(f"{self.environment} cannot look into PostgreSQL: {self._short(done.stderr)}")
        return found

    def _run(self, argv: list[str]) -> None:
        try:
            done = subprocess.run(
                argv,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_COPY_S,
            )
        except subprocess.TimeoutExpired:
            raise DatabaseError(f"{self.in_words}: {argv[0]} did not end within {_COPY_S:.0f} s") from None
        if done.returncode:
            raise DatabaseError(f"{self.in_words}: {argv[0]} failed and changed nothing: {self._short(done.stderr)}")

    def _environment(self) -> dict[str, str]:
        path = os.environ.get("PATH", os.defpath)
        return {"PATH": path, "LC_ALL": "C.UTF-8", "PGCONNECT_TIMEOUT": "10", **self.server.environment}

    def _short(self, text: str) -> str:
        if self.server.password:
            text = text.replace(self.server.password, "***")
        return " ".join(text.split())[-_ERROR_SHOWN:].rstrip(".")


def store_of(url: str, environment: Path) -> Postgres:
    """Return the database of a DATABASE_URL. Raises DatabaseError."""
    try:
        return Postgres(server_of(url), environment)
    except ValueError as error:
        raise DatabaseError(f"{error}; run the role again") from None


def client(name: str, least_major: int = 0) -> str:
    """Return the oldest of PostgreSQL's programs `name` that serves a server of this version.

    An older program refuses a newer server. Raises DatabaseError.
    """
    found: dict[str, int] = {}
    for path in [*DEBIANS_PROGRAMS.glob(f"*/bin/{name}"), *filter(None, [shutil.which(name)])]:
        said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False, timeout=_LOOK_S)
        if version := re.search(r"\) (\d+)", said.stdout):
            found[str(path)] = int(version[1])
    good = [path for path, major in found.items() if major >= least_major]
    if not good:
        there = ", ".join(f"{path} is of {major}" for path, major in found.items()) or "there is none"
        raise DatabaseError(
            f"the page's database needs {name} of PostgreSQL {least_major or 9} or newer on this host, and {there}. "
            f"Install the package {CLIENT_PACKAGE} (of that version, perhaps from PostgreSQL's own repository)."
        )
    return min(good, key=lambda path: found[path])


def _remedy(said: str) -> str:
    """What helps, from the server's words; they are English unless its lc_messages is another language."""
    if "password" in said:
        return "Set open_webui_postgres_password to that user's password."
    if "does not exist" in said and "database" in said:
        return "Make the database and let the user own it; its name is rig_webui.postgres.name."
    if "does not exist" in said:
        return "Make the user; its name is rig_webui.postgres.user."
    return "See that the server runs and takes this host's connections (rig_webui.postgres.host and port)."
