"""Drill reports for tests: three told by hand, and a strategy for any."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from crmbackup.reports.drill import (
    AssertionResult,
    CheckResult,
    DrillError,
    DrillInfo,
    DrillReport,
    NotCovered,
    ObjectCount,
    Objectives,
    People,
    PhaseTiming,
    RepositoryReading,
    SchemaResult,
    SourceInfo,
    TableResult,
    TargetInfo,
    Verdicts,
)

START = datetime(2026, 7, 1, 3, 0, 0, 125000, tzinfo=UTC)
HOSTILE = [
    "<script>alert('x')</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></table></body><h1>PASSED</h1>",
    "gpj.elif\u202egnp\u202c\u2066",
    "two\nlines\r\n\tand\x00\x1b[31m nul",
    "a" * 500,
    "{{ 7 * 7 }}{% raw %}",
    "&lt;&amp;amp;",
    "\u2028\ufeff\u200b",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e" * 12,
    "",
]


def timings(*parts: tuple[str, float]) -> tuple[PhaseTiming, ...]:
    """Phases one after the other."""
    result, moment = [], START
    for phase, seconds in parts:
        result.append(PhaseTiming(phase, moment, seconds))
        moment += timedelta(seconds=seconds)
    return tuple(result)


def table(name: str, rows: int) -> TableResult:
    """A table that came back as it was."""
    checksum = f"{hash_of(name):032x}"
    return TableResult(name, "table", "match", rows, rows, checksum, checksum)


def hash_of(name: str) -> int:
    """A number that looks like a checksum."""
    return int.from_bytes((name * 16).encode()[:16].ljust(16, b"\x5a")) * 0x9E3779B97F4A7C15 % 2**128


NAMES = ["accounts", "contacts", "leads", "opportunities", "cases", "calls", "meetings", "notes", "tasks", "emails"]
NAMES += ["users", "roles", "documents"]

PASSING = DrillReport(
    drill=DrillInfo(
        id="drill-20260701T030000Z-5f1c",
        quarter="2026-Q3",
        type="isolated restore",
        trigger="schedule",
        policy="crm-prod",
        tool_version="0.1.0",
        policy_sha256="9b" * 32,
        previous_report_sha256="4c" * 32,
    ),
    people=People(operator="Dana Novak"),
    source=SourceInfo(
        repository="s3://crm-backups/prod",
        repository_id="7d0f3a52c1b94e0d",
        snapshot_id="20260701T020000Z-a81f20",
        kind="incremental",
        captured_at=datetime(2026, 7, 1, 2, 0, 0, 0, tzinfo=UTC),
        parent="20260701T010000Z-77e0b1",
        engine="sqlite",
        engine_version="3.46.1",
        position="change counter 88213",
        host="crm-01.example.org",
        signer="crm-01",
    ),
    target=TargetInfo(
        kind="new directory",
        host="drill-01.example.org",
        directory="/var/lib/crmbackup/drills/5f1c",
        isolation=("a new directory, mode 0700", "the live database's path was refused as a target"),
        engine_version="3.51.0",
        empty_before=True,
        destroyed=True,
    ),
    timings=timings(("open repository", 0.41), ("read packs", 38.2), ("write pages", 12.9), ("verify tables", 21.7)),
    objectives=Objectives(3600.0, 74.6, 86400.0, 3600.1, "age of the snapshot when the drill began"),
    repository=RepositoryReading(objects_read=61, bytes_read=1_482_119_002, frames_verified=5_920),
    tables=tuple(table(name, 7 ** (index % 8) + 1200 * index) for index, name in enumerate(NAMES)),
    schema=SchemaResult("aa" * 32, "aa" * 32, (ObjectCount("table", 13, 13), ObjectCount("index", 41, 41))),
    checks=(
        CheckResult("image_digest", True, "361,846 pages"),
        CheckResult("integrity_check", True),
        CheckResult("foreign_key_check", True),
    ),
    assertions=(
        AssertionResult("someone can log in", "SELECT count(*) > 0\nFROM users\nWHERE active = 1", "1", "1", True),
    ),
    not_covered=(NotCovered("uploaded files", "the policy protects the database only"),),
    verdicts=Verdicts("passed", "passed", "met"),
    started_at=START,
    finished_at=START + timedelta(seconds=76.3),
)

FAILING = replace(
    PASSING,
    tables=(
        *PASSING.tables[:9],
        replace(PASSING.tables[9], status="mismatch", actual_rows=40_357, actual_checksum="0badc0de" * 4),
        replace(PASSING.tables[10], status="missing", actual_rows=None, actual_checksum=None),
        TableResult("tmp_import", "table", "unexpected", None, 17, None, "1234" * 8),
        replace(
            PASSING.tables[11], status="unreadable", actual_rows=None, actual_checksum=None, detail="disk I/O error"
        ),
        PASSING.tables[12],
    ),
    schema=replace(PASSING.schema, actual_digest="bb" * 32, differences=("index accounts_name is missing",)),
    checks=(*PASSING.checks[:2], CheckResult("foreign_key_check", False, "3 rows of contacts point at no account")),
    assertions=(
        *PASSING.assertions,
        AssertionResult(
            "recent orders", "SELECT max(created) FROM orders", "> 2026-06-30", None, False, "no such table"
        ),
    ),
    objectives=Objectives(60.0, 74.6, 1800.0, 3600.1, "age of the snapshot when the drill began"),
    verdicts=Verdicts("passed", "failed", "missed"),
)

BROKEN = DrillReport(
    drill=replace(PASSING.drill, policy_sha256=None, previous_report_sha256=None),
    people=People(),
    source=SourceInfo(repository="s3://crm-backups/prod"),
    target=None,
    verdicts=Verdicts("failed", "not-run", "not-set"),
    started_at=START,
    finished_at=START + timedelta(seconds=2),
    error=DrillError("storage-denied", "cannot list snapshots: access denied", "check the credentials"),
)

# Everything but surrogates: what JSON in UTF-8 can hold. Hostile samples come up often.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(HOSTILE)
MOMENTS = st.integers(0, 2**53).map(
    lambda microseconds: datetime(1990, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    if isinstance(hint, UnionType):
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        return st.none() | values_of(inner)
    if get_origin(hint) is tuple:
        return st.lists(values_of(get_args(hint)[0]), max_size=2).map(tuple)
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(hint, **{field.name: values_of(hints[field.name]) for field in fields(hint)})
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: TEXTS,
        int: st.integers(-(2**63), 2**63),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        datetime: MOMENTS,
    }
    return plain[hint]


REPORTS = values_of(DrillReport)
