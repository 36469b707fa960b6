# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the memory planner needs of a model: config.json and headers, from a disk or a hub. (outside)

Never a weight: of each shard only the header, from a hub by one range request where the header fits into
FIRST_READ_BYTES. Work is bounded: so many shards, so many bytes of headers, so many seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hub import Hub
from .model_files import GGUF, select_files
from .vram.gguf import config_of
from .vram.headers import (
    GGUF_HEADER_LIMIT_BYTES,
    Gguf,
    HeaderError,
    ShortHeaderError,
    Tensor,
    merge,
    parse_gguf,
    parse_safetensors,
    safetensors_length,
)
from .vram.request import Model

FIRST_READ_BYTES = 128 * 1024
"""A shard of 560 tensors has a header of about 85 kB; longer ones cost a second request."""
CONFIG_LIMIT_BYTES = 4 << 20
MAX_SHARDS = 1000
MAX_HEADERS_BYTES = 256 << 20
DEADLINE_S = 300.0

Read = Callable[[str, int], bytes]


class SourceError(Exception):
    """The model cannot be read; the message names the file, what was found and what was needed."""


@dataclass(frozen=True)
class Found:
    """A model's description and where it came from. `reads`: files opened or range requests made."""

    model: Model
    files: tuple[str, ...]
    reads: int


class _Reader:
    """Reads beginnings of files through `read(path, limit)` and counts what that costs."""

    def __init__(self, read: Read, sizes: Mapping[str, int], origin: str) -> None:
        self.read_beginning = read
        self.sizes = sizes
        self.origin = origin
        self.reads = 0
        self.total_bytes = 0
        self.until = time.monotonic() + DEADLINE_S

    def read(self, path: str, limit: int) -> bytes:
        if time.monotonic() > self.until:
            raise SourceError(f"{self.origin}: reading the headers took more than {DEADLINE_S:.0f} s")
        self.reads += 1
        data = self.read_beginning(path, min(limit, max(self.sizes.get(path, limit), 1)))
        self.total_bytes += len(data)
        if self.total_bytes > MAX_HEADERS_BYTES:
            raise SourceError(f"{self.origin}: the headers are larger than {MAX_HEADERS_BYTES} bytes in all")
        return data

    def safetensors(self, path: str) -> list[Tensor]:
        head = self.read(path, FIRST_READ_BYTES)
        end = safetensors_length(head[:8])
        if len(head) < end and self.sizes.get(path, end) >= end:
            head = self.read(path, end)
        return parse_safetensors(head, self.sizes.get(path))

    def gguf(self, path: str) -> Gguf:
        limit = 4 << 20
        while True:
            head = self.read(path, limit)
            try:
                return parse_gguf(head)
            except ShortHeaderError as exc:
                if len(head) >= self.sizes.get(path, GGUF_HEADER_LIMIT_BYTES) or len(head) < limit:
                    raise HeaderError(f"the file is truncated: {len(head)} bytes end within its header") from exc
                limit = min(max(limit * 4, exc.needed_bytes), GGUF_HEADER_LIMIT_BYTES)


def from_path(path: str | Path, quantization: str | None = None) -> Found:
    """A model from a directory or a .gguf file on this machine. Raises SourceError."""
    place = Path(path)
    try:
        if place.is_file():
            listing, base = {place.name: place.stat().st_size}, place.parent
        else:
            listing = {
                file.relative_to(place).as_posix(): file.stat().st_size for file in place.rglob("*") if file.is_file()
            }
            base = place
    except OSError as exc:
        raise SourceError(f"{path}: {exc.strerror}") from exc
    if not listing:
        raise SourceError(f"{path}: no such file or directory, or nothing in it; name a model's directory")

    def read(name: str, limit: int) -> bytes:
        with (base / name).open("rb") as file:
            return file.read(limit)

    return _found(_Reader(read, listing, str(path)), str(path), quantization)


def from_hub(
    hub: Hub,
    repo: str,
    revision: str,
    quantization: str | None = None,
    file: str | None = None,
    chosen: Callable[[Mapping[str, int]], Collection[str]] | None = None,
) -> Found:
    """A model from a hub before anything is downloaded; `chosen` names what of a listing is fetched, `file` one .gguf.

    Asks for the listing once, for config.json, and for the beginning of each shard. Raises SourceError and HubError.
    """
    listing = {entry.path: entry.size for entry in hub.files(repo, revision).values()}
    if chosen is not None:
        listing = {path: listing[path] for path in chosen(listing)}
    if file is not None:
        if file not in listing:
            raise SourceError(f"{repo} at {revision} has no file {file}")
        listing = {file: listing[file]}
    reader = _Reader(lambda path, limit: hub.read(repo, revision, path, limit), listing, repo)
    return _found(reader, repo, quantization)


def _found(reader: _Reader, name: str, quantization: str | None) -> Found:
    config_path = "config.json" if "config.json" in reader.sizes else None
    shards = _shards(reader.sizes)
    if not shards:
        raise SourceError(f"{name}: neither .safetensors nor .gguf files are there; the planner reads no other format")
    if len(shards) > MAX_SHARDS:
        raise SourceError(f"{name}: {len(shards)} shards; at most {MAX_SHARDS} are read")
    if shards[0].endswith(".gguf"):
        return _gguf_model(reader, name, shards)
    if config_path is None:
        raise SourceError(f"{name}: config.json is missing; without it the shape of the model is not known")
    config = _config(reader, config_path)
    tensors = _in_words(reader, shards, reader.safetensors)
    return Found(Model(name, config, tuple(tensors), quantization), tuple(shards), reader.reads)


def _shards(sizes: Mapping[str, int]) -> list[str]:
    chosen = [path for path in select_files("safetensors", sizes) if path.endswith(".safetensors") and "/" not in path]
    if not chosen:
        chosen = [path for path in select_files(GGUF, sizes) if "mmproj" not in path.lower()]
        first = next((path for path in chosen if "-of-" in path), None)
        if first is None:
            return chosen[:1]
        stem = first.rpartition("-of-")[0].rpartition("-")[0]
        chosen = [path for path in chosen if path.startswith(stem + "-")]
    return chosen


def _config(reader: _Reader, path: str) -> dict[str, Any]:
    data = reader.read(path, CONFIG_LIMIT_BYTES)
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{reader.origin}: {path} is not JSON: {str(exc)[:120]}") from exc
    if not isinstance(config, dict):
        raise SourceError(f"{reader.origin}: {path} is not a JSON object")
    return config


def _in_words(reader: _Reader, shards: list[str], parse: Callable[[str], list[Tensor]]) -> list[Tensor]:
    def one(path: str) -> list[Tensor]:
        try:
            return parse(path)
        except HeaderError as exc:
            raise SourceError(f"{reader.origin}: {path}: {exc}") from exc

    try:
        return merge(map(one, shards))
    except HeaderError as exc:
        raise SourceError(f"{reader.origin}: {exc}") from exc


def _gguf_model(reader: _Reader, name: str, shards: list[str]) -> Found:
    config: dict[str, Any] = {}

    def parse(path: str) -> list[Tensor]:
        gguf = reader.gguf(path)
        if not config:
            config.update(config_of(gguf))
        return list(gguf.tensors)

    tensors = _in_words(reader, shards, parse)
    names = {tensor.name for tensor in tensors}
    config["tie_word_embeddings"] = "output.weight" not in names
    return Found(Model(name, config, tuple(tensors), "gguf_"), tuple(shards), reader.reads)
