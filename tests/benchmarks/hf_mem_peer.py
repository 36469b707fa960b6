# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs hf-mem, a published estimator, on synthetic headers that are served locally; for vram_accuracy.py --hf-mem.

hf-mem asks huggingface.co by name, so its HTTP client is pointed at the local server; nothing else of it is changed.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ansible_collections.gpurig.llm.plugins.module_utils.vram.headers import Tensor
from ansible_collections.gpurig.llm.tests.unit.header_sets import each_alone

# Run by the interpreter that has hf-mem: arguments are the local address and the names of the models.
DRIVER = """
import asyncio, json, sys, warnings
import httpx2
from hf_mem import arun
warnings.simplefilter("ignore")
send = httpx2.AsyncHTTPTransport.handle_async_request
async def local(self, request):
    request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=int(sys.argv[1]))
    return await send(self, request)
httpx2.AsyncHTTPTransport.handle_async_request = local
async def main():
    return {name: (await arun("peer/" + name)).memory for name in sys.argv[2:]}
print(json.dumps(asyncio.run(main())))
"""
LISTING = re.compile(r"/api/models/peer/([^/]+)/tree/main")
FILE = re.compile(r"/peer/([^/]+)/resolve/main/model\.safetensors")


def head_of(tensors: Iterable[Tensor]) -> bytes:
    """A safetensors header of these tensors."""
    entries: dict[str, Any] = {}
    end = 0
    for tensor in each_alone(tensors):
        offsets = [end, end + tensor.size_bytes]
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(entries, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, heads: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heads = heads


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Stay silent."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        listing, file = LISTING.fullmatch(path), FILE.fullmatch(path)
        if listing:
            self._send(200, json.dumps([{"type": "file", "path": "model.safetensors", "size": 1}]).encode())
        elif file and file[1] in self.server.heads:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), int(asked[2])) if asked else (0, 100_000)
            self._send(206, self.server.heads[file[1]][first : last + 1])
        else:
            self._send(404, b"")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def weights_bytes(python: str, models: Mapping[str, Iterable[Tensor]]) -> dict[str, int]:
    """hf-mem's weight bytes of each model; `python` is an interpreter whose environment has hf-mem 0.5."""
    server = _Server({name: head_of(tensors) for name, tensors in models.items()})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        command = [python, "-c", DRIVER, str(server.server_port), *models]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    finally:
        server.shutdown()
        server.server_close()
    return dict(json.loads(done.stdout))
