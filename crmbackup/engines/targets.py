"""What restores to database servers have in common, whatever the product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from crmbackup.core.errors import CrmBackupError, TargetError, TargetExists, UsageError
from crmbackup.engines.base import RestoreOptions


class Closing(Protocol):
    """A restore that takes back what it did unless it was committed."""

    def close(self, because: BaseException | None = None) -> None:
        """End it. because: what ended it early."""
        ...


R = TypeVar("R", bound=Closing)


@contextmanager
def closed_with_reason(restore: R) -> Iterator[R]:
    """The restore, closed at the end and told what ended it."""
    try:
        yield restore
    except BaseException as error:
        restore.close(error)
        raise
    restore.close()


def refuse_options(options: RestoreOptions, database: str, example: str) -> None:
    """Raises UsageError for what no server's database can do. example: an address."""
    if options.overwrite:
        raise UsageError(
            "a database of a server is not overwritten",
            hint="restore to one of another name with --create, look at it, and let the application use that one",
        )
    if not database:
        raise UsageError("the address names no database", hint=f"write {example}")
    if options.create and options.content == "data":
        raise UsageError("--create makes an empty database, and --data-only needs its tables", hint="use one of them")


def refuse_what_is_there(name: str, found: Mapping[str, tuple[int, str]]) -> None:
    """Raises TargetExists unless the database is empty. found: by kind, how many objects and the name of one."""
    if found:
        listed = ", ".join(f"{count} {kind}{'s' if count > 1 else ''} ({one})" for kind, (count, one) in found.items())
        raise TargetExists(
            f"the database {name} is not empty",
            why=f"it holds {listed}",
            hint="restore to a database of another name, and let --create make it",
        )


def not_taken_back(name: str, mark: str, error: CrmBackupError, because: BaseException | None) -> TargetError:
    """What is left when an unfinished restore cannot be removed. mark: what says in it that it is not whole."""
    return TargetError(
        f"what was restored to {name} so far could not be removed again",
        why=f"{error}; the restore had ended because: {because or 'it was not finished'}",
        hint=f"the {mark} in it says that it is not whole; the next restore to it removes it",
    )


def tables_and_rows(tables: int, rows: int | None) -> str:
    """What comes back, in words. rows: None for definitions alone."""
    what = f"{tables} table{'' if tables == 1 else 's'}"
    return (
        f"definitions only, of {what}; no rows" if rows is None else f"{what} with {rows} row{'' if rows == 1 else 's'}"
    )
