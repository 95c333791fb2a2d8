"""Where libpq looks for addresses and passwords besides URLs: its programs must find the same as we do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.product import Host
from tests.e2e.test_postgres import PASSWORD, url
from tests.postgres import TestServer, running_server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    """One that asks everybody but the superuser for a password."""
    with running_server(15) as found:
        with found.connect() as connection:
            connection.execute(f"CREATE ROLE backup LOGIN CREATEDB PASSWORD '{PASSWORD}'")
            connection.execute("GRANT pg_read_all_data TO backup")
        rules = found.directory / "pg_hba.conf"
        rules.write_text("local all backup scram-sha-256\n" + rules.read_text())
        found.restart()
        found.create_database("crm")
        found.create_database("precious")
        with found.connect("crm") as connection:
            connection.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        yield found


def policy_of(host: Host, address: str, tmp_path: Path) -> Path:
    path = host.cwd / "crm.yaml"
    path.write_text(
        f"""
version: 1
name: crm
source: {{type: postgres, url: "{address}"}}
repository: {{url: {tmp_path / "repository"}, identity: {{file: {tmp_path / "identity.txt"}}}}}
"""
    )
    host.run("init", path, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    return path


def rows_of(server: TestServer, database: str) -> int:
    with server.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM t").fetchone()
        assert row
        return int(row[0])


def test_a_password_in_the_environment(server: TestServer, host: Host, tmp_path: Path) -> None:
    policy = policy_of(host, url(server, "crm", "backup"), tmp_path)
    secret = {"PGPASSWORD": PASSWORD}
    host.run("backup", policy, code=3)
    host.run("backup", policy, env=secret)
    to = url(server, "by_password", "backup")
    host.run("restore", policy, "--to", to, "--create", "--roles", "ignore", env=secret)
    assert rows_of(server, "by_password") == 2
    assert not any(PASSWORD in text for text in host.printed)


def test_a_host_in_the_environment(server: TestServer, host: Host, tmp_path: Path) -> None:
    keywords = dict(server.server("crm").keywords)
    where = {"PGHOST": keywords["host"], "PGPORT": keywords["port"], "PGUSER": "postgres"}
    policy = policy_of(host, "postgresql:///crm", tmp_path)
    host.run("backup", policy, env=where)
    host.run("restore", policy, "--to", "postgresql:///by_host", "--create", env=where)
    assert rows_of(server, "by_host") == 2


def test_a_service_is_not_asked_for_what_the_url_names(server: TestServer, host: Host, tmp_path: Path) -> None:
    keywords = dict(server.server("crm").keywords)
    services = tmp_path / "services"
    services.write_text(
        f"[there]\nhost={keywords['host']}\nport={keywords['port']}\nuser=backup\npassword={PASSWORD}\ndbname=precious\n"
    )
    where = {"PGSERVICEFILE": str(services), "PGPORT": "1"}  # the service comes before variables
    policy = policy_of(host, "postgresql:///crm?service=there", tmp_path)
    host.run("backup", policy, env=where)
    host.run(
        "restore", policy, "--to", "postgresql:///by_service?service=there", "--create", "--roles", "ignore", env=where
    )
    assert rows_of(server, "by_service") == 2
    host.run(
        "restore", policy, "--to", "postgresql:///by_default", "--create", "--roles", "ignore",
        env={**where, "PGSERVICE": "there"},
    )  # fmt: skip
    assert rows_of(server, "by_default") == 2
    with server.connect("precious") as connection:
        assert connection.execute("SELECT relname FROM pg_class WHERE relname = 't'").fetchall() == []
    refused = host.run("restore", policy, "--to", "postgresql:///x?service=nowhere", code=2, env=where)
    assert "nowhere" in refused.err
    assert not any(PASSWORD in text for text in host.printed)


@pytest.mark.parametrize("address", ["admin:s3cr/et@db.example.org/crm", "admin:s3 cr%et@db.example.org/crm"])
def test_a_password_that_breaks_a_url_is_not_shown(host: Host, tmp_path: Path, address: str) -> None:
    policy = policy_of(host, "postgresql:///crm", tmp_path)
    refused = host.run("restore", policy, "--to", f"postgresql://{address}", code=2)
    assert "address of the database" in refused.err
    assert "cr" not in refused.err.replace("crmbackup", "")
