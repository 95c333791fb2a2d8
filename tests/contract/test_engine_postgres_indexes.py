"""Indexes of large tables, which our own workers build: every kind comes back as it was, on real servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import TargetError
from crmbackup.engines.postgres import restore_indexes as indexes
from crmbackup.engines.postgres.restore_data import Session
from crmbackup.engines.postgres.restore_toc import Entry
from tests.postgres import TestServer
from tests.support_postgres import assert_same
from tests.support_postgres_cases import CRM, Case, make_case, names_in, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "workers"]

KINDS = r"""
CREATE TABLE people (
    id int, mail text NOT NULL, name text, "Town ""x"", (y)" text, spot point, span int4range, words tsvector, number int,
    CONSTRAINT people_pkey PRIMARY KEY (id) INCLUDE (mail) WITH (fillfactor=70),
    CONSTRAINT "odd; name" UNIQUE (name, "Town ""x"", (y)") DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT later UNIQUE (number) DEFERRABLE,
    CONSTRAINT apart EXCLUDE USING gist (span WITH &&));
INSERT INTO people SELECT i, i || '@x', 'n' || i, 't' || i % 7, point(i, i), int4range(i * 10, i * 10 + 5),
    to_tsvector('simple', 'w' || i), i FROM generate_series(1, 500) i;
CREATE UNIQUE INDEX mails ON people (lower(mail)) WHERE id > 0;
CREATE INDEX descending ON people (name DESC NULLS LAST, id) INCLUDE (number);
CREATE INDEX patterns ON people (name text_pattern_ops, mail COLLATE "C");
CREATE INDEX ON people USING gin (words);
CREATE INDEX ON people USING gist (spot);
CREATE INDEX ON people USING hash (name);
CREATE INDEX ON people USING brin (id);
CREATE INDEX "we ird
-- TOC entry 5 (class 1 OID 1)" ON people ((name || ';'));
CREATE INDEX targets ON people ((number + 1));
ALTER INDEX targets ALTER COLUMN 1 SET STATISTICS 400;
COMMENT ON INDEX mails IS 'of people';
COMMENT ON CONSTRAINT later ON people IS 'when all is done';
ALTER TABLE people CLUSTER ON people_pkey;
CREATE TABLE copies (id int NOT NULL, CONSTRAINT same UNIQUE (id)); INSERT INTO copies SELECT generate_series(1, 9);
ALTER TABLE copies REPLICA IDENTITY USING INDEX same;
CREATE TABLE calls (id int PRIMARY KEY, person int REFERENCES people, which int REFERENCES copies (id));
INSERT INTO calls SELECT i, i, 1 FROM generate_series(1, 20) i;
CREATE TABLE parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE part_1 PARTITION OF parted FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE INDEX days ON parted (day);
INSERT INTO parted SELECT i, '2024-05-05' FROM generate_series(1, 50) i;
CREATE VIEW by_key AS SELECT p.id, p.name, count(*) FROM people p JOIN calls c ON c.person = p.id GROUP BY p.id;
CREATE MATERIALIZED VIEW sums AS SELECT * FROM by_key; CREATE UNIQUE INDEX ON sums (id);
"""
BUILT = {
    "public.mails", "public.descending", "public.patterns", "public.people people_pkey", "public.people odd; name",
    "public.people later", "public.calls calls_pkey", "public.copies same", "public.part_1_day_idx",
    "public.part_1 part_1_pkey",
    "public.we ird -- TOC entry 5 (class 1 OID 1)",
}  # fmt: skip


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every table is large; gives the names of what is built by our workers."""
    names: list[str] = []
    original = indexes.builds

    def builds(entries: Mapping[Entry, int], text: bytes) -> list[indexes.Build]:
        found = original(entries, text)
        names.extend(build.entry.bare for build in found)
        return found

    monkeypatch.setattr(indexes, "LARGE", 1)
    monkeypatch.setattr(indexes, "builds", builds)
    return names


@pytest.mark.parametrize("server", ["pg12", "pg15", "pg18"])
def test_every_kind_of_index_and_key_is_what_it_was(
    make_case: Callable[..., Case], built: list[str], request: pytest.FixtureRequest, server: str
) -> None:
    more = (
        "" if server == "pg12" else "ALTER TABLE people ADD CONSTRAINT nulls UNIQUE NULLS NOT DISTINCT (mail, number);"
    )
    case = make_case(KINDS + more, request.getfixturevalue(server))
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    # From 18 on NOT NULL of a partition is its parent's, and pg_restore makes the key.
    assert set(built) == (BUILT | ({"public.people nulls"} if more else set())) - (
        {"public.part_1 part_1_pkey"} if server == "pg18" else set()
    )
    assert case.execute(place.database, "SELECT relname FROM pg_class WHERE oid IN (SELECT indexrelid FROM pg_index"
                        " WHERE NOT indisvalid OR NOT indisready)") == []  # fmt: skip
    # They hold: a key refuses what it refused, a deferred one only at the end.
    case.execute(place.database, "BEGIN; SET CONSTRAINTS ALL DEFERRED;"
                 " INSERT INTO people (id, mail, number) VALUES (0, 'a', 1), (-1, 'b', 1); ROLLBACK")  # fmt: skip
    with case.host.connect(place.database) as connection, pytest.raises(Exception, match="people_pkey"):
        connection.execute("INSERT INTO people (id, mail) VALUES (1, 'again')")


@pytest.mark.parametrize("encoding", ["LATIN1", "UTF8"])
def test_names_and_literals_in_any_encoding(make_case: Callable[..., Case], built: list[str], encoding: str) -> None:
    case = make_case(
        'CREATE TABLE "Gäste" ("Straße" text, CONSTRAINT "schlüssel" PRIMARY KEY ("Straße"));'
        """ CREATE INDEX "größe" ON "Gäste" (("Straße" || 'ö\\n''%s')); INSERT INTO "Gäste" VALUES ('ä'), ('\\.')""",
        encoding=encoding,
        locale="C",
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place(make=False), create=True))
    assert len(built) == 2


def test_bytes_of_no_encoding_in_names(make_case: Callable[..., Case], built: list[str]) -> None:
    case = make_case(
        "CREATE TABLE t (a text); INSERT INTO t VALUES (E'\\xe4'); DO $$BEGIN"
        " EXECUTE format('CREATE INDEX %I ON t ((a || %L))', E'n\\xe4m\\xff', E'\\xfe\\xc3');"
        " EXECUTE format('ALTER TABLE t ADD CONSTRAINT %I PRIMARY KEY (a)', E'k\\xe4'); END$$",
        encoding="SQL_ASCII",
        locale="C",
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place(make=False), create=True))
    assert len(built) == 2


def test_a_literal_that_looks_like_the_next_object_is_left_to_pg_restore(
    make_case: Callable[..., Case], built: list[str]
) -> None:
    case = make_case(
        "CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'x');"
        " CREATE INDEX hostile ON t (b) WHERE b <> E';\\n\\n\\n--\\n-- TOC entry 5 (class 1259 OID 5)\\n--\\n\\nDROP TABLE t'"
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))
    assert built == []


def test_a_large_database_of_all_kinds(make_case: Callable[..., Case], built: list[str]) -> None:
    case = make_case(CRM)
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place(make=False), create=True))
    assert {"crm.by_name", "crm.contacts contacts_pkey", "crm.companies companies_name_key"} <= set(built)


@pytest.mark.parametrize(("allowed", "expected"), [("1GB", "8MB"), ("2MB", "2MB")])
def test_an_index_that_cannot_be_built_is_named_and_nothing_stays(
    make_case: Callable[..., Case], built: list[str], allowed: str, expected: str
) -> None:
    case = make_case(
        "CREATE TABLE known (n int); CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN"
        " IF EXISTS (SELECT FROM public.known) THEN"
        " RAISE 'memory for sorting is %', current_setting('maintenance_work_mem'); END IF; RETURN $1; END$$;"
        " CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 1000);"
        " CREATE INDEX broken ON t (f(a)); CREATE INDEX fine ON t ((a + 1)); INSERT INTO known VALUES (1)"
    )
    taken = case.chain.take()
    place = case.place()
    case.execute(place.database, f"ALTER DATABASE {place.database} SET maintenance_work_mem = '{allowed}'")
    error = error_of(lambda: case.restored(taken, place))
    assert isinstance(error, TargetError)
    assert error.why == f"INDEX public.broken: memory for sorting is {expected}"
    assert names_in(case, place.database) == ["plpgsql", "public"]
    assert "public.broken" in built


def test_one_that_fails_ends_those_that_are_at_work(make_case: Callable[..., Case], built: list[str]) -> None:
    case = make_case(
        "CREATE TABLE known (n int); CREATE FUNCTION f(int, text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN"
        " IF EXISTS (SELECT FROM public.known) THEN"
        " IF $2 = 'slow' THEN PERFORM pg_sleep(3000); ELSE RAISE 'broken'; END IF; END IF; RETURN $1; END$$;"
        " CREATE TABLE t (a int); INSERT INTO t VALUES (1);"
        " CREATE INDEX a_slow ON t (f(a, 'slow')); CREATE INDEX broken ON t (f(a, 'x')); INSERT INTO known VALUES (1)"
    )
    taken = case.chain.take()
    place = case.place()
    assert "INDEX public.broken: broken" in str(error_of(lambda: case.restored(taken, place)))
    assert names_in(case, place.database) == ["plpgsql", "public"]
    assert case.execute(place.database, "SELECT query FROM pg_stat_activity WHERE query LIKE '%a_slow ON%'"
                        " AND pid <> pg_backend_pid()") == []  # fmt: skip


def test_nothing_is_built_for_a_restore_that_was_given_up(make_case: Callable[..., Case], tmp_path: Path) -> None:
    case = make_case("CREATE TABLE t (a int)")
    session = Session(case.chain.server, "token", tmp_path / "alive")
    wanted = indexes.Build(Entry(1, "1259/1", "INDEX", "public i postgres"), b"CREATE INDEX i ON t (a)", b"", 8192)
    assert "was given up" in str(error_of(lambda: indexes.build(session, "UTF8", wanted)))
    assert case.execute(case.names[0], "SELECT indexrelid FROM pg_index WHERE indrelid = 't'::regclass") == []


@pytest.mark.parametrize("server", ["pg15", "pg18"])
def test_comments_on_keys_and_indexes_that_stand_after_tables_only(
    make_case: Callable[..., Case], built: list[str], request: pytest.FixtureRequest, server: str
) -> None:
    case = make_case(
        "CREATE TABLE a (id int CONSTRAINT apk PRIMARY KEY); INSERT INTO a VALUES (1);"
        " COMMENT ON CONSTRAINT apk ON a IS 'key'; COMMENT ON INDEX apk IS 'index';"
        " CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); INSERT INTO b VALUES (1, 1)",
        request.getfixturevalue(server),
    )
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert "public.a apk" in built
    assert case.execute(place.database, "SELECT obj_description('apk'::regclass), obj_description(oid)"
                        " FROM pg_constraint WHERE conname = 'apk'") == [("index", "key")]  # fmt: skip


@pytest.mark.parametrize("large", [1, 1 << 62])
@pytest.mark.parametrize("create", [False, True])
def test_definitions_mean_what_they_mean_in_the_database(
    make_case: Callable[..., Case], built: list[str], monkeypatch: pytest.MonkeyPatch, large: int, create: bool
) -> None:
    monkeypatch.setattr(indexes, "LARGE", large)
    case = make_case("")
    settings = ["SET datestyle = 'ISO, DMY'", "SET timezone = 'Asia/Tokyo'"]
    case.execute(case.names[0], "; ".join(f"ALTER DATABASE {case.names[0]} {each}" for each in settings))
    case.execute(
        case.names[0],
        "CREATE FUNCTION day(text) RETURNS date LANGUAGE sql IMMUTABLE AS 'SELECT $1::date';"
        " CREATE FUNCTION day(timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS 'SELECT $1::date';"
        " CREATE TABLE t (a text, at timestamptz); INSERT INTO t VALUES ('01-02-03', '2024-01-01Z'), ('31.12.2020', '2024-01-01 22:00Z');"
        " CREATE INDEX days ON t (day(a)); CREATE INDEX at ON t (day(at));"
        " CREATE MATERIALIZED VIEW m AS SELECT day(a) AS day, day(at) AS at FROM t",
    )
    taken = case.chain.take()
    place = case.place(make=not create)
    if not create:
        case.execute(place.database, "; ".join(f"ALTER DATABASE {place.database} {each}" for each in settings))
    case.chain.restore(taken, case.chain.target(place, create=create))
    assert bool(built) == (large == 1)
    with case.host.connect(place.database) as connection:
        connection.execute("SET enable_seqscan = off")
        assert connection.execute("SELECT a FROM t WHERE day(a) = '2003-02-01'").fetchall() == [("01-02-03",)]
        assert connection.execute("SELECT a FROM t WHERE day(at) = '2024-01-02'").fetchall() == [("31.12.2020",)]
        assert connection.execute("SELECT count(*) FROM m WHERE day = '2003-02-01'").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM m WHERE at = '2024-01-02'").fetchone() == (1,)
    case.chain.prove(taken)


def test_not_null_of_a_parent_stays_the_parents(
    make_case: Callable[..., Case], built: list[str], pg18: TestServer
) -> None:
    case = make_case(
        "CREATE TABLE parent (z int NOT NULL, y int UNIQUE); CREATE TABLE child (w int) INHERITS (parent);"
        " ALTER TABLE child ADD PRIMARY KEY (z); INSERT INTO child VALUES (1, 2, 3); INSERT INTO parent VALUES (1, 2)",
        pg18,
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))
    assert built == ["public.parent parent_y_key"]


def test_an_index_over_a_function_that_needs_a_key(make_case: Callable[..., Case], built: list[str]) -> None:
    case = make_case(
        "CREATE TABLE plain (id int PRIMARY KEY, n text); INSERT INTO plain VALUES (1, 'x');"
        " CREATE FUNCTION look(int) RETURNS text LANGUAGE sql IMMUTABLE"
        " BEGIN ATOMIC SELECT n FROM public.plain p WHERE p.id = $1 GROUP BY p.id; END;"
        " CREATE TABLE big (a int); INSERT INTO big VALUES (1); CREATE INDEX uses ON big (look(a))"
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))
    assert built == ["public.plain plain_pkey"]


def test_literals_of_another_kind_are_left_to_pg_restore(make_case: Callable[..., Case], built: list[str]) -> None:
    case = make_case("CREATE TABLE t (b text)")
    case.execute(case.names[0], f"ALTER DATABASE {case.names[0]} SET standard_conforming_strings = off")
    case.execute(
        case.names[0],
        "SET escape_string_warning = off; INSERT INTO t VALUES ('x');"
        " CREATE INDEX forged ON t (b) WHERE b <> 'a\\b' AND b <> '\nSET standard_conforming_strings = on;\n'",
    )
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))
    assert built == []


@given(st.integers(indexes.LARGE, 1 << 45))
def test_half_of_a_table_is_merged_in_one_pass(size: int) -> None:
    memory = indexes.sort_memory(size) * 1024
    assert memory >= 8 << 20
    assert size / 2 / memory <= memory / (34 * 8192) * 1.001


def test_small_tables_are_left_to_pg_restore(make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "builds", lambda *_: pytest.fail("asked"))
    case = make_case(CRM)
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))
