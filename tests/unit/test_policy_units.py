from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.policy import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("0s", 0)],
)
def test_durations(text: str, seconds: int) -> None:
    assert units.parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1m1h", "1.5h", "-1h", "1h 30m", "1H", "30s\n", "٣s", "999999999w"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0B", 0), ("500kB", 500_000), ("20MiB", 20 * 2**20), ("5MB", 5_000_000), ("1GiB", 2**30), ("2TiB", 2**41)],
)
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20", "MiB", "1.5GiB", "20 MiB", "20mib", "-1MB", "20MiB/s", "20MiB\n"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "share"), [("0%", 0), ("50%", 0.5), ("12.5%", 0.125), ("100%", 1), ("100.0%", 1)])
def test_percentages(text: str, share: float) -> None:
    assert units.parse_percent(text) == share


@pytest.mark.parametrize("text", ["", "50", "%", "101%", "100.1%", "-1%", "50 %", "50%\n", "nan%"])
def test_no_percentages(text: str) -> None:
    with pytest.raises(ValueError, match="must be a share"):
        units.parse_percent(text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_duration_parts_add_up(w: int, d: int, h: int, m: int, s: int) -> None:
    assert units.parse_duration(f"{w}w{d}d{h}h{m}m{s}s") == timedelta(weeks=w, days=d, hours=h, minutes=m, seconds=s)


@given(st.text(alphabet="0123456789wdhmskMGTiB.%- \n", max_size=12))
def test_parsers_agree_with_the_patterns_that_editors_use(text: str) -> None:
    for parse, pattern in (
        (units.parse_duration, units.DURATION_PATTERN),
        (units.parse_size, units.SIZE_PATTERN),
        (units.parse_percent, units.PERCENT_PATTERN),
    ):
        try:
            parse(text)
            accepted = True
        except ValueError as error:
            accepted = "longer than 100 years" in str(error)
        assert accepted == bool(re.fullmatch(pattern, text))
