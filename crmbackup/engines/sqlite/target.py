"""The side of the SQLite engine that rebuilds database files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from crmbackup.core.errors import LocalError, TargetExists, UsageError
from crmbackup.core.events import Emit
from crmbackup.core.files import local_error
from crmbackup.engines.base import (
    IsolatedTarget,
    RestoreOptions,
    TableRecord,
    Target,
    TargetEngine,
    Verification,
    Workers,
)
from crmbackup.engines.sqlite.connection import ENGINE_VERSION
from crmbackup.engines.sqlite.restore import SqliteRestore
from crmbackup.engines.sqlite.touched import touched
from crmbackup.engines.sqlite.verify import query, verify


class SqliteTargetEngine(TargetEngine):
    """Database files that are rebuilt whole."""

    def target(self, address: str, options: RestoreOptions) -> SqliteTarget:
        if replace(options, overwrite=False) != RestoreOptions():
            raise UsageError(
                "SQLite databases come back as whole files",
                why="--table, --schema-only, --data-only, --create, --roles and --foreign-keys are for database servers",
                hint="restore to a new file and copy from there what you need, with sqlite3 and ATTACH",
            )
        return SqliteTarget(Path(address), overwrite=options.overwrite)

    def touched(
        self, layout: Mapping[str, Any], damaged: Collection[int], read: Callable[[int], bytes | None]
    ) -> Sequence[str]:
        return touched(layout, damaged, read)

    @contextmanager
    def isolated(
        self, directory: Path, layout: Mapping[str, Any], properties: Mapping[str, Any], emit: Emit
    ) -> Iterator[IsolatedTarget]:
        try:
            place = Path(tempfile.mkdtemp(prefix="crmbackup-drill-", dir=directory))
        except OSError as error:
            raise local_error(error, f"create a directory for the drill in {directory}") from error
        try:
            yield IsolatedTarget(
                target=SqliteTarget(place / "restored"),
                kind="private temporary directory",
                place=str(place),
                isolation=(
                    "a directory of its own that only its owner may enter, made for this drill and removed after it",
                    "no server, no network port; no application is configured to open it",
                    "opened read-only, with untrusted schema functions disabled",
                ),
                empty_before=not any(place.iterdir()),
                gone=lambda: not place.exists(),
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)


class SqliteTarget(Target):
    """One database file."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path.absolute()
        self._overwrite = overwrite

    @property
    def name(self) -> str:
        return str(self.path)

    def check(self) -> bool:
        path = self.path
        if path.is_dir():
            raise TargetExists(f"{path} is a directory", hint=f"name the file to make, such as {path / 'restored.db'}")
        if path.exists() and not path.is_file():
            # Of a device, a pipe or a socket only the name would be replaced; for /dev/null that harms the whole machine.
            raise TargetExists(f"{path} is not a file", hint="name the file to make")
        if path.exists() and not self._overwrite:
            raise TargetExists(f"{path} exists already", hint="restore elsewhere, or add --overwrite to replace it")
        if not path.parent.is_dir():
            raise LocalError(f"the directory {path.parent} does not exist", hint="create it, or restore elsewhere")
        return path.exists()

    def describe(self, layout: Mapping[str, Any]) -> Sequence[str]:
        return ()

    @contextmanager
    def open_restore(
        self, layout: Mapping[str, Any], digest: str, workers: Workers, emit: Emit
    ) -> Iterator[SqliteRestore]:
        restore = SqliteRestore(layout, digest, self.path, overwrite=self._overwrite)
        try:
            yield restore
        finally:
            restore.close()

    def verify(
        self, workers: Workers, tables: Sequence[TableRecord], properties: Mapping[str, Any], emit: Emit
    ) -> Verification:
        if properties.get("encrypted"):
            return Verification(ENGINE_VERSION, [], {}, [])
        return verify(workers, self.path, tables, emit)

    def query(self, sql: str) -> object:
        return query(self.path, sql)
