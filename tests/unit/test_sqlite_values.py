"""Checksums of SQLite tables: any change of any value, however odd, is another checksum."""

from __future__ import annotations

import math
import os
import resource
import struct
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import blake3
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.engines.base import Segment
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.checksums import SegmentTask, digest_segments, table_checksum
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.schema import read_contents
from crmbackup.engines.sqlite.structure import longest_rows
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, connect, execute, image_of

EXAMPLES = int(os.environ.get("CRMBACKUP_SQLITE_EXAMPLES", "60"))


def digest(path: Path, table: str = "t", *, raw: bool = False) -> Segment:
    """A table as one segment."""
    reader.join(Source(path, 1.0, encrypted=False))
    try:
        contents = read_contents(path)
        found = next(each for each in contents.tables if each.name == table)
        assert found.rows is not None
        task = SegmentTask(found.rows, None, None, longest_rows(path, [table])[0], raw or not contents.exact_text)
        (segment,) = digest_segments(path, [task])
    finally:
        reader.leave()
    assert isinstance(segment, Segment)
    return segment


def make(
    path: Path, rows: Iterable[tuple[object, ...]], definition: str = "t(a, b, c)", encoding: str = "UTF-8"
) -> Path:
    path.unlink(missing_ok=True)
    with closing(connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute(f"PRAGMA encoding = '{encoding}'")
        db.execute("BEGIN")
        db.execute(f"CREATE TABLE {definition}")
        for row in rows:
            marks = ", ".join("CAST(? AS TEXT)" if isinstance(value, Stored) else "?" for value in row)
            db.execute(f"INSERT INTO t VALUES({marks})", tuple(v.data if isinstance(v, Stored) else v for v in row))
        db.execute("COMMIT")
    return path


class Stored:
    """Text as the bytes that are stored, valid or not."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Stored({self.data!r})"


def identity(value: object) -> tuple[str, object]:
    """Two values are the same for SQLite if and only if these are equal."""
    match value:
        case Stored():
            return "text", value.data
        case str():
            return "text", value.encode()
        case float():
            return ("null", b"") if math.isnan(value) else ("real", struct.pack(">d", value))
        case int():
            return "integer", value
        case bytes():
            return "blob", value
        case _:
            return "null", b""


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from((0, 1, -1, 2**63 - 1, -(2**63), 2**53, 2**53 + 1, 127, 128, 255, 256)),
    st.floats(),
    st.sampled_from((0.0, -0.0, 1.0, math.inf, -math.inf, 2.0**53, 9223372036854775807.0, 5e-324)),
    st.text(st.characters(exclude_categories=("Cs",))),
    st.sampled_from(("", "0", "1", "1.0", "1e0", "a", "a\0", "a\0b", "inf", "nil")),
    st.binary(),
    st.sampled_from((b"", b"0", b"1", b"a", b"a\0", b"\0")),
    st.builds(Stored, st.sampled_from((b"\xff", b"\xfe", b"a\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"))),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values") / "v.db"


@settings(deadline=None, max_examples=EXAMPLES)
@given(one=VALUES, other=VALUES)
def test_two_values_have_one_digest_only_if_they_are_the_same(scratch: Path, one: object, other: object) -> None:
    first = digest(make(scratch, [(1, one, "z")]))
    second = digest(make(scratch, [(1, other, "z")]))
    assert (first.digest == second.digest) == (identity(one) == identity(other))


@settings(deadline=None, max_examples=EXAMPLES)
@given(rows=st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=8), data=st.data())
def test_where_a_value_stands_counts(scratch: Path, rows: list[tuple[object, ...]], data: st.DataObject) -> None:
    other = data.draw(st.permutations(rows))
    flat = [value for row in other for value in row]
    shift = data.draw(st.integers(0, max(0, len(flat) - 1)))
    moved = [tuple((flat[shift:] + flat[:shift])[at : at + 3]) for at in range(0, len(flat), 3)]
    first, second = digest(make(scratch, rows)), digest(make(scratch, moved))
    same = [[identity(v) for v in row] for row in rows] == [[identity(v) for v in row] for row in moved]
    assert (first.digest == second.digest) == same
    assert first.rows == second.rows == len(rows)


def test_the_number_of_a_row_counts(scratch: Path) -> None:
    first = digest(make(scratch, [(1, 2, 3)]))
    execute(scratch, "UPDATE t SET rowid = 2")
    assert digest(scratch).digest != first.digest


@pytest.mark.parametrize(
    ("one", "other"),
    [("ab|c", "a|bc"), ("|", "||"), ("1|2", "12|"), ("abc|", "|abc")],
)
def test_borders_of_values_count(scratch: Path, one: str, other: str) -> None:
    values = [tuple((text.split("|") + [""] * 3)[:3]) for text in (one, other)]
    if values[0] == values[1]:
        values[1] = (*values[1][:2], None)
    assert digest(make(scratch, [values[0]])).digest != digest(make(scratch, [values[1]])).digest


@pytest.mark.parametrize("encoding", ["UTF-16le", "UTF-16be"])
def test_invalid_text_of_utf16_databases_counts(scratch: Path, encoding: str) -> None:
    """SQLite gives both of these as the same text: one has half of a pair of code units, the other both."""
    order = "little" if encoding == "UTF-16le" else "big"
    half = b"".join(unit.to_bytes(2, order) for unit in (0xD800, 0x0041))
    whole = b"".join(unit.to_bytes(2, order) for unit in (0xD800, 0xDC41))
    found = [digest(make(scratch, [(1, Stored(data), None)], encoding=encoding)) for data in (half, whole)]
    assert found[0].digest != found[1].digest
    assert found[0].raw
    assert found[1].raw


def test_valid_text_next_to_invalid(scratch: Path) -> None:
    """Raw segments tell text from bytes by their storage classes."""
    rows = [(Stored(b"\xff"), "a", b"b")]
    swapped = [(Stored(b"\xff"), b"a", "b")]
    found = [digest(make(scratch, each)) for each in (rows, swapped)]
    assert found[0].raw
    assert found[0].digest != found[1].digest


def test_raw_is_another_form_of_the_same_rows(scratch: Path) -> None:
    make(scratch, [("a", 1, 2.5), (None, b"x", "y")])
    plain, raw = digest(scratch), digest(scratch, raw=True)
    assert (plain.raw, raw.raw) == (False, True)
    assert plain.rows == raw.rows
    assert plain.digest != raw.digest
    assert raw.digest == digest(scratch, raw=True).digest


# The documented form, written by other means


def reference(path: Path, query: str) -> str:
    encode = msgspec.msgpack.Encoder().encode
    with closing(connect(path)) as db:
        return blake3.blake3(b"".join(encode(list(row)) for row in db.execute(query))).hexdigest()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 499, 500, 501, 1030])
def test_the_documented_form(scratch: Path, count: int) -> None:
    make(scratch, [(i, "text" * (i % 50), [None, b"\0\1", 0.5, -i][i % 4]) for i in range(count)])
    execute(scratch, "CREATE INDEX i ON t(b, c, a)", "CREATE UNIQUE INDEX j ON t(a DESC, b, c)")
    found = digest(scratch)
    assert found.rows == count
    assert found.digest == reference(scratch, "SELECT rowid, a, b, c FROM t ORDER BY rowid")
    assert table_checksum([found]) == blake3.blake3(bytes.fromhex(found.digest)).hexdigest()


@pytest.mark.parametrize(
    ("definition", "query"),
    [
        ("t(a PRIMARY KEY, b, c) WITHOUT ROWID", "SELECT a, b, c FROM t ORDER BY a"),
        ("t(a, b, c, PRIMARY KEY(b DESC, a)) WITHOUT ROWID", "SELECT a, b, c FROM t ORDER BY b DESC, a"),
        ("t(a INTEGER PRIMARY KEY, b, c)", "SELECT a, a, b, c FROM t ORDER BY a"),
        ("t(rowid, _rowid_, c)", "SELECT oid, rowid, _rowid_, c FROM t ORDER BY oid"),
        ("t(rowid, _rowid_, oid)", "SELECT rowid, _rowid_, oid FROM t"),
        ("t(oid INTEGER PRIMARY KEY, RowId, c)", "SELECT _rowid_, oid, RowId, c FROM t ORDER BY oid"),
    ],
)
def test_the_documented_form_of_other_tables(scratch: Path, definition: str, query: str) -> None:
    make(scratch, [(i * 7 % 40, i * 11 % 30, f"text {i}") for i in range(30)], definition)
    columns = definition[2 : definition.index(")")].split(",")[:2]
    execute(scratch, f"CREATE INDEX i ON t({columns[1].split()[0]})")
    assert digest(scratch).digest == reference(scratch, query)


def test_generated_columns_are_read_where_they_are_stored(scratch: Path) -> None:
    scratch.unlink(missing_ok=True)
    execute(
        scratch,
        "CREATE TABLE t(a, s AS (a * 2) STORED, v AS (a * 3) VIRTUAL, b)",
        "INSERT INTO t(a, b) VALUES(1, 'x'), (2, 'y')",
    )
    assert digest(scratch).digest == reference(scratch, "SELECT rowid, a, s, b FROM t ORDER BY rowid")


# Sizes


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with ProcessWorkers(2) as workers:
        yield Chain(tmp_path / "crm.db", tmp_path, workers)


@pytest.mark.parametrize("tail", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("text", ["'valid'", "CAST(x'ff' AS TEXT)"])
def test_two_thousand_columns(chain: Chain, tail: str, text: str) -> None:
    names = [f"c{number}" for number in range(2000)]
    values = ", ".join(["7", text, *["NULL", "1.5", "x'00'"] * 666])
    execute(
        chain.path,
        f"CREATE TABLE t(c0 INTEGER PRIMARY KEY, {', '.join(names[1:])}){tail}",
        f"INSERT INTO t VALUES({values})",
        f"INSERT INTO t({', '.join(names[:3])}) VALUES(8, 1, 2)",
    )
    first = chain.take()
    assert first.table("t").rows == 2
    assert first.table("t").segments[0].raw == ("ff" in text)
    chain.prove(first, image_of(chain.path))
    found = {first.table("t").checksum}
    for column in (1, 899, 900, 901, 1800, 1999):
        execute(chain.path, f"UPDATE t SET c{column} = 'changed' WHERE c0 = 8")
        found.add(chain.take().table("t").checksum)
    assert len(found) == 7


def peak(_path: Path) -> int:
    """Most bytes that this worker ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("definition", ["t(id INTEGER PRIMARY KEY, value)", "t(id PRIMARY KEY, value) WITHOUT ROWID"])
def test_large_values_need_memory_for_one_at_a_time(chain: Chain, definition: str) -> None:
    megabytes = 20
    before = max(chain.workers.each(peak, chain.path))
    execute(
        chain.path,
        f"CREATE TABLE {definition}",
        *(f"INSERT INTO t VALUES({i}, zeroblob({megabytes << 20}))" for i in range(3)),
        *(f"INSERT INTO t VALUES({i}, printf('%.{megabytes << 20}c', 'x'))" for i in range(3, 6)),
        "WITH s(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM s WHERE i < 3000) INSERT INTO t SELECT i, 'small' FROM s",
    )
    taken = chain.take()
    assert taken.table("t").rows == 2997
    with closing(connect(chain.path)) as db:
        key = db.execute("SELECT id FROM t WHERE typeof(value) = 'text' ORDER BY id LIMIT 1").fetchall()[0][0]
        db.execute("UPDATE t SET value = substr(value, 1, length(value) - 1) || 'y' WHERE id = ?", (key,)).fetchall()
    again = chain.take()
    assert again.table("t").checksum != taken.table("t").checksum
    chain.prove(again)
    assert max(chain.workers.each(peak, chain.path)) - before < 5 * (megabytes << 20)


NAMES = (
    "simple",
    "two words",
    'double "quotes"',
    "single 'quotes'",
    "[brackets]",
    "`ticks`",
    "line\nbreak",
    "tab\tand\rreturn",
    "ünïcödé 表 🙂",
    "select",
    "a;DROP TABLE simple;--",
    "%s %d {} {0}",
    "back\\slash",
    ".dot.ted.",
    " ",
    "",
    "1",
    "x" * 500,
)


def test_names_of_every_kind(chain: Chain) -> None:
    with closing(connect(chain.path)) as db:
        for name in NAMES:
            table = '"' + name.replace('"', '""') + '"'
            for kind, tail in (("", ""), ("k", " WITHOUT ROWID")):
                other = table[:-1] + kind + '"'
                db.execute(f'CREATE TABLE {other}({table[:-1]}1" PRIMARY KEY, {table[:-1]}2"){tail}')
                db.execute(f"INSERT INTO {other} VALUES(1, 2)")
                db.execute(f'CREATE INDEX "i{len(db.execute("SELECT 1 FROM sqlite_schema").fetchall())}" ON {other}(2)')
    taken = chain.take()
    assert {table.name for table in taken.image.tables} == {name + kind for name in NAMES for kind in ("", "k")}
    assert {table.rows for table in taken.image.tables} == {1}
    chain.prove(taken, image_of(chain.path))
    chain.prove(chain.take(), image_of(chain.path))


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_special_values_through_a_backup(chain: Chain, encoding: str) -> None:
    values = (
        -0.0,
        math.inf,
        -math.inf,
        2**63 - 1,
        -(2**63),
        "a\0b",
        "007",
        "1e400",
        "",
        b"",
        None,
        "\ufeff",
        "\U0010ffff",
    )
    make(chain.path, [(value, 1, 2) for value in values], encoding=encoding)
    seen = {chain.take().table("t").checksum}
    for rowid in range(1, len(values) + 1):
        with closing(apsw.Connection(str(chain.path))) as db:
            db.execute(
                "UPDATE t SET a = CASE typeof(a) WHEN 'null' THEN 0 WHEN 'blob' THEN '' ELSE x'' END WHERE rowid = ?",
                (rowid,),
            )
        taken = chain.take()
        chain.prove(taken, image_of(chain.path))
        seen.add(taken.table("t").checksum)
    assert len(seen) == len(values) + 1
