# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every secret that was generated on a host is where it belongs, and nowhere else: neither on the host nor in what the
runs of Ansible told about it at -vvv with diffs (callbacks/told.py).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.molecule.shared.rig import HOST_JSON, noted
from ansible_collections.gpurig.llm.tests.hosts import secrets_search
from testinfra.host import Host

SOURCE = Path(secrets_search.__file__)
# What only -vvv and diffs show.
VERBOSE = ("TASK [", "invocation:", "--- before", " EXEC")


def told() -> list[Path]:
    """The files that the runs of this scenario wrote."""
    return sorted(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]).glob("told*.log"))


@pytest.fixture(scope="module")
def searched(host: Host) -> dict[str, object]:
    """What the search on the host found."""
    described = host.check_output("cat %s %s 2> /dev/null || true", *HOST_JSON)
    paths = json.loads(described)["paths"] if described else {}
    return dict(json.loads(host.check_output("python3 -c %s %s", SOURCE.read_text("utf-8"), json.dumps(paths))))


def test_no_secret_is_where_it_does_not_belong(host: Host, searched: dict[str, object]) -> None:
    """But a value that was planted now is found in every place where it was put, so that the rest proves something."""
    values, found, put = searched["values"], searched["found"], searched["planted"]
    assert isinstance(values, dict)
    assert isinstance(found, list)
    assert isinstance(put, list)
    noted(host, "secrets", [f"{len(values)} values searched in {searched['searched']} files, logs and command lines"])
    assert set(put) - set(found) == set()
    assert searched["wrong"] == []
    assert searched["modes"] == []
    assert bool(searched["layers"]) >= bool(searched["images"]), "Docker has images, and no layer of them was searched"


def test_ansible_told_no_secret(host: Host, searched: dict[str, object]) -> None:
    """In no run of this scenario so far; and all of it was written as -vvv and --diff say it."""
    values = searched["values"]
    assert isinstance(values, dict)
    (path, log) = told()
    texts = [path.read_text("utf-8"), log.read_text("utf-8")]
    assert [word for word in VERBOSE if not any(word in text for text in texts)] == []
    name = host.backend.get_hostname()
    assert all(name in text for text in texts)
    assert leaks({"planted-value": "here"}, [*texts, "x: planted-value"]) == ["here"]
    assert leaks(values, texts) == []


def leaks(values: dict[str, str], texts: list[str]) -> list[str]:
    """The files whose secrets stand in one of the texts."""
    return sorted({where for value, where in values.items() if any(value in text for text in texts)})
