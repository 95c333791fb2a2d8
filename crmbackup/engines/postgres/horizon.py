"""Whether a table's slice is as the parent snapshot had it, told without reading it.

A snapshot's horizon H is its xmin: every transaction below had ended before the snapshot. A
slice holds the same rows as in the parent if and only if it now shows no row written by a transaction at or above the
parent's H, and as many rows as then: rows of one version never change, and a version moves only with a new file.
`docs/design.md` tells the whole argument.

All that the snapshot shows must be durable, or a crash could undo it. So a *mark* follows it: some empty transactions,
each committed or rolled back as a random bit says. The last one, N, is flushed, and with it the log up to there: with
every transaction that the snapshot shows, committed with synchronous_commit = off or not. No crash can make the server
give an id up to N again. The bits are how a later run knows the cluster again: a copy of it that went its own way before
the mark has the same identifiers, but not the same fates of those transactions.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]

#: Transactions of one mark besides the last: two clusters agree by chance once in 2^32.
MARK_BITS = 32
#: Beyond this many transactions the age of an old row could be taken for a new one's (2^31 is the limit).
MAX_DISTANCE = 2_000_000_000
_XID = 1 << 32


@dataclass(frozen=True)
class Mark:
    """Transactions (64-bit ids, the epoch included) and whether each was committed. The last one is N."""

    xids: tuple[int, ...]
    committed: tuple[bool, ...]

    @property
    def last(self) -> int:
        """N."""
        return self.xids[-1]


@dataclass(frozen=True)
class Position:
    """Where the cluster was. lsn in bytes of WAL; next_xid with epoch; standby: no transaction can be made there.

    horizon: H, and None on a standby.
    """

    system: str
    timeline: int
    database: int
    lsn: int
    next_xid: int
    standby: bool
    horizon: int | None
    mark: Mark | None

    def to_json(self) -> dict[str, object]:
        """For the local state."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`. Raises KeyError, TypeError."""
        mark = fields["mark"]
        made = Mark(tuple(mark["xids"]), tuple(mark["committed"])) if mark else None
        return cls(**{**fields, "mark": made})


def in_recovery(connection: Connection) -> bool:
    """Whether the server is a standby."""
    return bool(_row(connection, "SELECT pg_catalog.pg_is_in_recovery()")[0])


def make_mark(connection: Connection) -> Mark:
    """Leave a mark, durable when this returns. `connection` is in autocommit mode. Raises psycopg.Error."""
    bits = [bool(secrets.randbits(1)) for _ in range(MARK_BITS)]
    # In one round trip. Only the last waits for the disk; what stands before it in the log is then there as well.
    parts = ["SET synchronous_commit = off"]
    parts += [f"BEGIN; SELECT pg_catalog.txid_current(); {'COMMIT' if bit else 'ROLLBACK'}" for bit in bits]
    parts += [
        "SET synchronous_commit = local",
        "BEGIN; SELECT pg_catalog.txid_current() FROM pg_catalog.pg_logical_emit_message(true, 'crmbackup', '')",
        "COMMIT; RESET synchronous_commit",
    ]
    cursor = connection.execute("; ".join(parts).encode("ascii"))
    xids = []
    while True:
        if cursor.description:
            row = cursor.fetchone()
            assert row is not None
            xids.append(int(row[0]))
        if not cursor.nextset():
            break
    return Mark(tuple(xids), (*bits, True))


def read_position(connection: Connection, mark: Mark | None) -> Position:
    """Within the snapshot's transaction. mark: made after the snapshot was taken, None on a standby."""
    standby = in_recovery(connection)
    lsn = "pg_catalog.pg_last_wal_replay_lsn()" if standby else "pg_catalog.pg_current_wal_insert_lsn()"
    # The control file tells the timeline of the last checkpoint, which after a promotion is the one before.
    timelines = (
        "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()"
        if standby
        else (
            "SELECT ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int"
        )
    )
    system, timeline, database, at, xmin, xmax = _row(
        connection,
        f"""
        SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()),
               ({timelines}),
               (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
               ({lsn} - '0/0'::pg_lsn)::bigint,
               pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot()),
               pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())""",
    )
    horizon = xmin if mark else None
    return Position(system, timeline, int(database), at or 0, xmax, standby, horizon, mark)


def why_unrelated(connection: Connection, parent: Position, now: Position) -> str:
    """Why slices cannot be compared with the parent's, or empty. Within the snapshot's transaction."""
    if now.standby or parent.standby or parent.horizon is None or parent.mark is None:
        return "no transaction can be marked on a standby"
    if now.system != parent.system:
        return "it is another database cluster"
    if now.timeline != parent.timeline:
        return f"the server went over to timeline {now.timeline} (failover or recovery)"
    if now.database != parent.database:
        return "the database was made anew"
    if now.lsn < parent.lsn or now.next_xid <= parent.mark.last:
        return "the server went back in time"
    if now.next_xid - parent.horizon >= MAX_DISTANCE:
        return "too many transactions have passed since the last snapshot"
    fates = _row(
        connection,
        f"SELECT {', '.join(f'pg_catalog.txid_status({xid})' for xid in parent.mark.xids)}",
    )
    if None in fates:
        return "the last snapshot is too long ago: the server forgot the transactions of that time"
    if fates != tuple("committed" if done else "aborted" for done in parent.mark.committed):
        return "it is a copy of the cluster that went its own way"
    return ""


def new_since(horizon: int) -> str:
    """An SQL condition: the row was written by a transaction at or above `horizon` (less than 2^31 ids ago).

    The horizon's age is asked for once, not for each row.

    By age, because ids are compared modulo 2^32. Rows that are frozen or older than the horizon count as old; a frozen
    row whose id has come round again may count as new, never the other way round.
    """
    return f"pg_catalog.age(xmin) <= (SELECT pg_catalog.age('{horizon % _XID}'::xid))"


def _row(connection: Connection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql.encode("ascii")).fetchone()
    assert row is not None
    return row
