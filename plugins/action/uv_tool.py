# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install uv in the background and say how far it is. (glue)"""

from __future__ import annotations

from ansible_collections.gpurig.llm.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """The module uv_tool with progress lines."""

    module = "gpurig.llm.uv_tool"
