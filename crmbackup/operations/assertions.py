"""A policy's questions to a restored database."""

from __future__ import annotations

from collections.abc import Callable

from crmbackup.core.errors import SourceError
from crmbackup.policy.model import Assertion, Range
from crmbackup.reports.drill import AssertionResult


def check_assertion(assertion: Assertion, query: Callable[[str], object]) -> AssertionResult:
    """Ask one question and compare the answer. SQL that fails is a failed assertion."""
    expected = assertion.expect
    try:
        actual = query(assertion.sql)
    except SourceError as error:
        return AssertionResult(assertion.name, assertion.sql, _text(expected), None, ok=False, error=str(error))
    return AssertionResult(assertion.name, assertion.sql, _text(expected), _text(actual), ok=matches(expected, actual))


def matches(expected: object, actual: object) -> bool:
    """Whether an answer is the expected one. Numbers compare by value, true and false are SQL's 1 and 0."""
    if isinstance(expected, Range):
        if not isinstance(actual, int | float):
            return False
        low, high = expected.min, expected.max
        return (low is None or actual >= low) and (high is None or actual <= high)
    if isinstance(expected, bool):
        return actual == int(expected) and isinstance(actual, int)
    if isinstance(expected, int | float):
        return isinstance(actual, int | float) and actual == expected
    return type(actual) is type(expected) and actual == expected


def _text(value: object) -> str | None:
    if value is None:
        return "NULL"
    if isinstance(value, Range):
        bounds = [
            f">= {value.min}" if value.min is not None else "",
            f"<= {value.max}" if value.max is not None else "",
        ]
        return " and ".join(bound for bound in bounds if bound)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value)
