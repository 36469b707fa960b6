# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn the description of a service into the files of its manager and into our record. (glue)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.gpurig.llm.plugins.module_utils.service_spec import (
    SpecError,
    file_name,
    render,
    render_supervisord_conf,
    to_json,
)


def _in_words(function: Callable[..., str]) -> Callable[..., str]:
    """The function with its domain error as Ansible's own, so that a play fails with the sentences and no traceback."""

    def call(*arguments: Any, **named: Any) -> str:
        try:
            return function(*arguments, **named)
        except SpecError as error:
            raise AnsibleFilterError(str(error)) from error

    return call


class FilterModule:
    """service_unit, service_record, service_file_name, supervisord_conf."""

    def filters(self) -> dict[str, Callable[..., str]]:
        return {
            "service_unit": _in_words(render),
            "service_record": _in_words(to_json),
            "service_file_name": _in_words(file_name),
            "supervisord_conf": _in_words(render_supervisord_conf),
        }
