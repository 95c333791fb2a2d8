"""The database of a CRM on each engine, for `tests/faults/test_month.py`: its changes, what it holds, and its troubles."""

from __future__ import annotations

import random
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import psycopg

from tests.mariadb import MariadbServer
from tests.postgres import TestServer
from tests.support_mysql_crm import PASSWORD, documented_user, run

#: Table -> names of columns and rows.
Content = dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]


class Source(ABC):
    """One database. settings: lines of the policy's section `source`. Codes: of the errors that its troubles are."""

    settings: tuple[str, ...]
    tables: ClassVar[str]
    down_code: ClassVar[str]
    denied_code: ClassVar[str]

    @abstractmethod
    def connect(self, database: str) -> Any:
        """A connection as whoever owns it, in autocommit mode, to close."""

    @abstractmethod
    def target(self, name: str) -> str:
        """For `--to`."""

    @abstractmethod
    def drop(self, name: str) -> None:
        """Remove what was restored."""

    @abstractmethod
    def down(self) -> None:
        """Take the source away, until `up`."""

    @abstractmethod
    def up(self) -> None: ...

    @abstractmethod
    def deny(self) -> None:
        """Keep crmbackup from reading it, until `allow`."""

    @abstractmethod
    def allow(self) -> None: ...

    def run(self, *statements: str) -> None:
        """Statements of the CRM, all in one transaction."""
        with closing(self.connect("crm")) as connection:
            cursor = connection.cursor()
            for statement in ("BEGIN", *statements, "COMMIT"):
                cursor.execute(statement)

    def content(self, database: str = "crm") -> Content:
        """All that it holds, by plain SQL."""
        found: Content = {}
        with closing(self.connect(database)) as connection:
            cursor = connection.cursor()
            cursor.execute(self.tables)
            for (name,) in list(cursor.fetchall()):
                cursor.execute(f"SELECT * FROM {name}")
                rows = [tuple(row) for row in cursor.fetchall()]
                found[name] = (tuple(column[0] for column in cursor.description), sorted(rows, key=repr))
        return found


class SqliteFile(Source):
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table'"
    down_code = "source-missing"
    denied_code = "source-not-a-database"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "crm.db"
        self.settings = ("type: sqlite", f"path: {self._path}")
        with closing(self.connect("crm")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")

    def connect(self, database: str) -> Any:
        return sqlite3.connect(self._root / f"{database}.db", isolation_level=None)

    def target(self, name: str) -> str:
        return str(self._root / f"{name}.db")

    def drop(self, name: str) -> None:
        (self._root / f"{name}.db").unlink()

    def down(self) -> None:
        self._path.rename(self._root / "away.db")

    def up(self) -> None:
        (self._root / "away.db").rename(self._path)

    def deny(self) -> None:
        """Somebody puts another file in its place: to root, no mode denies anything."""
        self.down()
        self._path.write_text("Sorry, wrong file\n" * 1000)

    def allow(self) -> None:
        self._path.unlink()
        self.up()


class OnServer(Source):
    """A database of a server that is this test's own."""

    _server: TestServer | MariadbServer

    def drop(self, name: str) -> None:
        self._server.drop_database(name)

    def down(self) -> None:
        self._server.stop()

    def up(self) -> None:
        self._server.start()


class PostgresDatabase(OnServer):
    _server: TestServer

    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    down_code = "source-unavailable"
    denied_code = "source-denied"

    def __init__(self, server: TestServer) -> None:
        self._server = server
        self.settings = ("type: postgres", f"url: {self._url('backup', 'crm')}")
        server.create_database("crm")
        with server.connect() as connection:
            connection.execute("CREATE ROLE backup LOGIN")
        self.allow()

    def _url(self, user: str, database: str) -> str:
        place = dict(self._server.server(database).keywords)
        return f"postgresql://{user}@/{database}?host={quote(place['host'], safe='')}&port={place['port']}"

    def connect(self, database: str) -> Any:
        return psycopg.connect(self._server.conninfo(database), autocommit=True)

    def target(self, name: str) -> str:
        return self._url("postgres", name)

    def deny(self) -> None:
        with self._server.connect() as connection:
            connection.execute("REVOKE pg_read_all_data FROM backup")

    def allow(self) -> None:
        with self._server.connect() as connection:
            connection.execute("GRANT pg_read_all_data TO backup")


class MariadbDatabase(OnServer):
    _server: MariadbServer

    tables = "SHOW TABLES"
    down_code = "source-unavailable"
    denied_code = "source-denied"

    def __init__(self, server: MariadbServer, root: Path) -> None:
        self._server = server
        (root / "password").write_text(PASSWORD)
        url, secret = server.url("crm", "crmbackup"), root / "password"
        self.settings = ("type: mysql", f"url: {url}", f"password: {{file: {secret}}}")
        server.create_database("crm")
        documented_user(server)

    def connect(self, database: str) -> Any:
        return self._server.connect(database)

    def target(self, name: str) -> str:
        return self._server.url(name)

    def deny(self) -> None:
        run(self._server, "", "REVOKE SELECT ON crm.* FROM 'crmbackup'@'%'")

    def allow(self) -> None:
        run(self._server, "", "GRANT SELECT ON crm.* TO 'crmbackup'@'%'")


class Crm:
    """What the application does with its database, the same each time for the same seed."""

    ACCOUNTS, CONTACTS, NOTES = 100, 300, 1500

    def __init__(self, source: Source, seed: int) -> None:
        self.source = source
        self._random = random.Random(seed)
        self._next = 10_000
        self._tables: list[str] = []
        self._columns = 0

    def begin(self) -> None:
        """Make the tables and fill them."""
        self.source.run(
            "CREATE TABLE accounts (id INTEGER PRIMARY KEY, name VARCHAR(100) NOT NULL, balance INTEGER)",
            "CREATE TABLE contacts (id INTEGER PRIMARY KEY, account INTEGER, mail VARCHAR(100))",
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, account INTEGER, body TEXT)",
            "CREATE TABLE countries (id INTEGER PRIMARY KEY, name VARCHAR(100))",
            *_inserts("accounts", [(n, f"Müller & Söhne {n}", n) for n in range(self.ACCOUNTS)]),
            *_inserts("contacts", [(n, n % self.ACCOUNTS, f"{n}@example.org") for n in range(self.CONTACTS)]),
            *_inserts("notes", [(n, n % self.ACCOUNTS, self._text(600)) for n in range(self.NOTES)]),
            # Never changed: incrementals of a week need what its full holds of it.
            *_inserts("countries", [(n, self._text(40)) for n in range(200)]),
        )

    def work(self) -> None:
        """Some rows come, change and go; now and then a column, or a whole table."""
        chance = self._random
        new = [(self._number(), chance.randrange(self.ACCOUNTS), self._text(chance.randrange(2000))) for _ in range(3)]
        statements = [
            *_inserts("notes", new),
            f"UPDATE accounts SET balance = balance + {chance.randrange(1000)} WHERE id % 50 = {chance.randrange(50)}",
            f"UPDATE notes SET body = '{self._text(50)}' WHERE id = {chance.randrange(self.NOTES)}",
            f"DELETE FROM notes WHERE id = {chance.randrange(self.NOTES)}",
            f"DELETE FROM contacts WHERE id = {chance.randrange(self.CONTACTS)}",
        ]
        what = chance.randrange(12)
        if what == 0:
            self._columns += 1
            statements.append(f"ALTER TABLE accounts ADD COLUMN more{self._columns} VARCHAR(20) DEFAULT 'new'")
        elif what == 1:
            self._tables.append(f"log{self._number()}")
            statements.append(f"CREATE TABLE {self._tables[-1]} (id INTEGER PRIMARY KEY, line VARCHAR(100))")
            statements += _inserts(self._tables[-1], [(n, self._text(20)) for n in range(50)])
        elif what == 2 and self._tables:
            statements.append(f"DROP TABLE {self._tables.pop(0)}")
        self.source.run(*statements)

    def lose(self) -> None:
        """Nearly all rows go, by mistake."""
        self.source.run("DELETE FROM notes")

    def bring_back(self, content: Content) -> None:
        """The notes as they were."""
        self.source.run(*_inserts("notes", content["notes"][1]))

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _text(self, length: int) -> str:
        return self._random.randbytes((length + 1) // 2).hex()[:length]


def _inserts(table: str, rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Without a name for columns: they are all there."""
    found = []
    for start in range(0, len(rows), 500):
        values = (", ".join(f"'{each}'" for each in row) for row in rows[start : start + 500])
        found.append(f"INSERT INTO {table} VALUES " + ", ".join(f"({each})" for each in values))
    return found
