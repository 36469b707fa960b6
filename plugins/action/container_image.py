# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pull a container image in the background and say how far it is. (glue)"""

from __future__ import annotations

from ansible_collections.gpurig.llm.plugins.plugin_utils.progress import ProgressAction


class ActionModule(ProgressAction):
    """The module container_image with progress lines."""

    module = "gpurig.llm.container_image"
