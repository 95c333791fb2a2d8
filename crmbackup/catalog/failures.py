"""What goes wrong with a catalog's database, as errors a user can act on. No text ever holds a password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from crmbackup.core.errors import DiskFull, LocalDenied, LocalError

REBUILD = "no backup depends on it: delete it and run `crmbackup catalog rebuild`"
SECRET_WORDS = ("pass", "pwd", "secret", "token", "key", "odbc")
#: Longer texts of drivers are cut: they can hold whole statements.
WHY_LENGTH = 500


def parse_url(url: str) -> URL:
    """The address of the catalog's database. Raises LocalError, which never repeats the text: it may hold a password."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise LocalError(
            "the address of the catalog is not a database URL",
            why="it cannot be taken apart",
            hint="write it like sqlite:////var/lib/crmbackup/catalog.db; "
            "in other URLs write @, : and / in a password as %40, %3A and %2F",
        ) from None


def display(url: URL) -> str:
    """The address without password and without options, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


@contextmanager
def reported(url: URL, doing: str) -> Iterator[None]:
    """Turns whatever the database layer raises in the block into a LocalError that says what was being done."""
    try:
        yield
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise LocalError(
            f"cannot {doing} {display(url)}",
            why=f"there is no driver for {url.drivername} here",
            hint="install the Python driver that the URL names, beside crmbackup",
        ) from error
    except (SQLAlchemyError, OSError, ValueError, OverflowError) as error:
        # The text of a StatementError repeats the statement; its cause says what was wrong.
        cause = getattr(error, "orig", None) or error
        raise _reason(url, f"cannot {doing} {display(url)}", cause) from error


def _reason(url: URL, what: str, cause: BaseException) -> LocalError:
    why = _without_secrets(url, str(cause))
    match sqlite_error(cause):
        case "NOTADB" | "CORRUPT":
            return LocalError(what, why=f"the catalog is damaged: {why}", hint=REBUILD)
        case "READONLY" | "CANTOPEN" | "PERM" | "AUTH":
            return LocalDenied(what, why=why, hint="check owner and mode of the file and its directory")
        case "FULL":
            return DiskFull(what, why=why, hint="free some space or point the setting at a larger disk")
        case "BUSY" | "LOCKED":
            return LocalError(what, why=why, hint="another process keeps the catalog locked; find and end it")
        case "ERROR":
            return LocalError(what, why=why, hint=f"the catalog was deleted or changed from outside; {REBUILD}")
    return LocalError(what, why=why, hint="check that the database runs and lets this user in")


def sqlite_error(cause: BaseException | None) -> str:
    """The kind of an error of SQLite's driver, like "BUSY" of SQLITE_BUSY_SNAPSHOT; empty for other drivers."""
    _, _, name = str(getattr(cause, "sqlite_errorname", "")).partition("_")
    return name.partition("_")[0]


def _without_secrets(url: URL, text: str) -> str:
    hidden = [str(url.password)] if url.password else []
    for name, value in url.query.items():
        if any(word in name.lower() for word in SECRET_WORDS):
            hidden += [value] if isinstance(value, str) else value
    # The longest first: one may hold another.
    for secret in sorted(filter(None, hidden), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text if len(text) <= WHY_LENGTH else text[:WHY_LENGTH] + " ..."
