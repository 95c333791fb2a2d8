"""Durations, sizes and percentages as people write them."""

from __future__ import annotations

import re
from datetime import timedelta

#: Regular expressions for editors (JSON Schema); the parsers below accept the same texts.
DURATION_PATTERN = r"^(?=[0-9])([0-9]{1,9}w)?([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$"
SIZE_PATTERN = r"^[0-9]{1,15}(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)$"
PERCENT_PATTERN = r"^(100(\.0{1,6})?|[0-9]{1,2}(\.[0-9]{1,6})?)%$"

DURATION_HELP = "a duration such as 30s, 15m, 1h30m, 7d or 2w"
SIZE_HELP = "a size such as 500kB, 20MiB or 1GiB"
PERCENT_HELP = "a share between 0% and 100%, such as 50%"

LONGEST = timedelta(days=36500)

_DURATION = re.compile(DURATION_PATTERN)
_SIZE = re.compile(SIZE_PATTERN)
_PERCENT = re.compile(PERCENT_PATTERN)
_SECONDS = (604800, 86400, 3600, 60, 1)
_BYTES = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}


def parse_duration(text: str) -> timedelta:
    """Weeks, days, hours, minutes and seconds, largest first, no spaces: `1h30m`. Raises ValueError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {DURATION_HELP}")
    counts = (int(group[:-1]) if group else 0 for group in match.groups())
    seconds = sum(count * unit for count, unit in zip(counts, _SECONDS, strict=True))
    if seconds > LONGEST.total_seconds():
        raise ValueError("must not be longer than 100 years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as that duration; less than a second is left out."""
    left, parts = int(duration.total_seconds()), []
    for unit, length in zip("wdhms", _SECONDS, strict=True):
        # 7d is what people write and mean; weeks only where nothing is left over.
        if left >= length and (unit != "w" or (left % length == 0 and left > length)):
            parts.append(f"{left // length}{unit}")
            left %= length
    return "".join(parts) or "0s"


def parse_size(text: str) -> int:
    """Bytes: a whole number and a unit, powers of 1000 (MB) or of 1024 (MiB). Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"must be {SIZE_HELP}")
    unit = match.group(1)
    return int(text[: -len(unit)]) * _BYTES[unit]


def parse_percent(text: str) -> float:
    """A share from 0.0 to 1.0. Raises ValueError."""
    if _PERCENT.fullmatch(text) is None:
        raise ValueError(f"must be {PERCENT_HELP}")
    return float(text[:-1]) / 100
