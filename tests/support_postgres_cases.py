"""Databases of a CRM to back up and restore, for the tests of PostgreSQL restores."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crmbackup.engines.base import Restore, Verification
from crmbackup.engines.postgres.connection import Server
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer
from tests.support_postgres import PgChain, Taken

CRM = """
CREATE SCHEMA crm;
CREATE TYPE crm.stage AS ENUM ('lead', 'customer', 'lost');
CREATE DOMAIN crm.email AS text CHECK (VALUE ~ '@');
CREATE FUNCTION crm.stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.changed := '2020-01-01'; RETURN NEW; END$$;
CREATE TABLE crm.companies (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE crm.contacts (
    id serial PRIMARY KEY, company int REFERENCES crm.companies, name text, mail crm.email, stage crm.stage,
    changed timestamptz DEFAULT now(), shout text GENERATED ALWAYS AS (upper(name)) STORED, raw bytea, amount numeric);
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON crm.contacts FOR EACH ROW EXECUTE FUNCTION crm.stamp();
CREATE INDEX by_name ON crm.contacts (lower(name));
ALTER TABLE crm.contacts ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON crm.contacts USING (name <> 'hidden');
COMMENT ON TABLE crm.contacts IS 'people';
INSERT INTO crm.companies (name) SELECT 'company ' || i FROM generate_series(1, 20) i;
INSERT INTO crm.contacts (company, name, mail, stage, raw, amount)
    SELECT i % 20 + 1, E'a\\tb\\\\n ' || i, 'x@y', 'lead', decode(md5(i::text), 'hex'), i / 7.0
      FROM generate_series(1, 3000) i;
INSERT INTO crm.contacts (name) VALUES (NULL), (''), (E'\\\\.'), (E'\\r\\n');
SELECT setval('crm.contacts_id_seq', 9000, false);
CREATE VIEW crm.names AS SELECT name FROM crm.contacts;
CREATE MATERIALIZED VIEW crm.z_counts AS SELECT company, count(*) AS n FROM crm.contacts GROUP BY 1;
CREATE UNIQUE INDEX ON crm.z_counts (company);
CREATE MATERIALIZED VIEW crm.a_total AS SELECT sum(n) AS n FROM crm.z_counts;
CREATE MATERIALIZED VIEW crm.unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE TABLE crm.empty (a int, b int);
CREATE TABLE crm.nothing ();
INSERT INTO crm.nothing SELECT FROM generate_series(1, 5);
CREATE TABLE crm.base (a int); CREATE TABLE crm.heir (b text) INHERITS (crm.base);
INSERT INTO crm.base VALUES (1), (2); INSERT INTO crm.heir VALUES (3, 'x');
CREATE TABLE crm.deals (id int, stage crm.stage) PARTITION BY HASH (stage);
CREATE TABLE crm.deals_0 PARTITION OF crm.deals FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE crm.deals_1 PARTITION OF crm.deals FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO crm.deals SELECT i, (ARRAY['lead', 'customer', 'lost']::crm.stage[])[i % 3 + 1] FROM generate_series(1, 99) i;
CREATE TABLE crm.events (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE crm.events_1 PARTITION OF crm.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE crm.events_x PARTITION OF crm.events DEFAULT;
INSERT INTO crm.events VALUES ('2024-05-05', 'a'), ('2030-01-01', 'b');
CREATE TABLE crm.twin_1 (a int, b text); CREATE TABLE crm.twin_2 (a int, b text);
INSERT INTO crm.twin_1 SELECT i, 'same' FROM generate_series(1, 10) i; INSERT INTO crm.twin_2 TABLE crm.twin_1;
CREATE UNLOGGED TABLE crm.scratch AS SELECT 1 AS one;
"""

HOSTILE = '''
CREATE SCHEMA "we ird; DROP
x";
CREATE TABLE "we ird; DROP
x"."a ""b"" \\ 'c' %s" (" id " int, "ä,(""" text, "select" text);
INSERT INTO "we ird; DROP
x"."a ""b"" \\ 'c' %s" VALUES (1, 'ü', NULL), (2, '', E'\\\\');
CREATE SEQUENCE "we ird; DROP
x"."q'""\\";
SELECT nextval('"we ird; DROP
x"."q''""\\"');
'''


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as pool:
        yield pool


class Case:
    """One source database on a server, and places to restore to."""

    def __init__(self, server: TestServer, workers: ProcessWorkers, scratch: Path, definition: str, **options: Any):
        self.host = server
        self.names = [f"source_{secrets.token_hex(4)}"]
        server.create_database(self.names[0], **options)
        with server.connect(self.names[0]) as connection:
            connection.execute("SET check_function_bodies = off")
            connection.execute(definition.encode(connection.info.encoding))
        self.chain = PgChain(server.server(self.names[0]), scratch, workers)

    def execute(self, database: str, text: str) -> list[tuple[Any, ...]]:
        with self.host.connect(database) as connection:
            cursor = connection.execute(text.encode(connection.info.encoding))
            return cursor.fetchall() if cursor.description else []

    def place(self, *, make: bool = True) -> Server:
        """A fresh, empty database; or only the name of one."""
        name = f"target_{secrets.token_hex(4)}"
        self.names.append(name)
        if make:
            self.host.create_database(name, template="template0")
        return self.host.server(name)

    def restored(self, taken: Taken, place: Server, **options: Any) -> Verification:
        target = self.chain.target(place, **options)
        self.chain.restore(taken, target)
        return self.chain.verify(taken, target)


@pytest.fixture
def make_case(pg15: TestServer, workers: ProcessWorkers, tmp_path: Path) -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make(definition: str = CRM, server: TestServer = pg15, **options: Any) -> Case:
        scratch = tmp_path / f"case-{len(made)}"
        scratch.mkdir()
        made.append(Case(server, workers, scratch, definition, **options))
        return made[-1]

    yield make
    for case in made:
        for name in case.names:
            case.host.drop_database(name)


def names_in(case: Case, database: str) -> list[str]:
    """Everything users made."""
    rows = case.execute(
        database,
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r','p','v','m','S','f')"
        " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema')"
        " UNION ALL SELECT oid::text FROM pg_largeobject_metadata UNION ALL SELECT extname FROM pg_extension ORDER BY 1",
    )
    return [row[0] for row in rows]


def give_up_at(count: int) -> Callable[[Restore, int], None]:
    """Fails before a chunk, when so many are placed."""

    def give_up(_: Restore, placed: int) -> None:
        if placed == count:
            raise KeyboardInterrupt

    return give_up


def restore_unchecked(case: Case, taken: Taken, place: Server) -> None:
    """Place everything without asking first; nothing is committed."""
    target = case.chain.target(place)
    with target.open_restore(taken.image.layout, taken.image.digest, case.chain.workers, print) as restore:
        for stage in restore.stages():
            for number, placement in stage.items():
                restore.place(placement, taken.chunks[number])


@contextmanager
def extension_in(server: TestServer, name: str, script: str) -> Iterator[None]:
    """An extension of our own, which a server from 18 on finds while the context is open; no other server does."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "extension"
        place.mkdir()
        (place / f"{name}.control").write_text("default_version = '1.0'\nrelocatable = false\nschema = public\n")
        (place / f"{name}--1.0.sql").write_text(script)
        for path in (place.parent, place, *place.iterdir()):
            path.chmod(0o755)
        with server.connect() as connection:
            connection.execute(f"ALTER SYSTEM SET extension_control_path = '$system:{directory}'".encode())
            connection.execute("SELECT pg_reload_conf()")
            try:
                yield
            finally:
                connection.execute("ALTER SYSTEM RESET extension_control_path")
                connection.execute("SELECT pg_reload_conf()")
