"""What lies outside of the database that is restored: roles, the database itself, and what is set on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg
from psycopg import errors as pg

from crmbackup.core.errors import TargetError, TargetExists
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.engines.postgres import restore_clean as clean
from crmbackup.engines.postgres.connection import MEANING, Server, connect, quoted, target_errors, text_of
from crmbackup.engines.postgres.layout import Layout
from crmbackup.engines.postgres.roles import (
    create_database_sql,
    database_settings_sql,
    needed_roles,
    role_settings_sql,
    roles_sql,
)

Connection = psycopg.Connection[tuple[Any, ...]]

#: The database from which others are made, and the one that is there where somebody dropped that one.
_MAINTENANCE, _TEMPLATE = "postgres", "template1"
_FORCE = 130000
#: Settings that let a session begin with a library, which the server of a drill may not have.
_PRELOADED = frozenset({"session_preload_libraries", "local_preload_libraries"})


def beside(server: Server) -> Server:
    """Where to be when the database may not be there."""
    place = server.at(_MAINTENANCE)
    try:
        connect(place).close()
    except psycopg.OperationalError as error:
        if re.search(r'database ".*" does not exist|permission denied for database', str(error)):
            return server.at(_TEMPLATE)
    return place


def missing_roles(connection: Connection, layout: Layout) -> list[str]:
    """Roles that the snapshot's objects need and that the server does not have, by name."""
    return sorted(needed_roles(layout.roles) - _existing(connection))


def _existing(connection: Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT rolname FROM pg_catalog.pg_roles")}


def make_roles(server: Server, layout: Layout, *, login: bool = False, database: str = "") -> list[str]:
    """Make the missing ones; gives their names. login, database: as in `roles_sql`. Raises TargetError kinds."""
    with target_errors(server, "roles"), closing(connect(server)) as connection:
        existing = _existing(connection)
        statements = roles_sql(
            layout.roles,
            existing,
            login=login,
            server_version=connection.info.server_version,
            database=database,
        )
        codec = connection.info.encoding
        with connection.transaction():
            for text in statements:
                connection.execute(text.encode(codec))
    return [role["name"] for role in layout.roles["roles"] if role["name"] not in existing]


def drop_roles(server: Server, names: Sequence[str]) -> None:
    """Those that `make_roles` made, when nothing is theirs any more. Raises TargetError kinds."""
    with target_errors(server, "roles"), closing(connect(server)) as connection:
        codec = connection.info.encoding
        for name in names:
            connection.execute(f"DROP ROLE IF EXISTS {quoted(name)}".encode(codec))


def exists(connection: Connection, name: str) -> bool:
    """Whether the server has a database of that name."""
    row = connection.execute("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (name,)).fetchone()
    return row is not None


def refuse_existing(server: Server) -> bool:
    """With --create there must be no such database yet; gives whether an unfinished restore left one.

    Raises TargetExists, TargetError kinds.
    """
    with target_errors(server), closing(connect(beside(server))) as connection:
        if not exists(connection, server.database):
            return False
    with target_errors(server), closing(connect(server)) as connection:
        if clean.read_mark(connection) is None:
            raise TargetExists(
                f"the database {server.name} exists already",
                hint="name another one to create, or drop this one yourself",
            )
        if not clean.take_lock(connection):
            raise TargetError(f"another restore to {server.name} is at work", hint="wait until it is over")
    return True


def create_database(server: Server, layout: Layout, emit: Emit) -> None:
    """Make the database, empty. Raises TargetExists, TargetError kinds."""
    if refuse_existing(server):
        emit(Notice(f"a restore to {server.name} was not finished: what it left is removed"))
        drop_database(server)
    with target_errors(server, "the database"), closing(connect(beside(server))) as connection:
        text = create_database_sql(layout.database, server.database, connection.info.server_version)
        try:
            connection.execute(text.encode(connection.info.encoding))
        except pg.WrongObjectType as error:
            raise TargetError(
                f"the server of {server.name} lacks the locale of the snapshot's database",
                why=text_of(error),
                hint="make it known to the system that the server runs on (Debian: dpkg-reconfigure locales); or make the"
                " database yourself, with a locale that is there, and restore without --create",
            ) from error


def give_meaning(server: Server, layout: Layout) -> None:
    """Of the database's settings those that tell what definitions mean, for all sessions to come: indexes and materialised
    views are then filled as in the source. Raises TargetError kinds.
    """
    # The path: for materialised views that find nothing without it.
    chosen = [item for item in layout.database["settings"] if item[0].lower() in (*MEANING, "search_path")]
    database = {"settings": chosen, "comment": None, "connection_limit": -1}
    texts = database_settings_sql(database, server.database, owners=False)
    if texts:
        what = "settings of the database"
        with target_errors(server, what), closing(connect(beside(server))) as connection:
            for text in texts:
                connection.execute(text.encode(connection.info.encoding))


def drop_database(server: Server) -> None:
    """With everything in it, whoever is connected. Raises TargetError kinds."""
    with target_errors(server, "the database"), closing(connect(beside(server))) as connection:
        row = connection.execute(
            "SELECT count(s.subname) FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid"
            " WHERE d.datname = %s",
            (server.database,),
        ).fetchone()
        if row and row[0]:
            with closing(connect(server)) as inside:
                clean.make_droppable(inside)
        force = " WITH (FORCE)" if connection.info.server_version >= _FORCE else ""
        if not force:
            connection.execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE datname = %s",
                (server.database,),
            )
        text = f"DROP DATABASE IF EXISTS {quoted(server.database)}{force}"
        connection.execute(text.encode(connection.info.encoding))


def give_settings(
    connection: Connection, server: Server, layout: Layout, emit: Emit, *, owners: bool, neutral: bool
) -> None:
    """The properties of the database itself, and what roles have set in it. neutral: without libraries to load, without what
    roles have set, and with as many connections as a drill needs. Raises TargetError kinds.
    """
    database = dict(layout.database)
    if neutral:
        database["connection_limit"] = -1
        database["settings"] = [item for item in database["settings"] if item[0].lower() not in _PRELOADED]
    codec = connection.info.encoding
    for text in database_settings_sql(database, server.database, owners=owners):
        with target_errors(server, "settings of the database"):
            connection.execute(text.encode(codec))
    if owners and not neutral:
        with target_errors(server, "settings of roles in the database"):
            _give_role_settings(connection, server, layout, emit)


def _give_role_settings(connection: Connection, server: Server, layout: Layout, emit: Emit) -> None:
    """Raises psycopg.Error."""
    codec = connection.info.encoding
    for text in role_settings_sql(layout.roles, _existing(connection), server.database):
        try:
            connection.execute(text.encode(codec))
        except (pg.InsufficientPrivilege, pg.UndefinedObject, pg.InvalidParameterValue) as error:
            hint = f"run it as a superuser: {text}"
            emit(Warned("role-settings", f"a role's setting in {server.name} is left out: {text_of(error)}", hint))
