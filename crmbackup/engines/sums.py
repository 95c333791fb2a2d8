"""Sums over rows, and the parts of tables that carry them: shared by the engines that ship rows.

A sum is that of XXH3-128 (https://xxhash.com) over each row's line, modulo 2^128. Sums add up: neither the order of rows
nor the borders of parts matter, and rows that occur twice count twice.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from xxhash import xxh3_128_intdigest

from crmbackup.engines.base import TableRecord

MODULUS = 1 << 128
#: chunk u32 | rows u32 | checksum 16 bytes, big-endian
_PART = struct.Struct("<II16s")


class Counted(Protocol):
    """Some rows and the sum over them."""

    @property
    def rows(self) -> int:
        """How many."""
        ...

    @property
    def checksum(self) -> int:
        """Their sum."""
        ...


class Part(NamedTuple):
    """One chunk of rows: its number, how many rows it holds, and their sum."""

    chunk: int
    rows: int
    checksum: int


def sum_lines(lines: Iterable[bytes | memoryview]) -> int:
    """The sum over some rows' lines, below 2^128."""
    return sum(map(xxh3_128_intdigest, lines)) % MODULUS


def digest_text(checksum: int) -> str:
    """A sum as it stands in records: 32 hexadecimal digits."""
    return f"{checksum % MODULUS:032x}"


def totals(parts: Sequence[Counted]) -> tuple[int, str]:
    """All rows, and the text of the sum over them."""
    return sum(part.rows for part in parts), digest_text(sum(part.checksum for part in parts))


def parts_record(
    name: str, kind: str, parts: Sequence[Counted], algorithm: str, *, carried: bool = False
) -> TableRecord:
    """Of rows that lie in several parts."""
    rows, checksum = totals(parts)
    return TableRecord(name, kind, rows, checksum, algorithm, carried=carried)


def encode_parts(parts: Sequence[Part]) -> str:
    """As base64 text."""
    rows = (_PART.pack(part.chunk, part.rows, part.checksum.to_bytes(16, "big")) for part in parts)
    return base64.b64encode(b"".join(rows)).decode("ascii")


def decode_parts(text: str) -> tuple[Part, ...]:
    """The inverse of `encode_parts`. Raises ValueError, struct.error."""
    rows = _PART.iter_unpack(base64.b64decode(text, validate=True))
    return tuple(Part(chunk, count, int.from_bytes(total, "big")) for chunk, count, total in rows)
