"""Making what has a body: views, routines, triggers and events, each under the settings that it was made under."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pymysql

from crmbackup.core.errors import TargetDenied, TargetError
from crmbackup.engines.mysql.connection import (
    CANONICAL,
    Connection,
    Server,
    code_of,
    execute,
    quoted,
    target_errors,
    text_of,
)
from crmbackup.engines.mysql.definitions import Definition
from crmbackup.engines.mysql.statements import event_disabled, renamed, trigger_at, view_renamed, with_definer

_NO_TABLE, _NO_COLUMN = 1146, 1054
_TABLE = re.compile(r"^Table '(.*)' doesn't exist", re.DOTALL)
_COLUMN = re.compile(r"^Unknown column '(.*)' in ", re.DOTALL)
#: What a user lacks who may not make an object, by the server's number.
_LACKING = {
    1227: "grant SET USER (MySQL: SET_ANY_DEFINER), or leave everything to you: --roles ignore",
    1418: "set log_bin_trust_function_creators on that server, or restore as a user with SUPER",
    1419: "set log_bin_trust_function_creators on that server, or restore as a user with SUPER",
}
#: Columns that placeholders of one view are given, one after the other, as the server misses them.
_TRIES = 1000
#: Python's names of the server's character sets, where they are not the same.
_CODECS = {"latin1": "cp1252", "utf8": "utf-8", "utf8mb3": "utf-8", "utf8mb4": "utf-8", "binary": "utf-8"}


def for_target(each: Definition, old: str, new: str, *, definer: bool) -> Definition:
    """The definition as it is made: in the database `new`, by its definer or by whoever restores; events are off."""
    create = each.create if definer else with_definer(each.create, "")
    if each.kind == "view":
        create = view_renamed(create, old, new)
    if each.kind == "table":
        create = renamed(create, old, new)
    if each.kind == "trigger" and old != new:
        create = trigger_at(create, each.name, each.table)
    if each.kind == "event":
        create = event_disabled(create)
    return replace(each, create=create)


def make_object(connection: Connection, each: Definition) -> None:
    """Make one under its settings, in the selected database. Raises pymysql.Error."""
    charset = each.settings.get("character_set_client", "utf8mb4")
    codec = _codec(charset)
    if codec is None:
        charset, codec = "utf8mb4", "utf-8"
    settings = {**each.settings, "character_set_client": charset}
    for name in ("character_set_client", "collation_connection", "sql_mode", "time_zone"):
        if name in settings:
            execute(connection, f"SET SESSION {name} = %s", (settings[name],))
    if each.kind == "event":
        # One whose time has passed is refused, even if it is off: for this session it is 1970.
        execute(connection, "SET SESSION timestamp = 1")
    try:
        connection.query(each.create.encode(codec))  # bytes go as they are
    finally:
        if connection.open:
            execute(connection, "SET NAMES utf8mb4")
            execute(connection, "SET SESSION timestamp = DEFAULT")
            for text in CANONICAL:
                execute(connection, text)


def _codec(charset: str) -> str | None:
    try:
        return codecs.lookup(_CODECS.get(charset, charset)).name
    except LookupError:
        return None


def make_objects(connection: Connection, server: Server, objects: Iterable[Definition]) -> None:
    """Make some in order. Raises TargetError kinds, which name the object."""
    for each in objects:
        with target_errors(server, each.label):
            try:
                make_object(connection, each)
            except pymysql.Error as error:
                if code_of(error) in _LACKING:
                    raise TargetDenied(
                        f"{each.label} cannot be made in {server.name}",
                        why=text_of(error),
                        hint=_LACKING[code_of(error)],
                    ) from error
                raise


def make_triggers(connection: Connection, database: str, triggers: Sequence[Definition]) -> None:
    """In order, in a database. Raises pymysql.Error."""
    execute(connection, f"USE {quoted(database)}")
    for each in triggers:
        make_object(connection, replace(each, create=trigger_at(each.create, each.name, each.table)))


def make_views(connection: Connection, server: Server, views: Sequence[Definition]) -> dict[str, str]:
    """Make views in whatever order they can be made. Those whose tables do not exist, as in the source, are made over
    placeholders that are dropped again. Gives those that could not be made, each with the server's reason.

    Raises TargetError kinds for anything else than what a view misses.
    """
    left = _in_any_order(views, lambda each: _reason(connection, server, each))
    placeholders: dict[str, list[str]] = {}
    try:
        names = {each.name for each, _ in left}

        def over_placeholders(each: Definition) -> str:
            reason = _over_placeholders(connection, server, each, placeholders, names - {each.name})
            if not reason:
                names.discard(each.name)
            return reason

        left = _in_any_order([each for each, _ in left], over_placeholders)
    finally:
        if placeholders and connection.open:
            with target_errors(server, "placeholders of views"):
                dropped = ", ".join(quoted(server.database, name) for name in placeholders)
                execute(connection, f"DROP TABLE {dropped}")
    return {each.name: reason for each, reason in left}


def _in_any_order(views: Sequence[Definition], attempt: Callable[[Definition], str]) -> list[tuple[Definition, str]]:
    """Try all again until none can be made any more; gives those that are left, with reasons."""
    left = list(views)
    while True:
        failed = [(each, reason) for each in left if (reason := attempt(each))]
        if len(failed) == len(left):
            return failed
        left = [each for each, _ in failed]


def _reason(connection: Connection, server: Server, each: Definition) -> str:
    """Why a view cannot be made yet; empty when it was."""
    try:
        make_object(connection, each)
    except (pymysql.ProgrammingError, pymysql.OperationalError, pymysql.InternalError) as error:
        if not connection.open:
            with target_errors(server, each.label):
                raise
        return text_of(error)
    except pymysql.Error as error:
        raise TargetError(f"{each.label} cannot be made in {server.name}", why=text_of(error)) from error
    return ""


def _over_placeholders(
    connection: Connection,
    server: Server,
    each: Definition,
    placeholders: dict[str, list[str]],
    later: set[str],
) -> str:
    """Make a view whose tables are missing; why it cannot be made, or empty. later: views that are still to come.

    placeholders: the tables that stand in, each with its columns; more are made.
    """
    reason = ""
    for _ in range(_TRIES):
        try:
            make_object(connection, each)
        except pymysql.Error as error:
            with target_errors(server, each.label):
                if not connection.open:
                    raise
                reason = text_of(error)
                if not _mend(connection, server.database, error, placeholders, later):
                    return reason
        else:
            return ""
    return reason


def _mend(
    connection: Connection,
    database: str,
    error: pymysql.Error,
    placeholders: dict[str, list[str]],
    later: set[str],
) -> bool:
    """Make the table or column that the server misses; whether that could be done."""
    text = str(error.args[1]) if len(error.args) > 1 else ""
    if code_of(error) == _NO_TABLE:
        match = _TABLE.match(text)
        if not match or not match[1].startswith(f"{database}."):
            return False
        name = match[1][len(database) + 1 :]
        if name in later or name in placeholders:
            return False
        execute(connection, f"CREATE TABLE {quoted(database, name)} (crmbackup_placeholder INT)")
        placeholders[name] = []
        return True
    match = _COLUMN.match(text) if code_of(error) == _NO_COLUMN else None
    if not match or not placeholders:
        return False
    column = match[1].rpartition(".")[2]
    if any(column in columns for columns in placeholders.values()):
        return False
    for name, columns in placeholders.items():
        execute(connection, f"ALTER TABLE {quoted(database, name)} ADD COLUMN {quoted(column)} INT")
        columns.append(column)
    return True
