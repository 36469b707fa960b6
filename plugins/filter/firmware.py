# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the role firmware: expectations held against what the module firmware_info read. (glue)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.firmware_verdicts import table, verdicts


def firmware_verdicts(
    report: Mapping[str, Any],
    expectations: Sequence[Mapping[str, Any]],
    gpus: Sequence[Mapping[str, Any]] = (),
    boards: Sequence[Mapping[str, Any]] = (),
    board: str = "",
) -> list[dict[str, str]]:
    """Return a verdict for each expectation on the machine or on a card."""
    try:
        return [verdict.as_dict() for verdict in verdicts(report, expectations, gpus, boards, board)]
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def firmware_table(report: Mapping[str, Any], judged: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for people."""
    return table(report, judged)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"firmware_verdicts": firmware_verdicts, "firmware_table": firmware_table}
