"""Values of databases as they compare with what stands in a policy."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal


def plain(value: object) -> object:
    """As a number, text, or truth; None stays."""
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
