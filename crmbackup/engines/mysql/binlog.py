"""Events of a binary log by rows, as far as it takes to tell which rows of which tables changed.

Of each event of rows only the columns that are asked for are taken out; of all others their length is enough.
https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_replication_binlog_event.html
https://mariadb.com/kb/en/2-binlog-event-header/ and the pages about each event of MariaDB
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crmbackup.engines.mysql.columns import Column

QUERY, STOP, ROTATE, FORMAT, TABLE_MAP, MARIADB_GTID, QUERY_COMPRESSED = 2, 3, 4, 15, 19, 162, 165
_WRITE, _UPDATE, _DELETE = "write", "update", "delete"
#: What an event of rows does, whether its header is of the second version, and whether its rows are compressed.
ROWS = {
    23: (_WRITE, False, False),
    24: (_UPDATE, False, False),
    25: (_DELETE, False, False),
    30: (_WRITE, True, False),
    31: (_UPDATE, True, False),
    32: (_DELETE, True, False),
    166: (_WRITE, False, True),
    167: (_UPDATE, False, True),
    168: (_DELETE, False, True),
    169: (_WRITE, True, True),
    170: (_UPDATE, True, True),
    171: (_DELETE, True, True),
}
#: Events that change no row of themselves: numbers for statements (which come as events of their own), the ends of
#: transactions, GTIDs, heartbeats, comments.
HARMLESS = {5, 13, 14, 16, 27, 28, 29, 33, 34, 35, 36, 37, 38, 41, 42, 160, 161, 163, 164}
_IGNORABLE = 0x80
_HEADER = struct.Struct("<IBIIIH")
_SUM = 4


class LogUnusableError(Exception):
    """The binary log cannot be used; the text says why."""


class Event(NamedTuple):
    """One event. time in seconds, as the server's clock said. end: where the next one begins; 0 if that is not told. body:
    without header and checksum.
    """

    kind: int
    time: int
    size: int
    end: int
    flags: int
    body: bytes

    @property
    def made_up(self) -> bool:
        """Whether it is not in the log: the server sends these two to say where that begins.

        Within a transaction MariaDB tells no ends from 11.7 on.
        """
        return self.end == 0 and self.kind in (ROTATE, FORMAT)

    @property
    def ignorable(self) -> bool:
        """Whether whoever does not know it may go on."""
        return self.kind in HARMLESS or bool(self.flags & _IGNORABLE)


def events(packets: Iterator[bytes]) -> Iterator[Event]:
    """Events as the server sends them. Raises LogUnusableError for one whose checksum is wrong."""
    summed: bool | None = None
    for packet in packets:
        time, kind, _, size, end, flags = _HEADER.unpack_from(packet)
        if size != len(packet):
            raise LogUnusableError("an event of the binary log is not as long as it says")
        if kind == FORMAT:
            summed = packet[-1 - _SUM] == 1
            yield Event(kind, time, size, end, flags, packet[_HEADER.size :])
            continue
        right = zlib.crc32(memoryview(packet)[:-_SUM]) == int.from_bytes(packet[-_SUM:], "little")
        # What comes before the first description of the format has a checksum or not: one that is right is one.
        if summed and not right:
            raise LogUnusableError("an event of the binary log is damaged")
        tail = _SUM if (right if summed is None else summed) else 0
        yield Event(kind, time, size, end, flags, packet[_HEADER.size : len(packet) - tail])


class Format(NamedTuple):
    """The first event of each file. started: the server had just been started."""

    time: int
    started: bool


def format_of(event: Event) -> Format:
    """Of a FORMAT event."""
    return Format(event.time, event.body[52:56] != bytes(4))


def rotation(event: Event) -> tuple[str, int]:
    """File and offset where the log goes on."""
    return event.body[8:].decode(), int.from_bytes(event.body[:8], "little")


def gtid(event: Event) -> tuple[int, int]:
    """Domain and number within it, of a MARIADB_GTID event."""
    number, domain = struct.unpack_from("<QI", event.body)
    return domain, number


class Statement(NamedTuple):
    """database: the one that was selected. text: in the character set of the client that sent it."""

    database: bytes
    text: bytes


def statement_of(event: Event) -> Statement:
    """Of a QUERY or QUERY_COMPRESSED event."""
    body = event.body
    length, more = body[8], int.from_bytes(body[11:13], "little")
    place = 13 + more
    text = body[place + length + 1 :]
    return Statement(body[place : place + length], _inflated(text) if event.kind == QUERY_COMPRESSED else text)


def _inflated(data: bytes) -> bytes:
    """What MariaDB compressed: a byte that tells how, the length in as many bytes as that says, and zlib's."""
    if data[0] >> 4 & 7:
        raise LogUnusableError("an event of the binary log is compressed in an unknown way")
    found = zlib.decompress(data[1 + (data[0] & 7) :])
    if len(found) != int.from_bytes(data[1 : 1 + (data[0] & 7)], "big"):
        raise LogUnusableError("a compressed event of the binary log is damaged")
    return found


@dataclass(frozen=True)
class RowFormat:
    """How the rows of a table stand in the log.

    kinds: the type of each column, by number. widths: bytes of each column, negative if that many bytes before it tell
    its length; None for a type that is not known.
    """

    number: int
    database: bytes
    table: bytes
    kinds: tuple[int, ...]
    widths: tuple[int | None, ...]


_STRING, _ENUM, _SET, _BIT, _DECIMAL, _VARCHAR = 254, 247, 248, 16, 246, 15
_FIXED = {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 7: 4, 8: 8, 9: 3, 10: 3, 11: 3, 12: 8, 13: 1, 14: 3}
#: With fractions of seconds, whose number of digits is the type's metadata.
_TIMESTAMP2, _DATETIME2, _TIME2 = 17, 18, 19
_FRACTIONAL = {_TIMESTAMP2: 4, _DATETIME2: 5, _TIME2: 3}
#: Their metadata is how many bytes tell the length: blobs, JSON, geometries, compressed blobs of MariaDB, vectors of MySQL.
_BLOBS = {249, 250, 251, 252, 245, 255, 140, 242}
_VARIABLE = {_VARCHAR, 253, 141}
#: Bytes of metadata of each type; none for all others.
_META = {
    4: 1,
    5: 1,
    _STRING: 2,
    _ENUM: 2,
    _SET: 2,
    _BIT: 2,
    _DECIMAL: 2,
    **dict.fromkeys(_FRACTIONAL, 1),
    **dict.fromkeys(_BLOBS, 1),
    **dict.fromkeys(_VARIABLE, 2),
}
_DIGITS = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)


def row_format(event: Event) -> RowFormat:
    """Of a TABLE_MAP event."""
    body = event.body
    number = int.from_bytes(body[:6], "little")
    place = 9 + body[8]
    database = body[9:place]
    length = body[place + 1]
    table = body[place + 2 : place + 2 + length]
    count, place = _packed(body, place + 3 + length)
    kinds = tuple(body[place : place + count])
    _, place = _packed(body, place + count)
    widths = []
    for kind in kinds:
        more = _META.get(kind, 0)
        widths.append(_width(kind, body[place : place + more]))
        place += more
    return RowFormat(number, database, table, kinds, tuple(widths))


def _width(kind: int, meta: bytes) -> int | None:
    if kind in _FIXED:
        return _FIXED[kind]
    if kind in _FRACTIONAL:
        return _FRACTIONAL[kind] + (meta[0] + 1) // 2
    if kind in _BLOBS:
        return -meta[0]
    if kind in _VARIABLE:
        return -1 if int.from_bytes(meta, "little") < 256 else -2
    if kind == _BIT:
        return meta[1] + (meta[0] > 0)
    if kind == _DECIMAL:
        whole = meta[0] - meta[1]
        return whole // 9 * 4 + _DIGITS[whole % 9] + meta[1] // 9 * 4 + _DIGITS[meta[1] % 9]
    if kind in (_STRING, _ENUM, _SET):
        if kind != _STRING or meta[0] in (_ENUM, _SET):
            return meta[1]
        # Two bits of the length of long ones are hidden in the type.
        return -1 if ((meta[0] >> 4 & 3 ^ 3) << 8 | meta[1]) < 256 else -2
    return None


def _packed(body: bytes, place: int) -> tuple[int, int]:
    first = body[place]
    if first < 0xFB:
        return first, place + 1
    width = {0xFC: 2, 0xFD: 3, 0xFE: 8}[first]
    return int.from_bytes(body[place + 1 : place + 1 + width], "little"), place + 1 + width


Value = bytes | int


class Changed(NamedTuple):
    """Values of the key of one row before and after it changed, None where there was no row."""

    before: tuple[Value, ...] | None
    after: tuple[Value, ...] | None


class _Step(NamedTuple):
    """skipped: bytes before a value. prefix: bytes that tell its length, else it has `width`. number: of its column, if it
    is of the key, else -1.
    """

    skipped: int
    prefix: int
    width: int
    number: int


#: Ways over images that are remembered: tables have few combinations of columns that are NULL.
_WALKS = 1000


class KeyReader:
    """Takes the key out of the rows of one table. Raises LogUnusableError for columns whose values it cannot tell."""

    def __init__(self, form: RowFormat, key: Sequence[tuple[int, Column]]) -> None:
        """key: each column with its number in the table, from 0."""
        if None in form.widths:
            raise LogUnusableError("a column is of a type that is not known in the binary log")
        self._widths = [width or 0 for width in form.widths]
        self._key = [number for number, _ in key]
        self._decoders = [_decoder(column, form.kinds[number]) for number, column in key]
        self._walks: dict[tuple[bytes, bytes], tuple[_Step, ...]] = {}

    def read(self, event: Event) -> Iterator[Changed]:
        """The rows of one event. Raises LogUnusableError if a key is not in there."""
        what, second, compressed = ROWS[event.kind]
        body = event.body
        place = 8 + (int.from_bytes(body[8:10], "little") if second else 0)
        count, place = _packed(body, place)
        if count != len(self._widths):
            raise LogUnusableError("rows in the binary log have another number of columns than their table")
        size = (count + 7) // 8
        present = body[place : place + size]
        place += size
        present_after = present
        if what == _UPDATE:
            present_after = body[place : place + size]
            place += size
        data = _inflated(body[place:]) if compressed else body[place:]
        place, end = 0, len(data)
        while place < end:
            image, place = self._image(data, place, present)
            key = self._decoded(image)
            if what == _UPDATE:
                image_after, place = self._image(data, place, present_after)
                # Columns that did not change may be missing.
                moved = image_after and image_after != image
                yield Changed(key, self._decoded({**image, **image_after}) if moved else key)
            elif what == _WRITE:
                yield Changed(None, key)
            else:
                yield Changed(key, None)

    def _image(self, data: bytes, place: int, present: bytes) -> tuple[dict[int, bytes], int]:
        """The raw values of the key's columns, and where the image ends."""
        size = (int.from_bytes(present).bit_count() + 7) // 8
        nulls = data[place : place + size]
        place += size
        steps = self._walks.get((present, nulls)) or self._new_walk(present, nulls)
        found = {}
        for skipped, prefix, width, number in steps:
            start = place + skipped
            if prefix == 1:
                width = data[start]
                start += 1
            elif prefix:
                width = int.from_bytes(data[start : start + prefix], "little")
                start += prefix
            place = start + width
            if number >= 0:
                found[number] = data[start:place]
        return found, place

    def _new_walk(self, present: bytes, nulls: bytes) -> tuple[_Step, ...]:
        """How to pass over an image with these columns, and these NULLs among them, in few steps."""
        steps = []
        skipped = place = 0
        for number, width in enumerate(self._widths):
            if not present[number >> 3] >> (number & 7) & 1:
                continue
            null = nulls[place >> 3] >> (place & 7) & 1
            place += 1
            wanted = number in self._key
            if null:
                continue
            if width >= 0 and not wanted:
                skipped += width
                continue
            steps.append(_Step(skipped, -min(width, 0), max(width, 0), number if wanted else -1))
            skipped = 0
        if len(self._walks) >= _WALKS:
            self._walks.clear()
        return self._walks.setdefault((present, nulls), (*steps, _Step(skipped, 0, 0, -1)))

    def _decoded(self, image: dict[int, bytes]) -> tuple[Value, ...]:
        try:
            return tuple([decode(image[number]) for number, decode in zip(self._key, self._decoders, strict=True)])
        except KeyError:
            raise LogUnusableError("rows in the binary log do not hold the key") from None


_INTEGERS = {"tinyint": 1, "smallint": 2, "mediumint": 9, "int": 3, "bigint": 8}


def _decoder(column: Column, kind: int) -> Callable[[bytes], Value]:
    """How a value of a key is written in the log: as `keys.py` has it, but whole numbers as numbers."""
    if column.numeric and kind == _INTEGERS[column.type]:
        signed = "unsigned" not in column.definition.lower()
        return lambda raw: int.from_bytes(raw, "little", signed=signed)
    if (column.text or column.type == "varbinary") and kind in (_STRING, _VARCHAR, 253):
        return bytes
    if column.type == "binary" and kind == _STRING:
        size = int(column.definition.partition("(")[2].rstrip(")") or 1)
        return lambda raw: raw.ljust(size, b"\0")
    if column.type == "date" and kind in (10, 14):
        return _date
    if column.type == "datetime" and kind == _DATETIME2:
        digits = int(column.definition.partition("(")[2].rstrip(")") or 0)
        return lambda raw: _datetime(raw, digits)
    raise LogUnusableError(f"a key with a column of type {column.type} is not looked for in the binary log")


def _date(raw: bytes) -> bytes:
    number = int.from_bytes(raw, "little")
    return b"%04d-%02d-%02d" % (number >> 9, number >> 5 & 15, number & 31)


def _datetime(raw: bytes, digits: int) -> bytes:
    number = int.from_bytes(raw[:5], "big")
    day, time = number >> 17 & 0x3FFFFF, number & 0x1FFFF
    year, month = divmod(day >> 5, 13)
    text = b"%04d-%02d-%02d %02d:%02d:%02d" % (year, month, day & 31, time >> 12, time >> 6 & 63, time & 63)
    if not digits:
        return text
    fraction = int.from_bytes(raw[5:], "big")
    return text + b"." + (b"%0*d" % (2 * len(raw[5:]), fraction))[:digits]
