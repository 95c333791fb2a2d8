"""Time zones by name, for a server of our own that knows none: an event comes back only where its time zone is known.

The rules are this host's, until 2038 as the server's own tables have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

from crmbackup.core.errors import TargetError
from crmbackup.engines.mysql.connection import Connection, Server, execute, value
from crmbackup.engines.mysql.definitions import Definition

_DAY = 86400
_END = (1 << 31) - _DAY
#: Characters that the server's table has for an abbreviation.
_ABBREVIATION = 8

Rule = tuple[int, bool, str]


def zones_of(objects: Iterable[Definition]) -> set[str]:
    """The time zones that objects were made under, by name: the server must know these."""
    zones = {each.settings.get("time_zone", "SYSTEM") for each in objects}
    return {zone for zone in zones if zone != "SYSTEM" and zone[0] not in "+-"}


def refuse_unknown(connection: Connection, server: Server, objects: Iterable[Definition]) -> None:
    """Raises TargetError where a server does not know a zone that an object needs; pymysql.Error."""
    unknown = [name for name in sorted(zones_of(objects)) if not _knows(connection, name)]
    if unknown:
        raise TargetError(
            f"the server of {server.name} does not know time zones that events were made under",
            why=", ".join(unknown),
            hint="load its time zone tables: `mariadb-tzinfo-to-sql /usr/share/zoneinfo | mariadb mysql` (MySQL:"
            " `mysql_tzinfo_to_sql` and `mysql`)",
        )


def _knows(connection: Connection, name: str) -> bool:
    return value(connection, "SELECT CONVERT_TZ('2000-01-01', '+00:00', %s)", (name,)) is not None


def make_zones(connection: Connection, names: Iterable[str]) -> None:
    """Tell a server the zones that it does not know; those that this host does not know either are left out.

    Raises pymysql.Error.
    """
    for name in names:
        if not _knows(connection, name):
            try:
                zone = ZoneInfo(name)
            except (KeyError, ValueError, OSError):
                continue
            _make_zone(connection, name, list(_changes(zone)))


def _make_zone(connection: Connection, name: str, changes: list[tuple[int, Rule]]) -> None:
    rules = list(dict.fromkeys(rule for _, rule in changes))
    execute(connection, "INSERT INTO mysql.time_zone (use_leap_seconds) VALUES ('N')")
    number = int(value(connection, "SELECT LAST_INSERT_ID()"))
    for place, (offset, summer, short) in enumerate(rules):
        execute(
            connection,
            "INSERT INTO mysql.time_zone_transition_type VALUES (%s, %s, %s, %s, %s)",
            (number, place, offset, int(summer), short),
        )
    values = ",".join(f"({number}, {second}, {rules.index(rule)})" for second, rule in changes)
    execute(connection, f"INSERT INTO mysql.time_zone_transition VALUES {values}")
    execute(connection, "INSERT INTO mysql.time_zone_name VALUES (%s, %s)", (name, number))


def _changes(zone: ZoneInfo) -> Iterator[tuple[int, Rule]]:
    """The rule of 1970, and every second at which another one begins."""
    last = _rule(zone, 0)
    yield 0, last
    for day in range(0, _END - _DAY, _DAY):
        then = _rule(zone, day + _DAY)
        if then != last:
            before, after = day, day + _DAY
            while after - before > 1:
                middle = (before + after) // 2
                before, after = (middle, after) if _rule(zone, middle) == last else (before, middle)
            yield after, then
            last = then


def _rule(zone: ZoneInfo, second: int) -> Rule:
    """Seconds east of Greenwich, whether it is summer time, and the short name."""
    local = datetime.fromtimestamp(second, zone)
    offset = local.utcoffset()
    assert offset is not None
    return int(offset.total_seconds()), bool(local.dst()), str(local.tzname())[:_ABBREVIATION]
