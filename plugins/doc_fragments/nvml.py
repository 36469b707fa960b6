# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option of every module that asks NVML; the specification is module_utils' `machine_args.NVML_PATH`."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  nvml_path:
    description:
      - Where to look before the usual places, separated by C(:). Each place is a directory (or the root of a virtual
        environment) with C(pynvml.py), a directory with C(libnvidia-ml.so.1), or that library itself.
      - Empty means what Python and the system's loader find.
    type: str
    default: ''
"""
