# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a slow module in the background of the host and say meanwhile how far it is. (glue)"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

LONGEST_S = 24 * 3600
FIRST_POLL_S = 0.5
LONGEST_POLL_S = 2.0
SAY_EVERY_S = 8.0

display = Display()


def megabytes(size_bytes: int) -> str:
    """Return the size for a person: 93 MB, 3.4 MB, 0.4 MB."""
    return f"{size_bytes / 1e6:.{0 if size_bytes >= 1e7 else 1}f} MB"


class ProgressAction(ActionBase):
    """Ask the module in check mode first; only when it has work to do, let it work in the background and report.

    A module cannot print while it works. The module's check mode result may say `download_bytes`, which is announced
    before the work starts, and may name a `progress_file` on the host, whose last line is shown meanwhile. A second
    run, which has nothing to do, costs one ordinary module call.
    """

    module = ""
    foresee: Mapping[str, Any] = MappingProxyType({})
    """What the first call, in check mode, gets beside the task's arguments."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        args = dict(self._task.args)
        if self._task.check_mode:
            return self._execute_module(self.module, args, task_vars=task_vars)
        plan = self._checked(args, task_vars)
        if plan.get("failed") or not plan.get("changed"):
            return plan
        progress_file, download_bytes = str(plan.get("progress_file") or ""), int(plan.get("download_bytes") or 0)
        return self._in_background(args, task_vars or {}, progress_file, download_bytes)

    def _checked(self, args: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        before = self._task.check_mode
        self._task.check_mode = True
        try:
            return self._execute_module(self.module, {**args, **self.foresee}, task_vars=task_vars)
        finally:
            self._task.check_mode = before

    def _in_background(
        self, args: dict[str, Any], task_vars: dict[str, Any], progress_file: str, download_bytes: int
    ) -> dict[str, Any]:
        label = f"[{task_vars.get('inventory_hostname', '')}] {args.get('name') or self.module}"
        if download_bytes:
            display.display(f"  {label}: downloading about {megabytes(download_bytes)}")
        before = self._task.async_val
        self._task.async_val = LONGEST_S
        try:
            started = self._execute_module(self.module, args, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = before
        if "ansible_job_id" not in started:
            return started
        # Not what `~` is to Ansible: it takes the passwd entry's home, the job took the environment's.
        job_dir = str(PurePosixPath(started["results_file"]).parent)
        job = {"jid": started["ansible_job_id"], "_async_dir": job_dir}
        began = said = time.monotonic()
        poll_s = FIRST_POLL_S
        while True:
            time.sleep(poll_s)
            poll_s = min(LONGEST_POLL_S, poll_s * 1.5)
            result = self._execute_module("ansible.legacy.async_status", job, task_vars=task_vars)
            if result.get("finished") or ("finished" not in result and result.get("failed")):
                break
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                seen = self._last_line(progress_file, task_vars)
                display.display(f"  {label}: {seen or 'at work'} ({int(said - began)} s)")
        self._execute_module("ansible.legacy.async_status", {**job, "mode": "cleanup"}, task_vars=task_vars)
        for key in ("ansible_job_id", "started", "finished", "results_file"):
            result.pop(key, None)
        return result

    def _last_line(self, path: str, task_vars: dict[str, Any]) -> str:
        if not path:
            return ""
        got = self._execute_module("ansible.legacy.slurp", {"src": path}, task_vars=task_vars)
        text = base64.b64decode(got.get("content", "")).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1][:160] if lines else ""
