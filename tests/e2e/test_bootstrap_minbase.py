# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The first start on a bare Debian: what is missing is named with its remedy, and the remedy is all that it takes.

Debian 13 has a Python that is new enough. Debian 12 has not, so uv fetches one, here from a local archive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from ansible_collections.gpurig.llm.tests.hosts import images, minbase

CHECKOUT = "/home/owner/my rig"


@pytest.fixture(scope="module")
def trixie() -> Iterator[minbase.Host]:
    """A host with Python, without its venv module."""
    if reason := minbase.why_not():
        pytest.skip(reason)
    with minbase.Host("trixie") as host:
        host.copy_checkout(CHECKOUT)
        yield host


@pytest.fixture(scope="module")
def bookworm() -> Iterator[minbase.Host]:
    """A host whose Python is too old, and an archive of a newer one."""
    if reason := minbase.why_not():
        pytest.skip(reason)
    folder = images.python_archive()
    if folder is None:
        pytest.skip("needs patchelf and a Python 3.12 in pyenv, to pack it as the one that uv fetches")
    packages = ("ca-certificates", "git", "python3", "python3-venv")
    downloads = {"UV_PYTHON_DOWNLOADS_JSON_URL": f"{images.PYTHON_MOUNT}/downloads.json"}
    with minbase.Host("bookworm", packages, {str(folder): images.PYTHON_MOUNT}, downloads) as host:
        host.copy_checkout(CHECKOUT)
        yield host


def test_debian_13_from_bare_python_to_ansible(trixie: minbase.Host) -> None:
    first = trixie.run(["./rig", "play", "--version"], user=minbase.OWNER, cwd=CHECKOUT)
    assert first.returncode == 3, first.stderr
    assert "Remedy: apt install python3-venv" in first.stderr
    assert trixie.run(["test", "-e", f"{CHECKOUT}/.venv"]).returncode == 1, "nothing may be left half done"

    trixie.install("python3-venv")
    second = trixie.run(["./rig", "play", "--version"], user=minbase.OWNER, cwd=CHECKOUT)
    assert second.returncode == 0, second.stderr
    assert "building the environment" in second.stderr
    assert f"config file = {CHECKOUT}/ansible.cfg" in second.stdout

    started = time.monotonic()
    third = trixie.run([f"{CHECKOUT}/rig", "play", "--version"])
    assert (third.returncode, third.stderr) == (0, ""), "root uses what the owner built"
    assert time.monotonic() - started < 20


def test_debian_13_leaves_nothing_outside(trixie: minbase.Host) -> None:
    if trixie.run(["test", "-e", f"{CHECKOUT}/.venv"]).returncode:
        pytest.fail("the test before this one builds the environment")
    found = trixie.check(
        ["find", "/home/owner", "/root", "/opt", "/usr/local", "-newer", "/etc/hostname", "-type", "f"]
    )
    strange = [line for line in found.splitlines() if not line.startswith((CHECKOUT, "/home/owner/.cache/"))]
    assert not strange, strange


def test_debian_12_without_a_download_says_what_to_do(bookworm: minbase.Host) -> None:
    nowhere = {"UV_PYTHON_DOWNLOADS_JSON_URL": "/nowhere/downloads.json"}
    answer = bookworm.run(["./rig", "up"], user=minbase.OWNER, cwd=CHECKOUT, env=nowhere)
    assert answer.returncode == 3, answer.stderr
    assert "Remedy: put a Python 3.12, 3.13 or 3.14 on PATH" in answer.stderr


def test_debian_12_gets_a_python_from_uv(bookworm: minbase.Host) -> None:
    assert "3.11" in bookworm.check(["python3", "--version"])
    answer = bookworm.run(["./rig", "play", "--version"], user=minbase.OWNER, cwd=CHECKOUT)
    assert answer.returncode == 0, answer.stderr
    assert "no Python 3.12 to 3.14 found" in answer.stderr
    assert "python version = 3.12." in answer.stdout
    again = bookworm.run(["./rig", "play", "--version"], user=minbase.OWNER, cwd=CHECKOUT)
    assert (again.returncode, again.stderr) == (0, "")


def test_debian_13_serves_a_model_from_the_readmes_command(trixie: minbase.Host) -> None:
    if trixie.run(["test", "-e", f"{CHECKOUT}/.venv"]).returncode:
        pytest.fail("the first test of this file builds the environment")
    first = trixie.run(["./rig", "up"], user=minbase.OWNER, cwd=CHECKOUT)
    assert first.returncode == 0, first.stdout[-6000:] + first.stderr
    assert "downloading about 93 MB" in first.stdout
    assert "Paris" in first.stdout[first.stdout.index("first line of the answer") :]
    again = trixie.run(["./rig", "up"], user=minbase.OWNER, cwd=CHECKOUT)
    assert again.returncode == 0, again.stdout[-6000:] + again.stderr
    assert "changed=0" in again.stdout
    status = trixie.run([f"{CHECKOUT}/rig", "status"], user=minbase.OWNER, cwd="/")
    assert "running" in status.stdout, status.stdout + status.stderr
    log = trixie.run([f"{CHECKOUT}/rig", "logs", "chat", "-n", "200"], user=minbase.OWNER, cwd="/")
    assert "llama_server: chat answers on http://127.0.0.1:8000" in log.stdout, log.stdout + log.stderr
    removed = trixie.run([f"{CHECKOUT}/rig", "uninstall", "--yes"], user=minbase.OWNER, cwd="/")
    assert removed.returncode == 0, removed.stdout + removed.stderr
    kept = trixie.check(["ls", "/home/owner/.local/share/gpurig"])
    assert kept.split() == ["models"]
