# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check configurations in the background and say meanwhile that it works. (glue)"""

from __future__ import annotations

from types import MappingProxyType

from ansible_collections.gpurig.llm.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """The module engine_config with progress lines."""

    module = "gpurig.llm.engine_config"
    foresee = MappingProxyType({"look_only": True})
