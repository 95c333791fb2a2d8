"""What lies outside of the database that is restored: the database itself, and the accounts its objects run as."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pymysql
from pymysql.constants import ER

from crmbackup.core.errors import TargetError, TargetExists
from crmbackup.core.events import Emit, Notice
from crmbackup.engines.mysql import restore_clean as clean
from crmbackup.engines.mysql.accounts import GRANT_ON
from crmbackup.engines.mysql.connection import Connection, Server, code_of, connect, execute, quoted, target_errors

_CREATE = "CREATE "
_CREATE_USER = f"{_CREATE}USER "
_OBJECTS_NEED = (
    "SELECT, INSERT, UPDATE, DELETE, EXECUTE, SHOW VIEW, TRIGGER, EVENT, CREATE TEMPORARY TABLES, LOCK TABLES"
)
#: No right to do that, on a table, a database or the server.
DENIED = (1142, 1044, 1227)
#: Tables and views, routines.
_NOT_THERE = (ER.NO_SUCH_TABLE, ER.SP_DOES_NOT_EXIST)


def missing_accounts(connection: Connection, definers: Sequence[str]) -> list[str] | None:
    """Those, "user@host", that the server does not have; None when the user may not look. Raises pymysql.Error."""
    try:
        there = {f"{user}@{host}" for user, host in execute(connection, "SELECT user, host FROM mysql.user")}
    except pymysql.Error as error:
        if code_of(error) in DENIED:
            return None
        raise
    return [name for name in definers if name not in there and f"{name}@" not in there]


def make_accounts(connection: Connection, names: Sequence[str]) -> None:
    """Make accounts that nobody can log in to. Raises pymysql.Error."""
    for name in names:
        user, _, host = name.rpartition("@")
        if user and host:
            execute(connection, "CREATE USER IF NOT EXISTS %s@%s ACCOUNT LOCK", (user, host))
        else:
            execute(connection, "CREATE ROLE IF NOT EXISTS %s", (user or name,))


def let_objects_run(connection: Connection, names: Sequence[str], database: str) -> None:
    """Give accounts that were just made the rights on the restored database by which its objects can run as them: without
    these, views of theirs that call functions cannot even be made. Raises pymysql.Error.
    """
    pattern = quoted(_pattern(database)).replace("%", "%%")  # the driver takes %% for %
    for name in names:
        user, _, host = name.rpartition("@")
        account, values = ("%s@%s", (user, host)) if user and host else ("%s", (user or name,))
        execute(connection, f"GRANT {_OBJECTS_NEED} ON {pattern}.* TO {account}", values)


def make_users(connection: Connection, statements: Sequence[str]) -> None:
    """Make the snapshot's accounts where they are missing, with their passwords. Raises pymysql.Error."""
    for text in statements:
        if text.startswith(_CREATE):
            there = "IF NOT EXISTS "
            missing = text.startswith(_CREATE_USER) and not text.startswith(_CREATE_USER + there)
            execute(connection, text.replace(_CREATE_USER, _CREATE_USER + there, 1) if missing else text)


def give_rights(
    connection: Connection, statements: Sequence[str], old: str, new: str, *, as_far_as_possible: bool = False
) -> None:
    """Give the snapshot's accounts their rights on the database. Raises pymysql.Error.

    as_far_as_possible: not all of its objects are there yet.
    """
    for text in statements:
        if text.startswith(_CREATE):
            continue
        try:
            execute(connection, text if old == new else granted_on(text, new))
        except pymysql.Error as error:
            if not (as_far_as_possible and code_of(error) in _NOT_THERE):
                raise


def granted_on(grant: str, database: str) -> str:
    """A GRANT on a database or something in it, for another database."""
    place = GRANT_ON.search(grant)
    if not place:
        return grant
    name = _pattern(database) if grant[place.end() :].startswith("*") else database
    return grant[: place.start(1)] + quoted(name)[1:-1] + grant[place.end(1) :]


def _pattern(database: str) -> str:
    """In grants on whole databases some letters stand for others unless they are escaped."""
    return re.sub(r"[\\%_]", r"\\\g<0>", database)


def refuse_existing(server: Server) -> bool:
    """With --create there must be no such database yet; gives whether an unfinished restore left one.

    Raises TargetExists, TargetError kinds.
    """
    with target_errors(server), closing(connect(server.at(""))) as connection:
        if not clean.exists(connection, server.database):
            return False
        if clean.read_mark(connection, server.database) is None:
            raise TargetExists(
                f"the database {server.name} exists already",
                hint="name another one to create, or drop this one yourself",
            )
        refuse_busy(connection, server)
    return True


def refuse_busy(connection: Connection, server: Server) -> None:
    """Raises TargetError while another restore to the database is at work; holds it off else."""
    if not clean.take_lock(connection, server.database):
        raise TargetError(f"another restore to {server.name} is at work", hint="wait until it is over")


def create_database(connection: Connection, server: Server, database: Mapping[str, Any], emit: Emit) -> None:
    """Make the database, empty. Raises TargetExists, TargetError kinds."""
    if refuse_existing(server):
        emit(Notice(f"a restore to {server.name} was not finished: what it left is removed"))
        with target_errors(server, "the database"):
            clean.end_sessions(connection, server.database)
            execute(connection, f"DROP DATABASE {quoted(server.database)}")
    with target_errors(server, "the database"):
        execute(connection, clean.database_sql(server.database, database, "CREATE"))


def drop_database(server: Server) -> None:
    """With everything in it, and the sessions of the restore that filled it. Raises TargetError kinds."""
    with target_errors(server, "the database"), closing(connect(server.at(""))) as connection:
        if clean.read_mark(connection, server.database) is not None:
            clean.end_sessions(connection, server.database)
        execute(connection, f"DROP DATABASE IF EXISTS {quoted(server.database)}")
