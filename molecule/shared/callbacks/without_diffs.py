# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The terminal's output without the diffs, which every run makes for the search for secrets (told.py)."""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: without_diffs
type: stdout
short_description: The default output without diffs
description: As default.
extends_documentation_fragment: [default_callback, result_format_callback]
requirements: [to be set as stdout]
"""


class CallbackModule(Default):
    CALLBACK_NAME = "without_diffs"

    def v2_on_file_diff(self, result: Any) -> None:
        """Leave it out."""
