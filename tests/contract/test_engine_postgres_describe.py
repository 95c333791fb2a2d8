"""A description of a database equals that of its restored copy, and nothing can change without changing it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from crmbackup.core.errors import SourceDenied
from crmbackup.engines.postgres.catalog import read_tables
from crmbackup.engines.postgres.checks import check_claims, read_claims
from crmbackup.engines.postgres.connection import connect
from crmbackup.engines.postgres.describe import describe, listing, same_arrays, same_names
from crmbackup.engines.postgres.needs import read_needs
from crmbackup.engines.postgres.programs import find_program
from crmbackup.engines.postgres.roles import read_roles
from tests.postgres import TestServer
from tests.support_postgres_describe import CHANGES, RICH, SINCE


@dataclass(frozen=True)
class Pair:
    """A database, what it was restored as, and the archive between them."""

    server: TestServer
    source: str
    copy: str
    archive: Path
    description: dict

    @property
    def pg_restore(self) -> list[str]:
        program = find_program("pg_restore", at_least=self.server.major).path
        return [str(program), "--exit-on-error"]


def restore(pair: Pair, database: str, *options: str) -> None:
    command = [*pair.pg_restore, "-d", pair.server.conninfo(database), *options, str(pair.archive)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=["pg12", "pg15", "pg18"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    server: TestServer = request.getfixturevalue(request.param)
    archive = tmp_path_factory.mktemp("describe") / "archive"
    source = server.create_database("described", template="template0")
    server.create_database("described_copy", template="template0")
    with closing(server.connect("described")) as connection:
        for role in ("app", "reader", '"we""ird"'):
            connection.execute(f"CREATE ROLE {role}")
        for part in RICH.split("-- next"):  # a new label of an enum can be used after its transaction
            connection.execute(part.encode())
    program = find_program("pg_dump", at_least=server.major).path
    subprocess.run([program, "-Fc", "-d", source, "-f", archive], check=True)
    with closing(connect(server.server("described"))) as connection:
        pair = Pair(server, "described", "described_copy", archive, describe(connection))
    restore(pair, "described_copy")
    yield pair
    # Subscriptions and other databases' objects hold on to roles.
    for name in ("described", "described_copy"):
        with closing(server.connect(name)) as connection:
            connection.execute("DROP SUBSCRIPTION IF EXISTS sub")
        server.drop_database(name)
    with closing(server.connect()) as connection:
        connection.execute('DROP ROLE app, reader, "we""ird"')


def test_a_restored_copy_is_described_as_its_source_is(pair: Pair) -> None:
    with (
        closing(connect(pair.server.server(pair.source))) as source,
        closing(connect(pair.server.server(pair.copy))) as copy,
    ):
        ours, theirs = listing(source), listing(copy)
        different = {kind: sorted(ours[kind].items() ^ theirs[kind].items()) for kind in ours}
        assert not any(different.values()), {kind: found for kind, found in different.items() if found}
        assert describe(copy) == pair.description
    # Every kind but these four has something in it: equal because it is empty would prove nothing.
    empty = {kind for kind, found in ours.items() if not found}
    assert empty == {"languages", "transforms", "large_objects", "security_labels"}
    assert pair.description["objects"]["tables"] == 17


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[change for _, change in CHANGES])
def test_every_change_shows(pair: Pair, kind: str, change: str) -> None:
    known = [since for part, since in SINCE.items() if part in change]
    if known and known[0] > pair.server.major:
        change = "ALTER TABLE crm.refs ADD COLUMN instead int"
    with closing(connect(pair.server.server(pair.copy), autocommit=False)) as connection:
        connection.execute(change.encode())
        found = describe(connection)
        connection.rollback()
    changed = {name for name in found["kinds"] if found["kinds"][name] != pair.description["kinds"][name]}
    assert kind in changed
    assert found["digest"] != pair.description["digest"]


def test_without_owners_a_restore_without_roles_is_described_the_same(pair: Pair) -> None:
    pair.server.create_database("described_bare", template="template0")
    try:
        # Subscriptions of one name would meet in the server, which keeps them for all databases.
        restore(pair, "described_bare", "--no-owner", "--no-privileges", "--no-subscriptions")
        with (
            closing(connect(pair.server.server(pair.source))) as source,
            closing(connect(pair.server.server("described_bare"))) as bare,
        ):
            ours, theirs = describe(source, owners=False)["kinds"], describe(bare, owners=False)["kinds"]
            assert {kind for kind in ours if ours[kind] != theirs[kind]} == {"subscriptions"}
            assert describe(source)["kinds"]["owners"] != describe(bare)["kinds"]["owners"]
    finally:
        pair.server.drop_database("described_bare")


def test_someone_without_rights_describes_the_same(pair: Pair) -> None:
    with closing(pair.server.connect()) as admin:
        admin.execute("CREATE ROLE nobody_special LOGIN")
        try:
            server = pair.server.server(pair.copy)
            as_nobody = type(server)(tuple(sorted({**dict(server.keywords), "user": "nobody_special"}.items())))
            with closing(connect(as_nobody)) as connection:
                found = describe(connection)["kinds"]
                with pytest.raises(SourceDenied):
                    read_roles(connection, passwords=True)
        finally:
            admin.execute("DROP ROLE nobody_special")
    # pg_dump carries subscriptions for superusers only.
    assert {kind for kind in found if found[kind] != pair.description["kinds"][kind]} == {"subscriptions"}


def test_no_secret_is_in_the_listing(pair: Pair) -> None:
    with closing(connect(pair.server.server(pair.source))) as connection:
        assert "secret" not in str(listing(connection))


def test_bytes_that_are_no_text_are_described_as_they_are(pg15: TestServer) -> None:
    pg15.create_database("described_ascii", encoding="SQL_ASCII", locale="C")
    try:
        with (
            closing(pg15.connect("described_ascii", client_encoding="SQL_ASCII")) as writer,
            closing(connect(pg15.server("described_ascii"))) as reader,
        ):
            writer.execute("CREATE TABLE t (a int)")
            digests = set()
            for comment in (b"caf\xe9", b"caf\xe8", b"cafe"):
                writer.execute(b"COMMENT ON TABLE t IS '" + comment + b"'")
                digests.add(describe(reader)["digest"])
            assert len(digests) == 3
    finally:
        pg15.drop_database("described_ascii")


def test_one_array_shown_in_two_ways_is_one() -> None:
    first = "(status)::text = ANY ((ARRAY['a'::character varying, 'it''s, ]'::character varying])::text[])"
    second = "(status)::text = ANY (ARRAY[('a'::character varying)::text, ('it''s, ]'::character varying)::text])"
    assert same_arrays(first) == second == same_arrays(second)


def test_a_view_that_was_shown_and_read_back_is_the_same(pg15: TestServer) -> None:
    view = (
        "SELECT * FROM (SELECT 1 AS a, 1.5 AS b, 'x'::text AS c, 'y'::varchar AS d, now() AS e, true AS f, ARRAY[1] AS g"
        " UNION ALL SELECT NULL, 2 + 3, 'z'::name, NULL, NULL, NULL, NULL) AS q"
    )
    pg15.create_database("described_views")
    try:
        with closing(connect(pg15.server("described_views"))) as connection:
            connection.execute(f"CREATE VIEW public.v AS {view}".encode())
            first = listing(connection)["views"]
            row = connection.execute("SELECT pg_get_viewdef('public.v'::regclass)").fetchone()
            assert row is not None
            connection.execute(f"DROP VIEW public.v; CREATE VIEW public.v AS {row[0]}".encode())
            assert connection.execute("SELECT pg_get_viewdef('public.v'::regclass)").fetchone() != row
            assert listing(connection)["views"] == first
            connection.execute("DROP VIEW public.v; CREATE VIEW public.v AS SELECT 1::integer AS a")
            other = listing(connection)["views"]
            connection.execute("DROP VIEW public.v; CREATE VIEW public.v AS SELECT 1::bigint AS a")
            assert listing(connection)["views"] != other
    finally:
        pg15.drop_database("described_views")


def test_names_of_casts_that_mean_something_stay() -> None:
    kept = r"SELECT NULL::integer AS amount, x::numeric(3,1) AS \"Numeric\", 'a'::text AS int4;"
    assert same_names(kept) == kept
    named = r"SELECT NULL::integer AS int4, 1::numeric(3,1) AS \"numeric\",\n NULL::crm.kind[] AS kind FROM t;"
    assert same_names(named) == r"SELECT NULL::integer, 1::numeric(3,1),\n NULL::crm.kind[] FROM t;"


def test_a_table_comes_back_alone_with_what_it_needs(pair: Pair, tmp_path: Path) -> None:
    with closing(connect(pair.server.server(pair.source))) as connection:
        tables = read_tables(connection)
        needs = read_needs(connection, tables)
    toc = subprocess.run([*pair.pg_restore, "-l", pair.archive], capture_output=True, text=True, check=True).stdout
    entries = {
        line: f"{match[1]}/{match[2]}" for line in toc.splitlines() if (match := re.match(r"\d+; (\d+) (\d+) ", line))
    }
    assert len(tables) == 13
    for table in tables:
        chosen = tmp_path / "list"
        wanted = {f"1259/{table.oid}", *needs[table.label]}
        chosen.write_text("".join(f"{line}\n" for line, entry in entries.items() if entry in wanted))
        pair.server.create_database("described_part", template="template0")
        try:
            restore(pair, "described_part", "-L", str(chosen))
            with closing(connect(pair.server.server("described_part"))) as connection:
                assert table.label in [found.label for found in read_tables(connection)]
                if table.name == "accounts":
                    found = describe(connection)["objects"]
                    counts = {
                        kind: found.get(kind) for kind in ("tables", "indexes", "triggers", "policies", "sequences")
                    }
                    assert counts == {"tables": 1, "indexes": 4, "triggers": 4, "policies": 1, "sequences": 3}
        finally:
            pair.server.drop_database("described_part")


BROKEN = """
CREATE SCHEMA "s'""k.";
CREATE TABLE "s'""k."."par""ent" ("i""d" int PRIMARY KEY, a int, b text, UNIQUE (a, b));
CREATE TABLE "s'""k.".kid ("f k" int REFERENCES "s'""k."."par""ent", a int, b varchar, c int, d text,
    CONSTRAINT simple FOREIGN KEY (a, b) REFERENCES "s'""k."."par""ent" (a, b),
    CONSTRAINT "full" FOREIGN KEY (c, d) REFERENCES "s'""k."."par""ent" (a, b) MATCH FULL);
CREATE TABLE parted (i int REFERENCES "s'""k."."par""ent") PARTITION BY LIST (i);
CREATE TABLE parted_all PARTITION OF parted DEFAULT;
INSERT INTO "s'""k."."par""ent" VALUES (1, 1, 'x');
INSERT INTO "s'""k.".kid VALUES (1, 1, NULL, 1, 'x'), (NULL, 1, 'x', NULL, NULL), (1, 7, NULL, NULL, NULL);
INSERT INTO parted VALUES (1), (NULL);
"""


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("SELECT", []),
        ("""INSERT INTO "s'""k.".kid ("f k") VALUES (2)""", ["kid_f k_fkey"]),
        ("""INSERT INTO "s'""k.".kid (a, b) VALUES (1, 'y')""", ["simple"]),
        ("""INSERT INTO "s'""k.".kid (c) VALUES (1)""", ["full"]),
        ("INSERT INTO parted VALUES (3), (4)", ["parted_i_fkey"]),
    ],
)
@pytest.mark.parametrize("major", ["pg12", "pg15", "pg18"])
def test_rows_that_refer_to_nothing_are_found(
    request: pytest.FixtureRequest, major: str, change: str, names: list[str]
) -> None:
    server: TestServer = request.getfixturevalue(major)
    server.create_database("broken")
    try:
        with closing(connect(server.server("broken"), autocommit=False)) as connection:
            connection.execute("SET search_path = public")
            connection.execute(BROKEN.encode())
            connection.execute("SET session_replication_role = replica")
            connection.execute(change.encode())
            outcomes = {outcome.name: outcome for outcome in check_claims(connection, read_claims(connection))}
    finally:
        server.drop_database("broken")
    found = outcomes["foreign_key_check"]
    assert found.ok == (not names)
    assert [re.sub(r'.*"(.*)": .*', r"\1", part) for part in found.detail.split(", ") if names] == names
    assert outcomes["invalid_indexes"].ok


def test_an_index_that_failed_to_build_is_found(pg15: TestServer) -> None:
    pg15.create_database("broken")
    try:
        with closing(connect(pg15.server("broken"))) as connection:
            connection.execute("CREATE TABLE public.t AS SELECT 1 AS a FROM generate_series(1, 2)")
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute('CREATE UNIQUE INDEX CONCURRENTLY "b""ad" ON public.t (a)')
            outcome = check_claims(connection, read_claims(connection))[0]
            assert (outcome.name, outcome.ok, outcome.detail) == ("invalid_indexes", False, 'public."b""ad"')
    finally:
        pg15.drop_database("broken")
