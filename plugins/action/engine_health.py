# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask the engine_health module in short slices, and say between them how the start is going. (glue)"""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

SLICE_S = 8

display = Display()


class ActionModule(ActionBase):
    """A module cannot print while it waits; this is the one reason for an action plugin here."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        if args.get("slice_s") or self._task.check_mode:
            return self._execute_module(module_args=args, task_vars=task_vars)
        timeout_s = int(args.get("timeout_s") or 600)
        host = (task_vars or {}).get("inventory_hostname", "")
        began = time.monotonic()
        while True:
            left_s = timeout_s - (time.monotonic() - began)
            last = left_s <= SLICE_S
            part = {**args, "timeout_s": max(1, int(left_s))} if last else {**args, "slice_s": SLICE_S}
            result = self._execute_module(module_args=part, task_vars=task_vars)
            if last or result.get("failed") or result.get("ready"):
                return result
            args["first_pid"] = args.get("first_pid") or result.get("pid", 0)
            args.setdefault("first_kills", result.get("kills", -1))
            passed_s = int(time.monotonic() - began)
            display.display(f"  [{host}] {args['name']}: {result.get('phase', '')} ({passed_s} s of {timeout_s} s)")
