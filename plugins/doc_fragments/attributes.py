# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The attributes every module of this collection states; a module overrides `support` and adds `details`."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Says what would change and changes nothing.
  diff_mode:
    description: Shows the difference between what is and what will be.
  idempotent:
    description: A second run with the same arguments changes nothing.
  platform:
    description: Where the module runs.
    platforms: posix
    support: full
"""
