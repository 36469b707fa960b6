# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sandbox with the page, and what its tests look for: an earlier release, chats, secrets in wrong places."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpurig.llm.plugins.module_utils.webui_api import Page, sign_in
from ansible_collections.gpurig.llm.scripts import bump
from ansible_collections.gpurig.llm.tests.e2e.sandbox import Sandbox
from ansible_collections.gpurig.llm.tests.hub_sim import clients

ADMIN = "admin@rig.example.org"
EARLIER = "0.12.0"  # the last release with fewer migrations than the one that is locked
EARLIER_SHA256 = "27da8c9b8228bf72b12ac3fe18ac16a129fa636cbd6352d5bdb6396e1e7f97fd"  # wheel, from the package index
PRESENT = next(
    line.split("==")[1].split()[0]
    for line in (bump.ROOT / "roles/open_webui/files/webui.lock").read_text(encoding="utf-8").splitlines()
    if line.startswith("open-webui==")
)
SECRET_BYTES = 20  # shorter values are no secrets that we generate


@dataclass
class PageRig:
    """A sandbox and its page."""

    box: Sandbox
    port: int
    earlier: Path  # the lock of an earlier release

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        return self.box.root / "open_webui"

    @property
    def secrets_file(self) -> Path:
        return self.box.root / "etc" / "secrets" / "open-webui.env"

    def secret(self, name: str) -> str:
        lines = self.secrets_file.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)[name]

    def password(self) -> str:
        return self.secret("WEBUI_ADMIN_PASSWORD")

    def secrets(self) -> dict[str, str]:
        """Every secret that the rig generated, by file and variable."""
        found = {}
        for path in sorted(self.secrets_file.parent.glob("*.env")):
            for line in path.read_text(encoding="utf-8").splitlines():
                name, _sep, value = line.partition("=")
                if len(value) >= SECRET_BYTES:
                    found[f"{path.name}:{name}"] = value
        return found

    def page(self) -> Page:
        return sign_in(self.url, ADMIN, self.password())

    def pid(self) -> int:
        return int(self.box.services()["open-webui"]["pid"])


def earlier_lock(place: Path) -> Path:
    """The lock of the earlier release, resolved like the present one and as near to it as that release allows."""
    wanted = next(lock for lock in bump.LOCKS if lock.target.endswith("webui.lock"))
    present, made, source = bump.ROOT / wanted.target, place / "earlier.lock", place / "earlier.in"
    shutil.copy(present, made)
    source.write_text(f"open-webui=={EARLIER}\n", encoding="utf-8")
    body = bump.resolve(wanted, source, made, str(clients.uv()))
    assert EARLIER_SHA256 in body
    head = [line for line in present.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    made.write_text("\n".join([*head, body]), encoding="utf-8")
    return made


def keep_a_chat(page: Page, title: str) -> None:
    page.call("POST", "/api/v1/chats/new", {"chat": {"title": title, "messages": []}})


def holding(secrets: dict[str, str], texts: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return which secrets stand in which of the texts, in words."""
    found = []
    for where, text in texts:
        found += [f"{name} in {where}" for name, value in secrets.items() if value.encode() in text]
    return found


def command_lines() -> Iterator[tuple[str, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield f"the command line of {entry.name}", (entry / "cmdline").read_bytes()


def readable_by_all(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files that others may read, not looking into folders that others may not enter."""
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        if path.is_symlink() or path.name in {"envs", "models", "uv", "python", "cache"}:
            continue
        if path.is_dir() and mode & 0o001:
            yield from readable_by_all(path)
        elif path.is_file() and mode & 0o004:
            yield str(path), path.read_bytes()
