"""Connecting to MySQL and MariaDB, the session settings that make the same row the same bytes, and what errors mean."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pymysql
from pymysql.constants import CR, ER

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

if TYPE_CHECKING:
    Connection = pymysql.connections.Connection[Any]
else:
    Connection = pymysql.connections.Connection  # generic in its stubs only

SCHEMES = ("mysql", "mariadb")
#: How a TLS connection is made, as the clients of both products name it.
SSL_MODES = ("disabled", "preferred", "required", "verify-ca", "verify-identity")
_OPTIONS = ("socket", "ssl_mode", "ssl_ca", "ssl_cert", "ssl_key")
_CONNECT_SECONDS = 15
_PORT = 3306
#: Of one answer of the server. Longer than any statement of ours waits for a lock.
_READ_SECONDS = 24 * 3600
APPLICATION = "crmbackup"

#: `sql_mode` almost empty: zero dates, and days that no month has, are read and written as they are; nothing is cut or
#: refused by a mode of the server.
CANONICAL = (
    "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'",
    "SET SESSION time_zone = '+00:00'",
    "SET SESSION sql_quote_show_create = 1",
    "SET SESSION net_write_timeout = 3600",
    "SET SESSION net_read_timeout = 3600",
    "SET SESSION wait_timeout = 86400",
    "SET SESSION lc_time_names = 'en_US'",
    "SET SESSION group_concat_max_len = 1048576",
)
#: A limit on statements would end long reads. Each product has its own.
_LIMITS = {"mariadb": "SET SESSION max_statement_time = 0", "mysql": "SET SESSION max_execution_time = 0"}
OLDEST = {"mariadb": (10, 6), "mysql": (8, 0)}
NAMES = {"mariadb": "MariaDB", "mysql": "MySQL"}


@dataclass(frozen=True)
class Server:
    """How to reach one database. Picklable; never prints the password.

    options: of `_OPTIONS`, as they stood in the URL.
    """

    host: str
    port: int
    user: str
    database: str
    options: tuple[tuple[str, str], ...] = ()
    password: Secret | None = None

    @property
    def name(self) -> str:
        """For people: database and host."""
        port = f":{self.port}" if self.port != _PORT and "socket" not in dict(self.options) else ""
        return f"{self.database or 'the server'} on {self.host}{port}"

    def at(self, database: str) -> Server:
        """Another database of the same server; empty for none."""
        return Server(self.host, self.port, self.user, database, self.options, self.password)


@dataclass(frozen=True)
class Version:
    """flavour: "mariadb" or "mysql". number: such as (10, 11, 6)."""

    flavour: str
    number: tuple[int, ...]

    @property
    def text(self) -> str:
        """For people."""
        return f"{NAMES[self.flavour]} {'.'.join(map(str, self.number))}"

    @property
    def mariadb(self) -> bool:
        """Which of the two."""
        return self.flavour == "mariadb"


def parse_server(url: str, password: Secret | None = None) -> Server:
    """A URL such as mysql://user@host:3306/crm?ssl_mode=verify-identity. Raises UsageError; a password in it is refused."""
    hint = "write mysql://user@host:3306/database, with ?ssl_ca=/path or ?socket=/path where needed"
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError as error:
        raise UsageError("the address of the database is not valid", why=str(error), hint=hint) from None
    if parts.scheme not in SCHEMES:
        raise UsageError("the address of the database is not valid", why="it does not begin with mysql://", hint=hint)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.password is not None or "password" in options:
        raise UsageError(
            "the address of the database holds a password",
            hint="take it out; use `password: {env: ...}` or {file: ...} in a policy, MYSQL_PWD elsewhere",
        )
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise UsageError(
            f"the address of the database has an unknown option {unknown[0]}", hint=f"known: {', '.join(_OPTIONS)}"
        )
    if options.get("ssl_mode", "preferred") not in SSL_MODES:
        raise UsageError("ssl_mode of the database's address is not valid", hint=f"one of {', '.join(SSL_MODES)}")
    database = unquote(parts.path.lstrip("/"))
    return Server(
        parts.hostname or "localhost",
        port,
        unquote(parts.username or ""),
        database,
        tuple(sorted(options.items())),
        password,
    )


def connect(server: Server, *, local_infile: bool = False) -> Connection:
    """A connection with canonical settings, in autocommit mode. Raises pymysql.Error, OSError: use it within
    `source_errors` or `target_errors`.

    local_infile: the server may ask for what a LOAD DATA LOCAL loads; `load.py` answers with bytes of its own, never
    with a file.
    """
    options = dict(server.options)
    connection = pymysql.connect(
        host=server.host,
        port=server.port,
        user=server.user or None,
        password=server.password.reveal().encode() if server.password else b"",
        database=server.database or None,
        unix_socket=options.get("socket"),
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        write_timeout=_READ_SECONDS,
        charset="utf8mb4",
        autocommit=True,
        local_infile=local_infile,
        program_name=APPLICATION,
        **_tls(options),
    )
    try:
        version = version_of(connection)
        for text in (*CANONICAL, _LIMITS[version.flavour]):
            execute(connection, text)
    except BaseException:
        connection.close()
        raise
    return connection


def _tls(options: dict[str, str]) -> dict[str, Any]:
    mode = options.get("ssl_mode", "verify-ca" if "ssl_ca" in options else "preferred")
    if mode == "disabled" or "socket" in options:
        return {"ssl_disabled": True}
    if mode == "preferred":
        return {}  # TLS where the server offers it: what PyMySQL does from 1.2 on
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca"))
        # From 3.13 on Python asks authorities for a use of their key, which those that openssl makes by the manuals of
        # MariaDB and MySQL do not name. The servers' own clients take them.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = mode == "verify-identity"
        if mode == "required":
            context.verify_mode = ssl.CERT_NONE
        if "ssl_cert" in options:
            context.load_cert_chain(options["ssl_cert"], options.get("ssl_key"))
    except OSError as error:
        files = ", ".join(path for name, path in options.items() if name in ("ssl_ca", "ssl_cert", "ssl_key"))
        raise UsageError(
            "a certificate of the database's address cannot be used",
            why=f"{files}: {error.strerror or error}",
            hint="check ssl_ca, ssl_cert and ssl_key: files in PEM format that this user can read",
        ) from error
    return {"ssl": context}


def version_of(connection: Connection) -> Version:
    """Product and version. Raises pymysql.Error."""
    text = str(value(connection, "SELECT @@version"))
    comment = str(value(connection, "SELECT @@version_comment"))
    number = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    return Version("mariadb" if "mariadb" in (text + comment).lower() else "mysql", number)


def execute(connection: Connection, sql: str, values: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """Run one statement; gives all rows. %s in it stand for `values`; with these no name may be in it, since names can
    hold a % too. Raises pymysql.Error.
    """
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def value(connection: Connection, sql: str, values: Sequence[object] | None = None) -> Any:
    """The first column of the first row, None without one. Raises pymysql.Error."""
    rows = execute(connection, sql, values)
    return rows[0][0] if rows else None


def quoted(*names: str) -> str:
    """A qualified SQL identifier, whatever its parts hold."""
    return ".".join("`" + name.replace("`", "``") + "`" for name in names)


def literal(text: str) -> str:
    """A text as an SQL literal that no mode, character set or backslash changes."""
    return f"CONVERT(0x{text.encode().hex()} USING utf8mb4)" if text else "''"


#: MySQL's, and MariaDB's from 11 on, where only connections with TLS are taken.
_NEEDS_TLS = 3159
_DENIED = {
    ER.ACCESS_DENIED_ERROR,
    ER.DBACCESS_DENIED_ERROR,
    ER.TABLEACCESS_DENIED_ERROR,
    ER.COLUMNACCESS_DENIED_ERROR,
    ER.SPECIFIC_ACCESS_DENIED_ERROR,
    ER.HOST_NOT_PRIVILEGED,
    ER.PROCACCESS_DENIED_ERROR,
    1698,  # of unix_socket and auth_socket
    _NEEDS_TLS,
    1142,
    1044,
}
_NO_LOGIN = {ER.ACCESS_DENIED_ERROR, 1698, _NEEDS_TLS}
_CHANGED = {ER.TABLE_DEF_CHANGED, ER.NO_SUCH_TABLE, ER.BAD_TABLE_ERROR}
_LOCKED = {ER.LOCK_WAIT_TIMEOUT, ER.LOCK_DEADLOCK}
_GONE = {CR.CR_SERVER_GONE_ERROR, CR.CR_SERVER_LOST, CR.CR_CONN_HOST_ERROR, CR.CR_CONNECTION_ERROR, 1053, 1927, 1317}
_FULL = {ER.DISK_FULL, ER.RECORD_FILE_FULL}
_UNKNOWN_DATABASE = ER.BAD_DB_ERROR
_TOO_LARGE = {ER.NET_PACKET_TOO_LARGE}
_RIGHTS = "grant the right; docs/mysql.md lists what a backup user needs"

_LOGIN = "check user, password and the account's host, and ssl_mode: some servers take connections with TLS only"


def code_of(error: BaseException) -> int:
    """The server's or client's number of an error, 0 without one."""
    return error.args[0] if isinstance(error, pymysql.Error) and error.args and isinstance(error.args[0], int) else 0


def text_of(error: BaseException) -> str:
    """The message in one line."""
    text = error.args[1] if isinstance(error, pymysql.Error) and len(error.args) > 1 else error
    return " ".join(str(text).split())


@contextmanager
def source_errors(server: Server, what: str = "") -> Iterator[None]:
    """Turn errors of the driver into ours. `what` is what was being read, such as "table contacts"."""
    place = f"{what}: " if what else ""
    try:
        yield
    except (pymysql.Error, OSError, UnicodeError) as error:
        raise _source_error(server, code_of(error), place + text_of(error)) from error


def _source_error(server: Server, code: int, why: str) -> SourceError:
    name = server.name
    if code == _UNKNOWN_DATABASE:
        return SourceMissing(f"the database {name} does not exist", why=why, hint="check source.url in the policy")
    if code in _DENIED:
        return SourceDenied(f"the database {name} refuses", why=why, hint=_LOGIN if code in _NO_LOGIN else _RIGHTS)
    if code in _LOCKED:
        return SourceLocked(
            f"the database {name} is locked",
            why=why,
            hint="something alters tables or holds locks just now: try again, or raise source.lock_timeout",
        )
    if code in _CHANGED:
        return SourceChanged(
            f"tables of {name} were changed while they were read", why=why, hint="back up when no migration runs"
        )
    if code in _TOO_LARGE:
        return SourceError(
            f"a row of {name} is too long for the server to send",
            why=why,
            hint="raise max_allowed_packet on the server",
        )
    if code in _GONE or code == 0:
        return SourceUnavailable(
            f"the database {name} cannot be reached",
            why=why,
            hint="look whether the server runs and its log says why; check host, port and TLS in source.url",
        )
    return SourceError(f"the database {name} cannot be read", why=why)


@contextmanager
def target_errors(server: Server, what: str = "") -> Iterator[None]:
    """As `source_errors`, for the database that is restored to. `what` names the object."""
    place = f"{what}: " if what else ""
    try:
        yield
    except (pymysql.Error, OSError, UnicodeError) as error:
        raise _target_error(server, code_of(error), place + text_of(error)) from error


def _target_error(server: Server, code: int, why: str) -> CrmBackupError:
    if code in _FULL or "No space left" in why:
        return DiskFull(f"the disk of the server of {server.name} is full", why=why)
    if code in _DENIED:
        return TargetDenied(
            f"the target {server.name} refuses", why=why, hint="restore as a user with all rights on the database"
        )
    if code in _GONE or code in (0, _UNKNOWN_DATABASE):
        return TargetUnavailable(
            f"the target {server.name} cannot be used",
            why=why,
            hint="look whether the server runs and the database exists; --create makes it",
        )
    if code in _TOO_LARGE:
        return TargetError(
            f"a row is too long for the server of {server.name}",
            why=why,
            hint="raise max_allowed_packet on that server",
        )
    return TargetError(f"the target {server.name} does not take it", why=why)
