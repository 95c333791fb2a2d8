"""A drill report as JSON and back.

The dataclasses in `drill` are the one description of the form: every field is a key of the same name. Documents are
read strictly. A reader of version 1 knows all its keys, so a key that is new or absent means damage, and any change of
the form raises `schema_version`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import fields, is_dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from crmbackup.core import clock
from crmbackup.core.errors import ObjectDamaged, RepositoryTooNew
from crmbackup.reports.drill import SCHEMA_VERSION, DrillReport

#: Whole numbers below this are the same as floats.
LARGEST_EXACT = 2**53


def to_document(report: DrillReport) -> dict[str, object]:
    """The report as JSON values. Moments become ISO 8601 in UTC; a lone surrogate in a text becomes its escape.

    Raises ValueError for naive moments and for numbers that are not finite.
    """
    return {"schema_version": SCHEMA_VERSION, **_write_fields(report)}


def from_document(document: object) -> DrillReport:
    """The report that a JSON value holds. Raises ObjectDamaged, or RepositoryTooNew for a later form."""
    if not isinstance(document, dict):
        raise _damaged("report", "an object")
    version = document.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise RepositoryTooNew(
            "cannot read the drill report",
            why=f"it is of form {version}; this version of crmbackup knows form {SCHEMA_VERSION}",
            hint="use the version of crmbackup that wrote it, or a later one",
        )
    if type(version) is not int or version != SCHEMA_VERSION:
        raise _damaged("schema_version", str(SCHEMA_VERSION))
    rest = {key: value for key, value in document.items() if key != "schema_version"}
    report: DrillReport = _read_fields(DrillReport, rest, "report")
    return report


def _write(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a drill report cannot hold a number that is not finite")
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a drill report cannot hold a moment without a time zone")
        return clock.to_text(value)
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    if is_dataclass(value):
        return _write_fields(value)
    return value


def _write_fields(value: Any) -> dict[str, object]:
    return {field.name: _write(getattr(value, field.name)) for field in fields(value)}


@functools.cache
def _shape(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _read_fields(kind: Any, value: object, path: str) -> Any:
    shape = _shape(kind)
    if not isinstance(value, dict):
        raise _damaged(path, "an object")
    if value.keys() != shape.keys():
        odd = ", ".join(sorted(repr(key) for key in value.keys() ^ shape.keys()))
        raise _damaged(path, "an object with the known keys only", f"absent or unknown: {odd}")
    return kind(**{name: _read(hint, value[name], f"{path}.{name}") for name, hint in shape.items()})


def _read(hint: Any, value: object, path: str) -> object:
    if isinstance(hint, UnionType):
        (inner,) = (option for option in get_args(hint) if option is not NoneType)
        return None if value is None else _read(inner, value, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise _damaged(path, "a list")
        return tuple(_read(get_args(hint)[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise _damaged(path, " or ".join(get_args(hint)))
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return _read_fields(hint, value, path)
    return _read_plain(hint, value, path)


def _read_plain(hint: Any, value: object, path: str) -> object:
    if hint is datetime:
        try:
            return clock.from_text(value)  # type: ignore[arg-type]  # strptime refuses what is not text
        except (TypeError, ValueError):
            raise _damaged(path, "a moment") from None
    if hint is float and type(value) is int and abs(value) < LARGEST_EXACT:
        return float(value)
    if type(value) is not hint:
        raise _damaged(path, {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint])
    return value


def _damaged(path: str, expected: str, more: str = "") -> ObjectDamaged:
    return ObjectDamaged(
        "the drill report is not of the form that crmbackup writes",
        why=f"{path} should be {expected}" + (f"; {more}" if more else ""),
        hint="take the file from where the drill wrote it, unchanged",
    )
