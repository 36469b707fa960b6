# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the page's test images get their Python from on a machine without pyenv; the images are molecule/compose's."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.gpurig.llm.tests.hosts import images, webui_image
from ansible_collections.gpurig.llm.tests.hosts.images import HostError

# Fetches as uv 0.9 does: into a folder of its version, with a link of the minor version beside it.
UV = """#!/bin/sh
[ "$*" = "python install --quiet --no-bin --install-dir $PLACE 3.12" ] || exit 2
mkdir -p "$PLACE/cpython-3.12.7-linux/bin"
echo python > "$PLACE/cpython-3.12.7-linux/bin/python3.12"
ln -sfn cpython-3.12.7-linux "$PLACE/cpython-3.12-linux"
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    command = tmp_path / "uv"
    command.write_text(UV)
    command.chmod(0o755)
    monkeypatch.setattr(webui_image, "uv", lambda: str(command))
    monkeypatch.setattr(webui_image, "python_archive", lambda: None)
    monkeypatch.setattr(webui_image, "CACHE", tmp_path / "cache")
    monkeypatch.delenv("UV_PYTHON_INSTALL_DIR", raising=False)
    monkeypatch.setenv("PLACE", str(tmp_path / "cache/python"))
    return command


def test_uv_s_python_is_taken_where_pyenv_has_none(uv: Path, tmp_path: Path) -> None:
    target = tmp_path / "usr/local"
    target.mkdir(parents=True)
    interpreter = webui_image.put_python(target)
    assert (interpreter, interpreter.read_text()) == (target / "bin/python3.12", "python\n")
    assert (target / "bin/python3").resolve() == interpreter


def test_without_either_it_is_said_what_is_missing(uv: Path, tmp_path: Path) -> None:
    uv.write_text("#!/bin/sh\necho no network >&2; exit 1\n")
    with pytest.raises(HostError, match=r"none in pyenv .* uv could not fetch one: .*no network"):
        webui_image.put_python(tmp_path)


def test_one_release_is_made_where_two_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(done: Path, with_earlier: bool) -> None:
        assert with_earlier == done.name.endswith("-both")
        made.append(done.name)
        done.mkdir()

    monkeypatch.setattr(webui_image, "CACHE", tmp_path)
    monkeypatch.setattr(images, "CACHE", tmp_path)
    monkeypatch.setattr(webui_image, "make_folder", make)
    one = webui_image.folder(with_earlier=False)
    assert webui_image.folder(with_earlier=False) == one
    both = webui_image.folder(with_earlier=True)
    assert made == [one.name, both.name]
    assert webui_image.folder(with_earlier=False) == both, "what is there is enough for either"
