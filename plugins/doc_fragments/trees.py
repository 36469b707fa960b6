# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of every module that reads the kernel's trees; the specification is `machine_args.TREES`."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  sysfs_root:
    description: The tree that stands for C(/sys).
    type: path
    default: /sys
  proc_root:
    description: The tree that stands for C(/proc).
    type: path
    default: /proc
"""
