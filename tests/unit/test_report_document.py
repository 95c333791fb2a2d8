from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import ObjectDamaged, RepositoryTooNew
from crmbackup.reports.document import from_document, to_document
from crmbackup.reports.drill import (
    AssertionResult,
    CheckResult,
    DrillReport,
    Objectives,
    SchemaResult,
    TableResult,
    Verdicts,
    judge_objectives,
    judge_validation,
    quarter_of,
)
from tests.unit.report_examples import BROKEN, FAILING, PASSING, REPORTS


@settings(deadline=None, max_examples=60)
@given(REPORTS)
def test_a_report_survives_the_way_through_json(report: DrillReport) -> None:
    assert from_document(parse_json(canonical_json(to_document(report)))) == report


@pytest.mark.parametrize("report", [PASSING, FAILING, BROKEN])
def test_the_examples_survive_too(report: DrillReport) -> None:
    assert from_document(to_document(report)) == report


def test_the_top_level_is_pinned() -> None:
    assert list(to_document(BROKEN)) == [
        "schema_version", "drill", "people", "source", "target", "verdicts", "started_at", "finished_at", "timings",
        "objectives", "repository", "tables", "schema", "checks", "assertions", "not_covered", "error",
    ]  # fmt: skip
    assert to_document(BROKEN)["schema_version"] == 1
    assert to_document(BROKEN)["started_at"] == "2026-07-01T03:00:00.125000Z"


def test_a_name_that_is_not_text_does_not_lose_the_report() -> None:
    report = replace(PASSING, tables=(replace(PASSING.tables[0], name="caf\udce9"),))
    again = from_document(parse_json(canonical_json(to_document(report))))
    assert again.tables[0].name == "caf\\udce9"


def paths(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where every key and list item of a JSON value is."""
    found: list[tuple[object, ...]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(*path, key), *paths(inner, (*path, key))]
    return found


@given(st.data())
def test_a_document_of_another_form_is_damaged(data: st.DataObject) -> None:
    document = copy.deepcopy(to_document(FAILING))
    *way, last = data.draw(st.sampled_from(paths(document)))
    node: object = document
    for step in way:
        node = node[step]  # type: ignore[index]
    if isinstance(node, dict) and data.draw(st.booleans()):
        del node[last]
    else:
        node[last] = data.draw(st.sampled_from([{"x": 1}, [[]], object, b"", -1.5j]))  # type: ignore[index]
    with pytest.raises(ObjectDamaged):
        from_document(document)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 0),
        ("schema_version", True),
        ("schema_version", "1"),
        ("started_at", "yesterday"),
        ("started_at", 5),
        ("verdicts", {"restore": "fine", "validation": "passed", "objectives": "met"}),
        ("more", 1),
    ],
)
def test_wrong_values_are_damage(key: str, value: object) -> None:
    with pytest.raises(ObjectDamaged):
        from_document(to_document(PASSING) | {key: value})


@pytest.mark.parametrize("document", [None, [], "report", 1])
def test_something_else_is_damage(document: object) -> None:
    with pytest.raises(ObjectDamaged):
        from_document(document)


def test_a_later_form_is_told_apart() -> None:
    with pytest.raises(RepositoryTooNew, match="form 2"):
        from_document(to_document(PASSING) | {"schema_version": 2, "new": 1})


@pytest.mark.parametrize(
    "report",
    [
        replace(PASSING, started_at=PASSING.started_at.replace(tzinfo=None)),
        replace(PASSING, objectives=Objectives(rto_actual_s=float("nan"))),
    ],
)
def test_what_cannot_be_told_is_refused(report: DrillReport) -> None:
    with pytest.raises(ValueError, match="drill report cannot hold"):
        to_document(report)


@pytest.mark.parametrize(
    ("restore", "validation", "passed"),
    [
        ("passed", "passed", True),
        ("passed", "failed", False),
        ("failed", "not-run", False),
        ("passed", "not-run", False),
    ],
)
def test_passed_needs_restore_and_validation(restore: str, validation: str, passed: bool) -> None:
    verdicts = Verdicts(restore, validation, "missed")  # type: ignore[arg-type]
    assert replace(PASSING, verdicts=verdicts).passed is passed


SAME = SchemaResult("a", "a")
LEFT_OUT = TableResult("cron.job", "extension configuration", "left-out", 3)


@pytest.mark.parametrize(
    ("tables", "schema", "checks", "assertions", "expected"),
    [
        (PASSING.tables, SAME, (), (), "passed"),
        (PASSING.tables, None, PASSING.checks, PASSING.assertions, "passed"),
        (FAILING.tables, SAME, (), (), "failed"),
        (PASSING.tables, SchemaResult("a", "b"), (), (), "failed"),
        (PASSING.tables, SchemaResult("a", None), (), (), "failed"),
        (PASSING.tables, SchemaResult("a", "a", (), ("x is missing",)), (), (), "failed"),
        (PASSING.tables, SAME, (CheckResult("integrity_check", False),), (), "failed"),
        (PASSING.tables, SAME, (), (AssertionResult("a", "SELECT 1", "1", "0", False),), "failed"),
        ((), SAME, PASSING.checks, (), "not-run"),
        ((*PASSING.tables, LEFT_OUT), SAME, (), (), "passed"),
        ((*FAILING.tables, LEFT_OUT), SAME, (), (), "failed"),
        ((LEFT_OUT,), SAME, PASSING.checks, (), "not-run"),
        ((), None, (CheckResult("integrity_check", False),), (), "failed"),
    ],
)
def test_validation_passes_only_when_all_that_was_compared_is_equal(
    tables: object, schema: object, checks: object, assertions: object, expected: str
) -> None:
    assert judge_validation(tables, schema, checks, assertions) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (Objectives(), "not-set"),
        (Objectives(rto_actual_s=5.0, rpo_actual_s=5.0), "not-set"),
        (Objectives(rto_target_s=5.0, rto_actual_s=5.0), "met"),
        (Objectives(5.0, 5.1, 9.0, 1.0), "missed"),
        (Objectives(5.0, 4.0, 9.0, 9.5), "missed"),
        (Objectives(5.0, None, 9.0, 1.0), "not-run"),
        (Objectives(5.0, None, 9.0, 10.0), "missed"),
    ],
)
def test_objectives(objectives: Objectives, expected: str) -> None:
    assert judge_objectives(objectives) == expected


@given(st.datetimes(timezones=st.just(UTC)))
def test_quarters(moment: datetime) -> None:
    year, quarter = quarter_of(moment).split("-Q")
    assert int(year) == moment.year
    assert (int(quarter) - 1) * 3 < moment.month <= int(quarter) * 3
