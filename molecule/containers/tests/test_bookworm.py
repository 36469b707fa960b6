# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker's repository and NVIDIA's on Debian 12: the right branch and version, from those whose key is known."""

from __future__ import annotations

import json

from ansible_collections.gpurig.llm.molecule.containers.tests.seen import RECORD, SETTINGS, read
from testinfra.host import Host

testinfra_hosts = ["podman://gpurig-containers-bookworm"]
DOCKER = ("docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin")
TOOLKIT = (
    *("nvidia-container-toolkit", "nvidia-container-toolkit-base"),
    *("libnvidia-container-tools", "libnvidia-container1"),
)


def test_the_newest_of_the_branch_is_installed_and_held(host: Host) -> None:
    """Though the repository has 30.0.0 and 1.21.0."""
    assert host.package("docker-ce").version == "5:29.1.3-1~debian.12~bookworm"
    assert {host.package(name).version for name in TOOLKIT} == {"1.20.0-1"}
    assert set(host.check_output("apt-mark showhold").split()) == {*DOCKER, *TOOLKIT}
    assert not host.package("docker.io").is_installed


def test_the_versions_are_recorded(host: Host) -> None:
    """With who owns the engine."""
    record = read(host, RECORD)
    assert (record["owner"], record["source"], record["network"]) == ("gpurig", "docker", "ours")
    assert record["versions"]["docker-ce"] == "5:29.1.3-1~debian.12~bookworm"
    assert set(record["versions"]) == {*DOCKER, *TOOLKIT}


def test_apt_believes_this_key_only(host: Host) -> None:
    """With another keyring apt refuses the same repository."""
    source = "/etc/apt/sources.list.d/gpurig-docker.sources"
    text = host.file(source).content_string
    assert "Signed-By: /etc/apt/keyrings/gpurig-docker.gpg" in text
    other = text.replace("gpurig-docker.gpg", "gpurig-nvidia-container.gpg")
    host.check_output("mkdir -p /root/lists/partial && printf %%s %s > /root/other.sources", other)
    update = "apt-get update -o Dir::Etc::sourcelist=%s -o Dir::Etc::sourceparts=- -o Dir::State::lists=/root/lists"
    wrong = host.run(update, "/root/other.sources")
    assert "NO_PUBKEY" in wrong.stdout + wrong.stderr
    right = host.run(update, source)
    assert (right.rc, "NO_PUBKEY" in right.stderr) == (0, False)


def test_an_upgrade_of_everything_moves_neither(host: Host) -> None:
    """The hold; and without it the branch keeps 30.0.0 away."""
    assert "docker-ce" not in host.check_output("apt-get --simulate upgrade | grep ^Inst || true")
    candidate = host.check_output("apt-cache policy docker-ce | grep Candidate")
    assert candidate.split()[1] == "5:29.1.3-1~debian.12~bookworm"


def test_the_settings_are_all_there(host: Host) -> None:
    """As a new installation has them."""
    settings = read(host, SETTINGS)
    assert sorted(settings) == [
        *("default-address-pools", "default-network-opts", "features"),
        *("ip", "live-restore", "log-driver", "log-opts"),
    ]


def test_the_cdi_file_was_written_by_the_toolkit_s_unit(host: Host) -> None:
    """And the unit watches on."""
    assert "nvidia.com/gpu=all" in host.check_output("nvidia-ctk cdi list")
    assert host.service("nvidia-cdi-refresh.path").is_enabled
    assert host.service("docker").is_running
    assert json.loads(host.check_output("docker info --format x"))["ServerVersion"] == "29.1.3"
