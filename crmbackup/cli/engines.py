"""Which engine reads a source, and which one rebuilds a snapshot; imported only when it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crmbackup.core.errors import UsageError
from crmbackup.core.secrets import Secret, SecretRef, resolve
from crmbackup.engines.base import RestoreOptions, SourceEngine, Target, TargetEngine

if TYPE_CHECKING:
    from crmbackup.policy.loader import LoadedPolicy

#: Where MySQL's own clients look for a password.
MYSQL_PASSWORD = "MYSQL_PWD"  # noqa: S105 - the name of a variable

_ENGINES = {"postgresql": "postgres", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}
_EXAMPLES = {"postgres": "postgresql://user@host/name", "mysql": "mysql://user@host/name"}


class Engines:
    """Makes engines from policies and addresses. environ, cwd: of the run at hand, read by wiring.py."""

    def __init__(self, environ: Mapping[str, str], cwd: Path) -> None:
        self.environ = environ
        self.cwd = cwd

    def source(self, loaded: LoadedPolicy, key: bytes) -> SourceEngine:
        """The engine for a policy's source. Raises UsageError, SecretUnavailable."""
        settings = loaded.policy.source
        if settings.type == "sqlite":
            from crmbackup.engines.sqlite.engine import SqliteSource
            from crmbackup.engines.sqlite.reader import Source

            source = Source(settings.path, settings.busy_timeout.total_seconds(), settings.encrypted)
            return SqliteSource(source, settings.checksums, key)
        if settings.type == "mysql":
            with _driver("mysql"):
                from crmbackup.engines.mysql import connection as mysql
                from crmbackup.engines.mysql import engine

            return engine.MysqlSource(
                mysql.parse_server(settings.url, self._mysql_password(settings.password)),
                engine.Settings(
                    lock_seconds=settings.lock_timeout.total_seconds(),
                    lock_others=settings.non_transactional == "lock",
                    binlog=settings.binlog,
                    users=settings.users,
                    key=key,
                    programs=settings.programs,
                ),
            )
        with _driver("postgres"):
            from crmbackup.engines.postgres.connection import parse_server
            from crmbackup.engines.postgres.engine import PostgresSource, Settings

        password = resolve(settings.password, self.environ) if settings.password else None
        return PostgresSource(
            parse_server(settings.url, password),
            Settings(settings.lock_timeout.total_seconds(), settings.passwords, settings.programs),
        )

    def _mysql_password(self, reference: SecretRef | None) -> Secret | None:
        """PostgreSQL's library looks at its own variables; PyMySQL does not look at the one of MySQL's clients."""
        if reference is None and MYSQL_PASSWORD in self.environ:
            return Secret(self.environ[MYSQL_PASSWORD])
        return resolve(reference, self.environ) if reference else None

    def drill_engine(self, name: str, loaded: LoadedPolicy | None) -> TargetEngine:
        """The engine that rebuilds snapshots of that engine for a drill. Raises UsageError for an unknown one."""
        return self._target_engine(name, loaded, drill=True)

    def target(self, to: str, options: RestoreOptions, loaded: LoadedPolicy | None) -> Target:
        """The database that --to names. Raises UsageError."""
        if _scheme(to) and not is_server(to):
            raise UsageError(
                f"--to names no kind of database that is known: {_scheme(to)}://",
                hint="write the path of a file, postgresql://user@host/name or mysql://user@host/name",
            )
        address = to if is_server(to) else str(self.cwd / Path(to).expanduser())
        return self._target_engine(engine_of(to), loaded).target(address, options)

    @staticmethod
    def require_engine(engine: str, to: str) -> None:
        """The snapshot fits what --to names. Raises UsageError."""
        if engine != engine_of(to):
            example = _EXAMPLES.get(engine)
            # Not the address itself: somebody may have put a password into it.
            place = f"a database at {_scheme(to)}://" if is_server(to) else to
            raise UsageError(
                f"a snapshot of engine {engine} cannot be restored to {place}",
                hint=f"name a database, such as {example}" if example else "name the file to make",
            )

    def _target_engine(self, name: str, loaded: LoadedPolicy | None, *, drill: bool = False) -> TargetEngine:
        if name == "sqlite":
            from crmbackup.engines.sqlite.target import SqliteTargetEngine

            return SqliteTargetEngine()
        policy = loaded.policy if loaded else None
        server, given = None, None
        if drill and policy and policy.drill.target != "ephemeral":
            reference = policy.drill.target_password
            server, given = policy.drill.target, resolve(reference, self.environ) if reference else None
            self.require_engine(name, server)
        programs = getattr(policy.source, "programs", None) if policy and policy.source.type == name else None
        if name == "postgres":
            with _driver("postgres"):
                from crmbackup.engines.postgres.connection import parse_server as postgres_server
                from crmbackup.engines.postgres.target import PostgresTargetEngine

            return PostgresTargetEngine(None, programs, postgres_server(server, given) if server else None)
        if name == "mysql":
            with _driver("mysql"):
                from crmbackup.engines.mysql.connection import parse_server as mysql_server
                from crmbackup.engines.mysql.target import MysqlTargetEngine

            password = self._mysql_password(None)
            return MysqlTargetEngine(password, programs, mysql_server(server, given or password) if server else None)
        raise UsageError(f"this crmbackup cannot restore snapshots of engine {name!r}", hint="install a newer one")


def engine_of(to: str) -> str:
    """The engine that --to is a place for, by its scheme; without a known one it is a file."""
    return _ENGINES.get(_scheme(to), "sqlite")


def _scheme(to: str) -> str:
    scheme, colon, _ = to.partition("://")
    return scheme if colon and scheme.isidentifier() else ""


def is_server(to: str) -> bool:
    """Whether --to names a database of a server, not a file."""
    return engine_of(to) != "sqlite"


@contextlib.contextmanager
def _driver(extra: str) -> Iterator[None]:
    """Importing an engine whose packages this host may lack."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"this host lacks a package for {extra} databases",
            why=str(error),
            hint=f"pip install 'crmbackup[{extra}]'",
        ) from error
