"""What a backup user may do, and the GRANT statements that it lacks.

Both products hide what a user has no right on: its tables, triggers, events and routines are not in the information
schema at all. A backup would leave them out in silence, so what must be there is asked for before anything is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pymysql

from crmbackup.core.errors import SourceDenied
from crmbackup.engines.mysql.accounts import is_like
from crmbackup.engines.mysql.connection import Connection, Server, Version, code_of, execute, quoted, value
from crmbackup.engines.mysql.dialect import definer_rights

#: Without these on the whole database something would be missing: each with what that is.
_ALWAYS = (
    ("SELECT", "tables"),
    ("SHOW VIEW", "definitions of views"),
    ("TRIGGER", "triggers"),
    ("EVENT", "events"),
)
#: Any of them shows which routines there are. A body that stays hidden is refused when it is read.
_LISTING = ("EXECUTE", "ALTER ROUTINE", "CREATE ROUTINE")
_ALL = "ALL PRIVILEGES"
_NO_GRANT_TABLES = 1290
_LINE = re.compile(r"(GRANT|REVOKE) (.+?) ON (?:TABLE )?(\*|`(?:[^`]|``)*`)\.(\*|`(?:[^`]|``)*`) (?:TO|FROM) ")


@dataclass
class Rights:
    """Names of rights, in capitals. tables: on single tables, by database and table."""

    everywhere: set[str] = field(default_factory=set)
    databases: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    tables: dict[tuple[str, str], set[str]] = field(default_factory=lambda: defaultdict(set))
    #: Taken back on single databases (MySQL's partial_revokes).
    revoked: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def everything(self, right: str) -> bool:
        """Whether it holds for the whole server."""
        return bool(self.everywhere & {right, _ALL})

    def on(self, right: str, database: str, table: str = "") -> bool:
        """Whether it holds for a whole database, or for one table of it."""
        wanted = {right, _ALL}
        if self.everything(right) and not self.revoked.get(database, set()) & wanted:
            return True
        if any(rights & wanted and is_like(database, pattern) for pattern, rights in self.databases.items()):
            return True
        return bool(self.tables.get((database, table), set()) & wanted)


def parse_grants(lines: Iterable[str]) -> Rights:
    """What SHOW GRANTS says. Rights on single columns and routines do not count here."""
    rights = Rights()
    for line in lines:
        found = _LINE.match(line)
        if not found:
            continue
        verb, names, database, table = found.groups()
        given = {name.strip().upper() for name in re.sub(r"\w[\w ]*\([^)]*\)", "", names).split(",") if name.strip()}
        if verb == "REVOKE":
            rights.revoked[_bare(database)] |= given
        elif database == "*":
            rights.everywhere |= given
        elif table == "*":
            rights.databases[_bare(database)] |= given
        else:
            rights.tables[_bare(database), _bare(table)] |= given
    return rights


def _bare(name: str) -> str:
    return name.strip("`").replace("``", "`")


def missing_grants(
    rights: Rights, database: str, version: Version, *, jobs: int, users: bool
) -> list[tuple[str, str, str]]:
    """For each thing that is not allowed: what would be missing, the right, and what it must be granted on.

    jobs: how many workers must see one moment. users: whether accounts are carried.
    """
    place = f"{quoted(database)}.*"
    found = [(what, right, place) for right, what in _ALWAYS if not rights.on(right, database)]
    routines = _routine_rights(version)
    listed = any(rights.on(right, database) for right in _LISTING)
    if not listed and not any(_has(rights, right, where) for right, where in routines):
        found.append(("routines that others defined", *routines[0]))
    if users and not rights.on("SELECT", "mysql"):
        found.append(("users and their rights", "SELECT", "`mysql`.*"))
    holds = rights.everything("RELOAD") or rights.on("LOCK TABLES", database)
    if jobs > 1 and not holds:
        found.append((f"one moment for {jobs} workers", "RELOAD", "*.*"))
    return found


def _routine_rights(version: Version) -> Sequence[tuple[str, str]]:
    """Rights that show the bodies of all routines; any of them does. The first is what is asked for."""
    if not version.mariadb:
        return [("SHOW_ROUTINE", "*.*"), ("SELECT", "*.*")] if version.number >= (8, 0, 20) else [("SELECT", "*.*")]
    old = [("SELECT", "`mysql`.`proc`"), ("SELECT", "`mysql`.*"), ("SELECT", "*.*")]
    return [("SHOW CREATE ROUTINE", "*.*"), *old] if version.number >= (11, 3) else old


def _has(rights: Rights, right: str, where: str) -> bool:
    if where == "*.*":
        return rights.everything(right)
    database, _, table = where.partition(".")
    return rights.on(right, _bare(database), "" if table == "*" else _bare(table))


def require_rights(connection: Connection, server: Server, version: Version, *, jobs: int, users: bool) -> None:
    """All that a complete backup needs is granted. Raises SourceDenied, which gives the statements; pymysql.Error."""
    try:
        lines = _show_grants(connection, version)
    except pymysql.Error as error:
        if code_of(error) == _NO_GRANT_TABLES:
            return  # it runs without any rights: everybody may do everything
        raise
    missing = missing_grants(parse_grants(lines), server.database, version, jobs=jobs, users=users)
    if not missing:
        return
    user, _, host = str(value(connection, "SELECT CURRENT_USER()")).rpartition("@")
    account = f"'{user}'@'{host}'"
    by_place: dict[str, list[str]] = defaultdict(list)
    for _, right, place in missing:
        by_place[place].append(right)
    statements = [f"GRANT {', '.join(rights)} ON {place} TO {account};" for place, rights in by_place.items()]
    raise SourceDenied(
        f"the user {account} lacks rights that a backup of {server.name} needs",
        why="it cannot see, or not as it must: " + ", ".join(what for what, _, _ in missing),
        hint=" ".join(statements),
    )


def may_define_for_others(connection: Connection, version: Version) -> bool:
    """Whether the user may make objects that run as somebody else. Raises pymysql.Error."""
    try:
        rights = parse_grants(_show_grants(connection, version))
    except pymysql.Error as error:
        if code_of(error) == _NO_GRANT_TABLES:
            return True
        raise
    return any(rights.everything(right) for right in definer_rights(version))


def _show_grants(connection: Connection, version: Version) -> list[str]:
    """Of the user at hand, with the roles that are active, which MariaDB shows by itself."""
    using = ""
    if not version.mariadb:
        roles = str(value(connection, "SELECT CURRENT_ROLE()"))
        using = "" if roles == "NONE" else f" FOR CURRENT_USER() USING {roles}"
    return [str(line) for (line,) in execute(connection, f"SHOW GRANTS{using}")]
