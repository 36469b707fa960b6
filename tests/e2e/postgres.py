# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A PostgreSQL server of our own, from Debian's package, in a folder of its own and as nobody important."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.gpurig.llm.tests.e2e.sandbox import free_port

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
OWNER, OWNERS_PASSWORD = "boss", "the-password-of-the-boss"


@dataclass
class Cluster:
    """A running server on 127.0.0.1."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def ask(self, *statements: str, database: str = "postgres") -> str:
        """Have its owner run the statements; returns what they say, one row a line."""
        where = ["--host=127.0.0.1", f"--port={self.port}", f"--username={OWNER}", f"--dbname={database}"]
        done = subprocess.run(
            ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1", *where],
            input=";\n".join(statements) + ";\n",
            env={**os.environ, "PGPASSWORD": OWNERS_PASSWORD},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            return self.ask("SELECT 1") == "1"
        except subprocess.CalledProcessError:
            return False

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError("PostgreSQL did not start")
            time.sleep(0.2)

    def end(self) -> None:
        """Stop it and remove its folder."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # a fast shutdown
        self.process.wait(60)
        shutil.rmtree(self.folder)


def start() -> Cluster:
    """Make and start a server that asks everybody for a password. Nothing of it stays where that fails."""
    folder = Path(tempfile.mkdtemp(prefix="gpurig-postgres-"))
    try:
        cluster = _started(folder)
    except BaseException:
        shutil.rmtree(folder)
        raise
    try:
        cluster.wait()
    except BaseException:
        cluster.end()
        raise
    return cluster


def _started(folder: Path) -> Cluster:
    programs, port = PROGRAMS[-1].parent, free_port()
    # It refuses to run as root; Debian's package brings a user.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    as_it = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    (folder / "password").write_text(OWNERS_PASSWORD, encoding="utf-8")
    for path in (folder, folder / "password"):
        os.chown(path, account.pw_uid, account.pw_gid)
    made = [str(programs / "initdb"), f"--pgdata={folder}/data", f"--username={OWNER}", "--auth=scram-sha-256"]
    made += [f"--pwfile={folder}/password", "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8"]
    subprocess.run(made, check=True, capture_output=True, timeout=120, cwd=folder, **as_it)
    options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
    process = subprocess.Popen(
        [str(programs / "postgres"), "-D", f"{folder}/data", "-p", str(port), *(f"--{one}" for one in options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **as_it,
    )
    return Cluster(port, folder, process)
