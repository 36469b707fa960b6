# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""scripts/bump.py: which requirements of a universal lock are left out."""

from __future__ import annotations

from ansible_collections.gpurig.llm.scripts import bump

LOCK = """# Made by scripts/bump.py
a==1.0 \\
    --hash=sha256:01
b==1.0 ; sys_platform == 'never' \\
    --hash=sha256:02 \\
    --hash=sha256:03
b-more==2.0 ; python_full_version < '3.12' and sys_platform == 'never' \\
    --hash=sha256:04
c==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:05
"""


def test_what_is_for_no_platform_is_left_out_with_its_hashes() -> None:
    assert bump.without_never(LOCK) == LOCK[: LOCK.index("b==")] + LOCK[LOCK.index("c==") :]


def test_the_page_has_nothing_that_it_is_to_go_without() -> None:
    lock = (bump.ROOT / bump.PAGE_LOCK).read_text(encoding="utf-8")
    names = {line.partition("==")[0] for line in lock.splitlines() if "==" in line and line[0].isalnum()}
    assert "open-webui" in names
    assert names.isdisjoint(bump.PAGE_WITHOUT)
