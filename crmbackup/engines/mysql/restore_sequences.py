"""Sequences and AUTO_INCREMENT of a restored database go on where the source's were."""

from __future__ import annotations

from crmbackup.engines.mysql.connection import Connection, execute, quoted
from crmbackup.engines.mysql.layout import SequenceLayout

_SEQUENCE = "minimum_value, maximum_value, start_value, increment, cache_size, cycle_option"


def set_sequence(connection: Connection, database: str, sequence: SequenceLayout) -> None:
    """The next value that it gives is the source's next that no cache had. Raises pymysql.Error.

    SETVAL sets no value below the one it has, nor one past the end: a row is inserted instead, which replaces the old.
    """
    name = quoted(database, sequence.name)
    ((*limits,),) = execute(connection, f"SELECT {_SEQUENCE} FROM {name}")
    numbers = ", ".join(str(int(number)) for number in (sequence.next_value, *limits, sequence.cycles))
    execute(connection, f"INSERT INTO {name} (next_not_cached_value, {_SEQUENCE}, cycle_count) VALUES ({numbers})")


def set_counter(connection: Connection, database: str, table: str, following: int) -> None:
    """The next AUTO_INCREMENT of a table, unless a row has it already. Raises pymysql.Error."""
    execute(connection, f"ALTER TABLE {quoted(database, table)} AUTO_INCREMENT = {following}")
