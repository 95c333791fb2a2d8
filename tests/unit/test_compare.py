from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import SourceError
from crmbackup.engines.base import Segment, TableRecord, Verification
from crmbackup.operations.assertions import check_assertion, matches
from crmbackup.operations.compare import compare_schema, compare_tables, compare_virtual
from crmbackup.policy.model import Assertion, Range

SEGMENTS = (Segment(None, 10, 10, "aa"), Segment(10, 20, 10, "bb"), Segment(20, None, 5, "cc"))
TABLE = TableRecord("contacts", "table", 25, "sum", "rows", SEGMENTS)
VIRTUAL = TableRecord("search", "virtual", None, None, None, reason="in its shadow tables")
LOST = TableRecord("odd", "virtual", None, None, None, unreadable=True, reason="no such module")


def only(expected: TableRecord | None, actual: TableRecord | None) -> tuple[str, str | None]:
    (result,) = compare_tables([expected] if expected else [], [actual] if actual else [])
    return result.status, result.detail


def test_equal_tables_match() -> None:
    assert only(TABLE, TABLE) == ("match", None)


def test_a_table_that_is_gone_or_new_is_told() -> None:
    assert only(TABLE, None)[0] == "missing"
    assert only(None, TABLE)[0] == "unexpected"


def test_what_a_drill_leaves_out_need_not_be_there_but_must_be_right_if_it_is() -> None:
    reasons = {"contacts": "it acts"}
    (result,) = compare_tables([TABLE], [], reasons)
    assert (result.status, result.detail, result.expected_rows) == ("left-out", "it acts", 25)
    (result,) = compare_tables([TABLE], [replace(TABLE, checksum="other", segments=())], reasons)
    assert result.status == "mismatch"


def test_other_rows_are_located_by_segment() -> None:
    changed = replace(TABLE, checksum="other", segments=(SEGMENTS[0], replace(SEGMENTS[1], digest="xx"), SEGMENTS[2]))
    assert only(TABLE, changed) == ("mismatch", "differs in rows 11..20")


def test_another_number_of_rows_is_a_mismatch_even_with_an_equal_checksum() -> None:
    assert only(TABLE, replace(TABLE, rows=24, segments=())) == ("mismatch", "another number of rows")


def test_a_table_that_cannot_be_read_any_more_is_no_match() -> None:
    assert only(TABLE, replace(TABLE, rows=None, checksum=None, unreadable=True, reason="damaged"))[0] == "unreadable"


def test_a_table_that_could_not_be_read_in_the_source_says_so() -> None:
    status, detail = only(LOST, LOST)
    assert status == "match"
    assert detail is not None
    assert "no such module" in detail
    assert only(LOST, replace(LOST, unreadable=False))[0] != "match"


def test_virtual_tables_are_checked_for_use_not_called_equal() -> None:
    assert compare_tables([VIRTUAL], [VIRTUAL]) == []
    assert [check.ok for check in compare_virtual([VIRTUAL], [VIRTUAL])] == [True]
    assert [check.ok for check in compare_virtual([VIRTUAL], [])] == [False]
    assert [check.ok for check in compare_virtual([VIRTUAL], [replace(VIRTUAL, unreadable=True)])] == [False]


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdef"), unique=True))
def test_every_table_of_either_side_gets_one_result(expected: list[str], actual: list[str]) -> None:
    results = compare_tables([replace(TABLE, name=n) for n in expected], [replace(TABLE, name=n) for n in actual])
    assert sorted(result.name for result in results) == sorted({*expected, *actual})
    assert {r.name for r in results if r.status == "match"} == {*expected} & {*actual}


def test_settings_of_the_schema_that_differ_are_named() -> None:
    schema = {"digest": "d", "objects": {"table": 2}, "settings": {"encoding": "UTF-8", "user_version": 3}}
    other = {"digest": "e", "objects": {"table": 2, "view": 1}, "settings": {"encoding": "UTF-8", "user_version": 4}}
    result = compare_schema(schema, Verification("SQLite", [], other))
    assert not result.ok
    assert result.differences == ("user_version is 4 instead of 3",)
    assert compare_schema(schema, Verification("SQLite", [], schema)).ok


@pytest.mark.parametrize(
    ("expected", "actual", "ok"),
    [
        (5, 5, True),
        (5, 5.0, True),
        (5, "5", False),
        ("5", 5, False),
        ("a", "a", True),
        ("a", b"a", False),
        (None, None, True),
        (None, 0, False),
        (True, 1, True),
        (False, 0, True),
        (True, 2, False),
        (True, "1", False),
        (Range(min=1), 1, True),
        (Range(min=1), 0.5, False),
        (Range(max=3), 3, True),
        (Range(min=1, max=3), 4, False),
        (Range(min=1), None, False),
        (Range(min=1), "9", False),
    ],
)
def test_answers_match_by_value_and_kind(expected: object, actual: object, ok: bool) -> None:
    assert matches(expected, actual) is ok


def test_sql_that_fails_is_a_failed_assertion() -> None:
    def query(sql: str) -> object:
        raise SourceError("no such table: x")

    result = check_assertion(Assertion(name="n", sql="select * from x", expect=1), query)
    assert not result.ok
    assert result.error == "no such table: x"
