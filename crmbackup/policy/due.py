"""What this host has to run now, from a schedule and what it remembers. Pure functions; all moments in UTC.

A key of the schedule is due when one of its times lies behind the moment up to which it was served: the start of the
last run that answered it. However many times were missed, one run answers them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from crmbackup.policy.model import Schedule
from crmbackup.policy.schedule import last_due, next_run

#: Action -> the keys of the schedule that ask for it, in the order in which actions of one policy go.
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "backup": ("full", "incremental"),
    "prune": ("prune",),
    "check": ("check",),
    "drill": ("drill",),
}
#: A moment in the future by no more than this is a clock that was put right. By more, the clock was set back, and what
#: was noted under the wrong time counts for nothing: else nothing would run until that time comes again.
CLOCK_STEP = timedelta(hours=1)
#: How far apart the wakes of an installed schedule are at the most.
BETWEEN_LOOKS = timedelta(minutes=15)
#: After the first failure in a row; three times as long after each further one, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=5), timedelta(hours=6)


@dataclass(frozen=True)
class Record:
    """What a host remembers of one action of one policy.

    served: by key, the moment up to which it was answered. started, ended: of the last attempt; without `ended` it is at
    work, or died. failures: attempts in a row that came to nothing. exit_code and error: of the last attempt.
    """

    served: Mapping[str, datetime] = field(default_factory=dict)
    started: datetime | None = None
    ended: datetime | None = None
    failures: int = 0
    exit_code: int | None = None
    error: str = ""

    @property
    def died(self) -> bool:
        """Whether the last attempt was begun and never noted its end. Says nothing while it is at work."""
        return self.started is not None and self.ended is None


@dataclass(frozen=True)
class Due:
    """Keys that are due; not before `wait`, if the last attempt failed."""

    keys: tuple[str, ...]
    wait: datetime | None = None


def scheduled(schedule: Schedule, action: str) -> dict[str, str]:
    """The expressions that ask for an action, by key."""
    found = {key: getattr(schedule, key) for key in ACTIONS[action]}
    return {key: expression for key, expression in found.items() if expression}


def upcoming(schedule: Schedule | None, after: datetime) -> list[tuple[datetime, str, str]]:
    """The next time of each key, the soonest first: moment, key, expression. Raises UsageError."""
    return sorted(
        (next_run(expression, schedule.timezone, after), key, expression)
        for action in ACTIONS
        if schedule
        for key, expression in scheduled(schedule, action).items()
    )


def first_seen(schedule: Schedule, action: str, record: Record | None, now: datetime) -> Record:
    """The record with every key of the schedule in it: a new one waits for its next time, as with cron.

    A time that came since whoever wakes us may have looked last is no past one: a policy is written at 2:20 for 2:30.
    """
    record = record or Record()
    new = {key: now - BETWEEN_LOOKS for key in scheduled(schedule, action) if key not in record.served}
    return replace(record, served={**record.served, **new}) if new else record


def judge(schedule: Schedule, action: str, record: Record, now: datetime) -> Due:
    """What of an action is due. Keys that the record does not have are not. Raises UsageError."""
    expressions = scheduled(schedule, action)
    keys = tuple(
        key
        for key, expression in expressions.items()
        if key in record.served and _is_due(expression, schedule.timezone, record.served[key], now)
    )
    if not keys:
        return Due(())
    return Due(keys, _wait(record, [(expressions[key], schedule.timezone) for key in keys], now))


def retry_at(record: Record, now: datetime) -> datetime | None:
    """When to try again after a failure, next times of the schedule apart; None when at once."""
    failures = record.failures + record.died
    last = record.ended or record.started
    if not failures or last is None or last > now + CLOCK_STEP:
        return None
    at = last + min(FIRST_PAUSE * 3 ** min(failures - 1, 10), LONGEST_PAUSE)
    return at if at > now else None


def begun(record: Record, now: datetime) -> Record:
    """The record of an attempt that begins. One that died before counts as a failure."""
    return replace(record, started=now, ended=None, failures=record.failures + record.died, exit_code=None, error="")


def ended(record: Record, keys: Iterable[str], now: datetime, *, exit_code: int, error: str, answered: bool) -> Record:
    """The record of an attempt that is over. answered: it did what it was for, whatever it found."""
    assert record.started is not None
    served = dict(record.served)
    if answered:
        done = set(keys)
        if "full" in done and "incremental" in served:
            done.add("incremental")  # a full snapshot holds all that an incremental one would
        served.update(dict.fromkeys(done, record.started))
    failures = 0 if answered else record.failures + 1
    return replace(record, served=served, ended=now, failures=failures, exit_code=exit_code, error=error)


def _is_due(expression: str, timezone: str, served: datetime, now: datetime) -> bool:
    if served > now + CLOCK_STEP:
        return True
    last = last_due(expression, timezone, now)
    return last is not None and last > served


def _wait(record: Record, expressions: Iterable[tuple[str, str]], now: datetime) -> datetime | None:
    """The pause after a failure; it ends early when the next time of the schedule comes."""
    at = retry_at(record, now)
    last = record.ended or record.started
    if at is None or last is None or record.started is None:
        return None
    following = min(next_run(expression, timezone, record.started) for expression, timezone in expressions)
    at = max(last + FIRST_PAUSE, min(at, following))
    return at if at > now else None
