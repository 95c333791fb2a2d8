from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import UsageError
from crmbackup.policy.cron import check_cron
from crmbackup.policy.model import Schedule
from crmbackup.policy.schedule import FULL_SERVES, kind_due, last_due, next_run

BERLIN = "Europe/Berlin"  # 2026: forward on March 29 (01:00 UTC), back on October 25 (01:00 UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_next_and_last_on_a_plain_day() -> None:
    assert next_run("30 2 * * *", "UTC", utc("2026-05-05T02:30")) == utc("2026-05-06T02:30")
    assert next_run("30 2 * * *", BERLIN, utc("2026-05-05T00:29:59")) == utc("2026-05-05T00:30")
    assert last_due("30 2 * * *", "UTC", utc("2026-05-05T02:30")) == utc("2026-05-05T02:30")
    assert last_due("30 2 * * *", "UTC", utc("2026-05-05T02:30") - timedelta(microseconds=1)) == utc("2026-05-04T02:30")
    assert last_due("30 2 * * *", BERLIN, utc("2026-05-05T12:00")) == utc("2026-05-05T00:30")


def test_moments_of_any_zone_go_in_and_utc_comes_out() -> None:
    after = datetime(2026, 5, 5, 1, tzinfo=ZoneInfo("Asia/Tokyo"))
    found = next_run("0 * * * *", BERLIN, after)
    assert found == utc("2026-05-04T17:00")
    assert found.tzinfo is UTC


def test_spring_forward_runs_a_swallowed_job_right_after_the_gap_and_once() -> None:
    assert next_run("30 2 * * *", BERLIN, utc("2026-03-28T12:00")) == utc("2026-03-29T01:00")
    assert next_run("30 2 * * *", BERLIN, utc("2026-03-29T01:00")) == utc("2026-03-30T00:30")
    assert last_due("30 2 * * *", BERLIN, utc("2026-03-29T00:59:59")) == utc("2026-03-28T01:30")
    assert last_due("30 2 * * *", BERLIN, utc("2026-03-29T01:00")) == utc("2026-03-29T01:00")
    assert last_due("30 2 * * *", BERLIN, utc("2026-03-29T01:10")) == utc("2026-03-29T01:00")


def test_fall_back_runs_a_fixed_job_at_the_first_of_two_equal_times() -> None:
    first, second = utc("2026-10-25T00:30"), utc("2026-10-25T01:30")
    assert next_run("30 2 * * *", BERLIN, utc("2026-10-24T12:00")) == first
    assert next_run("30 2 * * *", BERLIN, first) == utc("2026-10-26T01:30")
    # 02:10 for the second time: the run of 02:30 is behind us, whatever the clock on the wall says.
    assert next_run("30 2 * * *", BERLIN, utc("2026-10-25T01:10")) == utc("2026-10-26T01:30")
    assert last_due("30 2 * * *", BERLIN, utc("2026-10-25T01:10")) == first
    assert last_due("30 2 * * *", BERLIN, second) == first


def test_frequent_jobs_follow_real_time_through_both_changes() -> None:
    for start in (utc("2026-03-28T22:00"), utc("2026-10-24T22:00")):
        moment = start
        for step in range(1, 40):
            moment = next_run("*/15 * * * *", BERLIN, moment)
            assert moment == start + step * timedelta(minutes=15)
            assert last_due("*/15 * * * *", BERLIN, moment) == moment


def test_leap_day() -> None:
    assert next_run("0 0 29 2 *", "UTC", utc("2025-01-01T00:00")) == utc("2028-02-29T00:00")
    assert last_due("0 0 29 2 *", "UTC", utc("2028-03-01T00:00")) == utc("2028-02-29T00:00")
    assert last_due("0 0 29 2 *", "UTC", utc("2027-12-31T00:00")) is None


def test_look_back_is_bounded_by_400_days() -> None:
    assert last_due("0 0 1 1 *", "UTC", utc("2026-12-31T00:00")) == utc("2026-01-01T00:00")
    assert last_due("0 0 29 2 *", "UTC", utc("2028-02-29T00:00") + timedelta(days=400)) == utc("2028-02-29T00:00")
    assert last_due("0 0 29 2 *", "UTC", utc("2028-02-29T00:00") + timedelta(days=400, seconds=1)) is None


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "61 * * * *",
        "0 0 30 2 *",
        "0 0 */31 * 1#5",
        "@daily",
        "@reboot",
        "0 0 * * 8",
        "x y z a b",
        "*/0 * * * *",
    ],
)
def test_expressions_that_are_none(expression: str) -> None:
    with pytest.raises(ValueError, match=r"must|is not|never|may"):
        check_cron(expression)
    with pytest.raises(UsageError):
        next_run(expression, "UTC", utc("2026-01-01T00:00"))
    with pytest.raises(UsageError):
        last_due(expression, "UTC", utc("2026-01-01T00:00"))


def test_white_space_cannot_smuggle_lines_into_a_crontab() -> None:
    assert check_cron(" 0  2 *\t*\n* ") == "0 2 * * *"
    for expression in ("0 2 * * *\n* * * * * root sh", "0 2 * * %", "0 2 * * *;sh", "0 2 * * \x00"):
        with pytest.raises(ValueError, match=r"must|may"):
            check_cron(expression)


@given(st.text(max_size=40) | st.text(alphabet="0123456789*/,-#LWMON ", max_size=40))
def test_check_cron_accepts_or_raises_value_error(expression: str) -> None:
    try:
        text = check_cron(expression)
    except ValueError:
        return
    assert check_cron(text) == text
    assert next_run(text, BERLIN, utc("2026-01-01T00:00")) > utc("2026-01-01T00:00")


expressions = st.sampled_from(
    [
        "30 2 * * *",
        "*/15 * * * *",
        "0 * * * *",
        "0 0 * * *",
        "15 1,2,3 * * *",
        "0 */6 * * *",
        "0 3 * * sun",
        "30 1 L * *",
    ]
)
zones = st.sampled_from(["UTC", BERLIN, "America/New_York", "America/Sao_Paulo", "Asia/Kolkata", "Europe/Dublin"])
moments = st.timedeltas(timedelta(0), timedelta(days=25 * 365)).map(
    lambda since: utc("2010-01-01T00:00") + since
) | st.builds(
    lambda change, seconds: change + timedelta(seconds=seconds),
    st.sampled_from(
        [utc("2026-03-29T01:00"), utc("2026-10-25T01:00"), utc("2026-03-08T07:00"), utc("2026-11-01T06:00")]
    ),
    st.integers(-10_000, 10_000),
)


@given(expressions, zones, moments)
def test_next_is_later_and_last_is_not(expression: str, zone: str, at: datetime) -> None:
    following, last = next_run(expression, zone, at), last_due(expression, zone, at)
    assert last is not None
    assert last <= at < following
    # Nothing lies between the two.
    assert next_run(expression, zone, last) == following
    assert last_due(expression, zone, following) == following


@given(expressions, zones, moments)
def test_runs_ascend(expression: str, zone: str, at: datetime) -> None:
    runs = [at]
    for _ in range(5):
        runs.append(next_run(expression, zone, runs[-1]))
    assert all(earlier < later for earlier, later in itertools.pairwise(runs))


NOW = utc("2026-05-06T12:00")  # a Wednesday
WEEKLY = Schedule(full="30 2 * * 0", incremental="5 * * * *")


def test_the_first_snapshot_is_full() -> None:
    for schedule in (None, WEEKLY, Schedule(incremental="5 * * * *")):
        assert kind_due(schedule, [], NOW)[0] == "full"


def test_full_when_one_was_due_since_the_last() -> None:
    assert kind_due(WEEKLY, [utc("2026-05-03T02:30")], NOW)[0] == "incremental"
    assert kind_due(WEEKLY, [utc("2026-05-03T02:29:59")], NOW)[0] == "full"
    # A full that was missed is made up for at the next run, and the newest full counts, wherever it stands.
    assert kind_due(WEEKLY, [utc("2026-04-20T02:30")], NOW)[0] == "full"
    assert kind_due(WEEKLY, [utc("2026-05-04T00:00"), utc("2026-04-20T02:30")], NOW)[0] == "incremental"
    assert "30 2 * * 0" in kind_due(WEEKLY, [utc("2026-04-20T02:30")], NOW)[1]


def test_full_is_due_by_the_policys_time_zone() -> None:
    schedule = Schedule(timezone="America/New_York", full="0 0 * * *", incremental="0 * * * *")
    assert kind_due(schedule, [utc("2026-05-05T04:00")], utc("2026-05-06T03:59"))[0] == "incremental"
    assert kind_due(schedule, [utc("2026-05-05T04:00")], utc("2026-05-06T04:00"))[0] == "full"


def test_a_full_due_long_ago_is_not_forgotten() -> None:
    schedule = Schedule(full="0 0 29 2 *", incremental="0 0 * * *")
    assert kind_due(schedule, [utc("2027-06-01T00:00")], utc("2030-01-01T00:00"))[0] == "full"
    assert kind_due(schedule, [utc("2028-06-01T00:00")], utc("2030-01-01T00:00"))[0] == "incremental"


def test_only_fulls_scheduled_means_only_fulls() -> None:
    assert kind_due(Schedule(full="30 2 * * 0"), [NOW - timedelta(minutes=1)], NOW)[0] == "full"


@pytest.mark.parametrize("schedule", [None, Schedule(), Schedule(incremental="5 * * * *"), Schedule(drill="0 0 * * *")])
def test_without_times_for_fulls_one_serves_seven_days(schedule: Schedule | None) -> None:
    assert kind_due(schedule, [NOW - FULL_SERVES + timedelta(seconds=1)], NOW)[0] == "incremental"
    assert kind_due(schedule, [NOW - FULL_SERVES], NOW)[0] == "full"


def test_a_clock_set_back_costs_one_full_and_no_more() -> None:
    future = NOW + timedelta(days=365)
    for schedule in (None, WEEKLY):
        kind, reason = kind_due(schedule, [future], NOW)
        assert kind == "full"
        assert "clock" in reason
        assert kind_due(schedule, [future, NOW], NOW + timedelta(hours=1))[0] == "incremental"


def test_full_times_through_clock_changes() -> None:
    schedule = Schedule(timezone=BERLIN, full="30 2 * * *", incremental="*/10 * * * *")
    # In the doubled hour the full of 02:30 is not due again.
    assert kind_due(schedule, [utc("2026-10-25T00:30")], utc("2026-10-25T01:40"))[0] == "incremental"
    # In the missing hour it is due at its end.
    assert kind_due(schedule, [utc("2026-03-28T01:30")], utc("2026-03-29T00:59"))[0] == "incremental"
    assert kind_due(schedule, [utc("2026-03-28T01:30")], utc("2026-03-29T01:00"))[0] == "full"
