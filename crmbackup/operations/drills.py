"""What the drills of a policy have proved, by the signed records in its repository, and whether one is owed.

The one place that judges drills: `status`, `monitor` and the metrics see the same, on whatever host they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from crmbackup.core.errors import ObjectDamaged, RepositoryError
from crmbackup.policy.model import Policy
from crmbackup.policy.schedule import last_due
from crmbackup.repository.records import DrillRecord, find_drills
from crmbackup.repository.repository import Repository

#: How late a scheduled drill may be. It takes a while, and need not be at the minute.
GRACE = timedelta(days=1)
#: Clocks of several hosts differ a little.
AHEAD = timedelta(minutes=10)


@dataclass(frozen=True)
class Drills:
    """newest: the last drill. passed: the last one that passed. problems: of records that count for nothing."""

    newest: DrillRecord | None = None
    passed: DrillRecord | None = None
    problems: tuple[RepositoryError, ...] = ()


NO_DRILLS = Drills()


@dataclass(frozen=True)
class Owed:
    """due: the last moment at which a scheduled drill should have begun by now; before: the one before it.

    missed: no drill that passed began since `due`. long: none did since `before` either.
    """

    due: datetime | None = None
    before: datetime | None = None
    missed: bool = False
    long: bool = False


def read_drills(repository: Repository, policy: str, now: datetime) -> Drills:
    """Read the records, the newest first, no more than it takes to find one that passed. Needs no key.

    One that is forged or damaged, or dated in the future, counts for nothing. Raises StorageError.
    """
    newest: DrillRecord | None = None
    problems: list[RepositoryError] = []
    for record, problem in find_drills(repository, policy):
        if problem:
            problems.append(problem)
        if record is None:
            continue
        if record.started > now + AHEAD:
            problems.append(
                ObjectDamaged(
                    f"the drill {record.key} is dated in the future",
                    why=f"a clock is wrong, here or on {record.host}",
                    hint="set the clock right; delete that object if it is not this host's clock that is wrong",
                )
            )
            continue
        newest = newest or record
        if record.passed:
            return Drills(newest, record, tuple(problems))
    return Drills(newest, None, tuple(problems))


def owed(policy: Policy, drills: Drills, made: datetime, now: datetime) -> Owed:
    """Whether a drill is owed by the policy's schedule. made: when the repository was; what was due before does not count."""
    schedule = policy.schedule
    due = last_due(schedule.drill, schedule.timezone, now - GRACE) if schedule and schedule.drill else None
    if schedule is None or schedule.drill is None or due is None:
        return Owed()
    before = last_due(schedule.drill, schedule.timezone, due - timedelta(microseconds=1))
    since = drills.passed.started if drills.passed else made
    return Owed(due, before, since < due, bool(drills.passed and before and since < before))
