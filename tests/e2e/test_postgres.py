"""A CRM on PostgreSQL, as a sysadmin lives with it: a role of its own, hourly incrementals, a drill, a new server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from crmbackup.engines.postgres.restore_clean import set_mark
from tests.e2e.product import Host, findings, quiet
from tests.e2e.test_decrypt import decrypt
from tests.postgres import TestServer, running_server

pytestmark = pytest.mark.e2e

PASSWORD = "correct-horse battery:staple"

SETUP = """
CREATE ROLE crm_app NOLOGIN;
CREATE SCHEMA sales;
CREATE TYPE stage AS ENUM ('new', 'won', 'lost');
CREATE TABLE accounts(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, made timestamptz DEFAULT now());
CREATE TABLE contacts(id uuid PRIMARY KEY DEFAULT gen_random_uuid(), account int REFERENCES accounts, mail text,
    domain text GENERATED ALWAYS AS (split_part(mail, '@', 2)) STORED, photo bytea);
CREATE TABLE sales.deals(id serial, account int REFERENCES accounts, stage stage, amount numeric(12, 2), closed date)
    PARTITION BY RANGE (closed);
CREATE TABLE sales.deals_old PARTITION OF sales.deals FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
CREATE TABLE sales.deals_new PARTITION OF sales.deals FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
CREATE INDEX ON contacts(mail);
CREATE MATERIALIZED VIEW sales.totals AS SELECT account, sum(amount) FROM sales.deals GROUP BY account;
CREATE VIEW sales.won AS SELECT * FROM sales.deals WHERE stage = 'won';
INSERT INTO accounts(name) SELECT 'Müller & Söhne ' || i || E'\\t\\\\.\\n' FROM generate_series(1, 3000) i;
INSERT INTO contacts(account, mail, photo) SELECT 1 + i % 3000, i || '@example.org', decode(repeat(md5(i::text), 20), 'hex')
    FROM generate_series(1, 9000) i;
INSERT INTO sales.deals(account, stage, amount, closed)
    SELECT 1 + i % 3000, (ARRAY['new', 'won', 'lost'])[1 + i % 3]::stage, i, date '2025-06-01' + i % 400
    FROM generate_series(1, 5000) i;
REFRESH MATERIALIZED VIEW sales.totals;
SELECT lo_from_bytea(0, decode('00ff5c2e0a', 'hex'));
ALTER TABLE accounts OWNER TO crm_app;
GRANT SELECT ON contacts TO crm_app;
"""
WORKDAY = """
UPDATE contacts SET mail = 'new-' || mail WHERE account = 7;
DELETE FROM sales.deals WHERE id = 17;
INSERT INTO accounts(name) VALUES ('late');
SELECT nextval('sales.deals_id_seq');
"""


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with running_server(18) as found:
        with found.connect() as connection:
            connection.execute(f"CREATE ROLE backup LOGIN PASSWORD '{PASSWORD}'")
            connection.execute("GRANT pg_read_all_data TO backup")
        rules = found.directory / "pg_hba.conf"
        rules.write_text("local all backup scram-sha-256\n" + rules.read_text())
        found.restart()
        yield found


@pytest.fixture
def crm(server: TestServer) -> Iterator[str]:
    """The name of a database with rows."""
    server.create_database("crm")
    with server.connect("crm") as connection:
        connection.execute(SETUP)
        connection.execute(
            "GRANT SELECT ON LARGE OBJECT "
            + str(_one(connection, "SELECT oid FROM pg_largeobject_metadata"))
            + " TO backup"
        )
    yield "crm"
    for name in ("crm", "restored", "part"):
        server.drop_database(name)
    with server.connect() as connection:
        connection.execute("DROP ROLE crm_app")


def _one(connection: psycopg.Connection[Any], sql: str) -> Any:
    row = connection.execute(sql).fetchone()
    assert row
    return row[0]


def url(server: TestServer, database: str, user: str = "postgres") -> str:
    keywords = dict(server.server(database).keywords)
    return f"postgresql://{user}@/{database}?host={quote(keywords['host'], safe='')}&port={keywords['port']}"


def policy_of(host: Host, server: TestServer, database: str, tmp_path: Path, more: str = "") -> Path:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    path = host.cwd / "crm.yaml"
    path.write_text(
        f"""
version: 1
name: crm
source:
  type: postgres
  url: {url(server, database, "backup")}
  password: {{file: {secret}}}
repository:
  url: {tmp_path / "repository"}
  identity: {{file: {tmp_path / "identity.txt"}}}
{more}
"""
    )
    return path


def content(server: TestServer, database: str) -> dict[str, list[bytes]]:
    """Every table's rows in order, and where sequences stand."""
    with server.connect(database) as connection:
        found = {}
        tables = connection.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'sales')"
        ).fetchall()
        for (name,) in tables:
            with connection.cursor().copy(f"COPY (SELECT * FROM ONLY {name}) TO STDOUT") as rows:
                found[name] = sorted(b"".join(rows).splitlines(keepends=True))
        found["sequences"] = [
            repr(row).encode() for row in connection.execute("SELECT * FROM pg_sequences ORDER BY 1, 2")
        ]
        found["large"] = [
            bytes(row[0]) for row in connection.execute("SELECT lo_get(oid) FROM pg_largeobject_metadata")
        ]
        return found


def test_from_a_policy_to_a_proved_restore(server: TestServer, crm: str, host: Host, tmp_path: Path) -> None:
    more = """
objectives: {rto: 1h}
drill:
  assertions:
    - {name: accounts, sql: "SELECT count(*) FROM accounts", expect: 3001}
    - {name: total, sql: "SELECT sum(amount) FROM sales.deals", expect: {min: 1}}
"""
    policy = policy_of(host, server, crm, tmp_path, more)
    assert host.run("policy", "validate", policy).out.endswith("is valid\n")
    sheet = host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt").out
    assert "--to postgresql://" in sheet

    quiet(host.watched("backup", policy))
    with server.connect(crm) as connection:
        connection.execute(WORKDAY)
    now = content(server, crm)
    quiet(host.watched("backup", policy))
    full, incremental = host.snapshots(policy)
    assert (full["kind"], incremental["kind"], incremental["parent"]) == ("full", "incremental", full["snapshot_id"])
    assert incremental["added_size"] < full["added_size"]

    shown = host.run("show", policy, "--json").one("snapshot")
    rows = {table["name"]: table["rows"] for table in shown["tables"]}
    assert (rows["public.accounts"], rows["public.contacts"]) == (3001, 9000)
    assert rows["sales.deals_old"] + rows["sales.deals_new"] == 4999

    quiet(host.watched("drill", policy))
    report = json.loads(next((host.state / "reports").glob("*.json")).read_text())["report"]
    tables = {table["name"]: table["status"] for table in report["tables"]}
    assert set(tables) >= {"public.accounts", "public.contacts", "sales.deals_new", "(sequences)", "(large objects)"}
    assert set(tables.values()) == {"match"}
    assert report["target"]["kind"] == "private PostgreSQL server"
    assert (report["target"]["empty_before"], report["target"]["destroyed"]) == (True, True)
    assert all(assertion["ok"] for assertion in report["assertions"])

    plan = host.run("restore", policy, "--to", url(server, "restored"), "--create", "--plan").out
    assert "public.contacts" in plan
    assert "unfinished" not in plan
    server.create_database("restored")
    with server.connect("restored") as connection:
        set_mark(connection, "00", "all", "killed")
    plan = host.run("restore", policy, "--to", url(server, "restored"), "--create", "--plan").out
    assert "what an unfinished restore left there is removed" in plan
    assert "--overwrite" not in plan
    host.run("restore", policy, "--to", url(server, "restored"), "--create")
    assert content(server, "restored") == now
    with server.connect("restored") as connection:
        assert _one(connection, "SELECT count(*) FROM sales.totals") > 0
        assert _one(connection, "SELECT tableowner FROM pg_tables WHERE tablename = 'accounts'") == "crm_app"

    again = host.run("restore", policy, "--to", url(server, "restored"), code=9).err
    assert "restored" in again

    server.create_database("part")
    one = host.run(
        "restore", policy, "--to", url(server, "part"), "--table", "sales.deals_new", "--roles", "ignore"
    ).out
    assert "sales.deals" in one
    assert content(server, "part")["sales.deals_new"] == now["sales.deals_new"]

    everything = "\n".join(
        [*host.printed, *host.command_lines, (host.state / "reports").joinpath(report_name(host)).read_text()]
    )
    assert PASSWORD not in everything
    assert any("pg_dump" in line for line in host.command_lines)


def report_name(host: Host) -> str:
    return next((host.state / "reports").glob("*.json")).name


def test_drills_that_must_fail(server: TestServer, crm: str, host: Host, tmp_path: Path) -> None:
    more = 'drill: {assertions: [{name: no accounts, sql: "SELECT count(*) FROM accounts", expect: 0}]}'
    policy = policy_of(host, server, crm, tmp_path, more)
    host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    quiet(host.run("backup", policy))
    done = host.run("drill", policy, code=7)
    assert "no accounts" in done.out + done.err
    with server.connect(crm) as connection:
        # As a database gets after years of disabled triggers: no restore could make its foreign keys again.
        connection.execute("SET session_replication_role = replica; DELETE FROM accounts WHERE id = 5")
    quiet(host.run("backup", policy))
    done = host.run("drill", policy_of(host, server, crm, tmp_path), code=7)
    assert "foreign_keys: report" in done.err
    for key in ('"public"."contacts" "contacts_account_fkey": 3 rows', '"sales"."deals" "deals_account_fkey": 2 rows'):
        assert key in done.out + done.err
    host.run("drill", policy_of(host, server, crm, tmp_path, "drill: {foreign_keys: report}"))


def test_mistakes(server: TestServer, crm: str, host: Host, tmp_path: Path) -> None:
    policy = policy_of(host, server, crm, tmp_path, 'schedule: {drill: "0 5 1 * *"}')
    host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    programs = findings(host, policy)["programs"]
    assert [each["text"].split()[0] for each in programs] == ["pg_dump", "initdb", "postgres"]
    (tmp_path / "password").write_text("wrong\n")
    error = host.run("backup", policy, "--json", code=3).error
    assert error["code"] == "source-denied"
    (tmp_path / "password").write_text(PASSWORD)
    with server.connect(crm) as connection:
        connection.execute("REVOKE pg_read_all_data FROM backup")
        error = host.run("backup", policy, "--json", code=3).error
        (source,) = findings(host, policy)["source"]
        assert (source["level"], "GRANT" in source["mend"]) == ("fail", True)
        connection.execute("GRANT pg_read_all_data TO backup")
    assert (error["code"], "GRANT" in error["hint"]) == ("source-denied", True)
    policy.write_text(policy.read_text().replace("/crm?", "/nowhere?"))
    assert host.run("backup", policy, "--json", code=3).error["code"] == "source-missing"
    policy.write_text(policy.read_text().replace("/nowhere?", "/postgres?"))
    assert host.run("backup", policy, "--json", code=3).error["code"] == "source-empty"
    policy.write_text(policy.read_text().replace("port=", "port=1"))
    assert host.run("backup", policy, "--json", code=3).error["code"] == "source-unavailable"
    policy.write_text(policy.read_text().replace("/postgres?", "/crm?").replace("port=1", "port="))
    assert host.snapshots(policy) == []

    quiet(host.run("backup", policy))
    host.run("restore", policy, "--to", "file.db", code=2)
    secret = url(server, "x").replace("postgres@", "postgres:secret@")
    refused = host.run("restore", policy, "--to", secret, code=2)
    assert "secret" not in refused.err
    missing = host.run("restore", policy, "--to", url(server, "crm"), "--json", code=9)
    assert missing.error["code"] == "target-exists"
    assert (
        host.run("restore", policy, "--to", url(server, "gone"), "--json", code=13).error["code"]
        == "target-unavailable"
    )
    with server.connect(crm) as connection:
        assert _one(connection, "SELECT count(*) FROM accounts") == 3000


def test_a_dump_of_the_restored_database_is_that_of_the_source(
    server: TestServer, crm: str, host: Host, tmp_path: Path
) -> None:
    policy = policy_of(host, server, crm, tmp_path)
    host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    quiet(host.run("backup", policy))
    host.run("restore", policy, "--to", url(server, "restored"), "--create")

    def dump(database: str) -> list[str]:
        program = server.programs / "pg_dump"
        command = [program, "--schema-only", "--restrict-key=0", server.conninfo(database)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    assert dump("restored") == dump(crm)


def test_the_stand_alone_script(server: TestServer, crm: str, host: Host, tmp_path: Path) -> None:
    """It gives an archive and files that PostgreSQL's own programs load."""
    policy = policy_of(host, server, crm, tmp_path)
    host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    quiet(host.run("backup", policy))
    out = tmp_path / "out"
    done = decrypt(tmp_path / "repository", tmp_path / "identity.txt", out)
    assert done.returncode == 0, done.stderr
    server.create_database("restored")
    conninfo = server.conninfo("restored")

    def run(program: str, *arguments: object) -> None:
        command = [server.programs / program, "-d", conninfo, *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, cwd=out)

    run("pg_restore", "--section=pre-data", "definitions.dump")
    run("psql", "-q", "-f", "tables.sql")
    run("psql", "-q", "-f", "sequences.sql")
    run("pg_restore", "--section=post-data", "definitions.dump")
    found, expected = content(server, "restored"), content(server, crm)
    assert (out / "large_objects.copy").read_bytes().endswith(b"\t0\t\\\\x00ff5c2e0a\n")
    del found["large"], expected["large"]
    assert found == expected
