"""Numbers, moments and names as text for people."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

MINUTE = 60
HOUR = 3600
DAY = 86400
#: Control, format (bidirectional overrides, zero width), surrogate, private use, line and paragraph separators.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def duration(seconds: float | None) -> str:
    """Two units at most: "0.41 s", "38.2 s", "4 min 12 s", "1 h", "1 h 2 min", "3 d 4 h"; a dash when not known."""
    if seconds is None:
        return "\N{EN DASH}"
    if seconds < 0:
        return f"\N{MINUS SIGN}{duration(-seconds)}"
    whole = round(seconds)
    if whole < MINUTE:
        if seconds == whole:
            return f"{whole} s"
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    if whole < HOUR:
        return _two(whole // MINUTE, "min", whole % MINUTE, "s")
    if whole < DAY:
        return _two(whole // HOUR, "h", whole % HOUR // MINUTE, "min")
    return _two(whole // DAY, "d", whole % DAY // HOUR, "h")


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large:,} {large_unit} {small} {small_unit}" if small else f"{large:,} {large_unit}"


def size(count: int) -> str:
    """Bytes in binary units with three digits or so: "812 B", "1.38 GiB"."""
    value = float(count)
    if abs(value) < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if abs(value) < 1000 or unit == "PiB":
            break
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f} {unit}"


def number(count: int | None) -> str:
    """A count with thousands separators; a dash when not known."""
    return "\N{EN DASH}" if count is None else f"{count:,}"


def difference(expected: int | None, actual: int | None) -> str:
    """How many more or fewer there are, like "+3"; nothing when equal or not known."""
    if expected is None or actual is None or expected == actual:
        return ""
    sign = "+" if actual > expected else "\N{MINUS SIGN}"
    return f"{sign}{abs(actual - expected):,}"


def moment(value: datetime | None) -> str:
    """Date and time in UTC to the second; a dash when not known."""
    return "\N{EN DASH}" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with every character that cannot be seen, or that moves others about, as `\u27e8U+202E\u27e9`.

    Names come from databases: without this one could hide parts of itself or show itself backwards. With `lines`, line
    feeds and tabs stay. An empty text becomes `\u27e8empty\u27e9`.
    """
    if not text:
        return "\u27e8empty\u27e9"
    kept = "\n\t" if lines else ""
    return "".join(
        character
        if character in kept or unicodedata.category(character) not in INVISIBLE
        else f"\u27e8U+{ord(character):04X}\u27e9"
        for character in text
    )


def counted(count: int, one: str, many: str = "") -> str:
    """A number with its noun, like "1 table" or "2 tables"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
