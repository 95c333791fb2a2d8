"""Rows on their way to a host's own catalog: lines of JSON in a file beside it.

Loading a database library takes longer than many an incremental's own work, and nobody reads the catalog while backups
run. So a run only adds a line here; whoever opens the catalog puts the lines in first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from crmbackup.catalog.records import KINDS, Row
from crmbackup.core.clock import Clock, from_text, to_text
from crmbackup.core.errors import LocalError
from crmbackup.core.files import PRIVATE_FILE, local_error, lock_file, make_private_directory

#: Bytes that may wait: some hundreds of runs.
LIMIT = 128 * 1024


class Inbox:
    """The file. Safe for use by several processes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def add(self, rows: Sequence[Row]) -> int:
        """Add rows and make them durable; gives how many bytes wait now. Raises LocalError."""
        make_private_directory(self._path.parent)
        descriptor = self._open(os.O_CREAT)
        try:
            size = _whole_lines(descriptor)
            os.ftruncate(descriptor, size)  # what a crash cut short; nobody was told that it had been added
            data = b"".join(_line(row) for row in rows)
            with os.fdopen(os.dup(descriptor), "ab") as stream:
                stream.write(data)
            os.fsync(descriptor)
        except OSError as error:
            raise local_error(error, f"write {self._path}") from error
        finally:
            os.close(descriptor)
        return size + len(data)

    def empty(self, put: Callable[[Sequence[Row]], None]) -> None:
        """Give all rows to `put`, in order, and forget them when it took them.

        After a crash in between they are given again. Raises LocalError, also for lines that nobody here wrote, and
        whatever `put` raises.
        """
        try:
            descriptor = self._open()
        except FileNotFoundError:
            return
        try:
            with os.fdopen(os.dup(descriptor), "rb") as stream:
                lines = stream.read(_whole_lines(descriptor)).splitlines()
            if lines:
                put([self._row(number, line) for number, line in enumerate(lines, 1)])
                os.ftruncate(descriptor, 0)
        except OSError as error:
            raise local_error(error, f"read {self._path}") from error
        finally:
            os.close(descriptor)

    def _open(self, more: int = 0) -> int:
        """The file, locked. Raises FileNotFoundError, LocalError."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_APPEND | more, PRIVATE_FILE)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise local_error(error, f"write {self._path}") from error
        try:
            lock_file(descriptor, self._path, self._clock)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _row(self, number: int, line: bytes) -> Row:
        try:
            ((kind, values),) = json.loads(line).items()
            return KINDS[kind](**{name: _moment(name, value) for name, value in values.items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LocalError(
                f"cannot read {self._path}",
                why=f"line {number} was not written by this version of crmbackup",
                hint="remove the file; `crmbackup catalog rebuild` brings snapshots and drills back",
            ) from error


def _whole_lines(descriptor: int) -> int:
    """How many bytes there are up to the end of the last whole line."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).rfind(b"\n") + 1


def _line(row: Row) -> bytes:
    values = {name: to_text(value) if isinstance(value, datetime) else value for name, value in asdict(row).items()}
    # All in ASCII: names of files may hold bytes that are no text.
    return json.dumps({type(row).__name__: values}).encode("ascii") + b"\n"


def _moment(name: str, value: Any) -> Any:
    return from_text(value) if name.endswith("_at") and isinstance(value, str) else value
