# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others reach of these hosts, and where secrets are, as in every scenario. Here each test names its hosts."""

from __future__ import annotations

from ansible_collections.gpurig.llm.molecule.shared.private.test_exposure import test_nothing_is_reached_from_elsewhere
from ansible_collections.gpurig.llm.molecule.shared.private.test_secrets import (
    searched,
    test_ansible_told_no_secret,
    test_no_secret_is_where_it_does_not_belong,
)

__all__ = [
    "searched",
    "test_ansible_told_no_secret",
    "test_no_secret_is_where_it_does_not_belong",
    "test_nothing_is_reached_from_elsewhere",
]
testinfra_hosts = [f"podman://gpurig-containers-{name}" for name in ("bookworm", "trixie", "adopted")]
