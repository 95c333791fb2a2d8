"""Which snapshots stay: by golden tables, and by what must hold for any snapshots and rules."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.policy.model import Retention
from crmbackup.policy.retention import Candidate, Decision, decide, has_rules
from crmbackup.policy.units import format_duration, parse_duration

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
PERIODS = ("hourly", "daily", "weekly", "monthly", "quarterly", "yearly")


def taken(*moments: str, full: bool = True) -> list[Candidate]:
    """Snapshots named by their own moment, UTC."""
    return [Candidate(text, datetime.fromisoformat(text).replace(tzinfo=UTC), full) for text in moments]


def kept(decisions: tuple[Decision, ...]) -> dict[str, tuple[str, ...]]:
    return {each.candidate.snapshot_id: each.reasons for each in decisions if each.keep}


def gone(decisions: tuple[Decision, ...]) -> dict[str, str]:
    return {each.candidate.snapshot_id: each.reasons[0] for each in decisions if not each.keep}


def test_without_a_rule_everything_stays() -> None:
    found = decide(taken("2020-01-01", "2026-03-01"), Retention(min_copies=1), now=NOW, timezone="UTC")
    assert gone(found) == {}
    assert kept(found)["2020-01-01"] == ("no retention rule",)


def test_a_year_of_days_by_the_usual_rules() -> None:
    moments = [f"{NOW - timedelta(days=days):%Y-%m-%dT02:00}" for days in range(400)]
    rules = Retention(keep_last=2, daily=3, weekly=3, monthly=3, quarterly=2, yearly=2, min_copies=1)
    found = decide(taken(*moments), rules, now=NOW, timezone="UTC")
    assert kept(found) == {
        "2026-03-31T02:00": (
            *("newest", "newest full", "keep_last 2", "daily 2026-03-31", "weekly 2026-W14", "monthly 2026-03"),
            *("quarterly 2026-Q1", "yearly 2026"),
        ),
        "2026-03-30T02:00": ("keep_last 2", "daily 2026-03-30"),
        "2026-03-29T02:00": ("daily 2026-03-29", "weekly 2026-W13"),
        "2026-03-22T02:00": ("weekly 2026-W12",),
        "2026-02-28T02:00": ("monthly 2026-02",),
        "2026-01-31T02:00": ("monthly 2026-01",),
        "2025-12-31T02:00": ("quarterly 2025-Q4", "yearly 2025"),
    }
    why = gone(found)
    assert why["2026-03-28T02:00"] == "2026-03-29T02:00 of the same week stays"
    assert why["2026-02-27T02:00"] == "2026-02-28T02:00 of the same month stays"
    assert why["2025-06-01T02:00"] == "2025-12-31T02:00 of the same year stays"


@pytest.mark.parametrize(
    ("zone", "hourly", "daily"),
    [
        # 2025-10-26: at 03:00 CEST clocks in Berlin go back to 02:00 CET. 00:30 and 01:30 UTC are both 02:30 there.
        ("Europe/Berlin", ["2025-10-26T01:30", "2025-10-26T00:30"], ["2025-10-26T01:30", "2025-10-25T21:30"]),
        ("UTC", ["2025-10-26T01:30", "2025-10-26T00:30"], ["2025-10-26T01:30", "2025-10-25T23:30"]),
    ],
)
def test_days_and_hours_are_those_of_the_zone_and_a_doubled_hour_is_two(
    zone: str, hourly: list[str], daily: list[str]
) -> None:
    snapshots = taken("2025-10-25T21:30", "2025-10-25T23:30", "2025-10-26T00:30", "2025-10-26T01:30")
    for rules, expected in (
        (Retention(hourly=2, min_copies=1), hourly),
        (Retention(daily=2, min_copies=1), daily),
    ):
        assert list(kept(decide(snapshots, rules, now=NOW, timezone=zone))) == expected


def test_the_hour_that_is_left_out_in_spring_makes_no_difference() -> None:
    # 2026-03-29: 01:00 UTC is 03:00 in Berlin, there is no 02:30.
    snapshots = taken("2026-03-28T23:30", "2026-03-29T00:30", "2026-03-29T01:30", "2026-03-29T02:30")
    found = kept(decide(snapshots, Retention(hourly=3, min_copies=1), now=NOW, timezone="Europe/Berlin"))
    assert [reasons[-1] for reasons in found.values()] == [
        "hourly 2026-03-29 04:00+0200",
        "hourly 2026-03-29 03:00+0200",
        "hourly 2026-03-29 01:00+0100",
    ]


def test_within_reaches_back_from_the_newest_not_from_now() -> None:
    """Backups that stopped a year ago are not worn away by time."""
    snapshots = taken("2025-01-01", "2025-01-05", "2025-01-08")
    found = decide(snapshots, Retention.model_validate({"within": "3d", "min_copies": 1}), now=NOW, timezone="UTC")
    assert list(kept(found)) == ["2025-01-08", "2025-01-05"]
    assert "within 3d" in kept(found)["2025-01-05"]


def test_what_is_dated_in_the_future_stays_and_counts_for_nothing() -> None:
    snapshots = taken("2026-03-01", "2026-03-02", "2026-03-03", "2027-01-01", "2028-01-01")
    found = decide(snapshots, Retention(keep_last=1, min_copies=2), now=NOW, timezone="UTC")
    assert list(kept(found)) == ["2028-01-01", "2027-01-01", "2026-03-03", "2026-03-02"]
    assert kept(found)["2027-01-01"] == ("dated in the future",)

    # They go when that is asked for, by the later of two clocks, if enough others are there; pinned ones stay.
    pinned = Candidate("pinned", datetime(2029, 1, 1, tzinfo=UTC), full=True, pin="pinned: for the auditor")
    rules, later = Retention(min_copies=3), datetime(2027, 6, 1, tzinfo=UTC)
    found = decide([*snapshots, pinned], rules, now=NOW, timezone="UTC", drop_after=later)
    assert gone(found) == {"2028-01-01": "dated in the future"}
    found = decide([*snapshots[1:], pinned], rules, now=NOW, timezone="UTC", drop_after=NOW)
    assert gone(found) == {}


def test_the_newest_full_the_newest_proved_and_pinned_ones_stay() -> None:
    old = taken("2026-01-01", "2026-01-02")
    young = taken("2026-02-01", "2026-02-02", "2026-02-03", full=False)
    pinned = Candidate("pinned", datetime(2019, 1, 1, tzinfo=UTC), full=True, pin="pinned: for the auditor")
    proved = {"2026-01-01", "2026-02-01"}
    found = decide([*young, pinned, *old], Retention(keep_last=1, min_copies=1), now=NOW, timezone="UTC", proved=proved)
    assert kept(found) == {
        "2026-02-03": ("newest", "keep_last 1"),
        "2026-02-01": ("newest that passed a drill",),
        "2026-01-02": ("newest full",),
        "pinned": ("pinned: for the auditor",),
    }


def test_what_is_not_whole_counts_for_nothing_and_goes_only_when_asked_for() -> None:
    flawed = Candidate("flawed", datetime(2026, 3, 30, tzinfo=UTC), full=True, flaw="1 of 3 packs missing or cut")
    rules = Retention(keep_last=1, min_copies=2)
    whole = taken("2026-03-01", "2026-03-02", "2026-03-03")
    found = decide([flawed, *whole], rules, now=NOW, timezone="UTC", proved=["flawed"])
    assert list(kept(found)) == ["flawed", "2026-03-03", "2026-03-02"]
    found = decide([flawed, *whole], rules, now=NOW, timezone="UTC", drop_flawed=True)
    assert gone(found)["flawed"] == "not whole: 1 of 3 packs missing or cut"
    # With too few whole ones even a flawed one is better than nothing.
    found = decide([flawed, *whole[:1]], rules, now=NOW, timezone="UTC", drop_flawed=True)
    assert gone(found) == {}


# Properties

DAY = datetime(2024, 12, 1, tzinfo=UTC)
moments = st.integers(0, 550 * 86400).map(lambda seconds: DAY + timedelta(seconds=seconds))
rules = st.fixed_dictionaries(
    {"min_copies": st.integers(1, 4)},
    optional={
        "keep_last": st.integers(0, 4),
        "within": st.integers(1, 10**7).map(lambda seconds: f"{seconds}s"),
        **{name: st.integers(0, 4) for name in PERIODS},
    },
).map(Retention.model_validate)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia"])


@st.composite
def histories(draw: st.DrawFn) -> list[Candidate]:
    numbers: Iterator[int] = count()
    return [
        Candidate(
            snapshot_id=f"{next(numbers):016x}",
            captured=moment,
            full=draw(st.booleans()),
            flaw=draw(st.sampled_from(["", "", "", "1 of 2 packs missing or cut"])),
            pin=draw(st.sampled_from(["", "", "", "pinned: x"])),
        )
        for moment in draw(st.lists(moments, max_size=25))
    ]


@settings(max_examples=150, deadline=None)
@given(histories(), rules, zones, st.sets(st.integers(0, 25).map(lambda n: f"{n:016x}")), st.booleans())
def test_what_must_hold_for_all(
    snapshots: list[Candidate], chosen: Retention, zone: str, proved: set[str], drop: bool
) -> None:
    found = decide(snapshots, chosen, now=NOW, timezone=zone, proved=proved, drop_flawed=drop)
    keep = [each.candidate for each in found if each.keep]
    remove = [each.candidate for each in found if not each.keep]
    assert len(keep) + len(remove) == len(snapshots)
    assert {each.snapshot_id for each in keep + remove} == {each.snapshot_id for each in snapshots}
    assert all(each.reasons if each.keep else len(each.reasons) == 1 for each in found)
    good = [each for each in snapshots if not each.flaw and each.captured <= NOW]
    good_kept = [each for each in keep if each in good]
    assert len(good_kept) >= min(chosen.min_copies, len(good))
    assert not any(each.pin or each.captured > NOW for each in remove)
    for needed in (good, [each for each in good if each.full], [e for e in good if e.snapshot_id in proved]):
        if needed:
            latest = max(each.captured for each in needed)
            assert any(each.captured == latest for each in good_kept if each in needed)
    # Twice removes nothing more, and neither does a later moment when no snapshot was in the future.
    later = NOW + (timedelta(days=4000) if all(each.captured <= NOW for each in snapshots) else timedelta())
    again = decide(keep, chosen, now=later, timezone=zone, proved=proved, drop_flawed=drop)
    assert all(each.keep for each in again)
    # More generous rules keep what stricter ones keep.
    more = chosen.model_copy(update={name: getattr(chosen, name) + 1 for name in ("keep_last", "min_copies", *PERIODS)})
    generous = decide(snapshots, more, now=NOW, timezone=zone, proved=proved)
    if has_rules(chosen):
        assert {each.snapshot_id for each in keep} <= {each.candidate.snapshot_id for each in generous if each.keep}


@given(st.integers(0, 3 * 10**9))
def test_durations_are_read_as_they_are_written(seconds: int) -> None:
    assert parse_duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)
