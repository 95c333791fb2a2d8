"""Random SQLite databases and random things that applications and administrators do to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import apsw

from tests.support_sqlite import connect

LIMITS = (-(2**63), -(2**63) + 1, 2**63 - 1, 2**63 - 2, 0, -1, 1)
NUMBERS = (0.0, -0.0, math.inf, -math.inf, 1e300, 5e-324, 0.1)
TEXTS = ("", "12", "1e5", "0x10", "nul\0inside", "äöü 漢字 🙂", "'quoted' \"twice\"", " 1 ")

#: Definitions; {t} is the table. All have a column `body` for text and `data` for bytes.
TABLES = (
    "CREATE TABLE {t}(body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(id INTEGER PRIMARY KEY, body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT, data BLOB, n REAL)",
    "CREATE TABLE {t}(rowid TEXT, body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(_rowid_, rowid, body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(oid INTEGER PRIMARY KEY, rowid, _rowid_, body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(RowId, _ROWID_, Oid, body TEXT, data BLOB, n)",
    "CREATE TABLE {t}(n NOT NULL DEFAULT 0, body TEXT NOT NULL DEFAULT '', data BLOB, PRIMARY KEY(body, n)) WITHOUT ROWID",
    "CREATE TABLE {t}(k INTEGER PRIMARY KEY, body TEXT, data BLOB, n) WITHOUT ROWID",
    "CREATE TABLE {t}(body TEXT, data BLOB, n ANY) STRICT",
    "CREATE TABLE {t}(body TEXT, data BLOB, n, up TEXT AS (upper(body)) STORED, size AS (length(data)) VIRTUAL)",
    "CREATE TABLE {t}(body TEXT COLLATE NOCASE, data BLOB, n NUMERIC, UNIQUE(n, body) ON CONFLICT REPLACE)",
)
VIRTUAL = (
    "CREATE VIRTUAL TABLE {t} USING fts5(body)",
    "CREATE VIRTUAL TABLE {t} USING fts4(body)",
    "CREATE VIRTUAL TABLE {t} USING rtree(id, low, high)",
)


class Changes:
    """A database that changes at random; the same seed makes the same changes."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = Random(seed)
        self.done: list[str] = []
        self._names = 0
        pick = self.random.choice
        self.page_size = pick((512, 512, 512, 1024, 4096, 8192, 65536))
        with closing(connect(path)) as db:
            db.execute("PRAGMA synchronous = OFF").fetchall()
            db.execute(f"PRAGMA page_size = {self.page_size}").fetchall()
            db.execute(f"PRAGMA encoding = '{pick(('UTF-8', 'UTF-8', 'UTF-8', 'UTF-16le', 'UTF-16be'))}'").fetchall()
            db.execute(f"PRAGMA auto_vacuum = {pick(('none', 'none', 'full', 'incremental'))}").fetchall()
            db.execute(f"PRAGMA journal_mode = {pick(('delete', 'wal', 'wal', 'truncate', 'persist'))}").fetchall()
            self.tables: dict[str, str] = {}
            for definition in self.random.sample(TABLES, self.random.randint(1, 4)):
                self._create(db, definition)
            if self.random.random() < 0.4:
                name = self._name()
                definition = pick(VIRTUAL)
                db.execute(definition.format(t=_quoted(name))).fetchall()
                self.tables[name] = definition
            for name in self.tables:
                self._insert(db, name, self.random.choice((0, 30, 300, 1500)))

    def step(self) -> str:
        """Some changes, each of them committed or rolled back; gives what was done."""
        self.done.clear()
        with closing(connect(self.path)) as db:
            db.execute("PRAGMA synchronous = OFF").fetchall()
            db.execute(f"PRAGMA wal_autocheckpoint = {self.random.choice((0, 0, 3, 1000))}").fetchall()
            db.execute(f"PRAGMA cache_size = {self.random.choice((2, 100, -2000))}").fetchall()
            for _ in range(self.random.choice((0, 1, 1, 1, 2, 4))):
                change = self.random.choice(CHANGES)
                try:
                    change(self, db)
                # FullError: there is no rowid behind 2^63 - 1. LockedError: a failed change left a cursor.
                except (
                    apsw.SQLError,
                    apsw.ConstraintError,
                    apsw.MismatchError,
                    apsw.FullError,
                    apsw.LockedError,
                ) as error:
                    self.done.append(f"{change.__name__} failed: {error}")
                    if not db.get_autocommit():
                        db.execute("ROLLBACK").fetchall()
                else:
                    self.done.append(change.__name__)
        return ", ".join(self.done)

    def _name(self) -> str:
        self._names += 1
        return f"t{self._names}{self.random.choice(('', ' x', chr(39), chr(10), 'ü', '[a]', '%'))}"

    def _create(self, db: apsw.Connection, definition: str) -> None:
        name = self._name()
        db.execute(definition.format(t=_quoted(name))).fetchall()
        self.tables[name] = definition

    def _real(self) -> str:
        """A table that is no virtual one."""
        real = [name for name, definition in self.tables.items() if "VIRTUAL TABLE" not in definition]
        return self.random.choice(real)

    def _length(self) -> int:
        return self.random.choice((0, 3, 20, 20, 60, 60, 200, self.page_size, 5 * self.page_size // 2))

    def _key(self) -> int:
        choice = self.random.random()
        if choice < 0.1:
            return self.random.choice(LIMITS)
        if choice < 0.3:
            return self.random.randint(-(2**63), 2**63 - 1)
        return self.random.randint(-3000, 9000)

    def _value(self) -> object:
        pick = self.random.choice
        return pick((None, pick(LIMITS), pick(NUMBERS), pick(TEXTS), b"", self.random.random(), self._key()))

    def _text(self) -> str:
        word = self.random.choice(("abc ", "Grüße ", "日本 ", "x"))
        return (f"{self.random.getrandbits(40)} " + word * self._length())[: self._length() + 8]

    def _insert(self, db: apsw.Connection, name: str, count: int) -> None:
        definition = self.tables[name]
        db.execute("BEGIN").fetchall()
        if "rtree" in definition:
            for _ in range(count):
                low = self.random.uniform(-1000, 1000)
                row = (self.random.randint(1, 10**6), low, low + 5)
                db.execute(f"INSERT OR REPLACE INTO {_quoted(name)} VALUES(?, ?, ?)", row).fetchall()
        elif "fts" in definition:
            for _ in range(count):
                db.execute(f"INSERT INTO {_quoted(name)}(body) VALUES(?)", (self._text(),)).fetchall()
        else:
            key = self._key_column(db, name)
            sequential = self.random.random() < 0.6
            names, marks = (
                ("body, data, n", "?, ?, ?") if not key or sequential else (f"body, data, n, {key}", "?, ?, ?, ?")
            )
            for _ in range(count):
                row = (self._text(), self.random.randbytes(self._length()), self._value())
                if marks.count("?") == 4:
                    row = (*row, self._key())
                db.execute(f"INSERT OR IGNORE INTO {_quoted(name)}({names}) VALUES({marks})", row).fetchall()
        db.execute("COMMIT").fetchall()

    @staticmethod
    def _key_column(db: apsw.Connection, name: str) -> str:
        columns = {row[1].lower(): row for row in db.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()}
        for column in ("id", "oid", "k"):
            if column in columns and columns[column][5]:
                return column
        if any(
            "WITHOUT ROWID" in str(row[0])
            for row in db.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,))
        ):
            return ""
        return next((alias for alias in ("rowid", "_rowid_", "oid") if alias not in columns), "")

    # Changes; each may fail with an SQL error and is then rolled back

    def insert(self, db: apsw.Connection) -> None:
        self._insert(db, self.random.choice(list(self.tables)), self.random.choice((1, 5, 40, 400)))

    def insert_many(self, db: apsw.Connection) -> None:
        """So many that the b-tree of a small page size gets four levels."""
        name = self._real()
        key = self._key_column(db, name)
        count, gap = self.random.choice((3000, 12_000)), self.random.choice((1, 1000, 10**14))
        names, values = (
            (f"{key}, body", f"{self._key() // 2} + i * {gap}, 'row ' || i") if key else ("body", "'row ' || i")
        )
        series = f"WITH RECURSIVE s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {count})"
        db.execute(f"{series} INSERT OR IGNORE INTO {_quoted(name)}({names}) SELECT {values} FROM s").fetchall()

    def update_scattered(self, db: apsw.Connection) -> None:
        step = self.random.choice((2, 7, 50, 400))
        query = f"UPDATE {_quoted(self._real())} SET n = ?, body = body || 'x' WHERE abs(random()) % {step} = 0"
        db.execute(query, (self.random.random(),)).fetchall()

    def update_one(self, db: apsw.Connection) -> None:
        name = self._real()
        key = self._key_column(db, name)
        if key:
            where = f"(SELECT {key} FROM {_quoted(name)} LIMIT 1 OFFSET abs(random()) % 50)"
            db.execute(f"UPDATE {_quoted(name)} SET body = ? WHERE {key} = {where}", (self._text(),)).fetchall()

    def update_tail(self, db: apsw.Connection) -> None:
        """In place, and only in the last page of an overflow chain."""
        name = self._real()
        key = self._key_column(db, name)
        if not key:
            return
        query = f"SELECT {key}, length(data) FROM {_quoted(name)} WHERE length(data) > {2 * self.page_size} LIMIT 40"
        found = db.execute(query).fetchall()
        for rowid, length in found[: self.random.choice((1, 40))]:
            with db.blob_open("main", name, "data", rowid, True) as blob:
                blob.seek(length - 1)
                blob.write(self.random.randbytes(1))

    def delete_range(self, db: apsw.Connection) -> None:
        name = self._real()
        key = self._key_column(db, name)
        if key:
            low = self._key()
            high = min(low + self.random.choice((10, 500, 5000)), 2**63 - 1)
            db.execute(f"DELETE FROM {_quoted(name)} WHERE {key} BETWEEN {low} AND {high}").fetchall()

    def delete_scattered(self, db: apsw.Connection) -> None:
        step = self.random.choice((2, 10, 100))
        db.execute(f"DELETE FROM {_quoted(self._real())} WHERE abs(random()) % {step} = 0").fetchall()

    def delete_all(self, db: apsw.Connection) -> None:
        db.execute(f"DELETE FROM {_quoted(self._real())}").fetchall()

    def empty_and_fill(self, db: apsw.Connection) -> None:
        """The same rows again, on other pages."""
        name = _quoted(self._real())
        db.execute(f"CREATE TEMP TABLE kept AS SELECT * FROM {name}").fetchall()
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({name})").fetchall()]
        listed = ", ".join(_quoted(column) for column in columns)
        db.execute(f"DELETE FROM {name}").fetchall()
        db.execute(f"INSERT INTO {name}({listed}) SELECT {listed} FROM kept").fetchall()

    def vacuum(self, db: apsw.Connection) -> None:
        db.execute("VACUUM").fetchall()

    def change_page_size(self, db: apsw.Connection) -> None:
        size = self.random.choice((512, 1024, 4096))
        db.execute(f"PRAGMA page_size = {size}").fetchall()
        db.execute("VACUUM").fetchall()
        self.page_size = int(db.pragma("page_size"))

    def incremental_vacuum(self, db: apsw.Connection) -> None:
        db.execute(f"PRAGMA incremental_vacuum({self.random.choice((1, 20, 100000))})").fetchall()

    def add_column(self, db: apsw.Connection) -> None:
        self._names += 1
        default = self.random.choice(("", " DEFAULT 7", " DEFAULT 'text'"))
        db.execute(f"ALTER TABLE {_quoted(self._real())} ADD COLUMN added{self._names} ANY{default}").fetchall()

    def drop_column(self, db: apsw.Connection) -> None:
        name = self._real()
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()]
        added = [column for column in columns if column.startswith("added")]
        if added:
            db.execute(f"ALTER TABLE {_quoted(name)} DROP COLUMN {self.random.choice(added)}").fetchall()

    def rename_column(self, db: apsw.Connection) -> None:
        name = self._real()
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({_quoted(name)})").fetchall()]
        added = [column for column in columns if column.startswith("added")]
        if added:
            self._names += 1
            db.execute(f"ALTER TABLE {_quoted(name)} RENAME COLUMN {added[0]} TO added{self._names}").fetchall()

    def rename_table(self, db: apsw.Connection) -> None:
        old, new = self._real(), self._name()
        db.execute(f"ALTER TABLE {_quoted(old)} RENAME TO {_quoted(new)}").fetchall()
        self.tables[new] = self.tables.pop(old)

    def twin_and_swap(self, db: apsw.Connection) -> None:
        """A second table of the same definition takes the name of the first."""
        name = self._real()
        definition, twin = self.tables[name], self._name()
        db.execute(definition.format(t=_quoted(twin))).fetchall()
        self.tables[twin] = definition
        self._insert(db, twin, self.random.choice((0, 20, 300)))
        for one, other in ((name, "aside"), (twin, name), ("aside", twin)):
            db.execute(f"ALTER TABLE {_quoted(one)} RENAME TO {_quoted(other)}").fetchall()

    def make_again(self, db: apsw.Connection) -> None:
        name = self.random.choice(list(self.tables))
        definition = self.tables[name]
        db.execute(f"DROP TABLE {_quoted(name)}").fetchall()
        db.execute(definition.format(t=_quoted(name))).fetchall()
        self._insert(db, name, self.random.choice((0, 3, 200)))

    def new_table(self, db: apsw.Connection) -> None:
        self._create(db, self.random.choice(TABLES))

    def drop_table(self, db: apsw.Connection) -> None:
        if len([d for d in self.tables.values() if "VIRTUAL" not in d]) > 1:
            name = self._real()
            db.execute(f"DROP TABLE {_quoted(name)}").fetchall()
            del self.tables[name]

    def make_index(self, db: apsw.Connection) -> None:
        self._names += 1
        columns = self.random.choice(("body", "n, body", "lower(body)", "data"))
        db.execute(f"CREATE INDEX i{self._names} ON {_quoted(self._real())}({columns})").fetchall()

    def drop_index(self, db: apsw.Connection) -> None:
        query = "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        for (name,) in db.execute(query).fetchall()[:1]:
            db.execute(f"DROP INDEX {name}").fetchall()

    def reindex(self, db: apsw.Connection) -> None:
        db.execute("REINDEX").fetchall()

    def analyze(self, db: apsw.Connection) -> None:
        db.execute("ANALYZE").fetchall()

    def journal_mode(self, db: apsw.Connection) -> None:
        mode = self.random.choice(("delete", "wal", "wal", "truncate", "persist"))
        db.execute(f"PRAGMA journal_mode = {mode}").fetchall()

    def checkpoint(self, db: apsw.Connection) -> None:
        db.execute(
            f"PRAGMA wal_checkpoint({self.random.choice(('PASSIVE', 'FULL', 'RESTART', 'TRUNCATE'))})"
        ).fetchall()

    def settings(self, db: apsw.Connection) -> None:
        db.execute(f"PRAGMA user_version = {self.random.randint(0, 1000)}").fetchall()
        db.execute(f"PRAGMA application_id = {self.random.randint(0, 1000)}").fetchall()

    def rolled_back(self, db: apsw.Connection) -> None:
        db.execute("BEGIN").fetchall()
        name = _quoted(self._real())
        db.execute(f"UPDATE {name} SET n = 1").fetchall()
        db.execute("SAVEPOINT s").fetchall()
        db.execute(f"DELETE FROM {name}").fetchall()
        db.execute("ROLLBACK TO s").fetchall()
        db.execute("ROLLBACK").fetchall()

    def invalid_text(self, db: apsw.Connection) -> None:
        bad = self.random.choice(("ff", "c3", "eda080", "80616263"))
        query = f"UPDATE {_quoted(self._real())} SET body = CAST(x'{bad}' AS TEXT) || body WHERE abs(random()) % 30 = 0"
        db.execute(query).fetchall()


CHANGES: tuple[Callable[[Changes, apsw.Connection], None], ...] = (
    *(3 * (Changes.insert, Changes.update_scattered, Changes.update_one, Changes.update_tail)),
    *(2 * (Changes.delete_range, Changes.delete_scattered, Changes.checkpoint, Changes.journal_mode)),
    *(2 * (Changes.twin_and_swap, Changes.make_again, Changes.empty_and_fill)),
    Changes.insert_many,
    Changes.delete_all,
    Changes.vacuum,
    Changes.change_page_size,
    Changes.incremental_vacuum,
    Changes.add_column,
    Changes.drop_column,
    Changes.rename_column,
    Changes.rename_table,
    Changes.new_table,
    Changes.drop_table,
    Changes.make_index,
    Changes.drop_index,
    Changes.reindex,
    Changes.analyze,
    Changes.settings,
    Changes.rolled_back,
    Changes.invalid_text,
)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
