"""Connecting to PostgreSQL, the session settings that make the same row the same bytes, and what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from crmbackup.core.errors import (
    CrmBackupError,
    DiskFull,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceLocked,
    SourceMissing,
    SourceUnavailable,
    TargetDenied,
    TargetError,
    TargetUnavailable,
    UsageError,
)
from crmbackup.core.secrets import Secret
from crmbackup.engines.postgres.programs import settings_of_libpq

#: As pg_dump sets them (src/bin/pg_dump/pg_dump.c, setup_connection); and lc_monetary, in which money is printed, and jit.
CANONICAL: tuple[LiteralString, ...] = (
    "SET datestyle = 'ISO, YMD'",
    "SET intervalstyle = 'postgres'",
    "SET timezone = 'UTC'",
    "SET extra_float_digits = 3",
    "SET bytea_output = 'hex'",
    "SET xmloption = 'content'",
    "SET xmlbinary = 'base64'",
    "SET lc_monetary = 'C'",
    "SET search_path = ''",
    "SET quote_all_identifiers = off",
    "SET standard_conforming_strings = on",
    "SET synchronize_seqscans = off",
    "SET statement_timeout = 0",
    "SET lock_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET transaction_timeout = 0",
    "SET row_security = off",
    # A restore's first session has nothing to do while rows come.
    "SET idle_session_timeout = 0",
    # Without it NULL in an array is the word, not nothing.
    "SET array_nulls = on",
    "SET default_toast_compression = DEFAULT",
    # Our queries over large tables look expensive and are simple: compiling one takes longer than running it.
    "SET jit = off",
    # For names. Rows are copied in the database's own encoding, so that no byte of theirs is converted.
    "SET client_encoding = 'UTF8'",
)
#: Settings under which functions and literals in definitions could mean something else than in the database's own sessions.
MEANING: tuple[LiteralString, ...] = (
    "datestyle",
    "intervalstyle",
    "timezone",
    "extra_float_digits",
    "bytea_output",
    "xmlbinary",
    "lc_monetary",
)
#: Back to the database's own, which pg_restore leaves alone too.
AS_SERVED: LiteralString = "; ".join("RESET " + name for name in MEANING)
#: Settings that some of the supported versions do not know yet.
_SINCE = {"default_toast_compression": 14, "idle_session_timeout": 14, "transaction_timeout": 17}
OLDEST, NEWEST = 12, 18
_CONNECT_SECONDS = "15"
APPLICATION = "crmbackup"


@dataclass(frozen=True)
class Server:
    """How to reach one database. keywords: libpq's, without a password. Picklable; never prints the password."""

    keywords: tuple[tuple[str, str], ...]
    password: Secret | None = None

    @property
    def name(self) -> str:
        """For people: database and host."""
        known = dict(self.keywords)
        host = known.get("host") or known.get("hostaddr") or "the local server"
        port = f":{known['port']}" if "port" in known else ""
        return f"{known.get('dbname') or known.get('user') or 'the default database'} on {host}{port}"

    @property
    def database(self) -> str:
        """The database's name, as far as it was given; libpq takes the user's name otherwise."""
        known = dict(self.keywords)
        return known.get("dbname") or known.get("user") or ""

    def at(self, database: str) -> Server:
        """Another database of the same server."""
        return Server(tuple(sorted({**dict(self.keywords), "dbname": database}.items())), self.password)

    def environment(self) -> dict[str, str]:
        """What libpq's programs read from their environment: everything, so that nothing is in their arguments."""
        names = {option.keyword.decode(): option.envvar for option in psycopg.pq.Conninfo.get_defaults()}
        result = {}
        for keyword, value in self.keywords:
            variable = names.get(keyword)
            if variable and keyword != "client_encoding":
                result[variable.decode()] = value
        if self.password:
            result["PGPASSWORD"] = self.password.reveal()
        return result


def parse_server(url: str, password: Secret | None = None) -> Server:
    """A libpq URL or keyword string. Raises UsageError; a password in it is refused, since URLs are seen and logged.

    What libpq would add from a service and from the environment is in the result: PostgreSQL's programs, which look it up
    in another order, are then told the same.
    """
    try:
        keywords = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise UsageError(
            "the address of the database is not valid",
            why=_unquoted(str(error)),
            hint="write postgresql://user@host:5432/database?sslmode=verify-full",
        ) from None
    if keywords.pop("password", None):
        raise UsageError(
            "the address of the database holds a password",
            hint="take it out; use `password: {env: ...}` or {file: ...} in a policy, PGPASSWORD or ~/.pgpass elsewhere",
        )
    service = keywords.pop("service", None)
    given = {key: str(value) for key, value in keywords.items() if value is not None}
    if not all(re.fullmatch("[0-9]*", port) for port in given.get("port", "").split(",")):
        # Perhaps a part of one, where libpq takes its first slash for the end of the host.
        raise UsageError(
            "the address of the database is not valid",
            why="its port is no number",
            hint="write postgresql://user@host:5432/database, without a password",
        )
    added = settings_of_libpq(str(service) if service else None)
    found = added.pop("password", "")
    return Server(tuple(sorted({**added, **given}.items())), password or (Secret(found) if found else None))


def _unquoted(text: str) -> str:
    """What libpq says of an address, without what it quotes, which may be a part of a password; but for names of settings."""
    keep = r'query parameter: "\w+"'
    return re.sub(rf'({keep})|"[^"]*"', lambda match: match[1] or "...", text.strip())


def connect(server: Server, *, autocommit: bool = True) -> psycopg.Connection[tuple[object, ...]]:
    """A connection with canonical settings. Raises psycopg.Error: use it within `source_errors` or `target_errors`."""
    keywords = {"connect_timeout": _CONNECT_SECONDS, **dict(server.keywords), "application_name": APPLICATION}
    password = server.password.reveal() if server.password else None
    connection = psycopg.connect(**keywords, password=password, autocommit=True)  # type: ignore[arg-type]
    try:
        if _backend(connection) != connection.info.backend_pid:  # a pooler answered, and gives numbers of its own
            with psycopg.connect(**keywords, password=password, autocommit=True) as other:  # type: ignore[arg-type]
                _refuse_shared(connection, other)
        make_canonical(connection)
        connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


class SharedSessionError(psycopg.OperationalError):
    """A pooler gives each transaction a session that others had and will have: settings and locks do not hold there."""


def _refuse_shared(one: psycopg.Connection[tuple[object, ...]], other: psycopg.Connection[tuple[object, ...]]) -> None:
    """Raises SharedSessionError where one session of the server serves both connections, or another one each time."""
    before = _backend(one)
    other.execute("BEGIN")
    if _backend(other) == before or _backend(one) != before:
        raise SharedSessionError("a connection pooler is in between, which shares sessions of the server (pool_mode)")
    other.execute("ROLLBACK")


def _backend(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    row = connection.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
    return row[0] if row else None


def encoding_of(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    """The database's encoding."""
    return str(connection.info.parameter_status("server_encoding"))


#: Said where the text of a row would be beyond 1 GB: as the value is printed, or as the line grows.
_TOO_LARGE = re.compile("invalid memory alloc request size|Cannot enlarge string buffer|string buffer exceeds")
_LARGE_ROW = (
    "PostgreSQL makes at most 1 GB of text of a row (two characters for a byte of bytea), for pg_dump too: find it by"
    " octet_length(), and keep such a value in pieces or as a large object"
)
_LOGIN = "check the user in source.url, source.password, and pg_hba.conf on the server"
_WHERE = "check source.url in the policy"
_TOO_MANY = re.compile("too many (connections|clients)|remaining connection slots")
_CONNECTIONS = (
    "limits.jobs and three more are needed: lower limits.jobs, or raise the CONNECTION LIMIT of the role or database, or"
    " max_connections"
)
_RIGHTS = "grant the right; docs/postgresql.md lists what a backup role needs"


def make_canonical(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Give a session the canonical settings. Raises psycopg.Error."""
    major = connection.info.server_version // 10000
    wanted = [text for text in CANONICAL if _SINCE.get(text.split()[1], 0) <= major]
    connection.execute("; ".join(wanted))


@contextmanager
def in_encoding(connection: psycopg.Connection[tuple[object, ...]], encoding: str) -> Iterator[None]:
    """Let statements be bytes in this encoding, which the server knows; afterwards they are what they were.

    Raises psycopg.Error.
    """
    usual = str(connection.info.parameter_status("client_encoding"))
    set_to = "SELECT pg_catalog.set_config('client_encoding', %s, false)"
    connection.execute(set_to, (encoding,))
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute(set_to, (usual,))


@contextmanager
def source_errors(server: Server, what: str = "") -> Iterator[None]:
    """Turn PostgreSQL's errors into ours. `what` is what was being read, such as "table crm.contacts"."""
    place = f"{what}: " if what else ""
    try:
        yield
    except pg.InvalidCatalogName as error:
        raise SourceMissing(f"the database {server.name} does not exist", hint=_WHERE) from error
    except (pg.LockNotAvailable, pg.DeadlockDetected) as error:
        raise SourceLocked(
            f"the database {server.name} is locked",
            why=place + text_of(error),
            hint="something alters tables just now (a migration, VACUUM FULL): try again, or raise source.lock_timeout",
        ) from error
    except (pg.InsufficientPrivilege, pg.InvalidAuthorizationSpecification, pg.InvalidPassword) as error:
        raise SourceDenied(f"the database {server.name} refuses", why=place + text_of(error), hint=_RIGHTS) from error
    except pg.SerializationFailure as error:
        raise SourceChanged(
            f"the view of {server.name} was lost",
            why=place + text_of(error),
            hint="on a standby, raise max_standby_streaming_delay or set hot_standby_feedback = on",
        ) from error
    except pg.OutOfMemory as error:
        raise SourceError(
            f"the server of {server.name} lacks memory",
            why=place + text_of(error),
            hint="with many tables raise max_locks_per_transaction on the server; a row's text must be below 1 GB",
        ) from error
    except (pg.ProgramLimitExceeded, pg.InternalError_) as error:
        if not _TOO_LARGE.search(str(error)):
            raise SourceError(f"{server.name} cannot be read", why=place + text_of(error)) from error
        raise SourceError(
            f"a row of {server.name} is too large to be read", why=place + text_of(error), hint=_LARGE_ROW
        ) from error
    except (pg.DataCorrupted, pg.IndexCorrupted) as error:
        raise SourceError(f"{server.name} cannot be read", why=place + text_of(error)) from error
    except psycopg.OperationalError as error:
        refused = _refused(error)
        if refused:
            hint = _LOGIN if refused is SourceDenied else _WHERE
            raise refused(f"the database {server.name} refuses", why=text_of(error), hint=hint) from error
        raise SourceUnavailable(
            f"the database {server.name} cannot be reached",
            why=place + text_of(error),
            hint=_hint(
                error, "look whether the server runs and its log says why; check host, port and TLS in source.url"
            ),
        ) from error
    except (psycopg.Error, UnicodeError) as error:
        raise SourceError(f"the database {server.name} cannot be read", why=place + text_of(error)) from error


def _hint(error: psycopg.OperationalError, usual: str) -> str:
    if isinstance(error, SharedSessionError):
        return "name the server itself, or a pool with pool_mode = session"
    return _CONNECTIONS if _TOO_MANY.search(str(error)) else usual


def _refused(error: psycopg.OperationalError) -> type[SourceError] | None:
    """Failures of connecting carry no code: libpq gives a text only."""
    text = str(error)
    if re.search(r'database ".*" does not exist', text):
        return SourceMissing
    if re.search(r'role ".*" does not exist', text):
        return SourceDenied
    if any(part in text for part in ("authentication failed", "no password supplied", "pg_hba.conf", "not permitted")):
        return SourceDenied
    return None


@contextmanager
def target_errors(server: Server, what: str = "") -> Iterator[None]:
    """As `source_errors`, for the database that is restored to. `what` names the object."""
    place = f"{what}: " if what else ""
    kind: type[CrmBackupError]
    try:
        yield
    except pg.DiskFull as error:
        raise DiskFull(f"the disk of the server of {server.name} is full", why=place + text_of(error)) from error
    except (pg.InsufficientPrivilege, pg.InvalidAuthorizationSpecification, pg.InvalidPassword) as error:
        raise TargetDenied(
            f"the target {server.name} refuses",
            why=place + text_of(error),
            hint="restore as the database's owner or a superuser",
        ) from error
    except psycopg.OperationalError as error:
        kind = TargetDenied if _refused(error) is SourceDenied else TargetUnavailable
        raise kind(
            f"the target {server.name} cannot be used",
            why=place + text_of(error),
            hint=_hint(error, "look whether the server runs and the database exists; --create makes it"),
        ) from error
    except (psycopg.Error, UnicodeError) as error:
        raise TargetError(f"the target {server.name} does not take it", why=place + text_of(error)) from error


def text_of(error: Exception) -> str:
    """The server's message in one line, with its detail."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
        return " ".join(f"{error.diag.message_primary}{detail}".split())
    return " ".join(str(error).split())


def quoted(*names: str) -> str:
    """A qualified SQL identifier, whatever its parts hold."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)
