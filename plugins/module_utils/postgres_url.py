# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The URL of a PostgreSQL database, password and all, and what to say of it without the password. (pure)"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

SCHEME = "postgresql+psycopg"
"""Names the driver that Open WebUI brings, psycopg 3; without a driver SQLAlchemy asks for psycopg2."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
NAME_WORDS = "a database's name of letters, digits, '_', '.' and '-'"


@dataclass(frozen=True)
class Server:
    """Where the database is and who uses it."""

    host: str
    port: int
    name: str
    user: str
    password: str = field(default="", repr=False)

    @property
    def in_words(self) -> str:
        """All but the password."""
        return f"PostgreSQL database {self.name} at {self.host} port {self.port} as user {self.user}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which libpq and its programs find it (libpq-envars)."""
        named = {"PGHOST": self.host, "PGPORT": str(self.port), "PGDATABASE": self.name, "PGUSER": self.user}
        return {**named, "PGPASSWORD": self.password} if self.password else named


def database_url(host: str, port: int, name: str, user: str, password: str = "") -> str:
    """Return the URL that gives exactly these to SQLAlchemy, libpq and urllib; '' for the password leaves it out.

    Every byte of user and password is percent-encoded: Open WebUI 0.12 takes a URL with 'sqlite' anywhere in it for one
    of SQLite, and the files that carry the URL have rules of their own for quotes, blanks and '#'. The name of the
    database stands as it is, since SQLAlchemy, unlike libpq, does not decode it. Raises ValueError, without its text,
    for what cannot be carried so, or what PostgreSQL cannot have.
    """
    for what, text in (("user", user), ("password", password)):
        if "\0" in text or any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
            raise ValueError(f"the {what} of the PostgreSQL database has a character that PostgreSQL cannot take")
    for what, text in (("host", host), ("name", name), ("user", user)):
        if not text:
            raise ValueError(f"the {what} of the PostgreSQL database is missing")
    if not NAME.fullmatch(name) or "sqlite" in name + host:
        raise ValueError(
            f"the PostgreSQL database {name} at {host}: needed: {NAME_WORDS}, and neither with 'sqlite' in it"
        )
    secret = f":{_encoded(password)}" if password else ""
    place = f"[{host}]" if ":" in host else host
    return f"{SCHEME}://{_encoded(user)}{secret}@{place}:{port}/{name}"


def server_of(url: str) -> Server:
    """Return what a URL of `database_url` says. Raises ValueError, without its text, for another one."""
    parts = urlsplit(url)
    if parts.scheme.partition("+")[0] not in {"postgresql", "postgres"} or not parts.hostname:
        raise ValueError("DATABASE_URL is no URL of a PostgreSQL database")
    return Server(
        host=parts.hostname,
        port=parts.port or 5432,
        name=parts.path.removeprefix("/"),
        user=unquote(parts.username or "", errors="strict"),
        password=unquote(parts.password or "", errors="strict"),
    )


def _encoded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())
