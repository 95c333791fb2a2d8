"""When runs are due, and of which kind. Pure functions; moments are aware and come back in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

from crmbackup.core.errors import UsageError
from crmbackup.policy.cron import last_occurrence, occurrences
from crmbackup.policy.model import Schedule

#: How long a full snapshot serves incremental ones when the policy does not say when a full one is due.
FULL_SERVES = timedelta(days=7)


def next_run(expression: str, timezone: str, after: datetime) -> datetime:
    """The first moment of the expression later than `after`. Raises UsageError."""
    try:
        return next(occurrences(expression, timezone, after))
    except ValueError as error:
        raise UsageError(f'cannot plan by "{expression}" in {timezone}', why=f"it {error}") from error
    except StopIteration:
        raise UsageError(f'cannot plan by "{expression}" in {timezone}', why="it never comes true again") from None


def last_due(expression: str, timezone: str, at: datetime) -> datetime | None:
    """The latest moment of the expression that is not after `at`; None if there is none in the 400 days before.

    Raises UsageError.
    """
    try:
        return last_occurrence(expression, timezone, at)
    except ValueError as error:
        raise UsageError(f'cannot plan by "{expression}" in {timezone}', why=f"it {error}") from error


def kind_due(
    schedule: Schedule | None, fulls: Iterable[datetime], now: datetime
) -> tuple[Literal["full", "incremental"], str]:
    """The kind of a snapshot that is taken now, and why.

    Args:
        schedule: of the policy; None when it has none.
        fulls: when the full snapshots there are were started, in any order.
        now: the present moment.

    A full is due when one of its moments lies behind the newest full's start. Where the policy gives no
    moments for fulls, one is due after `FULL_SERVES`; where it gives moments for fulls only, every run is full.
    Fulls dated after `now` were started under a clock that was set back since: they count for nothing, so that
    one full is taken and the schedule goes on by that.
    """
    present = now.astimezone(UTC)
    starts = [each.astimezone(UTC) for each in fulls]
    if not starts:
        return "full", "there is no full snapshot yet"
    past = [each for each in starts if each <= present]
    if not past:
        return "full", "every full snapshot is dated in the future: the clock was set back"
    newest = max(past)
    if schedule is None or schedule.full is None:
        if present - newest >= FULL_SERVES:
            return "full", f"the last full snapshot is older than {FULL_SERVES.days} days"
        return "incremental", f"the last full snapshot is not older than {FULL_SERVES.days} days"
    if schedule.incremental is None:
        return "full", "the policy schedules full snapshots only"
    if next_run(schedule.full, schedule.timezone, newest) <= present:
        return "full", f'a full snapshot was due since the last one, by "{schedule.full}"'
    return "incremental", f'no full snapshot was due since the last one, by "{schedule.full}"'
