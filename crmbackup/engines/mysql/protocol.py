"""The client protocol below PyMySQL's cursors: rows as the server sends them, and LOAD DATA LOCAL from memory.

Cursors cost several microseconds for every row, and load files only. What is used of PyMySQL here is not public; the
tests run with the oldest and the newest version.
https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response_text_resultset.html
https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_com_query_response_local_infile_request.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import blake3
from pymysql.constants import COMMAND, CR
from pymysql.err import InternalError, OperationalError
from pymysql.protocol import MysqlPacket, OKPacketWrapper

from crmbackup.engines.mysql.connection import Connection

#: First bytes of packets, and the length of one that another follows.
NULL = 0xFB
_TWO, _THREE, _END, _ERROR = 0xFC, 0xFD, 0xFE, 0xFF
_MORE = 0xFFFFFF
#: MariaDB sends what statements rows come from only if asked to; MySQL knows no such flag.
_NO_WAIT, _COMMENTS = 1, 2
#: Bytes of rows in one packet to the server.
_BLOCK = 1024 * 1024
#: Bytes that are taken from the socket at once.
_TAKEN = 256 * 1024
_HEADER = struct.Struct("<I")
#: The packet that ends a result: its bytes, and the first of them. Errors have 512 bytes of text at most.
_END_BYTES, _END_HEADER = 9, b"\x05\x00\x00"
_LONGEST_END = 1024
#: Packets are numbered modulo that.
_NUMBERS = 256


class Loaded(NamedTuple):
    """What the server says of a LOAD DATA: rows that it stored, and how many warnings it has."""

    rows: int
    warnings: int


def _pass_columns(raw: Any) -> None:
    columns = raw._read_packet().read_length_encoded_integer()
    for _ in range(columns + 1):  # and the packet that ends them
        raw._read_packet()


def read_packets(connection: Connection, sql: str) -> Iterator[bytes | bytearray]:
    """Each row of a query as one packet. One that is not read to its end closes the connection. Raises pymysql.Error."""
    raw: Any = connection
    raw._execute_command(COMMAND.COM_QUERY, sql)
    ended = False
    try:
        _pass_columns(raw)
        read = raw._rfile.read
        while True:
            row = _packet(read)
            first = row[0]
            if first >= _END:
                if first == _ERROR:
                    ended = True
                    MysqlPacket(row, connection.encoding).raise_for_error()
                if len(row) < 9:
                    ended = True
                    return
            # A row may have hundreds of MiB: it is the caller's alone.
            given, row = [row], b""
            yield given.pop()
    finally:
        if not ended:
            raw._force_close()


class Sent(NamedTuple):
    """Rows as the server sent them, headers of packets included: how many bytes, and their keyed digest."""

    size: int
    digest: bytes


class Lines(NamedTuple):
    """Some rows of one column. sent: what was sent for them, if a query of their own would give the same bytes."""

    rows: list[bytes | None]
    sent: Sent | None


class ColumnQuery:
    """A query of one column that was sent. As `read_packets`, but here every operation counts: loops run once for each
    row of a database. Read it to its end by `lines`, or `is_still`; else the connection is closed.

    key: of the digests, 32 bytes; None makes none. Raises pymysql.Error.
    """

    def __init__(self, connection: Connection, sql: str, key: bytes | None = None) -> None:
        raw: Any = connection
        self._raw = raw
        self._key = key
        self._data = b""
        raw._execute_command(COMMAND.COM_QUERY, sql)
        try:
            _pass_columns(raw)
        except BaseException:
            raw._force_close()
            raise

    def is_still(self, sent: Sent, room: bytearray) -> bool:
        """Whether the whole result is as that was; then it is read. No row is looked at. room: holds it, and grows if it
        has to; reused, it spares the kernel clearing pages.
        """
        try:
            return self._is_still(sent, room)
        except BaseException:
            self._raw._force_close()
            raise

    def _is_still(self, sent: Sent, room: bytearray) -> bool:
        assert self._key
        wanted = sent.size + _END_BYTES
        if len(room) < wanted:
            room.extend(bytes(wanted - len(room)))
        size = 0
        with memoryview(room) as view:
            # What may be the end is for `lines` to look at: no byte is waited for that may never come.
            while size < wanted and not _may_end(bytes(view[max(0, size - _LONGEST_END) : size])):
                # Not readinto1: having bytes already it may wait for more.
                came = self._raw._rfile.read1(min(_TAKEN, wanted - size))
                if not came:
                    raise _lost()
                view[size : size + len(came)] = came
                size += len(came)
            # Equal bytes are whole packets: the one behind them is what it seems to be, the end.
            if (
                size == wanted
                and view[sent.size : sent.size + 3] == _END_HEADER
                and view[sent.size + 4] == _END
                and blake3.blake3(view[: sent.size], key=self._key).digest() == sent.digest
            ):
                return True
            self._data = bytes(view[:size])
            return False

    def lines(self, limit: int) -> Iterator[Lines]:
        """All rows, in lists of `limit` bytes or a little more, of up to twice as many where rows are long. A NULL ends
        a list.
        """
        raw = self._raw
        ended = False
        try:
            header_at = _HEADER.unpack_from
            data, self._data = self._data, b""
            begun = place = 0
            end = len(data)
            rows: list[bytes | None] = []
            size = 0
            sent = _Sum(self._key)
            while True:
                while place + 4 < end:
                    length = header_at(data, place)[0] & _MORE
                    stop = place + 4 + length
                    first = data[place + 4]
                    if stop > end:
                        break
                    if first < NULL and length < _MORE:
                        row: bytes | None = data[place + 5 : stop]
                    elif first == _TWO and length < _MORE:
                        row = data[place + 7 : stop]
                    else:
                        packet, stop = _whole_packet(data, place)
                        if not stop:
                            break
                        if first == _ERROR or (first == _END and length < 9):
                            ended = True
                            MysqlPacket(packet, raw.encoding).check_error()
                            if rows:
                                yield Lines(rows, sent.end(data, begun, place, len(rows)))
                            return
                        row = first_column(packet)
                    place = stop
                    rows.append(row)
                    size += 2 * limit if row is None else len(row)
                    if size >= limit and (size >= 2 * limit or not len(rows) % _NUMBERS):
                        yield Lines(rows, sent.end(data, begun, place, len(rows)))
                        begun = place
                        rows, size = [], 0
                sent.add(data, begun, place)
                data = _with_more(raw._rfile, data[place:])
                begun = place = 0
                end = len(data)
        finally:
            if not ended:
                raw._force_close()


class _Sum:
    """Sums up what was sent for one list of rows after the other. Packets are numbered from the same number on in each
    query, modulo 256: lists that do not begin with that number would be other bytes in a query of their own.
    """

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self._number = 0
        self._begin()

    def _begin(self) -> None:
        self._size = 0
        self._sum = blake3.blake3(key=self._key) if self._key and not self._number else None

    def add(self, data: bytes, start: int, stop: int) -> None:
        if self._sum:
            self._sum.update(memoryview(data)[start:stop])
            self._size += stop - start

    def end(self, data: bytes, start: int, stop: int, rows: int) -> Sent | None:
        """Of a list of so many rows, of which these are the last bytes. The next one begins."""
        self.add(data, start, stop)
        found = Sent(self._size, self._sum.digest()) if self._sum else None
        self._number = (self._number + rows) % _NUMBERS
        self._begin()
        return found


def _may_end(tail: bytes) -> bool:
    """Whether the last bytes that came look like the packet that ends a result, or an error."""
    if tail[-_END_BYTES:-6] == _END_HEADER and tail[-5] == _END:
        return True
    place = tail.find(_ERROR, 4)
    while place > 0:
        if int.from_bytes(tail[place - 4 : place - 1], "little") == len(tail) - place:
            return True
        place = tail.find(_ERROR, place + 1)
    return False


def _whole_packet(data: bytes, place: int) -> tuple[bytes, int]:
    """A packet with those that it goes on in, from 16 MiB on, and where it ends; 0 if not all of it is here."""
    parts = []
    while place + 4 <= len(data):
        length = int.from_bytes(data[place : place + 3], "little")
        parts.append(data[place + 4 : place + 4 + length])
        place += 4 + length
        if length < _MORE:
            return b"".join(parts), place if place <= len(data) else 0
    return b"", 0


def _with_more(stream: Any, data: bytes) -> bytes:
    """The bytes, and some of those that follow in the stream; all of the first packet if it is a long one."""
    missing = int.from_bytes(data[:3], "little") + 4 - len(data)
    more: bytes = stream.read(missing) if missing > _TAKEN else stream.read1(_TAKEN)
    if not more:
        raise _lost()
    return data + more


def _packet(read: Callable[[int], bytes]) -> bytes | bytearray:
    """A packet, put together where it came in parts of 16 MiB. Raises pymysql.Error."""
    part = _part(read)
    if len(part) < _MORE:
        return part
    whole = bytearray(part)
    while len(part) == _MORE:
        part = _part(read)
        whole += part
    return whole


def _part(read: Callable[[int], bytes]) -> bytes:
    header = read(4)
    if len(header) < 4:
        raise _lost()
    length = header[0] | header[1] << 8 | header[2] << 16
    part = read(length)
    if len(part) < length:
        raise _lost()
    return part


def read_log(connection: Connection, file: str, offset: int, *, mariadb: bool) -> Iterator[bytes]:
    """All events of a binary log from an offset on, as far as it goes, those of the files that follow too. Afterwards the
    connection is closed. Raises pymysql.Error.
    """
    raw: Any = connection
    try:
        # As a reader without a number of its own: the server neither waits for more nor ends another reader for it.
        flags = _NO_WAIT | (_COMMENTS if mariadb else 0)
        place = offset.to_bytes(4, "little") + flags.to_bytes(2, "little") + bytes(4)
        raw._execute_command(COMMAND.COM_BINLOG_DUMP, place + file.encode())
        read = raw._rfile.read
        while True:
            packet = bytes(_packet(read))
            if packet[0] == _ERROR:
                MysqlPacket(packet, connection.encoding).raise_for_error()
            if packet[0] == _END:
                return
            yield packet[1:]
    finally:
        raw._force_close()


def first_column(row: bytes | bytearray) -> bytes | None:
    """The value of a row that has one column."""
    row = bytes(row)
    first = row[0]
    if first < NULL:
        return row[1:]
    if first == NULL:
        return None
    return row[3:] if first == _TWO else row[4:] if first == _THREE else row[9:]


def all_columns(row: bytes | bytearray) -> list[bytes | None]:
    """The values of a row."""
    values: list[bytes | None] = []
    view = memoryview(row)
    place, end = 0, len(row)
    while place < end:
        first = row[place]
        place += 1
        if first == NULL:
            values.append(None)
            continue
        width = {_TWO: 2, _THREE: 3, _END: 8}.get(first, 0)
        size = int.from_bytes(row[place : place + width], "little") if width else first
        place += width
        values.append(bytes(view[place : place + size]))
        place += size
    return values


def load(connection: Connection, sql: str, data: bytes | memoryview, *, block: int = _BLOCK) -> Loaded:
    """Run a LOAD DATA LOCAL with these bytes, whatever file the server asks for. Raises pymysql.Error.

    block: bytes of rows in one packet, which must be smaller than the server's max_allowed_packet.
    """
    raw: Any = connection
    raw._execute_command(COMMAND.COM_QUERY, sql)
    packet = raw._read_packet()
    if not packet.is_load_local_packet():
        raise InternalError(0, "the server did not ask for the rows of a LOAD DATA LOCAL")
    view = memoryview(data)
    block = min(block, _BLOCK)
    for start in range(0, len(view), block):
        raw.write_packet(bytes(view[start : start + block]))
    raw.write_packet(b"")
    answer = raw._read_packet()
    if not answer.is_ok_packet():
        raise InternalError(0, "the server did not end a LOAD DATA LOCAL as it should")
    done = OKPacketWrapper(answer)
    return Loaded(done.affected_rows, done.warning_count)


def _lost() -> OperationalError:
    return OperationalError(CR.CR_SERVER_LOST, "Lost connection to the server during a query")
