# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes what ansible-playbook would print at -vvv to a file, for the search for secrets; not to the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ansible.plugins.callback.default import CallbackModule as Default

DOCUMENTATION = """
name: told
type: notification
short_description: What -vvv prints, in the file that GPURIG_TOLD names
description: Appends to it.
extends_documentation_fragment: [default_callback, result_format_callback]
requirements: [to be enabled]
"""


class IntoFile:
    """A display at verbosity 3."""

    verbosity = 3

    def display(self, msg: str, *_arguments: Any, **_options: Any) -> None:
        """Write what would be printed."""
        with Path(os.environ["GPURIG_TOLD"]).open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{msg}\n")

    banner = display
    warning = display
    error = display

    def __getattr__(self, _name: str) -> Any:
        """Colours, error summaries and the like are of no interest."""
        return lambda *_arguments, **_options: None


class CallbackModule(Default):
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "told"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._display = IntoFile()
