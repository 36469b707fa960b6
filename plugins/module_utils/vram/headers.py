# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tensor lists from the headers of safetensors and GGUF files, which nobody needs to trust. (pure)

Input is the beginning of a file as bytes; every length in it is checked before it is believed, work and memory are
bounded by what was handed in. Layouts: the safetensors README (format section) and ggml's docs/gguf.md.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..model_files import GGML_BLOCKS

SAFETENSORS_HEADER_LIMIT_BYTES = 32 << 20
"""A third of what the format allows: one file with 100,000 tensors has about 13 MB, and what is read is held twice."""
MAX_ITEMS = 3_000_000
"""Commas and brackets in one safetensors header, about nine for each tensor: bounds what its JSON may unfold to."""
GGUF_HEADER_LIMIT_BYTES = 64 << 20
"""Vocabularies of 262,144 words make headers of about 16 MiB; more than four times that is no model."""
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 50
MAX_STRINGS = 2_000_000
_KEEP_ARRAY = 4096
_KEEP_TEXT_BYTES = 1 << 16

SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
"""Bits of an element: safetensors 0.6, src/tensor.rs, enum Dtype."""

GGML_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
GGML_TYPES = {name: number for number, name in GGML_NAMES.items()}


class HeaderError(ValueError):
    """The bytes are no header that can be believed; the message says what was found and what was needed."""


class ShortHeaderError(HeaderError):
    """The header goes on beyond the bytes handed in; `needed_bytes` from the file's start are known to be wanted."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


@dataclass(frozen=True)
class Tensor:
    """A stored tensor. `count` equal ones may stand as one, their number written `*` in the name. `size_bytes`: all."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    count: int = 1

    @property
    def elements(self) -> int:
        """Elements of all `count` tensors."""
        product = self.count
        for width in self.shape:
            product *= width
        return product


@dataclass(frozen=True)
class Gguf:
    """The header of one GGUF file: scalars, short arrays and texts of its metadata, and its tensors."""

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    parts: int = field(default=1)


def safetensors_length(first: bytes) -> int:
    """Bytes from a safetensors file's start to its header's end, from its first eight bytes. Raises HeaderError."""
    if len(first) < 8:
        raise HeaderError(f"the file is truncated: {len(first)} bytes, a safetensors file has at least 8")
    if first.startswith(b"version "):
        raise HeaderError("this is a Git LFS pointer, not the file itself; fetch the model with git lfs pull or hf")
    length = int(struct.unpack_from("<Q", first)[0])
    if not 2 <= length <= SAFETENSORS_HEADER_LIMIT_BYTES:
        raise HeaderError(
            f"this is not a safetensors file: its header claims {length} bytes, at most "
            f"{SAFETENSORS_HEADER_LIMIT_BYTES} are believed"
        )
    return 8 + length


def parse_safetensors(head: bytes, file_bytes: int | None = None) -> list[Tensor]:
    """The tensors of one file. `head` begins at byte 0; `file_bytes`: the whole file's size, where known, is checked.

    Raises ShortHeaderError when `head` ends within the header, HeaderError when it cannot be believed.
    """
    end = safetensors_length(head[:8])
    if file_bytes is not None and file_bytes < end:
        raise HeaderError(f"the file is truncated: {file_bytes} bytes end within its header of {end} bytes")
    if len(head) < end:
        raise ShortHeaderError(f"the header is {end} bytes long, only {len(head)} were read", end)
    items = sum(head.count(mark, 8, end) for mark in (b",", b"[", b"{"))
    if items > MAX_ITEMS:
        raise HeaderError(f"the header holds {items} entries; at most {MAX_ITEMS} are read")
    try:
        found = json.loads(head[8:end].decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise HeaderError(f"the header is not JSON: {str(exc)[:120]}") from exc
    if not isinstance(found, dict):
        raise HeaderError("the header is not a JSON object")
    room = None if file_bytes is None else file_bytes - end
    return [_safetensor(name, entry, room) for name, entry in found.items() if name != "__metadata__"]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _safetensor(name: str, entry: object, room: int | None) -> Tensor:
    label = repr(name[:80])
    if not isinstance(entry, dict):
        raise HeaderError(f"tensor {label} is not described by an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        raise HeaderError(f"tensor {label} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise HeaderError(f"tensor {label} has an impossible shape: {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise HeaderError(f"tensor {label} has impossible data_offsets: {str(offsets)[:80]}")
    elements = 1
    for width in shape:
        elements *= width
    size = (elements * SAFETENSORS_BITS[dtype] + 7) // 8
    if offsets[1] - offsets[0] != size:
        raise HeaderError(
            f"tensor {label} of {dtype} {shape} needs {size} bytes, its data_offsets hold {offsets[1] - offsets[0]}"
        )
    if room is not None and offsets[1] > room:
        raise HeaderError(f"tensor {label} ends at byte {offsets[1]} of {room}: the file is truncated")
    return Tensor(name, dtype, tuple(shape), size)


class _Bytes:
    """Reads little-endian values and never beyond the end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.strings = 0

    def take(self, count: int) -> int:
        start = self.at
        if count > GGUF_HEADER_LIMIT_BYTES:
            raise HeaderError(f"a field claims {count} bytes; a whole GGUF header is at most {GGUF_HEADER_LIMIT_BYTES}")
        self.at += count
        if self.at > len(self.data):
            raise ShortHeaderError(f"the header goes on beyond the {len(self.data)} bytes that were read", self.at)
        return start

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self.data, self.take(struct.calcsize(form)))[0]

    def text(self, keep: bool = True) -> str:
        self.strings += 1
        if self.strings > MAX_STRINGS:
            raise HeaderError(f"the header holds more than {MAX_STRINGS} strings")
        length = self.number("<Q")
        start = self.take(length)
        return self.data[start : start + min(length, _KEEP_TEXT_BYTES)].decode("utf-8", "replace") if keep else ""


_VALUES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def _value(read: _Bytes, kind: int, depth: int = 0) -> Any:
    """One metadata value; arrays that are long, or of texts, are stepped over and stand as None."""
    if kind in _VALUES:
        return read.number(_VALUES[kind])
    if kind == _STRING:
        return read.text()
    if kind != _ARRAY:
        raise HeaderError(f"the metadata holds a value of the unknown type {kind}")
    if depth > 2:
        raise HeaderError("the metadata nests arrays more than three deep")
    inner, count = read.number("<I"), read.number("<Q")
    if inner in _VALUES:
        form = _VALUES[inner]
        start = read.take(struct.calcsize(form) * count)
        if count > _KEEP_ARRAY:
            return None
        return list(struct.unpack_from(f"<{count}{form[1]}", read.data, start)) if count else []
    if inner == _STRING:
        for _ in range(count):
            read.text(keep=False)
        return None
    if count > MAX_STRINGS:
        raise HeaderError(f"the metadata claims an array of {count} arrays")
    for _ in range(count):
        read.strings += 1
        if read.strings > MAX_STRINGS:
            raise HeaderError(f"the header holds more than {MAX_STRINGS} entries")
        _value(read, inner, depth + 1)
    return None


def parse_gguf(head: bytes) -> Gguf:
    """Metadata and tensors of a little-endian GGUF header of version 2 or 3 that begins at byte 0 of `head`.

    Raises ShortHeaderError when `head` ends first (its `needed_bytes` is a lower bound), HeaderError otherwise.
    """
    if head[:4] != b"GGUF" and len(head) >= 4:
        raise HeaderError(f"this is not a GGUF file: it begins with {head[:4]!r}, not b'GGUF'")
    read = _Bytes(head[:GGUF_HEADER_LIMIT_BYTES])
    try:
        return _gguf(read)
    except ShortHeaderError as exc:
        if len(head) >= GGUF_HEADER_LIMIT_BYTES:
            raise HeaderError(f"the header does not end within {GGUF_HEADER_LIMIT_BYTES} bytes") from exc
        raise


def _gguf(read: _Bytes) -> Gguf:
    read.take(4)
    version = read.number("<I")
    if version not in (2, 3):
        raise HeaderError(f"this GGUF file is of version {version} or big-endian; needed is little-endian 2 or 3")
    count, pairs = read.number("<Q"), read.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = read.text()
        metadata[key] = _value(read, read.number("<I"))
    tensors = [_gguf_tensor(read) for _ in range(count)]
    parts = metadata.get("split.count")
    return Gguf(metadata, tuple(tensors), parts if isinstance(parts, int) and parts > 0 else 1)


def _gguf_tensor(read: _Bytes) -> Tensor:
    name, dimensions = read.text(), read.number("<I")
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise HeaderError(f"tensor {name[:80]!r} claims {dimensions} dimensions")
    shape = tuple(read.number("<Q") for _ in range(dimensions))
    elements = 1
    for width in shape:
        elements *= width
        if elements > MAX_ELEMENTS:
            raise HeaderError(f"tensor {name[:80]!r} claims an impossible shape: {shape}")
    kind = read.number("<I")
    read.number("<Q")
    if kind not in GGML_BLOCKS:
        raise HeaderError(f"tensor {name[:80]!r} has the unknown type {kind}: newer than this planner")
    block, block_bytes = GGML_BLOCKS[kind]
    return Tensor(name, GGML_NAMES.get(kind, f"type {kind}"), shape, -(-elements // block) * block_bytes)


def merge(parts: Iterable[Iterable[Tensor]]) -> list[Tensor]:
    """The tensors of several shards as one list. Raises HeaderError when one name is in two of them."""
    seen: dict[str, Tensor] = {}
    for part in parts:
        for tensor in part:
            if tensor.name in seen:
                raise HeaderError(f"tensor {tensor.name[:80]!r} is in two files")
            seen[tensor.name] = tensor
    return list(seen.values())
