"""How all commits are held for the moment in which the workers open their views: what differs between the products.

MariaDB: BACKUP STAGE. BLOCK_COMMIT holds commits and writes to non-transactional tables, and waits for no query but those
that are committing. https://mariadb.com/kb/en/backup-stage/
MySQL: FLUSH TABLES WITH READ LOCK. It waits for every statement that is running, and whoever comes after waits for it:
so it is tried only while no statement has been running for long, and given up soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crmbackup.engines.mysql.connection import Version


@dataclass(frozen=True)
class Hold:
    """take, release: statements. waits_for_queries: whether running statements stand in its way."""

    name: str
    take: tuple[str, ...]
    release: tuple[str, ...]
    waits_for_queries: bool


def global_hold(version: Version) -> Hold:
    """For a user with the right RELOAD (MySQL: RELOAD, and BACKUP_ADMIN is not needed)."""
    if version.mariadb:
        stages = ("START", "BLOCK_DDL", "BLOCK_COMMIT")
        return Hold("BACKUP STAGE", tuple(f"BACKUP STAGE {stage}" for stage in stages), ("BACKUP STAGE END",), False)
    take = ("FLUSH TABLES", "FLUSH TABLES WITH READ LOCK")
    return Hold("FLUSH TABLES WITH READ LOCK", take, ("UNLOCK TABLES",), True)


def table_hold(tables: Sequence[str]) -> Hold:
    """For a user with the right LOCK TABLES only. tables: quoted names."""
    take = "LOCK TABLES " + ", ".join(f"{table} READ" for table in tables)
    return Hold("LOCK TABLES", (take,), ("UNLOCK TABLES",), True)


def binlog_position_sql(version: Version) -> str:
    """The statement that tells where the binary log stands."""
    if version.mariadb:
        return "SHOW MASTER STATUS"
    return "SHOW BINARY LOG STATUS" if version.number >= (8, 2) else "SHOW MASTER STATUS"


def gtid_sql(version: Version) -> str:
    """The statement that gives the executed GTIDs."""
    return "SELECT @@gtid_binlog_pos" if version.mariadb else "SELECT @@gtid_executed"


def server_identity_sql(version: Version) -> str:
    """What tells one server from another: MySQL has a UUID; MariaDB its id, its host's name and data directory."""
    if version.mariadb:
        return "SELECT CONCAT_WS('/', @@server_id, @@hostname, @@datadir)"
    return "SELECT @@server_uuid"
