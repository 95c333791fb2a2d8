"""Time: the one form in which it is stored, and the machine's clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.clock import Clock, SystemClock, from_text, to_text

# strftime does not pad years before 1000; no backup is that old.
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
moments = st.timedeltas(timedelta(0), timedelta(days=365 * 8_000)).map(lambda age: EPOCH + age)
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(moment=moments, zone=offsets)
def test_text_gives_the_moment_back_whatever_its_zone(moment: datetime, zone: timezone) -> None:
    text = to_text(moment.astimezone(zone))
    assert text == to_text(moment)
    assert from_text(text) == moment
    assert from_text(text).tzinfo is UTC


@given(first=moments, second=moments)
def test_texts_sort_like_their_moments(first: datetime, second: datetime) -> None:
    assert (to_text(first) < to_text(second)) == (first < second)


def test_the_form_is_fixed() -> None:
    assert to_text(datetime(2026, 3, 29, 1, 2, 3, 40, tzinfo=UTC)) == "2026-03-29T01:02:03.000040Z"


@pytest.mark.parametrize(
    "text", ["", "2026-03-29", "2026-03-29T01:02:03Z", "2026-03-29T01:02:03.000040", "2026-13-29T01:02:03.000040Z"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not match format"):
        from_text(text)


def test_the_machines_clock_is_aware_and_goes_on() -> None:
    clock: Clock = SystemClock()
    before, started = clock.now(), clock.monotonic()
    clock.sleep(0.01)
    assert clock.monotonic() - started >= 0.01
    assert before.tzinfo is UTC
    assert abs(before - datetime.now(UTC)) < timedelta(minutes=1)
