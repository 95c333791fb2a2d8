"""Which parts of one table changed, by the keys of its changed rows; and how changes of one table change others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from crmbackup.engines.mysql import binlog
from crmbackup.engines.mysql.binlog import Event, KeyReader, LogUnusableError, RowFormat, Value
from crmbackup.engines.mysql.catalog import Table
from crmbackup.engines.mysql.columns import Column
from crmbackup.engines.mysql.connection import Connection, execute, quoted
from crmbackup.engines.mysql.keys import Key, at_most, literal_of

#: Keys whose place the server is asked for at once.
_BATCH = 2000
#: Rules of foreign keys that change no other row.
_NEVER = {"RESTRICT", "NO ACTION"}


@dataclass
class TableChanges:
    """One table: the numbers of the parent's parts that changed, or all of it, and then why; `len` of the parent's parts
    stands for what comes after the last.
    """

    parts: set[int] = field(default_factory=set)
    whole: str = ""


class Tracked:
    """One table of ours while the log is read."""

    def __init__(
        self, table: Table, borders: Sequence[Key], columns: Sequence[str], connection: Connection, *, mariadb: bool
    ) -> None:
        self.changes = TableChanges()
        self.form: RowFormat | None = None
        self.reader: KeyReader | None = None
        self.moved = self.deleted = False
        self.any = False
        self._table = table
        self._connection = connection
        self._keys = [(columns.index(column.name), column) for column in table.key if column.name in columns]
        self._columns = len(columns)
        self._count = len(borders)
        self._asked = any(column.text for column in table.key)
        self._borders = borders
        self._mariadb = mariadb
        self._search = ""
        self._values = [] if self._asked else [_comparable(table.key, border) for border in borders]
        self._waiting: set[tuple[Value, ...]] = set()

    def whole(self, reason: str) -> None:
        """All of it must be read."""
        self.changes.whole = self.changes.whole or reason
        self._waiting.clear()

    def rows(self, form: RowFormat, event: Event) -> None:
        """Rows of it changed. Raises LogUnusableError if they cannot be told."""
        what = binlog.ROWS[event.kind][0]
        self.any = True
        self.deleted |= what == "delete"
        if self.changes.whole:
            return
        if not self._count:
            self.whole("it was empty, or has no key by which changed rows could be found")
            return
        if len(form.kinds) != self._columns:
            raise LogUnusableError("its definition was changed, or it was emptied")
        if self.form is not form:
            self.form, self.reader = form, KeyReader(form, self._keys)
        assert self.reader
        for before, after in self.reader.read(event):
            if before is not None:
                self._mark(before)
            if after is not None and after != before:
                self.moved |= before is not None
                self._mark(after)

    def _mark(self, key: tuple[Value, ...]) -> None:
        if self._asked:
            self._waiting.add(key)
            if len(self._waiting) >= _BATCH:
                self.settle()
        else:
            self.changes.parts.add(bisect_left(self._values, key))

    def settle(self) -> None:
        """Ask the server which parts the keys belong to that only it can compare."""
        if self._waiting and not self.changes.whole:
            self._search = self._search or _search_sql(self._table.key, self._borders)
            rows = _keys_sql(self._table.key, list(self._waiting), mariadb=self._mariadb)
            found = execute(self._connection, f"WITH {rows} SELECT DISTINCT {self._search} FROM k")
            self.changes.parts.update(int(number) for (number,) in found)
        self._waiting.clear()


def _comparable(key: Sequence[Column], border: Key) -> tuple[Value, ...]:
    return tuple(int(found) if column.numeric else found for column, found in zip(key, border, strict=True))


def _search_sql(key: Sequence[Column], borders: Sequence[Key]) -> str:
    """Which part a key belongs to: a search in a tree of comparisons, by the columns' own collations."""

    def tree(low: int, high: int) -> str:
        if low == high:
            return str(low)
        middle = (low + high) // 2
        return f"IF({at_most(key, borders[middle])},{tree(low, middle)},{tree(middle + 1, high)})"

    return tree(0, len(borders))


def _keys_sql(key: Sequence[Column], keys: Sequence[tuple[Value, ...]], *, mariadb: bool) -> str:
    """A common table expression "k" of some keys. Only later versions of MySQL know VALUES, which take less time."""
    rows = []
    for found in keys:
        texts = [str(each).encode() if isinstance(each, int) else each for each in found]
        rows.append(",".join([literal_of(column, text) for column, text in zip(key, texts, strict=True)]))
    content = f"VALUES ({'),('.join(rows)})" if mariadb else f"SELECT {' UNION ALL SELECT '.join(rows)}"
    return f"k({','.join(quoted(column.name) for column in key)}) AS ({content})"


@dataclass(frozen=True)
class Cascade:
    """A foreign key by which changes of the parent change the child. by_key: only if the parent's key changes."""

    child: str
    database: str
    parent: str
    deletes: bool
    updates: bool
    by_key: bool


def read_cascades(connection: Connection, database: str) -> list[Cascade]:
    """Foreign keys of a database by which rows change that no log names. Raises pymysql.Error."""
    rows = execute(
        connection,
        "SELECT table_name, unique_constraint_schema, referenced_table_name, delete_rule, update_rule,"
        " unique_constraint_name FROM information_schema.referential_constraints WHERE constraint_schema = %s",
        (database,),
    )
    # Of a key that holds the beginning of a column only, tables are cut by another one.
    cut_otherwise = {
        str(name)
        for (name,) in execute(
            connection,
            "SELECT table_name FROM information_schema.statistics"
            " WHERE table_schema = %s AND index_name = 'PRIMARY' AND sub_part IS NOT NULL",
            (database,),
        )
    }
    return [
        Cascade(
            str(child),
            str(schema),
            str(parent),
            delete not in _NEVER,
            update not in _NEVER,
            # Tables with a primary key are cut by that one.
            unique == "PRIMARY" and str(parent) not in cut_otherwise,
        )
        for child, schema, parent, delete, update, unique in rows
        if delete not in _NEVER or update not in _NEVER
    ]
