"""What a snapshot recorded against what its restored database holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from crmbackup.engines.base import Segment, TableRecord, Verification
from crmbackup.reports.drill import CheckResult, ObjectCount, SchemaResult, TableResult


def compare_tables(
    expected: Sequence[TableRecord], actual: Sequence[TableRecord], left_out: Mapping[str, str] = MappingProxyType({})
) -> list[TableResult]:
    """One result for each table of either side that holds rows, in the snapshot's order.

    left_out: names of those that need not be in the restored database, each with the reason.
    """
    found = {table.name: table for table in actual if not _is_view_of_others(table)}
    results = [
        _compare(record, found.pop(record.name, None), left_out)
        for record in expected
        if not _is_view_of_others(record)
    ]
    results += [
        TableResult(
            table.name,
            table.kind,
            "unexpected",
            None,
            table.rows,
            None,
            table.checksum,
            "the snapshot does not have it",
        )
        for table in found.values()
    ]
    return results


def compare_virtual(expected: Sequence[TableRecord], actual: Sequence[TableRecord]) -> list[CheckResult]:
    """Whether each virtual table that could be used in the source can be used in the restored database."""
    found = {table.name: table for table in actual}
    results = []
    for record in expected:
        if _is_view_of_others(record):
            seen = found.get(record.name)
            reason = "it is not in the restored database" if seen is None else seen.reason
            ok = seen is not None and not seen.unreadable
            results.append(CheckResult(f"virtual table {record.name}", ok, f"usable; {reason}" if ok else reason))
    return results


def _is_view_of_others(table: TableRecord) -> bool:
    """A virtual table holds no rows of its own: nothing of it is compared but what it is made of."""
    return table.kind == "virtual" and not table.unreadable


def _compare(expected: TableRecord, actual: TableRecord | None, left_out: Mapping[str, str]) -> TableResult:
    def result(status: str, detail: str) -> TableResult:
        return TableResult(
            name=expected.name,
            kind=expected.kind,
            status=status,  # type: ignore[arg-type]
            expected_rows=expected.rows,
            actual_rows=actual.rows if actual else None,
            expected_checksum=expected.checksum,
            actual_checksum=actual.checksum if actual else None,
            detail=detail or None,
        )

    if actual is None and expected.name in left_out:
        return result("left-out", left_out[expected.name])
    if actual is None:
        return result("missing", "it is not in the restored database")
    if expected.unreadable:
        if actual.unreadable:
            return result(
                "match", f"as in the source, its rows cannot be read ({expected.reason}); its pages are equal"
            )
        return result("mismatch", "it could not be read in the source, and can be now")
    if actual.unreadable:
        return result("unreadable", actual.reason)
    if expected.rows != actual.rows:
        return result("mismatch", _where(expected, actual) or "another number of rows")
    if expected.checksum != actual.checksum:
        return result("mismatch", _where(expected, actual) or "other rows")
    if expected.rows is None:
        return result("match", expected.reason)
    return result(
        "match", actual.reason if expected.checksum else "rows counted; no checksum was taken (checksums: pages)"
    )


def _where(expected: TableRecord, actual: TableRecord) -> str:
    """The rows that differ, as far as segments tell."""
    if len(expected.segments) != len(actual.segments) or len(expected.segments) < 2:
        return ""
    pairs = zip(expected.segments, actual.segments, strict=True)
    bad = [_range(want) for want, have in pairs if (want.rows, want.digest) != (have.rows, have.digest)]
    more = f" and {len(bad) - 3} more ranges" if len(bad) > 3 else ""
    return f"differs in rows {', '.join(bad[:3])}{more}" if bad else ""


def _range(segment: Segment) -> str:
    low = "start" if segment.low is None else str(segment.low + 1)
    high = "end" if segment.high is None else str(segment.high)
    return f"{low}..{high}"


def compare_schema(expected: Mapping[str, Any], actual: Verification) -> SchemaResult:
    """Digest and numbers of the objects, and settings that differ."""
    found: Mapping[str, Any] = actual.schema
    if found.get("without"):
        drilled: Mapping[str, Any] = expected.get("drilled", {})
        if drilled.get("without") == found["without"]:
            expected = {**expected, **drilled}
    kinds = sorted({*expected["objects"], *found["objects"]})
    counts = tuple(ObjectCount(kind, expected["objects"].get(kind, 0), found["objects"].get(kind, 0)) for kind in kinds)
    return SchemaResult(
        expected_digest=expected["digest"],
        actual_digest=found["digest"],
        objects=counts,
        differences=tuple(_settings(expected["settings"], found["settings"])),
    )


def _settings(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*expected, *actual}):
        if expected.get(name) != actual.get(name):
            yield f"{name} is {actual.get(name)!r} instead of {expected.get(name)!r}"
