"""What a policy protects: one section per kind of database, told apart by `type`."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)

from crmbackup.policy.fields import (
    AbsolutePath,
    Duration,
    Line,
    Percent,
    PositiveDuration,
    SecretReference,
    Section,
    fail,
)

#: The kinds of `type` in this version. A further kind is a section here and a member of the union `Source`.
SUPPORTED = ("sqlite", "postgres", "mysql")


class SqliteSource(Section):
    """A SQLite database file."""

    # An encrypted file has no tables that crmbackup could read.
    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"encrypted": {"const": True}}, "required": ["encrypted"]},
            "then": {"properties": {"checksums": {"const": "pages"}}, "required": ["checksums"]},
        }
    )

    type: Literal["sqlite"] = Field(description="The kind of database.")
    path: AbsolutePath = Field(description="The database file: an absolute path, or one that starts with ~.")
    checksums: Literal["tables", "pages"] = Field(
        default="tables",
        description="What a drill compares: rows of each table, read once more by SQL during the backup, "
        "or only the pages of the file.",
    )
    busy_timeout: Duration = Field(
        default=timedelta(seconds=30),
        description="How long to wait for another process that locks the database.",
        json_schema_extra={"default": "30s"},
    )
    max_shrink: Percent = Field(
        default=0.5,
        description="A backup fails if the source lost more than this share of its rows or bytes since the last "
        "snapshot. 100% turns the guard off.",
        json_schema_extra={"default": "50%"},
    )
    encrypted: bool = Field(
        default=False,
        description="The file is encrypted as a whole (SQLCipher and the like): it is read as pages and never "
        "opened as a database. Needs checksums: pages.",
    )

    @field_validator("encrypted")
    @classmethod
    def _pages_only(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("checksums") == "tables":
            fail("needs checksums: pages, because the tables of an encrypted file cannot be read")
        return value

    def names(self, target: str) -> bool:
        """Whether a restore to `target` would write over this database."""
        return Path(target).expanduser().resolve() == self.path.resolve()


#: The kind of database by the scheme of its URL.
SERVERS = {"postgresql": "postgres", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}
_EXAMPLES = {
    "postgres": "postgresql://backup@db.example.org:5432/crm?sslmode=verify-full",
    "mysql": "mysql://backup@db.example.org:3306/crm?ssl_mode=verify-identity",
}


def server_kind(url: str) -> str | None:
    """The kind of database that a URL names, None for a text that names none."""
    scheme, separator, _ = url.partition("://")
    return SERVERS.get(scheme.lower()) if separator else None


def server_url(url: str) -> str:
    """A policy is read by many: the password stands elsewhere."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if SERVERS.get(parts.scheme) is None:
        fail(f"must be a URL such as {' or '.join(_EXAMPLES.values())}")
    if parts.password is not None or "password" in parse_qs(parts.query):
        fail("must not hold the password: write it as `password: {file: ...}` beside it")
    return url


def _database_url(kind: str, url: str) -> str:
    if server_kind(url) != kind:
        fail(f"must be a URL such as {_EXAMPLES[kind]}")
    if kind == "mysql" and not urlsplit(server_url(url)).path.strip("/"):
        fail(f"must name the database, as in {_EXAMPLES[kind]}")
    return server_url(url)


def _same_database(own: str, other: str, port: int) -> bool:
    """Whether two URLs of one kind name the same database."""
    one, two = urlsplit(own), urlsplit(other)
    return (one.hostname, one.port or port, one.path) == (two.hostname, two.port or port, two.path)


class PostgresSource(Section):
    """A database of a PostgreSQL server, version 12 to 18."""

    type: Literal["postgres"] = Field(description="The kind of database.")
    url: Annotated[Line, AfterValidator(partial(_database_url, "postgres"))] = Field(
        description="The database, as libpq's URL without a password; TLS and other settings of libpq in its query.",
        examples=["postgresql://backup@db.example.org/crm?sslmode=verify-full"],
    )
    password: SecretReference | None = Field(
        default=None, description="The user's password. Without it PGPASSWORD and ~/.pgpass are looked at."
    )
    lock_timeout: PositiveDuration = Field(
        default=timedelta(minutes=1),
        description="How long to try to lock all tables against changes of their shape. Reading and writing rows goes on.",
        json_schema_extra={"default": "1m"},
    )
    passwords: bool = Field(
        default=False,
        description="Also carry the hashes of the roles' passwords. Needs a superuser.",
    )
    programs: AbsolutePath | None = Field(
        default=None,
        description="The directory of pg_dump, pg_restore and, for drills, initdb and postgres. Default: the usual places.",
    )
    max_shrink: Percent = Field(
        default=0.5,
        description="A backup fails if the source lost more than this share of its rows or bytes since the last "
        "snapshot. 100% turns the guard off.",
        json_schema_extra={"default": "50%"},
    )

    def names(self, target: str) -> bool:
        """Whether a restore to `target` would write to this database."""
        return server_kind(target) == "postgres" and _same_database(self.url, target, 5432)


class MysqlSource(Section):
    """A database of a MariaDB server, 10.6 or later, or of a MySQL server, 8.0 or later."""

    type: Literal["mysql"] = Field(description="The kind of database.")
    url: Annotated[Line, AfterValidator(partial(_database_url, "mysql"))] = Field(
        description="The database, without a password; in its query may stand socket, ssl_mode, ssl_ca, ssl_cert and "
        "ssl_key.",
        examples=["mysql://backup@db.example.org/crm?ssl_mode=verify-identity"],
    )
    password: SecretReference | None = Field(
        default=None, description="The user's password. Without it MYSQL_PWD is looked at."
    )
    lock_timeout: PositiveDuration = Field(
        default=timedelta(minutes=1),
        description="How long to try to hold all commits for the moment in which the snapshot begins, and to keep the "
        "shape of tables. Reading and writing rows goes on.",
        json_schema_extra={"default": "1m"},
    )
    non_transactional: Literal["lock", "refuse"] = Field(
        default="lock",
        description="What to do with tables that keep no old versions of rows (MyISAM, Aria, MEMORY): lock them against "
        "writers from the beginning of the snapshot to its end, or refuse to back up.",
    )
    binlog: bool = Field(
        default=True,
        description="Let incrementals read only what the binary log says has changed, where it can be trusted. false "
        "reads all rows always: for servers where rows are written past the log (sql_log_bin = 0).",
    )
    users: bool = Field(
        default=False,
        description="Also carry the accounts that have rights on the database, with the hashes of their passwords. Needs "
        "SELECT on the database mysql.",
    )
    programs: AbsolutePath | None = Field(
        default=None,
        description="The directory of mariadbd or mysqld, which drills start. Default: the PATH and the usual places.",
    )
    max_shrink: Percent = Field(
        default=0.5,
        description="A backup fails if the source lost more than this share of its rows or bytes since the last "
        "snapshot. 100% turns the guard off.",
        json_schema_extra={"default": "50%"},
    )

    def names(self, target: str) -> bool:
        """Whether a restore to `target` would write to this database."""
        sockets = [parse_qs(urlsplit(url).query).get("socket") for url in (self.url, target)]
        return server_kind(target) == "mysql" and sockets[0] == sockets[1] and _same_database(self.url, target, 3306)


def _supported(value: object) -> object:
    """Tell of an unsupported kind alone: its other keys would only look unknown."""
    if isinstance(value, dict) and "type" in value and not isinstance(value["type"], str):
        fail(f"must be one of {', '.join(SUPPORTED)}", key="type")
    if isinstance(value, dict) and "type" in value and value["type"] not in SUPPORTED:
        near = get_close_matches(value["type"], SUPPORTED, n=1)
        fail(
            f"is not supported by this version, which knows: {', '.join(SUPPORTED)}",
            key="type",
            suggestion=near[0] if near else None,
        )
    return value


def _kind(value: object) -> str:
    """Which section a value is meant to be. What has no usable type is told by the first one."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in SUPPORTED else SUPPORTED[0]


Source = Annotated[
    Annotated[SqliteSource, Tag("sqlite")]
    | Annotated[PostgresSource, Tag("postgres")]
    | Annotated[MysqlSource, Tag("mysql")],
    Discriminator(_kind),
    BeforeValidator(_supported),
]
