# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep one ssh forward open: tunnel.py TARGET

TARGET is a JSON file with all that is needed: host, address, ssh_port, user, remote_port, local_port, identity,
known_hosts. It is read again before every connect, and a connection that was made from another content is replaced. So
a node that comes back with another address or port needs a new file and nothing else.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

ALIVE_S = 5  # a question to the server that often; after three without an answer the connection counts as lost
CONNECT_S = 10
DELAYS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
STEADY_S = 30.0  # what held so long begins with the shortest delay again
LOOK_S = 0.5
END_S = 5.0
KEYS = ("host", "address", "ssh_port", "user", "remote_port", "local_port", "identity", "known_hosts")


class TargetError(Exception):
    """The target file cannot be used."""


def say(text: str) -> None:
    """Print a line for the log, at once."""
    print(f"tunnel: {text}", flush=True)


def read_target(path: Path) -> dict[str, str]:
    """Return the target's values as text. Raises TargetError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(found[key]) for key in KEYS}
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror}. Run the playbook again; it writes the file.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TargetError(f"{path} lacks {error}. Run the playbook again; it writes the file.") from error


def ssh_argv(target: Mapping[str, str]) -> list[str]:
    """The ssh command: one forward on loopback, one pinned host key, no configuration of the user's."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "ExitOnForwardFailure": "yes",
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": target["host"],
        "IdentitiesOnly": "yes",
        "IdentityFile": target["identity"],
        "ServerAliveCountMax": "3",
        "ServerAliveInterval": str(ALIVE_S),
        "StrictHostKeyChecking": "yes",
        "TCPKeepAlive": "yes",
        "UpdateHostKeys": "no",
        "UserKnownHostsFile": target["known_hosts"],
    }
    argv = ["ssh", "-F", "none", "-N", "-T", "-p", target["ssh_port"]]
    for name, value in options.items():
        argv += ["-o", f"{name}={value}"]
    forward = f"127.0.0.1:{target['local_port']}:127.0.0.1:{target['remote_port']}"
    return [*argv, "-L", forward, "--", f"{target['user']}@{target['address']}"]


def explain(said: Sequence[str], target: Mapping[str, str]) -> str:
    """Say in words why ssh ended, from what it printed."""
    text = "\n".join(said)
    where = f"{target['host']} ({target['address']} port {target['ssh_port']})"
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in text or "Host key verification failed" in text:
        return (
            f"{where} shows another host key than the one pinned in rig_tunnels: somebody answers in its place, or the "
            "node was made anew. Nothing was sent. If it was made anew, read its key on the node itself and write it "
            "to host_key."
        )
    if "Permission denied" in text:
        return f"{where} refuses the tunnel's key for {target['user']}. Run the playbook again; it authorizes the key."
    if "Address already in use" in text or "cannot listen to port" in text:
        return f"port {target['local_port']} of this host is taken. Free it, or give the tunnel another port."
    last = next((line.strip() for line in reversed(said) if line.strip()), "ssh said nothing")
    unreachable = ("timed out", "Connection refused", "No route", "unreachable", "resolve hostname", "not known")
    if any(word in text for word in unreachable):
        return f"{where} cannot be reached: {last}"
    return f"the connection to {where} ended: {last}"


class Tunnel:
    """The loop: connect, watch, connect again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ended = threading.Event()

    def end(self, _signal: int, _frame: FrameType | None) -> None:
        """Handle SIGTERM and SIGINT."""
        self.ended.set()

    def keep(self) -> int:
        """Keep the forward open until told to end."""
        failures = 0
        while not self.ended.is_set():
            began = time.monotonic()
            try:
                target = read_target(self.path)
                say(f"connecting to {target['user']}@{target['address']} port {target['ssh_port']} ({target['host']})")
                why = self.connection(target)
            except TargetError as error:
                why = str(error)
            if self.ended.is_set():
                break
            failures = 0 if time.monotonic() - began > STEADY_S or not why else failures
            delay_s = DELAYS_S[min(failures, len(DELAYS_S) - 1)]
            say(f"error: {why} Next try in {delay_s:g} s." if why else "the target changed")
            failures += 1
            self.ended.wait(delay_s if why else 0)
        return 0

    def connection(self, target: Mapping[str, str]) -> str:
        """Run one ssh to its end and return why it ended; '' when the target file changed under it."""
        said: list[str] = []
        with subprocess.Popen(
            ssh_argv(target), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as ssh:
            reader = threading.Thread(target=self.collect, args=(ssh, said), daemon=True)
            reader.start()
            changed = False
            while ssh.poll() is None and not self.ended.wait(LOOK_S):
                changed = self.differs(target)
                if changed:
                    break
            if ssh.poll() is None:
                ssh.terminate()
                try:
                    ssh.wait(END_S)
                except subprocess.TimeoutExpired:
                    ssh.kill()
            reader.join(END_S)
        return "" if changed else explain(said, target)

    def differs(self, target: Mapping[str, str]) -> bool:
        """Whether the file now says something else; a file that cannot be read is no reason to let go."""
        try:
            return read_target(self.path) != target
        except TargetError:
            return False

    @staticmethod
    def collect(ssh: subprocess.Popen[str], said: list[str]) -> None:
        """Keep the last lines of what ssh prints."""
        for line in ssh.stderr or ():
            said.append(line)
            del said[:-40]


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    tunnel = Tunnel(Path(arguments[0]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tunnel.end)
    return tunnel.keep()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
