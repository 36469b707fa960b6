# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry that sends another manifest than it was asked for."""

from __future__ import annotations

import http.server
import json

KIND = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2, "digest": "sha256:" + 64 * "2"}
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": KIND, "config": CONFIG, "layers": []}).encode()


class Liar(http.server.BaseHTTPRequestHandler):
    """Every manifest is the same."""

    def do_GET(self) -> None:
        """Send it, with the digest that was asked for."""
        self.send_response(200)
        self.send_header("Content-Type", KIND)
        self.send_header("Docker-Content-Digest", self.path.rpartition("/")[2])
        self.send_header("Content-Length", str(len(MANIFEST)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(MANIFEST)

    do_HEAD = do_GET  # noqa: N815


http.server.ThreadingHTTPServer(("127.0.0.1", 5001), Liar).serve_forever()
