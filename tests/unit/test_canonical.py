from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.canonical import canonical_json, parse_json

# Characters that UTF-8 can hold: everything but surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=25
)


def shuffled(value: object, random: object) -> object:
    """The same value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)  # type: ignore[attr-defined]
        return {key: shuffled(value[key], random) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, random) for item in value]
    return value


@given(VALUES)
def test_the_bytes_read_back_as_the_value(value: object) -> None:
    again = parse_json(canonical_json(value))
    assert again == value
    assert canonical_json(again) == canonical_json(value)


@given(VALUES, st.randoms())
def test_the_order_of_keys_does_not_matter(value: object, random: object) -> None:
    assert canonical_json(shuffled(value, random)) == canonical_json(value)


@given(VALUES)
def test_any_json_reader_accepts_it(value: object) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert b"\n" not in data


def test_the_form_is_pinned() -> None:
    value = {"b": [1, 1.0, -0.5, 1e300], "a": {"\u00e9": True, "\U0001f600": None, "z": '"\\\n\x01<'}, "A": ()}
    assert canonical_json(value).decode("utf-8") == (
        '{"A":[],"a":{"z":"\\"\\\\\\n\\u0001<","\u00e9":true,"\U0001f600":null},"b":[1,1.0,-0.5,1e+300]}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")], "\ud800", {"\udc80": 1}])
def test_values_without_a_form_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1: 2}, [{"a": {None: 1}}], ({True: 1},), b"bytes", {1, 2}, object()])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_a_cycle_is_refused() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match=r"[Cc]ircular"):
        canonical_json(cycle)


def test_endless_nesting_is_refused() -> None:
    value: object = 1
    for _ in range(200_000):
        value = [value]
    with pytest.raises(ValueError, match="deep"):
        canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'[{"x":{"a":1,"b":2,"a":3}}]',
        b"NaN",
        b"[-Infinity]",
        b"",
        b"{",
        b"\xff",
        b"1 2",
        b"[1e999]",
        b"[" * 200000,
    ],
)
def test_text_with_two_readings_or_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(data)
