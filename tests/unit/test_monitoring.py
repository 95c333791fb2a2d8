"""Judging policies: ages against objectives and schedules, and the line that monitoring systems read."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.cli.monitor import _line
from crmbackup.core.errors import ObjectDamaged
from crmbackup.operations.checked import NO_CHECKS, Checked, Checks
from crmbackup.operations.drills import NO_DRILLS, Drills
from crmbackup.operations.monitoring import Judgement, Number, State, judge, span, worst
from crmbackup.policy.model import Policy
from crmbackup.repository.edges import Edges
from crmbackup.repository.manifest import ManifestHeader
from tests.unit.drill_examples import drills, failed, late
from tests.unit.policy_examples import LOCAL, good

NOW = datetime(2026, 3, 15, 12, 0, tzinfo=UTC)  # a Sunday
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MADE = NOW - timedelta(days=400)
PLAIN = good(LOCAL)
RPO = good(LOCAL + "objectives: {rpo: 26h}\n")
DRILLED = good(LOCAL + 'objectives: {rpo: 26h}\nschedule: {drill: "0 4 1 * *"}\n')  # due on 1 March and 1 February


def header(age: timedelta) -> ManifestHeader:
    moment = NOW - age
    return ManifestHeader("r", "s", "crm", "full", None, "s", "sqlite", "h", "t", moment, moment, moment, 1, 1, (), "")


def edges(newest: timedelta, oldest: timedelta = 100 * DAY) -> Edges:
    return Edges(header(oldest), header(newest), 12, ())


def judged(
    policy: Policy, seen: Edges, drill: Drills = NO_DRILLS, made: datetime = MADE, checks: Checks = NO_CHECKS
) -> Judgement:
    return judge(policy, seen, drill, made, NOW, checks)


@pytest.mark.parametrize(
    ("policy", "age", "state", "text"),
    [
        (RPO, 5 * HOUR + timedelta(minutes=12), State.OK, "newest 5h12m"),
        (RPO, 26 * HOUR, State.OK, "newest 1d2h"),
        (RPO, 27 * HOUR, State.WARNING, "RPO is 1d2h"),
        (RPO, 53 * HOUR, State.CRITICAL, "RPO is 1d2h"),
        (RPO, timedelta(seconds=-30), State.OK, "newest 0s"),
        (PLAIN, 900 * DAY, State.OK, "no objectives.rpo"),
    ],
)
def test_the_age_of_the_newest_snapshot(policy: Policy, age: timedelta, state: State, text: str) -> None:
    found = judged(policy, edges(age))
    assert (found.state, text in ", ".join(found.texts)) == (state, True)
    assert {number.label for number in found.numbers} == {"age", "oldest", "snapshots"}


def test_a_snapshot_of_the_future_hides_no_others() -> None:
    late = replace(edges(53 * HOUR), ahead=header(-4 * HOUR))
    assert judged(RPO, replace(late, newest=header(HOUR))).state is State.WARNING
    found = judged(RPO, late)
    assert found.state is State.CRITICAL
    assert "4h in the future" in found.texts[0]
    assert "RPO is 1d2h" in found.texts[1]
    assert {number.label: number.value for number in found.numbers}["age"] == 53 * 3600
    assert judged(RPO, replace(late, newest=None)).state is State.CRITICAL


def test_nothing_there_and_something_forged() -> None:
    assert judged(RPO, Edges(None, None, 0, ())).state is State.CRITICAL
    forged = replace(edges(HOUR), problems=(ObjectDamaged("manifest a is damaged"), ObjectDamaged("b")))
    found = judged(RPO, forged)
    assert (found.state, found.texts[-1]) == (State.CRITICAL, "manifest a is damaged, and 1 more")


@pytest.mark.parametrize(
    ("drill", "state", "text"),
    [
        (drills(datetime(2026, 3, 1, 4, tzinfo=UTC)), State.OK, "drill 14d ago PASS"),
        (drills(datetime(2026, 2, 20, tzinfo=UTC)), State.WARNING, "one was due 14d ago"),
        (drills(datetime(2026, 1, 31, tzinfo=UTC)), State.CRITICAL, "one was due 14d ago"),
        (failed(NOW, drills(NOW - DAY)), State.CRITICAL, "the last drill FAILED"),
        (late(NOW - DAY), State.WARNING, "missed an objective"),
        (failed(NOW), State.CRITICAL, "the last drill FAILED"),
        (Drills(), State.WARNING, "no drill has passed yet"),
        (
            replace(drills(NOW - DAY), problems=(ObjectDamaged("the drill a cannot be trusted"),)),
            *(State.WARNING, "the drill a cannot be trusted, drill 1d ago PASS"),
        ),
    ],
)
def test_drills_by_their_schedule(drill: Drills, state: State, text: str) -> None:
    found = judged(DRILLED, edges(HOUR), drill)
    assert (found.state, text in ", ".join(found.texts)) == (state, True)
    if drill.passed:
        (number,) = (number for number in found.numbers if number.label == "drill_age")
        assert (number.warning, number.critical) == (14 * 86400 + 8 * 3600, 42 * 86400 + 8 * 3600)


def test_damage_that_a_check_found_is_critical_until_it_is_gone() -> None:
    good, bad = Checked(NOW - HOUR, (4, 28), 0), Checked(NOW - DAY, (3, 28), 2, "pack ab is damaged")
    found = judged(RPO, edges(HOUR), checks=Checks(good))
    assert (found.state, found.texts[-1], found.numbers[-1].label) == (State.OK, "check 1h ago ok", "check_age")
    found = judged(RPO, edges(HOUR), checks=Checks(good, bad))
    assert (found.state, found.texts[-1]) == (State.CRITICAL, "check 1d ago found damage: pack ab is damaged")


def test_a_drill_that_is_due_now_is_given_a_day_and_a_new_repository_until_the_first() -> None:
    daily = good(LOCAL + 'schedule: {drill: "0 11 * * *"}\n')
    assert judged(daily, edges(HOUR), drills(NOW - 25 * HOUR)).state is State.OK
    assert judged(daily, edges(HOUR), drills(NOW - 26 * HOUR)).state is State.WARNING
    young = judged(DRILLED, edges(HOUR), Drills(), made=NOW - DAY)
    assert (young.state, young.texts[-1]) == (State.OK, "never drilled")


def test_the_line_of_one_policy_is_that_of_a_plugin() -> None:
    line, code = _line([judged(RPO, edges(5 * HOUR), drills(NOW - 41 * DAY))])
    assert code == 0
    assert line == (
        "CRMBACKUP OK - crm newest 5h, drill 41d ago PASS | 'age'=18000s;93600;187200;0; 'oldest'=8640000s;;;0; "
        "'snapshots'=12;;;0; 'drill_age'=3542400s;;;0;"
    )


def test_of_several_policies_the_worst_comes_first_and_decides() -> None:
    found = [
        Judgement("a", State.OK, ["fine"], [Number("age", 1.0, "s")]),
        Judgement("b", State.UNKNOWN, ["no answer\nfrom a|b"]),
        Judgement("c", State.WARNING, ["old"], [Number("age", 2.0, "s", 1.0)]),
    ]
    line, code = _line(found)
    assert code == 1
    assert (
        line == "CRMBACKUP WARNING - c old; UNKNOWN b no answer from a/b; OK a fine | 'a_age'=1s;;;0; 'c_age'=2s;1;;0;"
    )


def test_what_is_known_to_be_bad_goes_before_what_is_not_known() -> None:
    assert worst([State.OK, State.UNKNOWN]) is State.UNKNOWN
    assert worst([State.WARNING, State.UNKNOWN]) is State.WARNING
    assert worst([State.CRITICAL, State.UNKNOWN, State.OK]) is State.CRITICAL
    assert worst([]) is State.UNKNOWN


@given(
    st.lists(st.builds(Judgement, st.just("crm"), st.sampled_from(State), st.lists(st.text(), max_size=3)), min_size=1)
)
def test_it_is_always_one_line_without_stray_bars(found: list[Judgement]) -> None:
    line, code = _line(found)
    assert code in (0, 1, 2, 3)
    assert line.isprintable()
    assert "|" not in line
    assert re.match(r"CRMBACKUP (OK|WARNING|CRITICAL|UNKNOWN) - ", line)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (3599, "59m"), (3660, "1h01m"), (86400, "1d"), (90000, "1d1h")]
)
def test_spans(seconds: int, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text
