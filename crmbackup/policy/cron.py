"""Cron expressions and time zones: what is valid, and the moments they name.

Moments go in aware and come out in UTC. Arithmetic on aware moments of one zone ignores clock changes, so
nothing here compares moments before they are in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError

LOOK_BACK = timedelta(days=400)

# Any moment will do to find out whether an expression ever comes true; cronsim looks 50 years ahead.
_REFERENCE = datetime(2024, 1, 1, tzinfo=UTC)
# cronsim splits at any white space and upper-cases; an expression also ends up in crontab lines and unit files.
_ALLOWED = re.compile(r"[A-Za-z0-9*/,#-]{1,100}( [A-Za-z0-9*/,#-]{1,100}){4}")
_PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
# More than any clock change: cronsim forgets which of two equal wall times it was given, so searches start this
# much too early or too late and leave out what is not wanted.
_MARGIN = timedelta(hours=3)


def check_cron(expression: str) -> str:
    """The expression with single spaces between its five fields. Raises ValueError with what is wrong."""
    if expression in _PRESETS:
        raise ValueError(f'must have five fields: write "{_PRESETS[expression]}"')
    text = " ".join(expression.split())
    if len(text.split(" ")) != 5:
        raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
    if _ALLOWED.fullmatch(text) is None:
        raise ValueError('may hold only letters, digits and "* / , - #"')
    try:
        next(CronSim(text, _REFERENCE))
    except CronSimError as error:
        raise ValueError(f"is not a cron expression: {str(error).lower()}") from error
    except StopIteration:
        raise ValueError("never comes true") from None
    return text


def minutes_of(expression: str) -> frozenset[int]:
    """The minutes of the hour at which the expression may come true. Raises ValueError."""
    return frozenset(CronSim(check_cron(expression), _REFERENCE).minutes)


def zone(name: str) -> tzinfo:
    """The time zone of an IANA name. Raises ValueError."""
    if name == "UTC":
        return UTC  # there even when the machine has no time zone database
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not a time zone name such as UTC or Europe/Berlin") from None


def near_zone(name: str) -> str | None:
    """The name of a time zone that resembles `name`, if there is one."""
    known = {each.lower(): each for each in available_timezones()}
    near = get_close_matches(name.lower().replace(" ", "_"), known, n=1)
    return known[near[0]] if near else None


def occurrences(expression: str, timezone: str, after: datetime) -> Iterator[datetime]:
    """The moments of the expression later than `after`, in UTC, ascending. Raises ValueError for what is not valid.

    At a clock change as in Debian's cron: jobs with a fixed time run once, right after a gap that swallows
    it and at the first of two equal wall times; jobs with `*` in minute or hour follow real time.
    """
    expression = check_cron(expression)
    last = after.astimezone(UTC)
    for found in CronSim(expression, (after - _MARGIN).astimezone(zone(timezone))):
        moment = found.astimezone(UTC)
        if moment > last:
            last = moment
            yield moment


def last_occurrence(expression: str, timezone: str, at: datetime) -> datetime | None:
    """The latest moment of the expression that is not after `at`, in UTC; None if none in `LOOK_BACK` before it."""
    expression = check_cron(expression)
    limit = at.astimezone(UTC)
    for found in CronSim(expression, (at + _MARGIN).astimezone(zone(timezone)), reverse=True):
        moment = found.astimezone(UTC)
        if moment < limit - LOOK_BACK:
            return None
        if moment <= limit:
            return moment
    return None
