"""What changed since the parent snapshot, as the binary log says.

Every position was read while all commits were held, so a transaction lies wholly before or wholly behind it, as it does
for the views. What is between two positions is all that changed, if the log holds all: `_refuse` and `reading.py` say what
makes that doubtful. Then everything is read, or all of a table, and the reason is told.

Not in the log, and not noticed here: what was written with sql_log_bin = 0 into tables that others wrote to as well.
docs/mysql.md says so, and `source.binlog: false` reads everything always.
"""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import pymysql

from crmbackup.engines.mysql import binlog
from crmbackup.engines.mysql.binlog import Event, LogUnusableError
from crmbackup.engines.mysql.connection import Connection, Server, connect, execute, text_of, version_of
from crmbackup.engines.mysql.joining import Moment, Position
from crmbackup.engines.mysql.locks import binlog_position_sql
from crmbackup.engines.mysql.planning import ParentTables, TablePlan
from crmbackup.engines.mysql.protocol import read_log
from crmbackup.engines.mysql.reading import FARTHEST, Reading
from crmbackup.engines.mysql.touched import TableChanges

#: A log shorter than that is always worth reading; a longer one if it is shorter than the tables.
_SHORT_LOG = 64 * 1024 * 1024


@dataclass(frozen=True)
class Changes:
    """Which parts of which tables changed."""

    tables: Mapping[str, TableChanges]

    def touched(self, plan: TablePlan) -> frozenset[int] | None:
        """Numbers of the parent's parts of a table that must be read; None for all of it."""
        found = self.tables.get(plan.table.name)
        return None if found is None or found.whole else frozenset(found.parts)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Why tables are read as a whole: names by reason."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, table in self.tables.items():
            if table.whole:
                found[table.whole].append(name)
        return found


def with_birth(server: Server, position: Position) -> Position:
    """A position that a later snapshot can go on from. Without the right to read the log it stays as it is."""
    if not position.file or position.offset >= FARTHEST:
        return position
    try:
        with closing(_log_reader(server)) as connection:
            for event in _log(connection, position):
                if event.kind == binlog.FORMAT:
                    born = binlog.format_of(event).time
                    # One that was begun in the same second may have been begun later.
                    return replace(position, born=born) if born < position.time else position
    except (pymysql.Error, OSError, LogUnusableError):
        return position
    return position


def _log_reader(server: Server) -> Connection:
    connection = connect(server)
    try:
        # Both products know these variables; what they say is that events are taken as they are.
        execute(connection, "SET @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'")
        execute(connection, "SET @mariadb_slave_capability = 4")
    except BaseException:
        connection.close()
        raise
    return connection


def _log(connection: Connection, position: Position) -> Iterator[Event]:
    mariadb = version_of(connection).mariadb
    return binlog.events(read_log(connection, position.file, position.offset, mariadb=mariadb))


def read_changes(
    server: Server, moment: Moment, parent: ParentTables, plans: Sequence[TablePlan]
) -> tuple[Changes | None, str]:
    """What changed between the parent and this moment, or why that cannot be known. Raises pymysql.Error for what the
    view's connection says.
    """
    try:
        _refuse(moment, parent.memory.position, sum(plan.table.size for plan in plans))
        reading = Reading(server, moment, parent, plans)
        with closing(_log_reader(server)) as connection:
            reading.run(_log(connection, parent.memory.position))
        return Changes(reading.finish()), ""
    except LogUnusableError as reason:
        return None, str(reason)
    except (pymysql.Error, OSError) as error:
        return None, f"the binary log cannot be read: {text_of(error)}"
    except (LookupError, ValueError, struct.error, zlib.error) as error:
        return None, f"the binary log cannot be understood: {type(error).__name__}: {error}"


def _refuse(moment: Moment, old: Position, size: int) -> None:
    """Raises LogUnusableError for what can be told without reading the log. size in bytes, of all tables."""
    new, connection = moment.position, moment.catalog
    if not new.file:
        raise LogUnusableError("there is no binary log, or the user may not see where it stands")
    if not old.file:
        raise LogUnusableError("where the binary log stood at the last snapshot is not known")
    if old.identity != new.identity or old.version != new.version:
        raise LogUnusableError("the last snapshot was of another server, or of another version of it")
    if not old.born:
        raise LogUnusableError(
            "the user may not read the binary log, or its file was begun just before the last snapshot"
        )
    if max(old.offset, new.offset) >= FARTHEST:
        raise LogUnusableError("a file of the binary log is larger than 4 GiB")
    settings = _settings(connection)
    if settings.get("binlog_format", "ROW").upper() != "ROW":
        raise LogUnusableError("binlog_format is not ROW")
    if settings.get("wsrep_on", "OFF") == "ON":
        raise LogUnusableError("the server belongs to a Galera cluster, whose nodes log only what was written to them")
    if settings.get("lower_case_table_names", "0") == "2":
        raise LogUnusableError("lower_case_table_names is 2: names in the log may be written otherwise")
    logs_all = settings.get("log_slave_updates", settings.get("log_replica_updates", "ON"))
    replica = settings.get("gtid_slave_pos") or int(settings.get("slaves_running", "0"))
    if logs_all != "ON" and (replica or not moment.version.mariadb):
        raise LogUnusableError("the server is a replica that does not log what it replicates (log_slave_updates)")
    _refuse_filters(moment, connection)
    _refuse_files(old, new, execute(connection, "SHOW BINARY LOGS"), size)


def _settings(connection: Connection) -> dict[str, str]:
    names = (
        "binlog_format",
        "wsrep_on",
        "lower_case_table_names",
        "log_slave_updates",
        "log_replica_updates",
        "gtid_slave_pos",
    )
    listed = ", ".join(f"'{name}'" for name in names)
    rows: list[tuple[Any, ...]] = execute(connection, f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({listed})")
    rows += execute(connection, "SHOW GLOBAL STATUS LIKE 'Slaves_running'")
    return {str(name).lower(): str(found) for name, found in rows}


def _refuse_filters(moment: Moment, connection: Connection) -> None:
    rows = execute(connection, binlog_position_sql(moment.version))
    if not rows or rows[0][2] or rows[0][3]:
        raise LogUnusableError("only some databases are logged (binlog_do_db, binlog_ignore_db)")


def _refuse_files(old: Position, new: Position, files: Sequence[tuple[Any, ...]], size: int) -> None:
    names = [str(row[0]) for row in files]
    if old.file not in names:
        raise LogUnusableError(f"{old.file} of the binary log is gone (purged, or RESET MASTER)")
    if new.file not in names or names.index(new.file) < names.index(old.file):
        raise LogUnusableError("the binary log was started over")
    between = files[names.index(old.file) : names.index(new.file) + 1]
    length = sum(int(row[1]) for row in between[:-1]) + new.offset - old.offset
    if length > max(_SHORT_LOG, size):
        raise LogUnusableError("more was written to the binary log than the tables hold")
    if length < 0:
        raise LogUnusableError("the binary log was started over")
