# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who reaches the published port after a boot: the same as before, see boot.yml."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.publish.tests.test_publish import (
    name,
    test_an_address_that_was_not_named_is_kept_out,
    test_the_page_and_nothing_else_is_reached_from_here,
)

__all__ = [
    "name",
    "test_an_address_that_was_not_named_is_kept_out",
    "test_the_page_and_nothing_else_is_reached_from_here",
]
