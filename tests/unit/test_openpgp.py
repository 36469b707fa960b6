# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fingerprints of key files against what gpg said of the same file, and files that are no keys."""

from __future__ import annotations

import base64
import contextlib

import pytest
from ansible_collections.gpurig.llm.plugins.module_utils.openpgp import (
    KeyFileError,
    fingerprints,
    key_bytes,
    normalized,
    unexpected,
)
from hypothesis import given
from hypothesis import strategies as st

# A key for this test alone, with a subkey, made by gpg 2.2.40, and the fingerprint that gpg --list-keys printed.
GPG_SAID = "B71CDA7E9E3E21207843F29CE009E18C3382F909"
ARMORED = b"""\
-----BEGIN PGP PUBLIC KEY BLOCK-----

mDMEawHURRYJKwYBBAHaRw8BAQdAM0V2ES/nJVkHd2Sf9IWpC70Q1JVxCH6SR+06
a0JwbLS0J1Rlc3Qgb2YgZmluZ2VycHJpbnRzIDx0ZXN0QGV4YW1wbGUub3JnPoiQ
BBMWCAA4FiEEtxzafp4+ISB4Q/Kc4AnhjDOC+QkFAmsB1EUCGwEFCwkIBwIGFQoJ
CAsCBBYCAwECHgECF4AACgkQ4AnhjDOC+QnjiwEA794g5kwQvJ1xaZ2PKqRBU180
aje54KN18+CjfzhQ3lMA/jPqHKNaYVq87DRA3/VZMbzd06RDAzniAL1m0WMnMoEA
uDMEawHURRYJKwYBBAHaRw8BAQdA8twP6lbBTFhTC+FOujtGmdI9Pe/fHmfG72DT
VjnI5tWI7wQYFggAIBYhBLcc2n6ePiEgeEPynOAJ4YwzgvkJBQJrAdRFAhsCAIEJ
EOAJ4YwzgvkJdiAEGRYIAB0WIQT/YevpythogLptwfZsCy20sv9RmAUCawHURQAK
CRBsCy20sv9RmJO+AP46j2R2XJGo+Gs8UNgx3fxN0ccwVL9J2b24SgPjqG99mQD+
Lw1JBHKmta/B2nlXhxToBxOPOecy1/kGjK5ELbaXhAaHLQD/dhNVykmHB0WUKhJ4
BPYSW23Z1Mwx+iqc8sn2aX9wRxYBAPdWyywEGMo1UA4jCyJiP/fm5t4zLnt2a+MZ
vvGXPsYA
=mJQT
-----END PGP PUBLIC KEY BLOCK-----
"""


def packet(tag: int, body: bytes, new: bool = True) -> bytes:
    """One packet in the new or the old format."""
    if not new:
        return bytes([0x80 | tag << 2 | 1]) + len(body).to_bytes(2, "big") + body
    if len(body) < 192:
        return bytes([0xC0 | tag, len(body)]) + body
    return bytes([0xC0 | tag, 255]) + len(body).to_bytes(4, "big") + body


def armor(data: bytes, checksum: bytes = b"") -> bytes:
    return (
        b"-----BEGIN PGP PUBLIC KEY BLOCK-----\r\nComment: x\r\n\r\n"
        + base64.encodebytes(data)
        + checksum
        + b"-----END PGP PUBLIC KEY BLOCK-----\r\n"
    )


def test_gpg_says_the_same() -> None:
    packets = key_bytes(ARMORED)
    assert fingerprints(packets) == (GPG_SAID,)
    assert key_bytes(packets) == packets
    assert fingerprints(key_bytes(b"some words before\n" + ARMORED + b"and after")) == (GPG_SAID,)


def test_every_primary_key_of_a_file_counts() -> None:
    second = packet(6, b"\x04" + b"k" * 300)
    two = fingerprints(key_bytes(ARMORED + armor(second)))
    assert two[0] == GPG_SAID
    assert len(two) == 2
    assert unexpected(two, ["b71c da7e 9e3e 2120 7843  f29c e009 e18c 3382 f909"]) == [two[1]]
    assert unexpected(two[:1], [GPG_SAID]) == []


def test_old_and_new_lengths_are_the_same_key() -> None:
    body = b"\x04" + b"k" * 250
    expected = fingerprints(packet(6, body, new=False))
    assert fingerprints(packet(6, body)) == expected
    two_octets = bytes([0xC0 | 6, 192 + ((len(body) - 192) >> 8), (len(body) - 192) & 0xFF]) + body
    assert fingerprints(two_octets) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no public key"),
        (b"<html>not found</html>", "no OpenPGP data"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nabcd", "no complete block"),
        (b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nabcd\n-----END PGP PRIVATE KEY BLOCK-----\n", "no complete block"),
        (armor(b"x").replace(b"eA==", b"e!=="), "armor is damaged"),
        (armor(b"abc", b"=AAAA\n"), "the checksum is another"),
        (packet(6, b"\x06abc"), "version 6"),
        (packet(6, b""), "version ?"),
        (packet(5, b"\x04secret"), "packet of type 5"),
        (packet(11, b"message"), "packet of type 11"),
        (packet(6, b"\x04abc")[:-1], "in the middle"),
        (bytes([0x80 | 6 << 2 | 3]) + b"\x04", "without a length"),
        (bytes([0xC0 | 6, 230]) + b"\x04", "in parts"),
    ],
)
def test_what_is_no_key_file(data: bytes, words: str) -> None:
    with pytest.raises(KeyFileError, match=words.replace("?", r"\?")):
        fingerprints(key_bytes(data))


@pytest.mark.parametrize("text", ["", "0EBFCD88", "8D81803C0EBFCD88", "G" * 40, GPG_SAID + "0"])
def test_a_short_id_is_no_fingerprint(text: str) -> None:
    with pytest.raises(KeyFileError, match="no fingerprint of 40 hex digits"):
        normalized(text)


@given(at=st.integers(0, len(key_bytes(ARMORED)) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_key_never_passes(at: int, bit: int) -> None:
    """In the primary key itself; apt checks the signatures that bind what follows it."""
    data = bytearray(key_bytes(ARMORED))
    data[at % 53] ^= 1 << bit
    try:
        found = fingerprints(bytes(data))
    except KeyFileError:
        return
    assert unexpected(found, [GPG_SAID]) or found[:1] != (GPG_SAID,)


@given(data=st.binary(max_size=80))
def test_any_bytes_are_judged_without_a_crash(data: bytes) -> None:
    with contextlib.suppress(KeyFileError):
        assert all(len(one) == 40 for one in fingerprints(key_bytes(data)))
