# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Docker Compose is told about the page. (pure)"""

from __future__ import annotations

from collections.abc import Mapping

SECRETS = "/run/secrets/page.env"
IMAGE_DATA = "/app/backend/data"
"""Where the maker's image keeps its data, and so what the paths in an adopted volume's database begin with."""

# Not env_file: `docker inspect` shows whatever Docker was told. The file is read by the page's own first process.
LAUNCH = f"""\
import os, sys
for line in open({SECRETS!r}, encoding="utf-8"):
    name, pair, value = line.rstrip("\\n").partition("=")
    if pair and name.isidentifier():
        os.environ[name] = value
os.execvp(sys.argv[1], sys.argv[1:])
"""


def _literal(text: str) -> str:
    """Compose fills in variables; `$$` is a dollar sign (compose-spec, 12-interpolation)."""
    return text.replace("$", "$$")


def _bind(source: str, target: str, read_only: bool) -> dict[str, object]:
    # Without create_host_path Docker would make a missing source as a directory of root's.
    options = {"create_host_path": False}
    return {"type": "bind", "source": source, "target": target, "read_only": read_only, "bind": options}


def compose(
    image: str,
    user: str,
    environment: Mapping[str, str],
    secrets_file: str,
    data_dir: str,
    volume: str = "",
    stop_timeout_s: int = 30,
) -> dict[str, object]:
    """Return the compose file of the page as data.

    `user` is UID:GID, the numeric owner of the data. The directory `data_dir` is mounted where it is on the host, so
    that the paths in the database are the same whoever runs the page; a volume is mounted where its maker's image has
    it. `secrets_file` has NAME=VALUE lines that the user may read.
    """
    inside = IMAGE_DATA if volume else data_dir
    mounts = [_bind(_literal(secrets_file), SECRETS, read_only=True)]
    if volume:
        mounts.append({"type": "volume", "source": "data", "target": inside})
    else:
        mounts.append(_bind(_literal(data_dir), _literal(inside), read_only=False))
    service: dict[str, object] = {
        "image": image,
        "container_name": "gpurig-open-webui",
        # The role pulled it; a start must not wait for a registry.
        "pull_policy": "never",
        "entrypoint": ["python3", "-c", _literal(LAUNCH)],
        "command": ["bash", "start.sh"],
        "network_mode": "host",
        "user": user,
        "environment": {name: _literal(value) for name, value in sorted(environment.items())},
        "volumes": mounts,
        "tmpfs": ["/tmp:mode=1777"],  # noqa: S108  (in the container, where nothing else is writable)
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        # systemd starts it again, and its unit asks whether it is healthy.
        "restart": "no",
        "healthcheck": {"disable": True},
        "stop_grace_period": f"{stop_timeout_s}s",
        # The log goes to the journal. Compose may read it back from here, so it cannot be none.
        "logging": {"driver": "local", "options": {"max-size": "1m", "max-file": "1", "compress": "false"}},
    }
    volumes = {"data": {"external": True, "name": volume}} if volume else {}
    return {"services": {"open-webui": service}, **({"volumes": volumes} if volumes else {})}
