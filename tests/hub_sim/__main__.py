# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serve the repositories below a directory until the process is ended; the first line says where, as JSON."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from .hub import HubSim


def main() -> int:
    parser = argparse.ArgumentParser(prog="hub_sim", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="directory with OWNER/NAME/files")
    parser.add_argument("--port", type=int, default=0, help="default: a free one, printed")
    parser.add_argument("--token", action="append", default=[], metavar="USER=SECRET", help="an account")
    parser.add_argument("--gated", action="append", default=[], metavar="OWNER/NAME=USER,USER", help="who may read it")
    parser.add_argument("--private", action="append", default=[], metavar="OWNER/NAME=USER,USER", help="who sees it")
    parser.add_argument("--rate", type=int, default=0, metavar="BYTES_S", help="speed of each connection")
    parser.add_argument("--drop-after", type=int, default=0, metavar="BYTES", help="cut every download off once there")
    parser.add_argument("--page-size", type=int, default=1000, help="entries per page of a file list")
    parser.add_argument("--cdn", action="store_true", help="send large files from a second origin")
    arguments = parser.parse_args()

    users = {
        name: frozenset(filter(None, accounts.split(",")))
        for name, _sign, accounts in (text.partition("=") for text in arguments.gated + arguments.private)
    }
    private = {text.partition("=")[0] for text in arguments.private}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with HubSim(arguments.port, arguments.page_size, arguments.cdn) as hub:
        hub.rate_bytes_s = arguments.rate
        hub.drop_after_bytes = arguments.drop_after
        hub.drops = sys.maxsize if arguments.drop_after else 0
        for text in arguments.token:
            user, _sign, secret = text.partition("=")
            hub.add_account(user, secret)
        revisions = {}
        for directory in sorted(path for path in arguments.root.glob("*/*") if path.is_dir()):
            name = directory.relative_to(arguments.root).as_posix()
            revisions[name] = hub.add(name, directory, users.get(name), name in private)
        print(json.dumps({"endpoint": hub.endpoint, "revisions": revisions}), flush=True)
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main())
