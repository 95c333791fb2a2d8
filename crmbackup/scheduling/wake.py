"""When and how crmbackup is woken, whoever does it.

The waker needs to know no time zone: Debian's cron has one for the whole machine. It wakes at every quarter of an hour in
which an expression can come true, and `crmbackup run --due` decides. Offsets of all time zones, and clock changes, are
whole quarters, so minute 7 of any zone is minute 7, 22, 37 or 52 of every other. The quarters also bound how late
a missed or failed run is made up for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from crmbackup.core.errors import UsageError
from crmbackup.policy.cron import minutes_of, zone
from crmbackup.policy.due import ACTIONS, BETWEEN_LOOKS, scheduled, upcoming
from crmbackup.policy.model import Policy, Schedule

_QUARTER = int(BETWEEN_LOOKS.total_seconds() // 60)
_HOUR = range(60)
#: More minutes than this in a quarter of an hour, and it is every minute.
_MANY = 3
_SCOPE = "# Scope: "


@dataclass(frozen=True)
class Wake:
    """What is run, where and as whom.

    minutes: of the hour. environment: what differs from an almost empty one; no secret. user: None is whoever owns the crontab.
    """

    minutes: tuple[int, ...]
    program: Path
    directory: Path
    policies: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot stand in a crontab or unit."""
        for text in (*self.arguments, str(self.directory), *self.environment.values(), self.user or "-"):
            if not text.isprintable():
                raise UsageError(
                    f"{text!r} cannot stand in a crontab or unit file", hint="use a path of printable characters"
                )

    @property
    def arguments(self) -> tuple[str, ...]:
        """Program and arguments."""
        return (str(self.program), "run", "--due", *(str(each) for each in self.policies))

    @property
    def scope(self) -> str:
        """A comment that says which policies this is about: `scope_of` reads it back."""
        policies = [str(each) for each in self.policies]
        scope = {"directory": str(self.directory), "policies": policies, "user": self.user}
        return f"{_SCOPE}{json.dumps(scope)}"


@dataclass(frozen=True)
class Scope:
    """What an installed schedule is about: these files, or without any, the policies that are found from the directory.

    user: as whom it runs, where that is written down.
    """

    directory: Path
    policies: tuple[Path, ...] = ()
    user: str | None = None


@dataclass(frozen=True)
class Upcoming:
    """The next time of one key of a policy's schedule, aware, in the zone of the policy."""

    policy: str
    key: str
    expression: str
    timezone: str
    moment: datetime


def scope_of(installed: str) -> Scope | None:
    """The scope that an installed text tells of; None when there is none to be read."""
    line = next((line for line in installed.splitlines() if line.startswith(_SCOPE)), None)
    try:
        fields = json.loads((line or "").removeprefix(_SCOPE))
        return Scope(Path(fields["directory"]), tuple(Path(each) for each in fields["policies"]), fields["user"])
    except (ValueError, KeyError, TypeError):
        return None


def wake_minutes(schedules: Iterable[Schedule]) -> tuple[int, ...]:
    """The minutes of the hour at which to wake, ascending; none when nothing is scheduled."""
    expressions = [
        each for schedule in schedules for action in ACTIONS for each in scheduled(schedule, action).values()
    ]
    rests = {minute % _QUARTER for expression in expressions for minute in minutes_of(expression)}
    return tuple(_HOUR) if len(rests) > _MANY else tuple(minute for minute in _HOUR if minute % _QUARTER in rests)


def all_upcoming(policies: Iterable[Policy], after: datetime) -> list[Upcoming]:
    """The next time of everything that is scheduled, the soonest first."""
    found = [
        Upcoming(policy.name, key, expression, policy.schedule.timezone, at.astimezone(zone(policy.schedule.timezone)))
        for policy in policies
        if policy.schedule
        for at, key, expression in upcoming(policy.schedule, after)
    ]
    return sorted(found, key=lambda each: (each.moment, each.policy, each.key))
