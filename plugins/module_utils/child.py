# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one long child process that ends when we end, with its output in a file. (outside)"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
END_WITHIN_S = 10.0  # after SIGTERM, before SIGKILL


def run_child(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    working_dir: Path,
    on_tick: Callable[[], None] = lambda: None,
    tick_s: float = 0.25,
    keep_open: Sequence[int] = (),
) -> int:
    """Run `argv` to its end and return its exit status (negative: the signal that ended it).

    Its stdout and stderr go to the file `log`. `on_tick` is called about every `tick_s` seconds. File descriptors in
    `keep_open` stay open in the child, so that a lock held through them outlives us until the child is gone too.
    When we are killed, the kernel sends the child SIGTERM; when we raise, it is terminated before the error goes on.
    Raises FileNotFoundError or PermissionError when the program cannot be started.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent went away between fork and prctl
            os._exit(1)

    with log.open("wb") as output:
        child = subprocess.Popen(
            list(argv),
            env=dict(environment),
            cwd=working_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(keep_open),
            preexec_fn=die_with_parent,  # noqa: PLW1509 (single-threaded here; only a prctl runs before exec)
            start_new_session=True,
        )
        try:
            while not _ended(child, tick_s):
                on_tick()
        finally:
            if child.poll() is None:
                child.terminate()
                if not _ended(child, END_WITHIN_S):
                    child.kill()
                    child.wait()
        return child.wait()


def _ended(child: subprocess.Popen[bytes], within_s: float) -> bool:
    try:
        child.wait(timeout=within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def log_tail(log: Path, lines: int = 12, secrets: Sequence[str] = ()) -> str:
    """The last non-empty lines of a log file, with every secret replaced by '***'; "" when there is no log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    kept = [line.rstrip() for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:])
