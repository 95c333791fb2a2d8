"""A CRM on MariaDB, as a sysadmin lives with it: a user of its own, incrementals, a drill, a new server."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crmbackup.engines.mysql.connection import value
from crmbackup.engines.mysql.zones import make_zones
from tests.e2e.product import Host, findings, quiet
from tests.e2e.test_decrypt import decrypt
from tests.mariadb import MariadbServer, running_mariadb
from tests.support_mysql_crm import PASSWORD, SETUP, WORKDAY, documented_user, run

pytestmark = pytest.mark.e2e

TABLES = ("accounts", "contacts", "deals", "audit FOR SYSTEM_TIME ALL", "notes")


@pytest.fixture(scope="module")
def server() -> Iterator[MariadbServer]:
    with running_mariadb() as found:
        documented_user(found)
        with found.connect() as connection:
            make_zones(connection, ["Europe/Berlin"])
            wanted = "SELECT convert_tz('2026-06-15 12:00', 'Europe/Berlin', '+00:00')"
            assert str(value(connection, wanted)) == "2026-06-15 10:00:00"
        yield found


@pytest.fixture
def crm(server: MariadbServer) -> Iterator[str]:
    """The name of a database with all kinds of objects."""
    server.create_database("crm", collate="utf8mb4_unicode_ci")
    run(server, "crm", *SETUP)
    yield "crm"
    for name in ("crm", "restored", "part"):
        server.drop_database(name)


def policy_of(host: Host, server: MariadbServer, tmp_path: Path, more: str = "") -> Path:
    secret = tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    path = host.cwd / "crm.yaml"
    path.write_text(
        f"""
version: 1
name: crm
source:
  type: mysql
  url: {server.url("crm", "crmbackup")}
  password: {{file: {secret}}}
repository:
  url: {tmp_path / "repository"}
  identity: {{file: {tmp_path / "identity.txt"}}}
{more}
"""
    )
    host.run("init", path, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    return path


def rows(server: MariadbServer, database: str, sql: str) -> list[tuple[Any, ...]]:
    with server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return sorted(cursor.fetchall(), key=repr)


def content(server: MariadbServer, database: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every table's rows, with what hides, and where the sequence stands."""
    found = {table: rows(server, database, f"SELECT * FROM {table}") for table in TABLES}
    found["hidden"] = rows(server, database, "SELECT id, secret FROM contacts")
    found["history"] = rows(server, database, "SELECT n, row_start, row_end FROM audit FOR SYSTEM_TIME ALL")
    found["numbers"] = rows(server, database, "SELECT next_not_cached_value FROM numbers")
    return found


def dump(server: MariadbServer, database: str) -> list[str]:
    """Definitions as MariaDB's own program gives them, events as they are when they are off."""
    program = ["mariadb-dump", "--no-defaults", "--user=root", f"--socket={dict(server.server().options)['socket']}"]
    options = ["--no-data", "--skip-comments", "--skip-dump-date", "--routines", "--events", "--triggers", database]
    done = subprocess.run([*program, *options], check=True, capture_output=True, text=True)
    return done.stdout.replace("PRESERVE ENABLE", "PRESERVE DISABLE").splitlines()


def test_from_a_policy_to_a_proved_restore(server: MariadbServer, crm: str, host: Host, tmp_path: Path) -> None:
    more = """
objectives: {rto: 1h}
drill:
  assertions:
    - {name: accounts, sql: "SELECT count(*) FROM accounts", expect: 3001}
    - {name: a view, sql: "SELECT count(*) FROM a_first", expect: {min: 1}}
"""
    policy = policy_of(host, server, tmp_path, more)
    assert host.run("policy", "validate", policy).out.endswith("is valid\n")
    assert "--to mysql://" in host.printed[0]

    quiet(host.watched("backup", policy))
    run(server, crm, *WORKDAY)
    now, definitions = content(server, crm), dump(server, crm)
    quiet(host.watched("backup", policy))
    full, incremental = host.snapshots(policy)
    assert (full["kind"], incremental["kind"], incremental["parent"]) == ("full", "incremental", full["snapshot_id"])
    assert incremental["added_size"] < full["added_size"]
    shown = host.run("show", policy, "--json").one("snapshot")
    assert {table["name"]: table["rows"] for table in shown["tables"]} == {
        "accounts": 3001,
        "audit": 4,
        "contacts": 9000,
        "deals": 500,
        "notes": 1,
        "(sequences)": 1,
    }

    quiet(host.watched("drill", policy))
    report_file = next((host.state / "reports").glob("*.json"))
    report = json.loads(report_file.read_text())["report"]
    tables = {table["name"]: table["status"] for table in report["tables"]}
    assert set(tables) == {"accounts", "audit", "contacts", "deals", "notes", "(sequences)"}
    assert set(tables.values()) == {"match"}
    assert (report["target"]["empty_before"], report["target"]["destroyed"]) == (True, True)
    assert all(assertion["ok"] for assertion in report["assertions"])

    assert "contacts" in host.run("restore", policy, "--to", server.url("restored"), "--create", "--plan").out
    host.run("restore", policy, "--to", server.url("restored"), "--create")
    assert content(server, "restored") == now
    assert dump(server, "restored") == definitions
    assert "restored" in host.run("restore", policy, "--to", server.url("restored"), code=9).err

    server.create_database("part")
    host.run("restore", policy, "--to", server.url("part"), "--table", "deals")
    assert rows(server, "part", "SELECT * FROM deals") == now["deals"]
    assert rows(server, "part", "SHOW TABLES") == [("deals",)]

    # A new host has the repository and the identity only.
    other = Host.make(tmp_path / "other")
    server.drop_database("restored")
    source = ["--repository", tmp_path / "repository", "--of", "crm", "--identity-file", tmp_path / "identity.txt"]
    other.run("restore", *source, "--to", server.url("restored"), "--create")
    assert content(server, "restored") == now

    everything = "\n".join([*host.printed, *host.command_lines, report_file.read_text()])
    assert PASSWORD not in everything


@contextmanager
def writing(server: MariadbServer) -> Iterator[list[int]]:
    """Clients that move amounts between deals, add contacts and take some away; gives the number of their commits."""
    over, commits = threading.Event(), [0, 0]

    def work(number: int) -> None:
        with server.connect("crm", autocommit=False) as connection, connection.cursor() as cursor:
            while not over.is_set():
                step = commits[number]
                one, two = sorted((1 + (step * 7 + number) % 400, 1 + (step * 13 + number) % 400))
                cursor.execute(f"UPDATE deals SET amount = amount - 1 WHERE id = {one}")
                cursor.execute(f"UPDATE deals SET amount = amount + 1 WHERE id = {two}")
                cursor.execute(f"INSERT INTO contacts (id, account) VALUES (uuid(), {1 + step % 3000})")
                cursor.execute("DELETE FROM contacts ORDER BY id LIMIT 1")
                connection.commit()
                commits[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(commits))]
    for thread in threads:
        thread.start()
    try:
        yield commits
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_writer_works_all_through_snapshots(server: MariadbServer, crm: str, host: Host, tmp_path: Path) -> None:
    """Each drill matches, and sums that every transaction keeps are kept in each snapshot."""
    run(server, crm, "UPDATE deals SET amount = id")
    total = rows(server, crm, "SELECT sum(amount) FROM deals")[0][0]
    more = f"""
drill:
  assertions:
    - {{name: total, sql: "SELECT sum(amount) FROM deals", expect: {total:.0f}}}
    - {{name: contacts, sql: "SELECT count(*) FROM contacts", expect: 9000}}
"""
    policy = policy_of(host, server, tmp_path, more)
    with writing(server) as commits:
        before = sum(commits)
        for _ in range(3):
            quiet(host.run("backup", policy))
        assert sum(commits) > before
    for snapshot in host.snapshots(policy):
        quiet(host.run("drill", policy, "--snapshot", snapshot["snapshot_id"]))


def test_mistakes(server: MariadbServer, crm: str, host: Host, tmp_path: Path) -> None:
    policy = policy_of(host, server, tmp_path, 'schedule: {drill: "0 5 1 * *"}')
    programs = findings(host, policy)["programs"]
    assert [each["text"].split()[0] for each in programs] == ["mariadbd", "mariadb-install-db"]
    (tmp_path / "password").write_text("wrong\n")
    assert host.run("backup", policy, "--json", code=3).error["code"] == "source-denied"
    (tmp_path / "password").write_text(PASSWORD)
    run(server, "", "REVOKE TRIGGER ON crm.* FROM 'crmbackup'@'%'")
    error = host.run("backup", policy, "--json", code=3).error
    assert (error["code"], error["hint"]) == ("source-denied", "GRANT TRIGGER ON `crm`.* TO 'crmbackup'@'%';")
    run(server, "", error["hint"])
    right = policy.read_text()
    policy.write_text(right.replace("socket=", "socket=/nowhere"))
    assert host.run("backup", policy, "--json", code=3).error["code"] == "source-unavailable"
    policy.write_text(right.replace("?socket=", "?sokcet="))
    assert "sokcet" in host.run("backup", policy, "--json", code=2).error["message"]
    policy.write_text(right.replace("type: mysql", "type: mysql\n  non_transactional: refuse"))
    error = host.run("backup", policy, "--json", code=3).error
    assert (error["code"], "notes (MyISAM)" in error["why"]) == ("source", True)
    policy.write_text(right)
    assert host.snapshots(policy) == []

    quiet(host.run("backup", policy))
    host.run("restore", policy, "--to", "file.db", code=2)
    secret = server.url("x", "root:secret")
    assert "secret" not in host.run("restore", policy, "--to", secret, code=2).err
    assert host.run("restore", policy, "--to", server.url("crm"), "--json", code=9).error["code"] == "target-exists"
    gone = host.run("restore", policy, "--to", server.url("gone"), "--json", code=13).error
    assert (gone["code"], "gone" in gone["message"], "--create" in gone["hint"]) == ("target-unavailable", True, True)
    assert len(rows(server, crm, "SELECT id FROM accounts")) == 3000


def test_the_stand_alone_script(server: MariadbServer, crm: str, host: Host, tmp_path: Path) -> None:
    """It gives files that MariaDB's own client loads."""
    policy = policy_of(host, server, tmp_path)
    quiet(host.run("backup", policy))
    out = tmp_path / "out"
    done = decrypt(tmp_path / "repository", tmp_path / "identity.txt", out)
    assert done.returncode == 0, done.stderr
    server.create_database("restored", collate="utf8mb4_unicode_ci")
    client = ["mariadb", "--no-defaults", "--user=root", f"--socket={dict(server.server().options)['socket']}"]
    options = ["--local-infile=1", "--binary-mode", "--default-character-set=utf8mb4", "restored"]
    with (out / "load.sql").open("rb") as script:
        subprocess.run([*client, *options], check=True, capture_output=True, cwd=out, stdin=script)
    assert " ".join(options[:-1]) in (out / "LOAD.txt").read_text()
    assert content(server, "restored") == content(server, crm)
    assert dump(server, "restored") == dump(server, crm)
