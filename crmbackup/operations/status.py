"""How a policy stands, judged from what its repository holds. Pure: whoever asks gathers the facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from crmbackup.core.errors import CrmBackupError
from crmbackup.operations.checked import NO_CHECKS, Checks
from crmbackup.operations.drills import AHEAD, NO_DRILLS, Drills, owed
from crmbackup.policy.due import Record, scheduled, upcoming
from crmbackup.policy.model import Policy, Schedule
from crmbackup.policy.schedule import last_due
from crmbackup.repository.manifest import ManifestHeader

#: How many of the newest snapshots tell the trend.
TREND = 10
#: How long after its time a backup may still be under way.
GRACE = timedelta(hours=1)


@dataclass(frozen=True)
class Facts:
    """What was found out. problem: why the repository could not be read; headers are then empty.

    made: when the repository was. distrusted: what is wrong with manifests that were left out. backup, check: what this
    host remembers of scheduled runs; checks: of all checks. called: what to type for the policy; empty is its name.
    """

    policy: Policy
    now: datetime
    problem: CrmBackupError | None = None
    headers: Sequence[ManifestHeader] = ()
    distrusted: Sequence[CrmBackupError] = ()
    made: datetime | None = None
    drills: Drills = NO_DRILLS
    backup: Record | None = None
    check: Record | None = None
    checks: Checks = NO_CHECKS
    called: str = ""

    @property
    def call(self) -> str:
        """What to type for the policy."""
        return self.called or self.policy.name


@dataclass(frozen=True)
class Concern:
    """Something that needs attention, and what to do about it. `code` is stable."""

    code: str
    text: str
    hint: str


@dataclass(frozen=True)
class Standing:
    """How a policy stands. newest: of the snapshots that are not dated in the future; age: its own. following: the next key
    and its time, in UTC.

    growth: of the source over the last snapshots, 0.1 is a tenth more; None with fewer than two.
    """

    facts: Facts
    newest: ManifestHeader | None
    age: timedelta | None
    growth: float | None
    following: tuple[str, datetime] | None
    concerns: tuple[Concern, ...]


def judge(facts: Facts) -> Standing:
    """What the facts come to."""
    headers = [header for header in facts.headers if not _ahead(facts, header)]
    newest = headers[-1] if headers else None
    recent = [header.source_size for header in headers[-TREND:]]
    return Standing(
        facts=facts,
        newest=newest,
        age=facts.now - newest.captured if newest else None,
        growth=recent[-1] / recent[0] - 1 if len(recent) > 1 and recent[0] else None,
        following=next(((key, moment) for moment, key, _ in upcoming(facts.policy.schedule, facts.now)), None),
        concerns=tuple(_concerns(facts, newest)),
    )


def _concerns(facts: Facts, newest: ManifestHeader | None) -> Iterator[Concern]:
    name = facts.call
    if facts.problem:
        yield Concern(facts.problem.code, str(facts.problem), facts.problem.hint)
    for problem in facts.distrusted:
        yield Concern(problem.code, str(problem), problem.hint or f"`crmbackup check {name}` tells more")
    future = [header for header in facts.headers if _ahead(facts, header)]
    if future:
        # It may hide that none is taken any more: age is judged by the others.
        text = f"a snapshot is dated in the future, {future[-1].captured:%Y-%m-%d %H:%M} UTC"
        hint = f"set the clock of this host or of {future[-1].host} right; `crmbackup forget {name} --future` removes what is dated so"
        yield Concern("clock", text, hint)
    if newest:
        yield from _age(facts, newest)
    elif not facts.problem and not future:
        yield Concern("no-snapshot", "there is no snapshot", f"`crmbackup backup {name}` takes the first one")
    if facts.backup and facts.backup.failures:
        times = f"{facts.backup.failures} times in a row" if facts.backup.failures > 1 else "once"
        hint = f"`crmbackup backup {name}` shows whether it is mended"
        yield Concern("backup-failed", f"the last scheduled backup failed, {times}: {facts.backup.error}", hint)
    yield from _check(facts)
    yield from _drill(facts)


def _ahead(facts: Facts, header: ManifestHeader) -> bool:
    return header.captured > facts.now + AHEAD


def _check(facts: Facts) -> Iterator[Concern]:
    name, last, damage, record = facts.call, facts.checks.last, facts.checks.damage, facts.check
    if damage:
        command = f"crmbackup check {name} {damage.option}".rstrip()
        more = f" and {damage.findings - 1} more" if damage.findings > 1 else ""
        text = f"the check of {damage.started:%Y-%m-%d %H:%M} UTC found damage: {damage.finding}{more}"
        yield Concern("check-failed", text, f"`{command}` names all of it, and ends this when it is mended")
    elif record and record.exit_code and record.started and (last is None or last.started < record.started):
        # None that came to its end since has made up for it.
        hint = f"`crmbackup check {name}` shows whether it is mended"
        yield Concern("check-failed", f"the last scheduled check failed: {record.error}", hint)


def _age(facts: Facts, newest: ManifestHeader) -> Iterator[Concern]:
    policy, now = facts.policy, facts.now
    rpo = policy.objectives.rpo
    hint = (
        f"`crmbackup backup {facts.call}` takes one now; `crmbackup doctor {facts.call}` finds out why none was taken"
    )
    if rpo is not None:
        if now - newest.captured > rpo:
            yield Concern("rpo-missed", "the newest snapshot is older than objectives.rpo allows", hint)
    else:
        missed = _missed(policy.schedule, now)
        if missed and missed > newest.captured:
            yield Concern(
                "backup-missed", f"no snapshot was taken since one was due at {missed:%Y-%m-%d %H:%M} UTC", hint
            )


def _drill(facts: Facts) -> Iterator[Concern]:
    name, drills, drill = facts.call, facts.drills, facts.drills.newest
    if facts.made is None:
        return  # the repository could not be read
    for problem in drills.problems:
        yield Concern(problem.code, str(problem), problem.hint or f"`crmbackup drill {name}` makes a new one")
    if drill and drill.verdict == "failed":
        text = f"the last drill failed, on {drill.started:%Y-%m-%d %H:%M} UTC on {drill.host}"
        yield Concern("drill-failed", text, f"read its report there; `crmbackup drill {name}` repeats it")
    elif drill and drill.verdict == "late":
        yield Concern(
            "objectives-missed",
            f"the last drill, on {drill.host}, missed an objective",
            "read its report; change the objective or the means",
        )
    debt = owed(facts.policy, drills, facts.made, facts.now)
    if debt.missed and debt.due and facts.headers:
        text = f"no drill has passed since one was due on {debt.due:%Y-%m-%d}"
        yield Concern("drill-missed", text, f"`crmbackup drill {name}`; drills need the identity")


def _missed(schedule: Schedule | None, now: datetime) -> datetime | None:
    """The last time of a backup that is long enough ago to have been answered."""
    if schedule is None:
        return None
    times = [last_due(each, schedule.timezone, now - GRACE) for each in scheduled(schedule, "backup").values()]
    return max((moment for moment in times if moment), default=None)
