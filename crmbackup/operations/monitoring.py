"""Judging a policy from outside: how old its snapshots and drills are, by what the repository holds. Needs no key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import IntEnum

from crmbackup.core.errors import RepositoryError
from crmbackup.operations.checked import Checks
from crmbackup.operations.drills import Drills, owed
from crmbackup.policy.model import Policy
from crmbackup.repository.edges import Edges


class State(IntEnum):
    """The exit codes of monitoring plugins."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


#: What is worse when several things are judged: something known to be bad before something not known.
SEVERITY = (State.OK, State.UNKNOWN, State.WARNING, State.CRITICAL)


@dataclass(frozen=True)
class Number:
    """One measured value, in seconds (unit "s") or a count (unit ""), and the thresholds that it is judged by."""

    label: str
    value: float
    unit: str = ""
    warning: float | None = None
    critical: float | None = None


@dataclass
class Judgement:
    """The state of a policy, why, and the numbers."""

    policy: str
    state: State = State.OK
    texts: list[str] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)

    def add(self, state: State, text: str) -> None:
        """Something that was seen. The worst decides."""
        self.state = worst([self.state, state])
        self.texts.append(text)


def worst(states: Sequence[State]) -> State:
    """The state that stands for all."""
    return max(states, key=SEVERITY.index, default=State.UNKNOWN)


def judge(policy: Policy, edges: Edges, drills: Drills, made: datetime, now: datetime, checks: Checks) -> Judgement:
    """A policy by its oldest and newest snapshots and its drills. made: when the repository was.

    Snapshots: WARNING when the newest is older than objectives.rpo, CRITICAL when older than twice that, or when there
    is none. Drills: WARNING when the last one that passed began before the last moment of schedule.drill, a day of grace
    given, CRITICAL when also before the one before that, or when the newest drill did not pass; WARNING when somebody
    wrote records of drills that cannot be trusted. Checks: CRITICAL when one found damage and none since has found it gone.
    """
    found = Judgement(policy.name)
    _judge_snapshots(found, policy, edges, now)
    _judge_drills(found, policy, drills, made, now)
    _judge_checks(found, checks, now)
    _told(found, State.CRITICAL, edges.problems)
    return found


def _judge_snapshots(found: Judgement, policy: Policy, edges: Edges, now: datetime) -> None:
    rpo = policy.objectives.rpo
    if edges.ahead:
        # It may hide that none is taken any more: age is judged by the others.
        found.add(
            State.WARNING,
            f"a snapshot is dated {span(edges.ahead.captured - now)} in the future: a clock is or was wrong",
        )
    if edges.newest is None or edges.oldest is None:
        found.add(State.CRITICAL, f"there is no complete snapshot{' of the past' if edges.ahead else ''}")
        return
    age, oldest = now - edges.newest.captured, now - edges.oldest.captured
    text = f"newest {span(age)}"
    if rpo is None:
        found.add(State.OK, f"{text} (no objectives.rpo to judge it by)")
    elif age > rpo:
        found.add(State.CRITICAL if age > 2 * rpo else State.WARNING, f"{text}, RPO is {span(rpo)}")
    else:
        found.add(State.OK, text)
    seconds = rpo.total_seconds() if rpo else None
    found.numbers.append(Number("age", _seconds(age), "s", seconds, 2 * seconds if seconds else None))
    found.numbers.append(Number("oldest", _seconds(oldest), "s"))
    found.numbers.append(Number("snapshots", edges.count))


def _judge_drills(found: Judgement, policy: Policy, drills: Drills, made: datetime, now: datetime) -> None:
    _told(found, State.WARNING, drills.problems)
    debt = owed(policy, drills, made, now)
    failed = drills.newest is not None and not drills.newest.passed
    if failed:
        found.add(State.CRITICAL, "the last drill FAILED")
    if drills.passed is None:
        if debt.missed:
            found.add(State.WARNING, "no drill has passed yet")
        elif not failed:
            found.texts.append("never drilled")
        return
    age = now - drills.passed.started
    text = f"drill {span(age)} ago" + ("" if failed else " PASS")
    if debt.missed and debt.due:
        found.add(State.CRITICAL if debt.long else State.WARNING, f"{text}, one was due {span(now - debt.due)} ago")
    elif drills.newest and drills.newest.verdict == "late":
        found.add(State.WARNING, f"{text}, but missed an objective")
    else:
        found.add(State.OK, text)
    limits = [_seconds(now - each) if each else None for each in (debt.due, debt.before)]
    found.numbers.append(Number("drill_age", _seconds(age), "s", *limits))


def _judge_checks(found: Judgement, checks: Checks, now: datetime) -> None:
    if checks.damage:
        found.add(
            State.CRITICAL, f"check {span(now - checks.damage.started)} ago found damage: {checks.damage.finding}"
        )
    elif checks.last:
        found.texts.append(f"check {span(now - checks.last.started)} ago ok")
    if checks.last:
        found.numbers.append(Number("check_age", _seconds(now - checks.last.started), "s"))


def _told(found: Judgement, state: State, problems: Sequence[RepositoryError]) -> None:
    """The first of them, and how many more there are."""
    for problem in problems[:1]:
        more = len(problems) - 1
        found.add(state, f"{problem}" + (f", and {more} more" if more else ""))


def _seconds(age: timedelta) -> float:
    return max(0.0, float(round(age.total_seconds())))


def span(age: timedelta) -> str:
    """A time for one line, such as 5h12m, 41d or 3d4h."""
    seconds = max(0, int(age.total_seconds()))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days >= 10:
        return f"{days}d"
    if days:
        return f"{days}d{hours}h" if hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes:02}m" if minutes else f"{hours}h"
    return f"{minutes}m" if minutes else f"{seconds}s"
