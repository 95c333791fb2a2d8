"""Who is told what, and when again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from crmbackup.notify.decide import Receiver, forget_others, messages, note_told, record_run
from crmbackup.notify.ledger import ActionRecord
from crmbackup.notify.report import BODY_LENGTH, Outcome, Past, RunReport, body, title

START = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
HOUR = 3600.0
GOOD = RunReport("crm", "backup", "ab" * 8, "crm1", "/srv/backup", START, 12.3, "success")
BAD = replace(
    GOOD, outcome="failure", exit_code=3, error_code="source-missing", error_text="it is gone", error_hint="mount it"
)
WARNED = replace(GOOD, outcome="warning", warnings=(("full-instead", "a full one was taken"),))
ALL = Receiver("all", frozenset({"failure", "recovery", "warning", "drill", "success"}))
USUAL = Receiver("usual", frozenset({"failure", "recovery", "warning"}))


class Desk:
    """Tells one receiver of one run after another, a day of silence about what goes on."""

    def __init__(self, receiver: Receiver = USUAL) -> None:
        self.receiver = receiver
        self.record = ActionRecord()

    def tell(self, report: RunReport, hours: float, arrives: bool = True) -> str:
        now = hours * HOUR
        was_failing = self.record.failing_since is not None
        record_run(self.record, report, now)
        found = messages(self.record, was_failing, report, [self.receiver], now, 24 * HOUR)
        for receiver, kind in found if arrives else []:
            note_told(self.record, report, receiver, kind, now)
        forget_others(self.record, report, [self.receiver])
        return " ".join(kind for _, kind in found)


def test_a_failure_that_goes_on_is_told_once_a_day_and_its_end_once() -> None:
    desk = Desk()
    told = [desk.tell(BAD, hour) for hour in range(1, 51)]
    assert [hour for hour, kind in enumerate(told, 1) if kind] == [1, 25, 49]
    assert set(told) == {"failure", ""}
    assert (desk.record.failures, desk.record.failing_since) == (50, HOUR)
    assert [desk.tell(GOOD, hour) for hour in (51, 52)] == ["recovery", ""]
    assert (desk.record.failures, desk.record.failing_since, desk.record.told) == (0, None, {})


def test_what_fails_each_night_is_told_each_night_though_no_two_runs_take_equally_long() -> None:
    desk = Desk()
    assert [desk.tell(BAD, hour) for hour in (4.5, 28.4, 52.6, 76.4, 77)] == ["failure"] * 4 + [""]
    assert [desk.tell(WARNED, hour) for hour in (100.5, 124.4, 148.1, 148.5)] == ["recovery", "warning", "warning", ""]


def test_another_error_is_news() -> None:
    desk = Desk()
    other = replace(BAD, error_code="storage-full")
    assert [desk.tell(report, 1) for report in (BAD, other, other, BAD)] == ["failure", "failure", "", "failure"]


def test_what_did_not_arrive_is_told_again() -> None:
    desk = Desk()
    assert desk.tell(BAD, 1, arrives=False) == "failure"
    assert desk.tell(BAD, 2) == "failure"
    assert desk.tell(GOOD, 3, arrives=False) == "recovery"
    assert desk.tell(GOOD, 4) == "recovery"
    assert desk.tell(GOOD, 5) == ""


def test_who_was_told_of_no_failure_hears_of_no_recovery() -> None:
    desk = Desk()
    desk.tell(BAD, 1, arrives=False)
    assert desk.tell(GOOD, 2) == ""
    only_ends = Desk(Receiver("r", frozenset({"recovery"})))
    assert [only_ends.tell(report, 1) for report in (BAD, BAD, GOOD, GOOD)] == ["", "", "recovery", ""]


def test_warnings_are_told_when_they_are_new_or_a_day_old() -> None:
    desk = Desk()
    assert [desk.tell(WARNED, hour) for hour in (1, 2, 24, 26, 27)] == ["warning", "", "", "warning", ""]
    more = replace(WARNED, warnings=(*WARNED.warnings, ("log-failed", "no")))
    assert desk.tell(more, 28) == "warning"
    assert desk.tell(GOOD, 29) == ""
    assert desk.tell(more, 30) == "warning"


def test_a_recovery_with_warnings_is_one_message() -> None:
    desk = Desk()
    assert [desk.tell(report, hour) for hour, report in enumerate((BAD, WARNED, WARNED))] == ["failure", "recovery", ""]


def test_drills_are_told_however_they_end() -> None:
    desk = Desk(Receiver("r", frozenset({"drill"})))
    good, bad = replace(GOOD, action="drill"), replace(BAD, action="drill")
    assert [desk.tell(report, 1) for report in (good, good, bad, bad, good)] == ["drill"] * 5
    assert desk.tell(GOOD, 2) == ""
    both = Desk(ALL)
    assert [both.tell(report, 1) for report in (good, bad, bad, good)] == ["drill", "failure", "drill", "recovery"]


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    desk = Desk()
    assert desk.tell(BAD, 1000) == "failure"
    assert desk.tell(BAD, 1) == "failure"


@given(
    st.lists(st.tuples(st.sampled_from([GOOD, BAD, WARNED]), st.booleans(), st.integers(0, 40)), max_size=40),
    st.sampled_from([USUAL, ALL]),
)
def test_nobody_is_left_with_a_failure_that_is_over(
    runs: list[tuple[RunReport, bool, int]], receiver: Receiver
) -> None:
    """Whatever arrives and what does not: the last message about failures that arrived tells the truth in the end."""
    desk = Desk(receiver)
    hours = 0
    believed: Outcome = "success"
    for report, arrives, pause in runs:
        hours += pause
        kind = desk.tell(report, hours, arrives)
        if arrives and kind in ("failure", "recovery"):
            assert (kind == "failure") == (report.outcome == "failure")
            believed = "failure" if kind == "failure" else "success"
    assert (desk.tell(GOOD, hours + 1) == "recovery") == (believed == "failure")
    assert desk.record.told == {}


def test_receivers_that_are_gone_are_forgotten() -> None:
    record = ActionRecord(told={"old": [1.0, "x"]}, warned={"old": [1.0, "y"]})
    forget_others(record, BAD, [USUAL])
    assert (record.told, record.warned) == ({}, {})


# Words


def test_a_message_says_what_one_asks_first() -> None:
    past = Past(START - timedelta(hours=30), START - timedelta(hours=5), 3)
    assert title(BAD, "failure") == "crmbackup crm: backup FAILED (source-missing)"
    text = body(BAD, past, "7:abc")
    assert text.splitlines()[0].endswith("source-missing: it is gone")
    for part in ("mount it", "30 hours before", "3 runs", "crm1", "/srv/backup", "Exit code", "ab" * 8, "7:abc"):
        assert part in text
    assert "none is known" in body(BAD, Past(), "")
    assert title(GOOD, "recovery") == "crmbackup crm: backup works again"
    assert "Had failed" in body(GOOD, past, "")
    assert ", took " in body(GOOD, past, "")
    assert ", took " not in body(replace(BAD, seconds=None), past, "")  # it was killed: nobody knows
    assert title(WARNED, "warning") == "crmbackup crm: backup done, with warnings (full-instead)"
    assert title(replace(BAD, action="drill"), "drill") == "crmbackup crm: drill FAILED"
    assert title(replace(GOOD, action="drill"), "drill") == "crmbackup crm: drill passed"


@given(st.text(max_size=300), st.integers(0, 100))
def test_nothing_in_a_message_is_too_long_or_steers_a_terminal(text: str, times: int) -> None:
    report = replace(BAD, error_text=text * times, details=(("Detail", text),))
    found = body(report, Past(), "")
    assert len(found) <= BODY_LENGTH
    assert all(char.isprintable() or char == "\n" for char in found)
    assert "\n" not in title(report, "failure")
