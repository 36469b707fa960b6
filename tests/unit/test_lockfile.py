# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks: what is read from one, what is refused and by which line, and which Pythons a specifier takes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.lockfile import (
    SpecError,
    check_spec,
    for_uv,
    lock_id,
    matches,
    normalized,
    parse,
)

COLLECTION = Path(__file__).resolve().parents[2]
A_HASH = "sha256:" + "a" * 64
GOOD = f"six==1.17.0 --hash={A_HASH}\n"

WHOLE = f"""\
# Made by hand.
# gpurig: python=>=3.10,<3.15
# gpurig: needs_headers=true
#gpurig: download_bytes = 60000
# gpurig: environment_bytes=300000
# gpurig: platform=x86_64-manylinux_2_28

Six==1.17.0 \\
    --hash={A_HASH} \\
    --hash=sha512:{"b" * 128}
    # via something
uvicorn[standard]==0.30.0 ; python_version < '3.12' \\
    --hash={A_HASH}
uvicorn[standard]==0.31.0 ; python_version >= '3.12' --hash={A_HASH}  # the newer
ruamel_yaml==1!2.0.post1+cpu --hash {A_HASH}
"""


def test_a_whole_lock() -> None:
    lock = parse(WHOLE)
    assert lock.problems == ()
    assert lock.python == ">=3.10,<3.15"
    assert lock.needs_headers is True
    assert (lock.download_bytes, lock.environment_bytes) == (60000, 300000)
    assert (lock.platform, lock.machine) == ("x86_64-manylinux_2_28", "x86_64")
    assert lock.packages == (
        ("six", "1.17.0"),
        ("uvicorn", "0.30.0"),
        ("uvicorn", "0.31.0"),
        ("ruamel-yaml", "1!2.0.post1+cpu"),
    )
    assert lock.names == ("six", "uvicorn", "ruamel-yaml")


def test_a_lock_without_headers_asks_for_nothing() -> None:
    lock = parse(GOOD)
    assert (lock.python, lock.needs_headers, lock.download_bytes, lock.environment_bytes) == ("", False, 0, 0)
    assert (lock.platform, lock.machine, lock.problems) == ("", "", ())


REFUSED = {
    "nothing": ("", "names no package"),
    "comments": ("# six==1.0 \\\n", "names no package"),
    "unpinned": (f"six>=1.17 --hash={A_HASH}", "line 1: 'six>=1.17' is not pinned"),
    "bare": (f"\n\nsix --hash={A_HASH}", "line 3: 'six' is not pinned"),
    "wildcard": (f"six==1.* --hash={A_HASH}", "is not pinned"),
    "two bounds": (f"six==1.0,<2 --hash={A_HASH}", "is not pinned"),
    "url": (f"six @ https://example.org/six.whl --hash={A_HASH}", "is not pinned"),
    "path": (f"./six.whl --hash={A_HASH}", "is not pinned"),
    "no hash": ("six==1.17.0", "line 1: six==1.17.0 has no --hash"),
    "no hash in the middle": (f"a==1 --hash={A_HASH}\nb==1 \\\n\nc==1 --hash={A_HASH}", "line 2: b==1 has no --hash"),
    "md5": ("six==1.17.0 --hash=md5:" + "a" * 32, "six has the hash 'md5:"),
    "short hash": ("six==1.17.0 --hash=sha256:" + "a" * 63, "needed: sha256: and 64 hex digits"),
    "not hex": ("six==1.17.0 --hash=sha256:" + "g" * 64, "needed: sha256"),
    "index": (f"--index-url https://example.org\n{GOOD}", "line 1: the option --index-url"),
    "extra index": (f"--extra-index-url=https://example.org\n{GOOD}", "line 1: the option --extra-index-url does"),
    "include": (f"-r other.txt\n{GOOD}", "line 1: the option -r"),
    "editable": (f"-e .\n{GOOD}", "line 1: the option -e"),
    "other option": (f"six==1.17.0 --config-settings=a=b --hash={A_HASH}", "six==1.17.0 has an option besides --hash"),
    "twice": (GOOD + GOOD, "line 2: six is there already, in line 1"),
    "twice, one marked": (f"{GOOD}Six==1.0 ; python_version < '3' --hash={A_HASH}", "line 2: six is there already"),
    "unknown header": (f"# gpurig: pyhton=3.12\n{GOOD}", "line 1: `# gpurig: pyhton` is not known; known: python="),
    "header without a value": (f"# gpurig: python\n{GOOD}", "line 1: `# gpurig: python` is not known"),
    "header twice": (f"# gpurig: python=3.12\n# gpurig: python=3.12\n{GOOD}", "line 2: python is given twice"),
    "empty python": (f"# gpurig: python=\n{GOOD}", "line 1: python is empty"),
    "bad python": (f"# gpurig: python=~=3.12\n{GOOD}", "line 1: the Python version '~=3.12' cannot be read"),
    "bad flag": (f"# gpurig: needs_headers=yes\n{GOOD}", "needs_headers is 'yes'; needed: true or false"),
    "bad bytes": (f"# gpurig: download_bytes=4 GB\n{GOOD}", "download_bytes is '4 GB'; needed: a whole number"),
    "negative bytes": (f"# gpurig: environment_bytes=-1\n{GOOD}", "environment_bytes is '-1'"),
    "bad platform": (f"# gpurig: platform=linux\n{GOOD}", "platform is 'linux'; needed: a name of uv's"),
}


@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_a_lock_is_refused_by_line(text: str, problem: str) -> None:
    problems = parse(text).problems
    assert len(problems) == 1, problems
    assert problem in problems[0]


def test_all_problems_are_reported_together() -> None:
    problems = parse("# gpurig: x=1\nsix\nb==1\n-r c\n").problems
    assert [problem.split(":")[0] for problem in problems] == ["line 1", "line 2", "line 3", "line 4"]


@pytest.mark.parametrize("path", sorted(COLLECTION.glob("r*/**/*.lock")), ids=lambda path: path.name)
def test_the_locks_of_this_collection_are_accepted(path: Path) -> None:
    lock = parse(path.read_text(encoding="utf-8"))
    assert lock.problems == ()
    assert lock.packages


def test_uvs_own_lock_names_uv_alone() -> None:
    text = (COLLECTION / "roles/python_uv/files/uv.lock").read_text(encoding="utf-8")
    assert parse(text).names == ("uv",)
    assert parse(text).download_bytes > 0
    assert "Source of version and hashes: https://pypi.org/" in text


def test_the_id_is_the_start_of_the_texts_sha256() -> None:
    assert lock_id(GOOD) == hashlib.sha256(GOOD.encode()).hexdigest()[:16]
    assert lock_id(GOOD) != lock_id(GOOD + "\n")


def test_names_are_compared_as_pip_does() -> None:
    assert normalized("Ruamel._-YAML") == "ruamel-yaml"


TAKEN = [
    ("", (3, 12, 1), True),
    ("3", (3, 12, 1), True),
    ("3", (2, 7, 18), False),
    ("3.12", (3, 12, 1), True),
    ("3.12", (3, 13, 0), False),
    ("3.1", (3, 12, 1), False),
    ("3.12.1", (3, 12, 1), True),
    ("3.12.1", (3, 12, 2), False),
    ("==3.12", (3, 12, 1), True),
    ("==3.12.*", (3, 12, 9), True),
    ("== 3.12.1", (3, 12, 1), True),
    ("!=3.12", (3, 12, 1), False),
    ("!=3.12.*", (3, 13, 0), True),
    (">=3.10,<3.15", (3, 10, 0), True),
    (">=3.10, <3.15", (3, 14, 9), True),
    (">=3.10,<3.15", (3, 15, 0), False),
    (">=3.10,<3.15", (3, 9, 18), False),
    (">=3.10.5", (3, 10, 4), False),
    (">3.11", (3, 11, 9), False),
    (">3.11", (3, 12, 0), True),
    ("<=3.12", (3, 12, 9), True),
    ("<=3.12", (3, 13, 0), False),
]


@pytest.mark.parametrize(("spec", "version", "taken"), TAKEN)
def test_which_pythons_a_specifier_takes(spec: str, version: tuple[int, int, int], taken: bool) -> None:
    assert matches(version, spec) is taken


@pytest.mark.parametrize("spec", ["~=3.12", "three", ">=3.10,", "3.12.1.2", ">=3.12.*", "3.13t", "=>3.10", ">= 3 . 1"])
def test_an_unreadable_specifier_is_named(spec: str) -> None:
    with pytest.raises(SpecError, match=r"cannot be read at .*needed: a version"):
        check_spec(spec)
    with pytest.raises(SpecError):
        for_uv(spec)


UV_WORDS = {
    "": "",
    "3.12": "3.12",
    "==3.12": "3.12",
    "==3.12.*": "3.12",
    "3.12.1": "3.12.1",
    ">=3.10,<3.15": ">=3.10,<3.15",
    ">=3.10, ==3.12": ">=3.10,==3.12.*",
    "<=3.12,>3.10": "<3.13,>=3.11",
    "<=3.12.4,!=3.11": "<=3.12.4,!=3.11.*",
}


@pytest.mark.parametrize(("spec", "words"), UV_WORDS.items())
def test_a_specifier_in_uvs_words(spec: str, words: str) -> None:
    assert for_uv(spec) == words
