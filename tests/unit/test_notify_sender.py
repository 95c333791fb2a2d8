"""The process that sends: when it tries again, and that what it says of failures holds nothing of an address."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.notify.sender import INSTALL, REASON_LENGTH, SECRET_LENGTH, Failed, Hopeless, attempt, scrub


class RunningClock:
    """Time passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> datetime:
        raise AssertionError

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.mark.parametrize(
    ("errors", "seconds", "tries", "why"),
    [
        ([], 30, 1, ""),
        ([Failed("no answer"), Failed("no answer")], 30, 3, ""),
        ([Failed("no answer")] * 9, 1000, 5, "no answer"),
        ([Failed("no answer")] * 9, 3, 2, "no answer"),
        ([Hopeless("no such check")], 1000, 1, "no such check"),
        ([ImportError("No module named 'apprise'")], 1000, 1, INSTALL),
        ([RuntimeError("https://host/secret")] * 9, 1000, 5, "RuntimeError"),
    ],
)
def test_it_tries_again_while_that_may_help_and_there_is_time(
    errors: list[Exception], seconds: float, tries: int, why: str
) -> None:
    made = 0
    left = list(errors)

    def once() -> None:
        nonlocal made
        made += 1
        if left:
            raise left.pop(0)

    assert attempt(once, RunningClock(), seconds) == why
    assert made == tries


part = st.text(st.characters(codec="ascii", categories=["L", "Nd"]), min_size=SECRET_LENGTH, max_size=20)


@given(st.lists(part, min_size=1, max_size=5), st.sampled_from("/:@?&=#,"), st.text(max_size=50), st.text(max_size=50))
def test_nothing_of_an_address_is_told(parts: list[str], sign: str, before: str, after: str) -> None:
    url = f"slack://{sign.join(parts)}"
    text = scrub(f"{before}{url}{after}{parts[0]} {parts[-1]}", url)
    assert len(text) <= REASON_LENGTH + 4
    known = scrub(f"{before}{after}", "x://")
    for each in parts:
        assert text.count(each) <= known.count(each) or each in "***"


def test_encoded_passwords_are_found_in_both_forms() -> None:
    url = "mailtos://bob:p%40ss%2Fword@example.org?to=ops@example.org"
    text = scrub("login of bob with p@ss/word or p%40ss%2Fword at example.org failed", url)
    assert "ss" not in text
    assert scrub("the server answered 404", "https://hc-ping.com/abc") == "the server answered 404"
