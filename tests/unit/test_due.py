"""What is due: clock changes, missed runs, failures, a clock that was set back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.policy.due import BETWEEN_LOOKS, FIRST_PAUSE, LONGEST_PAUSE, Due, Record, begun, ended, first_seen, judge
from crmbackup.policy.model import Schedule
from crmbackup.policy.schedule import next_run

BERLIN = "Europe/Berlin"  # 2026: forward on March 29 (01:00 UTC), back on October 25 (01:00 UTC)
NIGHTLY = Schedule(timezone=BERLIN, full="30 2 * * *")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def seen(schedule: Schedule, at: datetime, action: str = "backup") -> Record:
    return first_seen(schedule, action, None, at)


def ran(
    record: Record, keys: tuple[str, ...], start: datetime, *, took: timedelta = MINUTE, good: bool = True
) -> Record:
    """The record after an attempt."""
    end = start + took
    return ended(begun(record, start), keys, end, exit_code=0 if good else 4, error="" if good else "x", answered=good)


def runs(schedule: Schedule, start: datetime, end: datetime, *, every: timedelta = 15 * MINUTE) -> list[datetime]:
    """When something that wakes every so often runs backups."""
    record, now, found = seen(schedule, start), start, []
    while now <= end:
        due = judge(schedule, "backup", record, now)
        if due.keys and due.wait is None:
            record = ran(record, due.keys, now)
            found.append(now)
        now += every
    return found


def test_a_policy_that_is_written_right_before_its_time_runs_that_time() -> None:
    at = utc("2026-05-05T00:30")
    for late in (timedelta(seconds=1), BETWEEN_LOOKS - timedelta(seconds=1)):
        assert judge(NIGHTLY, "backup", seen(NIGHTLY, at + late), at + late) == Due(("full",))
    assert judge(NIGHTLY, "backup", seen(NIGHTLY, at + BETWEEN_LOOKS), at + BETWEEN_LOOKS) == Due(())


def test_a_new_key_waits_for_its_next_time() -> None:
    record = seen(NIGHTLY, utc("2026-05-05T12:00"))
    assert judge(NIGHTLY, "backup", record, utc("2026-05-05T12:00")) == Due(())
    assert judge(NIGHTLY, "backup", record, utc("2026-05-06T00:29:59")) == Due(())
    assert judge(NIGHTLY, "backup", record, utc("2026-05-06T00:30")) == Due(("full",))
    more = NIGHTLY.model_copy(update={"incremental": "0 * * * *"})
    assert judge(more, "backup", record, utc("2026-05-05T20:00")) == Due(())
    later = first_seen(more, "backup", record, utc("2026-05-05T20:10"))
    assert later.served["full"] == record.served["full"]
    assert judge(more, "backup", later, utc("2026-05-05T21:00")) == Due(("incremental",))
    assert first_seen(more, "backup", later, utc("2026-05-05T21:00")) is later


def test_at_the_change_to_summer_time_a_swallowed_run_happens_once_right_after_the_gap() -> None:
    found = runs(NIGHTLY, utc("2026-03-28T12:00"), utc("2026-03-30T12:00"))
    assert found == [utc("2026-03-29T01:00"), utc("2026-03-30T00:30")]


def test_at_the_change_to_winter_time_a_run_in_the_doubled_hour_happens_once() -> None:
    found = runs(NIGHTLY, utc("2026-10-24T12:00"), utc("2026-10-26T12:00"))
    assert found == [utc("2026-10-25T00:30"), utc("2026-10-26T01:30")]


def test_hourly_runs_follow_real_time_through_both_changes() -> None:
    hourly = Schedule(timezone=BERLIN, incremental="0 * * * *")
    for start in (utc("2026-03-28T22:15"), utc("2026-10-24T22:15")):
        assert runs(hourly, start, start + 8 * HOUR) == [start + 45 * MINUTE + n * HOUR for n in range(8)]


def test_many_missed_runs_are_made_up_for_once() -> None:
    schedule = Schedule(timezone=BERLIN, full="30 2 * * 0", incremental="0 * * * *")
    record = seen(schedule, utc("2026-05-05T12:00"))
    now = utc("2026-05-25T10:17")  # the machine was off for three weeks
    due = judge(schedule, "backup", record, now)
    assert due.keys == ("full", "incremental")
    record = ran(record, due.keys, now)
    assert judge(schedule, "backup", record, now + MINUTE) == Due(())
    assert judge(schedule, "backup", record, utc("2026-05-25T11:00")) == Due(("incremental",))


def test_a_full_snapshot_answers_the_incremental_and_not_the_reverse() -> None:
    schedule = Schedule(full="0 2 * * 0", incremental="0 2 * * *")
    sunday = utc("2026-05-10T02:00")
    record = ran(seen(schedule, sunday - DAY), ("full",), sunday)
    assert judge(schedule, "backup", record, sunday + HOUR) == Due(())
    record = ran(seen(schedule, sunday - DAY), ("incremental",), sunday)
    assert judge(schedule, "backup", record, sunday + HOUR) == Due(("full",))


def test_what_comes_due_while_a_run_is_at_work_runs_after_it() -> None:
    schedule = Schedule(incremental="0 * * * *")
    start = utc("2026-05-05T02:00")
    record = ran(seen(schedule, start - MINUTE), ("incremental",), start, took=90 * MINUTE)
    assert judge(schedule, "backup", record, start + 90 * MINUTE) == Due(("incremental",))


def test_a_failure_is_tried_again_after_growing_pauses() -> None:
    start = utc("2026-05-06T00:30")
    record, now, pauses = seen(NIGHTLY, start - HOUR), start, []
    for _ in range(8):
        record = ran(record, ("full",), now, took=MINUTE, good=False)
        due = judge(NIGHTLY, "backup", record, now + MINUTE)
        assert due.keys == ("full",)
        assert due.wait is not None
        pauses.append(due.wait - (now + MINUTE))
        assert judge(NIGHTLY, "backup", record, due.wait).wait is None
        now = due.wait
    assert pauses[:4] == [FIRST_PAUSE, 3 * FIRST_PAUSE, 9 * FIRST_PAUSE, 27 * FIRST_PAUSE]
    assert max(pauses) == LONGEST_PAUSE
    assert ran(record, ("full",), now).failures == 0


def test_the_next_time_of_the_schedule_ends_a_pause_but_never_the_shortest_one() -> None:
    schedule = Schedule(incremental="*/10 * * * *")
    start = utc("2026-05-05T02:00")
    record = seen(schedule, start - MINUTE)
    for n in range(4):
        record = ran(record, ("incremental",), start + n * DAY, took=MINUTE, good=False)
    at = start + 3 * DAY
    assert judge(schedule, "backup", record, at + MINUTE).wait == at + 10 * MINUTE
    slow = ran(record, ("incremental",), at, took=9 * MINUTE, good=False)
    assert judge(schedule, "backup", slow, at + 10 * MINUTE).wait == at + 9 * MINUTE + FIRST_PAUSE


def test_an_attempt_that_died_counts_as_a_failure() -> None:
    start = utc("2026-05-06T00:30")
    record = begun(seen(NIGHTLY, start - HOUR), start)
    assert record.died
    assert judge(NIGHTLY, "backup", record, start + MINUTE) == Due(("full",), start + FIRST_PAUSE)
    again = begun(record, start + FIRST_PAUSE)
    assert again.failures == 1
    assert judge(NIGHTLY, "backup", again, start + FIRST_PAUSE).wait == start + 4 * FIRST_PAUSE


def test_a_clock_that_was_set_back_a_day_makes_everything_run_once() -> None:
    wrong = utc("2026-05-06T00:30")
    record = ran(seen(NIGHTLY, wrong - HOUR), ("full",), wrong)
    now = wrong - DAY + 5 * HOUR
    assert judge(NIGHTLY, "backup", record, now) == Due(("full",))
    record = ran(record, ("full",), now)
    assert judge(NIGHTLY, "backup", record, now + MINUTE) == Due(())
    assert judge(NIGHTLY, "backup", record, utc("2026-05-06T00:30")) == Due(("full",))


def test_a_failure_under_a_wrong_clock_keeps_nothing_back() -> None:
    wrong = utc("2030-01-01T00:00")
    record = ran(seen(NIGHTLY, wrong), ("full",), wrong, good=False)
    assert judge(NIGHTLY, "backup", record, utc("2026-05-06T00:00")) == Due(("full",))


def test_a_clock_that_is_put_right_by_minutes_makes_nothing_run_twice() -> None:
    start = utc("2026-05-06T00:30")
    record = ran(seen(NIGHTLY, start - HOUR), ("full",), start)
    assert judge(NIGHTLY, "backup", record, start - 20 * MINUTE) == Due(())


EXPRESSIONS = st.sampled_from(["*/7 * * * *", "0 * * * *", "30 2 * * *", "0 0 * * 1", "17 */5 * * *", "30 2 1 * *"])


@settings(deadline=None)
@given(
    EXPRESSIONS,
    st.sampled_from([BERLIN, "UTC", "Asia/Kolkata", "America/New_York", "Australia/Lord_Howe"]),
    st.lists(st.tuples(st.integers(1, 3000), st.booleans()), min_size=1, max_size=25),
)
def test_every_time_is_answered_by_the_first_good_run_after_it(expression: str, zone: str, wakes) -> None:
    """Whatever wakes it when: right after a good run nothing is due, and nothing stays unanswered when all goes well."""
    schedule = Schedule(timezone=zone, check=expression)
    now = utc("2026-03-27T12:00")
    record = seen(schedule, now, "check")
    answered = now - BETWEEN_LOOKS
    for minutes, good in wakes:
        now += minutes * MINUTE
        due = judge(schedule, "check", record, now)
        assert bool(due.keys) == (next_run(expression, zone, answered) <= now)
        if due.keys and due.wait is None:
            record = ran(record, due.keys, now, took=timedelta(0), good=good)
            if good:
                answered = now
                assert judge(schedule, "check", record, now) == Due(())
