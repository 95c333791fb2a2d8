"""Ranges of incrementals of MySQL and MariaDB, keys and lines, what statements may change, and what a host remembers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from crmbackup.engines.mysql.columns import Column, escaped, unescaped
from crmbackup.engines.mysql.joining import Position
from crmbackup.engines.mysql.keys import between, key_of
from crmbackup.engines.mysql.logged import changed_tables, prepared_name
from crmbackup.engines.mysql.memory import PartMemory, TableMemory, load_memory, save_memory
from crmbackup.engines.mysql.planning import plan_carried, plan_inherited, slices_of
from crmbackup.engines.sums import Part

PIECE = 1000


def test_the_server_escapes_no_value_that_may_be_long() -> None:
    """Its REPLACE takes time with the square of a value's length."""
    definitions = {
        "varchar(2049)": True,
        "varchar(2048)": False,
        "varbinary(8193)": True,
        "varbinary(8192) /*M!100301 COMPRESSED*/": False,
        "char(255)": False,
        "longtext": True,
        "json": True,
        "vector(16383)": True,
    }
    for definition, long in definitions.items():
        column = Column("v", definition.partition("(")[0], definition)
        assert column.known
        assert ("LENGTH" in column.line_sql) is long, definition


@given(st.data(), st.lists(st.integers(1, 4 * PIECE), max_size=40))
def test_ranges_cover_every_key_once_and_carry_only_what_is_known_unchanged(
    data: st.DataObject, sizes: list[int]
) -> None:
    old = [PartMemory((b"%d" % (number * 10),), 1, size) for number, size in enumerate(sizes)]
    parts = [Part(number, 1, number) for number in range(len(sizes))]
    changed = data.draw(st.none() | st.frozensets(st.integers(0, len(sizes))))
    plans = plan_inherited(old, parts, changed, piece=PIECE)
    # One after the other, from the first key on; the last is open unless nothing can have come after.
    low: tuple[bytes, ...] = ()
    for plan in plans:
        assert plan.range.low == low
        low = plan.range.high
    if changed is None or len(sizes) in changed or not sizes:
        assert plans[-1].range.high == ()
    else:
        assert plans[-1].range.high == old[-1].last
    carried = [part for plan in plans for part in plan.parts]
    assert carried == sorted(carried)
    untouched = set() if changed is None else set(range(len(sizes))) - changed
    assert {part.chunk for part in carried} <= untouched
    # Only the last part may be read without need, where rows came after it.
    assert untouched - {part.chunk for part in carried} <= {len(sizes) - 1}
    for plan in plans:
        assert plan.carried == bool(plan.parts)
        assert plan.carried or plan.size > 0
    read = [plan for group in slices_of(plans, PIECE) for plan in group]
    assert read == [plan for plan in plans if not plan.carried]


@given(st.lists(st.integers(1, PIECE), max_size=5))
def test_a_table_without_changes_is_carried_whole(sizes: list[int]) -> None:
    old = [PartMemory((b"%d" % number,), 1, size) for number, size in enumerate(sizes)]
    parts = [Part(number, 1, number) for number in range(len(sizes))]
    [plan] = plan_carried(old, parts)
    assert (plan.carried, plan.parts, plan.memory) == (True, parts, old)


@given(st.lists(st.none() | st.binary(max_size=8) | st.sampled_from([b"\\N", b"\\", b"\t\n\\t", b"\r\0"]), min_size=1))
def test_lines_hold_any_value(values: list[bytes | None]) -> None:
    fields = list(map(escaped, values))
    line = b"\t".join(fields)
    assert b"\n" not in line
    assert line.split(b"\t") == fields
    assert list(map(unescaped, fields)) == values
    columns = tuple(Column(str(number), "varbinary", "varbinary(99)") for number in range(len(values)))
    key = tuple(column for column, found in zip(columns, values, strict=True) if found is not None)
    assert key_of(line + b"\n", columns, key) == tuple(found for found in values if found is not None)


def test_ranges_are_compared_by_each_columns_type_and_collation() -> None:
    number = Column("a`", "int", "int(11)")
    text = Column("b", "char", "char(36)", "utf8mb4", "utf8mb4_bin")
    assert between((number,), (b"-5",), (b"7",)) == " WHERE `a``` > -5 AND `a``` <= 7"
    assert between((number,), (), ()) == ""
    assert between((number, text), (), (b"1", b"x'")) == (
        " WHERE `a``` <= 1 AND (`a``` < 1 OR (`a``` = 1 AND `b` <= _utf8mb4 X'7827' COLLATE utf8mb4_bin))"
    )


TABLES = ("contacts", "contacts_cstm", "a", "naïve", "tick`s")


def changed(text: str, selected: str = "crm") -> list[str] | None:
    return changed_tables(text.encode(), selected.encode(), "crm", TABLES)


def test_statements_that_change_no_row_are_told_from_those_that_may() -> None:
    for harmless in (
        "BEGIN",
        "COMMIT",
        "SAVEPOINT `a`",
        "ROLLBACK TO `a`",
        "XA START X'31',X'',1",
        "DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `contacts` /* generated by server */",
        "/* by an application */ CREATE TEMPORARY TABLE contacts(id int)",
        "GRANT ALL ON crm.* TO x@y",
        "CREATE OR REPLACE ALGORITHM=UNDEFINED DEFINER=`root`@`localhost` SQL SECURITY DEFINER VIEW `v` AS select 1",
        "OPTIMIZE TABLE contacts",
    ):
        assert changed(harmless) == [], harmless
    for anything in (
        "UPDATE contacts SET id = 1",
        "INSERT INTO other.t VALUES (1)",
        "DROP DATABASE crm",
        "CREATE OR REPLACE DATABASE crm",
        "BEGIN NOT ATOMIC DELETE FROM contacts; END",
        "ANALYZE UPDATE contacts SET id = 1",
        "/*!50003 TRUNCATE contacts */",
        "CALL something()",
        "DELETE HISTORY FROM contacts",
        "LOAD DATA INFILE 'x' INTO TABLE contacts",
        "",
    ):
        assert changed(anything) is None, anything
    assert changed("INSERT INTO t SELECT * FROM u", "other") is None


def test_definitions_change_the_tables_that_they_name() -> None:
    # What is not ASCII may be written in another character set.
    assert changed("truncate Contacts") == ["contacts", "naïve"]
    assert changed("ALTER TABLE `contacts_cstm` ADD x int") == ["contacts_cstm", "naïve"]
    assert changed("RENAME TABLE a TO b, `tick``s` TO `contacts`") == ["contacts", "a", "naïve", "tick`s"]
    assert changed("CREATE UNIQUE INDEX i ON crm.a(b)", "other") == ["a", "naïve"]
    assert changed("DROP TABLE IF EXISTS `contacts`", "other") == []
    assert changed("DROP TABLE IF EXISTS CRM.`contacts`", "other") == ["contacts", "naïve"]
    assert changed("CREATE DATABASE more", "more") == []


def test_prepared_transactions_are_known_by_their_names() -> None:
    assert prepared_name(b"XA END X'31',X'',1") == ("end", b"X'31',X'',1")
    assert prepared_name(b"XA COMMIT X'31',X'',1") == ("commit", b"X'31',X'',1")
    assert prepared_name(b"XA ROLLBACK X'31',X'',1") is None


@given(
    st.dictionaries(
        st.text(min_size=1),
        st.lists(st.tuples(st.lists(st.binary(), min_size=1, max_size=3), st.integers(0), st.integers(0)), max_size=3),
    )
)
def test_what_is_remembered_comes_back(tables: dict[str, list[tuple[list[bytes], int, int]]]) -> None:
    position = Position("1/host//data/", "MariaDB 10.11.6", "bin.000007", 4711, "0-1-99", 1_700_000_000, 1_600_000_000)
    memories = {
        name: TableMemory("f" * 64, (("id", "int(11)", ""),), tuple(PartMemory(tuple(k), r, s) for k, r, s in parts))
        for name, parts in tables.items()
    }
    with tempfile.TemporaryDirectory() as directory:
        save_memory(Path(directory), position, memories.items())
        memory = load_memory(Path(directory))
    assert memory.position == position
    assert memory.tables == memories
