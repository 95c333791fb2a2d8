"""The tables, in types that every database of SQLAlchemy has.

Names begin with `crmbackup_`, because the catalog may live beside other tables in a database that the site runs.
Moments are stored as the text of `clock.to_text`: it sorts in the order of time and means the same on every database,
where native types drop the zone (SQLite, MySQL) or the microseconds (MySQL).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Column, Dialect, Double, Index, Integer, MetaData, String, Table, Text, TypeDecorator

from crmbackup.core import clock

SCHEMA_VERSION = 1

#: Lengths in characters. MySQL wants them, and its index keys end at 3072 bytes of up to four per character.
ID = 128
NAME = 255
WORD = 64
KEY = 512


class Moment(TypeDecorator[datetime]):
    """An aware moment, as text. Raises ValueError for a naive one."""

    impl = String(27)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> str | None:
        """From Python to the database."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("the catalog keeps aware moments only")
        return clock.to_text(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> datetime | None:
        """From the database to Python."""
        return None if value is None else clock.from_text(value)


# MySQL: names of policies and ids differ when their letters differ in case, and may be in any script.
_OPTIONS: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin", "mysql_engine": "InnoDB"}

metadata = MetaData()

version = Table(
    "crmbackup_catalog",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    **_OPTIONS,
)

runs = Table(
    "crmbackup_runs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(ID), nullable=False, unique=True),
    Column("policy", String(NAME), nullable=False),
    Column("repository_id", String(ID)),
    Column("command", String(WORD), nullable=False),
    Column("kind", String(WORD)),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment),
    Column("outcome", String(WORD), nullable=False),
    Column("error_code", String(WORD)),
    Column("error_text", Text),
    Column("snapshot_id", String(ID)),
    Column("bytes_read", BigInteger),
    Column("bytes_added", BigInteger),
    Column("host", String(NAME), nullable=False),
    Index("crmbackup_runs_by_policy", "policy", "started_at"),
    **_OPTIONS,
)

snapshots = Table(
    "crmbackup_snapshots",
    metadata,
    Column("repository_id", String(ID), primary_key=True),
    Column("snapshot_id", String(ID), primary_key=True),
    Column("policy", String(NAME), nullable=False),
    Column("kind", String(WORD), nullable=False),
    Column("parent", String(ID)),
    Column("captured_at", Moment, nullable=False),
    Column("finished_at", Moment, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    Column("packs", Integer, nullable=False),
    Column("host", String(NAME), nullable=False),
    Column("key", String(KEY), nullable=False),
    Index("crmbackup_snapshots_by_policy", "policy", "captured_at"),
    **_OPTIONS,
)

drills = Table(
    "crmbackup_drills",
    metadata,
    Column("drill_id", String(ID), primary_key=True),
    Column("policy", String(NAME), nullable=False),
    Column("repository_id", String(ID)),
    Column("snapshot_id", String(ID)),
    Column("started_at", Moment, nullable=False),
    Column("finished_at", Moment, nullable=False),
    Column("restore", String(WORD), nullable=False),
    Column("validation", String(WORD), nullable=False),
    Column("objectives", String(WORD), nullable=False),
    Column("rto_seconds", Double),
    Column("rpo_seconds", Double),
    Column("report_path", Text),
    Column("report_sha256", String(WORD)),
    Index("crmbackup_drills_by_policy", "policy", "started_at"),
    **_OPTIONS,
)
