# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The URL of a PostgreSQL database: any password survives it, and no text of ours shows one."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.postgres_url import SCHEME, Server, database_url, server_of
from hypothesis import example, given
from hypothesis import strategies as st

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
ODD = "p@ss:/%#?= sqlite'\"\\ü✓;&+$ \n\t"


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", fullmatch=True).filter(lambda name: "sqlite" not in name)


@given(name=NAMES, user=TEXTS, password=TEXTS)
@example(name="webui-1.x", user="web@ui sqlite", password=ODD)
def test_any_name_and_password_survives_the_url(name: str, user: str, password: str) -> None:
    url = database_url("127.0.0.1", 5433, name, user, password)
    assert server_of(url) == Server("127.0.0.1", 5433, name, user, password)
    parts = urlsplit(url)
    found = [unquote(part or "") for part in (parts.username, parts.password)]
    assert (found, parts.path, parts.hostname, parts.port) == ([user, password], f"/{name}", "127.0.0.1", 5433)
    rest = url.removeprefix(f"{SCHEME}://").removesuffix(name)
    assert set(rest) <= set("0123456789ABCDEF%:@/."), "nothing for a shell, a file or a search for 'sqlite' to find"


@pytest.mark.parametrize("host", ["db.example.org", "::1", "10.0.0.7"])
def test_hosts(host: str) -> None:
    made = server_of(database_url(host, 5432, "webui", "webui"))
    assert (made.host, made.port, made.password) == (host, 5432, "")
    assert made.environment == {"PGHOST": host, "PGPORT": "5432", "PGDATABASE": "webui", "PGUSER": "webui"}


def test_what_is_said_holds_no_password() -> None:
    made = Server("127.0.0.1", 5432, "webui", "ui", ODD)
    for text in (repr(made), made.in_words):
        assert ODD not in text
        assert "127.0.0.1" in text
    assert made.environment["PGPASSWORD"] == ODD


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"password": "se\0cret"}, "the password of", id="nul"),
        pytest.param({"password": "se\ud800cret"}, "the password of", id="no-unicode"),
        pytest.param({"name": ""}, "the name of", id="no-name"),
        pytest.param({"name": "chats: 1%"}, "of letters, digits", id="name-that-nobody-decodes"),
        pytest.param({"name": "my-sqlite"}, "'sqlite' in it", id="name-of-sqlite"),
        pytest.param({"host": "sqlite.example.org"}, "'sqlite' in it", id="host-of-sqlite"),
    ],
)
def test_what_postgresql_cannot_have(change: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        database_url(**{"host": "h", "port": 1, "name": "n", "user": "u", "password": "p", **change})  # type: ignore[arg-type]
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:////tmp/secret.db", "secret", "postgresql:///secret"])
def test_another_url_is_refused_unsaid(url: str) -> None:
    with pytest.raises(ValueError, match="no URL of a PostgreSQL database") as caught:
        server_of(url)
    assert "secret" not in str(caught.value)
