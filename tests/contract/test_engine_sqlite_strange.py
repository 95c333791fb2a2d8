"""Databases that need parts of their application which are missing here: what cannot be read is told, the rest is covered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, connect, execute, fill, image_of, spoil


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with ProcessWorkers(2) as workers:
        yield Chain(tmp_path / "crm.db", tmp_path, workers, busy_seconds=0.3)


class Module:
    """A virtual table of the application."""

    def create(self, *arguments: object) -> tuple[str, object]:
        return "CREATE TABLE x(a, b)", self

    def nothing(self, *arguments: object) -> None:
        return None

    Create = Connect = create
    BestIndex = Disconnect = Destroy = nothing


def make_strange(path: Path) -> None:
    with closing(connect(path)) as db:
        db.create_module("appmodule", Module())
        db.create_scalar_function("appfunction", lambda value: value, 1, deterministic=True)
        db.create_collation("appcollation", lambda one, other: (one > other) - (one < other))
        for statement in (
            "CREATE TABLE plain(a, b)",
            "CREATE VIRTUAL TABLE foreign_rows USING appmodule",
            "CREATE TABLE foreign_rows_data(id INTEGER PRIMARY KEY, block)",
            "CREATE TABLE collated(a TEXT COLLATE appcollation, b)",
            "CREATE INDEX collated_a ON collated(a)",
            "CREATE TABLE keyed(a TEXT COLLATE appcollation PRIMARY KEY, b) WITHOUT ROWID",
            "CREATE TABLE indexed(a, b)",
            "CREATE INDEX indexed_f ON indexed(appfunction(a))",
            "CREATE INDEX indexed_partly ON indexed(b) WHERE appfunction(a) > 3",
            "CREATE TABLE generated(a, b AS (appfunction(a)) STORED, c AS (appfunction(a)) VIRTUAL)",
            "CREATE TABLE checked(a CHECK (appfunction(a) > 0), b)",
            "CREATE TABLE defaulted(a, b DEFAULT (appfunction(1)))",
            "CREATE TABLE referred(a REFERENCES keyed(a), b)",
            "CREATE VIEW seen AS SELECT appfunction(a) FROM plain",
            "CREATE TRIGGER fired AFTER INSERT ON defaulted BEGIN SELECT appfunction(new.a); END",
        ):
            db.execute(statement).fetchall()
        for table in ("plain", "foreign_rows_data(id, block)", "indexed", "generated(a)", "checked", "defaulted"):
            values = "(1), (2), (3)" if table == "generated(a)" else "(1, 2), (3, 4), (5, 6)"
            db.execute(f"INSERT INTO {table} VALUES {values}").fetchall()
        for table in ("collated", "keyed", "referred"):
            db.execute(f"INSERT INTO {table} VALUES ('b', 1), ('a', 2), ('c', 3)").fetchall()


def test_what_only_the_application_knows_is_told_and_stops_nothing(chain: Chain) -> None:
    make_strange(chain.path)
    chain.take()
    taken = chain.take()
    unreadable = {table.name: table.reason for table in taken.image.tables if table.unreadable}
    assert list(unreadable) == ["foreign_rows"]
    assert "no such module: appmodule" in unreadable["foreign_rows"]
    assert list(taken.image.not_covered) == list(unreadable.items())
    assert [warning.code for warning in taken.warnings] == ["table-unreadable"]
    readable = ["checked", "collated", "defaulted", "foreign_rows_data", "generated", "indexed", "keyed", "plain"]
    assert {table.name: table.rows for table in taken.image.tables if not table.unreadable} == dict.fromkeys(
        [*readable, "referred"], 3
    )
    found = chain.prove(taken, image_of(chain.path))
    checks = {check.name: check for check in found.checks}
    integrity = checks["integrity_check"]
    assert integrity.ok
    assert "limited" in integrity.detail
    for name in ("collated", "keyed", "indexed", "checked"):
        assert f"{name} (" in integrity.detail
    assert "plain" not in integrity.detail
    assert "limited, not checked: referred" in checks["foreign_key_check"].detail


def test_a_limited_check_still_finds_damage(chain: Chain, tmp_path: Path) -> None:
    make_strange(chain.path)
    with closing(connect(chain.path)) as db:
        db.execute("CREATE INDEX plain_b ON plain(b)").fetchall()
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'plain_b'").fetchall()
        page_size = int(db.pragma("page_size"))
    spoil(chain.path, int(str(page)), b"\x0a\0\0\0\0\0\0\0", page_size)
    taken = chain.take()
    found = chain.verify(taken, chain.restore(taken))
    integrity = next(check for check in found.checks if check.name == "integrity_check")
    assert not integrity.ok
    assert "limited" in integrity.detail


def test_row_counts_alone_need_no_collation(chain: Chain) -> None:
    make_strange(chain.path)
    chain.checksums = "pages"
    taken = chain.take()
    assert {table.rows for table in taken.image.tables} == {3, None}
    assert {table.checksum for table in taken.image.tables} == {None}
    chain.prove(taken)


def test_full_text_indexes_with_a_tokenizer_of_the_application(chain: Chain) -> None:
    for name, module in (("old", "fts4"), ("new", "fts5")):
        execute(chain.path, f"CREATE VIRTUAL TABLE {name} USING {module}(body)", f"INSERT INTO {name} VALUES('hello')")
    with closing(connect(chain.path)) as db:
        db.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        changed = "replace(sql, '(body)', '(body, tokenize=apptokens)')"
        db.execute(f"UPDATE sqlite_schema SET sql = {changed} WHERE name IN ('old', 'new')").fetchall()
    taken = chain.take()
    assert taken.table("old").unreadable
    assert "apptokens" in taken.table("old").reason
    assert (taken.table("old_content").rows, taken.table("new_content").rows) == (1, 1)
    found = chain.prove(taken)
    integrity = next(check for check in found.checks if check.name == "integrity_check")
    assert "not checked at all: new (SQL logic error), old (unknown tokenizer: apptokens)" in integrity.detail


def test_definitions_that_are_not_valid_text(chain: Chain) -> None:
    """As applications wrote them that took Latin-1 for UTF-8."""
    fill(chain.path)
    execute(
        chain.path,
        "CREATE TABLE commented(a /* COMMENT */)",
        "INSERT INTO commented VALUES(1)",
        "CREATE TABLE COLUMNS(a, b)",
        "CREATE TABLE named(a)",
        "INSERT INTO named VALUES(1)",
    )
    with closing(connect(chain.path)) as db:
        db.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        for old, new in (("COMMENT", "x'fc'"), ("COLUMNS(a", "CAST('COLUMNS(' AS BLOB) || x'fc'")):
            db.execute(f"UPDATE sqlite_schema SET sql = replace(sql, '{old}', CAST({new} AS TEXT))").fetchall()
        bad_name = "CAST('na' AS BLOB) || x'fc'"
        db.execute(
            f"UPDATE sqlite_schema SET name = CAST({bad_name} AS TEXT), tbl_name = CAST({bad_name} AS TEXT),"
            f" sql = replace(sql, 'named', CAST({bad_name} AS TEXT)) WHERE name = 'named'"
        ).fetchall()
    taken = chain.take()
    assert taken.table("commented").rows == 1
    assert taken.table("COLUMNS").unreadable
    assert taken.table("na\\xfc").unreadable
    assert {name for name, _ in taken.image.not_covered} == {"COLUMNS", "na\\xfc"}
    target = chain.restore(taken)
    assert target.read_bytes() == image_of(chain.path)


def test_rows_without_parents_fail_their_check(chain: Chain) -> None:
    execute(
        chain.path,
        "CREATE TABLE parents(id INTEGER PRIMARY KEY)",
        "CREATE TABLE children(id INTEGER PRIMARY KEY, parent REFERENCES parents(id))",
        "INSERT INTO children VALUES(1, NULL), (2, 77)",
    )
    taken = chain.take()
    found = chain.verify(taken, chain.restore(taken))
    check = next(check for check in found.checks if check.name == "foreign_key_check")
    assert not check.ok
    assert "children row 2 has no parent in parents" in check.detail
