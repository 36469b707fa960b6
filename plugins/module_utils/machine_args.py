# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments that say where a machine is looked at; documented by the fragments `nvml` and `trees`. (pure)"""

from __future__ import annotations

from typing import Any

NVML_PATH: dict[str, dict[str, Any]] = {"nvml_path": {"type": "str", "default": ""}}
TREES: dict[str, dict[str, Any]] = {
    "sysfs_root": {"type": "path", "default": "/sys"},
    "proc_root": {"type": "path", "default": "/proc"},
}
