# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of page and tunnel when the inventory no longer names them, see shared/remove.yml."""

from __future__ import annotations

import testinfra


def test_services_and_keys_are_gone_and_data_stay() -> None:
    """Neither end has the key any longer; chats are data."""
    home, pod = (testinfra.get_host(f"podman://gpurig-page-{end}") for end in ("home", "pod"))
    assert home.check_output("ss -Htln") == ""
    assert home.run("find /etc/systemd -name '*gpurig-open-webui*' -o -name '*gpurig-tunnel*'").stdout == ""
    assert home.run("find /etc/gpurig -name '*pod*'").stdout == ""
    assert home.file("/var/lib/gpurig/open_webui/webui.db").exists
    assert "gpurig tunnel" not in pod.check_output("cat /home/forward/.ssh/authorized_keys")
