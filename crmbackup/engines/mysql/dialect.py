"""What a restore does differently on MariaDB and on MySQL: the settings of its sessions, and what counts as older."""

from __future__ import annotations

from crmbackup.core.errors import TargetError
from crmbackup.engines.mysql.connection import NAMES, Version

#: Nothing is checked while rows come in: what they refer to may come later, and the source took them as they are.
_ALL = (
    # An engine that the server lacks is an error, not another engine.
    "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION'",
    "SET SESSION foreign_key_checks = 0",
    "SET SESSION unique_checks = 0",
    "SET SESSION sql_safe_updates = 0",
)
#: Tables that were made when a server was less strict. MySQL lets only some users change it.
_LENIENT = ("SET SESSION innodb_strict_mode = 0",)
_MARIADB = (
    "SET SESSION check_constraint_checks = 0",
    # Tables that keep old rows may be altered, since they are given keys only.
    "SET SESSION system_versioning_alter_history = KEEP",
)
_MYSQL = ("SET SESSION sql_require_primary_key = 0", "SET SESSION sql_generate_invisible_primary_key = 0")
#: Rows that are no longer current are taken too: MariaDB from 10.11 on.
INSERT_HISTORY = "SET SESSION system_versioning_insert_history = 1"


def session_settings(version: Version) -> tuple[str, ...]:
    """For sessions that make tables and fill them."""
    return (*_ALL, *_MARIADB) if version.mariadb else _ALL


def optional_settings(version: Version) -> tuple[str, ...]:
    """More for these, which not every version has and not every user may change."""
    return _LENIENT if version.mariadb else (*_LENIENT, *_MYSQL)


def definer_rights(version: Version) -> tuple[str, ...]:
    """Rights on the whole server of which any lets a user make objects that run as somebody else; the first is what is
    asked for.
    """
    if version.mariadb:
        return ("SET USER", "SUPER") if version.number < (11,) else ("SET USER",)
    return ("SET_ANY_DEFINER", "SUPER") if version.number >= (8, 2) else ("SET_USER_ID", "SUPER")


def refuse_older(target: Version, source: Version, place: str) -> None:
    """A snapshot goes to the same product, not to an older release of it. Raises TargetError."""
    if target.flavour != source.flavour:
        raise TargetError(
            f"the server of {place} is {target.text}, the snapshot is of {source.text}",
            why="the two products differ in collations, JSON, sequences and system tables, so that definitions of one "
            "are not always valid for the other",
            hint=f"restore to a server of {NAMES[source.flavour]}, and convert from there",
        )
    if target.number[:2] < source.number[:2]:
        raise TargetError(
            f"the server of {place} is {target.text}, the snapshot is of {source.text}",
            why="an older server does not know all that a newer one writes",
            hint=f"restore to a server of {NAMES[source.flavour]} {'.'.join(map(str, source.number[:2]))} or later",
        )
