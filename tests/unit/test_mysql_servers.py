"""What differs between MySQL and MariaDB in a restore, and which server a snapshot may go to."""

from __future__ import annotations

from pathlib import Path

import pytest

from crmbackup.core.errors import ProgramMissing, TargetError
from crmbackup.engines.mysql.connection import Version
from crmbackup.engines.mysql.daemon import find_daemon, parse_version
from crmbackup.engines.mysql.dialect import definer_rights, optional_settings, refuse_older, session_settings
from crmbackup.engines.mysql.locks import binlog_position_sql, global_hold, gtid_sql, server_identity_sql

NEW_MARIA, NEW_MY = Version("mariadb", (11, 4, 2)), Version("mysql", (8, 4, 2))
MARIA, MY = Version("mariadb", (10, 11, 6)), Version("mysql", (8, 0, 36))


def test_programs_tell_their_product_and_version() -> None:
    maria = "mariadbd  Ver 10.11.19-MariaDB-0+deb12u1 for debian-linux-gnu on x86_64 (Debian 12)"
    assert parse_version(maria) == Version("mariadb", (10, 11, 19))
    mysql = "/usr/sbin/mysqld  Ver 8.0.36-28 for Linux on x86_64 (MySQL Community Server - GPL)"
    assert parse_version(mysql) == Version("mysql", (8, 0, 36))
    assert parse_version("what") is None


def fake(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)


def test_a_server_of_another_product_or_an_older_one_does_not_do(tmp_path: Path) -> None:
    fake(tmp_path / "mysqld", "mysqld  Ver 8.4.2 for Linux on x86_64 (MySQL Community Server - GPL)")
    assert find_daemon(MY, tmp_path).version.number == (8, 4, 2)
    with pytest.raises(ProgramMissing) as error:
        find_daemon(Version("mysql", (9, 1, 0)), tmp_path)
    assert "MySQL 8.4.2" in error.value.why
    assert "mysql-server" in error.value.hint
    with pytest.raises(ProgramMissing) as error:
        find_daemon(MARIA, tmp_path)
    assert "mariadb-server" in error.value.hint


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (Version("mariadb", (10, 6, 20)), "older"),
        (Version("mariadb", (11, 4, 1)), ""),
        (Version("mariadb", (10, 11, 1)), ""),
        (MY, "products"),
    ],
)
def test_a_snapshot_goes_to_the_same_product_and_no_older_release(target: Version, why: str) -> None:
    if not why:
        refuse_older(target, MARIA, "crm on db")
        return
    with pytest.raises(TargetError) as error:
        refuse_older(target, MARIA, "crm on db")
    assert why in error.value.why


def test_each_product_is_told_what_it_knows_only() -> None:
    assert any("check_constraint_checks" in text for text in session_settings(MARIA))
    assert not any("check_constraint_checks" in text or "system_versioning" in text for text in session_settings(MY))
    assert any("sql_require_primary_key" in text for text in optional_settings(MY))
    assert not any("sql_require_primary_key" in text for text in optional_settings(MARIA))


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (MARIA, "BACKUP STAGE|SHOW MASTER STATUS|@@gtid_binlog_pos|@@hostname|SET USER,SUPER"),
        (NEW_MARIA, "BACKUP STAGE|SHOW MASTER STATUS|@@gtid_binlog_pos|@@hostname|SET USER"),
        (MY, "FLUSH TABLES|SHOW MASTER STATUS|@@gtid_executed|@@server_uuid|SET_USER_ID,SUPER"),
        (NEW_MY, "FLUSH TABLES|SHOW BINARY LOG STATUS|@@gtid_executed|@@server_uuid|SET_ANY_DEFINER,SUPER"),
    ],
)
def test_each_product_and_version_is_asked_in_its_own_words(version: Version, expected: str) -> None:
    hold, position, gtid, identity, rights = expected.split("|")
    assert all(text.startswith(hold) for text in global_hold(version).take)
    assert global_hold(version).waits_for_queries == (not version.mariadb)
    assert binlog_position_sql(version) == position
    assert gtid in gtid_sql(version)
    assert identity in server_identity_sql(version)
    assert ",".join(definer_rights(version)) == rights
