# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenPGP key files as repositories publish them: their bytes, and the fingerprint of every key in them. (pure)

A host need not have gpg for this. RFC 9580: armor in section 6, packets in 4.2, fingerprints in 5.5.4.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Final

_BLOCK = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(?P<body>.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)
_PUBLIC_KEY: Final = 6
_ALLOWED: Final = frozenset({_PUBLIC_KEY, 2, 12, 13, 14, 17})
"""What a published key consists of: signature, trust, user id, subkey, user attribute; no secret key, no message."""


class KeyFileError(Exception):
    """A file that is no OpenPGP key file, or one that must not be trusted."""


def key_bytes(data: bytes) -> bytes:
    """The packets of a key file, armored or not; of an armored one only what stands in its blocks. Raises KeyFileError.

    apt reads the result from a keyring whose name ends in .gpg.
    """
    if b"-----BEGIN PGP" not in data:
        return data
    blocks = [_dearmored(match["body"]) for match in _BLOCK.finditer(data.decode("utf-8", errors="replace"))]
    if not blocks:
        raise KeyFileError("it has no complete block of a public key")
    return b"".join(blocks)


def _dearmored(body: str) -> bytes:
    head, blank, rest = body.replace("\r\n", "\n").partition("\n\n")
    lines = (rest if blank else head).split()
    checksum = lines.pop()[1:] if lines and lines[-1].startswith("=") and len(lines[-1]) == 5 else ""
    try:
        data = base64.b64decode("".join(lines), validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"its armor is damaged: {error}") from error
    if checksum and base64.b64decode(checksum) != _crc24(data).to_bytes(3, "big"):
        raise KeyFileError("its armor is damaged: the checksum is another")
    return data


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _bit in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc & 0xFFFFFF


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, body) of each packet. Raises KeyFileError."""
    at = 0
    while at < len(data):
        first = data[at]
        if not first & 0x80:
            raise KeyFileError("it is no OpenPGP data")
        if first & 0x40:
            tag, (length, at) = first & 0x3F, _new_length(data, at + 1)
        else:
            size = 1 << (first & 0x03)
            if size == 8:
                raise KeyFileError("a packet without a length")
            tag, length, at = (first >> 2) & 0x0F, int.from_bytes(data[at + 1 : at + 1 + size], "big"), at + 1 + size
        if at + length > len(data):
            raise KeyFileError("it ends in the middle of a packet")
        yield tag, data[at : at + length]
        at += length


def _new_length(data: bytes, at: int) -> tuple[int, int]:
    """(length, where the body begins) of a packet of the new format."""
    first = data[at] if at < len(data) else 0
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192, at + 2
    if first == 255:
        return int.from_bytes(data[at + 1 : at + 5], "big"), at + 5
    raise KeyFileError("a packet in parts, which a key is not")


def fingerprints(data: bytes) -> tuple[str, ...]:
    """The fingerprint, 40 capital hex digits, of each primary key in `key_bytes(...)`. Raises KeyFileError.

    Subkeys have none here: a signature of the primary key binds them, which apt checks.
    """
    found = []
    for tag, body in _packets(data):
        if tag not in _ALLOWED:
            raise KeyFileError(f"it holds a packet of type {tag}, which no published key has")
        if tag == _PUBLIC_KEY:
            if body[:1] != b"\x04":
                raise KeyFileError(f"a key of version {body[0] if body else '?'}; only version 4 is understood")
            framed = b"\x99" + len(body).to_bytes(2, "big") + body
            found.append(hashlib.sha1(framed, usedforsecurity=False).hexdigest().upper())
    if not found:
        raise KeyFileError("it holds no public key")
    return tuple(found)


def normalized(fingerprint: str) -> str:
    """40 capital hex digits of a fingerprint as people write it, with blanks and a leading 0x. Raises KeyFileError."""
    text = re.sub(r"\s", "", fingerprint).upper().removeprefix("0X")
    if not re.fullmatch(r"[0-9A-F]{40}", text):
        raise KeyFileError(f"'{fingerprint}' is no fingerprint of 40 hex digits; a short key id names no key surely")
    return text


def unexpected(found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The fingerprints in the file that nobody vouched for. Every key of a keyring may sign, so all must be known."""
    known = {normalized(one) for one in wanted}
    return [one for one in found if one not in known]
